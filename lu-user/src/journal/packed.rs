//! Records in few bytes: one differs little from the one before it.
//!
//! A record is sixteen words. Packed it is a mask of four bytes, two bits for each word telling in how many bytes the
//! difference to the record before stands behind the mask (none, two, four or eight), then the differences, and zeros
//! up to a multiple of eight bytes. A difference is taken as a signed number, moved so that small ones of either sign
//! are small (zigzag). Before the first record all words are 0.
//!
//! It must be quick before it is small: while the kernel goes down the writer has to keep up with it.

use lu_common::event::Record;
use zerocopy::{transmute, transmute_ref};

/// Words of a record.
const WORDS: usize = size_of::<Record>() / size_of::<u64>();

/// Bytes of the mask.
const MASK: usize = 2 * WORDS / 8;

/// In how many bytes a difference can stand, by the mask's bits.
const SIZES: [usize; 4] = [0, 2, 4, 8];

/// The most that a packed record takes, in bytes.
pub const MOST: usize = (MASK + WORDS * size_of::<u64>()).next_multiple_of(size_of::<u64>());

/// Where a record is packed: what is behind a difference is written over by the next.
pub type Room = [u8; MOST + size_of::<u64>()];

/// The record before.
#[derive(Clone, Debug, Default)]
pub struct Before([u64; WORDS]);

impl Before {
    /// Packs a record behind the one before; the bytes are part of `room`.
    pub fn pack<'a>(&mut self, record: &Record, room: &'a mut Room) -> &'a [u8] {
        let words: &[u64; WORDS] = transmute_ref!(record);
        let mut mask = 0_u32;
        let mut at = MASK;
        for (number, (word, before)) in words.iter().zip(&mut self.0).enumerate() {
            let difference = word.wrapping_sub(*before).cast_signed();
            if difference == 0 {
                continue;
            }
            *before = *word;
            let moved = ((difference << 1) ^ (difference >> 63)).cast_unsigned();
            let class = match moved {
                0..=0xFFFF => 1,
                0x1_0000..=0xFFFF_FFFF => 2,
                _ => 3,
            };
            mask |= class << (2 * number);
            room[at..at + size_of::<u64>()].copy_from_slice(&moved.to_le_bytes());
            at += SIZES[class as usize];
        }
        room[..MASK].copy_from_slice(&mask.to_le_bytes());
        room[at..at + size_of::<u64>()].fill(0);
        &room[..at.next_multiple_of(size_of::<u64>())]
    }

    /// Unpacks the first record in `bytes` and leaves what is behind it. `None`: there is no whole one.
    pub fn unpack(&mut self, bytes: &mut &[u8]) -> Option<Record> {
        let whole = *bytes;
        let (mask, mut rest) = whole.split_first_chunk::<MASK>()?;
        let mask = u32::from_le_bytes(*mask);
        let mut words = self.0;
        for (number, word) in words.iter_mut().enumerate() {
            let size = SIZES[(mask >> (2 * number)) as usize & 3];
            let (difference, behind) = rest.split_at_checked(size)?;
            rest = behind;
            let mut moved = [0; size_of::<u64>()];
            moved[..size].copy_from_slice(difference);
            let moved = u64::from_le_bytes(moved);
            *word =
                word.wrapping_add_signed((moved >> 1).cast_signed() ^ -(moved & 1).cast_signed());
        }
        let length = (whole.len() - rest.len()).next_multiple_of(size_of::<u64>());
        *bytes = whole.get(length..)?;
        self.0 = words;
        Some(transmute!(words))
    }
}

#[cfg(test)]
mod tests {
    use lu_common::event::Kind;
    use proptest::prelude::*;
    use zerocopy::IntoBytes as _;

    use super::*;

    /// Not empty: what was there before must not matter.
    fn room() -> Room {
        [0xA5; MOST + size_of::<u64>()]
    }

    fn packed(records: &[Record]) -> Vec<u8> {
        let mut before = Before::default();
        let mut bytes = Vec::new();
        for record in records {
            bytes.extend_from_slice(before.pack(record, &mut room()));
        }
        bytes
    }

    fn unpacked(mut bytes: &[u8]) -> Vec<Record> {
        let mut before = Before::default();
        std::iter::from_fn(|| before.unpack(&mut bytes)).collect()
    }

    prop_compose! {
        /// Words of every size, many of them 0.
        fn record()(words in prop::array::uniform16((any::<u64>(), 0..=64_u32))) -> Record {
            let words = words.map(|(word, bits)| word.checked_shr(64 - bits).unwrap_or(0));
            transmute!(words)
        }
    }

    proptest! {
        #[test]
        fn what_is_packed_comes_back(records in prop::collection::vec(record(), 0..20)) {
            let bytes = packed(&records);
            prop_assert!(bytes.len().is_multiple_of(8));
            prop_assert_eq!(unpacked(&bytes), records);
        }

        #[test]
        fn any_bytes_are_records_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            // A record takes eight bytes at least.
            prop_assert!(unpacked(&bytes).len() <= bytes.len() / 8);
        }

        #[test]
        fn what_is_cut_gives_the_records_before_the_cut(
            records in prop::collection::vec(record(), 1..10),
            keep in any::<prop::sample::Index>(),
        ) {
            let bytes = packed(&records);
            let found = unpacked(&bytes[..keep.index(bytes.len())]);
            prop_assert!(found.len() < records.len());
            prop_assert_eq!(&found[..], &records[..found.len()]);
        }
    }

    #[test]
    fn the_longest_record_fits() {
        let mut before = Before::default();
        let first = Record::default();
        before.pack(&first, &mut room());
        // The differences farthest from 0.
        let words = [1_u64 << 63; WORDS];
        assert_eq!(before.pack(&transmute!(words), &mut room()).len(), MOST);
        assert_eq!(
            before.pack(&transmute!(words), &mut room()).len(),
            size_of::<u64>()
        );
    }

    #[test]
    fn a_file_among_many_takes_a_fifth_of_its_record() {
        let record = |number: u64| {
            let mut record = Record::default();
            record.header.kind = Kind::Preserve as u8;
            record.header.t_ns = 1_000_000_000 + number * 61_803;
            record.header.dur_ns = 20_000 + number % 777;
            record.header.seq = number as u32;
            record.header.comm = *b"a-virtual-mach\0\0";
            record.call.token = number;
            record.call.fd = number as i32;
            record.call.object = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            record
        };
        let records: Vec<Record> = (0..1000).map(record).collect();
        let bytes = packed(&records).len();
        assert!(bytes * 5 <= records.as_slice().as_bytes().len(), "{bytes}");
    }
}
