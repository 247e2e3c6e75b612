//! What types the columns of a table have.

use tokio_postgres::{Client, Error};

use super::quote_identifier;

/// The types of these columns of a table (quoted already), domains taken for what they stand for: `bigint`, `timestamp with time zone`.
///
/// Asks the table itself rather than the catalog, so that the server's own words say what is missing or not allowed.
///
/// # Errors
/// Those of the server.
pub async fn column_types(client: &Client, table_sql: &str, columns: &[&str]) -> Result<Vec<String>, Error> {
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
         select pg_catalog.format_type(b.type, null)
         from base b join pg_catalog.pg_type t on t.oid = b.type where t.typtype <> 'd' order by b.n"
    );
    let rows = client.query_typed(&sql, &[]).await?;
    rows.iter().map(|row| row.try_get(0)).collect()
}
