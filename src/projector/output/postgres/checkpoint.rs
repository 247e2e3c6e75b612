//! The checkpoint table in the read store: the position and the owner of each shard.
//!
//! Every change of a row is guarded by owner and fence. The fence grows whenever the owner changes, so the commit of a worker that was thought dead
//! and comes back is refused, together with the effects in the same transaction.

use std::sync::Arc;

use tokio_postgres::{Client, Error, Row};

use super::{
    super::{
        super::{
            error::{ProjectorError, doing},
            sharding::{KeptPart, Part, Sharding, without_checkpoint},
        },
        Advance, Held, Numbered,
    },
    awaiting::AWAIT,
};
use crate::{
    api::table_part,
    clients::postgres::{quote_identifier, quote_table},
    names::{CHECKPOINT_TABLE, PARKED_TABLE},
};

/// The workers of each projection and until when they count as alive.
const WORKER_TABLE: &str = "projectionist_workers";

/// A failed event is no longer of interest once the checkpoint `u.position` has passed it.
const FORGET_PASSED: &str = "failed_position = case when c.failed_position > u.position then c.failed_position end, \
     failure = case when c.failed_position > u.position then c.failure end";

/// The tables' names, ready for SQL, and the projection's.
#[derive(Clone, Debug)]
pub(super) struct Tables {
    pub(super) checkpoints: String,
    pub(super) workers: String,
    /// Of events that are set aside.
    pub(super) parked: String,
    pub(super) projection: String,
    /// The checkpoint table as people call it.
    shown: String,
    schema: Option<String>,
}

impl Tables {
    pub(super) fn of(projection: &str, schema: Option<&str>) -> Self {
        let named = |table: &str| match schema {
            Some(schema) => format!("{}.{table}", table_part(schema)),
            None => table.to_owned(),
        };
        Self {
            checkpoints: quote_table(&named(CHECKPOINT_TABLE)),
            workers: quote_table(&named(WORKER_TABLE)),
            parked: quote_table(&named(PARKED_TABLE)),
            projection: projection.to_owned(),
            shown: named(CHECKPOINT_TABLE),
            schema: schema.map(str::to_owned),
        }
    }

    /// Makes schema, tables and rows where they are missing. Asks for the right to create only if something must be created.
    pub(super) async fn create(&self, client: &Client, sharding: &Sharding) -> Result<Numbered, ProjectorError> {
        let failed = doing("read store: making the checkpoint table");
        // Two workers that create the same table at once would both fail.
        client
            .batch_execute("begin; select pg_advisory_xact_lock(hashtextextended('projectionist tables', 0))")
            .await
            .map_err(&failed)?;
        create_schema(client, self.schema.as_deref()).await.map_err(&failed)?;
        let missing = "select to_regclass($1::text) is null or to_regclass($2::text) is null";
        let missing = client.query_one(missing, &[&self.checkpoints, &self.workers]).await.map_err(&failed)?;
        if missing.try_get(0).map_err(&failed)? {
            client.batch_execute(&self.definition()).await.map_err(&failed)?;
        }
        let numbered = match sharding {
            Sharding::Hashed { shards, start } => {
                self.create_rows(client, *shards, *start).await?;
                Numbered::hashed(*shards)
            }
            Sharding::Parts(parts) => Numbered::parts(self.create_parts(client, parts).await?),
        };
        AWAIT.make(client, &self.checkpoints).await.map_err(&failed)?;
        client.batch_execute("commit").await.map_err(&failed)?;
        Ok(numbered)
    }

    fn definition(&self) -> String {
        // Both are small and updated all the time: room in the page keeps their updates away from the indexes.
        format!(
            "create table if not exists {checkpoints} (
                 projection text not null,
                 shard int not null,
                 shards int not null,
                 position bigint not null default 0,
                 owner text,
                 fence bigint not null default 0,
                 updated_at timestamptz not null default now(),
                 failed_position bigint,
                 failure text,
                 part text,
                 part_id text,
                 uncalled text,
                 hold_at bigint,
                 hold_until timestamptz,
                 primary key (projection, shard)
             ) with (fillfactor = 30);
             create table if not exists {workers} (
                 projection text not null,
                 worker text not null,
                 name text not null,
                 lease_until timestamptz not null,
                 backend_pid int,
                 backend_start timestamptz,
                 primary key (projection, worker)
             ) with (fillfactor = 30)",
            checkpoints = self.checkpoints,
            workers = self.workers,
        )
    }

    async fn create_rows(&self, client: &Client, shards: u32, start: i64) -> Result<(), ProjectorError> {
        let failed = doing("read store: making the checkpoints");
        let count = i32::try_from(shards).unwrap_or(i32::MAX);
        let other = format!(
            "select shards, part is not null from {} where projection = $1 and (shards <> $2 or shard >= $2 or part is not null) limit 1",
            self.checkpoints
        );
        if let Some(row) = client.query_opt(&other, &[&self.projection, &count]).await.map_err(&failed)? {
            if row.try_get(1).map_err(&failed)? {
                return Err(self.other_sharding("partitions"));
            }
            return Err(ProjectorError::ShardsChanged {
                projection: self.projection.clone(),
                table: self.shown.clone(),
                found: row.try_get(0).map_err(&failed)?,
                configured: shards,
            });
        }
        let insert = format!(
            "insert into {} (projection, shard, shards, position) select $1, n, $2, $3 from generate_series(0, $2 - 1) as n
             on conflict do nothing",
            self.checkpoints
        );
        client.execute(&insert, &[&self.projection, &count, &start]).await.map_err(&failed)?;
        Ok(())
    }

    /// Makes the rows of parts that have none, and returns all in the order of their numbers: a part keeps its number for good.
    async fn create_parts(&self, client: &Client, parts: &[Part]) -> Result<Vec<KeptPart>, ProjectorError> {
        let failed = doing("read store: making the checkpoints");
        let kept = format!("select part, part_id from {} where projection = $1 order by shard", self.checkpoints);
        let rows = client.query(&kept, &[&self.projection]).await.map_err(&failed)?;
        let mut kept = Vec::new();
        for row in &rows {
            let name: Option<String> = row.try_get(0).map_err(&failed)?;
            let name = name.ok_or_else(|| self.other_sharding("hashes of streams"))?;
            let identity: Option<String> = row.try_get(1).map_err(&failed)?;
            kept.push(KeptPart { name: name.into(), identity: identity.map(Arc::from) });
        }
        let new = without_checkpoint(&self.projection, &kept, parts)?;
        let first = i32::try_from(kept.len()).unwrap_or(i32::MAX);
        let names: Vec<&str> = new.iter().map(|part| &*part.name).collect();
        let identities: Vec<Option<&str>> = new.iter().map(|part| part.identity.as_deref()).collect();
        let starts: Vec<i64> = new.iter().map(|part| part.start).collect();
        let insert = format!(
            "insert into {} (projection, shard, shards, position, part, part_id)
             select $1, $2::int + u.n::int - 1, 0, u.start, u.part, u.id
             from unnest($3::text[], $4::text[], $5::bigint[]) with ordinality as u(part, id, start, n)",
            self.checkpoints
        );
        client.execute(&insert, &[&self.projection, &first, &names, &identities, &starts]).await.map_err(&failed)?;
        kept.extend(new.iter().map(|part| KeptPart { name: part.name.clone(), identity: part.identity.clone() }));
        Ok(kept)
    }

    fn other_sharding(&self, kept: &'static str) -> ProjectorError {
        ProjectorError::OtherSharding { projection: self.projection.clone(), table: self.shown.clone(), kept }
    }

    /// True for the row `w` of a worker that is alive: its lease has not run out by the database's clock, and the connection it renewed it on
    /// is still there. The latter is why a killed worker's shards need not wait for the former.
    pub(super) fn alive(&self) -> &'static str {
        "(w.lease_until > clock_timestamp() and (w.backend_pid is null or exists (
             select from pg_catalog.pg_stat_activity a where a.pid = w.backend_pid
                 and (a.backend_start is null or a.backend_start = w.backend_start))))"
    }

    /// Takes those of `shards` that are free, and returns their positions.
    pub(super) async fn take(&self, client: &Client, me: &str, shards: &[u32]) -> Result<Vec<(u32, Held)>, Error> {
        let take = format!(
            "with free as materialized (
                 select c.shard from {checkpoints} c
                 where c.projection = $1 and c.shard = any($3::int[]) and not exists (
                     select from {workers} w
                     where w.projection = c.projection and w.worker = c.owner and {alive})
                 order by c.shard
                 for update of c skip locked
             )
             update {checkpoints} c set owner = $2, fence = c.fence + 1, updated_at = now()
             from free where c.projection = $1 and c.shard = free.shard
             returning c.shard, c.fence, c.position",
            checkpoints = self.checkpoints,
            workers = self.workers,
            alive = self.alive(),
        );
        let rows = client.query(&take, &[&self.projection, &me, &signed(shards)]).await?;
        rows.iter().map(held).collect()
    }

    /// The shards that the table says are this worker's.
    pub(super) async fn mine(&self, client: &Client, me: &str) -> Result<Vec<(u32, Held)>, Error> {
        let mine =
            format!("select shard, fence, position from {} where projection = $1 and owner = $2", self.checkpoints);
        let rows = client.query(&mine, &[&self.projection, &me]).await?;
        rows.iter().map(held).collect()
    }

    /// Gives shards back, with the positions reached, and notifies the other workers.
    pub(super) async fn release(&self, client: &Client, me: &str, shards: &[(u32, Held)]) -> Result<(), Error> {
        let release = format!(
            "update {} c set owner = null, updated_at = now(), position = case when c.position = u.before then u.position else c.position end, {FORGET_PASSED}
             from unnest($3::int[], $4::bigint[], $5::bigint[], $6::bigint[]) as u(shard, fence, before, position)
             where c.projection = $1 and c.shard = u.shard and c.owner = $2 and c.fence = u.fence",
            self.checkpoints
        );
        let rows = Rows::of(shards.iter().map(|(shard, held)| Advance::to(held.position, *shard, *held)));
        client
            .execute(&release, &[&self.projection, &me, &rows.shards, &rows.fences, &rows.before, &rows.positions])
            .await?;
        self.announce(client).await
    }

    /// Holds the shard for this transaction. Returns whether it is still this worker's.
    pub(super) async fn hold(&self, client: &Client, me: &str, shard: u32, held: Held) -> Result<bool, Error> {
        let hold = format!(
            "select from {} where projection = $1 and shard = $2 and owner = $3 and fence = $4 for no key update",
            self.checkpoints
        );
        let shard = i32::try_from(shard).unwrap_or(i32::MAX);
        Ok(client.query_opt(&hold, &[&self.projection, &shard, &me, &held.fence]).await?.is_some())
    }

    /// Records that the shard waits before the event at `position`, and why.
    pub(super) async fn record_failure(
        &self,
        client: &Client,
        me: &str,
        (shard, held): (u32, Held),
        position: i64,
        why: &str,
    ) -> Result<(), Error> {
        let record = format!(
            "update {} set failed_position = $5, failure = $6 where projection = $1 and shard = $2::int and owner = $3 and fence = $4",
            self.checkpoints
        );
        let shard = i32::try_from(shard).unwrap_or(i32::MAX);
        client.execute(&record, &[&self.projection, &shard, &me, &held.fence, &position, &why]).await.map(drop)
    }

    /// Writes down which handlers this worker has had no event for: a note for each shard.
    pub(super) async fn note_uncalled(
        &self,
        client: &Client,
        me: &str,
        shards: &[(u32, Held)],
        note: impl Fn(i64) -> String,
    ) -> Result<(), Error> {
        let write = format!(
            "update {} c set uncalled = u.note from unnest($3::int[], $4::bigint[], $5::text[]) as u(shard, fence, note)
             where c.projection = $1 and c.shard = u.shard and c.owner = $2 and c.fence = u.fence",
            self.checkpoints
        );
        let rows = Rows::of(shards.iter().map(|(shard, held)| Advance::to(held.position, *shard, *held)));
        let notes: Vec<String> = rows.fences.iter().map(|fence| note(*fence)).collect();
        client.execute(&write, &[&self.projection, &me, &rows.shards, &rows.fences, &notes]).await.map(drop)
    }

    /// Notifies all workers of the projection that a shard has changed its owner.
    pub(super) async fn announce(&self, client: &Client) -> Result<(), Error> {
        let announce = "select pg_notify('projectionist:' || md5($1::text), '')";
        client.execute(announce, &[&self.projection]).await.map(drop)
    }

    /// The statement that moves the rows of shards, each only from where this owner found it and with its fence. Parameters: the projection, the
    /// owner, and for each row its shard, fence, position before and position now.
    pub(super) fn advance(&self) -> String {
        format!(
            "update {} c set position = u.position, updated_at = now(), {FORGET_PASSED}
             from unnest($3::int[], $4::bigint[], $5::bigint[], $6::bigint[]) as u(shard, fence, before, position)
             where c.projection = $1 and c.shard = u.shard and c.owner = $2 and c.fence = u.fence
                 and c.position = u.before",
            self.checkpoints
        )
    }
}

/// Makes the schema where one is named and missing. Asks for the right to create only then.
pub(super) async fn create_schema(client: &Client, schema: Option<&str>) -> Result<(), Error> {
    let Some(schema) = schema else { return Ok(()) };
    let find = "select from pg_catalog.pg_namespace where nspname = $1::text";
    if client.query_opt(find, &[&schema]).await?.is_none() {
        client.batch_execute(&format!("create schema if not exists {}", quote_identifier(schema))).await?;
    }
    Ok(())
}

/// Rows of the checkpoint table, column by column.
#[derive(Clone, Debug, Default)]
pub(super) struct Rows {
    pub(super) shards: Vec<i32>,
    pub(super) fences: Vec<i64>,
    pub(super) before: Vec<i64>,
    pub(super) positions: Vec<i64>,
}

impl Rows {
    /// Each step of a shard.
    pub(super) fn of(advances: impl IntoIterator<Item = Advance>) -> Self {
        let mut columns = Self::default();
        for Advance { shard, fence, before, position } in advances {
            columns.shards.extend(signed(&[shard]));
            columns.fences.push(fence);
            columns.before.push(before);
            columns.positions.push(position);
        }
        columns
    }

    /// How many.
    pub(super) fn len(&self) -> usize {
        self.shards.len()
    }
}

pub(super) fn signed(shards: &[u32]) -> Vec<i32> {
    shards.iter().filter_map(|shard| i32::try_from(*shard).ok()).collect()
}

fn held(row: &Row) -> Result<(u32, Held), Error> {
    let shard = u32::try_from(row.try_get::<_, i32>(0)?).unwrap_or_default();
    let position = row.try_get(2)?;
    Ok((shard, Held { fence: row.try_get(1)?, committed: position, position }))
}
