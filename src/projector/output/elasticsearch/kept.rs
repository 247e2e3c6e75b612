//! What the documents of the state hold.

use serde::{Deserialize, Serialize};

use super::requests::Cas;

/// The document of the projection.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(super) struct Header {
    pub(super) shards: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) parts: Vec<NamedPart>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) place: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) server: Option<String>,
}

/// A part of the source.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct NamedPart {
    pub(super) name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) identity: Option<String>,
}

/// The document of a shard.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Shard {
    pub(super) position: i64,
    pub(super) fence: i64,
    #[serde(default)]
    pub(super) owner: Option<String>,
    #[serde(default)]
    pub(super) failure: Option<Failure>,
    /// Which handlers the owner with the fence that it begins with has had no event for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) uncalled: Option<String>,
}

/// An event that a shard waits before.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Failure {
    pub(super) position: i64,
    pub(super) why: String,
}

impl Shard {
    /// The same at another position. What is noted of an event up to there is of no more interest.
    pub(super) fn moved(&self, position: i64) -> Self {
        let failure = self.failure.clone().filter(|failure| failure.position > position);
        Self { position, failure, ..self.clone() }
    }
}

/// The document of the messages of a queue that cannot be handled.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Unhandled {
    pub(super) failed: Vec<FailedMessage>,
}

/// A message that cannot be handled: its identity, why, and how often it was tried since it was written down here.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct FailedMessage {
    pub(super) message: String,
    pub(super) why: String,
    pub(super) times: u64,
}

/// The document of the workers.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Workers {
    pub(super) workers: Vec<Beat>,
}

/// A worker, and how often it has renewed its lease.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Beat {
    pub(super) name: String,
    pub(super) beat: u64,
}

/// A document that is there.
#[derive(Clone, Debug)]
pub(super) struct Kept<T> {
    pub(super) cas: Cas,
    pub(super) value: T,
}

/// A value of the state as JSON.
pub(super) fn json(value: &impl Serialize) -> String {
    // Numbers, texts and lists of them: nothing that JSON cannot write.
    serde_json::to_string(value).unwrap_or_default()
}
