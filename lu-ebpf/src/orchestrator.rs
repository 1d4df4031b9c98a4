//! What differs between the kernel's orchestrator and the emulated one: whose memory pointers point to, and
//! who the caller is.

use core::marker::PhantomData;
use core::mem::offset_of;

use aya_ebpf::helpers::generated::{
    bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_task_btf,
};
use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid, bpf_get_current_uid_gid, bpf_probe_read_kernel,
    bpf_probe_read_kernel_str_bytes, bpf_probe_read_user, bpf_probe_read_user_str_bytes,
};
use lu_common::event::{COMM_LEN, Call, File, FileArgs, FileKind, SessionFile, SessionName, Task};
use lu_common::layout::{ABSENT, FILE_OPERATIONS_MAX, Offsets};
use zerocopy::FromBytes;

use crate::call;

/// An orchestrator, as handlers ask it.
pub trait Orchestrator {
    /// The same orchestrator for pointers that were found in memory, rather than handed to the program.
    type Found: Orchestrator;
    /// Notes who calls, given the pointer that the outermost function got (`struct file *`, or the registers
    /// of the system call); `None`: nobody.
    fn remember(caller: Option<u64>, task: &mut Task);
    /// The task on whose behalf something happens, given what was remembered.
    fn task(remembered: Option<&Task>) -> Option<Task>;
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
    /// The name of a session at an address, padded with NUL as it is there.
    fn session_name(at: u64) -> Option<Name>;
    /// The text at an address, up to its NUL.
    fn text(at: u64) -> Option<Name>;
    /// The command of reboot(2), given its registers.
    fn reboot_command(registers: u64) -> Option<u32>;
    /// The payload of a record, as it stands at an address.
    fn payload(at: u64) -> Option<Payload>;
}

/// A session's name in words: as bytes it would be cleared and copied one by one.
pub type Name = [u64; size_of::<SessionName>() / 8];

/// What follows a record's header, in words.
pub type Payload = [u64; size_of::<Call>() / 8];

fn counted<T>(read: Result<T, i32>) -> Option<T> {
    if read.is_err() {
        call::count(|counters| &raw mut counters.bad_read);
    }
    read.ok()
}

/// Fills a name by a helper that copies up to the first NUL.
fn filled(fill: impl FnOnce(&mut SessionName) -> Result<(), i32>) -> Option<Name> {
    let mut name: Name = call::zeroed();
    counted(fill(zerocopy::transmute_mut!(&mut name)))?;
    Some(name)
}

/// The emulated orchestrator: everything is in its own memory, laid out as `lu_common` says.
pub struct Emulated;

fn read_user<T>(at: u64) -> Option<T> {
    // SAFETY: the helper checks the address and copies; it reports what it cannot read.
    counted(unsafe { bpf_probe_read_user(at as *const T) })
}

impl Orchestrator for Emulated {
    type Found = Self;

    fn remember(caller: Option<u64>, task: &mut Task) {
        // Without knowing whose call it is, it is nobody's.
        *task = caller.and_then(read_user).unwrap_or_else(|| Task {
            none: 1,
            ..call::zeroed()
        });
    }

    fn task(remembered: Option<&Task>) -> Option<Task> {
        remembered.copied()
    }

    fn file(pointer: u64) -> Option<File> {
        read_user(pointer)
    }

    fn pointer(at: u64) -> Option<u64> {
        read_user(at)
    }

    fn file_of(args: u64) -> Option<u64> {
        read_user(args + offset_of!(FileArgs, file) as u64)
    }

    fn name_of_file(file: u64) -> Option<u64> {
        Some(file + offset_of!(SessionFile, name) as u64)
    }

    fn name_of_set(set: u64) -> Option<u64> {
        Some(set)
    }

    fn session_name(at: u64) -> Option<Name> {
        Self::text(at)
    }

    fn text(at: u64) -> Option<Name> {
        // SAFETY: the helper checks the address and copies no more than there is room.
        filled(|name| unsafe { bpf_probe_read_user_str_bytes(at as *const u8, name) }.map(drop))
    }

    /// The emulator calls the function for nothing else.
    fn reboot_command(_registers: u64) -> Option<u32> {
        Some(REBOOT_KEXEC)
    }

    fn payload(at: u64) -> Option<Payload> {
        read_user(at)
    }
}

/// `LINUX_REBOOT_CMD_KEXEC` (`include/uapi/linux/reboot.h`).
pub const REBOOT_KEXEC: u32 = 0x4558_4543;

/// Where things are in the running kernel; user space fills it in.
#[unsafe(no_mangle)]
pub static OFFSETS: Offsets = Offsets::NONE;

/// The kinds of files by the address of their `struct file_operations`: address, kind, address, kind, …,
/// ended by an address of 0; user space fills it in.
#[unsafe(no_mangle)]
static FILE_OPERATIONS: [u64; 2 * FILE_OPERATIONS_MAX] = [0; 2 * FILE_OPERATIONS_MAX];

/// What the program's own globals are replaced by when it is loaded, which the compiler must not foresee.
/// The verifier does: these are constants for it.
macro_rules! global {
    ($place:expr) => {{
        let place = &raw const $place;
        // SAFETY: a static is valid for reads.
        unsafe { place.read_volatile() }
    }};
}
pub(crate) use global;

/// The kernel's orchestrator, its structures read by `R`.
pub struct Kernel<R>(PhantomData<R>);

/// A way to read the kernel's memory.
pub trait Read {
    /// What stands at an address; at most eight bytes.
    fn read<T: FromBytes>(at: u64) -> Option<T>;
}

/// By a helper, which takes any address.
pub struct Checked;

impl Read for Checked {
    fn read<T: FromBytes>(at: u64) -> Option<T> {
        // SAFETY: the helper checks the address and copies; it reports what it cannot read.
        counted(unsafe { bpf_probe_read_kernel(at as *const T) })
    }
}

/// By an ordinary load, which costs a twentieth of it. The verifier allows it of what a program of type tracing
/// got as an argument, and of what that points to: it knows their types.
pub struct Typed;

impl Read for Typed {
    fn read<T: FromBytes>(at: u64) -> Option<T> {
        Some(load(at))
    }
}

/// See [`Typed`].
fn load<T: FromBytes>(at: u64) -> T {
    // SAFETY: the verifier has proved the address to be within a structure of the kernel; where that is
    // gone the load gives 0.
    unsafe { (at as *const T).read_volatile() }
}

/// The address of a member; `None` where the running kernel's types have none.
macro_rules! place {
    ($pointer:expr, $member:ident) => {{
        let offset = global!(OFFSETS.$member);
        (offset != ABSENT).then(|| $pointer + u64::from(offset))
    }};
}

/// A member of what a pointer points to.
macro_rules! member {
    ($read:ty, $pointer:expr, $member:ident) => {{
        let offset = global!(OFFSETS.$member);
        if offset == ABSENT {
            None
        } else {
            <$read as Read>::read($pointer + u64::from(offset))
        }
    }};
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

/// The kind that files with these operations have.
fn kind_by(operations: u64) -> Option<FileKind> {
    for entry in 0..FILE_OPERATIONS_MAX {
        let address = global!(FILE_OPERATIONS[2 * entry]);
        if address == 0 {
            break;
        }
        if address == operations {
            return FileKind::from_raw(global!(FILE_OPERATIONS[2 * entry + 1]) as u16);
        }
    }
    None
}

/// The kind by the file's operations, else by its file system, else by its inode.
///
/// An unlinked file of tmpfs is what memfd makes, and the orchestrator takes the one for the other too
/// (`memfd_luo_can_preserve`).
fn kind<R: Read>(file: u64, inode: u64) -> Option<FileKind> {
    match kind_by(member!(R, file, file_f_op)?) {
        Some(FileKind::Memfd | FileKind::HugetlbMemfd)
            if member!(R, inode, inode_i_nlink).is_none_or(|links: u32| links != 0) =>
        {
            return Some(FileKind::Regular);
        }
        Some(kind) => return Some(kind),
        None => {}
    }
    let magic = member!(R, inode, inode_i_sb)
        .and_then(|file_system: u64| member!(R, file_system, sb_s_magic));
    if magic == Some(ANON_INODE_MAGIC) {
        return Some(FileKind::AnonInode);
    }
    let bits: u16 = member!(R, inode, inode_i_mode)?;
    Some(match bits & mode::TYPE {
        mode::REGULAR => FileKind::Regular,
        mode::DIRECTORY => FileKind::Directory,
        mode::SOCKET => FileKind::Socket,
        mode::FIFO => FileKind::Pipe,
        mode::CHARACTER | mode::BLOCK => FileKind::Device,
        _ => FileKind::Other,
    })
}

/// The current task.
pub fn current() -> Task {
    let id = bpf_get_current_pid_tgid();
    // SAFETY: the helper has no preconditions.
    let task = unsafe { bpf_get_current_task_btf() } as u64;
    let (cred, uid) = (global!(OFFSETS.task_cred), global!(OFFSETS.cred_uid));
    // Without an `Option`: the verifier wants a value in each register, and `None` has none.
    let uid = if cred != ABSENT && uid != ABSENT {
        let cred: u64 = load(task + u64::from(cred));
        load(cred + u64::from(uid))
    } else {
        bpf_get_current_uid_gid() as u32
    };
    // In words, see `call::zeroed`.
    let mut comm: [u64; COMM_LEN / 8] = call::zeroed();
    let at = global!(OFFSETS.task_comm);
    if at == ABSENT {
        // SAFETY: the helper writes no more than it is told there is room for.
        unsafe { bpf_get_current_comm((&raw mut comm).cast(), COMM_LEN as u32) };
    } else {
        let at = task + u64::from(at);
        comm = [load(at), load(at + 8)];
    }
    Task {
        pid: (id >> 32) as u32,
        tid: id as u32,
        uid,
        none: 0,
        // SAFETY: the helper has no preconditions.
        cgroup_id: unsafe { bpf_get_current_cgroup_id() },
        comm: zerocopy::transmute!(comm),
    }
}

impl<R: Read> Orchestrator for Kernel<R> {
    type Found = Kernel<Checked>;

    fn remember(_caller: Option<u64>, _task: &mut Task) {}

    fn task(_remembered: Option<&Task>) -> Option<Task> {
        Some(current())
    }

    fn file(pointer: u64) -> Option<File> {
        let inode: u64 = member!(R, pointer, file_f_inode)?;
        Some(File {
            bytes: member!(R, inode, inode_i_size)?,
            kind: kind::<R>(pointer, inode)? as u16,
            padding: [0; 6],
        })
    }

    fn pointer(at: u64) -> Option<u64> {
        Checked::read(at)
    }

    fn file_of(args: u64) -> Option<u64> {
        member!(R, args, args_file)
    }

    fn name_of_file(file: u64) -> Option<u64> {
        // `private_data` has no type: what it points to is read by the helper.
        let session: u64 = member!(R, file, file_private_data)?;
        place!(session, session_name)
    }

    fn name_of_set(set: u64) -> Option<u64> {
        let offset = global!(OFFSETS.session_file_set);
        let session = (offset != ABSENT).then(|| set - u64::from(offset))?;
        place!(session, session_name)
    }

    fn session_name(at: u64) -> Option<Name> {
        // SAFETY: the helper checks the address and copies; it reports what it cannot read.
        counted(unsafe { bpf_probe_read_kernel(at as *const Name) })
    }

    fn text(at: u64) -> Option<Name> {
        // SAFETY: the helper checks the address and copies no more than there is room.
        filled(|name| unsafe { bpf_probe_read_kernel_str_bytes(at as *const u8, name) }.map(drop))
    }

    fn reboot_command(registers: u64) -> Option<u32> {
        Checked::read(place!(registers, regs_third)?)
    }

    fn payload(at: u64) -> Option<Payload> {
        // SAFETY: the helper checks the address and copies; it reports what it cannot read.
        counted(unsafe { bpf_probe_read_kernel(at as *const Payload) })
    }
}
