//! Which handlers no event has come for, as workers of the built-in projector have written down in the checkpoint table.

use std::collections::HashMap;

use tokio_postgres::{Client, Error, types::Type};

use crate::{
    clients::postgres::{Query, quote_identifier, quote_table},
    read_stores::uncalled,
};

/// Reads for all projections of a checkpoint table at once; those of which not each shard's owner has written something are left out.
///
/// # Errors
/// Those of the server.
pub(super) async fn read(
    client: &Client,
    (table, name_column): (&str, &str),
    projections: &[String],
) -> Result<HashMap<String, Vec<String>>, Error> {
    let (from, name) = (quote_table(table), quote_identifier(name_column));
    // Where the table has no such columns, the names mean those of `absent`.
    let sql = format!(
        "select s.name, array_agg(distinct substr(s.note, length(s.owned) + 1))
         from (select null::text as uncalled, null::bigint as fence) absent
         cross join lateral (
             select {name}::text as name, uncalled as note, fence || ' ' as owned from {from} where {name} = any($1::text[])
         ) s
         group by s.name having bool_and(coalesce(starts_with(s.note, s.owned), false))"
    );
    let mut all = HashMap::new();
    for row in Query::new(sql, &[Type::TEXT_ARRAY]).rows(client, &[&projections]).await? {
        let lists: Vec<String> = row.try_get(1)?;
        all.insert(row.try_get(0)?, uncalled::by_all(lists.iter().map(|types| uncalled::of_list(types))));
    }
    Ok(all)
}
