//! Consumers of event stores in PostgreSQL, whose checkpoint the store keeps: one variant a store.

use crate::api::{AkkaProjection, CommandedSubscription, EmmettProcessor};

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

impl StoreConsumer {
    /// The channel that the store itself notifies of new events.
    pub fn notify_channel(&self) -> Option<String> {
        self.commanded().map(|subscription| format!("{}.events", subscription.schema))
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
