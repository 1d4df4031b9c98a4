//! The newest records, packed, in pieces of memory that whoever reads them later need not trust.
//!
//! A [`Tape`] writes into one piece after the other. A piece has a header, then records as
//! [`packed`](super::packed) has them, beginning anew: each can be read without the others. Where no empty piece is
//! left the one with the oldest records is written over.

use std::collections::{HashMap, VecDeque};
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
    /// The run of `lu run` that wrote it, see [`super::Journal::run`].
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

/// Why what was found is no piece of a tape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Foreign {
    /// Shorter than its header.
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
    /// Another tape's.
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
    /// How many records made no sense; in place of each is one of [`Kind::Lost`].
    pub senseless: u64,
    /// When the writer last ran, as a [`Kind::LastBeat`] record.
    pub last_beat: Record,
}

impl Found {
    /// What comes behind the first `have` records of the run, in stretches without a gap.
    pub fn behind(&self, have: u64) -> impl Iterator<Item = &[(u64, Record)]> {
        let from = self.records.partition_point(|(number, _)| *number < have);
        let behind = self.records.get(from..).unwrap_or_default();
        behind.chunk_by(|(number, _), (next, _)| number + 1 == *next)
    }
}

/// A record that says that so many are missing.
#[must_use]
pub fn lost(count: u64) -> Record {
    let mut lost = Record::made(Kind::Lost, 0, [0; 64]);
    lost.call.bytes = count;
    lost
}

/// Reads a tape from its pieces, in any order. What is no piece of it is told, and does not keep the others from
/// being read; `None` where there is none. A piece that nobody has written to yet, or whose header has not reached the
/// disk, begins with zeros, and is empty.
pub fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Option<Found>, Vec<Foreign>) {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for bytes in pieces {
        match piece(bytes) {
            Ok(Some(piece)) => good.push(piece),
            Ok(None) => {}
            Err(foreign) => bad.push(foreign),
        }
    }
    let tape = |header: &Header| (header.run, header.boot_id);
    let mut tapes: HashMap<_, u64> = HashMap::new();
    for (header, _) in &good {
        *tapes.entry(tape(header)).or_default() += 1;
    }
    // The one of which there is most, else the newest.
    let Some((most, _)) = tapes
        .into_iter()
        .max_by_key(|(tape, count)| (*count, *tape))
    else {
        return (None, bad);
    };
    let all = good.len();
    good.retain(|(header, _)| tape(header) == most);
    bad.extend(std::iter::repeat_n(Foreign::Mixed, all - good.len()));
    good.sort_by_key(|(header, _)| header.first);
    let beat_ns = good.iter().map(|(header, _)| header.beat_ns).max();
    let (mut records, mut senseless, mut next) = (Vec::new(), 0, 0);
    for (header, mut bytes) in good {
        let mut before = Before::default();
        let numbers = header.first..;
        for (number, record) in numbers.zip(std::iter::from_fn(|| before.unpack(&mut bytes))) {
            if number < next {
                continue;
            }
            next = number + 1;
            let makes_sense = record.kind().is_some();
            senseless += u64::from(!makes_sense);
            records.push((number, if makes_sense { record } else { lost(1) }));
        }
    }
    let found = Found {
        run: most.0,
        records,
        senseless,
        last_beat: Record::made(Kind::LastBeat, beat_ns.unwrap_or(0), [0; 64]),
    };
    (Some(found), bad)
}

/// A piece's header, and its packed records; `None` where it is empty.
fn piece(bytes: &[u8]) -> Result<Option<(Header, &[u8])>, Foreign> {
    if bytes.iter().take(HEADER).all(|byte| *byte == 0) {
        return Ok(None);
    }
    let (header, rest) = Header::read_from_prefix(bytes).map_err(|_| Foreign::Short)?;
    if header.magic != MAGIC {
        return Err(Foreign::Magic);
    }
    if header.version != VERSION || header.record_size as usize != size_of::<Record>() {
        return Err(Foreign::Version);
    }
    let used = usize::try_from(header.used).map_err(|_| Foreign::Length)?;
    let used = rest.get(..used).ok_or(Foreign::Length)?;
    // No run has so many that their numbers end.
    match header.first.checked_add(PIECE as u64) {
        Some(_) => Ok(Some((header, used))),
        None => Err(Foreign::Length),
    }
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

    fn read(bytes: &[u8]) -> (Option<Found>, Vec<Foreign>) {
        super::read(bytes.chunks(PIECE))
    }

    /// The only tape that there is, without anything else.
    fn whole(bytes: &[u8]) -> Found {
        let (found, bad) = read(bytes);
        assert_eq!(bad, []);
        found.expect("a tape")
    }

    /// How many records are missing between the first of the run and the last that is there.
    fn missing(found: &Found) -> u64 {
        let last = found.records.last().map_or(0, |(number, _)| number + 1);
        last - found.records.len() as u64
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
            let found = whole(&read_all(&mut files));
            let skipped = written - found.records.len() as u64;
            let expected = (skipped..written).map(|number| (number, record(number)));
            assert!(expected.eq(found.records.iter().copied()));
            assert_eq!(found.run, 7);
            assert!(found.last_beat.header.t_ns > 0);
            assert_eq!(missing(&found), skipped);
            let newest = (written - 1, record(written - 1));
            assert!(found.behind(written - 1).eq([[newest]]));
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
    fn what_is_wrong_with_a_piece_costs_its_own_records_alone() {
        let (mut writer, mut files) = tape(4);
        let mut written = 0;
        while writer.written.len() < 4 {
            writer.append(&record(written));
            written += 1;
        }
        let bytes = read_all(&mut files);
        let first = read(&bytes[PIECE..]).0.expect("the others").records[0].0;
        let (short, zeros) = ([7], [0; HEADER]);
        let mut mixed = bytes[PIECE..2 * PIECE].to_vec();
        mixed[32] ^= 1;
        let cases: [(&[u8], &[Foreign]); 5] = [
            (&bytes[..0], &[]),
            (&zeros, &[]),
            (&short, &[Foreign::Short]),
            (&[7; HEADER], &[Foreign::Magic]),
            (&mixed, &[Foreign::Mixed]),
        ];
        for (second, wrong) in cases {
            let mut pieces: Vec<&[u8]> = bytes.chunks(PIECE).collect();
            pieces[1] = second;
            let (found, bad) = super::read(pieces);
            assert_eq!(bad, wrong);
            let found = found.expect("the others");
            let stretches: Vec<u64> = found.behind(0).map(|records| records[0].0).collect();
            assert_eq!((stretches.len(), stretches[0]), (2, 0));
            assert!(stretches[1] > first);
            assert!(missing(&found) > 0);
            assert_eq!(found.records.len() as u64 + missing(&found), written);
        }
    }

    #[test]
    fn a_record_that_makes_no_sense_is_one_lost_and_those_behind_keep_their_numbers() {
        let (file, memory) = memory();
        let mut writer = Tape::new(7, memory);
        let mut other = record(1);
        other.header.kind = 0x80;
        for record in [record(0), other, record(2)] {
            writer.append(&record);
        }
        let found = whole(&read_all(&mut [file]));
        assert_eq!(found.senseless, 1);
        assert_eq!(
            found.records,
            [(0, record(0)), (1, lost(1)), (2, record(2))]
        );
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
        let good = written(3);
        for length in 1..HEADER {
            assert_eq!(read(&good[..length]), (None, vec![Foreign::Short]));
        }
        assert_eq!(read(&good[..HEADER + 8]), (None, vec![Foreign::Length]));
        assert_eq!(read(&[]), (None, vec![]));
        for at in 0..16 {
            let mut other = good.clone();
            other[at] ^= 0xFF;
            let (found, bad) = read(&other);
            assert_eq!((found, bad.len()), (None, 1), "byte {at}");
        }
        let mut other = good.clone();
        other[FIRST..USED].fill(0xFF);
        assert_eq!(read(&other), (None, vec![Foreign::Length]));
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
            if let (Some(found), _) = read(&bytes) {
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
            let found = whole(&bytes);
            prop_assert!(found.records.len() <= 20 * MOST / 8);
        }
    }
}
