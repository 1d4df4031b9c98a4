//! The global state machine of v3.

use lu_common::event::{Kind, known};
use lu_common::uapi::v3::Event;

use super::{Handler, send};
use crate::attach::{Entry, Exit};
use crate::call;

/// The level of what concerns the whole machine, see [`crate::call`].
const LEVEL: usize = 2;

macro_rules! events {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        pub struct $name;

        impl Handler for $name {
            fn entry<E: Entry>(_entry: &E) {
                let context = call::enter::<E::Orchestrator>(LEVEL, Kind::$name, 0);
                if let Some(context) = context {
                    context.call.event = Event::$name as u32;
                    context.call.known |= known::EVENT;
                }
            }

            fn exit<X: Exit>(exit: &X) {
                send(LEVEL, Kind::$name, exit, exit.ret());
            }
        }
    )*};
}

events! {
    /// `int luo_prepare(void)`, v3 patch 10.
    Prepare;
    /// `int luo_freeze(void)`, v3 patch 10.
    Freeze;
    /// `int luo_cancel(void)`, v3 patch 10.
    Cancel;
    /// `int luo_finish(void)`, v3 patch 10.
    Finish;
}
