//! Records of live updates that never took place, as the hooks on a kernel would have sent them.

use lu_common::event::{Anchor, FileKind, Kind, Record, SessionName, flags, known, session_id};
use lu_user::journal::clocks::realtime_ns;

/// The sessions of each update.
const SESSIONS: [&str; 2] = ["vm-0001", "vm-0002"];

/// The tokens in each of them.
const TOKENS: [u64; 3] = [1, 2, u64::MAX];

/// What a call takes, and the time to the next one, in nanoseconds.
const CALL: u64 = 10_000;

/// How long a kexec takes, in nanoseconds.
const DARK: u64 = 3_000_000_000;

/// A machine whose time goes on by what is done with it.
pub struct Machine {
    /// The counter, which ticks every nanosecond, and `CLOCK_REALTIME`.
    now: u64,
    /// What both were when the running kernel started.
    booted: u64,
}

impl Machine {
    /// A kernel that has been up for a second. Each call gives another one.
    pub fn new() -> Self {
        let now = realtime_ns();
        Self {
            now,
            booted: now - 1_000_000_000,
        }
    }

    /// What lu notes when it starts.
    pub fn start(&mut self) -> Vec<Record> {
        let mut release = [0; 64];
        release[..5].copy_from_slice(b"7.3.4");
        let kernel = Record::made(Kind::Kernel, self.t_ns(), release);
        vec![kernel, self.anchor(), self.anchor()]
    }

    /// All clocks, 200 ms later.
    pub fn anchor(&mut self) -> Record {
        self.now += 200_000_000;
        let anchor = Anchor {
            // When a kernel started tells it from others.
            boot_id: u128::from(self.booted).to_be_bytes(),
            counter: self.now,
            raw_ns: self.t_ns(),
            realtime_ns: self.now,
            spread_ns: 40,
            init_ns: 0,
            tick_ns: 1000,
        };
        Record::made(Kind::Anchor, self.t_ns(), zerocopy::transmute!(anchor))
    }

    /// A whole live update, with the clocks as the new kernel's lu reads them.
    pub fn update(&mut self) -> Vec<Record> {
        let mut records = self.old_half();
        records.extend(self.new_half());
        records
    }

    /// To the stop of the CPUs.
    pub fn old_half(&mut self) -> Vec<Record> {
        let mut records = Vec::new();
        for name in SESSIONS {
            records.push(Record::made(Kind::Name, self.t_ns(), padded(name)));
            records.push(self.call(Kind::SessionCreate, name, None));
            for token in TOKENS {
                records.push(self.call(Kind::Preserve, name, Some(token)));
            }
        }
        let mut kexec = self.call(Kind::Kexec, SESSIONS[0], None);
        kexec.header.flags &= !flags::EXIT;
        kexec.call = zerocopy::transmute!([0_u8; 64]);
        records.extend([kexec, self.anchor()]);
        for name in SESSIONS {
            for token in TOKENS {
                records.push(self.call(Kind::FileFreeze, name, Some(token)));
            }
            records.push(self.call(Kind::SessionFreeze, name, None));
        }
        records.push(self.call(Kind::Freeze, SESSIONS[0], None));
        records.push(Record::made(Kind::LastBeat, self.t_ns(), [0; 64]));
        self.now += DARK;
        self.booted = self.now - 1_000_000_000;
        records
    }

    /// From the start of lu to the last FINISH, and as long as it takes to know the new kernel's clock.
    pub fn new_half(&mut self) -> Vec<Record> {
        let mut records = self.start();
        for name in SESSIONS {
            records.push(self.call(Kind::SessionRetrieve, name, None));
            for token in TOKENS {
                records.push(self.call(Kind::Restore, name, Some(token)));
            }
            records.push(self.call(Kind::SessionFinish, name, None));
        }
        records
    }

    /// Something that fails, and is no update.
    pub fn refused_open(&mut self) -> Record {
        let mut record = self.call(Kind::Open, SESSIONS[0], None);
        record.call = zerocopy::transmute!([0_u8; 64]);
        record.header.ret = -libc::EBUSY;
        record
    }

    fn t_ns(&self) -> u64 {
        self.now - self.booted
    }

    fn call(&mut self, kind: Kind, session: &str, token: Option<u64>) -> Record {
        let mut record = Record::made(kind, self.t_ns(), [0; 64]);
        record.header.dur_ns = CALL / 2;
        record.header.flags = flags::EXIT | flags::SESSIONS | flags::TASK;
        record.header.tid = 7;
        record.call.session = session_id(&padded(session));
        record.call.known = known::SESSION;
        if let Some(token) = token {
            record.call.token = token;
            record.call.bytes = 1 << 20;
            record.call.file_kind = FileKind::Memfd as u16;
            record.call.known |= known::TOKEN | known::FILE;
        }
        self.now += CALL;
        record
    }
}

fn padded(name: &str) -> SessionName {
    let mut padded = [0; 64];
    padded[..name.len()].copy_from_slice(name.as_bytes());
    padded
}
