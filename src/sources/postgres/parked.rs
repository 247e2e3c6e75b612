//! Events that Marten has set aside after they failed, counted for all projections of a schema in one statement.

use std::collections::{BTreeSet, HashMap};

use tokio_postgres::{Client, Error, types::Type};

use super::counting::unsigned;
use crate::{
    clients::postgres::{Query, quote_table},
    resolve::ParkedEvents,
};

/// No more of the table's rows are looked at.
const MOST_READ: u32 = 10_000;

/// What was counted at the last look.
#[derive(Debug, Default)]
pub(super) struct Parked {
    /// By the names of projection and shard, for each table that could be read.
    counted: HashMap<String, HashMap<(String, String), u64>>,
}

impl Parked {
    /// How many events of this projection are set aside; absent where there is no such table, it may not be read, or it has too many rows to be
    /// counted.
    pub(super) fn of(&self, events: &ParkedEvents) -> Option<u64> {
        let counted = self.counted.get(&events.table)?;
        Some(counted.get(&events.projection).copied().unwrap_or(0))
    }

    /// Counts once. Marten makes the table when an event is set aside for the first time.
    ///
    /// # Errors
    /// Those of the server.
    pub(super) async fn look(
        &mut self,
        client: &Client,
        asked: impl Iterator<Item = &ParkedEvents>,
    ) -> Result<(), Error> {
        self.counted.clear();
        for table in asked.map(|events| &events.table).collect::<BTreeSet<_>>() {
            let quoted = quote_table(table);
            let readable =
                "select coalesce(pg_catalog.has_table_privilege(pg_catalog.to_regclass($1::text), 'select'), false)";
            let readable = Query::new(readable, &[Type::TEXT]).row(client, &[&quoted]).await?;
            if !readable.try_get::<_, bool>(0)? {
                continue;
            }
            // The members' names depend on the serializer that the store is configured with.
            let count = format!(
                "select coalesce(data->>'ProjectionName', data->>'projectionName', data->>'projection_name', ''),
                     coalesce(data->>'ShardName', data->>'shardName', data->>'shard_name', ''), count(*)
                 from (select data from {quoted} limit {MOST_READ} + 1) d group by 1, 2"
            );
            let mut counted = HashMap::new();
            for row in Query::new(count, &[]).rows(client, &[]).await? {
                counted.insert((row.try_get(0)?, row.try_get(1)?), unsigned(row.try_get(2)?));
            }
            if counted.values().sum::<u64>() <= u64::from(MOST_READ) {
                self.counted.insert(table.clone(), counted);
            }
        }
        Ok(())
    }
}
