//! A workload that does nothing but notice that it runs: the blackout as a workload feels it.
//!
//! It writes a [`Beat`] every so often into a memfd that is in a session of its own, and goes on doing so
//! until the machine stops it. In the new kernel it takes the memfd back, maps it, and goes on beating in it.
//! What lies between the last beat of the old kernel and the first of the new one is told by clocks that it
//! has read itself, so that what lu says of the same span can be held against it.
//!
//! The memfd has a page with a header, then a ring of the last beats.

pub mod gap;

use std::fs::File;
use std::io;
use std::mem::offset_of;
use std::ops::{Range, RangeInclusive};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lu_common::event::Record;
use nix::errno::Errno;
use nix::time::{ClockId, ClockNanosleepFlags, clock_nanosleep};
use serde::Serialize;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::client;
use crate::client::sessions::{Device, Session};
use crate::emulate::DEVICE;
use crate::journal::clocks;
use crate::journal::counter::counter;
use crate::preserved::{Memory, patiently};
use crate::reboot_cpu::OffRebootCpu;

/// Its session's name.
pub const SESSION: &str = crate::timeline::CANARY;

/// The memfd's token.
const TOKEN: u64 = 1;

/// How many of the last beats are kept.
const CAPACITY: u64 = 32_768;

/// Where the beats begin, in bytes.
const BEATS: usize = 4096;

/// The memfd's length, in bytes.
const LENGTH: u64 = BEATS as u64 + CAPACITY * size_of::<Beat>() as u64;

const MAGIC: [u8; 8] = *b"lu.cnry\n";
const VERSION: u64 = 1;

/// A moment at which the canary ran.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Serialize,
)]
pub struct Beat {
    /// Which one, counted from 0 over all kernels.
    pub number: u64,
    /// The CPU's counter, whether it is a clock or not.
    pub counter: u64,
    /// `CLOCK_MONOTONIC`, in nanoseconds.
    pub monotonic_ns: u64,
    /// `CLOCK_REALTIME`, in nanoseconds since 1970.
    pub realtime_ns: u64,
}

impl Beat {
    fn now() -> Self {
        Self {
            number: 0,
            counter: counter(),
            monotonic_ns: clocks::now_ns(),
            realtime_ns: clocks::realtime_ns(),
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct Header {
    magic: [u8; 8],
    version: u64,
    /// How often it beats, in nanoseconds.
    every_ns: u64,
    /// The first beat in the kernel that runs.
    since: u64,
    /// How many beats there ever were. Written after the beat itself.
    head: u64,
    /// How many readings of all clocks there were in the kernel that runs. Written after the reading.
    readings: u64,
    reserved: [u8; 80],
    /// The first reading in this kernel, and in turns the newest.
    clocks: [Record; 3],
}

const _: () = {
    assert!(size_of::<Beat>() == 32);
    assert!(size_of::<Header>() == 512);
    assert!(size_of::<Header>() <= BEATS);
};

/// What goes wrong with a canary.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The orchestrator refused.
    #[error(transparent)]
    Client(#[from] client::Error),
    /// v3 has no sessions: its device would have to be kept from everybody else.
    #[error("a canary needs the sessions interface, and this orchestrator has v3")]
    V3,
    /// No session of that name was handed over.
    #[error(
        "no session {SESSION} was handed over: `lu canary` in the old kernel begins one, and has to be \
         running when the machine is stopped"
    )]
    Nothing,
    /// The memory could not be had.
    #[error("cannot map the canary's memory: {0}")]
    Memory(#[from] io::Error),
    /// What was handed over is something else.
    #[error("what session {SESSION} handed over is no canary of this version of lu: {0}")]
    Foreign(&'static str),
}

/// How often it may beat.
pub const EVERY: RangeInclusive<Duration> = Duration::from_micros(1)..=Duration::from_secs(1);

/// How it waits for the next beat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Asleep.
    Sleep,
    /// Looking at the clock all the time; whoever else wants to run on that CPU does so in between.
    Spin,
}

/// The canary. Any thread may read it; one beats.
#[derive(Debug)]
pub struct Canary {
    file: File,
    memory: Memory,
    every: Duration,
}

/// What the memory says of one kernel.
#[derive(Clone, Debug)]
pub struct Life {
    /// The last beats, oldest first.
    pub beats: Vec<Beat>,
    /// The first reading of all clocks, and the newest.
    pub clocks: [Option<Record>; 2],
}

/// A canary that came through a kexec.
#[derive(Debug)]
pub struct Resumed {
    /// It has beaten once.
    pub canary: Canary,
    /// What it says of the old kernel.
    pub before: Life,
    /// Its first beat in the new one.
    pub first: Beat,
    /// The session that it came in, which is to be finished.
    pub session: Session,
}

impl Canary {
    /// One that has not beaten yet.
    pub fn create(every: Duration) -> Result<Self, Error> {
        let (file, memory) = Memory::create(SESSION, LENGTH)?;
        let header = Header {
            magic: MAGIC,
            version: VERSION,
            every_ns: every.as_nanos() as u64,
            since: 0,
            head: 0,
            readings: 0,
            reserved: [0; 80],
            clocks: [Record::default(); 3],
        };
        memory.write(0, header.as_bytes());
        let canary = Self {
            file,
            memory,
            every,
        };
        canary.read_clocks();
        Ok(canary)
    }

    /// Puts it into a session for the next kernel. The device is held for that moment alone.
    pub fn preserve(&self, give_up: &AtomicBool) -> Result<Session, Error> {
        let session = patiently(give_up, || Device::open(DEVICE.as_ref())?.create(SESSION))
            .map_err(|error| unless_v3(&error).unwrap_or(Error::Client(error)))?;
        session.preserve(TOKEN, &self.file)?;
        Ok(session)
    }

    /// Takes back the one that the old kernel handed over, and lets it beat at once.
    pub fn resume(give_up: &AtomicBool) -> Result<Resumed, Error> {
        let retrieved = patiently(give_up, || Device::open(DEVICE.as_ref())?.retrieve(SESSION));
        let session = retrieved.map_err(|error| match error.errno() {
            Errno::ENOENT if !matches!(error, client::Error::Open { .. }) => Error::Nothing,
            _ => unless_v3(&error).unwrap_or(Error::Client(error)),
        })?;
        let file = session.retrieve(TOKEN)?;
        // Before anything else: it is the end of the darkness.
        let first = Beat::now();
        let (canary, before, first) = Self::take_over(file.into(), first)?;
        Ok(Resumed {
            canary,
            before,
            first,
            session,
        })
    }

    fn take_over(file: File, first: Beat) -> Result<(Self, Life, Beat), Error> {
        if file.metadata()?.len() != LENGTH {
            return Err(Error::Foreign("its size is another"));
        }
        let memory = Memory::map(&file)?;
        let mut header = [0; size_of::<Header>()];
        memory.read(0, &mut header);
        let header: Header = zerocopy::transmute!(header);
        if header.magic != MAGIC {
            return Err(Error::Foreign("it begins otherwise"));
        }
        if header.version != VERSION {
            return Err(Error::Foreign("another version wrote it"));
        }
        let every = Duration::from_nanos(header.every_ns);
        if !EVERY.contains(&every) {
            return Err(Error::Foreign("it beats at a pace that makes no sense"));
        }
        let canary = Self {
            file,
            memory,
            every,
        };
        let first = canary.beat(first);
        let before = canary.life(header.since..header.head);
        canary.set(offset_of!(Header, since), header.head);
        canary.set(offset_of!(Header, readings), 0);
        canary.read_clocks();
        Ok((canary, before, first))
    }

    /// How often it beats.
    #[must_use]
    pub const fn every(&self) -> Duration {
        self.every
    }

    /// What it has of the kernel that runs.
    #[must_use]
    pub fn now(&self) -> Life {
        let word = |at| self.memory.word(at).load(Ordering::Acquire);
        self.life(word(offset_of!(Header, since))..word(offset_of!(Header, head)))
    }

    /// Whether the clocks were read twice since it began in this kernel, so that the counter's frequency is known.
    #[must_use]
    pub fn knows_its_clocks(&self) -> bool {
        self.memory
            .word(offset_of!(Header, readings))
            .load(Ordering::Acquire)
            > 1
    }

    /// Those of the beats that are still there. One that was being written when its writer was stopped, or is
    /// being written now, is left out: its number is another.
    fn life(&self, numbers: Range<u64>) -> Life {
        let first = numbers.start.max(numbers.end.saturating_sub(CAPACITY));
        let beats = (first..numbers.end)
            .filter_map(|number| {
                let mut beat = [0; size_of::<Beat>()];
                self.memory.read(slot(number), &mut beat);
                let beat: Beat = zerocopy::transmute!(beat);
                (beat.number == number).then_some(beat)
            })
            .collect();
        let readings = self
            .memory
            .word(offset_of!(Header, readings))
            .load(Ordering::Acquire);
        let clocks = [0, readings.saturating_sub(1)].map(|number| {
            let mut record = [0; size_of::<Record>()];
            self.memory.read(clock_slot(number), &mut record);
            (readings > 0).then(|| zerocopy::transmute!(record))
        });
        Life { beats, clocks }
    }

    fn set(&self, at: usize, value: u64) {
        self.memory.word(at).store(value, Ordering::Release);
    }

    /// Keeps a beat, and gives it its number.
    fn beat(&self, beat: Beat) -> Beat {
        let head = self.memory.word(offset_of!(Header, head));
        let number = head.load(Ordering::Relaxed);
        let beat = Beat { number, ..beat };
        self.memory.write(slot(number), beat.as_bytes());
        head.store(number.wrapping_add(1), Ordering::Release);
        beat
    }

    /// One reading of all clocks, by which the counter's frequency is known.
    fn read_clocks(&self) {
        let readings = self.memory.word(offset_of!(Header, readings));
        let number = readings.load(Ordering::Relaxed);
        self.memory
            .write(clock_slot(number), clocks::anchor().as_bytes());
        readings.store(number.wrapping_add(1), Ordering::Release);
    }

    /// Beats until it is told to stop, or the machine stops: on any CPU but the one where the kernel shuts down,
    /// which stops what else runs there earlier.
    pub fn sing(&self, pace: Pace, stop: &AtomicBool) {
        let _elsewhere = OffRebootCpu::new();
        let mut reading = FIRST_READING;
        let mut next_reading = clocks::now_ns() + reading.as_nanos() as u64;
        let every_ns = self.every.as_nanos() as u64;
        let mut next = clocks::now_ns();
        while !stop.load(Ordering::Relaxed) {
            self.beat(Beat::now());
            let now = clocks::now_ns();
            if now >= next_reading {
                self.read_clocks();
                reading = (reading * 2).min(LONGEST_READING);
                next_reading = now + reading.as_nanos() as u64;
            }
            next += every_ns;
            let now = clocks::now_ns();
            if next <= now {
                // One that came late is not made up for: others could not run at all where this had priority.
                next = now + every_ns;
            }
            match pace {
                Pace::Sleep => sleep_until(next),
                Pace::Spin => {
                    while clocks::now_ns() < next {
                        std::thread::yield_now();
                    }
                }
            }
        }
    }
}

/// The clocks are read again after this, each time after twice as long, up to [`LONGEST_READING`].
const FIRST_READING: Duration = Duration::from_millis(125);
const LONGEST_READING: Duration = Duration::from_secs(1);

const fn slot(number: u64) -> usize {
    BEATS + (number % CAPACITY) as usize * size_of::<Beat>()
}

/// The first stays, the others take turns.
const fn clock_slot(number: u64) -> usize {
    let index = if number == 0 { 0 } else { 1 + number % 2 };
    offset_of!(Header, clocks) + index as usize * size_of::<Record>()
}

fn sleep_until(ns: u64) {
    let at = Duration::from_nanos(ns).into();
    // Woken by a signal it beats early, which is no harm.
    let _ = clock_nanosleep(
        ClockId::CLOCK_MONOTONIC,
        ClockNanosleepFlags::TIMER_ABSTIME,
        &at,
    );
}

/// v3 takes the numbers of both calls for commands of its own, and finds more bytes than they have.
fn unless_v3(error: &client::Error) -> Option<Error> {
    (error.errno() == Errno::E2BIG).then_some(Error::V3)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY_MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_canary_that_is_taken_over_goes_on_counting_and_tells_of_its_former_life() {
        let old = Canary::create(EVERY_MS).expect("a canary");
        for _ in 0..5 {
            old.beat(Beat::now());
        }
        let (new, before, first) =
            Canary::take_over(old.file.try_clone().expect("another"), Beat::now()).expect("whole");
        let numbers = |life: &Life| -> Vec<u64> { life.beats.iter().map(|b| b.number).collect() };
        assert_eq!(numbers(&before), [0, 1, 2, 3, 4]);
        assert_eq!(first.number, 5);
        assert!(before.clocks.iter().all(Option::is_some));
        new.beat(Beat::now());
        assert_eq!(numbers(&new.now()), [5, 6]);
        assert_eq!(new.every(), EVERY_MS);
    }

    #[test]
    fn of_more_beats_than_there_is_room_for_the_newest_are_told() {
        let canary = Canary::create(EVERY_MS).expect("a canary");
        for _ in 0..CAPACITY + 7 {
            canary.beat(Beat::now());
        }
        let beats = canary.now().beats;
        assert_eq!(beats.len() as u64, CAPACITY);
        assert_eq!(beats.first().expect("one").number, 7);
        assert!(
            beats
                .windows(2)
                .all(|two| two[0].number + 1 == two[1].number)
        );
    }

    #[test]
    fn a_beat_whose_writing_was_cut_short_is_left_out() {
        let canary = Canary::create(EVERY_MS).expect("a canary");
        for _ in 0..3 {
            canary.beat(Beat::now());
        }
        // The ring is full and its oldest place is being written when the machine stops.
        canary
            .memory
            .word(slot(1))
            .store(CAPACITY + 1, Ordering::Relaxed);
        let numbers: Vec<u64> = canary.now().beats.iter().map(|b| b.number).collect();
        assert_eq!(numbers, [0, 2]);
    }

    #[test]
    fn what_is_no_canary_is_refused_whatever_it_has_inside() {
        let taken =
            |file: &File| Canary::take_over(file.try_clone().expect("another"), Beat::now());
        let canary = Canary::create(EVERY_MS).expect("a canary");
        canary.beat(Beat::now());
        assert!(taken(&canary.file).is_ok());
        for (at, value) in [
            (offset_of!(Header, magic), 7),
            (offset_of!(Header, version), 99),
            (offset_of!(Header, every_ns), 0),
            (offset_of!(Header, every_ns), u64::MAX),
        ] {
            let canary = Canary::create(EVERY_MS).expect("a canary");
            canary.set(at, value);
            assert!(
                matches!(taken(&canary.file), Err(Error::Foreign(_))),
                "{at}"
            );
        }
        // A head that cannot be is no beat.
        canary.set(offset_of!(Header, head), u64::MAX - 3);
        let (_, before, _) = taken(&canary.file).expect("it begins well");
        assert!(before.beats.is_empty());
        let (short, _) = Memory::create("short", 4096).expect("memory");
        assert!(matches!(taken(&short), Err(Error::Foreign(_))));
    }

    #[test]
    fn it_sings_until_it_is_stopped() {
        let canary = Canary::create(EVERY_MS).expect("a canary");
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| canary.sing(Pace::Sleep, &stop));
            while canary.now().beats.len() < 20 {
                std::thread::yield_now();
            }
            stop.store(true, Ordering::Relaxed);
        });
        let beats = canary.now().beats;
        assert!(
            beats
                .windows(2)
                .all(|two| two[0].monotonic_ns < two[1].monotonic_ns)
        );
    }
}
