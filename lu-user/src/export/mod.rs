//! What leaves lu: a report, a list of updates, a line for each event.

mod history;
mod report;
mod trace;
mod waterfall;

pub use history::{Entry, HISTORY_SCHEMA, History, table};
pub use report::{Report, SCHEMA};
pub use trace::{TraceLine, line};
pub use waterfall::waterfall;

use nix::errno::Errno;

/// The name of an errno, as in the manual pages.
#[must_use]
pub fn errno_name(errno: i32) -> String {
    match Errno::from_raw(errno) {
        Errno::UnknownErrno => format!("errno {errno}"),
        known => format!("{known:?}"),
    }
}

/// A duration, in the unit that suits it.
#[must_use]
pub fn duration(ns: u64) -> String {
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{:.1} µs", ns as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} ms", ns as f64 / 1e6),
        _ => format!("{:.2} s", ns as f64 / 1e9),
    }
}

/// A size, in the unit that suits it.
#[must_use]
pub fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
}
