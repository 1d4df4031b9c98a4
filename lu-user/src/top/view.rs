//! What keys have chosen: which screen, which rows, in which order.

use std::collections::HashMap;

use super::State;
use super::facts::{self, Facts, Progress};
use super::keys::{Action, Mode};
use super::rows::{Column, Filter, Rows, Shape, Wanted};
use super::screens::{events, help, history, policy, sessions, waterfall};
use super::source::Command;
use super::theme;
use crate::gate::Gate;
use crate::timeline::Update;

/// The screens, in the order of their numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Screen {
    /// Where we are.
    #[default]
    Update,
    /// Sessions and files.
    Sessions,
    /// Spans over time.
    Waterfall,
    /// The stream.
    Events,
    /// Rules and verdicts.
    Policy,
    /// Past updates.
    History,
}

impl Screen {
    /// All, in order.
    pub const ALL: [Self; 6] = [
        Self::Update,
        Self::Sessions,
        Self::Waterfall,
        Self::Events,
        Self::Policy,
        Self::History,
    ];

    /// What it is called.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Update => "Update",
            Self::Sessions => "Sessions",
            Self::Waterfall => "Waterfall",
            Self::Events => "Events",
            Self::Policy => "Policy",
            Self::History => "History",
        }
    }

    fn after(self, step: usize) -> Self {
        Self::ALL[(self as usize + step) % Self::ALL.len()]
    }
}

/// A selected row, and the first one that is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// The selected one.
    pub selected: usize,
    /// The first that is shown.
    pub offset: usize,
}

impl Cursor {
    fn go(&mut self, action: &Action, page: usize) {
        let page = page.max(1);
        self.selected = match action {
            Action::Up => self.selected.saturating_sub(1),
            Action::Down => self.selected.saturating_add(1),
            Action::PageUp => self.selected.saturating_sub(page),
            Action::PageDown => self.selected.saturating_add(page),
            Action::First => 0,
            Action::Last => usize::MAX,
            _ => self.selected,
        };
    }

    /// Within the rows that there are, and seen.
    fn settle(&mut self, rows: usize, page: usize) {
        let page = page.max(1);
        self.selected = self.selected.min(rows.saturating_sub(1));
        self.offset = self
            .offset
            .min(rows.saturating_sub(page))
            .min(self.selected)
            .max((self.selected + 1).saturating_sub(page));
    }
}

/// What has to be done outside of the view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// End.
    Quit,
    /// Stop, as a job of the shell.
    Suspend,
    /// Draw everything anew.
    Redraw,
    /// Save what is seen.
    Dump,
    /// Tell whoever plays the recording.
    Play(Command),
}

/// The events that are shown.
#[derive(Default)]
pub struct Shown {
    /// Their numbers.
    pub numbers: Vec<u64>,
    /// All before this were looked at.
    seen: u64,
}

/// What is seen of a [`State`].
pub struct View {
    /// Which screen.
    pub screen: Screen,
    /// The colours.
    pub theme: theme::Name,
    /// Which update; `None`: the one under way, else the last.
    pub update: Option<u64>,
    /// Whether the help is shown.
    pub help: bool,
    /// What is being typed.
    pub typed: Option<String>,
    /// Each screen's filter, as it was typed.
    pub filters: [String; Screen::ALL.len()],
    /// Each screen's row; of the screen with the help shown, see [`Self::help_at`].
    pub cursors: [Cursor; Screen::ALL.len()],
    /// The help's first line.
    pub help_at: usize,
    /// Which sessions and files, in which order.
    pub wanted: Wanted,
    /// Whether more is told of the selected one.
    pub details: bool,
    /// Whether the longest spans come first.
    pub longest: bool,
    /// The stretch of time that the waterfall shows; `None`: all.
    pub window: Option<(u64, u64)>,
    /// Events with this number and above are held back.
    pub paused: Option<u64>,
    /// The last word to the operator.
    pub notice: Option<String>,
    /// Columns and lines of the terminal.
    pub size: (u16, u16),
    /// What is told of the update.
    pub facts: Option<Facts>,
    /// The gate.
    pub gate: Option<Gate>,
    /// The sessions and files.
    pub rows: Rows,
    /// The lines of the waterfall.
    pub lines: Vec<waterfall::Line>,
    /// The events.
    pub shown: Shown,
    made_from: MadeFrom,
}

/// What the cached parts were made from.
#[derive(Default, PartialEq)]
struct MadeFrom {
    facts: Option<(u64, Option<u64>)>,
    rows: Option<(u64, Option<u64>, Wanted)>,
    lines: Option<(u64, Option<u64>, bool, String)>,
    events: Option<String>,
}

impl View {
    /// The first screen, of a terminal of this size.
    #[must_use]
    pub fn new(size: (u16, u16)) -> Self {
        Self {
            screen: Screen::default(),
            theme: theme::Name::default(),
            update: None,
            help: false,
            typed: None,
            filters: Default::default(),
            cursors: Default::default(),
            help_at: 0,
            wanted: Wanted::default(),
            details: false,
            longest: false,
            window: None,
            paused: None,
            notice: None,
            size,
            facts: None,
            gate: None,
            rows: Rows::default(),
            lines: Vec::new(),
            shown: Shown::default(),
            made_from: MadeFrom::default(),
        }
    }

    /// What keys mean now.
    #[must_use]
    pub const fn mode(&self) -> Mode {
        if self.help {
            Mode::Help
        } else if self.typed.is_some() {
            Mode::Filter
        } else {
            Mode::Screen(self.screen)
        }
    }

    /// The row of the screen that is shown.
    #[must_use]
    pub const fn cursor(&self) -> Cursor {
        self.cursors[self.screen as usize]
    }

    /// The filter of the screen that is shown.
    #[must_use]
    pub fn filter(&self) -> &str {
        &self.filters[self.screen as usize]
    }

    /// The update that is shown.
    #[must_use]
    pub fn shown_update<'a>(&self, state: &'a State) -> Option<&'a Update> {
        state.update(self.update)
    }

    /// How many rows the shown screen has.
    #[must_use]
    pub fn len(&self, state: &State) -> usize {
        match self.screen {
            Screen::Update => 0,
            Screen::Sessions => self.rows.all.len(),
            Screen::Waterfall => self.lines.len(),
            Screen::Events => self.shown.numbers.len(),
            Screen::Policy => policy::len(state, self),
            Screen::History => state.history.len(),
        }
    }

    /// Whether the shown screen has no rows.
    #[must_use]
    pub fn is_empty(&self, state: &State) -> bool {
        self.len(state) == 0
    }

    fn page(&self, state: &State) -> usize {
        match self.screen {
            Screen::Update => 1,
            Screen::Sessions => sessions::page(self, state),
            Screen::Waterfall => waterfall::page(self, state),
            Screen::Events => events::page(self, state),
            Screen::Policy => policy::page(self, state),
            Screen::History => history::page(self, state),
        }
    }

    /// Does what a key asks for; what is left to be done outside.
    pub fn apply(&mut self, action: Action, state: &State) -> Option<Effect> {
        self.notice = None;
        match action {
            Action::Quit => return Some(Effect::Quit),
            Action::Suspend => return Some(Effect::Suspend),
            Action::Redraw => return Some(Effect::Redraw),
            Action::Dump => return Some(Effect::Dump),
            Action::Play => return self.play(state, Command::Toggle),
            Action::Step => return self.play(state, Command::Step),
            Action::Slower => return self.play(state, Command::Slower),
            Action::Faster => return self.play(state, Command::Faster),
            Action::NextPhase => return self.play(state, Command::NextPhase),
            Action::PreviousPhase => return self.play(state, Command::PreviousPhase),
            Action::Help => {
                self.help = !self.help;
                self.help_at = 0;
            }
            Action::Close => self.close(),
            Action::Go(screen) => self.screen = screen,
            Action::NextScreen => self.screen = self.screen.after(1),
            Action::PreviousScreen => self.screen = self.screen.after(Screen::ALL.len() - 1),
            Action::Up if self.help => self.help_at = self.help_at.saturating_sub(1),
            Action::Down if self.help => self.help_at = self.help_at.saturating_add(1),
            Action::Up
            | Action::Down
            | Action::PageUp
            | Action::PageDown
            | Action::First
            | Action::Last => self.go(&action, state),
            Action::Open => self.open(state),
            Action::Filter => self.typed = Some(self.filter().to_owned()),
            Action::Type(char) => self.edit(|text| text.push(char)),
            Action::Paste(pasted) => self.edit(|text| text.push_str(&pasted)),
            Action::Erase => self.edit(|text| {
                text.pop();
            }),
            Action::EraseAll => self.edit(String::clear),
            Action::Accept => {
                if let Some(text) = self.typed.take() {
                    self.set_filter(text);
                }
            }
            Action::Cancel => self.typed = None,
            Action::NextColumn => self.sort(1),
            Action::PreviousColumn => self.sort(Column::ALL.len()),
            Action::Reverse => {
                self.wanted.sort.is_reversed = !self.wanted.sort.is_reversed;
            }
            Action::Shape => {
                self.wanted.shape = self.wanted.shape.next();
                if self.wanted.shape == Shape::Both {
                    self.wanted.sort.column = None;
                }
            }
            Action::ZoomIn => self.zoom(state, 1, 2),
            Action::ZoomOut => self.zoom(state, 2, 1),
            Action::ZoomAll => self.window = None,
            Action::ZoomDark => match waterfall::dark(self, state) {
                Some(dark) => self.look_at(dark),
                None => self.notice = Some("there is no blackout, or it is unknown".to_owned()),
            },
            Action::Earlier => self.pan(state, false),
            Action::Later => self.pan(state, true),
            Action::Longest => self.longest = !self.longest,
            Action::Pause => {
                self.paused = match self.paused {
                    Some(_) => None,
                    None => Some(state.events.end()),
                };
            }
            Action::Older => self.turn(state, false),
            Action::Newer => self.turn(state, true),
            Action::Theme => self.theme = self.theme.next(),
        }
        None
    }

    fn play(&mut self, state: &State, command: Command) -> Option<Effect> {
        if state.playing.is_none() {
            self.notice = Some("this is no recording".to_owned());
            return None;
        }
        Some(Effect::Play(command))
    }

    fn close(&mut self) {
        let filter = &mut self.filters[self.screen as usize];
        if self.screen == Screen::Sessions && self.details {
            self.details = false;
        } else if !filter.is_empty() {
            self.set_filter(String::new());
        } else if self.screen == Screen::Waterfall && self.window.is_some() {
            self.window = None;
        } else {
            self.update = None;
        }
    }

    fn edit(&mut self, edit: impl FnOnce(&mut String)) {
        if let Some(text) = &mut self.typed {
            edit(text);
            text.retain(|char| !char.is_control());
            // Longer than any name that could be asked for.
            let end = text.floor_char_boundary(200);
            text.truncate(end);
        }
    }

    /// The filter of the screen that is shown, from the command line.
    pub fn begin_filter(&mut self, text: String) {
        self.set_filter(text);
    }

    fn set_filter(&mut self, text: String) {
        if self.screen == Screen::Sessions {
            self.wanted.filter = Filter::new(&text);
        }
        self.filters[self.screen as usize] = text;
    }

    fn go(&mut self, action: &Action, state: &State) {
        let page = self.page(state);
        let is_stream = self.screen == Screen::Events;
        // Whoever looks at what was does not want it to run away; at its end it goes on.
        if is_stream {
            match action {
                Action::Last => self.paused = None,
                Action::Up | Action::PageUp | Action::First if self.paused.is_none() => {
                    self.paused = Some(state.events.end());
                }
                _ => {}
            }
        }
        self.cursors[self.screen as usize].go(action, page);
    }

    fn open(&mut self, state: &State) {
        match self.screen {
            Screen::Sessions => self.details = !self.details,
            Screen::Waterfall => {
                let line = self.lines.get(self.cursor().selected);
                let span = line.and_then(|line| waterfall::span(line, self, state));
                if let Some(span) = span {
                    self.look_at(span);
                }
            }
            Screen::History => {
                let entry = state.history.get(self.cursor().selected);
                let Some(number) = entry.map(|entry| entry.update) else {
                    return;
                };
                if state.update(Some(number)).is_some() {
                    self.update = Some(number);
                    self.screen = Screen::Update;
                } else {
                    self.notice = Some(format!(
                        "update {number} was not watched here: lu top --update {number}"
                    ));
                }
            }
            _ => {}
        }
    }

    /// Shows a stretch of time, and a little to both sides of it.
    fn look_at(&mut self, (start, end): (u64, u64)) {
        let margin = (end - start) / 20 + 1;
        self.window = Some((start.saturating_sub(margin), end.saturating_add(margin)));
    }

    fn sort(&mut self, step: usize) {
        // One more than there are columns: as they were created.
        let count = Column::ALL.len() + 1;
        let at = |column| Column::ALL.iter().position(|it| *it == column);
        let now = self.wanted.sort.column.and_then(at).map_or(0, |at| at + 1);
        let next = (now + step) % count;
        self.wanted.sort.column = next.checked_sub(1).map(|at| Column::ALL[at]);
        self.cursors[Screen::Sessions as usize] = Cursor::default();
    }

    fn zoom(&mut self, state: &State, by: u64, of: u64) {
        let Some((start, end)) = waterfall::window(self, state) else {
            return;
        };
        let (middle, length) = (start / 2 + end / 2, end - start);
        let half = u64::try_from(u128::from(length) * u128::from(by) / u128::from(of) / 2);
        // Some microseconds over the whole width are as close as there is anything to see.
        let half = half.unwrap_or(u64::MAX / 2).clamp(500, u64::MAX / 4);
        self.window = Some((middle.saturating_sub(half), middle.saturating_add(half)));
    }

    fn pan(&mut self, state: &State, is_later: bool) {
        let Some((start, end)) = waterfall::window(self, state) else {
            return;
        };
        let step = (end - start) / 8;
        let whole = waterfall::whole(self, state).unwrap_or((start, end));
        let length = end - start;
        let start = if is_later {
            start.saturating_add(step).min(whole.1)
        } else {
            let least = whole.0.saturating_sub(length / 2);
            start.saturating_sub(step).max(least)
        };
        self.window = Some((start, start.saturating_add(length)));
    }

    fn turn(&mut self, state: &State, is_newer: bool) {
        let now = self.shown_update(state).map(|update| update.number);
        let mut numbers = state.timeline.updates().map(|update| update.number);
        let next = if is_newer {
            numbers.find(|number| Some(*number) > now)
        } else {
            numbers.rfind(|number| now.is_some_and(|now| *number < now))
        };
        match next {
            Some(number) => {
                let latest = state.timeline.latest().map(|update| update.number);
                self.update = Some(number).filter(|_| Some(number) != latest);
                self.window = None;
            }
            None if is_newer => self.update = None,
            None => self.notice = Some("no update before this one was watched here".to_owned()),
        }
    }

    /// Makes anew what no longer follows from the state, and keeps the selection within what there is.
    pub fn settle(&mut self, state: &State) {
        if self.update.is_some() && self.shown_update(state).is_none() {
            self.update = None;
        }
        let update = self.shown_update(state);
        let facts = Some((state.revision, self.update));
        if self.made_from.facts != facts {
            self.facts = update.map(Facts::of);
            self.gate = facts::gate(state, update);
            self.made_from.facts = facts;
        }
        match self.screen {
            Screen::Sessions => {
                let from = Some((state.revision, self.update, self.wanted.clone()));
                if self.made_from.rows != from {
                    self.rows = update.map_or_else(Rows::default, |update| {
                        Rows::new(update, &self.wanted, &state.cgroups)
                    });
                    self.made_from.rows = from;
                }
            }
            Screen::Waterfall => {
                let from = (
                    state.revision,
                    self.update,
                    self.longest,
                    self.filter().to_owned(),
                );
                let from = Some(from);
                if self.made_from.lines != from {
                    self.lines = waterfall::lines(self, state);
                    self.made_from.lines = from;
                }
            }
            Screen::Events => self.settle_events(state),
            _ => {}
        }
        let (rows, page) = (self.len(state), self.page(state));
        let is_followed = self.screen == Screen::Events && self.paused.is_none();
        let cursor = &mut self.cursors[self.screen as usize];
        if is_followed {
            cursor.selected = usize::MAX;
        }
        cursor.settle(rows, page);
        if self.help {
            self.help_at = self.help_at.min(help::last(self.size));
        }
    }

    fn settle_events(&mut self, state: &State) {
        let stream = &state.events;
        let filter = self.filter().to_owned();
        let is_same = self.made_from.events.as_ref() == Some(&filter);
        // A recording that was begun anew counts from 0 again.
        if !is_same || self.shown.seen > stream.end() {
            self.shown = Shown::default();
            self.made_from.events = Some(filter.clone());
            if self.paused.is_some_and(|at| at > stream.end()) {
                self.paused = None;
            }
        }
        let gone = self
            .shown
            .numbers
            .partition_point(|it| *it < stream.first());
        self.shown.numbers.drain(..gone);
        let cursor = &mut self.cursors[Screen::Events as usize];
        cursor.selected = cursor.selected.saturating_sub(gone);
        cursor.offset = cursor.offset.saturating_sub(gone);
        let held = self.paused.unwrap_or(u64::MAX);
        // What came while it was paused is looked at once it goes on.
        let end = stream.end().min(held);
        let filter = Filter::new(&filter);
        for number in self.shown.seen.max(stream.first())..end {
            let Some(record) = stream.get(number) else {
                continue;
            };
            if events::meets(&filter, number, record, state) {
                self.shown.numbers.push(number);
            }
        }
        self.shown.seen = self.shown.seen.max(end);
    }

    /// Whether anything that is drawn changes as time goes by.
    #[must_use]
    pub fn has_clock(&self) -> bool {
        let facts = self.facts.as_ref();
        facts.is_some_and(|facts| {
            let mut steps = facts.steps.iter();
            steps.any(|step| step.progress == Progress::Now)
        })
    }

    /// What a cgroup is called.
    #[must_use]
    pub fn cgroup(id: Option<u64>, cgroups: &HashMap<u64, String>) -> String {
        match id {
            None => "unknown".to_owned(),
            Some(id) => cgroups
                .get(&id)
                .cloned()
                .unwrap_or_else(|| format!("id {id}")),
        }
    }
}
