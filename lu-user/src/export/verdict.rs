//! What a policy says, as traces and the audit log tell it.

use std::fmt::Write as _;

use lu_common::event::{Kind, Record, Section};
use lu_common::policy::Operation;
use serde::Serialize;

use super::errno_name;
use crate::policy::hexadecimal;
use crate::timeline::{Enforcer, Names, Said, shown};

/// A verdict as JSON.
#[derive(Clone, Debug, Serialize)]
pub struct VerdictLine {
    /// Who asked the policy: `kernel-lsm` or `emulated-orchestrator`.
    pub enforced_by: Enforcer,
    /// `allow` (a rule's `on_error` let it go on), `would-deny` (it goes on) or `deny`.
    pub decision: &'static str,
    /// What was asked for.
    pub operation: &'static str,
    /// The rule's name; its number as `#5`, where the name was not seen; null where there is no rule.
    pub rule: Option<String>,
    /// With which errno it is refused, or would be.
    pub errno: Option<String>,
    /// Whether what the rule asks for was unknown, so that its `on_error` decided.
    pub unsure: bool,
    /// Of a request that is not the one that was judged: what differs (`unasked`, `session`, `token`, `file`,
    /// `bytes`). Null for a verdict.
    pub tampered: Option<Vec<&'static str>>,
    /// The policy that judged.
    pub generation: u64,
}

impl VerdictLine {
    /// What a record says, if it is a verdict.
    #[must_use]
    pub fn of(record: &Record, names: &Names) -> Option<Self> {
        let said = Said::of(record, names)?;
        Some(Self {
            enforced_by: said.enforcer,
            decision: said.decision.name(),
            operation: said.operation.map_or("unknown", Operation::name),
            rule: said.rule,
            errno: said.errno.map(errno_name),
            unsure: said.unsure,
            tampered: said.differs,
            generation: record.judged()?.generation,
        })
    }

    /// For people, behind the request.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        if let Some(differs) = &self.tampered {
            let _ = write!(
                text,
                " *** TAMPERED: got through, and is not what was judged ({}) ***",
                differs.join(", ")
            );
        } else {
            let errno = self.errno.as_deref().unwrap_or("no errno");
            let _ = match self.decision {
                "deny" => write!(text, " refused: {errno}"),
                "would-deny" => write!(text, " goes on, would be refused: {errno}"),
                _ => write!(text, " goes on"),
            };
        }
        if let Some(rule) = &self.rule {
            let _ = write!(text, " by rule \"{rule}\"");
        }
        if self.unsure {
            text.push_str(", which cannot be told to match");
        }
        let _ = write!(text, "; {}", self.enforced_by.title());
        text
    }
}

/// A rule's name as JSON.
#[derive(Clone, Debug, Serialize)]
pub struct RuleLine {
    /// The policy's generation.
    pub generation: u64,
    /// The rule's number in it.
    pub number: u8,
    /// The part of the policy that it is in.
    pub section: Option<&'static str>,
    /// Whether it is enforced; else it is told what it would refuse.
    pub enforced: bool,
    /// Its name, cut off after 48 bytes.
    pub name: String,
}

impl RuleLine {
    /// What a record of [`Kind::Rule`] says.
    #[must_use]
    pub fn of(record: &Record) -> Option<Self> {
        let rule = record.rule_name()?;
        Some(Self {
            generation: rule.generation,
            number: rule.number,
            section: Section::from_raw(rule.section).map(Section::name),
            enforced: rule.is_enforced != 0,
            name: shown(&rule.name),
        })
    }
}

/// A policy that was loaded, as JSON; the line's `pid`, `uid` and `comm` are whose doing it was.
#[derive(Clone, Debug, Serialize)]
pub struct PolicyLine {
    /// Counts the policies of one enforcer.
    pub generation: u64,
    /// Of its file, in hexadecimal digits.
    pub sha256: String,
    /// How many rules it has.
    pub rules: u32,
    /// Of these, how many are enforced.
    pub enforced: u32,
    /// `monitor` where none is enforced, `enforce` where all are, else `mixed`.
    pub mode: &'static str,
    /// The user that whoever loaded it logged in as; null: nobody logged in, or unknown.
    pub loginuid: Option<u32>,
    /// Who judges by it.
    pub enforced_by: Enforcer,
}

impl PolicyLine {
    /// What a record of [`Kind::Policy`] says.
    #[must_use]
    pub fn of(record: &Record) -> Option<Self> {
        let policy = record.policy_loaded()?;
        Some(Self {
            generation: policy.generation,
            sha256: hexadecimal(&policy.sha256),
            rules: policy.rules,
            enforced: policy.enforced,
            mode: match policy.enforced {
                0 => "monitor",
                enforced if enforced == policy.rules => "enforce",
                _ => "mixed",
            },
            loginuid: Some(policy.loginuid).filter(|uid| *uid != u32::MAX),
            enforced_by: Enforcer::of(record),
        })
    }
}

/// What a policy's programs could not do, as JSON.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct UntoldLine {
    /// Verdicts that were lost for want of room.
    pub verdicts: u64,
    /// Requests that could not be judged: let through where no rule is enforced, else refused (EAGAIN) unless they
    /// finish a session.
    pub unjudged: u64,
    /// What got through and was not what was judged, of which no more is known.
    pub tampered: u64,
}

impl UntoldLine {
    /// What a record of [`Kind::Untold`] says.
    #[must_use]
    pub fn of(record: &Record) -> Option<Self> {
        let untold = record.untold()?;
        Some(Self {
            verdicts: untold.ring_full,
            unjudged: untold.unjudged,
            tampered: untold.tampered,
        })
    }
}

/// What a policy's programs could not do, for people; `None`: nothing.
#[must_use]
pub fn untold(lost: u64, unjudged: u64) -> Option<String> {
    (lost > 0 || unjudged > 0).then(|| {
        format!(
            "{lost} verdicts were lost, and {unjudged} requests could not be judged, for want of room"
        )
    })
}

/// Whether a record is one that a policy, or what came of it, is told by.
#[must_use]
pub fn is_about_policy(record: &Record) -> bool {
    matches!(
        record.kind(),
        Some(Kind::Verdict | Kind::Tampered | Kind::Untold | Kind::Policy)
    )
}
