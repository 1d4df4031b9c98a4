//! `lu trace`.

use std::io::{BufWriter, StdoutLock, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use lu_common::event::Record;
use lu_user::export::{TraceLine, line};
use lu_user::journal;
use lu_user::timeline::Names;

use super::watch::{Sink, Watch, tell};

/// Print a line for each event of the orchestrator, in the manner of strace.
///
/// It stops at Ctrl-C, or after --for. Losses are shown where they happened, and counted at the end.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  lu trace\n  lu trace --json --for 30s > events.jsonl\n  lu trace --json | jq 'select(.errno)'\n  lu trace --journal /var/lib/lu"
)]
pub struct Args {
    /// One JSON object a line; unknown is null.
    #[arg(long)]
    json: bool,
    /// Print what a journal has, instead of watching.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["duration", "ring_buffer", "callbacks"])]
    journal: Option<PathBuf>,
    #[command(flatten)]
    watch: Watch,
}

impl Args {
    pub fn run(&self) -> Result<ExitCode> {
        let mut printer = Printer::new(self.json);
        if let Some(folder) = &self.journal {
            return replay(folder, &mut printer);
        }
        let losses = self.watch.watch(&mut printer)?;
        eprintln!("lu: {} events, {}", printer.seen, tell(losses));
        Ok(ExitCode::SUCCESS)
    }
}

fn replay(folder: &Path, printer: &mut Printer) -> Result<ExitCode> {
    let mut failed = Ok(());
    let torn = journal::read::records(folder, |record| {
        if failed.is_ok() {
            failed = printer.record(record);
        }
    })?;
    failed?;
    printer.settle()?;
    tell_torn(&torn);
    Ok(ExitCode::SUCCESS)
}

/// Says which files of a journal end in the middle of a record.
pub fn tell_torn(torn: &[PathBuf]) {
    for path in torn {
        eprintln!(
            "lu: the last record of {} was cut short and is left out",
            path.display()
        );
    }
}

/// Prints records to standard output.
pub struct Printer {
    json: bool,
    origin_ns: Option<u64>,
    names: Names,
    seen: u64,
    out: BufWriter<StdoutLock<'static>>,
}

impl Printer {
    pub fn new(json: bool) -> Self {
        Self {
            json,
            origin_ns: None,
            names: Names::default(),
            seen: 0,
            out: BufWriter::with_capacity(1 << 16, std::io::stdout().lock()),
        }
    }
}

impl Sink for Printer {
    fn record(&mut self, record: &Record) -> Result<()> {
        self.names.push(record);
        if record.is_from_hook() {
            self.seen += 1;
        }
        let origin = *self.origin_ns.get_or_insert(record.header.t_ns);
        if self.json {
            serde_json::to_writer(&mut self.out, &TraceLine::new(record, &self.names))
                .map_err(std::io::Error::from)?;
            self.out.write_all(b"\n")?;
        } else if let Some(line) = line(record, &self.names, origin) {
            writeln!(self.out, "{line}")?;
        }
        Ok(())
    }

    fn settle(&mut self) -> Result<()> {
        Ok(self.out.flush()?)
    }
}
