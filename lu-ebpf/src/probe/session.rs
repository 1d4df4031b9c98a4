//! The sessions interface: sessions, their files, and their way through the kexec. Prototypes as read
//! in Linux 7.3 (`kernel/liveupdate/`, `mm/memfd_luo.c`).

use lu_common::event::{Call, Kind, known};

use super::file::{describe, leave_restore, set_token};
use super::{Handler, send_call, send_void_call};
use crate::attach::{Entry, Exit, Orchestrator};
use crate::task;

/// The session behind a `struct luo_file_set *`, the first argument.
fn session_of_set<E: Entry>(entry: &E) -> Option<u64> {
    let at = E::Orchestrator::name_of_set(entry.arg(0));
    task::session::<E::Orchestrator>(at, entry.flags())
}

/// The session behind the `struct file *` of one.
fn session_of_file<E: Entry>(entry: &E, file: u64) -> Option<u64> {
    let at = E::Orchestrator::name_of_file(file);
    task::session::<E::Orchestrator>(at, entry.flags())
}

fn set_session(call: &mut Call, session: Option<u64>) {
    if let Some(session) = session {
        call.session = session;
        call.known |= known::SESSION;
    }
}

/// The session of a name, the first argument.
fn enter_named<E: Entry>(kind: Kind, entry: &E) {
    let session = task::session::<E::Orchestrator>(Some(entry.arg(0)), entry.flags());
    task::enter::<E::Orchestrator>(kind, 0, |call| set_session(call, session));
}

/// `int luo_session_create(const char *name, struct file **)`.
pub struct Create;

impl Handler for Create {
    fn entry<E: Entry>(entry: &E) {
        enter_named(Kind::SessionCreate, entry);
    }

    fn exit<X: Exit>(exit: &X) {
        send_call(Kind::SessionCreate, exit);
    }
}

/// `int luo_session_retrieve(const char *name, struct file **)`.
pub struct Retrieve;

impl Handler for Retrieve {
    fn entry<E: Entry>(entry: &E) {
        enter_named(Kind::SessionRetrieve, entry);
    }

    fn exit<X: Exit>(exit: &X) {
        send_call(Kind::SessionRetrieve, exit);
    }
}

/// `static int luo_session_release(struct inode *, struct file *)`.
pub struct Release;

impl Handler for Release {
    fn entry<E: Entry>(entry: &E) {
        let file = entry.arg(1);
        task::open::<E::Orchestrator>(file);
        // At the exit the session is gone.
        let session = session_of_file(entry, file);
        task::enter::<E::Orchestrator>(Kind::SessionRelease, 0, |call| set_session(call, session));
    }

    fn exit<X: Exit>(exit: &X) {
        send_call(Kind::SessionRelease, exit);
    }
}

/// `static long luo_session_ioctl(struct file *, unsigned int cmd, unsigned long arg)`.
pub struct Ioctl;

impl Handler for Ioctl {
    fn entry<E: Entry>(entry: &E) {
        let (file, cmd) = (entry.arg(0), entry.arg(1) as u32);
        task::open::<E::Orchestrator>(file);
        let session = session_of_file(entry, file);
        task::enter::<E::Orchestrator>(Kind::Ioctl, 0, |call| {
            set_session(call, session);
            call.cmd = cmd;
            call.known |= known::CMD;
        });
    }

    fn exit<X: Exit>(exit: &X) {
        send_call(Kind::Ioctl, exit);
    }
}

/// `int luo_preserve_file(struct luo_file_set *, u64 token, int fd)`.
pub struct PreserveFile;

impl Handler for PreserveFile {
    fn entry<E: Entry>(entry: &E) {
        let session = session_of_set(entry);
        let (token, fd) = (entry.arg(1), entry.arg(2) as i32);
        task::enter::<E::Orchestrator>(Kind::Preserve, 0, |call| {
            set_session(call, session);
            set_token(call, token);
            call.fd = fd;
            call.known |= known::FD;
        });
    }

    fn exit<X: Exit>(exit: &X) {
        send_call(Kind::Preserve, exit);
    }
}

/// `int luo_retrieve_file(struct luo_file_set *, u64 token, struct file **)`.
pub struct RestoreFile;

impl Handler for RestoreFile {
    fn entry<E: Entry>(entry: &E) {
        let session = session_of_set(entry);
        let token = entry.arg(1);
        task::enter::<E::Orchestrator>(Kind::Restore, entry.arg(2), |call| {
            set_session(call, session);
            set_token(call, token);
        });
    }

    fn exit<X: Exit>(exit: &X) {
        leave_restore(exit);
    }
}

/// A function over all files of a session; its first argument is the `struct luo_file_set *`.
macro_rules! sets {
    ($($(#[$doc:meta])* $name:ident: $kind:ident, $send:ident;)*) => {$(
        $(#[$doc])*
        pub struct $name;

        impl Handler for $name {
            fn entry<E: Entry>(entry: &E) {
                let session = session_of_set(entry);
                task::enter::<E::Orchestrator>(Kind::$kind, 0, |call| set_session(call, session));
            }

            fn exit<X: Exit>(exit: &X) {
                $send(Kind::$kind, exit);
                // Within reboot(2) the next one's turn comes.
                if let Some(context) = task::context()
                    && context.entered(Kind::Kexec).is_some()
                {
                    context.call.known &= !known::SESSION;
                }
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

/// A function without arguments.
macro_rules! plain {
    ($($(#[$doc:meta])* $name:ident: $kind:ident, $send:ident;)*) => {$(
        $(#[$doc])*
        pub struct $name;

        impl Handler for $name {
            fn entry<E: Entry>(_entry: &E) {
                task::enter::<E::Orchestrator>(Kind::$kind, 0, |_| {});
            }

            fn exit<X: Exit>(exit: &X) {
                $send(Kind::$kind, exit);
            }
        }
    )*};
}

plain! {
    /// `int luo_session_serialize(void)`: the freeze of everything.
    Serialize: Freeze, send_call;
    /// `int luo_session_deserialize(void)`.
    Deserialize: Deserialize, send_call;
    /// `void luo_flb_serialize(void)`.
    FlbSerialize: FlbFreeze, send_void_call;
}

/// What a file's handler did with it; its argument is the `struct liveupdate_file_op_args *`.
///
/// Within the preserve or the retrieve of one file it adds its time to that call; where all files of a session
/// have their turn each is told.
fn leave_op<X: Exit>(kind: Kind, exit: &X, ret: i64) {
    let Some(context) = task::context() else {
        task::count_missing();
        return;
    };
    let Some(entered) = task::leave(context, kind) else {
        return;
    };
    let file = X::Orchestrator::file_of(entered.arg).filter(|file| *file != 0);
    if matches!(kind, Kind::FilePreserve | Kind::FileRetrieve) {
        context.call.op_ns = entered.elapsed();
        context.call.known |= known::OP;
        if let Some(file) = file {
            task::name_file(file, context.call.token);
            // The question whether it can be preserved may have told already.
            if context.call.known & known::FILE == 0 {
                describe::<X::Orchestrator>(&mut context.call, file);
            }
        }
        return;
    }
    let mut call: Call = task::zeroed();
    call.session = context.call.session;
    call.known = context.call.known & known::SESSION;
    if let Some(file) = file {
        describe::<X::Orchestrator>(&mut call, file);
        if let Some(token) = task::token_of(file) {
            set_token(&mut call, token);
        }
    }
    task::send_exit::<X::Orchestrator>(kind, exit.flags(), &entered, ret, &call);
    task::end(context);
}

macro_rules! ops {
    ($($(#[$doc:meta])* $name:ident: $kind:ident, $ret:expr;)*) => {$(
        $(#[$doc])*
        pub struct $name;

        impl Handler for $name {
            fn entry<E: Entry>(entry: &E) {
                task::enter::<E::Orchestrator>(Kind::$kind, entry.arg(0), |_| {});
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
