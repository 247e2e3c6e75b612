//! What is asked of Kafka for one Projection.

use std::sync::Arc;

use crate::{
    api::{KafkaIsolation, StoredOffset},
    clients::kafka::Isolation,
    measure::RunKey,
    resolve::{KafkaProgress, KafkaTopics},
};

/// What there is to know of a Projection in order to measure it.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Question {
    /// The topics, at least one.
    pub topics: Arc<[Arc<str>]>,
    /// Who keeps how far the projection has come.
    pub progress: Progress,
    /// Which records the consumers read.
    pub isolation: Isolation,
    /// Consumers without a committed offset begin with the first record that is kept.
    pub reset_to_earliest: bool,
}

/// Who keeps how far a projection has come.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Progress {
    /// The consumer group, which commits to Kafka.
    Group(Arc<str>),
    /// The read store.
    Stored {
        /// Whose offsets they are: two projections on the same topics have come differently far.
        of: RunKey,
        /// What an offset means.
        meaning: StoredOffset,
    },
}

impl Progress {
    /// The consumer group, where there is one.
    pub fn group(&self) -> Option<&Arc<str>> {
        match self {
            Self::Group(group) => Some(group),
            Self::Stored { .. } => None,
        }
    }
}

impl Question {
    /// What this projection asks.
    pub fn new(key: &RunKey, topics: &KafkaTopics) -> Self {
        Self {
            topics: topics.topics.clone(),
            progress: match &topics.progress {
                KafkaProgress::Group(group) => Progress::Group(group.clone()),
                KafkaProgress::ReadStore(meaning) => Progress::Stored { of: key.clone(), meaning: *meaning },
            },
            isolation: match topics.isolation {
                KafkaIsolation::ReadCommitted => Isolation::ReadCommitted,
                KafkaIsolation::ReadUncommitted => Isolation::ReadUncommitted,
            },
            reset_to_earliest: topics.reset_to_earliest,
        }
    }
}
