//! The commands and structures of `/dev/liveupdate`, in both interfaces that exist.
//!
//! - [`v3`]: one state machine and one flat token space, from the patch series "Live Update
//!   Orchestrator", version 3 (2025-08-07, patches 16 and 18).
//! - [`sessions`]: named sessions, as merged in Linux 6.19 and read here in 7.3.4
//!   (`include/uapi/linux/liveupdate.h`).
//!
//! Both use the ioctl type [`IOCTL_TYPE`] and commands without an encoded size or direction, and their
//! numbers clash: `0xBA00` preserves a file in v3 and creates a session in sessions.

use core::mem::{offset_of, size_of};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The ioctl type of every command, in both interfaces (`LIVEUPDATE_IOCTL_TYPE`).
pub const IOCTL_TYPE: u8 = 0xBA;

/// `_IO(0xBA, nr)`: no size and no direction, so the type and the number are all there is.
#[must_use]
pub const fn io(nr: u8) -> u32 {
    ((IOCTL_TYPE as u32) << 8) | nr as u32
}

/// The number of a command (`_IOC_NR`), whatever its other bits say.
#[must_use]
pub const fn ioc_nr(cmd: u32) -> u8 {
    cmd as u8
}

/// One of the two interfaces of the orchestrator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Interface {
    /// One state machine, one flat token space.
    V3,
    /// Named sessions, as merged in Linux 6.19.
    Sessions,
}

impl Interface {
    /// The name used in flags, JSON and documents.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::V3 => "v3",
            Self::Sessions => "sessions",
        }
    }
}

/// What a dispatcher knows of one command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    /// The whole command word.
    pub cmd: u32,
    /// The kernel's name without its prefix.
    pub name: &'static str,
    /// Size of the argument, in bytes.
    pub size: u32,
    /// The least size that a caller may state: the end of the last field that has always been there.
    pub min_size: u32,
}

const fn command<T>(cmd: u32, name: &'static str, min_size: u32) -> Command {
    Command {
        cmd,
        name,
        size: size_of::<T>() as u32,
        min_size,
    }
}

/// Declares structures that the kernel reads and writes, and checks each size and offset at compile time.
macro_rules! abi {
    ($($(#[$doc:meta])* $name:ident: $size:literal {
        $($(#[$field_doc:meta])* $field:ident: $type:ty = $offset:literal,)*
    })*) => {$(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }
        const _: () = {
            assert!(size_of::<$name>() == $size);
            $(assert!(offset_of!($name, $field) == $offset);)*
        };
    )*};
}

/// The v3 interface: patch 16 of the series, and the two commands of patch 18.
pub mod v3 {
    use super::{
        Command, FromBytes, Immutable, IntoBytes, KnownLayout, command, io, offset_of, size_of,
    };

    /// Mark a file for preservation under a token of the caller's choice.
    pub const FD_PRESERVE: u32 = io(0);
    /// Take a file off the list again.
    pub const FD_UNPRESERVE: u32 = io(1);
    /// In the new kernel: get a descriptor for a preserved file.
    pub const FD_RESTORE: u32 = io(2);
    /// Ask for the global state.
    pub const GET_STATE: u32 = io(3);
    /// Drive the global state machine.
    pub const SET_EVENT: u32 = io(4);
    /// Ask for the state of one file (patch 18).
    pub const GET_FD_STATE: u32 = io(5);
    /// Drive the state of one file (patch 18).
    pub const SET_FD_EVENT: u32 = io(6);

    /// `enum liveupdate_state`.
    #[repr(u32)]
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub enum State {
        /// Not known yet.
        Undefined = 0,
        /// No update is going on.
        #[default]
        Normal = 1,
        /// PREPARE has succeeded.
        Prepared = 2,
        /// The freeze has succeeded; the kexec follows.
        Frozen = 3,
        /// This kernel was started by a live update that is not finished.
        Updated = 4,
    }

    impl State {
        /// The state with this number.
        #[must_use]
        pub const fn from_raw(raw: u32) -> Option<Self> {
            Some(match raw {
                0 => Self::Undefined,
                1 => Self::Normal,
                2 => Self::Prepared,
                3 => Self::Frozen,
                4 => Self::Updated,
                _ => return None,
            })
        }

        /// The kernel's name without its prefix.
        #[must_use]
        pub const fn name(self) -> &'static str {
            match self {
                Self::Undefined => "UNDEFINED",
                Self::Normal => "NORMAL",
                Self::Prepared => "PREPARED",
                Self::Frozen => "FROZEN",
                Self::Updated => "UPDATED",
            }
        }
    }

    /// `enum liveupdate_event`.
    #[repr(u32)]
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub enum Event {
        /// Begin: NORMAL to PREPARED.
        Prepare = 0,
        /// The last step before the kexec; the kernel does it in `reboot(KEXEC)`, nobody may ask for it.
        Freeze = 1,
        /// All is restored: UPDATED to NORMAL.
        Finish = 2,
        /// Give up: PREPARED or FROZEN to NORMAL.
        Cancel = 3,
    }

    impl Event {
        /// The event with this number.
        #[must_use]
        pub const fn from_raw(raw: u32) -> Option<Self> {
            Some(match raw {
                0 => Self::Prepare,
                1 => Self::Freeze,
                2 => Self::Finish,
                3 => Self::Cancel,
                _ => return None,
            })
        }

        /// The kernel's name without its prefix.
        #[must_use]
        pub const fn name(self) -> &'static str {
            match self {
                Self::Prepare => "PREPARE",
                Self::Freeze => "FREEZE",
                Self::Finish => "FINISH",
                Self::Cancel => "CANCEL",
            }
        }
    }

    abi! {
        /// Argument of [`FD_PRESERVE`].
        FdPreserve: 16 {
            /// Size of the structure as the caller knows it, in bytes.
            size: u32 = 0,
            /// In: the file to preserve.
            fd: i32 = 4,
            /// In: the name of the file from now on.
            token: u64 = 8,
        }
        /// Argument of [`FD_UNPRESERVE`].
        FdUnpreserve: 16 {
            /// Size of the structure as the caller knows it, in bytes.
            size: u32 = 0,
            /// Not read.
            padding: u32 = 4,
            /// In: the file to take off the list.
            token: u64 = 8,
        }
        /// Argument of [`FD_RESTORE`].
        FdRestore: 16 {
            /// Size of the structure as the caller knows it, in bytes.
            size: u32 = 0,
            /// Out: the new descriptor, close-on-exec.
            fd: i32 = 4,
            /// In: the file to restore.
            token: u64 = 8,
        }
        /// Argument of [`GET_STATE`].
        GetState: 8 {
            /// Size of the structure as the caller knows it, in bytes.
            size: u32 = 0,
            /// Out: a [`State`].
            state: u32 = 4,
        }
        /// Argument of [`SET_EVENT`].
        SetEvent: 8 {
            /// Size of the structure as the caller knows it, in bytes.
            size: u32 = 0,
            /// In: an [`Event`].
            event: u32 = 4,
        }
        /// Argument of [`GET_FD_STATE`]; the first 16 bytes are enough.
        GetFdState: 24 {
            /// Size of the structure as the caller knows it, in bytes.
            size: u32 = 0,
            /// In: not 0 asks for the incoming set, 0 for the outgoing one.
            incoming: u8 = 4,
            /// Not read.
            padding: [u8; 3] = 5,
            /// In: the file.
            token: u64 = 8,
            /// Out: a [`State`].
            state: u32 = 16,
            /// Not written.
            padding2: u32 = 20,
        }
        /// Argument of [`SET_FD_EVENT`].
        SetFdEvent: 16 {
            /// Size of the structure as the caller knows it, in bytes.
            size: u32 = 0,
            /// In: an [`Event`].
            event: u32 = 4,
            /// In: the file.
            token: u64 = 8,
        }
    }

    /// Every command, by its number.
    pub const COMMANDS: [Command; 7] = [
        command::<FdPreserve>(FD_PRESERVE, "FD_PRESERVE", 16),
        command::<FdUnpreserve>(FD_UNPRESERVE, "FD_UNPRESERVE", 16),
        command::<FdRestore>(FD_RESTORE, "FD_RESTORE", 16),
        command::<GetState>(GET_STATE, "GET_STATE", 8),
        command::<SetEvent>(SET_EVENT, "SET_EVENT", 8),
        command::<GetFdState>(GET_FD_STATE, "GET_FD_STATE", 16),
        command::<SetFdEvent>(SET_FD_EVENT, "SET_FD_EVENT", 16),
    ];
}

/// The sessions interface: Linux 6.19 and later, read in 7.3.4.
pub mod sessions {
    use super::{
        Command, FromBytes, Immutable, IntoBytes, KnownLayout, command, io, offset_of, size_of,
    };

    /// On the device: create a named session for the next kernel.
    pub const CREATE_SESSION: u32 = io(0x00);
    /// On the device: get a session of the previous kernel.
    pub const RETRIEVE_SESSION: u32 = io(0x01);
    /// On a session: preserve a file under a token.
    pub const PRESERVE_FD: u32 = io(0x40);
    /// On a session: get a descriptor for a preserved file.
    pub const RETRIEVE_FD: u32 = io(0x41);
    /// On a session: all is retrieved, discard the rest.
    pub const FINISH: u32 = io(0x42);
    /// On a session: ask for its name.
    pub const GET_NAME: u32 = io(0x43);

    /// Bytes of a session's name, the terminating NUL included.
    pub const NAME_LEN: usize = 64;

    abi! {
        /// Argument of [`CREATE_SESSION`] and [`RETRIEVE_SESSION`].
        Session: 72 {
            /// Size of the structure as the caller knows it, in bytes.
            size: u32 = 0,
            /// Out: the session's descriptor.
            fd: i32 = 4,
            /// In: the name, terminated by NUL.
            name: [u8; NAME_LEN] = 8,
        }
        /// Argument of [`PRESERVE_FD`] and [`RETRIEVE_FD`].
        Fd: 16 {
            /// Size of the structure as the caller knows it, in bytes.
            size: u32 = 0,
            /// In (preserve) or out (retrieve): the file's descriptor.
            fd: i32 = 4,
            /// In: the file's name within the session.
            token: u64 = 8,
        }
        /// Argument of [`FINISH`].
        Finish: 8 {
            /// Size of the structure as the caller knows it, in bytes.
            size: u32 = 0,
            /// Must be 0.
            reserved: u32 = 4,
        }
        /// Argument of [`GET_NAME`].
        GetName: 72 {
            /// Size of the structure as the caller knows it, in bytes.
            size: u32 = 0,
            /// Must be 0.
            reserved: u32 = 4,
            /// Out: the name, terminated by NUL.
            name: [u8; NAME_LEN] = 8,
        }
    }

    /// The device's commands (`luo_ioctl_ops`), by their number.
    pub const DEVICE_COMMANDS: [Command; 2] = [
        command::<Session>(CREATE_SESSION, "CREATE_SESSION", 72),
        command::<Session>(RETRIEVE_SESSION, "RETRIEVE_SESSION", 72),
    ];

    /// A session's commands (`luo_session_ioctl_ops`), by their number from [`PRESERVE_FD`]'s on.
    pub const SESSION_COMMANDS: [Command; 4] = [
        command::<Fd>(PRESERVE_FD, "PRESERVE_FD", 16),
        command::<Fd>(RETRIEVE_FD, "RETRIEVE_FD", 16),
        command::<Finish>(FINISH, "FINISH", 8),
        command::<GetName>(GET_NAME, "GET_NAME", 72),
    ];
}

/// The kernel's name of a command of `interface`, without its prefix; `None` for a command it lacks.
#[must_use]
pub fn command_name(interface: Interface, cmd: u32) -> Option<&'static str> {
    let (commands, more): (&[Command], &[Command]) = match interface {
        Interface::V3 => (&v3::COMMANDS, &[]),
        Interface::Sessions => (&sessions::DEVICE_COMMANDS, &sessions::SESSION_COMMANDS),
    };
    commands
        .iter()
        .chain(more)
        .find(|command| command.cmd == cmd)
        .map(|command| command.name)
}

/// The error numbers that the orchestrator is documented to return (`include/uapi/asm-generic/errno*.h`).
pub mod errno {
    /// Operation not permitted.
    pub const EPERM: i32 = 1;
    /// No such token, session, or handler for this kind of file.
    pub const ENOENT: i32 = 2;
    /// A callback failed; also a failed deserialization.
    pub const EIO: i32 = 5;
    /// The structure is longer than what is known, and the rest is not zero.
    pub const E2BIG: i32 = 7;
    /// No such descriptor.
    pub const EBADF: i32 = 9;
    /// Out of memory.
    pub const ENOMEM: i32 = 12;
    /// The argument points to no memory of the caller's.
    pub const EFAULT: i32 = 14;
    /// Held by somebody else, or not in this state.
    pub const EBUSY: i32 = 16;
    /// The token or name is in use.
    pub const EEXIST: i32 = 17;
    /// An argument that is understood and wrong.
    pub const EINVAL: i32 = 22;
    /// The caller has no free descriptor.
    pub const EMFILE: i32 = 24;
    /// Not a command of this file.
    pub const ENOTTY: i32 = 25;
    /// No room in the area that is handed over.
    pub const ENOSPC: i32 = 28;
}
