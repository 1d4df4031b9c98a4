//! The sessions and files of an update in the order in which they are listed.

use std::cmp::Reverse;
use std::collections::HashMap;

use lu_common::event::FileKind;

use crate::export::size;
use crate::timeline::{FileSpan, Owner, Session, Span, Update};

/// What is listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    /// Each session, and its files below it.
    #[default]
    Both,
    /// Files alone.
    Files,
    /// Sessions alone.
    Sessions,
}

impl Shape {
    pub(super) const fn next(self) -> Self {
        match self {
            Self::Both => Self::Files,
            Self::Files => Self::Sessions,
            Self::Sessions => Self::Both,
        }
    }
}

/// By what is sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// The session's name.
    Session,
    /// The file's token.
    Token,
    /// What sort of file.
    Kind,
    /// Its size.
    Size,
    /// Who preserved it.
    Owner,
    /// In which cgroup.
    Cgroup,
    /// What became of it.
    State,
    /// Time to preserve it.
    Preserve,
    /// Time to freeze it.
    Freeze,
    /// Time to restore it.
    Restore,
    /// Since it was preserved.
    Age,
}

impl Column {
    /// All, from left to right.
    pub const ALL: [Self; 11] = [
        Self::Session,
        Self::Token,
        Self::Kind,
        Self::Size,
        Self::State,
        Self::Preserve,
        Self::Freeze,
        Self::Restore,
        Self::Age,
        Self::Owner,
        Self::Cgroup,
    ];

    /// Its heading; the name of the field in a filter.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Token => "token",
            Self::Kind => "kind",
            Self::Size => "size",
            Self::Owner => "owner",
            Self::Cgroup => "cgroup",
            Self::State => "state",
            Self::Preserve => "preserve",
            Self::Freeze => "freeze",
            Self::Restore => "restore",
            Self::Age => "age",
        }
    }
}

/// The order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sort {
    /// By which column; `None`: as the sessions were created, and by token.
    pub column: Option<Column>,
    /// Whether it is turned around.
    pub is_reversed: bool,
}

/// A row: a session, or one of its files by its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The session's key.
    pub session: u64,
    /// The file's token.
    pub token: Option<u64>,
}

impl Row {
    /// What it stands for.
    #[must_use]
    pub fn of<'a>(&self, update: &'a Update) -> Option<(&'a Session, Option<&'a FileSpan>)> {
        let session = update.sessions.get(&self.session)?;
        match self.token {
            None => Some((session, None)),
            Some(token) => Some((session, Some(session.files.get(&token)?))),
        }
    }
}

/// What a session has in all.
#[derive(Clone, Copy, Debug, Default)]
pub struct Total {
    /// Files.
    pub files: u64,
    /// Their bytes, as far as they are known.
    pub bytes: u64,
    /// How many sizes are not.
    pub unknown: u64,
}

impl Total {
    fn of(session: &Session) -> Self {
        let files = session.files.values();
        files.fold(Self::default(), |sum, file| Self {
            files: sum.files + 1,
            bytes: sum.bytes.saturating_add(file.bytes.unwrap_or(0)),
            unknown: sum.unknown + u64::from(file.bytes.is_none()),
        })
    }
}

/// A filter: words that must all be met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    terms: Vec<(Option<String>, String)>,
}

impl Filter {
    /// Reads what was typed: plain words and `field:value`, in lower case or not.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let term = |word: &str| match word.split_once(':') {
            Some((field, value)) if field.chars().all(char::is_alphabetic) && !field.is_empty() => {
                (Some(field.to_lowercase()), value.to_lowercase())
            }
            _ => (None, word.to_lowercase()),
        };
        Self {
            terms: text.split_whitespace().map(term).collect(),
        }
    }

    /// Whether everything meets it.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// Whether something meets it that has these fields.
    #[must_use]
    pub fn meets(&self, has: impl Fn(Option<&str>, &str) -> bool) -> bool {
        let mut terms = self.terms.iter();
        terms.all(|(field, value)| has(field.as_deref(), value))
    }
}

/// Whether a text has another one in it, which is in lower case.
pub fn has(text: &str, lower: &str) -> bool {
    if text.is_ascii() {
        let (text, lower) = (text.as_bytes(), lower.as_bytes());
        return lower.is_empty()
            || text
                .windows(lower.len())
                .any(|window| window.eq_ignore_ascii_case(lower));
    }
    text.to_lowercase().contains(lower)
}

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// What is listed.
    pub shape: Shape,
    /// In which order.
    pub sort: Sort,
    /// Of these alone.
    pub filter: Filter,
}

/// The rows, and what each session has in all.
#[derive(Default)]
pub struct Rows {
    /// In order.
    pub all: Vec<Row>,
    /// By the session's key.
    pub totals: HashMap<u64, Total>,
    /// How many sessions and files there are that the filter leaves out.
    pub hidden: usize,
}

impl Rows {
    /// Lists an update.
    pub fn new(update: &Update, wanted: &Wanted, cgroups: &HashMap<u64, String>) -> Self {
        let mut rows = Self::default();
        let shape = match (wanted.shape, wanted.sort.column) {
            // Sorted by anything, files of different sessions stand next to each other.
            (Shape::Both, Some(_)) => Shape::Files,
            (shape, _) => shape,
        };
        let column = wanted.sort.column;
        let ranks = column.map_or_else(HashMap::new, |column| ranks(update, column, cgroups));
        let mut keys = Vec::new();
        for (&key, session) in &update.sessions {
            if session.name.is_none() && session.files.is_empty() {
                continue;
            }
            let total = Total::of(session);
            rows.totals.insert(key, total);
            let mut sorted_by = |file| {
                if let Some(column) = column {
                    keys.push(self::key(
                        update,
                        (key, session),
                        file,
                        total,
                        column,
                        &ranks,
                    ));
                }
            };
            let at = rows.all.len();
            if shape != Shape::Files {
                rows.all.push(Row {
                    session: key,
                    token: None,
                });
                sorted_by(None);
            }
            if shape != Shape::Sessions {
                for (&token, file) in &session.files {
                    let asked = Asked {
                        update,
                        cgroups,
                        session,
                        token,
                        file,
                    };
                    if wanted.filter.meets(|field, value| asked.has(field, value)) {
                        rows.all.push(Row {
                            session: key,
                            token: Some(token),
                        });
                        sorted_by(Some((token, file)));
                    } else {
                        rows.hidden += 1;
                    }
                }
            }
            // A session of whose files none is left stays where it meets the filter itself.
            if shape != Shape::Files
                && rows.all.len() == at + 1
                && !wanted.filter.is_empty()
                && !wanted
                    .filter
                    .meets(|field, value| session_has(session, field, value))
            {
                rows.all.truncate(at);
                keys.truncate(at);
                rows.hidden += 1;
            }
        }
        if column.is_some() {
            rows.sort(keys, wanted.sort.is_reversed);
        } else if wanted.sort.is_reversed {
            rows.all.reverse();
        }
        rows
    }

    /// Sorts by keys, one for each row; what is unknown comes last, whichever way.
    fn sort(&mut self, keys: Vec<Option<u64>>, is_reversed: bool) {
        let mut known = Vec::with_capacity(keys.len());
        let mut unknown = Vec::new();
        for (key, row) in keys.into_iter().zip(&self.all) {
            match key {
                Some(key) => known.push((key, known.len() as u32, *row)),
                None => unknown.push(*row),
            }
        }
        // Rows with the same key stay as they were.
        if is_reversed {
            known.sort_unstable_by_key(|(key, at, _)| (Reverse(*key), *at));
        } else {
            known.sort_unstable_by_key(|(key, at, _)| (*key, *at));
        }
        self.all.clear();
        self.all.extend(known.into_iter().map(|(.., row)| row));
        self.all.append(&mut unknown);
    }
}

/// By what a session is sorted, or one of its files.
fn key(
    update: &Update,
    (number, session): (u64, &Session),
    file: Option<(u64, &FileSpan)>,
    total: Total,
    column: Column,
    ranks: &HashMap<u64, u64>,
) -> Option<u64> {
    let ns = |span: Option<Span>| span.map(|span| span.ns());
    let Some((token, file)) = file else {
        return match column {
            Column::Session => ranks.get(&number).copied(),
            Column::Size => Some(total.bytes),
            Column::State => Some(session.outcome as u64),
            Column::Freeze => ns(session.freeze),
            Column::Restore => ns(session.retrieve),
            _ => None,
        };
    };
    let owner = || update.owners.get(file.owner?);
    match column {
        Column::Session => ranks.get(&number).copied(),
        Column::Token => Some(token),
        Column::Kind => Some(file.kind? as u64),
        Column::Size => file.bytes,
        Column::State => Some(file.outcome as u64),
        Column::Preserve => ns(file.preserve),
        Column::Freeze => ns(file.freeze),
        Column::Restore => ns(file.restore),
        // The oldest first is the longest age last.
        Column::Age => Some(u64::MAX - file.preserve?.start_ns),
        Column::Owner => ranks.get(&u64::from(owner()?.pid)).copied(),
        Column::Cgroup => ranks.get(&owner()?.cgroup_id?).copied(),
    }
}

/// Where texts stand in the order: sessions by their keys, owners by their pids, cgroups by their ids.
fn ranks(update: &Update, column: Column, cgroups: &HashMap<u64, String>) -> HashMap<u64, u64> {
    let mut texts: Vec<(String, u64)> = match column {
        Column::Session => {
            let sessions = update.sessions.iter();
            sessions
                .map(|(key, session)| (session.name.clone().unwrap_or_default(), *key))
                .collect()
        }
        Column::Owner => {
            let owners = update.owners.all().iter();
            owners
                .map(|owner| (owner.comm.to_string(), u64::from(owner.pid)))
                .collect()
        }
        Column::Cgroup => {
            let ids = update
                .owners
                .all()
                .iter()
                .filter_map(|owner| owner.cgroup_id);
            ids.map(|id| (cgroups.get(&id).cloned().unwrap_or_default(), id))
                .collect()
        }
        _ => Vec::new(),
    };
    texts.sort_unstable();
    texts.iter().map(|(_, key)| *key).zip(0..).collect()
}

fn session_has(session: &Session, field: Option<&str>, value: &str) -> bool {
    let name = session.name.as_deref().unwrap_or_default();
    match field {
        None => has(name, value) || has(session.outcome.name(), value),
        Some("session") => has(name, value),
        Some("state") => has(session.outcome.name(), value),
        Some(_) => false,
    }
}

/// What a filter may ask of a file.
struct Asked<'a> {
    update: &'a Update,
    cgroups: &'a HashMap<u64, String>,
    session: &'a Session,
    token: u64,
    file: &'a FileSpan,
}

impl Asked<'_> {
    fn has(&self, field: Option<&str>, value: &str) -> bool {
        match field {
            None => {
                let plain = ["session", "state", "kind", "token", "owner", "cgroup"];
                plain.iter().any(|field| self.has(Some(field), value))
            }
            Some("session") => has(self.session.name.as_deref().unwrap_or_default(), value),
            Some("state") => has(self.file.outcome.name(), value),
            Some("kind") => has(self.file.kind.map_or("unknown", FileKind::name), value),
            Some("token") => token_is(self.token, value),
            Some("size") => {
                let unknown = || "unknown".to_owned();
                has(&self.file.bytes.map_or_else(unknown, size), value)
            }
            Some("owner") => match self.owner() {
                Some(owner) => {
                    has(&owner.comm, value) || value.parse().is_ok_and(|pid: u32| pid == owner.pid)
                }
                None => has("unknown", value),
            },
            Some("cgroup") => {
                let id = self.owner().and_then(|owner| owner.cgroup_id);
                match id {
                    Some(id) => match self.cgroups.get(&id) {
                        Some(path) => has(path, value),
                        None => value.parse().is_ok_and(|other: u64| other == id),
                    },
                    None => has("unknown", value),
                }
            }
            // A field that there is not is met by nothing.
            Some(_) => false,
        }
    }

    fn owner(&self) -> Option<&Owner> {
        self.update.owners.get(self.file.owner?)
    }
}

/// Whether a token is the one that was written, in decimal or hexadecimal digits.
fn token_is(token: u64, value: &str) -> bool {
    match value.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).is_ok_and(|it| it == token),
        None => value.parse().is_ok_and(|it: u64| it == token),
    }
}
