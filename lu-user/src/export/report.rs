//! The report as JSON. Its schema is stable: fields are added, and never change their meaning.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use lu_common::policy::Operation;
use lu_common::uapi::Interface;

use super::attention::{self, AttentionJson};
use super::errno_name;
use crate::timeline::clock::{Clock, Crossing};
use crate::timeline::{
    BlackoutStart, Caller, Darkness, Enforcer, FileOutcome, FileSpan, Handover, Outcome, PartName,
    Phase, PhaseName, RECORDER, Said, Session, SessionOutcome, Span, Stretch, Times, Update,
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
    /// When it began, as in the phases (see [`PhaseJson`]).
    #[serde(default)]
    pub began_ns: Option<u64>,
    /// When it began: `CLOCK_MONOTONIC` of the first of these boots, in nanoseconds.
    #[serde(default)]
    pub began_monotonic_ns: u64,
    /// When it began: `CLOCK_REALTIME`, in nanoseconds since 1970; null where no clock was read before.
    #[serde(default)]
    pub began_realtime_ns: Option<u64>,
    /// How it ended.
    pub outcome: Outcome,
    /// What somebody should look at, the most serious first.
    #[serde(default)]
    pub attention: Vec<AttentionJson>,
    /// How much more of that there is than is listed.
    #[serde(default)]
    pub attention_left_out: u64,
    /// From the first preserve to the end of the last FINISH; null where either was not seen, or no clock spans
    /// both. The phases' sum, where all are known.
    #[serde(default)]
    pub whole: Option<SpanJson>,
    /// How long the machine was dark; null where that was not seen.
    pub blackout: Option<BlackoutJson>,
    /// The phases that took place, in order and without gaps.
    pub phases: Vec<PhaseJson>,
    /// The time in which nothing can be seen, from the old kernel's last sign to the new one's first: the jump
    /// lies within. Null where the jump itself was seen.
    #[serde(default)]
    pub unseen: Option<SpanJson>,
    /// When lu, started anew in the new kernel, watched at the latest; null: from the jump on.
    #[serde(default)]
    pub watched_ns: Option<u64>,
    /// How the clocks of the two kernels lie to each other; null where there is one kernel.
    pub crossing: Option<CrossingJson>,
    /// What the new kernel says of the kexec, whether lu watched the old one or not; null where it says nothing.
    #[serde(default)]
    pub handover: Option<Handover>,
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
    pub verdicts: Vec<VerdictJson>,
    /// How many more verdicts there were, of sorts that are not listed.
    #[serde(default)]
    pub verdicts_left_out: u64,
    /// How many requests got through that were not the ones that were judged, in all.
    #[serde(default)]
    pub tampered: u64,
    /// How many verdicts were lost for want of room, so that nobody knows what they were.
    #[serde(default)]
    pub verdicts_lost: u64,
    /// How many requests could not be judged, for want of room.
    #[serde(default)]
    pub unjudged: u64,
    /// System calls that failed.
    pub errors: Vec<ErrorJson>,
    /// What the numbers rest on.
    pub events: EventsJson,
}

/// The blackout window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlackoutJson {
    /// When it began (see [`PhaseJson`]).
    #[serde(default)]
    pub start_ns: Option<u64>,
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
    /// What it is made of, the longest first, the unknown last. Where all are known their sum is the blackout.
    #[serde(default)]
    pub parts: Vec<BlackoutPartJson>,
}

/// A part of the blackout: a phase, or a part of one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlackoutPartJson {
    /// The phase's name.
    pub phase: PhaseName,
    /// The name of the part of it; null: the phase as a whole.
    pub part: Option<PartName>,
    /// When it began (see [`PhaseJson`]).
    pub start_ns: Option<u64>,
    /// How long it took, in nanoseconds.
    pub ns: Option<u64>,
    /// Of the blackout, in percent.
    pub percent: Option<f64>,
}

impl BlackoutPartJson {
    /// The parts of a phase; itself, where it has none.
    fn of(phase: &PhaseJson, blackout_ns: u64) -> Vec<Self> {
        let new = |part, start_ns, ns: Option<u64>| Self {
            phase: phase.name,
            part,
            start_ns,
            ns,
            percent: ns.map(|ns| 100.0 * ns as f64 / blackout_ns.max(1) as f64),
        };
        if phase.parts.is_empty() {
            return vec![new(None, phase.start_ns, phase.ns)];
        }
        let part = |part: &PartJson| new(Some(part.name), part.start_ns, part.ns);
        phase.parts.iter().map(part).collect()
    }

    /// Its own name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self.part {
            Some(part) => part.name(),
            None => self.phase.name(),
        }
    }
}

/// A stretch of time, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpanJson {
    /// When it began (see [`PhaseJson`]).
    pub start_ns: u64,
    /// How long it took.
    pub ns: u64,
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
    /// What it is made of, in order and without gaps.
    #[serde(default)]
    pub parts: Vec<PartJson>,
}

/// A part of a phase.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PartJson {
    /// Its name.
    pub name: PartName,
    /// When it began (see [`PhaseJson`]).
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
    /// When that began (see [`PhaseJson`]).
    #[serde(default)]
    pub freeze_start_ns: Option<u64>,
    /// Time to get hold of it in the new kernel, in nanoseconds.
    #[serde(default)]
    pub retrieve_ns: Option<u64>,
    /// When that began.
    #[serde(default)]
    pub retrieve_start_ns: Option<u64>,
    /// Time to finish it, in nanoseconds.
    #[serde(default)]
    pub finish_ns: Option<u64>,
    /// When that began.
    #[serde(default)]
    pub finish_start_ns: Option<u64>,
    /// Who closed it before the kexec, if it was closed then: explicitly, or by ending.
    #[serde(default)]
    pub closed_by: Option<CallerJson>,
    /// Its files, by token.
    pub files: Vec<FileJson>,
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallerJson {
    /// Its id.
    pub pid: u32,
    /// The name of the thread that called.
    pub comm: String,
}

/// A file; durations in nanoseconds, null where not seen; for the beginnings see [`PhaseJson`].
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
    /// When that began.
    #[serde(default)]
    pub preserve_start_ns: Option<u64>,
    /// Time to prepare it.
    pub prepare_ns: Option<u64>,
    /// When that began.
    #[serde(default)]
    pub prepare_start_ns: Option<u64>,
    /// Time to freeze it.
    pub freeze_ns: Option<u64>,
    /// When that began.
    #[serde(default)]
    pub freeze_start_ns: Option<u64>,
    /// Time to restore it.
    pub restore_ns: Option<u64>,
    /// When that began.
    #[serde(default)]
    pub restore_start_ns: Option<u64>,
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
                FileOutcome::Failed => file.restore.is_some(),
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

/// Verdicts of one sort.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerdictJson {
    /// Who asked the policy.
    pub enforced_by: Enforcer,
    /// `deny`, `would-deny`, or `allow` where a rule's `on_error` let it go on.
    pub decision: Cow<'static, str>,
    /// What was asked for.
    pub operation: Cow<'static, str>,
    /// The rule's name; its number as `#5`, where the name was not seen; null where there is no rule.
    pub rule: Option<String>,
    /// With which errno it was refused, or would have been.
    pub errno: Option<String>,
    /// Whether what the rule asks for was unknown, so that its `on_error` decided.
    pub unsure: bool,
    /// Of requests that got through and were not the ones that were judged: what differs. Null for verdicts.
    pub tampered: Option<Vec<Cow<'static, str>>>,
    /// In which session.
    pub session: Option<String>,
    /// How often.
    pub count: u64,
    /// When the first hundred were (see [`PhaseJson`]); empty where no clock spans the kexec.
    pub at_ns: Vec<u64>,
    /// Who asked, the last time.
    pub by: Option<CallerJson>,
}

impl VerdictJson {
    fn new(said: &Said, times: &Times, is_unspanned: bool) -> Self {
        let differs = said.differs.as_ref();
        Self {
            enforced_by: said.enforcer,
            decision: said.decision.name().into(),
            operation: said.operation.map_or("unknown", Operation::name).into(),
            rule: said.rule.clone(),
            errno: said.errno.map(errno_name),
            unsure: said.unsure,
            tampered: differs.map(|differs| differs.iter().map(|name| (*name).into()).collect()),
            session: said.session.clone(),
            count: times.count,
            at_ns: if is_unspanned {
                Vec::new()
            } else {
                times.at_ns.clone()
            },
            by: times.by.as_ref().map(CallerJson::from),
        }
    }

    /// What it is, in a word: the decision, `unsure`, or `tampered`.
    pub(super) fn word(&self) -> &str {
        match (&self.tampered, &*self.decision) {
            (Some(_), _) => "tampered",
            (None, "allow") => "unsure",
            (None, decision) => decision,
        }
    }
}

/// Events.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventsJson {
    /// Taken in.
    pub seen: u64,
    /// Known to have been lost.
    pub lost: u64,
}

impl Report {
    /// When the first phase that was seen began.
    pub(super) fn begin_ns(&self) -> Option<u64> {
        self.phases.iter().filter_map(|phase| phase.start_ns).min()
    }

    /// When the last phase that was seen ended.
    pub(super) fn end_ns(&self) -> Option<u64> {
        self.phases
            .iter()
            .filter_map(|phase| phase.start_ns?.checked_add(phase.ns?))
            .max()
    }

    /// From the old kernel's last sign to the new one's first; where the jump itself was seen without a length.
    pub(super) fn jump(&self) -> Option<SpanJson> {
        self.unseen.or_else(|| {
            let boot = self.phases.iter().find(|it| it.name == PhaseName::Boot)?;
            Some(SpanJson {
                start_ns: boot.start_ns?,
                ns: 0,
            })
        })
    }
}

impl BlackoutJson {
    /// Where it lies.
    pub(super) fn span(&self) -> Option<SpanJson> {
        Some(SpanJson {
            start_ns: self.start_ns?,
            ns: self.ns,
        })
    }
}

impl SessionJson {
    /// Whether it is lu's own.
    pub(crate) fn is_own(&self) -> bool {
        self.name.as_deref() == Some(RECORDER)
    }
}

impl FileJson {
    /// Each of its steps: its name, when it began, how long it took.
    pub(super) const fn steps(&self) -> [(&'static str, Option<u64>, Option<u64>); 4] {
        [
            ("preserve", self.preserve_start_ns, self.preserve_ns),
            ("prepare", self.prepare_start_ns, self.prepare_ns),
            ("freeze", self.freeze_start_ns, self.freeze_ns),
            ("restore", self.restore_start_ns, self.restore_ns),
        ]
    }

    /// All of them together, as far as they were seen, in nanoseconds.
    pub(super) fn whole_ns(&self) -> u64 {
        let steps = self.steps();
        let known = steps.iter().filter_map(|(_, _, ns)| *ns);
        known.fold(0, u64::saturating_add)
    }
}

impl From<&Update> for Report {
    fn from(update: &Update) -> Self {
        let phases: Vec<PhaseJson> = update
            .phases()
            .iter()
            .map(|phase| PhaseJson::new(phase, update))
            .collect();
        let beyond = Beyond(!update.is_unspanned());
        let (attention, attention_left_out) = attention::of(update);
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
            kernels: update.kernels.clone(),
            boot_ids: update.boot_ids.iter().copied().map(uuid).collect(),
            began_ns: Some(update.began_ns),
            began_monotonic_ns: update.began_monotonic_ns,
            began_realtime_ns: update.began_realtime_ns,
            outcome: update.outcome,
            attention,
            attention_left_out,
            whole: update.whole().map(SpanJson::from),
            blackout: BlackoutJson::of(update, &phases),
            phases,
            unseen: update.unseen().map(SpanJson::from),
            watched_ns: update.watched_ns.filter(|_| beyond.0),
            crossing: update.crossing.as_ref().map(CrossingJson::from),
            handover: update.handover.clone(),
            canary: update.canary().map(CanaryJson::from),
            sessions: update
                .sessions
                .values()
                .map(|session| SessionJson::new(session, beyond))
                .collect(),
            files: FilesJson::of(update),
            forgotten_sessions: update.forgotten_sessions,
            verdicts: update
                .verdicts
                .said
                .iter()
                .map(|(said, times)| VerdictJson::new(said, times, update.is_unspanned()))
                .collect(),
            verdicts_left_out: update.verdicts.left_out,
            tampered: update.verdicts.tampered,
            verdicts_lost: update.verdicts.lost,
            unjudged: update.verdicts.unjudged,
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

/// Whether a time in the new kernel has a place on the axis of the old one.
#[derive(Clone, Copy)]
struct Beyond(bool);

impl Beyond {
    fn start(self, span: Option<Span>) -> Option<u64> {
        span.filter(|_| self.0).map(|span| span.start_ns)
    }
}

impl BlackoutJson {
    fn of(update: &Update, phases: &[PhaseJson]) -> Option<Self> {
        let blackout = update.blackout()?;
        let first = match blackout.from {
            BlackoutStart::Freeze => PhaseName::Freeze,
            BlackoutStart::Reboot => PhaseName::Reboot,
        };
        let mut parts: Vec<BlackoutPartJson> = phases
            .iter()
            .filter(|phase| (first..=PhaseName::Restore).contains(&phase.name))
            .flat_map(|phase| BlackoutPartJson::of(phase, blackout.ns))
            .collect();
        parts.sort_by_key(|part| std::cmp::Reverse(part.ns));
        Some(Self {
            start_ns: Some(blackout.start_ns),
            ns: blackout.ns,
            uncertainty_ns: blackout.uncertainty_ns,
            clock: blackout.clock,
            from: blackout.from,
            to: "last-restore".into(),
            lossy: update.events.lost > 0,
            parts,
        })
    }
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

impl From<Span> for SpanJson {
    fn from(span: Span) -> Self {
        Self {
            start_ns: span.start_ns,
            ns: span.ns(),
        }
    }
}

impl From<&Caller> for CallerJson {
    fn from(caller: &Caller) -> Self {
        Self {
            pid: caller.pid,
            comm: caller.comm.clone(),
        }
    }
}

impl PhaseJson {
    fn new(phase: &Phase, update: &Update) -> Self {
        Self {
            name: phase.name,
            start_ns: phase.start_ns,
            ns: phase.ns,
            known: phase.known(),
            parts: update
                .parts(phase)
                .iter()
                .map(|part| PartJson {
                    name: part.name,
                    start_ns: part.start_ns,
                    ns: part.ns,
                    known: Stretch::known(part),
                })
                .collect(),
        }
    }
}

impl SessionJson {
    fn new(session: &Session, beyond: Beyond) -> Self {
        let ns = |span: Option<Span>| span.map(|span| span.ns());
        Self {
            name: session.name.clone(),
            outcome: session.name.as_ref().map(|_| session.outcome),
            freeze_ns: ns(session.freeze),
            freeze_start_ns: session.freeze.map(|span| span.start_ns),
            retrieve_ns: ns(session.retrieve),
            retrieve_start_ns: beyond.start(session.retrieve),
            finish_ns: ns(session.finish),
            finish_start_ns: beyond.start(session.finish),
            closed_by: session.closed_by.as_ref().map(CallerJson::from),
            files: session
                .files
                .iter()
                .map(|(token, file)| FileJson::new(*token, file, beyond))
                .collect(),
        }
    }
}

impl FileJson {
    fn new(token: u64, file: &FileSpan, beyond: Beyond) -> Self {
        let ns = |span: Option<Span>| span.map(|span| span.ns());
        let start = |span: Option<Span>| span.map(|span| span.start_ns);
        Self {
            token,
            kind: file.kind.map(|kind| kind.name().into()),
            bytes: file.bytes,
            preserve_ns: ns(file.preserve),
            preserve_start_ns: start(file.preserve),
            prepare_ns: ns(file.prepare),
            prepare_start_ns: start(file.prepare),
            freeze_ns: ns(file.freeze),
            freeze_start_ns: start(file.freeze),
            restore_ns: ns(file.restore),
            restore_start_ns: beyond.start(file.restore),
            outcome: file.outcome,
        }
    }
}
