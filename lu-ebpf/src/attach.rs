//! The ways of attaching, as handlers see them: arguments at the entry, the result at the exit.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::bpf_get_attach_cookie;
use aya_ebpf::programs::{FEntryContext, FExitContext, ProbeContext, RetProbeContext};
use lu_common::event::flags;

use crate::orchestrator::{Checked, Emulated, Kernel, Orchestrator, Typed, global};

/// The function has just been entered; for a program that only runs at the return, its arguments.
pub trait Entry: Way {
    /// The orchestrator that this way of attaching is for.
    type Orchestrator: Orchestrator;
    /// The `n`th argument, from 0, as wide as a register.
    fn arg(&self, n: usize) -> u64;
}

/// The function is about to return.
pub trait Exit: Way {
    /// The orchestrator that this way of attaching is for.
    type Orchestrator: Orchestrator;
    /// What it returns, as wide as a register; anything where it returns nothing.
    fn ret(&self) -> i64;
}

/// Either.
pub trait Way {
    /// Bits for [`lu_common::event::Header::flags`].
    fn flags(&self) -> u8;
}

/// [`flags::SESSIONS`], or nothing: the interface of the kernel's orchestrator; user space fills it in.
#[unsafe(no_mangle)]
static KERNEL_FLAGS: u8 = 0;

/// A uprobe at the entry. Its cookie tells the emulated orchestrator's interface.
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

/// A kprobe at the entry.
pub struct Kprobe(pub ProbeContext);

impl Entry for Kprobe {
    type Orchestrator = Kernel<Checked>;

    fn arg(&self, n: usize) -> u64 {
        self.0.arg(n).unwrap_or(0)
    }
}

/// A kretprobe at the exit.
pub struct Kretprobe(pub RetProbeContext);

impl Exit for Kretprobe {
    type Orchestrator = Kernel<Checked>;

    fn ret(&self) -> i64 {
        self.0.ret()
    }
}

/// fentry: a trampoline at the entry.
pub struct Fentry(pub FEntryContext);

impl Entry for Fentry {
    type Orchestrator = Kernel<Typed>;

    fn arg(&self, n: usize) -> u64 {
        self.0.arg(n)
    }
}

/// fexit: a trampoline around the function, which still has the arguments.
pub struct Fexit(pub FExitContext);

impl Entry for Fexit {
    type Orchestrator = Kernel<Typed>;

    fn arg(&self, n: usize) -> u64 {
        self.0.arg(n)
    }
}

impl Exit for Fexit {
    type Orchestrator = Kernel<Typed>;

    fn ret(&self) -> i64 {
        self.0.ret().unwrap_or(0)
    }
}

macro_rules! ways {
    ($($emulated:ident)*; $($kernel:ident)*) => {
        $(impl Way for $emulated {
            fn flags(&self) -> u8 {
                // SAFETY: the context is this program's own.
                flags::EMULATED | unsafe { bpf_get_attach_cookie(self.0.as_ptr()) } as u8
            }
        })*
        $(impl Way for $kernel {
            fn flags(&self) -> u8 {
                global!(KERNEL_FLAGS)
            }
        })*
    };
}

ways! {
    Uprobe Uretprobe;
    Kprobe Kretprobe Fentry Fexit
}
