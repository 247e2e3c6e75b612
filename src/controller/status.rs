//! What is reported about a Projection: a pure function from what is known now and what was reported before.
//!
//! A transition time changes only with the condition's status. What is unknown is absent, never zero.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::live::WorkerCounts;
use crate::{
    api::{
        BoundBy, ConditionStatus, ConditionType, HeadStatus, PendingStatus, Phase, ProjectionStatus, RatesStatus,
        Reason, WorkersStatus,
    },
    lag::{Limit, RetentionRisk, Rewound},
    names,
    registration::Unserved,
    snapshot::{Measured, Unknown},
};

/// Why the Projection does not run as asked, as far as the cluster is concerned.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Problem {
    /// For machines.
    pub reason: Reason,
    /// For people.
    pub message: String,
    /// It will not go away by itself.
    pub lasting: bool,
}

/// The workload that runs the workers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum WorkloadView {
    /// None is wanted: the Projection is only measured.
    NotWanted,
    /// It does not exist (yet).
    Absent,
    /// It exists.
    Present(WorkerCounts),
}

/// What is known now.
#[derive(Clone, Debug)]
pub struct Known<'a> {
    /// The spec's generation.
    pub generation: Option<i64>,
    /// `spec.suspend`.
    pub suspended: bool,
    /// `spec.lag.target`.
    pub target: Duration,
    /// The workload.
    pub workload: WorkloadView,
    /// What went wrong in validating or applying.
    pub problem: Option<Problem>,
    /// The measurement to act on, or why there is none.
    pub measured: Result<&'a Measured, Unknown>,
    /// Why the newest attempt to measure failed, if it did.
    pub failure: Option<&'a Unknown>,
    /// Why the autoscaler that the operator makes cannot read the operator's metrics, if it cannot.
    pub metrics_not_served: Option<String>,
    /// Why the autoscaler does not scale, in its own words.
    pub autoscaler_inactive: Option<&'a str>,
}

/// The status to report.
pub fn next_status(known: &Known<'_>, previous: &ProjectionStatus, now: Timestamp) -> ProjectionStatus {
    let assessment = known.measured.as_ref().ok().map(|measured| &measured.assessment);
    let sample = known.measured.as_ref().ok().map(|measured| &measured.sample);
    let verdicts = verdicts(known);
    let kept_rate = previous.rates.and_then(|rates| rates.per_worker_per_second);
    let rates = RatesStatus {
        arrival_per_second: assessment.and_then(|all| all.rates.arrival).map(|rate| significant(rate, 2)),
        // What was learnt outlives an outage and a restart.
        per_worker_per_second: assessment
            .and_then(|all| all.rates.per_worker)
            .map(|rate| significant(rate, 3))
            .or(kept_rate),
        drain_seconds: assessment.and_then(|all| all.drain).map(|drain| significant(drain.as_secs_f64(), 2)),
    };
    ProjectionStatus {
        observed_generation: known.generation,
        phase: Some(phase(known, previous)),
        head: sample.map(|sample| HeadStatus { raw: sample.head.raw.to_string(), safe: sample.head.safe.to_string() }),
        checkpoint: sample.and_then(|sample| sample.checkpoint.lowest()).map(|position| position.to_string()),
        pending: assessment.map(|all| PendingStatus {
            value: i64::try_from(all.pending.events).unwrap_or(i64::MAX),
            exact: all.pending.exact,
        }),
        staleness_seconds: assessment
            .and_then(|all| all.staleness)
            .map(|age| (age.as_secs_f64() * 10.0).round() / 10.0),
        workers: Some(workers(known)),
        rates: (rates != RatesStatus::default()).then_some(rates),
        conditions: ConditionType::ALL
            .into_iter()
            .zip(verdicts)
            .map(|(type_, verdict)| condition(type_, verdict, known.generation, previous, now))
            .collect(),
    }
}

fn workers(known: &Known<'_>) -> WorkersStatus {
    let required = known.measured.as_ref().ok().map(|measured| &measured.assessment.required);
    let counts = match known.workload {
        WorkloadView::Present(counts) => Some(counts),
        WorkloadView::NotWanted | WorkloadView::Absent => None,
    };
    let number = required.map(|required| i32::try_from(required.workers).unwrap_or(i32::MAX));
    let ready = counts.map(|counts| counts.ready);
    let shown = |number: Option<i32>| number.map_or_else(|| "?".to_owned(), |number| number.to_string());
    WorkersStatus {
        required: number,
        desired: counts.and_then(|counts| counts.desired),
        ready,
        summary: (ready.is_some() || number.is_some()).then(|| match known.workload {
            WorkloadView::NotWanted => format!("-/{}", shown(number)),
            _ => format!("{}/{}", shown(ready), shown(number)),
        }),
        bound_by: required.map_or(BoundBy::None, |required| match required.limit {
            Limit::None => BoundBy::None,
            Limit::Shards => BoundBy::Shards,
            Limit::Max => BoundBy::Max,
            Limit::Min => BoundBy::Min,
            Limit::Ordering => BoundBy::Ordering,
            Limit::Connections => BoundBy::Connections,
            Limit::HottestShard => BoundBy::HottestShard,
            Limit::ReadStore => BoundBy::ReadStore,
        }),
        rolling: counts.is_some_and(|counts| counts.rolling),
        reason: required.map(|required| required.reason.clone()),
    }
}

fn phase(known: &Known<'_>, previous: &ProjectionStatus) -> Phase {
    if known.problem.as_ref().is_some_and(|problem| problem.lasting) {
        return Phase::Failed;
    }
    let asleep = matches!(known.workload, WorkloadView::Present(WorkerCounts { desired: Some(0), .. }));
    let none_required = none_required(known) == Some(true);
    // Until the workers are back, or none is required, it is still switched off; resuming reads this, so that a crash in between loses nothing.
    if known.suspended || (previous.phase == Some(Phase::Suspended) && asleep && !none_required) {
        return Phase::Suspended;
    }
    if known.workload == WorkloadView::Absent {
        return Phase::Pending;
    }
    match &known.measured {
        Ok(measured) if measured.assessment.stuck => Phase::Stuck,
        // No worker, and none required: sleeping is all there is to do.
        Ok(_) if asleep && none_required => Phase::Idle,
        Ok(measured) if within_target(measured, known.target) == Some(false) => Phase::CatchingUp,
        Ok(_) => Phase::Live,
        // Workers go on as they are: so does the last word about them. LagKnown says that it is not measured now.
        Err(_) => match previous.phase {
            Some(last @ (Phase::CatchingUp | Phase::Live | Phase::Idle | Phase::Stuck)) => last,
            _ => Phase::Pending,
        },
    }
}

/// No worker is needed; absent where that is not known.
fn none_required(known: &Known<'_>) -> Option<bool> {
    known.measured.as_ref().ok().map(|measured| measured.assessment.required.workers == 0)
}

fn within_target(measured: &Measured, target: Duration) -> Option<bool> {
    measured.assessment.staleness.map(|staleness| staleness <= target)
}

/// A condition before its times are known.
#[derive(Clone, Debug)]
struct Verdict {
    status: ConditionStatus,
    reason: Reason,
    message: String,
}

fn holds(message: &str) -> Verdict {
    Verdict { status: ConditionStatus::True, reason: Reason::AsExpected, message: message.to_owned() }
}

/// It holds, but somebody should look.
fn remarkable(reason: Reason, message: String) -> Verdict {
    Verdict { status: ConditionStatus::True, reason, message }
}

fn fails(reason: Reason, message: impl Into<String>) -> Verdict {
    Verdict { status: ConditionStatus::False, reason, message: message.into() }
}

fn unknown(unknown: &Unknown) -> Verdict {
    Verdict { status: ConditionStatus::Unknown, reason: unknown.reason, message: unknown.message.clone() }
}

/// In the order of [`ConditionType::ALL`].
fn verdicts(known: &Known<'_>) -> [Verdict; 6] {
    let reachable = reachable(known);
    let lag = lag_known(known);
    let within = match &known.measured {
        Err(why) => unknown(why),
        Ok(measured) => match within_target(measured, known.target) {
            Some(true) => holds("no event waits longer than spec.lag.target"),
            Some(false) => fails(Reason::BehindTarget, "the oldest event waits longer than spec.lag.target"),
            None => Verdict {
                status: ConditionStatus::Unknown,
                reason: Reason::InvalidAnswer,
                message: "the age of the oldest waiting event is not known".to_owned(),
            },
        },
    };
    let progressing = progressing(known);
    let available = available(known);
    let ready = ready([&reachable, &lag, &progressing, &available], known);
    [ready, reachable, lag, within, progressing, available]
}

/// These say that an answer came, though not a usable one.
fn is_an_answer(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::NeverCommitted | Reason::CheckpointBeyondHead | Reason::CheckpointRewound | Reason::InvalidAnswer
    )
}

fn reachable(known: &Known<'_>) -> Verdict {
    let why = known.failure.or(known.measured.as_ref().err());
    match why {
        None => holds("the event source and the read store answer"),
        Some(why) if is_an_answer(why.reason) => holds("the event source and the read store answer"),
        Some(why) if matches!(why.reason, Reason::NotMeasuredYet | Reason::SampleTooOld) => unknown(why),
        Some(why) => fails(why.reason, &why.message),
    }
}

fn lag_known(known: &Known<'_>) -> Verdict {
    let measured = match &known.measured {
        Ok(measured) => measured,
        Err(why) if is_an_answer(why.reason) => return fails(why.reason, &why.message),
        Err(why) => return unknown(why),
    };
    let assessment = &measured.assessment;
    if let Some(Rewound { from, to, contested }) = assessment.rewound {
        return if contested {
            fails(
                Reason::CheckpointContested,
                format!(
                    "the checkpoint goes back and forth, last from {from} to {to}: more than one projector commits to it"
                ),
            )
        } else {
            fails(
                Reason::CheckpointRewound,
                format!(
                    "the checkpoint went back from {from} to {to}: events are handled again, or two projectors share it"
                ),
            )
        };
    }
    // Lag is known all the same, so these are no failure; they are said, and an Event is published.
    if let Some(ahead) = assessment.ahead_of_clock {
        return remarkable(
            Reason::EventTimeInFuture,
            format!(
                "events are dated up to {} s after the source's own clock: staleness counts from when they were first seen here",
                ahead.as_secs()
            ),
        );
    }
    if let Some(jump) = assessment.jump {
        return remarkable(
            Reason::HeadJumped,
            format!(
                "{} events came within {} s, a thousand times what is usual: an import, or a source that tells too much",
                jump.arrived,
                jump.within.as_secs().max(1)
            ),
        );
    }
    holds("pending events and staleness are measured")
}

fn progressing(known: &Known<'_>) -> Verdict {
    let measured = match &known.measured {
        Err(why) => return unknown(why),
        Ok(measured) => measured,
    };
    if measured.assessment.stuck && !known.suspended {
        let at = measured.sample.checkpoint.lowest().map_or_else(String::new, |position| format!(" at {position}"));
        return fails(
            Reason::CheckpointFrozen,
            format!("events wait, but the checkpoint has not moved{at} for long: see the workers' logs"),
        );
    }
    if let Some(RetentionRisk { lost_in, drained_in }) = measured.assessment.retention_risk {
        let drained = drained_in.map_or_else(
            || "the backlog does not shrink".to_owned(),
            |time| format!("the backlog takes {}", duration(time)),
        );
        return fails(
            Reason::RetentionRisk,
            format!("the source deletes the oldest event that waits in {}, and {drained}", duration(lost_in)),
        );
    }
    holds("the checkpoint moves, or nothing waits")
}

/// Coarse, so that the message does not change with each sample.
fn duration(time: Duration) -> String {
    let minutes = time.as_secs() / 60;
    match minutes {
        0 => "less than a minute".to_owned(),
        1..120 => format!("{minutes} min"),
        _ => format!("{} h", minutes / 60),
    }
}

fn available(known: &Known<'_>) -> Verdict {
    match known.workload {
        WorkloadView::NotWanted => Verdict {
            status: ConditionStatus::True,
            reason: Reason::MeasureOnly,
            message: "there is no spec.projector: the Projection is only measured".to_owned(),
        },
        _ if known.suspended => Verdict {
            status: ConditionStatus::True,
            reason: Reason::Suspended,
            message: "spec.suspend is set: no worker is wanted".to_owned(),
        },
        WorkloadView::Absent => match &known.problem {
            Some(problem) => fails(problem.reason, &problem.message),
            None => fails(Reason::NoWorkerReady, "the workload does not exist yet"),
        },
        WorkloadView::Present(WorkerCounts { ready: 1.., .. }) => holds("at least one worker is ready"),
        // Asleep. What cannot be measured sleeps on: nobody knows of any work.
        WorkloadView::Present(WorkerCounts { desired: Some(0), .. }) if none_required(known) != Some(false) => {
            Verdict {
                status: ConditionStatus::True,
                reason: Reason::Idle,
                message: "nothing waits, so that no worker runs: the first event wakes them".to_owned(),
            }
        }
        WorkloadView::Present(_) => {
            fails(Reason::NoWorkerReady, "no worker is ready: see the workload's pods and their events")
        }
    }
}

fn ready(parts: [&Verdict; 4], known: &Known<'_>) -> Verdict {
    if let Some(problem) = &known.problem {
        return fails(problem.reason, &problem.message);
    }
    if let Some(bad) = parts.into_iter().find(|part| part.status == ConditionStatus::False) {
        return bad.clone();
    }
    if let Some(why) = known.metrics_not_served.as_ref().filter(|_| !known.suspended) {
        return fails(Reason::MetricsNotServed, why);
    }
    if let Some(open) = parts.into_iter().find(|part| part.status == ConditionStatus::Unknown) {
        return open.clone();
    }
    if let Some(why) = known.autoscaler_inactive.filter(|_| !known.suspended) {
        return fails(Reason::AutoscalerInactive, format!("the HorizontalPodAutoscaler does not scale: {why}"));
    }
    if known.suspended {
        return Verdict {
            status: ConditionStatus::True,
            reason: Reason::Suspended,
            message: "spec.suspend is set: measured, without workers".to_owned(),
        };
    }
    holds("measured and running as asked")
}

/// What to say of a Projection whose autoscaler the operator makes. `known` is where its metrics lead elsewhere; until that is known at all,
/// what was said before still stands.
pub fn metrics_not_served(known: Option<&Unserved>, previous: &ProjectionStatus) -> Option<String> {
    let Some(known) = known else {
        let said = previous.conditions.iter().find(|said| said.reason == Reason::MetricsNotServed.as_str());
        return said.map(|said| said.message.clone());
    };
    let why = known.get(names::EXTERNAL_API_SERVICE)?;
    Some(format!(
        "the HorizontalPodAutoscaler does not read this metric here: {why}; `spec.scaling.autoscaler: None` leaves scaling to somebody else"
    ))
}

fn condition(
    type_: ConditionType,
    verdict: Verdict,
    generation: Option<i64>,
    previous: &ProjectionStatus,
    now: Timestamp,
) -> Condition {
    let Verdict { status, reason, message } = verdict;
    let before = previous.conditions.iter().find(|condition| condition.type_ == type_.as_str());
    let since =
        before.filter(|before| before.status == status.as_str()).map(|before| before.last_transition_time.clone());
    Condition {
        type_: type_.as_str().to_owned(),
        status: status.as_str().to_owned(),
        reason: reason.as_str().to_owned(),
        message: cut(message),
        observed_generation: generation,
        // The API server keeps whole seconds: finer ones would look like a difference for ever.
        last_transition_time: since.unwrap_or_else(|| Time(Timestamp::from_second(now.as_second()).unwrap_or(now))),
    }
}

/// The schema of a condition allows 32,768 characters; nobody reads more than a few hundred.
fn cut(message: String) -> String {
    const MOST: usize = 1_024;
    if message.chars().count() <= MOST { message } else { message.chars().take(MOST - 1).chain(['…']).collect() }
}

/// Rounds to so many significant digits, so that noise is no change; to tenths at the finest.
fn significant(value: f64, digits: i32) -> f64 {
    if value < 0.05 || !value.is_finite() {
        return 0.0;
    }
    let scale = 10_f64.powi(digits - 1 - whole_digits(value)).min(10.0);
    (value * scale).round() / scale
}

/// The power of ten of the first digit.
#[allow(clippy::cast_possible_truncation)] // At most 308.
fn whole_digits(value: f64) -> i32 {
    value.log10().floor() as i32
}

/// How soon a new status is to be written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Urgency {
    /// Not at all: nothing changed.
    Never,
    /// Some time soon: only measured numbers changed.
    Soon,
    /// Now: something that people or the sampler act on changed.
    Now,
}

/// Measured numbers of one Projection are written no more often than this.
const NUMBERS_EVERY: Duration = Duration::from_secs(10);
/// And those of all Projections together no more often than so many a second, so that a thousand busy ones leave the API server alone.
const NUMBERS_A_SECOND: u32 = 20;
/// A number that follows from time alone is written again when it differs by this part.
const WORTH_TELLING: f64 = 0.25;

/// Time between two writes of one Projection's numbers, among so many.
pub fn numbers_every(projections: usize) -> Duration {
    let projections = u32::try_from(projections).unwrap_or(u32::MAX);
    NUMBERS_EVERY.max(Duration::from_secs(1) * projections / NUMBERS_A_SECOND)
}

/// Compares what is reported with what was.
pub fn urgency(before: &ProjectionStatus, after: &ProjectionStatus) -> Urgency {
    if *before == with_small_differences_of(after, before) {
        return Urgency::Never;
    }
    let acted_on = |status: &ProjectionStatus| {
        let conditions: Vec<_> = status
            .conditions
            .iter()
            .map(|condition| (condition.type_.clone(), condition.status.clone(), condition.reason.clone()))
            .collect();
        let workers = status.workers.clone().map(|workers| WorkersStatus { reason: None, ..workers });
        (status.observed_generation, status.phase, workers, status.pending.is_some(), conditions)
    };
    if acted_on(before) == acted_on(after) { Urgency::Soon } else { Urgency::Now }
}

/// `after`, with those numbers of `before` that grow or fade while nothing happens, where they have hardly changed: the age of an event that
/// waits grows all the time, and is nothing new.
fn with_small_differences_of(after: &ProjectionStatus, before: &ProjectionStatus) -> ProjectionStatus {
    let kept = |after: Option<f64>, before: Option<f64>| match (after, before) {
        (Some(now), Some(then)) if (now - then).abs() <= WORTH_TELLING * then.abs().max(1.0) => before,
        _ => after,
    };
    let rates = |status: &ProjectionStatus| status.rates.unwrap_or_default();
    let (rates_now, rates_then) = (rates(after), rates(before));
    let rates = RatesStatus {
        arrival_per_second: kept(rates_now.arrival_per_second, rates_then.arrival_per_second),
        per_worker_per_second: kept(rates_now.per_worker_per_second, rates_then.per_worker_per_second),
        drain_seconds: kept(rates_now.drain_seconds, rates_then.drain_seconds),
    };
    let reason = before.workers.as_ref().and_then(|workers| workers.reason.clone());
    ProjectionStatus {
        staleness_seconds: kept(after.staleness_seconds, before.staleness_seconds),
        rates: after.rates.map(|_| rates),
        // It repeats numbers.
        workers: after.workers.clone().map(|workers| WorkersStatus { reason: workers.reason.and(reason), ..workers }),
        ..after.clone()
    }
}
