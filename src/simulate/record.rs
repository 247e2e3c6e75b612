//! Takes in a run tick by tick, and keeps no more of it than can be looked at: memory does not grow with the length of the trace.

use std::time::Duration;

use super::outcome::{Moment, Run, Score};

/// A change that undoes another sooner than this is a reversal.
const REVERSAL_WITHIN: Duration = Duration::from_secs(60);
/// When there are this many moments, each two become one.
const MOST_MOMENTS: usize = 100_000;
/// This many changes of the number of workers are kept; all are counted.
const MOST_CHANGES: usize = 100_000;

/// A run that goes on.
#[derive(Clone, Debug)]
pub(super) struct Record {
    tick: f64,
    target: f64,
    last: Option<Moment>,
    /// The stretch that is not complete, and of how many ticks it is.
    open: Option<(Moment, usize)>,
    /// Ticks in each moment that is kept.
    ticks_a_moment: usize,
    last_change: Option<(Duration, i32, i32)>,
    run: Run,
}

impl Record {
    pub(super) fn new(begins: Duration, tick: Duration, target: Duration) -> Self {
        let score = Score {
            out_of_target_seconds: 0.0,
            out_of_target: 0.0,
            lateness: 0.0,
            worst_staleness_seconds: 0.0,
            worker_seconds: 0.0,
            most_workers: 0,
            changes: 0,
            reversals: 0,
        };
        Self {
            tick: tick.as_secs_f64(),
            target: target.as_secs_f64(),
            last: None,
            open: None,
            ticks_a_moment: 1,
            last_change: None,
            run: Run { begins, target, moments: Vec::new(), changes: Vec::new(), score },
        }
    }

    /// Takes in the next tick. What was before it lasted until now.
    pub(super) fn push(&mut self, moment: Moment) {
        self.run.score.most_workers = self.run.score.most_workers.max(moment.replicas);
        if let Some(before) = self.last.replace(moment) {
            self.lasted(&before);
            if before.replicas != moment.replicas {
                self.changed((moment.at, before.replicas, moment.replicas));
            }
            self.keep(before);
        }
    }

    /// The end, which lasts no time.
    pub(super) fn finish(mut self) -> Run {
        self.run.moments.extend(self.open.map(|(moment, _)| moment));
        self.run.moments.extend(self.last);
        let length = self.last.map_or(0.0, |last| last.at.as_secs_f64());
        let score = &mut self.run.score;
        score.out_of_target = if length > 0.0 { score.out_of_target_seconds / length } else { 0.0 };
        for number in [
            &mut score.out_of_target_seconds,
            &mut score.out_of_target,
            &mut score.lateness,
            &mut score.worst_staleness_seconds,
            &mut score.worker_seconds,
        ] {
            // To the thousandth: sums of many ticks are not exact beyond it.
            *number = (*number * 1_000.0).round() / 1_000.0;
        }
        self.run
    }

    fn lasted(&mut self, moment: &Moment) {
        let staleness = moment.staleness.as_secs_f64();
        let score = &mut self.run.score;
        score.worst_staleness_seconds = score.worst_staleness_seconds.max(staleness);
        score.worker_seconds += f64::from(moment.replicas) * self.tick;
        if staleness > self.target {
            score.out_of_target_seconds += self.tick;
            score.lateness += (staleness - self.target) * self.tick;
        }
    }

    fn changed(&mut self, change: (Duration, i32, i32)) {
        self.run.score.changes += 1;
        if let Some(before) = self.last_change.replace(change) {
            let turned = (before.2 > before.1) != (change.2 > change.1);
            self.run.score.reversals += usize::from(turned && change.0 - before.0 < REVERSAL_WITHIN);
        }
        if self.run.changes.len() < MOST_CHANGES {
            self.run.changes.push(change);
        }
    }

    fn keep(&mut self, moment: Moment) {
        let (stretch, ticks) = match self.open.take() {
            None => (moment, 1),
            Some((mut stretch, ticks)) => {
                stretch.merge(&moment);
                (stretch, ticks + 1)
            }
        };
        if ticks < self.ticks_a_moment {
            self.open = Some((stretch, ticks));
            return;
        }
        self.run.moments.push(stretch);
        if self.run.moments.len() >= MOST_MOMENTS {
            let merged = self.run.moments.chunks(2).filter_map(|pair| {
                let mut first = *pair.first()?;
                pair.iter().skip(1).for_each(|second| first.merge(second));
                Some(first)
            });
            self.run.moments = merged.collect();
            self.ticks_a_moment *= 2;
        }
    }
}

impl Run {
    /// From each tick's moment, in order; at least one. Also for what was measured on a cluster, which is then scored the same way.
    pub fn new(moments: Vec<Moment>, tick: Duration, target: Duration) -> Self {
        let mut record = Record::new(Duration::ZERO, tick, target);
        moments.into_iter().for_each(|moment| record.push(moment));
        record.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment((second, staleness, replicas): (u64, u64, i32)) -> Moment {
        Moment {
            at: Duration::from_secs(second * 10),
            arriving: 1.0,
            pending: 0,
            staleness: Duration::from_secs(staleness),
            measured_pending: 0,
            measured_staleness: Duration::ZERO,
            replicas,
            ready: 1,
            required: None,
        }
    }

    fn recorded(moments: impl Iterator<Item = Moment>) -> Run {
        Run::new(moments.collect(), Duration::from_secs(10), Duration::from_secs(5))
    }

    #[test]
    fn scores_lateness_worker_seconds_and_reversals() {
        let moments = [(0, 0, 1), (1, 7, 1), (2, 5, 4), (3, 6, 4), (4, 1, 2), (5, 1, 2), (6, 0, 5), (13, 9, 3)];
        let run = recorded(moments.map(moment).into_iter());
        let expected = Score {
            out_of_target_seconds: 20.0,
            out_of_target: 0.154,
            lateness: 30.0,
            worst_staleness_seconds: 7.0,
            worker_seconds: 190.0,
            most_workers: 5,
            changes: 4,
            reversals: 2,
        };
        assert_eq!(run.score(), expected, "the last change comes more than a minute after the one before");
        assert_eq!(run.moments().len(), 8);
    }

    #[test]
    fn of_a_long_run_no_more_is_kept_and_nothing_bad_is_lost() {
        let bad = 345_678;
        let run = recorded(
            (0..700_000).map(|tick| moment((tick, if tick == bad { 99 } else { 0 }, 1 + i32::from(tick % 7 == 0)))),
        );
        assert!(run.moments().len() <= MOST_MOMENTS + 1 && run.changes().len() <= MOST_CHANGES);
        let worst = run.moments().iter().max_by_key(|moment| moment.staleness).unwrap();
        assert_eq!(worst.staleness, Duration::from_secs(99));
        assert!(worst.at <= Duration::from_secs(bad * 10) && worst.at > Duration::from_secs(bad * 10 - 160));
        assert_eq!(run.moments().last().map(|end| end.at), Some(Duration::from_secs(6_999_990)));
        let Score { changes, worker_seconds, lateness, .. } = run.score();
        assert_eq!((changes, lateness), (199_999, 940.0));
        assert!((worker_seconds - 7_999_990.0).abs() < 20.0, "{worker_seconds}");
    }
}
