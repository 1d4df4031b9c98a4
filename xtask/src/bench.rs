//! Benchmarks beside peers, in one run.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::sh;

/// Starts of each program.
const RUNS: usize = 10;

/// How long a program idles before its memory is read.
const IDLE: Duration = Duration::from_millis(500);

/// What is asked of lu on the reference machine.
const STARTED_WITHIN: Duration = Duration::from_millis(300);
const RESIDENT_AT_MOST_KIB: u64 = 30 * 1024;

struct Peer {
    name: &'static str,
    command: Vec<String>,
    /// What it prints once everything is attached.
    ready: &'static str,
    started: Vec<Duration>,
    resident_kib: Vec<u64>,
}

/// From exec to all hooks attached, and resident memory while idle: `lu trace` beside bpftrace with
/// the same uprobes, alternating. bpftrace is given the moment of its BEGIN, before it attaches the rest.
pub fn startup(lu: &Path) -> Result<()> {
    let path = lu.to_str().context("a path that is not UTF-8")?;
    let mut peers = [
        Peer {
            name: "lu trace",
            command: vec![path.into(), "trace".into()],
            ready: "hooks attached",
            started: Vec::new(),
            resident_kib: Vec::new(),
        },
        Peer {
            name: "bpftrace",
            command: vec!["bpftrace".into(), "-e".into(), bpftrace_script(lu)?],
            ready: "all attached",
            started: Vec::new(),
            resident_kib: Vec::new(),
        },
    ];
    for run in 0..=RUNS {
        for peer in &mut peers {
            let (started, resident) = measure(peer)?;
            // The first round warms the caches up.
            if run > 0 {
                peer.started.push(started);
                peer.resident_kib.push(resident);
            }
        }
    }
    println!(
        "{:<10} {:>28} {:>20}",
        "", "exec to attached, ms", "resident, MiB"
    );
    println!("{:<10} {:>28} {:>20}", "", "min / median / max", "median");
    println!("(bpftrace: to its BEGIN, which comes before its probes are attached)");
    for peer in &mut peers {
        peer.started.sort_unstable();
        peer.resident_kib.sort_unstable();
        let ms = |index: usize| peer.started[index].as_secs_f64() * 1e3;
        println!(
            "{:<10} {:>28} {:>20.1}",
            peer.name,
            format!("{:.0} / {:.0} / {:.0}", ms(0), ms(RUNS / 2), ms(RUNS - 1)),
            peer.resident_kib[RUNS / 2] as f64 / 1024.0
        );
    }
    let [lu, bpftrace] = &peers;
    println!(
        "lu / bpftrace: {:.2} of the time, {:.2} of the memory ({RUNS} runs each, alternating)",
        lu.started[RUNS / 2].as_secs_f64() / bpftrace.started[RUNS / 2].as_secs_f64(),
        lu.resident_kib[RUNS / 2] as f64 / bpftrace.resident_kib[RUNS / 2] as f64
    );
    let verdict = |holds: bool| if holds { "reached" } else { "NOT reached" };
    println!(
        "goal: attached within {} ms: {}; at most {} MiB: {}",
        STARTED_WITHIN.as_millis(),
        verdict(lu.started[RUNS / 2] <= STARTED_WITHIN),
        RESIDENT_AT_MOST_KIB / 1024,
        verdict(lu.resident_kib[RUNS / 2] <= RESIDENT_AT_MOST_KIB)
    );
    Ok(())
}

/// What is asked of lu's answers, on the reference machine.
const ANSWERED_WITHIN: Duration = Duration::from_millis(100);

/// How long `lu history` and `lu report` take from exec to exit, of a journal with so many updates.
pub fn history(lu: &Path, example: &Path, updates: u64) -> Result<()> {
    let folder = tempfile::tempdir()?;
    sh::run(
        sh::command(example)
            .arg(folder.path())
            .arg(updates.to_string()),
    )?;
    let (mut files, mut events, mut database) = (0, 0, 0);
    for entry in fs::read_dir(folder.path())? {
        let entry = entry?;
        let size = entry.metadata()?.len();
        if entry
            .path()
            .extension()
            .is_some_and(|ending| ending == "events")
        {
            files += 1;
            events += size;
        } else {
            database += size;
        }
    }
    println!(
        "{updates} updates: history.db {:.1} MiB, events {:.1} MiB in {files} files",
        database as f64 / f64::from(1 << 20),
        events as f64 / f64::from(1 << 20)
    );
    println!(
        "{:<38}{:>26}{:>12}",
        "", "min / median / max, ms", "output, KiB"
    );
    let (all, middle) = (updates.to_string(), (updates / 2).max(1).to_string());
    let mut slowest = Duration::ZERO;
    for arguments in [
        &["history"][..],
        &["history", "--json"],
        &["history", "--limit", &all],
        &["history", "--limit", &all, "--json"],
        &["report"],
        &["report", "--json"],
        &["report", "--update", "1"],
        &["report", "--update", &middle],
    ] {
        let mut took = Vec::new();
        let mut bytes = 0;
        for run in 0..=RUNS {
            let mut command = sh::command(lu);
            command.args(arguments).arg("--journal").arg(folder.path());
            let start = Instant::now();
            bytes = sh::read(&mut command)?.len();
            // The first run warms the caches up.
            if run > 0 {
                took.push(start.elapsed());
            }
        }
        took.sort_unstable();
        let ms = |index: usize| took[index].as_secs_f64() * 1e3;
        println!(
            "{:<38}{:>26}{:>12}",
            format!("lu {}", arguments.join(" ")),
            format!("{:.1} / {:.1} / {:.1}", ms(0), ms(RUNS / 2), ms(RUNS - 1)),
            bytes.div_ceil(1024)
        );
        slowest = slowest.max(took[RUNS / 2]);
    }
    println!(
        "goal: each within {} ms: {}",
        ANSWERED_WITHIN.as_millis(),
        if slowest <= ANSWERED_WITHIN {
            "reached"
        } else {
            "NOT reached"
        }
    );
    Ok(())
}

/// The same places as lu's hooks, by their own list, with about the same work in each.
fn bpftrace_script(lu: &Path) -> Result<String> {
    let doctor = Command::new(lu)
        .args(["doctor", "--json"])
        .output()
        .context("lu doctor does not start")?;
    let diagnosis: serde_json::Value = serde_json::from_slice(&doctor.stdout)?;
    let hooks = diagnosis["hooks"].as_array().context("no hooks")?;
    let mut script = String::from("BEGIN { printf(\"all attached\\n\"); } ");
    for hook in hooks {
        let function = hook["function"]
            .as_str()
            .context("a hook without a function")?;
        let target = format!("{}:{function}", lu.display());
        let _ = write!(
            script,
            "uprobe:{target} {{ @entered[tid] = nsecs; }} \
             uretprobe:{target} /@entered[tid]/ {{ \
             printf(\"{function} %d %d\\n\", retval, nsecs - @entered[tid]); \
             delete(@entered[tid]); }} "
        );
    }
    Ok(script)
}

fn measure(peer: &Peer) -> Result<(Duration, u64)> {
    let start = Instant::now();
    let mut child = Command::new(&peer.command[0])
        .args(&peer.command[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{} does not start", peer.name))?;
    let (sender, receiver) = std::sync::mpsc::channel();
    let streams: [Option<Box<dyn Read + Send>>; 2] = [
        child.stdout.take().map(|out| Box::new(out) as _),
        child.stderr.take().map(|err| Box::new(err) as _),
    ];
    for stream in streams.into_iter().flatten() {
        let (sender, ready) = (sender.clone(), peer.ready);
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                if line.contains(ready) {
                    let _ = sender.send(Instant::now());
                }
            }
        });
    }
    let attached = receiver.recv_timeout(Duration::from_secs(30));
    let measured = attached
        .with_context(|| format!("{} was not ready within 30 s", peer.name))
        .and_then(|attached| {
            std::thread::sleep(IDLE);
            Ok((attached - start, resident(&child)?))
        });
    child.kill()?;
    child.wait()?;
    measured
}

/// `VmRSS` of a process, in KiB.
fn resident(child: &Child) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id()))?;
    let resident = status.lines().find_map(|line| {
        line.strip_prefix("VmRSS:")?
            .split_whitespace()
            .next()?
            .parse()
            .ok()
    });
    ensure!(resident.is_some(), "the process has ended");
    resident.context("no VmRSS")
}
