//! The update as a waterfall in text.

use std::fmt::Write as _;

use super::report::Report;
use super::verdict::untold;
use super::{began, duration, percent, size};
use crate::timeline::{BlackoutStart, FileOutcome, Outcome};

/// The most files that are listed one by one.
const LISTED: usize = 40;

/// The least width of the bars, in columns.
const NARROW: usize = 16;

/// Columns of a name: that of a part stands two further to the right.
const NAME: usize = 18;

/// Columns in front of the bars: name, start, time.
const FRONT: usize = NAME + 28;

/// Draws a report for a terminal of `columns`.
#[must_use]
pub fn waterfall(report: &Report, columns: usize) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "update {} · {} · {} · {}",
        report.update,
        report.interface,
        report.orchestrator,
        report.outcome.name(),
    );
    let lossy = report.events.lost > 0;
    if report.kernels.len() > 1 {
        let _ = writeln!(text, "kernel {}", report.kernels.join(" → "));
    }
    if let Some(handover) = &report.handover {
        let shown = |count: Option<u64>| {
            count.map_or_else(|| "of unknown number".to_owned(), |count| count.to_string())
        };
        let _ = writeln!(
            text,
            "kexec {}, live update {} since power-on",
            shown(handover.kexecs.map(u64::from)),
            shown(handover.liveupdate_number),
        );
    }
    if let Some(began) = began(report) {
        let _ = writeln!(text, "began {began}");
    }
    match &report.blackout {
        Some(blackout) => {
            let _ = writeln!(
                text,
                "blackout {}{:.3} ms ± {} ({}), from the {} to the last restore",
                if lossy { "≥ " } else { "" },
                blackout.ns as f64 / 1e6,
                blackout
                    .uncertainty_ns
                    .map_or_else(|| "unknown".to_owned(), duration),
                blackout.clock.title(),
                blackout.from.name(),
            );
        }
        None if report.outcome == Outcome::InProgress => {
            text.push_str("blackout not over, or not begun: files are still to be restored\n");
        }
        None => {
            let _ = writeln!(
                text,
                "blackout unknown: the {} and the last restore were not both seen",
                match &*report.interface {
                    "sessions" => BlackoutStart::Reboot,
                    _ => BlackoutStart::Freeze,
                }
                .name()
            );
        }
    }
    attention(&mut text, report);
    text.push('\n');
    phases(&mut text, report, columns.saturating_sub(FRONT).max(NARROW));
    blackout(&mut text, report);
    files(&mut text, report);
    if !report.errors.is_empty() {
        text.push_str("\nrefused or failed\n");
        for error in &report.errors {
            let _ = writeln!(
                text,
                "  {} {} × {}",
                error.operation, error.errno, error.count
            );
        }
    }
    verdicts(&mut text, report);
    let _ = writeln!(
        text,
        "\n{} events seen, {} lost{}",
        report.events.seen,
        report.events.lost,
        if lossy {
            ": what is above may be incomplete"
        } else {
            ""
        },
    );
    text
}

fn phases(text: &mut String, report: &Report, width: usize) {
    let phases = &report.phases;
    let begin = phases.iter().filter_map(|phase| phase.start_ns).min();
    let end = phases
        .iter()
        .filter_map(|phase| Some(phase.start_ns?.saturating_add(phase.ns?)))
        .max();
    let (Some(begin), Some(end)) = (begin, end) else {
        text.push_str("no phase was seen\n");
        return;
    };
    let whole = (end - begin).max(1);
    let _ = writeln!(
        text,
        "{:<NAME$}{:>13}{:>13}  {:<w$}{:>8}",
        "phase",
        "start",
        "time",
        "0",
        duration(whole),
        w = width.saturating_sub(8),
    );
    let mut row = |name: &str, start_ns: Option<u64>, ns: Option<u64>, bar: &str| {
        // A part whose phase is unknown may begin before what is drawn.
        let start = start_ns.and_then(|start| start.checked_sub(begin));
        let _ = write!(
            text,
            "{name:<NAME$}{:>13}{:>13}  ",
            start.map_or_else(unknown, |start| format!("+{}", duration(start))),
            ns.map_or_else(unknown, duration),
        );
        if let (Some(start), Some(ns)) = (start, ns) {
            let column = |ns: u64| (u128::from(ns) * width as u128 / u128::from(whole)) as usize;
            let from = column(start).min(width - 1);
            let to = column(start.saturating_add(ns)).clamp(from + 1, width);
            text.push_str(&" ".repeat(from));
            text.push_str(&bar.repeat(to - from));
        } else {
            text.push('?');
        }
        text.push('\n');
    };
    for phase in phases {
        row(phase.name.name(), phase.start_ns, phase.ns, "█");
        for part in &phase.parts {
            row(
                &format!("  {}", part.name.name()),
                part.start_ns,
                part.ns,
                "▒",
            );
        }
    }
    if let Some(whole) = report.whole {
        let _ = writeln!(
            text,
            "{:<NAME$}{:>13}{:>13}",
            "whole",
            "",
            duration(whole.ns)
        );
    }
}

fn attention(text: &mut String, report: &Report) {
    if report.attention.is_empty() {
        return;
    }
    text.push_str("\nneeds attention\n");
    for one in &report.attention {
        let _ = writeln!(text, "  {:<16}{}", one.kind.name(), one.text);
    }
    if report.attention_left_out > 0 {
        let _ = writeln!(text, "  … and {} more", report.attention_left_out);
    }
}

/// Where the time went, the longest first.
fn blackout(text: &mut String, report: &Report) {
    let Some(blackout) = &report.blackout else {
        return;
    };
    text.push_str("\nwhere the blackout went\n");
    for part in &blackout.parts {
        let _ = writeln!(
            text,
            "  {:<NAME$}{:>13}{:>9}",
            part.name(),
            part.ns.map_or_else(unknown, duration),
            part.percent.map_or_else(String::new, percent),
        );
    }
    if let Some(unseen) = report.unseen {
        let _ = writeln!(
            text,
            "  of which {} pass unseen, from the old kernel's last sign to the new one's first: the jump is in \
             there",
            duration(unseen.ns)
        );
    }
}

fn verdicts(text: &mut String, report: &Report) {
    if let Some(untold) = untold(report.verdicts_lost, report.unjudged) {
        let _ = writeln!(text, "\n{untold}");
    }
    let Some(first) = report.verdicts.first() else {
        return;
    };
    let one = report
        .verdicts
        .iter()
        .all(|verdict| verdict.enforced_by == first.enforced_by);
    let enforcer = if one {
        format!(", enforced by {}", first.enforced_by.title())
    } else {
        String::new()
    };
    let _ = writeln!(text, "\nwhat the policy said{enforcer}");
    for verdict in report.verdicts.iter().take(LISTED) {
        let _ = write!(
            text,
            "  {:<11}{:<11}{}{}{} × {}",
            verdict.word(),
            verdict.operation,
            verdict
                .rule
                .as_ref()
                .map_or_else(|| "no rule".to_owned(), |rule| format!("\"{rule}\"")),
            verdict
                .errno
                .as_ref()
                .map_or_else(String::new, |errno| format!(" {errno}")),
            verdict
                .session
                .as_ref()
                .map_or_else(String::new, |name| format!(", session {name}")),
            verdict.count,
        );
        if !one {
            let _ = write!(text, "; {}", verdict.enforced_by.title());
        }
        text.push('\n');
    }
    let rest = report.verdicts.iter().skip(LISTED);
    let left_out = rest.map(|verdict| verdict.count).sum::<u64>() + report.verdicts_left_out;
    if left_out > 0 {
        let _ = writeln!(text, "  … and {left_out} more");
    }
}

fn unknown() -> String {
    "unknown".to_owned()
}

fn files(text: &mut String, report: &Report) {
    let all: usize = report
        .sessions
        .iter()
        .map(|session| session.files.len())
        .sum();
    if all == 0 {
        text.push_str("\nno files\n");
        return;
    }
    let shown = |ns: Option<u64>| ns.map_or_else(unknown, duration);
    let mut room = LISTED;
    for session in &report.sessions {
        text.push('\n');
        if let (Some(name), Some(outcome)) = (&session.name, session.outcome) {
            let _ = writeln!(
                text,
                "session {name} · {} · {} {}",
                outcome.name(),
                session.files.len(),
                if session.files.len() == 1 {
                    "file"
                } else {
                    "files"
                }
            );
        }
        if session.files.is_empty() || room == 0 {
            continue;
        }
        let _ = writeln!(
            text,
            "{:<20}{:<9}{:>10}{:>11}{:>11}{:>11}  outcome",
            "token", "kind", "size", "preserve", "freeze", "restore"
        );
        for file in session.files.iter().take(room) {
            // What did not take place is not unknown.
            let span = |ns: Option<u64>, expected: bool| {
                if ns.is_none() && !expected {
                    "–".to_owned()
                } else {
                    shown(ns)
                }
            };
            let beyond = matches!(
                file.outcome,
                FileOutcome::Frozen | FileOutcome::Restored | FileOutcome::Unclaimed
            );
            let _ = writeln!(
                text,
                "{:<20}{:<9}{:>10}{:>11}{:>11}{:>11}  {}",
                format!("{:#x}", file.token),
                file.kind.as_deref().unwrap_or("unknown"),
                file.bytes.map_or_else(unknown, size),
                shown(file.preserve_ns),
                span(file.freeze_ns, beyond),
                span(file.restore_ns, file.outcome == FileOutcome::Restored),
                file.outcome.name(),
            );
        }
        room = room.saturating_sub(session.files.len());
    }
    if all > LISTED {
        let _ = writeln!(text, "… and {} more files; --json lists all", all - LISTED);
    }
}
