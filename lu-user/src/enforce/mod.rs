//! A policy in the kernel: its programs loaded and attached, a policy put in force, and the proof that it bites.
//!
//! What is in force can outlive lu: [`pins`] keeps programs and maps in a folder of the BPF file system.

mod before;
pub mod pins;
mod programs;
#[cfg(test)]
mod quick;

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::path::PathBuf;

use aya::EbpfError;
use aya::maps::{Array, ArrayOfMaps, HashMap, Map, MapData, MapError, RingBuf};
use aya::programs::links::FdLink;
use lu_common::policy::{
    Account, InForce, KnownSession, Policy, Text, TokenKey, Untold, WatchedToken, need, note,
};
use nix::errno::Errno;
use zerocopy::FromZeros as _;

use crate::attach::KernelPlace;
use crate::emulate::DEVICE;
use crate::journal::clocks::now_ns;
use crate::loaded::rule_names;
use crate::policy::Compiled;

pub use programs::{Verified, verify};

/// Why a policy is not in force.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The programs cannot be loaded or attached.
    #[error(
        "the kernel refuses the policy's programs: {0}; `lu doctor` tells what this machine allows"
    )]
    Programs(String),
    /// Something that the programs compare with is not known of this kernel.
    #[error("this kernel does not tell {0}, without which nothing can be judged")]
    Unknown(&'static str),
    /// Its orchestrator is none that lu can enforce on.
    #[error(
        "policies are enforced on the kernel's orchestrator with the sessions interface, and this is {0}"
    )]
    Orchestrator(String),
    /// A request that must be refused was not.
    #[error(
        "a request that must be refused was let through: {0}; bpf has to be in /sys/kernel/security/lsm, \
         which the kernel's command line sets (lsm=…,bpf)"
    )]
    Toothless(String),
    /// The BPF file system.
    #[error("{path}: {error}{hint}", path = .path.display(), hint = if *.mounted { "" } else { "; `mount -t bpf bpf /sys/fs/bpf` brings it in" })]
    Pins {
        /// Where.
        path: PathBuf,
        /// What.
        error: io::Error,
        /// Whether there is a BPF file system at all.
        mounted: bool,
    },
    /// Maps.
    #[error("the policy's maps: {0}")]
    Maps(#[from] MapError),
}

/// A type of `lu_common`, which aya may copy into the kernel and out of it.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Plain<T>(pub T);

// SAFETY: integers without padding; any bytes are a value.
unsafe impl aya::Pod for Plain<InForce> {}
// SAFETY: the same.
unsafe impl aya::Pod for Plain<KnownSession> {}
// SAFETY: the same.
unsafe impl aya::Pod for Plain<TokenKey> {}
// SAFETY: the same.
unsafe impl aya::Pod for Plain<WatchedToken> {}
// SAFETY: the same.
unsafe impl aya::Pod for Plain<Account> {}
// SAFETY: the same.
unsafe impl aya::Pod for Plain<Untold> {}

type Generation = Array<MapData, Plain<InForce>>;

/// The maps that are shared with the programs.
pub struct Maps {
    policy: ArrayOfMaps<MapData, Generation>,
    sessions: HashMap<MapData, Text, Plain<KnownSession>>,
    tokens: HashMap<MapData, Plain<TokenKey>, Plain<WatchedToken>>,
    account: Array<MapData, Plain<Account>>,
    notes: Array<MapData, u64>,
    untold: Array<MapData, Plain<Untold>>,
    self_test: Array<MapData, u64>,
    /// Where the verdicts come; one reader takes it.
    verdicts: Option<RingBuf<MapData>>,
}

/// The names of the maps, in [`Maps`]' order.
const MAPS: [&str; 8] = [
    "POLICY",
    "SESSIONS",
    "TOKENS",
    "ACCOUNT",
    "NOTES",
    "UNTOLD",
    "SELF_TEST",
    "VERDICTS",
];

impl Maps {
    /// Takes each from somewhere.
    fn take(mut from: impl FnMut(&'static str) -> Result<Map, Error>) -> Result<Self, Error> {
        let [
            policy,
            sessions,
            tokens,
            account,
            notes,
            untold,
            self_test,
            verdicts,
        ] = MAPS;
        Ok(Self {
            policy: ArrayOfMaps::try_from(from(policy)?)?,
            sessions: HashMap::try_from(from(sessions)?)?,
            tokens: HashMap::try_from(from(tokens)?)?,
            account: Array::try_from(from(account)?)?,
            notes: Array::try_from(from(notes)?)?,
            untold: Array::try_from(from(untold)?)?,
            self_test: Array::try_from(from(self_test)?)?,
            verdicts: Some(RingBuf::try_from(from(verdicts)?)?),
        })
    }
}

/// What keeps the programs attached.
enum Held {
    /// This process.
    Here(#[expect(dead_code, reason = "held, and dropped")] Vec<FdLink>),
    /// The BPF file system.
    Pinned,
}

/// The kernel judges by a policy, as long as this lives or its pins are there.
pub struct Enforcer {
    maps: Maps,
    held: Held,
    /// The generation that is in force.
    current: Option<Generation>,
    /// Whether it was there before: another lu's, which was taken over.
    pub taken_over: bool,
}

impl Enforcer {
    /// Loads the programs and attaches them, or takes those over that are pinned, with what they are judging by. Where
    /// `persist` says so they are pinned from now on, else they end with this process.
    pub fn new(place: &KernelPlace, persist: bool) -> Result<Self, Error> {
        if let Some((mut pinned, links)) = Self::open()? {
            if !persist {
                pins::remove(&pins::folder())?;
                pinned.held = Held::Here(links);
            }
            return Ok(pinned);
        }
        let mut programs = programs::load(place)?;
        let links = programs::attach(&mut programs)?;
        before::note(&mut programs)?;
        let held = if persist {
            pins::create(&mut programs, links)?;
            Held::Pinned
        } else {
            Held::Here(links.into_iter().map(|(_, link)| link).collect())
        };
        let maps = Maps::take(|name| {
            programs
                .take_map(name)
                .ok_or_else(|| Error::Programs(format!("there is no map {name}")))
        })?;
        Ok(Self {
            maps,
            held,
            current: None,
            taken_over: false,
        })
    }

    /// What is pinned, if anything is.
    pub fn pinned() -> Result<Option<Self>, Error> {
        Ok(Self::open()?.map(|(pinned, _)| pinned))
    }

    fn open() -> Result<Option<(Self, Vec<FdLink>)>, Error> {
        let Some((maps, links)) = pins::open()? else {
            return Ok(None);
        };
        let current = match maps.policy.get(&0, 0) {
            Ok(current) => Some(current),
            Err(MapError::KeyNotFound) => None,
            Err(error) => return Err(error.into()),
        };
        let pinned = Self {
            maps,
            held: Held::Pinned,
            current,
            taken_over: true,
        };
        Ok(Some((pinned, links)))
    }

    /// Asks for something that must be refused, after [`apply`](Self::apply): from then on it is known who put the policy
    /// in force, by an event.
    pub fn prove(&mut self) -> Result<(), Error> {
        self.maps.self_test.set(1, 1, 0)?;
        let proved = self.self_test();
        self.maps.self_test.set(1, 0, 0)?;
        proved
    }

    /// Asks for something that must be refused.
    pub fn self_test(&mut self) -> Result<(), Error> {
        let thread = (u64::from(std::process::id()) << 32) | nix::unistd::gettid().as_raw() as u64;
        self.maps.self_test.set(0, thread, 0)?;
        let opened = File::open(DEVICE);
        self.maps.self_test.set(0, 0, 0)?;
        match opened {
            Err(error) if error.raw_os_error() == Some(Errno::ENOTUNIQ as i32) => Ok(()),
            Err(error) => Err(Error::Toothless(format!("opening {DEVICE} said {error}"))),
            Ok(_) => Err(Error::Toothless(format!("{DEVICE} could be opened"))),
        }
    }

    /// What is in force, and how often its rules have decided; `None`: nothing yet.
    pub fn in_force(&self) -> Result<Option<Box<InForce>>, Error> {
        self.current
            .as_ref()
            .map(|current| Ok(Box::new(current.get(&0, 0)?.0)))
            .transpose()
    }

    /// Puts a policy in force, in one step: what was in force judges until then. The generation that it is now.
    pub fn apply(&mut self, compiled: &Compiled) -> Result<u64, Error> {
        // Somebody else may have put one in force meanwhile.
        let generation = self.maps.notes.get(&note::GENERATION, 0)? + 1;
        self.maps.notes.set(note::GENERATION, generation, 0)?;
        let mut next = Box::new(InForce::new_zeroed());
        next.policy = *compiled.policy;
        next.policy.generation = generation;
        next.sha256 = compiled.sha256;
        for (place, name) in next.names.iter_mut().zip(rule_names(compiled, generation)) {
            *place = name;
        }
        self.watch(&next.policy)?;
        let mut map = Generation::create(1, 0)?;
        map.set(0, Plain(*next), 0)?;
        self.maps.policy.set(0, &map, 0)?;
        self.current = Some(map);
        self.unwatch(&compiled.policy)?;
        Ok(generation)
    }

    /// The tokens that a policy asks for are looked for from now on.
    fn watch(&mut self, policy: &Policy) -> Result<(), Error> {
        for key in wanted(policy) {
            let known = self.maps.sessions.get(&key.session, 0).map(|known| known.0);
            let watched = WatchedToken {
                since_ns: now_ns(),
                // Of what came from the old kernel nobody looks after what no policy asked for.
                may_be_restored: u64::from(
                    policy.generation > 1
                        || known.is_ok_and(|known| known.state == KnownSession::UNKNOWN),
                ),
                ..WatchedToken::default()
            };
            // What is looked for already goes on being so.
            match self
                .maps
                .tokens
                .insert(Plain(key), Plain(watched), NO_EXIST)
            {
                Err(MapError::SyscallError(error))
                    if error.io_error.raw_os_error() == Some(Errno::EEXIST as i32) => {}
                done => done?,
            }
        }
        Ok(())
    }

    /// Others no longer.
    fn unwatch(&mut self, policy: &Policy) -> Result<(), Error> {
        let kept: HashSet<TokenKey> = wanted(policy).collect();
        let all: Vec<Plain<TokenKey>> = self.maps.tokens.keys().collect::<Result<_, _>>()?;
        for key in all {
            if !kept.contains(&key.0) {
                self.maps.tokens.remove(&key)?;
            }
        }
        Ok(())
    }

    /// What the programs could not do, since they were attached.
    pub fn untold(&self) -> Result<Untold, Error> {
        Ok(self.maps.untold.get(&0, 0)?.0)
    }

    /// The same, since this was last asked, by whichever lu.
    pub fn tell_untold(&mut self) -> Result<Untold, Error> {
        let all = self.untold()?;
        let notes = &mut self.maps.notes;
        let told = Untold {
            ring_full: notes.get(&note::RING_FULL, 0)?,
            unjudged: notes.get(&note::UNJUDGED, 0)?,
            tampered: notes.get(&note::TAMPERED, 0)?,
            ..Untold::default()
        };
        let new = all.since(&told);
        if !new.is_nothing() {
            notes.set(note::RING_FULL, all.ring_full, 0)?;
            notes.set(note::UNJUDGED, all.unjudged, 0)?;
            notes.set(note::TAMPERED, all.tampered, 0)?;
        }
        Ok(new)
    }

    /// What is preserved, as the kernel counts it.
    pub fn account(&self) -> Result<Account, Error> {
        let mut account = self.maps.account.get(&0, 0)?.0;
        let before = self.maps.notes.get(&note::SESSIONS, 0)?;
        account.unknown = account.unknown.wrapping_add(before);
        Ok(account)
    }

    /// Takes off what was pinned by [`new`](Self::new), and does not bite.
    pub fn unpin(&self) -> Result<(), Error> {
        match self.held {
            Held::Pinned => pins::remove(&pins::folder()),
            Held::Here(_) => Ok(()),
        }
    }

    /// The verdicts' end; `None` where it was taken before.
    pub fn take_verdicts(&mut self) -> Option<RingBuf<MapData>> {
        self.maps.verdicts.take()
    }
}

/// `BPF_NOEXIST` (`include/uapi/linux/bpf.h`).
const NO_EXIST: u64 = 1;

fn wanted(policy: &Policy) -> impl Iterator<Item = TokenKey> {
    policy
        .needs
        .iter()
        .filter(|need| matches!(need.sort, need::TOKEN | need::RESTORED))
        .map(|need| need.of)
}

impl From<EbpfError> for Error {
    fn from(error: EbpfError) -> Self {
        Self::Programs(crate::attach::chain(&error))
    }
}
