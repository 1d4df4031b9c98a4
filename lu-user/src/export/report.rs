//! The report as JSON. Its schema is stable: fields are added, and never change their meaning.

use serde::Serialize;

use super::errno_name;
use crate::timeline::{FileSpan, Phase, Update};

/// The value of the field `schema`.
pub const SCHEMA: &str = "lu.report/1";

/// One update.
#[derive(Debug, Serialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// The update's number among those seen.
    pub update: u64,
    /// `v3` or `sessions`.
    pub interface: &'static str,
    /// `emulated` or `kernel`.
    pub orchestrator: &'static str,
    /// `finished`, `cancelled`, `aborted` or `in-progress`.
    pub outcome: &'static str,
    /// How long the machine was dark; null where that was not seen.
    pub blackout: Option<BlackoutJson>,
    /// The phases that took place.
    pub phases: Vec<PhaseJson>,
    /// The sessions; v3's flat space is one without a name.
    pub sessions: Vec<SessionJson>,
    /// What the policy said, other than a plain allow.
    pub verdicts: Vec<()>,
    /// System calls that failed.
    pub errors: Vec<ErrorJson>,
    /// What the numbers rest on.
    pub events: EventsJson,
}

/// The blackout window.
#[derive(Debug, Serialize)]
pub struct BlackoutJson {
    /// Its length, in nanoseconds.
    pub ns: u64,
    /// The length may be off by this, in nanoseconds.
    pub uncertainty_ns: u64,
    /// The clock that both ends were read from.
    pub clock: &'static str,
    /// What it begins with.
    pub from: &'static str,
    /// What it ends with.
    pub to: &'static str,
    /// Whether events of the update were lost, so that a later restore may be missing.
    pub lossy: bool,
}

/// A phase.
#[derive(Debug, Serialize)]
pub struct PhaseJson {
    /// Its name.
    pub name: &'static str,
    /// When it began, `CLOCK_MONOTONIC` in nanoseconds.
    pub start_ns: Option<u64>,
    /// How long it took, in nanoseconds.
    pub ns: Option<u64>,
    /// Whether both were seen.
    pub known: bool,
}

/// A session.
#[derive(Debug, Serialize)]
pub struct SessionJson {
    /// Its name; null in v3.
    pub name: Option<String>,
    /// Its files, by token.
    pub files: Vec<FileJson>,
}

/// A file; durations in nanoseconds, null where not seen.
#[derive(Debug, Serialize)]
pub struct FileJson {
    /// Its token.
    pub token: u64,
    /// What sort of file.
    pub kind: Option<&'static str>,
    /// Its size.
    pub bytes: Option<u64>,
    /// Time to preserve it.
    pub preserve_ns: Option<u64>,
    /// Time to prepare it.
    pub prepare_ns: Option<u64>,
    /// Time to freeze it.
    pub freeze_ns: Option<u64>,
    /// Time to restore it.
    pub restore_ns: Option<u64>,
    /// What became of it.
    pub outcome: &'static str,
}

/// Failed system calls of one sort.
#[derive(Debug, Serialize)]
pub struct ErrorJson {
    /// What was asked for.
    pub operation: &'static str,
    /// The errno's name.
    pub errno: String,
    /// How often.
    pub count: u64,
}

/// Events.
#[derive(Debug, Serialize)]
pub struct EventsJson {
    /// Taken in.
    pub seen: u64,
    /// Known to have been lost.
    pub lost: u64,
}

/// The resolution of `CLOCK_MONOTONIC` in the kernel, in nanoseconds (`clock_getres(2)`, high
/// resolution timers). Both ends of a span are read from it.
const RESOLUTION_NS: u64 = 1;

impl From<&Update> for Report {
    fn from(update: &Update) -> Self {
        Self {
            schema: SCHEMA,
            update: update.number,
            interface: update.interface.name(),
            orchestrator: if update.emulated {
                "emulated"
            } else {
                "kernel"
            },
            outcome: update.outcome.name(),
            blackout: update.blackout().map(|blackout| BlackoutJson {
                ns: blackout.ns,
                uncertainty_ns: 2 * RESOLUTION_NS,
                clock: "monotonic",
                from: "freeze",
                to: "last-restore",
                lossy: update.events.lost > 0,
            }),
            phases: update.phases().iter().map(PhaseJson::from).collect(),
            sessions: vec![SessionJson {
                name: None,
                files: update
                    .files
                    .iter()
                    .map(|(token, file)| FileJson::new(*token, file))
                    .collect(),
            }],
            verdicts: Vec::new(),
            errors: update
                .errors
                .iter()
                .map(|((operation, errno), count)| ErrorJson {
                    operation,
                    errno: errno_name(*errno),
                    count: *count,
                })
                .collect(),
            events: EventsJson {
                seen: update.events.seen,
                lost: update.events.lost,
            },
        }
    }
}

impl From<&Phase> for PhaseJson {
    fn from(phase: &Phase) -> Self {
        Self {
            name: phase.name.name(),
            start_ns: phase.start_ns,
            ns: phase.ns,
            known: phase.known(),
        }
    }
}

impl FileJson {
    fn new(token: u64, file: &FileSpan) -> Self {
        Self {
            token,
            kind: file.kind.map(lu_common::event::FileKind::name),
            bytes: file.bytes,
            preserve_ns: file.preserve_ns,
            prepare_ns: file.prepare_ns,
            freeze_ns: file.freeze_ns,
            restore_ns: file.restore_ns,
            outcome: file.outcome.name(),
        }
    }
}
