//! Who preserved a file: of the many files of an update few have an owner of their own.

use std::collections::HashMap;
use std::num::NonZeroU32;

use lu_common::event::Record;

use super::shown;

/// How many different owners an update remembers. Those of the files beyond are unknown.
const REMEMBERED: usize = 1 << 16;

/// A process, as it was when it preserved a file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    /// Its id in the initial pid namespace.
    pub pid: u32,
    /// Its real user in the initial user namespace.
    pub uid: u32,
    /// Its cgroup's id in the unified hierarchy; `None` where that was not to be found out.
    pub cgroup_id: Option<u64>,
    /// The calling thread's name.
    pub comm: Box<str>,
}

/// Stands for an [`Owner`] within one update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OwnerId(NonZeroU32);

/// The owners of an update's files.
#[derive(Clone, Debug, Default)]
pub struct Owners {
    all: Vec<Owner>,
    ids: HashMap<Owner, OwnerId>,
}

impl Owners {
    /// All of them.
    #[must_use]
    pub fn all(&self) -> &[Owner] {
        &self.all
    }

    /// The one that an id of this update stands for.
    #[must_use]
    pub fn get(&self, id: OwnerId) -> Option<&Owner> {
        self.all.get(id.0.get() as usize - 1)
    }

    /// Who made the call that a record is about.
    pub(super) fn of(&mut self, record: &Record) -> Option<OwnerId> {
        if !record.has_task() {
            return None;
        }
        let header = &record.header;
        let owner = Owner {
            pid: header.pid,
            uid: header.uid,
            cgroup_id: Some(header.cgroup_id).filter(|id| *id != 0),
            comm: shown(record.comm()).into(),
        };
        if let Some(id) = self.ids.get(&owner) {
            return Some(*id);
        }
        if self.all.len() >= REMEMBERED {
            return None;
        }
        self.all.push(owner.clone());
        let id = OwnerId(NonZeroU32::new(self.all.len() as u32)?);
        self.ids.insert(owner, id);
        Some(id)
    }
}
