//! What this machine allows: each type of BPF program really loaded and attached for a moment.

use std::io;
use std::path::Path;

use aya::programs::uprobe::UProbeScope;
use aya::programs::{
    BtfTracePoint, FEntry, FExit, KProbe, Lsm, ProgramError, RawTracePoint, TracePoint, UProbe,
};
use aya::{Btf, Ebpf, EbpfLoader};

use super::{Error, OBJECT, chain};

/// The kernel function that programs which need one are tried on.
const FUNCTION: &str = "kernel_restart";
const LSM_HOOK: &str = "kernel_load_data";
const EVENT: &str = "sched_process_exec";

/// Where the kernel shows its own types.
pub const BTF: &str = "/sys/kernel/btf/vmlinux";

/// Where the kernel lists its active security modules.
pub const LSM_LIST: &str = "/sys/kernel/security/lsm";

/// A type of program, and what the kernel said to it.
#[derive(Debug)]
pub struct Tried {
    /// The type, as the kernel's documents call it.
    pub program_type: &'static str,
    /// What lu needs it for; `None` where it has no use for it.
    pub needed_for: Option<&'static str>,
    /// Nothing, or the errno (where there was one) and the whole error.
    pub refused: Option<(Option<i32>, String)>,
}

type Try = fn(&mut Ebpf, Option<&Btf>) -> Result<(), ProgramError>;

/// Each type, what it is for, how it is tried.
const TYPES: [(&str, Option<&str>, Try); 9] = [
    (
        "uprobe",
        Some("watching the emulated orchestrator"),
        try_uprobe,
    ),
    (
        "kprobe",
        Some("watching the kernel's where fentry is refused"),
        |ebpf, _| {
            let program: &mut KProbe = program(ebpf, "try_kprobe")?;
            program.load()?;
            program.attach(FUNCTION, 0).map(drop)
        },
    ),
    ("kretprobe", Some("the same, at the return"), |ebpf, _| {
        let program: &mut KProbe = program(ebpf, "try_kretprobe")?;
        program.load()?;
        program.attach(FUNCTION, 0).map(drop)
    }),
    (
        "fentry",
        Some("watching the kernel's orchestrator"),
        |ebpf, btf| {
            let program: &mut FEntry = program(ebpf, "try_fentry")?;
            program.load(FUNCTION, types(btf)?)?;
            program.attach().map(drop)
        },
    ),
    ("fexit", Some("the same, at the return"), |ebpf, btf| {
        let program: &mut FExit = program(ebpf, "try_fexit")?;
        program.load(FUNCTION, types(btf)?)?;
        program.attach().map(drop)
    }),
    (
        "lsm",
        Some("enforcing a policy in the kernel"),
        |ebpf, btf| {
            let program: &mut Lsm = program(ebpf, "try_lsm")?;
            program.load(LSM_HOOK, types(btf)?)?;
            program.attach().map(drop)
        },
    ),
    ("tracepoint", None, |ebpf, _| {
        let program: &mut TracePoint = program(ebpf, "try_tracepoint")?;
        program.load()?;
        program.attach("sched", EVENT).map(drop)
    }),
    ("raw_tracepoint", None, |ebpf, _| {
        let program: &mut RawTracePoint = program(ebpf, "try_raw_tp")?;
        program.load()?;
        program.attach(EVENT).map(drop)
    }),
    ("tp_btf", None, |ebpf, btf| {
        let program: &mut BtfTracePoint = program(ebpf, "try_tp_btf")?;
        program.load(EVENT, types(btf)?)?;
        program.attach().map(drop)
    }),
];

/// Tries every type. Nothing stays attached.
pub fn try_all() -> Result<Vec<Tried>, Error> {
    let btf = Btf::from_sys_fs().ok();
    let mut ebpf = EbpfLoader::new()
        .btf(btf.as_ref())
        .map_max_entries("EVENTS", 4096)
        .load(OBJECT)
        .map_err(Error::Load)?;
    Ok(TYPES
        .into_iter()
        .map(|(program_type, needed_for, try_it)| Tried {
            program_type,
            needed_for,
            refused: try_it(&mut ebpf, btf.as_ref())
                .err()
                .map(|error| (errno(&error), chain(&error))),
        })
        .collect())
}

fn program<'a, T>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut T, ProgramError>
where
    &'a mut T: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    ebpf.program_mut(name)
        .ok_or(ProgramError::NotLoaded)?
        .try_into()
}

fn types(btf: Option<&Btf>) -> Result<&Btf, ProgramError> {
    btf.ok_or_else(|| {
        ProgramError::IOError(io::Error::new(
            io::ErrorKind::NotFound,
            format!("this kernel shows no BTF at {BTF}"),
        ))
    })
}

fn try_uprobe(ebpf: &mut Ebpf, _: Option<&Btf>) -> Result<(), ProgramError> {
    let program: &mut UProbe = program(ebpf, "uprobe_open")?;
    program.load()?;
    let own = Path::new("/proc/self/exe");
    let symbols = super::symbols::Symbols::of(own)
        .and_then(|symbols| symbols.offset("luo_open"))
        .map_err(|error| ProgramError::IOError(io::Error::other(error)))?;
    program
        .attach(
            aya::programs::uprobe::UProbeAttachLocation::AbsoluteOffset(symbols),
            own,
            UProbeScope::CallingProcess,
        )
        .map(drop)
}

/// The errno at the bottom of an error.
fn errno(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return io.raw_os_error();
        }
        next = error.source();
    }
    None
}
