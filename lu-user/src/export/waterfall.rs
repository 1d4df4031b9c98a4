//! The update as a waterfall in text.

use std::fmt::Write as _;

use lu_common::uapi::Interface;

use super::{duration, errno_name, size};
use crate::timeline::clock::Clock;
use crate::timeline::{BlackoutStart, FileOutcome, Outcome, Phase, Update};

/// The most files that are listed one by one.
const LISTED: usize = 40;

/// The least width of the bars, in columns.
const NARROW: usize = 16;

/// Columns in front of the bars: name, start, time.
const FRONT: usize = 38;

/// Draws `update` for a terminal of `columns`.
#[must_use]
pub fn waterfall(update: &Update, columns: usize) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "update {} · {} · {} · {}",
        update.number,
        update.interface.map_or("unknown", Interface::name),
        if update.emulated {
            "emulated"
        } else {
            "kernel"
        },
        update.outcome.name(),
    );
    let lossy = update.events.lost > 0;
    if update.kernels.len() > 1 {
        let _ = writeln!(text, "kernel {}", update.kernels.join(" → "));
    }
    match update.blackout() {
        Some(blackout) => {
            let _ = writeln!(
                text,
                "blackout {}{:.3} ms ± {} ({}), from the {} to the last restore",
                if lossy { "≥ " } else { "" },
                blackout.ns as f64 / 1e6,
                blackout
                    .uncertainty_ns
                    .map_or_else(|| "unknown".to_owned(), duration),
                match blackout.clock {
                    Clock::Monotonic => "CLOCK_MONOTONIC",
                    Clock::Counter => "the CPU's counter",
                    Clock::Realtime => "CLOCK_REALTIME",
                },
                blackout.from.name(),
            );
        }
        None if update.outcome == Outcome::InProgress => {
            text.push_str("blackout not over, or not begun: files are still to be restored\n");
        }
        None => {
            let _ = writeln!(
                text,
                "blackout unknown: the {} and the last restore were not both seen",
                match update.interface {
                    Some(Interface::Sessions) => BlackoutStart::Reboot,
                    _ => BlackoutStart::Freeze,
                }
                .name()
            );
        }
    }
    text.push('\n');
    phases(&mut text, update, columns.saturating_sub(FRONT).max(NARROW));
    files(&mut text, update);
    if !update.errors.is_empty() {
        text.push_str("\nrefused or failed\n");
        for ((operation, errno), count) in &update.errors {
            let _ = writeln!(text, "  {operation} {} × {count}", errno_name(*errno));
        }
    }
    let _ = writeln!(
        text,
        "\n{} events seen, {} lost{}",
        update.events.seen,
        update.events.lost,
        if lossy {
            ": what is above may be incomplete"
        } else {
            ""
        },
    );
    text
}

fn phases(text: &mut String, update: &Update, width: usize) {
    let phases = update.phases();
    let begin = phases.iter().filter_map(|phase| phase.start_ns).min();
    let end = phases
        .iter()
        .filter_map(|phase| Some(phase.start_ns? + phase.ns?))
        .max();
    let (Some(begin), Some(end)) = (begin, end) else {
        text.push_str("no phase was seen\n");
        return;
    };
    let whole = (end - begin).max(1);
    let _ = writeln!(
        text,
        "{:<10}{:>13}{:>13}  {:<w$}{:>8}",
        "phase",
        "start",
        "time",
        "0",
        duration(whole),
        w = width.saturating_sub(8),
    );
    for Phase { name, start_ns, ns } in phases {
        let start = start_ns.map(|start| start - begin);
        let shown = |ns: Option<u64>| ns.map_or_else(|| "unknown".to_owned(), duration);
        let _ = write!(
            text,
            "{:<10}{:>13}{:>13}  ",
            name.name(),
            start.map_or_else(
                || "unknown".to_owned(),
                |start| format!("+{}", duration(start))
            ),
            shown(ns),
        );
        if let (Some(start), Some(ns)) = (start, ns) {
            let column = |ns: u64| (u128::from(ns) * width as u128 / u128::from(whole)) as usize;
            let from = column(start).min(width - 1);
            let to = column(start + ns).clamp(from + 1, width);
            text.push_str(&" ".repeat(from));
            text.push_str(&"█".repeat(to - from));
        } else {
            text.push('?');
        }
        text.push('\n');
    }
}

fn files(text: &mut String, update: &Update) {
    if update.files().next().is_none() {
        text.push_str("\nno files\n");
        return;
    }
    let shown = |ns: Option<u64>| ns.map_or_else(|| "unknown".to_owned(), duration);
    let mut room = LISTED;
    for session in update.sessions.values() {
        text.push('\n');
        if let Some(name) = &session.name {
            let _ = writeln!(
                text,
                "session {name} · {} · {} {}",
                session.outcome.name(),
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
        for (token, file) in session.files.iter().take(room) {
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
                format!("{token:#x}"),
                file.kind
                    .map_or("unknown", lu_common::event::FileKind::name),
                file.bytes.map_or_else(|| "unknown".to_owned(), size),
                shown(file.preserve_ns),
                span(file.freeze_ns, beyond),
                span(file.restore_ns, file.outcome == FileOutcome::Restored),
                file.outcome.name(),
            );
        }
        room = room.saturating_sub(session.files.len());
    }
    let all = update.files().count();
    if all > LISTED {
        let _ = writeln!(text, "… and {} more files; --json lists all", all - LISTED);
    }
}
