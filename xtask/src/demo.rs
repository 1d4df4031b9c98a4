//! A whole live update on the emulated orchestrator, recorded and reported by `lu`.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::sh;

/// How long the emulated machine is down.
const BOOT_DELAY: Duration = Duration::from_millis(500);

/// What the clients may add to the boot delay: starting, opening the device, restoring.
const ALLOWED_ON_TOP: Duration = Duration::from_millis(100);

/// Runs the update. On a terminal, or without `json`, the steps are shown as they come, then the
/// waterfall; with `json` the report is the only thing on standard output.
pub fn run(lu: &Path, example: &Path, json: bool) -> Result<()> {
    let report = record(lu, example, json)?;
    if json {
        println!("{report}");
    }
    Ok(())
}

/// The update again, its report checked: everything restored, the mistake told, nothing lost, and the
/// blackout between the boot delay and a little more.
pub fn check(lu: &Path, example: &Path) -> Result<()> {
    let report: Value = serde_json::from_str(&record(lu, example, true)?)
        .context("the report is not one JSON document")?;
    let files = report["sessions"][0]["files"]
        .as_array()
        .context("the report has no files")?;
    let mistake = report["errors"].as_array().is_some_and(|errors| {
        errors
            .iter()
            .any(|error| error["operation"] == "preserve" && error["errno"] == "EEXIST")
    });
    let blackout = report["blackout"]["ns"]
        .as_u64()
        .map(Duration::from_nanos)
        .context("the blackout is unknown")?;
    for (what, holds) in [
        ("interface v3", report["interface"] == "v3"),
        ("outcome finished", report["outcome"] == "finished"),
        ("three files", files.len() == 3),
        (
            "every file restored",
            files.iter().all(|file| file["outcome"] == "restored"),
        ),
        ("the refused call among the errors", mistake),
        ("no event lost", report["events"]["lost"] == 0),
        (
            "a blackout of at least the boot delay",
            blackout >= BOOT_DELAY,
        ),
        (
            "and at most 100 ms more",
            blackout <= BOOT_DELAY + ALLOWED_ON_TOP,
        ),
    ] {
        ensure!(holds, "the demo's report does not show: {what}\n{report:#}");
    }
    Ok(())
}

fn record(lu: &Path, example: &Path, json: bool) -> Result<String> {
    let journal = Journal::new()?;
    let mut recorder = Recorder::start(lu, &journal.0, !json)?;
    let output = |command: &mut Command| {
        if json {
            command.stderr(Stdio::null());
        }
    };
    let mut update = sh::command(lu);
    update
        .args([
            "emulate",
            "--boot-delay",
            &format!("{}ms", BOOT_DELAY.as_millis()),
            "--",
        ])
        .arg(example);
    output(&mut update);
    let status = update.status().context("lu emulate does not start")?;
    recorder.stop()?;
    ensure!(status.success(), "the demo's clients failed: {status}");
    let mut report = sh::command(lu);
    report.arg("report").arg("--journal").arg(&journal.0);
    if json {
        return sh::read(report.arg("--json"));
    }
    println!();
    sh::run(&mut report)?;
    Ok(String::new())
}

/// A folder that goes when this is dropped.
struct Journal(PathBuf);

impl Journal {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("lu-demo-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A `lu run` in the background.
struct Recorder(Child);

impl Recorder {
    fn start(lu: &Path, journal: &Path, show: bool) -> Result<Self> {
        let mut command = sh::command(lu);
        command.args(["run", "--journal"]).arg(journal);
        if show {
            command.arg("--trace");
        } else {
            command.stdout(Stdio::null());
        }
        let mut child = command
            .stderr(Stdio::piped())
            .spawn()
            .context("lu run does not start")?;
        let stderr = child
            .stderr
            .take()
            .context("lu run has no standard error")?;
        let mut lines = BufReader::new(stderr).lines();
        let mut said = Vec::new();
        for line in lines.by_ref() {
            let line = line?;
            if show {
                eprintln!("{line}");
            }
            if line.contains("hooks attached") {
                // What it says later is passed on, so that its pipe never fills.
                std::thread::spawn(move || {
                    for line in lines.map_while(Result::ok).filter(|_| show) {
                        eprintln!("{line}");
                    }
                });
                return Ok(Self(child));
            }
            said.push(line);
        }
        bail!("lu run ended: {}", said.join("\n"))
    }

    fn stop(&mut self) -> Result<()> {
        let pid = self.0.id().to_string();
        sh::run_quietly(sh::command("kill").args(["-INT", &pid]))?;
        let status = self.0.wait()?;
        ensure!(status.success(), "lu run failed: {status}");
        Ok(())
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
