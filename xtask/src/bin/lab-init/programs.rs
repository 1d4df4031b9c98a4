//! The guest's programs. PID 1 inherits every orphan, so all are reaped in one place.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::outbox::FOLDER;
use crate::protocol::Status;

/// What every program finds in its environment.
const ENVIRONMENT: [(&str, &str); 4] = [
    ("PATH", "/bin"),
    ("HOME", "/root"),
    ("TERM", "vt100"),
    ("RUST_BACKTRACE", "1"),
];

#[derive(Default)]
pub struct Programs {
    ended: HashMap<i32, Status>,
}

impl Programs {
    /// Starts `command` with its output on the console; returns its PID.
    pub fn start(mut command: Command) -> Result<i32> {
        command.env_clear().envs(ENVIRONMENT).current_dir("/root");
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        Ok(child.id() as i32)
    }

    /// The same, with its output in `NAME.out` and `NAME.err` among what is brought out.
    pub fn start_into(command: Command, name: &str) -> Result<i32> {
        Self::start_with(command, &format!("{name}.out"), &format!("{name}.err"))
    }

    /// The same, with both names given.
    pub fn start_with(mut command: Command, out: &str, err: &str) -> Result<i32> {
        command
            .stdin(Stdio::null())
            .stdout(create(out)?)
            .stderr(create(err)?);
        Self::start(command)
    }

    /// Collects whoever has ended.
    pub fn reap(&mut self) {
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            let (pid, status) = match status {
                WaitStatus::Exited(pid, code) => (pid, Status::Exited(code)),
                WaitStatus::Signaled(pid, signal, _) => (pid, Status::Killed(signal as i32)),
                WaitStatus::StillAlive => return,
                _ => continue,
            };
            self.ended.insert(pid.as_raw(), status);
        }
    }

    /// How `pid` ended, if it has.
    pub fn ended(&self, pid: i32) -> Option<Status> {
        self.ended.get(&pid).copied()
    }

    /// Sends a signal to a program that has not ended yet.
    pub fn signal(&self, pid: i32, signal: Signal) {
        if self.ended(pid).is_none() {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
}

fn create(name: &str) -> Result<File> {
    let path: PathBuf = Path::new(FOLDER).join(name);
    // Appending, so that a program which reopens its standard error does not write over itself.
    File::options()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("cannot create {}", path.display()))
}
