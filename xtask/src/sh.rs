//! Running other programs: what is run is said, and a failure names the command.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::ops::Deref;
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

/// Waits until nobody else holds the lock at `path`. It is free again when what this returns is dropped.
pub fn lock(path: &Path) -> Result<File> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    if file.try_lock().is_err() {
        say(&format!(
            "waiting for another run that holds {}",
            path.display()
        ));
        file.lock()?;
    }
    Ok(file)
}

/// A folder in the cache for work in progress, which goes when this is dropped.
pub struct Scratch(PathBuf);

impl Scratch {
    /// An empty one. What an interrupted run left under the same name goes first, so whoever shares the
    /// cache must hold a lock.
    pub fn new(name: &str) -> Result<Self> {
        let scratch = Self(cache()?.join("scratch").join(name));
        let _ = fs::remove_dir_all(&scratch.0);
        fs::create_dir_all(&scratch.0)
            .with_context(|| format!("cannot create {}", scratch.0.display()))?;
        Ok(scratch)
    }
}

impl Deref for Scratch {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
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
    find(program).is_some()
}

/// Where in `PATH` `program` is, or where programs for root are, which Debian leaves out of the others' `PATH`.
pub fn find(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
}

fn shown(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        text.push(' ');
        text.push_str(&arg.to_string_lossy());
    }
    format!("`{text}`")
}
