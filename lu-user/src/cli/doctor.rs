//! `lu doctor`.

use std::process::ExitCode;

use anyhow::{Result, anyhow};
use lu_user::doctor::{Diagnosis, Verdict, diagnose, prototypes};

/// Tell what this machine allows: BTF, each type of BPF program really tried, security modules, the
/// orchestrator and its interface, and which hooks can be attached.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  lu doctor\n  lu doctor --hooks   each hook's prototype, held against the running kernel's types\n  lu doctor --json | jq '.hooks[] | select(.error)'\n\nExit status: 0 ready, 1 degraded (something is missing or changed, and named), 2 unusable."
)]
pub struct Args {
    /// Check the prototype that each hook relies on against the running kernel's BTF, and nothing else.
    #[arg(long)]
    hooks: bool,
    /// The same as one JSON document.
    #[arg(long)]
    json: bool,
}

impl Args {
    pub fn run(&self) -> Result<ExitCode> {
        if self.hooks {
            return self.check_hooks();
        }
        let diagnosis = diagnose();
        if self.json {
            println!("{}", serde_json::to_string_pretty(&diagnosis)?);
        } else {
            print(&diagnosis);
        }
        Ok(ExitCode::from(match diagnosis.verdict {
            Verdict::Ready => 0,
            Verdict::Degraded => 1,
            Verdict::Unusable => 2,
        }))
    }

    fn check_hooks(&self) -> Result<ExitCode> {
        let (interface, checked) = prototypes()
            .map_err(|error| anyhow!("this kernel does not tell its types: {error}"))?;
        let same = checked.iter().filter(|hook| hook.verdict == "same").count();
        if self.json {
            let document = serde_json::json!({
                "schema": "lu.doctor.hooks/1",
                "interface": interface.name(),
                "hooks": checked,
            });
            println!("{}", serde_json::to_string_pretty(&document)?);
        } else {
            for hook in &checked {
                println!("{:<9}{} {}", hook.verdict, hook.function, hook.expected);
                if hook.verdict != "same" {
                    println!(
                        "         this kernel: {}; unknown without it: {}",
                        hook.found.as_deref().unwrap_or("no such function"),
                        hook.tells
                    );
                }
            }
            println!(
                "{same} of {} functions are as lu expects them (interface {})",
                checked.len(),
                interface.name()
            );
        }
        Ok(ExitCode::from(match same {
            0 => 2,
            same if same == checked.len() => 0,
            _ => 1,
        }))
    }
}

fn print(diagnosis: &Diagnosis) {
    println!("kernel {}", diagnosis.kernel);
    for check in &diagnosis.checks {
        let errno = check
            .errno
            .as_ref()
            .map_or_else(String::new, |errno| format!("{errno}: "));
        println!(
            "{:<4}{:<16}{errno}{}",
            match (check.ok, check.needed) {
                (true, _) => "ok",
                (false, true) => "no",
                (false, false) => "-",
            },
            check.name,
            check.detail
        );
    }
    let orchestrator = &diagnosis.orchestrator;
    match (orchestrator.kind, orchestrator.interface) {
        (Some(kind), interface) => println!(
            "ok  orchestrator    {kind}, interface {}{}",
            interface.unwrap_or("unknown"),
            match orchestrator.processes[..] {
                [] => String::new(),
                ref pids => format!(", processes {pids:?}"),
            }
        ),
        (None, _) => println!(
            "no  orchestrator    neither the kernel's nor an emulated one; `lu emulate` starts one"
        ),
    }
    let attached = diagnosis
        .hooks
        .iter()
        .filter(|hook| hook.attached.is_some());
    println!(
        "{}  hooks           {} of {} attach",
        if attached.clone().count() == diagnosis.hooks.len() {
            "ok"
        } else {
            "no"
        },
        attached.count(),
        diagnosis.hooks.len()
    );
    for hook in &diagnosis.hooks {
        if let Some(error) = &hook.error {
            println!(
                "      {}: {error}; unknown without it: {}",
                hook.function, hook.tells
            );
        }
    }
    println!(
        "{}",
        match diagnosis.verdict {
            Verdict::Ready => "ready",
            Verdict::Degraded => "degraded",
            Verdict::Unusable => "unusable",
        }
    );
}
