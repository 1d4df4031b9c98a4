//! What things look like. No meaning hangs on a colour alone: words and signs say the same.

use clap::ValueEnum;
use ratatui::style::{Color, Modifier, Style};

/// Which theme.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Name {
    /// Light text on a dark ground.
    #[default]
    Dark,
    /// Dark text on a light ground.
    Light,
    /// No colour at all.
    Mono,
}

impl Name {
    /// The next one, round and round.
    #[must_use]
    pub const fn next(self) -> Self {
        match self {
            Self::Dark => Self::Light,
            Self::Light => Self::Mono,
            Self::Mono => Self::Dark,
        }
    }
}

/// The styles of one theme, by what they are for. The terminal's own sixteen colours alone, so that each user's
/// choice of them holds.
#[derive(Clone, Copy, Debug)]
pub struct Theme {
    /// What is read.
    pub text: Style,
    /// What is read once: labels, what is still to come.
    pub dim: Style,
    /// Headings.
    pub title: Style,
    /// What is as it should be.
    pub good: Style,
    /// What may need somebody.
    pub warn: Style,
    /// What went wrong.
    pub bad: Style,
    /// What goes on just now.
    pub active: Style,
    /// The selected row.
    pub selected: Style,
    /// A bar of time.
    pub bar: Style,
}

impl From<Name> for Theme {
    fn from(name: Name) -> Self {
        let plain = Style::new();
        let bold = plain.add_modifier(Modifier::BOLD);
        let colours = |dim, good, warn, bad, active, bar| Self {
            text: plain,
            dim: plain.fg(dim),
            title: bold,
            good: plain.fg(good),
            warn: bold.fg(warn),
            bad: bold.fg(bad),
            active: bold.fg(active),
            selected: plain.add_modifier(Modifier::REVERSED),
            bar: plain.fg(bar),
        };
        match name {
            Name::Dark => colours(
                Color::DarkGray,
                Color::Green,
                Color::Yellow,
                Color::LightRed,
                Color::Cyan,
                Color::Blue,
            ),
            Name::Light => colours(
                Color::DarkGray,
                Color::Green,
                Color::Magenta,
                Color::Red,
                Color::Blue,
                Color::Blue,
            ),
            Name::Mono => Self {
                text: plain,
                dim: plain.add_modifier(Modifier::DIM),
                title: bold,
                good: plain,
                warn: bold,
                bad: bold.add_modifier(Modifier::UNDERLINED),
                active: bold,
                selected: plain.add_modifier(Modifier::REVERSED),
                bar: plain,
            },
        }
    }
}
