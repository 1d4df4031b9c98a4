//! Past updates: the blackout over time, with percentiles, and a list.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};

use super::{body_of, fit, fit_right, heading, number, put, put_row};
use crate::export::{Entry, duration};
use crate::top::State;
use crate::top::theme::Theme;
use crate::top::view::View;

/// Lines of the chart, with its heading and its percentiles.
fn charted(body: Rect, state: &State) -> u16 {
    let has_blackout = state.history.iter().any(|it| it.blackout_ns.is_some());
    if has_blackout && body.height >= 9 {
        (body.height / 3).clamp(4, 12)
    } else {
        0
    }
}

/// How many updates are shown at once.
pub fn page(view: &View, state: &State) -> usize {
    let body = body_of(state, view);
    let lines = body.height - charted(body, state);
    usize::from(lines.saturating_sub(2))
}

/// Draws it.
pub fn draw(state: &State, view: &View, theme: &Theme, area: Rect, buffer: &mut Buffer) {
    let lines = charted(area, state);
    if lines > 0 {
        let above = Rect {
            height: lines,
            ..area
        };
        chart(state, view, theme, above, buffer);
    }
    let list = Rect {
        y: area.y + lines,
        height: area.height - lines,
        ..area
    };
    let title = format!("Updates ({})", number(state.history.len() as u64));
    put(buffer, list, 0, heading(&title, theme, list.width));
    if let Some(problem) = &state.history_problem {
        put(
            buffer,
            list,
            1,
            Line::styled(format!(" ! {problem}"), theme.warn),
        );
    } else if state.history.is_empty() {
        let nothing = " The journal has no update.";
        put(buffer, list, 1, Line::styled(nothing, theme.dim));
    } else {
        let head = format!(
            " {:>6} {} {} {:>9} {:>16}  {}",
            "update",
            fit("began (UTC)", 19),
            fit("outcome", 12),
            "restored",
            "blackout",
            "uncertainty",
        );
        put(buffer, list, 1, Line::styled(head, theme.dim));
    }
    let cursor = view.cursor();
    let page = usize::from(list.height.saturating_sub(2));
    let entries = state.history.iter().enumerate();
    for (at, entry) in entries.skip(cursor.offset).take(page) {
        let y = 2 + (at - cursor.offset) as u16;
        let line = line(entry, theme);
        if at == cursor.selected {
            put_row(buffer, list, y, line, theme.selected);
        } else {
            put(buffer, list, y, line);
        }
    }
}

fn line(entry: &Entry, theme: &Theme) -> Line<'static> {
    let began = entry.began_realtime_ns.and_then(|ns| {
        let time = jiff::Timestamp::from_nanosecond(ns.into()).ok()?;
        Some(time.strftime("%Y-%m-%d %H:%M:%S").to_string())
    });
    let restored = match (entry.restored, entry.handed_over) {
        (Some(restored), Some(of)) => format!("{restored}/{of}"),
        _ => "unknown".to_owned(),
    };
    let is_dark = !matches!(&*entry.outcome, "cancelled" | "aborted");
    let blackout = match entry.blackout_ns {
        Some(ns) if entry.lost == Some(0) => duration(ns),
        Some(ns) => format!("≥ {}", duration(ns)),
        None if is_dark => "unknown".to_owned(),
        None => "none".to_owned(),
    };
    let uncertainty = match (entry.blackout_ns, entry.uncertainty_ns) {
        (None, _) => String::new(),
        (Some(_), Some(ns)) => format!("± {}", duration(ns)),
        (Some(_), None) => "± unknown".to_owned(),
    };
    let (sign, style) = match &*entry.outcome {
        "finished" => ("✓", theme.good),
        "in-progress" => ("▶", theme.active),
        "cancelled" => ("–", theme.warn),
        _ => ("✗", theme.bad),
    };
    let lossy = match entry.lost {
        Some(0) => String::new(),
        Some(lost) => format!("  {} lost", number(lost)),
        None => "  losses unknown".to_owned(),
    };
    Line::from(vec![
        Span::styled(
            format!(
                " {:>6} {} ",
                entry.update,
                fit(began.as_deref().unwrap_or("unknown"), 19)
            ),
            theme.text,
        ),
        Span::styled(fit(&format!("{sign} {}", entry.outcome), 13), style),
        Span::styled(
            format!("{} {}  ", fit_right(&restored, 9), fit_right(&blackout, 16)),
            theme.text,
        ),
        Span::styled(uncertainty, theme.dim),
        Span::styled(lossy, theme.bad),
    ])
}

/// The value below which so many of a hundred lie, by the nearest rank.
fn percentile(sorted: &[u64], percent: usize) -> Option<u64> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

/// A bar for each of the newest updates, the newest to the right; the percentiles are those of all.
fn chart(state: &State, view: &View, theme: &Theme, area: Rect, buffer: &mut Buffer) {
    let known = state.history.iter().filter_map(|entry| entry.blackout_ns);
    let mut sorted: Vec<u64> = known.collect();
    sorted.sort_unstable();
    put(
        buffer,
        area,
        0,
        heading("Blackout over time", theme, area.width),
    );
    let told = |percent: usize| {
        percentile(&sorted, percent).map_or_else(|| "unknown".to_owned(), duration)
    };
    let text = format!(
        " of {}: p50 {} · p90 {} · p99 {} · longest {}",
        number(sorted.len() as u64),
        told(50),
        told(90),
        told(99),
        told(100),
    );
    put(buffer, area, 1, Line::styled(text, theme.text));
    let lines = usize::from(area.height.saturating_sub(3));
    let longest = sorted.last().copied().unwrap_or(1).max(1);
    let front = 11;
    let room = usize::from(area.width).saturating_sub(front + 1);
    let shown = state.history.len().min(room);
    let selected = view.cursor().selected;
    for line in 0..lines {
        // From above: the last line stands on the ground.
        let floor = (lines - 1 - line) as u64;
        let label = match line {
            0 => fit_right(&duration(longest), front - 2),
            _ if line + 1 == lines => fit_right("0", front - 2),
            _ => " ".repeat(front - 2),
        };
        let mut spans = vec![Span::styled(format!("{label} │"), theme.dim)];
        for at in (0..shown).rev() {
            let entry = &state.history[at];
            let eighths = entry.blackout_ns.map(|ns| {
                let full = u128::from(ns) * (lines as u128 * 8) / u128::from(longest);
                (full as u64).max(1)
            });
            let sign = match eighths {
                None if floor == 0 => "·",
                None => " ",
                Some(eighths) => {
                    let here = eighths.saturating_sub(floor * 8).min(8) as usize;
                    [" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"][here]
                }
            };
            let style = if at == selected {
                theme.active
            } else {
                theme.bar
            };
            spans.push(Span::styled(sign, style));
        }
        put(buffer, area, 2 + line as u16, Line::from(spans));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_there() {
        let values: Vec<u64> = (1..=100).collect();
        let of = |percent| percentile(&values, percent);
        assert_eq!(
            [of(50), of(90), of(99), of(100)],
            [Some(50), Some(90), Some(99), Some(100)]
        );
        assert_eq!(percentile(&[7], 50), Some(7));
        assert_eq!(percentile(&[], 50), None);
    }
}
