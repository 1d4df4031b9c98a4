//! The file handler of the sessions interface: the callbacks `memfd_luo_*` of `mm/memfd_luo.c`
//! (Linux 7.3.4), which take one `struct liveupdate_file_op_args *`.
//!
//! The kernel's memfd has no unfreeze callback; ours is there so that a probe sees the step. The kinds
//! that a developer asks for with `--also` go through the same functions.

use std::cmp::Ordering;
use std::ffi::{c_int, c_void};
use std::hint::black_box;
use std::ptr;
use std::sync::Arc;

use lu_common::event::{FileArgs, FileKind};
use nix::errno::Errno;

use super::super::files::{Files, Preserved, from_c, rehearsed, to_c, view};
use super::core::Handler;

/// A file as an object: a memfd is its inode, any other kind the open file.
pub struct Id(Arc<Preserved>);

impl Ord for Id {
    fn cmp(&self, other: &Self) -> Ordering {
        let key = |id: &Self| (id.0.kind(), id.0.identity());
        key(self).cmp(&key(other)).then_with(|| {
            if self.0.kind() == FileKind::Memfd {
                Ordering::Equal
            } else {
                self.0.compare(&other.0)
            }
        })
    }
}

impl PartialOrd for Id {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Id {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Id {}

impl Handler for Files {
    type File = Arc<Preserved>;
    type Id = Id;

    fn can_preserve(&self, file: &Self::File) -> bool {
        let files = ptr::from_ref(self).cast();
        black_box(memfd_luo_can_preserve as Predicate)(files, view(file))
    }

    fn id(&self, file: &Self::File) -> Id {
        Id(Arc::clone(file))
    }

    fn preserve(&self, file: &Self::File) -> Result<(), Errno> {
        from_c(black_box(memfd_luo_preserve as Callback)(&mut args(
            self, file,
        )))
    }

    fn unpreserve(&self, file: &Self::File) {
        black_box(memfd_luo_unpreserve as Notice)(&mut args(self, file));
    }

    fn freeze(&self, file: &Self::File) -> Result<(), Errno> {
        from_c(black_box(memfd_luo_freeze as Callback)(&mut args(
            self, file,
        )))
    }

    fn unfreeze(&self, file: &Self::File) {
        black_box(memfd_luo_unfreeze as Notice)(&mut args(self, file));
    }

    fn retrieve(&self, file: &Self::File) -> Result<(), Errno> {
        // There is no file yet, but what was saved of it.
        let mut args = args(self, file);
        args.file = 0;
        from_c(black_box(memfd_luo_retrieve as Callback)(&mut args))
    }

    fn can_finish(&self, file: &Self::File) -> bool {
        !self.busy_finish.contains(&file.token())
    }

    fn finish(&self, file: &Self::File, retrieved: Option<Result<(), Errno>>) {
        let mut args = args(self, file);
        args.retrieve_status = match retrieved {
            None => 0,
            Some(Ok(())) => 1,
            Some(Err(errno)) => -(errno as i32),
        };
        if retrieved != Some(Ok(())) {
            args.file = 0;
        }
        black_box(memfd_luo_finish as Notice)(&mut args);
    }
}

type Predicate = extern "C" fn(*const c_void, *const c_void) -> bool;
type Callback = extern "C" fn(&mut FileArgs) -> c_int;
type Notice = extern "C" fn(&mut FileArgs);

fn args(files: &Files, file: &Arc<Preserved>) -> FileArgs {
    let address = |pointer: *const c_void| pointer.expose_provenance() as u64;
    FileArgs {
        handler: address(ptr::from_ref(files).cast()),
        retrieve_status: 0,
        padding: 0,
        file: address(view(file)),
        serialized_data: address(view(file)),
        private_data: 0,
    }
}

/// The handler and the file that [`args`] made the structure of.
///
/// # Safety
///
/// Both must still be there, as they are for the callbacks: they are called from above alone.
unsafe fn behind(args: &FileArgs) -> (&Files, &Preserved) {
    // SAFETY: made from a reference that the caller still holds.
    let files = unsafe { &*ptr::with_exposed_provenance::<Files>(args.handler as usize) };
    // SAFETY: likewise.
    let file =
        unsafe { &*ptr::with_exposed_provenance::<Preserved>(args.serialized_data as usize) };
    (files, file)
}

/// `static bool memfd_luo_can_preserve(struct liveupdate_file_handler *, struct file *)`.
#[unsafe(export_name = "sessions.memfd_luo_can_preserve")]
#[inline(never)]
extern "C" fn memfd_luo_can_preserve(handler: *const c_void, file: *const c_void) -> bool {
    black_box("can_preserve");
    // SAFETY: the only caller is above and passes references to these types.
    let handler = unsafe { &*handler.cast::<Files>() };
    // SAFETY: likewise.
    let file = unsafe { &*file.cast::<Preserved>() };
    handler.accepts(file)
}

/// `static int memfd_luo_preserve(struct liveupdate_file_op_args *)`.
#[unsafe(export_name = "sessions.memfd_luo_preserve")]
#[inline(never)]
extern "C" fn memfd_luo_preserve(args: &mut FileArgs) -> c_int {
    black_box("preserve");
    // SAFETY: the only caller is above.
    let (files, file) = unsafe { behind(args) };
    to_c(rehearsed(&files.fail_prepare, file.token()).and_then(|()| file.save()))
}

/// `static void memfd_luo_unpreserve(struct liveupdate_file_op_args *)`.
#[unsafe(export_name = "sessions.memfd_luo_unpreserve")]
#[inline(never)]
extern "C" fn memfd_luo_unpreserve(args: &mut FileArgs) {
    black_box("unpreserve");
    // SAFETY: the only caller is above.
    let (_, file) = unsafe { behind(args) };
    file.forget();
}

/// `static int memfd_luo_freeze(struct liveupdate_file_op_args *)`: the position may have changed since
/// the file was preserved, all else has not.
#[unsafe(export_name = "sessions.memfd_luo_freeze")]
#[inline(never)]
extern "C" fn memfd_luo_freeze(args: &mut FileArgs) -> c_int {
    black_box("freeze");
    // SAFETY: the only caller is above.
    let (files, file) = unsafe { behind(args) };
    to_c(
        rehearsed(&files.fail_freeze, file.token())
            .and_then(|()| file.check_size())
            .and_then(|()| file.save_position()),
    )
}

/// `void unfreeze(struct liveupdate_file_op_args *)`: there is nothing to undo.
#[unsafe(export_name = "sessions.memfd_luo_unfreeze")]
#[inline(never)]
extern "C" fn memfd_luo_unfreeze(args: &mut FileArgs) {
    black_box("unfreeze");
    black_box(args);
}

/// `static int memfd_luo_retrieve(struct liveupdate_file_op_args *)`.
#[unsafe(export_name = "sessions.memfd_luo_retrieve")]
#[inline(never)]
extern "C" fn memfd_luo_retrieve(args: &mut FileArgs) -> c_int {
    black_box("retrieve");
    // SAFETY: the only caller is above.
    let (files, file) = unsafe { behind(args) };
    let done = rehearsed(&files.fail_restore, file.token()).and_then(|()| file.retrieve());
    if done.is_ok() {
        args.file = args.serialized_data;
    }
    to_c(done)
}

/// `static void memfd_luo_finish(struct liveupdate_file_op_args *)`: what nobody retrieved goes with the
/// last reference.
#[unsafe(export_name = "sessions.memfd_luo_finish")]
#[inline(never)]
extern "C" fn memfd_luo_finish(args: &mut FileArgs) {
    black_box("finish");
    black_box(args);
}
