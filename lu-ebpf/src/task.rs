//! What is remembered between the entry and the exit of a function, and the way out to user space.

use core::intrinsics::{AtomicOrdering, atomic_xadd};
use core::mem::MaybeUninit;

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_get_smp_processor_id, bpf_ktime_get_ns};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{LruHashMap, PerCpuArray, RingBuf};
use lu_common::event::{self, Call, Counters, Kind, Record, Task, session_id_of};
use zerocopy::FromZeros;

use crate::attach::{Name, Orchestrator};

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
unsafe fn clear<T: FromZeros>(at: *mut T) {
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

/// How deep functions with hooks call each other, at most: reboot(2), `liveupdate_reboot`,
/// `luo_session_serialize`, `luo_file_freeze`, `memfd_luo_freeze`.
const DEPTH: usize = 5;

/// One call into the orchestrator, from its outermost function to that one's return.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Context {
    /// Who called.
    pub task: Task,
    /// What is known so far of what the call is about: inner functions add to it.
    pub call: Call,
    /// The functions that were entered and have not returned, the outermost first.
    within: [Entered; DEPTH],
}

/// One function of the orchestrator that has been entered.
#[repr(C)]
#[derive(Clone, Copy, FromZeros)]
pub struct Entered {
    pub t_ns: u64,
    /// The argument that the exit needs, mostly a pointer.
    pub arg: u64,
    /// The [`Kind`]; 0: no function.
    kind: u64,
}

/// Tasks within the orchestrator. Least recently used, so that a call that never returns costs
/// nothing for ever.
#[map]
static CONTEXTS: LruHashMap<u64, Context> = LruHashMap::with_max_entries(4096, 0);

/// The token under which each `struct file` was preserved. The kernel gives callbacks the file alone.
#[map]
static TOKENS: LruHashMap<u64, u64> = LruHashMap::with_max_entries(131_072, 0);

/// Sessions whose name was sent.
#[map]
static NAMED: LruHashMap<u64, u8> = LruHashMap::with_max_entries(16_384, 0);

/// The one way out. User space sets the size when it loads the programs.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);

#[map]
static COUNTERS: PerCpuArray<Counters> = PerCpuArray::with_max_entries(1, 0);

/// Adds one to a counter of this CPU and returns what it was.
pub fn count(field: impl Fn(&mut Counters) -> *mut u64) -> u64 {
    let Some(counters) = COUNTERS.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: the map holds one `Counters` for each CPU and lives as long as the program; the
    // reference only serves to find the field, which is touched by atomic operations alone.
    let counter = field(unsafe { &mut *counters });
    // SAFETY: the pointer is to an aligned integer within the map. Atomic, because a program can be
    // interrupted by another one on its CPU; with the strongest order, because LLVM 22 takes an
    // instruction without a result for a relaxed add, used or not.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(counter, 1) }
}

/// Begins a call at its outermost function, given the pointer that tells who calls.
pub fn open<O: Orchestrator>(pointer: u64) {
    begin(O::caller(pointer));
}

/// Begins a call of this task. Without knowing whose it is, it is nobody's.
fn begin(task: Option<Task>) {
    let context = Context {
        task: task.unwrap_or_else(|| Task {
            none: 1,
            ..zeroed()
        }),
        call: zeroed(),
        within: zeroed(),
    };
    let _ = CONTEXTS.insert(bpf_get_current_pid_tgid(), context, 0);
}

/// Forgets the call that this task is in, if any: the new kernel begins.
pub fn forget() {
    let _ = CONTEXTS.remove(bpf_get_current_pid_tgid());
}

/// The call that this task is in.
pub fn context<'a>() -> Option<&'a mut Context> {
    // SAFETY: the entry is this thread's own, and no program sleeps, so nothing else writes to it now.
    CONTEXTS
        .get_ptr_mut(bpf_get_current_pid_tgid())
        .map(|context| unsafe { &mut *context })
}

/// Remembers that this task has entered the function of `kind`, and adds what that tells of the call. Where
/// the outer functions have no hook, the call begins here.
pub fn enter<O: Orchestrator>(kind: Kind, arg: u64, learn: impl Fn(&mut Call)) {
    if context().is_none() {
        begin(O::unannounced());
    }
    let Some(context) = context() else { return };
    learn(&mut context.call);
    let entered = Entered {
        // SAFETY: the helper has no preconditions.
        t_ns: unsafe { bpf_ktime_get_ns() },
        arg,
        kind: kind as u64,
    };
    if let Some(free) = context.within.iter_mut().find(|within| within.kind == 0) {
        *free = entered;
    }
}

/// Takes back what [`enter`] remembered; a missing entry is counted.
pub fn leave(context: &mut Context, kind: Kind) -> Option<Entered> {
    let found = context
        .within
        .iter_mut()
        .find(|within| within.kind == kind as u64);
    let Some(found) = found else {
        count(|counters| &raw mut counters.no_entry);
        return None;
    };
    let entered = *found;
    found.kind = 0;
    Some(entered)
}

/// Forgets the call once its outermost function has returned.
pub fn end(context: &Context) {
    if context.within[0].kind == 0 {
        forget();
    }
}

impl Context {
    /// When it entered the function of `kind`, if it is in it.
    pub fn entered(&self, kind: Kind) -> Option<u64> {
        self.within
            .iter()
            .find(|within| within.kind == kind as u64)
            .map(|within| within.t_ns)
    }
}

impl Entered {
    /// How long ago that was, in nanoseconds.
    pub fn elapsed(&self) -> u64 {
        // SAFETY: the helper has no preconditions.
        unsafe { bpf_ktime_get_ns() }.wrapping_sub(self.t_ns)
    }
}

/// A missing entry where there is not even a call.
pub fn count_missing() {
    count(|counters| &raw mut counters.no_entry);
}

/// The session whose name is at an address. The first time that the name is seen it is sent too, so that
/// user space can tell what the id stands for.
#[expect(
    clippy::inline_always,
    reason = "the verifier refuses an `Option` as a function's argument: its value may be uninitialised"
)]
#[inline(always)]
pub fn session<O: Orchestrator>(at: Option<u64>, flags: u8) -> Option<u64> {
    let id = named::<O>(at?, flags);
    (id != 0).then_some(id)
}

/// The same as a number, 0 for none. A function of its own, so that the name is not on the stack of its
/// caller, whose room is 512 bytes with all that it calls (Linux 6.12 counts 32 for any that are begun).
#[inline(never)]
fn named<O: Orchestrator>(at: u64, flags: u8) -> u64 {
    let Some(name) = O::name(at) else { return 0 };
    let id = session_id_of(&name);
    if NAMED.get_ptr(id).is_none() && send_name::<O>(&name, flags) {
        let _ = NAMED.insert(id, 1, 0);
    }
    id
}

/// Remembers the token of a `struct file`.
pub fn name_file(file: u64, token: u64) {
    let _ = TOKENS.insert(file, token, 0);
}

/// The token of a `struct file`.
pub fn token_of(file: u64) -> Option<u64> {
    TOKENS.get_ptr(file).map(|token| {
        // SAFETY: the pointer is into the map, which lives as long as the program.
        unsafe { *token }
    })
}

/// When a record was made and what came of it.
struct Stamp {
    kind: Kind,
    flags: u8,
    t_ns: u64,
    dur_ns: u64,
    ret: i32,
}

/// Sends the record of a function that returns `ret`.
pub fn send_exit<O: Orchestrator>(kind: Kind, flags: u8, entered: &Entered, ret: i64, call: &Call) {
    let stamp = Stamp {
        kind,
        flags: flags | event::flags::EXIT,
        t_ns: entered.t_ns,
        dur_ns: entered.elapsed(),
        ret: ret as i32,
    };
    send::<O>(&stamp, |record| record.call = *call);
}

/// Sends the record of a function that has been entered and may never return.
pub fn send_entry<O: Orchestrator>(kind: Kind, flags: u8, call: Option<&Call>) {
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    send_entry_at::<O>(kind, flags, now, call);
}

/// The same of one that was entered at `t_ns`.
pub fn send_entry_at<O: Orchestrator>(kind: Kind, flags: u8, t_ns: u64, call: Option<&Call>) {
    let stamp = Stamp {
        kind,
        flags,
        t_ns,
        dur_ns: 0,
        ret: 0,
    };
    send::<O>(&stamp, |record| {
        if let Some(call) = call {
            record.call = *call;
        }
    });
}

fn send_name<O: Orchestrator>(name: &Name, flags: u8) -> bool {
    let stamp = Stamp {
        kind: Kind::Name,
        flags,
        // SAFETY: the helper has no preconditions.
        t_ns: unsafe { bpf_ktime_get_ns() },
        dur_ns: 0,
        ret: 0,
    };
    send::<O>(&stamp, |record| record.call = zerocopy::transmute!(*name))
}

/// Sends a record with what `fill` puts into it; whether there was room.
fn send<O: Orchestrator>(stamp: &Stamp, fill: impl Fn(&mut Record)) -> bool {
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
    header.kind = stamp.kind as u8;
    header.flags = stamp.flags;
    header.t_ns = stamp.t_ns;
    header.dur_ns = stamp.dur_ns;
    header.ret = stamp.ret;
    header.seq = seq;
    // SAFETY: the helper has no preconditions.
    header.cpu = unsafe { bpf_get_smp_processor_id() } as u16;
    if let Some(context) = context() {
        header.set_task(&context.task);
    } else if let Some(task) = O::unannounced() {
        header.set_task(&task);
    }
    fill(record);
    slot.submit(0);
    true
}
