//! The policy in the kernel: LSM hooks that judge requests before the orchestrator acts, and programs on its functions
//! that keep account of what is preserved and compare what was judged with what was done.
//!
//! These programs are loaded apart from those that watch, and can outlive lu.

#![expect(
    clippy::inline_always,
    reason = "the verifier follows pointers into maps best within one function"
)]
#![expect(
    clippy::needless_pass_by_value,
    reason = "the macros pass the context by value"
)]

mod asked;
mod standing;
mod tell;

use aya_ebpf::macros::{fentry, fexit, lsm};
use aya_ebpf::programs::{FEntryContext, FExitContext, LsmContext};
use lu_common::policy::{Attribute, Operation, tampered};
use lu_common::uapi::IOCTL_TYPE;

use self::asked::{Asked, landmark, read};
use crate::orchestrator::{Checked, Kernel, Orchestrator as _, Read as _};

/// `_IOC_TYPE`'s place in an ioctl's number (`include/uapi/asm-generic/ioctl.h`).
const TYPE_SHIFT: u32 = 8;

/// `S_IFMT` and `S_IFCHR` (`include/uapi/linux/stat.h`).
const TYPE_MASK: u16 = 0o170_000;
const CHARACTER_DEVICE: u16 = 0o020_000;

/// `CAP_SYS_BOOT` (`include/uapi/linux/capability.h`).
const CAP_SYS_BOOT: i32 = 22;

/// `PF_EXITING` and `PF_KTHREAD` (`include/linux/sched.h`): the kernel itself closes what lay in a socket that is gone.
const EXITING: u32 = 4;
const KERNEL_THREAD: u32 = 0x0020_0000;

/// `int file_open(struct file *)`: of all files, so the quickest way out comes first.
#[lsm(hook = "file_open", sleepable)]
fn lsm_file_open(ctx: LsmContext) -> i32 {
    let before: i32 = ctx.arg(1);
    let file = ctx.arg::<u64>(0);
    match read!(file, file_f_inode) {
        Some(inode) if before == 0 && is_device(inode) => {}
        _ => return before,
    }
    if asked::is_self_test() {
        return -asked::SELF_TEST_ERRNO;
    }
    asked::judge_alone::<false>(Operation::Open, 0)
}

/// Whether an inode is `/dev/liveupdate`'s, by whatever name.
#[inline(always)]
fn is_device(inode: u64) -> bool {
    let Some(mode): Option<u16> = read!(inode, inode_i_mode) else {
        return false;
    };
    if mode & TYPE_MASK != CHARACTER_DEVICE {
        return false;
    }
    let device: Option<u32> = read!(asked inode, inode_i_rdev);
    device.is_some_and(|device| device == landmark!(device))
}

/// `int file_ioctl(struct file *, unsigned int cmd, unsigned long arg)`.
#[lsm(hook = "file_ioctl", sleepable)]
fn lsm_file_ioctl(ctx: LsmContext) -> i32 {
    let before: i32 = ctx.arg(3);
    let cmd: u32 = ctx.arg(1);
    // All that a file of anybody else's pays.
    if before != 0 || (cmd >> TYPE_SHIFT) & 0xFF != u32::from(IOCTL_TYPE) {
        return before;
    }
    ioctl::<true>(ctx.arg(0), cmd, ctx.arg(2))
}

/// The same for 32-bit programs. It may not sleep: what is not in memory is unknown to it.
#[lsm(hook = "file_ioctl_compat")]
fn lsm_file_ioctl_compat(ctx: LsmContext) -> i32 {
    let before: i32 = ctx.arg(3);
    let cmd: u32 = ctx.arg(1);
    if before != 0 || (cmd >> TYPE_SHIFT) & 0xFF != u32::from(IOCTL_TYPE) {
        return before;
    }
    ioctl::<false>(ctx.arg(0), cmd, ctx.arg(2))
}

/// An ioctl on the device or on a session.
#[inline(always)]
fn ioctl<const SLEEPABLE: bool>(file: u64, cmd: u32, arg: u64) -> i32 {
    let Some(operations): Option<u64> = read!(file, file_f_op) else {
        return 0;
    };
    let on_device = operations == landmark!(device_operations);
    if !on_device && operations != landmark!(session_operations) {
        return 0;
    }
    let operation = match (on_device, cmd & 0xFF) {
        (true, 0x00) => Operation::Create,
        (true, 0x01) => Operation::Retrieve,
        (false, 0x40) => Operation::Preserve,
        (false, 0x41) => Operation::Restore,
        (false, 0x42) => Operation::Finish,
        // What asks for nothing, or is no command.
        _ => return 0,
    };
    let Some(asked) = Asked::begin(operation) else {
        return asked::unremembered(operation);
    };
    if on_device {
        asked.read_name::<SLEEPABLE>(arg);
    } else {
        asked.take_session(file);
        if operation != Operation::Finish {
            asked.read_file::<SLEEPABLE>(arg, operation);
        }
    }
    if operation.has_conditions() {
        asked.judge::<true>()
    } else {
        asked.judge::<false>()
    }
}

/// `int file_receive(struct file *)`: a descriptor arrives by a socket, or by `pidfd_getfd`.
#[lsm(hook = "file_receive", sleepable)]
fn lsm_file_receive(ctx: LsmContext) -> i32 {
    let before: i32 = ctx.arg(1);
    let file = ctx.arg::<u64>(0);
    let operations = read!(file, file_f_op);
    if before != 0 || operations != Some(landmark!(session_operations)) {
        return before;
    }
    asked::judge_alone::<false>(Operation::Receive, file)
}

/// `int kernel_load_data(enum kernel_load_data_id, bool contents)`: `kexec_load(2)`.
#[lsm(hook = "kernel_load_data")]
fn lsm_kernel_load_data(ctx: LsmContext) -> i32 {
    let before: i32 = ctx.arg(2);
    if before != 0 || ctx.arg::<u32>(0) != landmark!(kexec_image_id) {
        return before;
    }
    asked::judge_alone::<false>(Operation::Load, 0)
}

/// `int kernel_read_file(struct file *, enum kernel_read_file_id, bool contents)`: `kexec_file_load(2)`.
#[lsm(hook = "kernel_read_file", sleepable)]
fn lsm_kernel_read_file(ctx: LsmContext) -> i32 {
    let before: i32 = ctx.arg(3);
    if before != 0 || ctx.arg::<u32>(1) != landmark!(kexec_image_id) {
        return before;
    }
    asked::judge_alone::<false>(Operation::Load, 0)
}

/// `int capable(const struct cred *, struct user_namespace *, int cap, unsigned int opts)`: what reboot(2) asks first.
/// No other hook is on its way, so a refusal is always EPERM.
#[lsm(hook = "capable")]
fn lsm_capable(ctx: LsmContext) -> i32 {
    let before: i32 = ctx.arg(4);
    if before != 0 || ctx.arg::<i32>(2) != CAP_SYS_BOOT {
        return before;
    }
    if asked::is_kexec() {
        asked::judge_alone::<true>(Operation::Kexec, 0)
    } else {
        before
    }
}

/// `long luo_ioctl(struct file *, unsigned int, unsigned long)`.
#[fexit]
fn policy_ioctl_done(_ctx: FExitContext) -> i32 {
    Asked::end();
    0
}

/// `long luo_session_ioctl(struct file *, unsigned int, unsigned long)`.
#[fexit]
fn policy_session_ioctl_done(_ctx: FExitContext) -> i32 {
    Asked::end();
    0
}

/// `int luo_open(struct inode *, struct file *)`.
#[fexit]
fn policy_open(ctx: FExitContext) -> i32 {
    if ctx.arg::<i32>(2) == 0 {
        standing::opened(1);
    }
    0
}

/// `int luo_release(struct inode *, struct file *)`.
#[fexit]
fn policy_release(_ctx: FExitContext) -> i32 {
    standing::opened(u64::MAX);
    0
}

/// `int luo_session_create(const char *name, struct file **)`.
#[fexit]
fn policy_session_create(ctx: FExitContext) -> i32 {
    if ctx.arg::<i32>(2) != 0 {
        return 0;
    }
    let session = session_at(ctx.arg(1));
    asked::compare(Operation::Create, &session, 0);
    standing::created(&session);
    0
}

/// `int luo_session_retrieve(const char *name, struct file **)`.
#[fexit]
fn policy_session_retrieve(ctx: FExitContext) -> i32 {
    if ctx.arg::<i32>(2) == 0 {
        asked::compare(Operation::Retrieve, &session_at(ctx.arg(1)), 0);
    }
    0
}

/// `int luo_preserve_file(struct luo_file_set *, u64 token, int fd)`.
#[fexit]
fn policy_preserve_file(ctx: FExitContext) -> i32 {
    if ctx.arg::<i32>(3) != 0 {
        return 0;
    }
    let set: u64 = ctx.arg(0);
    let token: u64 = ctx.arg(1);
    let session = asked::session_of_set(set);
    let file = asked::newest_file(set).unwrap_or(0);
    let facts = Kernel::<Checked>::file(file);
    let kind = facts.as_ref().map(|facts| u64::from(facts.kind));
    let bytes = facts.map(|facts| asked::capped(facts.bytes));
    let mut differs = asked::differs(Operation::Preserve, &session, token);
    if let Some(asked) = Asked::current() {
        // One that was closed meanwhile may have left its place to another.
        if asked.file != file || kind != asked.known(Attribute::Kind).then_some(asked.request.kind)
        {
            differs |= tampered::FILE;
        }
        if bytes != asked.known(Attribute::Bytes).then_some(asked.request.bytes) {
            differs |= tampered::BYTES;
        }
        asked.settle(&session, bytes);
    }
    asked::tell_tampered(Operation::Preserve, &session, token, differs);
    standing::preserved(&session, token);
    0
}

/// `int luo_retrieve_file(struct luo_file_set *, u64 token, struct file **)`.
#[fexit]
fn policy_retrieve_file(ctx: FExitContext) -> i32 {
    if ctx.arg::<i32>(3) == 0 {
        let (session, token) = (asked::session_of_set(ctx.arg(0)), ctx.arg(1));
        asked::compare(Operation::Restore, &session, token);
        standing::restored(&session, token);
    }
    0
}

/// `int luo_session_release(struct inode *, struct file *)`.
#[fentry]
fn policy_session_release(ctx: FEntryContext) -> i32 {
    let session = asked::session_of_file(ctx.arg(1));
    let flags: Option<u32> = read!(asked asked::current_task(), task_flags);
    let is_lost = flags.is_some_and(|flags| flags & (EXITING | KERNEL_THREAD) != 0);
    standing::released(&session, is_lost);
    0
}

/// The session behind a `struct file **`.
#[inline(always)]
fn session_at(at: u64) -> asked::Session {
    asked::session_of_file(Checked::read(at).unwrap_or(0))
}
