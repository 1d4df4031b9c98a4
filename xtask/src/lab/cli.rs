//! `cargo xtask lab`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::builder::RangedU64ValueParser;
use clap::{Parser, Subcommand};

use super::{
    Include, KEXECS_AT_MOST, Kernel, LIMIT, MEMORY, Outcome, Run, image, kernel, machine, tests,
};
use crate::{setup, sh};

/// The lab itself failed: it could not be built or booted, or the guest died.
const LAB_FAILED: u8 = 3;

const EXIT_STATUS: &str = "\
Exit status:
  0  all passed
  1  a stage failed in the guest, or lu did
  2  wrong usage
  3  the lab itself failed: no kernel, no QEMU, the guest's kernel died or was not done in time

Environment:
  LU_LAB_KERNEL  a kernel image to use in the place of the project's own
  LU_LAB_ACCEL   tcg or kvm; without it KVM is used where it truly runs the kernel, else tcg
  LU_CACHE       where the kernel and tools are kept (default ~/.cache/lu)";

const EXAMPLES: &str = "\
Examples:
  cargo xtask lab run --out /tmp/lab     the built-in scenario: sessions across a kexec
  cargo xtask lab run --out /tmp/lab --single-boot --stage1 'lu doctor'
  cargo xtask lab shell                  look around in a guest
  cargo xtask lab test selftests         the kernel's selftests, with lu attached
  cargo xtask lab kernel                 build the kernel beforehand (some 15 minutes)";

const RUN_EXAMPLES: &str = "\
Examples:
  cargo xtask lab run --out /tmp/lab
  cargo xtask lab run --out /tmp/lab --include ./old-vmm --include ./new-vmm \\
      --stage1 old-vmm --stage2 'new-vmm --check'
  cargo xtask lab run --out /tmp/lab --single-boot --stage1 'lu doctor --json'
  cargo xtask lab run --out /tmp/lab --disk /tmp/lab-disk    again and again: lu history grows
  cargo xtask lab run --out /tmp/lab --kernel debian-cloud --single-boot \\
      --append lsm=landlock,lockdown,yama,bpf --stage1 'lu doctor'";

/// Virtual machines with a real orchestrator and a real kexec.
#[derive(Parser)]
#[command(after_help = format!("{EXAMPLES}\n\n{EXIT_STATUS}"))]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the lab's kernel from Debian's newest source, unless it is there, and print where it is.
    Kernel {
        /// Look for a newer source, though there is a kernel.
        #[arg(long)]
        update: bool,
    },
    Run(RunArgs),
    Shell(ShellArgs),
    /// Run the lab's tests, which `cargo xtask test` runs too: live updates, the kernel's selftests,
    /// Debian's cloud kernel.
    Test {
        /// Only those whose name has this in it.
        filter: Option<String>,
    },
}

#[derive(clap::Args)]
struct Guest {
    /// Which kernel: `own` (or `LU_LAB_KERNEL`), `debian-cloud` (no orchestrator), or an image's path.
    #[arg(long, value_name = "KERNEL", default_value = "own")]
    kernel: String,
    /// A file for the guest: a program lands in /bin, unless its place is told. Repeatable.
    #[arg(long, value_name = "FILE[=/PATH]", value_parser = |text: &str| text.parse::<Include>())]
    include: Vec<Include>,
    /// The guest's memory. kexec needs room for the next kernel in it.
    #[arg(long, value_name = "SIZE", default_value = MEMORY)]
    memory: String,
    /// More for the kernels' command lines.
    #[arg(
        long,
        value_name = "ARGS",
        default_value = "",
        allow_hyphen_values = true
    )]
    append: String,
    /// Leave lu out.
    #[arg(long, conflicts_with = "lu_args")]
    without_lu: bool,
    /// More for the command line of `lu run`.
    #[arg(long, value_name = "ARGS", value_parser = words, allow_hyphen_values = true)]
    lu_args: Option<Words>,
}

/// Boot a machine, run stage 1, jump into the next kernel by kexec, run stage 2, power off.
///
/// `lu run` watches in both kernels; at the end it is stopped, and `lu report --json` and `lu trace --json`
/// are written. Without stages the built-in scenario runs: sessions with memfds, every byte compared.
///
/// A stage's command is split into words as a shell would, but no shell runs it: the guest has none, unless
/// one is included. The next kernel is loaded before stage 1. What stage 1 leaves running lives until
/// the jump, so it can hold sessions. A stage may also call reboot(KEXEC) itself.
///
/// In the folder: status.json (how it went, each step with its time), report.json, history.json, trace.jsonl, console.log,
/// stageN.out and stageN.err, lu-run-N.err, and whatever the guest's programs write into /out.
#[derive(clap::Args)]
#[command(after_help = format!("{RUN_EXAMPLES}\n\n{EXIT_STATUS}"))]
struct RunArgs {
    /// What to run before the kexec.
    #[arg(long, value_name = "COMMAND", value_parser = words)]
    stage1: Option<Words>,
    /// What to run after it; after each, where there are more.
    #[arg(long, value_name = "COMMAND", value_parser = words, conflicts_with = "single_boot")]
    stage2: Option<Words>,
    /// Stage 1 only, and no kexec.
    #[arg(long, requires = "stage1", conflicts_with = "kexecs")]
    single_boot: bool,
    /// How many kexecs in a row; stage 2 runs after each.
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = RangedU64ValueParser::<usize>::new().range(1..=KEXECS_AT_MOST as u64))]
    kexecs: usize,
    /// How long it may take, from power-on to power-off.
    #[arg(long, value_name = "TIME", default_value_t = LIMIT.into())]
    timeout: humantime::Duration,
    /// A disk for lu's journal that stays for the next run; made, with 1 GiB, where it is missing.
    #[arg(long, value_name = "FILE", conflicts_with = "without_lu")]
    disk: Option<PathBuf>,
    /// The folder for what the guest leaves; created.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    guest: Guest,
}

/// A guest with a shell (busybox) on this terminal.
///
/// The next kernel is loaded: `/init kexec` jumps, and the shell comes again in the new one.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  cargo xtask lab shell\n  cargo xtask lab shell --include ./my-vmm\n\nCtrl-A X ends QEMU."
)]
struct ShellArgs {
    #[command(flatten)]
    guest: Guest,
}

impl Args {
    /// Runs the command line; a failure of the lab itself is told, and is an exit status of its own.
    pub fn run(self) -> ExitCode {
        match self.command.run() {
            Ok(code) => code,
            Err(error) => {
                sh::say(&format!("lab: {error:#}"));
                LAB_FAILED.into()
            }
        }
    }
}

impl Command {
    fn run(self) -> Result<ExitCode> {
        match self {
            Self::Kernel { update } => {
                println!("{}", kernel::build(update)?.display());
                Ok(ExitCode::SUCCESS)
            }
            Self::Run(args) => {
                let outcome = args.run()?;
                if outcome.failures.is_empty() {
                    sh::say(&format!(
                        "lab: all passed in {:.1} s; what the guest left is in {}",
                        outcome.took.as_secs_f64(),
                        outcome.out.display()
                    ));
                    return Ok(ExitCode::SUCCESS);
                }
                for failure in &outcome.failures {
                    sh::say(&format!("lab: FAILED: {failure}"));
                }
                sh::say(&format!(
                    "lab: what the guest left is in {}",
                    outcome.out.display()
                ));
                Ok(ExitCode::FAILURE)
            }
            Self::Shell(args) => args.run(),
            Self::Test { filter } => test(&filter.unwrap_or_default()),
        }
    }
}

fn test(filter: &str) -> Result<ExitCode> {
    if let Some(obstacle) = tests::obstacle()? {
        bail!(obstacle);
    }
    machine::end_at_ctrl_c()?;
    let mut failed = false;
    let tests: Vec<&tests::Test> = tests::ALL
        .iter()
        .filter(|test| test.name.contains(filter))
        .collect();
    ensure!(
        !tests.is_empty(),
        "no test of the lab has {filter:?} in its name"
    );
    for test in tests {
        match (test.run)() {
            Ok(()) => println!("{} ... ok", test.name),
            Err(error) => {
                println!("{} ... FAILED\n{error:#}", test.name);
                failed = true;
            }
        }
    }
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

impl Guest {
    fn into_run(
        self,
        out: PathBuf,
        default: impl FnOnce(Kernel, PathBuf) -> Result<Run>,
    ) -> Result<Run> {
        setup::ensure(setup::For::Lab)?;
        let kernel = match self.kernel.as_str() {
            "own" => Kernel::own()?,
            "debian-cloud" => Kernel::debian_cloud()?,
            path => {
                let image = PathBuf::from(path);
                ensure!(image.is_file(), "there is no kernel {path}");
                Kernel {
                    image,
                    modules: Vec::new(),
                }
            }
        };
        let mut run = default(kernel, out)?;
        run.includes.extend(self.include);
        run.memory = self.memory;
        run.append = self.append;
        run.lu = (!self.without_lu).then(|| self.lu_args.map_or_else(Vec::new, |words| words.0));
        Ok(run)
    }
}

/// A command, split.
#[derive(Clone)]
struct Words(Vec<String>);

fn words(command: &str) -> Result<Words> {
    shlex::split(command)
        .filter(|words| !words.is_empty())
        .map(Words)
        .context("a quote is open, or there is nothing")
}

impl RunArgs {
    fn run(self) -> Result<Outcome> {
        let stages = [self.stage1, self.stage2].map(|stage| stage.map(|words| words.0));
        machine::end_at_ctrl_c()?;
        let mut run = self.guest.into_run(self.out, |kernel, out| {
            if stages.iter().all(Option::is_none) {
                Run::scenario(kernel, out)
            } else {
                let mut run = Run::new(kernel, out);
                run.stages = stages;
                Ok(run)
            }
        })?;
        run.kexecs = if self.single_boot { 0 } else { self.kexecs };
        run.limit = Duration::from(self.timeout);
        run.disk = self.disk;
        run.start()
    }
}

impl ShellArgs {
    fn run(self) -> Result<ExitCode> {
        setup::ensure(setup::For::LabShell)?;
        let run = self.guest.into_run(std::env::temp_dir(), |kernel, out| {
            Ok(Run::new(kernel, out))
        })?;
        let Some(busybox) = sh::find("busybox") else {
            bail!("no busybox in PATH");
        };
        if image::needs_loader(&busybox)? {
            bail!(
                "{} is linked to libraries, which the guest has not: install Debian's busybox-static",
                busybox.display()
            );
        }
        sh::say("lab: Ctrl-A X ends the machine");
        run.shell(&busybox)?;
        Ok(ExitCode::SUCCESS)
    }
}
