//! `lu top` on a real terminal: in tmux, driven by keys, while an update runs on the emulated orchestrator.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::sh;

/// How long the emulated machine is down: long enough to look at the screen meanwhile.
const BOOT_DELAY: &str = "3s";

/// How long something may take to be seen.
const PATIENCE: Duration = Duration::from_secs(30);

/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// A terminal of a tmux server of its own, with a shell in it.
pub struct Tmux {
    socket: String,
    folder: tempfile::TempDir,
}

impl Tmux {
    /// One of this size.
    pub fn new(columns: u16, lines: u16) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let socket = folder.path().join("tmux").display().to_string();
        let tmux = Self { socket, folder };
        let (columns, lines) = (columns.to_string(), lines.to_string());
        let size = ["-x", &columns, "-y", &lines];
        sh::run_quietly(
            tmux.command(&["-f", "/dev/null", "new-session", "-d", "-s", "lu"])
                .args(size)
                .args(["env", "PS1=ready> ", "LC_ALL=C.UTF-8", "sh"]),
        )?;
        tmux.wait_for("ready>")?;
        Ok(tmux)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = sh::command("tmux");
        command.env_remove("TMUX").args(["-S", &self.socket]);
        command.args(arguments);
        command
    }

    /// A file in a folder of its own, which goes with it.
    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Presses keys, by tmux's names for them.
    fn press(&self, keys: &[&str]) -> Result<()> {
        sh::run_quietly(self.command(&["send-keys", "-t", "lu"]).args(keys))
    }

    /// Types a line into the shell.
    pub fn line(&self, line: &str) -> Result<()> {
        sh::run_quietly(&mut self.command(&["send-keys", "-t", "lu", "-l", line]))?;
        self.press(&["Enter"])
    }

    /// What is on the screen.
    fn seen(&self) -> Result<String> {
        sh::read(&mut self.command(&["capture-pane", "-t", "lu", "-p"]))
    }

    /// Waits until a text is on the screen, and returns all of it.
    pub fn wait_for(&self, text: &str) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = self.seen()?;
            if seen.contains(text) {
                return Ok(seen);
            }
            ensure!(
                Instant::now() < deadline,
                "{text:?} is not on the screen after {} s:\n{seen}",
                PATIENCE.as_secs()
            );
            std::thread::sleep(PAUSE);
        }
    }

    /// Waits until the terminal has a title, and returns what is on the screen.
    pub fn titled(&self, title: &str) -> Result<String> {
        let asked = ["display-message", "-t", "lu", "-p", "#{pane_title}"];
        let is_titled = || {
            let found = sh::read(&mut self.command(&asked));
            Ok(found.is_ok_and(|found| found == title).then_some(()))
        };
        wait_until("the terminal's title", is_titled)?;
        self.seen()
    }

    /// Starts `lu top` from the shell, with the settings of the terminal written down before and after. Returns
    /// its process's id.
    pub fn start(&self, lu: &Path, arguments: &str) -> Result<u32> {
        let pid = self.file("pid");
        for name in ["before", "after", "pid"] {
            let _ = fs::remove_file(self.file(name));
        }
        let folder = self.folder.path().display();
        let lu = lu.display();
        self.line(&format!(
            "clear; echo what was there; cd {folder}; stty -g > before; \
             sh -c 'echo $$ > pid; exec {lu} top {arguments}'; stty -g > after"
        ))?;
        wait_until("lu top starts", || {
            Ok(fs::read_to_string(&pid)?.trim().parse().ok())
        })
    }

    /// Checks that the terminal is as it was before `lu top`, which has ended.
    fn is_whole(&self, after: &str) -> Result<String> {
        wait_until(&format!("lu top ends by {after}"), || {
            let text = fs::read_to_string(self.file("after"))?;
            Ok((!text.trim().is_empty()).then_some(()))
        })?;
        let settings = |name| fs::read_to_string(self.file(name));
        ensure!(
            settings("before")? == settings("after")?,
            "after {after} the terminal's settings (stty) are others than before"
        );
        let seen = self.wait_for("what was there")?;
        self.is_plain(after)?;
        Ok(seen)
    }

    /// Checks that the first screen is shown, with a cursor, and that pasted text comes as it is.
    fn is_plain(&self, after: &str) -> Result<()> {
        let flags = sh::read(&mut self.command(&[
            "display-message",
            "-t",
            "lu",
            "-p",
            "#{alternate_on} #{cursor_flag} #{mouse_any_flag}",
        ]))?;
        ensure!(
            flags == "0 1 0",
            "after {after} the terminal is not as it was: {flags}"
        );
        Ok(())
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        let _ = self.command(&["kill-server"]).status();
    }
}

fn wait_until<T>(what: &str, mut look: impl FnMut() -> std::io::Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Ok(Some(found)) = look() {
            return Ok(found);
        }
        std::thread::sleep(PAUSE);
    }
    bail!("{what}: not within {} s", PATIENCE.as_secs())
}

fn is_there(pid: u32) -> bool {
    // A zombie is not: whoever started it has not looked yet.
    let status = fs::read_to_string(format!("/proc/{pid}/stat"));
    status.is_ok_and(|status| !status.contains(") Z "))
}

fn signal(pid: u32, name: &str) -> Result<()> {
    sh::run_quietly(sh::command("kill").args([name, &pid.to_string()]))
}

/// Kills a child that was started in the background.
struct Background(Child);

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What each screen must have once the update is over.
const SCREENS: [(&str, &[&str]); 6] = [
    (
        "2",
        &["Sessions and files", "0x1", "memfd", "4.0 MiB", "restored"],
    ),
    (
        "3",
        &["Waterfall", "preserve", "freeze", "boot", "restore", "█"],
    ),
    ("4", &["Events", "token=0x1", "finish"]),
    ("5", &["Policy", "none was seen being loaded"]),
    ("6", &["Updates"]),
    (
        "1",
        &["✓ finished", "dark ", "3 restored", "CLOCK_MONOTONIC"],
    ),
];

/// Shows a live update as it happens, visits every screen, and ends `lu top` in every way there is. Each screen is
/// checked for what it must have, and the terminal for being as it was; with `show` they are printed.
pub fn run(lu: &Path, example: &Path, show: bool) -> Result<()> {
    let tmux = Tmux::new(100, 30)?;
    let print = |title: &str, screen: &str| {
        if show {
            println!("--- {title}\n{screen}\n");
        }
    };
    let dump = tmux.file("dump");
    let arguments = format!(
        "--journal {} --dump {}",
        tmux.folder.path().display(),
        dump.display()
    );
    tmux.start(lu, &arguments)?;
    print("before the update", &tmux.wait_for("no update yet")?);
    let update = sh::command(lu)
        .args(["emulate", "--boot-delay", BOOT_DELAY, "--"])
        .arg(example)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("lu emulate does not start")?;
    let update = Background(update);
    // The clock of the blackout counts while nobody is there who could answer.
    let dark = tmux.wait_for("dark ● 1.")?;
    ensure!(dark.contains("▶ boot"), "the phase is not told:\n{dark}");
    print("the kernel is being replaced", &dark);
    let later = tmux.wait_for("dark ● 2.")?;
    ensure!(later.contains("▶ boot"), "the phase is not told:\n{later}");
    print("the update is over", &tmux.wait_for("✓ finished")?);
    drop(update);
    for (key, texts) in SCREENS {
        tmux.press(&[key])?;
        let mut screen = String::new();
        for text in texts {
            screen = tmux.wait_for(text)?;
        }
        print(&format!("key {key}"), &screen);
    }
    tmux.press(&["?"])?;
    print("key ?", &tmux.wait_for("the next screen")?);
    tmux.press(&["?", "2", "/"])?;
    tmux.line("token:0x2")?;
    let filtered = tmux.wait_for("filter: token:0x2")?;
    ensure!(
        filtered.contains("0x2") && !filtered.contains("0x3"),
        "the filter is not used:\n{filtered}"
    );
    tmux.press(&["D"])?;
    tmux.wait_for("saved to")?;
    let saved = fs::read_to_string(&dump).context("nothing was saved")?;
    ensure!(
        saved.contains("token:0x2"),
        "what is saved is not what was seen:\n{saved}"
    );
    sh::run_quietly(&mut tmux.command(&["resize-window", "-t", "lu", "-x", "60", "-y", "15"]))?;
    tmux.press(&["1"])?;
    print("60 columns, 15 lines", &tmux.wait_for("2 Ses.")?);
    sh::run_quietly(&mut tmux.command(&["resize-window", "-t", "lu", "-x", "100", "-y", "30"]))?;
    tmux.wait_for("2 Sessions")?;
    tmux.press(&["q"])?;
    print("after q", &tmux.is_whole("q")?);
    ends(&tmux, lu, &arguments)
}

/// Every other way to end.
fn ends(tmux: &Tmux, lu: &Path, arguments: &str) -> Result<()> {
    for name in ["-TERM", "-HUP", "-INT"] {
        let pid = tmux.start(lu, arguments)?;
        tmux.wait_for("no update yet")?;
        signal(pid, name)?;
        tmux.is_whole(&format!("kill {name}"))?;
    }
    tmux.start(lu, &format!("{arguments} --panic-after 500ms"))?;
    tmux.wait_for("a panic was asked for")?;
    tmux.is_whole("a panic")?;
    // Stopped from the keyboard, and by another process, and back.
    let pid = tmux.start(lu, arguments)?;
    tmux.wait_for("no update yet")?;
    let stops: [&dyn Fn() -> Result<()>; 2] = [&|| tmux.press(&["C-z"]), &|| signal(pid, "-TSTP")];
    for stop in stops {
        stop()?;
        tmux.wait_for("Stopped")?;
        tmux.is_plain("SIGTSTP")?;
        let stopped = tmux.file("stopped");
        let _ = fs::remove_file(&stopped);
        tmux.line("clear; stty -g > stopped")?;
        let settings = wait_until("the shell answers", || {
            let text = fs::read_to_string(&stopped)?;
            Ok(Some(text).filter(|text| !text.trim().is_empty()))
        })?;
        ensure!(
            settings == fs::read_to_string(tmux.file("before"))?,
            "stopped, lu top leaves the terminal with other settings (stty)"
        );
        tmux.line("fg")?;
        tmux.wait_for("no update yet")?;
    }
    tmux.press(&["q"])?;
    wait_until("lu top ends", || Ok((!is_there(pid)).then_some(())))?;
    // The terminal itself goes.
    let pid = tmux.start(lu, arguments)?;
    tmux.wait_for("no update yet")?;
    sh::run_quietly(&mut tmux.command(&["kill-session", "-t", "lu"]))?;
    wait_until("lu top ends with its terminal", || {
        Ok((!is_there(pid)).then_some(()))
    })
}

/// What is asked of a frame, and of a screen at which nothing happens.
const FRAME_WITHIN_MS: f64 = 8.0;
const IDLE_AT_MOST: f64 = 0.01;

/// How long a program idles while its time on the CPU is taken.
const IDLE: Duration = Duration::from_secs(10);

/// The time to draw a frame with many files, and what a screen takes at four frames a second, beside `btm`.
pub fn bench(lu: &Path, frames: &Path, btm: &Path, files: u64) -> Result<()> {
    println!("one frame of 120x40 with {files} files, in ms, median of 200 (least to most):");
    let told = sh::read(sh::command(frames).arg(files.to_string()))?;
    println!("{told}");
    let slowest = told
        .lines()
        .filter_map(|line| line.split_whitespace().rev().nth(3)?.parse::<f64>().ok())
        .fold(0.0, f64::max);
    ensure!(slowest > 0.0, "nothing was measured");
    println!(
        "goal: each within {FRAME_WITHIN_MS} ms: {} (slowest median {slowest:.2})",
        reached(slowest <= FRAME_WITHIN_MS)
    );
    let journal = tempfile::tempdir()?;
    sh::run_quietly(
        sh::command(frames)
            .arg(files.to_string())
            .arg(journal.path()),
    )?;
    let journal = journal.path().display().to_string();
    let top = format!("{} top --screen sessions --replay {journal}", lu.display());
    let btm = format!("{} --rate 250", btm.display());
    println!(
        "share of one core, idle, four frames a second, {} s each:",
        IDLE.as_secs()
    );
    let ours = share(&top, Some("■ end"))?;
    println!("  lu top, {files} files     {:.2} %", 100.0 * ours);
    let theirs = share(&btm, None)?;
    println!("  btm --rate 250           {:.2} %", 100.0 * theirs);
    println!(
        "goal: less than {:.0} %: {}",
        100.0 * IDLE_AT_MOST,
        reached(ours < IDLE_AT_MOST)
    );
    Ok(())
}

fn reached(holds: bool) -> &'static str {
    if holds { "reached" } else { "NOT reached" }
}

/// Which share of a core a program on a terminal takes, once it has settled.
fn share(command: &str, settled: Option<&str>) -> Result<f64> {
    let tmux = Tmux::new(120, 40)?;
    let pid = tmux.file("pid");
    tmux.line(&format!(
        "sh -c 'echo $$ > {}; exec {command}'",
        pid.display()
    ))?;
    let pid: u32 = wait_until("it starts", || {
        Ok(fs::read_to_string(&pid)?.trim().parse().ok())
    })?;
    if let Some(text) = settled {
        tmux.wait_for(text)?;
    }
    std::thread::sleep(Duration::from_secs(2));
    let (before, began) = (ticks(pid)?, Instant::now());
    std::thread::sleep(IDLE);
    let used = (ticks(pid)? - before) as f64 / 100.0;
    Ok(used / began.elapsed().as_secs_f64())
}

/// `utime` and `stime` of a process, in ticks of 10 ms (`USER_HZ`).
fn ticks(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("it has ended")?;
    let (_, fields) = stat.rsplit_once(") ").context("no stat")?;
    let mut fields = fields.split(' ').skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    next()
        .zip(next())
        .map(|(user, system)| user + system)
        .context("no times")
}
