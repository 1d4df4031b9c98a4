//! The tests that need a kernel with an orchestrator, each a machine of its own.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::machine::{Moment, PowerCut};
use super::protocol::Step;
use super::selftests::{self, Tap};
use super::{
    Include, Kernel, Outcome, Run, attacks, canary, enforced, kernel, observe, policy, top,
};
use crate::{build, prometheus, setup, sh};

/// One test.
pub struct Test {
    /// What it proves.
    pub name: &'static str,
    /// Runs it.
    pub run: fn() -> Result<()>,
}

/// All of them.
pub const ALL: [Test; 22] = [
    Test {
        name: "lab: a live update across a real kexec",
        run: live_update,
    },
    Test {
        name: "lab: a real Prometheus takes the metrics of a live update across a real kexec",
        run: metrics,
    },
    Test {
        name: "lab: lu and a canary tell the same darkness, in three kexecs in a row",
        run: canary_agrees,
    },
    Test {
        name: "lab: what only calls itself a flight recorder is refused, and lu goes on",
        run: impostor,
    },
    Test {
        name: "lab: the kernel's own selftests",
        run: single_boot_selftests,
    },
    Test {
        name: "the kernel's own selftests under the emulated orchestrator",
        run: emulated_selftests,
    },
    Test {
        name: "lab: the kernel's own selftest across a kexec",
        run: kexec_selftest,
    },
    Test {
        name: "lab: the same random calls get the same answers from the emulated orchestrator",
        run: differential,
    },
    Test {
        name: "lab: lu never keeps the device from anybody",
        run: contention,
    },
    Test {
        name: "lab: each run of a program that the kernel skips is counted",
        run: skipped,
    },
    Test {
        name: "lab: ten thousand files without a lost event",
        run: stress,
    },
    Test {
        name: "lab: a policy that persists refuses while lu is killed and takes over again",
        run: enforced::killed,
    },
    Test {
        name: "lab: ten thousand reloads of a policy under load",
        run: enforced::reloads,
    },
    Test {
        name: "lab: the last of 64 rules decides, and the verifier has no more to do than it had",
        run: enforced::rules,
    },
    Test {
        name: "lab: ten power cuts, and the journal has all that was told",
        run: power_cuts,
    },
    Test {
        name: "lab: the kernel enforces each kind of rule, or watches it",
        run: policy::each_kind_of_rule,
    },
    Test {
        name: "lab: a kexec waits for what the policy requires, and so does a finish",
        run: policy::requirements,
    },
    Test {
        name: "lab: nothing gets past the policy unseen",
        run: attacks::all,
    },
    Test {
        name: "lab: the kernel's own selftests under a policy that allows them",
        run: attacks::selftests,
    },
    Test {
        name: "lab: lu top on the serial console, before a kexec and after it",
        run: top::console,
    },
    Test {
        name: "lab: doctor on a kernel with an orchestrator",
        run: doctor,
    },
    Test {
        name: "lab: an emulated orchestrator on Debian's cloud kernel",
        run: debian_cloud,
    },
];

/// The sessions of the kernel's selftests (Linux 7.3), with the tokens of each, as far as they are few. Two
/// tests make a thousand sessions, and five hundred files.
const SELFTEST_SESSIONS: [(&str, &[u64]); 11] = [
    ("duplicate-session-test", &[]),
    ("distinct-session-1", &[]),
    ("distinct-session-2", &[]),
    ("preserve-memfd-test", &[0x1234]),
    ("preserve-multi-memfd-test", &[0xAAAA, 0xBBBB]),
    ("complex-session-1", &[0x1111, 0x2222]),
    ("complex-session-2", &[0x3333, 0x4444]),
    ("unsupported-fd-test", &[]),
    ("double-preserve-session-1", &[0x1111]),
    ("double-preserve-session-2", &[]),
    ("get-name-test-session", &[]),
];

/// What they do wrong on purpose.
const SELFTEST_ERRORS: [(&str, &str); 5] = [
    ("open", "EBUSY"),
    ("create-session", "EEXIST"),
    ("create-session", "EINVAL"),
    ("preserve", "ENOENT"),
    ("preserve", "EBUSY"),
];

/// Where metrics are served in the guest.
const EXPORT: &str = "127.0.0.1:9464";

/// Random steps in each stage of the differential test.
const STEPS: usize = 10_000;

/// Which random steps.
const SEED: u64 = 20_261_123;

/// For how long somebody else may be refused the device because of lu: a moment, also on a busy day. How long it was
/// is printed.
const REFUSED_AT_MOST_NS: u64 = 500_000_000;

/// By so much two threads' last moments on one emulated processor may be apart.
const LAST_RUN_NS: u64 = 50_000_000;

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
pub(super) fn folder(name: &str) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| sh::root().join("target"), PathBuf::from)
        .join("lab")
        .join(name)
}

/// How often a machine is started anew whose emulation gave lu no time between reboot(KEXEC) and the jump.
const TRIES: usize = 3;

/// Runs a machine in which nothing may fail.
///
/// An emulated CPU runs when this machine has time for it: lu's may get none before the jump. lu tells that itself
/// (`cut-off`), and there is nothing to be seen of the freeze in such a run; another one is made.
pub(super) fn passed(run: &Run) -> Result<Outcome> {
    setup::ensure(setup::For::Lab)?;
    let mut outcome = run.start()?;
    for _ in 1..TRIES {
        if !is_cut_off(&outcome) {
            break;
        }
        sh::say("lab: lu got no time before the jump, as it tells itself: once more");
        outcome = run.start()?;
    }
    ensure!(
        outcome.failures.is_empty(),
        "{}\nsee {}",
        outcome.failures.join("\n"),
        outcome.out.display()
    );
    Ok(outcome)
}

/// Whether lu tells that it did not see the end of the freeze.
fn is_cut_off(outcome: &Outcome) -> bool {
    let report = outcome.read("report.json").ok();
    let report = report.and_then(|report| serde_json::from_str::<Value>(&report).ok());
    let attention = report
        .as_ref()
        .and_then(|report| report["attention"].as_array());
    attention.is_some_and(|all| all.iter().any(|one| one["kind"] == "cut-off"))
}

fn live_update() -> Result<()> {
    let outcome = passed(&Run::scenario(Kernel::own()?, folder("live-update"))?)?;
    check_report(&report_of(&outcome)?)?;
    check_trace(&outcome.read("trace.jsonl")?)
}

/// What was served in the guest is served to a Prometheus on this machine.
fn metrics() -> Result<()> {
    setup::ensure(setup::For::Test)?;
    let mut run = Run::scenario(Kernel::own()?, folder("metrics"))?;
    let scraped = build::static_example("scraped")?;
    run.includes.push(Include::program(&scraped)?);
    run.lu = Some(vec!["--export".into(), EXPORT.into()]);
    let stage = [
        "scraped",
        EXPORT,
        "/out/before.txt",
        "/out/after.txt",
        "sessions",
        "stage2",
    ];
    run.stages[1] = Some(stage.map(str::to_owned).to_vec());
    let outcome = passed(&run)?;
    prometheus::replay(["before.txt", "after.txt"].map(|name| outcome.read(name)))
}

fn check_trace(trace: &str) -> Result<()> {
    for line in trace.lines() {
        serde_json::from_str::<Value>(line)
            .with_context(|| format!("trace.jsonl has a line that is no JSON: {line}"))?;
    }
    ensure!(!trace.is_empty(), "trace.jsonl is empty");
    Ok(())
}

/// On its end they agree within a millisecond. When it began, each says by when its own thread ran last, which in
/// the emulation is its schedulers' choice: `bench canary` is stricter.
fn canary_agrees() -> Result<()> {
    let jumps = canary::chain(3, folder("canary"))?;
    ensure!(
        jumps.len() == 3
            && jumps.iter().all(|jump| {
                jump.end_difference_ns() <= 1_000_000
                    && jump.difference_ns.unsigned_abs() <= LAST_RUN_NS
            }),
        "lu and the canary do not agree: {jumps:#?}"
    );
    Ok(())
}

/// Both kinds, one after the other. Only the last kernel's lu has to get along with each: the first one's would
/// have taken the place itself.
fn impostor() -> Result<()> {
    for (kind, why) in [
        ("random", "it begins otherwise"),
        ("version", "another version wrote it"),
    ] {
        let mut run = Run::new(Kernel::own()?, folder(&format!("impostor-{kind}")));
        run.includes
            .push(Include::program(&build::static_example("impostor")?)?);
        run.includes.push(Include::program(&build::lu_static()?)?);
        run.stages = [
            vec!["impostor", kind],
            vec!["lu", "run", "--journal=/lu/journal", "--for=1s", "--trace"],
        ]
        .map(|words| Some(words.into_iter().map(str::to_owned).collect()));
        run.lu = None;
        let outcome = passed(&run)?;
        let said = outcome.read("stage2.err")?;
        ensure!(
            said.contains(why) && said.contains("hooks attached"),
            "lu does not refuse an impostor, or does not go on:\n{said}"
        );
        // It has a recorder of its own then.
        ensure!(!said.contains("no flight recorder in"), "{said}");
        // The kernel before is known, though no lu ran there.
        let trace = outcome.read("stage2.out")?;
        ensure!(
            trace.contains("--- from kernel ") && trace.contains(", kexec 1, live update 1 "),
            "{trace}"
        );
    }
    Ok(())
}

pub(super) fn report_of(outcome: &Outcome) -> Result<Value> {
    serde_json::from_str(&outcome.read("report.json")?)
        .context("report.json is not one JSON document")
}

/// What the report says at a place is what it should.
fn expect(report: &Value, pointer: &str, wanted: impl Into<Value>) -> Result<()> {
    let (found, wanted) = (report.pointer(pointer), wanted.into());
    ensure!(
        found == Some(&wanted),
        "{pointer} of the report is {}, not {wanted}",
        found.map_or_else(|| "missing".to_owned(), Value::to_string)
    );
    Ok(())
}

/// The objects of a list in the report.
fn list<'a>(report: &'a Value, pointer: &str) -> Result<&'a Vec<Value>> {
    report
        .pointer(pointer)
        .and_then(Value::as_array)
        .with_context(|| format!("the report has no list {pointer}"))
}

/// The session of this name in the report.
fn session<'a>(report: &'a Value, name: &str) -> Result<&'a Value> {
    list(report, "/sessions")?
        .iter()
        .find(|session| session["name"] == name)
        .with_context(|| format!("the report has no session {name}"))
}

/// That an operation failed with an errno, and how often.
fn failed(report: &Value, operation: &str, errno: &str) -> Result<u64> {
    list(report, "/errors")?
        .iter()
        .find(|error| error["operation"] == operation && error["errno"] == errno)
        .and_then(|error| error["count"].as_u64())
        .with_context(|| format!("the report has no {operation} that failed with {errno}"))
}

/// What any report of a live update over the lab's kexec must say.
fn check_update(report: &Value) -> Result<()> {
    expect(report, "/interface", "sessions")?;
    expect(report, "/orchestrator", "kernel")?;
    expect(report, "/outcome", "finished")?;
    expect(report, "/events/lost", 0)?;
    // Their releases are the same where a kernel jumps into itself; but two there must be.
    let kernels = list(report, "/kernels")?;
    ensure!(
        kernels.len() == 2,
        "the report names the kernels {kernels:?}"
    );
    expect(report, "/blackout/clock", "counter")?;
    expect(report, "/blackout/lossy", false)?;
    let blackout = report["blackout"]["ns"].as_u64();
    let uncertainty = report["blackout"]["uncertainty_ns"].as_u64();
    ensure!(
        blackout > Some(0) && uncertainty > Some(0) && uncertainty < blackout,
        "the blackout is {blackout:?} ± {uncertainty:?} ns"
    );
    let phases = list(report, "/phases")?;
    for name in [
        "preserve",
        "wait-reboot",
        "reboot",
        "freeze",
        "shutdown",
        "boot",
        "userspace",
        "restore",
        "finish",
    ] {
        ensure!(
            phases
                .iter()
                .any(|phase| phase["name"] == name && phase["known"] == true),
            "phase {name} is not known: {phases:?}"
        );
    }
    add_up(report, "/phases", "/whole/ns")?;
    add_up(report, "/blackout/parts", "/blackout/ns")?;
    // Two boots, also where a kernel jumps into itself.
    let boots = list(report, "/boot_ids")?;
    ensure!(
        boots.len() == 2 && boots[0] != boots[1],
        "the report names the boots {boots:?}"
    );
    for session in list(report, "/sessions")? {
        for file in session["files"].as_array().context("no files")? {
            for span in ["preserve_ns", "freeze_ns", "restore_ns"] {
                ensure!(
                    file["outcome"] != "restored" || file[span].as_u64() > Some(0),
                    "{span} is not known: {session}"
                );
            }
        }
    }
    Ok(())
}

/// The parts of a list are all known, and their sum is what stands elsewhere in the report.
fn add_up(report: &Value, parts: &str, whole: &str) -> Result<()> {
    let list = list(report, parts)?;
    let sum: Option<u64> = list.iter().map(|part| part["ns"].as_u64()).sum();
    let whole = report.pointer(whole).and_then(Value::as_u64);
    ensure!(
        sum.is_some() && sum == whole,
        "{parts} make {sum:?} ns, not {whole:?}: {list:?}"
    );
    Ok(())
}

/// What the report must say of the built-in scenario.
fn check_report(report: &Value) -> Result<()> {
    check_update(report)?;
    for (name, sizes) in [
        ("guest-a", &[4 << 10, 1 << 20][..]),
        ("guest-b", &[16 << 20]),
    ] {
        let session = session(report, name)?;
        ensure!(session["outcome"] == "finished", "{session}");
        let files = session["files"].as_array().context("no files")?;
        ensure!(files.len() == sizes.len(), "{session}");
        for (file, size) in files.iter().zip(sizes) {
            ensure!(
                file["kind"] == "memfd" && file["bytes"] == *size && file["outcome"] == "restored",
                "{file}"
            );
        }
    }
    ensure!(
        failed(report, "preserve", "EEXIST")? == 1,
        "{}",
        report["errors"]
    );
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
    run.kexecs = 0;
    let outcome = passed(&run)?;
    check_selftests(&outcome.read("stage1.out")?)?;
    let report = report_of(&outcome)?;
    expect(&report, "/events/lost", 0)?;
    for (name, tokens) in SELFTEST_SESSIONS {
        let session = session(&report, name)?;
        ensure!(session["outcome"] == "closed", "{session}");
        let files = session["files"].as_array().context("no files")?;
        let seen: Vec<u64> = files
            .iter()
            .filter_map(|file| file["token"].as_u64())
            .collect();
        ensure!(seen == tokens, "session {name} has tokens {seen:?}");
    }
    for (operation, errno) in SELFTEST_ERRORS {
        failed(&report, operation, errno)?;
    }
    Ok(())
}

pub(super) fn check_selftests(said: &str) -> Result<()> {
    let tap = Tap::parse(said);
    ensure!(
        tap.all_passed() && tap.passed >= SELFTEST_CASES,
        "not all of the kernel's selftests passed: {tap:?}"
    );
    sh::say(&format!("{} of the kernel's selftests passed", tap.passed));
    Ok(())
}

/// The same program, on this machine.
fn emulated_selftests() -> Result<()> {
    let program = selftests::ensure()?.join("liveupdate");
    let lu = build::lu()?;
    check_selftests(&sh::read(
        sh::command(lu)
            .args(["emulate", "--interface=sessions", "--"])
            .arg(program),
    )?)
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
    let report = report_of(&outcome)?;
    check_update(&report)?;
    let session = session(&report, "test-session")?;
    ensure!(
        session["files"][0]["token"] == 0x1A && session["files"][0]["outcome"] == "restored",
        "{session}"
    );
    Ok(())
}

/// The example that makes random calls, in the lab and under the emulated orchestrator on this machine.
fn differential() -> Result<()> {
    let program = build::static_example("sequence")?;
    let stage = |stage: &str| {
        format!("sequence --seed {SEED} --steps {STEPS} --stage {stage}")
            .split(' ')
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let mut run = Run::new(Kernel::own()?, folder("differential"));
    run.includes.push(Include::program(&program)?);
    run.stages = ["1", "2"].map(|number| Some(stage(number)));
    // What is compared is the orchestrators.
    run.lu = None;
    let outcome = passed(&run)?;
    let lu = build::lu()?;
    let stages = ["1", "2"].map(|number| stage(number).join(" "));
    let script = format!(
        "PATH=$(dirname \"$0\"):$PATH; {} >\"$1\"/emulated1.out && \"$2\" emulate kexec && {} >\"$1\"/emulated2.out",
        stages[0], stages[1]
    );
    sh::run_quietly(
        sh::command(&lu)
            .args(["emulate", "--interface=sessions", "--", "sh", "-c", &script])
            .args([&program, &outcome.out, &lu]),
    )
    .context("the same calls under the emulated orchestrator")?;
    let mut compared = 0;
    for number in ["1", "2"] {
        let real = outcome.read(&format!("stage{number}.out"))?;
        let emulated = outcome.read(&format!("emulated{number}.out"))?;
        for (index, (real, emulated)) in real.lines().zip(emulated.lines()).enumerate() {
            ensure!(
                real == emulated,
                "stage {number}, line {}:\n  kernel:   {real}\n  emulated: {emulated}",
                index + 1
            );
        }
        let (lines, others) = (real.lines().count(), emulated.lines().count());
        ensure!(
            lines == others && lines >= STEPS,
            "stage {number}: {lines} lines from the kernel, {others} from the emulated orchestrator"
        );
        compared += lines;
    }
    sh::say(&format!("lab: {compared} steps compared"));
    Ok(())
}

fn contention() -> Result<()> {
    let mut run = Run::new(Kernel::own()?, folder("contention"));
    run.includes
        .push(Include::program(&build::static_example("contend")?)?);
    run.includes.push(Include::program(&build::lu_static()?)?);
    run.stages[0] = Some(["contend", "lu", "3"].map(str::to_owned).to_vec());
    run.patches_busy_code = true;
    run.kexecs = 0;
    run.lu = None;
    let outcome = passed(&run)?;
    let seen: Value = serde_json::from_str(&outcome.read("stage1.out")?)?;
    sh::say(&format!("lab: {seen}"));
    ensure!(seen["opened"].as_u64() > Some(1000), "{seen}");
    ensure!(
        seen["recorders"] == seen["rounds"],
        "lu got no flight recorder: {seen}"
    );
    ensure!(
        seen["longest_refusal_ns"].as_u64() < Some(REFUSED_AT_MOST_NS),
        "refused for longer than half a second: {seen}"
    );
    Ok(())
}

/// A unit test that needs fentry, as few machines but the lab's are sure to allow it.
fn skipped() -> Result<()> {
    let tests = build::static_unit_tests()?;
    let mut run = Run::new(Kernel::own()?, folder("skipped"));
    run.includes.push(Include {
        host: tests,
        guest: "/bin/unit-tests".into(),
    });
    run.stages[0] = Some(
        [
            "unit-tests",
            "--nocapture",
            "each_run_that_the_kernel_skips_is_counted",
        ]
        .map(str::to_owned)
        .to_vec(),
    );
    run.patches_busy_code = true;
    run.kexecs = 0;
    run.lu = None;
    let outcome = passed(&run)?;
    let said = outcome.read("stage1.out")? + &outcome.read("stage1.err")?;
    ensure!(
        said.contains("1 passed") && !said.contains("skipped: needs"),
        "{said}"
    );
    Ok(())
}

fn stress() -> Result<()> {
    let outcome = passed(&observe::stress(100, 100, true, folder("stress"))?)?;
    let report = report_of(&outcome)?;
    check_update(&report)?;
    let restored = list(&report, "/sessions")?
        .iter()
        .filter(|session| session["name"] != "lu-recorder")
        .filter_map(|session| session["files"].as_array())
        .flatten()
        .filter(|file| file["outcome"] == "restored")
        .count();
    ensure!(restored == 10_000, "{restored} files restored, not 10000");
    Ok(())
}

/// When the power is cut, as a step and the longest time after it, in milliseconds.
const POWER_CUTS: [(Moment, u64); 10] = [
    (|step| matches!(step, Step::Started { stage: 1 }), 200),
    (|step| matches!(step, Step::Jump), 300),
    (|step| matches!(step, Step::Jump), 3000),
    (|step| matches!(step, Step::Booted { boot: 2, .. }), 3000),
    (|step| matches!(step, Step::Attached { .. }), 300),
    (|step| matches!(step, Step::Started { stage: 2 }), 100),
    (|step| matches!(step, Step::Started { stage: 2 }), 300),
    (|step| matches!(step, Step::Ended { stage: 2, .. }), 100),
    (|step| matches!(step, Step::Ended { stage: 2, .. }), 1000),
    // By then lu has said that the update is finished.
    (|step| matches!(step, Step::Lu { .. }), 300),
];

/// One disk, a live update each time, the power cut somewhere on the way: whatever lu has said of an update, the
/// last run's history says too.
fn power_cuts() -> Result<()> {
    let folder = folder("power-cuts");
    let disk = folder.join("disk");
    match std::fs::remove_file(&disk) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let mut told = BTreeMap::new();
    for (number, (at, within)) in POWER_CUTS.into_iter().enumerate() {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let after = Duration::from_millis(u64::from(now.subsec_nanos()) / 1000 % within);
        let mut run = Run::scenario(Kernel::own()?, folder.join(number.to_string()))?;
        run.disk = Some(disk.clone());
        run.power_cut = Some(PowerCut { at, after });
        let outcome = passed(&run)?;
        for boot in [1, 2] {
            // The second boot may not have come.
            let said = outcome
                .read(&format!("lu-run-{boot}.err"))
                .unwrap_or_default();
            hold_to(&mut told, &said).with_context(|| format!("power cut {number}"))?;
        }
    }
    let mut run = Run::new(Kernel::own()?, folder.join("read"));
    run.disk = Some(disk);
    run.kexecs = 0;
    let outcome = passed(&run)?;
    hold_to(&mut told, &outcome.read("lu-run-1.err")?)?;
    let history: Value = serde_json::from_str(&outcome.read("history.json")?)?;
    let updates = list(&history, "/updates")?;
    sh::say(&format!(
        "lab: {} updates kept, {} told",
        updates.len(),
        told.len()
    ));
    for (number, outcome) in &told {
        let found: Vec<&Value> = updates
            .iter()
            .filter(|update| update["update"] == *number)
            .collect();
        ensure!(
            found.len() == 1 && found[0]["outcome"] == **outcome,
            "update {number} was told to be {outcome}, and is kept as {found:?}"
        );
    }
    // From stage 2 on lu has what the flight recorder had on the disk: the next boot keeps it at the latest. What was
    // kept in the last moment may not have been told, or not to us.
    let finished = told.values().filter(|outcome| *outcome == "finished");
    ensure!(
        finished.count() > 0 && updates.len() >= 5,
        "{told:?} told, kept {updates:#?}"
    );
    // A report and every event of what is left can be read.
    check_trace(&outcome.read("trace.jsonl")?)?;
    report_of(&outcome).map(drop)
}

/// Takes in what `lu run` said of updates: no number twice, and nothing wrong with the journal.
fn hold_to(told: &mut BTreeMap<u64, String>, said: &str) -> Result<()> {
    for line in said.lines() {
        ensure!(
            !["history", "not told", "tries again", "panicked"]
                .iter()
                .any(|wrong| line.contains(wrong)),
            "lu run says: {line}"
        );
        let update = line
            .strip_prefix("lu: update ")
            .and_then(|rest| rest.split_once(", blackout ")?.0.split_once(' '));
        if let Some((number, outcome)) = update {
            let before = told.insert(number.parse()?, outcome.to_owned());
            ensure!(before.is_none(), "lu run tells update {number} twice");
        }
    }
    Ok(())
}

/// What a single boot with a command of lu's own says.
fn said_by(mut run: Run, command: &[&str]) -> Result<(i64, Value)> {
    run.includes.push(Include::program(&build::lu_static()?)?);
    run.stages[0] = Some(command.iter().map(|&word| word.to_owned()).collect());
    run.kexecs = 0;
    run.lu = None;
    setup::ensure(setup::For::Lab)?;
    let outcome = run.start()?;
    let status: Value = serde_json::from_str(&outcome.read("status.json")?)?;
    let code = status["stages"][0]["code"].as_i64();
    let text = outcome.read("stage1.out")?;
    Ok((
        code.with_context(|| format!("{command:?} did not exit: {status}"))?,
        serde_json::from_str(&text).with_context(|| format!("{command:?} said {text}"))?,
    ))
}

fn doctor() -> Result<()> {
    let run = || Ok::<_, anyhow::Error>(Run::new(Kernel::own()?, folder("doctor")));
    let (code, hooks) = said_by(run()?, &["lu", "doctor", "--hooks", "--json"])?;
    let verdicts = list(&hooks, "/hooks")?;
    ensure!(
        code == 0 && verdicts.len() >= 25 && verdicts.iter().all(|hook| hook["verdict"] == "same"),
        "doctor --hooks exits {code}: {hooks:#}"
    );
    let (code, diagnosis) = said_by(run()?, &["lu", "doctor", "--json"])?;
    expect(&diagnosis, "/orchestrator/kind", "kernel")?;
    expect(&diagnosis, "/orchestrator/interface", "sessions")?;
    let hooks = list(&diagnosis, "/hooks")?;
    ensure!(
        code == 0 && hooks.iter().all(|hook| hook["attached"] == "fentry"),
        "doctor exits {code}: {diagnosis:#}"
    );
    Ok(())
}

/// A distribution's kernel without an orchestrator: doctor says what is missing; `lu run` watches the
/// emulated one, and records a whole update of its own example.
fn debian_cloud() -> Result<()> {
    let kernel = Kernel::debian_cloud()?;
    let mut run = Run::new(kernel.clone(), folder("debian-cloud-doctor"));
    run.append = "lsm=landlock,lockdown,yama,bpf".into();
    // It replaces its own code all the time (static keys).
    run.patches_busy_code = true;
    let (code, diagnosis) = said_by(run, &["lu", "doctor", "--json"])?;
    expect(&diagnosis, "/verdict", "degraded")?;
    expect(&diagnosis, "/orchestrator/kind", Value::Null)?;
    ensure!(code == 1, "doctor exits {code}");
    let checks = list(&diagnosis, "/checks")?;
    for name in [
        "uprobe",
        "kprobe",
        "kretprobe",
        "fentry",
        "fexit",
        "lsm",
        "LSM list",
        "FUSE",
    ] {
        let check = checks.iter().find(|check| check["name"] == name);
        ensure!(
            check.is_some_and(|check| check["ok"] == true),
            "doctor does not find {name}: {check:?}"
        );
    }
    let mut run = Run::new(kernel, folder("debian-cloud"));
    run.patches_busy_code = true;
    run.includes
        .push(Include::program(&build::static_example("demo")?)?);
    run.stages[0] = Some(["lu", "emulate", "--", "demo"].map(str::to_owned).to_vec());
    run.kexecs = 0;
    let outcome = passed(&run)?;
    let said = outcome.read("lu-run-1.err")?;
    ensure!(
        !said.contains("no hook on"),
        "not every hook was attached:\n{said}"
    );
    let report = report_of(&outcome)?;
    expect(&report, "/interface", "v3")?;
    expect(&report, "/orchestrator", "emulated")?;
    expect(&report, "/outcome", "finished")
}
