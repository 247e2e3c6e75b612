//! What the operator reports about a Projection.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ReadStoreStatus, RolloutStatus, RunRole, RunStatus, RunWorkers};

/// What is known about a Projection. A field that is absent is unknown, never zero.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProjectionStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The version of the read model that this status is about: the one that `spec.version` names or, with `rollout.strategy: BlueGreen`, that readers see.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Where the projection stands, in one word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// True from before suspending takes the workers away until they are back, so that a workload at zero workers is not taken for the
    /// choice of another.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspended: bool,
    /// The source's newest positions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head: Option<HeadStatus>,
    /// The lowest position that every shard has durably processed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<String>,
    /// Committed events that have not been processed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pending: Option<PendingStatus>,
    /// The plain value that the source tells in place of events that wait, to three digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    /// Age in seconds of the oldest unprocessed event, 0 when there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub staleness_seconds: Option<f64>,
    /// Events that were set aside after failing, such as dead letters; absent where the source keeps none or does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parked: Option<i64>,
    /// How many workers are needed, asked for and ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workers: Option<WorkersStatus>,
    /// The rates that the number of workers is computed from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rates: Option<RatesStatus>,
    /// In which steps the checkpoint moves; absent where it moves all the time, or where that is not known yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cadence: Option<CadenceStatus>,
    /// Events that appeared at positions which the checkpoint had passed already; absent where none are known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passed_over: Option<PassedOverStatus>,
    /// The read store as the operator reaches it; absent without `spec.readStore`, and while it is not known which it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_store: Option<ReadStoreStatus>,
    /// The runs, each of which builds one version, with `rollout.strategy: BlueGreen`. What is outside of this list is about the one that readers see, or the
    /// only one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["version"]))]
    pub runs: Vec<RunStatus>,
    /// What is remembered of rollouts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutStatus>,
    /// Ready, SourceReachable, ReadStoreReachable, LagKnown, WithinTarget, Progressing, HeldBack, Available; and Promoted with `rollout.strategy: BlueGreen`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

impl ProjectionStatus {
    /// The workers that the leading replica asks for; absent where it does not know.
    pub fn required_workers(&self) -> Option<u32> {
        self.workers.as_ref()?.required?.try_into().ok()
    }

    /// The same of the run of this version.
    pub fn required_workers_of(&self, version: &str) -> Option<u32> {
        self.workers_of(version)?.required?.try_into().ok()
    }

    /// The workers of the run of this version.
    pub fn workers_of(&self, version: &str) -> Option<RunWorkers> {
        self.runs.iter().find(|run| run.version == version).map(|run| run.workers)
    }

    /// The version that readers see, as far as the status says.
    pub fn live_version(&self) -> Option<&str> {
        self.runs.iter().find(|run| run.role == RunRole::Live).map(|run| run.version.as_str())
    }
}

/// Where a projection stands.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum Phase {
    /// Not measured yet, or its workload does not exist yet.
    Pending,
    /// Behind its lag target, reading history.
    CatchingUp,
    /// Within its lag target.
    Live,
    /// Nothing has waited or arrived for `scaling.idleFor`, and there is no worker.
    Idle,
    /// There is work, and a checkpoint does not move: that of the projection, or that of a shard whose event cannot be handled.
    Stuck,
    /// Switched off by `spec.suspend` or the annotation `projectionist.dev/suspend`.
    Suspended,
    /// The operator cannot run it as written; the Ready condition says why.
    Failed,
}

/// The source's newest positions, as the source writes them.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct HeadStatus {
    /// The highest committed position.
    pub raw: String,
    /// The highest position below which everything is committed.
    pub safe: String,
}

/// How many events wait.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PendingStatus {
    /// Committed events beyond the checkpoint, up to the raw head.
    pub value: i64,
    /// Those of them above the safe head. They may not be read before an open transaction has ended that may still commit an earlier event; the
    /// condition HeldBack names it.
    #[serde(default)]
    pub held_back: i64,
    /// False when the value is an upper bound.
    pub exact: bool,
    /// Why it is one, and what to add to the spec; absent where it is one only for a while, or for a large backlog.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// In which steps workers move the checkpoint: what lies between two of them is taken for handled, and no queue.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CadenceStatus {
    /// Seconds from one commit of a worker to its next, at the present load.
    pub seconds: f64,
    /// Events in each commit, where workers commit after a number of events and not after a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events: Option<i64>,
}

/// Events that appeared after the checkpoint had passed their positions. Outlives a restart of the operator.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PassedOverStatus {
    /// The table that they are in, as `spec.source` names it.
    pub event_table: String,
    /// Their positions, the lowest first, at most 100.
    pub positions: Vec<String>,
    /// How many more there are.
    #[serde(default)]
    pub more: i64,
}

/// How many workers there should be and are.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkersStatus {
    /// What holds the lag target, within the bounds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub required: Option<i32>,
    /// What the workload is asked to run (its `spec.replicas`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub desired: Option<i32>,
    /// Workers that are ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready: Option<i32>,
    /// `ready/required`, for the eye.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
    /// What keeps the required number from being another one.
    pub bound_by: BoundBy,
    /// True while the workload's pods are being replaced or started: rates are not learnt meanwhile.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rolling: bool,
    /// The sentence behind the required number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What bounds the required number of workers.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
pub enum BoundBy {
    /// Nothing: the number is what the load asks for.
    #[default]
    None,
    /// More workers than shards would idle.
    Shards,
    /// `scaling.maxWorkers`.
    Max,
    /// `scaling.minWorkers`.
    Min,
    /// `ordering: Strict` allows one worker.
    Ordering,
    /// `readStore.limits.maxConnections`, shared with the other Projections on that read store.
    Connections,
    /// One shard has more to do than a worker can: more workers cannot help.
    HottestShard,
    /// The read store does no more with more workers.
    ReadStore,
    /// It builds a new version and must not harm the one that readers see: that is late, or the read store refuses writes or connections.
    LiveVersion,
}

/// What was measured of arrivals and workers. Events per second.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RatesStatus {
    /// Events that arrive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arrival_per_second: Option<f64>,
    /// Events that one busy worker handles; absent until learnt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_worker_per_second: Option<f64>,
    /// Seconds until nothing waits at today's rates; absent when the backlog does not shrink or a rate is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_seconds: Option<f64>,
}
