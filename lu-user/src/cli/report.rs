//! `lu report`.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use lu_user::export::{Report, waterfall};
use lu_user::journal;
use lu_user::timeline::Timeline;

/// Show one update from the journal as a waterfall: phases, files, outcome, blackout, losses.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  lu report\n  lu report --update 3 --json | jq .blackout.ns\n\nExit status: 0 shown, 1 there is no such update."
)]
pub struct Args {
    /// Where the journal is.
    #[arg(long, value_name = "DIR", default_value = journal::FOLDER)]
    journal: PathBuf,
    /// Which update, counted from 1 in the journal; unless told otherwise the last one that came through a
    /// kexec or to an end, else the one that is being made ready.
    #[arg(long, value_name = "NUMBER")]
    update: Option<u64>,
    /// The report as one JSON document, schema lu.report/1.
    #[arg(long)]
    json: bool,
}

impl Args {
    pub fn run(&self) -> Result<ExitCode> {
        let mut timeline = Timeline::new();
        let torn = journal::replay(&self.journal, |record| timeline.push(record))?;
        super::trace::tell_torn(&torn);
        let update = match self.update {
            None => timeline.latest_told().with_context(|| {
                format!(
                    "no live update in {} yet: {} events, none of them a preserve",
                    self.journal.display(),
                    timeline.events().seen
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
        let report = Report::from(update);
        let mut out = std::io::stdout().lock();
        if self.json {
            serde_json::to_writer_pretty(&mut out, &report).map_err(std::io::Error::from)?;
            out.write_all(b"\n")?;
        } else {
            out.write_all(waterfall(&report, super::columns()).as_bytes())?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
