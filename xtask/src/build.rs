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
    executable(&["--bin", "lu"], "lu")
}

/// The release binary and the example that plays the demo's clients.
pub fn demo() -> Result<(PathBuf, PathBuf)> {
    Ok((lu()?, executable(&["--example", "demo"], "demo")?))
}

fn executable(target: &[&str], name: &str) -> Result<PathBuf> {
    let messages = sh::read(
        cargo()?
            .args(["build", "--release", "--package", "lu-user"])
            .args(target)
            .arg("--message-format=json-render-diagnostics"),
    )?;
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == name)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .with_context(|| format!("cargo built no executable {name}"))
}

/// Clippy for the BPF programs, which the ordinary run leaves out: they have a target of their own.
pub fn bpf_clippy() -> Result<Command> {
    let target_dir = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| sh::root().join("target"), PathBuf::from);
    let mut command = cargo()?;
    command
        .args([
            "clippy",
            "--release",
            "--package",
            "lu-ebpf",
            "-Zbuild-std=core",
        ])
        .args(["--target", "bpfel-unknown-none", "--target-dir"])
        // Of its own: what is set below would have the ordinary build's dependencies built again.
        .arg(target_dir.join("bpf-lints"))
        .args(["--", "--deny=warnings"])
        .env("RUSTC_BOOTSTRAP", "1")
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            format!(
                "--cfg=bpf_target_arch=\"{}\"\x1f-Ctarget-cpu=v3",
                std::env::consts::ARCH
            ),
        );
    Ok(command)
}
