//! What was there before anybody counted: sessions and open devices, found through the processes that hold them.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;

use aya::Ebpf;
use aya::maps::{Array, HashMap, Map};
use lu_common::policy::{Account, KnownSession, Name, Text, note};

use super::{Error, NO_EXIST, Plain};
use crate::emulate::DEVICE;

/// How a session's descriptor reads in `/proc/PID/fd` (Linux 7.3), before the name.
const SESSION: &[u8] = b"anon_inode:[luo_session] ";

/// Notes them as unknown: what is in them nobody has counted. Descriptors on their way through a socket are not
/// found.
pub fn note(programs: &mut Ebpf) -> Result<(), Error> {
    let found = held();
    let mut sessions: HashMap<_, Text, Plain<KnownSession>> =
        HashMap::try_from(map(programs, "SESSIONS")?)?;
    let mut unknown_sessions = 0;
    for name in &found.sessions {
        let unknown = KnownSession {
            state: KnownSession::UNKNOWN,
            ..KnownSession::default()
        };
        // One that was made meanwhile is known, and who holds it twice is found twice.
        let noted = sessions.insert(Name::new(name).text, Plain(unknown), NO_EXIST);
        unknown_sessions += u64::from(noted.is_ok());
    }
    let account: Array<_, Plain<Account>> = Array::try_from(map(programs, "ACCOUNT")?)?;
    // One open file alone may exist: where that was opened since anybody counts it is not one from before.
    let is_counted = account.get(&0, 0)?.0.opens as i64 > 0;
    let opens = u64::from(found.is_open && !is_counted);
    let mut notes: Array<_, u64> = Array::try_from(map(programs, "NOTES")?)?;
    notes.set(note::SESSIONS, unknown_sessions, 0)?;
    notes.set(note::OPENS, opens, 0)?;
    Ok(())
}

fn map<'a>(programs: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Map, Error> {
    let map = programs.map_mut(name);
    map.ok_or_else(|| Error::Programs(format!("there is no map {name}")))
}

/// What some process holds.
#[derive(Default)]
struct Held {
    sessions: Vec<Vec<u8>>,
    /// Whether the device is open.
    is_open: bool,
}

fn held() -> Held {
    let mut held = Held::default();
    let entries = |path| fs::read_dir(path).into_iter().flatten().flatten();
    for process in entries("/proc".into()) {
        let is_process = process
            .file_name()
            .as_bytes()
            .first()
            .is_some_and(u8::is_ascii_digit);
        if !is_process {
            continue;
        }
        for descriptor in entries(process.path().join("fd")) {
            let Ok(target) = fs::read_link(descriptor.path()) else {
                continue;
            };
            let target = target.as_os_str().as_bytes();
            if let Some(name) = target.strip_prefix(SESSION) {
                held.sessions.push(name.to_owned());
            } else if target == DEVICE.as_bytes() {
                held.is_open = true;
            }
        }
    }
    held
}
