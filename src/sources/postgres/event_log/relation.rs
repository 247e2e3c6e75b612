//! What statements over an event log read: what stands after `from`, and where its end is told. No IO.

use crate::{
    api::{EventRows, EventTable},
    clients::postgres::{quote_identifier, quote_table},
};

/// An event log as SQL.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Relation {
    /// The table with the positions, quoted.
    pub table: String,
    /// All positions, those of events that are not meant included, for `from`.
    pub positions: String,
    /// The events with the columns that the event table names, for `from`.
    pub events: String,
    /// The highest position that was handed out and committed, an expression; NULL where there is none.
    pub head: String,
    /// Every table that is read, quoted.
    pub tables: Vec<String>,
    /// Positions are handed out in a transaction that keeps all others from theirs until it has ended, so that none is committed after a higher one.
    pub commits_in_order: bool,
}

impl Relation {
    /// The log that `events` are of, with the names of `table`.
    pub fn new(table: &EventTable, events: &EventRows) -> Self {
        let quoted = quote_table(&table.table);
        match events {
            EventRows::All => Self::of_table(&quoted, table, quoted.clone()),
            EventRows::Only(only) => {
                Self::of_table(&quoted, table, format!("(select * from {quoted} where {only}) as events"))
            }
            EventRows::AllStream { schema } => Self::all_stream(&quoted, schema),
        }
    }

    fn of_table(quoted: &str, table: &EventTable, events: String) -> Self {
        Self {
            table: quoted.to_owned(),
            positions: quoted.to_owned(),
            events,
            head: format!("(select max({}) from {quoted})", quote_identifier(&table.position)),
            tables: vec![quoted.to_owned()],
            commits_in_order: false,
        }
    }

    /// The stream `$all` has the id 0. Its row tells how far its numbers go, also where the last events were deleted. An append updates this row, whose lock
    /// it holds until its end. Foreign keys keep what an event's number leads to.
    fn all_stream(quoted: &str, schema: &str) -> Self {
        let [events, streams] =
            ["events", "streams"].map(|table| format!("{}.{}", quote_identifier(schema), quote_identifier(table)));
        Self {
            table: quoted.to_owned(),
            positions: format!("(select stream_version from {quoted} where stream_id = 0) as events"),
            events: format!(
                "(select n.stream_version, e.created_at, s.stream_uuid, e.event_type, e.data
                  from {quoted} n
                  left join {events} e on e.event_id = n.event_id
                  left join {streams} s on s.stream_id = n.original_stream_id
                  where n.stream_id = 0) as events"
            ),
            head: format!("(select stream_version from {streams} where stream_id = 0)"),
            tables: vec![quoted.to_owned(), events, streams],
            commits_in_order: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_those_of_all_rows_and_events_those_that_are_meant() {
        let table = EventTable::default();
        let all = Relation::new(&table, &EventRows::All);
        assert_eq!((all.positions.as_str(), all.events.as_str()), ("\"events\"", "\"events\""));
        let some = Relation::new(&table, &EventRows::Only("tenant = 'a'".to_owned()));
        assert_eq!(some.positions, "\"events\"");
        assert_eq!(some.events, "(select * from \"events\" where tenant = 'a') as events");
    }

    #[test]
    fn a_schema_cannot_break_out_of_its_quotes() {
        let schema = "a\"b".to_owned();
        let store = Relation::new(&EventTable::default(), &EventRows::AllStream { schema });
        assert_eq!(store.tables[1], "\"a\"\"b\".\"events\"");
        assert!(store.head.contains("\"a\"\"b\".\"streams\""), "{}", store.head);
    }
}
