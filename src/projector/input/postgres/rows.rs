//! Rows as events.

use tokio_postgres::{Error, Row};

use crate::{
    projector::{
        event::{Event, JsonText, Timestamp},
        postgres_errors::database_message,
    },
    sources::postgres::event_log::EventBody,
};

/// What Erlang's external term format begins with. No text in UTF-8 does.
const ERLANG_TERM: u8 = 131;

/// The shard of a row: its second column.
///
/// # Errors
/// It has another type.
pub(super) fn shard_of(row: &Row) -> Result<u32, Error> {
    Ok(u32::try_from(row.try_get::<_, i32>(1)?).unwrap_or_default())
}

/// The event of a row of [`Statements::fetch`](super::statements::Statements::fetch).
///
/// # Errors
/// Why it cannot be read, without anything of what it holds.
pub(super) fn event(row: &Row, position: i64, shard: u32, body: EventBody) -> Result<Event, String> {
    let unreadable = |error: Error| database_message(&error);
    let data = match body {
        EventBody::Text => row.try_get::<_, Option<String>>(5).map_err(unreadable)?,
        EventBody::Bytes => row.try_get::<_, Option<Vec<u8>>>(5).map_err(unreadable)?.map(text).transpose()?,
    };
    Ok(Event {
        position,
        since: position,
        before: position - 1,
        shown_position: position,
        behind_parked: None,
        shard,
        event_type: row.try_get(2).map_err(unreadable)?,
        stream: row.try_get(3).map_err(unreadable)?,
        recorded_at: row.try_get::<_, Option<Timestamp>>(4).map_err(unreadable)?,
        data: data.map(JsonText),
    })
}

/// A body that is kept as bytes.
fn text(bytes: Vec<u8>) -> Result<String, String> {
    if bytes.first() == Some(&ERLANG_TERM) {
        return Err(
            "its body is an Erlang term, as EventStore.TermSerializer writes it, and only JSON can be read: the event store needs a serializer of JSON, such as EventStore.JsonSerializer or Commanded.Serialization.JsonSerializer"
                .to_owned(),
        );
    }
    String::from_utf8(bytes).map_err(|_| {
        "its body is no text in UTF-8, and only JSON can be read: which serializer does the event store have?"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_in_bytes_is_read_and_what_else_serializers_write_is_told_by_its_name() {
        assert_eq!(text(b"{\"n\": 1}".to_vec()), Ok("{\"n\": 1}".to_owned()));
        assert!(text(vec![131, 100, 0, 1, 97]).unwrap_err().contains("TermSerializer"));
        assert!(text(vec![0x7b, 0xff]).unwrap_err().contains("UTF-8"));
    }
}
