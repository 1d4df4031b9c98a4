//! The compiled policy, and the one function that judges by it: [`evaluate`].
//!
//! The same code runs in the kernel's BPF programs, in the emulated orchestrator and in tests. So a policy is
//! plain data of a fixed size, and judging is a handful of look-ups instead of a walk through rules: each
//! value of a request is turned into the set of rules whose condition it meets, a set being the bits of a `u64`. What
//! is in all of the sets matches; the lowest bit is the first rule.
//!
//! All parts of a policy share one numbering of its [`RULES`]: rules for requests, then quotas, requirements and
//! the gate's conditions. A number is a bit, and an index.

#![expect(
    clippy::inline_always,
    reason = "the verifier follows offsets into a map best within one function"
)]

use core::hint::black_box;
use core::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::event::{FileKind, RuleName, SessionName};
use crate::uapi::sessions::NAME_LEN;

/// How many rules a policy can have, all parts together.
pub const RULES: usize = 64;

/// A set of rules.
pub type Rules = u64;

numbered! {
    /// What is asked for. A policy's numbers are these too.
    Operation: u8 {
        /// open(2) of `/dev/liveupdate`.
        Open = 0, "open";
        /// `CREATE_SESSION`.
        Create = 1, "create";
        /// `RETRIEVE_SESSION`.
        Retrieve = 2, "retrieve";
        /// `PRESERVE_FD`, `FD_PRESERVE`.
        Preserve = 3, "preserve";
        /// `FD_UNPRESERVE` (v3).
        Unpreserve = 4, "unpreserve";
        /// `RETRIEVE_FD`, `FD_RESTORE`.
        Restore = 5, "restore";
        /// FINISH, `SET_EVENT FINISH`.
        Finish = 6, "finish";
        /// `SET_EVENT PREPARE` (v3).
        Prepare = 7, "prepare";
        /// `SET_EVENT CANCEL` (v3).
        Cancel = 8, "cancel";
        /// A session's descriptor arrives in another process (`SCM_RIGHTS`, `pidfd_getfd`).
        Receive = 9, "receive";
        /// The image of a kernel to jump into is loaded.
        Load = 10, "load";
        /// reboot(KEXEC).
        Kexec = 11, "kexec";
    }
}

/// A number of [`Operation`] is below this.
const OPERATIONS: usize = 16;

/// A number of [`FileKind`] is below this.
const KINDS: usize = 32;

const _: () = {
    assert!(Operation::ALL.len() <= OPERATIONS);
    assert!(FileKind::ALL.len() <= KINDS);
    assert!(RULES == Rules::BITS as usize);
};

/// Bits of [`Request::known`] and indexes of [`Policy::conditional`]: what a rule can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Attribute {
    /// The session's name.
    Session = 0,
    /// The token.
    Token = 1,
    /// The kind of file.
    Kind = 2,
    /// The file's size.
    Bytes = 3,
    /// The caller's effective user.
    Uid = 4,
    /// The caller's effective group.
    Gid = 5,
    /// The caller's executable.
    Exe = 6,
    /// The caller's cgroup and those above.
    Cgroup = 7,
}

impl Attribute {
    /// Every one.
    pub const ALL: [Self; 8] = [
        Self::Session,
        Self::Token,
        Self::Kind,
        Self::Bytes,
        Self::Uid,
        Self::Gid,
        Self::Exe,
        Self::Cgroup,
    ];

    /// Its bit in [`Request::known`].
    #[must_use]
    pub const fn bit(self) -> u32 {
        1 << self as u32
    }

    /// As a policy's file calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Token => "tokens",
            Self::Kind => "kinds",
            Self::Bytes => "bytes",
            Self::Uid => "uid",
            Self::Gid => "gid",
            Self::Exe => "exe",
            Self::Cgroup => "cgroup",
        }
    }
}

/// Words of a session's name.
const WORDS: usize = NAME_LEN / size_of::<u64>();

/// A session's name, padded with NUL, in words of the machine's byte order; all 0: none, or unknown.
pub type Text = [u64; WORDS];

/// A session's name, ready to be compared from both ends.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Name {
    /// 0: what stands before a name's end where the name is short.
    zeros: Text,
    /// Padded with NUL.
    pub text: Text,
    /// The same, pushed to the right, with NUL before it.
    pub end: Text,
    /// Bytes before the first NUL; at most 63.
    pub length: u64,
}

impl Name {
    /// A name, cut off at its first NUL, or at its 63rd byte.
    #[must_use]
    pub fn new(name: &[u8]) -> Self {
        let mut bytes: SessionName = [0; NAME_LEN];
        let length = name.len().min(NAME_LEN);
        bytes[..length].copy_from_slice(&name[..length]);
        let mut name = Self {
            zeros: [0; WORDS],
            text: zerocopy::transmute!(bytes),
            end: [0; WORDS],
            length: 0,
        };
        name.cut();
        name
    }

    /// Makes [`text`](Self::text), as it was read, a name: nothing behind its first NUL, or its 63rd byte.
    #[inline(always)]
    pub fn cut(&mut self) {
        const ONES: u64 = 0x0101_0101_0101_0101;
        const HIGH: u64 = ONES << 7;
        let mut length = 0;
        let mut goes_on = true;
        let mut word = 0;
        while word < WORDS {
            let text = u64::from_le(self.text[word]);
            // The highest bit of each byte that is 0; only the lowest of them is to be relied on.
            let mut zeros = text.wrapping_sub(ONES) & !text & HIGH;
            if word + 1 == WORDS {
                zeros |= 1 << 63;
            }
            let kept = if !goes_on {
                0
            } else if zeros == 0 {
                u64::MAX
            } else {
                ((zeros & zeros.wrapping_neg()) >> 7) - 1
            };
            self.text[word] = (text & kept).to_le();
            length += u64::from(kept.count_ones()) / 8;
            goes_on &= zeros == 0;
            word += 1;
        }
        self.length = length;
        word = 0;
        while word < WORDS {
            self.end[word] = self.word_at(word * size_of::<u64>());
            word += 1;
        }
    }

    /// Eight bytes of zeros and text, from as far before the text's end as 64 bytes reach, and `offset` on.
    #[inline(always)]
    fn word_at(&self, offset: usize) -> u64 {
        let offset = (self.length as usize & (NAME_LEN - 1)) + offset;
        let bytes = (&raw const *self).cast::<u8>();
        // SAFETY: `zeros` and `text` follow each other, 128 bytes in all, and the offset is at most 63 + 56.
        let at = unsafe { bytes.add(offset) };
        // SAFETY: eight bytes from there are within them; any bytes are a `u64`.
        unsafe { at.cast::<u64>().read_unaligned() }
    }
}

/// A pattern for sessions' names: a beginning, an end, and anything between them where it is not exact.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Pattern {
    /// The beginning, padded with NUL.
    pub prefix: [u64; WORDS],
    /// Which of its bits count.
    pub prefix_mask: [u64; WORDS],
    /// The end, with NUL before it.
    pub suffix: [u64; WORDS],
    /// Which of its bits count.
    pub suffix_mask: [u64; WORDS],
    /// The shortest name that matches, in bytes.
    pub least: u64,
    /// The longest.
    pub most: u64,
    /// The rules that ask for this pattern; 0: there are no more patterns.
    pub rules: Rules,
}

impl Pattern {
    /// All bits, if the name matches.
    #[inline(always)]
    fn matches(&self, name: &Name) -> u64 {
        let mut differs = 0;
        let mut word = 0;
        while word < WORDS {
            differs |= (name.text[word] ^ self.prefix[word]) & self.prefix_mask[word];
            differs |= (name.end[word] ^ self.suffix[word]) & self.suffix_mask[word];
            word += 1;
        }
        equal(differs, 0) & !less(name.length, self.least) & !less(self.most, name.length)
    }
}

/// The largest size that a file is taken for: sums of more than a hundred thousand of these do not wrap around.
pub const LARGEST: u64 = 1 << 46;

/// How many different patterns a policy can have.
pub const PATTERNS: usize = RULES;

/// How many intervals a number can fall into.
pub const INTERVALS: usize = 256;

/// Which rules a number is in the range of: intervals, each of which begins where the one before it ends.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Ranges {
    /// Where each begins, ascending, the first at 0; those that are not needed begin at `u64::MAX`.
    pub starts: [u64; INTERVALS],
    /// The rules in whose range it is; those that are not needed have the rules of the last one that is.
    pub rules: [Rules; INTERVALS],
}

impl Ranges {
    /// The rules in whose range `value` is.
    #[inline(always)]
    fn at(&self, value: u64) -> Rules {
        let mut base = 0;
        let mut step = INTERVALS.ilog2();
        while step > 0 {
            step -= 1;
            let middle = (base + (1 << step)) & (INTERVALS - 1);
            base += ((below(value, self.starts[middle]) ^ 1) as usize) << step;
        }
        self.rules[base & (INTERVALS - 1)]
    }
}

/// An executable: its file system's and its inode's numbers. Its name can be given to another.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Exe {
    /// The device of its file system, as the kernel numbers it (`super_block.s_dev`).
    pub device: u64,
    /// Its inode.
    pub inode: u64,
    /// The rules that ask for it; 0: there are no more.
    pub rules: Rules,
}

/// How many executables a policy can name.
pub const EXES: usize = RULES;

/// A cgroup of the unified hierarchy.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Cgroup {
    /// Its id.
    pub id: u64,
    /// How deep it lies; the root's level is 0.
    pub level: u64,
    /// The rules that ask for it; 0: there are no more.
    pub rules: Rules,
}

/// How many cgroups a policy can name.
pub const CGROUPS: usize = RULES;

/// Cgroups are told apart down to this level.
pub const LEVELS: usize = 16;

/// At most so many files, and bytes, in a session or in all of them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Quota {
    /// Files at most.
    pub files: u64,
    /// Bytes at most.
    pub bytes: u64,
    /// Its number as a rule.
    pub rule: u32,
    /// What it counts, see [`quota`].
    pub of: u32,
}

/// [`Quota::of`].
pub mod quota {
    /// Nothing: there are no more.
    pub const NONE: u32 = 0;
    /// Each session for itself.
    pub const SESSION: u32 = 1;
    /// All sessions together.
    pub const ALL: u32 = 2;
}

/// How many quotas a policy can have.
pub const QUOTAS: usize = 16;

/// Something that must be, before the kexec or before a finish.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Need {
    /// Of what sort, see [`need`].
    pub sort: u32,
    /// Its number as a rule.
    pub rule: u32,
    /// The session and the token; in place of the latter the number of files.
    pub of: TokenKey,
}

/// [`Need::sort`].
pub mod need {
    /// There are no more.
    pub const NONE: u32 = 0;
    /// Before the kexec: the session has this token preserved.
    pub const TOKEN: u32 = 1;
    /// Before the kexec: the session has at least so many files.
    pub const FILES: u32 = 2;
    /// Before a finish of the session: this token was restored.
    pub const RESTORED: u32 = 3;
    /// Before the kexec: nobody has the device open.
    pub const DEVICE_FREE: u32 = 4;
    /// Before the kexec: an image is loaded.
    pub const IMAGE_LOADED: u32 = 5;
    /// Before the kexec: no session with files was closed by the end of a process that held it.
    pub const NO_LOST_SESSION: u32 = 6;
}

/// How many needs a policy can have: a requirement has one for each of its tokens.
pub const NEEDS: usize = 64;

/// A policy. Plain data: all zeros is a policy that allows everything.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Policy {
    /// Counts the policies that were loaded one after the other, from 1.
    pub generation: u64,
    /// Always empty. A set that begins as this one, and not as a plain 0, is of unknown content to the verifier from
    /// the start, so it needs not follow each way through a loop on its own.
    pub nothing: Rules,
    /// The rules for requests, of which the first that matches decides.
    pub requests: Rules,
    /// The quotas.
    pub limits: Rules,
    /// The requirements and the gate's conditions.
    pub conditions: Rules,
    /// Of the rules for requests, those that refuse; the others allow. Quotas and conditions all refuse.
    pub deny: Rules,
    /// The rules that are enforced; of others is told what they would have refused.
    pub enforce: Rules,
    /// The rules that refuse where it cannot be told whether they match.
    pub deny_on_error: Rules,
    /// Which rules have a condition on each [`Attribute`].
    pub conditional: [Rules; Attribute::ALL.len()],
    /// The rules for each [`Operation`].
    pub operations: [Rules; OPERATIONS],
    /// The rules that a kind of file meets.
    pub kinds: [Rules; KINDS],
    /// The errno with which each rule refuses.
    pub errno: [u8; RULES],
    /// Sessions' names.
    pub patterns: [Pattern; PATTERNS],
    /// Executables.
    pub exes: [Exe; EXES],
    /// Cgroups.
    pub cgroups: [Cgroup; CGROUPS],
    /// Tokens.
    pub tokens: Ranges,
    /// Sizes of files, in bytes.
    pub bytes: Ranges,
    /// Users.
    pub uids: Ranges,
    /// Groups.
    pub gids: Ranges,
    /// Quotas, those there are first.
    pub quotas: [Quota; QUOTAS],
    /// Needs, those there are first.
    pub needs: [Need; NEEDS],
}

/// Who asks for what.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Request {
    /// An [`Operation`].
    pub operation: u32,
    /// The bits of the [`Attribute`]s that hold, of those that the operation has.
    pub known: u32,
    /// The session's name.
    pub name: Name,
    /// The token.
    pub token: u64,
    /// The file's size, in bytes, [`LARGEST`] at most.
    pub bytes: u64,
    /// A [`FileKind`].
    pub kind: u64,
    /// The caller's effective user in the initial user namespace.
    pub uid: u64,
    /// The caller's effective group.
    pub gid: u64,
    /// See [`Exe::device`].
    pub device: u64,
    /// The executable's inode.
    pub inode: u64,
    /// The cgroups that the caller is in, by level; 0 below its own.
    pub cgroups: [u64; LEVELS],
}

/// What is preserved, as whoever judges knows it. `None` is "unknown".
pub trait Standing {
    /// Files and bytes in a session, the one that is asked for included.
    fn session(&self, name: &Text) -> Option<Usage>;
    /// In all sessions together, the one that is asked for included.
    fn in_all(&self) -> Option<Usage>;
    /// Whether a session has a token preserved.
    fn is_preserved(&self, of: &TokenKey) -> Option<bool>;
    /// Whether a token of an incoming session was restored.
    fn is_restored(&self, of: &TokenKey) -> Option<bool>;
    /// Whether nobody has the device open.
    fn is_device_free(&self) -> Option<bool>;
    /// Whether there is an image to jump into.
    fn is_image_loaded(&self) -> Option<bool>;
    /// Whether no session with files was closed by the end of a process that held it.
    fn is_no_session_lost(&self) -> Option<bool>;
}

/// The same, to be calculated with: what [`evaluate`] asks. The kernel's programs answer in numbers from the start; for
/// the verifier each `Option` is another way to follow.
pub trait Reckoning {
    /// See [`Standing::session`].
    fn session(&self, name: &Text) -> Amount;
    /// See [`Standing::in_all`].
    fn in_all(&self) -> Amount;
    /// What a [`Need`] can ask of a session and a token.
    fn token(&self, of: &TokenKey) -> Token;
    /// See [`Standing::is_device_free`].
    fn is_device_free(&self) -> Answer;
    /// See [`Standing::is_image_loaded`].
    fn is_image_loaded(&self) -> Answer;
    /// See [`Standing::is_no_session_lost`].
    fn is_no_session_lost(&self) -> Answer;
}

impl<S: Standing> Reckoning for S {
    fn session(&self, name: &Text) -> Amount {
        Standing::session(self, name).into()
    }

    fn in_all(&self) -> Amount {
        Standing::in_all(self).into()
    }

    fn token(&self, of: &TokenKey) -> Token {
        Token {
            usage: Standing::session(self, &of.session).into(),
            preserved: self.is_preserved(of).into(),
            restored: self.is_restored(of).into(),
        }
    }

    fn is_device_free(&self) -> Answer {
        Standing::is_device_free(self).into()
    }

    fn is_image_loaded(&self) -> Answer {
        Standing::is_image_loaded(self).into()
    }

    fn is_no_session_lost(&self) -> Answer {
        Standing::is_no_session_lost(self).into()
    }
}

/// A session and one of its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// What is preserved in the session.
    pub usage: Amount,
    /// Whether the token is.
    pub preserved: Answer,
    /// Whether it was restored, from an incoming session of that name.
    pub restored: Answer,
}

/// A [`Usage`] or unknown, to be calculated with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amount {
    usage: Usage,
    /// All bits, if it is unknown.
    unknown: u64,
}

impl From<Option<Usage>> for Amount {
    #[inline(always)]
    fn from(usage: Option<Usage>) -> Self {
        Self::new(usage.unwrap_or_default(), u64::from(usage.is_none()))
    }
}

impl Amount {
    /// The same in numbers: whether it is unknown is 1 or 0.
    #[inline(always)]
    #[must_use]
    pub const fn new(usage: Usage, unknown: u64) -> Self {
        Self {
            usage,
            unknown: unknown.wrapping_neg(),
        }
    }

    #[inline(always)]
    const fn masked(self, mask: u64) -> Self {
        Self {
            usage: Usage {
                files: self.usage.files & mask,
                bytes: self.usage.bytes & mask,
            },
            unknown: self.unknown & mask,
        }
    }
}

/// Yes, no, or unknown, to be calculated with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// All bits, if it is so.
    yes: u64,
    /// All bits, if nobody knows.
    unknown: u64,
}

impl From<Option<bool>> for Answer {
    #[inline(always)]
    fn from(answer: Option<bool>) -> Self {
        Self::new(u64::from(answer == Some(true)), u64::from(answer.is_none()))
    }
}

impl Answer {
    /// The same in numbers: whether it is so, and whether that is unknown, each 1 or 0.
    #[inline(always)]
    #[must_use]
    pub const fn new(yes: u64, unknown: u64) -> Self {
        Self {
            yes: yes.wrapping_neg(),
            unknown: unknown.wrapping_neg(),
        }
    }

    #[inline(always)]
    const fn masked(self, mask: u64) -> Self {
        Self {
            yes: self.yes & mask,
            unknown: self.unknown & mask,
        }
    }

    #[inline(always)]
    const fn or(self, other: Self) -> Self {
        Self {
            yes: self.yes | other.yes,
            unknown: self.unknown | other.unknown,
        }
    }
}

/// What is preserved of something.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Usage {
    /// How many files.
    pub files: u64,
    /// How many bytes.
    pub bytes: u64,
}

numbered! {
    /// What becomes of a request.
    Decision: u8 {
        /// It goes on.
        Allow = 0, "allow";
        /// It goes on, and would have been refused by a rule that is not enforced.
        WouldDeny = 1, "would-deny";
        /// It is refused.
        Deny = 2, "deny";
    }
}

/// `EPERM` (`include/uapi/asm-generic/errno-base.h`), where a rule says nothing else.
pub const EPERM: u8 = 1;

/// No rule.
pub const NO_RULE: u8 = u8::MAX;

/// What a policy says of a request.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What becomes of it.
    pub decision: Decision,
    /// The rule that says so; [`NO_RULE`] where none does, and the request is allowed.
    pub rule: u8,
    /// Whether something was unknown that the rule asks for, so that its `on_error` decided.
    pub unsure: bool,
}

/// The sets of rules that a request is in, and of those that nobody can tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Matched {
    /// These match, or might.
    pub rules: Rules,
    /// Of these nobody knows: what they ask for is unknown.
    pub unsure: Rules,
}

impl Policy {
    /// With which errno a rule refuses: never 0.
    #[inline(always)]
    #[must_use]
    pub fn errno_of(&self, rule: u8) -> u8 {
        let errno = self.errno[rule as usize & (RULES - 1)];
        if errno == 0 { EPERM } else { errno }
    }

    /// The rules whose condition on one attribute is met.
    #[inline(always)]
    #[must_use]
    pub fn met(&self, request: &Request, attribute: Attribute) -> Rules {
        let met = match attribute {
            Attribute::Session => self.by_name(&request.name),
            Attribute::Token => self.tokens.at(request.token),
            Attribute::Kind => self.kinds[request.kind as usize & (KINDS - 1)],
            Attribute::Bytes => self.bytes.at(request.bytes),
            Attribute::Uid => self.uids.at(request.uid),
            Attribute::Gid => self.gids.at(request.gid),
            Attribute::Exe => self.by_exe(request),
            Attribute::Cgroup => self.by_cgroup(request),
        };
        met | !self.conditional[attribute as usize]
    }

    #[inline(always)]
    fn none(&self) -> Matched {
        Matched {
            rules: self.nothing,
            unsure: self.nothing,
        }
    }

    #[inline(always)]
    fn by_name(&self, name: &Name) -> Rules {
        let mut rules = self.nothing;
        let mut at = 0;
        while at < PATTERNS {
            let pattern = &self.patterns[at];
            if pattern.rules == 0 {
                break;
            }
            rules |= pattern.rules & pattern.matches(name);
            at += 1;
        }
        rules
    }

    #[inline(always)]
    fn by_exe(&self, request: &Request) -> Rules {
        let mut rules = self.nothing;
        let mut at = 0;
        while at < EXES {
            let exe = &self.exes[at];
            if exe.rules == 0 {
                break;
            }
            rules |=
                exe.rules & equal(exe.device, request.device) & equal(exe.inode, request.inode);
            at += 1;
        }
        rules
    }

    #[inline(always)]
    fn by_cgroup(&self, request: &Request) -> Rules {
        let mut rules = self.nothing;
        let mut at = 0;
        while at < CGROUPS {
            let cgroup = &self.cgroups[at];
            if cgroup.rules == 0 {
                break;
            }
            let found = request.cgroups[cgroup.level as usize & (LEVELS - 1)];
            rules |= cgroup.rules & equal(found, cgroup.id);
            at += 1;
        }
        rules
    }

    /// The rules that a request matches.
    #[inline(always)]
    #[must_use]
    pub fn matched(&self, request: &Request) -> Matched {
        let mut matched = Matched {
            rules: self.operations[request.operation as usize & (OPERATIONS - 1)],
            unsure: self.nothing,
        };
        macro_rules! narrow {
            ($($attribute:ident)*) => {$(
                let attribute = Attribute::$attribute;
                let unknown = equal(u64::from(request.known & attribute.bit()), 0);
                matched.rules &= self.met(request, attribute) | unknown;
                matched.unsure |= self.conditional[attribute as usize] & unknown;
            )*};
        }
        narrow!(Session Token Kind Bytes Uid Gid Exe Cgroup);
        matched.unsure &= matched.rules;
        matched
    }

    /// The quotas that what is asked for goes over.
    #[inline(always)]
    fn over(&self, request: &Request, standing: &impl Reckoning, matched: Matched) -> Matched {
        let mut over = self.none();
        let limits = matched.rules & self.limits;
        if limits == 0 {
            return over;
        }
        let of_session = standing.session(&request.name.text);
        let in_all = standing.in_all();
        let mut at = 0;
        while at < QUOTAS {
            let quota = &self.quotas[at];
            if quota.of == quota::NONE {
                break;
            }
            let bit = 1_u64.wrapping_shl(quota.rule) & limits;
            let all = equal(u64::from(quota.of), u64::from(quota::ALL));
            let (session, all) = (of_session.masked(!all), in_all.masked(all));
            let is_over = less(quota.files, session.usage.files | all.usage.files)
                | less(quota.bytes, session.usage.bytes | all.usage.bytes);
            let unknown = session.unknown | all.unknown;
            over.unsure |= bit & unknown;
            over.rules |= bit & is_over & !unknown;
            at += 1;
        }
        over.unsure |= over.rules & matched.unsure;
        over.rules |= over.unsure;
        over
    }

    /// The rules of which a need is not met.
    #[inline(always)]
    fn unmet(&self, request: &Request, standing: &impl Reckoning, matched: Matched) -> Matched {
        let mut unmet = self.none();
        let conditions = matched.rules & self.conditions;
        if conditions == 0 {
            return unmet;
        }
        let device = standing.is_device_free();
        let image = standing.is_image_loaded();
        let lost = standing.is_no_session_lost();
        // Which session is asked for may be unknown.
        let unnamed = equal(u64::from(request.known & Attribute::Session.bit()), 0);
        let mut at = 0;
        while at < NEEDS {
            let need = &self.needs[at];
            if need.sort == need::NONE {
                break;
            }
            let bit = 1_u64.wrapping_shl(need.rule) & conditions;
            let is = |sort: u32| equal(u64::from(need.sort), u64::from(sort));
            let token = standing.token(&need.of);
            let files = Answer {
                yes: !less(token.usage.usage.files, need.of.token),
                unknown: token.usage.unknown,
            };
            // Another session's finish does not wait for it.
            let this = same(&need.of.session, &request.name.text) & !unnamed;
            let others = Answer {
                yes: !this & !unnamed,
                unknown: unnamed,
            };
            let met = token
                .preserved
                .masked(is(need::TOKEN))
                .or(files.masked(is(need::FILES)))
                .or(token
                    .restored
                    .masked(this)
                    .or(others)
                    .masked(is(need::RESTORED)))
                .or(device.masked(is(need::DEVICE_FREE)))
                .or(image.masked(is(need::IMAGE_LOADED)))
                .or(lost.masked(is(need::NO_LOST_SESSION)));
            unmet.unsure |= bit & met.unknown;
            unmet.rules |= bit & !met.yes & !met.unknown;
            at += 1;
        }
        // What surely is not met needs no guess.
        unmet.unsure &= !unmet.rules;
        unmet.rules |= unmet.unsure;
        unmet
    }
}

/// The number of the lowest bit of some. In the programs' instruction set there is nothing for that, and the compiler's
/// way needs a table.
const fn lowest(mut bits: u64) -> u32 {
    let mut number = 0;
    let mut half = u64::BITS / 2;
    while half > 0 {
        if bits & ((1 << half) - 1) == 0 {
            bits >>= half;
            number += half;
        }
        half /= 2;
    }
    number
}

/// The highest bit, as 1 or 0. The compiler would find out what it stands for, and jump.
#[inline(always)]
fn highest_bit(bits: u64) -> u64 {
    black_box(black_box(bits) >> 63)
}

/// 1, if `a` is below `b`, else 0. The programs' instruction set has comparisons in jumps alone, and the verifier follows
/// each of those both ways: so it is calculated, and the compiler kept from finding out.
#[inline(always)]
#[must_use]
pub fn below(a: u64, b: u64) -> u64 {
    // The borrow of a - b.
    let borrow = (!a & b) | ((!a | b) & a.wrapping_sub(b));
    highest_bit(borrow)
}

/// All bits, if `a` is below `b`.
#[inline(always)]
fn less(a: u64, b: u64) -> u64 {
    below(a, b).wrapping_neg()
}

/// 1, if they differ, else 0.
#[inline(always)]
#[must_use]
pub fn differ(a: u64, b: u64) -> u64 {
    let differs = a ^ b;
    highest_bit(differs | differs.wrapping_neg())
}

/// All bits, if they are equal.
#[inline(always)]
fn equal(a: u64, b: u64) -> u64 {
    differ(a, b).wrapping_sub(1)
}

/// All bits, if two names are the same.
#[inline(always)]
#[must_use]
pub fn same(a: &Text, b: &Text) -> u64 {
    let mut differs = 0;
    let mut word = 0;
    while word < WORDS {
        differs |= a[word] ^ b[word];
        word += 1;
    }
    equal(differs, 0)
}

/// Judges a request. All of a policy that speaks of it is asked: the first rule for such requests that matches, each
/// quota, and, before a kexec or a finish, each requirement and condition. Where several refuse, one that is
/// enforced is told before others, and the first before the later.
#[inline(always)]
#[must_use]
pub fn evaluate(policy: &Policy, request: &Request, standing: &impl Reckoning) -> Verdict {
    let matched = policy.matched(request);
    let over = policy.over(request, standing, matched);
    let unmet = policy.unmet(request, standing, matched);
    policy.verdict(matched, over, unmet)
}

/// The same for what needs no conditions ([`Operation::has_conditions`]), in a quarter of the verifier's time.
#[inline(always)]
#[must_use]
pub fn evaluate_unconditional(
    policy: &Policy,
    request: &Request,
    standing: &impl Reckoning,
) -> Verdict {
    let matched = policy.matched(request);
    let over = policy.over(request, standing, matched);
    policy.verdict(matched, over, policy.none())
}

impl Verdict {
    /// With which errno it is refused, or would be; 0 where it is allowed.
    #[must_use]
    pub fn errno(&self, policy: &Policy) -> u8 {
        match self.decision {
            Decision::Allow => 0,
            Decision::WouldDeny | Decision::Deny => policy.errno_of(self.rule),
        }
    }
}

impl Operation {
    /// Whether requirements and the gate's conditions can be for it.
    #[must_use]
    pub const fn has_conditions(self) -> bool {
        matches!(self, Self::Finish | Self::Kexec)
    }
}

impl Policy {
    #[inline(always)]
    fn verdict(&self, matched: Matched, over: Matched, unmet: Matched) -> Verdict {
        let requests = matched.rules & self.requests;
        let first = requests & requests.wrapping_neg();
        let unsure = (first & matched.unsure) | over.unsure | unmet.unsure;
        let refusing = (first & self.deny) | over.rules | unmet.rules;
        let refusing = (refusing & !unsure) | (unsure & self.deny_on_error);
        let enforced = refusing & self.enforce;
        let (decision, says) = if enforced != 0 {
            (Decision::Deny, enforced)
        } else if refusing != 0 {
            (Decision::WouldDeny, refusing)
        } else if unsure != 0 {
            (Decision::Allow, unsure)
        } else {
            (Decision::Allow, first)
        };
        Verdict {
            decision,
            rule: if says == 0 {
                NO_RULE
            } else {
                lowest(says) as u8
            },
            unsure: says & says.wrapping_neg() & unsure != 0,
        }
    }
}

/// How often a rule decided.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Counts {
    /// By [`Decision`], in the order of its numbers.
    pub decided: [u64; Decision::ALL.len()],
    /// Of these, by its `on_error`.
    pub unsure: u64,
}

/// A policy that is in force, and what became of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct InForce {
    /// The policy.
    pub policy: Policy,
    /// By rule; the last one counts where no rule decided.
    pub counts: [Counts; RULES + 1],
    /// What its rules are called.
    pub names: [RuleName; RULES],
    /// The SHA-256 of its file.
    pub sha256: [u8; 32],
}

/// What the kernel knows of a session that is being made ready.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct KnownSession {
    /// The kernel's `struct luo_session *`: which of those that had its name.
    pub pointer: u64,
    /// When it was made, `CLOCK_MONOTONIC` in nanoseconds: its pointer may have been another's before. 0: nobody knows.
    pub made_ns: u64,
    /// What is preserved in it, and what is just being preserved.
    pub usage: Usage,
    /// How many files are preserved in it, without those that may yet fail.
    pub kept: u64,
    /// When the first file was; 0: none was. `CLOCK_MONOTONIC`, in nanoseconds.
    pub first_ns: u64,
    /// [`Self::PRESENT`], [`Self::UNKNOWN`] or [`Self::LOST`].
    pub state: u64,
}

impl KnownSession {
    /// Somebody holds it.
    pub const PRESENT: u64 = 1;
    /// It was there before anybody counted.
    pub const UNKNOWN: u64 = 2;
    /// It had files, and was closed by the end of a process that held it.
    pub const LOST: u64 = 3;
}

/// A token of a session. Its name itself is in the key: other names with the same
/// [`session_id`](crate::event::session_id) can be made on purpose.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct TokenKey {
    /// The session's name.
    pub session: Text,
    /// The token.
    pub token: u64,
}

/// What the kernel knows of a token that a requirement asks for.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct WatchedToken {
    /// Since when it is looked for. `CLOCK_MONOTONIC`, in nanoseconds.
    pub since_ns: u64,
    /// The [`KnownSession::made_ns`] of the one in which it was last preserved; 0: in none.
    pub preserved_in: u64,
    /// When it was restored; 0: not since it is looked for.
    pub restored_ns: u64,
    /// 1: it may have been restored before it was looked for.
    pub may_be_restored: u64,
}

/// What the kernel knows of all sessions together.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Account {
    /// What is preserved, and what is just being preserved.
    pub usage: Usage,
    /// How often the device is open, of those opened since anybody counts; wraps below 0. See [`note::OPENS`] too.
    pub opens: u64,
    /// How many sessions are [`KnownSession::LOST`].
    pub lost: u64,
    /// How many sessions there are that could not be counted; wraps below 0. See [`note::SESSIONS`] too.
    pub unknown: u64,
}

/// What user space notes beside, by the place in an array: programs only read it, and whoever takes over finds it.
pub mod note {
    /// How often the device was open before anybody counted.
    pub const OPENS: u32 = 0;
    /// How many sessions there were before anybody counted.
    pub const SESSIONS: u32 = 1;
    /// The generation that was last put in force.
    pub const GENERATION: u32 = 2;
    /// Of [`Untold`](super::Untold) what was told: `ring_full`.
    pub const RING_FULL: u32 = 3;
    /// `unjudged`.
    pub const UNJUDGED: u32 = 4;
    /// `tampered`.
    pub const TAMPERED: u32 = 5;
    /// How many places there are.
    pub const PLACES: u32 = 8;
}

/// What the programs could not do: the payload of a record of [`Kind::Untold`](crate::event::Kind::Untold) too.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Untold {
    /// Verdicts for which the ring buffer had no room.
    pub ring_full: u64,
    /// Requests that could not be remembered, and so not judged.
    pub unjudged: u64,
    /// Of what got through and was not what was judged, that for which the ring buffer had no room.
    pub tampered: u64,
    /// 0: room for what comes.
    pub reserved: [u64; 5],
}

impl Untold {
    /// What has come since `before`.
    #[must_use]
    pub const fn since(&self, before: &Self) -> Self {
        Self {
            ring_full: self.ring_full.saturating_sub(before.ring_full),
            unjudged: self.unjudged.saturating_sub(before.unjudged),
            tampered: self.tampered.saturating_sub(before.tampered),
            reserved: [0; 5],
        }
    }

    /// Both.
    #[must_use]
    pub const fn and(&self, more: &Self) -> Self {
        Self {
            ring_full: self.ring_full.saturating_add(more.ring_full),
            unjudged: self.unjudged.saturating_add(more.unjudged),
            tampered: self.tampered.saturating_add(more.tampered),
            reserved: [0; 5],
        }
    }

    /// Whether that is nothing.
    #[must_use]
    pub const fn is_nothing(&self) -> bool {
        self.ring_full == 0 && self.unjudged == 0 && self.tampered == 0
    }
}

/// A verdict, as it is told: the payload of a record of
/// [`Kind::Verdict`](crate::event::Kind::Verdict) or [`Kind::Tampered`](crate::event::Kind::Tampered), whose
/// header says who asked and when.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Judged {
    /// The policy that judged, see [`Policy::generation`].
    pub generation: u64,
    /// The session's [`session_id`](crate::event::session_id); 0: none, or unknown.
    pub session: u64,
    /// See [`Request::token`].
    pub token: u64,
    /// See [`Request::bytes`].
    pub bytes: u64,
    /// See [`Request::known`].
    pub known: u32,
    /// The descriptor that the caller gave; -1: none.
    pub fd: i32,
    /// A [`FileKind`].
    pub kind: u16,
    /// An [`Operation`].
    pub operation: u8,
    /// A [`Decision`].
    pub decision: u8,
    /// See [`Verdict::rule`].
    pub rule: u8,
    /// With which errno it is refused, or would be; 0 where it is allowed.
    pub errno: u8,
    /// 1: see [`Verdict::unsure`].
    pub unsure: u8,
    /// Of a tampered request: what was used is not what was judged, see [`tampered`].
    pub differs: u8,
    /// 0: room for what comes.
    pub reserved: [u64; 2],
}

/// Bits of [`Judged::differs`].
pub mod tampered {
    /// Nobody was asked.
    pub const UNASKED: u8 = 1;
    /// Another session.
    pub const SESSION: u8 = 1 << 1;
    /// Another token.
    pub const TOKEN: u8 = 1 << 2;
    /// Another file.
    pub const FILE: u8 = 1 << 3;
    /// Another size.
    pub const BYTES: u8 = 1 << 4;
}

const _: () = {
    assert!(size_of::<Judged>() == 64);
    assert!(size_of::<Untold>() == 64);
    assert!(size_of::<Policy>().is_multiple_of(size_of::<u64>()));
};
