//! Writes what is generated from the catalogue of metrics: the dashboards, the rules and the reference page.
//!
//! `cargo xtask dashboards` runs it.

mod fleet;
mod grafana;
mod host;
mod policy;
mod rules;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use lu_user::metrics::catalogue::{self, Metric};

fn main() -> Result<()> {
    let mut folders = std::env::args_os().skip(1).map(PathBuf::from);
    let [dashboards, docs] = [(); 2].map(|()| folders.next());
    let dashboards = dashboards.context("no folder for the dashboards")?;
    let docs = docs.context("no folder for the documents")?;
    let boards = [fleet::board(), host::board(), policy::board()];
    for board in &boards {
        let text = serde_json::to_string_pretty(&board.json())? + "\n";
        fs::write(dashboards.join(format!("{}.json", board.name)), text)?;
    }
    fs::write(dashboards.join("rules.yml"), rules::yaml())?;
    fs::write(docs.join("metrics.md"), catalogue::reference())?;
    Ok(())
}

/// The series of a metric, as a query has them.
fn of(metric: &Metric, selector: &str) -> String {
    format!("{}{{{selector}}}", metric.series())
}
