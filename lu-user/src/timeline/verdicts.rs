//! What a policy said in an update, other than a plain allow.

use std::collections::BTreeMap;

use lu_common::event::{Kind, Record};
use lu_common::policy::{Decision, Operation, Untold, tampered};

use super::names::{Names, named};
use super::trouble::Caller;

/// How many different verdicts an update remembers.
const REMEMBERED: usize = 1000;

/// Of how many verdicts of one sort the times are remembered.
const TIMES: usize = 100;

named! {
    /// Who asks the policy, and refuses.
    pub enum Enforcer {
        /// BPF programs at the kernel's LSM hooks.
        Kernel = "kernel-lsm",
        /// The emulated orchestrator itself.
        Emulated = "emulated-orchestrator",
    }
}

impl Enforcer {
    /// The one that a verdict is from.
    #[must_use]
    pub const fn of(record: &Record) -> Self {
        if record.is_emulated() {
            Self::Emulated
        } else {
            Self::Kernel
        }
    }

    /// For people.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Kernel => "the kernel (BPF LSM)",
            Self::Emulated => "the emulated orchestrator",
        }
    }
}

/// One sort of verdict.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Said {
    /// Who asked the policy.
    pub enforcer: Enforcer,
    /// A request got through that is not the one that was judged: what differs, in words. `None`: a verdict.
    pub differs: Option<Vec<&'static str>>,
    /// What was decided.
    pub decision: Decision,
    /// What was asked for; `None` where this version has no word for it.
    pub operation: Option<Operation>,
    /// The rule's name; its number as `#5`, where the name was not seen.
    pub rule: Option<String>,
    /// Whether what the rule asks for was unknown, so that its `on_error` decided.
    pub unsure: bool,
    /// With which errno it is refused, or would be.
    pub errno: Option<i32>,
    /// The session's name.
    pub session: Option<String>,
}

impl Said {
    /// What a record says, if it is a verdict.
    #[must_use]
    pub fn of(record: &Record, names: &Names) -> Option<Self> {
        let judged = record.judged()?;
        let is_tampered = record.kind() == Some(Kind::Tampered);
        Some(Self {
            enforcer: Enforcer::of(record),
            differs: is_tampered.then(|| differs(judged.differs)),
            // A number that is not known was written by a newer lu: nothing is allowed by it.
            decision: Decision::from_raw(judged.decision).unwrap_or(Decision::Deny),
            operation: Operation::from_raw(judged.operation),
            rule: names.rule(record),
            unsure: judged.unsure != 0,
            errno: Some(i32::from(judged.errno)).filter(|errno| *errno != 0),
            session: names.of(record),
        })
    }
}

/// What is not as it was judged, in words.
fn differs(bits: u8) -> Vec<&'static str> {
    let all = [
        (tampered::UNASKED, "unasked"),
        (tampered::SESSION, "session"),
        (tampered::TOKEN, "token"),
        (tampered::FILE, "file"),
        (tampered::BYTES, "bytes"),
    ];
    let set = all.iter().filter(|(bit, _)| bits & bit != 0);
    set.map(|(_, name)| *name).collect()
}

/// How often one sort of verdict came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// In all.
    pub count: u64,
    /// When the first hundred were, in nanoseconds (see [`super::Stretch`]).
    pub at_ns: Vec<u64>,
    /// When the last one was.
    pub last_ns: u64,
    /// Who asked, the last time.
    pub by: Option<Caller>,
    /// For which token, the last time.
    pub token: Option<u64>,
}

/// All of an update.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdicts {
    /// By sort.
    pub said: BTreeMap<Said, Times>,
    /// How many more there were, of sorts that are not remembered.
    pub left_out: u64,
    /// How many requests got through that were not the ones that were judged, in all.
    pub tampered: u64,
    /// How many verdicts were lost: nobody knows what they were.
    pub lost: u64,
    /// How many requests could not be judged.
    pub unjudged: u64,
}

impl Verdicts {
    pub(super) fn lose(&mut self, untold: Untold) {
        self.lost = self.lost.saturating_add(untold.ring_full);
        self.unjudged = self.unjudged.saturating_add(untold.unjudged);
        self.tampered = self.tampered.saturating_add(untold.tampered);
    }

    pub(super) fn push(&mut self, said: Said, record: &Record) {
        let is_tampered = u64::from(said.differs.is_some());
        self.tampered = self.tampered.saturating_add(is_tampered);
        // What is tampered with cannot be hidden behind what is refused.
        let most = match said.differs {
            Some(_) => 2 * REMEMBERED,
            None => REMEMBERED,
        };
        if self.said.len() >= most && !self.said.contains_key(&said) {
            self.left_out += 1;
            return;
        }
        let times = self.said.entry(said).or_default();
        times.count += 1;
        times.last_ns = record.header.t_ns;
        if times.at_ns.len() < TIMES {
            times.at_ns.push(record.header.t_ns);
        }
        times.by = Caller::of(record);
        times.token = record.token();
    }
}
