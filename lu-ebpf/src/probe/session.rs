//! The sessions interface: sessions, their files, and their way through the kexec. Prototypes as read
//! in Linux 7.3 (`kernel/liveupdate/`, `mm/memfd_luo.c`).

use lu_common::event::{Call, Kind, known};

use super::file::{describe, learn_token, leave_restore};
use super::{Handler, send_call, send_void_call};
use crate::attach::{Entry, Exit, Orchestrator};
use crate::task;

/// The session behind a `struct luo_file_set *`.
fn learn_set<E: Entry>(entry: &E) {
    task::learn_session::<E::Orchestrator>(
        E::Orchestrator::name_of_set(entry.arg(0)),
        entry.flags(),
    );
}

/// `int luo_session_create(const char *name, struct file **)`.
pub struct Create;

impl Handler for Create {
    fn entry<E: Entry>(entry: &E) {
        task::ensure_context::<E::Orchestrator>(Kind::SessionCreate);
        task::learn_session::<E::Orchestrator>(Some(entry.arg(0)), entry.flags());
        task::enter(Kind::SessionCreate, 0);
    }

    fn exit<X: Exit>(exit: &X) {
        send_call(Kind::SessionCreate, exit);
        task::close_context(Kind::SessionCreate);
    }
}

/// `int luo_session_retrieve(const char *name, struct file **)`.
pub struct Retrieve;

impl Handler for Retrieve {
    fn entry<E: Entry>(entry: &E) {
        task::ensure_context::<E::Orchestrator>(Kind::SessionRetrieve);
        task::learn_session::<E::Orchestrator>(Some(entry.arg(0)), entry.flags());
        task::enter(Kind::SessionRetrieve, 0);
    }

    fn exit<X: Exit>(exit: &X) {
        send_call(Kind::SessionRetrieve, exit);
        task::close_context(Kind::SessionRetrieve);
    }
}

/// `static int luo_session_release(struct inode *, struct file *)`.
pub struct Release;

impl Handler for Release {
    fn entry<E: Entry>(entry: &E) {
        let file = entry.arg(1);
        task::open_context::<E::Orchestrator>(Kind::SessionRelease, file);
        // The session is gone at the exit.
        task::learn_session::<E::Orchestrator>(E::Orchestrator::name_of_file(file), entry.flags());
        task::enter(Kind::SessionRelease, 0);
    }

    fn exit<X: Exit>(exit: &X) {
        send_call(Kind::SessionRelease, exit);
        task::close_context(Kind::SessionRelease);
    }
}

/// `static long luo_session_ioctl(struct file *, unsigned int cmd, unsigned long arg)`.
pub struct Ioctl;

impl Handler for Ioctl {
    fn entry<E: Entry>(entry: &E) {
        let file = entry.arg(0);
        task::open_context::<E::Orchestrator>(Kind::Ioctl, file);
        let cmd = entry.arg(1) as u32;
        task::learn(|call| {
            call.cmd = cmd;
            call.known |= known::CMD;
        });
        task::learn_session::<E::Orchestrator>(E::Orchestrator::name_of_file(file), entry.flags());
        task::enter(Kind::Ioctl, 0);
    }

    fn exit<X: Exit>(exit: &X) {
        send_call(Kind::Ioctl, exit);
        task::close_context(Kind::Ioctl);
    }
}

/// `int luo_preserve_file(struct luo_file_set *, u64 token, int fd)`.
pub struct PreserveFile;

impl Handler for PreserveFile {
    fn entry<E: Entry>(entry: &E) {
        task::ensure_context::<E::Orchestrator>(Kind::Preserve);
        learn_set(entry);
        learn_token(entry.arg(1));
        let fd = entry.arg(2) as i32;
        task::learn(|call| {
            call.fd = fd;
            call.known |= known::FD;
        });
        task::enter(Kind::Preserve, 0);
    }

    fn exit<X: Exit>(exit: &X) {
        send_call(Kind::Preserve, exit);
        task::close_context(Kind::Preserve);
    }
}

/// `int luo_retrieve_file(struct luo_file_set *, u64 token, struct file **)`.
pub struct RestoreFile;

impl Handler for RestoreFile {
    fn entry<E: Entry>(entry: &E) {
        task::ensure_context::<E::Orchestrator>(Kind::Restore);
        learn_set(entry);
        learn_token(entry.arg(1));
        task::enter(Kind::Restore, entry.arg(2));
    }

    fn exit<X: Exit>(exit: &X) {
        leave_restore(exit);
        task::close_context(Kind::Restore);
    }
}

/// A function over all files of a session; its first argument is the `struct luo_file_set *`.
macro_rules! sets {
    ($($(#[$doc:meta])* $name:ident: $kind:ident, $send:ident;)*) => {$(
        $(#[$doc])*
        pub struct $name;

        impl Handler for $name {
            fn entry<E: Entry>(entry: &E) {
                task::ensure_context::<E::Orchestrator>(Kind::$kind);
                learn_set(entry);
                task::enter(Kind::$kind, 0);
            }

            fn exit<X: Exit>(exit: &X) {
                $send(Kind::$kind, exit);
                // Within reboot(2) the next one's turn comes.
                if task::is_within(Kind::Kexec) {
                    task::forget_session();
                }
                task::close_context(Kind::$kind);
            }
        }
    )*};
}

sets! {
    /// `void luo_file_unpreserve_files(struct luo_file_set *)`.
    Unpreserve: SessionUnpreserve, send_void_call;
    /// `int luo_file_freeze(struct luo_file_set *, struct luo_file_set_ser *)`.
    Freeze: SessionFreeze, send_call;
    /// `void luo_file_unfreeze(struct luo_file_set *, struct luo_file_set_ser *)`.
    Unfreeze: SessionUnfreeze, send_void_call;
    /// `int luo_file_finish(struct luo_file_set *)`.
    Finish: SessionFinish, send_call;
}

/// `int luo_session_serialize(void)`: the freeze of everything.
pub struct Serialize;

impl Handler for Serialize {
    fn entry<E: Entry>(_entry: &E) {
        task::enter(Kind::Freeze, 0);
    }

    fn exit<X: Exit>(exit: &X) {
        send_call(Kind::Freeze, exit);
    }
}

/// `int luo_session_deserialize(void)`.
pub struct Deserialize;

impl Handler for Deserialize {
    fn entry<E: Entry>(_entry: &E) {
        task::enter(Kind::Deserialize, 0);
    }

    fn exit<X: Exit>(exit: &X) {
        send_call(Kind::Deserialize, exit);
    }
}

/// `void luo_flb_serialize(void)`.
pub struct FlbSerialize;

impl Handler for FlbSerialize {
    fn entry<E: Entry>(_entry: &E) {
        task::enter(Kind::FlbFreeze, 0);
    }

    fn exit<X: Exit>(exit: &X) {
        send_void_call(Kind::FlbFreeze, exit);
    }
}

/// What a file's handler did with it; its argument is the `struct liveupdate_file_op_args *`.
fn leave_op<X: Exit>(kind: Kind, exit: &X, ret: i64) {
    let Some(entered) = task::leave(kind) else {
        return;
    };
    let mut call: Call = task::zeroed();
    if let Some(context) = task::context() {
        call.session = context.call.session;
        call.token = context.call.token;
        call.known = context.call.known & (known::SESSION | known::TOKEN);
    }
    if let Some(file) = X::Orchestrator::file_of(entered.arg)
        && file != 0
    {
        describe::<X::Orchestrator>(&mut call, file);
        if call.known & known::TOKEN != 0 {
            task::name_file(file, call.token);
        } else if let Some(token) = task::token_of(file) {
            call.token = token;
            call.known |= known::TOKEN;
        }
    }
    task::send_exit::<X::Orchestrator>(kind, exit.flags(), &entered, ret, Some(&call));
}

macro_rules! ops {
    ($($(#[$doc:meta])* $name:ident: $kind:ident, $ret:expr;)*) => {$(
        $(#[$doc])*
        pub struct $name;

        impl Handler for $name {
            fn entry<E: Entry>(entry: &E) {
                task::enter(Kind::$kind, entry.arg(0));
            }

            fn exit<X: Exit>(exit: &X) {
                let ret: fn(&X) -> i64 = $ret;
                leave_op(Kind::$kind, exit, ret(exit));
            }
        }
    )*};
}

ops! {
    /// `static int memfd_luo_preserve(struct liveupdate_file_op_args *)`.
    OpPreserve: FilePreserve, X::ret;
    /// `static int memfd_luo_freeze(struct liveupdate_file_op_args *)`.
    OpFreeze: FileFreeze, X::ret;
    /// `static int memfd_luo_retrieve(struct liveupdate_file_op_args *)`.
    OpRetrieve: FileRetrieve, X::ret;
    /// `static void memfd_luo_finish(struct liveupdate_file_op_args *)`.
    OpFinish: FileFinish, |_| 0;
    /// `static void memfd_luo_unpreserve(struct liveupdate_file_op_args *)`.
    OpUnpreserve: FileUnpreserve, |_| 0;
}
