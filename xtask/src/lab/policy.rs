//! Policies that the kernel enforces, asked by a client in C.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::tests::{folder, passed};
use super::{Include, Kernel, Run};

/// Each kind of rule, with an errno of its own. `MODE` is replaced.
const POLICY: &str = r#"
version = 1
mode = "MODE"

[[access]]
name = "by user"
requests = ["create"]
by = { uid = "1000..=1999" }
verdict = "deny"
errno = "EACCES"

[[access]]
name = "by group"
requests = ["open"]
by = { gid = [7, 500] }
verdict = "deny"
errno = "ENOLINK"

[[access]]
name = "by executable"
requests = ["open", "load", "kexec"]
by = { exe = "/bin/other" }
verdict = "deny"

[[access]]
name = "by cgroup"
requests = ["create"]
by = { cgroup = "/tenants" }
verdict = "deny"
errno = "ENETDOWN"

[[access]]
name = "by pattern"
requests = ["create", "retrieve"]
session = ["bad-*", "*-end", "a*z"]
verdict = "deny"
errno = "EBADMSG"

[[access]]
name = "to nobody else"
requests = ["receive"]
session = "secret"
verdict = "deny"
errno = "EPROTO"

[[preserve]]
name = "by kind"
kinds = ["eventfd", "pipe"]
verdict = "deny"
errno = "EOPNOTSUPP"

[[preserve]]
name = "by session"
session = "ro-*"
verdict = "deny"
errno = "EROFS"

[[preserve]]
name = "by token"
tokens = ["100..=199", "0xffffffffffffffff"]
verdict = "deny"
errno = "EDOM"

[[preserve]]
name = "by size"
bytes = "1MiB..=1TiB"
verdict = "deny"
errno = "EFBIG"

[[quota]]
name = "files of a session"
session = "q-*"
per = "session"
files = 2
errno = "EDQUOT"

[[quota]]
name = "bytes of a session"
session = "w-*"
per = "session"
bytes = "8KiB"
errno = "EXFULL"

[[quota]]
name = "files of all"
per = "all"
files = 12
errno = "ENOSPC"

[[require]]
name = "the vm's memory"
session = "vm-1"
tokens = [1, 2]
before = "kexec"

[[gate]]
name = "free"
condition = "device-free"
"#;

/// The rule that is over sooner where nothing was refused before.
const ALL: &str = "files of all";

/// A step of the client, what it gets where the policy is enforced, where it only watches, and the rule that
/// refuses, or would.
const STEPS: &[(&str, &str, &str, &str)] = &[
    ("cgroup /sys/fs/cgroup/tenants", "ok", "ok", ""),
    ("cgroup /sys/fs/cgroup/tenants/a", "ok", "ok", ""),
    ("reload", "ok", "ok", ""),
    ("gid 500", "ok", "ok", ""),
    ("open", "ENOLINK", "ok", "by group"),
    ("shut", "EBADF", "ok", ""),
    ("gid 501", "ok", "ok", ""),
    ("open", "ok", "ok", ""),
    // In a cgroup below the one that is named.
    ("create in", "ENETDOWN", "ok", "by cgroup"),
    ("close in", "EBADF", "ok", ""),
    ("cgroup /sys/fs/cgroup/others", "ok", "ok", ""),
    ("create in", "ok", "ok", ""),
    ("uid 1500", "ok", "ok", ""),
    ("create of-1500", "EACCES", "ok", "by user"),
    ("uid 0", "ok", "ok", ""),
    ("uid 2000", "ok", "ok", ""),
    ("create of-2000", "ok", "ok", ""),
    ("uid 0", "ok", "ok", ""),
    ("create bad-1", "EBADMSG", "ok", "by pattern"),
    ("create the-end", "EBADMSG", "ok", "by pattern"),
    ("create abcz", "EBADMSG", "ok", "by pattern"),
    ("create az", "EBADMSG", "ok", "by pattern"),
    ("create good", "ok", "ok", ""),
    ("create bad", "ok", "ok", ""),
    ("receive good", "ok", "ok", ""),
    ("getfd good", "ok", "ok", ""),
    ("create secret", "ok", "ok", ""),
    ("receive secret", "ECANCELED", "ok", "to nobody else"),
    ("getfd secret", "EPROTO", "ok", "to nobody else"),
    // The orchestrator has no handler for it.
    (
        "preserve good 1 eventfd 0",
        "EOPNOTSUPP",
        "ENOENT",
        "by kind",
    ),
    ("preserve good 1 memfd 4096", "ok", "ok", ""),
    ("create ro-1", "ok", "ok", ""),
    ("preserve ro-1 1 memfd 4096", "EROFS", "ok", "by session"),
    ("preserve good 99 memfd 4096", "ok", "ok", ""),
    ("preserve good 100 memfd 4096", "EDOM", "ok", "by token"),
    ("preserve good 199 memfd 4096", "EDOM", "ok", "by token"),
    ("preserve good 200 memfd 4096", "ok", "ok", ""),
    (
        "preserve good 0xffffffffffffffff memfd 4096",
        "EDOM",
        "ok",
        "by token",
    ),
    ("preserve good 2 memfd 1048575", "ok", "ok", ""),
    ("preserve good 3 memfd 1048576", "EFBIG", "ok", "by size"),
    ("create q-1", "ok", "ok", ""),
    ("preserve q-1 1 memfd 4096", "ok", "ok", ""),
    // What fails takes no place.
    ("preserve q-1 1 memfd 4096", "EEXIST", "EEXIST", ""),
    ("preserve q-1 2 memfd 4096", "ok", "ok", ""),
    (
        "preserve q-1 3 memfd 4096",
        "EDQUOT",
        "ok",
        "files of a session",
    ),
    ("close q-1", "ok", "ok", ""),
    ("create q-1", "ok", "ok", ""),
    ("preserve q-1 3 memfd 4096", "ok", "ok", ""),
    ("create w-1", "ok", "ok", ""),
    ("preserve w-1 1 memfd 8192", "ok", "ok", ""),
    (
        "preserve w-1 2 memfd 4096",
        "EXFULL",
        "ok",
        "bytes of a session",
    ),
    ("preserve in 1 memfd 1", "ok", "ok", ""),
    ("preserve in 2 memfd 1", "ok", "ok", ""),
    ("close in", "ok", "ok", ""),
    ("kexec", "EPERM", "EINVAL", "the vm's memory"),
    ("create vm-1", "ok", "ok", ""),
    ("preserve vm-1 1 memfd 4096", "ok", "ok", ""),
    ("shut", "ok", "ok", ""),
    ("kexec", "EPERM", "EINVAL", "the vm's memory"),
    ("preserve vm-1 2 memfd 4096", "ok", "ok", ""),
    ("preserve good 11 memfd 1", "ok", "ok", ""),
    ("preserve good 12 memfd 1", "ok", "ok", ""),
    ("preserve good 13 memfd 1", "ENOSPC", "ok", ALL),
    // No image is loaded: so far the kernel itself gets.
    ("kexec", "EINVAL", "EINVAL", ""),
    ("open", "ok", "ok", ""),
    ("kexec", "EPERM", "EINVAL", "free"),
    ("load /bin/policy", "ENOEXEC", "ENOEXEC", ""),
    // A policy with errors changes nothing.
    ("spoil /bin/policy.toml", "ok", "ok", ""),
    ("reload", "ok", "ok", ""),
    ("create bad-2", "EBADMSG", "ok", "by pattern"),
    // The same file by another name is the same; a copy is not, but has its own rule here.
    ("exec /bin/other", "ok", "ok", ""),
    ("open", "EPERM", "ok", "by executable"),
    ("load /bin/policy", "EPERM", "ENOEXEC", "by executable"),
    ("kexec", "EPERM", "EINVAL", "by executable"),
];

/// What must be before a kexec, and before a finish. It persists: programs that are taken off a
/// busy function kill the emulated machine.
const REQUIREMENTS: &str = r#"
version = 1
mode = "enforce"
persist = true

[[require]]
name = "handed over"
session = "vm-1"
tokens = [1, 2]
before = "kexec"

[[require]]
name = "taken back"
session = "vm-1"
tokens = [1, 2]
before = "finish"
errno = "EUCLEAN"
even-if-stranding = true

[[access]]
name = "not to be had"
requests = ["retrieve"]
session = "kept"
verdict = "deny"
errno = "ENOKEY"

[[access]]
name = "only watched"
mode = "monitor"
requests = ["retrieve"]
session = "sealed"
verdict = "deny"

[[access]]
name = "sealed"
requests = ["restore"]
session = "sealed"
verdict = "deny"
errno = "EBADR"

[[access]]
name = "not over"
requests = ["finish"]
session = "sealed"
verdict = "deny"
errno = "EBADE"
even-if-stranding = true

[[gate]]
name = "an image"
condition = "image-loaded"

[[gate]]
name = "nobody is lost"
condition = "no-lost-session"
"#;

/// Before the kexec, and after it.
const OLD_KERNEL: &[(&str, &str)] = &[
    ("open", "ok"),
    ("create kept", "ok"),
    ("preserve kept 1 memfd 4096", "ok"),
    ("create sealed", "ok"),
    ("preserve sealed 1 memfd 4096", "ok"),
    ("create vm-1", "ok"),
    ("preserve vm-1 1 memfd 4096", "ok"),
    ("kexec", "EPERM"),
    ("preserve vm-1 2 memfd 4096", "ok"),
    ("shut", "ok"),
    // So long lu has to take what was said.
    ("wait", "ok"),
    ("stay", "ok"),
];
const NEW_KERNEL: &[(&str, &str)] = &[
    ("open", "ok"),
    ("retrieve kept", "ENOKEY"),
    ("retrieve sealed", "ok"),
    ("restore sealed 1", "EBADR"),
    ("finish sealed", "EBADE"),
    ("retrieve vm-1", "ok"),
    ("restore vm-1 1", "ok"),
    ("finish vm-1", "EUCLEAN"),
    ("restore vm-1 2", "ok"),
    ("finish vm-1", "ok"),
    // What follows are its words.
    ("exec /bin/lu", "ok"),
];

/// How often each rule decided in the new kernel: allowed, would have refused, refused.
const DECIDED: &[(&str, [u64; 3])] = &[
    ("not to be had", [0, 0, 1]),
    ("only watched", [0, 1, 0]),
    ("sealed", [0, 0, 1]),
    ("not over", [0, 0, 1]),
    ("handed over", [0, 0, 0]),
    ("taken back", [0, 0, 1]),
    ("an image", [0, 0, 0]),
    ("nobody is lost", [0, 0, 0]),
];

/// The kernel refuses a kexec while a requirement is not met, goes on, and lets it through once it is.
pub fn requirements() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let mut run = watched(&scratch, "requirements", REQUIREMENTS)?;
    let stage = |steps: &[(&str, &str)]| {
        let words = std::iter::once("policy").chain(steps.iter().map(|(step, _)| *step));
        Some(words.map(str::to_owned).collect())
    };
    run.stages = [stage(OLD_KERNEL), stage(NEW_KERNEL)];
    if let Some(words) = &mut run.stages[1] {
        words.extend(["policy", "status", "--json"].map(str::to_owned));
    }
    run.kexecs = 1;
    // In one thread the collector may not run once between reboot(KEXEC) and the jump.
    run.patches_busy_code = false;
    let outcome = passed(&run)?;
    let mut status = String::new();
    for (name, steps) in [("stage1.out", OLD_KERNEL), ("stage2.out", NEW_KERNEL)] {
        let found = outcome.read(name)?;
        let mut found_lines = found.lines();
        for (step, said) in steps {
            ensure!(
                found_lines.next() == Some(&*format!("{step}: {said}")),
                "{name}, {step} should be {said}: {found}"
            );
        }
        status = found_lines.collect::<Vec<_>>().join("\n");
    }
    let status: Value = serde_json::from_str(&status).context("lu policy status --json")?;
    for (rule, decided) in DECIDED {
        let rules = status["rules"].as_array().context("no rules")?;
        let found = rules.iter().find(|found| found["name"] == *rule);
        let found = found.with_context(|| format!("no rule {rule}: {status}"))?;
        let found = ["allow", "would_deny", "deny"].map(|of| found[of].as_u64());
        ensure!(found == decided.map(Some), "{rule}: {found:?}");
    }
    // Whether the collector still runs between reboot(KEXEC) and the jump is the emulation's choice, so the report may
    // lack the kexec; the verdicts are told by then.
    let trace = outcome.read("trace.jsonl")?;
    for (decision, rules) in [
        (
            "deny",
            &[
                "handed over",
                "not over",
                "not to be had",
                "sealed",
                "taken back",
            ][..],
        ),
        ("would-deny", &["only watched"]),
    ] {
        let told = verdicts(&trace, decision)?;
        ensure!(
            told.keys().eq(rules) && told.values().all(|count| *count == 1),
            "what was told is {told:?}"
        );
    }
    Ok(())
}

/// The generations that were put in force, and who did it.
fn loads(trace: &str) -> Result<Vec<(u64, String)>> {
    let mut loads = Vec::new();
    for line in trace.lines() {
        let event: Value = serde_json::from_str(line)?;
        if event["kind"] == "policy" {
            let generation = event["policy"]["generation"].as_u64();
            let comm = event["comm"].as_str().context("loaded by nobody")?;
            loads.push((generation.context("no generation")?, comm.to_owned()));
        }
    }
    Ok(loads)
}

/// How often each rule decided so, as the trace has it, in which nothing may be told as tampered.
fn verdicts(trace: &str, decision: &str) -> Result<BTreeMap<String, usize>> {
    let mut told: BTreeMap<String, usize> = BTreeMap::new();
    for line in trace.lines() {
        let event: Value = serde_json::from_str(line)?;
        if event["kind"] == "verdict" && event["verdict"]["decision"] == decision {
            let rule = event["verdict"]["rule"].as_str();
            let rule = rule.context("a verdict without a rule")?;
            *told.entry(rule.to_owned()).or_default() += 1;
        }
        ensure!(event["kind"] != "tampered", "a false alarm: {event}");
    }
    Ok(told)
}

/// A run with a policy, and a client that asks, under two names.
pub(super) fn watched(scratch: &tempfile::TempDir, name: &str, policy: &str) -> Result<Run> {
    let file = scratch.path().join("policy.toml");
    fs::write(&file, policy)?;
    let client = crate::build::static_client("policy")?;
    let mut run = Run::new(Kernel::own()?, folder(&format!("policy-{name}")));
    run.includes = vec![
        Include::program(&client)?,
        Include {
            host: client,
            guest: "/bin/other".into(),
        },
        Include {
            host: file,
            guest: "/bin/policy.toml".into(),
        },
    ];
    run.lu = Some(vec!["--policy".into(), "/bin/policy.toml".into()]);
    run.patches_busy_code = true;
    Ok(run)
}

/// All of them in one machine, once enforced and once only watched.
pub fn each_kind_of_rule() -> Result<()> {
    for mode in ["enforce", "monitor"] {
        let enforced = mode == "enforce";
        let scratch = tempfile::tempdir()?;
        let mut run = watched(&scratch, mode, &POLICY.replace("MODE", mode))?;
        let steps = STEPS.iter().map(|(step, ..)| *step);
        let words = std::iter::once("policy").chain(steps);
        run.stages[0] = Some(words.map(str::to_owned).collect());
        run.kexecs = 0;
        let outcome = passed(&run)?;
        let said = outcome.read("stage1.out")?;
        let expected: Vec<String> = STEPS
            .iter()
            .map(|(step, refused, watched, _)| {
                format!("{step}: {}", if enforced { refused } else { watched })
            })
            .collect();
        let found: Vec<&str> = said.lines().collect();
        ensure!(
            expected == found,
            "{mode}: {:#?}",
            expected
                .iter()
                .zip(found.iter().copied().chain(std::iter::repeat("nothing")))
                .filter(|(expected, found)| expected != found)
                .collect::<Vec<_>>()
        );
        let said_by_lu = outcome.read("lu-run-1.err")?;
        ensure!(
            said_by_lu.contains("moed") && said_by_lu.contains("stays in force"),
            "{said_by_lu}"
        );
        let trace = outcome.read("trace.jsonl")?;
        ensure!(
            loads(&trace)? == [(1, "lu".to_owned()), (2, "lu".to_owned())],
            "loaded at the start and at the first SIGHUP: {:?}",
            loads(&trace)?
        );
        // Each is told, with its rule, by the kernel.
        let decision = if enforced { "deny" } else { "would-deny" };
        let mut wanted: BTreeMap<&str, usize> = BTreeMap::new();
        for (.., rule) in STEPS.iter().filter(|(.., rule)| !rule.is_empty()) {
            *wanted.entry(rule).or_default() += 1;
        }
        let mut told = verdicts(&trace, decision)?;
        if !enforced {
            ensure!(told.contains_key(ALL), "{told:?}");
            told.insert(ALL.to_owned(), 1);
        }
        ensure!(
            told.iter()
                .map(|(rule, count)| (rule.as_str(), *count))
                .eq(wanted),
            "{mode}: what was told is {told:?}"
        );
    }
    Ok(())
}
