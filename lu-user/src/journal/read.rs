//! What a journal tells: the history has what has ended, the newest files what is under way.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use lu_common::event::Record;

use super::Error;
use super::history::History;
use super::segment::{self, Number, Segment};
use crate::export::{Entry, Report};
use crate::timeline::{Timeline, Update};

/// The files that must be replayed by somebody who has the updates up to number `known` already, and the
/// timeline to replay them into.
pub(super) fn tail(segments: &[Segment], known: u64) -> (&[Segment], Timeline) {
    let from = segments
        .iter()
        .rposition(|segment| segment.quiet_after().is_some_and(|after| after <= known))
        .unwrap_or(0);
    let segments = segments.get(from..).unwrap_or_default();
    let begun = segments.first().map_or(0, Segment::updates);
    (segments, Timeline::after(begun))
}

/// A journal's folder, open for reading.
pub struct Reader {
    folder: PathBuf,
    history: Option<History>,
    /// Why the history is not read, where there is one: everything is told from the files then, as far as they
    /// go back.
    pub problem: Option<super::history::Error>,
}

/// What the files have beyond the history.
struct Tail {
    timeline: Timeline,
    /// Updates that have ended, and are not in the history yet.
    ended: Vec<Report>,
    /// The number in the history of the one that ended last.
    last_known: Option<u64>,
    torn: Vec<PathBuf>,
}

/// That there is no update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nothing {
    /// What was seen all the same.
    pub events: u64,
    /// Of the kexecs, those that had nothing to hand over.
    pub plain_kexecs: u64,
}

/// An answer, and the files whose last record was cut short.
pub type Answer<T> = (T, Vec<PathBuf>);

impl Reader {
    /// Opens the journal in `folder`.
    #[must_use]
    pub fn open(folder: &Path) -> Self {
        let (history, problem) = match History::read(folder) {
            Ok(history) => (history, None),
            Err(error) => (None, Some(error)),
        };
        Self {
            folder: folder.into(),
            history,
            problem,
        }
    }

    fn tail(&self) -> Result<Tail, Error> {
        self.tail_with(|_| {})
    }

    /// What is under way, and each record that it is told from.
    pub fn timeline(&self, each: impl FnMut(&Record)) -> Result<Answer<Timeline>, Error> {
        let tail = self.tail_with(each)?;
        Ok((tail.timeline, tail.torn))
    }

    fn tail_with(&self, mut each: impl FnMut(&Record)) -> Result<Tail, Error> {
        let known = match &self.history {
            Some(history) => history.last_number()?,
            None => 0,
        };
        let segments = match segment::list(&self.folder) {
            // The history alone will do.
            Err(Error::Empty(_)) if self.history.is_some() => Vec::new(),
            segments => segments?,
        };
        if segments.is_empty() && self.history.is_none() {
            return Err(Error::Empty(self.folder.clone()));
        }
        let (segments, timeline) = tail(&segments, known);
        let mut tail = Tail {
            timeline,
            ended: Vec::new(),
            last_known: None,
            torn: Vec::new(),
        };
        let mut failed = Ok(());
        tail.torn = segment::replay(segments, |record| {
            each(record);
            let before = tail.timeline.ended();
            tail.timeline.push(record);
            for update in tail.timeline.ended_since(before) {
                let report = Report::from(update);
                match self.number_of(&report) {
                    Ok(Some(number)) => tail.last_known = Some(number),
                    Ok(None) => {
                        tail.last_known = None;
                        tail.ended.push(report);
                    }
                    Err(error) => failed = Err(error),
                }
            }
        })?;
        failed?;
        Ok(tail)
    }

    fn number_of(&self, report: &Report) -> Result<Option<u64>, Error> {
        match &self.history {
            Some(history) => Ok(history.number_of(report)?),
            None => Ok(None),
        }
    }

    /// The update with this number. Where there is none, the numbers of those that there are.
    pub fn update(&self, number: u64) -> Result<Answer<Result<Report, Vec<u64>>>, Error> {
        if let Some(history) = &self.history
            && let Some(report) = history.report(number)?
        {
            return Ok((Ok(report), Vec::new()));
        }
        let tail = self.tail()?;
        let under_way = tail.under_way().map(Report::from);
        let found = tail.ended.iter().cloned().chain(under_way);
        let found = { found }.find(|report| report.update == number);
        let answer = if let Some(report) = found {
            Ok(report)
        } else {
            let (entries, _) = self.entries(None, None)?;
            Err(entries.iter().rev().map(|entry| entry.update).collect())
        };
        Ok((answer, tail.torn))
    }

    /// The newest update that came through a kexec or to an end; where there is none, the one that is being made
    /// ready. `Err` has how many events there are, where none of them belongs to an update.
    pub fn latest(&self) -> Result<Answer<Result<Report, Nothing>>, Error> {
        let mut tail = self.tail()?;
        let kept = |number: u64| match &self.history {
            Some(history) => history.report(number),
            None => Ok(None),
        };
        let report = if let Some(update) = tail.timeline.incoming() {
            Some(Report::from(update))
        } else if let Some(number) = tail.last_known {
            kept(number)?
        } else if let Some(report) = tail.ended.pop() {
            Some(report)
        } else {
            match &self.history {
                Some(history) => history.report(history.last_number()?)?,
                None => None,
            }
        };
        let report = report.or_else(|| tail.timeline.latest_told().map(Report::from));
        let nothing = Nothing {
            events: tail.timeline.events().seen,
            plain_kexecs: tail.timeline.plain_kexecs(),
        };
        Ok((report.ok_or(nothing), tail.torn))
    }

    /// The newest updates, newest first: at most `limit`, of those that began at `since` or later
    /// (`CLOCK_REALTIME`, nanoseconds since 1970).
    pub fn entries(
        &self,
        limit: Option<u64>,
        since: Option<u64>,
    ) -> Result<Answer<Vec<Entry>>, Error> {
        let tail = self.tail()?;
        let beyond = tail.ended.iter().map(Entry::from);
        let under_way = tail
            .under_way()
            .map(|update| Entry::from(&Report::from(update)));
        let mut entries: Vec<Entry> = beyond
            .chain(under_way)
            .filter(|entry| since.is_none_or(|since| entry.began_realtime_ns >= Some(since)))
            .collect();
        entries.reverse();
        if let Some(history) = &self.history {
            entries.extend(history.entries(limit, since)?);
        }
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.update));
        entries.truncate(
            limit
                .and_then(|limit| usize::try_from(limit).ok())
                .unwrap_or(usize::MAX),
        );
        Ok((entries, tail.torn))
    }
}

impl Tail {
    /// The updates that have not ended.
    fn under_way(&self) -> impl Iterator<Item = &Update> {
        self.timeline
            .updates()
            .filter(|update| update.ended_ns.is_none())
    }
}

/// Hands every record of the journal in `folder` to `each`, oldest first. Returns the files whose last record
/// was cut short.
pub fn records(folder: &Path, each: impl FnMut(&Record)) -> Result<Vec<PathBuf>, Error> {
    let segments = segment::list(folder)?;
    if segments.is_empty() {
        return Err(Error::Empty(folder.into()));
    }
    segment::replay(&segments, each)
}

/// What a journal tells of now, for somebody who is told from here on what a run goes on to write: all since the last
/// place in the files where nothing was under way.
pub struct Snapshot {
    segments: Vec<Segment>,
    /// The number of the newest update that had begun before. [`Timeline::after`] it the updates have their numbers.
    pub updates: u64,
    /// How many records the run had written: the number of its first one that is not in here.
    pub end: u64,
}

impl Snapshot {
    /// Of the journal in `folder`, which the run `run` writes.
    pub fn of(folder: &Path, run: u64) -> Result<Self, Error> {
        let segments = segment::list(folder)?;
        let end = segment::end_of_run(&segments, run);
        let (segments, timeline) = tail(&segments, u64::MAX);
        Ok(Self {
            segments: segments.to_vec(),
            updates: timeline.last_number(),
            end,
        })
    }

    /// Hands every record to `each`, oldest first, until it has had enough.
    pub fn play(
        &self,
        each: impl FnMut(Option<Number>, &Record) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        segment::numbered(&self.segments, each).map(drop)
    }
}

/// The files of a journal that tell of one update, or all of them, to be played as often as somebody likes.
pub struct Recording {
    segments: Vec<Segment>,
}

impl Recording {
    /// Of everything that the journal in `folder` has; with a number, from the newest file on from which that
    /// update can be told whole.
    pub fn open(folder: &Path, update: Option<u64>) -> Result<Self, Error> {
        let mut segments = segment::list(folder)?;
        if segments.is_empty() {
            return Err(Error::Empty(folder.into()));
        }
        if let Some(number) = update {
            let is_before = |segment: &Segment| segment.quiet_after().is_some_and(|it| it < number);
            let from = segments.iter().rposition(is_before);
            segments.drain(..from.unwrap_or(0));
        }
        Ok(Self { segments })
    }

    /// The timeline to play it into: its updates get the numbers that they always had.
    #[must_use]
    pub fn timeline(&self) -> Timeline {
        Timeline::after(self.segments.first().map_or(0, Segment::updates))
    }

    /// Hands every record to `each`, oldest first, until it has had enough. Returns the files whose last record was
    /// cut short, as far as it came.
    pub fn play(
        &self,
        each: impl FnMut(&Record) -> ControlFlow<()>,
    ) -> Result<Vec<PathBuf>, Error> {
        segment::play(&self.segments, each)
    }
}
