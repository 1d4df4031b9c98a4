//! What was known before a place in the stream of records, as the records that said it: with them in front, a
//! replay can begin there.

use std::collections::HashMap;

use lu_common::event::{Kind, Record, session_id};

/// How many names of sessions are remembered: as many as the hooks remember to have sent.
const NAMES: usize = 16_384;

/// How many names of rules: those of the newest policies.
const RULES: usize = 256;

/// The newest of each.
#[derive(Debug, Default)]
pub struct Context {
    kernel: Option<Record>,
    /// The first reading of the running kernel's clocks: with the last one it tells the counter's frequency.
    first: Option<Record>,
    last: Option<Record>,
    names: HashMap<u64, Record>,
    /// The newest last.
    rules: Vec<Record>,
}

impl Context {
    /// Takes in one record.
    pub fn push(&mut self, record: &Record) {
        match record.kind() {
            Some(Kind::Kernel) => self.kernel = Some(*record),
            Some(Kind::Anchor) => {
                let boot = |record: &Record| record.anchor().map(|anchor| anchor.boot_id);
                if self.first.as_ref().and_then(boot) != boot(record) {
                    self.first = Some(*record);
                }
                self.last = Some(*record);
            }
            Some(Kind::Name) => {
                if self.names.len() >= NAMES {
                    self.names.clear();
                }
                if let Some(name) = record.session_name() {
                    self.names.insert(session_id(&name), *record);
                }
            }
            Some(Kind::Rule) => {
                let key = |record: &Record| {
                    let rule = record.rule_name();
                    let number = rule.map(|rule| (rule.generation, rule.number));
                    (record.is_emulated(), number)
                };
                self.rules.retain(|known| key(known) != key(record));
                if self.rules.len() >= RULES {
                    self.rules.remove(0);
                }
                self.rules.push(*record);
            }
            _ => {}
        }
    }

    /// All of it, in an order in which it can be taken in again.
    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        let mut names: Vec<Record> = self.names.values().copied().collect();
        names.sort_unstable_by_key(|name| (name.header.t_ns, name.header.seq));
        [self.kernel, self.first, self.last]
            .into_iter()
            .flatten()
            .chain(names)
            .chain(self.rules.iter().copied())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use lu_common::event::{RuleName, Section};

    use super::*;

    #[test]
    fn the_names_of_the_newest_policies_rules_are_said_again_and_each_once() {
        let mut context = Context::default();
        for generation in 0..10 {
            for number in 0..64 {
                let name = format!("rule {number} of {generation}");
                let rule = RuleName::new(generation, number, Section::Access, true, &name);
                let record = Record::made(Kind::Rule, 1, zerocopy::transmute!(rule));
                context.push(&record);
                context.push(&record);
            }
        }
        let records = context.records();
        assert_eq!(records.len(), RULES);
        let of_the_last =
            |record: &&Record| record.rule_name().map(|rule| rule.generation) == Some(9);
        assert_eq!(records.iter().filter(of_the_last).count(), 64);
    }
}
