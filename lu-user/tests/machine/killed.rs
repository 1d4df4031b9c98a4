//! `lu run` killed at random moments under load: the journal has all that was told.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use libtest_mimic::{Failed, Trial};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::clients::path;
use crate::support::{Background, Outcome, expect_status, lu, run, scratch, trial};

pub fn trials() -> Vec<Trial> {
    vec![trial(
        "killed_ten_times_lu_run_has_kept_all_that_it_told",
        killed,
    )]
}

/// It takes some seconds to let go of its probes each time; many more kills, without them, are in
/// `tests/journal.rs`.
const KILLS: usize = 10;

/// How long it may live, in milliseconds.
const LIFE: u64 = 1500;

/// Updates that are cancelled, one after the other, until there is a file `$STOP`.
const LOAD: &str = "until [ -e $STOP ]; do \
     printf 'prepare\ncancel\n' | lu ctl --hold preserve 1 --memfd 4KiB; done";

fn killed() -> Outcome {
    let folder = scratch();
    let journal = path(folder.path())?;
    let load = Load::start(folder.path().join("stop"))?;
    let mut told = BTreeMap::new();
    for kill in 0..KILLS {
        let watcher = Background::watch(&["run", "--journal", journal], Stdio::null())?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        std::thread::sleep(Duration::from_millis(u64::from(now.subsec_micros()) % LIFE));
        watcher.signal(Signal::SIGKILL)?;
        let said = watcher.rest()?;
        // The last line may have been cut off.
        for line in said
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'))
        {
            let update = line
                .strip_prefix("lu: update ")
                .and_then(|rest| rest.split_once(", blackout ")?.0.split_once(' '));
            let Some((number, outcome)) = update else {
                return Err(format!("kill {kill}: lu run says: {line}").into());
            };
            if let Some(before) = told.insert(number.parse::<u64>()?, outcome.to_owned()) {
                return Err(format!("update {number} was told twice, first {before}").into());
            }
        }
    }
    drop(load);
    let output = run(&["history", "--journal", journal, "--limit", "0", "--json"])?;
    expect_status(&output, 0)?;
    let history: Value = serde_json::from_slice(&output.stdout)?;
    let updates = history["updates"].as_array().ok_or("no updates")?;
    let kept: BTreeMap<u64, &str> = updates
        .iter()
        .filter_map(|update| Some((update["update"].as_u64()?, update["outcome"].as_str()?)))
        .collect();
    if kept.len() != updates.len() || !kept.keys().copied().eq(1..=kept.len() as u64) {
        return Err(format!("numbers are missing, or there twice: {kept:?}").into());
    }
    for (number, outcome) in &told {
        if kept.get(number) != Some(&outcome.as_str()) {
            return Err(format!("update {number}, {outcome}, is not kept").into());
        }
    }
    let events = whole_runs(journal)?;
    if told.len() < KILLS || events < 10 * KILLS {
        return Err(format!("{} updates told, {events} events: no load", told.len()).into());
    }
    Ok(())
}

/// Of each run nothing is missing between its first event and its last. Returns how many there are.
fn whole_runs(journal: &str) -> Result<usize, Failed> {
    let output = run(&["trace", "--journal", journal, "--json"])?;
    expect_status(&output, 0)?;
    let mut run = 0;
    let mut seen = BTreeSet::new();
    for line in String::from_utf8(output.stdout)?.lines() {
        let event: Value = serde_json::from_str(line)?;
        match event["kind"].as_str() {
            Some("kernel") => run += 1,
            // A call that was under way when the hooks were attached counts as lost, and has no number.
            Some("anchor" | "last_beat" | "lost") => {}
            _ => {
                let place = (event["cpu"].as_u64(), event["seq"].as_u64());
                seen.insert((run, place));
            }
        }
    }
    // Where a CPU's numbers go on there is one before, or it is the run's first there.
    let gaps = seen
        .iter()
        .zip(seen.iter().skip(1))
        .filter(|((run, (cpu, seq)), (next_run, (next_cpu, next_seq)))| {
            run == next_run && cpu == next_cpu && seq.map(|seq| seq + 1) != *next_seq
        })
        .count();
    if gaps > 0 {
        return Err(format!("{gaps} gaps in the sequence numbers").into());
    }
    Ok(seen.len())
}

/// An emulator whose clients go on until this is dropped.
struct Load {
    emulator: Child,
    stop: PathBuf,
}

impl Load {
    fn start(stop: PathBuf) -> Result<Self, Failed> {
        let script = LOAD.replace("lu ", &format!("{} ", lu()));
        let emulator = Command::new(lu())
            .args(["emulate", "--", "sh", "-c", &script])
            .env("STOP", &stop)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { emulator, stop })
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = std::fs::write(&self.stop, "");
        let _ = self.emulator.wait();
    }
}
