//! What is preserved: the account by which quotas and requirements are judged, kept by the programs themselves.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap};
use lu_common::policy::{Account, KnownSession, Standing, TokenKey, Usage, WatchedToken};

use super::asked::{Session, landmark};
use crate::call::{add, now};
use crate::orchestrator::{Checked, Read as _};

/// `BPF_F_NO_PREALLOC` (`include/uapi/linux/bpf.h`).
const NO_PREALLOC: u32 = 1;

/// Sessions that are being made ready, by the id of their name.
#[map]
static SESSIONS: HashMap<u64, KnownSession> = HashMap::with_max_entries(65_536, NO_PREALLOC);

/// The tokens that requirements ask for. User space puts them in.
#[map]
static TOKENS: HashMap<TokenKey, WatchedToken> = HashMap::with_max_entries(1024, NO_PREALLOC);

/// All together.
#[map]
static ACCOUNT: Array<Account> = Array::with_max_entries(1, 0);

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

/// Counts files and bytes of a session in or out, the latter by wrapping around; whether it is known. A file that may
/// be preserved is counted before it is judged, so that no other takes its place meanwhile.
#[inline(always)]
pub fn change(session: u64, files: u64, bytes: u64) -> bool {
    let Some(known) = SESSIONS.get_ptr_mut(session) else {
        return false;
    };
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

/// The device is opened by one more, or by one less.
#[inline(always)]
pub fn opened(by: u64) {
    count(|account| &raw mut account.opens, by);
}

/// A session was made.
#[inline(always)]
pub fn created(session: Session) {
    let new = KnownSession {
        pointer: session.pointer,
        usage: Usage { files: 0, bytes: 0 },
        first_ns: 0,
        state: 0,
    };
    if let Some(old) = SESSIONS.get_ptr_mut(session.id) {
        // SAFETY: within the map.
        if unsafe { (*old).state } == KnownSession::LOST {
            count(|account| &raw mut account.lost, u64::MAX);
        }
    }
    if session.id == 0 || SESSIONS.insert(session.id, new, 0).is_err() {
        count(|account| &raw mut account.unknown, 1);
    }
}

/// A file was preserved.
#[inline(always)]
pub fn preserved(session: Session, token: u64) {
    if let Some(known) = SESSIONS.get_ptr_mut(session.id) {
        // SAFETY: within the map.
        let first = unsafe { &mut (*known).first_ns };
        if *first == 0 {
            *first = now();
        }
    }
    let key = TokenKey {
        session: session.id,
        token,
    };
    if let Some(watched) = TOKENS.get_ptr_mut(key) {
        // SAFETY: within the map.
        unsafe { (*watched).preserved_in = session.pointer };
    }
}

/// A file was restored.
#[inline(always)]
pub fn restored(session: Session, token: u64) {
    let key = TokenKey {
        session: session.id,
        token,
    };
    if let Some(watched) = TOKENS.get_ptr_mut(key) {
        // SAFETY: within the map.
        unsafe { (*watched).restored_ns = now() };
    }
}

/// A session is closed: by the end of a process that held it, or on purpose.
#[inline(always)]
pub fn released(session: Session, by_end: bool) {
    let Some(known) = SESSIONS.get_ptr_mut(session.id) else {
        return;
    };
    // SAFETY: within the map.
    let known = unsafe { &mut *known };
    // Another of this name, from the old kernel.
    if known.state != KnownSession::UNKNOWN && known.pointer != session.pointer {
        return;
    }
    let Usage { files, bytes } = known.usage;
    count(|account| &raw mut account.usage.files, files.wrapping_neg());
    count(|account| &raw mut account.usage.bytes, bytes.wrapping_neg());
    if by_end && files > 0 {
        known.usage = Usage { files: 0, bytes: 0 };
        known.pointer = 0;
        known.state = KnownSession::LOST;
        count(|account| &raw mut account.lost, 1);
    } else {
        let _ = SESSIONS.remove(session.id);
    }
}

/// The account, as [`evaluate`](lu_common::policy::evaluate) asks it.
pub struct Kernel;

impl Kernel {
    #[inline(always)]
    fn known<'a>(session: u64) -> Option<&'a KnownSession> {
        // SAFETY: within the map. Where the session is closed meanwhile its place may be another's: the answer is
        // as old as the question.
        SESSIONS.get_ptr(session).map(|known| unsafe { &*known })
    }

    #[inline(always)]
    fn watched<'a>(session: u64, token: u64) -> Option<&'a WatchedToken> {
        let key = TokenKey { session, token };
        // SAFETY: the same.
        TOKENS.get_ptr(key).map(|watched| unsafe { &*watched })
    }

    #[inline(always)]
    fn account<'a>() -> Option<&'a Account> {
        // SAFETY: within the map, whose numbers are read as they are.
        ACCOUNT.get_ptr(0).map(|account| unsafe { &*account })
    }
}

impl Standing for Kernel {
    #[inline(always)]
    fn session(&self, session: u64) -> Option<Usage> {
        match Self::known(session) {
            Some(known) => (known.state != KnownSession::UNKNOWN).then_some(known.usage),
            // Without one of this name there are no files in it, unless some were not counted.
            None => (session != 0 && Self::account()?.unknown == 0)
                .then_some(Usage { files: 0, bytes: 0 }),
        }
    }

    #[inline(always)]
    fn in_all(&self) -> Option<Usage> {
        let account = Self::account()?;
        (account.unknown == 0).then_some(account.usage)
    }

    #[inline(always)]
    fn is_preserved(&self, session: u64, token: u64) -> Option<bool> {
        let watched = Self::watched(session, token)?;
        let Some(known) = Self::known(session) else {
            return (Self::account()?.unknown == 0).then_some(false);
        };
        if watched.preserved_in != 0 && watched.preserved_in == known.pointer {
            return Some(true);
        }
        // Files that were there before anybody looked for this one.
        let before = known.state == KnownSession::UNKNOWN
            || (known.usage.files > 0 && known.first_ns < watched.since_ns);
        (!before).then_some(false)
    }

    #[inline(always)]
    fn is_restored(&self, session: u64, token: u64) -> Option<bool> {
        let watched = Self::watched(session, token)?;
        if watched.restored_ns != 0 {
            return Some(true);
        }
        (watched.may_be_restored == 0).then_some(false)
    }

    #[inline(always)]
    fn is_device_free(&self) -> Option<bool> {
        let account = Self::account()?;
        Some(account.opens.wrapping_add(account.opens_before) == 0)
    }

    #[inline(always)]
    fn is_image_loaded(&self) -> Option<bool> {
        let at = landmark!(kexec_image);
        if at == 0 {
            return None;
        }
        let image: u64 = Checked::read(at)?;
        Some(image != 0)
    }

    #[inline(always)]
    fn is_no_session_lost(&self) -> Option<bool> {
        Some(Self::account()?.lost == 0)
    }
}
