//! Staying out of the kernel's way while it shuts down.

use std::fs;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The CPU that the kernel moves to before it stops the others (`migrate_to_reboot_cpu`), unless told otherwise.
const DEFAULT: usize = 0;

/// Keeps the calling thread off the CPU on which the kernel shuts down, where it would wait for its turn, until
/// this is dropped: on another it runs until that is stopped.
#[derive(Debug)]
pub struct OffRebootCpu {
    before: CpuSet,
}

impl OffRebootCpu {
    /// `None` where there is no other CPU.
    #[must_use]
    pub fn new() -> Option<Self> {
        let reboot_cpu = fs::read_to_string("/sys/kernel/reboot/cpu")
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(DEFAULT);
        let this = Pid::from_raw(0);
        let before = sched_getaffinity(this).ok()?;
        let mut others = before;
        others.unset(reboot_cpu).ok()?;
        sched_setaffinity(this, &others).ok()?;
        Some(Self { before })
    }
}

impl Drop for OffRebootCpu {
    fn drop(&mut self) {
        // CPUs may have gone meanwhile; then the kernel has chosen others itself.
        let _ = sched_setaffinity(Pid::from_raw(0), &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reboot_cpu_is_left_and_may_be_used_again_afterwards() {
        let affinity = || sched_getaffinity(Pid::from_raw(0)).expect("a set of CPUs");
        let before = affinity();
        match OffRebootCpu::new() {
            Some(off) => {
                assert_ne!(affinity(), before);
                drop(off);
            }
            None => assert!((1..CpuSet::count()).all(|cpu| before.is_set(cpu) != Ok(true))),
        }
        assert_eq!(affinity(), before);
    }
}
