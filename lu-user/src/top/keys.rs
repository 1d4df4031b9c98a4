//! The keys, as data: what each does where, and what the help says of it.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::view::Screen;

/// What keys mean depends on this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// One of the screens.
    Screen(Screen),
    /// A filter is being typed.
    Filter,
    /// The help is shown.
    Help,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// End.
    Quit,
    /// Stop, as Ctrl-Z does elsewhere.
    Suspend,
    /// Draw everything anew.
    Redraw,
    /// Show the help, or close it.
    Help,
    /// Close what was opened last; without anything open, take the filter off.
    Close,
    /// Go to a screen.
    Go(Screen),
    /// Go to the next screen.
    NextScreen,
    /// Go to the screen before.
    PreviousScreen,
    /// One row up.
    Up,
    /// One row down.
    Down,
    /// One page up.
    PageUp,
    /// One page down.
    PageDown,
    /// The first row.
    First,
    /// The last row.
    Last,
    /// Look at the selected row more closely.
    Open,
    /// Begin to type a filter.
    Filter,
    /// A character of it.
    Type(char),
    /// Several.
    Paste(String),
    /// Take the last one back.
    Erase,
    /// Take all of it back.
    EraseAll,
    /// The filter is as it should be.
    Accept,
    /// The filter stays as it was.
    Cancel,
    /// Sort by the next column.
    NextColumn,
    /// Sort by the column before.
    PreviousColumn,
    /// Turn the order around.
    Reverse,
    /// The next way to list sessions and files.
    Shape,
    /// Half the time over the same width.
    ZoomIn,
    /// Twice the time.
    ZoomOut,
    /// All of it.
    ZoomAll,
    /// The blackout alone.
    ZoomDark,
    /// To earlier times.
    Earlier,
    /// To later times.
    Later,
    /// The longest first, or in their order.
    Longest,
    /// Stop the stream of events, or let it go on.
    Pause,
    /// Show the update before.
    Older,
    /// Show the update after.
    Newer,
    /// The next theme.
    Theme,
    /// Save what is seen.
    Dump,
    /// Play a recording, or pause it.
    Play,
    /// One event on.
    Step,
    /// Half as fast.
    Slower,
    /// Twice as fast.
    Faster,
    /// Where the next phase begins.
    NextPhase,
    /// Where this phase, or the one before, began.
    PreviousPhase,
}

/// Where a key is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On every screen.
    Everywhere,
    /// On one alone; it goes before what is bound everywhere.
    On(Screen),
    /// On every screen, of a recording.
    Recording,
    /// While a filter is typed.
    Filter,
    /// While the help is shown.
    Help,
}

impl Place {
    /// As the help calls it.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Everywhere => "Everywhere",
            Self::On(screen) => screen.title(),
            Self::Recording => "Recording",
            Self::Filter => "Filter",
            Self::Help => "Help",
        }
    }

    const fn holds(self, mode: Mode) -> bool {
        match (self, mode) {
            (Self::Everywhere | Self::Recording, Mode::Screen(_))
            | (Self::Filter, Mode::Filter)
            | (Self::Help, Mode::Help) => true,
            (Self::On(one), Mode::Screen(other)) => one as u8 == other as u8,
            _ => false,
        }
    }
}

/// One line of the map.
pub struct Binding {
    /// Where.
    pub place: Place,
    /// Which keys, each with Ctrl or without.
    pub keys: &'static [(KeyCode, bool)],
    /// What they do.
    pub action: Action,
    /// What the help says.
    pub help: &'static str,
}

const fn bind(
    place: Place,
    keys: &'static [(KeyCode, bool)],
    action: Action,
    help: &'static str,
) -> Binding {
    Binding {
        place,
        keys,
        action,
        help,
    }
}

const fn key(char: char) -> (KeyCode, bool) {
    (KeyCode::Char(char), false)
}

const fn ctrl(char: char) -> (KeyCode, bool) {
    (KeyCode::Char(char), true)
}

const fn code(code: KeyCode) -> (KeyCode, bool) {
    (code, false)
}

use Place::{Everywhere, On, Recording};

/// The map.
pub const KEYS: &[Binding] = &[
    bind(
        On(Screen::Waterfall),
        &[code(KeyCode::Enter)],
        Action::Open,
        "zoom to this span",
    ),
    bind(
        On(Screen::Waterfall),
        &[key('+'), key('=')],
        Action::ZoomIn,
        "zoom in",
    ),
    bind(
        On(Screen::Waterfall),
        &[key('-')],
        Action::ZoomOut,
        "zoom out",
    ),
    bind(
        On(Screen::Waterfall),
        &[key('0')],
        Action::ZoomAll,
        "the whole update",
    ),
    bind(
        On(Screen::Waterfall),
        &[key('b')],
        Action::ZoomDark,
        "the blackout",
    ),
    bind(
        On(Screen::Waterfall),
        &[key('h'), code(KeyCode::Left)],
        Action::Earlier,
        "earlier",
    ),
    bind(
        On(Screen::Waterfall),
        &[key('l'), code(KeyCode::Right)],
        Action::Later,
        "later",
    ),
    bind(
        On(Screen::Waterfall),
        &[key('o')],
        Action::Longest,
        "longest first, or not",
    ),
    bind(
        On(Screen::Sessions),
        &[code(KeyCode::Enter)],
        Action::Open,
        "details, or none",
    ),
    bind(
        On(Screen::Sessions),
        &[key('>'), key('l'), code(KeyCode::Right)],
        Action::NextColumn,
        "sort by the next column",
    ),
    bind(
        On(Screen::Sessions),
        &[key('<'), key('h'), code(KeyCode::Left)],
        Action::PreviousColumn,
        "sort by the column before",
    ),
    bind(
        On(Screen::Sessions),
        &[key('r')],
        Action::Reverse,
        "turn the order around",
    ),
    bind(
        On(Screen::Sessions),
        &[key('v')],
        Action::Shape,
        "both, files, or sessions",
    ),
    bind(
        On(Screen::Events),
        &[key(' ')],
        Action::Pause,
        "pause, or go on",
    ),
    bind(
        On(Screen::History),
        &[code(KeyCode::Enter)],
        Action::Open,
        "show this update",
    ),
    bind(Everywhere, &[key('k'), code(KeyCode::Up)], Action::Up, "up"),
    bind(
        Everywhere,
        &[key('j'), code(KeyCode::Down)],
        Action::Down,
        "down",
    ),
    bind(
        Everywhere,
        &[code(KeyCode::PageUp), ctrl('b'), ctrl('u')],
        Action::PageUp,
        "a page up",
    ),
    bind(
        Everywhere,
        &[code(KeyCode::PageDown), ctrl('f'), ctrl('d')],
        Action::PageDown,
        "a page down",
    ),
    bind(
        Everywhere,
        &[key('g'), code(KeyCode::Home)],
        Action::First,
        "the first",
    ),
    bind(
        Everywhere,
        &[key('G'), code(KeyCode::End)],
        Action::Last,
        "the last",
    ),
    bind(
        Everywhere,
        &[key('1')],
        Action::Go(Screen::Update),
        "Update",
    ),
    bind(
        Everywhere,
        &[key('2')],
        Action::Go(Screen::Sessions),
        "Sessions",
    ),
    bind(
        Everywhere,
        &[key('3')],
        Action::Go(Screen::Waterfall),
        "Waterfall",
    ),
    bind(
        Everywhere,
        &[key('4')],
        Action::Go(Screen::Events),
        "Events",
    ),
    bind(
        Everywhere,
        &[key('5')],
        Action::Go(Screen::Policy),
        "Policy",
    ),
    bind(
        Everywhere,
        &[key('6')],
        Action::Go(Screen::History),
        "History",
    ),
    bind(
        Everywhere,
        &[code(KeyCode::Tab)],
        Action::NextScreen,
        "the next screen",
    ),
    bind(
        Everywhere,
        &[code(KeyCode::BackTab)],
        Action::PreviousScreen,
        "the screen before",
    ),
    bind(
        Everywhere,
        &[key('/')],
        Action::Filter,
        "filter: text, field:value",
    ),
    bind(
        Everywhere,
        &[code(KeyCode::Esc)],
        Action::Close,
        "close; no filter",
    ),
    bind(Everywhere, &[key('u')], Action::Older, "the update before"),
    bind(Everywhere, &[key('U')], Action::Newer, "the update after"),
    bind(Everywhere, &[key('t')], Action::Theme, "another theme"),
    bind(
        Everywhere,
        &[key('D')],
        Action::Dump,
        "save the screen (--dump)",
    ),
    bind(Everywhere, &[ctrl('l')], Action::Redraw, "draw anew"),
    bind(
        Everywhere,
        &[key('?'), code(KeyCode::F(1))],
        Action::Help,
        "this help",
    ),
    bind(Everywhere, &[ctrl('z')], Action::Suspend, "stop (fg: on)"),
    bind(Everywhere, &[key('q'), ctrl('c')], Action::Quit, "quit"),
    bind(Recording, &[key('p')], Action::Play, "play, or pause"),
    bind(Recording, &[key('.')], Action::Step, "one event on"),
    bind(Recording, &[key('{')], Action::Slower, "slower"),
    bind(Recording, &[key('}')], Action::Faster, "faster"),
    bind(Recording, &[key(']')], Action::NextPhase, "the next phase"),
    bind(
        Recording,
        &[key('[')],
        Action::PreviousPhase,
        "the phase before",
    ),
    bind(
        Place::Filter,
        &[code(KeyCode::Enter)],
        Action::Accept,
        "use it",
    ),
    bind(
        Place::Filter,
        &[code(KeyCode::Esc), ctrl('c')],
        Action::Cancel,
        "leave it as it was",
    ),
    bind(
        Place::Filter,
        &[code(KeyCode::Backspace), ctrl('h')],
        Action::Erase,
        "take one back",
    ),
    bind(
        Place::Filter,
        &[ctrl('u')],
        Action::EraseAll,
        "take all back",
    ),
    bind(
        Place::Help,
        &[
            key('?'),
            key('q'),
            code(KeyCode::Esc),
            code(KeyCode::F(1)),
            code(KeyCode::Enter),
        ],
        Action::Help,
        "close",
    ),
    bind(
        Place::Help,
        &[key('k'), code(KeyCode::Up)],
        Action::Up,
        "up",
    ),
    bind(
        Place::Help,
        &[key('j'), code(KeyCode::Down), key(' ')],
        Action::Down,
        "down",
    ),
    bind(Place::Help, &[ctrl('c')], Action::Quit, "quit"),
];

/// What a key asks for; `None` where it means nothing.
#[must_use]
pub fn input(mode: Mode, event: KeyEvent) -> Option<Action> {
    let is_ctrl = event.modifiers.contains(KeyModifiers::CONTROL);
    let others = KeyModifiers::CONTROL | KeyModifiers::SHIFT;
    if !others.contains(event.modifiers) {
        return None;
    }
    let bound = KEYS
        .iter()
        .find(|binding| binding.place.holds(mode) && binding.keys.contains(&(event.code, is_ctrl)));
    match (bound, mode, event.code) {
        (Some(binding), ..) => Some(binding.action.clone()),
        (None, Mode::Filter, KeyCode::Char(char)) if !is_ctrl => Some(Action::Type(char)),
        _ => None,
    }
}

/// How the help writes the keys of a binding.
#[must_use]
pub fn names(binding: &Binding) -> String {
    let name = |(code, is_ctrl): &(KeyCode, bool)| {
        let name = match code {
            KeyCode::Char(' ') => "Space".to_owned(),
            KeyCode::Char(char) => char.to_string(),
            KeyCode::Up => "↑".to_owned(),
            KeyCode::Down => "↓".to_owned(),
            KeyCode::Left => "←".to_owned(),
            KeyCode::Right => "→".to_owned(),
            KeyCode::PageUp => "PgUp".to_owned(),
            KeyCode::PageDown => "PgDn".to_owned(),
            KeyCode::BackTab => "Shift-Tab".to_owned(),
            other => format!("{other}"),
        };
        if *is_ctrl { format!("^{name}") } else { name }
    };
    binding.keys.iter().map(name).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_is_bound_twice_in_one_place_and_each_does_what_the_map_says() {
        for (number, binding) in KEYS.iter().enumerate() {
            for key in binding.keys {
                let again = KEYS[..number]
                    .iter()
                    .find(|other| other.place == binding.place && other.keys.contains(key));
                assert!(again.is_none(), "{key:?} in {:?}", binding.place);
                let mode = match binding.place {
                    Place::Filter => Mode::Filter,
                    Place::Help => Mode::Help,
                    On(screen) => Mode::Screen(screen),
                    Everywhere | Recording => Mode::Screen(Screen::Update),
                };
                let modifiers = if key.1 {
                    KeyModifiers::CONTROL
                } else {
                    KeyModifiers::NONE
                };
                let event = KeyEvent::new(key.0, modifiers);
                assert_eq!(input(mode, event).as_ref(), Some(&binding.action));
            }
        }
    }

    #[test]
    fn recordings_and_screens_do_not_take_each_others_keys() {
        let of = |wanted: fn(Place) -> bool| {
            let bindings = KEYS.iter().filter(move |binding| wanted(binding.place));
            bindings.flat_map(|binding| binding.keys)
        };
        for key in of(|place| place == Recording) {
            let mut others = of(|place| matches!(place, Everywhere | On(_)));
            assert!(others.all(|other| other != key), "{key:?}");
        }
    }

    #[test]
    fn while_a_filter_is_typed_letters_are_letters() {
        for char in ['q', '?', '1', 'é', ' '] {
            let event = KeyEvent::new(KeyCode::Char(char), KeyModifiers::NONE);
            assert_eq!(input(Mode::Filter, event), Some(Action::Type(char)));
        }
        let alt = KeyEvent::new(KeyCode::Char('q'), KeyModifiers::ALT);
        assert_eq!(input(Mode::Screen(Screen::Update), alt), None);
    }
}
