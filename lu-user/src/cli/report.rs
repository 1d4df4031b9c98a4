//! `lu report`.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use lu_user::export::{Report, html, perfetto, waterfall};
use lu_user::journal;
use lu_user::timeline::Timeline;

/// Show one update from the journal: what needs attention, phases, blackout, files, losses.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  lu report\n  lu report --update 3 --json | jq .blackout.ns\n  lu report --format html --output update.html\n  lu report --format perfetto --output update.pftrace   # for https://ui.perfetto.dev\n\nExit status: 0 shown, 1 there is no such update."
)]
pub struct Args {
    /// Where the journal is.
    #[arg(long, value_name = "DIR", default_value = journal::FOLDER)]
    journal: PathBuf,
    /// Which update, counted from 1 in the journal; unless told otherwise the last one that came through a
    /// kexec or to an end, else the one that is being made ready.
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
        let mut timeline = Timeline::new();
        let torn = journal::replay(&self.journal, |record| timeline.push(record))?;
        super::trace::tell_torn(&torn);
        let update = match self.update {
            None => timeline.latest_told().with_context(|| {
                format!(
                    "no live update in {} yet: {} events, none of them a preserve{}",
                    self.journal.display(),
                    timeline.events().seen,
                    match timeline.plain_kexecs() {
                        0 => String::new(),
                        1 => ", and a kexec with nothing to hand over".to_owned(),
                        more => format!(", and {more} kexecs with nothing to hand over"),
                    }
                )
            })?,
            Some(number) => {
                let found = timeline.updates().find(|update| update.number == number);
                let Some(update) = found else {
                    let numbers: Vec<String> =
                        timeline.updates().map(|u| u.number.to_string()).collect();
                    bail!(
                        "there is no update {number} in {}; there are: {}",
                        self.journal.display(),
                        if numbers.is_empty() {
                            "none".to_owned()
                        } else {
                            numbers.join(", ")
                        }
                    );
                };
                update
            }
        };
        self.print(&Report::from(update))?;
        Ok(ExitCode::SUCCESS)
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
