//! reboot(KEXEC), played: what is prepared is frozen, the clients are killed, the boot delay passes, and the
//! orchestrator starts anew.

use std::ffi::{c_int, c_long};
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use lu_common::event::Task;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::device::Device;
use super::files::{from_c, to_c};
use super::luo;
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

/// reboot(KEXEC) by `caller`. When it succeeds, every client has ended and the new epoch has begun.
/// `ends` is a process that ends with the old kernel although it may not hold the device.
///
/// One reboot at a time: `is_wanted` is asked once it is this one's turn, since the caller may have
/// ended with an earlier one (ESRCH).
pub fn reboot(
    caller: &Task,
    ends: Option<Pid>,
    is_wanted: impl FnOnce() -> bool,
) -> Result<(), Errno> {
    let _one_at_a_time = REBOOTING.lock().unwrap_or_else(PoisonError::into_inner);
    if !is_wanted() {
        return Err(Errno::ESRCH);
    }
    *ALSO_ENDS.lock().unwrap_or_else(PoisonError::into_inner) = ends;
    let function = black_box(__x64_sys_reboot as extern "C" fn(_) -> _);
    from_c(function(&raw const *caller) as c_int)
}

/// Who called, where it ends with the old kernel.
static ALSO_ENDS: Mutex<Option<Pid>> = Mutex::new(None);

/// `long __x64_sys_reboot(const struct pt_regs *)`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn __x64_sys_reboot(regs: *const Task) -> c_long {
    black_box(regs);
    c_long::from(to_c(kernel_kexec()))
}

fn kernel_kexec() -> Result<(), Errno> {
    let machine = MACHINE.get().expect("init() has been called");
    luo::reboot()?;
    let failing = machine
        .fail_jumps
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            left.checked_sub(1)
        });
    if failing.is_ok() {
        return Err(Errno::EIO);
    }
    machine.device.go_down();
    machine.end_clients();
    luo::jump();
    std::thread::sleep(machine.boot_delay);
    luo::boot();
    machine.device.come_up();
    Ok(())
}

impl Machine {
    fn end_clients(&self) {
        if let Some(pid) = *ALSO_ENDS.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = kill(pid, Signal::SIGKILL);
        }
        let deadline = Instant::now() + CLIENTS_END_WITHIN;
        while self.device.is_open() {
            for pid in holders(self.device_number) {
                let _ = kill(pid, Signal::SIGKILL);
            }
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
