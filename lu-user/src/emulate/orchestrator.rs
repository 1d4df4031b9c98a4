//! What the device, the reboot and the filter of system calls ask of either interface.

use std::mem::offset_of;
use std::os::fd::OwnedFd;

use lu_common::event::Task;
use lu_common::policy::Operation;
use lu_common::uapi::{Interface, sessions, v3};
use nix::errno::Errno;

use super::argument::Argument;
use super::client::Client;
use super::sessions::SessionHandle;

/// What an open file of the emulated file system stands for.
#[derive(Clone, Copy, Debug)]
pub enum Opened {
    /// `/dev/liveupdate` itself.
    Device,
    /// A session.
    Session(SessionHandle),
}

/// A descriptor that the caller is to get once its system call ends.
pub struct Install {
    /// The file.
    pub file: OwnedFd,
    /// The structure that tells the caller the number, at [`FD`]; `None` where it cannot be told
    /// (`--quirks`).
    pub tell: Option<Argument>,
}

/// Where every command that gives a descriptor tells its number.
pub const FD: usize = offset_of!(v3::FdRestore, fd);

const _: () = {
    assert!(FD == offset_of!(sessions::Session, fd));
    assert!(FD == offset_of!(sessions::Fd, fd));
};

/// An interface's functions, called as the kernel's are.
pub trait Orchestrator: Sync {
    /// Which one it is.
    fn interface(&self) -> Interface;
    /// Whether the policy allows what concerns the whole machine: the open of the device, or a kexec.
    fn ask(&self, client: &Client, operation: Operation) -> Result<(), Errno>;
    /// open(2) of the device.
    fn open(&self, caller: &Task) -> Result<(), Errno>;
    /// The last close of an open file, told as by who got it.
    fn release(&self, holder: &Task, opened: &Opened);
    /// Whether a command, when it succeeds, gives the caller a descriptor.
    fn gives_descriptor(&self, cmd: u32) -> bool;
    /// An ioctl; with its result, the descriptor that is to be given out.
    fn ioctl(
        &self,
        opened: &Opened,
        client: &Client,
        cmd: u32,
        arg: u64,
    ) -> (Result<(), Errno>, Option<Install>);
    /// reboot(KEXEC), the whole of it: calls [`super::reboot::kernel_kexec`].
    fn reboot(&self, caller: &Task) -> Result<(), Errno>;
    /// Its first part: what can still say no.
    fn liveupdate_reboot(&self) -> Result<(), Errno>;
    /// The old kernel's last function.
    fn machine_kexec(&self);
    /// The new kernel's orchestrator starts.
    fn luo_startup(&self);
    /// Whether the size of the memfd with this identity must not change now.
    fn holds_size_of(&self, identity: (u64, u64)) -> bool;
}
