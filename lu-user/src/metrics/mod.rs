//! What Prometheus is told: the metrics of the [catalogue], fed by what `lu run` sees and [served](serve) over HTTP.
//!
//! [`Metrics`] is the collector's end. A record costs it a few atomic additions and no allocation: every series
//! that there can be is made at the start, but for those of a policy's rules.

pub mod catalogue;
mod own;
pub mod serve;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use lu_common::event::{FileKind, Kind, Record, RuleName};
use lu_common::policy::{Decision, NO_RULE, Operation, Untold};
use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge;
use prometheus_client::metrics::histogram::{self, NativeHistogramConfig};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{self, Registry};

use crate::attach::Attached;
use crate::collect::Losses;
use crate::export::Report;
use crate::journal::clocks;
use crate::orchestrator::Orchestrator;
use crate::policy::Compiled;
use crate::timeline::clock::Clock;
use crate::timeline::{self, FileOutcome, PhaseName, SessionOutcome, Timeline, Update, shown};

use catalogue::{
    ERRNOS, INTERFACES, Label, MODES, Metric, OTHER_RULE, RULE_NAMES, Type, Unit, Values,
};

pub(crate) type Counter = counter::Counter<f64, AtomicU64>;
pub(crate) type Gauge = gauge::Gauge<f64, AtomicU64>;
type Histogram = histogram::Histogram;

/// How much finer native buckets are: each is at most a tenth larger than the one before.
const NATIVE_FACTOR: f64 = 1.1;

/// More buckets than this are merged.
const NATIVE_BUCKETS: usize = 160;

const NS: f64 = 1e-9;

/// A series' labels.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Labels(Vec<(&'static str, Arc<str>)>);

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> std::fmt::Result {
        for (name, value) in &self.0 {
            (*name, &**value).encode(encoder.encode_label())?;
        }
        Ok(())
    }
}

/// The series of one metric whose labels have closed sets of values, in the order of these.
#[derive(Debug)]
struct Series<T> {
    all: Vec<T>,
    /// Of the last label, how many values there are.
    width: usize,
}

impl<T> Series<T> {
    /// That of a metric with one label.
    fn at(&self, value: usize) -> &T {
        // What is out of range is the last one, which stands for all others where that can be.
        &self.all[value.min(self.all.len() - 1)]
    }

    /// That of a metric with two.
    fn of(&self, first: usize, second: usize) -> &T {
        self.at(first * self.width + second.min(self.width - 1))
    }
}

/// How the catalogue's metrics come into a registry.
struct Maker(Registry);

impl Maker {
    fn register(&mut self, metric: &Metric, what: impl registry::Metric) {
        let unit = match metric.unit {
            Unit::None => None,
            Unit::Seconds => Some(registry::Unit::Seconds),
            Unit::Bytes => Some(registry::Unit::Bytes),
        };
        // The encoder ends each help with a point of its own.
        let help = metric.help.trim_end_matches('.');
        match unit {
            None => self.0.register(metric.name, help, what),
            Some(unit) => self.0.register_with_unit(metric.stem(), help, unit, what),
        }
    }

    /// A family with every value that its labels can have.
    fn family<T, C>(&mut self, metric: &Metric, new: C) -> Series<T>
    where
        T: registry::Metric + prometheus_client::metrics::TypedMetric + Clone,
        C: Fn() -> T + Clone + Send + Sync + 'static,
    {
        let family = Family::<Labels, T, C>::new_with_constructor(new);
        let mut sets = vec![Vec::new()];
        let mut width = 1;
        for label in metric.labels {
            let Values::Closed(values) = label.values() else {
                continue;
            };
            width = values.len();
            let values: Vec<Arc<str>> = values.into_iter().map(Arc::from).collect();
            let each = |set: &Vec<_>| {
                let set = set.clone();
                let name = label.name();
                values
                    .iter()
                    .map(move |value| {
                        let mut set = set.clone();
                        set.push((name, value.clone()));
                        set
                    })
                    .collect::<Vec<_>>()
            };
            sets = sets.iter().flat_map(each).collect();
        }
        let all = sets
            .into_iter()
            .map(|set| family.get_or_create_owned(&Labels(set)));
        let all = all.collect();
        self.register(metric, family);
        Series { all, width }
    }

    fn counters(&mut self, metric: &Metric) -> Series<Counter> {
        self.family(metric, Counter::default)
    }

    fn gauges(&mut self, metric: &Metric) -> Series<Gauge> {
        self.family(metric, Gauge::default)
    }

    fn counter(&mut self, metric: &Metric) -> Counter {
        let counter = Counter::default();
        self.register(metric, counter.clone());
        counter
    }

    /// Unknown at first.
    fn gauge(&mut self, metric: &Metric) -> Gauge {
        let gauge = Gauge::default();
        gauge.set(f64::NAN);
        self.register(metric, gauge.clone());
        gauge
    }

    fn histograms(&mut self, metric: &Metric) -> Series<Histogram> {
        let ends: &[f64] = match metric.kind {
            Type::Histogram(buckets) => buckets.ends(),
            _ => &[],
        };
        self.family(metric, move || {
            let native = NativeHistogramConfig::with_bucket_factor(NATIVE_FACTOR)
                .max_buckets(NATIVE_BUCKETS);
            Histogram::new_classic_and_native(ends.iter().copied(), native)
        })
    }

    fn info(&mut self, metric: &Metric, value: &str) {
        let labels = metric
            .labels
            .iter()
            .map(|label| (label.name(), Arc::from(value)));
        self.register(metric, Info::new(Labels(labels.collect())));
    }
}

/// Whether all is well, for `/healthz` and `/readyz`.
#[derive(Debug, Default)]
pub struct Health {
    /// When the collector's loop last came round: `CLOCK_MONOTONIC`, in nanoseconds.
    turned_ns: AtomicU64,
    /// Hooks that are attached.
    hooks: AtomicU64,
    /// Whether a policy was asked for.
    wants_policy: AtomicBool,
    /// Whether one is in force.
    has_policy: AtomicBool,
    /// Whether there is an orchestrator.
    has_orchestrator: AtomicBool,
}

/// The collector's end of the metrics.
pub struct Metrics {
    registry: Arc<Registry>,
    health: Arc<Health>,
    own: own::Own,
    served: Served,

    /// By the number of their kind.
    events: Box<[Option<Counter>; 256]>,
    lost: Series<Counter>,
    told: Losses,
    problems: Counter,
    operations: Series<Counter>,
    operation_time: Series<Counter>,
    operation_duration: Series<Histogram>,
    freezes: Series<Counter>,

    updates: Series<Counter>,
    number: Gauge,
    phase: Series<Gauge>,
    update_files: Series<Gauge>,
    update_bytes: Series<Gauge>,
    update_sessions: Series<Gauge>,
    phase_time: Series<Gauge>,
    files: Series<Counter>,
    sessions: Series<Counter>,
    phase_duration: Series<Histogram>,
    blackout: Histogram,
    last_blackout: Gauge,
    last_uncertainty: Gauge,
    last_clock: Series<Gauge>,
    last_lossy: Gauge,

    rules: Rules,
    judged: Series<Counter>,
    verdicts_lost: Counter,
    unjudged: Counter,
    tampered: Counter,
    mode: Series<Gauge>,
    wanted: Series<Gauge>,
    policy_rules: Gauge,
    enforced_rules: Gauge,
    generation: Gauge,
    reloads: Series<Counter>,

    orchestrators: Series<Gauge>,
    hook_attached: Series<Gauge>,
    hooks_missing: Gauge,
    lag: Gauge,
    turn: Gauge,
}

/// What the server counts.
#[derive(Clone, Debug)]
struct Served {
    scrapes: Arc<Series<Counter>>,
    refused: Counter,
}

impl Metrics {
    /// All of them, with nothing seen yet. The size of the journal is that of the files in `journal`.
    #[must_use]
    pub fn new(release: &str, journal: &std::path::Path) -> Self {
        use catalogue as the;
        let mut maker = Maker(Registry::default());
        let make = &mut maker;
        make.info(&the::BUILD, env!("CARGO_PKG_VERSION"));
        make.info(&the::KERNEL, release);
        let orchestrators = make.gauges(&the::ORCHESTRATORS_RUNNING);
        let hook_attached = make.gauges(&the::HOOK_ATTACHED);
        for hook in &hook_attached.all {
            hook.set(f64::NAN);
        }
        let hooks_missing = make.gauge(&the::HOOKS_MISSING);
        let kinds = make.counters(&the::EVENTS);
        let mut events = Box::new([const { None }; 256]);
        for (kind, counter) in Kind::ALL.iter().zip(kinds.all) {
            events[usize::from(*kind as u8)] = Some(counter);
        }
        let unknown_phase = |series: Series<Gauge>| {
            series.all.iter().for_each(|gauge| {
                gauge.set(f64::NAN);
            });
            series
        };
        let metrics = Self {
            lost: make.counters(&the::EVENTS_LOST),
            problems: make.counter(&the::PROBLEMS),
            operations: make.counters(&the::OPERATIONS),
            operation_time: make.counters(&the::OPERATION_TIME),
            operation_duration: make.histograms(&the::OPERATION_DURATION),
            freezes: make.counters(&the::FREEZES),
            updates: make.counters(&the::UPDATES),
            number: make.gauge(&the::UPDATE_NUMBER),
            phase: make.gauges(&the::UPDATE_PHASE),
            update_files: make.gauges(&the::UPDATE_FILES),
            update_bytes: make.gauges(&the::UPDATE_BYTES),
            update_sessions: make.gauges(&the::UPDATE_SESSIONS),
            phase_time: unknown_phase(make.gauges(&the::UPDATE_PHASE_TIME)),
            files: make.counters(&the::FILES),
            sessions: make.counters(&the::SESSIONS),
            phase_duration: make.histograms(&the::PHASE_DURATION),
            blackout: make.histograms(&the::BLACKOUT).at(0).clone(),
            last_blackout: make.gauge(&the::LAST_BLACKOUT),
            last_uncertainty: make.gauge(&the::LAST_BLACKOUT_UNCERTAINTY),
            last_clock: make.gauges(&the::LAST_BLACKOUT_CLOCK),
            last_lossy: make.gauge(&the::LAST_BLACKOUT_LOSSY),
            rules: Rules::new(make),
            judged: make.counters(&the::JUDGED),
            verdicts_lost: make.counter(&the::VERDICTS_LOST),
            unjudged: make.counter(&the::UNJUDGED),
            tampered: make.counter(&the::TAMPERED),
            mode: make.gauges(&the::POLICY_MODE),
            wanted: make.gauges(&the::POLICY_WANTED),
            policy_rules: make.gauge(&the::POLICY_RULES),
            enforced_rules: make.gauge(&the::POLICY_ENFORCED_RULES),
            generation: make.gauge(&the::POLICY_GENERATION),
            reloads: make.counters(&the::POLICY_RELOADS),
            lag: make.gauge(&the::RECORDER_LAG),
            turn: make.gauge(&the::LAST_TURN),
            own: own::Own::new(make, journal),
            served: Served {
                scrapes: Arc::new(make.counters(&the::SCRAPES)),
                refused: make.counter(&the::REFUSED),
            },
            told: Losses::default(),
            orchestrators,
            hook_attached,
            hooks_missing,
            events,
            health: Arc::default(),
            registry: Arc::new(maker.0),
        };
        metrics.no_policy();
        metrics
    }

    /// Takes in a record.
    pub fn push(&mut self, record: &Record) {
        let Some(kind) = record.kind() else { return };
        if let Some(counter) = &self.events[usize::from(kind as u8)] {
            counter.inc();
        }
        match kind {
            Kind::Verdict | Kind::Tampered => self.judge(kind, record),
            Kind::Rule => {
                if let Some(rule) = record.rule_name() {
                    self.rules.name(record.is_emulated(), &rule);
                }
            }
            Kind::Untold => {
                let Untold {
                    ring_full,
                    unjudged,
                    ..
                } = record.untold().unwrap_or_default();
                self.verdicts_lost.inc_by(ring_full as f64);
                self.unjudged.inc_by(unjudged as f64);
            }
            Kind::Freeze if record.is_exit() => {
                self.freezes.at(usize::from(record.ret() != Some(0))).inc();
            }
            _ => self.call(kind, record),
        }
    }

    /// A system call that has returned.
    fn call(&self, kind: Kind, record: &Record) {
        let (Some(ns), Some(called)) = (record.dur_ns(), timeline::called(kind, record)) else {
            return;
        };
        let all = &timeline::OPERATIONS;
        let operation = all
            .iter()
            .position(|name| *name == called)
            .unwrap_or(all.len() - 1);
        let errno = match record.errno() {
            None => ERRNOS.len(),
            Some(errno) => {
                let at = ERRNOS.iter().position(|(number, _)| *number == errno);
                at.unwrap_or(ERRNOS.len() + 1)
            }
        };
        let seconds = ns as f64 * NS;
        self.operations
            .of(operation, errno)
            .inc_by(timeline::times(kind, record) as f64);
        self.operation_time.of(operation, errno).inc_by(seconds);
        let failed = usize::from(record.errno().is_some());
        self.operation_duration
            .of(operation, failed)
            .observe(seconds);
    }

    fn judge(&mut self, kind: Kind, record: &Record) {
        let Some(judged) = record.judged() else {
            return;
        };
        if kind == Kind::Tampered {
            self.tampered.inc();
            return;
        }
        // As in reports: what a newer lu decided is no allow.
        let decision = Decision::from_raw(judged.decision).unwrap_or(Decision::Deny) as usize;
        if let Some(operation) = Operation::from_raw(judged.operation) {
            self.judged.of(operation as usize, decision).inc();
        }
        let rules = &self.rules;
        rules
            .said(
                record.is_emulated(),
                judged.generation,
                judged.rule,
                decision,
            )
            .inc();
    }

    /// What was lost on the way, since the hooks were attached.
    pub fn losses(&mut self, losses: Losses) {
        let of = |losses: Losses| {
            let Losses {
                ring_full,
                no_entry,
                skipped,
                bad_read,
            } = losses;
            [ring_full, no_entry, skipped, bad_read]
        };
        for (reason, (now, before)) in of(losses).into_iter().zip(of(self.told)).enumerate() {
            self.lost
                .at(reason)
                .inc_by(now.saturating_sub(before) as f64);
        }
        self.told = losses;
    }

    /// Something went wrong that is told on standard error, and is no reason to stop.
    pub fn problem(&self) {
        self.problems.inc();
    }

    /// What is attached, and to what.
    pub fn attached(&self, attached: &Attached) {
        let Values::Closed(names) = Label::Hook.values() else {
            return;
        };
        let mut missing = 0_u32;
        for outcome in &attached.coverage {
            let interface = INTERFACES.iter().position(|it| *it == outcome.interface);
            let hook = names.iter().position(|name| *name == outcome.hook.function);
            if let (Some(interface), Some(hook)) = (interface, hook) {
                let is_attached = f64::from(u8::from(outcome.attached.is_ok()));
                self.hook_attached.of(interface, hook).set(is_attached);
            }
            missing += u32::from(outcome.attached.is_err());
        }
        self.hooks_missing.set(f64::from(missing));
        self.health
            .hooks
            .store(attached.count() as u64, Ordering::Relaxed);
    }

    /// Which orchestrators there are.
    pub fn orchestrators(&self, all: &[Orchestrator]) {
        let running = |kernel: bool| {
            let of_kind = all
                .iter()
                .filter(|it| (**it == Orchestrator::Kernel) == kernel);
            of_kind.map(Orchestrator::running).sum::<usize>()
        };
        let [kernel, emulated] = [true, false].map(running);
        self.orchestrators.at(0).set(kernel as f64);
        self.orchestrators.at(1).set(emulated as f64);
        let is_there = kernel + emulated > 0;
        self.health
            .has_orchestrator
            .store(is_there, Ordering::Relaxed);
    }

    /// A policy is in force.
    pub fn policy(&mut self, compiled: &Compiled, generation: u64) {
        let enforced = compiled.policy.enforce.count_ones();
        let mode = if enforced > 0 { "enforce" } else { "monitor" };
        state(&self.mode, &MODES, Some(mode));
        state(&self.wanted, &MODES, Some(mode));
        self.policy_rules.set(compiled.rules.len() as f64);
        self.enforced_rules.set(f64::from(enforced));
        self.generation.set(generation as f64);
        self.health.wants_policy.store(true, Ordering::Relaxed);
        self.health.has_policy.store(true, Ordering::Relaxed);
        for (number, rule) in compiled.rules.iter().enumerate() {
            let rule = RuleName::new(generation, number as u8, rule.section, false, &rule.name);
            self.rules.name(false, &rule);
        }
    }

    /// No policy is in force, whatever the file says.
    pub fn no_policy(&self) {
        state(&self.mode, &MODES, Some("off"));
        if !self.health.wants_policy.load(Ordering::Relaxed) {
            state(&self.wanted, &MODES, Some("off"));
        }
        self.policy_rules.set(0.0);
        self.enforced_rules.set(0.0);
        self.generation.set(f64::NAN);
        self.health.has_policy.store(false, Ordering::Relaxed);
    }

    /// A policy is wanted and none could be put in force, or the one before stays: a reload failed, or did not.
    pub fn reloaded(&self, done: bool) {
        self.reloads.at(usize::from(!done)).inc();
    }

    /// The loop has come round.
    pub fn turn(&self) {
        self.health
            .turned_ns
            .store(clocks::now_ns(), Ordering::Relaxed);
        self.turn.set(clocks::realtime_ns() as f64 * NS);
    }

    /// How old the oldest event is that only now is in the journal, or still is not: when it was
    /// (`CLOCK_MONOTONIC`, nanoseconds).
    pub fn lag(&self, since_ns: Option<u64>) {
        let ns = since_ns.map_or(0, |since| clocks::now_ns().saturating_sub(since));
        self.lag.set(ns as f64 * NS);
    }

    /// How things stand.
    pub fn updated(&self, timeline: &Timeline) {
        for phase in &self.phase.all {
            phase.set(0.0);
        }
        let outgoing = timeline.outgoing();
        let outgoing = (outgoing.number > 0).then_some(outgoing);
        for update in timeline.incoming().into_iter().chain(outgoing) {
            self.phase
                .at(index(PhaseName::ALL, update.current_phase()))
                .set(1.0);
        }
        let Some(update) = timeline.latest_told() else {
            return;
        };
        self.number.set(update.number as f64);
        self.count(update);
        for phase in &self.phase_time.all {
            phase.set(f64::NAN);
        }
        for phase in update.phases() {
            if let Some(ns) = phase.ns {
                self.phase_time
                    .at(index(PhaseName::ALL, phase.name))
                    .set(ns as f64 * NS);
            }
        }
        let blackout = update.blackout();
        self.last_blackout.set(seconds(blackout.map(|it| it.ns)));
        self.last_uncertainty
            .set(seconds(blackout.and_then(|it| it.uncertainty_ns)));
        state(&self.last_clock, Clock::ALL, blackout.map(|it| it.clock));
        self.last_lossy
            .set(f64::from(u8::from(update.events.lost > 0)));
    }

    /// Files and sessions.
    fn count(&self, update: &Update) {
        let mut files = [[(0_u64, 0_u64); FILE_OUTCOMES]; FILE_KINDS];
        let others = update.files().filter(|(session, ..)| !session.is_own());
        for (_, _, file) in others {
            let kind = index(FileKind::ALL, file.kind.unwrap_or(FileKind::Other));
            let of = &mut files[kind][index(FileOutcome::ALL, file.outcome)];
            of.0 += 1;
            of.1 += file.bytes.unwrap_or(0);
        }
        for (kind, outcomes) in files.iter().enumerate() {
            for (outcome, (count, bytes)) in outcomes.iter().enumerate() {
                self.update_files.of(kind, outcome).set(*count as f64);
                self.update_bytes.of(kind, outcome).set(*bytes as f64);
            }
        }
        let mut sessions = [0_u64; SESSION_OUTCOMES];
        for session in update.sessions.values().filter(|it| !it.is_own()) {
            sessions[index(SessionOutcome::ALL, session.outcome)] += 1;
        }
        for (outcome, count) in sessions.iter().enumerate() {
            self.update_sessions.at(outcome).set(*count as f64);
        }
    }

    /// An update has ended.
    pub fn ended(&self, report: &Report) {
        if let Some(outcome) = catalogue::OVER.iter().position(|it| *it == report.outcome) {
            self.updates.at(outcome).inc();
        }
        for phase in &report.phases {
            if let Some(ns) = phase.ns {
                let at = index(PhaseName::ALL, phase.name);
                self.phase_duration.at(at).observe(ns as f64 * NS);
            }
        }
        if let Some(blackout) = &report.blackout {
            self.blackout.observe(blackout.ns as f64 * NS);
        }
        for session in report.sessions.iter().filter(|session| !session.is_own()) {
            if let Some(outcome) = session.outcome {
                self.sessions.at(index(SessionOutcome::ALL, outcome)).inc();
            }
            for file in &session.files {
                self.files.at(index(FileOutcome::ALL, file.outcome)).inc();
            }
        }
    }
}

const FILE_KINDS: usize = FileKind::ALL.len();
const FILE_OUTCOMES: usize = FileOutcome::ALL.len();
const SESSION_OUTCOMES: usize = SessionOutcome::ALL.len();

/// Where a value stands among all.
fn index<T: PartialEq + Copy>(all: &[T], value: T) -> usize {
    all.iter().position(|it| *it == value).unwrap_or(0)
}

/// Of several states the one that holds, if any.
fn state<T: PartialEq + Copy>(series: &Series<Gauge>, all: &[T], holds: Option<T>) {
    for (gauge, state) in series.all.iter().zip(all) {
        let is = holds == Some(*state);
        gauge.set(f64::from(u8::from(is)));
    }
}

fn seconds(ns: Option<u64>) -> f64 {
    ns.map_or(f64::NAN, |ns| ns as f64 * NS)
}

/// The counters of a policy's rules. Names come with policies: at most [`RULE_NAMES`] of them have counters of
/// their own.
struct Rules {
    family: Family<Labels, Counter>,
    /// Decisions, by rule: those without a rule, those without room, the others as they came.
    counters: Vec<(Arc<str>, Vec<Counter>)>,
    /// Where the rules of the newest policies are in `counters`, by number: of the kernel's, and of an emulated one.
    numbers: [(u64, [u8; 256]); 2],
}

const NONE: u8 = 0;
const OTHER: u8 = 1;

impl Rules {
    fn new(make: &mut Maker) -> Self {
        let family = Family::default();
        make.register(&catalogue::VERDICTS, family.clone());
        let mut rules = Self {
            family,
            counters: Vec::new(),
            numbers: [(0, [OTHER; 256]); 2],
        };
        rules.add(catalogue::NO_RULE);
        rules.add(OTHER_RULE);
        rules
    }

    fn add(&mut self, name: &str) {
        let name: Arc<str> = name.into();
        let counters = Decision::ALL.iter().map(|decision| {
            let labels = vec![
                (Label::Rule.name(), name.clone()),
                (Label::Decision.name(), decision.name().into()),
            ];
            self.family.get_or_create_owned(&Labels(labels))
        });
        let counters = counters.collect();
        self.counters.push((name, counters));
    }

    /// A rule of a policy is called so.
    fn name(&mut self, emulated: bool, rule: &RuleName) {
        let name = shown(&rule.name);
        let known = self.counters.iter().position(|(known, _)| **known == *name);
        let slot = match known {
            Some(slot) if slot > usize::from(OTHER) => slot as u8,
            None if self.counters.len() < RULE_NAMES + 2 => {
                self.add(&name);
                (self.counters.len() - 1) as u8
            }
            // A name of ours, or no room.
            _ => OTHER,
        };
        let (generation, slots) = &mut self.numbers[usize::from(emulated)];
        if *generation != rule.generation {
            *generation = rule.generation;
            *slots = [OTHER; 256];
        }
        slots[usize::from(rule.number)] = slot;
    }

    fn said(&self, emulated: bool, generation: u64, rule: u8, decision: usize) -> &Counter {
        let (newest, slots) = &self.numbers[usize::from(emulated)];
        let slot = match rule {
            NO_RULE => NONE,
            rule if *newest == generation => slots[usize::from(rule)],
            _ => OTHER,
        };
        let (_, counters) = &self.counters[usize::from(slot)];
        &counters[decision.min(counters.len() - 1)]
    }
}
