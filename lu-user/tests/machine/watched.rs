//! Events from the emulated orchestrator, through real BPF programs in the running kernel.

use std::collections::BTreeSet;

use libtest_mimic::{Failed, Trial};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use crate::clients::path;
use crate::support::{Outcome, Trace, client, expect_status, run, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial(
            "a_hundred_thousand_ioctls_are_all_seen_in_order",
            every_ioctl,
        ),
        trial(
            "a_shrunk_ring_buffers_losses_are_counted_exactly",
            exact_losses,
        ),
        trial("events_tell_the_client_not_the_emulator", identity),
    ]
}

const IOCTLS: u64 = 100_000;

fn every_ioctl() -> Outcome {
    let trace = Trace::start(&[])?;
    let program = client("hammer", &["-static"])?;
    let count = IOCTLS.to_string();
    expect_status(&run(&["emulate", "--", path(&program)?, &count])?, 0)?;
    let events = trace.events()?;
    let lost: u64 = events
        .iter()
        .filter_map(|event| event["lost"].as_u64())
        .sum();
    if lost != 0 {
        return Err(format!("{lost} events lost").into());
    }
    let tokens: Vec<u64> = of_kind(&events, "unpreserve")
        .filter_map(|e| e["token"].as_u64())
        .collect();
    if tokens.len() as u64 != IOCTLS || !tokens.iter().copied().eq(0..IOCTLS) {
        return Err(format!("{} ioctls seen, or not in order", tokens.len()).into());
    }
    if of_kind(&events, "unpreserve").any(|e| e["errno"] != "ENOENT" || e["cmd"] != "FD_UNPRESERVE")
    {
        return Err("an ioctl without its errno or command".into());
    }
    // Each CPU counts its records without a gap.
    let mut numbers: Vec<(u64, u64)> = events
        .iter()
        .filter_map(|event| Some((event["cpu"].as_u64()?, event["seq"].as_u64()?)))
        .collect();
    numbers.sort_unstable();
    let gaps = numbers
        .windows(2)
        .filter(|pair| pair[0].0 == pair[1].0 && pair[0].1 + 1 != pair[1].1)
        .count();
    if gaps != 0 {
        return Err(format!("{gaps} gaps in the sequence numbers").into());
    }
    Ok(())
}

fn exact_losses() -> Outcome {
    const CALLS: u64 = 5_000;
    // The open and the close are calls too.
    const RECORDS: u64 = CALLS + 2;
    let trace = Trace::start(&["--ring-buffer", "4KiB"])?;
    kill(trace.pid(), Signal::SIGSTOP)?;
    let program = client("hammer", &["-static"])?;
    let count = CALLS.to_string();
    expect_status(&run(&["emulate", "--", path(&program)?, &count])?, 0)?;
    kill(trace.pid(), Signal::SIGCONT)?;
    let events = trace.events()?;
    let lost: u64 = events
        .iter()
        .filter_map(|event| event["lost"].as_u64())
        .sum();
    let seen = events
        .iter()
        .filter(|event| event["lost"].is_null())
        .count() as u64;
    if seen == 0 || lost == 0 || seen + lost != RECORDS {
        return Err(format!("{seen} seen and {lost} lost are not {RECORDS}").into());
    }
    Ok(())
}

fn identity() -> Outcome {
    let trace = Trace::start(&[])?;
    let program = client("ordinary", &["-static"])?;
    let output = run(&["emulate", "--boot-delay=10ms", "--", path(&program)?])?;
    expect_status(&output, 0)?;
    let said = String::from_utf8_lossy(&output.stdout);
    let ordinary: BTreeSet<u64> = said
        .lines()
        .filter_map(|line| line.strip_prefix("pid ")?.parse().ok())
        .collect();
    let events = trace.events()?;
    let mut seen = BTreeSet::new();
    for event in &events {
        if event["kind"] == "boot" {
            expect(event, event["pid"].is_null() && event["comm"].is_null())?;
            continue;
        }
        let pid = event["pid"]
            .as_u64()
            .ok_or("an event without its process")?;
        if ordinary.contains(&pid) {
            seen.insert(pid);
            expect(
                event,
                event["uid"] == 65534 && event["comm"] == "lu client\n\"x",
            )?;
            expect(
                event,
                event["tid"] == pid && event["cgroup_id"].as_u64() > Some(0),
            )?;
        } else {
            expect(event, event["uid"] == 0 && event["comm"] != "lu")?;
        }
    }
    if seen != ordinary || seen.len() != 3 {
        return Err(format!("processes {ordinary:?} made calls, {seen:?} were seen").into());
    }
    Ok(())
}

fn expect(event: &Value, holds: bool) -> Outcome {
    if holds {
        Ok(())
    } else {
        Err(Failed::from(format!("not the client: {event}")))
    }
}

fn of_kind<'a>(events: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    events.iter().filter(move |event| event["kind"] == kind)
}
