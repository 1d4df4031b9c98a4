//! The command line: one file for each subcommand, which parses and prints.

/// A line on standard error, in place of the standard library's macro, which panics where nobody reads it any more: in
/// a shutdown the system's journal ends before us, and what we are there for comes after that.
macro_rules! eprintln {
    ($($what:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($what)*);
    }};
}

mod canary;
mod check;
mod config;
mod ctl;
mod doctor;
mod emulate;
mod export;
mod follow;
mod gate;
mod guard;
mod history;
mod in_force;
mod manager;
mod pages;
mod policy;
mod report;
mod run;
mod socket;
mod stop;
mod top;
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
                  lu top                            a live update, as it happens\n  \
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
    Config(config::Args),
    Report(report::Args),
    History(history::Args),
    Gate(gate::Args),
    Doctor(doctor::Args),
    Emulate(emulate::Args),
    Canary(canary::Args),
    Policy(policy::Args),
    Ctl(ctl::Args),
    Top(Box<top::Args>),
    #[command(hide = true)]
    Pages(pages::Args),
}

/// Runs the command line. Exit status: 0 done, 1 failed, 2 wrong usage, or a policy with errors; `doctor`, `gate` and `emulate` say
/// their own in their help.
pub fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn,fuser=error"))
        .format_timestamp(None)
        .format_target(false)
        .init();
    let parsed = config::parse(std::env::args_os().collect());
    let done = parsed.and_then(|(lu, settings)| match lu.command {
        Command::Trace(args) => args.run(),
        Command::Run(args) => args.run(settings),
        Command::Config(args) => args.run(),
        Command::Report(args) => args.run(),
        Command::History(args) => args.run(),
        Command::Gate(args) => args.run(),
        Command::Doctor(args) => args.run(),
        Command::Emulate(args) => args.run(),
        Command::Canary(args) => args.run(),
        Command::Policy(args) => args.run(),
        Command::Ctl(args) => args.run(),
        Command::Top(args) => args.run(),
        Command::Pages(args) => args.run(),
    });
    done.unwrap_or_else(|error| {
        let error = match error.downcast::<clap::Error>() {
            Ok(usage) => usage.exit(),
            Err(error) => error,
        };
        // A reader that has had enough (`lu trace | head`) is no failure.
        if is_broken_pipe(&error) {
            return ExitCode::SUCCESS;
        }
        eprintln!("{}", told(&error));
        if refused(&error).is_some() {
            return ExitCode::from(2);
        }
        ExitCode::FAILURE
    })
}

/// The file with errors that it is about, if it is.
fn refused(error: &anyhow::Error) -> Option<&lu_user::policy::Error> {
    error.chain().find_map(|cause| cause.downcast_ref())
}

/// What an error looks like on standard error.
fn told(error: &anyhow::Error) -> String {
    refused(error).map_or_else(|| format!("lu: {error:#}"), rendered)
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

/// What a file's errors look like on standard error, with the places in its file.
fn rendered(error: &lu_user::policy::Error) -> String {
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    error.render(colours)
}

/// The width of the terminal; 100 columns where standard output is none.
fn columns() -> usize {
    terminal_size::terminal_size().map_or(100, |(width, _)| usize::from(width.0))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn no_two_arguments_of_a_command_are_called_the_same() {
        super::Lu::command().debug_assert();
    }
}
