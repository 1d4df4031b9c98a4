//! `lu trace --from-socket`.

use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use lu_common::event::Record;
use lu_user::journal::tape;
use lu_user::socket::{self, Client, Message, Records};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::trace::Printer;
use super::watch::Sink as _;

/// How many messages may wait to be printed; the others wait in the socket, and then in `lu run`.
const WAITING: usize = 16;

/// Prints what a `lu run` says, until a signal, its end or the time limit; with `all` first what it had seen before.
pub fn follow(
    path: &Path,
    all: bool,
    duration: Option<Duration>,
    printer: Printer,
) -> Result<ExitCode> {
    let client = Client::connect(path)?;
    let hangup = client.hangup().context("cannot follow the socket")?;
    let (to, mut messages) = mpsc::channel(WAITING);
    let reader = thread::spawn(move || {
        for message in client {
            if to.blocking_send(message).is_err() {
                break;
            }
        }
    });
    let mut follower = Follower {
        path: path.display(),
        printer,
        all,
        has_begun: false,
        next: None,
        end: 0,
        lost: 0,
    };
    let done = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(follower.until_told(duration, &mut messages));
    // Whoever still waits for a message, or for room for one, no longer does.
    drop(messages);
    hangup.hang_up();
    let _ = reader.join();
    done?;
    follower.printer.settle()?;
    eprintln!(
        "lu: {} events, {} lost",
        follower.printer.seen(),
        follower.lost
    );
    Ok(ExitCode::SUCCESS)
}

struct Follower<'a> {
    path: std::path::Display<'a>,
    printer: Printer,
    all: bool,
    /// Whether the first snapshot has.
    has_begun: bool,
    /// The number of the record that is to be printed next, once the first snapshot is over.
    next: Option<u64>,
    /// That of the first one behind the snapshot that is under way.
    end: u64,
    lost: u64,
}

impl Follower<'_> {
    async fn until_told(
        &mut self,
        duration: Option<Duration>,
        messages: &mut mpsc::Receiver<Result<Message, socket::Error>>,
    ) -> Result<()> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let limit = async {
            match duration {
                Some(duration) => tokio::time::sleep(duration).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(limit);
        loop {
            tokio::select! {
                message = messages.recv() => match message {
                    Some(message) => self.take(message?)?,
                    None => return Ok(()),
                },
                _ = interrupt.recv() => return Ok(()),
                _ = terminate.recv() => return Ok(()),
                _ = hangup.recv() => return Ok(()),
                () = &mut limit => return Ok(()),
            }
        }
    }

    fn take(&mut self, message: Message) -> Result<()> {
        match message {
            // The journal's files changed while they were read.
            Message::SnapshotBegin(_) if self.all && self.has_begun && self.next.is_none() => {
                bail!("what was seen so far came twice; try again")
            }
            Message::SnapshotBegin(begin) => {
                self.end = begin.end;
                self.has_begun = true;
            }
            Message::Records(records) => self.print(&records)?,
            Message::SnapshotEnd => {
                if self.next.is_none() {
                    eprintln!("lu: follows {}", self.path);
                }
                self.next = self.next.max(Some(self.end));
            }
            Message::Status(_) => {}
            Message::Bye(why) if self.next.is_none() => bail!("{why}"),
            Message::Bye(why) => eprintln!("lu: {why}"),
        }
        self.printer.settle()
    }

    /// Prints what was not printed yet: another snapshot has much that was, and all that was missed.
    fn print(&mut self, Records { first, records }: &Records) -> Result<()> {
        for (record, place) in records.iter().zip(0..) {
            match (self.next, first.map(|first| first + place)) {
                (None, _) if self.all => self.show(record)?,
                (Some(next), Some(number)) if number >= next => {
                    if number > next {
                        // The journal has let them go.
                        let mut lost = tape::lost(number - next);
                        lost.header.t_ns = record.header.t_ns;
                        self.show(&lost)?;
                    }
                    self.show(record)?;
                    self.next = Some(number + 1);
                }
                _ => self.printer.learn(record),
            }
        }
        Ok(())
    }

    fn show(&mut self, record: &Record) -> Result<()> {
        self.lost += record.lost().unwrap_or(0);
        self.printer.record(record)
    }
}
