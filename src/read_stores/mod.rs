//! Where projections keep how far they have come: one module a store. Only reads.

mod names;
mod postgres;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use tokio::time::Instant;

use crate::{
    api::CheckpointLocation,
    clients::{Endpoint, postgres::Database},
    lag::{CheckpointState, FailedEvent},
    measure::MeasureError,
};

/// One projection's checkpoint, and whether it tells what was done exactly.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Checkpoint {
    /// The positions.
    pub state: CheckpointState,
    /// Where each shard has a row of its own: the shards as text, in the order of the positions.
    pub shards: Option<Arc<[Arc<str>]>>,
    /// Why it does not tell what was done exactly, and what to add. Then the state holds the lowest and the highest of several rows, and what has been done
    /// between the two is not known.
    pub bound: Option<Arc<str>>,
    /// Events that workers of the built-in projector cannot handle, the lowest position first.
    pub failed: Vec<FailedEvent>,
}

impl Checkpoint {
    /// Without shards, and exact.
    fn plain(state: CheckpointState) -> Self {
        Self { state, shards: None, bound: None, failed: Vec::new() }
    }
}

/// What was read, or why not, for each location asked for.
pub type Checkpoints = HashMap<CheckpointLocation, Result<Checkpoint, MeasureError>>;

/// A read store that checkpoints are kept in: one variant a kind. Equal to another when it is the same store, reached in the same way.
#[derive(Clone, Debug)]
pub enum CheckpointStore {
    /// A PostgreSQL database.
    Postgres(Arc<Database>),
}

impl CheckpointStore {
    /// The server.
    pub fn endpoint(&self) -> Endpoint {
        match self {
            Self::Postgres(database) => Endpoint::Postgres(database.identity().clone()),
        }
    }

    /// Reads the checkpoints at `locations` before `deadline`. What cannot be read of one does not affect the others.
    pub async fn read(&self, locations: &BTreeSet<CheckpointLocation>, deadline: Instant) -> Checkpoints {
        match self {
            Self::Postgres(database) => postgres::read(database, locations, deadline).await,
        }
    }
}

impl PartialEq for CheckpointStore {
    fn eq(&self, other: &Self) -> bool {
        self.endpoint() == other.endpoint()
    }
}

impl Eq for CheckpointStore {}
