//! What the current task asks for, from the LSM hook to the end of its call.

use core::mem::size_of;

use aya_ebpf::btf_maps::{Array as BtfArray, ArrayOfMaps};
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::{
    bpf_copy_from_user, bpf_get_current_ancestor_cgroup_id, bpf_get_current_task_btf,
    bpf_probe_read_kernel, bpf_probe_read_user, bpf_task_pt_regs,
};
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, HashMap};
use lu_common::layout::{self, Landmarks};
use lu_common::policy::{
    Attribute, Decision, InForce, LARGEST, LEVELS, Operation, RULES, Request, Text, evaluate,
    evaluate_unconditional, same, tampered,
};

use super::standing::{self, Kernel as Account, NO_PREALLOC};
use super::tell;
use crate::call::add;
use crate::orchestrator::{
    Checked, Kernel, Name, Orchestrator as _, REBOOT_KEXEC, Read as _, global,
};

/// Where things are; user space fills it in.
#[unsafe(no_mangle)]
pub static ASKED_OFFSETS: layout::Asked = layout::Asked::NONE;

/// What things are compared with; user space fills it in.
#[unsafe(no_mangle)]
pub static LANDMARKS: Landmarks = Landmarks {
    device_operations: 0,
    session_operations: 0,
    kexec_image: 0,
    device: 0,
    kexec_image_id: 0,
};

/// A member of what a pointer points to, by the helper.
macro_rules! read {
    (asked $pointer:expr, $member:ident) => {{
        let offset = $crate::orchestrator::global!($crate::enforce::asked::ASKED_OFFSETS.$member);
        if offset == lu_common::layout::ABSENT {
            None
        } else {
            <$crate::orchestrator::Checked as $crate::orchestrator::Read>::read(
                $pointer + u64::from(offset),
            )
        }
    }};
    ($pointer:expr, $member:ident) => {{
        let offset = $crate::orchestrator::global!($crate::orchestrator::OFFSETS.$member);
        if offset == lu_common::layout::ABSENT {
            None
        } else {
            <$crate::orchestrator::Checked as $crate::orchestrator::Read>::read(
                $pointer + u64::from(offset),
            )
        }
    }};
}
pub(super) use read;

/// A landmark.
macro_rules! landmark {
    ($name:ident) => {
        $crate::orchestrator::global!($crate::enforce::asked::LANDMARKS.$name)
    };
}
pub(super) use landmark;

/// The policy in force. User space puts another one in its place, whole.
#[btf_map]
static POLICY: ArrayOfMaps<BtfArray<InForce, 1>, 1> = ArrayOfMaps::new();

/// What tasks ask for, by their thread, which alone removes it: a program may sleep over it.
#[map]
static ASKED: HashMap<u64, Asked> = HashMap::with_max_entries(65_536, NO_PREALLOC);

/// What a request gets that cannot be remembered, where a policy is enforced: `EAGAIN`.
const NO_ROOM: i32 = 11;

/// Nothing is asked for: what [`Asked::begin`] copies.
#[map]
static BLANK: Array<Asked> = Array::with_max_entries(1, 0);

/// The thread that asks for what must be refused, to prove that it is; and 1, where it has just put a policy in force.
#[map]
static SELF_TEST: Array<u64> = Array::with_max_entries(2, 0);

/// What it is told: `ENOTUNIQ`, which no one else says.
pub const SELF_TEST_ERRNO: i32 = 76;

/// A request under way.
#[repr(C)]
pub struct Asked {
    /// The request.
    pub request: Request,
    /// The `struct file *` that is to be preserved; 0: none, or unknown.
    pub file: u64,
    /// Its descriptor.
    pub fd: i32,
    /// Once it is judged: the rule that decided.
    pub rule: u32,
    /// The kernel's `struct luo_session *` of the session's file; 0: none, or unknown.
    session: u64,
    /// 1: what it asks for is counted in that session and in all, though it may yet fail.
    reserved: u64,
}

/// A session: its name and the kernel's `struct luo_session *`, 0 where they cannot be read.
pub struct Session {
    /// Its name.
    pub name: Text,
    /// Which of those with this name.
    pub pointer: u64,
}

/// The ioctl arguments of the sessions interface (`include/uapi/linux/liveupdate.h`): where a name is, and a
/// descriptor and its token.
const NAME_AT: u64 = 8;
const FD_AT: u64 = 4;

pub fn current_task() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_get_current_task_btf() as u64 }
}

/// Whether this thread is the one that asks for what must be refused. What it has put in force is told: so it is known
/// whose doing that was, whoever listens.
#[inline(always)]
pub fn is_self_test() -> bool {
    let this = bpf_get_current_pid_tgid();
    if SELF_TEST.get(0).is_none_or(|tested| *tested != this) {
        return false;
    }
    if SELF_TEST.get(1).is_some_and(|is_new| *is_new == 1)
        && let Some(in_force) = POLICY.get_value(0, &0)
    {
        let loginuid = read!(asked current_task(), task_loginuid);
        tell::loaded(in_force, loginuid.unwrap_or(u32::MAX));
    }
    true
}

/// Whether this task is in reboot(KEXEC): by the third argument of its system call, which a 32-bit program leaves in the
/// same register.
#[inline(always)]
pub fn is_kexec() -> bool {
    // SAFETY: the helper has no preconditions.
    let task = unsafe { bpf_get_current_task_btf() };
    // SAFETY: the task is the current one, as the helper has it.
    let registers = unsafe { bpf_task_pt_regs(task) };
    Kernel::<Checked>::reboot_command(registers as u64) == Some(REBOOT_KEXEC)
}

/// Judges a request that nothing more is to be known of than who asks, and which session's file it is about. With
/// `CONDITIONS` as in [`Asked::judge`].
#[inline(never)]
pub fn judge_alone<const CONDITIONS: bool>(operation: Operation, file: u64) -> i32 {
    let Some(asked) = Asked::begin(operation) else {
        return unremembered(operation);
    };
    if file != 0 {
        asked.take_session(file);
    }
    let answer = asked.judge::<CONDITIONS>();
    Asked::end();
    answer
}

/// What becomes of a request for which there is no room. Who cannot finish would strand what was handed over.
#[inline(always)]
pub fn unremembered(operation: Operation) -> i32 {
    tell::count_unjudged();
    let in_force = POLICY.get_value(0, &0);
    let is_enforced = in_force.is_some_and(|in_force| in_force.policy.enforce != 0);
    if is_enforced && operation as u8 != Operation::Finish as u8 {
        -NO_ROOM
    } else {
        0
    }
}

/// Copies from the caller's memory; whether it could.
#[inline(always)]
fn copy<const SLEEPABLE: bool, T>(to: &mut T, from: u64) -> bool {
    let size = size_of::<T>() as u32;
    let (to, from) = ((&raw mut *to).cast(), from as *const _);
    if SLEEPABLE {
        // SAFETY: the helper writes no more than it is told there is room for.
        unsafe { bpf_copy_from_user(to, size, from) == 0 }
    } else {
        // SAFETY: the same.
        unsafe { bpf_probe_read_user(to, size, from) == 0 }
    }
}

impl Asked {
    /// What this task asks for.
    #[inline(always)]
    pub fn current<'a>() -> Option<&'a mut Self> {
        let asked = ASKED.get_ptr_mut(bpf_get_current_pid_tgid())?;
        // SAFETY: within the map, and this task's alone: nobody else removes it.
        Some(unsafe { &mut *asked })
    }

    /// A request of this task begins; `None`: there is no room, see [`unremembered`].
    #[inline(always)]
    pub fn begin<'a>(operation: Operation) -> Option<&'a mut Self> {
        // One that ended without our knowing.
        Self::end();
        let blank = BLANK.get(0)?;
        ASKED.insert(bpf_get_current_pid_tgid(), blank, 0).ok()?;
        let asked = Self::current()?;
        asked.request.operation = operation as u32;
        asked.fd = -1;
        asked.take_caller();
        Some(asked)
    }

    /// It is over.
    #[inline(always)]
    pub fn end() {
        if let Some(asked) = Self::current() {
            asked.give_back();
            let _ = ASKED.remove(bpf_get_current_pid_tgid());
        }
    }

    /// Whether this is asked for.
    pub fn is(&self, operation: Operation) -> bool {
        self.request.operation == operation as u32
    }

    /// Whether an attribute is known.
    pub fn known(&self, attribute: Attribute) -> bool {
        self.request.known & attribute.bit() != 0
    }

    fn learn(&mut self, attribute: Attribute) {
        self.request.known |= attribute.bit();
    }

    /// Who asks.
    #[inline(never)]
    fn take_caller(&mut self) {
        let task = current_task();
        let cred: Option<u64> = read!(task, task_cred);
        if let Some(cred) = cred {
            if let Some(uid) = read!(asked cred, cred_euid) {
                let uid: u32 = uid;
                self.request.uid = u64::from(uid);
                self.learn(Attribute::Uid);
            }
            if let Some(gid) = read!(asked cred, cred_egid) {
                let gid: u32 = gid;
                self.request.gid = u64::from(gid);
                self.learn(Attribute::Gid);
            }
        }
        if let Some((device, inode)) = executable(task) {
            self.request.device = device;
            self.request.inode = inode;
            self.learn(Attribute::Exe);
        }
        let mut level = 0;
        while level < LEVELS {
            // SAFETY: the helper has no preconditions.
            let id = unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) };
            if id == 0 {
                break;
            }
            self.request.cgroups[level & (LEVELS - 1)] = id;
            level += 1;
        }
        if level > 0 {
            self.learn(Attribute::Cgroup);
        }
    }

    /// The session is that of its file.
    #[inline(always)]
    pub fn take_session(&mut self, file: u64) {
        self.session = read!(file, file_private_data).unwrap_or(0);
        let at = Kernel::<Checked>::name_of_file(file).unwrap_or(0);
        let name = &mut self.request.name;
        let to = (&raw mut name.text).cast();
        // SAFETY: the helper writes no more than it is told there is room for.
        let read =
            unsafe { bpf_probe_read_kernel(to, size_of_val(&name.text) as u32, at as *const _) };
        if at != 0 && read == 0 {
            self.take_name();
        }
    }

    /// The session is the one with the name that an argument has.
    #[inline(always)]
    pub fn read_name<const SLEEPABLE: bool>(&mut self, arg: u64) {
        if copy::<SLEEPABLE, _>(&mut self.request.name.text, arg + NAME_AT) {
            self.take_name();
        }
    }

    /// The name was read: as long as it is, and nothing behind it.
    #[inline(never)]
    fn take_name(&mut self) {
        let name = &mut self.request.name;
        name.cut();
        self.learn(Attribute::Session);
    }

    /// The token, and the file behind the descriptor.
    #[inline(always)]
    pub fn read_file<const SLEEPABLE: bool>(&mut self, arg: u64, operation: Operation) {
        // The descriptor and the token lie next to each other.
        let mut words = [0_u32; 3];
        if !copy::<SLEEPABLE, _>(&mut words, arg + FD_AT) {
            return;
        }
        self.request.token = u64::from(words[1]) | (u64::from(words[2]) << 32);
        self.learn(Attribute::Token);
        if operation == Operation::Preserve {
            self.fd = words[0] as i32;
            self.take_file();
        }
    }

    #[inline(never)]
    fn take_file(&mut self) {
        let Some(file) = file_of(self.fd) else {
            return;
        };
        self.file = file;
        if let Some(facts) = Kernel::<Checked>::file(file) {
            self.request.kind = u64::from(facts.kind);
            self.request.bytes = capped(facts.bytes);
            self.request.known |= Attribute::Kind.bit() | Attribute::Bytes.bit();
        }
    }

    /// What becomes of it: 0, or a negated errno. With `CONDITIONS` for what can have some
    /// ([`Operation::has_conditions`]).
    #[inline(always)]
    pub fn judge<const CONDITIONS: bool>(&mut self) -> i32 {
        if self.is(Operation::Preserve) {
            let request = &self.request;
            let reserved = standing::change(&request.name.text, self.session, 1, request.bytes);
            self.reserved = u64::from(reserved);
        }
        let answer = if CONDITIONS {
            judge::<true>(self)
        } else {
            judge::<false>(self)
        };
        if answer != 0 {
            Self::end();
        }
        answer
    }

    /// What was counted in advance is not, unless it has come true.
    #[inline(always)]
    fn give_back(&mut self) {
        if self.reserved != 0 {
            self.reserved = 0;
            let bytes = self.request.bytes.wrapping_neg();
            let name = &self.request.name.text;
            standing::change(name, self.session, u64::MAX, bytes);
        }
    }

    /// The file is preserved, in that session and of that size.
    #[inline(always)]
    pub fn settle(&mut self, session: &Session, bytes: Option<u64>) {
        let bytes = bytes.unwrap_or(self.request.bytes);
        if self.reserved == 0 || self.session != session.pointer {
            self.give_back();
            standing::change(&session.name, session.pointer, 1, bytes);
        } else {
            // It keeps its place.
            self.reserved = 0;
            let more = bytes.wrapping_sub(self.request.bytes);
            standing::change(&session.name, session.pointer, 0, more);
        }
    }
}

/// The policy's verdict on it, told where it is not a plain allow.
#[inline(never)]
fn judge<const CONDITIONS: bool>(asked: &mut Asked) -> i32 {
    let (Some(in_force), Some(account)) = (POLICY.get_value_ptr_mut(0, &0), Account::new()) else {
        return 0;
    };
    // SAFETY: the map's only value, alive as long as this program runs. Its policy does not change, and its counts are
    // touched by atomic additions alone.
    let in_force = unsafe { &mut *in_force };
    let (policy, request) = (&in_force.policy, &asked.request);
    let verdict = if CONDITIONS {
        evaluate(policy, request, &account)
    } else {
        evaluate_unconditional(policy, request, &account)
    };
    // What comes back from a map has no past: the verifier does not follow it through all of the judgement.
    let place = &raw mut asked.rule;
    // SAFETY: the reference is valid for writes.
    unsafe { place.write_volatile(u32::from(verdict.rule)) };
    // SAFETY: and for reads.
    let rule = unsafe { place.read_volatile() } as u8;
    let counts = &mut in_force.counts[(rule as usize).min(RULES)];
    let is_news = counts.decided[1] | counts.decided[2] | counts.unsure == 0;
    let decided = match verdict.decision {
        Decision::Allow => &raw mut counts.decided[0],
        Decision::WouldDeny => &raw mut counts.decided[1],
        Decision::Deny => &raw mut counts.decided[2],
    };
    // SAFETY: an aligned integer within the map.
    unsafe { add(decided, 1) };
    if verdict.unsure {
        // SAFETY: the same.
        unsafe { add(&raw mut counts.unsure, 1) };
    }
    if verdict.decision != Decision::Allow || verdict.unsure {
        let errno = match verdict.decision {
            Decision::Allow => 0,
            _ => in_force.policy.errno_of(rule),
        };
        if is_news {
            // Whoever listens may not have loaded this policy.
            tell::rule(&in_force.names[rule as usize & (RULES - 1)]);
        }
        tell::verdict(asked, in_force.policy.generation, &verdict, errno);
    }
    match verdict.decision {
        Decision::Deny => -i32::from(in_force.policy.errno_of(rule)),
        _ => 0,
    }
}

/// A size that can be added up.
#[inline(always)]
pub fn capped(bytes: u64) -> u64 {
    if bytes < LARGEST { bytes } else { LARGEST }
}

/// The executable of a task: its file system's device and its inode.
#[inline(always)]
fn executable(task: u64) -> Option<(u64, u64)> {
    let memory: u64 = read!(asked task, task_mm)?;
    let file: u64 = read!(asked memory, mm_exe_file)?;
    let inode: u64 = read!(file, file_f_inode)?;
    let number: u64 = read!(asked inode, inode_i_ino)?;
    let file_system: u64 = read!(inode, inode_i_sb)?;
    let device: u32 = read!(asked file_system, sb_s_dev)?;
    Some((u64::from(device), number))
}

/// The file behind a descriptor of the current task.
#[inline(always)]
fn file_of(fd: i32) -> Option<u64> {
    let files: u64 = read!(asked current_task(), task_files)?;
    let table: u64 = read!(asked files, files_fdt)?;
    let room: u32 = read!(asked table, fdt_max_fds)?;
    if fd as u32 >= room {
        return None;
    }
    let all: u64 = read!(asked table, fdt_fd)?;
    let file: u64 = Checked::read(all + u64::from(fd as u32) * 8)?;
    (file != 0).then_some(file)
}

/// The session of a session's file.
#[inline(always)]
pub fn session_of_file(file: u64) -> Session {
    session_of(read!(file, file_private_data))
}

/// The session around a `struct luo_file_set *`.
#[inline(always)]
pub fn session_of_set(set: u64) -> Session {
    let offset = global!(crate::orchestrator::OFFSETS.session_file_set);
    session_of((offset != layout::ABSENT).then(|| set - u64::from(offset)))
}

#[inline(always)]
fn session_of(pointer: Option<u64>) -> Session {
    let pointer = pointer.unwrap_or(0);
    Session {
        name: name_of(pointer).unwrap_or_default(),
        pointer,
    }
}

/// The name of a `struct luo_session *`.
#[inline(always)]
fn name_of(pointer: u64) -> Option<Name> {
    let offset = global!(crate::orchestrator::OFFSETS.session_name);
    if pointer == 0 || offset == layout::ABSENT {
        return None;
    }
    Kernel::<Checked>::session_name(pointer + u64::from(offset))
}

/// The file that was last added to a `struct luo_file_set *`.
#[inline(always)]
pub fn newest_file(set: u64) -> Option<u64> {
    let head = global!(ASKED_OFFSETS.set_files_list);
    let place = global!(ASKED_OFFSETS.luo_file_list);
    if head == layout::ABSENT || place == layout::ABSENT {
        return None;
    }
    // `struct list_head`: next, and previous, which of the head is the last.
    let last: u64 = Checked::read(set + u64::from(head) + 8)?;
    read!(asked last - u64::from(place), luo_file_file)
}

/// How what was done differs from what was judged, see [`tampered`].
#[inline(always)]
pub fn differs(operation: Operation, session: &Session, token: u64) -> u8 {
    let Some(asked) = Asked::current().filter(|asked| asked.is(operation)) else {
        return tampered::UNASKED;
    };
    let mut differs = 0;
    if same(&asked.request.name.text, &session.name) == 0 {
        differs |= tampered::SESSION;
    }
    if asked.request.token != token {
        differs |= tampered::TOKEN;
    }
    differs
}

/// Tells of what was not done as it was judged.
#[inline(always)]
pub fn tell_tampered(operation: Operation, session: &Session, token: u64, differs: u8) {
    if differs != 0 {
        let generation = POLICY
            .get_value(0, &0)
            .map_or(0, |in_force| in_force.policy.generation);
        tell::tampered(operation, generation, &session.name, token, differs);
    }
}

/// Both.
#[inline(never)]
pub fn compare(operation: Operation, session: &Session, token: u64) {
    tell_tampered(
        operation,
        session,
        token,
        differs(operation, session, token),
    );
}
