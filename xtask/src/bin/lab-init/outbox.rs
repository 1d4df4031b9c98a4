//! The way out of the guest: whatever programs write into one folder goes to a disk as they write it, so
//! that it is there even when the kernel ends in the middle.
//!
//! The disk is a tar archive that only grows: an entry of a name that was there before continues that
//! file. Its unwritten rest is zeros, which end an archive.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

use anyhow::{Context as _, Result};

/// The folder. Files in it may only grow; folders in it stay in the guest.
pub const FOLDER: &str = "/out";

/// The most that goes into one entry, in bytes.
const CHUNK: u64 = 1 << 20;

pub struct Outbox {
    archive: tar::Builder<File>,
    /// How much of each file is on the disk, in bytes.
    carried: HashMap<String, u64>,
}

impl Outbox {
    /// An empty archive on `disk`, whose content is zeros.
    pub fn open(disk: &Path) -> Result<Self> {
        let file = File::options()
            .write(true)
            .open(disk)
            .with_context(|| format!("cannot open {}", disk.display()))?;
        Ok(Self {
            archive: tar::Builder::new(file),
            carried: HashMap::new(),
        })
    }

    /// Writes what is new in the folder to the disk, and waits until it is there.
    pub fn carry(&mut self) -> Result<()> {
        let mut written = false;
        for entry in fs::read_dir(FOLDER)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let about = entry.metadata()?;
            if !about.is_file() {
                continue;
            }
            let mut carried = self.carried.get(&name).copied();
            // An empty file is told too, once.
            while carried.is_none_or(|carried| carried < about.len()) {
                let offset = carried.unwrap_or(0);
                let length = self.append(&entry.path(), &name, offset, about.len() - offset)?;
                carried = Some(offset + length);
                self.carried.insert(name.clone(), offset + length);
                written = true;
                if length == 0 {
                    break;
                }
            }
        }
        if written {
            self.archive.get_ref().sync_data().context("the disk")?;
        }
        Ok(())
    }

    /// Appends a piece of a file, and returns how long it was.
    fn append(&mut self, path: &Path, name: &str, offset: u64, length: u64) -> Result<u64> {
        let mut piece = Vec::new();
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(offset))?;
        file.take(length.min(CHUNK)).read_to_end(&mut piece)?;
        let mut header = tar::Header::new_gnu();
        header.set_size(piece.len() as u64);
        header.set_mode(0o644);
        self.archive
            .append_data(&mut header, name, piece.as_slice())
            .with_context(|| format!("cannot bring {name} out"))?;
        Ok(piece.len() as u64)
    }
}
