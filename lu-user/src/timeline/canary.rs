//! What lu says of the darkness that a canary (see [`crate::canary`]) feels, without asking it.

use super::clock::Clock;
use super::update::Update;

/// The session in which a canary is handed over.
pub const CANARY: &str = "lu-canary";

/// From the stop of the CPUs to the restore of the canary's file.
///
/// The stop is the collector's last beat, which it makes without a pause from reboot(KEXEC) on; in an
/// emulated kexec the jump. The restore is the end of `luo_retrieve_file`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Darkness {
    /// When it began, in nanoseconds (see [`super::Phase`]).
    pub start_ns: u64,
    /// How long it was, in nanoseconds.
    pub ns: u64,
    /// The length may be off by this, in nanoseconds; `None` where that is not known yet.
    pub uncertainty_ns: Option<u64>,
    /// The clock that tells.
    pub clock: Clock,
    /// How long it was by `CLOCK_REALTIME`, in nanoseconds; `None` where one kernel's own clock tells.
    pub realtime_ns: Option<i64>,
}

impl Update {
    /// How long a canary was dark; `None` where there was none, or either end was not seen.
    #[must_use]
    pub fn canary(&self) -> Option<Darkness> {
        let start_ns = self.jumped_ns?;
        let ns = self.canary_restored_ns?.checked_sub(start_ns)?;
        let (clock, uncertainty_ns) = self.clock()?;
        let realtime_ns = self.crossing.map(|crossing| {
            let apart = crossing
                .realtime_gap_ns
                .wrapping_sub_unsigned(crossing.gap_ns);
            ns.cast_signed().wrapping_add(apart)
        });
        Some(Darkness {
            start_ns,
            ns,
            uncertainty_ns,
            clock,
            realtime_ns,
        })
    }
}
