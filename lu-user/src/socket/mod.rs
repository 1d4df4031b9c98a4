//! What `lu run` sees, for others on the same machine, as it happens: a Unix socket.
//!
//! `docs/socket.md` tells it all. One line of JSON ([`Hello`]), then frames: a type and a length, both 32 bits in the
//! machine's byte order, and as many bytes. Whoever connects gets a snapshot, the records of the journal since nothing
//! was under way, and behind it every record that `lu run` makes. One who is too slow gets another snapshot instead of
//! what it missed. Each record of the run has its number, so that nobody takes one in twice, or misses one unawares.

mod client;
mod server;

use std::io;
use std::path::PathBuf;

use lu_common::event::Record;
use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::export::InForceJson;
use crate::timeline::{Events, Timeline};

pub use client::{Client, Hangup};
pub use server::{Listener, MOST_CLIENTS, Server};

/// Where the socket is unless told otherwise.
pub const PATH: &str = "/run/lu/lu.sock";

/// What [`Hello::schema`] is in this version.
pub const SCHEMA: &str = "lu.socket/1";

/// The longest that a frame's contents may be, in bytes.
pub const LONGEST: u32 = 1 << 20;

/// The longest that the first line may be, in bytes.
const LONGEST_HELLO: u64 = 4096;

/// How many records a frame has at most.
const RECORDS: usize = 512;

/// In place of the first record's number: these have none.
const NO_NUMBER: u64 = u64::MAX;

const RECORD: usize = size_of::<Record>();

/// What goes wrong with a socket.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused a step.
    #[error("cannot {action} {}: {error}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Somebody answers there already.
    #[error("another lu run has the socket {}; give this one its own with --socket", .0.display())]
    InUse(PathBuf),
    /// Something else is in its place.
    #[error("{} is there and is no socket; nothing was changed", .0.display())]
    Foreign(PathBuf),
    /// Nobody answers.
    #[error("no lu run answers at {}: {error}; `lu run --socket PATH` makes the socket", path.display())]
    Connect {
        /// Where.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The other end speaks another version.
    #[error(
        "the lu run there speaks {theirs}, and this lu {SCHEMA}; use the lu that it was started with"
    )]
    Version {
        /// What it calls its own.
        theirs: String,
    },
    /// The other end is no socket of lu's, or has a fault.
    #[error("what came over the socket makes no sense: {0}")]
    Senseless(&'static str),
    /// The connection broke.
    #[error("lu run is gone: {0}")]
    Gone(io::Error),
}

/// The first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`SCHEMA`].
    pub schema: String,
    /// The size of a record, in bytes.
    pub record_size: u32,
    /// `little` or `big`.
    pub byte_order: String,
    /// The version of lu.
    pub lu: String,
    /// This boot, in hex.
    pub boot_id: String,
    /// What tells this `lu run` from others, in decimal: when it began, in nanoseconds since 1970.
    pub run: String,
}

impl Hello {
    /// What a run of this lu says.
    fn new(run: u64) -> Self {
        Self {
            schema: SCHEMA.to_owned(),
            record_size: RECORD as u32,
            byte_order: BYTE_ORDER.to_owned(),
            lu: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: format!(
                "{:032x}",
                u128::from_be_bytes(crate::journal::clocks::boot_id())
            ),
            run: run.to_string(),
        }
    }

    /// The line that somebody has sent, without its end.
    fn parse(line: &[u8]) -> Result<Self, Error> {
        /// What every version has.
        #[derive(Deserialize)]
        struct Any {
            schema: String,
        }
        let any: Any = serde_json::from_slice(line)
            .map_err(|_| Error::Senseless("the first line is no hello"))?;
        if any.schema != SCHEMA {
            return Err(Error::Version { theirs: any.schema });
        }
        let hello: Self = serde_json::from_slice(line)
            .map_err(|_| Error::Senseless("the first line lacks something"))?;
        if hello.record_size as usize != RECORD || hello.byte_order != BYTE_ORDER {
            return Err(Error::Senseless("its records are not laid out as ours"));
        }
        Ok(hello)
    }
}

const BYTE_ORDER: &str = if cfg!(target_endian = "little") {
    "little"
} else {
    "big"
};

/// What comes over the socket, behind the first line.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// All that was known is to be forgotten: what comes is what `lu run` knows.
    SnapshotBegin(Begin),
    /// Records, in order.
    Records(Records),
    /// The snapshot is whole. What comes is new.
    SnapshotEnd,
    /// How `lu run` is. It comes about every second, between any two others.
    Status(Box<Status>),
    /// Nothing more will come, for this reason.
    Bye(String),
}

/// What a snapshot begins with.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Begin {
    /// The number of the newest update that had begun before.
    pub updates: u64,
    /// The number that the run's first record behind the snapshot will have.
    pub end: u64,
}

impl Begin {
    /// The timeline to take the snapshot's records into, and those behind it: its updates have the numbers that the
    /// journal gives them.
    #[must_use]
    pub fn timeline(&self) -> Timeline {
        Timeline::after(self.updates)
    }
}

/// Some records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Records {
    /// The number of the first one in the run, counted from 0; those that follow have the following ones. `None`,
    /// in a snapshot alone: they are said once more, or an earlier run's.
    pub first: Option<u64>,
    /// At least one.
    pub records: Vec<Record>,
}

impl Records {
    /// The number of the record that would come next.
    fn next(&self) -> Option<u64> {
        self.first?.checked_add(self.records.len() as u64)
    }

    /// Those with the number `next` or a higher one; `None` where some are missing between.
    fn from(&self, next: u64) -> Option<&[Record]> {
        let known = next.checked_sub(self.first?)?;
        let known = usize::try_from(known).unwrap_or(usize::MAX);
        Some(self.records.get(known..).unwrap_or_default())
    }
}

/// How `lu run` is. Null is unknown; a name that is not known here is to be passed over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// `CLOCK_MONOTONIC` when that was so, in nanoseconds.
    pub t_ns: u64,
    /// Where the journal is.
    pub journal: String,
    /// What this run has seen.
    pub events: EventsJson,
    /// What was lost on the way, since the hooks were attached.
    pub losses: Option<LossesJson>,
    /// What is attached.
    pub hooks: HooksJson,
    /// Where the flight recorder is; null: there is none.
    pub recorder: Option<String>,
    /// The policy that this `lu run` has put in force; null: none.
    pub policy: Option<PolicyJson>,
}

/// How many events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventsJson {
    /// Were seen.
    pub seen: u64,
    /// Were lost, as far as that is told in the stream.
    pub lost: u64,
}

impl From<Events> for EventsJson {
    fn from(events: Events) -> Self {
        Self {
            seen: events.seen,
            lost: events.lost,
        }
    }
}

/// [`Losses`](crate::collect::Losses), as they are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LossesJson {
    /// Records for which the ring buffer had no room.
    pub ring_full: u64,
    /// Returns of functions whose entry was not remembered.
    pub no_entry: u64,
    /// Runs of a program that the kernel skipped, as far as it was asked.
    pub skipped: u64,
    /// Records without what could not be read.
    pub bad_read: u64,
}

impl From<crate::collect::Losses> for LossesJson {
    fn from(losses: crate::collect::Losses) -> Self {
        let crate::collect::Losses {
            ring_full,
            no_entry,
            skipped,
            bad_read,
        } = losses;
        Self {
            ring_full,
            no_entry,
            skipped,
            bad_read,
        }
    }
}

/// The hooks on the orchestrator.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HooksJson {
    /// `kernel` or `emulated`.
    pub orchestrator: String,
    /// Its interface, `v3` or `sessions`; null where both may come.
    pub interface: Option<String>,
    /// How many are attached.
    pub attached: u64,
    /// Of so many.
    pub of: u64,
    /// Those that are not.
    pub missing: Vec<MissingJson>,
}

/// A hook that is not attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingJson {
    /// On which function.
    pub function: String,
    /// Why.
    pub why: String,
    /// What is unknown from now on.
    pub unknown: String,
}

/// A policy in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyJson {
    /// Its file. Whoever reads it compares the hash with [`InForceJson::sha256`]: it may have changed since.
    pub file: String,
    /// What the kernel says of it; null where it could not be asked.
    pub in_force: Option<InForceJson>,
}

/// What a frame begins with.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct Head {
    kind: u32,
    length: u32,
}

/// The types of frames.
mod kind {
    pub const SNAPSHOT_BEGIN: u32 = 1;
    pub const RECORDS: u32 = 2;
    pub const SNAPSHOT_END: u32 = 3;
    pub const STATUS: u32 = 4;
    pub const BYE: u32 = 5;
}

impl Message {
    /// The frame that says it. What is longer than [`LONGEST`] cannot be sent.
    fn frame(&self) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; size_of::<Head>()];
        let kind = match self {
            Self::SnapshotBegin(begin) => {
                bytes.extend_from_slice(begin.as_bytes());
                kind::SNAPSHOT_BEGIN
            }
            Self::Records(Records { first, records }) => {
                bytes.extend_from_slice(first.unwrap_or(NO_NUMBER).as_bytes());
                bytes.extend_from_slice(records.as_bytes());
                kind::RECORDS
            }
            Self::SnapshotEnd => kind::SNAPSHOT_END,
            Self::Status(status) => {
                serde_json::to_writer(&mut bytes, status)
                    .map_err(|_| Error::Senseless("a status that JSON cannot say"))?;
                kind::STATUS
            }
            Self::Bye(why) => {
                bytes.extend_from_slice(why.as_bytes());
                kind::BYE
            }
        };
        let length = u32::try_from(bytes.len() - size_of::<Head>())
            .ok()
            .filter(|length| *length <= LONGEST)
            .ok_or(Error::Senseless("a frame that is too long"))?;
        bytes[..size_of::<Head>()].copy_from_slice(Head { kind, length }.as_bytes());
        Ok(bytes)
    }

    /// What a frame of this type says; `None`: this lu does not know the type.
    fn parse(kind: u32, bytes: &[u8]) -> Result<Option<Self>, Error> {
        Ok(Some(match kind {
            kind::SNAPSHOT_BEGIN => Self::SnapshotBegin(
                Begin::read_from_bytes(bytes)
                    .map_err(|_| Error::Senseless("a snapshot's beginning of another length"))?,
            ),
            kind::RECORDS => Self::Records(parse_records(bytes)?),
            kind::SNAPSHOT_END if bytes.is_empty() => Self::SnapshotEnd,
            kind::SNAPSHOT_END => return Err(Error::Senseless("a snapshot's end of some length")),
            kind::STATUS => Self::Status(
                serde_json::from_slice(bytes)
                    .map_err(|_| Error::Senseless("a status that is none"))?,
            ),
            kind::BYE => Self::Bye(String::from_utf8_lossy(bytes).into_owned()),
            _ => return Ok(None),
        }))
    }
}

fn parse_records(bytes: &[u8]) -> Result<Records, Error> {
    let (first, rest) = u64::read_from_prefix(bytes)
        .map_err(|_| Error::Senseless("records without their number"))?;
    if rest.is_empty() || !rest.len().is_multiple_of(RECORD) {
        return Err(Error::Senseless("records that are not whole"));
    }
    let first = (first != NO_NUMBER).then_some(first);
    let records: Vec<Record> = rest
        .chunks_exact(RECORD)
        .filter_map(|bytes| Record::read_from_bytes(bytes).ok())
        .collect();
    if first.is_some_and(|first| first.checked_add(records.len() as u64).is_none()) {
        return Err(Error::Senseless("records with numbers that end"));
    }
    Ok(Records { first, records })
}

#[cfg(test)]
mod tests {
    use lu_common::event::Kind;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn record(t_ns: u64) -> Record {
        Record::made(Kind::Open, t_ns, [7; 64])
    }

    fn status(text: String) -> Status {
        Status {
            t_ns: 1,
            journal: text,
            events: EventsJson { seen: 2, lost: 0 },
            losses: None,
            hooks: HooksJson::default(),
            recorder: None,
            policy: None,
        }
    }

    fn messages() -> impl Strategy<Value = Message> {
        prop_oneof![
            (any::<u64>(), any::<u64>())
                .prop_map(|(updates, end)| Message::SnapshotBegin(Begin { updates, end })),
            (
                proptest::option::of(0..u64::MAX - 100),
                vec(any::<u64>(), 1..100)
            )
                .prop_map(|(first, times)| Message::Records(Records {
                    first,
                    records: times.into_iter().map(record).collect(),
                })),
            Just(Message::SnapshotEnd),
            any::<String>().prop_map(|text| Message::Status(Box::new(status(text)))),
            any::<String>().prop_map(Message::Bye),
        ]
    }

    fn hello() -> Vec<u8> {
        let mut line = serde_json::to_vec(&Hello::new(7)).expect("JSON");
        line.push(b'\n');
        line
    }

    fn said(messages: &[Message]) -> Vec<u8> {
        let frames = messages
            .iter()
            .map(|message| message.frame().expect("a frame"));
        std::iter::once(hello()).chain(frames).flatten().collect()
    }

    /// What a client makes of these bytes.
    fn heard(bytes: &[u8]) -> Result<Vec<Result<Message, Error>>, Error> {
        Ok(Client::new(bytes)?.collect())
    }

    proptest! {
        #[test]
        fn what_is_said_is_heard(mut messages in vec(messages(), 0..8)) {
            messages.retain(|message| !matches!(message, Message::Bye(_)));
            messages.push(Message::Bye("the end".to_owned()));
            let heard: Result<Vec<Message>, Error> =
                heard(&said(&messages)).expect("a hello").into_iter().collect();
            prop_assert_eq!(heard.expect("all of it"), messages);
        }

        #[test]
        fn what_is_cut_short_is_heard_to_there_and_is_an_error(
            messages in vec(messages(), 1..4),
            cut in any::<prop::sample::Index>(),
        ) {
            let all = said(&messages);
            let part = &all[..cut.index(all.len())];
            match heard(part) {
                Err(_) => prop_assert!(part.len() < hello().len()),
                Ok(heard) => {
                    let whole = heard.iter().take_while(|message| message.is_ok()).count();
                    let same = heard[..whole].iter().flatten().eq(&messages[..whole]);
                    prop_assert!(same && whole < messages.len());
                    let said_all = heard[..whole].iter().any(|it| matches!(it, Ok(Message::Bye(_))));
                    prop_assert_eq!(heard.len(), whole + usize::from(!said_all));
                }
            }
        }

        #[test]
        fn any_bytes_are_heard_or_refused(bytes in vec(any::<u8>(), 0..5000), with_hello: bool) {
            let bytes = if with_hello { [hello(), bytes].concat() } else { bytes };
            if let Ok(heard) = heard(&bytes) {
                prop_assert!(heard.len() <= bytes.len());
                prop_assert!(matches!(heard.last(), Some(Err(_) | Ok(Message::Bye(_)))));
            }
        }

        #[test]
        fn any_contents_of_a_frame_are_heard_or_refused(kind in 0..8_u32, bytes in vec(any::<u8>(), 0..600)) {
            if let Ok(Some(message)) = Message::parse(kind, &bytes)
                && !matches!(message, Message::Bye(_))
            {
                let again = message.frame().expect("a frame");
                let again = Message::parse(kind, &again[size_of::<Head>()..]);
                prop_assert_eq!(again.expect("the same"), Some(message));
            }
        }
    }

    fn first_error(bytes: &[u8]) -> String {
        match heard(bytes) {
            Err(error) => error.to_string(),
            Ok(heard) => match heard.into_iter().find_map(Result::err) {
                Some(error) => error.to_string(),
                None => "none".to_owned(),
            },
        }
    }

    fn frame(kind: u32, length: u32, bytes: &[u8]) -> Vec<u8> {
        [&hello(), Head { kind, length }.as_bytes(), bytes].concat()
    }

    #[test]
    fn a_length_takes_no_memory_before_it_is_checked() {
        assert!(first_error(&frame(kind::RECORDS, u32::MAX, &[])).contains("too long"));
        assert!(first_error(&frame(kind::RECORDS, LONGEST + 1, &[])).contains("too long"));
        let line = [b'{'; 10_000];
        assert!(first_error(&line).contains("no end"));
        let long = Message::Bye("x".repeat(LONGEST as usize + 1));
        assert!(matches!(long.frame(), Err(Error::Senseless(_))));
    }

    #[test]
    fn records_are_whole_and_have_numbers_that_do_not_end() {
        for (bytes, why) in [
            (&[0; 7][..], "number"),
            (&[0; 8], "whole"),
            (&[0; 8 + RECORD - 1], "whole"),
            (
                &[&[0xff; 7][..], &[0xfe], &[0; RECORD][..]].concat(),
                "none",
            ),
            (
                &[&(u64::MAX - 1).to_ne_bytes()[..], &[0; 2 * RECORD][..]].concat(),
                "end",
            ),
        ] {
            let error = first_error(&frame(kind::RECORDS, bytes.len() as u32, bytes));
            // The connection ends behind it.
            let wanted = if why == "none" { "gone" } else { why };
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn frames_of_a_later_lu_are_passed_over_and_another_version_is_said() {
        let later = frame(99, 3, b"new");
        let bye = Message::Bye(String::new());
        let bytes = [later, bye.frame().expect("a frame")].concat();
        let heard = heard(&bytes).expect("a hello");
        assert!(matches!(&heard[..], [Ok(message)] if *message == bye));
        let other = String::from_utf8(hello()).expect("text");
        let other = other.replace(SCHEMA, "lu.socket/2");
        let error = Client::new(other.as_bytes()).map(drop);
        assert!(matches!(error, Err(Error::Version { theirs }) if theirs == "lu.socket/2"));
        let other = String::from_utf8(hello()).expect("text");
        let other = other.replace(":128", ":256");
        let error = Client::new(other.as_bytes()).map(drop);
        assert!(matches!(error, Err(Error::Senseless(_))));
    }

    #[test]
    fn what_is_known_of_a_batch_is_passed_over_and_a_gap_before_it_is_told() {
        let batch = Records {
            first: Some(10),
            records: (10..15).map(record).collect(),
        };
        for (next, new) in [(10, 5), (12, 3), (15, 0), (u64::MAX, 0)] {
            assert_eq!(batch.from(next).map(<[Record]>::len), Some(new));
        }
        assert_eq!(
            batch.from(12).and_then(|new| new.first()),
            Some(&record(12))
        );
        assert_eq!(batch.from(9), None);
    }
}
