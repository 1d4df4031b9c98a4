//! The policy's way out to user space.

use aya_ebpf::bindings::{BPF_RB_AVAIL_DATA, BPF_RB_RING_SIZE};
use aya_ebpf::helpers::bpf_get_smp_processor_id;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, RingBuf};
use lu_common::event::{Kind, PolicyLoaded, Record, RuleName, flags, session_id_of};
use lu_common::policy::{
    Attribute, Decision, InForce, Judged, NO_RULE, Operation, Text, Untold, Verdict,
};

use super::asked::Asked;
use crate::call::{add, clear, now};
use crate::orchestrator::current;

/// Verdicts, to whoever listens; user space sets the size.
#[map]
static VERDICTS: RingBuf = RingBuf::with_byte_size(4096, 0);

/// What could not be told.
#[map]
static UNTOLD: Array<Untold> = Array::with_max_entries(1, 0);

#[inline(always)]
fn count(field: impl FnOnce(&mut Untold) -> *mut u64) {
    if let Some(untold) = UNTOLD.get_ptr_mut(0) {
        // SAFETY: within the map; the reference serves to find the field, which is touched by atomic operations alone.
        let field = field(unsafe { &mut *untold });
        // SAFETY: an aligned integer within the map.
        unsafe { add(field, 1) };
    }
}

/// There was no room to remember a request.
#[inline(always)]
pub fn count_unjudged() {
    count(|untold| &raw mut untold.unjudged);
}

#[inline(always)]
fn send(kind: Kind, fill: impl FnOnce(&mut Record)) {
    let Some(mut slot) = VERDICTS.reserve::<Record>(0) else {
        if matches!(kind, Kind::Tampered) {
            count(|untold| &raw mut untold.tampered);
        } else {
            count(|untold| &raw mut untold.ring_full);
        }
        return;
    };
    // SAFETY: the slot has room for one record.
    unsafe { clear(slot.as_mut_ptr()) };
    // SAFETY: all-zero bytes are a record, and the slot is written through this reference alone.
    let record = unsafe { slot.assume_init_mut() };
    let header = &mut record.header;
    header.kind = kind as u8;
    header.flags = flags::SESSIONS;
    header.t_ns = now();
    // SAFETY: the helper has no preconditions.
    header.cpu = unsafe { bpf_get_smp_processor_id() } as u16;
    header.set_task(&current());
    fill(record);
    slot.submit(0);
}

/// Whether there is room for a verdict. The last quarter is for what is tampered with: nobody can hide that behind requests
/// that are refused.
#[inline(always)]
fn has_room() -> bool {
    let taken = VERDICTS.query(u64::from(BPF_RB_AVAIL_DATA));
    let has_room = taken < VERDICTS.query(u64::from(BPF_RB_RING_SIZE)) / 4 * 3;
    if !has_room {
        count(|untold| &raw mut untold.ring_full);
    }
    has_room
}

/// A policy was put in force, by the current task.
#[inline(always)]
pub fn loaded(in_force: &InForce, loginuid: u32) {
    let policy = &in_force.policy;
    send(Kind::Policy, |record| {
        let loaded: &mut PolicyLoaded = zerocopy::transmute_mut!(&mut record.call);
        loaded.generation = policy.generation;
        loaded.sha256 = in_force.sha256;
        loaded.rules = (policy.requests | policy.limits | policy.conditions).count_ones();
        loaded.enforced = policy.enforce.count_ones();
        loaded.loginuid = loginuid;
    });
}

/// What a rule is called.
#[inline(always)]
pub fn rule(name: &RuleName) {
    if name.generation != 0 && has_room() {
        send(Kind::Rule, |record| {
            record.call = zerocopy::transmute!(*name);
        });
    }
}

/// What became of a request.
#[inline(always)]
pub fn verdict(asked: &Asked, generation: u64, verdict: &Verdict, errno: u8) {
    if !has_room() {
        return;
    }
    let session = if asked.known(Attribute::Session) {
        session_id_of(&asked.request.name.text)
    } else {
        0
    };
    if session != 0 {
        // The orchestrator may never hear of it, nor those who watch it.
        send(Kind::Name, |record| {
            record.call = zerocopy::transmute!(asked.request.name.text);
        });
    }
    send(Kind::Verdict, |record| {
        let judged: &mut Judged = zerocopy::transmute_mut!(&mut record.call);
        let request = &asked.request;
        judged.generation = generation;
        judged.session = session;
        judged.token = request.token;
        judged.bytes = request.bytes;
        judged.known = request.known;
        judged.fd = asked.fd;
        judged.kind = request.kind as u16;
        judged.operation = request.operation as u8;
        judged.decision = verdict.decision as u8;
        judged.rule = asked.rule as u8;
        judged.errno = errno;
        judged.unsure = u8::from(verdict.unsure);
    });
}

/// What was done is not what was judged.
#[inline(always)]
pub fn tampered(operation: Operation, generation: u64, name: &Text, token: u64, differs: u8) {
    let session = session_id_of(name);
    if has_room() {
        // Another may have been made to have the same id.
        send(Kind::Name, |record| {
            record.call = zerocopy::transmute!(*name);
        });
    }
    send(Kind::Tampered, |record| {
        let judged: &mut Judged = zerocopy::transmute_mut!(&mut record.call);
        judged.generation = generation;
        judged.session = session;
        judged.token = token;
        judged.fd = -1;
        judged.operation = operation as u8;
        judged.decision = Decision::Allow as u8;
        judged.rule = NO_RULE;
        judged.differs = differs;
    });
}
