//! One attempt at a live update.

use std::collections::BTreeMap;

use lu_common::event::{FileKind, Record};
use lu_common::uapi::Interface;

/// How an update ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// FINISH in the new kernel.
    Finished,
    /// CANCEL.
    Cancelled,
    /// Given up: the freeze failed, the device was closed, or a kexec came without a freeze.
    Aborted,
    /// Not ended yet.
    InProgress,
}

impl Outcome {
    /// The name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Cancelled => "cancelled",
            Self::Aborted => "aborted",
            Self::InProgress => "in-progress",
        }
    }
}

/// What became of one file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FileOutcome {
    /// In the list, not frozen.
    #[default]
    Preserved,
    /// Handed over.
    Frozen,
    /// Given out in the new kernel.
    Restored,
    /// Handed over and never asked for: discarded at FINISH.
    Unclaimed,
    /// A callback or the restore failed.
    Failed,
    /// Taken off the list by its owner.
    Unpreserved,
    /// Taken off the list because the device was closed.
    Dropped,
    /// A kexec came without a freeze.
    Lost,
}

impl FileOutcome {
    /// The name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Preserved => "preserved",
            Self::Frozen => "frozen",
            Self::Restored => "restored",
            Self::Unclaimed => "unclaimed",
            Self::Failed => "failed",
            Self::Unpreserved => "unpreserved",
            Self::Dropped => "dropped",
            Self::Lost => "lost",
        }
    }
}

/// One file's way through an update; durations in nanoseconds, `None` where not seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileSpan {
    /// What sort of file it is.
    pub kind: Option<FileKind>,
    /// Its size, in bytes, as last seen.
    pub bytes: Option<u64>,
    /// Time in `luo_register_file`.
    pub preserve_ns: Option<u64>,
    /// Time in its prepare callback.
    pub prepare_ns: Option<u64>,
    /// Time in its freeze callback.
    pub freeze_ns: Option<u64>,
    /// Time in `luo_retrieve_file`.
    pub restore_ns: Option<u64>,
    /// What became of it.
    pub outcome: FileOutcome,
}

/// The parts of an update, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PhaseName {
    /// From the first preserve to the end of the last one.
    Preserve,
    /// The state machine's PREPARE.
    Prepare,
    /// The freeze within reboot(KEXEC).
    Freeze,
    /// From the end of the freeze to the jump.
    Shutdown,
    /// From the jump to the new kernel's orchestrator.
    Boot,
    /// From the first restore to the end of the last one.
    Restore,
    /// The state machine's FINISH.
    Finish,
}

impl PhaseName {
    /// Every phase, in order.
    pub const ALL: [Self; 7] = [
        Self::Preserve,
        Self::Prepare,
        Self::Freeze,
        Self::Shutdown,
        Self::Boot,
        Self::Restore,
        Self::Finish,
    ];

    /// The name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Preserve => "preserve",
            Self::Prepare => "prepare",
            Self::Freeze => "freeze",
            Self::Shutdown => "shutdown",
            Self::Boot => "boot",
            Self::Restore => "restore",
            Self::Finish => "finish",
        }
    }
}

/// A phase as far as it is known; times are `CLOCK_MONOTONIC`, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phase {
    /// Which one.
    pub name: PhaseName,
    /// When it began.
    pub start_ns: Option<u64>,
    /// How long it took.
    pub ns: Option<u64>,
}

impl Phase {
    /// Whether both its beginning and its length were seen.
    #[must_use]
    pub const fn known(&self) -> bool {
        self.start_ns.is_some() && self.ns.is_some()
    }

    fn between(name: PhaseName, start_ns: Option<u64>, end_ns: Option<u64>) -> Self {
        let ns = match (start_ns, end_ns) {
            (Some(start), Some(end)) => end.checked_sub(start),
            _ => None,
        };
        Self { name, start_ns, ns }
    }
}

/// How long the machine was dark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blackout {
    /// From the entry of the freeze, in nanoseconds.
    pub start_ns: u64,
    /// To the end of the last restore, as a length in nanoseconds.
    pub ns: u64,
}

/// How many events a number rests on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// Taken in.
    pub seen: u64,
    /// Known to have been lost.
    pub lost: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    start_ns: u64,
    end_ns: u64,
}

/// One attempt: it begins with the first preserve.
#[derive(Clone, Debug)]
pub struct Update {
    /// Counts the updates that were seen, from 1.
    pub number: u64,
    /// The interface that it went through.
    pub interface: Interface,
    /// Whether the orchestrator was an emulated one.
    pub emulated: bool,
    /// How it ended.
    pub outcome: Outcome,
    /// When its first event began (`CLOCK_MONOTONIC`, nanoseconds).
    pub began_ns: u64,
    /// When its last event ended.
    pub ended_ns: Option<u64>,
    /// Its files, by token.
    pub files: BTreeMap<u64, FileSpan>,
    /// Failed system calls: how often which operation failed with which errno.
    pub errors: BTreeMap<(&'static str, i32), u64>,
    /// What it rests on.
    pub events: Events,
    /// How often the freeze failed.
    pub failed_freezes: u64,
    pub(super) jumped_ns: Option<u64>,
    pub(super) booted_ns: Option<u64>,
    spans: BTreeMap<PhaseName, Span>,
}

impl Update {
    pub(super) fn new(number: u64, record: &Record) -> Self {
        Self {
            number,
            interface: record.interface(),
            emulated: record.is_emulated(),
            outcome: Outcome::InProgress,
            began_ns: record.header.t_ns,
            ended_ns: None,
            files: BTreeMap::new(),
            errors: BTreeMap::new(),
            events: Events::default(),
            failed_freezes: 0,
            jumped_ns: None,
            booted_ns: None,
            spans: BTreeMap::new(),
        }
    }

    pub(super) fn has_phase(&self, name: PhaseName) -> bool {
        self.spans.contains_key(&name)
    }

    /// Whether the new kernel is running.
    pub(super) fn is_beyond_kexec(&self) -> bool {
        self.jumped_ns.is_some()
            || self.booted_ns.is_some()
            || self.has_phase(PhaseName::Restore)
            || self.has_phase(PhaseName::Finish)
    }

    pub(super) fn set_phase(&mut self, name: PhaseName, record: &Record) {
        if let Some(end_ns) = record.end_ns() {
            let span = Span {
                start_ns: record.header.t_ns,
                end_ns,
            };
            self.spans.insert(name, span);
        }
    }

    pub(super) fn extend_phase(&mut self, name: PhaseName, record: &Record) {
        match (self.spans.get_mut(&name), record.end_ns()) {
            (Some(span), Some(end_ns)) => span.end_ns = span.end_ns.max(end_ns),
            _ => self.set_phase(name, record),
        }
    }

    /// The phases that took place, as far as they were seen. One that must have taken place and was
    /// not seen is there as unknown.
    #[must_use]
    pub fn phases(&self) -> Vec<Phase> {
        let beyond_kexec = self.is_beyond_kexec();
        let frozen = self.has_phase(PhaseName::Freeze) || beyond_kexec;
        PhaseName::ALL
            .into_iter()
            .filter_map(|name| {
                let took_place = match name {
                    PhaseName::Preserve | PhaseName::Restore | PhaseName::Finish => false,
                    PhaseName::Prepare | PhaseName::Freeze => {
                        frozen && self.outcome != Outcome::Aborted
                    }
                    PhaseName::Shutdown => frozen && beyond_kexec,
                    PhaseName::Boot => beyond_kexec && self.outcome != Outcome::Aborted,
                };
                let freeze_end = self.spans.get(&PhaseName::Freeze).map(|span| span.end_ns);
                let phase = match (name, self.spans.get(&name)) {
                    (PhaseName::Shutdown, _) => Phase::between(name, freeze_end, self.jumped_ns),
                    (PhaseName::Boot, _) => Phase::between(name, self.jumped_ns, self.booted_ns),
                    (_, Some(span)) => Phase::between(name, Some(span.start_ns), Some(span.end_ns)),
                    (_, None) => Phase::between(name, None, None),
                };
                (took_place || phase.known()).then_some(phase)
            })
            .collect()
    }

    /// The blackout: from the entry of the freeze to the end of the last restore. `None` until the
    /// update is finished or every file is restored, and where either end was not seen.
    #[must_use]
    pub fn blackout(&self) -> Option<Blackout> {
        let freeze = self.spans.get(&PhaseName::Freeze)?;
        let restore = self.spans.get(&PhaseName::Restore)?;
        let waiting = self
            .files
            .values()
            .any(|file| file.outcome == FileOutcome::Frozen);
        if waiting && self.outcome != Outcome::Finished {
            return None;
        }
        Some(Blackout {
            start_ns: freeze.start_ns,
            ns: restore.end_ns.checked_sub(freeze.start_ns)?,
        })
    }
}
