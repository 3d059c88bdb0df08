//! Numbers as people read them: with units, and at round places of an axis.

use super::dashboard::Unit;

/// An axis: from where to where, and its ticks.
#[derive(Debug, PartialEq)]
pub struct Axis {
    /// The lowest value.
    pub low: f64,
    /// The highest.
    pub high: f64,
    /// Values that are named.
    pub ticks: Vec<f64>,
}

/// An axis that holds all values and zero, with about so many steps.
pub fn axis(values: impl Iterator<Item = f64>, unit: Unit, steps: f64) -> Axis {
    let (low, high) = values
        .filter(|value| value.is_finite())
        .fold((0.0_f64, 0.0_f64), |(low, high), value| {
            (low.min(value), high.max(value))
        });
    let high = if high > low { high } else { low + 1.0 };
    let rough = (high - low) / steps;
    let step = match unit {
        // Whatever is counted by itself is counted in whole ones.
        Unit::Number => round_step(rough).max(1.0),
        Unit::Rate(_) => round_step(rough),
        Unit::Seconds => {
            let scales = LARGE.into_iter().map(|(scale, _)| scale);
            let scale = scales
                .into_iter()
                .find(|scale| high - low >= *scale)
                .unwrap_or(1.0);
            round_step(rough / scale) * scale
        }
    };
    let (low, high) = ((low / step).floor() * step, (high / step).ceil() * step);
    let mut ticks = Vec::new();
    let mut number = 0.0;
    while low + number * step <= high + step / 2.0 {
        ticks.push(low + number * step);
        number += 1.0;
    }
    Axis { low, high, ticks }
}

/// The next of 1, 2, 5, 10, … of the same size.
fn round_step(rough: f64) -> f64 {
    let size = 10_f64.powf(rough.log10().floor());
    let rounded = [1.0, 2.0, 5.0]
        .into_iter()
        .map(|digit| digit * size)
        .find(|step| *step >= rough * 0.999_999);
    rounded.unwrap_or(10.0 * size)
}

/// Seconds between two times that are named, so that no more than so many are.
pub fn time_step(seconds: f64, most: f64) -> f64 {
    let steps = [
        1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0, 3_600.0,
    ];
    let fits = |step: &f64| seconds / step <= most;
    steps.into_iter().find(fits).unwrap_or(86_400.0)
}

/// A time of the run: minutes and seconds since its beginning.
pub fn elapsed(seconds: f64) -> String {
    let whole = seconds.max(0.0).round();
    let minutes = (whole / 60.0).floor();
    format!("{minutes}:{:02}", whole - 60.0 * minutes)
}

/// A value in its unit, as Grafana names it.
pub fn value(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Number => plain(value),
        Unit::Rate(words) => format!("{} {words}", plain(value)),
        Unit::Seconds => duration(value),
    }
}

/// Spans of time that have names of their own.
const LARGE: [(f64, &str); 5] = [
    (31_536_000.0, "years"),
    (604_800.0, "weeks"),
    (86_400.0, "days"),
    (3_600.0, "hours"),
    (60.0, "mins"),
];

fn duration(seconds: f64) -> String {
    let size = seconds.abs();
    if size == 0.0 {
        return "0 s".to_owned();
    }
    if let Some((scale, words)) = LARGE.into_iter().find(|(scale, _)| size >= *scale) {
        let number = plain(seconds / scale);
        let words = if number == "1" {
            words.trim_end_matches('s')
        } else {
            words
        };
        return format!("{number} {words}");
    }
    match size {
        _ if size >= 1.0 => format!("{} s", plain(seconds)),
        _ if size >= 0.001 => format!("{} ms", plain(seconds * 1e3)),
        _ => format!("{} µs", plain(seconds * 1e6)),
    }
}

/// Three digits that count, and no zeros behind the point.
fn plain(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return if value.is_finite() {
            "0".to_owned()
        } else {
            value.to_string()
        };
    }
    let decimals = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    if text.contains('.') {
        let text = text.trim_end_matches('0').trim_end_matches('.');
        if matches!(text, "0" | "-0") {
            "0".to_owned()
        } else {
            text.to_owned()
        }
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_holds_every_value_and_zero_at_round_places() {
        let of = |values: &[f64], unit| axis(values.iter().copied(), unit, 4.0);
        let rate = Unit::Rate("");
        assert_eq!(of(&[0.3, 7.9], rate).ticks, [0.0, 2.0, 4.0, 6.0, 8.0]);
        assert_eq!(of(&[-1.0, f64::NAN, 3.0], rate).ticks, [-1.0, 0.0, 1.0, 2.0, 3.0]);
        assert_eq!(of(&[-5.0], rate).ticks, [-6.0, -4.0, -2.0, 0.0]);
        assert_eq!(of(&[], rate).ticks, [0.0, 0.5, 1.0]);
        assert_eq!(of(&[1.0], Unit::Number).ticks, [0.0, 1.0]);
        assert_eq!(of(&[850.0], Unit::Seconds).ticks, [0.0, 300.0, 600.0, 900.0]);
    }

    #[test]
    fn times_are_minutes_and_seconds() {
        assert_eq!(
            (elapsed(0.0), elapsed(65.4), elapsed(600.0)),
            ("0:00".into(), "1:05".into(), "10:00".into())
        );
        assert_eq!((time_step(180.0, 7.0), time_step(10.0, 5.0)), (30.0, 2.0));
    }

    #[test]
    fn values_are_named_in_their_units() {
        let seconds = |value_of: f64| value(value_of, Unit::Seconds);
        assert_eq!(seconds(0.0005), "500 µs");
        assert_eq!(seconds(0.0125), "12.5 ms");
        assert_eq!(seconds(1.5), "1.5 s");
        assert_eq!(seconds(-90.0), "-1.5 mins");
        assert_eq!(seconds(7_775_990.0), "12.9 weeks");
        assert_eq!(seconds(3_600.0), "1 hour");
        assert_eq!(value(0.25, Unit::Rate("req/s")), "0.25 req/s");
        assert_eq!(value(1234.5, Unit::Number), "1234");
        assert_eq!(value(2.0, Unit::Number), "2");
        assert_eq!(value(-0.0001, Unit::Number), "0");
    }
}
