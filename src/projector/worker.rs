//! One worker: takes and gives back shards, reads the events of those that it holds, and commits effects with checkpoints.
//!
//! A shard whose handler fails waits just before the event that it failed on, while the other shards go on.

mod committing;
mod setting_aside;

use std::{collections::BTreeMap, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{
    batch_size::BatchSize,
    coalesce::Coalesce,
    error::ProjectorError,
    health::Health,
    input::{EventReader, Fetch, Horizon, Range},
    output::{Held, ReadModel, View},
    poison::Poison,
    shares::{self, Change},
    stuck::StuckShards,
    uncalled::UncalledHandlers,
};

/// How often to look at a source that does not notify of new events.
const POLL: Duration = Duration::from_millis(250);
/// How often to look at a source that notifies, in case that a notification is lost.
const POLL_LISTENING: Duration = Duration::from_secs(1);
/// The first pause while a writer holds the safe head back; doubles up to [`POLL`].
const SOON: Duration = Duration::from_millis(2);
/// Checkpoints of shards that have nothing to do are written no more often than this for each of them, so that they cost the read store little; and within
/// these bounds, so that those who wait for a position of the read model learn soon that it has it.
const IDLE_COMMIT_OF_ONE: Duration = Duration::from_millis(4);
const SHORTEST_IDLE_COMMIT: Duration = Duration::from_millis(50);
const LONGEST_IDLE_COMMIT: Duration = Duration::from_secs(1);
const WARN_EVERY: Duration = Duration::from_secs(60);

/// What a step did.
enum Step {
    /// There may be more.
    Worked,
    /// Nothing to do for this long, unless a notification comes.
    Rest(Duration),
    /// The source has more parts than have a shard.
    Grown,
}

/// Why a worker has given everything back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Ended {
    /// It was asked to stop.
    Stopped,
    /// The source has more parts than have a shard: the next run begins with them.
    Grown,
}

pub(super) struct Worker<R, M> {
    reader: R,
    model: M,
    health: Health,
    sharing: Sharing,
    coalesce: Coalesce,
    poison: Poison,
    uncalled: UncalledHandlers,
    size: BatchSize,
    held: BTreeMap<u32, Held>,
    stuck: StuckShards,
    /// For each shard the highest position that may be read up to; empty while that is not known.
    safe: Vec<i64>,
    /// For each shard the last position that may be handled for now.
    holds: Vec<Option<i64>>,
    /// When it was last looked how far may be read.
    looked: Instant,
    idle_committed: Instant,
    pause: Duration,
    /// How long to wait before the checkpoints are read again for want of success; doubles up to [`POLL`].
    pause_again: Duration,
    warned: Option<Instant>,
}

/// How events are divided and gathered, and what becomes of those that fail every time.
pub(super) struct Batching {
    pub(super) shards: u32,
    /// How many events one transaction handles at most.
    pub(super) batch_size: u32,
    pub(super) coalesce: Coalesce,
    pub(super) poison: Poison,
    pub(super) uncalled: UncalledHandlers,
}

/// What decides which shards a worker should have.
struct Sharing {
    me: String,
    shards: u32,
    /// Views of the others from before this moment do not show what this worker did.
    changed: Instant,
}

impl Sharing {
    /// Compares what this worker has with what it should have.
    fn change(&self, view: &View) -> Option<Change> {
        if view.since.is_none_or(|since| since < self.changed) || view.owners.len() != self.shards as usize {
            return None;
        }
        Some(shares::change(&self.me, &view.members, &view.owners)).filter(|change| !change.is_empty())
    }
}

impl<R: EventReader, M: ReadModel> Worker<R, M> {
    /// A worker with the name `me`, which holds no shard yet.
    pub(super) fn new(
        me: String,
        reader: R,
        model: M,
        health: Health,
        Batching { shards, batch_size, coalesce, poison, uncalled }: Batching,
    ) -> Self {
        let now = Instant::now();
        Self {
            reader,
            model,
            health,
            sharing: Sharing { me, shards, changed: now },
            coalesce,
            poison,
            uncalled,
            size: BatchSize::new(batch_size),
            held: BTreeMap::new(),
            stuck: StuckShards::default(),
            safe: Vec::new(),
            holds: Vec::new(),
            looked: now,
            idle_committed: now,
            pause: SOON,
            pause_again: SOON,
            warned: None,
        }
    }

    /// Works until it is asked to stop or the source has grown, then gives everything back.
    pub(super) async fn run(
        &mut self,
        views: &mut watch::Receiver<View>,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<Ended, ProjectorError> {
        while !*stop.borrow() {
            let view = views.borrow_and_update().clone();
            self.holds.clone_from(&view.holds);
            self.rebalance(&view).await?;
            let step = self.step(views, stop).await?;
            self.report();
            let pause = match step {
                Step::Worked => continue,
                Step::Rest(pause) => pause,
                Step::Grown => {
                    self.drain().await?;
                    return Ok(Ended::Grown);
                }
            };
            tokio::select! {
                _ = stop.changed() => {}
                _ = views.changed() => {}
                () = self.reader.woken(), if !self.held.is_empty() => {}
                () = sleep(pause) => {}
            }
        }
        self.drain().await?;
        Ok(Ended::Stopped)
    }

    async fn drain(&mut self) -> Result<(), ProjectorError> {
        let all: Vec<(u32, Held)> = std::mem::take(&mut self.held).into_iter().collect();
        self.model.release(&all).await?;
        all.iter().for_each(|(shard, held)| self.reader.committed(*shard, held.position));
        self.model.leave().await?;
        self.reader.finish().await;
        tracing::info!(shards = all.len(), "gave all shards back");
        Ok(())
    }

    fn report(&self) {
        if self.stuck.is_empty() && self.health.ready() {
            tracing::info!(shards = self.held.len(), "ready");
        }
    }

    async fn rebalance(&mut self, view: &View) -> Result<(), ProjectorError> {
        let Some(since) = view.since.filter(|since| *since >= self.sharing.changed) else { return Ok(()) };
        let mine = (0_u32..)
            .zip(&view.owners)
            .filter(|(_, owner)| owner.as_ref() == Some(&self.sharing.me))
            .map(|(shard, _)| shard);
        if !mine.eq(self.held.keys().copied()) {
            tracing::warn!(since = ?since.elapsed(), "the read store names other owners of shards: reading the checkpoints again");
            return self.reload().await;
        }
        let Some(change) = self.sharing.change(view) else { return Ok(()) };
        if !change.release.is_empty() {
            let back: Vec<(u32, Held)> =
                change.release.iter().filter_map(|shard| self.held.remove_entry(shard)).collect();
            self.settle_stuck();
            self.model.release(&back).await?;
            back.iter().for_each(|(shard, _)| self.reader.released(*shard));
        }
        if !change.take.is_empty() {
            let taken = self.model.take(&change.take).await?;
            taken.iter().for_each(|(shard, held)| self.reader.committed(*shard, held.committed));
            self.held.extend(taken);
        }
        self.sharing.changed = Instant::now();
        tracing::info!(
            gave = change.release.len(),
            asked = change.take.len(),
            held = self.held.len(),
            workers = view.members.len(),
            "shared the shards"
        );
        Ok(())
    }

    /// Takes over what the read store says.
    async fn reload(&mut self) -> Result<(), ProjectorError> {
        self.held = self.model.mine().await?.into_iter().collect();
        self.settle_stuck();
        self.sharing.changed = Instant::now();
        Ok(())
    }

    async fn step(
        &mut self,
        views: &watch::Receiver<View>,
        stop: &watch::Receiver<bool>,
    ) -> Result<Step, ProjectorError> {
        if self.held.is_empty() {
            return Ok(Step::Rest(POLL_LISTENING));
        }
        // Between other events: those go on while many are handled again.
        let replayed = self.replay().await?;
        let step = self.read(views, stop).await?;
        Ok(match step {
            Step::Rest(_) if replayed => Step::Worked,
            step => step,
        })
    }

    async fn read(
        &mut self,
        views: &watch::Receiver<View>,
        stop: &watch::Receiver<bool>,
    ) -> Result<Step, ProjectorError> {
        if self.uncalled.is_outdated() {
            self.tell_uncalled().await;
        }
        let (mut range, mut retrying) = self.range();
        let mut blocked = false;
        if range.is_empty() || (!retrying && self.must_look()) {
            blocked = match self.look().await? {
                Some(blocked) => blocked,
                None => return Ok(Step::Grown),
            };
            (range, retrying) = self.range();
        }
        let limit = if retrying { 1 } else { self.size.now() };
        let mut fetched = match self.reader.fetch(&range, limit).await? {
            Fetch::Events(fetched) => fetched,
            Fetch::Nothing => {
                if self.stuck.is_empty() {
                    self.tell_uncalled().await;
                }
                self.commit_idle().await?;
                return Ok(Step::Rest(self.rest(blocked)));
            }
            Fetch::Unreadable(unreadable) => {
                self.unreadable(unreadable, retrying).await?;
                return Ok(Step::Worked);
            }
            Fetch::WentBack => {
                // It is determined again before anything else is read.
                self.safe.clear();
                return Ok(Step::Rest(self.rest(false)));
            }
        };
        self.pause = SOON;
        if fetched.cut {
            // What is read beyond is thrown away: ask for less next time.
            self.size.take_at_most(fetched.events.len());
        }
        if fetched.events.is_empty() {
            self.reached(&range, &fetched.reach);
            self.commit_idle().await?;
            return Ok(Step::Worked);
        }
        self.uncalled.came(&fetched.events);
        self.coalesce.leave_out_superseded(&mut fetched.events);
        for event in &mut fetched.events {
            if self.model.follows_parked(event) {
                event.behind_parked = Some(self.reader.place(event.shard, event.position));
            }
        }
        self.apply(&range, &fetched, views, stop).await
    }

    /// What to read next, and whether that is the one event of a stuck shard that is due to be tried again. Otherwise all events up to the safe head,
    /// and of stuck shards those before the failed event.
    fn range(&self) -> (Range, bool) {
        let mut range = Range::nothing(self.sharing.shards);
        let held_at = |shard: u32| self.holds.get(shard as usize).copied().flatten().unwrap_or(i64::MAX);
        let due = self.stuck.due(Instant::now(), |shard| self.position(shard));
        if let Some((shard, position)) = due.filter(|(shard, position)| *position <= held_at(*shard)) {
            range.add(shard, position - 1, position);
            return (range, true);
        }
        for (shard, held) in &self.held {
            let safe = self.safe.get(*shard as usize).copied().unwrap_or(i64::MIN);
            let until = self.stuck.last_before(*shard).map_or(safe, |last| safe.min(last));
            range.add(*shard, held.position, until.min(held_at(*shard)));
        }
        (range, false)
    }

    /// Whether to look although there is something to read: where each shard has a log of its own, one that has caught up or was just taken must not wait
    /// until all others have caught up.
    fn must_look(&self) -> bool {
        if !self.reader.has_parts() {
            return false;
        }
        let safe = |shard: &u32| self.safe.get(*shard as usize).copied().unwrap_or(i64::MIN);
        let rests = self.held.iter().any(|(shard, held)| held.position >= safe(shard));
        self.looked.elapsed() >= if rests { POLL } else { POLL_LISTENING }
    }

    /// Looks how far may be read; returns whether a writer holds that back, and nothing where the source has grown.
    async fn look(&mut self) -> Result<Option<bool>, ProjectorError> {
        let reached: Vec<(u32, i64)> = self.held.iter().map(|(shard, held)| (*shard, held.position)).collect();
        let Horizon { safe, head, blocked_by, grown } = self.reader.look(&reached).await?;
        self.looked = Instant::now();
        if grown {
            return Ok(None);
        }
        let of = |positions: &[i64], shard: u32| positions.get(shard as usize).copied().unwrap_or(i64::MIN);
        let beyond = reached.iter().copied().find(|(shard, position)| of(&head, *shard) < *position);
        if let Some((shard, checkpoint)) = beyond
            && self.may_warn()
        {
            tracing::warn!(
                shard,
                checkpoint,
                head = of(&head, shard),
                "the checkpoint is beyond the source's head: was the source restored or replaced? Nothing is read until its head passes the checkpoint, and what comes before is skipped"
            );
        }
        let held_back = reached.iter().copied().find(|(shard, _)| of(&safe, *shard) < of(&head, *shard));
        if let Some((shard, _)) = held_back
            && let Some(writer) = blocked_by.filter(|writer| writer.open_for.is_some_and(|open| open > WARN_EVERY))
            && self.may_warn()
        {
            tracing::warn!(
                pid = writer.pid,
                open_seconds = writer.open_for.unwrap_or_default().as_secs(),
                safe = of(&safe, shard),
                head = of(&head, shard),
                "a transaction that may still append holds the safe head back; see pg_stat_activity"
            );
        }
        self.safe = safe;
        Ok(Some(held_back.is_some()))
    }

    /// Tells of handlers that were never called: in the log, and in the read store, from where the operator reads it.
    async fn tell_uncalled(&mut self) {
        self.uncalled.log_when_caught_up();
        let fences = self.held.iter().map(|(shard, held)| (*shard, held.fence)).collect();
        let Some((types, shards)) = self.uncalled.unnoted(&fences) else { return };
        let shards: Vec<(u32, Held)> =
            self.held.iter().filter(|(shard, _)| shards.contains(shard)).map(|(shard, held)| (*shard, *held)).collect();
        // Where the store itself has failed, the next request says so.
        if let Err(error) = self.model.note_uncalled(&shards, &types).await {
            tracing::warn!("the operator is not told of handlers that were never called: {error}");
        }
    }

    fn may_warn(&mut self) -> bool {
        let may = self.warned.is_none_or(|warned| warned.elapsed() >= WARN_EVERY);
        if may {
            self.warned = Some(Instant::now());
        }
        may
    }

    fn rest(&mut self, blocked: bool) -> Duration {
        let usual = if self.reader.notifies() { POLL_LISTENING } else { POLL }.mul_f64(rand::random_range(0.8..1.2));
        let mut pause = usual;
        if blocked {
            pause = self.pause;
            self.pause = (self.pause * 2).min(POLL);
        }
        if self.held.values().any(|held| held.position > held.committed) {
            pause =
                pause.min(idle_commit_every(self.held.len()).saturating_sub(self.idle_committed.elapsed()).max(SOON));
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

    /// Every shard that was read is done as far as `reach` says.
    fn reached(&mut self, range: &Range, reach: &[i64]) {
        for (shard, held) in &mut self.held {
            held.position = new_position(*shard, *held, range, reach).unwrap_or(held.position);
        }
        self.settle_stuck();
    }
}

/// How often a worker that holds so many shards writes the checkpoints of those that have nothing to do.
fn idle_commit_every(held: usize) -> Duration {
    let all = IDLE_COMMIT_OF_ONE * u32::try_from(held).unwrap_or(u32::MAX).min(1_024);
    all.clamp(SHORTEST_IDLE_COMMIT, LONGEST_IDLE_COMMIT)
}

/// Where a shard stands after the events of `range` up to `reach`.
fn new_position(shard: u32, held: Held, range: &Range, reach: &[i64]) -> Option<i64> {
    let (until, reach) = (range.until.get(shard as usize)?, reach.get(shard as usize)?);
    Some(held.position.max(*reach.min(until)))
}

#[cfg(test)]
mod tests;
