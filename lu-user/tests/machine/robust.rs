//! Hostile and dying clients: the emulator stays whole and keeps nothing.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::{Failed, Trial};
use nix::sys::signal::Signal;

use crate::clients::path;
use crate::support::{Background, Outcome, client, expect_status, finish, lu, run, scratch, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("no_bytes_as_an_argument_confuse_the_emulator", || {
            random_bytes("v3", &[])
        }),
        trial("nor_a_session", || random_bytes("sessions", &["sessions"])),
        trial("clients_killed_at_random_moments_leak_nothing", || {
            killed_clients("v3", "churn", 120)
        }),
        trial("nor_those_that_hold_sessions", || {
            killed_clients("sessions", "sessions_churn", 60)
        }),
        trial("a_killed_emulator_leaves_no_mount", no_mount_is_left),
        trial("a_real_file_is_not_covered_twice", not_covered_twice),
    ]
}

fn random_bytes(interface: &str, more: &[&str]) -> Outcome {
    let program = client("fuzz", &["-static"])?;
    let program = path(&program)?;
    for seed in 1..=8 {
        let seed = seed.to_string();
        let start = ["emulate", "--interface", interface, "--", program];
        let output = run(&[&start[..], &[&seed, "5000"], more].concat())?;
        expect_status(&output, 0).map_err(|failed| {
            Failed::from(format!(
                "seed {seed}: {}",
                failed.message().unwrap_or_default()
            ))
        })?;
    }
    Ok(())
}

/// An emulator at a path of its own.
struct Emulator {
    background: Background,
    device: PathBuf,
    _folder: tempfile::TempDir,
}

impl Emulator {
    fn start() -> Result<Self, Failed> {
        Self::speaking("v3")
    }

    fn speaking(interface: &str) -> Result<Self, Failed> {
        let folder = scratch();
        let device = folder.path().join("liveupdate");
        let how = ["emulate", "--boot-delay=5ms", "--interface", interface];
        let args = [&how[..], &["--at", path(&device)?]].concat();
        let background = Background::start(&args, Stdio::null(), "Ctrl-C ends it")?;
        Ok(Self {
            background,
            device,
            _folder: folder,
        })
    }

    fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.background.pid())).map_or(0, Iterator::count)
    }

    fn threads_and_children(&self) -> usize {
        let pid = self.background.pid();
        std::fs::read_dir(format!("/proc/{pid}/task"))
            .into_iter()
            .flatten()
            .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("children")).ok())
            .map(|children| children.split_whitespace().count())
            .sum()
    }

    fn client(&self, program: &Path, more: &[&str]) -> Result<Child, Failed> {
        Ok(Command::new(program)
            .arg(&self.device)
            .args(more)
            .stdout(Stdio::piped())
            .spawn()?)
    }

    fn ctl(&self, args: &[&str]) -> Result<std::process::Output, Failed> {
        let mut command = Command::new(lu());
        command
            .arg("ctl")
            .arg("--device")
            .arg(&self.device)
            .args(args);
        finish(command)
    }

    fn kexec(&self) -> Outcome {
        let pid = self.background.pid().to_string();
        expect_status(&run(&["emulate", "kexec", "--pid", &pid])?, 0)
    }
}

fn killed_clients(interface: &str, program: &str, rounds: u64) -> Outcome {
    let emulator = Emulator::speaking(interface)?;
    let program = client(program, &["-static"])?;
    let probe = match interface {
        "v3" => &["state"][..],
        _ => &["session", "create", "probe"],
    };
    expect_status(&emulator.ctl(probe)?, 0)?;
    let (files, children) = (emulator.open_files(), emulator.threads_and_children());
    // No generator of random numbers is worth a dependency here: any spread of moments will do.
    let moments = (0..rounds).map(|round| Duration::from_micros(round * 7919 % 23_000));
    for (round, moment) in moments.enumerate() {
        if round % 4 == 0 {
            // Something to restore: this client ends with the old kernel.
            let mut holder = emulator.client(&program, &["keep"])?;
            let mut said = [0; 9];
            std::io::Read::read_exact(&mut holder.stdout.take().ok_or("no output")?, &mut said)?;
            emulator.kexec()?;
            holder.wait()?;
        }
        let mut child = emulator.client(&program, &[])?;
        std::thread::sleep(moment);
        child.kill()?;
        child.wait()?;
    }
    // With nothing preserved the next kernel starts empty.
    emulator.kexec()?;
    // The last close may still be on its way.
    let deadline = Instant::now() + Duration::from_secs(5);
    let whole = || -> Result<bool, Failed> {
        Ok(emulator.ctl(probe)?.status.success()
            && emulator.open_files() == files
            && emulator.threads_and_children() == children)
    };
    while !whole()? {
        if Instant::now() > deadline {
            return Err(format!(
                "{files} open files and {children} children before, {} and {} after",
                emulator.open_files(),
                emulator.threads_and_children()
            )
            .into());
        }
    }
    emulator.background.stop().map(drop)
}

fn is_mount(place: &Path) -> bool {
    std::fs::read_to_string("/proc/self/mounts")
        .is_ok_and(|mounts| mounts.contains(&place.display().to_string()))
}

fn no_mount_is_left() -> Outcome {
    for signal in [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGKILL,
    ] {
        let emulator = Emulator::start()?;
        if !is_mount(&emulator.device) {
            return Err("nothing is mounted while it runs".into());
        }
        emulator.background.signal(signal)?;
        let deadline = Instant::now() + Duration::from_secs(5);
        while is_mount(&emulator.device) || emulator.device.symlink_metadata().is_ok() {
            if Instant::now() > deadline {
                return Err(format!("{signal} leaves the mount behind").into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    Ok(())
}

fn not_covered_twice() -> Outcome {
    let emulator = Emulator::start()?;
    let output = run(&["emulate", "--at", path(&emulator.device)?])?;
    expect_status(&output, 1)?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !said.contains("already") {
        return Err(format!("it does not say why: {said}").into());
    }
    let output = run(&["emulate", "--at", "/dev/null"])?;
    expect_status(&output, 1)?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !said.contains("real device") {
        return Err(format!("it does not say why: {said}").into());
    }
    emulator.background.stop().map(drop)
}
