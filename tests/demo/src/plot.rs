//! Staleness and workers over time, in characters. Pure.

use crate::table::Sample;

/// Rows of one plot.
const HEIGHT: usize = 10;
/// Characters before the plot: the scale.
const MARGIN: usize = 8;
/// Eighths of a character, from none to all.
const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// One column's value: the largest of its samples; `None` where nothing was seen or all was unknown.
type Columns = Vec<Option<f64>>;

/// Both plots, `width` characters wide, one above the other on the same axis of time.
pub(crate) fn plot(samples: &[Sample], target: f64, width: usize) -> String {
    let columns = width.saturating_sub(MARGIN).max(1);
    let staleness = squeeze(samples, columns, |sample| sample.staleness);
    let ready = squeeze(samples, columns, |sample| sample.ready.map(f64::from));
    let required = squeeze(samples, columns, |sample| sample.required);
    let mut lines = vec![format!("staleness in seconds (┄ the target of {target} s, ? unknown)")];
    let top = highest(&[&staleness], target * 1.2);
    let line = vec![Some(target); staleness.len()];
    lines.extend(chart(&staleness, &line, '┄', top));
    lines.push(String::new());
    lines.push("workers ready (• required)".to_owned());
    lines.extend(chart(&ready, &required, '•', highest(&[&ready, &required], 1.0)));
    lines.push(axis(samples, columns));
    lines.join("\n") + "\n"
}

fn highest(series: &[&Columns], at_least: f64) -> f64 {
    series.iter().flat_map(|columns| columns.iter().flatten()).copied().fold(at_least, f64::max).ceil()
}

/// Samples into columns of equal time.
fn squeeze(samples: &[Sample], columns: usize, value: impl Fn(&Sample) -> Option<f64>) -> Columns {
    let mut squeezed = vec![None; columns];
    let end = samples.last().map_or(0.0, |sample| sample.at).max(f64::MIN_POSITIVE);
    for sample in samples {
        let column = index(sample.at / end * count(columns)).min(columns - 1);
        if let (Some(cell), Some(value)) = (squeezed.get_mut(column), value(sample)) {
            *cell = Some(cell.map_or(value, |before: f64| before.max(value)));
        }
    }
    if samples.len() < columns {
        fill_gaps(&mut squeezed, samples, end, &value);
    }
    squeezed
}

/// With fewer samples than columns, a column without one shows the sample before it.
fn fill_gaps(squeezed: &mut Columns, samples: &[Sample], end: f64, value: &impl Fn(&Sample) -> Option<f64>) {
    let columns = squeezed.len();
    for (column, cell) in squeezed.iter_mut().enumerate() {
        let ends = count(column + 1) / count(columns) * end;
        if cell.is_none() {
            *cell = samples.iter().take_while(|sample| sample.at <= ends).last().and_then(value);
        }
    }
}

/// The rows of one plot, scale included: bars for `bars`, and `mark` at the height of `marks` where no bar covers it.
fn chart(bars: &Columns, marks: &Columns, mark: char, top: f64) -> Vec<String> {
    let unit = top / count(HEIGHT);
    (0..HEIGHT)
        .rev()
        .map(|row| {
            let (floor, ceiling) = (count(row) * unit, count(row + 1) * unit);
            let cells = bars.iter().zip(marks).map(|(bar, marked)| {
                let part = bar.map_or(0.0, |bar| ((bar - floor) / unit).clamp(0.0, 1.0));
                let here = marked.is_some_and(|marked| marked > floor && marked <= ceiling);
                match BARS.get(index((part * 8.0).round())) {
                    _ if row == 0 && bar.is_none() => '?',
                    Some(' ') | None if here => mark,
                    // Seen, and so small that nothing would show: a real zero is no gap.
                    Some(' ') if row == 0 => BARS[1],
                    Some(character) => *character,
                    None => ' ',
                }
            });
            let scale = if row + 1 == HEIGHT || row == HEIGHT / 2 { format!("{ceiling:>6.1}") } else { " ".repeat(6) };
            format!("{scale} ┤{}", cells.collect::<String>()).trim_end().to_owned()
        })
        .collect()
}

/// Where each phase of the load began, under the plots.
fn axis(samples: &[Sample], columns: usize) -> String {
    let end = samples.last().map_or(0.0, |sample| sample.at).max(f64::MIN_POSITIVE);
    let mut axis = vec![' '; columns];
    let mut before = "";
    for sample in samples {
        if sample.phase != before {
            before = sample.phase;
            let start = index(sample.at / end * count(columns)).min(columns - 1);
            let label = format!("└{} {:.0} s", sample.phase, sample.at);
            // One that does not fit would be half a word.
            let label = if start + label.chars().count() <= columns { label.as_str() } else { "" };
            for (offset, character) in label.chars().enumerate() {
                if let Some(cell) = axis.get_mut(start + offset) {
                    *cell = character;
                }
            }
        }
    }
    format!("{}{}", " ".repeat(MARGIN), axis.into_iter().collect::<String>()).trim_end().to_owned()
}

#[allow(clippy::cast_precision_loss)]
fn count(count: usize) -> f64 {
    count as f64
}

/// Plots are small: what does not fit is not drawn.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn index(number: f64) -> usize {
    number.max(0.0) as usize
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
    fn a_full_column_reaches_the_top_and_a_zero_is_seen() {
        let drawn = chart(&vec![Some(10.0), Some(0.0)], &vec![None, None], '┄', 10.0);
        assert_eq!(drawn.first().map(String::as_str), Some("  10.0 ┤█"));
        assert_eq!(drawn.last().map(String::as_str), Some("       ┤█▁"));
    }

    #[test]
    fn an_unknown_value_is_a_question_mark_and_no_bar() {
        let drawn = chart(&vec![None, Some(5.0)], &vec![None, None], '┄', 10.0);
        assert_eq!(drawn.last().map(String::as_str), Some("       ┤?█"));
        assert!(drawn.iter().rev().skip(1).all(|row| !row.contains('?')));
    }

    #[test]
    fn the_target_is_a_line_where_no_bar_covers_it() {
        let drawn = chart(&vec![Some(1.0), Some(10.0)], &vec![Some(5.0), Some(5.0)], '┄', 10.0);
        let lines: Vec<&String> = drawn.iter().filter(|row| row.contains('┄')).collect();
        assert_eq!(lines, ["       ┤┄█"]);
    }

    #[test]
    fn the_worst_of_many_samples_stands_for_its_column() {
        let many: Vec<Sample> =
            samples(&[(0.0, Some(1.0), 1), (0.1, Some(9.0), 1), (0.2, Some(2.0), 1), (10.0, Some(3.0), 1)]);
        assert_eq!(squeeze(&many, 2, |sample| sample.staleness), vec![Some(9.0), Some(3.0)]);
    }

    #[test]
    fn few_samples_fill_the_width_without_holes() {
        let few = samples(&[(0.0, Some(1.0), 1), (5.0, Some(4.0), 2), (10.0, None, 3)]);
        let columns = squeeze(&few, 20, |sample| sample.ready.map(f64::from));
        assert!(columns.iter().all(Option::is_some), "{columns:?}");
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
