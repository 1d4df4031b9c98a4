//! The project's own commands: set up what is missing, build, show and test.

mod bench;
mod build;
mod dashboards;
mod debian;
mod demo;
mod dist;
mod lab;
mod prometheus;
mod setup;
mod sh;
mod test;
mod top;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::builder::RangedU64ValueParser;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Set up, build, show and test lu",
    after_help = "Examples:\n  cargo xtask demo          a whole live update on the emulated orchestrator\n  cargo xtask demo --json   the same, as one JSON document\n  cargo xtask dist          a tarball for hosts\n  cargo xtask test          formatting, lints and every test\n  cargo xtask lab run --out /tmp/lab   a real live update in a virtual machine"
)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what building the BPF programs needs and is missing.
    Setup,
    /// Build `lu` (release profile) and print where it is.
    Build,
    /// Pack what a host needs: lu (static), the unit, man pages, completions, a configuration and a policy to begin with,
    /// licences, checksums. The same source gives the same bytes.
    Dist {
        /// Where the tarball is put.
        #[arg(long, value_name = "DIR", default_value = "target/dist")]
        out: PathBuf,
    },
    /// Run a whole live update on the emulated orchestrator and show it. Needs root.
    Demo {
        /// Print the report as one JSON document, and nothing else on standard output.
        #[arg(long)]
        json: bool,
        /// Instead, drive `lu top` in tmux while the update runs, and print what it shows.
        #[arg(long, conflicts_with = "json")]
        top: bool,
    },
    /// Run every check and every test. Needs root for those against the machine.
    Test {
        /// Count a test that cannot run here as a failure; the default where CI is set.
        #[arg(long, env = "CI", value_parser = clap::builder::BoolishValueParser::new(), default_value_t = false, num_args = 0..=1, default_missing_value = "true")]
        no_skips: bool,
    },
    /// Write what is generated from the catalogue of metrics: dashboards/ and docs/metrics.md.
    Dashboards {
        /// Write nothing; fail where what is there differs.
        #[arg(long)]
        check: bool,
    },
    /// Run `lu run --export` beside a real Prometheus: dashboards, rules and alerts. Needs root.
    Prometheus,
    /// Measure, beside a peer that does the same, in one run.
    #[command(subcommand)]
    Bench(Bench),
    Lab(Box<lab::cli::Args>),
}

#[derive(Subcommand)]
enum Bench {
    /// From exec to all hooks attached, and memory while idle; beside bpftrace.
    Startup,
    /// What `lu history` and `lu report` take where a journal has many updates.
    History {
        /// How many.
        #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
        updates: u64,
    },
    /// How long `lu top` takes to draw a frame, and what it takes while nothing happens; beside btm (bottom).
    Top {
        /// How many files.
        #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
        files: u64,
    },
    /// What a live update of many files takes in the lab, with lu and without it, in turns.
    Observe {
        /// Sessions.
        #[arg(long, default_value_t = 1000)]
        sessions: u64,
        /// Files in each.
        #[arg(long, default_value_t = 100)]
        files: u64,
        /// Runs of each kind.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
        runs: u32,
        /// The result as one JSON document.
        #[arg(long)]
        json: bool,
    },
    /// What a policy in the kernel adds to ioctls on other files, in the lab, with a policy and without one, in turns.
    Enforce {
        /// Ioctls in each round.
        #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(10..))]
        ioctls: u64,
        /// Rounds of each kind.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
        rounds: u64,
        /// The result as one JSON document.
        #[arg(long)]
        json: bool,
    },
    /// How long the machine is dark, by lu and by a canary, over several kexecs in a row in the lab. Exit
    /// status 1 where they differ by more than 1 ms and 0.1 %.
    Canary {
        /// Kexecs.
        #[arg(long, default_value_t = 10,
              value_parser = RangedU64ValueParser::<usize>::new().range(1..=lab::KEXECS_AT_MOST as u64))]
        kexecs: usize,
        /// The result as one JSON document.
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    match run(Args::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("Error: {error:?}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Setup => setup::ensure(setup::For::Build)?,
        Command::Build => {
            setup::ensure(setup::For::Build)?;
            println!("{}", build::lu()?.display());
        }
        Command::Dist { out } => {
            setup::ensure(setup::For::Build)?;
            println!("{}", dist::run(&out)?.display());
        }
        Command::Demo { json, top } => {
            let purpose = if top {
                setup::For::Top
            } else {
                setup::For::Build
            };
            setup::ensure(purpose)?;
            let (lu, example) = build::demo()?;
            if top {
                top::run(&lu, &example, true)?;
            } else {
                demo::run(&lu, &example, json)?;
            }
        }
        Command::Test { no_skips } => {
            setup::ensure(setup::For::Test)?;
            test::run(no_skips)?;
        }
        Command::Dashboards { check } => {
            setup::ensure(setup::For::Build)?;
            if check {
                dashboards::check()?;
            } else {
                dashboards::write()?;
            }
        }
        Command::Prometheus => {
            setup::ensure(setup::For::Test)?;
            prometheus::check()?;
        }
        Command::Bench(Bench::Startup) => {
            setup::ensure(setup::For::Bench)?;
            bench::startup(&build::lu()?)?;
        }
        Command::Bench(Bench::History { updates }) => {
            setup::ensure(setup::For::Build)?;
            let (lu, example) = build::updates()?;
            bench::history(&lu, &example, updates)?;
        }
        Command::Bench(Bench::Top { files }) => {
            setup::ensure(setup::For::Top)?;
            let btm = setup::bottom()?;
            let (lu, frames) = build::frames()?;
            top::bench(&lu, &frames, &btm, files)?;
        }
        Command::Bench(Bench::Observe {
            sessions,
            files,
            runs,
            json,
        }) => {
            setup::ensure(setup::For::Lab)?;
            lab::observe::run(sessions, files, runs, json)?;
        }
        Command::Bench(Bench::Enforce {
            ioctls,
            rounds,
            json,
        }) => {
            setup::ensure(setup::For::Lab)?;
            lab::enforced::bench(ioctls, rounds, json)?;
        }
        Command::Bench(Bench::Canary { kexecs, json }) => {
            setup::ensure(setup::For::Lab)?;
            lab::canary::run(kexecs, json)?;
        }
        Command::Lab(args) => return Ok(args.run()),
    }
    Ok(ExitCode::SUCCESS)
}
