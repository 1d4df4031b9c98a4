//! The records themselves, in files of a folder.
//!
//! A file begins with a [`Header`] and goes on with the 128-byte records of `lu_common::event`, in the
//! machine's byte order. The first of them are its context: what was known before, said once more, so that a
//! replay may begin here. A record that was cut short by a crash at a file's end is left out, and said.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read as _, Write as _};
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use lu_common::event::{Kind, Record};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::clocks::{boot_id, now_ns, realtime_ns};
use super::{Error, at};

const MAGIC: [u8; 8] = *b"lu.jrnl\n";
const VERSION: u32 = 2;
const ENDING: &str = "events";
const RECORD: u64 = size_of::<Record>() as u64;

/// What a file begins with.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Header {
    magic: [u8; 8],
    version: u32,
    record_size: u32,
    /// The boot in which it was written (`/proc/sys/kernel/random/boot_id`, 0 if unknown).
    boot_id: [u8; 16],
    /// `CLOCK_MONOTONIC` when the file was begun, in nanoseconds.
    monotonic_ns: u64,
    /// `CLOCK_REALTIME` at the same moment, in nanoseconds since 1970.
    realtime_ns: u64,
    /// The run of `lu run` that saw the records, see [`Journal::run`](super::Journal::run).
    run: u64,
    /// How many records that run had before the first one here, context aside.
    first: u64,
    /// How many updates had ended or begun before.
    updates: u64,
    /// How many records of context stand in front.
    context: u32,
    /// Not 0: what is here can be told without the files before, see [`Start::is_quiet`].
    quiet: u32,
    reserved: [u8; 48],
}

const _: () = assert!(size_of::<Header>() == size_of::<Record>());

/// What a file begins with, as far as it depends on what was before.
#[derive(Clone, Debug, Default)]
pub struct Start {
    /// The number of the newest update that has begun.
    pub updates: u64,
    /// Whether no update is under way.
    pub is_quiet: bool,
    /// What was known, as the records that said it.
    pub context: Vec<Record>,
}

/// The writing end.
pub struct Writer {
    folder: PathBuf,
    path: PathBuf,
    file: File,
    run: u64,
    /// The number in its run of the record that comes next.
    next: u64,
    /// The current file's size, its context aside, in bytes.
    written: u64,
    /// Whether the current file's name is on the disk.
    is_named: bool,
    /// What is on its way to the disk.
    syncing: Vec<JoinHandle<io::Result<()>>>,
}

/// How long so many records are in a file, in bytes.
#[must_use]
pub const fn length(records: usize) -> u64 {
    records as u64 * RECORD
}

impl Writer {
    /// Begins a file in `folder` for the records of a run from number `first` on.
    pub fn create(folder: &Path, run: u64, first: u64, start: &Start) -> Result<Self, Error> {
        let (path, file) = begin(folder)?;
        let mut writer = Self {
            folder: folder.into(),
            path,
            file,
            run,
            next: first,
            written: 0,
            is_named: false,
            syncing: Vec::new(),
        };
        if let Err(error) = writer.start(start) {
            writer.discard();
            return Err(error);
        }
        Ok(writer)
    }

    /// Takes the current file back, as if it had never been begun.
    pub fn discard(self) {
        // Where it cannot be removed either, it is a file that was cut short.
        let _ = fs::remove_file(&self.path);
    }

    /// The file that is being written.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How much was appended to the current file, in bytes.
    #[must_use]
    pub const fn written(&self) -> u64 {
        self.written
    }

    /// Leaves the current file for another one.
    pub fn go_on(&mut self, start: &Start) -> Result<(), Error> {
        self.sync_soon()?;
        let mut next = Self::create(&self.folder, self.run, self.next, start)?;
        next.syncing = std::mem::take(&mut self.syncing);
        *self = next;
        Ok(())
    }

    /// Hands records to the kernel: from here on they survive the end of this process.
    pub fn append(&mut self, records: &[Record]) -> Result<(), Error> {
        self.write(records.as_bytes())?;
        self.written += length(records.len());
        self.next += records.len() as u64;
        Ok(())
    }

    /// Hands what was appended to the disk: from here on it survives the end of the machine.
    pub fn sync(&mut self) -> Result<(), Error> {
        self.file.sync_data().map_err(at("sync", &self.path))?;
        if !self.is_named {
            let folder = File::open(&self.folder).map_err(at("open", &self.folder))?;
            folder.sync_all().map_err(at("sync", &self.folder))?;
            self.is_named = true;
        }
        while let Some(syncing) = self.syncing.pop() {
            self.join(syncing)?;
        }
        Ok(())
    }

    /// The same of what is in the current file, but for waiting until it is so. What went wrong with those before
    /// is told: the kernel says it once, and what it could not write it takes for written from then on.
    pub fn sync_soon(&mut self) -> Result<(), Error> {
        let done: Vec<_> = self
            .syncing
            .extract_if(.., |syncing| syncing.is_finished())
            .collect();
        for syncing in done {
            self.join(syncing)?;
        }
        let file = self.file.try_clone();
        let file = file.map_err(at("duplicate", &self.path))?;
        let sync = thread::Builder::new().spawn(move || file.sync_data());
        self.syncing.push(sync.map_err(at("sync", &self.path))?);
        Ok(())
    }

    /// What became of a sync in the background.
    fn join(&self, syncing: JoinHandle<io::Result<()>>) -> Result<(), Error> {
        // It has no way to panic.
        let synced = syncing.join().unwrap_or(Ok(()));
        synced.map_err(at("sync", &self.folder))
    }

    fn start(&mut self, start: &Start) -> Result<(), Error> {
        let header = Header {
            magic: MAGIC,
            version: VERSION,
            record_size: RECORD as u32,
            boot_id: boot_id(),
            monotonic_ns: now_ns(),
            realtime_ns: realtime_ns(),
            run: self.run,
            first: self.next,
            updates: start.updates,
            context: start.context.len() as u32,
            quiet: u32::from(start.is_quiet),
            reserved: [0; 48],
        };
        self.write(&[header.as_bytes(), start.context.as_bytes()].concat())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.file.write_all(bytes).map_err(at("write", &self.path))
    }
}

/// Begins a file that sorts behind all others, even where the clock of the day has gone back since.
fn begin(folder: &Path) -> Result<(PathBuf, File), Error> {
    let last = paths(folder)?
        .last()
        .and_then(|path| path.file_stem()?.to_str()?.parse::<u64>().ok());
    let mut number = realtime_ns().max(last.map_or(0, |last| last.saturating_add(1)));
    loop {
        let path = folder.join(format!("{number:020}.{ENDING}"));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        match file {
            // Another one has begun at the same moment.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            file => {
                let file = file.map_err(at("create", &path))?;
                return Ok((path, file));
            }
        }
    }
}

/// The files of a journal by their names, oldest first.
fn paths(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .map_err(at("read", folder))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|ending| ending == ENDING))
        .collect();
    files.sort();
    Ok(files)
}

/// A file of a journal.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Where it is.
    pub path: PathBuf,
    /// Its size, in bytes.
    pub size: u64,
    /// What it begins with; `None` where that was cut short, so that there is no record either.
    header: Option<Header>,
    /// How many whole records it has.
    records: u64,
}

impl Segment {
    fn read(path: PathBuf) -> Result<Self, Error> {
        let mut file = File::open(&path).map_err(at("read", &path))?;
        let size = file.metadata().map_err(at("look at", &path))?.len();
        let mut bytes = [0; size_of::<Header>()];
        let whole = fill(&mut file, &mut bytes).map_err(at("read", &path))? == bytes.len();
        // A power cut can leave a file its length and nothing else.
        if !whole || bytes.iter().all(|byte| *byte == 0) {
            return Ok(Self {
                path,
                size,
                header: None,
                records: 0,
            });
        }
        match Header::read_from_bytes(&bytes) {
            Ok(header) if header.magic != MAGIC => Err(Error::Foreign(path)),
            Ok(header) if header.version != VERSION || u64::from(header.record_size) != RECORD => {
                Err(Error::Version {
                    path,
                    version: header.version,
                    ours: VERSION,
                })
            }
            Ok(header) => Ok(Self {
                size,
                header: Some(header),
                records: whole_records(&file, size).map_err(at("read", &path))?,
                path,
            }),
            Err(_) => Err(Error::Foreign(path)),
        }
    }

    /// The number of the newest update that had begun before, where what is here can be told without the files
    /// before.
    #[must_use]
    pub fn quiet_after(&self) -> Option<u64> {
        let header = self.header.filter(|header| header.quiet != 0)?;
        Some(header.updates)
    }

    /// The number of the newest update that had begun before.
    #[must_use]
    pub fn updates(&self) -> u64 {
        self.header.map_or(0, |header| header.updates)
    }

    /// The number in its run of the record that would come next.
    fn end(&self, header: &Header) -> u64 {
        header.first + self.records.saturating_sub(header.context.into())
    }
}

/// The files of a journal, oldest first. [`Error::Empty`] where there is no such folder.
pub fn list(folder: &Path) -> Result<Vec<Segment>, Error> {
    match paths(folder) {
        Err(Error::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
            Err(Error::Empty(folder.into()))
        }
        paths => paths?.into_iter().map(Segment::read).collect(),
    }
}

/// The same, of these what is ours: what is not is not ours to remove either.
pub fn list_ours(folder: &Path) -> Result<Vec<Segment>, Error> {
    let all = paths(folder)?.into_iter().map(Segment::read);
    Ok(all.filter_map(Result::ok).collect())
}

/// How many records a run is known to have made: the number that its next one would have, whatever of the
/// older ones is gone.
#[must_use]
pub fn end_of_run(segments: &[Segment], run: u64) -> u64 {
    let ends = segments.iter().filter_map(|segment| {
        let header = segment.header.as_ref().filter(|header| header.run == run)?;
        Some(segment.end(header))
    });
    ends.max().unwrap_or(0)
}

/// Brings files to the disk that somebody else has written.
pub fn sync(segments: &[Segment]) -> Result<(), Error> {
    for Segment { path, .. } in segments {
        let file = File::open(path).map_err(at("open", path))?;
        file.sync_data().map_err(at("sync", path))?;
    }
    Ok(())
}

/// Hands every record in `segments` to `each`, oldest first, the first file's context before them. What is
/// missing of a run comes as a record of [`Kind::Lost`]. Returns the files whose last record was cut short.
pub fn replay(segments: &[Segment], mut each: impl FnMut(&Record)) -> Result<Vec<PathBuf>, Error> {
    play(segments, |record| {
        each(record);
        ControlFlow::Continue(())
    })
}

/// The same, until `each` has had enough.
pub fn play(
    segments: &[Segment],
    mut each: impl FnMut(&Record) -> ControlFlow<()>,
) -> Result<Vec<PathBuf>, Error> {
    let mut torn = Vec::new();
    let mut ends: HashMap<u64, u64> = HashMap::new();
    let mut context = true;
    for segment in segments {
        let Some(header) = &segment.header else {
            torn.push(segment.path.clone());
            continue;
        };
        // Where the replay begins in the middle of an update, all that its run had before is missing.
        let due = match ends.get(&header.run) {
            Some(end) => *end,
            None if header.quiet != 0 => header.first,
            None => 0,
        };
        let missing = header.first.saturating_sub(due);
        match segment.replay(header, context, missing, &mut each)? {
            ControlFlow::Break(()) => break,
            ControlFlow::Continue(true) => {}
            ControlFlow::Continue(false) => torn.push(segment.path.clone()),
        }
        ends.insert(header.run, segment.end(header));
        context = false;
    }
    Ok(torn)
}

impl Segment {
    /// Hands on what it has, after a loss of what is missing before it. Returns whether it ends with a whole
    /// record, unless that was enough before.
    fn replay(
        &self,
        header: &Header,
        with_context: bool,
        missing: u64,
        each: &mut impl FnMut(&Record) -> ControlFlow<()>,
    ) -> Result<ControlFlow<(), bool>, Error> {
        let failed = || at("read", &self.path);
        let file = File::open(&self.path).map_err(failed())?;
        let mut file = BufReader::with_capacity(1 << 16, file);
        let mut bytes = [0; size_of::<Record>()];
        file.read_exact(&mut bytes).map_err(failed())?;
        let context = u64::from(header.context);
        for number in 0..self.records {
            if number == context && missing > 0 {
                let mut lost = Record::made(Kind::Lost, header.monotonic_ns, [0; 64]);
                lost.call.bytes = missing;
                if each(&lost).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            file.read_exact(&mut bytes).map_err(failed())?;
            if (number >= context || with_context)
                && let Ok(record) = Record::read_from_bytes(&bytes)
                && each(&record).is_break()
            {
                return Ok(ControlFlow::Break(()));
            }
        }
        let whole = size_of::<Header>() as u64 + self.records * RECORD;
        Ok(ControlFlow::Continue(
            self.records >= context && self.size == whole,
        ))
    }
}

/// How many whole records a file of `size` bytes has; zeros at its end, which a power cut leaves of what was
/// not written yet, are none.
fn whole_records(file: &File, size: u64) -> io::Result<u64> {
    let header = size_of::<Header>() as u64;
    let mut records = size.saturating_sub(header) / RECORD;
    let mut last = [0; size_of::<Record>()];
    while records > 0 {
        file.read_exact_at(&mut last, header + (records - 1) * RECORD)?;
        if last.iter().any(|byte| *byte != 0) {
            break;
        }
        records -= 1;
    }
    Ok(records)
}

/// Reads until `into` is full or the file ends.
fn fill(file: &mut impl io::Read, into: &mut [u8]) -> io::Result<usize> {
    let mut count = 0;
    while count < into.len() {
        match file.read(&mut into[count..])? {
            0 => break,
            read => count += read,
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use lu_common::event::Kind;
    use zerocopy::{FromZeros as _, IntoBytes as _};

    use super::*;

    fn record(t_ns: u64) -> Record {
        let mut record = Record::default();
        record.header.t_ns = t_ns;
        record.header.kind = Kind::Open as u8;
        record
    }

    fn writer(folder: &Path, run: u64, first: u64) -> Writer {
        Writer::create(folder, run, first, &Start::default()).expect("a writer")
    }

    fn write(writer: &mut Writer, times: &[u64]) {
        let records: Vec<Record> = times.iter().copied().map(record).collect();
        writer.append(&records).expect("appended");
    }

    /// The times of what is replayed, losses and torn files.
    fn replayed(folder: &Path) -> (Vec<u64>, u64, usize) {
        let (mut times, mut lost) = (Vec::new(), 0);
        let torn = replay(&list(folder).expect("listed"), |record| {
            match record.lost() {
                Some(count) => lost += count,
                None => times.push(record.header.t_ns),
            }
        });
        (times, lost, torn.expect("readable").len())
    }

    fn end(folder: &Path, run: u64) -> u64 {
        end_of_run(&list(folder).expect("listed"), run)
    }

    #[test]
    fn what_is_appended_is_replayed_in_order_over_several_runs() {
        let folder = tempfile::tempdir().expect("a folder");
        for run in 0..3 {
            let times: Vec<u64> = (0..5).map(|t_ns| run * 10 + t_ns).collect();
            write(&mut writer(folder.path(), run, 0), &times);
        }
        let expected: Vec<u64> = (0..3)
            .flat_map(|run| (0..5).map(move |t_ns| run * 10 + t_ns))
            .collect();
        assert_eq!(replayed(folder.path()), (expected, 0, 0));
    }

    #[test]
    fn a_run_is_counted_whatever_of_its_files_is_gone_and_only_a_hole_is_a_loss() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut run = writer(folder.path(), 7, 0);
        write(&mut run, &[1, 2]);
        let oldest = run.path().to_owned();
        let quiet = Start {
            is_quiet: true,
            context: vec![record(90), record(91)],
            ..Start::default()
        };
        run.go_on(&quiet).expect("another file");
        write(&mut run, &[3]);
        // Nothing is said twice where the replay comes from before.
        assert_eq!(replayed(folder.path()), (vec![1, 2, 3], 0, 0));
        fs::remove_file(&oldest).expect("removed");
        assert_eq!(replayed(folder.path()), (vec![90, 91, 3], 0, 0));
        assert_eq!(end(folder.path(), 7), 3);
        // What the flight recorder brings of the same run, of which two were overwritten.
        write(&mut writer(folder.path(), 7, 5), &[6]);
        assert_eq!(replayed(folder.path()), (vec![90, 91, 3, 6], 2, 0));
        assert_eq!(end(folder.path(), 7), 6);
    }

    #[test]
    fn what_begins_in_the_middle_of_an_update_lacks_what_was_before() {
        let folder = tempfile::tempdir().expect("a folder");
        write(&mut writer(folder.path(), 7, 40), &[1]);
        assert_eq!(replayed(folder.path()), (vec![1], 40, 0));
    }

    #[test]
    fn a_record_that_is_cut_short_is_left_out_and_said_at_every_length() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut run = writer(folder.path(), 1, 0);
        write(&mut run, &[1, 2]);
        let path = run.path().to_owned();
        drop(run);
        let whole = fs::read(&path).expect("read");
        let header = size_of::<Header>();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).expect("written");
            let records = length.saturating_sub(header) / size_of::<Record>();
            let torn = length < header || !(length - header).is_multiple_of(size_of::<Record>());
            let (times, lost, torn_files) = replayed(folder.path());
            assert_eq!(
                (times.len(), lost, torn_files),
                (records, 0, usize::from(torn)),
                "at {length}"
            );
            assert_eq!(end(folder.path(), 1), records as u64);
        }
    }

    #[test]
    fn a_sync_in_the_background_that_failed_is_told_by_the_next() {
        let folder = tempfile::tempdir().expect("a folder");
        for again in [Writer::sync, Writer::sync_soon] {
            let mut run = writer(folder.path(), 1, 0);
            run.sync_soon().expect("begun");
            let failed = thread::spawn(|| Err(io::ErrorKind::StorageFull.into()));
            while !failed.is_finished() {
                thread::yield_now();
            }
            run.syncing.insert(0, failed);
            assert!(matches!(again(&mut run), Err(Error::Io { .. })));
        }
    }

    #[test]
    fn zeros_that_a_power_cut_leaves_are_no_records() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut run = writer(folder.path(), 1, 0);
        write(&mut run, &[1, 2]);
        let path = run.path().to_owned();
        drop(run);
        let whole = fs::read(&path).expect("read");
        for kept in 0..=3 {
            let length = kept * size_of::<Record>();
            let zeros = vec![0; 1000];
            fs::write(&path, [&whole[..length], &zeros].concat()).expect("written");
            let (times, lost, torn) = replayed(folder.path());
            assert_eq!((times.len(), lost, torn), (kept.saturating_sub(1), 0, 1));
            assert_eq!(end(folder.path(), 1), times.len() as u64);
        }
    }

    #[test]
    fn foreign_files_and_other_versions_are_refused_with_their_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("1.events");
        fs::write(&path, [7; 200]).expect("written");
        let error = list(folder.path()).expect_err("not a journal");
        assert!(
            error.to_string().contains("1.events is not a journal"),
            "{error}"
        );
        let mut header = Header::new_zeroed();
        (header.magic, header.version) = (MAGIC, 99);
        fs::write(&path, header.as_bytes()).expect("written");
        let error = list(folder.path()).expect_err("another version");
        assert!(error.to_string().contains("version 99"), "{error}");
        assert_eq!(list_ours(folder.path()).expect("listed").len(), 0);
    }
}
