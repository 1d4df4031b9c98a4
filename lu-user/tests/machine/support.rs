//! What the tests share: capabilities, C clients, running `lu`.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use libtest_mimic::{Failed, Trial};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

pub type Outcome = Result<(), Failed>;

/// How long anything that a test starts may take.
const LIMIT: Duration = Duration::from_mins(3);

/// A test, ignored with a reason where the machine cannot run it.
pub fn trial(name: &'static str, run: fn() -> Outcome) -> Trial {
    listed(name, run, lacking())
}

/// A test that needs `tool` too.
pub fn trial_with(tool: &str, name: &'static str, run: fn() -> Outcome) -> Trial {
    let is_here = || Command::new(tool).arg("--version").output().is_ok();
    let why = format!("needs {tool}");
    let lacking = lacking().or_else(|| (!is_here()).then_some(&*why));
    listed(name, run, lacking)
}

fn listed(name: &'static str, run: fn() -> Outcome, lacking: Option<&str>) -> Trial {
    if let Some(why) = lacking {
        eprintln!("ignored: {name}: {why}");
    }
    Trial::test(name, run).with_ignored_flag(lacking.is_some())
}

/// What this machine lacks: each is tried, not guessed.
fn lacking() -> Option<&'static str> {
    static LACKING: OnceLock<Option<&'static str>> = OnceLock::new();
    *LACKING.get_or_init(|| {
        if !nix::unistd::geteuid().is_root() {
            return Some("needs root");
        }
        if std::fs::File::open("/dev/fuse").is_err() {
            return Some("needs /dev/fuse");
        }
        if Command::new("cc").arg("--version").output().is_err() {
            return Some("needs a C compiler, cc");
        }
        let doctor = Command::new(lu()).args(["doctor", "--json"]).output();
        let diagnosis: Option<Value> = doctor
            .ok()
            .and_then(|output| serde_json::from_slice(&output.stdout).ok());
        let uprobe = diagnosis
            .as_ref()
            .and_then(|diagnosis| diagnosis["checks"].as_array())
            .and_then(|checks| checks.iter().find(|check| check["name"] == "uprobe"))
            .is_some_and(|check| check["ok"] == true);
        (!uprobe).then_some("needs uprobe programs (see `lu doctor`)")
    })
}

pub fn lu() -> &'static str {
    env!("CARGO_BIN_EXE_lu")
}

/// A folder of the test's own.
pub fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// Compiles a client; it has no part of lu in it.
pub fn client(name: &str, flags: &[&str]) -> Result<PathBuf, Failed> {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(scratch);
    let program = folder.path().join(format!("{name}{}", flags.concat()));
    if program.exists() {
        return Ok(program);
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/clients/{name}.c"));
    let output = Command::new("cc")
        .args(["-O1", "-Wall", "-Werror", "-pthread"])
        .args(flags)
        .arg("-o")
        .arg(&program)
        .arg(&source)
        .output()?;
    if !output.status.success() {
        return Err(format!("cc: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(program)
}

/// Runs `lu` to its end, or kills it when it takes too long.
pub fn run(args: &[&str]) -> Result<Output, Failed> {
    let mut command = Command::new(lu());
    command.args(args);
    finish(command)
}

pub fn finish(mut command: Command) -> Result<Output, Failed> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let read = |mut from: Box<dyn std::io::Read + Send>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = from.read_to_end(&mut bytes);
            bytes
        })
    };
    let stdout = read(Box::new(child.stdout.take().ok_or("no standard output")?));
    let stderr = read(Box::new(child.stderr.take().ok_or("no standard error")?));
    let deadline = Instant::now() + LIMIT;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > deadline {
            child.kill()?;
            return Err(format!("{command:?} did not end within {LIMIT:?}").into());
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    Ok(Output {
        status,
        stdout: stdout.join().unwrap_or_default(),
        stderr: stderr.join().unwrap_or_default(),
    })
}

/// Fails with all that a command said, unless it ended with `status`.
pub fn expect_status(output: &Output, status: i32) -> Outcome {
    if output.status.code() == Some(status) {
        return Ok(());
    }
    Err(format!(
        "ended with {} instead of {status}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
    .into())
}

/// A `lu` in the background that is stopped by SIGINT.
pub struct Background {
    child: Child,
    stderr: BufReader<std::process::ChildStderr>,
    /// The line that said it was ready.
    ready: String,
}

impl Background {
    /// Starts a `lu` that watches and waits until every one of its hooks is attached.
    pub fn watch(args: &[&str], stdout: Stdio) -> Result<Self, Failed> {
        let background = Self::start(args, stdout, " hooks attached to ")?;
        let complete = background
            .ready
            .split_once(" hooks ")
            .and_then(|(count, _)| {
                let (attached, all) = count.strip_prefix("lu: ")?.split_once(" of ")?;
                Some(attached == all)
            });
        if complete == Some(true) {
            Ok(background)
        } else {
            Err(background.ready.clone().into())
        }
    }

    /// Starts `lu` and waits until a line of its standard error contains `ready`.
    pub fn start(args: &[&str], stdout: Stdio, ready: &str) -> Result<Self, Failed> {
        let mut child = Command::new(lu())
            .args(args)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(Stdio::piped())
            .spawn()?;
        let mut stderr = BufReader::new(child.stderr.take().ok_or("no standard error")?);
        let mut said = String::new();
        loop {
            let mut line = String::new();
            if stderr.read_line(&mut line)? == 0 {
                let _ = child.kill();
                return Err(format!("lu {args:?} ended and was not ready: {said}").into());
            }
            said.push_str(&line);
            if line.contains(ready) {
                return Ok(Self {
                    child,
                    stderr,
                    ready: line,
                });
            }
        }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    pub fn signal(&self, signal: Signal) -> Outcome {
        Ok(kill(self.pid(), signal)?)
    }

    /// The next line of its standard error that contains `wanted`.
    pub fn wait_for(&mut self, wanted: &str) -> Result<String, Failed> {
        let mut said = String::new();
        loop {
            let mut line = String::new();
            if self.stderr.read_line(&mut line)? == 0 {
                return Err(format!("it ended and did not say {wanted}: {said}").into());
            }
            if line.contains(wanted) {
                return Ok(line);
            }
            said.push_str(&line);
        }
    }

    /// Waits for its own end.
    pub fn end(mut self) -> Outcome {
        let mut rest = String::new();
        self.stderr.read_to_string(&mut rest)?;
        let status = self.child.wait()?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("ended with {status}: {rest}").into())
        }
    }

    /// Interrupts it and returns what it still said on standard error.
    pub fn stop(mut self) -> Result<String, Failed> {
        self.signal(Signal::SIGINT)?;
        let mut rest = String::new();
        self.stderr.read_to_string(&mut rest)?;
        let status = self.child.wait()?;
        if !status.success() {
            return Err(format!("ended with {status}: {rest}").into());
        }
        Ok(rest)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A `lu trace --json` into a file.
pub struct Trace {
    background: Background,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Trace {
    pub fn start(more: &[&str]) -> Result<Self, Failed> {
        let folder = scratch();
        let path = folder.path().join("trace.jsonl");
        let file = std::fs::File::create(&path)?;
        let args = [&["trace", "--json"], more].concat();
        let background = Background::watch(&args, file.into())?;
        Ok(Self {
            background,
            path,
            _folder: folder,
        })
    }

    pub fn pid(&self) -> Pid {
        self.background.pid()
    }

    /// Ends it and returns its lines.
    pub fn events(self) -> Result<Vec<Value>, Failed> {
        self.background.stop()?;
        let text = std::fs::read_to_string(&self.path)?;
        text.lines()
            .map(|line| {
                serde_json::from_str(line).map_err(|error| format!("{error}: {line}").into())
            })
            .collect()
    }
}
