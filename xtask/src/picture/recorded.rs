//! What Prometheus answered to the queries of the dashboard.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::dashboard::{Dashboard, Kind};
use crate::failure::Outcome;

/// How often the replicas are scraped, in seconds.
pub const SCRAPE: u32 = 2;

/// As many points as a panel has room for.
const POINTS: f64 = 400.0;

/// A run from its beginning to its end, in seconds of Unix time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Window {
    /// Its beginning.
    pub from: f64,
    /// Its end.
    pub to: f64,
}

impl Window {
    /// Seconds between two points, as Grafana chooses them: no closer than scrapes.
    pub fn step(self) -> f64 {
        f64::from(SCRAPE).max(((self.to - self.from) / POINTS).ceil())
    }

    /// What Grafana puts for `$__rate_interval`, in seconds.
    pub fn rate_interval(self) -> f64 {
        let scrape = f64::from(SCRAPE);
        (self.step() + scrape).max(4.0 * scrape)
    }
}

/// Labels, and a value at each time that has one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    /// Without the name of the metric.
    pub labels: BTreeMap<String, String>,
    /// Time and value.
    pub points: Vec<(f64, f64)>,
}

/// The answers of one run.
#[derive(Debug)]
pub struct Recorded {
    /// When it was.
    pub window: Window,
    /// By panel and query.
    pub answers: Vec<Vec<Vec<Series>>>,
}

/// Asks every query by `ask`, which takes a path with its query and gives Prometheus's answer; what is to be kept of it.
pub fn ask_all(
    dashboard: &Dashboard,
    window: Window,
    ask: impl Fn(&str, &[(&str, String)]) -> Outcome<Value>,
) -> Outcome<Value> {
    let mut answers = Vec::new();
    for panel in &dashboard.panels {
        let mut of_panel = Vec::new();
        for query in &panel.queries {
            let sent = dashboard.expression(query, window.rate_interval())?;
            of_panel.push(if panel.kind == Kind::Table {
                ask(
                    "/api/v1/query",
                    &[("query", sent), ("time", window.to.to_string())],
                )?
            } else {
                let range = [
                    ("query", sent),
                    ("start", window.from.to_string()),
                    ("end", window.to.to_string()),
                    ("step", window.step().to_string()),
                ];
                ask("/api/v1/query_range", &range)?
            });
        }
        answers.push(of_panel);
    }
    Ok(json!({
        "fingerprint": dashboard.fingerprint(), "from": window.from, "to": window.to, "answers": answers,
    }))
}

impl Recorded {
    /// Reads what [`ask_all`] gave, if it was asked for this dashboard.
    pub fn parse(dashboard: &Dashboard, kept: &Value) -> Outcome<Self> {
        if kept["fingerprint"] != dashboard.fingerprint() {
            return Err(
                "the dashboard has changed since its queries were asked. Run: cargo xtask picture".into(),
            );
        }
        let window = window(kept)?;
        let answers = items(&kept["answers"])
            .map(|of_panel| items(of_panel).map(series).collect::<Outcome<_>>())
            .collect::<Outcome<_>>()?;
        Ok(Self { window, answers })
    }
}

/// When a run was.
pub fn window(told: &Value) -> Outcome<Window> {
    let time = |name: &str| {
        told[name]
            .as_f64()
            .ok_or_else(|| format!("the run does not say `{name}`"))
    };
    Ok(Window {
        from: time("from")?,
        to: time("to")?,
    })
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// One answer of Prometheus, of a range or of a moment, sorted by labels.
fn series(answer: &Value) -> Outcome<Vec<Series>> {
    if answer["status"] != "success" {
        return Err(format!("Prometheus refused a query: {}", answer["error"]).into());
    }
    let point = |pair: &Value| Some((pair[0].as_f64()?, pair[1].as_str()?.parse().ok()?));
    let mut found: Vec<Series> = items(&answer["data"]["result"])
        .map(|one| Series {
            labels: one["metric"]
                .as_object()
                .into_iter()
                .flatten()
                .filter(|(name, _)| *name != "__name__")
                .map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned()))
                .collect(),
            points: items(&one["values"])
                .chain(one.get("value"))
                .filter_map(point)
                .collect(),
        })
        .collect();
    found.sort_by(|left, right| left.labels.cmp(&right.labels));
    Ok(found)
}

impl Series {
    /// What it is called: a legend with the labels' values in it.
    pub fn name(&self, legend: &str) -> String {
        let mut name = String::new();
        let mut rest = legend;
        while let Some((before, label, after)) = rest.split_once("{{").and_then(|(before, inside)| {
            let (label, after) = inside.split_once("}}")?;
            Some((before, label, after))
        }) {
            name.push_str(before);
            name.push_str(self.labels.get(label.trim()).map_or("", String::as_str));
            rest = after;
        }
        name + rest
    }

    /// The last value that there is.
    pub fn last(&self) -> Option<f64> {
        self.points
            .iter()
            .rev()
            .map(|(_, value)| *value)
            .find(|value| value.is_finite())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_a_range_and_of_a_moment_are_read() {
        let range = json!({"status": "success", "data": {"resultType": "matrix", "result": [
            {"metric": {"__name__": "x", "pod": "b"}, "values": [[1, "2"], [2.5, "NaN"]]},
            {"metric": {"pod": "a"}, "values": [[1, "3"]]},
        ]}});
        let found = series(&range).unwrap();
        assert_eq!(found[0].labels["pod"], "a");
        assert_eq!(found[1].labels.len(), 1);
        assert_eq!(found[1].points[0], (1.0, 2.0));
        assert!(found[1].points[1].1.is_nan());
        assert_eq!(found[1].last(), Some(2.0));
        let moment = json!({"status": "success", "data": {"result": [{"metric": {}, "value": [7, "5"]}]}});
        assert_eq!(series(&moment).unwrap()[0].points, [(7.0, 5.0)]);
        assert!(series(&json!({"status": "error", "error": "parse error"})).is_err());
    }

    #[test]
    fn a_legend_takes_the_values_of_labels() {
        let labels = [("provider", "awskms"), ("operation", "Decrypt")];
        let series = Series {
            labels: labels.map(|(a, b)| (a.to_owned(), b.to_owned())).into(),
            points: Vec::new(),
        };
        assert_eq!(series.name("{{provider}} {{ operation }}!"), "awskms Decrypt!");
        assert_eq!(series.name("{{other}} p50 {{"), " p50 {{");
    }

    #[test]
    fn steps_and_windows_are_grafanas() {
        let of = |seconds: f64| {
            let window = Window {
                from: 100.0,
                to: 100.0 + seconds,
            };
            (window.step(), window.rate_interval())
        };
        assert_eq!(of(180.0), (2.0, 8.0));
        assert_eq!(of(4_000.0), (10.0, 12.0));
    }

    #[test]
    fn every_query_is_asked_for_the_time_of_the_run() {
        let text = r#"{"panels": [
            {"title": "a", "type": "table", "gridPos": {"x": 0, "y": 0, "w": 1, "h": 1}, "targets": [{"expr": "now"}],
             "transformations": [{"id": "organize", "options": {"excludeByName": {"Time": true}}}]},
            {"title": "b", "type": "stat", "gridPos": {"x": 0, "y": 0, "w": 1, "h": 1},
             "targets": [{"expr": "rate(x[$__rate_interval])"}]}]}"#;
        let dashboard = Dashboard::parse(text).unwrap();
        let window = Window { from: 10.0, to: 70.5 };
        let kept = ask_all(&dashboard, window, |path, given| {
            let given: Vec<String> = given.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let said = format!("{path} {}", given.join(" "));
            Ok(json!({"status": "success", "data": {"result": [{"metric": {"asked": said}, "value": [1, "1"]}]}}))
        })
        .unwrap();
        let recorded = Recorded::parse(&dashboard, &kept).unwrap();
        assert_eq!(recorded.window, window);
        let asked: Vec<&str> = recorded
            .answers
            .iter()
            .map(|of_panel| of_panel[0][0].labels["asked"].as_str())
            .collect();
        let range = "/api/v1/query_range query=rate(x[8s]) start=10 end=70.5 step=2";
        assert_eq!(asked, ["/api/v1/query query=now time=70.5", range]);
        let other = Dashboard::parse(&text.replace("now", "then")).unwrap();
        assert!(
            Recorded::parse(&other, &kept).is_err(),
            "asked for another dashboard"
        );
    }
}
