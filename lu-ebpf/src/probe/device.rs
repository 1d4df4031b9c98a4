//! The device: who opens it, who closes it, and each ioctl.

use lu_common::event::{Kind, known};

use super::{Handler, send_call};
use crate::attach::{Entry, Exit};
use crate::task;

/// `static int luo_open(struct inode *, struct file *)`, v3 patch 16.
pub struct Open;

impl Handler for Open {
    fn entry<E: Entry>(entry: &E) {
        task::open_context::<E::Orchestrator>(Kind::Open, entry.arg(1));
        task::enter(Kind::Open, 0);
    }

    fn exit<X: Exit>(exit: &X) {
        send_call(Kind::Open, exit);
        task::close_context(Kind::Open);
    }
}

/// `static int luo_release(struct inode *, struct file *)`, v3 patch 16.
pub struct Release;

impl Handler for Release {
    fn entry<E: Entry>(entry: &E) {
        task::open_context::<E::Orchestrator>(Kind::Release, entry.arg(1));
        task::enter(Kind::Release, 0);
    }

    fn exit<X: Exit>(exit: &X) {
        send_call(Kind::Release, exit);
        task::close_context(Kind::Release);
    }
}

/// `static long luo_ioctl(struct file *, unsigned int cmd, unsigned long arg)`, v3 patch 16.
pub struct Ioctl;

impl Handler for Ioctl {
    fn entry<E: Entry>(entry: &E) {
        task::open_context::<E::Orchestrator>(Kind::Ioctl, entry.arg(0));
        let cmd = entry.arg(1) as u32;
        task::learn(|call| {
            call.cmd = cmd;
            call.known |= known::CMD;
        });
        task::enter(Kind::Ioctl, 0);
    }

    fn exit<X: Exit>(exit: &X) {
        send_call(Kind::Ioctl, exit);
        task::close_context(Kind::Ioctl);
    }
}
