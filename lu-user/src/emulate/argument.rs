//! The ioctl's argument: the rules of the extensible structures, over any memory.

use lu_common::uapi::{ioc_nr, v3};
use nix::errno::Errno;

/// Where the caller's structure lies.
pub trait UserMemory {
    /// Copies from `address` on, all of `into` or nothing.
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Errno>;
    /// Copies to `address` on, all of `from` or an error.
    fn write(&self, address: u64, from: &[u8]) -> Result<(), Errno>;
}

/// The largest structure of any command, in bytes.
const LARGEST: usize = size_of::<v3::GetFdState>();

/// How much of a structure's tail is read at a time, in bytes: sixteen pages; a single one where they are
/// not all there.
const CHUNK: u64 = 16 * PAGE;
const PAGE: u64 = 4096;

/// A command and its structure, read from the caller's memory and found well-formed.
#[derive(Clone, Copy, Debug)]
pub struct Argument {
    /// What the dispatcher knows of the command.
    pub command: v3::Command,
    /// Where the structure lies.
    pub address: u64,
    size: u32,
    bytes: [u8; LARGEST],
}

impl Argument {
    /// Reads and checks, in the order of v3's `luo_ioctl`: number, pointer, the command's other bits,
    /// least size, tail.
    pub fn read(memory: &impl UserMemory, cmd: u32, address: u64) -> Result<Self, Errno> {
        let command = *v3::COMMANDS
            .get(usize::from(ioc_nr(cmd)))
            .ok_or(Errno::EINVAL)?;
        let mut size = [0; 4];
        memory.read(address, &mut size)?;
        let size = u32::from_ne_bytes(size);
        if command.cmd != cmd {
            return Err(Errno::ENOTTY);
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
        let mut word = [0; 4];
        word.copy_from_slice(&self.bytes[offset..offset + 4]);
        u32::from_ne_bytes(word)
    }

    /// The 64 bits at an offset.
    #[must_use]
    pub fn long(&self, offset: usize) -> u64 {
        let mut long = [0; 8];
        long.copy_from_slice(&self.bytes[offset..offset + 8]);
        u64::from_ne_bytes(long)
    }

    /// Sets the 32 bits at an offset, as far as [`Self::write_back`] is concerned.
    pub fn set_word(&mut self, offset: usize, value: u32) {
        self.bytes[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
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
