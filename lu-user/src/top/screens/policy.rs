//! The policy's rules and how often each decided; verdicts, and one of them explained.

use std::fmt::Write as _;

use lu_common::policy::{Decision, NO_RULE, Operation};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};

use super::{body_of, fit, fit_right, heading, number, put, put_row, wrap};
use crate::export::errno_name;
use crate::policy::{Mode, Rule as Written, Says};
use crate::timeline::{Said, Times};
use crate::top::State;
use crate::top::rules::{Key, Rule};
use crate::top::theme::Theme;
use crate::top::view::View;

/// Lines in which the selected one is explained, with the heading, at most.
const EXPLAINED: u16 = 9;

/// What can be selected.
enum Row<'a> {
    /// A rule that was heard of.
    Rule(&'a Key, &'a Rule),
    /// One of the policy that was given, of which nothing was heard yet.
    Written(&'a Written),
    /// What the policy said in the update that is shown.
    Said(&'a Said, &'a Times),
}

fn rows<'a>(state: &'a State, view: &View) -> Vec<Row<'a>> {
    let heard = state.rules.newest();
    let mut rows: Vec<Row<'_>> = Vec::new();
    if let Some((source, _)) = state.policy.as_deref() {
        for written in &source.rules {
            let rule = heard
                .iter()
                .find(|(_, rule)| rule.name.as_ref() == Some(&written.name));
            rows.push(match rule {
                Some((key, rule)) => Row::Rule(key, rule),
                None => Row::Written(written),
            });
        }
    } else {
        rows.extend(heard.into_iter().map(|(key, rule)| Row::Rule(key, rule)));
    }
    if let Some(update) = view.shown_update(state) {
        let mut said: Vec<_> = update.verdicts.said.iter().collect();
        said.sort_by_key(|(_, times)| std::cmp::Reverse(times.last_ns));
        rows.extend(said.into_iter().map(|(said, times)| Row::Said(said, times)));
    }
    rows
}

/// How many there are.
pub fn len(state: &State, view: &View) -> usize {
    rows(state, view).len()
}

fn split(body: Rect) -> (Rect, Rect) {
    let lines = EXPLAINED.min(body.height / 2);
    let above = Rect {
        height: body.height - lines,
        ..body
    };
    let below = Rect {
        y: body.y + above.height,
        height: lines,
        ..body
    };
    (above, below)
}

/// How many rows are shown at once.
pub fn page(view: &View, state: &State) -> usize {
    let (above, _) = split(body_of(state, view));
    usize::from(above.height.saturating_sub(2))
}

/// Draws it.
pub fn draw(state: &State, view: &View, theme: &Theme, area: Rect, buffer: &mut Buffer) {
    let (above, below) = split(area);
    let title = match &state.rules.loaded {
        Some((policy, by)) => format!(
            "Policy {}, generation {}, {}, {} of {} enforced by {}{}",
            &policy.sha256[..8],
            policy.generation,
            policy.mode,
            policy.enforced,
            policy.rules,
            policy.enforced_by.title(),
            by.as_ref()
                .map_or_else(String::new, |by| format!(", loaded by {by}")),
        ),
        None => match state.policy.as_deref() {
            Some((source, _)) => format!(
                "Policy {}, mode {}; it was not seen being loaded",
                source.name,
                source.mode.name()
            ),
            None => "Policy: none was seen being loaded".to_owned(),
        },
    };
    put(buffer, above, 0, heading(&title, theme, above.width));
    let names = usize::from(above.width).saturating_sub(48);
    let head = format!(
        "   {} {:<9}{:<8}{:>6} {:>6} {:>6} {:>6}",
        fit("rule", names),
        "section",
        "mode",
        "allow",
        "would",
        "deny",
        "unsure"
    );
    put(buffer, above, 1, Line::styled(head, theme.dim));
    let rows = rows(state, view);
    if rows.is_empty() {
        let nothing = "   No rule, and no verdict but plain allows, which are not told.";
        put(buffer, above, 2, Line::styled(nothing, theme.dim));
    }
    let cursor = view.cursor();
    let page = usize::from(above.height.saturating_sub(2));
    for (at, row) in rows.iter().enumerate().skip(cursor.offset).take(page) {
        let y = 2 + (at - cursor.offset) as u16;
        let line = match row {
            Row::Rule(key, rule) => rule_line(key, rule, names, theme),
            Row::Written(written) => written_line(written, names, theme),
            Row::Said(said, times) => line(said, times, theme),
        };
        if at == cursor.selected {
            put_row(buffer, above, y, line, theme.selected);
        } else {
            put(buffer, above, y, line);
        }
    }
    put(buffer, below, 0, heading("Explained", theme, below.width));
    let lines = rows
        .get(cursor.selected)
        .map_or_else(Vec::new, |row| explained(row, state));
    let columns = usize::from(below.width).saturating_sub(2);
    let wrapped = lines.iter().flat_map(|text| wrap(text, columns, columns));
    for (at, text) in wrapped.enumerate() {
        put(
            buffer,
            below,
            1 + at as u16,
            Line::styled(format!(" {text}"), theme.text),
        );
    }
}

fn count(count: u64, style: Style, theme: &Theme) -> Span<'static> {
    let style = if count > 0 { style } else { theme.dim };
    Span::styled(format!("{} ", fit_right(&number(count), 6)), style)
}

fn rule_line(key: &Key, rule: &Rule, names: usize, theme: &Theme) -> Line<'static> {
    let name = match (&rule.name, key.2) {
        (Some(name), _) => name.clone(),
        (None, NO_RULE) => "(no rule)".to_owned(),
        (None, number) => format!("#{number}"),
    };
    let mode = match rule.is_enforced {
        Some(true) => "enforce",
        Some(false) => "monitor",
        None => "unknown",
    };
    let section = rule
        .section
        .map_or("unknown", lu_common::event::Section::name);
    let (section, mode) = if key.2 == NO_RULE {
        ("–", "–")
    } else {
        (section, mode)
    };
    let allow = match rule.counts.allow {
        Some(allow) => count(allow, theme.good, theme),
        // What is plainly allowed is told by nobody but whoever counts it.
        None => Span::styled(format!("{} ", fit_right("?", 6)), theme.dim),
    };
    Line::from(vec![
        Span::styled(
            format!("   {} {section:<9}{mode:<8}", fit(&name, names)),
            theme.text,
        ),
        allow,
        count(rule.counts.would_deny, theme.warn, theme),
        count(rule.counts.deny, theme.bad, theme),
        count(rule.counts.unsure, theme.warn, theme),
    ])
}

fn written_line(written: &Written, names: usize, theme: &Theme) -> Line<'static> {
    Line::styled(
        format!(
            "   {} {:<9}{:<8}{:>6} {:>6} {:>6} {:>6}",
            fit(&written.name, names),
            written.section.name(),
            written.mode.name(),
            "?",
            "?",
            "?",
            "?"
        ),
        theme.dim,
    )
}

/// A sign, a word and a style for what was decided.
fn decided(said: &Said, theme: &Theme) -> (&'static str, &'static str, Style) {
    match (&said.differs, said.decision) {
        (Some(_), _) => ("‼", "tampered", theme.bad),
        (None, Decision::Deny) => ("✗", "deny", theme.bad),
        (None, Decision::WouldDeny) => ("!", "would-deny", theme.warn),
        (None, Decision::Allow) => ("✓", "allow", theme.good),
    }
}

fn who(times: &Times) -> String {
    times.by.as_ref().map_or_else(
        || "somebody (not seen)".to_owned(),
        |by| format!("{} (pid {})", by.comm, by.pid),
    )
}

/// A verdict on one line.
fn line(said: &Said, times: &Times, theme: &Theme) -> Line<'static> {
    let (mut spans, text) = front(said, times, theme);
    spans.push(Span::styled(text, theme.text));
    Line::from(spans)
}

/// A verdict: what was decided, and the rest of it.
pub fn front(said: &Said, times: &Times, theme: &Theme) -> (Vec<Span<'static>>, String) {
    let (sign, word, style) = decided(said, theme);
    let mut text = said.operation.map_or("unknown", Operation::name).to_owned();
    if let Some(session) = &said.session {
        let _ = write!(text, " {session}");
    }
    if let Some(token) = times.token {
        let _ = write!(text, " {token:#x}");
    }
    if let Some(rule) = &said.rule {
        let _ = write!(text, " by \"{rule}\"");
    }
    let _ = write!(text, ", {}", who(times));
    let front = vec![
        Span::styled(format!(" {sign} {} ", fit(word, 10)), style),
        Span::styled(
            format!("{}× ", fit_right(&number(times.count), 4)),
            theme.dim,
        ),
    ];
    (front, text)
}

fn explained(row: &Row<'_>, state: &State) -> Vec<String> {
    match row {
        Row::Rule((enforcer, generation, number), rule) => {
            let mut lines = Vec::new();
            let name = rule.name.as_deref();
            let written = state.policy.as_deref().and_then(|(source, _)| {
                source
                    .rules
                    .iter()
                    .find(|written| Some(&*written.name) == name)
            });
            match written {
                Some(written) => lines.extend(says(written)),
                None if *number == NO_RULE => lines.push("No rule decided these.".to_owned()),
                None => lines.push(
                    "What it asks for stands in the policy's file: start with --policy FILE."
                        .to_owned(),
                ),
            }
            lines.push(format!(
                "Generation {generation}, judged by {}.",
                enforcer.title()
            ));
            if rule.counts.allow.is_none() {
                lines.push(
                    "How often it allowed is unknown: only what is not a plain allow is told."
                        .to_owned(),
                );
            }
            lines
        }
        Row::Written(written) => {
            let mut lines = says(written);
            lines.push("Nothing was heard of it yet: how often it decided is unknown.".to_owned());
            lines
        }
        Row::Said(said, times) => verdict(said, times, state),
    }
}

/// What a rule of the policy's file says.
fn says(written: &Written) -> Vec<String> {
    let operations: Vec<&str> = written.operations.iter().map(|it| it.name()).collect();
    let mut lines = vec![format!(
        "Line {}, of {}: {}.",
        written.line,
        operations.join(", "),
        match &written.says {
            Says::Answer(answer) => format!("{answer:?}").to_lowercase(),
            Says::Quota {
                files,
                bytes,
                in_all,
            } => {
                let at_most = [
                    files.map(|files| format!("{files} files")),
                    bytes.map(crate::export::size),
                ];
                let at_most: Vec<String> = at_most.into_iter().flatten().collect();
                let of = if *in_all { "in all" } else { "a session" };
                format!("at most {} {of}", at_most.join(" and "))
            }
            Says::Tokens(session, tokens) => format!("session {session} has tokens {tokens:?}"),
            Says::Files(session, files) => format!("session {session} has at least {files} files"),
            Says::Gate(condition) => format!("the gate's condition {}", condition.name()),
        }
    )];
    let on_error = format!("{:?}", written.on_error).to_lowercase();
    lines.push(format!(
        "{}, with {}; where something is unknown: {on_error}.",
        match written.mode {
            Mode::Enforce => "It is enforced",
            Mode::Monitor => "It is not enforced: what it would refuse is told",
        },
        errno_name(i32::from(written.errno)),
    ));
    lines
}

/// A verdict in sentences.
fn verdict(said: &Said, times: &Times, state: &State) -> Vec<String> {
    let operation = said.operation.map_or("something unknown", Operation::name);
    let of = said.session.as_ref();
    let of = of.map_or_else(String::new, |session| format!(" in session {session}"));
    let token = times
        .token
        .map_or_else(String::new, |token| format!(", token {token:#x}"));
    let errno = said.errno.map_or_else(|| "no errno".to_owned(), errno_name);
    let mut lines = vec![format!("{} asked for {operation}{of}{token}.", who(times))];
    let rule = said.rule.as_ref().map(|rule| format!("Rule \"{rule}\""));
    lines.push(match (&said.differs, said.decision) {
        (Some(differs), _) => format!(
            "A request got through that is not the one that was judged; it differs in: {}.",
            differs.join(", ")
        ),
        (None, Decision::Deny) => format!(
            "{} refused it with {errno}.",
            rule.unwrap_or_else(|| "The policy".to_owned())
        ),
        (None, Decision::WouldDeny) => format!(
            "{} would have refused it with {errno}; it is not enforced, so it went on.",
            rule.unwrap_or_else(|| "The policy".to_owned())
        ),
        (None, Decision::Allow) => format!(
            "{} let it go on.",
            rule.unwrap_or_else(|| "The policy".to_owned())
        ),
    });
    if said.unsure {
        lines.push("What the rule asks for was unknown, so its on_error decided.".to_owned());
    }
    let since = state.now_ns.and_then(|now| now.checked_sub(times.last_ns));
    let last = since.map_or_else(String::new, |ns| {
        format!(", the last time {} ago", super::clock(ns))
    });
    lines.push(format!(
        "So often: {}{last}. Judged by {}.",
        number(times.count),
        said.enforcer.title()
    ));
    let written = state.policy.as_deref().and_then(|(source, _)| {
        source
            .rules
            .iter()
            .find(|written| Some(&written.name) == said.rule.as_ref())
    });
    lines.extend(written.into_iter().flat_map(says));
    lines
}
