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
mod doctor;
mod probe;
mod task;

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

/// Gives handlers their programs. By uprobe and uretprobe: the emulated orchestrator's functions.
///
/// The program's name is what `lu_user::attach::plan` looks for.
macro_rules! hooks {
    ($($entry:ident / $exit:ident: $handler:path;)*) => {
        /// Programs on the emulated orchestrator.
        mod emulated {
            use aya_ebpf::{macros::{uprobe, uretprobe}, programs::{ProbeContext, RetProbeContext}};
            use crate::{attach::{Uprobe, Uretprobe}, probe::Handler};
            $(
                #[uprobe]
                fn $entry(ctx: ProbeContext) -> u32 {
                    <$handler as Handler>::entry(&Uprobe(ctx));
                    0
                }
                #[uretprobe]
                fn $exit(ctx: RetProbeContext) -> u32 {
                    <$handler as Handler>::exit(&Uretprobe(ctx));
                    0
                }
            )*
        }
    };
}

hooks! {
    u_open / ur_open: crate::probe::device::Open;
    u_release / ur_release: crate::probe::device::Release;
    u_ioctl / ur_ioctl: crate::probe::device::Ioctl;
    u_preserve / ur_preserve: crate::probe::file::Preserve;
    u_unpreserve / ur_unpreserve: crate::probe::file::Unpreserve;
    u_restore / ur_restore: crate::probe::file::Restore;
    u_can_preserve / ur_can_preserve: crate::probe::file::CanPreserve;
    u_file_prepare / ur_file_prepare: crate::probe::file::FilePrepare;
    u_file_freeze / ur_file_freeze: crate::probe::file::FileFreeze;
    u_prepare / ur_prepare: crate::probe::state::Prepare;
    u_freeze / ur_freeze: crate::probe::state::Freeze;
    u_cancel / ur_cancel: crate::probe::state::Cancel;
    u_finish / ur_finish: crate::probe::state::Finish;
    u_sys_reboot / ur_sys_reboot: crate::probe::reboot::SysReboot;
    u_reboot / ur_reboot: crate::probe::reboot::Reboot;
    u_jump / ur_jump: crate::probe::reboot::Jump;
    u_boot / ur_boot: crate::probe::reboot::Boot;
}
