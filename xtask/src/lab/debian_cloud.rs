//! Debian's cloud kernel of stable: a distribution's, without an orchestrator, as lu's users have it today.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use object::{Object as _, ObjectSection as _};

use super::{Kernel, kernel};
use crate::debian::{self, Archive, Offer};
use crate::{setup, sh};

/// The modules that the guest needs: the disks by which files go in and out, and FUSE for `lu emulate`.
const WANTED: [&str; 3] = ["virtio_pci", "virtio_blk", "fuse"];

const IMAGE: &str = "vmlinuz";
const MODULES: &str = "modules";

/// The newest one in the cache; fetched where there is none.
pub fn ensure() -> Result<Kernel> {
    let folder = match kernel::newest_cached("debian-cloud-", "")? {
        Some(folder) => folder,
        None => fetch()?,
    };
    // Their names begin with their place in the order of loading.
    let mut modules: Vec<PathBuf> = fs::read_dir(folder.join(MODULES))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    modules.sort();
    Ok(Kernel {
        image: folder.join(IMAGE),
        modules,
    })
}

fn fetch() -> Result<PathBuf> {
    setup::ensure(setup::For::LabKernel)?;
    let _lock = sh::lock(&kernel::cache()?.join("debian-cloud.lock"))?;
    if let Some(folder) = kernel::newest_cached("debian-cloud-", "")? {
        return Ok(folder);
    }
    let archive = Archive::open()?;
    let offer = newest(&archive)?;
    let scratch = sh::Scratch::new("debian-cloud")?;
    let package = scratch.join("package");
    archive.unpack(&offer, &package)?;
    let whole = scratch.join("whole");
    fs::create_dir_all(whole.join(MODULES))?;
    let release = offer
        .package
        .strip_prefix("linux-image-")
        .context("a kernel's package")?;
    fs::copy(
        package.join("boot").join(format!("vmlinuz-{release}")),
        whole.join(IMAGE),
    )?;
    Modules::new(&package, release)?.collect(&whole.join(MODULES))?;
    let place = kernel::cache()?.join(format!("debian-cloud-{}", offer.version));
    fs::rename(&whole, &place)?;
    Ok(place)
}

/// The newest `linux-image-X.Y.Z-cloud-amd64` of stable.
fn newest(archive: &Archive) -> Result<Offer> {
    let packages: Vec<String> = archive
        .names("linux-image-")?
        .into_iter()
        .filter(|name| {
            name.strip_prefix("linux-image-").is_some_and(|rest| {
                rest.ends_with("-cloud-amd64")
                    && rest.starts_with(|first: char| first.is_ascii_digit())
            })
        })
        .collect();
    let offers = archive.offers(&packages)?;
    debian::newest(offers.into_iter().filter(|offer| offer.is_in("stable")))?.with_context(|| {
        format!(
            "stable of {} has no linux-image-*-cloud-amd64",
            archive.mirror()
        )
    })
}

/// The modules of an unpacked package. It has no list of their dependencies: depmod would write that when
/// the package is installed. So each module is asked.
struct Modules {
    /// Each module's file, by its name.
    files: BTreeMap<String, PathBuf>,
    /// What the kernel has within itself.
    builtin: BTreeSet<String>,
}

impl Modules {
    fn new(package: &Path, release: &str) -> Result<Self> {
        let place = ["usr/lib/modules", "lib/modules"]
            .into_iter()
            .map(|folder| package.join(folder).join(release))
            .find(|folder| folder.is_dir())
            .context("the package has no modules")?;
        let builtin = fs::read_to_string(place.join("modules.builtin"))
            .context("modules.builtin")?
            .lines()
            .filter_map(|line| module_name(Path::new(line)))
            .collect();
        let mut files = BTreeMap::new();
        let mut folders = vec![place.join("kernel")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    folders.push(entry.path());
                } else if let Some(name) = module_name(&entry.path()) {
                    files.insert(name, entry.path());
                }
            }
        }
        Ok(Self { files, builtin })
    }

    /// Writes the wanted modules and what they need to `folder`, uncompressed, each after its needs.
    fn collect(&self, folder: &Path) -> Result<()> {
        let mut done = BTreeSet::new();
        for name in WANTED {
            self.add(name, folder, &mut done)?;
        }
        Ok(())
    }

    fn add(&self, name: &str, folder: &Path, done: &mut BTreeSet<String>) -> Result<()> {
        if self.builtin.contains(name) || done.contains(name) {
            return Ok(());
        }
        let file = self
            .files
            .get(name)
            .with_context(|| format!("this kernel has no module {name}"))?;
        let module = uncompressed(file)?;
        for needed in depends(&module).with_context(|| format!("module {name}"))? {
            self.add(&needed, folder, done)?;
        }
        fs::write(folder.join(format!("{:02}-{name}.ko", done.len())), module)?;
        done.insert(name.to_owned());
        Ok(())
    }
}

/// The name that the kernel gives a module: its file's, with underscores.
fn module_name(file: &Path) -> Option<String> {
    let (name, ending) = file.file_name()?.to_str()?.split_once('.')?;
    ending.starts_with("ko").then(|| name.replace('-', "_"))
}

fn uncompressed(file: &Path) -> Result<Vec<u8>> {
    let program = match file.extension().and_then(|ending| ending.to_str()) {
        Some("ko") => return Ok(fs::read(file)?),
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => bail!("{} is compressed in an unknown way", file.display()),
    };
    let output = sh::command(program)
        .arg("-dc")
        .arg(file)
        .output()
        .with_context(|| format!("{program} does not start; it unpacks modules"))?;
    if !output.status.success() {
        bail!("{program} cannot unpack {}", file.display());
    }
    Ok(output.stdout)
}

/// The modules that must be loaded before this one, as its `.modinfo` says.
fn depends(module: &[u8]) -> Result<Vec<String>> {
    let module = object::File::parse(module)?;
    let information = module
        .section_by_name(".modinfo")
        .context("no .modinfo")?
        .data()?;
    Ok(depends_of(information))
}

fn depends_of(information: &[u8]) -> Vec<String> {
    information
        .split(|byte| *byte == 0)
        .filter_map(|field| str::from_utf8(field).ok()?.strip_prefix("depends="))
        .flat_map(|names| names.split(','))
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_names_what_it_needs() {
        let information =
            b"license=GPL\0depends=virtio,virtio-ring,virtio_pci_legacy_dev\0name=x\0";
        assert_eq!(
            depends_of(information),
            ["virtio", "virtio_ring", "virtio_pci_legacy_dev"]
        );
        assert!(depends_of(b"depends=\0").is_empty());
    }

    #[test]
    fn a_module_is_called_as_the_kernel_calls_it() {
        let name = |file| module_name(Path::new(file));
        assert_eq!(name("kernel/fs/fuse/fuse.ko.xz").as_deref(), Some("fuse"));
        assert_eq!(name("a/virtio-blk.ko").as_deref(), Some("virtio_blk"));
        assert_eq!(name("modules.order"), None);
    }
}
