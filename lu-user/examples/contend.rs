//! Opens `/dev/liveupdate` again and again while `lu run` starts, records and ends, and tells for how long
//! it was refused at most: whoever needs the device must never wait for lu.
//!
//! `contend LU ROUNDS` prints one JSON object. A refusal is counted from the first open that was refused to
//! the last before one that was not, so that being scheduled late is not taken for one.

use std::fs::OpenOptions;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::libc::EBUSY;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const DEVICE: &str = "/dev/liveupdate";

/// How long the device is left alone between two tries.
const PAUSE: Duration = Duration::from_micros(100);

#[derive(Debug, Default)]
struct Seen {
    opened: u64,
    refused: u64,
    longest: Duration,
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [lu, rounds] = &args[..] else {
        bail!("usage: contend LU ROUNDS");
    };
    let rounds: u32 = rounds.parse().context("how many rounds?")?;
    let stop = Arc::new(AtomicBool::new(false));
    let watched = Arc::clone(&stop);
    let opener = thread::spawn(move || open_in_a_loop(&watched));
    let mut recorders = 0;
    for round in 0..rounds {
        recorders += u32::from(run_lu(lu, round)?);
    }
    stop.store(true, Ordering::Relaxed);
    let seen = opener
        .join()
        .map_err(|_| anyhow::anyhow!("the opener died"))??;
    println!(
        "{{\"opened\":{},\"refused\":{},\"longest_refusal_ns\":{},\"rounds\":{rounds},\"recorders\":{recorders}}}",
        seen.opened,
        seen.refused,
        seen.longest.as_nanos()
    );
    Ok(())
}

fn open_in_a_loop(stop: &AtomicBool) -> Result<Seen> {
    let mut seen = Seen::default();
    let mut first_refusal: Option<Instant> = None;
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        match OpenOptions::new().read(true).write(true).open(DEVICE) {
            Ok(_) => {
                seen.opened += 1;
                first_refusal = None;
            }
            Err(error) if error.raw_os_error() == Some(EBUSY) => {
                seen.refused += 1;
                let since = *first_refusal.get_or_insert(now);
                seen.longest = seen.longest.max(now - since);
            }
            Err(error) => return Err(error).context(DEVICE),
        }
        thread::sleep(PAUSE);
    }
    Ok(seen)
}

/// One `lu run` from its start to its end; whether it got its flight recorder.
fn run_lu(lu: &str, round: u32) -> Result<bool> {
    let mut child = Command::new(lu)
        .args(["run", "--journal", &format!("/tmp/journal-{round}")])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{lu} does not start"))?;
    let stderr = child.stderr.take().context("no standard error")?;
    let mut said = Vec::new();
    let mut lines = BufReader::new(stderr).lines();
    for line in lines.by_ref() {
        let line = line?;
        let ready = line.contains("hooks attached");
        said.push(line);
        if ready {
            break;
        }
    }
    thread::sleep(Duration::from_millis(500));
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT)?;
    said.extend(lines.map_while(Result::ok));
    let status = child.wait()?;
    ensure!(status.success(), "lu run: {status}: {}", said.join("\n"));
    Ok(!said.iter().any(|line| line.contains("no flight recorder")))
}
