//! The writing end: a thread of its own, so that no client is ever waited for by whoever collects.
//!
//! Records come to it through a ring of [`BATCHES`]. A client that is so slow that what it has not got yet is written
//! over gets a new snapshot, which comes from the journal's files. So no client costs more than its share of the ring
//! and what is on its way to it.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use caps::CapSet;
use caps::errors::CapsError;
use lu_common::event::Record;
use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::Gid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, broadcast, mpsc, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::{Begin, Error, Hello, Message, PATH, RECORDS, Records, Status};
use crate::journal::{self, read::Snapshot};

/// How many clients there may be.
pub const MOST_CLIENTS: usize = 16;

/// How many batches of at most [`RECORDS`] wait for the slowest client.
const BATCHES: usize = 64;

/// How many of a snapshot's batches are read ahead.
const AHEAD: usize = 2;

/// How often a status is asked for, as long as there are clients.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// How often it is tried to read a snapshot.
const TRIES: u32 = 5;

/// The pause behind a connection that could not be taken.
const PAUSE: Duration = Duration::from_secs(1);

/// How long clients may take to hear the end.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// A socket that has its place, its owner and its mode, and answers nobody yet.
pub struct Listener {
    socket: OwnedFd,
    path: PathBuf,
}

impl Listener {
    /// Makes the socket: for root and, where one is named, a group; at no moment for others. One that nobody answers
    /// at any more is replaced.
    pub fn bind(path: &Path, group: Option<Gid>) -> Result<Self, Error> {
        let failed = |action| {
            move |error: Errno| Error::Io {
                action,
                path: path.into(),
                error: error.into(),
            }
        };
        if path == Path::new(PATH) {
            make_folder(path)?;
        }
        let address = UnixAddr::new(path).map_err(failed("make the socket"))?;
        remove_stale(path, &address)?;
        let socket = unix_socket().map_err(failed("make the socket"))?;
        // The name gets the mode that the socket has (`unix_bind_bsd`, net/unix/af_unix.c): there is no moment
        // between.
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        fchmod(&socket, mode).map_err(failed("restrict the socket"))?;
        socket::bind(socket.as_raw_fd(), &address).map_err(|error| match error {
            Errno::EADDRINUSE => Error::InUse(path.into()),
            error => failed("make the socket")(error),
        })?;
        let listener = Self {
            socket,
            path: path.into(),
        };
        let opened = listener.open_to(group);
        if let Err(error) = opened {
            listener.remove();
            return Err(error);
        }
        Ok(listener)
    }

    fn open_to(&self, group: Option<Gid>) -> Result<(), Error> {
        let failed = |action| {
            move |error: io::Error| Error::Io {
                action,
                path: self.path.clone(),
                error,
            }
        };
        if let Some(group) = group {
            std::os::unix::fs::chown(&self.path, None, Some(group.as_raw()))
                .map_err(failed("give to its group"))?;
        }
        let mode = Permissions::from_mode(0o660);
        fs::set_permissions(&self.path, mode).map_err(failed("set the mode of"))?;
        socket::listen(&self.socket, Backlog::MAXCONN)
            .map_err(|error| failed("listen at")(error.into()))
    }

    /// Takes the name away again.
    pub fn remove(self) {
        remove(&self.path);
    }
}

/// Where it stays the next `lu run` replaces it.
fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        log::info!("{} stays: {error}", path.display());
    }
}

fn unix_socket() -> nix::Result<OwnedFd> {
    socket::socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )
}

/// The folder of the default place, which everybody may look into.
fn make_folder(path: &Path) -> Result<(), Error> {
    let Some(folder) = path.parent() else {
        return Ok(());
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(folder)
        // Whatever the umask is, and whoever of lu has made it.
        .and_then(|()| fs::set_permissions(folder, Permissions::from_mode(0o755)))
        .map_err(|error| Error::Io {
            action: "make the folder",
            path: folder.into(),
            error,
        })
}

/// Removes what a `lu run` that was killed has left.
fn remove_stale(path: &Path, address: &UnixAddr) -> Result<(), Error> {
    let failed = |action| {
        move |error: io::Error| Error::Io {
            action,
            path: path.into(),
            error,
        }
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at")(error)),
        Ok(about) if !about.file_type().is_socket() => return Err(Error::Foreign(path.into())),
        Ok(_) => {}
    }
    let probe = unix_socket().map_err(|error| failed("make the socket")(error.into()))?;
    match socket::connect(probe.as_raw_fd(), address) {
        Err(Errno::ECONNREFUSED) => fs::remove_file(path).map_err(failed("replace")),
        // One whose queue is full says EAGAIN.
        Ok(()) | Err(Errno::EAGAIN) => Err(Error::InUse(path.into())),
        Err(error) => Err(failed("look who answers at")(error.into())),
    }
}

/// What goes through the ring.
#[derive(Clone)]
enum Told {
    /// Records that are in the journal's files.
    Records(Arc<Records>),
    /// The files have got records that were not told.
    Renew,
}

/// The end of `lu run`: hands over what it has written, and never waits.
pub struct Server {
    ring: broadcast::Sender<Told>,
    status: watch::Sender<Option<Arc<[u8]>>>,
    asked: Arc<Notify>,
    path: PathBuf,
    thread: JoinHandle<()>,
}

impl Server {
    /// Answers from now on, in a thread without privileges, for the run `run` that writes the
    /// journal in `folder`.
    pub fn start(listener: Listener, folder: &Path, run: u64) -> io::Result<Self> {
        let (ring, _) = broadcast::channel(BATCHES);
        let (status, _) = watch::channel(None);
        let asked = Arc::new(Notify::new());
        let Listener { socket, path } = listener;
        let mut hello = serde_json::to_vec(&Hello::new(run))?;
        hello.push(b'\n');
        let house = House {
            folder: folder.into(),
            run,
            hello,
            ring: ring.downgrade(),
            status: status.subscribe(),
            asked: Arc::clone(&asked),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let thread = thread::Builder::new()
            .name("socket".to_owned())
            .spawn(move || {
                if let Err(error) = give_up_privileges() {
                    log::warn!("the socket answers nobody: {error}");
                    return;
                }
                if let Err(error) = runtime.block_on(serve(StdListener::from(socket), house)) {
                    log::warn!("the socket answers nobody any more: {error}");
                }
                // Who reads a snapshot for a client that is gone is not waited for.
                runtime.shutdown_background();
            })?;
        Ok(Self {
            ring,
            status,
            asked,
            path,
            thread,
        })
    }

    /// Is notified when somebody wants to know how `lu run` is: at a connection, and each second.
    #[must_use]
    pub fn asked(&self) -> Arc<Notify> {
        Arc::clone(&self.asked)
    }

    /// Tells how `lu run` is.
    pub fn tell(&self, status: &Status) {
        match Message::Status(Box::new(status.clone())).frame() {
            Ok(frame) => {
                self.status.send_replace(Some(frame.into()));
            }
            Err(error) => log::warn!("no status is told: {error}"),
        }
    }

    /// Hands over records that are in the journal's files now; the first one has the number `first` in the run.
    pub fn push(&self, first: u64, records: &[Record]) {
        // Who connects later has them in its snapshot.
        if self.ring.receiver_count() == 0 {
            return;
        }
        for (records, first) in records.chunks(RECORDS).zip((first..).step_by(RECORDS)) {
            let records = Records {
                first: Some(first),
                records: records.to_vec(),
            };
            // Whether anybody is still there does not matter.
            let _ = self.ring.send(Told::Records(Arc::new(records)));
        }
    }

    /// The journal's files have got records of an earlier run.
    pub fn renew(&self) {
        let _ = self.ring.send(Told::Renew);
    }

    /// Takes leave of the clients, as far as they listen.
    pub fn end(self) {
        let Self {
            ring,
            status,
            path,
            thread,
            ..
        } = self;
        remove(&path);
        drop((ring, status));
        // It has no way to panic that would be news.
        let _ = thread.join();
    }
}

/// Those of this thread.
fn give_up_privileges() -> Result<(), CapsError> {
    use CapSet::{Ambient, Effective, Inheritable, Permitted};
    for set in [Ambient, Inheritable, Effective, Permitted] {
        caps::clear(None, set)?;
    }
    Ok(())
}

/// What all clients share.
struct House {
    folder: PathBuf,
    run: u64,
    hello: Vec<u8>,
    /// It lives as long as [`Server`].
    ring: broadcast::WeakSender<Told>,
    status: watch::Receiver<Option<Arc<[u8]>>>,
    asked: Arc<Notify>,
}

async fn serve(listener: StdListener, house: House) -> io::Result<()> {
    let listener = UnixListener::from_std(listener)?;
    let house = Arc::new(house);
    let mut status = house.status.clone();
    let mut clients = JoinSet::new();
    let mut heartbeat = interval(HEARTBEAT);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if clients.len() < MOST_CLIENTS => {
                    clients.spawn(attend(stream, Arc::clone(&house)));
                    house.asked.notify_one();
                }
                Ok((stream, _)) => refuse(&stream, &house.hello),
                Err(error) => {
                    log::info!("nobody can connect: {error}");
                    sleep(PAUSE).await;
                }
            },
            Some(_) = clients.join_next() => {}
            _ = heartbeat.tick(), if !clients.is_empty() => house.asked.notify_one(),
            changed = status.changed() => if changed.is_err() {
                break;
            },
        }
    }
    let leave = async { while clients.join_next().await.is_some() {} };
    // Who does not listen learns it from the connection's end.
    let _ = timeout(LAST_WORDS, leave).await;
    Ok(())
}

/// Says that there are too many. A new connection has room for so much.
fn refuse(stream: &UnixStream, hello: &[u8]) {
    let why = format!("{MOST_CLIENTS} clients are connected already");
    if let Ok(bye) = Message::Bye(why).frame() {
        let _ = stream.try_write(&[hello, &bye].concat());
    }
}

/// One client, until it goes, says anything, or everything ends.
async fn attend(stream: UnixStream, house: Arc<House>) {
    let (mut from, to) = stream.into_split();
    let Some(ring) = house.ring.upgrade().map(|ring| ring.subscribe()) else {
        return;
    };
    let mut client = Client {
        status: house.status.clone(),
        house,
        to,
    };
    let mut said = [0];
    tokio::select! {
        // Nobody has anything to say to us.
        _ = from.read(&mut said) => {}
        gone = client.feed(ring) => {
            if let Err(error) = gone {
                log::debug!("a client is gone: {error}");
            }
        }
    }
}

struct Client {
    house: Arc<House>,
    status: watch::Receiver<Option<Arc<[u8]>>>,
    to: tokio::net::unix::OwnedWriteHalf,
}

impl Client {
    async fn feed(&mut self, mut ring: broadcast::Receiver<Told>) -> io::Result<()> {
        self.to.write_all(&self.house.hello).await?;
        self.status.mark_changed();
        let mut next = self.snapshot().await?;
        loop {
            tokio::select! {
                told = ring.recv() => match told {
                    Ok(Told::Records(batch)) => match batch.from(next) {
                        Some([]) => {}
                        Some(new) => {
                            let first = Some(next);
                            next += new.len() as u64;
                            let records = new.to_vec();
                            self.say(&Message::Records(Records { first, records })).await?;
                        }
                        None => next = self.snapshot().await?,
                    },
                    Ok(Told::Renew) | Err(RecvError::Lagged(_)) => next = self.snapshot().await?,
                    Err(RecvError::Closed) => {
                        return self.say(&Message::Bye("lu run has ended".to_owned())).await;
                    }
                },
                Ok(()) = self.status.changed() => self.say_status().await?,
            }
        }
    }

    /// Sends what the journal's files have. The number of the record that comes next.
    async fn snapshot(&mut self) -> io::Result<u64> {
        let mut tries = TRIES;
        loop {
            let (to, mut messages) = mpsc::channel(AHEAD);
            let house = Arc::clone(&self.house);
            let reader = spawn_blocking(move || read(&house.folder, house.run, &to));
            while let Some(message) = messages.recv().await {
                self.say(&message).await?;
                if self.status.has_changed().unwrap_or(false) {
                    self.say_status().await?;
                }
            }
            // The oldest files go away meanwhile: once more then.
            tries -= 1;
            match reader.await? {
                Ok(end) => return Ok(end),
                Err(_) if tries > 0 => {}
                Err(error) => {
                    self.say(&Message::Bye(error.to_string())).await?;
                    return Err(io::Error::other(error));
                }
            }
        }
    }

    async fn say(&mut self, message: &Message) -> io::Result<()> {
        let frame = message.frame().map_err(io::Error::other)?;
        self.to.write_all(&frame).await
    }

    async fn say_status(&mut self) -> io::Result<()> {
        let frame = self.status.borrow_and_update().clone();
        match frame {
            Some(frame) => self.to.write_all(&frame).await,
            None => Ok(()),
        }
    }
}

/// Reads a snapshot, for as long as somebody takes it. The number of the run's record that comes behind.
fn read(folder: &Path, run: u64, to: &mpsc::Sender<Message>) -> Result<u64, journal::Error> {
    let snapshot = Snapshot::of(folder, run)?;
    let Snapshot { updates, end, .. } = snapshot;
    let mut send = |message| match to.blocking_send(message) {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    };
    if send(Message::SnapshotBegin(Begin { updates, end })).is_break() {
        return Ok(end);
    }
    let mut batch = Records {
        first: None,
        records: Vec::new(),
    };
    snapshot.play(|number, record| {
        let number = number
            .filter(|number| number.run == run)
            .map(|number| number.number);
        let mut flow = ControlFlow::Continue(());
        if batch.records.len() >= RECORDS || batch.next() != number {
            flow = flush(&mut batch, number, &mut send);
        }
        batch.records.push(*record);
        flow
    })?;
    if flush(&mut batch, None, &mut send).is_continue() {
        let _ = send(Message::SnapshotEnd);
    }
    Ok(end)
}

/// Sends a batch, if it has anything, and begins another one.
fn flush(
    batch: &mut Records,
    first: Option<u64>,
    send: &mut impl FnMut(Message) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let next = Records {
        first,
        records: Vec::with_capacity(RECORDS),
    };
    let full = std::mem::replace(batch, next);
    if full.records.is_empty() {
        return ControlFlow::Continue(());
    }
    send(Message::Records(full))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::fs::MetadataExt as _;
    use std::os::unix::net::UnixStream;

    use lu_common::event::Kind;

    use super::*;
    use crate::journal::{Journal, Retention, tape};
    use crate::socket::Client;

    fn record(t_ns: u64) -> Record {
        Record::made(Kind::Open, t_ns, [0; 64])
    }

    /// A `lu run` without hooks.
    struct Run {
        journal: Journal,
        server: Server,
        socket: PathBuf,
        folder: tempfile::TempDir,
    }

    impl Run {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let socket = folder.path().join("lu.sock");
            let journal = Journal::open(folder.path(), Retention::default()).expect("a journal");
            let listener = Listener::bind(&socket, None).expect("bound");
            let server = Server::start(listener, folder.path(), journal.run()).expect("started");
            let mut run = Self {
                journal,
                server,
                socket,
                folder,
            };
            // With a loss it is never quiet: a snapshot has all from here on.
            run.hand_over(&[tape::lost(1)]);
            run
        }

        fn hand_over(&mut self, records: &[Record]) {
            let first = self.journal.appended();
            self.journal.push(records).expect("pushed");
            self.server.push(first, records);
        }

        /// So many more, each with its number as its time.
        fn push(&mut self, count: u64) {
            let first = self.journal.appended();
            let records: Vec<Record> = (first..first + count).map(record).collect();
            self.hand_over(&records);
        }

        fn client(&self) -> Client {
            Client::connect(&self.socket).expect("connected")
        }
    }

    /// Takes what comes until `end` records of the run were there, each once and in order. How many snapshots there
    /// were.
    fn follow(client: &mut Client, end: u64) -> usize {
        let (mut next, mut snapshots) = (0, 0);
        let mut is_snapshot = false;
        while next < end {
            match client.next().expect("more").expect("sense") {
                Message::SnapshotBegin(_) => {
                    snapshots += 1;
                    is_snapshot = true;
                }
                Message::SnapshotEnd => is_snapshot = false,
                Message::Records(Records { first, records }) => {
                    let Some(first) = first else { continue };
                    for (record, number) in records.iter().zip(first..) {
                        assert_eq!(record.header.t_ns, number);
                        // In another snapshot they come again, and no other way.
                        assert!(number == next || (is_snapshot && number < next));
                        next = next.max(number + 1);
                    }
                }
                Message::Status(_) => {}
                Message::Bye(why) => panic!("{why}"),
            }
        }
        assert_eq!(next, end);
        snapshots
    }

    /// Takes what comes until it is `wanted`.
    fn wait_for(client: &mut Client, wanted: impl Fn(&Message) -> bool) -> Message {
        client
            .map(|message| message.expect("sense"))
            .find(wanted)
            .expect("it came")
    }

    #[test]
    fn whenever_somebody_connects_each_record_comes_once() {
        let mut run = Run::new();
        let mut clients = Vec::new();
        for round in 0..10 {
            let mut client = run.client();
            clients.push(thread::spawn(move || follow(&mut client, 50_001)));
            for _ in 0..50 {
                run.push(100);
            }
            assert_eq!(run.journal.appended(), (round + 1) * 5_000 + 1);
        }
        for client in clients {
            assert!(client.join().expect("followed") >= 1);
        }
    }

    #[test]
    fn one_that_does_not_read_holds_nobody_and_gets_what_it_missed_in_a_snapshot() {
        const COUNT: u64 = 200_000;
        let mut run = Run::new();
        run.push(10);
        let mut sleeper = run.client();
        let mut reader = run.client();
        // Both are past their first snapshots.
        for client in [&mut sleeper, &mut reader] {
            wait_for(client, |message| *message == Message::SnapshotEnd);
        }
        let reader = thread::spawn(move || {
            let mut next = 11;
            while next < COUNT {
                if let Message::Records(records) = wait_for(&mut reader, |_| true) {
                    let new = records.from(next);
                    next += new.map_or(0, |new| new.len() as u64);
                }
            }
        });
        for _ in 0..(COUNT - 11).div_ceil(1000) {
            run.push(1000);
        }
        reader.join().expect("all of it");
        // What is not read was not kept for it.
        wait_for(&mut sleeper, |message| {
            matches!(message, Message::SnapshotBegin(_))
        });
        follow(&mut sleeper, run.journal.appended());
    }

    #[test]
    fn who_says_anything_is_dropped() {
        let mut run = Run::new();
        let mut listener = run.client();
        let mut hostile = UnixStream::connect(&run.socket).expect("connected");
        hostile.write_all(&[0xff; 1000]).expect("written");
        let mut rest = Vec::new();
        // Its end, or a reset: what it had not read was thrown away.
        let _ = hostile.read_to_end(&mut rest);
        while hostile.write(&[0]).is_ok() {}
        run.push(1);
        assert_eq!(follow(&mut listener, 2), 1);
    }

    #[test]
    fn of_a_hundred_that_connect_those_that_are_too_many_hear_it_and_places_are_taken_again() {
        let mut run = Run::new();
        run.push(1);
        let mut clients: Vec<Client> = (0..100).map(|_| run.client()).collect();
        let served = clients
            .iter_mut()
            .map(|client| wait_for(client, |message| !matches!(message, Message::Status(_))))
            .filter(|first| !matches!(first, Message::Bye(why) if why.contains("16 clients")))
            .count();
        assert_eq!(served, MOST_CLIENTS);
        drop(clients);
        loop {
            let mut client = run.client();
            let first = wait_for(&mut client, |message| {
                !matches!(message, Message::Status(_))
            });
            if !matches!(first, Message::Bye(_)) {
                break;
            }
        }
    }

    #[test]
    fn at_the_end_clients_hear_it_and_the_socket_is_gone() {
        let mut run = Run::new();
        let mut clients = [run.client(), run.client()];
        for client in &mut clients {
            wait_for(client, |message| *message == Message::SnapshotEnd);
        }
        run.push(3);
        run.server.end();
        for client in &mut clients {
            let mut seen = 0;
            let bye = loop {
                match wait_for(client, |_| true) {
                    Message::Records(batch) => seen += batch.records.len(),
                    Message::Bye(why) => break why,
                    _ => {}
                }
            };
            assert_eq!((seen, bye.as_str()), (3, "lu run has ended"));
            assert!(client.next().is_none());
        }
        assert!(!run.socket.exists());
    }

    #[test]
    fn a_status_is_asked_for_by_who_connects_and_told_to_all() {
        let run = Run::new();
        let asked = run.server.asked();
        let mut clients = [run.client(), run.client()];
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.expect("a runtime").block_on(asked.notified());
        let status = Status {
            t_ns: 5,
            journal: "here".to_owned(),
            events: crate::socket::EventsJson { seen: 1, lost: 2 },
            losses: None,
            hooks: crate::socket::HooksJson::default(),
            recorder: None,
            policy: None,
        };
        run.server.tell(&status);
        for client in &mut clients {
            let wanted = Message::Status(Box::new(status.clone()));
            wait_for(client, |message| *message == wanted);
        }
    }

    #[test]
    fn what_an_earlier_run_left_comes_with_another_snapshot() {
        let mut run = Run::new();
        let mut client = run.client();
        wait_for(&mut client, |message| *message == Message::SnapshotEnd);
        let found = tape::Found {
            run: 7,
            records: vec![(0, record(1)), (1, record(2))],
            senseless: 0,
            last_beat: Record::made(Kind::LastBeat, 3, [0; 64]),
        };
        run.journal.join(&found, &mut Vec::new()).expect("joined");
        run.server.renew();
        wait_for(&mut client, |message| {
            matches!(message, Message::SnapshotBegin(_))
        });
        let earlier = wait_for(
            &mut client,
            |message| matches!(message, Message::Records(batch) if batch.first.is_none()),
        );
        let Message::Records(batch) = earlier else {
            panic!("no records");
        };
        let times: Vec<u64> = batch.records.iter().map(|it| it.header.t_ns).collect();
        assert_eq!(times, [1, 2, 3]);
    }

    #[test]
    fn a_stale_socket_is_replaced_and_what_is_in_use_or_no_socket_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("lu.sock");
        let first = Listener::bind(&path, None).expect("bound");
        assert!(matches!(Listener::bind(&path, None), Err(Error::InUse(_))));
        // As when it is killed.
        drop(first);
        let own = nix::unistd::getegid();
        let second = Listener::bind(&path, Some(own)).expect("replaced");
        let about = fs::metadata(&path).expect("there");
        assert_eq!((about.mode(), about.gid()), (0o140_660, own.as_raw()));
        second.remove();
        assert!(!path.exists());
        for make in [
            |path: &Path| fs::write(path, "mine"),
            |path: &Path| std::os::unix::fs::symlink("/nowhere", path),
        ] {
            make(&path).expect("made");
            let bound = Listener::bind(&path, None).map(drop);
            assert!(matches!(bound, Err(Error::Foreign(_))));
            fs::remove_file(&path).expect("it is still there");
        }
        let missing = folder.path().join("no/lu.sock");
        assert!(matches!(
            Listener::bind(&missing, None),
            Err(Error::Io { .. })
        ));
        let long = folder.path().join("x".repeat(200));
        assert!(matches!(Listener::bind(&long, None), Err(Error::Io { .. })));
    }

    #[test]
    fn a_snapshot_that_cannot_be_read_is_said() {
        let run = Run::new();
        fs::write(run.folder.path().join("1.events"), [7; 200]).expect("written");
        let mut client = run.client();
        let bye = wait_for(&mut client, |message| matches!(message, Message::Bye(_)));
        assert!(matches!(bye, Message::Bye(why) if why.contains("not a journal")));
    }
}
