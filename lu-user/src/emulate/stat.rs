//! What the kernel knows of a file without asking anybody.
//!
//! An ordinary `fstat` of a FUSE file asks its server. That may be ourselves, in the very thread that
//! would have to answer, or a stranger who never does.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::SFlag;

/// The attributes that decisions are made on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The file system's number, and the file's within it.
    pub identity: (u64, u64),
    /// The file's type.
    pub file_type: SFlag,
    /// Number of names.
    pub links: u32,
    /// Size, in bytes.
    pub size: u64,
}

impl Stat {
    /// Of an open file.
    pub fn of(fd: BorrowedFd<'_>) -> Result<Self, Errno> {
        statx(fd.as_raw_fd(), c"", libc::AT_EMPTY_PATH)
    }

    /// Of the file at a path, links followed.
    pub fn at(path: &Path) -> Result<Self, Errno> {
        let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
        statx(libc::AT_FDCWD, &path, 0)
    }
}

/// The number of the mount that the file at a path is on, links followed, and of its inode.
pub fn mount_and_inode(path: &Path) -> Result<(u64, u64), Errno> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    let wanted = libc::STATX_INO | libc::STATX_MNT_ID;
    let stat = raw(libc::AT_FDCWD, &path, 0, wanted)?;
    // Linux 5.8.
    if stat.stx_mask & libc::STATX_MNT_ID == 0 {
        return Err(Errno::ENOSYS);
    }
    Ok((stat.stx_mnt_id, stat.stx_ino))
}

fn statx(folder: i32, path: &CStr, flags: i32) -> Result<Stat, Errno> {
    let stat = raw(folder, path, flags, libc::STATX_BASIC_STATS)?;
    Ok(Stat {
        identity: (
            libc::makedev(stat.stx_dev_major, stat.stx_dev_minor),
            stat.stx_ino,
        ),
        file_type: SFlag::from_bits_truncate(u32::from(stat.stx_mode)) & SFlag::S_IFMT,
        links: stat.stx_nlink,
        size: stat.stx_size,
    })
}

fn raw(folder: i32, path: &CStr, flags: i32, wanted: u32) -> Result<libc::statx, Errno> {
    // SAFETY: all-zero bytes are a value of this type.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends with NUL, and the structure outlives the call.
    let done = unsafe {
        libc::statx(
            folder,
            path.as_ptr(),
            flags | libc::AT_STATX_DONT_SYNC,
            wanted,
            &raw mut stat,
        )
    };
    Errno::result(done)?;
    Ok(stat)
}
