//! All clocks of the running kernel, read at one moment.

use std::fs::{self, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::OnceLock;

use lu_common::event::{Anchor, Kind, Record};
use nix::time::{ClockId, clock_gettime};

/// How often the clocks are read; the reading with the least spread counts.
const TRIES: usize = 8;

/// A [`Kind::Anchor`] record of now.
#[must_use]
pub fn anchor() -> Record {
    let (t_ns, anchor) = (0..TRIES)
        .map(|_| read())
        .min_by_key(|(_, anchor)| anchor.spread_ns)
        .unwrap_or_default();
    Record::made(Kind::Anchor, t_ns, zerocopy::transmute!(anchor))
}

/// A [`Kind::Kernel`] record of the running kernel.
#[must_use]
pub fn kernel() -> Record {
    let mut payload = [0; 64];
    if let Ok(name) = nix::sys::utsname::uname() {
        let release = name.release().as_encoded_bytes();
        let length = release.len().min(payload.len() - 1);
        payload[..length].copy_from_slice(&release[..length]);
    }
    Record::made(Kind::Kernel, now_ns(), payload)
}

/// The clock that the hooks read (`CLOCK_MONOTONIC`), in nanoseconds.
#[must_use]
pub fn now_ns() -> u64 {
    clock(ClockId::CLOCK_MONOTONIC)
}

/// `CLOCK_REALTIME`, in nanoseconds since 1970.
#[must_use]
pub fn realtime_ns() -> u64 {
    clock(ClockId::CLOCK_REALTIME)
}

fn clock(id: ClockId) -> u64 {
    clock_gettime(id).map_or(0, |now| {
        now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
    })
}

fn read() -> (u64, Anchor) {
    let before = now_ns();
    let counter = counter();
    let raw_ns = clock(ClockId::CLOCK_MONOTONIC_RAW);
    let realtime_ns = realtime_ns();
    let spread_ns = now_ns().saturating_sub(before);
    let (init_ns, tick_ns) = init();
    let anchor = Anchor {
        boot_id: boot_id(),
        counter,
        raw_ns,
        realtime_ns,
        spread_ns,
        init_ns,
        tick_ns,
    };
    (before + spread_ns / 2, anchor)
}

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

/// The running boot's id; 0 if it cannot be read.
#[must_use]
pub fn boot_id() -> [u8; 16] {
    static ID: OnceLock<[u8; 16]> = OnceLock::new();
    *ID.get_or_init(|| {
        fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .ok()
            .and_then(|text| u128::from_str_radix(&text.trim().replace('-', ""), 16).ok())
            .unwrap_or(0)
            .to_be_bytes()
    })
}

/// When the kernel handed over to user space, and the resolution of that, in nanoseconds: the kernel log's
/// `Run /init as init process`. 0 where the log has lost it, or is not ours to read.
fn init() -> (u64, u64) {
    static INIT: OnceLock<(u64, u64)> = OnceLock::new();
    *INIT.get_or_init(|| {
        let log = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/kmsg");
        let Ok(mut log) = log else { return (0, 0) };
        let mut line = [0; 8192];
        let mut found = 0;
        // One message each; EPIPE says that some were overwritten meanwhile.
        loop {
            match log.read(&mut line) {
                Ok(0) => break,
                Ok(length) => {
                    let text = String::from_utf8_lossy(&line[..length]);
                    if let Some(us) = begun(&text) {
                        found = us * 1000;
                        break;
                    }
                }
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
                Err(_) => break,
            }
        }
        (found, 1000)
    })
}

/// The time of a message (`priority,number,µs,…;text`), if it is the one that tells that user space begins.
fn begun(message: &str) -> Option<u64> {
    let (head, text) = message.split_once(';')?;
    let text = text.lines().next()?;
    if !(text.starts_with("Run ") && text.ends_with(" as init process")) {
        return None;
    }
    head.split(',').nth(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_by_which_user_space_begins_is_found() {
        assert_eq!(
            begun("6,1234,1517035,-;Run /init as init process\n"),
            Some(1_517_035)
        );
        assert_eq!(begun("6,1234,1517035,-;Running /init\n"), None);
        assert_eq!(begun("no message"), None);
    }

    #[test]
    fn the_counter_and_the_clocks_go_forward() {
        let (first, second) = (anchor(), anchor());
        assert!(first.header.t_ns < second.header.t_ns);
        let (first, second) = (first.anchor().expect("one"), second.anchor().expect("one"));
        assert!(first.raw_ns < second.raw_ns && first.counter <= second.counter);
    }
}
