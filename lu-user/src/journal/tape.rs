//! The newest records, packed, in pieces of memory that whoever reads them later need not trust.
//!
//! A [`Tape`] writes into one piece after the other. A piece has a header, then records as
//! [`packed`](super::packed) has them, beginning anew: each can be read without the others. Where no empty piece is
//! left the one with the oldest records is written over.

use std::collections::VecDeque;
use std::mem::offset_of;
use std::sync::atomic::Ordering;

use lu_common::event::{Kind, Record};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::clocks::{boot_id, now_ns};
use super::packed::{Before, MOST, Room};
use crate::preserved::Memory;

/// A piece's length, in bytes.
pub const PIECE: usize = 256 << 10;

const MAGIC: [u8; 8] = *b"lu.tape\n";
const VERSION: u32 = 2;

/// What a piece begins with.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct Header {
    magic: [u8; 8],
    version: u32,
    record_size: u32,
    boot_id: [u8; 16],
    /// The run of `lu run` that wrote it, see [`super::Writer::run`].
    run: u64,
    /// The number of the first record, counted from 0 over all pieces.
    first: u64,
    /// Where the last record ends, in bytes behind the header. Written after the record itself.
    used: u64,
    /// `CLOCK_MONOTONIC` when the writer last ran.
    beat_ns: u64,
}

/// After so many records the writer notes that it runs, beside what it notes when there are none.
const BEAT_EVERY: u64 = 16;

const HEADER: usize = size_of::<Header>();
const FIRST: usize = offset_of!(Header, first);
const USED: usize = offset_of!(Header, used);
const BEAT: usize = offset_of!(Header, beat_ns);

const _: () = assert!(HEADER == 64 && PIECE >= HEADER + MOST);

/// The writing end.
#[derive(Debug)]
pub struct Tape {
    run: u64,
    /// Those with records, the oldest first; the last one is being written.
    written: VecDeque<Memory>,
    empty: VecDeque<Memory>,
    /// Of the piece that is being written.
    used: usize,
    before: Before,
    /// Where a record is packed.
    room: Room,
    /// How many records there were.
    count: u64,
}

impl Tape {
    /// A tape that has one piece, of [`PIECE`] bytes as all others.
    #[must_use]
    pub fn new(run: u64, piece: Memory) -> Self {
        let mut tape = Self {
            run,
            written: VecDeque::new(),
            empty: VecDeque::new(),
            used: 0,
            before: Before::default(),
            room: [0; size_of::<Room>()],
            count: 0,
        };
        tape.add(piece);
        tape.turn();
        tape
    }

    /// Another piece.
    pub fn add(&mut self, piece: Memory) {
        let header = Header {
            magic: MAGIC,
            version: VERSION,
            record_size: size_of::<Record>() as u32,
            boot_id: boot_id(),
            run: self.run,
            first: 0,
            used: 0,
            beat_ns: now_ns(),
        };
        piece.write(0, header.as_bytes());
        self.empty.push_back(piece);
    }

    /// How many pieces there are.
    #[must_use]
    pub fn pieces(&self) -> usize {
        self.written.len() + self.empty.len()
    }

    /// Whether there is as much room as is taken: what was preserved so far can be frozen and told, one record for
    /// each, without anything being written over.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.empty.len() >= self.written.len()
    }

    /// Goes on in an empty piece, else in the oldest.
    fn turn(&mut self) {
        let Some(piece) = self.empty.pop_front().or_else(|| self.written.pop_front()) else {
            return;
        };
        piece.word(USED).store(0, Ordering::Release);
        piece.word(FIRST).store(self.count, Ordering::Release);
        self.written.push_back(piece);
        self.used = 0;
        self.before = Before::default();
    }

    /// Appends one record.
    pub fn append(&mut self, record: &Record) {
        let mut bytes = self.before.pack(record, &mut self.room);
        if HEADER + self.used + bytes.len() > PIECE {
            self.turn();
            bytes = self.before.pack(record, &mut self.room);
        }
        let Some(piece) = self.written.back() else {
            return;
        };
        piece.write(HEADER + self.used, bytes);
        self.used += bytes.len();
        self.count += 1;
        piece.word(USED).store(self.used as u64, Ordering::Release);
        // In a flood of records the clock is asked now and then only.
        if self.count.is_multiple_of(BEAT_EVERY) {
            self.beat();
        }
    }

    /// Notes that the writer is running.
    pub fn beat(&self) {
        if let Some(piece) = self.written.back() {
            piece.word(BEAT).store(now_ns(), Ordering::Release);
        }
    }
}

/// Why what was found is no tape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Foreign {
    /// Shorter than its header, or nothing at all.
    #[error("it is too short")]
    Short,
    /// Something else.
    #[error("it begins otherwise")]
    Magic,
    /// Another lu's.
    #[error("another version wrote it")]
    Version,
    /// Its header cannot be true.
    #[error("its length is not what it says")]
    Length,
    /// Pieces of two tapes.
    #[error("its pieces do not belong together")]
    Mixed,
}

/// What a tape holds.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// Which run of lu wrote it.
    pub run: u64,
    /// The records, oldest first, each with its number in the run, counted from 0.
    pub records: Vec<(u64, Record)>,
    /// How many records make no sense, and are left out.
    pub senseless: u64,
    /// When the writer last ran, as a [`Kind::LastBeat`] record.
    pub last_beat: Record,
}

impl Found {
    /// What comes behind the first `have` records of the run. Where some are missing one of [`Kind::Lost`] says
    /// how many.
    pub fn behind(&self, have: u64) -> impl Iterator<Item = Record> {
        let mut next = have;
        self.records
            .iter()
            .filter(move |(number, _)| *number >= have)
            .flat_map(move |(number, record)| {
                let missing = number.saturating_sub(next);
                next = number + 1;
                let lost = (missing > 0).then(|| {
                    let mut lost = Record::made(Kind::Lost, 0, [0; 64]);
                    lost.call.bytes = missing;
                    lost
                });
                lost.into_iter().chain([*record])
            })
    }
}

/// Reads a tape: its pieces, in any order.
pub fn read(bytes: &[u8]) -> Result<Found, Foreign> {
    let mut pieces = bytes
        .chunks(PIECE)
        .map(piece)
        .collect::<Result<Vec<_>, _>>()?;
    pieces.sort_by_key(|(header, _)| header.first);
    let (last, _) = pieces.last().ok_or(Foreign::Short)?;
    let (run, boot) = (last.run, last.boot_id);
    let belongs = |header: &Header| (header.run, header.boot_id) == (run, boot);
    if !pieces.iter().all(|(header, _)| belongs(header)) {
        return Err(Foreign::Mixed);
    }
    let beat_ns = pieces.iter().map(|(header, _)| header.beat_ns).max();
    let mut records = Vec::new();
    for (header, mut bytes) in pieces {
        let mut before = Before::default();
        records.extend((header.first..).zip(std::iter::from_fn(|| before.unpack(&mut bytes))));
    }
    let all = records.len();
    records.retain(|(_, record)| record.kind().is_some());
    Ok(Found {
        run,
        senseless: (all - records.len()) as u64,
        records,
        last_beat: Record::made(Kind::LastBeat, beat_ns.unwrap_or(0), [0; 64]),
    })
}

/// A piece's header, and its packed records.
fn piece(bytes: &[u8]) -> Result<(Header, &[u8]), Foreign> {
    let (header, rest) = Header::read_from_prefix(bytes).map_err(|_| Foreign::Short)?;
    if header.magic != MAGIC {
        return Err(Foreign::Magic);
    }
    if header.version != VERSION || header.record_size as usize != size_of::<Record>() {
        return Err(Foreign::Version);
    }
    let used = usize::try_from(header.used).map_err(|_| Foreign::Length)?;
    Ok((header, rest.get(..used).ok_or(Foreign::Length)?))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read as _;

    use proptest::prelude::*;

    use super::*;

    fn memory() -> (File, Memory) {
        Memory::create("tape", PIECE as u64).expect("memory")
    }

    fn tape(pieces: usize) -> (Tape, Vec<File>) {
        let (files, mut pieces_of_it): (Vec<_>, VecDeque<_>) =
            (0..pieces).map(|_| memory()).unzip();
        let mut tape = Tape::new(7, pieces_of_it.pop_front().expect("a piece"));
        for piece in pieces_of_it {
            tape.add(piece);
        }
        (tape, files)
    }

    fn record(number: u64) -> Record {
        let mut record = Record::default();
        record.header.kind = Kind::Open as u8;
        record.header.t_ns = number;
        // Not to be foreseen, so that pieces are filled soon.
        let word = |n: u64| (number * 16 + n).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (record.call.token, record.call.bytes) = (word(1), word(2));
        (record.call.session, record.call.op_ns) = (word(3), word(4));
        (record.header.cgroup_id, record.header.dur_ns) = (word(5), word(6));
        record.call.object = word(7);
        record
    }

    fn read_all(files: &mut [File]) -> Vec<u8> {
        let read = |file: &mut File| {
            let mut bytes = Vec::new();
            // The offset is the descriptor's own.
            let mut file = file.try_clone().expect("a descriptor");
            std::io::Seek::rewind(&mut file).expect("rewound");
            file.read_to_end(&mut bytes).expect("read");
            bytes
        };
        files.iter_mut().flat_map(read).collect()
    }

    #[test]
    fn the_newest_records_come_back_in_order_and_the_others_are_counted() {
        let (mut writer, mut files) = tape(3);
        assert_eq!(writer.pieces(), 3);
        let mut written = 0;
        let mut overwritten = 0;
        while overwritten < 4 {
            for _ in 0..500 {
                writer.append(&record(written));
                written += 1;
            }
            let found = read(&read_all(&mut files)).expect("whole");
            let skipped = written - found.records.len() as u64;
            let expected = (skipped..written).map(|number| (number, record(number)));
            assert!(expected.eq(found.records.iter().copied()));
            assert_eq!(found.run, 7);
            assert!(found.last_beat.header.t_ns > 0);
            let lost: Vec<u64> = found.behind(0).filter_map(|r| r.lost()).collect();
            assert_eq!(lost, if skipped > 0 { vec![skipped] } else { vec![] });
            let newest = [record(written - 1)];
            assert!(found.behind(written - 1).eq(newest));
            overwritten = skipped / 1000;
        }
    }

    #[test]
    fn there_is_room_as_long_as_no_more_is_taken_than_left() {
        let mut tape = Tape::new(7, memory().1);
        assert!(!tape.has_room());
        tape.add(memory().1);
        assert!(tape.has_room());
        let mut written = 0;
        while tape.has_room() {
            tape.append(&record(written));
            written += 1;
        }
        assert!(written > 1000);
    }

    #[test]
    fn a_piece_that_lacks_is_counted_as_lost() {
        let (mut writer, mut files) = tape(4);
        let mut written = 0;
        while writer.written.len() < 4 {
            writer.append(&record(written));
            written += 1;
        }
        let mut bytes = read_all(&mut files);
        bytes.drain(PIECE..2 * PIECE);
        let found = read(&bytes).expect("the others");
        let lost: u64 = found.behind(0).filter_map(|record| record.lost()).sum();
        assert!(lost > 0);
        assert_eq!(found.records.len() as u64 + lost, written);
    }

    fn written(records: u64) -> Vec<u8> {
        let (file, memory) = memory();
        let mut tape = Tape::new(7, memory);
        for number in 0..records {
            tape.append(&record(number));
        }
        read_all(&mut [file])
    }

    #[test]
    fn what_is_cut_foreign_or_of_another_version_is_refused() {
        let whole = written(3);
        for length in 0..HEADER {
            assert_eq!(read(&whole[..length]), Err(Foreign::Short));
        }
        assert_eq!(read(&whole[..HEADER + 8]), Err(Foreign::Length));
        assert_eq!(read(&[]), Err(Foreign::Short));
        for at in 0..16 {
            let mut other = whole.clone();
            other[at] ^= 0xFF;
            assert!(read(&other).is_err(), "byte {at}");
        }
        let mut other = whole.clone();
        other[32] ^= 1;
        assert_eq!(read(&[whole, other].concat()), Err(Foreign::Mixed));
    }

    proptest! {
        #[test]
        fn any_bytes_behind_a_good_header_are_read_or_refused(
            noise in prop::collection::vec(any::<u8>(), 0..4000),
            header in prop::collection::vec(any::<u8>(), 24),
        ) {
            let mut bytes = written(1)[..HEADER].to_vec();
            bytes[40..].copy_from_slice(&header);
            bytes.extend(&noise);
            if let Ok(found) = read(&bytes) {
                prop_assert!(found.records.len() <= noise.len() / 8);
            }
        }

        #[test]
        fn bits_that_fell_over_never_make_more_records_than_were_written(
            at in HEADER..HEADER + 500,
            bit in 0..8_u8,
        ) {
            let mut bytes = written(20);
            bytes[at] ^= 1_u8 << bit;
            let found = read(&bytes).expect("the header is whole");
            prop_assert!(found.records.len() <= 20 * MOST / 8);
        }
    }
}
