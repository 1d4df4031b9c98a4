//! Policies judged the slow way: rules are walked one by one, names and paths are compared as text.
//!
//! Random policies are written as files, so that all of the way is held against it: reading, compiling and
//! `evaluate`.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use lu_common::event::{FileKind, session_id_of};
use lu_common::policy::{
    Attribute, Decision, NO_RULE, Name, Operation, Policy, RULES, Request, Standing, Text,
    TokenKey, Usage, Verdict, evaluate,
};
use lu_user::policy::{Error, Resolve, Source, compile};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use zerocopy::FromZeros as _;

/// Numbers that look random, from a seed (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.roll() % end as u64) as usize
    }

    fn one_in(&mut self, of: usize) -> bool {
        self.below(of) == 0
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }

    fn some<T>(&mut self, most: usize, mut one: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..=self.below(most)).map(|_| one(self)).collect()
    }
}

/// Few, so that rules and requests meet; with shared beginnings and ends, and bytes that are no letters.
const NAMES: &[&str] = &[
    "v",
    "vm",
    "vm-1",
    "vm-11",
    "vm-1-1",
    "wm-1",
    "\u{1}",
    "é\t\"\\",
    "*",
    "0123456701234567",
    "012345670123456701234567012345670123456701234567012345670123456",
    "112345670123456701234567012345670123456701234567012345670123456",
    "012345670123456701234567012345670123456701234567012345670123457",
];
const TOKENS: &[u64] = &[
    0,
    1,
    2,
    7,
    8,
    15,
    16,
    0x7fff_ffff_ffff_ffff,
    u64::MAX - 1,
    u64::MAX,
];
const SIZES: &[u64] = &[0, 1, 4095, 4096, 1 << 30, (1 << 30) + 1, i64::MAX as u64];
const IDS: &[u64] = &[0, 1, 999, 1000, 1001, 0xffff_fffe, 0xffff_ffff];
/// The last is not there.
const EXES: &[&str] = &["/usr/bin/vmm", "/usr/bin/vm", "/opt/lu", "/gone"];
/// The last is not there.
const CGROUPS: &[&str] = &[
    "/",
    "/a",
    "/a/b",
    "/a/b/c",
    "/ab",
    "/1/2/3/4/5/6/7/8/9/10/11/12/13/14/15",
    "/gone",
];
/// Where callers are.
const CALLERS: &[&str] = &[
    "/",
    "/a",
    "/a/b",
    "/a/b/x",
    "/a/bc",
    "/ab",
    "/1/2/3/4/5/6/7/8/9/10/11/12/13/14/15",
    "/c/d",
];
const ERRNOS: &[(&str, u8)] = &[("EPERM", 1), ("EACCES", 13), ("EBUSY", 16), ("EDQUOT", 122)];

/// The machine of these paths: an inode for each.
struct Machine;

impl Resolve for Machine {
    fn exe(&self, path: &Path) -> io::Result<(u64, u64)> {
        let path = path.to_str().unwrap_or_default();
        exe(path).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn cgroup(&self, path: &Path) -> io::Result<(u64, u64)> {
        let path = path.to_str().unwrap_or_default();
        if path == "/gone" {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok((cgroup(path), parts(path).len() as u64))
    }
}

/// Two of them differ in one number alone.
fn exe(path: &str) -> Option<(u64, u64)> {
    match path {
        "/usr/bin/vmm" => Some((8, 1)),
        "/usr/bin/vm" => Some((8, 2)),
        "/opt/lu" => Some((9, 1)),
        _ => None,
    }
}

fn parts(path: &str) -> Vec<&str> {
    path.split('/').filter(|part| !part.is_empty()).collect()
}

/// A cgroup's id: of any path, so that callers can be where no rule speaks of.
fn cgroup(path: &str) -> u64 {
    parts(path).iter().fold(1, |id, part| {
        part.bytes()
            .fold(id.wrapping_mul(1_000_003), |id: u64, byte| {
                id.wrapping_mul(31).wrapping_add(u64::from(byte))
            })
    })
}

/// A condition of a rule, as its file has it.
#[derive(Clone, Debug)]
enum Asked {
    Session(Vec<String>),
    Tokens(Vec<(u64, u64)>),
    Kinds(Vec<FileKind>),
    Bytes(Vec<(u64, u64)>),
    Uid(Vec<(u64, u64)>),
    Gid(Vec<(u64, u64)>),
    Exe(Vec<&'static str>),
    Cgroup(Vec<&'static str>),
}

#[derive(Clone, Debug)]
enum Body {
    Answer {
        deny: bool,
    },
    Quota {
        in_all: bool,
        files: Option<u64>,
        bytes: Option<u64>,
    },
    Tokens {
        session: String,
        tokens: Vec<u64>,
        finish: bool,
    },
    Files {
        session: String,
        files: u64,
    },
    Gate(&'static str),
}

/// A rule, before it is written.
#[derive(Clone, Debug)]
struct Model {
    section: usize,
    operations: Vec<Operation>,
    asked: Vec<Asked>,
    body: Body,
    enforce: Option<bool>,
    deny_on_error: bool,
    errno: u8,
}

const SECTIONS: [&str; 5] = ["access", "preserve", "quota", "require", "gate"];

fn range(dice: &mut Dice, of: &[u64]) -> (u64, u64) {
    let (one, other) = (dice.pick(of), dice.pick(of));
    (one.min(other), one.max(other))
}

fn pattern(dice: &mut Dice) -> String {
    let name = dice.pick(&NAMES[..NAMES.len()]).replace('*', "+");
    let mut cut = |name: &str| {
        let places: Vec<usize> = name.char_indices().map(|(at, _)| at).collect();
        dice.pick(&places)
    };
    match cut("four") {
        0 => name,
        1 => format!("{}*", &name[..cut(&name)]),
        2 => format!("*{}", &name[cut(&name)..]),
        _ => {
            let (one, other) = (cut(&name), cut(&name));
            format!("{}*{}", &name[..one], &name[other.max(one)..])
        }
    }
}

/// Conditions that rules of access and of preserve can have.
fn conditions(dice: &mut Dice) -> Vec<Asked> {
    let mut asked = Vec::new();
    if dice.one_in(2) {
        asked.push(Asked::Session(dice.some(3, pattern)));
    }
    if dice.one_in(4) {
        asked.push(Asked::Uid(dice.some(3, |dice| range(dice, IDS))));
    }
    if dice.one_in(4) {
        asked.push(Asked::Gid(dice.some(3, |dice| range(dice, IDS))));
    }
    if dice.one_in(4) {
        asked.push(Asked::Exe(dice.some(2, |dice| dice.pick(EXES))));
    }
    if dice.one_in(4) {
        asked.push(Asked::Cgroup(dice.some(2, |dice| dice.pick(CGROUPS))));
    }
    asked
}

fn model(seed: u64) -> Model {
    let dice = &mut Dice(seed);
    let section = dice.pick(&[0, 0, 0, 1, 1, 1, 1, 2, 3, 4]);
    let mut asked = Vec::new();
    let mut operations = vec![Operation::Preserve];
    let mut body = Body::Answer {
        deny: dice.one_in(2),
    };
    let has_session = [
        Operation::Create,
        Operation::Retrieve,
        Operation::Restore,
        Operation::Finish,
        Operation::Receive,
    ];
    if section < 2 {
        asked = conditions(dice);
    }
    match section {
        0 if matches!(asked.first(), Some(Asked::Session(_))) => {
            operations = dice.some(4, |dice| dice.pick(&has_session));
        }
        0 => {
            operations = dice.some(4, |dice| dice.pick(Operation::ALL));
            operations.retain(|operation| *operation != Operation::Preserve);
            if operations.is_empty() {
                operations.push(Operation::Open);
            }
        }
        1 => {
            if dice.one_in(3) {
                asked.push(Asked::Tokens(dice.some(3, |dice| range(dice, TOKENS))));
            }
            if dice.one_in(3) {
                asked.push(Asked::Kinds(dice.some(3, |dice| dice.pick(FileKind::ALL))));
            }
            if dice.one_in(3) {
                asked.push(Asked::Bytes(dice.some(3, |dice| range(dice, SIZES))));
            }
        }
        2 => {
            let in_all = dice.one_in(2);
            if !in_all && dice.one_in(2) {
                asked.push(Asked::Session(dice.some(3, pattern)));
            }
            let files = dice.below(4) as u64;
            body = Body::Quota {
                in_all,
                files: Some(files).filter(|files| *files < 3),
                bytes: Some(dice.below(4) as u64).filter(|bytes| files == 3 || *bytes < 3),
            };
        }
        3 => {
            let session = dice.pick(NAMES).replace('*', "+");
            let finish = dice.one_in(2);
            body = if finish || dice.one_in(2) {
                let tokens = dice.some(3, |dice| dice.pick(TOKENS));
                Body::Tokens {
                    session,
                    tokens,
                    finish,
                }
            } else {
                Body::Files {
                    session,
                    files: 1 + dice.below(3) as u64,
                }
            };
            operations = vec![if finish {
                Operation::Finish
            } else {
                Operation::Kexec
            }];
        }
        _ => {
            body = Body::Gate(dice.pick(&["device-free", "image-loaded", "no-lost-session"]));
            operations = vec![Operation::Kexec];
        }
    }
    let mut rule = Model {
        section,
        operations,
        asked,
        body,
        enforce: dice.pick(&[None, None, Some(true), Some(false)]),
        deny_on_error: dice.one_in(3),
        errno: dice.pick(ERRNOS).1,
    };
    if rule.operations.contains(&Operation::Kexec) || !rule.can_refuse() {
        rule.errno = 1;
    }
    rule
}

impl Model {
    fn can_refuse(&self) -> bool {
        !matches!(self.body, Body::Answer { deny: false }) || self.deny_on_error
    }

    /// The rule as a file has it.
    fn write(&self, name: usize) -> String {
        let mut lines = vec![
            format!("[[{}]]", SECTIONS[self.section]),
            format!("name = \"rule {name}\""),
        ];
        let mut by = Vec::new();
        for asked in &self.asked {
            match asked {
                Asked::Session(names) => lines.push(format!("session = {}", quoted(names))),
                Asked::Tokens(ranges) => lines.push(format!("tokens = {}", ranged(ranges))),
                Asked::Bytes(ranges) => lines.push(format!("bytes = {}", ranged(ranges))),
                Asked::Kinds(kinds) => {
                    let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
                    lines.push(format!("kinds = {}", quoted(&names)));
                }
                Asked::Uid(ranges) => by.push(format!("uid = {}", ranged(ranges))),
                Asked::Gid(ranges) => by.push(format!("gid = {}", ranged(ranges))),
                Asked::Exe(paths) => by.push(format!("exe = {}", quoted(paths))),
                Asked::Cgroup(paths) => by.push(format!("cgroup = {}", quoted(paths))),
            }
        }
        if !by.is_empty() {
            lines.push(format!("by = {{ {} }}", by.join(", ")));
        }
        if self.section == 0 {
            let names: Vec<&str> = self.operations.iter().map(|it| it.name()).collect();
            lines.push(format!("requests = {}", quoted(&names)));
        }
        match &self.body {
            Body::Answer { deny } => {
                lines.push(format!(
                    "verdict = \"{}\"",
                    if *deny { "deny" } else { "allow" }
                ));
            }
            Body::Quota {
                in_all,
                files,
                bytes,
            } => {
                lines.push(format!(
                    "per = \"{}\"",
                    if *in_all { "all" } else { "session" }
                ));
                lines.extend(files.map(|files| format!("files = {files}")));
                lines.extend(bytes.map(|bytes| format!("bytes = \"{bytes}B\"")));
            }
            Body::Tokens {
                session,
                tokens,
                finish,
            } => {
                let tokens: Vec<String> =
                    tokens.iter().map(|token| format!("{token:#x}")).collect();
                lines.push(format!("session = {}", quote(session)));
                lines.push(format!("tokens = {}", quoted(&tokens)));
                lines.push(format!(
                    "before = \"{}\"",
                    if *finish { "finish" } else { "kexec" }
                ));
            }
            Body::Files { session, files } => {
                lines.push(format!(
                    "session = {}\nfiles = {files}\nbefore = \"kexec\"",
                    quote(session)
                ));
            }
            Body::Gate(condition) => lines.push(format!("condition = \"{condition}\"")),
        }
        if matches!(self.section, 0 | 3) {
            lines.push("even-if-stranding = true".to_owned());
        }
        if self.can_refuse() {
            let name = ERRNOS.iter().find(|(_, errno)| *errno == self.errno);
            lines.extend(name.map(|(name, _)| format!("errno = \"{name}\"")));
        }
        if self.deny_on_error {
            lines.push("on_error = \"deny\"".to_owned());
        }
        if let Some(enforce) = self.enforce {
            lines.push(format!(
                "mode = \"{}\"",
                if enforce { "enforce" } else { "monitor" }
            ));
        }
        lines.push("\n".to_owned());
        lines.join("\n")
    }
}

fn quote(text: &str) -> String {
    let escaped: String = text
        .chars()
        .map(|char| match char {
            '"' | '\\' => format!("\\{char}"),
            char if char.is_control() => format!("\\u{:04x}", char as u32),
            char => char.to_string(),
        })
        .collect();
    format!("\"{escaped}\"")
}

fn quoted<T: AsRef<str>>(values: &[T]) -> String {
    let values: Vec<String> = values.iter().map(|value| quote(value.as_ref())).collect();
    if let [value] = &values[..] {
        value.clone()
    } else {
        format!("[{}]", values.join(", "))
    }
}

fn ranged(ranges: &[(u64, u64)]) -> String {
    let texts: Vec<String> = ranges
        .iter()
        .map(|(first, last)| format!("{first}..={last}"))
        .collect();
    quoted(&texts)
}

/// What a request says, as a person would write it down; `None` is unknown.
#[derive(Clone, Debug)]
struct Asks {
    operation: Operation,
    session: Option<Vec<u8>>,
    token: Option<u64>,
    kind: Option<FileKind>,
    bytes: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    exe: Option<&'static str>,
    cgroup: Option<&'static str>,
}

fn asks(dice: &mut Dice) -> Asks {
    fn known<T>(dice: &mut Dice, value: T) -> Option<T> {
        (!dice.one_in(12)).then_some(value)
    }
    let mut name = dice.pick(NAMES).as_bytes().to_vec();
    match dice.below(12) {
        0 => name.clear(),
        1 => name.truncate(dice.below(name.len() + 1)),
        2 => name.push(dice.pick(b"1-\xff")),
        3 => {
            let at = dice.below(name.len());
            name[at] = dice.pick(b"1v\xff\x80\x01");
        }
        4 => {
            name = (0..dice.below(64))
                .map(|_| 1 + dice.below(255) as u8)
                .collect();
        }
        _ => {}
    }
    name.truncate(63);
    let near = |dice: &mut Dice, of: &[u64]| {
        let number = dice.pick(of);
        match dice.below(4) {
            0 => number.saturating_add(1),
            1 => number.saturating_sub(1),
            _ => number,
        }
    };
    let (token, bytes, uid, gid) = (
        near(dice, TOKENS),
        near(dice, SIZES),
        near(dice, IDS),
        near(dice, IDS),
    );
    let kind = dice.pick(FileKind::ALL);
    let (exe, cgroup) = (dice.pick(EXES), dice.pick(CALLERS));
    Asks {
        operation: if dice.one_in(2) {
            Operation::Preserve
        } else {
            dice.pick(Operation::ALL)
        },
        session: known(dice, name),
        token: known(dice, token),
        kind: known(dice, kind),
        bytes: known(dice, bytes),
        uid: known(dice, uid),
        gid: known(dice, gid),
        exe: known(dice, exe),
        cgroup: known(dice, cgroup),
    }
}

impl Asks {
    /// The same as the kernel's programs have it. What is unknown has numbers too, that mean nothing.
    fn request(&self, dice: &mut Dice) -> Request {
        let mut request = Request::new_zeroed();
        request.operation = self.operation as u32;
        let mut is = |attribute: Attribute, is_known: bool| {
            if is_known {
                request.known |= attribute.bit();
            }
        };
        is(Attribute::Session, self.session.is_some());
        is(Attribute::Token, self.token.is_some());
        is(Attribute::Kind, self.kind.is_some());
        is(Attribute::Bytes, self.bytes.is_some());
        is(Attribute::Uid, self.uid.is_some());
        is(Attribute::Gid, self.gid.is_some());
        is(Attribute::Exe, self.exe.is_some());
        is(Attribute::Cgroup, self.cgroup.is_some());
        let name = self.session.clone().unwrap_or_default();
        request.name = Name::new(&name);
        request.token = self.token.unwrap_or_else(|| dice.roll());
        request.kind = self.kind.map_or_else(|| dice.roll(), |kind| kind as u64);
        request.bytes = self.bytes.unwrap_or_else(|| dice.roll());
        request.uid = self.uid.unwrap_or_else(|| dice.roll());
        request.gid = self.gid.unwrap_or_else(|| dice.roll());
        // A program that no rule names is on the same file system as those that rules name.
        (request.device, request.inode) = self.exe.and_then(exe).unwrap_or((8, 7));
        if let Some(path) = self.cgroup {
            let parts = parts(path);
            for level in 0..=parts.len() {
                request.cgroups[level] = cgroup(&format!("/{}", parts[..level].join("/")));
            }
        }
        request
    }

    fn text(&self) -> Text {
        text(self.session.as_deref().unwrap_or_default())
    }
}

fn text(name: &[u8]) -> Text {
    Name::new(name).text
}

fn key(session: &[u8], token: u64) -> TokenKey {
    TokenKey {
        session: text(session),
        token,
    }
}

/// What is preserved: an answer for each question, small numbers and now and then unknown.
struct Answers(u64);

impl Answers {
    fn answer(&self, question: u64, about: u64) -> Dice {
        let mut dice = Dice(self.0 ^ question.wrapping_mul(0x1234_5677) ^ about);
        dice.roll();
        dice
    }

    fn usage(&self, question: u64, about: u64) -> Option<Usage> {
        let mut dice = self.answer(question, about);
        (!dice.one_in(6)).then(|| Usage {
            files: dice.below(4) as u64,
            bytes: dice.below(4) as u64,
        })
    }

    fn is(&self, question: u64, about: u64) -> Option<bool> {
        self.answer(question, about)
            .pick(&[Some(true), Some(true), Some(true), Some(false), None])
    }
}

impl Standing for Answers {
    fn session(&self, name: &Text) -> Option<Usage> {
        self.usage(1, session_id_of(name))
    }
    fn in_all(&self) -> Option<Usage> {
        self.usage(2, 0)
    }
    fn is_preserved(&self, of: &TokenKey) -> Option<bool> {
        self.is(3, session_id_of(&of.session) ^ of.token)
    }
    fn is_restored(&self, of: &TokenKey) -> Option<bool> {
        self.is(4, session_id_of(&of.session) ^ of.token)
    }
    fn is_device_free(&self) -> Option<bool> {
        self.is(5, 0)
    }
    fn is_image_loaded(&self) -> Option<bool> {
        self.is(6, 0)
    }
    fn is_no_session_lost(&self) -> Option<bool> {
        self.is(7, 0)
    }
}

/// Whether a name is as a pattern says.
fn is_like(name: &[u8], pattern: &str) -> bool {
    match pattern.split_once('*') {
        None => name == pattern.as_bytes(),
        Some((first, last)) => {
            name.len() >= first.len() + last.len()
                && name.starts_with(first.as_bytes())
                && name.ends_with(last.as_bytes())
        }
    }
}

fn is_in(number: u64, ranges: &[(u64, u64)]) -> bool {
    ranges
        .iter()
        .any(|(first, last)| (*first..=*last).contains(&number))
}

impl Asked {
    /// Whether a request is so; `None`: unknown.
    fn is_met(&self, asks: &Asks) -> Option<bool> {
        Some(match self {
            Self::Session(patterns) => {
                let name = asks.session.as_ref()?;
                patterns.iter().any(|pattern| is_like(name, pattern))
            }
            Self::Tokens(ranges) => is_in(asks.token?, ranges),
            Self::Kinds(kinds) => kinds.contains(&asks.kind?),
            Self::Bytes(ranges) => is_in(asks.bytes?, ranges),
            Self::Uid(ranges) => is_in(asks.uid?, ranges),
            Self::Gid(ranges) => is_in(asks.gid?, ranges),
            Self::Exe(paths) => {
                let path = asks.exe?;
                path != "/gone" && paths.contains(&path)
            }
            Self::Cgroup(paths) => {
                let path = parts(asks.cgroup?);
                paths.iter().any(|above| path.starts_with(&parts(above)))
            }
        })
    }
}

/// Yes, no, or nobody knows.
fn all(mut answers: Vec<Option<bool>>) -> Option<bool> {
    answers.sort();
    if answers.contains(&Some(false)) {
        Some(false)
    } else if answers.contains(&None) {
        None
    } else {
        Some(true)
    }
}

/// What a policy says, the slow way, and with which errno.
fn judge(rules: &[&Model], enforce: bool, asks: &Asks, standing: &Answers) -> (Verdict, u8) {
    // Number, whether it refuses, whether that is a guess.
    let mut says: Vec<(usize, bool, bool)> = Vec::new();
    let mut has_first = false;
    for (number, rule) in rules.iter().enumerate() {
        if !rule.operations.contains(&asks.operation) {
            continue;
        }
        let matches = all(rule.asked.iter().map(|asked| asked.is_met(asks)).collect());
        // What the rule wants to hold, where it is about how things stand.
        let holds = match &rule.body {
            Body::Answer { deny } => {
                if matches != Some(false) && !has_first {
                    has_first = true;
                    says.push(match matches {
                        None => (number, rule.deny_on_error, true),
                        _ => (number, *deny, false),
                    });
                }
                continue;
            }
            Body::Quota {
                in_all,
                files,
                bytes,
            } => {
                let usage = if *in_all {
                    standing.in_all()
                } else {
                    standing.session(&asks.text())
                };
                usage.map(|usage| {
                    files.is_none_or(|files| usage.files <= files)
                        && bytes.is_none_or(|bytes| usage.bytes <= bytes)
                })
            }
            Body::Tokens {
                session,
                tokens,
                finish: false,
            } => all(tokens
                .iter()
                .map(|token| standing.is_preserved(&key(session.as_bytes(), *token)))
                .collect()),
            Body::Tokens {
                session,
                tokens,
                finish: true,
            } => match &asks.session {
                None => None,
                Some(name) if name != session.as_bytes() => Some(true),
                Some(name) => all(tokens
                    .iter()
                    .map(|token| standing.is_restored(&key(name, *token)))
                    .collect()),
            },
            Body::Files { session, files } => standing
                .session(&text(session.as_bytes()))
                .map(|usage| usage.files >= *files),
            Body::Gate("device-free") => standing.is_device_free(),
            Body::Gate("image-loaded") => standing.is_image_loaded(),
            Body::Gate(_) => standing.is_no_session_lost(),
        };
        match (matches, holds) {
            (Some(false), _) | (_, Some(true)) => {}
            (Some(true), Some(false)) => says.push((number, true, false)),
            _ => says.push((number, rule.deny_on_error, true)),
        }
    }
    let is_enforced = |number: usize| rules[number].enforce.unwrap_or(enforce);
    let (decision, said) = if let Some(said) = says
        .iter()
        .find(|(number, refuses, _)| *refuses && is_enforced(*number))
    {
        (Decision::Deny, said)
    } else if let Some(said) = says.iter().find(|(_, refuses, _)| *refuses) {
        (Decision::WouldDeny, said)
    } else if let Some(said) = says.iter().find(|(.., is_guess)| *is_guess) {
        (Decision::Allow, said)
    } else if let Some(said) = says.first() {
        (Decision::Allow, said)
    } else {
        let verdict = Verdict {
            decision: Decision::Allow,
            rule: NO_RULE,
            unsure: false,
        };
        return (verdict, 0);
    };
    let (number, _, is_guess) = *said;
    let verdict = Verdict {
        decision,
        rule: number as u8,
        unsure: is_guess,
    };
    let is_refused = decision != Decision::Allow;
    (verdict, if is_refused { rules[number].errno } else { 0 })
}

/// A policy's file of these rules, but without those that could never match, which are refused by name.
fn write(models: &[Model], enforce: bool) -> (String, Vec<&Model>, Source) {
    let mut kept: BTreeSet<usize> = (0..models.len()).collect();
    let mut quotas = 0;
    let mut needs = 0;
    kept.retain(|at| {
        // The largest numbers of rules come often.
        if *at >= RULES {
            return false;
        }
        quotas += usize::from(models[*at].section == 2);
        needs += match &models[*at].body {
            Body::Tokens { tokens, .. } => tokens.len(),
            _ => 1,
        };
        (models[*at].section != 2 || quotas <= 16) && needs <= 128
    });
    loop {
        let mut text = format!(
            "version = 1\nmode = \"{}\"\n",
            if enforce { "enforce" } else { "monitor" }
        );
        let mut ends = Vec::new();
        for at in &kept {
            text.push_str(&models[*at].write(*at));
            ends.push((text.len(), *at));
        }
        match Source::parse("policy.toml", &text) {
            Ok(source) => {
                let rules = kept.iter().map(|at| &models[*at]).collect();
                return (text, rules, source);
            }
            Err(Error::Refused(refused)) => {
                for problem in refused.problems {
                    let is_known = problem.what.contains("can never match")
                        || problem.what.contains("different patterns");
                    assert!(is_known, "{}\n{text}", problem.what);
                    let (_, at) = ends[ends.partition_point(|(end, _)| *end <= problem.span.start)];
                    kept.remove(&at);
                }
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// How many requests each policy is asked for.
const REQUESTS: u64 = 100;

/// Holds `evaluate` against [`judge`], and counts what was said: as decision, and whether it was a guess; by section
/// of the rule that said so.
fn agrees(seeds: &[u64], enforce: bool, requests: u64, said: &mut Said) {
    let mut models: Vec<Model> = seeds.iter().map(|seed| model(*seed)).collect();
    models.sort_by_key(|model| model.section);
    let (text, rules, source) = write(&models, enforce);
    let compiled = compile(&source, &Machine).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let mut dice = Dice(requests);
    for _ in 0..REQUESTS {
        let asks = asks(&mut dice);
        let request = asks.request(&mut dice);
        let standing = Answers(dice.roll());
        let verdict = evaluate(&compiled.policy, &request, &standing);
        assert_eq!(
            (verdict, verdict.errno(&compiled.policy)),
            judge(&rules, enforce, &asks, &standing),
            "{asks:?}\n{text}"
        );
        let section = rules
            .get(usize::from(verdict.rule))
            .map(|rule| SECTIONS[rule.section]);
        *said
            .entry((section, verdict.decision, verdict.unsure))
            .or_default() += 1;
    }
}

type Said = BTreeMap<(Option<&'static str>, Decision, bool), u64>;

/// A million requests: 10,000 policies, 100 requests each.
#[test]
fn evaluate_says_what_rules_walked_one_by_one_say() {
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 10_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let said = RefCell::new(Said::new());
    runner
        .run(
            &(vec(any::<u64>(), 0..=90), any::<bool>(), any::<u64>()),
            |(seeds, enforce, requests)| {
                agrees(&seeds, enforce, requests, &mut said.borrow_mut());
                Ok(())
            },
        )
        .unwrap_or_else(|error| panic!("{error}"));
    let said = said.into_inner();
    assert!(said.values().sum::<u64>() >= 1_000_000);
    // Rules of every section were heard with every decision that they can come to.
    for section in SECTIONS {
        for decision in [Decision::Allow, Decision::WouldDeny, Decision::Deny] {
            for unsure in [false, true] {
                let is_silent = !matches!(section, "access" | "preserve")
                    && decision == Decision::Allow
                    && !unsure;
                let count = said.get(&(Some(section), decision, unsure)).copied();
                assert_eq!(
                    count.is_none_or(|count| count < 500),
                    is_silent,
                    "{section} {decision:?} {unsure}: {count:?}"
                );
            }
        }
    }
}

proptest! {
    #[test]
    fn a_policy_of_zeros_allows_everything(requests: u64) {
        let mut dice = Dice(requests);
        let asks = asks(&mut dice);
        let verdict = evaluate(&Policy::new_zeroed(), &asks.request(&mut dice), &Answers(requests));
        let allowed = Verdict { decision: Decision::Allow, rule: NO_RULE, unsure: false };
        prop_assert_eq!(verdict, allowed);
    }
}
