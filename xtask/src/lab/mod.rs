//! The lab: a virtual machine with a real orchestrator and a real kexec.
//!
//! A [`Run`] is one machine from power-on to power-off: stage 1, the jump into the next kernel, stage 2,
//! and as many jumps more as are wanted, with `lu run` beside each. [`Run::start`] gives an [`Outcome`], or an error where the lab itself
//! failed.

mod attacks;
pub mod canary;
pub mod cli;
mod debian_cloud;
pub mod enforced;
mod image;
mod kernel;
mod machine;
pub mod observe;
mod policy;
mod protocol;
mod selftests;
pub mod tests;
mod top;

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

pub use image::Include;
use machine::{Accelerator, DISK_KEPT, Death, Machine, PowerCut};
use protocol::{Plan, Status, Step};

use crate::{build, sh};

/// A guest's memory unless told otherwise: the next kernel must find room beside what is preserved.
pub const MEMORY: &str = "2G";

/// How long a run may take unless told otherwise.
pub const LIMIT: Duration = Duration::from_mins(3);

/// The most that a boot can bring out, in bytes. It takes room only as it is written.
const DISK_SIZE: u64 = 4 << 30;

/// How often a machine is started whose kernel dies before init runs.
///
/// QEMU's emulation (seen with 7.2) returns from an interrupt with wrong flags now and then, in one boot of
/// ten of Debian's kernel.
const ATTEMPTS: u32 = 4;

/// The most kexecs in a row: each boot has a disk of its own, and the machine's bus has 32 places.
pub const KEXECS_AT_MOST: usize = 20;

/// What a run leaves in its folder under names that are known before, beside what stages write: once, and for
/// each boot.
const LEFT: [&str; 8] = [
    "status.json",
    "console.log",
    "report.json",
    "history.json",
    "trace.jsonl",
    "lu-report.err",
    "lu-history.err",
    "lu-trace.err",
];

/// See [`LEFT`].
fn left_by_boot(boot: usize) -> [String; 5] {
    [
        format!("stage{boot}.out"),
        format!("stage{boot}.err"),
        format!("lu-run-{boot}.out"),
        format!("lu-run-{boot}.err"),
        format!("report-{boot}.json"),
    ]
}

/// A kernel with the modules that init must load, in this order.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// The image that QEMU and kexec load.
    pub image: PathBuf,
    /// Module files, uncompressed.
    pub modules: Vec<PathBuf>,
}

impl Kernel {
    /// `LU_LAB_KERNEL`, or the project's own, built where it is missing.
    pub fn own() -> Result<Self> {
        Ok(Self {
            image: kernel::ensure()?,
            modules: Vec::new(),
        })
    }

    /// Debian's newest cloud kernel of stable, which has no orchestrator.
    pub fn debian_cloud() -> Result<Self> {
        debian_cloud::ensure()
    }
}

/// One machine from power-on to power-off.
#[derive(Clone, Debug)]
pub struct Run {
    /// What it boots, and jumps into.
    pub kernel: Kernel,
    /// The commands of the first boot's stage and of every later one's, as words.
    pub stages: [Option<Vec<String>>; 2],
    /// Files for the guest, beside lu.
    pub includes: Vec<Include>,
    /// Memory, as QEMU takes it.
    pub memory: String,
    /// More of a kernel command line, for both kernels.
    pub append: String,
    /// How long it may take.
    pub limit: Duration,
    /// How many kexecs, one after the other, with a stage in each boot; at most [`KEXECS_AT_MOST`].
    pub kexecs: usize,
    /// `lu run` beside the stages, with these arguments more; a report and a trace at the end.
    pub lu: Option<Vec<String>>,
    /// The trace, which takes its time where there are many events.
    pub with_trace: bool,
    /// A disk that outlives the machine, with lu's journal; made where it is missing.
    pub disk: Option<PathBuf>,
    /// The power is cut before the end.
    pub power_cut: Option<PowerCut>,
    /// Emulate both processors in one thread. With a thread for each, QEMU (seen with 7.2) goes on running code
    /// that the other processor has just replaced, as happens where programs are attached to and detached
    /// from functions that are called all the time; the guest's kernel dies of the `int3` that is no more.
    pub patches_busy_code: bool,
    /// Where what it brings out goes; created.
    pub out: PathBuf,
}

/// How a stage ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StageEnd {
    /// Its command was not run.
    NotRun,
    /// It ran when its kernel ended, as a stage does that calls reboot(KEXEC) itself.
    Jumped,
    /// It ran when the guest ended otherwise.
    Cut,
    /// Its command ended.
    Ended(Status),
}

/// What a run showed.
#[derive(Debug)]
pub struct Outcome {
    /// Where what it brought out is.
    pub out: PathBuf,
    /// Every failure in the guest; empty if all passed.
    pub failures: Vec<String>,
    /// From power-on to power-off.
    pub took: Duration,
}

impl Outcome {
    /// A file that it brought out, as text.
    pub fn read(&self, name: &str) -> Result<String> {
        let path = self.out.join(name);
        let bytes = fs::read(&path).with_context(|| format!("the guest left no {name}"))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl Run {
    /// A run of `kernel` with everything at its default and no stages.
    pub fn new(kernel: Kernel, out: PathBuf) -> Self {
        Self {
            kernel,
            stages: [None, None],
            includes: Vec::new(),
            memory: MEMORY.into(),
            append: String::new(),
            limit: LIMIT,
            kexecs: 1,
            lu: Some(Vec::new()),
            with_trace: true,
            disk: None,
            power_cut: None,
            patches_busy_code: false,
            out,
        }
    }

    /// The built-in scenario: sessions with memfds across a kexec, every byte compared.
    pub fn scenario(kernel: Kernel, out: PathBuf) -> Result<Self> {
        let mut run = Self::new(kernel, out);
        run.includes
            .push(Include::program(&build::static_example("sessions")?)?);
        run.stages = ["stage1", "stage2"].map(|stage| Some(vec!["sessions".into(), stage.into()]));
        Ok(run)
    }

    /// Boots the machine and sees it to its end.
    ///
    /// # Errors
    ///
    /// Where the lab itself fails, or the guest dies; what failed in the guest is in the outcome.
    pub fn start(&self) -> Result<Outcome> {
        let accelerator = match Accelerator::choose(&self.kernel.image)? {
            Accelerator::Tcg if self.patches_busy_code => Accelerator::TcgInOneThread,
            chosen => chosen,
        };
        let mut attempts = 1;
        loop {
            match self.attempt(accelerator)? {
                Attempt::Ended(outcome) => return Ok(outcome),
                Attempt::Died {
                    death,
                    before_init: true,
                } if accelerator != Accelerator::Kvm && attempts < ATTEMPTS => {
                    attempts += 1;
                    sh::say(&format!(
                        "lab: {}; it died before init, which emulation may be the cause of: once more",
                        death.what
                    ));
                }
                Attempt::Died { death, .. } => {
                    bail!("{}\nthe end of its console:\n{}", death.what, death.console)
                }
            }
        }
    }

    fn attempt(&self, accelerator: Accelerator) -> Result<Attempt> {
        fs::create_dir_all(&self.out)
            .with_context(|| format!("cannot create {}", self.out.display()))?;
        let by_boot = (1..=KEXECS_AT_MOST + 1).flat_map(left_by_boot);
        for name in LEFT.into_iter().map(str::to_owned).chain(by_boot) {
            let _ = fs::remove_file(self.out.join(name));
        }
        let scratch = tempfile::Builder::new().prefix("lu-lab-").tempdir()?;
        if let Some(disk) = &self.disk {
            image::kept_disk(disk)?;
        }
        let image = self.image(scratch.path(), false)?;
        let start = Instant::now();
        let mut record = Record::new(start, self.kexecs + 1);
        say(start, &format!("power-on, {}", accelerator.name()));
        let death = image.machine(self, accelerator).run(
            scratch.path(),
            &self.out.join("console.log"),
            self.limit,
            self.power_cut,
            |step| record.take(step),
        );
        // Whatever has happened, what was brought out helps to understand it.
        let extracted = image::extract(&image.disks_out, &self.out);
        let took = start.elapsed();
        let lab = match &death {
            Err(error) => Some(format!("{error:#}")),
            Ok(Some(death)) => Some(death.what.clone()),
            Ok(None) => record.broken.clone(),
        };
        record.judge(self);
        self.write_status(&record, lab.as_deref(), took)?;
        if let Some(death) = death? {
            return Ok(Attempt::Died {
                before_init: death.told && record.releases.is_empty(),
                death,
            });
        }
        if let Some(broken) = record.broken {
            bail!("init gave up: {broken}");
        }
        extracted?;
        say(
            start,
            if record.is_done {
                "power-off"
            } else {
                "power cut"
            },
        );
        Ok(Attempt::Ended(Outcome {
            out: self.out.clone(),
            failures: record.failures,
            took,
        }))
    }

    /// A shell on this terminal in the place of the stages.
    pub fn shell(&self, busybox: &Path) -> Result<()> {
        let accelerator = Accelerator::choose(&self.kernel.image)?;
        let scratch = tempfile::Builder::new().prefix("lu-lab-").tempdir()?;
        let mut run = self.clone();
        run.includes.push(Include {
            host: busybox.into(),
            guest: "/bin/busybox".into(),
        });
        let image = run.image(scratch.path(), true)?;
        image.machine(&run, accelerator).interact()
    }

    fn image(&self, scratch: &Path, shell: bool) -> Result<Image> {
        ensure!(
            self.kexecs <= KEXECS_AT_MOST,
            "{} kexecs in a row are more than {KEXECS_AT_MOST}",
            self.kexecs
        );
        ensure!(
            !self.memory.is_empty() && !self.memory.contains(','),
            "{:?} is no amount of memory",
            self.memory
        );
        for include in &self.includes {
            if image::needs_loader(&include.host)? {
                sh::say(&format!(
                    "lab: {} is linked to libraries, and starts only if they are included; better link it statically",
                    include.host.display()
                ));
            }
        }
        let mut includes = self.includes.clone();
        if self.lu.is_some() {
            includes.push(Include::program(&build::lu_static()?)?);
        }
        let modules = self
            .kernel
            .modules
            .iter()
            .map(|module| Ok(format!("/{}", image::module_name(module)?)))
            .collect::<Result<_>>()?;
        let plan = Plan {
            modules,
            stages: self.stages.clone(),
            kexecs: self.kexecs,
            lu: self.lu.clone(),
            with_trace: self.with_trace,
            disk: self.disk.as_ref().map(|_| DISK_KEPT.to_owned()),
            shell,
        };
        let image = Image {
            initramfs: scratch.join("initramfs"),
            disk_in: scratch.join("in"),
            disks_out: (1..=self.kexecs + 1)
                .map(|boot| scratch.join(format!("out{boot}")))
                .collect(),
        };
        image::initramfs(
            &image.initramfs,
            &build::lab_init()?,
            &plan,
            &self.kernel.modules,
        )?;
        image::disk(
            &image.disk_in,
            &includes,
            &self.kernel.image,
            &image.initramfs,
        )?;
        for disk in &image.disks_out {
            image::empty_disk(disk, DISK_SIZE)?;
        }
        Ok(image)
    }

    fn write_status(&self, record: &Record, lab: Option<&str>, took: Duration) -> Result<()> {
        let stages: Vec<Value> = record
            .stages
            .iter()
            .enumerate()
            .map(|(index, end)| {
                let (how, code, signal) = match end {
                    StageEnd::NotRun => ("not run", None, None),
                    StageEnd::Jumped => ("jumped", None, None),
                    StageEnd::Cut => ("cut", None, None),
                    StageEnd::Ended(Status::Exited(code)) => ("exited", Some(code), None),
                    StageEnd::Ended(Status::Killed(signal)) => ("killed", None, Some(signal)),
                };
                json!({"stage": index + 1, "end": how, "code": code, "signal": signal})
            })
            .collect();
        let status = json!({
            "passed": lab.is_none() && record.failures.is_empty(),
            "lab_failure": lab,
            "failures": record.failures,
            "stages": stages,
            "kernels": record.releases,
            "took_ms": took.as_millis() as u64,
            "steps": record.steps,
        });
        let mut file = File::create(self.out.join("status.json"))?;
        serde_json::to_writer_pretty(&mut file, &status)?;
        file.write_all(b"\n")?;
        Ok(())
    }
}

/// How one start of the machine went.
enum Attempt {
    /// To its end.
    Ended(Outcome),
    /// The guest died, or was not done in time.
    Died {
        death: Death,
        /// Its kernel died before init told its first step.
        before_init: bool,
    },
}

/// The files that a machine is made of.
struct Image {
    initramfs: PathBuf,
    disk_in: PathBuf,
    disks_out: Vec<PathBuf>,
}

impl Image {
    fn machine<'a>(&'a self, run: &'a Run, accelerator: Accelerator) -> Machine<'a> {
        Machine {
            accelerator,
            memory: &run.memory,
            kernel: &run.kernel.image,
            initramfs: &self.initramfs,
            append: &run.append,
            disk_in: &self.disk_in,
            disks_out: &self.disks_out,
            disk_kept: run.disk.as_deref(),
        }
    }
}

/// What init has told so far.
struct Record {
    start: Instant,
    steps: Vec<Value>,
    releases: Vec<String>,
    /// One for each boot that there is to be.
    stages: Vec<StageEnd>,
    /// Failures in the guest.
    failures: Vec<String>,
    /// Why init gave up, where that is the lab's fault.
    broken: Option<String>,
    /// Whether init has told that all is done.
    is_done: bool,
    /// Programs of lu's that failed, with what they said.
    lu: Vec<(String, String)>,
}

impl Record {
    fn new(start: Instant, boots: usize) -> Self {
        Self {
            start,
            steps: Vec::new(),
            releases: Vec::new(),
            stages: vec![StageEnd::NotRun; boots],
            failures: Vec::new(),
            broken: None,
            is_done: false,
            lu: Vec::new(),
        }
    }

    fn take(&mut self, step: &Step) {
        let mut told = json!(step);
        told["t_ms"] = (self.start.elapsed().as_millis() as u64).into();
        self.steps.push(told);
        say(self.start, &shown(step));
        match step {
            Step::Booted { boot, release } => {
                self.releases.push(release.clone());
                // A stage whose end was not told has made the jump itself.
                let before = boot.checked_sub(2).and_then(|n| self.stages.get_mut(n));
                if let Some(stage) = before.filter(|stage| **stage == StageEnd::Cut) {
                    *stage = StageEnd::Jumped;
                }
            }
            Step::Started { stage } => self.set(*stage, StageEnd::Cut),
            Step::Ended { stage, status } => {
                self.set(*stage, StageEnd::Ended(*status));
                if !status.success() {
                    self.failures
                        .push(format!("stage {stage} {}", ended(*status)));
                }
            }
            Step::Lu {
                command,
                status,
                said,
            } if !status.success() => self.lu.push((
                command.clone(),
                format!("lu {command} {}: {said}", ended(*status)),
            )),
            Step::Broken { text, by_lu: true } => self.failures.push(text.clone()),
            Step::Broken { text, .. } => self.broken = Some(text.clone()),
            Step::Done => self.is_done = true,
            _ => {}
        }
    }

    fn set(&mut self, stage: usize, end: StageEnd) {
        if let Some(place) = stage.checked_sub(1).and_then(|n| self.stages.get_mut(n)) {
            *place = end;
        }
    }

    /// Adds what is a failure only in view of the whole run.
    fn judge(&mut self, run: &Run) {
        let stopped = !self.failures.is_empty();
        for (command, text) in &self.lu {
            // A single boot, or a stage that failed, need not have made a live update to report.
            if command == "run" || !(run.kexecs == 0 || stopped) {
                self.failures.push(text.clone());
            } else {
                sh::say(&format!("lab: {text}"));
            }
        }
    }
}

fn ended(status: Status) -> String {
    match status {
        Status::Exited(code) => format!("ended with exit status {code}"),
        Status::Killed(signal) => format!("was ended by signal {signal}"),
    }
}

fn shown(step: &Step) -> String {
    match step {
        Step::Booted { boot, release } => format!("boot {boot}: Linux {release}"),
        Step::Loaded => "the kernel to jump into is loaded".into(),
        Step::Attached { line } => line.clone(),
        Step::Started { stage } => format!("stage {stage}"),
        Step::Ended { stage, status } => format!("stage {stage} {}", ended(*status)),
        Step::Jump => "reboot(KEXEC)".into(),
        Step::Lu {
            command, status, ..
        } => format!("lu {command} {}", ended(*status)),
        Step::Note { text } => format!("note: {text}"),
        Step::Broken { text, .. } => format!("given up: {text}"),
        Step::Done => "done".into(),
    }
}

/// A progress line with the time since power-on.
fn say(start: Instant, text: &str) {
    sh::say(&format!(
        "lab: {:6.2} s  {text}",
        start.elapsed().as_secs_f64()
    ));
}

#[cfg(test)]
mod unit {
    use super::*;

    fn after(steps: &[Step]) -> Record {
        let mut record = Record::new(Instant::now(), 3);
        for step in steps {
            record.take(step);
        }
        record
    }

    fn booted(boot: usize) -> Step {
        Step::Booted {
            boot,
            release: "7.3.0".into(),
        }
    }

    #[test]
    fn a_stage_that_makes_the_jump_itself_is_told_from_one_that_was_cut() {
        let started = Step::Started { stage: 1 };
        assert_eq!(after(&[booted(1), started]).stages[0], StageEnd::Cut);
        let started = Step::Started { stage: 1 };
        let jumped = after(&[booted(1), started, booted(2)]);
        assert_eq!(
            jumped.stages,
            [StageEnd::Jumped, StageEnd::NotRun, StageEnd::NotRun]
        );
        assert!(jumped.failures.is_empty());
        assert_eq!(jumped.releases.len(), 2);
    }

    #[test]
    fn a_report_that_fails_counts_where_there_was_a_live_update() {
        let kernel = Kernel {
            image: PathBuf::new(),
            modules: Vec::new(),
        };
        let mut run = Run::new(kernel, PathBuf::new());
        let failed = |command: &str| Step::Lu {
            command: command.into(),
            status: Status::Exited(1),
            said: String::new(),
        };
        let failures = |run: &Run, command: &str| {
            let mut record = after(&[failed(command)]);
            record.judge(run);
            record.failures.len()
        };
        assert_eq!(failures(&run, "report"), 1);
        assert_eq!(failures(&run, "run"), 1);
        run.kexecs = 0;
        assert_eq!(failures(&run, "report"), 0);
        assert_eq!(failures(&run, "run"), 1);
    }
}
