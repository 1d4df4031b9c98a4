//! The policy that `lu run` puts in force.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use aya::maps::{MapData, RingBuf};
use lu_common::event::{Kind, Record};
use lu_user::attach::KernelPlace;
use lu_user::enforce::{Enforcer, pins};
use lu_user::export::{InForceJson, duration};
use lu_user::journal::clocks;
use lu_user::policy::{Compiled, Machine, Source, compile};
use lu_user::socket::PolicyJson;

/// A policy in force.
pub struct Guard {
    path: PathBuf,
    enforcer: Enforcer,
    compiled: Compiled,
    generation: u64,
    is_gone: bool,
}

impl Guard {
    /// Puts the policy of a file in force, and proves that it bites.
    pub fn new(path: PathBuf, place: Option<&KernelPlace>) -> Result<Self> {
        let compiled = read(&path)?;
        let Some(place) = place else {
            bail!(
                "this machine's kernel has no orchestrator that a policy could be enforced on; an emulated one asks \
                 the policy itself: lu emulate --policy {}",
                path.display()
            );
        };
        let mut enforcer =
            Enforcer::new(place, compiled.persist).context("no policy is in force")?;
        let before = enforcer.in_force()?.map(|before| before.policy.generation);
        let generation = enforcer.apply(&compiled)?;
        match enforcer.prove() {
            Err(error) if compiled.policy.enforce != 0 => {
                if before.is_none() {
                    enforcer.unpin()?;
                }
                return Err(error).context("no policy is in force");
            }
            Err(error) => eprintln!("lu: {error}; the policy tells nothing"),
            Ok(()) => {}
        }
        let guard = Self {
            path,
            enforcer,
            compiled,
            generation,
            is_gone: false,
        };
        guard.say();
        match before {
            Some(before) => eprintln!("lu: it took over from generation {before} without a gap"),
            None => say_unprotected(),
        }
        Ok(guard)
    }

    fn say(&self) {
        let rules = self.compiled.rules.len();
        let enforced = self.compiled.policy.enforce.count_ones();
        eprintln!(
            "lu: policy {} in force, generation {}: {rules} rules, {enforced} of them enforced by the kernel (BPF LSM){}",
            self.path.display(),
            self.generation,
            if self.compiled.persist {
                ", until lu policy detach"
            } else {
                ""
            }
        );
        for warning in &self.compiled.warnings {
            eprintln!("lu: {warning}");
        }
    }

    /// The policy in force, and its generation; `None` if somebody took it off.
    pub fn in_force(&mut self) -> Option<(&Compiled, u64)> {
        self.look();
        (!self.is_gone).then_some((&self.compiled, self.generation))
    }

    /// Reads the file again; where it is no policy, or cannot be put in force, what was stays so. Whether it was put
    /// in force.
    pub fn reload(&mut self) -> bool {
        let reloaded = read(&self.path).and_then(|compiled| {
            self.generation = self.enforcer.apply(&compiled)?;
            if let Err(error) = self.enforcer.prove() {
                eprintln!("lu: {error}");
            }
            if compiled.persist != self.compiled.persist {
                eprintln!("lu: whether it persists is settled when lu run starts");
            }
            self.compiled = Compiled {
                persist: self.compiled.persist,
                ..compiled
            };
            Ok(())
        });
        let done = reloaded.is_ok();
        match reloaded {
            Ok(()) => self.say(),
            Err(error) => {
                eprintln!("{}", super::told(&error));
                eprintln!("lu: generation {} stays in force", self.generation);
            }
        }
        done
    }

    /// Where the verdicts come.
    pub fn take_verdicts(&mut self) -> Option<RingBuf<MapData>> {
        self.enforcer.take_verdicts()
    }

    /// Says, once, that what was to persist was taken off by somebody else.
    pub fn look(&mut self) {
        if !self.is_gone && self.compiled.persist && !pins::folder().exists() {
            self.is_gone = true;
            eprintln!(
                "lu: the policy was taken off (lu policy detach), and nobody judges any more; lu run --policy started \
                 anew puts one in force"
            );
        }
    }

    /// What is in force, as far as the kernel says.
    pub fn status(&self) -> PolicyJson {
        let in_force = self.enforcer.in_force().ok().flatten();
        let account = self.enforcer.account().ok();
        let untold = self.enforcer.untold().ok();
        PolicyJson {
            file: self.path.display().to_string(),
            in_force: in_force.map(|in_force| {
                InForceJson::new(Some(&in_force), account.as_ref(), untold.as_ref())
            }),
        }
    }

    /// What could not be told since this was last asked, if anything.
    pub fn untold(&mut self) -> Option<Record> {
        // Nothing more than this can be done about it.
        let new = self.enforcer.tell_untold().ok()?;
        (!new.is_nothing())
            .then(|| Record::made(Kind::Untold, clocks::now_ns(), zerocopy::transmute!(new)))
    }
}

/// For how long this kernel ran programs before a policy was in force.
fn say_unprotected() {
    let init_ns = clocks::anchor().anchor().map(|anchor| anchor.init_ns);
    let since = init_ns
        .filter(|init_ns| *init_ns > 0)
        .and_then(|init_ns| clocks::now_ns().checked_sub(init_ns));
    eprintln!(
        "lu: before that this kernel ran programs for {}, and nobody judged",
        since.map_or_else(|| "an unknown time".to_owned(), duration)
    );
}

fn read(path: &std::path::Path) -> Result<Compiled> {
    Ok(compile(&Source::read(path)?, &Machine)?)
}
