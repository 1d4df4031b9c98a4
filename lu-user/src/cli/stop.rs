//! The wish to end: a flag that signals set, which can be asked at any moment, by whoever is busy.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context as _, Result};
use signal_hook::consts::{SIGINT, SIGTERM};

/// A flag that SIGINT, SIGTERM and these signals set from now on, instead of ending the process.
pub fn on_signals(others: &[i32]) -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for &signal in [SIGINT, SIGTERM].iter().chain(others) {
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("cannot take signals")?;
    }
    Ok(stop)
}
