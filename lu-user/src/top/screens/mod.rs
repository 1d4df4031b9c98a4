//! What is drawn: a pure function of the state and the view.

pub(super) mod events;
pub(super) mod help;
pub(super) mod history;
pub(super) mod policy;
pub(super) mod sessions;
pub(super) mod update;
pub(super) mod waterfall;

use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};

use super::facts::Facts;
use super::theme::Theme;
use super::view::{Screen, View};
use super::{Playing, State};
use crate::export::duration;
use crate::timeline::clock::Clock;
use crate::timeline::{Outcome, Update};

/// The least that something can be drawn on.
const LEAST: (u16, u16) = (20, 4);

/// Draws a screen.
pub fn draw(state: &State, view: &View, frame: &mut Frame<'_>) {
    let area = frame.area();
    paint(state, view, area, frame.buffer_mut());
}

/// The same into a buffer.
pub fn paint(state: &State, view: &View, area: Rect, buffer: &mut Buffer) {
    let theme = Theme::from(view.theme);
    if area.width < LEAST.0 || area.height < LEAST.1 {
        put(buffer, area, 0, Line::styled("too small", theme.dim));
        return;
    }
    put(buffer, area, 0, tabs(view, &theme, area.width));
    strip(state, view, &theme, area, buffer);
    let body = body(state, area);
    match view.screen {
        Screen::Update => update::draw(state, view, &theme, body, buffer),
        Screen::Sessions => sessions::draw(state, view, &theme, body, buffer),
        Screen::Waterfall => waterfall::draw(state, view, &theme, body, buffer),
        Screen::Events => events::draw(state, view, &theme, body, buffer),
        Screen::Policy => policy::draw(state, view, &theme, body, buffer),
        Screen::History => history::draw(state, view, &theme, body, buffer),
    }
    if let Some(playing) = &state.playing {
        let line = replay(playing, view, &theme, area.width);
        put(buffer, area, area.height - 2, line);
    }
    put(
        buffer,
        area,
        area.height - 1,
        footer(state, view, &theme, area.width),
    );
    if view.help {
        help::draw(view, &theme, body, buffer);
    }
}

/// What is left for the screen itself: two lines above it, and one or two below.
pub(super) fn body(state: &State, area: Rect) -> Rect {
    let below = 1 + u16::from(state.playing.is_some());
    Rect {
        x: area.x,
        y: area.y + 2,
        width: area.width,
        height: area.height.saturating_sub(2 + below),
    }
}

/// The same of a view's size.
pub(super) fn body_of(state: &State, view: &View) -> Rect {
    body(state, Rect::new(0, 0, view.size.0, view.size.1))
}

/// Puts a line into an area, counted from its top; what does not fit is cut off.
pub(super) fn put(buffer: &mut Buffer, area: Rect, at: u16, line: impl Into<Line<'static>>) {
    if at < area.height {
        buffer.set_line(area.x, area.y + at, &line.into(), area.width);
    }
}

/// Puts a line, with a style for all of it.
pub(super) fn put_row(buffer: &mut Buffer, area: Rect, at: u16, line: Line<'static>, style: Style) {
    put(buffer, area, at, line);
    if at < area.height {
        buffer.set_style(Rect::new(area.x, area.y + at, area.width, 1), style);
    }
}

/// A text of exactly so many columns, cut off with `…` or filled up.
pub(super) fn fit(text: &str, columns: usize) -> String {
    let width = Span::raw(text).width();
    if width <= columns {
        return format!("{text}{}", " ".repeat(columns - width));
    }
    let mut cut = String::new();
    let mut used = 0;
    for char in text.chars() {
        let wide = Span::raw(char.to_string()).width();
        if used + wide + 1 > columns {
            break;
        }
        cut.push(char);
        used += wide;
    }
    if columns > 0 {
        cut.push('…');
        used += 1;
    }
    format!("{cut}{}", " ".repeat(columns.saturating_sub(used)))
}

/// The same, to the right.
pub(super) fn fit_right(text: &str, columns: usize) -> String {
    let width = Span::raw(text).width();
    if width >= columns {
        return fit(text, columns);
    }
    format!("{}{text}", " ".repeat(columns - width))
}

/// A time, or that it is unknown.
pub(super) fn time(ns: Option<u64>) -> String {
    ns.map_or_else(|| "unknown".to_owned(), duration)
}

/// A time that goes on: tenths of a second, and no more digits than can be read.
pub(super) fn clock(ns: u64) -> String {
    let tenths = ns / 100_000_000;
    let (seconds, tenth) = (tenths / 10, tenths % 10);
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    match seconds {
        0..60 => format!("{seconds}.{tenth} s"),
        60..3600 => format!("{minutes}:{:02}.{tenth}", seconds % 60),
        _ => format!("{hours}:{:02}:{:02}", minutes % 60, seconds % 60),
    }
}

/// A number, with a space between each three digits.
pub(super) fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 file`, `2 files`.
pub(super) fn many(count: u64, one: &str, more: &str) -> String {
    if count == 1 {
        format!("1 {one}")
    } else {
        format!("{} {more}", number(count))
    }
}

/// A heading with a line to the right.
pub(super) fn heading(text: &str, theme: &Theme, columns: u16) -> Line<'static> {
    let rest = usize::from(columns).saturating_sub(Span::raw(text).width() + 1);
    Line::from(vec![
        Span::styled(text.to_owned(), theme.title),
        Span::styled(format!(" {}", "─".repeat(rest)), theme.dim),
    ])
}

/// A text in lines, broken between words: the first of so many columns, each other of `rest`.
pub(super) fn wrap(text: &str, first: usize, rest: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split(' ') {
        let columns = if lines.is_empty() { first } else { rest };
        let width = Span::raw(line.as_str()).width() + Span::raw(word).width();
        if !line.is_empty() && width >= columns {
            lines.push(std::mem::take(&mut line));
        } else if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
    lines
}

fn tabs(view: &View, theme: &Theme, columns: u16) -> Line<'static> {
    let is_wide = columns >= 72;
    let mut spans = vec![Span::styled(" lu ", theme.title)];
    for (at, screen) in Screen::ALL.into_iter().enumerate() {
        let is_here = screen == view.screen;
        let text = if is_wide || is_here {
            format!(" {} {} ", at + 1, screen.title())
        } else {
            format!(" {} {}. ", at + 1, &screen.title()[..3])
        };
        let style = if is_here { theme.selected } else { theme.dim };
        spans.push(Span::styled(text, style));
    }
    Line::from(spans)
}

/// What holds on every screen: which update, how it stands, its clock and its blackout, and what was lost.
fn strip(state: &State, view: &View, theme: &Theme, area: Rect, buffer: &mut Buffer) {
    let Some((update, facts)) = view.shown_update(state).zip(view.facts.as_ref()) else {
        put(buffer, area, 1, Line::styled(" no update yet", theme.dim));
        return;
    };
    let mut spans = vec![
        Span::styled(format!(" update {}", update.number), theme.title),
        Span::styled(
            format!(
                " · {} · {}",
                update
                    .interface
                    .map_or("unknown", lu_common::uapi::Interface::name),
                if update.emulated {
                    "emulated"
                } else {
                    "kernel"
                }
            ),
            theme.dim,
        ),
        Span::raw("  "),
        Span::styled(outcome(update, facts), outcome_style(update, theme)),
    ];
    let left: usize = spans.iter().map(Span::width).sum();
    let mut right = Vec::new();
    if let Some(ns) = clock_of(update, state) {
        right.push(Span::styled("clock ", theme.dim));
        right.push(Span::styled(format!("{}  ", clock(ns)), theme.text));
    }
    right.push(Span::styled("dark ", theme.dim));
    right.push(blackout(update, facts, state, theme));
    if update.events.lost > 0 {
        let text = format!(" {} LOST", number(update.events.lost));
        right.push(Span::styled(text, theme.bad));
    }
    right.push(Span::raw(" "));
    let columns = usize::from(area.width);
    let mut wide: usize = right.iter().map(Span::width).sum();
    // Where not all has room, what kind of update it is can be read elsewhere.
    if left + wide + 1 > columns {
        spans.remove(1);
    }
    let left: usize = spans.iter().map(Span::width).sum();
    if left + wide + 1 > columns && right.len() > 4 {
        right.drain(..2);
        wide = right.iter().map(Span::width).sum();
    }
    spans.push(Span::raw(
        " ".repeat(columns.saturating_sub(left + wide).max(1)),
    ));
    spans.extend(right);
    put(buffer, area, 1, Line::from(spans));
}

/// How it ended, or where it is.
pub(super) fn outcome(update: &Update, facts: &Facts) -> String {
    match (update.outcome, facts.stage()) {
        (Outcome::InProgress, Some(step)) => format!("▶ {}", step.name.name()),
        (Outcome::InProgress, None) => "▶ in progress".to_owned(),
        (Outcome::Finished, _) => "✓ finished".to_owned(),
        (Outcome::Cancelled, _) => "– cancelled".to_owned(),
        (Outcome::Aborted, _) => "✗ aborted".to_owned(),
        (Outcome::Incomplete, _) => "✗ incomplete".to_owned(),
    }
}

fn outcome_style(update: &Update, theme: &Theme) -> Style {
    match update.outcome {
        Outcome::InProgress => theme.active,
        Outcome::Finished => theme.good,
        Outcome::Cancelled => theme.warn,
        Outcome::Aborted | Outcome::Incomplete => theme.bad,
    }
}

/// Since the update began; once it has ended, until then.
pub(super) fn clock_of(update: &Update, state: &State) -> Option<u64> {
    let end = update.ended_ns.or(state.now_ns)?;
    end.checked_sub(update.began_ns)
}

/// The blackout, in few words.
fn blackout(update: &Update, facts: &Facts, state: &State, theme: &Theme) -> Span<'static> {
    let least = if update.events.lost > 0 { "≥ " } else { "" };
    if let Some(blackout) = &facts.blackout {
        return Span::styled(format!("{least}{}", duration(blackout.ns)), theme.title);
    }
    match facts.dark_since {
        None if update.ended_ns.is_some() && !update.is_beyond_kexec() => {
            Span::styled("never", theme.dim)
        }
        None if update.is_beyond_kexec() || update.ended_ns.is_some() => {
            Span::styled("unknown", theme.warn)
        }
        None => Span::styled("not yet", theme.dim),
        Some(_) if update.is_unspanned() => Span::styled("unknown", theme.warn),
        Some(_) if update.ended_ns.is_some() && !update.is_beyond_kexec() => {
            Span::styled("called off", theme.dim)
        }
        Some(_) if update.ended_ns.is_some() => Span::styled("unknown", theme.warn),
        Some((_, since)) => match state.now_ns.and_then(|now| now.checked_sub(since)) {
            Some(ns) => Span::styled(format!("● {}", clock(ns)), theme.bad),
            None => Span::styled("● counting", theme.bad),
        },
    }
}

/// By which clock a blackout is told, and what it may be off by.
pub(super) fn uncertainty(clock: Clock, uncertainty_ns: Option<u64>) -> String {
    format!("± {} by {}", time(uncertainty_ns), clock.title())
}

fn replay(playing: &Playing, view: &View, theme: &Theme, columns: u16) -> Line<'static> {
    let sign = match playing {
        playing if playing.at >= playing.of => "■ end",
        playing if playing.is_paused => "‖ paused",
        _ => "▶",
    };
    let speed = if playing.speed >= 1.0 {
        format!("{}×", playing.speed)
    } else {
        format!("1/{}×", (1.0 / playing.speed).round())
    };
    let step = view.facts.as_ref().and_then(Facts::stage);
    let phase = step.map_or("", |step| step.name.name());
    let left = format!(" {sign} {speed} ");
    let right = format!(" {}/{} {phase} ", number(playing.at), number(playing.of));
    let used = Span::raw(left.as_str()).width() + Span::raw(right.as_str()).width() + 2;
    let room = usize::from(columns).saturating_sub(used);
    let done = (room as u64 * playing.at / playing.of.max(1)) as usize;
    Line::from(vec![
        Span::styled(left, theme.title),
        Span::styled("━".repeat(done), theme.bar),
        Span::styled("─".repeat(room.saturating_sub(done)), theme.dim),
        Span::styled(right, theme.text),
    ])
}

fn footer(state: &State, view: &View, theme: &Theme, columns: u16) -> Line<'static> {
    if let Some(typed) = &view.typed {
        return Line::from(vec![
            Span::styled(" / ", theme.active),
            Span::styled(typed.clone(), theme.text),
            Span::styled("▏", theme.active),
            Span::styled("  Enter: use it  Esc: leave it", theme.dim),
        ]);
    }
    if let Some(notice) = &view.notice {
        return Line::styled(format!(" {notice}"), theme.warn);
    }
    let source = match &state.ended {
        Some(why) => Span::styled(format!(" ■ {}: {why}", state.source), theme.warn),
        None => Span::styled(format!(" {}", state.source), theme.dim),
    };
    let mut spans = vec![source];
    if !view.filter().is_empty() {
        spans.push(Span::styled(
            format!("  filter: {}", view.filter()),
            theme.active,
        ));
    }
    let keys = match view.screen {
        Screen::Sessions => "Enter details  </> sort  r reverse  / filter  ",
        Screen::Waterfall => "+/- zoom  b blackout  o longest  ",
        Screen::Events => "Space pause  / filter  ",
        Screen::Update | Screen::Policy => "",
        Screen::History => "Enter show  ",
    };
    for keys in [
        format!("{keys}? keys  q quit "),
        "? keys  q quit ".to_owned(),
    ] {
        let used: usize = spans.iter().map(Span::width).sum();
        let width = Span::raw(keys.as_str()).width();
        if used + width < usize::from(columns) {
            spans.push(Span::raw(" ".repeat(usize::from(columns) - used - width)));
            spans.push(Span::styled(keys, theme.dim));
            break;
        }
    }
    Line::from(spans)
}
