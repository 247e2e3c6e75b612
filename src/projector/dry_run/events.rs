//! Reads events from a file: one JSON object a line. Pure.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use super::super::event::{Event, JsonText, Timestamp};

/// 2000-01-01 in microseconds since 1970.
const EPOCH: i64 = 946_684_800_000_000;
/// The fields of an event, as handlers name them.
const FIELDS: [&str; 5] = ["type", "stream", "position", "recorded_at", "data"];

/// An event to try handlers with.
#[derive(Clone, Debug)]
pub struct SampleEvent {
    /// Its line in the file, from 1.
    pub(super) line: usize,
    pub(super) event: Event,
}

/// A line that is no event.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct BadEvent {
    line: usize,
    problem: String,
}

/// Reads all events of a text. Empty lines are passed over.
///
/// # Errors
/// Names the first line that is no event, its field, and what the field must be.
pub fn read_events(text: &str) -> Result<Vec<SampleEvent>, BadEvent> {
    let mut events: Vec<SampleEvent> = Vec::new();
    for (line, text) in (1..).zip(text.lines()).filter(|(_, text)| !text.trim().is_empty()) {
        let before = events.last().map(|last| last.event.position);
        let event = event(text, before).map_err(|problem| BadEvent { line, problem })?;
        events.push(SampleEvent { line, event });
    }
    Ok(events)
}

/// `before` is the position of the event before it.
fn event(text: &str, before: Option<i64>) -> Result<Event, String> {
    let mut fields: BTreeMap<String, &RawValue> =
        serde_json::from_str(text).map_err(|error| format!("is no JSON object: {error}"))?;
    if let Some(unknown) = fields.keys().find(|field| !FIELDS.contains(&field.as_str())) {
        return Err(format!("there is no field {unknown:?}: there are {}", FIELDS.join(", ")));
    }
    let mut field = |name: &str| fields.remove(name).map(RawValue::get);
    let data = field("data").map(|data| JsonText(data.to_owned()));
    let mut field = |name: &str| field(name).filter(|value| *value != "null");
    let text = |name: &str, value: &str| {
        serde_json::from_str::<String>(value)
            .map_err(|_| format!("field {name} must be a text, and is {}", shown(value)))
    };
    let event_type = field("type").ok_or("field type is missing: which type of event is it?")?;
    let event_type = text("type", event_type)?;
    let stream = field("stream").map(|stream| text("stream", stream)).transpose()?;
    let position = match field("position") {
        None => before.unwrap_or(0).saturating_add(1),
        Some(value) => {
            // Offsets begin at 0.
            let lowest = before.map_or(0, |before| before.saturating_add(1));
            value.parse().ok().filter(|position| *position >= lowest).ok_or_else(|| {
                format!("field position must be a whole number from {lowest} on, and is {}", shown(value))
            })?
        }
    };
    let recorded_at = field("recorded_at").map(|value| {
        let time = text("recorded_at", value)?.parse::<jiff::Timestamp>();
        let time = time.map_err(|_| {
            format!("field recorded_at must be a time such as \"2026-11-26T16:00:00Z\", and is {}", shown(value))
        })?;
        Ok::<_, String>(Timestamp(time.as_microsecond() - EPOCH))
    });
    Ok(Event {
        position,
        since: position,
        before: position - 1,
        shown_position: position,
        behind_parked: None,
        shard: 0,
        event_type,
        stream,
        recorded_at: recorded_at.transpose()?,
        data,
    })
}

/// The beginning of a value.
fn shown(value: &str) -> String {
    let mut shown: String = value.chars().take(40).collect();
    if shown.len() < value.len() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_an_event_with_what_it_names() {
        let text = r#"{"type": "Placed", "stream": "order-1", "data": {"total": 12345678901234567890.5}}

            {"type": "Paid", "position": 7, "recorded_at": "2000-01-01T00:00:01Z", "stream": null, "data": null}
            {"type": "Shipped"}"#;
        let events = read_events(text).unwrap();
        let told: Vec<_> = events
            .iter()
            .map(|SampleEvent { line, event }| {
                let data = event.data.as_ref().map(|data| data.0.as_str());
                (*line, event.event_type.as_str(), event.position, event.stream.as_deref(), event.recorded_at, data)
            })
            .collect();
        assert_eq!(
            told,
            [
                (1, "Placed", 1, Some("order-1"), None, Some(r#"{"total": 12345678901234567890.5}"#)),
                (3, "Paid", 7, None, Some(Timestamp(1_000_000)), Some("null")),
                (4, "Shipped", 8, None, None, None),
            ]
        );
        assert!(read_events("\n").unwrap().is_empty());
    }

    #[test]
    fn a_bad_event_is_named_by_line_and_field() {
        for (line, words) in [
            ("nonsense", "no JSON object"),
            ("[1]", "no JSON object"),
            (r#"{"stream": "a"}"#, "field type is missing"),
            (r#"{"type": 4}"#, "field type must be a text, and is 4"),
            (r#"{"type": "A", "kind": 4}"#, "no field \"kind\""),
            (r#"{"type": "A", "stream": ["x"]}"#, "field stream"),
            (r#"{"type": "A", "position": 1}"#, "field position must be a whole number from 2 on"),
            (r#"{"type": "A", "position": "3"}"#, "field position"),
            (r#"{"type": "A", "recorded_at": "yesterday"}"#, "field recorded_at"),
        ] {
            let bad = read_events(&format!("{{\"type\": \"A\"}}\n{line}")).unwrap_err().to_string();
            assert!(bad.starts_with("line 2: ") && bad.contains(words), "{bad}");
        }
    }
}
