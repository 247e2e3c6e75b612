//! How a batch ends: its effects and checkpoints are committed together, or not at all.

use std::collections::BTreeSet;

use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{
    super::{
        batch_size::NotCommitted,
        error::ProjectorError,
        input::{EventReader, Fetched, Range},
        output::{Advance, Again, Applied, ApplyError, ReadModel, View},
    },
    POLL, SOON, Step, Worker, idle_commit_every, new_position,
};

impl<R: EventReader, M: ReadModel> Worker<R, M> {
    /// Writes the checkpoints of shards that had nothing to do, if that is due.
    pub(super) async fn commit_idle(&mut self) -> Result<(), ProjectorError> {
        if self.idle_committed.elapsed() < idle_commit_every(self.held.len()) {
            return Ok(());
        }
        let moved = self.held.iter().filter(|(_, held)| held.position > held.committed);
        let advances: Vec<Advance> = moved.map(|(shard, held)| Advance::to(held.position, *shard, *held)).collect();
        if advances.is_empty() {
            return Ok(());
        }
        self.idle_committed = Instant::now();
        if self.model.advance(&advances).await? {
            self.committed(&advances);
            return Ok(());
        }
        tracing::warn!("a checkpoint belongs to another worker or was moved: reading the checkpoints again");
        self.reload().await
    }

    pub(super) fn committed(&mut self, advances: &[Advance]) {
        for Advance { shard, position, .. } in advances {
            if let Some(held) = self.held.get_mut(shard) {
                (held.committed, held.position) = (*position, held.position.max(*position));
                self.reader.committed(*shard, *position);
            }
        }
    }

    /// Runs the handlers of what was read, and commits their effects together with the checkpoints.
    pub(super) async fn apply(
        &mut self,
        range: &Range,
        fetched: &Fetched,
        views: &watch::Receiver<View>,
        stop: &watch::Receiver<bool>,
    ) -> Result<Step, ProjectorError> {
        let idle_too = self.idle_committed.elapsed() >= idle_commit_every(self.held.len());
        let (held, sharing) = (&self.held, &self.sharing);
        let advances = |count: usize| {
            let reach = fetched.reach_of(count);
            let touched: BTreeSet<u32> = fetched.events.iter().take(count).map(|event| event.shard).collect();
            let moved = held.iter().filter_map(|(shard, held)| {
                let position = new_position(*shard, *held, range, &reach)?;
                let write = touched.contains(shard) || (idle_too && position > held.committed);
                write.then_some(Advance::to(position, *shard, *held))
            });
            moved.collect::<Vec<_>>()
        };
        let hurry = || {
            let releases = sharing.change(&views.borrow()).is_some_and(|change| !change.release.is_empty());
            releases || *stop.borrow()
        };
        match self.model.apply(&fetched.events, &advances, &hurry).await {
            Ok(Applied::Committed(count)) => {
                let advances = advances(count);
                if idle_too {
                    self.idle_committed = Instant::now();
                }
                self.committed(&advances);
                self.reached(range, &fetched.reach_of(count));
                self.size.committed();
                self.uncalled.handled(count);
                self.pause_again = SOON;
                Ok(Step::Worked)
            }
            Ok(Applied::ReadAgain(Again::LaterFailed)) => {
                self.pause_again = SOON;
                self.reload().await?;
                Ok(Step::Worked)
            }
            Ok(Applied::ReadAgain(Again::Lost)) => {
                tracing::warn!(
                    events = fetched.events.len(),
                    "a checkpoint of the batch is not where it was, or belongs to another worker: reading the checkpoints again"
                );
                self.reload().await?;
                // Where that changes nothing it would be read again at once, for ever.
                let pause = self.pause_again;
                self.pause_again = (pause * 2).min(POLL);
                Ok(Step::Rest(pause))
            }
            Ok(Applied::ReadAgain(Again::NoneParked)) => {
                self.pause_again = SOON;
                self.reload().await?;
                Ok(Step::Worked)
            }
            Err(error) => self.failed(fetched, error).await.map(|()| Step::Worked),
        }
    }

    async fn failed(&mut self, fetched: &Fetched, error: ApplyError) -> Result<(), ProjectorError> {
        let (index, message, fault) = match self.size.not_committed(error, rand::random())? {
            NotCommitted::Again => return Ok(()),
            NotCommitted::AgainAfter(pause) => {
                sleep(pause).await;
                return Ok(());
            }
            NotCommitted::Event { index, message, fault } => (index, message, fault),
        };
        let Some(event) = fetched.events.get(index) else { return Ok(()) };
        // What it stands for besides itself would be passed over with it.
        let is_alone = fetched.events.len() == 1 && event.since == event.position;
        self.event_failed(event, is_alone, message, fault).await
    }

    /// Lets the shard wait before this event, which is tried again after a pause, and says so: in the log, to the readiness probe, and in the
    /// read store, from where the operator reads it.
    pub(super) async fn hold(
        &mut self,
        (shard, position): (u32, i64),
        counts: bool,
        why: &ProjectorError,
    ) -> Result<(), ProjectorError> {
        let before = self.reader.before(position);
        let pause = self.stuck.fail(shard, (before, position), counts, Instant::now());
        let why = why.to_string();
        tracing::error!(shard, retry_in = ?pause, "{why}");
        if let Some(held) = self.held.get(&shard).copied() {
            self.model.record_failure((shard, held), position, &why).await?;
        }
        self.health.unready(why);
        Ok(())
    }
}
