//! `lu emulate`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use lu_common::event::FileKind;
use lu_common::uapi;
use lu_user::emulate::{self, DEVICE, Options};
use nix::errno::Errno;

/// Run a command with an emulated /dev/liveupdate, or put one at a path until stopped.
///
/// With a COMMAND the device stands at /dev/liveupdate for that command and its children alone, and
/// reboot(KEXEC) made by one of them is played, not done. Without one it stands at --at for everybody
/// until Ctrl-C. Needs root.
#[derive(clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  \
        lu emulate -- ./agent --device /dev/liveupdate\n  \
        lu emulate --boot-delay 2s -- sh -c './old-vmm; lu emulate kexec; ./new-vmm'\n  \
        lu emulate --fail-freeze 7=ENOMEM -- ./agent\n  \
        lu emulate --interface sessions -- ./luod\n  \
        lu emulate --policy policy.toml -- ./agent\n  \
        lu emulate --at /tmp/liveupdate\n\n\
        Exit status: the COMMAND's (128 and the signal's number if a signal ended it); 1 if the \
        emulation could not be set up, 2 if the policy has errors."
)]
pub struct Args {
    #[command(subcommand)]
    step: Option<Step>,
    #[command(flatten)]
    emulation: Emulation,
}

#[derive(clap::Subcommand)]
enum Step {
    /// Play reboot(KEXEC): freeze, kill every client, wait the boot delay, start the new kernel.
    ///
    /// Returns when the new kernel is up. Exit status 1, and nothing ended, if the freeze failed.
    #[command(after_help = "Example:\n  lu emulate kexec && lu ctl state")]
    Kexec {
        /// The emulator's process; needed only where several run.
        #[arg(long)]
        pid: Option<u32>,
    },
}

#[derive(clap::Args)]
struct Emulation {
    /// The interface that the device speaks.
    #[arg(long, value_enum, default_value_t = Interface::V3)]
    interface: Interface,
    /// Where the device stands when there is no COMMAND.
    #[arg(long, value_name = "PATH", default_value = DEVICE, conflicts_with = "command")]
    at: PathBuf,
    /// Reproduce two faults of the v3 patches: a failed `FD_PRESERVE` returns 0, and an `FD_RESTORE`
    /// whose copy-out faults leaves a descriptor that the caller does not know.
    #[arg(long)]
    quirks: bool,
    /// How long the machine is down between the old kernel and the new one.
    #[arg(long, value_name = "DURATION", default_value = "500ms", value_parser = humantime::parse_duration)]
    boot_delay: Duration,
    /// Accept this kind of file too, beside memfd. May be repeated.
    #[arg(long, value_enum, value_name = "KIND")]
    also: Vec<Kind>,
    /// Let this token's prepare fail, with --interface sessions its `PRESERVE_FD` (EIO unless told otherwise).
    /// A token is meant in every session. May be repeated.
    #[arg(long, value_name = "TOKEN[=ERRNO]", value_parser = failure)]
    fail_prepare: Vec<(u64, Errno)>,
    /// Let this token's freeze fail. May be repeated.
    #[arg(long, value_name = "TOKEN[=ERRNO]", value_parser = failure)]
    fail_freeze: Vec<(u64, Errno)>,
    /// Let this token's restore fail, with --interface sessions its `RETRIEVE_FD`. May be repeated.
    #[arg(long, value_name = "TOKEN[=ERRNO]", value_parser = failure)]
    fail_restore: Vec<(u64, Errno)>,
    /// Never let the session with this token finish (EBUSY), so that its close leaves it behind
    /// (sessions). May be repeated.
    #[arg(long, value_name = "TOKEN", value_parser = super::ctl::token)]
    busy_finish: Vec<u64>,
    /// Let this many kexecs fail after a good freeze (EIO): userspace goes on in FROZEN (v3).
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    fail_kexec: u32,
    /// A policy (see `lu policy --help`), which the emulated orchestrator asks before it acts. SIGHUP has it
    /// read again; one with errors leaves the old one in force.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// The command, after `--`.
    #[arg(last = true)]
    command: Vec<OsString>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Interface {
    /// Version 3 of the patches: one state machine, one flat token space.
    V3,
    /// Linux 6.19 and later: named sessions.
    Sessions,
}

impl From<Interface> for uapi::Interface {
    fn from(interface: Interface) -> Self {
        match interface {
            Interface::V3 => Self::V3,
            Interface::Sessions => Self::Sessions,
        }
    }
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Kind {
    Eventfd,
    Pipe,
    Socket,
    Regular,
}

impl From<Kind> for FileKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Eventfd => Self::Eventfd,
            Kind::Pipe => Self::Pipe,
            Kind::Socket => Self::Socket,
            Kind::Regular => Self::Regular,
        }
    }
}

fn failure(text: &str) -> Result<(u64, Errno), String> {
    let (token, errno) = text.split_once('=').unwrap_or((text, "EIO"));
    Ok((super::ctl::token(token)?, errno_of(errno)?))
}

/// The errno with this name or number.
fn errno_of(text: &str) -> Result<Errno, String> {
    (1..=133)
        .map(Errno::from_raw)
        .find(|errno| format!("{errno:?}") == text || (*errno as i32).to_string() == text)
        .filter(|errno| *errno != Errno::UnknownErrno)
        .ok_or_else(|| format!("{text} is no errno; write it like EIO or 5"))
}

impl Args {
    pub fn run(self) -> Result<ExitCode> {
        if let Some(Step::Kexec { pid }) = self.step {
            emulate::control::kexec(pid)?;
            return Ok(ExitCode::SUCCESS);
        }
        let emulation = self.emulation;
        if emulation.interface == Interface::Sessions {
            if emulation.quirks {
                bail!(
                    "--quirks reproduces faults of the v3 patches; the sessions interface has none of them"
                );
            }
            if emulation.fail_kexec > 0 {
                bail!(
                    "--fail-kexec is for v3: in the sessions interface nothing goes on after a good \
                     freeze; let the freeze fail with --fail-freeze"
                );
            }
        } else if !emulation.busy_finish.is_empty() {
            bail!("--busy-finish is for --interface sessions: in v3 no file has a say in FINISH");
        }
        let options = Options {
            interface: emulation.interface.into(),
            quirks: emulation.quirks,
            boot_delay: emulation.boot_delay,
            also: emulation.also.into_iter().map(FileKind::from).collect(),
            fail_prepare: emulation.fail_prepare.into_iter().collect(),
            fail_freeze: emulation.fail_freeze.into_iter().collect(),
            fail_restore: emulation.fail_restore.into_iter().collect(),
            busy_finish: emulation.busy_finish.into_iter().collect(),
            fail_jumps: emulation.fail_kexec,
            policy: emulation.policy,
        };
        let status = if emulation.command.is_empty() {
            emulate::run_at(&options, &emulation.at).map(|()| 0)
        } else {
            emulate::run_command(&options, &emulation.command)
        };
        Ok(ExitCode::from(u8::try_from(status?).unwrap_or(u8::MAX)))
    }
}
