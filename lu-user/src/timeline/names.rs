//! What sessions are called: records have their ids.

use std::collections::HashMap;

use lu_common::event::{Record, session_id};

/// How many names are remembered. A machine that makes more of them than that sees ids for some.
const REMEMBERED: usize = 1 << 20;

/// The names that were seen.
#[derive(Clone, Debug, Default)]
pub struct Names(HashMap<u64, String>);

impl Names {
    /// Takes in a record, if it tells a name.
    pub fn push(&mut self, record: &Record) {
        if let Some(name) = record.session_name() {
            if self.0.len() >= REMEMBERED {
                self.0.clear();
            }
            self.0.insert(session_id(&name), shown(&name));
        }
    }

    /// The name of a session; its id, as `#` and 16 digits, where the name was not seen.
    #[must_use]
    pub fn get(&self, id: u64) -> String {
        self.0
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
            .and_then(|id| self.0.get(&id))
            .is_some_and(|found| found == name)
    }
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
