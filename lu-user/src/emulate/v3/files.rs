//! The file handler of v3: the callbacks `memfd_luo_*` of v3 patch 27.
//!
//! They are functions with the kernel's names and C signatures, so that probes can sit on them; the kinds
//! that a developer asks for with `--also` go through the same ones.

use std::ffi::{c_int, c_void};
use std::hint::black_box;
use std::sync::Arc;

use nix::errno::Errno;

use super::super::files::{Files, Preserved, from_c, rehearsed, to_c, view};
use super::core::Handler;

impl Handler for Files {
    type File = Arc<Preserved>;

    fn can_preserve(&self, _token: u64, file: &Self::File) -> bool {
        black_box(memfd_luo_can_preserve as Predicate)(handler(self), view(file))
    }

    fn prepare(&self, _token: u64, file: &mut Self::File) -> Result<(), Errno> {
        let mut data = 0;
        from_c(black_box(memfd_luo_prepare as Callback)(
            handler(self),
            view(file),
            &raw mut data,
        ))
    }

    fn freeze(&self, _token: u64, file: &mut Self::File) -> Result<(), Errno> {
        let mut data = 0;
        from_c(black_box(memfd_luo_freeze as Callback)(
            handler(self),
            view(file),
            &raw mut data,
        ))
    }

    fn cancel(&self, _token: u64, file: &mut Self::File) {
        file.forget();
    }

    fn retrieve(&self, token: u64, _file: &Self::File) -> Result<(), Errno> {
        rehearsed(&self.fail_restore, token)
    }
}

type Predicate = extern "C" fn(*const c_void, *const c_void) -> bool;
type Callback = extern "C" fn(*const c_void, *const c_void, *mut u64) -> c_int;

fn handler(files: &Files) -> *const c_void {
    (&raw const *files).cast()
}

/// `static bool memfd_luo_can_preserve(struct liveupdate_file_handler *, struct file *)`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn memfd_luo_can_preserve(handler: *const c_void, file: *const c_void) -> bool {
    // SAFETY: the only caller is above and passes references to these types.
    let handler = unsafe { &*handler.cast::<Files>() };
    // SAFETY: likewise.
    let file = unsafe { &*file.cast::<Preserved>() };
    handler.accepts(file)
}

/// `static int memfd_luo_prepare(struct liveupdate_file_handler *, struct file *, u64 *)`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn memfd_luo_prepare(
    handler: *const c_void,
    file: *const c_void,
    data: *mut u64,
) -> c_int {
    // SAFETY: the only caller is above and passes references to these types.
    let handler = unsafe { &*handler.cast::<Files>() };
    // SAFETY: likewise.
    let file = unsafe { &*file.cast::<Preserved>() };
    black_box(data);
    to_c(rehearsed(&handler.fail_prepare, file.token()).and_then(|()| file.save()))
}

/// `static int memfd_luo_freeze(struct liveupdate_file_handler *, struct file *, u64 *)`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn memfd_luo_freeze(
    handler: *const c_void,
    file: *const c_void,
    data: *mut u64,
) -> c_int {
    // SAFETY: the only caller is above and passes references to these types.
    let handler = unsafe { &*handler.cast::<Files>() };
    // SAFETY: likewise.
    let file = unsafe { &*file.cast::<Preserved>() };
    black_box(data);
    to_c(rehearsed(&handler.fail_freeze, file.token()).and_then(|()| file.check_size()))
}
