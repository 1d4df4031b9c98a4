//! Running other programs: what is run is said, and a failure names the command.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// The workspace's root folder.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// Where tools that `setup` builds are kept: outside the checkout, so that every clone shares them.
///
/// `LU_CACHE` overrides it; else `$XDG_CACHE_HOME/lu`, else `~/.cache/lu`.
pub fn cache() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("LU_CACHE") {
        return Ok(dir.into());
    }
    if let Some(dir) = std::env::var_os("XDG_CACHE_HOME") {
        return Ok(Path::new(&dir).join("lu"));
    }
    let home = std::env::var_os("HOME").context("HOME is not set; set LU_CACHE to a folder")?;
    Ok(Path::new(&home).join(".cache/lu"))
}

/// A progress line. Standard output belongs to results, so progress goes to standard error.
pub fn say(line: &str) {
    eprintln!("xtask: {line}");
}

/// `program`, to be started in the workspace's root, with nothing on its standard input.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root()).stdin(Stdio::null());
    command
}

/// Runs `command` to its end, with its standard output on ours.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start {}", shown(command)))?;
    if !status.success() {
        bail!("{} failed: {status}", shown(command));
    }
    Ok(())
}

/// Runs `command` with its standard output on our standard error.
pub fn run_quietly(command: &mut Command) -> Result<()> {
    run(command.stdout(std::io::stderr()))
}

/// Runs `command` and returns what it printed, without the last newline.
pub fn read(command: &mut Command) -> Result<String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start {}", shown(command)))?;
    if !output.status.success() {
        bail!("{} failed: {}", shown(command), output.status);
    }
    let text = String::from_utf8(output.stdout)
        .with_context(|| format!("{} printed bytes that are not UTF-8", shown(command)))?;
    Ok(text.trim_end().to_owned())
}

/// Whether `program` is in `PATH`.
pub fn found(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

fn shown(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        text.push(' ');
        text.push_str(&arg.to_string_lossy());
    }
    format!("`{text}`")
}
