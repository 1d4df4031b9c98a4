//! Hooks on the kernel's own orchestrator: by fentry and fexit, else by kprobe and kretprobe.

use std::collections::BTreeMap;

use aya::programs::{FEntry, FExit, KProbe};
use aya::{Btf, Ebpf};
use lu_common::event::FileKind;
use lu_common::layout::{ABSENT, Offsets};
use lu_common::uapi::Interface;

use super::symbols::file_operations;
use super::types::Types;
use super::{Detail, Error, Hook, Outcome, chain, hooks, program};

/// The kernel's orchestrator, as its types tell it.
pub struct KernelPlace {
    /// Its interface.
    pub interface: Interface,
    /// Where things are.
    pub offsets: Offsets,
    /// The addresses by which files tell their kind.
    pub file_operations: Vec<(u64, FileKind)>,
    /// The functions whose prototype is another one than the hooks rely on, and which.
    pub changed: BTreeMap<&'static str, String>,
    /// All of the kernel's types.
    pub types: Types,
}

/// Looks the kernel's orchestrator up in the kernel's types.
pub fn place() -> Result<KernelPlace, Error> {
    let types = Types::of_kernel().map_err(Error::Unknown)?;
    let interface = interface_of(&types).ok_or_else(|| {
        Error::Unknown("the orchestrator is of another version, or built without BTF".to_owned())
    })?;
    let mut offsets = types.offsets();
    let file_operations = file_operations();
    // Without the operations' addresses the kind is unknown, and a guess would be wrong.
    if file_operations.is_empty() {
        offsets.file_f_op = ABSENT;
    }
    let changed = hooks(interface)
        .iter()
        .filter_map(|hook| Some((hook, types.prototype(hook.function)?)))
        .filter(|(hook, found)| found != hook.prototype)
        .map(|(hook, found)| (hook.function, found))
        .collect();
    Ok(KernelPlace {
        interface,
        offsets,
        file_operations,
        changed,
        types,
    })
}

/// The interface that a kernel with these types has.
#[must_use]
pub fn interface_of(types: &Types) -> Option<Interface> {
    if types.has_function("luo_session_create") {
        Some(Interface::Sessions)
    } else {
        types
            .has_function("luo_register_file")
            .then_some(Interface::V3)
    }
}

impl KernelPlace {
    /// What the types lack of what the hooks read.
    #[must_use]
    pub fn unknown_members(&self) -> Vec<(&'static str, &'static str)> {
        Offsets::MEMBERS
            .iter()
            .zip(self.offsets.list())
            .filter(|(_, offset)| *offset == ABSENT)
            .map(|(member, _)| *member)
            .collect()
    }
}

/// Attaches every hook of the interface up to `detail`.
pub fn attach(ebpf: &mut Ebpf, place: &KernelPlace, detail: Detail) -> Vec<Outcome> {
    let btf = Btf::from_sys_fs().map_err(|error| chain(&error));
    hooks(place.interface)
        .iter()
        .filter(|hook| hook.is_in_kernel() && hook.detail <= detail)
        .map(|hook| Outcome {
            interface: place.interface,
            hook,
            attached: match place.changed.get(hook.function) {
                // Its arguments would be taken for something else.
                Some(found) => Err(format!(
                    "in this kernel it is {found}, and lu knows {}",
                    hook.prototype
                )),
                None => by_fentry(ebpf, hook, &btf)
                    .map(|()| "fentry")
                    .or_else(|fentry| {
                        by_kprobe(ebpf, hook)
                            .map(|()| "kprobe")
                            .map_err(|kprobe| format!("fentry: {fentry}; kprobe: {kprobe}"))
                    }),
            },
        })
        .collect()
}

fn by_fentry(ebpf: &mut Ebpf, hook: &Hook, btf: &Result<Btf, String>) -> Result<(), String> {
    let btf = btf.as_ref().map_err(Clone::clone)?;
    let name = format!("fentry_{}", hook.program);
    if !hook.at_exit {
        let entry: &mut FEntry = program(ebpf, &name)?;
        entry
            .load(hook.function, btf)
            .and_then(|()| entry.attach())
            .map_err(|error| chain(&error))?;
    }
    if !hook.exit {
        return Ok(());
    }
    let exit: &mut FExit = program(ebpf, &format!("fexit_{}", hook.program))?;
    let attached = exit
        .load(hook.function, btf)
        .and_then(|()| exit.attach())
        .map_err(|error| chain(&error));
    if attached.is_err() && !hook.at_exit {
        // An entry alone would be remembered for nothing.
        let entry: &mut FEntry = program(ebpf, &name)?;
        entry.unload().map_err(|error| chain(&error))?;
    }
    attached.map(drop)
}

fn by_kprobe(ebpf: &mut Ebpf, hook: &Hook) -> Result<(), String> {
    let ways = [("kprobe", true), ("kretprobe", hook.exit)];
    for (way, _) in ways.into_iter().filter(|(_, wanted)| *wanted) {
        let probe: &mut KProbe = program(ebpf, &format!("{way}_{}", hook.program))?;
        let attached = probe
            .load()
            .and_then(|()| probe.attach(hook.function, 0))
            .map_err(|error| chain(&error));
        if attached.is_err() && way == "kretprobe" {
            // An entry alone would be remembered for nothing.
            let entry: &mut KProbe = program(ebpf, &format!("kprobe_{}", hook.program))?;
            entry.unload().map_err(|error| chain(&error))?;
        }
        attached?;
    }
    Ok(())
}
