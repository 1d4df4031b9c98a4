//! The list of updates.

use std::borrow::Cow;
use std::fmt::Write as _;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

use super::{Report, duration};

/// The value of the field `schema`.
pub const HISTORY_SCHEMA: &str = "lu.history/1";

/// The updates of a journal, as one document.
#[derive(Debug, Serialize)]
pub struct History {
    /// [`HISTORY_SCHEMA`].
    pub schema: &'static str,
    /// The newest first.
    pub updates: Vec<Entry>,
}

impl From<Vec<Entry>> for History {
    fn from(updates: Vec<Entry>) -> Self {
        Self {
            schema: HISTORY_SCHEMA,
            updates,
        }
    }
}

/// One update, as it is listed; null is unknown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Its number.
    pub update: u64,
    /// When it began: `CLOCK_REALTIME`, in nanoseconds since 1970.
    pub began_realtime_ns: Option<u64>,
    /// `v3` or `sessions`.
    pub interface: Cow<'static, str>,
    /// `emulated` or `kernel`.
    pub orchestrator: Cow<'static, str>,
    /// How it ended.
    pub outcome: Cow<'static, str>,
    /// How many files were handed over to the new kernel.
    pub handed_over: Option<u64>,
    /// How many of these were restored.
    pub restored: Option<u64>,
    /// The blackout, in nanoseconds.
    pub blackout_ns: Option<u64>,
    /// What that may be off by, in nanoseconds.
    pub uncertainty_ns: Option<u64>,
    /// By which clock.
    pub clock: Option<Cow<'static, str>>,
    /// Events of it that are known to have been lost.
    pub lost: Option<u64>,
    /// The releases of the kernels that it went through.
    pub kernels: Vec<String>,
}

impl From<&Report> for Entry {
    fn from(report: &Report) -> Self {
        let blackout = report.blackout.as_ref();
        Self {
            update: report.update,
            began_realtime_ns: report.began_realtime_ns,
            interface: report.interface.clone(),
            orchestrator: report.orchestrator.clone(),
            outcome: report.outcome.name().into(),
            handed_over: Some(report.files.handed_over),
            restored: Some(report.files.restored),
            blackout_ns: blackout.map(|blackout| blackout.ns),
            uncertainty_ns: blackout.and_then(|blackout| blackout.uncertainty_ns),
            clock: blackout.map(|blackout| blackout.clock.name().into()),
            lost: Some(report.events.lost),
            kernels: report.kernels.clone(),
        }
    }
}

/// A line for each entry, its time as in `zone`.
#[must_use]
pub fn table(entries: &[Entry], zone: &TimeZone) -> String {
    let mut text = format!(
        "{:>6}  {:<27}{:<10}{:<10}{:<13}{:>13}  {:<37}kernels\n",
        "update", "began", "interface", "by", "outcome", "restored", "blackout"
    );
    for entry in entries {
        let _ = writeln!(
            text,
            "{:>6}  {:<27}{:<10}{:<10}{:<13}{:>13}  {:<37}{}",
            entry.update,
            began(entry, zone),
            entry.interface,
            entry.orchestrator,
            entry.outcome,
            files(entry),
            blackout(entry),
            kernels(entry),
        );
    }
    text
}

fn unknown() -> String {
    "unknown".to_owned()
}

fn began(entry: &Entry, zone: &TimeZone) -> String {
    let time = entry
        .began_realtime_ns
        .and_then(|ns| Timestamp::from_nanosecond(ns.into()).ok());
    time.map_or_else(unknown, |time| {
        time.to_zoned(zone.clone())
            .strftime("%Y-%m-%d %H:%M:%S %:z")
            .to_string()
    })
}

fn files(entry: &Entry) -> String {
    match (entry.restored, entry.handed_over) {
        (Some(restored), Some(handed_over)) => format!("{restored} of {handed_over}"),
        _ => unknown(),
    }
}

fn blackout(entry: &Entry) -> String {
    let Some(ns) = entry.blackout_ns else {
        // A live update that was called off made nothing dark.
        return if matches!(&*entry.outcome, "cancelled" | "aborted") {
            "–".to_owned()
        } else {
            unknown()
        };
    };
    format!(
        "{}{} ± {} ({})",
        if entry.lost == Some(0) { "" } else { "≥ " },
        duration(ns),
        entry.uncertainty_ns.map_or_else(unknown, duration),
        entry.clock.as_deref().unwrap_or("unknown"),
    )
}

/// Where the same kernel was booted again it is named once.
fn kernels(entry: &Entry) -> String {
    match entry.kernels.as_slice() {
        [] => unknown(),
        [first, rest @ ..] if rest.iter().all(|kernel| kernel == first) && !rest.is_empty() => {
            format!("{first}, again")
        }
        kernels => kernels.join(" → "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_what_is_known_and_names_what_is_not() {
        let entry = Entry {
            update: 12,
            began_realtime_ns: Some(1_795_600_000_000_000_000),
            interface: "sessions".into(),
            orchestrator: "kernel".into(),
            outcome: "finished".into(),
            handed_over: Some(4),
            restored: Some(3),
            blackout_ns: Some(6_920_100_000),
            uncertainty_ns: Some(2_100),
            clock: Some("counter".into()),
            lost: Some(0),
            kernels: vec!["7.3.4".into(), "7.3.5".into()],
        };
        let unknown = Entry {
            began_realtime_ns: None,
            handed_over: None,
            blackout_ns: None,
            kernels: Vec::new(),
            ..entry.clone()
        };
        let zone = TimeZone::fixed(jiff::tz::offset(-3));
        let text = table(&[entry, unknown], &zone);
        let lines: Vec<&str> = text.lines().collect();
        for part in [
            "12  2026-11-25 06:46:40 -03:00",
            "sessions  kernel    finished",
            "3 of 4  6.92 s ± 2.1 µs (counter)",
            "7.3.4 → 7.3.5",
        ] {
            assert!(lines[1].contains(part), "{part:?} is not in {}", lines[1]);
        }
        assert_eq!(lines[2].matches("unknown").count(), 4, "{}", lines[2]);
    }
}
