//! What is asked of Kafka for one Projection.

use std::sync::Arc;

use crate::{api::KafkaIsolation, clients::kafka::Isolation, resolve::KafkaTopics};

/// What there is to know of a Projection in order to measure it.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Question {
    /// The topics, at least one.
    pub topics: Arc<[Arc<str>]>,
    /// The consumer group that commits how far the projection has come.
    pub group: Arc<str>,
    /// Which records the consumers read.
    pub isolation: Isolation,
    /// Consumers without a committed offset begin with the first record that is kept.
    pub reset_to_earliest: bool,
}

impl From<&KafkaTopics> for Question {
    fn from(topics: &KafkaTopics) -> Self {
        Self {
            topics: topics.topics.clone(),
            group: topics.group.clone(),
            isolation: match topics.isolation {
                KafkaIsolation::ReadCommitted => Isolation::ReadCommitted,
                KafkaIsolation::ReadUncommitted => Isolation::ReadUncommitted,
            },
            reset_to_earliest: topics.reset_to_earliest,
        }
    }
}
