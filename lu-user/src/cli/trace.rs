//! `lu trace`.

use std::io::{BufWriter, StdoutLock, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use lu_common::event::Record;
use lu_user::export::{TraceLine, line};
use lu_user::timeline::Names;
use lu_user::{journal, socket};

use super::follow;
use super::watch::{Sink, Watch, tell};

/// Print a line for each event of the orchestrator, in the manner of strace.
///
/// It stops at Ctrl-C, or after --for. Losses are shown where they happened, and counted at the end.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  lu trace\n  lu trace --json --for 30s > events.jsonl\n  lu trace --json | jq 'select(.errno)'\n  lu trace --journal /var/lib/lu\n  lu trace --from-socket\n  lu trace --from-socket --all --for 1s --json"
)]
pub struct Args {
    /// One JSON object a line; unknown is null.
    #[arg(long)]
    json: bool,
    /// Print what a journal has, instead of watching.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["duration", "ring_buffer", "callbacks"])]
    journal: Option<PathBuf>,
    /// Print what a `lu run` on this machine sees from now on, as it tells at its socket, instead of watching: no privilege
    /// is needed but to read the socket.
    #[arg(
        long,
        value_name = "PATH",
        num_args = 0..=1,
        default_missing_value = socket::PATH,
        conflicts_with_all = ["journal", "ring_buffer", "callbacks"]
    )]
    from_socket: Option<PathBuf>,
    /// Print first what it has seen so far of what is under way.
    #[arg(long, requires = "from_socket")]
    all: bool,
    #[command(flatten)]
    watch: Watch,
}

impl Args {
    pub fn run(&self) -> Result<ExitCode> {
        let mut printer = Printer::new(self.json);
        if let Some(folder) = &self.journal {
            return replay(folder, &mut printer);
        }
        if let Some(path) = &self.from_socket {
            return follow::follow(path, self.all, self.watch.duration, printer);
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

impl Printer {
    /// Takes in what a session or a rule is called, and prints nothing.
    pub fn learn(&mut self, record: &Record) {
        self.names.push(record);
    }

    /// How many events were printed.
    pub const fn seen(&self) -> u64 {
        self.seen
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
