//! What is remembered between the entry and the exit of a function, and the way out to user space.

use core::intrinsics::{AtomicOrdering, atomic_xadd};
use core::mem::MaybeUninit;

use aya_ebpf::bindings::BPF_RB_FORCE_WAKEUP;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_get_smp_processor_id, bpf_ktime_get_ns};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, LruHashMap, PerCpuArray, RingBuf};
use lu_common::event::{self, Call, Counters, Kind, Record, Task, known, session_id_of};
use zerocopy::FromZeros;

use crate::attach::{Exit, Way};
use crate::orchestrator::{Name, Orchestrator, Payload, global};

/// A value of zeros, written word by word.
///
/// For more than a few words the compiler calls `memset`, which here is a loop over bytes: five hundred
/// instructions for a record.
pub fn zeroed<T: FromZeros>() -> T {
    let mut value = MaybeUninit::uninit();
    // SAFETY: the pointer is to a `T`, uninitialised as it may be.
    unsafe { clear(value.as_mut_ptr()) };
    // SAFETY: every byte of it is 0 now, which the bound says is a value.
    unsafe { value.assume_init() }
}

/// Sets every byte at `at` to 0.
///
/// # Safety
///
/// `at` is valid for writes of a `T`.
pub unsafe fn clear<T: FromZeros>(at: *mut T) {
    const {
        assert!(align_of::<T>() == align_of::<u64>());
        assert!(size_of::<T>().is_multiple_of(size_of::<u64>()));
    }
    let words = at.cast::<u64>();
    for word in 0..size_of::<T>() / size_of::<u64>() {
        // SAFETY: within the `T`, whose size is that of whole words.
        let word = unsafe { words.add(word) };
        // SAFETY: aligned as the `T`, and valid for writes. Volatile, or it would be found out to be a
        // `memset`.
        unsafe { word.write_volatile(0) };
    }
}

/// How deep functions with hooks call each other. Each hook has a level of its own below those of its callers:
///
/// | level | functions |
/// |---|---|
/// | 0 | the outermost: open, release and ioctl of the device and of a session, reboot(2) (`liveupdate_reboot` stands for it where it has no hook) |
/// | 1 | `liveupdate_reboot` |
/// | 2 | steps of the whole machine: prepare, freeze, (de)serialize, shutdown |
/// | 3 | all files of a session, `device_shutdown` |
/// | 4 | one file's callback |
const LEVELS: usize = 5;

/// One call into the orchestrator, from its outermost function to that one's return.
#[repr(C)]
pub struct Context {
    /// 0: nobody's. Counts those who claim it.
    claims: u64,
    /// Whose it is: process and thread.
    owner: u64,
    /// The last session whose name was sent from here, see [`session`].
    named: u64,
    /// What the call turned out to be: a [`Kind`].
    kind: u64,
    /// Where the file will stand that the call gives out.
    pub gives_at: u64,
    /// Who called, where that must be remembered.
    task: Task,
    /// What is known so far of what the call is about: inner functions add to it.
    pub call: Call,
    /// The functions that were entered and have not returned, by level.
    within: [Entered; LEVELS],
}

/// One function of the orchestrator that has been entered.
#[repr(C)]
#[derive(Clone, Copy, FromZeros)]
pub struct Entered {
    /// When, `CLOCK_MONOTONIC` in nanoseconds.
    pub t_ns: u64,
    /// What the exit needs of the arguments, mostly a pointer.
    pub arg: u64,
    /// The [`Kind`]; 0: no function.
    kind: u64,
}

/// How many calls can be under way.
const CONTEXTS: u32 = 4096;

/// In how many places the context of a task can be.
const PROBES: u32 = 4;

/// The calls under way, each in a place that its thread's number tells, or in one of those behind it. An array,
/// because a look into one is a handful of instructions, and a hash map's is hundreds.
#[map]
static CALLS: Array<Context> = Array::with_max_entries(CONTEXTS, 0);

/// Sessions whose name was sent.
#[map]
static NAMED: LruHashMap<u64, u8> = LruHashMap::with_max_entries(16_384, 0);

/// By generation and number what stood in the record of a rule's name that was sent last, in 64 bits: several
/// emulated orchestrators may number theirs alike.
#[map]
static RULES: LruHashMap<u64, u64> = LruHashMap::with_max_entries(4096, 0);

/// The one way out. User space sets the size when it loads the programs.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);

/// Wakes the collector at once, when this kernel is about to go.
#[map]
static ALARM: RingBuf = RingBuf::with_byte_size(4096, 0);

#[map]
static COUNTERS: PerCpuArray<Counters> = PerCpuArray::with_max_entries(1, 0);

/// An atomic addition; what was there before.
///
/// # Safety
///
/// `at` points to an aligned integer that is valid for as long as the program runs.
pub unsafe fn add(at: *mut u64, value: u64) -> u64 {
    // SAFETY: the caller's promise. With the strongest order, because LLVM 22 takes an instruction without a
    // result for a relaxed add, used or not.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(at, value) }
}

/// Adds one to a counter of this CPU and returns what it was.
pub fn count(field: impl Fn(&mut Counters) -> *mut u64) -> u64 {
    let Some(counters) = COUNTERS.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: the map holds one `Counters` for each CPU and lives as long as the program; the
    // reference only serves to find the field, which is touched by atomic operations alone.
    let counter = field(unsafe { &mut *counters });
    // SAFETY: an aligned integer within the map. Atomic, because a program can be interrupted by another one on
    // its CPU.
    unsafe { add(counter, 1) }
}

/// A function returns within a call that is not known.
pub fn count_missing() {
    count(|counters| &raw mut counters.no_entry);
}

/// A place for the context of a thread.
fn place<'a>(id: u64, probe: u32) -> Option<&'a mut Context> {
    let context = CALLS.get_ptr_mut((id as u32).wrapping_add(probe) % CONTEXTS)?;
    // SAFETY: within the map, which lives as long as the program. Of another thread's context `claims` alone
    // is written to, atomically.
    Some(unsafe { &mut *context })
}

/// The call that this task is in.
pub fn context<'a>() -> Option<&'a mut Context> {
    let id = bpf_get_current_pid_tgid();
    (0..PROBES).find_map(|probe| place(id, probe).filter(|context| context.owner == id))
}

/// A context for this task, which is in no call. `None`: too many are under way.
fn claim<'a>() -> Option<&'a mut Context> {
    let id = bpf_get_current_pid_tgid();
    for probe in 0..PROBES {
        let context = place(id, probe)?;
        // Its own, of a call that never returned; or free.
        if context.owner == id {
            return Some(context);
        }
        let claims = &raw mut context.claims;
        // SAFETY: an aligned integer within the map.
        if unsafe { add(claims, 1) } == 0 {
            context.owner = id;
            return Some(context);
        }
        // SAFETY: the same.
        unsafe { add(claims, u64::MAX) };
    }
    None
}

/// Begins a call at its outermost function: its kind, the pointer that tells who calls (`None`: nobody), and
/// what the exit needs.
pub fn begin<O: Orchestrator>(
    kind: Kind,
    caller: Option<u64>,
    arg: u64,
) -> Option<&'static mut Context> {
    let context = claim()?;
    O::remember(caller, &mut context.task);
    context.kind = kind as u64;
    // SAFETY: the reference is valid for writes.
    unsafe { clear(&raw mut context.call) };
    for within in &mut context.within {
        within.kind = 0;
    }
    enter_in(context, 0, kind, arg);
    Some(context)
}

fn enter_in(context: &mut Context, level: usize, kind: Kind, arg: u64) {
    context.within[level] = Entered {
        t_ns: now(),
        arg,
        kind: kind as u64,
    };
}

/// Remembers that this task has entered the function of `kind` within a call. Where the outer functions have no
/// hook, the call begins here.
pub fn enter<O: Orchestrator>(level: usize, kind: Kind, arg: u64) -> Option<&'static mut Context> {
    let context = if let Some(context) = context() {
        context
    } else {
        let context = begin::<O>(kind, None, arg)?;
        context.within[0].kind = 0;
        context
    };
    enter_in(context, level, kind, arg);
    Some(context)
}

impl Context {
    /// An inner function tells what the call is.
    pub fn is(&mut self, kind: Kind) {
        self.kind = kind as u64;
    }

    /// When it entered the function of `kind`, which is at `level`, if it is in it.
    pub fn entered(&self, level: usize, kind: Kind) -> Option<u64> {
        let entered = &self.within[level];
        (entered.kind == kind as u64).then_some(entered.t_ns)
    }

    /// Whether it is in reboot(KEXEC), from where that has been let through at the latest.
    pub fn is_kexec(&self) -> bool {
        let outermost = self.within[0].kind;
        outermost == Kind::Kexec as u64 || outermost == Kind::Reboot as u64
    }

    /// Forgets the call once the function at `level` has returned, unless it was called by one with a hook.
    pub fn end(&mut self, level: usize) {
        if self.within[..level].iter().any(|outer| outer.kind != 0) {
            return;
        }
        self.owner = 0;
        // SAFETY: an aligned integer within the map.
        unsafe { add(&raw mut self.claims, u64::MAX) };
    }
}

/// Takes back what [`enter`] or [`begin`] remembered; a missing entry is counted.
pub fn leave(level: usize, kind: Kind) -> Option<(&'static mut Context, Entered)> {
    let found = context().and_then(|context| {
        let entered = context.within[level];
        (entered.kind == kind as u64).then_some((context, entered))
    });
    let Some((context, entered)) = found else {
        count_missing();
        return None;
    };
    context.within[level].kind = 0;
    Some((context, entered))
}

impl Entered {
    /// How long ago that was, in nanoseconds.
    pub fn elapsed(&self) -> u64 {
        now().wrapping_sub(self.t_ns)
    }
}

/// `CLOCK_MONOTONIC`, in nanoseconds.
pub fn now() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_ns() }
}

/// How a session's name stands in memory.
#[derive(Clone, Copy)]
pub enum Named {
    /// In a session: padded with NUL.
    Session(u64),
    /// As a caller gave it: up to its NUL.
    Text(u64),
}

/// The call is about the session with this name, if it can be read. The first time that a name is seen it is sent
/// too, so that user space can tell what the id stands for.
pub fn set_session<O: Orchestrator>(context: &mut Context, flags: u8, name: Option<Named>) {
    let id = match name {
        Some(Named::Session(at)) => name_sent::<O, true>(context, flags, at),
        Some(Named::Text(at)) => name_sent::<O, false>(context, flags, at),
        None => 0,
    };
    if id != 0 {
        context.call.session = id;
        context.call.known |= known::SESSION;
    }
}

/// The id of the name at an address, 0 where it cannot be read. A function of its own, so that the name is not on
/// the stack of its caller, whose room is 512 bytes with all that it calls (Linux 6.12 counts 32 for any
/// that are begun).
#[inline(never)]
fn name_sent<O: Orchestrator, const PADDED: bool>(
    context: &mut Context,
    flags: u8,
    at: u64,
) -> u64 {
    let name = if PADDED {
        O::session_name(at)
    } else {
        O::text(at)
    };
    let Some(name) = name else { return 0 };
    let id = session_id_of(&name);
    if context.named == id {
        return id;
    }
    let new = NAMED.get_ptr(id).is_none();
    if !new || send_name::<O>(context, &name, flags) {
        context.named = id;
        if new {
            let _ = NAMED.insert(id, 1, 0);
        }
    }
    id
}

/// A number that nobody outside knows; user space fills it in.
#[unsafe(no_mangle)]
static SECRET: u64 = 0;

/// What stands for a `struct file` in records: the same for the same one, and not its address.
pub fn object(file: u64) -> u64 {
    let mixed = file.wrapping_mul(global!(SECRET) | 1);
    mixed ^ (mixed >> 29)
}

/// When a record was made and what came of it.
pub struct Stamp {
    kind: u8,
    flags: u8,
    t_ns: u64,
    dur_ns: u64,
    ret: i32,
}

impl Stamp {
    /// A function returns `ret`.
    pub fn exit(way: &impl Way, kind: Kind, entered: &Entered, ret: i64) -> Self {
        Self {
            kind: kind as u8,
            flags: way.flags() | event::flags::EXIT,
            t_ns: entered.t_ns,
            dur_ns: entered.elapsed(),
            ret: ret as i32,
        }
    }

    /// A function was entered at `t_ns` and may never return.
    pub fn entry(way: &impl Way, kind: Kind, t_ns: u64) -> Self {
        Self {
            kind: kind as u8,
            flags: way.flags(),
            t_ns,
            dur_ns: 0,
            ret: 0,
        }
    }
}

/// The outermost function returns: sends the record of the whole call, and forgets it.
pub fn finish<X: Exit>(exit: &X, context: &mut Context, entered: &Entered) {
    // Mostly the call returns what the function within did.
    if context.call.inner_ret == exit.ret() as i32 {
        context.call.known &= !known::INNER_RET;
    }
    let mut stamp = Stamp::exit(exit, Kind::Ioctl, entered, exit.ret());
    stamp.kind = context.kind as u8;
    send::<X::Orchestrator>(Some(context), &stamp, Some(&context.call));
    context.end(0);
}

/// Wakes the collector: from now on every record may be this kernel's last.
pub fn alarm() {
    if let Some(slot) = ALARM.reserve::<u64>(0) {
        slot.discard(u64::from(BPF_RB_FORCE_WAKEUP));
    }
}

/// Sends a record with the payload that stands at an address. A function of its own, see [`name_sent`].
#[inline(never)]
pub fn send_payload<O: Orchestrator>(context: &Context, kind: Kind, flags: u8, at: u64) {
    if let Some(payload) = O::payload(at) {
        send_words::<O>(context, kind, flags, &payload);
    }
}

/// Sends the [`event::RuleName`] that stands at an address, unless it was the last of its number.
#[inline(never)]
pub fn send_rule<O: Orchestrator>(context: &Context, flags: u8, at: u64) {
    let Some(payload) = O::payload(at) else {
        return;
    };
    let [generation, number, ..] = payload;
    let key = generation << 8 | u64::from_le(number) & 0xff;
    let id = session_id_of(&payload);
    if let Some(sent) = RULES.get_ptr(key) {
        // SAFETY: within the map, which lives as long as the program.
        if unsafe { sent.read_volatile() } == id {
            return;
        }
    }
    if send_words::<O>(context, Kind::Rule, flags, &payload) {
        let _ = RULES.insert(key, id, 0);
    }
}

fn send_name<O: Orchestrator>(context: &Context, name: &Name, flags: u8) -> bool {
    send_words::<O>(context, Kind::Name, flags, name)
}

fn send_words<O: Orchestrator>(
    context: &Context,
    kind: Kind,
    flags: u8,
    payload: &Payload,
) -> bool {
    let stamp = Stamp {
        kind: kind as u8,
        flags,
        t_ns: now(),
        dur_ns: 0,
        ret: 0,
    };
    send::<O>(
        Some(context),
        &stamp,
        Some(zerocopy::transmute_ref!(payload)),
    )
}

/// Sends a record; whether there was room.
pub fn send<O: Orchestrator>(
    context: Option<&Context>,
    stamp: &Stamp,
    call: Option<&Call>,
) -> bool {
    let seq = count(|counters| &raw mut counters.made) as u32;
    let Some(mut slot) = EVENTS.reserve::<Record>(0) else {
        count(|counters| &raw mut counters.ring_full);
        return false;
    };
    // SAFETY: the slot has room for one record.
    unsafe { clear(slot.as_mut_ptr()) };
    // SAFETY: all-zero bytes are a record, and the slot is written through this reference alone.
    let record = unsafe { slot.assume_init_mut() };
    let header = &mut record.header;
    header.kind = stamp.kind;
    header.flags = stamp.flags;
    header.t_ns = stamp.t_ns;
    header.dur_ns = stamp.dur_ns;
    header.ret = stamp.ret;
    header.seq = seq;
    // SAFETY: the helper has no preconditions.
    header.cpu = unsafe { bpf_get_smp_processor_id() } as u16;
    if let Some(task) = O::task(context.map(|context| &context.task)) {
        header.set_task(&task);
    }
    if let Some(call) = call {
        record.call = *call;
    }
    slot.submit(0);
    true
}
