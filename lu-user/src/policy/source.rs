//! A policy that was read, understood and checked; nothing of this machine is looked up yet.

use std::fs::{self, FileType, Metadata, OpenOptions};
use std::io::Read as _;
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use lu_common::event::{FileKind, Section};
use lu_common::policy::Operation;
use sha2::{Digest as _, Sha256};
use toml::Spanned;

use super::check;
use super::error::{Error, Problem, Refused};
use super::file::{self, Answer, Before, By, Condition, File, List, Mode, Number, Per, requests};
use super::value::{self, Interval, Pattern, Wrong};

/// The largest file that is read, in bytes.
pub const FILE_MOST: u64 = 1024 * 1024;

/// A policy's rules, as a file says them.
#[derive(Clone, Debug)]
pub struct Source {
    /// The file's name, for messages.
    pub name: String,
    /// Its text.
    pub text: String,
    /// SHA-256 of the text.
    pub sha256: [u8; 32],
    /// The mode of the rules that have none of their own.
    pub mode: Mode,
    /// Whether it stays in force when lu ends.
    pub persist: bool,
    /// The rules, in the order of their numbers: access, preserve, quota, require, gate.
    pub rules: Vec<Rule>,
}

/// A rule.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Its name, of which there is one.
    pub name: String,
    /// The bytes of the text where its name stands.
    pub span: Range<usize>,
    /// The line of its name, from 1.
    pub line: usize,
    /// Its part of the file.
    pub section: Section,
    /// Whether it is enforced.
    pub mode: Mode,
    /// What is done where it cannot be told whether it matches, or holds.
    pub on_error: Answer,
    /// With which errno it refuses.
    pub errno: u8,
    /// The requests that it speaks of.
    pub operations: Vec<Operation>,
    /// What it asks of a request.
    pub conditions: Conditions,
    /// What it says.
    pub says: Says,
}

/// What a rule says of the requests that it matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Says {
    /// The first such rule decides.
    Answer(Answer),
    /// At most so much.
    Quota {
        /// All sessions together, instead of each for itself.
        in_all: bool,
        /// Files at most.
        files: Option<u64>,
        /// Bytes at most.
        bytes: Option<u64>,
    },
    /// The session has these tokens preserved, or restored before a finish.
    Tokens(String, Vec<u64>),
    /// The session has at least so many files.
    Files(String, u64),
    /// A condition of the gate.
    Gate(Condition),
}

/// What a rule asks of a request: each that is not empty must be met, by one of its values.
#[derive(Clone, Debug, Default)]
pub struct Conditions {
    /// The session's name.
    pub session: Vec<Pattern>,
    /// The token.
    pub tokens: Vec<Interval>,
    /// The kind of file.
    pub kinds: Vec<FileKind>,
    /// The file's size, in bytes.
    pub bytes: Vec<Interval>,
    /// The caller's effective user.
    pub uid: Vec<Interval>,
    /// The caller's effective group.
    pub gid: Vec<Interval>,
    /// The caller's executable.
    pub exe: Vec<Spanned<String>>,
    /// The caller's cgroup, or one above it.
    pub cgroup: Vec<Spanned<String>>,
}

impl Rule {
    /// Whether it can refuse a request.
    #[must_use]
    pub fn can_refuse(&self) -> bool {
        self.says != Says::Answer(Answer::Allow) || self.on_error == Answer::Deny
    }
}

impl Source {
    /// Reads a file: a regular one of at most [`FILE_MOST`] bytes.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let name = path.display().to_string();
        let text = read_text(path)?;
        Self::parse(&name, &text)
    }

    /// Reads a text, which messages call `name`.
    pub fn parse(name: &str, text: &str) -> Result<Self, Error> {
        if text.trim().is_empty() {
            return Err(Error::File {
                name: name.to_owned(),
                what: "is empty; a policy begins with version = 1".to_owned(),
            });
        }
        let (file, problems) = File::parse(text);
        let persist = file.persist;
        let mut reader = Reader {
            lines: text.match_indices('\n').map(|(at, _)| at).collect(),
            mode: file.mode,
            problems,
            rules: Vec::new(),
        };
        reader.file(file);
        let mut problems = reader.problems;
        // Rules that could not be read would show as rules that are missing.
        if problems.is_empty() {
            problems.extend(check::rules(&reader.rules));
        }
        if problems.is_empty() {
            return Ok(Self {
                name: name.to_owned(),
                text: text.to_owned(),
                sha256: Sha256::digest(text.as_bytes()).into(),
                mode: reader.mode,
                persist,
                rules: reader.rules,
            });
        }
        problems.sort_by_key(|problem| problem.span.start);
        Err(Error::Refused(Refused {
            name: name.to_owned(),
            text: text.to_owned(),
            problems,
        }))
    }
}

/// The text of a file that somebody may have named by mistake: no device, no pipe, nothing over [`FILE_MOST`].
pub fn read_text(path: &Path) -> Result<String, Error> {
    let name = path.display().to_string();
    let wrong = |what: String| Error::File {
        name: name.clone(),
        what,
    };
    let cannot = |error: std::io::Error| wrong(format!("cannot be read: {error}"));
    let regular = |about: &Metadata| match kind(about.file_type()) {
        None => Ok(()),
        Some(kind) => Err(wrong(format!("is {kind}; name a regular file"))),
    };
    // Some devices act on being opened; what is there by then may be another file, a FIFO that nobody writes to.
    regular(&fs::metadata(path).map_err(cannot)?)?;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(cannot)?;
    regular(&file.metadata().map_err(cannot)?)?;
    let mut bytes = Vec::new();
    file.take(FILE_MOST + 1)
        .read_to_end(&mut bytes)
        .map_err(cannot)?;
    if bytes.len() as u64 > FILE_MOST {
        return Err(wrong(format!(
            "has over {}, and was not read: no such file has so much",
            crate::export::size(FILE_MOST)
        )));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let before = String::from_utf8_lossy(&error.as_bytes()[..at]);
        let line = before.matches('\n').count() + 1;
        let column = before
            .chars()
            .rev()
            .take_while(|char| *char != '\n')
            .count()
            + 1;
        Error::File {
            name: format!("{name}:{line}:{column}"),
            what: format!(
                "is no text: byte {at} is {:#04x}, which is no UTF-8; is this the right file?",
                error.as_bytes()[at]
            ),
        }
    })
}

/// What a file is, if not a regular one.
fn kind(of: FileType) -> Option<&'static str> {
    if of.is_file() {
        None
    } else if of.is_dir() {
        Some("a folder")
    } else if of.is_fifo() {
        Some("a pipe")
    } else if of.is_socket() {
        Some("a socket")
    } else {
        Some("a device")
    }
}

/// Understands what a file has.
struct Reader {
    /// Where lines end.
    lines: Vec<usize>,
    mode: Mode,
    problems: Vec<Problem>,
    rules: Vec<Rule>,
}

/// What all rules have.
struct Common {
    name: Spanned<String>,
    errno: Option<Spanned<String>>,
    on_error: Answer,
    mode: Option<Mode>,
}

impl Reader {
    fn file(&mut self, file: File) {
        for rule in file.access {
            self.access(rule);
        }
        for rule in file.preserve {
            self.preserve(rule);
        }
        for rule in file.quota {
            self.quota(rule);
        }
        for rule in file.require {
            self.require(rule);
        }
        for rule in file.gate {
            self.gate(rule);
        }
    }

    fn access(&mut self, rule: file::Access) {
        let mut operations = Vec::new();
        for request in &rule.requests.values {
            match requests().find(|operation| operation.name() == request.get_ref()) {
                Some(operation) => {
                    if rule.session.is_some() && !has_session(operation) {
                        self.wrong(
                            request.span(),
                            format!("{} asks for a session, and {operation} has none: the rule can never match it", quoted(&rule.name), operation = operation.name()),
                            format!("give {} a rule of its own, without `session`", operation.name()),
                        );
                    }
                    operations.push(operation);
                }
                None if request.get_ref() == Operation::Preserve.name() => self.wrong(
                    request.span(),
                    "what may be preserved is said by rules of another section",
                    "write a [[preserve]] rule",
                ),
                None => self.wrong(
                    request.span(),
                    format!("there is no request `{}`", request.get_ref()),
                    format!("expected one of {}", names(requests().map(Operation::name))),
                ),
            }
        }
        self.not_empty(&rule.requests, "requests");
        let mut conditions = self.by(rule.by);
        conditions.session = self.patterns(rule.session);
        let says = Says::Answer(*rule.verdict.get_ref());
        let common = Common {
            name: rule.name,
            errno: rule.errno,
            on_error: rule.on_error,
            mode: rule.mode,
        };
        let verdict = rule.verdict.span();
        let read = self.rule(common, Section::Access, operations, conditions, says);
        self.stranding(&read, verdict, rule.even_if_stranding);
        self.rules.push(read);
    }

    fn preserve(&mut self, rule: file::Preserve) {
        let mut conditions = self.by(rule.by);
        conditions.session = self.patterns(rule.session);
        conditions.tokens = self.tokens(rule.tokens);
        conditions.bytes = self.each(rule.bytes, "bytes", |number| match number {
            Number::Natural(number) => value::sizes(&number.to_string()),
            Number::Text(text) => value::sizes(text),
        });
        conditions.kinds = self.each(rule.kinds, "kinds", |name| {
            let kinds = FileKind::ALL;
            kinds
                .iter()
                .copied()
                .find(|kind| kind.name() == name)
                .ok_or_else(|| {
                    (
                        format!("there is no kind of file `{name}`"),
                        format!(
                            "expected one of {}",
                            names(kinds.iter().map(|kind| kind.name()))
                        ),
                    )
                })
        });
        let common = Common {
            name: rule.name,
            errno: rule.errno,
            on_error: rule.on_error,
            mode: rule.mode,
        };
        let says = Says::Answer(*rule.verdict.get_ref());
        let read = self.rule(
            common,
            Section::Preserve,
            vec![Operation::Preserve],
            conditions,
            says,
        );
        self.rules.push(read);
    }

    fn quota(&mut self, rule: file::Quota) {
        let in_all = *rule.per.get_ref() == Per::All;
        if let (true, Some(session)) = (in_all, &rule.session) {
            self.wrong(
                session.span.clone(),
                "this counts all sessions together, and not these alone",
                "say per = \"session\", or leave `session` out",
            );
        }
        if rule.files.is_none() && rule.bytes.is_none() {
            self.wrong(
                rule.name.span(),
                format!("{} limits nothing", quoted(&rule.name)),
                "say files = 64, bytes = \"64GiB\", or both",
            );
        }
        let bytes = rule.bytes.and_then(|bytes| {
            let size = match bytes.get_ref() {
                Number::Natural(number) => value::size(&number.to_string()),
                Number::Text(text) => value::size(text),
            };
            self.told(bytes.span(), size)
        });
        let conditions = Conditions {
            session: self.patterns(rule.session),
            ..Conditions::default()
        };
        let common = Common {
            name: rule.name,
            errno: rule.errno,
            on_error: rule.on_error,
            mode: rule.mode,
        };
        let says = Says::Quota {
            in_all,
            files: rule.files.map(Spanned::into_inner),
            bytes,
        };
        let read = self.rule(
            common,
            Section::Quota,
            vec![Operation::Preserve],
            conditions,
            says,
        );
        self.rules.push(read);
    }

    fn require(&mut self, rule: file::Require) {
        let session = rule.session.get_ref().clone();
        let named = if session.contains('*') {
            Err((
                "a requirement is about one session, and this is a pattern".to_owned(),
                "write the session's exact name".to_owned(),
            ))
        } else {
            value::session_name(&session)
        };
        self.told(rule.session.span(), named);
        let before = *rule.before.get_ref();
        let says = match (rule.tokens, rule.files) {
            (Some(tokens), None) => {
                let tokens = self.each(Some(tokens), "tokens", |token| match token {
                    Number::Natural(token) => Ok(*token),
                    Number::Text(text) => value::number(text, u64::MAX),
                });
                Says::Tokens(session, tokens)
            }
            (None, Some(files)) => {
                if *files.get_ref() == 0 {
                    self.wrong(
                        files.span(),
                        "0 files are always there: this asks for nothing",
                        "say how many there must be, or leave the rule out",
                    );
                }
                if before == Before::Finish {
                    self.wrong(
                        files.span(),
                        "before a finish it is tokens that must have been restored",
                        "say which: tokens = [1, 2]",
                    );
                }
                Says::Files(session, files.into_inner())
            }
            (Some(_), Some(files)) => {
                self.wrong(
                    files.span(),
                    "this asks for tokens and for a number of files",
                    "say one of them; the other can have a rule of its own",
                );
                return;
            }
            (None, None) => {
                self.wrong(
                    rule.name.span(),
                    format!("{} asks for nothing", quoted(&rule.name)),
                    "say tokens = [1, 2], or files = 2",
                );
                return;
            }
        };
        let operation = match before {
            Before::Kexec => Operation::Kexec,
            Before::Finish => Operation::Finish,
        };
        let common = Common {
            name: rule.name,
            errno: rule.errno,
            on_error: rule.on_error,
            mode: rule.mode,
        };
        let conditions = Conditions::default();
        let read = self.rule(common, Section::Require, vec![operation], conditions, says);
        self.stranding(&read, rule.before.span(), rule.even_if_stranding);
        self.rules.push(read);
    }

    fn gate(&mut self, rule: file::Gate) {
        let common = Common {
            name: rule.name,
            errno: rule.errno,
            on_error: rule.on_error,
            mode: rule.mode,
        };
        let says = Says::Gate(rule.condition);
        let conditions = Conditions::default();
        let operations = vec![Operation::Kexec];
        let read = self.rule(common, Section::Gate, operations, conditions, says);
        self.rules.push(read);
    }

    /// Puts a rule together.
    fn rule(
        &mut self,
        common: Common,
        section: Section,
        operations: Vec<Operation>,
        conditions: Conditions,
        says: Says,
    ) -> Rule {
        let span = common.name.span();
        let name = common.name.into_inner();
        let length = name.chars().count();
        if !(1..=64).contains(&length) || name.chars().any(char::is_control) {
            self.wrong(
                span.clone(),
                "this is no name for a rule",
                "a rule's name has 1 to 64 printable characters",
            );
        }
        let mut rule = Rule {
            line: self.lines.partition_point(|end| *end < span.start) + 1,
            name,
            span,
            section,
            mode: common.mode.unwrap_or(self.mode),
            on_error: common.on_error,
            errno: libc::EPERM as u8,
            operations,
            conditions,
            says,
        };
        if let Some(errno) = common.errno {
            let span = errno.span();
            if let Some(errno) = self.told(span.clone(), value::errno(errno.get_ref())) {
                rule.errno = errno;
            }
            if !rule.can_refuse() {
                self.wrong(
                    span,
                    "this rule refuses nothing, and has an errno",
                    "leave `errno` out",
                );
            } else if rule.operations.contains(&Operation::Kexec)
                && i32::from(rule.errno) != libc::EPERM
            {
                self.wrong(
                    span,
                    "a kexec can only be refused with EPERM: the kernel asks for CAP_SYS_BOOT there",
                    "leave `errno` out, or give kexec a rule of its own",
                );
            }
        }
        rule
    }

    /// What is not finished is stranded: a rule that can cause it must say that it is meant.
    fn stranding(&mut self, rule: &Rule, span: Range<usize>, is_meant: bool) {
        if rule.operations.contains(&Operation::Finish) && rule.can_refuse() && !is_meant {
            self.wrong(
                span,
                format!(
                    "\"{}\" can refuse finish, and strand what was preserved",
                    rule.name
                ),
                "say even-if-stranding = true in the rule if that is meant",
            );
        }
    }

    fn by(&mut self, by: Option<By>) -> Conditions {
        let by = by.unwrap_or_default();
        let id = |number: &Number| {
            let most = u64::from(u32::MAX);
            match number {
                Number::Natural(number) => {
                    value::number(&number.to_string(), most).map(Interval::only)
                }
                Number::Text(text) => Interval::parse(text, most, |text| value::number(text, most)),
            }
        };
        Conditions {
            uid: self.each(by.uid, "uid", id),
            gid: self.each(by.gid, "gid", id),
            exe: self.paths(by.exe, "exe", |path| {
                if path.contains('\0') {
                    Err((
                        "no path has a NUL: this never matches".to_owned(),
                        "leave it out".to_owned(),
                    ))
                } else if path.starts_with('/') {
                    Ok(())
                } else {
                    Err((
                        format!("`{path}` is no whole path"),
                        "write it from the root on, like /usr/bin/vmm".to_owned(),
                    ))
                }
            }),
            cgroup: self.paths(by.cgroup, "cgroup", check::cgroup),
            ..Conditions::default()
        }
    }

    fn paths(
        &mut self,
        list: Option<List<String>>,
        key: &str,
        check: impl Fn(&str) -> Result<(), Wrong>,
    ) -> Vec<Spanned<String>> {
        let Some(list) = list else {
            return Vec::new();
        };
        self.not_empty(&list, key);
        for path in &list.values {
            let checked = check(path.get_ref());
            self.told(path.span(), checked);
        }
        list.values
    }

    fn patterns(&mut self, list: Option<List<String>>) -> Vec<Pattern> {
        self.each(list, "session", |text| Pattern::parse(text))
    }

    fn tokens(&mut self, list: Option<List<Number>>) -> Vec<Interval> {
        self.each(list, "tokens", |number| match number {
            Number::Natural(number) => Ok(Interval::only(*number)),
            Number::Text(text) => {
                Interval::parse(text, u64::MAX, |text| value::number(text, u64::MAX))
            }
        })
    }

    fn each<T, R>(
        &mut self,
        list: Option<List<T>>,
        key: &str,
        read: impl Fn(&T) -> Result<R, Wrong>,
    ) -> Vec<R> {
        let Some(list) = list else {
            return Vec::new();
        };
        self.not_empty(&list, key);
        let mut values = Vec::new();
        for value in &list.values {
            values.extend(self.told(value.span(), read(value.get_ref())));
        }
        values
    }

    fn not_empty<T>(&mut self, list: &List<T>, key: &str) {
        if list.values.is_empty() {
            self.wrong(
                list.span.clone(),
                format!("`{key}` has nothing in it: the rule can never match"),
                "name at least one, or leave the rule out",
            );
        }
    }

    fn told<T>(&mut self, span: Range<usize>, result: Result<T, Wrong>) -> Option<T> {
        result
            .map_err(|(what, cure)| self.wrong(span, what, cure))
            .ok()
    }

    fn wrong(&mut self, span: Range<usize>, what: impl Into<String>, cure: impl Into<String>) {
        self.problems.push(Problem::new(span, what, cure));
    }
}

fn quoted(name: &Spanned<String>) -> String {
    format!("\"{}\"", name.get_ref())
}

fn names<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

/// Whether a request is about a session, at least in one of the interfaces.
#[must_use]
pub const fn has_session(operation: Operation) -> bool {
    matches!(
        operation,
        Operation::Create
            | Operation::Retrieve
            | Operation::Preserve
            | Operation::Restore
            | Operation::Finish
            | Operation::Receive
    )
}
