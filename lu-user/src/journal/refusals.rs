//! reboot(KEXEC) without the privilege: anybody can call it, as often as they like, and must not push anything
//! else out of what has room for so much only. So the first in a while is kept, and of the others how many
//! there were.

use lu_common::event::{Kind, Record};

/// Those that are not kept one by one.
#[derive(Debug, Default)]
pub struct Refusals {
    /// Whether one was kept since the last [`take`](Self::take).
    kept: bool,
    /// The newest of the others, with how many more there were.
    others: Option<Record>,
}

impl Refusals {
    /// Whether a record is one of a refused reboot(KEXEC).
    #[must_use]
    pub fn is_one(record: &Record) -> bool {
        record.kind() == Some(Kind::Kexec) && record.errno() == Some(libc::EPERM)
    }

    /// Takes in one; whether it is to be kept as it is.
    pub fn push(&mut self, record: &Record) -> bool {
        if !std::mem::replace(&mut self.kept, true) {
            return true;
        }
        let more = self.others.map_or(0, |others| others.call.bytes + 1);
        let mut newest = *record;
        newest.call.bytes = more;
        self.others = Some(newest);
        false
    }

    /// The record that stands for all that were not kept; the next one is kept again.
    pub fn take(&mut self) -> Option<Record> {
        self.kept = false;
        self.others.take()
    }
}

#[cfg(test)]
mod tests {
    use lu_common::event::flags;

    use super::*;
    use crate::timeline::Timeline;

    fn refused() -> Record {
        let mut record = Record::made(Kind::Kexec, 7, [0; 64]);
        record.header.flags = flags::EXIT;
        record.header.ret = -libc::EPERM;
        record
    }

    #[test]
    fn a_flood_is_two_records_that_count_all_of_it() {
        let mut refusals = Refusals::default();
        let mut timeline = Timeline::new();
        let mut kept = Vec::new();
        for _ in 0..1000 {
            if refusals.push(&refused()) {
                kept.push(refused());
            }
        }
        kept.extend(refusals.take());
        assert_eq!(kept.len(), 2);
        assert!(refusals.take().is_none());
        for record in &kept {
            assert!(Refusals::is_one(record));
            timeline.push(record);
        }
        // They count into the update that follows.
        let mut preserve = Record::made(Kind::Preserve, 8, [0; 64]);
        preserve.header.flags = flags::EXIT;
        timeline.push(&preserve);
        let update = timeline.latest().expect("an update");
        assert_eq!(update.errors[&("reboot", libc::EPERM)], 1000);
    }
}
