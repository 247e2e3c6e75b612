//! The types of a table's columns, read from the table itself.

use tokio_postgres::{Client, Error};

use super::quote_identifier;

/// The type of a column, domains taken for what they stand for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ColumnType {
    /// As SQL writes it: `timestamp with time zone`, `store.kind`.
    pub sql: String,
    /// `S` for everything that is text, `citext` included.
    category: String,
    /// The values of an enum; empty for all other types.
    pub labels: Vec<String>,
}

/// The types of these columns of a table (quoted already), in their order.
///
/// Asks the table itself rather than the catalog, so that the server's own words say what is missing or not allowed.
///
/// # Errors
/// Those of the server.
pub async fn column_types(client: &Client, table_sql: &str, columns: &[&str]) -> Result<Vec<ColumnType>, Error> {
    let quoted: Vec<String> = columns.iter().map(|column| quote_identifier(column)).collect();
    let numbered =
        quoted.iter().enumerate().map(|(n, column)| format!("{column} as c{n}")).collect::<Vec<_>>().join(", ");
    let types = (0..columns.len()).map(|n| format!("pg_catalog.pg_typeof(s.c{n})")).collect::<Vec<_>>().join(", ");
    let sql = format!(
        "with recursive base(n, type) as (
             select t.n, t.type::oid
             from (select 1) one
             left join lateral (select {numbered} from {table_sql} limit 0) s on true
             cross join lateral unnest(array[{types}]) with ordinality as t(type, n)
             union all
             select b.n, t.typbasetype from base b join pg_catalog.pg_type t on t.oid = b.type where t.typtype = 'd'
         )
         select pg_catalog.format_type(b.type, null), t.typcategory::text,
             array(select e.enumlabel::text from pg_catalog.pg_enum e where e.enumtypid = b.type)
         from base b join pg_catalog.pg_type t on t.oid = b.type where t.typtype <> 'd' order by b.n"
    );
    let rows = client.query_typed(&sql, &[]).await?;
    let types = rows
        .iter()
        .map(|row| Ok(ColumnType { sql: row.try_get(0)?, category: row.try_get(1)?, labels: row.try_get(2)? }));
    types.collect()
}

impl ColumnType {
    /// `smallint`, `integer` or `bigint`.
    pub fn is_integer(&self) -> bool {
        ["smallint", "integer", "bigint"].contains(&self.sql.as_str())
    }

    /// Text of any kind, `citext` included.
    pub fn is_text(&self) -> bool {
        self.category == "S"
    }

    /// Its text is the same in every session: no setting such as `DateStyle` or `bytea_output` changes it.
    pub fn has_stable_text(&self) -> bool {
        self.is_integer()
            || self.is_text()
            || !self.labels.is_empty()
            || ["uuid", "numeric", "boolean"].contains(&self.sql.as_str())
    }

    /// JSON, or text that may hold it.
    pub fn may_hold_json(&self) -> bool {
        ["json", "jsonb"].contains(&self.sql.as_str()) || self.is_text()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn type_(sql: &str, category: &str, labels: &[&str]) -> ColumnType {
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        ColumnType { sql: sql.to_owned(), category: category.to_owned(), labels }
    }

    #[test]
    fn a_stream_has_a_type_whose_text_no_setting_changes() {
        for (sql, category, labels) in [
            ("text", "S", &[][..]),
            ("citext", "S", &[]),
            ("character", "S", &[]),
            ("uuid", "U", &[]),
            ("store.kind", "E", &["a"]),
        ] {
            assert!(type_(sql, category, labels).has_stable_text(), "{sql}");
        }
        for (sql, category) in
            [("bytea", "U"), ("timestamp with time zone", "D"), ("double precision", "N"), ("jsonb", "U")]
        {
            assert!(!type_(sql, category, &[]).has_stable_text(), "{sql}");
        }
    }

    #[test]
    fn a_body_is_json_or_text() {
        assert!(type_("jsonb", "U", &[]).may_hold_json() && type_("character varying", "S", &[]).may_hold_json());
        assert!(!type_("bytea", "U", &[]).may_hold_json() && !type_("xml", "U", &[]).may_hold_json());
    }
}
