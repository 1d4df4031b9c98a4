//! Memory that outlives its kernel: mapped, and written in place until the CPUs stop.
//!
//! The flight recorder and the canary keep what they have in a memfd that is in a session of its own: a
//! preserved memfd must not change its size, but its mapping may be written until the jump.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use memmap2::{MmapOptions, MmapRaw};
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::client;

/// How long the device may be held by others before we do without.
const PATIENCE: Duration = Duration::from_secs(2);

/// The longest pause between two tries, and so the longest that a request to give up waits.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// A mapping that is read and written by words, so that several threads, or two kernels, can share it: a word
/// is whole or not there, whenever its writer is stopped.
#[derive(Debug)]
pub struct Memory(MmapRaw);

/// Bytes of a word.
const WORD: usize = size_of::<u64>();

impl Memory {
    /// Maps all of a file, whose length must not become less as long as this lives.
    pub fn map(file: &impl AsRawFd) -> io::Result<Self> {
        MmapOptions::new().map_raw(file).map(Self)
    }

    /// The same for `bytes` of it from `offset` on, which is that of a page.
    pub fn map_part(file: &impl AsRawFd, offset: u64, bytes: usize) -> io::Result<Self> {
        MmapOptions::new()
            .offset(offset)
            .len(bytes)
            .map_raw(file)
            .map(Self)
    }

    /// A memfd of `bytes` zeros, and its mapping. Each page is there from the start: nobody waits for memory
    /// later.
    pub fn create(name: &str, bytes: u64) -> io::Result<(File, Self)> {
        let file = File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC)?);
        file.set_len(bytes)?;
        let memory = MmapOptions::new().populate().map_raw(&file).map(Self)?;
        Ok((file, memory))
    }

    /// How long it is, in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The word at a multiple of eight bytes.
    ///
    /// # Panics
    ///
    /// Where there is none.
    #[must_use]
    pub fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at.is_multiple_of(WORD) && at + WORD <= self.len());
        // SAFETY: `at` is within the mapping.
        let word = unsafe { self.0.as_mut_ptr().add(at) };
        // SAFETY: a mapping begins at a page, and `at` is a multiple of eight, so the word is aligned and within
        // the mapping, which lives as long as `self`; it is touched by atomic operations alone.
        unsafe { AtomicU64::from_ptr(word.cast()) }
    }

    /// Writes whole words.
    ///
    /// # Panics
    ///
    /// Where there is no room, or a part of a word is left.
    pub fn write(&self, at: usize, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<WORD>();
        assert!(rest.is_empty());
        for (index, word) in words.iter().enumerate() {
            self.word(at + index * WORD)
                .store(u64::from_ne_bytes(*word), Ordering::Relaxed);
        }
    }

    /// Reads whole words.
    ///
    /// # Panics
    ///
    /// Where there is not so much, or a part of a word is wanted.
    pub fn read(&self, at: usize, bytes: &mut [u8]) {
        let (words, rest) = bytes.as_chunks_mut::<WORD>();
        assert!(rest.is_empty());
        for (index, word) in words.iter_mut().enumerate() {
            *word = self
                .word(at + index * WORD)
                .load(Ordering::Relaxed)
                .to_ne_bytes();
        }
    }
}

/// Tries again as long as another process holds the device, at growing intervals, for two seconds or until
/// it is told to give up.
pub fn patiently<T>(
    give_up: &AtomicBool,
    attempt: impl Fn() -> Result<T, client::Error>,
) -> Result<T, client::Error> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        match attempt() {
            Err(error)
                if error.errno() == Errno::EBUSY
                    && start.elapsed() < PATIENCE
                    && !give_up.load(Ordering::Relaxed) =>
            {
                std::thread::sleep(pause);
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held() -> Result<(), client::Error> {
        Err(client::Error::Call {
            operation: "open",
            errno: Errno::EBUSY,
        })
    }

    #[test]
    fn a_held_device_is_tried_again_until_it_is_free() {
        let tries = AtomicU64::new(0);
        let done = patiently(&AtomicBool::new(false), || {
            match tries.fetch_add(1, Ordering::Relaxed) {
                0..3 => held(),
                _ => Ok(()),
            }
        });
        assert!(done.is_ok());
        assert_eq!(tries.into_inner(), 4);
    }

    #[test]
    fn who_is_told_to_give_up_tries_once() {
        let tries = AtomicU64::new(0);
        let done = patiently(&AtomicBool::new(true), || {
            tries.fetch_add(1, Ordering::Relaxed);
            held()
        });
        assert_eq!(done.expect_err("held").errno(), Errno::EBUSY);
        assert_eq!(tries.into_inner(), 1);
    }

    #[test]
    fn what_is_written_is_there_in_another_mapping_of_the_same_memory() {
        let (file, memory) = Memory::create("test", 4096).expect("memory");
        memory.write(64, &[7; 16]);
        let other = Memory::map(&file).expect("mapped");
        let mut found = [0; 24];
        other.read(64, &mut found);
        assert_eq!(found[..16], [7; 16]);
        assert_eq!(found[16..], [0; 8]);
    }
}
