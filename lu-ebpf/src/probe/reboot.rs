//! reboot(KEXEC): from the system call to the new kernel's first sign.

use lu_common::event::{Call, Kind};

use super::{Handler, send_call, send_void_call};
use crate::attach::{Entry, Exit, Orchestrator as _, REBOOT_KEXEC};
use crate::task;

fn known_call<'a>() -> Option<&'a Call> {
    task::context().map(|context| &context.call)
}

/// `long __x64_sys_reboot(const struct pt_regs *)`: who reboots, and how it failed. Its beginning is told by
/// [`Reboot`], because anybody may call it, and only then has it been let through.
pub struct SysReboot;

impl Handler for SysReboot {
    fn entry<E: Entry>(entry: &E) {
        let registers = entry.arg(0);
        if E::Orchestrator::reboot_command(registers) != Some(REBOOT_KEXEC) {
            return;
        }
        task::open::<E::Orchestrator>(registers);
        task::enter::<E::Orchestrator>(Kind::Kexec, 0, |_| {});
    }

    fn exit<X: Exit>(exit: &X) {
        // Another command than KEXEC: nothing was remembered, and nothing is missing.
        if task::context().is_some() {
            send_call(Kind::Kexec, exit);
        }
    }
}

/// `int liveupdate_reboot(void)`, v3 patch 10 and Linux 7.3. It sends at the entry too: what follows may never return.
pub struct Reboot;

impl Handler for Reboot {
    fn entry<E: Entry>(entry: &E) {
        if let Some(context) = task::context()
            && let Some(t_ns) = context.entered(Kind::Kexec)
        {
            task::send_entry_at::<E::Orchestrator>(Kind::Kexec, entry.flags(), t_ns, None);
        }
        task::enter::<E::Orchestrator>(Kind::Reboot, 0, |_| {});
        task::send_entry::<E::Orchestrator>(Kind::Reboot, entry.flags(), known_call());
    }

    fn exit<X: Exit>(exit: &X) {
        send_call(Kind::Reboot, exit);
    }
}

/// `void machine_kexec(struct kimage *)`: it never returns.
pub struct Jump;

impl Handler for Jump {
    fn entry<E: Entry>(entry: &E) {
        task::send_entry::<E::Orchestrator>(Kind::Jump, entry.flags(), known_call());
    }

    fn exit<X: Exit>(_exit: &X) {}
}

/// `static int __init luo_startup(void)`, v3 patch 10: nobody called it.
pub struct Boot;

impl Handler for Boot {
    fn entry<E: Entry>(_entry: &E) {
        task::forget();
        task::enter::<E::Orchestrator>(Kind::Boot, 0, |_| {});
    }

    fn exit<X: Exit>(exit: &X) {
        send_call(Kind::Boot, exit);
    }
}

/// A part of the way from the freeze to the jump, as `void function(…)`: its beginning and its end. It
/// sends at the entry too, because the CPU on which the collector runs may stop within.
macro_rules! parts {
    ($($(#[$doc:meta])* $name:ident: $kind:ident;)*) => {$(
        $(#[$doc])*
        pub struct $name;

        impl Handler for $name {
            fn entry<E: Entry>(entry: &E) {
                // Ordinary reboots come this way too.
                if task::context().is_some() {
                    task::enter::<E::Orchestrator>(Kind::$kind, 0, |_| {});
                    task::send_entry::<E::Orchestrator>(Kind::$kind, entry.flags(), None);
                }
            }

            fn exit<X: Exit>(exit: &X) {
                if task::context().is_some() {
                    send_void_call(Kind::$kind, exit);
                }
            }
        }
    )*};
}

parts! {
    /// `void kernel_restart_prepare(char *cmd)`, Linux 7.3.
    RestartPrepare: RestartPrepare;
    /// `void device_shutdown(void)`, Linux 7.3.
    DeviceShutdown: DeviceShutdown;
    /// `void migrate_to_reboot_cpu(void)`, Linux 7.3.
    MigrateCpu: MigrateCpu;
    /// `void syscore_shutdown(void)`, Linux 7.3.
    SyscoreShutdown: SyscoreShutdown;
    /// `void machine_shutdown(void)`, Linux 7.3.
    MachineShutdown: MachineShutdown;
}
