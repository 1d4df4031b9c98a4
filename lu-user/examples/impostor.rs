//! Takes the flight recorder's place with something that is none: session `lu-recorder`, full of bytes that mean
//! nothing, held until the jump.
//!
//! `impostor random` gives it random bytes; `impostor version` one that begins as a recorder of another
//! version does.

use std::fs::File;
use std::io::{Read as _, Write as _};

use anyhow::{Context as _, Result, bail};
use lu_user::client::sessions::Device;
use lu_user::timeline::RECORDER;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{ForkResult, fork, setsid};

const BYTES: u64 = 1 << 20;

fn main() -> Result<()> {
    let mut content = Vec::new();
    File::open("/dev/urandom")?
        .take(BYTES)
        .read_to_end(&mut content)?;
    match std::env::args().nth(1).as_deref() {
        Some("random") => {}
        Some("version") => {
            content[..8].copy_from_slice(b"lu.tape\n");
            content[8..12].copy_from_slice(&99_u32.to_ne_bytes());
        }
        _ => bail!("usage: impostor random|version"),
    }
    let mut memory = File::from(memfd_create("impostor", MFdFlags::MFD_CLOEXEC)?);
    memory.write_all(&content).context("the memory")?;
    let session = Device::open("/dev/liveupdate".as_ref())?.create(RECORDER)?;
    session.preserve(1, &memory)?;
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
