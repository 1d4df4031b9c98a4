//! The handlers, one file for each place in the orchestrator.
//!
//! A call into the orchestrator is one record, which its outermost function sends when it returns. The functions
//! within only tell it what the call is about; but those that have a turn of their own within something larger
//! (a session, a file, a step of the kexec) send a record of their own.

pub mod device;
pub mod file;
pub mod reboot;
pub mod session;
pub mod state;
pub mod verdict;

use lu_common::event::{Kind, known};

use crate::attach::{Entry, Exit};
use crate::call::{self, Stamp};

/// What a pair of programs does at the entry and at the exit of one function.
pub trait Handler {
    /// Whether nothing is lost by doing both at the exit, where the arguments are still known there. It saves a
    /// program.
    const AT_EXIT: bool = false;
    fn entry<E: Entry>(entry: &E);
    fn exit<X: Exit>(exit: &X);
}

/// The outermost function of `kind` returns.
fn finish<X: Exit>(kind: Kind, exit: &X) {
    if let Some((context, entered)) = call::leave(0, kind) {
        call::finish(exit, context, &entered);
    }
}

/// The function that a call consists of returns: what it made of it, in case the call returns something else.
fn learn_result<X: Exit>(exit: &X) {
    if let Some(context) = call::context() {
        context.call.inner_ret = exit.ret() as i32;
        context.call.known |= known::INNER_RET;
    } else {
        call::count_missing();
    }
}

/// The exit of a function with a turn of its own: send what is known.
fn send<X: Exit>(level: usize, kind: Kind, exit: &X, ret: i64) {
    if let Some((context, entered)) = call::leave(level, kind) {
        let stamp = Stamp::exit(exit, kind, &entered, ret);
        call::send::<X::Orchestrator>(Some(context), &stamp, Some(&context.call));
        context.end(level);
    }
}
