//! A descriptor for the caller: installed in it when its system call ends.
//!
//! No system call puts a descriptor into another process, so the waiting thread is seized with ptrace.
//! When it stops at the end of its ioctl it is made to fetch the file itself (`pidfd_open`,
//! `pidfd_getfd`, `close`), with its registers and its signal mask put back afterwards. It sees an
//! ioctl that returned, as from the kernel.

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::{set_dumpable, set_pdeathsig};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pause, pipe2, read};

use super::argument::UserMemory as _;
use super::client::{Client, pidfd_open};

/// How long a donor may take to take on the caller's identity, in milliseconds.
const DONATES_WITHIN_MS: u16 = 1000;

/// `PTRACE_O_SUSPEND_SECCOMP` (Linux 4.3): the caller's own filters do not see our calls.
const SUSPEND_SECCOMP: i32 = 1 << 21;

/// A thread that will stop at the end of the system call that it is in.
pub struct Seized {
    client: Client,
    stopped: bool,
}

impl Seized {
    /// Seizes the caller. EPERM if somebody else traces it, or if it is in a namespace from which our
    /// processes cannot be reached.
    pub fn new(client: &Client) -> Result<Self, Errno> {
        let tid = client.tid();
        if !client.shares_namespaces() {
            return Err(Errno::EPERM);
        }
        let sysgood = Options::PTRACE_O_TRACESYSGOOD;
        let quiet = sysgood | Options::from_bits_retain(SUSPEND_SECCOMP);
        // The second way is for kernels without CONFIG_CHECKPOINT_RESTORE.
        ptrace::seize(tid, quiet).or_else(|_| ptrace::seize(tid, sysgood))?;
        let seized = Self {
            client: *client,
            stopped: false,
        };
        ptrace::interrupt(tid)?;
        Ok(seized)
    }

    /// Installs `file` (close-on-exec), hands the number to `tell`, and lets the thread go. The call
    /// must have been answered. Where `tell` fails, the descriptor is closed again and the system call
    /// returns that error.
    ///
    /// Ours is closed before the thread goes on, so that its next close may be the last one.
    pub fn install(
        mut self,
        file: OwnedFd,
        tell: impl FnOnce(RawFd) -> Result<(), Errno>,
    ) -> Result<RawFd, Errno> {
        self.wait_for_stop()?;
        let mut inside = Inside::enter(&self.client)?;
        // One descriptor is free, as was looked at before; on the way there are two.
        let limit = self.client.raise_fd_limit(2);
        let outcome = inside
            .fetch(&file, std::process::id())
            .or_else(|errno| match errno {
                // The caller may not look into a process of root's: one of its own holds the file.
                Errno::EPERM => Donor::new(&self.client, &file)
                    .and_then(|donor| inside.fetch(&file, donor.pid.as_raw() as u32)),
                errno => Err(errno),
            })
            .and_then(|fd| {
                tell(fd).inspect_err(|_| {
                    let _ = inside.call(libc::SYS_close, [fd as u64, 0, 0]);
                })?;
                Ok(fd)
            });
        if let Some(limit) = limit {
            self.client.set_fd_limit(&limit);
        }
        drop(file);
        inside.leave(outcome.err())?;
        outcome
    }

    fn wait_for_stop(&mut self) -> Result<(), Errno> {
        if !self.stopped {
            wait_for(self.client.tid(), |status| {
                matches!(
                    status,
                    WaitStatus::PtraceEvent(..) | WaitStatus::Stopped(..)
                )
            })?;
            self.stopped = true;
        }
        Ok(())
    }
}

impl Drop for Seized {
    fn drop(&mut self) {
        let tid = self.client.tid();
        // Only a stopped thread can be let go. One that is gone is still ours to reap.
        let gone = self.wait_for_stop().is_err() || ptrace::detach(tid, None::<Signal>).is_err();
        // The command's own end is waited for where its exit status is wanted.
        if gone && !self.client.is_command {
            std::thread::spawn(move || reap(tid));
        }
    }
}

/// Waits for the end of a thread that is dying, so that its parent hears of it.
///
/// Not in the thread that serves: a process's first thread ends last, and the others may be waiting
/// for answers.
fn reap(tid: Pid) {
    loop {
        match waitpid(tid, Some(WaitPidFlag::__WALL)) {
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) => return,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

/// Waits until the thread stops in the way that `wanted` tells; ESRCH if it ends instead.
///
/// It polls, since the end of a process's first thread is not told before that of the others, which
/// may be waiting for us; and it looks for an end first, since taking the exit status is for others.
fn wait_for(tid: Pid, wanted: impl Fn(&WaitStatus) -> bool) -> Result<(), Errno> {
    loop {
        if is_ending(tid) {
            return Err(Errno::ESRCH);
        }
        let stops = WaitPidFlag::WSTOPPED | WaitPidFlag::__WALL | WaitPidFlag::WNOHANG;
        match waitid(Id::Pid(tid), stops) {
            Err(Errno::ECHILD) => return Err(Errno::ESRCH),
            Ok(WaitStatus::StillAlive) => std::thread::yield_now(),
            Ok(status) if wanted(&status) => return Ok(()),
            // A stop that came between: go on to the one we wait for.
            Ok(_) => ptrace::syscall(tid, None)?,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// `PF_EXITING` of the flags in `/proc/TID/stat`.
const EXITING: u64 = 0x4;

/// Whether the thread is ending, so that it will never stop again. While it ends it may already be
/// waiting for us, closing the device.
pub fn is_ending(tid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{tid}/stat")).unwrap_or_default();
    // Behind the name, which may hold anything: the state, five numbers, the flags.
    let flags = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.split(' ').nth(6)?.parse::<u64>().ok());
    flags.is_none_or(|flags| flags & EXITING != 0)
}

/// A stopped thread that runs system calls for us.
struct Inside {
    tid: Pid,
    registers: libc::user_regs_struct,
    signal_mask: u64,
}

/// Length of the instruction `syscall`, in bytes.
#[cfg(target_arch = "x86_64")]
const SYSCALL: [u8; 2] = [0x0f, 0x05];

#[cfg(target_arch = "x86_64")]
impl Inside {
    fn enter(client: &Client) -> Result<Self, Errno> {
        let tid = client.tid();
        let registers = ptrace::getregs(tid)?;
        let mut instruction = [0; SYSCALL.len()];
        client.read(registers.rip - SYSCALL.len() as u64, &mut instruction)?;
        if instruction != SYSCALL {
            return Err(Errno::ENOSYS);
        }
        let inside = Self {
            tid,
            registers,
            signal_mask: signal_mask(tid)?,
        };
        // No signal may come between our calls.
        set_signal_mask(tid, u64::MAX)?;
        Ok(inside)
    }

    /// Makes the thread run one system call.
    fn call(&mut self, number: i64, args: [u64; 3]) -> Result<i64, Errno> {
        let mut registers = self.registers;
        registers.rip -= SYSCALL.len() as u64;
        registers.rax = number as u64;
        // Not in a system call: nothing to restart.
        registers.orig_rax = u64::MAX;
        [registers.rdi, registers.rsi, registers.rdx] = args;
        ptrace::setregs(self.tid, registers)?;
        for _entry_then_exit in 0..2 {
            ptrace::syscall(self.tid, None)?;
            wait_for(self.tid, |status| {
                matches!(status, WaitStatus::PtraceSyscall(_))
            })?;
        }
        let result = ptrace::getregs(self.tid)?.rax as i64;
        if (-4095..0).contains(&result) {
            return Err(Errno::from_raw(-result as i32));
        }
        Ok(result)
    }

    /// Puts everything back; with an error, as the result of the thread's own system call.
    fn leave(&mut self, failed: Option<Errno>) -> Result<(), Errno> {
        if let Some(errno) = failed {
            self.registers.rax = -i64::from(errno as i32) as u64;
        }
        ptrace::setregs(self.tid, self.registers)?;
        set_signal_mask(self.tid, self.signal_mask)
    }
}

#[cfg(not(target_arch = "x86_64"))]
impl Inside {
    fn enter(_client: &Client) -> Result<Self, Errno> {
        log::error!("FD_RESTORE into a client is written for x86-64 alone so far");
        Err(Errno::ENOSYS)
    }

    fn call(&mut self, _number: i64, _args: [u64; 3]) -> Result<i64, Errno> {
        Err(Errno::ENOSYS)
    }

    fn leave(&mut self, _failed: Option<Errno>) -> Result<(), Errno> {
        Ok(())
    }
}

impl Inside {
    /// Makes the thread fetch our descriptor `file` from the process `holder`, under the lowest number
    /// that is free.
    fn fetch(&mut self, file: &OwnedFd, holder: u32) -> Result<RawFd, Errno> {
        let pidfd = self.call(libc::SYS_pidfd_open, [u64::from(holder), 0, 0])? as u64;
        let fetched = self.call(libc::SYS_pidfd_getfd, [pidfd, file.as_raw_fd() as u64, 0]);
        self.call(libc::SYS_close, [pidfd, 0, 0])?;
        let fetched = fetched? as u64;
        if fetched < pidfd {
            return Ok(fetched as RawFd);
        }
        let dup = [fetched, libc::F_DUPFD_CLOEXEC as u64, 0];
        let lowest = self.call(libc::SYS_fcntl, dup);
        self.call(libc::SYS_close, [fetched, 0, 0])?;
        lowest.map(|fd| fd as RawFd)
    }
}

/// `PTRACE_GETSIGMASK`: the size of the kernel's signal set is 8 bytes.
fn signal_mask(tid: Pid) -> Result<u64, Errno> {
    let mut mask = 0_u64;
    // SAFETY: the kernel writes the 8 bytes that it is told, to a variable of that size.
    let done = unsafe { libc::ptrace(libc::PTRACE_GETSIGMASK, tid.as_raw(), 8, &raw mut mask) };
    Errno::result(done).map(|_| mask)
}

fn set_signal_mask(tid: Pid, mask: u64) -> Result<(), Errno> {
    // SAFETY: the kernel reads the 8 bytes that it is told, from a variable of that size.
    let done = unsafe { libc::ptrace(libc::PTRACE_SETSIGMASK, tid.as_raw(), 8, &raw const mask) };
    Errno::result(done).map(drop)
}

/// A short-lived process with the caller's own identity, no privileges and one descriptor: what a
/// caller that is not root may fetch a file from.
struct Donor {
    pid: Pid,
}

impl Donor {
    fn new(client: &Client, file: &OwnedFd) -> Result<Self, Errno> {
        let fd = file.as_raw_fd();
        let (uid, gid) = (client.task.uid, client.gid);
        let (ready, ready_write) = pipe2(OFlag::O_CLOEXEC)?;
        // SAFETY: the child makes system calls alone until it ends, so locks held by other threads
        // at the fork do not matter.
        match unsafe { fork() }? {
            ForkResult::Child => donate(fd, ready_write.as_raw_fd(), uid, gid),
            ForkResult::Parent { child } => {
                drop(ready_write);
                let donor = Self { pid: child };
                // The end of the pipe instead of a byte means that the child could not do it.
                // Nor need it come: whoever has that identity can stop the child.
                let mut fds = [PollFd::new(ready.as_fd(), PollFlags::POLLIN)];
                if poll(&mut fds, PollTimeout::from(DONATES_WITHIN_MS)) == Ok(1)
                    && read(&ready, &mut [0]) == Ok(1)
                {
                    Ok(donor)
                } else {
                    Err(Errno::EPERM)
                }
            }
        }
    }
}

/// Closes every descriptor but those that are kept, the standard ones too, by system calls alone: for a
/// child that outlives its fork.
pub fn close_all_but<const N: usize>(mut keep: [RawFd; N]) {
    let close_range = |first: u32, last: u32| {
        // SAFETY: the call takes three integers; no descriptor within is used again.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    };
    keep.sort_unstable();
    let mut first = 0;
    for kept in keep.map(|fd| fd as u32) {
        if kept > first {
            close_range(first, kept - 1);
        }
        first = kept + 1;
    }
    close_range(first, u32::MAX);
}

/// What the donor does: only system calls, no allocation.
fn donate(fd: RawFd, ready: RawFd, uid: u32, gid: u32) -> ! {
    let no_capabilities = [0_u32; 6];
    let header = [0x2008_0522_u32, 0];
    close_all_but([fd, ready]);
    // The raw calls: the C library's would wake threads that this process does not have.
    // SAFETY: the kernel reads no group.
    unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<u32>()) };
    // SAFETY: the calls take integers.
    let group = unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) };
    // SAFETY: likewise.
    let user = unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) };
    // SAFETY: the kernel reads two arrays of the sizes that these have.
    let powers =
        unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), no_capabilities.as_ptr()) };
    if (group, user, powers) == (0, 0, 0) {
        let _ = set_dumpable(true);
        let _ = set_pdeathsig(Signal::SIGKILL);
        // Where Yama restricts ptrace, this process allows it.
        // SAFETY: the call takes integers.
        unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY, 0, 0, 0) };
        // SAFETY: the descriptor is open, and one byte is read from a constant.
        unsafe { libc::write(ready, b"!".as_ptr().cast(), 1) };
        loop {
            pause();
        }
    }
    // SAFETY: ends this process; nothing of the parent's is flushed or dropped.
    unsafe { libc::_exit(1) }
}

impl Drop for Donor {
    fn drop(&mut self) {
        let ended = pidfd_open(self.pid, 0);
        let _ = kill(self.pid, Signal::SIGKILL);
        // The file must not stay open because of it.
        if let Ok(ended) = ended {
            let mut fds = [PollFd::new(ended.as_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut fds, PollTimeout::from(DONATES_WITHIN_MS));
        }
        // Not here: whoever traces it is told of its end first.
        let pid = self.pid;
        std::thread::spawn(move || waitpid(pid, None));
    }
}
