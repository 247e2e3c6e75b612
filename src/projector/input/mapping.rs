//! What a message of a broker is as an event: a CloudEvent, or JSON with its type in a header, a field, its subject or the Projection. Pure.

use std::{borrow::Cow, collections::BTreeSet};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::de::IgnoredAny;

use super::super::{
    event::JsonText,
    template::{inner, text_of},
};

/// How the media type of a CloudEvent in structured mode begins, and that of several in one record.
const STRUCTURED: &str = "application/cloudevents+json";
const BATCH: &str = "application/cloudevents-batch";

/// A message as a broker keeps it.
pub(super) trait Message {
    /// What names the event's stream, where the broker keeps that apart.
    fn key(&self) -> Option<&[u8]>;

    /// The body; absent where it has none, which is not the same as an empty one.
    fn value(&self) -> Option<&[u8]>;

    /// The last header of this name.
    fn header(&self, name: &str) -> Option<&[u8]>;

    /// A token of the subject or routing key that it was sent with, counted from 1, or from the end from -1.
    fn token(&self, place: i32) -> Option<&str> {
        let _ = place;
        None
    }
}

/// How the headers of CloudEvents in binary mode are called, which each broker's binding says otherwise.
#[derive(Clone, Copy, Debug)]
pub(super) struct CloudEventHeaders {
    event_type: &'static str,
    subject: &'static str,
}

impl CloudEventHeaders {
    /// As the binding for Kafka has them.
    pub(super) const UNDERSCORE: Self = Self { event_type: "ce_type", subject: "ce_subject" };
    /// As the binding for NATS has them.
    pub(super) const DASH: Self = Self { event_type: "ce-type", subject: "ce-subject" };
    /// As the binding for AMQP has them.
    pub(super) const COLON: Self = Self { event_type: "cloudEvents:type", subject: "cloudEvents:subject" };
}

/// What has tokens where a source has no name of its own for that.
pub(super) const SUBJECT: (&str, &str) = ("subject", "subjectToken");

/// A token of a text with dots between them, counted from 1, or from the end from -1.
pub(super) fn dotted_token(text: &str, place: i32) -> Option<&str> {
    let index = usize::try_from(place.unsigned_abs()).ok()?.checked_sub(1)?;
    if place > 0 { text.split('.').nth(index) } else { text.rsplit('.').nth(index) }
}

/// Where the parts of an event are in the messages of one source.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// The field of the spec that says so, for messages to people: `spec.source.kafka.event`.
    pub(super) spec: &'static str,
    /// What the source calls a header.
    pub(super) header: &'static str,
    /// What the source calls that which has tokens, and the field of the type that counts them.
    pub(super) tokens: (&'static str, &'static str),
    /// How the headers of CloudEvents are called.
    pub(super) cloud_events: CloudEventHeaders,
    /// Where the type is.
    pub(super) event_type: TypeFrom,
    /// The field of the value (JSON) with the body, such as `payload`; the whole value where absent.
    pub(super) data: Option<String>,
    /// The type of messages without a value.
    pub(super) tombstone: Option<String>,
}

/// Where an event's type is.
#[derive(Clone, Debug)]
pub(super) enum TypeFrom {
    /// In this header.
    Header(String),
    /// In this token of the subject or routing key.
    Token(i32),
    /// In this field of the value, names with dots between them.
    Field(String),
    /// It is always this one.
    Name(String),
}

/// An event without its place.
#[derive(Clone, Debug)]
pub(super) struct Content {
    pub(super) event_type: String,
    pub(super) stream: Option<String>,
    pub(super) data: Option<JsonText>,
}

/// Type, body and, of a CloudEvent, subject.
type Parts = (String, Option<JsonText>, Option<String>);

/// How messages are read.
#[derive(Clone, Debug)]
pub(super) struct Mapping {
    layout: Layout,
    data: Vec<String>,
    /// The types that have a handler.
    wanted: BTreeSet<String>,
    max_bytes: usize,
}

impl Mapping {
    /// `wanted` are the types that have a handler; an event whose key and value come to more than `max_bytes` is not read.
    pub(super) fn new(layout: Layout, wanted: Vec<String>, max_bytes: u64) -> Self {
        Self {
            data: layout.data.as_deref().map(steps).unwrap_or_default(),
            layout,
            wanted: wanted.into_iter().collect(),
            max_bytes: usize::try_from(max_bytes).unwrap_or(usize::MAX),
        }
    }

    /// The event that a message is; `None` where its type has no handler.
    ///
    /// # Errors
    /// Why it cannot be read, without anything of what it holds.
    pub(super) fn read(&self, message: &impl Message) -> Result<Option<Content>, String> {
        let size = [message.key(), message.value()].into_iter().flatten().map(<[u8]>::len).sum::<usize>();
        if size > self.max_bytes {
            return Err(too_large(size as u64, self.max_bytes));
        }
        let Some((event_type, data, subject)) = self.parts(message)? else { return Ok(None) };
        let stream = match message.key() {
            Some(key) => {
                Some(text(key).ok_or("its key is no text in UTF-8, and the key is the event's stream")?.to_owned())
            }
            None => subject,
        };
        Ok(Some(Content { event_type, stream, data }))
    }

    /// What all kinds of message have; `None` where its type has no handler.
    fn parts(&self, message: &impl Message) -> Result<Option<Parts>, String> {
        let content_type = header(message, "content-type").or_else(|| header(message, "Content-Type"));
        let content_type = content_type.map(str::trim).unwrap_or_default().to_ascii_lowercase();
        if content_type.starts_with(BATCH) {
            return Err(
                "it holds several CloudEvents (application/cloudevents-batch): write each into a message of its own"
                    .to_owned(),
            );
        }
        if content_type.starts_with(STRUCTURED) {
            return self.structured(message);
        }
        let names = self.layout.cloud_events;
        if let Some(event_type) = header(message, names.event_type) {
            if !self.wanted.contains(event_type) {
                return Ok(None);
            }
            let data = self.body(message, &[])?;
            return Ok(Some((event_type.to_owned(), data, header(message, names.subject).map(str::to_owned))));
        }
        let Some(value) = message.value() else {
            let event_type = match (&self.layout.tombstone, &self.layout.event_type) {
                (Some(tombstone), _) | (None, TypeFrom::Name(tombstone)) => tombstone.as_str(),
                (None, TypeFrom::Header(name)) => header(message, name).ok_or_else(|| self.missing_header(name))?,
                (None, TypeFrom::Token(place)) => message.token(*place).ok_or_else(|| self.missing_token(*place))?,
                (None, TypeFrom::Field(_)) => {
                    return Err(format!(
                        "it has no value (a tombstone), and its type is in the value: name the type of such messages in {}.tombstone",
                        self.layout.spec
                    ));
                }
            };
            return Ok(self.wanted.contains(event_type).then(|| (event_type.to_owned(), None, None)));
        };
        let event_type = match &self.layout.event_type {
            TypeFrom::Name(name) => Cow::from(name),
            TypeFrom::Header(name) => Cow::from(header(message, name).ok_or_else(|| self.missing_header(name))?),
            TypeFrom::Token(place) => Cow::from(message.token(*place).ok_or_else(|| self.missing_token(*place))?),
            TypeFrom::Field(path) => {
                let found = field(json(value)?, &steps(path)).and_then(|value| text_of(value, false));
                found.ok_or_else(|| {
                    format!("its value has no field {path} with its type ({}.type.field)", self.layout.spec)
                })?
            }
        };
        if !self.wanted.contains(&*event_type) {
            return Ok(None);
        }
        let event_type = event_type.into_owned();
        Ok(Some((event_type, self.body(message, &self.data)?, None)))
    }

    fn structured(&self, message: &impl Message) -> Result<Option<Parts>, String> {
        let value = message.value().ok_or("it has no value, and its content-type says that a CloudEvent is in it")?;
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
    fn body(&self, message: &impl Message, steps: &[String]) -> Result<Option<JsonText>, String> {
        let Some(value) = message.value() else { return Ok(None) };
        let whole = json(value)?;
        let body = field(whole, steps).ok_or_else(|| {
            format!("its value has no field {} with its body ({}.data)", steps.join("."), self.layout.spec)
        })?;
        Ok(Some(body).filter(|body| steps.is_empty() || body.trim() != "null").map(|body| JsonText(body.to_owned())))
    }

    fn missing_token(&self, place: i32) -> String {
        let Layout { spec, tokens: (what, field), .. } = &self.layout;
        format!("its {what} has no token {place} with its type, and it is no CloudEvent: correct {spec}.type.{field}")
    }

    fn missing_header(&self, name: &str) -> String {
        let Layout { spec, header, .. } = &self.layout;
        format!("it has no {header} {name} with its type, and is no CloudEvent: say in {spec}.type where the type is")
    }
}

/// Why a message of so many bytes is not read.
pub(super) fn too_large(bytes: u64, allowed: usize) -> String {
    format!(
        "its key and value have {bytes} bytes, and spec.projector.builtin.maxEventBytes allows {allowed}: raise it, and the workers' memory to six times as much"
    )
}

/// The names in a path with dots between them.
pub(super) fn steps(path: &str) -> Vec<String> {
    path.split('.').map(str::to_owned).collect()
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// The last header of this name, where it is text.
fn header<'a>(message: &'a impl Message, name: &str) -> Option<&'a str> {
    text(message.header(name)?)
}

/// The bytes as JSON, checked.
pub(super) fn json(bytes: &[u8]) -> Result<&str, String> {
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

/// What is at `steps` in the JSON.
pub(super) fn field<'a>(json: &'a str, steps: &[String]) -> Option<&'a str> {
    steps.iter().try_fold(json, |value, step| inner(value, step))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::kafka::layout, *};
    use crate::api::KafkaEvent;

    fn mapping(event: serde_json::Value) -> Mapping {
        let event: KafkaEvent = serde_json::from_value(event).unwrap();
        Mapping::new(layout(&event), vec!["Placed".to_owned(), "Gone".to_owned()], 1_000)
    }

    struct Written {
        key: Option<Vec<u8>>,
        value: Option<Vec<u8>>,
        headers: Vec<(String, String)>,
    }

    impl Message for Written {
        fn key(&self) -> Option<&[u8]> {
            self.key.as_deref()
        }

        fn value(&self) -> Option<&[u8]> {
            self.value.as_deref()
        }

        fn header(&self, name: &str) -> Option<&[u8]> {
            self.headers.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_bytes())
        }
    }

    fn record(key: Option<&str>, headers: &[(&str, &str)], value: Option<&str>) -> Written {
        let bytes = |text: &str| text.as_bytes().to_vec();
        Written {
            key: key.map(bytes),
            value: value.map(bytes),
            headers: headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        }
    }

    /// Type, stream and body.
    fn read(mapping: &Mapping, record: &Written) -> Result<Option<(String, String, String)>, String> {
        let event = mapping.read(record)?;
        Ok(event.map(|event| {
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
        odd.key = Some(b"\xff".to_vec());
        assert!(read(&mapping(json!({})), &odd).unwrap_err().contains("key is no text"));
        odd.value = Some(b"\xff".to_vec());
        assert!(read(&mapping(json!({})), &odd).unwrap_err().contains("no text in UTF-8"));
    }
}
