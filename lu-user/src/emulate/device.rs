//! The device as a FUSE file: requests in, the orchestrator's functions called, answers out.
//!
//! Requests are served one after the other by one thread, but `FD_RESTORE`, which acts within the caller. That
//! keeps their order: the close that a client has made is served before the open that follows it, and the
//! kernel sends no close while a call on the file is under way.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fuser::{
    Errno as FuseErrno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, INodeNo,
    IoctlFlags, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyIoctl, ReplyOpen,
    ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use lu_common::event::Task;
use lu_common::uapi::v3;
use nix::errno::Errno;

use super::client::Client;
use super::inject::Seized;
use super::luo;

/// How long the kernel may remember the file's attributes.
const REMEMBER: Duration = Duration::from_secs(1);

/// How long closes may take to arrive. A child of the command that still runs keeps the device open
/// for longer, and loses it with us.
const CLOSES_WITHIN: Duration = Duration::from_millis(200);

/// The device, shared by the thread that serves it and the one that plays the reboot.
#[derive(Default)]
pub struct Device {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    next_handle: u64,
    /// Open files of this epoch, and who opened them.
    open: BTreeMap<u64, Task>,
    /// Between the end of the old kernel's clients and the new kernel's start.
    down: bool,
    /// Opens that came while the machine was down.
    waiting: Vec<(Client, ReplyOpen)>,
}

impl Device {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on closes no longer reach the orchestrator, and opens wait: its clients are ending.
    pub fn go_down(&self) {
        self.inner().down = true;
    }

    /// Whether a file of the epoch that goes down is still open.
    pub fn is_open(&self) -> bool {
        !self.inner().open.is_empty()
    }

    /// Waits a moment for the closes that the end of the command brought: FUSE tells them late, and
    /// whoever watches wants to see them.
    pub fn settle(&self) {
        let deadline = Instant::now() + CLOSES_WITHIN;
        while self.is_open() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// A new epoch: whoever waits is served.
    pub fn come_up(&self) {
        let mut inner = self.inner();
        inner.down = false;
        inner.open.clear();
        for (client, reply) in std::mem::take(&mut inner.waiting) {
            inner.open(&client, reply);
        }
    }
}

impl Inner {
    fn open(&mut self, client: &Client, reply: ReplyOpen) {
        match luo::open(&client.task) {
            Ok(()) => {
                self.next_handle += 1;
                self.open.insert(self.next_handle, client.task);
                reply.opened(
                    FileHandle(self.next_handle),
                    FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NONSEEKABLE,
                );
            }
            Err(errno) => reply.error(fuse(errno)),
        }
    }
}

fn fuse(errno: Errno) -> FuseErrno {
    FuseErrno::from_i32(errno as i32)
}

/// What the FUSE library serves.
pub struct Served {
    device: Arc<Device>,
    attributes: Mutex<FileAttr>,
}

impl Served {
    /// A file that only its owner may open, as the kernel makes the device.
    pub fn new(device: Arc<Device>) -> Self {
        Self {
            device,
            attributes: Mutex::new(FileAttr {
                ino: INodeNo::ROOT,
                size: 0,
                blocks: 0,
                atime: UNIX_EPOCH,
                mtime: UNIX_EPOCH,
                ctime: UNIX_EPOCH,
                crtime: UNIX_EPOCH,
                kind: FileType::RegularFile,
                perm: 0o600,
                nlink: 1,
                uid: 0,
                gid: 0,
                rdev: 0,
                blksize: 4096,
                flags: 0,
            }),
        }
    }

    fn attributes(&self) -> MutexGuard<'_, FileAttr> {
        self.attributes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Filesystem for Served {
    fn getattr(&self, _req: &Request, _ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&REMEMBER, &self.attributes());
    }

    fn setattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut attributes = self.attributes();
        if let Some(mode) = mode {
            attributes.perm = (mode & 0o7777) as u16;
        }
        attributes.uid = uid.unwrap_or(attributes.uid);
        attributes.gid = gid.unwrap_or(attributes.gid);
        reply.attr(&REMEMBER, &attributes);
    }

    fn open(&self, req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let client = match Client::of(req.pid()) {
            Ok(client) => client,
            Err(errno) => return reply.error(fuse(errno)),
        };
        let mut inner = self.device.inner();
        if inner.down {
            inner.waiting.push((client, reply));
        } else {
            inner.open(&client, reply);
        }
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // Tells the kernel that there is nothing to flush, at any close.
        reply.error(FuseErrno::ENOSYS);
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let mut inner = self.device.inner();
        // FUSE does not say who closes last; it is told as the one who opened.
        if let Some(opener) = inner.open.remove(&fh.0)
            && !inner.down
        {
            luo::release(&opener);
        }
        reply.ok();
    }

    // The device has neither: `vfs_read` and `vfs_write` give EINVAL.
    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        _size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        reply.error(FuseErrno::EINVAL);
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        _data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.error(FuseErrno::EINVAL);
    }

    fn ioctl(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        flags: IoctlFlags,
        cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        // v3 has no entry for 32-bit callers.
        if flags.contains(IoctlFlags::FUSE_IOCTL_COMPAT) {
            return reply.error(FuseErrno::ENOTTY);
        }
        {
            let inner = self.device.inner();
            if inner.down || !inner.open.contains_key(&fh.0) {
                return reply.error(FuseErrno::EIO);
            }
        }
        match Client::of(req.pid()) {
            // It deals with a thread that may be busy with an exec or its end, and must not hold up others.
            Ok(client) if cmd == v3::FD_RESTORE => {
                std::thread::spawn(move || serve(&client, cmd, reply));
            }
            Ok(client) => serve(&client, cmd, reply),
            Err(errno) => reply.error(fuse(errno)),
        }
    }
}

fn serve(client: &Client, cmd: u32, reply: ReplyIoctl) {
    // Seized before the token is spent: a caller that cannot be given the file keeps it.
    let seized = match (cmd == v3::FD_RESTORE)
        .then(|| Seized::new(client))
        .transpose()
    {
        Ok(seized) => seized,
        Err(errno) => {
            log::error!(
                "process {} cannot be given a descriptor: {errno}; is it being traced?",
                client.task.pid
            );
            return reply.error(fuse(errno));
        }
    };
    let address = client.ioctl_argument(cmd);
    let (result, install) = match address {
        Ok(address) => luo::ioctl(client, cmd, address),
        Err(errno) => (Err(errno), None),
    };
    match result {
        Ok(()) => reply.ioctl(0, &[]),
        Err(errno) => reply.error(fuse(errno)),
    }
    let (Some(seized), Some(install)) = (seized, install) else {
        return;
    };
    let installed = install.file.reopen().and_then(|file| {
        seized.install(&file, |fd| {
            let Some(mut argument) = install.tell else {
                return Ok(());
            };
            argument.set_word(std::mem::offset_of!(v3::FdRestore, fd), fd as u32);
            argument.write_back(client)
        })
    });
    match installed {
        Ok(_) => {}
        // It was killed while it waited: the file goes with this reference.
        Err(Errno::ESRCH) => log::info!("process {} ended during FD_RESTORE", client.task.pid),
        Err(errno) => log::error!(
            "FD_RESTORE into process {} failed at its last step: {errno}",
            client.task.pid
        ),
    }
}
