//! The updates that have ended: an SQLite database of their reports.
//!
//! `history-1.sql` is its schema. What is committed is on the disk (WAL, `synchronous = FULL`).

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _, Row};

use crate::export::{Entry, Report};

/// The database in a journal's folder.
const FILE: &str = "history.db";

/// All that it may consist of.
pub const FILES: [&str; 3] = [FILE, "history.db-wal", "history.db-shm"];

/// The schema's steps: a database of version N has had the first N of them.
const STEPS: [&str; 1] = [include_str!("history-1.sql")];

/// What tells our databases from others: `PRAGMA application_id`.
const APPLICATION: i32 = i32::from_be_bytes(*b"lu.h");

/// How long another connection may keep us waiting.
const BUSY: Duration = Duration::from_millis(100);

/// What goes wrong with the history.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is something else.
    #[error("{} is no history of lu's; it is left as it is: move it away, and `lu run` makes a new one", .0.display())]
    Foreign(PathBuf),
    /// A newer version wrote it.
    #[error(
        "{} is a history of version {version}, and this lu knows versions up to {ours}; it is left as it is: use \
         the lu that wrote it, or another --journal",
        path.display()
    )]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its version.
        version: i64,
        /// The newest that this lu knows.
        ours: usize,
    },
    /// SQLite refused a step.
    #[error("cannot {action} {}: {error}", path.display())]
    Database {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What SQLite said.
        error: rusqlite::Error,
    },
    /// A report cannot be written, or read.
    #[error("the report of update {number} in {} is none that this lu can read: {error}", path.display())]
    Document {
        /// The update.
        number: u64,
        /// The database.
        path: PathBuf,
        /// Why.
        error: serde_json::Error,
    },
}

/// An open history.
pub struct History {
    path: PathBuf,
    connection: Connection,
}

impl History {
    /// Opens the history in `folder` for reading and writing; made where it is missing, migrated where it is
    /// older.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(FILE);
        // For its owner alone; SQLite takes an empty file for a new database. What is wrong with it SQLite says.
        let _ = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut history = Self::connect(path, flags)?;
        let version = history.version(&STEPS)?;
        history.write("set up", |connection| {
            // The first holds from the first table on: what is deleted can be given back to the disk.
            connection.pragma_update(None, "auto_vacuum", "incremental")?;
            connection.pragma_update(None, "journal_mode", "wal")?;
            connection.pragma_update(None, "synchronous", "full")?;
            connection.pragma_update(None, "wal_autocheckpoint", 64)?;
            connection.pragma_update(None, "journal_size_limit", 0)
        })?;
        history.migrate(version, &STEPS)?;
        Ok(history)
    }

    /// Opens the history in `folder` for reading; `None` where there is none yet.
    pub fn read(folder: &Path) -> Result<Option<Self>, Error> {
        let path = folder.join(FILE);
        if !path.exists() {
            return Ok(None);
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let history = Self::connect(path, flags)?;
        match history.version(&STEPS)? {
            0 => Ok(None),
            version if version < STEPS.len() => Self::open(folder).map(Some),
            _ => Ok(Some(history)),
        }
    }

    fn connect(path: PathBuf, flags: OpenFlags) -> Result<Self, Error> {
        let connection = Connection::open_with_flags(&path, flags).and_then(|connection| {
            connection.busy_timeout(BUSY)?;
            Ok(connection)
        });
        match connection {
            Ok(connection) => Ok(Self { path, connection }),
            Err(error) => Err(failed("open", path, error)),
        }
    }

    /// The version of the schema; 0 of one that is still to be made.
    fn version(&self, steps: &[&str]) -> Result<usize, Error> {
        let ask = |sql: &str| {
            let answer = self
                .connection
                .query_row(sql, [], |row| row.get::<_, i64>(0));
            answer.map_err(|error| failed("read", self.path.clone(), error))
        };
        let version = ask("PRAGMA user_version")?;
        let is_new = version == 0 && ask("SELECT count(*) FROM sqlite_schema")? == 0;
        if !is_new && ask("PRAGMA application_id")? != i64::from(APPLICATION) {
            return Err(Error::Foreign(self.path.clone()));
        }
        usize::try_from(version)
            .ok()
            .filter(|version| *version <= steps.len())
            .ok_or_else(|| Error::Newer {
                path: self.path.clone(),
                version,
                ours: steps.len(),
            })
    }

    /// Takes the schema from `version` through the steps that it lacks, all or none.
    fn migrate(&mut self, version: usize, steps: &[&str]) -> Result<(), Error> {
        let missing = steps.get(version..).unwrap_or_default();
        if missing.is_empty() {
            return Ok(());
        }
        self.write("migrate", |connection| {
            let transaction = connection.transaction()?;
            for step in missing {
                transaction.execute_batch(step)?;
            }
            transaction.pragma_update(None, "application_id", APPLICATION)?;
            transaction.pragma_update(None, "user_version", steps.len() as i64)?;
            transaction.commit()
        })
    }

    fn write<T>(
        &mut self,
        action: &'static str,
        step: impl FnOnce(&mut Connection) -> rusqlite::Result<T>,
    ) -> Result<T, Error> {
        step(&mut self.connection).map_err(|error| failed(action, self.path.clone(), error))
    }

    /// Keeps updates, all or none, and gives each the number under which it is kept: its own, unless the same
    /// update has another one already, or another update this one.
    ///
    /// One that is kept already stays as it is, unless more is known now: how far off the blackout may be, which
    /// the new kernel's clock tells only after a while, or that events were lost. Returns how much was written, in
    /// bytes.
    pub fn keep(&mut self, reports: &mut [Report]) -> Result<u64, Error> {
        let mut bytes = 0;
        let path = self.path.clone();
        let failed = |error| failed("write to", path.clone(), error);
        let transaction = self.connection.transaction().map_err(failed)?;
        for report in reports {
            let kept = number_of(&transaction, report).map_err(failed)?;
            let number = match kept {
                Some(number) => number,
                None => transaction
                    .query_row(
                        "SELECT CASE WHEN EXISTS (SELECT 1 FROM updates WHERE number = ?1)
                         THEN (SELECT max(number) + 1 FROM updates) ELSE ?1 END",
                        [report.update.cast_signed()],
                        |row| row.get(0),
                    )
                    .map_err(failed)?,
            };
            report.update = number.cast_unsigned();
            let document = serde_json::to_string(&report).map_err(|error| Error::Document {
                number: report.update,
                path: path.clone(),
                error,
            })?;
            bytes += document.len() as u64;
            transaction
                .execute(
                    "INSERT INTO updates (number, document) VALUES (?1, ?2)
                     ON CONFLICT (number) DO UPDATE SET document = excluded.document
                     WHERE (uncertainty_ns IS NULL AND excluded.uncertainty_ns IS NOT NULL)
                     OR excluded.lost > lost",
                    (number, document),
                )
                .map_err(failed)?;
        }
        transaction.commit().map_err(failed)?;
        Ok(bytes)
    }

    /// The number under which an update is kept.
    pub fn number_of(&self, report: &Report) -> Result<Option<u64>, Error> {
        let number = number_of(&self.connection, report);
        let number = number.map_err(|error| failed("read", self.path.clone(), error))?;
        Ok(number.map(i64::cast_unsigned))
    }

    /// The newest number; 0 where nothing is kept.
    pub fn last_number(&self) -> Result<u64, Error> {
        Ok(self.numbers()?.map_or(0, |(_, newest)| newest))
    }

    /// The oldest and the newest number.
    pub fn numbers(&self) -> Result<Option<(u64, u64)>, Error> {
        let both = "SELECT min(number), max(number) FROM updates";
        let (oldest, newest): (Option<i64>, Option<i64>) = self
            .connection
            .query_row(both, [], |row| Ok((row.get(0)?, row.get(1)?)))
            .map_err(|error| failed("read", self.path.clone(), error))?;
        Ok(oldest
            .map(i64::cast_unsigned)
            .zip(newest.map(i64::cast_unsigned)))
    }

    /// The report of one update.
    pub fn report(&self, number: u64) -> Result<Option<Report>, Error> {
        let document: Option<String> = self
            .connection
            .query_row(
                "SELECT document FROM updates WHERE number = ?",
                [number.cast_signed()],
                |row| row.get(0),
            )
            .optional()
            .map_err(|error| failed("read", self.path.clone(), error))?;
        let report = document.map(|document| serde_json::from_str(&document));
        report.transpose().map_err(|error| Error::Document {
            number,
            path: self.path.clone(),
            error,
        })
    }

    /// The newest updates, newest first: at most `limit`, of those that began at `since` or later
    /// (`CLOCK_REALTIME`, nanoseconds since 1970).
    pub fn entries(&self, limit: Option<u64>, since: Option<u64>) -> Result<Vec<Entry>, Error> {
        let read = || {
            let mut statement = self.connection.prepare(
                "SELECT number, began_realtime_ns, interface, orchestrator, outcome, handed_over, restored,
                 blackout_ns, uncertainty_ns, clock, lost, kernels FROM updates
                 WHERE ?1 IS NULL OR began_realtime_ns >= ?1 ORDER BY number DESC LIMIT ?2",
            )?;
            let limit = limit
                .and_then(|limit| i64::try_from(limit).ok())
                .unwrap_or(-1);
            let rows = statement.query_map((since.map(u64::cast_signed), limit), entry)?;
            rows.collect::<rusqlite::Result<Vec<Entry>>>()
        };
        read().map_err(|error| failed("read", self.path.clone(), error))
    }

    /// Lets the updates up to `number` go.
    pub fn forget(&mut self, number: u64) -> Result<(), Error> {
        self.write("delete from", |connection| {
            let forget = "DELETE FROM updates WHERE number <= ?";
            connection.execute(forget, [number.cast_signed()]).map(drop)
        })
    }

    /// Gives what is not used back to the disk.
    pub fn shrink(&mut self) -> Result<(), Error> {
        self.write("shrink", |connection| {
            // Each step of the first frees one page.
            for pragma in [
                "PRAGMA incremental_vacuum",
                "PRAGMA wal_checkpoint(TRUNCATE)",
            ] {
                let mut statement = connection.prepare(pragma)?;
                let mut rows = statement.query([])?;
                while rows.next()?.is_some() {}
            }
            Ok(())
        })
    }
}

fn number_of(connection: &Connection, report: &Report) -> rusqlite::Result<Option<i64>> {
    let (boot_id, began) = (
        report.boot_ids.first().map_or("", String::as_str),
        report.began_monotonic_ns.cast_signed(),
    );
    let sql = "SELECT number FROM updates WHERE boot_id = ? AND began_monotonic_ns = ?";
    connection
        .query_row(sql, (boot_id, began), |row| row.get(0))
        .optional()
}

fn entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    let number = |column| {
        Ok::<_, rusqlite::Error>(row.get::<_, Option<i64>>(column)?.map(i64::cast_unsigned))
    };
    let text = |column| {
        Ok::<_, rusqlite::Error>(row.get::<_, Option<String>>(column)?.unwrap_or_default())
    };
    Ok(Entry {
        update: number(0)?.unwrap_or_default(),
        began_realtime_ns: number(1)?,
        interface: text(2)?.into(),
        orchestrator: text(3)?.into(),
        outcome: text(4)?.into(),
        handed_over: number(5)?,
        restored: number(6)?,
        blackout_ns: number(7)?,
        uncertainty_ns: number(8)?,
        clock: row.get::<_, Option<String>>(9)?.map(Into::into),
        lost: number(10)?,
        kernels: serde_json::from_str(&text(11)?).unwrap_or_default(),
    })
}

fn failed(action: &'static str, path: PathBuf, error: rusqlite::Error) -> Error {
    if error.sqlite_error_code() == Some(ErrorCode::NotADatabase) {
        return Error::Foreign(path);
    }
    Error::Database {
        action,
        path,
        error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_schema_is_taken_through_the_steps_that_it_lacks() {
        let folder = tempfile::tempdir().expect("a folder");
        let history = History::open(folder.path()).expect("made");
        assert_eq!(history.version(&STEPS).expect("asked"), STEPS.len());
        drop(history);
        let steps = [&STEPS[..], &["ALTER TABLE updates ADD COLUMN later TEXT"]].concat();
        let mut history = History::open(folder.path()).expect("opened");
        let version = history.version(&steps).expect("asked");
        assert_eq!(version, STEPS.len());
        history.migrate(version, &steps).expect("migrated");
        assert_eq!(history.version(&steps).expect("asked"), steps.len());
        let later = history
            .connection
            .execute_batch("SELECT later FROM updates; SELECT number FROM files");
        later.expect("the new column, and what was there");
        // To a lu without that step it is a newer one.
        let error = history.version(&STEPS).expect_err("newer");
        assert!(
            matches!(
                error,
                Error::Newer {
                    version: 2,
                    ours: 1,
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn a_step_that_fails_changes_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut history = History::open(folder.path()).expect("made");
        let steps = [&STEPS[..], &["CREATE TABLE a (x)", "no SQL at all"]].concat();
        history.migrate(STEPS.len(), &steps).expect_err("no SQL");
        assert_eq!(history.version(&STEPS).expect("asked"), STEPS.len());
        let made = history.connection.execute_batch("SELECT x FROM a");
        made.expect_err("there is no such table");
    }
}
