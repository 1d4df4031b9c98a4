//! `lu policy apply`, `status` and `detach`: what is in force on this machine, whether a lu runs or not.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use lu_common::event::{RuleName, Section};
use lu_common::policy::{Decision, InForce, RULES};
use lu_user::enforce::{Enforcer, pins};
use lu_user::export::untold;
use lu_user::policy::{Machine, Source, compile, hexadecimal};
use lu_user::timeline::shown;
use serde::Serialize;

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

/// What is in force.
#[derive(Serialize)]
struct Told {
    schema: &'static str,
    /// Null where nothing is.
    generation: Option<u64>,
    /// Of its file, in hex.
    sha256: Option<String>,
    /// In the order of their numbers; the last one counts where no rule decided.
    rules: Vec<ToldRule>,
    /// What is preserved, as the kernel counts it.
    files: Option<u64>,
    /// In bytes.
    bytes: Option<u64>,
    /// How many sessions there are that nobody counted.
    uncounted_sessions: Option<u64>,
    /// Verdicts that were lost for want of room.
    lost: Option<u64>,
    /// Requests that were let through unjudged for want of room.
    unjudged: Option<u64>,
}

#[derive(Serialize)]
struct ToldRule {
    /// Null: no rule decided.
    name: Option<String>,
    section: Option<&'static str>,
    enforced: Option<bool>,
    allow: u64,
    would_deny: u64,
    deny: u64,
    /// Of these, those where something was unknown.
    unsure: u64,
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
        let told = Told {
            schema: "lu.policy.status/1",
            generation: in_force.as_ref().map(|in_force| in_force.policy.generation),
            sha256: in_force
                .as_ref()
                .map(|in_force| hexadecimal(&in_force.sha256)),
            rules: in_force.as_deref().map(rules).unwrap_or_default(),
            files: account.map(|account| account.usage.files),
            bytes: account.map(|account| account.usage.bytes),
            uncounted_sessions: account.map(|account| account.unknown),
            lost: left.map(|left| left.ring_full),
            unjudged: left.map(|left| left.unjudged),
        };
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

fn rules(in_force: &InForce) -> Vec<ToldRule> {
    let named = |name: &RuleName| !name.name.starts_with(&[0]);
    in_force
        .counts
        .iter()
        .enumerate()
        .filter_map(|(number, counts)| {
            let name = in_force.names.get(number);
            // The last one is none.
            if number < RULES && !name.is_some_and(named) {
                return None;
            }
            let decided = |decision: Decision| counts.decided[decision as usize];
            Some(ToldRule {
                name: name.map(|name| shown(&name.name)),
                section: name
                    .and_then(|name| Section::from_raw(name.section))
                    .map(Section::name),
                enforced: name.map(|name| name.is_enforced != 0),
                allow: decided(Decision::Allow),
                would_deny: decided(Decision::WouldDeny),
                deny: decided(Decision::Deny),
                unsure: counts.unsure,
            })
        })
        .collect()
}

impl Told {
    fn text(&self) -> String {
        let (Some(generation), Some(sha256)) = (self.generation, &self.sha256) else {
            return "no policy persists on this machine\n".to_owned();
        };
        let mut text =
            format!("generation {generation}, sha256 {sha256}, enforced by the kernel (BPF LSM)\n");
        let mut line = |line: String| {
            text.push_str(&line);
            text.push('\n');
        };
        if let (Some(files), Some(bytes)) = (self.files, self.bytes) {
            line(format!(
                "{files} files of {} are preserved{}",
                bytesize::ByteSize(bytes),
                match self.uncounted_sessions {
                    Some(count @ 1..) =>
                        format!(", and what is in {count} sessions that nobody counted"),
                    _ => String::new(),
                }
            ));
        }
        line(format!(
            "{:<10}{:<9}{:>9}{:>12}{:>9}{:>9}  {}",
            "section", "mode", "allow", "would-deny", "deny", "unsure", "rule"
        ));
        for rule in &self.rules {
            line(format!(
                "{:<10}{:<9}{:>9}{:>12}{:>9}{:>9}  {}",
                rule.section.unwrap_or(""),
                match rule.enforced {
                    Some(true) => "enforce",
                    Some(false) => "monitor",
                    None => "",
                },
                rule.allow,
                rule.would_deny,
                rule.deny,
                rule.unsure,
                rule.name.as_deref().unwrap_or("(no rule)")
            ));
        }
        if let (Some(lost), Some(unjudged)) = (self.lost, self.unjudged)
            && let Some(untold) = untold(lost, unjudged)
        {
            line(untold);
        }
        text
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
