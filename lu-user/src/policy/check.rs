//! What no rule shows alone: names that are there twice, rules that are never reached, too many of something.

use std::collections::{BTreeMap, BTreeSet};

use lu_common::event::Section;
use lu_common::policy::{CGROUPS, EXES, INTERVALS, LEVELS, NEEDS, PATTERNS, QUOTAS, RULES};
use toml::Spanned;

use super::error::Problem;
use super::source::{Conditions, Rule, Says};
use super::value::{Interval, Wrong};

pub(super) fn rules(rules: &[Rule]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut named: BTreeMap<&str, &Rule> = BTreeMap::new();
    for rule in rules {
        if let Some(first) = named.get(&*rule.name) {
            problems.push(Problem::new(
                rule.span.clone(),
                format!(
                    "there are two rules with the name \"{}\": the first is in line {}",
                    rule.name, first.line
                ),
                "give each rule a name of its own: verdicts are told by it",
            ));
        } else {
            named.insert(&rule.name, rule);
        }
    }
    maxima(rules, &mut problems);
    // Who has too many rules is told that first: looking at each pair would take long.
    if rules.len() <= RULES {
        problems.extend(rules.iter().enumerate().filter_map(|(at, rule)| {
            let first = rules[..at].iter().find(|earlier| hides(earlier, rule))?;
            Some(Problem::new(
                rule.span.clone(),
                format!(
                    "\"{}\" can never match: \"{}\" in line {} comes first, and matches all that it could",
                    rule.name, first.name, first.line
                ),
                "write it before that one, or leave it out",
            ))
        }));
    }
    problems
}

/// Too many of something.
fn maxima(rules: &[Rule], problems: &mut Vec<Problem>) {
    let mut seen = Maxima::default();
    for (at, rule) in rules.iter().enumerate() {
        let asked = &rule.conditions;
        seen.patterns
            .extend(asked.session.iter().map(ToString::to_string));
        seen.exes.extend(asked.exe.iter().map(Spanned::get_ref));
        seen.cgroups
            .extend(asked.cgroup.iter().map(Spanned::get_ref));
        for (set, intervals) in [
            (&mut seen.tokens, &asked.tokens),
            (&mut seen.bytes, &asked.bytes),
            (&mut seen.uids, &asked.uid),
            (&mut seen.gids, &asked.gid),
        ] {
            set.extend(starts(intervals));
        }
        match &rule.says {
            Says::Answer(_) => {}
            Says::Quota { .. } => seen.quotas += 1,
            Says::Tokens(_, tokens) => seen.needs += tokens.len(),
            Says::Files(..) | Says::Gate(_) => seen.needs += 1,
        }
        let over = [
            (at + 1, RULES, "rules"),
            (seen.quotas, QUOTAS, "quotas"),
            (
                seen.needs,
                NEEDS,
                "required tokens, counts and conditions of the gate",
            ),
            (
                seen.patterns.len(),
                PATTERNS,
                "different patterns of sessions",
            ),
            (seen.exes.len(), EXES, "different executables"),
            (seen.cgroups.len(), CGROUPS, "different cgroups"),
            (seen.tokens.len() + 1, INTERVALS, "intervals of tokens"),
            (seen.bytes.len() + 1, INTERVALS, "intervals of sizes"),
            (seen.uids.len() + 1, INTERVALS, "intervals of users"),
            (seen.gids.len() + 1, INTERVALS, "intervals of groups"),
        ]
        .into_iter()
        .find(|(count, most, _)| count > most);
        if let Some((_, most, what)) = over {
            problems.push(Problem::new(
                rule.span.clone(),
                format!("with \"{}\" the policy has over {most} {what}", rule.name),
                "take several together: rules can have lists, patterns and ranges",
            ));
            return;
        }
    }
}

#[derive(Default)]
struct Maxima<'a> {
    patterns: BTreeSet<String>,
    exes: BTreeSet<&'a String>,
    cgroups: BTreeSet<&'a String>,
    tokens: BTreeSet<u64>,
    bytes: BTreeSet<u64>,
    uids: BTreeSet<u64>,
    gids: BTreeSet<u64>,
    quotas: usize,
    needs: usize,
}

/// Where an interval of [`lu_common::policy::Ranges`] begins because of these, the first one at 0 left out.
pub(super) fn starts(intervals: &[Interval]) -> impl Iterator<Item = u64> {
    intervals
        .iter()
        .flat_map(|interval| [Some(interval.first), interval.last.checked_add(1)])
        .flatten()
        .filter(|start| *start != 0)
}

/// Whether `earlier` decides all that `rule` could decide.
fn hides(earlier: &Rule, rule: &Rule) -> bool {
    let is_first_match = |rule: &Rule| matches!(rule.section, Section::Access | Section::Preserve);
    let (wide, narrow) = (&earlier.conditions, &rule.conditions);
    is_first_match(rule)
        && earlier.section == rule.section
        && rule
            .operations
            .iter()
            .all(|operation| earlier.operations.contains(operation))
        && within(
            &wide.session,
            &narrow.session,
            super::value::Pattern::covers,
        )
        && within(&wide.kinds, &narrow.kinds, PartialEq::eq)
        && within(&wide.exe, &narrow.exe, |a, b| a.get_ref() == b.get_ref())
        && within(&wide.cgroup, &narrow.cgroup, |a, b| {
            is_below(a.get_ref(), b.get_ref())
        })
        && numbers_within(wide, narrow)
}

fn numbers_within(wide: &Conditions, narrow: &Conditions) -> bool {
    [
        (&wide.tokens, &narrow.tokens),
        (&wide.bytes, &narrow.bytes),
        (&wide.uid, &narrow.uid),
        (&wide.gid, &narrow.gid),
    ]
    .into_iter()
    .all(|(wide, narrow)| {
        within(&joined(wide), narrow, |wide, narrow| {
            wide.first <= narrow.first && narrow.last <= wide.last
        })
    })
}

/// Whether what meets one of `narrow` meets one of `wide`; no condition at all is met by everything.
fn within<T>(wide: &[T], narrow: &[T], covers: impl Fn(&T, &T) -> bool) -> bool {
    wide.is_empty()
        || (!narrow.is_empty()
            && narrow
                .iter()
                .all(|narrow| wide.iter().any(|wide| covers(wide, narrow))))
}

/// The same numbers in as few intervals as there can be, ascending.
fn joined(intervals: &[Interval]) -> Vec<Interval> {
    let mut sorted = intervals.to_vec();
    sorted.sort();
    let mut joined: Vec<Interval> = Vec::new();
    for next in sorted {
        match joined.last_mut() {
            Some(last) if next.first <= last.last.saturating_add(1) => {
                last.last = last.last.max(next.last);
            }
            _ => joined.push(next),
        }
    }
    joined
}

/// Whether a path can be a cgroup's.
pub(super) fn cgroup(path: &str) -> Result<(), Wrong> {
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    if !path.starts_with('/') || path.contains('\0') {
        Err((
            format!("`{}` is no path of a cgroup", path.escape_debug()),
            "write it from the root of the cgroups on, like /machine.slice".to_owned(),
        ))
    } else if path != "/" && parts.iter().any(|part| matches!(*part, "" | "." | "..")) {
        Err((
            format!("`{path}` is not how a cgroup is called"),
            "write it as /proc/PID/cgroup does: no / at the end, none twice, no . and .."
                .to_owned(),
        ))
    } else if path != "/" && parts.len() >= LEVELS {
        Err((
            format!(
                "this cgroup is at level {}, and cgroups are told apart down to {}",
                parts.len(),
                LEVELS - 1
            ),
            "name one above it".to_owned(),
        ))
    } else {
        Ok(())
    }
}

/// Whether a cgroup is `above`, or below it.
pub(super) fn is_below(above: &str, path: &str) -> bool {
    path.strip_prefix(above.trim_end_matches('/'))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
