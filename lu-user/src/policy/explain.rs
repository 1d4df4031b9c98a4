//! What a policy says of a request, and why: each rule is asked alone, by the same `evaluate`.

use std::fmt;

use lu_common::event::Section;
use lu_common::policy::{
    Attribute, Decision, NO_RULE, Policy, Request, Standing as _, Text, TokenKey, Usage, Verdict,
    evaluate,
};
use serde::{Serialize, Serializer};
use toml::Spanned;

use super::compile::{Compiled, text_of};
use super::file::{Condition, Mode};
use super::request::{Asked, Names, Stands, State};
use super::source::{Conditions, Rule, Says, Source};
use crate::export::{errno_name, size};

/// A verdict and its reasons. As JSON: `lu.policy.explain/1`.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// `lu.policy.explain/1`.
    pub schema: &'static str,
    /// What becomes of the request: allow, would-deny or deny.
    pub decision: &'static str,
    /// The errno's name, where it is refused, or would be.
    pub errno: Option<String>,
    /// The number of the rule that says so; `None`: none does, and the request is allowed.
    pub rule: Option<usize>,
    /// Whether something was unknown that the rule asks for, so that its `on_error` decided.
    pub unsure: bool,
    /// The rules that speak of such requests: of those where the first match decides, up to that one.
    pub rules: Vec<Step>,
}

/// What one rule says of a request.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// Its number.
    pub number: usize,
    /// Its name.
    pub name: String,
    /// Its part of the file.
    #[serde(serialize_with = "by_name")]
    pub section: Section,
    /// Its line in the file, from 1.
    pub line: usize,
    /// Whether it is enforced.
    pub mode: Mode,
    /// What came of it.
    pub outcome: Outcome,
    /// What it asks of the request.
    pub conditions: Vec<Asks>,
    /// What it is about otherwise: the quota and how much of it is used, each thing that must be.
    pub state: Vec<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn by_name<S: Serializer>(section: &Section, to: S) -> Result<S::Ok, S::Error> {
    section.name().serialize(to)
}

/// What comes of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It matches, and allows.
    Allows,
    /// It matches, and refuses; of a quota, a requirement, or a condition of the gate: it does not hold.
    Refuses,
    /// Something is unknown, and its `on_error` allows.
    UnknownAllows,
    /// Something is unknown, and its `on_error` refuses.
    UnknownRefuses,
    /// It does not match.
    NoMatch,
    /// Of a quota, a requirement, or a condition of the gate: it holds.
    Holds,
}

/// A condition on an attribute of the request.
#[derive(Clone, Debug, Serialize)]
pub struct Asks {
    /// As the file calls it.
    pub attribute: &'static str,
    /// What the rule asks for.
    pub wanted: Vec<String>,
    /// What the request has; `None`: unknown.
    pub value: Option<String>,
    /// Whether it is met; `None`: unknown.
    pub met: Option<bool>,
}

/// Judges a request, and tells why.
#[must_use]
pub fn explain(
    source: &Source,
    compiled: &Compiled,
    names: &Names,
    asked: &Asked,
    state: &State,
) -> Explanation {
    let request = asked.request(names);
    let stands = state.with(asked);
    let policy = &compiled.policy;
    let verdict = evaluate(policy, &request, &stands);
    let first = evaluate(&only(policy, policy.requests), &request, &stands).rule;
    let steps = source.rules.iter().enumerate().filter(|(number, rule)| {
        let is_reached = !matches!(rule.says, Says::Answer(_)) || *number <= usize::from(first);
        is_reached && rule.operations.contains(&asked.operation)
    });
    Explanation {
        schema: "lu.policy.explain/1",
        decision: verdict.decision.name(),
        errno: errno(verdict, policy),
        rule: number(verdict),
        unsure: verdict.unsure,
        rules: steps
            .map(|(number, rule)| step(policy, number, rule, asked, &request, &stands))
            .collect(),
    }
}

/// The errno's name, where a verdict has one.
pub(super) fn errno(verdict: Verdict, policy: &Policy) -> Option<String> {
    let errno = verdict.errno(policy);
    (errno != 0).then(|| errno_name(i32::from(errno)))
}

/// The rule's number, where a verdict has one.
pub(super) fn number(verdict: Verdict) -> Option<usize> {
    (verdict.rule != NO_RULE).then_some(usize::from(verdict.rule))
}

/// A policy of some of its rules alone.
fn only(policy: &Policy, rules: u64) -> Box<Policy> {
    let mut only = Box::new(*policy);
    for operation in &mut only.operations {
        *operation &= rules;
    }
    only
}

fn step(
    policy: &Policy,
    number: usize,
    rule: &Rule,
    asked: &Asked,
    request: &Request,
    stands: &Stands<'_>,
) -> Step {
    let bit = 1 << number;
    let alone = evaluate(&only(policy, bit), request, stands);
    let conditions: Vec<Asks> = Attribute::ALL
        .into_iter()
        .filter(|attribute| policy.conditional[*attribute as usize] & bit != 0)
        .map(|attribute| {
            let is_known = request.known & attribute.bit() != 0;
            Asks {
                attribute: attribute.name(),
                wanted: wanted(&rule.conditions, attribute),
                value: asked.value(attribute),
                met: is_known.then(|| policy.met(request, attribute) & bit != 0),
            }
        })
        .collect();
    let is_no_match = conditions.iter().any(|asks| asks.met == Some(false));
    let outcome = match (alone.decision, alone.unsure) {
        (Decision::Allow, true) => Outcome::UnknownAllows,
        (_, true) => Outcome::UnknownRefuses,
        (Decision::Deny | Decision::WouldDeny, false) => Outcome::Refuses,
        (Decision::Allow, false) if is_no_match => Outcome::NoMatch,
        (Decision::Allow, false) if alone.rule == NO_RULE => Outcome::Holds,
        (Decision::Allow, false) => Outcome::Allows,
    };
    Step {
        number,
        name: rule.name.clone(),
        section: rule.section,
        line: rule.line,
        mode: rule.mode,
        outcome,
        conditions,
        state: states(rule, request, stands),
    }
}

fn wanted(conditions: &Conditions, attribute: Attribute) -> Vec<String> {
    fn texts<T: ToString>(values: &[T]) -> Vec<String> {
        values.iter().map(ToString::to_string).collect()
    }
    let paths =
        |paths: &[Spanned<String>]| paths.iter().map(|path| path.get_ref().clone()).collect();
    match attribute {
        Attribute::Session => texts(&conditions.session),
        Attribute::Token => texts(&conditions.tokens),
        Attribute::Kind => {
            let kinds = conditions.kinds.iter();
            kinds.map(|kind| kind.name().to_owned()).collect()
        }
        Attribute::Bytes => texts(&conditions.bytes),
        Attribute::Uid => texts(&conditions.uid),
        Attribute::Gid => texts(&conditions.gid),
        Attribute::Exe => paths(&conditions.exe),
        Attribute::Cgroup => paths(&conditions.cgroup),
    }
}

/// How it stands with what a rule counts, or waits for.
fn states(rule: &Rule, request: &Request, stands: &Stands<'_>) -> Vec<String> {
    let is = |known: Option<bool>, yes: &str, no: &str| match known {
        Some(true) => yes.to_owned(),
        Some(false) => no.to_owned(),
        None => "unknown".to_owned(),
    };
    match &rule.says {
        Says::Answer(_) => Vec::new(),
        Says::Quota {
            in_all,
            files,
            bytes,
        } => {
            let usage = if *in_all {
                stands.in_all()
            } else {
                stands.session(&request.name.text)
            };
            used(usage, *files, *bytes)
        }
        Says::Tokens(session, tokens) => {
            let asked = request.name.text;
            let is_named = asked != Text::default();
            let is_finish = rule.section == Section::Require
                && rule.operations == [lu_common::policy::Operation::Finish];
            if is_finish && is_named && asked != text_of(session) {
                return vec![format!("it is about session {session} alone")];
            }
            let state = |token: &u64| {
                let of = TokenKey {
                    session: text_of(session),
                    token: *token,
                };
                if is_finish {
                    // Which session is finished is unknown: then so is what it waits for.
                    let known = is_named.then(|| stands.is_restored(&of));
                    is(known.flatten(), "restored", "not restored")
                } else {
                    is(stands.is_preserved(&of), "preserved", "not preserved")
                }
            };
            let line = |token| format!("token {token} of {session}: {}", state(token));
            tokens.iter().map(line).collect()
        }
        Says::Files(session, files) => {
            let known = stands.session(&text_of(session)).map(|usage| usage.files);
            let known = known.map_or_else(|| "unknown".to_owned(), |files| files.to_string());
            vec![format!("files of {session}: {known}, {files} needed")]
        }
        Says::Gate(condition) => {
            let known = match condition {
                Condition::DeviceFree => stands.is_device_free(),
                Condition::ImageLoaded => stands.is_image_loaded(),
                Condition::NoLostSession => stands.is_no_session_lost(),
            };
            vec![format!("{}: {}", condition.name(), is(known, "yes", "no"))]
        }
    }
}

fn used(usage: Option<Usage>, files: Option<u64>, bytes: Option<u64>) -> Vec<String> {
    let mut lines = Vec::new();
    let Some(usage) = usage else {
        return vec!["how much there is with this request is unknown".to_owned()];
    };
    lines.extend(files.map(|most| format!("files with this one: {}, at most {most}", usage.files)));
    lines.extend(bytes.map(|most| {
        format!(
            "bytes with this file: {}, at most {}",
            size(usage.bytes),
            size(most)
        )
    }));
    lines
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.decision)?;
        if let Some(errno) = &self.errno {
            write!(f, " ({errno})")?;
        }
        match self
            .rules
            .iter()
            .find(|step| Some(step.number) == self.rule)
        {
            None => f.write_str(": no rule says anything else")?,
            Some(step) => write!(f, ": \"{}\" in line {} says so", step.name, step.line)?,
        }
        if self.unsure {
            f.write_str(" by its on_error, for something is unknown")?;
        }
        for step in &self.rules {
            write!(
                f,
                "\n{} rule {:<2} {:<9}\"{}\" (line {}, {}): {}",
                if Some(step.number) == self.rule {
                    '>'
                } else {
                    ' '
                },
                step.number,
                step.section.name(),
                step.name,
                step.line,
                step.mode.name(),
                step.outcome,
            )?;
            for asks in &step.conditions {
                let wanted = asks.wanted.join(", ");
                match (&asks.value, asks.met) {
                    (Some(value), Some(true)) => {
                        write!(f, "\n      yes  {} {value} is in: {wanted}", asks.attribute)?;
                    }
                    (Some(value), _) => {
                        write!(
                            f,
                            "\n      no   {} {value} is not in: {wanted}",
                            asks.attribute
                        )?;
                    }
                    (None, _) => {
                        write!(
                            f,
                            "\n      ?    {} is unknown, asked for: {wanted}",
                            asks.attribute
                        )?;
                    }
                }
            }
            for line in &step.state {
                write!(f, "\n           {line}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allows => "matches, allows",
            Self::Refuses => "refuses",
            Self::UnknownAllows => "cannot be told, on_error allows",
            Self::UnknownRefuses => "cannot be told, on_error refuses",
            Self::NoMatch => "does not match",
            Self::Holds => "holds",
        })
    }
}
