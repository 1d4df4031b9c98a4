//! Tests that need this machine: root, FUSE, uprobes, a C compiler. Each says what it needs; one that
//! cannot run here is listed as ignored, with the reason on standard error.

mod clients;
mod commands;
mod killed;
mod policy;
mod robust;
mod service;
mod sessions;
mod socket;
mod stories;
mod support;
mod watched;

use libtest_mimic::{Arguments, Trial};
use lu_user::emulate::control::FOLDER;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

fn main() {
    if let Err(error) = alone() {
        eprintln!("what other emulators on this machine do is watched too: {error}");
    }
    let mut trials: Vec<Trial> = Vec::new();
    trials.extend(clients::trials());
    trials.extend(robust::trials());
    trials.extend(sessions::trials());
    trials.extend(watched::trials());
    trials.extend(stories::trials());
    trials.extend(commands::trials());
    trials.extend(policy::trials());
    trials.extend(socket::trials());
    trials.extend(service::trials());
    trials.extend(killed::trials());
    let mut args = Arguments::from_args();
    // They share the folder of the emulators' sockets, and timings would be disturbed.
    args.test_threads = Some(1);
    libtest_mimic::run(&args, trials).exit();
}

/// From now on no emulator that somebody else runs on this machine is found: lu would watch its updates too, and
/// tell them with ours.
fn alone() -> Result<(), Box<dyn std::error::Error>> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
    std::fs::create_dir_all(FOLDER)?;
    mount(
        Some("tmpfs"),
        FOLDER,
        Some("tmpfs"),
        MsFlags::empty(),
        Some("mode=700"),
    )?;
    Ok(())
}
