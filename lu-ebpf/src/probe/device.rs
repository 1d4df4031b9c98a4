//! The device: who opens it, who closes it, and each ioctl.

use lu_common::event::{Kind, known};

use super::{Handler, send_call};
use crate::attach::{Entry, Exit};
use crate::task;

/// `static int luo_open(struct inode *, struct file *)`, v3 patch 16 and Linux 7.3.
pub struct Open;

impl Handler for Open {
    fn entry<E: Entry>(entry: &E) {
        task::open::<E::Orchestrator>(entry.arg(1));
        task::enter::<E::Orchestrator>(Kind::Open, 0, |_| {});
    }

    fn exit<X: Exit>(exit: &X) {
        send_call(Kind::Open, exit);
    }
}

/// `static int luo_release(struct inode *, struct file *)`, v3 patch 16 and Linux 7.3.
pub struct Release;

impl Handler for Release {
    fn entry<E: Entry>(entry: &E) {
        task::open::<E::Orchestrator>(entry.arg(1));
        task::enter::<E::Orchestrator>(Kind::Release, 0, |_| {});
    }

    fn exit<X: Exit>(exit: &X) {
        send_call(Kind::Release, exit);
    }
}

/// `static long luo_ioctl(struct file *, unsigned int cmd, unsigned long arg)`, v3 patch 16 and Linux 7.3.
pub struct Ioctl;

impl Handler for Ioctl {
    fn entry<E: Entry>(entry: &E) {
        task::open::<E::Orchestrator>(entry.arg(0));
        let cmd = entry.arg(1) as u32;
        task::enter::<E::Orchestrator>(Kind::Ioctl, 0, |call| {
            call.cmd = cmd;
            call.known |= known::CMD;
        });
    }

    fn exit<X: Exit>(exit: &X) {
        send_call(Kind::Ioctl, exit);
    }
}
