//! A live update from the clients' side, with the client library: guests preserve their memory, one
//! makes a mistake, an agent drives the update, and in the new kernel every byte is checked.
//!
//! Run it as `lu emulate -- demo`; it needs an orchestrator that speaks v3.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use lu_common::uapi::v3::State;
use lu_user::client::v3::Device;
use lu_user::emulate::{DEVICE, control};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// Token and size, in MiB, of each guest's memory.
const GUESTS: [(u64, u64); 3] = [(0x1, 4), (0x2, 16), (0x3, 64)];

const BLOCK: usize = 1 << 20;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        [] => whole(),
        ["agent"] => agent(),
        ["guest", fd, token, mebibytes] => guest(fd.parse()?, token.parse()?, mebibytes.parse()?),
        _ => bail!("run it without arguments, as `lu emulate -- demo`"),
    }
}

fn say(who: &str, what: &str) {
    eprintln!("demo: {who}: {what}");
}

/// The machine's operator: starts the agent, reboots, restores.
fn whole() -> Result<()> {
    let mut agent = Command::new(std::env::current_exe()?)
        .arg("agent")
        .stdout(Stdio::piped())
        .spawn()?;
    let mut ready = [0];
    let said = agent.stdout.take().context("no pipe")?.read(&mut ready)?;
    ensure!(said == 1, "the agent ended before it was ready");
    say("operator", "reboot(KEXEC)");
    control::kexec(None)?;
    agent.wait()?;
    say(
        "operator",
        "the new kernel is up; every client of the old one has ended",
    );
    restore()
}

/// Holds the device; its guests make their calls through it.
fn agent() -> Result<()> {
    let device = Device::open(DEVICE.as_ref())?;
    ensure!(
        device.state()? == State::Normal,
        "a live update is going on already"
    );
    let shared = share(&device)?;
    for (token, mebibytes) in GUESTS {
        let status = Command::new(std::env::current_exe()?)
            .arg("guest")
            .args([
                shared.as_raw_fd().to_string(),
                token.to_string(),
                mebibytes.to_string(),
            ])
            .status()?;
        ensure!(status.success(), "guest {token} failed");
    }
    drop(shared);
    device.prepare()?;
    say("agent", "PREPARE: the orchestrator is ready for the kexec");
    std::io::stdout().write_all(b"!")?;
    std::io::stdout().flush()?;
    // The agent ends with its kernel.
    loop {
        std::thread::park();
    }
}

/// A copy of the device's descriptor that children inherit.
fn share(device: &Device) -> Result<OwnedFd> {
    let copy = std::os::fd::AsFd::as_fd(device).try_clone_to_owned()?;
    fcntl(&copy, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(copy)
}

/// A virtual machine: its memory is a memfd, which the orchestrator holds from now on.
fn guest(fd: i32, token: u64, mebibytes: u64) -> Result<()> {
    // SAFETY: the agent has passed the device on under this number, and nothing else here uses it.
    let device = Device::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let mut memory = File::from(memfd_create("guest", MFdFlags::MFD_CLOEXEC)?);
    for block in 0..mebibytes {
        memory.write_all(&content(token, block))?;
    }
    device.preserve(token, &memory)?;
    say(
        &format!("guest {token}"),
        &format!("preserves {mebibytes} MiB under token {token:#x}"),
    );
    if token == 2 {
        match device.preserve(1, &memory) {
            Err(error) if error.errno() == Errno::EEXIST => {
                say(
                    "guest 2",
                    "tries token 0x1 too, which is taken: refused (EEXIST)",
                );
            }
            other => bail!("a token was given twice: {other:?}"),
        }
    }
    Ok(())
}

/// In the new kernel: everything back, then everything checked.
fn restore() -> Result<()> {
    let device = Device::open(DEVICE.as_ref())?;
    ensure!(
        device.state()? == State::Updated,
        "this kernel was not started by a live update"
    );
    let restored = GUESTS.map(|(token, mebibytes)| {
        device
            .restore(token)
            .map(|memory| (token, mebibytes, memory))
    });
    for guest in restored {
        let (token, mebibytes, memory) = guest?;
        let mut memory = File::from(memory);
        memory.rewind()?;
        let mut block = vec![0; BLOCK];
        for number in 0..mebibytes {
            memory.read_exact(&mut block)?;
            ensure!(
                block == content(token, number),
                "guest {token}: block {number} differs"
            );
        }
        ensure!(
            memory.read(&mut block)? == 0,
            "guest {token}: the memory has grown"
        );
        say(
            &format!("guest {token}"),
            &format!("restored, {mebibytes} MiB as they were"),
        );
    }
    device.finish()?;
    say("operator", "FINISH");
    Ok(())
}

/// What a guest's memory holds: different in every block.
fn content(token: u64, block: u64) -> Vec<u8> {
    let seed = (token << 32) + block;
    (0..BLOCK as u64 / 8)
        .flat_map(|word| (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ word).to_ne_bytes())
        .collect()
}
