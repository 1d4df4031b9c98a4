//! The policy's programs: which there are, where they go, and what they compare with.

use std::time::{Duration, Instant};

use aya::programs::links::FdLink;
use aya::programs::{FEntry, FExit, Lsm, Program, ProgramError};
use aya::{Btf, Ebpf, EbpfLoader};
use lu_common::layout::{ABSENT, Landmarks, Offsets};
use lu_common::uapi::Interface;

use super::Error;
use crate::attach::{self, KernelPlace, OBJECT, chain};

/// A program, and the LSM hook or the function that it goes to.
struct Goes {
    program: &'static str,
    at: &'static str,
    way: Way,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Lsm,
    Entry,
    Exit,
}

const fn at(way: Way, at: &'static str, program: &'static str) -> Goes {
    Goes { program, at, way }
}

/// All of them, those that judge first: who keeps account then has been told of each request.
const ALL: [Goes; 16] = [
    at(Way::Lsm, "file_open", "lsm_file_open"),
    at(Way::Lsm, "file_ioctl", "lsm_file_ioctl"),
    at(Way::Lsm, "file_ioctl_compat", "lsm_file_ioctl_compat"),
    at(Way::Lsm, "file_receive", "lsm_file_receive"),
    at(Way::Lsm, "kernel_load_data", "lsm_kernel_load_data"),
    at(Way::Lsm, "kernel_read_file", "lsm_kernel_read_file"),
    at(Way::Lsm, "capable", "lsm_capable"),
    at(Way::Exit, "luo_open", "policy_open"),
    at(Way::Exit, "luo_release", "policy_release"),
    at(Way::Exit, "luo_session_create", "policy_session_create"),
    at(Way::Exit, "luo_session_retrieve", "policy_session_retrieve"),
    at(Way::Exit, "luo_preserve_file", "policy_preserve_file"),
    at(Way::Exit, "luo_retrieve_file", "policy_retrieve_file"),
    at(Way::Entry, "luo_session_release", "policy_session_release"),
    at(Way::Exit, "luo_session_ioctl", "policy_session_ioctl_done"),
    at(Way::Exit, "luo_ioctl", "policy_ioctl_done"),
];

/// The programs' names.
pub fn names() -> impl Iterator<Item = &'static str> {
    ALL.iter().map(|goes| goes.program)
}

/// The ring buffer for verdicts, in bytes.
const VERDICTS: u32 = 1 << 20;

/// Loads the programs' maps and what they compare with.
pub fn load(place: &KernelPlace) -> Result<Ebpf, Error> {
    if place.interface != Interface::Sessions {
        return Err(Error::Orchestrator(place.interface.name().to_owned()));
    }
    // The functions are those of hooks; one that lu does not know is not touched.
    let functions = attach::hooks(place.interface)
        .iter()
        .filter(|hook| ALL.iter().any(|goes| goes.at == hook.function));
    for hook in functions {
        let found = place.types.prototype(hook.function);
        if found.as_deref() != Some(hook.prototype) {
            return Err(Error::Programs(format!(
                "in this kernel {} is {}, and lu knows {}",
                hook.function,
                found.unwrap_or_else(|| "not there".to_owned()),
                hook.prototype
            )));
        }
    }
    let asked = place.types.asked_offsets();
    if place.offsets.file_f_op == ABSENT || place.offsets.session_name == ABSENT {
        return Err(Error::Unknown(
            "where files and sessions keep what they are",
        ));
    }
    let landmarks = landmarks()?;
    let operations = attach::operations(&place.file_operations);
    let offsets: [u32; size_of::<Offsets>() / 4] = place.offsets.list();
    Ok(EbpfLoader::new()
        .btf(None)
        .map_max_entries("VERDICTS", VERDICTS)
        // Those who watch have these.
        .map_max_entries("EVENTS", 4096)
        .map_max_entries("CALLS", 1)
        .map_max_entries("NAMED", 1)
        .override_global("OFFSETS", &offsets, true)
        .override_global("ASKED_OFFSETS", &asked.list(), true)
        .override_global("LANDMARKS", &words(landmarks), true)
        .override_global("FILE_OPERATIONS", &operations, true)
        .load(OBJECT)?)
}

/// Landmarks as the words that they are made of.
const fn words(landmarks: Landmarks) -> [u64; size_of::<Landmarks>() / 8] {
    let Landmarks {
        device_operations,
        session_operations,
        kexec_image,
        device,
        kexec_image_id,
    } = landmarks;
    let (device, image) = (device.to_ne_bytes(), kexec_image_id.to_ne_bytes());
    let last = [
        device[0], device[1], device[2], device[3], image[0], image[1], image[2], image[3],
    ];
    [
        device_operations,
        session_operations,
        kexec_image,
        u64::from_ne_bytes(last),
    ]
}

fn landmarks() -> Result<Landmarks, Error> {
    let [device_operations, session_operations, kexec_image] =
        attach::addresses(["luo_fops", "luo_session_fops", "kexec_image"]);
    if device_operations == 0 || session_operations == 0 {
        return Err(Error::Unknown(
            "the addresses of luo_fops and luo_session_fops (/proc/kallsyms)",
        ));
    }
    Ok(Landmarks {
        device_operations,
        session_operations,
        kexec_image,
        device: device().ok_or(Error::Unknown("which device /dev/liveupdate is"))?,
        kexec_image_id: KEXEC_IMAGE_ID,
    })
}

/// `LOADING_KEXEC_IMAGE` and `READING_KEXEC_IMAGE` (`include/linux/kernel_read_file.h`, the same since Linux 5.8).
const KEXEC_IMAGE_ID: u32 = 3;

/// The device's number as the kernel has it: major << 20 | minor (`include/linux/kdev_t.h`).
fn device() -> Option<u32> {
    let text = std::fs::read_to_string("/sys/class/misc/liveupdate/dev").ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse::<u32>().ok()? << 20) | minor.parse::<u32>().ok()?)
}

/// What the kernel's verifier made of a program.
#[derive(Clone, Copy, Debug)]
pub struct Verified {
    /// The program.
    pub program: &'static str,
    /// How many instructions it went through, those of all ways through the program together.
    pub instructions: u32,
    /// How long the kernel took to load it.
    pub took: Duration,
}

/// Loads all of them and attaches none: what each costs the verifier.
pub fn verify(place: &KernelPlace) -> Result<Vec<Verified>, Error> {
    let mut ebpf = load(place)?;
    each(|goes, btf| {
        let begin = Instant::now();
        load_one(&mut ebpf, goes, btf)?;
        let took = begin.elapsed();
        let info = ebpf
            .program(goes.program)
            .ok_or(ProgramError::NotLoaded)?
            .info()?;
        Ok(Verified {
            program: goes.program,
            instructions: info.verified_instruction_count().unwrap_or(0),
            took,
        })
    })
}

/// Attaches all of them.
pub fn attach(ebpf: &mut Ebpf) -> Result<Vec<(&'static str, FdLink)>, Error> {
    each(|goes, btf| {
        load_one(ebpf, goes, btf)?;
        Ok((goes.program, attach_one(ebpf, goes)?))
    })
}

/// Does something with each.
fn each<T>(mut with: impl FnMut(&Goes, &Btf) -> Result<T, ProgramError>) -> Result<Vec<T>, Error> {
    let btf = Btf::from_sys_fs().map_err(|error| Error::Programs(chain(&error)))?;
    ALL.iter()
        .map(|goes| {
            with(goes, &btf).map_err(|error| {
                let Goes { program, at, .. } = goes;
                Error::Programs(format!("{program} at {at}: {}", chain(&error)))
            })
        })
        .collect()
}

fn program<'a, T>(ebpf: &'a mut Ebpf, goes: &Goes) -> Result<&'a mut T, ProgramError>
where
    &'a mut T: TryFrom<&'a mut Program, Error = ProgramError>,
{
    ebpf.program_mut(goes.program)
        .ok_or(ProgramError::NotLoaded)?
        .try_into()
}

fn load_one(ebpf: &mut Ebpf, goes: &Goes, btf: &Btf) -> Result<(), ProgramError> {
    match goes.way {
        Way::Lsm => program::<Lsm>(ebpf, goes)?.load(goes.at, btf),
        Way::Entry => program::<FEntry>(ebpf, goes)?.load(goes.at, btf),
        Way::Exit => program::<FExit>(ebpf, goes)?.load(goes.at, btf),
    }
}

fn attach_one(ebpf: &mut Ebpf, goes: &Goes) -> Result<FdLink, ProgramError> {
    macro_rules! attached {
        ($kind:ty) => {{
            let program: &mut $kind = program(ebpf, goes)?;
            let link = program.attach()?;
            Ok(program.take_link(link)?.into())
        }};
    }
    match goes.way {
        Way::Lsm => attached!(Lsm),
        Way::Entry => attached!(FEntry),
        Way::Exit => attached!(FExit),
    }
}
