//! What was there before anybody counted: sessions and open devices, found through the processes that hold them.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;

use aya::maps::{Array, HashMap, MapData};
use lu_common::policy::{Account, KnownSession, Name, Text};

use super::{Error, NO_EXIST, Plain};
use crate::emulate::DEVICE;

/// How a session's descriptor reads in `/proc/PID/fd` (Linux 7.3), before the name.
const SESSION: &[u8] = b"anon_inode:[luo_session] ";

/// Notes them as unknown: what is in them nobody has counted. Descriptors on their way through a socket are not
/// found.
pub fn note(
    sessions: &mut HashMap<MapData, Text, Plain<KnownSession>>,
    account: &mut Array<MapData, Plain<Account>>,
) -> Result<(), Error> {
    let found = held();
    for name in &found.sessions {
        let unknown = KnownSession {
            state: KnownSession::UNKNOWN,
            ..KnownSession::default()
        };
        // One that was made meanwhile is known.
        let _ = sessions.insert(Name::new(name).text, Plain(unknown), NO_EXIST);
    }
    if found.devices > 0 {
        let mut before = account.get(&0, 0)?.0;
        before.opens_before = found.devices;
        account.set(0, Plain(before), 0)?;
    }
    Ok(())
}

/// What some process holds.
#[derive(Default)]
struct Held {
    sessions: Vec<Vec<u8>>,
    devices: u64,
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
                // One open file alone may exist, whoever holds how many descriptors of it.
                held.devices = 1;
            }
        }
    }
    held
}
