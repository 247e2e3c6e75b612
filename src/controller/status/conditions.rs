//! The conditions of a Projection: what is well, what is not, and why, with a reason for machines and a message for people. Pure.
//!
//! A transition time changes only with the status.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::{
    condition_state::{ConditionState, duration, fails, holds, remarkable, unknown},
    held_back::held_back,
    read_store,
    runs::promoted,
    trouble::Trouble,
};
use crate::{
    api::{ConditionStatus, ConditionType, HumanDuration, ProjectionStatus, Reason},
    controller::{
        known::{Known, WorkloadView, none_required, target_words, within_target},
        live::WorkerCounts,
    },
    lag::{Cadence, FailedEvent, Note, PassedOver, RetentionRisk, Rewound},
    measure::MeasureError,
    names,
    platform::registration::Unserved,
    snapshot::Measured,
};

/// All of them, in the order of [`ConditionType::ALL`]; the last only where there are runs.
pub(super) fn conditions(known: &Known<'_>, previous: &ProjectionStatus, now: Timestamp) -> Vec<Condition> {
    let without_workers = read_from_workers_that_do_not_run(known);
    let known = &match &without_workers {
        Some(why) => Known {
            measured: known.measured.as_ref().map(|measured| *measured).map_err(|_| why.clone()),
            failure: Some(why),
            ..known.clone()
        },
        None => known.clone(),
    };
    let promoted = known.runs.as_ref().map(|view| (ConditionType::Promoted, promoted(view)));
    let all = ConditionType::ALL.into_iter().zip(verdicts(known, previous)).chain(promoted);
    let stands = read_store::said_before(known, previous);
    all.map(|(type_, condition_state)| match stands.filter(|_| type_ == ConditionType::ReadStoreReachable) {
        Some(said) => said.clone(),
        None => condition(type_, condition_state, known.generation, previous, now),
    })
    .collect()
}

/// Where the lag is read from the workers themselves and none runs, since the Projection is suspended, that it cannot be read is as it should be.
fn read_from_workers_that_do_not_run(known: &Known<'_>) -> Option<MeasureError> {
    let why = known.failure.or(known.measured.as_ref().err())?;
    let by = known.suspended.filter(|_| why.reason == Reason::NoWorkerReady)?;
    Some(MeasureError {
        reason: Reason::Suspended,
        message: format!(
            "{by}, and the lag is read from the workers' own pages: it is unknown until workers run again"
        ),
    })
}

/// In the order of [`ConditionType::ALL`].
fn verdicts(known: &Known<'_>, previous: &ProjectionStatus) -> [ConditionState; 8] {
    let reachable = reachable(known);
    let read_store = read_store::reachable(known.read_store.as_ref());
    let lag = lag_known(known);
    let within = within(known);
    let progressing = progressing(known);
    let held_back = held_back(known);
    let available = available(known);
    let ready = ready([&reachable, &lag, &progressing, &available], known, previous);
    [ready, reachable, read_store, lag, within, progressing, held_back, available]
}

fn within(known: &Known<'_>) -> ConditionState {
    let measured = match &known.measured {
        Err(why) => return unknown(why),
        Ok(measured) => measured,
    };
    if let Some(cadence) = measured.assessment.cadence.filter(|_| measured.assessment.cadence_breaks_target)
        && let Some(within) = within_target(measured, known.target).filter(|_| !measured.sample.all_held_back())
    {
        return cadence_breaks_target(cadence, within, known.target);
    }
    let (kept, broken) = target_words(measured);
    match within_target(measured, known.target) {
        Some(true) => holds(kept),
        Some(false) if measured.sample.all_held_back() => fails(
            Reason::HeldBackByTransaction,
            "the oldest event waits longer than spec.lag.target, and no worker may read it before an open transaction has ended: see the condition HeldBack",
        ),
        Some(false) => fails(Reason::BehindTarget, broken),
        None if measured.assessment.at_least.is_some() => ConditionState {
            status: ConditionStatus::Unknown,
            reason: Reason::OnlyUpperBound,
            message: measured.sample.upper_bound.as_deref().map_or_else(
                || "only an upper bound of what waits is known so far".to_owned(),
                |why| format!("what was done long ago, or asks for no work, may look as if it waited: {why}"),
            ),
        },
        None => ConditionState {
            status: ConditionStatus::Unknown,
            reason: Reason::InvalidAnswer,
            message: "the age of the oldest waiting event is not known".to_owned(),
        },
    }
}

/// Workers that commit less often than the target allows let the checkpoint fall behind it again and again, however fast they are.
fn cadence_breaks_target(cadence: Cadence, within: bool, target: Duration) -> ConditionState {
    let every = HumanDuration(Duration::from_secs((cadence.every + Duration::from_millis(500)).as_secs().max(1)));
    let commits = match cadence.events {
        Some(events) => format!("after {events:.0} events each, at the present load every {every}"),
        None => format!("every {every}"),
    };
    let message = format!(
        "workers commit {commits}, and spec.lag.target is {}: no number of workers keeps the checkpoint within it. Commit more often, or raise the target",
        HumanDuration(target)
    );
    if within { remarkable(Reason::CadenceBreaksTarget, message) } else { fails(Reason::CadenceBreaksTarget, message) }
}

/// These say that an answer came, though not a usable one.
fn is_an_answer(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::NeverCommitted | Reason::CheckpointBeyondHead | Reason::CheckpointRewound | Reason::InvalidAnswer
    )
}

fn reachable(known: &Known<'_>) -> ConditionState {
    let why = known.failure.or(known.measured.as_ref().err());
    match why {
        None if known.measured.as_ref().is_ok_and(|measured| measured.sample.notes.contains(&Note::PooledConnection)) => remarkable(
            Reason::PooledConnection,
            "the event source and the read store answer. The event source is reached through a connection pooler: notifyChannel cannot be listened to, so that new events are seen at the next poll, and workers of the built-in projector refuse to work. Name the server itself in the Secret".to_owned(),
        ),
        None => holds("the event source and the read store answer"),
        Some(why) if is_an_answer(why.reason) => holds("the event source and the read store answer"),
        Some(why) if matches!(why.reason, Reason::NotMeasuredYet | Reason::SampleTooOld | Reason::Suspended) => unknown(why),
        Some(why) => fails(why.reason, &why.message),
    }
}

fn lag_known(known: &Known<'_>) -> ConditionState {
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
    // The lag is known all the same, so these are not failures; they are reported, and an Event is published.
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
    if let Some(why) = &measured.sample.upper_bound {
        return remarkable(Reason::OnlyUpperBound, format!("pending events are only an upper bound: {why}"));
    }
    for note in &measured.sample.notes {
        if let Note::Estimated(why) = note {
            return remarkable(Reason::Estimated, why.to_string());
        }
    }
    holds(assessment.value.map_or("pending events and staleness are measured", |_| "the value is measured"))
}

fn progressing(known: &Known<'_>) -> ConditionState {
    let measured = match &known.measured {
        Err(why) => return unknown(why),
        Ok(measured) => measured,
    };
    if let Some(message) = passed_over(&measured.sample.faults.passed_over) {
        return fails(Reason::EventsPassedOver, message);
    }
    if measured.sample.faults.deleted > 0 {
        return fails(
            Reason::RetentionRisk,
            format!(
                "the source has deleted {} events before they were handled: raise its retention, handle them from another copy or rebuild the read model",
                measured.sample.faults.deleted
            ),
        );
    }
    if let Some(failed) = measured.sample.faults.failed.first().filter(|_| known.suspended.is_none()) {
        return fails(Reason::EventFailed, failed_event(failed, measured.sample.faults.failed.len()));
    }
    if measured.assessment.stuck && known.suspended.is_none() {
        let at = measured.sample.checkpoint_text().map_or_else(String::new, |position| format!(" at {position}"));
        let lock = read_store::lock_wait(known);
        let noted = undelivered(known, measured).map(|(_, why)| why).or(lock.as_deref());
        let why = known.trouble.as_ref().map(|trouble| &*trouble.sentence).or(noted).unwrap_or("see the workers' logs");
        return fails(
            Reason::CheckpointFrozen,
            format!("events wait, but the checkpoint has not moved{at} for long: {why}"),
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
    // The checkpoint moves, or is not known to stand still, so these are not failures; they are reported, and an Event is published.
    if let Some((reason, why)) = undelivered(known, measured) {
        return remarkable(reason, why.to_owned());
    }
    if measured.sample.parked.is_some_and(|parked| parked > 0) {
        return remarkable(
            Reason::EventsParked,
            "events were set aside after failing (status.parked says how many), and are not handled before they are returned: see why they fail, correct that, and return them".to_owned(),
        );
    }
    for note in &measured.sample.notes {
        if let Note::ParkedUnknown(why) = note {
            return remarkable(Reason::ParkedUnknown, why.to_string());
        }
    }
    for note in &measured.sample.notes {
        if let Note::HandlerNeverCalled(why) = note {
            return remarkable(Reason::HandlerNeverCalled, why.to_string());
        }
    }
    if measured.sample.all_held_back() {
        return holds("what waits may not be read yet: see the condition HeldBack");
    }
    holds("the checkpoint moves, or nothing waits")
}

/// Why the source gives workers no events although some wait, if it does not.
fn undelivered<'a>(known: &Known<'_>, measured: &'a Measured) -> Option<(Reason, &'a str)> {
    // A source has no consumer as long as no worker runs.
    let consumers_expected = known.suspended.is_none()
        && match known.workload {
            WorkloadView::NotWanted => true,
            WorkloadView::Absent => false,
            WorkloadView::Present(counts) => counts.ready > 0,
        };
    measured.sample.notes.iter().find_map(|note| match note {
        Note::DeliveryStopped(why) => Some((Reason::DeliveryStopped, &**why)),
        Note::HeldByIdleConsumer(why) => Some((Reason::HeldByIdleConsumer, &**why)),
        Note::NoConsumer(why) if consumers_expected => Some((Reason::NoConsumer, &**why)),
        Note::NoConsumer(_)
        | Note::ParkedUnknown(_)
        | Note::HandlerNeverCalled(_)
        | Note::PooledConnection
        | Note::Estimated(_) => None,
    })
}

fn failed_event(FailedEvent { shard, part, position, why }: &FailedEvent, count: usize) -> String {
    let others = if count > 1 { "; other shards wait as well" } else { "" };
    match (part, position) {
        // What the worker says names the event by its offset, or the message.
        (Some(part), _) => format!("partition {part} waits: {why}{others}"),
        (None, Some(position)) => format!("shard {shard} waits before the event at position {position}: {why}{others}"),
        (None, None) if count > 1 => format!("{why}. There are others"),
        (None, None) => why.clone(),
    }
}

/// The most positions that a message names.
const NAMED_POSITIONS: usize = 10;

fn passed_over(PassedOver { positions, more }: &PassedOver) -> Option<String> {
    if positions.is_empty() {
        return None;
    }
    let named: Vec<String> = positions.iter().take(NAMED_POSITIONS).map(ToString::to_string).collect();
    let unnamed = more.saturating_add(u64::try_from(positions.len() - named.len()).unwrap_or(u64::MAX));
    let and_more = if unnamed > 0 { format!(" and {unnamed} more") } else { String::new() };
    Some(format!(
        "events appeared at positions {}{and_more} after the checkpoint had passed them, so that they may not be handled: look whether the read model has them, handle them by hand or rebuild the read model, and see that each event draws its position from one sequence in the transaction that appends it",
        named.join(", ")
    ))
}

fn available(known: &Known<'_>) -> ConditionState {
    if let Some(by) = known.suspended.filter(|_| known.workload != WorkloadView::NotWanted) {
        return remarkable(Reason::Suspended, format!("{by}: no worker is wanted"));
    }
    match known.workload {
        WorkloadView::NotWanted => {
            remarkable(Reason::MeasureOnly, "there is no spec.projector: the Projection is only measured".to_owned())
        }
        WorkloadView::Absent => match &known.problem {
            Some(problem) => fails(problem.reason, &problem.message),
            None => fails(Reason::NoWorkerReady, "the workload does not exist yet"),
        },
        WorkloadView::Present(WorkerCounts { ready: 1.., .. }) => match known.trouble.as_ref() {
            Some(Trouble { sentence, serious: true, .. }) => {
                holds(&format!("at least one worker is ready, but {sentence}"))
            }
            _ => holds("at least one worker is ready"),
        },
        // Workers that are scaled to 0 stay so while the lag is unknown: there is no known work.
        WorkloadView::Present(WorkerCounts { desired: Some(0), .. }) if none_required(known) != Some(false) => {
            remarkable(Reason::Idle, "nothing waits, so that no worker runs: the first event wakes them".to_owned())
        }
        WorkloadView::Present(counts) => no_worker_ready(counts, known),
    }
}

fn no_worker_ready(counts: WorkerCounts, known: &Known<'_>) -> ConditionState {
    if let Some(Trouble { reason, sentence, serious }) = &known.trouble {
        let reason = if *serious { *reason } else { Reason::NoWorkerReady };
        return fails(reason, format!("no worker is ready: {sentence}"));
    }
    match (&known.rollout, counts.desired, known.starting) {
        (Some((reason @ (Reason::RolloutPaused | Reason::RolloutStalled), sentence)), ..) => {
            fails(*reason, format!("no worker is ready: {sentence}"))
        }
        (_, Some(0), _) => fails(Reason::NoWorkerReady, "the workload is asked for 0 workers, though work waits"),
        (_, _, Some(0)) => fails(Reason::NoWorkerReady, "no worker is ready: the workload has no pods yet"),
        (_, _, Some(1..)) => fails(Reason::NoWorkerReady, "no worker is ready yet: they start"),
        (_, _, None) => fails(Reason::NoWorkerReady, "no worker is ready yet"),
    }
}

/// What is wrong with the workload though a worker may run: not the newest spec, or not as many workers as asked.
fn not_as_asked(known: &Known<'_>) -> Option<ConditionState> {
    let WorkloadView::Present(counts) = known.workload else { return None };
    let serious = known.trouble.as_ref().filter(|trouble| trouble.serious);
    match (&known.rollout, serious) {
        // Without a worker, Available says more.
        (Some((Reason::RollingOut, _)), None) if counts.ready == 0 => None,
        (Some((reason, sentence)), trouble) => {
            let told = known.trouble.as_ref().map_or_else(String::new, |trouble| format!("; {}", trouble.sentence));
            // Why a rollout does not continue is more useful than that it does not. A user who paused it knows why.
            let reason = trouble.filter(|_| *reason != Reason::RolloutPaused).map_or(*reason, |trouble| trouble.reason);
            Some(fails(reason, format!("{sentence}{told}")))
        }
        (None, Some(trouble)) => Some(fails(trouble.reason, &trouble.sentence)),
        (None, None) => None,
    }
}

fn ready(parts: [&ConditionState; 4], known: &Known<'_>, previous: &ProjectionStatus) -> ConditionState {
    if let Some(problem) = &known.problem {
        return fails(problem.reason, &problem.message);
    }
    // A transient failure is not reported, unless it keeps the newest spec from being applied.
    let said = previous.conditions.iter().find(|condition| condition.type_ == ConditionType::Ready.as_str());
    if known.unapplied && said.is_none_or(|said| said.observed_generation != known.generation) {
        return fails(Reason::RollingOut, "the newest spec is being applied");
    }
    let [reachable, ..] = parts;
    if reachable.status == ConditionStatus::False {
        return reachable.clone();
    }
    // Workers that do not run explain a checkpoint that does not move, and not the other way round.
    if let Some(bad) = not_as_asked(known).filter(|_| known.suspended.is_none()) {
        return bad;
    }
    if let Some(bad) = parts.into_iter().find(|part| part.status == ConditionStatus::False) {
        return bad.clone();
    }
    if let Some(why) = known.metrics_not_served.as_ref().filter(|_| known.suspended.is_none()) {
        return fails(Reason::MetricsNotServed, why);
    }
    let open = |part: &&ConditionState| part.status == ConditionStatus::Unknown && part.reason != Reason::Suspended;
    if let Some(open) = parts.into_iter().find(open) {
        return open.clone();
    }
    if let Some(why) = known.autoscaler_inactive.as_ref().filter(|_| known.suspended.is_none()) {
        return fails(Reason::AutoscalerInactive, why);
    }
    if let Some(by) = known.suspended {
        return remarkable(Reason::Suspended, format!("{by}: measured, without workers"));
    }
    holds("measured and running as asked")
}

/// The message for a Projection whose autoscaler the operator makes. `known` lists the APIServices that lead elsewhere; until that is known, the last
/// message stays.
pub fn metrics_not_served(known: Option<&Unserved>, previous: &ProjectionStatus) -> Option<String> {
    let Some(known) = known else {
        let said = previous.conditions.iter().find(|said| said.reason == Reason::MetricsNotServed.as_str());
        return said.map(|said| said.message.clone());
    };
    let why = known.get(names::EXTERNAL_API_SERVICE)?;
    Some(format!(
        "the HorizontalPodAutoscaler does not read this metric here: {why}; `spec.scaling.autoscaler: None` leaves scaling to another tool"
    ))
}

fn condition(
    type_: ConditionType,
    condition_state: ConditionState,
    generation: Option<i64>,
    previous: &ProjectionStatus,
    now: Timestamp,
) -> Condition {
    let ConditionState { status, reason, message } = condition_state;
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

/// The schema of a condition allows 32,768 characters; people read no more than a few hundred.
fn cut(message: String) -> String {
    const MOST: usize = 1_024;
    if message.chars().count() <= MOST { message } else { message.chars().take(MOST - 1).chain(['…']).collect() }
}
