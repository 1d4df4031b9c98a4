//! A safe client of `/dev/liveupdate`, in both interfaces.
//!
//! ```no_run
//! use lu_user::client::v3::Device;
//! use std::fs::File;
//!
//! let device = Device::open("/dev/liveupdate".as_ref())?;
//! device.preserve(7, &File::open("/proc/self/exe")?)?;
//! device.prepare()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod sessions;
pub mod v3;

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use lu_common::uapi::{self, Interface};
use nix::errno::Errno;

/// A call that was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device cannot be opened.
    #[error("cannot open {}: {errno}{}", path.display(), hint_for_open(*.errno))]
    Open {
        /// The device.
        path: PathBuf,
        /// Why.
        errno: Errno,
    },
    /// An ioctl failed.
    #[error("{operation}: {errno}")]
    Call {
        /// The command's name.
        operation: &'static str,
        /// Why.
        errno: Errno,
    },
    /// A session's name does not fit.
    #[error("a session's name has 1 to 63 bytes and no NUL, not {0:?}")]
    Name(String),
}

impl Error {
    /// The errno behind it.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Open { errno, .. } | Self::Call { errno, .. } => *errno,
            Self::Name(_) => Errno::EINVAL,
        }
    }
}

const fn hint_for_open(errno: Errno) -> &'static str {
    match errno {
        Errno::ENOENT => {
            "; this machine has no orchestrator, `lu emulate -- COMMAND` runs a command with one"
        }
        Errno::EBUSY => "; another process holds it, and there is one at a time",
        Errno::EACCES => "; it is root's",
        _ => "",
    }
}

fn open(path: &Path) -> Result<File, Error> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|error| Error::Open {
            path: path.into(),
            errno: Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)),
        })
}

/// One ioctl with a structure that the kernel reads and writes.
fn call<T>(
    file: &impl AsFd,
    operation: &'static str,
    cmd: u32,
    argument: &mut T,
) -> Result<(), Error> {
    // SAFETY: every command of either interface reads and writes one structure of the type that goes
    // with it, no larger than its first field says, and that field is set to the type's size.
    let done = unsafe {
        libc::ioctl(
            file.as_fd().as_raw_fd(),
            cmd.into(),
            std::ptr::from_mut(argument),
        )
    };
    Errno::result(done)
        .map(drop)
        .map_err(|errno| Error::Call { operation, errno })
}

/// The descriptor that a call has given out. One that says it succeeded and gave none is a fault of the
/// orchestrator's (EBADF).
fn given(operation: &'static str, fd: i32) -> Result<OwnedFd, Error> {
    if fd < 0 {
        return Err(Error::Call {
            operation,
            errno: Errno::EBADF,
        });
    }
    // SAFETY: the orchestrator has just given us this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The interface that an open device speaks: v3 answers `GET_STATE`, sessions has no such command.
#[must_use]
pub fn interface(device: &impl AsFd) -> Option<Interface> {
    let mut state = uapi::v3::GetState {
        size: size_of::<uapi::v3::GetState>() as u32,
        state: 0,
    };
    match call(device, "GET_STATE", uapi::v3::GET_STATE, &mut state) {
        Ok(()) => Some(Interface::V3),
        Err(error) if error.errno() == Errno::EINVAL => Some(Interface::Sessions),
        Err(_) => None,
    }
}
