//! System calls of the command that are no business of the device and still must not reach the
//! machine as they are: reboot(KEXEC), which would be a real one, and changes to the size of a memfd
//! that is prepared, which the real orchestrator would refuse.
//!
//! A seccomp filter on the command and its children hands these few to us (`SECCOMP_RET_USER_NOTIF`,
//! Linux 5.0); all others pass at the filter's price.

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{ForkResult, Pid, fork, setsid};

use super::client::Client;
use super::stat::Stat;
use super::{inject, reboot};

/// `LINUX_REBOOT_CMD_KEXEC`, `LINUX_REBOOT_MAGIC1`, and the four values of the second magic number.
const KEXEC: u32 = 0x4558_4543;
const MAGIC1: u32 = 0xfee1_dead;
const MAGIC2: [u32; 4] = [672_274_793, 85_072_278, 369_367_448, 537_993_216];
const CAP_SYS_BOOT: u64 = 1 << 22;

/// `SECCOMP_IOCTL_NOTIF_RECV` and `SECCOMP_IOCTL_NOTIF_SEND` (`include/uapi/linux/seccomp.h`).
const RECEIVE: libc::c_ulong = 0xc050_2100;
const SEND: libc::c_ulong = 0xc018_2101;

/// `SECCOMP_IOCTL_NOTIF_ID_VALID`.
const IS_VALID: libc::c_ulong = 0x4008_2102;

/// `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV` (Linux 5.19): once we have a call, no signal but a deadly one
/// interrupts it.
const WAIT_KILLABLE: libc::c_ulong = 1 << 5;

/// `AUDIT_ARCH_X86_64` and `AUDIT_ARCH_AARCH64`.
#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;

/// The number of reboot(2) for 32-bit programs: i386 and arm have the same.
const REBOOT_32: u32 = 88;

/// How long our own thread under the filter may take to end, in milliseconds.
const THREAD_ENDS_WITHIN_MS: i32 = 50;

/// The bit of x32 system calls, which share the 64-bit architecture.
const X32: u32 = 0x4000_0000;

/// Offsets in `struct seccomp_data`.
const NR: u32 = 0;
const ARCHITECTURE: u32 = 4;
const THIRD_ARGUMENT: u32 = 32;

/// Puts the filter on the calling thread and on all that it starts; returns where the calls come.
pub fn install_filter() -> Result<OwnedFd, Errno> {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut program = [
        step(LOAD, 0, 0, ARCHITECTURE),
        step(EQUAL, 2, 0, ARCH),
        // Another architecture: a 32-bit program. It has no business with the orchestrator.
        step(LOAD, 0, 0, NR),
        step(EQUAL, 5, 8, REBOOT_32),
        step(LOAD, 0, 0, NR),
        step(EQUAL, 7, 0, libc::SYS_ftruncate as u32),
        step(EQUAL, 6, 0, libc::SYS_fallocate as u32),
        step(EQUAL, 2, 0, libc::SYS_reboot as u32),
        step(EQUAL, 0, 3, libc::SYS_reboot as u32 | X32),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        step(LOAD, 0, 0, THIRD_ARGUMENT),
        step(EQUAL, 1, 0, KEXEC),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
        step(RETURN, 0, 0, libc::SECCOMP_RET_USER_NOTIF),
    ];
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    let install = |flags: libc::c_ulong| {
        // SAFETY: the filter and its program outlive the call; the kernel copies them.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | flags,
                &raw const filter,
            )
        };
        // SAFETY: on success the kernel has just given us this descriptor.
        Errno::result(fd).map(|fd| unsafe { OwnedFd::from_raw_fd(fd as i32) })
    };
    install(WAIT_KILLABLE).or_else(|errno| match errno {
        Errno::EINVAL => install(0),
        errno => Err(errno),
    })
}

/// Goes on answering in a process of its own if somebody is still under the filter: a child of the
/// command that outlives it. Without an answer its system calls would fail (ENOSYS).
pub fn leave_behind(listener: &OwnedFd) {
    if nobody_left(listener, THREAD_ENDS_WITHIN_MS) {
        return;
    }
    // SAFETY: the child makes system calls alone until it ends.
    if let Ok(ForkResult::Child) = unsafe { fork() } {
        let _ = setsid();
        // Nobody must wait for the end of a pipe of ours.
        inject::close_all_but([listener.as_raw_fd()]);
        loop {
            match receive(listener) {
                Ok(notice) if i64::from(notice.data.nr) == libc::SYS_reboot => {
                    send(listener, &notice, Answer::Refuse(Errno::EPERM));
                }
                Ok(notice) => send(listener, &notice, Answer::Continue),
                Err(Errno::EINTR | Errno::ENOENT) if !nobody_left(listener, 0) => {}
                // SAFETY: ends this process; nothing of the parent's is flushed or dropped.
                Err(_) => unsafe { libc::_exit(0) },
            }
        }
    }
}

fn receive(listener: &OwnedFd) -> Result<libc::seccomp_notif, Errno> {
    // SAFETY: all-zero bytes are a notification, and the kernel wants them.
    let mut notice: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one structure of this type.
    let received = unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE as _, &raw mut notice) };
    Errno::result(received).map(|_| notice)
}

/// Whether the caller still waits for the answer.
fn is_valid(listener: &OwnedFd, notice: &libc::seccomp_notif) -> bool {
    // SAFETY: the kernel reads one integer of this type.
    let valid = unsafe { libc::ioctl(listener.as_raw_fd(), IS_VALID as _, &raw const notice.id) };
    valid == 0
}

/// Answers until nobody is under the filter any more.
pub fn serve(listener: &OwnedFd) {
    loop {
        let notice = match receive(listener) {
            Ok(notice) => notice,
            // The caller was killed before we read.
            Err(Errno::EINTR | Errno::ENOENT) => {
                if nobody_left(listener, 0) {
                    return;
                }
                continue;
            }
            Err(_) => return,
        };
        if i64::from(notice.data.nr) == libc::SYS_reboot {
            // It takes as long as a boot, and other calls must go on.
            if let Ok(listener) = listener.try_clone() {
                std::thread::spawn(move || {
                    let answer = kexec(&listener, &notice);
                    send(&listener, &notice, answer);
                });
            }
        } else {
            let answer = resize(&notice);
            send(listener, &notice, answer);
        }
    }
}

/// Whether everybody under the filter ends within `wait_ms` milliseconds.
fn nobody_left(listener: &OwnedFd, wait_ms: i32) -> bool {
    let mut poll = libc::pollfd {
        fd: listener.as_raw_fd(),
        events: 0,
        revents: 0,
    };
    // SAFETY: one structure, which outlives the call.
    unsafe { libc::poll(&raw mut poll, 1, wait_ms) };
    poll.revents & libc::POLLHUP != 0
}

#[derive(Clone, Copy)]
enum Answer {
    /// The system call goes on as if nothing had been.
    Continue,
    /// It returns this error.
    Refuse(Errno),
}

fn send(listener: &OwnedFd, notice: &libc::seccomp_notif, answer: Answer) {
    let mut response = libc::seccomp_notif_resp {
        id: notice.id,
        val: 0,
        error: 0,
        flags: 0,
    };
    match answer {
        Answer::Continue => response.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
        Answer::Refuse(errno) => response.error = -(errno as i32),
    }
    // A caller that has been killed meanwhile needs no answer (ENOENT).
    // SAFETY: the kernel reads one structure of this type.
    unsafe { libc::ioctl(listener.as_raw_fd(), SEND as _, &raw mut response) };
}

fn kexec(listener: &OwnedFd, notice: &libc::seccomp_notif) -> Answer {
    let args = notice.data.args;
    if args[0] as u32 != MAGIC1 || !MAGIC2.contains(&(args[1] as u32)) {
        return Answer::Continue;
    }
    let client = match Client::of(notice.pid) {
        Ok(client) => client,
        Err(errno) => return Answer::Refuse(errno),
    };
    if client.capabilities & CAP_SYS_BOOT == 0 {
        return Answer::Refuse(Errno::EPERM);
    }
    let process = Pid::from_raw(client.task.pid as i32);
    match reboot::reboot(&client, Some(process), || is_valid(listener, notice)) {
        // Its process has ended with the old kernel.
        Ok(()) => Answer::Refuse(Errno::EINTR),
        Err(errno) => Answer::Refuse(errno),
    }
}

/// `ftruncate(fd, length)` and `fallocate(fd, mode, offset, length)` of a memfd whose size is held: the
/// first may not change the size, the second may do nothing at all (`SHMEM_F_MAPPING_FROZEN` in
/// `mm/shmem.c`, Linux 7.3.4).
fn resize(notice: &libc::seccomp_notif) -> Answer {
    let [fd, args @ ..] = notice.data.args;
    let changes = || -> Result<bool, Errno> {
        // Looked at from outside: a reference of ours would have to be closed, which asks the file's server.
        let path = format!("/proc/{}/fd/{}", notice.pid, fd as i32);
        let stat = Stat::at(Path::new(&path))?;
        let changes = if i64::from(notice.data.nr) == libc::SYS_ftruncate {
            args[0] != stat.size && args[0] as i64 >= 0
        } else {
            allocates(args[0] as i32, args[1] as i64, args[2] as i64)
        };
        Ok(changes && reboot::holds_size_of(stat.identity) && is_writable(notice.pid, fd)?)
    };
    // What cannot be looked at is the kernel's to judge.
    if changes().unwrap_or(false) {
        Answer::Refuse(Errno::EPERM)
    } else {
        Answer::Continue
    }
}

/// Whether the arguments of fallocate(2) are ones that the kernel hands on to shmem, and shmem knows.
const fn allocates(mode: i32, offset: i64, length: i64) -> bool {
    let known = matches!(
        mode,
        0 | libc::FALLOC_FL_KEEP_SIZE | PUNCH_HOLE_AND_KEEP_SIZE
    );
    known && offset >= 0 && length > 0 && offset.checked_add(length).is_some()
}

const PUNCH_HOLE_AND_KEEP_SIZE: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

/// Whether a descriptor may write at all; where not the kernel has an error of its own.
fn is_writable(tid: u32, fd: u64) -> Result<bool, Errno> {
    let path = format!("/proc/{tid}/fdinfo/{}", fd as i32);
    let info = std::fs::read_to_string(path).map_err(|_| Errno::EBADF)?;
    let flags = info
        .lines()
        .find_map(|line| i32::from_str_radix(line.strip_prefix("flags:")?.trim(), 8).ok());
    Ok(flags.is_some_and(|flags| flags & libc::O_ACCMODE != libc::O_RDONLY))
}
