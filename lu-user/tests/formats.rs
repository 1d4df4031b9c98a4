//! The report's forms for other eyes: a page of HTML, and a trace for Perfetto.

use std::collections::BTreeMap;

use lu_user::export::perfetto::{BEGIN, END, INSTANT, Trace};
use lu_user::export::{Report, html, perfetto};
use prost::Message as _;

/// A whole update over two kernels, as `lu report --json` tells it.
const WHOLE: &str = include_str!("reports/whole.json");

fn whole() -> Report {
    serde_json::from_str(WHOLE).expect("a report")
}

/// One with names that were chosen to break out, and little that is known.
fn hostile() -> Report {
    let mut report = whole();
    let name = "</style></title><script>alert(1)</script>\"'&";
    report.sessions[0].name = Some(name.to_owned());
    name.clone_into(&mut report.kernels[0]);
    report.attention = vec![
        serde_json::from_value(serde_json::json!({
            "kind": "stranded", "text": name, "session": name, "token": null, "errno": null,
            "by": null, "holder": null, "count": 1, "at_ns": 5
        }))
        .expect("attention"),
    ];
    report
}

#[test]
fn a_report_that_was_kept_reads_back_the_same() {
    let again: serde_json::Value = serde_json::to_value(whole()).expect("JSON");
    let kept: serde_json::Value = serde_json::from_str(WHOLE).expect("JSON");
    assert_eq!(kept, again);
}

#[test]
fn the_page_needs_nothing_else_and_escapes_what_a_client_chose() {
    for report in [whole(), hostile()] {
        let page = html(&report);
        assert!(page.starts_with("<!DOCTYPE html>"));
        for outside in [
            "<script", "<link", "<img", "http:", "https:", "@import", " src=",
        ] {
            assert!(!page.contains(outside), "{outside} in {page}");
        }
        // What was opened is closed, and in its order.
        let mut open = Vec::new();
        for tag in page.split('<').skip(1) {
            let tag = tag.split('>').next().unwrap_or_default();
            let name = tag.split([' ', '/']).find(|word| !word.is_empty());
            match (tag.strip_prefix('/'), name) {
                (Some(name), _) => assert_eq!(open.pop(), Some(name), "{page}"),
                (None, Some("!DOCTYPE" | "meta")) => {}
                (None, name) => open.push(name.expect("a name")),
            }
        }
        assert_eq!(open, [""; 0]);
    }
    assert!(html(&hostile()).contains("&lt;script&gt;alert(1)"));
}

#[test]
fn the_page_shows_every_phase_and_the_blackout_and_what_needs_attention() {
    let page = html(&whole());
    for phase in whole().phases {
        assert!(page.contains(phase.name.name()), "{}", phase.name.name());
    }
    for text in [
        "blackout ±",
        "Where the blackout went",
        "guest-b",
        "Clocks",
        "EEXIST",
        "What the policy said",
        "would-deny",
        "small ones",
        "&lt;b&gt;no bad ones",
        "the kernel (BPF LSM)",
        "and 2 more",
    ] {
        assert!(page.contains(text), "{text}");
    }
    assert!(!page.contains("Needs attention"));
    assert!(html(&hostile()).contains("Needs attention"));
}

#[test]
fn a_page_of_a_hundred_thousand_files_lists_the_slowest_and_sums_the_rest() {
    let mut report = whole();
    let file = report.sessions[0].files[0].clone();
    report.sessions[0].files = (0..100_000)
        .map(|token| {
            let mut file = file.clone();
            file.token = token;
            file.restore_ns = Some(token);
            file
        })
        .collect();
    let page = html(&report);
    assert!(page.contains("files more"));
    assert!(page.contains("<code>0x1869f</code>"), "the slowest");
    assert!(!page.contains("<code>0x5</code>"), "one of the fastest");
    assert!(page.len() < 200_000, "{} bytes", page.len());
}

/// What is on the tracks of a trace.
#[derive(Default)]
struct Drawn {
    tracks: BTreeMap<u64, String>,
    /// Of each its track, its name, its beginning and its length.
    slices: Vec<(String, String, u64, u64)>,
    instants: usize,
}

/// What Perfetto asks of a trace: every track is described before its events, times go forward, and on each track
/// the slices that are begun are ended, one within the other.
fn checked(report: &Report) -> Drawn {
    let decoded = Trace::decode(perfetto(report).as_slice()).expect("a trace");
    let mut drawn = Drawn::default();
    let mut open: BTreeMap<u64, Vec<(String, u64)>> = BTreeMap::new();
    let mut last = 0;
    for packet in decoded.packet {
        assert!(packet.trusted_packet_sequence_id.is_some());
        if let Some(track) = packet.track_descriptor {
            let parent = track.parent_uuid;
            assert!(parent.is_none_or(|parent| drawn.tracks.contains_key(&parent)));
            let uuid = track.uuid.expect("a uuid");
            let name = track.name.expect("a name");
            assert_eq!(drawn.tracks.insert(uuid, name), None);
        }
        let Some(event) = packet.track_event else {
            continue;
        };
        let now = packet.timestamp.expect("a time");
        assert!(now >= last, "{now} after {last}");
        last = now;
        let track = event.track_uuid.expect("a track");
        let on = drawn.tracks[&track].clone();
        let stack = open.entry(track).or_default();
        match event.r#type.expect("a type") {
            BEGIN => stack.push((event.name.expect("a name"), now)),
            END => {
                let (name, start) = stack.pop().expect("what was begun");
                drawn.slices.push((on, name, start, now - start));
            }
            INSTANT => drawn.instants += 1,
            other => panic!("type {other}"),
        }
    }
    assert!(open.values().all(Vec::is_empty), "{open:?}");
    drawn
}

#[test]
fn the_trace_has_every_phase_part_and_step_at_its_time_and_with_its_length() {
    let report = whole();
    let Drawn {
        tracks,
        slices,
        instants,
    } = checked(&report);
    let has = |track: &str, name: &str, start: Option<u64>, ns: Option<u64>| {
        let (start, ns) = (start.expect("known"), ns.expect("known"));
        assert!(
            slices.contains(&(track.to_owned(), name.to_owned(), start, ns)),
            "{track} {name} {start} {ns}: {slices:?}"
        );
    };
    for phase in &report.phases {
        has("phases", phase.name.name(), phase.start_ns, phase.ns);
        for part in &phase.parts {
            has("phases", part.name.name(), part.start_ns, part.ns);
        }
    }
    let blackout = report.blackout.as_ref().expect("known");
    has("blackout", "blackout", blackout.start_ns, Some(blackout.ns));
    let unseen = report.unseen.expect("known");
    has("kernels", "unseen", Some(unseen.start_ns), Some(unseen.ns));
    let mut files = 0;
    for session in &report.sessions {
        let name = format!("session {}", session.name.as_deref().expect("a name"));
        assert!(tracks.values().any(|track| *track == name));
        has(&name, "freeze", session.freeze_start_ns, session.freeze_ns);
        has(&name, "finish", session.finish_start_ns, session.finish_ns);
        for file in &session.files {
            files += 1;
            let named = |track: &&String| track.starts_with(&format!("{:#x} ", file.token));
            assert!(tracks.values().any(|track| named(&track)));
            for (step, start, ns) in [
                ("preserve", file.preserve_start_ns, file.preserve_ns),
                ("freeze", file.freeze_start_ns, file.freeze_ns),
                ("restore", file.restore_start_ns, file.restore_ns),
            ] {
                let found = slices.iter().any(|(_, name, at, took)| {
                    name == step && Some(*at) == start && Some(*took) == ns
                });
                assert!(found, "{step} of {file:?}");
            }
        }
    }
    let verdicts: usize = report.verdicts.iter().map(|it| it.at_ns.len()).sum();
    assert!(files > 2 && verdicts > 2 && instants == verdicts);
    assert!(tracks.values().any(|track| track == "verdicts"));
    assert_eq!(checked(&hostile()).instants, verdicts + 1);
}

#[test]
fn a_trace_of_what_is_not_known_is_still_one() {
    let mut report = whole();
    for phase in &mut report.phases {
        (phase.start_ns, phase.known) = (None, false);
        phase.parts.clear();
    }
    report.blackout = None;
    report.unseen = None;
    report.began_realtime_ns = None;
    let slices = checked(&report).slices;
    assert!(
        slices
            .iter()
            .all(|(track, ..)| track != "phases" && track != "kernels")
    );
    assert!(html(&report).contains("No phase was seen"));
}
