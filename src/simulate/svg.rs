//! A simulation as an SVG picture: arrivals, staleness against the target, and workers, on one axis of time. Pure.

use std::fmt::Write as _;

use super::outcome::{Moment, Run};

const WIDTH: f64 = 960.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
/// From the top of one panel to that of the next, and the part of it that is drawn on.
const PANEL: f64 = 190.0;
const HEIGHT: f64 = 140.0;
const TOP: f64 = 40.0;

/// One line in a panel.
struct Line<'a> {
    name: &'a str,
    colour: &'a str,
    /// It holds its value until the next moment.
    steps: bool,
    value: &'a dyn Fn(&Moment) -> Option<f64>,
}

/// The picture. `title` may be any text.
pub fn svg(run: &Run, title: &str) -> String {
    let target = run.target().as_secs_f64();
    let arrivals = Line { name: "arriving", colour: "#555555", steps: true, value: &|moment| Some(moment.arriving) };
    let staleness = Line {
        name: "staleness",
        colour: "#c0392b",
        steps: false,
        value: &|moment| Some(moment.staleness.as_secs_f64()),
    };
    let asked = Line { name: "target", colour: "#999999", steps: true, value: &move |_| Some(target) };
    let replicas =
        Line { name: "workers", colour: "#2471a3", steps: true, value: &|moment| Some(f64::from(moment.replicas)) };
    let ready = Line { name: "ready", colour: "#27ae60", steps: true, value: &|moment| Some(f64::from(moment.ready)) };
    let required =
        Line { name: "required", colour: "#e67e22", steps: true, value: &|moment| moment.required.map(f64::from) };
    let panels: [(&str, Vec<Line<'_>>); 3] = [
        ("events per second", vec![arrivals]),
        ("seconds", vec![asked, staleness]),
        ("workers", vec![required, replicas, ready]),
    ];
    let height = TOP + PANEL * 3.0;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"20\" font-size=\"15\">{}</text>\n",
        escaped(title)
    );
    for (index, (unit, lines)) in (0_u8..).zip(&panels) {
        panel(&mut text, run, TOP + PANEL * f64::from(index), unit, lines);
    }
    text.push_str("</svg>\n");
    text
}

fn panel(text: &mut String, run: &Run, top: f64, unit: &str, lines: &[Line<'_>]) {
    let moments = thinned(run.moments());
    let end = run.moments().last().map_or(0.0, |moment| moment.at.as_secs_f64()).max(1e-9);
    let values = lines.iter().flat_map(|line| moments.iter().filter_map(|moment| (line.value)(moment)));
    let highest = round_up(values.fold(0.0, f64::max));
    let x = |moment: &Moment| LEFT + moment.at.as_secs_f64() / end * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| top + 20.0 + HEIGHT * (1.0 - value / highest);
    // Writing to a String cannot fail.
    for part in [0.0, 0.5, 1.0] {
        let (at, value) = (y(highest * part), highest * part);
        let _ = writeln!(
            text,
            "<path d=\"M{LEFT} {at:.1}H{:.1}\" stroke=\"#dddddd\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            at + 4.0
        );
        let _ = writeln!(
            text,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#777777\">{:.0} s</text>",
            LEFT + part * (WIDTH - LEFT - RIGHT - 20.0),
            y(0.0) + 15.0,
            run.begins().as_secs_f64() + end * part
        );
    }
    let _ = writeln!(text, "<text x=\"{LEFT}\" y=\"{:.1}\">{unit}</text>", top + 12.0);
    for (index, line) in (0_u8..).zip(lines) {
        let _ = writeln!(
            text,
            "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{}\">{}</text>",
            LEFT + 130.0 + 80.0 * f64::from(index),
            top + 12.0,
            line.colour,
            line.name
        );
        let mut path = String::new();
        for moment in &moments {
            let Some(value) = (line.value)(moment) else { continue };
            let (x, y) = (x(moment), y(value));
            let _ = match (path.is_empty(), line.steps) {
                (true, _) => write!(path, "M{x:.1} {y:.1}"),
                (false, true) => write!(path, "H{x:.1}V{y:.1}"),
                (false, false) => write!(path, "L{x:.1} {y:.1}"),
            };
        }
        let _ = writeln!(text, "<path d=\"{path}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.5\"/>", line.colour);
    }
}

/// More points than these are not seen; of each stretch its latest moment and the one of the worst staleness are kept.
const POINTS: usize = 900;

fn thinned(moments: &[Moment]) -> Vec<&Moment> {
    let stretch = moments.len().div_ceil(POINTS).max(1);
    let kept = |part: &[Moment]| {
        let worst = (0..part.len()).max_by_key(|index| part.get(*index).map(|moment| moment.staleness)).unwrap_or(0);
        let mut indexes = vec![worst, part.len().saturating_sub(1)];
        indexes.dedup();
        indexes
    };
    moments.chunks(stretch).flat_map(|part| kept(part).into_iter().filter_map(move |index| part.get(index))).collect()
}

/// The next 1, 2 or 5 times a power of ten.
fn round_up(value: f64) -> f64 {
    let power = 10_f64.powf(value.max(1.0).log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|step| step * power).find(|step| *step >= value).unwrap_or(value)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn draws_each_line_once_and_escapes_the_title() {
        let moment = |second: u64| Moment {
            at: Duration::from_secs(second),
            arriving: 100.0,
            pending: 3,
            staleness: Duration::from_secs(second % 40),
            measured_pending: 9,
            measured_staleness: Duration::from_secs(3),
            replicas: 2,
            ready: 1,
            required: (second > 10).then_some(3),
        };
        let moments: Vec<Moment> = (0..5_000).map(moment).collect();
        let mut record =
            super::super::record::Record::new(Duration::ZERO, Duration::from_secs(1), Duration::from_secs(5));
        moments.into_iter().for_each(|moment| record.push(moment));
        let picture = svg(&record.finish(), "orders <&> more");
        assert!(picture.contains("orders &lt;&amp;&gt; more"));
        assert_eq!(picture.matches("fill=\"none\"").count(), 6);
        assert!(picture.len() < 200_000, "{} bytes", picture.len());
        assert!(!picture.contains("NaN") && !picture.contains("inf"));
    }

    #[test]
    fn scales_end_at_round_numbers() {
        for (value, expected) in [(0.0, 1.0), (1.0, 1.0), (3.0, 5.0), (11.0, 20.0), (500.0, 500.0), (501.0, 1_000.0)] {
            assert!((round_up(value) - expected).abs() < 1e-9, "{value}");
        }
    }
}
