//! Where records come from. Each source runs in a thread of its own and sends what it has through a bounded
//! channel: nothing of the screen ever waits for one, and nothing of a source is kept but what fits into it.

use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use lu_common::event::Record;

use super::app::Inbox;
use crate::export::{Entry, InForceJson};
use crate::gate::Machine;
use crate::journal::history::History;
use crate::journal::read::Recording;
use crate::journal::{self, Reader};
use crate::socket::{self, Client};
use crate::timeline::clock::Axis;
use crate::timeline::{PhaseName, Timeline};

/// What a source says.
pub enum Message {
    /// All that was known is forgotten: what comes goes into this.
    Begin(Box<Timeline>),
    /// Records, in their order.
    Records(Vec<Record>),
    /// How a recording is played now.
    Playing(Playing),
    /// What was found on the machine.
    Machine(Machine),
    /// The paths of cgroups.
    Cgroups(Vec<(u64, String)>),
    /// The updates of the journal, newest first; why that is not all, where it is not.
    History(Vec<Entry>, Option<String>),
    /// What is in force in the kernel, as it counts.
    InForce(Box<InForceJson>),
    /// Nothing more will come, for this reason.
    Ended(String),
}

/// How a recording is played.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Playing {
    /// How many records have been.
    pub at: u64,
    /// How many there are.
    pub of: u64,
    /// How many seconds of the recording go by in one.
    pub speed: f64,
    /// Whether it is paused.
    pub is_paused: bool,
    /// What time it is in the recording, in nanoseconds on the timeline's axis, at `since`.
    pub now_ns: u64,
    /// When that was said.
    pub since: Instant,
}

impl Playing {
    /// What time it is in the recording.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        if self.is_paused || self.at >= self.of {
            return self.now_ns;
        }
        let passed = self.since.elapsed().as_secs_f64() * self.speed;
        self.now_ns.saturating_add((passed * 1e9) as u64)
    }
}

/// What whoever plays a recording is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Pause, or go on.
    Toggle,
    /// One record.
    Step,
    /// Half as fast.
    Slower,
    /// Twice as fast.
    Faster,
    /// To where the next phase begins.
    NextPhase,
    /// To where this phase, or the one before, began.
    PreviousPhase,
}

/// How many records are sent at once.
pub const BATCH: usize = 4096;

/// The slowest and the fastest.
const SPEEDS: (f64, f64) = (1.0 / 64.0, 65536.0);

/// How long nothing happens, at most, while no update is under way.
const IDLE_NS: u64 = 1_000_000_000;

/// A recording, and what happens in it where.
pub struct Replay {
    recording: Recording,
    /// Where phases begin, by the records' numbers; `None`: where no update is under way any more.
    marks: Vec<(u64, Option<PhaseName>)>,
    /// The number of the first record to look at: the last update's first, or the wanted one's.
    begin: u64,
    /// How many records there are.
    of: u64,
}

impl Replay {
    /// Looks through the journal in `folder`: where phases begin, and where the update is that is wanted (else the
    /// last one).
    pub fn open(folder: &Path, wanted: Option<u64>) -> anyhow::Result<Self> {
        let recording = Recording::open(folder, wanted)?;
        let mut timeline = recording.timeline();
        let (mut marks, mut of) = (Vec::new(), 0);
        let (mut last, mut begin) = (None, None);
        recording.play(|record| {
            timeline.push(record);
            // Where another one begins, the one that is wanted is told to its end.
            if wanted.is_some_and(|wanted| timeline.last_number() > wanted) {
                return ControlFlow::Break(());
            }
            let latest = timeline.latest();
            let now = latest.and_then(|update| Some((update.number, update.stage()?)));
            if now != last {
                let number = |of: Option<(u64, PhaseName)>| of.map(|(number, _)| number);
                let is_wanted = |number| wanted.is_none_or(|wanted| wanted == number);
                if number(now) != number(last) && number(now).is_some_and(is_wanted) {
                    begin = Some(of);
                }
                marks.push((of, now.map(|(_, phase)| phase)));
                last = now;
            }
            of += 1;
            ControlFlow::Continue(())
        })?;
        if let (Some(wanted), None) = (wanted, begin) {
            anyhow::bail!(
                "the records of update {wanted} are not in {}: `lu history` lists the updates, and `lu report \
                 --update {wanted}` tells what was kept of one whose records are gone",
                folder.display()
            );
        }
        Ok(Self {
            recording,
            marks,
            begin: begin.unwrap_or(0),
            of,
        })
    }

    /// The timeline that its records go into.
    #[must_use]
    pub fn timeline(&self) -> Timeline {
        self.recording.timeline()
    }

    /// Hands on all of it.
    pub fn whole(&self, mut each: impl FnMut(&Record)) -> Result<(), journal::Error> {
        let mut at = 0;
        let played = self.recording.play(|record| {
            if at == self.of {
                return ControlFlow::Break(());
            }
            at += 1;
            each(record);
            ControlFlow::Continue(())
        });
        played.map(drop)
    }

    /// Plays it in a thread of its own, as it is told to.
    #[must_use]
    pub fn start(self, inbox: Inbox) -> Sender<Command> {
        let (sender, commands) = channel();
        thread::spawn(move || {
            let mut player = Player {
                replay: &self,
                inbox: &inbox,
                commands: &commands,
                at: 0,
                target: self.begin + 1,
                speed: 1.0,
                is_paused: false,
                now_ns: 0,
                since: Instant::now(),
                batch: Vec::new(),
            };
            let done = player.play();
            if let Err(error) = done {
                let _ = inbox.send(Message::Ended(error.to_string()));
            }
        });
        sender
    }
}

/// What goes on from here.
enum Next {
    /// The next record.
    Record,
    /// All of it once more, from its beginning.
    Again,
    /// Nobody listens.
    End,
}

struct Player<'a> {
    replay: &'a Replay,
    inbox: &'a Inbox,
    commands: &'a Receiver<Command>,
    /// How many records have been.
    at: u64,
    /// The records before this one do not wait for their time.
    target: u64,
    speed: f64,
    is_paused: bool,
    /// What time it was in the recording at `since`.
    now_ns: u64,
    since: Instant,
    batch: Vec<Record>,
}

impl Player<'_> {
    fn play(&mut self) -> Result<(), journal::Error> {
        loop {
            self.at = 0;
            self.batch.clear();
            self.now_ns = 0;
            if !self
                .inbox
                .send(Message::Begin(Box::new(self.replay.timeline())))
            {
                return Ok(());
            }
            let mut axis = Axis::default();
            let mut next = Next::Record;
            self.replay.recording.play(|record| {
                if self.at == self.replay.of {
                    return ControlFlow::Break(());
                }
                if let Some(anchor) = record.anchor() {
                    axis.read(record.header.t_ns, anchor);
                }
                next = self.wait(axis.at(record.end_ns().unwrap_or(record.header.t_ns)));
                if !matches!(next, Next::Record) {
                    return ControlFlow::Break(());
                }
                self.batch.push(*record);
                self.at += 1;
                if self.batch.len() == BATCH && !self.flush() {
                    next = Next::End;
                    return ControlFlow::Break(());
                }
                ControlFlow::Continue(())
            })?;
            // At its end too somebody may want to go back.
            while matches!(next, Next::Record) {
                if !self.flush() || !self.tell() {
                    return Ok(());
                }
                next = match self.commands.recv() {
                    Ok(command) => self.obey(command),
                    Err(_) => Next::End,
                };
            }
            if matches!(next, Next::End) {
                return Ok(());
            }
        }
    }

    /// Waits until it is `t_ns` in the recording.
    fn wait(&mut self, t_ns: u64) -> Next {
        if self.at < self.target {
            self.now_ns = self.now_ns.max(t_ns);
            self.since = Instant::now();
            return Next::Record;
        }
        // What lies between two updates may be months.
        let is_idle = self.phase().is_none();
        loop {
            let now_ns = self.passed();
            let left = t_ns.saturating_sub(now_ns);
            let left = if is_idle { left.min(IDLE_NS) } else { left };
            let left = Duration::from_secs_f64(left as f64 / 1e9 / self.speed);
            if !self.is_paused && left < Duration::from_millis(2) {
                self.now_ns = now_ns.max(t_ns);
                self.since = Instant::now();
                return Next::Record;
            }
            if !self.flush() || !self.tell() {
                return Next::End;
            }
            let started = Instant::now();
            let heard = if self.is_paused {
                self.commands
                    .recv()
                    .map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                self.commands.recv_timeout(left)
            };
            match heard {
                Ok(command) => {
                    self.now_ns = self.passed();
                    self.since = Instant::now();
                    let next = self.obey(command);
                    if !matches!(next, Next::Record) || self.at < self.target {
                        return next;
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return Next::End,
                Err(RecvTimeoutError::Timeout) if is_idle && started.elapsed() >= left => {
                    self.now_ns = t_ns.max(self.now_ns);
                    self.since = Instant::now();
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// What time it is in the recording.
    fn passed(&self) -> u64 {
        if self.is_paused {
            return self.now_ns;
        }
        let passed = self.since.elapsed().as_secs_f64() * self.speed;
        self.now_ns.saturating_add((passed * 1e9) as u64)
    }

    /// The phase that the last record was in.
    fn phase(&self) -> Option<PhaseName> {
        let marks = &self.replay.marks;
        let after = marks.partition_point(|(mark, _)| *mark < self.at);
        marks.get(after.checked_sub(1)?)?.1
    }

    fn obey(&mut self, command: Command) -> Next {
        let marks = &self.replay.marks;
        match command {
            Command::Toggle if self.at == self.replay.of => {
                self.is_paused = false;
                return self.back_to(self.replay.begin + 1);
            }
            Command::Toggle => self.is_paused = !self.is_paused,
            Command::Step => {
                self.is_paused = true;
                self.target = self.at + 1;
            }
            Command::Slower => self.speed = (self.speed / 2.0).max(SPEEDS.0),
            Command::Faster => self.speed = (self.speed * 2.0).min(SPEEDS.1),
            Command::NextPhase => {
                let next = marks.iter().find(|(mark, _)| *mark >= self.at);
                self.target = next.map_or(self.replay.of, |(mark, _)| mark + 1);
                // A phase may take a few microseconds: whoever goes there wants to see it.
                self.is_paused = true;
            }
            Command::PreviousPhase => {
                // The one that begins with the last record is left for the one before.
                let before = marks.partition_point(|(mark, _)| mark + 1 < self.at);
                let mark = before.checked_sub(1).map_or(0, |at| marks[at].0);
                self.is_paused = true;
                return self.back_to(mark + 1);
            }
        }
        Next::Record
    }

    fn back_to(&mut self, target: u64) -> Next {
        self.target = target;
        Next::Again
    }

    fn flush(&mut self) -> bool {
        self.batch.is_empty()
            || self
                .inbox
                .send(Message::Records(std::mem::take(&mut self.batch)))
    }

    fn tell(&self) -> bool {
        self.inbox.send(Message::Playing(Playing {
            at: self.at,
            of: self.replay.of,
            speed: self.speed,
            is_paused: self.is_paused,
            now_ns: self.passed(),
            since: Instant::now(),
        }))
    }
}

/// The pause between two tries to reach a `lu run` that has gone.
const AGAIN: Duration = Duration::from_secs(1);

/// Follows the `lu run` at a socket in a thread of its own, and the next one at the same place.
pub fn follow(client: Client, path: PathBuf, inbox: Inbox) {
    thread::spawn(move || {
        let mut next: Result<_, socket::Error> = Ok(client);
        loop {
            let why = match next {
                Ok(client) => match hear(client, &inbox) {
                    Some(why) => why,
                    // Nobody listens.
                    None => return,
                },
                Err(error) => error.to_string(),
            };
            if !inbox.send(Message::Ended(why)) {
                return;
            }
            thread::sleep(AGAIN);
            next = Client::connect(&path);
        }
    });
}

/// Hands on what a `lu run` says; why it said no more, while somebody listens.
fn hear(client: Client, inbox: &Inbox) -> Option<String> {
    for message in client {
        let sent = match message {
            Ok(socket::Message::SnapshotBegin(begin)) => {
                inbox.send(Message::Begin(Box::new(begin.timeline())))
            }
            Ok(socket::Message::Records(records)) => inbox.send(Message::Records(records.records)),
            Ok(socket::Message::Status(status)) => {
                let in_force = status.policy.and_then(|policy| policy.in_force);
                in_force.is_none_or(|it| inbox.send(Message::InForce(Box::new(it))))
            }
            Ok(socket::Message::SnapshotEnd) => true,
            Ok(socket::Message::Bye(why)) => return Some(why),
            Err(error) => return Some(error.to_string()),
        };
        if !sent {
            return None;
        }
    }
    Some("it said no more".to_owned())
}

/// How many updates of the history are shown.
const SHOWN: u64 = 1000;

/// The updates of the journal in `folder`, newest first. Of those that have ended its database knows; only without one
/// the records are gone through.
#[must_use]
pub fn history(folder: &Path) -> Message {
    if let Ok(Some(history)) = History::read(folder) {
        return match history.entries(Some(SHOWN), None) {
            Ok(entries) => Message::History(entries, None),
            Err(error) => Message::History(Vec::new(), Some(error.to_string())),
        };
    }
    let reader = Reader::open(folder);
    let problem = reader.problem.as_ref().map(ToString::to_string);
    match reader.entries(Some(SHOWN), None) {
        Ok((entries, _)) => Message::History(entries, problem),
        Err(error) => Message::History(Vec::new(), Some(error.to_string())),
    }
}

/// Where the unified hierarchy of cgroups may be.
const CGROUPS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// How deep it is looked into, and at how many cgroups.
const DEEPEST: usize = 16;
const MOST: usize = 100_000;

/// The paths of all cgroups of this machine, by their ids: these are the numbers of their folders' inodes.
#[must_use]
pub fn cgroups() -> Vec<(u64, String)> {
    let mut all = Vec::new();
    let root = CGROUPS.into_iter().rfind(|root| Path::new(root).is_dir());
    let mut left: Vec<(PathBuf, usize)> = root.map(|root| (root.into(), 0)).into_iter().collect();
    let root = root.unwrap_or_default();
    while let Some((folder, depth)) = left.pop() {
        let Ok(metadata) = std::fs::metadata(&folder) else {
            continue;
        };
        let shown = folder.to_string_lossy();
        let path = shown.strip_prefix(root).unwrap_or(&shown);
        let path = if path.is_empty() { "/" } else { path };
        all.push((metadata.ino(), crate::timeline::shown(path.as_bytes())));
        if depth == DEEPEST || all.len() == MOST {
            continue;
        }
        let inside = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        let folders = inside.filter(|entry| entry.file_type().is_ok_and(|it| it.is_dir()));
        left.extend(folders.map(|entry| (entry.path(), depth + 1)));
    }
    all
}
