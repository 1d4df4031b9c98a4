//! What `lu run --check` tells.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use caps::{CapSet, CapsHashSet};
use lu_user::attach::{self, Attached, KernelPlace};
use lu_user::enforce;
use lu_user::journal::{self, Journal};
use lu_user::policy::{Machine, Source, compile};
use serde::Serialize;

use super::watch::{self, Watch};

/// The value of the field `schema`.
const SCHEMA: &str = "lu.run.check/1";

/// What was tried, in order.
#[derive(Default)]
pub struct Check {
    tried: Vec<Tried>,
}

#[derive(Serialize)]
struct Tried {
    name: &'static str,
    ok: bool,
    detail: String,
}

impl Check {
    /// One more that was tried.
    pub fn add(&mut self, name: &'static str, result: Result<String>) {
        let ok = result.is_ok();
        let detail = result.unwrap_or_else(|error| match super::refused(&error) {
            Some(refused) => refused.render(false),
            None => format!("{error:#}"),
        });
        self.tried.push(Tried { name, ok, detail });
    }

    /// A journal that is being written is in order: the service may be running meanwhile.
    pub fn journal(&mut self, folder: &Path, opened: Result<Journal, journal::Error>) {
        let result = match opened {
            Ok(_) => Ok(folder.display().to_string()),
            Err(journal::Error::Taken(folder)) => Ok(format!(
                "{}, where another lu run writes now",
                folder.display()
            )),
            Err(error) => Err(error.into()),
        };
        self.add("journal", result);
    }

    /// The policy, the hooks, and the end of all privileges.
    pub fn watch(&mut self, watch: &Watch, policy: Option<&Path>) {
        let orchestrators = watch::orchestrators();
        let place = attach::place_among(&orchestrators);
        let found = match &place {
            Ok(Some(_)) => Ok("the kernel's".to_owned()),
            Ok(None) => Ok("emulated".to_owned()),
            Err(error) => Err(anyhow::anyhow!("{error}")),
        };
        self.add("orchestrator", found);
        let place = place.ok().flatten();
        if let Some(policy) = policy {
            self.add("policy", judge(policy, place.as_ref()));
        }
        let attached = watch.attach(place.as_ref(), &orchestrators);
        let hooks = attached.map_err(anyhow::Error::from);
        self.add("hooks", hooks.and_then(|attached| all(&attached)));
        self.add("privileges", give_up(policy.is_some()));
    }

    /// Prints it. Exit status 0 where all works, else 1.
    pub fn tell(&self, json: bool) -> Result<ExitCode> {
        let ok = self.tried.iter().all(|tried| tried.ok);
        if json {
            let document = serde_json::json!({
                "schema": SCHEMA,
                "ok": ok,
                "checks": self.tried,
            });
            println!("{}", serde_json::to_string_pretty(&document)?);
        } else {
            for Tried { name, ok, detail } in &self.tried {
                let detail = detail.replace('\n', "\n    ");
                println!("{}  {name:<13} {detail}", if *ok { "ok" } else { "no" });
            }
            println!(
                "{}",
                if ok {
                    "lu run works"
                } else {
                    "lu run would not do all of that"
                }
            );
        }
        Ok(ExitCode::from(u8::from(!ok)))
    }
}

/// Reads the policy and has the kernel verify what would enforce it.
fn judge(path: &Path, place: Option<&KernelPlace>) -> Result<String> {
    let compiled = compile(&Source::read(path)?, &Machine)?;
    let Some(place) = place else {
        bail!("this machine's kernel has no orchestrator that a policy could be enforced on");
    };
    let verified = enforce::verify(place).context("the kernel refuses the policy's programs")?;
    let mut detail = format!(
        "{}: {} rules, {} programs verified",
        path.display(),
        compiled.rules.len(),
        verified.len()
    );
    for warning in &compiled.warnings {
        detail.push('\n');
        detail.push_str(warning);
    }
    Ok(detail)
}

fn all(attached: &Attached) -> Result<String> {
    let (count, hooks) = (attached.count(), attached.coverage.len());
    let missing: Vec<String> = attached
        .missing()
        .map(|(hook, why)| {
            format!(
                "\n{}: {why}; unknown without it: {}",
                hook.function, hook.tells
            )
        })
        .collect();
    let told = format!("{count} of {hooks} attached{}", missing.concat());
    ensure!(missing.is_empty(), "{told}");
    Ok(told)
}

fn give_up(keeps_policy: bool) -> Result<String> {
    watch::give_up_privileges(keeps_policy)?;
    let mut kept: Vec<String> = Vec::new();
    for set in [CapSet::Permitted, CapSet::Effective] {
        let left: CapsHashSet = caps::read(None, set)?;
        kept.extend(left.iter().map(ToString::to_string));
    }
    kept.sort();
    kept.dedup();
    Ok(match &*kept {
        [] => "none is kept".to_owned(),
        kept => format!("kept: {}", kept.join(", ")),
    })
}
