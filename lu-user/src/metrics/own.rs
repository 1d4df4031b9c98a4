//! What lu itself takes: looked at when somebody asks, off the collector's way.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;

use super::{Counter, Gauge, Maker, NS, catalogue as the};
use crate::journal::clocks;

/// No more often than this are files looked at.
const REST: Duration = Duration::from_secs(1);

/// What lu itself takes.
#[derive(Clone)]
pub struct Own {
    cpu: Counter,
    memory: Gauge,
    open_files: Gauge,
    journal_bytes: Gauge,
    journal: PathBuf,
    looked: std::sync::Arc<Mutex<Option<Instant>>>,
}

impl Own {
    pub(super) fn new(make: &mut Maker, journal: &Path) -> Self {
        let start = make.gauge(&the::START);
        start.set(clocks::realtime_ns() as f64 * NS);
        Self {
            journal_bytes: make.gauge(&the::JOURNAL_BYTES),
            cpu: make.counter(&the::CPU),
            memory: make.gauge(&the::MEMORY),
            open_files: make.gauge(&the::OPEN_FILES),
            journal: journal.into(),
            looked: std::sync::Arc::default(),
        }
    }

    /// Looks, unless that was just now.
    pub(super) fn look(&self) {
        let Ok(mut looked) = self.looked.lock() else {
            return;
        };
        if looked.is_some_and(|looked| looked.elapsed() < REST) {
            return;
        }
        *looked = Some(Instant::now());
        if let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) {
            let time = usage.user_time() + usage.system_time();
            let seconds = time.num_microseconds() as f64 * 1e-6;
            self.cpu.inc_by((seconds - self.cpu.get()).max(0.0));
        }
        self.memory
            .set(resident().map_or(f64::NAN, |bytes| bytes as f64));
        let open = fs::read_dir("/proc/self/fd").map(Iterator::count);
        // One of them is the folder itself.
        self.open_files
            .set(open.map_or(f64::NAN, |open| open.saturating_sub(1) as f64));
        self.journal_bytes
            .set(size(&self.journal).map_or(f64::NAN, |bytes| bytes as f64));
    }
}

/// Resident memory, in bytes (`/proc/self/statm`, the second number, in pages).
fn resident() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
    pages.checked_mul(u64::try_from(page).ok()?)
}

/// The size of a folder's files, in bytes.
fn size(folder: &Path) -> Option<u64> {
    let entries = fs::read_dir(folder).ok()?;
    let sizes = entries.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len()));
    Some(sizes.sum())
}
