//! How a read store is: whether it answers, how fast, and how much of it is in use. One request for all Projections that write to it.
//!
//! A store that answers and does not let the user see its figures is reached all the same: the figures are then absent, with what to grant.

mod elasticsearch;
mod postgres;
mod redis;

use tokio::time::Instant;

use super::CheckpointStore;
use crate::{measure::MeasureError, store_health::StoreSample};

impl CheckpointStore {
    /// Asks the store how it is, before `deadline`. The latency does not include opening a connection, nor the wait for another question on the same one.
    ///
    /// # Errors
    /// Why it cannot be reached: what, where and what to do.
    pub async fn health(&self, deadline: Instant) -> Result<StoreSample, MeasureError> {
        match self {
            Self::Postgres(database) => postgres::health(database, deadline).await,
            Self::Redis(store) => redis::health(store, deadline).await,
            Self::Elasticsearch(store) => elasticsearch::health(store, deadline).await,
        }
    }
}
