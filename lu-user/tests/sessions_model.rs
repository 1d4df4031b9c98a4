//! The state machine of the sessions interface against an independent model: the table in
//! `docs/interfaces.md` told again, with flat lists of facts instead of sets of sessions.

use std::cell::RefCell;

use lu_user::emulate::sessions::core::{self, Calls, Core, Direction, Handler, Name};
use nix::errno::Errno::{self, EBADF, EBUSY, EEXIST, EINVAL, EIO, ENOENT, ENOMEM};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// Sequences, and operations in each: 600,000 steps.
const SEQUENCES: u32 = 3000;
const OPERATIONS: usize = 200;

const TOKENS: u64 = 3;
/// Objects that fail in one callback.
const FAILS_PRESERVE: u8 = 0;
const FAILS_FREEZE: u8 = 1;
const FAILS_RETRIEVE: u8 = 2;
const NEVER_FINISHES: u8 = 3;
const OBJECTS: u8 = 9;

#[derive(Clone, Copy, Debug, PartialEq)]
enum File {
    Object(u8),
    Unsupported,
    NotOpen,
}

#[derive(Clone, Copy, Debug)]
enum Operation {
    Open,
    Close,
    Create(u8),
    Retrieve(u8),
    Preserve(u8, u64, File),
    RetrieveFile(u8, u64),
    Finish(u8),
    CloseSession(u8, bool),
    Reboot,
}

/// What the callbacks were called for, in their order.
type Log = RefCell<Vec<String>>;

#[derive(Default)]
struct Callbacks {
    log: Log,
}

impl Callbacks {
    fn note(&self, what: &str, file: File) {
        self.log.borrow_mut().push(format!("{what} {file:?}"));
    }
}

fn unless(fails: bool, errno: Errno) -> Result<(), Errno> {
    if fails { Err(errno) } else { Ok(()) }
}

impl Handler for Callbacks {
    type File = File;
    type Id = u8;

    fn can_preserve(&self, file: &File) -> bool {
        matches!(file, File::Object(_))
    }

    fn id(&self, file: &File) -> u8 {
        match file {
            File::Object(id) => *id,
            _ => u8::MAX,
        }
    }

    fn preserve(&self, file: &File) -> Result<(), Errno> {
        self.note("preserve", *file);
        unless(*file == File::Object(FAILS_PRESERVE), ENOMEM)
    }

    fn unpreserve(&self, file: &File) {
        self.note("unpreserve", *file);
    }

    fn freeze(&self, file: &File) -> Result<(), Errno> {
        self.note("freeze", *file);
        unless(*file == File::Object(FAILS_FREEZE), EIO)
    }

    fn unfreeze(&self, file: &File) {
        self.note("unfreeze", *file);
    }

    fn retrieve(&self, file: &File) -> Result<(), Errno> {
        self.note("retrieve", *file);
        unless(*file == File::Object(FAILS_RETRIEVE), EIO)
    }

    fn can_finish(&self, file: &File) -> bool {
        *file != File::Object(NEVER_FINISHES)
    }

    fn finish(&self, file: &File, retrieved: Option<Result<(), Errno>>) {
        self.note(&format!("finish {retrieved:?}"), *file);
    }
}

/// Two names that differ in the last byte that counts, and some short ones.
fn name(index: u8) -> Name {
    let mut bytes = [0; 64];
    match index {
        // No name at all, and one without an end.
        0 => {}
        1 => bytes.fill(b'x'),
        2 | 3 => {
            bytes.fill(b'x');
            bytes[62] = index;
            bytes[63] = 0;
        }
        _ => bytes[0] = index,
    }
    Name::up_to_nul(bytes)
}

/// One fact: this file is in that session, under this token.
#[derive(Clone, Copy, Debug)]
struct Fact {
    session: u8,
    token: u64,
    object: u8,
    /// ' ' not tried, 'R' retrieved, 'F' failed.
    tried: char,
}

#[derive(Default)]
struct Model {
    open: bool,
    /// Outgoing sessions, in the order of their creation.
    out: Vec<u8>,
    out_files: Vec<Fact>,
    /// Incoming sessions, and whether they were retrieved.
    inn: Vec<(u8, bool)>,
    in_files: Vec<Fact>,
    /// Whether the device was opened since the jump.
    seen: bool,
    log: Vec<String>,
}

impl Model {
    fn note(&mut self, what: &str, object: u8) {
        self.log.push(format!("{what} Object({object})"));
    }

    fn busy(&self, object: u8) -> bool {
        self.out_files.iter().any(|fact| fact.object == object)
            || self
                .in_files
                .iter()
                .any(|fact| fact.object == object && fact.tried == 'R')
    }

    fn finish(&mut self, session: u8) -> Result<(), Errno> {
        let of = |fact: &&Fact| fact.session == session;
        let ready = self
            .in_files
            .iter()
            .filter(of)
            .all(|fact| fact.object != NEVER_FINISHES);
        unless(!ready, EBUSY)?;
        let facts: Vec<Fact> = self.in_files.iter().rev().filter(of).copied().collect();
        for fact in facts {
            let tried = match fact.tried {
                'R' => "Some(Ok(()))",
                'F' => "Some(Err(EIO))",
                _ => "None",
            };
            self.note(&format!("finish {tried}"), fact.object);
        }
        self.in_files.retain(|fact| fact.session != session);
        Ok(())
    }

    fn apply(&mut self, operation: Operation) -> Result<(), Errno> {
        match operation {
            Operation::Open => {
                unless(self.open, EBUSY)?;
                self.open = true;
                self.seen = true;
                Ok(())
            }
            Operation::Close => {
                self.open = false;
                Ok(())
            }
            Operation::Create(session) => {
                unless(session < 2, EINVAL)?;
                unless(self.out.contains(&session), EEXIST)?;
                self.out.push(session);
                Ok(())
            }
            Operation::Retrieve(session) => {
                let seen = self.seen;
                let found = self.inn.iter_mut().find(|(name, _)| *name == session);
                let (_, retrieved) = found.filter(|_| seen).ok_or(ENOENT)?;
                unless(*retrieved, EINVAL)?;
                *retrieved = true;
                Ok(())
            }
            Operation::Preserve(session, token, file) => {
                let same = |fact: &Fact| (fact.session, fact.token) == (session, token);
                unless(self.out_files.iter().any(same), EEXIST)?;
                let object = match file {
                    File::NotOpen => return Err(EBADF),
                    File::Unsupported => return Err(ENOENT),
                    File::Object(object) => object,
                };
                unless(self.busy(object), EBUSY)?;
                self.note("preserve", object);
                unless(object == FAILS_PRESERVE, ENOMEM)?;
                self.out_files.push(Fact {
                    session,
                    token,
                    object,
                    tried: ' ',
                });
                Ok(())
            }
            Operation::RetrieveFile(session, token) => {
                let same = |fact: &&mut Fact| (fact.session, fact.token) == (session, token);
                let fact = self.in_files.iter_mut().find(same).ok_or(ENOENT)?;
                let (object, first) = (fact.object, fact.tried == ' ');
                fact.tried = if object == FAILS_RETRIEVE { 'F' } else { 'R' };
                if first {
                    self.note("retrieve", object);
                }
                unless(object == FAILS_RETRIEVE, EIO)
            }
            Operation::Finish(session) => self.finish(session),
            Operation::CloseSession(session, true) => {
                self.finish(session)?;
                self.inn.retain(|(name, _)| *name != session);
                Ok(())
            }
            Operation::CloseSession(session, false) => {
                let of = |fact: &&Fact| fact.session == session;
                let facts: Vec<Fact> = self.out_files.iter().rev().filter(of).copied().collect();
                for fact in facts {
                    self.note("unpreserve", fact.object);
                }
                self.out_files.retain(|fact| fact.session != session);
                self.out.retain(|name| *name != session);
                Ok(())
            }
            Operation::Reboot => self.reboot(),
        }
    }

    fn reboot(&mut self) -> Result<(), Errno> {
        let files = |session: u8, facts: &[Fact]| -> Vec<u8> {
            let of = facts.iter().filter(|fact| fact.session == session);
            of.map(|fact| fact.object).collect()
        };
        for (index, session) in self.out.clone().into_iter().enumerate() {
            let objects = files(session, &self.out_files);
            for (at, object) in objects.iter().enumerate() {
                self.note("freeze", *object);
                if *object == FAILS_FREEZE {
                    let mut undone = objects[..at].to_vec();
                    for earlier in self.out[..index].iter().rev() {
                        undone.extend(files(*earlier, &self.out_files));
                    }
                    for object in undone {
                        self.note("unfreeze", object);
                    }
                    return Err(EIO);
                }
            }
        }
        self.inn = self.out.drain(..).map(|session| (session, false)).collect();
        self.in_files = std::mem::take(&mut self.out_files);
        self.open = false;
        self.seen = false;
        Ok(())
    }

    /// Whether a descriptor of such a session can be there at all, so that the operation makes sense.
    /// `held`: what the client has of incoming sessions.
    fn allows(&self, operation: Operation, held: &[u8]) -> bool {
        match operation {
            Operation::Create(_) | Operation::Retrieve(_) | Operation::Close => self.open,
            Operation::Preserve(session, ..) | Operation::CloseSession(session, false) => {
                self.out.contains(&session)
            }
            Operation::RetrieveFile(session, _)
            | Operation::Finish(session)
            | Operation::CloseSession(session, true) => held.contains(&session),
            Operation::Open | Operation::Reboot => true,
        }
    }
}

/// The core, called as the kernel's functions call each other.
struct Driver(RefCell<Core<Callbacks>>);

impl Calls for Driver {
    fn freeze(&self, session: &Name) -> Result<(), Errno> {
        self.0.borrow_mut().freeze_files(session)
    }

    fn unfreeze(&self, session: &Name) {
        self.0.borrow_mut().unfreeze_files(session);
    }

    fn unpreserve(&self, session: &Name) {
        self.0.borrow_mut().unpreserve_files(session);
    }

    fn finish(&self, session: &Name) -> Result<(), Errno> {
        self.0.borrow_mut().finish_files(session)
    }

    fn remove(&self, session: &Name, from: Direction) {
        self.0.borrow_mut().remove(session, from);
    }
}

impl Driver {
    fn apply(&self, operation: Operation) -> Result<(), Errno> {
        let core = || self.0.borrow_mut();
        match operation {
            Operation::Open => {
                core().open()?;
                core().deserialize();
                Ok(())
            }
            Operation::Close => {
                core().close();
                Ok(())
            }
            Operation::Create(session) => core().create(&name(session)),
            Operation::Retrieve(session) => core().retrieve(&name(session)),
            Operation::Preserve(session, token, file) => {
                core().preserve(&name(session), token, || {
                    unless(file == File::NotOpen, EBADF).map(|()| file)
                })
            }
            Operation::RetrieveFile(session, token) => {
                core().retrieve_file(&name(session), token).map(drop)
            }
            Operation::Finish(session) => core().finish_files(&name(session)),
            Operation::CloseSession(session, incoming) => {
                let direction = if incoming {
                    Direction::Incoming
                } else {
                    Direction::Outgoing
                };
                core::release(&name(session), direction, self)
            }
            Operation::Reboot => {
                let sessions = core().outgoing();
                core::serialize(&sessions, self)?;
                core().kexec();
                Ok(())
            }
        }
    }
}

fn operation() -> impl Strategy<Value = Operation> {
    let session = || 0..6_u8;
    let token = || 0..TOKENS;
    let file = prop_oneof![
        10 => (FAILS_RETRIEVE..OBJECTS).prop_map(File::Object),
        // Often enough; a freeze that always fails would let nothing through.
        2 => (0..FAILS_RETRIEVE).prop_map(File::Object),
        1 => Just(File::Unsupported),
        1 => Just(File::NotOpen),
    ];
    prop_oneof![
        4 => Just(Operation::Open),
        1 => Just(Operation::Close),
        5 => session().prop_map(Operation::Create),
        8 => session().prop_map(Operation::Retrieve),
        14 => (session(), token(), file)
            .prop_map(|(session, token, file)| Operation::Preserve(session, token, file)),
        10 => (session(), token())
            .prop_map(|(session, token)| Operation::RetrieveFile(session, token)),
        2 => session().prop_map(Operation::Finish),
        3 => (session(), any::<bool>())
            .prop_map(|(session, incoming)| Operation::CloseSession(session, incoming)),
        2 => Just(Operation::Reboot),
    ]
}

#[test]
fn half_a_million_random_steps_equal_the_table() {
    let mut runner = TestRunner::new(Config {
        cases: SEQUENCES,
        failure_persistence: None,
        ..Config::default()
    });
    let reached = RefCell::new(std::collections::BTreeSet::new());
    runner
        .run(
            &prop::collection::vec(operation(), OPERATIONS),
            |operations| {
                let mut model = Model::default();
                let driver = Driver(RefCell::new(Core::new(Callbacks::default())));
                let mut held = Vec::new();
                for (step, operation) in operations.into_iter().enumerate() {
                    if !model.allows(operation, &held) {
                        continue;
                    }
                    let (expected, got) = (model.apply(operation), driver.apply(operation));
                    prop_assert_eq!(expected, got, "step {}: {:?}", step, operation);
                    let called = driver.0.borrow().handler.log.take();
                    prop_assert_eq!(
                        std::mem::take(&mut model.log),
                        called,
                        "callbacks of step {}: {:?}",
                        step,
                        operation
                    );
                    match (operation, got) {
                        (Operation::Retrieve(session), Ok(())) => held.push(session),
                        // A session that cannot be finished stays, and its descriptor is gone.
                        (Operation::CloseSession(session, true), _) => {
                            held.retain(|name| *name != session);
                        }
                        (Operation::Reboot, Ok(())) => held.clear(),
                        _ => {}
                    }
                    let operation = format!("{operation:?}");
                    let operation = operation.split('(').next().unwrap_or_default().to_owned();
                    reached.borrow_mut().insert(format!("{operation} {got:?}"));
                }
                Ok(())
            },
        )
        .expect("no difference");
    for expected in [
        "Open Err(EBUSY)",
        "Create Err(EINVAL)",
        "Create Err(EEXIST)",
        "Retrieve Err(ENOENT)",
        "Retrieve Err(EINVAL)",
        "Preserve Err(EEXIST)",
        "Preserve Err(EBADF)",
        "Preserve Err(ENOENT)",
        "Preserve Err(EBUSY)",
        "Preserve Err(ENOMEM)",
        "RetrieveFile Err(ENOENT)",
        "RetrieveFile Err(EIO)",
        "RetrieveFile Ok(())",
        "Finish Err(EBUSY)",
        "Finish Ok(())",
        "CloseSession Err(EBUSY)",
        "Reboot Err(EIO)",
        "Reboot Ok(())",
    ] {
        assert!(
            reached.borrow().contains(expected),
            "{expected} was reached"
        );
    }
}
