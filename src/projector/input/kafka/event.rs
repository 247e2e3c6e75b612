//! What a record of Kafka is as an event: a CloudEvent, or JSON with its type in a header, a field or the Projection. Pure.

use std::{borrow::Cow, collections::BTreeSet};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use serde::de::IgnoredAny;

use super::super::super::{
    event::{Event, JsonText, Timestamp},
    template::{inner, text_of},
};
use crate::{
    api::{KafkaEvent, KafkaEventType},
    clients::kafka::Record,
};

/// The header that holds an event's type where the Projection does not say.
const TYPE_HEADER: &str = "type";
/// How the media type of a CloudEvent in structured mode begins, and that of several in one record.
const STRUCTURED: &str = "application/cloudevents+json";
const BATCH: &str = "application/cloudevents-batch";
/// Microseconds in a millisecond.
const MILLIS: i64 = 1_000;

/// Type, body and, of a CloudEvent, subject.
type Parts = (String, Option<JsonText>, Option<String>);

/// How records are read.
#[derive(Clone, Debug)]
pub(super) struct Mapping {
    event_type: TypeFrom,
    data: Vec<String>,
    tombstone: Option<String>,
    /// The types that have a handler.
    wanted: BTreeSet<String>,
    max_bytes: usize,
}

#[derive(Clone, Debug)]
enum TypeFrom {
    Header(String),
    Field(Vec<String>),
    Name(String),
}

impl Mapping {
    /// `wanted` are the types that have a handler; an event whose key and value come to more than `max_bytes` is not read.
    pub(super) fn new(event: &KafkaEvent, wanted: Vec<String>, max_bytes: u64) -> Self {
        let KafkaEvent { type_, data, tombstone } = event;
        let steps = |path: &str| path.split('.').map(str::to_owned).collect();
        let event_type = match type_ {
            Some(KafkaEventType { name: Some(name), .. }) => TypeFrom::Name(name.clone()),
            Some(KafkaEventType { field: Some(field), .. }) => TypeFrom::Field(steps(field)),
            Some(KafkaEventType { header: Some(header), .. }) => TypeFrom::Header(header.clone()),
            _ => TypeFrom::Header(TYPE_HEADER.to_owned()),
        };
        Self {
            event_type,
            data: data.as_deref().map(steps).unwrap_or_default(),
            tombstone: tombstone.clone(),
            wanted: wanted.into_iter().collect(),
            max_bytes: usize::try_from(max_bytes).unwrap_or(usize::MAX),
        }
    }

    /// The event that a record is; `None` where its type has no handler. The event's shard and position are its partition's matter.
    ///
    /// # Errors
    /// Why it cannot be read, without anything of what it holds.
    pub(super) fn event(&self, record: &Record, shard: u32) -> Result<Option<Event>, String> {
        let size = [&record.key, &record.value].into_iter().flatten().map(Bytes::len).sum::<usize>();
        if size > self.max_bytes {
            return Err(format!(
                "its key and value have {size} bytes, and spec.projector.builtin.maxEventBytes allows {}: raise it, and the workers' memory to six times as much",
                self.max_bytes
            ));
        }
        let Some((event_type, data, subject)) = self.parts(record)? else { return Ok(None) };
        let stream = match &record.key {
            Some(key) => {
                Some(text(key).ok_or("its key is no text in UTF-8, and the key is the event's stream")?.to_owned())
            }
            None => subject,
        };
        let position = record.offset.saturating_add(1);
        Ok(Some(Event {
            position,
            since: position,
            shown_position: record.offset,
            shard,
            event_type,
            stream,
            recorded_at: record.time.and_then(|millis| {
                let since_1970 = millis.checked_mul(MILLIS)?;
                since_1970.checked_sub(Timestamp::EPOCH).map(Timestamp)
            }),
            data,
        }))
    }

    /// What of a record is not the same for all; `None` where its type has no handler.
    fn parts(&self, record: &Record) -> Result<Option<Parts>, String> {
        let content_type = header(record, "content-type").or_else(|| header(record, "Content-Type"));
        let content_type = content_type.map(str::trim).unwrap_or_default().to_ascii_lowercase();
        if content_type.starts_with(BATCH) {
            return Err(
                "it holds several CloudEvents (application/cloudevents-batch): write each into a record of its own"
                    .to_owned(),
            );
        }
        if content_type.starts_with(STRUCTURED) {
            return self.structured(record);
        }
        if let Some(event_type) = header(record, "ce_type") {
            if !self.wanted.contains(event_type) {
                return Ok(None);
            }
            let data = self.body(record, &[])?;
            return Ok(Some((event_type.to_owned(), data, header(record, "ce_subject").map(str::to_owned))));
        }
        let Some(value) = &record.value else {
            let event_type = match (&self.tombstone, &self.event_type) {
                (Some(tombstone), _) | (None, TypeFrom::Name(tombstone)) => tombstone.as_str(),
                (None, TypeFrom::Header(name)) => header(record, name).ok_or_else(|| missing_header(name))?,
                (None, TypeFrom::Field(_)) => {
                    return Err("it has no value (a tombstone), and its type is in the value: name the type of such records in spec.source.kafka.event.tombstone".to_owned());
                }
            };
            return Ok(self.wanted.contains(event_type).then(|| (event_type.to_owned(), None, None)));
        };
        let event_type = match &self.event_type {
            TypeFrom::Name(name) => Cow::from(name),
            TypeFrom::Header(name) => Cow::from(header(record, name).ok_or_else(|| missing_header(name))?),
            TypeFrom::Field(steps) => {
                let found = field(json(value)?, steps).and_then(|value| text_of(value, false));
                found.ok_or_else(|| {
                    let path = steps.join(".");
                    format!("its value has no field {path} with its type (spec.source.kafka.event.type.field)")
                })?
            }
        };
        if !self.wanted.contains(&*event_type) {
            return Ok(None);
        }
        let event_type = event_type.into_owned();
        Ok(Some((event_type, self.body(record, &self.data)?, None)))
    }

    fn structured(&self, record: &Record) -> Result<Option<Parts>, String> {
        let value =
            record.value.as_ref().ok_or("it has no value, and its content-type says that a CloudEvent is in it")?;
        let event = json(value)?;
        let attribute = |name: &str| inner(event, name).and_then(|value| text_of(value, false)).map(Cow::into_owned);
        let event_type = attribute("type").ok_or("it is a CloudEvent without type")?;
        if !self.wanted.contains(&event_type) {
            return Ok(None);
        }
        let data = match (inner(event, "data"), attribute("data_base64")) {
            (Some(data), _) => Some(data).filter(|data| data.trim() != "null").map(|data| JsonText(data.to_owned())),
            (None, Some(encoded)) => {
                let decoded = BASE64_STANDARD.decode(encoded).map_err(|_| "its data_base64 is no base64")?;
                Some(JsonText(json(&decoded)?.to_owned()))
            }
            (None, None) => None,
        };
        Ok(Some((event_type, data, attribute("subject"))))
    }

    /// The value, or the field in it at `steps`.
    fn body(&self, record: &Record, steps: &[String]) -> Result<Option<JsonText>, String> {
        let Some(value) = &record.value else { return Ok(None) };
        let whole = json(value)?;
        let body = field(whole, steps).ok_or_else(|| {
            format!("its value has no field {} with its body (spec.source.kafka.event.data)", steps.join("."))
        })?;
        Ok(Some(body).filter(|body| steps.is_empty() || body.trim() != "null").map(|body| JsonText(body.to_owned())))
    }
}

fn missing_header(name: &str) -> String {
    format!(
        "it has no header {name} with its type, and is no CloudEvent: say in spec.source.kafka.event.type where the type is"
    )
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// The last header of this name, where it is text.
fn header<'a>(record: &'a Record, name: &str) -> Option<&'a str> {
    let (_, value) = record.headers.iter().rev().find(|(key, _)| key.as_ref() == name.as_bytes())?;
    text(value.as_ref()?)
}

/// The bytes as JSON, checked.
fn json(bytes: &[u8]) -> Result<&str, String> {
    // What serializers for schema registries begin with: a zero, and the schema's number.
    if bytes.first() == Some(&0) && bytes.len() >= 5 {
        return Err("its value begins as serializers for a schema registry write it (Avro, Protobuf), which is not read: write JSON, or use a pod template with a consumer of your own".to_owned());
    }
    let text = text(bytes).ok_or("its value is no text in UTF-8, and so no JSON")?;
    match serde_json::from_str::<IgnoredAny>(text) {
        Ok(_) => Ok(text),
        Err(error) => {
            // The error's own words may quote.
            Err(format!("its value is no JSON (line {}, column {})", error.line(), error.column()))
        }
    }
}

fn field<'a>(json: &'a str, steps: &[String]) -> Option<&'a str> {
    steps.iter().try_fold(json, |value, step| inner(value, step))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn mapping(event: serde_json::Value) -> Mapping {
        let event: KafkaEvent = serde_json::from_value(event).unwrap();
        Mapping::new(&event, vec!["Placed".to_owned(), "Gone".to_owned()], 1_000)
    }

    fn record(key: Option<&str>, headers: &[(&str, &str)], value: Option<&str>) -> Record {
        let bytes = |text: &str| Bytes::from(text.to_owned());
        Record {
            offset: 41,
            time: Some(946_684_800_001),
            key: key.map(bytes),
            value: value.map(bytes),
            headers: headers.iter().map(|(name, value)| (bytes(name), Some(bytes(value)))).collect(),
        }
    }

    /// Type, stream and body.
    fn read(mapping: &Mapping, record: &Record) -> Result<Option<(String, String, String)>, String> {
        let event = mapping.event(record, 3)?;
        Ok(event.map(|event| {
            assert_eq!((event.position, event.shown_position, event.shard), (42, 41, 3));
            assert_eq!(event.recorded_at, Some(Timestamp(1_000)));
            let body = event.data.map_or_else(|| "none".to_owned(), |data| data.0);
            (event.event_type, event.stream.unwrap_or_else(|| "none".to_owned()), body)
        }))
    }

    fn is(found: Result<Option<(String, String, String)>, String>, expected: (&str, &str, &str)) {
        let (event_type, stream, body) = found.unwrap().unwrap();
        assert_eq!((event_type.as_str(), stream.as_str(), body.as_str()), expected);
    }

    #[test]
    fn the_type_is_in_a_header_a_field_or_the_projection_and_the_key_is_the_stream() {
        let value = r#"{"event": {"type": "Placed"}, "payload": {"n": 1.10}}"#;
        let header = record(Some("o-1"), &[("type", "Placed")], Some(value));
        is(read(&mapping(json!({})), &header), ("Placed", "o-1", value));
        let other = record(Some("o-1"), &[("kind", "Placed")], Some(value));
        is(
            read(&mapping(json!({"type": {"header": "kind"}, "data": "payload"})), &other),
            ("Placed", "o-1", r#"{"n": 1.10}"#),
        );
        let plain = record(None, &[], Some(value));
        is(read(&mapping(json!({"type": {"field": "event.type"}})), &plain), ("Placed", "none", value));
        is(read(&mapping(json!({"type": {"name": "Placed"}})), &plain), ("Placed", "none", value));
        let unheard = record(None, &[("type", "Other")], Some("no json"));
        assert_eq!(read(&mapping(json!({})), &unheard), Ok(None), "what has no handler need not be readable");
    }

    #[test]
    fn cloud_events_are_read_in_both_modes() {
        let plain = mapping(json!({"type": {"field": "kind"}, "data": "payload"}));
        let binary =
            record(Some("o-1"), &[("ce_type", "Placed"), ("ce_id", "7"), ("ce_subject", "s")], Some(r#"{"n":1}"#));
        is(read(&plain, &binary), ("Placed", "o-1", r#"{"n":1}"#));
        let keyless = record(None, &[("ce_type", "Placed"), ("ce_subject", "s")], None);
        is(read(&plain, &keyless), ("Placed", "s", "none"));
        let media = [("content-type", "application/cloudevents+json; charset=UTF-8")];
        let structured =
            |data: &str| format!(r#"{{"specversion":"1.0","id":"7","type":"Placed","subject":"s"{data}}}"#);
        is(
            read(&plain, &record(Some("k"), &media, Some(&structured(r#","data":{"n":2}"#)))),
            ("Placed", "k", r#"{"n":2}"#),
        );
        is(read(&plain, &record(None, &media, Some(&structured("")))), ("Placed", "s", "none"));
        is(
            read(&plain, &record(None, &media, Some(&structured(r#","data_base64":"eyJuIjozfQ==""#)))),
            ("Placed", "s", r#"{"n":3}"#),
        );
        let without = record(None, &media, Some(r#"{"id":"7"}"#));
        assert!(read(&plain, &without).unwrap_err().contains("without type"));
        let batch = record(None, &[("content-type", "application/cloudevents-batch+json")], Some("[]"));
        assert!(read(&plain, &batch).unwrap_err().contains("several CloudEvents"));
    }

    #[test]
    fn a_tombstone_has_the_type_that_is_named_for_it() {
        let tombstone = record(Some("o-1"), &[], None);
        is(
            read(&mapping(json!({"type": {"field": "type"}, "tombstone": "Gone"})), &tombstone),
            ("Gone", "o-1", "none"),
        );
        is(read(&mapping(json!({"type": {"name": "Placed"}})), &tombstone), ("Placed", "o-1", "none"));
        let why = read(&mapping(json!({"type": {"field": "type"}})), &tombstone).unwrap_err();
        assert!(why.contains("spec.source.kafka.event.tombstone"), "{why}");
    }

    #[test]
    fn what_cannot_be_read_is_told_without_what_it_holds() {
        let header = [("type", "Placed")];
        for (event, record, expected) in [
            (json!({}), record(None, &[], Some("{}")), "no header type"),
            (json!({}), record(None, &header, Some("canary")), "no JSON (line 1, column"),
            (json!({}), record(None, &header, Some("\0\0\0\0\u{1}canary")), "schema registry"),
            (json!({"data": "a.b"}), record(None, &header, Some(r#"{"a": 1}"#)), "no field a.b"),
            (json!({"type": {"field": "t"}}), record(None, &[], Some(r#"{"t": null}"#)), "no field t"),
            (json!({}), record(Some(&"k".repeat(990)), &header, Some("\"canary...\"")), "1001 bytes"),
        ] {
            let why = read(&mapping(event), &record).unwrap_err();
            assert!(why.contains(expected) && !why.contains("canary"), "{why}");
        }
        let mut odd = record(None, &header, Some("{}"));
        odd.key = Some(Bytes::from_static(b"\xff"));
        assert!(read(&mapping(json!({})), &odd).unwrap_err().contains("key is no text"));
        odd.value = Some(Bytes::from_static(b"\xff"));
        assert!(read(&mapping(json!({})), &odd).unwrap_err().contains("no text in UTF-8"));
    }
}
