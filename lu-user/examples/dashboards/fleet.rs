//! All hosts: the wave, the blackouts, who is stuck, what is lost.

use lu_user::metrics::catalogue as the;

use crate::grafana::{Board, Look, Panel, panel};
use crate::of;

const JOB: &str = "job=~\"$job\"";

/// The kernel that a host runs, as another label of its series.
const BY_RELEASE: &str = "* on (job, instance) group_left (release) lu_kernel_info";

#[expect(clippy::too_many_lines, reason = "a list of panels")]
pub fn board() -> Board {
    let phase = of(&the::UPDATE_PHASE, JOB);
    let last = of(&the::LAST_BLACKOUT, JOB);
    let quantile = |q: &str| format!("quantile by (release) ({q}, ({last} >= 0) {BY_RELEASE})");
    Board {
        name: "fleet",
        title: "lu: fleet",
        about: "A wave of live updates: how far it is, how dark it was, who is stuck.",
        of_one_host: false,
        panels: vec![
            panel(
                Look::Stat,
                "Hosts",
                "none",
                "Hosts on which lu runs, by its version.",
                format!("count by (version) ({})", of(&the::BUILD, JOB)),
                "{{version}}",
            ),
            panel(
                Look::Stack,
                "Hosts in a live update",
                "none",
                "By the phase that they are in.",
                format!("sum by (phase) ({phase})"),
                "{{phase}}",
            ),
            panel(
                Look::Stat,
                "Live updates that ended",
                "none",
                "In the time shown, by how.",
                format!(
                    "sum by (outcome) (increase({}[$__range]))",
                    of(&the::UPDATES, JOB)
                ),
                "{{outcome}}",
            ),
            Panel {
                title: "Blackout by kernel",
                about: "Each host's last blackout; by the kernel that it runs now.",
                look: Look::Lines,
                unit: "s",
                queries: vec![
                    (quantile("0.5"), "median {{release}}"),
                    (quantile("0.9"), "90 % {{release}}"),
                    (quantile("0.99"), "99 % {{release}}"),
                ],
            },
            panel(
                Look::Heat,
                "Blackouts",
                "s",
                "How many live updates were dark for how long.",
                format!(
                    "sum by (le) (increase({}[$__rate_interval]))",
                    of(&the::BLACKOUT, JOB)
                ),
                "{{le}}",
            ),
            panel(
                Look::Table,
                "The longest blackouts",
                "s",
                "Each host's last one.",
                format!("topk(20, {last} >= 0)"),
                "{{instance}}",
            ),
            panel(
                Look::Lines,
                "Hosts stuck in a phase",
                "none",
                "In the same phase for the last ten minutes.",
                format!("sum by (phase) (min_over_time({phase}[10m]))"),
                "{{phase}}",
            ),
            panel(
                Look::Lines,
                "Median time of each phase",
                "s",
                "Of each host's newest live update.",
                format!(
                    "quantile by (phase) (0.5, {} >= 0)",
                    of(&the::UPDATE_PHASE_TIME, JOB)
                ),
                "{{phase}}",
            ),
            panel(
                Look::Stat,
                "Files",
                "none",
                "What became of them, in the time shown.",
                format!(
                    "sum by (outcome) (increase({}[$__range]))",
                    of(&the::FILES, JOB)
                ),
                "{{outcome}}",
            ),
            panel(
                Look::Stat,
                "Sessions",
                "none",
                "What became of them, in the time shown.",
                format!(
                    "sum by (outcome) (increase({}[$__range]))",
                    of(&the::SESSIONS, JOB)
                ),
                "{{outcome}}",
            ),
            panel(
                Look::Lines,
                "Events lost",
                "cps",
                "Numbers that rest on lossy hosts are lower bounds.",
                format!(
                    "sum by (reason) (rate({}[$__rate_interval]))",
                    of(&the::EVENTS_LOST, JOB)
                ),
                "{{reason}}",
            ),
            panel(
                Look::Stack,
                "What policies do",
                "none",
                "Hosts by the mode of their policy.",
                format!("sum by (mode) ({})", of(&the::POLICY_MODE, JOB)),
                "{{mode}}",
            ),
        ],
    }
}
