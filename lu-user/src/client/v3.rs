//! The v3 interface: one device, one state machine, one flat token space.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use lu_common::uapi::v3::{self, Event, State};
use nix::errno::Errno;

use super::{Error, call, given};

/// The open device. Dropping it closes it, which drops every file that it preserved.
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

const fn size<T>() -> u32 {
    size_of::<T>() as u32
}

impl Device {
    /// Opens the device. EBUSY: somebody holds it.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Ok(Self {
            file: super::open(path)?,
        })
    }

    /// `FD_PRESERVE`. EBADF, EBUSY (state), ENOENT (this kind of file cannot be preserved), EEXIST.
    pub fn preserve(&self, token: u64, file: &impl AsFd) -> Result<(), Error> {
        self.preserve_raw(token, file.as_fd().as_raw_fd())
    }

    /// `FD_PRESERVE` of a descriptor by its number, which may be none.
    pub fn preserve_raw(&self, token: u64, fd: i32) -> Result<(), Error> {
        let mut argument = v3::FdPreserve {
            size: size::<v3::FdPreserve>(),
            fd,
            token,
        };
        call(self, "FD_PRESERVE", v3::FD_PRESERVE, &mut argument)
    }

    /// `FD_UNPRESERVE`. EBUSY (state), ENOENT.
    pub fn unpreserve(&self, token: u64) -> Result<(), Error> {
        let mut argument = v3::FdUnpreserve {
            size: size::<v3::FdUnpreserve>(),
            padding: 0,
            token,
        };
        call(self, "FD_UNPRESERVE", v3::FD_UNPRESERVE, &mut argument)
    }

    /// `FD_RESTORE`. EMFILE, EBUSY (state), ENOENT, EINVAL (restored before).
    pub fn restore(&self, token: u64) -> Result<OwnedFd, Error> {
        let mut argument = v3::FdRestore {
            size: size::<v3::FdRestore>(),
            fd: -1,
            token,
        };
        call(self, "FD_RESTORE", v3::FD_RESTORE, &mut argument)?;
        given("FD_RESTORE", argument.fd)
    }

    /// `GET_STATE`.
    pub fn state(&self) -> Result<State, Error> {
        let mut argument = v3::GetState {
            size: size::<v3::GetState>(),
            state: 0,
        };
        call(self, "GET_STATE", v3::GET_STATE, &mut argument)?;
        Ok(State::from_raw(argument.state).unwrap_or_default())
    }

    /// `SET_EVENT` PREPARE. EINVAL (state), or the errno of a file's callback.
    pub fn prepare(&self) -> Result<(), Error> {
        self.event(Event::Prepare)
    }

    /// `SET_EVENT` CANCEL. ENOENT (state).
    pub fn cancel(&self) -> Result<(), Error> {
        self.event(Event::Cancel)
    }

    /// `SET_EVENT` FINISH. EINVAL (state).
    pub fn finish(&self) -> Result<(), Error> {
        self.event(Event::Finish)
    }

    fn event(&self, event: Event) -> Result<(), Error> {
        let mut argument = v3::SetEvent {
            size: size::<v3::SetEvent>(),
            event: event as u32,
        };
        call(self, event.name(), v3::SET_EVENT, &mut argument)
    }

    /// `GET_FD_STATE` (patch 18). ENOENT.
    pub fn file_state(&self, token: u64, incoming: bool) -> Result<State, Error> {
        let mut argument = v3::GetFdState {
            size: size::<v3::GetFdState>(),
            incoming: incoming.into(),
            padding: [0; 3],
            token,
            state: 0,
            padding2: 0,
        };
        call(self, "GET_FD_STATE", v3::GET_FD_STATE, &mut argument)?;
        State::from_raw(argument.state).ok_or(Error::Call {
            operation: "GET_FD_STATE",
            errno: Errno::EINVAL,
        })
    }

    /// `SET_FD_EVENT` (patch 18). ENOENT, EBUSY (FINISH in a wrong state), or the callback's errno.
    pub fn file_event(&self, token: u64, event: Event) -> Result<(), Error> {
        let mut argument = v3::SetFdEvent {
            size: size::<v3::SetFdEvent>(),
            event: event as u32,
            token,
        };
        call(self, "SET_FD_EVENT", v3::SET_FD_EVENT, &mut argument)
    }
}
