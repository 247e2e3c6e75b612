//! Messages of JetStream as events. Pure.

use super::super::{
    super::event::{Event, Timestamp},
    mapping::{CloudEventHeaders, Content, Layout, Mapping, Message, SUBJECT, TypeFrom, dotted_token, too_large},
};
use crate::{
    api::{NatsEvent, NatsEventStream, NatsEventType},
    clients::nats::{Payload, Pulled},
};

/// The headers that hold an event's type and stream where the Projection does not say.
const TYPE_HEADER: &str = "type";
const STREAM_HEADER: &str = "stream";

/// How messages are read.
pub(super) struct Messages {
    stream: StreamFrom,
    /// A message without a body has its type elsewhere, or cannot be read.
    needs_body: bool,
    mapping: Mapping,
    max_bytes: usize,
}

enum StreamFrom {
    Header(String),
    Token(i32),
}

impl Messages {
    /// `wanted` are the types that have a handler; a message whose stream and body come to more than `max_bytes` is not read.
    pub(super) fn new(event: &NatsEvent, wanted: Vec<String>, max_bytes: u64) -> Self {
        let NatsEvent { type_, stream, data } = event;
        let event_type = match type_ {
            Some(NatsEventType { name: Some(name), .. }) => TypeFrom::Name(name.clone()),
            Some(NatsEventType { field: Some(field), .. }) => TypeFrom::Field(field.clone()),
            Some(NatsEventType { subject_token: Some(place), .. }) => TypeFrom::Token(*place),
            Some(NatsEventType { header: Some(header), .. }) => TypeFrom::Header(header.clone()),
            _ => TypeFrom::Header(TYPE_HEADER.to_owned()),
        };
        let stream = match stream {
            Some(NatsEventStream { subject_token: Some(place), .. }) => StreamFrom::Token(*place),
            Some(NatsEventStream { header: Some(header), .. }) => StreamFrom::Header(header.clone()),
            _ => StreamFrom::Header(STREAM_HEADER.to_owned()),
        };
        let layout = Layout {
            spec: "spec.source.nats.event",
            header: "header",
            tokens: SUBJECT,
            cloud_events: CloudEventHeaders::DASH,
            event_type,
            data: data.clone(),
            tombstone: None,
        };
        Self {
            stream,
            needs_body: matches!(layout.event_type, TypeFrom::Field(_)),
            mapping: Mapping::new(layout, wanted, max_bytes),
            max_bytes: usize::try_from(max_bytes).unwrap_or(usize::MAX),
        }
    }

    /// The event that a message is; `None` where its type has no handler.
    ///
    /// # Errors
    /// Why it cannot be read, without anything of what it holds.
    pub(super) fn event(&self, message: &Pulled) -> Result<Option<Event>, String> {
        let body = match &message.payload {
            Payload::Whole(body) => body,
            Payload::Tail(_) => return Err(too_large(message.length as u64, self.max_bytes)),
        };
        let read = Read { message, body, of: self };
        let recorded_at = Timestamp::of_micros(message.place.stored_at / 1_000);
        let content = self.mapping.read(&read)?;
        Ok(content
            .map(|Content { event_type, stream, data }| Event::without_position(event_type, stream, recorded_at, data)))
    }
}

/// A message that is read.
struct Read<'a> {
    message: &'a Pulled,
    body: &'a [u8],
    of: &'a Messages,
}

impl Message for Read<'_> {
    fn key(&self) -> Option<&[u8]> {
        let stream = match &self.of.stream {
            StreamFrom::Header(name) => self.message.header(name),
            StreamFrom::Token(place) => self.token(*place),
        };
        stream.map(str::as_bytes)
    }

    /// NATS does not tell a message without a body from one with an empty body.
    fn value(&self) -> Option<&[u8]> {
        Some(self.body).filter(|body| self.of.needs_body || !body.is_empty())
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        self.message.header(name).map(str::as_bytes)
    }

    fn token(&self, place: i32) -> Option<&str> {
        dotted_token(&self.message.subject, place)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::clients::nats::Place;

    fn message(subject: &str, headers: &[(&str, &str)], body: &str) -> Pulled {
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let headers = format!("NATS/1.0\r\n{headers}\r\n");
        Pulled {
            subject: subject.to_owned(),
            place: Place { stream: "orders".to_owned(), sequence: 7, stored_at: 1_700_000_000_123_456_789, pending: 0 },
            acknowledge_on: "$JS.ACK".to_owned(),
            length: headers.len() + body.len(),
            headers: headers.into_bytes(),
            payload: Payload::Whole(body.as_bytes().to_vec()),
        }
    }

    /// Type, stream and body.
    fn read(event: serde_json::Value, message: &Pulled) -> Result<Option<[String; 3]>, String> {
        let event: NatsEvent = serde_json::from_value(event).unwrap();
        let read = Messages::new(&event, vec!["placed".to_owned()], 1_000).event(message)?;
        let none = || "none".to_owned();
        Ok(read.map(|event| {
            assert_eq!(
                event.recorded_at,
                Timestamp::of_micros(1_700_000_000_123_456),
                "the time at which it was stored"
            );
            [event.event_type, event.stream.unwrap_or_else(none), event.data.map_or_else(none, |data| data.0)]
        }))
    }

    fn is(found: Result<Option<[String; 3]>, String>, expected: [&str; 3]) {
        assert_eq!(found.unwrap().unwrap(), expected);
    }

    #[test]
    fn type_and_stream_are_in_headers_or_in_the_subject() {
        let headers = [("type", "placed"), ("stream", "o-1")];
        is(read(json!({}), &message("orders", &headers, r#"{"n": 1}"#)), ["placed", "o-1", r#"{"n": 1}"#]);
        is(read(json!({}), &message("orders", &headers[..1], "")), ["placed", "none", "none"]);
        let by_subject = json!({"type": {"subjectToken": -1}, "stream": {"subjectToken": 2}});
        is(read(by_subject.clone(), &message("orders.o-1.placed", &[], "{}")), ["placed", "o-1", "{}"]);
        assert_eq!(read(by_subject, &message("orders.o-1.moved", &[], "no json")), Ok(None));
        let by_field = json!({"type": {"field": "kind"}, "data": "body", "stream": {"header": "order"}});
        let body = r#"{"kind": "placed", "body": {"n": 2}}"#;
        is(read(by_field, &message("orders", &[("Order", "o-2")], body)), ["placed", "o-2", r#"{"n": 2}"#]);
    }

    #[test]
    fn cloud_events_are_read_as_the_binding_for_nats_has_them() {
        let binary = [("ce-specversion", "1.0"), ("ce-type", "placed"), ("ce-subject", "o-1")];
        is(read(json!({}), &message("orders", &binary, "{}")), ["placed", "o-1", "{}"]);
        let structured = r#"{"specversion": "1.0", "type": "placed", "subject": "o-1", "data": {"n": 3}}"#;
        let media = [("Content-Type", "application/cloudevents+json; charset=utf-8")];
        is(read(json!({}), &message("orders", &media, structured)), ["placed", "o-1", r#"{"n": 3}"#]);
        let token = json!({"stream": {"subjectToken": 2}});
        is(read(token, &message("orders.o-9", &binary, "{}")), ["placed", "o-9", "{}"]);
    }

    #[test]
    fn what_cannot_be_read_is_told_without_what_it_holds() {
        let typed = [("type", "placed")];
        let mut long = message("orders", &typed, "");
        (long.payload, long.length) = (Payload::Tail(b"canary".to_vec()), 5_000);
        for (event, message, expected) in [
            (json!({}), message("orders", &[("kind", "canary")], "{}"), "spec.source.nats.event.type"),
            (json!({}), message("orders", &typed, "canary"), "no JSON"),
            (json!({"type": {"subjectToken": 3}}), message("orders.canary", &[], "{}"), "no token 3"),
            (json!({"type": {"field": "kind"}}), message("orders", &typed, ""), "no JSON"),
            (json!({}), long, "5000 bytes"),
        ] {
            let why = read(event, &message).unwrap_err();
            assert!(why.contains(expected) && !why.contains("canary"), "{why}");
        }
    }
}
