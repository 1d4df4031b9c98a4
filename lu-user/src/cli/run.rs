//! `lu run`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use lu_common::event::Record;
use lu_user::export::duration;
use lu_user::journal;
use lu_user::timeline::{Outcome, Timeline};

use super::trace::Printer;
use super::watch::{Sink, Watch, tell};

/// Watch live updates until stopped, and keep a journal of them.
///
/// Each update that ends is told in a line on standard error.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  lu run\n  lu run --journal /tmp/lu --trace")]
pub struct Args {
    /// Where the journal is.
    #[arg(long, value_name = "DIR", default_value = journal::FOLDER)]
    journal: PathBuf,
    /// Print the events too, as `lu trace` does.
    #[arg(long)]
    trace: bool,
    #[command(flatten)]
    watch: Watch,
}

impl Args {
    pub fn run(&self) -> Result<ExitCode> {
        let mut recorder = Recorder {
            journal: journal::Writer::create(&self.journal)?,
            timeline: Timeline::new(),
            told: 0,
            printer: self.trace.then(|| Printer::new(false)),
        };
        let losses = self.watch.watch(&mut recorder)?;
        let events = recorder.timeline.events();
        eprintln!(
            "lu: {} events in {}, {}",
            events.seen,
            self.journal.display(),
            tell(losses)
        );
        Ok(ExitCode::SUCCESS)
    }
}

struct Recorder {
    journal: journal::Writer,
    timeline: Timeline,
    /// The last update whose end was told.
    told: u64,
    printer: Option<Printer>,
}

impl Sink for Recorder {
    fn record(&mut self, record: &Record) -> Result<()> {
        self.journal.append(record)?;
        self.timeline.push(record);
        if let Some(printer) = &mut self.printer {
            printer.record(record)?;
        }
        Ok(())
    }

    fn settle(&mut self) -> Result<()> {
        self.journal.flush()?;
        if let Some(printer) = &mut self.printer {
            printer.settle()?;
        }
        for update in self.timeline.updates() {
            if update.outcome != Outcome::InProgress && update.number > self.told {
                self.told = update.number;
                eprintln!(
                    "lu: update {} {}, blackout {}{}",
                    update.number,
                    update.outcome.name(),
                    update
                        .blackout()
                        .map_or_else(|| "unknown".to_owned(), |blackout| duration(blackout.ns)),
                    if update.events.lost > 0 {
                        " or more (events were lost)"
                    } else {
                        ""
                    }
                );
            }
        }
        Ok(())
    }
}
