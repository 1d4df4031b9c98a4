//! What survives the kexec: the last records, in a memfd that is preserved itself.
//!
//! The memfd is in a session of its own and stays mapped: a preserved memfd may be written in place until
//! the jump. The device is held for the moment of creation alone; the session's descriptor holds nobody
//! up. In the new kernel the records are read back, and the session is finished.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lu_common::event::{Kind, Record};
use memmap2::MmapRaw;
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::clocks::{boot_id, now_ns};
use crate::client;
use crate::client::sessions::{Device, Session};
use crate::emulate::DEVICE;
use crate::timeline::RECORDER;

/// The memfd's size unless told otherwise, in bytes: room for 131,040 records. The oldest go first.
pub const SIZE: u64 = 16 << 20;

/// The least and the most that it may have, in bytes.
const SIZES: std::ops::RangeInclusive<u64> = 64 << 10..=4 << 30;

/// The memfd's token.
const TOKEN: u64 = 1;

/// Where the records begin, in bytes.
const RECORDS: usize = 4096;

const MAGIC: [u8; 8] = *b"lu.recd\n";
const VERSION: u32 = 1;

/// How long the device may be held by others before we do without.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the memfd begins with.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct Header {
    magic: [u8; 8],
    version: u32,
    record_size: u32,
    boot_id: [u8; 16],
    capacity: u64,
    /// The run of `lu run` that wrote it, see [`super::Writer::run`].
    run: u64,
    /// How many records were ever appended. Written after the record itself.
    head: u64,
    /// `CLOCK_MONOTONIC` when the writer last ran.
    beat_ns: u64,
}

const HEAD: usize = std::mem::offset_of!(Header, head);
const BEAT: usize = std::mem::offset_of!(Header, beat_ns);

/// Why there is no recorder, or nothing in it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The orchestrator refused.
    #[error("{0}")]
    Client(#[from] client::Error),
    /// The memfd could not be made or mapped.
    #[error("cannot {0} the recorder's memory: {1}")]
    Memory(&'static str, io::Error),
    /// The size makes no sense.
    #[error(
        "a recorder has from {} to {}, not {}",
        bytesize::ByteSize(*SIZES.start()),
        bytesize::ByteSize(*SIZES.end()),
        bytesize::ByteSize(*.0)
    )]
    Size(u64),
    /// What was handed over is something else.
    #[error("what session {RECORDER} handed over is not a recorder of this version of lu: {0}")]
    Foreign(&'static str),
}

/// The writing end.
pub struct Recorder {
    memory: MmapRaw,
    capacity: u64,
    head: u64,
    /// Its last close would take the memfd off the list.
    _session: Session,
}

impl Recorder {
    /// Makes a memfd of `size` bytes and has it preserved. `run` says which run of lu it belongs to.
    pub fn create(run: u64, size: u64) -> Result<Self, Error> {
        if !SIZES.contains(&size) {
            return Err(Error::Size(size));
        }
        let capacity = (size - RECORDS as u64) / size_of::<Record>() as u64;
        let memory = |step| move |error| Error::Memory(step, error);
        let fd = memfd_create(RECORDER, MFdFlags::MFD_CLOEXEC)
            .map_err(|errno| memory("make")(errno.into()))?;
        let file = File::from(fd);
        file.set_len(RECORDS as u64 + capacity * size_of::<Record>() as u64)
            .map_err(memory("size"))?;
        let map = MmapRaw::map_raw(&file).map_err(memory("map"))?;
        let session = patiently(|| Device::open(DEVICE.as_ref())?.create(RECORDER))?;
        session.preserve(TOKEN, &file)?;
        let recorder = Self {
            memory: map,
            capacity,
            head: 0,
            _session: session,
        };
        let header = Header {
            magic: MAGIC,
            version: VERSION,
            record_size: size_of::<Record>() as u32,
            boot_id: boot_id(),
            capacity,
            run,
            head: 0,
            beat_ns: now_ns(),
        };
        recorder.write(0, header.as_bytes());
        Ok(recorder)
    }

    /// Appends one record.
    pub fn append(&mut self, record: &Record) {
        let slot = RECORDS + (self.head % self.capacity) as usize * size_of::<Record>();
        self.write(slot, record.as_bytes());
        self.head += 1;
        self.field(HEAD).store(self.head, Ordering::Release);
        self.beat();
    }

    /// Notes that the writer is running.
    pub fn beat(&self) {
        self.field(BEAT).store(now_ns(), Ordering::Release);
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.memory.len());
        // SAFETY: `at` is within the mapping.
        let to = unsafe { self.memory.as_mut_ptr().add(at) };
        // SAFETY: the range is within the mapping, which nobody else in this process writes to.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    fn field(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: the header is within the mapping.
        let field = unsafe { self.memory.as_mut_ptr().add(offset) };
        // SAFETY: the mapping begins at a page and the field at a multiple of eight within it; it lives as
        // long as `self`, and is touched through atomic operations alone.
        unsafe { AtomicU64::from_ptr(field.cast()) }
    }
}

/// What the old kernel's lu recorded.
#[derive(Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Which run of lu it was.
    pub run: u64,
    /// How many records came before the first that is still there.
    pub skipped: u64,
    /// The records, oldest first.
    pub records: Vec<Record>,
    /// When the writer last ran, as a [`Kind::LastBeat`] record.
    pub last_beat: Record,
}

/// Reads what was handed over. `None`: there is nothing. The session is to be finished once what was read is
/// safe; until then it can be read again.
pub fn recover() -> Result<Option<(Session, Recovered)>, Error> {
    let session = match patiently(|| Device::open(DEVICE.as_ref())?.retrieve(RECORDER)) {
        Ok(session) => session,
        Err(error) if error.errno() == Errno::ENOENT => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let file = File::from(session.retrieve(TOKEN)?);
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(&file, *SIZES.end()), &mut bytes)
        .map_err(|error| Error::Memory("read", error))?;
    Ok(Some((session, parse(&bytes)?)))
}

fn parse(bytes: &[u8]) -> Result<Recovered, Error> {
    let (header, _) =
        Header::read_from_prefix(bytes).map_err(|_| Error::Foreign("it is too short"))?;
    if header.magic != MAGIC {
        return Err(Error::Foreign("it begins otherwise"));
    }
    if header.version != VERSION || header.record_size as usize != size_of::<Record>() {
        return Err(Error::Foreign("another version wrote it"));
    }
    let records = bytes.get(RECORDS..).unwrap_or_default();
    if header.capacity == 0 || records.len() as u64 / size_of::<Record>() as u64 != header.capacity
    {
        return Err(Error::Foreign("its size is not what it says"));
    }
    let skipped = header.head.saturating_sub(header.capacity);
    let records = (skipped..header.head)
        .filter_map(|number| {
            let at = (number % header.capacity) as usize * size_of::<Record>();
            Record::read_from_bytes(&records[at..at + size_of::<Record>()]).ok()
        })
        .collect();
    Ok(Recovered {
        run: header.run,
        skipped,
        records,
        last_beat: Record::made(Kind::LastBeat, header.beat_ns, [0; 64]),
    })
}

/// Tries again as long as another process holds the device, at growing intervals.
fn patiently<T>(attempt: impl Fn() -> Result<T, client::Error>) -> Result<T, client::Error> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        match attempt() {
            Err(error) if error.errno() == Errno::EBUSY && start.elapsed() < PATIENCE => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(100));
            }
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(head: u64) -> Vec<u8> {
        let capacity = 4;
        let header = Header {
            magic: MAGIC,
            version: VERSION,
            record_size: 128,
            boot_id: [1; 16],
            capacity,
            run: 7,
            head,
            beat_ns: 99,
        };
        let mut bytes = vec![0; RECORDS + capacity as usize * size_of::<Record>()];
        bytes[..size_of::<Header>()].copy_from_slice(header.as_bytes());
        for number in 0..head {
            let record = Record::made(Kind::Open, number, [0; 64]);
            let at = RECORDS + (number % capacity) as usize * size_of::<Record>();
            bytes[at..at + size_of::<Record>()].copy_from_slice(record.as_bytes());
        }
        bytes
    }

    #[test]
    fn the_newest_records_come_back_in_order_and_the_others_are_counted() {
        for head in 0..20 {
            let found = parse(&memory(head)).expect("whole");
            let times: Vec<u64> = found.records.iter().map(|r| r.header.t_ns).collect();
            let first = head.saturating_sub(4);
            assert_eq!(found.skipped, first);
            assert_eq!(times, (first..head).collect::<Vec<_>>());
            assert_eq!(found.last_beat.header.t_ns, 99);
        }
    }

    #[test]
    fn what_is_cut_foreign_or_of_another_version_is_refused() {
        let whole = memory(3);
        for length in 0..whole.len() {
            assert!(parse(&whole[..length]).is_err(), "{length} bytes");
        }
        for at in 0..16 {
            let mut other = whole.clone();
            other[at] ^= 0xFF;
            assert!(parse(&other).is_err(), "byte {at}");
        }
    }
}
