//! What the service manager that started us is told, by `sd_notify(3)`. Without one nothing is told.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// The service manager.
pub struct Manager {
    /// How often it is to hear of us.
    pulse: Option<Duration>,
    heard: Instant,
}

impl Manager {
    /// The one that the environment names.
    pub fn new() -> Self {
        Self {
            pulse: sd_notify::watchdog_enabled().map(|patience| patience / 4),
            heard: Instant::now(),
        }
    }

    /// How often [`Self::alive`] is to be called at least.
    pub const fn pulse(&self) -> Option<Duration> {
        self.pulse
    }

    /// Everything is attached.
    pub fn ready(attached: usize, hooks: usize) {
        let status = format!("{attached} of {hooks} hooks attached");
        tell(&[NotifyState::Ready, NotifyState::Status(&status)]);
    }

    /// What follows SIGHUP begins.
    pub fn reloading() {
        // The time tells the manager which SIGHUP this follows.
        if let Ok(now) = NotifyState::monotonic_usec_now() {
            tell(&[NotifyState::Reloading, now]);
        }
    }

    /// It is over, whatever came of it.
    pub fn reloaded() {
        tell(&[NotifyState::Ready]);
    }

    /// The end begins.
    pub fn stopping() {
        tell(&[NotifyState::Stopping]);
    }

    /// The loop has turned.
    pub fn alive(&mut self) {
        if let Some(pulse) = self.pulse
            // Under load the loop turns more often than that.
            && self.heard.elapsed() >= pulse / 2
        {
            self.heard = Instant::now();
            tell(&[NotifyState::Watchdog]);
        }
    }
}

/// That nobody listens is no reason to stop: the manager itself ends before a kexec, and we do not.
fn tell(what: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(what) {
        log::debug!("the service manager does not listen: {error}");
    }
}
