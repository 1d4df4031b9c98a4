//! What a new kernel says of the kexec that it came from: true also where lu did not watch the old one.

use lu_common::event;
use serde::{Deserialize, Serialize};

use super::names::shown;

/// Each is `None` where the kernel does not say it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handover {
    /// The release of the kernel before (`KHO: exec from`).
    pub exec_from: Option<String>,
    /// How many kexecs there were since power-on, this one counted.
    pub kexecs: Option<u32>,
    /// How many live updates there were since power-on, this one counted (`liveupdate number`).
    pub liveupdate_number: Option<u64>,
}

impl From<event::Handover> for Handover {
    fn from(raw: event::Handover) -> Self {
        Self {
            exec_from: Some(shown(&raw.release)).filter(|release| !release.is_empty()),
            kexecs: Some(raw.kexecs).filter(|count| *count > 0),
            liveupdate_number: Some(raw.updates).filter(|count| *count > 0),
        }
    }
}
