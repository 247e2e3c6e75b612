//! A read model in Elasticsearch or OpenSearch: the documents of each event, with its position as their version.
//!
//! There are no transactions, so effects come first and the checkpoint after them. What is repeated after a failure changes nothing, since each write is
//! refused that does not come with a later version than the document has.

mod claims;
mod documents;
mod dry_run;
mod fold;
mod handlers;
mod inbox;
mod json_merge;
mod kept;
mod lease;
mod members;
mod noted;
mod operations;
mod patience;
mod refusals;
mod requests;
mod scratch;
mod state;

use std::collections::BTreeMap;

use tokio::time::Instant;

pub use self::operations::DocumentError;
pub(in crate::projector) use self::{claims::claim, dry_run::SearchDryRun, handlers::Documents, inbox::SearchInbox};
use self::{
    documents::{Portion, ReadModelWriter},
    kept::{Failure, Kept, Shard, json},
    lease::Lease,
    members::SearchMembership,
    requests::Condition,
    state::State,
};
use super::{
    super::{
        config::ProjectorConfig, error::ProjectorError, event::Event, input::EventReader, sharding::Sharding, uncalled,
    },
    Advance, Again, Applied, ApplyError, Held, Numbered, ReadModel,
};
use crate::clients::elasticsearch::ConnectionSettings;

/// So many letters of why an event failed are recorded.
const LONGEST_FAILURE: usize = 900;
const SHARING: &str = "read store: sharing the shards";

/// A connection to the read store.
pub(in crate::projector) struct SearchReadModel {
    me: String,
    state: State,
    writer: ReadModelWriter,
    shards: u32,
    /// The shards of this worker, as it last wrote or read them.
    kept: BTreeMap<u32, Kept<Shard>>,
    lease: Lease,
    /// How often the lease had lapsed when `kept` was read.
    lapses: u64,
}

impl SearchReadModel {
    /// Connects, and makes the checkpoints where there are none. `me` is this worker's name among the owners.
    pub(in crate::projector) async fn open(
        settings: &ConnectionSettings,
        config: &ProjectorConfig,
        documents: Documents,
        sharding: &Sharding,
        me: &str,
    ) -> Result<(Self, Numbered), ProjectorError> {
        let mut state = State::new(settings, documents.state_index(), &config.projection);
        let numbered = state.create(sharding).await?;
        let model = Self {
            me: me.to_owned(),
            state,
            writer: ReadModelWriter::new(documents, config.max_event_bytes),
            shards: numbered.shards,
            kept: BTreeMap::new(),
            lease: Lease::default(),
            lapses: 0,
        };
        Ok((model, numbered))
    }

    /// Whether this worker may write: the others take it for alive, and have done so since it read its shards.
    fn may_write(&self) -> bool {
        self.lease.holds(Instant::now()) && self.lease.lapses() == self.lapses
    }

    /// Writes shards as `change` makes them of what they were; returns those that were still as this worker knew them.
    async fn write(
        &mut self,
        doing: &'static str,
        changed: Vec<(u32, Shard)>,
    ) -> Result<Vec<(u32, bool)>, ProjectorError> {
        let mut documents = Vec::new();
        let mut asked = Vec::new();
        for (number, shard) in changed {
            let Some(kept) = self.kept.get(&number) else { continue };
            documents.push((self.state.shard_id(number), Condition::Unchanged(kept.cas), json(&shard)));
            asked.push((number, shard));
        }
        let written = self.state.write(doing, &documents).await?;
        let mut all = Vec::new();
        for ((number, value), cas) in asked.into_iter().zip(written) {
            all.push((number, cas.is_some()));
            match cas {
                Some(cas) => drop(self.kept.insert(number, Kept { cas, value })),
                None => drop(self.kept.remove(&number)),
            }
        }
        Ok(all)
    }

    /// Moves checkpoints; returns whether all of them were still this worker's and where it knew them.
    async fn commit(&mut self, advances: &[Advance]) -> Result<bool, ProjectorError> {
        let mut changed = Vec::new();
        for Advance { shard, fence, before, position } in advances {
            match self.kept.get(shard) {
                Some(Kept { value, .. }) if value.fence == *fence && value.position == *before => {
                    changed.push((*shard, value.moved(*position)));
                }
                _ => return Ok(false),
            }
        }
        let written = self.write("read store: writing the checkpoints", changed).await?;
        Ok(written.iter().all(|(_, is_written)| *is_written))
    }

    fn held(&self, shard: u32) -> Option<(u32, Held)> {
        let Kept { value: Shard { position, fence, .. }, .. } = self.kept.get(&shard)?;
        Some((shard, Held { fence: *fence, committed: *position, position: *position }))
    }
}

impl ReadModel for SearchReadModel {
    type Membership = SearchMembership;

    async fn join(&self, name: &str) -> Result<SearchMembership, ProjectorError> {
        SearchMembership::join(self.state.another(), (&self.me, name), self.shards, self.lease.clone()).await
    }

    async fn of_source<R: EventReader>(&mut self, source: &mut R) -> Result<(), ProjectorError> {
        self.state.of_source(&source.identity().await?).await
    }

    async fn take(&mut self, shards: &[u32]) -> Result<Vec<(u32, Held)>, ProjectorError> {
        let (workers, found) = self.state.look(SHARING, shards).await?;
        let mut changed = Vec::new();
        for (number, shard) in found {
            if self.lease.is_free(shard.value.owner.as_deref(), &workers.value.workers) {
                let owner = Some(self.me.clone());
                changed.push((number, Shard { owner, fence: shard.value.fence + 1, ..shard.value.clone() }));
                self.kept.insert(number, shard);
            }
        }
        let taken = self.write(SHARING, changed).await?;
        Ok(taken.into_iter().filter(|(_, is_taken)| *is_taken).filter_map(|(shard, _)| self.held(shard)).collect())
    }

    async fn mine(&mut self) -> Result<Vec<(u32, Held)>, ProjectorError> {
        self.lapses = self.lease.lapses();
        let all: Vec<u32> = (0..self.shards).collect();
        let (_, found) = self.state.look("read store: reading the checkpoints", &all).await?;
        self.kept = found.into_iter().filter(|(_, shard)| shard.value.owner.as_ref() == Some(&self.me)).collect();
        Ok(self.kept.keys().filter_map(|shard| self.held(*shard)).collect())
    }

    async fn release(&mut self, shards: &[(u32, Held)]) -> Result<(), ProjectorError> {
        let mut changed = Vec::new();
        for (number, Held { fence, committed, position }) in shards {
            if let Some(Kept { value, .. }) = self.kept.get(number).filter(|kept| kept.value.fence == *fence) {
                let reached = if value.position == *committed { *position } else { value.position };
                changed.push((*number, Shard { owner: None, ..value.moved(reached) }));
            }
        }
        self.write("read store: giving shards back", changed).await?;
        for (number, _) in shards {
            self.kept.remove(number);
        }
        Ok(())
    }

    async fn leave(&mut self) -> Result<(), ProjectorError> {
        members::leave(&mut self.state, &self.me).await
    }

    async fn apply(
        &mut self,
        events: &[Event],
        advances: &(dyn Fn(usize) -> Vec<Advance> + Sync),
        hurry: &(dyn Fn() -> bool + Sync),
    ) -> Result<Applied, ApplyError> {
        let (mut done, mut reached) = (0, BTreeMap::new());
        while done < events.len() {
            if !self.may_write() {
                return Ok(Applied::ReadAgain(Again::Lost));
            }
            let (lease, lapses) = (self.lease.clone(), self.lapses);
            let may_write = || lease.holds(Instant::now()) && lease.lapses() == lapses;
            let left = events.get(done..).unwrap_or_default();
            let written = match self.writer.write(&mut self.state, left, &may_write).await {
                Ok(Portion::Written(count)) => count,
                Ok(Portion::Lost) => return Ok(Applied::ReadAgain(Again::Lost)),
                Err(ApplyError::Event { .. }) if done > 0 => return Ok(Applied::Committed(done)),
                Err(error) => return Err(error),
            };
            done += written;
            let mut steps = advances(done);
            Advance::continue_from(&mut reached, &mut steps);
            if !self.commit(&steps).await.map_err(ApplyError::Store)? {
                return Ok(Applied::ReadAgain(Again::Lost));
            }
            if hurry() {
                break;
            }
        }
        Ok(Applied::Committed(done))
    }

    async fn advance(&mut self, advances: &[Advance]) -> Result<bool, ProjectorError> {
        self.commit(advances).await
    }

    async fn record_failure(
        &mut self,
        (shard, held): (u32, Held),
        position: i64,
        why: &str,
    ) -> Result<(), ProjectorError> {
        let why = why.chars().take(LONGEST_FAILURE).collect();
        let Some(Kept { value, .. }) = self.kept.get(&shard).filter(|kept| kept.value.fence == held.fence) else {
            return Ok(());
        };
        let failure = Some(Failure { position, why });
        if value.failure == failure {
            return Ok(());
        }
        let changed = Shard { failure, ..value.clone() };
        self.write("read store: recording a failed event", vec![(shard, changed)]).await.map(drop)
    }

    async fn note_uncalled(&mut self, shards: &[(u32, Held)], types: &[String]) -> Result<(), ProjectorError> {
        let mut changed = Vec::new();
        for (number, Held { fence, .. }) in shards {
            if let Some(Kept { value, .. }) = self.kept.get(number).filter(|kept| kept.value.fence == *fence) {
                changed.push((*number, Shard { uncalled: Some(uncalled::note(*fence, types)), ..value.clone() }));
            }
        }
        self.write(uncalled::NOTING, changed).await.map(drop)
    }
}
