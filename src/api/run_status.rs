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
    /// How far it has come; only of a version that readers do not see yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<RunProgress>,
    /// Its workers.
    #[serde(default)]
    pub workers: RunWorkers,
    /// Why it has fewer workers than it could use, so that it does not harm the version that readers see. Absent where it is not held back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slowed: Option<String>,
    /// What keeps it from its work, or from being measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// How far a run has come that builds a new version.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RunProgress {
    /// The part of `ofEvents` that does not wait any more, in percent: 0 to 100.
    pub percent: f64,
    /// The most events that have waited for it at once.
    pub of_events: i64,
    /// By so many events a second what waits becomes less, over the last five minutes; negative where it becomes more. Absent until it has been watched for half a
    /// minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events_per_second: Option<f64>,
    /// How long it takes at this pace until nothing waits. Absent where the pace is not known, or what waits does not become less.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds_left: Option<SecondsLeft>,
}

/// Between these two, as far as the pace so far tells.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SecondsLeft {
    /// Seconds.
    pub at_least: f64,
    /// Seconds. Absent where the pace is so uneven that it may as well take for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_most: Option<f64>,
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
    /// The version that was not promoted within `rollout.deadline`, or that does not hold the same as the one that readers see.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    /// In what it differs, where it has failed for that: keys of `rollout.promote.parity.query`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub differs: Option<String>,
    /// Which query found that, as a hash: another one compares them again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub differs_by: Option<String>,
}
