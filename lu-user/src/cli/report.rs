//! `lu report`.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use lu_user::export::{Report, html, perfetto, waterfall};
use lu_user::journal::{self, Reader};

use super::trace::tell_torn;

/// Show one update from the journal: what needs attention, phases, blackout, files, losses.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  lu report\n  lu report --update 3 --json | jq .blackout.ns\n  lu report --format html --output update.html\n  lu report --format perfetto --output update.pftrace   # for https://ui.perfetto.dev\n\nExit status: 0 shown, 1 there is no such update, 3 shown, and in it a request got through that was not the one that\nthe policy judged."
)]
pub struct Args {
    /// Where the journal is.
    #[arg(long, value_name = "DIR", default_value = journal::FOLDER)]
    journal: PathBuf,
    /// Which update, by its number in the journal (see `lu history`); unless told otherwise the last one that came
    /// through a kexec or to an end, else the one that is being made ready.
    #[arg(long, value_name = "NUMBER")]
    update: Option<u64>,
    /// In which form.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Short for --format json.
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// Into this file instead of standard output.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// A waterfall for the terminal.
    Text,
    /// One document, schema lu.report/1.
    Json,
    /// One page that needs nothing else.
    Html,
    /// A trace for <https://ui.perfetto.dev>.
    Perfetto,
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
                    Err(nothing) => bail!(
                        "no live update in {} yet: {} events, none of them a preserve{}",
                        self.journal.display(),
                        nothing.events,
                        match nothing.plain_kexecs {
                            0 => String::new(),
                            1 => ", and a kexec with nothing to hand over".to_owned(),
                            more => format!(", and {more} kexecs with nothing to hand over"),
                        }
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
        self.print(&report)?;
        Ok(match report.tampered {
            0 => ExitCode::SUCCESS,
            _ => ExitCode::from(super::TAMPERED),
        })
    }

    fn print(&self, report: &Report) -> Result<()> {
        let format = if self.json { Format::Json } else { self.format };
        let mut out = std::io::stdout().lock();
        let bytes = match format {
            Format::Text => waterfall(report, super::columns()).into_bytes(),
            Format::Json => {
                let mut text = serde_json::to_vec_pretty(report)?;
                text.push(b'\n');
                text
            }
            Format::Html => html(report).into_bytes(),
            Format::Perfetto if self.output.is_none() && out.is_terminal() => {
                bail!("a Perfetto trace is no text for a terminal; name a file with --output")
            }
            Format::Perfetto => perfetto(report),
        };
        if let Some(path) = &self.output {
            return std::fs::write(path, bytes)
                .with_context(|| format!("cannot write {}", path.display()));
        }
        Ok(out.write_all(&bytes)?)
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
