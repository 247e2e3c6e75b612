//! What an answer of the query API means. What is missing, no number or not finite is unknown, never zero. Repeats nothing of an answer.

use std::time::Duration;

use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;

use crate::{api::Reason, measure::MeasureError};

/// A number that is dated further back than this says nothing about now.
const OLDEST: Duration = Duration::from_secs(60);

#[derive(Deserialize)]
struct Answer {
    status: String,
    data: Option<Data>,
    #[serde(default)]
    warnings: Vec<String>,
}

#[derive(Deserialize)]
struct Data {
    #[serde(rename = "resultType")]
    kind: String,
    result: Value,
}

#[derive(Deserialize)]
struct Sample {
    value: Option<(f64, Value)>,
    histogram: Option<IgnoredAny>,
}

#[derive(Default, Deserialize)]
struct ErrorBody {
    #[serde(default, rename = "errorType")]
    kind: String,
    #[serde(default)]
    error: String,
}

fn unknown(reason: Reason, message: impl Into<String>) -> MeasureError {
    MeasureError { reason, message: message.into() }
}

/// Something else serves there.
pub(super) fn not_the_api(what: &str) -> MeasureError {
    unknown(
        Reason::InvalidAnswer,
        format!(
            "the answer is none of Prometheus's query API ({what}): does the URL lead to the server, with the path before /api/v1 where there is one?"
        ),
    )
}

/// The one number of a successful answer. `at`: the server's time, where it tells.
pub(super) fn single(body: &[u8], at: Option<jiff::Timestamp>) -> Result<f64, MeasureError> {
    let answer: Answer = serde_json::from_slice(body).map_err(|_| not_the_api("other JSON"))?;
    let data = answer.data.filter(|_| answer.status == "success").ok_or_else(|| not_the_api("no result"))?;
    // Remarks on the query itself; any other warning is about data that could not be had.
    if answer.warnings.iter().any(|warning| !warning.starts_with("PromQL ")) {
        return Err(unknown(
            Reason::InvalidAnswer,
            "the server warns that the answer may lack a part (a store did not answer): the same query in its own user interface shows the warning",
        ));
    }
    let (time, number) = match data.kind.as_str() {
        "scalar" => serde_json::from_value(data.result).map_err(|_| not_the_api("a strange scalar"))?,
        "vector" => of_vector(data.result)?,
        "matrix" => {
            return Err(unknown(
                Reason::InvalidAnswer,
                "the query results in a range of values: take one number of it, as in max_over_time(…) or rate(…)",
            ));
        }
        "string" => return Err(unknown(Reason::InvalidAnswer, "the query results in a text, and not in a number")),
        _ => return Err(not_the_api("an unknown type of result")),
    };
    fresh(time, at)?;
    let number = number.as_str().and_then(|text| text.parse::<f64>().ok());
    let number = number.ok_or_else(|| not_the_api("a value that is no number"))?;
    if number.is_finite() {
        return Ok(number);
    }
    let what = if number.is_nan() { "NaN (often a division of zero by zero)" } else { "infinite" };
    Err(unknown(
        Reason::InvalidAnswer,
        format!("the query results in a value that is {what}, which says nothing: it is unknown, not zero"),
    ))
}

fn of_vector(result: Value) -> Result<(f64, Value), MeasureError> {
    let samples: Vec<Sample> = serde_json::from_value(result).map_err(|_| not_the_api("a strange vector"))?;
    let count = samples.len();
    let mut samples = samples.into_iter();
    match (samples.next(), count) {
        (Some(Sample { value: Some(value), .. }), 1) => Ok(value),
        (Some(Sample { histogram: Some(_), .. }), 1) => Err(unknown(
            Reason::InvalidAnswer,
            "the query results in a histogram: take one number of it, as in histogram_quantile(0.99, …)",
        )),
        (None, _) => Err(unknown(
            Reason::InvalidAnswer,
            "the query results in nothing, which is unknown and not zero: is the metric's name right, is its target scraped, and has it been in the last minutes? Where nothing means zero, write: … or vector(0)",
        )),
        (Some(_), 1) => Err(not_the_api("a sample without a value")),
        (Some(_), count) => Err(unknown(
            Reason::InvalidAnswer,
            format!(
                "the query results in {count} series, and one number is needed: combine them, as in sum(…) or max(…)"
            ),
        )),
    }
}

/// Servers date a result with the time for which it was computed.
fn fresh(time: f64, at: Option<jiff::Timestamp>) -> Result<(), MeasureError> {
    let Some(at) = at else { return Ok(()) };
    let age = at.as_duration().as_secs_f64() - time;
    if age <= OLDEST.as_secs_f64() {
        return Ok(());
    }
    Err(unknown(
        Reason::InvalidAnswer,
        format!("the result is from {age:.0} s ago by the server's own clock: does a cache answer?"),
    ))
}

/// What a status other than 200 means.
pub(super) fn refusal(status: http::StatusCode, is_json: bool, body: &[u8]) -> MeasureError {
    let said: ErrorBody = serde_json::from_slice(body).ok().filter(|_| is_json).unwrap_or_default();
    let number = status.as_u16();
    let cannot =
        || unknown(Reason::SourceFailed, format!("status {number}: the server cannot answer now; its log says why"));
    match (number, said.kind.as_str()) {
        (_, "bad_data") => {
            unknown(Reason::InvalidSpec, format!("the server does not take the query{}", place(&said.error)))
        }
        (_, "execution") => unknown(
            Reason::InvalidSpec,
            "the server cannot compute the query (execution): series that do not match one to one, or too many of them; its own user interface shows why",
        ),
        (_, "timeout" | "canceled") => {
            unknown(Reason::TimedOut, format!("the server gave the query up ({}): it takes too long", said.kind))
        }
        (300..=399, _) => unknown(
            Reason::InvalidAnswer,
            "the answer is a redirection, which is not followed: write the URL that it leads to",
        ),
        (401, _) => unknown(
            Reason::AuthenticationFailed,
            "status 401: the server wants other credentials: username and password, or a token, in a Secret beside the URL",
        ),
        (403, _) => unknown(
            Reason::PermissionDenied,
            "status 403: these credentials may not ask this query: does the user have the right, and is the tenant the right one?",
        ),
        (404, _) => not_the_api("status 404"),
        (_, "unavailable" | "internal" | "too_many_requests") | (429 | 500..=599, _) => cannot(),
        _ => not_the_api(&format!("status {number}")),
    }
}

/// Where the server finds a syntax error: `1:8: parse error`.
fn place(error: &str) -> String {
    let found = error.split("parse error").next().filter(|before| before.len() < error.len()).and_then(|before| {
        let mut numbers = before.trim_end_matches([' ', ':']).rsplit([' ', ':']);
        let (column, line) = (numbers.next()?, numbers.next()?);
        Some((line.parse::<u32>().ok()?, column.parse::<u32>().ok()?))
    });
    found.map_or_else(
        || ": it cannot be read, or is not of the right type".to_owned(),
        |(line, column)| format!(": it cannot be read at line {line}, character {column}"),
    )
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    fn vector(values: &[&str]) -> String {
        let values: Vec<String> =
            values.iter().map(|value| format!(r#"{{"metric":{{"a":"b"}},"value":[1.5,{value}]}}"#)).collect();
        format!(r#"{{"status":"success","data":{{"resultType":"vector","result":[{}]}}}}"#, values.join(","))
    }

    #[test]
    fn one_number_is_a_number_and_everything_else_is_unknown_with_a_reason() {
        assert_eq!(single(vector(&["\"42.5\""]).as_bytes(), None), Ok(42.5));
        let scalar = r#"{"status":"success","data":{"resultType":"scalar","result":[1.5,"-1e3"]}}"#;
        assert_eq!(single(scalar.as_bytes(), None), Ok(-1_000.0));
        let of = |kind: &str, result: &str| {
            format!(r#"{{"status":"success","data":{{"resultType":"{kind}","result":{result}}}}}"#)
        };
        let histogram = of("vector", r#"[{"metric":{},"histogram":[1,{"count":"1"}]}]"#);
        let warned = scalar.replace("{\"status\"", r#"{"warnings":["store hunter2 is away"],"status""#);
        for (body, words) in [
            (vector(&[]), "nothing"),
            (vector(&["\"1\"", "\"2\""]), "2 series"),
            (vector(&["\"NaN\""]), "NaN"),
            (vector(&["\"+Inf\""]), "infinite"),
            (vector(&["\"-Inf\""]), "infinite"),
            (vector(&["\"hunter2\""]), "no number"),
            (vector(&["7"]), "no number"),
            (vector(&["null"]), "no number"),
            (histogram, "histogram_quantile"),
            (of("matrix", "[]"), "range"),
            (of("string", r#"[1,"hunter2"]"#), "text"),
            (of("hunter2", "[]"), "unknown type"),
            (of("vector", "{}"), "strange vector"),
            (of("scalar", "[]"), "strange scalar"),
            (warned, "lack a part"),
            (r#"{"status":"error","error":"hunter2"}"#.to_owned(), "no result"),
            ("[]".to_owned(), "other JSON"),
            (String::new(), "other JSON"),
            ("<html>hunter2".to_owned(), "other JSON"),
            ("[".repeat(100_000), "other JSON"),
        ] {
            let unknown = single(body.as_bytes(), None).unwrap_err();
            assert_eq!(unknown.reason, Reason::InvalidAnswer, "{body:.60}");
            assert!(unknown.message.contains(words), "{body:.60}: {}", unknown.message);
            assert!(!unknown.message.contains("hunter2"), "{}", unknown.message);
        }
        let remarked = scalar.replace("{\"status\"", r#"{"warnings":["PromQL info: it might be no counter"],"status""#);
        assert_eq!(single(remarked.as_bytes(), None), Ok(-1_000.0));
    }

    #[test]
    fn a_result_from_long_ago_is_unknown_where_the_server_tells_its_time() {
        let at = |seconds| Some(jiff::Timestamp::from_second(seconds).unwrap());
        let body = vector(&["\"1\""]);
        assert_eq!(single(body.as_bytes(), at(2)), Ok(1.0));
        assert!(single(body.as_bytes(), at(600)).unwrap_err().message.contains("598 s ago"));
    }

    #[test]
    fn each_refusal_has_its_reason_and_repeats_nothing() {
        let error = |kind: &str, text: &str| format!(r#"{{"status":"error","errorType":"{kind}","error":"{text}"}}"#);
        let syntax = error("bad_data", "invalid parameter \\\"query\\\": 1:8: parse error: unexpected <hunter2>");
        for (status, body, reason, words) in [
            (400, syntax.as_str(), Reason::InvalidSpec, "line 1, character 8"),
            (400, &error("bad_data", "hunter2"), Reason::InvalidSpec, "cannot be read"),
            (422, &error("execution", "hunter2"), Reason::InvalidSpec, "one to one"),
            (503, &error("timeout", "hunter2"), Reason::TimedOut, "takes too long"),
            (503, &error("unavailable", "hunter2"), Reason::SourceFailed, "503"),
            (500, "hunter2", Reason::SourceFailed, "500"),
            (429, "", Reason::SourceFailed, "429"),
            (401, "hunter2", Reason::AuthenticationFailed, "credentials"),
            (403, "hunter2", Reason::PermissionDenied, "tenant"),
            (404, "hunter2", Reason::InvalidAnswer, "/api/v1"),
            (302, "", Reason::InvalidAnswer, "not followed"),
            (418, "hunter2", Reason::InvalidAnswer, "418"),
        ] {
            let found = refusal(StatusCode::from_u16(status).unwrap(), body.starts_with('{'), body.as_bytes());
            assert_eq!(found.reason, reason, "{status} {body}");
            assert!(found.message.contains(words), "{}", found.message);
            assert!(!found.message.contains("hunter2"), "{}", found.message);
        }
    }
}
