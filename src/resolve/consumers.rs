//! Consumers of event stores in PostgreSQL, whose checkpoint the store keeps: one variant a store.

use crate::api::CommandedSubscription;

/// A consumer, with the store that it reads.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum StoreConsumer {
    /// A subscription in an EventStore of Elixir.
    Commanded(CommandedSubscription),
}

impl StoreConsumer {
    /// The channel that the store itself notifies of new events.
    pub fn notify_channel(&self) -> Option<String> {
        match self {
            Self::Commanded(subscription) => Some(format!("{}.events", subscription.schema)),
        }
    }

    /// The store's schema, and the field of the spec that names it.
    pub fn schema(&self) -> (&str, &'static str) {
        match self {
            Self::Commanded(subscription) => (&subscription.schema, "spec.source.postgres.commanded.schema"),
        }
    }
}
