//! One host, and its newest live update as a whole.

use lu_user::metrics::catalogue as the;

use crate::grafana::{Board, Look, Panel, panel};
use crate::of;

const HOST: &str = "job=~\"$job\",instance=~\"$instance\"";

#[expect(clippy::too_many_lines, reason = "a list of panels")]
pub fn board() -> Board {
    let failed = format!("{HOST},errno!=\"none\"");
    let duration = |q: &str| {
        let buckets = of(&the::OPERATION_DURATION, HOST);
        format!("histogram_quantile({q}, sum by (le, operation) (increase({buckets}[$__range])))")
    };
    Board {
        name: "host",
        title: "lu: host",
        about: "One host: its newest live update from the first preserve to FINISH, and lu itself.",
        of_one_host: true,
        panels: vec![
            panel(
                Look::Stat,
                "Live update",
                "none",
                "The number of the newest.",
                of(&the::UPDATE_NUMBER, HOST),
                "number",
            ),
            panel(
                Look::Stack,
                "Phase",
                "none",
                "The phase that it is in; nothing where none is under way.",
                of(&the::UPDATE_PHASE, HOST),
                "{{phase}}",
            ),
            panel(
                Look::Stat,
                "Live updates that ended",
                "none",
                "In the time shown, by how.",
                format!("increase({}[$__range])", of(&the::UPDATES, HOST)),
                "{{outcome}}",
            ),
            Panel {
                title: "Blackout",
                about: "Of the newest live update, and what that may be off by.",
                look: Look::Stat,
                unit: "s",
                queries: vec![
                    (of(&the::LAST_BLACKOUT, HOST), "blackout"),
                    (of(&the::LAST_BLACKOUT_UNCERTAINTY, HOST), "uncertainty"),
                ],
            },
            Panel {
                title: "What the blackout rests on",
                about: "The clock that told it, and whether events were lost.",
                look: Look::Stat,
                unit: "none",
                queries: vec![
                    (of(&the::LAST_BLACKOUT_CLOCK, HOST), "{{clock}}"),
                    (of(&the::LAST_BLACKOUT_LOSSY, HOST), "lossy"),
                ],
            },
            panel(
                Look::Bars,
                "Phases",
                "s",
                "How long each took; what is unknown is left out.",
                format!("{} >= 0", of(&the::UPDATE_PHASE_TIME, HOST)),
                "{{phase}}",
            ),
            panel(
                Look::Bars,
                "Files",
                "none",
                "Of the newest live update.",
                format!("{} > 0", of(&the::UPDATE_FILES, HOST)),
                "{{kind}} {{outcome}}",
            ),
            panel(
                Look::Bars,
                "Bytes",
                "bytes",
                "The size of these files.",
                format!("{} > 0", of(&the::UPDATE_BYTES, HOST)),
                "{{kind}} {{outcome}}",
            ),
            panel(
                Look::Bars,
                "Sessions",
                "none",
                "Of the newest live update; those of v3 have no outcome.",
                of(&the::UPDATE_SESSIONS, HOST),
                "{{outcome}}",
            ),
            panel(
                Look::Lines,
                "Calls",
                "cps",
                "System calls on the orchestrator.",
                format!(
                    "sum by (operation) (rate({}[$__rate_interval]))",
                    of(&the::OPERATIONS, HOST)
                ),
                "{{operation}}",
            ),
            panel(
                Look::Lines,
                "Calls that failed",
                "cps",
                "By their errno.",
                format!(
                    "sum by (operation, errno) (rate({}[$__rate_interval]))",
                    of(&the::OPERATIONS, &failed)
                ),
                "{{operation}} {{errno}}",
            ),
            Panel {
                title: "Latency of calls",
                about: "In the time shown.",
                look: Look::Lines,
                unit: "s",
                queries: vec![
                    (duration("0.5"), "median {{operation}}"),
                    (duration("0.99"), "99 % {{operation}}"),
                ],
            },
            panel(
                Look::Lines,
                "Time in calls",
                "percentunit",
                "By their errno.",
                format!(
                    "sum by (errno) (rate({}[$__rate_interval]))",
                    of(&the::OPERATION_TIME, HOST)
                ),
                "{{errno}}",
            ),
            panel(
                Look::Stat,
                "Freezes",
                "none",
                "In the time shown.",
                format!("increase({}[$__range])", of(&the::FREEZES, HOST)),
                "{{result}}",
            ),
            panel(
                Look::Bars,
                "Time of phases, all updates",
                "s",
                "The mean, as long as this lu has run.",
                format!(
                    "{0}_sum{{{HOST}}} / ({0}_count{{{HOST}}} > 0)",
                    the::PHASE_DURATION.name
                ),
                "{{phase}}",
            ),
            panel(
                Look::Lines,
                "Events",
                "cps",
                "By what happened.",
                format!("rate({}[$__rate_interval])", of(&the::EVENTS, HOST)),
                "{{event}}",
            ),
            panel(
                Look::Lines,
                "Events lost",
                "cps",
                "By why.",
                format!("rate({}[$__rate_interval])", of(&the::EVENTS_LOST, HOST)),
                "{{reason}}",
            ),
            Panel {
                title: "Hooks",
                about: "Hooks that are attached, and those that lu wants and could not attach.",
                look: Look::Stat,
                unit: "none",
                queries: vec![
                    (
                        format!("sum({} == 1)", of(&the::HOOK_ATTACHED, HOST)),
                        "attached",
                    ),
                    (of(&the::HOOKS_MISSING, HOST), "missing"),
                ],
            },
            panel(
                Look::Stat,
                "Orchestrators",
                "none",
                "Those that run.",
                of(&the::ORCHESTRATORS_RUNNING, HOST),
                "{{orchestrator}}",
            ),
            panel(
                Look::Lines,
                "Lag of the journal",
                "s",
                "How old an event is when it is in the journal.",
                of(&the::RECORDER_LAG, HOST),
                "lag",
            ),
            Panel {
                title: "Since the collector came round, and since lu started",
                about: "A loop that stands still collects nothing.",
                look: Look::Stat,
                unit: "s",
                queries: vec![
                    (
                        format!("time() - {}", of(&the::LAST_TURN, HOST)),
                        "came round",
                    ),
                    (format!("time() - {}", of(&the::START, HOST)), "started"),
                ],
            },
            panel(
                Look::Lines,
                "Problems",
                "none",
                "What went wrong and is no reason to stop.",
                format!("increase({}[$__range])", of(&the::PROBLEMS, HOST)),
                "problems",
            ),
            panel(
                Look::Lines,
                "Journal",
                "bytes",
                "Its files, the history among them.",
                of(&the::JOURNAL_BYTES, HOST),
                "size",
            ),
            panel(
                Look::Lines,
                "lu's CPU",
                "percentunit",
                "Of one CPU.",
                format!("rate({}[$__rate_interval])", of(&the::CPU, HOST)),
                "CPU",
            ),
            panel(
                Look::Lines,
                "lu's memory",
                "bytes",
                "Resident.",
                of(&the::MEMORY, HOST),
                "resident",
            ),
            panel(
                Look::Lines,
                "lu's open files",
                "none",
                "Descriptors.",
                of(&the::OPEN_FILES, HOST),
                "open",
            ),
            Panel {
                title: "Scrapes",
                about: "By format, and connections that found no room.",
                look: Look::Lines,
                unit: "cps",
                queries: vec![
                    (
                        format!("rate({}[$__rate_interval])", of(&the::SCRAPES, HOST)),
                        "{{format}}",
                    ),
                    (
                        format!("rate({}[$__rate_interval])", of(&the::REFUSED, HOST)),
                        "refused",
                    ),
                ],
            },
        ],
    }
}
