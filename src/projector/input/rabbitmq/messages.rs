//! Messages of RabbitMQ as events. Pure.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use super::super::{
    super::{
        event::{Event, Timestamp},
        template::text_of,
    },
    mapping::{
        CloudEventHeaders, Content, Layout, Mapping, Message as Read, TypeFrom, dotted_token, field, json, steps,
        too_large,
    },
};
use crate::{
    api::{RabbitMqEvent, RabbitMqEventId, RabbitMqEventStream, RabbitMqEventType},
    clients::rabbitmq::{Body, Message},
};

/// The property, and the header, that hold an event's type where the Projection does not say.
const TYPE: &str = "type";
/// The header that holds an event's stream where the Projection does not say.
const STREAM_HEADER: &str = "stream";
/// What names an event is no longer, in bytes: a row of the inbox begins with it.
const LONGEST_ID: usize = 1_024;

/// How messages are read.
pub(super) struct Messages {
    id: IdFrom,
    stream: StreamFrom,
    /// A message without a body has its type elsewhere, or cannot be read.
    needs_body: bool,
    mapping: Mapping,
    max_bytes: usize,
}

enum IdFrom {
    Property,
    Header(String),
    Field(String),
}

enum StreamFrom {
    Header(String),
    Token(i32),
}

/// What a message is.
pub(super) struct Understood {
    /// Names it among all of its projection; where it has no name, what it says stands for that.
    pub(super) id: String,
    /// For people: without anything of its body.
    pub(super) name: String,
    /// The event; none where its type has no handler. Or why it cannot be read.
    pub(super) content: Result<Option<Event>, String>,
}

impl Messages {
    /// `wanted` are the types that have a handler; a message whose stream and body come to more than `max_bytes` is not read.
    pub(super) fn new(event: &RabbitMqEvent, wanted: Vec<String>, max_bytes: u64) -> Self {
        let RabbitMqEvent { id, type_, stream, data } = event;
        let id = match id {
            Some(RabbitMqEventId { field: Some(field), .. }) => IdFrom::Field(field.clone()),
            Some(RabbitMqEventId { header: Some(header), .. }) => IdFrom::Header(header.clone()),
            _ => IdFrom::Property,
        };
        let event_type = match type_ {
            Some(RabbitMqEventType { name: Some(name), .. }) => TypeFrom::Name(name.clone()),
            Some(RabbitMqEventType { field: Some(field), .. }) => TypeFrom::Field(field.clone()),
            Some(RabbitMqEventType { routing_key_token: Some(place), .. }) => TypeFrom::Token(*place),
            Some(RabbitMqEventType { header: Some(header), .. }) => TypeFrom::Header(header.clone()),
            _ => TypeFrom::Header(TYPE.to_owned()),
        };
        let stream = match stream {
            Some(RabbitMqEventStream { routing_key_token: Some(place), .. }) => StreamFrom::Token(*place),
            Some(RabbitMqEventStream { header: Some(header), .. }) => StreamFrom::Header(header.clone()),
            _ => StreamFrom::Header(STREAM_HEADER.to_owned()),
        };
        let layout = Layout {
            spec: "spec.source.rabbitmq.event",
            header: "property or header",
            tokens: ("routing key", "routingKeyToken"),
            cloud_events: CloudEventHeaders::COLON,
            event_type,
            data: data.clone(),
            tombstone: None,
        };
        Self {
            id,
            stream,
            needs_body: matches!(layout.event_type, TypeFrom::Field(_)),
            mapping: Mapping::new(layout, wanted, max_bytes),
            max_bytes: usize::try_from(max_bytes).unwrap_or(usize::MAX),
        }
    }

    /// What a message of this queue is.
    pub(super) fn understand(&self, queue: &str, message: &Message) -> Understood {
        let content = self.event(message);
        let id = self.id(message);
        let name = match (&id, &self.id) {
            (Ok(id), IdFrom::Property | IdFrom::Header(_)) => {
                let shown: String = id.chars().filter(|letter| !letter.is_control()).take(100).collect();
                format!("message {shown} of queue {queue}")
            }
            _ => format!("a message of queue {queue}"),
        };
        match (id, content) {
            // What has no handler is done with, whatever it is called.
            (id, Ok(None)) => Understood { id: id.unwrap_or_default(), name, content: Ok(None) },
            (Ok(id), content) => Understood { id, name, content },
            (Err(why), Ok(Some(_))) => Understood { id: stand_in(queue, message), name, content: Err(why) },
            (Err(_), Err(why)) => Understood { id: stand_in(queue, message), name, content: Err(why) },
        }
    }

    /// What names the event.
    fn id(&self, message: &Message) -> Result<String, String> {
        let found = match &self.id {
            IdFrom::Property => message.properties.message_id.clone(),
            IdFrom::Header(name) => message.properties.header(name).map(<[u8]>::to_vec),
            IdFrom::Field(path) => match &message.body {
                Body::Whole(body) => field(json(body)?, &steps(path))
                    .and_then(|value| text_of(value, false))
                    .map(|text| text.into_owned().into_bytes()),
                Body::TooLarge(_) | Body::NoRoom(_) => None,
            },
        };
        let id = found.filter(|id| !id.is_empty()).ok_or_else(|| self.missing_id())?;
        if id.len() > LONGEST_ID || id.contains(&0) {
            return Err(format!(
                "what names it has more than {LONGEST_ID} bytes, or holds a NUL: name events with a number, a UUID or the like"
            ));
        }
        String::from_utf8(id).map_err(|_| "what names it is no text in UTF-8".to_owned())
    }

    fn missing_id(&self) -> String {
        let missing = match &self.id {
            IdFrom::Property => "property message-id".to_owned(),
            IdFrom::Header(name) => format!("header {name}"),
            IdFrom::Field(path) => format!("field {path}"),
        };
        format!(
            "it has no {missing}, by which one that is delivered again is known: have publishers set it, or say in spec.source.rabbitmq.event.id what names an event"
        )
    }

    fn event(&self, message: &Message) -> Result<Option<Event>, String> {
        let body = match &message.body {
            Body::Whole(body) => body,
            Body::TooLarge(bytes) | Body::NoRoom(bytes) => return Err(too_large(*bytes, self.max_bytes)),
        };
        let content = self.mapping.read(&Reading { message, body, of: self })?;
        let seconds = message.properties.timestamp.and_then(|seconds| i64::try_from(seconds).ok());
        let recorded_at = seconds.and_then(|seconds| Timestamp::of_micros(seconds.checked_mul(1_000_000)?));
        Ok(content
            .map(|Content { event_type, stream, data }| Event::without_position(event_type, stream, recorded_at, data)))
    }
}

/// Stands for what names a message that has nothing. It begins with a blank, as no name is meant to, and is only told of, never taken for handled.
fn stand_in(queue: &str, message: &Message) -> String {
    let mut hasher = DefaultHasher::new();
    let properties = &message.properties;
    (&properties.message_id, &properties.headers, properties.timestamp, &message.routing_key).hash(&mut hasher);
    match &message.body {
        Body::Whole(body) => body.hash(&mut hasher),
        Body::TooLarge(bytes) | Body::NoRoom(bytes) => bytes.hash(&mut hasher),
    }
    format!(" {queue} {:016x}", hasher.finish())
}

/// A message that is read.
struct Reading<'a> {
    message: &'a Message,
    body: &'a [u8],
    of: &'a Messages,
}

impl Read for Reading<'_> {
    fn key(&self) -> Option<&[u8]> {
        match &self.of.stream {
            StreamFrom::Header(name) => self.message.properties.header(name),
            StreamFrom::Token(place) => self.token(*place).map(str::as_bytes),
        }
    }

    /// AMQP does not tell a message without a body from one with an empty body.
    fn value(&self) -> Option<&[u8]> {
        Some(self.body).filter(|body| self.of.needs_body || !body.is_empty())
    }

    /// Also the properties of these names. Attributes of CloudEvents have a colon or an underscore in their names.
    fn header(&self, name: &str) -> Option<&[u8]> {
        let properties = &self.message.properties;
        let property = match name {
            "content-type" => properties.content_type.as_deref(),
            TYPE => properties.type_.as_deref(),
            _ => None,
        };
        let by_name = || properties.header(name);
        let attribute =
            || properties.header(&name.strip_prefix("cloudEvents:").map(|rest| format!("cloudEvents_{rest}"))?);
        property.or_else(by_name).or_else(attribute)
    }

    fn token(&self, place: i32) -> Option<&str> {
        dotted_token(&self.message.routing_key, place)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::clients::rabbitmq::Properties;

    fn message(routing_key: &str, headers: &[(&str, &str)], body: &str) -> Message {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec())).collect();
        let properties = Properties {
            headers,
            message_id: Some(b"m-1".to_vec()),
            timestamp: Some(1_700_000_000),
            ..Properties::default()
        };
        Message::new(routing_key, properties, Body::Whole(body.as_bytes().to_vec()))
    }

    fn understood(event: serde_json::Value, message: &Message) -> Understood {
        let event: RabbitMqEvent = serde_json::from_value(event).unwrap();
        Messages::new(&event, vec!["placed".to_owned()], 1_000).understand("orders", message)
    }

    /// What names it, type, stream and body.
    fn read(event: serde_json::Value, message: &Message) -> Result<Option<[String; 4]>, String> {
        let Understood { id, content, .. } = understood(event, message);
        let none = || "none".to_owned();
        Ok(content?.map(|event| {
            assert_eq!(event.recorded_at, Timestamp::of_millis(1_700_000_000_000));
            [id, event.event_type, event.stream.unwrap_or_else(none), event.data.map_or_else(none, |data| data.0)]
        }))
    }

    fn is(found: Result<Option<[String; 4]>, String>, expected: [&str; 4]) {
        assert_eq!(found.unwrap().unwrap(), expected);
    }

    #[test]
    fn the_parts_of_an_event_are_in_properties_headers_the_routing_key_or_the_body() {
        let headers = [("type", "placed"), ("stream", "o-1"), ("event-id", "7")];
        is(read(json!({}), &message("k", &headers, r#"{"n": 1}"#)), ["m-1", "placed", "o-1", r#"{"n": 1}"#]);
        let mut property = message("k", &[("type", "other")], "");
        property.properties.type_ = Some(b"placed".to_vec());
        is(read(json!({}), &property), ["m-1", "placed", "none", "none"]);
        let keyed =
            json!({"id": {"header": "event-id"}, "type": {"routingKeyToken": -1}, "stream": {"routingKeyToken": 2}});
        is(read(keyed.clone(), &message("orders.o-2.placed", &headers, "{}")), ["7", "placed", "o-2", "{}"]);
        assert_eq!(read(keyed, &message("orders.o-2.moved", &[], "no json")), Ok(None));
        let fields = json!({"id": {"field": "event.id"}, "type": {"field": "kind"}, "data": "body"});
        let body = r#"{"event": {"id": 12}, "kind": "placed", "body": {"n": 2}}"#;
        is(read(fields, &message("k", &[], body)), ["12", "placed", "none", r#"{"n": 2}"#]);
    }

    #[test]
    fn cloud_events_are_read_as_the_binding_for_amqp_has_them() {
        for prefix in ["cloudEvents:", "cloudEvents_"] {
            let names = ["type", "subject"].map(|name| format!("{prefix}{name}"));
            let binary = message("k", &[(&names[0], "placed"), (&names[1], "o-1")], "{}");
            is(read(json!({}), &binary), ["m-1", "placed", "o-1", "{}"]);
        }
        let body = r#"{"specversion": "1.0", "type": "placed", "subject": "o-1", "data": {"n": 3}}"#;
        let mut structured = message("k", &[], body);
        structured.properties.content_type = Some(b"application/cloudevents+json; charset=utf-8".to_vec());
        is(read(json!({}), &structured), ["m-1", "placed", "o-1", r#"{"n": 3}"#]);
    }

    #[test]
    fn a_message_that_nothing_names_cannot_be_handled_and_is_known_by_what_it_says() {
        let nameless = |body: &str| {
            let mut message = message("k", &[("type", "placed")], body);
            message.properties.message_id = None;
            understood(json!({}), &message)
        };
        let (one, other) = (nameless("{}"), nameless(r#"{"n": 1}"#));
        let why = one.content.unwrap_err();
        assert!(why.contains("no property message-id") && why.contains("spec.source.rabbitmq.event.id"), "{why}");
        assert_eq!((one.id.clone(), one.name.as_str()), (nameless("{}").id, "a message of queue orders"));
        assert_ne!(one.id, other.id);
        let mut unheard = message("k", &[("type", "moved")], "");
        unheard.properties.message_id = None;
        assert!(matches!(understood(json!({}), &unheard).content, Ok(None)), "what has no handler needs no name");
        let mut long = message("k", &[("type", "placed")], "{}");
        long.properties.message_id = Some(vec![b'x'; 2_000]);
        assert!(understood(json!({}), &long).content.unwrap_err().contains("more than 1024 bytes"));
    }

    #[test]
    fn what_cannot_be_read_is_told_without_what_it_holds() {
        let typed = [("type", "placed")];
        let mut large = message("k", &typed, "");
        large.body = Body::TooLarge(5_000);
        for (event, message, expected) in [
            (json!({}), message("k", &[("kind", "canary")], "{}"), "spec.source.rabbitmq.event.type"),
            (json!({}), message("k", &typed, "canary"), "no JSON"),
            (
                json!({"type": {"routingKeyToken": 3}}),
                message("orders.canary", &[], "{}"),
                "routing key has no token 3",
            ),
            (json!({"type": {"field": "kind"}}), message("k", &typed, ""), "no JSON"),
            (json!({"id": {"field": "id"}}), message("k", &typed, r#"{"canary": 1}"#), "no field id"),
            (json!({}), large, "5000 bytes"),
        ] {
            let why = read(event, &message).unwrap_err();
            assert!(why.contains(expected) && !why.contains("canary"), "{why}");
        }
    }
}
