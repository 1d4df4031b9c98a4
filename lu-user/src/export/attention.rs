//! What somebody should look at: the troubles of an update, each with who, what and how often.

use lu_common::policy::{Decision, Operation};
use serde::{Deserialize, Serialize};

use super::report::CallerJson;
use super::{duration, errno_name};
use crate::timeline::{
    Caller, FileOutcome, FileStep, Outcome, PhaseName, Session, SessionOutcome, Update, named,
};

/// The most that are listed.
const LISTED: usize = 100;

named! {
    /// What is wrong, the most serious first.
    pub enum AttentionKind {
        /// A request got through that is not the one that the policy judged.
        Tampered = "tampered",
        /// A kexec came without a freeze: what was preserved is gone.
        Lost = "lost",
        /// A session was closed while it could not finish: nobody can reach it until the next kexec.
        Stranded = "stranded",
        /// A file could not be given out in the new kernel.
        RestoreFailed = "restore-failed",
        /// A session (v3: the device) was closed before the kexec, and its files were not handed over.
        Dropped = "dropped",
        /// Files were handed over, and nobody asked for them before FINISH.
        Unclaimed = "unclaimed",
        /// A session was handed over, and nobody has asked for it.
        Unretrieved = "unretrieved",
        /// lu began to watch the new kernel late: what happened there before is unknown.
        Unwatched = "unwatched",
        /// A freeze failed.
        FreezeFailed = "freeze-failed",
        /// A prepare failed (v3).
        PrepareFailed = "prepare-failed",
        /// The policy refused a request.
        Denied = "denied",
        /// Somebody was refused the device, because another one had it open.
        DeviceBusy = "device-busy",
        /// The old kernel's CPUs stopped before lu had taken its last events, and nobody knows how many they were.
        CutOff = "cut-off",
        /// Events were lost, so what is told may be incomplete.
        EventsLost = "events-lost",
    }
}

/// One thing to look at; what does not belong to it, or is unknown, is null.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttentionJson {
    /// What it is.
    pub kind: AttentionKind,
    /// The same for people.
    pub text: String,
    /// In which session.
    pub session: Option<String>,
    /// Which file; null also where there are several.
    pub token: Option<u64>,
    /// With which errno, by its name.
    pub errno: Option<String>,
    /// Who did it: closed the session; was refused the device.
    pub by: Option<CallerJson>,
    /// Who held the device.
    pub holder: Option<CallerJson>,
    /// How often, or how many.
    pub count: u64,
    /// When, the last time; nanoseconds as in the phases.
    #[serde(default)]
    pub at_ns: Option<u64>,
}

impl AttentionJson {
    fn new(kind: AttentionKind, count: u64, text: String) -> Self {
        Self {
            kind,
            text,
            session: None,
            token: None,
            errno: None,
            by: None,
            holder: None,
            count,
            at_ns: None,
        }
    }

    fn at(self, at_ns: Option<u64>) -> Self {
        Self { at_ns, ..self }
    }

    fn of(self, session: Option<&str>) -> Self {
        Self {
            session: session.map(str::to_owned),
            ..self
        }
    }

    fn with(self, token: Option<u64>) -> Self {
        Self { token, ..self }
    }

    fn failed(self, errno: Option<i32>) -> Self {
        Self {
            errno: errno.map(errno_name),
            ..self
        }
    }

    fn by(self, by: Option<&Caller>) -> Self {
        Self {
            by: by.map(CallerJson::from),
            ..self
        }
    }
}

/// Everything, the most serious first; and how much more there is than is listed.
pub(crate) fn of(update: &Update) -> (Vec<AttentionJson>, u64) {
    let mut all = Vec::new();
    sessions(update, &mut all);
    failures(update, &mut all);
    all.extend(unwatched(update));
    all.extend(verdicts(update));
    for (refusal, refused) in &update.troubles.refusals {
        let text = format!(
            "{} was refused the device (EBUSY){}: {} had it open",
            who(refusal.refused.as_ref()),
            times(refused.count),
            who(refusal.holder.as_ref()),
        );
        all.push(AttentionJson {
            holder: refusal.holder.as_ref().map(CallerJson::from),
            ..AttentionJson::new(AttentionKind::DeviceBusy, refused.count, text)
                .at(Some(refused.last_ns))
                .failed(Some(libc::EBUSY))
                .by(refusal.refused.as_ref())
        });
    }
    if update.is_cut_off() {
        let text = "the end of the freeze was not seen: the CPUs stopped before lu had taken the last events";
        all.push(AttentionJson::new(AttentionKind::CutOff, 1, text.into()));
    }
    if update.events.lost > 0 {
        let text = format!(
            "{} lost: what is told here may be incomplete",
            many(update.events.lost, "event was", "events were")
        );
        all.push(AttentionJson::new(
            AttentionKind::EventsLost,
            update.events.lost,
            text,
        ));
    }
    // A time beyond the kexec that no clock spans has no place.
    if update.is_unspanned() {
        for one in &mut all {
            one.at_ns = None;
        }
    }
    // Stable: what is alike stays in its order.
    all.sort_by_key(|one| one.kind);
    let left_out = all.len().saturating_sub(LISTED) as u64;
    all.truncate(LISTED);
    (all, left_out)
}

/// What became of sessions and their files. v3's flat space is a session without a name.
fn sessions(update: &Update, all: &mut Vec<AttentionJson>) {
    for session in update.sessions.values().filter(|session| !session.is_own()) {
        for outcome in [
            FileOutcome::Lost,
            FileOutcome::Dropped,
            FileOutcome::Unclaimed,
        ] {
            all.extend(files(update, session, outcome));
        }
        all.extend(left_behind(update, session));
    }
}

/// Those of a session's files that came to one outcome.
fn files(update: &Update, session: &Session, outcome: FileOutcome) -> Option<AttentionJson> {
    let with_it = session
        .files
        .iter()
        .filter(|(_, file)| file.outcome == outcome);
    let tokens: Vec<u64> = with_it.map(|(token, _)| *token).collect();
    let (which, were) = match tokens[..] {
        [] => return None,
        [token] => (format!("the file {token:#x}"), "was"),
        _ => (format!("{} files", tokens.len()), "were"),
    };
    let name = session.name.as_deref();
    let which = format!("{which}{}", place(name));
    let (kind, text, at_ns, by) = match outcome {
        FileOutcome::Lost => (
            AttentionKind::Lost,
            format!("{which} went with the old kernel: the kexec came without a freeze"),
            update.ended_ns,
            None,
        ),
        FileOutcome::Dropped if is_superseded(update, session) => return None,
        FileOutcome::Dropped => {
            let by = match name {
                Some(_) => session.closed_by.as_ref(),
                None => update.troubles.closed_by.as_ref(),
            };
            let text = format!(
                "{which} {were} not handed over: {} closed the {} before the kexec, or ended",
                who(by),
                if name.is_some() { "session" } else { "device" },
            );
            let at_ns = session.closed_ns.or(update.troubles.closed_ns);
            (AttentionKind::Dropped, text, at_ns, by)
        }
        FileOutcome::Unclaimed => (
            AttentionKind::Unclaimed,
            format!("nobody asked for {which} before FINISH, which discards what is left"),
            session
                .finish
                .or(update.phase(PhaseName::Finish))
                .map(|span| span.end_ns),
            None,
        ),
        _ => return None,
    };
    let token = tokens.first().copied().filter(|_| tokens.len() == 1);
    Some(
        AttentionJson::new(kind, tokens.len() as u64, text)
            .of(name)
            .with(token)
            .at(at_ns)
            .by(by),
    )
}

/// A session that nobody has got hold of in the new kernel, or can any more.
fn left_behind(update: &Update, session: &Session) -> Option<AttentionJson> {
    let name = session.name.as_deref()?;
    let (kind, text) = match session.outcome {
        SessionOutcome::Stranded => (
            AttentionKind::Stranded,
            "was closed in the new kernel while it could not finish (EBUSY): out of reach until the next \
             kexec",
        ),
        SessionOutcome::Frozen if update.is_beyond_kexec() => (
            AttentionKind::Unretrieved,
            "was handed over, and was not seen to be asked for",
        ),
        _ => return None,
    };
    Some(
        AttentionJson::new(kind, 1, format!("session {name} {text}"))
            .of(Some(name))
            .at(session.closed_ns),
    )
}

/// Whether a session of the same name came after one that was closed.
fn is_superseded(update: &Update, closed: &Session) -> bool {
    closed.name.is_some()
        && update
            .sessions
            .values()
            .skip_while(|session| !std::ptr::eq(*session, closed))
            .skip(1)
            .any(|session| session.name == closed.name)
}

fn failures(update: &Update, all: &mut Vec<AttentionJson>) {
    let troubles = &update.troubles;
    let after_freeze = || match (update.phase(PhaseName::Freeze).is_some(), update.outcome) {
        (true, _) => "; a later attempt went through",
        (false, Outcome::InProgress) => "; it has not been tried again with success",
        (false, _) => "; the update was given up",
    };
    let mut is_named = false;
    for (failed, failure) in &troubles.failures {
        let file = format!(
            "the file {:#x}{}",
            failed.token,
            place(failed.session.as_deref())
        );
        let (errno, count) = (errno_name(failure.errno), times(failure.count));
        let (kind, text) = match failed.step {
            FileStep::Freeze => {
                is_named = true;
                (
                    AttentionKind::FreezeFailed,
                    format!(
                        "{file} could not be frozen: {errno}{count}{}",
                        after_freeze()
                    ),
                )
            }
            FileStep::Prepare => (
                AttentionKind::PrepareFailed,
                format!("{file} could not be prepared: {errno}{count}"),
            ),
            FileStep::Restore => (
                AttentionKind::RestoreFailed,
                format!(
                    "{file} could not be restored: {errno}{count}{}",
                    if failure.count > 1 {
                        "; the error sticks, trying again is of no use"
                    } else {
                        ""
                    }
                ),
            ),
        };
        all.push(
            AttentionJson::new(kind, failure.count, text)
                .of(failed.session.as_deref())
                .with(Some(failed.token))
                .at(Some(failure.last_ns))
                .failed(Some(failure.errno)),
        );
    }
    if troubles.failed_freezes > 0 && !is_named {
        let text = format!(
            "the freeze failed{}{}, and no file's callback was seen to{}",
            troubles
                .freeze_errno
                .map_or_else(String::new, |errno| format!(": {}", errno_name(errno))),
            times(troubles.failed_freezes),
            after_freeze()
        );
        all.push(
            AttentionJson::new(AttentionKind::FreezeFailed, troubles.failed_freezes, text)
                .at(troubles.freeze_failed_ns)
                .failed(troubles.freeze_errno),
        );
    }
}

/// What the policy refused, and what got around it.
fn verdicts(update: &Update) -> impl Iterator<Item = AttentionJson> {
    update.verdicts.said.iter().filter_map(|(said, times)| {
        let operation = said.operation.map_or("a request", Operation::name);
        let what = format!("{operation}{}", place(said.session.as_deref()));
        let rule = said.rule.as_ref();
        let (kind, text) = match &said.differs {
            Some(differs) => (
                AttentionKind::Tampered,
                format!(
                    "{} got {what} through, and it was not the request that was judged ({}){}; {} noticed it",
                    who(times.by.as_ref()),
                    differs.join(", "),
                    self::times(times.count),
                    said.enforcer.title(),
                ),
            ),
            None if said.decision == Decision::Deny => (
                AttentionKind::Denied,
                format!(
                    "{} was refused {what}{}{}{}; {} enforces the policy",
                    who(times.by.as_ref()),
                    rule.map_or_else(String::new, |rule| format!(" by rule \"{rule}\"")),
                    said.errno
                        .map_or_else(String::new, |errno| format!(" ({})", errno_name(errno))),
                    self::times(times.count),
                    said.enforcer.title(),
                ),
            ),
            None => return None,
        };
        let one = AttentionJson::new(kind, times.count, text)
            .of(said.session.as_deref())
            .with(times.token.filter(|_| times.count == 1))
            .at(Some(times.last_ns))
            .by(times.by.as_ref());
        Some(match kind {
            AttentionKind::Denied => one.failed(said.errno),
            _ => one,
        })
    })
}

/// A late start matters where it leaves a question: a file or a session of which nobody knows what became.
fn unwatched(update: &Update) -> Option<AttentionJson> {
    let watched_ns = update.watched_ns?;
    let open = update
        .sessions
        .values()
        .filter(|session| !session.is_own())
        .filter(|session| {
            session.outcome == SessionOutcome::Frozen
                || session.files.values().any(|file| {
                    file.outcome == FileOutcome::Unseen
                        || (session.name.is_none() && file.outcome == FileOutcome::Frozen)
                })
        })
        .count() as u64;
    if open == 0 {
        return None;
    }
    let since = update
        .booted_ns()
        .and_then(|booted_ns| watched_ns.checked_sub(booted_ns));
    let text = format!(
        "lu watched the new kernel only from {} on: what became of {} before that is unknown",
        since.map_or_else(
            || "some time after its start".to_owned(),
            |since| format!("{} after its first process", duration(since))
        ),
        match update.interface {
            Some(lu_common::uapi::Interface::V3) => "the files".to_owned(),
            _ => many(open, "session", "sessions"),
        }
    );
    Some(AttentionJson::new(AttentionKind::Unwatched, open, text).at(Some(watched_ns)))
}

fn place(session: Option<&str>) -> String {
    session.map_or_else(String::new, |name| format!(" of session {name}"))
}

fn who(caller: Option<&Caller>) -> String {
    caller.map_or_else(
        || "somebody (not seen)".to_owned(),
        |caller| format!("{} (pid {})", caller.comm, caller.pid),
    )
}

fn times(count: u64) -> String {
    if count > 1 {
        format!(", {count} times")
    } else {
        String::new()
    }
}

fn many(count: u64, one: &str, more: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { more })
}
