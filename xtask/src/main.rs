//! The project's own commands: set up what is missing, build, show and test.

mod build;
mod setup;
mod sh;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Set up, build, show and test lu",
    after_help = "Examples:\n  cargo xtask demo          a whole live update on the emulated orchestrator\n  cargo xtask demo --json   the same, as one JSON document\n  cargo xtask test          formatting, lints and every test"
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
}

fn main() -> Result<()> {
    match Args::parse().command {
        Command::Setup => setup::ensure(setup::For::Build),
        Command::Build => {
            setup::ensure(setup::For::Build)?;
            println!("{}", build::lu()?.display());
            Ok(())
        }
    }
}
