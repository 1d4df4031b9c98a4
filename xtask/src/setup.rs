//! What the machine needs before it can build and test, and how each missing piece is brought in.
//!
//! Stable Rust has no prebuilt standard library for the BPF target and no BPF linker. So two things are
//! wanted beside a C compiler: the standard library's source, from which cargo builds `core`, and
//! `bpf-linker`, which is built against the compiler's own LLVM so that no other LLVM is needed.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::sh;

/// The release that is known to work with the aya versions in `Cargo.lock`.
const BPF_LINKER: &str = "0.13.0";

/// Suites of a Debian mirror that may hold a newer compiler than the machine's own, oldest first.
const SUITES: [&str; 7] = [
    "oldstable-backports",
    "stable",
    "stable-backports",
    "stable-backports-sloppy",
    "testing",
    "unstable",
    "experimental",
];

/// What the machine is to be made ready for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum For {
    /// Building and running `lu`.
    Build,
    /// Running every test too.
    Test,
    /// Running the benchmarks beside their peers too.
    Bench,
}

/// A program from the distribution, and the Debian package that brings it.
struct Program {
    name: &'static str,
    package: &'static str,
    why: &'static str,
    wanted: &'static [For],
}

const PROGRAMS: [Program; 2] = [
    Program {
        name: "cc",
        package: "gcc libc6-dev",
        why: "links every program, and compiles the C clients of the tests",
        wanted: &[For::Build, For::Test, For::Bench],
    },
    Program {
        name: "bpftrace",
        package: "bpftrace",
        why: "is the peer that startup and memory are compared with",
        wanted: &[For::Bench],
    },
];

/// Checks everything that `purpose` needs and brings in what is missing; silent where nothing is.
pub fn ensure(purpose: For) -> Result<()> {
    programs(purpose)?;
    components(purpose)?;
    rust_src().context("the standard library's source (rust-src) could not be brought in")?;
    bpf_linker().context("bpf-linker could not be built")?;
    Ok(())
}

/// The folder of the tools built for this compiler: they link to its LLVM, so each has its own.
pub fn tools() -> Result<PathBuf> {
    Ok(sh::cache()?.join(format!("tools-{}", rustc_field("release")?)))
}

fn programs(purpose: For) -> Result<()> {
    let missing: Vec<&Program> = PROGRAMS
        .iter()
        .filter(|program| program.wanted.contains(&purpose) && !sh::found(program.name))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing
        .iter()
        .flat_map(|program| program.package.split(' '))
        .collect();
    for program in &missing {
        sh::say(&format!("{} is missing; it {}", program.name, program.why));
    }
    let line = format!("apt-get install --yes {}", packages.join(" "));
    if !(sh::found("apt-get") && is_root()?) {
        bail!(
            "install these programs and run this again: {}\n  on Debian, as root: {line}",
            missing
                .iter()
                .map(|p| p.name)
                .collect::<Vec<_>>()
                .join(", ")
        );
    }
    sh::say(&line);
    let install = |packages: &[&str]| {
        sh::run_quietly(
            sh::command("apt-get")
                .env("DEBIAN_FRONTEND", "noninteractive")
                .args(["install", "--yes", "--no-install-recommends"])
                .args(packages),
        )
    };
    // A fresh machine has no package lists yet.
    if install(&packages).is_err() {
        sh::run_quietly(sh::command("apt-get").arg("update"))?;
        install(&packages)?;
    }
    Ok(())
}

/// Formatting and lints come with the toolchain, unless it was installed without them.
fn components(purpose: For) -> Result<()> {
    if purpose != For::Test {
        return Ok(());
    }
    for (program, component) in [("cargo-fmt", "rustfmt"), ("cargo-clippy", "clippy")] {
        if sh::found(program) {
            continue;
        }
        sh::say(&format!("{component} is missing"));
        sh::run_quietly(sh::command("rustup").args(["component", "add", component]))
            .with_context(|| format!("install {component} for this toolchain"))?;
    }
    Ok(())
}

fn is_root() -> Result<bool> {
    Ok(sh::read(sh::command("id").arg("-u"))? == "0")
}

fn rustc() -> Command {
    sh::command(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
}

fn rustc_field(field: &str) -> Result<String> {
    let verbose = sh::read(rustc().arg("-vV"))?;
    verbose
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(": "))
        .map(str::to_owned)
        .with_context(|| format!("`rustc -vV` does not say its {field}"))
}

fn sysroot() -> Result<PathBuf> {
    Ok(sh::read(rustc().args(["--print", "sysroot"]))?.into())
}

fn rust_src() -> Result<()> {
    let place = sysroot()?.join("lib/rustlib/src/rust");
    let present = || place.join("library/core/src/lib.rs").is_file();
    if present() {
        return Ok(());
    }
    if sh::found("rustup") {
        sh::say("rust-src is missing: rustup component add rust-src");
        let added = sh::run_quietly(sh::command("rustup").args(["component", "add", "rust-src"]));
        match added {
            Ok(()) if present() => return Ok(()),
            Ok(()) => sh::say("rustup added it for another toolchain than the one in use"),
            Err(error) => sh::say(&format!("{error}")),
        }
    }
    let by_hand = format!(
        "to do it by hand: put the folder `library` of Rust {}'s source at {}",
        rustc_field("release")?,
        place.display()
    );
    if !(sh::found("apt-get") && sh::found("dpkg-deb")) {
        bail!("rustup does not have it, and there is no apt-get to look for Debian's\n  {by_hand}");
    }
    sh::say("looking for Debian's package of the same version");
    debian_rust_src(&place).context(by_hand)?;
    if !present() {
        bail!("Debian's package holds no library/core/src/lib.rs");
    }
    Ok(())
}

/// Fetches Debian's `rust-src` of the compiler's version and copies its `library` to `place`.
///
/// A suite that the machine does not use may have it, so apt is run with its own lists and sources, which
/// name the mirror that is configured; the system's stay as they are.
fn debian_rust_src(place: &Path) -> Result<()> {
    let release = rustc_field("release")?;
    let scratch = sh::cache()?.join("apt");
    // What an interrupted run left.
    let _ = fs::remove_dir_all(&scratch);
    for dir in ["lists/partial", "archives/partial", "unpacked"] {
        fs::create_dir_all(scratch.join(dir))?;
    }
    let mirror = debian_mirror()?;
    let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
    let mut sources = String::new();
    for suite in SUITES {
        let _ = writeln!(sources, "deb [signed-by={keyring}] {mirror} {suite} main");
    }
    let list = scratch.join("sources.list");
    fs::write(&list, sources)?;
    let empty = scratch.join("empty");
    fs::write(&empty, "")?;
    let apt = |program: &str| {
        let mut command = sh::command(program);
        command.current_dir(&scratch);
        for (key, value) in [
            ("Dir::Etc::SourceList", list.as_path()),
            ("Dir::Etc::SourceParts", Path::new("-")),
            ("Dir::State::lists", &scratch.join("lists")),
            ("Dir::State::status", &empty),
            ("Dir::Cache", &scratch),
            ("APT::Sandbox::User", Path::new("root")),
        ] {
            command.arg("-o").arg(format!("{key}={}", value.display()));
        }
        command
    };
    // A suite that the mirror lacks is no reason to stop: what counts is that one has the package.
    let updated = sh::run_quietly(apt("apt-get").arg("update"));
    let versions = sh::read(apt("apt-cache").args(["madison", "rust-src"]))?;
    let wanted = versions
        .lines()
        .filter_map(|line| line.split('|').nth(1).map(str::trim))
        .find(|version| version.starts_with(&format!("{release}+")));
    let Some(version) = wanted else {
        updated?;
        bail!("no suite of {mirror} has rust-src {release}; it has:\n{versions}");
    };
    sh::say(&format!("fetching rust-src {version}"));
    sh::run_quietly(apt("apt-get").args(["download", &format!("rust-src={version}")]))?;
    let package = fs::read_dir(&scratch)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("rust-src_") && name.ends_with(".deb")
        })
        .context("apt-get download left no package")?;
    let unpacked = scratch.join("unpacked");
    sh::run_quietly(
        sh::command("dpkg-deb")
            .arg("-x")
            .arg(&package)
            .arg(&unpacked),
    )?;
    let library = unpacked
        .join("usr/src")
        .join(format!("rustc-{release}"))
        .join("library");
    let library = if library.is_dir() {
        library
    } else {
        unpacked.join("usr/lib/rustlib/src/rust/library")
    };
    fs::create_dir_all(place)
        .with_context(|| format!("cannot write to the toolchain at {}", place.display()))?;
    // Under its name only when it is whole: an interrupted copy must not look like one.
    let arriving = place.join("library.arriving");
    let _ = fs::remove_dir_all(&arriving);
    sh::run_quietly(sh::command("cp").arg("-rL").arg(&library).arg(&arriving))?;
    fs::rename(&arriving, place.join("library"))?;
    fs::remove_dir_all(&scratch)?;
    Ok(())
}

/// The address of the Debian mirror that the machine uses.
fn debian_mirror() -> Result<String> {
    let repositories = sh::read(sh::command("apt-get").args([
        "indextargets",
        "--format",
        "$(ORIGIN) $(REPO_URI)",
        "Created-By: Packages",
    ]))?;
    repositories
        .lines()
        .filter_map(|line| line.strip_prefix("Debian "))
        .find(|uri| !uri.contains("security"))
        .map(|uri| uri.trim_end_matches('/').to_owned())
        .context("apt knows no Debian mirror: run `apt-get update` once as root")
}

fn bpf_linker() -> Result<()> {
    let tools = tools()?;
    let works = |program: &Path| {
        Command::new(program)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    if works(&tools.join("bin/bpf-linker")) {
        return Ok(());
    }
    let llvm = rustc_field("LLVM version")?;
    let major = llvm.split('.').next().unwrap_or_default();
    sh::say(&format!(
        "building bpf-linker {BPF_LINKER} against the compiler's LLVM {llvm} (about a minute)"
    ));
    let lib = sysroot()?.join("lib");
    let library = fs::read_dir(&lib)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("libLLVM.so.")
        })
        .with_context(|| {
            format!(
                "the compiler has no libLLVM.so.{major}* in {}: use the toolchain that rustup installs",
                lib.display()
            )
        })?;
    let prefix = tools.join("llvm");
    fs::create_dir_all(prefix.join("lib"))?;
    let link = prefix.join("lib/libLLVM.so");
    let _ = fs::remove_file(&link);
    std::os::unix::fs::symlink(&library, &link)?;
    sh::run_quietly(
        sh::command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .env("LLVM_PREFIX", &prefix)
            .env(
                "RUSTFLAGS",
                format!("-C link-arg=-Wl,-rpath,{}", lib.display()),
            )
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .args(["install", "bpf-linker", "--locked", "--force"])
            .args(["--version", BPF_LINKER, "--no-default-features"])
            .arg("--features")
            .arg(format!("llvm-{major}"))
            .arg("--root")
            .arg(&tools)
            .arg("--target-dir")
            .arg(tools.join("target")),
    )?;
    fs::remove_dir_all(tools.join("target"))?;
    if !works(&tools.join("bin/bpf-linker")) {
        bail!("it was built but does not start");
    }
    Ok(())
}
