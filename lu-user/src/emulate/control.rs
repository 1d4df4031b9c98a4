//! The emulated orchestrator's own socket: what no client of the real one could ask for.
//!
//! One line asks, one line answers: `kexec`, answered by `ok` or `errno N`. The folder of the sockets
//! is root's alone. Its entries are also how the emulators that run are found.

use std::fs::{self, DirBuilder};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use super::client::Client;
use super::{Error, Step as _, reboot};

/// Where the sockets are, each named after its emulator's process.
pub const FOLDER: &str = "/run/lu/emulate";

/// The variable that tells a command's children which emulator they live under.
pub const VARIABLE: &str = "LU_EMULATE";

/// How long one who has connected may take to ask.
const ASKS_WITHIN: Duration = Duration::from_secs(5);

/// The longest line that is read, in bytes.
const LONGEST: u64 = 64;

/// The socket of this process; it goes when this is dropped.
pub struct Control {
    path: PathBuf,
}

impl Control {
    /// Opens the socket and answers in a thread of its own.
    pub fn start() -> Result<Self, Error> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(FOLDER)
            .step("create", FOLDER)?;
        remove_stale();
        let path = socket_of(std::process::id());
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path).step("open the socket", &path)?;
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if let Err(error) = answer(&stream) {
                    log::warn!("control: {error}");
                }
            }
        });
        Ok(Self { path })
    }

    /// The socket's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn socket_of(pid: u32) -> PathBuf {
    Path::new(FOLDER).join(format!("{pid}.sock"))
}

fn answer(stream: &UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(ASKS_WITHIN))?;
    let peer = getsockopt(stream, PeerCredentials)?;
    let mut line = String::new();
    BufReader::new(io::Read::take(stream, LONGEST)).read_line(&mut line)?;
    let done = match line.trim_end() {
        // It only looked whether somebody is here.
        "" => return Ok(()),
        "kexec" => {
            Client::of(peer.pid() as u32).and_then(|caller| reboot::reboot(&caller, None, || true))
        }
        _ => Err(Errno::EINVAL),
    };
    let mut stream = stream;
    match done {
        Ok(()) => stream.write_all(b"ok\n"),
        Err(errno) => writeln!(stream, "errno {}", errno as i32),
    }
}

fn known() -> impl Iterator<Item = u32> {
    fs::read_dir(FOLDER)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let name = entry.ok()?.file_name();
            name.to_str()?.strip_suffix(".sock")?.parse().ok()
        })
}

/// A killed emulator leaves its socket behind; nobody answers there.
fn remove_stale() {
    for path in known().map(socket_of) {
        let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
        if UnixStream::connect(&path).is_err_and(refused) {
            let _ = fs::remove_file(path);
        }
    }
}

/// The emulators that run, by process.
#[must_use]
pub fn running() -> Vec<u32> {
    let mut pids: Vec<u32> = known()
        .filter(|pid| UnixStream::connect(socket_of(*pid)).is_ok())
        .collect();
    pids.sort_unstable();
    pids
}

/// Asks an emulator for a kexec and waits for its end: the one of `pid`, else the one that this
/// command runs under, else the only one there is.
pub fn kexec(pid: Option<u32>) -> Result<(), Error> {
    let path = match (pid, std::env::var_os(VARIABLE)) {
        (Some(pid), _) => socket_of(pid),
        (None, Some(path)) => path.into(),
        (None, None) => match running()[..] {
            [pid] => socket_of(pid),
            [] => return Err(Error::NoEmulator),
            ref pids => return Err(Error::ManyEmulators(pids.to_vec())),
        },
    };
    let mut stream = UnixStream::connect(&path).step("reach the emulator at", &path)?;
    stream.write_all(b"kexec\n").step("ask", &path)?;
    let mut line = String::new();
    BufReader::new(stream)
        .read_line(&mut line)
        .step("hear from", &path)?;
    if line.trim_end() == "ok" {
        return Ok(());
    }
    let errno = line
        .trim_end()
        .strip_prefix("errno ")
        .and_then(|number| number.parse().ok())
        .map_or(Errno::EIO, Errno::from_raw);
    Err(Error::Refused(errno))
}
