//! The ways of attaching, as handlers see them: arguments at the entry, the result at the exit, and
//! whose memory the arguments point to.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::{
    bpf_get_attach_cookie, bpf_get_current_cgroup_id, bpf_get_current_comm,
};
use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid, bpf_get_current_uid_gid, bpf_probe_read_kernel,
    bpf_probe_read_kernel_str_bytes, bpf_probe_read_user, bpf_probe_read_user_str_bytes,
};
use aya_ebpf::macros::map;
use aya_ebpf::maps::HashMap;
use aya_ebpf::programs::{FEntryContext, FExitContext, ProbeContext, RetProbeContext};
use lu_common::event::{COMM_LEN, File, FileArgs, FileKind, SessionFile, SessionName, Task, flags};
use lu_common::layout::{ABSENT, Offsets};

use crate::task;

/// The function has just been entered.
pub trait Entry {
    /// The orchestrator that this way of attaching is for.
    type Orchestrator: Orchestrator;
    /// The `n`th argument, from 0, as wide as a register.
    fn arg(&self, n: usize) -> u64;
    /// Bits for [`lu_common::event::Header::flags`].
    fn flags(&self) -> u8;
}

/// The function is about to return.
pub trait Exit {
    /// The orchestrator that this way of attaching is for.
    type Orchestrator: Orchestrator;
    /// What it returns, as wide as a register; anything where it returns nothing.
    fn ret(&self) -> i64;
    /// Bits for [`lu_common::event::Header::flags`].
    fn flags(&self) -> u8;
}

/// What differs between the kernel's orchestrator and the emulated one: where things are in memory.
pub trait Orchestrator {
    /// The task that called, given the pointer that the outermost function got (`struct file *`, or
    /// the registers of the system call).
    fn caller(pointer: u64) -> Option<Task>;
    /// The task of a call that has no remembered caller.
    fn unannounced() -> Option<Task>;
    /// What is known of the file behind a `struct file *`.
    fn file(pointer: u64) -> Option<File>;
    /// The pointer that stands at an address.
    fn pointer(at: u64) -> Option<u64>;
    /// The file of a `struct liveupdate_file_op_args *`.
    fn file_of(args: u64) -> Option<u64>;
    /// Where the name of the session behind a `struct file *` is.
    fn name_of_file(file: u64) -> Option<u64>;
    /// Where the name of the session around a `struct luo_file_set *` is.
    fn name_of_set(set: u64) -> Option<u64>;
    /// The text at an address, padded with NUL.
    fn name(at: u64) -> Option<Name>;
    /// The command of reboot(2), given its registers.
    fn reboot_command(registers: u64) -> Option<u32>;
}

/// A session's name in words: as bytes it would be cleared and copied one by one.
pub type Name = [u64; size_of::<SessionName>() / 8];

fn counted<T>(read: Result<T, i32>) -> Option<T> {
    if read.is_err() {
        task::count(|counters| &raw mut counters.bad_read);
    }
    read.ok()
}

/// The emulated orchestrator: everything is in its own memory, laid out as `lu_common` says.
pub struct Emulated;

fn read_user<T>(at: u64) -> Option<T> {
    // SAFETY: the helper checks the address and copies; it reports what it cannot read.
    counted(unsafe { bpf_probe_read_user(at as *const T) })
}

impl Orchestrator for Emulated {
    fn caller(pointer: u64) -> Option<Task> {
        read_user(pointer)
    }

    fn unannounced() -> Option<Task> {
        None
    }

    fn file(pointer: u64) -> Option<File> {
        read_user(pointer)
    }

    fn pointer(at: u64) -> Option<u64> {
        read_user(at)
    }

    fn file_of(args: u64) -> Option<u64> {
        read_user(args + core::mem::offset_of!(FileArgs, file) as u64)
    }

    fn name_of_file(file: u64) -> Option<u64> {
        Some(file + core::mem::offset_of!(SessionFile, name) as u64)
    }

    fn name_of_set(set: u64) -> Option<u64> {
        Some(set)
    }

    fn name(at: u64) -> Option<Name> {
        let mut name: Name = task::zeroed();
        let bytes: &mut SessionName = zerocopy::transmute_mut!(&mut name);
        // SAFETY: the helper checks the address and copies no more than there is room.
        let read = unsafe { bpf_probe_read_user_str_bytes(at as *const u8, bytes) }.map(drop);
        counted(read)?;
        Some(name)
    }

    /// The emulator calls the function for nothing else.
    fn reboot_command(_registers: u64) -> Option<u32> {
        Some(REBOOT_KEXEC)
    }
}

/// `LINUX_REBOOT_CMD_KEXEC` (`include/uapi/linux/reboot.h`).
pub const REBOOT_KEXEC: u32 = 0x4558_4543;

/// Where things are in the running kernel; user space fills it in.
#[unsafe(no_mangle)]
static OFFSETS: Offsets = Offsets::NONE;

/// [`flags::SESSIONS`], or nothing: the interface of the kernel's orchestrator; user space fills it in.
#[unsafe(no_mangle)]
static KERNEL_FLAGS: u8 = 0;

/// The kinds of files by the address of their `struct file_operations`; user space fills it in.
#[map]
static FILE_OPERATIONS: HashMap<u64, u16> = HashMap::with_max_entries(64, 0);

/// The kernel's orchestrator.
pub struct Kernel;

fn read<T>(at: u64) -> Option<T> {
    // SAFETY: the helper checks the address and copies; it reports what it cannot read.
    counted(unsafe { bpf_probe_read_kernel(at as *const T) })
}

/// Reads the member at `offset` of what `pointer` points to.
fn member<T>(pointer: u64, offset: impl Fn(&Offsets) -> u32) -> Option<T> {
    read(pointer + place(offset)?)
}

fn place(offset: impl Fn(&Offsets) -> u32) -> Option<u64> {
    // Read at run time: user space replaces what the compiler sees.
    // SAFETY: a static is valid for reads.
    let offsets = unsafe { (&raw const OFFSETS).read_volatile() };
    let offset = offset(&offsets);
    (offset != ABSENT).then_some(u64::from(offset))
}

fn current() -> Task {
    let id = bpf_get_current_pid_tgid();
    // In words, see `task::zeroed`.
    let mut comm: [u64; COMM_LEN / 8] = task::zeroed();
    // SAFETY: the helper writes no more than it is told there is room for.
    unsafe { bpf_get_current_comm((&raw mut comm).cast(), COMM_LEN as u32) };
    Task {
        pid: (id >> 32) as u32,
        tid: id as u32,
        uid: bpf_get_current_uid_gid() as u32,
        none: 0,
        // SAFETY: the helper has no preconditions.
        cgroup_id: unsafe { bpf_get_current_cgroup_id() },
        comm: zerocopy::transmute!(comm),
    }
}

/// `S_IFMT` and what it tells (`include/uapi/linux/stat.h`).
mod mode {
    pub const TYPE: u16 = 0o170_000;
    pub const SOCKET: u16 = 0o140_000;
    pub const REGULAR: u16 = 0o100_000;
    pub const BLOCK: u16 = 0o060_000;
    pub const DIRECTORY: u16 = 0o040_000;
    pub const CHARACTER: u16 = 0o020_000;
    pub const FIFO: u16 = 0o010_000;
}

/// `ANON_INODE_FS_MAGIC` (`include/uapi/linux/magic.h`).
const ANON_INODE_MAGIC: u64 = 0x0904_1934;

/// The kind by the file's operations, else by its file system, else by its inode.
///
/// An unlinked file of tmpfs is what memfd makes, and the orchestrator takes the one for the other too
/// (`memfd_luo_can_preserve`).
fn kind(file: u64, inode: u64) -> Option<FileKind> {
    let operations: u64 = member(file, |offsets| offsets.file_f_op)?;
    let known = FILE_OPERATIONS.get_ptr(operations).and_then(|kind| {
        // SAFETY: the pointer is into the map, which lives as long as the program.
        FileKind::from_raw(unsafe { *kind })
    });
    let links: Option<u32> = member(inode, |offsets| offsets.inode_i_nlink);
    match known {
        Some(FileKind::Memfd | FileKind::HugetlbMemfd) if links? != 0 => {
            return Some(FileKind::Regular);
        }
        Some(kind) => return Some(kind),
        None => {}
    }
    let file_system: Option<u64> = member(inode, |offsets| offsets.inode_i_sb);
    let magic: Option<u64> =
        file_system.and_then(|file_system| member(file_system, |offsets| offsets.sb_s_magic));
    if magic == Some(ANON_INODE_MAGIC) {
        return Some(FileKind::AnonInode);
    }
    let bits: u16 = member(inode, |offsets| offsets.inode_i_mode)?;
    Some(match bits & mode::TYPE {
        mode::REGULAR => FileKind::Regular,
        mode::DIRECTORY => FileKind::Directory,
        mode::SOCKET => FileKind::Socket,
        mode::FIFO => FileKind::Pipe,
        mode::CHARACTER | mode::BLOCK => FileKind::Device,
        _ => FileKind::Other,
    })
}

impl Orchestrator for Kernel {
    fn caller(_pointer: u64) -> Option<Task> {
        Some(current())
    }

    fn unannounced() -> Option<Task> {
        Some(current())
    }

    fn file(pointer: u64) -> Option<File> {
        let inode: u64 = member(pointer, |offsets| offsets.file_f_inode)?;
        Some(File {
            bytes: member(inode, |offsets| offsets.inode_i_size)?,
            kind: kind(pointer, inode)? as u16,
            padding: [0; 6],
        })
    }

    fn pointer(at: u64) -> Option<u64> {
        read(at)
    }

    fn file_of(args: u64) -> Option<u64> {
        member(args, |offsets| offsets.args_file)
    }

    fn name_of_file(file: u64) -> Option<u64> {
        let session: u64 = member(file, |offsets| offsets.file_private_data)?;
        Some(session + place(|offsets| offsets.session_name)?)
    }

    fn name_of_set(set: u64) -> Option<u64> {
        let session = set - place(|offsets| offsets.session_file_set)?;
        Some(session + place(|offsets| offsets.session_name)?)
    }

    fn name(at: u64) -> Option<Name> {
        let mut name: Name = task::zeroed();
        let bytes: &mut SessionName = zerocopy::transmute_mut!(&mut name);
        // SAFETY: the helper checks the address and copies no more than there is room.
        let read = unsafe { bpf_probe_read_kernel_str_bytes(at as *const u8, bytes) }.map(drop);
        counted(read)?;
        Some(name)
    }

    fn reboot_command(registers: u64) -> Option<u32> {
        member(registers, |offsets| offsets.regs_third)
    }
}

fn kernel_flags() -> u8 {
    // SAFETY: a static is valid for reads; user space replaces what the compiler sees.
    unsafe { (&raw const KERNEL_FLAGS).read_volatile() }
}

/// A uprobe at the entry. Its cookie tells the emulated orchestrator's interface.
pub struct Uprobe(pub ProbeContext);

impl Entry for Uprobe {
    type Orchestrator = Emulated;

    fn arg(&self, n: usize) -> u64 {
        self.0.arg(n).unwrap_or(0)
    }

    fn flags(&self) -> u8 {
        // SAFETY: the context is this program's own.
        flags::EMULATED | unsafe { bpf_get_attach_cookie(self.0.as_ptr()) } as u8
    }
}

/// A uretprobe at the exit.
pub struct Uretprobe(pub RetProbeContext);

impl Exit for Uretprobe {
    type Orchestrator = Emulated;

    fn ret(&self) -> i64 {
        self.0.ret()
    }

    fn flags(&self) -> u8 {
        // SAFETY: the context is this program's own.
        flags::EMULATED | unsafe { bpf_get_attach_cookie(self.0.as_ptr()) } as u8
    }
}

/// A kprobe at the entry.
pub struct Kprobe(pub ProbeContext);

impl Entry for Kprobe {
    type Orchestrator = Kernel;

    fn arg(&self, n: usize) -> u64 {
        self.0.arg(n).unwrap_or(0)
    }

    fn flags(&self) -> u8 {
        kernel_flags()
    }
}

/// A kretprobe at the exit.
pub struct Kretprobe(pub RetProbeContext);

impl Exit for Kretprobe {
    type Orchestrator = Kernel;

    fn ret(&self) -> i64 {
        self.0.ret()
    }

    fn flags(&self) -> u8 {
        kernel_flags()
    }
}

/// fentry: a trampoline at the entry.
pub struct Fentry(pub FEntryContext);

impl Entry for Fentry {
    type Orchestrator = Kernel;

    fn arg(&self, n: usize) -> u64 {
        self.0.arg(n)
    }

    fn flags(&self) -> u8 {
        kernel_flags()
    }
}

/// fexit: a trampoline around the function.
pub struct Fexit(pub FExitContext);

impl Exit for Fexit {
    type Orchestrator = Kernel;

    fn ret(&self) -> i64 {
        self.0.ret().unwrap_or(0)
    }

    fn flags(&self) -> u8 {
        kernel_flags()
    }
}
