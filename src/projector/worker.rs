//! One worker at work: takes and gives back shards, reads what is there for those in hand, and commits effects with checkpoints.
//!
//! A shard whose handler fails waits just before the event that it failed on, while the other shards go on.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tokio_postgres::{Error, Statement, types::ToSql};

use super::{
    batch::{self, Failed, Pace},
    checkpoint::{Held, Rows, Tables},
    error::{Failure, ProjectorError, database_message, failure},
    events::{Fetch, Fetched, Range, Reader},
    health::Health,
    mapping::{Event, Handlers},
    members::{self, View},
    shares::{self, Change},
    stuck::StuckShards,
};
use crate::{lag::Position, postgres::Session};

/// Looks at a source that does not tell.
const POLL: Duration = Duration::from_millis(250);
/// Looks at a source that tells, in case that it forgets to.
const POLL_LISTENING: Duration = Duration::from_secs(1);
/// The first pause while a writer holds the safe head back; doubles up to [`POLL`].
const SOON: Duration = Duration::from_millis(2);
/// Checkpoints of shards that have nothing to do are written no more often.
const IDLE_COMMIT_EVERY: Duration = Duration::from_secs(1);
/// Contention this often in a row is taken for a failure of the handler.
const MOST_CONTENTION: u32 = 10;
const WARN_EVERY: Duration = Duration::from_secs(60);

/// What a step did.
enum Step {
    /// There may be more.
    Worked,
    /// Nothing to do for so long, unless something is told.
    Rest(Duration),
}

pub(super) struct Worker {
    pub(super) me: String,
    pub(super) tables: Tables,
    pub(super) store: Session,
    pub(super) reader: Reader,
    pub(super) handlers: Handlers,
    pub(super) health: Health,
    advance: Statement,
    shards: u32,
    batch_size: usize,
    limit: usize,
    held: BTreeMap<u32, Held>,
    stuck: StuckShards,
    safe: i64,
    /// Views of the others from before this moment do not show what this worker did.
    changed: Instant,
    idle_committed: Instant,
    contention: u32,
    pause: Duration,
    pace: Pace,
    warned: Option<Instant>,
}

impl Worker {
    #[allow(clippy::too_many_arguments)]
    pub(super) async fn new(
        me: String,
        tables: Tables,
        store: Session,
        reader: Reader,
        handlers: Handlers,
        health: Health,
        (shards, batch_size): (u32, u32),
    ) -> Result<Self, ProjectorError> {
        let advance = store.client.prepare(&tables.advance()).await.map_err(ProjectorError::doing(COMMITTING))?;
        let batch_size = batch_size as usize;
        let now = Instant::now();
        Ok(Self {
            me,
            tables,
            store,
            reader,
            handlers,
            health,
            advance,
            shards,
            batch_size,
            limit: batch_size,
            held: BTreeMap::new(),
            stuck: StuckShards::default(),
            safe: i64::MIN,
            changed: now,
            idle_committed: now,
            contention: 0,
            pause: SOON,
            pace: Pace::default(),
            warned: None,
        })
    }

    /// Works until told to stop, then gives everything back.
    pub(super) async fn run(
        &mut self,
        views: &mut watch::Receiver<View>,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<(), ProjectorError> {
        while !*stop.borrow() {
            let view = views.borrow_and_update().clone();
            self.rebalance(&view).await?;
            let step = self.step(views, stop).await?;
            self.report();
            let Step::Rest(pause) = step else { continue };
            tokio::select! {
                _ = stop.changed() => {}
                _ = views.changed() => {}
                () = self.reader.woken(), if !self.held.is_empty() => {}
                () = sleep(pause) => {}
            }
        }
        self.drain().await
    }

    async fn drain(&mut self) -> Result<(), ProjectorError> {
        let failed = ProjectorError::doing("read store: giving the shards back");
        let all: Vec<(u32, Held)> = std::mem::take(&mut self.held).into_iter().collect();
        self.tables.release(&self.store.client, &self.me, &all).await.map_err(&failed)?;
        members::leave(&self.store.client, &self.tables, &self.me).await.map_err(&failed)?;
        tracing::info!(shards = all.len(), "gave all shards back");
        Ok(())
    }

    fn report(&self) {
        if self.stuck.is_empty() && self.health.ready() {
            tracing::info!(shards = self.held.len(), "ready");
        }
    }

    /// Compares what this worker has with what it should have.
    fn change(&self, view: &View) -> Option<Change> {
        if view.since.is_none_or(|since| since < self.changed) || view.owners.len() != self.shards as usize {
            return None;
        }
        Some(shares::change(&self.me, &view.members, &view.owners)).filter(|change| !change.is_empty())
    }

    async fn rebalance(&mut self, view: &View) -> Result<(), ProjectorError> {
        let failed = ProjectorError::doing("read store: sharing the shards");
        let Some(since) = view.since.filter(|since| *since >= self.changed) else { return Ok(()) };
        let mine =
            (0_u32..).zip(&view.owners).filter(|(_, owner)| owner.as_ref() == Some(&self.me)).map(|(shard, _)| shard);
        if !mine.eq(self.held.keys().copied()) {
            tracing::warn!(since = ?since.elapsed(), "the checkpoint table says otherwise about whose shards these are: reading it anew");
            return self.reload().await;
        }
        let Some(change) = self.change(view) else { return Ok(()) };
        if !change.release.is_empty() {
            let back: Vec<(u32, Held)> =
                change.release.iter().filter_map(|shard| self.held.remove_entry(shard)).collect();
            self.settle_stuck();
            self.tables.release(&self.store.client, &self.me, &back).await.map_err(&failed)?;
        }
        if !change.take.is_empty() {
            let taken = self.tables.take(&self.store.client, &self.me, &change.take).await.map_err(&failed)?;
            self.held.extend(taken);
        }
        self.changed = Instant::now();
        tracing::info!(
            gave = change.release.len(),
            asked = change.take.len(),
            held = self.held.len(),
            workers = view.members.len(),
            "shared the shards"
        );
        Ok(())
    }

    /// Believes the table.
    async fn reload(&mut self) -> Result<(), ProjectorError> {
        let mine = self.tables.mine(&self.store.client, &self.me).await;
        self.held = mine.map_err(ProjectorError::doing("read store: reading the checkpoints"))?.into_iter().collect();
        self.settle_stuck();
        self.changed = Instant::now();
        Ok(())
    }

    async fn step(
        &mut self,
        views: &watch::Receiver<View>,
        stop: &watch::Receiver<bool>,
    ) -> Result<Step, ProjectorError> {
        let Some(highest) = self.held.values().map(|held| held.position).max() else {
            return Ok(Step::Rest(POLL_LISTENING));
        };
        let (mut range, mut retrying) = self.range();
        let mut blocked = false;
        if range.bounds().is_none() {
            blocked = self.look(highest).await?;
            (range, retrying) = self.range();
        }
        let limit = if retrying { 1 } else { self.limit };
        let fetched = match self.reader.fetch(&range, limit).await? {
            Fetch::Events(fetched) => fetched,
            Fetch::Nothing => {
                self.commit_idle().await?;
                return Ok(Step::Rest(self.rest(blocked)));
            }
            Fetch::WentBack => {
                // To be looked for anew before anything else is read.
                self.safe = i64::MIN;
                return Ok(Step::Rest(self.rest(false)));
            }
        };
        self.pause = SOON;
        if fetched.cut {
            // What is read beyond is thrown away: ask for less next time.
            self.limit = fetched.events.len().max(1);
        }
        if fetched.events.is_empty() {
            self.reached(&range, fetched.reach);
            self.commit_idle().await?;
            return Ok(Step::Worked);
        }
        let hurry = || {
            let releases = self.change(&views.borrow()).is_some_and(|change| !change.release.is_empty());
            releases || *stop.borrow()
        };
        let mut pace = self.pace;
        let ran = batch::run(&self.store.client, &self.handlers, &fetched.events, &mut pace, hurry).await;
        self.pace = pace;
        match ran {
            Ok(count) => self.commit(&range, fetched, count).await?,
            Err(failed) => self.failed(&fetched.events, failed).await?,
        }
        Ok(Step::Worked)
    }

    /// What to read next, and whether that is the one event of a stuck shard whose time to be tried again has come. Otherwise all up to the
    /// safe head, and of stuck shards what comes before the failed event.
    fn range(&self) -> (Range, bool) {
        let mut range = Range::nothing(self.shards);
        if let Some((shard, position)) = self.stuck.due(Instant::now(), |shard| self.position(shard)) {
            range.add(shard, position - 1, position);
            return (range, true);
        }
        for (shard, held) in &self.held {
            let until = self.stuck.last_before(*shard).map_or(self.safe, |last| self.safe.min(last));
            range.add(*shard, held.position, until);
        }
        (range, false)
    }

    /// Looks for the safe head; returns whether a writer holds it back.
    async fn look(&mut self, highest: i64) -> Result<bool, ProjectorError> {
        let seen = self.reader.look(Position(highest)).await?;
        if seen.head.0 < highest && self.may_warn() {
            tracing::warn!(
                checkpoint = highest,
                head = seen.head.0,
                "the checkpoint is beyond the source's head: was the source restored or replaced? Nothing is read until its head passes the checkpoint, and what comes before is skipped"
            );
        }
        self.safe = seen.safe.map_or(i64::MIN, |safe| safe.0);
        let blocked = seen.safe.is_none_or(|safe| safe < seen.head);
        if let Some(writer) =
            seen.blocked_by.filter(|writer| blocked && writer.open_for.is_some_and(|open| open > WARN_EVERY))
            && self.may_warn()
        {
            tracing::warn!(
                pid = writer.pid,
                open_seconds = writer.open_for.unwrap_or_default().as_secs(),
                safe = self.safe,
                head = seen.head.0,
                "a transaction that may still append holds the safe head back; see pg_stat_activity"
            );
        }
        Ok(blocked)
    }

    fn may_warn(&mut self) -> bool {
        let may = self.warned.is_none_or(|warned| warned.elapsed() >= WARN_EVERY);
        if may {
            self.warned = Some(Instant::now());
        }
        may
    }

    fn rest(&mut self, blocked: bool) -> Duration {
        let usual = if self.reader.listens() { POLL_LISTENING } else { POLL }.mul_f64(rand::random_range(0.8..1.2));
        let mut pause = usual;
        if blocked {
            pause = self.pause;
            self.pause = (self.pause * 2).min(POLL);
        }
        if self.held.values().any(|held| held.position > held.committed) {
            pause = pause.min(IDLE_COMMIT_EVERY.saturating_sub(self.idle_committed.elapsed()).max(SOON));
        }
        let retry = self.stuck.next_retry().map(|at| at.saturating_duration_since(Instant::now()));
        retry.map_or(pause, |retry| pause.min(retry.max(SOON)))
    }

    fn position(&self, shard: u32) -> Option<i64> {
        self.held.get(&shard).map(|held| held.position)
    }

    fn settle_stuck(&mut self) {
        let held = &self.held;
        for (shard, position) in self.stuck.settle(|shard| held.get(&shard).map(|held| held.position)) {
            tracing::info!(shard, position, "an event that had failed was handled");
        }
    }

    /// Every shard that was read is done up to `reach`.
    fn reached(&mut self, range: &Range, reach: i64) {
        for (shard, held) in &mut self.held {
            if let Some(until) = range.until.get(*shard as usize) {
                held.position = held.position.max(reach.min(*until));
            }
        }
        self.settle_stuck();
    }

    /// Writes the checkpoints of shards that had nothing to do, if that is due.
    async fn commit_idle(&mut self) -> Result<(), ProjectorError> {
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
        tracing::warn!("a checkpoint is no longer this worker's, or somebody moved it: reading the table anew");
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
    async fn commit(&mut self, range: &Range, fetched: Fetched, count: usize) -> Result<(), ProjectorError> {
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
                    "a checkpoint is no longer this worker's, or somebody moved it: rolled the batch back and read the table anew"
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

    async fn failed(&mut self, events: &[Event], failed: Failed) -> Result<(), ProjectorError> {
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
        let pause = self.stuck.fail(event.shard, event.position, Instant::now());
        let why = ProjectorError::EventFailed {
            event_type: event.event_type.clone(),
            position: event.position,
            message: database_message(&error),
        };
        tracing::error!(shard = event.shard, retry_in = ?pause, "{why}");
        self.health.unready(why.to_string());
        Ok(())
    }

    async fn roll_back(&self) -> Result<(), ProjectorError> {
        self.store.client.batch_execute("rollback").await.map_err(ProjectorError::doing("read store: rolling back"))
    }
}

const COMMITTING: &str = "read store: committing a checkpoint";
