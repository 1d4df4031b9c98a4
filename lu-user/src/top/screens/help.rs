//! The keys, from the map itself.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};

use super::{fit, heading, put};
use crate::top::keys::{KEYS, Place, names};
use crate::top::theme::Theme;
use crate::top::view::{Screen, View};

/// Columns of one entry.
const WIDE: u16 = 40;

/// Every place, those that matter most first.
fn places(view_screen: Screen) -> Vec<Place> {
    let mut places = vec![Place::On(view_screen), Place::Everywhere, Place::Recording];
    let others = Screen::ALL.into_iter().filter(|it| *it != view_screen);
    places.extend(others.map(Place::On));
    places.extend([Place::Filter, Place::Help]);
    places
}

fn lines(screen: Screen, theme: &Theme, columns: u16) -> Vec<Line<'static>> {
    let across = usize::from((columns / WIDE).max(1));
    let mut lines = Vec::new();
    for place in places(screen) {
        let bound: Vec<_> = KEYS.iter().filter(|it| it.place == place).collect();
        if bound.is_empty() {
            continue;
        }
        lines.push(heading(place.title(), theme, columns));
        let rows = bound.len().div_ceil(across);
        for row in 0..rows {
            let mut spans = Vec::new();
            for column in 0..across {
                let Some(binding) = bound.get(column * rows + row) else {
                    continue;
                };
                let keys = fit(&names(binding), 12);
                spans.push(Span::styled(format!(" {keys} "), theme.active));
                spans.push(Span::styled(
                    fit(binding.help, usize::from(WIDE) - 15),
                    theme.text,
                ));
                spans.push(Span::raw(" "));
            }
            lines.push(Line::from(spans));
        }
    }
    lines
}

/// The furthest that it can be scrolled to, on a terminal of this size.
pub fn last(size: (u16, u16)) -> usize {
    let theme = Theme::from(crate::top::theme::Name::Mono);
    let lines = lines(Screen::Update, &theme, size.0).len();
    lines.saturating_sub(usize::from(size.1.saturating_sub(4)))
}

/// Draws it over the screen.
pub fn draw(view: &View, theme: &Theme, area: Rect, buffer: &mut Buffer) {
    ratatui::widgets::Widget::render(ratatui::widgets::Clear, area, buffer);
    let lines = lines(view.screen, theme, area.width);
    for (at, line) in lines.into_iter().skip(view.help_at).enumerate() {
        if at as u16 >= area.height {
            break;
        }
        put(buffer, area, at as u16, line);
    }
}
