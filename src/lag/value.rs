//! Workers by a plain value that has a target, instead of by what waits.
//!
//! Where the value says how much there is to do, each worker gets its share of it. Where the value is what workers bring down, such as a latency, the workers
//! that are there are multiplied by how far it is off, as a HorizontalPodAutoscaler does, and only once the last change can be seen in it.

use std::time::Duration;

use super::{
    Bounds, Workers,
    phases::Stage,
    required::{Fit, fit},
};

/// What a value is to be; above 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ValueTarget {
    /// For the whole value, which falls as workers are added.
    Whole(f64),
    /// For each worker's share of it.
    PerWorker(f64),
}

/// The autoscaler's own tolerance.
const TOLERANCE: f64 = 0.1;
/// After the number of ready workers has changed, the value is watched for this long before it is acted on again: as long as an autoscaler waits between two
/// looks.
const SETTLE: Duration = Duration::from_secs(15);
/// Workers that come and go for this long without settling no longer keep the number from following the value.
const UNSETTLED_AT_MOST: Duration = Duration::from_secs(300);

/// What the value is, and what that asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ValueAssessment {
    /// The value.
    pub value: f64,
    /// What it is to be.
    pub target: ValueTarget,
    /// It is no more than it is to be, within the tolerance.
    pub within: bool,
}

/// When the number last followed the value.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ValueRule {
    decided: Option<Duration>,
}

/// What the rule looks at.
#[derive(Clone, Copy, Debug)]
pub(super) struct ValueInput {
    pub(super) at: Duration,
    pub(super) value: f64,
    pub(super) target: ValueTarget,
    pub(super) workers: Workers,
    /// How long this number of workers has been ready.
    pub(super) settled_for: Duration,
    /// The last answer.
    pub(super) before: Option<u32>,
}

impl ValueRule {
    /// The number of workers within the bounds but for the read store's, and why.
    pub(super) fn observe(&mut self, seen: ValueInput, bounds: &Bounds) -> (Fit, String) {
        let ValueInput { at, value, target, workers, settled_for, before } = seen;
        let value_shown = shown(value);
        let (needed, why) = match target {
            ValueTarget::PerWorker(each) => {
                let needed = (value.max(0.0) / each).ceil();
                (needed, format!("the value {value_shown} at {} for each worker", shown(each)))
            }
            ValueTarget::Whole(target) => {
                let last = before.unwrap_or(workers.ready).max(1);
                let ratio = value.max(0.0) / target;
                let decided = self.decided.filter(|decided| *decided <= at).unwrap_or(at);
                let overdue = at - decided >= UNSETTLED_AT_MOST && workers.ready > 0;
                self.decided = Some(decided);
                if (workers.rolling || workers.ready == 0 || settled_for < SETTLE) && !overdue {
                    let why = format!(
                        "the value {value_shown} is watched until {} s after the last change of workers",
                        SETTLE.as_secs()
                    );
                    return (fit(f64::from(last), None, bounds, Stage::Live), why);
                }
                self.decided = Some(at);
                let ready = f64::from(workers.ready);
                if (1.0 - TOLERANCE..=1.0 + TOLERANCE).contains(&ratio) {
                    (ready, format!("the value {value_shown} is within 10 % of its target {}", shown(target)))
                } else {
                    let why = format!(
                        "the value {value_shown} is {ratio:.2} times its target {}, with {ready} ready workers",
                        shown(target)
                    );
                    ((ready * ratio).ceil(), why)
                }
            }
        };
        (fit(needed, None, bounds, Stage::Live), why)
    }
}

/// Whether the value is no more than it is to be.
pub(super) fn within(value: f64, target: ValueTarget, ready: u32) -> bool {
    let most = match target {
        ValueTarget::Whole(target) => target,
        ValueTarget::PerWorker(each) => each * f64::from(ready),
    };
    value <= most * (1.0 + TOLERANCE)
}

/// At most four digits of it.
fn shown(value: f64) -> String {
    if value == 0.0 || (0.001..1e9).contains(&value.abs()) {
        let text = format!("{value:.3}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        format!("{value:.3e}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lag::Limit;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn bounds(min: u32, max: u32) -> Bounds {
        Bounds {
            target: seconds(10),
            min,
            max,
            shards: None,
            strict: false,
            stuck_after: seconds(300),
            idle_for: seconds(300),
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

    fn seen(value: f64, target: ValueTarget, ready: u32) -> ValueInput {
        let workers = Workers { ready, rolling: false };
        ValueInput { at: seconds(100), value, target, workers, settled_for: seconds(60), before: Some(ready) }
    }

    fn once(seen: ValueInput, bounds: &Bounds) -> (u32, Limit) {
        let (fit, _) = ValueRule::default().observe(seen, bounds);
        (fit.workers, fit.limit)
    }

    #[test]
    fn a_whole_value_multiplies_the_ready_workers_as_the_autoscaler_does() {
        // The autoscaler's own cases: thousandths of value and target, ready pods, and what it asks for.
        for (ready, value, target, workers) in [
            (3, 8.6, 6.666, 4),
            (5, 8.6, 14.4, 3),
            (4, 8.6, 8.666, 4),
            (3, 20.0, 15.0, 4),
            (10, 1.1, 1.0, 10),
            (10, 1.11, 1.0, 12),
        ] {
            let asked = once(seen(value, ValueTarget::Whole(target), ready), &bounds(1, 100));
            assert_eq!(asked, (workers, Limit::None), "{ready} at {value}/{target}");
        }
        assert_eq!(once(seen(99.0, ValueTarget::Whole(1.0), 4), &bounds(1, 10)), (10, Limit::Max));
        assert_eq!(once(seen(0.0, ValueTarget::Whole(1.0), 4), &bounds(2, 10)), (2, Limit::Min));
        assert_eq!(once(seen(-5.0, ValueTarget::Whole(1.0), 4), &bounds(1, 10)), (1, Limit::None), "less than none");
    }

    #[test]
    fn each_worker_gets_its_share_whatever_is_ready() {
        for (value, each, workers) in [(0.0, 100.0, 1), (100.0, 100.0, 1), (101.0, 100.0, 2), (999.5, 100.0, 10)] {
            for ready in [0, 1, 50] {
                let asked = once(seen(value, ValueTarget::PerWorker(each), ready), &bounds(1, 100));
                assert_eq!(asked, (workers, Limit::None), "{value}/{each} with {ready}");
            }
        }
        assert_eq!(once(seen(1e300, ValueTarget::PerWorker(1e-6), 1), &bounds(1, 7)), (7, Limit::Max));
        let strict = Bounds { strict: true, ..bounds(1, 1) };
        assert_eq!(once(seen(500.0, ValueTarget::PerWorker(100.0), 1), &strict), (1, Limit::Ordering));
        let shards = Bounds { shards: Some(24), ..bounds(1, 24) };
        assert_eq!(once(seen(900.0, ValueTarget::PerWorker(100.0), 1), &shards).0, 12, "9 to 11 are worth 8");
    }

    #[test]
    fn a_value_that_has_not_followed_the_last_change_yet_multiplies_nothing() {
        let target = ValueTarget::Whole(1.0);
        let high = seen(3.0, target, 4);
        for unsettled in [
            ValueInput { settled_for: seconds(14), ..high },
            ValueInput { workers: Workers { ready: 4, rolling: true }, ..high },
            ValueInput { workers: Workers { ready: 0, rolling: false }, ..high },
        ] {
            let before = ValueInput { before: Some(8), ..unsettled };
            assert_eq!(once(before, &bounds(1, 100)), (8, Limit::None), "{before:?}");
            let low = ValueInput { value: 0.1, ..before };
            assert_eq!(once(low, &bounds(1, 100)), (8, Limit::None), "no worker goes while some start");
        }
        let nothing_known = ValueInput { before: None, workers: Workers::default(), ..high };
        assert_eq!(once(nothing_known, &bounds(1, 100)).0, 1, "no ready worker is no reason for none");
    }

    #[test]
    fn workers_that_never_settle_keep_the_number_only_for_a_while() {
        let mut rule = ValueRule::default();
        let flapping = |at| {
            let workers = Workers { ready: 4, rolling: true };
            ValueInput {
                at: seconds(at),
                workers,
                settled_for: Duration::ZERO,
                before: Some(8),
                ..seen(3.0, ValueTarget::Whole(1.0), 4)
            }
        };
        assert_eq!(rule.observe(flapping(0), &bounds(1, 100)).0.workers, 8);
        assert_eq!(rule.observe(flapping(299), &bounds(1, 100)).0.workers, 8);
        assert_eq!(rule.observe(flapping(300), &bounds(1, 100)).0.workers, 12);
        assert_eq!(rule.observe(flapping(301), &bounds(1, 100)).0.workers, 8, "and then waits again");
    }

    #[test]
    fn a_value_is_within_its_target_up_to_the_tolerance() {
        assert!(within(1.1, ValueTarget::Whole(1.0), 3) && !within(1.2, ValueTarget::Whole(1.0), 3));
        assert!(within(330.0, ValueTarget::PerWorker(100.0), 3) && !within(331.0, ValueTarget::PerWorker(100.0), 3));
    }

    #[test]
    fn values_are_shown_as_people_write_them() {
        for (value, text) in
            [(0.2, "0.2"), (250.0, "250"), (0.0, "0"), (1.0 / 3.0, "0.333"), (1e12, "1.000e12"), (-2.5, "-2.5")]
        {
            assert_eq!(shown(value), text);
        }
    }
}
