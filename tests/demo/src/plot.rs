//! Staleness and workers over time, in characters. Pure.

use projectionist::simulate::chart::{MARGIN, axis, highest, rows, squeeze};

use crate::table::Sample;

/// Both plots, `width` characters wide, one above the other on the same axis of time.
pub fn plot(samples: &[Sample], target: f64, width: usize) -> String {
    let columns = width.saturating_sub(MARGIN).max(1);
    let series = |value: &dyn Fn(&Sample) -> Option<f64>| {
        squeeze(samples.iter().map(|sample| (sample.at, value(sample))), columns)
    };
    let staleness = series(&|sample| sample.staleness);
    let ready = series(&|sample| sample.ready.map(f64::from));
    let required = series(&|sample| sample.required);
    let mut lines = vec![format!("staleness in seconds (┄ the target of {target} s, ? unknown)")];
    let line = vec![Some(target); columns];
    lines.extend(rows(&staleness, &line, '┄', highest(&[&staleness], target * 1.2)));
    lines.push(String::new());
    lines.push("workers ready (• required)".to_owned());
    lines.extend(rows(&ready, &required, '•', highest(&[&ready, &required], 1.0)));
    let end = samples.last().map_or(0.0, |sample| sample.at);
    let phases = phases(samples);
    lines.push(axis(phases.iter().map(|(at, label)| (*at, label.as_str())), end, columns));
    lines.join("\n") + "\n"
}

/// Where each phase of the load began.
fn phases(samples: &[Sample]) -> Vec<(f64, String)> {
    let mut before = "";
    let begins = samples.iter().filter(|sample| std::mem::replace(&mut before, sample.phase) != sample.phase);
    begins.map(|sample| (sample.at, format!("{} {:.0} s", sample.phase, sample.at))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: &[(f64, Option<f64>, i32)]) -> Vec<Sample> {
        let sample = |&(at, staleness, ready): &(f64, Option<f64>, i32)| Sample {
            at,
            staleness,
            ready: Some(ready),
            required: Some(f64::from(ready)),
            phase: "steady",
            ..Sample::default()
        };
        values.iter().map(sample).collect()
    }

    #[test]
    fn both_plots_keep_to_the_width_and_name_the_phases() {
        let run: Vec<(f64, Option<f64>, i32)> =
            (0..200).map(|second| (f64::from(second), Some(f64::from(second % 30)), second / 40)).collect();
        let drawn = plot(&samples(&run), 10.0, 80);
        assert!(drawn.lines().all(|line| line.chars().count() <= 80), "{drawn}");
        assert!(drawn.contains("└steady 0 s"), "{drawn}");
        assert!(drawn.contains('┄'), "{drawn}");
    }

    #[test]
    fn a_phase_that_begins_at_the_very_end_has_no_half_label() {
        let mut run = samples(&[(0.0, Some(1.0), 1), (99.0, Some(1.0), 1)]);
        run[1].phase = "over";
        assert!(plot(&run, 10.0, 60).ends_with("└steady 0 s\n"));
    }

    #[test]
    fn nothing_seen_draws_no_bars_and_does_not_fail() {
        let drawn = plot(&[], 10.0, 60);
        assert!(!drawn.contains('█') && drawn.contains('?'), "{drawn}");
    }
}
