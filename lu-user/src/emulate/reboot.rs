//! reboot(KEXEC), played: what is prepared is frozen, the clients are killed, the boot delay passes, and the
//! orchestrator starts anew.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use lu_common::policy::Operation;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::client::Client;
use super::device::Device;
use super::stat::Stat;

/// How long the clients may take to end after SIGKILL.
const CLIENTS_END_WITHIN: Duration = Duration::from_secs(10);

/// How often it is looked whether they have ended.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// What the reboot acts on.
pub struct Machine {
    /// The device whose clients end.
    pub device: Arc<Device>,
    /// The device number of the emulated file system: an open file on it makes a client.
    pub device_number: u64,
    /// The pause that stands for shutdown and boot.
    pub boot_delay: Duration,
    /// How many jumps fail after the freeze, so that userspace goes on in FROZEN.
    pub fail_jumps: AtomicU32,
}

static MACHINE: OnceLock<Machine> = OnceLock::new();

/// The kernel's `system_transition_mutex`: one reboot at a time.
static REBOOTING: Mutex<()> = Mutex::new(());

/// Sets the machine up; once in a process.
pub fn init(machine: Machine) {
    assert!(MACHINE.set(machine).is_ok(), "there is one machine");
}

/// Whether `fd` of the thread `tid` is the device itself.
pub fn is_device(tid: Pid, fd: i32) -> bool {
    let path = format!("/proc/{tid}/fd/{fd}");
    MACHINE
        .get()
        .is_some_and(|machine| is_on(Path::new(&path), machine.device_number))
}

/// Whether the size of the memfd with this identity must not change now.
pub fn holds_size_of(identity: (u64, u64)) -> bool {
    let device = &machine().device;
    let holds = || device.orchestrator().holds_size_of(identity);
    // Only a close that has not reached us yet could say otherwise.
    holds() && {
        device.catch_up();
        holds()
    }
}

/// reboot(KEXEC) by `caller`. When it succeeds, every client has ended and the new epoch has begun.
/// `ends` is a process that ends with the old kernel although it may not hold the device.
///
/// One reboot at a time: `is_wanted` is asked once it is this one's turn, since the caller may have
/// ended with an earlier one (ESRCH).
pub fn reboot(
    caller: &Client,
    ends: Option<Pid>,
    is_wanted: impl FnOnce() -> bool,
) -> Result<(), Errno> {
    let _one_at_a_time = REBOOTING.lock().unwrap_or_else(PoisonError::into_inner);
    if !is_wanted() {
        return Err(Errno::ESRCH);
    }
    // A session whose close has returned is not there any more.
    machine().device.catch_up();
    let orchestrator = machine().device.orchestrator();
    // All that the kernel can ask there is whether the caller has CAP_SYS_BOOT.
    let allowed = orchestrator.ask(caller, Operation::Kexec);
    allowed.map_err(|_| Errno::EPERM)?;
    *ALSO_ENDS.lock().unwrap_or_else(PoisonError::into_inner) = ends;
    orchestrator.reboot(&caller.task)
}

/// Who called, where it ends with the old kernel.
static ALSO_ENDS: Mutex<Option<Pid>> = Mutex::new(None);

fn machine() -> &'static Machine {
    MACHINE.get().expect("init() has been called")
}

/// The kernel's `kernel_kexec`. While it goes on no call is served; they are where the freeze fails, and
/// their callers end where it succeeds.
pub fn kernel_kexec() -> Result<(), Errno> {
    let machine = machine();
    let orchestrator = machine.device.orchestrator();
    machine.device.catch_up();
    machine.device.go_down();
    let frozen = orchestrator
        .liveupdate_reboot()
        .and_then(|()| machine.rehearsed());
    if frozen.is_err() {
        machine.device.come_back();
        return frozen;
    }
    machine.end_clients();
    orchestrator.machine_kexec();
    std::thread::sleep(machine.boot_delay);
    orchestrator.luo_startup();
    machine.device.come_up();
    Ok(())
}

impl Machine {
    /// EIO as often as jumps are to fail.
    fn rehearsed(&self) -> Result<(), Errno> {
        let failing = self
            .fail_jumps
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(1)
            });
        failing.map_or(Ok(()), |_| Err(Errno::EIO))
    }

    fn end_clients(&self) {
        if let Some(pid) = *ALSO_ENDS.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = kill(pid, Signal::SIGKILL);
        }
        let deadline = Instant::now() + CLIENTS_END_WITHIN;
        while self.device.is_open() {
            for pid in holders(self.device_number) {
                let _ = kill(pid, Signal::SIGKILL);
            }
            // What is being killed never sees the answer, and cannot end without it.
            self.device.drop_calls();
            if Instant::now() > deadline {
                log::error!("a client has not ended after SIGKILL; its open file is cut off");
                return;
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

/// The processes, without this one, that have a file open on the file system with this number.
fn holders(device_number: u64) -> Vec<Pid> {
    let own = std::process::id() as i32;
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != own && holds(*pid, device_number))
        .map(Pid::from_raw)
        .collect()
}

/// Thread by thread: the first one of a process may have ended, and shows no files then.
fn holds(pid: i32, device_number: u64) -> bool {
    entries(Path::new(&format!("/proc/{pid}/task")))
        .flat_map(|thread| entries(&thread.join("fd")))
        .any(|fd| is_on(&fd, device_number))
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
}

fn is_on(fd: &Path, device_number: u64) -> bool {
    Stat::at(fd).is_ok_and(|stat| stat.identity.0 == device_number)
}
