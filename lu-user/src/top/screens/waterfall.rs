//! The update as spans over time.

use std::cmp::Reverse;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::text::{Line as Text, Span};

use super::{body_of, fit, fit_right, heading, number, put, put_row, time};
use crate::export::duration;
use crate::timeline::{FileSpan, Session, Update};
use crate::top::State;
use crate::top::facts::Progress;
use crate::top::rows::{Filter, has};
use crate::top::theme::Theme;
use crate::top::view::View;

/// What stands on one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// A phase, by its place among them.
    Phase(usize),
    /// A part of it.
    Part(usize, usize),
    /// A session, by its key.
    Session(u64),
    /// A file, by its session's key and its token.
    File(u64, u64),
}

/// How many rows are shown at once.
pub fn page(view: &View, state: &State) -> usize {
    usize::from(body_of(state, view).height.saturating_sub(2))
}

/// Every line, in its order.
pub fn lines(view: &View, state: &State) -> Vec<Line> {
    let Some((update, facts)) = view.shown_update(state).zip(view.facts.as_ref()) else {
        return Vec::new();
    };
    let filter = Filter::new(view.filter());
    // With each line how long it took: where the longest come first nothing is looked up again.
    let mut lines = Vec::new();
    for (at, step) in facts.steps.iter().enumerate() {
        if step.phase.is_some() || step.progress == Progress::Now {
            lines.push((step.ns(), Line::Phase(at)));
            let parts = step.parts.iter().enumerate();
            lines.extend(parts.map(|(part, it)| (it.ns, Line::Part(at, part))));
        }
    }
    for (&key, session) in &update.sessions {
        if session.name.is_some() {
            lines.push((session_took(session), Line::Session(key)));
        }
        let files = session.files.iter();
        lines.extend(files.map(|(token, file)| (file_took(file), Line::File(key, *token))));
    }
    if !filter.is_empty() {
        lines.retain(|(_, line)| meets(&filter, *line, view, update));
    }
    if view.longest {
        // A file's line is as long as its steps together, not as the time between them.
        lines.sort_by_key(|(took, _)| Reverse(*took));
    }
    lines.into_iter().map(|(_, line)| line).collect()
}

fn meets(filter: &Filter, line: Line, view: &View, update: &Update) -> bool {
    let facts = view.facts.as_ref();
    let session = |key| {
        let session: Option<&Session> = update.sessions.get(&key);
        session.and_then(|session| session.name.as_deref())
    };
    filter.meets(|field, value| match (field, line) {
        (None | Some("phase"), Line::Phase(at) | Line::Part(at, _)) => {
            let step = facts.and_then(|facts| facts.steps.get(at));
            step.is_some_and(|step| has(step.name.name(), value))
        }
        (None | Some("session"), Line::Session(key)) => {
            session(key).is_some_and(|name| has(name, value))
        }
        (None, Line::File(key, token)) => {
            session(key).is_some_and(|name| has(name, value)) || has(&format!("{token:#x}"), value)
        }
        (Some("session"), Line::File(key, _)) => session(key).is_some_and(|name| has(name, value)),
        (Some("token"), Line::File(_, token)) => {
            has(&format!("{token:#x}"), value) || token.to_string() == value
        }
        _ => false,
    })
}

/// The steps of a file, each with the letter that stands for it.
fn steps(file: &FileSpan) -> [(char, Option<crate::timeline::Span>); 4] {
    [
        ('p', file.preserve),
        ('a', file.prepare),
        ('f', file.freeze),
        ('r', file.restore),
    ]
}

fn session_steps(session: &Session) -> [(char, Option<crate::timeline::Span>); 3] {
    [
        ('f', session.freeze),
        ('r', session.retrieve),
        ('e', session.finish),
    ]
}

/// How long what is on a line took in all.
fn took(line: &Line, view: &View, update: &Update) -> Option<u64> {
    let facts = view.facts.as_ref()?;
    match line {
        Line::Phase(at) => facts.steps.get(*at)?.ns(),
        Line::Part(at, part) => facts.steps.get(*at)?.parts.get(*part)?.ns,
        Line::Session(key) => session_took(update.sessions.get(key)?),
        Line::File(key, token) => file_took(update.sessions.get(key)?.files.get(token)?),
    }
}

fn session_took(session: &Session) -> Option<u64> {
    sum(session_steps(session).into_iter().map(|(_, span)| span))
}

fn file_took(file: &FileSpan) -> Option<u64> {
    sum(steps(file).into_iter().map(|(_, span)| span))
}

/// How long steps took together; `None`: none was seen.
fn sum(steps: impl Iterator<Item = Option<crate::timeline::Span>>) -> Option<u64> {
    let known = steps.flatten().map(|span| span.ns());
    known.reduce(u64::saturating_add)
}

/// From when to when something is seen of what is on a line.
pub fn span(line: &Line, view: &View, state: &State) -> Option<(u64, u64)> {
    let update = view.shown_update(state)?;
    let facts = view.facts.as_ref()?;
    let within = |spans: &mut dyn Iterator<Item = Option<crate::timeline::Span>>| {
        let known = spans.flatten().map(|span| (span.start_ns, span.end_ns));
        known.reduce(|all, one| (all.0.min(one.0), all.1.max(one.1)))
    };
    let placed = |start: Option<u64>, ns: Option<u64>| {
        let start = start?;
        Some((start, start.saturating_add(ns?)))
    };
    match line {
        Line::Phase(at) => {
            let step = facts.steps.get(*at)?;
            if step.progress == Progress::Now {
                return Some((step.start_ns()?, state.now_ns?.max(step.start_ns()?)));
            }
            placed(step.start_ns(), step.ns())
        }
        Line::Part(at, part) => {
            let part = facts.steps.get(*at)?.parts.get(*part)?;
            placed(part.start_ns, part.ns)
        }
        Line::Session(key) => {
            let session = update.sessions.get(key)?;
            within(&mut session_steps(session).into_iter().map(|(_, span)| span))
        }
        Line::File(key, token) => {
            let file = update.sessions.get(key)?.files.get(token)?;
            within(&mut steps(file).into_iter().map(|(_, span)| span))
        }
    }
}

/// All of the update, in nanoseconds on the timeline's axis.
pub fn whole(view: &View, state: &State) -> Option<(u64, u64)> {
    let update = view.shown_update(state)?;
    let facts = view.facts.as_ref()?;
    let ends = facts.steps.iter().filter_map(|step| {
        let phase = step.phase?;
        phase.start_ns?.checked_add(phase.ns?)
    });
    let end = match update.ended_ns {
        Some(ended) => ends.chain([ended]).max(),
        None => ends.chain(state.now_ns).max(),
    };
    let end = end?.max(update.began_ns);
    Some((update.began_ns, end.max(update.began_ns + 1)))
}

/// What is shown of it.
pub fn window(view: &View, state: &State) -> Option<(u64, u64)> {
    view.window.or_else(|| whole(view, state))
}

/// Draws it.
pub fn draw(state: &State, view: &View, theme: &Theme, area: Rect, buffer: &mut Buffer) {
    let shown = view.shown_update(state).zip(window(view, state));
    let Some((update, (start, end))) = shown else {
        put(buffer, area, 0, heading("Waterfall", theme, area.width));
        let nothing = " No update has been seen.";
        put(buffer, area, 2, Text::styled(nothing, theme.dim));
        return;
    };
    let order = if view.longest { ", longest first" } else { "" };
    let title = format!(
        "Waterfall{order}, line {} of {}",
        number((view.cursor().selected + 1).min(view.lines.len()) as u64),
        number(view.lines.len() as u64)
    );
    put(buffer, area, 0, heading(&title, theme, area.width));
    let names = if area.width >= 100 { 34 } else { 20 };
    let times = 9;
    let room = usize::from(area.width)
        .saturating_sub(names + times + 3)
        .max(4);
    let front = names + times + 2;
    put(
        buffer,
        area,
        1,
        axis(update, (start, end), front, room, theme),
    );
    let dark = dark(view, state);
    let cursor = view.cursor();
    let page = usize::from(area.height.saturating_sub(2));
    let lines = view.lines.iter().enumerate().skip(cursor.offset).take(page);
    for (at, line) in lines {
        let y = 2 + (at - cursor.offset) as u16;
        let (name, style) = name(line, view, update, theme);
        let scale = Scale { start, end, room };
        let mut spans = vec![
            Span::styled(format!(" {} ", fit(&name, names)), style),
            Span::styled(
                format!("{} ", fit_right(&told(line, view, update), times)),
                theme.text,
            ),
        ];
        spans.extend(bars(line, view, state, update, scale, dark, theme));
        let text = Text::from(spans);
        if at == cursor.selected {
            put_row(buffer, area, y, text, theme.selected);
        } else {
            put(buffer, area, y, text);
        }
    }
}

fn told(line: &Line, view: &View, update: &Update) -> String {
    let is_now = matches!(line, Line::Phase(at)
        if view.facts.as_ref().and_then(|facts| facts.steps.get(*at))
            .is_some_and(|step| step.progress == Progress::Now));
    if is_now {
        return "now".to_owned();
    }
    time(took(line, view, update))
}

fn name(
    line: &Line,
    view: &View,
    update: &Update,
    theme: &Theme,
) -> (String, ratatui::style::Style) {
    let step = |at: usize| view.facts.as_ref().and_then(|facts| facts.steps.get(at));
    let session = |key: &u64| {
        let session = update.sessions.get(key);
        session.and_then(|session| session.name.clone())
    };
    match line {
        Line::Phase(at) => (
            step(*at).map_or_else(String::new, |step| step.name.name().to_owned()),
            theme.title,
        ),
        Line::Part(at, part) => {
            let part = step(*at).and_then(|step| step.parts.get(*part));
            let name = part.map_or("", |part| part.name.name());
            (format!("  {name}"), theme.text)
        }
        Line::Session(key) => (session(key).unwrap_or_default(), theme.title),
        Line::File(key, token) if view.longest => {
            let name = session(key).map_or_else(String::new, |name| format!("{name} "));
            (format!("{name}{token:#x}"), theme.text)
        }
        Line::File(_, token) => (format!("  {token:#x}"), theme.text),
    }
}

/// The blackout, as far as it has come.
pub fn dark(view: &View, state: &State) -> Option<(u64, u64)> {
    let facts = view.facts.as_ref()?;
    if let Some(blackout) = &facts.blackout {
        return Some((
            blackout.start_ns,
            blackout.start_ns.saturating_add(blackout.ns),
        ));
    }
    let update = view.shown_update(state)?;
    let (_, start) = facts.dark_since.filter(|_| update.ended_ns.is_none())?;
    Some((start, state.now_ns?.max(start)))
}

/// Where times are.
#[derive(Clone, Copy)]
struct Scale {
    start: u64,
    end: u64,
    room: usize,
}

impl Scale {
    /// The column of a time, which may lie outside.
    fn column(&self, t_ns: u64) -> i64 {
        let length = i128::from(self.end - self.start).max(1);
        let at = i128::from(t_ns) - i128::from(self.start);
        (at * self.room as i128 / length).clamp(-1, self.room as i128) as i64
    }

    /// The columns of a span: one at least, where it lies within at all.
    fn columns(&self, start: u64, end: u64) -> Option<std::ops::Range<usize>> {
        if end < self.start || start > self.end {
            return None;
        }
        let last = self.room as i64 - 1;
        let from = self.column(start).clamp(0, last);
        let to = self.column(end).clamp(from + 1, last + 1);
        Some(from as usize..to as usize)
    }
}

/// What is in one column.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ink {
    Nothing,
    Dark,
    Bar,
    Now,
    Step(char),
}

fn bars(
    line: &Line,
    view: &View,
    state: &State,
    update: &Update,
    scale: Scale,
    dark: Option<(u64, u64)>,
    theme: &Theme,
) -> Vec<Span<'static>> {
    let mut inks = vec![Ink::Nothing; scale.room];
    let mut ink = |start: u64, end: u64, ink: Ink| {
        for at in scale.columns(start, end).into_iter().flatten() {
            inks[at] = ink;
        }
    };
    if let Some((start, end)) = dark {
        ink(start, end, Ink::Dark);
    }
    // Where no clock spans the kexec, what is beyond has no place.
    let is_placed = |span: &crate::timeline::Span| {
        !update.is_unspanned() || span.start_ns < update.dark_since().map_or(u64::MAX, |it| it.1)
    };
    match line {
        Line::Phase(at) => {
            let step = view.facts.as_ref().and_then(|facts| facts.steps.get(*at));
            let is_now = step.is_some_and(|step| step.progress == Progress::Now);
            if let Some((start, end)) = span(line, view, state) {
                ink(start, end, if is_now { Ink::Now } else { Ink::Bar });
            }
        }
        Line::Part(..) => {
            if let Some((start, end)) = span(line, view, state) {
                ink(start, end, Ink::Bar);
            }
        }
        Line::Session(key) => {
            let session = update.sessions.get(key);
            for (letter, span) in session.into_iter().flat_map(session_steps) {
                if let Some(span) = span.filter(is_placed) {
                    ink(span.start_ns, span.end_ns, Ink::Step(letter));
                }
            }
        }
        Line::File(key, token) => {
            let session = update.sessions.get(key);
            let file = session.and_then(|session| session.files.get(token));
            for (letter, span) in file.into_iter().flat_map(steps) {
                if let Some(span) = span.filter(is_placed) {
                    ink(span.start_ns, span.end_ns, Ink::Step(letter));
                }
            }
        }
    }
    inks.chunk_by(|one, other| one == other)
        .map(|run| {
            let (sign, style) = match run[0] {
                Ink::Nothing => (' ', theme.text),
                Ink::Dark => ('·', theme.dim),
                Ink::Bar => ('█', theme.bar),
                Ink::Now => ('▓', theme.active),
                Ink::Step(letter) => (letter, theme.active),
            };
            Span::styled(sign.to_string().repeat(run.len()), style)
        })
        .collect()
}

/// When the left and the right edge are, since the update began.
fn axis(
    update: &Update,
    (start, end): (u64, u64),
    front: usize,
    room: usize,
    theme: &Theme,
) -> Text<'static> {
    let since = |t_ns: u64| {
        if t_ns >= update.began_ns {
            format!("+{}", duration(t_ns - update.began_ns))
        } else {
            format!("-{}", duration(update.began_ns - t_ns))
        }
    };
    let (left, right) = (since(start), since(end));
    let letters = if front > 40 {
        " p preserve  f freeze  r restore  e finish"
    } else {
        " p preserve f freeze r restore"
    };
    let gap = room.saturating_sub(left.len() + right.len());
    Text::from(vec![
        Span::styled(format!("{} ", fit(letters, front)), theme.dim),
        Span::styled(left, theme.dim),
        Span::raw(" ".repeat(gap)),
        Span::styled(right, theme.dim),
    ])
}
