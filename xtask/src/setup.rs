//! What the machine needs before it can build and test, and how each missing piece is brought in.
//!
//! Stable Rust has no prebuilt standard library for the BPF target and no BPF linker. So two things are
//! wanted beside a C compiler: the standard library's source, from which cargo builds `core`, and
//! `bpf-linker`, which is built against the compiler's own LLVM so that no other LLVM is needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::debian::Archive;
use crate::sh;

/// The release that is known to work with the aya versions in `Cargo.lock`.
const BPF_LINKER: &str = "0.13.0";

/// What the machine is to be made ready for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum For {
    /// Building and running `lu`.
    Build,
    /// Running every test too.
    Test,
    /// Running the benchmarks beside their peers too.
    Bench,
    /// Showing `lu top` on a terminal too.
    Top,
    /// Running the lab's virtual machines.
    Lab,
    /// A shell in one of them too.
    LabShell,
    /// Building the lab's kernel; nothing of Rust is needed for that.
    LabKernel,
}

/// A program from the distribution, and the Debian package that brings it.
struct Program {
    /// Its name in `PATH`; for a library, the full path of its header.
    name: &'static str,
    package: &'static str,
    why: &'static str,
    wanted: &'static [For],
}

impl Program {
    fn is_here(&self) -> bool {
        if self.name.starts_with('/') {
            Path::new(self.name).is_file()
        } else {
            sh::found(self.name)
        }
    }
}

const PROGRAMS: [Program; 16] = [
    Program {
        name: "cc",
        package: "gcc libc6-dev",
        why: "links every program, and compiles the C clients of the tests",
        wanted: &[
            For::Build,
            For::Test,
            For::Bench,
            For::Top,
            For::Lab,
            For::LabShell,
            For::LabKernel,
        ],
    },
    Program {
        name: "tmux",
        package: "tmux",
        why: "is the terminal on which lu top is driven by keys",
        wanted: &[For::Test, For::Top],
    },
    Program {
        name: "objcopy",
        package: "binutils",
        why: "makes a copy of lu with few hooks for the tests; nm comes with it",
        wanted: &[For::Test],
    },
    Program {
        name: "prometheus",
        package: "prometheus",
        why: "scrapes lu in a test; promtool comes with it",
        wanted: &[For::Test],
    },
    Program {
        name: "bpftrace",
        package: "bpftrace",
        why: "is the peer that startup and memory are compared with",
        wanted: &[For::Bench],
    },
    Program {
        name: "qemu-system-x86_64",
        package: "qemu-system-x86",
        why: "runs the lab's virtual machines",
        wanted: &[For::Lab, For::LabShell],
    },
    Program {
        name: "mkfs.ext4",
        package: "e2fsprogs",
        why: "makes the disk on which lu's journal outlives a virtual machine of the lab",
        wanted: &[For::Lab],
    },
    Program {
        name: "busybox",
        package: "busybox-static",
        why: "is the shell in the lab's guest",
        wanted: &[For::LabShell],
    },
    Program {
        name: "make",
        package: "make",
        why: "builds the lab's kernel",
        wanted: &[For::LabKernel],
    },
    Program {
        name: "flex",
        package: "flex",
        why: "builds the lab's kernel",
        wanted: &[For::LabKernel],
    },
    Program {
        name: "bison",
        package: "bison",
        why: "builds the lab's kernel",
        wanted: &[For::LabKernel],
    },
    Program {
        name: "bc",
        package: "bc",
        why: "builds the lab's kernel",
        wanted: &[For::LabKernel],
    },
    Program {
        name: "/usr/include/libelf.h",
        package: "libelf-dev",
        why: "is what the kernel's objtool is built with",
        wanted: &[For::LabKernel],
    },
    Program {
        name: "pahole",
        package: "dwarves",
        why: "makes the kernel's BTF, by which BPF programs find their hooks",
        wanted: &[For::LabKernel],
    },
    Program {
        name: "xz",
        package: "xz-utils",
        why: "unpacks the source of the lab's kernel, and Debian's modules",
        wanted: &[For::LabKernel],
    },
    Program {
        name: "rsync",
        package: "rsync",
        why: "exports the kernel's headers for its selftests",
        wanted: &[For::LabKernel],
    },
];

/// Checks everything that `purpose` needs and brings in what is missing; silent where nothing is.
pub fn ensure(purpose: For) -> Result<()> {
    programs(purpose)?;
    if purpose == For::LabKernel {
        return Ok(());
    }
    components(purpose)?;
    rust_src().context("the standard library's source (rust-src) could not be brought in")?;
    bpf_linker().context("bpf-linker could not be built")?;
    Ok(())
}

/// The folder of the tools built for this compiler: they link to its LLVM, so each has its own.
pub fn tools() -> Result<PathBuf> {
    Ok(sh::cache()?.join(format!("tools-{}", rustc_field("release")?)))
}

fn missing(purpose: For) -> Vec<&'static Program> {
    PROGRAMS
        .iter()
        .filter(|program| program.wanted.contains(&purpose) && !program.is_here())
        .collect()
}

/// Programs that `purpose` needs, that are not here, and that cannot be installed from here.
pub fn lacks(purpose: For) -> Result<Vec<&'static str>> {
    let missing = missing(purpose);
    if missing.is_empty() || can_install()? {
        return Ok(Vec::new());
    }
    Ok(missing.iter().map(|program| program.name).collect())
}

fn can_install() -> Result<bool> {
    Ok(sh::found("apt-get") && is_root()?)
}

fn programs(purpose: For) -> Result<()> {
    let missing = missing(purpose);
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
    if !can_install()? {
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
    // Debian's package starts a service, which nobody asked for.
    if packages.contains(&"prometheus") && Path::new("/run/systemd/system").exists() {
        sh::run_quietly(sh::command("systemctl").args(["disable", "--now", "prometheus.service"]))?;
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

/// A line of what the compiler says of itself.
pub fn rustc_field(field: &str) -> Result<String> {
    let verbose = sh::read(rustc().arg("-vV"))?;
    verbose
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(": "))
        .map(str::to_owned)
        .with_context(|| format!("`rustc -vV` does not say its {field}"))
}

/// Where the compiler's libraries are, and their source.
pub fn sysroot() -> Result<PathBuf> {
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
    sh::say("looking for Debian's package of the same version");
    debian_rust_src(&place).context(by_hand)?;
    if !present() {
        bail!("Debian's package holds no library/core/src/lib.rs");
    }
    Ok(())
}

/// Fetches Debian's `rust-src` of the compiler's version, which a suite that the machine does not use may
/// have, and copies its `library` to `place`.
fn debian_rust_src(place: &Path) -> Result<()> {
    let release = rustc_field("release")?;
    let archive = Archive::open()?;
    let offers = archive.offers(&["rust-src".into()])?;
    let Some(offer) = offers
        .iter()
        .find(|offer| offer.version.starts_with(&format!("{release}+")))
    else {
        bail!(
            "no suite of {} has rust-src {release}; it has: {}",
            archive.mirror(),
            offers
                .iter()
                .map(|offer| offer.version.as_str())
                .collect::<Vec<_>>()
                .join(", ")
        );
    };
    let unpacked = sh::Scratch::new("rust-src")?;
    archive.unpack(offer, &unpacked)?;
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
    Ok(())
}

/// The peer of `lu top`, built into the tools' folder where it is missing (some minutes).
const BOTTOM: &str = "0.15.0";

/// Where its program is.
pub fn bottom() -> Result<PathBuf> {
    let tools = tools()?;
    let program = tools.join("bin/btm");
    if !program.is_file() {
        sh::say(&format!("building bottom {BOTTOM} (some minutes)"));
        sh::run_quietly(
            sh::command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
                .args(["install", "bottom", "--locked", "--no-default-features"])
                .args(["--version", BOTTOM])
                .arg("--root")
                .arg(&tools)
                .arg("--target-dir")
                .arg(tools.join("target")),
        )?;
        fs::remove_dir_all(tools.join("target"))?;
    }
    Ok(program)
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
