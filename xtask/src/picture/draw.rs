//! The picture: a function of the dashboard and of what its queries were answered.

use std::collections::{BTreeMap, BTreeSet};

use super::dashboard::{COLUMNS, Dashboard, Kind, Panel};
use super::recorded::{Recorded, SCRAPE, Series, Window};
use super::scale::{self, elapsed};
use super::svg::{Area, Svg, escape, fit, width};

const WIDTH: f64 = 1200.0;
/// The height of one unit of the grid.
const ROW: f64 = 29.0;
const GAP: f64 = 8.0;
const HEAD: f64 = 48.0;
const FOOT: f64 = 34.0;

/// The size of most texts; the style below has the same.
const SMALL: f64 = 11.0;

const STYLE: &str = "text{font-family:system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;font-size:11px;fill:#3d4450}\
.t{font-size:13px;font-weight:600;fill:#1f2430}.h{font-size:17px;font-weight:600;fill:#1f2430}\
.e{text-anchor:end}.m{text-anchor:middle}.b{font-weight:600}\
.n{text-anchor:middle;font-size:13px;fill:#7b8494}\
.v{text-anchor:middle;font-size:34px;font-weight:600;fill:#fff}\
.w{font-size:13px;font-weight:600;fill:#fff}.x{text-anchor:middle;font-size:12px;fill:#fff}\
.c{fill:none;stroke-width:1.6;stroke-linejoin:round}";

/// Eight colours that people tell apart who see few of them.
const CURVES: [&str; 8] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#6b6b6b",
];
const GRID: &str = "#e4e7ec";

/// What marks the dashboard's fingerprint in the picture.
pub const MARK: &str = "fingerprint of the dashboard: ";

/// Draws it.
pub fn draw(dashboard: &Dashboard, recorded: &Recorded) -> String {
    let mut svg = Svg::default();
    let bottom = dashboard.panels.iter().map(|panel| panel.place.y + panel.place.h);
    let height = HEAD + bottom.fold(0.0, f64::max) * ROW + FOOT;
    let whole = Area {
        x: 0.0,
        y: 0.0,
        w: WIDTH,
        h: height,
    };
    svg.rect(whole, 0.0, "fill=\"#f2f4f7\"");
    svg.text(GAP + 4.0, 31.0, "h", "auto-unseal-operator");
    let length = recorded.window.to - recorded.window.from;
    let range = format!("Namespace: All · 0:00 to {}", elapsed(length));
    svg.text(WIDTH - GAP - 4.0, 31.0, "e", &range);
    for (panel, answers) in dashboard.panels.iter().zip(&recorded.answers) {
        let area = area(panel);
        match panel.kind {
            Kind::Stat => stat(&mut svg, area, panel, answers),
            Kind::Lines => lines(&mut svg, area, panel, answers, recorded.window),
            Kind::Table => table(&mut svg, area, panel, answers),
        }
    }
    let caption = format!(
        "Drawn by `cargo xtask picture` from the dashboard's own queries, asked of a Prometheus that scraped the replicas of one \
         real run every {SCRAPE} s for {} min. No screenshot of Grafana.",
        elapsed(length)
    );
    svg.text(GAP + 4.0, height - 12.0, "", &caption);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\">\n\
         <title>The Grafana dashboard of auto-unseal-operator</title>\n<desc>{}</desc>\n<metadata>{MARK}{}</metadata>\n\
         <style>{STYLE}</style>\n{}</svg>\n",
        escape(&caption),
        dashboard.fingerprint(),
        svg.finish()
    )
}

fn area(panel: &Panel) -> Area {
    let column = (WIDTH - GAP) / COLUMNS;
    Area {
        x: GAP + panel.place.x * column,
        y: HEAD + panel.place.y * ROW,
        w: panel.place.w * column - GAP,
        h: panel.place.h * ROW - GAP,
    }
}

/// The panel itself; what is left for its content.
fn frame(svg: &mut Svg, area: Area, panel: &Panel) -> Area {
    svg.rect(area, 4.0, "fill=\"#fff\" stroke=\"#dde1e7\"");
    svg.text(area.x + 10.0, area.y + 19.0, "t", &panel.title);
    area.within(10.0, 30.0, 10.0, 8.0)
}

fn no_data(svg: &mut Svg, area: Area) {
    svg.text(area.middle(), area.y + area.h / 2.0, "n", "No data");
}

/// Every series that has a value, with its name, by which those of a query are sorted.
fn named<'s>(panel: &Panel, answers: &'s [Vec<Series>]) -> Vec<(String, &'s Series)> {
    let mut all = Vec::new();
    for (query, answer) in panel.queries.iter().zip(answers) {
        let with_values = answer.iter().filter(|series| series.last().is_some());
        let mut of_query: Vec<_> = with_values
            .map(|series| (series.name(&query.legend), series))
            .collect();
        of_query.sort_by(|(left, _), (right, _)| left.cmp(right));
        all.extend(of_query);
    }
    all
}

fn stat(svg: &mut Svg, area: Area, panel: &Panel, answers: &[Vec<Series>]) {
    let shown = named(panel, answers);
    if shown.is_empty() {
        let inner = frame(svg, area, panel);
        no_data(svg, inner);
        return;
    }
    let names = panel.names || shown.len() > 1;
    let parts = shown.iter().fold(0.0, |count, _| count + 1.0);
    let mut x = area.x;
    for (name, series) in shown {
        let value = series.last().unwrap_or_default();
        let part = Area {
            x,
            w: area.w / parts,
            ..area
        };
        x = part.right();
        let colour = colour(panel, value);
        svg.rect(part, 4.0, &format!("fill=\"{colour}\""));
        let base = part.y + if names { 62.0 } else { 72.0 };
        svg.text(part.middle(), base, "v", &scale::value(value, panel.unit));
        if names {
            svg.text(part.middle(), base + 24.0, "x", &fit(&name, 12.0, part.w - 8.0));
        }
    }
    svg.text(area.x + 10.0, area.y + 19.0, "w", &panel.title);
}

fn colour(panel: &Panel, value: f64) -> &'static str {
    let reached = panel.steps.iter().rev().find(|(from, _)| value >= *from);
    match reached.map_or("", |(_, colour)| colour.as_str()) {
        "green" => "#2b8a57",
        "orange" => "#c8640c",
        "red" => "#c4314b",
        "blue" => "#2f6fb3",
        _ => "#6b7280",
    }
}

fn lines(svg: &mut Svg, area: Area, panel: &Panel, answers: &[Vec<Series>], window: Window) {
    let inner = frame(svg, area, panel);
    let shown = named(panel, answers);
    if shown.is_empty() {
        no_data(svg, inner);
        return;
    }
    let names: Vec<&str> = shown.iter().map(|(name, _)| name.as_str()).collect();
    let rows = legend(svg, inner, &names);
    let values = shown
        .iter()
        .flat_map(|(_, series)| series.points.iter().map(|(_, value)| *value));
    let axis = scale::axis(values, panel.unit, 4.0);
    let labels: Vec<String> = axis
        .ticks
        .iter()
        .map(|tick| scale::value(*tick, panel.unit))
        .collect();
    let widest = labels.iter().map(|label| width(label, SMALL)).fold(0.0, f64::max);
    let plot = inner.within(widest + 8.0, 6.0, 6.0, 22.0 + rows * 16.0);
    let height = |value: f64| plot.bottom() - (value - axis.low) / (axis.high - axis.low) * plot.h;
    for (tick, label) in axis.ticks.iter().zip(&labels) {
        svg.rule(plot.x, height(*tick), plot.w, GRID);
        svg.text(plot.x - 6.0, height(*tick) + 4.0, "e", label);
    }
    let length = window.to - window.from;
    let place = |time: f64| plot.x + (time - window.from) / length * plot.w;
    let step = scale::time_step(length, plot.w / 55.0);
    let mut time = 0.0;
    while time <= length {
        svg.text(
            place(window.from + time),
            plot.bottom() + 16.0,
            "m",
            &elapsed(time),
        );
        time += step;
    }
    for ((_, series), colour) in shown.iter().zip(CURVES.iter().cycle()) {
        for part in unbroken(series, window.step()) {
            let points: Vec<(f64, f64)> = part
                .iter()
                .map(|(time, value)| (place(*time), height(*value)))
                .collect();
            svg.curve(&points, colour);
        }
    }
}

/// What the colours mean, in as many rows as it takes, at the bottom; how many these are.
fn legend(svg: &mut Svg, area: Area, names: &[&str]) -> f64 {
    let mut rows: Vec<Vec<(f64, String, &str)>> = vec![Vec::new()];
    let mut x = area.x;
    for (name, colour) in names.iter().zip(CURVES.iter().cycle()) {
        let shown = fit(name, SMALL, area.w - 24.0);
        let needs = width(&shown, SMALL) + 32.0;
        if x > area.x && x + needs > area.right() + 12.0 {
            rows.push(Vec::new());
            x = area.x;
        }
        if let Some(row) = rows.last_mut() {
            row.push((x, shown, *colour));
        }
        x += needs;
    }
    let mut y = area.bottom();
    let mut count = 0.0;
    for row in rows.iter().rev() {
        for (x, name, colour) in row {
            let dash = Area {
                x: *x,
                y: y - 6.0,
                w: 14.0,
                h: 3.0,
            };
            svg.rect(dash, 1.5, &format!("fill=\"{colour}\""));
            svg.text(x + 19.0, y - 1.0, "", name);
        }
        y -= 16.0;
        count += 1.0;
    }
    count
}

/// The parts of a series between its gaps.
fn unbroken(series: &Series, step: f64) -> Vec<Vec<(f64, f64)>> {
    let mut parts: Vec<Vec<(f64, f64)>> = Vec::new();
    let mut before = f64::NEG_INFINITY;
    for (time, value) in &series.points {
        if !value.is_finite() {
            continue;
        }
        if time - before > step * 1.5 {
            parts.push(Vec::new());
        }
        if let Some(part) = parts.last_mut() {
            part.push((*time, *value));
        }
        before = *time;
    }
    parts
}

fn table(svg: &mut Svg, area: Area, panel: &Panel, answers: &[Vec<Series>]) {
    let inner = frame(svg, area, panel);
    let rows = rows(panel, answers);
    if rows.is_empty() {
        no_data(svg, inner);
        return;
    }
    let present: BTreeSet<&str> = rows
        .iter()
        .flat_map(|row| row.keys().map(String::as_str))
        .collect();
    let mut columns: Vec<&str> = present
        .into_iter()
        .filter(|name| !panel.columns.hidden.contains(*name))
        .collect();
    columns.sort_by_key(|name| panel.columns.order.get(*name).copied().unwrap_or(u64::MAX));
    let heading = |name: &str| {
        panel
            .columns
            .names
            .get(name)
            .cloned()
            .unwrap_or_else(|| name.to_owned())
    };
    // Each as wide as its longest text asks for, and together as wide as the panel.
    let needs = |name: &str| {
        let cells = rows.iter().filter_map(|row| row.get(name).cloned());
        let widths = cells.chain([heading(name)]).map(|cell| width(&cell, SMALL));
        widths.fold(0.0, f64::max) + 20.0
    };
    let spread = inner.w / columns.iter().map(|name| needs(name)).sum::<f64>();
    let mut y = inner.y + 14.0;
    let line = |svg: &mut Svg, y: f64, class: &str, cell: &dyn Fn(&str) -> String| {
        let mut x = inner.x;
        for name in &columns {
            let room = needs(name) * spread;
            svg.text(x, y, class, &fit(&cell(name), SMALL, room - 8.0));
            x += room;
        }
        svg.rule(inner.x, y + 7.0, inner.w, GRID);
    };
    line(svg, y, "b", &heading);
    for (index, row) in rows.iter().enumerate() {
        y += 22.0;
        if y + 22.0 > inner.bottom() + 8.0 && index + 1 < rows.len() {
            svg.text(inner.x, y, "", &format!("and {} more", rows.len() - index));
            break;
        }
        line(svg, y, "", &|name| row.get(name).cloned().unwrap_or_default());
    }
}

/// Rows of a table: those of several queries with the same labels are one.
fn rows(panel: &Panel, answers: &[Vec<Series>]) -> Vec<BTreeMap<String, String>> {
    let mut rows: BTreeMap<&BTreeMap<String, String>, BTreeMap<String, String>> = BTreeMap::new();
    for (query, answer) in panel.queries.iter().zip(answers) {
        let column = if panel.queries.len() > 1 {
            format!("Value #{}", query.letter)
        } else {
            "Value".to_owned()
        };
        for series in answer {
            if let Some(value) = series.last() {
                let row = rows
                    .entry(&series.labels)
                    .or_insert_with(|| series.labels.clone());
                row.insert(column.clone(), scale::value(value, panel.unit));
            }
        }
    }
    rows.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_TIME: &str =
        r#","transformations": [{"id": "organize", "options": {"excludeByName": {"Time": true}}}]"#;

    /// One panel of that kind, 12 wide, with these queries.
    fn dashboard(kind: &str, queries: usize, more: &str) -> Dashboard {
        let letters = ["A", "B"];
        let targets: Vec<String> = letters[..queries]
            .iter()
            .map(|letter| {
                format!(r#"{{"refId": "{letter}", "expr": "x", "legendFormat": "{{{{pod}}}} of <one>"}}"#)
            })
            .collect();
        Dashboard::parse(&format!(
            r#"{{"panels": [{{"title": "A & B", "type": "{kind}", "targets": [{}],
                "gridPos": {{"x": 0, "y": 0, "w": 12, "h": 8}}{more}}}]}}"#,
            targets.join(",")
        ))
        .unwrap()
    }

    fn series(pod: &str, points: &[(f64, f64)]) -> Series {
        Series {
            labels: [("pod".to_owned(), pod.to_owned())].into(),
            points: points.to_vec(),
        }
    }

    fn drawn(dashboard: &Dashboard, answers: Vec<Vec<Series>>) -> String {
        let window = Window {
            from: 100.0,
            to: 160.0,
        };
        draw(
            dashboard,
            &Recorded {
                window,
                answers: vec![answers],
            },
        )
    }

    #[test]
    fn another_answer_is_another_picture_and_the_same_is_the_same() {
        for kind in ["stat", "timeseries", "table"] {
            let dashboard = dashboard(kind, 1, NO_TIME);
            let of = |value: f64| {
                drawn(
                    &dashboard,
                    vec![vec![series("p", &[(100.0, 1.0), (102.0, value)])]],
                )
            };
            assert_ne!(of(2.0), of(3.0), "{kind}");
            assert_eq!(of(2.0), of(2.0), "{kind}");
        }
    }

    #[test]
    fn what_has_no_answer_says_so_and_what_has_one_does_not() {
        for kind in ["stat", "timeseries", "table"] {
            let dashboard = dashboard(kind, 1, NO_TIME);
            for nothing in [
                vec![],
                vec![series("p", &[])],
                vec![series("p", &[(100.0, f64::NAN)])],
            ] {
                let svg = drawn(&dashboard, vec![nothing]);
                assert!(
                    svg.contains(">No data<") && svg.contains(">A &amp; B<"),
                    "{kind}: {svg}"
                );
            }
            let svg = drawn(&dashboard, vec![vec![series("p", &[(100.0, 0.0)])]]);
            assert!(!svg.contains("No data"), "{kind}: {svg}");
        }
    }

    #[test]
    fn text_of_others_is_escaped() {
        let svg = drawn(
            &dashboard("timeseries", 1, ""),
            vec![vec![series("<script>", &[(100.0, 1.0)])]],
        );
        assert!(svg.contains(">&lt;script&gt; of &lt;one&gt;<"), "{svg}");
        assert!(!svg.contains("<script"), "{svg}");
    }

    #[test]
    fn a_curve_ends_where_the_series_has_a_gap() {
        let points = [
            (100.0, 1.0),
            (102.0, 2.0),
            (110.0, 3.0),
            (112.0, 4.0),
            (120.0, 5.0),
        ];
        let parts = unbroken(&series("p", &points), 2.0);
        let lengths: Vec<usize> = parts.iter().map(Vec::len).collect();
        assert_eq!(lengths, [2, 2, 1]);
    }

    #[test]
    fn a_stat_has_the_colour_of_its_value_and_names_its_series_when_there_are_several() {
        let dashboard = dashboard("stat", 1, "");
        let one = drawn(&dashboard, vec![vec![series("p", &[(100.0, 79.0)])]]);
        assert!(one.contains("#2b8a57") && !one.contains("p of"), "{one}");
        let two = vec![series("p", &[(100.0, 80.0)]), series("q", &[(100.0, 1.0)])];
        let two = drawn(&dashboard, vec![two]);
        assert!(
            two.contains("#c4314b") && two.contains("p of") && two.contains("q of"),
            "{two}"
        );
    }

    #[test]
    fn rows_of_the_same_labels_are_one_with_columns_as_the_dashboard_says() {
        let more = r#","transformations": [{"id": "merge"}, {"id": "organize", "options": {
            "excludeByName": {"Time": true, "secret": true}, "renameByName": {"Value #A": "first", "Value #B": "second"},
            "indexByName": {"Value #B": 0}}}]"#;
        let dashboard = dashboard("table", 2, more);
        let mut other = series("q", &[(100.0, 9.0)]);
        other.labels.insert("secret".to_owned(), "hidden".to_owned());
        let answers = vec![
            vec![series("p", &[(100.0, 7.0)])],
            vec![series("p", &[(100.0, 8.0)]), other],
        ];
        let svg = drawn(&dashboard, answers);
        let at = |text: &str| {
            svg.find(&format!(">{text}<"))
                .unwrap_or_else(|| panic!("{text}: {svg}"))
        };
        assert!(at("second") < at("first") && at("first") < at("pod"));
        assert!(at("8") < at("7") && at("7") < at("p") && at("p") < at("9"));
        assert!(!svg.contains("hidden") && !svg.contains("Value #"));
    }

    #[test]
    fn a_table_that_is_too_long_says_how_much_is_left() {
        let dashboard = dashboard("table", 1, NO_TIME);
        let many = (0..30).map(|number| series(&format!("pod-{number:02}"), &[(100.0, 1.0)]));
        let svg = drawn(&dashboard, vec![many.collect()]);
        let shown = svg.matches("pod-").count();
        assert!(
            shown > 3 && svg.contains(&format!("and {} more", 30 - shown)),
            "{svg}"
        );
    }
}
