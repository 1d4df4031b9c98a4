//! The price of watching: the same live update of many files with lu and without it, in turns.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{Include, Kernel, LIMIT, Run};
use crate::sh;

/// The stress example.
pub fn stress(sessions: u64, files: u64, with_lu: bool, out: PathBuf) -> Result<Run> {
    let mut run = Run::new(Kernel::own()?, out);
    run.includes
        .push(Include::program(&crate::build::static_example("stress")?)?);
    run.stages = ["preserve", "restore"].map(|step| {
        Some(vec![
            "stress".to_owned(),
            step.to_owned(),
            sessions.to_string(),
            files.to_string(),
        ])
    });
    run.memory = "4G".into();
    run.limit = 4 * LIMIT;
    run.with_trace = false;
    run.lu = with_lu.then(Vec::new);
    Ok(run)
}

/// The parts of a live update that are timed, in seconds: the clients' preserving, from reboot(KEXEC) to the new
/// kernel's user space, the clients' restoring, and all of it.
const PARTS: [&str; 4] = ["preserve", "kexec", "restore", "live update"];

/// Runs both kinds in turns and prints the median of each part, the spread, and the ratio.
pub fn run(sessions: u64, files: u64, runs: u32, json: bool) -> Result<()> {
    // Without lu, with lu; for each run the parts.
    let mut seconds: [Vec<[f64; PARTS.len()]>; 2] = [Vec::new(), Vec::new()];
    let mut lost = 0;
    for number in 1..=runs {
        for with_lu in [false, true] {
            sh::say(&format!(
                "bench: run {number} of {runs}, {} lu",
                if with_lu { "with" } else { "without" }
            ));
            let scratch = tempfile::tempdir()?;
            let (parts, missing) = once(sessions, files, with_lu, scratch.path().join("out"))?;
            seconds[usize::from(with_lu)].push(parts);
            lost += missing;
        }
    }
    let rows: Vec<Value> = PARTS
        .iter()
        .enumerate()
        .map(|(part, name)| {
            let [without, with] = seconds.each_ref().map(|runs| spread(runs, part));
            json!({
                "part": name,
                "without_s": {"min": without[0], "median": without[1], "max": without[2]},
                "with_s": {"min": with[0], "median": with[1], "max": with[2]},
                "ratio": with[1] / without[1],
            })
        })
        .collect();
    if json {
        let document = json!({
            "schema": "lu.bench.observe/1",
            "sessions": sessions,
            "files": sessions * files,
            "runs": runs,
            "lost": lost,
            "parts": rows,
        });
        println!("{}", serde_json::to_string_pretty(&document)?);
        return Ok(());
    }
    println!(
        "{sessions} sessions of {files} memfds across a kexec, {runs} runs of each kind; seconds as min / median / max"
    );
    println!(
        "{:<12}{:>26}{:>26}{:>8}",
        "", "without lu", "with lu", "ratio"
    );
    for row in &rows {
        let shown = |kind: &str| {
            let of = |which: &str| row[kind][which].as_f64().unwrap_or_default();
            format!("{:.2} / {:.2} / {:.2}", of("min"), of("median"), of("max"))
        };
        println!(
            "{:<12}{:>26}{:>26}{:>8.3}",
            row["part"].as_str().unwrap_or_default(),
            shown("without_s"),
            shown("with_s"),
            row["ratio"].as_f64().unwrap_or_default()
        );
    }
    println!("{lost} events lost");
    Ok(())
}

fn spread(runs: &[[f64; PARTS.len()]], part: usize) -> [f64; 3] {
    let mut values: Vec<f64> = runs.iter().map(|parts| parts[part]).collect();
    values.sort_by(f64::total_cmp);
    let last = values.len() - 1;
    let median = f64::midpoint(values[last / 2], values[values.len() / 2]);
    [values[0], median, values[last]]
}

/// One run: its parts, and the events that were lost.
fn once(
    sessions: u64,
    files: u64,
    with_lu: bool,
    out: PathBuf,
) -> Result<([f64; PARTS.len()], u64)> {
    let outcome = stress(sessions, files, with_lu, out)?.start()?;
    ensure!(
        outcome.failures.is_empty(),
        "{}",
        outcome.failures.join("\n")
    );
    let client = |name: &str| -> Result<f64> {
        let said: Value = serde_json::from_str(&outcome.read(name)?)?;
        let ns = said["all_ns"].as_f64().context("no time")?;
        Ok(ns / 1e9)
    };
    let status: Value = serde_json::from_str(&outcome.read("status.json")?)?;
    let steps = status["steps"].as_array().context("no steps")?;
    let at = |wanted: &dyn Fn(&Value) -> bool| -> Result<f64> {
        let step = steps
            .iter()
            .find(|step| wanted(step))
            .context("a step is missing")?;
        Ok(step["t_ms"].as_f64().context("a step without its time")? / 1e3)
    };
    let jump = at(&|step| step["step"] == "jump")?;
    let up = at(&|step| step["step"] == "booted" && step["boot"] == 2)?;
    let (preserve, kexec, restore) = (client("stage1.out")?, up - jump, client("stage2.out")?);
    let lost = if with_lu {
        let report = super::tests::report_of(&outcome)?;
        ensure!(
            report["outcome"] == "finished",
            "the update is {}",
            report["outcome"]
        );
        report["events"]["lost"]
            .as_u64()
            .context("no losses told")?
    } else {
        0
    };
    Ok(([preserve, kexec, restore, preserve + kexec + restore], lost))
}
