//! The device as a FUSE file: requests in, the orchestrator's functions called, answers out.
//!
//! Requests are served one after the other by one thread, but the calls that give out a descriptor, which
//! act within the caller and may ask for a session's open file, that is, ask this very thread. That keeps
//! their order: the close that a client has made is served before the open, or the call, that follows it,
//! and the kernel sends no close while a call on the file is under way.
//!
//! A session's descriptor is an open file of this same file system, opened by ourselves; the handle tells
//! what a file stands for.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fuser::{
    Errno as FuseErrno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, INodeNo,
    IoctlFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyIoctl,
    ReplyOpen, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use lu_common::event::Task;
use lu_common::policy::Operation;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::gettid;

use super::client::Client;
use super::inject::Seized;
use super::orchestrator::{FD, Install, Opened, Orchestrator};
use super::sessions::SessionHandle;

/// How long the kernel may remember the file's attributes.
const REMEMBER: Duration = Duration::from_secs(1);

/// How long closes may take to arrive. A child of the command that still runs keeps the device open
/// for longer, and loses it with us.
const CLOSES_WITHIN: Duration = Duration::from_millis(200);

/// The device, shared by the thread that serves it and the one that plays the reboot.
pub struct Device {
    orchestrator: &'static dyn Orchestrator,
    inner: Mutex<Inner>,
    /// Told when a call has ended.
    idle: Condvar,
}

#[derive(Default)]
struct Inner {
    next_handle: u64,
    /// Open files of this epoch: what each stands for, and who opened it.
    open: BTreeMap<u64, (Opened, Task)>,
    /// How many calls the orchestrator is in.
    calls: usize,
    /// From the beginning of the reboot to its failure or the new kernel's start.
    down: bool,
    /// What came while the machine was down.
    parked: Vec<Parked>,
    /// The device's place, from which we open it too.
    place: Option<OwnedFd>,
    /// What our own threads are about to open, by thread, and for whom; nothing where the thread only waits
    /// for its turn.
    ours: BTreeMap<u32, Option<(Opened, Task)>>,
}

/// A request that has to wait for the end of the reboot.
enum Parked {
    Open(Client, ReplyOpen),
    Release(Opened, Task),
    Call(Pending),
}

/// An ioctl to be served.
struct Pending {
    opened: Opened,
    client: Client,
    cmd: u32,
    reply: ReplyIoctl,
}

impl Device {
    /// A device that nobody has open.
    pub fn new(orchestrator: &'static dyn Orchestrator) -> Self {
        Self {
            orchestrator,
            inner: Mutex::default(),
            idle: Condvar::new(),
        }
    }

    /// Who answers.
    pub const fn orchestrator(&self) -> &'static dyn Orchestrator {
        self.orchestrator
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells where the device stands (opened with `O_PATH`).
    pub fn stands_at(&self, place: OwnedFd) {
        self.inner().place = Some(place);
    }

    /// From now on nothing reaches the orchestrator, once the calls that it is in have ended.
    pub fn go_down(&self) {
        let mut inner = self.inner();
        inner.down = true;
        while inner.calls > 0 {
            inner = self
                .idle
                .wait(inner)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The reboot has failed: whoever waits is served, in their order.
    pub fn come_back(self: &Arc<Self>) {
        let mut inner = self.inner();
        inner.down = false;
        let mut calls = Vec::new();
        for parked in std::mem::take(&mut inner.parked) {
            match parked {
                Parked::Open(client, reply) => inner.open(self.orchestrator, &client, reply),
                Parked::Release(opened, holder) => self.orchestrator.release(&holder, &opened),
                Parked::Call(pending) => {
                    inner.calls += 1;
                    calls.push(pending);
                }
            }
        }
        drop(inner);
        for pending in calls {
            self.call(pending);
        }
    }

    /// Ends the calls of the old kernel's clients, which are being killed.
    pub fn drop_calls(&self) {
        let mut inner = self.inner();
        for parked in std::mem::take(&mut inner.parked) {
            match parked {
                Parked::Call(pending) => pending.reply.error(FuseErrno::EIO),
                Parked::Release(..) => {}
                open @ Parked::Open(..) => inner.parked.push(open),
            }
        }
    }

    /// Whether a file of the epoch that goes down is still open.
    pub fn is_open(&self) -> bool {
        !self.inner().open.is_empty()
    }

    /// Waits a moment for the closes that the end of the command brought: FUSE tells them late, and
    /// whoever watches wants to see them. Afterwards we keep the file system no longer.
    pub fn settle(&self) {
        let deadline = Instant::now() + CLOSES_WITHIN;
        while self.is_open() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.inner().place = None;
    }

    /// A new epoch: whoever waits is served.
    pub fn come_up(self: &Arc<Self>) {
        self.drop_calls();
        self.inner().open.clear();
        self.come_back();
    }

    /// A new open file that stands for a session.
    ///
    /// Not from the thread that serves: it has to answer this.
    pub fn open_session(&self, handle: SessionHandle) -> Result<OwnedFd, Errno> {
        self.open_ours(Some((Opened::Session(handle), handle.task())))
            .map_err(|errno| match errno {
                // Ours, not the caller's.
                Errno::EMFILE | Errno::ENFILE => Errno::ENOMEM,
                errno => errno,
            })
    }

    /// Returns when every request has been served that was made before: a close that has returned to its
    /// caller may still be on its way to us.
    ///
    /// Not from the thread that serves.
    pub fn catch_up(&self) {
        let _ = self.open_ours(None);
    }

    fn open_ours(&self, what: Option<(Opened, Task)>) -> Result<OwnedFd, Errno> {
        let thread = gettid().as_raw() as u32;
        let path = {
            let mut inner = self.inner();
            let place = inner.place.as_ref().ok_or(Errno::ENODEV)?;
            let path = format!("/proc/self/fd/{}", place.as_raw_fd());
            inner.ours.insert(thread, what);
            path
        };
        let file = open(
            path.as_str(),
            OFlag::O_RDWR | OFlag::O_CLOEXEC,
            Mode::empty(),
        );
        self.inner().ours.remove(&thread);
        file
    }

    /// Serves a call that is counted already.
    fn call(self: &Arc<Self>, pending: Pending) {
        if self.orchestrator.gives_descriptor(pending.cmd) {
            // It deals with a thread that may be busy with an exec or its end, and must not hold up others.
            let device = Arc::clone(self);
            std::thread::spawn(move || device.serve(pending));
        } else {
            self.serve(pending);
        }
    }

    fn serve(&self, pending: Pending) {
        let Pending {
            opened,
            client,
            cmd,
            reply,
        } = pending;
        // Seized before anything is done: a caller that cannot be given a descriptor loses nothing.
        let seized = self
            .orchestrator
            .gives_descriptor(cmd)
            .then(|| Seized::new(&client))
            .transpose()
            .inspect_err(|errno| {
                log::error!(
                    "process {} cannot be given a descriptor: {errno}; is it being traced?",
                    client.task.pid
                );
            });
        let (result, install) = match (&seized, client.ioctl_argument(cmd)) {
            (Err(errno), _) => (Err(*errno), None),
            (_, Err(errno)) => (Err(errno), None),
            (Ok(_), Ok(address)) => self.orchestrator.ioctl(&opened, &client, cmd, address),
        };
        match result {
            Ok(()) => reply.ioctl(0, &[]),
            Err(errno) => reply.error(fuse(errno)),
        }
        self.inner().calls -= 1;
        self.idle.notify_all();
        if let (Ok(Some(seized)), Some(install)) = (seized, install) {
            give(&client, seized, install);
        }
    }
}

/// Gives the caller what its call is answered with.
fn give(client: &Client, seized: Seized, install: Install) {
    let Install { file, tell } = install;
    let installed = seized.install(file, |fd| {
        let Some(mut argument) = tell else {
            return Ok(());
        };
        argument.set_word(FD, fd as u32);
        argument.write_back(client)
    });
    let pid = client.task.pid;
    match installed {
        Ok(_) => {}
        // It was killed while it waited: the file goes with this reference.
        Err(Errno::ESRCH) => log::info!("process {pid} ended while it was given a descriptor"),
        Err(errno) => log::error!("process {pid} could not be given a descriptor: {errno}"),
    }
}

impl Inner {
    fn open(&mut self, orchestrator: &dyn Orchestrator, client: &Client, reply: ReplyOpen) {
        let allowed = orchestrator.ask(client, Operation::Open);
        match allowed.and_then(|()| orchestrator.open(&client.task)) {
            Ok(()) => self.opened(Opened::Device, client.task, reply),
            Err(errno) => reply.error(fuse(errno)),
        }
    }

    fn opened(&mut self, opened: Opened, holder: Task, reply: ReplyOpen) {
        self.next_handle += 1;
        self.open.insert(self.next_handle, (opened, holder));
        reply.opened(
            FileHandle(self.next_handle),
            FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NONSEEKABLE,
        );
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
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Closes are sent in the background; beyond this many the others would wait, and a call that was
        // made after a close would be served before it.
        let _ = config.set_max_background(u16::MAX);
        Ok(())
    }

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
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        // ftruncate; an open with O_TRUNC comes without the file, and is fine with a device.
        if size.is_some() && fh.is_some() {
            return reply.error(FuseErrno::EINVAL);
        }
        let mut attributes = self.attributes();
        if let Some(mode) = mode {
            attributes.perm = (mode & 0o7777) as u16;
        }
        attributes.uid = uid.unwrap_or(attributes.uid);
        attributes.gid = gid.unwrap_or(attributes.gid);
        reply.attr(&REMEMBER, &attributes);
    }

    fn open(&self, req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let mut inner = self.device.inner();
        match inner.ours.remove(&req.pid()) {
            Some(Some((opened, holder))) => return inner.opened(opened, holder, reply),
            Some(None) => return reply.error(FuseErrno::EAGAIN),
            None => {}
        }
        match Client::of(req.pid()) {
            Err(errno) => reply.error(fuse(errno)),
            Ok(client) if inner.down => inner.parked.push(Parked::Open(client, reply)),
            Ok(client) => inner.open(self.device.orchestrator, &client, reply),
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
        if let Some((opened, holder)) = inner.open.remove(&fh.0) {
            if inner.down {
                inner.parked.push(Parked::Release(opened, holder));
            } else {
                self.device.orchestrator.release(&holder, &opened);
            }
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
        // Neither interface has an entry for 32-bit callers.
        if flags.contains(IoctlFlags::FUSE_IOCTL_COMPAT) {
            return reply.error(FuseErrno::ENOTTY);
        }
        let client = match Client::of(req.pid()) {
            Ok(client) => client,
            Err(errno) => return reply.error(fuse(errno)),
        };
        let mut inner = self.device.inner();
        let Some((opened, _)) = inner.open.get(&fh.0) else {
            return reply.error(FuseErrno::EIO);
        };
        let pending = Pending {
            opened: *opened,
            client,
            cmd,
            reply,
        };
        if inner.down {
            inner.parked.push(Parked::Call(pending));
        } else {
            inner.calls += 1;
            drop(inner);
            self.device.call(pending);
        }
    }
}
