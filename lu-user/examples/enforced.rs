//! A policy in the kernel, put to the test by those whom it judges: what the lab's tests of enforcement run.
//!
//! Each prints one JSON object.
//!
//! - `enforced killed LU`: `lu run` is killed, started again and killed while a client asks for what its policy, which
//!   persists, refuses; then that is detached.
//! - `enforced reloads N`: two policies in turns, N times, while two clients ask.
//! - `enforced rules`: policies of 64 rules, and a request that the last of them decides; and what each program costs
//!   the verifier.
//! - `enforced price N ROUNDS`: N ioctls on a pipe without a policy and with one, in turns.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use lu_common::policy::{Decision, RULES};
use lu_user::attach::place;
use lu_user::client::sessions::{Device, Session};
use lu_user::enforce::{Enforcer, verify};
use lu_user::policy::{Compiled, Machine, Source, compile};
use nix::errno::Errno;
use nix::sys::eventfd::EventFd;
use serde_json::{Value, json};

const DEVICE: &str = "/dev/liveupdate";

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let seen = match args[..] {
        ["killed", lu] => killed(lu)?,
        ["reloads", count] => reloads(count.parse().context("how many?")?)?,
        ["rules"] => json!({"policies": rules()?, "verifier": verified()?}),
        ["price", count, rounds] => price(
            count.parse().context("how many?")?,
            rounds.parse().context("how many rounds?")?,
        )?,
        _ => bail!("usage: enforced killed LU|reloads N|rules|price N ROUNDS"),
    };
    println!("{seen}");
    Ok(())
}

/// What a client was answered.
#[derive(Default)]
struct Answers {
    refused: AtomicU64,
    allowed: AtomicU64,
    /// Neither.
    other: AtomicU64,
}

impl Answers {
    fn refused(&self) -> u64 {
        self.refused.load(Ordering::SeqCst)
    }

    /// Asks for what is forbidden until told to stop.
    fn hammer(&self, device: &Device, stop: &AtomicBool) {
        while !stop.load(Ordering::SeqCst) {
            let answer = match device.create("bad") {
                Err(error) if error.errno() == Errno::EACCES => &self.refused,
                Ok(_) => &self.allowed,
                Err(_) => &self.other,
            };
            answer.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Waits until so many more were refused than now.
    fn more(&self, count: u64) -> Result<()> {
        let begin = Instant::now();
        let wanted = self.refused() + count;
        while self.refused() < wanted {
            ensure!(
                begin.elapsed() < Duration::from_secs(30),
                "nobody is answered"
            );
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

/// What [`Answers::hammer`] asks for is refused.
const PERSISTS: &str = r#"version = 1
mode = "enforce"
persist = true
[[access]]
name = "no bad sessions"
requests = ["create"]
session = "bad"
verdict = "deny"
errno = "EACCES"
"#;

/// `lu run`, with the policy in force and all hooks attached; and what it said until then.
fn start(lu: &str, policy: &str) -> Result<(Child, Vec<String>)> {
    let mut child = Command::new(lu)
        .args(["run", "--journal=/tmp/journal", "--policy", policy])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{lu} does not start"))?;
    let stderr = child.stderr.take().context("no standard error")?;
    let mut said = Vec::new();
    for line in BufReader::new(stderr).lines() {
        said.push(line?);
        if said
            .last()
            .is_some_and(|line| line.contains("hooks attached"))
        {
            return Ok((child, said));
        }
    }
    bail!("lu run ended: {}", said.join("\n"))
}

fn killed(lu: &str) -> Result<Value> {
    let policy = "/tmp/policy.toml";
    fs::write(policy, PERSISTS)?;
    let (mut first, _) = start(lu, policy)?;
    let device = Device::open(DEVICE.as_ref())?;
    let (answers, stop) = (Answers::default(), AtomicBool::new(false));
    let seen = thread::scope(|scope| {
        scope.spawn(|| answers.hammer(&device, &stop));
        let seen = (|| {
            answers.more(100)?;
            // SIGKILL.
            first.kill()?;
            first.wait()?;
            let before = answers.refused();
            answers.more(100)?;
            let alone = answers.refused();
            let (mut second, said) = start(lu, policy)?;
            let taken_over = answers.refused();
            answers.more(100)?;
            second.kill()?;
            second.wait()?;
            answers.more(100)?;
            Ok(json!({
                "before_the_kill": before,
                "with_nobody": alone - before,
                "in_the_take_over": taken_over - alone,
                "says": said.iter().find(|line| line.contains("took over")),
            }))
        })();
        stop.store(true, Ordering::SeqCst);
        seen
    });
    let mut seen: Value = seen.map_err(|error: anyhow::Error| error)?;
    let status = Command::new(lu)
        .args(["policy", "detach"])
        .stdout(Stdio::null())
        .status()?;
    ensure!(status.success(), "lu policy detach: {status}");
    seen["refused"] = answers.refused().into();
    seen["allowed"] = answers.allowed.into_inner().into();
    seen["other"] = answers.other.into_inner().into();
    seen["after_detach"] = match device.create("bad") {
        Ok(_) => json!("allowed"),
        Err(error) => json!(error.to_string()),
    };
    Ok(seen)
}

fn compiled(text: &str) -> Result<Compiled> {
    let source = Source::parse("policy.toml", text).map_err(|error| anyhow::anyhow!("{error}"))?;
    compile(&source, &Machine).map_err(|error| anyhow::anyhow!("{error}"))
}

/// Allows one token, and refuses every other with an errno that the orchestrator has not.
fn one_token(token: u64, errno: &str) -> Result<Compiled> {
    compiled(&format!(
        r#"version = 1
mode = "enforce"
[[preserve]]
name = "this token"
tokens = [{token}]
verdict = "allow"
[[preserve]]
name = "no other"
verdict = "deny"
errno = "{errno}"
"#
    ))
}

/// What the orchestrator itself says of an eventfd: nobody preserves it.
const PASSED_ON: Errno = Errno::ENOENT;

/// How a client was answered for one token, by errno.
#[derive(Default)]
struct Told {
    asked: u64,
    passed_on: u64,
    eacces: u64,
    exdev: u64,
}

fn ask(session: &Session, token: u64, stop: &AtomicBool) -> Result<Told> {
    let file = EventFd::new()?;
    let mut told = Told::default();
    while !stop.load(Ordering::SeqCst) {
        told.asked += 1;
        match session.preserve(token, &file.as_fd()) {
            Err(error) if error.errno() == PASSED_ON => told.passed_on += 1,
            Err(error) if error.errno() == Errno::EACCES => told.eacces += 1,
            Err(error) if error.errno() == Errno::EXDEV => told.exdev += 1,
            // Counted as asked, and as nothing else.
            _ => {}
        }
    }
    Ok(told)
}

/// Memory of this process, of the machine, and of maps, in bytes; and how many maps there are.
fn memory() -> Result<Value> {
    let field = |path: &str, name: &str| -> Result<u64> {
        let text = fs::read_to_string(path)?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let words = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        words.with_context(|| format!("{path} has no {name}"))
    };
    let (mut maps, mut locked) = (0_u64, 0);
    for map in aya::maps::loaded_maps() {
        // One that goes away meanwhile.
        let Ok(fd) = map.and_then(|map| map.fd()) else {
            continue;
        };
        maps += 1;
        let raw = fd.as_fd().as_raw_fd();
        locked += field(&format!("/proc/self/fdinfo/{raw}"), "memlock")?;
    }
    Ok(json!({
        "maps": maps,
        "maps_bytes": locked,
        "resident_bytes": field("/proc/self/status", "VmRSS")? * 1024,
        "available_bytes": field("/proc/meminfo", "MemAvailable")? * 1024,
    }))
}

fn reloads(count: u64) -> Result<Value> {
    let policies = [one_token(1, "EACCES")?, one_token(2, "EXDEV")?];
    let mut enforcer = Enforcer::new(&place()?, false)?;
    enforcer.apply(&policies[0])?;
    enforcer.self_test()?;
    let device = Device::open(DEVICE.as_ref())?;
    let session = device.create("vm")?;
    let stop = AtomicBool::new(false);
    let (done, told) = thread::scope(|scope| {
        let clients = [1, 2].map(|token| {
            let (session, stop) = (&session, &stop);
            scope.spawn(move || ask(session, token, stop))
        });
        let done = (|| -> Result<_> {
            let alternate = |enforcer: &mut Enforcer, count: u64| -> Result<u64> {
                let mut generation = 0;
                for number in 0..count {
                    generation = enforcer.apply(&policies[(number as usize + 1) % 2])?;
                }
                Ok(generation)
            };
            // By then whatever is allocated once has been.
            alternate(&mut enforcer, 100)?;
            let before = memory()?;
            let begin = Instant::now();
            let generation = alternate(&mut enforcer, count)?;
            let took = begin.elapsed();
            // Maps are freed after a grace period.
            thread::sleep(Duration::from_secs(1));
            Ok((generation, took, before, memory()?))
        })();
        stop.store(true, Ordering::SeqCst);
        let told = clients.map(|client| {
            client
                .join()
                .map_err(|_| anyhow::anyhow!("a client died"))?
        });
        Ok::<_, anyhow::Error>((done, told))
    })?;
    let (generation, took, before, after) = done?;
    let [one, two] = told;
    let shown = |told: Told| {
        json!({
            "asked": told.asked, "passed_on": told.passed_on, "EACCES": told.eacces, "EXDEV": told.exdev,
        })
    };
    let account = enforcer.account()?;
    Ok(json!({
        "reloads": count,
        "generation": generation,
        "took_ms": took.as_millis() as u64,
        "token_1": shown(one?),
        "token_2": shown(two?),
        "unjudged": enforcer.untold()?.unjudged,
        "files": account.usage.files,
        "bytes": account.usage.bytes,
        "before": before,
        "after": after,
    }))
}

/// Conditions of all kinds, which a request of this program's meets but for the session's name.
fn conditions(session: &str) -> String {
    format!(
        r#"kinds = ["eventfd", "memfd"]
session = "{session}"
tokens = ["0..=15", 0x1234]
bytes = "..=16GiB"
by = {{ uid = 0, gid = [0, "100..=200"], exe = "/bin/enforced", cgroup = "/" }}
"#
    )
}

/// A rule for preserving.
fn rule(number: usize, session: &str, verdict: &str) -> String {
    let errno = if verdict == "deny" {
        "errno = \"EXDEV\"\n"
    } else {
        ""
    };
    format!(
        "[[preserve]]\nname = \"rule {number}\"\nverdict = \"{verdict}\"\n{errno}{}",
        conditions(session)
    )
}

/// So many rules for sessions that there are not.
fn others(count: usize) -> String {
    (0..count)
        .map(|number| rule(number, &format!("other-{number}-*-x"), "deny"))
        .collect()
}

const ENFORCE: &str = "version = 1\nmode = \"enforce\"\n";

fn rules() -> Result<Value> {
    let last = RULES - 1;
    let ends = |verdict: &str| {
        compiled(&format!(
            "{ENFORCE}{}{}",
            others(last),
            rule(last, "v*m", verdict)
        ))
    };
    let (allows, refuses) = (ends("allow")?, ends("deny")?);
    // All sections; the last rule that speaks of preserving is a quota.
    let all = compiled(&format!(
        r#"{ENFORCE}{}
[[access]]
name = "sessions"
requests = ["create", "retrieve", "restore"]
session = "nobody"
by = {{ uid = "1..", gid = 7, exe = "/bin/enforced", cgroup = "/" }}
verdict = "deny"
[[quota]]
name = "of each"
per = "session"
session = "other-*"
files = 1
[[quota]]
name = "of all"
per = "all"
files = 0
errno = "EDQUOT"
[[require]]
name = "tokens"
session = "vm"
tokens = [1, 2]
before = "kexec"
[[gate]]
name = "free"
condition = "device-free"
"#,
        others(RULES - 5)
    ))?;
    let mut enforcer = Enforcer::new(&place()?, false)?;
    let file = EventFd::new()?;
    let device = Device::open(DEVICE.as_ref())?;
    let session = device.create("vm")?;
    let mut seen = json!({});
    for (name, policy, rule) in [
        ("allows", &allows, last),
        ("refuses", &refuses, last),
        ("all", &all, last - 2),
    ] {
        enforcer.apply(policy)?;
        enforcer.self_test()?;
        let answer = match session.preserve(7, &file.as_fd()) {
            Ok(()) => "OK".to_owned(),
            Err(error) => format!("{:?}", error.errno()),
        };
        let counts = enforcer.in_force()?.context("nothing is in force")?.counts[rule];
        seen[name] = json!({
            "rules": policy.rules.len(),
            "warnings": policy.warnings,
            "answer": answer,
            "allowed_by_it": counts.decided[Decision::Allow as usize],
            "denied_by_it": counts.decided[Decision::Deny as usize],
            "unsure": counts.unsure,
        });
    }
    Ok(seen)
}

fn verified() -> Result<Value> {
    let begin = Instant::now();
    let programs = verify(&place()?)?;
    let took = begin.elapsed();
    let (mut instructions, mut ms) = (json!({}), json!({}));
    for program in programs {
        instructions[program.program] = program.instructions.into();
        ms[program.program] = (program.took.as_millis() as u64).into();
    }
    Ok(json!({"took_ms": took.as_millis() as u64, "instructions": instructions, "ms": ms}))
}

/// So many FIONREAD; nanoseconds for each.
fn ioctls(file: &File, count: u64) -> Result<f64> {
    let mut bytes = 0_i32;
    let begin = Instant::now();
    for _ in 0..count {
        // SAFETY: the ioctl writes an integer there.
        let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
        Errno::result(done)?;
    }
    Ok(begin.elapsed().as_nanos() as f64 / count as f64)
}

fn price(count: u64, rounds: usize) -> Result<Value> {
    let policy = one_token(1, "EACCES")?;
    let pipe = File::from(nix::unistd::pipe()?.0);
    let (mut without, mut with) = (Vec::new(), Vec::new());
    // Caches.
    ioctls(&pipe, count / 10)?;
    for _ in 0..rounds {
        without.push(ioctls(&pipe, count)?);
        let mut enforcer = Enforcer::new(&place()?, false)?;
        enforcer.apply(&policy)?;
        enforcer.self_test()?;
        with.push(ioctls(&pipe, count)?);
    }
    Ok(json!({"ioctls": count, "without_ns": without, "with_ns": with}))
}
