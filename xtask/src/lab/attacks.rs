//! Attempts to get past a policy that the kernel enforces, by a client in C.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::policy::watched;
use super::tests::{check_selftests, passed};
use super::{Include, selftests as kernels};
use crate::{setup, sh};

/// What the client (`lu-user/tests/clients/attacks.c`) may not.
const POLICY: &str = r#"
version = 1
mode = "enforce"
# Programs that are taken off a busy function kill the emulated machine.
persist = true

[[access]]
name = "no bad names"
requests = ["create"]
session = "bad*"
verdict = "deny"
errno = "EBADMSG"

[[access]]
name = "to nobody else"
requests = ["receive"]
session = "secret"
verdict = "deny"
errno = "EPROTO"

[[access]]
name = "not this executable"
requests = ["open"]
by = { exe = "/bin/other" }
verdict = "deny"
errno = "ENOLINK"

[[access]]
name = "nobody"
requests = ["kexec"]
verdict = "deny"

[[preserve]]
name = "not this token"
tokens = 666
verdict = "deny"
errno = "EDOM"

[[preserve]]
name = "not so large"
bytes = "1MiB.."
verdict = "deny"
errno = "EFBIG"
"#;

/// How often each kind of argument is flipped by one thread while another calls: 100,000 in all.
const ROUNDS: u32 = 25_000;

/// What each attempt comes to. That the device is open elsewhere is asked after the policy is.
const ATTEMPTS: &[(&str, &str)] = &[
    ("session over a socket", "ECANCELED"),
    ("session by pidfd_getfd", "EPROTO"),
    ("executable", "ENOLINK"),
    ("executable by another name", "ENOLINK"),
    ("copy of the executable", "EBUSY"),
    // Until the policy is loaded again.
    ("another under the executable's name", "EBUSY"),
    ("executable that lost its name", "ENOLINK"),
    ("another name of the device", "ENOLINK"),
    ("name with odd bytes", "EBADMSG"),
    ("name of 63 bytes", "ok"),
    ("name without an end", "EINVAL"),
    ("bad name of 63 bytes", "EBADMSG"),
    ("bad name without an end", "EBADMSG"),
    ("bad name behind the end of a good one", "ok"),
    ("good name behind the end of a bad one", "EBADMSG"),
    ("name that is no UTF-8", "ok"),
    ("dup of a session", "EDOM"),
    ("dup of the device", "EBADMSG"),
    ("session in a child", "EDOM"),
    ("device in a child", "EBADMSG"),
    ("dup of a large file", "EFBIG"),
    ("token in a page not in memory", "EDOM"),
    ("token in two pages not in memory", "EDOM"),
    ("name in a page not in memory", "EBADMSG"),
    ("name in two pages not in memory", "EBADMSG"),
    ("kexec", "EPERM"),
];

/// What is flipped, and how the record of a request that got through changed names it.
const FLIPPED: [(&str, &str); 4] = [
    ("token", "token"),
    ("descriptor", "file"),
    ("file", "file"),
    ("name", "session"),
];

/// Each is refused, or what got through changed is told as tampered, as often as it happened.
///
/// Where the kernel has no 32-bit system calls these end with a signal, which the client tells as EFAULT.
pub fn all() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let mut run = watched(&scratch, "attacks", POLICY)?;
    let client = crate::build::static_client("attacks")?;
    run.includes
        .retain(|include| include.guest.ends_with("policy.toml"));
    run.includes.push(Include::program(&client)?);
    run.includes.push(Include {
        host: client,
        guest: "/bin/other".into(),
    });
    run.stages[0] = Some(vec!["attacks".into(), ROUNDS.to_string()]);
    run.kexecs = 0;
    run.limit *= 4;
    // In one thread hardly ever does anything happen between the two readings.
    run.patches_busy_code = false;
    setup::ensure(setup::For::Lab)?;
    let outcome = run.start()?;
    // Tampering is in the report and in the exit status.
    let report: Value = serde_json::from_str(&outcome.read("report.json")?)?;
    ensure!(
        report["tampered"].as_u64() > Some(0),
        "no tampering is reported"
    );
    ensure!(
        matches!(&*outcome.failures, [only] if only.starts_with("lu run ended with exit status 3")),
        "{:?}",
        outcome.failures
    );
    let said = outcome.read("stage1.out")?;
    let said: BTreeMap<&str, &str> = said
        .lines()
        .filter_map(|line| line.split_once(": "))
        .collect();
    let wrong: Vec<_> = ATTEMPTS
        .iter()
        .filter(|(attempt, came)| said.get(attempt) != Some(came))
        .map(|(attempt, came)| (attempt, came, said.get(attempt)))
        .collect();
    ensure!(wrong.is_empty(), "{wrong:#?}");
    let by_32_bit = ["system calls", "ioctl", "kexec"].map(|what| {
        let said = said.get(&*format!("32-bit {what}"));
        said.copied().unwrap_or("nothing")
    });
    let expected = match by_32_bit[0] {
        "EFAULT" => {
            sh::say("this kernel has no 32-bit system calls to try");
            ["EFAULT"; 3]
        }
        _ => ["ok", "EDOM", "EPERM"],
    };
    ensure!(by_32_bit == expected, "32-bit: {by_32_bit:?}");

    let (mut told, mut by_number) = (BTreeMap::<String, u64>::new(), 0);
    for line in outcome.read("trace.jsonl")?.lines() {
        let event: Value = serde_json::from_str(line)?;
        by_number += event["untold"]["tampered"].as_u64().unwrap_or(0);
        if event["kind"] == "tampered" {
            let what = event["verdict"]["tampered"].as_array();
            for what in what.with_context(|| format!("tampered with what? {event}"))? {
                let what = what.as_str().context("no text")?.to_owned();
                *told.entry(what).or_default() += 1;
            }
        }
    }
    let mut happened: BTreeMap<String, u64> = BTreeMap::new();
    for (flipped, as_what) in FLIPPED {
        let line = said.get(&*format!("flipped {flipped}"));
        let line = line.with_context(|| format!("nothing is said of a flipped {flipped}"))?;
        sh::say(&format!("flipped {flipped}: {line}"));
        let count = |what: &str| {
            line.split(", ")
                .find_map(|part| part.strip_suffix(what)?.trim().parse::<u64>().ok())
                .with_context(|| format!("{flipped}: no number of {what} in {line}"))
        };
        ensure!(
            count("failed")? == 0 && count("refused")? > 0 && count("kept")? > 0,
            "{flipped}: {line}"
        );
        *happened.entry(as_what.to_owned()).or_default() += count("forbidden")?;
    }
    sh::say(&format!(
        "got through changed: {happened:?}, told: {told:?}"
    ));
    // Where the ring buffer was full it is told how many there were, and no more.
    let missing: u64 = happened
        .iter()
        .map(|(what, count)| count.saturating_sub(told.get(what).copied().unwrap_or(0)))
        .sum();
    ensure!(
        missing <= by_number,
        "got through changed: {happened:?}, told: {told:?}, and {by_number} by their number alone"
    );
    Ok(())
}

/// A policy with each kind of rule, none of which the kernel's selftests break.
const ALLOWING: &str = r#"
version = 1
mode = "enforce"

[[access]]
name = "root does all"
requests = ["open", "create", "retrieve", "restore", "finish", "receive"]
by = { uid = 0 }
verdict = "allow"

[[access]]
name = "nobody else does any"
requests = ["open", "create", "retrieve"]
verdict = "deny"

[[preserve]]
name = "memory, and what the orchestrator refuses itself"
kinds = ["memfd", "hugetlb_memfd", "regular", "device", "other"]
bytes = "..=1GiB"
verdict = "allow"

[[preserve]]
name = "nothing else"
verdict = "deny"

[[quota]]
name = "of one"
per = "session"
files = 1000
bytes = "1GiB"

[[gate]]
name = "free"
condition = "device-free"
"#;

/// They pass as they do without one, and not one request of theirs is refused.
pub fn selftests() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let mut run = watched(&scratch, "selftests", ALLOWING)?;
    let program = kernels::ensure()?.join("liveupdate");
    run.includes.push(Include::program(&program)?);
    run.stages[0] = Some(vec!["liveupdate".into()]);
    run.kexecs = 0;
    let outcome = passed(&run)?;
    check_selftests(&outcome.read("stage1.out")?)?;
    for line in outcome.read("trace.jsonl")?.lines() {
        let event: Value = serde_json::from_str(line)?;
        ensure!(
            event["kind"] != "tampered"
                && (event["kind"] != "verdict" || event["verdict"]["decision"] == "allow"),
            "{event}"
        );
    }
    Ok(())
}
