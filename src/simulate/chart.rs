//! Series over time, in characters. Pure.

/// Rows of one chart.
const HEIGHT: usize = 10;
/// Characters before a chart: the scale.
pub const MARGIN: usize = 8;
/// Eighths of a character, from none to all.
const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// One value a column: the largest of its samples; `None` where nothing was seen or all was unknown.
pub type Columns = Vec<Option<f64>>;

/// Samples, each a time from 0 on and a value where it is known, into columns of equal time. With fewer samples than columns, a column without
/// one shows the sample before it.
pub fn squeeze(samples: impl Iterator<Item = (f64, Option<f64>)>, columns: usize) -> Columns {
    let samples: Vec<(f64, Option<f64>)> = samples.collect();
    let mut squeezed = vec![None; columns];
    let end = samples.last().map_or(0.0, |sample| sample.0).max(f64::MIN_POSITIVE);
    for (at, value) in &samples {
        if let (Some(cell), Some(value)) = (squeezed.get_mut(column(*at, end, columns)), value) {
            *cell = Some(cell.map_or(*value, |before: f64| before.max(*value)));
        }
    }
    if samples.len() < columns {
        for (column, cell) in squeezed.iter_mut().enumerate() {
            let ends = count(column + 1) / count(columns) * end;
            if cell.is_none() {
                *cell = samples.iter().take_while(|sample| sample.0 <= ends).last().and_then(|sample| sample.1);
            }
        }
    }
    squeezed
}

/// In which of the columns a time is, where the last sample is at `end`.
pub fn column(at: f64, end: f64, columns: usize) -> usize {
    index(at / end.max(f64::MIN_POSITIVE) * count(columns)).min(columns.saturating_sub(1))
}

/// The highest value there is, but not below `at_least`, as a whole number.
pub fn highest(series: &[&Columns], at_least: f64) -> f64 {
    series.iter().flat_map(|columns| columns.iter().flatten()).copied().fold(at_least, f64::max).ceil()
}

/// The rows of one chart up to the value `top`, scale included: bars for `bars`, and `mark` at the height of `marks` where no bar covers it.
pub fn rows(bars: &Columns, marks: &Columns, mark: char, top: f64) -> Vec<String> {
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

/// The line under charts: each label begins at its time. One that does not fit is left out, since it would be half a word.
pub fn axis<'a>(labels: impl Iterator<Item = (f64, &'a str)>, end: f64, columns: usize) -> String {
    let mut axis = vec![' '; columns];
    for (at, text) in labels {
        let start = column(at, end, columns);
        let label = format!("└{text}");
        let label = if start + label.chars().count() <= columns { label.as_str() } else { "" };
        for (offset, character) in label.chars().enumerate() {
            if let Some(cell) = axis.get_mut(start + offset) {
                *cell = character;
            }
        }
    }
    format!("{}{}", " ".repeat(MARGIN), axis.into_iter().collect::<String>()).trim_end().to_owned()
}

#[allow(clippy::cast_precision_loss)]
fn count(count: usize) -> f64 {
    count as f64
}

/// Charts are small: what does not fit is not drawn.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn index(number: f64) -> usize {
    number.max(0.0) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_column_reaches_the_top_and_a_zero_is_seen() {
        let drawn = rows(&vec![Some(10.0), Some(0.0)], &vec![None, None], '┄', 10.0);
        assert_eq!(drawn.first().map(String::as_str), Some("  10.0 ┤█"));
        assert_eq!(drawn.last().map(String::as_str), Some("       ┤█▁"));
    }

    #[test]
    fn an_unknown_value_is_a_question_mark_and_no_bar() {
        let drawn = rows(&vec![None, Some(5.0)], &vec![None, None], '┄', 10.0);
        assert_eq!(drawn.last().map(String::as_str), Some("       ┤?█"));
        assert!(drawn.iter().rev().skip(1).all(|row| !row.contains('?')));
    }

    #[test]
    fn a_mark_is_drawn_where_no_bar_covers_it() {
        let drawn = rows(&vec![Some(1.0), Some(10.0)], &vec![Some(5.0), Some(5.0)], '┄', 10.0);
        let lines: Vec<&String> = drawn.iter().filter(|row| row.contains('┄')).collect();
        assert_eq!(lines, ["       ┤┄█"]);
    }

    #[test]
    fn the_worst_of_many_samples_stands_for_its_column() {
        let many = [(0.0, Some(1.0)), (0.1, Some(9.0)), (0.2, Some(2.0)), (10.0, Some(3.0))];
        assert_eq!(squeeze(many.into_iter(), 2), vec![Some(9.0), Some(3.0)]);
    }

    #[test]
    fn few_samples_fill_the_width_without_holes() {
        let few = [(0.0, Some(1.0)), (5.0, Some(2.0)), (10.0, Some(3.0))];
        let columns = squeeze(few.into_iter(), 20);
        assert!(columns.iter().all(Option::is_some), "{columns:?}");
    }

    #[test]
    fn a_label_that_does_not_fit_is_left_out() {
        let labels = [(0.0, "steady 0 s"), (99.0, "over 99 s")];
        assert_eq!(axis(labels.into_iter(), 99.0, 40).trim_start(), "└steady 0 s");
    }
}
