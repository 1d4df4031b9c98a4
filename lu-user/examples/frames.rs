//! How long `lu top` takes to draw a frame, for `cargo xtask bench top`.
//!
//! `frames FILES` prints for each screen the median in milliseconds, and the least and the most: of a frame in which
//! the selection has moved, and of one before which a record came, so that everything is made anew.
//! `frames FILES DIR` writes a journal with such an update under way instead.

#[expect(dead_code, reason = "the tests show what is not measured here")]
#[path = "../tests/top/recordings.rs"]
mod recordings;

use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use lu_user::journal::{Journal, Retention};
use lu_user::top::keys::Action;
use lu_user::top::screens::draw;
use lu_user::top::{Message, Screen, State, View};
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::layout::Rect;
use ratatui::{TerminalOptions, Viewport};

const SIZE: (u16, u16) = (120, 40);

/// Frames of each kind.
const FRAMES: usize = 200;

/// To the fourth column.
const NEXT: [Action; 4] = [
    Action::NextColumn,
    Action::NextColumn,
    Action::NextColumn,
    Action::NextColumn,
];

/// Files in each session.
const EACH: u64 = 100;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (files, folder) = match args[..] {
        [files] => (files, None),
        [files, folder] => (files, Some(folder)),
        _ => bail!("usage: frames FILES [DIR]"),
    };
    let files: u64 = files.parse().context("no number")?;
    let load = recordings::Load {
        sessions: files.div_ceil(EACH),
        files: EACH,
    };
    let tape = recordings::preserving(&load);
    if let Some(folder) = folder {
        let retention = Retention {
            updates: 1,
            bytes: 1 << 40,
        };
        let mut journal = Journal::open(folder.as_ref(), retention)?;
        for records in tape.records.chunks(4096) {
            journal.push(records)?;
            journal.settle()?;
        }
        return Ok(());
    }
    let mut state = State::new("a recording".to_owned());
    let newest = tape.records.last().copied().context("no records")?;
    state.take(Message::Records(tape.records));
    state.now_ns = Some(state.timeline.at(newest.header.t_ns));
    let plain = Screen::ALL.map(|screen| (screen, screen.title(), &[] as &[Action]));
    // By size; by time.
    let sorted: [(Screen, &str, &[Action]); 2] = [
        (Screen::Sessions, "Sessions, sorted", &NEXT),
        (Screen::Waterfall, "Waterfall, sorted", &[Action::Longest]),
    ];
    for (screen, title, actions) in plain.into_iter().chain(sorted) {
        let mut view = View::new(SIZE);
        view.screen = screen;
        for action in actions {
            view.apply(action.clone(), &state);
        }
        for is_changed in [false, true] {
            let (least, median, most) = measure(&mut state, &mut view, &newest, is_changed)?;
            let what = if is_changed {
                "a record came"
            } else {
                "scrolled"
            };
            println!("  {title:<18}{what:<14}{median:>8.3} ({least:.3} to {most:.3})");
        }
    }
    Ok(())
}

fn measure(
    state: &mut State,
    view: &mut View,
    record: &lu_common::event::Record,
    is_changed: bool,
) -> Result<(f64, f64, f64)> {
    let viewport = Viewport::Fixed(Rect::new(0, 0, SIZE.0, SIZE.1));
    let backend = CrosstermBackend::new(std::io::sink());
    let mut terminal = Terminal::with_options(backend, TerminalOptions { viewport })?;
    view.settle(state);
    let mut took = Vec::with_capacity(FRAMES);
    for _ in 0..FRAMES {
        if is_changed {
            state.take(Message::Records(vec![*record]));
        }
        let start = Instant::now();
        view.apply(Action::PageDown, state);
        view.settle(state);
        terminal.draw(|frame| draw(state, view, frame))?;
        took.push(start.elapsed().as_secs_f64() * 1e3);
    }
    took.sort_by(f64::total_cmp);
    Ok((took[0], took[FRAMES / 2], took[FRAMES - 1]))
}
