//! The stream of events, with what was lost where it was lost.

use std::fmt::Write as _;

use lu_common::event::{FileKind, Kind, Record};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};

use super::{body_of, heading, number, put, put_row};
use crate::export::{errno_name, is_about_policy};
use crate::top::State;
use crate::top::rows::{Filter, has};
use crate::top::theme::Theme;
use crate::top::view::View;

/// How many events are shown at once.
pub fn page(view: &View, state: &State) -> usize {
    usize::from(body_of(state, view).height.saturating_sub(1))
}

/// Whether an event meets a filter. A loss always does: what is missing may have met it.
pub fn meets(filter: &Filter, number: u64, record: &Record, state: &State) -> bool {
    if filter.is_empty() || record.lost().is_some() {
        return true;
    }
    let names = state.timeline.names();
    filter.meets(|field, value| match field {
        None => state
            .events
            .line(number, names)
            .is_some_and(|line| has(&line, value)),
        Some("kind") => has(record.kind().map_or("unknown", Kind::name), value),
        Some("session") => names.of(record).is_some_and(|name| has(&name, value)),
        Some("token") => names.token(record).is_some_and(|token| {
            format!("{token:#x}") == value || value.parse().is_ok_and(|it: u64| it == token)
        }),
        Some("file") => has(record.file_kind().map_or("unknown", FileKind::name), value),
        Some("pid") => record.has_task() && record.header.pid.to_string() == value,
        Some("comm") => has(&String::from_utf8_lossy(record.comm()), value),
        Some("errno") => record
            .errno()
            .is_some_and(|errno| has(&errno_name(errno), value)),
        Some(_) => false,
    })
}

/// Draws it.
pub fn draw(state: &State, view: &View, theme: &Theme, area: Rect, buffer: &mut Buffer) {
    let stream = &state.events;
    let mut title = format!("Events, {}", number(stream.end()));
    if !view.filter().is_empty() {
        let shown = number(view.shown.numbers.len() as u64);
        let _ = write!(title, ", {shown} meet the filter");
    }
    if stream.first() > 0 {
        let gone = number(stream.first());
        let _ = write!(title, ", the first {gone} are not kept");
    }
    if let Some(at) = view.paused {
        let new = number(stream.end().saturating_sub(at));
        let _ = write!(title, " ‖ paused, {new} new");
    }
    put(buffer, area, 0, heading(&title, theme, area.width));
    if view.shown.numbers.is_empty() {
        let nothing = if stream.end() == 0 {
            " Nothing has happened yet."
        } else {
            " No event meets the filter."
        };
        put(buffer, area, 1, Line::styled(nothing, theme.dim));
        return;
    }
    let cursor = view.cursor();
    let page = usize::from(area.height.saturating_sub(1));
    let numbers = view.shown.numbers.iter().enumerate();
    for (at, event) in numbers.skip(cursor.offset).take(page) {
        let y = 1 + (at - cursor.offset) as u16;
        let Some(record) = stream.get(*event) else {
            continue;
        };
        let line = told(*event, record, state, theme);
        if view.paused.is_some() && at == cursor.selected {
            put_row(buffer, area, y, line, theme.selected);
        } else {
            put(buffer, area, y, line);
        }
    }
}

fn told(number: u64, record: &Record, state: &State, theme: &Theme) -> Line<'static> {
    let text = state.events.line(number, state.timeline.names());
    let text = text.unwrap_or_default();
    let style = if record.lost().is_some() || record.errno().is_some() {
        theme.bad
    } else if is_about_policy(record) {
        theme.warn
    } else if record.kernel_release().is_some() || record.handover().is_some() {
        theme.title
    } else {
        theme.text
    };
    Line::from(vec![Span::raw(" "), Span::styled(text, style)])
}
