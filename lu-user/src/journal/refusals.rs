//! reboot(KEXEC) that is refused: anybody can call it, as often as they like, and must not push anything else out of
//! what has room for so much only. So the first in a while is kept, and of the others how many there were.
//!
//! Without the privilege it is EPERM, and in a pid and user namespace of one's own, where everybody has it, EINVAL
//! (`reboot_pid_ns`).

use std::collections::BTreeMap;

use lu_common::event::{Kind, Record};

/// Those that are not kept one by one.
#[derive(Debug, Default)]
pub struct Refusals {
    /// The thread whose call has been let through and has not returned: no second one is meanwhile
    /// (`system_transition_mutex`). That it fails is an event of its own.
    through: Option<u32>,
    /// By the errno of one that was kept since the last [`take`](Self::take): the newest of the others, with how many
    /// more there were.
    others: BTreeMap<i32, Option<Record>>,
}

impl Refusals {
    /// Takes in a record; whether it is to be kept as it is.
    pub fn push(&mut self, record: &Record) -> bool {
        if record.kind() != Some(Kind::Kexec) || record.is_emulated() {
            return true;
        }
        let tid = record.header.tid;
        if !record.is_exit() {
            self.through = Some(tid);
            return true;
        }
        if self.through.take_if(|through| *through == tid).is_some() {
            return true;
        }
        let Some(errno) = record.errno() else {
            return true;
        };
        let Some(others) = self.others.get_mut(&errno) else {
            self.others.insert(errno, None);
            return true;
        };
        let more = others.map_or(0, |others| others.call.bytes + 1);
        let newest = others.insert(*record);
        newest.call.bytes = more;
        false
    }

    /// The records that stand for all that were not kept, one for each errno; the next ones are kept again.
    pub fn take(&mut self) -> impl Iterator<Item = Record> + use<> {
        std::mem::take(&mut self.others).into_values().flatten()
    }
}

#[cfg(test)]
mod tests {
    use lu_common::event::flags;

    use super::*;
    use crate::timeline::Timeline;

    fn called(tid: u32) -> Record {
        let mut record = Record::made(Kind::Kexec, 7, [0; 64]);
        record.header.tid = tid;
        record
    }

    fn refused(tid: u32, errno: i32) -> Record {
        let mut record = called(tid);
        record.header.flags = flags::EXIT;
        record.header.ret = -errno;
        record
    }

    #[test]
    fn a_flood_is_two_records_for_each_errno_that_count_all_of_it() {
        let mut refusals = Refusals::default();
        let mut timeline = Timeline::new();
        let mut kept = Vec::new();
        for tid in 0..1000 {
            for errno in [libc::EPERM, libc::EINVAL, libc::EINVAL] {
                let record = refused(tid, errno);
                if refusals.push(&record) {
                    kept.push(record);
                }
            }
        }
        kept.extend(refusals.take());
        assert_eq!(kept.len(), 4);
        assert_eq!(refusals.take().count(), 0);
        for record in &kept {
            timeline.push(record);
        }
        // They count into the update that follows.
        let mut preserve = Record::made(Kind::Preserve, 8, [0; 64]);
        preserve.header.flags = flags::EXIT;
        timeline.push(&preserve);
        let update = timeline.latest().expect("an update");
        assert_eq!(update.errors[&("reboot", libc::EPERM)], 1000);
        assert_eq!(update.errors[&("reboot", libc::EINVAL)], 2000);
    }

    #[test]
    fn what_was_let_through_and_failed_is_kept_whatever_others_do() {
        let mut refusals = Refusals::default();
        assert!(refusals.push(&refused(7, libc::EINVAL)));
        for _ in 0..2 {
            assert!(refusals.push(&called(8)));
            assert!(!refusals.push(&refused(7, libc::EINVAL)));
            assert!(refusals.push(&refused(8, libc::EINVAL)));
            // The same thread is refused the next time.
            assert!(!refusals.push(&refused(8, libc::EINVAL)));
        }
        assert_eq!(refusals.take().count(), 1);
    }
}
