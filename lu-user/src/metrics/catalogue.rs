//! Every metric that lu exports, as data: the text at `/metrics`, docs/metrics.md, and the checks of dashboards and
//! rules come from it.
//!
//! Labels have values of closed sets, and each combination is there from the start: a series that appears with the
//! first failure has no rate for it. A session's name, a token, a process or a path is no label's value, ever. The
//! one set that a person chooses is the names of a policy's rules, and it is bounded.

use std::fmt::Write as _;

use lu_common::event::{FileKind, Kind};
use lu_common::policy::{Decision, Operation, RULES};
use lu_common::uapi::Interface;

use crate::attach::hooks;
use crate::timeline::clock::Clock;
use crate::timeline::{self, FileOutcome, Outcome, PhaseName, SessionOutcome};

/// What sort of metric it is, as `OpenMetrics` 1.0 has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// Only grows, until lu starts anew.
    Counter,
    /// Goes up and down; NaN where it is unknown.
    Gauge,
    /// Always 1: its labels are what it tells.
    Info,
    /// Counts by size, in buckets and natively.
    Histogram(Buckets),
}

/// Where a histogram's buckets end, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buckets {
    /// A call: from a microsecond on.
    Call,
    /// A phase, or a whole blackout: from ten milliseconds on.
    Phase,
}

impl Buckets {
    /// Their ends; the last one, without an end, left out.
    #[must_use]
    pub const fn ends(self) -> &'static [f64] {
        match self {
            Self::Call => &[
                1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0,
                10.0,
            ],
            Self::Phase => &[
                0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 20.0, 30.0, 60.0,
                120.0, 300.0, 600.0,
            ],
        }
    }
}

/// What a metric is measured in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// It is a number of things.
    None,
    /// Seconds.
    Seconds,
    /// Bytes.
    Bytes,
}

impl Unit {
    /// As a name ends with it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Seconds => "seconds",
            Self::Bytes => "bytes",
        }
    }
}

/// A label: what tells the series of a metric apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Label {
    /// [`Kind`].
    Event,
    /// What was asked for, in the words of reports.
    Operation,
    /// [`ERRNOS`].
    Errno,
    /// Whether it failed.
    Result,
    /// [`LOSSES`].
    Reason,
    /// [`FileKind`].
    FileKind,
    /// [`FileOutcome`].
    FileOutcome,
    /// [`SessionOutcome`].
    SessionOutcome,
    /// [`Outcome`] of an update that is over.
    Outcome,
    /// [`PhaseName`].
    Phase,
    /// [`Clock`].
    Clock,
    /// The name of a policy's rule; [`NO_RULE`] and [`OTHER_RULE`] beside them.
    Rule,
    /// [`Decision`].
    Decision,
    /// The operations that a policy judges.
    Judged,
    /// [`MODES`].
    Mode,
    /// A function that has a hook.
    Hook,
    /// The interface of the orchestrator.
    Interface,
    /// Whose orchestrator it is.
    Orchestrator,
    /// [`FORMATS`].
    Format,
    /// lu's version.
    Version,
    /// The running kernel's release.
    Release,
}

/// The errnos that have a value of their own, with their names; success is [`NO_ERRNO`], all others are
/// [`OTHER_ERRNO`].
pub const ERRNOS: [(i32, &str); 22] = [
    (libc::EPERM, "EPERM"),
    (libc::ENOENT, "ENOENT"),
    (libc::EINTR, "EINTR"),
    (libc::EIO, "EIO"),
    (libc::EBADF, "EBADF"),
    (libc::EAGAIN, "EAGAIN"),
    (libc::ENOMEM, "ENOMEM"),
    (libc::EACCES, "EACCES"),
    (libc::EFAULT, "EFAULT"),
    (libc::EBUSY, "EBUSY"),
    (libc::EEXIST, "EEXIST"),
    (libc::ENODEV, "ENODEV"),
    (libc::EINVAL, "EINVAL"),
    (libc::EMFILE, "EMFILE"),
    (libc::ENOTTY, "ENOTTY"),
    (libc::ENOSPC, "ENOSPC"),
    (libc::ERANGE, "ERANGE"),
    (libc::ENAMETOOLONG, "ENAMETOOLONG"),
    (libc::ENOSYS, "ENOSYS"),
    (libc::ENODATA, "ENODATA"),
    (libc::EOPNOTSUPP, "EOPNOTSUPP"),
    (libc::ECANCELED, "ECANCELED"),
];

/// The value for a call that succeeded.
pub const NO_ERRNO: &str = "none";

/// The value for what is not among [`ERRNOS`].
pub const OTHER_ERRNO: &str = "other";

/// How a call ended.
pub const RESULTS: [&str; 2] = ["ok", "failed"];

/// Why events are lost, in the order of [`Losses`](crate::collect::Losses); `unread` are those that lack something.
pub const LOSSES: [&str; 4] = ["ring_full", "no_entry", "skipped", "unread"];

/// What a policy does.
pub const MODES: [&str; 3] = ["off", "monitor", "enforce"];

/// How metrics are written.
pub const FORMATS: [&str; 3] = ["openmetrics", "text", "protobuf"];

/// Whose orchestrators there are.
pub const ORCHESTRATORS: [&str; 2] = ["kernel", "emulated"];

/// What no rule decided. A rule that is called so counts as [`OTHER_RULE`].
pub const NO_RULE: &str = "(none)";

/// Rules whose names came when there was no more room, and those whose names were not seen.
pub const OTHER_RULE: &str = "(other)";

/// How many names of rules there is room for, over all policies that are loaded one after the other.
pub const RULE_NAMES: usize = RULES;

/// Both interfaces.
pub const INTERFACES: [Interface; 2] = [Interface::V3, Interface::Sessions];

/// How an update can have ended.
pub const OVER: [Outcome; 4] = [
    Outcome::Finished,
    Outcome::Cancelled,
    Outcome::Aborted,
    Outcome::Incomplete,
];

/// Which values a label can have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Values {
    /// These.
    Closed(Vec<&'static str>),
    /// [`NO_RULE`], [`OTHER_RULE`], and at most [`RULE_NAMES`] others.
    Rules,
    /// One at a time, which stays as long as lu runs.
    One,
}

impl Label {
    /// Its name in a series.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::Operation | Self::Judged => "operation",
            Self::Errno => "errno",
            Self::Result => "result",
            Self::Reason => "reason",
            Self::FileKind => "kind",
            Self::FileOutcome | Self::SessionOutcome | Self::Outcome => "outcome",
            Self::Phase => "phase",
            Self::Clock => "clock",
            Self::Rule => "rule",
            Self::Decision => "decision",
            Self::Mode => "mode",
            Self::Hook => "hook",
            Self::Interface => "interface",
            Self::Orchestrator => "orchestrator",
            Self::Format => "format",
            Self::Version => "version",
            Self::Release => "release",
        }
    }

    /// Its values.
    #[must_use]
    pub fn values(self) -> Values {
        macro_rules! names {
            ($all:expr) => {
                $all.iter().map(|one| one.name()).collect()
            };
        }
        Values::Closed(match self {
            Self::Event => names!(Kind::ALL),
            Self::Operation => timeline::OPERATIONS.to_vec(),
            Self::Judged => names!(Operation::ALL),
            Self::Errno => {
                let names = ERRNOS.iter().map(|(_, name)| *name);
                names.chain([NO_ERRNO, OTHER_ERRNO]).collect()
            }
            Self::Result => RESULTS.to_vec(),
            Self::Reason => LOSSES.to_vec(),
            Self::FileKind => names!(FileKind::ALL),
            Self::FileOutcome => names!(FileOutcome::ALL),
            Self::SessionOutcome => names!(SessionOutcome::ALL),
            Self::Outcome => OVER.iter().map(|outcome| outcome.name()).collect(),
            Self::Phase => names!(PhaseName::ALL),
            Self::Clock => names!(Clock::ALL),
            Self::Decision => names!(Decision::ALL),
            Self::Mode => MODES.to_vec(),
            Self::Hook => {
                let all = INTERFACES.into_iter().flat_map(hooks);
                let mut names: Vec<_> = all.map(|hook| hook.function).collect();
                names.sort_unstable();
                names.dedup();
                names
            }
            Self::Interface => INTERFACES.map(Interface::name).to_vec(),
            Self::Orchestrator => ORCHESTRATORS.to_vec(),
            Self::Format => FORMATS.to_vec(),
            Self::Rule => return Values::Rules,
            Self::Version | Self::Release => return Values::One,
        })
    }
}

/// A metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its name, with its unit and without what its type adds (`_total`, `_info`, `_bucket`).
    pub name: &'static str,
    /// What sort it is.
    pub kind: Type,
    /// What it is measured in.
    pub unit: Unit,
    /// What tells its series apart.
    pub labels: &'static [Label],
    /// What it means.
    pub help: &'static str,
}

impl Metric {
    /// The name that queries have: of a histogram's, one of three.
    #[must_use]
    pub fn series(&self) -> String {
        match self.kind {
            Type::Counter => format!("{}_total", self.name),
            Type::Info => format!("{}_info", self.name),
            Type::Gauge => self.name.to_owned(),
            Type::Histogram(_) => format!("{}_bucket", self.name),
        }
    }

    /// Its name without the unit at its end.
    #[must_use]
    pub fn stem(&self) -> &'static str {
        let stem = self.name.strip_suffix(self.unit.name());
        stem.map_or(self.name, |stem| stem.trim_end_matches('_'))
    }

    /// The names that its series can have.
    #[must_use]
    pub fn all_series(&self) -> Vec<String> {
        match self.kind {
            Type::Histogram(_) => ["bucket", "sum", "count"]
                .map(|part| format!("{}_{part}", self.name))
                .to_vec(),
            _ => vec![self.series()],
        }
    }
}

macro_rules! metrics {
    ($($name:ident = $text:literal, $kind:expr, $unit:ident, [$($label:ident),*], $help:literal;)*) => {
        $(
            #[doc = concat!("`", $text, "`; [`Metric::help`] says what it means.")]
            pub const $name: Metric = Metric {
                name: $text,
                kind: $kind,
                unit: Unit::$unit,
                labels: &[$(Label::$label),*],
                help: $help,
            };
        )*

        /// Every metric, in the order of the documents.
        pub const ALL: &[Metric] = &[$($name),*];
    };
}

metrics! {
    BUILD = "lu_build", Type::Info, None, [Version],
        "Which lu this is.";
    KERNEL = "lu_kernel", Type::Info, None, [Release],
        "Which kernel runs.";
    ORCHESTRATORS_RUNNING = "lu_orchestrators", Type::Gauge, None, [Orchestrator],
        "Orchestrators that run on this machine, as far as lu watches them.";
    HOOK_ATTACHED = "lu_hook_attached", Type::Gauge, None, [Interface, Hook],
        "1 where the hook on the function is attached, 0 where it is not and NaN where lu does not want it.";
    HOOKS_MISSING = "lu_hooks_missing", Type::Gauge, None, [],
        "Hooks that lu wants and could not attach; what they would tell is unknown.";
    EVENTS = "lu_events", Type::Counter, None, [Event],
        "Events that were taken in, by what happened.";
    EVENTS_LOST = "lu_events_lost", Type::Counter, None, [Reason],
        "Events that were lost: the ring buffer was full (ring_full), an entry was not remembered (no_entry), the kernel skipped a program (skipped); and those that lack what could not be read (unread).";
    PROBLEMS = "lu_problems", Type::Counter, None, [],
        "What went wrong with the journal, its history or the audit log and is no reason to stop; lu's standard error says what.";
    OPERATIONS = "lu_operations", Type::Counter, None, [Operation, Errno],
        "System calls on the orchestrator, by what they asked for and the errno they ended with (none: success).";
    OPERATION_TIME = "lu_operation_time_seconds", Type::Counter, Seconds, [Operation, Errno],
        "Time spent in these system calls.";
    OPERATION_DURATION = "lu_operation_duration_seconds", Type::Histogram(Buckets::Call), Seconds, [Operation, Result],
        "How long one of these system calls took.";
    FREEZES = "lu_freezes", Type::Counter, None, [Result],
        "Freezes, by how they ended.";
    UPDATES = "lu_updates", Type::Counter, None, [Outcome],
        "Live updates that have ended since lu started, by how.";
    UPDATE_NUMBER = "lu_update_number", Type::Gauge, None, [],
        "The number of the newest live update, as lu history counts them; NaN before the first.";
    UPDATE_PHASE = "lu_update_phase", Type::Gauge, None, [Phase],
        "1 where a live update is in this phase. A wait that follows a phase counts to that phase until it is over.";
    UPDATE_FILES = "lu_update_files", Type::Gauge, None, [FileKind, FileOutcome],
        "Files of the newest live update, by kind and by what became of them; lu's own are left out.";
    UPDATE_BYTES = "lu_update_size_bytes", Type::Gauge, Bytes, [FileKind, FileOutcome],
        "Size of these files, as far as it is known.";
    UPDATE_SESSIONS = "lu_update_sessions", Type::Gauge, None, [SessionOutcome],
        "Sessions of the newest live update, by what became of them; lu's own are left out.";
    UPDATE_PHASE_TIME = "lu_update_phase_seconds", Type::Gauge, Seconds, [Phase],
        "How long the phase took in the newest live update; NaN where it is unknown, or was not.";
    FILES = "lu_files", Type::Counter, None, [FileOutcome],
        "Files of live updates that have ended, by what became of them.";
    SESSIONS = "lu_sessions", Type::Counter, None, [SessionOutcome],
        "Sessions of live updates that have ended, by what became of them.";
    PHASE_DURATION = "lu_phase_duration_seconds", Type::Histogram(Buckets::Phase), Seconds, [Phase],
        "How long a phase took, in live updates that have ended.";
    BLACKOUT = "lu_blackout_seconds", Type::Histogram(Buckets::Phase), Seconds, [],
        "How long the machine was dark, in live updates that have ended.";
    LAST_BLACKOUT = "lu_last_blackout_seconds", Type::Gauge, Seconds, [],
        "How long the machine was dark in the newest live update; NaN where it is unknown.";
    LAST_BLACKOUT_UNCERTAINTY = "lu_last_blackout_uncertainty_seconds", Type::Gauge, Seconds, [],
        "What lu_last_blackout_seconds may be off by; NaN where that is unknown.";
    LAST_BLACKOUT_CLOCK = "lu_last_blackout_clock", Type::Gauge, None, [Clock],
        "1 for the clock that told lu_last_blackout_seconds.";
    LAST_BLACKOUT_LOSSY = "lu_last_blackout_lossy", Type::Gauge, None, [],
        "1 where events of the newest live update were lost, so that a later restore may be missing.";
    VERDICTS = "lu_verdicts", Type::Counter, None, [Rule, Decision],
        "What the policy said of requests, other than a plain allow, by the rule that said so.";
    JUDGED = "lu_judged_requests", Type::Counter, None, [Judged, Decision],
        "The same, by what was asked for.";
    VERDICTS_LOST = "lu_verdicts_lost", Type::Counter, None, [],
        "Verdicts that were lost for want of room.";
    UNJUDGED = "lu_unjudged_requests", Type::Counter, None, [],
        "Requests that were let through without being judged, for want of room.";
    TAMPERED = "lu_tampered_requests", Type::Counter, None, [],
        "Requests that got through and were not the ones that were judged.";
    POLICY_MODE = "lu_policy_mode", Type::Gauge, None, [Mode],
        "1 for what the policy that this lu has put in force does: there is none (off), it tells (monitor), or a rule of it is enforced (enforce).";
    POLICY_WANTED = "lu_policy_wanted", Type::Gauge, None, [Mode],
        "The same as the policy's file has it: what should be in force.";
    POLICY_RULES = "lu_policy_rules", Type::Gauge, None, [],
        "Rules of the policy in force.";
    POLICY_ENFORCED_RULES = "lu_policy_enforced_rules", Type::Gauge, None, [],
        "Of these, those that are enforced.";
    POLICY_GENERATION = "lu_policy_generation", Type::Gauge, None, [],
        "Counts the policies that were loaded on this kernel; NaN where none is in force.";
    POLICY_RELOADS = "lu_policy_reloads", Type::Counter, None, [Result],
        "Reloads of the policy's file that were asked for.";
    RECORDER_LAG = "lu_recorder_lag_seconds", Type::Gauge, Seconds, [],
        "Age of the oldest event of the last batch when it was in the journal; of what waits, where the journal cannot be written.";
    JOURNAL_BYTES = "lu_journal_size_bytes", Type::Gauge, Bytes, [],
        "Size of the journal's files, the history among them.";
    LAST_TURN = "lu_collector_turn_timestamp_seconds", Type::Gauge, Seconds, [],
        "When the collector's loop last came round, by the clock of the day.";
    CPU = "lu_process_cpu_seconds", Type::Counter, Seconds, [],
        "CPU time of lu itself.";
    MEMORY = "lu_process_resident_memory_bytes", Type::Gauge, Bytes, [],
        "Memory of lu itself (resident).";
    OPEN_FILES = "lu_process_open_fds", Type::Gauge, None, [],
        "Descriptors that lu itself has open.";
    START = "lu_process_start_time_seconds", Type::Gauge, Seconds, [],
        "When lu started, in seconds since 1970.";
    SCRAPES = "lu_export_scrapes", Type::Counter, None, [Format],
        "Scrapes of these metrics, by the format that was asked for.";
    REFUSED = "lu_export_refused_connections", Type::Counter, None, [],
        "Connections that were closed at once, because there were too many.";
}

/// docs/metrics.md.
#[must_use]
pub fn reference() -> String {
    let mut text = String::from(
        "# Metrics\n\n\
         What `lu run --export` serves at `/metrics`. This page is generated from the catalogue in\n\
         `lu-user/src/metrics/catalogue.rs` by `cargo xtask dashboards`.\n\n\
         Every series is there from the start, but for those of a policy's rules, which come with the policy. A gauge\n\
         that is unknown is NaN, never 0. No session's name, token, process or path is in a label.\n",
    );
    for metric in ALL {
        let kind = match metric.kind {
            Type::Counter => "counter",
            Type::Gauge => "gauge",
            Type::Info => "info",
            Type::Histogram(_) => "histogram, classic and native",
        };
        // Writing to a String does not fail.
        let _ = write!(
            text,
            "\n## `{}`\n\n{}\n\nType: {kind}",
            metric.name, metric.help
        );
        if metric.unit != Unit::None {
            let _ = write!(text, ". Unit: {}", metric.unit.name());
        }
        let series = metric.all_series().join("`, `");
        let _ = writeln!(text, ". Series: `{series}`.");
        for label in metric.labels {
            let values = match label.values() {
                Values::Closed(values) => format!("`{}`", values.join("`, `")),
                Values::Rules => format!(
                    "the names of the policy's rules, at most {RULE_NAMES}, `{NO_RULE}` and `{OTHER_RULE}`"
                ),
                Values::One => "one, as long as lu runs".to_owned(),
            };
            let _ = write!(text, "\n- `{}`: {values}\n", label.name());
        }
        if let Type::Histogram(buckets) = metric.kind {
            let ends: Vec<String> = buckets.ends().iter().map(f64::to_string).collect();
            let _ = write!(text, "\nBuckets end at {} s.\n", ends.join(", "));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_prometheus_wants_them() {
        let mut names = std::collections::BTreeSet::new();
        for metric in ALL {
            let name = metric.name;
            assert!(names.insert(name), "{name} is there twice");
            assert!(name.starts_with("lu_"), "{name}");
            assert!(
                name.chars().all(|c| c.is_ascii_lowercase() || c == '_'),
                "{name}"
            );
            for reserved in ["_total", "_info", "_bucket", "_count", "_sum", "_created"] {
                assert!(!name.ends_with(reserved), "{name}");
            }
            assert!(name.ends_with(metric.unit.name()), "{name}");
            assert_eq!(metric.unit == Unit::None, metric.stem() == name, "{name}");
            assert!(
                metric.help.ends_with('.') && !metric.help.contains('\n'),
                "{name}"
            );
        }
    }
}
