//! What init asks of the kernel.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

/// How long a disk may take to appear.
const DISK: Duration = Duration::from_secs(20);

/// What is mounted where, in this order; a kernel that lacks one of the later ones is still good for much.
const MOUNTS: [(&str, &str); 13] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("devpts", "/dev/pts"),
    ("tmpfs", "/dev/shm"),
    ("tmpfs", "/tmp"),
    ("tmpfs", "/run"),
    ("debugfs", "/sys/kernel/debug"),
    ("tracefs", "/sys/kernel/tracing"),
    ("securityfs", "/sys/kernel/security"),
    ("bpf", "/sys/fs/bpf"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("fusectl", "/sys/fs/fuse/connections"),
];

/// Mounts everything and brings the loopback interface up; returns what could not be done.
pub fn mount_all() -> Vec<String> {
    let mut notes = Vec::new();
    for (kind, place) in MOUNTS {
        // sysfs brings its own places, and refuses others.
        let _ = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(place);
        let mounted = mount(
            Some(kind),
            place,
            Some(kind),
            MsFlags::empty(),
            None::<&str>,
        );
        match mounted {
            Ok(()) | Err(Errno::EBUSY) => {}
            // The module that brings it may be loaded later, or never.
            Err(_) if kind == "fusectl" => {}
            Err(error) => notes.push(format!("{kind} cannot be mounted at {place}: {error}")),
        }
    }
    for place in ["/root", "/lu", "/var/lib"] {
        if let Err(error) = fs::create_dir_all(place) {
            notes.push(format!("{place} cannot be created: {error}"));
        }
    }
    if let Err(error) = loopback_up() {
        notes.push(format!("the loopback interface stays down: {error}"));
    }
    notes
}

fn loopback_up() -> Result<()> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: all of its fields are plain numbers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *place = *byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which this is.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    Errno::result(done)?;
    Ok(())
}

/// A serial port that passes bytes on as they are.
pub fn raw_port(path: &Path) -> Result<()> {
    let port = File::options().read(true).write(true).open(path)?;
    let mut settings = tcgetattr(&port)?;
    cfmakeraw(&mut settings);
    tcsetattr(&port, SetArg::TCSANOW, &settings)?;
    Ok(())
}

/// Loads a module. One that is there already is fine.
pub fn load_module(path: &Path) -> Result<()> {
    match finit_module(File::open(path)?, c"", ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The device of the disk with this serial number, once it is there.
pub fn disk(serial: &str) -> Result<PathBuf> {
    let deadline = Instant::now() + DISK;
    loop {
        for entry in fs::read_dir("/sys/block")? {
            let entry = entry?;
            let found = fs::read_to_string(entry.path().join("serial"));
            let device = Path::new("/dev").join(entry.file_name());
            if found.is_ok_and(|found| found.trim() == serial) && device.exists() {
                return Ok(device);
            }
        }
        if Instant::now() > deadline {
            bail!("no disk {serial}: has this kernel virtio_blk and virtio_pci?");
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Mounts the ext4 file system of `disk`.
pub fn mount_disk(disk: &Path, place: &Path) -> Result<()> {
    fs::create_dir_all(place)?;
    mount(
        Some(disk),
        place,
        Some("ext4"),
        MsFlags::empty(),
        None::<&str>,
    )
    .with_context(|| format!("{} cannot be mounted as ext4", disk.display()))
}

/// Unpacks the tar archive on `disk` to the root, of it what is `wanted`.
pub fn unpack(disk: &Path, wanted: impl Fn(&Path) -> bool) -> Result<()> {
    let mut archive = tar::Archive::new(File::open(disk)?);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = entry.path()?.into_owned();
        if wanted(&name) {
            let inside = entry
                .unpack_in("/")
                .with_context(|| name.display().to_string())?;
            ensure!(inside, "{} would be outside the root", name.display());
        }
    }
    Ok(())
}

/// `uname -r`.
pub fn release() -> Result<String> {
    let names = nix::sys::utsname::uname()?;
    Ok(names.release().to_string_lossy().into_owned())
}

/// Loads a kernel for the next kexec.
pub fn kexec_file_load(kernel: &Path, initrd: &Path, command_line: &str) -> Result<()> {
    let open =
        |path: &Path| File::open(path).with_context(|| format!("cannot open {}", path.display()));
    let (kernel, initrd) = (open(kernel)?, open(initrd)?);
    let command_line = CString::new(command_line)?;
    // SAFETY: two open files, and a string whose length with its NUL is given; the kernel keeps none.
    let done = unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            kernel.as_raw_fd(),
            initrd.as_raw_fd(),
            command_line.as_bytes_with_nul().len(),
            command_line.as_ptr(),
            0_u64,
        )
    };
    Errno::result(done).context("kexec_file_load")?;
    Ok(())
}

/// reboot(KEXEC); returns only where it is refused.
pub fn jump() -> Result<()> {
    let Err(error) = reboot(RebootMode::RB_KEXEC);
    Err(error).context("reboot(KEXEC)")
}

/// The end of the guest.
pub fn power_off() -> ! {
    nix::unistd::sync();
    let _ = reboot(RebootMode::RB_POWER_OFF);
    // A kernel without ACPI: the machine is started not to come back from a reset.
    let _ = reboot(RebootMode::RB_AUTOBOOT);
    loop {
        thread::park();
    }
}

/// Links to busybox for each of its commands, beside what is in /bin already.
pub fn install_busybox() -> Result<()> {
    let list = Command::new("/bin/busybox").arg("--list").output()?;
    for name in String::from_utf8_lossy(&list.stdout).lines() {
        let _ = std::os::unix::fs::symlink("busybox", Path::new("/bin").join(name));
    }
    Ok(())
}
