//! Policies: what they say, and whether they are in force.

use lu_user::metrics::catalogue as the;

use crate::grafana::{Board, Look, Panel, panel};
use crate::of;

const JOB: &str = "job=~\"$job\"";

#[expect(clippy::too_many_lines, reason = "a list of panels")]
pub fn board() -> Board {
    let verdicts = of(&the::VERDICTS, JOB);
    Board {
        name: "policy",
        title: "lu: policy",
        about: "What policies refuse, or would refuse, and whether they are in force.",
        of_one_host: false,
        panels: vec![
            Panel {
                title: "Hosts by mode",
                about: "What is in force, and what the policies' files want to be.",
                look: Look::Lines,
                unit: "none",
                queries: vec![
                    (
                        format!("sum by (mode) ({})", of(&the::POLICY_MODE, JOB)),
                        "{{mode}}",
                    ),
                    (
                        format!("sum by (mode) ({})", of(&the::POLICY_WANTED, JOB)),
                        "wanted: {{mode}}",
                    ),
                ],
            },
            panel(
                Look::Lines,
                "Verdicts",
                "cps",
                "What is no plain allow.",
                format!("sum by (decision) (rate({verdicts}[$__rate_interval]))"),
                "{{decision}}",
            ),
            panel(
                Look::Bars,
                "Rules",
                "none",
                "How often each decided, in the time shown.",
                format!("sort_desc(sum by (rule, decision) (increase({verdicts}[$__range])))"),
                "{{rule}} {{decision}}",
            ),
            panel(
                Look::Lines,
                "What was asked for",
                "cps",
                "Verdicts by operation.",
                format!(
                    "sum by (operation, decision) (rate({}[$__rate_interval]))",
                    of(&the::JUDGED, JOB)
                ),
                "{{operation}} {{decision}}",
            ),
            panel(
                Look::Stat,
                "Tampered",
                "none",
                "Requests that got through and were not the ones that were judged, in the time shown.",
                format!("sum(increase({}[$__range]))", of(&the::TAMPERED, JOB)),
                "tampered",
            ),
            Panel {
                title: "Not told, not judged",
                about: "Verdicts that were lost, and requests that were let through unjudged, in the time shown.",
                look: Look::Stat,
                unit: "none",
                queries: vec![
                    (
                        format!("sum(increase({}[$__range]))", of(&the::VERDICTS_LOST, JOB)),
                        "lost",
                    ),
                    (
                        format!("sum(increase({}[$__range]))", of(&the::UNJUDGED, JOB)),
                        "unjudged",
                    ),
                ],
            },
            Panel {
                title: "Rules in force",
                about: "And those of them that are enforced.",
                look: Look::Lines,
                unit: "none",
                queries: vec![
                    (of(&the::POLICY_RULES, JOB), "{{instance}} rules"),
                    (
                        of(&the::POLICY_ENFORCED_RULES, JOB),
                        "{{instance}} enforced",
                    ),
                ],
            },
            panel(
                Look::Lines,
                "Generation",
                "none",
                "Counts the policies that were loaded on this kernel.",
                of(&the::POLICY_GENERATION, JOB),
                "{{instance}}",
            ),
            panel(
                Look::Stat,
                "Reloads",
                "none",
                "In the time shown.",
                format!(
                    "sum by (result) (increase({}[$__range]))",
                    of(&the::POLICY_RELOADS, JOB)
                ),
                "{{result}}",
            ),
        ],
    }
}
