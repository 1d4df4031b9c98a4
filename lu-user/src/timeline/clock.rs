//! One axis for the events of several kernels.
//!
//! Each kernel starts its own `CLOCK_MONOTONIC`. The CPU's counter runs on through a kexec, so two
//! readings of it, one on each side, tell how the two clocks lie to each other. Its frequency is the one
//! that the older kernel measured, for the whole span; that the newer one measured another is the
//! uncertainty. Where there is no counter, or it did not run on (it tells less time than the newer kernel has
//! been up), `CLOCK_REALTIME` has to do, which comes back from the RTC.

use std::time::Duration;

use lu_common::event::Anchor;

use super::names::named;

/// What `CLOCK_REALTIME` may be off by after a boot: the RTC counts whole seconds.
const RTC: Duration = Duration::from_secs(1);

/// By more than this the clock of the day may not differ from the counter: one of them is wrong then, and
/// their difference is the uncertainty.
const AGREE: Duration = Duration::from_secs(2);

/// The least time between two readings that make a frequency.
const LEAST_SPAN: Duration = Duration::from_millis(100);

named! {
    /// By which clock a span was measured.
    pub enum Clock {
        /// `CLOCK_MONOTONIC` of one kernel.
        Monotonic = "monotonic",
        /// The CPU's counter, across a kexec.
        Counter = "counter",
        /// `CLOCK_REALTIME`, across a kexec.
        Realtime = "realtime",
    }
}

/// How two kernels' clocks lie to each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Crossing {
    /// Which clock tells.
    pub clock: Clock,
    /// From the older kernel's last reading to the newer one's first, in nanoseconds.
    pub gap_ns: u64,
    /// The same by `CLOCK_REALTIME`, in nanoseconds; negative where the RTC came back too early.
    pub realtime_gap_ns: i64,
    /// The counter's frequency as the older kernel measured it, in Hz.
    pub old_hz: Option<f64>,
    /// What that may be off by, as a fraction, because its readings took their time.
    pub old_hz_error: f64,
    /// As the newer one measures it: `None` until its readings are far enough apart.
    pub new_hz: Option<f64>,
    /// The readings themselves lie within this, in nanoseconds; and where counter and clock of the day are too
    /// far apart for both to be right, so much more.
    pub spread_ns: u64,
}

impl Crossing {
    /// What a span across the kexec may be off by, in nanoseconds; `None` as long as the newer kernel's
    /// frequency is not known.
    #[must_use]
    pub fn uncertainty_ns(&self) -> Option<u64> {
        match self.clock {
            Clock::Realtime => Some(self.spread_ns.saturating_add(RTC.as_nanos() as u64)),
            Clock::Monotonic => Some(self.spread_ns),
            Clock::Counter => {
                let (old, new) = (self.old_hz?, self.new_hz?);
                let fraction = ((new - old) / old).abs() + self.old_hz_error;
                let drift = fraction * self.gap_ns as f64;
                Some(self.spread_ns.saturating_add(drift.ceil() as u64))
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Reading {
    t_ns: u64,
    anchor: Anchor,
}

/// The clocks of the kernel that runs, and how its `CLOCK_MONOTONIC` lies on the axis.
#[derive(Clone, Debug, Default)]
pub struct Axis {
    first: Option<Reading>,
    last: Option<Reading>,
    /// Axis time minus the running kernel's `CLOCK_MONOTONIC`, in nanoseconds.
    offset_ns: i64,
}

/// What a reading of the clocks said.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Told {
    /// The same kernel as before; the counter's frequency so far, in Hz.
    Same(Option<f64>),
    /// Another kernel; `None` where no clock tells how long it took.
    Crossed(Option<Crossing>),
}

impl Axis {
    /// A time of the running kernel, on the axis.
    #[must_use]
    pub const fn at(&self, t_ns: u64) -> u64 {
        t_ns.saturating_add_signed(self.offset_ns)
    }

    /// The time of the running kernel that is at `at` on the axis.
    #[must_use]
    pub const fn of_kernel(&self, at: u64) -> u64 {
        at.saturating_add_signed(self.offset_ns.wrapping_neg())
    }

    /// The boot id of the running kernel; `None` where its clocks were not read, or have none.
    #[must_use]
    pub fn boot_id(&self) -> Option<[u8; 16]> {
        Some(self.last?.anchor.boot_id).filter(|id| *id != [0; 16])
    }

    /// `CLOCK_REALTIME` at a time of the running kernel, in nanoseconds since 1970, by the last reading.
    #[must_use]
    pub fn realtime(&self, t_ns: u64) -> Option<u64> {
        let last = self.last?;
        let since = t_ns.cast_signed().wrapping_sub(last.t_ns.cast_signed());
        last.anchor.realtime_ns.checked_add_signed(since)
    }

    /// Takes in a reading of all clocks, made at `t_ns`.
    pub fn read(&mut self, t_ns: u64, anchor: Anchor) -> Told {
        let now = Reading { t_ns, anchor };
        let Some(last) = self.last.replace(now) else {
            self.first = Some(now);
            return Told::Same(None);
        };
        if last.anchor.boot_id == anchor.boot_id {
            return Told::Same(self.hz());
        }
        let old = self
            .first
            .and_then(|first| frequency(&first.anchor, &last.anchor));
        self.first = Some(now);
        let crossing = cross(&last.anchor, &anchor, old);
        // Without any clock the axis goes on where it was, and nothing may be measured across.
        let gap_ns = crossing.map_or(0, |crossing| crossing.gap_ns);
        let here = self.at(last.t_ns).saturating_add(gap_ns);
        self.offset_ns = here.cast_signed().wrapping_sub(t_ns.cast_signed());
        Told::Crossed(crossing)
    }

    /// The counter's frequency as this kernel measured it, in Hz.
    fn hz(&self) -> Option<f64> {
        frequency(&self.first?.anchor, &self.last?.anchor).map(|(hz, _)| hz)
    }
}

fn cross(old: &Anchor, new: &Anchor, measured: Option<(f64, f64)>) -> Option<Crossing> {
    let realtime_gap_ns = new
        .realtime_ns
        .cast_signed()
        .wrapping_sub(old.realtime_ns.cast_signed());
    let disagreement = |gap: u64| {
        let apart = gap.cast_signed().saturating_sub(realtime_gap_ns);
        Duration::from_nanos(apart.unsigned_abs())
    };
    let by_counter = measured
        .map(|(hz, _)| hz)
        .zip(new.counter.checked_sub(old.counter))
        .filter(|_| old.counter != 0)
        .map(|(hz, ticks)| (ticks as f64 / hz * 1e9) as u64)
        .filter(|gap| *gap >= new.raw_ns);
    let (clock, gap_ns) = match by_counter {
        Some(gap) => (Clock::Counter, gap),
        None => (Clock::Realtime, u64::try_from(realtime_gap_ns).ok()?),
    };
    let apart = disagreement(gap_ns);
    let spread_ns = old.spread_ns.saturating_add(new.spread_ns);
    Some(Crossing {
        clock,
        gap_ns,
        realtime_gap_ns,
        old_hz: measured.map(|(hz, _)| hz),
        old_hz_error: measured.map_or(0.0, |(_, error)| error),
        new_hz: None,
        spread_ns: if apart > AGREE {
            spread_ns.saturating_add(apart.as_nanos() as u64)
        } else {
            spread_ns
        },
    })
}

/// Ticks a second, held against `CLOCK_MONOTONIC_RAW`, which nobody steers; and what that may be off by, as
/// a fraction.
fn frequency(from: &Anchor, to: &Anchor) -> Option<(f64, f64)> {
    let span = Duration::from_nanos(to.raw_ns.checked_sub(from.raw_ns)?);
    let ticks = to.counter.checked_sub(from.counter)?;
    let spread = Duration::from_nanos(from.spread_ns.saturating_add(to.spread_ns));
    (span >= LEAST_SPAN && ticks > 0).then(|| {
        (
            ticks as f64 / span.as_secs_f64(),
            spread.as_secs_f64() / span.as_secs_f64(),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anchor(boot: u8, seconds: f64, counter: f64, realtime: f64) -> Anchor {
        Anchor {
            boot_id: [boot; 16],
            counter: counter as u64,
            raw_ns: (seconds * 1e9) as u64,
            realtime_ns: (realtime * 1e9) as u64,
            spread_ns: 50,
            ..Anchor::default()
        }
    }

    fn read(axis: &mut Axis, anchor: Anchor) -> Told {
        axis.read(anchor.raw_ns, anchor)
    }

    #[test]
    fn the_counter_tells_the_gap_and_two_frequencies_the_uncertainty() {
        let mut axis = Axis::default();
        read(&mut axis, anchor(1, 100.0, 1e12, 5000.0));
        read(&mut axis, anchor(1, 110.0, 1e12 + 20e9, 5010.0));
        // Ten seconds of darkness; the new kernel has been up for three of them, and its RTC is late.
        let told = read(&mut axis, anchor(2, 3.0, 1e12 + 40e9, 5019.5));
        let Told::Crossed(Some(mut crossing)) = told else {
            panic!("{told:?}");
        };
        assert_eq!(
            (crossing.clock, crossing.gap_ns),
            (Clock::Counter, 10_000_000_000)
        );
        assert_eq!(crossing.realtime_gap_ns, 9_500_000_000);
        assert_eq!(crossing.uncertainty_ns(), None);
        assert_eq!(axis.at(3_000_000_000), 120_000_000_000);
        // It counts a thousandth more ticks a second.
        let Told::Same(hz) = read(&mut axis, anchor(2, 13.0, 1e12 + 60.02e9, 5029.5)) else {
            panic!("the same kernel");
        };
        crossing.new_hz = hz;
        // A hundred nanoseconds of reading in ten seconds are as much again in the gap.
        assert_eq!(crossing.uncertainty_ns(), Some(10_000_000 + 100 + 100));
    }

    #[test]
    fn a_counter_that_was_reset_leaves_the_gap_to_the_clock_of_the_day() {
        let mut axis = Axis::default();
        read(&mut axis, anchor(1, 100.0, 9e12, 5000.0));
        read(&mut axis, anchor(1, 110.0, 9e12 + 20e9, 5010.0));
        let told = read(&mut axis, anchor(2, 3.0, 6e9, 5040.0));
        let Told::Crossed(Some(crossing)) = told else {
            panic!("{told:?}");
        };
        assert_eq!(
            (crossing.clock, crossing.gap_ns),
            (Clock::Realtime, 30_000_000_000)
        );
        assert_eq!(crossing.uncertainty_ns(), Some(1_000_000_100));
    }

    #[test]
    fn without_any_clock_nothing_is_measured_across() {
        let mut axis = Axis::default();
        read(&mut axis, anchor(1, 100.0, 0.0, 5000.0));
        assert_eq!(
            read(&mut axis, anchor(2, 3.0, 0.0, 4000.0)),
            Told::Crossed(None)
        );
    }
}
