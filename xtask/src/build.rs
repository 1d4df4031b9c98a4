//! Building `lu`: cargo, with the linker for BPF programs in its path.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::{setup, sh};

/// `cargo` with what a build of the BPF programs needs in its environment.
pub fn cargo() -> Result<Command> {
    let mut command = sh::command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let mut path = vec![setup::tools()?.join("bin")];
    path.extend(std::env::split_paths(
        &std::env::var_os("PATH").unwrap_or_default(),
    ));
    command.env("PATH", std::env::join_paths(path)?);
    Ok(command)
}

/// Builds the release binary and returns its path.
pub fn lu() -> Result<PathBuf> {
    sh::say("building lu (release)");
    let messages = sh::read(cargo()?.args([
        "build",
        "--release",
        "--package",
        "lu-user",
        "--message-format=json-render-diagnostics",
    ]))?;
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == "lu")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .context("cargo built no `lu` executable")
}
