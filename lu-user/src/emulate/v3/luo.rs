//! v3's functions, with the kernel's names and C signatures, so that probes can sit on
//! them: `luo_open` to `luo_startup`, and `__x64_sys_reboot` around them.
//!
//! As in the kernel there is one orchestrator, and who calls is known from the thread that runs.

use std::cell::RefCell;
use std::ffi::{c_int, c_long, c_uint, c_ulong, c_void};
use std::hint::black_box;
use std::mem::offset_of;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use lu_common::event::{FileKind, Task};
use lu_common::policy::{Operation, Standing, Text, TokenKey, Usage};
use lu_common::uapi::v3::State;
use lu_common::uapi::{Interface, v3};
use nix::errno::Errno;

use super::super::argument::Argument;
use super::super::client::Client;
use super::super::files::{Files, Preserved, from_c, to_c, view};
use super::super::judge::{self, Asked};
use super::super::orchestrator::{Install, Opened, Orchestrator};
use super::super::reboot;
use super::core::Core;

struct Luo {
    core: Mutex<Core<Files>>,
    quirks: bool,
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
    retrieved: Option<Arc<Preserved>>,
    install: Option<Install>,
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
        client: &Client,
        cmd: u32,
        arg: u64,
    ) -> Result<Self, Errno> {
        let mut read = Self {
            argument: Argument::read(client, &v3::COMMANDS, |_| true, cmd, arg),
            file: None,
        };
        let Ok(argument) = &read.argument else {
            return Ok(read);
        };
        let event = |offset| match v3::Event::from_raw(argument.word(offset)) {
            Some(v3::Event::Prepare) => Some(Operation::Prepare),
            Some(v3::Event::Cancel) => Some(Operation::Cancel),
            Some(v3::Event::Finish) => Some(Operation::Finish),
            Some(v3::Event::Freeze) | None => None,
        };
        let token = |offset| Some(argument.long(offset));
        let (operation, token, fd) = match cmd {
            v3::FD_PRESERVE => (
                Some(Operation::Preserve),
                token(offset_of!(v3::FdPreserve, token)),
                Some(argument.word(offset_of!(v3::FdPreserve, fd)) as i32),
            ),
            v3::FD_UNPRESERVE => (
                Some(Operation::Unpreserve),
                token(offset_of!(v3::FdUnpreserve, token)),
                None,
            ),
            v3::FD_RESTORE => (
                Some(Operation::Restore),
                token(offset_of!(v3::FdRestore, token)),
                None,
            ),
            v3::SET_EVENT => (event(offset_of!(v3::SetEvent, event)), None, None),
            // The same for one file.
            v3::SET_FD_EVENT => (
                event(offset_of!(v3::SetFdEvent, event)),
                token(offset_of!(v3::SetFdEvent, token)),
                None,
            ),
            _ => (None, None, None),
        };
        let Some(operation) = operation else {
            return Ok(read);
        };
        if let Some(fd) = fd {
            read.file = Some(Preserved::of(client, token.unwrap_or(0), fd));
        }
        let file = match (&read.file, fd) {
            (Some(Err(_)), _) => return Ok(read),
            (Some(Ok(file)), Some(fd)) => Some((fd, &**file)),
            _ => None,
        };
        let asked = Asked {
            token,
            file,
            ..Asked::plain(client, operation)
        };
        ask(policy, &asked)?;
        Ok(read)
    }
}

/// What is preserved, as the policy sees it: one session without a name.
struct Stands<'a> {
    core: &'a Core<Files>,
    asked: Usage,
}

/// The session that v3's flat space is.
fn is_flat(session: &Text) -> bool {
    *session == Text::default()
}

impl Standing for Stands<'_> {
    fn session(&self, name: &Text) -> Option<Usage> {
        if is_flat(name) {
            self.in_all()
        } else {
            Some(Usage::default())
        }
    }

    fn in_all(&self) -> Option<Usage> {
        let files = self.core.outgoing().map(|(_, _, file)| file);
        Some(judge::sum(self.asked, files))
    }

    fn is_preserved(&self, of: &TokenKey) -> Option<bool> {
        let has = || self.core.outgoing().any(|(token, ..)| token == of.token);
        Some(is_flat(&of.session) && has())
    }

    fn is_restored(&self, of: &TokenKey) -> Option<bool> {
        Some(is_flat(&of.session) && self.core.is_reclaimed(of.token))
    }

    fn is_device_free(&self) -> Option<bool> {
        Some(!self.core.is_open())
    }

    /// The emulated kexec needs none.
    fn is_image_loaded(&self) -> Option<bool> {
        Some(true)
    }

    /// There are no sessions.
    fn is_no_session_lost(&self) -> Option<bool> {
        Some(true)
    }
}

fn ask(policy: &judge::Enforced, asked: &Asked<'_>) -> Result<(), Errno> {
    let core = core();
    let standing = Stands {
        core: &core,
        asked: asked.usage(),
    };
    policy.judge(Interface::V3, asked, &standing)
}

/// Sets the orchestrator up; once in a process.
pub fn init(handler: Files, quirks: bool) {
    let luo = Luo {
        core: Mutex::new(Core::new(handler)),
        quirks,
    };
    assert!(LUO.set(luo).is_ok(), "there is one orchestrator");
}

fn luo() -> &'static Luo {
    LUO.get().expect("init() has been called")
}

/// The state machine.
pub fn core() -> MutexGuard<'static, Core<Files>> {
    luo().core.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The orchestrator of v3.
pub struct V3;

impl Orchestrator for V3 {
    fn interface(&self) -> Interface {
        Interface::V3
    }

    fn ask(&self, client: &Client, operation: Operation) -> Result<(), Errno> {
        match judge::in_force() {
            Some(policy) => ask(&policy, &Asked::plain(client, operation)),
            None => Ok(()),
        }
    }

    fn open(&self, caller: &Task) -> Result<(), Errno> {
        let function = black_box(luo_open as extern "C" fn(_, _) -> _);
        from_c(function(ptr::null(), &raw const *caller))
    }

    /// There is but the device.
    fn release(&self, holder: &Task, _opened: &Opened) {
        let function = black_box(luo_release as extern "C" fn(_, _) -> _);
        function(ptr::null(), &raw const *holder);
    }

    fn gives_descriptor(&self, cmd: u32) -> bool {
        cmd == v3::FD_RESTORE
    }

    fn ioctl(
        &self,
        _opened: &Opened,
        client: &Client,
        cmd: u32,
        arg: u64,
    ) -> (Result<(), Errno>, Option<Install>) {
        let policy = judge::in_force();
        let _turn = (policy.is_some() && !self.gives_descriptor(cmd)).then(judge::turn);
        let judged = policy.map(|policy| Read::judged(&policy, client, cmd, arg));
        let judged = match judged.transpose() {
            Ok(judged) => judged,
            Err(errno) => return (Err(errno), None),
        };
        CURRENT.set(Some(Current {
            client: *client,
            judged,
            retrieved: None,
            install: None,
        }));
        let function = black_box(luo_ioctl as extern "C" fn(_, _, _) -> _);
        let result = function(&raw const client.task, cmd, arg);
        let install = CURRENT.take().and_then(|current| current.install);
        (from_c(result as c_int), install)
    }

    fn reboot(&self, caller: &Task) -> Result<(), Errno> {
        let function = black_box(sys_reboot as extern "C" fn(_) -> _);
        from_c(function(&raw const *caller) as c_int)
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

    /// From PREPARE on.
    fn holds_size_of(&self, identity: (u64, u64)) -> bool {
        core().outgoing().any(|(_, state, file)| {
            matches!(state, State::Prepared | State::Frozen)
                && file.kind() == FileKind::Memfd
                && file.identity() == identity
        })
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn luo_open(inode: *const c_void, file: *const Task) -> c_int {
    black_box((inode, file));
    to_c(core().open())
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn luo_release(inode: *const c_void, file: *const Task) -> c_int {
    black_box((inode, file));
    core().release();
    0
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn luo_ioctl(file: *const Task, cmd: c_uint, arg: c_ulong) -> c_long {
    black_box(file);
    c_long::from(to_c(dispatch(cmd, arg)))
}

fn with_current<T>(look: impl FnOnce(&mut Current) -> T) -> T {
    CURRENT.with_borrow_mut(|current| look(current.as_mut().expect("set by ioctl()")))
}

fn dispatch(cmd: u32, arg: u64) -> Result<(), Errno> {
    let client = with_current(|current| current.client);
    let judged = with_current(|current| current.judged.as_ref().map(|read| read.argument));
    let read = || Argument::read(&client, &v3::COMMANDS, |_| true, cmd, arg);
    let mut argument = judged.unwrap_or_else(read)?;
    match cmd {
        v3::FD_PRESERVE => fd_preserve(&client, &argument),
        v3::FD_UNPRESERVE => {
            let token = argument.long(offset_of!(v3::FdUnpreserve, token));
            from_c(black_box(luo_unregister_file as extern "C" fn(_) -> _)(
                token,
            ))
        }
        v3::FD_RESTORE => fd_restore(&client, argument),
        v3::GET_STATE => {
            let state = core().state();
            argument.set_word(offset_of!(v3::GetState, state), state as u32);
            argument.write_back(&client)
        }
        v3::SET_EVENT => {
            let event = argument.word(offset_of!(v3::SetEvent, event));
            let function = match v3::Event::from_raw(event) {
                Some(v3::Event::Prepare) => luo_prepare as extern "C" fn() -> c_int,
                Some(v3::Event::Finish) => luo_finish,
                Some(v3::Event::Cancel) => luo_cancel,
                Some(v3::Event::Freeze) | None => return Err(Errno::EINVAL),
            };
            from_c(black_box(function)())
        }
        v3::GET_FD_STATE => {
            let incoming = argument
                .word(offset_of!(v3::GetFdState, incoming))
                .to_ne_bytes()[0];
            let token = argument.long(offset_of!(v3::GetFdState, token));
            let state = core().file_state(token, incoming != 0)?;
            argument.set_word(offset_of!(v3::GetFdState, state), state as u32);
            argument.write_back(&client)
        }
        v3::SET_FD_EVENT => {
            let event = argument.word(offset_of!(v3::SetFdEvent, event));
            let token = argument.long(offset_of!(v3::SetFdEvent, token));
            core().file_event(token, event)
        }
        _ => Err(Errno::ENOTTY),
    }
}

fn fd_preserve(client: &Client, argument: &Argument) -> Result<(), Errno> {
    let token = argument.long(offset_of!(v3::FdPreserve, token));
    let fd = argument.word(offset_of!(v3::FdPreserve, fd)) as i32;
    let function = black_box(luo_register_file as extern "C" fn(_, _) -> _);
    let result = from_c(function(token, fd));
    // Patch 16 tests for success the wrong way round: a failure goes on to the copy, and its 0 is
    // what the caller gets.
    if luo().quirks && result.is_err() {
        return argument.write_back(client);
    }
    result
}

fn fd_restore(client: &Client, argument: Argument) -> Result<(), Errno> {
    // The descriptor is reserved before anything is looked at.
    if client.has_no_free_fd() {
        return Err(Errno::EMFILE);
    }
    let token = argument.long(offset_of!(v3::FdRestore, token));
    let mut file = ptr::null();
    let function = black_box(luo_retrieve_file as extern "C" fn(_, _) -> _);
    from_c(function(token, &raw mut file))?;
    // The number is known only once the descriptor is in place, at the end of the caller's system
    // call; whether it can be written is known by writing back what is there.
    let told = argument.write_back(client);
    // Patch 16 installs the descriptor first and leaves it there when the copy faults.
    if told.is_ok() || luo().quirks {
        let retrieved = with_current(|current| current.retrieved.take());
        let file = retrieved.ok_or(Errno::EIO)?.reopen()?;
        with_current(|current| {
            current.install = Some(Install {
                file,
                tell: told.is_ok().then_some(argument),
            });
        });
    }
    told
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn luo_register_file(token: u64, fd: c_int) -> c_int {
    let client = with_current(|current| current.client);
    let judged = with_current(|current| current.judged.as_mut()?.file.take());
    let file = judged.unwrap_or_else(|| Preserved::of(&client, token, fd));
    to_c(core().preserve(token, file))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn luo_unregister_file(token: u64) -> c_int {
    to_c(core().unpreserve(token))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn luo_retrieve_file(token: u64, filep: *mut *const c_void) -> c_int {
    let file = match core().restore(token) {
        Ok(file) => Arc::clone(file),
        Err(errno) => return to_c(Err(errno)),
    };
    // SAFETY: the only caller passes the address of a local variable.
    unsafe { *filep = view(&file) };
    with_current(|current| current.retrieved = Some(file));
    0
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn luo_prepare() -> c_int {
    to_c(core().prepare())
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn luo_freeze() -> c_int {
    to_c(core().freeze())
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn luo_cancel() -> c_int {
    to_c(core().cancel())
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn luo_finish() -> c_int {
    to_c(core().finish())
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn liveupdate_reboot() -> c_int {
    if !core().freeze_is_due() {
        return 0;
    }
    black_box(luo_freeze as extern "C" fn() -> c_int)()
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn machine_kexec(image: *const c_void) {
    black_box(image);
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn luo_startup() -> c_int {
    core().kexec();
    0
}

/// `long __x64_sys_reboot(const struct pt_regs *)`, on arm64 `__arm64_sys_reboot`.
#[cfg_attr(target_arch = "aarch64", unsafe(export_name = "__arm64_sys_reboot"))]
#[cfg_attr(not(target_arch = "aarch64"), unsafe(export_name = "__x64_sys_reboot"))]
#[inline(never)]
extern "C" fn sys_reboot(regs: *const Task) -> c_long {
    black_box(regs);
    c_long::from(to_c(reboot::kernel_kexec()))
}
