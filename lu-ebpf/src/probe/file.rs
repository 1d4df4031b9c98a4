//! Files: into the list, out of it, back in the new kernel, and their handlers' callbacks.

use lu_common::event::{Call, Kind, known};

use super::{Handler, learn_result};
use crate::attach::{Entry, Exit};
use crate::call::{self, Stamp};
use crate::orchestrator::Orchestrator;

/// The level of one file's callback, see [`crate::call`].
const LEVEL: usize = 4;

/// The call is about the file with this token.
pub(super) fn learn_token(kind: Kind, token: u64) {
    if let Some(context) = call::context() {
        context.is(kind);
        context.call.token = token;
        context.call.known |= known::TOKEN;
    }
}

/// The call is to preserve the file behind a descriptor.
pub(super) fn learn_preserve(token: u64, fd: i32) {
    learn_token(Kind::Preserve, token);
    if let Some(context) = call::context() {
        context.call.fd = fd;
        context.call.known |= known::FD;
    }
}

/// The call is to give out the file with this token, at an address.
pub(super) fn learn_restore(token: u64, gives_at: u64) {
    learn_token(Kind::Restore, token);
    if let Some(context) = call::context() {
        context.gives_at = gives_at;
    }
}

/// The exit of `luo_retrieve_file` in both interfaces.
pub(super) fn learn_restored<X: Exit>(exit: &X) {
    learn_result(exit);
    if let Some(context) = call::context()
        && exit.ret() == 0
        && let Some(file) = X::Orchestrator::pointer(context.gives_at)
    {
        describe::<<X::Orchestrator as Orchestrator>::Found>(&mut context.call, file);
    }
}

fn describe<O: Orchestrator>(call: &mut Call, file: u64) {
    set_object(call, file);
    if let Some(facts) = O::file(file) {
        call.file_kind = facts.kind;
        call.bytes = facts.bytes;
        call.known |= known::FILE;
    }
}

fn set_object(call: &mut Call, file: u64) {
    let place = &raw mut call.object;
    // The verifier lets nobody calculate with a pointer whose type it knows. What was stored in a map has none.
    // SAFETY: the reference is valid for writes.
    unsafe { place.write_volatile(file) };
    // SAFETY: and for reads.
    let file = unsafe { place.read_volatile() };
    // No file is nothing that records could have in common.
    if file != 0 {
        call.object = call::object(file);
        call.known |= known::OBJECT;
    }
}

/// `int luo_register_file(u64 token, int fd)`, v3 patch 14.
pub struct Preserve;

impl Handler for Preserve {
    const AT_EXIT: bool = true;

    fn entry<E: Entry>(entry: &E) {
        learn_preserve(entry.arg(0), entry.arg(1) as i32);
    }

    fn exit<X: Exit>(exit: &X) {
        learn_result(exit);
    }
}

/// `int luo_unregister_file(u64 token)`, v3 patch 14.
pub struct Unpreserve;

impl Handler for Unpreserve {
    const AT_EXIT: bool = true;

    fn entry<E: Entry>(entry: &E) {
        learn_token(Kind::Unpreserve, entry.arg(0));
    }

    fn exit<X: Exit>(exit: &X) {
        learn_result(exit);
    }
}

/// `int luo_retrieve_file(u64 token, struct file **)`, v3 patch 14.
pub struct Restore;

impl Handler for Restore {
    const AT_EXIT: bool = true;

    fn entry<E: Entry>(entry: &E) {
        learn_restore(entry.arg(0), entry.arg(1));
    }

    fn exit<X: Exit>(exit: &X) {
        learn_restored(exit);
    }
}

/// `static bool memfd_luo_can_preserve(struct liveupdate_file_handler *, struct file *)`, v3 patch 27 and
/// Linux 7.3: called from `luo_register_file` or `luo_preserve_file`, it tells which file the token is for.
pub struct CanPreserve;

impl Handler for CanPreserve {
    fn entry<E: Entry>(entry: &E) {
        if let Some(context) = call::context() {
            describe::<E::Orchestrator>(&mut context.call, entry.arg(1));
        }
    }

    fn exit<X: Exit>(_exit: &X) {}
}

/// A callback on a file begins. The kernel gives callbacks the file, and not its token.
pub(super) fn enter_callback<E: Entry>(kind: Kind, file: u64) {
    call::enter::<E::Orchestrator>(LEVEL, kind, file);
}

/// It returns; whether the file is to be described.
pub(super) fn leave_callback<X: Exit>(kind: Kind, exit: &X, ret: i64, described: bool) {
    let Some((context, entered)) = call::leave(LEVEL, kind) else {
        return;
    };
    let mut call: Call = call::zeroed();
    call.session = context.call.session;
    call.known = context.call.known & known::SESSION;
    if described {
        describe::<<X::Orchestrator as Orchestrator>::Found>(&mut call, entered.arg);
    } else {
        set_object(&mut call, entered.arg);
    }
    let stamp = Stamp::exit(exit, kind, &entered, ret);
    call::send::<X::Orchestrator>(Some(context), &stamp, Some(&call));
    context.end(LEVEL);
}

/// A callback whose time belongs to the call that it is part of.
pub(super) fn time_callback(kind: Kind) {
    if let Some((context, entered)) = call::leave(LEVEL, kind) {
        context.call.op_ns = entered.elapsed();
        context.call.known |= known::OP;
        context.end(LEVEL);
    }
}

/// `static int memfd_luo_prepare(struct liveupdate_file_handler *, struct file *, u64 *)`, v3 patch 27.
pub struct FilePrepare;

impl Handler for FilePrepare {
    fn entry<E: Entry>(entry: &E) {
        enter_callback::<E>(Kind::FilePrepare, entry.arg(1));
    }

    fn exit<X: Exit>(exit: &X) {
        leave_callback(Kind::FilePrepare, exit, exit.ret(), true);
    }
}

/// `static int memfd_luo_freeze(struct liveupdate_file_handler *, struct file *, u64 *)`, v3 patch 27.
pub struct FileFreeze;

impl Handler for FileFreeze {
    fn entry<E: Entry>(entry: &E) {
        enter_callback::<E>(Kind::FileFreeze, entry.arg(1));
    }

    fn exit<X: Exit>(exit: &X) {
        leave_callback(Kind::FileFreeze, exit, exit.ret(), true);
    }
}
