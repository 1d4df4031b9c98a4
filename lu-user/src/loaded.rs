//! What is told of a policy that is loaded: itself, and what its rules are called.

use lu_common::event::{self, PolicyLoaded};

use crate::policy::{Compiled, Mode, RuleName};

/// What the rules of a policy are called, by number: payloads of
/// [`Kind::Rule`](lu_common::event::Kind::Rule).
#[must_use]
pub fn rule_names(compiled: &Compiled, generation: u64) -> Vec<event::RuleName> {
    let rules = compiled.rules.iter().zip(0..);
    let name = |(rule, number): (&RuleName, u8)| {
        let enforced = rule.mode == Mode::Enforce;
        event::RuleName::new(generation, number, rule.section, enforced, &rule.name)
    };
    rules.map(name).collect()
}

/// That a policy is loaded, by the process `pid`: the payload of
/// [`Kind::Policy`](lu_common::event::Kind::Policy).
#[must_use]
pub fn loaded(compiled: &Compiled, generation: u64, pid: u32) -> PolicyLoaded {
    let enforced = |rule: &&RuleName| rule.mode == Mode::Enforce;
    PolicyLoaded {
        generation,
        sha256: compiled.sha256,
        rules: compiled.rules.len() as u32,
        enforced: compiled.rules.iter().filter(enforced).count() as u32,
        loginuid: loginuid(pid),
        padding: 0,
        reserved: 0,
    }
}

/// The user that a process logged in as, whoever it is now.
fn loginuid(pid: u32) -> u32 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/loginuid"));
    text.ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(u32::MAX)
}
