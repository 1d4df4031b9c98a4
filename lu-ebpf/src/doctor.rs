//! Programs that do nothing, one of each type: `lu doctor` loads and attaches them for a moment, to
//! learn what this machine allows. They go to `kernel_restart` where they need a function: every
//! kernel has it, and nobody calls it meanwhile.

use aya_ebpf::macros::{
    btf_tracepoint, fentry, fexit, kprobe, kretprobe, lsm, raw_tracepoint, tracepoint,
};
use aya_ebpf::programs::{
    BtfTracePointContext, FEntryContext, FExitContext, LsmContext, ProbeContext,
    RawTracePointContext, RetProbeContext, TracePointContext,
};

#[kprobe]
fn try_kprobe(_ctx: ProbeContext) -> u32 {
    0
}

#[kretprobe]
fn try_kretprobe(_ctx: RetProbeContext) -> u32 {
    0
}

#[fentry(function = "kernel_restart")]
fn try_fentry(_ctx: FEntryContext) -> i32 {
    0
}

#[fexit(function = "kernel_restart")]
fn try_fexit(_ctx: FExitContext) -> i32 {
    0
}

/// The verdict of those before it is passed on.
#[expect(
    clippy::needless_pass_by_value,
    reason = "the macro passes the context by value"
)]
#[lsm(hook = "kernel_load_data")]
fn try_lsm(ctx: LsmContext) -> i32 {
    ctx.arg(2)
}

#[tracepoint(category = "sched", name = "sched_process_exec")]
fn try_tracepoint(_ctx: TracePointContext) -> u32 {
    0
}

#[raw_tracepoint(tracepoint = "sched_process_exec")]
fn try_raw_tp(_ctx: RawTracePointContext) -> i32 {
    0
}

#[btf_tracepoint(function = "sched_process_exec")]
fn try_tp_btf(_ctx: BtfTracePointContext) -> i32 {
    0
}
