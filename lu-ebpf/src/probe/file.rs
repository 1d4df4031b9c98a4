//! Files in v3: into the list, out of it, back in the new kernel, and their handlers' callbacks.

use lu_common::event::{Call, Kind, known};

use super::{Handler, send_call};
use crate::attach::{Entry, Exit, Orchestrator};
use crate::task;

pub(super) fn set_token(call: &mut Call, token: u64) {
    call.token = token;
    call.known |= known::TOKEN;
}

pub(super) fn describe<O: Orchestrator>(call: &mut Call, file: u64) {
    if let Some(facts) = O::file(file) {
        call.file_kind = facts.kind;
        call.bytes = facts.bytes;
        call.known |= known::FILE;
    }
}

/// `int luo_register_file(u64 token, int fd)`, v3 patch 14.
pub struct Preserve;

impl Handler for Preserve {
    fn entry<E: Entry>(entry: &E) {
        let (token, fd) = (entry.arg(0), entry.arg(1) as i32);
        task::enter::<E::Orchestrator>(Kind::Preserve, 0, |call| {
            set_token(call, token);
            call.fd = fd;
            call.known |= known::FD;
        });
    }

    fn exit<X: Exit>(exit: &X) {
        send_call(Kind::Preserve, exit);
    }
}

/// `int luo_unregister_file(u64 token)`, v3 patch 14.
pub struct Unpreserve;

impl Handler for Unpreserve {
    fn entry<E: Entry>(entry: &E) {
        let token = entry.arg(0);
        task::enter::<E::Orchestrator>(Kind::Unpreserve, 0, |call| set_token(call, token));
    }

    fn exit<X: Exit>(exit: &X) {
        send_call(Kind::Unpreserve, exit);
    }
}

/// `int luo_retrieve_file(u64 token, struct file **)`, v3 patch 14.
pub struct Restore;

impl Handler for Restore {
    fn entry<E: Entry>(entry: &E) {
        let token = entry.arg(0);
        task::enter::<E::Orchestrator>(Kind::Restore, entry.arg(1), |call| set_token(call, token));
    }

    fn exit<X: Exit>(exit: &X) {
        leave_restore(exit);
    }
}

/// The exit of `luo_retrieve_file` in both interfaces: the file is where its last argument pointed.
pub(super) fn leave_restore<X: Exit>(exit: &X) {
    let kind = Kind::Restore;
    let Some(context) = task::context() else {
        task::count_missing();
        return;
    };
    if let Some(entered) = task::leave(context, kind) {
        if exit.ret() == 0
            && let Some(file) = X::Orchestrator::pointer(entered.arg)
        {
            describe::<X::Orchestrator>(&mut context.call, file);
            task::name_file(file, context.call.token);
        }
        let (flags, ret) = (exit.flags(), exit.ret());
        task::send_exit::<X::Orchestrator>(kind, flags, &entered, ret, &context.call);
    }
    task::end(context);
}

/// `static bool memfd_luo_can_preserve(struct liveupdate_file_handler *, struct file *)`, v3 patch 27 and
/// Linux 7.3: called from `luo_register_file` or `luo_preserve_file`, it tells which file the token is for. It sends nothing itself.
pub struct CanPreserve;

impl Handler for CanPreserve {
    fn entry<E: Entry>(entry: &E) {
        let file = entry.arg(1);
        if let Some(context) = task::context() {
            describe::<E::Orchestrator>(&mut context.call, file);
            if context.call.known & known::TOKEN != 0 {
                task::name_file(file, context.call.token);
            }
        }
    }

    fn exit<X: Exit>(_exit: &X) {}
}

fn enter_callback<E: Entry>(kind: Kind, entry: &E) {
    task::enter::<E::Orchestrator>(kind, entry.arg(1), |_| {});
}

fn leave_callback<X: Exit>(kind: Kind, exit: &X) {
    let Some(context) = task::context() else {
        task::count_missing();
        return;
    };
    if let Some(entered) = task::leave(context, kind) {
        let mut call: Call = task::zeroed();
        describe::<X::Orchestrator>(&mut call, entered.arg);
        if let Some(token) = task::token_of(entered.arg) {
            set_token(&mut call, token);
        }
        task::send_exit::<X::Orchestrator>(kind, exit.flags(), &entered, exit.ret(), &call);
    }
    task::end(context);
}

/// `static int memfd_luo_prepare(struct liveupdate_file_handler *, struct file *, u64 *)`, v3 patch 27.
pub struct FilePrepare;

impl Handler for FilePrepare {
    fn entry<E: Entry>(entry: &E) {
        enter_callback(Kind::FilePrepare, entry);
    }

    fn exit<X: Exit>(exit: &X) {
        leave_callback(Kind::FilePrepare, exit);
    }
}

/// `static int memfd_luo_freeze(struct liveupdate_file_handler *, struct file *, u64 *)`, v3 patch 27.
pub struct FileFreeze;

impl Handler for FileFreeze {
    fn entry<E: Entry>(entry: &E) {
        enter_callback(Kind::FileFreeze, entry);
    }

    fn exit<X: Exit>(exit: &X) {
        leave_callback(Kind::FileFreeze, exit);
    }
}
