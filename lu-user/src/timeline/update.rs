//! One attempt at a live update.

use std::collections::{BTreeMap, HashMap};

use lu_common::event::{FileKind, Record};
use lu_common::uapi::Interface;

use super::clock::Crossing;
use super::handover::Handover;
use super::names::named;
use super::owner::{OwnerId, Owners};
use super::phases::{PartName, PhaseName};
use super::trouble::{Caller, Troubles};
use super::verdicts::Verdicts;

/// The session in which lu itself hands over what it recorded. It is listed as any other, but it neither
/// begins an update nor counts for its phases.
pub const RECORDER: &str = "lu-recorder";

/// How many sessions that ended before the kexec an update remembers.
const ENDED_SESSIONS: usize = 10_000;

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
        /// Over, but a session is left behind that nobody can reach until the next kexec.
        Incomplete = "incomplete",
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
        /// Handed over, and its session is finished; but lu did not watch all the time, so nobody knows whether
        /// it was asked for.
        Unseen = "unseen",
    }
}

/// From when to when something went on, in nanoseconds (see [`super::Stretch`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its beginning.
    pub start_ns: u64,
    /// Its end.
    pub end_ns: u64,
}

impl Span {
    /// The function that a record is about, if it returned.
    pub(super) fn of(record: &Record) -> Option<Self> {
        record.end_ns().map(|end_ns| Self {
            start_ns: record.header.t_ns,
            end_ns,
        })
    }

    /// How long it took, in nanoseconds.
    #[must_use]
    pub const fn ns(&self) -> u64 {
        self.end_ns.saturating_sub(self.start_ns)
    }
}

/// One file's way through an update; a step is `None` where it was not seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileSpan {
    /// What sort of file it is.
    pub kind: Option<FileKind>,
    /// Its size, in bytes, as last seen.
    pub bytes: Option<u64>,
    /// Who preserved it, see [`Update::owners`].
    pub owner: Option<OwnerId>,
    /// In `luo_register_file` (v3) or `luo_preserve_file` (sessions).
    pub preserve: Option<Span>,
    /// In its prepare callback.
    pub prepare: Option<Span>,
    /// In its freeze callback.
    pub freeze: Option<Span>,
    /// In `luo_retrieve_file`.
    pub restore: Option<Span>,
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

/// How much of a session lu knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sight {
    /// It was there before lu saw it: what lu has not seen may be all the same.
    #[default]
    Part,
    /// All, from its creation on.
    Whole,
    /// Something was lost since, or lu did not watch for a while: what was seen may not be so any more.
    Doubtful,
}

/// A session's way through an update.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Session {
    /// Its name; `None` is v3's flat space.
    pub name: Option<String>,
    /// Its files, by token.
    pub files: BTreeMap<u64, FileSpan>,
    /// When all of it was frozen.
    pub freeze: Option<Span>,
    /// When it was asked for in the new kernel.
    pub retrieve: Option<Span>,
    /// Its FINISH, or the last close that finished it.
    pub finish: Option<Span>,
    /// What became of it.
    pub outcome: SessionOutcome,
    /// Who closed it before the kexec: explicitly, or by ending.
    pub closed_by: Option<Caller>,
    /// When it was closed without being finished, in nanoseconds.
    pub closed_ns: Option<u64>,
    /// How much of it lu knows.
    pub sight: Sight,
    /// In which of lu's watches it was asked for.
    pub(super) retrieved_in: Option<u64>,
}

impl Session {
    /// Whether it is lu's own, see [`RECORDER`].
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.name.as_deref() == Some(RECORDER)
    }

    /// What was handed over and is still there goes with FINISH. Only where lu has `watched` since it could be
    /// asked for is it known that nobody did.
    pub(super) fn discard(&mut self, watched: bool) {
        let outcome = if watched {
            FileOutcome::Unclaimed
        } else {
            FileOutcome::Unseen
        };
        self.turn(FileOutcome::Frozen, outcome);
        // Handed over all the same, though the freeze was not seen.
        self.turn(FileOutcome::Preserved, outcome);
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

/// How many events a number rests on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// Taken in.
    pub seen: u64,
    /// Known to have been lost.
    pub lost: u64,
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
    /// When its first event began (see [`super::Stretch`]).
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
    /// Who preserved its files.
    pub owners: Owners,
    /// How many sessions were closed before the kexec and are forgotten, because there were too many.
    pub forgotten_sessions: u64,
    /// Failed system calls: how often which operation failed with which errno.
    pub errors: BTreeMap<(&'static str, i32), u64>,
    /// What it rests on.
    pub events: Events,
    /// What went wrong.
    pub troubles: Troubles,
    /// What the policy said.
    pub verdicts: Verdicts,
    /// The releases of the kernels that it went through, as far as they are known.
    pub kernels: Vec<String>,
    /// The boots that it went through, as far as they are known (`/proc/sys/kernel/random/boot_id`).
    pub boot_ids: Vec<[u8; 16]>,
    /// How the clocks of the two kernels lie to each other.
    pub crossing: Option<Crossing>,
    /// What the new kernel says of the kexec; `None` where it says nothing, or is not there yet.
    pub handover: Option<Handover>,
    /// Whether the new kernel is running.
    /// When lu, started anew in the new kernel, watched at the latest. `None`: from the jump on.
    pub watched_ns: Option<u64>,
    /// Whether the new kernel is running, with what was handed over.
    pub(super) beyond_kexec: bool,
    /// The reboot(KEXEC) under way.
    pub(super) kexec: Option<Kexec>,
    /// Whether it was first seen in the new kernel, so that nobody knows what was handed over.
    pub(super) is_partial: bool,
    /// In which of lu's watches the jump was seen, where the new kernel is watched from its first moment.
    pub(super) jumped_in: Option<u64>,
    /// When the freeze of a file, or of a session as a whole, began that was seen last.
    pub(super) last_freeze_ns: Option<u64>,
    /// The entry of the reboot(KEXEC) in which the freeze succeeded.
    pub(super) frozen_by_ns: Option<u64>,
    /// When the parts of the shutdown began.
    pub(super) steps: BTreeMap<PartName, u64>,
    /// The jump, or the old kernel's last sign.
    pub(super) jumped_ns: Option<u64>,
    /// When the new kernel's `CLOCK_MONOTONIC` began, where it has one of its own.
    pub(super) new_clock_ns: Option<u64>,
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

    /// The session that has this id at the moment.
    #[must_use]
    pub fn current(&self, id: u64) -> Option<&Session> {
        self.sessions.get(self.current.get(&id)?)
    }

    /// The sessions that there are at the moment.
    pub fn all_current(&self) -> impl Iterator<Item = &Session> {
        let keys = self.current.values();
        keys.filter_map(|key| self.sessions.get(key))
    }

    /// Nobody knows whether what was seen of its sessions is still so.
    pub(super) fn doubt(&mut self) {
        for session in self.sessions.values_mut() {
            session.sight = Sight::Doubtful;
        }
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
    pub(super) fn close_session(&mut self, id: u64, record: &Record) {
        let Some(key) = self.current.remove(&id) else {
            return;
        };
        if let Some(session) = self.sessions.get_mut(&key) {
            session.turn(FileOutcome::Preserved, FileOutcome::Dropped);
            // One whose freeze failed was still in the list.
            session.turn(FileOutcome::Failed, FileOutcome::Dropped);
            session.outcome = SessionOutcome::Closed;
            session.closed_by = Caller::of(record);
            session.closed_ns = Some(record.header.t_ns);
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
            owners: self.owners.clone(),
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

    /// Whether a real kernel went before the end of its freeze was recorded, though lu watched it go.
    #[must_use]
    pub fn is_cut_off(&self) -> bool {
        self.beyond_kexec
            && !self.emulated
            && self.kexec.is_some()
            && !self.has_phase(PhaseName::Freeze)
    }

    /// How it ended, if every session that was handed over has come to its end. Of an update that was first
    /// seen in the new kernel that is never known.
    pub(super) fn end_of_sessions(&self) -> Option<Outcome> {
        if self.is_partial {
            return None;
        }
        let mut outcome = None;
        for session in self.sessions.values() {
            match session.outcome {
                _ if session.is_own() => {}
                SessionOutcome::Closed => {}
                SessionOutcome::Finished => outcome = outcome.or(Some(Outcome::Finished)),
                SessionOutcome::Stranded => outcome = Some(Outcome::Incomplete),
                _ => return None,
            }
        }
        outcome
    }

    /// Whether the new kernel runs, with what was handed over.
    #[must_use]
    pub const fn is_beyond_kexec(&self) -> bool {
        self.beyond_kexec
    }

    /// The phase that it is in, as far as was seen; `None` once it has ended. What only follows from the files
    /// (that all are restored) is left to whoever looks at them.
    #[must_use]
    pub fn stage(&self) -> Option<PhaseName> {
        if self.ended_ns.is_some() || !self.has_begun() {
            return None;
        }
        Some(if self.beyond_kexec {
            if self.has_phase(PhaseName::Finish) {
                PhaseName::Finish
            } else if self.has_phase(PhaseName::Restore) {
                PhaseName::Restore
            } else if self.booted_ns.is_some() {
                PhaseName::Userspace
            } else {
                PhaseName::Boot
            }
        } else if let Some(kexec) = self.kexec {
            if self.has_phase(PhaseName::Freeze) && !kexec.freeze_failed {
                PhaseName::Shutdown
            } else if self.last_freeze_ns >= Some(kexec.start_ns) {
                PhaseName::Freeze
            } else {
                PhaseName::Reboot
            }
        } else if self.has_phase(PhaseName::Prepare) {
            PhaseName::WaitReboot
        } else {
            PhaseName::Preserve
        })
    }

    /// When the new kernel's orchestrator started; where no probe sees that, its first process.
    #[must_use]
    pub const fn booted_ns(&self) -> Option<u64> {
        self.booted_ns
    }

    /// What was seen of a phase; where phases lie over each other (see [`PhaseName`]) more than its part of the
    /// whole. `None` of those that are made of the time between others.
    #[must_use]
    pub fn phase(&self, name: PhaseName) -> Option<Span> {
        self.spans.get(&name).copied()
    }

    pub(super) fn has_phase(&self, name: PhaseName) -> bool {
        self.spans.contains_key(&name)
    }

    pub(super) fn set_phase(&mut self, name: PhaseName, record: &Record) {
        if let Some(span) = Span::of(record) {
            self.spans.insert(name, span);
        }
    }

    pub(super) fn extend_phase(&mut self, name: PhaseName, record: &Record) {
        match (self.spans.get_mut(&name), Span::of(record)) {
            (Some(all), Some(span)) => {
                all.start_ns = all.start_ns.min(span.start_ns);
                all.end_ns = all.end_ns.max(span.end_ns);
            }
            _ => self.set_phase(name, record),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_files_fit_into_memory() {
        // A node of the tree has eleven of them, and at the worst half are used.
        assert_eq!(size_of::<FileSpan>(), 120);
    }
}
