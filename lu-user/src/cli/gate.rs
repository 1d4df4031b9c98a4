//! `lu gate`.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use lu_common::event::Kind;
use lu_user::emulate::DEVICE;
use lu_user::gate::{Gate, Journal, Machine, State};
use lu_user::journal::{self, Reader};
use lu_user::orchestrator;
use lu_user::policy::{self, Source};
use lu_user::timeline::Timeline;
use nix::errno::Errno;
use nix::fcntl::{self, OFlag};
use nix::sys::stat::Mode;

/// Tell whether a live update may begin now: for scripts that trigger updates.
///
/// Asks for what the policy asks for before a kexec (its requirements and the conditions of its gate), and always
/// that an image is loaded, that the device can be opened (it is closed at once), that `lu run` watches, and that
/// nothing in the update under way needs attention, such as a freeze that failed. What is preserved comes from the
/// journal: what lu has not seen is unknown, which is not ready where the rule says `on_error = "deny"`.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  lu gate --policy /etc/lu/policy.toml && systemctl kexec\n  lu gate --json | jq '.conditions[] | select(.ready | not)'\n\nExit status: 0 ready, 1 not ready, 2 wrong usage, or a policy with errors."
)]
pub struct Args {
    /// The policy whose conditions are asked for.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Where the journal of `lu run` is.
    #[arg(long, value_name = "DIR", default_value = journal::FOLDER)]
    journal: PathBuf,
    /// One JSON document, schema lu.gate/1.
    #[arg(long)]
    json: bool,
}

/// How long `lu run` may take to note that the device was opened.
const NOTED_WITHIN: Duration = Duration::from_secs(2);

/// How often it is looked whether it has.
const LOOK_EVERY: Duration = Duration::from_millis(50);

impl Args {
    pub fn run(&self) -> Result<ExitCode> {
        let read = |path: &PathBuf| -> Result<_> {
            let source = Source::read(path)?;
            let compiled = policy::compile(&source, &policy::Machine)?;
            Ok((source, compiled))
        };
        let policy = self.policy.as_ref().map(read).transpose()?;
        let machine = Machine {
            in_kernel: orchestrator::in_kernel(),
            image_loaded: image_loaded(),
            opened: Some(open()),
        };
        let journal = journal(&self.journal);
        let journal = match &journal {
            Ok(timeline) => Journal::Current(timeline),
            Err(why) => Journal::Unknown(why.clone()),
        };
        let policy = policy.as_ref().map(|(source, compiled)| (source, compiled));
        let gate = Gate::new(&machine, &journal, policy);
        let mut out = std::io::stdout().lock();
        if self.json {
            serde_json::to_writer_pretty(&mut out, &gate).map_err(std::io::Error::from)?;
            out.write_all(b"\n")?;
        } else {
            out.write_all(text(&gate).as_bytes())?;
        }
        Ok(ExitCode::from(u8::from(!gate.ready)))
    }
}

/// `/sys/kernel/kexec_loaded`.
pub fn image_loaded() -> Option<bool> {
    let text = std::fs::read_to_string("/sys/kernel/kexec_loaded").ok()?;
    match text.trim() {
        "0" => Some(false),
        "1" => Some(true),
        _ => None,
    }
}

/// Opens the device, and closes it at once.
fn open() -> Result<(), Errno> {
    let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC;
    fcntl::open(DEVICE, flags, Mode::empty()).map(drop)
}

/// What the journal knows, once it knows of our open of the device: whoever writes it is still there, and what
/// happened before is in it.
fn journal(folder: &Path) -> Result<Timeline, String> {
    let own = std::process::id();
    let deadline = Instant::now() + NOTED_WITHIN;
    loop {
        let mut noted = false;
        let timeline = Reader::open(folder).timeline(|record| {
            let is_open = matches!(record.kind(), Some(Kind::Open | Kind::Verdict));
            noted |= is_open && record.has_task() && record.header.pid == own;
        });
        match timeline {
            Err(error) => return Err(error.to_string()),
            Ok((timeline, _)) if noted => return Ok(timeline),
            Ok(_) if Instant::now() > deadline => {
                return Err(format!(
                    "no `lu run --journal {}` watches: it has not noted that the device was opened just now",
                    folder.display()
                ));
            }
            Ok(_) => std::thread::sleep(LOOK_EVERY),
        }
    }
}

fn text(gate: &Gate) -> String {
    let mut text = String::from(if gate.ready { "ready\n" } else { "not ready\n" });
    for condition in &gate.conditions {
        let state = match (condition.state, condition.ready) {
            (State::Met, _) => "met",
            (State::NotMet, true) => "not met (goes on)",
            (State::NotMet, false) => "NOT MET",
            (State::Unknown, true) => "unknown (goes on)",
            (State::Unknown, false) => "UNKNOWN",
        };
        let rule = condition.rule.as_ref();
        let rule = rule.map_or_else(String::new, |rule| format!("\"{rule}\": "));
        let _ = writeln!(
            text,
            "  {state:<18}{:<10}{rule}{}",
            condition.about, condition.reason
        );
    }
    text
}
