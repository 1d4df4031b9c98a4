//! The policy, as the emulated orchestrator asks it, and what is told of its verdicts.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use libtest_mimic::{Failed, Trial};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::clients::path;
use crate::support::{Background, Outcome, Trace, client, expect_status, lu, run, scratch, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial(
            "each_kind_of_rule_allows_one_request_and_refuses_another_in_sessions",
            sessions,
        ),
        trial(
            "each_kind_of_rule_allows_one_request_and_refuses_another_in_v3",
            v3,
        ),
        trial(
            "who_asks_is_told_by_user_group_executable_and_cgroup",
            callers,
        ),
        trial("a_reboot_of_the_command_is_refused_by_the_policy", reboots),
        trial(
            "a_policy_that_only_watches_lets_through_and_counts",
            monitored,
        ),
        trial(
            "a_refused_request_is_in_trace_report_and_audit_log_with_who_refused_it",
            told,
        ),
        trial("a_policy_with_errors_is_not_loaded", errors),
        trial(
            "each_answer_under_reloads_is_one_policys_in_sessions",
            || reloads("sessions", "session create x"),
        ),
        trial("each_answer_under_reloads_is_one_policys_in_v3", || {
            reloads("v3", "preserve 1 --memfd 4KiB")
        }),
        trial("the_gate_is_ready_once_all_that_is_asked_for_holds", gate),
    ]
}

/// An emulator with a policy, at a place of its own.
struct Emulated {
    emulator: Background,
    device: PathBuf,
    policy: PathBuf,
    _folder: tempfile::TempDir,
}

impl Emulated {
    fn start(interface: &str, policy: &str) -> Result<Self, Failed> {
        let folder = scratch();
        let device = folder.path().join("liveupdate");
        let file = folder.path().join("policy.toml");
        fs::write(&file, policy)?;
        let args = [
            "emulate",
            "--boot-delay=10ms",
            "--interface",
            interface,
            "--at",
            path(&device)?,
            "--policy",
            path(&file)?,
        ];
        Ok(Self {
            emulator: Background::start(&args, Stdio::null(), "Ctrl-C ends it")?,
            device,
            policy: file,
            _folder: folder,
        })
    }

    /// A client that keeps open what it opens, and its first answer.
    fn client(&self, first: &str) -> Result<(Client, String), Failed> {
        Client::start(Command::new(lu()), &self.device, first)
    }

    /// `ok`, or the errno with which a kexec is refused.
    fn kexec(&self) -> Result<String, Failed> {
        let pid = self.emulator.pid().to_string();
        let output = run(&["emulate", "kexec", "--pid", &pid])?;
        if output.status.success() {
            return Ok("ok".into());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let errno = said
            .split("the kexec failed: ")
            .nth(1)
            .and_then(|rest| rest.split(':').next());
        errno
            .map(str::to_owned)
            .ok_or_else(|| said.into_owned().into())
    }

    /// Has the policy read again, which is now this; the line that says what came of it.
    fn reload(&mut self, policy: &str) -> Result<String, Failed> {
        let new = self.policy.with_extension("new");
        fs::write(&new, policy)?;
        fs::rename(new, &self.policy)?;
        self.emulator.signal(Signal::SIGHUP)?;
        self.emulator.wait_for("policy")
    }
}

/// `lu ctl --hold`.
struct Client {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Client {
    fn start(mut command: Command, device: &Path, first: &str) -> Result<(Self, String), Failed> {
        command.args(["ctl", "--hold", "--json", "--device", path(device)?]);
        let mut child = command
            .args(first.split(' '))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().ok_or("no standard output")?);
        let mut client = Self {
            child,
            stdin,
            stdout,
        };
        let answer = client.answer()?;
        Ok((client, answer))
    }

    /// `ok`, or the errno's name.
    fn answer(&mut self) -> Result<String, Failed> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        let answer: Value =
            serde_json::from_str(&line).map_err(|error| format!("{error}: {line}"))?;
        Ok(answer["errno"].as_str().unwrap_or("ok").to_owned())
    }

    fn ask(&mut self, line: &str) -> Result<String, Failed> {
        let stdin = self.stdin.as_mut().ok_or("it is closed")?;
        writeln!(stdin, "{line}")?;
        self.answer()
    }

    /// Asks for each, and holds the answers against what is wanted.
    fn expect(&mut self, wanted: &[(&str, &str)]) -> Outcome {
        for (line, wanted) in wanted {
            expect(line, &self.ask(line)?, wanted)?;
        }
        Ok(())
    }

    /// Ends it by closing everything.
    fn close(mut self) -> Outcome {
        self.stdin = None;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn expect(what: &str, answer: &str, wanted: &str) -> Outcome {
    if answer == wanted {
        Ok(())
    } else {
        Err(format!("{what}: {answer} instead of {wanted}").into())
    }
}

const SESSIONS: &str = r#"
version = 1
mode = "enforce"

[[access]]
name = "no bad ones"
requests = ["create"]
session = "bad-*"
verdict = "deny"
errno = "EACCES"

[[access]]
name = "that stays where it is"
requests = "retrieve"
session = "vm-2"
verdict = "deny"
errno = "EROFS"

[[access]]
name = "it is not given out"
requests = "restore"
session = "vm-3"
verdict = "deny"
errno = "ENODEV"

[[access]]
name = "it is not let go"
requests = "finish"
session = "vm-3"
verdict = "deny"
errno = "ENXIO"
even-if-stranding = true

[[preserve]]
name = "small memfds"
verdict = "allow"
kinds = ["memfd"]
session = "vm-*"
tokens = ["0..=15"]
bytes = "..=8KiB"

[[preserve]]
name = "nothing else"
verdict = "deny"
errno = "EFBIG"

[[quota]]
name = "two files each"
per = "session"
files = 2
errno = "EDQUOT"

[[quota]]
name = "16 KiB in all"
per = "all"
bytes = "16KiB"
errno = "ENOSPC"

[[require]]
name = "the memory"
session = "vm-1"
tokens = [1]
before = "kexec"

[[require]]
name = "one file"
session = "vm-3"
files = 1
before = "kexec"

[[require]]
name = "first restored"
session = "vm-1"
tokens = [1]
before = "finish"
errno = "EAGAIN"
even-if-stranding = true

[[gate]]
name = "none is lost"
condition = "no-lost-session"
"#;

fn sessions() -> Outcome {
    let emulated = Emulated::start("sessions", SESSIONS)?;
    let (mut client, first) = emulated.client("session create vm-1")?;
    expect("create vm-1", &first, "ok")?;
    client.expect(&[
        ("session create bad-1", "EACCES"),
        ("session create vm-2", "ok"),
        ("session create vm-3", "ok"),
        ("session create other", "ok"),
        ("session preserve vm-1 0x10 --memfd 4KiB", "EFBIG"),
        ("session preserve vm-1 2 --memfd 16KiB", "EFBIG"),
        ("session preserve other 1 --memfd 4KiB", "EFBIG"),
        ("session preserve vm-3 2 --memfd 4KiB", "ok"),
    ])?;
    expect("kexec without its memory", &emulated.kexec()?, "EPERM")?;
    client.expect(&[
        ("session preserve vm-1 1 --memfd 4KiB", "ok"),
        ("session preserve vm-1 2 --memfd 0B", "ok"),
        ("session preserve vm-1 3 --memfd 0B", "EDQUOT"),
        ("session preserve vm-2 1 --memfd 8KiB", "ok"),
        ("session preserve vm-2 2 --memfd 4KiB", "ENOSPC"),
    ])?;
    // Its session goes with it, and a file is in it.
    let (mut dying, _) = {
        client.close()?;
        emulated.client("session create vm-1")?
    };
    dying.expect(&[("session preserve vm-1 1 --memfd 4KiB", "ok")])?;
    expect("kexec without one file", &emulated.kexec()?, "EPERM")?;
    dying.child.kill()?;
    drop(dying);
    let (mut client, _) = emulated.client("session create vm-3")?;
    client.expect(&[("session preserve vm-3 1 --memfd 4KiB", "ok")])?;
    expect("kexec after a loss", &emulated.kexec()?, "EPERM")?;
    client.expect(&[
        ("session create vm-1", "ok"),
        ("session create vm-2", "ok"),
        ("session preserve vm-1 1 --memfd 4KiB", "ok"),
    ])?;
    expect("kexec with all that is asked for", &emulated.kexec()?, "ok")?;
    let (mut client, first) = emulated.client("session retrieve vm-1")?;
    expect("retrieve vm-1", &first, "ok")?;
    client.expect(&[
        ("session retrieve vm-2", "EROFS"),
        ("session retrieve vm-3", "ok"),
        ("session finish vm-1", "EAGAIN"),
        ("session retrieve-fd vm-1 1", "ok"),
        ("session finish vm-1", "ok"),
        ("session retrieve-fd vm-3 1", "ENODEV"),
        ("session finish vm-3", "ENXIO"),
    ])
}

const V3: &str = r#"
version = 1
mode = "enforce"

[[access]]
name = "group 7 only looks"
requests = ["unpreserve", "prepare", "cancel", "restore", "kexec"]
by = { gid = 7 }
verdict = "deny"

[[access]]
name = "group 7 does not end it"
requests = "finish"
by = { gid = 7 }
verdict = "deny"
errno = "EACCES"
even-if-stranding = true

[[preserve]]
name = "small memfds"
verdict = "allow"
kinds = ["memfd"]
tokens = ["0..=15"]
bytes = "..=8KiB"

[[preserve]]
name = "nothing else"
verdict = "deny"
errno = "EFBIG"

[[quota]]
name = "two files"
per = "all"
files = 2
errno = "EDQUOT"
"#;

/// Device and answers of two clients of one open file: root's own, and one of group 7.
fn v3() -> Outcome {
    let mut emulated = Emulated::start("v3", V3)?;
    let (mut client, first) = emulated.client("preserve 1 --memfd 4KiB")?;
    expect("preserve 1", &first, "ok")?;
    client.expect(&[
        ("preserve 16 --memfd 4KiB", "EFBIG"),
        ("preserve 2 --memfd 16KiB", "EFBIG"),
        ("preserve 2 --memfd 8KiB", "ok"),
        ("preserve 3 --memfd 0B", "EDQUOT"),
        ("unpreserve 2", "ok"),
        ("prepare", "ok"),
        ("cancel", "ok"),
    ])?;
    client.close()?;
    let (mut other, first) = of_group_7(&emulated.device, "preserve 1 --memfd 4KiB")?;
    expect("preserve 1 by group 7", &first, "ok")?;
    other.expect(&[
        ("unpreserve 1", "EPERM"),
        ("prepare", "EPERM"),
        ("cancel", "EPERM"),
        ("restore 1", "EPERM"),
        ("finish", "EACCES"),
        // What is not judged goes on.
        ("state", "ok"),
    ])?;
    let mut kexec = Command::new(lu());
    kexec
        .args(["emulate", "kexec", "--pid"])
        .arg(emulated.emulator.pid().to_string())
        .gid(7);
    let output = crate::support::finish(kexec)?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() || !said.contains("EPERM") {
        return Err(format!("kexec by group 7: {said}").into());
    }
    other.close()?;
    let (mut client, _) = emulated.client("preserve 1 --memfd 4KiB")?;
    client.expect(&[("prepare", "ok")])?;
    expect("kexec", &emulated.kexec()?, "ok")?;
    drop(client);
    let (mut client, first) = emulated.client("restore 1")?;
    expect("restore 1", &first, "ok")?;
    client.expect(&[("finish", "ok")])?;
    // There are no sessions: what a session must have is never there.
    emulated.reload(
        "version = 1\nmode = \"enforce\"\n[[require]]\nname = \"r\"\nsession = \"vm\"\ntokens = 1\nbefore = \"kexec\"\n",
    )?;
    expect("kexec without a session", &emulated.kexec()?, "EPERM")?;
    emulated.reload(
        "version = 1\nmode = \"enforce\"\n[[gate]]\nname = \"g\"\ncondition = \"device-free\"\n",
    )?;
    expect("kexec with the device open", &emulated.kexec()?, "EPERM")?;
    client.close()?;
    expect("kexec with the device free", &emulated.kexec()?, "ok")
}

fn of_group_7(device: &Path, first: &str) -> Result<(Client, String), Failed> {
    let mut command = Command::new(lu());
    command.gid(7);
    Client::start(command, device, first)
}

/// What the opens of various callers come to.
fn callers() -> Outcome {
    let folder = scratch();
    let copy = folder.path().join("lu");
    fs::copy(lu(), &copy)?;
    // Where lu itself is may be root's alone, and user 7 has to run it.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
    let cgroup = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .into_iter()
        .map(Path::new)
        .find(|root| root.join("cgroup.procs").exists())
        .map(|root| root.join(format!("lu-test-{}", std::process::id())));
    let made = cgroup
        .as_ref()
        .map(|cgroup| fs::create_dir_all(cgroup.join("child")));
    let cgroup = match (cgroup, made) {
        (Some(cgroup), Some(Ok(()))) => Some(cgroup),
        (_, Some(Err(error))) => {
            eprintln!("left out: the caller's cgroup: no cgroup can be made here: {error}");
            None
        }
        _ => {
            eprintln!("left out: the caller's cgroup: there is no unified hierarchy");
            None
        }
    };
    let name = cgroup.as_ref().and_then(|cgroup| cgroup.file_name());
    let outcome = judge_callers(&copy, cgroup.as_deref(), name.map(Path::new));
    if let Some(cgroup) = cgroup {
        fs::remove_dir(cgroup.join("child"))?;
        fs::remove_dir(cgroup)?;
    }
    outcome
}

fn judge_callers(copy: &Path, cgroup: Option<&Path>, name: Option<&Path>) -> Outcome {
    let mut policy = format!(
        r#"
version = 1
mode = "enforce"
[[access]]
name = "not that one"
requests = "open"
by = {{ exe = "{}" }}
verdict = "deny"
errno = "EACCES"
[[access]]
name = "not user 7"
requests = "create"
by = {{ uid = "7..=8" }}
verdict = "deny"
errno = "EROFS"
[[access]]
name = "not group 7"
requests = "create"
by = {{ gid = [7] }}
verdict = "deny"
errno = "ENODEV"
"#,
        path(copy)?
    );
    if let Some(name) = name {
        write!(
            policy,
            r#"
[[access]]
name = "not from there"
requests = "create"
by = {{ cgroup = "/{}" }}
verdict = "deny"
errno = "ENXIO"
"#,
            path(name)?
        )?;
    }
    let emulated = Emulated::start("sessions", &policy)?;
    let open = |mut command: Command, by: &dyn Fn(&mut Command)| {
        by(&mut command);
        Client::start(command, &emulated.device, "session create a")
    };
    let (client, answer) = open(Command::new(lu()), &|_| {})?;
    expect("root", &answer, "ok")?;
    client.close()?;
    let (client, answer) = open(Command::new(copy), &|_| {})?;
    expect("another executable", &answer, "EACCES")?;
    client.close()?;
    // The same file, under another name.
    let again = copy.with_extension("again");
    fs::hard_link(copy, &again)?;
    let (client, answer) = open(Command::new(&again), &|_| {})?;
    expect("the same executable by another name", &answer, "EACCES")?;
    client.close()?;
    let (client, answer) = open(Command::new(lu()), &|command| {
        command.gid(7);
    })?;
    expect("group 7", &answer, "ENODEV")?;
    client.close()?;
    fs::set_permissions(&emulated.device, fs::Permissions::from_mode(0o666))?;
    // The device's folder is root's alone. What is judged now is not by which executable.
    let device = fs::File::options()
        .read(true)
        .write(true)
        .open(&emulated.device)?;
    let mut user = Command::new(copy);
    user.args([
        "ctl",
        "--json",
        "--device-fd",
        "0",
        "session",
        "create",
        "b",
    ])
    .stdin(device)
    .uid(7);
    let output = user.output()?;
    // It has the device too.
    drop(user);
    let said = String::from_utf8_lossy(&output.stdout);
    if !said.contains("EROFS") {
        return Err(format!("user 7: {said}{}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let Some(cgroup) = cgroup else {
        return Ok(());
    };
    for (place, wanted) in [
        (cgroup.to_owned(), "ENXIO"),
        (cgroup.join("child"), "ENXIO"),
    ] {
        let (mut client, answer) = open(Command::new(lu()), &|_| {})?;
        expect("root", &answer, "ok")?;
        fs::write(place.join("cgroup.procs"), client.child.id().to_string())?;
        client.expect(&[("session create c", wanted)])?;
        client.close()?;
    }
    Ok(())
}

/// reboot(KEXEC) itself, which is caught where a command runs under the emulation.
fn reboots() -> Outcome {
    const POLICY: &str = "version = 1\nmode = \"enforce\"\n\
        [[gate]]\nname = \"free\"\ncondition = \"device-free\"\n";
    let folder = scratch();
    let policy = folder.path().join("policy.toml");
    fs::write(&policy, POLICY)?;
    let reboot = client("reboot", &["-static"])?;
    let script = format!(
        "exec 9<>/dev/liveupdate; {reboot}; exec 9>&-; {reboot}; {lu} emulate kexec && echo up",
        reboot = path(&reboot)?,
        lu = lu()
    );
    for interface in ["v3", "sessions"] {
        let output = run(&[
            "emulate",
            "--boot-delay=10ms",
            "--interface",
            interface,
            "--policy",
            path(&policy)?,
            "--",
            "sh",
            "-c",
            &script,
        ])?;
        let said = String::from_utf8_lossy(&output.stdout);
        // The first is refused; the second ends with the old kernel, and says nothing.
        if said != format!("errno {}\nup\n", libc::EPERM) {
            return Err(format!("{interface}: {said}").into());
        }
    }
    Ok(())
}

const MONITORED: &str = r#"
version = 1

[[access]]
name = "no bad ones"
requests = ["create", "prepare"]
verdict = "deny"
errno = "EACCES"

[[preserve]]
name = "nothing at all"
verdict = "deny"
errno = "EFBIG"
"#;

fn monitored() -> Outcome {
    for (interface, script, operations) in [
        (
            "sessions",
            ["session create x", "session preserve x 1 --memfd 4KiB"],
            ["create", "preserve"],
        ),
        (
            "v3",
            ["preserve 1 --memfd 4KiB", "prepare"],
            ["preserve", "prepare"],
        ),
    ] {
        let trace = Trace::start(&[])?;
        let emulated = Emulated::start(interface, MONITORED)?;
        let (mut client, first) = emulated.client(script[0])?;
        expect(script[0], &first, "ok")?;
        client.expect(&[(script[1], "ok")])?;
        client.close()?;
        let events = trace.events()?;
        let verdicts: Vec<&Value> = of_kind(&events, "verdict").collect();
        let said: Vec<&Value> = verdicts
            .iter()
            .map(|it| &it["verdict"]["operation"])
            .collect();
        let all = verdicts.iter().all(|event| {
            let verdict = &event["verdict"];
            verdict["decision"] == "would-deny"
                && event["errno"].is_null()
                && verdict["enforced_by"] == "emulated-orchestrator"
                && verdict["errno"].is_string()
                && event["interface"] == interface
        });
        if !all || said != operations {
            return Err(format!("{interface}: {verdicts:#?}").into());
        }
        let policy = of_kind(&events, "policy")
            .next()
            .ok_or("no load was seen")?;
        if policy["policy"]["mode"] != "monitor" || policy["comm"] != "lu" {
            return Err(format!("{policy:#}").into());
        }
    }
    Ok(())
}

fn of_kind<'a>(events: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    events.iter().filter(move |event| event["kind"] == kind)
}

fn told() -> Outcome {
    let folder = scratch();
    let journal = path(folder.path())?;
    let audit = folder.path().join("audit");
    let recorder = Background::watch(
        &["run", "--journal", journal, "--audit", path(&audit)?],
        Stdio::null(),
    )?;
    let emulated = Emulated::start("sessions", SESSIONS)?;
    let (mut client, _) = emulated.client("session create vm-1")?;
    client.expect(&[
        ("session create bad-1", "EACCES"),
        ("session create bad-1", "EACCES"),
        ("session preserve vm-1 1 --memfd 16KiB", "EFBIG"),
        ("session preserve vm-1 1 --memfd 4KiB", "ok"),
    ])?;
    expect("kexec", &emulated.kexec()?, "EPERM")?;
    client.close()?;
    recorder.stop()?;
    let report = run(&["report", "--journal", journal, "--json"])?;
    let report: Value = serde_json::from_slice(&report.stdout)?;
    let rules: Vec<(&str, u64)> = report["verdicts"]
        .as_array()
        .ok_or("no verdicts")?
        .iter()
        .filter_map(|it| Some((it["rule"].as_str()?, it["count"].as_u64()?)))
        .collect();
    if rules != [("no bad ones", 2), ("nothing else", 1), ("one file", 1)]
        // Which interface it is, a client finds out by an ioctl that is none.
        || report["errors"] != serde_json::json!([{ "operation": "ioctl", "errno": "EINVAL", "count": 1 }])
        || report["attention"][1]["kind"] != "denied"
        || report["attention"][1]["session"] != "bad-1"
    {
        return Err(format!("{rules:?} {report:#}").into());
    }
    let audited = fs::read_to_string(&audit)?;
    let audited: Vec<Value> = audited
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let events: Vec<&Value> = audited.iter().map(|line| &line["event"]).collect();
    if events != ["policy", "verdict", "verdict", "verdict", "verdict"]
        || audited[0]["sha256"].as_str().map(str::len) != Some(64)
        || audited[1]["comm"] != "lu"
        || audited[1]["time"].is_null()
        || audited[3]["session"] != "vm-1"
    {
        return Err(format!("{audited:#?}").into());
    }
    for form in [
        vec!["report", "--journal", journal],
        vec!["report", "--journal", journal, "--format", "html"],
        vec!["trace", "--journal", journal],
    ] {
        let output = run(&form)?;
        let said = String::from_utf8_lossy(&output.stdout);
        for word in ["nothing else", "the emulated orchestrator", "EFBIG"] {
            if !said.contains(word) {
                return Err(format!("{form:?} does not say {word}: {said}").into());
            }
        }
    }
    Ok(())
}

fn errors() -> Outcome {
    let folder = scratch();
    let policy = folder.path().join("policy.toml");
    fs::write(&policy, "version = 1\nmoed = \"enforce\"\n")?;
    let file = path(&policy)?;
    let journal = path(folder.path())?;
    for command in [
        &["emulate", "--policy", file, "--", "true"][..],
        &["run", "--journal", journal, "--policy", file],
        &["gate", "--policy", file],
        &["policy", "check", file],
        &["policy", "apply", file],
        &["policy", "explain", file, "open"],
    ] {
        let output = run(command)?;
        expect_status(&output, 2)?;
        let said = String::from_utf8_lossy(&output.stderr);
        if !said.contains("moed") || !said.contains("policy.toml:2:1") {
            return Err(format!("{command:?}: {said}").into());
        }
    }
    let mut emulated = Emulated::start("sessions", &refusing("EACCES"))?;
    let (mut client, first) = emulated.client("session create x")?;
    expect("create", &first, "EACCES")?;
    let said = emulated.reload("version = 1\nmoed = 1\n")?;
    if !said.contains("stays in force") {
        return Err(said.into());
    }
    client.expect(&[("session create x", "EACCES")])?;
    emulated.reload("version = 1\n")?;
    client.expect(&[("session create x", "ok")])
}

/// A policy that refuses with one errno, by a rule that has its name.
fn refusing(errno: &str) -> String {
    format!(
        "version = 1\nmode = \"enforce\"\n\
         [[access]]\nname = \"{errno} create\"\nrequests = \"create\"\nverdict = \"deny\"\nerrno = \"{errno}\"\n\
         [[preserve]]\nname = \"{errno} preserve\"\nverdict = \"deny\"\nerrno = \"{errno}\"\n"
    )
}

const RELOADS: usize = 200;

fn reloads(interface: &'static str, line: &'static str) -> Outcome {
    let trace = Trace::start(&[])?;
    let mut emulated = Emulated::start(interface, &refusing("EACCES"))?;
    let (mut client, first) = emulated.client(line)?;
    expect(line, &first, "EACCES")?;
    let over = AtomicBool::new(false);
    let (asked, reloaded) = std::thread::scope(|scope| {
        let asking = scope.spawn(|| -> Result<[usize; 2], String> {
            let mut asked = [0; 2];
            while !over.load(Ordering::Relaxed) {
                match client
                    .ask(line)
                    .map_err(|error| format!("{error:?}"))?
                    .as_str()
                {
                    "EACCES" => asked[0] += 1,
                    "EROFS" => asked[1] += 1,
                    other => return Err(format!("{other} is neither policy's answer")),
                }
            }
            Ok(asked)
        });
        let mut reload = || -> Outcome {
            for round in 0..RELOADS {
                let errno = ["EROFS", "EACCES"][round % 2];
                let said = emulated.reload(&refusing(errno))?;
                if !said.contains("2 of them enforced") {
                    return Err(said.into());
                }
            }
            Ok(())
        };
        let reloaded = reload();
        over.store(true, Ordering::Relaxed);
        (asking.join(), reloaded)
    });
    reloaded?;
    let asked = asked.map_err(|_| "the client failed")??;
    if asked[0] == 0 || asked[1] == 0 {
        return Err(format!("one policy was never asked: {asked:?}").into());
    }
    // Each verdict is of one generation: its rule and its errno belong together.
    let events = trace.events()?;
    let verdicts = of_kind(&events, "verdict").filter(|event| event["comm"] == "lu");
    let mut generations = std::collections::BTreeMap::new();
    let mut count = 0;
    for event in verdicts {
        count += 1;
        let verdict = &event["verdict"];
        let (rule, errno) = (verdict["rule"].as_str(), verdict["errno"].as_str());
        let generation = verdict["generation"].as_u64().ok_or("no generation")?;
        let consistent = match (rule, errno) {
            (Some(rule), Some(errno)) => {
                rule.starts_with(errno) && *generations.entry(generation).or_insert(errno) == errno
            }
            _ => false,
        };
        if !consistent || event["errno"] != verdict["errno"] {
            return Err(format!("{event:#}").into());
        }
    }
    let lost: u64 = events
        .iter()
        .filter_map(|event| event["lost"].as_u64())
        .sum();
    if lost == 0 && count != asked[0] + asked[1] + 1 {
        return Err(format!("{count} verdicts for {asked:?} and one").into());
    }
    Ok(())
}

const GATE: &str = r#"
version = 1
mode = "enforce"

[[require]]
name = "the memory"
session = "vm-1"
tokens = [1]
before = "kexec"
on_error = "deny"

[[gate]]
name = "free"
condition = "device-free"
"#;

fn gate() -> Outcome {
    let folder = scratch();
    let journal = path(folder.path())?;
    let policy = folder.path().join("policy.toml");
    fs::write(&policy, GATE)?;
    let recorder = Background::watch(&["run", "--journal", journal], Stdio::null())?;
    let holder = client("holder", &["-static"])?;
    let gate = format!(
        "{} gate --policy {} --journal {journal}; echo status $?",
        lu(),
        path(&policy)?
    );
    let script = format!("{gate}; {} '{gate}'", path(&holder)?);
    let output = run(&["emulate", "--interface=sessions", "--", "sh", "-c", &script])?;
    expect_status(&output, 0)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let answers: Vec<&str> = said.split_inclusive("status ").collect();
    let memory = "\"the memory\": wanted: token 0x1 of session vm-1 preserved";
    let free = "\"free\": wanted: nobody has the device open";
    for (answer, lines) in [
        (
            0,
            [
                "not ready".to_owned(),
                "met               device    the device can be opened".to_owned(),
                format!("UNKNOWN           require   {memory}; lu has not seen enough"),
                format!("met               gate      {free}"),
            ],
        ),
        (
            1,
            [
                "1\nnot ready".to_owned(),
                "NOT MET           device    somebody has the device open (EBUSY)".to_owned(),
                format!("NOT MET           require   {memory}"),
                format!("NOT MET           gate      {free}"),
            ],
        ),
        (
            2,
            [
                "1\nready".to_owned(),
                "met               journal   lu watches".to_owned(),
                format!("met               require   {memory}"),
                format!("met               gate      {free}"),
            ],
        ),
        (
            3,
            [
                "0\n".to_owned(),
                String::new(),
                String::new(),
                String::new(),
            ],
        ),
    ] {
        let answer = answers.get(answer).ok_or_else(|| said.clone())?;
        for line in lines {
            if !answer.contains(&line) {
                return Err(format!("no line {line}\n{said}").into());
            }
        }
    }
    recorder.stop()?;
    // Nobody watches any more.
    let output = run(&["gate", "--journal", journal, "--json"])?;
    expect_status(&output, 1)?;
    let answer: Value = serde_json::from_slice(&output.stdout)?;
    let journal = answer["conditions"]
        .as_array()
        .and_then(|all| all.iter().find(|one| one["about"] == "journal"));
    if answer["schema"] != "lu.gate/1"
        || answer["ready"] != false
        || journal.is_none_or(|journal| journal["state"] != "unknown")
    {
        return Err(format!("{answer:#}").into());
    }
    let output = run(&["gate", "--policy", "/dev/null"])?;
    expect_status(&output, 2)
}
