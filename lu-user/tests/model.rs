//! The state machine against an independent model: a transcription of the tables in
//! `docs/interfaces.md`, cell by cell, that shares no code with it.

use lu_common::uapi::v3::State;
use lu_user::emulate::v3::core::{Core, Handler};
use nix::errno::Errno::{self, EBADF, EBUSY, EEXIST, EINVAL, EIO, ENOENT, ENOMEM};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// Tokens 0 to 7; some of them fail in one callback.
const TOKENS: u64 = 8;
const FAILS_PREPARE: u64 = 3;
const FAILS_FREEZE: u64 = 5;
const FAILS_RESTORE: u64 = 6;

/// Sequences, and operations in each: 120,000 steps.
const SEQUENCES: u32 = 600;
const OPERATIONS: usize = 200;

#[derive(Clone, Copy, Debug)]
enum File {
    Memfd,
    Unsupported,
    NotOpen,
}

#[derive(Clone, Copy, Debug)]
enum Operation {
    Open,
    Close,
    Preserve(u64, File),
    Unpreserve(u64),
    Restore(u64),
    FileEvent(u64, u32),
    Prepare,
    Cancel,
    Finish,
    Reboot { jump_fails: bool },
}

struct Callbacks;

impl Handler for Callbacks {
    type File = File;

    fn can_preserve(&self, _token: u64, file: &File) -> bool {
        matches!(file, File::Memfd)
    }

    fn prepare(&self, token: u64, _file: &mut File) -> Result<(), Errno> {
        if token == FAILS_PREPARE {
            Err(ENOMEM)
        } else {
            Ok(())
        }
    }

    fn freeze(&self, token: u64, _file: &mut File) -> Result<(), Errno> {
        if token == FAILS_FREEZE {
            Err(EIO)
        } else {
            Ok(())
        }
    }

    fn cancel(&self, _token: u64, _file: &mut File) {}

    fn retrieve(&self, token: u64, _file: &File) -> Result<(), Errno> {
        if token == FAILS_RESTORE {
            Err(EIO)
        } else {
            Ok(())
        }
    }
}

/// What the tables know: letters for states, and a slot for each token.
struct Model {
    machine: char,
    open: bool,
    /// 'N', 'P', 'F', or '-' where the token is free.
    out: [char; TOKENS as usize],
    /// 'U' waiting, 'R' tried, 'D' finished alone, '-' none.
    inn: [char; TOKENS as usize],
}

type Answer = Result<(), Errno>;

fn when(allowed: bool, otherwise: Errno) -> Answer {
    if allowed { Ok(()) } else { Err(otherwise) }
}

impl Model {
    fn new() -> Self {
        Self {
            machine: 'N',
            open: false,
            out: ['-'; TOKENS as usize],
            inn: ['-'; TOKENS as usize],
        }
    }

    fn cancel_below(&mut self, end: usize) {
        for slot in &mut self.out[..end] {
            if *slot != '-' {
                *slot = 'N';
            }
        }
    }

    fn apply(&mut self, operation: Operation) -> Answer {
        match operation {
            Operation::Open => {
                when(!self.open, EBUSY)?;
                self.open = true;
            }
            Operation::Close => {
                self.open = false;
                self.out = ['-'; TOKENS as usize];
            }
            Operation::Preserve(token, file) => {
                when(!matches!(file, File::NotOpen), EBADF)?;
                when("NU".contains(self.machine), EBUSY)?;
                when(!matches!(file, File::Unsupported), ENOENT)?;
                when(self.out[token as usize] == '-', EEXIST)?;
                self.out[token as usize] = 'N';
            }
            Operation::Unpreserve(token) => {
                when("NU".contains(self.machine), EBUSY)?;
                when(self.out[token as usize] != '-', ENOENT)?;
                self.out[token as usize] = '-';
            }
            Operation::Restore(token) => {
                when(self.machine == 'U', EBUSY)?;
                when(self.inn[token as usize] != '-', ENOENT)?;
                when(self.inn[token as usize] == 'U', EINVAL)?;
                self.inn[token as usize] = 'R';
                when(token != FAILS_RESTORE, EIO)?;
            }
            Operation::FileEvent(token, event) => return self.file_event(token, event),
            Operation::Prepare => {
                when(self.machine == 'N', EINVAL)?;
                for token in 0..TOKENS as usize {
                    if self.out[token] == 'N' {
                        if token as u64 == FAILS_PREPARE {
                            self.cancel_below(token);
                            return Err(ENOMEM);
                        }
                        self.out[token] = 'P';
                    }
                }
                self.machine = 'P';
            }
            Operation::Cancel => {
                when("PF".contains(self.machine), ENOENT)?;
                self.cancel_below(TOKENS as usize);
                self.machine = 'N';
            }
            Operation::Finish => {
                when(self.machine == 'U', EINVAL)?;
                self.inn = ['-'; TOKENS as usize];
                self.machine = 'N';
            }
            Operation::Reboot { jump_fails } => return self.reboot(jump_fails),
        }
        Ok(())
    }

    fn file_event(&mut self, token: u64, event: u32) -> Answer {
        let token = token as usize;
        match event {
            // PREPARE, FREEZE, CANCEL: each from one state alone, else nothing happens.
            0 | 1 | 3 => {
                when(self.out[token] != '-', ENOENT)?;
                match (event, self.out[token]) {
                    (0, 'N') => {
                        when(token as u64 != FAILS_PREPARE, ENOMEM)?;
                        self.out[token] = 'P';
                    }
                    (1, 'P') => {
                        when(token as u64 != FAILS_FREEZE, EIO)?;
                        self.out[token] = 'F';
                    }
                    (3, _) => self.out[token] = 'N',
                    _ => {}
                }
                Ok(())
            }
            2 => {
                when(self.machine == 'U', EBUSY)?;
                when(self.inn[token] != '-', ENOENT)?;
                self.inn[token] = 'D';
                Ok(())
            }
            _ => Err(EINVAL),
        }
    }

    fn reboot(&mut self, jump_fails: bool) -> Answer {
        if self.machine == 'P' {
            for token in 0..TOKENS as usize {
                if self.out[token] == 'P' {
                    if token as u64 == FAILS_FREEZE {
                        self.cancel_below(token);
                        self.machine = 'N';
                        return Err(EIO);
                    }
                    self.out[token] = 'F';
                }
            }
            self.machine = 'F';
        }
        when(!jump_fails, EIO)?;
        let live = self.machine == 'F';
        for token in 0..TOKENS as usize {
            self.inn[token] = if live && self.out[token] == 'F' {
                'U'
            } else {
                '-'
            };
        }
        self.out = ['-'; TOKENS as usize];
        self.open = false;
        self.machine = if live { 'U' } else { 'N' };
        Ok(())
    }

    fn observed(&self) -> Vec<String> {
        let letter = |state: char| match state {
            'N' | 'D' => "Normal",
            'P' => "Prepared",
            'F' => "Frozen",
            'U' | 'R' => "Updated",
            _ => "none",
        };
        let mut all = vec![letter(self.machine).to_owned()];
        for token in 0..TOKENS as usize {
            // A file finished alone is NORMAL whether it was restored before or not.
            all.push(format!(
                "{} {}",
                letter(self.out[token]),
                letter(self.inn[token])
            ));
        }
        all
    }
}

fn apply(core: &mut Core<Callbacks>, operation: Operation) -> Answer {
    match operation {
        Operation::Open => core.open(),
        Operation::Close => {
            core.release();
            Ok(())
        }
        Operation::Preserve(token, File::NotOpen) => core.preserve(token, Err(EBADF)),
        Operation::Preserve(token, file) => core.preserve(token, Ok(file)),
        Operation::Unpreserve(token) => core.unpreserve(token),
        Operation::Restore(token) => core.restore(token).map(drop),
        Operation::FileEvent(token, event) => core.file_event(token, event),
        Operation::Prepare => core.prepare(),
        Operation::Cancel => core.cancel(),
        Operation::Finish => core.finish(),
        Operation::Reboot { jump_fails } => {
            if core.freeze_is_due() {
                core.freeze()?;
            }
            if jump_fails {
                return Err(EIO);
            }
            core.kexec();
            Ok(())
        }
    }
}

fn observed(core: &Core<Callbacks>) -> Vec<String> {
    let name = |state: Result<State, Errno>| match state {
        Ok(state) => format!("{state:?}"),
        Err(_) => "none".to_owned(),
    };
    let mut all = vec![name(Ok(core.state()))];
    for token in 0..TOKENS {
        all.push(format!(
            "{} {}",
            name(core.file_state(token, false)),
            name(core.file_state(token, true))
        ));
    }
    all
}

fn operation() -> impl Strategy<Value = Operation> {
    let token = || 0..TOKENS;
    let file = prop_oneof![
        8 => Just(File::Memfd),
        1 => Just(File::Unsupported),
        1 => Just(File::NotOpen),
    ];
    prop_oneof![
        2 => Just(Operation::Open),
        1 => Just(Operation::Close),
        12 => (token(), file).prop_map(|(token, file)| Operation::Preserve(token, file)),
        3 => token().prop_map(Operation::Unpreserve),
        6 => token().prop_map(Operation::Restore),
        4 => (token(), 0..6_u32).prop_map(|(token, event)| Operation::FileEvent(token, event)),
        5 => Just(Operation::Prepare),
        1 => Just(Operation::Cancel),
        2 => Just(Operation::Finish),
        5 => proptest::bool::weighted(0.2).prop_map(|jump_fails| Operation::Reboot { jump_fails }),
    ]
}

#[test]
fn a_hundred_thousand_random_steps_equal_the_tables() {
    let mut runner = TestRunner::new(Config {
        cases: SEQUENCES,
        failure_persistence: None,
        ..Config::default()
    });
    let mut reached = std::collections::BTreeSet::new();
    let reached_states = std::cell::RefCell::new(&mut reached);
    runner
        .run(
            &prop::collection::vec(operation(), OPERATIONS),
            |operations| {
                let (mut model, mut core) = (Model::new(), Core::new(Callbacks));
                for (step, operation) in operations.into_iter().enumerate() {
                    let (expected, got) = (model.apply(operation), apply(&mut core, operation));
                    prop_assert_eq!(expected, got, "step {}: {:?}", step, operation);
                    prop_assert_eq!(
                        model.observed(),
                        observed(&core),
                        "after step {}: {:?}",
                        step,
                        operation
                    );
                    reached_states.borrow_mut().insert(model.machine);
                }
                Ok(())
            },
        )
        .expect("no difference");
    assert_eq!(
        reached.into_iter().collect::<String>(),
        "FNPU",
        "every state was reached"
    );
}
