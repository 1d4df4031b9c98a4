//! The report as JSON. Its schema is stable: fields are added, and never change their meaning.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use lu_common::uapi::Interface;

use super::errno_name;
use crate::timeline::clock::{Clock, Crossing};
use crate::timeline::{
    BlackoutStart, Darkness, FileOutcome, FileSpan, Outcome, Phase, PhaseName, Session,
    SessionOutcome, Update,
};

/// The value of the field `schema`.
pub const SCHEMA: &str = "lu.report/1";

/// One update, as it is told: what every output is made from, and what the history keeps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: Cow<'static, str>,
    /// The update's number among those seen.
    pub update: u64,
    /// `v3` or `sessions`.
    pub interface: Cow<'static, str>,
    /// `emulated` or `kernel`.
    pub orchestrator: Cow<'static, str>,
    /// The releases of the kernels that the update went through, as far as they are known.
    pub kernels: Vec<String>,
    /// The boots that it went through, as far as they are known, as in `/proc/sys/kernel/random/boot_id`.
    #[serde(default)]
    pub boot_ids: Vec<String>,
    /// When it began: `CLOCK_MONOTONIC` of the first of these boots, in nanoseconds.
    #[serde(default)]
    pub began_monotonic_ns: u64,
    /// When it began: `CLOCK_REALTIME`, in nanoseconds since 1970; null where no clock was read before.
    #[serde(default)]
    pub began_realtime_ns: Option<u64>,
    /// How it ended.
    pub outcome: Outcome,
    /// How long the machine was dark; null where that was not seen.
    pub blackout: Option<BlackoutJson>,
    /// The phases that took place.
    pub phases: Vec<PhaseJson>,
    /// How the clocks of the two kernels lie to each other; null where there is one kernel.
    pub crossing: Option<CrossingJson>,
    /// How long `lu canary` was dark, by what lu saw; null where there was none.
    #[serde(default)]
    pub canary: Option<CanaryJson>,
    /// The sessions, in the order of their creation; v3's flat space is one without a name.
    pub sessions: Vec<SessionJson>,
    /// What became of the files in them, lu's own left out.
    #[serde(default)]
    pub files: FilesJson,
    /// Sessions that were closed before the kexec and are left out, because there were too many.
    pub forgotten_sessions: u64,
    /// What the policy said, other than a plain allow.
    pub verdicts: Vec<()>,
    /// System calls that failed.
    pub errors: Vec<ErrorJson>,
    /// What the numbers rest on.
    pub events: EventsJson,
}

/// The blackout window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlackoutJson {
    /// Its length, in nanoseconds.
    pub ns: u64,
    /// The length may be off by this, in nanoseconds; null where that is not known yet.
    pub uncertainty_ns: Option<u64>,
    /// The clock that tells: `monotonic` within one kernel, `counter` (the CPU's, across a kexec) or
    /// `realtime` (where the counter did not run on).
    pub clock: Clock,
    /// What it begins with: `freeze` (v3) or `reboot` (the system call, sessions).
    pub from: BlackoutStart,
    /// What it ends with.
    pub to: Cow<'static, str>,
    /// Whether events of the update were lost, so that a later restore may be missing.
    pub lossy: bool,
}

/// The clocks on both sides of the kexec.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CrossingJson {
    /// The clock that tells.
    pub clock: Clock,
    /// From the old kernel's last reading of it to the new one's first, in nanoseconds.
    pub gap_ns: u64,
    /// The same by `CLOCK_REALTIME`, in nanoseconds.
    pub realtime_gap_ns: i64,
    /// The counter's frequency as the old kernel measured it, in Hz.
    pub old_hz: Option<f64>,
    /// What that may be off by, as a fraction.
    pub old_hz_error: f64,
    /// As the new one measured it.
    pub new_hz: Option<f64>,
    /// What a span across the kexec may be off by, in nanoseconds.
    pub uncertainty_ns: Option<u64>,
}

/// From the stop of the CPUs (the collector's last beat; in an emulated kexec the jump) to the restore of the
/// canary's file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CanaryJson {
    /// When the CPUs stopped: on the same axis as the phases' starts.
    pub start_ns: u64,
    /// Its length, in nanoseconds.
    pub ns: u64,
    /// The length may be off by this, in nanoseconds; null where that is not known yet.
    pub uncertainty_ns: Option<u64>,
    /// The clock that tells, as in the blackout.
    pub clock: Clock,
    /// The length by `CLOCK_REALTIME`, in nanoseconds; null where there was one kernel.
    pub realtime_ns: Option<i64>,
}

/// A phase.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PhaseJson {
    /// Its name.
    pub name: PhaseName,
    /// When it began: `CLOCK_MONOTONIC` of the first kernel in nanoseconds, carried on beyond the kexec.
    pub start_ns: Option<u64>,
    /// How long it took, in nanoseconds.
    pub ns: Option<u64>,
    /// Whether both were seen.
    pub known: bool,
}

/// A session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionJson {
    /// Its name; null in v3.
    pub name: Option<String>,
    /// What became of it; null in v3.
    pub outcome: Option<SessionOutcome>,
    /// Time to freeze all of it, in nanoseconds.
    pub freeze_ns: Option<u64>,
    /// Its files, by token.
    pub files: Vec<FileJson>,
}

/// A file; durations in nanoseconds, null where not seen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FileJson {
    /// Its token.
    pub token: u64,
    /// What sort of file.
    pub kind: Option<Cow<'static, str>>,
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
    pub outcome: FileOutcome,
}

/// How many files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesJson {
    /// Handed over to the new kernel.
    pub handed_over: u64,
    /// Of these, given out there.
    pub restored: u64,
}

impl FilesJson {
    fn of(update: &Update) -> Self {
        let mut files = Self::default();
        for (session, _, file) in update.files() {
            let handed_over = match file.outcome {
                FileOutcome::Frozen | FileOutcome::Restored | FileOutcome::Unclaimed => true,
                // Its freeze, or its restore?
                FileOutcome::Failed => file.restore_ns.is_some(),
                _ => false,
            };
            if !session.is_own() {
                files.handed_over += u64::from(handed_over);
                files.restored += u64::from(file.outcome == FileOutcome::Restored);
            }
        }
        files
    }
}

/// Failed system calls of one sort.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErrorJson {
    /// What was asked for.
    pub operation: Cow<'static, str>,
    /// The errno's name.
    pub errno: String,
    /// How often.
    pub count: u64,
}

/// Events.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventsJson {
    /// Taken in.
    pub seen: u64,
    /// Known to have been lost.
    pub lost: u64,
}

impl From<&Update> for Report {
    fn from(update: &Update) -> Self {
        Self {
            schema: SCHEMA.into(),
            update: update.number,
            interface: update.interface.map_or("unknown", Interface::name).into(),
            orchestrator: if update.emulated {
                "emulated"
            } else {
                "kernel"
            }
            .into(),
            outcome: update.outcome,
            kernels: update.kernels.clone(),
            boot_ids: update.boot_ids.iter().copied().map(uuid).collect(),
            began_monotonic_ns: update.began_monotonic_ns,
            began_realtime_ns: update.began_realtime_ns,
            blackout: update.blackout().map(|blackout| BlackoutJson {
                ns: blackout.ns,
                uncertainty_ns: blackout.uncertainty_ns,
                clock: blackout.clock,
                from: blackout.from,
                to: "last-restore".into(),
                lossy: update.events.lost > 0,
            }),
            phases: update.phases().iter().map(PhaseJson::from).collect(),
            crossing: update.crossing.as_ref().map(CrossingJson::from),
            canary: update.canary().map(CanaryJson::from),
            sessions: update.sessions.values().map(SessionJson::from).collect(),
            files: FilesJson::of(update),
            forgotten_sessions: update.forgotten_sessions,
            verdicts: Vec::new(),
            errors: update
                .errors
                .iter()
                .map(|((operation, errno), count)| ErrorJson {
                    operation: (*operation).into(),
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

/// A boot id as the kernel writes it.
fn uuid(id: [u8; 16]) -> String {
    let digits = format!("{:032x}", u128::from_be_bytes(id));
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32];
    parts.map(|part| &digits[part]).join("-")
}

impl From<&Crossing> for CrossingJson {
    fn from(crossing: &Crossing) -> Self {
        Self {
            clock: crossing.clock,
            gap_ns: crossing.gap_ns,
            realtime_gap_ns: crossing.realtime_gap_ns,
            old_hz: crossing.old_hz,
            old_hz_error: crossing.old_hz_error,
            new_hz: crossing.new_hz,
            uncertainty_ns: crossing.uncertainty_ns(),
        }
    }
}

impl From<Darkness> for CanaryJson {
    fn from(darkness: Darkness) -> Self {
        Self {
            start_ns: darkness.start_ns,
            ns: darkness.ns,
            uncertainty_ns: darkness.uncertainty_ns,
            clock: darkness.clock,
            realtime_ns: darkness.realtime_ns,
        }
    }
}

impl From<&Session> for SessionJson {
    fn from(session: &Session) -> Self {
        Self {
            name: session.name.clone(),
            outcome: session.name.as_ref().map(|_| session.outcome),
            freeze_ns: session.freeze_ns,
            files: session
                .files
                .iter()
                .map(|(token, file)| FileJson::new(*token, file))
                .collect(),
        }
    }
}

impl From<&Phase> for PhaseJson {
    fn from(phase: &Phase) -> Self {
        Self {
            name: phase.name,
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
            kind: file.kind.map(|kind| kind.name().into()),
            bytes: file.bytes,
            preserve_ns: file.preserve_ns,
            prepare_ns: file.prepare_ns,
            freeze_ns: file.freeze_ns,
            restore_ns: file.restore_ns,
            outcome: file.outcome,
        }
    }
}
