//! The ioctl's argument: the rules of the extensible structures, over any memory.

use lu_common::uapi::{Command, ioc_nr, sessions};
use nix::errno::Errno;

/// Where the caller's structure lies.
pub trait UserMemory {
    /// Copies from `address` on, all of `into` or nothing.
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Errno>;
    /// Copies to `address` on, all of `from` or an error.
    fn write(&self, address: u64, from: &[u8]) -> Result<(), Errno>;
}

/// The largest structure of any command, in bytes.
const LARGEST: usize = size_of::<sessions::Session>();

/// How much of a structure's tail is read at a time, in bytes: sixteen pages; a single one where they are
/// not all there.
const CHUNK: u64 = 16 * PAGE;
const PAGE: u64 = 4096;

/// A command and its structure, read from the caller's memory and found well-formed.
#[derive(Clone, Copy, Debug)]
pub struct Argument {
    /// What the dispatcher knows of the command.
    pub command: Command,
    /// Where the structure lies.
    pub address: u64,
    size: u32,
    bytes: [u8; LARGEST],
}

impl Argument {
    /// Reads and checks, in the order of both interfaces' dispatchers: number, pointer, the command's
    /// other bits, whether it is `allowed` on this file, least size, tail.
    ///
    /// `commands` are those of the file, by their numbers.
    pub fn read(
        memory: &impl UserMemory,
        commands: &[Command],
        allowed: impl FnOnce(&Command) -> bool,
        cmd: u32,
        address: u64,
    ) -> Result<Self, Errno> {
        let command = *commands
            .iter()
            .find(|command| ioc_nr(command.cmd) == ioc_nr(cmd))
            .ok_or(Errno::EINVAL)?;
        let mut size = [0; 4];
        memory.read(address, &mut size)?;
        let size = u32::from_ne_bytes(size);
        if command.cmd != cmd {
            return Err(Errno::ENOTTY);
        }
        if !allowed(&command) {
            return Err(Errno::EINVAL);
        }
        if size < command.min_size {
            return Err(Errno::EINVAL);
        }
        if size > command.size {
            let tail = address.checked_add(u64::from(command.size));
            check_zeroed(
                memory,
                tail.ok_or(Errno::EFAULT)?,
                u64::from(size - command.size),
            )?;
        }
        let mut bytes = [0; LARGEST];
        memory.read(address, &mut bytes[..size.min(command.size) as usize])?;
        Ok(Self {
            command,
            address,
            size,
            bytes,
        })
    }

    /// The 32 bits at an offset.
    #[must_use]
    pub fn word(&self, offset: usize) -> u32 {
        u32::from_ne_bytes(self.bytes(offset))
    }

    /// The 64 bits at an offset.
    #[must_use]
    pub fn long(&self, offset: usize) -> u64 {
        u64::from_ne_bytes(self.bytes(offset))
    }

    /// Sets the 32 bits at an offset, as far as [`Self::write_back`] is concerned.
    pub fn set_word(&mut self, offset: usize, value: u32) {
        self.set_bytes(offset, &value.to_ne_bytes());
    }

    /// The bytes from an offset on.
    #[must_use]
    pub fn bytes<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.bytes[offset..offset + N]);
        bytes
    }

    /// Sets the bytes from an offset on, as far as [`Self::write_back`] is concerned.
    pub fn set_bytes(&mut self, offset: usize, value: &[u8]) {
        self.bytes[offset..offset + value.len()].copy_from_slice(value);
    }

    /// Writes the structure back, no more of it than the caller said it knows.
    pub fn write_back(&self, memory: &impl UserMemory) -> Result<(), Errno> {
        let length = self.size.min(self.command.size) as usize;
        memory.write(self.address, &self.bytes[..length])
    }
}

/// `check_zeroed_user`: E2BIG at the first byte that is not zero, EFAULT at the first that is not there.
fn check_zeroed(memory: &impl UserMemory, mut address: u64, mut length: u64) -> Result<(), Errno> {
    let mut chunk = vec![0; CHUNK as usize];
    let mut step = CHUNK;
    while length > 0 {
        let count = length.min(step - address % step);
        let bytes = &mut chunk[..count as usize];
        match memory.read(address, bytes) {
            Err(Errno::EFAULT) if step > PAGE => {
                step = PAGE;
                continue;
            }
            done => done?,
        }
        if bytes.iter().any(|byte| *byte != 0) {
            return Err(Errno::E2BIG);
        }
        length -= count;
        address = address.checked_add(count).ok_or(Errno::EFAULT)?;
    }
    Ok(())
}
