//! Updates that go wrong, each made to happen on the emulated orchestrator and held against its report.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use libtest_mimic::{Failed, Trial};
use serde_json::Value;

use crate::clients::path;
use crate::support::{Background, Outcome, expect_status, lu, run, scratch, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial(
            "what_goes_wrong_with_sessions_is_told_update_by_update",
            sessions,
        ),
        trial("what_goes_wrong_in_v3_is_told_update_by_update", v3),
        trial(
            "a_lu_that_starts_after_the_restores_says_so_and_guesses_nothing",
            late,
        ),
    ]
}

/// What the scripts share. `hold NAME TOKEN...` starts a process that holds a session with a memfd for each
/// token; the device is the script's descriptor 9.
const SHELL: &str = r#"
lines() { until [ "$(wc -l <"$1")" -ge "$2" ]; do sleep 0.01; done; }
hold() {
    NAME=$1; shift; SAID=$(mktemp)
    (for TOKEN; do echo "session preserve $NAME $TOKEN --memfd 64KiB"; done; exec sleep 30) 9>&- 2>/dev/null \
        | $LU ctl --device-fd 9 --hold --json session create "$NAME" >"$SAID" 2>/dev/null &
    HOLDER=$!
    lines "$SAID" $(($# + 1)); rm "$SAID"
}
retrieve() {
    NAME=$1; shift
    (for CALL; do echo "session $CALL"; done) | $LU ctl --hold session retrieve "$NAME" 2>/dev/null
}
"#;

fn script(story: &str) -> String {
    format!("LU={}\n{SHELL}\n{story}", lu())
}

/// The reports of all updates of a journal, in their order.
fn reports(journal: &str) -> Result<Vec<Value>, Failed> {
    let mut reports = Vec::new();
    loop {
        let number = (reports.len() + 1).to_string();
        let args = ["report", "--journal", journal, "--update", &number];
        let report = run(&[&args[..], &["--json"]].concat())?;
        if report.status.code() == Some(1) {
            return Ok(reports);
        }
        expect_status(&report, 0)?;
        for format in ["text", "html", "perfetto"] {
            let other = run(&[&args[..], &["--format", format]].concat())?;
            expect_status(&other, 0)?;
            check(&Value::Null, !other.stdout.is_empty())?;
        }
        reports.push(serde_json::from_slice(&report.stdout)?);
    }
}

/// Runs a story under an emulation, watched.
fn told(options: &[&str], story: &str) -> Result<Vec<Value>, Failed> {
    let folder = scratch();
    let journal = path(folder.path())?;
    let recorder = Background::watch(&["run", "--journal", journal], Stdio::null())?;
    let story = script(story);
    let args = [
        &["emulate", "--boot-delay=50ms"],
        options,
        &["--", "bash", "-c", &story],
    ]
    .concat();
    expect_status(&run(&args)?, 0)?;
    recorder.stop()?;
    reports(journal)
}

fn check(report: &Value, holds: bool) -> Outcome {
    if holds {
        Ok(())
    } else {
        Err(format!("{report:#}").into())
    }
}

/// Kind, session, token and count of each thing that needs attention.
fn attention(report: &Value) -> Vec<(&str, Option<&str>, Option<u64>, u64)> {
    let all = report["attention"].as_array();
    all.into_iter()
        .flatten()
        .map(|one| {
            (
                one["kind"].as_str().unwrap_or(""),
                one["session"].as_str(),
                one["token"].as_u64(),
                one["count"].as_u64().unwrap_or(0),
            )
        })
        .collect()
}

/// Every phase is known, and their sum is the whole; so it is with the blackout.
fn whole(report: &Value) -> Outcome {
    let sum = |list: &Value| -> Option<u64> {
        let parts = list.as_array()?;
        parts.iter().map(|part| part["ns"].as_u64()).sum()
    };
    let phases = sum(&report["phases"]);
    check(
        report,
        phases > Some(0) && phases == report["whole"]["ns"].as_u64(),
    )?;
    let blackout = &report["blackout"];
    let parts = sum(&blackout["parts"]);
    check(
        report,
        parts > Some(50_000_000) && parts == blackout["ns"].as_u64(),
    )
}

fn sessions() -> Outcome {
    let options = [
        "--interface=sessions",
        "--fail-freeze=7=ENOMEM",
        "--fail-restore=0xbeef=EIO",
        "--busy-finish=0xb",
    ];
    let updates = told(&options, SESSIONS)?;
    let [retried, discarded, zombie] = &updates[..] else {
        return Err(format!("{} updates, not 3: {updates:#?}", updates.len()).into());
    };

    whole(retried)?;
    check(retried, retried["outcome"] == "finished")?;
    check(
        retried,
        attention(retried)
            == [
                ("dropped", Some("bad"), Some(7), 1),
                ("freeze-failed", Some("bad"), Some(7), 2),
                ("device-busy", None, None, 1),
            ],
    )?;
    let [dropped, frozen, busy] = [0, 1, 2].map(|index| &retried["attention"][index]);
    check(dropped, dropped["by"]["comm"] == "lu")?;
    check(frozen, frozen["errno"] == "ENOMEM")?;
    check(
        busy,
        busy["holder"]["comm"] == "bash" && busy["by"]["comm"] == "lu",
    )?;

    whole(discarded)?;
    check(discarded, discarded["outcome"] == "finished")?;
    check(
        discarded,
        attention(discarded)
            == [
                ("restore-failed", Some("sticky"), Some(0xbeef), 3),
                ("unclaimed", Some("lazy"), None, 2),
            ],
    )?;
    check(discarded, discarded["attention"][0]["errno"] == "EIO")?;

    whole(zombie)?;
    check(zombie, zombie["outcome"] == "incomplete")?;
    check(
        zombie,
        attention(zombie) == [("stranded", Some("zombie"), None, 1)],
    )
}

/// Three updates, and a kexec without any session, which is none.
const SESSIONS: &str = r#"
    # A freeze that fails, twice, because of one session; then its holder dies. Somebody is refused the device.
    exec 9<>/dev/liveupdate
    hold good 1 2; hold bad 7
    $LU ctl session create refused 2>/dev/null && exit 11
    exec 9>&-
    $LU emulate kexec 2>/dev/null && exit 12
    $LU emulate kexec 2>/dev/null && exit 13
    kill -9 $HOLDER; while kill -0 $HOLDER 2>/dev/null; do sleep 0.01; done
    $LU emulate kexec || exit 14
    retrieve good 'retrieve-fd good 1' 'retrieve-fd good 2' 'finish good' || exit 15

    # Right after it another update: an error that sticks, and files that nobody asks for.
    exec 9<>/dev/liveupdate; hold sticky 0xbeef 1; hold lazy 2 3; exec 9>&-
    $LU emulate kexec || exit 21
    AGAIN='retrieve-fd sticky 0xbeef'
    retrieve sticky 'retrieve-fd sticky 1' "$AGAIN" "$AGAIN" "$AGAIN" 'finish sticky' && exit 22
    retrieve lazy 'finish lazy' || exit 23

    # A session that cannot be finished, and is closed.
    exec 9<>/dev/liveupdate; hold zombie 0xb; exec 9>&-
    $LU emulate kexec || exit 31
    retrieve zombie 'retrieve-fd zombie 0xb' 'finish zombie' && exit 32

    $LU emulate kexec || exit 41
    exit 0
"#;

fn v3() -> Outcome {
    let updates = told(&["--fail-freeze=2=ENOMEM"], V3)?;
    let [cancelled, failed, retried] = &updates[..] else {
        return Err(format!("{} updates, not 3: {updates:#?}", updates.len()).into());
    };

    check(cancelled, cancelled["outcome"] == "cancelled")?;
    check(cancelled, attention(cancelled).is_empty())?;
    check(cancelled, cancelled["whole"].is_null())?;
    let phases = cancelled["phases"].as_array().ok_or("no phases")?;
    let names: Vec<_> = phases
        .iter()
        .filter_map(|phase| phase["name"].as_str())
        .collect();
    check(cancelled, names == ["preserve", "wait-prepare", "prepare"])?;

    check(failed, failed["outcome"] == "aborted")?;
    check(
        failed,
        attention(failed) == [("freeze-failed", None, Some(2), 1)],
    )?;

    whole(retried)?;
    check(retried, retried["outcome"] == "finished")?;
    check(
        retried,
        attention(retried) == [("unclaimed", None, Some(3), 1)],
    )
}

/// An update that is cancelled, one whose freeze fails, and a third one without the file that was to blame.
const V3: &str = r#"
    CALLS=$(mktemp -u); SAID=$(mktemp); mkfifo $CALLS
    $LU ctl --hold --json preserve 1 --memfd 1MiB <$CALLS >$SAID 2>/dev/null &
    exec 8>$CALLS
    say() { echo "$2" >&8; lines $SAID $1; }
    say 2 'preserve 2 --memfd 64KiB'; say 3 'preserve 3 --memfd 4KiB'
    say 4 prepare; say 5 cancel
    say 6 prepare
    $LU emulate kexec 2>/dev/null && exit 11
    say 7 'unpreserve 2'; say 8 'preserve 4 --memfd 4KiB'; say 9 prepare
    $LU emulate kexec || exit 12
    printf 'restore 4\nfinish\n' | $LU ctl --hold restore 1 || exit 13
    exit 0
"#;

/// One lu sees the kexec and stops; the restores come; another lu sees FINISH.
fn late() -> Outcome {
    let folder = scratch();
    let journal = folder.path().join("journal");
    let journal = path(&journal)?;
    let sign = |name: &str| folder.path().join(name);
    let give = |name: &str| std::fs::write(sign(name), "");
    let first = Background::watch(&["run", "--journal", journal], Stdio::null())?;
    let story = format!("SIGNS={}\n{}", path(folder.path())?, script(LATE));
    let machine = Background::start(
        &[
            "emulate",
            "--interface=sessions",
            "--boot-delay=50ms",
            "--",
            "bash",
            "-c",
            &story,
        ],
        Stdio::null(),
        "the story begins",
    )?;
    wait_for(&sign("jumped"))?;
    first.stop()?;
    give("unwatched")?;
    wait_for(&sign("restored"))?;
    let second = Background::watch(&["run", "--journal", journal], Stdio::null())?;
    give("watched")?;
    machine.end()?;
    second.stop()?;
    let updates = reports(journal)?;
    let [update] = &updates[..] else {
        return Err(format!("{} updates, not 1: {updates:#?}", updates.len()).into());
    };
    check(update, update["outcome"] == "finished")?;
    check(update, update["blackout"].is_null())?;
    check(
        update,
        update["sessions"][0]["files"][0]["outcome"] == "unseen",
    )?;
    check(update, update["watched_ns"].is_u64())?;
    check(update, attention(update) == [("unwatched", None, None, 1)])
}

const LATE: &str = r"
    echo the story begins >&2
    exec 9<>/dev/liveupdate; hold late 1; exec 9>&-
    $LU emulate kexec || exit 11
    touch $SIGNS/jumped
    until [ -e $SIGNS/unwatched ]; do sleep 0.01; done
    (
        echo 'session retrieve-fd late 1'
        until [ -e $SIGNS/watched ]; do sleep 0.01; done
        echo 'session finish late'
    ) | $LU ctl --hold --json session retrieve late >$SIGNS/said &
    lines $SIGNS/said 2; touch $SIGNS/restored
    wait $!
";

fn wait_for(path: &Path) -> Outcome {
    let deadline = Instant::now() + Duration::from_mins(1);
    while !path.exists() {
        if Instant::now() > deadline {
            return Err(format!("{} did not come", path.display()).into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
