//! The durable record of updates: the events themselves, in files of a folder.
//!
//! A file begins with a [`Header`] and goes on with the 128-byte records of `lu_common::event`, in the
//! machine's byte order. Files are cut at [`SEGMENT`] and the oldest go when the folder is over its
//! limit. A record that was cut short by a crash at a file's end is left out, and said.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use lu_common::event::Record;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub mod boot;
pub mod clocks;
pub mod counter;
mod packed;
pub mod recorder;
pub mod tape;

use clocks::{boot_id, now_ns};

/// Where the journal is unless told otherwise.
pub const FOLDER: &str = "/var/lib/lu";

/// A file's size at which the next one begins, in bytes.
pub const SEGMENT: u64 = 16 << 20;

/// The folder's size at which the oldest file goes, in bytes.
pub const LIMIT: u64 = 256 << 20;

const MAGIC: [u8; 8] = *b"lu.jrnl\n";
const VERSION: u32 = 1;
const ENDING: &str = "events";

/// What a journal file begins with.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Header {
    magic: [u8; 8],
    version: u32,
    record_size: u32,
    /// The boot that the records' clock belongs to (`/proc/sys/kernel/random/boot_id`, 0 if unknown).
    pub boot_id: [u8; 16],
    /// `CLOCK_MONOTONIC` when the file was begun, in nanoseconds.
    pub monotonic_ns: u64,
    /// `CLOCK_REALTIME` at the same moment, in nanoseconds since 1970.
    pub realtime_ns: u64,
    /// The run of lu that wrote it, see [`Writer::run`].
    run: u64,
    reserved: [u8; 8],
}

const _: () = assert!(size_of::<Header>() == 64);

/// What goes wrong with a journal.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused a step.
    #[error("cannot {action} {}: {error}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The file is something else.
    #[error("{} is not a journal of lu's; nothing was changed", .0.display())]
    Foreign(PathBuf),
    /// Another version wrote it.
    #[error(
        "{} is a journal of version {version}, and this lu reads version {VERSION}; read it with the \
         lu that wrote it",
        path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// Root without privileges is an ordinary user there.
    #[error(
        "{} belongs to user {owner}, and lu gives its privileges up before it writes; choose a folder of \
         your own, or chown this one",
        path.display()
    )]
    Owner {
        /// The folder.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// There is nothing to read.
    #[error("no journal in {}; `lu run --journal DIR` writes one", .0.display())]
    Empty(PathBuf),
}

fn at<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |error| Error::Io {
        action,
        path: path.into(),
        error,
    }
}

/// The writing end.
pub struct Writer {
    folder: PathBuf,
    path: PathBuf,
    file: BufWriter<File>,
    written: u64,
    run: u64,
}

impl Writer {
    /// Begins a file in `folder`, which is made, for root alone, where it is missing.
    pub fn create(folder: &Path) -> Result<Self, Error> {
        Self::go_on(folder, since_1970())
    }

    /// The same for what another run left: it counts as that one's.
    pub fn go_on(folder: &Path, run: u64) -> Result<Self, Error> {
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
        let (path, file) = begin(folder)?;
        let mut writer = Self {
            folder: folder.into(),
            path,
            file,
            written: 0,
            run,
        };
        writer.start()?;
        Ok(writer)
    }

    /// What tells the files of this writer from those of others: when it began, in nanoseconds since 1970.
    #[must_use]
    pub const fn run(&self) -> u64 {
        self.run
    }

    /// Appends one record; it is in the file after [`Self::flush`].
    pub fn append(&mut self, record: &Record) -> Result<(), Error> {
        if self.written >= SEGMENT {
            self.flush()?;
            let (path, file) = begin(&self.folder)?;
            (self.path, self.file, self.written) = (path, file, 0);
            self.start()?;
        }
        self.write(record.as_bytes())
    }

    /// Leaves the file, which has no record yet, for one that sorts behind all others.
    pub fn begin_anew(&mut self) -> Result<(), Error> {
        let old = std::mem::replace(self, Self::go_on(&self.folder, self.run)?);
        fs::remove_file(&old.path).map_err(at("remove", &old.path))
    }

    /// Hands what was appended to the disk.
    pub fn sync(&mut self) -> Result<(), Error> {
        self.flush()?;
        self.file
            .get_ref()
            .sync_data()
            .map_err(at("sync", &self.path))
    }

    /// Hands what was appended to the kernel.
    pub fn flush(&mut self) -> Result<(), Error> {
        self.file.flush().map_err(at("write", &self.path))
    }

    fn start(&mut self) -> Result<(), Error> {
        let header = Header {
            magic: MAGIC,
            version: VERSION,
            record_size: size_of::<Record>() as u32,
            boot_id: boot_id(),
            monotonic_ns: now_ns(),
            realtime_ns: since_1970(),
            run: self.run,
            reserved: [0; 8],
        };
        self.write(header.as_bytes())?;
        self.flush()?;
        self.retain()
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.file
            .write_all(bytes)
            .map_err(at("write", &self.path))?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Removes the oldest files until there is room for another one.
    fn retain(&self) -> Result<(), Error> {
        let mut files = segments(&self.folder)?;
        // What is not ours is not ours to remove.
        files.retain(|path| *path != self.path && is_journal(path));
        let mut sizes: Vec<(PathBuf, u64)> = files
            .into_iter()
            .map(|path| {
                let size = fs::metadata(&path).map_or(0, |meta| meta.len());
                (path, size)
            })
            .collect();
        while !sizes.is_empty() && sizes.iter().map(|(_, size)| size).sum::<u64>() + SEGMENT > LIMIT
        {
            let (oldest, _) = sizes.remove(0);
            fs::remove_file(&oldest).map_err(at("remove", &oldest))?;
        }
        Ok(())
    }
}

/// Begins a file that sorts behind all others, even where the clock of the day has gone back since.
fn begin(folder: &Path) -> Result<(PathBuf, BufWriter<File>), Error> {
    let last = segments(folder)?
        .last()
        .and_then(|path| path.file_stem()?.to_str()?.parse::<u64>().ok());
    let mut number = since_1970().max(last.map_or(0, |last| last.saturating_add(1)));
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
                return Ok((
                    path.clone(),
                    BufWriter::new(file.map_err(at("create", &path))?),
                ));
            }
        }
    }
}

/// How many whole records the journal in `folder` has of one run.
pub fn count(folder: &Path, run: u64) -> Result<u64, Error> {
    let mut count = 0;
    for path in segments(folder)? {
        let mut header = [0; size_of::<Header>()];
        let mut file = File::open(&path).map_err(at("read", &path))?;
        let whole = fill(&mut file, &mut header).map_err(at("read", &path))? == header.len();
        let ours = Header::read_from_bytes(&header)
            .is_ok_and(|header| whole && header.magic == MAGIC && header.run == run);
        if ours {
            let length = file.metadata().map_err(at("look at", &path))?.len();
            count += length.saturating_sub(header.len() as u64) / size_of::<Record>() as u64;
        }
    }
    Ok(count)
}

fn since_1970() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as u64)
}

fn is_journal(path: &Path) -> bool {
    let mut magic = [0; MAGIC.len()];
    File::open(path).is_ok_and(|mut file| fill(&mut file, &mut magic).is_ok()) && magic == MAGIC
}

/// The files of a journal, oldest first.
fn segments(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .map_err(at("read", folder))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|ending| ending == ENDING))
        .collect();
    files.sort();
    Ok(files)
}

/// Hands every record of the journal in `folder` to `each`, oldest first. Returns the files whose last
/// record was cut short.
pub fn replay(folder: &Path, mut each: impl FnMut(&Record)) -> Result<Vec<PathBuf>, Error> {
    let files = match segments(folder) {
        Err(Error::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::Empty(folder.into()));
        }
        files => files?,
    };
    if files.is_empty() {
        return Err(Error::Empty(folder.into()));
    }
    let mut torn = Vec::new();
    for path in files {
        if !replay_file(&path, &mut each)? {
            torn.push(path);
        }
    }
    Ok(torn)
}

/// One file; whether it ends with a whole record.
fn replay_file(path: &Path, each: &mut impl FnMut(&Record)) -> Result<bool, Error> {
    let mut file = BufReader::new(File::open(path).map_err(at("read", path))?);
    let mut header = [0; size_of::<Header>()];
    if fill(&mut file, &mut header).map_err(at("read", path))? < header.len() {
        // Cut short while it was begun: there is no record yet.
        return Ok(false);
    }
    let header = Header::read_from_bytes(&header).map_err(|_| Error::Foreign(path.into()))?;
    if header.magic != MAGIC {
        return Err(Error::Foreign(path.into()));
    }
    if header.version != VERSION || header.record_size as usize != size_of::<Record>() {
        return Err(Error::Version {
            path: path.into(),
            version: header.version,
        });
    }
    let mut bytes = [0; size_of::<Record>()];
    loop {
        match fill(&mut file, &mut bytes).map_err(at("read", path))? {
            0 => return Ok(true),
            count if count < bytes.len() => return Ok(false),
            _ => {}
        }
        if let Ok(record) = Record::read_from_bytes(&bytes) {
            each(&record);
        }
    }
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
    use zerocopy::IntoBytes as _;

    use super::*;

    fn record(t_ns: u64) -> Record {
        let mut record = Record::default();
        record.header.t_ns = t_ns;
        record.header.kind = Kind::Open as u8;
        record
    }

    fn times(folder: &Path) -> (Vec<u64>, usize) {
        let mut times = Vec::new();
        let torn = replay(folder, |record| times.push(record.header.t_ns)).expect("readable");
        (times, torn.len())
    }

    #[test]
    fn what_is_appended_is_replayed_in_order_over_several_runs() {
        let folder = tempfile::tempdir().expect("a folder");
        for run in 0..3 {
            let mut writer = Writer::create(folder.path()).expect("a writer");
            for t_ns in 0..5 {
                writer.append(&record(run * 10 + t_ns)).expect("appended");
            }
            writer.flush().expect("flushed");
        }
        let expected: Vec<u64> = (0..3)
            .flat_map(|run| (0..5).map(move |t_ns| run * 10 + t_ns))
            .collect();
        assert_eq!(times(folder.path()), (expected, 0));
    }

    #[test]
    fn what_another_run_left_sorts_before_and_counts_as_that_runs() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut old = Writer::create(folder.path()).expect("a writer");
        old.append(&record(1)).expect("appended");
        old.flush().expect("flushed");
        let mut new = Writer::go_on(folder.path(), old.run() + 1).expect("a writer");
        // What the journal lacks of the old run comes from the flight recorder.
        let mut rest = Writer::go_on(folder.path(), old.run()).expect("a writer");
        rest.append(&record(2)).expect("appended");
        rest.sync().expect("synced");
        new.begin_anew().expect("another file");
        new.append(&record(3)).expect("appended");
        new.flush().expect("flushed");
        assert_eq!(times(folder.path()), (vec![1, 2, 3], 0));
        let count = |run| count(folder.path(), run).expect("counted");
        assert_eq!((count(old.run()), count(new.run())), (2, 1));
        assert_eq!(fs::read_dir(folder.path()).expect("read").count(), 3);
    }

    #[test]
    fn a_record_that_is_cut_short_is_left_out_and_said_at_every_length() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut writer = Writer::create(folder.path()).expect("a writer");
        writer.append(&record(1)).expect("appended");
        writer.append(&record(2)).expect("appended");
        writer.flush().expect("flushed");
        let path = writer.path.clone();
        drop(writer);
        let whole = fs::read(&path).expect("read");
        let header = size_of::<Header>();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).expect("written");
            let records = length.saturating_sub(header) / size_of::<Record>();
            let torn = length < header || !(length - header).is_multiple_of(size_of::<Record>());
            let (times, torn_files) = times(folder.path());
            assert_eq!(
                (times.len(), torn_files),
                (records, usize::from(torn)),
                "at {length}"
            );
        }
    }

    #[test]
    fn foreign_files_and_other_versions_are_refused_with_their_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("1.events");
        fs::write(&path, [7; 200]).expect("written");
        let error = replay(folder.path(), |_| {}).expect_err("not a journal");
        assert!(
            error.to_string().contains("1.events is not a journal"),
            "{error}"
        );
        let header = Header {
            magic: MAGIC,
            version: 99,
            record_size: 128,
            boot_id: [0; 16],
            monotonic_ns: 0,
            realtime_ns: 0,
            run: 0,
            reserved: [0; 8],
        };
        fs::write(&path, header.as_bytes()).expect("written");
        let error = replay(folder.path(), |_| {}).expect_err("another version");
        assert!(error.to_string().contains("version 99"), "{error}");
    }
}
