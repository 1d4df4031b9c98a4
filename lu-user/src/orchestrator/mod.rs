//! Which orchestrator is here: the kernel's, an emulated one, or none yet.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::PathBuf;

use crate::emulate::{self, DEVICE};

/// The orchestrator that hooks go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Orchestrator {
    /// `lu emulate`: the functions are in this program, whoever runs it.
    Emulated {
        /// The program's file.
        program: PathBuf,
        /// The processes that run it as an emulator now; those that come later are seen too.
        running: Vec<u32>,
    },
    /// The kernel's: [`DEVICE`] is a character device.
    Kernel,
}

impl Orchestrator {
    /// The name in reports: `emulated` or `kernel`.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Emulated { .. } => "emulated",
            Self::Kernel => "kernel",
        }
    }

    /// How many of it are running.
    #[must_use]
    pub fn running(&self) -> usize {
        match self {
            Self::Emulated { running, .. } => running.len(),
            Self::Kernel => 1,
        }
    }
}

/// Whether the kernel has an orchestrator.
#[must_use]
pub fn in_kernel() -> bool {
    fs::symlink_metadata(DEVICE).is_ok_and(|meta| meta.file_type().is_char_device())
}

/// The orchestrators to watch: every program that runs as an emulator; where none does, this very
/// program, so that an emulator started later is seen from its first step.
#[must_use]
pub fn emulated() -> Vec<Orchestrator> {
    let mut programs: BTreeMap<(u64, u64), (PathBuf, Vec<u32>)> = BTreeMap::new();
    let own = PathBuf::from("/proc/self/exe");
    let running = emulate::control::running();
    let candidates = running
        .iter()
        .map(|pid| (PathBuf::from(format!("/proc/{pid}/exe")), Some(*pid)))
        .chain(std::iter::once((own, None)));
    for (program, pid) in candidates {
        if let Ok(meta) = fs::metadata(&program) {
            let entry = programs
                .entry((meta.dev(), meta.ino()))
                .or_insert_with(|| (program, Vec::new()));
            entry.1.extend(pid);
        }
    }
    programs
        .into_values()
        .map(|(program, running)| Orchestrator::Emulated { program, running })
        .collect()
}
