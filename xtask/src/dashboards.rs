//! What is generated from the catalogue of metrics: dashboards, rules, and the reference page.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::{build, sh};

/// Where each stands: its folder in the workspace, and its name.
const FILES: [(&str, &str); 5] = [
    ("dashboards", "fleet.json"),
    ("dashboards", "host.json"),
    ("dashboards", "policy.json"),
    ("dashboards", "rules.yml"),
    ("docs", "metrics.md"),
];

/// Writes them.
pub fn write() -> Result<()> {
    let root = sh::root();
    generate(&root.join("dashboards"), &root.join("docs"))
}

/// Fails if what is there is not what would be written.
pub fn check() -> Result<()> {
    let fresh = tempfile::tempdir()?;
    generate(fresh.path(), fresh.path())?;
    for (folder, name) in FILES {
        let here = sh::root().join(folder).join(name);
        let read = |path: PathBuf| {
            fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        ensure!(
            read(here)? == read(fresh.path().join(name))?,
            "{folder}/{name} is not what the catalogue makes of it: cargo xtask dashboards"
        );
    }
    Ok(())
}

fn generate(dashboards: &Path, docs: &Path) -> Result<()> {
    let example = build::tested("--example", "dashboards")?;
    sh::run_quietly(sh::command(example).arg(dashboards).arg(docs))
}
