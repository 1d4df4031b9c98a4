//! All clocks of the running kernel, read at one moment.

use std::fs;
use std::sync::OnceLock;

use lu_common::event::{Anchor, Kind, Record};
use nix::time::{ClockId, clock_gettime};

use super::boot::boot;
use super::counter::{counter, is_clock};

/// How often the clocks are read; the reading with the least spread counts.
const TRIES: usize = 8;

/// The resolution of the kernel log's times, in nanoseconds.
const LOG_TICK_NS: u64 = 1000;

/// A [`Kind::Anchor`] record of now. It has no counter where the kernel does not take it for a clock.
#[must_use]
pub fn anchor() -> Record {
    let (t_ns, mut anchor) = (0..TRIES)
        .map(|_| read())
        .min_by_key(|(_, anchor)| anchor.spread_ns)
        .unwrap_or_default();
    if !is_clock() {
        anchor.counter = 0;
    }
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
    let init_ns = boot().init_ns;
    let anchor = Anchor {
        boot_id: boot_id(),
        counter,
        raw_ns,
        realtime_ns,
        spread_ns,
        init_ns: init_ns.unwrap_or(0),
        tick_ns: init_ns.map_or(0, |_| LOG_TICK_NS),
    };
    (before + spread_ns / 2, anchor)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_and_the_clocks_go_forward() {
        let (first, second) = (anchor(), anchor());
        assert!(first.header.t_ns < second.header.t_ns);
        let (first, second) = (first.anchor().expect("one"), second.anchor().expect("one"));
        assert!(first.raw_ns < second.raw_ns && first.counter <= second.counter);
    }
}
