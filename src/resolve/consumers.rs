//! Consumers of event stores in PostgreSQL, whose checkpoint the store keeps: one variant a store.

use super::invalid;
use crate::{
    api::{AkkaProjection, CommandedStore, EmmettStore},
    measure::MeasureError,
};

/// A consumer, with the store that it reads.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum StoreConsumer {
    /// A subscription in an EventStore of Elixir.
    Commanded(CommandedSubscription),
    /// A processor of Emmett.
    Emmett(EmmettProcessor),
    /// A projection of Akka or Pekko by slices.
    Akka(AkkaProjection),
}

/// A persistent subscription in an EventStore of Elixir.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct CommandedSubscription {
    /// The schema with the event store's tables.
    pub schema: String,
    /// Its name.
    pub subscription: String,
    /// The stream that is subscribed to.
    pub stream: String,
}

/// A processor that reads an event store of Emmett.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct EmmettProcessor {
    /// The schema with the event store's tables.
    pub schema: String,
    /// Its name.
    pub processor: String,
    /// Its version.
    pub version: i32,
    /// The partition that it reads.
    pub partition: String,
}

impl StoreConsumer {
    /// The subscription that a spec names.
    ///
    /// # Errors
    /// It names none.
    pub(super) fn of_commanded(store: &CommandedStore) -> Result<Self, MeasureError> {
        let CommandedStore { schema, subscription, stream } = store.clone();
        let subscription = subscription.ok_or_else(|| {
            invalid(
                "spec.source.postgres.commanded.subscription is missing: which subscription of the event store is it?",
            )
        })?;
        Ok(Self::Commanded(CommandedSubscription { schema, subscription, stream }))
    }

    /// The processor that a spec names.
    ///
    /// # Errors
    /// It names none.
    pub(super) fn of_emmett(store: &EmmettStore) -> Result<Self, MeasureError> {
        let EmmettStore { schema, processor, version, partition } = store.clone();
        let processor = processor.ok_or_else(|| {
            invalid("spec.source.postgres.emmett.processor is missing: which processor of Emmett is it?")
        })?;
        Ok(Self::Emmett(EmmettProcessor { schema, processor, version, partition }))
    }

    /// The channel that the store itself notifies of new events.
    pub fn notify_channel(&self) -> Option<String> {
        self.commanded().map(|subscription| commanded_channel(&subscription.schema))
    }

    /// The subscription, where it is one in an EventStore of Elixir.
    pub fn commanded(&self) -> Option<&CommandedSubscription> {
        if let Self::Commanded(subscription) = self { Some(subscription) } else { None }
    }

    /// The processor, where it is one of Emmett.
    pub fn emmett(&self) -> Option<&EmmettProcessor> {
        if let Self::Emmett(processor) = self { Some(processor) } else { None }
    }

    /// The projection, where it is one of Akka or Pekko.
    pub fn akka(&self) -> Option<&AkkaProjection> {
        if let Self::Akka(projection) = self { Some(projection) } else { None }
    }
}

/// The channel that an EventStore of Elixir notifies of an append.
pub(super) fn commanded_channel(schema: &str) -> String {
    format!("{schema}.events")
}
