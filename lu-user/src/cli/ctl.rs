//! `lu ctl`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use bytesize::ByteSize;
use clap::{Parser, Subcommand};
use lu_common::uapi::Interface;
use lu_common::uapi::v3::Event;
use lu_user::client::{self, sessions, v3};
use lu_user::emulate::DEVICE;
use lu_user::export::errno_name;
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde_json::{Value, json};

/// Make one call of the orchestrator, or several: what is opened stays open until the end.
///
/// Closing the device drops what was preserved through it, so --hold goes on with commands from
/// standard input, a line each, until its end.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  lu ctl state\n  \
        printf 'prepare\\nstate\\n' | lu ctl --hold preserve 7 --memfd 64MiB\n  \
        exec 9<>/dev/liveupdate; lu ctl --device-fd 9 preserve 7 --fd 3 3</dev/shm/guest\n  \
        lu ctl restore 7 --to /tmp/guest && lu ctl finish\n  \
        lu ctl --hold session create vm-1\n\n\
        Exit status: 0 all calls succeeded, 1 one was refused (its errno is told), 2 wrong usage.")]
pub struct Args {
    /// The device.
    #[arg(long, value_name = "PATH", default_value = DEVICE)]
    device: PathBuf,
    /// An open device that was passed on, instead of opening one.
    #[arg(long, value_name = "FD", conflicts_with = "device")]
    device_fd: Option<i32>,
    /// Keep everything open, and read further commands from standard input.
    #[arg(long)]
    hold: bool,
    /// Answers as JSON, one object a line.
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

/// One line of standard input.
#[derive(Parser)]
#[command(multicall = true, disable_help_flag = true)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Tell the global state (v3).
    State,
    /// Preserve a file under a token (v3).
    Preserve {
        #[arg(value_parser = token)]
        token: u64,
        #[command(flatten)]
        source: Source,
    },
    /// Take a file off the list (v3).
    Unpreserve {
        #[arg(value_parser = token)]
        token: u64,
    },
    /// Get a file back in the new kernel (v3).
    Restore {
        #[arg(value_parser = token)]
        token: u64,
        /// Copy its content there.
        #[arg(long, value_name = "FILE")]
        to: Option<PathBuf>,
    },
    /// Begin a live update (v3).
    Prepare,
    /// Give it up (v3).
    Cancel,
    /// End it in the new kernel (v3).
    Finish,
    /// Tell the state of one file (v3, patch 18).
    FdState {
        #[arg(value_parser = token)]
        token: u64,
        /// Of the previous kernel's set.
        #[arg(long)]
        incoming: bool,
    },
    /// Drive the state of one file (v3, patch 18).
    FdEvent {
        #[arg(value_parser = token)]
        token: u64,
        #[arg(value_enum)]
        event: FdEvent,
    },
    /// Calls of the sessions interface.
    #[command(subcommand)]
    Session(SessionCommand),
}

#[derive(Subcommand)]
enum SessionCommand {
    /// Create a session for the next kernel.
    Create { name: String },
    /// Get a session of the previous kernel.
    Retrieve { name: String },
    /// Preserve a file in a session that is held.
    Preserve {
        name: String,
        #[arg(value_parser = token)]
        token: u64,
        #[command(flatten)]
        source: Source,
    },
    /// Get a file back from a session that is held.
    RetrieveFd {
        name: String,
        #[arg(value_parser = token)]
        token: u64,
        /// Copy its content there.
        #[arg(long, value_name = "FILE")]
        to: Option<PathBuf>,
    },
    /// Finish a session that is held.
    Finish { name: String },
    /// Ask a session that is held for its name.
    Name { name: String },
}

/// What is to be preserved.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Source {
    /// A descriptor that this process was started with.
    #[arg(long)]
    fd: Option<i32>,
    /// A new memfd of this size, full of zeros.
    #[arg(long, value_name = "SIZE")]
    memfd: Option<ByteSize>,
    /// A new memfd with this file's content.
    #[arg(long, value_name = "FILE")]
    memfd_from: Option<PathBuf>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum FdEvent {
    Prepare,
    Freeze,
    Finish,
    Cancel,
}

/// A token, decimal or with 0x.
pub fn token(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| {
        format!("{text} is no token; tokens are numbers from 0 to 2^64-1, like 7 or 0x2a")
    })
}

impl Source {
    fn open(&self) -> Result<OwnedFd> {
        if let Some(fd) = self.fd {
            return inherited(fd);
        }
        let memfd = memfd_create("lu-ctl", MFdFlags::MFD_CLOEXEC).context("cannot make a memfd")?;
        let mut file = File::from(memfd);
        if let Some(size) = self.memfd {
            file.set_len(size.as_u64())
                .with_context(|| format!("cannot make a memfd of {size}"))?;
        }
        if let Some(path) = &self.memfd_from {
            File::open(path)
                .and_then(|mut from| io::copy(&mut from, &mut file))
                .with_context(|| format!("cannot copy {} into a memfd", path.display()))?;
        }
        Ok(file.into())
    }
}

/// A descriptor that this process was started with.
fn inherited(fd: i32) -> Result<OwnedFd> {
    // SAFETY: borrowed for this one call, which fails on a number that is no descriptor.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd.max(0)) };
    if fd < 0 {
        bail!("{fd} is no descriptor");
    }
    let copy = borrowed.try_clone_to_owned().with_context(|| {
        format!("descriptor {fd} is not open; pass it on as in `lu ... {fd}<FILE`")
    })?;
    Ok(copy)
}

/// What is held open.
struct Held {
    device: Device,
    sessions: BTreeMap<String, sessions::Session>,
    files: Vec<OwnedFd>,
    json: bool,
}

enum Device {
    /// Opened by the first call, which tells the interface.
    Path(PathBuf),
    Given(OwnedFd),
    V3(v3::Device),
    Sessions(sessions::Device),
}

impl Args {
    pub fn run(self) -> Result<ExitCode> {
        let device = match self.device_fd {
            None => Device::Path(self.device),
            Some(fd) => {
                // Not a copy: the number is the caller's, and so is closing it.
                if fd < 0 {
                    bail!("{fd} is no descriptor");
                }
                inherited(fd)?;
                // SAFETY: it is open, as was just seen, and nothing else in this process uses it.
                Device::Given(unsafe { OwnedFd::from_raw_fd(fd) })
            }
        };
        let mut held = Held {
            device,
            sessions: BTreeMap::new(),
            files: Vec::new(),
            json: self.json,
        };
        let mut good = held.run(&self.command)?;
        if self.hold {
            for line in io::stdin().lock().lines() {
                let line = line.context("cannot read standard input")?;
                // What is held is not let go because of one wrong line.
                good &= held.run_line(&line).unwrap_or_else(|error| {
                    eprintln!("lu: {error:#}");
                    false
                });
            }
        }
        Ok(if good {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

impl Held {
    fn run_line(&mut self, line: &str) -> Result<bool> {
        let Some(words) = shlex::split(line) else {
            eprintln!("lu: a quote is not closed: {line}");
            return Ok(false);
        };
        if words.is_empty() {
            return Ok(true);
        }
        match Line::try_parse_from(words) {
            Ok(line) => self.run(&line.command),
            Err(error) => {
                eprint!("{error}");
                Ok(false)
            }
        }
    }

    /// One call. A refusal is an answer, told on standard output; trouble on this side is an error.
    fn run(&mut self, command: &Command) -> Result<bool> {
        let answer = self.call(command);
        let (value, text) = match &answer {
            Ok(answer) => (answer.json(), answer.text()),
            Err(error) => match error.downcast_ref::<client::Error>() {
                Some(refused) => {
                    let errno = errno_name(refused.errno() as i32);
                    (
                        json!({ "ok": false, "errno": errno, "error": refused.to_string() }),
                        None,
                    )
                }
                None => return Err(answer.err().unwrap_or_else(|| anyhow::anyhow!("no answer"))),
            },
        };
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{value}")?;
        } else if let Some(text) = text {
            writeln!(out, "{text}")?;
        }
        if let (Err(error), false) = (&answer, self.json) {
            eprintln!("lu: {error}");
        }
        out.flush()?;
        Ok(answer.is_ok())
    }

    fn call(&mut self, command: &Command) -> Result<Answer> {
        match command {
            Command::State => Ok(Answer::State(self.v3()?.state()?.name())),
            Command::Preserve { token, source } => {
                let file = source.open()?;
                self.v3()?.preserve(*token, &file)?;
                Ok(Answer::Done)
            }
            Command::Unpreserve { token } => {
                self.v3()?.unpreserve(*token)?;
                Ok(Answer::Done)
            }
            Command::Restore { token, to } => {
                let file = self.v3()?.restore(*token)?;
                self.keep(file, to.as_ref())
            }
            Command::Prepare => {
                self.v3()?.prepare()?;
                Ok(Answer::Done)
            }
            Command::Cancel => {
                self.v3()?.cancel()?;
                Ok(Answer::Done)
            }
            Command::Finish => {
                self.v3()?.finish()?;
                Ok(Answer::Done)
            }
            Command::FdState { token, incoming } => Ok(Answer::State(
                self.v3()?.file_state(*token, *incoming)?.name(),
            )),
            Command::FdEvent { token, event } => {
                let event = match event {
                    FdEvent::Prepare => Event::Prepare,
                    FdEvent::Freeze => Event::Freeze,
                    FdEvent::Finish => Event::Finish,
                    FdEvent::Cancel => Event::Cancel,
                };
                self.v3()?.file_event(*token, event)?;
                Ok(Answer::Done)
            }
            Command::Session(command) => self.session_call(command),
        }
    }

    fn session_call(&mut self, command: &SessionCommand) -> Result<Answer> {
        match command {
            SessionCommand::Create { name } => {
                let session = self.device_of_sessions()?.create(name)?;
                self.sessions.insert(name.clone(), session);
                Ok(Answer::Done)
            }
            SessionCommand::Retrieve { name } => {
                let session = self.device_of_sessions()?.retrieve(name)?;
                self.sessions.insert(name.clone(), session);
                Ok(Answer::Done)
            }
            SessionCommand::Preserve {
                name,
                token,
                source,
            } => {
                let file = source.open()?;
                self.session(name)?.preserve(*token, &file)?;
                Ok(Answer::Done)
            }
            SessionCommand::RetrieveFd { name, token, to } => {
                let file = self.session(name)?.retrieve(*token)?;
                self.keep(file, to.as_ref())
            }
            SessionCommand::Finish { name } => {
                self.session(name)?.finish()?;
                Ok(Answer::Done)
            }
            SessionCommand::Name { name } => Ok(Answer::Name(self.session(name)?.name()?)),
        }
    }

    fn keep(&mut self, file: OwnedFd, to: Option<&PathBuf>) -> Result<Answer> {
        let copy = file.as_fd().try_clone_to_owned()?;
        self.files.push(file);
        let mut file = File::from(copy);
        let bytes = file.metadata().map_or(0, |meta| meta.len());
        if let Some(path) = to {
            let copied = File::create(path).and_then(|mut out| {
                io::Seek::rewind(&mut file)?;
                io::copy(&mut file, &mut out)
            });
            copied.with_context(|| format!("restored, but cannot copy to {}", path.display()))?;
        }
        Ok(Answer::File(bytes))
    }

    fn v3(&mut self) -> Result<&v3::Device> {
        let opened = match &self.device {
            Device::Path(path) => Some(v3::Device::open(path)?),
            Device::Given(fd) => Some(fd.try_clone()?.into()),
            Device::V3(_) | Device::Sessions(_) => None,
        };
        if let Some(device) = opened {
            if client::interface(&device) == Some(Interface::Sessions) {
                bail!("this orchestrator speaks the sessions interface; use `lu ctl session ...`");
            }
            self.device = Device::V3(device);
        }
        match &self.device {
            Device::V3(device) => Ok(device),
            _ => {
                bail!(
                    "the device is in use with the sessions interface; v3 calls need another `lu ctl`"
                )
            }
        }
    }

    fn device_of_sessions(&mut self) -> Result<&sessions::Device> {
        let opened = match &self.device {
            Device::Path(path) => Some(sessions::Device::open(path)?),
            Device::Given(fd) => Some(fd.try_clone()?.into()),
            Device::V3(_) | Device::Sessions(_) => None,
        };
        if let Some(device) = opened {
            // The numbers clash: CREATE_SESSION is FD_PRESERVE there.
            if client::interface(&device) == Some(Interface::V3) {
                bail!("this orchestrator speaks the v3 interface, which has no sessions");
            }
            self.device = Device::Sessions(device);
        }
        match &self.device {
            Device::Sessions(device) => Ok(device),
            _ => {
                bail!("the device is in use with the v3 interface; sessions need another `lu ctl`")
            }
        }
    }

    fn session(&self, name: &str) -> Result<&sessions::Session> {
        self.sessions.get(name).with_context(|| {
            format!("session {name} is not held; create or retrieve it first, in the same `lu ctl --hold`")
        })
    }
}

enum Answer {
    Done,
    State(&'static str),
    Name(String),
    File(u64),
}

impl Answer {
    fn json(&self) -> Value {
        match self {
            Self::Done => json!({ "ok": true }),
            Self::State(state) => json!({ "ok": true, "state": state }),
            Self::Name(name) => json!({ "ok": true, "name": name }),
            Self::File(bytes) => json!({ "ok": true, "bytes": bytes }),
        }
    }

    fn text(&self) -> Option<String> {
        match self {
            Self::Done => None,
            Self::State(state) => Some((*state).to_owned()),
            Self::Name(name) => Some(name.clone()),
            Self::File(bytes) => Some(format!("{bytes} bytes")),
        }
    }
}
