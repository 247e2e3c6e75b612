//! Finds the event whose shard an expression cannot tell, so that the message names it.

use tokio_postgres::{Client, Error, types::Type};

use super::{columns::Columns, questions::EventShard};
use crate::clients::postgres::Query;

/// So many events are searched, the first ones beyond `low`.
const SEARCHED_AT_MOST: i64 = 50_000;

/// True for an error about a value (SQLSTATE class 22: data exceptions), and not about the expression.
pub(super) fn is_about_a_value(error: &Error) -> bool {
    error.as_db_error().is_some_and(|error| error.code().code().starts_with("22"))
}

/// The position of the first event above `low`, and not above `high`, whose shard cannot be told; `None` where there is none among those that are
/// searched. It takes a statement for each halving, each in a savepoint of its own, of the transaction that is open.
///
/// # Errors
/// Those of the server about anything else.
pub(super) async fn first_untold(
    client: &Client,
    columns: &Columns,
    shard: &EventShard,
    (low, high): (i64, i64),
) -> Result<Option<i64>, Error> {
    let Columns { table, position, .. } = columns;
    let listed = format!(
        "select coalesce(array_agg(p order by p), '{{}}') from (
             select {position}::bigint as p from {table} where {position} > $1 and {position} <= $2 order by {position} limit $3
         ) s"
    );
    let listed = Query::new(listed, &[Type::INT8, Type::INT8, Type::INT8]);
    let positions: Vec<i64> = listed.row(client, &[&low, &high, &SEARCHED_AT_MOST]).await?.try_get(0)?;
    let mut suspects = positions.as_slice();
    if suspects.is_empty() || is_told(client, columns, shard, suspects).await? {
        return Ok(None);
    }
    while suspects.len() > 1 {
        let (first, second) = suspects.split_at(suspects.len() / 2);
        suspects = if is_told(client, columns, shard, first).await? { second } else { first };
    }
    Ok(suspects.first().copied())
}

/// The shards of all events between the first and the last of these can be told.
async fn is_told(client: &Client, columns: &Columns, shard: &EventShard, events: &[i64]) -> Result<bool, Error> {
    let (Some(first), Some(last)) = (events.first(), events.last()) else { return Ok(true) };
    let Columns { table, position, .. } = columns;
    let told =
        format!("select count(({})::text) from {table} where {position} >= $1 and {position} <= $2", shard.sql());
    client.batch_execute("savepoint untold").await?;
    match Query::new(told, &[Type::INT8, Type::INT8]).row(client, &[first, last]).await {
        Ok(_) => {
            client.batch_execute("release savepoint untold").await?;
            Ok(true)
        }
        Err(error) if is_about_a_value(&error) => {
            client.batch_execute("rollback to savepoint untold").await?;
            Ok(false)
        }
        Err(error) => Err(error),
    }
}
