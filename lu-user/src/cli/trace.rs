//! `lu trace`.

use std::io::{BufWriter, StdoutLock, Write as _};
use std::process::ExitCode;

use anyhow::Result;
use lu_common::event::Record;
use lu_user::export::{TraceLine, line};

use super::watch::{Sink, Watch, tell};

/// Print a line for each event of the orchestrator, in the manner of strace.
///
/// It stops at Ctrl-C, or after --for. Losses are shown where they happened, and counted at the end.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  lu trace\n  lu trace --json --for 30s > events.jsonl\n  lu trace --json | jq 'select(.errno)'"
)]
pub struct Args {
    /// One JSON object a line; unknown is null.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    watch: Watch,
}

impl Args {
    pub fn run(&self) -> Result<ExitCode> {
        let mut printer = Printer::new(self.json);
        let losses = self.watch.watch(&mut printer)?;
        eprintln!("lu: {} events, {}", printer.seen, tell(losses));
        Ok(ExitCode::SUCCESS)
    }
}

/// Prints records to standard output.
pub struct Printer {
    json: bool,
    origin_ns: Option<u64>,
    seen: u64,
    out: BufWriter<StdoutLock<'static>>,
}

impl Printer {
    pub fn new(json: bool) -> Self {
        Self {
            json,
            origin_ns: None,
            seen: 0,
            out: BufWriter::with_capacity(1 << 16, std::io::stdout().lock()),
        }
    }
}

impl Sink for Printer {
    fn record(&mut self, record: &Record) -> Result<()> {
        if record.lost().is_none() {
            self.seen += 1;
        }
        let origin = *self.origin_ns.get_or_insert(record.header.t_ns);
        if self.json {
            serde_json::to_writer(&mut self.out, &TraceLine::from(record))
                .map_err(std::io::Error::from)?;
            self.out.write_all(b"\n")?;
        } else {
            writeln!(self.out, "{}", line(record, origin))?;
        }
        Ok(())
    }

    fn settle(&mut self) -> Result<()> {
        Ok(self.out.flush()?)
    }
}
