//! What survives the kexec: the last records, in memory that outlives this kernel.
//!
//! Best in a memfd in a session of its own, which stays mapped and is written until the CPUs stop. The device is
//! held for the moment of creation alone; the session's descriptor holds nobody up. Else in a memfd in the
//! service manager's store of descriptors, if it takes that over the kexec; else in a file beside the journal,
//! of which as much is there again as the kernel has written to the disk. After the boot the records are read
//! back, and then what they were in is let go.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use lu_common::event::{Kind, Record};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use sd_notify::NotifyState;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::clocks::{boot_id, now_ns};
use crate::client;
use crate::client::sessions::{Device, Session};
use crate::emulate::DEVICE;
use crate::preserved::{Memory, patiently};
use crate::timeline::RECORDER;

/// Its size unless told otherwise, in bytes: room for 131,040 records. The oldest go first.
pub const SIZE: u64 = 16 << 20;

/// The least and the most that it may have, in bytes.
const SIZES: std::ops::RangeInclusive<u64> = 64 << 10..=4 << 30;

/// The memfd's token.
const TOKEN: u64 = 1;

/// The file's name in the journal's folder.
const FILE: &str = "recorder";

/// Where the records begin, in bytes.
const RECORDS: usize = 4096;

const MAGIC: [u8; 8] = *b"lu.recd\n";
const VERSION: u32 = 1;

/// Nobody has made more records than these: one each 100 ns for a year.
const RECORDS_AT_MOST: u64 = 1 << 48;

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
    #[error(transparent)]
    Client(#[from] client::Error),
    /// The memory could not be had.
    #[error("cannot {0} the recorder's memory: {1}")]
    Memory(&'static str, io::Error),
    /// The file beside the journal.
    #[error("cannot {action} {}: {error}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The service manager keeps no descriptors.
    #[error(
        "no service manager keeps descriptors for lu; its unit needs FileDescriptorStoreMax= and NotifyAccess="
    )]
    NoStore,
    /// The service manager could not be told.
    #[error("cannot tell the service manager: {0}")]
    Store(io::Error),
    /// The size makes no sense.
    #[error(
        "a recorder has from {} to {}, not {}",
        bytesize::ByteSize(*SIZES.start()),
        bytesize::ByteSize(*SIZES.end()),
        bytesize::ByteSize(*.0)
    )]
    Size(u64),
    /// What was found is something else.
    #[error("what was found is no flight recorder of this version of lu: {0}")]
    Foreign(&'static str),
}

/// Where a recorder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A memfd in a session of its own.
    Session,
    /// A memfd in the service manager's store.
    Store,
    /// A file beside the journal.
    File,
}

/// What keeps it there.
#[derive(Debug)]
enum Hold {
    /// Its last close would take the memfd off the list.
    Session(Session),
    /// The service manager has it.
    Store,
    /// It is there.
    File(PathBuf),
}

impl Hold {
    /// Lets go of what is read and safe.
    fn release(self) -> Result<(), Error> {
        match self {
            Self::Session(session) => Ok(session.finish()?),
            Self::Store => {
                sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(RECORDER)])
                    .map_err(Error::Store)
            }
            Self::File(path) => fs::remove_file(&path).map_err(at("remove", &path)),
        }
    }
}

fn at<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |error| Error::File {
        action,
        path: path.into(),
        error,
    }
}

/// The writing end.
pub struct Recorder {
    memory: Memory,
    capacity: u64,
    head: u64,
    _hold: Hold,
}

impl Recorder {
    /// Makes one of `size` bytes at `place`; a file is in `folder`. `run` says which run of lu it belongs to.
    /// A device that others hold is tried again, until `give_up`.
    pub fn create(
        place: Place,
        run: u64,
        size: u64,
        folder: &Path,
        give_up: &AtomicBool,
    ) -> Result<Self, Error> {
        if !SIZES.contains(&size) {
            return Err(Error::Size(size));
        }
        let capacity = (size - RECORDS as u64) / size_of::<Record>() as u64;
        let length = RECORDS as u64 + capacity * size_of::<Record>() as u64;
        let memfd =
            || Memory::create(RECORDER, length).map_err(|error| Error::Memory("make", error));
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
        let (memory, hold) = match place {
            Place::Session => {
                let (file, memory) = memfd()?;
                let session =
                    patiently(give_up, || Device::open(DEVICE.as_ref())?.create(RECORDER))?;
                session.preserve(TOKEN, &file)?;
                (memory, Hold::Session(session))
            }
            Place::Store => {
                if std::env::var_os("NOTIFY_SOCKET").is_none() {
                    return Err(Error::NoStore);
                }
                let (file, memory) = memfd()?;
                // It must be one already when it comes back, however soon that is.
                memory.write(0, header.as_bytes());
                sd_notify::notify_with_fds(
                    &[NotifyState::FdStore, NotifyState::FdName(RECORDER)],
                    &[file.as_fd()],
                )
                .map_err(Error::Store)?;
                (memory, Hold::Store)
            }
            Place::File => {
                let path = folder.join(FILE);
                // What is there and is no recorder is not ours to overwrite.
                if let Some(found) = in_file(&path)? {
                    found.contents?;
                }
                let memory = file(&path, length)?;
                (memory, Hold::File(path))
            }
        };
        memory.write(0, header.as_bytes());
        Ok(Self {
            memory,
            capacity,
            head: 0,
            _hold: hold,
        })
    }

    /// Appends one record.
    pub fn append(&mut self, record: &Record) {
        let slot = RECORDS + (self.head % self.capacity) as usize * size_of::<Record>();
        self.memory.write(slot, record.as_bytes());
        self.head += 1;
        self.memory.word(HEAD).store(self.head, Ordering::Release);
        self.beat();
    }

    /// Notes that the writer is running.
    pub fn beat(&self) {
        self.memory.word(BEAT).store(now_ns(), Ordering::Release);
    }
}

/// A new file of this length, mapped. Its blocks are there from the start: a full disk is told now, and not by
/// a signal later.
fn file(path: &Path, length: u64) -> Result<Memory, Error> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(at("create", path))?;
    fallocate(&file, FallocateFlags::empty(), 0, length.cast_signed())
        .map_err(|errno| at("make room in", path)(errno.into()))?;
    Memory::map(&file).map_err(at("map", path))
}

/// A recorder that an earlier lu left.
#[derive(Debug)]
pub struct Found {
    /// Where it was.
    pub place: Place,
    /// What is in it.
    pub contents: Result<Recovered, Error>,
    hold: Hold,
}

impl Found {
    /// Lets go of it, once what was in it is safe; until then it can be found again.
    pub fn release(self) -> Result<(), Error> {
        self.hold.release()
    }
}

/// What an earlier lu recorded.
#[derive(Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Which run of lu it was.
    pub run: u64,
    /// How many records came before the first that is still there.
    pub skipped: u64,
    /// Records that make no sense, and are left out.
    pub senseless: u64,
    /// The records, oldest first, each with its number in that run.
    pub records: Vec<(u64, Record)>,
    /// When the writer last ran, as a [`Kind::LastBeat`] record.
    pub last_beat: Record,
}

/// Looks everywhere. Each that is found, or why it cannot be looked for there.
pub fn recover(folder: &Path, give_up: &AtomicBool) -> Vec<Result<Found, Error>> {
    [
        in_session(give_up),
        Ok(in_store()),
        in_file(&folder.join(FILE)),
    ]
    .into_iter()
    .filter_map(Result::transpose)
    .collect()
}

fn in_session(give_up: &AtomicBool) -> Result<Option<Found>, Error> {
    let session = match patiently(give_up, || {
        Device::open(DEVICE.as_ref())?.retrieve(RECORDER)
    }) {
        Ok(session) => session,
        // None was handed over; or this is v3, which takes the call for another one, and finds it too long.
        Err(error) if matches!(error.errno(), Errno::ENOENT | Errno::E2BIG) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let contents = match session.retrieve(TOKEN) {
        Ok(fd) => read(&fd.into()),
        Err(error) => Err(error.into()),
    };
    Ok(Some(Found {
        place: Place::Session,
        contents,
        hold: Hold::Session(session),
    }))
}

fn in_store() -> Option<Found> {
    // What is no list of descriptors is no store.
    let (fd, _) = sd_notify::listen_fds_with_names()
        .ok()?
        .find(|(_, name)| name == RECORDER)?;
    Some(Found {
        place: Place::Store,
        contents: read(&given(fd)),
        hold: Hold::Store,
    })
}

/// A descriptor that the service manager left to this process.
fn given(fd: RawFd) -> File {
    // SAFETY: the service manager has opened it for this process, by whose id it said so, and lu has no other use
    // for those of its name.
    unsafe { OwnedFd::from_raw_fd(fd) }.into()
}

fn in_file(path: &Path) -> Result<Option<Found>, Error> {
    match File::open(path) {
        Ok(file) => Ok(Some(Found {
            place: Place::File,
            contents: read(&file),
            hold: Hold::File(path.into()),
        })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at("open", path)(error)),
    }
}

fn read(mut file: &File) -> Result<Recovered, Error> {
    let mut bytes = Vec::new();
    io::Seek::rewind(&mut file)
        .and_then(|()| io::Read::read_to_end(&mut io::Read::take(file, *SIZES.end()), &mut bytes))
        .map_err(|error| Error::Memory("read", error))?;
    parse(&bytes)
}

/// Whatever the bytes are, they are a recorder, or refused.
fn parse(bytes: &[u8]) -> Result<Recovered, Error> {
    let (header, _) =
        Header::read_from_prefix(bytes).map_err(|_| Error::Foreign("it is too short"))?;
    if header.magic != MAGIC {
        return Err(Error::Foreign("it begins otherwise"));
    }
    if header.version != VERSION || header.record_size as usize != size_of::<Record>() {
        return Err(Error::Foreign("another version wrote it"));
    }
    let (slots, rest) = <[Record]>::ref_from_prefix(bytes.get(RECORDS..).unwrap_or_default())
        .map_err(|_| Error::Foreign("its records are not where they should be"))?;
    if header.capacity == 0 || slots.len() as u64 != header.capacity || !rest.is_empty() {
        return Err(Error::Foreign("its size is not what it says"));
    }
    if header.head > RECORDS_AT_MOST {
        return Err(Error::Foreign("it counts more records than there can be"));
    }
    // Once it is full the oldest may just have been overwritten when the writer was stopped.
    let skipped = (header.head + 1).saturating_sub(header.capacity);
    let records: Vec<(u64, Record)> = (skipped..header.head)
        .map(|number| (number, slots[(number % header.capacity) as usize]))
        .filter(|(_, record)| makes_sense(record, header.beat_ns))
        .collect();
    Ok(Recovered {
        run: header.run,
        skipped,
        senseless: header.head - skipped - records.len() as u64,
        records,
        last_beat: Record::made(Kind::LastBeat, header.beat_ns, [0; 64]),
    })
}

/// A record of this version, from before the last beat.
fn makes_sense(record: &Record, beat_ns: u64) -> bool {
    record.kind().is_some() && record.header.t_ns <= beat_ns
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CAPACITY: u64 = 4;

    fn memory(head: u64) -> Vec<u8> {
        let header = Header {
            magic: MAGIC,
            version: VERSION,
            record_size: 128,
            boot_id: [1; 16],
            capacity: CAPACITY,
            run: 7,
            head,
            beat_ns: 99,
        };
        let mut bytes = vec![0; RECORDS + CAPACITY as usize * size_of::<Record>()];
        bytes[..size_of::<Header>()].copy_from_slice(header.as_bytes());
        for number in head.saturating_sub(CAPACITY)..head {
            let record = Record::made(Kind::Open, number % 90, [0; 64]);
            let at = slot(number);
            bytes[at..at + size_of::<Record>()].copy_from_slice(record.as_bytes());
        }
        bytes
    }

    fn slot(number: u64) -> usize {
        RECORDS + (number % CAPACITY) as usize * size_of::<Record>()
    }

    fn numbers(found: &Recovered) -> Vec<u64> {
        found.records.iter().map(|(number, _)| *number).collect()
    }

    #[test]
    fn the_newest_records_come_back_in_order_and_the_others_are_counted() {
        for head in 0..20 {
            let found = parse(&memory(head)).expect("whole");
            let first = (head + 1).saturating_sub(CAPACITY);
            assert_eq!((found.skipped, found.senseless), (first, 0));
            assert_eq!(numbers(&found), (first..head).collect::<Vec<_>>());
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

    #[test]
    fn a_head_or_a_capacity_that_cannot_be_is_refused() {
        for (at, value) in [
            (HEAD, u64::MAX),
            (HEAD, RECORDS_AT_MOST + 1),
            (std::mem::offset_of!(Header, capacity), 0),
            (std::mem::offset_of!(Header, capacity), 5),
            (std::mem::offset_of!(Header, capacity), u64::MAX),
        ] {
            let mut other = memory(3);
            other[at..at + 8].copy_from_slice(&value.to_ne_bytes());
            assert!(
                matches!(parse(&other), Err(Error::Foreign(_))),
                "{at}: {value}"
            );
        }
    }

    #[test]
    fn records_that_make_no_sense_are_left_out_and_counted() {
        let mut bytes = memory(3);
        // Of no kind; from after the last beat.
        bytes[slot(0)..slot(0) + size_of::<Record>()].fill(0);
        bytes[slot(1)..slot(1) + 8].copy_from_slice(&100_u64.to_ne_bytes());
        let found = parse(&bytes).expect("whole");
        assert_eq!((numbers(&found), found.senseless), (vec![2], 2));
    }

    #[test]
    fn what_is_recorded_in_a_file_is_found_again_and_nothing_foreign_is_overwritten() {
        let folder = tempfile::tempdir().expect("a folder");
        let go_on = AtomicBool::new(false);
        let create = || Recorder::create(Place::File, 7, 1 << 16, folder.path(), &go_on);
        let path = folder.path().join(FILE);
        assert!(in_file(&path).expect("looked").is_none());
        let mut recorder = create().expect("a recorder");
        for t_ns in 1..=5 {
            recorder.append(&Record::made(Kind::Open, t_ns, [0; 64]));
        }
        drop(recorder);
        let found = in_file(&path).expect("looked").expect("found");
        let recovered = found.contents.as_ref().expect("whole");
        assert_eq!(
            (recovered.run, numbers(recovered)),
            (7, vec![0, 1, 2, 3, 4])
        );
        found.release().expect("removed");
        assert!(in_file(&path).expect("looked").is_none());
        fs::write(&path, "a letter").expect("written");
        assert!(matches!(create(), Err(Error::Foreign(_))));
        assert_eq!(fs::read_to_string(&path).expect("there"), "a letter");
    }

    proptest! {
        /// Whatever the bytes are, and whatever the header says, there is no panic, and no more comes out than
        /// there is room for.
        #[test]
        fn any_bytes_are_a_recorder_or_refused(
            noise in prop::collection::vec(any::<u8>(), 0..6000),
            keep in 0..=size_of::<Header>(),
            head in any::<u64>(),
        ) {
            let _ = parse(&noise);
            let mut bytes = memory(3);
            for (byte, noise) in bytes[keep..].iter_mut().zip(&noise) {
                *byte = *noise;
            }
            if keep > HEAD {
                bytes[HEAD..HEAD + 8].copy_from_slice(&(head >> 16).to_ne_bytes());
            }
            if let Ok(found) = parse(&bytes) {
                prop_assert!((found.records.len() as u64) < CAPACITY);
            }
        }

        /// The slot that was being written when the machine stopped spoils no other record.
        #[test]
        fn a_torn_write_is_harmless(head in 0_u64..40, torn in prop::collection::vec(any::<u8>(), 128)) {
            let mut bytes = memory(head);
            let whole = parse(&bytes).expect("whole");
            bytes[slot(head)..slot(head) + size_of::<Record>()].copy_from_slice(&torn);
            prop_assert_eq!(parse(&bytes).expect("whole"), whole);
        }
    }
}
