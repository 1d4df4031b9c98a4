//! From events to updates: phases, files, errors, and the blackout window.
//!
//! Pure: no clock is asked, no file is opened, and the same events give the same updates, whether they
//! come from hooks, from a journal or from a test.

mod update;

use std::collections::{BTreeMap, VecDeque};

use lu_common::event::{Kind, Record};
use lu_common::uapi::{Interface, v3};

pub use update::{Blackout, Events, FileOutcome, FileSpan, Outcome, Phase, PhaseName, Update};

/// How many past updates are remembered.
const REMEMBERED: usize = 64;

/// What has been seen so far.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    past: VecDeque<Update>,
    current: Option<Update>,
    /// Files that outlive an attempt: a cancelled update keeps them.
    outgoing: BTreeMap<u64, FileSpan>,
    /// Errors outside any update, counted into the next one.
    early_errors: BTreeMap<(&'static str, i32), u64>,
    /// Events lost outside any update.
    early_lost: u64,
    next_number: u64,
    seen: u64,
    lost: u64,
}

impl Timeline {
    /// Nothing seen yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// All updates, oldest first, the one under way last.
    #[must_use]
    pub fn updates(&self) -> impl DoubleEndedIterator<Item = &Update> {
        self.past.iter().chain(&self.current)
    }

    /// The newest update.
    #[must_use]
    pub fn latest(&self) -> Option<&Update> {
        self.updates().next_back()
    }

    /// How many events were seen in all, and how many were lost.
    #[must_use]
    pub const fn events(&self) -> Events {
        Events {
            seen: self.seen,
            lost: self.lost,
        }
    }

    /// Takes in one event. Events come in the order of the ring buffer.
    pub fn push(&mut self, record: &Record) {
        let Some(kind) = record.kind() else { return };
        if let Some(lost) = record.lost() {
            self.lost += lost;
            // Events of a finished update may be among them: the newest one is marked, at least.
            if self.current.is_none() {
                // They may be the last one's, or the next one's first: both are marked.
                self.early_lost += lost;
            }
            if let Some(update) = self.current.as_mut().or(self.past.back_mut()) {
                update.events.lost += lost;
            }
            return;
        }
        self.seen += 1;
        if self.begins(kind, record) {
            self.begin(record);
        }
        self.count_error(kind, record);
        match kind {
            Kind::Release => self.release(record),
            Kind::Preserve => self.preserve(record),
            Kind::Unpreserve => self.unpreserve(record),
            Kind::Prepare if record.ret() == Some(0) => self.phase(PhaseName::Prepare, record),
            Kind::FilePrepare | Kind::FileFreeze => self.callback(kind, record),
            Kind::Freeze => self.freeze(record),
            Kind::Reboot => self.reboot(record),
            Kind::Jump => self.jump(record),
            Kind::Boot => self.boot(record),
            Kind::Restore => self.restore(record),
            Kind::Cancel if record.ret() == Some(0) => self.end(Outcome::Cancelled, record),
            Kind::Finish if record.ret() == Some(0) => self.finish(record),
            Kind::Open | Kind::Ioctl | Kind::Prepare | Kind::Cancel | Kind::Finish | Kind::Lost => {
            }
        }
        // An update that this very event ended has it too.
        if let Some(update) = self.current.as_mut().or_else(|| {
            self.past
                .back_mut()
                .filter(|update| update.ended_ns == Some(end_of(record)))
        }) {
            update.events.seen += 1;
        }
    }

    /// Whether an event belongs to an update, so that one has to be there.
    fn begins(&self, kind: Kind, record: &Record) -> bool {
        self.current.is_none()
            && match kind {
                Kind::Preserve
                | Kind::Prepare
                | Kind::FilePrepare
                | Kind::FileFreeze
                | Kind::Freeze
                | Kind::Jump => true,
                // A restore or a finish that was refused is no sign of an update before it.
                Kind::Restore | Kind::Finish | Kind::Cancel => record.ret() == Some(0),
                // A plain kexec preserves nothing: no update.
                Kind::Reboot => !self.outgoing.is_empty(),
                Kind::Open
                | Kind::Release
                | Kind::Ioctl
                | Kind::Unpreserve
                | Kind::Boot
                | Kind::Lost => false,
            }
    }

    fn begin(&mut self, record: &Record) {
        self.next_number += 1;
        let mut update = Update::new(self.next_number, record);
        update.files.clone_from(&self.outgoing);
        update.errors = std::mem::take(&mut self.early_errors);
        update.events.lost = std::mem::take(&mut self.early_lost);
        self.current = Some(update);
    }

    /// Counts a system call that failed, once, by what the caller asked for.
    fn count_error(&mut self, kind: Kind, record: &Record) {
        let Some(errno) = record.errno() else { return };
        let operation = match kind {
            Kind::Open => "open",
            Kind::Reboot => "reboot",
            Kind::Ioctl => operation(record),
            // The functions within are told by the call that they are part of.
            _ => return,
        };
        let errors = match &mut self.current {
            Some(update) => &mut update.errors,
            None => &mut self.early_errors,
        };
        *errors.entry((operation, errno)).or_default() += 1;
    }

    fn preserve(&mut self, record: &Record) {
        if record.ret() != Some(0) {
            return;
        }
        let Some(token) = record.token() else { return };
        let span = FileSpan {
            kind: record.file_kind(),
            bytes: record.bytes(),
            preserve_ns: record.dur_ns(),
            ..FileSpan::default()
        };
        self.outgoing.insert(token, span);
        // Beyond the kexec it is the next update's file: the two token spaces do not meet.
        if let Some(update) = &mut self.current
            && !update.is_beyond_kexec()
        {
            update.extend_phase(PhaseName::Preserve, record);
            update.files.insert(token, span);
        }
    }

    fn unpreserve(&mut self, record: &Record) {
        if record.ret() != Some(0) {
            return;
        }
        let Some(token) = record.token() else { return };
        self.outgoing.remove(&token);
        if self.current.as_ref().is_some_and(Update::is_beyond_kexec) {
            return;
        }
        if let Some(file) = self.file(token) {
            file.outcome = FileOutcome::Unpreserved;
        }
    }

    /// The last close of the device drops the outgoing set. What is frozen has already been handed over.
    fn release(&mut self, record: &Record) {
        let had_files = !self.outgoing.is_empty();
        self.outgoing.clear();
        let Some(update) = &mut self.current else {
            return;
        };
        if update.has_phase(PhaseName::Freeze) {
            return;
        }
        for file in update.files.values_mut() {
            if file.outcome == FileOutcome::Preserved {
                file.outcome = FileOutcome::Dropped;
            }
        }
        // Before PREPARE that was the whole update; after it the state machine goes on without files.
        if had_files && !update.has_phase(PhaseName::Prepare) {
            self.end(Outcome::Aborted, record);
        }
    }

    fn callback(&mut self, kind: Kind, record: &Record) {
        let Some(token) = record.token() else { return };
        let (dur, failed) = (record.dur_ns(), record.ret() != Some(0));
        let bytes = record.bytes();
        if let Some(file) = self.file(token) {
            if kind == Kind::FileFreeze {
                file.freeze_ns = dur;
            } else {
                file.prepare_ns = dur;
            }
            file.bytes = bytes.or(file.bytes);
            if failed {
                file.outcome = FileOutcome::Failed;
            } else if file.outcome == FileOutcome::Failed {
                // A second try that succeeded.
                file.outcome = FileOutcome::Preserved;
            }
        }
    }

    fn freeze(&mut self, record: &Record) {
        let Some(update) = &mut self.current else {
            return;
        };
        if record.ret() == Some(0) {
            update.set_phase(PhaseName::Freeze, record);
            for file in update.files.values_mut() {
                if file.outcome == FileOutcome::Preserved {
                    file.outcome = FileOutcome::Frozen;
                }
            }
        } else {
            // The caller's reboot(2) fails too, and that ends the attempt.
            update.failed_freezes += 1;
        }
    }

    fn reboot(&mut self, record: &Record) {
        if record.errno().is_some() {
            self.end(Outcome::Aborted, record);
        }
    }

    fn jump(&mut self, record: &Record) {
        let Some(update) = &mut self.current else {
            return;
        };
        update.jumped_ns = Some(record.header.t_ns);
        // Nothing was frozen: the files are gone with their kernel. Where a freeze may only not have been
        // seen, its outcome is unknown, and what comes will tell.
        let may_be_frozen = update.has_phase(PhaseName::Prepare)
            || update.events.lost > 0
            || update.files.values().any(|file| file.freeze_ns.is_some());
        if !update.has_phase(PhaseName::Freeze) && !may_be_frozen {
            for file in update.files.values_mut() {
                if file.outcome == FileOutcome::Preserved {
                    file.outcome = FileOutcome::Lost;
                }
            }
            self.end(Outcome::Aborted, record);
        }
        self.outgoing.clear();
    }

    fn boot(&mut self, record: &Record) {
        self.outgoing.clear();
        if let Some(update) = &mut self.current {
            update.booted_ns = record.end_ns();
        }
    }

    fn restore(&mut self, record: &Record) {
        let (Some(token), Some(ret)) = (record.token(), record.ret()) else {
            return;
        };
        let Some(update) = &mut self.current else {
            return;
        };
        // An attempt before the kexec, or a second one, says nothing about the file.
        if ret == -lu_common::uapi::errno::EBUSY
            || ret == -lu_common::uapi::errno::ENOENT
            || update
                .files
                .get(&token)
                .is_some_and(|file| file.outcome == FileOutcome::Restored)
        {
            return;
        }
        let file = update.files.entry(token).or_default();
        file.restore_ns = record.dur_ns();
        if ret == 0 {
            file.kind = record.file_kind().or(file.kind);
            file.bytes = record.bytes().or(file.bytes);
            file.outcome = FileOutcome::Restored;
            update.extend_phase(PhaseName::Restore, record);
        } else {
            file.outcome = FileOutcome::Failed;
        }
    }

    fn finish(&mut self, record: &Record) {
        if let Some(update) = &mut self.current {
            for file in update.files.values_mut() {
                if file.outcome == FileOutcome::Frozen {
                    file.outcome = FileOutcome::Unclaimed;
                }
            }
        }
        self.phase(PhaseName::Finish, record);
        self.end(Outcome::Finished, record);
    }

    fn phase(&mut self, name: PhaseName, record: &Record) {
        if let Some(update) = &mut self.current {
            update.set_phase(name, record);
        }
    }

    fn end(&mut self, outcome: Outcome, record: &Record) {
        let Some(mut update) = self.current.take() else {
            return;
        };
        update.outcome = outcome;
        update.ended_ns = Some(end_of(record));
        if self.past.len() == REMEMBERED {
            self.past.pop_front();
        }
        self.past.push_back(update);
    }

    fn file(&mut self, token: u64) -> Option<&mut FileSpan> {
        self.current.as_mut()?.files.get_mut(&token)
    }
}

/// When a record's function returned, else when it was entered.
fn end_of(record: &Record) -> u64 {
    record.end_ns().unwrap_or(record.header.t_ns)
}

/// What an ioctl asked for, in the words of reports.
fn operation(record: &Record) -> &'static str {
    let Some(cmd) = record.cmd() else {
        return "ioctl";
    };
    match record.interface() {
        Interface::V3 => match (cmd, record.event().and_then(v3::Event::from_raw)) {
            (v3::FD_PRESERVE, _) => "preserve",
            (v3::FD_UNPRESERVE, _) => "unpreserve",
            (v3::FD_RESTORE, _) => "restore",
            (v3::GET_STATE, _) => "get-state",
            (v3::SET_EVENT, Some(v3::Event::Prepare)) => "prepare",
            (v3::SET_EVENT, Some(v3::Event::Cancel)) => "cancel",
            (v3::SET_EVENT, Some(v3::Event::Finish)) => "finish",
            (v3::SET_EVENT, _) => "set-event",
            (v3::GET_FD_STATE, _) => "get-fd-state",
            (v3::SET_FD_EVENT, _) => "set-fd-event",
            _ => "ioctl",
        },
        Interface::Sessions => "ioctl",
    }
}
