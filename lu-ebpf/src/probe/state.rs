//! The global state machine of v3.

use lu_common::event::{Kind, known};
use lu_common::uapi::v3::Event;

use super::{Handler, send_call};
use crate::attach::{Entry, Exit};
use crate::task;

fn enter_event<E: Entry>(kind: Kind, event: Event) {
    task::enter::<E::Orchestrator>(kind, 0, |call| {
        call.event = event as u32;
        call.known |= known::EVENT;
    });
}

/// `int luo_prepare(void)`, v3 patch 10.
pub struct Prepare;

impl Handler for Prepare {
    fn entry<E: Entry>(_entry: &E) {
        enter_event::<E>(Kind::Prepare, Event::Prepare);
    }

    fn exit<X: Exit>(exit: &X) {
        send_call(Kind::Prepare, exit);
    }
}

/// `int luo_freeze(void)`, v3 patch 10.
pub struct Freeze;

impl Handler for Freeze {
    fn entry<E: Entry>(_entry: &E) {
        enter_event::<E>(Kind::Freeze, Event::Freeze);
    }

    fn exit<X: Exit>(exit: &X) {
        send_call(Kind::Freeze, exit);
    }
}

/// `int luo_cancel(void)`, v3 patch 10.
pub struct Cancel;

impl Handler for Cancel {
    fn entry<E: Entry>(_entry: &E) {
        enter_event::<E>(Kind::Cancel, Event::Cancel);
    }

    fn exit<X: Exit>(exit: &X) {
        send_call(Kind::Cancel, exit);
    }
}

/// `int luo_finish(void)`, v3 patch 10.
pub struct Finish;

impl Handler for Finish {
    fn entry<E: Entry>(_entry: &E) {
        enter_event::<E>(Kind::Finish, Event::Finish);
    }

    fn exit<X: Exit>(exit: &X) {
        send_call(Kind::Finish, exit);
    }
}
