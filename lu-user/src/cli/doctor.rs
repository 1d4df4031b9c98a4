//! `lu doctor`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use lu_user::attach::allowed::{BTF, LSM_LIST, try_all};
use lu_user::attach::{RING_BUFFER, attach};
use lu_user::export::errno_name;
use lu_user::orchestrator::{self, Orchestrator};
use serde::Serialize;

/// Tell what this machine allows: BTF, each type of BPF program really tried, security modules, the
/// orchestrator, and which hooks can be attached.
#[derive(clap::Args)]
#[command(
    after_help = "Exit status: 0 ready, 1 degraded (something is missing, and named), 2 unusable."
)]
pub struct Args {
    /// The same as one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Diagnosis {
    schema: &'static str,
    verdict: &'static str,
    kernel: String,
    checks: Vec<Check>,
    orchestrator: OrchestratorJson,
    hooks: Vec<HookJson>,
}

#[derive(Serialize)]
struct Check {
    name: &'static str,
    ok: bool,
    /// Whether lu has a use for it; what it has none for counts for nothing in the verdict.
    needed: bool,
    errno: Option<String>,
    detail: String,
}

#[derive(Serialize)]
struct OrchestratorJson {
    kind: Option<&'static str>,
    interface: Option<&'static str>,
    processes: Vec<u32>,
}

#[derive(Serialize)]
struct HookJson {
    function: &'static str,
    attached: Option<&'static str>,
    error: Option<String>,
    tells: &'static str,
}

impl Args {
    pub fn run(&self) -> Result<ExitCode> {
        let diagnosis = diagnose();
        if self.json {
            println!("{}", serde_json::to_string_pretty(&diagnosis)?);
        } else {
            print(&diagnosis);
        }
        Ok(ExitCode::from(match diagnosis.verdict {
            "ready" => 0,
            "degraded" => 1,
            _ => 2,
        }))
    }
}

fn diagnose() -> Diagnosis {
    let mut checks = vec![
        path_check("BTF", BTF),
        lsm_list(),
        path_check("FUSE", "/dev/fuse"),
    ];
    match try_all() {
        Ok(tried) => checks.extend(tried.into_iter().map(|tried| {
            Check {
                name: tried.program_type,
                ok: tried.refused.is_none(),
                needed: tried.needed_for.is_some(),
                errno: tried
                    .refused
                    .as_ref()
                    .and_then(|(errno, _)| errno.map(errno_name)),
                detail: tried.refused.map_or_else(
                    || tried.needed_for.unwrap_or("not used by lu").to_owned(),
                    |(_, error)| error,
                ),
            }
        })),
        Err(error) => checks.push(Check {
            name: "BPF",
            ok: false,
            needed: true,
            errno: None,
            detail: format!("{error}"),
        }),
    }
    let (orchestrator, places) = orchestrators();
    let hooks: Vec<HookJson> = match attach(&places, RING_BUFFER) {
        Ok(attached) => attached
            .coverage
            .into_iter()
            .map(|outcome| HookJson {
                function: outcome.hook.function,
                attached: outcome.attached.as_ref().ok().copied(),
                error: outcome.attached.err(),
                tells: outcome.hook.tells,
            })
            .collect(),
        Err(error) => {
            checks.push(Check {
                name: "hooks",
                ok: false,
                needed: true,
                errno: None,
                detail: format!("{error}"),
            });
            Vec::new()
        }
    };
    let attached = hooks.iter().filter(|hook| hook.attached.is_some()).count();
    let verdict = if attached == 0 {
        "unusable"
    } else if attached < hooks.len()
        || orchestrator.kind.is_none()
        || checks.iter().any(|check| check.needed && !check.ok)
    {
        "degraded"
    } else {
        "ready"
    };
    Diagnosis {
        schema: "lu.doctor/1",
        verdict,
        kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")
            .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned()),
        checks,
        orchestrator,
        hooks,
    }
}

fn path_check(name: &'static str, path: &str) -> Check {
    let found = Path::new(path).metadata();
    Check {
        name,
        ok: found.is_ok(),
        needed: true,
        errno: found
            .as_ref()
            .err()
            .and_then(std::io::Error::raw_os_error)
            .map(errno_name),
        detail: path.to_owned(),
    }
}

/// An LSM program attaches where `bpf` is not in this list, and then never runs.
fn lsm_list() -> Check {
    let list = std::fs::read_to_string(LSM_LIST);
    Check {
        name: "LSM list",
        ok: list
            .as_ref()
            .is_ok_and(|list| list.trim().split(',').any(|module| module == "bpf")),
        needed: true,
        errno: list
            .as_ref()
            .err()
            .and_then(std::io::Error::raw_os_error)
            .map(errno_name),
        detail: list.map_or_else(
            |_| format!("{LSM_LIST} cannot be read (securityfs is not mounted, or not there)"),
            |list| list.trim().to_owned(),
        ),
    }
}

fn orchestrators() -> (OrchestratorJson, Vec<Orchestrator>) {
    let places = if orchestrator::in_kernel() {
        vec![Orchestrator::Kernel]
    } else {
        orchestrator::emulated()
    };
    let processes: Vec<u32> = places
        .iter()
        .flat_map(|place| match place {
            Orchestrator::Emulated { running, .. } => running.clone(),
            Orchestrator::Kernel => Vec::new(),
        })
        .collect();
    let present = places
        .iter()
        .find(|place| **place == Orchestrator::Kernel || !processes.is_empty());
    let json = OrchestratorJson {
        kind: present.map(Orchestrator::name),
        interface: present
            .and_then(Orchestrator::interface)
            .map(lu_common::uapi::Interface::name),
        processes,
    };
    (json, places)
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
    println!("{}", diagnosis.verdict);
}
