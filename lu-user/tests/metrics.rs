//! The metrics over HTTP: three formats, each read by a parser that forgives nothing, whatever sessions, rules and
//! threads are called.

#![expect(
    clippy::float_cmp,
    reason = "these are counts, or the very same number"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use lu_common::event::{
    FileKind, Kind, Record, RuleName, Section, SessionName, flags, known, session_id,
};
use lu_common::policy::{Decision, Judged, Operation};
use lu_common::uapi::sessions;
use lu_user::collect::Losses;
use lu_user::export::Report;
use lu_user::metrics::Metrics;
use lu_user::metrics::catalogue::{self, Label, RULE_NAMES, Type, Unit, Values};
use lu_user::metrics::serve::{Error, Listener};
use lu_user::timeline::Timeline;
use prometheus_client::encoding::prometheus_protobuf::prometheus_data_model as model;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use prost::Message as _;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0";
const TEXT: &str = "text/plain; version=0.0.4";
const PROTOBUF: &str =
    "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";

/// Metrics behind a server.
struct Site {
    metrics: Metrics,
    timeline: Timeline,
    now: u64,
    address: SocketAddr,
}

/// What a server answers.
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("UTF-8")
    }
}

impl Site {
    fn new() -> Self {
        let metrics = Metrics::new("6.19.0-\"test\"\\\n", Path::new("/nowhere"));
        let listener = Listener::bind(([127, 0, 0, 1], 0).into()).expect("bound");
        let address = listener.address().expect("an address");
        listener.serve(&metrics).expect("served");
        Self {
            metrics,
            timeline: Timeline::new(),
            now: 1_000_000,
            address,
        }
    }

    fn ask(&self, request: &str) -> Answer {
        let mut stream = TcpStream::connect(self.address).expect("connected");
        stream.write_all(request.as_bytes()).expect("sent");
        let mut all = Vec::new();
        stream.read_to_end(&mut all).expect("an answer");
        let end = all
            .windows(4)
            .position(|it| it == b"\r\n\r\n")
            .expect("a head");
        let head = String::from_utf8(all[..end].to_vec())
            .expect("UTF-8")
            .to_lowercase();
        let status = head.split(' ').nth(1).and_then(|it| it.parse().ok());
        Answer {
            status: status.expect("a status"),
            head,
            body: all[end + 4..].to_vec(),
        }
    }

    fn get(&self, path: &str, accept: &str) -> Answer {
        self.ask(&format!(
            "GET {path} HTTP/1.1\r\nHost: lu\r\nAccept: {accept}\r\nConnection: close\r\n\r\n"
        ))
    }

    /// The series by both texts, which must tell the same.
    fn series(&self) -> BTreeMap<String, f64> {
        let open = self.get("/metrics", OPENMETRICS);
        assert!(
            open.head
                .contains("content-type: application/openmetrics-text; version=1.0.0")
        );
        let open = parsed(open.text(), true);
        let text = self.get("/metrics", TEXT);
        assert!(
            text.head
                .contains("content-type: text/plain; version=0.0.4")
        );
        let text = parsed(text.text(), false);
        let names = |series: &BTreeMap<String, f64>| series.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&open), names(&text));
        text
    }

    fn value(&self, series: &str) -> f64 {
        let all = self.series();
        let found = all.get(series);
        *found.unwrap_or_else(|| panic!("no {series} among {:#?}", all.keys()))
    }

    fn push(&mut self, kind: Kind, fill: impl FnOnce(&mut Record)) {
        let mut record = Record::default();
        record.header.t_ns = self.now;
        record.header.dur_ns = 2_000;
        record.header.kind = kind as u8;
        record.header.flags = flags::EXIT | flags::EMULATED | flags::TASK | flags::SESSIONS;
        fill(&mut record);
        self.now += 10_000;
        self.take(&record);
    }

    fn take(&mut self, record: &Record) {
        let before = self.timeline.ended();
        self.metrics.push(record);
        self.timeline.push(record);
        for update in self.timeline.ended_since(before) {
            self.metrics.ended(&Report::from(update));
        }
    }

    fn name(&mut self, name: &SessionName) {
        let record = Record::made(Kind::Name, self.now, *name);
        self.take(&record);
    }

    fn call(&mut self, kind: Kind, cmd: u32, session: u64, ret: i32) {
        self.push(kind, |record| {
            record.header.ret = ret;
            record.call.session = session;
            record.call.cmd = cmd;
            record.call.token = 7;
            record.call.file_kind = FileKind::Memfd as u16;
            record.call.bytes = 4096;
            record.call.known = known::SESSION | known::CMD | known::TOKEN | known::FILE;
        });
    }

    /// A whole update of one session.
    fn update(&mut self, name: &SessionName) {
        let id = session_id(name);
        self.name(name);
        self.call(Kind::SessionCreate, sessions::CREATE_SESSION, id, 0);
        self.call(Kind::Preserve, sessions::PRESERVE_FD, id, 0);
        self.push(Kind::Kexec, |record| record.header.flags &= !flags::EXIT);
        self.call(Kind::SessionFreeze, 0, id, 0);
        self.push(Kind::Freeze, |_| {});
        self.push(Kind::Jump, |record| record.header.flags &= !flags::EXIT);
        self.now += 500_000_000;
        self.push(Kind::Boot, |_| {});
        self.call(Kind::SessionRetrieve, sessions::RETRIEVE_SESSION, id, 0);
        self.call(Kind::Restore, sessions::RETRIEVE_FD, id, 0);
        self.call(Kind::SessionFinish, 0, id, 0);
    }

    fn verdict(&mut self, generation: u64, rule: u8, decision: Decision) {
        let judged = Judged {
            generation,
            rule,
            operation: Operation::Preserve as u8,
            decision: decision as u8,
            ..Judged::default()
        };
        let record = Record::made(Kind::Verdict, self.now, zerocopy::transmute!(judged));
        self.take(&record);
    }

    fn rule(&mut self, generation: u64, number: u8, name: &str) {
        let rule = RuleName::new(generation, number, Section::Access, true, name);
        let record = Record::made(Kind::Rule, self.now, zerocopy::transmute!(rule));
        self.take(&record);
    }
}

/// Every series of a text with its value. Whatever the format forbids is a failure.
fn parsed(text: &str, open: bool) -> BTreeMap<String, f64> {
    let mut all = BTreeMap::new();
    let mut families = BTreeSet::new();
    let (mut family, mut kind, mut told) = (String::new(), String::new(), Vec::new());
    let body = if open {
        text.strip_suffix("# EOF\n").expect("the end")
    } else {
        text
    };
    assert!(body.ends_with('\n'));
    for line in body.lines() {
        assert!(!line.is_empty() && !line.contains('\r'), "{line:?}");
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            let [what, name, rest] = [(); 3].map(|()| words.next().expect("three words"));
            if name != family {
                name.clone_into(&mut family);
                assert!(families.insert(family.clone()), "{family} is there twice");
                (kind, told) = (String::new(), Vec::new());
            }
            assert!(!told.contains(&what.to_owned()), "{line}");
            told.push(what.to_owned());
            match what {
                "HELP" => assert!(!rest.is_empty(), "{line}"),
                "TYPE" => {
                    let info = ["counter", "gauge", "histogram"].contains(&rest);
                    assert!(info || open && rest == "info", "{line}");
                    rest.clone_into(&mut kind);
                }
                "UNIT" => assert!(open && name.ends_with(&format!("_{rest}")), "{line}"),
                other => panic!("# {other}"),
            }
            continue;
        }
        let (series, value) = sample(line);
        let name = series.split('{').next().unwrap_or_default();
        let end = name
            .strip_prefix(&*family)
            .unwrap_or_else(|| panic!("{name} under {family}"));
        let fits = match &*kind {
            "counter" => end == if open { "_total" } else { "" },
            "info" => end == "_info",
            "histogram" => ["_bucket", "_sum", "_count"].contains(&end),
            _ => end.is_empty(),
        };
        assert!(fits, "{line} in {family} of type {kind}");
        if kind == "counter" {
            assert!(value >= 0.0 && name.ends_with("_total"), "{line}");
        }
        assert!(all.insert(series, value).is_none(), "{line} is there twice");
    }
    histograms(&all);
    all
}

/// A line: the series, its labels in order, and the value.
fn sample(line: &str) -> (String, f64) {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let end = line.find(|c| !plain(c)).expect("more than a name");
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            let (label, after) = rest.split_once("=\"").expect("a label");
            assert!(!label.is_empty() && label.chars().all(plain), "{line}");
            let mut chars = after.char_indices();
            let mut value = String::new();
            let end = loop {
                match chars.next().expect("the end of a value") {
                    (at, '"') => break at,
                    (_, '\\') => match chars.next().expect("an escape").1 {
                        'n' => value.push('\n'),
                        c @ ('\\' | '"') => value.push(c),
                        c => panic!("\\{c} in {line}"),
                    },
                    (_, c) => value.push(c),
                }
            };
            if label == "le" && value != "+Inf" {
                // OpenMetrics writes 1.0 where the other text has 1.
                value = value.parse::<f64>().expect("a number").to_string();
            }
            assert!(labels.insert(label.to_owned(), value).is_none(), "{line}");
            rest = &after[end + 1..];
            match rest.strip_prefix(',') {
                Some(more) => rest = more,
                None => break,
            }
        }
        rest = rest.strip_prefix('}').expect("the end of the labels");
    }
    let value = rest.strip_prefix(' ').expect("a value");
    assert!(!value.contains(' '), "{line}");
    let value = match value {
        "+Inf" => f64::INFINITY,
        "NaN" => f64::NAN,
        value => value.parse().unwrap_or_else(|_| panic!("{line}")),
    };
    let labels: Vec<_> = labels.iter().map(|(k, v)| format!("{k}={v:?}")).collect();
    (format!("{name}{{{}}}", labels.join(",")), value)
}

/// Buckets grow, and the last one counts all.
fn histograms(all: &BTreeMap<String, f64>) {
    let mut buckets: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for (series, value) in all {
        let Some((name, labels)) = series.split_once("_bucket{") else {
            continue;
        };
        let labels = labels.trim_end_matches('}');
        let mut of = String::new();
        let mut end = None;
        for label in labels.split(',') {
            if let Some(le) = label.strip_prefix("le=\"") {
                end = le.trim_end_matches('"').replace("+Inf", "inf").parse().ok();
                continue;
            }
            if !of.is_empty() {
                of.push(',');
            }
            of.push_str(label);
        }
        let of = format!("{name}_count{{{of}}}");
        buckets
            .entry(of)
            .or_default()
            .push((end.expect("an end"), *value));
    }
    assert!(!buckets.is_empty());
    for (count, mut buckets) in buckets {
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        assert!(
            buckets.windows(2).all(|two| two[0].1 <= two[1].1),
            "{count}"
        );
        let last = buckets.last().expect("buckets");
        assert_eq!(last.0, f64::INFINITY, "{count}");
        assert_eq!(Some(&last.1), all.get(&count), "{count}");
    }
}

fn families(mut bytes: &[u8]) -> Vec<model::MetricFamily> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        all.push(model::MetricFamily::decode_length_delimited(&mut bytes).expect("a family"));
    }
    all
}

fn named(name: &[u8]) -> SessionName {
    let mut bytes = [0; 64];
    let length = name.len().min(63);
    bytes[..length].copy_from_slice(&name[..length]);
    bytes
}

#[test]
fn every_metric_of_the_catalogue_is_there_from_the_start_with_every_value_of_its_labels() {
    let site = Site::new();
    let all = site.series();
    for metric in catalogue::ALL {
        let mut combinations = 1;
        for label in metric.labels {
            combinations *= match label.values() {
                Values::Closed(values) => values.len(),
                Values::Rules => 2,
                Values::One => 1,
            };
        }
        for name in metric.all_series() {
            let of_metric = all
                .keys()
                .filter(|series| series.starts_with(&format!("{name}{{")));
            let ends = match metric.kind {
                Type::Histogram(buckets) if name.ends_with("_bucket") => buckets.ends().len() + 1,
                _ => 1,
            };
            assert_eq!(of_metric.count(), combinations * ends, "{name}");
        }
    }
    let known: BTreeSet<_> = catalogue::ALL
        .iter()
        .flat_map(catalogue::Metric::all_series)
        .collect();
    for series in all.keys() {
        let name = series.split('{').next().unwrap_or_default();
        assert!(known.contains(name), "{series} is in no catalogue");
    }
}

#[test]
fn help_type_and_unit_are_the_catalogues() {
    let answer = Site::new().get("/metrics", OPENMETRICS);
    let text = answer.text();
    for metric in catalogue::ALL {
        let kind = match metric.kind {
            Type::Counter => "counter",
            Type::Gauge => "gauge",
            Type::Info => "info",
            Type::Histogram(_) => "histogram",
        };
        let name = metric.name;
        assert!(text.contains(&format!("# TYPE {name} {kind}\n")), "{name}");
        assert!(
            text.contains(&format!("# HELP {name} {}\n", metric.help)),
            "{name}"
        );
        if metric.unit != Unit::None {
            assert!(
                text.contains(&format!("# UNIT {name} {}\n", metric.unit.name())),
                "{name}"
            );
        }
    }
}

#[test]
fn a_whole_update_is_counted_once_and_in_every_format() {
    let mut site = Site::new();
    site.metrics.updated(&site.timeline);
    assert!(site.value("lu_last_blackout_seconds{}").is_nan());
    site.update(&named(b"vm-1"));
    site.metrics.updated(&site.timeline);
    let all = site.series();
    for (series, value) in [
        ("lu_updates_total{outcome=\"finished\"}", 1.0),
        ("lu_update_number{}", 1.0),
        (
            "lu_operations_total{errno=\"none\",operation=\"preserve\"}",
            1.0,
        ),
        (
            "lu_operation_duration_seconds_count{operation=\"preserve\",result=\"ok\"}",
            1.0,
        ),
        ("lu_files_total{outcome=\"restored\"}", 1.0),
        ("lu_sessions_total{outcome=\"finished\"}", 1.0),
        ("lu_update_files{kind=\"memfd\",outcome=\"restored\"}", 1.0),
        (
            "lu_update_size_bytes{kind=\"memfd\",outcome=\"restored\"}",
            4096.0,
        ),
        ("lu_update_phase{phase=\"restore\"}", 0.0),
        ("lu_freezes_total{result=\"ok\"}", 1.0),
        ("lu_blackout_seconds_count{}", 1.0),
        ("lu_last_blackout_clock{clock=\"monotonic\"}", 1.0),
        ("lu_events_total{event=\"kexec\"}", 1.0),
    ] {
        assert_eq!(all.get(series), Some(&value), "{series}");
    }
    let blackout = all["lu_last_blackout_seconds{}"];
    assert!((0.5..0.6).contains(&blackout), "{blackout}");
    assert_eq!(all["lu_blackout_seconds_sum{}"], blackout);

    let answer = site.get("/metrics", PROTOBUF);
    assert!(answer.head.contains("application/vnd.google.protobuf"));
    let families = families(&answer.body);
    let find = |name: &str| {
        families
            .iter()
            .find(|family| family.name == name)
            .expect("a family")
    };
    for metric in catalogue::ALL {
        let name = match metric.kind {
            Type::Counter | Type::Info => metric.series(),
            _ => metric.name.to_owned(),
        };
        assert!(!find(&name).metric.is_empty(), "{name}");
    }
    let histogram = find("lu_blackout_seconds").metric[0]
        .histogram
        .as_ref()
        .expect("a histogram");
    assert_eq!(histogram.sample_count, 1);
    assert_eq!(histogram.positive_delta, [1], "natively too");
    assert!(!histogram.bucket.is_empty());
}

#[test]
fn hostile_names_break_no_line_and_add_no_series() {
    let site = Site::new();
    site.metrics.updated(&site.timeline);
    let before = site.series().len();
    let mut runner = TestRunner::new(Config {
        cases: 64,
        failure_persistence: None,
        ..Config::default()
    });
    let names = (prop::collection::vec(any::<u8>(), 1..64), any::<[u8; 16]>());
    let site = std::cell::RefCell::new(site);
    runner
        .run(&names, |(session, comm)| {
            let mut site = site.borrow_mut();
            let hostile: &[u8] = b"a\"} 1\nlu_evil{b=\"\\";
            for name in [named(&session), named(hostile)] {
                site.update(&name);
                site.push(Kind::Open, |record| record.header.comm = comm);
            }
            let Site {
                metrics, timeline, ..
            } = &*site;
            metrics.updated(timeline);
            prop_assert_eq!(site.series().len(), before);
            Ok(())
        })
        .expect("no series more");
}

#[test]
fn ten_thousand_sessions_leave_as_many_series_as_there_were() {
    let mut site = Site::new();
    site.metrics.updated(&site.timeline);
    let before: Vec<_> = site.series().into_keys().collect();
    for number in 0..10_000_u32 {
        let random = number.wrapping_mul(0x9e37_79b9) ^ 0x5bd1_e995;
        site.update(&named(format!("vm-{random:x}").as_bytes()));
    }
    site.metrics.updated(&site.timeline);
    let after = site.series();
    assert_eq!(after["lu_updates_total{outcome=\"finished\"}"], 10_000.0);
    assert_eq!(after.into_keys().collect::<Vec<_>>(), before);
}

#[test]
fn rules_have_series_of_their_own_as_far_as_there_is_room() {
    let mut site = Site::new();
    let hostile = "no \"big\"\\ files}";
    site.rule(1, 3, hostile);
    site.verdict(1, 3, Decision::Deny);
    site.verdict(1, 9, Decision::Deny);
    site.verdict(1, u8::MAX, Decision::WouldDeny);
    let of = |rule: &str, decision: &str| {
        format!("lu_verdicts_total{{decision=\"{decision}\",rule={rule:?}}}")
    };
    assert_eq!(site.value(&of(hostile, "deny")), 1.0);
    assert_eq!(
        site.value(&of("(other)", "deny")),
        1.0,
        "its name was not seen"
    );
    assert_eq!(site.value(&of("(none)", "would-deny")), 1.0);
    assert_eq!(
        site.value("lu_judged_requests_total{decision=\"deny\",operation=\"preserve\"}"),
        2.0
    );
    for generation in 2..102 {
        for number in 0..4 {
            site.rule(generation, number, &format!("rule {generation}-{number}"));
            site.verdict(generation, number, Decision::Deny);
        }
    }
    let all = site.series();
    let rules = all
        .keys()
        .filter(|series| series.starts_with("lu_verdicts_total{"))
        .count();
    assert_eq!(rules, (RULE_NAMES + 2) * Decision::ALL.len());
    let denied: f64 = all
        .iter()
        .filter(|(series, _)| series.starts_with("lu_verdicts_total{decision=\"deny\""))
        .map(|(_, value)| value)
        .sum();
    assert_eq!(denied, 402.0, "none is lost");
    // A generation that is over has given its numbers back.
    site.verdict(1, 3, Decision::Deny);
    assert_eq!(site.value(&of(hostile, "deny")), 1.0);
}

#[test]
fn every_errno_and_every_call_has_its_series() {
    let mut site = Site::new();
    site.metrics.updated(&site.timeline);
    let before = site.series().len();
    for ret in -200..=0 {
        for number in 0..=255 {
            site.call(
                Kind::Ioctl,
                sessions::CREATE_SESSION & !0xff | number,
                1,
                ret,
            );
        }
    }
    let all = site.series();
    assert_eq!(all.len(), before);
    let sum: f64 = all
        .iter()
        .filter(|(series, _)| series.starts_with("lu_operations_total{"))
        .map(|(_, value)| value)
        .sum();
    assert_eq!(sum, 201.0 * 256.0);
    assert_eq!(
        all["lu_operations_total{errno=\"EBUSY\",operation=\"create-session\"}"],
        1.0
    );
}

#[test]
fn losses_are_counted_by_their_reason_and_only_once() {
    let mut site = Site::new();
    let losses = Losses {
        ring_full: 3,
        no_entry: 0,
        skipped: 2,
        bad_read: 1,
    };
    for _ in 0..3 {
        site.metrics.losses(losses);
    }
    let Values::Closed(reasons) = Label::Reason.values() else {
        panic!("a closed set");
    };
    for (reason, count) in reasons.iter().zip([3.0, 0.0, 2.0, 1.0]) {
        assert_eq!(
            site.value(&format!("lu_events_lost_total{{reason={reason:?}}}")),
            count
        );
    }
}

#[test]
fn only_what_is_there_can_be_got_and_nothing_else_can_be_done() {
    let site = Site::new();
    for (path, status) in [
        ("/", 200),
        ("/metrics", 200),
        ("/healthz", 503),
        ("/readyz", 503),
        ("/x", 404),
    ] {
        assert_eq!(site.get(path, "*/*").status, status, "{path}");
        let head = site.ask(&format!(
            "HEAD {path} HTTP/1.1\r\nHost: lu\r\nConnection: close\r\n\r\n"
        ));
        assert_eq!((head.status, head.body.len()), (status, 0), "{path}");
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "LU"] {
        let answer = site.ask(&format!(
            "{method} /metrics HTTP/1.1\r\nHost: lu\r\nConnection: close\r\n\r\n"
        ));
        assert_eq!(answer.status, 405, "{method}");
        assert!(answer.head.contains("allow: get, head"), "{}", answer.head);
    }
    site.metrics.turn();
    assert_eq!(site.get("/healthz", "*/*").status, 200);
    assert!(site.get("/", "*/*").text().contains("href=\"/metrics\""));
    assert!(
        site.get("/readyz", "*/*")
            .text()
            .contains("NOT hooks are attached")
    );
}

#[test]
fn the_scraper_gets_the_format_that_it_likes_best() {
    let site = Site::new();
    // What Prometheus 2.42 sends, with native histograms and without.
    let without = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                   text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    let with = format!(
        "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,{without}"
    );
    for (accept, kind) in [
        (without, "application/openmetrics-text"),
        (&*with, "application/vnd.google.protobuf"),
        ("", "text/plain"),
        ("*/*", "text/plain"),
        ("text/html, application/json", "text/plain"),
        ("application/openmetrics-text;version=9.0.0", "text/plain"),
        (
            "application/openmetrics-text;q=0.2, text/plain;q=0.3",
            "text/plain",
        ),
        ("application/openmetrics-text;q=nonsense", "text/plain"),
        (
            "application/vnd.google.protobuf;proto=something.Else;encoding=delimited",
            "text/plain",
        ),
    ] {
        let answer = site.get("/metrics", accept);
        assert!(
            answer.head.contains(&format!("content-type: {kind}")),
            "{accept}: {}",
            answer.head
        );
    }
}

#[test]
fn whoever_holds_connections_open_keeps_nobody_out_for_long_and_nonsense_ends_nothing() {
    let site = Site::new();
    let idle: Vec<_> = (0..100)
        .map(|_| TcpStream::connect(site.address).expect("connected"))
        .collect();
    // Those that found no room were closed at once.
    let mut closed = 0;
    for mut stream in idle {
        stream
            .set_read_timeout(Some(Duration::from_millis(200)))
            .expect("set");
        if stream.read(&mut [0]).is_ok_and(|bytes| bytes == 0) {
            closed += 1;
        }
    }
    assert!(closed >= 60, "{closed} of 100");
    for nonsense in ["\r\n\r\n", "GET\0/ HTTP/9\r\n\r\n", &"x".repeat(100_000)] {
        let mut stream = TcpStream::connect(site.address).expect("connected");
        let _ = stream.write_all(nonsense.as_bytes());
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    assert_eq!(site.get("/metrics", TEXT).status, 200);
    assert!(site.value("lu_export_refused_connections_total{}") >= f64::from(closed));
}

#[test]
fn a_port_that_is_taken_is_said_to_be() {
    let other = TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = other.local_addr().expect("an address");
    let Err(error @ Error::Bind(..)) = Listener::bind(address) else {
        panic!("taken twice");
    };
    let text = error.to_string();
    assert!(
        text.contains(&address.to_string()) && text.contains("--export"),
        "{text}"
    );
}
