//! Builds the BPF programs, which the binary carries within itself.
//!
//! `aya-build` would do, but it fixes the compiler's flags, and the programs need one more: the third
//! version of the instruction set, whose atomic add returns the old value (Linux 5.12).

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

fn main() -> Result<()> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lu-ebpf");
    println!("cargo:rerun-if-changed={}", source.display());
    println!("cargo:rerun-if-changed=../lu-common");
    let out = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set")?);
    let arch = env::var("CARGO_CFG_TARGET_ARCH")?;
    let target = match env::var("CARGO_CFG_TARGET_ENDIAN")?.as_str() {
        "big" => "bpfeb-unknown-none",
        _ => "bpfel-unknown-none",
    };
    let mut flags = vec![
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Ctarget-cpu=v3".to_owned(),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
    ];
    flags.extend(placeless()?);
    let target_dir = out.join("bpf");
    let status = Command::new(env::var_os("CARGO").context("CARGO is not set")?)
        .current_dir(&source)
        .args([
            "build",
            "--release",
            "--package",
            "lu-ebpf",
            "-Zbuild-std=core",
        ])
        .args(["--target", target, "--target-dir"])
        .arg(&target_dir)
        .env("PATH", path_with_tools()?)
        // Building the standard library needs unstable flags, which stable cargo takes with this.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        // Clippy, checking us, is no compiler for this target.
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTC")
        .status()
        .context("cargo does not start")?;
    if !status.success() {
        bail!("the BPF programs do not build; `cargo xtask setup` brings in what they need");
    }
    let built = target_dir.join(target).join("release/lu-ebpf");
    let placed = out.join("lu.bpf.o");
    std::fs::copy(&built, &placed)
        .with_context(|| format!("cannot copy {} to {}", built.display(), placed.display()))?;
    Ok(())
}

/// Flags by which the programs' types name no path of this machine: the same source gives the same bytes anywhere.
fn placeless() -> Result<Vec<String>> {
    let rustc = env::var_os("RUSTC").context("RUSTC is not set")?;
    let sysroot = Command::new(rustc).args(["--print", "sysroot"]).output()?;
    let sysroot = String::from_utf8(sysroot.stdout)?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let places = [
        (root.map(Path::to_path_buf), "/lu"),
        (home, "/cargo"),
        (Some(sysroot.trim().into()), "/rustc"),
    ];
    let flag = |(from, to): (Option<PathBuf>, &str)| {
        Some(format!("--remap-path-prefix={}={to}", from?.display()))
    };
    Ok(places.into_iter().filter_map(flag).collect())
}

/// The path with the linker that `cargo xtask setup` built in front, so that a plain `cargo build`
/// finds it too.
fn path_with_tools() -> Result<std::ffi::OsString> {
    let cache = env::var_os("LU_CACHE")
        .map(PathBuf::from)
        .or_else(|| Some(Path::new(&env::var_os("XDG_CACHE_HOME")?).join("lu")))
        .or_else(|| Some(Path::new(&env::var_os("HOME")?).join(".cache/lu")));
    let verbose = Command::new(env::var_os("RUSTC").context("RUSTC is not set")?)
        .arg("-vV")
        .output()
        .context("rustc does not start")?;
    let release = String::from_utf8_lossy(&verbose.stdout)
        .lines()
        .find_map(|line| line.strip_prefix("release: ").map(str::to_owned))
        .context("rustc does not say its release")?;
    let ours = format!("tools-{release}");
    let mut folders: Vec<PathBuf> = cache
        .and_then(|cache| std::fs::read_dir(cache).ok())
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        // Each is linked to the compiler of its name.
        .filter(|tools| tools.ends_with(&ours))
        .map(|tools| tools.join("bin"))
        .collect();
    folders.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    env::join_paths(folders).context("PATH holds a folder with a colon")
}
