//! The v3 interface: one state machine, one flat token space.
//!
//! - [`core`]: the state machine, pure.
//! - `luo`, `files`: its steps and its file callbacks, as functions with the kernel's names and signatures.

pub mod core;
mod files;
pub(super) mod luo;
