//! Records in few bytes: one differs little from the one before it.
//!
//! A record is sixteen words. Packed it is a mask of two bytes, bit *n* telling that word *n* differs from the
//! record before, then for each such word the difference, and zeros up to a multiple of eight bytes. A difference
//! is taken as a signed number, moved so that small ones of either sign are small (zigzag), and written in groups
//! of seven bits, the lowest first (LEB128). Before the first record all words are 0.

use lu_common::event::Record;
use zerocopy::transmute;

/// Words of a record.
const WORDS: usize = size_of::<Record>() / size_of::<u64>();

/// Bytes of the mask.
const MASK: usize = WORDS / 8;

/// Bits in each byte of a difference.
const GROUP: u32 = 7;

/// The most bytes of a difference.
const LONGEST: usize = u64::BITS.div_ceil(GROUP) as usize;

/// The most that a packed record takes, in bytes.
pub const MOST: usize = (MASK + WORDS * LONGEST).next_multiple_of(size_of::<u64>());

/// The record before.
#[derive(Clone, Debug, Default)]
pub struct Before([u64; WORDS]);

impl Before {
    /// Packs a record behind the one before; the bytes are part of `room`.
    pub fn pack<'a>(&mut self, record: &Record, room: &'a mut [u8; MOST]) -> &'a [u8] {
        let words: [u64; WORDS] = transmute!(*record);
        *room = [0; MOST];
        let mut mask = 0_u16;
        let mut at = MASK;
        for (number, (word, before)) in words.iter().zip(&self.0).enumerate() {
            if word == before {
                continue;
            }
            mask |= 1 << number;
            let difference = word.wrapping_sub(*before).cast_signed();
            let mut rest = ((difference << 1) ^ (difference >> 63)).cast_unsigned();
            loop {
                let last = rest < 1 << GROUP;
                room[at] = (rest as u8 & 0x7F) | if last { 0 } else { 0x80 };
                at += 1;
                rest >>= GROUP;
                if last {
                    break;
                }
            }
        }
        room[..MASK].copy_from_slice(&mask.to_le_bytes());
        self.0 = words;
        &room[..at.next_multiple_of(size_of::<u64>())]
    }

    /// Unpacks the first record in `bytes` and leaves what is behind it. `None`: these bytes are none that
    /// [`pack`](Self::pack) makes.
    pub fn unpack(&mut self, bytes: &mut &[u8]) -> Option<Record> {
        let whole = *bytes;
        let (mask, mut rest) = whole.split_first_chunk::<MASK>()?;
        let mask = u16::from_le_bytes(*mask);
        let mut words = self.0;
        for (number, word) in words.iter_mut().enumerate() {
            if mask & (1 << number) == 0 {
                continue;
            }
            let mut moved = 0_u64;
            for group in 0.. {
                let (byte, behind) = rest.split_first()?;
                rest = behind;
                let bits = u64::from(byte & 0x7F);
                let shifted = bits.checked_shl(group * GROUP)?;
                if shifted >> (group * GROUP) != bits {
                    return None;
                }
                moved |= shifted;
                if byte & 0x80 == 0 {
                    break;
                }
            }
            let difference = (moved >> 1).cast_signed() ^ -(moved & 1).cast_signed();
            *word = word.wrapping_add_signed(difference);
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

    fn packed(records: &[Record]) -> Vec<u8> {
        let mut before = Before::default();
        let mut bytes = Vec::new();
        for record in records {
            bytes.extend_from_slice(before.pack(record, &mut [0; MOST]));
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
        before.pack(&first, &mut [0; MOST]);
        // The differences farthest from 0.
        let words = [1_u64 << 63; WORDS];
        assert_eq!(before.pack(&transmute!(words), &mut [0; MOST]).len(), MOST);
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
