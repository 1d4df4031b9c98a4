//! reboot(KEXEC): from the system call to the new kernel's first sign.

use lu_common::event::{Call, Kind};

use super::{Handler, send_call};
use crate::attach::{Entry, Exit};
use crate::task;

fn known_call<'a>() -> Option<&'a Call> {
    task::context().map(|context| &context.call)
}

/// `long __x64_sys_reboot(const struct pt_regs *)`: it only tells who reboots.
pub struct SysReboot;

impl Handler for SysReboot {
    fn entry<E: Entry>(entry: &E) {
        task::open_context::<E::Orchestrator>(entry.arg(0));
    }

    fn exit<X: Exit>(_exit: &X) {
        task::close_context();
    }
}

/// `int liveupdate_reboot(void)`, v3 patch 10. It sends at the entry too: what follows may never return.
pub struct Reboot;

impl Handler for Reboot {
    fn entry<E: Entry>(_entry: &E) {
        task::enter(Kind::Reboot, 0);
        task::send_entry::<E::Orchestrator>(Kind::Reboot, known_call());
    }

    fn exit<X: Exit>(exit: &X) {
        send_call(Kind::Reboot, exit);
    }
}

/// `void machine_kexec(struct kimage *)`: it never returns.
pub struct Jump;

impl Handler for Jump {
    fn entry<E: Entry>(_entry: &E) {
        task::send_entry::<E::Orchestrator>(Kind::Jump, known_call());
    }

    fn exit<X: Exit>(_exit: &X) {}
}

/// `static int __init luo_startup(void)`, v3 patch 10: nobody called it.
pub struct Boot;

impl Handler for Boot {
    fn entry<E: Entry>(_entry: &E) {
        task::close_context();
        task::enter(Kind::Boot, 0);
    }

    fn exit<X: Exit>(exit: &X) {
        send_call(Kind::Boot, exit);
    }
}
