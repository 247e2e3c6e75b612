//! Names from a spec, made safe for SQL.

use crate::api::table_parts;

/// The identifier in double quotes: taken literally, whatever it holds.
pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A table, or a table with its schema (`store.events`, `"event.store".events`), each part quoted: see [`table_parts`].
pub fn quote_table(table: &str) -> String {
    table_parts(table).iter().map(|part| quote_identifier(part)).collect::<Vec<_>>().join(".")
}

/// The SQL expression for the shard of a stream, from 0 to `shards - 1`.
///
/// Part of the interface between the sampler, which counts by it, and the built-in projector, which reads by it: both must agree, and
/// a change would move streams between checkpoints. `hashtextextended` with seed 0 gives the same hash on every PostgreSQL from 11 on;
/// its remainder may be negative, hence the second one.
pub fn shard_expression(stream_column_sql: &str, shards: u32) -> String {
    let shards = shards.max(1);
    format!("coalesce((((hashtextextended(({stream_column_sql})::text, 0) % {shards}) + {shards}) % {shards})::int, 0)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_break_out_of_its_quotes() {
        assert_eq!(quote_identifier("Position"), "\"Position\"");
        assert_eq!(quote_identifier("a\"; drop table x; --"), "\"a\"\"; drop table x; --\"");
        assert_eq!(quote_table("store.events"), "\"store\".\"events\"");
        assert_eq!(quote_table("events"), "\"events\"");
        assert_eq!(quote_table("\"event.store\".événements"), "\"event.store\".\"événements\"");
    }

    #[test]
    fn the_shard_expression_is_part_of_the_interface() {
        assert_eq!(
            shard_expression("\"stream\"", 24),
            "coalesce((((hashtextextended((\"stream\")::text, 0) % 24) + 24) % 24)::int, 0)"
        );
    }
}
