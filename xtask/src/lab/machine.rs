//! The virtual machine: QEMU, its console, and the line on which init tells its steps.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use super::protocol::{DISK_IN, Step, disk_out};
use crate::sh;

/// What both kernels are told: where the console is, and to put times on it; to end at once, so that QEMU ends, where they die; and
/// to hand memory over.
const COMMAND_LINE: &str = "console=ttyS0 printk.time=1 panic=-1 oops=panic liveupdate=on kho=on";

/// How long a kernel under KVM may be silent while it comes up.
const PROBE: Duration = Duration::from_secs(3);

/// What a kernel without a root file system prints when it has come up.
const PROBE_REACHED: &str = "VFS: ";

/// How long the rest of a dying kernel's message may take.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How long a guest that has told its last step may take to power off.
const POWER_OFF: Duration = Duration::from_secs(20);

/// How long nothing may happen before is looked whether the machine still runs.
const PATIENCE: Duration = Duration::from_millis(100);

/// Lines of the console that are shown when the guest dies.
const TAIL: usize = 30;

/// How a line begins by which a kernel says that it dies or hangs, and what must be in it too.
const DEATHS: [(&str, &str); 8] = [
    ("Kernel panic - not syncing", ""),
    ("BUG: ", ""),
    ("kernel BUG at ", ""),
    ("Oops: ", ""),
    ("general protection fault", ""),
    ("watchdog: BUG: soft lockup", ""),
    ("rcu: INFO: rcu_", "stall"),
    ("INFO: task ", "blocked for more than"),
];

/// The serial number of the disk that outlives a machine, with lu's journal on it.
pub const DISK_KEPT: &str = "lu-kept";

/// Set by Ctrl-C.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on Ctrl-C ends the virtual machine and removes its files, instead of this process at once.
pub fn end_at_ctrl_c() -> Result<()> {
    ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::Relaxed))?;
    Ok(())
}

/// What runs the guest's processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// The host's processor.
    Kvm,
    /// QEMU's software emulation, a thread for each processor.
    Tcg,
    /// The same in one thread, which is slower.
    TcgInOneThread,
}

impl Accelerator {
    /// Its name for people and QEMU.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
            Self::TcgInOneThread => "tcg in one thread",
        }
    }

    /// The one to use: `LU_LAB_ACCEL`, else KVM if it truly runs `kernel`, else emulation. KVM is tried
    /// once in a run.
    pub fn choose(kernel: &Path) -> Result<Self> {
        static CHOSEN: OnceLock<Accelerator> = OnceLock::new();
        match std::env::var("LU_LAB_ACCEL").as_deref() {
            Ok("kvm") => return Ok(Self::Kvm),
            Ok("tcg") => return Ok(Self::Tcg),
            Ok(other) => bail!("LU_LAB_ACCEL is kvm or tcg, not {other}"),
            Err(_) => {}
        }
        Ok(*CHOSEN.get_or_init(|| {
            if !Path::new("/dev/kvm").exists() {
                return Self::Tcg;
            }
            match kvm_runs(kernel) {
                Ok(()) => Self::Kvm,
                Err(error) => {
                    sh::say(&format!("lab: KVM does not run this kernel here ({error:#}): using software emulation"));
                    Self::Tcg
                }
            }
        }))
    }

    fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Self::Tcg => ["-accel", "tcg,thread=multi", "-cpu", "max"],
            Self::TcgInOneThread => ["-accel", "tcg,thread=single", "-cpu", "max"],
        }
    }
}

/// Boots `kernel` without anything: under a KVM that works it comes up and finds no root file system.
fn kvm_runs(kernel: &Path) -> Result<()> {
    let mut command = qemu(Accelerator::Kvm);
    command
        .args(["-m", "512M", "-serial", "stdio", "-kernel"])
        .arg(kernel)
        .arg("-append")
        .arg(format!("{COMMAND_LINE} earlyprintk=ttyS0"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut qemu = Qemu::start(&mut command)?;
    let (sender, lines) = channel();
    let streams: [Option<Box<dyn std::io::Read + Send>>; 2] = [
        qemu.0.stdout.take().map(|out| Box::new(out) as _),
        qemu.0.stderr.take().map(|err| Box::new(err) as _),
    ];
    for stream in streams.into_iter().flatten() {
        let sender = sender.clone();
        thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
    }
    drop(sender);
    loop {
        match lines.recv_timeout(PROBE) {
            Ok(line) if line.contains(PROBE_REACHED) => return Ok(()),
            Ok(line) if line.contains("internal error") => bail!("{}", line.trim()),
            Ok(_) => {}
            Err(RecvTimeoutError::Timeout) => {
                bail!("silent for {} s", PROBE.as_secs())
            }
            Err(RecvTimeoutError::Disconnected) => bail!("QEMU ended: {}", qemu.0.wait()?),
        }
    }
}

fn qemu(accelerator: Accelerator) -> Command {
    let mut command = sh::command("qemu-system-x86_64");
    command
        .args(accelerator.arguments())
        // kexec is no reset, so the only reset is the one of a kernel that died.
        .args(["-smp", "2", "-no-reboot", "-nodefaults", "-display", "none"]);
    command
}

/// Lets QEMU's main thread, which delivers the guest's timers, run before the threads of the processors: these
/// may keep all of ours busy. Without the privilege they come as they come.
fn prefer_timers(pid: u32) {
    const BEFORE_OTHERS: libc::c_int = -10;
    // SAFETY: no memory is involved; a thread that has ended is refused.
    let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, pid, BEFORE_OTHERS) };
}

/// A path among QEMU's options: a comma in it is doubled, or it would begin another option.
fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

/// A QEMU that goes when this is dropped.
struct Qemu(Child);

impl Qemu {
    fn start(command: &mut Command) -> Result<Self> {
        // However this process ends, QEMU ends with it.
        // SAFETY: between fork and exec this makes one system call, and touches no memory.
        unsafe {
            command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?));
        }
        command
            .spawn()
            .map(Self)
            .context("qemu-system-x86_64 does not start")
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a virtual machine is made of.
pub struct Machine<'a> {
    /// What it runs on.
    pub accelerator: Accelerator,
    /// Its memory, as QEMU takes it.
    pub memory: &'a str,
    /// The first kernel.
    pub kernel: &'a Path,
    /// Its initramfs.
    pub initramfs: &'a Path,
    /// More of a kernel command line.
    pub append: &'a str,
    /// The disk with the files for the guest.
    pub disk_in: &'a Path,
    /// The disks that it fills, one for each boot.
    pub disks_out: &'a [PathBuf],
    /// The disk that outlives it.
    pub disk_kept: Option<&'a Path>,
}

/// A step of init's that is waited for.
pub type Moment = fn(&Step) -> bool;

/// The plug is pulled.
#[derive(Clone, Copy, Debug)]
pub struct PowerCut {
    /// So long after the step at which this holds.
    pub at: Moment,
    /// See [`at`](Self::at).
    pub after: Duration,
}

/// How a machine ended, other than by telling that it is done.
#[derive(Debug)]
pub struct Death {
    /// In a line.
    pub what: String,
    /// Whether the guest's kernel said so itself.
    pub told: bool,
    /// The end of the console.
    pub console: String,
}

enum Event {
    Console(String),
    Step(Step),
    /// Something on the line of steps that is no step.
    Noise(String),
}

impl Machine<'_> {
    fn command(&self, steps: &str) -> Command {
        let mut command = qemu(self.accelerator);
        command
            .args(["-m", self.memory, "-kernel"])
            .arg(self.kernel)
            .arg("-initrd")
            .arg(self.initramfs)
            .arg("-append")
            .arg(format!("{COMMAND_LINE} {}", self.append));
        // What the host does with what has left the machine is of no interest, but where a power cut is played:
        // there what the guest was told to be on the disk must be.
        let disks = std::iter::once((DISK_IN.to_owned(), self.disk_in, "on", "unsafe"))
            .chain(
                self.disks_out
                    .iter()
                    .enumerate()
                    .map(|(index, path)| (disk_out(index + 1), path.as_path(), "off", "unsafe")),
            )
            .chain(
                self.disk_kept
                    .map(|path| (DISK_KEPT.to_owned(), path, "off", "writeback")),
            );
        for (name, path, readonly, cache) in disks {
            let path = escaped(path);
            command
                .arg("-drive")
                .arg(format!(
                    "if=none,id={name},format=raw,cache={cache},readonly={readonly},file={path}"
                ))
                .arg("-device")
                .arg(format!("virtio-blk-pci,drive={name},serial={name}"));
        }
        command.args(["-chardev", steps]);
        command
    }

    /// Runs the machine until init has told `done` and it has powered off, or until the power is cut, `on_step`
    /// being told each step. Its console goes to `console`.
    ///
    /// # Errors
    ///
    /// Where the lab itself fails; a guest's death is none.
    pub fn run(
        &self,
        scratch: &Path,
        console: &Path,
        limit: Duration,
        power_cut: Option<PowerCut>,
        mut on_step: impl FnMut(&Step),
    ) -> Result<Option<Death>> {
        let socket = scratch.join("steps");
        let listener = UnixListener::bind(&socket)
            .with_context(|| format!("cannot listen at {}", socket.display()))?;
        let mut command = self.command(&format!("socket,id=steps,path={}", escaped(&socket)));
        command
            .args(["-chardev", "stdio,id=console,signal=off"])
            .args(["-serial", "chardev:console", "-serial", "chardev:steps"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let log = File::create(console)
            .with_context(|| format!("cannot create {}", console.display()))?;
        let start = Instant::now();
        let mut qemu = Qemu::start(&mut command)?;
        let (sender, events) = channel();
        let stdout = qemu.0.stdout.take().context("QEMU has no output")?;
        let mut stderr = qemu.0.stderr.take().context("QEMU has no errors")?;
        let complaints = thread::spawn(move || {
            let mut text = String::new();
            let _ = stderr.read_to_string(&mut text);
            text
        });
        let console_sender = sender.clone();
        thread::spawn(move || copy_console(stdout, log, &console_sender));
        let pid = qemu.0.id();
        thread::spawn(move || {
            if let Ok((stream, _)) = listener.accept() {
                let mut steps = BufReader::new(stream);
                // Once the guest says something, its processors' threads are there.
                let _ = steps.fill_buf();
                prefer_timers(pid);
                read_steps(steps, &sender);
            }
        });
        let mut watch = Watch {
            console: Vec::new(),
            dying: None,
            done: None,
            power_cut,
            unplugged: None,
        };
        loop {
            if watch.unplugged.is_some_and(|at| Instant::now() >= at) {
                // Dropping it kills it.
                return Ok(None);
            }
            let patience = watch.unplugged.map_or(PATIENCE, |at| {
                PATIENCE.min(at.saturating_duration_since(Instant::now()))
            });
            match events.recv_timeout(patience) {
                Ok(event) => watch.take(event, &mut on_step),
                Err(RecvTimeoutError::Timeout) => {}
                // Both streams have ended, so QEMU is about to.
                Err(RecvTimeoutError::Disconnected) => thread::sleep(Duration::from_millis(20)),
            }
            if INTERRUPTED.load(Ordering::Relaxed) {
                bail!("interrupted");
            }
            if let Some(status) = qemu.0.try_wait()? {
                watch.drain(&events, &mut on_step);
                if watch.done.is_some() && watch.dying.is_none() {
                    return Ok(None);
                }
                let complaints = complaints.join().unwrap_or_default();
                let what = watch.dying.as_ref().map_or_else(
                    || match complaints.trim() {
                        "" => format!("QEMU ended ({status}) before the guest was done"),
                        complaint => format!("QEMU ended ({status}): {complaint}"),
                    },
                    |(line, _)| format!("the guest's kernel died: {line}"),
                );
                return Ok(Some(watch.death(what)));
            }
            if let Some((line, since)) = &watch.dying
                && since.elapsed() > LAST_WORDS
            {
                let what = format!("the guest's kernel died: {line}");
                return Ok(Some(watch.death(what)));
            }
            if watch.done.is_some_and(|since| since.elapsed() > POWER_OFF) {
                return Ok(None);
            }
            if start.elapsed() > limit && watch.done.is_none() {
                let what = format!("the guest was not done within {} s", limit.as_secs());
                return Ok(Some(watch.death(what)));
            }
        }
    }

    /// Runs the machine with its console on this terminal, until it ends.
    pub fn interact(&self) -> Result<()> {
        let mut command = self.command("null,id=steps");
        command
            .args(["-serial", "mon:stdio", "-serial", "chardev:steps"])
            .stdin(Stdio::inherit());
        let mut qemu = Qemu::start(&mut command)?;
        qemu.0.wait()?;
        Ok(())
    }
}

/// What has been seen of a running machine.
struct Watch {
    console: Vec<String>,
    /// The kernel's first line of dying, and when it came.
    dying: Option<(String, Instant)>,
    /// When init told its last step.
    done: Option<Instant>,
    power_cut: Option<PowerCut>,
    /// When the power is cut.
    unplugged: Option<Instant>,
}

impl Watch {
    fn take(&mut self, event: Event, on_step: &mut impl FnMut(&Step)) {
        match event {
            Event::Console(line) => {
                if self.dying.is_none() && is_death(&line) {
                    self.dying = Some((line.trim().to_owned(), Instant::now()));
                }
                self.console.push(line);
            }
            Event::Step(step) => {
                if matches!(step, Step::Done | Step::Broken { .. }) {
                    self.done = Some(Instant::now());
                }
                if let Some(cut) = self.power_cut.take_if(|cut| (cut.at)(&step)) {
                    self.unplugged = Some(Instant::now() + cut.after);
                }
                on_step(&step);
            }
            Event::Noise(line) => self.console.push(format!("(on the line of steps) {line}")),
        }
    }

    fn drain(&mut self, events: &Receiver<Event>, on_step: &mut impl FnMut(&Step)) {
        while let Ok(event) = events.recv_timeout(Duration::from_millis(200)) {
            self.take(event, on_step);
        }
    }

    fn death(&self, what: String) -> Death {
        let from = self.console.len().saturating_sub(TAIL);
        Death {
            what,
            told: self.dying.is_some(),
            console: self.console[from..].join("\n"),
        }
    }
}

/// Whether a line of the console says that the kernel dies or hangs. Its time may stand before it.
fn is_death(line: &str) -> bool {
    let line = line.trim_start();
    let text = match line
        .strip_prefix('[')
        .and_then(|rest| rest.split_once("] "))
    {
        Some((_, text)) => text,
        None => line,
    };
    DEATHS
        .iter()
        .any(|(begins, has)| text.starts_with(begins) && text.contains(has))
}

fn copy_console(from: impl std::io::Read, mut log: File, events: &Sender<Event>) {
    let mut reader = BufReader::new(from);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
        let _ = log.write_all(&line);
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        let _ = events.send(Event::Console(text));
        line.clear();
    }
}

fn read_steps(reader: impl std::io::BufRead, events: &Sender<Event>) {
    for line in reader.lines().map_while(Result::ok) {
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        let event =
            serde_json::from_str(line).map_or_else(|_| Event::Noise(line.to_owned()), Event::Step);
        let _ = events.send(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dying_kernel_is_told_from_a_program_that_speaks_of_one() {
        assert!(is_death(
            "[    3.141592] Kernel panic - not syncing: Attempted to kill init!"
        ));
        assert!(is_death(
            "[   12.000001] BUG: kernel NULL pointer dereference"
        ));
        assert!(is_death(
            "[  242.1] INFO: task stage2:77 blocked for more than 120 seconds."
        ));
        assert!(is_death("Kernel panic - not syncing: without a time"));
        assert!(!is_death("[    1.0] INFO: task scheduler: none"));
        assert!(!is_death("stage 1 prints: Kernel panic - not syncing"));
        assert!(!is_death("[    0.000000] Linux version 7.3.0"));
    }
}
