//! The statements: events, checkpoints, and what was handled.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use tokio_postgres::{Client, Config, NoTls, Statement};

use crate::{group::Group, settings::Settings};

/// Events that one fetch brings at most: about as many as a worker handles in a second.
const FETCHED: i64 = 50;

/// An event at hand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    pub(crate) position: i64,
    pub(crate) shard: i32,
    pub(crate) cost: Duration,
}

/// The tables.
pub(crate) struct Log {
    client: Arc<Client>,
    pub(crate) group: Group,
    one_row: bool,
    statements: Statements,
}

struct Statements {
    head: Statement,
    fetch: Statement,
    checkpoint: Statement,
    commit: Statement,
    commit_lowest: Option<Statement>,
    handled: Statement,
}

impl Log {
    pub(crate) async fn open(settings: &Settings) -> Result<Self> {
        let mut database: Config = settings.database.parse().context("the address of the database")?;
        // Which worker it is, for whoever looks at the sessions, or at the column of a table that is filled in with it.
        database.application_name(std::env::var("HOSTNAME").unwrap_or_default());
        let (client, connection) = database.connect(NoTls).await.context("connecting to the database")?;
        // The client reports what happens to its connection.
        tokio::spawn(connection);
        let statements = Statements::prepare(&client, settings).await?;
        let client = Arc::new(client);
        let group = Group::join(Arc::clone(&client), settings.group).await?;
        Ok(Self { client, group, one_row: settings.one_row, statements })
    }

    /// How far a shard has come.
    pub(crate) async fn checkpoint(&self, shard: i32) -> Result<i64> {
        Ok(self.client.query_one(&self.statements.checkpoint, &[&shard]).await?.get(0))
    }

    /// The oldest events of these shards, by position; where one row stands for all shards also the position up to which no more were there.
    pub(crate) async fn fetch(&self, shards: &BTreeMap<i32, i64>) -> Result<(Vec<Event>, Option<i64>)> {
        // Looked at first: what comes between is above it.
        let head =
            if self.one_row { Some(self.client.query_one(&self.statements.head, &[]).await?.get(0)) } else { None };
        let (names, positions): (Vec<i32>, Vec<i64>) = shards.iter().unzip();
        let rows = self.client.query(&self.statements.fetch, &[&names, &positions, &FETCHED]).await?;
        let event = |row: &tokio_postgres::Row| Event {
            position: row.get(0),
            shard: row.get(1),
            cost: Duration::from_secs_f64(f64::from(row.get::<_, f32>(2)) / 1e3),
        };
        let events: Vec<Event> = rows.iter().map(event).collect();
        // What a full fetch left out comes after its last event.
        let full = i64::try_from(events.len()).is_ok_and(|count| count >= FETCHED);
        let bound = if full { events.last().map(|event| event.position) } else { head };
        Ok((events, head.and(bound)))
    }

    pub(crate) async fn commit(&self, moved: &BTreeMap<i32, i64>) -> Result<()> {
        if moved.is_empty() {
            return Ok(());
        }
        let (shards, positions): (Vec<i32>, Vec<i64>) = moved.iter().unzip();
        self.client.execute(&self.statements.commit, &[&shards, &positions]).await.context("committing")?;
        if let Some(lowest) = &self.statements.commit_lowest {
            self.client.execute(lowest, &[]).await.context("committing the lowest")?;
        }
        Ok(())
    }

    pub(crate) async fn write_handled(&self, handled: &[(i64, SystemTime)]) -> Result<()> {
        if handled.is_empty() {
            return Ok(());
        }
        let (positions, times): (Vec<i64>, Vec<SystemTime>) = handled.iter().copied().unzip();
        self.client
            .execute(&self.statements.handled, &[&positions, &times])
            .await
            .context("writing what was handled")?;
        Ok(())
    }
}

impl Statements {
    async fn prepare(client: &Client, settings: &Settings) -> Result<Self> {
        let schema = &settings.schema;
        // The schema's name comes from the bench, which made it.
        let rows = format!("{schema}.{}", if settings.one_row { "progress" } else { "checkpoints" });
        let prepare = async |text: String| client.prepare(&text).await.with_context(|| format!("preparing {text}"));
        let lowest = format!(
            "update {schema}.checkpoints set position = lowest.position
             from (select min(position) as position from {schema}.progress) lowest where checkpoints.position < lowest.position"
        );
        Ok(Self {
            head: prepare(format!("select coalesce(max(position), 0) from {schema}.events")).await?,
            fetch: prepare(format!(
                "select e.position, e.shard, e.cost_ms
                 from unnest($1::int[], $2::bigint[]) as s(shard, position)
                 cross join lateral (
                     select position, shard, cost_ms from {schema}.events
                     where events.shard = s.shard and events.position > s.position order by events.position limit $3
                 ) e order by e.position limit $3"
            ))
            .await?,
            checkpoint: prepare(format!("select position from {rows} where shard = $1")).await?,
            commit: prepare(format!(
                "update {rows} c set position = s.position from unnest($1::int[], $2::bigint[]) as s(shard, position)
                 where c.shard = s.shard and c.position < s.position"
            ))
            .await?,
            commit_lowest: if settings.one_row { Some(prepare(lowest).await?) } else { None },
            handled: prepare(format!(
                "insert into {schema}.handled select * from unnest($1::bigint[], $2::timestamptz[])"
            ))
            .await?,
        })
    }
}
