//! One worker: takes and gives back shards, reads the events of those that it holds, and commits effects with checkpoints.
//!
//! A shard whose handler fails waits just before the event that it failed on, while the other shards go on.

mod committing;

use std::{collections::BTreeMap, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tokio_postgres::Statement;

use self::committing::COMMITTING;

use super::{
    batch::{self, HandlerTime},
    checkpoint::{Held, Tables},
    error::ProjectorError,
    events::{Fetch, Range, Reader, Unreadable},
    health::Health,
    mapping::Handlers,
    members::{self, View},
    shares::{self, Change},
    stuck::StuckShards,
};
use crate::{clients::postgres::Session, lag::Position};

/// How often to look at a source that does not notify of new events.
const POLL: Duration = Duration::from_millis(250);
/// How often to look at a source that notifies, in case that a notification is lost.
const POLL_LISTENING: Duration = Duration::from_secs(1);
/// The first pause while a writer holds the safe head back; doubles up to [`POLL`].
const SOON: Duration = Duration::from_millis(2);
/// Checkpoints of shards that have nothing to do are written no more often.
const IDLE_COMMIT_EVERY: Duration = Duration::from_secs(1);
const WARN_EVERY: Duration = Duration::from_secs(60);

/// What a step did.
enum Step {
    /// There may be more.
    Worked,
    /// Nothing to do for this long, unless a notification comes.
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
    handler_time: HandlerTime,
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
            handler_time: HandlerTime::default(),
            warned: None,
        })
    }

    /// Works until it is asked to stop, then gives everything back.
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
            tracing::warn!(since = ?since.elapsed(), "the checkpoint table names other owners of shards: reading it again");
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
            Fetch::Unreadable(Unreadable { position, shard, why }) => {
                self.hold(shard, position, &ProjectorError::Unreadable { position, message: why }).await?;
                return Ok(Step::Worked);
            }
            Fetch::WentBack => {
                // It is determined again before anything else is read.
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
        let mut handler_time = self.handler_time;
        let ran = batch::run(&self.store.client, &self.handlers, &fetched.events, &mut handler_time, hurry).await;
        self.handler_time = handler_time;
        match ran {
            Ok(count) => self.commit(&range, fetched, count).await?,
            Err(failed) => self.failed(&fetched.events, failed).await?,
        }
        Ok(Step::Worked)
    }

    /// What to read next, and whether that is the one event of a stuck shard that is due to be tried again. Otherwise all events up to the safe head,
    /// and of stuck shards those before the failed event.
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
}
