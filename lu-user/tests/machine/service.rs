//! `lu run` as a service: its configuration file, what it tells a service manager, `--check`, and the unit.
//!
//! The service manager is played here: a socket that `NOTIFY_SOCKET` names.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use libtest_mimic::{Failed, Trial};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::clients::path;
use crate::support::{Outcome, client, expect_status, finish, lu, run, scratch, trial, trial_with};

pub fn trials() -> Vec<Trial> {
    vec![
        trial(
            "a_service_manager_hears_ready_once_hooks_see_and_privileges_are_gone_and_alive_under_load",
            ready_and_alive,
        ),
        trial(
            "a_service_manager_hears_nothing_of_a_lu_that_cannot_start",
            never_ready,
        ),
        trial(
            "at_sighup_the_configuration_is_read_again_and_what_cannot_change_is_told",
            reloaded,
        ),
        trial("where_nobody_reads_what_it_says_it_goes_on", unread),
        trial(
            "a_typo_in_the_configuration_is_shown_at_its_place_and_nothing_starts",
            typo,
        ),
        trial("check_tells_what_works_and_what_does_not", check),
        trial_with(
            "setpriv",
            "the_capabilities_that_the_unit_allows_are_enough_and_sys_admin_is_among_them_for_a_reason",
            capabilities,
        ),
        trial_with(
            "systemd-analyze",
            "the_unit_is_one_that_systemd_takes",
            unit,
        ),
    ]
}

/// `lu run` under a service manager.
struct Service {
    child: Child,
    manager: UnixDatagram,
    folder: tempfile::TempDir,
}

impl Service {
    /// With this configuration, below which its journal's folder is named.
    fn start(configuration: &str, patience: Duration) -> Result<Self, Failed> {
        let folder = scratch();
        let socket = folder.path().join("notify");
        let manager = UnixDatagram::bind(&socket)?;
        manager.set_read_timeout(Some(Duration::from_mins(2)))?;
        let file = folder.path().join("lu.toml");
        fs::write(&file, configuration)?;
        let child = Command::new(lu())
            .args(["run", "--config", path(&file)?, "--journal"])
            .arg(folder.path().join("journal"))
            .env("NOTIFY_SOCKET", &socket)
            .env("WATCHDOG_USEC", patience.as_micros().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        Ok(Self {
            child,
            manager,
            folder,
        })
    }

    /// The next message.
    fn hears(&self) -> Result<String, Failed> {
        let mut text = [0; 4096];
        let length = self.manager.recv(&mut text)?;
        Ok(String::from_utf8(text[..length].to_vec())?)
    }

    /// The next message that is no sign of life.
    fn hears_news(&self) -> Result<String, Failed> {
        loop {
            let heard = self.hears()?;
            if heard != ALIVE {
                return Ok(heard);
            }
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// Ends it as a service manager does, and returns what it said.
    fn stop(mut self) -> Result<String, Failed> {
        kill(self.pid(), Signal::SIGTERM)?;
        expect(&self.hears_news()?, "STOPPING=1\n")?;
        let status = self.child.wait()?;
        let mut said = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            std::io::Read::read_to_string(&mut stderr, &mut said)?;
        }
        if status.success() {
            Ok(said)
        } else {
            Err(format!("ended with {status}: {said}").into())
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const ALIVE: &str = "WATCHDOG=1\n";

fn expect(heard: &str, wanted: &str) -> Outcome {
    if heard == wanted {
        return Ok(());
    }
    Err(format!("{heard:?} instead of {wanted:?}").into())
}

/// A load that does not end by itself.
struct Load(Child);

impl Drop for Load {
    fn drop(&mut self) {
        // It passes this on to its command; an interrupt it leaves to the terminal.
        let _ = kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

fn ready_and_alive() -> Outcome {
    let hammer = client("hammer", &["-static"])?;
    let service = Service::start("", Duration::from_millis(900))?;
    let ready = service.hears()?;
    let counts = ready
        .strip_prefix("READY=1\nSTATUS=")
        .and_then(|status| status.strip_suffix(" hooks attached\n"))
        .and_then(|counts| counts.split_once(" of "));
    let Some((attached, hooks)) = counts else {
        return Err(format!("{ready:?} is not what is first").into());
    };
    if attached != hooks || hooks == "0" {
        return Err(ready.into());
    }
    let status = fs::read_to_string(format!("/proc/{}/status", service.pid()))?;
    let privileges: Vec<&str> = status
        .lines()
        .filter(|line| {
            ["CapInh", "CapPrm", "CapEff", "CapAmb", "NoNewPrivs"]
                .iter()
                .any(|name| line.starts_with(name))
        })
        .collect();
    println!("after attaching: {privileges:?}");
    let mut values = privileges.iter().filter_map(|line| line.split_once(":\t"));
    if privileges.len() != 5
        || !values.all(|(name, value)| match name {
            "NoNewPrivs" => value == "1",
            _ => value == "0000000000000000",
        })
    {
        return Err(format!("privileges are left: {privileges:?}").into());
    }
    // What comes right after it is ready is seen.
    expect_status(&run(&["emulate", "--", path(&hammer)?, "100"])?, 0)?;
    let mut load = Load(
        Command::new(lu())
            .args(["emulate", "--", path(&hammer)?, "1000000000"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?,
    );
    for _ in 0..4 {
        expect(&service.hears()?, ALIVE)?;
    }
    if let Some(status) = load.0.try_wait()? {
        return Err(format!("there was no load: it ended with {status}").into());
    }
    drop(load);
    let said = service.stop()?;
    let seen: Option<u64> = said
        .lines()
        .find_map(|line| line.strip_prefix("lu: ")?.split_once(" events in "))
        .and_then(|(count, _)| count.parse().ok());
    if seen.is_none_or(|seen| seen < 102) {
        return Err(format!("it saw {seen:?} events: {said}").into());
    }
    Ok(())
}

fn never_ready() -> Outcome {
    // Three pages are no power of two.
    let mut service = Service::start("ring-buffer = \"12KiB\"\n", Duration::from_mins(1))?;
    let status = service.child.wait()?;
    if status.code() != Some(1) {
        return Err(format!("it ended with {status}").into());
    }
    service.manager.set_nonblocking(true)?;
    match service.hears() {
        Ok(heard) => Err(format!("it said {heard:?}").into()),
        Err(_) => Ok(()),
    }
}

fn reloaded() -> Outcome {
    let service = Service::start("keep-size = \"64MiB\"\n", Duration::from_secs(30))?;
    let ready = service.hears_news()?;
    if !ready.starts_with("READY=1\n") {
        return Err(ready.into());
    }
    let file = service.folder.path().join("lu.toml");
    for text in [
        "keep-size = \"96MiB\"\nring-buffer = \"8MiB\"\n",
        "keep-sice = \"96MiB\"\n",
    ] {
        fs::write(&file, text)?;
        kill(service.pid(), Signal::SIGHUP)?;
        let reloading = service.hears_news()?;
        if !reloading.starts_with("RELOADING=1\nMONOTONIC_USEC=") {
            return Err(reloading.into());
        }
        expect(&service.hears_news()?, "READY=1\n")?;
    }
    let said = service.stop()?;
    for wanted in [
        "lu: keep-size is 96MiB from now on\n",
        "lu: ring-buffer has changed; that takes effect when lu run starts anew\n",
        "lu.toml:1:1\n",
        "there is keep-size\n",
        "lu: what was set stays so\n",
    ] {
        if !said.contains(wanted) {
            return Err(format!("it does not say {wanted:?}: {said}").into());
        }
    }
    Ok(())
}

fn unread() -> Outcome {
    let mut service = Service::start("", Duration::from_secs(30))?;
    let ready = service.hears_news()?;
    if !ready.starts_with("READY=1\n") {
        return Err(ready.into());
    }
    drop(service.child.stderr.take());
    // It has something to say.
    fs::write(service.folder.path().join("lu.toml"), "typo = 1\n")?;
    kill(service.pid(), Signal::SIGHUP)?;
    service.hears_news()?;
    expect(&service.hears_news()?, "READY=1\n")?;
    service.stop().map(drop)
}

fn typo() -> Outcome {
    let folder = scratch();
    let file = folder.path().join("lu.toml");
    let journal = folder.path().join("journal");
    fs::write(
        &file,
        format!(
            "journal = '{}'\nring-bufer = \"4MiB\"\nrecorder-in = \"sesion\"\n",
            path(&journal)?
        ),
    )?;
    for args in [
        &["run", "--config", path(&file)?][..],
        &["config", "check", path(&file)?],
        &["config", "show", path(&file)?],
    ] {
        let output = run(args)?;
        expect_status(&output, 2)?;
        let said = String::from_utf8_lossy(&output.stderr);
        for wanted in [
            "lu.toml:2:1",
            "there is ring-buffer",
            "lu.toml:3:15",
            "one of auto, session, store, file",
        ] {
            if !said.contains(wanted) {
                return Err(format!("{args:?} does not say {wanted:?}: {said}").into());
            }
        }
    }
    if journal.exists() {
        return Err("it began".into());
    }
    Ok(())
}

/// What `lu run --check --json` says, by name.
fn checked(output: &Output) -> Result<Vec<(String, bool)>, Failed> {
    let document: Value = serde_json::from_slice(&output.stdout)?;
    if document["schema"] != "lu.run.check/1" {
        return Err(document.to_string().into());
    }
    let checks = document["checks"].as_array().ok_or("no checks")?;
    let one = |check: &Value| Some((check["name"].as_str()?.to_owned(), check["ok"].as_bool()?));
    Ok(checks.iter().filter_map(one).collect())
}

fn check() -> Outcome {
    let folder = scratch();
    let journal = folder.path().join("journal");
    let works = ["run", "--check", "--json", "--journal", path(&journal)?];
    let output = run(&works)?;
    expect_status(&output, 0)?;
    let names = [
        "journal",
        "audit log",
        "orchestrator",
        "hooks",
        "privileges",
    ];
    let all: Vec<_> = names.map(|name| (name.to_owned(), true)).into();
    if checked(&output)? != all {
        return Err(String::from_utf8_lossy(&output.stdout).into());
    }
    // Nothing of it stays: another can write there.
    expect_status(
        &run(&["run", "--journal", path(&journal)?, "--for", "1ms"])?,
        0,
    )?;
    let file = folder.path().join("file");
    fs::write(&file, "")?;
    let policy = folder.path().join("policy.toml");
    fs::write(&policy, "version = 1\nmod = \"monitor\"\n")?;
    let fails = [
        &works[..4],
        &[path(&file)?, "--policy", path(&policy)?, "--audit"],
        &["/proc/audit.jsonl"],
    ]
    .concat();
    let output = run(&fails)?;
    expect_status(&output, 1)?;
    let failed: Vec<String> = checked(&output)?
        .into_iter()
        .filter(|(_, ok)| !ok)
        .map(|(name, _)| name)
        .collect();
    if failed != ["journal", "audit log", "policy"] {
        return Err(format!("{failed:?}").into());
    }
    if !String::from_utf8_lossy(&output.stdout).contains("policy.toml:2:1") {
        return Err("it does not say where the policy is wrong".into());
    }
    Ok(())
}

/// The unit, as it is packed.
fn service_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/lu.service")
}

fn capabilities() -> Outcome {
    let text = fs::read_to_string(service_file())?;
    let allowed: Vec<String> = text
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="))
        .ok_or("the unit bounds no capabilities")?
        .split(' ')
        .map(|name| name.to_lowercase().replace("cap_", "+"))
        .collect();
    let folder = scratch();
    let works_with = |allowed: &[String]| -> Result<Output, Failed> {
        let mut command = Command::new("setpriv");
        command
            .args(["--no-new-privs", "--inh-caps=-all", "--bounding-set"])
            .arg(format!("-all,{}", allowed.join(",")))
            .args([lu(), "run", "--check", "--journal"])
            .arg(folder.path());
        finish(command)
    };
    expect_status(&works_with(&allowed)?, 0)?;
    let without = |name: &str| -> Vec<String> {
        let others = allowed.iter().filter(|allowed| *allowed != name);
        others.cloned().collect()
    };
    expect_status(&works_with(&without("+sys_admin"))?, 1)
}

fn unit() -> Outcome {
    let folder = scratch();
    let text = fs::read_to_string(service_file())?;
    let here = folder.path().join("lu.service");
    // It is verified where lu is not installed.
    fs::write(&here, text.replace("/usr/local/bin/lu", lu()))?;
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no", path(&here)?])
        .output()?;
    expect_status(&output, 0)?;
    // An older systemd does not know what keeps lu until the kexec, and says so.
    let said = String::from_utf8_lossy(&output.stderr);
    let wrong: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("lu.service"))
        .filter(|line| {
            !["SurviveFinalKillSignal", "FileDescriptorStorePreserve"]
                .iter()
                .any(|newer| line.contains(&format!("Unknown key '{newer}'")))
        })
        .collect();
    if !wrong.is_empty() {
        return Err(wrong.join("\n").into());
    }
    let output = Command::new("systemd-analyze")
        .args(["security", "--offline=true", path(&here)?])
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let score = said.lines().find(|line| line.contains("exposure level"));
    println!("{}", score.ok_or("no score")?);
    Ok(())
}
