//! The commands as a user runs them.

use std::process::Stdio;

use libtest_mimic::{Failed, Trial};
use serde_json::Value;

use crate::clients::path;
use crate::support::{Background, Outcome, expect_status, lu, run, scratch, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("a_finished_update_is_reported", finished),
        trial("a_cancelled_update_is_reported", cancelled),
        trial("a_failed_freeze_is_reported", failed_freeze),
        trial("unclaimed_files_are_reported", unclaimed),
        trial("a_plain_kexec_loses_what_was_preserved", plain_kexec),
        trial("doctor_names_what_is_refused_with_the_errno", doctor),
        trial(
            "doctor_names_functions_that_this_kernel_lacks",
            doctor_hooks,
        ),
        trial("errors_say_what_to_do", errors),
    ]
}

/// Runs a shell script under an emulation, watched, and returns the report.
pub fn watched(options: &[&str], script: &str) -> Result<Value, Failed> {
    let folder = scratch();
    let journal = path(folder.path())?;
    let recorder = Background::watch(&["run", "--journal", journal], Stdio::null())?;
    let script = script.replace("lu ", &format!("{} ", lu()));
    let args = [
        &["emulate", "--boot-delay=50ms"],
        options,
        &["--", "sh", "-c", &script],
    ]
    .concat();
    expect_status(&run(&args)?, 0)?;
    recorder.stop()?;
    let report = run(&["report", "--journal", journal, "--json"])?;
    expect_status(&report, 0)?;
    // The text says the same and does not fail on it.
    expect_status(&run(&["report", "--journal", journal])?, 0)?;
    Ok(serde_json::from_slice(&report.stdout)?)
}

/// A client that preserves, prepares and holds on until the kexec ends it, or `kill $HOLDER`.
const PREPARED: &str = "SAID=$(mktemp); \
     (printf 'preserve 2 --memfd 64KiB\npreserve 2 --memfd 4KiB\nprepare\n'; exec sleep 30) 2>/dev/null \
     | lu ctl --hold --json preserve 1 --memfd 1MiB >$SAID 2>/dev/null & HOLDER=$!; \
     until [ $(wc -l <$SAID) -ge 4 ]; do sleep 0.01; done; rm $SAID; ";

fn finished() -> Outcome {
    let script = format!(
        "{PREPARED} lu emulate kexec && printf 'restore 2\nfinish\n' | lu ctl --hold restore 1"
    );
    let report = watched(&[], &script)?;
    let files = &report["sessions"][0]["files"];
    let blackout = report["blackout"]["ns"].as_u64().unwrap_or(0);
    let phases = report["phases"].as_array().ok_or("no phases")?;
    check(&report, report["schema"] == "lu.report/1")?;
    check(
        &report,
        report["interface"] == "v3" && report["orchestrator"] == "emulated",
    )?;
    check(&report, report["outcome"] == "finished")?;
    check(
        &report,
        phases.len() == 12 && phases.iter().all(|phase| phase["known"] == true),
    )?;
    let sum: u64 = phases.iter().filter_map(|phase| phase["ns"].as_u64()).sum();
    check(&report, report["whole"]["ns"] == sum)?;
    check(&report, files.as_array().map(Vec::len) == Some(2))?;
    check(
        &report,
        files[0]["bytes"] == 1 << 20 && files[1]["bytes"] == 1 << 16,
    )?;
    for file in [&files[0], &files[1]] {
        check(
            &report,
            file["outcome"] == "restored" && file["kind"] == "memfd",
        )?;
        for span in ["preserve_ns", "prepare_ns", "freeze_ns", "restore_ns"] {
            check(&report, file[span].as_u64() > Some(0))?;
        }
    }
    check(&report, blackout > 50_000_000)?;
    check(&report, has_error(&report, "preserve", "EEXIST"))?;
    check(&report, report["events"]["lost"] == 0)
}

fn cancelled() -> Outcome {
    let report = watched(
        &[],
        "printf 'prepare\ncancel\n' | lu ctl --hold preserve 1 --memfd 1MiB",
    )?;
    check(&report, report["outcome"] == "cancelled")?;
    check(&report, report["blackout"].is_null())?;
    check(
        &report,
        report["sessions"][0]["files"][0]["outcome"] == "preserved",
    )
}

fn failed_freeze() -> Outcome {
    let script = format!("{PREPARED} lu emulate kexec && exit 1; kill $HOLDER");
    let report = watched(&["--fail-freeze", "2=ENOMEM"], &script)?;
    check(&report, report["outcome"] == "aborted")?;
    check(&report, report["blackout"].is_null())?;
    check(
        &report,
        report["sessions"][0]["files"][1]["outcome"] == "failed",
    )?;
    check(&report, has_error(&report, "reboot", "ENOMEM"))
}

fn unclaimed() -> Outcome {
    let script =
        format!("{PREPARED} lu emulate kexec && printf 'finish\n' | lu ctl --hold restore 1");
    let report = watched(&[], &script)?;
    let files = &report["sessions"][0]["files"];
    check(&report, report["outcome"] == "finished")?;
    check(
        &report,
        files[0]["outcome"] == "restored" && files[1]["outcome"] == "unclaimed",
    )?;
    check(&report, files[1]["restore_ns"].is_null())
}

fn plain_kexec() -> Outcome {
    let script = "SAID=$(mktemp); sleep 30 2>/dev/null \
         | lu ctl --hold --json preserve 1 --memfd 1MiB >$SAID 2>/dev/null & \
         until [ $(wc -l <$SAID) -ge 1 ]; do sleep 0.01; done; rm $SAID; lu emulate kexec";
    let report = watched(&[], script)?;
    check(&report, report["outcome"] == "aborted")?;
    check(&report, report["blackout"].is_null())?;
    check(
        &report,
        report["sessions"][0]["files"][0]["outcome"] == "lost",
    )
}

fn has_error(report: &Value, operation: &str, errno: &str) -> bool {
    report["errors"].as_array().is_some_and(|errors| {
        errors
            .iter()
            .any(|error| error["operation"] == operation && error["errno"] == errno)
    })
}

fn check(report: &Value, holds: bool) -> Outcome {
    if holds {
        Ok(())
    } else {
        Err(format!("{report:#}").into())
    }
}

fn doctor() -> Outcome {
    let output = run(&["doctor", "--json"])?;
    let diagnosis: Value = serde_json::from_slice(&output.stdout)?;
    let verdict = match output.status.code() {
        Some(0) => "ready",
        Some(1) => "degraded",
        _ => "unusable",
    };
    check(&diagnosis, diagnosis["verdict"] == verdict)?;
    let checks = diagnosis["checks"].as_array().ok_or("no checks")?;
    for name in ["uprobe", "kprobe", "fentry", "fexit", "lsm"] {
        let found = checks.iter().find(|check| check["name"] == name);
        let found = found.ok_or_else(|| format!("{name} was not tried"))?;
        // What is refused says with which errno: nothing is guessed.
        check(
            &diagnosis,
            found["ok"] == true || found["errno"].is_string(),
        )?;
    }
    let hooks = diagnosis["hooks"].as_array().ok_or("no hooks")?;
    check(&diagnosis, hooks.len() >= 11)?;
    check(
        &diagnosis,
        hooks.iter().all(|hook| hook["attached"] == "uprobe"),
    )
}

/// Held against the types as bytes: a name that is not among them cannot be found, and one that is must be.
fn doctor_hooks() -> Outcome {
    let output = run(&["doctor", "--hooks", "--json"])?;
    let found: Value = serde_json::from_slice(&output.stdout)?;
    let hooks = found["hooks"].as_array().ok_or("no hooks")?;
    let types = std::fs::read("/sys/kernel/btf/vmlinux")?;
    let mut same = 0;
    for hook in hooks {
        let function = hook["function"].as_str().ok_or("no function")?;
        let name = format!("\0{function}\0");
        let there = types
            .windows(name.len())
            .any(|bytes| bytes == name.as_bytes());
        check(hook, (hook["verdict"] == "missing") != there)?;
        same += usize::from(hook["verdict"] == "same");
    }
    // Every kernel can be restarted.
    check(&found, same >= 2)?;
    expect_status(&output, i32::from(same < hooks.len()))
}

fn errors() -> Outcome {
    let empty = scratch();
    let nowhere = path(empty.path())?;
    for (args, status, says) in [
        (&["report", "--journal", nowhere][..], 1, "lu run --journal"),
        (
            &["report", "--journal", "/no/such/folder"],
            1,
            "lu run --journal",
        ),
        (
            &["ctl", "--device", "/no/such/device", "state"],
            1,
            "lu emulate",
        ),
        (&["ctl", "--device-fd", "77", "state"], 1, "not open"),
        (
            &["ctl", "preserve", "x", "--memfd", "1MiB"],
            2,
            "tokens are numbers",
        ),
        (&["ctl", "preserve", "1"], 2, "--memfd"),
        (&["trace", "--ring-buffer", "5000B"], 1, "power of two"),
        (&["trace", "--for", "soon"], 2, "soon"),
        (
            &["emulate", "kexec", "--pid", "4194305"],
            1,
            "cannot reach the emulator",
        ),
        (
            &["emulate", "--fail-freeze", "1=EWHAT", "--", "true"],
            2,
            "EWHAT is no errno",
        ),
        (&["emulate", "--interface", "v4", "--", "true"], 2, "v3"),
    ] {
        let output = run(args)?;
        expect_status(&output, status)?;
        let said = String::from_utf8_lossy(&output.stderr);
        if !said.contains(says) {
            return Err(format!("{args:?} does not say {says:?}: {said}").into());
        }
    }
    Ok(())
}
