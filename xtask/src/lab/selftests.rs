//! The kernel's own tests of its orchestrator, built from the same source package as the lab's kernel.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::kernel::{self, Source};
use crate::debian::Archive;
use crate::{setup, sh};

/// The programs: single-boot cases, and a session across one kexec.
pub const PROGRAMS: [&str; 2] = ["liveupdate", "luo_kexec_simple"];

/// Where they are in the source.
const FOLDER: &str = "tools/testing/selftests/liveupdate";

/// What of the source they are built from.
const PATHS: [&str; 9] = [
    "Kbuild",
    "Makefile",
    "arch/x86",
    "include",
    "scripts",
    "tools/include",
    "tools/testing/selftests/liveupdate",
    "tools/testing/selftests/kselftest.h",
    "tools/testing/selftests/kselftest_harness.h",
];

/// The folder with the built programs; fetched and built where there is none.
pub fn ensure() -> Result<PathBuf> {
    match kernel::newest_cached("selftests-", "")? {
        Some(folder) => Ok(folder),
        None => fetch(),
    }
}

fn fetch() -> Result<PathBuf> {
    setup::ensure(setup::For::LabKernel)?;
    // A build of the kernel makes them too.
    let _lock = kernel::lock()?;
    if let Some(folder) = kernel::newest_cached("selftests-", "")? {
        return Ok(folder);
    }
    let archive = Archive::open()?;
    let offer = kernel::newest_source(&archive)?;
    let scratch = sh::Scratch::new("selftests-source")?;
    let source = Source::unpack(&archive, &offer, &scratch, &PATHS)?;
    drop(archive);
    build(&source)
}

/// Builds them from an unpacked source, and returns their folder in the cache.
pub fn build(source: &Source) -> Result<PathBuf> {
    let place = kernel::cache()?.join(format!("selftests-{}", source.version));
    if place.is_dir() {
        return Ok(place);
    }
    sh::say("building the kernel's selftests");
    let scratch = sh::Scratch::new("selftests")?;
    let log = scratch.join("log");
    let (out, headers, whole) = (
        scratch.join("out"),
        scratch.join("headers"),
        scratch.join("whole"),
    );
    for folder in [&out, &whole] {
        fs::create_dir(folder)?;
    }
    kernel::logged(
        source
            .make(&log)?
            .arg(format!("O={}", out.display()))
            .arg(format!("INSTALL_HDR_PATH={}", headers.display()))
            .arg("headers_install"),
        &log,
    )?;
    for program in PROGRAMS {
        compile(&source.tree, &headers, &whole, program)
            .with_context(|| format!("{program} does not build"))?;
    }
    fs::rename(&whole, &place)?;
    Ok(place)
}

/// As the kernel's own script for virtual machines does it: without a C library, so that the program runs
/// where there is none.
fn compile(tree: &Path, headers: &Path, folder: &Path, program: &str) -> Result<()> {
    let source = tree.join(FOLDER);
    sh::run_quietly(
        sh::command("cc")
            .args(["-static", "-O2", "-nostdinc", "-nostdlib"])
            .arg("-I")
            .arg(headers.join("include"))
            .arg("-I")
            .arg(tree.join("tools/include/nolibc"))
            .arg("-I")
            .arg(source.join("lib/include"))
            .arg("-o")
            .arg(folder.join(program))
            .arg(source.join(format!("{program}.c")))
            .arg(source.join("lib/lu_utils.c")),
    )
}

/// What a program that speaks the kernel's test protocol (KTAP) said.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tap {
    /// How many tests it announced, where it did.
    pub planned: Option<usize>,
    /// Tests that passed.
    pub passed: usize,
    /// Tests that were skipped; they are told as passed too, and not counted there.
    pub skipped: usize,
    /// The names of those that failed.
    pub failed: Vec<String>,
}

impl Tap {
    /// Reads what a program printed. Lines of diagnosis begin with `#`, those of subtests with blanks.
    pub fn parse(text: &str) -> Self {
        let mut tap = Self::default();
        for line in text.lines() {
            if let Some(plan) = line.strip_prefix("1..") {
                tap.planned = plan.split_whitespace().next().and_then(|n| n.parse().ok());
            } else if let Some(name) = line.strip_prefix("not ok ") {
                tap.failed.push(name.to_owned());
            } else if let Some(name) = line.strip_prefix("ok ") {
                if name.contains("# SKIP") {
                    tap.skipped += 1;
                } else {
                    tap.passed += 1;
                }
            }
        }
        tap
    }

    /// Whether every announced test passed.
    pub fn all_passed(&self) -> bool {
        self.failed.is_empty() && self.skipped == 0 && self.planned == Some(self.passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_counted_as_the_kernel_tells_them() {
        let tap = Tap::parse(
            "TAP version 13\n1..4\n# Starting 4 tests\nok 1 a.b\nnot ok 2 a.c\nok 3 a.d # SKIP no device\nok 4 a.e\n# Totals: pass:2\n",
        );
        assert_eq!(tap.planned, Some(4));
        assert_eq!((tap.passed, tap.skipped), (2, 1));
        assert_eq!(tap.failed, ["2 a.c"]);
        assert!(!tap.all_passed());
        assert!(Tap::parse("1..1\nok 1 a\n").all_passed());
        assert!(!Tap::parse("1..2\nok 1 a\n").all_passed(), "it ended early");
        assert!(!Tap::parse("").all_passed(), "it said nothing");
    }
}
