//! The command line: one file for each subcommand, which parses and prints.

mod canary;
mod ctl;
mod doctor;
mod emulate;
mod export;
mod gate;
mod guard;
mod history;
mod in_force;
mod policy;
mod report;
mod run;
mod stop;
mod trace;
mod watch;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "lu",
    version,
    about = "See, bound and prove a Linux live update",
    long_about = "lu watches the kernel's Live Update Orchestrator (/dev/liveupdate) with eBPF: every \
                  step of a live update, the blackout window, and what became of each preserved file. \
                  It brings an emulated orchestrator for machines that have none.",
    after_help = "Examples:\n  \
                  lu doctor                         what this machine allows\n  \
                  lu trace                          a line for each event, until Ctrl-C\n  \
                  lu run --journal /var/lib/lu      record live updates\n  \
                  lu report --journal /var/lib/lu   the last one, as a waterfall\n  \
                  lu history --journal /var/lib/lu  all of them\n  \
                  lu gate                           whether a live update may begin now\n  \
                  lu canary                         before and after a kexec: how long a workload is dark\n  \
                  lu policy check policy.toml       a policy, before it is enforced\n  \
                  lu emulate -- ./my-vmm            a program with an orchestrator of its own"
)]
struct Lu {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Trace(trace::Args),
    Run(run::Args),
    Report(report::Args),
    History(history::Args),
    Gate(gate::Args),
    Doctor(doctor::Args),
    Emulate(emulate::Args),
    Canary(canary::Args),
    Policy(policy::Args),
    Ctl(ctl::Args),
}

/// Runs the command line. Exit status: 0 done, 1 failed, 2 wrong usage, or a policy with errors; `doctor`, `gate` and `emulate` say
/// their own in their help.
pub fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn,fuser=error"))
        .format_timestamp(None)
        .format_target(false)
        .init();
    let done = match Lu::parse().command {
        Command::Trace(args) => args.run(),
        Command::Run(args) => args.run(),
        Command::Report(args) => args.run(),
        Command::History(args) => args.run(),
        Command::Gate(args) => args.run(),
        Command::Doctor(args) => args.run(),
        Command::Emulate(args) => args.run(),
        Command::Canary(args) => args.run(),
        Command::Policy(args) => args.run(),
        Command::Ctl(args) => args.run(),
    };
    done.unwrap_or_else(|error| {
        // A reader that has had enough (`lu trace | head`) is no failure.
        if is_broken_pipe(&error) {
            return ExitCode::SUCCESS;
        }
        let mut causes = error.chain();
        if let Some(refused) = causes.find_map(|cause| cause.downcast_ref()) {
            eprintln!("{}", rendered(refused));
            return ExitCode::from(2);
        }
        eprintln!("lu: {error:#}");
        ExitCode::FAILURE
    })
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

/// The exit status where a request got through that was not the one that the policy judged.
const TAMPERED: u8 = 3;

/// What a policy's errors look like on standard error, with the places in its file.
fn rendered(error: &lu_user::policy::Error) -> String {
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    error.render(colours)
}

/// The width of the terminal; 100 columns where standard output is none.
fn columns() -> usize {
    terminal_size::terminal_size().map_or(100, |(width, _)| usize::from(width.0))
}
