//! `lu policy`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;
use lu_common::event::Section;
use lu_user::policy::{
    Asked, Compiled, Machine, Names, Source, State, cases, compile, explain, schema,
};
use serde_json::json;

use super::in_force::{Apply, Detach, Status};

/// Check, explain and test a policy, before it bites; and put one in force that persists, or take it off.
///
/// A policy says who may ask the orchestrator for what, what may be preserved and how much, and what must be before a
/// kexec: docs/policy.md tells its language. `apply` and `detach` change what is in force, the others change nothing.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  lu policy check policy.toml\n  lu policy explain policy.toml preserve session=vm-1 token=3 kind=memfd bytes=4GiB uid=0\n  lu policy test policy.toml cases.toml\n  lu policy schema > policy.schema.json\n\nExit status: 0 done, 1 a case failed, 2 wrong usage, or a file that is no policy."
)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Check(Check),
    Apply(Apply),
    Status(Status),
    Detach(Detach),
    Explain(Explain),
    Test(Test),
    Schema(Schema),
}

/// Read a policy, and tell what is wrong with it: each problem with its place and what to do.
///
/// Executables and cgroups are looked up as they would be if the policy were loaded now: what is not there is a
/// warning.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  lu policy check policy.toml\n  lu policy check policy.toml --json | jq .sha256\n\nExit status: 0 it is a policy, 2 it is none."
)]
struct Check {
    /// The policy.
    file: PathBuf,
    /// The same as one JSON document, schema lu.policy.check/1.
    #[arg(long)]
    json: bool,
}

/// Tell what a policy says of a request, and why: each rule that was asked, and what it found.
///
/// A request is a word (open, create, retrieve, preserve, unpreserve, restore, finish, prepare, cancel, receive, load,
/// kexec) and what is known of it: session=, token=, kind=, bytes=, uid=, gid=, exe=, cgroup=. What is not given is
/// unknown, and `on_error` decides where a rule asks for it. Paths that this machine does not have are told apart by
/// name.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  lu policy explain policy.toml create session=vm-1 uid=1000 exe=/usr/bin/vmm\n  lu policy explain policy.toml preserve session=vm-1 token=3 kind=memfd bytes=4GiB --standing 'sessions.vm-1 = { tokens = [1, 2], bytes = \"8GiB\" }'\n  lu policy explain policy.toml kexec uid=0 --standing 'device-free = true'\n\nExit status: 0 told, whatever the verdict; 2 wrong usage, or a file that is no policy."
)]
struct Explain {
    /// The policy.
    file: PathBuf,
    /// The request.
    #[arg(required = true, num_args = 1.., value_name = "REQUEST")]
    request: Vec<String>,
    /// What is preserved meanwhile, as TOML: the same keys as in a case of `lu policy test`.
    #[arg(long, value_name = "TOML", default_value = "")]
    standing: String,
    /// The same as one JSON document, schema lu.policy.explain/1.
    #[arg(long)]
    json: bool,
}

/// Ask a policy for each case of a file, and hold what it says against what is expected.
#[derive(clap::Args)]
#[command(
    after_help = "A case:\n  [[case]]\n  name = \"nobody else creates a vm's session\"\n  request = \"create session=vm-1 uid=1000\"\n  expect = \"deny\"              # allow, would-deny or deny\n  rule = \"only the vmm\"        # optional: which rule says so\n  errno = \"EACCES\"             # optional\n  standing.sessions.vm-1 = { tokens = [1, 2], bytes = \"8GiB\" }   # optional: what is preserved\n\nExamples:\n  lu policy test policy.toml cases.toml\n\nExit status: 0 all as expected, 1 some are not, 2 wrong usage, or a file that is none."
)]
struct Test {
    /// The policy.
    file: PathBuf,
    /// The cases.
    cases: PathBuf,
    /// The same as one JSON document, schema lu.policy.test/1.
    #[arg(long)]
    json: bool,
}

/// Print the JSON Schema of a policy's file, for editors.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  lu policy schema > policy.schema.json")]
struct Schema {}

impl Args {
    pub fn run(&self) -> Result<ExitCode> {
        match &self.command {
            Command::Check(check) => check.run(),
            Command::Apply(apply) => apply.run(),
            Command::Status(status) => status.run(),
            Command::Detach(detach) => detach.run(),
            Command::Explain(explain) => explain.run(),
            Command::Test(test) => test.run(),
            Command::Schema(_) => {
                println!("{}", serde_json::to_string_pretty(&schema())?);
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

impl Check {
    fn run(&self) -> Result<ExitCode> {
        let source = Source::read(&self.file)?;
        let compiled = compile(&source, &Machine)?;
        let sha256 = compiled.hash();
        if self.json {
            let document = json!({
                "schema": "lu.policy.check/1",
                "file": source.name,
                "mode": source.mode,
                "sha256": sha256,
                "warnings": compiled.warnings,
                "rules": compiled.rules.iter().enumerate().map(|(number, rule)| json!({
                    "number": number,
                    "name": rule.name,
                    "section": rule.section.name(),
                    "line": rule.line,
                    "mode": rule.mode,
                })).collect::<Vec<_>>(),
            });
            println!("{}", serde_json::to_string_pretty(&document)?);
            return Ok(ExitCode::SUCCESS);
        }
        println!(
            "{}: {} rule{}{}, mode {}, sha256 {sha256}",
            source.name,
            compiled.rules.len(),
            if compiled.rules.len() == 1 { "" } else { "s" },
            sections(&compiled),
            source.mode.name(),
        );
        for warning in &compiled.warnings {
            println!("warning: {warning}");
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// How many rules each section has.
fn sections(compiled: &Compiled) -> String {
    let counts: Vec<String> = Section::ALL
        .iter()
        .filter_map(|section| {
            let of_it = compiled
                .rules
                .iter()
                .filter(|rule| rule.section == *section);
            match of_it.count() {
                0 => None,
                count => Some(format!("{count} {}", section.name())),
            }
        })
        .collect();
    if counts.is_empty() {
        String::new()
    } else {
        format!(" ({})", counts.join(", "))
    }
}

impl Explain {
    fn run(&self) -> Result<ExitCode> {
        let source = Source::read(&self.file)?;
        let names = Names::default();
        let compiled = compile(&source, &names)?;
        let asked = match Asked::parse(&self.request) {
            Ok(asked) => asked,
            Err(what) => {
                eprintln!("lu: {what}");
                return Ok(ExitCode::from(2));
            }
        };
        let state = State::parse(&self.standing)?;
        let explanation = explain(&source, &compiled, &names, &asked, &state);
        if self.json {
            println!("{}", serde_json::to_string_pretty(&explanation)?);
        } else {
            println!("{explanation}");
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Test {
    fn run(&self) -> Result<ExitCode> {
        let source = Source::read(&self.file)?;
        let names = Names::default();
        let compiled = compile(&source, &names)?;
        let cases = cases(&self.cases, &source)?;
        let tried: Vec<_> = cases
            .iter()
            .map(|case| case.run(&compiled, &names))
            .collect();
        let failed = tried.iter().filter(|tried| !tried.ok).count();
        if self.json {
            let document = json!({
                "schema": "lu.policy.test/1",
                "sha256": compiled.hash(),
                "failed": failed,
                "cases": tried,
            });
            println!("{}", serde_json::to_string_pretty(&document)?);
        } else {
            for tried in tried.iter().filter(|tried| !tried.ok) {
                println!("{}", tried.name);
                let (expected, actual) = (&tried.expected, &tried.actual);
                differ("verdict", Some(expected.verdict), Some(actual.verdict));
                differ("rule", expected.rule.as_deref(), actual.rule.as_deref());
                differ("errno", expected.errno.as_deref(), actual.errno.as_deref());
            }
            println!(
                "{} cases, {} as expected, {failed} not",
                tried.len(),
                tried.len() - failed
            );
        }
        Ok(ExitCode::from(u8::from(failed > 0)))
    }
}

/// A line of what was expected, and one of what is; one alone where they are the same.
fn differ(key: &str, expected: Option<&str>, actual: Option<&str>) {
    let shown = |value: Option<&str>| value.unwrap_or("none").to_owned();
    match expected {
        Some(_) if expected != actual => {
            println!("  -{key} = {}", shown(expected));
            println!("  +{key} = {}", shown(actual));
        }
        _ => println!("   {key} = {}", shown(actual)),
    }
}
