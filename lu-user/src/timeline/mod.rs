//! From events to updates: phases, sessions, files, errors, and the blackout window.
//!
//! Pure: no clock is asked, no file is opened, and the same events give the same updates, whether they
//! come from hooks, from a journal or from a test.

mod canary;
pub mod clock;
mod handover;
mod names;
mod owner;
mod phases;
mod trouble;
mod update;
mod verdicts;

use std::collections::VecDeque;

use lu_common::event::{Kind, Record};
use lu_common::policy::Operation;
use lu_common::uapi::{Interface, errno, sessions, v3};

pub use canary::{CANARY, Darkness};
pub use handover::Handover;
pub(crate) use names::named;
pub use names::{Names, shown};
pub use owner::{Owner, OwnerId, Owners};
pub use phases::{Blackout, BlackoutStart, Part, PartName, Phase, PhaseName, Stretch};
pub use trouble::{Caller, Failed, Failure, FileStep, Refusal, Refused, Troubles};
pub use update::{
    Events, FileOutcome, FileSpan, Outcome, RECORDER, Session, SessionOutcome, Sight, Span, Update,
};

pub use verdicts::{Enforcer, Said, Times, Verdicts};

use clock::{Axis, Told};
use update::Kexec;

/// How many past updates are remembered.
const REMEMBERED: usize = 64;

/// What has been seen so far.
///
/// Two updates can be under way: the one that came through the last kexec, whose files are being restored,
/// and the one that is being made ready for the next.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    past: VecDeque<Update>,
    incoming: Option<Update>,
    outgoing: Update,
    names: Names,
    axis: Axis,
    kernel: Option<String>,
    /// What the kernel that runs says of the one before.
    handover: Option<Handover>,
    /// Who has the device open.
    holder: Option<Caller>,
    /// Counts lu's watches: each begins with the name of the kernel.
    watch: u64,
    /// When this one began, by its own clock, until the axis knows that one.
    watch_began_ns: Option<u64>,
    plain_kexecs: u64,
    last_number: u64,
    ended: u64,
    seen: u64,
    lost: u64,
}

/// Which of the two updates a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Incoming,
    Outgoing,
}

impl Timeline {
    /// Nothing seen yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Nothing seen yet, and the updates up to `number` are over: the next one is counted on from there.
    #[must_use]
    pub fn after(number: u64) -> Self {
        Self {
            last_number: number,
            ..Self::default()
        }
    }

    /// The number of the newest update that has begun.
    #[must_use]
    pub const fn last_number(&self) -> u64 {
        self.last_number
    }

    /// The next update gets a number above this one too.
    pub fn count_from(&mut self, number: u64) {
        self.last_number = self.last_number.max(number);
    }

    /// Whether no update is under way, nothing has been lost since the last one, and nothing is preserved but
    /// lu's own: what comes can be told without what was.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.incoming.is_none()
            && !self.outgoing.has_begun()
            && self.outgoing.events.lost == 0
            && self.is_empty()
    }

    /// How many updates have ended.
    #[must_use]
    pub const fn ended(&self) -> u64 {
        self.ended
    }

    /// The updates that have ended since there were `before` of them, as far as they are remembered, in the
    /// order of their ends.
    #[must_use]
    pub fn ended_since(&self, before: u64) -> impl ExactSizeIterator<Item = &Update> {
        let new = usize::try_from(self.ended.saturating_sub(before)).unwrap_or(usize::MAX);
        self.past.iter().skip(self.past.len().saturating_sub(new))
    }

    /// The update that came through the last kexec and has not ended.
    #[must_use]
    pub const fn incoming(&self) -> Option<&Update> {
        self.incoming.as_ref()
    }

    /// What is being made ready for the next kexec: an update, once it has begun.
    #[must_use]
    pub const fn outgoing(&self) -> &Update {
        &self.outgoing
    }

    /// All updates, oldest first, those under way last.
    #[must_use]
    pub fn updates(&self) -> impl DoubleEndedIterator<Item = &Update> {
        self.past
            .iter()
            .chain(&self.incoming)
            .chain(self.outgoing.has_begun().then_some(&self.outgoing))
    }

    /// The update under way: the one that is coming in, else the one that is being made ready; where there
    /// is none, the last one that ended.
    #[must_use]
    pub fn latest(&self) -> Option<&Update> {
        self.incoming
            .as_ref()
            .or_else(|| self.updates().next_back())
    }

    /// The newest update that has come through a kexec or to an end; where there is none, the one that is
    /// being made ready.
    #[must_use]
    pub fn latest_told(&self) -> Option<&Update> {
        self.incoming
            .as_ref()
            .or_else(|| self.past.back())
            .or_else(|| self.updates().next_back())
    }

    /// The names that were seen.
    #[must_use]
    pub const fn names(&self) -> &Names {
        &self.names
    }

    /// Who has opened the device and not closed it, as far as that was seen.
    #[must_use]
    pub const fn holder(&self) -> Option<&Caller> {
        self.holder.as_ref()
    }

    /// A time of the running kernel's `CLOCK_MONOTONIC`, in nanoseconds, on the axis of the updates' times (see
    /// [`Stretch`]).
    #[must_use]
    pub const fn at(&self, t_ns: u64) -> u64 {
        self.axis.at(t_ns)
    }

    /// How many events were seen in all, and how many were lost.
    #[must_use]
    pub const fn events(&self) -> Events {
        Events {
            seen: self.seen,
            lost: self.lost,
        }
    }

    /// How many kexecs came when nothing was preserved. They are no updates.
    #[must_use]
    pub const fn plain_kexecs(&self) -> u64 {
        self.plain_kexecs
    }

    /// Takes in one event. Events come in the order of the ring buffer.
    pub fn push(&mut self, record: &Record) {
        let Some(kind) = record.kind() else { return };
        if self.is_about_lu(kind, record) {
            return;
        }
        self.seen += 1;
        self.names.push(record);
        let mut shifted = *record;
        shifted.header.t_ns = self.axis.at(record.header.t_ns);
        let record = &shifted;
        self.begin_if_due(kind, record);
        self.count_error(kind, record);
        self.hold(kind, record);
        self.judge(kind, record);
        let side = self.side(kind, record);
        let ended_before = self.ended;
        match side {
            Side::Outgoing => self.outgoing_event(kind, record),
            Side::Incoming => self.incoming_event(kind, record),
        }
        // An update that this very event ended has it too.
        let ended = self.ended > ended_before;
        let past = self
            .past
            .back_mut()
            .filter(|update| ended && update.ended_ns == Some(end_of(record)));
        if let Some(update) = past {
            update.events.seen += 1;
        } else if let Some(update) = self.of(side) {
            update.events.seen += 1;
        }
    }

    /// Takes in what no orchestrator did; whether it was that.
    fn is_about_lu(&mut self, kind: Kind, record: &Record) -> bool {
        match kind {
            Kind::Lost => self.lose(record.lost().unwrap_or(0)),
            Kind::Name | Kind::Rule => self.names.push(record),
            Kind::Policy => {}
            Kind::Untold => {
                let untold = record.untold().unwrap_or_default();
                let update = self.incoming.as_mut().unwrap_or(&mut self.outgoing);
                update.verdicts.lose(untold);
            }
            Kind::Kernel => {
                self.kernel = record.kernel_release().map(|release| shown(&release));
                self.handover = None;
                // Nobody knows what happened since lu last watched.
                self.holder = None;
                self.watch += 1;
                self.outgoing.doubt();
                self.watch_began_ns = Some(record.header.t_ns);
            }
            Kind::Handover => self.handover = record.handover().map(Handover::from),
            Kind::Anchor => self.read_clocks(record),
            Kind::LastBeat => {
                let t_ns = self.axis.at(record.header.t_ns);
                let outgoing = &mut self.outgoing;
                // One from before the kexec says nothing of its end.
                if outgoing.kexec.is_some_and(|kexec| kexec.start_ns <= t_ns) {
                    // A step that was seen to begin is a sign of life too.
                    let last_step = outgoing.steps.values().max().copied();
                    let sign = t_ns.max(last_step.unwrap_or(0));
                    outgoing.jumped_ns.get_or_insert(sign);
                }
            }
            _ => return false,
        }
        true
    }

    fn lose(&mut self, lost: u64) {
        let add = |sum: &mut u64| *sum = sum.saturating_add(lost);
        add(&mut self.lost);
        add(&mut self.outgoing.events.lost);
        self.outgoing.doubt();
        if let Some(update) = &mut self.incoming {
            add(&mut update.events.lost);
        } else if !self.outgoing.has_begun()
            && let Some(update) = self.past.back_mut()
        {
            // They may be the last one's, or the next one's first: both are marked.
            add(&mut update.events.lost);
        }
    }

    fn read_clocks(&mut self, record: &Record) {
        let Some(anchor) = record.anchor() else {
            return;
        };
        match self.axis.read(record.header.t_ns, anchor) {
            Told::Same(hz) => {
                if let Some(crossing) = self.incoming.as_mut().and_then(|u| u.crossing.as_mut()) {
                    crossing.new_hz = hz;
                }
                // The last update may have ended before the frequency was known.
                if let Some(crossing) = self.past.back_mut().and_then(|u| u.crossing.as_mut())
                    && crossing.new_hz.is_none()
                {
                    crossing.new_hz = hz;
                }
            }
            Told::Crossed(crossing) => {
                self.hand_over(self.axis.at(0));
                if let Some(update) = &mut self.incoming {
                    update.crossing = crossing;
                    update.handover = self.handover.clone();
                    update.new_clock_ns = crossing.map(|_| self.axis.at(0));
                    update.kernels.extend(self.kernel.clone());
                    update.boot_ids.extend(self.axis.boot_id());
                    if crossing.is_some() && anchor.init_ns > 0 {
                        update.booted_ns = Some(self.axis.at(anchor.init_ns));
                    }
                }
            }
        }
        if let Some(t_ns) = self.watch_began_ns.take()
            && let Some(update) = &mut self.incoming
        {
            update.watched_ns = Some(self.axis.at(t_ns));
        }
        if self.outgoing.kernels.is_empty() {
            self.outgoing.kernels.extend(self.kernel.clone());
        }
    }

    /// Which update a record belongs to.
    fn side(&self, kind: Kind, record: &Record) -> Side {
        let incoming = match kind {
            Kind::SessionRetrieve
            | Kind::SessionFinish
            | Kind::Restore
            | Kind::FileRetrieve
            | Kind::FileFinish
            | Kind::Finish
            | Kind::Deserialize
            | Kind::Boot => true,
            Kind::Ioctl => match operation(record) {
                "restore" | "retrieve-session" | "retrieve" | "finish" => true,
                "preserve" | "create-session" | "prepare" | "cancel" | "unpreserve" => false,
                _ => !self.outgoing.has_begun(),
            },
            // Of a session that is closed only the incoming ones matter here.
            Kind::SessionRelease => record.session().is_none_or(|id| {
                self.incoming
                    .as_ref()
                    .is_some_and(|update| update.can_name(id))
            }),
            Kind::Open | Kind::Release => !self.outgoing.has_begun(),
            Kind::Verdict | Kind::Tampered => {
                let judged = record.judged();
                match judged.and_then(|judged| Operation::from_raw(judged.operation)) {
                    Some(Operation::Retrieve | Operation::Restore | Operation::Finish) => true,
                    Some(Operation::Open | Operation::Receive) => !self.outgoing.has_begun(),
                    _ => false,
                }
            }
            _ => false,
        };
        if incoming && self.incoming.is_some() {
            Side::Incoming
        } else {
            Side::Outgoing
        }
    }

    fn of(&mut self, side: Side) -> Option<&mut Update> {
        match side {
            Side::Incoming => self.incoming.as_mut(),
            Side::Outgoing => Some(&mut self.outgoing).filter(|update| update.has_begun()),
        }
    }

    /// Begins an update if an event belongs to one and there is none.
    fn begin_if_due(&mut self, kind: Kind, record: &Record) {
        let done = record.inner_ret() == Some(0);
        // What is seen for the first time after the kexec, lu did not see before it. A restore or a finish
        // that was refused is no sign of an update.
        let of_the_past = matches!(kind, Kind::Restore | Kind::Finish | Kind::SessionRetrieve)
            && done
            && self.incoming.is_none()
            && !self.is_own(record);
        if of_the_past {
            let mut update = Update::beyond_kexec();
            update.handover.clone_from(&self.handover);
            let before = self.handover.as_ref().and_then(|h| h.exec_from.clone());
            update.kernels.extend(before);
            update.kernels.extend(self.kernel.clone());
            self.begin(&mut update, record);
            self.incoming = Some(update);
        }
        let due = match kind {
            Kind::Preserve | Kind::FileFreeze | Kind::SessionFreeze => !self.is_own(record),
            Kind::Prepare | Kind::FilePrepare | Kind::Freeze => {
                record.interface() == Interface::V3 || !self.is_empty()
            }
            Kind::Cancel => done,
            Kind::SessionCreate => done && !self.is_own(record),
            // A plain kexec preserves nothing: no update.
            Kind::Reboot | Kind::Jump => !self.is_empty(),
            _ => false,
        };
        if due && !self.outgoing.has_begun() {
            let mut update = std::mem::take(&mut self.outgoing);
            self.begin(&mut update, record);
            self.outgoing = update;
        }
    }

    fn begin(&mut self, update: &mut Update, record: &Record) {
        self.last_number += 1;
        update.number = self.last_number;
        update.interface = Some(record.interface());
        update.emulated = record.is_emulated();
        update.began_ns = record.header.t_ns;
        update.began_monotonic_ns = self.axis.of_kernel(record.header.t_ns);
        update.began_realtime_ns = self.axis.realtime(update.began_monotonic_ns);
        update.boot_ids.extend(self.axis.boot_id());
        if update.kernels.is_empty() {
            update.kernels.extend(self.kernel.clone());
        }
    }

    fn is_own(&self, record: &Record) -> bool {
        self.names.is(record, RECORDER)
    }

    /// Whether there is nothing to hand over, but for lu's own.
    fn is_empty(&self) -> bool {
        self.outgoing
            .sessions
            .values()
            .all(|session| session.is_own() || (session.name.is_none() && session.files.is_empty()))
    }

    /// Counts a system call that failed, once, by what the caller asked for.
    fn count_error(&mut self, kind: Kind, record: &Record) {
        let Some(errno) = record.errno() else { return };
        // That there is nothing of lu's own to be found again is no news.
        if self.is_own(record) {
            return;
        }
        let Some(operation) = called(kind, record) else {
            return;
        };
        let side = self.side(kind, record);
        let update = match (side, &mut self.incoming) {
            (Side::Incoming, Some(update)) => update,
            _ => &mut self.outgoing,
        };
        *update.errors.entry((operation, errno)).or_default() += times(kind, record);
    }

    /// What the policy says of a request. One that it refuses never reached the orchestrator: it begins nothing.
    fn judge(&mut self, kind: Kind, record: &Record) {
        let Some(said) = Said::of(record, &self.names) else {
            return;
        };
        let side = self.side(kind, record);
        let update = match (side, &mut self.incoming) {
            (Side::Incoming, Some(update)) => update,
            _ => &mut self.outgoing,
        };
        update.verdicts.push(said, record);
    }

    /// Who has the device, and who is refused it.
    fn hold(&mut self, kind: Kind, record: &Record) {
        match (kind, record.errno()) {
            (Kind::Open, None) => self.holder = Caller::of(record),
            (Kind::Open, Some(errno::EBUSY)) => {
                let refusal = Refusal {
                    holder: self.holder.clone(),
                    refused: Caller::of(record),
                };
                let side = self.side(kind, record);
                let update = match (side, &mut self.incoming) {
                    (Side::Incoming, Some(update)) => update,
                    _ => &mut self.outgoing,
                };
                update.troubles.refuse(refusal, record.header.t_ns);
            }
            (Kind::Release, _) => self.holder = None,
            _ => {}
        }
    }

    fn outgoing_event(&mut self, kind: Kind, record: &Record) {
        let done = record.inner_ret() == Some(0);
        if let Some(part) = PartName::beginning_with(kind) {
            // The record of its return has the better time of its entry.
            let began = self.outgoing.steps.entry(part).or_insert(u64::MAX);
            *began = record.header.t_ns.min(*began);
        }
        match kind {
            Kind::SessionCreate if done => {
                let name = self.names.of(record);
                let session = self.outgoing.session_or_new(record.session(), || name);
                session.sight = Sight::Whole;
            }
            Kind::SessionUnpreserve => {
                if let Some(id) = record.session() {
                    self.outgoing.close_session(id, record);
                }
            }
            Kind::SessionFreeze => {
                let name = self.names.of(record);
                let session = self.outgoing.session_or_new(record.session(), || name);
                session.freeze = Span::of(record);
                self.outgoing.last_freeze_ns = Some(record.header.t_ns);
            }
            Kind::Preserve if done => self.preserve(record),
            Kind::Unpreserve if done => {
                if let (Some(token), Some(session)) =
                    (record.token(), self.outgoing.session(record.session()))
                    && let Some(file) = session.files.get_mut(&token)
                {
                    file.outcome = FileOutcome::Unpreserved;
                }
            }
            Kind::Release if record.interface() == Interface::V3 => self.release(record),
            Kind::Prepare if done => self.outgoing.set_phase(PhaseName::Prepare, record),
            Kind::FilePrepare | Kind::FileFreeze => self.callback(kind, record),
            Kind::Freeze => self.freeze(record),
            Kind::Kexec => self.kexec(record),
            Kind::Jump => {
                self.outgoing.jumped_ns = Some(record.header.t_ns);
                self.hand_over(record.header.t_ns);
                if let Some(update) = &mut self.incoming {
                    update.jumped_in = Some(self.watch);
                }
            }
            Kind::Cancel if done => self.end_outgoing(Outcome::Cancelled, record),
            _ => {}
        }
    }

    fn incoming_event(&mut self, kind: Kind, record: &Record) {
        let done = record.inner_ret() == Some(0);
        let name = self.names.of(record);
        let watch = self.watch;
        let Some(update) = &mut self.incoming else {
            return;
        };
        let from_the_jump = update.jumped_in == Some(watch);
        match kind {
            Kind::Boot => update.booted_ns = record.end_ns(),
            Kind::SessionRetrieve if done => {
                let session = update.session_or_new(record.session(), || name);
                session.outcome = SessionOutcome::Retrieved;
                session.retrieve = Span::of(record);
                session.retrieved_in = Some(watch);
            }
            Kind::Restore => restore(update, record, name),
            Kind::SessionFinish if done => {
                let Some(session) = update.session(record.session()) else {
                    return;
                };
                let own = session.is_own();
                session.discard(from_the_jump || session.retrieved_in == Some(watch));
                // The last close of a session that is finished already calls it once more.
                let first = session.outcome != SessionOutcome::Finished;
                session.outcome = SessionOutcome::Finished;
                if first {
                    session.finish = Span::of(record);
                }
                if first && !own {
                    update.extend_phase(PhaseName::Finish, record);
                }
                if let Some(outcome) = update.end_of_sessions() {
                    self.end_incoming(outcome, record);
                }
            }
            Kind::SessionRelease if record.errno().is_some() => {
                if let Some(session) = update.session(record.session()) {
                    session.outcome = SessionOutcome::Stranded;
                    session.closed_ns = Some(record.header.t_ns);
                }
                if let Some(outcome) = update.end_of_sessions() {
                    self.end_incoming(outcome, record);
                }
            }
            Kind::Finish if done => {
                for session in update.sessions.values_mut() {
                    session.discard(from_the_jump);
                }
                update.set_phase(PhaseName::Finish, record);
                self.end_incoming(Outcome::Finished, record);
            }
            _ => {}
        }
    }

    fn preserve(&mut self, record: &Record) {
        let Some(token) = record.token() else { return };
        let name = self.names.of(record);
        let owner = self.outgoing.owners.of(record);
        let session = self.outgoing.session_or_new(record.session(), || name);
        let own = session.is_own();
        session.files.insert(
            token,
            FileSpan {
                kind: record.file_kind(),
                bytes: record.bytes(),
                owner,
                preserve: Span::of(record),
                ..FileSpan::default()
            },
        );
        if !own {
            self.outgoing.extend_phase(PhaseName::Preserve, record);
        }
    }

    /// v3: the last close of the device drops the outgoing set. What is frozen has already been handed
    /// over.
    fn release(&mut self, record: &Record) {
        if self.outgoing.has_phase(PhaseName::Freeze) {
            return;
        }
        let Some(session) = self.outgoing.session(None) else {
            return;
        };
        let had_files = session
            .files
            .values()
            .any(|file| file.outcome == FileOutcome::Preserved);
        session.turn(FileOutcome::Preserved, FileOutcome::Dropped);
        if had_files {
            self.outgoing.troubles.closed_by = Caller::of(record);
            self.outgoing.troubles.closed_ns = Some(record.header.t_ns);
        }
        // Before PREPARE that was the whole update; after it the state machine goes on without files.
        if had_files && !self.outgoing.has_phase(PhaseName::Prepare) {
            self.end_outgoing(Outcome::Aborted, record);
        }
    }

    fn callback(&mut self, kind: Kind, record: &Record) {
        let Some(token) = self.names.token(record) else {
            return;
        };
        if kind == Kind::FileFreeze {
            self.outgoing.last_freeze_ns = Some(record.header.t_ns);
        }
        let name = self.names.of(record);
        let session = self
            .outgoing
            .session_or_new(record.session(), || name.clone());
        let file = session.files.entry(token).or_default();
        let step = if kind == Kind::FileFreeze {
            file.freeze = Span::of(record);
            FileStep::Freeze
        } else {
            file.prepare = Span::of(record);
            FileStep::Prepare
        };
        file.bytes = record.bytes().or(file.bytes);
        if let Some(errno) = record.errno() {
            file.outcome = FileOutcome::Failed;
            let failed = Failed {
                step,
                session: name,
                token,
            };
            self.outgoing
                .troubles
                .fail(failed, errno, record.header.t_ns);
        } else if file.outcome == FileOutcome::Failed {
            // A second try that succeeded.
            file.outcome = FileOutcome::Preserved;
        }
    }

    fn freeze(&mut self, record: &Record) {
        let update = &mut self.outgoing;
        let failed = record.ret() != Some(0);
        if let Some(kexec) = &mut update.kexec {
            kexec.freeze_failed = failed;
        }
        if failed {
            update.troubles.failed_freezes += 1;
            update.troubles.freeze_errno = record.errno();
            update.troubles.freeze_failed_ns = Some(record.header.t_ns);
            update.unfreeze_all();
        } else {
            update.set_phase(PhaseName::Freeze, record);
            update.frozen_by_ns = update.kexec.map(|kexec| kexec.start_ns);
            update.steps.clear();
            update.freeze_all();
        }
    }

    /// reboot(KEXEC), at its entry and where it came back.
    fn kexec(&mut self, record: &Record) {
        let tid = record.header.tid;
        if !record.is_exit() {
            self.outgoing.kexec = Some(Kexec {
                tid,
                start_ns: record.header.t_ns,
                freeze_failed: false,
            });
            return;
        }
        // One that was refused says nothing of another one that is under way.
        let Some(kexec) = self.outgoing.kexec.filter(|kexec| kexec.tid == tid) else {
            return;
        };
        if record.errno().is_none() {
            return;
        }
        self.outgoing.kexec = None;
        // In v3 a freeze that failed is the end of the attempt. A kexec that fails after a good freeze
        // leaves everything frozen, and can be tried again.
        if kexec.freeze_failed && record.interface() == Interface::V3 {
            self.end_outgoing(Outcome::Aborted, record);
        }
    }

    /// The kernel is replaced: what was going out is coming in.
    fn hand_over(&mut self, t_ns: u64) {
        let mut update = std::mem::take(&mut self.outgoing);
        if let Some(mut old) = self.incoming.take() {
            old.outcome = Outcome::Aborted;
            old.ended_ns = Some(t_ns);
            self.remember(old);
        }
        // The device was closed with its kernel.
        self.holder = None;
        if !update.has_begun() {
            self.plain_kexecs += 1;
            // What was lost may have been the next one's beginning.
            self.outgoing.events.lost = update.events.lost;
            return;
        }
        // A kexec freezes every session; in v3 it freezes what was prepared.
        let freezes = update.interface == Some(Interface::Sessions) && update.kexec.is_some();
        // Nothing was frozen: the files are gone with their kernel. Where a freeze may only not have been
        // seen, its outcome is unknown, and what comes will tell.
        let may_be_frozen = update.has_phase(PhaseName::Freeze)
            || update.has_phase(PhaseName::Prepare)
            || update.events.lost > 0
            || freezes
            || update.files().any(|(_, _, file)| file.freeze.is_some());
        if may_be_frozen {
            update.beyond_kexec = true;
            self.incoming = Some(update);
        } else {
            update.lose_all();
            update.outcome = Outcome::Aborted;
            update.ended_ns = Some(t_ns);
            self.remember(update);
        }
    }

    fn end_outgoing(&mut self, outcome: Outcome, record: &Record) {
        let next = self.outgoing.kept();
        let mut update = std::mem::replace(&mut self.outgoing, next);
        if !update.has_begun() {
            return;
        }
        update.outcome = outcome;
        update.ended_ns = Some(end_of(record));
        self.remember(update);
    }

    fn end_incoming(&mut self, outcome: Outcome, record: &Record) {
        if let Some(mut update) = self.incoming.take() {
            update.outcome = outcome;
            update.ended_ns = Some(end_of(record));
            self.remember(update);
        }
    }

    fn remember(&mut self, update: Update) {
        self.ended += 1;
        if self.past.len() == REMEMBERED {
            self.past.pop_front();
        }
        self.past.push_back(update);
    }
}

fn restore(update: &mut Update, record: &Record, name: Option<String>) {
    let (Some(token), Some(ret)) = (record.token(), record.inner_ret()) else {
        return;
    };
    let session = update.session_or_new(record.session(), || name.clone());
    // An attempt before the kexec, or a second one, says nothing about the file.
    if ret == -errno::EBUSY
        || ret == -errno::ENOENT
        || session
            .files
            .get(&token)
            .is_some_and(|file| file.outcome == FileOutcome::Restored)
    {
        return;
    }
    let own = session.is_own();
    let canary = session.name.as_deref() == Some(CANARY);
    let file = session.files.entry(token).or_default();
    file.restore = Span::of(record);
    if ret == 0 {
        file.kind = record.file_kind().or(file.kind);
        file.bytes = record.bytes().or(file.bytes);
        file.outcome = FileOutcome::Restored;
        if !own {
            update.extend_phase(PhaseName::Restore, record);
        }
        if canary {
            update.canary_restored_ns = record.end_ns();
        }
    } else {
        file.outcome = FileOutcome::Failed;
        let failed = Failed {
            step: FileStep::Restore,
            session: name,
            token,
        };
        update
            .troubles
            .fail(failed, ret.wrapping_neg(), record.header.t_ns);
    }
}

/// How many calls that failed a record stands for: of reboot(KEXEC) that was refused, which anybody can
/// call as often as they like, only some are kept, with how many more there were (see
/// [`crate::journal::refusals`]).
pub(crate) fn times(kind: Kind, record: &Record) -> u64 {
    if kind == Kind::Kexec {
        record.call.bytes.saturating_add(1)
    } else {
        1
    }
}

/// When a record's function returned, else when it was entered.
fn end_of(record: &Record) -> u64 {
    record.end_ns().unwrap_or(record.header.t_ns)
}

/// What a system call asked for, in the words of reports: one of [`OPERATIONS`]. `None` of the functions within,
/// which are told by the call that they are part of.
pub(crate) fn called(kind: Kind, record: &Record) -> Option<&'static str> {
    match kind {
        Kind::Open => Some("open"),
        Kind::Kexec => Some("reboot"),
        Kind::Ioctl
        | Kind::Preserve
        | Kind::Unpreserve
        | Kind::Restore
        | Kind::SessionCreate
        | Kind::SessionRetrieve => Some(operation(record)),
        _ => None,
    }
}

/// What a system call can ask for, in the words of reports.
pub const OPERATIONS: [&str; 17] = [
    "open",
    "create-session",
    "retrieve-session",
    "preserve",
    "unpreserve",
    "restore",
    "retrieve",
    "prepare",
    "cancel",
    "finish",
    "reboot",
    "get-state",
    "get-name",
    "set-event",
    "get-fd-state",
    "set-fd-event",
    "ioctl",
];

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
        Interface::Sessions => match cmd {
            sessions::CREATE_SESSION => "create-session",
            sessions::RETRIEVE_SESSION => "retrieve-session",
            sessions::PRESERVE_FD => "preserve",
            sessions::RETRIEVE_FD => "retrieve",
            sessions::FINISH => "finish",
            sessions::GET_NAME => "get-name",
            _ => "ioctl",
        },
    }
}
