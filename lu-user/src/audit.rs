//! The audit log: a line of JSON for what a policy said, other than a plain allow, and for each policy that is
//! loaded; to the system's journal too, where there is one.
//!
//! The file is ours alone, is only ever appended to, and is never reached through a link. Its lines have no control
//! character in them, whatever a client called itself or its session.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use lu_common::event::{FileKind, Kind, Record};
use nix::unistd::geteuid;
use serde::Serialize;
use systemd_journal_logger::JournalLog;

use crate::export::{PolicyLine, UntoldLine, VerdictLine, is_about_policy};
use crate::timeline::{Names, shown};

/// The value of the field `schema`.
pub const SCHEMA: &str = "lu.audit/1";

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub struct Rotation {
    /// From this size on, in bytes, the file is the first of the older ones.
    pub bytes: u64,
    /// How many older ones there are at most.
    pub keep: u32,
}

impl Default for Rotation {
    fn default() -> Self {
        Self {
            bytes: 16 << 20,
            keep: 4,
        }
    }
}

/// Why there is no audit log.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused a step.
    #[error("cannot {action} the audit log {}: {error}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Somebody else could write there.
    #[error(
        "the audit log {} is not a regular file of ours with one name; choose another path, or remove it",
        .0.display()
    )]
    Foreign(PathBuf),
}

/// The log, open for appending.
pub struct Audit {
    path: PathBuf,
    file: File,
    size: u64,
    rotation: Rotation,
    journald: Option<JournalLog>,
    names: Names,
    /// `CLOCK_REALTIME` less `CLOCK_MONOTONIC`, by the last reading of the clocks.
    since_1970_ns: Option<u64>,
    /// How many lines could not be written since one was.
    lost: u64,
    problem: Option<String>,
}

/// A line.
#[derive(Serialize)]
struct Line {
    schema: &'static str,
    /// RFC 3339; null before the clocks were read.
    time: Option<String>,
    event: &'static str,
    t_ns: u64,
    pid: Option<u32>,
    tid: Option<u32>,
    uid: Option<u32>,
    comm: Option<String>,
    cgroup_id: Option<u64>,
    session: Option<String>,
    token: Option<u64>,
    fd: Option<i32>,
    fd_kind: Option<&'static str>,
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    untold: Option<UntoldLine>,
    #[serde(flatten)]
    verdict: Option<VerdictLine>,
    #[serde(flatten)]
    policy: Option<PolicyLine>,
    /// How many lines before this one could not be written.
    #[serde(skip_serializing_if = "Option::is_none")]
    lost: Option<u64>,
}

impl Audit {
    /// Opens the log, which is made where it is missing.
    pub fn open(path: &Path, rotation: Rotation) -> Result<Self, Error> {
        let (file, size) = open(path)?;
        Ok(Self {
            path: path.into(),
            file,
            size,
            rotation,
            // Without systemd's journal there is no socket.
            journald: JournalLog::new().ok(),
            names: Names::default(),
            since_1970_ns: None,
            lost: 0,
            problem: None,
        })
    }

    /// Keeps so much from now on.
    pub const fn rotate_by(&mut self, rotation: Rotation) {
        self.rotation = rotation;
    }

    /// Takes in one record; what is not about a policy tells names and times alone. What cannot be written is
    /// counted, and told in the next line that can.
    pub fn push(&mut self, record: &Record) {
        self.names.push(record);
        if let Some(anchor) = record.anchor() {
            self.since_1970_ns = anchor.realtime_ns.checked_sub(record.header.t_ns);
        }
        if !is_about_policy(record) {
            return;
        }
        let line = self.line(record);
        let Ok(mut text) = serde_json::to_string(&line) else {
            return;
        };
        if let Some(journald) = &self.journald {
            let level = match record.kind() {
                Some(Kind::Tampered) => log::Level::Error,
                Some(Kind::Verdict | Kind::Untold) => log::Level::Warn,
                _ => log::Level::Info,
            };
            let sent = journald.journal_send(
                &log::Record::builder()
                    .target("lu")
                    .level(level)
                    .args(format_args!("{text}"))
                    .build(),
            );
            if let Err(error) = sent {
                self.problem = Some(format!(
                    "the system's journal takes no more audit lines: {error}"
                ));
                self.journald = None;
            }
        }
        text.push('\n');
        match self.write(text.as_bytes()) {
            Ok(()) => self.lost = 0,
            Err(error) => {
                if self.lost == 0 {
                    self.problem = Some(format!("lines are missing from now on: {error}"));
                }
                self.lost += 1;
            }
        }
    }

    /// What went wrong since this was last asked, and is no reason to stop.
    pub fn problem(&mut self) -> Option<String> {
        self.problem.take()
    }

    fn line(&self, record: &Record) -> Line {
        let header = &record.header;
        let task = record.has_task();
        let time = self.since_1970_ns.and_then(|since| {
            let ns = i128::from(since) + i128::from(header.t_ns);
            Timestamp::from_nanosecond(ns).ok()
        });
        Line {
            schema: SCHEMA,
            time: time.map(|time| time.to_string()),
            event: record.kind().map_or("unknown", Kind::name),
            t_ns: header.t_ns,
            pid: task.then_some(header.pid),
            tid: task.then_some(header.tid),
            uid: task.then_some(header.uid),
            comm: task.then(|| shown(record.comm())),
            cgroup_id: Some(header.cgroup_id).filter(|id| task && *id != 0),
            session: self.names.of(record),
            token: record.token(),
            fd: record.fd(),
            fd_kind: record.file_kind().map(FileKind::name),
            bytes: record.bytes(),
            untold: UntoldLine::of(record),
            verdict: VerdictLine::of(record, &self.names),
            policy: PolicyLine::of(record),
            lost: Some(self.lost).filter(|lost| *lost > 0),
        }
    }

    /// A line is written whole, or not at all.
    fn write(&mut self, line: &[u8]) -> Result<(), Error> {
        if self.size > 0 && self.size + line.len() as u64 > self.rotation.bytes {
            self.rotate()?;
        }
        let written = self.file.write_all(line);
        if written.is_err() {
            // A part of a line is no line.
            let _ = self.file.set_len(self.size);
        }
        written.map_err(failed("write to", &self.path))?;
        self.size += line.len() as u64;
        Ok(())
    }

    /// The file is the first of the older ones, of which the oldest goes.
    fn rotate(&mut self) -> Result<(), Error> {
        let older = |number: u32| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        let missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        for number in (1..self.rotation.keep).rev() {
            match fs::rename(older(number), older(number + 1)) {
                Err(error) if !missing(&error) => {
                    return Err(failed("rotate", &self.path)(error));
                }
                _ => {}
            }
        }
        let done = if self.rotation.keep > 0 {
            fs::rename(&self.path, older(1))
        } else {
            fs::remove_file(&self.path)
        };
        match done {
            Err(error) if !missing(&error) => return Err(failed("rotate", &self.path)(error)),
            _ => {}
        }
        (self.file, self.size) = open(&self.path)?;
        Ok(())
    }
}

fn open(path: &Path) -> Result<(File, u64), Error> {
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        // A pipe without a reader must not hold us up.
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .map_err(failed("open", path))?;
    let about = file.metadata().map_err(failed("look at", path))?;
    if !about.is_file() || about.nlink() != 1 || about.uid() != geteuid().as_raw() {
        return Err(Error::Foreign(path.into()));
    }
    if about.permissions().mode() & 0o077 != 0 {
        let ours = fs::Permissions::from_mode(0o600);
        file.set_permissions(ours)
            .map_err(failed("close up", path))?;
    }
    Ok((file, about.len()))
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |error| Error::Io {
        action,
        path: path.into(),
        error,
    }
}

#[cfg(test)]
mod tests {
    use lu_common::event::{RuleName, Section, flags, session_id};
    use lu_common::policy::{Attribute, Decision, Judged, Operation};
    use serde_json::Value;

    use super::*;

    fn verdict(token: u64) -> Record {
        let judged = Judged {
            generation: 3,
            session: session_id(&name()),
            token,
            known: Attribute::Token.bit(),
            fd: -1,
            operation: Operation::Preserve as u8,
            decision: Decision::Deny as u8,
            rule: 2,
            errno: libc::EACCES as u8,
            ..Judged::default()
        };
        let mut record = Record::made(Kind::Verdict, 5, zerocopy::transmute!(judged));
        record.header.flags |= flags::TASK;
        record.header.comm[..8].copy_from_slice(b"vm\n\x1b[2Jx");
        record
    }

    fn name() -> [u8; 64] {
        let mut name = [0; 64];
        name[..9].copy_from_slice(b"vm\x07\xc2\x9b\"\n\r1");
        name
    }

    fn lines(path: &Path) -> Vec<Value> {
        let text = fs::read_to_string(path).expect("a log");
        text.lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect()
    }

    fn named(audit: &mut Audit) {
        let rule = RuleName::new(3, 2, Section::Preserve, true, "memfds");
        audit.push(&Record::made(Kind::Rule, 1, zerocopy::transmute!(rule)));
        audit.push(&Record::made(Kind::Name, 1, name()));
    }

    #[test]
    fn a_refused_request_is_a_line_with_its_rule_and_no_control_character() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("audit");
        let mut audit = Audit::open(&path, Rotation::default()).expect("a log");
        named(&mut audit);
        audit.push(&verdict(7));
        let text = fs::read_to_string(&path).expect("a log");
        assert_eq!(text.chars().filter(|char| char.is_control()).count(), 1);
        let lines = lines(&path);
        assert_eq!(lines.len(), 1);
        let line = &lines[0];
        for (field, value) in [
            ("event", "verdict"),
            ("decision", "deny"),
            ("operation", "preserve"),
            ("rule", "memfds"),
            ("errno", "EACCES"),
            ("enforced_by", "kernel-lsm"),
            ("comm", "vm\\n\\u{1b}[2Jx"),
        ] {
            assert_eq!(line[field], value, "{field}");
        }
        assert_eq!(line["token"], 7);
        let mode = fs::metadata(&path).expect("a log").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn no_more_than_the_newest_files_are_kept_and_no_line_is_cut() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("audit");
        let rotation = Rotation {
            bytes: 2000,
            keep: 2,
        };
        let mut audit = Audit::open(&path, rotation).expect("a log");
        for token in 0..100 {
            audit.push(&verdict(token));
        }
        assert_eq!(audit.problem(), None);
        let mut names: Vec<_> = fs::read_dir(folder.path())
            .expect("a folder")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["audit", "audit.1", "audit.2"]);
        let mut tokens = Vec::new();
        for name in ["audit.2", "audit.1", "audit"] {
            let path = folder.path().join(name);
            assert!(fs::metadata(&path).expect("a log").len() <= 2000);
            tokens.extend(
                lines(&path)
                    .iter()
                    .filter_map(|line| line["token"].as_u64()),
            );
        }
        let first = tokens[0];
        assert!(
            first > 0 && tokens.iter().copied().eq(first..100),
            "{tokens:?}"
        );
    }

    #[test]
    fn a_link_a_pipe_and_a_file_with_two_names_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        fs::write(at("file"), "").expect("a file");
        std::os::unix::fs::symlink(at("file"), at("link")).expect("a link");
        fs::write(at("two"), "").expect("a file");
        fs::hard_link(at("two"), at("names")).expect("a name");
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        for name in ["link", "names", "pipe"] {
            assert!(
                Audit::open(&at(name), Rotation::default()).is_err(),
                "{name}"
            );
        }
        fs::set_permissions(at("file"), fs::Permissions::from_mode(0o644)).expect("a mode");
        assert!(Audit::open(&at("file"), Rotation::default()).is_ok());
        let mode = fs::metadata(at("file"))
            .expect("a file")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn lines_that_could_not_be_written_are_counted_in_the_next_one_that_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("audit");
        let mut audit = Audit::open(&path, Rotation::default()).expect("a log");
        audit.file = File::open("/dev/null").expect("read alone");
        audit.push(&verdict(1));
        audit.push(&verdict(2));
        assert!(audit.problem().expect("a problem").contains("missing"));
        audit.file = open(&path).expect("a log").0;
        audit.push(&verdict(3));
        let lines = lines(&path);
        assert_eq!((lines.len(), &lines[0]["lost"]), (1, &Value::from(2)));
    }
}
