//! A trace: how many events arrive, step by step. Reads CSV and what Prometheus answers to `query_range`; knows no files.
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

use std::time::Duration;

use serde::Deserialize;

/// Events that arrive, over time.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    step: Duration,
    points: Vec<Point>,
}

/// One step of a trace.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Events per second that arrive; not negative.
    pub arriving: f64,
    /// Events per second that one busy worker handles, where the trace tells; greater than 0.
    pub per_worker: Option<f64>,
}

/// Why a text is no trace.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct InvalidTrace {
    /// `line 7`, or which value of a series.
    pub place: String,
    /// What is wrong, and what would be right.
    pub problem: String,
}

/// Longer traces are refused: a month.
const LONGEST: Duration = Duration::from_secs(31 * 86_400);
/// Higher rates are refused as a slip of the pen: positions of such a log would soon not be told apart.
const HIGHEST_RATE: f64 = 1e9;
/// Time stamps written as decimals are compared with this much leniency, in seconds.
const ROUNDING: f64 = 1e-6;

impl Trace {
    /// From rates and one step; `None` when there are none, or the step is zero.
    pub fn new(step: Duration, points: Vec<Point>) -> Option<Self> {
        (!points.is_empty() && !step.is_zero()).then_some(Self { step, points })
    }

    /// Reads either form: what begins with `{` is Prometheus's.
    ///
    /// # Errors
    /// With the line, or the value, when the text is neither.
    pub fn read(text: &str) -> Result<Self, InvalidTrace> {
        if text.trim_start().starts_with('{') { Self::from_prometheus(text) } else { Self::from_csv(text) }
    }

    /// How long one step is.
    pub fn step(&self) -> Duration {
        self.step
    }

    /// How long the whole trace is.
    pub fn length(&self) -> Duration {
        self.step.saturating_mul(u32::try_from(self.points.len()).unwrap_or(u32::MAX))
    }

    /// The steps.
    pub fn points(&self) -> &[Point] {
        &self.points
    }

    /// What holds at `at`; after the end, that nothing arrives.
    pub fn at(&self, at: Duration) -> Point {
        let index = usize::try_from(at.as_nanos() / self.step.as_nanos().max(1)).unwrap_or(usize::MAX);
        let last = Point { arriving: 0.0, per_worker: self.points.last().and_then(|point| point.per_worker) };
        self.points.get(index).copied().unwrap_or(last)
    }

    fn from_csv(text: &str) -> Result<Self, InvalidTrace> {
        let at = |line: usize, problem: String| InvalidTrace { place: format!("line {}", line + 1), problem };
        let mut rows = text
            .trim_start_matches('\u{feff}')
            .lines()
            .enumerate()
            .map(|(line, row)| (line, row.trim()))
            .filter(|(_, row)| !row.is_empty() && !row.starts_with('#'));
        let Some((line, header)) = rows.next() else {
            return Err(at(0, "the trace is empty: it begins with the header seconds,events_per_second".to_owned()));
        };
        let names: Vec<&str> = header.split(',').map(str::trim).collect();
        let columns = match names.as_slice() {
            ["seconds", "events_per_second"] => 2,
            ["seconds", "events_per_second", "worker_events_per_second"] => 3,
            _ => {
                let problem = format!(
                    "the header must be seconds,events_per_second or seconds,events_per_second,worker_events_per_second, and is {header:?}"
                );
                return Err(at(line, problem));
            }
        };
        let mut samples = Vec::new();
        for (line, row) in rows {
            let place = format!("line {}", line + 1);
            let fields: Vec<&str> = row.split(',').map(str::trim).collect();
            if fields.len() != columns {
                return Err(at(
                    line,
                    format!("must have {columns} values, as the header has, and has {}", fields.len()),
                ));
            }
            let mut values = fields.iter().zip(&names).map(|(field, name)| number(field, name, &place));
            let mut next = || values.next().unwrap_or(Ok(0.0));
            let (seconds, arriving) = (next()?, next()?);
            let per_worker = if columns == 3 { Some(next()?) } else { None };
            samples.push(Sample { place, seconds, arriving, per_worker });
        }
        let end = format!("line {}", text.lines().count());
        assemble(&samples, end)
    }

    fn from_prometheus(text: &str) -> Result<Self, InvalidTrace> {
        let invalid = |place: &str, problem: String| InvalidTrace { place: place.to_owned(), problem };
        let answer: Answer = serde_json::from_str(text).map_err(|error| {
            let problem = format!("is not what Prometheus answers to query_range: {error}");
            invalid(&format!("line {}", error.line()), problem)
        })?;
        let Answer { status, error, data } = answer;
        let data = data.filter(|_| status == "success").ok_or_else(|| {
            invalid("status", format!("Prometheus answered {status:?}: {}", error.as_deref().unwrap_or("no data")))
        })?;
        if data.result_type != "matrix" {
            let problem = format!("must be matrix, the answer to query_range, and is {:?}", data.result_type);
            return Err(invalid("data.resultType", problem));
        }
        let [series] = data.result.as_slice() else {
            let problem = format!("must hold one series, and holds {}: sum them in the query", data.result.len());
            return Err(invalid("data.result", problem));
        };
        let mut samples = Vec::new();
        for (index, (seconds, value)) in series.values.iter().enumerate() {
            let place = format!("values[{index}]");
            let arriving = number(value, "the rate", &place)?;
            samples.push(Sample { place, seconds: *seconds, arriving, per_worker: None });
        }
        assemble(&samples, "data.result[0].values".to_owned())
    }
}

/// A row as read.
struct Sample {
    place: String,
    seconds: f64,
    arriving: f64,
    per_worker: Option<f64>,
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
    values: Vec<(f64, String)>,
}

fn number(text: &str, name: &str, place: &str) -> Result<f64, InvalidTrace> {
    let invalid = |problem| InvalidTrace { place: place.to_owned(), problem };
    match text.parse::<f64>() {
        Err(_) => Err(invalid(format!("{name} must be a number, and is {text:?}"))),
        Ok(value) if !value.is_finite() => Err(invalid(format!("{name} must be finite, and is {text}"))),
        Ok(value) if value < 0.0 => Err(invalid(format!("{name} must not be negative, and is {text}"))),
        Ok(value) => Ok(value),
    }
}

fn assemble(samples: &[Sample], end: String) -> Result<Trace, InvalidTrace> {
    let [first, second, ..] = samples else {
        return Err(InvalidTrace {
            place: end,
            problem: "a trace needs at least two rows, which tell its step".to_owned(),
        });
    };
    let step = second.seconds - first.seconds;
    for (before, sample) in samples.iter().zip(samples.iter().skip(1)) {
        let invalid = |problem| InvalidTrace { place: sample.place.clone(), problem };
        let after = sample.seconds - before.seconds;
        if after <= 0.0 {
            let problem = format!(
                "{} s does not come after {} s: rows must be in order, each once",
                sample.seconds, before.seconds
            );
            return Err(invalid(problem));
        }
        if after > step + ROUNDING {
            let problem =
                format!("a gap of {after} s, where the step is {step} s: what arrived meanwhile is not known");
            return Err(invalid(problem));
        }
        if after < step - ROUNDING {
            return Err(invalid(format!(
                "a step of {after} s, where those before are {step} s: steps must be uniform"
            )));
        }
    }
    let mut points = Vec::with_capacity(samples.len());
    for Sample { place, seconds: _, arriving, per_worker } in samples {
        let invalid = |problem| InvalidTrace { place: place.clone(), problem };
        if *arriving > HIGHEST_RATE {
            return Err(invalid(format!("{arriving} events/s is more than {HIGHEST_RATE}")));
        }
        if per_worker.is_some_and(|rate| rate <= 0.0 || rate > HIGHEST_RATE) {
            return Err(invalid(format!("worker_events_per_second must be greater than 0 and at most {HIGHEST_RATE}")));
        }
        points.push(Point { arriving: *arriving, per_worker: *per_worker });
    }
    let place = second.place.clone();
    // Time stamps are decimals: what is a microsecond off was meant to be round.
    let micros = Duration::try_from_secs_f64(step).ok().map(|step| Duration::from_micros(round_micros(step)));
    let trace = micros.and_then(|step| Trace::new(step, points));
    let trace = trace.ok_or_else(|| InvalidTrace { place, problem: format!("a step of {step} s is none") })?;
    if trace.length() > LONGEST {
        return Err(InvalidTrace { place: end, problem: "the trace is longer than 31 days".to_owned() });
    }
    Ok(trace)
}

fn round_micros(step: Duration) -> u64 {
    u64::try_from((step.as_nanos() + 500) / 1_000).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "trace_tests.rs"]
mod tests;
