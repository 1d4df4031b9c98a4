//! Building `lu`: cargo, with the linker for BPF programs in its path.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

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
    built("--bin", "lu")
}

/// The release binary and the example that plays the demo's clients.
pub fn demo() -> Result<(PathBuf, PathBuf)> {
    let example = built("--example", "demo")?;
    Ok((lu()?, example))
}

/// The release binary and the example that fills a journal.
pub fn updates() -> Result<(PathBuf, PathBuf)> {
    let example = built("--example", "updates")?;
    Ok((lu()?, example))
}

/// The release binary and the example that draws frames of `lu top`.
pub fn frames() -> Result<(PathBuf, PathBuf)> {
    let example = built("--example", "frames")?;
    Ok((lu()?, example))
}

/// The release binary for a machine that has no libraries.
pub fn lu_static() -> Result<PathBuf> {
    sh::say("building lu (release, static)");
    linked_statically(&["build", "--bin", "lu"], "lu-user", "lu")
}

/// One of the examples, for a guest.
pub fn static_example(name: &str) -> Result<PathBuf> {
    linked_statically(&["build", "--example", name], "lu-user", name)
}

/// The unit tests of lu, for a guest.
pub fn static_unit_tests() -> Result<PathBuf> {
    linked_statically(&["test", "--no-run", "--lib"], "lu-user", "lu_user")
}

/// A C program of the tests, for a guest.
pub fn static_client(name: &str) -> Result<PathBuf> {
    let root = sh::root();
    let place = root.join("target/lab").join(name);
    std::fs::create_dir_all(root.join("target/lab"))?;
    sh::run_quietly(
        sh::command("cc")
            .args(["-static", "-O2", "-pthread", "-o"])
            .arg(&place)
            .arg(root.join(format!("lu-user/tests/clients/{name}.c"))),
    )?;
    Ok(place)
}

/// PID 1 of the lab's guest.
pub fn lab_init() -> Result<PathBuf> {
    linked_statically(&["build", "--bin", "lab-init"], "xtask", "lab-init")
}

/// Builds for the host's own target by name: only then do the flags not reach build scripts, which could
/// not load their procedural macros if they were static.
fn linked_statically(command_and_target: &[&str], package: &str, name: &str) -> Result<PathBuf> {
    let host = setup::rustc_field("host")?;
    let mut command = cargo()?;
    command
        .env(
            format!(
                "CARGO_TARGET_{}_RUSTFLAGS",
                host.to_uppercase().replace('-', "_")
            ),
            format!("-Ctarget-feature=+crt-static {}", placeless()?),
        )
        // These would win over the line above.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    command.args(command_and_target).args(["--target", &*host]);
    executable(command, package, name)
}

/// Flags by which no path of this machine is in a program: the same source gives the same bytes anywhere.
fn placeless() -> Result<String> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let mut flags = vec![
        format!("--remap-path-prefix={}=/rustc", setup::sysroot()?.display()),
        format!("--remap-path-prefix={}=/lu", sh::root().display()),
    ];
    if let Some(home) = home {
        flags.push(format!("--remap-path-prefix={}=/cargo", home.display()));
    }
    if let Some(target) = std::env::var_os("CARGO_TARGET_DIR") {
        flags.push(format!(
            "--remap-path-prefix={}=/lu/target",
            PathBuf::from(target).display()
        ));
    }
    ensure!(
        !flags.iter().any(|flag| flag.contains(' ')),
        "cargo cannot be told of a path with a space in it: {}",
        flags.join(" ")
    );
    Ok(flags.join(" "))
}

/// One of lu's programs, for this machine.
fn built(kind: &str, name: &str) -> Result<PathBuf> {
    let mut command = cargo()?;
    command.args(["build", kind, name]);
    executable(command, "lu-user", name)
}

/// One of lu's programs as the tests have built it, for this machine.
pub fn tested(kind: &str, name: &str) -> Result<PathBuf> {
    let mut command = cargo()?;
    command.args(["build", kind, name]);
    found(command, "lu-user", name)
}

fn executable(mut cargo: Command, package: &str, name: &str) -> Result<PathBuf> {
    cargo.arg("--release");
    found(cargo, package, name)
}

/// What cargo has built, by what it says.
fn found(mut cargo: Command, package: &str, name: &str) -> Result<PathBuf> {
    let messages = sh::read(
        cargo
            .args(["--package", package])
            .args(["--message-format=json-render-diagnostics"]),
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
