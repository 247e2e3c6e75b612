//! The one reading of Prometheus's text format. Pure, and never panics.
//!
//! `prometheus-parse` reads the values, and never fails: it skips what it does not know, drops names with colons and label values with braces, and cuts or
//! merges series whose label values hold commas or equal signs. So lines are taken apart here, strictly, and it gets each sample under a name and a label
//! that it cannot misread; a sample that it loses all the same is an error. A page with a line that is none of the format is refused as a whole.

use std::collections::{BTreeMap, HashMap};

use prometheus_parse::{Scrape, Value};

/// The most series of one name that are meant to be read. [`parse`] returns one more at most, which shows that there are more.
pub const MOST_SERIES: usize = 10_000;
/// The most labels of one series.
const MOST_LABELS: usize = 256;
/// The most labels of all series that are wanted: each takes far more memory than it has bytes in a page.
const MOST_LABELS_OF_PAGE: usize = 100_000;
const BLANK: [char; 2] = [' ', '\t'];

/// A series with its number at the time of the page.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// The metric's name.
    pub name: String,
    /// Names and values, without escapes.
    pub labels: BTreeMap<String, String>,
    /// Possibly not finite.
    pub value: f64,
    /// Milliseconds since 1970, where the page dates it.
    pub timestamp: Option<i64>,
}

/// A line that cannot be read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Unreadable {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong with it. Repeats nothing of it.
    pub why: &'static str,
}

/// A line taken apart, before its value is read.
struct Taken<'a> {
    line: usize,
    name: &'a str,
    labels: BTreeMap<String, String>,
    value: &'a str,
    timestamp: Option<i64>,
}

/// All series of a page whose name `wanted` accepts, in the page's order; every line must be one of the format.
///
/// # Errors
/// The first line that is none, or with which there are too many labels.
pub fn parse(text: &str, wanted: impl Fn(&str) -> bool) -> Result<Vec<Series>, Unreadable> {
    let mut taken = Vec::new();
    let mut series = HashMap::new();
    let mut labels = 0_usize;
    for (index, line) in text.split('\n').enumerate() {
        let number = index + 1;
        let line = line.strip_suffix('\r').unwrap_or(line).trim_matches(BLANK);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let sample = take(line, number).map_err(|why| Unreadable { line: number, why })?;
        if wanted(sample.name) {
            let of_this_name: &mut usize = series.entry(sample.name).or_default();
            *of_this_name += 1;
            if *of_this_name <= MOST_SERIES + 1 {
                labels += sample.labels.len();
                if labels > MOST_LABELS_OF_PAGE {
                    let why = "with it the metrics that are asked for have more than 100000 labels in all";
                    return Err(Unreadable { line: number, why });
                }
                taken.push(sample);
            }
        }
    }
    let values = values(&taken);
    let series = taken.into_iter().enumerate().map(|(index, Taken { line, name, labels, value: _, timestamp })| {
        let value = *values.get(&index).ok_or(Unreadable { line, why: "its value is no number" })?;
        Ok(Series { name: name.to_owned(), labels, value, timestamp })
    });
    series.collect()
}

/// The values as the library reads them, by index.
fn values(taken: &[Taken<'_>]) -> BTreeMap<usize, f64> {
    let lines = taken.iter().enumerate();
    let lines = lines.map(|(index, sample)| Ok(format!("sample{{index=\"{index}\"}} {}", sample.value)));
    let read = Scrape::parse(lines).map(|scrape| scrape.samples).unwrap_or_default();
    let indexed = read.into_iter().filter_map(|sample| {
        let index = sample.labels.get("index")?.parse().ok()?;
        match sample.value {
            Value::Untyped(value) => Some((index, value)),
            _ => None,
        }
    });
    indexed.collect()
}

fn is_name(name: &str, colons: bool) -> bool {
    let letter = |c: char| c.is_ascii_alphabetic() || c == '_' || (colons && c == ':');
    name.starts_with(letter) && name.chars().all(|c| letter(c) || c.is_ascii_digit())
}

/// Takes one line apart.
fn take(line: &str, number: usize) -> Result<Taken<'_>, &'static str> {
    let end = line.find(|c: char| c == '{' || BLANK.contains(&c)).ok_or("it has no value")?;
    let (name, rest) = line.split_at(end);
    if !is_name(name, true) {
        return Err("it begins with no metric's name");
    }
    let rest = rest.trim_start_matches(BLANK);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(inside) => labels(inside)?,
        None => (BTreeMap::new(), rest),
    };
    // OpenMetrics: an exemplar.
    let rest = rest.split(" # ").next().unwrap_or(rest);
    let mut parts = rest.split(BLANK).filter(|part| !part.is_empty());
    let value = parts.next().ok_or("it has no value")?;
    if !is_number(value) {
        return Err("its value is no number");
    }
    let timestamp = parts.next().map(|part| milliseconds(part).ok_or("its time is no number")).transpose()?;
    if parts.next().is_some() {
        return Err("something follows its value");
    }
    Ok(Taken { line: number, name, labels, value, timestamp })
}

fn is_number(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    let unsigned = lower.strip_prefix(['+', '-']).unwrap_or(&lower);
    ["nan", "inf", "infinity"].contains(&unsigned)
        || (unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.') && lower.parse::<f64>().is_ok())
}

/// A time in milliseconds, or, as OpenMetrics has it, in seconds with a point.
#[allow(clippy::cast_possible_truncation)] // A float that is too large becomes the largest number.
fn milliseconds(text: &str) -> Option<i64> {
    // Of the two formats only OpenMetrics knows a plus sign.
    if let Some(milliseconds) = text.parse().ok().filter(|_| !text.starts_with('+')) {
        return Some(milliseconds);
    }
    let seconds: f64 = text.parse().ok().filter(|_| text.contains('.') && is_number(text))?;
    seconds.is_finite().then_some((seconds * 1_000.0) as i64)
}

/// Labels and what follows their closing brace.
fn labels(mut rest: &str) -> Result<(BTreeMap<String, String>, &str), &'static str> {
    let mut labels = BTreeMap::new();
    loop {
        rest = rest.trim_start_matches(BLANK);
        if let Some(after) = rest.strip_prefix('}') {
            return Ok((labels, after));
        }
        let (name, after) = rest.split_once('=').ok_or("a label has no value")?;
        let name = name.trim_end_matches(BLANK);
        if !is_name(name, false) {
            return Err("a label has no name");
        }
        let quoted = after.trim_start_matches(BLANK).strip_prefix('"').ok_or("a label's value is not in quotes")?;
        let (value, after) = unquoted(quoted)?;
        if labels.len() == MOST_LABELS {
            return Err("it has more than 256 labels");
        }
        if labels.insert(name.to_owned(), value).is_some() {
            return Err("a label is there twice");
        }
        let after = after.trim_start_matches(BLANK);
        rest = match after.strip_prefix(',') {
            Some(next) => next,
            None if after.starts_with('}') => after,
            None => return Err("its labels have no end"),
        };
    }
}

fn unquoted(text: &str) -> Result<(String, &str), &'static str> {
    let mut value = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => match letters.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, escaped @ ('\\' | '"'))) => value.push(escaped),
                _ => return Err("a label's value holds a strange escape"),
            },
            other => value.push(other),
        }
    }
    Err("a label's value has no closing quote")
}

#[cfg(test)]
#[path = "text_tests.rs"]
mod tests;
