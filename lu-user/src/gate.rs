//! Whether a live update may begin: what the policy asks for before a kexec, held against what is known.
//!
//! Pure: who asks has looked at the machine and read the journal.

use lu_common::event::session_id_of;
use lu_common::policy::{Need, Standing, Text, TokenKey, Usage, need};
use nix::errno::Errno;
use serde::Serialize;

use crate::export::{AttentionKind, attention, errno_name};
use crate::policy::{Compiled, Mode, Says, Source};
use crate::timeline::{FileOutcome, Session, Sight, Timeline, named};

/// The value of the field `schema`.
pub const SCHEMA: &str = "lu.gate/1";

/// What was found on the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Whether the orchestrator is the kernel's.
    pub in_kernel: bool,
    /// Whether an image is loaded (`/sys/kernel/kexec_loaded`); `None`: that cannot be read.
    pub image_loaded: Option<bool>,
    /// What became of an open of the device, which was closed at once; `None`: nobody tried.
    pub opened: Option<Result<(), Errno>>,
}

/// What is known of what is preserved.
pub enum Journal<'a> {
    /// lu watches, and this is what it has seen.
    Current(&'a Timeline),
    /// It does not, for this reason.
    Unknown(String),
}

named! {
    /// Whether a condition is met.
    pub enum State {
        /// It is.
        Met = "met",
        /// It is not.
        NotMet = "not-met",
        /// Nobody knows.
        Unknown = "unknown",
    }
}

impl From<Option<bool>> for State {
    fn from(is_met: Option<bool>) -> Self {
        match is_met {
            Some(true) => Self::Met,
            Some(false) => Self::NotMet,
            None => Self::Unknown,
        }
    }
}

/// One condition.
#[derive(Clone, Debug, Serialize)]
pub struct Condition {
    /// What it is about: `image`, `device`, `journal`, `attention`, `require`, `gate`.
    pub about: &'static str,
    /// The policy's rule that asks for it; null: it is always asked for.
    pub rule: Option<String>,
    /// Whether it is met.
    pub state: State,
    /// Whether the update may begin as far as this is concerned.
    pub ready: bool,
    /// Why, for people.
    pub reason: String,
}

/// The answer.
#[derive(Clone, Debug, Serialize)]
pub struct Gate {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// Whether an update may begin.
    pub ready: bool,
    /// Every condition, those that are always asked for first.
    pub conditions: Vec<Condition>,
}

impl Gate {
    /// Holds everything that is asked for against what is known.
    #[must_use]
    pub fn new(
        machine: &Machine,
        journal: &Journal<'_>,
        policy: Option<(&Source, &Compiled)>,
    ) -> Self {
        let known = Known { machine, journal };
        let mut conditions = vec![known.image(), known.device()];
        conditions.extend(known.journal());
        if let Some((source, compiled)) = policy {
            let needs = compiled.policy.needs.iter();
            let needs = needs.take_while(|need| need.sort != need::NONE);
            conditions.extend(needs.filter_map(|need| known.need(source, compiled, need)));
        }
        Self {
            schema: SCHEMA,
            ready: conditions.iter().all(|condition| condition.ready),
            conditions,
        }
    }
}

struct Known<'a> {
    machine: &'a Machine,
    journal: &'a Journal<'a>,
}

/// One that is always asked for: what is unknown is not ready.
fn always(about: &'static str, is_met: Option<bool>, reason: String) -> Condition {
    Condition {
        about,
        rule: None,
        state: is_met.into(),
        ready: is_met == Some(true),
        reason,
    }
}

impl Known<'_> {
    fn image(&self) -> Condition {
        let is_loaded = self.is_image_loaded();
        let reason = match is_loaded {
            _ if !self.machine.in_kernel => "an emulated kexec needs no image",
            Some(true) => "the image of a kernel is loaded",
            Some(false) => "no image of a kernel is loaded: kexec -l, or kexec_file_load(2)",
            None => "/sys/kernel/kexec_loaded cannot be read",
        };
        always("image", is_loaded, reason.to_owned())
    }

    fn device(&self) -> Condition {
        let reason = match self.machine.opened {
            Some(Ok(())) => "the device can be opened".to_owned(),
            Some(Err(Errno::EBUSY)) => "somebody has the device open (EBUSY)".to_owned(),
            Some(Err(errno)) => {
                format!("the device cannot be opened: {}", errno_name(errno as i32))
            }
            None => match self.timeline().and_then(Timeline::holder) {
                Some(holder) => {
                    let reason = format!("{} (pid {}) has it open", holder.comm, holder.pid);
                    return always("device", Some(false), reason);
                }
                None => "nobody was seen to have it open, and it was not tried".to_owned(),
            },
        };
        let is_free = self.machine.opened.map(|opened| opened.is_ok());
        always("device", is_free, reason)
    }

    /// Whether lu watches, and what needs attention in the updates under way.
    fn journal(&self) -> Vec<Condition> {
        let timeline = match self.journal {
            Journal::Unknown(why) => return vec![always("journal", None, why.clone())],
            Journal::Current(timeline) => timeline,
        };
        let mut all = vec![always("journal", Some(true), "lu watches".to_owned())];
        let under_way = timeline.updates().filter(|it| it.ended_ns.is_none());
        let told: Vec<Condition> = under_way
            .flat_map(|update| attention::of(update).0)
            // A request that was refused did no harm, and whether the device is free is known.
            .filter(|one| !matches!(one.kind, AttentionKind::Denied | AttentionKind::DeviceBusy))
            .map(|one| {
                let reason = format!("{}: {}", one.kind.name(), one.text);
                always("attention", Some(false), reason)
            })
            .collect();
        if told.is_empty() {
            let reason = "nothing in the update under way needs attention";
            all.push(always("attention", Some(true), reason.to_owned()));
        }
        all.extend(told);
        all
    }

    /// What a policy asks for before the kexec.
    fn need(&self, source: &Source, compiled: &Compiled, need: &Need) -> Option<Condition> {
        let rule = source.rules.get(need.rule as usize)?;
        let name = || match &rule.says {
            Says::Tokens(session, _) | Says::Files(session, _) => format!("session {session}"),
            _ => String::new(),
        };
        let (is_met, what) = match need.sort {
            need::TOKEN => (
                self.is_preserved(&need.of),
                format!("token {:#x} of {} preserved", need.of.token, name()),
            ),
            need::FILES => {
                let usage = self.session(&need.of.session);
                (
                    usage.map(|usage| usage.files >= need.of.token),
                    format!(
                        "{} files of {} preserved{}",
                        need.of.token,
                        name(),
                        usage.map_or_else(String::new, |usage| format!(
                            ", there are {}",
                            usage.files
                        ))
                    ),
                )
            }
            need::DEVICE_FREE => (self.is_device_free(), "nobody has the device open".into()),
            need::IMAGE_LOADED => (self.is_image_loaded(), "an image is loaded".into()),
            need::NO_LOST_SESSION => (
                self.is_no_session_lost(),
                "no session with files was closed".into(),
            ),
            _ => return None,
        };
        let is_denied_on_error = compiled.policy.deny_on_error & (1 << need.rule) != 0;
        let is_enforced = rule.mode == Mode::Enforce;
        let (ready, why) = match is_met {
            Some(true) => (true, ""),
            Some(false) if !is_enforced => (true, "; the rule is not enforced (mode monitor)"),
            Some(false) => (false, ""),
            None if is_denied_on_error && is_enforced => (
                false,
                "; lu has not seen enough to know (on_error = \"deny\")",
            ),
            None => (
                true,
                "; lu has not seen enough to know (on_error = \"allow\")",
            ),
        };
        let state = State::from(is_met);
        Some(Condition {
            about: rule.section.name(),
            rule: Some(rule.name.clone()),
            state,
            ready,
            reason: format!("wanted: {what}{why}"),
        })
    }

    fn timeline(&self) -> Option<&Timeline> {
        match self.journal {
            Journal::Current(timeline) => Some(*timeline),
            Journal::Unknown(_) => None,
        }
    }

    fn find(&self, session: &Text) -> Option<&Session> {
        self.timeline()?.outgoing().current(session_id_of(session))
    }
}

/// What is preserved of a session, as far as lu has seen it.
fn preserved(session: &Session) -> Usage {
    let files = session.files.values();
    files
        .filter(|file| file.outcome == FileOutcome::Preserved)
        .fold(Usage::default(), |sum, file| Usage {
            files: sum.files + 1,
            bytes: sum.bytes.saturating_add(file.bytes.unwrap_or(0)),
        })
}

impl Standing for Known<'_> {
    fn session(&self, name: &Text) -> Option<Usage> {
        self.find(name)
            .filter(|session| session.sight == Sight::Whole)
            .map(preserved)
    }

    /// No condition asks for it.
    fn in_all(&self) -> Option<Usage> {
        None
    }

    fn is_preserved(&self, of: &TokenKey) -> Option<bool> {
        let session = self.find(&of.session)?;
        let file = session.files.get(&of.token);
        let is_preserved = file.is_some_and(|file| file.outcome == FileOutcome::Preserved);
        match session.sight {
            Sight::Whole => Some(is_preserved),
            Sight::Part => is_preserved.then_some(true),
            Sight::Doubtful => None,
        }
    }

    /// Nothing is asked for before a kexec of what has come.
    fn is_restored(&self, _: &TokenKey) -> Option<bool> {
        None
    }

    fn is_device_free(&self) -> Option<bool> {
        match self.machine.opened {
            Some(Ok(())) => Some(true),
            Some(Err(Errno::EBUSY)) => Some(false),
            Some(Err(_)) => None,
            None => self.timeline()?.holder().map(|_| false),
        }
    }

    fn is_image_loaded(&self) -> Option<bool> {
        if self.machine.in_kernel {
            self.machine.image_loaded
        } else {
            Some(true)
        }
    }

    fn is_no_session_lost(&self) -> Option<bool> {
        let outgoing = self.timeline()?.outgoing();
        let is_dropped = |kind| kind == AttentionKind::Dropped;
        let (attention, _) = attention::of(outgoing);
        if attention.iter().any(|one| is_dropped(one.kind)) {
            return Some(false);
        }
        let whole = outgoing
            .all_current()
            .all(|session| session.sight == Sight::Whole);
        (outgoing.events.lost == 0 && whole).then_some(true)
    }
}
