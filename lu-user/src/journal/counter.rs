//! The CPU's counter, and whether the kernel takes it for a clock.

/// The CPU's counter: the one that a kexec does not reset.
#[cfg(target_arch = "x86_64")]
#[must_use]
pub fn counter() -> u64 {
    // SAFETY: the instruction has no preconditions in user space, unless the process gave it up by prctl.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// The CPU's counter: the one that a kexec does not reset.
#[cfg(target_arch = "aarch64")]
#[must_use]
pub fn counter() -> u64 {
    let counter: u64;
    // SAFETY: Linux lets user space read this register, and nothing else is touched.
    unsafe {
        core::arch::asm!("mrs {}, cntvct_el0", out(reg) counter, options(nomem, nostack));
    }
    counter
}

/// None is known here.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
#[must_use]
pub fn counter() -> u64 {
    0
}

/// Whether the counter is a clock at the moment: the kernel may find out at any time that it is none.
#[cfg(target_arch = "x86_64")]
#[must_use]
pub fn is_clock() -> bool {
    use std::fs::read_to_string;
    use std::sync::OnceLock;

    const SOURCES: &str = "/sys/devices/system/clocksource/clocksource0";
    static INVARIANT: OnceLock<bool> = OnceLock::new();
    let invariant = *INVARIANT
        .get_or_init(|| read_to_string("/proc/cpuinfo").is_ok_and(|cpus| is_invariant(&cpus)));
    let read = |name: &str| read_to_string(format!("{SOURCES}/{name}")).ok();
    is_trusted(
        read("available_clocksource").as_deref(),
        read("current_clocksource").as_deref(),
        invariant,
    )
}

/// The architecture promises it: arm64's counter has one frequency and never stops.
#[cfg(not(target_arch = "x86_64"))]
#[must_use]
pub const fn is_clock() -> bool {
    cfg!(target_arch = "aarch64")
}

/// Whether the TSC can be trusted: not where the kernel has marked it unstable, and so does not offer it any more
/// (`mark_tsc_unstable`, Linux 7.3); else where the kernel keeps the time by it, or the CPU promises that it
/// has one frequency and never stops.
#[cfg(any(target_arch = "x86_64", test))]
fn is_trusted(available: Option<&str>, current: Option<&str>, invariant: bool) -> bool {
    // `tsc-early` is the same counter, until its frequency is measured better.
    let has_tsc = |names: &str| names.split_whitespace().any(|name| name.starts_with("tsc"));
    available.is_none_or(has_tsc) && (current.is_some_and(has_tsc) || invariant)
}

/// Whether `/proc/cpuinfo` has the flags by which an x86 CPU promises that.
#[cfg(any(target_arch = "x86_64", test))]
fn is_invariant(cpus: &str) -> bool {
    let flags = cpus
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.trim() == "flags")
        .map_or("", |(_, flags)| flags);
    let has = |wanted| flags.split_whitespace().any(|flag| flag == wanted);
    has("constant_tsc") && has("nonstop_tsc")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_that_the_kernel_marked_unstable_is_no_clock() {
        assert!(is_trusted(Some("tsc hpet acpi_pm \n"), Some("tsc\n"), true));
        assert!(!is_trusted(Some("hpet acpi_pm \n"), Some("hpet\n"), true));
        assert!(!is_trusted(Some("kvm-clock \n"), Some("kvm-clock\n"), true));
    }

    #[test]
    fn without_a_promise_it_is_one_where_the_kernel_keeps_the_time_by_it() {
        assert!(is_trusted(Some("tsc hpet \n"), Some("tsc\n"), false));
        assert!(is_trusted(
            Some("tsc-early hpet \n"),
            Some("tsc-early\n"),
            false
        ));
        assert!(!is_trusted(Some("tsc hpet \n"), Some("hpet\n"), false));
        assert!(is_trusted(
            Some("tsc kvm-clock \n"),
            Some("kvm-clock\n"),
            true
        ));
        // Where nothing can be read, the promise alone counts.
        assert!(is_trusted(None, None, true));
        assert!(!is_trusted(None, None, false));
    }

    #[test]
    fn the_promise_takes_both_flags() {
        let cpu = |flags: &str| format!("processor\t: 0\nflags\t\t: fpu {flags}\nbugs\t\t:\n");
        assert!(is_invariant(&cpu("tsc constant_tsc nonstop_tsc")));
        assert!(!is_invariant(&cpu("tsc constant_tsc")));
        assert!(!is_invariant(&cpu("nonstop_tsc_s3 constant_tsc")));
        assert!(!is_invariant(""));
    }
}
