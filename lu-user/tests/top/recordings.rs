//! Records of live updates that never took place, one state of an update each: what the screens are shown with.

use lu_common::event::{
    Anchor, FileKind, Handover, Kind, PolicyLoaded, Record, RuleName, Section, SessionName, flags,
    known, session_id,
};
use lu_common::policy::{Attribute, Decision, Judged, NO_RULE, Operation};
use lu_common::uapi::v3;

/// A millisecond, and a second.
const MS: u64 = 1_000_000;
const S: u64 = 1000 * MS;

/// When the first kernel had been up for a while, in nanoseconds since 1970.
const BEGIN: u64 = 1_795_600_000 * S;

/// Sessions, and the files in each.
pub struct Load {
    pub sessions: u64,
    pub files: u64,
}

/// What every small recording has.
pub const FEW: Load = Load {
    sessions: 3,
    files: 4,
};

/// A machine, and what was recorded of it.
pub struct Tape {
    pub records: Vec<Record>,
    /// The counter, which ticks every nanosecond, and `CLOCK_REALTIME`.
    now: u64,
    /// What both were when the running kernel started.
    booted: u64,
    flags: u8,
}

impl Tape {
    /// A kernel that has been up for a minute.
    fn new(flags: u8) -> Self {
        let mut tape = Self {
            records: Vec::new(),
            now: BEGIN,
            booted: BEGIN - 60 * S,
            flags,
        };
        tape.watched("7.3.4", 0);
        tape.wait(200 * MS).anchor(0);
        tape
    }

    fn sessions() -> Self {
        Self::new(flags::SESSIONS)
    }

    fn v3() -> Self {
        Self::new(flags::EMULATED)
    }

    fn t_ns(&self) -> u64 {
        self.now - self.booted
    }

    fn wait(&mut self, ns: u64) -> &mut Self {
        self.now += ns;
        self
    }

    /// lu starts to watch.
    fn watched(&mut self, release: &str, init_ns: u64) -> &mut Self {
        let kernel = Record::made(Kind::Kernel, self.t_ns(), padded(release));
        self.records.push(kernel);
        self.anchor(init_ns)
    }

    fn anchor(&mut self, init_ns: u64) -> &mut Self {
        let anchor = Anchor {
            boot_id: u128::from(self.booted).to_be_bytes(),
            counter: self.now,
            raw_ns: self.t_ns(),
            realtime_ns: self.now,
            spread_ns: 40,
            init_ns,
            tick_ns: 1000,
        };
        let record = Record::made(Kind::Anchor, self.t_ns(), zerocopy::transmute!(anchor));
        self.records.push(record);
        self
    }

    /// A call, or a function within one, that takes `ns`.
    fn call(&mut self, kind: Kind, ns: u64, fill: impl FnOnce(&mut Record)) -> &mut Self {
        let mut record = Record::made(kind, self.t_ns(), [0; 64]);
        record.header.dur_ns = ns;
        record.header.flags = flags::EXIT | flags::TASK | self.flags;
        record.header.pid = 812;
        record.header.tid = 812;
        record.header.cgroup_id = 4711;
        record.header.comm[..4].copy_from_slice(b"luod");
        fill(&mut record);
        self.now += ns + 1000;
        self.records.push(record);
        self
    }

    fn enter(&mut self, kind: Kind) -> &mut Self {
        self.call(kind, 1000, |record| record.header.flags &= !flags::EXIT)
    }

    fn of_session(&mut self, kind: Kind, ns: u64, number: u64) -> &mut Self {
        let id = session_id(&padded(&name(number)));
        self.call(kind, ns, |record| {
            record.call.session = id;
            record.call.known = known::SESSION;
        })
    }

    fn of_file(&mut self, kind: Kind, ns: u64, session: u64, token: u64, ret: i32) -> &mut Self {
        let is_v3 = self.flags & flags::SESSIONS == 0;
        self.call(kind, ns, |record| {
            record.header.ret = ret;
            record.header.pid = 1000 + session as u32;
            let comm: &[u8] = if token.is_multiple_of(4) {
                b"virtiofsd"
            } else {
                b"qemu-system-x86"
            };
            record.header.comm = [0; 16];
            record.header.comm[..comm.len()].copy_from_slice(comm);
            record.header.cgroup_id = 5000 + session;
            record.call.token = token;
            record.call.bytes = (4 << 10) << (token % 20);
            record.call.file_kind = match token % 4 {
                0 => FileKind::HugetlbMemfd,
                3 => FileKind::Vfio,
                _ => FileKind::Memfd,
            } as u16;
            record.call.known = known::TOKEN | known::FILE;
            if is_v3 {
                record.call.cmd = match kind {
                    Kind::Preserve => v3::FD_PRESERVE,
                    Kind::Restore => v3::FD_RESTORE,
                    _ => return,
                };
                record.call.known |= known::CMD;
            } else {
                record.call.session = session_id(&padded(&name(session)));
                record.call.known |= known::SESSION;
            }
        })
    }

    fn preserved(&mut self, load: &Load) -> &mut Self {
        for session in 0..load.sessions {
            let told = Record::made(Kind::Name, self.t_ns(), padded(&name(session)));
            self.records.push(told);
            self.of_session(Kind::SessionCreate, 20_000, session);
            for token in 1..=load.files {
                let ns = 30_000 + 7_000 * (token % 13);
                self.of_file(Kind::Preserve, ns, session, token, 0);
            }
        }
        self
    }

    fn entered(&mut self) -> &mut Self {
        self.wait(40 * S);
        self.records
            .push(Record::made(Kind::Kexec, self.t_ns(), [0; 64]));
        let flags = self.flags | flags::TASK;
        if let Some(last) = self.records.last_mut() {
            last.header.flags = flags;
            last.header.tid = 812;
        }
        self.wait(2 * MS).anchor(0)
    }

    fn frozen(&mut self, load: &Load) -> &mut Self {
        for session in 0..load.sessions {
            self.frozen_session(load, session);
        }
        self.call(Kind::Freeze, 60_000, |_| {})
    }

    fn frozen_session(&mut self, load: &Load, session: u64) -> &mut Self {
        for token in 1..=load.files {
            let ns = 20_000 + 11_000 * (token % 7);
            self.of_file(Kind::FileFreeze, ns, session, token, 0);
        }
        self.of_session(Kind::SessionFreeze, 200_000, session)
    }

    fn shut_down(&mut self) -> &mut Self {
        self.enter(Kind::RestartPrepare)
            .wait(MS)
            .enter(Kind::DeviceShutdown)
            .wait(180 * MS)
            .enter(Kind::MigrateCpu)
            .enter(Kind::SyscoreShutdown)
            .wait(2 * MS)
            .enter(Kind::MachineShutdown)
            .wait(4 * MS)
    }

    fn jumped(&mut self) -> &mut Self {
        let beat = Record::made(Kind::LastBeat, self.t_ns(), [0; 64]);
        self.records.push(beat);
        self.wait(900 * MS);
        self.booted = self.now;
        self
    }

    fn booted(&mut self) -> &mut Self {
        self.wait(1600 * MS).watched("7.3.4", 1400 * MS);
        let mut release = [0; 48];
        release[..5].copy_from_slice(b"7.3.4");
        let handover = Handover {
            updates: 3,
            kexecs: 5,
            padding: 0,
            release,
        };
        let record = Record::made(Kind::Handover, self.t_ns(), zerocopy::transmute!(handover));
        self.records.push(record);
        self.wait(300 * MS).anchor(1400 * MS)
    }

    fn restored(&mut self, load: &Load, sessions: u64, but: u64) -> &mut Self {
        for session in 0..sessions {
            self.of_session(Kind::SessionRetrieve, 30_000, session);
            for token in 1..=load.files - but {
                let ns = 50_000 + 9_000 * (token % 11);
                self.of_file(Kind::Restore, ns, session, token, 0);
            }
        }
        self
    }

    fn finished(&mut self, sessions: u64) -> &mut Self {
        for session in 0..sessions {
            self.of_session(Kind::SessionFinish, 40_000, session);
        }
        self.wait(100 * MS).anchor(1400 * MS)
    }

    fn lost(&mut self, count: u64) -> &mut Self {
        let mut record = Record::made(Kind::Lost, self.t_ns(), [0; 64]);
        record.call.bytes = count;
        self.records.push(record);
        self
    }

    /// A policy is loaded and speaks.
    fn judged(&mut self) -> &mut Self {
        let loaded = PolicyLoaded {
            generation: 2,
            sha256: [0x5a; 32],
            rules: 2,
            enforced: 1,
            loginuid: 1000,
            padding: 0,
            reserved: 0,
        };
        self.call(Kind::Policy, 0, |record| {
            record.call = zerocopy::transmute!(loaded);
        });
        for (number, section, is_enforced, name) in [
            (0, Section::Access, true, "operators alone"),
            (1, Section::Quota, false, "a gigabyte each"),
        ] {
            let rule = RuleName::new(2, number, section, is_enforced, name);
            let record = Record::made(Kind::Rule, self.t_ns(), zerocopy::transmute!(rule));
            self.records.push(record);
        }
        for (decision, rule, unsure, count) in [
            (Decision::Deny, 0, 0, 3),
            (Decision::WouldDeny, 1, 0, 1),
            (Decision::Allow, NO_RULE, 1, 1),
        ] {
            for _ in 0..count {
                let judged = Judged {
                    generation: 2,
                    session: session_id(&padded(&name(0))),
                    token: 5,
                    known: Attribute::Session.bit() | Attribute::Token.bit(),
                    fd: -1,
                    operation: Operation::Preserve as u8,
                    decision: decision as u8,
                    rule,
                    unsure,
                    errno: libc::EACCES as u8,
                    ..Judged::default()
                };
                self.call(Kind::Verdict, 0, |record| {
                    record.header.flags &= !flags::EXIT;
                    record.header.pid = 4242;
                    record.header.comm = *b"intruder\0\0\0\0\0\0\0\0";
                    record.call = zerocopy::transmute!(judged);
                });
            }
        }
        self
    }

    fn v3_prepared(&mut self) -> &mut Self {
        for token in 1..=4 {
            self.of_file(Kind::Preserve, 40_000, 0, token, 0);
        }
        self
    }
}

fn name(number: u64) -> String {
    format!("vm-{number:04}")
}

fn padded(name: &str) -> SessionName {
    let mut padded = [0; 64];
    padded[..name.len()].copy_from_slice(name.as_bytes());
    padded
}

/// A whole update of many files, over two kernels.
pub fn whole(load: &Load) -> Tape {
    let mut tape = Tape::sessions();
    tape.preserved(load)
        .entered()
        .frozen(load)
        .shut_down()
        .jumped()
        .booted()
        .restored(load, load.sessions, 0)
        .finished(load.sessions);
    tape
}

/// An update whose files are preserved, and go on to be.
pub fn preserving(load: &Load) -> Tape {
    let mut tape = Tape::sessions();
    tape.preserved(load);
    tape
}

/// One of each state, with its name.
pub fn all() -> Vec<(&'static str, Tape)> {
    let mut all = Vec::new();
    let mut add = |name, mut tape: Tape, more: &dyn Fn(&mut Tape)| {
        more(&mut tape);
        all.push((name, tape));
    };
    let to_restore = |tape: &mut Tape| {
        tape.preserved(&FEW).entered().frozen(&FEW).shut_down();
        tape.jumped().booted();
    };
    add("empty", Tape::sessions(), &|_| {});
    add("preserve", Tape::sessions(), &|tape| {
        tape.preserved(&FEW);
    });
    add("wait-prepare", Tape::v3(), &|tape| {
        tape.v3_prepared();
    });
    add("wait-reboot", Tape::v3(), &|tape| {
        tape.v3_prepared().call(Kind::Prepare, 300_000, |_| {});
    });
    add("reboot", Tape::sessions(), &|tape| {
        tape.preserved(&FEW).entered();
    });
    add("freeze", Tape::sessions(), &|tape| {
        tape.preserved(&FEW).entered().frozen_session(&FEW, 0);
    });
    add("shutdown", Tape::sessions(), &|tape| {
        tape.preserved(&FEW).entered().frozen(&FEW);
        tape.enter(Kind::RestartPrepare).enter(Kind::DeviceShutdown);
    });
    add("boot", Tape::v3(), &|tape| {
        tape.v3_prepared().call(Kind::Prepare, 300_000, |_| {});
        tape.enter(Kind::Kexec).enter(Kind::Reboot);
        for token in 1..=4 {
            tape.of_file(Kind::FileFreeze, 30_000, 0, token, 0);
        }
        tape.call(Kind::Freeze, 60_000, |_| {}).enter(Kind::Jump);
    });
    add("userspace", Tape::sessions(), &to_restore);
    add("restore", Tape::sessions(), &|tape| {
        to_restore(tape);
        tape.restored(&FEW, 2, 1);
    });
    add("wait-finish", Tape::sessions(), &|tape| {
        to_restore(tape);
        tape.restored(&FEW, FEW.sessions, 0);
    });
    add("finish", Tape::sessions(), &|tape| {
        to_restore(tape);
        tape.restored(&FEW, FEW.sessions, 0).finished(1);
    });
    add("finished", whole(&FEW), &|_| {});
    add("cancelled", Tape::v3(), &|tape| {
        tape.v3_prepared().call(Kind::Prepare, 300_000, |_| {});
        tape.wait(S).call(Kind::Cancel, 50_000, |_| {});
    });
    add("failed-freeze", Tape::sessions(), &|tape| {
        tape.preserved(&FEW).entered().frozen_session(&FEW, 0);
        tape.of_file(Kind::FileFreeze, 30_000, 1, 1, -libc::EBUSY);
        tape.call(Kind::Freeze, 60_000, |record| {
            record.header.ret = -libc::EBUSY;
        });
        tape.call(Kind::Kexec, 3 * MS, |record| {
            record.header.ret = -libc::EBUSY;
        });
    });
    add("unclaimed", Tape::sessions(), &|tape| {
        to_restore(tape);
        tape.restored(&FEW, FEW.sessions, 1).finished(FEW.sessions);
    });
    add("lossy", Tape::sessions(), &|tape| {
        tape.preserved(&FEW).lost(12);
        tape.entered().frozen(&FEW).shut_down().jumped().booted();
        tape.restored(&FEW, FEW.sessions, 0).finished(FEW.sessions);
    });
    add("judged", Tape::sessions(), &|tape| {
        tape.preserved(&FEW).judged();
    });
    let many = Load {
        sessions: 100,
        files: 100,
    };
    add("many", whole(&many), &|_| {});
    all
}
