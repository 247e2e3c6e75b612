//! How soon a new status is to be written, so that the API server gets writes for news and not for the time that passes. Pure.

use std::time::{Duration, Instant};

use crate::api::{Phase, ProjectionStatus, RatesStatus, RunProgress, RunStatus, WorkersStatus};

/// How soon a new status is to be written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Urgency {
    /// Not at all: nothing changed.
    Never,
    /// Some time soon: only measured numbers changed.
    Soon,
    /// Within seconds: only counts of workers changed, and more changes are likely to follow.
    Shortly,
    /// In its turn: something changed that people act on. Usually that is at once. What many Projections share, such as a server that went away, is news
    /// of all of them at the same moment, and their writes come one after the other.
    InTurn,
    /// Now: the spec was acted on, or something changed that other replicas or the next process act on.
    Now,
}

/// Counts of workers are written when they have differed for this long: the pods of a rollout become ready one after the other.
pub const COUNTS_SETTLE: Duration = Duration::from_secs(1);
/// The least time between the last write and one that only changes counts of workers.
pub const COUNTS_EVERY: Duration = Duration::from_secs(3);
/// After a start, a status that was true before is kept for this long while there is no sample yet.
const FIRST_SAMPLE: Duration = Duration::from_secs(15);
/// Measured numbers of one Projection are written no more often than this.
pub const NUMBERS_EVERY: Duration = Duration::from_secs(10);
/// The most writes per second of the measured numbers of all Projections together, so that a thousand busy ones do not overload the API server.
const NUMBERS_A_SECOND: u32 = 20;
/// So many statuses a second are written in their turn, where more than [`NEWS_AT_ONCE`] Projections have news.
const NEWS_A_SECOND: u32 = 50;
/// So many Projections may have news at once without waiting: writes as few as these are no burden for an API server.
pub const NEWS_AT_ONCE: u32 = 100;
/// A number that follows from time alone is written again when it differs by this share.
const WORTH_TELLING: f64 = 0.25;

/// The time between two writes of one Projection's numbers, with this many Projections.
pub fn numbers_every(projections: usize) -> Duration {
    let projections = u32::try_from(projections).unwrap_or(u32::MAX);
    NUMBERS_EVERY.max(Duration::from_secs(1) * projections / NUMBERS_A_SECOND)
}

/// Deals out moments for writing, so that Projections with something to write at the same moment write one after the other.
#[derive(Clone, Copy, Debug)]
pub struct WriteSlots {
    every: Duration,
    /// So much may be dealt out ahead of its time.
    ahead: Duration,
    /// When everything that was dealt out has had its time.
    even: Option<Instant>,
}

impl WriteSlots {
    /// For numbers.
    pub fn of_numbers() -> Self {
        Self { every: Duration::from_secs(1) / NUMBERS_A_SECOND, ahead: Duration::ZERO, even: None }
    }

    /// For news.
    pub fn of_news() -> Self {
        let every = Duration::from_secs(1) / NEWS_A_SECOND;
        Self { every, ahead: every * (NEWS_AT_ONCE - 1), even: None }
    }

    /// The next moment that is free, from `now` on.
    pub fn next(&mut self, now: Instant) -> Instant {
        let even = self.even.map_or(now, |even| even.max(now));
        self.even = Some(even + self.every);
        even.checked_sub(self.ahead).map_or(now, |free| free.max(now))
    }
}

/// How long a first status that only says that nothing is known yet may wait for one that says more: of a thousand Projections made at once,
/// each would else be written about three times within seconds.
pub const FIRST_WORD: Duration = Duration::from_secs(1);

/// The first status, and it says no more than that all has just begun.
pub fn has_only_begun(before: &ProjectionStatus, after: &ProjectionStatus) -> bool {
    *before == ProjectionStatus::default() && after.phase == Some(Phase::Pending)
}

/// Compares what is reported with what was.
pub fn urgency(before: &ProjectionStatus, after: &ProjectionStatus) -> Urgency {
    if *before == with_small_differences_of(after, before) {
        return Urgency::Never;
    }
    let (said, says) = (before.workers.as_ref(), after.workers.as_ref());
    let rolls = |workers: Option<&WorkersStatus>| workers.is_some_and(|workers| workers.rolling);
    // While pods come and go no rates are learnt: that begins at once.
    let begins_to_roll = rolls(says) && !rolls(said);
    if acted_on(before, after) != acted_on(after, before) || begins_to_roll {
        Urgency::Now
    } else if news(before) != news(after) {
        Urgency::InTurn
    } else if counts(said) == counts(says) {
        Urgency::Soon
    } else {
        Urgency::Shortly
    }
}

/// What other replicas, the next process, or a client that has just changed the spec act on. Where one of both statuses names no required workers, other
/// replicas serve their own number meanwhile, so that it is news only.
fn acted_on(status: &ProjectionStatus, other: &ProjectionStatus) -> impl PartialEq + use<> {
    let names_required = |status: &ProjectionStatus| status.required_workers().is_some();
    let both = names_required(status) && names_required(other);
    let workers = status.workers.as_ref();
    let required = workers.filter(|_| both).map(|workers| (workers.required, workers.bound_by));
    let desired = workers.map(|workers| workers.desired);
    // Read again by the next process.
    let passed_over = status.passed_over.as_ref().map(|passed_over| passed_over.positions.clone());
    let runs: Vec<_> = status.runs.iter().map(|run| (run.version.clone(), run.role, run.workers.required)).collect();
    let rollouts = (status.version.clone(), runs, status.rollout.clone());
    (status.observed_generation, status.suspended, required, desired, passed_over, rollouts)
}

/// What people act on.
fn news(status: &ProjectionStatus) -> impl PartialEq + use<> {
    let conditions: Vec<_> = status
        .conditions
        .iter()
        .map(|condition| (condition.type_.clone(), condition.status.clone(), condition.reason.clone()))
        .collect();
    let workers = status.workers.as_ref().map(|workers| (workers.required, workers.bound_by));
    (status.phase, workers, status.pending.is_some(), conditions)
}

/// Counts of workers that follow from what happens in the cluster.
fn counts(workers: Option<&WorkersStatus>) -> Option<(Option<i32>, bool)> {
    workers.map(|workers| (workers.ready, workers.rolling))
}

/// How long the status `before` stands though `after` is all that is known, `since_start`: a process that has just begun has measured nothing, and
/// what it says of that would be forgotten a moment later. `None`: it does not stand.
pub fn waits_for_first_sample(
    before: &ProjectionStatus,
    after: &ProjectionStatus,
    unmeasured: bool,
    since_start: Duration,
) -> Option<Duration> {
    let left = FIRST_SAMPLE.saturating_sub(since_start);
    let same_spec = before.observed_generation == after.observed_generation && before.suspended == after.suspended;
    let well = |status: &ProjectionStatus| status.phase != Some(Phase::Failed);
    (unmeasured && same_spec && well(after) && before.pending.is_some() && !left.is_zero()).then_some(left)
}

/// The number from before, where it has hardly changed.
fn kept(after: Option<f64>, before: Option<f64>) -> Option<f64> {
    match (after, before) {
        (Some(now), Some(then)) if (now - then).abs() <= WORTH_TELLING * then.abs().max(1.0) => before,
        _ => after,
    }
}

/// `after`, with those numbers of `before` that grow or fade while nothing happens, where they have hardly changed: the age of an event that
/// waits grows all the time, and is nothing new.
fn with_small_differences_of(after: &ProjectionStatus, before: &ProjectionStatus) -> ProjectionStatus {
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
        read_store: match (&after.read_store, &before.read_store) {
            (Some(now), Some(then)) => Some(now.settled(then)),
            (now, _) => now.clone(),
        },
        runs: after
            .runs
            .iter()
            .map(|run| settled(run, before.runs.iter().find(|then| then.version == run.version)))
            .collect(),
        // It repeats numbers.
        workers: after.workers.clone().map(|workers| WorkersStatus { reason: workers.reason.and(reason), ..workers }),
        ..after.clone()
    }
}

/// The pace fades while nothing happens, too.
fn settled_progress(now: RunProgress, then: RunProgress) -> RunProgress {
    let pace = kept(now.events_per_second, then.events_per_second);
    let least = |progress: RunProgress| progress.seconds_left.map(|left| left.at_least);
    let most = |progress: RunProgress| progress.seconds_left.and_then(|left| left.at_most);
    let same = kept(least(now), least(then)) == least(then) && kept(most(now), most(then)) == most(then);
    RunProgress {
        events_per_second: pace,
        seconds_left: if same { then.seconds_left } else { now.seconds_left },
        ..now
    }
}

/// The run, with the numbers of `then` that have hardly changed.
fn settled(run: &RunStatus, then: Option<&RunStatus>) -> RunStatus {
    let Some(then) = then else { return run.clone() };
    RunStatus {
        staleness_seconds: kept(run.staleness_seconds, then.staleness_seconds),
        drain_seconds: kept(run.drain_seconds, then.drain_seconds),
        progress: match (run.progress, then.progress) {
            (Some(now), Some(then)) => Some(settled_progress(now, then)),
            (now, _) => now,
        },
        ..run.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_are_due_together_write_one_after_the_other() {
        let (mut slots, now) = (WriteSlots::of_numbers(), Instant::now());
        let after = |moment: Instant| moment.duration_since(now).as_millis();
        let herd: Vec<u128> = (0..3).map(|_| after(slots.next(now))).collect();
        assert_eq!(herd, [0, 50, 100]);
        let later = now + Duration::from_secs(9);
        assert_eq!(slots.next(later), later, "who comes alone does not wait");
    }

    #[test]
    fn a_few_with_news_write_at_once_and_a_thousand_in_their_turn() {
        let (mut pace, now) = (WriteSlots::of_news(), Instant::now());
        let waits: Vec<Duration> = (0..1_000).map(|_| pace.next(now).duration_since(now)).collect();
        let at_once = waits.iter().filter(|wait| wait.is_zero()).count();
        assert_eq!(at_once, usize::try_from(NEWS_AT_ONCE).unwrap());
        assert!(waits.windows(2).all(|two| two[0] <= two[1]));
        let in_a_second = |from: u64| waits.iter().filter(|wait| wait.as_secs() == from && !wait.is_zero()).count();
        assert!((0..18).all(|second| (49..=50).contains(&in_a_second(second))), "{waits:?}");
        assert_eq!(waits.last(), Some(&Duration::from_secs(18)));
        let later = now + Duration::from_secs(19);
        let few: Vec<Duration> = (0..60).map(|_| pace.next(later).duration_since(later)).collect();
        assert!(few.iter().filter(|wait| wait.is_zero()).count() >= 50, "{few:?}");
    }
}
