//! Reads traces: CSV, and what Prometheus answers to `query_range`. Line by line, so that a long one takes no more memory than its numbers.
//!
//! # CSV
//! ```text
//! seconds,events_per_second,worker_events_per_second
//! 0,100,50
//! 10,400,50
//! 20,100,25
//! ```
//! Each row holds from its second to the next row's, the last one for as long as the one before it. The third column, what one busy worker
//! handles, may be absent. Lines that begin with `#` and empty ones do not count. The steps must be uniform: a step that is longer than the
//! first is a gap, one that is shorter or not positive is disorder. Both are errors, since what happened there is not known.
//!
//! # Prometheus
//! The answer to `/api/v1/query_range` with one series, a rate in events per second. The same rules hold for its steps.

use std::{
    borrow::Cow,
    fmt,
    io::{BufRead, Read as _},
    time::Duration,
};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, SeqAccess, Visitor},
};

use super::trace::{InvalidTrace, Trace};

/// Longer traces are refused: a month.
const LONGEST: f64 = 31.0 * 86_400.0;
/// Traces of more rows are refused: a month of a row every quarter of a second.
const MOST_ROWS: usize = 12_000_000;
/// Lines of a trace are shorter. A text without a line end within this length is not a trace, and is not read to its end.
const LONGEST_LINE: u64 = 10_000;
/// Higher rates are refused as a typing error: positions of such a log would soon be too close to distinguish.
const HIGHEST_RATE: f64 = 1e9;
/// Time stamps written as decimals are compared with this much leniency, in seconds.
const ROUNDING: f64 = 1e-6;

fn invalid(place: impl Into<String>, problem: impl Into<String>) -> InvalidTrace {
    InvalidTrace { place: place.into(), problem: problem.into() }
}

impl Trace {
    /// Reads CSV or what Prometheus answers to `query_range`: what begins with `{` is Prometheus's.
    ///
    /// # Errors
    /// With the line, or the value, when the text is neither.
    pub fn read(text: &str) -> Result<Self, InvalidTrace> {
        Self::from_reader(text.as_bytes())
    }

    /// The same, line by line, so that only the numbers are kept.
    ///
    /// # Errors
    /// With the line, or the value, when the text is neither, or cannot be read on.
    pub fn from_reader(reader: impl BufRead) -> Result<Self, InvalidTrace> {
        read(reader)
    }
}

/// Reads either form.
fn read(mut reader: impl BufRead) -> Result<Trace, InvalidTrace> {
    let mut line = 0;
    skip_mark(&mut reader)?;
    loop {
        let next = reader.fill_buf().map_err(|error| unreadable(line, &error))?.first().copied();
        match next {
            Some(b'{') => return prometheus(reader, line),
            Some(space) if space.is_ascii_whitespace() => {
                line += usize::from(space == b'\n');
                reader.consume(1);
            }
            _ => return csv(reader, line),
        }
    }
}

/// A byte order mark at the beginning says nothing, but that some editors write one.
fn skip_mark(reader: &mut impl BufRead) -> Result<(), InvalidTrace> {
    let start = reader.fill_buf().map_err(|error| unreadable(0, &error))?;
    if start.starts_with(&[0xff, 0xfe]) || start.starts_with(&[0xfe, 0xff]) {
        return Err(invalid("line 1", "the file is UTF-16: save it as UTF-8"));
    }
    if start.starts_with("\u{feff}".as_bytes()) {
        reader.consume(3);
    }
    Ok(())
}

fn unreadable(line: usize, error: &std::io::Error) -> InvalidTrace {
    invalid(format!("line {}", line + 1), format!("cannot be read: {error}"))
}

/// The rows so far, which must come in uniform steps.
#[derive(Default)]
struct Rows {
    first: Option<f64>,
    step: Option<(f64, String)>,
    last: f64,
    rates: Vec<f64>,
    per_worker: Vec<f64>,
}

impl Rows {
    fn push(
        &mut self,
        place: &dyn Fn() -> String,
        seconds: f64,
        arriving: f64,
        per_worker: Option<f64>,
    ) -> Result<(), InvalidTrace> {
        let refused = |problem: String| Err(invalid(place(), problem));
        let Some(first) = self.first else {
            (self.first, self.last) = (Some(seconds), seconds);
            return self.keep(place, arriving, per_worker);
        };
        let after = seconds - self.last;
        if after <= 0.0 {
            return refused(format!(
                "{seconds} s does not come after {} s: rows must be in order, each once",
                self.last
            ));
        }
        let step = self.step.get_or_insert_with(|| (after, place())).0;
        if after > step + ROUNDING {
            return refused(format!(
                "a gap of {after} s, where the step is {step} s: what arrived meanwhile is not known"
            ));
        }
        if after < step - ROUNDING {
            return refused(format!("a step of {after} s, where those before are {step} s: steps must be uniform"));
        }
        let length = seconds - first + step;
        if length > LONGEST + ROUNDING {
            return refused(
                "the trace is longer than 31 days: cut it, and begin each part with what waits then (--backlog, --workers, --learnt-rate)".to_owned(),
            );
        }
        if self.rates.len() >= MOST_ROWS {
            return refused(format!("the trace has more than {MOST_ROWS} rows: take longer steps, or cut it"));
        }
        self.last = seconds;
        self.keep(place, arriving, per_worker)
    }

    fn keep(&mut self, place: &dyn Fn() -> String, arriving: f64, per_worker: Option<f64>) -> Result<(), InvalidTrace> {
        if arriving > HIGHEST_RATE {
            return Err(invalid(place(), format!("{arriving} events/s is more than {HIGHEST_RATE}")));
        }
        if per_worker.is_some_and(|rate| rate <= 0.0 || rate > HIGHEST_RATE) {
            let problem = format!("worker_events_per_second must be greater than 0 and at most {HIGHEST_RATE}");
            return Err(invalid(place(), problem));
        }
        self.rates.push(arriving);
        self.per_worker.extend(per_worker);
        Ok(())
    }

    fn finish(self, end: String) -> Result<Trace, InvalidTrace> {
        let (Some(first), Some((step, place))) = (self.first, self.step) else {
            return Err(invalid(end, "a trace needs at least two rows, which tell its step"));
        };
        // Time stamps are decimals: what is a microsecond off was meant to be round.
        let micros = |seconds: f64| {
            let nanos = Duration::try_from_secs_f64(seconds).ok()?.as_nanos();
            u64::try_from((nanos + 500) / 1_000).ok().map(Duration::from_micros)
        };
        let trace = micros(first).zip(micros(step));
        let trace = trace.and_then(|(begins, step)| Trace::of(begins, step, self.rates, self.per_worker));
        trace.ok_or_else(|| invalid(place, format!("a step of {step} s is none")))
    }
}

fn csv(mut reader: impl BufRead, skipped: usize) -> Result<Trace, InvalidTrace> {
    let mut columns: Option<usize> = None;
    let mut rows = Rows::default();
    let (mut line, mut text) = (skipped, Vec::new());
    loop {
        text.clear();
        let read = reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut text);
        if read.map_err(|error| unreadable(line, &error))? == 0 {
            break;
        }
        line += 1;
        let place = || format!("line {line}");
        if text.len() as u64 >= LONGEST_LINE && !text.ends_with(b"\n") {
            return Err(invalid(
                place(),
                format!("has more than {LONGEST_LINE} characters: a row has two or three numbers"),
            ));
        }
        let row = std::str::from_utf8(&text).map_err(|_| invalid(place(), "is not UTF-8 text"))?.trim();
        if row.is_empty() || row.starts_with('#') {
            continue;
        }
        let Some(columns) = columns else {
            columns = Some(header(row).map_err(|problem| invalid(place(), problem))?);
            continue;
        };
        let found = row.split(',').count();
        if found != columns {
            return Err(invalid(place(), format!("must have {columns} values, as the header has, and has {found}")));
        }
        let mut values = row.split(',').map(str::trim).zip(NAMES).map(|(field, name)| number(field, name, &place));
        let mut next = || values.next().unwrap_or(Ok(0.0));
        let (seconds, arriving) = (next()?, next()?);
        let per_worker = if columns == NAMES.len() { Some(next()?) } else { None };
        rows.push(&place, seconds, arriving, per_worker)?;
    }
    if columns.is_none() {
        return Err(invalid("line 1", "the trace is empty: it begins with the header seconds,events_per_second"));
    }
    rows.finish(format!("line {line}"))
}

/// The columns of CSV. The last may be absent.
const NAMES: [&str; 3] = ["seconds", "events_per_second", "worker_events_per_second"];

/// How many columns there are.
fn header(row: &str) -> Result<usize, String> {
    let names: Vec<&str> = row.split(',').map(str::trim).collect();
    if names == NAMES || names == NAMES[..2] {
        return Ok(names.len());
    }
    Err(format!(
        "the header must be seconds,events_per_second or seconds,events_per_second,worker_events_per_second, and is {row:?}"
    ))
}

fn number(text: &str, name: &str, place: &dyn Fn() -> String) -> Result<f64, InvalidTrace> {
    match text.parse::<f64>() {
        Err(_) => Err(invalid(place(), format!("{name} must be a number, and is {text:?}"))),
        Ok(value) if !value.is_finite() => Err(invalid(place(), format!("{name} must be finite, and is {text}"))),
        Ok(value) if value < 0.0 => Err(invalid(place(), format!("{name} must not be negative, and is {text}"))),
        Ok(value) => Ok(value),
    }
}

fn prometheus(reader: impl BufRead, skipped: usize) -> Result<Trace, InvalidTrace> {
    let answer: Answer = serde_json::from_reader(reader).map_err(|error| {
        let problem = format!("is not what Prometheus answers to query_range: {error}");
        invalid(format!("line {}", skipped + error.line()), problem)
    })?;
    let Answer { status, error, data } = answer;
    let data = data.filter(|_| status == "success").ok_or_else(|| {
        invalid("status", format!("Prometheus answered {status:?}: {}", error.as_deref().unwrap_or("no data")))
    })?;
    if data.result_type != "matrix" {
        let problem = format!("must be matrix, the answer to query_range, and is {:?}", data.result_type);
        return Err(invalid("data.resultType", problem));
    }
    let mut series = data.result.into_iter();
    match (series.next(), series.len()) {
        (None, _) => Err(invalid(
            "data.result",
            "holds 0 series: Prometheus found none of this name and these labels in this range; see whether the query alone answers there",
        )),
        (Some(_), further @ 1..) => Err(invalid(
            "data.result",
            format!("must hold one series, and holds {}: sum them in the query", further + 1),
        )),
        (Some(series), 0) => series.values.0?.finish("data.result[0].values".to_owned()),
    }
}

#[derive(Deserialize)]
struct Answer {
    status: String,
    error: Option<String>,
    data: Option<Data>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    result_type: String,
    #[serde(default)]
    result: Vec<Series>,
}

#[derive(Deserialize)]
struct Series {
    #[serde(default)]
    values: Values,
}

/// The values of a series, or what is wrong with the first that cannot be used.
struct Values(Result<Rows, InvalidTrace>);

impl Default for Values {
    fn default() -> Self {
        Self(Ok(Rows::default()))
    }
}

impl<'de> Deserialize<'de> for Values {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Self::default())
    }
}

impl<'de> Visitor<'de> for Values {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of pairs of a time and a value")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Self, A::Error> {
        let mut rows = Rows::default();
        let mut index = 0;
        while let Some((seconds, value)) = values.next_element::<(f64, Cow<'_, str>)>()? {
            let place = || format!("values[{index}]");
            let kept = number(&value, "the rate", &place).and_then(|rate| rows.push(&place, seconds, rate, None));
            if let Err(problem) = kept {
                while values.next_element::<IgnoredAny>()?.is_some() {}
                return Ok(Self(Err(problem)));
            }
            index += 1;
        }
        Ok(Self(Ok(rows)))
    }
}
