//! What goes wrong on the way, and who had a hand in it.

use std::collections::BTreeMap;

use lu_common::event::Record;

use super::names::named;
use super::shown;

/// How many different failures, and refusals, an update remembers.
const REMEMBERED: usize = 1000;

/// A process, as it was when it called.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Caller {
    /// Its id in the initial pid namespace.
    pub pid: u32,
    /// The calling thread's name.
    pub comm: String,
}

impl Caller {
    /// Who made the call that a record is about.
    pub(super) fn of(record: &Record) -> Option<Self> {
        record.has_task().then(|| Self {
            pid: record.header.pid,
            comm: shown(record.comm()),
        })
    }
}

named! {
    /// Where a file can fail.
    pub enum FileStep {
        /// In its prepare callback (v3).
        Prepare = "prepare",
        /// In its freeze callback.
        Freeze = "freeze",
        /// When it was asked for in the new kernel.
        Restore = "restore",
    }
}

/// Which file failed where.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Failed {
    /// Where.
    pub step: FileStep,
    /// The session's name; `None` in v3.
    pub session: Option<String>,
    /// The file's token.
    pub token: u64,
}

/// How it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// With which errno, the first time.
    pub errno: i32,
    /// How often in all.
    pub count: u64,
    /// When the last time, in nanoseconds (see [`super::Stretch`]).
    pub last_ns: u64,
}

/// Who was refused the device (EBUSY), and who held it. `None` where that was not seen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refusal {
    /// Who had opened it and not closed it.
    pub holder: Option<Caller>,
    /// Who wanted it.
    pub refused: Option<Caller>,
}

/// How often somebody was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// How often in all.
    pub count: u64,
    /// When the last time, in nanoseconds.
    pub last_ns: u64,
}

/// What went wrong in one update.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Troubles {
    /// Files that failed.
    pub failures: BTreeMap<Failed, Failure>,
    /// How often the device was refused.
    pub refusals: BTreeMap<Refusal, Refused>,
    /// How often the freeze failed.
    pub failed_freezes: u64,
    /// With which errno, the last time.
    pub freeze_errno: Option<i32>,
    /// When that was, in nanoseconds.
    pub freeze_failed_ns: Option<u64>,
    /// v3: who closed the device while files were preserved and not yet handed over.
    pub closed_by: Option<Caller>,
    /// When, in nanoseconds.
    pub closed_ns: Option<u64>,
}

impl Troubles {
    pub(super) fn fail(&mut self, failed: Failed, errno: i32, t_ns: u64) {
        if let Some(failure) = self.failures.get_mut(&failed) {
            failure.count += 1;
            failure.last_ns = t_ns;
        } else if self.failures.len() < REMEMBERED {
            let failure = Failure {
                errno,
                count: 1,
                last_ns: t_ns,
            };
            self.failures.insert(failed, failure);
        }
    }

    pub(super) fn refuse(&mut self, refusal: Refusal, t_ns: u64) {
        if let Some(refused) = self.refusals.get_mut(&refusal) {
            refused.count += 1;
            refused.last_ns = t_ns;
        } else if self.refusals.len() < REMEMBERED {
            let refused = Refused {
                count: 1,
                last_ns: t_ns,
            };
            self.refusals.insert(refusal, refused);
        }
    }
}
