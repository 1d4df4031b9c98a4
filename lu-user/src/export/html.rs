//! The report as one page of HTML that needs nothing else: no script, no picture, no font from elsewhere.
//!
//! Whatever a client chose (names of sessions and of processes) goes through [`maud`], which escapes all text.

use std::cmp::Reverse;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::report::{BlackoutJson, FileJson, PhaseJson, Report, SessionJson, SpanJson};
use super::verdict::untold;
use super::{AttentionKind, began, duration, size};
use crate::timeline::{FileOutcome, Outcome, PartName, PhaseName};

/// The most files, and the most sessions, that are listed one by one.
const LISTED: usize = 50;

/// The drawing's width, and where its bars begin and end, in its own units.
const WIDTH: f64 = 1000.0;
const LEFT: f64 = 140.0;
const RIGHT: f64 = 905.0;
/// The height of a row, and of what is above and below all rows.
const ROW: f64 = 22.0;
const HEAD: f64 = 26.0;
const FOOT: f64 = 22.0;

/// The report as a page.
#[must_use]
pub fn html(report: &Report) -> String {
    let title = format!("Live update {}", report.update);
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) " · " (report.outcome.name()) }
                style { (PreEscaped(include_str!("html.css"))) }
            }
            body {
                (head(report, &title))
                (facts(report))
                (attention(report))
                (update_drawing(report))
                (blackout_drawing(report))
                (files(report))
                (sessions(report))
                (errors(report))
                (verdicts(report))
                (clocks(report))
                footer {
                    (events(report)) " Schema " code { (report.schema) } "."
                }
            }
        }
    }
    .into_string()
}

fn head(report: &Report, title: &str) -> Markup {
    let mood = match report.outcome {
        Outcome::Finished => "good",
        Outcome::InProgress | Outcome::Cancelled => "warn",
        Outcome::Aborted | Outcome::Incomplete => "bad",
    };
    html! {
        h1 { (title) span class={ "badge " (mood) } { (report.outcome.name()) } }
        p class="soft" {
            "Interface " (report.interface) ", "
            @if report.orchestrator == "emulated" { "emulated orchestrator" } @else { "the kernel's orchestrator" }
            @if let Some(began) = began(report) { ", began " (began) }
        }
        @for (index, release) in report.kernels.iter().enumerate() {
            p class="soft" {
                @if report.kernels.len() == 1 { "On Linux " } @else if index == 0 { "From Linux " } @else { "to Linux " }
                (release)
                @if let Some(boot_id) = report.boot_ids.get(index) { ", boot " code { (boot_id) } }
            }
        }
    }
}

/// The numbers that everybody looks for first.
fn facts(report: &Report) -> Markup {
    let lossy = if report.events.lost > 0 { "≥ " } else { "" };
    let all = || report.sessions.iter().filter(|session| !session.is_own());
    let restored = all()
        .flat_map(|session| &session.files)
        .filter(|file| file.outcome == FileOutcome::Restored)
        .count();
    let of = all().map(|session| session.files.len()).sum::<usize>();
    html! {
        div class="facts" {
            div class="fact dark" {
                @if let Some(blackout) = &report.blackout {
                    b { (lossy) (duration(blackout.ns)) }
                    span {
                        "blackout ± " (blackout.uncertainty_ns.map_or_else(|| "unknown".to_owned(), duration))
                        " by " (blackout.clock.title())
                        ", from the " (blackout.from.name()) " to the last restore"
                    }
                } @else {
                    b { "unknown" }
                    span { "blackout: " (why_unknown(report)) }
                }
            }
            div class="fact" {
                b { (shown(report.whole.map(|whole| whole.ns))) }
                span { "the whole update, from the first preserve to the last FINISH" }
            }
            div class="fact" {
                b { (restored) " of " (of) }
                span {
                    @if of == 1 { "file restored" } @else { "files restored" }
                    // v3 has none.
                    @if all().all(|session| session.name.is_some()) {
                        ", in " (count(all().count(), "session", "sessions"))
                    }
                }
            }
        }
    }
}

fn why_unknown(report: &Report) -> &'static str {
    match report.outcome {
        Outcome::InProgress => "not over, or not begun",
        Outcome::Cancelled | Outcome::Aborted => "the update did not come to its end",
        _ => "its beginning and the last restore were not both seen",
    }
}

fn attention(report: &Report) -> Markup {
    html! {
        @if !report.attention.is_empty() {
            h2 { "Needs attention" }
            ul class="attention" {
                @for one in &report.attention {
                    li class=[(one.kind <= AttentionKind::Unretrieved).then_some("serious")] {
                        b { (one.kind.name()) } (one.text)
                    }
                }
                @if report.attention_left_out > 0 { li { "… and " (report.attention_left_out) " more" } }
            }
        }
    }
}

/// One row of a drawing.
struct Row<'a> {
    name: &'a str,
    class: &'static str,
    start_ns: Option<u64>,
    ns: Option<u64>,
}

impl<'a> Row<'a> {
    fn of(phase: &'a PhaseJson) -> Self {
        Self {
            name: phase.name.name(),
            class: class(phase.name, None),
            start_ns: phase.start_ns,
            ns: phase.ns,
        }
    }
}

/// Whose time it is.
const fn class(phase: PhaseName, part: Option<PartName>) -> &'static str {
    match (phase, part) {
        (_, Some(PartName::Jump)) => "unseen",
        (
            PhaseName::WaitPrepare
            | PhaseName::WaitReboot
            | PhaseName::Userspace
            | PhaseName::WaitFinish,
            _,
        ) => "user",
        _ => "kernel",
    }
}

fn update_drawing(report: &Report) -> Markup {
    let rows: Vec<Row> = report.phases.iter().map(Row::of).collect();
    let shade = report.blackout.as_ref().and_then(BlackoutJson::span);
    html! {
        @if let (Some(begin), Some(end)) = (report.begin_ns(), report.end_ns()) {
            h2 { "The update, over both kernels" }
            (draw(report, &rows, (begin, end), shade))
            p class="soft" {
                "Blue is the kernel's work, grey is user space's"
                @if shade.is_some() { "; the shaded part is the blackout" }
                @if report.phases.iter().any(|phase| !phase.known) {
                    "; what is unknown was not seen, and has no bar"
                }
                "."
            }
        } @else {
            p class="soft" { "No phase was seen." }
        }
    }
}

/// Where the time went: on its axis, and by length.
fn blackout_drawing(report: &Report) -> Markup {
    let Some(blackout) = &report.blackout else {
        return html! {};
    };
    let mut parts: Vec<_> = blackout.parts.iter().collect();
    parts.sort_by_key(|part| (part.phase, part.part));
    let rows: Vec<Row> = parts
        .iter()
        .map(|part| Row {
            name: part.name(),
            class: class(part.phase, part.part),
            start_ns: part.start_ns,
            ns: part.ns,
        })
        .collect();
    let longest = blackout.parts.iter().filter_map(|part| part.ns).max();
    html! {
        h2 { "The blackout" }
        @if let Some(span) = blackout.span() {
            (draw(report, &rows, (span.start_ns, span.start_ns.saturating_add(span.ns)), None))
        }
        @if let Some(unseen) = report.unseen {
            p class="soft" {
                "Hatched: from the old kernel's last sign to the new one's first " (duration(unseen.ns))
                " pass in which nothing can be seen. The jump lies within."
            }
        }
        h2 { "Where the blackout went" }
        table {
            tbody {
                @for part in &blackout.parts {
                    tr {
                        td { (part.name()) @if part.part.is_some() { span class="soft" { " in " (part.phase.name()) } } }
                        td class="n" { (shown(part.ns)) }
                        td class="n" { @if let Some(percent) = part.percent { (super::percent(percent)) } }
                        td class="wide" {
                            @let whose = if class(part.phase, part.part) == "user" { "user" } else { "kernel" };
                            (bar(part.ns, longest, whose))
                        }
                    }
                }
            }
        }
    }
}

/// Bars on one axis of nanoseconds, over the kernels that ran meanwhile.
fn draw(
    report: &Report,
    rows: &[Row],
    (begin, end): (u64, u64),
    shade: Option<SpanJson>,
) -> Markup {
    let whole = end.saturating_sub(begin).max(1);
    let x = |at: u64| {
        let part = at.saturating_sub(begin).min(whole) as f64 / whole as f64;
        LEFT + part * (RIGHT - LEFT)
    };
    let bottom = HEAD + rows.len() as f64 * ROW;
    let height = bottom + FOOT;
    let place = |value: f64| format!("{value:.2}");
    html! {
        svg viewBox={ "0 0 " (WIDTH) " " (height) } role="img" aria-label="waterfall of the phases" {
            defs {
                pattern id="unseen" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)" {
                    line class="hatch" x1="0" y1="0" x2="0" y2="6" {}
                }
            }
            @let kernels = kernels(report, begin, end);
            @for (index, (from, to, name)) in kernels.iter().enumerate() {
                @let (left, right) = (x(*from), x(*to));
                rect class="band" x=(place(left)) y="2" width=(place(right - left))
                    height=(place(bottom - 2.0)) rx="3" {}
                // Between the kernels there is room for the first one's name.
                @let until = kernels.get(index + 1).map_or(right, |next| x(next.0));
                @if until - left > 115.0 {
                    text class="small" x=(place(left + 7.0)) y="17" { (name) }
                }
            }
            @if let Some(shade) = shade {
                @let (from, to) = (x(shade.start_ns), x(shade.start_ns.saturating_add(shade.ns)));
                rect class="shade" x=(place(from)) y="2" width=(place(to - from)) height=(place(bottom - 2.0)) {}
                @for edge in [from, to] {
                    line class="edge" x1=(place(edge)) x2=(place(edge)) y1=(place(HEAD)) y2=(place(bottom)) {}
                }
            }
            @for tick in ticks(whole) {
                @let at = place(x(begin.saturating_add(tick)));
                line class="grid" x1=(at) x2=(at) y1=(place(HEAD)) y2=(place(bottom)) {}
                text class="small" x=(at) y=(place(bottom + 15.0)) text-anchor="middle" {
                    @if tick == 0 { "0" } @else { (duration(tick)) }
                }
            }
            @for (index, row) in rows.iter().enumerate() {
                @let top = HEAD + index as f64 * ROW;
                @let base = place(top + 15.0);
                text x=(place(LEFT - 10.0)) y=(base) text-anchor="end" { (row.name) }
                text class="time" x=(place(WIDTH - 4.0)) y=(base) text-anchor="end" { (shown(row.ns)) }
                @if let (Some(start), Some(ns)) = (row.start_ns, row.ns) {
                    @let (from, to) = (x(start), x(start.saturating_add(ns)));
                    // What is too short to be seen gets a line.
                    rect class=(row.class) x=(place(from.min(RIGHT - 1.5))) y=(place(top + 4.0))
                        width=(place((to - from).max(1.5))) height=(place(ROW - 8.0)) rx="1.5" {
                        title { (row.name) ": " (duration(ns)) ", from +" (duration(start.saturating_sub(begin))) }
                    }
                }
            }
        }
    }
}

/// Which kernel ran from when to when.
fn kernels(report: &Report, begin: u64, end: u64) -> Vec<(u64, u64, String)> {
    let is_emulated = report.orchestrator == "emulated";
    let name = |which: &str, index: usize| match report.kernels.get(index) {
        _ if is_emulated => format!("{which} kernel, emulated"),
        Some(release) => format!("{which} kernel, {release}"),
        None => format!("{which} kernel"),
    };
    match report.jump() {
        Some(jump) => {
            let up = jump.start_ns.saturating_add(jump.ns);
            vec![
                (begin, jump.start_ns.clamp(begin, end), name("old", 0)),
                (up.clamp(begin, end), end, name("new", 1)),
            ]
        }
        None => vec![(begin, end, name("the", 0))],
    }
}

/// Round distances from the beginning, at most eight or so.
fn ticks(whole: u64) -> Vec<u64> {
    let about = (whole / 6).max(1);
    let power = 10_u64.pow(about.ilog10());
    let step = [1, 2, 5, 10]
        .into_iter()
        .map(|times| power.saturating_mul(times))
        .find(|step| *step >= about)
        .unwrap_or(about);
    (0..=whole / step).map(|index| index * step).collect()
}

/// The slowest one by one, the rest in a sum.
fn files(report: &Report) -> Markup {
    let mut all: Vec<(&SessionJson, &FileJson)> = report
        .sessions
        .iter()
        .flat_map(|session| session.files.iter().map(move |file| (session, file)))
        .collect();
    if all.is_empty() {
        return html! { h2 { "Files" } p class="soft" { "None was seen." } };
    }
    all.sort_by_key(|(_, file)| Reverse(file.whole_ns()));
    let (listed, rest) = all.split_at(all.len().min(LISTED));
    let ns = |file: &FileJson, step: usize| file.steps()[step].2;
    let longest = |step| all.iter().filter_map(|(_, file)| ns(file, step)).max();
    // A step that no file has, as v3's prepare in sessions, gets no column.
    let steps: Vec<(usize, u64)> = (0..4)
        .filter_map(|step| Some((step, longest(step)?)))
        .collect();
    let named = report.sessions.iter().any(|session| session.name.is_some());
    html! {
        h2 { "Files" }
        div class="scroll" {
            table {
                thead {
                    tr {
                        @if named { th { "session" } }
                        th { "token" } th { "kind" } th class="n" { "size" }
                        @for (step, _) in &steps { th class="n" { (listed[0].1.steps()[*step].0) } }
                        th { "outcome" }
                    }
                }
                tbody {
                    @for (session, file) in listed {
                        tr {
                            @if named { td class=[session.is_own().then_some("soft")] { (session.name.as_deref().unwrap_or_default()) } }
                            td { code { (format!("{:#x}", file.token)) } }
                            td { (file.kind.as_deref().unwrap_or("unknown")) }
                            td class="n" { (file.bytes.map_or_else(|| "unknown".to_owned(), size)) }
                            @for (step, longest) in &steps {
                                td class="n" {
                                    @match ns(file, *step) {
                                        Some(ns) => { (duration(ns)) (bar(Some(ns), Some(*longest), "")) }
                                        None => { span class="soft" { "–" } }
                                    }
                                }
                            }
                            td { (file.outcome.name()) }
                        }
                    }
                    @if !rest.is_empty() {
                        tr {
                            @if named { td {} }
                            td colspan="2" { "and " (count(rest.len(), "file more", "files more")) }
                            td class="n" { (size(sum(rest.iter().map(|(_, file)| file.bytes)))) }
                            @for (step, _) in &steps {
                                td class="n" { (duration(sum(rest.iter().map(|(_, file)| ns(file, *step))))) }
                            }
                            td class="soft" { "in all" }
                        }
                    }
                }
            }
        }
        p class="soft" {
            @if rest.is_empty() { "The slowest first." } @else { "The slowest first, the rest in a sum." }
            " A dash: it did not take place, or was not seen."
        }
    }
}

fn sessions(report: &Report) -> Markup {
    let all: Vec<&SessionJson> = report
        .sessions
        .iter()
        .filter(|session| session.name.is_some())
        .collect();
    let rest = all.len().saturating_sub(LISTED) as u64 + report.forgotten_sessions;
    html! {
        @if !all.is_empty() {
            h2 { "Sessions" }
            div class="scroll" {
                table {
                    thead {
                        tr {
                            th { "session" } th class="n" { "files" } th class="n" { "freeze" }
                            th class="n" { "retrieve" } th class="n" { "finish" } th { "outcome" }
                        }
                    }
                    tbody {
                        @for session in all.iter().take(LISTED) {
                            tr {
                                td { (session.name.as_deref().unwrap_or_default()) }
                                td class="n" { (session.files.len()) }
                                @for ns in [session.freeze_ns, session.retrieve_ns, session.finish_ns] {
                                    td class="n" { (ns.map_or_else(|| "–".to_owned(), duration)) }
                                }
                                td {
                                    @if let Some(outcome) = session.outcome { (outcome.name()) }
                                    @if let Some(by) = &session.closed_by {
                                        span class="soft" { " by " (by.comm) " (pid " (by.pid) ")" }
                                    }
                                }
                            }
                        }
                    }
                }
            }
            @if rest > 0 { p class="soft" { "And " (rest) " more." } }
        }
    }
}

fn errors(report: &Report) -> Markup {
    html! {
        @if !report.errors.is_empty() {
            h2 { "Refused or failed" }
            table {
                thead { tr { th { "operation" } th { "errno" } th class="n" { "times" } } }
                tbody {
                    @for error in &report.errors {
                        tr { td { (error.operation) } td { (error.errno) } td class="n" { (error.count) } }
                    }
                }
            }
        }
    }
}

/// How far the numbers across the kexec can be trusted.
/// What the policy said, and who asked it.
fn verdicts(report: &Report) -> Markup {
    let shown = || report.verdicts.iter().take(LISTED);
    let rest = report.verdicts.iter().skip(LISTED);
    let left_out = rest.map(|verdict| verdict.count).sum::<u64>() + report.verdicts_left_out;
    html! {
        @if let Some(untold) = untold(report.verdicts_lost, report.unjudged) { p { (untold) } }
        @if !report.verdicts.is_empty() {
            h2 { "What the policy said" }
            table {
                thead { tr {
                    th { "verdict" } th { "request" } th { "rule" } th { "errno" } th { "session" }
                    th class="n" { "times" } th { "asked by" }
                } }
                tbody {
                    @for verdict in shown() {
                        tr {
                            td { (verdict.word()) }
                            td { (verdict.operation) }
                            td { (verdict.rule.as_deref().unwrap_or("none")) }
                            td { (verdict.errno.as_deref().unwrap_or("–")) }
                            td { (verdict.session.as_deref().unwrap_or("–")) }
                            td class="n" { (verdict.count) }
                            td { (verdict.enforced_by.title()) }
                        }
                    }
                }
            }
            @if left_out > 0 { p class="soft" { "… and " (left_out) " more" } }
        }
    }
}

fn clocks(report: &Report) -> Markup {
    let Some(crossing) = &report.crossing else {
        return html! {};
    };
    let megahertz = |hz: Option<f64>| {
        hz.map_or_else(|| "unknown".to_owned(), |hz| format!("{:.6} MHz", hz / 1e6))
    };
    let difference = crossing
        .realtime_gap_ns
        .saturating_sub_unsigned(crossing.gap_ns);
    let sign = if difference < 0 { "−" } else { "+" };
    html! {
        h2 { "Clocks" }
        table {
            tbody {
                tr { td { "Across the kexec time is told by" } td { (crossing.clock.title()) } }
                tr { td { "which may be off by" } td { (shown(crossing.uncertainty_ns)) } }
                tr { td { "From the old kernel's last reading to the new one's first" } td { (duration(crossing.gap_ns)) } }
                tr {
                    td { "The same by CLOCK_REALTIME, which comes back from the RTC" }
                    td { (sign) (duration(difference.unsigned_abs())) }
                }
                tr { td { "The counter's frequency by the old kernel" } td { (megahertz(crossing.old_hz)) } }
                tr { td { "and by the new one" } td { (megahertz(crossing.new_hz)) } }
            }
        }
    }
}

fn events(report: &Report) -> Markup {
    html! {
        "From " (report.events.seen) " events"
        @if report.events.lost > 0 {
            "; " strong class="bad" { (report.events.lost) " were lost, so what is above may be incomplete." }
        } @else {
            ", none of them lost."
        }
    }
}

/// A bar in a table.
fn bar(ns: Option<u64>, longest: Option<u64>, class: &str) -> Markup {
    let percent = ns
        .zip(longest)
        .map(|(ns, longest)| 100.0 * ns as f64 / longest.max(1) as f64);
    html! {
        @if let Some(percent) = percent {
            span class={ "bar " (class) } style=(format!("width:{percent:.1}%")) {}
        }
    }
}

fn shown(ns: Option<u64>) -> String {
    ns.map_or_else(|| "unknown".to_owned(), duration)
}

fn count(count: usize, one: &str, more: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { more })
}

fn sum(all: impl Iterator<Item = Option<u64>>) -> u64 {
    all.flatten().fold(0, u64::saturating_add)
}
