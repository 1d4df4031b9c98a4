//! Where functions are: in a program's file, read once for all hooks, and in the kernel.

use std::collections::BTreeMap;
use std::path::Path;

use object::{Object as _, ObjectSection as _, ObjectSymbol as _, SymbolKind};

use lu_common::event::FileKind;

/// Where the kernel lists its symbols.
const KALLSYMS: &str = "/proc/kallsyms";

/// What the names of the emulated orchestrator's functions begin with, in either interface.
const PREFIXES: [&str; 9] = [
    "lu_",
    "luo_",
    "memfd_luo_",
    "liveupdate_",
    "machine_kexec",
    "kernel_kexec",
    "__x64_sys_",
    "__arm64_sys_",
    "sessions.",
];

/// Which `struct file_operations` tells which kind of file (Linux 7.3).
const FILE_OPERATIONS: &[(&str, FileKind)] = &[
    ("shmem_file_operations", FileKind::Memfd),
    ("hugetlbfs_file_operations", FileKind::HugetlbMemfd),
    ("kvm_gmem_fops", FileKind::GuestMemfd),
    ("kvm_chardev_ops", FileKind::Kvm),
    ("kvm_vm_fops", FileKind::Kvm),
    ("kvm_vcpu_fops", FileKind::Kvm),
    ("kvm_device_fops", FileKind::Kvm),
    ("vfio_fops", FileKind::Vfio),
    ("vfio_group_fops", FileKind::Vfio),
    ("vfio_device_fops", FileKind::Vfio),
    ("iommufd_fops", FileKind::Iommufd),
    ("eventfd_fops", FileKind::Eventfd),
];

/// What the running kernel lists, as address and name; nothing where it hides addresses.
fn listed(kallsyms: &str) -> impl Iterator<Item = (u64, &str)> {
    kallsyms.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let address = u64::from_str_radix(words.next()?, 16).ok()?;
        (address != 0).then_some((address, words.nth(1)?))
    })
}

/// The addresses by which the running kernel's files tell their kind; empty where the kernel hides
/// addresses or lists no data (`CONFIG_KALLSYMS_ALL`).
pub fn file_operations() -> Vec<(u64, FileKind)> {
    let text = std::fs::read_to_string(KALLSYMS).unwrap_or_default();
    listed(&text)
        .filter_map(|(address, name)| {
            let (_, kind) = FILE_OPERATIONS.iter().find(|(known, _)| *known == name)?;
            Some((address, *kind))
        })
        .collect()
}

/// The addresses of some of the running kernel's symbols; 0 where the kernel does not tell.
pub fn addresses<const N: usize>(names: [&str; N]) -> [u64; N] {
    let text = std::fs::read_to_string(KALLSYMS).unwrap_or_default();
    let mut addresses = [0; N];
    for (address, name) in listed(&text) {
        if let Some(index) = names.iter().position(|wanted| *wanted == name) {
            addresses[index] = address;
        }
    }
    addresses
}

/// Offsets in the file of the functions that hooks are for.
pub struct Symbols {
    offsets: BTreeMap<String, u64>,
}

impl Symbols {
    /// Reads a program's symbol table; the error says what is wrong with the file.
    pub fn of(program: &Path) -> Result<Self, String> {
        let at = |error: &dyn std::fmt::Display| format!("{}: {error}", program.display());
        let file = std::fs::File::open(program).map_err(|error| at(&error))?;
        let cache = object::ReadCache::new(file);
        let elf = object::File::parse(&cache).map_err(|error| at(&error))?;
        let mut offsets = BTreeMap::new();
        for symbol in elf.symbols().chain(elf.dynamic_symbols()) {
            if symbol.kind() != SymbolKind::Text || symbol.is_undefined() {
                continue;
            }
            let Ok(name) = symbol.name() else { continue };
            if !PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
                continue;
            }
            let place = symbol
                .section_index()
                .and_then(|index| elf.section_by_index(index).ok())
                .and_then(|section| {
                    let (start, _) = section.file_range()?;
                    Some(symbol.address() - section.address() + start)
                });
            if let Some(offset) = place {
                offsets.insert(name.to_owned(), offset);
            }
        }
        Ok(Self { offsets })
    }

    /// The offset of a function.
    pub fn offset(&self, function: &str) -> Result<u64, String> {
        self.offsets
            .get(function)
            .copied()
            .ok_or_else(|| "the program has no such symbol; was it stripped?".to_owned())
    }
}
