//! Tries fewer workers step by step, where their number does not come from a learnt rate.
//!
//! Workers without work do not show how much they could do. So as long as the rate per worker was not learnt from workers that were the bottleneck
//! (it is not known, it was remembered from an earlier run, or it fell by half in a queue that is gone), and no step of the checkpoint leaves a
//! queue, the next smaller number is tried; then the next. The first number that is not enough shows the rate within a few looks.

use std::time::Duration;

use super::{
    capacity::WARM_UP,
    shards::{round_up, worth},
};

/// Until a number that is too small has been replaced, the events may wait longer by this share of the target.
const RISK: f64 = 0.4;
/// No step takes away more than half of what the workers are worth, or less than about a seventh.
const FARTHEST: f64 = 0.5;
const NEAREST: f64 = 0.85;
/// A number has been enough when no queue was seen for this long, and for `STEPS` steps of the checkpoint.
const ENOUGH: Duration = Duration::from_secs(4);
const STEPS: f64 = 1.2;
/// After a number was not enough and taught no rate, none is tried for this long.
const PAUSE: Duration = Duration::from_secs(120);
/// Fewer events per second than this count as no load.
const IDLE: f64 = 0.1;
/// A load of more than this many times the trial's is another load.
const SAME: f64 = 1.5;

/// Follows what is tried.
#[derive(Clone, Debug, Default)]
pub(super) struct Trial {
    /// Since when there has been no queue, and the fewest events per second that have arrived since.
    calm_since: Option<(Duration, f64)>,
    /// The number of full workers that is tried, and the events per second that arrived when the trial began.
    tried: Option<(f64, f64)>,
    /// The number of full workers that was enough, and for how many events per second.
    enough: Option<(f64, f64)>,
    /// When a number was not enough, and the trial returned to the one before it.
    returned_at: Option<Duration>,
    paused_until: Duration,
}

/// What a trial needs to know.
#[derive(Clone, Copy, Debug)]
pub(super) struct Looked {
    pub(super) at: Duration,
    /// The rate per worker is learnt, or given by the spec.
    pub(super) known: bool,
    /// The last steps left no queue.
    pub(super) calm: bool,
    /// A queue endangers the target.
    pub(super) danger: bool,
    /// The last answer.
    pub(super) workers: u32,
    pub(super) ready: u32,
    pub(super) rolling: bool,
    /// How long this number of workers has been ready.
    pub(super) settled_for: Duration,
    pub(super) arrival: f64,
    /// From one step of the checkpoint to the next.
    pub(super) step: Duration,
    /// How long it takes to see a queue, to learn from it, and to have more workers.
    pub(super) notice: Duration,
    pub(super) target: Duration,
    pub(super) least: u32,
    pub(super) shards: Option<u32>,
}

impl Trial {
    /// Takes in a look; returns how many events per second each worker has been seen to do without a queue, once that is known.
    pub(super) fn observe(&mut self, look: Looked) -> Option<f64> {
        if look.known {
            *self = Self { paused_until: self.paused_until, ..Self::default() };
            return None;
        }
        if look.danger {
            self.calm_since = None;
            self.go_back(&look);
            return None;
        }
        let settled = look.ready >= look.workers && !look.rolling && look.settled_for >= WARM_UP;
        if !look.calm || !settled {
            self.calm_since = None;
            return None;
        }
        // A time without a queue shows nothing about a load that has just come.
        let same = |(_, arrival): &(Duration, f64)| look.arrival <= arrival.max(IDLE) * SAME;
        let (since, least) = self.calm_since.filter(same).unwrap_or((look.at, look.arrival));
        self.calm_since = Some((since, least.min(look.arrival)));
        if look.at.saturating_sub(since) < ENOUGH.max(look.step.mul_f64(STEPS)) {
            return None;
        }
        let next = lower(look.workers, share(look.target, look.notice), look.least, look.shards);
        if look.at >= self.paused_until && next < look.workers {
            self.tried = Some((worth(next, look.shards), look.arrival));
            self.calm_since = None;
        }
        self.returned_at = None;
        self.enough = Some((worth(look.workers, look.shards), look.arrival));
        Some(look.arrival / worth(look.workers, look.shards).max(1.0))
    }

    /// Returns to the number that was enough for this load, for long enough to see whether it still is; then the load decides again.
    fn go_back(&mut self, look: &Looked) {
        let Some((_, tried_at)) = self.tried else { return };
        let over = self.returned_at.is_some_and(|since| look.at.saturating_sub(since) >= look.notice * 2);
        if over || look.arrival > tried_at * SAME {
            (self.tried, self.returned_at) = (None, None);
            return;
        }
        if self.returned_at.is_none() {
            self.tried = self.enough;
            self.returned_at = Some(look.at);
            self.paused_until = look.at + PAUSE;
        }
    }

    /// The most full workers, as long as the load is the same.
    pub(super) fn most(&self, arrival: f64) -> Option<f64> {
        let (workers, tried_at) = self.tried?;
        let times = arrival / tried_at.max(IDLE);
        Some(workers * if times > SAME { times } else { 1.0 })
    }
}

/// The share of the workers' worth that may be left, so that a number that is too small is replaced before the target is in danger.
fn share(target: Duration, notice: Duration) -> f64 {
    let growth = RISK * target.as_secs_f64() / notice.as_secs_f64().max(0.1);
    (1.0 / (1.0 + growth)).clamp(FARTHEST, NEAREST)
}

/// The smallest number that is worth this share of `workers`, or the next smaller one that differs.
fn lower(workers: u32, share: f64, least: u32, shards: Option<u32>) -> u32 {
    let least = least.max(1);
    let enough = worth(workers, shards) * share;
    let first = |wanted: f64| (least..workers).find(|fewer| worth(*fewer, shards) >= wanted);
    let below = || {
        let next = (least..workers).rev().find(|fewer| worth(*fewer, shards) < worth(workers, shards))?;
        first(worth(next, shards))
    };
    let differs = |fewer: &u32| worth(*fewer, shards) < worth(workers, shards);
    let found = first(enough).filter(differs).or_else(below).or_else(|| (least < workers).then_some(least));
    found.map_or(workers, |fewer| round_up(fewer, shards, workers))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn look(at: u64, workers: u32) -> Looked {
        Looked {
            at: seconds(at),
            known: false,
            calm: true,
            danger: false,
            workers,
            ready: workers,
            rolling: false,
            settled_for: seconds(60),
            arrival: 10.0,
            step: Duration::ZERO,
            notice: seconds(6),
            target: seconds(15),
            least: 1,
            shards: Some(24),
        }
    }

    #[test]
    fn the_next_number_is_as_small_as_the_target_allows_and_differs() {
        for (workers, share, least, shards, expected) in [
            (24, 0.5, 1, Some(24), 12),
            (24, 0.85, 1, Some(24), 12),
            (12, 0.5, 1, Some(24), 6),
            (12, 0.85, 1, Some(24), 8),
            (2, 0.85, 1, Some(24), 1),
            (1, 0.5, 1, Some(24), 1),
            (12, 0.5, 8, Some(24), 8),
            (10, 0.5, 1, None, 5),
            (3, 0.85, 1, None, 2),
            (3, 0.5, 0, None, 2),
        ] {
            assert_eq!(lower(workers, share, least, shards), expected, "{workers} {share} {least} {shards:?}");
        }
        assert_eq!(share(seconds(15), seconds(6)), FARTHEST);
        assert!(share(seconds(3), seconds(12)) > 0.84, "a tight target goes carefully");
    }

    #[test]
    fn a_number_that_was_enough_for_a_while_and_a_step_gives_way_to_the_next() {
        let mut trial = Trial::default();
        assert_eq!(trial.observe(look(100, 24)), None);
        assert_eq!(trial.observe(look(104, 24)), Some(10.0 / 24.0));
        assert_eq!(trial.most(10.0), Some(12.0));
        assert_eq!(trial.most(40.0), Some(48.0), "another load is another matter");
        let slow = |at| Looked { step: seconds(5), ..look(at, 12) };
        assert_eq!((trial.observe(slow(110)), trial.observe(slow(115)), trial.most(10.0)), (None, None, Some(12.0)));
        assert!(trial.observe(slow(116)).is_some());
        assert_eq!(trial.most(10.0), Some(6.0));
    }

    #[test]
    fn calm_is_shown_for_the_load_that_there_was_and_not_for_one_that_has_just_come() {
        let mut trial = Trial::default();
        let loaded = |at, workers, arrival| Looked { arrival, ..look(at, workers) };
        for at in 100..200 {
            trial.observe(loaded(at, 2, 0.0));
        }
        assert_eq!(trial.most(0.0), Some(1.0));
        for at in 200..204 {
            assert_eq!(trial.observe(loaded(at, 2, 400.0)), None, "no queue can be seen yet");
        }
        assert!(trial.most(400.0).unwrap() > 24.0, "another load is another matter");
        assert_eq!(trial.observe(loaded(204, 2, 400.0)), Some(200.0), "it has lasted for a while");
        trial.observe(loaded(205, 2, 0.0));
        assert_eq!(trial.observe(loaded(206, 2, 400.0)), None, "after a lull it has just come again");
    }

    #[test]
    fn what_is_known_in_danger_or_not_settled_is_not_tried() {
        for spoil in [
            |look| Looked { known: true, ..look },
            |look| Looked { danger: true, ..look },
            |look| Looked { calm: false, ..look },
            |look| Looked { rolling: true, ..look },
            |look| Looked { ready: 3, ..look },
            |look| Looked { settled_for: Duration::ZERO, ..look },
        ] {
            let mut trial = Trial::default();
            for at in 100..200 {
                assert_eq!(trial.observe(spoil(look(at, 24))), None);
            }
            assert_eq!(trial.most(10.0), None);
        }
    }

    #[test]
    fn after_a_number_that_was_not_enough_the_one_before_it_is_gone_back_to_and_then_whatever_is_needed() {
        let mut trial = Trial::default();
        for at in 100..120 {
            trial.observe(look(at, if at < 105 { 24 } else { 12 }));
        }
        assert_eq!(trial.most(10.0), Some(6.0));
        let danger = |at| Looked { danger: true, ..look(at, 6) };
        trial.observe(danger(130));
        assert_eq!(trial.most(10.0), Some(12.0), "12 were enough");
        trial.observe(danger(141));
        assert_eq!(trial.most(10.0), Some(12.0));
        trial.observe(danger(142));
        assert_eq!(trial.most(10.0), None, "and no longer are");
        for at in 143..250 {
            trial.observe(look(at, 24));
        }
        assert_eq!(trial.most(10.0), None, "none is tried for a while");
        for at in 250..260 {
            trial.observe(look(at, 24));
        }
        assert_eq!(trial.most(10.0), Some(12.0));
        trial.observe(Looked { danger: true, arrival: 400.0, ..look(261, 12) });
        assert_eq!(trial.most(400.0), None, "another load teaches nothing of this one");
    }
}
