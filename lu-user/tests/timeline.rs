//! The timeline fed with events: what it makes of updates that end well, badly, or unseen.

use lu_common::event::{
    Anchor, FileKind, Handover, Kind, Record, SessionName, flags, known, session_id,
};
use lu_common::uapi::v3;
use lu_user::export::{Report, waterfall};
use lu_user::timeline::clock::Clock;
use lu_user::timeline::{
    BlackoutStart, FileOutcome, FileSpan, Names, Outcome, PhaseName, SessionOutcome, Timeline,
    Update,
};
use proptest::prelude::*;

/// Builds streams of events, a microsecond for each call.
struct Story {
    now: u64,
    timeline: Timeline,
}

impl Story {
    fn new() -> Self {
        Self {
            now: 1_000_000,
            timeline: Timeline::new(),
        }
    }

    fn push(&mut self, kind: Kind, ret: i32, fill: impl FnOnce(&mut Record)) -> &mut Self {
        let mut record = Record::default();
        record.header.t_ns = self.now;
        record.header.dur_ns = 1_000;
        record.header.kind = kind as u8;
        record.header.flags = flags::EXIT | flags::EMULATED | flags::TASK;
        record.header.ret = ret;
        fill(&mut record);
        self.now += 2_000;
        self.timeline.push(&record);
        self
    }

    fn event(&mut self, kind: Kind, ret: i32) -> &mut Self {
        self.push(kind, ret, |_| {})
    }

    fn file(&mut self, kind: Kind, token: u64, ret: i32) -> &mut Self {
        self.push(kind, ret, |record| {
            record.call.token = token;
            record.call.bytes = 4096;
            record.call.file_kind = FileKind::Memfd as u16;
            record.call.known = known::TOKEN | known::FILE;
            let cmd = match kind {
                Kind::Preserve => v3::FD_PRESERVE,
                Kind::Unpreserve => v3::FD_UNPRESERVE,
                Kind::Restore => v3::FD_RESTORE,
                // No call of its own.
                _ => return,
            };
            record.call.cmd = cmd;
            record.call.known |= known::CMD;
        })
    }

    fn ioctl(&mut self, cmd: u32, ret: i32) -> &mut Self {
        self.push(Kind::Ioctl, ret, |record| {
            record.call.cmd = cmd;
            record.call.known = known::CMD;
        })
    }

    fn enter(&mut self, kind: Kind) -> &mut Self {
        self.push(kind, 0, |record| record.header.flags &= !flags::EXIT)
    }

    fn lose(&mut self, count: u64) -> &mut Self {
        self.push(Kind::Lost, 0, |record| record.call.bytes = count)
    }

    fn prepared(&mut self, tokens: &[u64]) -> &mut Self {
        for token in tokens {
            self.file(Kind::Preserve, *token, 0);
        }
        self.event(Kind::Prepare, 0)
    }

    fn rebooted(&mut self, tokens: &[u64]) -> &mut Self {
        self.enter(Kind::Reboot);
        for token in tokens {
            self.file(Kind::FileFreeze, *token, 0);
        }
        self.event(Kind::Freeze, 0)
            .event(Kind::Reboot, 0)
            .enter(Kind::Jump);
        self.now += 500_000_000;
        self.event(Kind::Boot, 0)
    }

    fn update(&self) -> &Update {
        self.timeline.latest().expect("an update")
    }
}

fn outcomes(update: &Update) -> Vec<(u64, FileOutcome)> {
    update
        .files()
        .map(|(_, token, file)| (token, file.outcome))
        .collect()
}

fn file(update: &Update, token: u64) -> FileSpan {
    let found = update.files().find(|(_, found, _)| *found == token);
    *found.expect("the file").2
}

#[test]
fn a_finished_update_has_every_phase_and_the_blackout_from_freeze_to_last_restore() {
    let mut story = Story::new();
    story.prepared(&[1, 2]).rebooted(&[1, 2]);
    story
        .file(Kind::Restore, 2, 0)
        .file(Kind::Restore, 1, 0)
        .event(Kind::Finish, 0);
    let update = story.update();
    assert_eq!(update.outcome, Outcome::Finished);
    assert!(update.emulated);
    let phases = update.phases();
    assert_eq!(
        phases.iter().map(|phase| phase.name).collect::<Vec<_>>(),
        PhaseName::ALL
    );
    assert!(phases.iter().all(lu_user::timeline::Phase::known));
    let start = |name: PhaseName| {
        let phase = phases.iter().find(|phase| phase.name == name);
        phase
            .and_then(|phase| Some((phase.start_ns?, phase.ns?)))
            .expect("known")
    };
    let (freeze, _) = start(PhaseName::Freeze);
    let (restore, took) = start(PhaseName::Restore);
    assert_eq!(
        update.blackout().expect("known").ns,
        restore + took - freeze
    );
    assert_eq!(
        outcomes(update),
        [(1, FileOutcome::Restored), (2, FileOutcome::Restored)]
    );
}

#[test]
fn there_is_no_blackout_before_the_last_file_is_back() {
    let mut story = Story::new();
    story
        .prepared(&[1, 2])
        .rebooted(&[1, 2])
        .file(Kind::Restore, 2, 0);
    assert_eq!(story.update().outcome, Outcome::InProgress);
    assert_eq!(story.update().blackout(), None);
    story.file(Kind::Restore, 1, 0);
    assert!(story.update().blackout().is_some());
}

#[test]
fn unclaimed_files_are_told_and_the_blackout_ends_with_what_was_restored() {
    let mut story = Story::new();
    story.prepared(&[1, 2]).rebooted(&[1, 2]);
    story.file(Kind::Restore, 2, 0).event(Kind::Finish, 0);
    assert_eq!(
        outcomes(story.update()),
        [(1, FileOutcome::Unclaimed), (2, FileOutcome::Restored)]
    );
    assert!(story.update().blackout().is_some());
}

#[test]
fn a_finish_without_any_restore_leaves_the_blackout_unknown() {
    let mut story = Story::new();
    story.prepared(&[1]).rebooted(&[1]).event(Kind::Finish, 0);
    assert_eq!(story.update().outcome, Outcome::Finished);
    assert_eq!(story.update().blackout(), None);
}

#[test]
fn a_cancelled_update_keeps_its_files_for_the_next_one() {
    let mut story = Story::new();
    story.prepared(&[1, 2]).event(Kind::Cancel, 0);
    assert_eq!(story.update().outcome, Outcome::Cancelled);
    story.event(Kind::Prepare, 0);
    assert_eq!(story.timeline.updates().count(), 2);
    assert_eq!(story.update().files().count(), 2);
    assert_eq!(story.update().number, 2);
}

#[test]
fn a_failed_freeze_aborts_and_names_the_file() {
    let mut story = Story::new();
    story.prepared(&[1, 2]).enter(Kind::Kexec);
    story
        .enter(Kind::Reboot)
        .file(Kind::FileFreeze, 1, 0)
        .file(Kind::FileFreeze, 2, -5);
    story
        .event(Kind::Freeze, -5)
        .event(Kind::Reboot, -5)
        .event(Kind::Kexec, -5);
    let update = story.update();
    assert_eq!(
        (update.outcome, update.failed_freezes),
        (Outcome::Aborted, 1)
    );
    assert_eq!(outcomes(update)[1], (2, FileOutcome::Failed));
    assert_eq!(update.errors[&("reboot", 5)], 1);
    assert_eq!(update.blackout(), None);
}

#[test]
fn a_kexec_without_prepare_loses_the_files() {
    let mut story = Story::new();
    story
        .file(Kind::Preserve, 1, 0)
        .enter(Kind::Kexec)
        .enter(Kind::Reboot)
        .event(Kind::Reboot, 0)
        .enter(Kind::Jump);
    assert_eq!(story.update().outcome, Outcome::Aborted);
    assert_eq!(outcomes(story.update()), [(1, FileOutcome::Lost)]);
}

#[test]
fn a_close_before_prepare_aborts_and_drops_the_files() {
    let mut story = Story::new();
    story.file(Kind::Preserve, 1, 0).event(Kind::Release, 0);
    assert_eq!(story.update().outcome, Outcome::Aborted);
    assert_eq!(outcomes(story.update()), [(1, FileOutcome::Dropped)]);
}

#[test]
fn what_happened_before_lu_was_there_is_unknown_and_not_zero() {
    let mut story = Story::new();
    story.file(Kind::Restore, 1, 0).event(Kind::Finish, 0);
    let update = story.update();
    assert_eq!(update.outcome, Outcome::Finished);
    assert_eq!(update.blackout(), None);
    let unknown: Vec<PhaseName> = update
        .phases()
        .iter()
        .filter(|phase| !phase.known())
        .map(|phase| phase.name)
        .collect();
    assert_eq!(
        unknown,
        [
            PhaseName::Prepare,
            PhaseName::Freeze,
            PhaseName::Shutdown,
            PhaseName::Boot
        ]
    );
    assert_eq!(file(update, 1).preserve_ns, None);
    let text = waterfall(&Report::from(update), 100);
    assert!(text.contains("blackout unknown"), "{text}");
}

#[test]
fn a_failed_call_is_counted_once_by_what_was_asked_for() {
    let mut story = Story::new();
    // An open that was refused before the update belongs to it.
    story.event(Kind::Open, -16).file(Kind::Preserve, 1, 0);
    // One comes to `luo_register_file`, the other is refused before.
    story
        .file(Kind::Preserve, 1, -17)
        .ioctl(v3::FD_PRESERVE, -17)
        .ioctl(0xBA99, -22);
    let errors: Vec<_> = story.update().errors.clone().into_iter().collect();
    assert_eq!(
        errors,
        [(("ioctl", 22), 1), (("open", 16), 1), (("preserve", 17), 2)]
    );
}

#[test]
fn a_file_is_preserved_where_only_the_answer_failed_and_not_where_only_the_answer_succeeded() {
    let mut story = Story::new();
    let mut preserve = |token, ret, inner_ret| {
        story.push(Kind::Preserve, ret, |record| {
            record.call.token = token;
            record.call.cmd = v3::FD_PRESERVE;
            record.call.inner_ret = inner_ret;
            record.call.known = known::TOKEN | known::CMD | known::INNER_RET;
        });
    };
    preserve(1, -14, 0);
    // One of the faults of v3's patch 16.
    preserve(2, 0, -12);
    assert_eq!(outcomes(story.update()), [(1, FileOutcome::Preserved)]);
    let errors: Vec<_> = story.update().errors.clone().into_iter().collect();
    assert_eq!(errors, [(("preserve", 14), 1)]);
}

#[test]
fn a_callback_that_knows_only_the_file_is_told_by_its_token() {
    let mut story = Story::new();
    let mut on = |kind, object, token: Option<u64>| {
        story.push(kind, 0, |record| {
            record.call.object = object;
            record.call.known = known::OBJECT;
            if let Some(token) = token {
                record.call.token = token;
                record.call.known |= known::TOKEN;
            }
        });
    };
    on(Kind::Preserve, 0xF11E, Some(7));
    on(Kind::Preserve, 0xF12E, Some(8));
    on(Kind::FileFreeze, 0xF12E, None);
    on(Kind::FileFreeze, 0xBAD, None);
    let update = story.update();
    assert_eq!(file(update, 7).freeze_ns, None);
    assert_eq!(file(update, 8).freeze_ns, Some(1_000));
    assert_eq!(update.files().count(), 2);
}

#[test]
fn a_second_restore_that_is_refused_changes_nothing() {
    let mut story = Story::new();
    story
        .prepared(&[1])
        .rebooted(&[1])
        .file(Kind::Restore, 1, 0);
    let before = file(story.update(), 1);
    story.file(Kind::Restore, 1, -22).file(Kind::Restore, 9, -2);
    assert_eq!(file(story.update(), 1), before);
    assert_eq!(story.update().files().count(), 1);
}

#[test]
fn what_is_preserved_beyond_the_kexec_belongs_to_the_next_update() {
    let mut story = Story::new();
    story
        .prepared(&[1])
        .rebooted(&[1])
        .file(Kind::Restore, 1, 0);
    let before = (file(story.update(), 1), story.update().phases());
    story.file(Kind::Preserve, 1, 0).file(Kind::Preserve, 2, 0);
    assert_eq!(before, (file(story.update(), 1), story.update().phases()));
    story.event(Kind::Finish, 0).event(Kind::Prepare, 0);
    assert_eq!(story.update().number, 2);
    assert_eq!(story.update().files().count(), 2);
}

#[test]
fn a_file_whose_second_prepare_succeeds_is_waited_for() {
    let mut story = Story::new();
    story.file(Kind::Preserve, 1, 0).file(Kind::Preserve, 2, 0);
    story
        .file(Kind::FilePrepare, 1, -5)
        .event(Kind::Prepare, -5);
    story.file(Kind::FilePrepare, 1, 0).event(Kind::Prepare, 0);
    story.rebooted(&[1, 2]).file(Kind::Restore, 2, 0);
    assert_eq!(story.update().blackout(), None);
    story.event(Kind::Finish, 0);
    assert_eq!(outcomes(story.update())[0], (1, FileOutcome::Unclaimed));
}

#[test]
fn a_freeze_that_was_not_seen_is_no_loss_of_files() {
    let mut story = Story::new();
    story.prepared(&[1]).enter(Kind::Reboot).enter(Kind::Jump);
    story.event(Kind::Boot, 0).file(Kind::Restore, 1, 0);
    story.event(Kind::Finish, 0);
    assert_eq!(story.update().outcome, Outcome::Finished);
    assert_eq!(story.update().blackout(), None);
}

#[test]
fn a_loss_between_two_updates_marks_both() {
    let mut story = Story::new();
    story.prepared(&[1]).event(Kind::Cancel, 0).lose(3);
    assert_eq!(story.update().events.lost, 3);
    story.event(Kind::Prepare, 0);
    assert_eq!((story.update().number, story.update().events.lost), (2, 3));
}

#[test]
fn a_loss_marks_the_numbers() {
    let mut story = Story::new();
    story.prepared(&[1]).rebooted(&[1]).lose(7);
    story.file(Kind::Restore, 1, 0).event(Kind::Finish, 0);
    let report = Report::from(story.update());
    assert_eq!(report.events.lost, 7);
    assert!(report.blackout.expect("known").lossy);
    let text = waterfall(&Report::from(story.update()), 100);
    assert!(text.contains("≥") && text.contains("7 lost"), "{text}");
}

#[test]
fn the_report_has_the_fields_that_were_promised() {
    let mut story = Story::new();
    story
        .prepared(&[1])
        .rebooted(&[1])
        .file(Kind::Restore, 1, 0)
        .event(Kind::Finish, 0);
    let json = serde_json::to_value(Report::from(story.update())).expect("JSON");
    assert_eq!(json["schema"], "lu.report/1");
    assert_eq!(json["orchestrator"], "emulated");
    for field in ["ns", "uncertainty_ns", "clock", "from", "to"] {
        assert!(!json["blackout"][field].is_null(), "{field}");
    }
    for field in ["name", "start_ns", "ns", "known"] {
        assert!(!json["phases"][0][field].is_null(), "{field}");
    }
    let file = &json["sessions"][0]["files"][0];
    for field in [
        "token",
        "kind",
        "bytes",
        "preserve_ns",
        "freeze_ns",
        "restore_ns",
        "outcome",
    ] {
        assert!(!file[field].is_null(), "{field}");
    }
    assert!(json["sessions"][0]["name"].is_null());
    assert!(json["verdicts"].is_array() && json["errors"].is_array());
    assert!(json["events"]["seen"].as_u64() > Some(0));
}

/// The sessions interface on a kernel, with a reading of the clocks where a test wants one.
struct Kernels(Story);

/// Of the kernel in which a story begins, of the next one.
const OLD: u8 = 1;
const NEW: u8 = 2;

fn padded(name: &str) -> SessionName {
    let mut padded = [0; 64];
    padded[..name.len()].copy_from_slice(name.as_bytes());
    padded
}

impl Kernels {
    /// lu starts, and ten seconds later knows the counter's frequency: one tick a nanosecond.
    fn new() -> Self {
        let mut story = Self(Story::new());
        story.anchor(OLD, 1_000_000, 1_000_000, 0);
        story.0.now = 10_001_000_000;
        story.anchor(OLD, 10_001_000_000, 10_001_000_000, 0);
        story
    }

    fn anchor(&mut self, boot: u8, t_ns: u64, counter: u64, init_ns: u64) {
        let anchor = Anchor {
            boot_id: [boot; 16],
            counter,
            raw_ns: t_ns,
            realtime_ns: counter,
            spread_ns: 10,
            init_ns,
            tick_ns: 1,
        };
        let record = Record::made(Kind::Anchor, t_ns, zerocopy::transmute!(anchor));
        self.0.timeline.push(&record);
        self.0.now = t_ns + 1_000;
    }

    /// The next kernel is up, five seconds after now, and has been for a second.
    fn jumped(&mut self) {
        let beat = Record::made(Kind::LastBeat, self.0.now, [0; 64]);
        self.0.timeline.push(&beat);
        self.anchor(NEW, 1_000_000_000, self.0.now + 5_000_000_000, 400_000_000);
    }

    fn call(&mut self, kind: Kind, name: &str, token: Option<u64>, ret: i32) {
        let name = padded(name);
        self.0
            .timeline
            .push(&Record::made(Kind::Name, self.0.now, name));
        self.0.push(kind, ret, |record| {
            record.header.flags = flags::EXIT | flags::SESSIONS | flags::TASK;
            record.call.session = session_id(&name);
            record.call.known = known::SESSION;
            if let Some(token) = token {
                record.call.token = token;
                record.call.known |= known::TOKEN;
            }
        });
    }

    fn reboot(&mut self, tid: u32, ret: Option<i32>) {
        self.0.push(Kind::Kexec, ret.unwrap_or(0), |record| {
            record.header.tid = tid;
            record.header.flags = flags::SESSIONS | flags::TASK;
            if ret.is_some() {
                record.header.flags |= flags::EXIT;
            }
        });
    }

    fn frozen(&mut self, names: &[&str], ret: i32) {
        for name in names {
            self.call(Kind::SessionFreeze, name, None, 0);
        }
        self.0.push(Kind::Freeze, ret, |record| {
            record.header.flags = flags::EXIT | flags::SESSIONS | flags::TASK;
        });
    }

    fn preserved(&mut self, name: &str, tokens: &[u64]) {
        self.call(Kind::SessionCreate, name, None, 0);
        for token in tokens {
            self.call(Kind::Preserve, name, Some(*token), 0);
        }
    }

    fn restored(&mut self, name: &str, tokens: &[u64]) {
        self.call(Kind::SessionRetrieve, name, None, 0);
        for token in tokens {
            self.call(Kind::Restore, name, Some(*token), 0);
        }
        self.call(Kind::SessionFinish, name, None, 0);
    }

    fn update(&self) -> &Update {
        self.0.timeline.latest_told().expect("an update")
    }
}

fn sessions(update: &Update) -> Vec<(&str, SessionOutcome)> {
    update
        .sessions
        .values()
        .map(|session| (session.name.as_deref().unwrap_or(""), session.outcome))
        .collect()
}

#[test]
fn two_kernels_make_one_update_with_the_counter_as_its_clock() {
    let mut story = Kernels::new();
    story.preserved("a", &[1, 2]);
    story.preserved("b", &[1]);
    let start = story.0.now;
    story.reboot(7, None);
    story.frozen(&["a", "b"], 0);
    let jump = story.0.now;
    story.jumped();
    story.restored("a", &[2, 1]);
    assert_eq!(story.update().outcome, Outcome::InProgress);
    story.restored("b", &[1]);
    let end = story.0.now;
    story.anchor(NEW, 11_000_000_000, jump + 15_000_000_000, 0);
    let update = story.update();
    assert_eq!(update.outcome, Outcome::Finished);
    let blackout = update.blackout().expect("known");
    // Five seconds from the last sign of the old kernel to the first reading in the new one.
    let restored = jump + 5_000_000_000 + (end - 1_000_001_000);
    assert!(
        blackout.ns.abs_diff(restored - start) < 10_000,
        "{blackout:?}"
    );
    assert_eq!(
        (blackout.clock, blackout.from),
        (Clock::Counter, BlackoutStart::Reboot)
    );
    assert!(
        blackout.uncertainty_ns.is_some_and(|ns| ns < 1_000),
        "{blackout:?}"
    );
    assert!(update.phases().iter().all(lu_user::timeline::Phase::known));
    assert!(
        update
            .phases()
            .iter()
            .any(|phase| phase.name == PhaseName::Boot)
    );
}

#[test]
fn a_refused_reboot_of_somebody_else_moves_nothing() {
    let mut story = Kernels::new();
    story.preserved("a", &[1]);
    let start = story.0.now;
    story.reboot(7, None);
    story.reboot(8, Some(-1));
    story.frozen(&["a"], 0);
    story.jumped();
    story.restored("a", &[1]);
    assert_eq!(story.update().blackout().expect("known").start_ns, start);
    assert_eq!(story.update().errors[&("reboot", 1)], 1);
}

#[test]
fn a_failed_freeze_can_be_tried_again() {
    let mut story = Kernels::new();
    story.preserved("a", &[1]);
    story.reboot(7, None);
    story.frozen(&["a"], -5);
    story.reboot(7, Some(-5));
    assert_eq!(sessions(story.update()), [("a", SessionOutcome::Open)]);
    let start = story.0.now;
    story.reboot(7, None);
    story.frozen(&["a"], 0);
    story.jumped();
    story.restored("a", &[1]);
    let update = story.update();
    assert_eq!(
        (update.outcome, update.failed_freezes),
        (Outcome::Finished, 1)
    );
    assert_eq!(update.blackout().expect("known").start_ns, start);
}

#[test]
fn an_ordinary_reboot_loses_what_was_preserved() {
    let mut story = Kernels::new();
    story.preserved("a", &[1]);
    story.anchor(NEW, 1_000_000_000, 500, 0);
    assert_eq!(story.update().outcome, Outcome::Aborted);
    assert_eq!(sessions(story.update()), [("a", SessionOutcome::Lost)]);
    assert_eq!(outcomes(story.update()), [(1, FileOutcome::Lost)]);
}

#[test]
fn what_was_first_seen_in_the_new_kernel_is_never_called_finished() {
    let mut story = Kernels::new();
    story.restored("a", &[1]);
    story.restored("b", &[1]);
    assert_eq!(story.0.timeline.updates().count(), 1);
    assert_eq!(story.update().outcome, Outcome::InProgress);
    assert_eq!(story.update().blackout(), None);
}

#[test]
fn the_same_name_on_both_sides_is_two_sessions() {
    let mut story = Kernels::new();
    story.preserved("a", &[1]);
    story.reboot(7, None);
    story.frozen(&["a"], 0);
    story.jumped();
    story.preserved("a", &[9]);
    story.call(Kind::SessionRetrieve, "a", None, 0);
    story.call(Kind::Restore, "a", Some(1), 0);
    story.call(Kind::SessionFinish, "a", None, 0);
    let outcomes: Vec<_> = story.0.timeline.updates().map(outcomes).collect();
    assert_eq!(
        outcomes,
        [
            vec![(1, FileOutcome::Restored)],
            vec![(9, FileOutcome::Preserved)]
        ]
    );
}

#[test]
fn a_session_that_is_closed_before_the_kexec_takes_its_files_along() {
    let mut story = Kernels::new();
    story.preserved("a", &[1]);
    story.call(Kind::SessionUnpreserve, "a", None, 0);
    story.preserved("a", &[2]);
    assert_eq!(
        sessions(story.update()),
        [("a", SessionOutcome::Closed), ("a", SessionOutcome::Open)]
    );
    assert_eq!(
        outcomes(story.update()),
        [(1, FileOutcome::Dropped), (2, FileOutcome::Preserved)]
    );
}

#[test]
fn a_canarys_darkness_is_told_from_the_last_beat_to_its_restore_by_both_clocks() {
    let mut story = Kernels::new();
    story.preserved("lu-canary", &[1]);
    story.reboot(7, None);
    story.frozen(&["lu-canary"], 0);
    let stop = story.0.now;
    story.jumped();
    story.call(Kind::SessionRetrieve, "lu-canary", None, 0);
    let restored = story.0.now + 1_000;
    story.call(Kind::Restore, "lu-canary", Some(1), 0);
    story.call(Kind::SessionFinish, "lu-canary", None, 0);
    story.anchor(NEW, 11_000_000_000, stop + 15_000_000_000, 0);
    let darkness = story.update().canary().expect("known");
    assert_eq!(darkness.start_ns, stop);
    // Its new kernel was up for a second when its clocks were read.
    assert_eq!(darkness.ns, 5_000_000_000 + restored - 1_000_000_000);
    assert_eq!(darkness.clock, Clock::Counter);
    // Here both clocks say the same.
    assert_eq!(darkness.realtime_ns, Some(darkness.ns.cast_signed()));
    let report = serde_json::to_value(Report::from(story.update())).expect("JSON");
    assert_eq!(report["canary"]["ns"], darkness.ns);
}

#[test]
fn without_a_canary_or_a_last_beat_its_darkness_is_unknown() {
    let mut story = Kernels::new();
    story.preserved("a", &[1]);
    story.reboot(7, None);
    story.frozen(&["a"], 0);
    story.jumped();
    story.restored("a", &[1]);
    assert_eq!(story.update().canary(), None);
    let mut story = Kernels::new();
    story.preserved("lu-canary", &[1]);
    story.reboot(7, None);
    story.frozen(&["lu-canary"], 0);
    let counter = story.0.now + 5_000_000_000;
    story.anchor(NEW, 1_000_000_000, counter, 0);
    story.restored("lu-canary", &[1]);
    assert_eq!(story.update().canary(), None);
}

fn handover(release: &str, kexecs: u32, updates: u64) -> Record {
    let mut handover = Handover {
        updates,
        kexecs,
        padding: 0,
        release: [0; 48],
    };
    handover.release[..release.len()].copy_from_slice(release.as_bytes());
    Record::made(Kind::Handover, 1, zerocopy::transmute!(handover))
}

#[test]
fn what_the_new_kernel_says_of_the_kexec_belongs_to_the_update_that_came_through_it() {
    let mut story = Kernels::new();
    story.preserved("a", &[1]);
    story.reboot(7, None);
    story.frozen(&["a"], 0);
    assert_eq!(story.update().handover, None);
    story.0.timeline.push(&handover("7.3.4", 2, 0));
    story.jumped();
    story.preserved("b", &[1]);
    story.restored("a", &[1]);
    let told = story.update().handover.clone().expect("told");
    assert_eq!(told.exec_from.as_deref(), Some("7.3.4"));
    // A kernel that counts no live updates does not say that there was none.
    assert_eq!((told.kexecs, told.liveupdate_number), (Some(2), None));
    // The one that is being made ready has not come through any.
    let next = story.0.timeline.updates().next_back().expect("another");
    assert_eq!((next.number, next.handover.as_ref()), (2, None));
}

#[test]
fn the_kernel_before_is_known_also_where_lu_did_not_watch_it() {
    let mut timeline = Story::new();
    let release = padded("7.3.5");
    timeline
        .timeline
        .push(&Record::made(Kind::Kernel, 1, release));
    timeline.timeline.push(&handover("7.3.4", 1, 1));
    let mut story = Kernels(timeline);
    story.restored("a", &[1]);
    assert_eq!(story.update().kernels, ["7.3.4", "7.3.5"]);
    let text = waterfall(&Report::from(story.update()), 100);
    assert!(
        text.contains("kexec 1, live update 1 since power-on"),
        "{text}"
    );
}

#[test]
fn lus_own_session_begins_no_update() {
    let mut story = Kernels::new();
    story.preserved("lu-recorder", &[1]);
    assert!(story.0.timeline.latest().is_none());
    story.preserved("a", &[1]);
    assert_eq!(story.update().sessions.len(), 2);
}

proptest! {
    /// Whatever bytes come as records: nothing panics, and no byte of a client's reaches the terminal
    /// as a control character.
    #[test]
    fn any_records_make_a_timeline_and_its_pictures(
        records in prop::collection::vec(any::<[u8; 128]>(), 0..200),
        kinds in prop::collection::vec(
            prop::sample::select(Kind::ALL.iter().map(|kind| *kind as u8).collect::<Vec<_>>()),
            200,
        ),
    ) {
        let mut timeline = Timeline::new();
        let mut names = Names::default();
        for (bytes, kind) in records.iter().zip(kinds) {
            let mut record: Record = zerocopy::FromBytes::read_from_bytes(bytes).expect("128 bytes");
            record.header.kind = kind;
            // Times as a machine could have them: sums stay within their width.
            record.header.t_ns >>= 2;
            record.header.dur_ns >>= 2;
            timeline.push(&record);
            names.push(&record);
            if let Some(line) = lu_user::export::line(&record, &names, 0) {
                prop_assert!(!line.chars().any(char::is_control), "{:?}", line);
            }
        }
        for update in timeline.updates() {
            for columns in [0, 80, 200] {
                prop_assert!(waterfall(&Report::from(update), columns).contains("events seen"));
            }
            let report = serde_json::to_value(Report::from(update)).expect("JSON");
            prop_assert!(report["sessions"].as_array().expect("sessions").len() <= 200);
        }
    }
}
