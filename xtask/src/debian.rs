//! Packages of Debian that the machine's own suite may not have, fetched without touching the system.
//!
//! apt is run with lists and sources of its own, which name the mirror that is configured. It needs no
//! root, and what the system's apt knows stays as it is.

use std::cmp::Ordering;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::sh;

/// Suites of a Debian mirror that may hold what is looked for, oldest first.
const SUITES: [&str; 7] = [
    "oldstable-backports",
    "stable",
    "stable-updates",
    "stable-backports",
    "testing",
    "unstable",
    "experimental",
];

/// One version of one package, as a mirror offers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The package's name.
    pub package: String,
    /// Its version.
    pub version: String,
    /// The suite that has it, as apt tells it (`testing/main amd64 Packages`).
    pub suite: String,
}

impl Offer {
    /// Whether `suite` is the one that has it.
    pub fn is_in(&self, suite: &str) -> bool {
        // apt may tell the address before it.
        self.suite
            .split([' ', '/'])
            .any(|word| word.eq_ignore_ascii_case(suite))
    }
}

/// The packages of all suites of the machine's mirror. Its folder goes when this is dropped.
pub struct Archive {
    scratch: PathBuf,
    mirror: String,
    /// Held so that two runs do not use the folder at once.
    _lock: File,
}

impl Archive {
    /// Fetches the lists of all suites: about 10 s and 50 MB, so only for what must be fetched.
    pub fn open() -> Result<Self> {
        ensure!(
            sh::found("apt-get") && sh::found("dpkg-deb"),
            "there is no apt-get to look for Debian's packages"
        );
        let mirror = mirror()?;
        let cache = sh::cache()?;
        let lock = sh::lock(&cache.join("apt.lock"))?;
        let archive = Self {
            scratch: cache.join("apt"),
            mirror,
            _lock: lock,
        };
        // What an interrupted run left.
        let _ = fs::remove_dir_all(&archive.scratch);
        for dir in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(archive.scratch.join(dir))?;
        }
        let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
        let mut sources = String::new();
        for suite in SUITES {
            let _ = writeln!(
                sources,
                "deb [signed-by={keyring}] {} {suite} main",
                archive.mirror
            );
        }
        fs::write(archive.scratch.join("sources.list"), sources)?;
        fs::write(archive.scratch.join("empty"), "")?;
        sh::say("fetching the package lists of all of Debian's suites");
        // A suite that the mirror lacks is no reason to stop: what counts is that one has the package.
        if let Err(error) = sh::run_quietly(
            archive
                .apt("apt-get")
                .args(["--quiet", "--quiet", "update"]),
        ) {
            sh::say(&format!("{error}; going on with what has come"));
        }
        Ok(archive)
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = sh::command(program);
        command.current_dir(&self.scratch);
        for (key, value) in [
            ("Dir::Etc::SourceList", &*self.scratch.join("sources.list")),
            ("Dir::Etc::SourceParts", Path::new("-")),
            ("Dir::State::lists", &self.scratch.join("lists")),
            ("Dir::State::status", &self.scratch.join("empty")),
            ("Dir::Cache", &self.scratch),
            ("APT::Sandbox::User", Path::new("root")),
        ] {
            command.arg("-o").arg(format!("{key}={}", value.display()));
        }
        command
    }

    /// The names of all packages that begin with `prefix`.
    pub fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let names = sh::read(self.apt("apt-cache").args(["pkgnames", prefix]))?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// Every version of `packages` in any suite; empty where there is none.
    pub fn offers(&self, packages: &[String]) -> Result<Vec<Offer>> {
        if packages.is_empty() {
            return Ok(Vec::new());
        }
        let versions = sh::read(self.apt("apt-cache").arg("madison").args(packages))?;
        Ok(versions.lines().filter_map(offer).collect())
    }

    /// The address that packages come from.
    pub fn mirror(&self) -> &str {
        &self.mirror
    }

    /// Fetches one package and unpacks it into `folder`, which is created.
    pub fn unpack(&self, offer: &Offer, folder: &Path) -> Result<()> {
        let Offer {
            package, version, ..
        } = offer;
        sh::say(&format!("fetching {package} {version}"));
        let arriving = self.scratch.join("arriving");
        let _ = fs::remove_dir_all(&arriving);
        fs::create_dir(&arriving)?;
        sh::run_quietly(
            self.apt("apt-get")
                .current_dir(&arriving)
                .args(["--quiet", "--quiet", "download"])
                .arg(format!("{package}={version}")),
        )?;
        let deb = fs::read_dir(&arriving)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|end| end == "deb"))
            .context("apt-get download left no package")?;
        fs::create_dir_all(folder)?;
        sh::run_quietly(sh::command("dpkg-deb").arg("-x").arg(&deb).arg(folder))?;
        fs::remove_dir_all(&arriving)?;
        Ok(())
    }
}

impl Drop for Archive {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.scratch);
    }
}

/// A line of `apt-cache madison`: `package | version | where`.
fn offer(line: &str) -> Option<Offer> {
    let mut fields = line.split('|').map(str::trim);
    Some(Offer {
        package: fields.next()?.to_owned(),
        version: fields.next()?.to_owned(),
        suite: fields.next()?.to_owned(),
    })
}

/// The newest of `offers`, in the order of Debian's version numbers.
pub fn newest(offers: impl IntoIterator<Item = Offer>) -> Result<Option<Offer>> {
    let mut newest: Option<Offer> = None;
    for offer in offers {
        let newer = match &newest {
            None => true,
            Some(best) => compare(&offer.version, &best.version)? == Ordering::Greater,
        };
        if newer {
            newest = Some(offer);
        }
    }
    Ok(newest)
}

/// How two of Debian's version numbers stand to each other; dpkg knows the rules.
pub fn compare(one: &str, other: &str) -> Result<Ordering> {
    for (relation, order) in [
        ("lt", Ordering::Less),
        ("eq", Ordering::Equal),
        ("gt", Ordering::Greater),
    ] {
        let status = sh::command("dpkg")
            .args(["--compare-versions", one, relation, other])
            .status()
            .context("dpkg does not start")?;
        if status.success() {
            return Ok(order);
        }
    }
    bail!("dpkg cannot compare the versions {one} and {other}")
}

/// The address of the Debian mirror that the machine uses.
fn mirror() -> Result<String> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_madison_gives_package_version_and_suite() {
        let offer = offer(
            "linux-source-7.3 | 7.3~rc7-1~exp1 | http://mirror/debian experimental/main amd64 Packages",
        )
        .expect("three fields");
        assert_eq!(offer.package, "linux-source-7.3");
        assert_eq!(offer.version, "7.3~rc7-1~exp1");
        assert!(offer.is_in("experimental"));
        assert!(!offer.is_in("unstable"));
    }
}
