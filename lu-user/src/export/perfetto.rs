//! The report as a trace that Perfetto opens (<https://ui.perfetto.dev>): `TrackEvent` packets, in the protobuf
//! encoding of `protos/perfetto/trace/trace.proto`, of which the messages below are the part that is written.
//!
//! One track holds the blackout, one the phases with their parts, one the kernels; each session has one, with a
//! track below it for each of its files. What needs attention is an
//! instant, and so is what the policy said.

use prost::Message;

use super::report::{FileJson, Report, SessionJson};
use super::size;

/// The most files that get a track: the slowest ones.
const LISTED: usize = 20_000;

/// `TracePacket.trusted_packet_sequence_id`: there is one writer.
const WRITER: u32 = 1;

/// The trace's clock, `BUILTIN_CLOCK_BOOTTIME`, in which the axis of the report is told.
const TRACE_CLOCK: u32 = 6;
/// `BUILTIN_CLOCK_REALTIME`.
const REALTIME: u32 = 1;

/// `Trace`.
#[derive(Message)]
pub struct Trace {
    /// In the order of their times, the descriptions of tracks first.
    #[prost(message, repeated, tag = "1")]
    pub packet: Vec<TracePacket>,
}

/// `TracePacket`.
#[derive(Message)]
pub struct TracePacket {
    /// In nanoseconds of the trace's clock.
    #[prost(uint64, optional, tag = "8")]
    pub timestamp: Option<u64>,
    /// Who wrote it.
    #[prost(uint32, optional, tag = "10")]
    pub trusted_packet_sequence_id: Option<u32>,
    /// How clocks lie to each other.
    #[prost(message, optional, tag = "6")]
    pub clock_snapshot: Option<ClockSnapshot>,
    /// Something on a track.
    #[prost(message, optional, tag = "11")]
    pub track_event: Option<TrackEvent>,
    /// A track.
    #[prost(message, optional, tag = "60")]
    pub track_descriptor: Option<TrackDescriptor>,
}

/// `ClockSnapshot`.
#[derive(Message)]
pub struct ClockSnapshot {
    /// Read at the same moment.
    #[prost(message, repeated, tag = "1")]
    pub clocks: Vec<Clock>,
    /// The trace's clock.
    #[prost(uint32, optional, tag = "2")]
    pub primary_trace_clock: Option<u32>,
}

/// `ClockSnapshot.Clock`.
#[derive(Message)]
pub struct Clock {
    /// A `BuiltinClock`.
    #[prost(uint32, optional, tag = "1")]
    pub clock_id: Option<u32>,
    /// What it said, in nanoseconds.
    #[prost(uint64, optional, tag = "2")]
    pub timestamp: Option<u64>,
}

/// `TrackDescriptor`.
#[derive(Message)]
pub struct TrackDescriptor {
    /// By what events refer to it.
    #[prost(uint64, optional, tag = "1")]
    pub uuid: Option<u64>,
    /// What is shown.
    #[prost(string, optional, tag = "2")]
    pub name: Option<String>,
    /// The track that it is below.
    #[prost(uint64, optional, tag = "5")]
    pub parent_uuid: Option<u64>,
    /// In which order those below are shown: 3, by their rank.
    #[prost(int32, optional, tag = "11")]
    pub child_ordering: Option<i32>,
    /// Its rank.
    #[prost(int32, optional, tag = "12")]
    pub sibling_order_rank: Option<i32>,
}

/// `TrackEvent`.
#[derive(Message)]
pub struct TrackEvent {
    /// A `TrackEvent.Type`: one of [`BEGIN`], [`END`], [`INSTANT`].
    #[prost(int32, optional, tag = "9")]
    pub r#type: Option<i32>,
    /// Where.
    #[prost(uint64, optional, tag = "11")]
    pub track_uuid: Option<u64>,
    /// What is shown.
    #[prost(string, optional, tag = "23")]
    pub name: Option<String>,
    /// What it belongs to.
    #[prost(string, repeated, tag = "22")]
    pub categories: Vec<String>,
    /// What is shown beside it.
    #[prost(message, repeated, tag = "4")]
    pub debug_annotations: Vec<DebugAnnotation>,
}

/// `TYPE_SLICE_BEGIN`.
pub const BEGIN: i32 = 1;
/// `TYPE_SLICE_END`: of the slice that was begun last on the track.
pub const END: i32 = 2;
/// `TYPE_INSTANT`.
pub const INSTANT: i32 = 3;
/// `ChildTracksOrdering.EXPLICIT`.
const BY_RANK: i32 = 3;

/// `DebugAnnotation`.
#[derive(Message)]
pub struct DebugAnnotation {
    /// What it is called.
    #[prost(string, optional, tag = "10")]
    pub name: Option<String>,
    /// A number.
    #[prost(uint64, optional, tag = "3")]
    pub uint_value: Option<u64>,
    /// A text.
    #[prost(string, optional, tag = "6")]
    pub string_value: Option<String>,
}

/// The report as the bytes of a Perfetto trace.
#[must_use]
pub fn perfetto(report: &Report) -> Vec<u8> {
    let mut tracks = Tracks::default();
    let update = tracks.add(
        None,
        format!(
            "update {} · {} · {} · {}",
            report.update,
            report.interface,
            report.orchestrator,
            report.outcome.name()
        ),
    );
    blackout(&mut tracks, update, report);
    let phases = tracks.add(Some(update), "phases".to_owned());
    for phase in &report.phases {
        tracks.slice(
            phases,
            "phase",
            phase.name.name(),
            phase.start_ns,
            phase.ns,
            vec![],
        );
        for part in &phase.parts {
            tracks.slice(
                phases,
                "part",
                part.name.name(),
                part.start_ns,
                part.ns,
                vec![],
            );
        }
    }
    kernels(&mut tracks, update, report);
    if !report.attention.is_empty() {
        let track = tracks.add(Some(update), "needs attention".to_owned());
        for one in &report.attention {
            let notes = vec![
                text("what", one.text.clone()),
                number("count", Some(one.count)),
                text("session", one.session.clone()),
                number("token", one.token),
                text("errno", one.errno.clone()),
            ];
            tracks.instant(track, "attention", one.kind.name(), one.at_ns, notes);
        }
    }
    verdicts(&mut tracks, update, report);
    sessions(&mut tracks, report);
    tracks.finish(report).encode_to_vec()
}

/// What the policy said, each at its time.
fn verdicts(tracks: &mut Tracks, update: u64, report: &Report) {
    if report.verdicts.is_empty() {
        return;
    }
    let track = tracks.add(Some(update), "verdicts".to_owned());
    for verdict in &report.verdicts {
        let name = format!("{} {}", verdict.word(), verdict.operation);
        for at_ns in &verdict.at_ns {
            let notes = vec![
                text("rule", verdict.rule.clone()),
                text("errno", verdict.errno.clone()),
                text("session", verdict.session.clone()),
                text("differs", verdict.tampered.as_ref().map(|it| it.join(", "))),
                text("enforced by", verdict.enforced_by.title().to_owned()),
            ];
            tracks.instant(track, "verdict", &name, Some(*at_ns), notes);
        }
    }
}

fn blackout(tracks: &mut Tracks, update: u64, report: &Report) {
    let Some(blackout) = &report.blackout else {
        return;
    };
    let track = tracks.add(Some(update), "blackout".to_owned());
    let notes = vec![
        number("uncertainty_ns", blackout.uncertainty_ns),
        text("clock", Some(blackout.clock.name().to_owned())),
        text("from", Some(blackout.from.name().to_owned())),
        text("to", Some(blackout.to.clone().into_owned())),
        number("events lost", Some(report.events.lost)),
    ];
    tracks.slice(
        track,
        "blackout",
        "blackout",
        blackout.start_ns,
        Some(blackout.ns),
        notes,
    );
}

/// Which kernel ran when, and between them what nobody saw.
fn kernels(tracks: &mut Tracks, update: u64, report: &Report) {
    let track = tracks.add(Some(update), "kernels".to_owned());
    let (Some(begin), Some(end)) = (report.begin_ns(), report.end_ns()) else {
        return;
    };
    let notes = |index: usize| vec![text("boot_id", report.boot_ids.get(index).cloned())];
    let name = |index: usize| {
        let release = report.kernels.get(index);
        release.map_or_else(|| "kernel".to_owned(), |release| format!("Linux {release}"))
    };
    let Some(jump) = report.jump() else {
        tracks.slice(
            track,
            "kernel",
            &name(0),
            Some(begin),
            Some(end - begin),
            notes(0),
        );
        return;
    };
    let slice = |from: u64, to: u64| (Some(from), to.checked_sub(from));
    let (start, ns) = slice(begin, jump.start_ns);
    tracks.slice(track, "kernel", &name(0), start, ns, notes(0));
    if jump.ns > 0 {
        tracks.slice(
            track,
            "kernel",
            "unseen",
            Some(jump.start_ns),
            Some(jump.ns),
            vec![],
        );
    }
    let (start, ns) = slice(jump.start_ns.saturating_add(jump.ns), end);
    tracks.slice(track, "kernel", &name(1), start, ns, notes(1));
}

fn sessions(tracks: &mut Tracks, report: &Report) {
    let mut room = LISTED;
    for session in &report.sessions {
        let name = match &session.name {
            Some(name) => format!("session {name}"),
            None => "files".to_owned(),
        };
        let track = tracks.add(None, name);
        let outcome = session.outcome.map(|outcome| outcome.name().to_owned());
        for (step, start_ns, ns) in [
            ("freeze", session.freeze_start_ns, session.freeze_ns),
            ("retrieve", session.retrieve_start_ns, session.retrieve_ns),
            ("finish", session.finish_start_ns, session.finish_ns),
        ] {
            let notes = vec![text("outcome", outcome.clone())];
            tracks.slice(track, "session", step, start_ns, ns, notes);
        }
        let mut files: Vec<&FileJson> = session.files.iter().collect();
        if files.len() > room {
            files.sort_by_key(|file| std::cmp::Reverse(file.whole_ns()));
            files.truncate(room);
            files.sort_by_key(|file| file.token);
        }
        room -= files.len();
        for file in files {
            self::file(tracks, track, session, file);
        }
    }
}

fn file(tracks: &mut Tracks, session: u64, of: &SessionJson, file: &FileJson) {
    let mut name = format!("{:#x}", file.token);
    if let Some(kind) = &file.kind {
        name = format!("{name} {kind}");
    }
    if let Some(bytes) = file.bytes {
        name = format!("{name} {}", size(bytes));
    }
    let track = tracks.add(Some(session), name);
    for (step, start_ns, ns) in file.steps() {
        let notes = vec![
            text("session", of.name.clone()),
            number("token", Some(file.token)),
            text("kind", file.kind.clone().map(std::borrow::Cow::into_owned)),
            number("bytes", file.bytes),
            text("outcome", Some(file.outcome.name().to_owned())),
        ];
        tracks.slice(track, "file", step, start_ns, ns, notes);
    }
}

fn text(name: &str, value: impl Into<Option<String>>) -> Option<DebugAnnotation> {
    value.into().map(|value| DebugAnnotation {
        name: Some(name.to_owned()),
        string_value: Some(value),
        uint_value: None,
    })
}

fn number(name: &str, value: Option<u64>) -> Option<DebugAnnotation> {
    value.map(|value| DebugAnnotation {
        name: Some(name.to_owned()),
        uint_value: Some(value),
        string_value: None,
    })
}

/// What is on the tracks so far.
#[derive(Default)]
struct Tracks {
    descriptors: Vec<TrackDescriptor>,
    slices: Vec<Slice>,
    instants: Vec<(u64, TrackEvent)>,
}

struct Slice {
    start_ns: u64,
    end_ns: u64,
    begin: TrackEvent,
}

impl Tracks {
    fn add(&mut self, parent: Option<u64>, name: String) -> u64 {
        let uuid = self.descriptors.len() as u64 + 1;
        self.descriptors.push(TrackDescriptor {
            uuid: Some(uuid),
            name: Some(name),
            parent_uuid: parent,
            child_ordering: Some(BY_RANK),
            // Tracks are made in the order in which they are to be seen.
            sibling_order_rank: i32::try_from(uuid).ok(),
        });
        uuid
    }

    /// Nothing, where it is not known when it was.
    fn slice(
        &mut self,
        track: u64,
        category: &str,
        name: &str,
        start_ns: Option<u64>,
        ns: Option<u64>,
        notes: Vec<Option<DebugAnnotation>>,
    ) {
        if let (Some(start_ns), Some(ns)) = (start_ns, ns) {
            self.slices.push(Slice {
                start_ns,
                end_ns: start_ns.saturating_add(ns),
                begin: event(BEGIN, track, category, name, notes),
            });
        }
    }

    fn instant(
        &mut self,
        track: u64,
        category: &str,
        name: &str,
        at_ns: Option<u64>,
        notes: Vec<Option<DebugAnnotation>>,
    ) {
        if let Some(at_ns) = at_ns {
            let event = event(INSTANT, track, category, name, notes);
            self.instants.push((at_ns, event));
        }
    }

    /// Slices of one track lie beside or within each other: an end belongs to the slice that was begun last. So of
    /// those that begin together the longer one begins first, and what would reach beyond the one around it
    /// ends with it.
    fn finish(self, report: &Report) -> Trace {
        let mut packet = vec![clocks(report)];
        packet.extend(self.descriptors.into_iter().map(|descriptor| TracePacket {
            track_descriptor: Some(descriptor),
            ..written(None)
        }));
        let mut slices = self.slices;
        slices.sort_by_key(|slice| {
            let track = slice.begin.track_uuid;
            (track, slice.start_ns, std::cmp::Reverse(slice.end_ns))
        });
        let mut events = self.instants;
        let mut open: Vec<(u64, Option<u64>)> = Vec::new();
        for slice in slices {
            let track = slice.begin.track_uuid;
            while let Some((end_ns, of)) =
                open.pop_if(|(end_ns, of)| *of != track || *end_ns <= slice.start_ns)
            {
                events.push((end_ns, end(of)));
            }
            let around = open.last().map_or(u64::MAX, |(end_ns, _)| *end_ns);
            open.push((slice.end_ns.min(around), track));
            events.push((slice.start_ns, slice.begin));
        }
        while let Some((end_ns, of)) = open.pop() {
            events.push((end_ns, end(of)));
        }
        // Stable: what happens at one moment stays in the order that closes inner slices first.
        events.sort_by_key(|(at_ns, _)| *at_ns);
        packet.extend(events.into_iter().map(|(at_ns, event)| TracePacket {
            track_event: Some(event),
            ..written(Some(at_ns))
        }));
        Trace { packet }
    }
}

/// What the UI needs to show the time of day.
fn clocks(report: &Report) -> TracePacket {
    let clock = |clock_id: u32, timestamp: Option<u64>| Clock {
        clock_id: Some(clock_id),
        timestamp,
    };
    let snapshot = report
        .began_realtime_ns
        .zip(report.began_ns)
        .map(|(realtime_ns, began_ns)| ClockSnapshot {
            clocks: vec![
                clock(TRACE_CLOCK, Some(began_ns)),
                clock(REALTIME, Some(realtime_ns)),
            ],
            primary_trace_clock: Some(TRACE_CLOCK),
        });
    TracePacket {
        clock_snapshot: snapshot,
        ..written(report.began_ns)
    }
}

fn written(timestamp: Option<u64>) -> TracePacket {
    TracePacket {
        timestamp,
        trusted_packet_sequence_id: Some(WRITER),
        clock_snapshot: None,
        track_event: None,
        track_descriptor: None,
    }
}

fn event(
    r#type: i32,
    track: u64,
    category: &str,
    name: &str,
    notes: Vec<Option<DebugAnnotation>>,
) -> TrackEvent {
    TrackEvent {
        r#type: Some(r#type),
        track_uuid: Some(track),
        name: Some(name.to_owned()),
        categories: vec![category.to_owned()],
        debug_annotations: notes.into_iter().flatten().collect(),
    }
}

fn end(track: Option<u64>) -> TrackEvent {
    TrackEvent {
        r#type: Some(END),
        track_uuid: track,
        name: None,
        categories: Vec::new(),
        debug_annotations: Vec::new(),
    }
}
