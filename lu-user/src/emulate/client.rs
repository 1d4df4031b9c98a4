//! The calling thread, seen from outside: who it is, its memory, its descriptors.
//!
//! FUSE tells the thread's id and holds the thread in its system call until we answer, so what is read
//! here cannot change under us.

use std::fs;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use lu_common::event::{COMM_LEN, Task};
use lu_common::policy::LEVELS;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::stat::Mode;
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;

use super::argument::UserMemory;

/// How long a thread may take from queueing its request to sleeping, before we call it gone.
const FALLS_ASLEEP_WITHIN: Duration = Duration::from_secs(1);

/// A thread that waits for our answer.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    tid: Pid,
    /// Who it is, as events tell it.
    pub task: Task,
    /// Its real group id.
    pub gid: u32,
    /// Its effective user id in our user namespace; `None`: unknown.
    pub euid: Option<u32>,
    /// Its effective group id there.
    pub egid: Option<u32>,
    /// Its effective capabilities, as a bit mask.
    pub capabilities: u64,
    /// Whether it is the first thread of our own child: the command.
    pub is_command: bool,
}

impl Client {
    /// Looks the thread up in /proc.
    pub fn of(tid: u32) -> Result<Self, Errno> {
        let status = read_proc(tid, "status")?;
        let field = |name: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name)?.split_whitespace().next())
                .unwrap_or_default()
        };
        // Real, effective, saved, file system.
        let effective = |name: &str| {
            let ids = status.lines().find_map(|line| line.strip_prefix(name))?;
            ids.split_whitespace().nth(1)?.parse().ok()
        };
        let name = read_proc_bytes(tid, "comm")?;
        let name = name.strip_suffix(b"\n").unwrap_or(&name);
        let mut comm = [0; COMM_LEN];
        let length = name.len().min(COMM_LEN - 1);
        comm[..length].copy_from_slice(&name[..length]);
        let pid = field("Tgid:").parse().unwrap_or(tid);
        let ours = field("PPid:").parse() == Ok(std::process::id());
        Ok(Self {
            is_command: ours && pid == tid,
            tid: Pid::from_raw(tid as i32),
            task: Task {
                pid,
                tid,
                uid: field("Uid:").parse().unwrap_or(u32::MAX),
                none: 0,
                cgroup_id: cgroup_id(tid).unwrap_or(0),
                comm,
            },
            gid: field("Gid:").parse().unwrap_or(u32::MAX),
            euid: effective("Uid:"),
            egid: effective("Gid:"),
            capabilities: u64::from_str_radix(field("CapEff:"), 16).unwrap_or(0),
        })
    }

    /// The executable of its process: the number of its file system as the kernel has it (`super_block.s_dev`),
    /// and its inode's. A file system may tell another number to those who ask for a file's (Btrfs does), but not
    /// in its list of mounts.
    pub fn exe(&self) -> Option<(u64, u64)> {
        let (mount, inode) = super::stat::mount_and_inode(&self.proc("exe")).ok()?;
        // An executable from outside of its root is not in its own list; the numbers are the same in all.
        let device = [self.proc("mountinfo"), "/proc/self/mountinfo".into()]
            .iter()
            .find_map(|list| device_of_mount(&fs::read_to_string(list).ok()?, mount))?;
        Some((device, inode))
    }

    /// The ids of its cgroup in the unified hierarchy and of those above it, by level.
    pub fn cgroups(&self) -> Option<[u64; LEVELS]> {
        let path = cgroup_path(self.task.tid)?;
        let mut folder = cgroup2_root()?.clone();
        let mut ids = [0; LEVELS];
        ids[0] = fs::metadata(&folder).ok()?.ino();
        let parts = path.split('/').filter(|part| !part.is_empty());
        for (id, part) in ids[1..].iter_mut().zip(parts) {
            folder.push(part);
            *id = fs::metadata(&folder).ok()?.ino();
        }
        Some(ids)
    }

    fn proc(&self, name: &str) -> PathBuf {
        format!("/proc/{}/{name}", self.task.tid).into()
    }

    /// Its thread id.
    pub const fn tid(&self) -> Pid {
        self.tid
    }

    /// The third argument of the ioctl that it is in: FUSE does not pass it on.
    pub fn ioctl_argument(&self, cmd: u32) -> Result<u64, Errno> {
        let deadline = Instant::now() + FALLS_ASLEEP_WITHIN;
        loop {
            let line = read_proc(self.task.tid, "syscall")?;
            let mut words = line.split_whitespace();
            // It has queued its request and is not asleep yet.
            if words.clone().next() == Some("running") {
                if Instant::now() > deadline {
                    return Err(Errno::EIO);
                }
                std::thread::yield_now();
                continue;
            }
            let number = words.next().and_then(|word| word.parse::<i64>().ok());
            let mut args = words.map(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16));
            let (Some(Ok(_fd)), Some(Ok(command)), Some(Ok(argument))) =
                (args.next(), args.next(), args.next())
            else {
                return Err(Errno::EFAULT);
            };
            // Not through ioctl(2), as with io_uring: there is no argument to be found.
            if number != Some(libc::SYS_ioctl) || command as u32 != cmd {
                return Err(Errno::EFAULT);
            }
            return Ok(argument);
        }
    }

    /// Its descriptor `fd`, taken over by reference: `fget` in the kernel, EBADF if there is none.
    ///
    /// Of the device itself we take no reference, since closing it would ask ourselves; something that
    /// can be preserved no more stands for it.
    pub fn file(&self, fd: i32) -> Result<OwnedFd, Errno> {
        if super::reboot::is_device(self.tid, fd) {
            return open(
                "/dev/null",
                OFlag::O_RDONLY | OFlag::O_CLOEXEC,
                Mode::empty(),
            );
        }
        let pidfd = self.pidfd()?;
        // SAFETY: the call takes three integers and gives a new descriptor or an error.
        let got = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) };
        let got = Errno::result(got).map_err(|errno| match errno {
            Errno::ESRCH => Errno::EBADF,
            // Ours, not the caller's.
            Errno::EMFILE | Errno::ENFILE => Errno::ENOMEM,
            errno => errno,
        })?;
        // SAFETY: the kernel has just given us this descriptor, and nobody else knows it.
        let file = unsafe { OwnedFd::from_raw_fd(got as i32) };
        let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL)?);
        if flags.contains(OFlag::O_PATH) {
            return Err(Errno::EBADF);
        }
        Ok(file)
    }

    fn pidfd(&self) -> Result<OwnedFd, Errno> {
        // A thread's own descriptor, because the group's leader may have exited (Linux 6.9).
        pidfd_open(self.tid, libc::PIDFD_THREAD)
            .or_else(|_| pidfd_open(Pid::from_raw(self.task.pid as i32), 0))
    }

    /// Whether another descriptor would be over its limit (EMFILE).
    pub fn has_no_free_fd(&self) -> bool {
        let folder = PathBuf::from(format!("/proc/{}/fd", self.task.tid));
        let limit = fd_limit(self.tid).map_or(u64::MAX, |limit| limit.rlim_cur);
        // Since Linux 6.2 the folder's size is the number of open descriptors; fewer than the limit
        // means that one below the limit is free, and no list is needed.
        let count = fs::metadata(&folder).map_or(0, |meta| meta.size());
        if count > 0 && count < limit {
            return false;
        }
        let used = fs::read_dir(&folder)
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u64>().ok())
            .filter(|fd| *fd < limit)
            .count();
        // On the way to its one new descriptor the caller has two (see `inject`).
        let room = self.raise_fd_limit(1).inspect(|limit| {
            self.set_fd_limit(limit);
        });
        used as u64 + u64::from(room.is_none()) >= limit
    }

    /// Lets it have `more` descriptors than it may for a while; returns the limit to put back. `None`: we may
    /// not, which is so where the hard limit is reached and `CAP_SYS_RESOURCE` is missing.
    pub fn raise_fd_limit(&self, more: u64) -> Option<libc::rlimit64> {
        let limit = fd_limit(self.tid)?;
        let raised = limit.rlim_cur.saturating_add(more);
        self.set_fd_limit(&libc::rlimit64 {
            rlim_cur: raised,
            rlim_max: limit.rlim_max.max(raised),
        })
        .then_some(limit)
    }

    /// Sets its limit of descriptors; whether that was allowed.
    pub fn set_fd_limit(&self, limit: &libc::rlimit64) -> bool {
        // SAFETY: the new limit is read from a structure of the right type.
        let done = unsafe {
            libc::prlimit64(
                self.tid.as_raw(),
                libc::RLIMIT_NOFILE,
                limit,
                std::ptr::null_mut(),
            )
        };
        done == 0
    }

    /// Whether it sees our processes by our numbers, and may look into them by the same rules.
    pub fn shares_namespaces(&self) -> bool {
        ["pid", "user"].into_iter().all(|kind| {
            let of = |who: &str| fs::read_link(format!("/proc/{who}/ns/{kind}")).ok();
            of(&self.task.tid.to_string()) == of("self")
        })
    }
}

/// `pidfd_open(2)`.
pub fn pidfd_open(pid: Pid, flags: u32) -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes two integers and gives a new descriptor or an error.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), flags) };
    // SAFETY: on success the kernel has just given us this descriptor.
    Errno::result(fd).map(|fd| unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn fd_limit(tid: Pid) -> Option<libc::rlimit64> {
    let mut limit = libc::rlimit64 {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the old limit is written to a structure of the right type that outlives the call.
    let done = unsafe {
        libc::prlimit64(
            tid.as_raw(),
            libc::RLIMIT_NOFILE,
            std::ptr::null(),
            &raw mut limit,
        )
    };
    (done == 0).then_some(limit)
}

impl UserMemory for Client {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Errno> {
        let wanted = into.len();
        let remote = [RemoteIoVec {
            base: address as usize,
            len: wanted,
        }];
        let read = process_vm_readv(self.tid, &mut [IoSliceMut::new(into)], &remote);
        complete(read, wanted)
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), Errno> {
        let remote = [RemoteIoVec {
            base: address as usize,
            len: from.len(),
        }];
        let written = process_vm_writev(self.tid, &[IoSlice::new(from)], &remote);
        complete(written, from.len())
    }
}

/// A part is a fault, as in `copy_from_user`. A caller that is gone no longer has any memory.
fn complete(done: Result<usize, Errno>, wanted: usize) -> Result<(), Errno> {
    match done {
        Ok(count) if count == wanted => Ok(()),
        Ok(_) | Err(Errno::ESRCH | Errno::EINVAL) => Err(Errno::EFAULT),
        Err(errno) => Err(errno),
    }
}

fn read_proc_bytes(tid: u32, name: &str) -> Result<Vec<u8>, Errno> {
    fs::read(format!("/proc/{tid}/{name}"))
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
}

fn read_proc(tid: u32, name: &str) -> Result<String, Errno> {
    Ok(String::from_utf8_lossy(&read_proc_bytes(tid, name)?).into_owned())
}

/// The id of a thread's cgroup in the unified hierarchy: the inode number of its folder.
fn cgroup_id(tid: u32) -> Option<u64> {
    let path = cgroup_path(tid)?;
    let folder = cgroup2_root()?.join(path.trim_start_matches('/'));
    Some(fs::metadata(folder).ok()?.ino())
}

/// Where a thread's cgroup is in the unified hierarchy.
fn cgroup_path(tid: u32) -> Option<String> {
    let groups = read_proc(tid, "cgroup").ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(path.to_owned())
}

fn cgroup2_root() -> Option<&'static PathBuf> {
    static ROOT: OnceLock<Option<PathBuf>> = OnceLock::new();
    let find = || {
        let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
        mounts.lines().find_map(|line| {
            let mut words = line.split(' ');
            let place = words.nth(1)?;
            (words.next()? == "cgroup2").then(|| place.into())
        })
    };
    ROOT.get_or_init(find).as_ref()
}

/// The number of a mount's file system, as the kernel has it: the third word of its line in a `mountinfo`.
fn device_of_mount(list: &str, mount: u64) -> Option<u64> {
    list.lines().find_map(|line| {
        let mut words = line.split(' ');
        if words.next()?.parse() != Ok(mount) {
            return None;
        }
        let (major, minor) = words.nth(1)?.split_once(':')?;
        Some(major.parse::<u64>().ok()? << 20 | minor.parse::<u64>().ok()?)
    })
}
