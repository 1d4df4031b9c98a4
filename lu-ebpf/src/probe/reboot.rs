//! reboot(KEXEC): from the system call to the new kernel's first sign.

use lu_common::event::Kind;

use super::{Handler, finish, send};
use crate::attach::{Entry, Exit};
use crate::call::{self, Stamp};
use crate::orchestrator::{Orchestrator as _, REBOOT_KEXEC};

/// The level of `liveupdate_reboot` and of the steps after it, see [`crate::call`].
const LEVEL: usize = 1;

/// The level of what is called by one of those.
const INNER: usize = 3;

/// Sends the record of a function that was entered at `t_ns`; whether it bears what is known of the call.
fn send_entry<E: Entry>(entry: &E, kind: Kind, t_ns: u64, with_call: bool) {
    let context = call::context();
    let context = context.as_deref();
    let call = context.map(|context| &context.call).filter(|_| with_call);
    let stamp = Stamp::entry(entry, kind, t_ns);
    call::send::<E::Orchestrator>(context, &stamp, call);
}

/// `long __x64_sys_reboot(const struct pt_regs *)`, on arm64 `__arm64_sys_reboot`: who reboots, and how it failed. Its beginning is told by
/// [`Reboot`], because anybody may call it, and only then has it been let through.
pub struct SysReboot;

impl Handler for SysReboot {
    fn entry<E: Entry>(entry: &E) {
        let registers = entry.arg(0);
        if E::Orchestrator::reboot_command(registers) == Some(REBOOT_KEXEC) {
            call::begin::<E::Orchestrator>(Kind::Kexec, Some(registers), 0);
        }
    }

    fn exit<X: Exit>(exit: &X) {
        // Another command than KEXEC: nothing was remembered, and nothing is missing.
        if call::context().is_some() {
            finish(Kind::Kexec, exit);
        }
    }
}

/// `int liveupdate_reboot(void)`, v3 patch 10 and Linux 7.3. It sends at the entry too: what follows may never return.
/// Where reboot(2) has no hook the steps that follow are told as parts of this one.
pub struct Reboot;

impl Handler for Reboot {
    fn entry<E: Entry>(entry: &E) {
        call::alarm();
        let kexec = call::context().and_then(|context| context.entered(0, Kind::Kexec));
        if let Some(t_ns) = kexec {
            send_entry(entry, Kind::Kexec, t_ns, false);
        } else {
            call::begin::<E::Orchestrator>(Kind::Reboot, None, 0);
        }
        call::enter::<E::Orchestrator>(LEVEL, Kind::Reboot, 0);
        send_entry(entry, Kind::Reboot, call::now(), true);
    }

    fn exit<X: Exit>(exit: &X) {
        send(LEVEL, Kind::Reboot, exit, exit.ret());
        // Then nothing follows.
        if exit.ret() as i32 != 0
            && let Some(context) = call::context()
            && context.entered(0, Kind::Reboot).is_some()
        {
            call::leave(0, Kind::Reboot);
            context.end(0);
        }
    }
}

/// `void machine_kexec(struct kimage *)`: it never returns.
pub struct Jump;

impl Handler for Jump {
    fn entry<E: Entry>(entry: &E) {
        send_entry(entry, Kind::Jump, call::now(), true);
    }

    fn exit<X: Exit>(_exit: &X) {}
}

/// `static int __init luo_startup(void)`, v3 patch 10: nobody called it.
pub struct Boot;

impl Handler for Boot {
    fn entry<E: Entry>(_entry: &E) {
        call::begin::<E::Orchestrator>(Kind::Boot, None, 0);
    }

    fn exit<X: Exit>(exit: &X) {
        finish(Kind::Boot, exit);
    }
}

/// A part of the way from the freeze to the jump, as `void function(…)`: its beginning and its end. It
/// sends at the entry too, because the CPU on which the collector runs may stop within.
macro_rules! parts {
    ($($(#[$doc:meta])* $name:ident: $kind:ident, $level:expr;)*) => {$(
        $(#[$doc])*
        pub struct $name;

        impl Handler for $name {
            fn entry<E: Entry>(entry: &E) {
                // Ordinary reboots come this way too.
                if call::context().is_some() {
                    let kind = Kind::$kind;
                    call::enter::<E::Orchestrator>($level, kind, 0);
                    send_entry(entry, kind, call::now(), false);
                }
            }

            fn exit<X: Exit>(exit: &X) {
                if call::context().is_some() {
                    send($level, Kind::$kind, exit, 0);
                }
            }
        }
    )*};
}

parts! {
    /// `void kernel_restart_prepare(char *cmd)`, Linux 7.3.
    RestartPrepare: RestartPrepare, LEVEL;
    /// `void device_shutdown(void)`, Linux 7.3.
    DeviceShutdown: DeviceShutdown, INNER;
    /// `void migrate_to_reboot_cpu(void)`, Linux 7.3.
    MigrateCpu: MigrateCpu, LEVEL;
    /// `void syscore_shutdown(void)`, Linux 7.3.
    SyscoreShutdown: SyscoreShutdown, LEVEL;
    /// `void machine_shutdown(void)`, Linux 7.3.
    MachineShutdown: MachineShutdown, LEVEL;
}
