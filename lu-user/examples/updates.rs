//! Fills a journal with live updates that never took place, for tests and `cargo xtask bench history`.
//!
//! `updates DIR COUNT` writes so many. `updates DIR` writes until it is killed, in batches of all sizes, and after
//! each says on standard output how many records this run has handed to the kernel and which updates are kept:
//! `12345 [17]`.

mod made_up;

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use lu_user::journal::{Journal, Retention};

use made_up::Machine;

/// Batches have from 1 to so many records.
const BATCHES: u64 = 40;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        [folder, count] => fill(folder.as_ref(), count.parse().context("no number")?),
        [folder] => go_on(folder.as_ref()),
        _ => bail!("usage: updates DIR [COUNT]"),
    }
}

fn fill(folder: &Path, count: u64) -> Result<()> {
    let retention = Retention {
        updates: count.max(1),
        bytes: 1 << 40,
    };
    let mut journal = Journal::open(folder, retention)?;
    let mut machine = Machine::new();
    for record in machine.start() {
        journal.push(&[record])?;
    }
    for number in 0..count {
        for record in machine.update() {
            journal.push(&[record])?;
        }
        // Many in one transaction, or this would take minutes.
        if number % 32 == 0 {
            journal.settle()?;
        }
    }
    journal.push(&[machine.anchor()])?;
    journal.tick()?;
    journal.settle()?;
    Ok(())
}

fn go_on(folder: &Path) -> Result<()> {
    let mut journal = Journal::open(folder, Retention::default())?;
    let mut machine = Machine::new();
    let mut out = std::io::stdout().lock();
    let (mut records, mut batch) = (0_u64, 0_u64);
    let mut next = machine.start();
    loop {
        for record in next {
            journal.push(&[record])?;
            records += 1;
            batch += 1;
            if batch > records % BATCHES {
                batch = 0;
                let told: Vec<u64> = journal
                    .settle()?
                    .iter()
                    .map(|update| update.update)
                    .collect();
                writeln!(out, "{records} {told:?}")?;
                out.flush()?;
            }
            if records % 500 == 0 {
                journal.tick()?;
            }
        }
        next = machine.update();
        next.push(machine.refused_open());
    }
}
