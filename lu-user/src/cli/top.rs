//! `lu top`.

use std::collections::HashSet;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use lu_common::event::Record;
use lu_user::attach::Attached;
use lu_user::gate::Machine;
use lu_user::journal::history::History;
use lu_user::journal::read::Recording;
use lu_user::journal::{self, clocks};
use lu_user::orchestrator::{self, Orchestrator};
use lu_user::policy::{self, Source};
use lu_user::socket::{self, Client};
use lu_user::top::app::{self, Inbox, Options};
use lu_user::top::source::{self, BATCH, Message, Replay};
use lu_user::top::{Screen, State, View, json, svg, text, theme};

use super::gate::image_loaded;
use super::watch::{Sink, Watch, give_up_privileges};

/// Show a live update as it happens, or as it happened, on the whole terminal.
///
/// Six screens: where the update is and what needs attention; sessions and files; spans over time; the stream of
/// events; the policy; past updates. It shows what a running `lu run` sees, by its socket; where none runs it watches by
/// itself, and shows what the journal knows of the update under way.
/// With --replay or --update it plays a recording. The key ? shows all keys.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  lu top\n  lu top --policy /etc/lu/policy.toml\n  lu top --update 3                        an update of the journal, again\n  lu top --replay /tmp/journal             a journal from elsewhere\n  lu top --once --screen sessions --filter state:failed --json | jq '.rows[]'"
)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the command line"
)]
pub struct Args {
    /// Where the journal of `lu run` is: past updates, and what is under way.
    #[arg(long, value_name = "DIR", default_value = journal::FOLDER)]
    journal: PathBuf,
    /// Play the recording in a journal's folder, instead of watching.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["duration", "ring_buffer", "callbacks"])]
    replay: Option<PathBuf>,
    /// Play this update of the journal (see `lu history`).
    #[arg(long, value_name = "NUMBER", conflicts_with_all = ["duration", "ring_buffer", "callbacks"])]
    update: Option<u64>,
    /// Where a `lu run` watches; unless told otherwise /run/lu/lu.sock, where one does, else lu top watches itself.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["replay", "update"])]
    socket: Option<PathBuf>,
    /// Watch by itself, whoever else does.
    #[arg(long, conflicts_with_all = ["socket", "replay", "update"])]
    no_socket: bool,
    /// The policy whose rules are shown, and whose conditions the gate asks for.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// The screen to begin with.
    #[arg(long, value_enum, default_value = "update")]
    screen: Screen,
    /// Its filter: words, and field:value.
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// Colours; mono where `NO_COLOR` is set.
    #[arg(long, value_enum)]
    theme: Option<theme::Name>,
    /// Print one screen, of what the journal (or the recording, at its end) knows, and exit.
    #[arg(long)]
    once: bool,
    /// With --once: as one JSON document, schema lu.top/1.
    #[arg(long, requires = "once", conflicts_with = "svg")]
    json: bool,
    /// With --once: as an SVG picture.
    #[arg(long, requires = "once")]
    svg: bool,
    /// With --once: the size of the screen; unless told otherwise the terminal's, else 100x30.
    #[arg(long, value_name = "COLUMNSxLINES", value_parser = size, requires = "once")]
    size: Option<(u16, u16)>,
    /// Where the key D saves what is seen, as text, behind what is there.
    #[arg(long, value_name = "FILE")]
    dump: Option<PathBuf>,
    /// For the test that the terminal is whole after a panic.
    #[arg(long, hide = true, value_name = "DURATION", value_parser = humantime::parse_duration)]
    panic_after: Option<Duration>,
    #[command(flatten)]
    watch: Watch,
}

fn size(text: &str) -> Result<(u16, u16), String> {
    let parsed = text.split_once('x').and_then(|(columns, lines)| {
        let (columns, lines): (u16, u16) = (columns.parse().ok()?, lines.parse().ok()?);
        ((1..=1000).contains(&columns) && (1..=1000).contains(&lines)).then_some((columns, lines))
    });
    parsed.ok_or_else(|| "columns and lines, from 1 to 1000, as 80x24".to_owned())
}

impl Args {
    pub fn run(mut self) -> Result<ExitCode> {
        let read = |path: &PathBuf| -> Result<_> {
            let source = Source::read(path)?;
            let compiled = policy::compile(&source, &policy::Machine)?;
            Ok(Box::new((source, compiled)))
        };
        let policy = self.policy.as_ref().map(read).transpose()?;
        let mut state = State::new(String::new());
        state.policy = policy;
        let mut view = View::new(self.size.unwrap_or((100, 30)));
        view.screen = self.screen;
        view.begin_filter(std::mem::take(&mut self.filter));
        view.theme = self.theme();
        if self.once {
            self.once(state, view)
        } else {
            self.show(state, view)
        }
    }

    fn theme(&self) -> theme::Name {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|it| !it.is_empty());
        match self.theme {
            Some(theme) => theme,
            None if no_color => theme::Name::Mono,
            None => theme::Name::default(),
        }
    }

    /// The folder of the recording that is to be played, where one is.
    fn recording(&self) -> Option<&Path> {
        let of_update = self.update.map(|_| &self.journal);
        self.replay.as_ref().or(of_update).map(PathBuf::as_path)
    }

    /// To the `lu run` that watches already, if one does; one that was named has to.
    fn connect(&self) -> Result<Option<(Client, PathBuf)>> {
        if self.no_socket {
            return Ok(None);
        }
        let path = self.socket.as_deref().unwrap_or(Path::new(socket::PATH));
        match Client::connect(path) {
            Ok(client) => Ok(Some((client, path.into()))),
            Err(error @ socket::Error::Version { .. }) => Err(error.into()),
            Err(error) if self.socket.is_some() => Err(error.into()),
            Err(_) => Ok(None),
        }
    }

    fn once(&self, mut state: State, mut view: View) -> Result<ExitCode> {
        if let Some(folder) = self.recording() {
            state.source = format!("recording {}", folder.display());
            let replay = Replay::open(folder, self.update)?;
            state.take(Message::Begin(Box::new(replay.timeline())));
            let mut last_ns = 0;
            replay.whole(|record| {
                last_ns = record.end_ns().unwrap_or(record.header.t_ns);
                state.take(Message::Records(vec![*record]));
            })?;
            state.now_ns = Some(state.timeline.at(last_ns));
            state.take(source::history(folder));
        } else {
            state.source = format!("journal {}", self.journal.display());
            if !seed(&mut state, &self.journal)? {
                state.ended = Some("it has nothing".to_owned());
            }
            state.take(Message::Machine(machine()));
            state.take(Message::Cgroups(source::cgroups()));
            state.take(source::history(&self.journal));
        }
        if self.size.is_none()
            && let Some((columns, lines)) = terminal_size::terminal_size()
        {
            view.size = (columns.0, lines.0);
        }
        // The waterfall's document has the sessions and files too, which another screen lists.
        if self.json && view.screen == Screen::Waterfall {
            let filter = view.filter().to_owned();
            view.screen = Screen::Sessions;
            view.begin_filter(filter);
            view.settle(&state);
            view.screen = Screen::Waterfall;
        }
        view.settle(&state);
        let mut out = std::io::stdout().lock();
        if self.json {
            let document = json(&state, &view);
            serde_json::to_writer_pretty(&mut out, &document).map_err(std::io::Error::from)?;
            writeln!(out)?;
        } else if self.svg {
            out.write_all(svg(&state, &view).as_bytes())?;
        } else {
            out.write_all(text(&state, &view).as_bytes())?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn show(self, mut state: State, view: View) -> Result<ExitCode> {
        if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
            bail!("standard input and output are no terminal: --once prints one screen");
        }
        let (inbox, events) = app::inbox();
        let mut options = Options {
            dump: self.dump.clone(),
            panic_after: self.panic_after,
            player: None,
        };
        if let Some(folder) = self.recording() {
            state.source = format!("recording {}", folder.display());
            let replay = Replay::open(folder, self.update)?;
            state.take(source::history(folder));
            options.player = Some(replay.start(inbox.clone()));
        } else if let Some((client, path)) = self.connect()? {
            state.source = format!("lu run at {}", path.display());
            source::follow(client, path, inbox.clone());
            state.take(Message::Cgroups(source::cgroups()));
            look(self.journal, inbox.clone());
        } else {
            state.source.push_str("watching");
            // What lu run noted before belongs to the same update.
            if let Err(error) = seed(&mut state, &self.journal) {
                state.history_problem = Some(format!("{error:#}"));
            }
            collect(self.watch, inbox.clone())?;
            look(self.journal, inbox.clone());
        }
        app::run(state, view, inbox, &events, &options)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Takes in what the journal knows of the last update, and of all after it; whether there is anything.
fn seed(state: &mut State, folder: &Path) -> Result<bool> {
    if !folder.is_dir() {
        return Ok(false);
    }
    // What is wrong with the history is told on its screen.
    let history = History::read(folder).ok().flatten();
    let last = history.map(|history| history.last_number()).transpose()?;
    let last = last.filter(|number| *number > 0);
    let recording = match Recording::open(folder, last) {
        Ok(recording) => recording,
        Err(journal::Error::Empty(_)) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    state.take(Message::Begin(Box::new(recording.timeline())));
    let (mut last_ns, mut boot_id) = (0, [0; 16]);
    recording.play(|record| {
        last_ns = record.end_ns().unwrap_or(record.header.t_ns);
        if let Some(anchor) = record.anchor() {
            boot_id = anchor.boot_id;
        }
        state.take(Message::Records(vec![*record]));
        std::ops::ControlFlow::Continue(())
    })?;
    let is_this_boot = boot_id == clocks::boot_id();
    let now_ns = if is_this_boot {
        clocks::now_ns()
    } else {
        last_ns
    };
    state.now_ns = Some(state.timeline.at(now_ns));
    Ok(true)
}

/// What the gate asks of the machine. The device is not opened: whoever needs it would be refused meanwhile.
fn machine() -> Machine {
    Machine {
        in_kernel: orchestrator::in_kernel(),
        image_loaded: image_loaded(),
        opened: None,
    }
}

/// Attaches the hooks and collects in a thread of its own; returns once they are attached.
fn collect(watch: Watch, inbox: Inbox) -> Result<()> {
    let (ready, attached) = channel();
    let feed = Feed {
        inbox: inbox.clone(),
        ready,
        batch: Vec::new(),
        cgroups: HashSet::new(),
        looked: None,
    };
    let thread = thread::spawn(move || {
        let mut feed = feed;
        let ended = watch.watch(&mut feed);
        drop(feed);
        match ended {
            Ok(_) => {
                let _ = inbox.send(Message::Ended("it was told to end".to_owned()));
                Ok(())
            }
            Err(error) => {
                let _ = inbox.send(Message::Ended(format!("{error:#}")));
                Err(error)
            }
        }
    });
    if attached.recv().is_err() {
        let ended = thread.join();
        return match ended {
            Ok(Err(error)) => Err(error),
            _ => bail!("the collector ended before it had begun"),
        };
    }
    // The collecting thread has given up its own.
    give_up_privileges(false)
}

/// What is known of cgroups is looked at again after this, at the earliest.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Sends records to the screen.
struct Feed {
    inbox: Inbox,
    ready: Sender<()>,
    batch: Vec<Record>,
    /// Those whose paths were sent, or are not to be found.
    cgroups: HashSet<u64>,
    looked: Option<Instant>,
}

impl Feed {
    fn send(&self, message: Message) -> Result<()> {
        if self.inbox.send(message) {
            return Ok(());
        }
        bail!("the screen has ended")
    }
}

impl Sink for Feed {
    fn begin(
        &mut self,
        _attached: &Attached,
        _orchestrators: &[Orchestrator],
        _stop: &AtomicBool,
    ) -> Result<()> {
        self.batch.extend([clocks::kernel(), clocks::anchor()]);
        self.send(Message::Machine(machine()))?;
        Ok(())
    }

    fn ready(&mut self, _attached: &Attached) -> Result<()> {
        self.settle()?;
        self.ready.send(()).context("the screen has ended")
    }

    fn record(&mut self, record: &Record) -> Result<()> {
        self.batch.push(*record);
        if self.batch.len() == BATCH {
            let batch = std::mem::take(&mut self.batch);
            self.send(Message::Records(batch))?;
        }
        Ok(())
    }

    fn settle(&mut self) -> Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let ids = self.batch.iter().filter(|record| record.has_task());
        let is_new = { ids }.any(|record| !self.cgroups.contains(&record.header.cgroup_id));
        let batch = std::mem::take(&mut self.batch);
        if is_new && self.looked.is_none_or(|at| at.elapsed() > LOOK_AGAIN) {
            self.looked = Some(Instant::now());
            let found = source::cgroups();
            self.cgroups.extend(found.iter().map(|(id, _)| *id));
            let seen = batch.iter().map(|record| record.header.cgroup_id);
            self.cgroups.extend(seen);
            self.send(Message::Cgroups(found))?;
        }
        self.send(Message::Records(batch))
    }
}

/// How often it is looked at what no record tells.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Looks at the machine and at the history from time to time, and tells of what has changed.
fn look(journal: PathBuf, inbox: Inbox) {
    thread::spawn(move || {
        let (mut told, mut changed) = (None, None);
        loop {
            let is = machine();
            if told.as_ref() != Some(&is) {
                told = Some(is.clone());
                if !inbox.send(Message::Machine(is)) {
                    return;
                }
            }
            let files = journal::history::FILES;
            let times = files.map(|file| {
                journal
                    .join(file)
                    .metadata()
                    .and_then(|it| it.modified())
                    .ok()
            });
            if changed.as_ref() != Some(&times) {
                changed = Some(times);
                if !inbox.send(source::history(&journal)) {
                    return;
                }
            }
            thread::sleep(LOOK_EVERY);
        }
    });
}
