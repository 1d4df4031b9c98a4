//! The screen's thread: what happens goes into the state and the view, and what they are is drawn.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, raise};
use ratatui::crossterm::event::{self, KeyEventKind};
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGTERM, SIGTSTP};
use signal_hook::iterator::Signals;

use super::keys::{Action, Mode, input};
use super::source::{Command, Message};
use super::terminal::{self, Taken};
use super::view::Effect;
use super::{State, View, screens, text};
use crate::journal::clocks;

/// How many messages may wait; each has [`super::source::BATCH`] records at most.
const WAITING: usize = 32;

/// The clocks on the screen go on this often.
const TICK: Duration = Duration::from_millis(250);

/// What comes from a source is drawn after this at the latest, and not more often.
const FRAME: Duration = Duration::from_millis(50);

/// What happens.
pub enum Event {
    /// A source says something.
    Source(Message),
    /// The terminal does.
    Terminal(event::Event),
    /// There is no terminal any more.
    Gone,
    /// A signal has come.
    Signal(i32),
}

/// Where a source sends what it has.
#[derive(Clone)]
pub struct Inbox(SyncSender<Event>);

impl Inbox {
    /// Sends it, once there is room; whether anybody still listens.
    #[must_use]
    pub fn send(&self, message: Message) -> bool {
        self.0.send(Event::Source(message)).is_ok()
    }
}

/// An inbox, and what comes out of it.
#[must_use]
pub fn inbox() -> (Inbox, Receiver<Event>) {
    let (sender, receiver) = sync_channel(WAITING);
    (Inbox(sender), receiver)
}

/// What goes beyond the state and the view.
#[derive(Default)]
pub struct Options {
    /// Where what is seen is saved.
    pub dump: Option<PathBuf>,
    /// Whoever plays the recording.
    pub player: Option<Sender<Command>>,
    /// For the test of what a panic leaves of the terminal.
    pub panic_after: Option<Duration>,
}

/// Shows the screen until somebody ends it.
///
/// # Panics
///
/// Where [`Options::panic_after`] asks for it.
pub fn run(
    mut state: State,
    mut view: View,
    inbox: Inbox,
    events: &Receiver<Event>,
    options: &Options,
) -> Result<()> {
    let began = Instant::now();
    listen_to_signals(&inbox)?;
    let mut terminal = Taken::new().context("this is no terminal that can be drawn on")?;
    listen_to_terminal(inbox);
    // What libraries have to say would stand in the middle of the screen.
    log::set_max_level(log::LevelFilter::Off);
    view.size = terminal::size();
    let (mut is_stale, mut drawn) = (true, Instant::now());
    loop {
        if is_stale {
            set_clock(&mut state);
            view.settle(&state);
            let screen = terminal.screen(view.size).context("the terminal is gone")?;
            let drawing = screen.draw(|frame| screens::draw(&state, &view, frame));
            drawing.context("the terminal is gone")?;
            (is_stale, drawn) = (false, Instant::now());
        }
        assert!(
            options
                .panic_after
                .is_none_or(|after| began.elapsed() < after),
            "a panic was asked for"
        );
        let pause = if view.has_clock() || options.panic_after.is_some() {
            TICK
        } else {
            Duration::from_hours(1)
        };
        let mut heard = events.recv_timeout(pause.saturating_sub(drawn.elapsed()));
        // What has come meanwhile is drawn with it.
        let mut is_urgent = false;
        loop {
            match heard {
                Ok(Event::Source(message)) => state.take(message),
                Ok(Event::Signal(SIGTSTP)) => terminal.suspend(stop).context("no terminal")?,
                Ok(Event::Signal(SIGCONT)) => terminal.resume().context("no terminal")?,
                Ok(Event::Terminal(event)) => {
                    is_urgent = true;
                    match take(event, &mut state, &mut view) {
                        None => {}
                        Some(Effect::Quit) => return Ok(()),
                        Some(Effect::Suspend) => terminal.suspend(stop).context("no terminal")?,
                        Some(Effect::Redraw) => terminal.resume().context("no terminal")?,
                        Some(Effect::Dump) => view.notice = Some(dump(&state, &view, options)),
                        Some(Effect::Play(command)) => {
                            if let Some(player) = &options.player {
                                // One that has ended has said so.
                                let _ = player.send(command);
                            }
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) => break,
                Ok(Event::Gone | Event::Signal(_)) | Err(RecvTimeoutError::Disconnected) => {
                    return Ok(());
                }
            }
            is_stale = true;
            let left = if is_urgent {
                Duration::ZERO
            } else {
                FRAME.saturating_sub(drawn.elapsed())
            };
            // A key that is held down must not keep the screen from being drawn.
            if drawn.elapsed() > 2 * FRAME {
                break;
            }
            heard = events.recv_timeout(left);
        }
        is_stale |= view.has_clock() && drawn.elapsed() >= TICK;
        view.size = terminal::size();
    }
}

/// What time it is, on the timeline's axis.
pub fn set_clock(state: &mut State) {
    state.now_ns = match &state.playing {
        Some(playing) => Some(playing.now_ns()),
        None if state.machine.is_some() => Some(state.timeline.at(clocks::now_ns())),
        None => state.now_ns,
    };
}

/// What comes from the terminal.
pub fn take(event: event::Event, state: &mut State, view: &mut View) -> Option<Effect> {
    let action = match event {
        event::Event::Key(key) if key.kind != KeyEventKind::Release => input(view.mode(), key)?,
        // What is pasted is text, never keys.
        event::Event::Paste(text) if view.mode() == Mode::Filter => Action::Paste(text),
        event::Event::Resize(columns, lines) => {
            view.size = (columns, lines);
            return None;
        }
        _ => return None,
    };
    let effect = view.apply(action, state);
    view.settle(state);
    effect
}

/// As SIGTSTP does where nobody listens to it.
fn stop() {
    // The handler stays, so it is the one that cannot be handled.
    let _ = raise(Signal::SIGSTOP);
}

/// Saves what is seen, behind what was saved before.
fn dump(state: &State, view: &View, options: &Options) -> String {
    let Some(path) = &options.dump else {
        return "nowhere to save it: start with --dump FILE".to_owned();
    };
    let written = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .and_then(|mut file| file.write_all(text(state, view).as_bytes()));
    match written {
        Ok(()) => format!("saved to {}", path.display()),
        Err(error) => format!("not saved to {}: {error}", path.display()),
    }
}

fn listen_to_signals(inbox: &Inbox) -> Result<()> {
    let signals = [SIGINT, SIGTERM, SIGHUP, SIGTSTP, SIGCONT];
    let mut signals = Signals::new(signals).context("cannot take signals")?;
    let inbox = inbox.0.clone();
    thread::spawn(move || {
        for signal in signals.forever() {
            if inbox.send(Event::Signal(signal)).is_err() {
                return;
            }
        }
    });
    Ok(())
}

fn listen_to_terminal(inbox: Inbox) {
    thread::spawn(move || {
        loop {
            let event = match event::read() {
                Ok(event) => Event::Terminal(event),
                Err(_) => Event::Gone,
            };
            let is_gone = matches!(event, Event::Gone);
            if inbox.0.send(event).is_err() || is_gone {
                return;
            }
        }
    });
}
