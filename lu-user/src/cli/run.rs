//! `lu run`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::Result;
use bytesize::ByteSize;
use lu_common::event::{Kind, Record};
use lu_user::audit::{Audit, Rotation};
use lu_user::export::duration;
use lu_user::journal::recorder::{self, Found, Place, Recorder};
use lu_user::journal::refusals::Refusals;
use lu_user::journal::{self, Journal, Retention, boot, clocks};
use lu_user::orchestrator::Orchestrator;
use lu_user::reboot_cpu::OffRebootCpu;

use super::trace::Printer;
use super::watch::{Sink, Watch, tell};

/// Watch live updates until stopped, and keep a journal of them.
///
/// Each update that ends is kept in the journal's history, and told in a line on standard error. With the
/// kernel's orchestrator what is seen is recorded in memory too, preserved in a session called lu-recorder, so that lu in the new kernel joins
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
    /// The most memory for what is to survive the kexec. It is taken as it is needed, a record takes some 24 bytes,
    /// and the oldest go first.
    #[arg(long, value_name = "SIZE", default_value_t = ByteSize(recorder::SIZE))]
    recorder: ByteSize,
    /// Where that memory is. A service manager's store survives lu's end, but only some take it over a kexec;
    /// a file is there again as far as it has reached the disk.
    #[arg(long, value_name = "PLACE", default_value = "auto")]
    recorder_in: RecorderIn,
    /// Write a line of JSON for each request that a policy refuses, or would have refused, and for each policy
    /// that is loaded; to the system's journal too, where there is one. FILE belongs to us alone (mode 0600).
    #[arg(long, value_name = "FILE")]
    audit: Option<PathBuf>,
    /// How large the audit log may become before it is FILE.1, FILE.1 is FILE.2 and so on.
    #[arg(long, value_name = "SIZE", default_value_t = ByteSize(Rotation::default().bytes), requires = "audit")]
    audit_size: ByteSize,
    /// How many older files of the audit log are kept.
    #[arg(long, value_name = "N", default_value_t = Rotation::default().keep, requires = "audit")]
    audit_keep: u32,
    #[command(flatten)]
    watch: Watch,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum RecorderIn {
    /// The first of these that can be had.
    Auto,
    /// A preserved session, lu-recorder.
    Session,
    /// The service manager's store of descriptors.
    Store,
    /// A file in the journal's folder.
    File,
}

impl RecorderIn {
    const fn places(self) -> &'static [Place] {
        match self {
            Self::Auto => &[Place::Session, Place::Store, Place::File],
            Self::Session => &[Place::Session],
            Self::Store => &[Place::Store],
            Self::File => &[Place::File],
        }
    }
}

impl Args {
    pub fn run(&self) -> Result<ExitCode> {
        let retention = Retention {
            updates: self.keep_updates,
            bytes: self.keep_size.as_u64(),
        };
        let mut run = Run {
            born: clocks::anchor(),
            folder: self.journal.clone(),
            journal: Journal::open(&self.journal, retention)?,
            refusals: Refusals::default(),
            recorder: None,
            recorder_size: self.recorder,
            recorder_in: self.recorder_in,
            audit: self.open_audit()?,
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

impl Args {
    fn open_audit(&self) -> Result<Option<Audit>> {
        let rotation = Rotation {
            bytes: self.audit_size.as_u64(),
            keep: self.audit_keep,
        };
        let open = |path| Audit::open(path, rotation);
        Ok(self.audit.as_deref().map(open).transpose()?)
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
    journal: Journal,
    refusals: Refusals,
    recorder: Option<Recorder>,
    recorder_size: ByteSize,
    recorder_in: RecorderIn,
    audit: Option<Audit>,
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
    /// What an earlier lu recorded comes first, as far as the journal does not have it. It is let go only once
    /// it is in the journal.
    fn recover(&mut self, found: Found) -> Result<()> {
        let recovered = match &found.contents {
            Ok(recovered) => recovered,
            Err(error) => {
                eprintln!(
                    "lu: what was recorded in {} is lost: {error}",
                    shown(found.place)
                );
                return Ok(());
            }
        };
        let joined = self.journal.join(recovered)?;
        for record in &joined {
            if let Some(audit) = &mut self.audit {
                audit.push(record);
            }
            if let Some(printer) = &mut self.printer {
                printer.record(record)?;
            }
        }
        let joined = joined.iter().filter(|record| record.is_from_hook()).count();
        if joined > 0 || recovered.senseless > 0 {
            eprintln!(
                "lu: {joined} events from before, in {}{}",
                shown(found.place),
                match recovered.senseless {
                    0 => String::new(),
                    count => format!("; {count} that make no sense are left out"),
                }
            );
        }
        let place = found.place;
        if let Err(error) = found.release() {
            eprintln!("lu: it stays in {}: {error}", shown(place));
        }
        Ok(())
    }

    /// In the first place where it can be had.
    fn begin_recorder(&mut self, stop: &AtomicBool) -> Result<()> {
        for place in self.recorder_in.places() {
            let made = Recorder::create(
                *place,
                self.journal.run(),
                self.recorder_size.as_u64(),
                &self.folder,
                stop,
            );
            match made {
                Ok(recorder) => {
                    if *place != Place::Session {
                        eprintln!("lu: the flight recorder is in {}", shown(*place));
                    }
                    self.recorder = Some(recorder);
                    return Ok(());
                }
                Err(error @ recorder::Error::Size(_)) => return Err(error.into()),
                Err(error) => eprintln!("lu: no flight recorder in {}: {error}", shown(*place)),
            }
        }
        eprintln!(
            "lu: what is seen from now on will not survive the kexec unless {} does",
            self.folder.display()
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
        if let Some(problem) = self.audit.as_mut().and_then(Audit::problem) {
            eprintln!("lu: {problem}");
        }
    }

    fn keep(&mut self, record: &Record) -> Result<()> {
        self.journal.push(record)?;
        if let Some(audit) = &mut self.audit {
            audit.push(record);
        }
        if let Some(printer) = &mut self.printer {
            printer.record(record)?;
        }
        Ok(())
    }
}

impl Sink for Run {
    fn begin(&mut self, orchestrators: &[Orchestrator], stop: &AtomicBool) -> Result<()> {
        // The emulated orchestrator's kexec ends its clients, not us.
        let in_kernel = orchestrators.contains(&Orchestrator::Kernel);
        if in_kernel {
            for found in recorder::recover(&self.folder, stop) {
                match found {
                    Ok(found) => self.recover(found)?,
                    Err(error) => {
                        eprintln!(
                            "lu: there may be a flight recorder that cannot be read: {error}"
                        );
                    }
                }
            }
        }
        // What comes now sorts behind it.
        self.journal.begin()?;
        self.say_problems();
        if in_kernel {
            self.begin_recorder(stop)?;
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
            // The one before gives its CPUs back first.
            self.urgent = None;
            self.urgent = Some(Urgent {
                by: record.header.tid,
                since: Instant::now(),
                _elsewhere: OffRebootCpu::new(),
            });
            // The nearer the reading is to the jump, the less the clocks have drifted apart.
            self.defer(&clocks::anchor());
            self.beat();
        } else if self.urgent.is_some() || !self.deferred.is_empty() {
            // What waits comes first.
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

/// A place, for people.
const fn shown(place: Place) -> &'static str {
    match place {
        Place::Session => "session lu-recorder",
        Place::Store => "the service manager's store",
        Place::File => "the journal's folder",
    }
}
