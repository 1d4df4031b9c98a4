//! Prometheus' rules. JSON's strings are YAML's too.

use std::fmt::Write as _;

use lu_user::metrics::catalogue as the;

use crate::of;

/// What a blackout may take, in seconds, unless somebody changes the rule.
const BUDGET: u32 = 5;

/// A rule that keeps the result of a query.
struct Record {
    name: &'static str,
    query: String,
}

struct Alert {
    name: &'static str,
    query: String,
    lasts: &'static str,
    severity: &'static str,
    summary: &'static str,
    description: &'static str,
}

const BY_RELEASE: &str = "* on (job, instance) group_left (release) lu_kernel_info";

fn records() -> Vec<Record> {
    let record = |name, query| Record { name, query };
    let last = the::LAST_BLACKOUT.series();
    let quantile =
        |q: &str| format!("quantile by (job, release) ({q}, ({last} >= 0) {BY_RELEASE})");
    vec![
        record(
            "lu:hosts:count",
            format!("count by (job) ({})", the::BUILD.series()),
        ),
        record(
            "lu:update_phase:hosts",
            format!("sum by (job, phase) ({})", the::UPDATE_PHASE.series()),
        ),
        record(
            "lu:update_under_way:max",
            format!("max by (job, instance) ({})", the::UPDATE_PHASE.series()),
        ),
        record("lu:last_blackout_seconds:p50", quantile("0.5")),
        record("lu:last_blackout_seconds:p90", quantile("0.9")),
        record("lu:last_blackout_seconds:p99", quantile("0.99")),
        record(
            "lu:phase_seconds:p50",
            format!(
                "quantile by (job, phase) (0.5, {} >= 0)",
                the::UPDATE_PHASE_TIME.series()
            ),
        ),
        record("lu:blackout_budget_seconds", format!("vector({BUDGET})")),
        record(
            "lu:updates:increase1d",
            format!(
                "sum by (job, outcome) (increase({}[1d]))",
                the::UPDATES.series()
            ),
        ),
        record(
            "lu:events_lost:rate5m",
            format!(
                "sum by (job, instance, reason) (rate({}[5m]))",
                the::EVENTS_LOST.series()
            ),
        ),
    ]
}

fn alerts() -> Vec<Alert> {
    let wanted = of(&the::POLICY_WANTED, "mode=\"enforce\"");
    let enforced = of(&the::POLICY_MODE, "mode=\"enforce\"");
    let required = of(
        &the::POLICY_MODE,
        "mode=\"enforce\",enforcement=\"required\"",
    );
    vec![
        Alert {
            name: "LuUpdateStuck",
            query: format!("{} == 1", of(&the::UPDATE_PHASE, "phase!=\"preserve\"")),
            lasts: "10m",
            severity: "page",
            summary: "The live update of {{ $labels.instance }} is stuck in {{ $labels.phase }}",
            description: "It has been in that phase for ten minutes.",
        },
        Alert {
            name: "LuBlackoutOverBudget",
            query: format!(
                "{} > on () group_left () lu:blackout_budget_seconds",
                the::LAST_BLACKOUT.series()
            ),
            lasts: "0s",
            severity: "ticket",
            summary: "{{ $labels.instance }} was dark for {{ $value | humanizeDuration }}",
            description: "That is more than lu:blackout_budget_seconds allows.",
        },
        Alert {
            name: "LuFilesNotRestored",
            query: format!(
                "sum by (job, instance, outcome) ({}) > 0",
                of(&the::UPDATE_FILES, "outcome=~\"unclaimed|failed|lost\"")
            ),
            lasts: "0s",
            severity: "page",
            summary: "{{ $value }} files of {{ $labels.instance }} are {{ $labels.outcome }}",
            description: "They were preserved for the newest live update and were not given out in the new kernel.",
        },
        Alert {
            name: "LuZombieSession",
            query: format!("{} > 0", of(&the::UPDATE_SESSIONS, "outcome=\"stranded\"")),
            lasts: "0s",
            severity: "page",
            summary: "{{ $value }} sessions of {{ $labels.instance }} are out of reach",
            description: "They were closed in the new kernel before they could finish; their memory is held until the next kexec.",
        },
        Alert {
            name: "LuFreezeFailed",
            query: format!(
                "increase({}[15m]) > 0",
                of(&the::FREEZES, "result=\"failed\"")
            ),
            lasts: "0s",
            severity: "page",
            summary: "A freeze on {{ $labels.instance }} failed",
            description: "The kexec was called off, and the old kernel goes on.",
        },
        Alert {
            name: "LuEventsLost",
            query: format!(
                "sum by (job, instance) (increase({}[15m])) > 0",
                of(&the::EVENTS_LOST, "reason!=\"unread\"")
            ),
            lasts: "0s",
            severity: "ticket",
            summary: "lu on {{ $labels.instance }} has lost events",
            description: "What it tells of this time is a lower bound.",
        },
        Alert {
            name: "LuEnforcementOff",
            query: format!("({wanted} == 1 unless {enforced} == 1) or {required} == 0"),
            lasts: "1m",
            severity: "page",
            summary: "No policy is enforced on {{ $labels.instance }}, and one should be",
            description: "The policy's file has enforced rules, or the target has the label enforcement=required.",
        },
        Alert {
            name: "LuSilentInUpdate",
            query:
                "up == 0 and on (job, instance) last_over_time(lu:update_under_way:max[1h]) == 1"
                    .to_owned(),
            lasts: "5m",
            severity: "page",
            summary: "{{ $labels.instance }} went into a live update and has not been heard of since",
            description: "lu answered while the update was under way, and has not for five minutes.",
        },
    ]
}

/// `rules.yml`.
pub fn yaml() -> String {
    let mut text = String::from(
        "# Generated by `cargo xtask dashboards`; docs/runbook.md has a section for each alert.\n\
         groups:\n  - name: lu\n    rules:\n",
    );
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    // Writing to a String does not fail.
    for Record { name, query } in records() {
        let _ = writeln!(
            text,
            "      - record: {name}\n        expr: {}",
            quoted(&query)
        );
    }
    text.push_str("  - name: lu-alerts\n    rules:\n");
    for alert in alerts() {
        let runbook = format!("docs/runbook.md#{}", alert.name.to_lowercase());
        let _ = writeln!(
            text,
            "      - alert: {}\n        expr: {}\n        for: {}\n        labels:\n          severity: {}\n        \
             annotations:\n          summary: {}\n          description: {}\n          runbook: {}",
            alert.name,
            quoted(&alert.query),
            alert.lasts,
            alert.severity,
            quoted(alert.summary),
            quoted(alert.description),
            quoted(&runbook),
        );
    }
    text
}
