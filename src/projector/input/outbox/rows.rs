//! Rows of an outbox as events. Pure.

use tokio_postgres::{Error, Row};

use super::super::{
    super::event::{Event, JsonText, Timestamp},
    mapping::{json, too_large},
    queue::Delivery,
};

/// How rows are read that were taken by [`super::statements::take`].
pub(super) struct Rows {
    /// The table's name with its schema.
    table: String,
    /// The types that have a handler.
    types: Vec<String>,
    max_event_bytes: usize,
}

/// True where more rows were locked than these, since their bodies are large.
///
/// # Errors
/// The answer has other columns.
pub(super) fn is_cut(rows: &[Row]) -> Result<bool, Error> {
    let Some(row) = rows.last() else { return Ok(false) };
    let locked: i64 = row.try_get(7)?;
    Ok(usize::try_from(locked).is_ok_and(|locked| locked > rows.len()))
}

impl Rows {
    pub(super) fn new(table: String, types: Vec<String>, max_event_bytes: i64) -> Self {
        Self { table, types, max_event_bytes: usize::try_from(max_event_bytes).unwrap_or(usize::MAX) }
    }

    pub(super) fn types(&self) -> &[String] {
        &self.types
    }

    /// The event in a row, nothing where its type has no handler, or why it cannot be read.
    ///
    /// # Errors
    /// The answer has other columns.
    pub(super) fn delivery(&self, row: &Row) -> Result<Delivery<String>, Error> {
        let id: String = row.try_get(0)?;
        let time: Option<i64> = row.try_get(6)?;
        let parts = Parts {
            event_type: row.try_get(1)?,
            stream: row.try_get(2)?,
            recorded_at: row.try_get(3)?,
            body: row.try_get(4)?,
            bytes: row.try_get(5)?,
        };
        Ok(Delivery { id: note(&self.table, &id, time), receipt: id, content: self.content(parts) })
    }

    fn content(&self, parts: Parts) -> Result<Option<Event>, String> {
        let Parts { event_type, stream, recorded_at, body, bytes } = parts;
        let event_type =
            event_type.ok_or("it has no type: the column that spec.source.postgres.outbox.event.type names is NULL")?;
        if !self.types.contains(&event_type) {
            return Ok(None);
        }
        let bytes = u64::try_from(bytes).unwrap_or_default();
        if usize::try_from(bytes).is_ok_and(|bytes| bytes > self.max_event_bytes) {
            return Err(too_large(bytes, self.max_event_bytes));
        }
        if let Some(body) = &body {
            json(body.as_bytes())?;
        }
        Ok(Some(Event::without_position(event_type, stream, recorded_at, body.map(JsonText))))
    }
}

/// What a row holds.
struct Parts {
    event_type: Option<String>,
    stream: Option<String>,
    recorded_at: Option<Timestamp>,
    body: Option<String>,
    /// Of body and stream, which are absent where they are too large.
    bytes: i64,
}

/// What names a row in the inbox. Its time belongs to it, since a table that is truncated or made again may give the same numbers to other rows.
fn note(table: &str, id: &str, time: Option<i64>) -> String {
    let time = time.map_or_else(|| "-".to_owned(), |time| time.to_string());
    format!("{table} {time} {id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(event_type: Option<&str>, body: Option<&str>, bytes: i64) -> Parts {
        Parts {
            event_type: event_type.map(str::to_owned),
            stream: Some("o-1".to_owned()),
            recorded_at: Some(Timestamp(7)),
            body: body.map(str::to_owned),
            bytes,
        }
    }

    fn rows() -> Rows {
        Rows::new("public.outbox".to_owned(), vec!["Placed".to_owned()], 100)
    }

    #[test]
    fn a_row_is_an_event_where_its_type_has_a_handler() {
        let event = rows().content(parts(Some("Placed"), Some("{\"n\":1.10}"), 12)).unwrap().unwrap();
        assert_eq!((event.stream.as_deref(), event.data.unwrap().0.as_str()), (Some("o-1"), "{\"n\":1.10}"));
        assert_eq!(event.recorded_at, Some(Timestamp(7)));
        assert!(rows().content(parts(Some("Placed"), None, 3)).unwrap().unwrap().data.is_none());
        assert!(rows().content(parts(Some("Other"), Some("no json"), 7)).unwrap().is_none());
    }

    #[test]
    fn what_cannot_be_read_is_told_without_what_it_holds() {
        let why = rows().content(parts(Some("Placed"), Some("canary"), 6)).unwrap_err();
        assert!(why.contains("no JSON") && !why.contains("canary"), "{why}");
        let why = rows().content(parts(Some("Placed"), None, 101)).unwrap_err();
        assert!(why.contains("101 bytes"), "{why}");
        let why = rows().content(parts(None, Some("{}"), 2)).unwrap_err();
        assert!(why.contains("outbox.event.type"), "{why}");
    }

    #[test]
    fn a_row_is_named_by_its_table_its_time_and_its_identifier() {
        assert_eq!(note("public.outbox", "7", Some(1)), "public.outbox 1 7");
        assert_ne!(note("public.outbox", "7", Some(1)), note("public.outbox", "7", Some(2)), "made again");
        assert_ne!(note("public.outbox", "7", None), note("public.other", "7", None));
    }
}
