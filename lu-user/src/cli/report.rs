//! `lu report`.

use std::io::{BufWriter, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use lu_user::export::waterfall;
use lu_user::journal::{self, Reader};

use super::trace::tell_torn;

/// Show one update from the journal as a waterfall: phases, files, outcome, blackout, losses.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  lu report\n  lu report --update 3 --json | jq .blackout.ns\n\nExit status: 0 shown, 1 there is no such update."
)]
pub struct Args {
    /// Where the journal is.
    #[arg(long, value_name = "DIR", default_value = journal::FOLDER)]
    journal: PathBuf,
    /// Which update, by its number in the journal (see `lu history`); unless told otherwise the last one that came
    /// through a kexec or to an end, else the one that is being made ready.
    #[arg(long, value_name = "NUMBER")]
    update: Option<u64>,
    /// The report as one JSON document, schema lu.report/1.
    #[arg(long)]
    json: bool,
}

impl Args {
    pub fn run(&self) -> Result<ExitCode> {
        let reader = open(&self.journal);
        let report = match self.update {
            None => {
                let (latest, torn) = reader.latest()?;
                tell_torn(&torn);
                match latest {
                    Ok(report) => report,
                    Err(events) => bail!(
                        "no live update in {} yet: {events} events, none of them a preserve",
                        self.journal.display()
                    ),
                }
            }
            Some(number) => {
                let (found, torn) = reader.update(number)?;
                tell_torn(&torn);
                match found {
                    Ok(report) => report,
                    Err(numbers) => bail!(
                        "there is no update {number} in {}; there are: {}",
                        self.journal.display(),
                        spans(&numbers)
                    ),
                }
            }
        };
        let mut out = BufWriter::new(std::io::stdout().lock());
        if self.json {
            serde_json::to_writer_pretty(&mut out, &report).map_err(std::io::Error::from)?;
            out.write_all(b"\n")?;
        } else {
            out.write_all(waterfall(&report, super::columns()).as_bytes())?;
        }
        out.flush()?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Opens a journal for reading; what is wrong with its history is said, and no reason to stop.
pub fn open(folder: &std::path::Path) -> Reader {
    let reader = Reader::open(folder);
    if let Some(problem) = &reader.problem {
        eprintln!("lu: {problem}");
    }
    reader
}

/// Numbers in ascending order, those without a gap as one span.
fn spans(numbers: &[u64]) -> String {
    let spans: Vec<String> = numbers
        .chunk_by(|a, b| a + 1 == *b)
        .filter_map(|span| match span {
            [] => None,
            [one] => Some(one.to_string()),
            [first, .., last] => Some(format!("{first} to {last}")),
        })
        .collect();
    if spans.is_empty() {
        "none".to_owned()
    } else {
        spans.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_without_a_gap_are_one_span() {
        assert_eq!(spans(&[]), "none");
        assert_eq!(spans(&[1, 2, 3, 7, 9, 10]), "1 to 3, 7, 9 to 10");
    }
}
