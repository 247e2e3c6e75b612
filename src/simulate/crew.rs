//! The workers: made and sent away as the scale says, ready after their start-up, each with whole shards.

use std::time::Duration;

use super::{
    kind::{Checkpoints, Commits, WorkerKind},
    shard::Shard,
};

/// One worker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Worker {
    /// When it was made.
    pub created: Duration,
    /// When it is, or was, ready.
    pub ready_at: Duration,
    /// How long it has been busy, in seconds.
    pub busy_seconds: f64,
    /// When it commits next, where it does so by the clock.
    commit_at: Duration,
    /// Events that it has handled since it committed last.
    since_commit: f64,
    /// When it looks next who else is there.
    look_at: Duration,
    /// None other ever had the same.
    number: u64,
    /// Between 0 and 1: its clock is not that of the others.
    phase: f64,
    /// Up to this position it has fetched the events of its shards.
    fetched: f64,
}

impl Worker {
    fn new(created: Duration, ready_at: Duration, number: u64, index: usize, kind: WorkerKind) -> Self {
        // Their clocks are not the same: the golden ratio deals the phases out evenly, however many there are.
        let phase = count(index + 1) * 0.618_033_988_749_895 % 1.0;
        let commit_at = match kind.commits {
            // One that has been there for long is anywhere between two commits. One that begins commits an interval later.
            Commits::Every(interval) if ready_at.is_zero() => interval.mul_f64(phase),
            Commits::Every(interval) => ready_at + interval + BEGIN_WITHIN.mul_f64(phase),
            Commits::EachEvent | Commits::EveryEvents(_) => Duration::ZERO,
        };
        let (busy_seconds, since_commit) = (0.0, 0.0);
        Self {
            created,
            ready_at,
            busy_seconds,
            commit_at,
            since_commit,
            look_at: ready_at,
            number,
            phase,
            fetched: 0.0,
        }
    }

    /// It looks when it begins, and then at every turn of its own clock.
    fn next_look(&self, now: Duration, every: Duration) -> Duration {
        let later =
            if self.look_at == self.ready_at { BEGIN_WITHIN.min(every).mul_f64(self.phase) } else { Duration::ZERO };
        self.look_at.max(now) + every + later
    }

    /// Whether it commits at `now`, and if so that it has.
    fn commits(&mut self, now: Duration, commits: Commits) -> bool {
        let due = match commits {
            Commits::EachEvent => true,
            Commits::Every(_) => now >= self.commit_at,
            Commits::EveryEvents(events) => self.since_commit >= f64::from(events),
        };
        if due {
            self.since_commit = 0.0;
            if let Commits::Every(interval) = commits {
                // It looks at the clock between two events, and a commit takes its time, too.
                let turn = interval.max(Duration::from_millis(1)).mul_f64(OVERRUN);
                self.commit_at = (self.commit_at + turn).max(now);
            }
        }
        due
    }
}

/// Of workers that are made together, one begins a little later than another, so that they are not in step.
const BEGIN_WITHIN: Duration = Duration::from_millis(500);
/// The time between two commits by the clock, as a part of the interval: were it just that, samples would always fall into the same part of it.
const OVERRUN: f64 = 1.03;

#[derive(Clone, Debug)]
pub(super) struct Crew {
    workers: Vec<Worker>,
    start_up: Duration,
    kind: WorkerKind,
    /// The number of workers that competed when they worked last.
    shared_by: usize,
    /// The number of the worker that has each shard.
    owners: Vec<Option<u64>>,
    /// The number of workers that there have ever been.
    made: u64,
}

impl Crew {
    /// `count` workers that are ready from the beginning.
    pub(super) fn ready(count: usize, start_up: Duration, kind: WorkerKind) -> Self {
        Self::of(count, Duration::ZERO, start_up, kind)
    }

    /// `count` workers that have just been made.
    pub(super) fn starting(count: usize, start_up: Duration, kind: WorkerKind) -> Self {
        Self::of(count, start_up, start_up, kind)
    }

    fn of(count: usize, ready_at: Duration, start_up: Duration, kind: WorkerKind) -> Self {
        let mut crew = Self { workers: Vec::new(), start_up, kind, shared_by: 0, owners: Vec::new(), made: 0 };
        (0..count).for_each(|_| crew.add(Duration::ZERO, ready_at));
        crew
    }

    fn add(&mut self, created: Duration, ready_at: Duration) {
        self.workers.push(Worker::new(created, ready_at, self.made, self.workers.len(), self.kind));
        self.made += 1;
    }

    pub(super) fn workers(&self) -> &[Worker] {
        &self.workers
    }

    pub(super) fn count(&self) -> i32 {
        i32::try_from(self.workers.len()).unwrap_or(i32::MAX)
    }

    pub(super) fn ready_at(&self, now: Duration) -> usize {
        self.workers.iter().filter(|worker| worker.ready_at <= now).count()
    }

    /// New ones start up; the youngest go first, as a Deployment does.
    pub(super) fn scale(&mut self, to: i32, now: Duration) {
        let to = usize::try_from(to).unwrap_or(0);
        self.workers.truncate(to);
        (self.workers.len()..to).for_each(|_| self.add(now, now + self.start_up));
    }

    /// Works for `seconds` at `rate` events per second a busy worker, and commits as its kind does. Shard `s` is that of ready worker `s` modulo
    /// their number, and a worker takes the events of its shards in the order of the log.
    pub(super) fn work(&mut self, shards: &mut [Shard], compete: bool, rate: f64, seconds: f64, now: Duration) {
        let ready = self.ready_at(now);
        if compete && ready != self.shared_by {
            shards.iter_mut().for_each(Shard::commit);
            self.shared_by = ready;
        }
        if ready == 0 {
            return;
        }
        let end = now + Duration::try_from_secs_f64(seconds).unwrap_or_default();
        let (slowest, commits) = (self.kind.slowest, self.kind.commits);
        if !compete {
            self.deal_out(shards, now);
        }
        let ready_workers = self.workers.iter_mut().filter(|worker| worker.ready_at <= now).enumerate();
        let able = |index: usize| rate * seconds / if index == 0 { slowest } else { 1.0 };
        if compete {
            // Any worker takes any event: the first shard is all there is.
            if let Some(all) = shards.first_mut() {
                let together: f64 = (0..ready).map(able).sum();
                let done = together.min(all.waiting());
                all.work(done);
                let part = if together > 0.0 { done / together } else { 0.0 };
                // The oldest worker commits for all, who keep to one row.
                let mut commit = false;
                for (index, worker) in ready_workers {
                    worker.busy_seconds += part * seconds;
                    worker.since_commit += part * able(index);
                    let due = worker.commits(end, commits);
                    commit |= due && index == 0;
                }
                if commit {
                    all.commit();
                }
            }
            return;
        }
        for (index, worker) in ready_workers {
            let able = able(index);
            let own = shards.iter_mut().zip(&self.owners).filter(|(_, owner)| **owner == Some(worker.number));
            let mut own: Vec<&mut Shard> = own.map(|(shard, _)| shard).collect();
            let waiting: f64 = own.iter().map(|shard| shard.waiting()).sum();
            let left = (able - waiting).max(0.0);
            if waiting <= able {
                // All is done, in whatever order.
                own.iter_mut().for_each(|shard| shard.work(shard.waiting()));
            } else {
                in_order(&mut own, able);
            }
            worker.busy_seconds += if able > 0.0 { (able - left) / able * seconds } else { 0.0 };
            worker.since_commit += able - left;
            if worker.commits(end, commits) {
                own.into_iter().for_each(Shard::commit);
            }
        }
    }
}

impl Crew {
    /// Workers that have handled what they had in hand fetch the next events of their shards, up to a second's work. Only so does the owner of a
    /// shard without events learn that it has none, which matters where one row stands for all shards: a shard whose next event is in hand stays at
    /// its last.
    pub(super) fn fetch(&mut self, shards: &mut [Shard], compete: bool, rate: f64, head: f64) {
        if compete {
            shards.iter_mut().for_each(|shard| shard.fetched(head));
        }
        if compete || self.kind.checkpoints != Checkpoints::One {
            return;
        }
        let most = batch(rate);
        for worker in &mut self.workers {
            let own = shards.iter_mut().zip(&self.owners).filter(|(_, owner)| **owner == Some(worker.number));
            let mut own: Vec<&mut Shard> = own.map(|(shard, _)| shard).collect();
            if own.iter().any(|shard| shard.next().is_some_and(|next| next <= worker.fetched)) {
                continue;
            }
            let mut found: Vec<f64> = own.iter().flat_map(|shard| shard.first_waiting(most)).collect();
            found.sort_by(f64::total_cmp);
            // What a full batch leaves out comes after its last event.
            worker.fetched = found.get(most - 1).copied().unwrap_or(head);
            own.iter_mut().for_each(|shard| shard.fetched(worker.fetched));
        }
    }

    /// Shard `s` is to be ready worker `s`'s modulo their number. A worker finds out when it looks who else is there: it gives up what is another's,
    /// and takes what is free of its own. One that gives up a shard commits all that it has first, since the next owner begins where it ends. One
    /// that only gets more does not commit, and goes on counting towards its next commit. Until the new owner looks, a shard that was given up stays
    /// where it is.
    fn deal_out(&mut self, shards: &mut [Shard], now: Duration) {
        self.owners.resize(shards.len(), None);
        for (shard, owner) in shards.iter_mut().zip(&mut self.owners) {
            if owner.is_some_and(|owner| !self.workers.iter().any(|worker| worker.number == owner)) {
                // Who leaves commits at the end.
                shard.commit();
                *owner = None;
            }
        }
        let ready = self.ready_at(now);
        let looks = |worker: &Worker| worker.ready_at <= now && worker.look_at <= now;
        let members = || (0..ready).cycle();
        // Those that give up something do so before others take.
        for (rank, worker) in self.workers.iter_mut().filter(|worker| worker.ready_at <= now).enumerate() {
            let own = Some(worker.number);
            if looks(worker) && self.owners.iter().zip(members()).any(|(owner, whose)| *owner == own && whose != rank) {
                for ((shard, owner), whose) in shards.iter_mut().zip(&mut self.owners).zip(members()) {
                    if *owner == own {
                        shard.commit();
                        *owner = own.filter(|_| whose == rank);
                    }
                }
                worker.since_commit = 0.0;
            }
        }
        for (rank, worker) in self.workers.iter_mut().filter(|worker| worker.ready_at <= now).enumerate() {
            if looks(worker) {
                for owner in self.owners.iter_mut().skip(rank).step_by(ready).filter(|owner| owner.is_none()) {
                    *owner = Some(worker.number);
                    // What comes in between is fetched with the rest, in order.
                    worker.fetched = 0.0;
                }
                worker.look_at = worker.next_look(now, self.kind.looks_every());
            }
        }
    }
}

/// Does the oldest events first, whichever shard they are of, until no work is left or nothing waits.
fn in_order(shards: &mut [&mut Shard], mut able: f64) {
    // One event at a time, but where there are a great many.
    let most = (able / MOST_TURNS).max(1.0);
    while able > 1e-9 {
        let waits = shards.iter_mut().filter_map(|shard| shard.next().map(|position| (position, shard)));
        let Some((_, oldest)) = waits.min_by(|a, b| a.0.total_cmp(&b.0)) else { return };
        let work = if most > 1.0 { most } else { oldest.left_of_next() }.min(able).min(oldest.waiting());
        oldest.work(work);
        able -= work;
    }
}

/// Events of a second's work, at least one.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // At most a thousand.
fn batch(rate: f64) -> usize {
    rate.clamp(1.0, 1_000.0) as usize
}

/// A worker changes between its shards no more often in a tick.
const MOST_TURNS: f64 = 256.0;

#[allow(clippy::cast_precision_loss)]
fn count(number: usize) -> f64 {
    number as f64
}

#[cfg(test)]
#[path = "crew_tests.rs"]
mod tests;
