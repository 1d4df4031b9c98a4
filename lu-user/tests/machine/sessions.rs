//! The sessions interface of the emulated orchestrator, as clients that know nothing of lu see it.

use libtest_mimic::{Failed, Trial};

use crate::clients::path;
use crate::commands::watched;
use crate::support::{Outcome, client, expect_status, lu, run, scratch, trial, trial_with};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("every_line_of_the_sessions_table_static", || {
            table(&["-static"])
        }),
        trial("every_line_of_the_sessions_table_dynamic", || table(&[])),
        trial("random_sequences_survive_a_kexec", sequences),
        trial("a_sessions_update_is_reported_whole", reported),
        trial("ctl_takes_a_session_over_a_kexec", ctl),
        trial("options_of_the_other_interface_are_refused", options),
        trial_with("nm", "every_function_is_a_place_of_its_own", places),
    ]
}

/// How many cells the client checks in its largest stage: one that checks nothing would pass too.
const CELLS_OF_THE_OLD_KERNEL: usize = 250;

fn table(flags: &[&str]) -> Outcome {
    let program = client("sessions", flags)?;
    let output = run(&[
        "emulate",
        "--interface=sessions",
        "--boot-delay=10ms",
        "--fail-prepare=0xbad",
        "--fail-freeze=0xdead",
        "--fail-restore=0xbeef",
        "--busy-finish=0xb",
        "--",
        path(&program)?,
    ])?;
    expect_status(&output, 0)?;
    let said = String::from_utf8_lossy(&output.stdout);
    let cells: Vec<usize> = said
        .lines()
        .filter_map(|line| line.split_once(" cells, 0 failures")?.0.parse().ok())
        .collect();
    if cells.len() != 3 || cells.iter().max() < Some(&CELLS_OF_THE_OLD_KERNEL) {
        return Err(format!("too few cells were checked:\n{said}").into());
    }
    Ok(())
}

/// An example stands beside the folder of the tests.
fn example(name: &str) -> Result<String, Failed> {
    let test = std::env::current_exe()?;
    let folder = test.parent().and_then(|deps| deps.parent());
    let example = folder
        .ok_or("no target folder")?
        .join("examples")
        .join(name);
    if !example.exists() {
        return Err(format!(
            "{} is not built; run the tests with cargo",
            example.display()
        )
        .into());
    }
    Ok(path(&example)?.to_owned())
}

/// The client whose output is the same on a kernel that has the interface.
fn sequences() -> Outcome {
    const STEPS: usize = 4_000;
    let sequence = example("sequence")?;
    let script = format!(
        "{sequence} --seed 7 --steps {STEPS} --stage 1 && {lu} emulate kexec \
         && {sequence} --seed 7 --steps {STEPS} --stage 2",
        lu = lu()
    );
    let of_sessions = ["emulate", "--interface=sessions", "--boot-delay=10ms"];
    let output = run(&[&of_sessions[..], &["--", "sh", "-c", &script]].concat())?;
    expect_status(&output, 0)?;
    let said = String::from_utf8_lossy(&output.stdout);
    // Everything that was left can be found, with what was in it.
    let kept = said.lines().filter(|line| line.starts_with("keep "));
    let found = said
        .lines()
        .filter(|line| line.contains(" RETRIEVE_FD ") && line.contains("content="));
    let (kept, found, lines) = (kept.count(), found.count(), said.lines().count());
    if kept < 100 || found < 20 || lines != 2 * STEPS + kept {
        return Err(format!("{kept} kept, {found} found, {lines} lines").into());
    }
    Ok(())
}

/// The lab's clients, watched: sessions with their files, and the mistake, over a kexec.
fn reported() -> Outcome {
    let sessions = example("sessions")?;
    let script = format!("{sessions} stage1 && lu emulate kexec && {sessions} stage2");
    let report = watched(&["--interface=sessions"], &script)?;
    let files: Vec<(&str, u64)> = report["sessions"]
        .as_array()
        .ok_or("no sessions")?
        .iter()
        .filter(|session| session["outcome"] == "finished")
        .filter_map(|session| Some((session["name"].as_str()?, session["files"].as_array()?)))
        .flat_map(|(name, files)| {
            files
                .iter()
                .filter(|file| file["outcome"] == "restored" && file["kind"] == "memfd")
                .filter_map(move |file| Some((name, file["token"].as_u64()?)))
        })
        .collect();
    let holds = report["interface"] == "sessions"
        && report["outcome"] == "finished"
        && report["blackout"]["from"] == "reboot"
        && report["blackout"]["ns"].as_u64() > Some(50_000_000)
        && report["errors"][0]["operation"] == "preserve"
        && report["errors"][0]["errno"] == "EEXIST"
        && report["events"]["lost"] == 0;
    if !holds || files != [("guest-a", 1), ("guest-a", 2), ("guest-b", 1)] {
        return Err(format!("{report:#}").into());
    }
    Ok(())
}

fn ctl() -> Outcome {
    let folder = scratch();
    let (content, copy) = (folder.path().join("content"), folder.path().join("copy"));
    std::fs::write(&content, "guest memory")?;
    let script = format!(
        "SAID=$(mktemp); (printf 'session preserve vm 7 --memfd-from {content}\n\
         session preserve vm 7 --memfd 4KiB\nsession name vm\n'; exec sleep 30) 2>/dev/null \
         | {lu} ctl --hold --json session create vm >$SAID 2>/dev/null & \
         until [ $(wc -l <$SAID) -ge 4 ]; do sleep 0.01; done; cat $SAID; rm $SAID; \
         {lu} emulate kexec && \
         printf 'session retrieve-fd vm 7 --to {copy}\nsession finish vm\n' \
         | {lu} ctl --hold --json session retrieve vm; {lu} ctl session retrieve vm",
        content = path(&content)?,
        copy = path(&copy)?,
        lu = lu()
    );
    let of_sessions = ["emulate", "--interface=sessions", "--boot-delay=10ms"];
    let output = run(&[&of_sessions[..], &["--", "bash", "-c", &script]].concat())?;
    expect_status(&output, 1)?;
    let said = String::from_utf8_lossy(&output.stdout);
    let answers: Vec<serde_json::Value> = said
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let whole = answers.len() == 7
        && answers[2]["errno"] == "EEXIST"
        && answers[3]["name"] == "vm"
        && answers[5]["bytes"] == 12
        && [0, 1, 3, 4, 5, 6]
            .iter()
            .all(|index| answers[*index]["ok"] == true);
    let errors = String::from_utf8_lossy(&output.stderr);
    if !whole || std::fs::read(&copy)? != b"guest memory" || !errors.contains("ENOENT") {
        return Err(format!("{said}\n{errors}").into());
    }
    // The other interface's calls are refused with the reason.
    let output = run(&[
        "emulate",
        "--interface=sessions",
        "--",
        lu(),
        "ctl",
        "state",
    ])?;
    expect_status(&output, 1)?;
    if !String::from_utf8_lossy(&output.stderr).contains("lu ctl session") {
        return Err("a v3 call is refused without a reason".into());
    }
    Ok(())
}

fn options() -> Outcome {
    for (args, says) in [
        (&["--interface=sessions", "--quirks"][..], "v3"),
        (&["--interface=sessions", "--fail-kexec=1"], "--fail-freeze"),
        (&["--busy-finish=1"], "--interface sessions"),
    ] {
        let output = run(&[&["emulate"], args, &["--", "true"]].concat())?;
        expect_status(&output, 1)?;
        let said = String::from_utf8_lossy(&output.stderr);
        if !said.contains(says) {
            return Err(format!("{args:?} does not say {says:?}: {said}").into());
        }
    }
    Ok(())
}

/// The compiler may merge functions with the same body, and a probe would see both.
fn places() -> Outcome {
    let output = std::process::Command::new("nm").arg(lu()).output()?;
    let symbols = String::from_utf8_lossy(&output.stdout);
    let mut places = std::collections::BTreeMap::new();
    for line in symbols.lines() {
        let mut words = line.split_whitespace();
        let (Some(address), Some("T" | "t"), Some(name)) =
            (words.next(), words.next(), words.next())
        else {
            continue;
        };
        let plain = name.strip_prefix("sessions.").unwrap_or(name);
        let ours = [
            "luo_",
            "memfd_luo_",
            "liveupdate_",
            "machine_",
            "kernel_kexec",
            "__x64_",
        ];
        if ours.iter().any(|prefix| plain.starts_with(prefix))
            && let Some(other) = places.insert(address.to_owned(), name.to_owned())
        {
            return Err(format!("{name} and {other} are one function").into());
        }
    }
    if places
        .values()
        .filter(|name| name.starts_with("sessions."))
        .count()
        != 27
    {
        return Err(format!("not 27 functions of the sessions interface: {places:?}").into());
    }
    Ok(())
}
