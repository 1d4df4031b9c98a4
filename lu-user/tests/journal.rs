//! The journal: what it keeps, whoever dies when.

#[path = "../examples/made_up/mod.rs"]
mod made_up;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use lu_common::event::{Kind, Record};
use lu_user::export::{Entry, Report};
use lu_user::journal::tape::Found;
use lu_user::journal::{Journal, Reader, Retention, segment};
use lu_user::timeline::Outcome;
use made_up::Machine;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use proptest::prelude::*;
use rusqlite::Connection;

fn open(folder: &Path) -> Journal {
    open_with(folder, Retention::default())
}

fn open_with(folder: &Path, retention: Retention) -> Journal {
    Journal::open(folder, retention).expect("opened")
}

/// Appends records as one batch; what was told.
fn push(journal: &mut Journal, records: &[Record]) -> Vec<Report> {
    for record in records {
        journal.push(&[*record]).expect("appended");
    }
    journal.settle().expect("settled")
}

fn numbers(reports: &[Report]) -> Vec<u64> {
    reports.iter().map(|report| report.update).collect()
}

/// Every update that a reader is told of, oldest first.
fn entries(folder: &Path) -> Vec<Entry> {
    let (mut entries, torn) = Reader::open(folder).entries(None, None).expect("listed");
    assert!(torn.is_empty(), "{torn:?}");
    entries.reverse();
    entries
}

fn listed(folder: &Path) -> Vec<(u64, String)> {
    let entries = entries(folder).into_iter();
    entries
        .map(|entry| (entry.update, entry.outcome.into_owned()))
        .collect()
}

fn finished(numbers: impl IntoIterator<Item = u64>) -> Vec<(u64, String)> {
    let numbers = numbers.into_iter();
    numbers
        .map(|number| (number, "finished".to_owned()))
        .collect()
}

fn report(folder: &Path, number: u64) -> Report {
    let (report, _) = Reader::open(folder).update(number).expect("read");
    report.expect("there is one")
}

fn latest(folder: &Path) -> Report {
    let (report, _) = Reader::open(folder).latest().expect("read");
    report.expect("there is one")
}

fn segments(folder: &Path) -> usize {
    segment::list(folder).expect("listed").len()
}

#[test]
fn an_update_has_one_number_whoever_tells_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let mut machine = Machine::new();
    for run in 0..3 {
        let mut journal = open(folder);
        push(&mut journal, &machine.start());
        let first = run * 2 + 1;
        assert_eq!(numbers(&push(&mut journal, &machine.update())), [first]);
        assert_eq!(numbers(&push(&mut journal, &machine.update())), [first + 1]);
        assert_eq!(listed(folder), finished(1..=first + 1));
        assert_eq!(latest(folder).update, first + 1);
        for number in 1..=first + 1 {
            assert_eq!(report(folder, number).update, number);
        }
        assert_eq!(journal.problems(), [""; 0]);
    }
    // Where there is no such update, those that there are.
    let (found, _) = Reader::open(folder).update(7).expect("read");
    assert_eq!(found, Err(vec![1, 2, 3, 4, 5, 6]));
}

#[test]
fn an_update_under_way_is_told_from_the_files_and_comes_before_what_is_over() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let mut machine = Machine::new();
    let mut journal = open(folder);
    push(&mut journal, &machine.start());
    push(&mut journal, &machine.update());
    push(&mut journal, &machine.old_half());
    // What is being made ready is none that came to anything yet.
    assert_eq!(latest(folder).update, 1);
    let new_half = machine.new_half();
    push(&mut journal, &new_half[..6]);
    assert_eq!(latest(folder).update, 2);
    assert_eq!(report(folder, 2).outcome, Outcome::InProgress);
    let listed = listed(folder);
    assert_eq!(listed[1], (2, "in-progress".to_owned()));
    push(&mut journal, &new_half[6..]);
    assert_eq!(report(folder, 2).outcome, Outcome::Finished);
}

#[test]
fn a_restart_between_two_finishes_goes_on_with_the_update() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let mut machine = Machine::new();
    let mut journal = open(folder);
    push(&mut journal, &machine.start());
    push(&mut journal, &machine.old_half());
    let new_half = machine.new_half();
    let first_finish = new_half
        .iter()
        .position(|record| record.kind() == Some(Kind::SessionFinish))
        .expect("one");
    assert_eq!(push(&mut journal, &new_half[..=first_finish]), []);
    drop(journal);
    let mut journal = open(folder);
    push(&mut journal, &[machine.anchor()]);
    let told = push(&mut journal, &new_half[first_finish + 1..]);
    assert_eq!(numbers(&told), [1]);
    assert_eq!(told[0].outcome, Outcome::Finished);
    assert_eq!((told[0].files.restored, told[0].files.handed_over), (6, 6));
    assert!(told[0].blackout.is_some());
    assert_eq!(told[0].boot_ids.len(), 2);
    assert_eq!(listed(folder), finished([1]));
}

#[test]
fn a_journal_has_one_writer_and_any_number_of_readers() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let mut machine = Machine::new();
    let mut journal = open(folder);
    push(&mut journal, &machine.start());
    push(&mut journal, &machine.update());
    let Err(error) = Journal::open(folder, Retention::default()) else {
        panic!("there are two writers");
    };
    let error = error.to_string();
    let path = folder.to_str().expect("text");
    assert!(
        error.contains(path) && error.contains("--journal"),
        "{error}"
    );
    assert_eq!(listed(folder), finished([1]));
    // The next one waits for a moment.
    let ends = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        drop(journal);
    });
    let mut journal = open(folder);
    ends.join().expect("ended");
    assert_eq!(numbers(&push(&mut journal, &machine.update())), [2]);
}

/// lu ends after each record once, and the next one goes on from there.
#[test]
fn wherever_lu_ends_each_update_is_kept_once() {
    let mut machine = Machine::new();
    let mut records = machine.start();
    records.extend(machine.update());
    records.extend(machine.update());
    for end in (0..records.len()).step_by(2) {
        let folder = tempfile::tempdir().expect("a folder");
        let mut journal = open(folder.path());
        for record in &records[..end] {
            push(&mut journal, std::slice::from_ref(record));
        }
        drop(journal);
        let mut journal = open(folder.path());
        push(&mut journal, &records[end..]);
        assert_eq!(journal.problems(), [""; 0]);
        assert_eq!(listed(folder.path()), finished([1, 2]), "after {end}");
    }
}

#[test]
fn what_the_new_kernels_clock_tells_later_is_kept_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut machine = Machine::new();
    let mut records = machine.start();
    records.extend(machine.update());
    // Without its second reading the frequency is unknown when the update ends.
    let second = records
        .iter()
        .rposition(|record| record.kind() == Some(Kind::Anchor))
        .expect("one");
    records.remove(second);
    let mut journal = open(folder.path());
    assert_eq!(numbers(&push(&mut journal, &records)), [1]);
    let uncertainty = || {
        let entries = entries(folder.path());
        (entries[0].blackout_ns.is_some(), entries[0].uncertainty_ns)
    };
    assert_eq!(uncertainty(), (true, None));
    journal.push(&[machine.anchor()]).expect("appended");
    journal.tick().expect("ticked");
    // It is not told twice.
    assert_eq!(journal.settle().expect("settled"), []);
    assert!(
        matches!(uncertainty(), (true, Some(1..))),
        "{:?}",
        uncertainty()
    );
    assert_eq!(report(folder.path(), 1).update, 1);
}

#[test]
fn a_history_that_was_removed_is_made_again_from_the_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let mut machine = Machine::new();
    let mut journal = open(folder);
    push(&mut journal, &machine.start());
    for _ in 0..200 {
        push(&mut journal, &machine.update());
    }
    drop(journal);
    let before = entries(folder);
    let documents: Vec<Report> = (1..=200).map(|number| report(folder, number)).collect();
    fs::remove_file(folder.join("history.db")).expect("removed");
    // A reader alone makes do with the files.
    assert_eq!(entries(folder), before);
    assert_eq!(report(folder, 3), documents[2]);
    assert_eq!(open(folder).problems(), [""; 0]);
    assert_eq!(entries(folder), before);
    for (number, document) in (1..).zip(documents) {
        assert_eq!(report(folder, number), document);
    }
}

#[test]
fn a_history_of_somebody_else_is_left_alone_and_lu_goes_on_without() {
    let newer = |path: &Path| {
        let other = Connection::open(path).expect("opened");
        let id = i32::from_be_bytes(*b"lu.h");
        other
            .pragma_update(None, "application_id", id)
            .expect("set");
        other.pragma_update(None, "user_version", 99).expect("set");
    };
    let other = |path: &Path| {
        let other = Connection::open(path).expect("opened");
        other.execute_batch("CREATE TABLE t (x)").expect("made");
    };
    let random = |path: &Path| fs::write(path, [0xA5; 5000]).expect("written");
    let makers: [(fn(&Path), _); 3] = [
        (newer, "version 99"),
        (other, "no history of lu's"),
        (random, "no history of lu's"),
    ];
    for (make, says) in makers {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("history.db");
        make(&path);
        let bytes = fs::read(&path).expect("read");
        let mut machine = Machine::new();
        for number in 1..=2 {
            let mut journal = open(folder.path());
            let problems = journal.problems().join("\n");
            assert!(problems.contains(says), "{problems}");
            push(&mut journal, &machine.start());
            assert_eq!(numbers(&push(&mut journal, &machine.update())), [number]);
        }
        assert_eq!(fs::read(&path).expect("read"), bytes);
        let reader = Reader::open(folder.path());
        let problem = reader.problem.as_ref().expect("one").to_string();
        assert!(problem.contains(says), "{problem}");
        assert_eq!(listed(folder.path()), finished([1, 2]));
        assert_eq!(latest(folder.path()).update, 2);
    }
}

/// What is lu's in the folder, in bytes.
fn size(folder: &Path) -> u64 {
    let files = fs::read_dir(folder).expect("read");
    files
        .map(|entry| {
            entry
                .and_then(|entry| entry.metadata())
                .map_or(0, |about| about.len())
        })
        .sum()
}

#[test]
fn the_folder_keeps_to_its_size_and_the_newest_updates_stay() {
    const MOST: u64 = 8 << 20;
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let foreign = folder.join("0.events");
    fs::write(&foreign, "somebody else's").expect("written");
    let retention = Retention {
        bytes: MOST,
        ..Retention::default()
    };
    let mut journal = open_with(folder, retention);
    fs::remove_file(&foreign).expect("left alone");
    let mut machine = Machine::new();
    let mut last = 0;
    let mut written = 0;
    while written < 3 * MOST {
        let mut records = machine.start();
        for _ in 0..16 {
            records.extend(machine.update());
        }
        written += (records.len() * size_of::<Record>()) as u64;
        let told = push(&mut journal, &records);
        last = told.last().expect("told").update;
        let files = Command::new("ls").arg("-l").arg(folder).output();
        assert!(size(folder) <= MOST, "{} bytes: {files:?}", size(folder));
    }
    let entries = entries(folder);
    let (first, newest) = (entries[0].update, entries[entries.len() - 1].update);
    assert_eq!(newest, last);
    assert_eq!(entries.len() as u64, newest - first + 1);
    // The events of the oldest that are kept are gone already: they went first.
    let oldest = &segment::list(folder).expect("listed")[0];
    assert!(oldest.updates() > first, "{first}, {oldest:?}");
    // And the next run opens it and counts on.
    drop(journal);
    let mut journal = open_with(folder, retention);
    assert_eq!(numbers(&push(&mut journal, &machine.update())), [last + 1]);
    assert_eq!(journal.problems(), [""; 0]);
}

#[test]
fn only_so_many_updates_are_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let retention = Retention {
        updates: 3,
        ..Retention::default()
    };
    let mut journal = open_with(folder.path(), retention);
    let mut machine = Machine::new();
    push(&mut journal, &machine.start());
    for _ in 0..10 {
        push(&mut journal, &machine.update());
    }
    let history = Connection::open(folder.path().join("history.db")).expect("opened");
    let kept: Vec<i64> = history
        .prepare("SELECT number FROM updates ORDER BY number")
        .and_then(|mut statement| statement.query_map([], |row| row.get(0))?.collect())
        .expect("read");
    assert_eq!(kept, [8, 9, 10]);
}

#[test]
fn files_stay_as_long_as_their_updates_are_not_in_the_history() {
    const MOST: u64 = 8 << 20;
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let retention = Retention {
        bytes: MOST,
        ..Retention::default()
    };
    let mut journal = open_with(folder, retention);
    let mut machine = Machine::new();
    // Somebody keeps the history from being written.
    let other = Connection::open(folder.join("history.db")).expect("opened");
    other.execute_batch("BEGIN IMMEDIATE").expect("locked");
    let mut records = machine.start();
    records.extend(machine.update());
    // It is told all the same, once, with the reason.
    assert_eq!(numbers(&push(&mut journal, &records)), [1]);
    assert!(journal.problems().join("").contains("lu tries again"));
    let filler: Vec<Record> = (0..2 * MOST / size_of::<Record>() as u64)
        .map(|_| machine.refused_open())
        .collect();
    assert_eq!(push(&mut journal, &filler), []);
    let files = segments(folder);
    assert!(size(folder) > 2 * MOST && files > 10, "{files}");
    assert!(journal.problems().join("").contains("--keep-size"));
    other.execute_batch("ROLLBACK").expect("unlocked");
    journal.tick().expect("ticked");
    assert_eq!(journal.settle().expect("settled"), []);
    // There is room again with the next file.
    push(
        &mut journal,
        &filler[..(MOST / 4) as usize / size_of::<Record>()],
    );
    assert!(size(folder) <= MOST && segments(folder) < files);
    assert_eq!(report(folder, 1).outcome, Outcome::Finished);
}

fn join(journal: &mut Journal, found: &Found) -> Vec<Record> {
    let mut new = Vec::new();
    journal.join(found, &mut new).expect("joined");
    new
}

/// What a recorder may hold: these records, each of whose time is its number.
fn found(numbers: impl IntoIterator<Item = u64>) -> Found {
    let record = |number| (number, Record::made(Kind::Open, number, [0; 64]));
    Found {
        run: 7,
        records: numbers.into_iter().map(record).collect(),
        senseless: 0,
        last_beat: Record::made(Kind::LastBeat, 0, [0; 64]),
    }
}

/// The times of the events in the files, and how many are missing.
fn events(folder: &Path) -> (Vec<u64>, u64) {
    let (mut times, mut lost) = (Vec::new(), 0);
    let segments = segment::list(folder).expect("listed");
    let torn = segment::replay(&segments, |record| {
        lost += record.lost().unwrap_or(0);
        if record.kind() == Some(Kind::Open) {
            times.push(record.header.t_ns);
        }
    });
    assert!(torn.expect("replayed").is_empty());
    (times, lost)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_pieces_are_missing_each_record_is_joined_once_and_the_others_are_counted(
        first in prop::collection::btree_set(0..60_u64, 0..60),
        second in prop::collection::btree_set(0..60_u64, 0..60),
    ) {
        let folder = tempfile::tempdir().expect("a folder");
        let mut expected: Vec<u64> = Vec::new();
        let mut end = 0;
        // The second time the recorder tells otherwise what was lost, and the first beat has a number too.
        for numbers in [&first, &first, &second] {
            let new: Vec<u64> = numbers.iter().copied().filter(|number| *number >= end).collect();
            let mut journal = open(folder.path());
            let joined = join(&mut journal, &found(numbers.iter().copied()));
            let events = joined.iter().filter(|record| record.kind() == Some(Kind::Open));
            prop_assert!(events.map(|record| record.header.t_ns).eq(new.iter().copied()));
            end = new.last().map_or(end, |last| last + 1) + 1;
            expected.extend(new);
        }
        let (times, lost) = events(folder.path());
        // Every number is that of an event, of a beat, or lost.
        prop_assert_eq!(times.len() as u64 + 3 + lost, end);
        prop_assert_eq!(times, expected);
    }
}

const ROLE: &str = "LU_TEST_SMALL_FILES";

/// What `a_recovery_that_fails_is_none_and_another_try_goes_on_from_there` starts in a process of its own, since the
/// limit of a file's size is a process's; nothing elsewhere.
#[test]
fn joins_where_files_must_be_small() {
    if std::env::var_os(ROLE).is_none() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let mut journal = open(folder.path());
    let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).expect("asked");
    let found = found((0..10).chain(20..2000));
    setrlimit(Resource::RLIMIT_FSIZE, 64 << 10, hard).expect("limited");
    for expected in [10, 0] {
        let mut new = Vec::new();
        let error = journal.join(&found, &mut new).expect_err("too large");
        assert!(error.to_string().contains("cannot write"), "{error}");
        // The first stretch fits, and of the second nothing is left.
        assert_eq!(new.len(), expected);
        assert_eq!(events(folder.path()), ((0..10).collect(), 0));
    }
    setrlimit(Resource::RLIMIT_FSIZE, hard, hard).expect("lifted");
    // Those that are missing, the records, the beat.
    assert_eq!(join(&mut journal, &found).len(), 1 + 1980 + 1);
    assert_eq!(journal.events().lost, 10);
    assert_eq!(journal.events().seen, 1990);
    assert_eq!(
        events(folder.path()),
        ((0..10).chain(20..2000).collect(), 10)
    );
}

#[test]
fn a_recovery_that_fails_is_none_and_another_try_goes_on_from_there() {
    let script = "trap '' XFSZ; exec \"$0\" --exact joins_where_files_must_be_small";
    let output = Command::new("sh")
        .args(["-c", script])
        .arg(std::env::current_exe().expect("this program"))
        .env(ROLE, "")
        .output()
        .expect("sh starts");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_recovery_joins_no_record_twice_though_the_runs_oldest_files_are_gone() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let retention = Retention {
        bytes: 8 << 20,
        ..Retention::default()
    };
    let mut machine = Machine::new();
    let mut journal = open_with(folder, retention);
    let run = journal.run();
    let mut records = machine.start();
    records.extend((0..150_000).map(|_| machine.refused_open()));
    push(&mut journal, &records);
    assert!(
        size(folder) < (records.len() * size_of::<Record>()) as u64,
        "none has gone"
    );
    // The rest came too late for the disk; the recorder has it, and the last 1000 before.
    let on_disk = records.len();
    records.extend(machine.old_half());
    let skipped = on_disk - 1000;
    drop(journal);
    let numbered = (skipped as u64..).zip(records[skipped..].iter().copied());
    let recovered = Found {
        run,
        records: numbered.collect(),
        senseless: 0,
        last_beat: Record::made(Kind::LastBeat, 0, [0; 64]),
    };
    for again in [false, true] {
        let mut journal = open_with(folder, retention);
        let new = join(&mut journal, &recovered);
        // Once it has all of it, another try brings the beat alone.
        let expected = if again { 0 } else { records.len() - on_disk };
        assert_eq!(new.len(), expected + 1);
        assert_eq!(journal.events().lost, 0);
    }
    let mut lost = 0;
    segment::replay(&segment::list(folder).expect("listed"), |record| {
        lost += record.lost().unwrap_or(0);
    })
    .expect("replayed");
    assert_eq!(lost, 0);
    // What was overwritten in the recorder before it came to the disk is a loss.
    let behind = recovered.records.len() as u64 + 6;
    let mut later = recovered;
    for (number, _) in &mut later.records {
        *number += behind;
    }
    let mut journal = open_with(folder, retention);
    join(&mut journal, &later);
    // Of seven numbers, one was the first beat and one the second.
    assert_eq!(journal.events().lost, 4);
    drop(journal);
    let (latest, _) = Reader::open(folder).latest().expect("read");
    assert_eq!(latest.expect("under way").events.lost, 4);
}

#[test]
fn the_views_tell_what_is_in_the_reports() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut machine = Machine::new();
    let mut journal = open(folder.path());
    push(&mut journal, &machine.start());
    for _ in 0..3 {
        push(&mut journal, &machine.update());
    }
    let history = Connection::open(folder.path().join("history.db")).expect("opened");
    let ask = |sql: &str| -> String {
        history
            .query_row(sql, [], |row| row.get::<_, rusqlite::types::Value>(0))
            .map(|value| format!("{value:?}"))
            .expect(sql)
    };
    for (sql, answer) in [
        (
            "SELECT count(*) FROM sessions WHERE outcome = 'finished'",
            "Integer(6)",
        ),
        (
            "SELECT count(*) FROM files WHERE outcome = 'restored' AND restore_ns = 5000",
            "Integer(18)",
        ),
        (
            "SELECT token FROM files WHERE number = 2 AND length(token) > 9",
            "Text(\"18446744073709551615\")",
        ),
        (
            "SELECT count(*) FROM phases WHERE name = 'restore' AND known",
            "Integer(3)",
        ),
        ("SELECT count(*) FROM errors", "Integer(0)"),
        ("SELECT count(*) FROM verdicts", "Integer(0)"),
        (
            "SELECT restored FROM updates WHERE number = 3",
            "Integer(6)",
        ),
        (
            "SELECT clock FROM updates WHERE uncertainty_ns > 0",
            "Text(\"counter\")",
        ),
        ("PRAGMA integrity_check", "Text(\"ok\")"),
    ] {
        assert_eq!(ask(sql), answer, "{sql}");
    }
}

/// An example stands beside the folder of the tests.
fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a path");
    let target = test.parent().and_then(Path::parent).expect("a folder");
    let example = target.join("examples").join(name);
    assert!(
        example.exists(),
        "{} is not built: run the tests with cargo",
        example.display()
    );
    example
}

/// Ends a program that keeps a journal at random moments. What it was told to have is there each time.
#[test]
fn killed_forty_times_the_journal_has_all_that_was_committed() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let (mut before, mut kept) = (0, 0);
    for kill in 0..40 {
        let mut child = Command::new(example("updates"))
            .arg(folder)
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let out = BufReader::new(child.stdout.take().expect("piped"));
        let lines =
            std::thread::spawn(move || out.lines().map_while(Result::ok).collect::<Vec<_>>());
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let random = u64::from(now.expect("a time").subsec_nanos()) % 250_000;
        std::thread::sleep(Duration::from_micros(random));
        child.kill().expect("killed");
        child.wait().expect("ended");
        let lines = lines.join().expect("read");
        // The last line may have been cut off.
        let whole = lines.iter().rev().find(|line| line.ends_with(']'));
        let committed: u64 = whole.map_or(0, |line| {
            let number = line.split(' ').next().expect("a word");
            number.parse().expect("a number")
        });
        let told: Vec<u64> = lines
            .iter()
            .filter(|line| line.ends_with(']'))
            .filter_map(|line| line.split_once(" [")?.1.strip_suffix(']'))
            .flat_map(|numbers| numbers.split(", ").filter_map(|number| number.parse().ok()))
            .collect();
        if !segment::list(folder).is_ok_and(|segments| !segments.is_empty()) {
            // It was killed before it had begun.
            assert_eq!(committed, 0);
            continue;
        }
        let mut records = 0;
        let segments = segment::list(folder).expect("listed");
        segment::replay(&segments, |record| {
            assert_eq!(record.lost(), None, "kill {kill}");
            records += 1;
        })
        .expect("replayed");
        assert!(
            records >= before + committed,
            "kill {kill}: {records} of {before} and {committed}"
        );
        before = records;
        let (entries, _) = Reader::open(folder).entries(None, None).expect("listed");
        let numbers: Vec<u64> = entries.iter().rev().map(|entry| entry.update).collect();
        assert!(
            numbers.iter().copied().eq(1..=numbers.len() as u64),
            "{numbers:?}"
        );
        for number in told {
            assert!(
                numbers.contains(&number),
                "kill {kill}: {number} is missing"
            );
            kept += 1;
        }
        if let Ok(history) = Connection::open(folder.join("history.db")) {
            let check: String = history
                .query_row("PRAGMA integrity_check", [], |row| row.get(0))
                .expect("asked");
            assert_eq!(check, "ok", "kill {kill}");
        }
    }
    assert!(
        kept > 40 && before > 1000,
        "{kept} updates, {before} records"
    );
}
