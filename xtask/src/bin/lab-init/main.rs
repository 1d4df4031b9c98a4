//! PID 1 of the lab's guest: mounts, loads modules, runs the stages, jumps into the next kernel by kexec,
//! and tells the host each step in a line on the second serial port.
//!
//! It has one thread, so whatever it waits for, it goes on reaping orphans and bringing files out.

mod outbox;
mod programs;
mod system;

#[path = "../../lab/protocol.rs"]
mod protocol;

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;

use outbox::Outbox;
use programs::Programs;
use protocol::{DISK_IN, INITRD, KERNEL, PLAN, Plan, Status, Step, disk_out};

/// The kernel parameter by which init knows which boot it is in; without it in the first.
const BOOT: &str = "lu_lab.boot=";

/// How often is looked whether what is waited for has come.
const TICK: Duration = Duration::from_millis(10);

/// What `lu run` may take to attach. Software emulation is slow, and programs are verified.
const ATTACH: Duration = Duration::from_secs(90);

/// What a program of lu's may take to end.
const END: Duration = Duration::from_mins(1);

/// The line of `lu run` by which it says that it watches.
const ATTACHED: &str = "hooks attached";

/// Where lu keeps its journal.
const JOURNAL: &str = "/lu/journal";

/// Exit status 0 from here would be a kernel panic all the same: PID 1 powers off, and never returns.
fn main() {
    if std::process::id() != 1 {
        // In the shell it is the way to jump: `/init kexec`.
        let done = match std::env::args().nth(1).as_deref() {
            Some("kexec") => system::jump(),
            _ => Err(anyhow::anyhow!("usage: /init kexec")),
        };
        if let Err(error) = done {
            eprintln!("init: {error:#}");
            std::process::exit(1);
        }
        return;
    }
    if let Err(error) = Guest::new().and_then(|mut guest| guest.run()) {
        let step = Step::Broken {
            text: format!("{error:#}"),
            by_lu: error.is::<ByLu>(),
        };
        // Without the serial port there is the console, which the host keeps.
        eprintln!("init: {error:#}");
        let _ = tell_on_port(&step);
    }
    system::power_off();
}

/// A failure that is lu's, not the lab's.
#[derive(Debug)]
struct ByLu(String);

impl std::fmt::Display for ByLu {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for ByLu {}

fn tell_on_port(step: &Step) -> Result<()> {
    let mut port = File::options().write(true).open("/dev/ttyS1")?;
    let mut line = serde_json::to_vec(step)?;
    line.push(b'\n');
    port.write_all(&line)?;
    Ok(())
}

struct Guest {
    plan: Plan,
    /// Which boot it is, counted from 1.
    boot: usize,
    programs: Programs,
    outbox: Outbox,
}

impl Guest {
    fn new() -> Result<Self> {
        let notes = system::mount_all();
        system::raw_port(Path::new("/dev/ttyS1")).context("the second serial port")?;
        for text in notes {
            tell_on_port(&Step::Note { text })?;
        }
        let plan = fs::read(PLAN).with_context(|| format!("cannot read {PLAN}"))?;
        let plan: Plan = serde_json::from_slice(&plan)?;
        for module in &plan.modules {
            system::load_module(Path::new(module)).with_context(|| format!("module {module}"))?;
        }
        let boot = match fs::read_to_string("/proc/cmdline")?
            .split_whitespace()
            .find_map(|word| word.strip_prefix(BOOT))
        {
            Some(number) => number.parse().context(BOOT)?,
            None => 1,
        };
        let disk = system::disk(&disk_out(boot))?;
        fs::create_dir_all(outbox::FOLDER)?;
        Ok(Self {
            plan,
            boot,
            programs: Programs::default(),
            outbox: Outbox::open(&disk)?,
        })
    }

    fn run(&mut self) -> Result<()> {
        let jumps = self.boot <= self.plan.kexecs;
        system::unpack(&system::disk(DISK_IN)?, |name| {
            jumps || !name.starts_with("boot")
        })
        .context("the disk of files for the guest")?;
        if let Some(disk) = &self.plan.disk {
            system::mount_disk(&system::disk(disk)?, Path::new(JOURNAL))
                .context("the disk for lu's journal")?;
        }
        tell_on_port(&Step::Booted {
            boot: self.boot,
            release: system::release()?,
        })?;
        if jumps {
            self.load().context("cannot load the kernel to jump into")?;
        }
        if self.plan.shell {
            return self.shell();
        }
        let recorder = match self.plan.lu.clone() {
            Some(args) => Some(self.start_recorder(&args)?),
            None => None,
        };
        let passed = self.stage()?;
        if jumps && passed {
            if recorder.is_some() && self.boot > 1 {
                // The last jump's, which the next kernel's journal will not have.
                self.report("report", &format!("report-{}.json", self.boot))?;
            }
            self.outbox.carry()?;
            tell_on_port(&Step::Jump)?;
            system::jump()?;
            bail!("reboot(KEXEC) has come back");
        }
        if let Some(recorder) = recorder {
            self.stop_recorder(recorder)?;
            self.report("report", "report.json")?;
            self.report("history", "history.json")?;
            if self.plan.with_trace {
                self.report("trace", "trace.jsonl")?;
            }
        }
        self.outbox.carry()?;
        tell_on_port(&Step::Done)
    }

    /// Loads the kernel and this very initramfs for the next boot, then frees their room.
    fn load(&self) -> Result<()> {
        let command_line = fs::read_to_string("/proc/cmdline")?;
        let inherited: Vec<&str> = command_line
            .split_whitespace()
            .filter(|word| !word.starts_with(BOOT))
            .collect();
        let (kernel, initrd) = (Path::new("/").join(KERNEL), Path::new("/").join(INITRD));
        system::kexec_file_load(
            &kernel,
            &initrd,
            &format!("{} {BOOT}{}", inherited.join(" "), self.boot + 1),
        )?;
        fs::remove_file(kernel)?;
        fs::remove_file(initrd)?;
        tell_on_port(&Step::Loaded)
    }

    /// A shell on the console, until it ends.
    fn shell(&mut self) -> Result<()> {
        system::install_busybox()?;
        println!(
            "boot {} of a lab's guest; `/init kexec` jumps into the next kernel, `exit` powers off",
            self.boot
        );
        let mut command = Command::new("/bin/busybox");
        command.args(["setsid", "cttyhack", "sh", "-l"]);
        let shell = Programs::start(command)?;
        self.wait_for(shell, None)?;
        Ok(())
    }

    /// Runs this boot's stage, if it has one; whether it passed.
    fn stage(&mut self) -> Result<bool> {
        let stage = self.boot;
        let Some(words) = self.plan.stages[usize::from(stage > 1)].take() else {
            return Ok(true);
        };
        let Some((program, arguments)) = words.split_first() else {
            bail!("stage {stage} is an empty command");
        };
        let mut command = Command::new(program);
        command.args(arguments);
        let pid = match Programs::start_into(command, &format!("stage{stage}")) {
            Ok(pid) => pid,
            Err(error) => {
                tell_on_port(&Step::Note {
                    text: format!("{error:#}"),
                })?;
                // What a shell says of a command that it cannot start.
                let status = Status::Exited(127);
                tell_on_port(&Step::Ended { stage, status })?;
                return Ok(false);
            }
        };
        tell_on_port(&Step::Started { stage })?;
        let status = self
            .wait_for(pid, None)?
            .context("a stage has no deadline")?;
        self.outbox.carry()?;
        tell_on_port(&Step::Ended { stage, status })?;
        Ok(status.success())
    }

    /// `lu run`, once it watches.
    fn start_recorder(&mut self, args: &[String]) -> Result<i32> {
        let name = format!("lu-run-{}", self.boot);
        fs::create_dir_all(Path::new(JOURNAL).parent().context("a folder")?)?;
        let mut command = Command::new("lu");
        command.args(["run", "--journal", JOURNAL]).args(args);
        let pid = Programs::start_into(command, &name)?;
        let said = Path::new(outbox::FOLDER).join(format!("{name}.err"));
        let deadline = Instant::now() + ATTACH;
        loop {
            self.tick()?;
            let text = String::from_utf8_lossy(&fs::read(&said)?).into_owned();
            // Only whole lines: the rest of one may be on its way.
            let line = text
                .split_inclusive('\n')
                .find(|line| line.contains(ATTACHED) && line.ends_with('\n'));
            if let Some(line) = line {
                tell_on_port(&Step::Attached {
                    line: line.trim_end().to_owned(),
                })?;
                return Ok(pid);
            }
            let why = match self.programs.ended(pid) {
                Some(status) => format!("ended: {status:?}"),
                None if Instant::now() > deadline => {
                    format!("has not attached within {} s", ATTACH.as_secs())
                }
                None => {
                    thread::sleep(TICK);
                    continue;
                }
            };
            self.outbox.carry()?;
            bail!(ByLu(format!("lu run {why}\n{}", text.trim_end())));
        }
    }

    fn stop_recorder(&mut self, pid: i32) -> Result<()> {
        self.programs.signal(pid, Signal::SIGINT);
        let status = self.wait_for(pid, Some(END))?;
        if status.is_none() {
            self.programs.signal(pid, Signal::SIGKILL);
        }
        self.tell_of_lu("run", status, &format!("lu-run-{}.err", self.boot))
    }

    /// `lu COMMAND --json` on the journal, into `file`.
    fn report(&mut self, subcommand: &str, file: &str) -> Result<()> {
        let mut command = Command::new("lu");
        command.args([subcommand, "--journal", JOURNAL, "--json"]);
        let said = format!("lu-{subcommand}.err");
        let pid = Programs::start_with(command, file, &said)?;
        let status = self.wait_for(pid, Some(END))?;
        if status.is_none() {
            self.programs.signal(pid, Signal::SIGKILL);
        }
        self.tell_of_lu(subcommand, status, &said)
    }

    fn tell_of_lu(&mut self, command: &str, status: Option<Status>, said: &str) -> Result<()> {
        self.outbox.carry()?;
        let said = fs::read(Path::new(outbox::FOLDER).join(said))?;
        let said = String::from_utf8_lossy(&said);
        let lines: Vec<&str> = said.lines().collect();
        tell_on_port(&Step::Lu {
            command: command.to_owned(),
            status: status.unwrap_or(Status::Killed(Signal::SIGKILL as i32)),
            said: lines[lines.len().saturating_sub(8)..].join("\n"),
        })
    }

    /// How program `pid` ended; `None` if it has not within `limit`.
    fn wait_for(&mut self, pid: i32, limit: Option<Duration>) -> Result<Option<Status>> {
        let start = Instant::now();
        loop {
            self.tick()?;
            if let Some(status) = self.programs.ended(pid) {
                return Ok(Some(status));
            }
            if limit.is_some_and(|limit| start.elapsed() > limit) {
                return Ok(None);
            }
            thread::sleep(TICK);
        }
    }

    fn tick(&mut self) -> Result<()> {
        self.programs.reap();
        self.outbox.carry()
    }
}
