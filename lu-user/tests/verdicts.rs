//! What a policy says: in the timeline, in reports, and what the gate makes of what was seen.

use lu_common::event::{Kind, Record, RuleName, Section, SessionName, flags, known, session_id};
use lu_common::policy::{Attribute, Decision, Judged, Operation, tampered};
use lu_user::export::{AttentionKind, Report, waterfall};
use lu_user::gate::{Gate, Journal, Machine, State};
use lu_user::policy::{self, Source};
use lu_user::timeline::{Enforcer, Timeline};
use nix::errno::Errno;

/// Builds streams of events of the kernel's sessions interface.
#[derive(Default)]
struct Story {
    now: u64,
    timeline: Timeline,
}

impl Story {
    fn push(&mut self, kind: Kind, fill: impl FnOnce(&mut Record)) -> &mut Self {
        let mut record = Record::default();
        self.now += 1_000;
        record.header.t_ns = self.now;
        record.header.kind = kind as u8;
        record.header.flags = flags::EXIT | flags::SESSIONS | flags::TASK;
        record.header.pid = 7;
        record.header.comm[..3].copy_from_slice(b"vmm");
        fill(&mut record);
        self.timeline.push(&record);
        self
    }

    fn named(&mut self, name: &str) -> &mut Self {
        let name = bytes(name);
        self.push(Kind::Name, |record| {
            record.call = zerocopy::transmute!(name);
        })
    }

    fn created(&mut self, name: &str) -> &mut Self {
        self.named(name).on(Kind::SessionCreate, name, None)
    }

    fn on(&mut self, kind: Kind, name: &str, token: Option<u64>) -> &mut Self {
        self.push(kind, |record| {
            record.call.session = session_id(&bytes(name));
            record.call.known = known::SESSION;
            if let Some(token) = token {
                record.call.token = token;
                record.call.known |= known::TOKEN;
            }
        })
    }

    fn rule(&mut self, number: u8, name: &str) -> &mut Self {
        let rule = RuleName::new(1, number, Section::Preserve, true, name);
        self.push(Kind::Rule, |record| {
            record.call = zerocopy::transmute!(rule);
        })
    }

    fn judged(&mut self, kind: Kind, judged: Judged) -> &mut Self {
        self.push(kind, |record| {
            record.header.flags &= !flags::EXIT;
            record.call = zerocopy::transmute!(judged);
        })
    }

    fn report(&self) -> Report {
        Report::from(self.timeline.latest().expect("an update"))
    }
}

fn bytes(name: &str) -> SessionName {
    let mut bytes = [0; 64];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    bytes
}

fn verdict(operation: Operation, decision: Decision, rule: u8) -> Judged {
    Judged {
        generation: 1,
        session: session_id(&bytes("vm-1")),
        token: 5,
        known: Attribute::Session.bit() | Attribute::Token.bit(),
        fd: -1,
        operation: operation as u8,
        decision: decision as u8,
        rule,
        errno: libc::EACCES as u8,
        ..Judged::default()
    }
}

#[test]
fn a_refused_request_begins_no_update_and_preserves_nothing() {
    let mut story = Story::default();
    let refused = verdict(Operation::Preserve, Decision::Deny, 0);
    story.judged(Kind::Verdict, refused);
    assert_eq!(story.timeline.updates().count(), 0);
    assert!(story.timeline.is_quiet());
    story.created("vm-1");
    let report = story.report();
    assert_eq!(report.sessions.len(), 1);
    assert!(report.sessions[0].files.is_empty());
    assert_eq!(
        report.verdicts[0].count, 1,
        "as errors, it counts into the next"
    );
    assert!(report.errors.is_empty());
}

#[test]
fn verdicts_are_counted_by_rule_and_decision_with_who_enforces() {
    let mut story = Story::default();
    story.created("vm-1").rule(0, "memfds").rule(1, "others");
    for _ in 0..3 {
        story.judged(
            Kind::Verdict,
            verdict(Operation::Preserve, Decision::Deny, 0),
        );
    }
    story
        .judged(
            Kind::Verdict,
            verdict(Operation::Preserve, Decision::WouldDeny, 1),
        )
        .judged(
            Kind::Verdict,
            verdict(Operation::Preserve, Decision::Deny, 9),
        );
    let report = story.report();
    let counted: Vec<(&str, &str, u64)> = report
        .verdicts
        .iter()
        .map(|it| (it.rule.as_deref().expect("a rule"), &*it.decision, it.count))
        .collect();
    assert_eq!(
        counted,
        [
            ("others", "would-deny", 1),
            ("#9", "deny", 1),
            ("memfds", "deny", 3)
        ]
    );
    assert_eq!(report.verdicts[0].enforced_by, Enforcer::Kernel);
    let denied = &report.attention[1];
    assert_eq!((denied.kind, denied.count), (AttentionKind::Denied, 3));
    assert_eq!(denied.errno.as_deref(), Some("EACCES"));
    for text in [
        "vmm (pid 7)",
        "session vm-1",
        "\"memfds\"",
        "the kernel (BPF LSM)",
    ] {
        assert!(denied.text.contains(text), "{text}: {}", denied.text);
    }
    let would = report
        .attention
        .iter()
        .any(|one| one.text.contains("others"));
    assert!(!would, "it went on");
    let text = waterfall(&report, 100);
    assert!(text.contains("enforced by the kernel (BPF LSM)"), "{text}");
}

#[test]
fn what_got_around_the_policy_is_the_gravest_and_the_emulators_verdicts_are_its_own() {
    let mut story = Story::default();
    story.created("vm-1");
    let mut got_through = verdict(Operation::Preserve, Decision::Allow, u8::MAX);
    got_through.differs = tampered::TOKEN | tampered::FILE;
    story.judged(
        Kind::Verdict,
        verdict(Operation::Preserve, Decision::Deny, 0),
    );
    story.judged(Kind::Tampered, got_through);
    story.push(Kind::Verdict, |record| {
        record.header.flags |= flags::EMULATED;
        record.call = zerocopy::transmute!(verdict(Operation::Create, Decision::Deny, 0));
    });
    story.on(Kind::Preserve, "vm-1", Some(1));
    story.on(Kind::SessionUnpreserve, "vm-1", None);
    let report = story.report();
    let first = &report.attention[0];
    assert_eq!(first.kind, AttentionKind::Tampered);
    assert!(first.text.contains("(token, file)"), "{}", first.text);
    let enforcers = report.verdicts.iter().map(|it| it.enforced_by);
    assert!(enforcers.clone().any(|it| it == Enforcer::Emulated));
    let text = waterfall(&report, 100);
    for enforcer in ["the kernel (BPF LSM)", "the emulated orchestrator"] {
        assert!(text.contains(enforcer), "{text}");
    }
}

#[test]
fn times_are_remembered_for_a_hundred_and_sorts_for_a_thousand() {
    let mut story = Story::default();
    story.created("vm-1");
    for number in 0..5_000_u64 {
        let mut refused = verdict(Operation::Create, Decision::Deny, 0);
        refused.session = if number < 200 { 1 } else { number };
        story.judged(Kind::Verdict, refused);
    }
    let report = story.report();
    assert_eq!(report.verdicts.len(), 1000);
    assert!(report.verdicts.iter().all(|it| it.at_ns.len() <= 100));
    let counted: u64 = report.verdicts.iter().map(|it| it.count).sum();
    assert_eq!(counted + report.verdicts_left_out, 5_000);
}

const POLICY: &str = r#"
version = 1
mode = "enforce"

[[require]]
name = "the memory"
session = "vm-1"
tokens = [1, 2]
before = "kexec"
on_error = "deny"

[[require]]
name = "whatever"
session = "vm-2"
files = 1
before = "kexec"

[[gate]]
name = "none lost"
condition = "no-lost-session"
mode = "monitor"

[[gate]]
name = "image"
condition = "image-loaded"
"#;

/// Of each condition about the policy: its rule, whether it is met, and whether it holds nothing up.
fn held(story: &Story) -> (bool, Vec<(String, State, bool)>) {
    let source = Source::parse("policy", POLICY).expect("a policy");
    let compiled = policy::compile(&source, &policy::Machine).expect("a policy");
    let gate = Gate::new(
        &ready(),
        &Journal::Current(&story.timeline),
        Some((&source, &compiled)),
    );
    let of_policy = gate
        .conditions
        .into_iter()
        .filter_map(|one| Some((one.rule?, one.state, one.ready)))
        .collect();
    (gate.ready, of_policy)
}

fn ready() -> Machine {
    Machine {
        in_kernel: true,
        image_loaded: Some(true),
        opened: Some(Ok(())),
    }
}

fn owned(all: &[(&str, State, bool)]) -> Vec<(String, State, bool)> {
    all.iter()
        .map(|(rule, state, ready)| ((*rule).to_owned(), *state, *ready))
        .collect()
}

#[test]
fn the_gate_knows_what_was_seen_and_nothing_else() {
    use State::{Met, NotMet, Unknown};
    let mut story = Story::default();
    story.created("vm-1").on(Kind::Preserve, "vm-1", Some(1));
    // Of vm-2 nothing was seen; that rule says that it may go on then.
    let (is_ready, conditions) = held(&story);
    assert!(!is_ready);
    let mut wanted = owned(&[
        ("the memory", Met, true),
        ("the memory", NotMet, false),
        ("whatever", Unknown, true),
        ("none lost", Met, true),
        ("image", Met, true),
    ]);
    assert_eq!(conditions, wanted);
    story.on(Kind::Preserve, "vm-1", Some(2));
    wanted[1] = ("the memory".into(), Met, true);
    assert_eq!(held(&story), (true, wanted.clone()));
    // A session that lu did not see created may have more files than lu has seen.
    story.named("vm-2").on(Kind::Preserve, "vm-2", Some(7));
    wanted[3] = ("none lost".into(), Unknown, true);
    assert_eq!(held(&story), (true, wanted.clone()));
    // What was lost may have been the end of any session.
    story.push(Kind::Lost, |record| record.call.bytes = 1);
    for condition in &mut wanted[..2] {
        *condition = ("the memory".into(), Unknown, false);
    }
    assert_eq!(held(&story), (false, wanted));
}

#[test]
fn a_session_that_was_closed_is_not_met_again_by_what_it_had() {
    use State::{Met, NotMet, Unknown};
    let mut story = Story::default();
    story
        .created("vm-1")
        .on(Kind::Preserve, "vm-1", Some(1))
        .on(Kind::Preserve, "vm-1", Some(2))
        .on(Kind::SessionUnpreserve, "vm-1", None);
    let (is_ready, conditions) = held(&story);
    assert!(!is_ready);
    let wanted = owned(&[
        ("the memory", Unknown, false),
        ("the memory", Unknown, false),
        ("whatever", Unknown, true),
        ("none lost", NotMet, true),
        ("image", Met, true),
    ]);
    assert_eq!(conditions, wanted);
}

#[test]
fn the_gate_always_asks_for_image_device_journal_and_attention() {
    let about = |gate: &Gate| {
        let not_ready = gate.conditions.iter().filter(|one| !one.ready);
        not_ready.map(|one| one.about).collect::<Vec<_>>()
    };
    let nothing = Timeline::new();
    let quiet = Journal::Current(&nothing);
    let gate = |machine: &Machine, journal: &Journal<'_>| Gate::new(machine, journal, None);
    assert!(gate(&ready(), &quiet).ready);
    for (image_loaded, opened, wanted) in [
        (Some(false), Ok(()), vec!["image"]),
        (None, Err(Errno::EBUSY), vec!["image", "device"]),
        (Some(true), Err(Errno::ENOENT), vec!["device"]),
    ] {
        let machine = Machine {
            image_loaded,
            opened: Some(opened),
            in_kernel: true,
        };
        assert_eq!(about(&gate(&machine, &quiet)), wanted);
    }
    let untried = Machine {
        opened: None,
        ..ready()
    };
    assert_eq!(gate(&untried, &quiet).conditions[1].state, State::Unknown);
    let mut held = Story::default();
    held.push(Kind::Open, |_| {});
    let held = gate(&untried, &Journal::Current(&held.timeline));
    assert_eq!(held.conditions[1].state, State::NotMet);
    let unknown = Journal::Unknown("there is none".into());
    assert_eq!(about(&gate(&ready(), &unknown)), ["journal"]);
    let mut story = Story::default();
    story.created("vm-1").on(Kind::Preserve, "vm-1", Some(1));
    story.judged(Kind::Verdict, verdict(Operation::Create, Decision::Deny, 0));
    let now = Journal::Current(&story.timeline);
    assert!(gate(&ready(), &now).ready, "a refusal does no harm");
    story.push(Kind::Freeze, |record| record.header.ret = -libc::EIO);
    let now = Journal::Current(&story.timeline);
    let answer = gate(&ready(), &now);
    assert_eq!(about(&answer), ["attention"]);
    let reason = &answer.conditions[3].reason;
    assert!(reason.starts_with("freeze-failed: "), "{reason}");
}
