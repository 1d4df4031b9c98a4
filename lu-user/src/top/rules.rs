//! A policy's rules, and how often each decided.

use std::collections::BTreeMap;

use lu_common::event::{Kind, Record, Section};
use lu_common::policy::{Decision, NO_RULE};

use crate::export::{InForceJson, PolicyLine};
use crate::timeline::{Enforcer, shown};

/// How many rules are remembered: those of 64 policies at least.
const REMEMBERED: usize = 4096;

/// Who judges, by which policy, and the rule's number in it.
pub type Key = (Enforcer, u64, u8);

/// How often each rule has decided, as whoever judges counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// It allowed; `None` where only what is not a plain allow is told.
    pub allow: Option<u64>,
    /// It would have refused, and is not enforced.
    pub would_deny: u64,
    /// It refused.
    pub deny: u64,
    /// Of all these, those where something was unknown, so that its `on_error` decided.
    pub unsure: u64,
    /// What got through was not what was judged.
    pub tampered: u64,
}

/// A rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Its name; `None` where that was not seen.
    pub name: Option<String>,
    /// Its part of the policy.
    pub section: Option<Section>,
    /// Whether it is enforced.
    pub is_enforced: Option<bool>,
    /// How often it decided, since it was first heard of.
    pub counts: Counts,
}

/// All of them.
#[derive(Default)]
pub struct Rules {
    rules: BTreeMap<Key, Rule>,
    /// The policy that was loaded last, and by whom.
    pub loaded: Option<(PolicyLine, Option<String>)>,
}

impl Rules {
    pub(super) fn push(&mut self, record: &Record) {
        if let Some(name) = record.rule_name() {
            let key = (Enforcer::of(record), name.generation, name.number);
            let rule = self.entry(key);
            rule.name = Some(shown(&name.name));
            rule.section = Section::from_raw(name.section);
            rule.is_enforced = Some(name.is_enforced != 0);
        } else if let Some(loaded) = PolicyLine::of(record) {
            let by = record
                .has_task()
                .then(|| format!("{} (pid {})", shown(record.comm()), record.header.pid));
            self.loaded = Some((loaded, by));
        } else if let Some(judged) = record.judged() {
            let key = (Enforcer::of(record), judged.generation, judged.rule);
            let counts = &mut self.entry(key).counts;
            if record.kind() == Some(Kind::Tampered) {
                counts.tampered += 1;
                return;
            }
            match Decision::from_raw(judged.decision) {
                Some(Decision::WouldDeny) => counts.would_deny += 1,
                Some(Decision::Allow) => {}
                // A number that is not known was written by a newer lu: nothing is allowed by it.
                Some(Decision::Deny) | None => counts.deny += 1,
            }
            counts.unsure += u64::from(judged.unsure != 0);
        }
    }

    /// The kernel has said what is in force, and how often each rule decided.
    pub(super) fn count(&mut self, in_force: &InForceJson) {
        let Some(generation) = in_force.generation else {
            return;
        };
        for (told, number) in in_force.rules.iter().zip(0..) {
            let number = told.name.as_ref().map_or(NO_RULE, |_| number);
            let rule = self.entry((Enforcer::Kernel, generation, number));
            rule.name.clone_from(&told.name);
            let named = |section: &&Section| Some(section.name()) == told.section.as_deref();
            rule.section = Section::ALL.iter().find(named).copied();
            rule.is_enforced = told.enforced;
            rule.counts = Counts {
                allow: Some(told.allow),
                would_deny: told.would_deny,
                deny: told.deny,
                unsure: told.unsure,
                tampered: rule.counts.tampered,
            };
        }
    }

    fn entry(&mut self, key: Key) -> &mut Rule {
        if self.rules.len() >= REMEMBERED && !self.rules.contains_key(&key) {
            self.rules.pop_first();
        }
        self.rules.entry(key).or_default()
    }

    /// Those of the newest policy that was heard of; [`NO_RULE`] stands for what no rule decided.
    #[must_use]
    pub fn newest(&self) -> Vec<(&Key, &Rule)> {
        let loaded = self.loaded.as_ref();
        let loaded = loaded.map(|(policy, _)| (policy.enforced_by, policy.generation));
        let newest = loaded.or_else(|| {
            let last = self.rules.last_key_value();
            last.map(|((enforcer, generation, _), _)| (*enforcer, *generation))
        });
        let is_newest = |key: &Key| Some((key.0, key.1)) == newest;
        let rules = self.rules.iter().filter(|(key, _)| is_newest(key));
        rules
            .filter(|((.., number), rule)| *number != NO_RULE || rule.counts != Counts::default())
            .collect()
    }
}
