//! The policy: its language, and the way from a file to what [`lu_common::policy::evaluate`] judges by.
//!
//! docs/policy.md tells the language. [`Source`] is a file that was read and checked, [`compile`] makes a
//! [`Compiled`] of it for a machine.

mod cases;
mod check;
mod compile;
mod error;
mod explain;
mod file;
mod request;
mod source;
mod value;

pub use cases::{Case, Said, Tried, cases};
pub use compile::{Compiled, Machine, Resolve, RuleName, compile, hexadecimal};
pub use error::{Error, Problem, Refused};
pub use explain::{Asks, Explanation, Outcome, Step, explain};
pub use file::{Answer, Condition, Mode};
pub use request::{Asked, Names, Stands, State};
pub use source::{Conditions, FILE_MOST, Rule, Says, Source, has_session, read_text};
pub use value::{Interval, NAME_MOST, Pattern};

/// The JSON Schema of a policy's file.
#[must_use]
pub fn schema() -> schemars::Schema {
    schemars::schema_for!(file::File)
}
