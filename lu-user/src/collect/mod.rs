//! From the ring buffer to typed events, in order, with every loss counted.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::time::Duration;

use aya::maps::{MapData, PerCpuArray, RingBuf};
use lu_common::event::{Call, Counters, Header, Kind, Record};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use zerocopy::FromBytes as _;

use crate::attach::{Attached, CountersPod, skipped};
use crate::journal::clocks::now_ns;

/// What was lost on the way, since the hooks were attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Records for which the ring buffer had no room.
    pub ring_full: u64,
    /// Returns of functions whose entry was not remembered.
    pub no_entry: u64,
    /// Runs of a program that the kernel skipped, because the same program was already running on that CPU: each would
    /// have sent a record, or told one what the call was about. As of the last [`Collector::ask_programs`].
    pub skipped: u64,
    /// Records without what could not be read.
    pub bad_read: u64,
}

impl Losses {
    /// Records that were not sent, or may lack what a skipped program would have told.
    #[must_use]
    pub const fn records(&self) -> u64 {
        self.ring_full + self.no_entry + self.skipped
    }
}

/// How many records are taken at once.
pub const BATCH: usize = 8192;

/// The consumer's end of the ring buffer.
pub struct Collector {
    ring: AsyncFd<Ring>,
    alarm: AsyncFd<Ring>,
    /// What a policy says, where one is in force.
    verdicts: Option<AsyncFd<Ring>>,
    counters: PerCpuArray<MapData, CountersPod>,
    told: Losses,
    /// Whether there was more than was taken.
    more: bool,
    /// How many records the ring buffer holds.
    capacity: usize,
    /// The programs to ask for [`Losses::skipped`], and what each has told; `_programs` keeps them open.
    asked: Vec<(RawFd, u64)>,
    /// The hooks are attached as long as their programs are held.
    _programs: aya::Ebpf,
}

struct Ring(RingBuf<MapData>);

impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Collector {
    /// Takes over the attached hooks' records. Must be called within a tokio runtime.
    pub fn new(attached: Attached) -> io::Result<Self> {
        let asked = attached
            .asked_for_skips()
            .map(|program| (program.as_fd().as_raw_fd(), 0))
            .collect();
        let Attached {
            programs,
            coverage: _,
            unknown_members: _,
            events,
            capacity,
            alarm,
            counters,
        } = attached;
        Ok(Self {
            ring: register(events)?,
            alarm: register(alarm)?,
            verdicts: None,
            counters,
            told: Losses::default(),
            more: false,
            capacity,
            asked,
            _programs: programs,
        })
    }

    /// Takes a policy's verdicts too, from now on.
    pub fn take_verdicts(&mut self, verdicts: RingBuf<MapData>) -> io::Result<()> {
        self.verdicts = Some(register(verdicts)?);
        Ok(())
    }

    /// Waits until there are records, and hands each to `each`, oldest first, but no more than [`BATCH`]: whoever
    /// makes them faster than they are taken must not keep us from anything else. Where records were lost
    /// a record of [`Kind::Lost`] says how many, after those that were there before.
    pub async fn collect(&mut self, each: impl FnMut(&Record)) -> io::Result<()> {
        if !self.more {
            let verdicts = async {
                match &mut self.verdicts {
                    Some(verdicts) => cleared(verdicts).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                ready = cleared(&mut self.ring) => ready?,
                ready = verdicts => ready?,
            }
        }
        self.finish(each)
    }

    /// Lets records gather for `pause`, unless some have waited already or this kernel is about to go. Meanwhile they
    /// wake nobody up: one by one they would cost their callers more.
    pub async fn gather(&mut self, pause: Duration) -> io::Result<()> {
        if self.more {
            // Signals and timers have their turn.
            tokio::task::yield_now().await;
        } else if let Ok(guard) = tokio::time::timeout(pause, self.alarm.readable_mut()).await {
            let mut guard = guard?;
            drain(&mut guard.get_inner_mut().0, BATCH, &mut |_| {});
            guard.clear_ready();
        }
        Ok(())
    }

    /// Takes what is there without waiting, up to [`BATCH`], and without asking for losses: as fast as it can be done.
    pub fn sweep(&mut self, mut each: impl FnMut(&Record)) {
        self.take(BATCH, &mut each);
    }

    /// Takes what is there without waiting, up to [`BATCH`], and tells losses once nothing is left that was before
    /// them.
    pub fn finish(&mut self, mut each: impl FnMut(&Record)) -> io::Result<()> {
        self.sweep(&mut each);
        if self.more {
            return Ok(());
        }
        self.tell_losses(each)
    }

    /// Takes all that is there without waiting, and asks every program too.
    pub fn take_stock(&mut self, mut each: impl FnMut(&Record)) -> io::Result<()> {
        self.ask_programs()?;
        // More than that have come meanwhile.
        self.take(self.capacity, &mut each);
        self.tell_losses(each)
    }

    fn take(&mut self, most: usize, each: &mut impl FnMut(&Record)) {
        let verdicts = self.verdicts.as_mut();
        let verdicts = verdicts.map(|verdicts| &mut verdicts.get_mut().0);
        self.more = merge(&mut self.ring.get_mut().0, verdicts, most, each);
    }

    fn tell_losses(&mut self, mut each: impl FnMut(&Record)) -> io::Result<()> {
        let losses = self.losses()?;
        let new = losses.records().saturating_sub(self.told.records());
        if new > 0 {
            each(&loss(new));
        }
        self.told = losses;
        Ok(())
    }

    /// Asks the kernel which runs of programs it has skipped; [`finish`](Self::finish) tells them. That takes some
    /// microseconds for each program, too long for every batch.
    pub fn ask_programs(&mut self) -> io::Result<()> {
        self.programs()
            .try_for_each(|program| self.ask_program(program))
    }

    /// The programs to ask, by number.
    #[must_use]
    pub const fn programs(&self) -> Range<usize> {
        0..self.asked.len()
    }

    /// Asks one of [`programs`](Self::programs).
    pub fn ask_program(&mut self, number: usize) -> io::Result<()> {
        if let Some((program, skipped)) = self.asked.get_mut(number) {
            *skipped = skipped::runs(*program)?;
        }
        Ok(())
    }

    /// What was lost up to when it was last told of.
    #[must_use]
    pub const fn told(&self) -> Losses {
        self.told
    }

    /// What was lost so far.
    pub fn losses(&self) -> io::Result<Losses> {
        let all = self.counters.get(&0, 0).map_err(io::Error::other)?;
        let none = Losses {
            skipped: self.asked.iter().map(|(_, skipped)| skipped).sum(),
            ..Losses::default()
        };
        Ok(all.iter().fold(none, |sum, cpu| {
            let Counters {
                made: _,
                ring_full,
                no_entry,
                bad_read,
            } = cpu.0;
            Losses {
                ring_full: sum.ring_full + ring_full,
                no_entry: sum.no_entry + no_entry,
                bad_read: sum.bad_read + bad_read,
                ..sum
            }
        }))
    }
}

fn register(ring: RingBuf<MapData>) -> io::Result<AsyncFd<Ring>> {
    // SAFETY: the descriptor belongs to the map within, which is neither replaced nor closed
    // before the registration ends: both live in `Ring`, and nothing hands it out.
    unsafe { AsyncFd::register_with_interest(Ring(ring), Interest::READABLE) }
        .map_err(|error| io::Error::other(error.to_string()))
}

/// Waits until something is there. What comes from now on wakes again, so all that is there has to be taken before
/// the next wait.
async fn cleared(ring: &mut AsyncFd<Ring>) -> io::Result<()> {
    ring.readable_mut().await?.clear_ready();
    Ok(())
}

/// Takes up to `most` records; whether there may be more.
fn drain(ring: &mut RingBuf<MapData>, most: usize, each: &mut impl FnMut(&Record)) -> bool {
    take(most, || {
        let item = ring.next()?;
        // The programs send nothing else; a stranger's bytes would be no record.
        if let Ok(record) = Record::ref_from_bytes(&item) {
            each(record);
        }
        Some(())
    })
}

/// Takes up to `most` of each; whether there may be more. A verdict comes before what ended after it.
fn merge(
    ring: &mut RingBuf<MapData>,
    verdicts: Option<&mut RingBuf<MapData>>,
    most: usize,
    each: &mut impl FnMut(&Record),
) -> bool {
    let mut said = VecDeque::new();
    // These first: what was sent before one of them is in the other by then.
    let more = verdicts
        .is_some_and(|verdicts| drain(verdicts, most, &mut |record| said.push_back(*record)));
    let more = drain(ring, most, &mut |record| {
        let end_ns = record.end_ns().unwrap_or(record.header.t_ns);
        while let Some(verdict) = said.pop_front_if(|verdict| verdict.header.t_ns < end_ns) {
            each(&verdict);
        }
        each(record);
    }) || more;
    for verdict in &said {
        each(verdict);
    }
    more
}

/// Takes one after the other, up to `most`, as long as there is one; whether there may be more.
fn take(most: usize, mut one: impl FnMut() -> Option<()>) -> bool {
    (0..most).all(|_| one().is_some())
}

fn loss(count: u64) -> Record {
    Record {
        header: Header {
            t_ns: now_ns(),
            kind: Kind::Lost as u8,
            ..Header::default()
        },
        call: Call {
            bytes: count,
            ..Call::default()
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_ends_is_taken_in_batches() {
        let mut taken = 0;
        let mut endless = || {
            taken += 1;
            Some(())
        };
        assert!(take(BATCH, &mut endless));
        assert!(take(BATCH, &mut endless));
        assert_eq!(taken, 2 * BATCH);
    }

    #[test]
    fn what_ends_is_taken_as_a_whole() {
        let mut left = 5;
        let mut some = || {
            left -= 1;
            (left > 0).then_some(())
        };
        assert!(!take(BATCH, &mut some));
        assert_eq!(left, 0);
    }
}
