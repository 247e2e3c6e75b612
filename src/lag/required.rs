//! From what is needed to a number of workers within the bounds, and what keeps it from being another one.

use super::{Bounds, Throttled, phases::Stage, shards::Uneven, useful_workers};

/// What bounded the answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Limit {
    /// Nothing.
    None,
    /// More workers than shards would idle.
    Shards,
    /// One shard has more to do than one worker can.
    HottestShard,
    /// The largest number allowed.
    Max,
    /// The smallest number allowed.
    Min,
    /// All events in one order: one worker.
    Ordering,
    /// The read store's connections.
    Connections,
    /// The read store does no more, however many workers there are.
    ReadStore,
    /// The version that readers see, which a run that builds another must not harm.
    LiveVersion,
}

/// The answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Required {
    /// How many workers, within the bounds.
    pub workers: u32,
    /// How many there would be if the read store had connections for all.
    pub wanted: u32,
    /// What bounded the number.
    pub limit: Limit,
    /// What holds it back, where that is the version that readers see.
    pub throttled: Option<Throttled>,
    /// The sentence that explains it to a person.
    pub reason: String,
}

/// A number of workers within the bounds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Fit {
    pub(super) workers: u32,
    pub(super) limit: Limit,
}

/// The shards that limit the number of workers.
pub(super) fn shards(bounds: &Bounds) -> Option<u32> {
    bounds.shards.filter(|shards| *shards > 0 && !bounds.strict)
}

/// The largest number by `maxWorkers` alone.
pub(super) fn most(bounds: &Bounds, stage: Stage) -> u32 {
    let catching_up = bounds.catch_up.filter(|_| matches!(stage, Stage::CatchingUp { .. }));
    catching_up.map_or(bounds.max, |catch_up| catch_up.max).max(1)
}

/// The largest number that is allowed and of use.
pub(super) fn top(bounds: &Bounds, stage: Stage) -> u32 {
    let ordering = if bounds.strict { 1 } else { u32::MAX };
    most(bounds, stage).min(shards(bounds).unwrap_or(u32::MAX)).min(ordering)
}

/// The smallest number of workers that is worth `needed` full ones, within the bounds but for the read store's.
pub(super) fn fit(needed: f64, uneven: Option<Uneven>, bounds: &Bounds, stage: Stage) -> Fit {
    let top = top(bounds, stage);
    let least = bounds.min.clamp(1, top);
    let useful = useful_workers(needed, shards(bounds), top);
    let (workers, enough) = match uneven {
        Some(uneven) if uneven.only_hottest_too_hot() => {
            return Fit { workers: uneven.useful_workers(top).max(least), limit: Limit::HottestShard };
        }
        Some(uneven) => {
            let workers = uneven.useful_workers(top).max(useful);
            (workers, uneven.suffice(workers))
        }
        None => (useful, super::shards::worth(useful, shards(bounds)) >= needed),
    };
    let limit = match shards(bounds) {
        _ if enough && least > workers => Limit::Min,
        _ if enough => Limit::None,
        _ if bounds.strict => Limit::Ordering,
        Some(shards) if shards <= most(bounds, stage) => Limit::Shards,
        _ => Limit::Max,
    };
    Fit { workers: workers.max(least), limit }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn bounds(min: u32, max: u32, shards: Option<u32>) -> Bounds {
        Bounds {
            target: Duration::from_secs(10),
            min,
            max,
            shards,
            strict: false,
            stuck_after: Duration::from_secs(300),
            idle_for: Duration::from_secs(300),
            catch_up: None,
            given_rate: None,
            connections: None,
            strain: None,
            throttled: None,
            retention: None,
            look_ahead: None,
            value: None,
        }
    }

    #[test]
    fn says_what_bounds_it() {
        let strict = Bounds { strict: true, ..bounds(1, 10, Some(24)) };
        for (needed, bounds, workers, limit) in [
            (3.8, bounds(1, 10, None), 4, Limit::None),
            (0.0, bounds(1, 10, None), 1, Limit::None),
            (0.0, bounds(0, 10, None), 1, Limit::None),
            (0.5, bounds(3, 10, None), 3, Limit::Min),
            (99.0, bounds(1, 10, None), 10, Limit::Max),
            (99.0, bounds(1, 10, Some(6)), 6, Limit::Shards),
            (99.0, bounds(1, 10, Some(24)), 8, Limit::Max),
            (7.0, bounds(1, 24, Some(24)), 8, Limit::None),
            (7.0, strict, 1, Limit::Ordering),
            (0.7, strict, 1, Limit::None),
            (5.0, bounds(12, 4, None), 4, Limit::Max),
        ] {
            assert_eq!(fit(needed, None, &bounds, Stage::Live), Fit { workers, limit }, "{needed} {bounds:?}");
        }
    }

    #[test]
    fn a_shard_that_is_too_hot_is_said_and_asks_for_no_useless_workers() {
        let hot = Uneven { shards: 24, hottest: 3.0, other: 0.05 };
        let answer = fit(4.0, Some(hot), &bounds(1, 24, Some(24)), Stage::Live);
        assert_eq!(answer, Fit { workers: 8, limit: Limit::HottestShard });
    }

    #[test]
    fn where_every_shard_is_too_hot_their_number_is_the_bound_and_not_the_hottest() {
        let hot = Uneven { shards: 4, hottest: 1.5, other: 1.5 };
        let answer = |most| fit(6.0, Some(hot), &bounds(1, most, Some(4)), Stage::Live);
        assert_eq!(answer(10), Fit { workers: 4, limit: Limit::Shards });
        assert_eq!(answer(2), Fit { workers: 2, limit: Limit::Max });
    }

    #[test]
    fn catching_up_has_a_bound_of_its_own() {
        let within = Duration::from_secs(3_600);
        let bounds = Bounds { catch_up: Some(super::super::CatchUp { within, max: 20 }), ..bounds(1, 4, None) };
        let stage = Stage::CatchingUp { left: within };
        assert_eq!(fit(99.0, None, &bounds, stage), Fit { workers: 20, limit: Limit::Max });
        assert_eq!(fit(99.0, None, &bounds, Stage::Live), Fit { workers: 4, limit: Limit::Max });
    }
}
