//! What this machine allows, and what that means for lu.

use std::path::Path;

use lu_common::uapi::Interface;
use serde::Serialize;

use crate::attach::allowed::{BTF, LSM_LIST, try_all};
use crate::attach::{Detail, Hook, RING_BUFFER, Types, attach, hooks, interface_of, place_among};
use crate::export::errno_name;
use crate::orchestrator::{self, Orchestrator};

/// All that was found out.
#[derive(Debug, Serialize)]
pub struct Diagnosis {
    /// `lu.doctor/1`.
    pub schema: &'static str,
    /// What it comes to.
    pub verdict: Verdict,
    /// The running kernel's release.
    pub kernel: String,
    /// Parts of the kernel, and types of BPF programs.
    pub checks: Vec<Check>,
    /// The orchestrator.
    pub orchestrator: Found,
    /// What became of each hook.
    pub hooks: Vec<HookJson>,
}

/// What it comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Everything is there.
    Ready,
    /// Something is missing, and named.
    Degraded,
    /// Nothing can be watched.
    Unusable,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// Whether it is there.
    pub ok: bool,
    /// Whether lu has a use for it; what it has none for counts for nothing in the verdict.
    pub needed: bool,
    /// The errno's name, where there was one.
    pub errno: Option<String>,
    /// Where, or what for, or the whole error.
    pub detail: String,
}

/// The orchestrator that was found.
#[derive(Debug, Serialize)]
pub struct Found {
    /// `kernel` or `emulated`; null: none.
    pub kind: Option<&'static str>,
    /// `v3` or `sessions`; null where it is not known.
    pub interface: Option<&'static str>,
    /// The emulators that run.
    pub processes: Vec<u32>,
}

/// One hook.
#[derive(Debug, Serialize)]
pub struct HookJson {
    /// The interface that it belongs to.
    pub interface: &'static str,
    /// The function, by the kernel's name.
    pub function: &'static str,
    /// How it attaches; null: not at all.
    pub attached: Option<&'static str>,
    /// Why not.
    pub error: Option<String>,
    /// What is unknown without it.
    pub tells: &'static str,
}

/// A hook's function, held against the running kernel's types.
#[derive(Debug, Serialize)]
pub struct Prototype {
    /// The function.
    pub function: &'static str,
    /// The prototype that the hook's programs rely on.
    pub expected: &'static str,
    /// What the kernel's types say; null: there is no such function in them.
    pub found: Option<String>,
    /// `same`, `changed` or `missing`.
    pub verdict: &'static str,
    /// What is unknown without it.
    pub tells: &'static str,
}

/// Tries everything. Nothing stays attached.
#[must_use]
pub fn diagnose() -> Diagnosis {
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
    let attached = place_among(&places)
        .and_then(|place| attach(place.as_ref(), &places, RING_BUFFER, Detail::Callbacks));
    let hooks: Vec<HookJson> = match attached {
        Ok(attached) => attached
            .coverage
            .into_iter()
            .map(|outcome| HookJson {
                interface: outcome.interface.name(),
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
        Verdict::Unusable
    } else if attached < hooks.len()
        || orchestrator.kind.is_none()
        || checks.iter().any(|check| check.needed && !check.ok)
    {
        Verdict::Degraded
    } else {
        Verdict::Ready
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

/// Holds each hook's prototype against the kernel's types: the hooks of the kernel's interface, or of
/// sessions where it has none. The error says why there are no types.
pub fn prototypes() -> Result<(Interface, Vec<Prototype>), String> {
    let types = Types::of_kernel()?;
    let interface = interface_of(&types).unwrap_or(Interface::Sessions);
    let checked = hooks(interface)
        .iter()
        .filter(|hook| hook.is_in_kernel())
        .map(|hook| prototype(hook, &types))
        .collect();
    Ok((interface, checked))
}

fn prototype(hook: &'static Hook, types: &Types) -> Prototype {
    let found = types.prototype(hook.function);
    Prototype {
        function: hook.function,
        expected: hook.prototype,
        verdict: match &found {
            None => "missing",
            Some(found) if found == hook.prototype => "same",
            Some(_) => "changed",
        },
        found,
        tells: hook.tells,
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

fn orchestrators() -> (Found, Vec<Orchestrator>) {
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
    let json = Found {
        kind: present.map(Orchestrator::name),
        interface: present
            .filter(|place| **place == Orchestrator::Kernel)
            .and_then(|_| interface_of(&Types::of_kernel().ok()?))
            .map(Interface::name),
        processes,
    };
    (json, places)
}
