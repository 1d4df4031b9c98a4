//! Programs and maps kept by the kernel while no lu runs: links and maps in a folder of the BPF file system, one for each
//! version of the programs.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use aya::maps::{Map, MapData};
use aya::programs::links::{FdLink, PinnedLink};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use sha2::{Digest as _, Sha256};

use super::{Error, MAPS, Maps, programs};
use crate::attach::OBJECT;

/// Where the BPF file system is.
const BPF: &str = "/sys/fs/bpf";

/// Where every version of lu has its folder.
const FOLDER: &str = "/sys/fs/bpf/lu";

/// The folder of this version's programs.
#[must_use]
pub fn folder() -> PathBuf {
    let hash: [u8; 32] = Sha256::digest(OBJECT).into();
    let version = hash
        .iter()
        .take(8)
        .fold(0, |version, byte| version << 8 | u64::from(*byte));
    Path::new(FOLDER).join(format!("{version:016x}"))
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |error| Error::Pins {
        path: path.to_owned(),
        error,
        mounted: is_mounted(),
    }
}

fn is_mounted() -> bool {
    statfs(BPF).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}

/// The folders of all versions that are there.
pub fn all() -> Result<Vec<PathBuf>, Error> {
    let folder = Path::new(FOLDER);
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        found => found.map_err(failed(folder))?,
    };
    entries
        .map(|entry| entry.map(|entry| entry.path()).map_err(failed(folder)))
        .collect()
}

/// The maps and links of this version's programs, where these are pinned.
pub fn open() -> Result<Option<(Maps, Vec<FdLink>)>, Error> {
    let folder = folder();
    if !folder.exists() {
        return Ok(None);
    }
    let links = programs::names().map(|program| {
        let path = folder.join(program);
        let link = PinnedLink::from_pin(&path);
        let link = link.map_err(|error| failed(&path)(io::Error::other(error)))?;
        Ok(FdLink::from(link))
    });
    let links = links.collect::<Result<_, Error>>()?;
    let maps = Maps::take(|name| {
        let data = MapData::from_pin(folder.join(name))?;
        Ok(match name {
            "POLICY" => Map::ArrayOfMaps(data),
            "SESSIONS" | "TOKENS" => Map::HashMap(data),
            "VERDICTS" => Map::RingBuf(data),
            _ => Map::Array(data),
        })
    })?;
    Ok(Some((maps, links)))
}

/// Pins this version's programs and maps, whole or not at all. Other versions' programs go then: until that moment
/// they judged too.
pub fn create(programs: &mut aya::Ebpf, links: Vec<(&'static str, FdLink)>) -> Result<(), Error> {
    let made = Path::new(FOLDER).join(format!("new-{}", std::process::id()));
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&made)
        .map_err(failed(&made))?;
    let pinned = fill(&made, programs, links).and_then(|()| {
        let folder = folder();
        fs::rename(&made, &folder).map_err(failed(&folder))
    });
    if pinned.is_err() {
        let _ = remove(&made);
        return pinned;
    }
    for other in all()? {
        if other != folder() {
            remove(&other)?;
        }
    }
    Ok(())
}

fn fill(
    folder: &Path,
    programs: &mut aya::Ebpf,
    links: Vec<(&'static str, FdLink)>,
) -> Result<(), Error> {
    let other = |path: &Path, error: aya::pin::PinError| failed(path)(io::Error::other(error));
    for (name, map) in programs.maps_mut() {
        if MAPS.contains(&name) {
            let path = folder.join(name);
            map.pin(&path).map_err(|error| other(&path, error))?;
        }
    }
    for (program, link) in links {
        let path = folder.join(program);
        link.pin(&path).map_err(|error| other(&path, error))?;
    }
    Ok(())
}

/// Takes a version's programs off.
pub fn remove(folder: &Path) -> Result<(), Error> {
    let entries = fs::read_dir(folder).map_err(failed(folder))?;
    for entry in entries {
        let path = entry.map_err(failed(folder))?.path();
        fs::remove_file(&path).map_err(failed(&path))?;
    }
    fs::remove_dir(folder).map_err(failed(folder))
}
