//! The functions of the sessions interface, with the kernel's C signatures and in its nesting, so that
//! probes can sit on them: `sessions.luo_open` to `sessions.luo_startup`.
//!
//! `struct file *` points to a [`Task`] for the device and to a [`SessionFile`] for a session,
//! `struct luo_file_set *` and `const char *name` to the session's name, padded to 64 bytes: by its name
//! each function finds the session, outgoing or incoming as the function has it.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ffi::{c_int, c_long, c_uint, c_ulong, c_void};
use std::hint::black_box;
use std::mem::offset_of;
use std::os::fd::OwnedFd;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use lu_common::event::{FileKind, SessionFile, Task};
use lu_common::policy::{Operation, Standing, Text, TokenKey, Usage};
use lu_common::uapi::sessions::{self, NAME_LEN};
use lu_common::uapi::{Command, Interface};
use nix::errno::Errno;
use nix::unistd::Pid;

use super::super::argument::Argument;
use super::super::client::Client;
use super::super::device::Device;
use super::super::files::{Files, Preserved, from_c, to_c, view};
use super::super::inject::is_ending;
use super::super::judge::{self, Asked};
use super::super::orchestrator::{Install, Opened, Orchestrator};
use super::super::reboot;
use super::SessionHandle;
use super::core::{Calls, Core, Direction, Name, release, serialize};

struct Luo {
    core: Mutex<Core<Files>>,
    device: Arc<Device>,
    /// Sessions with files that were closed by the end of a process, and not made again since.
    lost: Mutex<BTreeSet<Name>>,
}

static LUO: OnceLock<Luo> = OnceLock::new();

thread_local! {
    /// What the kernel knows as `current`, and what its functions leave on the stack of the ioctl.
    static CURRENT: RefCell<Option<Current>> = const { RefCell::new(None) };
}

struct Current {
    client: Client,
    /// What was read of it already, because it was judged.
    judged: Option<Read>,
    /// What the caller is to get a descriptor of.
    made: Option<OwnedFd>,
    install: Option<Install>,
}

/// Sets the orchestrator up; once in a process. `device` is where sessions get their open files.
pub fn init(handler: Files, device: Arc<Device>) {
    let luo = Luo {
        core: Mutex::new(Core::new(handler)),
        device,
        lost: Mutex::default(),
    };
    assert!(LUO.set(luo).is_ok(), "there is one orchestrator");
}

fn luo() -> &'static Luo {
    LUO.get().expect("init() has been called")
}

fn core() -> MutexGuard<'static, Core<Files>> {
    luo().core.lock().unwrap_or_else(PoisonError::into_inner)
}

fn lost() -> MutexGuard<'static, BTreeSet<Name>> {
    luo().lost.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the caller gave, as it was judged.
struct Read {
    argument: Result<Argument, Errno>,
    /// The file behind its descriptor, where that is asked for.
    file: Option<Result<Arc<Preserved>, Errno>>,
}

impl Read {
    /// Reads what the caller gave, and asks the policy. What cannot be read is the orchestrator's to refuse.
    fn judged(
        policy: &judge::Enforced,
        opened: &Opened,
        client: &Client,
        cmd: u32,
        arg: u64,
    ) -> Result<Self, Errno> {
        let mut read = Self {
            argument: match opened {
                Opened::Device => read_on_device(client, cmd, arg),
                Opened::Session(handle) => read_on_session(handle, client, cmd, arg),
            },
            file: None,
        };
        let Ok(argument) = &read.argument else {
            return Ok(read);
        };
        let (operation, session) = match (opened, cmd) {
            (Opened::Device, sessions::CREATE_SESSION) => (Operation::Create, name_of(argument)),
            (Opened::Device, _) => (Operation::Retrieve, name_of(argument)),
            (Opened::Session(handle), sessions::PRESERVE_FD) => {
                (Operation::Preserve, handle.name())
            }
            (Opened::Session(handle), sessions::RETRIEVE_FD) => (Operation::Restore, handle.name()),
            (Opened::Session(handle), sessions::FINISH) => (Operation::Finish, handle.name()),
            (Opened::Session(_), _) => return Ok(read),
        };
        let is_about_file = matches!(operation, Operation::Preserve | Operation::Restore);
        let token = is_about_file.then(|| argument.long(offset_of!(sessions::Fd, token)));
        let mut file = None;
        if let (Operation::Preserve, Some(token)) = (operation, token) {
            let fd = argument.word(offset_of!(sessions::Fd, fd)) as i32;
            match read.file.insert(Preserved::of(client, token, fd)) {
                Ok(preserved) => file = Some((fd, &**preserved)),
                Err(_) => return Ok(read),
            }
        }
        let asked = Asked {
            session: session.bytes(),
            token,
            file,
            ..Asked::plain(client, operation)
        };
        ask(policy, &asked)?;
        Ok(read)
    }
}

/// What is preserved, as the policy sees it.
struct Stands<'a> {
    core: &'a Core<Files>,
    /// What the request adds.
    asked: Usage,
}

fn text(name: &Name) -> Text {
    zerocopy::transmute!(name.bytes())
}

impl Standing for Stands<'_> {
    fn session(&self, name: &Text) -> Option<Usage> {
        let files = self.core.preserved();
        let of_it = files.filter(|(of, ..)| text(of) == *name);
        Some(judge::sum(self.asked, of_it.map(|(_, _, file)| file)))
    }

    fn in_all(&self) -> Option<Usage> {
        Some(judge::sum(self.asked, self.core.outgoing_files()))
    }

    fn is_preserved(&self, of: &TokenKey) -> Option<bool> {
        let mut files = self.core.preserved();
        Some(files.any(|(name, token, _)| token == of.token && text(name) == of.session))
    }

    fn is_restored(&self, of: &TokenKey) -> Option<bool> {
        let mut files = self.core.restored();
        Some(files.any(|(name, token)| token == of.token && text(name) == of.session))
    }

    fn is_device_free(&self) -> Option<bool> {
        Some(!self.core.is_open())
    }

    /// The emulated kexec needs none.
    fn is_image_loaded(&self) -> Option<bool> {
        Some(true)
    }

    fn is_no_session_lost(&self) -> Option<bool> {
        Some(lost().is_empty())
    }
}

fn ask(policy: &judge::Enforced, asked: &Asked<'_>) -> Result<(), Errno> {
    let core = core();
    let standing = Stands {
        core: &core,
        asked: asked.usage(),
    };
    policy.judge(Interface::Sessions, asked, &standing)
}

/// The orchestrator of the sessions interface.
pub struct Sessions;

impl Orchestrator for Sessions {
    fn interface(&self) -> Interface {
        Interface::Sessions
    }

    fn ask(&self, client: &Client, operation: Operation) -> Result<(), Errno> {
        match judge::in_force() {
            Some(policy) => ask(&policy, &Asked::plain(client, operation)),
            None => Ok(()),
        }
    }

    fn open(&self, caller: &Task) -> Result<(), Errno> {
        let function = black_box(luo_open as extern "C" fn(_, _) -> _);
        from_c(function(ptr::null(), ptr::from_ref(caller)))
    }

    fn release(&self, holder: &Task, opened: &Opened) {
        match opened {
            Opened::Device => {
                let function = black_box(luo_release as extern "C" fn(_, _) -> _);
                function(ptr::null(), ptr::from_ref(holder));
            }
            Opened::Session(handle) => {
                let name = handle.name();
                let has_files = || core().preserved().any(|(of, ..)| *of == name);
                if handle.direction == Direction::Outgoing && has_files() && has_ended(holder) {
                    lost().insert(name);
                }
                let function = black_box(luo_session_release as extern "C" fn(_, _) -> _);
                function(ptr::null(), ptr::from_ref(handle));
            }
        }
    }

    fn gives_descriptor(&self, cmd: u32) -> bool {
        matches!(
            cmd,
            sessions::CREATE_SESSION | sessions::RETRIEVE_SESSION | sessions::RETRIEVE_FD
        )
    }

    fn ioctl(
        &self,
        opened: &Opened,
        client: &Client,
        cmd: u32,
        arg: u64,
    ) -> (Result<(), Errno>, Option<Install>) {
        let policy = judge::in_force();
        let _turn = (policy.is_some() && !self.gives_descriptor(cmd)).then(judge::turn);
        let judged = policy.map(|policy| Read::judged(&policy, opened, client, cmd, arg));
        let judged = match judged.transpose() {
            Ok(judged) => judged,
            Err(errno) => return (Err(errno), None),
        };
        CURRENT.set(Some(Current {
            client: *client,
            judged,
            made: None,
            install: None,
        }));
        let result = match opened {
            Opened::Device => {
                let function = black_box(luo_ioctl as extern "C" fn(_, _, _) -> _);
                function(&raw const client.task, cmd, arg)
            }
            Opened::Session(handle) => {
                let handle = handle.called_by(client.task);
                let function = black_box(luo_session_ioctl as extern "C" fn(_, _, _) -> _);
                function(&raw const handle, cmd, arg)
            }
        };
        let install = CURRENT.take().and_then(|current| current.install);
        (from_c(result as c_int), install)
    }

    fn reboot(&self, caller: &Task) -> Result<(), Errno> {
        let function = black_box(sys_reboot as extern "C" fn(_) -> _);
        from_c(function(ptr::from_ref(caller)) as c_int)
    }

    fn liveupdate_reboot(&self) -> Result<(), Errno> {
        from_c(black_box(liveupdate_reboot as extern "C" fn() -> c_int)())
    }

    fn machine_kexec(&self) {
        black_box(machine_kexec as extern "C" fn(_))(ptr::null());
    }

    fn luo_startup(&self) {
        black_box(luo_startup as extern "C" fn() -> c_int)();
    }

    /// From `PRESERVE_FD` to the close of its session.
    fn holds_size_of(&self, identity: (u64, u64)) -> bool {
        core()
            .outgoing_files()
            .any(|file| file.kind() == FileKind::Memfd && file.identity() == identity)
    }
}

/// Whether a process has ended, or is about to.
fn has_ended(process: &Task) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{}/task", process.pid));
    threads
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .all(|tid| is_ending(Pid::from_raw(tid)))
}

/// The name behind a `struct luo_file_set *` or a `const char *`.
fn name_at(pointer: *const u8) -> Name {
    // SAFETY: every caller passes the address of 64 bytes.
    Name::up_to_nul(unsafe { *pointer.cast::<[u8; NAME_LEN]>() })
}

fn with_current<T>(look: impl FnOnce(&mut Current) -> T) -> T {
    CURRENT.with_borrow_mut(|current| look(current.as_mut().expect("set by ioctl()")))
}

/// The functions that others call for each session.
struct Functions;

impl Calls for Functions {
    fn freeze(&self, session: &Name) -> Result<(), Errno> {
        let function = black_box(luo_file_freeze as extern "C" fn(_, _) -> _);
        from_c(function(session.bytes().as_ptr(), ptr::null_mut()))
    }

    fn unfreeze(&self, session: &Name) {
        let function = black_box(luo_file_unfreeze as extern "C" fn(_, _));
        function(session.bytes().as_ptr(), ptr::null_mut());
    }

    fn unpreserve(&self, session: &Name) {
        let function = black_box(luo_file_unpreserve_files as extern "C" fn(_));
        function(session.bytes().as_ptr());
    }

    fn finish(&self, session: &Name) -> Result<(), Errno> {
        let function = black_box(luo_file_finish as extern "C" fn(_) -> _);
        from_c(function(session.bytes().as_ptr()))
    }

    fn remove(&self, session: &Name, from: Direction) {
        core().remove(session, from);
    }
}

/// `static int luo_open(struct inode *, struct file *)`.
#[unsafe(export_name = "sessions.luo_open")]
#[inline(never)]
extern "C" fn luo_open(inode: *const c_void, file: *const Task) -> c_int {
    black_box((inode, file));
    let opened = core().open();
    if opened.is_ok() {
        black_box(luo_session_deserialize as extern "C" fn() -> c_int)();
    }
    to_c(opened)
}

/// `static int luo_release(struct inode *, struct file *)`.
#[unsafe(export_name = "sessions.luo_release")]
#[inline(never)]
extern "C" fn luo_release(inode: *const c_void, file: *const Task) -> c_int {
    black_box((inode, file));
    core().close();
    0
}

/// `static long luo_ioctl(struct file *, unsigned int cmd, unsigned long arg)`.
#[unsafe(export_name = "sessions.luo_ioctl")]
#[inline(never)]
extern "C" fn luo_ioctl(file: *const Task, cmd: c_uint, arg: c_ulong) -> c_long {
    black_box(file);
    c_long::from(to_c(on_device(cmd, arg)))
}

fn read_on_device(client: &Client, cmd: u32, arg: u64) -> Result<Argument, Errno> {
    Argument::read(client, &sessions::DEVICE_COMMANDS, |_| true, cmd, arg)
}

/// What was judged of the argument, where it was.
fn judged_argument() -> Option<Result<Argument, Errno>> {
    with_current(|current| current.judged.as_ref().map(|read| read.argument))
}

/// The name that `CREATE_SESSION` and `RETRIEVE_SESSION` are given.
fn name_of(argument: &Argument) -> Name {
    Name::up_to_nul(argument.bytes(offset_of!(sessions::Session, name)))
}

fn on_device(cmd: u32, arg: u64) -> Result<(), Errno> {
    let client = with_current(|current| current.client);
    let argument = judged_argument().unwrap_or_else(|| read_on_device(&client, cmd, arg))?;
    // The descriptor is reserved before anything is looked at.
    if client.has_no_free_fd() {
        return Err(Errno::EMFILE);
    }
    let name = name_of(&argument).bytes();
    let mut file = ptr::null();
    let function = match cmd {
        sessions::CREATE_SESSION => luo_session_create as extern "C" fn(_, _) -> _,
        _ => luo_session_retrieve,
    };
    from_c(black_box(function)(name.as_ptr(), &raw mut file))?;
    give(&client, argument)
}

/// Whether the caller can be told a descriptor's number is known by writing back what is there: the
/// number itself is known only once the descriptor is in place, at the end of its system call. Where it
/// cannot, the file goes again, and with it a session.
fn give(client: &Client, argument: Argument) -> Result<(), Errno> {
    let made = with_current(|current| current.made.take());
    argument.write_back(client)?;
    with_current(|current| {
        current.install = made.map(|file| Install {
            file,
            tell: Some(argument),
        });
    });
    Ok(())
}

/// `static long luo_session_ioctl(struct file *, unsigned int cmd, unsigned long arg)`.
#[unsafe(export_name = "sessions.luo_session_ioctl")]
#[inline(never)]
extern "C" fn luo_session_ioctl(file: *const SessionHandle, cmd: c_uint, arg: c_ulong) -> c_long {
    // SAFETY: the only caller is above and passes a reference.
    let handle = unsafe { &*black_box(file) };
    c_long::from(to_c(on_session(handle, cmd, arg)))
}

fn read_on_session(
    handle: &SessionHandle,
    client: &Client,
    cmd: u32,
    arg: u64,
) -> Result<Argument, Errno> {
    let allowed = |command: &Command| match command.cmd {
        sessions::PRESERVE_FD => handle.direction == Direction::Outgoing,
        sessions::RETRIEVE_FD | sessions::FINISH => handle.direction == Direction::Incoming,
        _ => true,
    };
    Argument::read(client, &sessions::SESSION_COMMANDS, allowed, cmd, arg)
}

fn on_session(handle: &SessionHandle, cmd: u32, arg: u64) -> Result<(), Errno> {
    let client = with_current(|current| current.client);
    let read = || read_on_session(handle, &client, cmd, arg);
    let mut argument = judged_argument().unwrap_or_else(read)?;
    let set = handle.file.name.as_ptr();
    let token = || argument.long(offset_of!(sessions::Fd, token));
    match cmd {
        sessions::PRESERVE_FD => {
            let fd = argument.word(offset_of!(sessions::Fd, fd)) as i32;
            let function = black_box(luo_preserve_file as extern "C" fn(_, _, _) -> _);
            from_c(function(set, token(), fd))?;
            argument.write_back(&client)
        }
        sessions::RETRIEVE_FD => {
            // As in on_device().
            if client.has_no_free_fd() {
                return Err(Errno::EMFILE);
            }
            let mut file = ptr::null();
            let function = black_box(luo_retrieve_file as extern "C" fn(_, _, _) -> _);
            from_c(function(set, token(), &raw mut file))?;
            give(&client, argument)
        }
        _ if argument.word(offset_of!(sessions::Finish, reserved)) != 0 => Err(Errno::EINVAL),
        sessions::FINISH => {
            Functions.finish(&handle.name())?;
            argument.write_back(&client)
        }
        _ => {
            let name = &handle.file.name[..handle.name().copied()];
            argument.set_bytes(offset_of!(sessions::GetName, name), name);
            argument.write_back(&client)
        }
    }
}

const _: () = assert!(
    offset_of!(sessions::Finish, reserved) == offset_of!(sessions::GetName, reserved),
    "both are looked at in one place"
);

/// `int luo_session_create(const char *name, struct file **)`.
#[unsafe(export_name = "sessions.luo_session_create")]
#[inline(never)]
extern "C" fn luo_session_create(name: *const u8, filep: *mut *const c_void) -> c_int {
    let name = name_at(black_box(name));
    let created = core().create(&name);
    if created.is_ok() {
        lost().remove(&name);
    }
    to_c(created.and_then(|()| {
        getfile(name, Direction::Outgoing, filep)
            .inspect_err(|_| core().remove(&name, Direction::Outgoing))
    }))
}

/// `int luo_session_retrieve(const char *name, struct file **)`.
#[unsafe(export_name = "sessions.luo_session_retrieve")]
#[inline(never)]
extern "C" fn luo_session_retrieve(name: *const u8, filep: *mut *const c_void) -> c_int {
    let name = name_at(black_box(name));
    let retrieved = core().retrieve(&name);
    to_c(retrieved.and_then(|()| {
        getfile(name, Direction::Incoming, filep).inspect_err(|_| core().give_back(&name))
    }))
}

/// `luo_session_getfile`.
fn getfile(name: Name, direction: Direction, filep: *mut *const c_void) -> Result<(), Errno> {
    let task = with_current(|current| current.client.task);
    let handle = SessionHandle::new(task, name, direction);
    let file = luo().device.open_session(handle)?;
    with_current(|current| current.made = Some(file));
    // SAFETY: the only caller passes the address of a local variable.
    unsafe { *filep = ptr::from_ref(black_box(&handle)).cast() };
    Ok(())
}

/// `static int luo_session_release(struct inode *, struct file *)`.
#[unsafe(export_name = "sessions.luo_session_release")]
#[inline(never)]
extern "C" fn luo_session_release(inode: *const c_void, file: *const SessionHandle) -> c_int {
    black_box(inode);
    // SAFETY: the only caller is above and passes a reference.
    let handle = unsafe { &*black_box(file) };
    to_c(
        release(&handle.name(), handle.direction, &Functions).inspect_err(|errno| {
            let name = handle.name().bytes();
            log::warn!(
                "session {}: closed and not finished ({errno}); nobody can retrieve it any more",
                String::from_utf8_lossy(&name).trim_end_matches('\0')
            );
        }),
    )
}

/// `int luo_preserve_file(struct luo_file_set *, u64 token, int fd)`.
#[unsafe(export_name = "sessions.luo_preserve_file")]
#[inline(never)]
extern "C" fn luo_preserve_file(set: *const u8, token: u64, fd: c_int) -> c_int {
    let client = with_current(|current| current.client);
    let judged = with_current(|current| current.judged.as_mut()?.file.take());
    let file = || judged.unwrap_or_else(|| Preserved::of(&client, token, fd));
    to_c(core().preserve(&name_at(black_box(set)), token, file))
}

/// `int luo_retrieve_file(struct luo_file_set *, u64 token, struct file **)`.
#[unsafe(export_name = "sessions.luo_retrieve_file")]
#[inline(never)]
extern "C" fn luo_retrieve_file(set: *const u8, token: u64, filep: *mut *const c_void) -> c_int {
    let retrieved = core()
        .retrieve_file(&name_at(black_box(set)), token)
        .and_then(|file| Ok((view(file), file.retrieved()?)));
    to_c(retrieved.map(|(pointer, file)| {
        with_current(|current| current.made = Some(file));
        // SAFETY: the only caller passes the address of a local variable.
        unsafe { *filep = pointer };
    }))
}

/// `int luo_file_freeze(struct luo_file_set *, struct luo_file_set_ser *)`.
#[unsafe(export_name = "sessions.luo_file_freeze")]
#[inline(never)]
extern "C" fn luo_file_freeze(set: *const u8, serialized: *mut c_void) -> c_int {
    black_box(serialized);
    to_c(core().freeze_files(&name_at(black_box(set))))
}

/// `void luo_file_unfreeze(struct luo_file_set *, struct luo_file_set_ser *)`.
#[unsafe(export_name = "sessions.luo_file_unfreeze")]
#[inline(never)]
extern "C" fn luo_file_unfreeze(set: *const u8, serialized: *mut c_void) {
    black_box(serialized);
    core().unfreeze_files(&name_at(black_box(set)));
}

/// `int luo_file_finish(struct luo_file_set *)`.
#[unsafe(export_name = "sessions.luo_file_finish")]
#[inline(never)]
extern "C" fn luo_file_finish(set: *const u8) -> c_int {
    to_c(core().finish_files(&name_at(black_box(set))))
}

/// `void luo_file_unpreserve_files(struct luo_file_set *)`.
#[unsafe(export_name = "sessions.luo_file_unpreserve_files")]
#[inline(never)]
extern "C" fn luo_file_unpreserve_files(set: *const u8) {
    core().unpreserve_files(&name_at(black_box(set)));
}

/// `int luo_session_serialize(void)`.
#[unsafe(export_name = "sessions.luo_session_serialize")]
#[inline(never)]
extern "C" fn luo_session_serialize() -> c_int {
    let sessions = core().outgoing();
    to_c(serialize(&sessions, &Functions))
}

/// `int luo_session_deserialize(void)`.
#[unsafe(export_name = "sessions.luo_session_deserialize")]
#[inline(never)]
extern "C" fn luo_session_deserialize() -> c_int {
    core().deserialize();
    0
}

/// `int liveupdate_reboot(void)`.
#[unsafe(export_name = "sessions.liveupdate_reboot")]
#[inline(never)]
extern "C" fn liveupdate_reboot() -> c_int {
    black_box(luo_session_serialize as extern "C" fn() -> c_int)()
}

/// `int kernel_kexec(void)`.
#[unsafe(export_name = "sessions.kernel_kexec")]
#[inline(never)]
extern "C" fn kernel_kexec() -> c_int {
    black_box("kernel_kexec");
    to_c(reboot::kernel_kexec())
}

/// `void machine_kexec(struct kimage *)`.
#[unsafe(export_name = "sessions.machine_kexec")]
#[inline(never)]
extern "C" fn machine_kexec(image: *const c_void) {
    black_box("sessions.machine_kexec");
    black_box(image);
}

/// The new kernel's `luo_early_startup`, under the name that v3's has.
#[unsafe(export_name = "sessions.luo_startup")]
#[inline(never)]
extern "C" fn luo_startup() -> c_int {
    core().kexec();
    lost().clear();
    0
}

/// `long __x64_sys_reboot(const struct pt_regs *)`, on arm64 `__arm64_sys_reboot`.
#[cfg_attr(
    target_arch = "aarch64",
    unsafe(export_name = "sessions.__arm64_sys_reboot")
)]
#[cfg_attr(
    not(target_arch = "aarch64"),
    unsafe(export_name = "sessions.__x64_sys_reboot")
)]
#[inline(never)]
extern "C" fn sys_reboot(regs: *const Task) -> c_long {
    black_box(regs);
    c_long::from(black_box(kernel_kexec as extern "C" fn() -> c_int)())
}

const _: () = assert!(
    offset_of!(SessionHandle, file) == 0 && offset_of!(SessionFile, task) == 0,
    "a session's file begins with who calls"
);
