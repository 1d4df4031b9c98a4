//! A client of the sessions interface that does at random what a client may and may not do, and says what
//! came of it: `N operation arguments -> result`, a line for each step.
//!
//! A line holds nothing that two good orchestrators may tell differently (no descriptor, no process, no
//! time), so the same seed on two of them is compared by diff(1). `--stage 1` ends with sessions that a
//! child holds; after the kexec `--stage 2` finds them.
//!
//! ```sh
//! lu emulate --interface sessions -- sh -c \
//!   'sequence --seed 7 --steps 10000 --stage 1; lu emulate kexec; sequence --seed 7 --steps 10000 --stage 2'
//! ```
//!
//! What an emulation cannot do is left out: writing beyond the end of a preserved memfd, sealing one, and
//! truncate(2) of one by its path in /proc.

use std::fs::File;
use std::io::{Write as _, stdout};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::FileExt as _;
use std::process::ExitCode;

use lu_common::uapi::sessions::{
    CREATE_SESSION, DEVICE_COMMANDS, FINISH, Fd, Finish, GET_NAME, GetName, NAME_LEN, PRESERVE_FD,
    RETRIEVE_FD, RETRIEVE_SESSION, SESSION_COMMANDS, Session,
};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, SealFlag, fallocate, fcntl, open};
use nix::sys::eventfd::EventFd;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, fstat};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Whence, fork, ftruncate, lseek, pause, pipe, setsid};
use zerocopy::IntoBytes as _;

const DEVICE: &str = "/dev/liveupdate";
const PAGE: usize = 4096;
/// Pages of the region that arguments lie in; one that nobody may touch follows.
const PAGES: usize = 4;
/// How many sessions and retrieved files are held at once.
const HELD: usize = 40;
const MEMFDS: usize = 24;
const NAMES: u64 = 12;
/// Sessions that stage 1 leaves, and the most files in one.
const KEPT: u64 = 60;
const KEPT_FILES: u64 = 5;

/// xorshift64*: the same numbers everywhere.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        let mut random = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..8 {
            random.next();
        }
        random
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 16) % end
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }
}

/// Where an argument lies.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// In memory that can be read and written.
    Good,
    /// Its end reaches into what cannot be read.
    Edge,
    /// It cannot be written.
    ReadOnly,
    /// There is no memory.
    Bad(u64),
}

/// The memory for arguments.
struct Region {
    address: usize,
}

impl Region {
    fn new() -> Self {
        let length = (PAGES + 1) * PAGE;
        // SAFETY: a new mapping, which touches no other.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        } as usize;
        let region = Self { address };
        region.protect(PAGES, 1, libc::PROT_NONE);
        region
    }

    fn protect(&self, first: usize, count: usize, protection: i32) {
        let address = self.address + first * PAGE;
        // SAFETY: pages of our own mapping, to which no reference is held.
        let done = unsafe {
            libc::mprotect(
                std::ptr::with_exposed_provenance_mut(address),
                count * PAGE,
                protection,
            )
        };
        assert_eq!(done, 0, "mprotect");
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: these pages are mapped for reading and writing, and borrowed with the region.
        unsafe {
            std::slice::from_raw_parts_mut(
                std::ptr::with_exposed_provenance_mut(self.address),
                PAGES * PAGE,
            )
        }
    }

    /// An ioctl whose argument is `bytes`, with one byte set that many bytes behind them if `tail` says
    /// so. What the orchestrator wrote there comes back in `bytes`.
    fn ioctl(
        &mut self,
        fd: RawFd,
        cmd: u32,
        place: Place,
        bytes: &mut [u8],
        tail: Option<usize>,
    ) -> Result<(), Errno> {
        let end = PAGES * PAGE;
        let offset = match place {
            Place::Edge => end - bytes.len() + 4,
            _ => 0,
        };
        let memory = self.bytes();
        memory.fill(0);
        let fits = bytes.len().min(end - offset);
        memory[offset..offset + fits].copy_from_slice(&bytes[..fits]);
        if let Some(byte) = tail.and_then(|tail| memory.get_mut(offset + bytes.len() + tail)) {
            *byte = 1;
        }
        let address = match place {
            Place::Bad(address) => address,
            _ => (self.address + offset) as u64,
        };
        if matches!(place, Place::ReadOnly) {
            self.protect(0, PAGES, libc::PROT_READ);
        }
        // SAFETY: what the orchestrator may write to is the region, or nothing that is there.
        let done = unsafe { libc::ioctl(fd, cmd.into(), address) };
        let result = Errno::result(done).map(drop);
        self.protect(0, PAGES, libc::PROT_READ | libc::PROT_WRITE);
        bytes[..fits].copy_from_slice(&self.bytes()[offset..offset + fits]);
        result
    }
}

/// A session's descriptor, or one of a session that was.
struct Held {
    label: String,
    fd: OwnedFd,
}

struct Run {
    random: Random,
    region: Region,
    stage: u32,
    device: Option<OwnedFd>,
    sessions: Vec<Held>,
    memfds: Vec<OwnedFd>,
    retrieved: Vec<Held>,
    others: Vec<(&'static str, OwnedFd)>,
}

fn said<T>(result: Result<T, Errno>, good: impl FnOnce(T) -> String) -> String {
    result.map_or_else(|errno| format!("{errno:?}"), good)
}

fn done<T>(result: Result<T, Errno>) -> String {
    said(result, |_| "0".to_owned())
}

/// FNV-1a over all of a file.
fn hash(file: &OwnedFd) -> u64 {
    let length = fstat(file).map_or(0, |stat| stat.st_size as usize);
    let mut bytes = vec![0; length];
    let file = File::from(file.try_clone().expect("a descriptor"));
    if file.read_exact_at(&mut bytes, 0).is_err() {
        return 0;
    }
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// All that can be told of a memfd.
fn describe(file: &OwnedFd) -> String {
    let size = fstat(file).map_or(-1, |stat| stat.st_size);
    let position = lseek(file, 0, Whence::SeekCur);
    let seals = fcntl(file, FcntlArg::F_GET_SEALS).map(|seals| format!("{seals:#x}"));
    let access = fcntl(file, FcntlArg::F_GETFL).map(|flags| flags & libc::O_ACCMODE);
    let inherit = fcntl(file, FcntlArg::F_GETFD);
    format!(
        "size={size} position={} seals={} access={} fd_flags={} content={:016x}",
        said(position, |position| position.to_string()),
        said(seals, |seals| seals),
        said(access, |access| access.to_string()),
        said(inherit, |flags| flags.to_string()),
        hash(file)
    )
}

fn memfd(size: u64, content: &mut Random) -> OwnedFd {
    let flags = content.pick(&[
        MFdFlags::empty(),
        MFdFlags::MFD_CLOEXEC,
        MFdFlags::MFD_ALLOW_SEALING,
    ]);
    let fd = memfd_create("sequence", flags).expect("a memfd");
    ftruncate(&fd, size as i64).expect("a size");
    let file = File::from(fd);
    let mut at = 0;
    while at < size {
        // Holes stay.
        if !content.one_in(4) {
            let length = (size - at).min(1 + content.below(700));
            let bytes: Vec<u8> = (0..length).map(|_| content.next() as u8).collect();
            file.write_all_at(&bytes, at).expect("written");
        }
        at += 1 + content.below(3000);
    }
    let fd = OwnedFd::from(file);
    lseek(&fd, content.below(size + 10) as i64, Whence::SeekSet).expect("a position");
    if flags == MFdFlags::MFD_ALLOW_SEALING && content.one_in(2) {
        let seals = content.pick(&[
            SealFlag::F_SEAL_GROW,
            SealFlag::F_SEAL_SHRINK,
            SealFlag::F_SEAL_WRITE,
            SealFlag::F_SEAL_SEAL,
            SealFlag::F_SEAL_FUTURE_WRITE,
        ]);
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).expect("sealed");
    }
    fd
}

impl Run {
    fn new(seed: u64, stage: u32) -> Self {
        let mut random = Random::new(seed ^ (u64::from(stage) << 32));
        let memfds = (0..MEMFDS)
            .map(|_| {
                let size = random.below(6) * 1500;
                memfd(size, &mut random)
            })
            .collect();
        let (read, write) = pipe().expect("a pipe");
        let plain = |path: &str, flags| open(path, flags, Mode::empty()).expect("a file");
        let others = vec![
            (
                "eventfd",
                OwnedFd::from(EventFd::new().expect("an eventfd")),
            ),
            ("pipe", read),
            ("pipe_end", write),
            ("directory", plain("/", OFlag::O_RDONLY)),
            ("regular", plain("/proc/self/exe", OFlag::O_RDONLY)),
            ("null", plain("/dev/null", OFlag::O_RDWR)),
            ("path", plain("/", OFlag::O_PATH)),
        ];
        Self {
            random,
            region: Region::new(),
            stage,
            device: None,
            sessions: Vec::new(),
            memfds,
            retrieved: Vec::new(),
            others,
        }
    }

    fn device(&self) -> RawFd {
        self.device.as_ref().map_or(-1, OwnedFd::as_raw_fd)
    }

    /// One step: what was done and what came of it.
    fn step(&mut self) -> String {
        match self.random.below(100) {
            0..6 => self.open_device(),
            6 => {
                let was = self.device.take().map_or("closed", |_| "open");
                format!("close_device {was} -> 0")
            }
            7..18 => self.session(CREATE_SESSION),
            18..26 => self.session(RETRIEVE_SESSION),
            26..46 => self.preserve(),
            46..58 => self.retrieve(),
            58..60 => self.finish(),
            60..67 => self.get_name(),
            67..75 => self.close_session(),
            75..79 => self.any_command(),
            79..82 => self.dup(),
            82..84 => self.read_and_seek(),
            84..85 => self.child(),
            85..88 => self.look(),
            88..90 => self.renew(),
            _ => self.change(),
        }
    }

    fn open_device(&mut self) -> String {
        let (result, line) =
            self.maybe_full(|_| open(DEVICE, OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()));
        let text = done(result.as_ref().map_err(|errno| *errno));
        if let Ok(device) = result {
            self.device = Some(device);
        }
        format!("open{line} -> {text}")
    }

    /// Does something, at times without a free descriptor.
    fn maybe_full<T>(&mut self, act: impl FnOnce(&mut Self) -> T) -> (T, &'static str) {
        if !self.random.one_in(12) {
            return (act(self), "");
        }
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
        let lowest = fcntl(std::io::stdin(), FcntlArg::F_DUPFD(0)).expect("a free descriptor");
        // SAFETY: we have just made it.
        drop(unsafe { OwnedFd::from_raw_fd(lowest) });
        setrlimit(Resource::RLIMIT_NOFILE, lowest as u64, hard).expect("a lower limit");
        let result = act(self);
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).expect("the old limit");
        (result, " full")
    }

    fn place(&mut self) -> Place {
        if !self.random.one_in(8) {
            return Place::Good;
        }
        let bad = [0, 1, 0x7000_0000_0000, 0xffff_8000_0000_0000, u64::MAX - 3];
        match self.random.below(3) {
            0 => Place::Edge,
            1 => Place::ReadOnly,
            _ => Place::Bad(self.random.pick(&bad)),
        }
    }

    /// A stated size, and whether there is a byte behind the structure.
    fn size(&mut self, right: usize) -> (u32, Option<usize>) {
        if !self.random.one_in(8) {
            return (right as u32, None);
        }
        let right = right as u32;
        let size = self.random.pick(&[
            0,
            4,
            8,
            right - 1,
            right + 1,
            right + 8,
            4096,
            16384,
            u32::MAX,
        ]);
        let tail = [None, Some(0), Some(7), Some(5000)];
        (size, self.random.pick(&tail))
    }

    /// An ioctl with a structure, some of it wrong at random. The text tells what.
    fn call(&mut self, fd: RawFd, cmd: u32, bytes: &mut [u8]) -> (Result<(), Errno>, String) {
        let place = self.place();
        let (size, tail) = self.size(bytes.len());
        bytes[..4].copy_from_slice(&size.to_ne_bytes());
        let (result, full) = self.maybe_full(|run| run.region.ioctl(fd, cmd, place, bytes, tail));
        (
            result,
            format!("{place:x?} size={size} tail={tail:?}{full}"),
        )
    }

    fn name(&mut self) -> (String, [u8; NAME_LEN]) {
        let label = match self.random.below(16) {
            0 => String::new(),
            1 => "x".repeat(NAME_LEN - 1),
            2 => "x".repeat(NAME_LEN),
            3..9 if self.stage == 2 => format!("kept-{}", self.random.below(KEPT + 1)),
            _ => format!("s{}", self.random.below(NAMES)),
        };
        let mut name = [0; NAME_LEN];
        name[..label.len()].copy_from_slice(label.as_bytes());
        // What lies behind the NUL is nobody's business.
        if self.random.one_in(6) && label.len() < NAME_LEN - 2 {
            name[label.len() + 1..].fill(b'?');
        }
        (label, name)
    }

    fn session(&mut self, cmd: u32) -> String {
        if self.sessions.len() >= HELD {
            return self.close_session();
        }
        let (label, name) = self.name();
        let mut session = Session {
            size: 0,
            fd: -1,
            name,
        };
        let device = self.device();
        let (result, how) = self.call(device, cmd, session.as_mut_bytes());
        if result.is_ok() {
            // SAFETY: the orchestrator has just given us this descriptor.
            let fd = unsafe { OwnedFd::from_raw_fd(session.fd) };
            self.sessions.push(Held {
                label: label.clone(),
                fd,
            });
        }
        let command = if cmd == CREATE_SESSION {
            "CREATE_SESSION"
        } else {
            "RETRIEVE_SESSION"
        };
        format!(
            "{command} {label:.8}/{} {how} -> {}",
            label.len(),
            done(result)
        )
    }

    /// A session's descriptor; mostly one that came from the previous kernel, or one that did not.
    fn session_that(&mut self, came: bool) -> (String, RawFd) {
        let these: Vec<usize> = (0..self.sessions.len())
            .filter(|index| self.sessions[*index].label.starts_with("kept") == came)
            .collect();
        if these.is_empty() || self.random.one_in(4) {
            return self.any_session();
        }
        let index = self.random.pick(&these);
        let held = &self.sessions[index];
        (format!("{index}:{:.8}", held.label), held.fd.as_raw_fd())
    }

    /// A session's descriptor; at times none, or the device's.
    fn any_session(&mut self) -> (String, RawFd) {
        if self.sessions.is_empty() || self.random.one_in(40) {
            return match self.random.below(2) {
                0 => ("none".to_owned(), -1),
                _ => ("device".to_owned(), self.device()),
            };
        }
        let index = self.random.below(self.sessions.len() as u64) as usize;
        let held = &self.sessions[index];
        (format!("{index}:{:.8}", held.label), held.fd.as_raw_fd())
    }

    fn token(&mut self) -> u64 {
        match self.random.below(12) {
            0 => 0,
            1 => u64::MAX,
            _ => self.random.below(KEPT_FILES + 2),
        }
    }

    fn any_file(&mut self) -> (String, RawFd) {
        match self.random.below(16) {
            0 => ("closed".to_owned(), 9999),
            1 => ("negative".to_owned(), -1),
            2 => ("device".to_owned(), self.device()),
            3 => {
                let (label, fd) = self.any_session();
                (format!("session {label}"), fd)
            }
            4..6 => {
                let index = self.random.below(self.others.len() as u64) as usize;
                let (kind, fd) = &self.others[index];
                ((*kind).to_owned(), fd.as_raw_fd())
            }
            6..8 if !self.retrieved.is_empty() => {
                let index = self.random.below(self.retrieved.len() as u64) as usize;
                let file = &self.retrieved[index];
                (format!("retrieved {}", file.label), file.fd.as_raw_fd())
            }
            _ => {
                let index = self.random.below(MEMFDS as u64) as usize;
                (format!("memfd {index}"), self.memfds[index].as_raw_fd())
            }
        }
    }

    fn preserve(&mut self) -> String {
        let (session, on) = self.session_that(false);
        let (file, fd) = self.any_file();
        let token = self.token();
        let mut argument = Fd { size: 0, fd, token };
        let (result, how) = self.call(on, PRESERVE_FD, argument.as_mut_bytes());
        format!(
            "PRESERVE_FD {session} {file} {token:#x} {how} -> {}",
            done(result)
        )
    }

    fn retrieve(&mut self) -> String {
        let (session, on) = self.session_that(true);
        let token = self.token();
        let mut argument = Fd {
            size: 0,
            fd: -1,
            token,
        };
        let (result, how) = self.call(on, RETRIEVE_FD, argument.as_mut_bytes());
        let text = said(result, |()| {
            // SAFETY: the orchestrator has just given us this descriptor.
            let fd = unsafe { OwnedFd::from_raw_fd(argument.fd) };
            let text = describe(&fd);
            self.retrieved.push(Held {
                label: format!("{session}/{token:#x}"),
                fd,
            });
            text
        });
        if self.retrieved.len() > HELD {
            self.retrieved.remove(0);
        }
        format!("RETRIEVE_FD {session} {token:#x} {how} -> {text}")
    }

    fn finish(&mut self) -> String {
        let (session, on) = self.any_session();
        let reserved = u32::from(self.random.one_in(4));
        let mut argument = Finish { size: 0, reserved };
        let (result, how) = self.call(on, FINISH, argument.as_mut_bytes());
        format!("FINISH {session} {reserved} {how} -> {}", done(result))
    }

    fn get_name(&mut self) -> String {
        let (session, on) = self.any_session();
        let reserved = u32::from(self.random.one_in(4));
        let mut argument = GetName {
            size: 0,
            reserved,
            name: [b'!'; NAME_LEN],
        };
        let (result, how) = self.call(on, GET_NAME, argument.as_mut_bytes());
        let text = said(result, |()| {
            String::from_utf8_lossy(&argument.name).replace('\0', ".")
        });
        format!("GET_NAME {session} {reserved} {how} -> {text}")
    }

    fn close_session(&mut self) -> String {
        if self.sessions.is_empty() {
            return "close_session none -> 0".to_owned();
        }
        let mut index = self.random.below(self.sessions.len() as u64) as usize;
        // Those from the previous kernel are rare.
        if self.sessions[index].label.starts_with("kept") && !self.random.one_in(4) {
            index = self.random.below(self.sessions.len() as u64) as usize;
        }
        let held = self.sessions.swap_remove(index);
        format!("close_session {index}:{:.8} -> 0", held.label)
    }

    /// A command word that is none, with an argument that could be one.
    fn any_command(&mut self) -> String {
        let (on, fd) = if self.random.one_in(3) {
            ("device".to_owned(), self.device())
        } else {
            self.any_session()
        };
        let commands = DEVICE_COMMANDS.iter().chain(&SESSION_COMMANDS);
        let known: Vec<u32> = commands.map(|command| command.cmd).collect();
        let mut cmd = self.random.pick(&known);
        match self.random.below(3) {
            // Another number.
            0 => cmd ^= 1 << self.random.below(8),
            // Other bits: of the type, the size, the direction.
            1 => cmd ^= 1 << (8 + self.random.below(24)),
            // Perhaps one for the other sort of file.
            _ => {}
        }
        if known.contains(&cmd) && (cmd < PRESERVE_FD) == (on == "device") {
            cmd |= 0x80;
        }
        let mut bytes = [0; 72];
        let place = self
            .random
            .pick(&[Place::Good, Place::Good, Place::ReadOnly]);
        bytes[0] = self.random.pick(&[0, 8, 16, 72]);
        // What would be written to with a size and direction in the command is the region.
        let place = if cmd >> 16 == 0 { place } else { Place::Good };
        let result = self.region.ioctl(fd, cmd, place, &mut bytes, None);
        format!(
            "ioctl {on} {cmd:#x} {place:x?} size={} -> {}",
            bytes[0],
            done(result)
        )
    }

    fn dup(&mut self) -> String {
        if self.sessions.is_empty() || self.sessions.len() >= HELD {
            return "dup none -> 0".to_owned();
        }
        let index = self.random.below(self.sessions.len() as u64) as usize;
        let held = &self.sessions[index];
        let copy = Held {
            label: held.label.clone(),
            fd: held.fd.try_clone().expect("a copy"),
        };
        let label = format!("{index}:{:.8}", copy.label);
        self.sessions.push(copy);
        format!("dup {label} -> 0")
    }

    fn read_and_seek(&mut self) -> String {
        let (session, fd) = self.any_session();
        let mut byte = [0_u8];
        // SAFETY: one byte is read into a byte of ours.
        let read = unsafe { libc::read(fd, byte.as_mut_ptr().cast(), 1) };
        let read = Errno::result(read);
        // SAFETY: one byte of ours is written.
        let written = Errno::result(unsafe { libc::write(fd, byte.as_ptr().cast(), 1) });
        // SAFETY: the call takes integers.
        let sought = Errno::result(unsafe { libc::lseek(fd, 0, libc::SEEK_SET) });
        format!(
            "read_write_seek {session} -> {} {} {}",
            done(read),
            done(written),
            done(sought)
        )
    }

    /// A child makes a session and ends, which closes it.
    fn child(&mut self) -> String {
        let (label, name) = self.name();
        let device = self.device();
        let mut session = Session {
            size: size_of::<Session>() as u32,
            fd: -1,
            name,
        };
        // SAFETY: there is one thread.
        match unsafe { fork() }.expect("a child") {
            ForkResult::Child => {
                let bytes = session.as_mut_bytes();
                let result = self
                    .region
                    .ioctl(device, CREATE_SESSION, Place::Good, bytes, None);
                // SAFETY: ends the child; nothing of the parent's is flushed or dropped.
                unsafe { libc::_exit(result.map_or_else(|errno| errno as i32, |()| 0)) }
            }
            ForkResult::Parent { child } => {
                let status = waitpid(child, None).expect("a child that ended");
                let code = match status {
                    nix::sys::wait::WaitStatus::Exited(_, code) => code,
                    _ => -1,
                };
                let text = done(match code {
                    0 => Ok(()),
                    code => Err(Errno::from_raw(code)),
                });
                format!("child creates {label:.8}/{} -> {text}", label.len())
            }
        }
    }

    fn look(&mut self) -> String {
        if self.retrieved.is_empty() || self.random.one_in(2) {
            let index = self.random.below(MEMFDS as u64) as usize;
            return format!("look memfd {index} -> {}", describe(&self.memfds[index]));
        }
        let index = self.random.below(self.retrieved.len() as u64) as usize;
        let file = &self.retrieved[index];
        format!("look {index}:{} -> {}", file.label, describe(&file.fd))
    }

    fn renew(&mut self) -> String {
        let index = self.random.below(MEMFDS as u64) as usize;
        let size = self.random.below(6) * 1500;
        self.memfds[index] = memfd(size, &mut self.random);
        format!("renew memfd {index} -> 0")
    }

    /// Something that changes a file, or would.
    fn change(&mut self) -> String {
        let of_retrieved = !self.retrieved.is_empty() && self.random.one_in(3);
        let count = if of_retrieved {
            self.retrieved.len()
        } else {
            MEMFDS
        };
        let index = self.random.below(count as u64) as usize;
        let what = self.random.below(8);
        let (a, b) = (self.random.next(), self.random.next());
        let (label, file) = if of_retrieved {
            let held = &self.retrieved[index];
            (held.label.as_str(), &held.fd)
        } else {
            ("memfd", &self.memfds[index])
        };
        let size = fstat(file).map_or(0, |stat| stat.st_size);
        let change = match what {
            0 | 1 => {
                let to = [size, size + 1, size - 1, 0, 4096, -1][(a % 6) as usize];
                format!("ftruncate {to} -> {}", done(ftruncate(file, to)))
            }
            2 | 3 => {
                let modes = [0, 1, 3, 2, 8, 0x11];
                let mode = modes[(a % 6) as usize];
                let (offset, length) = [(0, 4096), (size, 100), (0, 0), (-1, 10)][(b % 4) as usize];
                let flags = FallocateFlags::from_bits_retain(mode);
                let result = fallocate(file, flags, offset, length);
                format!("fallocate {mode:#x} {offset} {length} -> {}", done(result))
            }
            4 => {
                let to = (a % 10_000) as i64;
                format!("seek {to} -> {}", done(lseek(file, to, Whence::SeekSet)))
            }
            5 => format!("map {} -> {}", a as u8, done(write_mapped(file, size, a))),
            // In place alone.
            _ => {
                let length = 1 + a % 300;
                let at = if size as u64 >= length {
                    b % (size as u64 - length + 1)
                } else {
                    return format!("change {label} {index} too small to write -> 0");
                };
                let bytes = vec![a as u8; length as usize];
                let file = File::from(file.try_clone().expect("a copy"));
                let result = file
                    .write_all_at(&bytes, at)
                    .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)));
                format!("write {length} at {at} -> {}", done(result))
            }
        };
        format!("change {label} {index} {change}")
    }

    /// The sessions that the next kernel is to find, by the seed alone.
    fn leave(&mut self, seed: u64) {
        let mut random = Random::new(!seed);
        self.sessions.clear();
        let device = &mut self.device;
        if device.is_none() {
            *device = open(DEVICE, OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).ok();
        }
        let on = self.device();
        for index in 0..KEPT {
            let label = format!("kept-{index}");
            let mut session = Session {
                size: size_of::<Session>() as u32,
                fd: -1,
                name: [0; NAME_LEN],
            };
            session.name[..label.len()].copy_from_slice(label.as_bytes());
            let bytes = session.as_mut_bytes();
            let result = self
                .region
                .ioctl(on, CREATE_SESSION, Place::Good, bytes, None);
            println!("keep {label} -> {}", done(result));
            if result.is_err() {
                continue;
            }
            // SAFETY: the orchestrator has just given us this descriptor.
            let fd = unsafe { OwnedFd::from_raw_fd(session.fd) };
            for token in 0..random.below(KEPT_FILES + 1) {
                let size = random.below(5) * 3000;
                let file = memfd(size, &mut random);
                let mut argument = Fd {
                    size: size_of::<Fd>() as u32,
                    fd: file.as_raw_fd(),
                    token: if token == 4 { u64::MAX } else { token },
                };
                let bytes = argument.as_mut_bytes();
                let result =
                    self.region
                        .ioctl(fd.as_raw_fd(), PRESERVE_FD, Place::Good, bytes, None);
                // What is written and sought from here on is carried too.
                let position = random.below(size + 100) as i64;
                let sought = lseek(&file, position, Whence::SeekSet);
                let mapped = write_mapped(&file, size as i64, random.next());
                println!(
                    "keep {label} {token} -> {} {} {}",
                    done(result),
                    done(sought),
                    done(mapped)
                );
            }
            self.sessions.push(Held { label, fd });
        }
        self.device = None;
    }
}

/// Writes one byte somewhere through a shared mapping.
fn write_mapped(file: &OwnedFd, size: i64, at: u64) -> Result<(), Errno> {
    if size == 0 {
        return Ok(());
    }
    let size = size as usize;
    // SAFETY: a new mapping, which touches no other.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    if address == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    let place = address.cast::<u8>().wrapping_add((at >> 8) as usize % size);
    // SAFETY: within the mapping and within the file, whose size nobody else changes.
    unsafe { place.write_volatile(at as u8) };
    // SAFETY: our own mapping, to which no reference is held.
    unsafe { libc::munmap(address, size) };
    Ok(())
}

/// A child that keeps what is open until it is killed.
fn hold() -> ExitCode {
    let _ = stdout().flush();
    // SAFETY: there is one thread.
    match unsafe { fork() } {
        Ok(ForkResult::Parent { .. }) => ExitCode::SUCCESS,
        Ok(ForkResult::Child) => {
            let _ = setsid();
            for fd in 0..3 {
                // SAFETY: nothing is read or written any more.
                unsafe { libc::close(fd) };
            }
            loop {
                pause();
            }
        }
        Err(errno) => {
            eprintln!("sequence: cannot fork: {errno}");
            ExitCode::FAILURE
        }
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let option = |name: &str| {
        let at = args.iter().position(|arg| arg == name)?;
        args.get(at + 1)?.parse::<u64>().ok()
    };
    let (Some(seed), Some(steps), Some(stage @ 1..=2)) =
        (option("--seed"), option("--steps"), option("--stage"))
    else {
        eprintln!("usage: sequence --seed N --steps N --stage 1|2");
        return ExitCode::from(2);
    };
    let mut run = Run::new(seed, stage as u32);
    for step in 0..steps {
        let line = run.step();
        println!("{step} {line}");
    }
    if stage == 1 {
        run.leave(seed);
        let code = hold();
        // The parent's end closes nothing that the child holds.
        return code;
    }
    ExitCode::SUCCESS
}
