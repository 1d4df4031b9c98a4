//! How long a canary was dark, and how regularly it beat on both sides of that. Pure.

use serde::Serialize;

use super::{Beat, Life};
use crate::timeline::clock::{Axis, Clock, Crossing, Told};

/// From the last beat of the old kernel to the first of the new one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Gap {
    /// How long, in nanoseconds.
    pub ns: u64,
    /// It may be off by this, in nanoseconds; null where the new kernel's frequency is not known.
    pub uncertainty_ns: Option<u64>,
    /// The clock that tells: `monotonic` where both beats are one kernel's (an emulated kexec).
    pub clock: Clock,
    /// The same by `CLOCK_REALTIME`, in nanoseconds; negative where the RTC came back too early.
    pub realtime_ns: i64,
    /// The counter's frequency as the old kernel measured it, in Hz: the one that is used.
    pub old_hz: Option<f64>,
    /// As the new one does.
    pub new_hz: Option<f64>,
    /// The last beat of the old kernel.
    pub last: Beat,
    /// The first of the new one.
    pub first: Beat,
}

/// The intervals between beats that follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Rhythm {
    /// How many beats.
    pub beats: u64,
    /// Half of the intervals are no longer, in nanoseconds.
    pub p50_ns: u64,
    /// 99 of 100 are no longer, in nanoseconds.
    pub p99_ns: u64,
    /// None is longer, in nanoseconds.
    pub max_ns: u64,
}

impl Rhythm {
    /// That of some beats; `None` where no two follow one another.
    #[must_use]
    pub fn of(beats: &[Beat]) -> Option<Self> {
        let mut intervals: Vec<u64> = beats
            .windows(2)
            .filter(|two| two[0].number.checked_add(1) == Some(two[1].number))
            .filter_map(|two| two[1].monotonic_ns.checked_sub(two[0].monotonic_ns))
            .collect();
        intervals.sort_unstable();
        let last = intervals.len().checked_sub(1)?;
        Some(Self {
            beats: beats.len() as u64,
            p50_ns: intervals[last / 2],
            p99_ns: intervals[last * 99 / 100],
            max_ns: intervals[last],
        })
    }
}

/// How long it was dark. `None` where the old kernel left no beat, or no clock spans both.
#[must_use]
pub fn gap(before: &Life, first: &Beat, after: &Life) -> Option<Gap> {
    let last = before.beats.last()?;
    let realtime_ns = first
        .realtime_ns
        .cast_signed()
        .wrapping_sub(last.realtime_ns.cast_signed());
    let Some(crossing) = crossing(before, after)? else {
        return Some(Gap {
            ns: first.monotonic_ns.checked_sub(last.monotonic_ns)?,
            // Both ends are read to the nanosecond.
            uncertainty_ns: Some(2),
            clock: Clock::Monotonic,
            realtime_ns,
            old_hz: None,
            new_hz: None,
            last: *last,
            first: *first,
        });
    };
    let ns = match (crossing.clock, crossing.old_hz) {
        (Clock::Counter, Some(hz)) => {
            (first.counter.checked_sub(last.counter)? as f64 / hz * 1e9) as u64
        }
        _ => u64::try_from(realtime_ns).ok()?,
    };
    // The beats' gap is another one than that of the readings by which the clocks are known.
    let crossing = Crossing {
        gap_ns: ns,
        ..crossing
    };
    Some(Gap {
        ns,
        uncertainty_ns: crossing.uncertainty_ns(),
        clock: crossing.clock,
        realtime_ns,
        old_hz: crossing.old_hz,
        new_hz: crossing.new_hz,
        last: *last,
        first: *first,
    })
}

/// How the clocks lie to each other by the canary's own readings: `Some(None)` where both are one kernel's.
#[expect(
    clippy::option_option,
    reason = "no clock at all, and no crossing at all, are two things"
)]
fn crossing(before: &Life, after: &Life) -> Option<Option<Crossing>> {
    let mut axis = Axis::default();
    let mut found = None;
    for record in before.clocks.iter().chain(&after.clocks).flatten() {
        match axis.read(record.header.t_ns, record.anchor()?) {
            Told::Crossed(crossing) => found = Some(crossing?),
            Told::Same(hz) => {
                if let Some(crossing) = &mut found {
                    crossing.new_hz = hz;
                }
            }
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use lu_common::event::{Anchor, Kind, Record};

    use super::*;

    fn beat(number: u64, ms: u64, counter: u64, realtime_ms: u64) -> Beat {
        Beat {
            number,
            counter,
            monotonic_ns: ms * 1_000_000,
            realtime_ns: realtime_ms * 1_000_000,
        }
    }

    fn reading(boot: u8, ms: u64, counter: u64, realtime_ms: u64) -> Record {
        let anchor = Anchor {
            boot_id: [boot; 16],
            counter,
            raw_ns: ms * 1_000_000,
            realtime_ns: realtime_ms * 1_000_000,
            ..Anchor::default()
        };
        Record::made(Kind::Anchor, ms * 1_000_000, zerocopy::transmute!(anchor))
    }

    /// A thousand ticks a millisecond; the old kernel ends at 20 s, the new one is up for 2 s when it beats.
    fn lives() -> (Life, Beat, Life) {
        let before = Life {
            beats: vec![
                beat(7, 19_999, 20_999_000, 60_999),
                beat(8, 20_000, 21_000_000, 61_000),
            ],
            clocks: [
                Some(reading(1, 10_000, 11_000_000, 51_000)),
                Some(reading(1, 19_500, 20_500_000, 60_500)),
            ],
        };
        let first = beat(9, 2_000, 26_000_000, 65_600);
        let after = Life {
            beats: vec![first],
            clocks: [
                Some(reading(2, 2_001, 26_001_000, 65_601)),
                Some(reading(2, 3_001, 27_002_000, 66_601)),
            ],
        };
        (before, first, after)
    }

    #[test]
    fn the_gap_is_told_by_the_counter_at_the_old_kernels_frequency() {
        let (before, first, after) = lives();
        let gap = gap(&before, &first, &after).expect("a gap");
        assert_eq!((gap.ns, gap.clock), (5_000_000_000, Clock::Counter));
        assert_eq!(gap.realtime_ns, 4_600_000_000);
        assert_eq!(gap.old_hz, Some(1e6));
        // The new kernel counts a thousandth more.
        assert_eq!(gap.uncertainty_ns, Some(5_000_000));
    }

    #[test]
    fn without_a_counter_the_clock_of_the_day_has_to_do() {
        let (mut before, first, mut after) = lives();
        for record in before.clocks.iter_mut().chain(&mut after.clocks).flatten() {
            let anchor = Anchor {
                counter: 0,
                ..record.anchor().expect("one")
            };
            record.call = zerocopy::transmute!(anchor);
        }
        let gap = gap(&before, &first, &after).expect("a gap");
        assert_eq!((gap.ns, gap.clock), (4_600_000_000, Clock::Realtime));
        assert!(gap.uncertainty_ns >= Some(1_000_000_000));
    }

    #[test]
    fn within_one_kernel_its_own_clock_tells() {
        let (before, mut first, _) = lives();
        first.monotonic_ns = 20_500 * 1_000_000;
        let after = Life {
            beats: vec![first],
            clocks: [Some(reading(1, 20_501, 21_501_000, 61_501)), None],
        };
        let gap = gap(&before, &first, &after).expect("a gap");
        assert_eq!((gap.ns, gap.clock), (500_000_000, Clock::Monotonic));
    }

    #[test]
    fn a_canary_that_never_beat_tells_of_no_gap() {
        let (mut before, first, after) = lives();
        before.beats.clear();
        assert_eq!(gap(&before, &first, &after), None);
    }

    #[test]
    fn the_rhythm_is_that_of_beats_that_follow_one_another() {
        let mut beats: Vec<Beat> = (0..101).map(|n| beat(n, n, 0, 0)).collect();
        beats.push(beat(101, 150, 0, 0));
        // After a gap in the numbers nobody knows how long an interval was.
        beats.push(beat(200, 9_000, 0, 0));
        let rhythm = Rhythm::of(&beats).expect("a rhythm");
        assert_eq!(
            (rhythm.p50_ns, rhythm.p99_ns, rhythm.max_ns),
            (1_000_000, 1_000_000, 50_000_000)
        );
        assert_eq!(Rhythm::of(&beats[..1]), None);
    }
}
