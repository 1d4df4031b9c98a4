//! A policy in the kernel across lu's death, many reloads and the most rules; and what it costs.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::tests::{folder, passed};
use super::{Include, Kernel, Run};
use crate::sh;

/// What each program costs the verifier, where this was written: Linux 7.3.4, rustc 1.95.
const VERIFIED: &str = include_str!("verified.json");

/// A program may cost so much more than in the table, in percent. The counts depend on the compiler's choices and on
/// the kernel's pruning of states: the same program was seen to cost thrice as much after a change elsewhere. A loop that
/// the verifier begins to follow each way multiplies them by more.
const MORE_PERCENT: u64 = 300;

/// A generation is some 45 KB: four hundred that are not freed are more than this.
const GROWN_AT_MOST: u64 = 16 << 20;

/// The most BPF instructions that the verifier goes through (`BPF_COMPLEXITY_LIMIT_INSNS`).
const VERIFIER_GIVES_UP: u64 = 1_000_000;

/// What the example says in a machine of its own.
fn said(arguments: &[&str], out: PathBuf, limit: Duration) -> Result<Value> {
    let mut run = Run::new(Kernel::own()?, out);
    run.includes
        .push(Include::program(&crate::build::static_example(
            "enforced",
        )?)?);
    run.includes
        .push(Include::program(&crate::build::lu_static()?)?);
    let words = ["enforced"].into_iter().chain(arguments.iter().copied());
    run.stages[0] = Some(words.map(str::to_owned).collect());
    run.patches_busy_code = true;
    run.kexecs = 0;
    run.lu = None;
    run.limit = limit;
    let seen = serde_json::from_str(&passed(&run)?.read("stage1.out")?)?;
    sh::say(&format!("lab: {seen}"));
    Ok(seen)
}

fn number(seen: &Value, pointer: &str) -> Result<u64> {
    let found = seen.pointer(pointer).and_then(Value::as_u64);
    found.with_context(|| format!("no number {pointer}: {seen}"))
}

/// Nothing forbidden goes through while lu is killed, is not there, and takes over again.
pub(super) fn killed() -> Result<()> {
    let seen = said(
        &["killed", "lu"],
        folder("enforced-killed"),
        2 * super::LIMIT,
    )?;
    for (at, least) in [
        ("/before_the_kill", 100),
        ("/with_nobody", 100),
        ("/in_the_take_over", 1),
    ] {
        ensure!(number(&seen, at)? >= least, "too little was asked: {seen}");
    }
    ensure!(
        seen["allowed"] == 0 && seen["other"] == 0 && seen["says"].is_string(),
        "{seen}"
    );
    ensure!(seen["after_detach"] == "allowed", "{seen}");
    Ok(())
}

/// Under load, in the test.
const RELOADS: u64 = 10_000;

/// What the clients' requests that are just under way take in the maps, in bytes, at most.
const UNDER_WAY: u64 = 16 << 10;

/// Each answer is one of a whole policy, none is lost, and no memory either.
pub(super) fn reloads() -> Result<()> {
    let seen = said(
        &["reloads", &RELOADS.to_string()],
        folder("enforced-reloads"),
        2 * super::LIMIT,
    )?;
    for (token, refused, never) in [
        ("token_1", "EXDEV", "EACCES"),
        ("token_2", "EACCES", "EXDEV"),
    ] {
        let of = |what: &str| number(&seen, &format!("/{token}/{what}"));
        let (passed_on, refused) = (of("passed_on")?, of(refused)?);
        ensure!(
            passed_on > 0 && refused > 0 && of(never)? == 0 && passed_on + refused == of("asked")?,
            "an answer that neither policy gives, or none: {seen}"
        );
    }
    // The first policy, a hundred to warm up, and these.
    ensure!(seen["generation"] == RELOADS + 101, "{seen}");
    for zero in ["/unjudged", "/files", "/bytes"] {
        ensure!(number(&seen, zero)? == 0, "{zero} is not 0: {seen}");
    }
    ensure!(
        seen["before"]["maps"] == seen["after"]["maps"],
        "maps were left behind: {seen}"
    );
    let [before, after] = ["before", "after"].map(|at| number(&seen, &format!("/{at}/maps_bytes")));
    ensure!(after? <= before? + UNDER_WAY, "the maps have grown: {seen}");
    let grown = number(&seen, "/after/resident_bytes")?
        .saturating_sub(number(&seen, "/before/resident_bytes")?);
    let taken = number(&seen, "/before/available_bytes")?
        .saturating_sub(number(&seen, "/after/available_bytes")?);
    ensure!(
        grown < GROWN_AT_MOST && taken < GROWN_AT_MOST,
        "memory went: {seen}"
    );
    Ok(())
}

/// The last of 64 rules decides, and the verifier has no more to do than it had.
pub(super) fn rules() -> Result<()> {
    let seen = said(&["rules"], folder("enforced-rules"), 2 * super::LIMIT)?;
    for (policy, answer, decided) in [
        ("allows", "ENOENT", "allowed_by_it"),
        ("refuses", "EXDEV", "denied_by_it"),
        ("all", "EDQUOT", "denied_by_it"),
    ] {
        let of = &seen["policies"][policy];
        ensure!(
            of["rules"] == 64
                && of["answer"] == answer
                && of[decided] == 1
                && of["unsure"] == 0
                && of["warnings"].as_array().is_some_and(Vec::is_empty),
            "{policy}: {of}"
        );
    }
    let table: Value = serde_json::from_str(VERIFIED).context("verified.json")?;
    let found = seen["verifier"]["instructions"]
        .as_object()
        .context("no programs")?;
    let table = table.as_object().context("verified.json is no table")?;
    let renew = || {
        let found = serde_json::to_string_pretty(found).unwrap_or_default();
        format!("if that is as it must be, xtask/src/lab/verified.json is to be:\n{found}")
    };
    ensure!(found.keys().eq(table.keys()), "other programs; {}", renew());
    for (program, found) in found {
        let found = found.as_u64().context("no number")?;
        let known = table[program].as_u64().context("no number")?;
        ensure!(
            found > 0 && found < VERIFIER_GIVES_UP && found <= known + known * MORE_PERCENT / 100,
            "{program} costs the verifier {found} instructions, and {known} in the table; {}",
            renew()
        );
    }
    Ok(())
}

/// Measures what an ioctl on a file of anybody else's pays.
pub fn bench(ioctls: u64, rounds: u64, json: bool) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let seen = said(
        &["price", &ioctls.to_string(), &rounds.to_string()],
        scratch.path().join("out"),
        6 * super::LIMIT,
    )?;
    let sorted = |kind: &str| -> Result<Vec<f64>> {
        let all = seen[kind].as_array().context("no times")?;
        let mut all: Vec<f64> = all.iter().filter_map(Value::as_f64).collect();
        all.sort_by(f64::total_cmp);
        ensure!(!all.is_empty(), "no times: {seen}");
        Ok(all)
    };
    let (without, with) = (sorted("without_ns")?, sorted("with_ns")?);
    let median = |all: &[f64]| f64::midpoint(all[(all.len() - 1) / 2], all[all.len() / 2]);
    let ratio = median(&with) / median(&without);
    if json {
        let document = serde_json::json!({
            "schema": "lu.bench.enforce/1",
            "ioctls": ioctls,
            "without_ns": without,
            "with_ns": with,
            "ratio": ratio,
        });
        println!("{}", serde_json::to_string_pretty(&document)?);
        return Ok(());
    }
    println!(
        "{ioctls} FIONREAD on a pipe, {rounds} rounds of each kind in turns; ns each as min / median / max"
    );
    for (name, all) in [("without a policy", &without), ("with one", &with)] {
        println!(
            "{name:<18}{:>8.0} / {:.0} / {:.0}",
            all[0],
            median(all),
            all[all.len() - 1]
        );
    }
    println!("{:<18}{ratio:>8.3}", "ratio");
    Ok(())
}
