//! The ways of attaching, as handlers see them: arguments at the entry, the result at the exit, and
//! whose memory the arguments point to.

use aya_ebpf::helpers::bpf_probe_read_user;
use aya_ebpf::programs::{ProbeContext, RetProbeContext};
use lu_common::event::{File, Task};

use crate::task;

/// The function has just been entered.
pub trait Entry {
    /// The orchestrator that this way of attaching is for.
    type Orchestrator: Orchestrator;
    /// The `n`th argument, from 0, as wide as a register.
    fn arg(&self, n: usize) -> u64;
}

/// The function is about to return.
pub trait Exit {
    /// The orchestrator that this way of attaching is for.
    type Orchestrator: Orchestrator;
    /// What it returns, as wide as a register.
    fn ret(&self) -> i64;
}

/// What differs between the kernel's orchestrator and the emulated one.
pub trait Orchestrator {
    /// Bits for [`lu_common::event::Header::flags`].
    const FLAGS: u8;
    /// The task that called, given the pointer that the outermost function got (`struct file *`, or
    /// the registers of the system call).
    fn caller(pointer: u64) -> Option<Task>;
    /// The task of a call that has no remembered caller.
    fn unannounced() -> Option<Task>;
    /// What is known of the file behind a `struct file *`.
    fn file(pointer: u64) -> Option<File>;
    /// The pointer that stands at an address.
    fn pointer(at: u64) -> Option<u64>;
}

/// The emulated orchestrator: everything is in its own memory, laid out as `lu_common` says.
pub struct Emulated;

impl Orchestrator for Emulated {
    const FLAGS: u8 = lu_common::event::flags::EMULATED;

    fn caller(pointer: u64) -> Option<Task> {
        read(pointer)
    }

    fn unannounced() -> Option<Task> {
        None
    }

    fn file(pointer: u64) -> Option<File> {
        read(pointer)
    }

    fn pointer(at: u64) -> Option<u64> {
        read(at)
    }
}

fn read<T>(at: u64) -> Option<T> {
    // SAFETY: the helper checks the address and copies; it reports what it cannot read.
    let value = unsafe { bpf_probe_read_user(at as *const T) };
    if value.is_err() {
        task::count(|counters| &raw mut counters.bad_read);
    }
    value.ok()
}

/// A uprobe at the entry.
pub struct Uprobe(pub ProbeContext);

impl Entry for Uprobe {
    type Orchestrator = Emulated;

    fn arg(&self, n: usize) -> u64 {
        self.0.arg(n).unwrap_or(0)
    }
}

/// A uretprobe at the exit.
pub struct Uretprobe(pub RetProbeContext);

impl Exit for Uretprobe {
    type Orchestrator = Emulated;

    fn ret(&self) -> i64 {
        self.0.ret()
    }
}
