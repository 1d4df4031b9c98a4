//! Where we are: phases, clock, blackout, what needs somebody, the gate, the last verdicts.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};

use super::{fit, fit_right, heading, many, number, put, time, uncertainty, wrap};
use crate::export::{duration, size};
use crate::gate::{Condition, State as Met};
use crate::timeline::{BlackoutStart, FileOutcome, Update};
use crate::top::State;
use crate::top::facts::{Facts, Progress, Step};
use crate::top::theme::Theme;
use crate::top::view::View;

/// From this many columns on there are two of sections.
const WIDE: u16 = 100;

/// What a phase takes in the list: sign, name, time.
const CELL: u16 = 26;

/// A part of the screen.
struct Section {
    title: String,
    /// Each with what stands in front, and a text.
    lines: Vec<(Vec<Span<'static>>, String)>,
}

/// How far the second line of a text stands to the right.
const INDENT: usize = 3;

impl Section {
    /// Its lines, of so many columns: no text is cut off.
    fn wrapped(self, theme: &Theme, columns: usize) -> Vec<Line<'static>> {
        let mut lines = Vec::new();
        for (mut front, text) in self.lines {
            let used: usize = front.iter().map(Span::width).sum();
            let texts = wrap(
                &text,
                columns.saturating_sub(used),
                columns.saturating_sub(INDENT),
            );
            let mut texts = texts.into_iter();
            front.push(Span::styled(texts.next().unwrap_or_default(), theme.text));
            lines.push(Line::from(front));
            lines.extend(
                texts.map(|text| Line::styled(format!("{}{text}", " ".repeat(INDENT)), theme.text)),
            );
        }
        lines
    }
}

/// Draws it.
pub fn draw(state: &State, view: &View, theme: &Theme, area: Rect, buffer: &mut Buffer) {
    let update = view.shown_update(state).zip(view.facts.as_ref());
    let mut top = Vec::new();
    if let Some((update, facts)) = update {
        top.push(bar(facts, theme, area.width));
        let cells = (area.width / CELL).max(1);
        let lines = (facts.steps.len() as u16).div_ceil(cells);
        if area.height >= lines + 14 {
            top.push(Line::default());
            top.extend(list(facts, state, theme, cells, lines));
            top.push(Line::default());
        } else {
            top.push(here(facts, state, theme));
        }
        top.extend(dark(facts, update, theme, area.width));
        top.push(files(facts, theme));
    } else {
        top.push(Line::default());
        let text = " Nothing is preserved, and no update has been seen.";
        top.push(Line::styled(text, theme.text));
        top.push(Line::default());
    }
    let used = (top.len() as u16).min(area.height);
    for (at, line) in top.into_iter().enumerate() {
        put(buffer, area, at as u16, line);
    }
    let rest = Rect {
        y: area.y + used,
        height: area.height - used,
        ..area
    };
    let mut sections = Vec::new();
    sections.extend(update.map(|(_, facts)| attention(facts, theme)));
    sections.extend(gate(view, theme));
    sections.extend(update.and_then(|(update, _)| verdicts(update, theme)));
    if area.width >= WIDE && sections.len() > 1 {
        let half = area.width / 2;
        let right = sections.split_off(1);
        let left = Rect {
            width: half - 1,
            ..rest
        };
        let other = Rect {
            x: rest.x + half,
            width: rest.width - half,
            ..rest
        };
        stack(sections, theme, left, buffer);
        stack(right, theme, other, buffer);
    } else {
        stack(sections, theme, rest, buffer);
    }
}

/// Sections below each other: each gets a fair share of the lines, and what one does not need the others get.
fn stack(sections: Vec<Section>, theme: &Theme, area: Rect, buffer: &mut Buffer) {
    let mut left = usize::from(area.height);
    let mut at = 0;
    let count = sections.len();
    for (number, section) in sections.into_iter().enumerate() {
        let fair = left / (count - number);
        let title = section.title.clone();
        let lines = section.wrapped(theme, usize::from(area.width));
        let wanted = lines.len() + 1;
        // The first is the one that matters most.
        let later = 2 * (count - number - 1);
        let room = fair.max(left.saturating_sub(later)).min(wanted).min(left);
        if room < 2 {
            break;
        }
        put(buffer, area, at, heading(&title, theme, area.width));
        let hidden = lines.len() - (room - 1);
        let shown = if hidden > 0 { room - 2 } else { room - 1 };
        let total = lines.len();
        for (line, text) in lines.into_iter().take(shown).enumerate() {
            put(buffer, area, at + 1 + line as u16, text);
        }
        if hidden > 0 {
            let more = format!(
                "   … and {}",
                many((total - shown) as u64, "line more", "lines more")
            );
            put(
                buffer,
                area,
                at + room as u16 - 1,
                Line::styled(more, theme.dim),
            );
        }
        at += room as u16;
        left -= room;
    }
}

/// The phases as a bar that fills: each has the same width.
fn bar(facts: &Facts, theme: &Theme, columns: u16) -> Line<'static> {
    let room = usize::from(columns).saturating_sub(2);
    let count = facts.steps.len();
    let mut spans = vec![Span::raw(" ")];
    for (at, step) in facts.steps.iter().enumerate() {
        let width = room * (at + 1) / count - room * at / count;
        let width = width.saturating_sub(1);
        let (text, style) = match step.progress {
            Progress::Done => ("█".repeat(width), theme.bar),
            Progress::Now => (
                format!("{}{}", "▓".repeat(width.div_ceil(2)), "▒".repeat(width / 2)),
                theme.active,
            ),
            Progress::ToCome => ("░".repeat(width), theme.dim),
            Progress::Never => ("·".repeat(width), theme.dim),
        };
        spans.push(Span::styled(text, style));
        spans.push(Span::raw(" "));
    }
    Line::from(spans)
}

fn sign(step: &Step) -> &'static str {
    match step.progress {
        Progress::Done => "✓",
        Progress::Now => "▶",
        Progress::ToCome => "·",
        Progress::Never => "–",
    }
}

/// How long it took, or takes already.
fn took(step: &Step, state: &State) -> String {
    match step.progress {
        // Where it ends is told by what comes next.
        Progress::Done if step.phase.is_none() => String::new(),
        Progress::Done => time(step.ns()),
        Progress::Now => {
            let so_far = step.start_ns().zip(state.now_ns);
            so_far.map_or_else(String::new, |(start, now)| {
                super::clock(now.saturating_sub(start))
            })
        }
        Progress::ToCome | Progress::Never => String::new(),
    }
}

/// Each phase with its time, from above to below.
fn list(facts: &Facts, state: &State, theme: &Theme, cells: u16, lines: u16) -> Vec<Line<'static>> {
    let line = |line: u16| {
        let mut spans = Vec::new();
        for cell in 0..cells {
            let Some(step) = facts.steps.get(usize::from(cell * lines + line)) else {
                continue;
            };
            let style = match step.progress {
                Progress::Done => theme.text,
                Progress::Now => theme.active,
                Progress::ToCome | Progress::Never => theme.dim,
            };
            let text = format!(
                " {} {} {}",
                sign(step),
                fit(step.name.name(), 12),
                fit_right(&took(step, state), 9),
            );
            spans.push(Span::styled(text, style));
            spans.push(Span::raw(" "));
        }
        Line::from(spans)
    };
    (0..lines).map(line).collect()
}

/// Where there is no room for all: the phase that goes on, and the next.
fn here(facts: &Facts, state: &State, theme: &Theme) -> Line<'static> {
    let at = facts
        .steps
        .iter()
        .position(|it| it.progress == Progress::Now);
    let Some(at) = at else {
        let known = facts.steps.iter().filter(|step| step.ns().is_some());
        let longest = known.max_by_key(|step| step.ns());
        return Line::from(longest.map_or_else(Vec::new, |step| {
            vec![Span::styled(
                format!(" longest: {} {}", step.name.name(), time(step.ns())),
                theme.dim,
            )]
        }));
    };
    let step = &facts.steps[at];
    let mut spans = vec![
        Span::styled(
            format!(" ▶ {} {}", step.name.name(), took(step, state)),
            theme.active,
        ),
        Span::styled(
            format!("  phase {} of {}", at + 1, facts.steps.len()),
            theme.dim,
        ),
    ];
    if let Some(next) = facts.steps.get(at + 1) {
        let text = format!(", then {}", next.name.name());
        spans.push(Span::styled(text, theme.dim));
    }
    Line::from(spans)
}

fn label(text: &str, theme: &Theme) -> Span<'static> {
    Span::styled(fit(&format!(" {text}"), 11), theme.dim)
}

/// The blackout, and what it is made of.
fn dark(facts: &Facts, update: &Update, theme: &Theme, columns: u16) -> Vec<Line<'static>> {
    let from = |from| match from {
        BlackoutStart::Freeze => "the freeze",
        BlackoutStart::Reboot => "reboot(KEXEC)",
    };
    let Some(blackout) = &facts.blackout else {
        let text = match facts.dark_since {
            _ if update.is_unspanned() => "unknown: no clock spans the kexec".to_owned(),
            None if update.ended_ns.is_some() && !update.is_beyond_kexec() => {
                "none: the kernel was not replaced".to_owned()
            }
            None if update.is_beyond_kexec() => "unknown: its beginning was not seen".to_owned(),
            None => "not begun".to_owned(),
            Some(_) if update.ended_ns.is_some() && !update.is_beyond_kexec() => {
                "called off before the kernel was replaced".to_owned()
            }
            Some(_) if update.ended_ns.is_some() => {
                "unknown: not every restore was seen".to_owned()
            }
            Some((start, _)) => format!(
                "counting, from {} until every file is restored",
                from(start)
            ),
        };
        return vec![Line::from(vec![
            label("blackout", theme),
            Span::styled(text, theme.text),
        ])];
    };
    let least = if update.events.lost > 0 { "≥ " } else { "" };
    let mut lines = vec![Line::from(vec![
        label("blackout", theme),
        Span::styled(format!("{least}{} ", duration(blackout.ns)), theme.title),
        Span::styled(
            uncertainty(blackout.clock, blackout.uncertainty_ns),
            theme.dim,
        ),
        Span::styled(format!(", from {}", from(blackout.from)), theme.dim),
    ])];
    let end = blackout.start_ns.saturating_add(blackout.ns);
    let mut parts: Vec<(&str, u64)> = facts
        .steps
        .iter()
        .flat_map(|step| {
            let whole = (step.name.name(), step.start_ns(), step.ns());
            let parts = step.parts.iter();
            let parts = parts.map(|part| (part.name.name(), part.start_ns, part.ns));
            if step.parts.is_empty() {
                vec![whole]
            } else {
                parts.collect()
            }
        })
        .filter_map(|(name, start, ns)| {
            let (start, ns) = start.zip(ns)?;
            let within = start >= blackout.start_ns && start.saturating_add(ns) <= end;
            within.then_some((name, ns))
        })
        .collect();
    parts.sort_by_key(|(_, ns)| std::cmp::Reverse(*ns));
    let mut text = String::new();
    for (name, ns) in parts {
        let share = 100 * u128::from(ns) / u128::from(blackout.ns.max(1));
        let part = format!("{name} {share} % ");
        if share == 0 || text.len() + part.len() > usize::from(columns).saturating_sub(13) {
            break;
        }
        if !text.is_empty() {
            text.push_str("· ");
        }
        text.push_str(&part);
    }
    if !text.is_empty() {
        lines.push(Line::from(vec![
            label("", theme),
            Span::styled(text, theme.text),
        ]));
    }
    lines
}

/// What became of the files.
fn files(facts: &Facts, theme: &Theme) -> Line<'static> {
    let all = facts.all_files();
    let mut spans = vec![label("files", theme)];
    if all == 0 {
        spans.push(Span::styled("none", theme.dim));
        return Line::from(spans);
    }
    let bytes = if facts.unsized_files > 0 {
        format!("≥ {}", size(facts.bytes))
    } else {
        size(facts.bytes)
    };
    spans.push(Span::styled(
        format!(
            "{} in {}, {bytes}: ",
            number(all),
            many(facts.sessions, "session", "sessions")
        ),
        theme.text,
    ));
    let mut first = true;
    for (&outcome, &count) in FileOutcome::ALL.iter().zip(&facts.files) {
        if count == 0 {
            continue;
        }
        if !first {
            spans.push(Span::styled(", ", theme.dim));
        }
        first = false;
        let style = super::sessions::file_style(outcome, theme);
        let text = format!("{} {}", number(count), outcome.name());
        spans.push(Span::styled(text, style));
    }
    Line::from(spans)
}

fn attention(facts: &Facts, theme: &Theme) -> Section {
    let front = |style, text: &str| vec![Span::styled(text.to_owned(), style)];
    let listed = facts.attention.iter();
    let mut lines: Vec<_> = listed
        .map(|one| {
            let kind = format!(" ! {} ", one.kind.name());
            (front(theme.bad, &kind), one.text.clone())
        })
        .collect();
    let count = lines.len() as u64 + facts.attention_left_out;
    if facts.attention_left_out > 0 {
        let text = format!("   … and {} more", number(facts.attention_left_out));
        lines.push((front(theme.dim, &text), String::new()));
    }
    let title = if count == 0 {
        let text = " ✓ nothing needs attention";
        lines.push((front(theme.good, text), String::new()));
        "Attention".to_owned()
    } else {
        format!("Attention ({count})")
    };
    Section { title, lines }
}

fn gate(view: &View, theme: &Theme) -> Option<Section> {
    let gate = view.gate.as_ref()?;
    let line = |condition: &Condition| {
        let (sign, word, style) = match (condition.state, condition.ready) {
            (Met::Met, _) => ("✓", "met", theme.good),
            (Met::NotMet, true) => ("!", "not met, goes on", theme.warn),
            (Met::NotMet, false) => ("✗", "not met", theme.bad),
            (Met::Unknown, true) => ("?", "unknown, goes on", theme.warn),
            (Met::Unknown, false) => ("?", "unknown", theme.warn),
        };
        let rule = condition.rule.as_ref();
        let rule = rule.map_or_else(String::new, |rule| format!("\"{rule}\" "));
        let front = vec![
            Span::styled(format!(" {sign} {} ", fit(word, 8)), style),
            Span::styled(format!("{} ", fit(condition.about, 9)), theme.dim),
        ];
        (front, format!("{rule}{}", condition.reason))
    };
    // What holds it up comes first.
    let (mut lines, met): (Vec<_>, Vec<_>) = gate
        .conditions
        .iter()
        .partition(|condition| !condition.ready);
    lines.extend(met);
    let held = gate.conditions.iter().filter(|it| !it.ready);
    let title = if gate.ready {
        "Gate: ready".to_owned()
    } else if held.clone().any(|it| it.state == Met::NotMet) {
        "Gate: not ready".to_owned()
    } else {
        "Gate: not known to be ready".to_owned()
    };
    Some(Section {
        title,
        lines: lines.into_iter().map(line).collect(),
    })
}

fn verdicts(update: &Update, theme: &Theme) -> Option<Section> {
    let mut all: Vec<_> = update.verdicts.said.iter().collect();
    if all.is_empty() {
        return None;
    }
    all.sort_by_key(|(_, times)| std::cmp::Reverse(times.last_ns));
    let lines = all
        .iter()
        .map(|(said, times)| super::policy::front(said, times, theme))
        .collect();
    Some(Section {
        title: format!("Last verdicts ({})", all.len()),
        lines,
    })
}
