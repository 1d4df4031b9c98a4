//! The screens of `lu top`, drawn from recordings of every state of an update.

mod recordings;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::mpsc::Receiver;

use lu_common::event::Record;
use lu_user::export::{Entry, Report};
use lu_user::gate::Machine;
use lu_user::journal::{Journal, Retention};
use lu_user::timeline::{PhaseName, Update};
use lu_user::top::app;
use lu_user::top::screens::draw;
use lu_user::top::source::{Command, Replay};
use lu_user::top::theme::Name;
use lu_user::top::{Message, Playing, Screen, State, View, json, svg, text};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{Event, KeyCode, KeyEvent, KeyModifiers};
use ratatui::style::Color;

/// The sizes that the screens are looked at in.
const SIZES: [(u16, u16); 3] = [(60, 15), (80, 24), (120, 40)];

/// A state that has seen a recording, half a second ago.
fn state(records: &[Record]) -> State {
    let mut state = State::new("a recording".to_owned());
    state.take(Message::Records(records.to_vec()));
    let last = records
        .last()
        .map_or(0, |record| record.end_ns().unwrap_or(record.header.t_ns));
    state.now_ns = Some(state.timeline.at(last) + 500_000_000);
    state.take(Message::Machine(Machine {
        in_kernel: true,
        image_loaded: Some(true),
        opened: None,
    }));
    let cgroups = HashMap::from([
        (4711, "/system.slice/luod.service"),
        (5000, "/machine.slice/vm-0000.scope"),
        (5001, "/machine.slice/vm-0001.scope"),
    ]);
    let cgroups = cgroups.into_iter().map(|(id, path)| (id, path.to_owned()));
    state.take(Message::Cgroups(cgroups.collect()));
    state
}

/// The updates of a year, newest first.
fn history() -> Message {
    let entry = |number: u64| Entry {
        update: number,
        began_realtime_ns: Some(1_760_000_000_000_000_000 + number * 86_400_000_000_000),
        interface: "sessions".into(),
        orchestrator: "kernel".into(),
        outcome: match number % 11 {
            3 => "cancelled",
            7 => "incomplete",
            _ => "finished",
        }
        .into(),
        handed_over: Some(12),
        restored: Some(12 - number % 2),
        blackout_ns: (number % 11 != 3).then_some(2_000_000_000 + 77_000_000 * (number * 7 % 13)),
        uncertainty_ns: (!number.is_multiple_of(5)).then_some(410),
        clock: Some("counter".into()),
        lost: Some(u64::from(number.is_multiple_of(17))),
        kernels: vec!["7.3.4".into()],
    };
    Message::History((1..=40).rev().map(entry).collect(), None)
}

fn view(screen: Screen, size: (u16, u16), state: &State) -> View {
    let mut view = View::new(size);
    view.screen = screen;
    view.settle(state);
    view
}

fn drawn(state: &State, view: &View) -> Buffer {
    let backend = TestBackend::new(view.size.0, view.size.1);
    let mut terminal = Terminal::new(backend).expect("a terminal");
    terminal
        .draw(|frame| draw(state, view, frame))
        .expect("drawn");
    terminal.backend().buffer().clone()
}

fn lines(buffer: &Buffer) -> String {
    let columns = usize::from(buffer.area.width);
    let mut text = String::new();
    for line in buffer.content.chunks(columns) {
        let line: String = line.iter().map(ratatui::buffer::Cell::symbol).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[test]
fn every_screen_shows_every_state_in_every_size() {
    for (name, tape) in recordings::all() {
        let mut state = state(&tape.records);
        if name == "finished" {
            state.take(history());
        }
        for size in SIZES {
            let mut all = String::new();
            for screen in Screen::ALL {
                let mut view = view(screen, size, &state);
                // The most that can be seen of a file.
                view.details = screen == Screen::Sessions && name == "restore";
                view.settle(&state);
                let _ = writeln!(all, "=== {}", screen.title());
                all.push_str(&lines(&drawn(&state, &view)));
            }
            insta::assert_snapshot!(format!("{name}-{}x{}", size.0, size.1), all);
        }
    }
}

#[test]
fn the_help_tells_every_key() {
    let state = state(&[]);
    for size in SIZES {
        let mut view = view(Screen::Sessions, size, &state);
        view.help = true;
        view.settle(&state);
        let first = lines(&drawn(&state, &view));
        insta::assert_snapshot!(format!("help-{}x{}", size.0, size.1), first);
        let mut seen = first;
        for _ in 0..100 {
            press(KeyCode::Down, &mut view, &state);
            seen.push_str(&lines(&drawn(&state, &view)));
        }
        for binding in lu_user::top::keys::KEYS {
            assert!(seen.contains(binding.help), "{}", binding.help);
        }
    }
}

#[test]
fn mono_has_no_coloured_cell_and_every_theme_says_the_same() {
    for (name, tape) in recordings::all() {
        let state = state(&tape.records);
        for screen in Screen::ALL {
            let mut view = view(screen, (120, 40), &state);
            view.theme = Name::Mono;
            let mono = drawn(&state, &view);
            for cell in &mono.content {
                assert_eq!((cell.fg, cell.bg), (Color::Reset, Color::Reset), "{name}");
            }
            for theme in [Name::Dark, Name::Light] {
                view.theme = theme;
                assert_eq!(lines(&drawn(&state, &view)), lines(&mono), "{name}");
            }
        }
    }
}

#[test]
fn what_is_lost_is_marked_on_every_screen_and_where_it_was_lost() {
    let all = recordings::all();
    let (_, tape) = all.iter().find(|(name, _)| *name == "lossy").expect("one");
    let state = state(&tape.records);
    for size in SIZES {
        for screen in Screen::ALL {
            let text = text(&state, &view(screen, size, &state));
            assert!(text.contains("12 LOST"), "{text}");
        }
        let mut events = view(Screen::Events, size, &state);
        events.begin_filter("kind:nothing".to_owned());
        events.settle(&state);
        let text = text(&state, &events);
        assert!(text.contains("*** 12 events lost here ***"), "{text}");
    }
}

#[test]
fn a_denial_and_an_allowance_are_told_by_words_and_signs() {
    let all = recordings::all();
    let (_, tape) = all.iter().find(|(name, _)| *name == "judged").expect("one");
    let state = state(&tape.records);
    let text = text(&state, &view(Screen::Policy, (120, 40), &state));
    for told in ["✗ deny", "! would-deny", "✓ allow", "operators alone"] {
        assert!(text.contains(told), "{told}: {text}");
    }
}

#[test]
fn a_filter_leaves_what_meets_it_and_sorting_puts_the_unknown_last() {
    let all = recordings::all();
    let (_, tape) = all
        .iter()
        .find(|(name, _)| *name == "restore")
        .expect("one");
    let state = state(&tape.records);
    let count = |filter: &str| {
        let mut view = view(Screen::Sessions, (80, 24), &state);
        press(KeyCode::Char('v'), &mut view, &state);
        view.begin_filter(filter.to_owned());
        view.settle(&state);
        view.rows.all.len()
    };
    // Three sessions of four files; in two of them three are restored.
    assert_eq!(count(""), 12);
    assert_eq!(count("state:restored"), 6);
    assert_eq!(count("state:frozen session:vm-0001"), 1);
    assert_eq!(count("vm-0002"), 4);
    assert_eq!(count("token:0x3"), 3);
    assert_eq!(count("owner:VIRTIOFSD"), 3);
    assert_eq!(count("cgroup:vm-0001.scope"), 4);
    assert_eq!(count("kind:vfio state:restored"), 2);
    assert_eq!(count("colour:red"), 0);
    let mut view = view(Screen::Sessions, (80, 24), &state);
    for _ in 0..8 {
        press(KeyCode::Char('>'), &mut view, &state);
    }
    for _ in 0..2 {
        press(KeyCode::Char('r'), &mut view, &state);
        let update = state.update(None).expect("an update");
        let took: Vec<Option<u64>> = view
            .rows
            .all
            .iter()
            .map(|row| {
                let (_, file) = row.of(update).expect("a row");
                file.expect("a file").restore.map(|span| span.ns())
            })
            .collect();
        let known = took.iter().take_while(|ns| ns.is_some()).count();
        assert_eq!(known, 6, "{took:?}");
        assert!(took[known..].iter().all(Option::is_none), "{took:?}");
        let is_falling = view.wanted.sort.is_reversed;
        assert!(
            took[..known].is_sorted_by(|a, b| if is_falling { a >= b } else { a <= b }),
            "{took:?}"
        );
    }
}

#[test]
fn a_paused_stream_stands_still_and_goes_on_with_all_that_came() {
    let all = recordings::all();
    let (_, tape) = all.iter().find(|(name, _)| *name == "many").expect("one");
    let (first, rest) = tape.records.split_at(5000);
    let mut state = state(first);
    let mut view = view(Screen::Events, (80, 24), &state);
    press(KeyCode::Char(' '), &mut view, &state);
    let before = view.shown.numbers.clone();
    state.take(Message::Records(rest.to_vec()));
    view.settle(&state);
    let kept: Vec<u64> = before
        .iter()
        .copied()
        .filter(|number| *number >= state.events.first())
        .collect();
    assert_eq!(view.shown.numbers, kept);
    press(KeyCode::Char(' '), &mut view, &state);
    let all: Vec<u64> = (state.events.first()..state.events.end()).collect();
    assert_eq!(view.shown.numbers, all);
    assert_eq!(view.cursor().selected, all.len() - 1, "the newest");
}

#[test]
fn a_session_without_files_and_one_whose_files_are_filtered_out_are_told_apart() {
    let tape = recordings::preserving(&recordings::Load {
        sessions: 2,
        files: 0,
    });
    let state = state(&tape.records);
    let mut view = view(Screen::Sessions, (80, 24), &state);
    assert_eq!(view.rows.all.len(), 2);
    view.begin_filter("kind:memfd".to_owned());
    view.settle(&state);
    assert_eq!((view.rows.all.len(), view.rows.hidden), (0, 2));
}

fn press(code: KeyCode, view: &mut View, state: &State) {
    let key = KeyEvent::new(code, KeyModifiers::NONE);
    if let Some(action) = lu_user::top::keys::input(view.mode(), key) {
        view.apply(action, state);
    }
    view.settle(state);
}

/// A journal with a recording in it.
fn journal(tape: &recordings::Tape) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let mut journal = Journal::open(folder.path(), Retention::default()).expect("made");
    journal.push(&tape.records).expect("written");
    journal.settle().expect("written");
    folder
}

/// Takes in what a player says until it waits, and returns how it does.
fn heard(events: &Receiver<app::Event>, state: &mut State) -> Playing {
    loop {
        let event = events.recv().expect("it plays");
        let app::Event::Source(message) = event else {
            panic!("only the player speaks");
        };
        state.take(message);
        if let Some(playing) = state.playing.take() {
            return playing;
        }
    }
}

#[test]
fn a_recording_is_played_paused_stepped_and_goes_to_each_phase_and_back() {
    use PhaseName::{Finish, Freeze, Reboot, Restore, Shutdown, Userspace};
    let tape = recordings::whole(&recordings::FEW);
    let folder = journal(&tape);
    let replay = Replay::open(folder.path(), None).expect("a recording");
    let of = tape.records.len() as u64;
    let mut whole = State::new(String::new());
    replay
        .whole(|record| whole.take(Message::Records(vec![*record])))
        .expect("read");
    assert_eq!(whole.events.end(), state(&tape.records).events.end());
    let (inbox, events) = app::inbox();
    let player = replay.start(inbox);
    let say = |command| player.send(command).expect("it listens");
    let mut state = State::new(String::new());
    say(Command::Toggle);
    let mut playing = heard(&events, &mut state);
    while !playing.is_paused {
        playing = heard(&events, &mut state);
    }
    assert_eq!(playing.of, of);
    let at = playing.at;
    say(Command::Step);
    playing = heard(&events, &mut state);
    assert!(playing.is_paused && playing.at == at + 1, "{playing:?}");
    say(Command::Faster);
    assert_eq!(
        heard(&events, &mut state).speed.to_bits(),
        2.0_f64.to_bits()
    );
    let phase = |state: &State| state.update(None).and_then(Update::stage);
    // It waited for the reboot, which came with the step.
    let mut phases: Vec<PhaseName> = phase(&state).into_iter().collect();
    while playing.at < of {
        say(Command::NextPhase);
        playing = heard(&events, &mut state);
        phases.extend(phase(&state));
    }
    phases.dedup();
    let wanted = [Reboot, Freeze, Shutdown, Userspace, Restore, Finish];
    assert_eq!(phases, wanted);
    let report = |state: &State| state.update(None).map(Report::from);
    assert_eq!(report(&state), report(&whole), "at its end it is the same");
    say(Command::PreviousPhase);
    let back = heard(&events, &mut state);
    assert!(back.at < of, "{back:?}");
    say(Command::PreviousPhase);
    assert!(heard(&events, &mut state).at < back.at);
}

#[test]
fn an_update_whose_records_are_gone_is_said_to_be_so() {
    let folder = journal(&recordings::whole(&recordings::FEW));
    assert!(Replay::open(folder.path(), Some(1)).is_ok());
    let Err(error) = Replay::open(folder.path(), Some(7)) else {
        panic!("there is no update 7");
    };
    assert!(
        error.to_string().contains("lu report --update 7"),
        "{error}"
    );
}

#[test]
fn json_tells_what_the_screen_has_and_the_picture_is_whole() {
    for (name, tape) in recordings::all() {
        let state = state(&tape.records);
        for screen in Screen::ALL {
            let view = view(screen, (80, 24), &state);
            let document = json(&state, &view);
            assert_eq!(document["schema"], "lu.top/1");
            assert_eq!(document["update"].is_null(), name == "empty");
            let picture = svg(&state, &view);
            assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n"));
            assert_eq!(
                picture.matches("<text ").count(),
                picture.matches("</text>").count()
            );
        }
        let sessions = json(&state, &view(Screen::Sessions, (80, 24), &state));
        let files = sessions["rows"].as_array().expect("rows");
        let files = files.iter().filter(|row| row["token"].is_number());
        let owned = files.clone().filter(|row| row["owner"]["pid"].is_number());
        assert_eq!(files.count(), owned.count(), "each has who preserved it");
    }
}

/// xorshift64*: the same numbers everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % end
    }

    fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }

    fn key(&mut self) -> KeyEvent {
        let code = match self.below(8) {
            0 => self.pick(&[
                KeyCode::Enter,
                KeyCode::Esc,
                KeyCode::Tab,
                KeyCode::BackTab,
                KeyCode::Backspace,
                KeyCode::F(1),
                KeyCode::Null,
                KeyCode::Insert,
            ]),
            1 => self.pick(&[
                KeyCode::Up,
                KeyCode::Down,
                KeyCode::PageUp,
                KeyCode::PageDown,
                KeyCode::Home,
                KeyCode::End,
                KeyCode::Left,
                KeyCode::Right,
            ]),
            2 => KeyCode::Char(self.pick(&['é', '漢', '\u{200b}', '\u{7f}', '🦀', '\u{202e}'])),
            _ => KeyCode::Char(char::from(b' ' + self.below(95) as u8)),
        };
        let modifiers = self.pick(&[
            KeyModifiers::NONE,
            KeyModifiers::NONE,
            KeyModifiers::NONE,
            KeyModifiers::SHIFT,
            KeyModifiers::CONTROL,
            KeyModifiers::ALT,
        ]);
        KeyEvent::new(code, modifiers)
    }

    fn event(&mut self) -> Event {
        match self.below(40) {
            0 => Event::Resize(self.below(301) as u16, self.below(101) as u16),
            1 => {
                let texts = [
                    "vm-0001",
                    "state:",
                    "q\r\n:quit\u{1b}[2J",
                    "漢字 🦀",
                    "\0\0",
                    "",
                ];
                Event::Paste(self.pick(&texts).repeat(self.below(5) as usize))
            }
            2 => Event::FocusLost,
            _ => Event::Key(self.key()),
        }
    }
}

/// A million events, over states of all kinds that go on meanwhile.
#[test]
fn whatever_is_typed_pasted_or_resized_nothing_panics_and_the_selection_is_a_row() {
    const EVENTS: u64 = 1_000_000;
    let mut random = Random(0x5eed);
    let tapes = recordings::all();
    let tapes: Vec<_> = tapes.iter().filter(|(name, _)| *name != "many").collect();
    let mut done = 0;
    while done < EVENTS {
        let (name, tape) = tapes[random.below(tapes.len() as u64) as usize];
        let seen = random.below(tape.records.len() as u64 + 1) as usize;
        let (first, rest) = tape.records.split_at(seen);
        let mut rest = rest.iter();
        let mut state = state(first);
        if random.below(2) == 0 {
            state.take(history());
        }
        let mut view = view(Screen::Update, (80, 24), &state);
        for _ in 0..5000 {
            done += 1;
            if random.below(50) == 0
                && let Some(record) = rest.next()
            {
                state.take(Message::Records(vec![*record]));
            }
            app::take(random.event(), &mut state, &mut view);
            view.settle(&state);
            let (rows, cursor) = (view.len(&state), view.cursor());
            assert!(
                cursor.selected < rows.max(1) && cursor.offset <= cursor.selected,
                "{name}: {cursor:?} of {rows} on {:?}",
                view.screen
            );
            if random.below(64) == 0 && view.size.0 > 0 && view.size.1 > 0 {
                drawn(&state, &view);
            }
        }
    }
}
