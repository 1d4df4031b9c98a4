//! What `trace` and `run` share: attach, give up privileges, collect until told to stop.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::maps::{MapData, RingBuf};
use bytesize::ByteSize;
use caps::{CapSet, Capability, CapsHashSet};
use lu_common::event::Record;
use lu_common::uapi::Interface;
use lu_user::attach::{self, Attached, Detail, KernelPlace, RING_BUFFER};
use lu_user::collect::{Collector, Losses};
use lu_user::orchestrator::{self, Orchestrator};
use signal_hook::consts::SIGHUP;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use super::stop;

#[derive(clap::Args)]
pub struct Watch {
    /// Stop after this long.
    #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub duration: Option<Duration>,
    /// Size of the buffer between the kernel and lu: a power of two, at least 4KiB.
    #[arg(long, value_name = "SIZE", default_value_t = ByteSize(RING_BUFFER))]
    ring_buffer: ByteSize,
    /// Watch every callback on a file too, not its freeze alone: each preserve, restore and finish then takes
    /// some microseconds longer.
    #[arg(long)]
    callbacks: bool,
}

/// The first tick comes after this, each later one after twice the time, up to [`LONGEST_TICK`].
const FIRST_TICK: Duration = Duration::from_secs(1);
const LONGEST_TICK: Duration = Duration::from_secs(64);

/// How long records may wait for more of them.
const LINGER: Duration = Duration::from_millis(20);

/// In every how many rounds without sleep the losses are asked for.
const ASK_FOR_LOSSES: u32 = 4096;

const NOT_COUNTED: &str = "cannot count what was lost";

/// Where records go.
pub trait Sink {
    /// Nothing is attached yet; where verdicts come, if a policy is put in force now on the kernel's orchestrator.
    fn enforce(&mut self, _place: Option<&KernelPlace>) -> Result<Option<RingBuf<MapData>>> {
        Ok(None)
    }
    /// Whether SIGHUP has another meaning than to end; then it is for [`Self::reload`].
    fn can_reload(&self) -> bool {
        false
    }
    /// Whether a policy may be put in force later, which takes a privilege.
    fn keeps_policy(&self) -> bool {
        false
    }
    /// At least this often [`Self::turned`] and [`Self::settle`] are wanted, whether there are records or not.
    fn pulse(&self) -> Option<Duration> {
        None
    }
    /// Events are collected from now on.
    fn started(&mut self, _attached: usize, _hooks: usize) {}
    /// The loop has turned once more.
    fn turned(&mut self) {}
    /// SIGHUP has come.
    fn reload(&mut self) -> Result<()> {
        Ok(())
    }
    /// The hooks are attached, nothing is collected yet, and every privilege is still there.
    /// Where it has to wait it gives up once `_stop` is set.
    fn begin(
        &mut self,
        _attached: &Attached,
        _orchestrators: &[Orchestrator],
        _stop: &AtomicBool,
    ) -> Result<()> {
        Ok(())
    }
    /// The privileges are gone. What is notified when somebody asks how it is; then it is for [`Self::answer`].
    fn serve(&mut self) -> Option<Arc<Notify>> {
        None
    }
    /// Somebody has asked; what was lost so far, where that can be read.
    fn answer(&mut self, _losses: Option<Losses>) {}
    /// No privilege is there any more: a thread that starts now has none either.
    fn ready(&mut self, _attached: &Attached) -> Result<()> {
        Ok(())
    }
    /// What was lost since the hooks were attached; before each [`Self::settle`].
    fn losses(&mut self, _losses: Losses) {}
    /// One record, in order.
    fn record(&mut self, record: &Record) -> Result<()>;
    /// No more records are there at the moment.
    fn settle(&mut self) -> Result<()>;
    /// Some time has gone by.
    fn tick(&mut self) -> Result<()> {
        Ok(())
    }
    /// Whether this kernel is about to go, so that nobody may sleep any more.
    fn is_urgent(&self) -> bool {
        false
    }
    /// Another round without sleep.
    fn beat(&mut self) {}
    /// It is over, and all records were handed over.
    fn end(&mut self) -> Result<()> {
        self.settle()
    }
}

impl Watch {
    /// Attaches every hook that can be.
    pub fn attach(
        &self,
        place: Option<&KernelPlace>,
        orchestrators: &[Orchestrator],
    ) -> Result<Attached, attach::Error> {
        let detail = if self.callbacks {
            Detail::Callbacks
        } else {
            Detail::Calls
        };
        attach::attach(place, orchestrators, self.ring_buffer.as_u64(), detail)
    }

    /// Attaches, says what is attached, and feeds `sink` until a signal or the time limit.
    pub fn watch(&self, sink: &mut impl Sink) -> Result<Losses> {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the runtime")?
            .block_on(self.collect(sink))
    }

    async fn collect(&self, sink: &mut impl Sink) -> Result<Losses> {
        // Before anybody is told that we are ready, and may end us. The flag is for where nobody awaits.
        let can_reload = sink.can_reload();
        let stop = stop::on_signals(if can_reload { &[] } else { &[SIGHUP] })?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let orchestrators = orchestrators();
        let place = attach::place_among(&orchestrators)?;
        let verdicts = sink.enforce(place.as_ref())?;
        let attached = self.attach(place.as_ref(), &orchestrators)?;
        drop(place);
        sink.begin(&attached, &orchestrators, &stop)?;
        say_coverage(&attached, &orchestrators);
        give_up_privileges(sink.keeps_policy())?;
        let asked = sink.serve();
        sink.ready(&attached)?;
        let (count, hooks) = (attached.count(), attached.coverage.len());
        let mut collector = Collector::new(attached).context("cannot wait for events")?;
        if let Some(verdicts) = verdicts {
            collector
                .take_verdicts(verdicts)
                .context("cannot wait for verdicts")?;
        }
        sink.started(count, hooks);
        let mut pulse = sink.pulse().map(tokio::time::interval);
        let end = async {
            match self.duration {
                Some(duration) => tokio::time::sleep(duration).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(end);
        let mut pause = FIRST_TICK;
        let tick = tokio::time::sleep(pause);
        tokio::pin!(tick);
        loop {
            let mut failed = Ok(());
            let mut each = |record: &Record| {
                if failed.is_ok() {
                    failed = sink.record(record);
                }
            };
            let woken = tokio::select! {
                collected = collector.collect(&mut each) => {
                    collected.context("cannot read the ring buffer")?;
                    Woken::Records
                }
                () = &mut tick => Woken::Tick,
                () = notified(asked.as_deref()) => Woken::Asked,
                () = next(&mut pulse) => Woken::Pulse,
                _ = interrupt.recv() => Woken::End,
                _ = terminate.recv() => Woken::End,
                _ = hangup.recv() => if can_reload { Woken::Reload } else { Woken::End },
                () = &mut end => Woken::End,
            };
            if matches!(woken, Woken::Tick | Woken::End) {
                collector.take_stock(&mut each).context(NOT_COUNTED)?;
            }
            failed?;
            match woken {
                Woken::Reload => sink.reload()?,
                Woken::Tick => {
                    sink.tick()?;
                    pause = (pause * 2).min(LONGEST_TICK);
                    tick.as_mut().reset(tokio::time::Instant::now() + pause);
                }
                Woken::Asked => sink.answer(collector.losses().ok()),
                Woken::Records | Woken::Pulse | Woken::End => {}
            }
            sink.turned();
            hurry(&mut collector, sink, &stop)?;
            sink.losses(collector.told());
            if matches!(woken, Woken::End) {
                sink.end()?;
                return collector.losses().context("cannot read the loss counters");
            }
            sink.settle()?;
            collector
                .gather(LINGER)
                .await
                .context("cannot wait for events")?;
        }
    }
}

/// What there is to do.
enum Woken {
    Records,
    Tick,
    Asked,
    Pulse,
    Reload,
    End,
}

async fn notified(asked: Option<&Notify>) {
    match asked {
        Some(asked) => asked.notified().await,
        None => std::future::pending().await,
    }
}

/// The next time that the loop is to turn, if it is to.
async fn next(pulse: &mut Option<tokio::time::Interval>) {
    match pulse {
        Some(pulse) => {
            pulse.tick().await;
        }
        None => std::future::pending().await,
    }
}

/// The orchestrators to watch: the kernel's, or else those that are emulated.
pub fn orchestrators() -> Vec<Orchestrator> {
    if orchestrator::in_kernel() {
        vec![Orchestrator::Kernel]
    } else {
        orchestrator::emulated()
    }
}

/// Takes records without sleeping for as long as this kernel is about to go.
fn hurry(collector: &mut Collector, sink: &mut impl Sink, stop: &AtomicBool) -> Result<()> {
    // Soon nobody can ask. The CPUs may stop before all are asked, so records are taken in between.
    let mut unasked = collector.programs();
    let mut sweeps = 0_u32;
    while sink.is_urgent() && !stop.load(Ordering::Relaxed) {
        let mut failed = Ok(());
        let each = |record: &Record| {
            if failed.is_ok() {
                failed = sink.record(record);
            }
        };
        if sweeps.is_multiple_of(ASK_FOR_LOSSES) {
            collector
                .finish(each)
                .context("cannot read the ring buffer")?;
        } else {
            collector.sweep(each);
        }
        sweeps = sweeps.wrapping_add(1);
        failed?;
        if let Some(program) = unasked.next() {
            collector.ask_program(program).context(NOT_COUNTED)?;
            if unasked.is_empty() {
                // Now they are told.
                sweeps = 0;
            }
        }
        sink.beat();
        sink.turned();
        // What the shutdown needs of this CPU comes first: at once, and not when a slice of ours is over.
        std::thread::yield_now();
    }
    Ok(())
}

/// What was lost, and what to do about it, for the last line.
pub fn tell(losses: Losses) -> String {
    let mut text = format!("{} lost", losses.records());
    if losses.ring_full > 0 {
        text.push_str("; a larger --ring-buffer loses fewer");
    }
    if losses.skipped > 0 {
        let _ = write!(
            text,
            "; {} times the kernel skipped a program that was already running on the CPU",
            losses.skipped
        );
    }
    if losses.bad_read > 0 {
        let _ = write!(
            text,
            "; {} times the orchestrator's memory could not be read, and what stood there is unknown",
            losses.bad_read
        );
    }
    text
}

fn say_coverage(attached: &Attached, orchestrators: &[Orchestrator]) {
    let to = if orchestrators.contains(&Orchestrator::Kernel) {
        let interface = attached.coverage.first().map(|outcome| outcome.interface);
        format!(
            "the kernel's orchestrator (interface {})",
            interface.map_or("unknown", Interface::name)
        )
    } else {
        let running: usize = orchestrators.iter().map(Orchestrator::running).sum();
        let running = match running {
            0 => "none is running yet".to_owned(),
            1 => "1 is running".to_owned(),
            more => format!("{more} are running"),
        };
        format!("the emulated orchestrator ({running})")
    };
    eprintln!(
        "lu: {} of {} hooks attached to {to}",
        attached.count(),
        attached.coverage.len(),
    );
    for (of, member) in &attached.unknown_members {
        eprintln!(
            "lu: this kernel's types have no {of}.{member}; unknown from now on: what stands there"
        );
    }
    for (hook, why) in attached.missing() {
        eprintln!(
            "lu: no hook on {}: {why}; unknown from now on: {}",
            hook.function, hook.tells
        );
    }
}

/// The hooks are attached and the buffer is mapped: nothing that follows needs a privilege, but to put another
/// policy in force.
pub fn give_up_privileges(keeps_policy: bool) -> Result<()> {
    let kept: CapsHashSet = keeps_policy
        .then_some(Capability::CAP_BPF)
        .into_iter()
        .collect();
    for (set, kept) in [
        (CapSet::Ambient, &CapsHashSet::new()),
        (CapSet::Inheritable, &CapsHashSet::new()),
        (CapSet::Effective, &kept),
        (CapSet::Permitted, &kept),
    ] {
        caps::set(None, set, kept).context("cannot give up privileges")?;
    }
    nix::sys::prctl::set_no_new_privs().context("cannot give up privileges")
}
