//! Tests that need this machine: root, FUSE, uprobes, a C compiler. Each says what it needs; one that
//! cannot run here is listed as ignored, with the reason on standard error.

mod clients;
mod commands;
mod killed;
mod policy;
mod robust;
mod sessions;
mod stories;
mod support;
mod watched;

use libtest_mimic::{Arguments, Trial};

fn main() {
    let mut trials: Vec<Trial> = Vec::new();
    trials.extend(clients::trials());
    trials.extend(robust::trials());
    trials.extend(sessions::trials());
    trials.extend(watched::trials());
    trials.extend(stories::trials());
    trials.extend(commands::trials());
    trials.extend(policy::trials());
    trials.extend(killed::trials());
    let mut args = Arguments::from_args();
    // They share the machine: emulators are found by their sockets, and timings would be disturbed.
    args.test_threads = Some(1);
    libtest_mimic::run(&args, trials).exit();
}
