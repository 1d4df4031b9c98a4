//! Sessions and files as a table, and one of them more closely.

use std::fmt::Write as _;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};

use lu_common::event::FileKind;

use super::{body_of, fit, fit_right, heading, many, number, put, put_row, time};
use crate::export::{errno_name, size};
use crate::timeline::{
    FileOutcome, FileSpan, Session, SessionOutcome, Sight, Span as Stretch, Update,
};
use crate::top::State;
use crate::top::rows::{Column, Row, Shape, Sort};
use crate::top::theme::Theme;
use crate::top::view::View;

/// From this many columns on the details stand beside the table.
const WIDE: u16 = 100;

/// Columns of the details there.
const BESIDE: u16 = 44;

/// Lines of the details below the table, at most.
const BELOW: u16 = 14;

/// The table, and the details where they are shown.
fn split(view: &View, body: Rect) -> (Rect, Option<Rect>) {
    if !view.details {
        return (body, None);
    }
    if body.width >= WIDE {
        let left = Rect {
            width: body.width - BESIDE,
            ..body
        };
        let right = Rect {
            x: body.x + left.width,
            width: BESIDE,
            ..body
        };
        return (left, Some(right));
    }
    let lines = BELOW.min(body.height * 3 / 5);
    let above = Rect {
        height: body.height - lines,
        ..body
    };
    let below = Rect {
        y: body.y + above.height,
        height: lines,
        ..body
    };
    (above, Some(below))
}

/// How many rows are shown at once.
pub fn page(view: &View, state: &State) -> usize {
    let (table, _) = split(view, body_of(state, view));
    usize::from(table.height.saturating_sub(2))
}

/// Draws it.
pub fn draw(state: &State, view: &View, theme: &Theme, area: Rect, buffer: &mut Buffer) {
    let (table, details) = split(view, area);
    let wide = table.width - u16::from(table.width < area.width);
    put(buffer, table, 0, heading(&title(view), theme, wide));
    let Some(update) = view.shown_update(state) else {
        let nothing = " Nothing is preserved.";
        put(buffer, table, 2, Line::styled(nothing, theme.dim));
        return;
    };
    let columns = columns(view, table.width);
    put(buffer, table, 1, head(&columns, view.wanted.sort, theme));
    let cursor = view.cursor();
    let page = usize::from(table.height.saturating_sub(2));
    if view.rows.all.is_empty() {
        let nothing = if view.filter().is_empty() {
            " No session, and no file."
        } else {
            " Nothing meets the filter."
        };
        put(buffer, table, 2, Line::styled(nothing, theme.dim));
    }
    let shown = view
        .rows
        .all
        .iter()
        .enumerate()
        .skip(cursor.offset)
        .take(page);
    for (at, row) in shown {
        let line = self::row(row, update, state, view, &columns, theme);
        let y = 2 + (at - cursor.offset) as u16;
        if at == cursor.selected {
            put_row(buffer, table, y, line, theme.selected);
        } else {
            put(buffer, table, y, line);
        }
    }
    if let Some(area) = details {
        let selected = view.rows.all.get(cursor.selected);
        let lines = selected.map_or_else(Vec::new, |row| self::details(row, update, state, theme));
        put(buffer, area, 0, heading("Details", theme, area.width));
        for (at, line) in lines.into_iter().enumerate() {
            put(buffer, area, at as u16 + 1, line);
        }
    }
}

fn title(view: &View) -> String {
    let rows = view.rows.all.len();
    let at = if rows == 0 {
        0
    } else {
        view.cursor().selected + 1
    };
    let what = match (view.wanted.shape, view.wanted.sort.column) {
        (Shape::Both, None) => "Sessions and files",
        (Shape::Sessions, _) => "Sessions",
        _ => "Files",
    };
    let mut title = format!("{what}, {} of {}", number(at as u64), number(rows as u64));
    if view.rows.hidden > 0 {
        let hidden = number(view.rows.hidden as u64);
        let _ = write!(title, ", {hidden} hidden by the filter");
    }
    if let Some(column) = view.wanted.sort.column {
        let _ = write!(title, ", by {}", column.title());
    }
    title
}

/// What a column takes.
const fn width(column: Column) -> usize {
    match column {
        Column::Session => 14,
        Column::Token => 18,
        Column::Kind => 12,
        Column::Size => 10,
        Column::State => 11,
        Column::Preserve | Column::Freeze | Column::Restore | Column::Age => 9,
        Column::Owner => 22,
        Column::Cgroup => 24,
    }
}

/// Which columns have room, from left to right, and how wide each is: those that matter most come first, and the
/// one by which is sorted is always there. What is left over the names get.
fn columns(view: &View, room: u16) -> Vec<(Column, usize)> {
    let mut wanted = vec![Column::Session];
    let is_tree = view.wanted.shape == Shape::Both && view.wanted.sort.column.is_none();
    if view.wanted.shape != Shape::Sessions && !is_tree {
        wanted.push(Column::Token);
    }
    wanted.extend(view.wanted.sort.column);
    wanted.extend([
        Column::State,
        Column::Size,
        Column::Freeze,
        Column::Restore,
        Column::Kind,
        Column::Preserve,
        Column::Owner,
        Column::Age,
        Column::Cgroup,
    ]);
    let mut left = usize::from(room).saturating_sub(1);
    let mut chosen: Vec<Column> = Vec::new();
    for column in wanted {
        let wide = width(column) + 1;
        if !chosen.contains(&column) && wide <= left {
            left -= wide;
            chosen.push(column);
        }
    }
    let all = Column::ALL.iter().filter(|column| chosen.contains(column));
    all.map(|column| {
        let more = match column {
            Column::Session => left,
            _ => 0,
        };
        (*column, width(*column) + more)
    })
    .collect()
}

const fn is_right(column: Column) -> bool {
    matches!(
        column,
        Column::Size | Column::Preserve | Column::Freeze | Column::Restore | Column::Age
    )
}

fn cell(column: Column, wide: usize, text: &str) -> String {
    if is_right(column) {
        fit_right(text, wide)
    } else {
        fit(text, wide)
    }
}

fn head(columns: &[(Column, usize)], sort: Sort, theme: &Theme) -> Line<'static> {
    let mut spans = vec![Span::raw(" ")];
    for (column, wide) in columns {
        let is_sorted = sort.column == Some(*column);
        let sign = match (is_sorted, sort.is_reversed) {
            (false, _) => "",
            (true, false) => "▴",
            (true, true) => "▾",
        };
        let text = cell(*column, *wide, &format!("{}{sign}", column.title()));
        let style = if is_sorted { theme.active } else { theme.dim };
        spans.push(Span::styled(format!("{text} "), style));
    }
    Line::from(spans)
}

/// How a file's outcome looks.
pub fn file_style(outcome: FileOutcome, theme: &Theme) -> Style {
    match outcome {
        FileOutcome::Restored => theme.good,
        FileOutcome::Preserved | FileOutcome::Frozen => theme.text,
        FileOutcome::Unpreserved => theme.dim,
        FileOutcome::Unclaimed | FileOutcome::Dropped | FileOutcome::Unseen => theme.warn,
        FileOutcome::Failed | FileOutcome::Lost => theme.bad,
    }
}

fn session_style(outcome: SessionOutcome, theme: &Theme) -> Style {
    match outcome {
        SessionOutcome::Finished | SessionOutcome::Retrieved => theme.good,
        SessionOutcome::Open | SessionOutcome::Frozen => theme.text,
        SessionOutcome::Closed => theme.warn,
        SessionOutcome::Stranded | SessionOutcome::Lost => theme.bad,
    }
}

fn token(token: u64) -> String {
    format!("{token:#x}")
}

fn name(session: &Session) -> String {
    session
        .name
        .clone()
        .unwrap_or_else(|| "(v3, no sessions)".to_owned())
}

fn row(
    row: &Row,
    update: &Update,
    state: &State,
    view: &View,
    columns: &[(Column, usize)],
    theme: &Theme,
) -> Line<'static> {
    let Some((session, file)) = row.of(update) else {
        return Line::default();
    };
    let total = view.rows.totals.get(&row.session).copied();
    let total = total.unwrap_or_default();
    let has_token = columns.iter().any(|(column, _)| *column == Column::Token);
    let took =
        |span: Option<Stretch>| span.map_or_else(|| "–".to_owned(), |it| time(Some(it.ns())));
    let owner = file.and_then(|file| update.owners.get(file.owner?));
    let mut spans = vec![Span::raw(" ")];
    for (column, wide) in columns {
        let mut style = theme.text;
        let text = match (column, file) {
            (Column::Session, None) => {
                style = theme.title;
                name(session)
            }
            (Column::Session, Some(_)) if has_token => name(session),
            (Column::Session, Some(_)) => format!("  {}", token(row.token.unwrap_or(0))),
            (Column::Token, _) => row.token.map_or_else(String::new, token),
            (Column::Kind, None) => {
                style = theme.dim;
                many(total.files, "file", "files")
            }
            (Column::Kind, Some(file)) => kind(file).to_owned(),
            (Column::Size, None) if total.unknown > 0 => format!("≥{}", size(total.bytes)),
            (Column::Size, None) => size(total.bytes),
            (Column::Size, Some(file)) => bytes(file),
            (Column::State, None) if session.name.is_none() => String::new(),
            (Column::State, None) => {
                style = session_style(session.outcome, theme);
                session.outcome.name().to_owned()
            }
            (Column::State, Some(file)) => {
                style = file_style(file.outcome, theme);
                file.outcome.name().to_owned()
            }
            (Column::Preserve | Column::Age | Column::Owner | Column::Cgroup, None) => {
                String::new()
            }
            (Column::Preserve, Some(file)) => took(file.preserve),
            (Column::Freeze, None) => took(session.freeze),
            (Column::Freeze, Some(file)) => took(file.freeze),
            (Column::Restore, None) => took(session.retrieve),
            (Column::Restore, Some(file)) => took(file.restore),
            (Column::Age, Some(file)) => age(file, state),
            (Column::Owner, Some(_)) => owner.map_or_else(
                || "unknown".to_owned(),
                |owner| format!("{} {}", owner.comm, owner.pid),
            ),
            (Column::Cgroup, Some(_)) => {
                let path = View::cgroup(owner.and_then(|it| it.cgroup_id), &state.cgroups);
                // The unit says more than the slices above it.
                path.rsplit('/').next().unwrap_or_default().to_owned()
            }
        };
        spans.push(Span::styled(
            format!("{} ", cell(*column, *wide, &text)),
            style,
        ));
    }
    Line::from(spans)
}

fn kind(file: &FileSpan) -> &'static str {
    file.kind.map_or("unknown", FileKind::name)
}

fn bytes(file: &FileSpan) -> String {
    file.bytes.map_or_else(|| "unknown".to_owned(), size)
}

fn age(file: &FileSpan, state: &State) -> String {
    let age = state
        .now_ns
        .zip(file.preserve)
        .and_then(|(now, span)| now.checked_sub(span.start_ns));
    age.map_or_else(|| "unknown".to_owned(), super::clock)
}

fn pair(name: &str, value: String, style: Style, theme: &Theme) -> Line<'static> {
    Line::from(vec![
        Span::styled(fit(&format!(" {name}"), 11), theme.dim),
        Span::styled(value, style),
    ])
}

fn details(row: &Row, update: &Update, state: &State, theme: &Theme) -> Vec<Line<'static>> {
    let Some((session, file)) = row.of(update) else {
        return Vec::new();
    };
    let text = |name: &str, value: String| pair(name, value, theme.text, theme);
    // When, since the update began.
    let step = |name: &str, span: Option<Stretch>| {
        let value = match span {
            None => "not seen".to_owned(),
            Some(span) => format!(
                "{} at +{}",
                time(Some(span.ns())),
                time(Some(span.start_ns.saturating_sub(update.began_ns)))
            ),
        };
        text(name, value)
    };
    let mut lines = vec![text("session", name(session))];
    let Some(file) = file else {
        lines.push(pair(
            "state",
            session.outcome.name().to_owned(),
            session_style(session.outcome, theme),
            theme,
        ));
        lines.push(text("files", number(session.files.len() as u64)));
        lines.push(text(
            "seen",
            match session.sight {
                Sight::Whole => "all of it, from its creation on",
                Sight::Part => "in part: it was there before lu",
                Sight::Doubtful => "in part: lu did not see all since",
            }
            .to_owned(),
        ));
        lines.push(step("freeze", session.freeze));
        lines.push(step("retrieve", session.retrieve));
        lines.push(step("finish", session.finish));
        if let Some(caller) = &session.closed_by {
            lines.push(text("closed by", format!("{} {}", caller.comm, caller.pid)));
        }
        return lines;
    };
    lines.push(text(
        "token",
        format!(
            "{} ({})",
            token(row.token.unwrap_or(0)),
            row.token.unwrap_or(0)
        ),
    ));
    lines.push(text("file", format!("{}, {}", kind(file), bytes(file))));
    lines.push(pair(
        "state",
        file.outcome.name().to_owned(),
        file_style(file.outcome, theme),
        theme,
    ));
    let owner = file.owner.and_then(|id| update.owners.get(id));
    lines.push(text(
        "owner",
        owner.map_or_else(
            || "unknown".to_owned(),
            |owner| format!("{}, pid {}, uid {}", owner.comm, owner.pid, owner.uid),
        ),
    ));
    let cgroup = View::cgroup(owner.and_then(|it| it.cgroup_id), &state.cgroups);
    lines.push(text("cgroup", cgroup));
    lines.push(step("preserve", file.preserve));
    if update.interface == Some(lu_common::uapi::Interface::V3) {
        lines.push(step("prepare", file.prepare));
    }
    lines.push(step("freeze", file.freeze));
    lines.push(step("restore", file.restore));
    lines.push(text("age", age(file, state)));
    for (failed, failure) in &update.troubles.failures {
        if Some(failed.token) == row.token && failed.session == session.name {
            let text = format!(
                "{}: {} ({}×)",
                failed.step.name(),
                errno_name(failure.errno),
                failure.count
            );
            lines.push(pair("failed", text, theme.bad, theme));
        }
    }
    lines
}
