//! `lu run --export`: what of a run goes into its metrics.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use lu_common::event::Record;
use lu_user::attach::Attached;
use lu_user::collect::Losses;
use lu_user::export::Report;
use lu_user::journal::clocks;
use lu_user::metrics::Metrics;
use lu_user::metrics::serve::{Listener, TURN};
use lu_user::orchestrator::{self, Orchestrator};
use lu_user::timeline::{Timeline, shown};

use super::guard::Guard;

/// How often it is looked which emulators run: each of them is asked.
const LOOK: Duration = Duration::from_secs(5);

/// The metrics of a run.
pub struct Exporter {
    metrics: Metrics,
    /// Until somebody is answered.
    listener: Option<Listener>,
    /// When the oldest event was that is not in the journal yet.
    oldest_ns: Option<u64>,
    /// When it was last told how things stand.
    told: Option<Instant>,
    /// When it was last looked which emulators run; `None` with the kernel's orchestrator.
    looked: Option<Instant>,
}

/// An address, or a port on the loopback.
pub fn address(text: &str) -> Result<SocketAddr, String> {
    let port = text
        .parse()
        .map(|port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    port.or_else(|_| text.parse()).map_err(|_| {
        "it takes an address with a port, as 127.0.0.1:9464 or [::1]:9464, or a port".to_owned()
    })
}

impl Exporter {
    /// Takes the address, with the privileges that it may need.
    pub fn bind(address: SocketAddr, journal: &Path) -> Result<Self> {
        let release = clocks::kernel().kernel_release();
        let release = release.map_or_else(String::new, |release| shown(&release));
        Ok(Self {
            metrics: Metrics::new(&release, journal),
            listener: Some(Listener::bind(address)?),
            oldest_ns: None,
            told: None,
            looked: None,
        })
    }

    /// Which orchestrators are watched.
    pub fn begin(&mut self, orchestrators: &[Orchestrator]) {
        self.metrics.orchestrators(orchestrators);
        if !orchestrators.contains(&Orchestrator::Kernel) {
            self.looked = Some(Instant::now());
        }
    }

    /// The hooks are attached, and no privilege is left: whoever asks is answered from now on.
    pub fn ready(&mut self, attached: &Attached) -> Result<()> {
        self.metrics.attached(attached);
        self.metrics.turn();
        if let Some(listener) = self.listener.take() {
            let address = listener.address()?;
            let whom = if address.ip().is_loopback() {
                ""
            } else {
                ", to everybody who can reach it"
            };
            listener.serve(&self.metrics)?;
            eprintln!("lu: metrics at http://{address}/metrics{whom}");
        }
        Ok(())
    }

    /// The loop comes round.
    pub fn turn(&self) {
        self.metrics.turn();
    }

    /// A record, before it is in the journal.
    pub fn record(&mut self, record: &Record) {
        if record.is_from_hook() {
            self.oldest_ns
                .get_or_insert(record.end_ns().unwrap_or(record.header.t_ns));
        }
        self.metrics.push(record);
    }

    /// What was lost since the hooks were attached.
    pub fn losses(&mut self, losses: Losses) {
        self.metrics.losses(losses);
    }

    /// Something is told on standard error.
    pub fn problem(&self) {
        self.metrics.problem();
    }

    /// A reload of the policy was asked for.
    pub fn reloaded(&self, done: bool) {
        self.metrics.reloaded(done);
    }

    /// What was taken in waits, and is not in the journal yet.
    pub fn waits(&self) {
        self.metrics.lag(self.oldest_ns);
    }

    /// All that was taken in is in the journal.
    pub fn settled(&mut self, timeline: &Timeline, ended: &[Report], guard: Option<&mut Guard>) {
        if let Some(oldest_ns) = self.oldest_ns.take() {
            self.metrics.lag(Some(oldest_ns));
        }
        for report in ended {
            self.metrics.ended(report);
        }
        // To count the files of a large update takes a while.
        let is_due = self.told.is_none_or(|told| told.elapsed() >= TURN);
        if !is_due && ended.is_empty() {
            return;
        }
        self.told = Some(Instant::now());
        self.metrics.updated(timeline);
        match guard.map(|guard| guard.in_force()) {
            Some(Some((compiled, generation))) => self.metrics.policy(compiled, generation),
            Some(None) => self.metrics.no_policy(),
            None => {}
        }
        if let Some(looked) = self
            .looked
            .as_mut()
            .filter(|looked| looked.elapsed() >= LOOK)
        {
            *looked = Instant::now();
            self.metrics.orchestrators(&orchestrator::emulated());
        }
    }
}
