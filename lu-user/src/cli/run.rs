//! `lu run`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use bytesize::ByteSize;
use lu_common::event::{Kind, Record};
use lu_user::export::duration;
use lu_user::journal::recorder::{self, Recorder};
use lu_user::journal::{self, boot, clocks};
use lu_user::orchestrator::Orchestrator;
use lu_user::reboot_cpu::OffRebootCpu;
use lu_user::timeline::{Outcome, Timeline};

use super::trace::Printer;
use super::watch::{Sink, Watch, tell};

/// Watch live updates until stopped, and keep a journal of them.
///
/// Each update that ends is told in a line on standard error. With the kernel's orchestrator what is seen is
/// recorded in a memfd too, preserved in a session called lu-recorder, so that lu in the new kernel joins
/// both halves of an update; the device is held for the moment of its creation alone.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  lu run\n  lu run --journal /tmp/lu --trace")]
pub struct Args {
    /// Where the journal is.
    #[arg(long, value_name = "DIR", default_value = journal::FOLDER)]
    journal: PathBuf,
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
        let mut run = Run {
            born: clocks::anchor(),
            folder: self.journal.clone(),
            journal: journal::Writer::create(&self.journal)?,
            recorder: None,
            recorder_size: self.recorder,
            timeline: Timeline::new(),
            told: 0,
            printer: self.trace.then(|| Printer::new(false)),
            urgent: None,
            deferred: Vec::new(),
        };
        let losses = self.watch.watch(&mut run)?;
        let events = run.timeline.events();
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
    folder: PathBuf,
    journal: journal::Writer,
    recorder: Option<Recorder>,
    recorder_size: ByteSize,
    timeline: Timeline,
    /// The last update whose end was told.
    told: u64,
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
        let have = journal::count(&self.folder, recovered.run)?;
        let mut journal = journal::Writer::go_on(&self.folder, recovered.run)?;
        if let Err(error) = journal::replay(&self.folder, |record| self.timeline.push(record)) {
            eprintln!(
                "lu: the journal cannot be read, so what was before the recorder is missing: {error}"
            );
        }
        // Their ends were told when they came.
        self.told = self
            .timeline
            .updates()
            .filter(|update| update.outcome != Outcome::InProgress)
            .map(|update| update.number)
            .max()
            .unwrap_or(0);
        let mut old = Vec::new();
        if recovered.skipped > have {
            let mut lost = Record::made(Kind::Lost, 0, [0; 64]);
            lost.call.bytes = recovered.skipped - have;
            old.push(lost);
        }
        let known = usize::try_from(have.saturating_sub(recovered.skipped)).unwrap_or(usize::MAX);
        old.extend(recovered.records.get(known..).unwrap_or_default());
        old.push(recovered.last_beat);
        for record in &old {
            journal.append(record)?;
            self.timeline.push(record);
            if let Some(printer) = &mut self.printer {
                printer.record(record)?;
            }
        }
        journal.sync()?;
        // What comes now sorts behind it.
        self.journal.begin_anew()?;
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

    fn keep(&mut self, record: &Record) -> Result<()> {
        self.journal.append(record)?;
        self.timeline.push(record);
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
            match Recorder::create(self.journal.run(), self.recorder_size.as_u64()) {
                Ok(recorder) => self.recorder = Some(recorder),
                Err(error @ recorder::Error::Size(_)) => return Err(error.into()),
                Err(error) => eprintln!(
                    "lu: no flight recorder, so what is seen from now on will not survive the kexec \
                     unless {} does: {error}",
                    self.folder.display()
                ),
            }
        }
        self.note(&clocks::kernel())?;
        if let Some(handover) = boot::handover() {
            self.note(&handover)?;
        }
        let born = self.born;
        self.note(&born)?;
        self.note(&clocks::anchor())
    }

    fn record(&mut self, record: &Record) -> Result<()> {
        let kexec = record.kind() == Some(Kind::Kexec) && !record.is_emulated();
        if kexec && !record.is_exit() {
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
        } else if kexec && record.errno() == Some(libc::EPERM) {
            // Anybody can have that, and must not push anything out of the recorder.
            self.keep(record)?;
        } else {
            self.note(record)?;
        }
        let is_back =
            |urgent: &mut Urgent| kexec && record.is_exit() && urgent.by == record.header.tid;
        self.urgent.take_if(is_back);
        Ok(())
    }

    fn tick(&mut self) -> Result<()> {
        self.note(&clocks::anchor())
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
        self.note(&clocks::anchor())
    }

    fn settle(&mut self) -> Result<()> {
        self.urgent = None;
        for record in std::mem::take(&mut self.deferred) {
            self.keep(&record)?;
        }
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
