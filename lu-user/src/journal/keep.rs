//! The journal as `lu run` keeps it.
//!
//! A record is committed once [`Journal::push`] has returned: it is in a file, and safe from the end of this process.
//! It is safe from the end of the machine once it was synced. An update that has ended is told once it is in the
//! history; before that its records are synced, so that the history never has what the files lack. Nothing else waits
//! for the disk. At the start what the files have and the history lacks is made
//! up for: the numbers go on from there, and so does an update that is under way.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use lu_common::event::Record;

use super::clocks::realtime_ns;
use super::context::Context;
use super::history::{self, History};
use super::read::tail;
use super::segment::{self, Segment, Start, Writer};
use super::tape::{self, Found};
use super::{Error, at};
use crate::export::Report;
use crate::timeline::{Events, Timeline};

/// A file's size at which the next one begins, in bytes, unless little may be kept.
const SEGMENT: u64 = 16 << 20;

/// The least that a journal can work with, in bytes.
pub const LEAST: u64 = 8 << 20;

/// How many updates that came late are written to the history at once.
const BATCH: usize = 256;

/// How long the folder may be another lu's before we give up: a service that is started again may overlap with what
/// it was before.
const PATIENCE: Duration = Duration::from_secs(2);

/// The pause between two tries.
const PAUSE: Duration = Duration::from_millis(50);

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// The newest so many updates.
    pub updates: u64,
    /// Everything in the folder that is lu's, in bytes.
    pub bytes: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            updates: 10_000,
            bytes: 256 << 20,
        }
    }
}

impl Start {
    /// That of a file which goes on where these are.
    fn of(timeline: &Timeline, context: &Context) -> Self {
        Self {
            updates: timeline.last_number(),
            is_quiet: timeline.is_quiet(),
            context: context.records(),
        }
    }
}

/// The writing end of a journal.
pub struct Journal {
    folder: PathBuf,
    /// The folder is ours to write to as long as this is open.
    _lock: File,
    retention: Retention,
    run: u64,
    history: Option<History>,
    writer: Option<Writer>,
    timeline: Timeline,
    context: Context,
    /// What the timeline had seen when this run began.
    before: Events,
    /// How many of the timeline's ended updates were taken over.
    ended: u64,
    /// Those that are still to be kept.
    pending: Vec<Report>,
    /// How many of these were told, in front.
    told: usize,
    /// Whether it is time to try again.
    is_due: bool,
    /// The one that ended last, as it was taken over.
    newest: Option<Report>,
    /// What was written to the history since it was last looked whether there is room, in bytes.
    since_retained: u64,
    /// Whether it is time to look.
    wants_room: bool,
    problems: Vec<String>,
    /// The last of them: what goes on is said once.
    last_problem: String,
}

impl Journal {
    /// Opens the journal in `folder`, which is made, for root alone, where it is missing; brings the history up
    /// to date. Others may read it meanwhile, but nobody else can open it like this: [`Error::Taken`] after two
    /// seconds.
    pub fn open(folder: &Path, retention: Retention) -> Result<Self, Error> {
        if retention.bytes < LEAST {
            return Err(Error::TooSmall(retention.bytes));
        }
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(at("create", folder))?;
        let owner = fs::metadata(folder).map_err(at("look at", folder))?.uid();
        if owner != nix::unistd::geteuid().as_raw() {
            return Err(Error::Owner {
                path: folder.into(),
                owner,
            });
        }
        let mut journal = Self {
            folder: folder.into(),
            _lock: lock(folder)?,
            retention,
            run: realtime_ns(),
            history: None,
            writer: None,
            timeline: Timeline::new(),
            context: Context::default(),
            before: Events::default(),
            ended: 0,
            pending: Vec::new(),
            told: 0,
            is_due: false,
            newest: None,
            since_retained: 0,
            wants_room: false,
            problems: Vec::new(),
            last_problem: String::new(),
        };
        match History::open(folder) {
            Ok(history) => journal.history = Some(history),
            Err(error) => journal.problem(format!("no history is kept: {error}")),
        }
        journal.catch_up()?;
        Ok(journal)
    }

    /// Keeps so much from now on, as [`Self::open`] would; where that is refused, what it was stays.
    pub const fn keep_at_most(&mut self, retention: Retention) -> Result<(), Error> {
        if retention.bytes < LEAST {
            return Err(Error::TooSmall(retention.bytes));
        }
        self.retention = retention;
        self.wants_room = true;
        Ok(())
    }

    /// Takes in what the files have beyond the history.
    fn catch_up(&mut self) -> Result<(), Error> {
        let known = self.known();
        let segments = match segment::list(&self.folder) {
            Ok(segments) => segments,
            Err(error) => {
                self.problem(format!("what was before is not told: {error}"));
                Vec::new()
            }
        };
        // Without a history there is nothing to be made up for.
        let (segments, timeline) = tail(&segments, known.unwrap_or(u64::MAX));
        self.timeline = timeline;
        // Their writer may have been killed, and the history must not be ahead of them.
        segment::sync(segments)?;
        let replayed = segment::replay(segments, |record| {
            self.take_in(record);
            if self.pending.len() >= self.told + BATCH {
                self.keep();
            }
        });
        if let Err(error) = replayed {
            self.problem(format!("not all of what was before is told: {error}"));
        }
        self.keep();
        let known = self.known().unwrap_or(0);
        self.timeline.count_from(known);
        self.before = self.timeline.events();
        self.retain()
    }

    /// The number of the newest update in the history, where there is one.
    fn known(&mut self) -> Option<u64> {
        match self.history.as_ref()?.last_number() {
            Ok(number) => Some(number),
            Err(error) => {
                self.problem(error.to_string());
                None
            }
        }
    }

    /// Joins what the old kernel's run recorded, as far as the files do not have it. It is on the disk when this
    /// returns. The records that are new are added to `new`. Where it fails, another try goes on from there.
    pub fn join(&mut self, found: &Found, new: &mut Vec<Record>) -> Result<(), Error> {
        let segments = segment::list_ours(&self.folder)?;
        let mut have = segment::end_of_run(&segments, found.run);
        let mut stretches = found.behind(have).peekable();
        loop {
            let stretch = stretches.next().unwrap_or_default();
            let first = stretch.first().map_or(have, |(number, _)| *number);
            let beat = stretches.peek().is_none().then_some(found.last_beat);
            let records = stretch.iter().map(|(_, record)| *record);
            let records: Vec<Record> = records.chain(beat).collect();
            let mut start = Start::of(&self.timeline, &self.context);
            // In a replay the numbers tell that some are missing.
            start.is_quiet &= first == have;
            let mut file = Writer::create(&self.folder, found.run, first, &start)?;
            if let Err(error) = file.append(&records).and_then(|()| file.sync()) {
                file.discard();
                return Err(error);
            }
            let missing = (first > have).then(|| tape::lost(first - have));
            for record in missing.into_iter().chain(records) {
                self.take_in(&record);
                new.push(record);
            }
            if beat.is_some() {
                return Ok(());
            }
            have = first + stretch.len() as u64;
        }
    }

    /// What tells this run from others: when it began, in nanoseconds since 1970.
    #[must_use]
    pub const fn run(&self) -> u64 {
        self.run
    }

    /// How many records this run has appended: the number of the next one.
    #[must_use]
    pub fn appended(&self) -> u64 {
        self.writer.as_ref().map_or(0, Writer::next)
    }

    /// How many events this run has seen, and how many it has lost.
    #[must_use]
    pub fn events(&self) -> Events {
        let now = self.timeline.events();
        Events {
            seen: now.seen.saturating_sub(self.before.seen),
            lost: now.lost.saturating_sub(self.before.lost),
        }
    }

    /// How things stand, by all that was taken in.
    #[must_use]
    pub const fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// Appends records, behind all that is there. Once this returns they survive the end of this process.
    pub fn push(&mut self, records: &[Record]) -> Result<(), Error> {
        let segment = self.segment();
        let mut writer = if let Some(writer) = self.writer.take() {
            writer
        } else {
            let start = Start::of(&self.timeline, &self.context);
            Writer::create(&self.folder, self.run, 0, &start)?
        };
        let pushed = self.push_to(&mut writer, records, segment);
        self.writer = Some(writer);
        pushed
    }

    fn push_to(
        &mut self,
        writer: &mut Writer,
        mut records: &[Record],
        segment: u64,
    ) -> Result<(), Error> {
        let mut count = 0;
        while let Some(record) = records.get(count) {
            self.take_in(record);
            count += 1;
            // Where nothing is under way a replay can begin: that is worth a smaller file.
            let written = writer.written() + segment::length(count);
            let small = written < segment / 16;
            if small || (written < segment && !self.timeline.is_quiet()) {
                continue;
            }
            let (full, rest) = records.split_at(count);
            writer.append(full)?;
            writer.go_on(&Start::of(&self.timeline, &self.context))?;
            (records, count) = (rest, 0);
            // What this batch has ended is still to be kept.
            self.wants_room = true;
        }
        writer.append(records)
    }

    /// A batch is over: keeps the updates that it ended. Returns these, under the
    /// numbers by which they are kept.
    pub fn settle(&mut self) -> Result<Vec<Report>, Error> {
        if self.pending.len() == self.told && !self.is_due && !self.wants_room {
            return Ok(Vec::new());
        }
        self.is_due = false;
        self.sync()?;
        let told = self.keep();
        // A row takes up to two of its pages, and room in the log before that.
        if self.wants_room || self.since_retained >= self.segment() / 4 {
            self.retain()?;
        }
        Ok(told)
    }

    /// Some time has gone by: has what was written brought to the disk, without waiting for it, and what is known
    /// better now of the update that ended last kept with the next batch.
    pub fn tick(&mut self) -> Result<(), Error> {
        if let Some(writer) = &mut self.writer {
            writer.sync_soon()?;
        }
        let mut newest = self.timeline.ended_since(self.ended.saturating_sub(1));
        if let (Some(update), Some(taken)) = (newest.next(), &self.newest) {
            let report = Report::from(update);
            if report != *taken {
                self.newest = Some(report.clone());
                self.pending.insert(0, report);
                self.told += 1;
            }
        }
        self.is_due = !self.pending.is_empty();
        Ok(())
    }

    /// Brings all that was appended to the disk.
    pub fn sync(&mut self) -> Result<(), Error> {
        match &mut self.writer {
            Some(writer) => writer.sync(),
            None => Ok(()),
        }
    }

    /// What went wrong since this was last asked, and is no reason to stop.
    pub fn problems(&mut self) -> Vec<String> {
        std::mem::take(&mut self.problems)
    }

    fn problem(&mut self, text: String) {
        if self.last_problem != text {
            self.last_problem.clone_from(&text);
            self.problems.push(text);
        }
    }

    fn take_in(&mut self, record: &Record) {
        self.context.push(record);
        self.timeline.push(record);
        if self.timeline.ended() > self.ended {
            let ended = self.timeline.ended_since(self.ended).map(Report::from);
            self.pending.extend(ended);
            self.ended = self.timeline.ended();
            self.newest = self.pending.last().cloned();
        }
    }

    /// Writes what has ended to the history. Returns what was not told yet, written or not.
    fn keep(&mut self) -> Vec<Report> {
        let told = std::mem::take(&mut self.told);
        let Some(history) = &mut self.history else {
            let new = self.pending.split_off(told.min(self.pending.len()));
            self.pending.clear();
            return new;
        };
        if self.pending.is_empty() {
            return Vec::new();
        }
        match keep_within(history, &mut self.pending, self.retention.updates) {
            Ok(bytes) => {
                self.since_retained += bytes;
                let mut kept = std::mem::take(&mut self.pending);
                kept.split_off(told)
            }
            Err(error) => {
                self.told = self.pending.len();
                self.problem(format!("{error}; lu tries again"));
                self.pending[told..].to_vec()
            }
        }
    }

    /// The size of a file: several must fit in.
    fn segment(&self) -> u64 {
        SEGMENT.min(self.retention.bytes / 8)
    }

    /// Makes room for what will be written until the next time. The oldest files go first, as far as what they
    /// tell is in the history, then the oldest updates. An update under way that needs more than there may be
    /// loses its beginning.
    fn retain(&mut self) -> Result<(), Error> {
        (self.since_retained, self.wants_room) = (0, false);
        let most = self.retention.bytes - 2 * self.segment();
        if size(&self.folder)? <= most {
            return Ok(());
        }
        if self.history.is_some() && !self.pending.is_empty() {
            self.problem(format!(
                "{} takes more than --keep-size: what is to be kept cannot be written to the history",
                self.folder.display()
            ));
            return Ok(());
        }
        let current = self.writer.as_ref().map(Writer::path);
        let mut segments = segment::list_ours(&self.folder)?;
        segments.retain(|segment| Some(&*segment.path) != current);
        // What a replay of the updates under way would begin with.
        let needed = if self.timeline.is_quiet() {
            segments.len()
        } else {
            let quiet = |segment: &Segment| segment.quiet_after().is_some();
            segments.iter().rposition(quiet).unwrap_or(0)
        };
        let under_way = segments.split_off(needed);
        if remove(&self.folder, &segments, most)? {
            return Ok(());
        }
        if let Some(history) = &mut self.history
            && let Err(error) = forget_until(history, || Ok(size(&self.folder)? <= most))?
        {
            self.problem(error.to_string());
        }
        if size(&self.folder)? > most && !under_way.is_empty() {
            remove(&self.folder, &under_way, most)?;
            self.problem(
                "the update under way takes more than --keep-size, and its beginning is lost"
                    .into(),
            );
        }
        Ok(())
    }
}

/// A lock on the folder itself, which ends with its descriptor.
fn lock(folder: &Path) -> Result<File, Error> {
    let file = File::open(folder).map_err(at("open", folder))?;
    let start = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if start.elapsed() < PATIENCE => thread::sleep(PAUSE),
            Err(TryLockError::WouldBlock) => return Err(Error::Taken(folder.into())),
            Err(TryLockError::Error(error)) => return Err(at("lock", folder)(error)),
        }
    }
}

/// Keeps updates, and of all only the newest `most`. Returns how much was written, in bytes.
fn keep_within(
    history: &mut History,
    reports: &mut [Report],
    most: u64,
) -> Result<u64, history::Error> {
    let bytes = history.keep(reports)?;
    let newest = history.last_number()?;
    history.forget(newest.saturating_sub(most))?;
    Ok(bytes)
}

/// What is lu's in `folder`, in bytes.
fn size(folder: &Path) -> Result<u64, Error> {
    let mut sum: u64 = segment::list_ours(folder)?
        .iter()
        .map(|segment| segment.size)
        .sum();
    for file in history::FILES {
        sum += fs::metadata(folder.join(file)).map_or(0, |about| about.len());
    }
    Ok(sum)
}

/// Removes files, oldest first, until the folder has at most `most` bytes; whether it has.
fn remove(folder: &Path, segments: &[Segment], most: u64) -> Result<bool, Error> {
    let mut size = size(folder)?;
    for segment in segments {
        if size <= most {
            break;
        }
        fs::remove_file(&segment.path).map_err(at("remove", &segment.path))?;
        size = size.saturating_sub(segment.size);
    }
    Ok(size <= most)
}

/// Lets the oldest updates go, an eighth at a time, until it is `enough`; the newest stays.
fn forget_until(
    history: &mut History,
    enough: impl Fn() -> Result<bool, Error>,
) -> Result<Result<(), history::Error>, Error> {
    let mut forget = || {
        history.shrink()?;
        let Some((oldest, newest)) = history
            .numbers()?
            .filter(|(oldest, newest)| oldest < newest)
        else {
            return Ok(false);
        };
        history.forget(oldest + (newest - oldest) / 8)?;
        history.shrink()?;
        Ok(true)
    };
    while !enough()? {
        match forget() {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => return Ok(Err(error)),
        }
    }
    Ok(Ok(()))
}
