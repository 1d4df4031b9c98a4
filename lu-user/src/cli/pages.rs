//! `lu pages`, for those who pack lu.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap_complete::Shell;

use super::config;

/// Write the man pages of all commands, and the completions for shells, into a folder.
#[derive(clap::Args)]
pub struct Args {
    /// The folder; man and completions are made in it.
    folder: PathBuf,
}

impl Args {
    pub fn run(&self) -> Result<ExitCode> {
        let within = |name: &str| made(self.folder.join(name));
        clap_mangen::generate_to(config::command(), within("man")?)
            .context("cannot write the man pages")?;
        let completions = within("completions")?;
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            clap_complete::generate_to(shell, &mut config::command(), "lu", &completions)
                .context("cannot write the completions")?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn made(folder: PathBuf) -> Result<PathBuf> {
    let cannot = |folder: &Path| format!("cannot create {}", folder.display());
    fs::create_dir_all(&folder).with_context(|| cannot(&folder))?;
    Ok(folder)
}
