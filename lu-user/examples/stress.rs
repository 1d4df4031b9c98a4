//! Many sessions with many memfds across a kexec, and the time that it took: what `cargo xtask bench
//! observe` runs with and without lu.
//!
//! `stress preserve SESSIONS FILES` makes so many sessions with so many memfds of a page in each and leaves a
//! daemon that holds them; `stress restore SESSIONS FILES` gets everything back in the new kernel, and
//! compares. Each prints one JSON object: the time in the orchestrator's calls, and in all.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use lu_user::client::sessions::Device;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{ForkResult, fork, setsid};

const DEVICE: &str = "/dev/liveupdate";

const PAGE: usize = 4096;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [step, sessions, files] = &args[..] else {
        bail!("usage: stress preserve|restore SESSIONS FILES");
    };
    let sessions = sessions.parse().context("how many sessions?")?;
    let files = files.parse().context("how many files in each?")?;
    setrlimit(Resource::RLIMIT_NOFILE, 1 << 20, 1 << 20)?;
    match step.as_str() {
        "preserve" => preserve(sessions, files),
        "restore" => restore(sessions, files),
        other => bail!("{other} is neither preserve nor restore"),
    }
}

/// The time within the orchestrator's calls.
#[derive(Default)]
struct Calls(Duration);

impl Calls {
    fn time<T>(&mut self, call: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let done = call();
        self.0 += start.elapsed();
        done
    }

    fn print(&self, start: Instant) {
        println!(
            "{{\"calls_ns\":{},\"all_ns\":{}}}",
            self.0.as_nanos(),
            start.elapsed().as_nanos()
        );
    }
}

fn name(session: u64) -> String {
    format!("vm-{session}")
}

/// What stands in a file: its own place among all.
fn content(session: u64, token: u64) -> [u8; PAGE] {
    let mut page = [0; PAGE];
    page[..8].copy_from_slice(&session.to_ne_bytes());
    page[PAGE - 8..].copy_from_slice(&token.to_ne_bytes());
    page
}

fn preserve(sessions: u64, files: u64) -> Result<()> {
    let mut calls = Calls::default();
    let start = Instant::now();
    let device = Device::open(DEVICE.as_ref())?;
    let mut held = Vec::new();
    for number in 0..sessions {
        let session = calls.time(|| device.create(&name(number)))?;
        for token in 0..files {
            let memory = File::from(memfd_create("vm", MFdFlags::MFD_CLOEXEC)?);
            memory.write_all_at(&content(number, token), 0)?;
            calls.time(|| session.preserve(token, &memory))?;
        }
        held.push(session);
    }
    drop(device);
    calls.print(start);
    // SAFETY: this program has one thread.
    match unsafe { fork() }? {
        ForkResult::Parent { .. } => Ok(()),
        ForkResult::Child => {
            setsid()?;
            // It ends with its kernel.
            loop {
                std::thread::park();
            }
        }
    }
}

fn restore(sessions: u64, files: u64) -> Result<()> {
    let mut calls = Calls::default();
    let start = Instant::now();
    let device = Device::open(DEVICE.as_ref())?;
    for number in 0..sessions {
        let session = calls.time(|| device.retrieve(&name(number)))?;
        for token in 0..files {
            let memory = File::from(calls.time(|| session.retrieve(token))?);
            let mut page = [0; PAGE];
            memory.read_exact_at(&mut page, 0)?;
            ensure!(
                page == content(number, token),
                "session {number}, file {token}: another content"
            );
        }
        calls.time(|| session.finish())?;
    }
    calls.print(start);
    Ok(())
}
