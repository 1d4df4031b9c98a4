//! The emulated orchestrator: a file that behaves like `/dev/liveupdate`, for any client.
//!
//! - [`v3`], [`sessions`]: an interface each, its state machine (pure) and its steps, as functions with the
//!   kernel's names and signatures; `orchestrator`: what the rest asks of either.
//! - [`argument`]: the rules of the ioctl's structures, pure; [`files`]: what is preserved; [`reboot`].
//! - [`judge`]: the policy, asked before an interface's steps.
//! - [`client`], [`inject`]: the caller, whose memory is read and who gets descriptors.
//! - [`device`], [`stat`], [`mount`], [`notify`], [`control`]: FUSE, the file's place, system calls that
//!   must not reach the machine, the socket.

pub mod argument;
mod client;
pub mod control;
mod device;
mod files;
mod inject;
mod judge;
mod mount;
mod notify;
mod orchestrator;
mod reboot;
pub mod sessions;
mod stat;
pub mod v3;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use fuser::{Config, Session, SessionACL};
use lu_common::event::{FileKind, Task};
use lu_common::uapi::Interface;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use nix::unistd::{Pid, geteuid};

pub use mount::DEVICE;

/// What an emulation is to do.
#[derive(Debug)]
pub struct Options {
    /// What the device speaks.
    pub interface: Interface,
    /// Reproduce the two faults of patch 16 (v3).
    pub quirks: bool,
    /// The pause that stands for shutdown and boot.
    pub boot_delay: Duration,
    /// Kinds of files that are accepted beside memfd.
    pub also: Vec<FileKind>,
    /// Tokens whose prepare (v3) or preserve (sessions) callback fails.
    pub fail_prepare: BTreeMap<u64, Errno>,
    /// Tokens whose freeze callback fails.
    pub fail_freeze: BTreeMap<u64, Errno>,
    /// Tokens whose restore fails.
    pub fail_restore: BTreeMap<u64, Errno>,
    /// Tokens that are never ready for FINISH (sessions).
    pub busy_finish: BTreeSet<u64>,
    /// How many kexecs fail after the freeze (v3).
    pub fail_jumps: u32,
    /// The file of the policy that is asked, which SIGHUP has read again.
    pub policy: Option<PathBuf>,
}

/// Why there is no emulation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A step that the system refused.
    #[error("cannot {action} {place}: {errno}")]
    Step {
        /// What was tried.
        action: &'static str,
        /// On what.
        place: String,
        /// What the system said.
        errno: Errno,
    },
    /// Mounting and reading other processes is root's.
    #[error("the emulated orchestrator needs root: it mounts a file and reads its clients' memory")]
    NotRoot,
    /// The kernel has an orchestrator.
    #[error(
        "{0} is a real device, and it is not covered; choose another place with --at, or run a command \
         under the emulation with `lu emulate -- COMMAND`"
    )]
    RealDevice(PathBuf),
    /// There is an emulation already.
    #[error("something is mounted at {0} already; stop the other `lu emulate` or choose --at")]
    Emulated(PathBuf),
    /// The place cannot hold a device.
    #[error("{0} is not a file; choose another place with --at")]
    NotAFile(PathBuf),
    /// Somebody above listens to our system calls.
    #[error(
        "this runs under another `lu emulate`, or under a container runtime, that listens to system calls \
         by seccomp; the kernel allows one listener"
    )]
    Nested,
    /// The command does not start.
    #[error("cannot start {program}: {errno}")]
    Start {
        /// The command.
        program: String,
        /// Why.
        errno: Errno,
    },
    /// Nobody to ask.
    #[error("no `lu emulate` is running")]
    NoEmulator,
    /// Too many to ask.
    #[error("several emulators are running (processes {0:?}); choose one with --pid")]
    ManyEmulators(Vec<u32>),
    /// The policy is none.
    #[error("the policy has errors")]
    Policy(#[from] crate::policy::Error),
    /// The kexec did not happen.
    #[error("the kexec failed: {0}")]
    Refused(Errno),
}

/// Says what was being done when something failed.
trait Step<T> {
    fn step(self, action: &'static str, place: impl AsRef<Path>) -> Result<T, Error>;
}

impl<T, E: IntoErrno> Step<T> for Result<T, E> {
    fn step(self, action: &'static str, place: impl AsRef<Path>) -> Result<T, Error> {
        self.map_err(|error| Error::Step {
            action,
            place: place.as_ref().display().to_string(),
            errno: error.into_errno(),
        })
    }
}

trait IntoErrno {
    fn into_errno(self) -> Errno;
}

impl IntoErrno for Errno {
    fn into_errno(self) -> Errno {
        self
    }
}

impl IntoErrno for std::io::Error {
    fn into_errno(self) -> Errno {
        Errno::from_raw(self.raw_os_error().unwrap_or(libc::EIO))
    }
}

/// Runs `command` with the emulated device at [`DEVICE`] for it alone, and returns its exit status
/// (128 and more: ended by that signal, as shells say it).
pub fn run_command(options: &Options, command: &[OsString]) -> Result<i32, Error> {
    let signals = start()?;
    let policy = Policed::begin(options)?;
    let control = control::Control::start()?;
    let (ready, child) = spawn_inside(command, control.path())?;
    let device = device(options);
    device.stands_at(ready.place);
    reboot::init(machine(Arc::clone(&device), ready.device_number, options));
    let _session = serve(Arc::clone(&device), ready.fuse)?;
    let notices = Arc::new(ready.notices);
    let served = Arc::clone(&notices);
    std::thread::spawn(move || notify::serve(&served));
    let go = ready.go;
    let _ = go.send(());
    let child = child.recv().unwrap_or(Err(Error::NoEmulator))?;
    let status = wait_for_child(child, &signals, policy.as_ref())?;
    device.settle();
    drop(go);
    notify::leave_behind(&notices);
    Ok(status)
}

/// Lets the emulated device stand at `path` until a signal asks for the end.
pub fn run_at(options: &Options, path: &Path) -> Result<(), Error> {
    let signals = start()?;
    let policy = Policed::begin(options)?;
    let public = mount::Public::prepare(path)?;
    let control = control::Control::start()?;
    raise_own_limit();
    let fuse = mount::mount_file(path)?;
    let device = device(options);
    device.stands_at(mount::place(path)?);
    let device_number = mount::device_number(path)?;
    reboot::init(machine(Arc::clone(&device), device_number, options));
    let interface = device.orchestrator().interface().name();
    let _session = serve(device, fuse)?;
    eprintln!(
        "lu emulate: an orchestrator (interface {interface}) at {}, process {}; Ctrl-C ends it",
        path.display(),
        std::process::id()
    );
    loop {
        match signals.read_signal() {
            Ok(Some(info)) => match &policy {
                Some(policy) if info.ssi_signo == Signal::SIGHUP as u32 => policy.reload(&info),
                _ => break,
            },
            Ok(None) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).step("wait for", "a signal"),
        }
    }
    drop((public, control));
    Ok(())
}

/// What both ways begin with. The signals that end us are taken as messages from here on.
fn start() -> Result<SignalFd, Error> {
    if !geteuid().is_root() {
        return Err(Error::NotRoot);
    }
    let mut ending = SigSet::empty();
    for signal in [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGQUIT,
    ] {
        ending.add(signal);
    }
    ending.thread_block().step("block", "signals")?;
    SignalFd::with_flags(&ending, SfdFlags::SFD_CLOEXEC).step("wait for", "signals")
}

/// The policy's file.
struct Policed {
    interface: Interface,
    path: PathBuf,
}

impl Policed {
    /// The policy is in force from here on, where there is one.
    fn begin(options: &Options) -> Result<Option<Self>, Error> {
        let Some(path) = &options.policy else {
            return Ok(None);
        };
        let compiled = judge::read(path)?;
        judge::say(path, &compiled);
        let own = client::Client::of(std::process::id()).step("look at", "/proc/self")?;
        judge::enforce(options.interface, compiled, &own.task);
        Ok(Some(Self {
            interface: options.interface,
            path: path.clone(),
        }))
    }

    /// A signal asks for the file to be read again.
    fn reload(&self, info: &siginfo) {
        let sender = client::Client::of(info.ssi_pid).map(|client| client.task);
        let who = sender.unwrap_or(Task {
            pid: info.ssi_pid,
            tid: info.ssi_pid,
            uid: info.ssi_uid,
            ..Task::default()
        });
        judge::reload(self.interface, &self.path, &who);
    }
}

/// The orchestrator of an interface and its device.
fn device(options: &Options) -> Arc<device::Device> {
    let files = files::Files {
        also: options.also.clone(),
        fail_prepare: options.fail_prepare.clone(),
        fail_freeze: options.fail_freeze.clone(),
        fail_restore: options.fail_restore.clone(),
        busy_finish: options.busy_finish.clone(),
    };
    match options.interface {
        Interface::V3 => {
            v3::luo::init(files, options.quirks);
            Arc::new(device::Device::new(&v3::luo::V3))
        }
        Interface::Sessions => {
            let device = Arc::new(device::Device::new(&sessions::luo::Sessions));
            sessions::luo::init(files, Arc::clone(&device));
            device
        }
    }
}

fn machine(device: Arc<device::Device>, device_number: u64, options: &Options) -> reboot::Machine {
    reboot::Machine {
        device,
        device_number,
        boot_delay: options.boot_delay,
        fail_jumps: AtomicU32::new(options.fail_jumps),
    }
}

fn serve(device: Arc<device::Device>, fuse: OwnedFd) -> Result<fuser::BackgroundSession, Error> {
    Session::from_fd(
        device::Served::new(device),
        fuse,
        SessionACL::All,
        Config::default(),
    )
    .and_then(Session::spawn)
    .step("serve", "the FUSE file system")
}

/// Each preserved file costs us a descriptor. Returns the limit that the command is to have.
fn raise_own_limit() -> Option<(u64, u64)> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).ok()?;
    Some((soft, hard))
}

/// What the thread that will start the command has made ready.
struct Ready {
    fuse: OwnedFd,
    place: OwnedFd,
    device_number: u64,
    notices: OwnedFd,
    /// Sent to when the command may start, dropped when its namespace may go.
    go: mpsc::Sender<()>,
}

/// Starts a thread with a mount namespace and a system call filter of its own; the command that it
/// starts has both.
fn spawn_inside(
    command: &[OsString],
    control: &Path,
) -> Result<(Ready, mpsc::Receiver<Result<Child, Error>>), Error> {
    let (go, may_go) = mpsc::channel();
    let (mounted, is_mounted) = mpsc::channel();
    let (started, child) = mpsc::channel();
    let scratch = control.with_extension("dev");
    let mut program = Command::new(&command[0]);
    program.args(&command[1..]).env(control::VARIABLE, control);
    let limit = raise_own_limit();
    // SAFETY: the closure makes two system calls.
    unsafe {
        program.pre_exec(move || {
            // We take the signals that end us as messages; the command takes them as it likes.
            SigSet::empty().thread_set_mask()?;
            if let Some((soft, hard)) = limit {
                setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
            }
            Ok(())
        });
    }
    let name = command[0].to_string_lossy().into_owned();
    std::thread::spawn(move || {
        let prepare = || {
            mount::private_device(&scratch)?;
            let fuse = mount::mount_file(Path::new(DEVICE))?;
            let place = mount::place(Path::new(DEVICE))?;
            let device_number = mount::device_number(Path::new(DEVICE))?;
            let notices = match notify::install_filter() {
                Err(Errno::EBUSY) => return Err(Error::Nested),
                filtered => filtered.step("filter", "the command's system calls")?,
            };
            Ok((fuse, place, device_number, notices))
        };
        let _ = mounted.send(prepare());
        if may_go.recv().is_err() {
            return;
        }
        let _ = started.send(program.spawn().map_err(|error| Error::Start {
            program: name,
            errno: error.into_errno(),
        }));
        // With its last thread the namespace goes, and with it the mount and what it still has to say.
        let _ = may_go.recv();
    });
    let (fuse, place, device_number, notices) =
        is_mounted.recv().unwrap_or(Err(Error::NoEmulator))?;
    let ready = Ready {
        fuse,
        place,
        device_number,
        notices,
        go,
    };
    Ok((ready, child))
}

/// Waits through a pidfd: a plain wait would also take the stops of a child that is being given a
/// descriptor.
fn wait_for_child(
    mut child: Child,
    signals: &SignalFd,
    policy: Option<&Policed>,
) -> Result<i32, Error> {
    let pid = Pid::from_raw(child.id() as i32);
    let pidfd = client::pidfd_open(pid, 0).step("watch", "the command")?;
    loop {
        let mut fds = [
            PollFd::new(pidfd.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).step("wait for", "the command"),
        }
        let [ended, signalled] =
            fds.map(|fd| fd.revents().is_some_and(|events| !events.is_empty()));
        if ended {
            let status = child.wait().step("wait for", "the command")?;
            return Ok(status
                .code()
                .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)));
        }
        if signalled && let Ok(Some(info)) = signals.read_signal() {
            if let Some(policy) = policy
                && info.ssi_signo == Signal::SIGHUP as u32
            {
                policy.reload(&info);
                continue;
            }
            // Ctrl-C and Ctrl-\ reach the command from the terminal itself.
            if let Ok(signal @ (Signal::SIGTERM | Signal::SIGHUP)) =
                Signal::try_from(info.ssi_signo as i32)
            {
                let _ = kill(pid, signal);
            }
        }
    }
}
