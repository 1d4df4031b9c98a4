//! What lu says of the darkness against a canary that was in it, over several kexecs in a row.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Kernel, LIMIT, Run};

/// lu and the canary may differ by so much, or by a thousandth, whichever is more.
const ALLOWED_NS: u64 = 1_000_000;

/// One kexec, as both tell it. Times in nanoseconds.
#[derive(Debug, Serialize)]
pub struct Jump {
    /// Which, counted from 1.
    pub kexec: usize,
    /// From the canary's last beat to its first in the new kernel, by the counter.
    pub canary_ns: u64,
    /// What that may be off by.
    pub canary_uncertainty_ns: u64,
    /// From the collector's last beat to the restore of the canary's file, by lu.
    pub lu_ns: u64,
    /// What that may be off by.
    pub lu_uncertainty_ns: u64,
    /// What lu says more than the canary.
    pub difference_ns: i64,
    /// Of that, at the beginning: how long before the canary the collector was stopped.
    pub stop_difference_ns: i64,
    /// The most that they may differ by.
    pub allowed_ns: u64,
    /// The canary's gap by `CLOCK_REALTIME`.
    pub realtime_ns: i64,
    /// 99 of 100 of the canary's intervals before the kexec were no longer: by so much it may have been stopped
    /// after its last beat.
    pub interval_p99_ns: u64,
}

impl Jump {
    /// By how much they differ on the end of the darkness, in nanoseconds.
    pub fn end_difference_ns(&self) -> u64 {
        (self.difference_ns - self.stop_difference_ns).unsigned_abs()
    }

    /// Whether they agree.
    pub fn agrees(&self) -> bool {
        self.difference_ns.unsigned_abs() <= self.allowed_ns
    }
}

/// One machine, so many kexecs, a canary through all of them.
pub fn chain(kexecs: usize, out: PathBuf) -> Result<Vec<Jump>> {
    let mut run = Run::new(Kernel::own()?, out);
    let stage = ["lu", "canary", "--detach", "--spin", "--json"].map(str::to_owned);
    run.stages = [Some(stage.to_vec()), Some(stage.to_vec())];
    run.kexecs = kexecs;
    run.limit = LIMIT * kexecs as u32;
    run.with_trace = false;
    let outcome = run.start()?;
    ensure!(
        outcome.failures.is_empty(),
        "{}\nsee {}",
        outcome.failures.join("\n"),
        outcome.out.display()
    );
    let document = |name: &str| -> Result<Value> {
        serde_json::from_str(&outcome.read(name)?).with_context(|| format!("{name} is no JSON"))
    };
    (1..=kexecs)
        .map(|kexec| {
            let boot = kexec + 1;
            let report = document(&if kexec == kexecs {
                "report.json".to_owned()
            } else {
                format!("report-{boot}.json")
            })?;
            let canary = document(&format!("stage{boot}.out"))?;
            jump(kexec, &canary, &report)
                .with_context(|| format!("kexec {kexec}, see {}", outcome.out.display()))
        })
        .collect()
}

fn jump(kexec: usize, canary: &Value, report: &Value) -> Result<Jump> {
    let number = |of: &Value, pointer: &str| {
        of.pointer(pointer)
            .and_then(Value::as_u64)
            .with_context(|| format!("{pointer} is unknown in {of:#}"))
    };
    for (of, pointer) in [(canary, "/gap/clock"), (report, "/canary/clock")] {
        let clock = of.pointer(pointer).and_then(Value::as_str);
        ensure!(clock == Some("counter"), "{pointer} is {clock:?}");
    }
    let canary_ns = number(canary, "/gap/ns")?;
    let stops = [
        number(report, "/canary/start_ns")?,
        number(canary, "/gap/last/monotonic_ns")?,
    ];
    let lu_ns = number(report, "/canary/ns")?;
    Ok(Jump {
        kexec,
        canary_ns,
        canary_uncertainty_ns: number(canary, "/gap/uncertainty_ns")?,
        lu_ns,
        lu_uncertainty_ns: number(report, "/canary/uncertainty_ns")?,
        difference_ns: lu_ns.cast_signed() - canary_ns.cast_signed(),
        stop_difference_ns: stops[1].cast_signed() - stops[0].cast_signed(),
        allowed_ns: ALLOWED_NS.max(canary_ns / 1000),
        realtime_ns: canary["gap"]["realtime_ns"]
            .as_i64()
            .context("no time by CLOCK_REALTIME")?,
        interval_p99_ns: number(canary, "/before/p99_ns")?,
    })
}

/// Makes a chain, prints its table, and fails where they do not agree.
pub fn run(kexecs: usize, json: bool) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let jumps = chain(kexecs, scratch.path().join("out"))?;
    if json {
        let document = json!({"schema": "lu.bench.canary/1", "kexecs": jumps});
        println!("{}", serde_json::to_string_pretty(&document)?);
    } else {
        print!("{}", table(&jumps));
    }
    let apart = jumps.iter().filter(|jump| !jump.agrees()).count();
    ensure!(
        apart == 0,
        "in {apart} of {kexecs} kexecs they do not agree"
    );
    Ok(())
}

/// Milliseconds, for people.
fn table(jumps: &[Jump]) -> String {
    let ms = |ns: f64| ns / 1e6;
    let mut text = format!(
        "{} kexecs in a row in one machine: from the stop of the CPUs to the canary's restore, in ms\n\
         {:<6}{:>12}{:>9}{:>12}{:>9}{:>12}{:>12}{:>10}{:>20}{:>14}\n",
        jumps.len(),
        "kexec",
        "canary",
        "±",
        "lu",
        "±",
        "difference",
        "at the stop",
        "allowed",
        "by CLOCK_REALTIME",
        "interval p99"
    );
    for jump in jumps {
        let _ = writeln!(
            text,
            "{:<6}{:>12.3}{:>9.3}{:>12.3}{:>9.3}{:>12}{:>12}{:>10.3}{:>20.1}{:>14.3}{}",
            jump.kexec,
            ms(jump.canary_ns as f64),
            ms(jump.canary_uncertainty_ns as f64),
            ms(jump.lu_ns as f64),
            ms(jump.lu_uncertainty_ns as f64),
            format!("{:+.3}", ms(jump.difference_ns as f64)),
            format!("{:+.3}", ms(jump.stop_difference_ns as f64)),
            ms(jump.allowed_ns as f64),
            ms(jump.realtime_ns as f64),
            ms(jump.interval_p99_ns as f64),
            if jump.agrees() { "" } else { "  NOT within" }
        );
    }
    text
}
