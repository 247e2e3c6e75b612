//! The status of the runs of a Projection, each of which builds one version of its read model.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One run: the workers that build one version.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RunStatus {
    /// The version that it builds.
    pub version: String,
    /// What it is for.
    pub role: RunRole,
    /// Since when.
    pub since: Time,
    /// Age in seconds of the oldest event that it has not handled, 0 when there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub staleness_seconds: Option<f64>,
    /// Events that it has not handled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pending: Option<i64>,
    /// Seconds until nothing waits at today's rates; absent when the backlog does not shrink or a rate is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_seconds: Option<f64>,
    /// Its workers.
    #[serde(default)]
    pub workers: RunWorkers,
    /// What keeps it from its work, or from being measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// What a run is for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
pub enum RunRole {
    /// Readers see its version.
    Live,
    /// It builds the version that `spec.version` names, and readers do not see that yet.
    Candidate,
    /// Readers saw its version before. It is kept up to date until `rollout.keepOld` has passed.
    Old,
}

/// The workers of a run.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RunWorkers {
    /// What holds the lag target, within the bounds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub required: Option<i32>,
    /// What its Deployment is asked to run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub desired: Option<i32>,
    /// Those that are ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready: Option<i32>,
}

/// What is remembered of rollouts.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RolloutStatus {
    /// The version from which readers were taken back: it is not promoted again while the annotation `projectionist.dev/rollback` stays as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rolled_back_from: Option<String>,
    /// The version to which they were taken back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rolled_back_to: Option<String>,
    /// The version that the spec was last heeded for: one that the spec names again later keeps the spec that it was made with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub described: Option<String>,
    /// The version that was not promoted within `rollout.deadline`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}
