//! What of the dashboard's file is drawn: its panels with their places, queries, units and limits.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::failure::{Doing, Outcome};
use crate::repository;

/// The dashboard of the chart.
pub const FILE: &str = "charts/auto-unseal-operator/files/dashboard.json";

/// The columns of Grafana's grid.
pub const COLUMNS: f64 = 24.0;

/// The dashboard.
#[derive(Debug)]
pub struct Dashboard {
    /// In the order of the file.
    pub panels: Vec<Panel>,
    /// What stands for each variable as the dashboard opens.
    variables: BTreeMap<String, String>,
}

/// How a panel shows its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The last value of each series, large.
    Stat,
    /// Lines over time.
    Lines,
    /// Labels and values of now, in rows.
    Table,
}

/// Where a panel lies, in units of the grid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Place {
    /// From the left.
    pub x: f64,
    /// From the top.
    pub y: f64,
    /// Width.
    pub w: f64,
    /// Height.
    pub h: f64,
}

/// What values are counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// In nothing.
    Number,
    /// In seconds.
    Seconds,
    /// In something a second.
    Rate(&'static str),
}

/// One panel.
#[derive(Debug)]
pub struct Panel {
    /// Its title.
    pub title: String,
    /// What it is.
    pub kind: Kind,
    /// Where it is.
    pub place: Place,
    /// What it counts in.
    pub unit: Unit,
    /// Colours by the value from which on they hold, the lowest first.
    pub steps: Vec<(f64, String)>,
    /// A stat that names its series even when there is only one.
    pub names: bool,
    /// What it asks.
    pub queries: Vec<Query>,
    /// What a table makes of the answers.
    pub columns: Columns,
}

/// One query of a panel.
#[derive(Debug)]
pub struct Query {
    /// Tells it from the others of its panel.
    pub letter: String,
    expression: String,
    /// What a series is called, with labels in braces.
    pub legend: String,
}

/// Columns of a table.
#[derive(Debug, Default)]
pub struct Columns {
    /// Not shown.
    pub hidden: BTreeSet<String>,
    /// Shown under another name.
    pub names: BTreeMap<String, String>,
    /// Which comes first.
    pub order: BTreeMap<String, u64>,
}

impl Dashboard {
    /// The one of this repository.
    pub fn of_the_chart() -> Outcome<Self> {
        let bytes = repository::read(&repository::root().join(FILE))?;
        Self::parse(&String::from_utf8_lossy(&bytes))
    }

    /// Reads a dashboard. What would be drawn otherwise than Grafana draws it is an error.
    pub fn parse(text: &str) -> Outcome<Self> {
        let file: Value = serde_json::from_str(text).doing("read the dashboard")?;
        let panels = list(&file["panels"]).iter().map(panel).collect::<Outcome<_>>()?;
        let variables = list(&file["templating"]["list"])
            .iter()
            .filter(|variable| variable["current"]["value"] == "$__all")
            .map(|variable| (text_of(&variable["name"]), text_of(&variable["allValue"])))
            .collect();
        Ok(Self { panels, variables })
    }

    /// The expression that Grafana sends for a query.
    pub fn expression(&self, query: &Query, rate_interval: f64) -> Outcome<String> {
        let mut sent = query
            .expression
            .replace("$__rate_interval", &format!("{rate_interval}s"));
        for (name, value) in &self.variables {
            sent = sent.replace(&format!("${name}"), value);
        }
        if sent.contains('$') {
            return Err(format!("nothing is known of a variable in the query `{sent}`.").into());
        }
        Ok(sent)
    }

    /// A checksum of all that a picture of it depends on.
    pub fn fingerprint(&self) -> String {
        let mut parts = Vec::new();
        for (name, value) in &self.variables {
            parts.extend([name.clone(), value.clone()]);
        }
        for panel in &self.panels {
            let Place { x, y, w, h } = panel.place;
            parts.push(panel.title.clone());
            parts.push(format!(
                "{:?} {:?} {} {x} {y} {w} {h}",
                panel.kind, panel.unit, panel.names
            ));
            for (from, colour) in &panel.steps {
                parts.push(format!("{from} {colour}"));
            }
            for query in &panel.queries {
                parts.extend([
                    query.letter.clone(),
                    query.expression.clone(),
                    query.legend.clone(),
                ]);
            }
            parts.extend(panel.columns.hidden.iter().cloned());
            for (name, shown) in &panel.columns.names {
                parts.extend([name.clone(), shown.clone()]);
            }
            for (name, place) in &panel.columns.order {
                parts.push(format!("{name} {place}"));
            }
        }
        let parts: Vec<&[u8]> = parts.iter().map(String::as_bytes).collect();
        repository::checksum(&parts)
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text_of(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn panel(panel: &Value) -> Outcome<Panel> {
    let title = text_of(&panel["title"]);
    let kind = match panel["type"].as_str().unwrap_or_default() {
        "stat" => Kind::Stat,
        "timeseries" => Kind::Lines,
        "table" => Kind::Table,
        other => return Err(format!("panel `{title}` is a `{other}`, which no picture shows yet.").into()),
    };
    let defaults = &panel["fieldConfig"]["defaults"];
    let unit = match defaults["unit"].as_str().unwrap_or_default() {
        "" => Unit::Number,
        "s" => Unit::Seconds,
        "reqps" => Unit::Rate("req/s"),
        "ops" => Unit::Rate("ops/s"),
        other => {
            return Err(format!("panel `{title}` counts in `{other}`, which no picture shows yet.").into());
        }
    };
    let side = |name: &str| {
        panel["gridPos"][name]
            .as_f64()
            .ok_or_else(|| format!("panel `{title}` has no {name} in its gridPos"))
    };
    let place = Place {
        x: side("x")?,
        y: side("y")?,
        w: side("w")?,
        h: side("h")?,
    };
    let queries: Vec<Query> = list(&panel["targets"])
        .iter()
        .map(|target| Query {
            letter: text_of(&target["refId"]),
            expression: text_of(&target["expr"]),
            legend: text_of(&target["legendFormat"]),
        })
        .collect();
    Ok(Panel {
        kind,
        place,
        unit,
        steps: steps(&defaults["thresholds"]["steps"]),
        names: panel["options"]["textMode"] == "value_and_name",
        columns: columns(&title, kind, queries.len(), &panel["transformations"])?,
        queries,
        title,
    })
}

/// Colours of a panel; Grafana has some for those that name none.
fn steps(given: &Value) -> Vec<(f64, String)> {
    if list(given).is_empty() {
        return vec![(f64::NEG_INFINITY, "green".to_owned()), (80.0, "red".to_owned())];
    }
    let step = |step: &Value| {
        let from = step["value"].as_f64().unwrap_or(f64::NEG_INFINITY);
        (from, text_of(&step["color"]))
    };
    list(given).iter().map(step).collect()
}

fn columns(title: &str, kind: Kind, queries: usize, transformations: &Value) -> Outcome<Columns> {
    let mut columns = Columns::default();
    let mut merged = false;
    for transformation in list(transformations) {
        let options = &transformation["options"];
        let entries = |name: &str| options[name].as_object().into_iter().flatten();
        match transformation["id"].as_str().unwrap_or_default() {
            "merge" => merged = true,
            "organize" => {
                let hidden = entries("excludeByName").filter(|(_, hides)| **hides == true);
                columns.hidden = hidden.map(|(name, _)| name.clone()).collect();
                columns.names = entries("renameByName")
                    .map(|(name, shown)| (name.clone(), text_of(shown)))
                    .collect();
                columns.order = entries("indexByName")
                    .filter_map(|(name, place)| Some((name.clone(), place.as_u64()?)))
                    .collect();
            }
            other => {
                return Err(format!("panel `{title}` does `{other}`, which no picture shows yet.").into());
            }
        }
    }
    if kind == Kind::Table && queries > 1 && !merged {
        return Err(format!("panel `{title}` shows only the first of its queries: merge them.").into());
    }
    if kind == Kind::Table && !columns.hidden.contains("Time") {
        return Err(format!("panel `{title}` shows when it was asked: exclude Time.").into());
    }
    Ok(columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(panel: &str) -> Outcome<Dashboard> {
        let place = r#""gridPos": {"x": 0, "y": 4, "w": 12, "h": 8}"#;
        Dashboard::parse(&format!(
            r#"{{"templating": {{"list": [{{"name": "source"}},
                {{"name": "namespace", "allValue": ".*", "current": {{"value": "$__all"}}}}]}},
                "panels": [{{"title": "One", {place}, {panel}}}]}}"#
        ))
    }

    #[test]
    fn variables_are_replaced_as_grafana_does_and_none_is_left() {
        let sent = |expression: &str| {
            let target = format!(r#""type": "stat", "targets": [{{"refId": "A", "expr": "{expression}"}}]"#);
            let dashboard = with(&target).unwrap();
            dashboard.expression(&dashboard.panels[0].queries[0], 8.0).ok()
        };
        let expected = Some("rate(x{n=~'.*'}[8s])".to_owned());
        assert_eq!(sent("rate(x{n=~'$namespace'}[$__rate_interval])"), expected);
        assert_eq!(sent("x{source='$source'}"), None);
    }

    #[test]
    fn what_cannot_be_drawn_rightly_is_refused() {
        let organize = r#"{"id": "organize", "options": {"excludeByName": {"Time": true}}}"#;
        let table = |transformations: &str| {
            format!(r#""type": "table", "targets": [{{}}, {{}}], "transformations": [{transformations}]"#)
        };
        let fine = table(&format!(r#"{{"id": "merge"}}, {organize}"#));
        assert!(with(&fine).is_ok());
        for panel in [
            r#""type": "gauge""#,
            r#""type": "stat", "fieldConfig": {"defaults": {"unit": "bytes"}}"#,
            r#""type": "stat", "transformations": [{"id": "reduce"}]"#,
            &table(organize),
            &table(r#"{"id": "merge"}"#),
        ] {
            assert!(with(panel).is_err(), "{panel}");
        }
    }

    #[test]
    fn limits_that_nobody_set_are_grafanas() {
        let steps = |panel: &str| with(panel).unwrap().panels.remove(0).steps;
        assert_eq!(steps(r#""type": "stat""#)[1], (80.0, "red".to_owned()));
        let own = r#""type": "stat", "fieldConfig": {"defaults": {"thresholds": {"steps": [{"color": "blue", "value": null}]}}}"#;
        assert_eq!(steps(own), [(f64::NEG_INFINITY, "blue".to_owned())]);
    }

    #[test]
    fn the_fingerprint_changes_with_whatever_is_drawn() {
        let of = |panel: &str| with(panel).unwrap().fingerprint();
        let panels = [
            r#""type": "stat""#,
            r#""type": "timeseries""#,
            r#""type": "stat", "fieldConfig": {"defaults": {"unit": "s"}}"#,
            r#""type": "stat", "targets": [{"expr": "a"}]"#,
            r#""type": "stat", "targets": [{"expr": "b"}]"#,
            r#""type": "stat", "targets": [{"legendFormat": "b"}]"#,
            r#""type": "stat", "title": "Other""#,
            r#""type": "stat", "options": {"textMode": "value_and_name"}"#,
            r#""type": "stat", "transformations": [{"id": "organize", "options": {"renameByName": {"a": "b"}}}]"#,
        ];
        let all: BTreeSet<String> = panels.iter().map(|panel| of(panel)).collect();
        assert_eq!(all.len(), panels.len());
        assert_eq!(
            of(panels[0]),
            of(r#""type": "stat", "description": "Says more.""#)
        );
    }
}
