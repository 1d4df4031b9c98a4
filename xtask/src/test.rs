//! Every check: formatting, lints, unit and property tests, the tests against this machine, the demo,
//! and live updates in the lab's virtual machines.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::{build, dashboards, demo, dist, lab, prometheus, sh, top};

/// What all runners together said.
#[derive(Default)]
struct Tally {
    passed: u64,
    failed: u64,
    skipped: u64,
    /// The steps that failed.
    failures: Vec<&'static str>,
}

impl Tally {
    /// Runs a step and prints a line for it.
    fn step(&mut self, name: &'static str, run: impl FnOnce(&mut Self) -> Result<()>) {
        sh::say(name);
        let start = Instant::now();
        let result = run(self);
        let seconds = start.elapsed().as_secs();
        match result {
            Ok(()) => {
                self.passed += 1;
                println!("step {name} ... ok ({seconds} s)");
            }
            Err(error) => {
                self.failed += 1;
                println!("step {name} ... FAILED ({seconds} s)\n{error:#}");
                self.failures.push(name);
            }
        }
    }

    /// A step that cannot run here.
    fn skip(&mut self, name: &str, why: &str) {
        self.skipped += 1;
        println!("step {name} ... skipped: {why}");
    }
}

/// Runs all; prints a line for each step and a last one that counts.
///
/// With `no_skips` (in CI) a test that cannot run here is a failure.
pub fn run(no_skips: bool) -> Result<()> {
    let mut tally = Tally::default();
    tally.step("formatting", |_| {
        sh::run_quietly(build::cargo()?.args(["fmt", "--all", "--check"]))
    });
    tally.step("lints", |_| {
        sh::run_quietly(build::cargo()?.args(["clippy", "--all-targets", "--", "--deny=warnings"]))
    });
    tally.step("lints of the BPF programs", |_| {
        sh::run_quietly(&mut build::bpf_clippy()?)
    });
    tally.step("tests", |tally| {
        cargo_test(build::cargo()?.args(["test", "--no-fail-fast"]), tally)
    });
    tally.step("demo", |_| {
        let (lu, example) = build::demo()?;
        demo::check(&lu, &example)
    });
    tally.step("lu top on a terminal", |_| {
        let (lu, example) = build::demo()?;
        top::run(&lu, &example, false)
    });
    tally.step("the tarball, where nothing else is", |_| dist::check());
    tally.step("dashboards are what the catalogue makes", |_| {
        dashboards::check()
    });
    tally.step("a real Prometheus", |_| prometheus::check());
    for test in &lab::tests::ALL {
        match lab::tests::obstacle()? {
            None => tally.step(test.name, |_| (test.run)()),
            Some(obstacle) => tally.skip(test.name, &obstacle),
        }
    }
    if no_skips && tally.skipped > 0 {
        println!("{} tests were skipped, and here none may be", tally.skipped);
        tally.failed += tally.skipped;
    }
    println!(
        "{} passed, {} failed, {} skipped",
        tally.passed, tally.failed, tally.skipped
    );
    if tally.failed > 0 {
        bail!("not everything passed: {}", tally.failures.join(", "));
    }
    Ok(())
}

/// Runs `cargo test`, passes on what it prints, and adds up what its runners say.
fn cargo_test(command: &mut Command, tally: &mut Tally) -> Result<()> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .context("cargo test does not start")?;
    let stdout = child.stdout.take().context("cargo test has no output")?;
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        println!("{line}");
        let Some(counts) = line.strip_prefix("test result: ") else {
            continue;
        };
        let count = |what: &str| {
            counts
                .split(['.', ';'])
                .find_map(|part| part.trim().strip_suffix(what)?.trim().parse::<u64>().ok())
                .unwrap_or(0)
        };
        tally.passed += count("passed");
        tally.failed += count("failed");
        tally.skipped += count("ignored");
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("cargo test: {status}");
    }
    Ok(())
}
