//! What survives the kexec: the last records, in memory that outlives this kernel.
//!
//! Best in memfds in a session of its own, which stay mapped and are written until the CPUs stop. The device is
//! held for the moment of creation alone; the session's descriptor holds nobody up. What is preserved costs the
//! kexec its time, so there are only as many [pieces](tape) as are needed: as many empty ones as full ones. Else in a memfd in the
//! service manager's store of descriptors, if it takes that over the kexec; else in a file beside the journal,
//! of which as much is there again as the kernel has written to the disk. After the boot the records are read
//! back, and then what they were in is let go.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, Sender, channel};

use lu_common::event::Record;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use sd_notify::NotifyState;

use super::tape::{self, PIECE, Tape};
use crate::client;
use crate::client::sessions::{Device, Session};
use crate::emulate::DEVICE;
use crate::preserved::{Memory, patiently};
use crate::timeline::RECORDER;

/// The most memory that it takes unless told otherwise, in bytes: room for some 700,000 records. The oldest go
/// first.
pub const SIZE: u64 = 16 << 20;

/// The least and the most that it may take, in bytes.
const SIZES: std::ops::RangeInclusive<u64> = 2 * PIECE as u64..=4 << 30;

/// The most pieces that there can be.
const PIECES: u64 = *SIZES.end() / PIECE as u64;

/// The token of the first memfd in the session; the others have those behind it.
const FIRST: u64 = 1;

/// The file's name in the journal's folder.
const FILE: &str = "recorder";

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
    Foreign(#[from] tape::Foreign),
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

/// What keeps what was found where it is.
#[derive(Debug)]
enum Hold {
    /// Until it is finished.
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
    tape: Tape,
    /// How many pieces there may be.
    most: usize,
    growth: Growth,
}

/// Where more pieces come from.
enum Growth {
    /// From the session; none was needed yet.
    Session(Session),
    /// From a thread that makes them: a call on the session may never return once a reboot is under way, and
    /// the writer must.
    Thread {
        ask: Sender<()>,
        pieces: Receiver<Memory>,
        asked: bool,
    },
    /// There are no more to be had.
    Over,
}

impl Recorder {
    /// Makes one of at most `size` bytes at `place`; a file is in `folder`. `run` says which run of lu it belongs
    /// to. A device that others hold is tried again, until `give_up`.
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
        let most = usize::try_from(size).unwrap_or(usize::MAX) / PIECE;
        let length = (most * PIECE) as u64;
        let (tape, growth) = match place {
            Place::Session => {
                let session =
                    patiently(give_up, || Device::open(DEVICE.as_ref())?.create(RECORDER))?;
                let mut tape = Tape::new(run, piece(&session, FIRST)?);
                tape.add(piece(&session, FIRST + 1)?);
                (tape, Growth::Session(session))
            }
            Place::Store => {
                if std::env::var_os("NOTIFY_SOCKET").is_none() {
                    return Err(Error::NoStore);
                }
                let memory = |error| Error::Memory("make", error);
                let (file, _) = Memory::create(RECORDER, length).map_err(memory)?;
                // It must be one already when it comes back, however soon that is.
                let tape = in_pieces(run, &file, most).map_err(memory)?;
                sd_notify::notify_with_fds(
                    &[NotifyState::FdStore, NotifyState::FdName(RECORDER)],
                    &[file.as_fd()],
                )
                .map_err(Error::Store)?;
                (tape, Growth::Over)
            }
            Place::File => {
                let path = folder.join(FILE);
                // What is there and is no recorder is not ours to overwrite.
                if let Some(found) = in_file(&path)?
                    && found.contents.is_none()
                    && let Some(foreign) = found.bad.into_iter().next()
                {
                    return Err(foreign);
                }
                let file = file(&path, length)?;
                let tape = in_pieces(run, &file, most).map_err(at("map", &path))?;
                // Its headers, and its name: what comes to the disk later can be read then.
                let folder = File::open(folder).map_err(at("open", folder))?;
                file.sync_all()
                    .and_then(|()| folder.sync_all())
                    .map_err(at("sync", &path))?;
                (tape, Growth::Over)
            }
        };
        Ok(Self { tape, most, growth })
    }

    /// Appends one record.
    pub fn append(&mut self, record: &Record) {
        self.tape.append(record);
        if let Growth::Thread { pieces, asked, .. } = &mut self.growth
            && *asked
            && let Ok(piece) = pieces.try_recv()
        {
            self.tape.add(piece);
            *asked = false;
        }
        if !self.tape.has_room() && self.tape.pieces() < self.most {
            self.grow();
        }
    }

    /// Notes that the writer is running.
    pub fn beat(&self) {
        self.tape.beat();
    }

    /// Asks for another piece, unless that was done already.
    fn grow(&mut self) {
        match &mut self.growth {
            Growth::Over | Growth::Thread { asked: true, .. } => {}
            Growth::Thread { ask, asked, .. } => *asked = ask.send(()).is_ok(),
            Growth::Session(_) => {
                let Growth::Session(session) = std::mem::replace(&mut self.growth, Growth::Over)
                else {
                    return;
                };
                let next = FIRST + self.tape.pieces() as u64;
                let (ask, asks) = channel();
                let (give, pieces) = channel();
                std::thread::spawn(move || make_pieces(&session, next, &asks, &give));
                self.growth = Growth::Thread {
                    ask,
                    pieces,
                    asked: false,
                };
                self.grow();
            }
        }
    }
}

/// Makes a piece for each that is asked for, and keeps the session: its last close would take all off the list.
fn make_pieces(session: &Session, first: u64, asks: &Receiver<()>, give: &Sender<Memory>) {
    for token in first.. {
        if asks.recv().is_err() {
            return;
        }
        match piece(session, token) {
            Ok(memory) => {
                if give.send(memory).is_err() {
                    return;
                }
            }
            Err(error) => {
                log::warn!("the flight recorder cannot grow, so its oldest records go: {error}");
                // The session stays as long as the recorder does.
                while asks.recv().is_ok() {}
                return;
            }
        }
    }
}

/// A memfd that is preserved under a token.
fn piece(session: &Session, token: u64) -> Result<Memory, Error> {
    let (file, memory) =
        Memory::create(RECORDER, PIECE as u64).map_err(|error| Error::Memory("make", error))?;
    session.preserve(token, &file)?;
    Ok(memory)
}

/// A tape in one file of so many pieces.
fn in_pieces(run: u64, file: &File, pieces: usize) -> io::Result<Tape> {
    let map = |number: usize| Memory::map_part(file, (number * PIECE) as u64, PIECE);
    let mut tape = Tape::new(run, map(0)?);
    for number in 1..pieces {
        tape.add(map(number)?);
    }
    Ok(tape)
}

/// A new file of this length. Its blocks are there from the start: a full disk is told now, and not by a signal
/// later.
fn file(path: &Path, length: u64) -> Result<File, Error> {
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
    Ok(file)
}

/// A recorder that an earlier lu left.
#[derive(Debug)]
pub struct Found {
    /// Where it was.
    pub place: Place,
    /// What is in it, as far as it can be read.
    pub contents: Option<tape::Found>,
    /// Why pieces of it cannot be read.
    pub bad: Vec<Error>,
    hold: Hold,
}

impl Found {
    /// Lets go of it, once what was in it is safe. A session must be kept until then: the kernel finishes it where
    /// it is closed. All else can be found again.
    pub fn release(self) -> Result<(), Error> {
        self.hold.release()
    }
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
    let (contents, bad) = in_memfds(|token| session.retrieve(token));
    Ok(Some(Found {
        place: Place::Session,
        contents,
        bad,
        hold: Hold::Session(session),
    }))
}

fn in_store() -> Option<Found> {
    // What is no list of descriptors is no store.
    let (fd, _) = sd_notify::listen_fds_with_names()
        .ok()?
        .find(|(_, name)| name == RECORDER)?;
    let (contents, bad) = in_one(&given(fd));
    Some(Found {
        place: Place::Store,
        contents,
        bad,
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
        Ok(file) => {
            let (contents, bad) = in_one(&file);
            Ok(Some(Found {
                place: Place::File,
                contents,
                bad,
                hold: Hold::File(path.into()),
            }))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at("open", path)(error)),
    }
}

/// What is on the tape, and why pieces of it cannot be read.
type Contents = (Option<tape::Found>, Vec<Error>);

/// All memfds of a session. One that cannot be had does not keep the others from being read.
fn in_memfds(retrieve: impl Fn(u64) -> Result<OwnedFd, client::Error>) -> Contents {
    let (mut pieces, mut bad) = (Vec::new(), Vec::new());
    for token in (FIRST..).take(PIECES as usize) {
        let piece = match retrieve(token) {
            Ok(fd) => all_of(&fd.into(), PIECE as u64),
            Err(error) if error.errno() == Errno::ENOENT => break,
            Err(error) => Err(error.into()),
        };
        match piece {
            Ok(bytes) => pieces.push(bytes),
            Err(error) => bad.push(error),
        }
    }
    let (found, foreign) = tape::read(pieces.iter().map(Vec::as_slice));
    bad.extend(foreign.into_iter().map(Error::Foreign));
    (found, bad)
}

/// A file of one piece after the other.
fn in_one(file: &File) -> Contents {
    match all_of(file, *SIZES.end()) {
        Ok(bytes) => {
            let (found, foreign) = tape::read(bytes.chunks(PIECE));
            (found, foreign.into_iter().map(Error::Foreign).collect())
        }
        Err(error) => (None, vec![error]),
    }
}

/// What a file holds, up to a length.
fn all_of(mut file: &File, most: u64) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    io::Seek::rewind(&mut file)
        .and_then(|()| io::Read::read_to_end(&mut io::Read::take(file, most), &mut bytes))
        .map_err(|error| Error::Memory("read", error))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use lu_common::event::Kind;

    use super::*;

    fn times(found: &tape::Found) -> Vec<u64> {
        let records = found.records.iter();
        records.map(|(_, record)| record.header.t_ns).collect()
    }

    #[test]
    fn a_file_of_which_a_power_cut_left_nothing_is_an_empty_recorder() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(FILE);
        for left in [0, 100, 1 << 20] {
            fs::write(&path, vec![0; left]).expect("written");
            let found = in_file(&path).expect("looked").expect("found");
            assert!(found.contents.is_none() && found.bad.is_empty(), "{left}");
            let made = Recorder::create(
                Place::File,
                7,
                1 << 20,
                folder.path(),
                &AtomicBool::new(false),
            );
            made.expect("a recorder");
        }
    }

    #[test]
    fn a_memfd_that_cannot_be_retrieved_does_not_keep_the_others_from_being_read() {
        let (first, memory) = Memory::create("piece", PIECE as u64).expect("memory");
        let mut tape = Tape::new(7, memory);
        for t_ns in 1..=5 {
            tape.append(&Record::made(Kind::Open, t_ns, [0; 64]));
        }
        let failed = |errno| client::Error::Call {
            operation: "RETRIEVE_FD",
            errno,
        };
        let (unwritten, _) = Memory::create("piece", PIECE as u64).expect("memory");
        let (found, bad) = in_memfds(|token| match token {
            1 => Err(failed(Errno::EIO)),
            2 => Ok(first.try_clone().expect("another").into()),
            // It was preserved, and its writer had not come to it yet.
            3 => Ok(unwritten.try_clone().expect("another").into()),
            _ => Err(failed(Errno::ENOENT)),
        });
        assert_eq!(times(&found.expect("the second")), [1, 2, 3, 4, 5]);
        assert!(matches!(bad[..], [Error::Client(_)]), "{bad:?}");
    }

    #[test]
    fn what_is_recorded_in_a_file_is_found_again_and_nothing_foreign_is_overwritten() {
        let folder = tempfile::tempdir().expect("a folder");
        let go_on = AtomicBool::new(false);
        let create = || Recorder::create(Place::File, 7, 1 << 20, folder.path(), &go_on);
        let path = folder.path().join(FILE);
        assert!(in_file(&path).expect("looked").is_none());
        let mut recorder = create().expect("a recorder");
        for t_ns in 1..=5 {
            recorder.append(&Record::made(Kind::Open, t_ns, [0; 64]));
        }
        drop(recorder);
        let found = in_file(&path).expect("looked").expect("found");
        assert!(found.bad.is_empty());
        let recovered = found.contents.as_ref().expect("whole");
        assert_eq!((recovered.run, times(recovered)), (7, vec![1, 2, 3, 4, 5]));
        found.release().expect("removed");
        assert!(in_file(&path).expect("looked").is_none());
        fs::write(&path, "a letter").expect("written");
        assert!(matches!(create(), Err(Error::Foreign(_))));
        assert_eq!(fs::read_to_string(&path).expect("there"), "a letter");
    }
}
