//! Lines over two logarithmic axes, as SVG that follows the reader's light or dark theme.

use std::fmt::Write;

/// One line: its name, and points with both coordinates above zero.
pub struct Line {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 380.0;
/// The plot's own edges; names stand to the right of it.
const LEFT: f64 = 60.0;
const RIGHT: f64 = 500.0;
const TOP: f64 = 20.0;
const BOTTOM: f64 = 330.0;
/// How far apart names have to be.
const NAME: f64 = 16.0;
const COLOURS: [&str; 6] = ["#0b7a75", "#c2571a", "#7b3fa0", "#3fb8b0", "#e89a5f", "#b98bd6"];
const STYLE: &str = "text{font:12px system-ui,sans-serif;fill:#24292f}.axis{stroke:#8c959f;stroke-width:1}.grid{stroke:#d0d7de;stroke-width:.5}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.grid{stroke:#3d444d}}";

/// A logarithmic axis.
struct Axis {
    from: f64,
    to: f64,
    start: f64,
    end: f64,
}

impl Axis {
    fn new(values: impl Iterator<Item = f64>, start: f64, end: f64) -> Self {
        let (low, high) = values.fold((f64::MAX, 0f64), |(low, high), v| (low.min(v), high.max(v)));
        Self { from: low.ln(), to: high.ln(), start, end }
    }

    fn at(&self, value: f64) -> f64 {
        let span = (self.to - self.from).max(f64::EPSILON);
        self.start + (value.ln() - self.from) / span * (self.end - self.start)
    }
}

/// Draws the lines: list lengths to the right, microseconds upwards.
pub fn draw(lines: &[Line]) -> String {
    let points = || lines.iter().flat_map(|line| &line.points);
    let x = Axis::new(points().map(|p| p.0), LEFT + 10.0, RIGHT - 10.0);
    // A round number below and above.
    let marks: Vec<f64> = (0..7).flat_map(|n| [1.0, 2.0, 5.0].map(|m| m * 10f64.powi(n))).collect();
    let (low, high) = points().fold((f64::MAX, 0f64), |(low, high), p| (low.min(p.1), high.max(p.1)));
    let first = marks.iter().rposition(|&m| m <= low).unwrap_or(0);
    let last = marks.iter().position(|&m| m >= high).unwrap_or(marks.len() - 1);
    let marks = &marks[first..=last];
    let y = Axis::new(marks.iter().copied(), BOTTOM, TOP);

    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"What a connection costs as lists grow\"><style>{STYLE}</style>\n"
    );
    for &mark in marks {
        let at = y.at(mark);
        let _ = writeln!(
            out,
            "<path class=\"grid\" d=\"M{LEFT} {at:.1}H{RIGHT}\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{mark}</text>",
            LEFT - 6.0,
            at + 4.0
        );
    }
    let mut lengths: Vec<f64> = points().map(|p| p.0).collect();
    lengths.sort_by(f64::total_cmp);
    lengths.dedup();
    for length in lengths {
        let at = x.at(length);
        let _ = writeln!(
            out,
            "<path class=\"grid\" d=\"M{at:.1} {TOP}V{BOTTOM}\"/><text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{length}</text>",
            BOTTOM + 16.0
        );
    }
    let _ = writeln!(out, "<path class=\"axis\" fill=\"none\" d=\"M{LEFT} {TOP}V{BOTTOM}H{RIGHT}\"/>");
    let _ = writeln!(
        out,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">entries in the list</text>",
        (LEFT + RIGHT) / 2.0,
        BOTTOM + 36.0
    );
    let middle = (TOP + BOTTOM) / 2.0;
    let _ = writeln!(
        out,
        "<text transform=\"translate(14 {middle}) rotate(-90)\" text-anchor=\"middle\">µs for a connection</text>"
    );

    // Names from the bottom up, none over another.
    let mut names: Vec<(f64, usize)> =
        lines.iter().enumerate().filter_map(|(at, line)| Some((y.at(line.points.last()?.1), at))).collect();
    names.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut below = f64::MAX;
    for (end, at) in names {
        let line = &lines[at];
        let colour = COLOURS[at % COLOURS.len()];
        let path: Vec<String> = line.points.iter().map(|p| format!("{:.1},{:.1}", x.at(p.0), y.at(p.1))).collect();
        let dashes = if at >= COLOURS.len() / 2 { " stroke-dasharray=\"5 4\"" } else { "" };
        let _ = writeln!(
            out,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{dashes} points=\"{}\"/>",
            path.join(" ")
        );
        let place = end.min(below - NAME);
        below = place;
        let _ = writeln!(
            out,
            "<path stroke=\"{colour}\" stroke-width=\".7\" d=\"M{:.1} {end:.1}L{:.1} {place:.1}\"/>",
            RIGHT - 8.0,
            RIGHT + 14.0
        );
        let _ = writeln!(out, "<text x=\"{}\" y=\"{:.1}\">{}</text>", RIGHT + 18.0, place + 4.0, line.name);
    }
    out + "</svg>\n"
}
