//! Where projections keep how far they have come, how the store is, and which version of a read model readers see: one module a store. Reads only, but
//! for [`switch`], and for what holds a new version while it is compared.

mod compare;
mod elasticsearch;
mod health;
mod node_counters;
mod open;
mod postgres;
mod redis;
pub mod switch;
mod uncalled;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use tokio::time::Instant;

use crate::{
    api::{CheckpointLocation, CheckpointRows, Reason},
    clients::{Endpoint, postgres::Database},
    lag::{CheckpointState, FailedEvent, Position},
    measure::MeasureError,
};
pub use elasticsearch::ElasticsearchStore;
pub use open::OpenStores;
pub use redis::RedisStore;

/// Where workers of the built-in projector begin that have handled nothing, of a source whose first event is at position 0.
const BEFORE_ALL: i64 = -1;

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
    /// How many events those workers have parked, or why that is not known; absent where they park none.
    pub parked: Option<Result<u64, MeasureError>>,
    /// The types of event whose handlers no event has come for, as all workers of the built-in projector say.
    pub uncalled: Vec<String>,
}

impl Checkpoint {
    /// Without shards, and exact.
    fn plain(state: CheckpointState) -> Self {
        Self { state, shards: None, bound: None, failed: Vec::new(), parked: None, uncalled: Vec::new() }
    }

    /// With the position of each shard that has one. `place` says where it was read. Where `rows` says that the shards of events are not known, the
    /// lowest stands for all.
    fn of_shards(mut shards: Vec<(Arc<str>, Position)>, rows: &CheckpointRows, place: &str) -> Self {
        if shards.is_empty() {
            return Self::plain(CheckpointState::NeverCommitted);
        }
        shards.sort();
        if *rows != CheckpointRows::One {
            let (shards, positions): (Vec<_>, Vec<_>) = shards.into_iter().unzip();
            let state = CheckpointState::Committed(positions);
            return Self { shards: Some(shards.into()), ..Self::plain(state) };
        }
        let positions = || shards.iter().map(|(_, position)| *position);
        let ends: Vec<Position> = positions().min().into_iter().chain(positions().max()).collect();
        if shards.len() == 1 {
            return Self::plain(CheckpointState::Committed(ends[..1].to_vec()));
        }
        Self { bound: Some(Arc::from(why_bound(place))), ..Self::plain(CheckpointState::Committed(ends)) }
    }
}

/// Of several positions only the lowest is told: what to add so that each is counted.
fn why_bound(place: &str) -> String {
    format!(
        "{place} holds a position for each of several shards, and the lowest stands for all, so that what the others have done counts as waiting: name the column with an event's shard in spec.source.postgres.eventTable.shard, and each shard is counted beyond its own position"
    )
}

/// What was read, or why not, for each location asked for.
pub type Checkpoints = HashMap<CheckpointLocation, Result<Checkpoint, MeasureError>>;

/// A read store that checkpoints are kept in: one variant a kind. Equal to another when it is the same store, reached in the same way.
#[derive(Clone, Debug)]
pub enum CheckpointStore {
    /// A PostgreSQL database.
    Postgres(Arc<Database>),
    /// A database of a Redis server.
    Redis(Arc<RedisStore>),
    /// Elasticsearch or OpenSearch.
    Elasticsearch(Arc<ElasticsearchStore>),
}

impl CheckpointStore {
    /// The server.
    pub fn endpoint(&self) -> Endpoint {
        match self {
            Self::Postgres(database) => Endpoint::Postgres(database.identity().clone()),
            Self::Redis(store) => Endpoint::Redis(store.identity().clone()),
            Self::Elasticsearch(store) => Endpoint::Elasticsearch(store.identity().clone()),
        }
    }

    /// Reads the checkpoints at `locations` before `deadline`. What cannot be read of one does not affect the others.
    pub async fn read(&self, locations: &BTreeSet<CheckpointLocation>, deadline: Instant) -> Checkpoints {
        let mut answers = Checkpoints::new();
        match self {
            Self::Postgres(database) => {
                let tables = locations.iter().filter_map(|location| match location {
                    CheckpointLocation::Table(table) => Some(table.clone()),
                    _ => None,
                });
                let read = postgres::read(database, &tables.collect(), deadline).await;
                answers.extend(read.into_iter().map(|(table, answer)| (CheckpointLocation::Table(table), answer)));
                let offsets = locations.iter().filter_map(|location| match location {
                    CheckpointLocation::Offsets(offsets) => Some(offsets.clone()),
                    _ => None,
                });
                let read = postgres::read(database, &offsets.collect(), deadline).await;
                answers.extend(read.into_iter().map(|(place, answer)| (CheckpointLocation::Offsets(place), answer)));
                let inboxes = locations.iter().filter_map(|location| match location {
                    CheckpointLocation::Inbox(inbox) => Some(inbox.clone()),
                    _ => None,
                });
                let read = postgres::read(database, &inboxes.collect(), deadline).await;
                answers.extend(read.into_iter().map(|(inbox, answer)| (CheckpointLocation::Inbox(inbox), answer)));
            }
            Self::Redis(store) => {
                let keys = locations.iter().filter_map(|location| match location {
                    CheckpointLocation::Redis(keys) => Some(keys.clone()),
                    _ => None,
                });
                let read = store.read(&keys.collect::<Vec<_>>(), deadline).await;
                answers.extend(read.into_iter().map(|(keys, answer)| (CheckpointLocation::Redis(keys), answer)));
            }
            Self::Elasticsearch(store) => {
                let documents = locations.iter().filter_map(|location| match location {
                    CheckpointLocation::Document(document) => Some(document.clone()),
                    _ => None,
                });
                let read = store.read(&documents.collect::<Vec<_>>(), deadline).await;
                answers.extend(
                    read.into_iter().map(|(document, answer)| (CheckpointLocation::Document(document), answer)),
                );
            }
        }
        for location in locations.iter().filter(|location| !answers.contains_key(*location)).collect::<Vec<_>>() {
            answers.insert(location.clone(), Err(elsewhere()));
        }
        answers
    }
}

fn elsewhere() -> MeasureError {
    MeasureError {
        reason: Reason::InvalidSpec,
        message: "spec.checkpoint names a place in another kind of store than spec.readStore".to_owned(),
    }
}

impl PartialEq for CheckpointStore {
    fn eq(&self, other: &Self) -> bool {
        self.endpoint() == other.endpoint()
    }
}

impl Eq for CheckpointStore {}
