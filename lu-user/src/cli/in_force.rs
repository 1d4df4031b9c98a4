//! `lu policy apply`, `status` and `detach`: what is in force on this machine, whether a lu runs or not.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use lu_user::enforce::{Enforcer, pins};
use lu_user::export::InForceJson;
use lu_user::policy::{Machine, Source, compile};

/// Put another policy in force where one persists, in one step.
///
/// Without a policy with `persist = true` nothing is there that this could be done to: a running `lu run --policy`
/// reads its file again at SIGHUP.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  lu policy apply /etc/lu/policy.toml\n\nExit status: 0 it is in force, 1 it is not, 2 it is no policy."
)]
pub struct Apply {
    /// The policy.
    file: PathBuf,
}

/// Tell which policy persists in the kernel, and how often each rule has decided.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  lu policy status\n  lu policy status --json | jq .generation\n\nExit status: 0 one is in force, 1 none is."
)]
pub struct Status {
    /// The same as one JSON document, schema lu.policy.status/1.
    #[arg(long)]
    json: bool,
}

/// Take off what persists: from then on nobody judges.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  lu policy detach\n\nExit status: 0 nothing is in force any more, 1 it could not be taken off."
)]
pub struct Detach {}

/// How long the kernel may take to let go of programs.
const PATIENCE: Duration = Duration::from_secs(10);

/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(10);

impl Apply {
    pub fn run(&self) -> Result<ExitCode> {
        let compiled = compile(&Source::read(&self.file)?, &Machine)?;
        let Some(mut enforcer) = Enforcer::pinned()? else {
            bail!(
                "no policy persists on this machine; `lu run --policy` puts one in force, and keeps it there with \
                 persist = true"
            );
        };
        let generation = enforcer.apply(&compiled)?;
        enforcer
            .prove()
            .with_context(|| format!("generation {generation} is in force, and does not bite"))?;
        for warning in &compiled.warnings {
            eprintln!("lu: {warning}");
        }
        println!(
            "{} is in force, generation {generation}: {} rules, {} of them enforced",
            self.file.display(),
            compiled.rules.len(),
            compiled.policy.enforce.count_ones()
        );
        Ok(ExitCode::SUCCESS)
    }
}

impl Status {
    pub fn run(&self) -> Result<ExitCode> {
        let enforcer = Enforcer::pinned()?;
        let in_force = enforcer
            .as_ref()
            .map(Enforcer::in_force)
            .transpose()?
            .flatten();
        let account = enforcer.as_ref().map(Enforcer::account).transpose()?;
        let left = enforcer.as_ref().map(Enforcer::untold).transpose()?;
        let told = InForceJson::new(in_force.as_deref(), account.as_ref(), left.as_ref());
        let mut out = std::io::stdout().lock();
        if self.json {
            serde_json::to_writer_pretty(&mut out, &told).map_err(std::io::Error::from)?;
            writeln!(out)?;
        } else {
            write!(out, "{}", told.text())?;
        }
        Ok(if told.generation.is_some() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

impl Detach {
    #[expect(clippy::unused_self, reason = "as all commands are run")]
    pub fn run(&self) -> Result<ExitCode> {
        let enforcer = Enforcer::pinned()?;
        let pinned = pins::all()?;
        for folder in &pinned {
            pins::remove(folder)?;
        }
        if let Some(mut enforcer) = enforcer {
            let begin = Instant::now();
            // The kernel lets go of them a little later.
            while enforcer.self_test().is_ok() {
                if begin.elapsed() > PATIENCE {
                    bail!("they are taken off, and still in force: somebody else holds them");
                }
                thread::sleep(PAUSE);
            }
        }
        println!(
            "{}",
            if pinned.is_empty() {
                "nothing was in force that persists"
            } else {
                "taken off; nobody judges any more"
            }
        );
        Ok(ExitCode::SUCCESS)
    }
}
