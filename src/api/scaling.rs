//! How far behind a projection may be, how many workers there may be for that, and who decides.

use std::time::Duration;

use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscalerBehavior;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{HumanDuration, Shards};

/// The rule that a duration lies between two others. What is no duration at all is refused by the field's pattern, with a clearer message.
macro_rules! span {
    ($from:literal, $to:literal) => {
        concat!(
            "self == '' || !self.matches('^([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,8}s)?([0-9]{1,8}ms)?$') || (duration(self) >= duration('",
            $from,
            "') && duration(self) <= duration('",
            $to,
            "'))"
        )
    };
}
pub(super) use span;

/// How far behind the projection may be.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(has(self.onUnknown) && self.onUnknown == 'Fallback') == has(self.fallbackWorkers)").message("spec.lag.fallbackWorkers is required with spec.lag.onUnknown Fallback, and has no meaning without it"))]
pub struct Lag {
    /// The freshness objective: no event waits longer than this. Such as `5s`, `30s` or `10m`; 1s to 168h.
    #[x_kube(validation = Rule::new(span!("1s", "168h")).message("spec.lag.target must be from 1s to 168h"))]
    pub target: HumanDuration,
    /// With a source that tells a plain value, such as a latency or a number of connections: what it is to be. Then `target` says only how often it is
    /// looked at (ten times in that time), and the workers follow the value alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<ValueTarget>,
    /// A second rule beside the target: one worker for so many pending events, whichever asks for more. The autoscaler follows it up to
    /// `scaling.maxWorkers` whatever the target's own reckoning knows of connections, a saturated read store or a stuck checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub pending_per_worker: Option<i64>,
    /// What to do while the lag is not known. Default: `Hold`.
    #[serde(default)]
    pub on_unknown: OnUnknown,
    /// With `onUnknown: Fallback`: how many workers are asked for then.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub fallback_workers: Option<i32>,
}

/// What a plain value is to be. Exactly one field.
#[derive(Clone, Copy, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.target) != has(self.averageTarget)").message("spec.lag.value must have exactly one of target and averageTarget"))]
pub struct ValueTarget {
    /// For the whole value, which falls as workers are added, such as a latency: the workers that are ready are multiplied by value / target, unless that is
    /// within 10 % of 1, as a HorizontalPodAutoscaler does with a target of type `Value`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.000_001, max = 1_000_000_000_000_000.0))]
    #[x_kube(validation = Rule::new("self >= 0.000001").message("spec.lag.value.target must be at least 0.000001"))]
    pub target: Option<f64>,
    /// For each worker's share of the value, which says how much there is to do, such as requests per second: one worker for so much of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.000_001, max = 1_000_000_000_000_000.0))]
    #[x_kube(validation = Rule::new("self >= 0.000001").message("spec.lag.value.averageTarget must be at least 0.000001"))]
    pub average_target: Option<f64>,
}

/// What to do while the lag is not known.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum OnUnknown {
    /// The workers stay as they are.
    #[default]
    Hold,
    /// `lag.fallbackWorkers` are asked for, within the bounds, and never fewer than run.
    Fallback,
}

/// How many workers there may be, and who decides.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.minWorkers <= (has(self.maxWorkers) ? self.maxWorkers : (self.ordering == 'Strict' ? 1 : 10))").message("spec.scaling.minWorkers must not be greater than spec.scaling.maxWorkers (10 by default, 1 with ordering Strict)"),
    validation = Rule::new("self.ordering != 'Strict' || !has(self.maxWorkers) || self.maxWorkers == 1").message("spec.scaling.maxWorkers must be 1 with spec.scaling.ordering Strict: one worker keeps the order of all events"),
)]
pub struct Scaling {
    /// Never fewer workers than this. With 0, the workers go away when nothing has waited for `idleFor`, and come back with the first event.
    /// Default: 1.
    #[serde(default = "default_min_workers")]
    #[schemars(range(min = 0, max = 10_000))]
    pub min_workers: i32,
    /// Never more workers than this. Default: 10, and 1 with `ordering: Strict`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub max_workers: Option<i32>,
    /// Which events must be handled in order. Default: `PerKey`.
    #[serde(default)]
    pub ordering: Ordering,
    /// With `minWorkers: 0`: quiet for so long before the last worker goes away. From 1s to 168h. Default: `5m`.
    #[serde(default = "default_idle_for")]
    #[x_kube(validation = Rule::new(span!("1s", "168h")).message("spec.scaling.idleFor must be from 1s to 168h"))]
    pub idle_for: HumanDuration,
    /// Events that one busy worker handles per second, where the team knows it. Used until the operator has learnt its own number.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.001, max = 1_000_000_000.0))]
    // The API server cuts a bound to a whole number before it compares a whole number with it.
    #[x_kube(validation = Rule::new("self >= 0.001").message("spec.scaling.eventsPerWorkerSecond must be at least 0.001"))]
    pub events_per_worker_second: Option<f64>,
    /// Who scales out: the operator at once, within what the autoscaler's own rules allow, or the autoscaler at its next look. Scaling in is
    /// always the autoscaler's. Default: `Immediate`.
    #[serde(default)]
    pub scale_out: ScaleOut,
    /// Whether workers may be added before the events come, where the last hours or days were alike. Learnt again after a restart of the operator,
    /// which takes one hour or day; it never takes a worker away. Default: `None`.
    #[serde(default)]
    pub look_ahead: LookAhead,
    /// The unit of parallelism: more workers than shards would idle. `Auto` or a number from 1 to 1024. Default: `Auto`.
    #[serde(default)]
    pub shards: Shards,
    /// Passed to the HorizontalPodAutoscaler as it is. Default, also of a direction that is not given: scale up at once, down after 15 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::behavior::schema")]
    pub behavior: Option<HorizontalPodAutoscalerBehavior>,
    /// Who scales the workers between min and max. Default: `Managed`.
    #[serde(default)]
    pub autoscaler: Autoscaler,
}

fn default_min_workers() -> i32 {
    1
}

fn default_idle_for() -> HumanDuration {
    HumanDuration(Duration::from_secs(300))
}

impl Scaling {
    /// The most workers there may be, where the spec does not say.
    pub const DEFAULT_MAX_WORKERS: i32 = 10;

    /// The most workers there may be.
    pub fn most_workers(&self) -> i32 {
        self.max_workers.unwrap_or(if self.ordering == Ordering::Strict { 1 } else { Self::DEFAULT_MAX_WORKERS })
    }
}

impl Default for Scaling {
    fn default() -> Self {
        Self {
            min_workers: default_min_workers(),
            max_workers: None,
            ordering: Ordering::PerKey,
            idle_for: default_idle_for(),
            events_per_worker_second: None,
            scale_out: ScaleOut::Immediate,
            look_ahead: LookAhead::None,
            shards: Shards::Auto,
            behavior: None,
            autoscaler: Autoscaler::Managed,
        }
    }
}

/// Which events must be handled in order.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum Ordering {
    /// All of them: one worker.
    Strict,
    /// Those of one stream: at most one worker a shard.
    #[default]
    PerKey,
    /// None: workers compete for events.
    None,
}

/// Which pattern of arrivals may add workers before the events come.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum LookAhead {
    /// None: what arrives and waits decides.
    #[default]
    None,
    /// Each hour is like the last ones, minute by minute.
    Hourly,
    /// Each day is like the last ones, quarter by quarter of an hour.
    Daily,
}

/// Who scales out.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum ScaleOut {
    /// The operator, the moment that a fresh sample asks for more.
    #[default]
    Immediate,
    /// The HorizontalPodAutoscaler alone, at its next look.
    Autoscaler,
}

/// Who scales the workers.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum Autoscaler {
    /// A HorizontalPodAutoscaler that the operator makes.
    #[default]
    Managed,
    /// No autoscaler, or one of the team's own; the metrics are served all the same.
    None,
}

/// How fast a backlog that breaks the lag target is to be cleared.
#[derive(Clone, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CatchUp {
    /// The time in which the backlog is to be gone, counted from when the target was broken. From 1s to 8760h.
    #[x_kube(validation = Rule::new(span!("1s", "8760h")).message("spec.catchUp.within must be from 1s to 8760h"))]
    pub within: HumanDuration,
    /// Never more workers than this while catching up. Default: `scaling.maxWorkers`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub max_workers: Option<i32>,
}

/// What counts as a failure, and what becomes of events that fail every time.
#[derive(Clone, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// A checkpoint that does not move for so long while there is work is stuck. From 1s to 168h. Default: `5m`.
    #[serde(default = "default_stuck_after")]
    #[x_kube(validation = Rule::new(span!("1s", "168h")).message("spec.failure.stuckAfter must be from 1s to 168h"))]
    pub stuck_after: HumanDuration,
    /// What the built-in projector does with an event that fails every time, and by its own fault: its values break a rule of the read model, or it cannot be
    /// read. Failures that may pass, and those of the handler or the schema, are tried again for ever.
    #[serde(default)]
    pub on_poison: OnPoison,
    /// With `onPoison: Park`, later events of a stream with parked events are parked behind them, so that the order of each stream holds. Without it they are
    /// handled.
    #[serde(default = "default_park_stream")]
    pub park_stream: bool,
    /// With `onPoison: Park`, where so many events of the Projection are parked, those behind others included, the next waits as with `Pause`.
    #[serde(default = "default_max_parked")]
    #[schemars(range(min = 1, max = 100_000))]
    pub max_parked: i32,
}

/// What becomes of an event that fails every time, by its own fault.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum OnPoison {
    /// Its shard waits before it.
    #[default]
    Pause,
    /// It is kept in the read store with its error, to be replayed or dropped, and its shard goes on.
    Park,
    /// It is left out, and noted in the read store.
    Skip,
}

impl Default for Failure {
    fn default() -> Self {
        Self {
            stuck_after: default_stuck_after(),
            on_poison: OnPoison::Pause,
            park_stream: default_park_stream(),
            max_parked: default_max_parked(),
        }
    }
}

fn default_park_stream() -> bool {
    true
}

fn default_max_parked() -> i32 {
    100
}

fn default_stuck_after() -> HumanDuration {
    HumanDuration(Duration::from_secs(300))
}
