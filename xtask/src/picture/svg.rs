//! The few shapes that a picture is made of.

use std::fmt::{self, Write};

/// A part of the picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Area {
    /// Its left edge.
    pub x: f64,
    /// Its upper edge.
    pub y: f64,
    /// Width.
    pub w: f64,
    /// Height.
    pub h: f64,
}

impl Area {
    /// What is left of it without so much at each edge.
    pub fn within(self, left: f64, top: f64, right: f64, bottom: f64) -> Self {
        Self {
            x: self.x + left,
            y: self.y + top,
            w: self.w - left - right,
            h: self.h - top - bottom,
        }
    }

    /// Its right edge.
    pub fn right(self) -> f64 {
        self.x + self.w
    }

    /// Its lower edge.
    pub fn bottom(self) -> f64 {
        self.y + self.h
    }

    /// Its middle from left to right.
    pub fn middle(self) -> f64 {
        self.x + self.w / 2.0
    }
}

/// Elements so far.
#[derive(Default)]
pub struct Svg(String);

impl Svg {
    /// A rectangle.
    pub fn rect(&mut self, area: Area, round: f64, attributes: &str) {
        let [x, y, w, h] = [area.x, area.y, area.w, area.h].map(number);
        self.push(format_args!(
            "<rect x=\"{x}\" y=\"{y}\" width=\"{w}\" height=\"{h}\" rx=\"{}\" {attributes}/>\n",
            number(round)
        ));
    }

    /// A horizontal line.
    pub fn rule(&mut self, x: f64, y: f64, width: f64, colour: &str) {
        let [x, y, width] = [x, y, width].map(number);
        self.push(format_args!(
            "<path d=\"M{x} {y}h{width}\" stroke=\"{colour}\"/>\n"
        ));
    }

    /// A text at the left of a point, or as its class says.
    pub fn text(&mut self, x: f64, y: f64, class: &str, text: &str) {
        let [x, y] = [x, y].map(number);
        self.push(format_args!(
            "<text x=\"{x}\" y=\"{y}\" class=\"{class}\">{}</text>\n",
            escape(text)
        ));
    }

    /// A curve through points; one that stands alone is a dot.
    pub fn curve(&mut self, points: &[(f64, f64)], colour: &str) {
        if let [(x, y)] = points {
            let [x, y] = [*x, *y].map(number);
            self.push(format_args!(
                "<circle cx=\"{x}\" cy=\"{y}\" r=\"2\" fill=\"{colour}\"/>\n"
            ));
            return;
        }
        let mut path = String::new();
        for (index, (x, y)) in points.iter().enumerate() {
            let level =
                |other: Option<&(f64, f64)>| other.is_some_and(|(_, other)| number(*other) == number(*y));
            // Between two of the same height a point shows nothing.
            if index > 0 && level(points.get(index - 1)) && level(points.get(index + 1)) {
                continue;
            }
            path.push(if path.is_empty() { 'M' } else { 'L' });
            path.push_str(&[number(*x), number(*y)].join(" "));
        }
        self.push(format_args!(
            "<path d=\"{path}\" stroke=\"{colour}\" class=\"c\"/>\n"
        ));
    }

    fn push(&mut self, element: fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = self.0.write_fmt(element);
    }

    /// Everything.
    pub fn finish(self) -> String {
        self.0
    }
}

/// A coordinate to a tenth.
fn number(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map(str::to_owned).unwrap_or(text)
}

/// Text as it may stand between tags and in attributes.
pub fn escape(text: &str) -> String {
    text.chars().fold(String::new(), |mut out, sign| {
        match sign {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            // XML has no way to say it.
            sign if sign.is_control() => out.push('\u{fffd}'),
            sign => out.push(sign),
        }
        out
    })
}

/// About how wide a text is, whatever font a reader has.
pub fn width(text: &str, size: f64) -> f64 {
    text.chars().map(|_| size * 0.56).sum()
}

/// A text that is cut where there is no room for it.
pub fn fit(text: &str, size: f64, room: f64) -> String {
    if width(text, size) <= room {
        return text.to_owned();
    }
    let mut kept = String::new();
    for sign in text.chars() {
        if width(&kept, size) + 2.0 * size * 0.56 > room {
            break;
        }
        kept.push(sign);
    }
    kept + "…"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped() {
        let mut svg = Svg::default();
        svg.text(1.0, 2.04, "t", "</text><script>\"a\" & b\u{1}");
        assert_eq!(
            svg.finish(),
            "<text x=\"1\" y=\"2\" class=\"t\">&lt;/text&gt;&lt;script&gt;&quot;a&quot; &amp; b\u{fffd}</text>\n"
        );
    }

    #[test]
    fn points_between_two_of_the_same_height_are_left_out() {
        let mut svg = Svg::default();
        svg.curve(&[(0.0, 5.0), (1.0, 5.0), (2.0, 5.0), (3.0, 4.0)], "red");
        svg.curve(&[(0.0, 5.0)], "red");
        let text = svg.finish();
        assert!(text.contains("\"M0 5L2 5L3 4\""), "{text}");
        assert!(text.contains("<circle cx=\"0\" cy=\"5\""), "{text}");
    }

    #[test]
    fn what_has_no_room_is_cut() {
        assert_eq!(fit("abc", 10.0, 17.0), "abc");
        assert_eq!(fit("abcdef", 10.0, 17.0), "ab…");
    }
}
