//! `lu history`.

use std::io::{BufWriter, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use lu_user::export::{History, table};
use lu_user::journal;

use super::trace::tell_torn;

/// List the updates in the journal, the newest first.
///
/// Those that have ended come from the journal's history, an SQLite database (history.db), which can be asked
/// anything with sqlite3: its views are phases, sessions, files, errors and verdicts.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  lu history\n  lu history --since 7d\n  lu history --since 2026-11-01 --limit 1000 --json | jq '.updates[] | select(.outcome != \"finished\")'\n  sqlite3 -readonly /var/lib/lu/history.db \"SELECT number, ns FROM phases WHERE name = 'boot'\""
)]
pub struct Args {
    /// Where the journal is.
    #[arg(long, value_name = "DIR", default_value = journal::FOLDER)]
    journal: PathBuf,
    /// At most so many; 0: all.
    #[arg(long, value_name = "N", default_value_t = 30)]
    limit: u64,
    /// Only those that began since then: how long ago (7d, 2h 30m), or when (2026-11-25, 2026-11-25 14:00,
    /// 2026-11-25T14:00:00Z).
    #[arg(long, value_name = "WHEN", value_parser = when)]
    since: Option<Timestamp>,
    /// The list as one JSON document, schema lu.history/1.
    #[arg(long)]
    json: bool,
}

impl Args {
    pub fn run(&self) -> Result<ExitCode> {
        let reader = super::report::open(&self.journal);
        let limit = Some(self.limit).filter(|limit| *limit > 0);
        let since = self
            .since
            .map(|since| u64::try_from(since.as_nanosecond()).unwrap_or(0));
        let (entries, torn) = reader.entries(limit, since)?;
        tell_torn(&torn);
        let mut out = BufWriter::new(std::io::stdout().lock());
        if self.json {
            let history = History::from(entries);
            serde_json::to_writer_pretty(&mut out, &history).map_err(std::io::Error::from)?;
            out.write_all(b"\n")?;
        } else {
            out.write_all(table(&entries, &TimeZone::system()).as_bytes())?;
        }
        out.flush()?;
        Ok(ExitCode::SUCCESS)
    }
}

/// A moment: how long ago, or a date and time of this machine's zone, or with its own.
fn when(text: &str) -> Result<Timestamp> {
    if let Ok(ago) = humantime::parse_duration(text) {
        return Ok(Timestamp::now().checked_sub(ago)?);
    }
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let local: DateTime = text
        .parse()
        .context("neither how long ago (7d) nor when (2026-11-25 14:00)")?;
    let zoned: Zoned = local.to_zoned(TimeZone::system())?;
    Ok(zoned.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_how_long_ago_or_when() {
        let hour_ago = when("1h").expect("a duration");
        let seconds = Timestamp::now().as_second() - hour_ago.as_second();
        assert!((3600..3700).contains(&seconds), "{seconds}");
        let exact = when("2026-11-25T14:00:00Z").expect("a time");
        assert_eq!(exact.as_second(), 1_795_615_200);
        for text in ["2026-11-25", "2026-11-25 14:00", "2026-11-25T14:00:00"] {
            let day = when(text).expect(text).as_second();
            assert!((day - 1_795_615_200).abs() <= 86_400 + 50_400, "{text}");
        }
        for wrong in ["", "soon", "2026-13-01", "-1d"] {
            assert!(when(wrong).is_err(), "{wrong}");
        }
    }
}
