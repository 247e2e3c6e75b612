//! `projectionist simulate`: from the texts of files and the options to a simulation and its report. Reads no files itself.

use std::time::Duration;

use super::{
    documents::one_document,
    given_autoscaler::{AutoscalerFile, GivenAutoscaler},
    kind::{Checkpoints, WorkerKind},
    log::Backlog,
    model::{InvalidProjection, ModelPolicy},
    outcome::Run,
    run::{Scenario, run},
    trace::Trace,
};
use crate::{
    api::{Ordering, Projection, Refusal, ScaleOut, admit},
    controller::ServerAbilities,
};

/// Events per second that one busy worker handles, where neither the trace nor an option gives the rate.
const USUAL_WORKER_RATE: f64 = 100.0;

/// What is simulated, as the command line gives it.
#[derive(Clone, Debug)]
pub struct Options {
    /// The version of Kubernetes whose autoscaler is simulated: major and minor.
    pub kubernetes: (u32, u32),
    /// Events per second that one busy worker handles, where the trace does not contain the rate. Default: 100.
    pub worker_rate: Option<f64>,
    /// What an earlier run learnt of that; none: the model has to find out.
    pub learnt_rate: Option<f64>,
    /// From a worker's creation until it is ready.
    pub start_up: Duration,
    /// When workers commit, what is measured of it, and whether one of them is slow.
    pub kind: WorkerKind,
    /// Workers at the beginning. Default: `minWorkers`.
    pub workers: Option<u32>,
    /// The number of shards, where the Projection does not contain it.
    pub shards: Option<u32>,
    /// How many times as many events the first shard gets as each other.
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
    /// What scales out, where it is not to be as the Projection says.
    pub scale_out: Option<ScaleOut>,
}

/// Why there is no simulation. The caller, which knows the names of the files, puts them before the message.
#[derive(Clone, Debug, thiserror::Error)]
pub enum InvalidInput {
    /// Of the Projection's file: no document, or more than one.
    #[error("{0}")]
    NoDocument(String),
    /// Of the Projection's file: what the API server would refuse, all of it.
    #[error("the API server would refuse it: {}", .0.iter().map(ToString::to_string).collect::<Vec<String>>().join("; "))]
    Refused(Vec<Refusal>),
    /// Of the Projection's file.
    #[error(transparent)]
    Projection(#[from] InvalidProjection),
    /// Of the Projection's file and the options.
    #[error(
        "spec.scaling.shards is Auto and only the running projector knows the number: give it there, or with --shards"
    )]
    UnknownShards,
    /// Of an option that would not be used.
    #[error("{option} {problem}")]
    Option {
        /// The option, with its dashes.
        option: &'static str,
        /// Why, and what to do.
        problem: String,
    },
    /// Of the autoscaler's file.
    #[error("{0}")]
    Autoscaler(String),
}

/// Reads a Projection as the API server would take it.
///
/// # Errors
/// With line and column where the text is no document, and with each field that the API server would refuse.
pub fn read_admitted(text: &str) -> Result<Projection, InvalidInput> {
    let document = one_document(text).map_err(InvalidInput::NoDocument)?;
    admit(document).map_err(InvalidInput::Refused)
}

/// Reads a Projection that can be simulated.
///
/// # Errors
/// Those of [`read_admitted`], and what cannot be simulated.
pub fn read_projection(text: &str) -> Result<Projection, InvalidInput> {
    let projection = read_admitted(text)?;
    if projection.spec.lag.value.is_some() {
        let problem = "a plain value is not simulated: traces tell events, not how the value follows them";
        return Err(InvalidInput::NoDocument(format!("spec.lag.value: {problem}")));
    }
    Ok(projection)
}

/// Reads rules, or a whole HorizontalPodAutoscaler.
///
/// # Errors
/// With the field or the line, when the text holds neither, or what the API server would refuse.
pub fn read_autoscaler(text: &str) -> Result<AutoscalerFile, InvalidInput> {
    AutoscalerFile::read(text).map_err(InvalidInput::Autoscaler)
}

fn unused(option: &'static str, problem: impl Into<String>) -> InvalidInput {
    InvalidInput::Option { option, problem: problem.into() }
}

/// How many shards there are, and what each gets; none where workers compete.
fn shards(projection: &mut Projection, options: &Options) -> Result<Vec<f64>, InvalidInput> {
    let scaling = &mut projection.spec.scaling;
    let hot = (options.hot_shard - 1.0).abs() > f64::EPSILON;
    if scaling.ordering == Ordering::None {
        if options.shards.is_some() {
            return Err(unused("--shards", "says nothing with spec.scaling.ordering None: workers compete for events"));
        }
        if hot {
            return Err(unused("--hot-shard", "says nothing with spec.scaling.ordering None: there are no shards"));
        }
        if matches!(options.kind.checkpoints, Checkpoints::Shard | Checkpoints::ShardUnknown) {
            return Err(unused(
                "--checkpoint",
                "must be one or builtin with spec.scaling.ordering None: there are no shards",
            ));
        }
        return Ok(Vec::new());
    }
    let strict = scaling.ordering == Ordering::Strict;
    let told = projection.spec.shard_count().or(strict.then_some(1));
    if let (Some(told), Some(given)) = (told, options.shards)
        && told != given
    {
        return Err(unused(
            "--shards",
            format!("is {given}, and the Projection tells {told}: leave it out, or set spec.scaling.shards"),
        ));
    }
    let count = told.or(options.shards).ok_or(InvalidInput::UnknownShards)?;
    if hot && count == 1 {
        return Err(unused("--hot-shard", "says nothing where there is one shard"));
    }
    if !strict {
        projection.spec.scaling.shards = crate::api::Shards::Count(count);
    }
    let usual = vec![1.0; usize::try_from(count).unwrap_or(1)];
    Ok([options.hot_shard].into_iter().chain(usual.into_iter().skip(1)).collect())
}

/// Simulates, by the operator's own autoscaler or by the one that is given.
///
/// # Errors
/// With the field's name, when the Projection cannot be carried out; with the option's, when it would not be used.
pub fn simulate(
    mut projection: Projection,
    given: Option<&AutoscalerFile>,
    trace: Trace,
    options: &Options,
) -> Result<Run, InvalidInput> {
    let server = ServerAbilities::of_version(&options.kubernetes.0.to_string(), &options.kubernetes.1.to_string());
    let own_tolerance = projection.spec.scaling.behavior.clone().map(AutoscalerFile::Behavior);
    if !server.autoscaler_tolerance && given.or(own_tolerance.as_ref()).is_some_and(AutoscalerFile::has_tolerance) {
        return Err(unused(
            "--kubernetes",
            "below 1.35 drops the tolerance that the behavior has: take it out, or give a later version",
        ));
    }
    if let Some(AutoscalerFile::Behavior(behavior)) = given {
        projection.spec.scaling.behavior = Some(behavior.clone());
    }
    let whole = match given {
        Some(AutoscalerFile::Whole(whole)) => {
            if options.scale_out == Some(ScaleOut::Immediate) {
                return Err(unused(
                    "--scale-out",
                    "Immediate is the operator's beside its own autoscaler: leave it out, or give --hpa the behavior alone",
                ));
            }
            let name = projection.metadata.name.as_deref().unwrap_or_default();
            Some(GivenAutoscaler::of(whole, name).map_err(InvalidInput::Autoscaler)?)
        }
        _ => None,
    };
    if let Some(scale_out) = options.scale_out {
        projection.spec.scaling.scale_out = scale_out;
    }
    if options.worker_rate.is_some() && trace.tells_worker_rate() {
        return Err(unused("--worker-rate", "would not be used: the trace tells worker_events_per_second"));
    }
    let shards = shards(&mut projection, options)?;
    let target = projection.spec.lag.target.0;
    let usual_sampling = (target / 10).clamp(Duration::from_millis(500), Duration::from_secs(5));
    let least = projection.spec.scaling.min_workers;
    let plan = Scenario {
        backlog: Backlog { events: as_float(options.backlog), age: options.backlog_age },
        shards,
        per_worker: options.worker_rate.unwrap_or(USUAL_WORKER_RATE),
        start_up: options.start_up,
        kind: options.kind,
        workers: options.workers.map_or(least, |workers| i32::try_from(workers).unwrap_or(i32::MAX)),
        sampling: options.sampling.unwrap_or(usual_sampling),
        sync_period: options.sync_period,
        phase: options.phase,
        ..Scenario::new(trace, target)
    };
    let mut policy = ModelPolicy::on(&projection, options.learnt_rate, server)?;
    if let Some(given) = whole {
        policy = policy.scaled_by(given);
    }
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
