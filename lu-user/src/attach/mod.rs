//! Hooks to places: the plan, what of it could be attached, and what could not and why.

pub mod allowed;
mod kernel;
mod plan;
pub mod skipped;
mod symbols;
mod types;

use std::hash::{BuildHasher as _, RandomState};
use std::path::Path;

use aya::maps::{Map, MapData, PerCpuArray, RingBuf};
use aya::programs::uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeScope};
use aya::programs::{Program, ProgramError, ProgramFd, UProbe};
use aya::{Ebpf, EbpfError, EbpfLoader};
use lu_common::event::{self, Counters, FileKind, Record};
use lu_common::layout::{FILE_OPERATIONS_MAX, Offsets};
use lu_common::uapi::Interface;

pub use kernel::{KernelPlace, interface_of, place};
pub use plan::{Detail, Hook, Place, hooks};
pub(crate) use symbols::addresses;
pub use types::Types;

use crate::orchestrator::Orchestrator;

/// The compiled BPF programs.
pub(crate) static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lu.bpf.o"));

/// The ring buffer's size unless told otherwise, in bytes: some 30,000 records.
pub const RING_BUFFER: u64 = 4 << 20;

/// What the kernel puts before each record there, in bytes (`BPF_RINGBUF_HDR_SZ`).
const RING_BUFFER_HEADER: usize = 8;

/// Why nothing can be watched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused the maps or the programs.
    #[error(
        "the kernel refuses lu's BPF programs: {}; `lu doctor` tells what this machine allows",
        chain(.0)
    )]
    Load(#[source] EbpfError),
    /// Its types tell neither interface.
    #[error(
        "/dev/liveupdate is there, but not what lu knows of it: {0}; lu knows the interfaces v3 and \
         sessions, and tells them apart by the kernel's types (BTF)"
    )]
    Unknown(String),
    /// The size is not one that a ring buffer can have.
    #[error(
        "a ring buffer's size is a power of two from 4KiB to 2GiB, not {}",
        bytesize::ByteSize(*.0)
    )]
    RingBuffer(u64),
}

/// An error with its causes, in one line. What the verifier said goes to the log, but for its conclusion.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let line = error.to_string();
        // Some errors repeat their cause.
        if !text.contains(line.trim_end()) {
            text.push_str(": ");
            text.push_str(line.trim_end());
        }
        cause = error.source();
    }
    let Some((what, verifier)) = text.split_once("Verifier output:") else {
        return text.trim_end().to_owned();
    };
    if verifier.trim().is_empty() {
        return what.trim_end().trim_end_matches('.').to_owned();
    }
    log::debug!("{text}");
    // Newer kernels explain their conclusion at length; with others it stands before the statistics at the
    // end.
    let mut lines = verifier.lines().rev().map(str::trim);
    let conclusion = lines
        .clone()
        .find(|line| line.starts_with("Verification failed"))
        .or_else(|| {
            lines.find(|line| {
                let statistics = ["processed ", "verification time", "stack depth", "subprog "];
                !line.is_empty() && !statistics.iter().any(|word| line.starts_with(word))
            })
        })
        .unwrap_or("it does not say why");
    format!(
        "{} The verifier: {conclusion} (RUST_LOG=debug shows all of it)",
        what.trim_end()
    )
}

/// What became of one hook.
#[derive(Debug)]
pub struct Outcome {
    /// The interface that the hook belongs to.
    pub interface: Interface,
    /// The hook.
    pub hook: &'static Hook,
    /// How it was attached, or why not.
    pub attached: Result<&'static str, String>,
}

/// The attached hooks: they stay as long as this lives.
pub struct Attached {
    /// The loaded programs; their links go with them. The kernel takes some 50 ms to let go of each
    /// uprobe.
    pub programs: Ebpf,
    /// What became of each hook, in the plan's order.
    pub coverage: Vec<Outcome>,
    /// What the running kernel's types lack, as structure and member; what hooks read there is unknown.
    pub unknown_members: Vec<(&'static str, &'static str)>,
    /// Where the records come.
    pub events: RingBuf<MapData>,
    /// How many have room there.
    pub capacity: usize,
    /// Readable once reboot(KEXEC) is under way: nobody may sleep any more.
    pub alarm: RingBuf<MapData>,
    /// What was made and what was lost.
    pub counters: PerCpuArray<MapData, CountersPod>,
}

/// [`Counters`], which aya may copy out of the kernel.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct CountersPod(pub Counters);

// SAFETY: four integers without padding; any bytes are a value.
unsafe impl aya::Pod for CountersPod {}

impl Attached {
    /// The hooks that are attached.
    #[must_use]
    pub fn count(&self) -> usize {
        self.coverage
            .iter()
            .filter(|outcome| outcome.attached.is_ok())
            .count()
    }

    /// The programs on the kernel's functions to ask which of their runs were skipped. Where the program at an
    /// entry was, the one at the exit misses it and counts ([`Counters::no_entry`]); so these are the others.
    pub fn asked_for_skips(&self) -> impl Iterator<Item = &ProgramFd> {
        self.coverage.iter().flat_map(|outcome| {
            let (entry, exit) = match outcome.attached {
                Ok("fentry") => ("fentry", "fexit"),
                Ok("kprobe") => ("kprobe", "kretprobe"),
                // The kernel runs programs of uprobes within each other.
                _ => return Vec::new(),
            };
            let hook = outcome.hook;
            [(entry, !hook.exit_misses_entry()), (exit, true)]
                .into_iter()
                .filter(|(_, wanted)| *wanted)
                .filter_map(|(way, _)| self.programs.program(&format!("{way}_{}", hook.program)))
                // Not every hook has both.
                .filter_map(|program| program.fd().ok())
                .collect()
        })
    }

    /// The hooks that are not, and why.
    pub fn missing(&self) -> impl Iterator<Item = (&'static Hook, &str)> {
        self.coverage
            .iter()
            .filter_map(|outcome| Some((outcome.hook, outcome.attached.as_ref().err()?.as_str())))
    }
}

/// Where the kernel's orchestrator is, if it is among these.
pub fn place_among(orchestrators: &[Orchestrator]) -> Result<Option<KernelPlace>, Error> {
    let is_there = orchestrators.contains(&Orchestrator::Kernel);
    is_there.then(place).transpose()
}

/// Loads the programs and attaches every hook of the plan up to `detail`: on the kernel's orchestrator at its `place`,
/// if it has one, and on emulated ones. A hook that cannot be attached does not stop the others.
pub fn attach(
    place: Option<&KernelPlace>,
    orchestrators: &[Orchestrator],
    ring_buffer: u64,
    detail: Detail,
) -> Result<Attached, Error> {
    let size = u32::try_from(ring_buffer)
        .ok()
        .filter(|size| size.is_power_of_two() && size.is_multiple_of(4096))
        .ok_or(Error::RingBuffer(ring_buffer))?;
    let offsets = place.map_or(Offsets::NONE, |place| place.offsets).list();
    let flags = place.map_or(0, |place| interface_flags(place.interface));
    let operations = operations(place.map_or(&[][..], |place| &place.file_operations));
    let mut ebpf = EbpfLoader::new()
        // The programs need nothing of the kernel's types, and reading them takes a tenth of a second.
        .btf(None)
        .map_max_entries("EVENTS", size)
        .override_global("OFFSETS", &offsets, true)
        .override_global("KERNEL_FLAGS", &flags, true)
        .override_global("FILE_OPERATIONS", &operations, true)
        .override_global("SECRET", &secret(), true)
        .load(OBJECT)
        .map_err(Error::Load)?;
    let events = take_map(&mut ebpf, "EVENTS")
        .and_then(|map| RingBuf::try_from(map).map_err(EbpfError::MapError))
        .map_err(Error::Load)?;
    let alarm = take_map(&mut ebpf, "ALARM")
        .and_then(|map| RingBuf::try_from(map).map_err(EbpfError::MapError))
        .map_err(Error::Load)?;
    let counters = take_map(&mut ebpf, "COUNTERS")
        .and_then(|map| PerCpuArray::try_from(map).map_err(EbpfError::MapError))
        .map_err(Error::Load)?;
    let mut coverage = Vec::new();
    let mut unknown_members = Vec::new();
    if let Some(place) = place {
        unknown_members = place.unknown_members();
        coverage.extend(kernel::attach(&mut ebpf, place, detail));
    }
    coverage.extend(attach_emulated(&mut ebpf, orchestrators, detail));
    Ok(Attached {
        programs: ebpf,
        coverage,
        unknown_members,
        events,
        capacity: size as usize / (RING_BUFFER_HEADER + size_of::<Record>()),
        alarm,
        counters,
    })
}

/// Where programs look up kinds of files: address, kind, address, kind, …
pub(crate) fn operations(kinds: &[(u64, FileKind)]) -> [u64; 2 * FILE_OPERATIONS_MAX] {
    let mut slots = [0; 2 * FILE_OPERATIONS_MAX];
    for (slot, (address, kind)) in slots.chunks_mut(2).zip(kinds) {
        slot.copy_from_slice(&[*address, *kind as u64]);
    }
    slots
}

/// A number that nobody can foresee: with it records name files without telling the kernel's addresses.
fn secret() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

/// What records of an interface bear in [`lu_common::event::Header::flags`].
const fn interface_flags(interface: Interface) -> u8 {
    match interface {
        Interface::V3 => 0,
        Interface::Sessions => event::flags::SESSIONS,
    }
}

fn take_map(ebpf: &mut Ebpf, name: &str) -> Result<Map, EbpfError> {
    ebpf.take_map(name)
        .ok_or_else(|| EbpfError::MapError(aya::maps::MapError::InvalidName { name: name.into() }))
}

/// The program of this name, as the type that it is.
fn program<'a, T>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut T, String>
where
    &'a mut T: TryFrom<&'a mut Program, Error = ProgramError>,
{
    ebpf.program_mut(name)
        .ok_or_else(|| format!("there is no program {name}"))?
        .try_into()
        .map_err(|error: ProgramError| chain(&error))
}

fn attach_emulated(
    ebpf: &mut Ebpf,
    orchestrators: &[Orchestrator],
    detail: Detail,
) -> Vec<Outcome> {
    let programs: Vec<(&Path, Result<symbols::Symbols, String>)> = orchestrators
        .iter()
        .filter_map(|orchestrator| match orchestrator {
            Orchestrator::Emulated { program, .. } => Some(program.as_path()),
            Orchestrator::Kernel => None,
        })
        .map(|program| (program, symbols::Symbols::of(program)))
        .collect();
    if programs.is_empty() {
        return Vec::new();
    }
    [Interface::V3, Interface::Sessions]
        .into_iter()
        .flat_map(|interface| {
            hooks(interface)
                .iter()
                .filter(|hook| hook.is_emulated() && hook.detail <= detail)
                .map(move |hook| (interface, hook))
        })
        .map(|(interface, hook)| Outcome {
            interface,
            hook,
            attached: attach_uprobe(ebpf, interface, hook, &programs).map(|()| "uprobe"),
        })
        .collect()
}

fn attach_uprobe(
    ebpf: &mut Ebpf,
    interface: Interface,
    hook: &Hook,
    programs: &[(&Path, Result<symbols::Symbols, String>)],
) -> Result<(), String> {
    // A program of another version may lack the function: the others have it all the same.
    let mut missing = Err("no emulated orchestrator has it".to_owned());
    for (path, symbols) in programs {
        let offset = symbols
            .as_ref()
            .map_err(Clone::clone)
            .and_then(|symbols| symbols.offset(&hook.symbol(interface)));
        match offset {
            Ok(offset) => {
                attach_at(ebpf, interface, hook, path, offset)?;
                missing = Ok(());
            }
            Err(error) if missing.is_err() => {
                missing = Err(format!("{}: {error}", path.display()));
            }
            Err(error) => log::info!("{}: {}: {error}", path.display(), hook.function),
        }
    }
    missing
}

fn attach_at(
    ebpf: &mut Ebpf,
    interface: Interface,
    hook: &Hook,
    path: &Path,
    offset: u64,
) -> Result<(), String> {
    let ways = [("uprobe", true), ("uretprobe", hook.exit)];
    for (way, _) in ways.into_iter().filter(|(_, wanted)| *wanted) {
        let program: &mut UProbe = program(ebpf, &format!("{way}_{}", hook.program))?;
        // The interfaces share some programs.
        if program.fd().is_err() {
            program.load().map_err(|error| chain(&error))?;
        }
        let point = UProbeAttachPoint {
            location: UProbeAttachLocation::AbsoluteOffset(offset),
            cookie: Some(u64::from(interface_flags(interface))),
        };
        program
            .attach(point, path, UProbeScope::AllProcesses)
            .map_err(|error| chain(&error))?;
    }
    Ok(())
}
