//! What the guest boots from: an initramfs with init alone, and a disk with everything else.
//!
//! The initramfs is small, so that the second kernel's is loaded and unpacked quickly, and it can be handed
//! to kexec whole: it need not contain itself, as the disk contains it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use cpio::NewcBuilder;
use cpio::newc::{ModeFileType, trailer};
use object::Object as _;

use super::protocol::{INITRD, KERNEL, PLAN, Plan};
use crate::sh;

/// The folders that the kernel and init expect.
const FOLDERS: [&str; 6] = ["dev", "proc", "sys", "bin", "modules", "run"];

/// A file for the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Include {
    /// Where it is here.
    pub host: PathBuf,
    /// Where it is to be in the guest, from the root.
    pub guest: PathBuf,
}

impl Include {
    /// A program, into the guest's `PATH`.
    pub fn program(host: &Path) -> Result<Self> {
        let name = host
            .file_name()
            .with_context(|| format!("{} is no file", host.display()))?;
        Ok(Self {
            host: host.into(),
            guest: Path::new("/bin").join(name),
        })
    }
}

impl std::str::FromStr for Include {
    type Err = anyhow::Error;

    /// `FILE` or `FILE=/path/in/guest`.
    fn from_str(text: &str) -> Result<Self> {
        let Some((host, guest)) = text.split_once('=') else {
            return Self::program(text.as_ref());
        };
        let path = Path::new(guest);
        ensure!(
            path.is_absolute()
                && path.file_name().is_some()
                && !path.components().any(|part| part.as_os_str() == ".."),
            "{guest} is no file's full path in the guest"
        );
        Ok(Self {
            host: host.into(),
            guest: guest.into(),
        })
    }
}

/// Whether a file is a program that only starts beside a loader and libraries, of which the guest has none.
pub fn needs_loader(path: &Path) -> Result<bool> {
    let bytes = read(path)?;
    Ok(object::File::parse(bytes.as_slice())
        .is_ok_and(|program| program.section_by_name(".interp").is_some()))
}

/// Writes the initramfs.
pub fn initramfs(path: &Path, init: &Path, plan: &Plan, modules: &[PathBuf]) -> Result<()> {
    let mut archive = Initramfs {
        out: BufWriter::new(create(path)?),
        entries: 0,
    };
    for folder in FOLDERS {
        archive.add(entry(folder, 0o755, ModeFileType::Directory), &[])?;
    }
    // Without it init would start with no standard error.
    let console = entry("dev/console", 0o600, ModeFileType::Char)
        .rdev_major(5)
        .rdev_minor(1);
    archive.add(console, &[])?;
    archive.add(entry("init", 0o755, ModeFileType::Regular), &read(init)?)?;
    for module in modules {
        let name = module_name(module)?;
        archive.add(entry(&name, 0o644, ModeFileType::Regular), &read(module)?)?;
    }
    archive.add(
        entry(PLAN.trim_start_matches('/'), 0o644, ModeFileType::Regular),
        &serde_json::to_vec(plan)?,
    )?;
    trailer(archive.out)?.flush()?;
    Ok(())
}

/// Where a module is in the initramfs.
pub fn module_name(module: &Path) -> Result<String> {
    let name = module
        .file_name()
        .and_then(|name| name.to_str())
        .with_context(|| format!("{} is no module", module.display()))?;
    Ok(format!("modules/{name}"))
}

struct Initramfs<W> {
    out: W,
    entries: u32,
}

impl<W: Write> Initramfs<W> {
    fn add(&mut self, entry: NewcBuilder, content: &[u8]) -> Result<()> {
        self.entries += 1;
        let size = u32::try_from(content.len()).context("a file of 4 GiB in the initramfs")?;
        // Two entries of one number would be taken for hard links.
        let mut writer = entry.ino(self.entries).nlink(1).write(&mut self.out, size);
        writer.write_all(content)?;
        writer.finish()?;
        Ok(())
    }
}

fn entry(name: &str, mode: u32, kind: ModeFileType) -> NewcBuilder {
    NewcBuilder::new(name).mode(mode).set_mode_file_type(kind)
}

/// Writes the disk of files for the guest: `includes`, and what kexec loads.
pub fn disk(path: &Path, includes: &[Include], kernel: &Path, initrd: &Path) -> Result<()> {
    let mut archive = tar::Builder::new(BufWriter::new(create(path)?));
    let mut folders = BTreeSet::new();
    for include in includes {
        let guest = include.guest.strip_prefix("/").unwrap_or(&include.guest);
        for folder in guest.ancestors().skip(1) {
            if !folder.as_os_str().is_empty() {
                folders.insert(folder.to_owned());
            }
        }
    }
    folders.insert("boot".into());
    for folder in folders {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(0o755);
        header.set_size(0);
        archive.append_data(&mut header, &folder, std::io::empty())?;
    }
    for include in includes {
        let guest = include.guest.strip_prefix("/").unwrap_or(&include.guest);
        archive
            .append_path_with_name(&include.host, guest)
            .with_context(|| format!("cannot include {}", include.host.display()))?;
    }
    archive
        .append_path_with_name(kernel, KERNEL)
        .with_context(|| format!("cannot read the kernel {}", kernel.display()))?;
    archive.append_path_with_name(initrd, INITRD)?;
    archive.into_inner()?.flush()?;
    Ok(())
}

/// An empty disk for what the guest brings out; it takes room only as it is written.
pub fn empty_disk(path: &Path, size: u64) -> Result<()> {
    create(path)?.set_len(size)?;
    Ok(())
}

/// The size of a disk that outlives its machine, in bytes. It takes room only as it is written.
const KEPT: u64 = 1 << 30;

/// A disk with an ext4 file system, unless there is one.
pub fn kept_disk(path: &Path) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
    }
    // Under its name only when it is whole.
    let arriving = path.with_added_extension("arriving");
    empty_disk(&arriving, KEPT)?;
    sh::run_quietly(
        sh::command(sh::find("mkfs.ext4").context("no mkfs.ext4: install e2fsprogs")?)
            .args(["-q", "-F", "-E", "root_owner=0:0"])
            .arg(std::path::absolute(&arriving)?),
    )?;
    fs::rename(&arriving, path)?;
    Ok(())
}

/// Writes the files of the disks that a guest filled into `folder`, over what is there. An entry of a name
/// that came before, on an earlier disk too, continues that file.
pub fn extract(disks: &[PathBuf], folder: &Path) -> Result<()> {
    let mut begun = BTreeSet::new();
    for disk in disks {
        let mut archive = tar::Archive::new(File::open(disk)?);
        for entry in archive.entries()? {
            // The guest died while it wrote: what came before is whole.
            let Ok(mut entry) = entry else { break };
            let name = entry.path()?.into_owned();
            // Only a plain name: what a guest says is no reason to write elsewhere.
            ensure!(
                name.file_name() == Some(name.as_os_str()),
                "the guest brings out a file named {}",
                name.display()
            );
            let path = folder.join(&name);
            let mut file = if begun.insert(name) {
                create(&path)?
            } else {
                File::options().append(true).open(&path)?
            };
            std::io::copy(&mut entry, &mut file)?;
        }
    }
    Ok(())
}

fn create(path: &Path) -> Result<File> {
    File::create(path).with_context(|| format!("cannot create {}", path.display()))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_lands_in_bin_unless_told_otherwise() {
        let plain: Include = "/somewhere/tool".parse().expect("a file");
        assert_eq!(plain.guest, Path::new("/bin/tool"));
        let placed: Include = "tool=/etc/tool.conf".parse().expect("two paths");
        assert_eq!(placed.host, Path::new("tool"));
        assert_eq!(placed.guest, Path::new("/etc/tool.conf"));
        for wrong in ["tool=relative", "tool=/a/../b", "tool=/", "/"] {
            assert!(wrong.parse::<Include>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn pieces_of_a_file_come_out_as_one_over_what_an_earlier_run_left() {
        let folder = tempfile::tempdir().expect("a folder");
        let out = folder.path().join("out");
        fs::create_dir(&out).expect("created");
        fs::write(out.join("a"), "stale").expect("written");
        let disks: Vec<PathBuf> = ["one", "two", "empty"]
            .into_iter()
            .map(|name| folder.path().join(name))
            .collect();
        for disk in &disks {
            empty_disk(disk, 1 << 20).expect("an empty disk");
        }
        fill(&disks[0], &[("a", "one "), ("b", "other"), ("a", "two ")]);
        fill(&disks[1], &[("a", "three")]);
        extract(&disks, &out).expect("extracted");
        assert_eq!(
            fs::read_to_string(out.join("a")).expect("there"),
            "one two three"
        );
        assert_eq!(fs::read_to_string(out.join("b")).expect("there"), "other");
    }

    #[test]
    fn a_guest_writes_nowhere_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = folder.path().join("disk");
        empty_disk(&disk, 1 << 20).expect("an empty disk");
        fill(&disk, &[("deep/file", "x")]);
        assert!(extract(&[disk], folder.path()).is_err());
    }

    fn fill(disk: &Path, pieces: &[(&str, &str)]) {
        let file = File::options().write(true).open(disk).expect("opened");
        let mut archive = tar::Builder::new(file);
        for (name, piece) in pieces {
            let mut header = tar::Header::new_gnu();
            header.set_size(piece.len() as u64);
            archive
                .append_data(&mut header, name, piece.as_bytes())
                .expect("appended");
        }
    }
}
