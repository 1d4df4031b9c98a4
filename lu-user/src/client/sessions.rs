//! The sessions interface: the device gives sessions, a session holds files.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use lu_common::uapi::sessions::{self, NAME_LEN};

use super::{Error, call, given};

/// The open device. Dropping it closes it, and touches no session.
#[derive(Debug)]
pub struct Device {
    file: File,
}

impl From<OwnedFd> for Device {
    /// A device that somebody else opened.
    fn from(fd: OwnedFd) -> Self {
        Self { file: fd.into() }
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// An open session. Dropping an outgoing one takes everything in it off the list; dropping an incoming
/// one finishes it.
#[derive(Debug)]
pub struct Session {
    file: File,
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn encode(name: &str) -> Result<[u8; NAME_LEN], Error> {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes.len() >= NAME_LEN || bytes.contains(&0) {
        return Err(Error::Name(name.into()));
    }
    let mut encoded = [0; NAME_LEN];
    encoded[..bytes.len()].copy_from_slice(bytes);
    Ok(encoded)
}

impl Device {
    /// Opens the device. EBUSY: somebody holds it. EIO: what was handed over could not be read.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Ok(Self {
            file: super::open(path)?,
        })
    }

    /// `CREATE_SESSION`: one for the next kernel. EMFILE, EINVAL, ENOMEM, ENOSPC, EEXIST.
    pub fn create(&self, name: &str) -> Result<Session, Error> {
        self.session("CREATE_SESSION", sessions::CREATE_SESSION, name)
    }

    /// `RETRIEVE_SESSION`: one of the previous kernel. EMFILE, ENOENT, EINVAL (retrieved before).
    pub fn retrieve(&self, name: &str) -> Result<Session, Error> {
        self.session("RETRIEVE_SESSION", sessions::RETRIEVE_SESSION, name)
    }

    fn session(&self, operation: &'static str, cmd: u32, name: &str) -> Result<Session, Error> {
        let mut argument = sessions::Session {
            size: size_of::<sessions::Session>() as u32,
            fd: -1,
            name: encode(name)?,
        };
        call(self, operation, cmd, &mut argument)?;
        Ok(Session {
            file: given(operation, argument.fd)?.into(),
        })
    }
}

impl Session {
    /// `PRESERVE_FD`. EEXIST, ENOMEM, ENOSPC, EBADF, ENOENT, EBUSY, or the handler's errno.
    pub fn preserve(&self, token: u64, file: &impl AsFd) -> Result<(), Error> {
        let mut argument = sessions::Fd {
            size: size_of::<sessions::Fd>() as u32,
            fd: file.as_fd().as_raw_fd(),
            token,
        };
        call(self, "PRESERVE_FD", sessions::PRESERVE_FD, &mut argument)
    }

    /// `RETRIEVE_FD`. EMFILE, ENOENT, or the handler's errno, which sticks to the token.
    pub fn retrieve(&self, token: u64) -> Result<OwnedFd, Error> {
        let mut argument = sessions::Fd {
            size: size_of::<sessions::Fd>() as u32,
            fd: -1,
            token,
        };
        call(self, "RETRIEVE_FD", sessions::RETRIEVE_FD, &mut argument)?;
        given("RETRIEVE_FD", argument.fd)
    }

    /// FINISH: what was not retrieved is discarded. EBUSY: not ready, nothing is done.
    pub fn finish(&self) -> Result<(), Error> {
        let mut argument = sessions::Finish {
            size: size_of::<sessions::Finish>() as u32,
            reserved: 0,
        };
        call(self, "FINISH", sessions::FINISH, &mut argument)
    }

    /// `GET_NAME`.
    pub fn name(&self) -> Result<String, Error> {
        let mut argument = sessions::GetName {
            size: size_of::<sessions::GetName>() as u32,
            reserved: 0,
            name: [0; NAME_LEN],
        };
        call(self, "GET_NAME", sessions::GET_NAME, &mut argument)?;
        let end = argument
            .name
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(NAME_LEN);
        Ok(String::from_utf8_lossy(&argument.name[..end]).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_kernel_would_refuse_or_cut_are_refused_here() {
        assert!(encode("").is_err());
        assert!(encode("a\0b").is_err());
        assert!(encode(&"x".repeat(64)).is_err());
        let longest = encode(&"x".repeat(63)).expect("fits");
        assert_eq!(longest[62..], [b'x', 0]);
    }
}
