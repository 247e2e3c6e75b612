//! What is known of every projection: takes in answers, runs the models, and says what is worth telling. No IO.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use kube::ResourceExt;

use super::{
    budgets::Budgets,
    known_stores::{KnownStores, StoreReport},
    workers::{WatchedWorkers, WorkerNumbers},
};
use crate::{
    api::{ConditionType, Projection, Reason},
    lag::{Bounds, Cadence, Claim, Fault, LiveHealth, Model, Sample, Throttle, Throttled},
    leader_required::Following,
    measure::{MeasureError, ProjectionKey, RunKey},
    resolve::{ConnectionLimits, Measures, bounds, fallback_workers, live_beside, run_of},
    snapshot::{Measured, Observation, Observations, Snapshot},
};

/// Numbers that change without a consequence are told no more often than this.
const TELL_NUMBERS_EVERY: Duration = Duration::from_secs(5);

/// An answer, or the reason why there is none.
#[derive(Clone, Debug)]
pub(super) struct Reported {
    pub(super) key: RunKey,
    pub(super) uid: Arc<str>,
    pub(super) generation: i64,
    /// Which read store its workers write to, where that is known.
    pub(super) read_store: Option<Arc<str>>,
    pub(super) result: Result<Sample, MeasureError>,
    pub(super) valid_until: Instant,
}

/// What was taken in of a report.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Taken {
    /// The projection is gone, replaced or changed since it was asked about.
    Ignored,
    /// The observation changed in numbers only.
    Numbers,
    /// The observation changed in a way that asks for action.
    Material,
    /// Nothing changed.
    Same,
}

#[derive(Default)]
pub(super) struct ObservationStore {
    workers: Option<Arc<dyn WatchedWorkers>>,
    entries: HashMap<RunKey, Entry>,
    budgets: Budgets,
    following: Following,
    stores: KnownStores,
    syncs: u64,
    published: Snapshot,
    dirty: BTreeSet<Arc<str>>,
    untold: BTreeSet<RunKey>,
}

struct Entry {
    /// The version that was looked at last, and in which sync.
    seen: (Arc<Projection>, u64),
    observation: Arc<Observation>,
    generation: i64,
    measures: Measures,
    model: Model,
    /// Of a run that builds a new version: how it is held back.
    throttle: Throttle,
    /// Workers that the model asked for last, were there connections for all.
    wanted: u32,
    answered: bool,
    told: Option<Instant>,
    /// Numbers have changed since it was told, however long they stay as they are now.
    has_new_numbers: bool,
}

impl ObservationStore {
    /// Takes the numbers of workers from `workers`, and from the status where that knows none.
    pub(super) fn with_workers(workers: Option<Arc<dyn WatchedWorkers>>) -> Self {
        Self { workers, ..Self::default() }
    }

    fn numbers(&self, projection: &Projection) -> WorkerNumbers {
        WorkerNumbers::of(projection, self.workers.as_deref())
    }

    /// Follows the set of known Projections. `following`: whether another replica leads, whose word is in their status. True when what is to be measured may
    /// have changed: a status alone changes nothing of that. A version that was seen already costs no more than a look.
    pub(super) fn sync(&mut self, projections: &[Arc<Projection>], following: Following) -> bool {
        self.following = following;
        self.syncs += 1;
        let mut changed = false;
        for projection in projections {
            let key = run_of(projection);
            match self.entries.get_mut(&key).filter(|entry| Arc::ptr_eq(&entry.seen.0, projection)) {
                Some(entry) => entry.seen.1 = self.syncs,
                None => changed |= self.sync_one(key, projection),
            }
        }
        let gone = self.entries.iter().filter(|(_, entry)| entry.seen.1 != self.syncs);
        let gone: Vec<RunKey> = gone.map(|(key, _)| key.clone()).collect();
        changed |= !gone.is_empty();
        for key in gone {
            self.entries.remove(&key);
            self.budgets.forget(&key);
            self.untold.remove(&key);
            self.dirty.insert(key.projection.namespace);
        }
        changed
    }

    fn sync_one(&mut self, key: RunKey, projection: &Arc<Projection>) -> bool {
        let seen = (Arc::clone(projection), self.syncs);
        let fallback = fallback_workers(projection, self.numbers(projection).desired);
        let uid = projection.uid().unwrap_or_default();
        let measures = Measures::of(projection);
        let generation = projection.metadata.generation.unwrap_or_default();
        match self.entries.get_mut(&key) {
            Some(entry) if *entry.observation.uid == *uid && entry.measures == measures => {
                entry.seen = seen;
                let changed = std::mem::replace(&mut entry.generation, generation) != generation;
                if changed {
                    // What was measured is what the newer spec asks for, too; reconciling waits to hear that.
                    Arc::make_mut(&mut entry.observation).generation = generation;
                    self.dirty.insert(Arc::clone(&key.projection.namespace));
                    self.untold.insert(key.clone());
                }
                if *entry.observation.labels != *projection.labels() || entry.observation.fallback != fallback {
                    let observation = Arc::make_mut(&mut entry.observation);
                    observation.labels = Arc::new(projection.labels().clone());
                    observation.fallback = fallback;
                    self.dirty.insert(key.projection.namespace);
                }
                changed
            }
            _ => {
                let not_yet = MeasureError {
                    reason: Reason::NotMeasuredYet,
                    message: "the first sample has not been taken yet".to_owned(),
                };
                let observation = Observation {
                    uid: uid.into(),
                    generation,
                    labels: Arc::new(projection.labels().clone()),
                    measured: None,
                    fallback,
                    read_store: self.stores.of(&key),
                    failure: Some(not_yet),
                };
                self.entries.insert(
                    key.clone(),
                    Entry {
                        seen,
                        observation: Arc::new(observation),
                        generation,
                        measures,
                        model: remembering(projection),
                        throttle: Throttle::default(),
                        wanted: required_before(projection).unwrap_or(1),
                        answered: false,
                        told: None,
                        has_new_numbers: false,
                    },
                );
                self.untold.insert(key.clone());
                self.dirty.insert(key.projection.namespace);
                true
            }
        }
    }

    /// Takes in an answer about `projection`, the newest version that is known of it.
    pub(super) fn take(&mut self, reported: Reported, projection: &Projection, now: Instant) -> Taken {
        let there = self.numbers(projection);
        let throttled = self.throttled(&reported.key, projection, now);
        let Some(entry) = self.entries.get_mut(&reported.key) else { return Taken::Ignored };
        if entry.observation.uid != reported.uid || entry.generation != reported.generation {
            return Taken::Ignored;
        }
        entry.answered = true;
        let ConnectionLimits { per_worker, most } = ConnectionLimits::of(projection);
        if let Some(store) = &reported.read_store {
            self.budgets.claim(
                &reported.key,
                store,
                Claim { wanted: entry.wanted, running: there.desired, per_worker },
                now,
            );
        }
        let share = most.and_then(|most| self.budgets.share(&reported.key, most, now));
        let strain = self.stores.strain(&reported.key, now);
        let bounds = Bounds { connections: share, strain, throttled, ..bounds(projection) };
        // Should we lead next, we go on from there.
        if let Some(word) = self.following.required(projection) {
            entry.model.hear(word);
        }
        let outcome = reported.result.and_then(|sample| {
            let assessment = entry.model.observe(&sample, there.workers(), bounds).map_err(unknown)?;
            entry.wanted = assessment.required.wanted;
            Ok(Measured { sample, assessment, valid_until: reported.valid_until })
        });
        let before = Arc::clone(&entry.observation);
        let after = match outcome {
            Ok(measured) => Observation { measured: Some(Arc::new(measured)), failure: None, ..(*before).clone() },
            Err(failure) => Observation { failure: Some(failure), ..(*before).clone() },
        };
        let taken = compare(&before, &after, bounds.target);
        if taken != Taken::Same || after != *before {
            entry.observation = Arc::new(after);
            self.dirty.insert(Arc::clone(&reported.key.projection.namespace));
        }
        entry.has_new_numbers |= taken == Taken::Numbers;
        let due = entry.told.is_none_or(|told| now.duration_since(told) >= TELL_NUMBERS_EVERY);
        if taken == Taken::Material || (entry.has_new_numbers && due) {
            entry.told = Some(now);
            entry.has_new_numbers = false;
            self.untold.insert(reported.key);
        }
        taken
    }

    /// What a run that builds a new version may have beside the one that readers see.
    fn throttled(&mut self, key: &RunKey, projection: &Projection, now: Instant) -> Option<Throttled> {
        let live = live_beside(projection).and_then(|live| Some((self.entries.get(&live)?, live)));
        let Some((entry, live)) = live else {
            self.entries.get_mut(key)?.throttle = Throttle::default();
            return None;
        };
        let measured = entry.observation.current(now).ok().map(|measured| &measured.assessment);
        let (staleness, stuck) = (measured.and_then(|it| it.staleness), measured.is_some_and(|it| it.stuck));
        let target = bounds(&entry.seen.0).target;
        let health = LiveHealth::of(staleness, target, stuck, self.stores.strain(&live, now));
        let Bounds { min, max, catch_up, .. } = bounds(projection);
        let most = catch_up.map_or(max, |catch_up| catch_up.max.max(max));
        self.entries.get_mut(key)?.throttle.observe(health, most, min, now)
    }

    /// What is known of a run now.
    pub(super) fn observation(&self, key: &RunKey) -> Option<&Observation> {
        self.entries.get(key).map(|entry| &*entry.observation)
    }

    /// Takes in what was learnt of read stores.
    pub(super) fn take_store(&mut self, report: StoreReport, now: Instant) {
        for key in self.stores.take(report, now) {
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            let read_store = self.stores.of(&key);
            if entry.observation.read_store != read_store {
                Arc::make_mut(&mut entry.observation).read_store = read_store;
                self.dirty.insert(Arc::clone(&key.projection.namespace));
            }
            self.untold.insert(key);
        }
    }

    /// Notes whose last measurement has become too old between `since` and `now`.
    pub(super) fn expire(&mut self, since: Instant, now: Instant) {
        for (key, entry) in &self.entries {
            let until = entry.observation.measured.as_ref().map(|measured| measured.valid_until);
            if until.is_some_and(|until| until > since && until <= now) {
                self.untold.insert(key.clone());
            }
        }
    }

    /// True when every known projection has been answered for at least once.
    pub(super) fn all_answered(&self) -> bool {
        self.entries.values().all(|entry| entry.answered)
    }

    /// A newer snapshot, if there is anything new. What did not change is shared with the last one.
    pub(super) fn snapshot(&mut self) -> Option<Snapshot> {
        let same_stores = Arc::ptr_eq(&self.published.read_stores, self.stores.observations());
        if self.dirty.is_empty() && same_stores {
            return None;
        }
        self.published.read_stores = Arc::clone(self.stores.observations());
        let dirty = std::mem::take(&mut self.dirty);
        let mut changed: HashMap<Arc<str>, Observations> = HashMap::new();
        for (key, entry) in &self.entries {
            if dirty.contains(&key.projection.namespace) {
                let namespace = changed.entry(Arc::clone(&key.projection.namespace)).or_default();
                namespace.insert(key.clone(), Arc::clone(&entry.observation));
            }
        }
        for namespace in dirty {
            match changed.remove(&namespace) {
                Some(observations) => self.published.namespaces.insert(namespace, Arc::new(observations)),
                None => self.published.namespaces.remove(&namespace),
            };
        }
        Some(self.published.clone())
    }

    /// Tells which Projections have news of a run; each until `tell` accepts it.
    pub(super) fn tell(&mut self, mut tell: impl FnMut(ProjectionKey) -> bool) {
        while let Some(key) = self.untold.pop_first() {
            if !tell(key.projection.clone()) {
                self.untold.insert(key);
                return;
            }
        }
    }
}

fn remembering(projection: &Projection) -> Model {
    let status = projection.status.as_ref();
    let per_worker = status.and_then(|status| status.rates.as_ref()).and_then(|rates| rates.per_worker_per_second);
    Model::remembering(per_worker, required_before(projection), stuck_at(projection)).with_cadence(cadence(projection))
}

fn cadence(projection: &Projection) -> Option<Cadence> {
    let cadence = projection.status.as_ref()?.cadence?;
    let every = Duration::try_from_secs_f64(cadence.seconds).ok()?;
    let events = cadence.events.and_then(|events| u32::try_from(events).ok());
    Some(Cadence { every, events: events.map(f64::from) })
}

fn required_before(projection: &Projection) -> Option<u32> {
    projection.status.as_ref()?.required_workers()
}

/// Where the checkpoint was stuck by the last word about this spec: an alert that is on must not go off because the operator restarts.
/// A checkpoint that was not stuck yet is watched from now on, since the time of its last move is not recorded: that would cost a write for each move.
fn stuck_at(projection: &Projection) -> Option<String> {
    let status = projection.status.as_ref()?;
    let stuck = status.conditions.iter().any(|condition| {
        condition.type_ == ConditionType::Progressing.as_str() && condition.reason == Reason::CheckpointFrozen.as_str()
    });
    let current = status.observed_generation == projection.metadata.generation;
    status.checkpoint.clone().filter(|_| stuck && current)
}

fn unknown(fault: Fault) -> MeasureError {
    let reason = match fault {
        Fault::NeverCommitted => Reason::NeverCommitted,
        Fault::CheckpointBeyondHead { .. } => Reason::CheckpointBeyondHead,
        Fault::PendingUnknown | Fault::ValueNotFinite => Reason::InvalidAnswer,
        Fault::NoTarget => Reason::InvalidSpec,
    };
    MeasureError { reason, message: fault.to_string() }
}

/// How two observations of one projection differ.
fn compare(before: &Observation, after: &Observation, target: Duration) -> Taken {
    let reason = |observation: &Observation| observation.failure.as_ref().map(|failure| failure.reason);
    if reason(before) != reason(after) {
        return Taken::Material;
    }
    if before.failure != after.failure {
        return Taken::Numbers;
    }
    let (Some(old), Some(new)) = (&before.measured, &after.measured) else {
        return if before.measured.is_some() == after.measured.is_some() { Taken::Same } else { Taken::Material };
    };
    let decides = |measured: &Measured| {
        let assessment = &measured.assessment;
        (
            (assessment.required.workers, assessment.required.limit, assessment.stuck, assessment.rewound),
            (assessment.ahead_of_clock.is_some(), assessment.jump.is_some(), assessment.retention_risk.is_some()),
            (assessment.pending.events == 0, assessment.value.map(|value| value.within)),
            (assessment.staleness.map(|staleness| staleness > target), assessment.cadence_breaks_target),
            measured.sample.held_by().map(|writer| writer.pid),
            measured.sample.faults.clone(),
            (measured.sample.notes.clone(), measured.sample.parked.is_some_and(|parked| parked > 0)),
        )
    };
    if decides(old) != decides(new) {
        return Taken::Material;
    }
    let numbers = |measured: &Measured| {
        (
            (measured.assessment.pending, measured.sample.value),
            (measured.sample.held_back, measured.sample.parked),
            measured.sample.head.clone(),
            measured.sample.checkpoint.clone(),
            measured.assessment.staleness,
        )
    };
    if numbers(old) == numbers(new) { Taken::Same } else { Taken::Numbers }
}

#[cfg(test)]
#[path = "observation_store_tests.rs"]
mod tests;
