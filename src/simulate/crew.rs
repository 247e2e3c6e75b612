//! The workers: made and sent away as the scale says, ready after their start-up, each with whole shards.

use std::time::Duration;

use super::log::Shard;

/// One worker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Worker {
    /// When it was made.
    pub created: Duration,
    /// When it is, or was, ready.
    pub ready_at: Duration,
    /// How long it has been busy, in seconds.
    pub busy_seconds: f64,
}

#[derive(Clone, Debug)]
pub(super) struct Crew {
    workers: Vec<Worker>,
    start_up: Duration,
}

impl Crew {
    /// So many that are ready from the beginning.
    pub(super) fn ready(count: usize, start_up: Duration) -> Self {
        let worker = Worker { created: Duration::ZERO, ready_at: Duration::ZERO, busy_seconds: 0.0 };
        Self { workers: vec![worker; count], start_up }
    }

    /// So many that have just been made.
    pub(super) fn starting(count: usize, start_up: Duration) -> Self {
        let worker = Worker { created: Duration::ZERO, ready_at: start_up, busy_seconds: 0.0 };
        Self { workers: vec![worker; count], start_up }
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
        let worker = Worker { created: now, ready_at: now + self.start_up, busy_seconds: 0.0 };
        self.workers.resize(to, worker);
    }

    /// Works for so many seconds at so many events per second a busy worker. Shard `s` is that of ready worker `s` modulo their number, and
    /// a worker gives each of its shards an equal part of its time, what one does not need going to the others.
    pub(super) fn work(&mut self, shards: &mut [Shard], compete: bool, rate: f64, seconds: f64, now: Duration) {
        let ready = self.ready_at(now);
        if ready == 0 {
            return;
        }
        if compete {
            // Any worker takes any event: the first shard is all there is.
            if let Some(all) = shards.first_mut() {
                let able = rate * seconds * count(ready);
                let done = able.min(all.waiting());
                all.work(done);
                let busy = if able > 0.0 { done / able * seconds } else { 0.0 };
                self.workers
                    .iter_mut()
                    .filter(|worker| worker.ready_at <= now)
                    .for_each(|worker| worker.busy_seconds += busy);
            }
            return;
        }
        let ready_workers = self.workers.iter_mut().filter(|worker| worker.ready_at <= now);
        for (index, worker) in ready_workers.enumerate() {
            let able = rate * seconds;
            let left = share(shards.iter_mut().skip(index).step_by(ready), able);
            worker.busy_seconds += if able > 0.0 { (able - left) / able * seconds } else { 0.0 };
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
            let mut crew = Crew::ready(ready, seconds(2));
            crew.work(&mut shards, false, 10.0, if ready == 1 { 10.0 } else { 6.0 }, seconds(0));
            assert_eq!(waiting(&shards), left, "{why}");
        }
    }

    #[test]
    fn workers_that_compete_share_one_log() {
        let mut shards = loaded(&[100.0]);
        let mut crew = Crew::ready(3, seconds(2));
        crew.work(&mut shards, true, 10.0, 2.0, seconds(0));
        assert_eq!(waiting(&shards), [40.0]);
        crew.work(&mut shards, true, 10.0, 2.0, seconds(2));
        assert_eq!(waiting(&shards), [0.0]);
        let busy: Vec<f64> = crew.workers().iter().map(|worker| (worker.busy_seconds * 3.0).round()).collect();
        assert_eq!(busy, [10.0; 3], "2 s, and two thirds of 2 s");
    }

    #[test]
    fn workers_take_their_time_to_start_and_the_youngest_go_first() {
        let mut crew = Crew::ready(1, seconds(2));
        crew.scale(3, seconds(10));
        assert_eq!((crew.count(), crew.ready_at(seconds(11)), crew.ready_at(seconds(12))), (3, 1, 3));
        crew.scale(4, seconds(20));
        crew.scale(3, seconds(21));
        assert_eq!((crew.count(), crew.ready_at(seconds(21))), (3, 3));
    }
}
