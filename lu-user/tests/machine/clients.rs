//! Clients that know nothing of lu, against the emulated orchestrator.

use libtest_mimic::{Failed, Trial};

use crate::support::{Outcome, client, expect_status, run, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("every_cell_of_the_v3_tables_static", || {
            v3_tables(&["-static"])
        }),
        trial("every_cell_of_the_v3_tables_dynamic", || v3_tables(&[])),
        trial("the_two_faults_of_patch_16_behind_a_flag", quirks),
        trial(
            "other_kinds_of_files_are_accepted_when_asked_for",
            other_kinds,
        ),
        trial("the_exit_status_is_the_commands", exit_status),
        trial(
            "a_command_that_dies_in_a_restore_ends_with_its_status",
            dying_command,
        ),
        trial("two_reboots_at_once_are_one_kexec", || {
            let program = client("two_reboots", &["-static"])?;
            let program = path(&program)?;
            expect_status(&run(&["emulate", "--boot-delay=100ms", "--", program])?, 0)
        }),
        trial("what_outlives_the_command_goes_on_working", survivors),
    ]
}

/// How many cells the client checks in its largest stage: one that checks nothing would pass too.
const CELLS_OF_THE_OLD_KERNEL: usize = 150;

fn v3_tables(flags: &[&str]) -> Outcome {
    let program = client("v3", flags)?;
    let output = run(&[
        "emulate",
        "--boot-delay=10ms",
        "--fail-kexec=1",
        "--fail-prepare=0xbad",
        "--fail-freeze=0xdead",
        "--fail-restore=0xbeef",
        "--",
        path(&program)?,
    ])?;
    expect_status(&output, 0)?;
    let said = String::from_utf8_lossy(&output.stdout);
    let most = said
        .lines()
        .filter_map(|line| {
            line.split_once(" cells, 0 failures")?
                .0
                .parse::<usize>()
                .ok()
        })
        .max();
    if most < Some(CELLS_OF_THE_OLD_KERNEL) || said.lines().count() != 7 {
        return Err(format!("too few cells were checked:\n{said}").into());
    }
    Ok(())
}

fn quirks() -> Outcome {
    let program = client("quirks", &["-static"])?;
    let program = path(&program)?;
    expect_status(
        &run(&["emulate", "--boot-delay=10ms", "--quirks", "--", program])?,
        0,
    )?;
    // Without the flag the same client must find that the faults are not there.
    expect_status(&run(&["emulate", "--boot-delay=10ms", "--", program])?, 1)
}

fn other_kinds() -> Outcome {
    let script = |kind: &str| {
        format!(
            "exec 9<>/dev/liveupdate; {lu} ctl --device-fd 9 preserve 1 --fd 0 {kind}",
            lu = crate::support::lu()
        )
    };
    let regular = script("</proc/self/exe");
    let pipe = format!("true | (sleep 0; {})", script(""));
    for (command, also) in [(&regular, "regular"), (&pipe, "pipe")] {
        expect_status(&run(&["emulate", "--", "sh", "-c", command])?, 1)?;
        expect_status(
            &run(&["emulate", "--also", also, "--", "sh", "-c", command])?,
            0,
        )?;
    }
    Ok(())
}

fn exit_status() -> Outcome {
    expect_status(&run(&["emulate", "--", "sh", "-c", "exit 42"])?, 42)?;
    expect_status(&run(&["emulate", "--", "sh", "-c", "kill -9 $$"])?, 137)?;
    expect_status(&run(&["emulate", "--", "/no/such/program"])?, 1)?;
    // A signal that asks for the end reaches the command, which has none of ours blocked.
    let script =
        "grep -q 'SigBlk:.0000000000000000' /proc/self/status && kill -TERM $PPID && exec sleep 20";
    expect_status(&run(&["emulate", "--", "sh", "-c", script])?, 143)?;
    // The device is the command's alone.
    let device = std::path::Path::new("/dev/liveupdate");
    let before = device.exists();
    expect_status(
        &run(&["emulate", "--", "test", "-f", "/dev/liveupdate"])?,
        0,
    )?;
    if device.exists() != before {
        return Err("the command's device is to be seen outside".into());
    }
    Ok(())
}

/// Before any close of the device: the kernel still asks at the first one, and the dying client waits for
/// the answer.
fn dying_command() -> Outcome {
    let program = client("dying", &["-static"])?;
    for microseconds in ["300", "700", "1500", "3000"] {
        let output = run(&["emulate", "--", path(&program)?, microseconds])?;
        expect_status(&output, 7)?;
    }
    Ok(())
}

fn survivors() -> Outcome {
    let folder = crate::support::scratch();
    let said = folder.path().join("said");
    let script = format!(
        "(sleep 0.5; truncate -s 5 {said}; echo $? >>{said}) >/dev/null 2>&1 & true",
        said = path(&said)?
    );
    expect_status(&run(&["emulate", "--", "sh", "-c", &script])?, 0)?;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while std::fs::read(&said).is_ok_and(|bytes| bytes.len() < 7) || !said.exists() {
        if std::time::Instant::now() > deadline {
            return Err("the child that outlived the command did not end".into());
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    if std::fs::read(&said)? == b"\0\0\0\0\x000\n" {
        Ok(())
    } else {
        Err("its ftruncate failed".into())
    }
}

pub fn path(path: &std::path::Path) -> Result<&str, Failed> {
    path.to_str()
        .ok_or_else(|| "a path that is not UTF-8".into())
}
