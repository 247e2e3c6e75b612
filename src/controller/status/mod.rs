//! What is reported about a Projection: a pure function from what is known now and what was reported before.
//!
//! What is unknown is absent, never zero.

pub mod announce;
mod condition_state;
pub mod conditions;
pub mod due;
mod foreign_message;
mod held_back;
mod read_store;
#[cfg(test)]
mod read_store_tests;
pub mod report;
pub mod runs;
#[cfg(test)]
pub mod tests;
pub mod trouble;
#[cfg(test)]
mod trouble_tests;
pub mod urgency;
pub mod writer;
#[cfg(test)]
mod writer_tests;

use jiff::Timestamp;

use self::conditions::conditions;

use crate::{
    api::{
        BoundBy, CadenceStatus, HeadStatus, PassedOverStatus, PendingStatus, Phase, ProjectionStatus, RatesStatus,
        RolloutStatus, WorkersStatus,
    },
    controller::{
        known::{Known, WorkloadView, none_required, within_target},
        live::WorkerCounts,
    },
    lag::{Assessment, Cadence, Limit, PassedOver, Sample},
};

/// The status to report.
pub fn next_status(known: &Known<'_>, previous: &ProjectionStatus, now: Timestamp) -> ProjectionStatus {
    let assessment = known.measured.as_ref().ok().map(|measured| &measured.assessment);
    let sample = known.measured.as_ref().ok().map(|measured| &measured.sample);
    let kept_rate = previous.rates.and_then(|rates| rates.per_worker_per_second);
    let rates = RatesStatus {
        arrival_per_second: assessment.and_then(|all| all.rates.arrival).map(|rate| significant(rate, 2)),
        // What was learnt is kept through an outage and a restart.
        per_worker_per_second: assessment.and_then(|all| all.rates.per_worker).and_then(slow_or_fast).or(kept_rate),
        drain_seconds: assessment.and_then(|all| all.drain).map(|drain| significant(drain.as_secs_f64(), 2)),
    };
    let status = ProjectionStatus {
        observed_generation: known.generation,
        version: known.version.clone(),
        phase: Some(phase(known, previous)),
        suspended: suspended(known, previous),
        head: sample.and_then(Sample::head_text).map(|(raw, safe)| HeadStatus { raw, safe }),
        checkpoint: sample.and_then(Sample::checkpoint_text),
        value: assessment.and_then(|all| all.value).map(|value| short(value.value)),
        pending: assessment.and_then(Assessment::counted).map(|pending| PendingStatus {
            value: i64::try_from(pending.events).unwrap_or(i64::MAX),
            held_back: sample.map_or(0, |sample| i64::try_from(sample.held_back).unwrap_or(i64::MAX)),
            exact: pending.exact,
            reason: sample.and_then(|sample| sample.upper_bound.as_deref()).map(str::to_owned),
        }),
        parked: sample.and_then(|sample| sample.parked).map(|parked| i64::try_from(parked).unwrap_or(i64::MAX)),
        staleness_seconds: assessment
            .and_then(|all| all.staleness)
            .map(|age| (age.as_secs_f64() * 10.0).round() / 10.0),
        workers: Some(workers(known)),
        rates: (rates != RatesStatus::default()).then_some(rates),
        // What was learnt is kept through an outage and a restart.
        cadence: match assessment {
            Some(assessment) => assessment.cadence.map(cadence),
            None => previous.cadence,
        },
        // The events that were passed over are kept through them, too.
        passed_over: match sample {
            Some(sample) => passed_over(&sample.faults.passed_over, &known.event_table),
            None => previous.passed_over.clone(),
        },
        read_store: match &known.read_store {
            Some(_) if read_store::said_before(known, previous).is_some() => previous.read_store.clone(),
            store => store.as_ref().map(|store| store.status.clone()),
        },
        runs: Vec::new(),
        rollout: known
            .runs
            .as_ref()
            .map(|view| view.remember.clone())
            .filter(|rollout| *rollout != RolloutStatus::default()),
        conditions: conditions(known, previous, now),
    };
    match &known.runs {
        Some(view) => ProjectionStatus { runs: runs::runs(view, &status, known), ..status },
        None => status,
    }
}

fn passed_over(PassedOver { positions, more }: &PassedOver, event_table: &str) -> Option<PassedOverStatus> {
    (!positions.is_empty()).then(|| PassedOverStatus {
        event_table: event_table.to_owned(),
        positions: positions.iter().map(ToString::to_string).collect(),
        more: i64::try_from(*more).unwrap_or(i64::MAX),
    })
}

fn cadence(cadence: Cadence) -> CadenceStatus {
    // No count of events comes near the largest `i64`.
    #[allow(clippy::cast_possible_truncation)]
    let events = cadence.events.map(|events| significant(events, 3) as i64);
    CadenceStatus { seconds: significant(cadence.every.as_secs_f64(), 2), events }
}

/// The part of the status about the workers.
pub fn workers(known: &Known<'_>) -> WorkersStatus {
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
            Limit::LiveVersion => BoundBy::LiveVersion,
        }),
        rolling: counts.is_some_and(|counts| counts.rolling || known.rollout.is_some()),
        reason: required.map(|required| required.reason.clone()),
    }
}

/// Whether the workers are removed, or about to be, because it is suspended. Stays true until the workers have been brought back: a crash in
/// between must not lose it, and neither must another phase in the meantime.
fn suspended(known: &Known<'_>, previous: &ProjectionStatus) -> bool {
    known.suspended.is_some() || (previous.suspended && !known.resumed)
}

fn phase(known: &Known<'_>, previous: &ProjectionStatus) -> Phase {
    if known.problem.as_ref().is_some_and(|problem| problem.lasting) {
        return Phase::Failed;
    }
    let asleep = matches!(known.workload, WorkloadView::Present(WorkerCounts { desired: Some(0), .. }));
    let none_required = none_required(known) == Some(true);
    // A Projection stays suspended until its workers are back.
    if suspended(known, previous) {
        return Phase::Suspended;
    }
    if known.workload == WorkloadView::Absent {
        return Phase::Pending;
    }
    match &known.measured {
        Ok(measured) if measured.assessment.stuck || !measured.sample.faults.failed.is_empty() => Phase::Stuck,
        // There is no worker, and none is required.
        Ok(_) if asleep && none_required => Phase::Idle,
        Ok(measured) if within_target(measured, known.target) == Some(false) => Phase::CatchingUp,
        Ok(_) => Phase::Live,
        // The workers continue unchanged, so the last phase that describes them stays. The condition LagKnown says that the lag is not measured now.
        Err(_) => match previous.phase {
            Some(last @ (Phase::CatchingUp | Phase::Live | Phase::Idle | Phase::Stuck)) => last,
            _ => Phase::Pending,
        },
    }
}

/// Rounds to this many significant digits, and at the finest to tenths, so that noise does not count as a change.
fn significant(value: f64, digits: i32) -> f64 {
    if value < 0.05 || !value.is_finite() {
        return 0.0;
    }
    let scale = 10_f64.powi(digits - 1 - whole_digits(value)).min(10.0);
    (value * scale).round() / scale
}

/// Rounds to three significant digits, whatever the size and the sign.
fn short(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return 0.0;
    }
    let scale = 10_f64.powi(2 - whole_digits(value.abs()));
    let rounded = (value * scale).round() / scale;
    if rounded.is_finite() { rounded } else { value }
}

/// Rounds a worker's rate in events per second to three significant digits, however small it is: a worker that takes minutes for an event has a rate,
/// too.
fn slow_or_fast(rate: f64) -> Option<f64> {
    if !(rate.is_finite() && rate > 0.0) {
        return None;
    }
    let scale = 10_f64.powi(2 - whole_digits(rate));
    let rounded = (rate * scale).round() / scale;
    (rounded.is_finite() && rounded > 0.0).then_some(rounded)
}

/// The power of ten of the first digit.
#[allow(clippy::cast_possible_truncation)] // At most 308.
fn whole_digits(value: f64) -> i32 {
    value.log10().floor() as i32
}
