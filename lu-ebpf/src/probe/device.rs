//! The device: who opens it, who closes it, and each ioctl.

use lu_common::event::{Kind, known};

use super::{Handler, finish};
use crate::attach::{Entry, Exit};
use crate::call;

/// `static int luo_open(struct inode *, struct file *)`, v3 patch 16 and Linux 7.3.
pub struct Open;

impl Handler for Open {
    fn entry<E: Entry>(entry: &E) {
        call::begin::<E::Orchestrator>(Kind::Open, Some(entry.arg(1)), 0);
    }

    fn exit<X: Exit>(exit: &X) {
        finish(Kind::Open, exit);
    }
}

/// `static int luo_release(struct inode *, struct file *)`, v3 patch 16 and Linux 7.3.
pub struct Release;

impl Handler for Release {
    fn entry<E: Entry>(entry: &E) {
        call::begin::<E::Orchestrator>(Kind::Release, Some(entry.arg(1)), 0);
    }

    fn exit<X: Exit>(exit: &X) {
        finish(Kind::Release, exit);
    }
}

/// An ioctl begins; the exit needs `arg`.
pub(super) fn begin_ioctl<E: Entry>(entry: &E, arg: u64) {
    let (file, cmd) = (entry.arg(0), entry.arg(1) as u32);
    if let Some(context) = call::begin::<E::Orchestrator>(Kind::Ioctl, Some(file), arg) {
        context.call.cmd = cmd;
        context.call.known |= known::CMD;
    }
}

/// `static long luo_ioctl(struct file *, unsigned int cmd, unsigned long arg)`, v3 patch 16 and Linux 7.3.
pub struct Ioctl;

impl Handler for Ioctl {
    fn entry<E: Entry>(entry: &E) {
        begin_ioctl(entry, 0);
    }

    fn exit<X: Exit>(exit: &X) {
        finish(Kind::Ioctl, exit);
    }
}
