//! `projectionist simulate`: from the texts of files and the options to a simulation and its report. Reads no files itself.

use std::time::Duration;

use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscalerBehavior;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    kind::WorkerKind,
    log::Backlog,
    model::{InvalidProjection, ModelPolicy},
    outcome::Run,
    run::{Plan, run},
    trace::{InvalidTrace, Trace},
};
use crate::api::{Ordering, Projection, ScaleOut};

/// What is simulated, as the command line gives it.
#[derive(Clone, Debug)]
pub struct Options {
    /// Events per second that one busy worker handles, where the trace does not tell.
    pub worker_rate: f64,
    /// What an earlier run learnt of that; none: the model has to find out.
    pub learnt_rate: Option<f64>,
    /// From a worker's creation until it is ready.
    pub start_up: Duration,
    /// When workers commit, what is measured of it, and whether one of them is slow.
    pub kind: WorkerKind,
    /// Workers at the beginning. Default: `minWorkers`.
    pub workers: Option<u32>,
    /// Shards, where the Projection does not tell.
    pub shards: Option<u32>,
    /// The first shard gets so many times as many events as each other.
    pub hot_shard: f64,
    /// Events that wait at the beginning.
    pub backlog: u64,
    /// The age of the oldest of them.
    pub backlog_age: Duration,
    /// Time between two samples. Default: as the operator does, a tenth of the target, from 500 ms to 5 s.
    pub sampling: Option<Duration>,
    /// Time between two looks of the autoscaler.
    pub sync_period: Duration,
    /// When it looks first.
    pub phase: Duration,
    /// Who scales out, where it is not to be as the Projection says.
    pub scale_out: Option<ScaleOut>,
}

/// Why there is no simulation. Whoever knows the files' names puts them before.
#[derive(Clone, Debug, thiserror::Error)]
pub enum InvalidInput {
    /// Of the Projection's file.
    #[error("is not a Projection: {0}")]
    NotAProjection(String),
    /// Of the Projection's file.
    #[error(transparent)]
    Projection(#[from] InvalidProjection),
    /// Of the Projection's file and the options.
    #[error(
        "spec.scaling.shards is Auto and only the running projector knows the number: give it there, or with --shards"
    )]
    UnknownShards,
    /// Of the behavior's file.
    #[error("holds neither a behavior nor a HorizontalPodAutoscaler: {0}")]
    NotABehavior(String),
    /// Of the trace's file.
    #[error(transparent)]
    Trace(#[from] InvalidTrace),
}

/// Reads a Projection.
///
/// # Errors
/// With line and column, when the text is none.
pub fn read_projection(text: &str) -> Result<Projection, InvalidInput> {
    serde_saphyr::from_str(text).map_err(|error| InvalidInput::NotAProjection(error.to_string()))
}

/// Reads a behavior: `scaleUp` and `scaleDown` alone, or those of a HorizontalPodAutoscaler.
///
/// # Errors
/// With line and column, when the text holds neither.
pub fn read_behavior(text: &str) -> Result<HorizontalPodAutoscalerBehavior, InvalidInput> {
    let refused = |problem: String| InvalidInput::NotABehavior(problem);
    let document: Value = serde_saphyr::from_str(text).map_err(|error| refused(error.to_string()))?;
    let whole = document.get("kind").is_some_and(|kind| kind == "HorizontalPodAutoscaler");
    let behavior: HorizontalPodAutoscalerBehavior = if whole {
        serde_saphyr::from_str::<Whole>(text).map_err(|error| refused(error.to_string()))?.spec.behavior
    } else {
        serde_saphyr::from_str(text).map_err(|error| refused(error.to_string()))?
    };
    let given = if whole { document.pointer("/spec/behavior").unwrap_or(&Value::Null) } else { &document };
    // A field that is misspelt would else count as one that is absent.
    match unknown_field(given, &json!(behavior), "") {
        Some(field) => Err(refused(format!("unknown field {field}"))),
        None => Ok(behavior),
    }
}

/// A HorizontalPodAutoscaler, as far as it is read.
#[derive(Deserialize)]
struct Whole {
    spec: WholeSpec,
}

#[derive(Deserialize)]
struct WholeSpec {
    behavior: HorizontalPodAutoscalerBehavior,
}

/// The first field that was given and not understood.
fn unknown_field(given: &Value, understood: &Value, path: &str) -> Option<String> {
    match (given, understood) {
        (Value::Object(given), understood) => {
            given.iter().filter(|(_, value)| !value.is_null()).find_map(|(key, value)| {
                let path = format!("{path}.{key}").trim_start_matches('.').to_owned();
                match understood.get(key) {
                    None => Some(path),
                    Some(understood) => unknown_field(value, understood, &path),
                }
            })
        }
        (Value::Array(given), Value::Array(understood)) => (0..)
            .zip(given.iter().zip(understood))
            .find_map(|(index, (given, understood))| unknown_field(given, understood, &format!("{path}[{index}]"))),
        _ => None,
    }
}

/// Simulates.
///
/// # Errors
/// With the field's name, when the Projection cannot be carried out, or its number of shards is not known.
pub fn simulate(mut projection: Projection, trace: Trace, options: &Options) -> Result<Run, InvalidInput> {
    let Options {
        worker_rate,
        learnt_rate,
        start_up,
        kind,
        workers,
        shards,
        hot_shard,
        backlog,
        backlog_age,
        sampling,
        sync_period,
        phase,
        scale_out,
    } = options;
    if let Some(scale_out) = scale_out {
        projection.spec.scaling.scale_out = *scale_out;
    }
    let compete = projection.spec.scaling.ordering == Ordering::None;
    let shards = match projection.spec.shard_count().or(*shards) {
        _ if compete => Vec::new(),
        None if projection.spec.scaling.ordering == Ordering::Strict => vec![1.0],
        None => return Err(InvalidInput::UnknownShards),
        Some(count) => {
            projection.spec.scaling.shards = crate::api::Shards::Count(count);
            let usual = vec![1.0; usize::try_from(count).unwrap_or(1)];
            [*hot_shard].into_iter().chain(usual.into_iter().skip(1)).collect()
        }
    };
    let target = projection.spec.lag.target.0;
    let usual_sampling = (target / 10).clamp(Duration::from_millis(500), Duration::from_secs(5));
    let least = projection.spec.scaling.min_workers;
    let plan = Plan {
        backlog: Backlog { events: as_float(*backlog), age: *backlog_age },
        shards,
        per_worker: *worker_rate,
        start_up: *start_up,
        kind: *kind,
        workers: workers.map_or(least, |workers| i32::try_from(workers).unwrap_or(i32::MAX)),
        sampling: sampling.unwrap_or(usual_sampling),
        sync_period: *sync_period,
        phase: *phase,
        ..Plan::new(trace, target)
    };
    let mut policy = ModelPolicy::new(&projection, *learnt_rate)?;
    Ok(run(&plan, &mut policy))
}

/// Counts of events stay far below 2^53.
#[allow(clippy::cast_precision_loss)]
fn as_float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
#[path = "command_tests.rs"]
mod tests;
