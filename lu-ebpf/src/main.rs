//! lu's BPF programs: hooks on the functions of the Live Update Orchestrator.
//!
//! Each handler is written once, over [`attach::Entry`] and [`attach::Exit`]; the `hooks!` table below
//! gives it a program for each way of attaching. A handler reads the arguments, remembers them until
//! the function returns, and then sends one record for the whole call.
#![no_std]
#![no_main]
// The target has an atomic add, but no compare-and-swap, so the stable atomic types lack `fetch_add`
// on it. Building the standard library from source needs unstable features anyway.
#![feature(core_intrinsics)]
#![allow(
    internal_features,
    reason = "the intrinsic is the only way to an atomic add on this target"
)]

mod attach;
mod call;
mod doctor;
mod enforce;
mod orchestrator;
mod probe;

/// What the kernel demands of programs that use its tracing helpers. The source is MIT or Apache-2.0,
/// as the rest of the project; the compiled programs may be used under the GPL too.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// Gives handlers their programs, one for each way of attaching: uprobe and uretprobe for the emulated
/// orchestrator, fentry and fexit, or kprobe and kretprobe, for the kernel's.
///
/// A program's name is its way and the handler's name; `lu_user::attach::plan` has the same names.
macro_rules! hooks {
    ($($name:ident: $handler:path;)*) => { pastey::paste! {
        /// Programs on the emulated orchestrator.
        mod emulated {
            use aya_ebpf::{macros::{uprobe, uretprobe}, programs::{ProbeContext, RetProbeContext}};
            use crate::{attach::{Uprobe, Uretprobe}, probe::Handler};
            $(
                #[uprobe]
                fn [<uprobe_ $name>](ctx: ProbeContext) -> u32 {
                    <$handler as Handler>::entry(&Uprobe(ctx));
                    0
                }
                #[uretprobe]
                fn [<uretprobe_ $name>](ctx: RetProbeContext) -> u32 {
                    <$handler as Handler>::exit(&Uretprobe(ctx));
                    0
                }
            )*
        }

        /// Programs on the kernel's orchestrator.
        mod kernel {
            use aya_ebpf::macros::{fentry, fexit, kprobe, kretprobe};
            use aya_ebpf::programs::{FEntryContext, FExitContext, ProbeContext, RetProbeContext};
            use crate::{attach::{Fentry, Fexit, Kprobe, Kretprobe}, probe::Handler};
            $(
                #[fentry]
                fn [<fentry_ $name>](ctx: FEntryContext) -> i32 {
                    <$handler as Handler>::entry(&Fentry(ctx));
                    0
                }
                #[fexit]
                fn [<fexit_ $name>](ctx: FExitContext) -> i32 {
                    let way = Fexit(ctx);
                    if <$handler as Handler>::AT_EXIT {
                        <$handler as Handler>::entry(&way);
                    }
                    <$handler as Handler>::exit(&way);
                    0
                }
                #[kprobe]
                fn [<kprobe_ $name>](ctx: ProbeContext) -> u32 {
                    <$handler as Handler>::entry(&Kprobe(ctx));
                    0
                }
                #[kretprobe]
                fn [<kretprobe_ $name>](ctx: RetProbeContext) -> u32 {
                    <$handler as Handler>::exit(&Kretprobe(ctx));
                    0
                }
            )*
        }
    } };
}

hooks! {
    open: crate::probe::device::Open;
    release: crate::probe::device::Release;
    ioctl: crate::probe::device::Ioctl;
    preserve: crate::probe::file::Preserve;
    unpreserve: crate::probe::file::Unpreserve;
    restore: crate::probe::file::Restore;
    can_preserve: crate::probe::file::CanPreserve;
    file_prepare: crate::probe::file::FilePrepare;
    file_freeze: crate::probe::file::FileFreeze;
    prepare: crate::probe::state::Prepare;
    freeze: crate::probe::state::Freeze;
    cancel: crate::probe::state::Cancel;
    finish: crate::probe::state::Finish;
    session_create: crate::probe::session::Create;
    session_retrieve: crate::probe::session::Retrieve;
    session_release: crate::probe::session::Release;
    session_ioctl: crate::probe::session::Ioctl;
    session_preserve_file: crate::probe::session::PreserveFile;
    session_restore_file: crate::probe::session::RestoreFile;
    session_unpreserve: crate::probe::session::Unpreserve;
    session_freeze: crate::probe::session::Freeze;
    session_unfreeze: crate::probe::session::Unfreeze;
    session_finish: crate::probe::session::Finish;
    serialize: crate::probe::session::Serialize;
    deserialize: crate::probe::session::Deserialize;
    flb_serialize: crate::probe::session::FlbSerialize;
    op_preserve: crate::probe::session::OpPreserve;
    op_freeze: crate::probe::session::OpFreeze;
    op_retrieve: crate::probe::session::OpRetrieve;
    op_finish: crate::probe::session::OpFinish;
    op_unpreserve: crate::probe::session::OpUnpreserve;
    sys_reboot: crate::probe::reboot::SysReboot;
    reboot: crate::probe::reboot::Reboot;
    restart_prepare: crate::probe::reboot::RestartPrepare;
    device_shutdown: crate::probe::reboot::DeviceShutdown;
    migrate_cpu: crate::probe::reboot::MigrateCpu;
    syscore_shutdown: crate::probe::reboot::SyscoreShutdown;
    machine_shutdown: crate::probe::reboot::MachineShutdown;
    jump: crate::probe::reboot::Jump;
    boot: crate::probe::reboot::Boot;
    verdict: crate::probe::verdict::Verdict;
    policy_loaded: crate::probe::verdict::PolicyLoaded;
}
