//! What is remembered between the entry and the exit of a function, and the way out to user space.

use core::intrinsics::{AtomicOrdering, atomic_xadd};
use core::mem::MaybeUninit;

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_get_smp_processor_id, bpf_ktime_get_ns};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{LruHashMap, PerCpuArray, RingBuf};
use lu_common::event::{self, Call, Counters, Kind, Record, Task, known, session_id_of};

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

/// One system call into the orchestrator, from its outermost function to that one's return.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Context {
    /// Who called.
    pub task: Task,
    /// What is known so far of what the call is about: inner functions add to it.
    pub call: Call,
    /// The kind of the outermost function, whose return ends the call.
    outermost: u64,
}

/// One function of the orchestrator that has been entered.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Entered {
    pub t_ns: u64,
    /// The argument that the exit needs, mostly a pointer.
    pub arg: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Function {
    thread: u64,
    kind: u64,
}

/// Tasks within the orchestrator. Least recently used, so that a call that never returns costs
/// nothing for ever.
#[map]
static CONTEXTS: LruHashMap<u64, Context> = LruHashMap::with_max_entries(4096, 0);

#[map]
static ENTERED: LruHashMap<Function, Entered> = LruHashMap::with_max_entries(8192, 0);

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

/// Remembers who calls, at the outermost function, given the pointer that tells it.
pub fn open_context<O: Orchestrator>(kind: Kind, pointer: u64) {
    begin(kind, O::caller(pointer));
}

/// The same at a function that is an inner one where the outer ones have hooks.
pub fn ensure_context<O: Orchestrator>(kind: Kind) {
    if context().is_none() {
        begin(kind, O::unannounced());
    }
}

fn begin(kind: Kind, task: Option<Task>) {
    if let Some(task) = task {
        let context = Context {
            task,
            call: zeroed(),
            outermost: kind as u64,
        };
        let _ = CONTEXTS.insert(bpf_get_current_pid_tgid(), context, 0);
    }
}

/// Forgets who called, at the return of the function of `kind`, if that was the outermost one.
pub fn close_context(kind: Kind) {
    if context().is_some_and(|context| context.outermost == kind as u64) {
        let _ = CONTEXTS.remove(bpf_get_current_pid_tgid());
    }
}

/// Forgets who called, whoever it was: the new kernel begins.
pub fn forget_context() {
    let _ = CONTEXTS.remove(bpf_get_current_pid_tgid());
}

/// The call that this task is in.
pub fn context<'a>() -> Option<&'a mut Context> {
    // SAFETY: the entry is this thread's own, and no program sleeps, so nothing else writes to it now.
    CONTEXTS
        .get_ptr_mut(bpf_get_current_pid_tgid())
        .map(|context| unsafe { &mut *context })
}

/// Adds to what is known of the call that this task is in.
pub fn learn(update: impl Fn(&mut Call)) {
    if let Some(context) = context() {
        update(&mut context.call);
    }
}

/// Forgets the session of the call that this task is in.
pub fn forget_session() {
    learn(|call| call.known &= !known::SESSION);
}

/// Notes which session the call is about, given where its name is. The first time that the name is seen
/// it is sent too, so that user space can tell what the id stands for.
#[expect(
    clippy::inline_always,
    reason = "the verifier refuses an `Option` as a function's argument: its value may be uninitialised"
)]
#[inline(always)]
pub fn learn_session<O: Orchestrator>(at: Option<u64>, flags: u8) {
    let Some(name) = at.and_then(O::name) else {
        return;
    };
    let id = session_id_of(&name);
    learn(|call| {
        call.session = id;
        call.known |= known::SESSION;
    });
    if NAMED.get_ptr(id).is_none() && send_name::<O>(&name, flags) {
        let _ = NAMED.insert(id, 1, 0);
    }
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

fn function(kind: Kind) -> Function {
    Function {
        thread: bpf_get_current_pid_tgid(),
        kind: kind as u64,
    }
}

/// Remembers that this task has entered the function of `kind`.
pub fn enter(kind: Kind, arg: u64) {
    // SAFETY: the helper has no preconditions.
    let t_ns = unsafe { bpf_ktime_get_ns() };
    let _ = ENTERED.insert(function(kind), Entered { t_ns, arg }, 0);
}

/// Whether this task has entered the function of `kind` and not left it.
pub fn is_within(kind: Kind) -> bool {
    ENTERED.get_ptr(function(kind)).is_some()
}

/// Takes back what [`enter`] remembered; a missing entry is counted.
pub fn leave(kind: Kind) -> Option<Entered> {
    let key = function(kind);
    let Some(entered) = ENTERED.get_ptr(key) else {
        count(|counters| &raw mut counters.no_entry);
        return None;
    };
    // SAFETY: the pointer is into the map, and the entry is this thread's own.
    let entered = unsafe { *entered };
    let _ = ENTERED.remove(key);
    Some(entered)
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
pub fn send_exit<O: Orchestrator>(
    kind: Kind,
    flags: u8,
    entered: &Entered,
    ret: i64,
    call: Option<&Call>,
) {
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let stamp = Stamp {
        kind,
        flags: flags | event::flags::EXIT,
        t_ns: entered.t_ns,
        dur_ns: now.wrapping_sub(entered.t_ns),
        ret: ret as i32,
    };
    send::<O>(&stamp, |record| {
        if let Some(call) = call {
            record.call = *call;
        }
    });
}

/// Sends the record of a function that has been entered and may never return.
pub fn send_entry<O: Orchestrator>(kind: Kind, flags: u8, call: Option<&Call>) {
    let stamp = Stamp {
        kind,
        flags,
        // SAFETY: the helper has no preconditions.
        t_ns: unsafe { bpf_ktime_get_ns() },
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
