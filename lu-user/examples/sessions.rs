//! A live update from the clients' side, with the sessions interface: what `cargo xtask lab run` does
//! unless it is told otherwise.
//!
//! `sessions stage1`, in the old kernel: two sessions with memfds of three sizes, one call that is refused,
//! and a daemon that holds the sessions until the jump. `sessions stage2`, in the new kernel: everything is
//! retrieved, and every byte compared.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context as _, Result, bail, ensure};
use lu_user::client::sessions::{Device, Session};
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{ForkResult, fork, setsid};

const DEVICE: &str = "/dev/liveupdate";

/// Each session's name, and token and size in bytes of each of its files.
const SESSIONS: [(&str, &[(u64, usize)]); 2] = [
    ("guest-a", &[(0x1, 4 << 10), (0x2, 1 << 20)]),
    ("guest-b", &[(0x1, 16 << 20)]),
];

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["stage1"] => stage1(),
        ["stage2"] => stage2(),
        _ => bail!("usage: sessions stage1|stage2"),
    }
}

fn stage1() -> Result<()> {
    let device = Device::open(DEVICE.as_ref())?;
    let mut held: Vec<Session> = Vec::new();
    for (number, (name, files)) in SESSIONS.into_iter().enumerate() {
        let session = device.create(name)?;
        println!("session {name} created");
        for (token, size) in files.iter().copied() {
            let memory = File::from(memory(&content(number, token, size))?);
            session.preserve(token, &memory)?;
            println!("session {name}: token {token:#x} preserved, {size} bytes");
        }
        held.push(session);
    }
    let mistake = File::from(memory(b"late")?);
    match held[0].preserve(0x1, &mistake) {
        Err(error) if error.errno() == Errno::EEXIST => {
            println!(
                "session {}: token 0x1 again: refused (EEXIST)",
                SESSIONS[0].0
            );
        }
        other => bail!("a token was given twice: {other:?}"),
    }
    // Closed before the jump: whoever else wants the device must find it free.
    drop(device);
    // SAFETY: this program has one thread.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => {
            println!("process {child} holds the sessions");
            Ok(())
        }
        ForkResult::Child => {
            setsid()?;
            // It ends with its kernel.
            loop {
                std::thread::park();
            }
        }
    }
}

fn stage2() -> Result<()> {
    let device = Device::open(DEVICE.as_ref())?;
    for (number, (name, files)) in SESSIONS.into_iter().enumerate() {
        let session = device.retrieve(name)?;
        println!("session {name} retrieved");
        ensure!(session.name()? == name, "it says another name");
        for (token, size) in files.iter().copied() {
            let mut memory = File::from(session.retrieve(token)?);
            memory.rewind()?;
            let mut found = Vec::with_capacity(size);
            memory.read_to_end(&mut found)?;
            ensure!(
                found.len() == size,
                "session {name}: token {token:#x} has {} bytes, not {size}",
                found.len()
            );
            ensure!(
                found == content(number, token, size),
                "session {name}: token {token:#x} has another content"
            );
            println!("session {name}: token {token:#x} restored, {size} bytes as they were");
        }
        session.finish()?;
        println!("session {name} finished");
    }
    Ok(())
}

fn memory(content: &[u8]) -> Result<OwnedFd> {
    let fd = memfd_create("guest", MFdFlags::MFD_CLOEXEC)?;
    let mut file = File::from(fd.as_fd().try_clone_to_owned()?);
    file.write_all(content).context("the memory")?;
    Ok(fd)
}

/// What a file holds: different in every file and every word.
fn content(session: usize, token: u64, size: usize) -> Vec<u8> {
    let seed = ((session as u64) << 48 | token << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (0..size as u64 / 8)
        .flat_map(|word| (seed ^ word.wrapping_mul(0x2545_f491_4f6c_dd1d)).to_ne_bytes())
        .collect()
}
