//! How a batch ends: its effects and checkpoints are committed together, or not at all.

use std::collections::BTreeSet;

use tokio::time::{Instant, sleep};
use tokio_postgres::{Error, types::ToSql};

use super::{
    super::{
        batch::Failed,
        checkpoint::Rows,
        error::{Failure, ProjectorError, database_message, failure},
        events::{Fetched, Range},
        mapping::Event,
    },
    IDLE_COMMIT_EVERY, SOON, Worker,
};

/// Contention this often in a row is taken for a failure of the handler.
const MOST_CONTENTION: u32 = 10;
/// What is being done, for messages.
pub(super) const COMMITTING: &str = "read store: committing a checkpoint";

impl Worker {
    /// Writes the checkpoints of shards that had nothing to do, if that is due.
    pub(super) async fn commit_idle(&mut self) -> Result<(), ProjectorError> {
        if self.idle_committed.elapsed() < IDLE_COMMIT_EVERY {
            return Ok(());
        }
        let moved = self.held.iter().filter(|(_, held)| held.position > held.committed);
        let rows = Rows::of(moved.map(|(shard, held)| (*shard, *held, held.position)));
        if rows.len() == 0 {
            return Ok(());
        }
        self.idle_committed = Instant::now();
        if self.write(&rows).await.map_err(ProjectorError::doing(COMMITTING))? == rows.len() {
            self.committed(&rows);
            return Ok(());
        }
        tracing::warn!("a checkpoint belongs to another worker or was moved: reading the checkpoint table again");
        self.reload().await
    }

    async fn write(&self, rows: &Rows) -> Result<usize, Error> {
        let values: [&(dyn ToSql + Sync); 6] =
            [&self.tables.projection, &self.me, &rows.shards, &rows.fences, &rows.before, &rows.positions];
        let written = self.store.client.execute(&self.advance, &values).await?;
        Ok(usize::try_from(written).unwrap_or(usize::MAX))
    }

    fn committed(&mut self, rows: &Rows) {
        for (shard, position) in rows.shards.iter().zip(&rows.positions) {
            let held = u32::try_from(*shard).ok().and_then(|shard| self.held.get_mut(&shard));
            if let Some(held) = held {
                (held.committed, held.position) = (*position, held.position.max(*position));
            }
        }
    }

    /// Commits the effects of the first `count` events together with the checkpoints.
    pub(super) async fn commit(&mut self, range: &Range, fetched: Fetched, count: usize) -> Result<(), ProjectorError> {
        let Fetched { events, reach, .. } = fetched;
        let done = events.get(..count).unwrap_or(&events);
        let reach = if count < events.len() { done.last().map_or(reach, |event| event.position) } else { reach };
        let idle_too = self.idle_committed.elapsed() >= IDLE_COMMIT_EVERY;
        let touched: BTreeSet<u32> = done.iter().map(|event| event.shard).collect();
        let rows = Rows::of(self.held.iter().filter_map(|(shard, held)| {
            let until = range.until.get(*shard as usize)?;
            let position = held.position.max(reach.min(*until));
            (touched.contains(shard) || (idle_too && position > held.committed)).then_some((*shard, *held, position))
        }));
        let written = match self.write(&rows).await {
            Ok(written) if written == rows.len() => self.store.client.batch_execute("commit").await.map(|()| true),
            Ok(_) => Ok(false),
            Err(error) => Err(error),
        };
        match written {
            Ok(true) => {}
            Ok(false) => {
                self.roll_back().await?;
                tracing::warn!(
                    events = done.len(),
                    "a checkpoint belongs to another worker or was moved: the batch is rolled back, reading the checkpoint table again"
                );
                return self.reload().await;
            }
            Err(error) => return self.commit_failed(done, error).await,
        }
        if idle_too {
            self.idle_committed = Instant::now();
        }
        self.committed(&rows);
        self.reached(range, reach);
        self.contention = 0;
        self.limit = (self.limit * 2).min(self.batch_size);
        Ok(())
    }

    /// A deferred constraint speaks only now, and does not say about which event: events are tried one by one until it is known.
    async fn commit_failed(&mut self, events: &[Event], error: Error) -> Result<(), ProjectorError> {
        if failure(&error) == Failure::Handler && events.len() > 1 {
            tracing::warn!(
                error = database_message(&error),
                "the commit of a batch failed: trying its events one by one"
            );
            self.limit = 1;
            return self.roll_back().await;
        }
        self.failed(events, Failed { index: 0, error }).await
    }

    pub(super) async fn failed(&mut self, events: &[Event], failed: Failed) -> Result<(), ProjectorError> {
        let Failed { index, error } = failed;
        let kind = failure(&error);
        if kind == Failure::Connection {
            return Err(ProjectorError::Statement { doing: "read store: running the handlers", source: error });
        }
        self.roll_back().await?;
        if kind == Failure::Contention && self.contention < MOST_CONTENTION {
            self.contention += 1;
            self.limit = (self.limit / 2).max(1);
            tracing::debug!(error = database_message(&error), "another transaction got in the way: trying again");
            sleep(SOON.mul_f64(f64::from(1_u32 << self.contention.min(8)) * rand::random_range(0.5..1.5))).await;
            return Ok(());
        }
        let Some(event) = events.get(index) else { return Ok(()) };
        let why = ProjectorError::EventFailed {
            event_type: event.event_type.clone(),
            position: event.position,
            message: database_message(&error),
        };
        self.hold(event.shard, event.position, &why).await
    }

    /// Lets the shard wait before this event, which is tried again after a pause, and says so: in the log, to the readiness probe, and in the
    /// checkpoint table, from where the operator reads it.
    pub(super) async fn hold(&mut self, shard: u32, position: i64, why: &ProjectorError) -> Result<(), ProjectorError> {
        let pause = self.stuck.fail(shard, position, Instant::now());
        let why = why.to_string();
        tracing::error!(shard, retry_in = ?pause, "{why}");
        if let Some(held) = self.held.get(&shard) {
            let recorded =
                self.tables.record_failure(&self.store.client, &self.me, (shard, *held), position, &why).await;
            recorded.map_err(ProjectorError::doing("read store: recording a failed event"))?;
        }
        self.health.unready(why);
        Ok(())
    }

    async fn roll_back(&self) -> Result<(), ProjectorError> {
        self.store.client.batch_execute("rollback").await.map_err(ProjectorError::doing("read store: rolling back"))
    }
}
