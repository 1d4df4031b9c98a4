//! `lu run --export` beside a real Prometheus: what it scrapes, what dashboards and rules make of it, and each
//! alert with its cause made to happen.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{build, sh};

/// What Prometheus makes of an update is there after this.
const SOON: Duration = Duration::from_secs(30);

/// What a query has in place of Grafana's variables.
const VARIABLES: [(&str, &str); 4] = [
    ("$job", "lu"),
    ("$instance", "lu-under-test"),
    ("$__rate_interval", "15s"),
    ("$__range", "5m"),
];

const DASHBOARDS: [&str; 3] = ["fleet", "host", "policy"];

/// The programs that take part.
struct Programs {
    lu: PathBuf,
    sessions: PathBuf,
}

/// Runs all of it.
pub fn check() -> Result<()> {
    let dashboards = sh::root().join("dashboards");
    promtool(&dashboards, &["check", "rules", "rules.yml"])?;
    promtool(&dashboards, &["test", "rules", "rules-test.yml"])?;
    let programs = Programs {
        lu: build::tested("--bin", "lu")?,
        sessions: build::tested("--example", "sessions")?,
    };
    let folder = tempfile::tempdir()?;
    let run = Run::start(&programs, folder.path(), "journal", &[])?;
    check_metrics(run.address)?;
    let mut prometheus = Prometheus::start(
        folder.path(),
        &[("lu-under-test", run.address, "")],
        Histograms::Classic,
    )?;

    programs
        .emulate(&["--boot-delay", "500ms"], &whole(&programs))?
        .end()?;
    prometheus.wait_for("lu_updates_total{outcome=\"finished\"} == 1")?;
    prometheus.answers_every_panel(&dashboards)?;
    prometheus.evaluates_every_rule()?;
    let firing = prometheus.firing()?;
    ensure!(firing.is_empty(), "all is well, and these fire: {firing:?}");

    prometheus.fires_for_each_cause(&programs, folder.path())?;

    // Somebody who would have to enforce and does not, and who loses events.
    let small = Run::start(
        &programs,
        folder.path(),
        "small",
        &["--ring-buffer", "4KiB"],
    )?;
    drop(prometheus);
    let targets = [
        ("lu-under-test", run.address, ""),
        ("lu-small", small.address, "required"),
    ];
    let mut prometheus = Prometheus::start(folder.path(), &targets, Histograms::Native)?;
    prometheus.wait_for("up{instance=\"lu-small\"} == 1")?;
    prometheus.wait_for("histogram_count(lu_blackout_seconds{instance=\"lu-under-test\"}) > 1")?;
    let lu = programs.lu.display();
    let flood =
        format!("yes 'session name flood' | head -2000 | {lu} ctl --hold session create flood");
    programs.emulate(&[], &flood)?.end()?;
    prometheus.wait_for_alert("LuEnforcementOff")?;
    prometheus.wait_for_alert("LuEventsLost")?;
    let silent = prometheus.firing()?;
    ensure!(
        !silent.contains(&"LuSilentInUpdate".to_owned()),
        "both answer"
    );

    // And one that dies in the middle.
    let sessions = programs.sessions.display();
    let update = programs.emulate(
        &[],
        &format!("{sessions} stage1; sleep 8; {lu} emulate kexec"),
    )?;
    prometheus.wait_for("lu:update_under_way:max{instance=\"lu-under-test\"} == 1")?;
    drop(run);
    prometheus.wait_for_alert("LuSilentInUpdate")?;
    update.end()
}

/// Shows Prometheus what a machine has served before an update was finished, then what it served after that.
pub fn replay([before, after]: [Result<String>; 2]) -> Result<()> {
    let dashboards = sh::root().join("dashboards");
    let folder = tempfile::tempdir()?;
    let text = Arc::new(Mutex::new(before?));
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let served = text.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            // Prometheus asks again.
            let _ = answer(&stream, &served);
        }
    });
    check_metrics(address)?;
    let mut prometheus = Prometheus::start(
        folder.path(),
        &[("lu-under-test", address, "")],
        Histograms::Classic,
    )?;
    prometheus.wait_for("lu_updates_total{outcome=\"finished\"} == 0")?;
    if let Ok(mut text) = text.lock() {
        *text = after?;
    }
    prometheus.wait_for("lu_updates_total{outcome=\"finished\"} == 1")?;
    check_metrics(address)?;
    prometheus.answers_every_panel(&dashboards)?;
    prometheus.evaluates_every_rule()?;
    let firing = prometheus.firing()?;
    for alert in [
        "LuFilesNotRestored",
        "LuZombieSession",
        "LuFreezeFailed",
        "LuSilentInUpdate",
    ] {
        ensure!(!firing.contains(&alert.to_owned()), "{alert} fires");
    }
    Ok(())
}

/// Answers one request with a text.
fn answer(stream: &TcpStream, text: &Mutex<String>) -> Result<()> {
    stream.set_read_timeout(Some(SOON))?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 && line != "\r\n" {
        line.clear();
    }
    let Ok(text) = text.lock() else {
        bail!("nobody has the text any more");
    };
    let head =
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nConnection: close\r\n";
    write!(
        &mut &*stream,
        "{head}Content-Length: {}\r\n\r\n{text}",
        text.len()
    )?;
    Ok(())
}

impl Programs {
    /// An emulated machine on which a script runs.
    fn emulate(&self, options: &[&str], script: &str) -> Result<Machine> {
        let child = sh::command(&self.lu)
            .args(["emulate", "--interface", "sessions"])
            .args(options)
            .args(["--", "sh", "-c", script])
            .stdout(Stdio::null())
            .spawn()
            .context("lu emulate does not start")?;
        Ok(Machine(child))
    }

    /// The old kernel's part, and the kexec.
    fn old(&self) -> String {
        format!(
            "{} stage1; {} emulate kexec",
            self.sessions.display(),
            self.lu.display()
        )
    }

    /// Finishes a session without asking for its files.
    fn discard(&self, name: &str) -> String {
        let lu = self.lu.display();
        format!("echo session finish {name} | {lu} ctl --hold session retrieve {name}")
    }
}

/// A whole update.
fn whole(programs: &Programs) -> String {
    format!("{}; {} stage2", programs.old(), programs.sessions.display())
}

/// An emulated machine, which ends when this is dropped.
struct Machine(Child);

impl Machine {
    fn end(mut self) -> Result<()> {
        let status = self.0.wait()?;
        ensure!(status.success(), "lu emulate: {status}");
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        end(&mut self.0);
    }
}

/// Asks a process to end, and waits for it.
fn end(child: &mut Child) {
    if !matches!(child.try_wait(), Ok(None)) {
        return;
    }
    let pid = child.id().to_string();
    let _ = sh::run_quietly(sh::command("kill").args(["-TERM", &pid]));
    for _ in 0..100 {
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        sleep(Duration::from_millis(100));
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// A `lu run --export`, killed when this is dropped.
struct Run {
    child: Child,
    address: SocketAddr,
}

impl Run {
    fn start(programs: &Programs, folder: &Path, journal: &str, more: &[&str]) -> Result<Self> {
        let mut child = sh::command(&programs.lu)
            .args(["run", "--export", "127.0.0.1:0", "--journal"])
            .arg(folder.join(journal))
            .args(more)
            .stderr(Stdio::piped())
            .spawn()
            .context("lu run does not start")?;
        let stderr = child
            .stderr
            .take()
            .context("lu run has no standard error")?;
        let mut lines = BufReader::new(stderr).lines();
        let mut said = Vec::new();
        for line in lines.by_ref() {
            let line = line?;
            if let Some(rest) = line.strip_prefix("lu: metrics at http://") {
                let address = rest.split('/').next().and_then(|text| text.parse().ok());
                let address = address.with_context(|| format!("no address in: {line}"))?;
                // What it says later goes nowhere, so that its pipe never fills.
                std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
                return Ok(Self { child, address });
            }
            said.push(line);
        }
        bail!("lu run ended: {}", said.join("\n"))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn promtool(folder: &Path, args: &[&str]) -> Result<()> {
    sh::run_quietly(sh::command("promtool").current_dir(folder).args(args))
}

/// What promtool says of the text.
fn check_metrics(address: SocketAddr) -> Result<()> {
    let text = get(address, "/metrics")?;
    let mut child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("promtool does not start")?;
    child
        .stdin
        .take()
        .context("no standard input")?
        .write_all(text.as_bytes())?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "promtool check metrics: {said}");
    Ok(())
}

/// A GET; anything but a success is a failure.
fn get(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("nobody at {address}"))?;
    stream.set_read_timeout(Some(SOON))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("an answer without a head")?;
    let status = head.lines().next().unwrap_or_default();
    ensure!(status.contains(" 200 "), "{path}: {status}\n{body}");
    Ok(body.to_owned())
}

/// Which histograms Prometheus takes. Where it takes native ones it leaves the classic buckets, which the dashboards ask
/// for (Prometheus 2.42).
#[derive(Clone, Copy)]
enum Histograms {
    Classic,
    Native,
}

/// A Prometheus of our own.
struct Prometheus {
    child: Child,
    address: SocketAddr,
}

impl Prometheus {
    /// Scrapes these: each with its name, and what its label `enforcement` is.
    fn start(
        folder: &Path,
        targets: &[(&str, SocketAddr, &str)],
        histograms: Histograms,
    ) -> Result<Self> {
        let rules = fs::read_to_string(sh::root().join("dashboards/rules.yml"))?;
        // The test has not the time to wait.
        let hasty = rules
            .lines()
            .map(|line| match line.trim_start().strip_prefix("for: ") {
                Some(_) => "        for: 1s",
                None => line,
            });
        fs::write(
            folder.join("rules.yml"),
            hasty.collect::<Vec<_>>().join("\n"),
        )?;
        let mut config = String::from(
            "global: {scrape_interval: 250ms, scrape_timeout: 250ms, evaluation_interval: 500ms}\n\
             rule_files: [rules.yml]\nscrape_configs:\n- job_name: lu\n  static_configs:\n",
        );
        for (name, address, enforcement) in targets {
            let labels = format!("{{instance: {name}, enforcement: \"{enforcement}\"}}");
            // Writing to a String does not fail.
            let _ = writeln!(config, "  - {{targets: [\"{address}\"], labels: {labels}}}");
        }
        let path = folder.join("prometheus.yml");
        fs::write(&path, config)?;
        promtool(folder, &["check", "config", "prometheus.yml"])?;
        // Free a moment ago: Prometheus does not tell which port it was given.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let log = fs::File::create(folder.join("prometheus.log"))?;
        let native = match histograms {
            Histograms::Classic => None,
            Histograms::Native => Some("--enable-feature=native-histograms"),
        };
        let child = sh::command("prometheus")
            .arg(format!("--config.file={}", path.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .args(native)
            .stderr(log)
            .spawn()
            .context("prometheus does not start")?;
        let mut prometheus = Self { child, address };
        prometheus.wait_for("up == 1").with_context(|| {
            fs::read_to_string(folder.join("prometheus.log")).unwrap_or_default()
        })?;
        Ok(prometheus)
    }

    fn ask(&self, what: &str) -> Result<Value> {
        let answer: Value = serde_json::from_str(&get(self.address, what)?)?;
        ensure!(answer["status"] == "success", "{what}: {answer}");
        Ok(answer["data"].clone())
    }

    /// How many series a query returns.
    fn query(&self, query: &str) -> Result<usize> {
        let data = self.ask(&format!("/api/v1/query?query={}", escaped(query)))?;
        let result = data["result"]
            .as_array()
            .context("a query without a result")?;
        Ok(result.len())
    }

    fn wait_until(
        &mut self,
        what: &str,
        mut holds: impl FnMut(&Self) -> Result<bool>,
    ) -> Result<()> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("prometheus ended: {status}");
            }
            let held = holds(self);
            if matches!(held, Ok(true)) {
                return Ok(());
            }
            if start.elapsed() > SOON {
                held.context(what.to_owned())?;
                bail!("not within {} s: {what}", SOON.as_secs());
            }
            sleep(Duration::from_millis(200));
        }
    }

    fn wait_for(&mut self, query: &str) -> Result<()> {
        self.wait_until(query, |it| Ok(it.query(query)? > 0))
    }

    fn wait_for_alert(&mut self, name: &str) -> Result<()> {
        self.wait_until(name, |it| {
            Ok(it.firing()?.iter().any(|firing| firing == name))
        })
    }

    /// The names of the alerts that fire.
    fn firing(&self) -> Result<Vec<String>> {
        let data = self.ask("/api/v1/alerts")?;
        let alerts = data["alerts"].as_array().context("no alerts")?;
        let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
        Ok(firing
            .filter_map(|alert| alert["labels"]["alertname"].as_str().map(str::to_owned))
            .collect())
    }

    /// Makes happen what each alert is for, and waits until it fires.
    fn fires_for_each_cause(&mut self, programs: &Programs, folder: &Path) -> Result<()> {
        let held = folder.join("held").display().to_string();
        let alerts: [(&str, &[&str], String); 5] = [
            (
                "LuUpdateStuck",
                &["--boot-delay", "4500ms"],
                whole(programs),
            ),
            (
                "LuBlackoutOverBudget",
                &["--boot-delay", "6s"],
                whole(programs),
            ),
            (
                "LuFilesNotRestored",
                &[],
                format!(
                    "{}; {}",
                    programs.old(),
                    ["guest-a", "guest-b"]
                        .map(|name| programs.discard(name))
                        .join("; ")
                ),
            ),
            (
                "LuZombieSession",
                &["--busy-finish", "2"],
                format!(
                    "{}; {} ctl session retrieve guest-a",
                    programs.old(),
                    programs.lu.display()
                ),
            ),
            (
                "LuFreezeFailed",
                &["--fail-freeze", "2"],
                format!(
                    "{} stage1 >{held}; {} emulate kexec; kill $(sed -n 's/^process \\([0-9]*\\) holds.*/\\1/p' {held})",
                    programs.sessions.display(),
                    programs.lu.display()
                ),
            ),
        ];
        for (alert, options, script) in alerts {
            let before = self.firing()?;
            ensure!(
                !before.contains(&alert.to_owned()),
                "{alert} fires before its cause is there"
            );
            let update = programs.emulate(options, &script)?;
            self.wait_for_alert(alert)?;
            update.end()?;
        }
        Ok(())
    }

    fn answers_every_panel(&mut self, folder: &Path) -> Result<()> {
        let mut count = 0;
        for name in DASHBOARDS {
            let board: Value =
                serde_json::from_str(&fs::read_to_string(folder.join(format!("{name}.json")))?)?;
            for panel in board["panels"].as_array().context("no panels")? {
                for target in panel["targets"].as_array().context("no queries")? {
                    let mut query = target["expr"].as_str().context("no query")?.to_owned();
                    for (variable, value) in VARIABLES {
                        query = query.replace(variable, value);
                    }
                    let what = format!("{name}, {}: {query}", panel["title"]);
                    self.wait_until(&what, |it| Ok(it.query(&query)? > 0))?;
                    count += 1;
                }
            }
        }
        sh::say(&format!(
            "{count} queries of {} dashboards return data",
            DASHBOARDS.len()
        ));
        Ok(())
    }

    fn evaluates_every_rule(&mut self) -> Result<()> {
        let data = self.ask("/api/v1/rules")?;
        let groups = data["groups"].as_array().context("no groups")?;
        let rules: Vec<Value> = groups
            .iter()
            .filter_map(|group| group["rules"].as_array())
            .flatten()
            .cloned()
            .collect();
        ensure!(!rules.is_empty(), "no rules");
        for rule in rules {
            let name = rule["name"].as_str().context("a rule without a name")?;
            ensure!(rule["health"] == "ok", "{name}: {}", rule["lastError"]);
            if rule["type"] == "recording" {
                self.wait_for(name)?;
            }
        }
        Ok(())
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// A text as a part of a query string.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() {
            escaped.push(char::from(byte));
        } else {
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}
