//! The orchestrator as a state machine: the sessions interface as in Linux 7.3.4
//! (`kernel/liveupdate/luo_core.c`, `luo_session.c`, `luo_file.c`), without any I/O.
//!
//! What a file is, and what its callbacks do, is the [`Handler`]'s business. Where one function of the
//! kernel's calls another for each session, the core asks its caller to make that call ([`Calls`]), so
//! that probes see the functions nested as they are there.

use std::collections::BTreeMap;

use lu_common::uapi::sessions::NAME_LEN;
use nix::errno::Errno;

type Result<T> = std::result::Result<T, Errno>;

/// A session's name: the bytes before the first NUL, padded with NUL. All but the empty one and those
/// without a NUL at the end can be created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name([u8; NAME_LEN]);

impl Name {
    /// What the kernel's string functions see of the 64 bytes of a caller.
    #[must_use]
    pub fn up_to_nul(mut bytes: [u8; NAME_LEN]) -> Self {
        let length = bytes.iter().position(|byte| *byte == 0).unwrap_or(NAME_LEN);
        bytes[length..].fill(0);
        Self(bytes)
    }

    /// The bytes, padded with NUL.
    #[must_use]
    pub const fn bytes(&self) -> [u8; NAME_LEN] {
        self.0
    }

    /// How many of the bytes `GET_NAME` writes: `strscpy` copies word by word, up to the one with the NUL,
    /// and leaves what lies behind as the caller had it.
    #[must_use]
    pub fn copied(&self) -> usize {
        let length = self.0.iter().position(|byte| *byte == 0);
        length.map_or(NAME_LEN, |length| {
            (length + 1).next_multiple_of(size_of::<usize>())
        })
    }

    /// `luo_session_create` wants 1 to 63 bytes.
    const fn can_be_created(&self) -> bool {
        self.0[0] != 0 && self.0[NAME_LEN - 1] == 0
    }
}

/// Which of the two sets a session is in: `luo_session_global`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// For the next kernel.
    Outgoing,
    /// From the previous one, and retrieved.
    Incoming,
}

/// A file handler: `struct liveupdate_file_ops`.
pub trait Handler {
    /// What is preserved.
    type File;
    /// What makes two files the same object (`get_id`).
    type Id: Ord;
    /// Whether there is a handler for this kind of file (`can_preserve`).
    fn can_preserve(&self, file: &Self::File) -> bool;
    /// The object behind the file.
    fn id(&self, file: &Self::File) -> Self::Id;
    /// Saves what can be saved while the workload still runs.
    fn preserve(&self, file: &Self::File) -> Result<()>;
    /// Undoes it.
    fn unpreserve(&self, file: &Self::File);
    /// Saves the rest, within the blackout.
    fn freeze(&self, file: &Self::File) -> Result<()>;
    /// Undoes that.
    fn unfreeze(&self, file: &Self::File);
    /// Makes the file anew in the new kernel; asked once.
    fn retrieve(&self, file: &Self::File) -> Result<()>;
    /// Whether the session may be finished.
    fn can_finish(&self, file: &Self::File) -> bool;
    /// The orchestrator lets go of the file. `retrieved`: what came of [`Self::retrieve`], if asked.
    fn finish(&self, file: &Self::File, retrieved: Option<Result<()>>);
}

/// Functions of the kernel's that others call for each session.
pub trait Calls {
    /// `luo_file_freeze`, that is [`Core::freeze_files`].
    fn freeze(&self, session: &Name) -> Result<()>;
    /// `luo_file_unfreeze`, that is [`Core::unfreeze_files`].
    fn unfreeze(&self, session: &Name);
    /// `luo_file_unpreserve_files`, that is [`Core::unpreserve_files`].
    fn unpreserve(&self, session: &Name);
    /// `luo_file_finish`, that is [`Core::finish_files`].
    fn finish(&self, session: &Name) -> Result<()>;
    /// [`Core::remove`].
    fn remove(&self, session: &Name, from: Direction);
}

/// `luo_session_serialize`: freezes the sessions, which are in the order of their creation. Where one
/// fails those before it are unfrozen, the last one first.
pub fn serialize(sessions: &[Name], calls: &impl Calls) -> Result<()> {
    for (index, session) in sessions.iter().enumerate() {
        if let Err(errno) = calls.freeze(session) {
            for frozen in sessions[..index].iter().rev() {
                calls.unfreeze(frozen);
            }
            return Err(errno);
        }
    }
    Ok(())
}

/// `luo_session_release`: the last close of a session. An incoming one is finished; where that fails it
/// stays, retrieved and without a descriptor, until the next kexec.
pub fn release(session: &Name, direction: Direction, calls: &impl Calls) -> Result<()> {
    match direction {
        Direction::Outgoing => calls.unpreserve(session),
        Direction::Incoming => calls.finish(session)?,
    }
    calls.remove(session, direction);
    Ok(())
}

/// `struct luo_file`.
#[derive(Debug)]
struct Entry<F> {
    token: u64,
    file: F,
    /// What came of the first retrieve (`retrieve_status`).
    retrieved: Option<Result<()>>,
}

/// `struct luo_session`.
#[derive(Debug)]
struct Session<F> {
    /// Counts the sessions as they are created.
    born: u64,
    retrieved: bool,
    /// In the order in which they were preserved.
    files: Vec<Entry<F>>,
}

type Set<F> = BTreeMap<Name, Session<F>>;

/// The whole orchestrator.
#[derive(Debug)]
pub struct Core<H: Handler> {
    /// The callbacks.
    pub handler: H,
    open: bool,
    born: u64,
    outgoing: Set<H::File>,
    /// What the previous kernel handed over and nobody has opened the device for yet.
    handed_over: Set<H::File>,
    incoming: Set<H::File>,
    /// The objects that some session has (`luo_preserved_files`), and how often.
    ///
    /// In the kernel that is once, since a retrieved file is a new object. Here it may be the old one, and
    /// somebody who outlived the jump may have preserved it again before it was retrieved.
    preserved: BTreeMap<H::Id, usize>,
}

impl<H: Handler> Core<H> {
    /// A machine that was started the ordinary way.
    pub const fn new(handler: H) -> Self {
        Self {
            handler,
            open: false,
            born: 0,
            outgoing: BTreeMap::new(),
            handed_over: BTreeMap::new(),
            incoming: BTreeMap::new(),
            preserved: BTreeMap::new(),
        }
    }

    /// Whether the device is open.
    pub const fn is_open(&self) -> bool {
        self.open
    }

    /// `luo_open`: there is one open file at a time.
    pub const fn open(&mut self) -> Result<()> {
        if self.open {
            return Err(Errno::EBUSY);
        }
        self.open = true;
        Ok(())
    }

    /// `luo_release`: touches no session.
    pub const fn close(&mut self) {
        self.open = false;
    }

    /// `luo_session_deserialize`: with the first open what was handed over can be retrieved.
    pub fn deserialize(&mut self) {
        self.incoming.append(&mut self.handed_over);
    }

    /// `luo_session_create`.
    pub fn create(&mut self, name: &Name) -> Result<()> {
        if !name.can_be_created() {
            return Err(Errno::EINVAL);
        }
        if self.outgoing.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        let session = Session {
            born: self.born,
            retrieved: false,
            files: Vec::new(),
        };
        self.born += 1;
        self.outgoing.insert(*name, session);
        Ok(())
    }

    /// `luo_session_retrieve`: once for each session.
    pub fn retrieve(&mut self, name: &Name) -> Result<()> {
        let session = self.incoming.get_mut(name).ok_or(Errno::ENOENT)?;
        if session.retrieved {
            return Err(Errno::EINVAL);
        }
        session.retrieved = true;
        Ok(())
    }

    /// Takes a [`Self::retrieve`] back that could not be answered with a descriptor.
    pub fn give_back(&mut self, name: &Name) {
        if let Some(session) = self.incoming.get_mut(name) {
            session.retrieved = false;
        }
    }

    /// `luo_session_remove`: its files are gone already.
    pub fn remove(&mut self, name: &Name, from: Direction) {
        match from {
            Direction::Outgoing => self.outgoing.remove(name),
            Direction::Incoming => self.incoming.remove(name),
        };
    }

    /// `luo_preserve_file`. `file` is what the caller's descriptor stands for, or why it stands for
    /// nothing.
    pub fn preserve(
        &mut self,
        name: &Name,
        token: u64,
        file: impl FnOnce() -> Result<H::File>,
    ) -> Result<()> {
        let session = self.outgoing.get_mut(name).ok_or(Errno::EINVAL)?;
        if session.files.iter().any(|entry| entry.token == token) {
            return Err(Errno::EEXIST);
        }
        let file = file()?;
        if !self.handler.can_preserve(&file) {
            return Err(Errno::ENOENT);
        }
        let id = self.handler.id(&file);
        if self.preserved.contains_key(&id) {
            return Err(Errno::EBUSY);
        }
        self.handler.preserve(&file)?;
        self.preserved.insert(id, 1);
        session.files.push(Entry {
            token,
            file,
            retrieved: None,
        });
        Ok(())
    }

    /// `luo_retrieve_file`: the first answer is the answer for ever.
    pub fn retrieve_file(&mut self, name: &Name, token: u64) -> Result<&H::File> {
        let session = self.incoming.get_mut(name).ok_or(Errno::EINVAL)?;
        let entry = session
            .files
            .iter_mut()
            .find(|entry| entry.token == token)
            .ok_or(Errno::ENOENT)?;
        let retrieved = *entry.retrieved.get_or_insert_with(|| {
            let retrieved = self.handler.retrieve(&entry.file);
            if retrieved.is_ok() {
                let id = self.handler.id(&entry.file);
                *self.preserved.entry(id).or_default() += 1;
            }
            retrieved
        });
        retrieved.map(|()| &entry.file)
    }

    /// `luo_file_unpreserve_files`: the last one first.
    pub fn unpreserve_files(&mut self, name: &Name) {
        let Some(session) = self.outgoing.get_mut(name) else {
            return;
        };
        while let Some(entry) = session.files.pop() {
            self.handler.unpreserve(&entry.file);
            forget(&mut self.preserved, &self.handler.id(&entry.file));
        }
    }

    /// `luo_file_finish`: all or, where one file is not ready, nothing. The last one first.
    pub fn finish_files(&mut self, name: &Name) -> Result<()> {
        let session = self.incoming.get_mut(name).ok_or(Errno::EINVAL)?;
        if !session
            .files
            .iter()
            .all(|entry| self.handler.can_finish(&entry.file))
        {
            return Err(Errno::EBUSY);
        }
        while let Some(entry) = session.files.pop() {
            self.handler.finish(&entry.file, entry.retrieved);
            if entry.retrieved == Some(Ok(())) {
                forget(&mut self.preserved, &self.handler.id(&entry.file));
            }
        }
        Ok(())
    }

    /// The sessions for the next kernel, in the order of their creation: what [`serialize`] wants.
    pub fn outgoing(&self) -> Vec<Name> {
        let mut sessions: Vec<_> = self.outgoing.iter().collect();
        sessions.sort_unstable_by_key(|(_, session)| session.born);
        sessions.into_iter().map(|(name, _)| *name).collect()
    }

    /// The files for the next kernel.
    pub fn outgoing_files(&self) -> impl Iterator<Item = &H::File> {
        self.preserved().map(|(_, _, file)| file)
    }

    /// The same, with their session and token.
    pub fn preserved(&self) -> impl Iterator<Item = (&Name, u64, &H::File)> {
        self.outgoing.iter().flat_map(|(name, session)| {
            let files = session.files.iter();
            files.map(move |entry| (name, entry.token, &entry.file))
        })
    }

    /// The files that were handed over and given out, by session and token.
    pub fn restored(&self) -> impl Iterator<Item = (&Name, u64)> {
        self.incoming.iter().flat_map(|(name, session)| {
            let files = session.files.iter();
            files
                .filter(|entry| entry.retrieved == Some(Ok(())))
                .map(move |entry| (name, entry.token))
        })
    }

    /// `luo_file_freeze`: first in, first out. Where one fails those before it are unfrozen, in the same
    /// order.
    pub fn freeze_files(&mut self, name: &Name) -> Result<()> {
        let session = self.outgoing.get(name).ok_or(Errno::EINVAL)?;
        for (index, entry) in session.files.iter().enumerate() {
            if let Err(errno) = self.handler.freeze(&entry.file) {
                for frozen in &session.files[..index] {
                    self.handler.unfreeze(&frozen.file);
                }
                return Err(errno);
            }
        }
        Ok(())
    }

    /// `luo_file_unfreeze`.
    pub fn unfreeze_files(&mut self, name: &Name) {
        if let Some(session) = self.outgoing.get(name) {
            for entry in &session.files {
                self.handler.unfreeze(&entry.file);
            }
        }
    }

    /// The jump, after a good [`serialize`]: what was outgoing is handed over, all else is gone, and
    /// nobody holds the device.
    pub fn kexec(&mut self) {
        self.open = false;
        self.incoming.clear();
        self.preserved.clear();
        self.handed_over = std::mem::take(&mut self.outgoing);
    }
}

/// One session less has the object.
fn forget<I: Ord>(preserved: &mut BTreeMap<I, usize>, id: &I) {
    if let Some(count) = preserved.get_mut(id) {
        *count -= 1;
        if *count == 0 {
            preserved.remove(id);
        }
    }
}
