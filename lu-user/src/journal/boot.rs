//! What the running kernel tells of its own beginning, which no probe sees: its log, and what the kernel before
//! it left for it.

use std::fs::{self, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::OnceLock;

use lu_common::event::{Handover, Kind, Record};
use zerocopy::byteorder::little_endian::U32;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::clocks::now_ns;

/// What the kernel before left (`struct kho_kexec_metadata`, Linux 7.3). Its neighbour `LUO` must never be
/// read: the memory behind it is free by now.
const METADATA: &str = "/sys/kernel/debug/kho/in/sub_fdts/kexec-metadata";

/// What is known of the boot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Boot {
    /// When the kernel handed over to user space (`Run /init as init process`), in nanoseconds since it
    /// began; with a resolution of 1 µs.
    pub init_ns: Option<u64>,
    /// The release of the kernel before.
    pub previous: Option<String>,
    /// How many kexecs there were since power-on.
    pub kexecs: Option<u32>,
    /// How many live updates there were since power-on, by the orchestrator's own count.
    pub updates: Option<u64>,
}

/// That of the kernel that runs, read once, and so with the privileges of the first who asks.
#[must_use]
pub fn boot() -> &'static Boot {
    static BOOT: OnceLock<Boot> = OnceLock::new();
    BOOT.get_or_init(|| {
        let mut boot = Boot::default();
        read_log(&mut boot);
        if let Some((previous, kexecs)) = fs::read(METADATA).ok().and_then(|bytes| metadata(&bytes))
        {
            boot.previous = Some(previous);
            boot.kexecs = Some(kexecs);
        }
        boot
    })
}

/// A [`Kind::Handover`] record of that; `None` where nothing says that the kernel came by a kexec.
#[must_use]
pub fn handover() -> Option<Record> {
    let boot = boot();
    if boot.previous.is_none() && boot.kexecs.is_none() && boot.updates.is_none() {
        return None;
    }
    let mut handover = Handover {
        kexecs: boot.kexecs.unwrap_or(0),
        updates: boot.updates.unwrap_or(0),
        padding: 0,
        release: [0; 48],
    };
    let release = boot.previous.as_deref().unwrap_or_default().as_bytes();
    let length = release.len().min(handover.release.len() - 1);
    handover.release[..length].copy_from_slice(&release[..length]);
    Some(Record::made(
        Kind::Handover,
        now_ns(),
        zerocopy::transmute!(handover),
    ))
}

/// Goes through the kernel's log up to where user space begins. What has been overwritten stays unknown.
fn read_log(boot: &mut Boot) {
    let log = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/kmsg");
    let Ok(mut log) = log else { return };
    let mut message = [0; 8192];
    while boot.init_ns.is_none() {
        match log.read(&mut message) {
            Ok(0) => break,
            Ok(length) => boot.hear(&String::from_utf8_lossy(&message[..length])),
            // Some messages were overwritten meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(_) => break,
        }
    }
}

impl Boot {
    /// Takes in one message of the log: `priority,number,µs,…;text`.
    fn hear(&mut self, message: &str) {
        let Some((head, text)) = message.split_once(';') else {
            return;
        };
        let mut fields = head.split(',');
        // The facility is in the higher bits: what is not the kernel's own, anybody may have written.
        let is_kernels = fields
            .next()
            .and_then(|priority| priority.parse::<u32>().ok())
            .is_some_and(|priority| priority >> 3 == 0);
        if !is_kernels {
            return;
        }
        let text = text.lines().next().unwrap_or_default();
        if let Some(rest) = text.strip_prefix("KHO: exec from: ") {
            if let Some((release, count)) = rest.rsplit_once(" (count ") {
                self.previous = Some(release.to_owned());
                self.kexecs = count.trim_end_matches(')').parse().ok();
            }
        } else if let Some(number) =
            text.strip_prefix("luo: Retrieved live update data, liveupdate number: ")
        {
            self.updates = number.parse().ok();
        } else if text.starts_with("Run ") && text.ends_with(" as init process") {
            self.init_ns = fields
                .nth(1)
                .and_then(|us| us.parse::<u64>().ok())
                .and_then(|us| us.checked_mul(1000));
        }
    }
}

/// `struct kho_kexec_metadata`, packed.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
struct Metadata {
    version: U32,
    previous_release: [u8; 65],
    kexec_count: U32,
}

const _: () = assert!(size_of::<Metadata>() == 73);

/// The release of the kernel before, and how many kexecs there were; `None` where this is something else.
fn metadata(bytes: &[u8]) -> Option<(String, u32)> {
    let metadata = Metadata::read_from_bytes(bytes).ok()?;
    let release = metadata.previous_release;
    let end = release.iter().position(|byte| *byte == 0)?;
    let release = std::str::from_utf8(&release[..end]).ok()?;
    (metadata.version == 1 && !release.is_empty())
        .then(|| (release.to_owned(), metadata.kexec_count.get()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(messages: &[&str]) -> Boot {
        let mut boot = Boot::default();
        for message in messages {
            boot.hear(message);
        }
        boot
    }

    #[test]
    fn the_log_tells_of_the_kexec_the_live_update_and_the_first_process() {
        let boot = heard(&[
            "6,401,402225,-;luo: Retrieved live update data, liveupdate number: 3\n",
            "6,477,648364,-;KHO: exec from: 7.3.4-cloud (arm64) (count 12)\n SUBSYSTEM=x\n",
            "6,1234,1517035,-;Run /init as init process\n",
        ]);
        assert_eq!(
            boot,
            Boot {
                init_ns: Some(1_517_035_000),
                previous: Some("7.3.4-cloud (arm64)".into()),
                kexecs: Some(12),
                updates: Some(3),
            }
        );
    }

    #[test]
    fn what_the_kernel_did_not_say_itself_is_not_heard() {
        let boot = heard(&[
            "12,401,402225,-;luo: Retrieved live update data, liveupdate number: 3",
            "14,477,648364,-;KHO: exec from: 7.3.4 (count 1)",
            "6,1234,1517035,-;Running /init",
            "6,1234,1517035,-;luo: Retrieved live update data, liveupdate number: many",
            "no message",
            ";",
            "",
        ]);
        assert_eq!(boot, Boot::default());
    }

    #[test]
    fn the_metadata_of_the_kernel_before_are_read_and_what_is_something_else_is_not() {
        let mut bytes = vec![1, 0, 0, 0];
        bytes.extend(b"7.3.4");
        bytes.resize(4 + 65, 0);
        bytes.extend(9_u32.to_le_bytes());
        assert_eq!(metadata(&bytes), Some(("7.3.4".into(), 9)));
        for length in 0..bytes.len() {
            assert_eq!(metadata(&bytes[..length]), None, "{length} bytes");
        }
        bytes[0] = 2;
        assert_eq!(metadata(&bytes), None);
        assert_eq!(metadata(&[0xFF; 73]), None);
        assert_eq!(metadata(&[0; 73]), None);
    }
}
