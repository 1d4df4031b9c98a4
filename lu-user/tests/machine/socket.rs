//! The socket of `lu run`, with real events.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::{Failed, Trial};
use lu_user::export::Report;
use lu_user::journal::Reader;
use lu_user::socket::{Client, Message, Records, Status};
use lu_user::timeline::Timeline;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::clients::path;
use crate::support::{Background, Outcome, client, expect_status, finish, lu, run, scratch, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial(
            "what_lu_run_sees_comes_over_its_socket_whoever_does_not_read_it_or_says_anything",
            crowd,
        ),
        trial(
            "who_comes_to_the_socket_in_the_middle_of_an_update_knows_what_the_journal_knows",
            in_the_middle,
        ),
        trial(
            "the_socket_is_roots_and_its_groups_and_a_killed_lu_run_leaves_one_that_is_replaced",
            owners,
        ),
    ]
}

/// How long a `lu run` may take to tell something.
const PATIENCE: Duration = Duration::from_secs(20);

/// A `lu run` with a socket.
struct Watcher {
    background: Background,
    socket: PathBuf,
    journal: PathBuf,
    folder: tempfile::TempDir,
}

impl Watcher {
    fn start(more: &[&str]) -> Result<Self, Failed> {
        let folder = scratch();
        let [socket, journal] = ["lu.sock", "journal"].map(|name| folder.path().join(name));
        let args = [
            "run",
            "--journal",
            path(&journal)?,
            "--socket",
            path(&socket)?,
        ];
        Ok(Self {
            background: Background::watch(&[&args, more].concat(), Stdio::null())?,
            socket,
            journal,
            folder,
        })
    }

    /// A `lu trace --from-socket` into a file, past its first snapshot.
    fn trace(&self, name: &str, more: &[&str]) -> Result<(Background, PathBuf), Failed> {
        let out = self.folder.path().join(name);
        let args = ["trace", "--json", "--from-socket", path(&self.socket)?];
        let stdout = File::create(&out)?.into();
        Ok((
            Background::start(&[&args, more].concat(), stdout, "lu: follows")?,
            out,
        ))
    }
}

fn lines(path: &Path) -> Result<Vec<Value>, Failed> {
    let text = fs::read_to_string(path)?;
    let lines = text.lines().map(serde_json::from_str);
    Ok(lines.collect::<Result<_, _>>()?)
}

fn expect(holds: bool, otherwise: impl FnOnce() -> String) -> Outcome {
    if holds {
        Ok(())
    } else {
        Err(otherwise().into())
    }
}

const CALLS: u64 = 20_000;

/// What a client got: the numbers of the records, how many snapshots, and the last status.
type Got = Result<(BTreeSet<u64>, u64, Option<Status>), Failed>;

fn take_all(client: Client) -> Got {
    let (mut numbers, mut snapshots, mut status) = (BTreeSet::new(), 0, None);
    let mut is_snapshot = false;
    for message in client {
        match message? {
            Message::SnapshotBegin(_) => {
                snapshots += 1;
                is_snapshot = true;
            }
            Message::SnapshotEnd => is_snapshot = false,
            Message::Records(Records { first, records }) => {
                for number in first
                    .into_iter()
                    .flat_map(|first| first..first + records.len() as u64)
                {
                    if !numbers.insert(number) && !is_snapshot {
                        return Err(format!("record {number} came twice").into());
                    }
                }
            }
            Message::Status(now) => status = Some(*now),
            Message::Bye(_) => {}
        }
    }
    Ok((numbers, snapshots, status))
}

fn crowd() -> Outcome {
    let watcher = Watcher::start(&[])?;
    let (trace, out) = watcher.trace("trace", &[])?;
    let client_of = Client::connect(&watcher.socket)?;
    let reader = thread::spawn(move || take_all(client_of));
    let sleeper = UnixStream::connect(&watcher.socket)?;
    let mut hostile = UnixStream::connect(&watcher.socket)?;
    hostile.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
    // Those that are too many hear it; none of them reads, and all are there until the end.
    let crowd: Vec<UnixStream> = (0..100)
        .map(|_| UnixStream::connect(&watcher.socket))
        .collect::<Result<_, _>>()?;
    let program = client("hammer", &["-static"])?;
    let count = CALLS.to_string();
    expect_status(&run(&["emulate", "--", path(&program)?, &count])?, 0)?;
    // It is gone, whatever it has read.
    hostile.set_read_timeout(Some(PATIENCE))?;
    let mut rest = Vec::new();
    if let Err(error) = hostile.read_to_end(&mut rest)
        && error.kind() != std::io::ErrorKind::ConnectionReset
    {
        return Err(format!("who says something stays: {error}").into());
    }
    let said = watcher.background.stop()?;
    expect(said.contains(", 0 lost"), || said.clone())?;
    trace.end()?;
    let (numbers, snapshots, status) = reader.join().map_err(|_| "the reader panicked")??;
    drop((sleeper, crowd));
    let last = numbers.last().copied().unwrap_or(0);
    expect(last > CALLS && numbers.len() as u64 == last + 1, || {
        format!(
            "{} records up to number {last}, in {snapshots} snapshots",
            numbers.len()
        )
    })?;
    let events = lines(&out)?;
    let tokens: Vec<u64> = events
        .iter()
        .filter(|event| event["kind"] == "unpreserve")
        .filter_map(|event| event["token"].as_u64())
        .collect();
    expect(tokens.iter().copied().eq(0..CALLS), || {
        format!("{} calls were printed, or not in order", tokens.len())
    })?;
    expect(events.iter().all(|event| event["lost"].is_null()), || {
        "a loss was printed".to_owned()
    })?;
    // The same lines as from the journal, from the first one on that was new.
    let journal = run(&["trace", "--json", "--journal", path(&watcher.journal)?])?;
    let journal = String::from_utf8_lossy(&journal.stdout);
    let printed = fs::read_to_string(&out)?;
    expect(journal.ends_with(&printed), || {
        "the journal has other lines".to_owned()
    })?;
    let status = status.ok_or("no status came")?;
    expect(
        status.hooks.attached > 0
            && status.hooks.attached == status.hooks.of
            && status.hooks.orchestrator == "emulated"
            && status.journal == path(&watcher.journal)?
            && status.losses.is_some_and(|losses| losses.ring_full == 0)
            && status.policy.is_none(),
        || format!("{status:?}"),
    )?;
    expect(!watcher.socket.exists(), || "the socket stays".to_owned())
}

/// A client of an emulator that does a line of its standard input after the other.
struct Holder(Child);

impl Holder {
    fn start(device: &Path) -> Result<Self, Failed> {
        let holder = Command::new(lu())
            .args([
                "ctl",
                "--device",
                path(device)?,
                "--hold",
                "preserve",
                "1",
                "--memfd",
                "64KiB",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()?;
        Ok(Self(holder))
    }

    fn does(&mut self, line: &str) -> Outcome {
        let input = self.0.stdin.as_mut().ok_or("no standard input")?;
        Ok(writeln!(input, "{line}")?)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// All that a timeline tells of its updates, and how many events it has seen.
fn told(timeline: &Timeline) -> Result<Vec<Value>, Failed> {
    let reports = timeline.updates().map(Report::from);
    let mut told = vec![serde_json::to_value(timeline.events().seen)?];
    for report in reports {
        told.push(serde_json::to_value(report)?);
    }
    Ok(told)
}

/// The journal, once it tells of an update with this outcome.
fn once(journal: &Path, outcome: &str) -> Result<Timeline, Failed> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (timeline, _) = Reader::open(journal).timeline(|_| {})?;
        let newest = timeline.updates().next_back().map(Report::from);
        if newest.is_some_and(|report| report.outcome.name() == outcome) {
            return Ok(timeline);
        }
        if Instant::now() > deadline {
            return Err(format!("no update is told to be {outcome}").into());
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Takes in what comes until the timeline tells the same.
fn until_same(client: &mut Client, timeline: &mut Timeline, wanted: &Timeline) -> Outcome {
    let wanted = told(wanted)?;
    let deadline = Instant::now() + PATIENCE;
    while told(timeline)? != wanted {
        if Instant::now() > deadline {
            return Err(format!("{:?}\nand not\n{wanted:?}", told(timeline)?).into());
        }
        match client.next().ok_or("nothing more came")?? {
            Message::SnapshotBegin(begin) => *timeline = begin.timeline(),
            Message::Records(batch) => batch.records.iter().for_each(|it| timeline.push(it)),
            Message::SnapshotEnd | Message::Status(_) => {}
            Message::Bye(why) => return Err(why.into()),
        }
    }
    Ok(())
}

fn in_the_middle() -> Outcome {
    let watcher = Watcher::start(&[])?;
    let device = watcher.folder.path().join("liveupdate");
    let args = ["emulate", "--interface", "v3", "--at", path(&device)?];
    let emulator = Background::start(&args, Stdio::null(), "Ctrl-C ends it")?;
    let mut holder = Holder::start(&device)?;
    holder.does("prepare")?;
    let prepared = once(&watcher.journal, "in-progress")?;
    // It comes when everything there is has happened.
    let mut client = Client::connect(&watcher.socket)?;
    let mut timeline = Timeline::new();
    until_same(&mut client, &mut timeline, &prepared)?;
    holder.does("cancel")?;
    let cancelled = once(&watcher.journal, "cancelled")?;
    until_same(&mut client, &mut timeline, &cancelled)?;
    // What is printed with --all begins where the journal begins.
    let (trace, out) = watcher.trace("all", &["--all"])?;
    trace.stop()?;
    let kinds: Vec<Value> = lines(&out)?
        .into_iter()
        .map(|event| event["kind"].clone())
        .collect();
    expect(
        ["kernel", "preserve", "prepare", "cancel"]
            .iter()
            .all(|kind| kinds.contains(&Value::from(*kind))),
        || format!("{kinds:?}"),
    )?;
    drop(holder);
    emulator.stop()?;
    watcher.background.stop().map(drop)
}

/// A group that nobody is in.
const GROUP: u32 = 54_321;
const NOBODY: u32 = 65_534;

fn owners() -> Outcome {
    let watcher = Watcher::start(&["--socket-group", &GROUP.to_string()])?;
    let socket = path(&watcher.socket)?;
    let about = fs::metadata(&watcher.socket)?;
    expect(
        (about.mode(), about.uid(), about.gid()) == (0o140_660, 0, GROUP),
        || format!("mode {:o}, {}:{}", about.mode(), about.uid(), about.gid()),
    )?;
    // Once it has answered, it has given up what it had.
    let snapshot =
        Client::connect(&watcher.socket)?.find(|it| matches!(it, Ok(Message::SnapshotEnd)));
    snapshot.ok_or("no snapshot came")??;
    no_privileges(&watcher)?;
    fs::set_permissions(watcher.folder.path(), Permissions::from_mode(0o755))?;
    // What is built may be in a folder of root's alone.
    let program = watcher.folder.path().join("lu");
    fs::copy(lu(), &program)?;
    for (group, status) in [(GROUP, 0), (NOBODY, 1)] {
        let mut trace = Command::new(&program);
        trace.args(["trace", "--for", "100ms", "--from-socket", socket]);
        let output = finish({
            trace.uid(NOBODY).gid(group);
            trace
        })?;
        expect_status(&output, status)?;
    }
    let other = watcher.folder.path().join("other");
    let args = ["run", "--journal", path(&other)?, "--socket", socket];
    let mut second = Background::start(&args, Stdio::null(), "no socket: another lu run has")?;
    second.wait_for(" hooks attached to ")?;
    second.stop()?;
    // The first one's is still answered.
    let (trace, _) = watcher.trace("killed", &[])?;
    watcher.background.signal(Signal::SIGKILL)?;
    match trace.end() {
        Err(failed)
            if failed
                .message()
                .is_some_and(|said| said.contains("lu run is gone")) => {}
        ended => return Err(format!("lu run was killed, and the trace said {ended:?}").into()),
    }
    // The kernel takes its time to close all that it had: until then the socket is in use.
    drop(watcher.background);
    expect(watcher.socket.exists(), || {
        "SIGKILL leaves no socket".to_owned()
    })?;
    let third = Background::watch(&args, Stdio::null())?;
    Client::connect(&watcher.socket)?;
    expect(fs::metadata(&watcher.socket)?.gid() == 0, || {
        "it was not replaced".to_owned()
    })?;
    third.stop()?;
    let none = ["run", "--journal", path(&other)?, "--no-socket"];
    Background::watch(&none, Stdio::null())?.stop()?;
    expect(!watcher.socket.exists(), || "there is one".to_owned())
}

/// None of its threads has any.
fn no_privileges(watcher: &Watcher) -> Outcome {
    let tasks = fs::read_dir(format!("/proc/{}/task", watcher.background.pid()))?;
    let mut threads = 0;
    for task in tasks {
        let status = fs::read_to_string(task?.path().join("status"))?;
        threads += 1;
        for wanted in [
            "CapEff:\t0000000000000000",
            "CapPrm:\t0000000000000000",
            "NoNewPrivs:\t1",
        ] {
            expect(status.contains(wanted), || status.clone())?;
        }
    }
    expect(threads >= 2, || {
        format!("{threads} threads: the socket has none")
    })
}
