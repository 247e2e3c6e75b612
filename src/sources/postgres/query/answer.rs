//! What the row of a user's query means, column by column. Pure. NULL is unknown, and never zero.

use serde_json::{Map, Value};

use crate::{api::Reason, lag::Position, measure::MeasureError, sources::postgres::counting::Oldest};

/// The columns that are known.
const COLUMNS: [&str; 7] = ["pending", "oldest", "staleness_seconds", "arrived", "handled", "head", "checkpoint"];
/// Above this a number of JSON may have been rounded.
const LARGEST: f64 = 9_007_199_254_740_992.0;

/// What a row says. Absent is unknown.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Answer {
    /// Events that wait.
    pub(super) pending: u64,
    /// False where it is the distance of two positions, which may have gaps.
    pub(super) exact: bool,
    /// The oldest of them.
    pub(super) oldest: Oldest,
    /// A counter of events that came.
    pub(super) arrived: Option<u64>,
    /// A counter of events that were handled.
    pub(super) handled: Option<u64>,
    /// The newest position.
    pub(super) head: Option<Position>,
    /// The position of the projection, where the query has such a column.
    pub(super) checkpoint: Option<Option<Position>>,
}

/// Reads a row, as a JSON object of its columns. `now`: the server's clock, in seconds since 1970.
///
/// # Errors
/// Which column makes no sense, and what to write.
pub(super) fn read(row: &Map<String, Value>, now: f64) -> Result<Answer, MeasureError> {
    let only = (row.len() == 1).then(|| row.iter().next()).flatten();
    let only = only.filter(|(name, _)| !COLUMNS.contains(&name.as_str()));
    if let Some((name, value)) = only {
        return waiting(number(name, value)?, Oldest::Unknown, name);
    }
    if let Some(unknown) = row.keys().find(|name| !COLUMNS.contains(&name.as_str())) {
        return Err(refused(
            Reason::ColumnNotFound,
            format!("column {} is not known: name its columns {}", shown(unknown), COLUMNS.join(", ")),
        ));
    }
    let [pending, arrived, handled] = ["pending", "arrived", "handled"].map(|name| column(row, name, number));
    let [head, checkpoint] = ["head", "checkpoint"].map(|name| column(row, name, position));
    let (head, checkpoint) = (head?, checkpoint?);
    if row.contains_key("checkpoint") && !row.contains_key("head") {
        return Err(refused(Reason::ColumnNotFound, "column checkpoint needs a column head".to_owned()));
    }
    if row.contains_key("oldest") && row.contains_key("staleness_seconds") {
        let message = "columns oldest and staleness_seconds say the same: give one of them";
        return Err(refused(Reason::InvalidSpec, message.to_owned()));
    }
    let oldest = match (column(row, "oldest", time)?.flatten(), column(row, "staleness_seconds", seconds)?) {
        (Some(at), _) => Oldest::Age(now - at),
        (None, Some(age)) => Oldest::Age(age),
        (None, None) => Oldest::Unknown,
    };
    let answer = match (pending?, head, checkpoint) {
        (None, Some(head), Some(checkpoint)) if !row.contains_key("pending") => {
            let distance = u64::try_from(head.0.saturating_sub(checkpoint.0)).unwrap_or(0);
            Answer { exact: distance == 0, ..waiting(Some(distance), oldest, "pending")? }
        }
        // Whether anything waits beyond no checkpoint is said by the checkpoint.
        (None, Some(_), None) if row.contains_key("checkpoint") => waiting(Some(0), oldest, "pending")?,
        (None, ..) if !row.contains_key("pending") => {
            return Err(refused(
                Reason::ColumnNotFound,
                "it has no column pending, nor head and checkpoint: name the number of events that wait, as in select count(*) as pending".to_owned(),
            ));
        }
        (pending, ..) => waiting(pending, oldest, "pending")?,
    };
    let checkpoint = row.contains_key("checkpoint").then_some(checkpoint);
    Ok(Answer { arrived: arrived?, handled: handled?, head, checkpoint, ..answer })
}

fn waiting(pending: Option<u64>, oldest: Oldest, name: &str) -> Result<Answer, MeasureError> {
    let Some(pending) = pending else {
        return Err(refused(
            Reason::InvalidAnswer,
            format!(
                "column {} is NULL, which is unknown and not 0: if it means that nothing waits, write coalesce(…, 0)",
                shown(name)
            ),
        ));
    };
    let oldest = if pending == 0 { Oldest::None } else { oldest };
    Ok(Answer { pending, exact: true, oldest, arrived: None, handled: None, head: None, checkpoint: None })
}

fn column<T>(
    row: &Map<String, Value>,
    name: &str,
    read: impl Fn(&str, &Value) -> Result<Option<T>, MeasureError>,
) -> Result<Option<T>, MeasureError> {
    row.get(name).map_or(Ok(None), |value| read(name, value))
}

/// A number of events.
fn number(name: &str, value: &Value) -> Result<Option<u64>, MeasureError> {
    let wrong = |what: &str| {
        Err(refused(
            Reason::ColumnTypeUnsuitable,
            format!("column {} must be a whole number from 0 on, and is {what}", shown(name)),
        ))
    };
    match value {
        Value::Null => Ok(None),
        Value::Number(number) => match (number.as_u64(), number.as_f64()) {
            (Some(number), _) => Ok(Some(number)),
            (_, Some(number)) if number < 0.0 => wrong("negative"),
            (_, Some(number)) if number > LARGEST => wrong("too large"),
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            (_, Some(number)) if number.fract() == 0.0 => Ok(Some(number as u64)),
            _ => wrong("a fraction"),
        },
        other => wrong(kind(other)),
    }
}

fn position(name: &str, value: &Value) -> Result<Option<Position>, MeasureError> {
    number(name, value)?
        .map(|number| {
            let too_large = || refused(Reason::ColumnTypeUnsuitable, format!("column {name} is too large"));
            i64::try_from(number).map(Position).map_err(|_| too_large())
        })
        .transpose()
}

fn seconds(name: &str, value: &Value) -> Result<Option<f64>, MeasureError> {
    let wrong = |what: &str| {
        Err(refused(Reason::ColumnTypeUnsuitable, format!("column {name} must be a number of seconds, and is {what}")))
    };
    match value {
        Value::Null => Ok(None),
        Value::Number(number) => match number.as_f64() {
            Some(number) if number.is_finite() => Ok(Some(number)),
            _ => wrong("too large"),
        },
        other => wrong(kind(other)),
    }
}

/// A `timestamptz`, in seconds since 1970; the inner option is absent for one that tells no age.
fn time(name: &str, value: &Value) -> Result<Option<Option<f64>>, MeasureError> {
    let wrong = |what: &str| {
        Err(refused(Reason::ColumnTypeUnsuitable, format!("column {name} must be a timestamptz, and is {what}")))
    };
    match value {
        Value::Null => Ok(None),
        Value::String(text) => {
            if let Ok(at) = text.parse::<jiff::Timestamp>() {
                return Ok(Some(Some(at.as_duration().as_secs_f64())));
            }
            match text.as_str() {
                "infinity" | "-infinity" => Ok(Some(None)),
                bc if bc.ends_with(" BC") => Ok(Some(None)),
                // A year of five digits.
                far if far.find('-').is_some_and(|year| year > 4) && far.contains('T') => Ok(Some(None)),
                local if local.parse::<jiff::civil::DateTime>().is_ok() => wrong(
                    "a timestamp without time zone or a date: add at time zone 'UTC', or the zone that it is written in",
                ),
                _ => wrong("text"),
            }
        }
        other => wrong(kind(other)),
    }
}

/// Never the value itself, which may be anything.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(text) if text == "NaN" => "NaN, which is unknown: divide by nullif(…, 0)",
        Value::String(text) if text == "Infinity" || text == "-Infinity" => "infinite",
        Value::String(_) => "text: cast it, as in ::bigint",
        Value::Bool(_) => "a boolean",
        Value::Array(_) | Value::Object(_) => "a list or a record",
        Value::Null | Value::Number(_) => "another number",
    }
}

/// A column's name, cut to a length that a message can hold.
fn shown(name: &str) -> String {
    let mut short: String = name.chars().filter(|c| !c.is_control()).take(63).collect();
    if short.is_empty() {
        "?column?".clone_into(&mut short);
    }
    short
}

fn refused(reason: Reason, message: String) -> MeasureError {
    MeasureError { reason, message }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(row: &Value) -> Result<Answer, MeasureError> {
        read(row.as_object().unwrap(), 1_000_000.0)
    }

    fn refusal(row: &Value) -> (Reason, String) {
        let error = of(row).unwrap_err();
        (error.reason, error.message)
    }

    #[test]
    fn the_only_column_is_what_waits_whatever_its_name() {
        for name in ["count", "pending", "ceil", "?column?"] {
            let answer = of(&json!({ name: 7 })).unwrap();
            assert_eq!((answer.pending, answer.exact, answer.oldest), (7, true, Oldest::Unknown), "{name}");
        }
        assert_eq!(of(&json!({ "count": 0 })).unwrap().oldest, Oldest::None, "nothing waits");
        assert_eq!(refusal(&json!({ "oldest": null })).0, Reason::ColumnNotFound);
    }

    #[test]
    fn null_and_what_is_no_count_is_unknown_and_not_zero() {
        assert_eq!(refusal(&json!({ "pending": null })).0, Reason::InvalidAnswer);
        assert_eq!(refusal(&json!({ "sum": null })).0, Reason::InvalidAnswer);
        for wrong in
            [json!(-1), json!(1.5), json!("7"), json!("NaN"), json!(true), json!([7]), json!(1e30), json!(-0.5)]
        {
            assert_eq!(refusal(&json!({ "pending": wrong })).0, Reason::ColumnTypeUnsuitable, "{wrong}");
        }
        assert!(refusal(&json!({ "pending": "hunter2" })).1.contains("is text"), "and not the value");
        assert_eq!(of(&json!({ "pending": 3.0 })).unwrap().pending, 3);
        for wrong in [json!("NaN"), json!("x"), json!(false)] {
            assert!(of(&json!({ "pending": 1, "staleness_seconds": wrong })).is_err(), "{wrong}");
        }
        assert_eq!(of(&json!({ "pending": 1, "staleness_seconds": null })).unwrap().oldest, Oldest::Unknown);
    }

    #[test]
    fn the_oldest_is_a_time_with_a_zone() {
        let oldest = |value: Value| of(&json!({ "pending": 2, "oldest": value }));
        for at in ["1970-01-12T13:46:30+00:00", "1970-01-12T19:16:30.000+05:30"] {
            assert_eq!(oldest(json!(at)).unwrap().oldest, Oldest::Age(10.0), "{at}");
        }
        for unknown in ["infinity", "-infinity", "4713-01-01T00:00:00+00:00 BC", "294276-12-31T23:59:59+00:00"] {
            assert_eq!(oldest(json!(unknown)).unwrap().oldest, Oldest::Unknown, "{unknown}");
        }
        for wrong in [json!("1970-01-12T13:46:30"), json!("1970-01-12"), json!("x"), json!(7)] {
            assert_eq!(oldest(wrong.clone()).unwrap_err().reason, Reason::ColumnTypeUnsuitable, "{wrong}");
        }
        assert!(refusal(&json!({ "pending": 2, "oldest": "1970-01-12T13:46:30" })).1.contains("time zone"));
    }

    #[test]
    fn two_positions_give_an_upper_bound_of_what_waits() {
        let answer = of(&json!({ "head": 40, "checkpoint": 30 })).unwrap();
        assert_eq!((answer.pending, answer.exact), (10, false));
        assert_eq!((answer.head, answer.checkpoint), (Some(Position(40)), Some(Some(Position(30)))));
        let counted = of(&json!({ "head": 40, "checkpoint": 30, "pending": 4 })).unwrap();
        assert_eq!((counted.pending, counted.exact), (4, true));
        assert_eq!(of(&json!({ "head": 40, "checkpoint": null })).unwrap().checkpoint, Some(None), "never committed");
        assert_eq!(refusal(&json!({ "head": null, "checkpoint": 3 })).0, Reason::ColumnNotFound);
        assert_eq!(refusal(&json!({ "checkpoint": 3, "pending": 3 })).0, Reason::ColumnNotFound);
    }

    #[test]
    fn a_column_of_another_name_is_refused() {
        assert!(refusal(&json!({ "pending": 3, "oldets": null })).1.contains("oldets"));
        assert_eq!(refusal(&json!({})).0, Reason::ColumnNotFound);
    }
}
