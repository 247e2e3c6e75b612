//! The workers: made and sent away as the scale says, ready after their start-up, each with whole shards.

use std::time::Duration;

use super::{
    kind::{Commits, WorkerKind},
    log::Shard,
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
}

impl Worker {
    fn new(created: Duration, ready_at: Duration, index: usize, kind: WorkerKind) -> Self {
        let commit_at = match kind.commits {
            // Their clocks are not the same: the golden ratio deals the phases out evenly, however many there are.
            Commits::Every(interval) => ready_at + interval.mul_f64(count(index + 1) * 0.618_033_988_749_895 % 1.0),
            Commits::EachEvent | Commits::EveryEvents(_) => Duration::ZERO,
        };
        Self { created, ready_at, busy_seconds: 0.0, commit_at, since_commit: 0.0 }
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

/// The time between two commits by the clock, as a part of the interval: were it just that, samples would always fall into the same part of it.
const OVERRUN: f64 = 1.03;

#[derive(Clone, Debug)]
pub(super) struct Crew {
    workers: Vec<Worker>,
    start_up: Duration,
    kind: WorkerKind,
    /// So many shared the shards when they worked last.
    shared_by: usize,
}

impl Crew {
    /// So many that are ready from the beginning.
    pub(super) fn ready(count: usize, start_up: Duration, kind: WorkerKind) -> Self {
        Self::of(count, Duration::ZERO, start_up, kind)
    }

    /// So many that have just been made.
    pub(super) fn starting(count: usize, start_up: Duration, kind: WorkerKind) -> Self {
        Self::of(count, start_up, start_up, kind)
    }

    fn of(count: usize, ready_at: Duration, start_up: Duration, kind: WorkerKind) -> Self {
        let workers = (0..count).map(|index| Worker::new(Duration::ZERO, ready_at, index, kind)).collect();
        Self { workers, start_up, kind, shared_by: 0 }
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
        for index in self.workers.len()..to {
            self.workers.push(Worker::new(now, now + self.start_up, index, self.kind));
        }
    }

    /// Works for so many seconds at so many events per second a busy worker, and commits as its kind does. Shard `s` is that of ready worker `s`
    /// modulo their number, and a worker gives each of its shards an equal part of its time, what one does not need going to the others.
    pub(super) fn work(&mut self, shards: &mut [Shard], compete: bool, rate: f64, seconds: f64, now: Duration) {
        let ready = self.ready_at(now);
        if ready != self.shared_by {
            // What changes hands is committed first.
            shards.iter_mut().for_each(Shard::commit);
            self.workers.iter_mut().for_each(|worker| worker.since_commit = 0.0);
            self.shared_by = ready;
        }
        if ready == 0 {
            return;
        }
        let end = now + Duration::try_from_secs_f64(seconds).unwrap_or_default();
        let (slowest, commits) = (self.kind.slowest, self.kind.commits);
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
            let waiting: f64 = shards.iter().skip(index).step_by(ready).map(Shard::waiting).sum();
            let left = if waiting <= able {
                // All is done, in whatever order.
                shards.iter_mut().skip(index).step_by(ready).for_each(|shard| shard.work(shard.waiting()));
                able - waiting
            } else {
                share(shards.iter_mut().skip(index).step_by(ready), able)
            };
            worker.busy_seconds += if able > 0.0 { (able - left) / able * seconds } else { 0.0 };
            worker.since_commit += able - left;
            if worker.commits(end, commits) {
                shards.iter_mut().skip(index).step_by(ready).for_each(Shard::commit);
            }
        }
    }
}

/// Gives each shard an equal part, round after round until all is given or nothing waits; returns what is left.
fn share<'a>(shards: impl Iterator<Item = &'a mut Shard>, mut able: f64) -> f64 {
    let mut open: Vec<&mut Shard> = shards.filter(|shard| shard.waiting() > 0.0).collect();
    while able > 1e-9 && !open.is_empty() {
        let part = able / count(open.len());
        for shard in &mut open {
            let work = part.min(shard.waiting());
            shard.work(work);
            able -= work;
        }
        open.retain(|shard| shard.waiting() > 1e-9);
    }
    able.max(0.0)
}

#[allow(clippy::cast_precision_loss)]
fn count(number: usize) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn loaded(events: &[f64]) -> Vec<Shard> {
        let shard = |events: &f64| {
            let mut shard = Shard::new(1.0, 0.0);
            shard.grow(*events);
            shard
        };
        events.iter().map(shard).collect()
    }

    fn waiting(shards: &[Shard]) -> Vec<f64> {
        shards.iter().map(|shard| shard.waiting().round()).collect()
    }

    #[test]
    fn shards_come_whole_and_a_worker_shares_its_time_among_its_own() {
        for (ready, left, why) in [
            (1, [90.0, 90.0, 0.0], "33 for each, and what the last one leaves for the other two"),
            (
                2,
                [85.0, 70.0, 0.0],
                "the first worker has the first shard and the last: 45 of its 60 are left for the first",
            ),
            (5, [70.0, 70.0, 0.0], "more workers than shards idle"),
        ] {
            let mut shards = loaded(&[130.0, 130.0, 0.0]);
            shards[2].grow(if ready == 1 {
                20.0
            } else if ready == 2 {
                15.0
            } else {
                5.0
            });
            let mut crew = Crew::ready(ready, seconds(2), WorkerKind::default());
            crew.work(&mut shards, false, 10.0, if ready == 1 { 10.0 } else { 6.0 }, seconds(0));
            assert_eq!(waiting(&shards), left, "{why}");
        }
    }

    #[test]
    fn workers_that_compete_share_one_log() {
        let mut shards = loaded(&[100.0]);
        let mut crew = Crew::ready(3, seconds(2), WorkerKind::default());
        crew.work(&mut shards, true, 10.0, 2.0, seconds(0));
        assert_eq!(waiting(&shards), [40.0]);
        crew.work(&mut shards, true, 10.0, 2.0, seconds(2));
        assert_eq!(waiting(&shards), [0.0]);
        let busy: Vec<f64> = crew.workers().iter().map(|worker| (worker.busy_seconds * 3.0).round()).collect();
        assert_eq!(busy, [10.0; 3], "2 s, and two thirds of 2 s");
    }

    #[test]
    fn workers_take_their_time_to_start_and_the_youngest_go_first() {
        let mut crew = Crew::ready(1, seconds(2), WorkerKind::default());
        crew.scale(3, seconds(10));
        assert_eq!((crew.count(), crew.ready_at(seconds(11)), crew.ready_at(seconds(12))), (3, 1, 3));
        crew.scale(4, seconds(20));
        crew.scale(3, seconds(21));
        assert_eq!((crew.count(), crew.ready_at(seconds(21))), (3, 3));
    }

    fn uncommitted(shards: &[Shard]) -> Vec<f64> {
        shards.iter().map(|shard| shard.uncommitted().round()).collect()
    }

    #[test]
    fn commits_come_by_the_clock_by_the_count_and_when_shards_change_hands() {
        for (commits, first, why) in [
            (Commits::EachEvent, [90.0, 90.0], "each event"),
            (Commits::Every(seconds(1)), [90.0, 90.0], "the first commit of the first worker is due after 0.6 s"),
            (Commits::Every(seconds(5)), [100.0, 100.0], "it is due after 3 s"),
            (Commits::EveryEvents(21), [100.0, 100.0], "20 are handled"),
            (Commits::EveryEvents(20), [90.0, 90.0], "20 are enough"),
        ] {
            let mut shards = loaded(&[100.0, 100.0]);
            let mut crew = Crew::ready(1, seconds(2), WorkerKind { commits, ..WorkerKind::default() });
            crew.work(&mut shards, false, 20.0, 1.0, seconds(0));
            assert_eq!(waiting(&shards), [90.0, 90.0]);
            assert_eq!(uncommitted(&shards), first, "{commits:?}: {why}");
            crew.scale(2, seconds(1));
            crew.work(&mut shards, false, 0.0, 1.0, seconds(1));
            assert_eq!(uncommitted(&shards), first, "{commits:?}: the new one is not ready");
            crew.work(&mut shards, false, 0.0, 0.001, seconds(3));
            assert_eq!(uncommitted(&shards), [90.0, 90.0], "{commits:?}: a shard changes hands");
        }
    }

    #[test]
    fn fewer_events_than_a_commit_needs_stay_uncommitted() {
        let kind = WorkerKind { commits: Commits::EveryEvents(1_000), ..WorkerKind::default() };
        let mut shards = loaded(&[1_300.0]);
        let mut crew = Crew::ready(1, seconds(2), kind);
        for second in 0..100 {
            crew.work(&mut shards, false, 50.0, 1.0, seconds(second));
        }
        assert_eq!((waiting(&shards), uncommitted(&shards)), (vec![0.0], vec![300.0]));
    }

    #[test]
    fn one_worker_is_slower_than_the_others() {
        let kind = WorkerKind { slowest: 3.0, ..WorkerKind::default() };
        let mut shards = loaded(&[100.0; 3]);
        Crew::ready(3, seconds(2), kind).work(&mut shards, false, 30.0, 1.0, seconds(0));
        assert_eq!(waiting(&shards), [90.0, 70.0, 70.0]);
        let mut shards = loaded(&[100.0]);
        Crew::ready(3, seconds(2), kind).work(&mut shards, true, 30.0, 1.0, seconds(0));
        assert_eq!(waiting(&shards), [30.0]);
    }
}
