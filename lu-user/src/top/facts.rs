//! What the screens tell of one update, made once for each state of it.

use crate::export::{AttentionJson, attention};
use crate::gate::Gate;
use crate::timeline::{Blackout, BlackoutStart, FileOutcome, Part, Phase, PhaseName, Update};
use lu_common::uapi::Interface;

use super::State;

/// How it stands with a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It is over.
    Done,
    /// It goes on.
    Now,
    /// It is still to come.
    ToCome,
    /// The update ended without it.
    Never,
}

/// One phase of those that such an update goes through.
#[derive(Clone, Debug)]
pub struct Step {
    /// Which.
    pub name: PhaseName,
    /// How it stands.
    pub progress: Progress,
    /// What was seen of it.
    pub phase: Option<Phase>,
    /// When it began, where it goes on: that it has an end is not known yet.
    pub since_ns: Option<u64>,
    /// What it is made of.
    pub parts: Vec<Part>,
}

impl Step {
    /// When it began, in nanoseconds on the timeline's axis.
    pub fn start_ns(&self) -> Option<u64> {
        self.phase.and_then(|it| it.start_ns).or(self.since_ns)
    }

    /// How long it took.
    pub fn ns(&self) -> Option<u64> {
        self.phase?.ns.filter(|_| self.progress == Progress::Done)
    }
}

/// What the screens tell of an update.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The update's number.
    pub number: u64,
    /// The phases that such an update goes through, in order.
    pub steps: Vec<Step>,
    /// How many files of each outcome, in the order of [`FileOutcome::ALL`]; lu's own left out.
    pub files: [u64; FileOutcome::ALL.len()],
    /// All of them together, in bytes, as far as their sizes are known.
    pub bytes: u64,
    /// How many there are whose size is unknown.
    pub unsized_files: u64,
    /// How many sessions; lu's own left out.
    pub sessions: u64,
    /// The blackout, once it is known.
    pub blackout: Option<Blackout>,
    /// What it began with, and when.
    pub dark_since: Option<(BlackoutStart, u64)>,
    /// What needs somebody.
    pub attention: Vec<AttentionJson>,
    /// How much more of that there is.
    pub attention_left_out: u64,
}

impl Facts {
    /// Of an update.
    pub fn of(update: &Update) -> Self {
        let mut files = [0; FileOutcome::ALL.len()];
        let (mut bytes, mut unsized_files) = (0_u64, 0);
        for (session, _, file) in update.files() {
            if session.is_own() {
                continue;
            }
            files[file.outcome as usize] += 1;
            match file.bytes {
                Some(size) => bytes = bytes.saturating_add(size),
                None => unsized_files += 1,
            }
        }
        let sessions = update.sessions.values();
        let sessions =
            sessions.filter(|it| !it.is_own() && (it.name.is_some() || !it.files.is_empty()));
        let (attention, attention_left_out) = attention::of(update);
        Self {
            number: update.number,
            steps: steps(update, &files),
            files,
            bytes,
            unsized_files,
            sessions: sessions.count() as u64,
            blackout: update.blackout(),
            dark_since: update.dark_since(),
            attention,
            attention_left_out,
        }
    }

    /// All files.
    pub fn all_files(&self) -> u64 {
        self.files.iter().sum()
    }

    /// The phase that it is in.
    pub fn stage(&self) -> Option<&Step> {
        self.steps
            .iter()
            .find(|step| step.progress == Progress::Now)
    }
}

/// The phase that an update is in, by its files too.
fn stage(update: &Update, files: &[u64; FileOutcome::ALL.len()]) -> Option<PhaseName> {
    let waiting = files[FileOutcome::Frozen as usize] + files[FileOutcome::Preserved as usize];
    match update.stage()? {
        PhaseName::Restore if waiting == 0 => Some(PhaseName::WaitFinish),
        stage => Some(stage),
    }
}

fn steps(update: &Update, files: &[u64; FileOutcome::ALL.len()]) -> Vec<Step> {
    let is_v3 = update.interface == Some(Interface::V3);
    let seen = update.phases();
    let stage = stage(update, files);
    let is_over = update.ended_ns.is_some();
    let expected = PhaseName::ALL
        .iter()
        .filter(|name| is_v3 || !matches!(name, PhaseName::WaitPrepare | PhaseName::Prepare));
    expected
        .map(|&name| {
            let phase = seen.iter().find(|phase| phase.name == name).copied();
            let progress = match stage {
                Some(stage) if name < stage => Progress::Done,
                Some(stage) if name == stage => Progress::Now,
                Some(_) => Progress::ToCome,
                None if !is_over => Progress::ToCome,
                None if phase.is_some() => Progress::Done,
                None => Progress::Never,
            };
            let parts = phase.map_or_else(Vec::new, |phase| update.parts(&phase));
            Step {
                name,
                progress,
                phase,
                since_ns: since(update, name).filter(|_| progress == Progress::Now),
                parts,
            }
        })
        .collect()
}

/// When the phase began that goes on.
fn since(update: &Update, name: PhaseName) -> Option<u64> {
    let ended = |name| update.phase(name).map(|span| span.end_ns);
    match name {
        PhaseName::Preserve => Some(update.began_ns),
        PhaseName::WaitReboot => ended(PhaseName::Prepare),
        PhaseName::Reboot | PhaseName::Freeze => update.dark_since().map(|(_, since)| since),
        PhaseName::Shutdown => ended(PhaseName::Freeze),
        PhaseName::Userspace => update.booted_ns(),
        PhaseName::WaitFinish => ended(PhaseName::Restore),
        _ => None,
    }
}

/// The gate, where an update that may still go on to its kexec is shown, or none.
pub fn gate(state: &State, update: Option<&Update>) -> Option<Gate> {
    let is_asked = update.is_none_or(|update| {
        update.ended_ns.is_some() && state.timeline.incoming().is_none()
            || matches!(
                update.stage(),
                Some(PhaseName::Preserve | PhaseName::Prepare | PhaseName::WaitReboot)
            )
    });
    // What a machine was like when a recording ended is not recorded.
    let is_known = state.machine.is_some() || update.is_some_and(|it| it.ended_ns.is_none());
    (is_asked && is_known).then(|| state.gate())
}
