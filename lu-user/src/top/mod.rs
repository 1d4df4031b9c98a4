//! `lu top`: the operator's screen.
//!
//! A source of records (see [`source`]) feeds a [`State`]; what keys have chosen is a [`View`]. What is drawn is a
//! pure function of the two ([`screens::draw`]), and what a key asks for one of the key and the mode
//! ([`keys::input`]). Neither reads, writes or waits.

pub mod app;
mod events;
mod facts;
pub mod keys;
mod picture;
mod rows;
mod rules;
pub mod screens;
pub mod source;
mod terminal;
pub mod theme;
pub mod view;

use std::collections::HashMap;

use lu_common::event::Record;

use crate::export::Entry;
use crate::gate::{Gate, Journal, Machine};
use crate::policy::{Compiled, Source};
use crate::timeline::{Timeline, Update};

pub use events::Stream;
pub use picture::{json, svg, text};
pub use rules::{Counts, Rules};
pub use source::{Message, Playing};
pub use view::{Screen, View};

/// What is known: all that is drawn comes from here.
pub struct State {
    /// The updates.
    pub timeline: Timeline,
    /// The newest events.
    pub events: Stream,
    /// The policy's rules, as far as they were heard of.
    pub rules: Rules,
    /// The policy whose conditions are asked for, where one was given.
    pub policy: Option<Box<(Source, Compiled)>>,
    /// The updates of the journal, newest first.
    pub history: Vec<Entry>,
    /// Why that is not all, where it is not.
    pub history_problem: Option<String>,
    /// What was found on the machine; `None` of a recording.
    pub machine: Option<Machine>,
    /// The paths of cgroups, by their ids.
    pub cgroups: HashMap<u64, String>,
    /// Where the records come from, for people.
    pub source: String,
    /// Why nothing more comes, once that is so.
    pub ended: Option<String>,
    /// How a recording is played; `None`: it is none.
    pub playing: Option<Playing>,
    /// Now, in nanoseconds on the timeline's axis; `None` as long as nobody knows.
    pub now_ns: Option<u64>,
    /// Counts what was taken in: what was made from a state holds for as long as this is the same.
    pub revision: u64,
}

impl State {
    /// Nothing is known but where records will come from.
    #[must_use]
    pub fn new(source: String) -> Self {
        Self {
            timeline: Timeline::new(),
            events: Stream::default(),
            rules: Rules::default(),
            policy: None,
            history: Vec::new(),
            history_problem: None,
            machine: None,
            cgroups: HashMap::new(),
            source,
            ended: None,
            playing: None,
            now_ns: None,
            revision: 0,
        }
    }

    /// Takes in what a source has sent.
    pub fn take(&mut self, message: Message) {
        self.revision += 1;
        match message {
            Message::Begin(timeline) => {
                self.timeline = *timeline;
                self.events = Stream::default();
                self.rules = Rules::default();
                self.ended = None;
            }
            Message::Records(records) => {
                for record in &records {
                    self.push(record);
                }
            }
            Message::Playing(playing) => self.playing = Some(playing),
            Message::Machine(machine) => self.machine = Some(machine),
            Message::Cgroups(cgroups) => self.cgroups.extend(cgroups),
            Message::History(entries, problem) => {
                self.history = entries;
                self.history_problem = problem;
            }
            Message::InForce(in_force) => self.rules.count(&in_force),
            Message::Ended(why) => self.ended = Some(why),
        }
    }

    fn push(&mut self, record: &Record) {
        self.timeline.push(record);
        self.rules.push(record);
        self.events
            .push(self.timeline.at(record.header.t_ns), record);
    }

    /// The update with this number, if it is remembered; without one the one under way, else the last.
    #[must_use]
    pub fn update(&self, number: Option<u64>) -> Option<&Update> {
        match number {
            None => self.timeline.latest(),
            Some(number) => self.timeline.updates().find(|it| it.number == number),
        }
    }

    /// Whether an update may begin, or go on to its kexec.
    #[must_use]
    pub fn gate(&self) -> Gate {
        let in_kernel = !self.timeline.latest().is_some_and(|it| it.emulated);
        let unseen = Machine {
            in_kernel,
            image_loaded: None,
            opened: None,
        };
        let machine = self.machine.as_ref().unwrap_or(&unseen);
        let policy = self.policy.as_deref();
        let policy = policy.map(|(source, compiled)| (source, compiled));
        Gate::new(machine, &Journal::Current(&self.timeline), policy)
    }
}
