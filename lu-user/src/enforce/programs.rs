//! The policy's programs: which there are, where they go, and what they compare with.

use std::time::{Duration, Instant};

use aya::programs::links::FdLink;
use aya::programs::{FEntry, FExit, Lsm, Program, ProgramError};
use aya::{Btf, Ebpf, EbpfLoader};
use lu_common::layout::{ABSENT, FILE_OPERATIONS_MAX, Landmarks, Offsets};
use lu_common::uapi::Interface;

use super::Error;
use crate::attach::{self, OBJECT, chain};

/// A program, and the LSM hook or the function that it goes to.
struct Place {
    program: &'static str,
    at: &'static str,
    way: Way,
    /// The function as lu knows it; another is not touched.
    prototype: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Lsm,
    Entry,
    Exit,
}

const fn lsm(program: &'static str, at: &'static str) -> Place {
    Place {
        program,
        at,
        way: Way::Lsm,
        prototype: "",
    }
}

const fn at(
    way: Way,
    program: &'static str,
    function: &'static str,
    prototype: &'static str,
) -> Place {
    Place {
        program,
        at: function,
        way,
        prototype,
    }
}

/// All of them, those that judge first: who keeps account then has been told of each request.
const PLACES: [Place; 18] = [
    at(
        Way::Entry,
        "policy_sys_reboot",
        SYS_REBOOT,
        "long (const struct pt_regs *)",
    ),
    lsm("lsm_file_open", "file_open"),
    lsm("lsm_file_ioctl", "file_ioctl"),
    lsm("lsm_file_ioctl_compat", "file_ioctl_compat"),
    lsm("lsm_file_receive", "file_receive"),
    lsm("lsm_kernel_load_data", "kernel_load_data"),
    lsm("lsm_kernel_read_file", "kernel_read_file"),
    lsm("lsm_capable", "capable"),
    at(
        Way::Exit,
        "policy_sys_reboot_done",
        SYS_REBOOT,
        "long (const struct pt_regs *)",
    ),
    at(
        Way::Exit,
        "policy_open",
        "luo_open",
        "int (struct inode *, struct file *)",
    ),
    at(
        Way::Exit,
        "policy_release",
        "luo_release",
        "int (struct inode *, struct file *)",
    ),
    at(
        Way::Exit,
        "policy_session_create",
        "luo_session_create",
        "int (const char *, struct file **)",
    ),
    at(
        Way::Exit,
        "policy_session_retrieve",
        "luo_session_retrieve",
        "int (const char *, struct file **)",
    ),
    at(
        Way::Exit,
        "policy_preserve_file",
        "luo_preserve_file",
        "int (struct luo_file_set *, u64, int)",
    ),
    at(
        Way::Exit,
        "policy_retrieve_file",
        "luo_retrieve_file",
        "int (struct luo_file_set *, u64, struct file **)",
    ),
    at(
        Way::Entry,
        "policy_session_release",
        "luo_session_release",
        "int (struct inode *, struct file *)",
    ),
    at(
        Way::Exit,
        "policy_session_ioctl_done",
        "luo_session_ioctl",
        "long (struct file *, unsigned int, unsigned long)",
    ),
    at(
        Way::Exit,
        "policy_ioctl_done",
        "luo_ioctl",
        "long (struct file *, unsigned int, unsigned long)",
    ),
];

/// The programs' names.
pub fn names() -> impl Iterator<Item = &'static str> {
    PLACES.iter().map(|place| place.program)
}

/// The system call reboot(2).
const SYS_REBOOT: &str = if cfg!(target_arch = "aarch64") {
    "__arm64_sys_reboot"
} else {
    "__x64_sys_reboot"
};

/// The ring buffer for verdicts, in bytes.
const VERDICTS: u32 = 256 << 10;

/// Loads the programs' maps and what they compare with.
pub fn load() -> Result<Ebpf, Error> {
    let place = attach::place().map_err(|error| Error::Orchestrator(error.to_string()))?;
    if place.interface != Interface::Sessions {
        return Err(Error::Orchestrator(place.interface.name().to_owned()));
    }
    let types = attach::Types::of_kernel().map_err(Error::Programs)?;
    for place in &PLACES {
        let found = types.prototype(place.at);
        if place.way != Way::Lsm && found.as_deref() != Some(place.prototype) {
            return Err(Error::Programs(format!(
                "in this kernel {} is {}, and lu knows {}",
                place.at,
                found.unwrap_or_else(|| "not there".to_owned()),
                place.prototype
            )));
        }
    }
    let asked = types.asked_offsets();
    if place.offsets.file_f_op == ABSENT || place.offsets.session_name == ABSENT {
        return Err(Error::Unknown(
            "where files and sessions keep what they are",
        ));
    }
    let landmarks = landmarks()?;
    let mut operations = [0_u64; 2 * FILE_OPERATIONS_MAX];
    attach::fill_operations(&mut operations, &place.file_operations);
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
pub fn verify() -> Result<Vec<Verified>, Error> {
    let mut ebpf = load()?;
    each(|place, btf| {
        let begin = Instant::now();
        load_one(&mut ebpf, place, btf)?;
        let took = begin.elapsed();
        let info = ebpf
            .program(place.program)
            .ok_or(ProgramError::NotLoaded)?
            .info()?;
        Ok(Verified {
            program: place.program,
            instructions: info.verified_instruction_count().unwrap_or(0),
            took,
        })
    })
}

/// Attaches all of them.
pub fn attach(ebpf: &mut Ebpf) -> Result<Vec<(&'static str, FdLink)>, Error> {
    each(|place, btf| {
        load_one(ebpf, place, btf)?;
        Ok((place.program, attach_one(ebpf, place)?))
    })
}

/// Does something with each.
fn each<T>(mut with: impl FnMut(&Place, &Btf) -> Result<T, ProgramError>) -> Result<Vec<T>, Error> {
    let btf = Btf::from_sys_fs().map_err(|error| Error::Programs(chain(&error)))?;
    PLACES
        .iter()
        .map(|place| {
            with(place, &btf).map_err(|error| {
                Error::Programs(format!(
                    "{} at {}: {}",
                    place.program,
                    place.at,
                    chain(&error)
                ))
            })
        })
        .collect()
}

fn program<'a, T>(ebpf: &'a mut Ebpf, place: &Place) -> Result<&'a mut T, ProgramError>
where
    &'a mut T: TryFrom<&'a mut Program, Error = ProgramError>,
{
    ebpf.program_mut(place.program)
        .ok_or(ProgramError::NotLoaded)?
        .try_into()
}

fn load_one(ebpf: &mut Ebpf, place: &Place, btf: &Btf) -> Result<(), ProgramError> {
    match place.way {
        Way::Lsm => program::<Lsm>(ebpf, place)?.load(place.at, btf),
        Way::Entry => program::<FEntry>(ebpf, place)?.load(place.at, btf),
        Way::Exit => program::<FExit>(ebpf, place)?.load(place.at, btf),
    }
}

fn attach_one(ebpf: &mut Ebpf, place: &Place) -> Result<FdLink, ProgramError> {
    macro_rules! attached {
        ($kind:ty) => {{
            let program: &mut $kind = program(ebpf, place)?;
            let link = program.attach()?;
            Ok(program.take_link(link)?.into())
        }};
    }
    match place.way {
        Way::Lsm => attached!(Lsm),
        Way::Entry => attached!(FEntry),
        Way::Exit => attached!(FExit),
    }
}
