//! The timeline fed with events: what it makes of updates that end well, badly, or unseen.

use lu_common::event::{
    Anchor, FileKind, Handover, Kind, Record, SessionName, flags, known, session_id,
};
use lu_common::uapi::v3;
use lu_user::export::{AttentionJson, AttentionKind, Report, waterfall};
use lu_user::timeline::clock::Clock;
use lu_user::timeline::{
    BlackoutStart, FileOutcome, FileSpan, Names, Outcome, PartName, PhaseName, SessionOutcome,
    Stretch, Timeline, Update,
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
        self.enter(Kind::Kexec).enter(Kind::Reboot);
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

/// Known phases neither overlap nor leave gaps, and neither do the parts of the phases and of the blackout.
fn tiles(update: &Update) {
    let report = Report::from(update);
    let sum = |all: Vec<Option<u64>>| all.into_iter().sum::<Option<u64>>();
    let mut end = 0;
    for phase in update.phases() {
        if let Some((start, ns)) = phase.start_ns.zip(phase.ns) {
            assert!(start >= end, "{phase:?} begins before {end}");
            end = start + ns;
        }
        let parts = update.parts(&phase);
        if let (false, Some(ns)) = (parts.is_empty(), sum(parts.iter().map(|p| p.ns).collect())) {
            assert_eq!(Some(ns), phase.ns, "{phase:?}: {parts:?}");
        }
    }
    let phases = sum(report.phases.iter().map(|phase| phase.ns).collect());
    if let (Some(whole), Some(phases)) = (report.whole, phases) {
        assert_eq!(whole.ns, phases, "{report:#?}");
    }
    if let Some(blackout) = &report.blackout
        && let Some(parts) = sum(blackout.parts.iter().map(|part| part.ns).collect())
    {
        assert_eq!(blackout.ns, parts, "{report:#?}");
    }
}

/// What a report says needs attention, each with its kind, its file, and how often.
fn attention(update: &Update) -> Vec<(AttentionKind, Option<u64>, u64)> {
    let report = Report::from(update);
    let text = waterfall(&report, 100);
    for one in &report.attention {
        assert!(text.contains(&one.text), "{text}");
    }
    let short = |one: &AttentionJson| (one.kind, one.token, one.count);
    report.attention.iter().map(short).collect()
}

/// The first of a kind.
fn attention_of(update: &Update, kind: AttentionKind) -> AttentionJson {
    let all = Report::from(update).attention;
    let found = all.iter().find(|one| one.kind == kind);
    found.unwrap_or_else(|| panic!("{all:#?}")).clone()
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
    tiles(update);
    assert_eq!(
        phases.iter().map(|phase| phase.name).collect::<Vec<_>>(),
        PhaseName::ALL
    );
    assert!(phases.iter().all(Stretch::known));
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
        (update.outcome, update.troubles.failed_freezes),
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
            PhaseName::Preserve,
            PhaseName::WaitPrepare,
            PhaseName::Prepare,
            PhaseName::WaitReboot,
            PhaseName::Reboot,
            PhaseName::Freeze,
            PhaseName::Shutdown,
            PhaseName::Boot,
            PhaseName::Userspace
        ]
    );
    assert_eq!(file(update, 1).preserve, None);
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
    assert_eq!(file(update, 7).freeze, None);
    assert!(file(update, 8).freeze.is_some());
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

    /// The kernel's way out, as far as the collector sees it: the last step does not come back.
    fn shut_down(&mut self) {
        for kind in [
            Kind::RestartPrepare,
            Kind::DeviceShutdown,
            Kind::MigrateCpu,
            Kind::SyscoreShutdown,
            Kind::MachineShutdown,
        ] {
            self.step(kind, false);
            if kind != Kind::MachineShutdown {
                self.step(kind, true);
            }
        }
    }

    fn step(&mut self, kind: Kind, exit: bool) {
        self.0.push(kind, 0, |record| {
            record.header.flags = flags::SESSIONS | flags::TASK;
            if exit {
                // The return tells the entry again, and better.
                record.header.t_ns -= 2_010;
                record.header.flags |= flags::EXIT;
            }
        });
    }

    /// lu starts watching, in a kernel that it has not watched before or not all the time.
    fn watch(&mut self) {
        let release = *b"7.3.4\0";
        let mut payload = [0; 64];
        payload[..release.len()].copy_from_slice(&release);
        let record = Record::made(Kind::Kernel, self.0.now, payload);
        self.0.timeline.push(&record);
    }

    /// A call of another process.
    fn by(&mut self, pid: u32, comm: &str, kind: Kind, ret: i32) {
        self.0.push(kind, ret, |record| {
            record.header.flags = flags::EXIT | flags::SESSIONS | flags::TASK;
            record.header.pid = pid;
            record.header.comm[..comm.len()].copy_from_slice(comm.as_bytes());
        });
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
fn a_kernel_that_went_before_the_end_of_its_freeze_was_recorded_is_told_as_cut_off() {
    let attention = |whole: bool| {
        let mut story = Kernels::new();
        story.preserved("a", &[1]);
        story.reboot(7, None);
        if whole {
            story.frozen(&["a"], 0);
            story.shut_down();
        }
        story.jumped();
        story.restored("a", &[1]);
        let report = Report::from(story.update());
        let kinds: Vec<_> = report.attention.iter().map(|one| one.kind).collect();
        (kinds, report.blackout.is_some())
    };
    assert_eq!(attention(true), (vec![], true));
    assert_eq!(attention(false), (vec![AttentionKind::CutOff], true));
}

#[test]
fn two_kernels_make_one_update_with_the_counter_as_its_clock() {
    let mut story = Kernels::new();
    story.preserved("a", &[1, 2]);
    story.preserved("b", &[1]);
    let start = story.0.now;
    story.reboot(7, None);
    story.frozen(&["a", "b"], 0);
    story.shut_down();
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
    let report = Report::from(update);
    assert!(report.phases.iter().all(|phase| phase.known));
    let whole = report.whole.expect("known");
    let sum: u64 = report.phases.iter().filter_map(|phase| phase.ns).sum();
    assert_eq!(sum, whole.ns);
    // The first session was finished while the second was still to be restored.
    assert_eq!(
        report.phases.iter().map(|p| p.name).collect::<Vec<_>>(),
        [
            PhaseName::Preserve,
            PhaseName::WaitReboot,
            PhaseName::Reboot,
            PhaseName::Freeze,
            PhaseName::Shutdown,
            PhaseName::Boot,
            PhaseName::Userspace,
            PhaseName::Restore,
            PhaseName::Finish,
        ]
    );
    tiles(update);
    let parts = report.blackout.expect("known").parts;
    assert!(parts.is_sorted_by_key(|part| std::cmp::Reverse(part.ns)));
    let percent: f64 = parts.iter().filter_map(|part| part.percent).sum();
    assert!((percent - 100.0).abs() < 1e-6, "{parts:?}");
    for part in PartName::ALL {
        assert!(
            parts.iter().any(|found| found.part == Some(*part)),
            "{part:?} is not in {parts:?}"
        );
    }
    // Nothing is seen from the last beat to the new kernel's clock, which began a second before the reading.
    let unseen = report.unseen.expect("known");
    assert_eq!((unseen.start_ns, unseen.ns), (jump, 4_000_000_000));
    assert_eq!(report.boot_ids.len(), 2);
    assert_eq!(report.boot_ids[0], "01010101-0101-0101-0101-010101010101");
    assert_ne!(report.boot_ids[0], report.boot_ids[1]);
    // In these kernels the clock of the day counts from the same moment as the counter.
    assert_eq!(report.began_realtime_ns, Some(10_001_001_000));
    assert_eq!(report.attention, []);
}

#[test]
fn a_finish_before_the_last_restore_is_told_by_its_session_and_the_phases_still_tile() {
    let mut story = Kernels::new();
    story.preserved("a", &[1]);
    story.preserved("b", &[1]);
    story.reboot(7, None);
    story.frozen(&["a", "b"], 0);
    story.shut_down();
    story.jumped();
    story.call(Kind::SessionRetrieve, "a", None, 0);
    story.call(Kind::Restore, "a", Some(1), 0);
    let finish = story.0.now;
    story.call(Kind::SessionFinish, "a", None, 0);
    story.call(Kind::SessionRetrieve, "b", None, 0);
    story.call(Kind::Restore, "b", Some(1), 0);
    // All is restored, and one session is still to be finished.
    tiles(story.update());
    assert!(story.update().blackout().is_some());
    story.call(Kind::SessionFinish, "b", None, 0);
    tiles(story.update());
    let report = Report::from(story.update());
    let offset = report.sessions[0].finish_start_ns.expect("known");
    let restore = report
        .phases
        .iter()
        .find(|phase| phase.name == PhaseName::Restore)
        .and_then(|phase| phase.start_ns);
    assert_eq!(restore.map(|restore| offset - restore), Some(2_000));
    assert!(finish > 0 && report.whole.is_some());
}

#[test]
fn a_step_that_was_not_seen_leaves_its_parts_unknown_and_one_after_lus_end_is_in_the_jump() {
    let mut story = Kernels::new();
    story.preserved("a", &[1]);
    story.reboot(7, None);
    story.frozen(&["a"], 0);
    story.step(Kind::RestartPrepare, false);
    story.step(Kind::MigrateCpu, false);
    story.jumped();
    story.restored("a", &[1]);
    tiles(story.update());
    let phases = story.update().phases();
    let shutdown = phases
        .iter()
        .find(|phase| phase.name == PhaseName::Shutdown)
        .expect("it took place");
    assert!(shutdown.known());
    let parts: Vec<_> = story
        .update()
        .parts(shutdown)
        .iter()
        .map(|part| (part.name, part.known()))
        .collect();
    assert_eq!(
        parts,
        [
            (PartName::Handover, true),
            (PartName::Notifiers, false),
            (PartName::DeviceShutdown, false),
            (PartName::MigrateCpu, true),
        ]
    );
}

#[test]
fn without_a_clock_across_the_kexec_nothing_beyond_it_has_a_place() {
    let mut story = Kernels::new();
    story.preserved("a", &[1]);
    story.reboot(7, None);
    story.frozen(&["a"], 0);
    // Neither a counter nor a clock of the day that went forward.
    story.anchor(NEW, 1_000_000_000, 0, 400_000_000);
    story.restored("a", &[1]);
    let report = Report::from(story.update());
    assert_eq!(
        (report.blackout, report.whole, report.unseen),
        (None, None, None)
    );
    let restore = report.phases.iter().find(|p| p.name == PhaseName::Restore);
    let restore = restore.expect("it was seen");
    assert_eq!((restore.start_ns, restore.ns), (None, Some(1_000)));
    assert_eq!(report.sessions[0].files[0].restore_start_ns, None);
}

#[test]
fn an_error_that_sticks_to_a_token_is_told_with_how_often_it_was_tried() {
    let mut story = Kernels::new();
    story.preserved("a", &[1, 2]);
    story.reboot(7, None);
    story.frozen(&["a"], 0);
    story.jumped();
    story.call(Kind::SessionRetrieve, "a", None, 0);
    story.call(Kind::Restore, "a", Some(1), 0);
    for _ in 0..3 {
        story.call(Kind::Restore, "a", Some(2), -5);
    }
    story.call(Kind::SessionFinish, "a", None, 0);
    assert_eq!(
        attention(story.update()),
        [(AttentionKind::RestoreFailed, Some(2), 3)]
    );
    let one = attention_of(story.update(), AttentionKind::RestoreFailed);
    assert_eq!(
        (one.session.as_deref(), one.errno.as_deref()),
        (Some("a"), Some("EIO"))
    );
    assert!(one.text.contains("sticks"), "{}", one.text);
    assert_eq!(outcomes(story.update())[1], (2, FileOutcome::Failed));
}

#[test]
fn a_session_whose_holder_ends_before_the_jump_is_told_with_who_it_was() {
    let mut story = Kernels::new();
    story.preserved("a", &[1]);
    story.preserved("b", &[1, 2]);
    let name = padded("b");
    story.0.push(Kind::SessionUnpreserve, 0, |record| {
        record.header.flags = flags::EXIT | flags::SESSIONS | flags::TASK;
        record.header.pid = 77;
        record.header.comm[..3].copy_from_slice(b"vmm");
        record.call.session = session_id(&name);
        record.call.known = known::SESSION;
    });
    story.reboot(7, None);
    story.frozen(&["a"], 0);
    story.jumped();
    story.restored("a", &[1]);
    assert_eq!(
        attention(story.update()),
        [(AttentionKind::Dropped, None, 2)]
    );
    let by = attention_of(story.update(), AttentionKind::Dropped)
        .by
        .expect("seen");
    assert_eq!((by.pid, by.comm.as_str()), (77, "vmm"));
    assert_eq!(story.update().outcome, Outcome::Finished);
}

#[test]
fn a_session_that_is_closed_and_made_anew_needs_no_attention() {
    let mut story = Kernels::new();
    story.preserved("a", &[1]);
    story.call(Kind::SessionUnpreserve, "a", None, 0);
    story.preserved("a", &[2]);
    assert_eq!(attention(story.update()), []);
}

#[test]
fn a_zombie_session_ends_the_update_incomplete_and_the_blackout_is_known() {
    let mut story = Kernels::new();
    story.preserved("a", &[1]);
    story.preserved("b", &[1]);
    story.reboot(7, None);
    story.frozen(&["a", "b"], 0);
    story.jumped();
    story.restored("a", &[1]);
    story.call(Kind::SessionRetrieve, "b", None, 0);
    story.call(Kind::Restore, "b", Some(1), 0);
    story.call(Kind::SessionFinish, "b", None, -16);
    assert_eq!(story.update().outcome, Outcome::InProgress);
    story.call(Kind::SessionRelease, "b", None, -16);
    let update = story.update();
    assert_eq!(update.outcome, Outcome::Incomplete);
    assert_eq!(sessions(update)[1], ("b", SessionOutcome::Stranded));
    assert_eq!(attention(update), [(AttentionKind::Stranded, None, 1)]);
    assert!(update.blackout().is_some() && update.whole().is_some());
    tiles(update);
}

#[test]
fn a_kexec_with_nothing_preserved_is_counted_and_is_no_update() {
    let mut story = Kernels::new();
    story.preserved("lu-recorder", &[1]);
    story.reboot(7, None);
    story.frozen(&["lu-recorder"], 0);
    story.jumped();
    story.restored("lu-recorder", &[1]);
    assert_eq!(story.0.timeline.updates().count(), 0);
    assert_eq!(story.0.timeline.plain_kexecs(), 1);
    let mut story = Story::new();
    story
        .enter(Kind::Kexec)
        .enter(Kind::Reboot)
        .event(Kind::Reboot, 0);
    story.enter(Kind::Jump).event(Kind::Boot, 0);
    assert_eq!(story.timeline.updates().count(), 0);
    assert_eq!(story.timeline.plain_kexecs(), 1);
}

#[test]
fn two_updates_in_a_row_are_two_reports_that_each_tile() {
    let mut story = Kernels::new();
    let mut boots = vec![];
    for (old, new) in [(OLD, NEW), (NEW, 3)] {
        story.preserved("a", &[1]);
        story.reboot(7, None);
        story.frozen(&["a"], 0);
        story.shut_down();
        let beat = Record::made(Kind::LastBeat, story.0.now, [0; 64]);
        story.0.timeline.push(&beat);
        // A kernel's clock and its counter: the same distance all the time.
        let counter = story.0.now + 5_000_000_000 + u64::from(old - OLD) * 20_000_000_000;
        story.anchor(new, 1_000_000_000, counter, 400_000_000);
        story.restored("a", &[1]);
        story.anchor(new, 11_000_000_000, counter + 10_000_000_000, 0);
        boots.push((old, new));
    }
    let updates: Vec<&Update> = story.0.timeline.updates().collect();
    assert_eq!(updates.len(), boots.len());
    for (update, (old, new)) in updates.iter().zip(boots) {
        assert_eq!(update.outcome, Outcome::Finished);
        assert_eq!(update.boot_ids, [[old; 16], [new; 16]]);
        let report = Report::from(*update);
        assert!(report.phases.iter().all(|phase| phase.known), "{report:#?}");
        assert!(report.whole.is_some() && report.blackout.is_some());
        tiles(update);
    }
    assert!(updates[0].began_ns < updates[1].began_ns);
}

#[test]
fn a_lu_that_starts_late_in_the_new_kernel_says_so_and_guesses_nothing() {
    let handed_over = || {
        let mut story = Kernels::new();
        story.watch();
        story.preserved("a", &[1]);
        story.reboot(7, None);
        story.frozen(&["a"], 0);
        let beat = Record::made(Kind::LastBeat, story.0.now, [0; 64]);
        story.0.timeline.push(&beat);
        let counter = story.0.now + 5_000_000_000;
        story.0.now = 2_000_000_000;
        story.watch();
        story.anchor(NEW, 1_000_000_000, counter, 400_000_000);
        story.anchor(NEW, 2_000_000_000, counter + 1_000_000_000, 0);
        story
    };
    // The restores were over, and the session is still open.
    let mut story = handed_over();
    story.call(Kind::SessionFinish, "a", None, 0);
    let update = story.update();
    assert_eq!(update.outcome, Outcome::Finished);
    assert_eq!(outcomes(update), [(1, FileOutcome::Unseen)]);
    assert_eq!(update.blackout(), None);
    let restore = update
        .phases()
        .into_iter()
        .find(|p| p.name == PhaseName::Restore);
    assert!(restore.is_some_and(|restore| !restore.known()));
    tiles(update);
    assert_eq!(attention(update), [(AttentionKind::Unwatched, None, 1)]);
    let text = attention_of(update, AttentionKind::Unwatched).text;
    assert!(text.contains("1.60 s after its first process"), "{text}");
    // Everything was over: nobody knows more than that it was handed over.
    let story = handed_over();
    assert_eq!(outcomes(story.update()), [(1, FileOutcome::Frozen)]);
    assert_eq!(
        attention(story.update()),
        [
            (AttentionKind::Unretrieved, None, 1),
            (AttentionKind::Unwatched, None, 1)
        ]
    );
    // In time: what is not asked for is known not to have been.
    let mut story = handed_over();
    story.call(Kind::SessionRetrieve, "a", None, 0);
    story.call(Kind::SessionFinish, "a", None, 0);
    assert_eq!(
        attention(story.update()),
        [(AttentionKind::Unclaimed, Some(1), 1)]
    );
}

#[test]
fn a_refusal_names_who_held_the_device() {
    let mut story = Kernels::new();
    story.preserved("a", &[1]);
    story.by(10, "holder", Kind::Open, 0);
    story.by(20, "refused", Kind::Open, -16);
    story.by(20, "refused", Kind::Open, -16);
    story.by(10, "holder", Kind::Release, 0);
    story.by(30, "unlucky", Kind::Open, -16);
    let update = story.0.timeline.latest().expect("an update");
    let all = Report::from(update).attention;
    let names: Vec<_> = all
        .iter()
        .map(|one| {
            let name = |caller: &Option<_>| {
                let caller: &Option<lu_user::export::CallerJson> = caller;
                caller.as_ref().map(|caller| caller.comm.clone())
            };
            (name(&one.holder), name(&one.by), one.count)
        })
        .collect();
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(
        names,
        [
            (None, text("unlucky"), 1),
            (text("holder"), text("refused"), 2)
        ]
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
        (update.outcome, update.troubles.failed_freezes),
        (Outcome::Finished, 1)
    );
    assert_eq!(update.blackout().expect("known").start_ns, start);
    assert_eq!(attention(update), [(AttentionKind::FreezeFailed, None, 1)]);
    tiles(update);
}

#[test]
fn a_freeze_that_fails_twice_names_the_file_and_that_a_later_attempt_went_through() {
    let mut story = Kernels::new();
    story.preserved("a", &[1, 7]);
    for _ in 0..2 {
        story.reboot(7, None);
        story.call(Kind::FileFreeze, "a", Some(1), 0);
        story.call(Kind::FileFreeze, "a", Some(7), -12);
        story.frozen(&[], -12);
        story.reboot(7, Some(-12));
    }
    assert_eq!(
        attention(story.update()),
        [(AttentionKind::FreezeFailed, Some(7), 2)]
    );
    story.reboot(7, None);
    story.call(Kind::FileFreeze, "a", Some(1), 0);
    story.call(Kind::FileFreeze, "a", Some(7), 0);
    story.frozen(&["a"], 0);
    story.jumped();
    story.restored("a", &[1, 7]);
    let one = attention_of(story.update(), AttentionKind::FreezeFailed);
    assert_eq!((one.errno.as_deref(), one.count), (Some("ENOMEM"), 2));
    assert!(one.text.contains("went through"), "{}", one.text);
    assert_eq!(story.update().outcome, Outcome::Finished);
    tiles(story.update());
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

    /// Whatever happens in whatever order: known phases never overlap, and where all are known their sum is the
    /// whole. The same for the parts of the blackout.
    #[test]
    fn phases_tile_whatever_happens(
        steps in prop::collection::vec(
            (0..22_usize, 0..3_u64, 0..4_000_u64, 0..3_000_u64, any::<bool>(), 0..8_u8),
            0..60,
        ),
        sessions in any::<bool>(),
        emulated in any::<bool>(),
    ) {
        let kinds = [
            Kind::SessionCreate, Kind::Preserve, Kind::Preserve, Kind::Prepare, Kind::Kexec, Kind::Reboot,
            Kind::FileFreeze, Kind::SessionFreeze, Kind::Freeze, Kind::RestartPrepare,
            Kind::DeviceShutdown, Kind::MachineShutdown, Kind::LastBeat, Kind::Jump, Kind::Boot,
            Kind::Anchor, Kind::SessionRetrieve, Kind::Restore, Kind::Restore, Kind::SessionFinish,
            Kind::Finish, Kind::SessionRelease,
        ];
        let mut story = Kernels::new();
        story.call(Kind::Preserve, "0", Some(1), 0);
        let mut boot = OLD;
        for (which, token, pause, took, exits, luck) in steps {
            let kind = kinds[which];
            story.0.now += pause;
            match kind {
                Kind::Anchor => {
                    boot += 1;
                    let counter = story.0.now + 1_000_000;
                    story.anchor(boot, pause, counter, pause / 2);
                    continue;
                }
                Kind::LastBeat => {
                    let beat = Record::made(kind, story.0.now, [0; 64]);
                    story.0.timeline.push(&beat);
                    continue;
                }
                _ => {}
            }
            let ret = if luck == 0 { -5 } else { 0 };
            let name = padded(if token == 0 { "0" } else { "1" });
            story.0.push(kind, ret, |record| {
                record.header.dur_ns = took;
                record.header.tid = 7;
                record.header.flags = flags::TASK;
                let enters = matches!(kind, Kind::Kexec | Kind::Reboot | Kind::Jump) && !exits;
                record.header.flags |= if enters { 0 } else { flags::EXIT };
                record.header.flags |= if emulated { flags::EMULATED } else { 0 };
                record.call.token = token;
                record.call.known = known::TOKEN;
                if sessions {
                    record.header.flags |= flags::SESSIONS;
                    record.call.session = session_id(&name);
                    record.call.known |= known::SESSION;
                }
            });
            for update in story.0.timeline.updates() {
                tiles(update);
            }
        }
    }
}
