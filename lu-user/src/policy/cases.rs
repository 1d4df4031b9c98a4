//! Cases for a policy: requests, and what it is expected to say of them.

use std::path::Path;

use lu_common::policy::{Decision, evaluate};
use serde::{Deserialize, Serialize};
use toml::Spanned;
use toml::de::DeTable;

use super::compile::Compiled;
use super::error::{Error, Problem, Refused};
use super::explain::{errno, number};
use super::file::each;
use super::request::{Asked, Names, State, StateFile};
use super::source::{Source, read_text};
use super::value;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a case's keys, below [[case]]")]
struct CaseFile {
    name: String,
    request: Spanned<String>,
    #[serde(default)]
    standing: StateFile,
    expect: Expect,
    rule: Option<Spanned<String>>,
    errno: Option<Spanned<String>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Expect {
    Allow,
    WouldDeny,
    Deny,
}

/// A request, and what is expected of it.
#[derive(Clone, Debug)]
pub struct Case {
    /// What it is called.
    pub name: String,
    asked: Asked,
    state: State,
    expected: Said,
}

/// What a policy says, or should say; what is `None` was not expected in particular.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Said {
    /// allow, would-deny or deny.
    pub verdict: &'static str,
    /// The name of the rule that says so.
    pub rule: Option<String>,
    /// The errno's name.
    pub errno: Option<String>,
}

/// What came of a case.
#[derive(Clone, Debug, Serialize)]
pub struct Tried {
    /// What it is called.
    pub name: String,
    /// What was expected.
    pub expected: Said,
    /// What the policy says.
    pub actual: Said,
    /// Whether that is as expected.
    pub ok: bool,
}

/// Reads a file of cases, for a policy: a rule that it does not have is an error.
pub fn cases(path: &Path, source: &Source) -> Result<Vec<Case>, Error> {
    let text = read_text(path)?;
    parse(&path.display().to_string(), &text, source)
}

/// Reads a text of cases, which messages call `name`.
fn parse(name: &str, text: &str, source: &Source) -> Result<Vec<Case>, Error> {
    let (document, errors) = DeTable::parse_recoverable(text);
    let mut problems: Vec<Problem> = errors.into_iter().map(Problem::from).collect();
    let mut files: Vec<CaseFile> = Vec::new();
    if problems.is_empty() {
        for (key, value) in document.into_inner() {
            if &**key.get_ref() == "case" {
                files = each(value, "case", &mut problems);
            } else {
                problems.push(Problem::new(
                    key.span(),
                    format!("unknown key `{}`", key.get_ref()),
                    "a file of cases has [[case]] and nothing else",
                ));
            }
        }
        if files.is_empty() && problems.is_empty() {
            problems.push(Problem::new(
                0..0,
                "there is no case",
                "write one: [[case]] with name, request and expect",
            ));
        }
    }
    let mut cases = Vec::new();
    for file in files {
        cases.extend(case(file, source, &mut problems));
    }
    if problems.is_empty() {
        return Ok(cases);
    }
    problems.sort_by_key(|problem| problem.span.start);
    Err(Error::Refused(Refused {
        name: name.to_owned(),
        text: text.to_owned(),
        problems,
    }))
}

fn case(file: CaseFile, source: &Source, problems: &mut Vec<Problem>) -> Option<Case> {
    let state = State::read(file.standing, problems);
    if let Some(rule) = &file.rule
        && !source
            .rules
            .iter()
            .any(|known| known.name == *rule.get_ref())
    {
        problems.push(Problem::new(
            rule.span(),
            format!("{} has no rule with this name", source.name),
            "write the rule's name as the policy has it",
        ));
    }
    if let Some(errno) = &file.errno
        && let Err((what, cure)) = value::errno(errno.get_ref())
    {
        problems.push(Problem::new(errno.span(), what, cure));
    }
    let asked = shlex::split(file.request.get_ref())
        .ok_or_else(|| "a quotation mark is not closed".to_owned())
        .and_then(|words| Asked::parse(&words))
        .map_err(|what| problems.push(Problem::new(file.request.span(), what, "")))
        .ok()?;
    Some(Case {
        name: file.name,
        asked,
        state,
        expected: Said {
            verdict: match file.expect {
                Expect::Allow => Decision::Allow,
                Expect::WouldDeny => Decision::WouldDeny,
                Expect::Deny => Decision::Deny,
            }
            .name(),
            rule: file.rule.map(Spanned::into_inner),
            errno: file.errno.map(Spanned::into_inner),
        },
    })
}

impl Case {
    /// Asks a policy.
    #[must_use]
    pub fn run(&self, compiled: &Compiled, names: &Names) -> Tried {
        let request = self.asked.request(names);
        let verdict = evaluate(&compiled.policy, &request, &self.state.with(&self.asked));
        let actual = Said {
            verdict: verdict.decision.name(),
            rule: number(verdict).map(|number| compiled.rules[number].name.clone()),
            errno: errno(verdict, &compiled.policy),
        };
        let expected = &self.expected;
        let ok = expected.verdict == actual.verdict
            && (expected.rule.is_none() || expected.rule == actual.rule)
            && (expected.errno.is_none() || expected.errno == actual.errno);
        Tried {
            name: self.name.clone(),
            expected: expected.clone(),
            actual,
            ok,
        }
    }
}
