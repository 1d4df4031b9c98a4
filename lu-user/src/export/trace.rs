//! One event as a line: in the manner of strace, or as JSON.

use std::fmt::Write as _;

use lu_common::event::{FileKind, Kind, Record};
use lu_common::policy::Decision;
use lu_common::uapi::{Interface, command_name, v3};
use serde::Serialize;

use super::verdict::{PolicyLine, RuleLine, UntoldLine, VerdictLine, untold};
use super::{duration, errno_name, size};
use crate::timeline::{Enforcer, Handover, Names, shown};

/// An event as JSON; unknown is null. The schema is stable: fields are added.
#[derive(Debug, Serialize)]
pub struct TraceLine {
    /// When the function was entered, `CLOCK_MONOTONIC` in nanoseconds.
    pub t_ns: u64,
    /// What happened.
    pub kind: &'static str,
    /// `enter` for a record made at the entry of a function that may not return, else `exit`.
    pub stage: &'static str,
    /// `v3` or `sessions`; null for what lu itself notes.
    pub interface: Option<&'static str>,
    /// The session's name.
    pub session: Option<String>,
    /// The file's token.
    pub token: Option<u64>,
    /// The descriptor that the caller gave.
    pub fd: Option<i32>,
    /// What sort of file it is.
    pub fd_kind: Option<&'static str>,
    /// Its size.
    pub bytes: Option<u64>,
    /// The ioctl's name, or its number where it is no command.
    pub cmd: Option<String>,
    /// The event that was asked for.
    pub event: Option<&'static str>,
    /// What the function returned.
    pub ret: Option<i32>,
    /// The errno's name.
    pub errno: Option<String>,
    /// What the function within returned, where the call returned something else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inner_ret: Option<i32>,
    /// How long the function took, in nanoseconds.
    pub dur_ns: Option<u64>,
    /// Of that, time in the file handler's callback.
    pub op_ns: Option<u64>,
    /// The caller's process.
    pub pid: Option<u32>,
    /// The caller's thread.
    pub tid: Option<u32>,
    /// The caller's real user.
    pub uid: Option<u32>,
    /// The caller's name.
    pub comm: Option<String>,
    /// The caller's cgroup.
    pub cgroup_id: Option<u64>,
    /// The CPU that the record was made on; null where no hook made it.
    pub cpu: Option<u16>,
    /// The record's number on that CPU.
    pub seq: Option<u32>,
    /// How many records were lost here.
    pub lost: Option<u64>,
    /// Verdicts that were lost here, and requests that could not be judged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub untold: Option<UntoldLine>,
    /// What the policy said of the request, or that its word was got around.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<VerdictLine>,
    /// What a rule is called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleLine>,
    /// The policy that was loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyLine>,
    /// The kernel that the lines from here on are from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub release: Option<String>,
    /// What that kernel says of the kexec that it came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handover: Option<Handover>,
    /// The CPU's counter at `t_ns`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counter: Option<u64>,
    /// `CLOCK_REALTIME` at `t_ns`, in nanoseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub realtime_ns: Option<u64>,
}

impl TraceLine {
    /// The line of a record, with the session's name from those seen so far.
    #[must_use]
    pub fn new(record: &Record, names: &Names) -> Self {
        let header = &record.header;
        let task = record.has_task();
        let hook = record.is_from_hook();
        let told = record.session_name().map(|name| shown(&name));
        Self {
            t_ns: header.t_ns,
            kind: record.kind().map_or("unknown", Kind::name),
            stage: if record.is_exit() { "exit" } else { "enter" },
            interface: hook.then(|| record.interface().name()),
            session: told.or_else(|| names.of(record)),
            token: names.token(record),
            fd: record.fd(),
            fd_kind: record.file_kind().map(FileKind::name),
            bytes: record.bytes(),
            cmd: record.cmd().map(|cmd| cmd_name(record.interface(), cmd)),
            event: record
                .event()
                .and_then(v3::Event::from_raw)
                .map(v3::Event::name),
            ret: record.ret(),
            errno: record.errno().or_else(|| refused(record)).map(errno_name),
            inner_ret: record.inner_ret().filter(|ret| Some(*ret) != record.ret()),
            dur_ns: record.dur_ns(),
            op_ns: record.op_ns(),
            pid: task.then_some(header.pid),
            tid: task.then_some(header.tid),
            uid: task.then_some(header.uid),
            comm: task.then(|| String::from_utf8_lossy(record.comm()).into_owned()),
            // No cgroup has number 0: it was not to be found out.
            cgroup_id: Some(header.cgroup_id).filter(|id| task && *id != 0),
            cpu: hook.then_some(header.cpu),
            seq: hook.then_some(header.seq),
            lost: record.lost(),
            untold: UntoldLine::of(record),
            verdict: VerdictLine::of(record, names),
            rule: RuleLine::of(record),
            policy: PolicyLine::of(record),
            release: record.kernel_release().map(|release| shown(&release)),
            handover: record.handover().map(Handover::from),
            counter: record.anchor().map(|anchor| anchor.counter),
            realtime_ns: record.anchor().map(|anchor| anchor.realtime_ns),
        }
    }
}

/// With which errno a policy refuses the request that a verdict is about.
fn refused(record: &Record) -> Option<i32> {
    let judged = record.judged()?;
    let is_refused =
        record.kind() == Some(Kind::Verdict) && judged.decision == Decision::Deny as u8;
    is_refused.then_some(i32::from(judged.errno))
}

fn cmd_name(interface: Interface, cmd: u32) -> String {
    command_name(interface, cmd).map_or_else(|| format!("{cmd:#x}"), str::to_owned)
}

/// One event for people: time since `origin_ns`, who, what, its arguments, its result, its time. `None` for
/// what only programs want to read.
#[must_use]
pub fn line(record: &Record, names: &Names, origin_ns: u64) -> Option<String> {
    if matches!(
        record.kind(),
        Some(Kind::Name | Kind::Rule | Kind::Anchor | Kind::LastBeat)
    ) {
        return None;
    }
    if let Some(release) = record.kernel_release() {
        return Some(format!("--- kernel {} ---", shown(&release)));
    }
    if let Some(handover) = record.handover().map(Handover::from) {
        return Some(came_from(&handover));
    }
    if let Some(policy) = PolicyLine::of(record) {
        return Some(loaded(record, &policy));
    }
    Some(call(record, names, origin_ns))
}

fn loaded(record: &Record, policy: &PolicyLine) -> String {
    let by = if record.has_task() {
        let comm = String::from_utf8_lossy(record.comm());
        format!("{} (pid {})", comm.escape_debug(), record.header.pid)
    } else {
        "somebody (not seen)".to_owned()
    };
    format!(
        "--- policy {}, generation {}, {} rules, {} enforced: loaded by {by}; {} judges by it ---",
        &policy.sha256[..12],
        policy.generation,
        policy.rules,
        policy.enforced,
        Enforcer::of(record).title(),
    )
}

fn came_from(handover: &Handover) -> String {
    fn or_unknown(number: Option<impl ToString>) -> String {
        number.map_or_else(|| "unknown".to_owned(), |number| number.to_string())
    }
    format!(
        "--- from kernel {}, kexec {}, live update {} since power-on ---",
        or_unknown(handover.exec_from.as_ref()),
        or_unknown(handover.kexecs),
        or_unknown(handover.liveupdate_number),
    )
}

fn call(record: &Record, names: &Names, origin_ns: u64) -> String {
    let header = &record.header;
    let since = header.t_ns.saturating_sub(origin_ns);
    let mut line = format!(
        "{:>5}.{:06} ",
        since / 1_000_000_000,
        since % 1_000_000_000 / 1000
    );
    if let Some(lost) = record.lost() {
        let _ = write!(line, "*** {lost} events lost here ***");
        return line;
    }
    if let Some(left) = UntoldLine::of(record) {
        let text = untold(left.verdicts, left.unjudged).unwrap_or_default();
        let _ = write!(line, "*** {text} ***");
        return line;
    }
    if record.has_task() {
        // A name is the caller's to choose: what is not printable must not reach the terminal.
        let comm = String::from_utf8_lossy(record.comm());
        let _ = write!(line, "[{} {}] ", header.pid, comm.escape_debug());
    } else {
        line.push_str("[kernel] ");
    }
    let verdict = VerdictLine::of(record, names);
    let name = match &verdict {
        Some(verdict) => verdict.operation,
        None => record.kind().map_or("unknown", Kind::name),
    };
    line.push_str(name);
    line.push('(');
    let mut arguments = Vec::new();
    if record.kind() == Some(Kind::Ioctl)
        && let Some(cmd) = record.cmd()
    {
        arguments.push(cmd_name(record.interface(), cmd));
    }
    if let Some(event) = record.event().and_then(v3::Event::from_raw)
        && record.kind() == Some(Kind::Ioctl)
    {
        arguments.push(event.name().to_owned());
    }
    if let Some(session) = names.of(record) {
        arguments.push(format!("session={session}"));
    }
    if let Some(token) = names.token(record) {
        arguments.push(format!("token={token:#x}"));
    }
    if let Some(fd) = record.fd() {
        arguments.push(format!("fd={fd}"));
    }
    if let (Some(kind), Some(bytes)) = (record.file_kind(), record.bytes()) {
        arguments.push(format!("{} {}", kind.name(), size(bytes)));
    }
    line.push_str(&arguments.join(", "));
    line.push(')');
    if let Some(verdict) = verdict {
        line.push_str(&verdict.text());
        return line;
    }
    match (record.ret(), record.dur_ns()) {
        (Some(ret), Some(dur)) => {
            let result = record.errno().map_or_else(
                || ret.to_string(),
                |errno| format!("-1 {}", errno_name(errno)),
            );
            let _ = write!(line, " = {result} <{}>", duration(dur));
        }
        _ => line.push_str(" ..."),
    }
    line
}
