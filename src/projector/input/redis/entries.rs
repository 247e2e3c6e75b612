//! Entries of streams in Redis as events. Pure.

use super::super::{
    super::event::{Event, Timestamp},
    mapping::{CloudEventHeaders, Content, Layout, Mapping, Message, SUBJECT, TypeFrom, too_large},
};
use crate::{api::RedisEvent, clients::redis::Reply};

/// IDs that are times are no smaller, in milliseconds since 1970 (as in what the operator measures of streams).
const FIRST_TIME: i64 = 1_000_000_000_000;

/// How entries are read.
pub(super) struct Entries {
    fields: RedisEvent,
    mapping: Mapping,
    max_bytes: usize,
}

impl Entries {
    /// `wanted` are the types that have a handler; an entry with a field of more than `max_bytes`, or whose stream and body come to more, is not read.
    pub(super) fn new(event: &RedisEvent, wanted: Vec<String>, max_bytes: u64) -> Self {
        let layout = Layout {
            spec: "spec.source.redis.event",
            header: "field",
            tokens: SUBJECT,
            cloud_events: CloudEventHeaders::UNDERSCORE,
            event_type: TypeFrom::Header(event.type_.clone()),
            data: None,
            tombstone: None,
        };
        Self {
            fields: event.clone(),
            mapping: Mapping::new(layout, wanted, max_bytes),
            max_bytes: usize::try_from(max_bytes).unwrap_or(usize::MAX),
        }
    }

    /// The event that an entry is; `None` where its type has no handler.
    ///
    /// # Errors
    /// Why it cannot be read, without anything of what it holds.
    pub(super) fn event(&self, id: &str, fields: &[Reply]) -> Result<Option<Event>, String> {
        let RedisEvent { type_: _, stream, data } = &self.fields;
        let fields = Fields { fields, stream, data };
        if let Some(bytes) = fields.longest() {
            return Err(too_large(bytes, self.max_bytes));
        }
        let time = id.split('-').next().and_then(|time| time.parse().ok());
        let recorded_at = time.filter(|time| *time >= FIRST_TIME).and_then(Timestamp::of_millis);
        let content = self.mapping.read(&fields)?;
        Ok(content
            .map(|Content { event_type, stream, data }| Event::without_position(event_type, stream, recorded_at, data)))
    }
}

/// The fields of an entry, names and values in turn.
struct Fields<'a> {
    fields: &'a [Reply],
    stream: &'a str,
    data: &'a str,
}

impl Fields<'_> {
    /// The bytes of a field that is too long to be read.
    fn longest(&self) -> Option<u64> {
        self.fields.iter().find_map(|field| match field {
            Reply::LongText(bytes) => Some(*bytes),
            _ => None,
        })
    }
}

impl Message for Fields<'_> {
    fn key(&self) -> Option<&[u8]> {
        self.header(self.stream)
    }

    fn value(&self) -> Option<&[u8]> {
        self.header(self.data)
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        let mut pairs = self.fields.chunks_exact(2).rev();
        let pair = pairs.find(|pair| pair[0].as_str() == Some(name))?;
        match &pair[1] {
            Reply::Text(text) => Some(text),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(id: &str, fields: &[&str]) -> Result<Option<Event>, String> {
        let fields: Vec<Reply> = fields.iter().map(|field| Reply::Text(field.as_bytes().to_vec())).collect();
        Entries::new(&RedisEvent::default(), vec!["Placed".to_owned()], 100).event(id, &fields)
    }

    #[test]
    fn entries_are_events_by_their_fields_and_the_time_in_their_ids() {
        let fields = ["type", "Placed", "stream", "o-1", "data", "{\"n\":1}"];
        let event = read("1700000000000-1", &fields).unwrap().unwrap();
        assert_eq!((event.stream.as_deref(), event.data.unwrap().0.as_str()), (Some("o-1"), "{\"n\":1}"));
        assert_eq!(event.recorded_at, Timestamp::of_millis(1_700_000_000_000));
        let event = read("5-0", &["type", "Placed"]).unwrap().unwrap();
        assert!(event.recorded_at.is_none() && event.stream.is_none() && event.data.is_none());
        assert!(read("5-1", &["type", "Other", "data", "no json"]).unwrap().is_none());
    }

    #[test]
    fn what_cannot_be_read_is_told_without_what_it_holds() {
        let why = read("5-2", &["kind", "canary"]).unwrap_err();
        assert!(why.contains("no field type") && why.contains("spec.source.redis.event.type"), "{why}");
        let why = read("5-3", &["type", "Placed", "data", "canary"]).unwrap_err();
        assert!(why.contains("no JSON") && !why.contains("canary"), "{why}");
        let long = [Reply::Text(b"data".to_vec()), Reply::LongText(101)];
        let why = Entries::new(&RedisEvent::default(), Vec::new(), 100).event("5-4", &long).unwrap_err();
        assert!(why.contains("101 bytes"), "{why}");
    }
}
