//! What is preserved: the account by which quotas and requirements are judged, kept by the programs themselves.

#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "a name has 64 bytes, which need not come to the stack as well"
)]

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap};
use lu_common::policy::{
    Account, Amount, Answer, KnownSession, Reckoning, Text, Token, TokenKey, Usage, WatchedToken,
    below, differ, note,
};

use super::asked::{Session, landmark};
use zerocopy::FromZeros;

use crate::call::{add, now};
use crate::orchestrator::{Checked, Read as _};

/// `BPF_F_NO_PREALLOC` (`include/uapi/linux/bpf.h`).
pub const NO_PREALLOC: u32 = 1;

/// Sessions that are being made ready, by name.
#[map]
static SESSIONS: HashMap<Text, KnownSession> = HashMap::with_max_entries(65_536, NO_PREALLOC);

/// The tokens that requirements ask for. User space puts them in.
#[map]
static TOKENS: HashMap<TokenKey, WatchedToken> = HashMap::with_max_entries(1024, NO_PREALLOC);

/// All together.
#[map]
static ACCOUNT: Array<Account> = Array::with_max_entries(1, 0);

/// What user space has noted, see [`note`].
#[map]
static NOTES: Array<u64> = Array::with_max_entries(note::PLACES, 0);

fn noted(place: u32) -> u64 {
    NOTES.get(place).map_or(0, |noted| *noted)
}

/// Counts up, or down by wrapping around.
#[inline(always)]
fn count(field: impl FnOnce(&mut Account) -> *mut u64, by: u64) {
    if let Some(account) = ACCOUNT.get_ptr_mut(0) {
        // SAFETY: within the map; the reference serves to find the field, which is touched by atomic operations alone.
        let field = field(unsafe { &mut *account });
        // SAFETY: an aligned integer within the map.
        unsafe { add(field, by) };
    }
}

/// Counts files and bytes of a session in or out, the latter by wrapping around; whether it is known, and this one
/// of its name. A file that may be preserved is counted before it is judged, so that no other takes its place meanwhile.
#[inline(always)]
pub fn change(session: &Text, pointer: u64, files: u64, bytes: u64) -> bool {
    let Some(known) = SESSIONS.get_ptr_mut(session) else {
        return false;
    };
    // SAFETY: within the map.
    let is_it = unsafe { is(known, pointer) };
    if !is_it {
        return false;
    }
    // SAFETY: within the map; the reference serves to find the fields, which are touched by atomic operations alone.
    let Usage {
        files: of_files,
        bytes: of_bytes,
    } = unsafe { &mut (*known).usage };
    // SAFETY: an aligned integer within the map.
    unsafe { add(of_files, files) };
    // SAFETY: the same.
    unsafe { add(of_bytes, bytes) };
    count(|account| &raw mut account.usage.files, files);
    count(|account| &raw mut account.usage.bytes, bytes);
    true
}

/// Whether it is that one: of those from before nobody knows where they are.
#[inline(always)]
unsafe fn is(known: *const KnownSession, pointer: u64) -> bool {
    // SAFETY: as the caller says.
    let known = unsafe { &*known };
    known.state == KnownSession::UNKNOWN || known.pointer == pointer
}

/// The device is opened by one more, or by one less.
#[inline(always)]
pub fn opened(by: u64) {
    count(|account| &raw mut account.opens, by);
}

/// A session was made.
#[inline(always)]
pub fn created(session: &Session) {
    let new = KnownSession {
        pointer: session.pointer,
        made_ns: now(),
        usage: Usage { files: 0, bytes: 0 },
        kept: 0,
        first_ns: 0,
        state: KnownSession::PRESENT,
    };
    if let Some(old) = SESSIONS.get_ptr_mut(&session.name) {
        // SAFETY: within the map.
        if unsafe { (*old).state } == KnownSession::LOST {
            count(|account| &raw mut account.lost, u64::MAX);
        }
    }
    if session.name[0] == 0 || SESSIONS.insert(&session.name, new, 0).is_err() {
        count(|account| &raw mut account.unknown, 1);
    }
}

/// A file was preserved.
#[inline(always)]
pub fn preserved(session: &Session, token: u64) {
    let mut made_ns = 0;
    if let Some(known) = SESSIONS.get_ptr_mut(&session.name) {
        // SAFETY: within the map; the count is touched by atomic operations alone.
        let known = unsafe { &mut *known };
        if known.first_ns == 0 {
            known.first_ns = now();
        }
        made_ns = known.made_ns;
        // SAFETY: an aligned integer within the map.
        unsafe { add(&raw mut known.kept, 1) };
    } else {
        // One that came in a socket from before, perhaps: nobody has counted what else is in it.
        let unknown = KnownSession {
            pointer: 0,
            made_ns: 0,
            usage: Usage { files: 0, bytes: 0 },
            kept: 0,
            first_ns: 0,
            state: KnownSession::UNKNOWN,
        };
        if SESSIONS.insert(&session.name, unknown, 0).is_ok() {
            count(|account| &raw mut account.unknown, 1);
        }
    }
    let key = TokenKey {
        session: session.name,
        token,
    };
    if let Some(watched) = TOKENS.get_ptr_mut(&key) {
        // SAFETY: within the map.
        unsafe { (*watched).preserved_in = made_ns };
    }
}

/// A file was restored.
#[inline(always)]
pub fn restored(session: &Session, token: u64) {
    let key = TokenKey {
        session: session.name,
        token,
    };
    if let Some(watched) = TOKENS.get_ptr_mut(&key) {
        // SAFETY: within the map.
        unsafe { (*watched).restored_ns = now() };
    }
}

/// A session is closed: by the end of a process that held it, or on purpose.
#[inline(always)]
pub fn released(session: &Session, by_end: bool) {
    let Some(known) = SESSIONS.get_ptr_mut(&session.name) else {
        return;
    };
    // SAFETY: within the map.
    let known = unsafe { &mut *known };
    // Another of this name, from the old kernel.
    // SAFETY: a reference is a pointer that can be read.
    let is_it = unsafe { is(known, session.pointer) };
    if !is_it {
        return;
    }
    let is_unknown = known.state == KnownSession::UNKNOWN;
    if is_unknown {
        count(|account| &raw mut account.unknown, u64::MAX);
    }
    let Usage { files, bytes } = known.usage;
    count(|account| &raw mut account.usage.files, files.wrapping_neg());
    count(|account| &raw mut account.usage.bytes, bytes.wrapping_neg());
    if by_end && (files > 0 || is_unknown) {
        known.usage = Usage { files: 0, bytes: 0 };
        known.kept = 0;
        known.pointer = 0;
        known.made_ns = 0;
        known.state = KnownSession::LOST;
        count(|account| &raw mut account.lost, 1);
    } else {
        let _ = SESSIONS.remove(&session.name);
    }
}

/// What stands for a value that a map does not have: all zeros, but the verifier takes it for anything.
#[map]
static NOTHING: Array<[u64; 8]> = Array::with_max_entries(1, 0);

/// The account, as [`evaluate`](lu_common::policy::evaluate) asks it.
pub struct Kernel {
    account: &'static Account,
    nothing: &'static [u64; 8],
}

impl Kernel {
    #[inline(always)]
    pub fn new() -> Option<Self> {
        Some(Self {
            // SAFETY: within the map, which lives as long as the program; its numbers are read as they are.
            account: unsafe { &*ACCOUNT.get_ptr(0)? },
            // SAFETY: the same.
            nothing: unsafe { &*NOTHING.get_ptr(0)? },
        })
    }

    /// The value, or zeros.
    #[inline(always)]
    fn or_nothing<T: FromZeros + Copy>(&self, found: Option<*const T>) -> T {
        const { assert!(size_of::<T>() <= size_of::<[u64; 8]>()) };
        let found = found.unwrap_or((&raw const *self.nothing).cast());
        // SAFETY: within a map. Where the value is removed meanwhile its place may be another's: the answer is as old as
        // the question.
        unsafe { found.read_volatile() }
    }

    /// 1, if there are sessions that nobody has counted.
    #[inline(always)]
    fn is_any_unknown(&self) -> u64 {
        is_some(self.account.unknown.wrapping_add(noted(note::SESSIONS)))
    }

    /// 1, if it was there before anybody counted. Without one of this name there are no files in it, unless some were
    /// not counted.
    #[inline(always)]
    fn is_uncounted(&self, known: &KnownSession) -> u64 {
        let before = differ(known.state, KnownSession::UNKNOWN) ^ 1;
        before | (self.is_any_unknown() & (is_some(known.state) ^ 1))
    }
}

/// 1, if a number is not 0, else 0.
#[inline(always)]
fn is_some(number: u64) -> u64 {
    differ(number, 0)
}

impl Reckoning for Kernel {
    #[inline(always)]
    fn session(&self, name: &Text) -> Amount {
        let known: KnownSession = self.or_nothing(SESSIONS.get_ptr(name));
        // It is there, since somebody asks for something in it.
        Amount::new(known.usage, differ(known.state, KnownSession::PRESENT))
    }

    #[inline(always)]
    fn in_all(&self) -> Amount {
        Amount::new(self.account.usage, self.is_any_unknown())
    }

    #[inline(always)]
    fn token(&self, of: &TokenKey) -> Token {
        let known: KnownSession = self.or_nothing(SESSIONS.get_ptr(&of.session));
        let watched: WatchedToken = self.or_nothing(TOKENS.get_ptr(of));
        // In the session that has the name now.
        let preserved = is_some(known.made_ns) & (differ(known.made_ns, watched.preserved_in) ^ 1);
        let unwatched = is_some(watched.since_ns) ^ 1;
        // Files that were there before anybody looked for this one.
        let before = is_some(known.usage.files) & below(known.first_ns, watched.since_ns);
        let unknown = self.is_uncounted(&known) | unwatched | before;
        let restored = is_some(watched.restored_ns);
        let unseen = unwatched | is_some(watched.may_be_restored);
        Token {
            usage: Amount::new(
                Usage {
                    files: known.kept,
                    bytes: known.usage.bytes,
                },
                self.is_uncounted(&known),
            ),
            preserved: Answer::new(preserved, unknown & (preserved ^ 1)),
            restored: Answer::new(restored, unseen & (restored ^ 1)),
        }
    }

    #[inline(always)]
    fn is_device_free(&self) -> Answer {
        let open = self.account.opens.wrapping_add(noted(note::OPENS));
        Answer::new(is_some(open) ^ 1, 0)
    }

    #[inline(always)]
    fn is_image_loaded(&self) -> Answer {
        let at = landmark!(kexec_image);
        let image: Option<u64> = if at == 0 { None } else { Checked::read(at) };
        image.map(|image| image != 0).into()
    }

    #[inline(always)]
    fn is_no_session_lost(&self) -> Answer {
        Answer::new(is_some(self.account.lost) ^ 1, 0)
    }
}
