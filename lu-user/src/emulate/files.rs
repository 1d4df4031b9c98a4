//! Preserved files: what kind they are, and the callbacks of their handler.
//!
//! A file is kept by reference. The callbacks are the functions `memfd_luo_*` of v3 patch 27, with the
//! kernel's names and C signatures, so that probes can sit on them; the kinds that a developer asks
//! for with `--also` go through the same ones.

use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};
use std::hint::black_box;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use lu_common::event::{File as View, FileKind};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::stat::{Mode, SFlag};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use nix::unistd::{Whence, ftruncate, lseek};

use super::core::Handler;
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
    fd: ManuallyDrop<OwnedFd>,
    saved: Mutex<Option<Saved>>,
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

/// What PREPARE saves of a memfd beside its content.
#[derive(Clone, Copy, Debug)]
struct Saved {
    bytes: u64,
    position: i64,
}

impl Preserved {
    /// The file behind a descriptor, to be preserved under `token`.
    pub fn new(token: u64, fd: OwnedFd) -> Result<Arc<Self>, Errno> {
        let (kind, bytes) = describe(&fd)?;
        Ok(Arc::new(Self {
            bytes: AtomicU64::new(bytes),
            kind: kind as u16,
            padding: [0; 6],
            token,
            fd: ManuallyDrop::new(fd),
            saved: Mutex::new(None),
        }))
    }

    /// What sort of file it is.
    pub fn kind(&self) -> FileKind {
        FileKind::from_raw(self.kind).unwrap_or(FileKind::Other)
    }

    /// The file's device and inode number.
    pub fn identity(&self) -> Option<(u64, u64)> {
        Some(Stat::of(self.fd.as_fd()).ok()?.identity)
    }

    /// The file as the new kernel gives it out: a memfd anew (read and write, at the saved position),
    /// any other kind as it was.
    pub fn reopen(&self) -> Result<OwnedFd, Errno> {
        if self.kind() != FileKind::Memfd {
            return self
                .fd
                .try_clone()
                .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)));
        }
        let path = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        let fd = open(
            path.as_str(),
            OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_LARGEFILE,
            Mode::empty(),
        )?;
        if let Some(saved) = self.saved() {
            lseek(&fd, saved.position, Whence::SeekSet)?;
        }
        Ok(fd)
    }

    fn saved(&self) -> Option<Saved> {
        *self.saved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn save(&self, saved: Option<Saved>) {
        *self.saved.lock().unwrap_or_else(PoisonError::into_inner) = saved;
    }

    fn prepare(&self) -> Result<(), Errno> {
        if self.kind() == FileKind::Memfd {
            let bytes = Stat::of(self.fd.as_fd())?.size;
            let position = lseek(self.fd.as_fd(), 0, Whence::SeekCur)?;
            self.bytes.store(bytes, Ordering::Relaxed);
            self.save(Some(Saved { bytes, position }));
        }
        Ok(())
    }

    /// From PREPARE on the kernel refuses to change a memfd's size. What nobody could refuse here
    /// (see `notify`) is undone.
    fn freeze(&self) -> Result<(), Errno> {
        if let Some(saved) = self.saved() {
            let bytes = Stat::of(self.fd.as_fd())?.size;
            if bytes != saved.bytes {
                log::warn!(
                    "token {:#x}: the memfd was resized from {} to {bytes} bytes after PREPARE; the \
                     kernel would have refused that with EPERM, so it is put back",
                    self.token,
                    saved.bytes
                );
                ftruncate(self.fd.as_fd(), saved.bytes as i64)?;
            }
        }
        Ok(())
    }
}

/// The kind and the size of the file behind a descriptor.
fn describe(fd: &OwnedFd) -> Result<(FileKind, u64), Errno> {
    let stat = Stat::of(fd.as_fd())?;
    let kind = match stat.file_type {
        SFlag::S_IFIFO => FileKind::Pipe,
        SFlag::S_IFSOCK => FileKind::Socket,
        // `shmem_file(file) && !inode->i_nlink` in v3 patch 27.
        SFlag::S_IFREG if stat.links == 0 && is_shmem(fd) => FileKind::Memfd,
        SFlag::S_IFREG => FileKind::Regular,
        _ if is_eventfd(fd) => FileKind::Eventfd,
        _ => FileKind::Other,
    };
    Ok((kind, stat.size))
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
#[derive(Debug, Default)]
pub struct Files {
    /// Kinds that are accepted beside memfd.
    pub also: Vec<FileKind>,
    /// Tokens whose prepare fails, and how.
    pub fail_prepare: BTreeMap<u64, Errno>,
    /// Tokens whose freeze fails, and how.
    pub fail_freeze: BTreeMap<u64, Errno>,
    /// Tokens whose restore fails, and how.
    pub fail_restore: BTreeMap<u64, Errno>,
}

fn rehearsed(failures: &BTreeMap<u64, Errno>, token: u64) -> Result<(), Errno> {
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

impl Handler for Files {
    type File = Arc<Preserved>;

    fn can_preserve(&self, _token: u64, file: &Self::File) -> bool {
        black_box(memfd_luo_can_preserve as Predicate)(handler(self), view(file))
    }

    fn prepare(&self, _token: u64, file: &mut Self::File) -> Result<(), Errno> {
        let mut data = 0;
        from_c(black_box(memfd_luo_prepare as Callback)(
            handler(self),
            view(file),
            &raw mut data,
        ))
    }

    fn freeze(&self, _token: u64, file: &mut Self::File) -> Result<(), Errno> {
        let mut data = 0;
        from_c(black_box(memfd_luo_freeze as Callback)(
            handler(self),
            view(file),
            &raw mut data,
        ))
    }

    fn cancel(&self, _token: u64, file: &mut Self::File) {
        file.save(None);
    }

    fn retrieve(&self, token: u64, _file: &Self::File) -> Result<(), Errno> {
        rehearsed(&self.fail_restore, token)
    }
}

type Predicate = extern "C" fn(*const c_void, *const c_void) -> bool;
type Callback = extern "C" fn(*const c_void, *const c_void, *mut u64) -> c_int;

fn handler(files: &Files) -> *const c_void {
    (&raw const *files).cast()
}

/// The address by which the functions know a file.
pub fn view(file: &Arc<Preserved>) -> *const c_void {
    Arc::as_ptr(file).cast()
}

/// `static bool memfd_luo_can_preserve(struct liveupdate_file_handler *, struct file *)`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn memfd_luo_can_preserve(handler: *const c_void, file: *const c_void) -> bool {
    // SAFETY: the only caller is above and passes references to these types.
    let handler = unsafe { &*handler.cast::<Files>() };
    // SAFETY: likewise.
    let file = unsafe { &*file.cast::<Preserved>() };
    let kind = file.kind();
    kind == FileKind::Memfd || handler.also.contains(&kind)
}

/// `static int memfd_luo_prepare(struct liveupdate_file_handler *, struct file *, u64 *)`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn memfd_luo_prepare(
    handler: *const c_void,
    file: *const c_void,
    data: *mut u64,
) -> c_int {
    // SAFETY: the only caller is above and passes references to these types.
    let handler = unsafe { &*handler.cast::<Files>() };
    // SAFETY: likewise.
    let file = unsafe { &*file.cast::<Preserved>() };
    black_box(data);
    to_c(rehearsed(&handler.fail_prepare, file.token).and_then(|()| file.prepare()))
}

/// `static int memfd_luo_freeze(struct liveupdate_file_handler *, struct file *, u64 *)`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn memfd_luo_freeze(
    handler: *const c_void,
    file: *const c_void,
    data: *mut u64,
) -> c_int {
    // SAFETY: the only caller is above and passes references to these types.
    let handler = unsafe { &*handler.cast::<Files>() };
    // SAFETY: likewise.
    let file = unsafe { &*file.cast::<Preserved>() };
    black_box(data);
    to_c(rehearsed(&handler.fail_freeze, file.token).and_then(|()| file.freeze()))
}
