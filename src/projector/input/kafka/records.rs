//! Records of Kafka as events. Pure.

use bytes::Bytes;

use super::super::{
    super::event::{Event, Timestamp},
    mapping::{CloudEventHeaders, Content, Layout, Mapping, Message, SUBJECT, TypeFrom},
};
use crate::{
    api::{KafkaEvent, KafkaEventType},
    clients::kafka::Record,
};

/// The header that holds an event's type where the Projection does not say.
const TYPE_HEADER: &str = "type";

/// Where the parts of an event are in a record.
pub(in crate::projector::input) fn layout(event: &KafkaEvent) -> Layout {
    let KafkaEvent { type_, data, tombstone } = event;
    let event_type = match type_ {
        Some(KafkaEventType { name: Some(name), .. }) => TypeFrom::Name(name.clone()),
        Some(KafkaEventType { field: Some(field), .. }) => TypeFrom::Field(field.clone()),
        Some(KafkaEventType { header: Some(header), .. }) => TypeFrom::Header(header.clone()),
        _ => TypeFrom::Header(TYPE_HEADER.to_owned()),
    };
    Layout {
        spec: "spec.source.kafka.event",
        header: "header",
        tokens: SUBJECT,
        cloud_events: CloudEventHeaders::UNDERSCORE,
        event_type,
        data: data.clone(),
        tombstone: tombstone.clone(),
    }
}

/// The event that a record is; `None` where its type has no handler.
///
/// # Errors
/// Why it cannot be read, without anything of what it holds.
pub(super) fn event_of(mapping: &Mapping, record: &Record, shard: u32) -> Result<Option<Event>, String> {
    let content = mapping.read(record)?;
    let position = record.offset.saturating_add(1);
    Ok(content.map(|Content { event_type, stream, data }| Event {
        position,
        since: position,
        before: record.offset,
        shown_position: record.offset,
        behind_parked: None,
        shard,
        event_type,
        stream,
        recorded_at: record.time.and_then(Timestamp::of_millis),
        data,
    }))
}

impl Message for Record {
    fn key(&self) -> Option<&[u8]> {
        self.key.as_deref()
    }

    fn value(&self) -> Option<&[u8]> {
        self.value.as_deref()
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        let (_, value) = self.headers.iter().rev().find(|(key, _)| key.as_ref() == name.as_bytes())?;
        value.as_ref().map(Bytes::as_ref)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_the_position_behind_its_offset_and_the_time_of_its_record() {
        let record = Record {
            offset: 41,
            time: Some(946_684_800_001),
            key: Some(Bytes::from_static(b"o-1")),
            value: Some(Bytes::from_static(b"{}")),
            headers: vec![
                (Bytes::from_static(b"type"), Some(Bytes::from_static(b"Other"))),
                (Bytes::from_static(b"type"), Some(Bytes::from_static(b"Placed"))),
            ],
        };
        let mapping = Mapping::new(layout(&KafkaEvent::default()), vec!["Placed".to_owned()], 1_000);
        let event = event_of(&mapping, &record, 3).unwrap().unwrap();
        assert_eq!((event.position, event.shown_position, event.shard), (42, 41, 3));
        assert_eq!(event.recorded_at, Some(Timestamp(1_000)));
    }
}
