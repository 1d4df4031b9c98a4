//! What survives the kexec: the last records, in memfds that are preserved themselves.
//!
//! They are in a session of their own and stay mapped: a preserved memfd may be written in place until the jump. The
//! device is held for the moment of creation alone; the session's descriptor holds nobody up. In the new kernel the
//! records are read back, and the session is finished.
//!
//! What is preserved costs the kexec its time, so there is only as much as is needed: there are as many empty
//! [pieces](tape) as full ones, up to the size that was asked for.

use std::fs::File;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, Sender, channel};

use lu_common::event::Record;
use nix::errno::Errno;

use super::tape::{self, Found, PIECE, Tape};
use crate::client;
use crate::client::sessions::{Device, Session};
use crate::emulate::DEVICE;
use crate::preserved::{Memory, patiently};
use crate::timeline::RECORDER;

/// The most memory that it takes unless told otherwise, in bytes: room for some 800,000 records. The oldest go
/// first.
pub const SIZE: u64 = 16 << 20;

/// The least and the most that it may take, in bytes.
const SIZES: std::ops::RangeInclusive<u64> = 2 * PIECE as u64..=4 << 30;

/// The token of the first memfd; the others have those behind it.
const FIRST: u64 = 1;

/// Why there is no recorder, or nothing in it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The orchestrator refused.
    #[error("{0}")]
    Client(#[from] client::Error),
    /// A memfd could not be made, mapped or read.
    #[error("cannot get at the recorder's memory: {0}")]
    Memory(#[from] io::Error),
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
    Foreign(#[from] tape::Foreign),
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
    /// None was needed yet.
    Session(Session),
    /// A thread that makes them: a call on the session may never return once a reboot is under way, and the writer must.
    Thread {
        ask: Sender<()>,
        pieces: Receiver<Memory>,
        asked: bool,
    },
    /// There are no more to be had.
    Over,
}

impl Recorder {
    /// Has two memfds preserved, and more later, up to `size` bytes. `run` says which run of lu it belongs to. While
    /// another process holds the device it tries again, until it is told to give up.
    pub fn create(run: u64, size: u64, give_up: &AtomicBool) -> Result<Self, Error> {
        if !SIZES.contains(&size) {
            return Err(Error::Size(size));
        }
        let session = patiently(give_up, || Device::open(DEVICE.as_ref())?.create(RECORDER))?;
        let mut tape = Tape::new(run, piece(&session, FIRST)?);
        tape.add(piece(&session, FIRST + 1)?);
        Ok(Self {
            tape,
            most: usize::try_from(size).unwrap_or(usize::MAX) / PIECE,
            growth: Growth::Session(session),
        })
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
                let next = FIRST + self.tape.pieces() as u64;
                let Growth::Session(session) = std::mem::replace(&mut self.growth, Growth::Over)
                else {
                    return;
                };
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
    let (file, memory) = Memory::create(RECORDER, PIECE as u64)?;
    session.preserve(token, &file)?;
    Ok(memory)
}

/// Reads what was handed over. `None`: there is nothing. The session is to be finished once what was read is
/// safe; until then it can be read again.
pub fn recover(give_up: &AtomicBool) -> Result<Option<(Session, Found)>, Error> {
    let session = patiently(give_up, || {
        Device::open(DEVICE.as_ref())?.retrieve(RECORDER)
    });
    let session = match session {
        Ok(session) => session,
        Err(error) if error.errno() == Errno::ENOENT => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut pieces = Vec::new();
    for token in FIRST.. {
        let file = match session.retrieve(token) {
            Ok(file) => File::from(file),
            Err(error) if error.errno() == Errno::ENOENT => break,
            Err(error) => return Err(error.into()),
        };
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(&file, PIECE as u64), &mut bytes)?;
        pieces.push(bytes);
    }
    Ok(Some((session, tape::read(&pieces)?)))
}
