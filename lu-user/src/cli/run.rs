//! `lu run`.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::Result;
use aya::maps::{MapData, RingBuf};
use bytesize::ByteSize;
use lu_common::event::{Kind, Record};
use lu_common::policy::Untold;
use lu_user::attach::{Attached, KernelPlace};
use lu_user::audit::{Audit, Rotation};
use lu_user::collect::Losses;
use lu_user::export::{duration, untold};
use lu_user::journal::recorder::{self, Found, Place, Recorder};
use lu_user::journal::refusals::Refusals;
use lu_user::journal::{self, Journal, Retention, boot, clocks};
use lu_user::metrics::serve;
use lu_user::orchestrator::Orchestrator;
use lu_user::reboot_cpu::OffRebootCpu;

use super::export::{self, Exporter};
use super::guard::Guard;
use super::trace::Printer;
use super::watch::{Sink, Watch, tell};

/// Watch live updates until stopped, and keep a journal of them.
///
/// Each update that ends is kept in the journal's history, and told in a line on standard error. With the
/// kernel's orchestrator what is seen is recorded in memory too, preserved in a session called lu-recorder, so that lu in the new kernel joins
/// both halves of an update; the device is held for the moment of its creation alone.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  lu run\n  lu run --journal /tmp/lu --trace\n  lu run --policy /etc/lu/policy.toml\n  lu run --export 127.0.0.1:9464\n\nExit status: 0 it was told to end, 1 it failed, 2 wrong usage, or a policy with errors, 3 a request got through that was not\nthe one that the policy judged."
)]
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
    /// Put a policy in force, as docs/policy.md tells; SIGHUP reads it again. Where a rule of it is enforced lu does not
    /// start unless a request that must be refused was.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Write a line of JSON for each request that a policy refuses, or would have refused, and for each policy
    /// that is loaded; to the system's journal too, where there is one. FILE belongs to us alone (mode 0600). With
    /// --policy it is audit.jsonl in the journal's folder where nothing else is said.
    #[arg(long, value_name = "FILE")]
    audit: Option<PathBuf>,
    /// How large the audit log may become before it is FILE.1, FILE.1 is FILE.2 and so on.
    #[arg(long, value_name = "SIZE", default_value_t = ByteSize(Rotation::default().bytes))]
    audit_size: ByteSize,
    /// How many older files of the audit log are kept.
    #[arg(long, value_name = "N", default_value_t = Rotation::default().keep)]
    audit_keep: u32,
    /// Serve metrics for Prometheus over HTTP, as docs/metrics.md lists them: at /metrics, and /healthz and /readyz beside
    /// it. Whoever reaches the address can read them; without one it is 127.0.0.1:9464.
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, default_missing_value = serve::ADDRESS, value_parser = export::address)]
    export: Option<SocketAddr>,
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
            export: self
                .export
                .map(|address| Exporter::bind(address, &self.journal))
                .transpose()?,
            journal: Journal::open(&self.journal, retention)?,
            refusals: Refusals::default(),
            recorder: None,
            recorder_size: self.recorder,
            recorder_in: self.recorder_in,
            audit: self.open_audit()?,
            printer: self.trace.then(|| Printer::new(false)),
            urgent: None,
            waiting: Vec::new(),
            held: VecDeque::new(),
            has_told: false,
            policy: self.policy.clone(),
            guard: None,
            tampered: 0,
            untold: Untold::default(),
        };
        let watched = self.watch.watch(&mut run);
        run.let_go();
        run.say_problems();
        let losses = watched?;
        let events = run.journal.events();
        eprintln!(
            "lu: {} events in {}, {}",
            events.seen,
            self.journal.display(),
            tell(losses)
        );
        if let Some(untold) = untold(run.untold.ring_full, run.untold.unjudged) {
            eprintln!("lu: {untold}");
        }
        if run.tampered > 0 {
            eprintln!(
                "lu: {} requests got through that were not the ones that were judged",
                run.tampered
            );
            return Ok(ExitCode::from(super::TAMPERED));
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Args {
    fn open_audit(&self) -> Result<Option<Audit>> {
        let rotation = Rotation {
            bytes: self.audit_size.as_u64(),
            keep: self.audit_keep,
        };
        let beside = || {
            let policy = self.policy.as_ref();
            policy.map(|_| self.journal.join("audit.jsonl"))
        };
        let path = self.audit.clone().or_else(beside);
        let open = |path: PathBuf| Audit::open(&path, rotation);
        Ok(path.map(open).transpose()?)
    }
}

/// How long a kexec may take from the freeze to the jump before we sleep again.
const URGENT: Duration = Duration::from_mins(1);

/// How many records may wait meanwhile.
const WAITING: usize = 1 << 20;

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
    /// What goes to the journal and the terminal when the batch is over, and there is time: both may block for ever on
    /// a device that is shut down. It comes behind what is held.
    waiting: Vec<Record>,
    /// What earlier lus recorded and the journal does not have yet.
    held: VecDeque<Found>,
    /// Whether it was told why.
    has_told: bool,
    /// The policy's file.
    policy: Option<PathBuf>,
    guard: Option<Guard>,
    /// How many requests got through that were not the ones that were judged.
    tampered: u64,
    /// What the policy's programs could not do.
    untold: Untold,
    export: Option<Exporter>,
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
    /// What earlier lus recorded comes first, as far as the journal does not have it. It is let go only once it is
    /// in the journal, which is tried again at each tick.
    fn recover(&mut self) -> Result<()> {
        while let Some(found) = self.held.front() {
            let Some(recovered) = &found.contents else {
                self.held.pop_front();
                continue;
            };
            let mut new = Vec::new();
            let joined = self.journal.join(recovered, &mut new);
            show(&mut self.audit, &mut self.printer, &new)?;
            let place = shown(found.place);
            let events = new.iter().filter(|record| record.is_from_hook()).count();
            if events > 0 || recovered.senseless > 0 {
                eprintln!(
                    "lu: {events} events from before, in {place}{}",
                    match recovered.senseless {
                        0 => String::new(),
                        count => format!("; {count} that make no sense are left out"),
                    }
                );
            }
            if let Err(error) = joined {
                if !self.has_told {
                    self.has_told = true;
                    eprintln!(
                        "lu: what was recorded in {place} stays there, since it cannot be written to the journal: \
                         {error}; what is seen meanwhile waits in memory, and lu tries again"
                    );
                }
                return Ok(());
            }
            if let Some(Err(error)) = self.held.pop_front().map(Found::release) {
                eprintln!("lu: it stays in {place}: {error}");
            }
        }
        Ok(())
    }

    /// Takes over what was found, and says what of it cannot be read.
    fn hold(&mut self, found: Found) {
        let place = shown(found.place);
        if let Some(error) = found.bad.first() {
            match &found.contents {
                None => eprintln!("lu: what was recorded in {place} is lost: {error}"),
                Some(_) => eprintln!(
                    "lu: {} pieces of what was recorded in {place} are lost, the first of them: {error}",
                    found.bad.len()
                ),
            }
        }
        self.held.push_back(found);
    }

    /// Tries for the last time, and says what is lost with what is held.
    fn let_go(&mut self) {
        if let Err(error) = self.recover() {
            eprintln!("lu: {error}");
        }
        for found in std::mem::take(&mut self.held) {
            let place = shown(found.place);
            match found.place {
                Place::Session => eprintln!(
                    "lu: what was recorded in {place} is lost: the journal does not have it, and the kernel \
                     finishes a session that is closed"
                ),
                Place::Store | Place::File => eprintln!(
                    "lu: what was recorded in {place} stays there for the next lu run, which has to come to it \
                     before the next kexec"
                ),
            }
        }
    }

    /// In the first place where it can be had.
    fn begin_recorder(&mut self, stop: &AtomicBool) -> Result<()> {
        for place in self.recorder_in.places() {
            // The new kernel's session is another one; all else would be written over.
            let is_taken = |found: &Found| found.place == *place && *place != Place::Session;
            if self.held.iter().any(is_taken) {
                eprintln!(
                    "lu: no flight recorder in {}: what is there is not in the journal yet",
                    shown(*place)
                );
                continue;
            }
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

    /// Into memory alone, until the batch is over.
    fn note(&mut self, record: &Record) {
        self.tampered += u64::from(record.kind() == Some(Kind::Tampered));
        if let Some(untold) = record.untold() {
            self.untold = self.untold.and(&untold);
        }
        if let Some(recorder) = &mut self.recorder {
            recorder.append(record);
        }
        if let Some(export) = &mut self.export {
            export.record(record);
        }
        self.waiting.push(*record);
    }

    /// Whether a kexec begins that reboot(2) did not tell of, since it has no hook.
    fn begins_unannounced(&self, record: &Record) -> bool {
        record.kind() == Some(Kind::Reboot)
            && !record.is_emulated()
            && !record.is_exit()
            && self
                .urgent
                .as_ref()
                .is_none_or(|urgent| urgent.by != record.header.tid)
    }

    /// What the policy's programs could not do meanwhile.
    fn note_untold(&mut self) {
        if let Some(record) = self.guard.as_mut().and_then(Guard::untold) {
            self.note(&record);
        }
    }

    /// The reboots that were refused meanwhile, as one for each errno.
    fn note_refusals(&mut self) {
        for refused in self.refusals.take() {
            self.note(&refused);
        }
    }

    fn say_problems(&mut self) {
        let of_audit = self.audit.as_mut().and_then(Audit::problem);
        let problems = self.journal.problems().into_iter();
        for problem in problems.chain(of_audit) {
            eprintln!("lu: {problem}");
            if let Some(export) = &self.export {
                export.problem();
            }
        }
    }
}

impl Sink for Run {
    fn enforce(&mut self, place: Option<&KernelPlace>) -> Result<Option<RingBuf<MapData>>> {
        let Some(path) = &self.policy else {
            return Ok(None);
        };
        let mut guard = Guard::new(path.clone(), place)?;
        let verdicts = guard.take_verdicts();
        self.guard = Some(guard);
        Ok(verdicts)
    }

    fn can_reload(&self) -> bool {
        self.policy.is_some()
    }

    fn reload(&mut self) -> Result<()> {
        if let Some(guard) = &mut self.guard {
            let done = guard.reload();
            if let Some(export) = &self.export {
                export.reloaded(done);
            }
        }
        Ok(())
    }

    fn ready(&mut self, attached: &Attached) -> Result<()> {
        match &mut self.export {
            Some(export) => export.ready(attached),
            None => Ok(()),
        }
    }

    fn pulse(&self) -> Option<Duration> {
        self.export.is_some().then_some(serve::TURN)
    }

    fn losses(&mut self, losses: Losses) {
        if let Some(export) = &mut self.export {
            export.losses(losses);
        }
    }

    fn begin(&mut self, orchestrators: &[Orchestrator], stop: &AtomicBool) -> Result<()> {
        if let Some(export) = &mut self.export {
            export.begin(orchestrators);
        }
        // The emulated orchestrator's kexec ends its clients, not us.
        let in_kernel = orchestrators.contains(&Orchestrator::Kernel);
        if in_kernel {
            for found in recorder::recover(&self.folder, stop) {
                match found {
                    Ok(found) => self.hold(found),
                    Err(error) => {
                        eprintln!(
                            "lu: there may be a flight recorder that cannot be read: {error}"
                        );
                    }
                }
            }
        }
        self.recover()?;
        self.say_problems();
        if in_kernel {
            self.begin_recorder(stop)?;
        }
        self.note(&clocks::kernel());
        if let Some(handover) = boot::handover() {
            self.note(&handover);
        }
        let born = self.born;
        self.note(&born);
        self.note(&clocks::anchor());
        Ok(())
    }

    fn record(&mut self, record: &Record) -> Result<()> {
        let kexec = record.kind() == Some(Kind::Kexec) && !record.is_emulated();
        if !self.refusals.push(record) {
            // One of many, which are kept as one.
        } else if kexec && !record.is_exit() || self.begins_unannounced(record) {
            if self.urgent.is_none() {
                self.note_refusals();
            }
            self.note(record);
            // The one before gives its CPUs back first.
            self.urgent = None;
            self.urgent = Some(Urgent {
                by: record.header.tid,
                since: Instant::now(),
                _elsewhere: OffRebootCpu::new(),
            });
            // The nearer the reading is to the jump, the less the clocks have drifted apart.
            self.note(&clocks::anchor());
            self.beat();
        } else {
            self.note(record);
        }
        // A freeze that fails is the end of it, also where reboot(2) has no hook.
        let failed = record.kind() == Some(Kind::Reboot) && record.errno().is_some();
        let is_back = |urgent: &mut Urgent| {
            (kexec && record.is_exit() || failed) && urgent.by == record.header.tid
        };
        self.urgent.take_if(is_back);
        Ok(())
    }

    fn tick(&mut self) -> Result<()> {
        self.note_refusals();
        self.note(&clocks::anchor());
        if let Some(guard) = &mut self.guard {
            guard.look();
        }
        self.recover()?;
        Ok(self.journal.tick()?)
    }

    fn is_urgent(&self) -> bool {
        self.waiting.len() < WAITING
            && self
                .urgent
                .as_ref()
                .is_some_and(|urgent| urgent.since.elapsed() < URGENT)
    }

    fn beat(&mut self) {
        if let Some(recorder) = &self.recorder {
            recorder.beat();
        }
        if let Some(export) = &self.export {
            export.turn();
        }
    }

    fn end(&mut self) -> Result<()> {
        // What waits comes first.
        self.settle()?;
        self.tick()?;
        self.let_go();
        self.settle()?;
        Ok(self.journal.sync()?)
    }

    fn settle(&mut self) -> Result<()> {
        self.urgent = None;
        if let Some(export) = &self.export {
            export.turn();
        }
        if self.waiting.len() >= WAITING {
            self.let_go();
        }
        if !self.held.is_empty() {
            if let Some(export) = &self.export {
                export.waits();
            }
            return Ok(());
        }
        self.note_untold();
        let batch = std::mem::take(&mut self.waiting);
        self.journal.push(&batch)?;
        show(&mut self.audit, &mut self.printer, &batch)?;
        let ended = self.journal.settle()?;
        if let Some(printer) = &mut self.printer {
            printer.settle()?;
        }
        self.say_problems();
        if let Some(export) = &mut self.export {
            export.settled(self.journal.timeline(), &ended, self.guard.as_mut());
        }
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

/// Prints records, and audits those that are to be. They are in the journal.
fn show(
    audit: &mut Option<Audit>,
    printer: &mut Option<Printer>,
    records: &[Record],
) -> Result<()> {
    for record in records {
        if let Some(audit) = audit {
            audit.push(record);
        }
        if let Some(printer) = printer {
            printer.record(record)?;
        }
    }
    Ok(())
}

/// A place, for people.
const fn shown(place: Place) -> &'static str {
    match place {
        Place::Session => "session lu-recorder",
        Place::Store => "the service manager's store",
        Place::File => "the journal's folder",
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn run(folder: &Path) -> Run {
        Run {
            born: clocks::anchor(),
            folder: folder.into(),
            journal: Journal::open(folder, Retention::default()).expect("a journal"),
            refusals: Refusals::default(),
            recorder: None,
            recorder_size: ByteSize(recorder::SIZE),
            recorder_in: RecorderIn::File,
            audit: None,
            printer: None,
            urgent: None,
            waiting: Vec::new(),
            held: VecDeque::new(),
            has_told: false,
            policy: None,
            guard: None,
            tampered: 0,
            untold: Untold::default(),
            export: None,
        }
    }

    /// What the journal has, by kind and time, without the readings of the clocks.
    fn kept(folder: &Path) -> Vec<(Kind, u64)> {
        let mut kept = Vec::new();
        journal::read::records(folder, |record| {
            kept.extend(record.kind().map(|kind| (kind, record.header.t_ns)));
        })
        .expect("read");
        kept.retain(|(kind, _)| matches!(kind, Kind::Open | Kind::Kexec | Kind::LastBeat));
        kept
    }

    fn open(t_ns: u64) -> Record {
        Record::made(Kind::Open, t_ns, [0; 64])
    }

    /// What an earlier lu has left in the journal's folder.
    fn left(folder: &Path) -> Found {
        let go_on = AtomicBool::new(false);
        let mut recorder =
            Recorder::create(Place::File, 7, 1 << 20, folder, &go_on).expect("a recorder");
        for t_ns in 1..=3 {
            recorder.append(&open(t_ns));
        }
        let mut found = recorder::recover(folder, &go_on);
        found.remove(0).expect("found")
    }

    const RECORDER: &str = "recorder";

    #[test]
    fn what_cannot_be_joined_is_held_until_it_can_be_and_what_is_seen_waits_behind_it() {
        let root = tempfile::tempdir().expect("a folder");
        let [folder, away] = ["journal", "away"].map(|name| root.path().join(name));
        let mut run = run(&folder);
        let found = left(&folder);
        fs::rename(&folder, &away).expect("renamed");
        run.hold(found);
        run.recover().expect("told");
        for t_ns in [11, 12] {
            run.record(&open(t_ns)).expect("taken");
            run.tick().expect("tried again");
            run.settle().expect("waits");
        }
        assert_eq!(run.held.len(), 1);
        fs::rename(&away, &folder).expect("renamed");
        assert!(journal::segment::list(&folder).is_ok_and(|files| files.is_empty()));
        assert!(folder.join(RECORDER).exists());
        run.tick().expect("joined");
        assert!(run.held.is_empty() && !folder.join(RECORDER).exists());
        run.record(&open(13)).expect("taken");
        run.settle().expect("settled");
        let mut kept = kept(&folder);
        kept.retain(|(kind, _)| *kind == Kind::Open);
        let times: Vec<u64> = kept.into_iter().map(|(_, t_ns)| t_ns).collect();
        assert_eq!(times, [1, 2, 3, 11, 12, 13]);
    }

    #[test]
    fn at_its_end_it_tries_once_more_and_else_keeps_what_was_seen() {
        for is_back in [true, false] {
            let root = tempfile::tempdir().expect("a folder");
            let [folder, away] = ["journal", "away"].map(|name| root.path().join(name));
            let mut run = run(&folder);
            let found = left(&folder);
            fs::rename(&folder, &away).expect("renamed");
            run.hold(found);
            run.recover().expect("told");
            run.record(&open(11)).expect("taken");
            if is_back {
                fs::rename(&away, &folder).expect("renamed");
                run.end().expect("ended");
                assert_eq!(kept(&folder).len(), 5);
                assert!(!folder.join(RECORDER).exists());
            } else {
                // Another journal has to do.
                run.let_go();
                assert!(run.held.is_empty());
                fs::create_dir(&folder).expect("made");
                run.end().expect("ended");
                assert_eq!(kept(&folder), [(Kind::Open, 11)]);
                assert!(away.join(RECORDER).exists());
            }
        }
    }

    #[test]
    fn what_waits_for_the_end_of_a_kexec_comes_before_the_last_reading_of_the_clocks() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut run = run(folder.path());
        let mut kexec = Record::made(Kind::Kexec, 1, [0; 64]);
        kexec.header.tid = 5;
        run.record(&kexec).expect("taken");
        run.record(&open(2)).expect("taken");
        run.end().expect("ended");
        let mut kinds = Vec::new();
        journal::read::records(folder.path(), |record| kinds.extend(record.kind())).expect("read");
        let expected = [Kind::Kexec, Kind::Anchor, Kind::Open, Kind::Anchor];
        assert!(kinds.ends_with(&expected), "{kinds:?}");
    }
}
