//! The policy that the emulated orchestrator asks before it acts, where the kernel's security modules would be
//! asked: a request that is refused never reaches the orchestrator.
//!
//! What was judged is what is done: the caller's structure is read once, its descriptor is taken over once, and the
//! orchestrator gets both.

use std::ffi::c_void;
use std::hint::black_box;
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use lu_common::event::{PolicyLoaded, RuleName, SessionName, Task, session_id};
use lu_common::policy::{
    Attribute, Decision, Judged, Name, Operation, Policy, Request, Standing, Usage, evaluate,
};
use lu_common::uapi::Interface;
use nix::errno::Errno;

use super::client::Client;
use super::files::Preserved;
use crate::loaded::{loaded, rule_names};
use crate::policy::{self, Compiled, Source};

/// A policy that is in force.
pub struct Enforced {
    policy: Box<Policy>,
    /// What its rules are called, by number.
    rules: Vec<RuleName>,
}

static ENFORCED: RwLock<Option<Arc<Enforced>>> = RwLock::new(None);

static GENERATION: AtomicU64 = AtomicU64::new(0);

/// Two requests at once must not both take the last place.
static TURN: Mutex<()> = Mutex::new(());

/// From now on this policy is asked, in one step, and no other. `who` loads it.
pub fn enforce(interface: Interface, compiled: Compiled, who: &Task) {
    let generation = GENERATION.fetch_add(1, Ordering::Relaxed) + 1;
    let rules = rule_names(&compiled, generation);
    let told = loaded(&compiled, generation, who.pid);
    let mut policy = compiled.policy;
    policy.generation = generation;
    let new = Some(Arc::new(Enforced { policy, rules }));
    *ENFORCED.write().unwrap_or_else(PoisonError::into_inner) = new;
    let function = match interface {
        Interface::V3 => lu_policy_loaded as extern "C" fn(_, _),
        Interface::Sessions => sessions_lu_policy_loaded,
    };
    black_box(function)(ptr::from_ref(who), ptr::from_ref(&told));
}

/// Reads a policy's file.
pub fn read(path: &Path) -> Result<Compiled, policy::Error> {
    let compiled = policy::compile(&Source::read(path)?, &policy::Machine)?;
    for warning in &compiled.warnings {
        log::warn!("{}: {warning}", path.display());
    }
    Ok(compiled)
}

/// Says which policy is in force from now on, and who enforces it.
pub fn say(path: &Path, compiled: &Compiled) {
    let told = loaded(compiled, 0, 0);
    eprintln!(
        "lu emulate: policy {}: {} rules, {} of them enforced, by the emulated orchestrator",
        path.display(),
        told.rules,
        told.enforced,
    );
}

/// Reads the file again. One with errors leaves the old policy in force.
pub fn reload(interface: Interface, path: &Path, who: &Task) {
    match read(path) {
        Ok(compiled) => {
            say(path, &compiled);
            enforce(interface, compiled, who);
        }
        Err(error) => eprintln!(
            "lu emulate: the policy that was in force stays in force:\n{}",
            error.render(false)
        ),
    }
}

/// The policy that is in force.
pub fn in_force() -> Option<Arc<Enforced>> {
    let enforced = ENFORCED.read().unwrap_or_else(PoisonError::into_inner);
    enforced.clone()
}

/// Held from the judgement of what changes what is preserved to its end.
pub fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What files take together, and a request beside them.
pub fn sum<'a>(asked: Usage, files: impl Iterator<Item = &'a Arc<Preserved>>) -> Usage {
    files.fold(asked, |sum, file| Usage {
        files: sum.files.saturating_add(1),
        bytes: sum.bytes.saturating_add(file.bytes()),
    })
}

/// What is asked for.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// By whom.
    pub client: &'a Client,
    /// What.
    pub operation: Operation,
    /// In which session; all NUL in v3, and where there is none.
    pub session: SessionName,
    /// Of which token.
    pub token: Option<u64>,
    /// The descriptor that the caller gave, and the file behind it.
    pub file: Option<(i32, &'a Preserved)>,
}

impl<'a> Asked<'a> {
    /// What has no session, token or file.
    pub const fn plain(client: &'a Client, operation: Operation) -> Self {
        Self {
            client,
            operation,
            session: [0; size_of::<SessionName>()],
            token: None,
            file: None,
        }
    }

    /// What it adds to what is preserved.
    pub fn usage(&self) -> Usage {
        match (self.operation, self.file) {
            (Operation::Preserve, Some((_, file))) => Usage {
                files: 1,
                bytes: file.bytes(),
            },
            _ => Usage::default(),
        }
    }

    fn session_id(&self) -> u64 {
        if self.session[0] == 0 {
            0
        } else {
            session_id(&self.session)
        }
    }

    /// As the policy sees it. What no rule asks for is not looked up.
    fn request(&self, policy: &Policy) -> Request {
        let mut request = Request {
            operation: self.operation as u32,
            known: Attribute::Session.bit(),
            name: Name::new(&self.session),
            token: 0,
            bytes: 0,
            kind: 0,
            uid: 0,
            gid: 0,
            device: 0,
            inode: 0,
            cgroups: [0; lu_common::policy::LEVELS],
        };
        let mut know = |attribute: Attribute| request.known |= attribute.bit();
        if let Some(token) = self.token {
            request.token = token;
            know(Attribute::Token);
        }
        if let Some((_, file)) = self.file {
            request.kind = file.kind() as u64;
            request.bytes = file.bytes();
            know(Attribute::Kind);
            know(Attribute::Bytes);
        }
        if let Some(uid) = self.client.euid {
            request.uid = u64::from(uid);
            know(Attribute::Uid);
        }
        if let Some(gid) = self.client.egid {
            request.gid = u64::from(gid);
            know(Attribute::Gid);
        }
        let asks = |attribute: Attribute| policy.conditional[attribute as usize] != 0;
        if asks(Attribute::Exe)
            && let Some((device, inode)) = self.client.exe()
        {
            (request.device, request.inode) = (device, inode);
            know(Attribute::Exe);
        }
        if asks(Attribute::Cgroup)
            && let Some(cgroups) = self.client.cgroups()
        {
            request.cgroups = cgroups;
            know(Attribute::Cgroup);
        }
        request
    }
}

impl Enforced {
    /// Judges what is asked for; where that is not a plain allow, it is told. The error is what the caller gets.
    pub fn judge(
        &self,
        interface: Interface,
        asked: &Asked<'_>,
        standing: &impl Standing,
    ) -> Result<(), Errno> {
        let request = asked.request(&self.policy);
        let verdict = evaluate(&self.policy, &request, standing);
        if verdict.decision == Decision::Allow && !verdict.unsure {
            return Ok(());
        }
        let judged = Judged {
            generation: self.policy.generation,
            session: asked.session_id(),
            token: request.token,
            bytes: request.bytes,
            known: request.known,
            fd: asked.file.map_or(-1, |(fd, _)| fd),
            kind: request.kind as u16,
            operation: asked.operation as u8,
            decision: verdict.decision as u8,
            rule: verdict.rule,
            errno: verdict.errno(&self.policy),
            unsure: u8::from(verdict.unsure),
            differs: 0,
            reserved: [0; 2],
        };
        let rule = self.rules.get(usize::from(verdict.rule)).copied();
        let function = match interface {
            Interface::V3 => lu_verdict as extern "C" fn(_, _, _, _),
            Interface::Sessions => sessions_lu_verdict,
        };
        black_box(function)(
            ptr::from_ref(&asked.client.task),
            ptr::from_ref(&judged),
            rule.as_ref().map_or(ptr::null(), ptr::from_ref),
            if asked.session_id() == 0 {
                ptr::null()
            } else {
                asked.session.as_ptr()
            },
        );
        if verdict.decision == Decision::Deny {
            Err(Errno::from_raw(i32::from(verdict.errno(&self.policy))))
        } else {
            Ok(())
        }
    }
}

/// What a policy says of a request, where that is not a plain allow: for whoever watches.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lu_verdict(
    who: *const Task,
    judged: *const Judged,
    rule: *const RuleName,
    session: *const u8,
) {
    black_box((who, judged, rule, session));
}

/// The same of the sessions interface.
#[unsafe(export_name = "sessions.lu_verdict")]
#[inline(never)]
extern "C" fn sessions_lu_verdict(
    who: *const Task,
    judged: *const Judged,
    rule: *const RuleName,
    session: *const u8,
) {
    black_box("sessions.lu_verdict");
    black_box((who, judged, rule, session));
}

/// A policy is in force from now on: for whoever watches.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lu_policy_loaded(who: *const Task, loaded: *const PolicyLoaded) {
    black_box((who.cast::<c_void>(), loaded));
}

/// The same of the sessions interface.
#[unsafe(export_name = "sessions.lu_policy_loaded")]
#[inline(never)]
extern "C" fn sessions_lu_policy_loaded(who: *const Task, loaded: *const PolicyLoaded) {
    black_box("sessions.lu_policy_loaded");
    black_box((who.cast::<c_void>(), loaded));
}
