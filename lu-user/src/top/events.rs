//! The newest events, as they came.

use std::collections::VecDeque;

use lu_common::event::{Kind, Record};

use crate::export::line;
use crate::timeline::Names;

/// How many are kept.
const KEPT: usize = 1 << 14;

/// The newest events, each with its number.
#[derive(Default)]
pub struct Stream {
    /// Each with its time on the timeline's axis.
    kept: VecDeque<(u64, Record)>,
    /// The number of the first that is kept.
    first: u64,
    /// When the very first one was, on that axis.
    origin_ns: u64,
}

impl Stream {
    /// Takes in one, which was then on the timeline's axis; what only programs want to read is left out.
    pub(super) fn push(&mut self, at_ns: u64, record: &Record) {
        let is_shown = !matches!(
            record.kind(),
            None | Some(Kind::Name | Kind::Rule | Kind::Anchor | Kind::LastBeat)
        );
        if !is_shown {
            return;
        }
        if self.kept.is_empty() {
            self.origin_ns = at_ns;
        }
        if self.kept.len() == KEPT {
            self.kept.pop_front();
            self.first += 1;
        }
        self.kept.push_back((at_ns, *record));
    }

    /// The number of the oldest that is kept: so many are gone.
    #[must_use]
    pub const fn first(&self) -> u64 {
        self.first
    }

    /// The number that the next one gets.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.first + self.kept.len() as u64
    }

    /// The one with this number, if it is kept.
    #[must_use]
    pub fn get(&self, number: u64) -> Option<&Record> {
        let at = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.kept.get(at).map(|(_, record)| record)
    }

    /// The line of the one with this number, as `lu trace` prints it: its time is since the first of all, over
    /// however many kernels.
    #[must_use]
    pub fn line(&self, number: u64, names: &Names) -> Option<String> {
        let at = usize::try_from(number.checked_sub(self.first)?).ok()?;
        let (at_ns, record) = self.kept.get(at)?;
        let mut shifted = *record;
        shifted.header.t_ns = *at_ns;
        line(&shifted, names, self.origin_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_give_way_and_numbers_stay() {
        let mut stream = Stream::default();
        for t_ns in 0..KEPT as u64 + 10 {
            stream.push(t_ns, &Record::made(Kind::Lost, t_ns, [0; 64]));
        }
        assert_eq!((stream.first(), stream.end()), (10, KEPT as u64 + 10));
        assert!(stream.get(9).is_none() && stream.get(stream.end()).is_none());
        assert_eq!(stream.get(10).map(|record| record.header.t_ns), Some(10));
        stream.push(1, &Record::made(Kind::Anchor, 1, [0; 64]));
        assert_eq!(stream.end(), KEPT as u64 + 10, "nobody reads that");
    }
}
