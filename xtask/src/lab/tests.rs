//! The tests that need a kernel with an orchestrator, each a machine of its own.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::selftests::{self, Tap};
use super::{Include, Kernel, Outcome, Run, kernel};
use crate::{setup, sh};

/// One test.
pub struct Test {
    /// What it proves.
    pub name: &'static str,
    /// Runs it.
    pub run: fn() -> Result<()>,
}

/// All of them.
pub const ALL: [Test; 4] = [
    Test {
        name: "lab: a live update across a real kexec",
        run: live_update,
    },
    Test {
        name: "lab: the kernel's own selftests",
        run: single_boot_selftests,
    },
    Test {
        name: "lab: the kernel's own selftest across a kexec",
        run: kexec_selftest,
    },
    Test {
        name: "lab: an emulated orchestrator on Debian's cloud kernel",
        run: debian_cloud,
    },
];

/// How many cases the kernel's selftests had where this was written (Linux 7.3); they may become more.
const SELFTEST_CASES: usize = 15;

/// Why the lab cannot be used here, where it cannot.
pub fn obstacle() -> Result<Option<String>> {
    if !cfg!(target_arch = "x86_64") {
        return Ok(Some("the lab is for x86-64".into()));
    }
    let lacks = setup::lacks(setup::For::Lab)?;
    if !lacks.is_empty() {
        return Ok(Some(format!("{} is not here", lacks.join(", "))));
    }
    Ok((!kernel::is_at_hand()?)
        .then(|| "there is no kernel, and none can be built; see LU_LAB_KERNEL".into()))
}

/// A run's folder. It stays, so that a failure can be looked into.
fn folder(name: &str) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| sh::root().join("target"), PathBuf::from)
        .join("lab")
        .join(name)
}

fn passed(run: &Run) -> Result<Outcome> {
    setup::ensure(setup::For::Lab)?;
    let outcome = run.start()?;
    ensure!(
        outcome.failures.is_empty(),
        "{}\nsee {}",
        outcome.failures.join("\n"),
        outcome.out.display()
    );
    Ok(outcome)
}

fn live_update() -> Result<()> {
    let outcome = passed(&Run::scenario(Kernel::own()?, folder("live-update"))?)?;
    let report: Value = serde_json::from_str(&outcome.read("report.json")?)
        .context("report.json is not one JSON document")?;
    check_report(&report)?;
    let trace = outcome.read("trace.jsonl")?;
    for line in trace.lines() {
        serde_json::from_str::<Value>(line)
            .with_context(|| format!("trace.jsonl has a line that is no JSON: {line}"))?;
    }
    ensure!(!trace.is_empty(), "trace.jsonl is empty");
    Ok(())
}

/// What the report must say of the built-in scenario.
///
/// A field that this version of the report does not have yet is passed over, and told.
fn check_report(report: &Value) -> Result<()> {
    for (what, pointer, wanted) in [
        ("the interface", "/interface", "sessions"),
        ("the orchestrator", "/orchestrator", "kernel"),
        ("the outcome", "/outcome", "finished"),
    ] {
        match report.pointer(pointer) {
            Some(found) => ensure!(found == wanted, "{what} is {found}, not {wanted:?}"),
            None => sh::say(&format!("lab: the report does not tell {what}")),
        }
    }
    // Their releases are the same where a kernel jumps into itself; but two there must be.
    match report.get("kernels").and_then(Value::as_array) {
        Some(kernels) => ensure!(
            kernels.len() == 2,
            "the report names {} kernels, not 2",
            kernels.len()
        ),
        None => sh::say("lab: the report does not tell the kernels"),
    }
    let blackout = report
        .get("blackout")
        .context("the report has no blackout")?;
    for field in ["ns", "clock", "uncertainty_ns"] {
        ensure!(
            blackout.get(field).is_some_and(|value| !value.is_null()),
            "the blackout has no {field}: {blackout}"
        );
    }
    let files: Vec<&Value> = report
        .pointer("/sessions")
        .and_then(Value::as_array)
        .context("the report has no sessions")?
        .iter()
        .filter_map(|session| session.get("files")?.as_array())
        .flatten()
        .collect();
    ensure!(files.len() >= 3, "the report has {} files", files.len());
    Ok(())
}

fn with_selftest(name: &str, program: &str) -> Result<Run> {
    let mut run = Run::new(Kernel::own()?, folder(name));
    run.includes
        .push(Include::program(&selftests::ensure()?.join(program))?);
    Ok(run)
}

fn single_boot_selftests() -> Result<()> {
    let mut run = with_selftest("selftests", "liveupdate")?;
    run.stages[0] = Some(vec!["liveupdate".into()]);
    run.single_boot = true;
    let outcome = passed(&run)?;
    let tap = Tap::parse(&outcome.read("stage1.out")?);
    ensure!(
        tap.all_passed() && tap.passed >= SELFTEST_CASES,
        "not all of the kernel's selftests passed: {tap:?}"
    );
    sh::say(&format!(
        "lab: {} of the kernel's selftests passed",
        tap.passed
    ));
    Ok(())
}

fn kexec_selftest() -> Result<()> {
    let mut run = with_selftest("selftest-kexec", "luo_kexec_simple")?;
    run.stages = ["1", "2"].map(|stage| {
        Some(
            ["luo_kexec_simple", "-s", stage]
                .map(str::to_owned)
                .to_vec(),
        )
    });
    let outcome = passed(&run)?;
    ensure!(
        outcome.read("stage2.out")?.contains("TEST PASSED"),
        "luo_kexec_simple does not say that it passed"
    );
    Ok(())
}

/// A distribution's kernel without an orchestrator: `lu run` watches the emulated one, and records a whole
/// update of its own example.
fn debian_cloud() -> Result<()> {
    let mut run = Run::new(Kernel::debian_cloud()?, folder("debian-cloud"));
    run.includes
        .push(Include::program(&crate::build::static_demo()?)?);
    run.stages[0] = Some(["lu", "emulate", "--", "demo"].map(str::to_owned).to_vec());
    run.single_boot = true;
    let outcome = passed(&run)?;
    let report: Value = serde_json::from_str(&outcome.read("report.json")?)
        .context("report.json is not one JSON document")?;
    for (field, wanted) in [("interface", "v3"), ("outcome", "finished")] {
        ensure!(
            report[field] == wanted,
            "the report's {field} is {}, not {wanted}",
            report[field]
        );
    }
    Ok(())
}
