//! One attempt at a live update.

use std::collections::{BTreeMap, HashMap};

use lu_common::event::{FileKind, Record};
use lu_common::uapi::Interface;

use super::clock::{Clock, Crossing};
use super::names::named;

/// The session in which lu itself hands over what it recorded. It is listed as any other, but it neither
/// begins an update nor counts for its phases.
pub const RECORDER: &str = "lu-recorder";

/// How many sessions that ended before the kexec an update remembers.
const ENDED_SESSIONS: usize = 10_000;

/// The resolution of `CLOCK_MONOTONIC` in the kernel, in nanoseconds (`clock_getres(2)`, high
/// resolution timers).
const RESOLUTION_NS: u64 = 1;

named! {
    /// How an update ended.
    #[derive(Default)]
    pub enum Outcome {
        /// v3: FINISH in the new kernel. Sessions: every session that was handed over is finished.
        Finished = "finished",
        /// CANCEL.
        Cancelled = "cancelled",
        /// Given up: the freeze failed, the device was closed, or a kexec came without a freeze.
        Aborted = "aborted",
        /// Not ended yet.
        #[default]
        InProgress = "in-progress",
    }
}

named! {
    /// What became of one file.
    #[derive(Default)]
    pub enum FileOutcome {
        /// In the list, not frozen.
        #[default]
        Preserved = "preserved",
        /// Handed over.
        Frozen = "frozen",
        /// Given out in the new kernel.
        Restored = "restored",
        /// Handed over and never asked for: discarded at FINISH.
        Unclaimed = "unclaimed",
        /// A callback or the restore failed.
        Failed = "failed",
        /// Taken off the list by its owner.
        Unpreserved = "unpreserved",
        /// Taken off the list because the device, or its session, was closed.
        Dropped = "dropped",
        /// A kexec came without a freeze.
        Lost = "lost",
    }
}

/// One file's way through an update; durations in nanoseconds, `None` where not seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileSpan {
    /// What sort of file it is.
    pub kind: Option<FileKind>,
    /// Its size, in bytes, as last seen.
    pub bytes: Option<u64>,
    /// Time in `luo_register_file` (v3) or `luo_preserve_file` (sessions).
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

named! {
    /// What became of one session.
    #[derive(Default)]
    pub enum SessionOutcome {
        /// Created, not frozen.
        #[default]
        Open = "open",
        /// Closed before the kexec: everything in it was unpreserved.
        Closed = "closed",
        /// Handed over.
        Frozen = "frozen",
        /// Asked for in the new kernel.
        Retrieved = "retrieved",
        /// Finished, explicitly or by its last close.
        Finished = "finished",
        /// Closed in the new kernel while it could not finish: out of reach until the next kexec.
        Stranded = "stranded",
        /// A kexec came without a freeze.
        Lost = "lost",
    }
}

/// A session's way through an update.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Session {
    /// Its name; `None` is v3's flat space.
    pub name: Option<String>,
    /// Its files, by token.
    pub files: BTreeMap<u64, FileSpan>,
    /// Time to freeze all of it, in nanoseconds.
    pub freeze_ns: Option<u64>,
    /// What became of it.
    pub outcome: SessionOutcome,
}

impl Session {
    /// Whether it is lu's own, see [`RECORDER`].
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.name.as_deref() == Some(RECORDER)
    }

    /// Sets the outcome of each file that now has `from`.
    pub(super) fn turn(&mut self, from: FileOutcome, to: FileOutcome) {
        for file in self.files.values_mut() {
            if file.outcome == from {
                file.outcome = to;
            }
        }
    }
}

named! {
    /// The parts of an update, in their order.
    pub enum PhaseName {
        /// From the first preserve to the end of the last one.
        Preserve = "preserve",
        /// The state machine's PREPARE (v3).
        Prepare = "prepare",
        /// The freeze within reboot(KEXEC).
        Freeze = "freeze",
        /// From the end of the freeze to the jump; where the jump itself was not seen, to the stop of the
        /// CPU on which lu ran.
        Shutdown = "shutdown",
        /// From there to the new kernel's orchestrator; where no probe sees that, to its first process.
        Boot = "boot",
        /// From the first restore to the end of the last one.
        Restore = "restore",
        /// v3: the state machine's FINISH. Sessions: from the first session's FINISH to the end of the last.
        Finish = "finish",
    }
}

/// A phase as far as it is known. Times are `CLOCK_MONOTONIC` of the kernel in which the update began, in
/// nanoseconds, carried on beyond the kexec (see [`super::clock`]).
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

named! {
    /// What the blackout begins with.
    pub enum BlackoutStart {
        /// The entry of the freeze (v3: user space prepares, then calls reboot(KEXEC)).
        Freeze = "freeze",
        /// The entry of reboot(KEXEC) (sessions).
        Reboot = "reboot",
    }
}

/// How long the machine was dark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blackout {
    /// When it began, in nanoseconds (see [`Phase`]).
    pub start_ns: u64,
    /// To the end of the last restore, as a length in nanoseconds.
    pub ns: u64,
    /// What it begins with.
    pub from: BlackoutStart,
    /// The clock that tells.
    pub clock: Clock,
    /// The length may be off by this, in nanoseconds; `None` where that is not known yet.
    pub uncertainty_ns: Option<u64>,
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

/// A reboot(KEXEC) that has not come back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kexec {
    /// Whose it is.
    pub tid: u32,
    /// When it was entered.
    pub start_ns: u64,
    /// Whether the freeze within has failed.
    pub freeze_failed: bool,
}

/// One attempt: it begins with the first session (v3: the first preserve).
#[derive(Clone, Debug, Default)]
pub struct Update {
    /// Counts the updates that were seen, from 1; 0: it has not begun.
    pub number: u64,
    /// The interface that it went through.
    pub interface: Option<Interface>,
    /// Whether the orchestrator was an emulated one.
    pub emulated: bool,
    /// How it ended.
    pub outcome: Outcome,
    /// When its first event began (see [`Phase`]).
    pub began_ns: u64,
    /// When its first event began, `CLOCK_MONOTONIC` of the first of [`boot_ids`](Self::boot_ids) in
    /// nanoseconds: wherever a replay begins, this is the same.
    pub began_monotonic_ns: u64,
    /// When its first event began, in nanoseconds since 1970, by the last reading of the clocks.
    pub began_realtime_ns: Option<u64>,
    /// When its last event ended.
    pub ended_ns: Option<u64>,
    /// Its sessions, in the order of their creation. v3's flat space is one.
    pub sessions: BTreeMap<u64, Session>,
    /// How many sessions were closed before the kexec and are forgotten, because there were too many.
    pub forgotten_sessions: u64,
    /// Failed system calls: how often which operation failed with which errno.
    pub errors: BTreeMap<(&'static str, i32), u64>,
    /// What it rests on.
    pub events: Events,
    /// How often the freeze failed.
    pub failed_freezes: u64,
    /// The releases of the kernels that it went through, as far as they are known.
    pub kernels: Vec<String>,
    /// The boots that it went through, as far as they are known (`/proc/sys/kernel/random/boot_id`).
    pub boot_ids: Vec<[u8; 16]>,
    /// How the clocks of the two kernels lie to each other.
    pub crossing: Option<Crossing>,
    /// Whether the new kernel is running.
    pub(super) beyond_kexec: bool,
    /// The reboot(KEXEC) under way.
    pub(super) kexec: Option<Kexec>,
    /// Whether it was first seen in the new kernel, so that nobody knows what was handed over.
    pub(super) is_partial: bool,
    pub(super) jumped_ns: Option<u64>,
    pub(super) booted_ns: Option<u64>,
    /// When the canary's file was given out.
    pub(super) canary_restored_ns: Option<u64>,
    /// The sessions that can be named at the moment.
    current: HashMap<u64, u64>,
    next_session: u64,
    spans: BTreeMap<PhaseName, Span>,
}

/// The key of v3's flat space.
const FLAT: u64 = 0;

impl Update {
    /// One that is first seen in the new kernel.
    pub(super) fn beyond_kexec() -> Self {
        Self {
            beyond_kexec: true,
            is_partial: true,
            ..Self::default()
        }
    }

    /// Whether there is anything to tell of it.
    pub(super) const fn has_begun(&self) -> bool {
        self.number > 0
    }

    /// All files, with their session and token.
    pub fn files(&self) -> impl Iterator<Item = (&Session, u64, &FileSpan)> {
        self.sessions.values().flat_map(|session| {
            session
                .files
                .iter()
                .map(move |(token, file)| (session, *token, file))
        })
    }

    /// The session of an id; v3's flat space where there is none.
    pub(super) fn session(&mut self, id: Option<u64>) -> Option<&mut Session> {
        let key = match id {
            Some(id) => *self.current.get(&id)?,
            None => FLAT,
        };
        self.sessions.get_mut(&key)
    }

    /// Whether a session of this id can be named at the moment.
    pub(super) fn can_name(&self, id: u64) -> bool {
        self.current.contains_key(&id)
    }

    /// The same, and made where it is missing: it came before lu did.
    pub(super) fn session_or_new(
        &mut self,
        id: Option<u64>,
        name: impl FnOnce() -> Option<String>,
    ) -> &mut Session {
        let key = match id {
            Some(id) => *self.current.entry(id).or_insert_with(|| {
                self.next_session += 1;
                self.next_session
            }),
            None => FLAT,
        };
        self.sessions.entry(key).or_insert_with(|| Session {
            name: name(),
            ..Session::default()
        })
    }

    /// The session is closed before the kexec; another one may have its name from now on.
    pub(super) fn close_session(&mut self, id: u64) {
        let Some(key) = self.current.remove(&id) else {
            return;
        };
        if let Some(session) = self.sessions.get_mut(&key) {
            session.turn(FileOutcome::Preserved, FileOutcome::Dropped);
            session.outcome = SessionOutcome::Closed;
        }
        let ended = self.sessions.len() - self.current.len();
        if ended > ENDED_SESSIONS {
            let oldest = self
                .sessions
                .iter()
                .find(|(_, session)| session.outcome == SessionOutcome::Closed)
                .map(|(key, _)| *key);
            if let Some(key) = oldest {
                self.sessions.remove(&key);
                self.forgotten_sessions += 1;
            }
        }
    }

    /// Everything in the list is handed over.
    pub(super) fn freeze_all(&mut self) {
        for session in self.sessions.values_mut() {
            session.turn(FileOutcome::Preserved, FileOutcome::Frozen);
            if session.outcome == SessionOutcome::Open {
                session.outcome = SessionOutcome::Frozen;
            }
        }
    }

    /// The freeze failed, and what had been frozen is not any more.
    pub(super) fn unfreeze_all(&mut self) {
        for session in self.sessions.values_mut() {
            session.turn(FileOutcome::Frozen, FileOutcome::Preserved);
            if session.outcome == SessionOutcome::Frozen {
                session.outcome = SessionOutcome::Open;
            }
        }
    }

    /// A kexec came without a freeze.
    pub(super) fn lose_all(&mut self) {
        for session in self.sessions.values_mut() {
            session.turn(FileOutcome::Preserved, FileOutcome::Lost);
            if session.outcome == SessionOutcome::Open {
                session.outcome = SessionOutcome::Lost;
            }
        }
    }

    /// What the next attempt begins with: the files that are still in the list.
    pub(super) fn kept(&self) -> Self {
        let mut next = Self {
            current: self.current.clone(),
            next_session: self.next_session,
            ..Self::default()
        };
        for (key, session) in &self.sessions {
            let mut session = session.clone();
            session.files.retain(|_, file| {
                matches!(
                    file.outcome,
                    FileOutcome::Preserved | FileOutcome::Frozen | FileOutcome::Failed
                )
            });
            for file in session.files.values_mut() {
                file.outcome = FileOutcome::Preserved;
            }
            next.sessions.insert(*key, session);
        }
        next
    }

    /// Whether every session that was handed over has come to its end. Of an update that was first seen in the
    /// new kernel that is never known.
    pub(super) fn is_all_finished(&self) -> bool {
        if self.is_partial {
            return false;
        }
        let mut handed_over = self
            .sessions
            .values()
            .filter(|session| !session.is_own() && session.outcome != SessionOutcome::Closed)
            .peekable();
        handed_over.peek().is_some()
            && handed_over.all(|session| session.outcome == SessionOutcome::Finished)
    }

    pub(super) fn has_phase(&self, name: PhaseName) -> bool {
        self.spans.contains_key(&name)
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
        let frozen = self.has_phase(PhaseName::Freeze) || self.beyond_kexec;
        let v3 = self.interface == Some(Interface::V3);
        let freeze_end = self.spans.get(&PhaseName::Freeze).map(|span| span.end_ns);
        PhaseName::ALL
            .iter()
            .copied()
            .filter_map(|name| {
                let took_place = match name {
                    PhaseName::Preserve | PhaseName::Restore | PhaseName::Finish => false,
                    PhaseName::Prepare => v3 && frozen && self.outcome != Outcome::Aborted,
                    PhaseName::Freeze => frozen && self.outcome != Outcome::Aborted,
                    PhaseName::Shutdown => self.beyond_kexec,
                    PhaseName::Boot => self.beyond_kexec && self.outcome != Outcome::Aborted,
                };
                let phase = match (name, self.spans.get(&name)) {
                    (PhaseName::Shutdown, _) => Phase::between(name, freeze_end, self.jumped_ns),
                    (PhaseName::Boot, _) => Phase::between(name, self.jumped_ns, self.booted_ns),
                    (PhaseName::Restore | PhaseName::Finish, Some(span)) if self.is_unspanned() => {
                        Phase {
                            name,
                            start_ns: None,
                            ns: span.end_ns.checked_sub(span.start_ns),
                        }
                    }
                    (_, Some(span)) => Phase::between(name, Some(span.start_ns), Some(span.end_ns)),
                    (_, None) => Phase::between(name, None, None),
                };
                (took_place || phase.known()).then_some(phase)
            })
            .collect()
    }

    /// The clock that tells of a span over the kexec, and what that may be off by, in nanoseconds.
    pub(super) fn clock(&self) -> Option<(Clock, Option<u64>)> {
        match (&self.crossing, self.emulated) {
            (Some(crossing), _) => Some((crossing.clock, crossing.uncertainty_ns())),
            (None, true) => Some((Clock::Monotonic, Some(2 * RESOLUTION_NS))),
            // The kernel was replaced, and nothing tells how its clock lies to the old one's.
            (None, false) => None,
        }
    }

    /// Whether the times in the new kernel cannot be held against those in the old one.
    fn is_unspanned(&self) -> bool {
        self.beyond_kexec && !self.emulated && self.crossing.is_none() && !self.is_partial
    }

    /// The blackout, to the end of the last restore. `None` until the update is finished or every file is
    /// restored, and where either end was not seen or no clock spans both.
    #[must_use]
    pub fn blackout(&self) -> Option<Blackout> {
        let (from, start_ns) = match self.interface? {
            Interface::V3 => (
                BlackoutStart::Freeze,
                self.spans.get(&PhaseName::Freeze)?.start_ns,
            ),
            Interface::Sessions => (BlackoutStart::Reboot, self.kexec?.start_ns),
        };
        let restore = self.spans.get(&PhaseName::Restore)?;
        let waiting = self.files().any(|(session, _, file)| {
            // The freeze of a file that is still in the list was not seen.
            matches!(file.outcome, FileOutcome::Frozen | FileOutcome::Preserved)
                && !session.is_own()
        });
        if waiting && self.outcome != Outcome::Finished {
            return None;
        }
        let (clock, uncertainty_ns) = self.clock()?;
        Some(Blackout {
            start_ns,
            ns: restore.end_ns.checked_sub(start_ns)?,
            from,
            clock,
            uncertainty_ns,
        })
    }
}
