//! Requests in words, and what is preserved meanwhile: for whoever tries a policy without a kernel.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use lu_common::event::FileKind;
use lu_common::policy::{
    Attribute, LEVELS, Name, Operation, Request, Standing, Text, TokenKey, Usage,
};
use serde::Deserialize;
use toml::Spanned;
use zerocopy::FromZeros as _;

use super::check;
use super::compile::{Machine, Resolve, text_of};
use super::error::{Error, Problem, Refused};
use super::file::{List, Number};
use super::source::has_session;
use super::value::{Wrong, number, session_name, size};

/// A request; what was not said is unknown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// What is asked for.
    pub operation: Operation,
    /// The session's name.
    pub session: Option<String>,
    /// The token.
    pub token: Option<u64>,
    /// The kind of file.
    pub kind: Option<FileKind>,
    /// The file's size, in bytes.
    pub bytes: Option<u64>,
    /// The caller's effective user.
    pub uid: Option<u64>,
    /// The caller's effective group.
    pub gid: Option<u64>,
    /// The caller's executable.
    pub exe: Option<String>,
    /// The caller's cgroup.
    pub cgroup: Option<String>,
}

impl Asked {
    /// Words like `preserve session=vm-1 token=3 uid=0`. An error says what is wrong, and what to do.
    pub fn parse(words: &[String]) -> Result<Self, String> {
        let all = Operation::ALL;
        let (first, rest) = words
            .split_first()
            .ok_or("what is asked for? Try: preserve session=vm-1 token=3")?;
        let operation = all
            .iter()
            .copied()
            .find(|operation| operation.name() == first)
            .ok_or_else(|| {
                let names: Vec<&str> = all.iter().map(|operation| operation.name()).collect();
                format!(
                    "there is no request `{first}`; expected one of {}",
                    names.join(", ")
                )
            })?;
        let mut asked = Self {
            operation,
            session: None,
            token: None,
            kind: None,
            bytes: None,
            uid: None,
            gid: None,
            exe: None,
            cgroup: None,
        };
        let mut seen = BTreeSet::new();
        for word in rest {
            let (key, value) = word.split_once('=').ok_or_else(|| {
                format!("`{word}` is not of the form key=value, like session=vm-1")
            })?;
            if !seen.insert(key) {
                return Err(format!("`{key}` is there twice"));
            }
            asked
                .set(key, value)
                .map_err(|(what, cure)| format!("{word}: {what}; {cure}"))?;
        }
        Ok(asked)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), (String, String)> {
        let operation = self.operation;
        let fits = match key {
            "session" => has_session(operation),
            "token" => matches!(
                operation,
                Operation::Preserve | Operation::Unpreserve | Operation::Restore
            ),
            "kind" | "bytes" => operation == Operation::Preserve,
            "uid" | "gid" | "exe" | "cgroup" => true,
            _ => {
                return Err((
                    format!("there is no `{key}`"),
                    "expected session, token, kind, bytes, uid, gid, exe or cgroup".to_owned(),
                ));
            }
        };
        if !fits {
            return Err((
                format!("{} has no {key}", operation.name()),
                "leave it out".to_owned(),
            ));
        }
        let id = |value| number(value, u64::from(u32::MAX));
        match key {
            "session" => {
                session_name(value)?;
                self.session = Some(value.to_owned());
            }
            "token" => self.token = Some(number(value, u64::MAX)?),
            "kind" => {
                let kinds = FileKind::ALL;
                let kind = kinds.iter().find(|kind| kind.name() == value);
                self.kind = Some(*kind.ok_or_else(|| {
                    let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
                    (
                        "there is no such kind of file".to_owned(),
                        format!("expected one of {}", names.join(", ")),
                    )
                })?);
            }
            "bytes" => self.bytes = Some(size(value)?),
            "uid" => self.uid = Some(id(value)?),
            "gid" => self.gid = Some(id(value)?),
            "exe" if value.starts_with('/') => self.exe = Some(value.to_owned()),
            "exe" => {
                return Err((
                    "this is no whole path".to_owned(),
                    "write it from the root on".to_owned(),
                ));
            }
            _ => {
                check::cgroup(value)?;
                self.cgroup = Some(value.to_owned());
            }
        }
        Ok(())
    }

    /// The same as `evaluate` is asked.
    #[must_use]
    pub fn request(&self, names: &Names) -> Request {
        let mut request = Request::new_zeroed();
        request.operation = self.operation as u32;
        for attribute in Attribute::ALL {
            if self.value(attribute).is_some() {
                request.known |= attribute.bit();
            }
        }
        if let Some(session) = &self.session {
            request.name = Name::new(session.as_bytes());
        }
        request.token = self.token.unwrap_or(0);
        request.kind = self.kind.map_or(0, |kind| kind as u64);
        request.bytes = self.bytes.unwrap_or(0);
        request.uid = self.uid.unwrap_or(0);
        request.gid = self.gid.unwrap_or(0);
        if let Some(path) = &self.exe {
            (request.device, request.inode) = names.file(Path::new(path));
        }
        if let Some(path) = &self.cgroup {
            let above: Vec<&Path> = Path::new(path).ancestors().collect();
            for (level, path) in above.into_iter().rev().enumerate().take(LEVELS) {
                request.cgroups[level] = names.group(path).0;
            }
        }
        request
    }

    /// What it says of an attribute; `None`: it is unknown.
    #[must_use]
    pub fn value(&self, attribute: Attribute) -> Option<String> {
        match attribute {
            Attribute::Session => self.session.clone(),
            Attribute::Token => self.token.map(|token| format!("{token}")),
            Attribute::Kind => self.kind.map(|kind| kind.name().to_owned()),
            Attribute::Bytes => self.bytes.map(|bytes| format!("{bytes}")),
            Attribute::Uid => self.uid.map(|uid| format!("{uid}")),
            Attribute::Gid => self.gid.map(|gid| format!("{gid}")),
            Attribute::Exe => self.exe.clone(),
            Attribute::Cgroup => self.cgroup.clone(),
        }
    }
}

/// This machine, and beside it all the paths that are not there, told apart by name: a policy can be tried before
/// it comes to the machine that it is for.
#[derive(Debug, Default)]
pub struct Names(RefCell<BTreeMap<PathBuf, u64>>);

impl Names {
    /// A number that no file has: devices' numbers have 32 bits, and inodes count from below.
    fn invented(&self, path: &Path) -> u64 {
        let mut names = self.0.borrow_mut();
        let next = u64::MAX - names.len() as u64;
        *names.entry(path.to_owned()).or_insert(next)
    }

    fn file(&self, path: &Path) -> (u64, u64) {
        Machine
            .exe(path)
            .unwrap_or_else(|_| (u64::MAX, self.invented(path)))
    }

    fn group(&self, path: &Path) -> (u64, u64) {
        let level = path.components().count().saturating_sub(1) as u64;
        Machine
            .cgroup(path)
            .unwrap_or_else(|_| (self.invented(path), level))
    }
}

impl Resolve for Names {
    fn exe(&self, path: &Path) -> io::Result<(u64, u64)> {
        Ok(self.file(path))
    }

    fn cgroup(&self, path: &Path) -> io::Result<(u64, u64)> {
        Ok(self.group(path))
    }
}

/// What is preserved, as a file says it.
#[derive(Debug, Default, Deserialize)]
#[serde(
    deny_unknown_fields,
    rename_all = "kebab-case",
    expecting = "keys: { sessions.vm-1.tokens = [1, 2], device-free = true }"
)]
pub(super) struct StateFile {
    sessions: Option<BTreeMap<String, SessionFile>>,
    device_free: Option<bool>,
    image_loaded: Option<bool>,
    no_lost_session: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "keys: { tokens = [1, 2], bytes = \"4GiB\" }"
)]
struct SessionFile {
    tokens: Option<List<Number>>,
    bytes: Option<Spanned<Number>>,
    restored: Option<List<Number>>,
}

/// What is preserved. What was not said is unknown, but where sessions are listed, there are no others.
#[derive(Clone, Debug, Default)]
pub struct State {
    sessions: Option<BTreeMap<Text, Session>>,
    is_device_free: Option<bool>,
    is_image_loaded: Option<bool>,
    is_no_session_lost: Option<bool>,
}

#[derive(Clone, Debug, Default)]
struct Session {
    tokens: BTreeSet<u64>,
    bytes: Option<u64>,
    restored: BTreeSet<u64>,
}

impl State {
    /// Reads TOML: `sessions.vm-1 = { tokens = [1, 2], bytes = "8GiB", restored = [] }`, `device-free`,
    /// `image-loaded` and `no-lost-session`, each optional.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut problems = Vec::new();
        let state = match toml::from_str(text) {
            Ok(file) => Self::read(file, &mut problems),
            Err(error) => {
                problems.push(Problem::from(error));
                Self::default()
            }
        };
        if problems.is_empty() {
            Ok(state)
        } else {
            Err(Error::Refused(Refused {
                name: "standing".to_owned(),
                text: text.to_owned(),
                problems,
            }))
        }
    }

    /// Understands what a file says.
    pub(super) fn read(file: StateFile, problems: &mut Vec<Problem>) -> Self {
        let sessions = file.sessions.map(|sessions| {
            let read = sessions.into_iter().map(|(name, file)| {
                let preserved = tokens(file.tokens, problems);
                let bytes = match file.bytes {
                    None => preserved.is_empty().then_some(0),
                    Some(bytes) => numbers(&[bytes], size, problems).pop(),
                };
                let session = Session {
                    tokens: preserved,
                    bytes,
                    restored: tokens(file.restored, problems),
                };
                (text_of(&name), session)
            });
            read.collect()
        });
        Self {
            sessions,
            is_device_free: file.device_free,
            is_image_loaded: file.image_loaded,
            is_no_session_lost: file.no_lost_session,
        }
    }

    /// As it stands for a request: with the file that it asks for.
    #[must_use]
    pub fn with<'a>(&'a self, asked: &'a Asked) -> Stands<'a> {
        Stands { state: self, asked }
    }
}

fn tokens(list: Option<List<Number>>, problems: &mut Vec<Problem>) -> BTreeSet<u64> {
    let values = list.map_or_else(Vec::new, |list| list.values);
    let read = numbers(&values, |text| number(text, u64::MAX), problems);
    read.into_iter().collect()
}

fn numbers(
    values: &[Spanned<Number>],
    read: impl Fn(&str) -> Result<u64, Wrong>,
    problems: &mut Vec<Problem>,
) -> Vec<u64> {
    let mut numbers = Vec::new();
    for value in values {
        let number = match value.get_ref() {
            Number::Natural(number) => read(&number.to_string()),
            Number::Text(text) => read(text),
        };
        match number {
            Ok(number) => numbers.push(number),
            Err((what, cure)) => problems.push(Problem::new(value.span(), what, cure)),
        }
    }
    numbers
}

/// See [`State::with`].
#[derive(Clone, Copy, Debug)]
pub struct Stands<'a> {
    state: &'a State,
    asked: &'a Asked,
}

impl Stands<'_> {
    /// What there is, and what is asked for beside it.
    fn beside(&self, files: usize, bytes: Option<u64>) -> Option<Usage> {
        let (mut files, mut bytes) = (files as u64, bytes?);
        if self.asked.operation == Operation::Preserve {
            files += 1;
            bytes = bytes.saturating_add(self.asked.bytes?);
        }
        Some(Usage { files, bytes })
    }
}

impl Standing for Stands<'_> {
    fn session(&self, name: &Text) -> Option<Usage> {
        if *name == Text::default() {
            return None;
        }
        let sessions = self.state.sessions.as_ref()?;
        let (files, bytes) = sessions.get(name).map_or((0, Some(0)), |session| {
            (session.tokens.len(), session.bytes)
        });
        if self.asked.session.as_deref().map(text_of) == Some(*name) {
            self.beside(files, bytes)
        } else {
            bytes.map(|bytes| Usage {
                files: files as u64,
                bytes,
            })
        }
    }

    fn in_all(&self) -> Option<Usage> {
        let sessions = self.state.sessions.as_ref()?.values();
        let files = sessions.clone().map(|session| session.tokens.len()).sum();
        let bytes = sessions
            .map(|session| session.bytes)
            .try_fold(0_u64, |sum, bytes| Some(sum.saturating_add(bytes?)));
        self.beside(files, bytes)
    }

    fn is_preserved(&self, of: &TokenKey) -> Option<bool> {
        let sessions = self.state.sessions.as_ref()?;
        Some(
            sessions
                .get(&of.session)
                .is_some_and(|session| session.tokens.contains(&of.token)),
        )
    }

    fn is_restored(&self, of: &TokenKey) -> Option<bool> {
        let sessions = self.state.sessions.as_ref()?;
        Some(
            sessions
                .get(&of.session)
                .is_some_and(|session| session.restored.contains(&of.token)),
        )
    }

    fn is_device_free(&self) -> Option<bool> {
        self.state.is_device_free
    }

    fn is_image_loaded(&self) -> Option<bool> {
        self.state.is_image_loaded
    }

    fn is_no_session_lost(&self) -> Option<bool> {
        self.state.is_no_session_lost
    }
}
