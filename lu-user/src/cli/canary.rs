//! `lu canary`.

use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lu_user::canary::gap::{Gap, Rhythm, gap};
use lu_user::canary::{Canary, EVERY, Error, Life, Pace, Resumed, SESSION};
use lu_user::client::sessions::Session;
use lu_user::export::duration;
use lu_user::timeline::clock::Clock;
use nix::errno::Errno;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork, pipe, setsid};
use serde::Serialize;
use signal_hook::consts::SIGHUP;

use super::stop;

/// A workload that beats into a preserved memfd, to feel the blackout as a workload does.
///
/// It beats until the machine stops it. Started again in the new kernel it takes its memfd back from session
/// lu-canary, goes on beating in it, and prints for how long it was dark: by clocks of its own, so that
/// what `lu report` says of the same span can be held against it. How regularly it beat on both sides tells
/// how exact that is. /dev/liveupdate is held for the moment of creation and of retrieval alone.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  lu canary                     before the kexec, and again after it\n  lu canary --detach            the same, in the background once it beats\n  lu canary --resume --for 5s   only what the old kernel's canary left\n  lu canary --fifo --for 10s    how regularly this machine lets a workload run\n\nExit status: 0 done, 1 failed; with --resume also where no canary was handed over."
)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the command line"
)]
pub struct Args {
    /// How often it beats, from 1us to 1s.
    #[arg(long, value_name = "TIME", default_value = "100us", value_parser = every)]
    every: Duration,
    /// Stop after this long.
    #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
    /// Do not begin a new one where none was handed over.
    #[arg(long)]
    resume: bool,
    /// Return once it beats, and the gap, if there was one, is printed; it goes on in the background.
    #[arg(long)]
    detach: bool,
    /// Look at the clock all the time instead of sleeping between beats: needs no timer, and takes a CPU as far as
    /// nobody else wants it.
    #[arg(long)]
    spin: bool,
    /// Run before everything ordinary (`SCHED_FIFO`), so that other load is not taken for darkness.
    #[arg(long, conflicts_with = "spin")]
    fifo: bool,
    /// The result as one JSON document, schema lu.canary/1.
    #[arg(long)]
    json: bool,
}

/// The result.
#[derive(Serialize)]
struct Report {
    schema: &'static str,
    /// Null where there was no kexec.
    gap: Option<Gap>,
    /// The last beats before it.
    before: Option<Rhythm>,
    /// The beats in the kernel that runs.
    after: Option<Rhythm>,
}

/// How long it beats in the new kernel before its rhythm and the counter's frequency are told.
const SETTLE: Duration = Duration::from_secs(1);

/// How often is looked whether it is over.
const TICK: Duration = Duration::from_millis(10);

fn every(text: &str) -> Result<Duration, String> {
    let every = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if EVERY.contains(&every) {
        Ok(every)
    } else {
        Err("not from 1us to 1s".into())
    }
}

impl Args {
    pub fn run(&self) -> Result<ExitCode> {
        if !self.detach {
            return self.sing(|| Ok(()));
        }
        let (mut ready, told) = pipe().map(|(read, write)| (std::fs::File::from(read), write))?;
        // SAFETY: no other thread has been started yet.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => {
                drop(told);
                if ready.read(&mut [0])? == 0 {
                    // It ended before; it has said why.
                    waitpid(child, None)?;
                    return Ok(ExitCode::FAILURE);
                }
                eprintln!("lu: the canary goes on as process {child}");
                Ok(ExitCode::SUCCESS)
            }
            ForkResult::Child => {
                drop(ready);
                setsid()?;
                let mut told = Some(told);
                self.sing(|| told.take().map_or(Ok(()), |told| tell(&told)))
            }
        }
    }

    /// All of it; `ready` is called once it beats and the gap is told.
    fn sing(&self, mut ready: impl FnMut() -> Result<()>) -> Result<ExitCode> {
        let stop = stop::on_signals(&[SIGHUP])?;
        let resumed = match Canary::resume(&stop) {
            Ok(resumed) => Some(resumed),
            Err(Error::Nothing) if !self.resume => None,
            Err(error @ Error::Foreign(_)) if !self.resume => {
                eprintln!("lu: {error}; beginning a new one");
                None
            }
            Err(error) => return Err(error.into()),
        };
        let (canary, past) = match resumed {
            Some(Resumed {
                canary,
                before,
                first,
                session,
            }) => (canary, Some((before, first, session))),
            None => (Canary::create(self.every)?, None),
        };
        thread::scope(|scope| {
            let singer = scope.spawn(|| {
                let prepared = prepare(self.fifo);
                if prepared.is_ok() {
                    let pace = if self.spin { Pace::Spin } else { Pace::Sleep };
                    canary.sing(pace, &stop);
                }
                prepared
            });
            let told = self.accompany(&canary, past, &stop, &mut ready);
            stop.store(true, Ordering::Relaxed);
            singer
                .join()
                .map_err(|_| anyhow::anyhow!("the beating thread died"))??;
            told
        })?;
        Ok(ExitCode::SUCCESS)
    }

    /// What there is to do beside the beating, until it is over.
    fn accompany(
        &self,
        canary: &Canary,
        past: Option<(Life, lu_user::canary::Beat, Session)>,
        stop: &AtomicBool,
        ready: &mut impl FnMut() -> Result<()>,
    ) -> Result<()> {
        let start = Instant::now();
        let is_over = || {
            stop.load(Ordering::Relaxed) || self.duration.is_some_and(|all| start.elapsed() >= all)
        };
        let had_past = past.is_some();
        if let Some((before, first, session)) = past {
            session.finish()?;
            while start.elapsed() < SETTLE && !is_over() {
                thread::sleep(TICK);
            }
            let after = canary.now();
            self.tell(&Report::new(
                gap(&before, &first, &after),
                Some(&before),
                &after,
            ))?;
        }
        let _session = if self.resume {
            None
        } else {
            let session = canary.preserve(stop)?;
            eprintln!(
                "lu: beating every {} in session {SESSION}",
                duration(canary.every().as_nanos() as u64)
            );
            Some(session)
        };
        // Without a frequency the counter tells nothing: a kexec may come from here on.
        while !canary.knows_its_clocks() && !is_over() {
            thread::sleep(TICK);
        }
        ready()?;
        while !is_over() {
            thread::sleep(TICK);
        }
        if !had_past {
            self.tell(&Report::new(None, None, &canary.now()))?;
        }
        Ok(())
    }

    fn tell(&self, report: &Report) -> Result<()> {
        let mut out = std::io::stdout().lock();
        if self.json {
            serde_json::to_writer_pretty(&mut out, report).map_err(std::io::Error::from)?;
            writeln!(out)?;
        } else {
            write!(out, "{}", report.text())?;
        }
        out.flush()?;
        Ok(())
    }
}

impl Report {
    fn new(gap: Option<Gap>, before: Option<&Life>, after: &Life) -> Self {
        Self {
            schema: "lu.canary/1",
            gap,
            before: before.and_then(|life| Rhythm::of(&life.beats)),
            after: Rhythm::of(&after.beats),
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |line: String| {
            text.push_str(&line);
            text.push('\n');
        };
        if let Some(gap) = &self.gap {
            line(format!(
                "dark for {:.3} ms ± {} by {}, from its last beat to its first in the new kernel",
                gap.ns as f64 / 1e6,
                gap.uncertainty_ns
                    .map_or_else(|| "unknown".to_owned(), duration),
                match (gap.clock, gap.old_hz) {
                    (Clock::Counter, Some(hz)) =>
                        format!("the CPU's counter ({:.6} MHz)", hz / 1e6),
                    (Clock::Monotonic, _) => "CLOCK_MONOTONIC".to_owned(),
                    _ => "CLOCK_REALTIME".to_owned(),
                },
            ));
            if gap.clock == Clock::Counter {
                line(format!(
                    "{:.3} ms ± 1 s by CLOCK_REALTIME, which comes back from the RTC",
                    gap.realtime_ns as f64 / 1e6
                ));
            }
        } else if self.before.is_some() {
            line("dark for an unknown time: no clock spans both kernels".to_owned());
        }
        line(format!(
            "{:<20}{:>8}{:>14}{:>12}{:>12}",
            "", "beats", "interval p50", "p99", "max"
        ));
        for (name, rhythm) in [
            ("before the kexec", self.before),
            ("in this kernel", self.after),
        ] {
            if let Some(rhythm) = rhythm {
                line(format!(
                    "{name:<20}{:>8}{:>14}{:>12}{:>12}",
                    rhythm.beats,
                    duration(rhythm.p50_ns),
                    duration(rhythm.p99_ns),
                    duration(rhythm.max_ns)
                ));
            }
        }
        text
    }
}

/// Tells who waits that all is well.
fn tell(told: &OwnedFd) -> Result<()> {
    nix::unistd::write(told, b".").context("nobody waits any more")?;
    Ok(())
}

/// Lets the calling thread be woken when it asked to be.
fn prepare(fifo: bool) -> Result<()> {
    nix::sys::prctl::set_timerslack(1).context("cannot have exact timers")?;
    if !fifo {
        return Ok(());
    }
    // SAFETY: all of its fields are plain numbers, for which zero is a value.
    let mut priority: libc::sched_param = unsafe { std::mem::zeroed() };
    priority.sched_priority = 1;
    // SAFETY: 0 is the calling thread, and the structure is read alone.
    let done = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) };
    let done = Errno::result(done);
    ensure!(
        done != Err(Errno::EPERM),
        "SCHED_FIFO is not allowed; it needs CAP_SYS_NICE or RLIMIT_RTPRIO"
    );
    done.context("SCHED_FIFO")?;
    Ok(())
}
