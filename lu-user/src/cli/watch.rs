//! What `trace` and `run` share: attach, give up privileges, collect until told to stop.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytesize::ByteSize;
use caps::CapSet;
use lu_common::event::Record;
use lu_user::attach::{self, Attached, RING_BUFFER};
use lu_user::collect::{Collector, Losses};
use lu_user::orchestrator::{self, Orchestrator};
use tokio::signal::unix::{SignalKind, signal};

#[derive(clap::Args)]
pub struct Watch {
    /// Stop after this long.
    #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
    /// Size of the buffer between the kernel and lu: a power of two, at least 4KiB.
    #[arg(long, value_name = "SIZE", default_value_t = ByteSize(RING_BUFFER))]
    ring_buffer: ByteSize,
}

/// Where records go.
pub trait Sink {
    /// One record, in order.
    fn record(&mut self, record: &Record) -> Result<()>;
    /// No more records are there at the moment.
    fn settle(&mut self) -> Result<()>;
}

impl Watch {
    /// Attaches, says what is attached, and feeds `sink` until a signal or the time limit.
    pub fn watch(&self, sink: &mut impl Sink) -> Result<Losses> {
        let orchestrators = if orchestrator::in_kernel() {
            vec![Orchestrator::Kernel]
        } else {
            orchestrator::emulated()
        };
        let attached = attach::attach(&orchestrators, self.ring_buffer.as_u64())?;
        say_coverage(&attached, &orchestrators);
        give_up_privileges()?;
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the runtime")?
            .block_on(self.collect(attached, sink))
    }

    async fn collect(&self, attached: Attached, sink: &mut impl Sink) -> Result<Losses> {
        let mut collector = Collector::new(attached).context("cannot wait for events")?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let end = async {
            match self.duration {
                Some(duration) => tokio::time::sleep(duration).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(end);
        loop {
            let mut failed = Ok(());
            let mut each = |record: &Record| {
                if failed.is_ok() {
                    failed = sink.record(record);
                }
            };
            let go_on = tokio::select! {
                collected = collector.collect(&mut each) => {
                    collected.context("cannot read the ring buffer")?;
                    true
                }
                _ = interrupt.recv() => false,
                _ = terminate.recv() => false,
                _ = hangup.recv() => false,
                () = &mut end => false,
            };
            if !go_on {
                collector
                    .finish(&mut each)
                    .context("cannot read the ring buffer")?;
            }
            failed?;
            sink.settle()?;
            if !go_on {
                return collector.losses().context("cannot read the loss counters");
            }
        }
    }
}

/// What was lost, and what to do about it, for the last line.
pub fn tell(losses: Losses) -> String {
    let mut text = format!("{} lost", losses.records());
    if losses.ring_full > 0 {
        text.push_str("; a larger --ring-buffer loses fewer");
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
    let running = orchestrators
        .iter()
        .map(|orchestrator| match orchestrator {
            Orchestrator::Emulated { running, .. } => running.len(),
            Orchestrator::Kernel => 0,
        })
        .sum::<usize>();
    eprintln!(
        "lu: {} of {} hooks attached to the emulated orchestrator ({})",
        attached.count(),
        attached.coverage.len(),
        match running {
            0 => "none is running yet".to_owned(),
            1 => "1 is running".to_owned(),
            more => format!("{more} are running"),
        }
    );
    for (hook, why) in attached.missing() {
        eprintln!(
            "lu: no hook on {}: {why}; unknown from now on: {}",
            hook.function, hook.tells
        );
    }
}

/// The hooks are attached and the buffer is mapped: nothing that follows needs a privilege.
fn give_up_privileges() -> Result<()> {
    for set in [
        CapSet::Ambient,
        CapSet::Inheritable,
        CapSet::Effective,
        CapSet::Permitted,
    ] {
        caps::clear(None, set).context("cannot give up privileges")?;
    }
    nix::sys::prctl::set_no_new_privs().context("cannot give up privileges")
}
