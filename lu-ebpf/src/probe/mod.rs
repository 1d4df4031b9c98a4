//! The handlers, one file for each place in the orchestrator.

pub mod device;
pub mod file;
pub mod reboot;
pub mod session;
pub mod state;

use lu_common::event::Kind;

use crate::attach::{Entry, Exit};
use crate::task;

/// What a pair of programs does at the entry and at the exit of one function.
pub trait Handler {
    fn entry<E: Entry>(entry: &E);
    fn exit<X: Exit>(exit: &X);
}

/// The exit of a function about which the whole call tells enough: send what is known of it.
fn send_call<X: Exit>(kind: Kind, exit: &X) {
    send_call_with(kind, exit, exit.ret());
}

/// The same for a function that returns nothing.
fn send_void_call<X: Exit>(kind: Kind, exit: &X) {
    send_call_with(kind, exit, 0);
}

fn send_call_with<X: Exit>(kind: Kind, exit: &X, ret: i64) {
    let Some(context) = task::context() else {
        task::count_missing();
        return;
    };
    if let Some(entered) = task::leave(context, kind) {
        task::send_exit::<X::Orchestrator>(kind, exit.flags(), &entered, ret, &context.call);
    }
    task::end(context);
}
