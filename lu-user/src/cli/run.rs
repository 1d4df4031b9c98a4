//! `lu run`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use bytesize::ByteSize;
use lu_common::event::{Kind, Record};
use lu_user::export::duration;
use lu_user::journal::recorder::{self, Recorder};
use lu_user::journal::refusals::Refusals;
use lu_user::journal::{self, Journal, Retention, clocks};
use lu_user::orchestrator::Orchestrator;
use lu_user::reboot_cpu::OffRebootCpu;

use super::trace::Printer;
use super::watch::{Sink, Watch, tell};

/// Watch live updates until stopped, and keep a journal of them.
///
/// Each update that ends is kept in the journal's history, and told in a line on standard error. With the kernel's orchestrator what is seen is
/// recorded in a memfd too, preserved in a session called lu-recorder, so that lu in the new kernel joins
/// both halves of an update; the device is held for the moment of its creation alone.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  lu run\n  lu run --journal /tmp/lu --trace")]
pub struct Args {
    /// Where the journal is.
    #[arg(long, value_name = "DIR", default_value = journal::FOLDER)]
    journal: PathBuf,
    /// How many updates are kept; the oldest go first.
    #[arg(long, value_name = "N", default_value_t = Retention::default().updates, value_parser = clap::value_parser!(u64).range(1..))]
    keep_updates: u64,
    /// How large the journal may become: the oldest events go first, then the oldest updates.
    #[arg(long, value_name = "SIZE", default_value_t = ByteSize(Retention::default().bytes))]
    keep_size: ByteSize,
    /// Print the events too, as `lu trace` does.
    #[arg(long)]
    trace: bool,
    /// Memory for what is to survive the kexec; a record takes 128 bytes, and the oldest go first.
    #[arg(long, value_name = "SIZE", default_value_t = ByteSize(recorder::SIZE))]
    recorder: ByteSize,
    #[command(flatten)]
    watch: Watch,
}

impl Args {
    pub fn run(&self) -> Result<ExitCode> {
        let retention = Retention {
            updates: self.keep_updates,
            bytes: self.keep_size.as_u64(),
        };
        let mut run = Run {
            born: clocks::anchor(),
            journal: Journal::open(&self.journal, retention)?,
            refusals: Refusals::default(),
            recorder: None,
            recorder_size: self.recorder,
            printer: self.trace.then(|| Printer::new(false)),
            urgent: None,
            deferred: Vec::new(),
        };
        let losses = self.watch.watch(&mut run)?;
        run.say_problems();
        let events = run.journal.events();
        eprintln!(
            "lu: {} events in {}, {}",
            events.seen,
            self.journal.display(),
            tell(losses)
        );
        Ok(ExitCode::SUCCESS)
    }
}

/// How long a kexec may take from the freeze to the jump before we sleep again.
const URGENT: Duration = Duration::from_mins(1);

/// How many records may wait meanwhile.
const DEFERRED: usize = 1 << 20;

struct Run {
    /// The clocks at the start: attaching takes long enough to know the counter's frequency by, should the
    /// kexec come at once.
    born: Record,
    journal: Journal,
    refusals: Refusals,
    recorder: Option<Recorder>,
    recorder_size: ByteSize,
    printer: Option<Printer>,
    urgent: Option<Urgent>,
    /// What goes to the journal and the terminal once there is time again: both may block for ever on a
    /// device that is shut down.
    deferred: Vec<Record>,
}

/// This kernel is about to go.
struct Urgent {
    /// The thread that has called for the kexec.
    by: u32,
    since: Instant,
    /// Where the kernel shuts down nobody else gets far.
    _elsewhere: Option<OffRebootCpu>,
}

impl Run {
    /// What the old kernel's lu recorded comes first, as far as the journal does not have it. It is finished
    /// only once it is in the journal.
    fn recover(&mut self) -> Result<()> {
        let (session, recovered) = match recorder::recover() {
            Ok(None) => return Ok(()),
            Ok(Some(found)) => found,
            Err(error) => {
                eprintln!("lu: what was recorded before the kexec is lost: {error}");
                return Ok(());
            }
        };
        for record in self.journal.join(&recovered)? {
            if let Some(printer) = &mut self.printer {
                printer.record(&record)?;
            }
        }
        if let Err(error) = session.finish() {
            eprintln!("lu: session lu-recorder stays as it is until the next kexec: {error}");
        }
        eprintln!(
            "lu: {} events from before the kexec",
            recovered.records.len()
        );
        Ok(())
    }

    fn note(&mut self, record: &Record) -> Result<()> {
        if let Some(recorder) = &mut self.recorder {
            recorder.append(record);
        }
        self.keep(record)
    }

    /// While nobody may sleep: into memory alone.
    fn defer(&mut self, record: &Record) {
        if let Some(recorder) = &mut self.recorder {
            recorder.append(record);
        }
        self.deferred.push(*record);
    }

    /// The reboots that were refused meanwhile, as one.
    fn note_refusals(&mut self) -> Result<()> {
        match self.refusals.take() {
            Some(record) => self.note(&record),
            None => Ok(()),
        }
    }

    fn say_problems(&mut self) {
        for problem in self.journal.problems() {
            eprintln!("lu: {problem}");
        }
    }

    fn keep(&mut self, record: &Record) -> Result<()> {
        self.journal.push(record)?;
        if let Some(printer) = &mut self.printer {
            printer.record(record)?;
        }
        Ok(())
    }
}

impl Sink for Run {
    fn begin(&mut self, orchestrators: &[Orchestrator]) -> Result<()> {
        // The emulated orchestrator's kexec ends its clients, not us.
        let in_kernel = orchestrators.contains(&Orchestrator::Kernel);
        if in_kernel {
            self.recover()?;
        }
        // What comes now sorts behind it.
        self.journal.begin()?;
        self.say_problems();
        if in_kernel {
            match Recorder::create(self.journal.run(), self.recorder_size.as_u64()) {
                Ok(recorder) => self.recorder = Some(recorder),
                Err(error @ recorder::Error::Size(_)) => return Err(error.into()),
                Err(error) => eprintln!(
                    "lu: no flight recorder, so what is seen from now on will not survive the kexec \
                     unless the journal does: {error}"
                ),
            }
        }
        self.note(&clocks::kernel())?;
        let born = self.born;
        self.note(&born)?;
        self.note(&clocks::anchor())
    }

    fn record(&mut self, record: &Record) -> Result<()> {
        let kexec = record.kind() == Some(Kind::Kexec) && !record.is_emulated();
        // What was let through may fail with the same errno.
        let through = self.urgent.as_ref().map(|urgent| urgent.by);
        let refused = kexec && Refusals::is_one(record) && through != Some(record.header.tid);
        if refused && !self.refusals.push(record) {
            // One of many, which are kept as one.
        } else if kexec && !record.is_exit() {
            if self.urgent.is_none()
                && let Some(refused) = self.refusals.take()
            {
                self.defer(&refused);
            }
            self.defer(record);
            self.urgent = Some(Urgent {
                by: record.header.tid,
                since: Instant::now(),
                _elsewhere: OffRebootCpu::new(),
            });
            // The nearer the reading is to the jump, the less the clocks have drifted apart.
            self.defer(&clocks::anchor());
        } else if self.urgent.is_some() {
            self.defer(record);
        } else {
            self.note(record)?;
        }
        let is_back =
            |urgent: &mut Urgent| kexec && record.is_exit() && urgent.by == record.header.tid;
        self.urgent.take_if(is_back);
        Ok(())
    }

    fn tick(&mut self) -> Result<()> {
        self.note_refusals()?;
        self.note(&clocks::anchor())?;
        Ok(self.journal.tick()?)
    }

    fn is_urgent(&self) -> bool {
        self.deferred.len() < DEFERRED
            && self
                .urgent
                .as_ref()
                .is_some_and(|urgent| urgent.since.elapsed() < URGENT)
    }

    fn beat(&mut self) {
        if let Some(recorder) = &self.recorder {
            recorder.beat();
        }
    }

    fn end(&mut self) -> Result<()> {
        self.tick()
    }

    fn settle(&mut self) -> Result<()> {
        self.urgent = None;
        for record in std::mem::take(&mut self.deferred) {
            self.keep(&record)?;
        }
        let ended = self.journal.settle()?;
        if let Some(printer) = &mut self.printer {
            printer.settle()?;
        }
        self.say_problems();
        for update in ended {
            eprintln!(
                "lu: update {} {}, blackout {}{}",
                update.update,
                update.outcome.name(),
                update
                    .blackout
                    .map_or_else(|| "unknown".to_owned(), |blackout| duration(blackout.ns)),
                if update.events.lost > 0 {
                    " or more (events were lost)"
                } else {
                    ""
                }
            );
        }
        Ok(())
    }
}
