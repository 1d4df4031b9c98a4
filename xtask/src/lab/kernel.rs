//! The lab's kernel: Debian's newest source with the project's configuration, built once and kept.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

use crate::debian::{self, Archive, Offer};
use crate::{setup, sh};

/// The configuration on top of `make tinyconfig`.
const FRAGMENT: &str = include_str!("../../lab.config");

/// Without these it is no lab; an option that another kernel version has renamed is only told.
const ESSENTIAL: [&str; 3] = [
    "CONFIG_LIVEUPDATE=y",
    "CONFIG_KEXEC_HANDOVER=y",
    "CONFIG_KEXEC_FILE=y",
];

/// What make is asked for, and what it makes.
const IMAGE: &str = "bzImage";

/// The first release with the orchestrator.
const FIRST: &str = "6.19~";

/// How often a line says how far the build is.
const PROGRESS: Duration = Duration::from_secs(20);

/// Lines of the build's log that are shown when it fails.
const TAIL: usize = 30;

/// Where everything of the lab is kept.
pub fn cache() -> Result<PathBuf> {
    Ok(sh::cache()?.join("lab"))
}

/// The kernel to use: `LU_LAB_KERNEL`, or the project's own, which is built where it is missing.
pub fn ensure() -> Result<PathBuf> {
    if let Some(given) = std::env::var_os("LU_LAB_KERNEL") {
        let given = PathBuf::from(given);
        ensure!(
            given.is_file(),
            "LU_LAB_KERNEL names no file: {}",
            given.display()
        );
        return Ok(given);
    }
    build(false)
}

/// Held by whoever builds from the kernel's source.
pub fn lock() -> Result<File> {
    sh::lock(&cache()?.join("kernel.lock"))
}

/// Whether there is a kernel, or the means to build one.
pub fn is_at_hand() -> Result<bool> {
    Ok(std::env::var_os("LU_LAB_KERNEL").is_some()
        || cached()?.is_some()
        || (sh::found("apt-get") && setup::lacks(setup::For::LabKernel)?.is_empty()))
}

/// The newest kernel with this configuration that is there already.
fn cached() -> Result<Option<PathBuf>> {
    Ok(newest_cached("kernel-", &format!("-{}", key()))?.map(|folder| folder.join(IMAGE)))
}

/// Of the cache's folders whose names are `before`, a package's version and `after`: that of the newest.
pub fn newest_cached(before: &str, after: &str) -> Result<Option<PathBuf>> {
    let mut newest: Option<(String, PathBuf)> = None;
    let Ok(entries) = fs::read_dir(cache()?) else {
        return Ok(None);
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let version = name
            .strip_prefix(before)
            .and_then(|rest| rest.strip_suffix(after));
        let Some(version) = version.filter(|_| entry.path().is_dir()) else {
            continue;
        };
        let newer = match &newest {
            None => true,
            Some((best, _)) => debian::compare(version, best)?.is_gt(),
        };
        if newer {
            newest = Some((version.to_owned(), entry.path()));
        }
    }
    Ok(newest.map(|(_, path)| path))
}

/// What of the configuration counts, hashed: a comment may change without a build.
fn key() -> String {
    let mut hash = Sha256::new();
    for line in options() {
        hash.update(line);
        hash.update("\n");
    }
    hash.finalize()
        .iter()
        .take(6)
        .fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

fn options() -> impl Iterator<Item = &'static str> {
    FRAGMENT
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// The project's own kernel, built where there is none. With `update`, a newer source is looked for, and
/// built where there is one.
pub fn build(update: bool) -> Result<PathBuf> {
    if let Some(kernel) = cached()?.filter(|_| !update) {
        return Ok(kernel);
    }
    ensure!(
        cfg!(target_arch = "x86_64"),
        "the lab's kernel is configured for x86-64; name another by LU_LAB_KERNEL"
    );
    setup::ensure(setup::For::LabKernel)?;
    // One build at a time: the second to come finds it done.
    let _lock = lock()?;
    if let Some(kernel) = cached()?.filter(|_| !update) {
        return Ok(kernel);
    }
    let archive = Archive::open()?;
    let offer = newest_source(&archive)?;
    let place = cache()?.join(format!("kernel-{}-{}", offer.version, key()));
    if place.is_dir() {
        return Ok(place.join(IMAGE));
    }
    let scratch = sh::Scratch::new("kernel")?;
    let source = Source::unpack(&archive, &offer, &scratch, &[])?;
    drop(archive);
    let out = scratch.join("out");
    fs::create_dir(&out)?;
    let log = cache()?.join("kernel-build.log");
    configure(&source, &out, &log)?;
    compile(&source, &out, &log)?;
    // Under its name only when it is whole.
    let whole = scratch.join("whole");
    fs::create_dir(&whole)?;
    fs::copy(out.join("arch/x86/boot").join(IMAGE), whole.join(IMAGE))?;
    fs::copy(out.join(".config"), whole.join("config"))?;
    fs::rename(&whole, &place)?;
    // The source is here now: its selftests cost a minute, and fetching it again would cost more.
    if let Err(error) = super::selftests::build(&source) {
        sh::say(&format!(
            "the kernel's selftests cannot be built: {error:#}"
        ));
    }
    Ok(place.join(IMAGE))
}

/// Debian's newest `linux-source-X.Y`, over all suites.
pub fn newest_source(archive: &Archive) -> Result<Offer> {
    let packages: Vec<String> = archive
        .names("linux-source-")?
        .into_iter()
        .filter(|name| {
            name.strip_prefix("linux-source-")
                .is_some_and(|version| version.starts_with(|first: char| first.is_ascii_digit()))
        })
        .collect();
    let newest = debian::newest(archive.offers(&packages)?)?.with_context(|| {
        format!(
            "no suite of {} has a package linux-source-*",
            archive.mirror()
        )
    })?;
    ensure!(
        debian::compare(&newest.version, FIRST)?.is_ge(),
        "the newest kernel source of {} is {}, and the orchestrator came with 6.19: name a kernel by LU_LAB_KERNEL",
        archive.mirror(),
        newest.version
    );
    Ok(newest)
}

/// An unpacked kernel source.
pub struct Source {
    /// The package's version.
    pub version: String,
    /// The top of its tree.
    pub tree: PathBuf,
}

impl Source {
    /// Unpacks `paths` of the source into `folder`; all of it where none is named.
    pub fn unpack(archive: &Archive, offer: &Offer, folder: &Path, paths: &[&str]) -> Result<Self> {
        let package = folder.join("package");
        archive.unpack(offer, &package)?;
        let tarball = package
            .join("usr/src")
            .join(format!("{}.tar.xz", offer.package));
        sh::say("unpacking the kernel's source");
        sh::run_quietly(
            sh::command("tar")
                .arg("-C")
                .arg(folder)
                .arg("-xJf")
                .arg(&tarball)
                .args(paths.iter().map(|path| format!("{}/{path}", offer.package))),
        )?;
        fs::remove_dir_all(&package)?;
        Ok(Self {
            version: offer.version.clone(),
            tree: folder.join(&offer.package),
        })
    }

    /// `make` in it, for as many CPUs as there are, leaving time for others, what it says to `log`.
    pub fn make(&self, log: &Path) -> Result<Command> {
        let log = File::options().create(true).append(true).open(log)?;
        let mut command = sh::command("nice");
        command
            .arg("make")
            .arg("-C")
            .arg(&self.tree)
            .arg(format!("-j{}", thread::available_parallelism()?))
            // Nothing of the machine in what is built.
            .env("KBUILD_BUILD_USER", "lu")
            .env("KBUILD_BUILD_HOST", "lab")
            .stderr(log.try_clone()?)
            .stdout(log);
        Ok(command)
    }
}

/// Runs a step of the build; where it fails, the end of its log is shown.
pub fn logged(command: &mut Command, log: &Path) -> Result<()> {
    sh::run(command).with_context(|| tail(log))
}

/// The end of a log, for people.
fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    format!(
        "the end of {}:\n{}",
        log.display(),
        lines[lines.len().saturating_sub(TAIL)..].join("\n")
    )
}

fn configure(source: &Source, out: &Path, log: &Path) -> Result<()> {
    File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let output = format!("O={}", out.display());
    logged(source.make(log)?.args([&output, "tinyconfig"]), log)?;
    // A later line wins over an earlier one.
    let config = out.join(".config");
    let mut text = fs::read_to_string(&config)?;
    for line in options() {
        let _ = writeln!(text, "{line}");
    }
    fs::write(&config, text)?;
    logged(source.make(log)?.args([&output, "olddefconfig"]), log)?;
    let got = fs::read_to_string(&config)?;
    let lost = lost(&got);
    for line in &lost {
        sh::say(&format!("this kernel does not take {line}"));
    }
    ensure!(
        !lost.iter().any(|line| ESSENTIAL.contains(line)),
        "without that there is no live update"
    );
    Ok(())
}

/// The lines of the fragment that the final configuration does not have.
fn lost(config: &str) -> Vec<&'static str> {
    options()
        .filter(|option| !config.lines().any(|line| line == *option))
        .collect()
}

fn compile(source: &Source, out: &Path, log: &Path) -> Result<()> {
    let start = Instant::now();
    sh::say(&format!(
        "building the kernel {}: some 20 minutes on two CPUs; its log is {}",
        source.version,
        log.display()
    ));
    let mut make = source
        .make(log)?
        .arg(format!("O={}", out.display()))
        .arg(IMAGE)
        .spawn()
        .context("make does not start")?;
    let mut told = start;
    loop {
        if let Some(status) = make.try_wait()? {
            if status.success() {
                break;
            }
            bail!("the kernel does not build ({status}); {}", tail(log));
        }
        if told.elapsed() >= PROGRESS {
            told = Instant::now();
            sh::say(&format!(
                "{:.1} min, {} files compiled",
                start.elapsed().as_secs_f64() / 60.0,
                compiled(log)
            ));
        }
        thread::sleep(Duration::from_millis(200));
    }
    sh::say(&format!(
        "the kernel is built, {:.1} min",
        start.elapsed().as_secs_f64() / 60.0
    ));
    Ok(())
}

fn compiled(log: &Path) -> usize {
    fs::read(log).map_or(0, |text| {
        text.split(|byte| *byte == b'\n')
            .filter(|line| line.starts_with(b"  CC ") || line.starts_with(b"  AS "))
            .count()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_fragment_sets_an_option() {
        for line in options() {
            let (name, value) = line.split_once('=').expect("an assignment");
            assert!(name.starts_with("CONFIG_"), "{line}");
            assert!(!value.is_empty(), "{line}");
        }
        for essential in ESSENTIAL {
            assert!(options().any(|line| line == essential), "{essential}");
        }
    }

    #[test]
    fn an_option_that_did_not_stick_is_named() {
        let config: String = options()
            .filter(|line| *line != "CONFIG_KVM=y")
            .flat_map(|line| [line, "\n"])
            .collect();
        assert_eq!(lost(&config), ["CONFIG_KVM=y"]);
    }
}
