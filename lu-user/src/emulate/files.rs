//! Preserved files: what kind they are, and what is saved of them. A file is kept by reference.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{c_int, c_void};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lu_common::event::{File as View, FileKind};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::stat::{Mode, SFlag};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use nix::unistd::{Whence, ftruncate, lseek};

use super::client::Client;
use super::stat::Stat;

/// A preserved file: the emulated `struct file`.
///
/// It begins as [`lu_common::event::File`] does, which is what the hooks read.
#[repr(C)]
#[derive(Debug)]
pub struct Preserved {
    bytes: AtomicU64,
    kind: u16,
    padding: [u8; 6],
    token: u64,
    identity: (u64, u64),
    fd: ManuallyDrop<OwnedFd>,
    saved: Mutex<Option<Saved>>,
    /// A memfd as the new kernel gave it out first.
    retrieved: Mutex<Option<OwnedFd>>,
}

impl Drop for Preserved {
    /// A close may ask the file's server, which may never answer, so it is not the business of the
    /// thread that serves. A memfd has none.
    fn drop(&mut self) {
        // SAFETY: the field is not used again.
        let fd = unsafe { ManuallyDrop::take(&mut self.fd) };
        if self.kind() == FileKind::Memfd {
            drop(fd);
        } else {
            std::thread::spawn(move || drop(fd));
        }
    }
}

const _: () = {
    assert!(std::mem::offset_of!(Preserved, bytes) == std::mem::offset_of!(View, bytes));
    assert!(std::mem::offset_of!(Preserved, kind) == std::mem::offset_of!(View, kind));
};

/// What is saved of a memfd beside its content.
#[derive(Clone, Copy, Debug)]
struct Saved {
    bytes: u64,
    position: i64,
}

impl Preserved {
    /// The file behind a descriptor, to be preserved under `token`.
    pub fn new(token: u64, fd: OwnedFd) -> Result<Arc<Self>, Errno> {
        let stat = Stat::of(fd.as_fd())?;
        Ok(Arc::new(Self {
            bytes: AtomicU64::new(stat.size),
            kind: kind_of(&fd, &stat) as u16,
            padding: [0; 6],
            token,
            identity: stat.identity,
            fd: ManuallyDrop::new(fd),
            saved: Mutex::new(None),
            retrieved: Mutex::new(None),
        }))
    }

    /// The file behind a client's descriptor.
    pub fn of(client: &Client, token: u64, fd: i32) -> Result<Arc<Self>, Errno> {
        client.file(fd).and_then(|file| Self::new(token, file))
    }

    /// What sort of file it is.
    pub fn kind(&self) -> FileKind {
        FileKind::from_raw(self.kind).unwrap_or(FileKind::Other)
    }

    /// Its size, in bytes, as last looked at.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Its name.
    pub const fn token(&self) -> u64 {
        self.token
    }

    /// The file's device and inode number.
    pub const fn identity(&self) -> (u64, u64) {
        self.identity
    }

    /// How the kernel's pointers to two open files compare: the same open file is equal (kcmp(2)).
    pub fn compare(&self, other: &Self) -> std::cmp::Ordering {
        /// `KCMP_FILE`.
        const FILE: i32 = 0;
        let own = std::process::id();
        let (left, right) = (self.fd.as_raw_fd(), other.fd.as_raw_fd());
        // SAFETY: the call takes integers.
        match unsafe { libc::syscall(libc::SYS_kcmp, own, own, FILE, left, right) } {
            0 => std::cmp::Ordering::Equal,
            1 => std::cmp::Ordering::Less,
            2 => std::cmp::Ordering::Greater,
            // A kernel without it, or one that does not tell: by our numbers, which differ.
            _ => left.cmp(&right),
        }
    }

    /// The file as the new kernel gives it out: a memfd anew (read and write, at the saved position),
    /// any other kind as it was.
    pub fn reopen(&self) -> Result<OwnedFd, Errno> {
        if self.kind() != FileKind::Memfd {
            return copy(&self.fd);
        }
        let path = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        let fd = open(
            path.as_str(),
            OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_LARGEFILE,
            Mode::empty(),
        )?;
        if let Some(saved) = *self.saved() {
            lseek(&fd, saved.position, Whence::SeekSet)?;
        }
        Ok(fd)
    }

    /// Makes the file anew, once: [`Self::retrieved`] gives it out.
    pub fn retrieve(&self) -> Result<(), Errno> {
        if self.kind() == FileKind::Memfd {
            let file = self.reopen()?;
            *lock(&self.retrieved) = Some(file);
        }
        Ok(())
    }

    /// The file that [`Self::retrieve`] made: the same open file, however often it is asked for.
    pub fn retrieved(&self) -> Result<OwnedFd, Errno> {
        copy(lock(&self.retrieved).as_ref().unwrap_or(&self.fd))
    }

    fn saved(&self) -> MutexGuard<'_, Option<Saved>> {
        lock(&self.saved)
    }

    /// Saves a memfd's size, which must not change from now on, and its position.
    pub fn save(&self) -> Result<(), Errno> {
        if self.kind() == FileKind::Memfd {
            let bytes = Stat::of(self.fd.as_fd())?.size;
            let position = self.position()?;
            self.bytes.store(bytes, Ordering::Relaxed);
            *self.saved() = Some(Saved { bytes, position });
        }
        Ok(())
    }

    /// Saves the position anew, if it was saved.
    pub fn save_position(&self) -> Result<(), Errno> {
        if let Some(saved) = self.saved().as_mut() {
            saved.position = self.position()?;
        }
        Ok(())
    }

    fn position(&self) -> Result<i64, Errno> {
        lseek(self.fd.as_fd(), 0, Whence::SeekCur)
    }

    /// Forgets what was saved.
    pub fn forget(&self) {
        *self.saved() = None;
    }

    /// Once a memfd's size is saved the kernel refuses to change it. What nobody could refuse here
    /// (see `notify`) is undone.
    pub fn check_size(&self) -> Result<(), Errno> {
        if let Some(saved) = *self.saved() {
            let bytes = Stat::of(self.fd.as_fd())?.size;
            if bytes != saved.bytes {
                log::warn!(
                    "token {:#x}: the memfd was resized from {} to {bytes} bytes after its size was \
                     saved; the kernel would have refused that with EPERM, so it is put back",
                    self.token,
                    saved.bytes
                );
                ftruncate(self.fd.as_fd(), saved.bytes as i64)?;
            }
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn copy(fd: &OwnedFd) -> Result<OwnedFd, Errno> {
    fd.try_clone()
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
}

/// What sort of file is behind a descriptor.
fn kind_of(fd: &OwnedFd, stat: &Stat) -> FileKind {
    match stat.file_type {
        SFlag::S_IFIFO => FileKind::Pipe,
        SFlag::S_IFSOCK => FileKind::Socket,
        // `shmem_file(file) && !inode->i_nlink` in v3 patch 27 and in Linux 7.3.4.
        SFlag::S_IFREG if stat.links == 0 && is_shmem(fd) => FileKind::Memfd,
        SFlag::S_IFREG => FileKind::Regular,
        _ if is_eventfd(fd) => FileKind::Eventfd,
        _ => FileKind::Other,
    }
}

/// Only shmem and hugetlbfs have seals, and asking for them asks no server; the rest tells those two
/// apart.
fn is_shmem(fd: &OwnedFd) -> bool {
    fcntl(fd, FcntlArg::F_GET_SEALS).is_ok()
        && fstatfs(fd.as_fd()).is_ok_and(|fs| fs.filesystem_type() == TMPFS_MAGIC)
}

fn is_eventfd(fd: &OwnedFd) -> bool {
    std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
        .is_ok_and(|target| target.as_os_str() == "anon_inode:[eventfd]")
}

/// The file handler, and the failures that it is told to rehearse.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// Kinds that are accepted beside memfd.
    pub also: Vec<FileKind>,
    /// Tokens whose prepare (v3) or preserve (sessions) fails, and how.
    pub fail_prepare: BTreeMap<u64, Errno>,
    /// Tokens whose freeze fails, and how.
    pub fail_freeze: BTreeMap<u64, Errno>,
    /// Tokens whose restore fails, and how.
    pub fail_restore: BTreeMap<u64, Errno>,
    /// Tokens that are never ready for FINISH (sessions).
    pub busy_finish: BTreeSet<u64>,
}

impl Files {
    /// Whether there is a handler for this kind of file.
    pub fn accepts(&self, file: &Preserved) -> bool {
        let kind = file.kind();
        kind == FileKind::Memfd || self.also.contains(&kind)
    }
}

/// The failure that is rehearsed for a token, if there is one.
pub fn rehearsed(failures: &BTreeMap<u64, Errno>, token: u64) -> Result<(), Errno> {
    failures.get(&token).map_or(Ok(()), |errno| Err(*errno))
}

/// A kernel function's way of returning: 0 or a negated errno.
pub fn to_c(result: Result<(), Errno>) -> c_int {
    result.map_or_else(|errno| -(errno as c_int), |()| 0)
}

/// The way back.
pub fn from_c(result: c_int) -> Result<(), Errno> {
    if result < 0 {
        Err(Errno::from_raw(-result))
    } else {
        Ok(())
    }
}

/// The address by which the functions know a file.
pub fn view(file: &Arc<Preserved>) -> *const c_void {
    Arc::as_ptr(file).cast()
}
