//! What sessions and files are called: some records have only what stands for them.

use std::collections::{BTreeMap, HashMap};

use lu_common::event::{Kind, Record, session_id};
use lu_common::policy::NO_RULE;

/// How many names are remembered, of each sort. A machine that makes more of them than that sees ids for some.
const REMEMBERED: usize = 1 << 21;

/// How many names of rules are remembered: those of 64 policies at least.
const RULES: usize = 4096;

/// The names that were seen.
#[derive(Clone, Debug, Default)]
pub struct Names {
    sessions: HashMap<u64, String>,
    /// The token under which each `struct file` was preserved last.
    tokens: HashMap<u64, u64>,
    /// What rules are called: by who asks them, generation and number.
    rules: BTreeMap<(bool, u64, u8), String>,
}

impl Names {
    /// Takes in a record, if it tells a name.
    pub fn push(&mut self, record: &Record) {
        if let Some(name) = record.session_name() {
            remember(&mut self.sessions, session_id(&name), shown(&name));
        } else if let Some(rule) = record.rule_name() {
            if self.rules.len() >= RULES {
                self.rules.pop_first();
            }
            let key = (record.is_emulated(), rule.generation, rule.number);
            self.rules.insert(key, shown(&rule.name));
        } else if record.kind() == Some(Kind::Preserve)
            && record.inner_ret() == Some(0)
            && let (Some(object), Some(token)) = (record.object(), record.token())
        {
            remember(&mut self.tokens, object, token);
        }
    }

    /// The token of the file that a record is about.
    #[must_use]
    pub fn token(&self, record: &Record) -> Option<u64> {
        record
            .token()
            .or_else(|| self.tokens.get(&record.object()?).copied())
    }

    /// The name of the rule that a verdict is by; its number, as `#5`, where the name was not seen.
    #[must_use]
    pub fn rule(&self, record: &Record) -> Option<String> {
        let judged = record.judged().filter(|judged| judged.rule != NO_RULE)?;
        let key = (record.is_emulated(), judged.generation, judged.rule);
        let name = self.rules.get(&key).cloned();
        Some(name.unwrap_or_else(|| format!("#{}", judged.rule)))
    }

    /// The name of a session; its id, as `#` and 16 digits, where the name was not seen.
    #[must_use]
    pub fn get(&self, id: u64) -> String {
        self.sessions
            .get(&id)
            .cloned()
            .unwrap_or_else(|| format!("#{id:016x}"))
    }

    /// The name of the session that a record is about.
    #[must_use]
    pub fn of(&self, record: &Record) -> Option<String> {
        record.session().map(|id| self.get(id))
    }

    /// Whether a record is about the session with this name.
    #[must_use]
    pub fn is(&self, record: &Record, name: &str) -> bool {
        record
            .session()
            .and_then(|id| self.sessions.get(&id))
            .is_some_and(|found| found == name)
    }
}

fn remember<T>(names: &mut HashMap<u64, T>, id: u64, name: T) {
    if names.len() >= REMEMBERED {
        names.clear();
    }
    names.insert(id, name);
}

/// A text up to its first NUL, with nothing in it that a terminal would obey.
#[must_use]
pub fn shown(name: &[u8]) -> String {
    let end = name
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(name.len());
    let mut text = String::new();
    for char in String::from_utf8_lossy(&name[..end]).chars() {
        if char.is_control() {
            text.extend(char.escape_debug());
        } else {
            text.push(char);
        }
    }
    text
}

/// Enums whose variants have a name in reports: [`serde`] writes and reads that name.
macro_rules! named {
    (
        $(#[$attribute:meta])*
        pub enum $name:ident { $($(#[$variant_attribute:meta])* $variant:ident = $text:literal,)* }
    ) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[derive(serde::Serialize, serde::Deserialize)]
        pub enum $name { $($(#[$variant_attribute])* #[serde(rename = $text)] $variant,)* }

        impl $name {
            /// Every one, in order.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The name in reports.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}
pub(crate) use named;
