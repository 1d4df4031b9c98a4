//! Where the emulated device stands: for one command alone, or at a path for everybody.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, symlink};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, mknod};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Gid, Pid, Uid, chown, fork, pipe2, read, setsid};

use super::stat::Stat;
use super::{Error, Step as _};

/// Where programs look for the device.
pub const DEVICE: &str = "/dev/liveupdate";

/// Mounts a FUSE file system that consists of one file over the file at `path`, and returns the
/// descriptor on which its requests come.
pub fn mount_file(path: &Path) -> Result<OwnedFd, Error> {
    let fuse = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .step("open", "/dev/fuse (is FUSE in this kernel?)")?;
    let options = format!(
        "fd={},rootmode=100600,user_id=0,group_id=0,allow_other,default_permissions",
        fuse.as_raw_fd()
    );
    mount(
        Some("lu-emulate"),
        path,
        Some("fuse.liveupdate"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        Some(options.as_str()),
    )
    .step("mount the emulated device at", path)?;
    Ok(fuse.into())
}

/// The device number of the file system at `path`, by which its open files are recognised.
pub fn device_number(path: &Path) -> Result<u64, Error> {
    Ok(Stat::at(path).step("look at", path)?.identity.0)
}

/// The file at `path`, to be opened later from wherever we are.
pub fn place(path: &Path) -> Result<OwnedFd, Error> {
    open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).step("look at", path)
}

/// Gives the calling thread a mount namespace of its own in which the device can be mounted at
/// [`DEVICE`], whether the machine has such a file or not.
pub fn private_device(scratch: &Path) -> Result<(), Error> {
    unshare(CloneFlags::CLONE_NEWNS).step("make a mount namespace for", "the command")?;
    // Nothing that happens here reaches the rest of the machine.
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )
    .step("detach the mounts below", "/")?;
    if Path::new(DEVICE).exists() {
        return Ok(());
    }
    fs::create_dir_all(scratch).step("create", scratch)?;
    let result = copy_of_dev(scratch);
    let _ = fs::remove_dir(scratch);
    result
}

/// Builds a /dev with the same content and one file more, and puts it in place of the old one.
fn copy_of_dev(scratch: &Path) -> Result<(), Error> {
    mount(
        Some("lu-emulate"),
        scratch,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
        Some("mode=755"),
    )
    .step("mount a tmpfs at", scratch)?;
    for entry in fs::read_dir("/dev").step("list", "/dev")? {
        let from = entry.step("list", "/dev")?.path();
        let to = scratch.join(from.file_name().unwrap_or_default());
        copy_entry(&from, &to)?;
    }
    let name = Path::new(DEVICE).file_name().unwrap_or_default();
    create_file(&scratch.join(name))?;
    mount(
        Some(scratch),
        "/dev",
        None::<&str>,
        MsFlags::MS_MOVE,
        None::<&str>,
    )
    .step("move the copy to", "/dev")
}

fn copy_entry(from: &Path, to: &Path) -> Result<(), Error> {
    let meta = fs::symlink_metadata(from).step("look at", from)?;
    let kind = meta.file_type();
    let bind = || {
        mount(
            Some(from),
            to,
            None::<&str>,
            MsFlags::MS_BIND | MsFlags::MS_REC,
            None::<&str>,
        )
        .step("bind", from)
    };
    if kind.is_symlink() {
        let target = fs::read_link(from).step("read", from)?;
        symlink(target, to).step("link", to)
    } else if kind.is_dir() {
        fs::create_dir(to).step("create", to)?;
        bind()
    } else if kind.is_char_device() || kind.is_block_device() {
        let node = SFlag::from_bits_truncate(meta.mode()) & SFlag::S_IFMT;
        let mode = Mode::from_bits_truncate(meta.mode());
        mknod(to, node, mode, meta.rdev()).step("make the device", to)?;
        let owner = (Uid::from_raw(meta.uid()), Gid::from_raw(meta.gid()));
        chown(to, Some(owner.0), Some(owner.1)).step("give away", to)?;
        // The umask took bits off.
        fs::set_permissions(to, meta.permissions()).step("set the mode of", to)
    } else {
        create_file(to)?;
        bind()
    }
}

fn create_file(path: &Path) -> Result<(), Error> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map(drop)
        .step("create", path)
}

/// A path at which the device stands for everybody, until this is dropped or the process dies.
pub struct Public {
    path: PathBuf,
    created: bool,
    janitor: Option<Janitor>,
}

impl Public {
    /// Prepares the place. Nobody else's device is covered.
    ///
    /// Call it while the process has one thread: it forks.
    pub fn prepare(path: &Path) -> Result<Self, Error> {
        let created = match fs::symlink_metadata(path) {
            Ok(meta) if meta.file_type().is_char_device() => {
                return Err(Error::RealDevice(path.into()));
            }
            Ok(meta) if meta.is_file() && is_mounted(path) => {
                return Err(Error::Emulated(path.into()));
            }
            Ok(meta) if meta.is_file() => false,
            Ok(_) => return Err(Error::NotAFile(path.into())),
            // What a killed emulator left behind.
            Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => {
                umount2(path, MntFlags::MNT_DETACH).step("take off the dead mount at", path)?;
                false
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                create_file(path)?;
                true
            }
            Err(error) => return Err(error).step("look at", path),
        };
        let janitor = Janitor::start(path, created)?;
        Ok(Self {
            path: path.into(),
            created,
            janitor: Some(janitor),
        })
    }
}

impl Drop for Public {
    fn drop(&mut self) {
        clear(&self.path, self.created);
        if let Some(janitor) = self.janitor.take() {
            janitor.dismiss();
        }
    }
}

fn clear(path: &Path, created: bool) {
    match umount2(path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::EINVAL) => {}
        Err(errno) => eprintln!("lu emulate: cannot unmount {}: {errno}", path.display()),
    }
    if created {
        let _ = fs::remove_file(path);
    }
}

/// Whether something is mounted at exactly `path`.
fn is_mounted(path: &Path) -> bool {
    let Ok(path) = path.canonicalize() else {
        return false;
    };
    fs::read_to_string("/proc/self/mounts").is_ok_and(|mounts| {
        mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(1))
            .any(|place| OsStr::new(place) == path.as_os_str())
    })
}

/// A process that waits for the end of this one and then unmounts: a signal that cannot be caught
/// leaves nothing behind.
struct Janitor {
    child: Pid,
    /// Closed by the kernel when we end, however we end.
    alive: File,
}

impl Janitor {
    fn start(path: &Path, created: bool) -> Result<Self, Error> {
        let (alive_read, alive) = pipe2(OFlag::O_CLOEXEC).step("make a pipe for", "the janitor")?;
        // SAFETY: there is one thread, so the child may go on as an ordinary program.
        let child = match unsafe { fork() }.step("fork", "the janitor")? {
            ForkResult::Parent { child } => child,
            ForkResult::Child => {
                let _ = setsid();
                drop(alive);
                if read(&alive_read, &mut [0]) == Ok(0) {
                    clear(path, created);
                }
                // SAFETY: ends this process; nothing of the parent's is flushed or dropped.
                unsafe { libc::_exit(0) }
            }
        };
        Ok(Self {
            child,
            alive: alive.into(),
        })
    }

    /// Sends it home without work.
    fn dismiss(mut self) {
        let _ = io::Write::write_all(&mut self.alive, b"!");
        let _ = waitpid(self.child, None);
    }
}
