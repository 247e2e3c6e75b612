//! What is read from KurrentDB: persistent subscriptions, or a catch-up subscription with its checkpoint.

use std::collections::BTreeSet;

use super::{invalid, postgres::checkpoint_in_read_store};
use crate::{
    api::{CatchUpSubscription, CheckpointLocation, KurrentDbSource, PersistentSubscription, ProjectionSpec},
    measure::{MeasureError, ProjectionKey},
};

/// What is read from KurrentDB.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum KurrentDbSubscriptions {
    /// Persistent subscriptions, at least one, none twice: the server keeps the checkpoint.
    Persistent(Vec<PersistentSubscription>),
    /// A catch-up subscription: the read store keeps the checkpoint.
    CatchUp(CatchUpSubscription),
}

/// What is read, and the place of the checkpoint where the server does not keep it.
pub(super) fn subscriptions(
    spec: &ProjectionSpec,
    source: &KurrentDbSource,
    key: &ProjectionKey,
) -> Result<(KurrentDbSubscriptions, Option<CheckpointLocation>), MeasureError> {
    if source.connection.database.is_some() {
        return Err(invalid("spec.source.kurrentdb.connection.database must be absent: KurrentDB has no databases"));
    }
    let persistent: BTreeSet<&PersistentSubscription> = source.persistent_subscriptions.iter().collect();
    match &source.catch_up {
        Some(catch_up) if persistent.is_empty() => {
            let checkpoint = checkpoint_in_read_store(spec, key)?;
            Ok((KurrentDbSubscriptions::CatchUp(catch_up.clone()), Some(checkpoint)))
        }
        None if !persistent.is_empty() => {
            Ok((KurrentDbSubscriptions::Persistent(persistent.into_iter().cloned().collect()), None))
        }
        _ => Err(invalid("spec.source.kurrentdb must name either persistentSubscriptions or catchUp")),
    }
}
