//! What leaves lu: a report in its forms, a list of updates, a line for each event.

pub(crate) mod attention;
mod history;
mod html;
mod in_force;
pub mod perfetto;
mod report;
mod trace;
mod verdict;
mod waterfall;

pub use attention::{AttentionJson, AttentionKind};
pub use history::{Entry, HISTORY_SCHEMA, History, table};
pub use html::html;
pub use in_force::{IN_FORCE_SCHEMA, InForceJson, RuleInForceJson};
pub use perfetto::perfetto;
pub use report::{CallerJson, Report, SCHEMA, VerdictJson};
pub use trace::{TraceLine, line};
pub use verdict::{PolicyLine, RuleLine, UntoldLine, VerdictLine, is_about_policy, untold};
pub use waterfall::waterfall;

use std::time::{Duration, SystemTime};

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

/// A share, for people: what is there at all is not 0.
fn percent(percent: f64) -> String {
    if percent > 0.0 && percent < 0.05 {
        "< 0.1 %".to_owned()
    } else {
        format!("{percent:.1} %")
    }
}

/// When an update began, for people, in UTC.
fn began(report: &Report) -> Option<String> {
    let since_1970 = Duration::from_nanos(report.began_realtime_ns?);
    let then = SystemTime::UNIX_EPOCH.checked_add(since_1970)?;
    Some(humantime::format_rfc3339_seconds(then).to_string())
}
