//! The sessions interface, as in Linux 7.3.4: named sessions that hold files.
//!
//! - [`core`]: the state machine, pure.
//! - `luo`, `files`: its steps and its file callbacks, as functions with the kernel's signatures. Their
//!   names are the kernel's with `sessions.` in front, since v3's have the plain ones.

pub mod core;
mod files;
pub(super) mod luo;

use lu_common::event::{SessionFile, Task};

use self::core::{Direction, Name};

/// What an open session's file knows: the emulated `struct file` with its `private_data`.
///
/// It begins as [`SessionFile`] does, which is what the hooks read.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SessionHandle {
    file: SessionFile,
    direction: Direction,
}

impl SessionHandle {
    const fn new(task: Task, name: Name, direction: Direction) -> Self {
        Self {
            file: SessionFile {
                task,
                name: name.bytes(),
            },
            direction,
        }
    }

    /// The same, with somebody else calling.
    const fn called_by(&self, task: Task) -> Self {
        Self {
            file: SessionFile {
                task,
                name: self.file.name,
            },
            direction: self.direction,
        }
    }

    /// Who got the session, or who calls.
    pub(super) const fn task(&self) -> Task {
        self.file.task
    }

    fn name(&self) -> Name {
        Name::up_to_nul(self.file.name)
    }
}
