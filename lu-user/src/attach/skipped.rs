//! Runs of programs that the kernel has skipped.
//!
//! A program is not run while it already runs on the same CPU, for a task that was preempted in it or in what it
//! was called from. The kernel counts that for each program, and tells it in what `/proc` says of the program's
//! descriptor (`bpf_prog_show_fdinfo`): of fentry and fexit since Linux 5.12, of kprobe and kretprobe, which it does
//! not run within any other such program either, since Linux 6.7. Reading it needs no privilege.

use std::io;
use std::os::fd::RawFd;

/// How many runs of the program behind a descriptor were skipped since it was loaded.
pub fn runs(program: RawFd) -> io::Result<u64> {
    let path = format!("/proc/self/fdinfo/{program}");
    let at = |error: &dyn std::fmt::Display| io::Error::other(format!("{path}: {error}"));
    let text = std::fs::read_to_string(&path).map_err(|error| at(&error))?;
    count(&text).ok_or_else(|| at(&"it does not tell how often the program was skipped"))
}

fn count(text: &str) -> Option<u64> {
    let mut lines = text.lines();
    let count = lines.find_map(|line| line.strip_prefix("recursion_misses:"))?;
    count.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd as _, AsRawFd as _};

    use aya::programs::{FEntry, KProbe};
    use aya::{Btf, EbpfLoader};

    use lu_common::layout::Offsets;

    use super::*;
    use crate::attach::{OBJECT, allowed, program};
    use crate::preserved::Memory;

    #[test]
    fn the_count_is_found_among_what_the_kernel_tells_of_a_program() {
        let told = "pos:\t0\nprog_type:\t26\nrecursion_misses:\t3\nverified_insns:\t12\n";
        assert_eq!(count(told), Some(3));
        assert_eq!(count("pos:\t0\n"), None);
    }

    /// A program on a function that it calls itself: each time that another one calls it, one run is skipped. Where
    /// fentry is refused, as it is without root, there is nothing to count.
    #[test]
    fn each_run_that_the_kernel_skips_is_counted() {
        let tried = allowed::try_all().ok();
        let is_fentry = |tried: &&allowed::Tried| tried.program_type == "fentry";
        let fentry = tried.iter().flatten().find(is_fentry);
        if fentry.is_none_or(|tried| tried.refused.is_some()) {
            eprintln!("skipped: needs fentry: {fentry:?}");
            return;
        }
        let mut ebpf = EbpfLoader::new()
            .btf(None)
            .map_max_entries("EVENTS", 4096)
            .override_global("OFFSETS", &[0_u32; Offsets::MEMBERS.len()], true)
            .load(OBJECT)
            .expect("as before");
        let btf = Btf::from_sys_fs().expect("as before");
        // Both read by a helper what their first argument points to.
        let inner: &mut FEntry = program(&mut ebpf, "fentry_sys_reboot").expect("in the plan");
        inner
            .load("copy_from_kernel_nofault", &btf)
            .expect("the helper calls it");
        inner.attach().expect("as before");
        let outer: &mut KProbe = program(&mut ebpf, "kprobe_sys_reboot").expect("in the plan");
        outer.load().expect("as before");
        outer
            .attach("do_truncate", 0)
            .expect("every kernel has the function");
        let skipped = || {
            let inner = ebpf.program("fentry_sys_reboot").expect("in the plan");
            runs(inner.fd().expect("loaded").as_fd().as_raw_fd()).expect("/proc tells it")
        };
        let (file, _memory) = Memory::create("lu-skipped", 1).expect("a memfd");
        let before = skipped();
        for length in 2..=6 {
            file.set_len(length).expect("a memfd grows");
        }
        let after = skipped();
        assert!(after >= before + 5, "{before}, then {after}");
    }
}
