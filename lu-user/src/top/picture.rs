//! What is seen, for those who do not sit before it: as text, as JSON, as a picture.

use std::fmt::Write as _;

use ratatui::buffer::{Buffer, Cell};
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier};
use serde::Serialize;
use serde_json::{Value, json};

use super::State;
use super::screens::paint;
use super::theme::Name;
use super::view::{Screen, View};
use crate::export::{AttentionJson, Report, TraceLine};
use crate::timeline::{Enforcer, FileSpan};

/// The value of the field `schema`.
const SCHEMA: &str = "lu.top/1";

fn drawn(state: &State, view: &View) -> Buffer {
    let area = Rect::new(0, 0, view.size.0, view.size.1);
    let mut buffer = Buffer::empty(area);
    paint(state, view, area, &mut buffer);
    buffer
}

/// The cells of each line; those that a wide character covers are left out.
fn lines(buffer: &Buffer) -> impl Iterator<Item = Vec<&Cell>> {
    let columns = usize::from(buffer.area.width).max(1);
    buffer.content.chunks(columns).map(move |line| {
        let mut covered = 0;
        let mut cells = Vec::with_capacity(columns);
        for cell in line {
            if covered > 0 {
                covered -= 1;
                continue;
            }
            covered = ratatui::text::Span::raw(cell.symbol())
                .width()
                .saturating_sub(1);
            cells.push(cell);
        }
        cells
    })
}

/// As text, a line for each of the screen's, without spaces at their ends.
#[must_use]
pub fn text(state: &State, view: &View) -> String {
    let buffer = drawn(state, view);
    let mut text = String::new();
    for line in lines(&buffer) {
        let line: String = line.iter().map(|cell| cell.symbol()).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A rule, as JSON.
#[derive(Serialize)]
struct RuleJson<'a> {
    enforced_by: Enforcer,
    generation: u64,
    number: u8,
    name: Option<&'a str>,
    section: Option<&'static str>,
    enforced: Option<bool>,
    allow: Option<u64>,
    would_deny: u64,
    deny: u64,
    unsure: u64,
    tampered: u64,
}

/// What the shown screen has, as one JSON document; null is unknown.
#[must_use]
pub fn json(state: &State, view: &View) -> Value {
    let update = view.shown_update(state);
    let facts = view.facts.as_ref();
    let number = |ns: Option<u64>| ns.map_or(Value::Null, Value::from);
    let clock = update.and_then(|update| super::screens::clock_of(update, state));
    let dark = facts
        .and_then(|facts| facts.dark_since)
        .filter(|_| update.is_some_and(|update| update.ended_ns.is_none()));
    let dark = dark
        .zip(state.now_ns)
        .and_then(|((_, since), now)| now.checked_sub(since));
    let mut document = json!({
        "schema": SCHEMA,
        "screen": view.screen.title().to_lowercase(),
        "source": state.source,
        "ended": state.ended,
        "events": { "seen": state.timeline.events().seen, "lost": state.timeline.events().lost },
        "update": update.map(|update| json!({
            "number": update.number,
            "outcome": update.outcome,
            "phase": facts.and_then(|facts| facts.stage()).map(|step| step.name),
            "clock_ns": number(clock),
            "dark_for_ns": number(dark.filter(|_| facts.is_some_and(|it| it.blackout.is_none()))),
            "lost": update.events.lost,
        })),
    });
    let more = match view.screen {
        Screen::Update => json!({
            "report": update.map(|update| {
                // The files are the screen Sessions.
                let mut report = serde_json::to_value(Report::from(update)).unwrap_or_default();
                if let Some(report) = report.as_object_mut() {
                    report.remove("sessions");
                }
                report
            }),
            "attention": facts.map_or(&[] as &[AttentionJson], |facts| &facts.attention),
            "gate": view.gate,
        }),
        Screen::Sessions | Screen::Waterfall => files(state, view),
        Screen::Events => events(state, view),
        Screen::Policy => policy(state, view),
        Screen::History => json!({
            "updates": state.history,
            "problem": state.history_problem,
        }),
    };
    if let (Some(document), Some(more)) = (document.as_object_mut(), more.as_object()) {
        document.extend(more.clone());
    }
    document
}

/// Phases, and sessions and files as they are listed.
fn files(state: &State, view: &View) -> Value {
    let update = view.shown_update(state);

    let rows = view.rows.all.iter().filter_map(|row| {
                let update = update?;
                let (session, file) = row.of(update)?;
                let step = |span: Option<crate::timeline::Span>| {
                    json!({ "start_ns": span.map(|it| it.start_ns), "ns": span.map(|it| it.ns()) })
                };
                let owner = |file: &FileSpan| update.owners.get(file.owner?);
                Some(match file {
                    None => json!({
                        "session": session.name,
                        "state": session.name.as_ref().map(|_| session.outcome),
                        "freeze": step(session.freeze),
                        "retrieve": step(session.retrieve),
                        "finish": step(session.finish),
                    }),
                    Some(file) => json!({
                        "session": session.name,
                        "token": row.token,
                        "kind": file.kind.map(lu_common::event::FileKind::name),
                        "bytes": file.bytes,
                        "state": file.outcome,
                        "owner": owner(file).map(|owner| json!({
                            "pid": owner.pid,
                            "uid": owner.uid,
                            "comm": owner.comm,
                            "cgroup_id": owner.cgroup_id,
                            "cgroup": owner.cgroup_id.and_then(|id| state.cgroups.get(&id)),
                        })),
                        "preserve": step(file.preserve),
                        "prepare": step(file.prepare),
                        "freeze": step(file.freeze),
                        "restore": step(file.restore),
                    }),
                })
            });
    let phases = view.facts.as_ref().map(|facts| {
        let steps = facts.steps.iter();
        let phase = steps
            .map(|step| json!({ "name": step.name, "start_ns": step.start_ns(), "ns": step.ns() }));
        phase.collect::<Vec<_>>()
    });
    json!({ "phases": phases, "rows": rows.collect::<Vec<_>>(), "hidden": view.rows.hidden })
}

/// The stream of events, as `lu trace --json` tells each.
fn events(state: &State, view: &View) -> Value {
    let names = state.timeline.names();
    let records = view
        .shown
        .numbers
        .iter()
        .filter_map(|at| state.events.get(*at));
    let lines = records.map(|record| TraceLine::new(record, names));
    json!({ "lines": lines.collect::<Vec<_>>(), "not_kept": state.events.first() })
}

/// The policy that was loaded last, its rules, and what it said.
fn policy(state: &State, view: &View) -> Value {
    let update = view.shown_update(state);

    let rules = state
        .rules
        .newest()
        .into_iter()
        .map(|(key, rule)| RuleJson {
            enforced_by: key.0,
            generation: key.1,
            number: key.2,
            name: rule.name.as_deref(),
            section: rule.section.map(lu_common::event::Section::name),
            enforced: rule.is_enforced,
            allow: rule.counts.allow,
            would_deny: rule.counts.would_deny,
            deny: rule.counts.deny,
            unsure: rule.counts.unsure,
            tampered: rule.counts.tampered,
        });
    let verdicts = update.map(|update| Report::from(update).verdicts);
    json!({
        "policy": state.rules.loaded.as_ref().map(|(policy, _)| policy),
        "rules": rules.collect::<Vec<_>>(),
        "verdicts": verdicts,
    })
}

/// Pixels of a cell.
const CELL: (f64, f64) = (8.4, 18.0);

/// As an SVG picture of the terminal.
#[must_use]
pub fn svg(state: &State, view: &View) -> String {
    let buffer = drawn(state, view);
    let (ground, ink) = match view.theme {
        Name::Dark => ("#16181d", "#d8dee9"),
        Name::Light | Name::Mono => ("#ffffff", "#24292f"),
    };
    let (columns, rows) = (f64::from(buffer.area.width), f64::from(buffer.area.height));
    let margin = 12.0;
    let (width, height) = (
        columns * CELL.0 + 2.0 * margin,
        rows * CELL.1 + 2.0 * margin,
    );
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" \
         font-family=\"ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace\" font-size=\"14\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"{ground}\"/>\n"
    );
    for (row, cells) in lines(&buffer).enumerate() {
        let top = margin + row as f64 * CELL.1;
        let mut column = 0.0;
        for run in cells.chunk_by(|one, other| one.style() == other.style()) {
            let text: String = run.iter().map(|cell| cell.symbol()).collect();
            let wide = ratatui::text::Span::raw(text.as_str()).width() as f64;
            let left = margin + column * CELL.0;
            column += wide;
            let cell = run[0];
            let is_turned = cell.modifier.contains(Modifier::REVERSED);
            let mut colour = hex(cell.fg, ink);
            if is_turned {
                let _ = writeln!(
                    svg,
                    "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{}\" fill=\"{colour}\"/>",
                    wide * CELL.0,
                    CELL.1
                );
                colour = ground;
            }
            if text.trim().is_empty() {
                continue;
            }
            let mut style = String::new();
            if cell.modifier.contains(Modifier::BOLD) {
                style.push_str(" font-weight=\"bold\"");
            }
            if cell.modifier.contains(Modifier::DIM) {
                style.push_str(" opacity=\"0.6\"");
            }
            // Each run is as wide as its cells, whatever the font thinks.
            let _ = writeln!(
                svg,
                "<text x=\"{left:.1}\" y=\"{:.1}\" fill=\"{colour}\"{style} xml:space=\"preserve\" \
                 textLength=\"{:.1}\" lengthAdjust=\"spacingAndGlyphs\">{}</text>",
                top + 13.5,
                wide * CELL.0,
                escaped(&text)
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
}

fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for char in text.chars() {
        match char {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            char => escaped.push(char),
        }
    }
    escaped
}

/// A colour of the themes.
const fn hex(colour: Color, ink: &'static str) -> &'static str {
    match colour {
        Color::DarkGray => "#7b8494",
        Color::Green => "#5fb37c",
        Color::Yellow => "#d9a441",
        Color::LightRed | Color::Red => "#e06c75",
        Color::Cyan => "#56b6c2",
        Color::Blue => "#5c8fd6",
        Color::Magenta => "#a95fb3",
        _ => ink,
    }
}
