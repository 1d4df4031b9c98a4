//! The phases of an update, and the parts of its blackout.
//!
//! A phase lasts from one instant to the next, so phases neither overlap nor leave a gap: where all of them are
//! known, their sum is the whole. An instant that was not seen, or that contradicts an earlier one, leaves the
//! phases on both sides of it unknown.

use lu_common::event::Kind;
use lu_common::uapi::Interface;

use super::clock::Clock;
use super::names::named;
use super::update::{FileOutcome, Outcome, Span, Update};

/// The resolution of `CLOCK_MONOTONIC` in the kernel, in nanoseconds (`clock_getres(2)`, high
/// resolution timers).
const RESOLUTION_NS: u64 = 1;

named! {
    /// The phases of an update, in their order. The waits are user space's.
    pub enum PhaseName {
        /// From the first preserve to the end of the last one.
        Preserve = "preserve",
        /// v3: from there to PREPARE.
        WaitPrepare = "wait-prepare",
        /// The state machine's PREPARE (v3).
        Prepare = "prepare",
        /// From there (sessions: from the last preserve) to the reboot(KEXEC) in which everything was frozen.
        /// Attempts that failed are within.
        WaitReboot = "wait-reboot",
        /// From the entry of reboot(KEXEC) to the freeze.
        Reboot = "reboot",
        /// The freeze within reboot(KEXEC).
        Freeze = "freeze",
        /// From the end of the freeze to the jump; where the jump itself was not seen, to the stop of the
        /// CPU on which lu ran.
        Shutdown = "shutdown",
        /// From there to the new kernel's orchestrator; where no probe sees that, to its first process.
        Boot = "boot",
        /// From there to the first restore (to FINISH, where nothing was restored): init, services, lu's own
        /// start, and the clients'.
        Userspace = "userspace",
        /// From the first restore to the end of the last one.
        Restore = "restore",
        /// From there to FINISH.
        WaitFinish = "wait-finish",
        /// v3: the state machine's FINISH. Sessions: from the first session's FINISH to the end of the last; as far
        /// as other sessions were still being restored meanwhile, that is the phase `restore`.
        Finish = "finish",
    }
}

named! {
    /// Parts of the phases `shutdown` and `boot`, in their order. Each begins with a function of the kernel and
    /// lasts to the next one's.
    pub enum PartName {
        /// From the end of the freeze: what `liveupdate_reboot()` still does, as the file-lifecycle-bound data.
        Handover = "handover",
        /// `kernel_restart_prepare()`: the reboot notifiers.
        Notifiers = "notifiers",
        /// `device_shutdown()`.
        DeviceShutdown = "device-shutdown",
        /// `migrate_to_reboot_cpu()`.
        MigrateCpu = "migrate-cpu",
        /// `syscore_shutdown()`.
        SyscoreShutdown = "syscore-shutdown",
        /// `machine_shutdown()`: the other CPUs are stopped.
        CpuStop = "cpu-stop",
        /// From the old kernel's last sign to the new one's first, the start of its clock. Nothing can be seen
        /// within: the last CPU's stop, `machine_kexec()`, and the new kernel's way to its clock.
        Jump = "jump",
        /// From the start of the new kernel's clock to its first process.
        KernelBoot = "kernel-boot",
    }
}

/// Those that begin with a function of their own.
const SHUTDOWN: [PartName; 5] = [
    PartName::Notifiers,
    PartName::DeviceShutdown,
    PartName::MigrateCpu,
    PartName::SyscoreShutdown,
    PartName::CpuStop,
];

impl PartName {
    /// The part that begins with a function.
    pub(super) const fn beginning_with(kind: Kind) -> Option<Self> {
        Some(match kind {
            Kind::RestartPrepare => Self::Notifiers,
            Kind::DeviceShutdown => Self::DeviceShutdown,
            Kind::MigrateCpu => Self::MigrateCpu,
            Kind::SyscoreShutdown => Self::SyscoreShutdown,
            Kind::MachineShutdown => Self::CpuStop,
            _ => return None,
        })
    }
}

/// A stretch of time as far as it is known. Times are `CLOCK_MONOTONIC` of the kernel in which the update began,
/// in nanoseconds, carried on beyond the kexec (see [`super::clock`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch<Name> {
    /// Which one.
    pub name: Name,
    /// When it began.
    pub start_ns: Option<u64>,
    /// How long it took.
    pub ns: Option<u64>,
}

impl<Name> Stretch<Name> {
    /// Whether both its beginning and its length were seen.
    #[must_use]
    pub const fn known(&self) -> bool {
        self.start_ns.is_some() && self.ns.is_some()
    }
}

/// A phase.
pub type Phase = Stretch<PhaseName>;
/// A part of a phase.
pub type Part = Stretch<PartName>;

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
    /// When it began, in nanoseconds (see [`Stretch`]).
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

/// The instants at which one stretch ends and the next begins.
struct Cuts<Name> {
    cuts: Vec<(Name, Option<u64>)>,
}

impl<Name: Copy> Cuts<Name> {
    const fn new() -> Self {
        Self { cuts: Vec::new() }
    }

    fn begin(&mut self, name: Name, at: Option<u64>) {
        self.cuts.push((name, at));
    }

    /// The stretches. An instant before an earlier one cannot be true, and is unknown.
    fn end(mut self, end: Option<u64>) -> Vec<Stretch<Name>> {
        let mut latest = 0;
        let mut credible = |at: Option<u64>| {
            let at = at.filter(|at| *at >= latest);
            latest = at.unwrap_or(latest);
            at
        };
        for (_, at) in &mut self.cuts {
            *at = credible(*at);
        }
        let end = credible(end);
        let ends = self.cuts.iter().skip(1).map(|(_, at)| *at).chain([end]);
        self.cuts
            .iter()
            .zip(ends)
            .map(|((name, start_ns), end)| Stretch {
                name: *name,
                start_ns: *start_ns,
                ns: end.zip(*start_ns).map(|(end, start)| end - start),
            })
            .collect()
    }
}

impl Update {
    /// The phases that took place, in order and without gaps, as far as they were seen. One that must have taken
    /// place and was not seen is there as unknown.
    #[must_use]
    pub fn phases(&self) -> Vec<Phase> {
        if !self.beyond_kexec {
            return self.outgoing_phases();
        }
        let mut phases = self.old_kernel();
        let beyond = self.new_kernel();
        if self.is_unspanned() {
            // The length of what lies across the kexec is unknown, and so is where the rest has its place.
            phases.push(Stretch {
                name: PhaseName::Boot,
                start_ns: self.jumped_ns,
                ns: None,
            });
            phases.extend(beyond.end(self.end_ns()).into_iter().map(|phase| Phase {
                start_ns: None,
                ..phase
            }));
            return phases;
        }
        let mut cuts = Cuts::new();
        for phase in phases {
            cuts.begin(phase.name, phase.start_ns);
        }
        cuts.begin(PhaseName::Boot, self.jumped_ns);
        cuts.cuts.extend(beyond.cuts);
        let end = if self.has_phase(PhaseName::Restore) || self.has_phase(PhaseName::Finish) {
            self.end_ns()
        } else {
            self.booted_ns
        };
        cuts.end(end)
    }

    /// The phase that it is in: the last one that was seen to begin. The wait after a phase counts to it until it is
    /// over.
    #[must_use]
    pub fn current_phase(&self) -> PhaseName {
        let seen = |name: &PhaseName| self.has_phase(*name);
        if self.beyond_kexec {
            let last = [PhaseName::Finish, PhaseName::Restore];
            // Of the real new kernel lu sees nothing before its own start.
            let before = if self.booted_ns.is_some() || !self.emulated {
                PhaseName::Userspace
            } else {
                PhaseName::Boot
            };
            return last.into_iter().find(seen).unwrap_or(before);
        }
        if self.has_phase(PhaseName::Freeze) {
            PhaseName::Shutdown
        } else if self.kexec.is_some() {
            PhaseName::Reboot
        } else if self.has_phase(PhaseName::Prepare) {
            PhaseName::Prepare
        } else {
            PhaseName::Preserve
        }
    }

    /// Without a kexec that handed anything over: what was seen.
    fn outgoing_phases(&self) -> Vec<Phase> {
        let mut phases = self.old_kernel();
        let last = [PhaseName::Preserve, PhaseName::Prepare, PhaseName::Freeze]
            .into_iter()
            .rfind(|name| self.has_phase(*name));
        let after = phases.iter().position(|phase| Some(phase.name) == last);
        phases.truncate(after.map_or(0, |at| at + 1));
        phases
    }

    /// From the first preserve to the jump.
    fn old_kernel(&self) -> Vec<Phase> {
        let span = |name| self.phase(name);
        let start = |name| span(name).map(|span| span.start_ns);
        let end = |name| span(name).map(|span| span.end_ns);
        let mut cuts = Cuts::new();
        cuts.begin(PhaseName::Preserve, start(PhaseName::Preserve));
        if self.interface == Some(Interface::V3) {
            cuts.begin(PhaseName::WaitPrepare, end(PhaseName::Preserve));
            cuts.begin(PhaseName::Prepare, start(PhaseName::Prepare));
            cuts.begin(PhaseName::WaitReboot, end(PhaseName::Prepare));
        } else {
            cuts.begin(PhaseName::WaitReboot, end(PhaseName::Preserve));
        }
        cuts.begin(PhaseName::Reboot, self.frozen_by_ns);
        cuts.begin(PhaseName::Freeze, start(PhaseName::Freeze));
        cuts.begin(PhaseName::Shutdown, end(PhaseName::Freeze));
        cuts.end(self.jumped_ns)
    }

    /// From the new kernel's first process on; without an end, which is [`Self::end_ns`].
    fn new_kernel(&self) -> Cuts<PhaseName> {
        // Where some restores were not seen, nobody knows which was the first and which the last.
        let may_miss = self
            .files()
            .any(|(session, _, file)| file.outcome == FileOutcome::Unseen && !session.is_own());
        let restore = self.phase(PhaseName::Restore).filter(|_| !may_miss);
        // What was finished before the last restore is told by the sessions.
        let restored_ns = restore.map_or(0, |span| span.end_ns);
        let finish = self
            .phase(PhaseName::Finish)
            .filter(|span| span.end_ns > restored_ns);
        let mut cuts = Cuts::new();
        if restore.is_some() || finish.is_some() {
            cuts.begin(PhaseName::Userspace, self.booted_ns);
        }
        if may_miss {
            cuts.begin(PhaseName::Restore, None);
            cuts.begin(PhaseName::WaitFinish, None);
        }
        if let Some(restore) = restore {
            cuts.begin(PhaseName::Restore, Some(restore.start_ns));
        }
        if let Some(finish) = finish {
            if restore.is_some() && finish.start_ns > restored_ns {
                cuts.begin(PhaseName::WaitFinish, Some(restored_ns));
            }
            cuts.begin(PhaseName::Finish, Some(finish.start_ns.max(restored_ns)));
        }
        cuts
    }

    /// When the last restore or FINISH that was seen ended.
    fn end_ns(&self) -> Option<u64> {
        [PhaseName::Restore, PhaseName::Finish]
            .into_iter()
            .filter_map(|name| Some(self.phase(name)?.end_ns))
            .max()
    }

    /// From the first preserve to the end of the last FINISH, across the kexec; `None` where either was not seen,
    /// is still to come, or no clock spans both.
    #[must_use]
    pub fn whole(&self) -> Option<Span> {
        if !self.is_over() || !self.beyond_kexec || self.is_unspanned() {
            return None;
        }
        let whole = Span {
            start_ns: self.phase(PhaseName::Preserve)?.start_ns,
            end_ns: self.end_ns()?,
        };
        (whole.start_ns <= whole.end_ns).then_some(whole)
    }

    /// What a phase is made of, in order and without gaps; empty where its parts have no hooks.
    #[must_use]
    pub fn parts(&self, phase: &Phase) -> Vec<Part> {
        let end = phase.start_ns.zip(phase.ns).map(|(start, ns)| start + ns);
        let mut cuts = Cuts::new();
        match phase.name {
            PhaseName::Shutdown if !self.steps.is_empty() => {
                cuts.begin(PartName::Handover, phase.start_ns);
                let last = self.steps.keys().next_back();
                for name in SHUTDOWN {
                    // Where the jump was not seen, the shutdown ends for lu with the stop of the CPU on which it
                    // ran. What had not begun by then is in the part `jump`.
                    if self.unseen().is_none() || self.events.lost > 0 || Some(&name) <= last {
                        cuts.begin(name, self.steps.get(&name).copied());
                    }
                }
            }
            PhaseName::Boot if self.new_clock_ns.is_some() => {
                cuts.begin(PartName::Jump, phase.start_ns);
                cuts.begin(PartName::KernelBoot, self.new_clock_ns);
            }
            _ => return Vec::new(),
        }
        cuts.end(end)
    }

    /// Between the old kernel's last sign and the new one's first: the jump lies within, and nothing there can be
    /// seen. `None` where the jump itself was seen, or no clock spans the kexec.
    #[must_use]
    pub fn unseen(&self) -> Option<Span> {
        let unseen = Span {
            start_ns: self.jumped_ns?,
            end_ns: self.new_clock_ns?,
        };
        (unseen.start_ns <= unseen.end_ns).then_some(unseen)
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

    /// Whether nothing more can come.
    fn is_over(&self) -> bool {
        matches!(self.outcome, Outcome::Finished | Outcome::Incomplete)
    }

    /// Whether the times in the new kernel cannot be held against those in the old one.
    #[must_use]
    pub fn is_unspanned(&self) -> bool {
        self.beyond_kexec && !self.emulated && self.crossing.is_none() && !self.is_partial
    }

    /// What the blackout began with, and when, in nanoseconds (see [`Stretch`]); `None` before, and where that was
    /// not seen.
    #[must_use]
    pub fn dark_since(&self) -> Option<(BlackoutStart, u64)> {
        Some(match self.interface? {
            Interface::V3 => (
                BlackoutStart::Freeze,
                self.phase(PhaseName::Freeze)?.start_ns,
            ),
            Interface::Sessions => (
                BlackoutStart::Reboot,
                self.frozen_by_ns
                    .or(self.kexec.map(|kexec| kexec.start_ns))?,
            ),
        })
    }

    /// The blackout, to the end of the last restore. `None` until the update is finished or every file is
    /// restored, and where either end was not seen or no clock spans both.
    #[must_use]
    pub fn blackout(&self) -> Option<Blackout> {
        let (from, start_ns) = self.dark_since()?;
        let restore = self.phase(PhaseName::Restore)?;
        let mut files = self.files().filter(|(session, ..)| !session.is_own());
        let is_known = files.all(|(_, _, file)| match file.outcome {
            // The freeze of a file that is still in the list was not seen.
            FileOutcome::Frozen | FileOutcome::Preserved => self.is_over(),
            FileOutcome::Unseen => false,
            _ => true,
        });
        if !is_known {
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
