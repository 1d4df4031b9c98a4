//! The sessions interface: sessions, their files, and their way through the kexec. Prototypes as read
//! in Linux 7.3 (`kernel/liveupdate/`, `mm/memfd_luo.c`).

use lu_common::event::{Kind, known};

use super::device::begin_ioctl;
use super::file::{
    enter_callback, learn_preserve, learn_restore, learn_restored, leave_callback, time_callback,
};
use super::{Handler, finish, learn_result, send};
use crate::attach::{Entry, Exit};
use crate::call::{self, Named};
use crate::orchestrator::Orchestrator as _;

/// The level of all files of a session, see [`crate::call`].
const LEVEL: usize = 3;

/// The level of all sessions.
const ALL_SESSIONS: usize = 2;

/// The call is to make or find the session whose name is the first argument.
fn learn_named<E: Entry>(kind: Kind, entry: &E) {
    if let Some(context) = call::context() {
        context.is(kind);
        let name = Some(Named::Text(entry.arg(0)));
        call::set_session::<E::Orchestrator>(context, entry.flags(), name);
    }
}

/// `int luo_session_create(const char *name, struct file **)`.
pub struct Create;

impl Handler for Create {
    const AT_EXIT: bool = true;

    fn entry<E: Entry>(entry: &E) {
        learn_named(Kind::SessionCreate, entry);
    }

    fn exit<X: Exit>(exit: &X) {
        learn_result(exit);
    }
}

/// `int luo_session_retrieve(const char *name, struct file **)`.
pub struct Retrieve;

impl Handler for Retrieve {
    const AT_EXIT: bool = true;

    fn entry<E: Entry>(entry: &E) {
        learn_named(Kind::SessionRetrieve, entry);
    }

    fn exit<X: Exit>(exit: &X) {
        learn_result(exit);
    }
}

/// `static int luo_session_release(struct inode *, struct file *)`.
pub struct Release;

impl Handler for Release {
    fn entry<E: Entry>(entry: &E) {
        let file = entry.arg(1);
        let kind = Kind::SessionRelease;
        if let Some(context) = call::begin::<E::Orchestrator>(kind, Some(file), 0) {
            // At the exit the session is gone.
            let name = E::Orchestrator::name_of_file(file).map(Named::Session);
            call::set_session::<E::Orchestrator>(context, entry.flags(), name);
        }
    }

    fn exit<X: Exit>(exit: &X) {
        finish(Kind::SessionRelease, exit);
    }
}

/// `static long luo_session_ioctl(struct file *, unsigned int cmd, unsigned long arg)`.
pub struct Ioctl;

impl Handler for Ioctl {
    fn entry<E: Entry>(entry: &E) {
        let name = E::Orchestrator::name_of_file(entry.arg(0));
        begin_ioctl(entry, name.unwrap_or(0));
    }

    fn exit<X: Exit>(exit: &X) {
        if let Some((context, entered)) = call::leave(0, Kind::Ioctl) {
            let name = (entered.arg != 0).then_some(Named::Session(entered.arg));
            call::set_session::<X::Orchestrator>(context, exit.flags(), name);
            call::finish(exit, context, &entered);
        }
    }
}

/// `int luo_preserve_file(struct luo_file_set *, u64 token, int fd)`.
pub struct PreserveFile;

impl Handler for PreserveFile {
    const AT_EXIT: bool = true;

    fn entry<E: Entry>(entry: &E) {
        learn_preserve(entry.arg(1), entry.arg(2) as i32);
    }

    fn exit<X: Exit>(exit: &X) {
        learn_result(exit);
    }
}

/// `int luo_retrieve_file(struct luo_file_set *, u64 token, struct file **)`.
pub struct RestoreFile;

impl Handler for RestoreFile {
    const AT_EXIT: bool = true;

    fn entry<E: Entry>(entry: &E) {
        learn_restore(entry.arg(1), entry.arg(2));
    }

    fn exit<X: Exit>(exit: &X) {
        learn_restored(exit);
    }
}

/// A function over all files of a session; its first argument is the `struct luo_file_set *`.
macro_rules! sets {
    ($($(#[$doc:meta])* $name:ident: $kind:ident, $ret:expr;)*) => {$(
        $(#[$doc])*
        pub struct $name;

        impl Handler for $name {
            fn entry<E: Entry>(entry: &E) {
                let context = call::enter::<E::Orchestrator>(LEVEL, Kind::$kind, 0);
                if let Some(context) = context
                    && context.call.known & known::SESSION == 0
                {
                    let name = E::Orchestrator::name_of_set(entry.arg(0)).map(Named::Session);
                    call::set_session::<E::Orchestrator>(context, entry.flags(), name);
                }
            }

            fn exit<X: Exit>(exit: &X) {
                let ret: fn(&X) -> i64 = $ret;
                send(LEVEL, Kind::$kind, exit, ret(exit));
                // Within reboot(2) the next one's turn comes.
                if let Some(context) = call::context()
                    && context.is_kexec()
                {
                    context.call.known &= !known::SESSION;
                }
            }
        }
    )*};
}

sets! {
    /// `void luo_file_unpreserve_files(struct luo_file_set *)`.
    Unpreserve: SessionUnpreserve, |_| 0;
    /// `int luo_file_freeze(struct luo_file_set *, struct luo_file_set_ser *)`.
    Freeze: SessionFreeze, X::ret;
    /// `void luo_file_unfreeze(struct luo_file_set *, struct luo_file_set_ser *)`.
    Unfreeze: SessionUnfreeze, |_| 0;
    /// `int luo_file_finish(struct luo_file_set *)`.
    Finish: SessionFinish, X::ret;
}

/// A function without arguments.
macro_rules! plain {
    ($($(#[$doc:meta])* $name:ident: $kind:ident, $ret:expr;)*) => {$(
        $(#[$doc])*
        pub struct $name;

        impl Handler for $name {
            fn entry<E: Entry>(_entry: &E) {
                call::enter::<E::Orchestrator>(ALL_SESSIONS, Kind::$kind, 0);
            }

            fn exit<X: Exit>(exit: &X) {
                let ret: fn(&X) -> i64 = $ret;
                send(ALL_SESSIONS, Kind::$kind, exit, ret(exit));
            }
        }
    )*};
}

plain! {
    /// `int luo_session_serialize(void)`: the freeze of everything.
    Serialize: Freeze, X::ret;
    /// `int luo_session_deserialize(void)`.
    Deserialize: Deserialize, X::ret;
    /// `void luo_flb_serialize(void)`.
    FlbSerialize: FlbFreeze, |_| 0;
}

/// What a file's handler did with it; its argument is the `struct liveupdate_file_op_args *`.
///
/// Within the preserve or the retrieve of one file it adds its time to that call; where all files of a session
/// have their turn each is told.
macro_rules! ops {
    ($($(#[$doc:meta])* $name:ident: $kind:ident, $leave:expr;)*) => {$(
        $(#[$doc])*
        pub struct $name;

        impl Handler for $name {
            fn entry<E: Entry>(entry: &E) {
                let file = E::Orchestrator::file_of(entry.arg(0)).unwrap_or(0);
                enter_callback::<E>(Kind::$kind, file);
            }

            fn exit<X: Exit>(exit: &X) {
                let leave: fn(Kind, &X) = $leave;
                leave(Kind::$kind, exit);
            }
        }
    )*};
}

ops! {
    /// `static int memfd_luo_preserve(struct liveupdate_file_op_args *)`.
    OpPreserve: FilePreserve, |kind, _| time_callback(kind);
    /// `static int memfd_luo_freeze(struct liveupdate_file_op_args *)`.
    OpFreeze: FileFreeze, |kind, exit| leave_callback(kind, exit, exit.ret(), false);
    /// `static int memfd_luo_retrieve(struct liveupdate_file_op_args *)`.
    OpRetrieve: FileRetrieve, |kind, _| time_callback(kind);
    /// `static void memfd_luo_finish(struct liveupdate_file_op_args *)`.
    OpFinish: FileFinish, |kind, exit| leave_callback(kind, exit, 0, false);
    /// `static void memfd_luo_unpreserve(struct liveupdate_file_op_args *)`.
    OpUnpreserve: FileUnpreserve, |kind, exit| leave_callback(kind, exit, 0, false);
}
