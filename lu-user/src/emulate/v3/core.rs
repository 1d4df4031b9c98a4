//! The orchestrator as a state machine: v3 as its patches describe it, without any I/O.
//!
//! What a file is, and what its callbacks do, is the [`Handler`]'s business, so the same code runs
//! behind the emulated device and under the model tests.

use std::collections::BTreeMap;

use lu_common::uapi::v3::{Event, State};
use nix::errno::Errno;

type Result<T> = std::result::Result<T, Errno>;

/// A file handler: `struct liveupdate_file_ops` of v3 patch 14.
pub trait Handler {
    /// What is preserved.
    type File;
    /// Whether this kind of file can be preserved at all.
    fn can_preserve(&self, token: u64, file: &Self::File) -> bool;
    /// Saves what can be saved while the workload still runs.
    fn prepare(&self, token: u64, file: &mut Self::File) -> Result<()>;
    /// Saves the rest, within the blackout.
    fn freeze(&self, token: u64, file: &mut Self::File) -> Result<()>;
    /// Undoes prepare and freeze.
    fn cancel(&self, token: u64, file: &mut Self::File);
    /// Makes the file anew in the new kernel.
    fn retrieve(&self, token: u64, file: &Self::File) -> Result<()>;
}

/// A file in one of the two sets.
#[derive(Debug)]
struct Entry<F> {
    file: F,
    state: State,
    /// Whether a restore was tried, successfully or not (`reclaimed`).
    reclaimed: bool,
}

/// The whole orchestrator.
#[derive(Debug)]
pub struct Core<H: Handler> {
    /// The callbacks.
    pub handler: H,
    state: State,
    open: bool,
    outgoing: BTreeMap<u64, Entry<H::File>>,
    incoming: BTreeMap<u64, Entry<H::File>>,
}

impl<H: Handler> Core<H> {
    /// A machine that was started the ordinary way.
    pub const fn new(handler: H) -> Self {
        Self {
            handler,
            state: State::Normal,
            open: false,
            outgoing: BTreeMap::new(),
            incoming: BTreeMap::new(),
        }
    }

    /// `GET_STATE`.
    pub const fn state(&self) -> State {
        self.state
    }

    /// The files that are to be preserved, in the order of their tokens.
    pub fn outgoing(&self) -> impl Iterator<Item = (u64, State, &H::File)> {
        self.outgoing
            .iter()
            .map(|(token, entry)| (*token, entry.state, &entry.file))
    }

    /// Whether the device is open.
    pub const fn is_open(&self) -> bool {
        self.open
    }

    /// Whether a file that was handed over has been asked for.
    pub fn is_reclaimed(&self, token: u64) -> bool {
        self.incoming
            .get(&token)
            .is_some_and(|entry| entry.reclaimed)
    }

    /// open(2): there is one open file at a time.
    pub const fn open(&mut self) -> Result<()> {
        if self.open {
            return Err(Errno::EBUSY);
        }
        self.open = true;
        Ok(())
    }

    /// The last close: the outgoing set goes, the state stays.
    pub fn release(&mut self) {
        self.open = false;
        while let Some((token, mut entry)) = self.outgoing.pop_first() {
            self.cancel_one(token, &mut entry);
        }
    }

    /// `FD_PRESERVE`. `file` is what the caller's descriptor stands for, or why it stands for nothing.
    pub fn preserve(&mut self, token: u64, file: Result<H::File>) -> Result<()> {
        let file = file?;
        self.outgoing_may_change()?;
        if !self.handler.can_preserve(token, &file) {
            return Err(Errno::ENOENT);
        }
        if self.outgoing.contains_key(&token) {
            return Err(Errno::EEXIST);
        }
        let entry = Entry {
            file,
            state: State::Normal,
            reclaimed: false,
        };
        self.outgoing.insert(token, entry);
        Ok(())
    }

    /// `FD_UNPRESERVE`.
    pub fn unpreserve(&mut self, token: u64) -> Result<()> {
        self.outgoing_may_change()?;
        let mut entry = self.outgoing.remove(&token).ok_or(Errno::ENOENT)?;
        self.cancel_one(token, &mut entry);
        Ok(())
    }

    const fn outgoing_may_change(&self) -> Result<()> {
        match self.state {
            State::Normal | State::Updated => Ok(()),
            _ => Err(Errno::EBUSY),
        }
    }

    /// `FD_RESTORE`: the file, once. A failed try counts too.
    pub fn restore(&mut self, token: u64) -> Result<&H::File> {
        if self.state != State::Updated {
            return Err(Errno::EBUSY);
        }
        let entry = self.incoming.get_mut(&token).ok_or(Errno::ENOENT)?;
        // A file that was finished on its own (SET_FD_EVENT) has nothing left to restore.
        if entry.reclaimed || entry.state != State::Updated {
            return Err(Errno::EINVAL);
        }
        entry.reclaimed = true;
        self.handler.retrieve(token, &entry.file)?;
        Ok(&entry.file)
    }

    /// `GET_FD_STATE`.
    pub fn file_state(&self, token: u64, incoming: bool) -> Result<State> {
        let set = if incoming {
            &self.incoming
        } else {
            &self.outgoing
        };
        set.get(&token)
            .map(|entry| entry.state)
            .ok_or(Errno::ENOENT)
    }

    /// `SET_FD_EVENT`.
    pub fn file_event(&mut self, token: u64, event: u32) -> Result<()> {
        let event = Event::from_raw(event).ok_or(Errno::EINVAL)?;
        if event == Event::Finish {
            if self.state != State::Updated {
                return Err(Errno::EBUSY);
            }
            let entry = self.incoming.get_mut(&token).ok_or(Errno::ENOENT)?;
            entry.state = State::Normal;
            return Ok(());
        }
        let entry = self.outgoing.get_mut(&token).ok_or(Errno::ENOENT)?;
        match event {
            Event::Prepare => Self::prepare_one(&self.handler, token, entry),
            Event::Freeze => Self::freeze_one(&self.handler, token, entry),
            Event::Cancel | Event::Finish => {
                Self::cancel_with(&self.handler, token, entry);
                Ok(())
            }
        }
    }

    /// `SET_EVENT` PREPARE.
    pub fn prepare(&mut self) -> Result<()> {
        if self.state != State::Normal {
            return Err(Errno::EINVAL);
        }
        self.walk(Self::prepare_one)?;
        self.state = State::Prepared;
        Ok(())
    }

    /// The freeze within reboot(KEXEC). On an error the update is off: NORMAL, and no kexec.
    pub fn freeze(&mut self) -> Result<()> {
        if self.state != State::Prepared {
            return Err(Errno::EINVAL);
        }
        if let Err(errno) = self.walk(Self::freeze_one) {
            self.state = State::Normal;
            return Err(errno);
        }
        self.state = State::Frozen;
        Ok(())
    }

    /// `SET_EVENT` CANCEL: files and tokens stay.
    pub fn cancel(&mut self) -> Result<()> {
        if !matches!(self.state, State::Prepared | State::Frozen) {
            return Err(Errno::ENOENT);
        }
        for (token, entry) in &mut self.outgoing {
            Self::cancel_with(&self.handler, *token, entry);
        }
        self.state = State::Normal;
        Ok(())
    }

    /// `SET_EVENT` FINISH: the incoming set goes, restored or not; the outgoing one stays.
    pub fn finish(&mut self) -> Result<()> {
        if self.state != State::Updated {
            return Err(Errno::EINVAL);
        }
        self.incoming.clear();
        self.state = State::Normal;
        Ok(())
    }

    /// What `liveupdate_reboot()` has to do first, if anything: freeze what is prepared.
    pub const fn freeze_is_due(&self) -> bool {
        matches!(self.state, State::Prepared)
    }

    /// The jump: everything that was not frozen is gone, and nobody holds the device.
    pub fn kexec(&mut self) {
        self.open = false;
        self.incoming.clear();
        let mut outgoing = std::mem::take(&mut self.outgoing);
        if self.state != State::Frozen {
            self.state = State::Normal;
            return;
        }
        // A file that was cancelled on its own while the rest went on carries its token over, but no
        // content: only the frozen ones are there to be restored.
        outgoing.retain(|_, entry| entry.state == State::Frozen);
        for entry in outgoing.values_mut() {
            entry.state = State::Updated;
        }
        self.incoming = outgoing;
        self.state = State::Updated;
    }

    /// Calls `step` on each file in the order of the tokens; when one fails, those before it are
    /// cancelled, and it and those behind it stay as they are.
    fn walk(&mut self, step: impl Fn(&H, u64, &mut Entry<H::File>) -> Result<()>) -> Result<()> {
        let failed = self
            .outgoing
            .iter_mut()
            .find_map(|(token, entry)| Some((*token, step(&self.handler, *token, entry).err()?)));
        let Some((boundary, errno)) = failed else {
            return Ok(());
        };
        for (token, entry) in self.outgoing.range_mut(..boundary) {
            Self::cancel_with(&self.handler, *token, entry);
        }
        Err(errno)
    }

    fn prepare_one(handler: &H, token: u64, entry: &mut Entry<H::File>) -> Result<()> {
        if entry.state == State::Normal {
            handler.prepare(token, &mut entry.file)?;
            entry.state = State::Prepared;
        }
        Ok(())
    }

    fn freeze_one(handler: &H, token: u64, entry: &mut Entry<H::File>) -> Result<()> {
        if entry.state == State::Prepared {
            handler.freeze(token, &mut entry.file)?;
            entry.state = State::Frozen;
        }
        Ok(())
    }

    fn cancel_one(&self, token: u64, entry: &mut Entry<H::File>) {
        Self::cancel_with(&self.handler, token, entry);
    }

    fn cancel_with(handler: &H, token: u64, entry: &mut Entry<H::File>) {
        if matches!(entry.state, State::Prepared | State::Frozen) {
            handler.cancel(token, &mut entry.file);
            entry.state = State::Normal;
        }
    }
}
