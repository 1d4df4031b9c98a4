//! What is in force in the kernel, and how often each rule has decided.

use lu_common::event::{RuleName, Section};
use lu_common::policy::{Account, Decision, InForce, RULES, Untold};
use serde::{Deserialize, Serialize};

use super::untold;
use crate::policy::hexadecimal;
use crate::timeline::shown;

/// The value of the field `schema`.
pub const IN_FORCE_SCHEMA: &str = "lu.policy.status/1";

/// What is in force. Null is unknown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InForceJson {
    /// [`IN_FORCE_SCHEMA`].
    pub schema: String,
    /// Null where nothing is.
    pub generation: Option<u64>,
    /// Of its file, in hex.
    pub sha256: Option<String>,
    /// In the order of their numbers; the last one counts where no rule decided.
    pub rules: Vec<RuleInForceJson>,
    /// What is preserved, as the kernel counts it.
    pub files: Option<u64>,
    /// In bytes.
    pub bytes: Option<u64>,
    /// How many sessions there are that nobody counted.
    pub uncounted_sessions: Option<u64>,
    /// Verdicts that were lost for want of room.
    pub lost: Option<u64>,
    /// Requests that could not be judged for want of room.
    pub unjudged: Option<u64>,
}

/// A rule, and how often it decided since its policy was put in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleInForceJson {
    /// Null: no rule decided.
    pub name: Option<String>,
    /// Its part of the policy.
    pub section: Option<String>,
    /// Whether it is enforced.
    pub enforced: Option<bool>,
    /// It allowed.
    pub allow: u64,
    /// It would have refused, and is not enforced.
    pub would_deny: u64,
    /// It refused.
    pub deny: u64,
    /// Of these, those where something was unknown.
    pub unsure: u64,
}

fn rules(in_force: &InForce) -> Vec<RuleInForceJson> {
    let named = |name: &RuleName| !name.name.starts_with(&[0]);
    in_force
        .counts
        .iter()
        .enumerate()
        .filter_map(|(number, counts)| {
            let name = in_force.names.get(number);
            // The last one is none.
            if number < RULES && !name.is_some_and(named) {
                return None;
            }
            let decided = |decision: Decision| counts.decided[decision as usize];
            Some(RuleInForceJson {
                name: name.map(|name| shown(&name.name)),
                section: name
                    .and_then(|name| Section::from_raw(name.section))
                    .map(|section| section.name().to_owned()),
                enforced: name.map(|name| name.is_enforced != 0),
                allow: decided(Decision::Allow),
                would_deny: decided(Decision::WouldDeny),
                deny: decided(Decision::Deny),
                unsure: counts.unsure,
            })
        })
        .collect()
}

impl InForceJson {
    /// Of what the kernel's maps say.
    #[must_use]
    pub fn new(
        in_force: Option<&InForce>,
        account: Option<&Account>,
        left: Option<&Untold>,
    ) -> Self {
        Self {
            schema: IN_FORCE_SCHEMA.to_owned(),
            generation: in_force.map(|in_force| in_force.policy.generation),
            sha256: in_force.map(|in_force| hexadecimal(&in_force.sha256)),
            rules: in_force.map(rules).unwrap_or_default(),
            files: account.map(|account| account.usage.files),
            bytes: account.map(|account| account.usage.bytes),
            uncounted_sessions: account.map(|account| account.unknown),
            lost: left.map(|left| left.ring_full),
            unjudged: left.map(|left| left.unjudged),
        }
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let (Some(generation), Some(sha256)) = (self.generation, &self.sha256) else {
            return "no policy persists on this machine\n".to_owned();
        };
        let mut text =
            format!("generation {generation}, sha256 {sha256}, enforced by the kernel (BPF LSM)\n");
        let mut line = |line: String| {
            text.push_str(&line);
            text.push('\n');
        };
        if let (Some(files), Some(bytes)) = (self.files, self.bytes) {
            line(format!(
                "{files} files of {} are preserved{}",
                bytesize::ByteSize(bytes),
                match self.uncounted_sessions {
                    Some(count @ 1..) =>
                        format!(", and what is in {count} sessions that nobody counted"),
                    _ => String::new(),
                }
            ));
        }
        line(format!(
            "{:<10}{:<9}{:>9}{:>12}{:>9}{:>9}  {}",
            "section", "mode", "allow", "would-deny", "deny", "unsure", "rule"
        ));
        for rule in &self.rules {
            line(format!(
                "{:<10}{:<9}{:>9}{:>12}{:>9}{:>9}  {}",
                rule.section.as_deref().unwrap_or(""),
                match rule.enforced {
                    Some(true) => "enforce",
                    Some(false) => "monitor",
                    None => "",
                },
                rule.allow,
                rule.would_deny,
                rule.deny,
                rule.unsure,
                rule.name.as_deref().unwrap_or("(no rule)")
            ));
        }
        if let (Some(lost), Some(unjudged)) = (self.lost, self.unjudged)
            && let Some(untold) = untold(lost, unjudged)
        {
            line(untold);
        }
        text
    }
}
