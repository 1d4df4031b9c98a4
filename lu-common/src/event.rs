//! The record that a hook sends: one fixed-size header and one payload.
//!
//! A record is written in the kernel, crosses the ring buffer as bytes and may be stored as bytes, so
//! its layout is fixed: 128 bytes, no implicit padding, numbers in the machine's byte order. The
//! numbers of [`Kind`], [`FileKind`] and of the flags never change their meaning; new ones are added.

use core::mem::{offset_of, size_of};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::policy::{Attribute, Judged, Untold};
use crate::uapi::Interface;
use crate::uapi::sessions::NAME_LEN;

/// Bytes of a task's name, as in the kernel (`TASK_COMM_LEN`).
pub const COMM_LEN: usize = 16;

numbered! {
    /// What happened: one kind for each place in the orchestrator that has a hook.
    Kind: u8 {
        /// `luo_open(inode, file)`.
        Open = 1, "open";
        /// `luo_release(inode, file)`.
        Release = 2, "release";
        /// `luo_ioctl(file, cmd, arg)` or `luo_session_ioctl(file, cmd, arg)`, where no other kind tells it better.
        Ioctl = 3, "ioctl";
        /// The ioctl that comes to `luo_register_file(token, fd)` (v3) or `luo_preserve_file(set, token, fd)`.
        Preserve = 4, "preserve";
        /// The ioctl that comes to `luo_unregister_file(token)`.
        Unpreserve = 5, "unpreserve";
        /// The ioctl that comes to `luo_retrieve_file(…, token, struct file **)`.
        Restore = 6, "restore";
        /// `luo_prepare()`.
        Prepare = 7, "prepare";
        /// `luo_freeze()`.
        Freeze = 8, "freeze";
        /// `luo_cancel()`.
        Cancel = 9, "cancel";
        /// `luo_finish()`.
        Finish = 10, "finish";
        /// `liveupdate_reboot()`, called by reboot(KEXEC).
        Reboot = 11, "reboot";
        /// `machine_kexec(image)`: the old kernel's last function.
        Jump = 12, "jump";
        /// `luo_startup()`: the new kernel's orchestrator starts (emulated only: no probe can see the real one).
        Boot = 13, "boot";
        /// The prepare callback of one file.
        FilePrepare = 14, "file_prepare";
        /// The freeze callback of one file.
        FileFreeze = 15, "file_freeze";
        /// The preserve callback of one file (sessions). It is not sent: its time is in
        /// [`Call::op_ns`] of the [`Kind::Preserve`] around it.
        FilePreserve = 16, "file_preserve";
        /// The retrieve callback of one file (sessions). It is not sent: its time is in
        /// [`Call::op_ns`] of the [`Kind::Restore`] around it.
        FileRetrieve = 17, "file_retrieve";
        /// The finish callback of one file (sessions).
        FileFinish = 18, "file_finish";
        /// The unpreserve callback of one file (sessions).
        FileUnpreserve = 19, "file_unpreserve";
        /// The ioctl that comes to `luo_session_create(name, struct file **)`.
        SessionCreate = 20, "session_create";
        /// The ioctl that comes to `luo_session_retrieve(name, struct file **)`.
        SessionRetrieve = 21, "session_retrieve";
        /// `luo_session_release(inode, file)`: the last close of a session.
        SessionRelease = 22, "session_release";
        /// `luo_file_unpreserve_files(set)`: all files of a session that was closed before the kexec.
        SessionUnpreserve = 23, "session_unpreserve";
        /// `luo_file_freeze(set, …)`: all files of one session.
        SessionFreeze = 24, "session_freeze";
        /// `luo_file_unfreeze(set, …)`: a freeze undone.
        SessionUnfreeze = 25, "session_unfreeze";
        /// `luo_file_finish(set)`: all files of one session, by FINISH or by the last close.
        SessionFinish = 26, "session_finish";
        /// `luo_session_deserialize()`: what the old kernel handed over is read, at the first open.
        Deserialize = 27, "deserialize";
        /// `luo_flb_serialize()`: what files have in common (file-lifecycle-bound data).
        FlbFreeze = 28, "flb_freeze";
        /// The system call reboot(KEXEC) as a whole.
        Kexec = 29, "kexec";
        /// `kernel_restart_prepare(cmd)`: the reboot notifiers, and the devices' shutdown.
        RestartPrepare = 30, "restart_prepare";
        /// `device_shutdown()`.
        DeviceShutdown = 31, "device_shutdown";
        /// `migrate_to_reboot_cpu()`.
        MigrateCpu = 32, "migrate_cpu";
        /// `syscore_shutdown()`.
        SyscoreShutdown = 33, "syscore_shutdown";
        /// `machine_shutdown()`: the other CPUs are stopped.
        MachineShutdown = 34, "machine_shutdown";
        /// What the policy said of a request, where that is not a plain allow; see [`Judged`](crate::policy::Judged).
        Verdict = 35, "verdict";
        /// A request got through that is not the one that was judged; see [`Judged`](crate::policy::Judged).
        Tampered = 36, "tampered";
        /// Not from a hook: the collector found that a policy's programs could not do all of their work; see
        /// [`Untold`](crate::policy::Untold).
        Untold = 247, "untold";
        /// A policy was loaded, and who did it; see [`PolicyLoaded`].
        Policy = 248, "policy";
        /// The name of a policy's rule, before the first verdict of its generation that has its number; see
        /// [`RuleName`].
        Rule = 249, "rule";
        /// The name of a session, before the first record that has its [`Call::session`].
        Name = 250, "name";
        /// Not from a hook: the release of the kernel that the records after it are from.
        Kernel = 251, "kernel";
        /// Not from a hook: all clocks read at one moment, see [`Anchor`].
        Anchor = 252, "anchor";
        /// Not from a hook: the last sign of life of a kernel that was replaced; its header's time is
        /// when the collector's thread last ran.
        LastBeat = 253, "last_beat";
        /// Not from a hook: what the running kernel tells of the kexec that it came from, see [`Handover`].
        Handover = 254, "handover";
        /// Not from a hook: the collector found that records were lost; the count is in [`Call::bytes`].
        Lost = 255, "lost";
    }
}

numbered! {
    /// What sort of file a descriptor stands for.
    FileKind: u16 {
        /// None of those below.
        Other = 0, "other";
        /// memfd (`memfd_create`).
        Memfd = 1, "memfd";
        /// eventfd.
        Eventfd = 2, "eventfd";
        /// Either end of a pipe, or a FIFO.
        Pipe = 3, "pipe";
        /// A socket of any family.
        Socket = 4, "socket";
        /// A regular file of a file system.
        Regular = 5, "regular";
        /// `guest_memfd` (`KVM_CREATE_GUEST_MEMFD`).
        GuestMemfd = 6, "guest_memfd";
        /// A virtual machine, a virtual CPU or the device of KVM.
        Kvm = 7, "kvm";
        /// A device, group or container of VFIO.
        Vfio = 8, "vfio";
        /// iommufd.
        Iommufd = 9, "iommufd";
        /// Another file without a name (`anon_inode:`).
        AnonInode = 10, "anon_inode";
        /// A directory.
        Directory = 11, "directory";
        /// A character or block device.
        Device = 12, "device";
        /// memfd of huge pages (`MFD_HUGETLB`).
        HugetlbMemfd = 13, "hugetlb_memfd";
    }
}

/// The task on whose behalf something happens.
///
/// In the kernel's orchestrator it is the current task. In the emulated one the current task is the
/// server, so the first argument of its `luo_ioctl` points to one of these.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Task {
    /// Process (thread group) id in the initial pid namespace.
    pub pid: u32,
    /// Thread id in the initial pid namespace.
    pub tid: u32,
    /// Real user id in the initial user namespace.
    pub uid: u32,
    /// 0; 1 where this is no task at all (an event of the machine itself).
    pub none: u32,
    /// Id of the task's cgroup in the unified hierarchy.
    pub cgroup_id: u64,
    /// Name of the thread, padded with NUL.
    pub comm: [u8; COMM_LEN],
}

/// What a hook can learn of a file; the emulated orchestrator's `struct file`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct File {
    /// Its size, in bytes.
    pub bytes: u64,
    /// A [`FileKind`].
    pub kind: u16,
    /// 0.
    pub padding: [u8; 6],
}

/// A session's name, padded with NUL (`LIVEUPDATE_SESSION_NAME_LENGTH`).
pub type SessionName = [u8; NAME_LEN];

/// By what records refer to a session: its name in 64 bits, the same in every kernel and in every run.
///
/// Two names that a user does not choose on purpose get different ids.
#[must_use]
pub fn session_id(name: &SessionName) -> u64 {
    session_id_of(&zerocopy::transmute!(*name))
}

/// The same of the name as eight words in the machine's byte order: what a program can hold without going
/// through it byte by byte.
#[must_use]
pub fn session_id_of(name: &[u64; NAME_LEN / 8]) -> u64 {
    let mut id = 0x9e37_79b9_7f4a_7c15_u64;
    for word in name {
        // A multiplication spreads a bit upwards, the rotation brings it down again.
        id = (id ^ u64::from_le(*word))
            .wrapping_mul(0xff51_afd7_ed55_8ccd)
            .rotate_left(29);
    }
    id ^ (id >> 32)
}

/// The emulated orchestrator's `struct file` of a session: the first argument of its
/// `luo_session_ioctl(file, cmd, arg)` and the second of its `luo_session_release(inode, file)`.
///
/// Its `struct luo_file_set *` points to [`name`](Self::name), or to another one of that form.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SessionFile {
    /// Who calls; at the release, who got the session.
    pub task: Task,
    /// The session's name, padded with NUL.
    pub name: SessionName,
}

/// The argument of the sessions interface's file callbacks (`memfd_luo_*`): the emulated
/// `struct liveupdate_file_op_args` (`include/linux/liveupdate.h`, Linux 7.3.4), at the same offsets.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct FileArgs {
    /// The handler, of no interest to a hook.
    pub handler: u64,
    /// For finish: 0 never retrieved, 1 retrieved, or the negated errno of the try.
    pub retrieve_status: i32,
    /// 0.
    pub padding: u32,
    /// Points to a [`File`]. The retrieve callback is entered with 0 and sets it.
    pub file: u64,
    /// What was saved, as the handler knows it.
    pub serialized_data: u64,
    /// What the handler keeps until the jump.
    pub private_data: u64,
}

/// Every clock of one kernel, read at one moment: the payload of a [`Kind::Anchor`] record, whose header
/// has `CLOCK_MONOTONIC`.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Anchor {
    /// `/proc/sys/kernel/random/boot_id`; 0 if it cannot be read.
    pub boot_id: [u8; 16],
    /// The CPU's counter (x86-64: TSC, arm64: CNTVCT), which runs on through a kexec; 0: there is none.
    pub counter: u64,
    /// `CLOCK_MONOTONIC_RAW`, in nanoseconds.
    pub raw_ns: u64,
    /// `CLOCK_REALTIME`, in nanoseconds since 1970.
    pub realtime_ns: u64,
    /// The readings lie within this, in nanoseconds.
    pub spread_ns: u64,
    /// When the kernel handed over to user space (its log's `Run … as init process`), in nanoseconds since
    /// boot; 0 if that cannot be read.
    pub init_ns: u64,
    /// The resolution of `init_ns`, in nanoseconds.
    pub tick_ns: u64,
}

/// What a kernel tells of the kexec that it came from: the payload of a [`Kind::Handover`] record.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Handover {
    /// How many live updates there were since power-on, by the orchestrator's count; 0 if that is unknown.
    pub updates: u64,
    /// How many kexecs there were since power-on; 0 if that is unknown.
    pub kexecs: u32,
    /// 0.
    pub padding: u32,
    /// The release of the kernel before, padded with NUL, its end cut off where it is longer; nothing but NUL if
    /// it is unknown.
    pub release: [u8; 48],
}

numbered! {
    /// Which part of a policy a rule is in.
    Section: u8 {
        /// Who may ask for what.
        Access = 0, "access";
        /// What may be preserved.
        Preserve = 1, "preserve";
        /// How much.
        Quota = 2, "quota";
        /// What must be, before the kexec or a finish.
        Require = 3, "require";
        /// What else must hold before the kexec.
        Gate = 4, "gate";
    }
}

/// Bytes of a rule's name in a record.
pub const RULE_NAME_LEN: usize = 48;

/// What a rule is called: the payload of a [`Kind::Rule`] record. Verdicts have its number alone.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RuleName {
    /// The policy's, see [`Policy::generation`](crate::policy::Policy::generation).
    pub generation: u64,
    /// Its number there.
    pub number: u8,
    /// A [`Section`].
    pub section: u8,
    /// 1: it is enforced; 0: what it would refuse is told, and goes on.
    pub is_enforced: u8,
    /// 0.
    pub padding: [u8; 5],
    /// Padded with NUL, its end cut off where it is longer.
    pub name: [u8; RULE_NAME_LEN],
}

impl RuleName {
    /// The name of a rule; what is longer than 48 bytes is cut off at a character.
    #[must_use]
    pub fn new(
        generation: u64,
        number: u8,
        section: Section,
        is_enforced: bool,
        name: &str,
    ) -> Self {
        let mut bytes = [0; RULE_NAME_LEN];
        let length = name.floor_char_boundary(RULE_NAME_LEN);
        bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
        Self {
            generation,
            number,
            section: section as u8,
            is_enforced: u8::from(is_enforced),
            padding: [0; 5],
            name: bytes,
        }
    }
}

/// A policy was loaded: the payload of a [`Kind::Policy`] record, whose header says who did it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PolicyLoaded {
    /// See [`Policy::generation`](crate::policy::Policy::generation).
    pub generation: u64,
    /// Of its file.
    pub sha256: [u8; 32],
    /// How many rules it has.
    pub rules: u32,
    /// Of these, how many are enforced.
    pub enforced: u32,
    /// The user that whoever loaded it logged in as (`/proc/PID/loginuid`); `u32::MAX`: nobody logged in, or unknown.
    pub loginuid: u32,
    /// 0.
    pub padding: u32,
    /// 0: room for what comes.
    pub reserved: u64,
}

/// Bits of [`Header::flags`].
pub mod flags {
    /// The record was made at the function's return: `ret` and `dur_ns` hold.
    pub const EXIT: u8 = 1;
    /// The emulated orchestrator's, not the kernel's.
    pub const EMULATED: u8 = 1 << 1;
    /// The sessions interface, not v3.
    pub const SESSIONS: u8 = 1 << 2;
    /// The task's fields hold.
    pub const TASK: u8 = 1 << 3;
}

/// Bits of [`Call::known`]: which fields of the payload hold.
pub mod known {
    /// [`Call::token`](super::Call::token).
    pub const TOKEN: u16 = 1;
    /// [`Call::fd`](super::Call::fd).
    pub const FD: u16 = 1 << 1;
    /// [`Call::file_kind`](super::Call::file_kind) and [`Call::bytes`](super::Call::bytes).
    pub const FILE: u16 = 1 << 2;
    /// [`Call::cmd`](super::Call::cmd).
    pub const CMD: u16 = 1 << 3;
    /// [`Call::event`](super::Call::event).
    pub const EVENT: u16 = 1 << 4;
    /// [`Call::session`](super::Call::session).
    pub const SESSION: u16 = 1 << 5;
    /// [`Call::op_ns`](super::Call::op_ns).
    pub const OP: u16 = 1 << 6;
    /// [`Call::object`](super::Call::object).
    pub const OBJECT: u16 = 1 << 7;
    /// [`Call::inner_ret`](super::Call::inner_ret).
    pub const INNER_RET: u16 = 1 << 8;
}

/// What every record begins with.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Header {
    /// When the function was entered: `CLOCK_MONOTONIC`, in nanoseconds.
    pub t_ns: u64,
    /// From entry to return, in nanoseconds; holds with [`flags::EXIT`].
    pub dur_ns: u64,
    /// See [`Task::cgroup_id`].
    pub cgroup_id: u64,
    /// See [`Task::pid`].
    pub pid: u32,
    /// See [`Task::tid`].
    pub tid: u32,
    /// See [`Task::uid`].
    pub uid: u32,
    /// What the function returned: 0 or more, or a negated errno; holds with [`flags::EXIT`].
    pub ret: i32,
    /// Counts the records of this CPU, lost ones too, so that a gap is a loss; wraps.
    pub seq: u32,
    /// A [`Kind`].
    pub kind: u8,
    /// See [`flags`].
    pub flags: u8,
    /// The CPU on which the record was made.
    pub cpu: u16,
    /// See [`Task::comm`].
    pub comm: [u8; COMM_LEN],
}

/// The payload of a call into the orchestrator. Each field holds only if [`Call::known`] says so.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Call {
    /// The file's name.
    pub token: u64,
    /// The file's size, in bytes; of a [`Kind::Lost`] record, the number of records lost.
    pub bytes: u64,
    /// The descriptor that the caller gave.
    pub fd: i32,
    /// The ioctl command.
    pub cmd: u32,
    /// The event that was asked for (v3, [`crate::uapi::v3::Event`]).
    pub event: u32,
    /// A [`FileKind`].
    pub file_kind: u16,
    /// See [`known`].
    pub known: u16,
    /// The session, see [`session_id`].
    pub session: u64,
    /// Time in the file handler's callback, in nanoseconds.
    pub op_ns: u64,
    /// Stands for the kernel's `struct file`, the same for the same one as long as lu runs: callbacks know the
    /// file, and not its token.
    pub object: u64,
    /// What the function within returned, where the call returned something else (`luo_preserve_file`, say,
    /// and its ioctl's answer could not be written).
    pub inner_ret: i32,
    /// 0: room for what comes.
    pub reserved: u32,
}

/// One event, as it crosses the ring buffer.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Record {
    /// Who, when, what, with which result.
    pub header: Header,
    /// On what.
    pub call: Call,
}

const _: () = {
    assert!(size_of::<Task>() == 40);
    assert!(size_of::<File>() == 16);
    assert!(size_of::<SessionFile>() == 104);
    assert!(offset_of!(SessionFile, name) == 40);
    assert!(size_of::<FileArgs>() == 40);
    assert!(offset_of!(FileArgs, retrieve_status) == 8);
    assert!(offset_of!(FileArgs, file) == 16);
    assert!(offset_of!(FileArgs, serialized_data) == 24);
    assert!(size_of::<Header>() == 64);
    assert!(size_of::<Call>() == 64);
    assert!(size_of::<Anchor>() == 64);
    assert!(size_of::<Handover>() == 64);
    assert!(size_of::<RuleName>() == 64);
    assert!(size_of::<PolicyLoaded>() == 64);
    assert!(size_of::<Record>() == 128);
    assert!(offset_of!(Header, kind) == 44);
    assert!(offset_of!(Header, comm) == 48);
    assert!(offset_of!(Call, file_kind) == 28);
};

impl Header {
    /// Takes over who it was.
    pub fn set_task(&mut self, task: &Task) {
        self.pid = task.pid;
        self.tid = task.tid;
        self.uid = task.uid;
        self.cgroup_id = task.cgroup_id;
        self.comm = task.comm;
        if task.none == 0 {
            self.flags |= flags::TASK;
        }
    }
}

/// Counters of one CPU, in the order of the fields.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Records that hooks wanted to send; the next sequence number.
    pub made: u64,
    /// Of these, not sent because the ring buffer was full.
    pub ring_full: u64,
    /// Returns without a remembered entry, so nothing could be sent: hooks attached in the middle of
    /// the call, or more calls under way than can be remembered.
    pub no_entry: u64,
    /// Reads of the emulated orchestrator's memory that failed, so the record lacks what was there.
    pub bad_read: u64,
}

impl Record {
    /// What happened; `None` if the number is not one of this version's.
    #[must_use]
    pub const fn kind(&self) -> Option<Kind> {
        Kind::from_raw(self.header.kind)
    }

    /// Whether a hook made it, not lu itself.
    #[must_use]
    pub fn is_from_hook(&self) -> bool {
        !matches!(
            self.kind(),
            Some(
                Kind::Lost
                    | Kind::Untold
                    | Kind::Kernel
                    | Kind::Anchor
                    | Kind::LastBeat
                    | Kind::Handover
            )
        )
    }

    /// Whether the payload is a [`Call`].
    fn has_call(&self) -> bool {
        !matches!(
            self.kind(),
            Some(
                Kind::Verdict
                    | Kind::Tampered
                    | Kind::Untold
                    | Kind::Policy
                    | Kind::Rule
                    | Kind::Name
                    | Kind::Kernel
                    | Kind::Anchor
                    | Kind::LastBeat
                    | Kind::Handover
            )
        )
    }

    const fn has(&self, flag: u8) -> bool {
        self.header.flags & flag != 0
    }

    fn knows(&self, bit: u16) -> bool {
        self.has_call() && self.call.known & bit != 0
    }

    /// What is judged, and an attribute of it that is known.
    fn judged_with(&self, attribute: Attribute) -> Option<Judged> {
        self.judged()
            .filter(|judged| judged.known & attribute.bit() != 0)
    }

    /// Whether the function had returned when the record was made.
    #[must_use]
    pub const fn is_exit(&self) -> bool {
        self.has(flags::EXIT)
    }

    /// Whether it is the emulated orchestrator's.
    #[must_use]
    pub const fn is_emulated(&self) -> bool {
        self.has(flags::EMULATED)
    }

    /// Whether there is a task behind it.
    #[must_use]
    pub const fn has_task(&self) -> bool {
        self.has(flags::TASK)
    }

    /// The interface that it belongs to.
    #[must_use]
    pub const fn interface(&self) -> Interface {
        if self.has(flags::SESSIONS) {
            Interface::Sessions
        } else {
            Interface::V3
        }
    }

    /// What the function returned.
    #[must_use]
    pub fn ret(&self) -> Option<i32> {
        self.is_exit().then_some(self.header.ret)
    }

    /// How long the function took, in nanoseconds.
    #[must_use]
    pub fn dur_ns(&self) -> Option<u64> {
        self.is_exit().then_some(self.header.dur_ns)
    }

    /// When the function returned (`CLOCK_MONOTONIC`, nanoseconds).
    #[must_use]
    pub fn end_ns(&self) -> Option<u64> {
        self.dur_ns()
            .map(|dur| self.header.t_ns.saturating_add(dur))
    }

    /// The errno of a call that failed.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        self.ret().filter(|ret| *ret < 0).map(i32::wrapping_neg)
    }

    /// The file's name.
    #[must_use]
    pub fn token(&self) -> Option<u64> {
        let judged = self.judged_with(Attribute::Token);
        let call = self.knows(known::TOKEN).then_some(self.call.token);
        judged.map(|judged| judged.token).or(call)
    }

    /// The descriptor that the caller gave.
    #[must_use]
    pub fn fd(&self) -> Option<i32> {
        let judged = self.judged().filter(|judged| judged.fd >= 0);
        let call = self.knows(known::FD).then_some(self.call.fd);
        judged.map(|judged| judged.fd).or(call)
    }

    /// What sort of file it is.
    #[must_use]
    pub fn file_kind(&self) -> Option<FileKind> {
        let judged = self.judged_with(Attribute::Kind);
        let call = self.knows(known::FILE).then_some(self.call.file_kind);
        FileKind::from_raw(judged.map(|judged| judged.kind).or(call)?)
    }

    /// The file's size, in bytes.
    #[must_use]
    pub fn bytes(&self) -> Option<u64> {
        let judged = self.judged_with(Attribute::Bytes);
        let call = self.knows(known::FILE).then_some(self.call.bytes);
        judged.map(|judged| judged.bytes).or(call)
    }

    /// The ioctl command.
    #[must_use]
    pub fn cmd(&self) -> Option<u32> {
        self.knows(known::CMD).then_some(self.call.cmd)
    }

    /// The event that was asked for, as its number.
    #[must_use]
    pub fn event(&self) -> Option<u32> {
        self.knows(known::EVENT).then_some(self.call.event)
    }

    /// The session that it is about.
    #[must_use]
    pub fn session(&self) -> Option<u64> {
        let judged = self.judged().filter(|judged| judged.session != 0);
        let call = self.knows(known::SESSION).then_some(self.call.session);
        judged.map(|judged| judged.session).or(call)
    }

    /// Time in the file handler's callback, in nanoseconds.
    #[must_use]
    pub fn op_ns(&self) -> Option<u64> {
        self.knows(known::OP).then_some(self.call.op_ns)
    }

    /// What stands for the kernel's `struct file`.
    #[must_use]
    pub fn object(&self) -> Option<u64> {
        self.knows(known::OBJECT).then_some(self.call.object)
    }

    /// What the function returned that the call consists of: mostly what the call did.
    #[must_use]
    pub fn inner_ret(&self) -> Option<i32> {
        if self.knows(known::INNER_RET) {
            Some(self.call.inner_ret)
        } else {
            self.ret()
        }
    }

    /// The name of a session ([`Kind::Name`]), as 64 bytes.
    #[must_use]
    pub fn session_name(&self) -> Option<SessionName> {
        (self.kind() == Some(Kind::Name)).then(|| zerocopy::transmute!(self.call))
    }

    /// The kernel's release ([`Kind::Kernel`]), padded with NUL.
    #[must_use]
    pub fn kernel_release(&self) -> Option<[u8; 64]> {
        (self.kind() == Some(Kind::Kernel)).then(|| zerocopy::transmute!(self.call))
    }

    /// The clocks ([`Kind::Anchor`]).
    #[must_use]
    pub fn anchor(&self) -> Option<Anchor> {
        (self.kind() == Some(Kind::Anchor)).then(|| zerocopy::transmute!(self.call))
    }

    /// What the kernel tells of the kexec that it came from ([`Kind::Handover`]).
    #[must_use]
    pub fn handover(&self) -> Option<Handover> {
        (self.kind() == Some(Kind::Handover)).then(|| zerocopy::transmute!(self.call))
    }

    /// What a policy said ([`Kind::Verdict`]), or that its word was got around ([`Kind::Tampered`]).
    #[must_use]
    pub fn judged(&self) -> Option<Judged> {
        matches!(self.kind(), Some(Kind::Verdict | Kind::Tampered))
            .then(|| zerocopy::transmute!(self.call))
    }

    /// What a rule is called ([`Kind::Rule`]).
    #[must_use]
    pub fn rule_name(&self) -> Option<RuleName> {
        (self.kind() == Some(Kind::Rule)).then(|| zerocopy::transmute!(self.call))
    }

    /// A policy that was loaded ([`Kind::Policy`]).
    #[must_use]
    pub fn policy_loaded(&self) -> Option<PolicyLoaded> {
        (self.kind() == Some(Kind::Policy)).then(|| zerocopy::transmute!(self.call))
    }

    /// What a policy's programs could not do since the last such record ([`Kind::Untold`]).
    #[must_use]
    pub fn untold(&self) -> Option<Untold> {
        (self.kind() == Some(Kind::Untold)).then(|| zerocopy::transmute!(self.call))
    }

    /// A record that user space makes, with its payload as bytes.
    #[must_use]
    pub fn made(kind: Kind, t_ns: u64, payload: [u8; 64]) -> Self {
        Self {
            header: Header {
                t_ns,
                kind: kind as u8,
                ..Header::default()
            },
            call: zerocopy::transmute!(payload),
        }
    }

    /// How many records were lost, of a [`Kind::Lost`] record.
    #[must_use]
    pub fn lost(&self) -> Option<u64> {
        (self.kind() == Some(Kind::Lost)).then_some(self.call.bytes)
    }

    /// The thread's name, up to the first NUL.
    #[must_use]
    pub fn comm(&self) -> &[u8] {
        let comm = &self.header.comm;
        let end = comm.iter().position(|byte| *byte == 0).unwrap_or(COMM_LEN);
        &comm[..end]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_ids_depend_on_every_byte_of_the_name() {
        let name = *b"vm-0123456789-vm-0123456789-vm-0123456789-vm-0123456789-vm-0123\0";
        for at in 0..name.len() {
            for bit in 0..8 {
                let mut other = name;
                other[at] ^= 1 << bit;
                assert_ne!(
                    session_id(&name),
                    session_id(&other),
                    "byte {at}, bit {bit}"
                );
            }
        }
    }

    #[test]
    fn a_payload_that_is_no_call_is_not_read_as_one() {
        for kind in [
            Kind::Name,
            Kind::Rule,
            Kind::Policy,
            Kind::Kernel,
            Kind::Handover,
        ] {
            let record = Record::made(kind, 1, [0xff; 64]);
            assert_eq!(record.token(), None, "{kind:?}");
            assert_eq!(record.session(), None, "{kind:?}");
            assert_eq!(record.file_kind(), None, "{kind:?}");
            assert_eq!(record.fd(), None, "{kind:?}");
            assert_eq!(record.inner_ret(), None, "{kind:?}");
        }
    }

    #[test]
    fn a_verdict_tells_what_was_known_of_the_request_and_no_more() {
        let judged = Judged {
            session: 7,
            token: 5,
            bytes: 4096,
            known: Attribute::Token.bit(),
            fd: -1,
            kind: FileKind::Memfd as u16,
            ..Judged::default()
        };
        let record = Record::made(Kind::Verdict, 1, zerocopy::transmute!(judged));
        assert_eq!(record.judged(), Some(judged));
        assert_eq!((record.session(), record.token()), (Some(7), Some(5)));
        assert_eq!((record.fd(), record.bytes()), (None, None));
        assert_eq!(record.file_kind(), None);
        assert!(record.is_from_hook());
    }

    #[test]
    fn a_rules_name_is_cut_off_at_a_character() {
        let name = "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuä";
        let rule = RuleName::new(1, 2, Section::Quota, true, name);
        assert_eq!(&rule.name[..47], &name.as_bytes()[..47]);
        assert_eq!(rule.name[47], 0);
        let record = Record::made(Kind::Rule, 1, zerocopy::transmute!(rule));
        assert_eq!(record.rule_name(), Some(rule));
    }

    #[test]
    fn numbered_names_have_ids_of_their_own() {
        extern crate std;
        let mut ids = std::collections::BTreeSet::new();
        for number in 0..100_000_u32 {
            let mut name = [0; 64];
            let text = std::format!("vm-{number}");
            name[..text.len()].copy_from_slice(text.as_bytes());
            assert!(ids.insert(session_id(&name)), "{text}");
        }
    }
}
