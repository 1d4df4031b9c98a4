//! Grafana's JSON.

use serde_json::{Value, json};

/// A dashboard.
pub struct Board {
    /// Of its file, and its uid.
    pub name: &'static str,
    pub title: &'static str,
    pub about: &'static str,
    /// Whether one host is chosen.
    pub of_one_host: bool,
    pub panels: Vec<Panel>,
}

/// How a panel is drawn.
#[derive(Clone, Copy)]
pub enum Look {
    /// Lines over time.
    Lines,
    /// Areas over time, one on the other.
    Stack,
    /// Numbers.
    Stat,
    /// A bar for each series.
    Bars,
    /// Colours for a histogram's buckets over time.
    Heat,
    /// A row for each series.
    Table,
}

/// A panel.
pub struct Panel {
    pub title: &'static str,
    pub about: &'static str,
    pub look: Look,
    /// As Grafana calls it.
    pub unit: &'static str,
    /// Each with what its series are called.
    pub queries: Vec<(String, &'static str)>,
}

/// A panel with one query.
pub fn panel(
    look: Look,
    title: &'static str,
    unit: &'static str,
    about: &'static str,
    query: String,
    legend: &'static str,
) -> Panel {
    Panel {
        title,
        about,
        look,
        unit,
        queries: vec![(query, legend)],
    }
}

/// Grafana's grid has 24 columns; three panels go in a row.
const WIDTH: usize = 8;
const HEIGHT: usize = 8;
const COLUMNS: usize = 3;

impl Board {
    /// As it is imported.
    pub fn json(&self) -> Value {
        let panels = self.panels.iter().enumerate();
        let panels: Vec<_> = panels.map(|(number, panel)| panel.json(number)).collect();
        let mut variables = vec![
            json!({"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"}),
            variable("job", "label_values(lu_build_info, job)", true),
        ];
        if self.of_one_host {
            variables.push(variable(
                "instance",
                "label_values(lu_build_info{job=~\"$job\"}, instance)",
                false,
            ));
        }
        json!({
            "uid": format!("lu-{}", self.name),
            "title": self.title,
            "description": self.about,
            "tags": ["lu", "live update"],
            "schemaVersion": 39,
            "editable": true,
            "refresh": "30s",
            "time": {"from": "now-6h", "to": "now"},
            "templating": {"list": variables},
            "panels": panels,
        })
    }
}

fn variable(name: &str, query: &str, many: bool) -> Value {
    json!({
        "name": name,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "multi": many,
        "includeAll": many,
        "current": if many { json!({"text": "All", "value": "$__all"}) } else { json!({}) },
    })
}

impl Panel {
    fn json(&self, number: usize) -> Value {
        let (kind, format) = match self.look {
            Look::Lines | Look::Stack => ("timeseries", "time_series"),
            Look::Stat => ("stat", "time_series"),
            Look::Bars => ("bargauge", "time_series"),
            Look::Heat => ("heatmap", "heatmap"),
            Look::Table => ("table", "table"),
        };
        let instant = matches!(self.look, Look::Bars | Look::Table);
        let targets = self.queries.iter().zip('A'..).map(|((query, legend), id)| {
            json!({
                "refId": id.to_string(),
                "expr": query,
                "legendFormat": legend,
                "format": format,
                "instant": instant,
                "range": !instant,
            })
        });
        let stacking = match self.look {
            Look::Stack => json!({"fillOpacity": 30, "stacking": {"mode": "normal"}}),
            _ => json!({}),
        };
        json!({
            "id": number + 1,
            "type": kind,
            "title": self.title,
            "description": self.about,
            "datasource": {"type": "prometheus", "uid": "${datasource}"},
            "gridPos": {
                "x": number % COLUMNS * WIDTH,
                "y": number / COLUMNS * HEIGHT,
                "w": WIDTH,
                "h": HEIGHT,
            },
            "fieldConfig": {"defaults": {"unit": self.unit, "custom": stacking}, "overrides": []},
            "targets": targets.collect::<Vec<_>>(),
        })
    }
}
