//! What a person reads, for each bound and phase.

use super::*;
use crate::lag::{CatchUp, Strain};

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn bounds() -> Bounds {
    Bounds {
        target: seconds(30),
        min: 0,
        max: 24,
        shards: Some(6),
        strict: false,
        stuck_after: seconds(300),
        idle_for: seconds(300),
        catch_up: Some(CatchUp { within: seconds(3_600), max: 40 }),
        given_rate: None,
        connections: Some(4),
        strain: None,
        throttled: None,
        retention: None,
        look_ahead: None,
        value: None,
    }
}

fn told(bounds: &Bounds) -> Told<'_> {
    Told {
        workers: 6,
        wanted: 6,
        fit: Fit { workers: 6, limit: Limit::None },
        need: Need { workers: 5.7, left: 21.0, why: Why::Rates },
        arrival: 1_840.4,
        expected: false,
        per_worker: Some(410.0),
        pending: Pending { events: 9_200, exact: true },
        cadence: None,
        waiting: 9_200,
        certain: None,
        by_certain: false,
        extent: Extent::Exact,
        idle_for: Duration::ZERO,
        idle: false,
        stage: Stage::Live,
        hottest_share: Some(0.61),
        saturated: Some(Saturated { fewer: 4, throughput: 812.0, since: Duration::ZERO }),
        stuck: false,
        rolling: false,
        jump: None,
        bounds,
    }
}

const LOAD: &str = "6 workers: 1,840 events/s arrive, a worker does 410/s, 9,200 pending to clear in 21 s";

#[test]
fn each_bound_is_said_with_what_it_means() {
    let bounds = bounds();
    for (limit, expected) in [
        (Limit::None, ""),
        (Limit::Shards, "; bound by 6 shards: adding workers will not help"),
        (Limit::Max, "; bound by maxWorkers 24"),
        (Limit::Min, "; minWorkers is 0"),
        (Limit::Ordering, "; bound by ordering Strict: more workers would break the order"),
        (
            Limit::HottestShard,
            "; bound by the hottest shard, which has 61 % of what waits, more than one worker can do: adding workers will not help",
        ),
        (
            Limit::ReadStore,
            "; bound by the read store: 4 workers did as much, 812/s together, so adding workers will not help",
        ),
    ] {
        let told = Told { fit: Fit { workers: 6, limit }, ..told(&bounds) };
        assert_eq!(sentence(&told), format!("{LOAD}{expected}"), "{limit:?}");
    }
    let strained = Bounds { strain: Some(Strain::Writes), ..bounds };
    let strained = Told { fit: Fit { workers: 6, limit: Limit::ReadStore }, saturated: None, ..told(&strained) };
    assert_eq!(
        sentence(&strained),
        format!("{LOAD}; no more workers while the read store refuses writes for want of room")
    );
    let few = Told { workers: 4, fit: Fit { workers: 6, limit: Limit::Connections }, ..told(&bounds) };
    assert!(
        sentence(&few).ends_with("; bound by the read store's connections, which are enough for 4 of 6 workers"),
        "{}",
        sentence(&few)
    );
}

#[test]
fn each_phase_is_said() {
    let bounds = bounds();
    let told = || told(&bounds);
    let catching_up = Told { stage: Stage::CatchingUp { left: seconds(2_520) }, ..told() };
    assert_eq!(sentence(&catching_up), format!("{LOAD}; catching up, 42 min of 60 min left"));
    let bound = Told { fit: Fit { workers: 6, limit: Limit::Max }, ..catching_up };
    assert!(sentence(&bound).ends_with("; bound by catchUp.maxWorkers 40"));
    let late = Told { stage: Stage::CatchingUp { left: Duration::ZERO }, ..told() };
    assert!(sentence(&late).ends_with("; catching up for longer than the 60 min allowed"));
    let idle = Told { workers: 0, idle: true, idle_for: seconds(420), ..told() };
    assert_eq!(sentence(&idle), "0 workers: nothing has waited or arrived for 7 min");
    let doubling = Told { need: Need { why: Why::Doubling, ..told().need }, ..told() };
    assert_eq!(
        sentence(&doubling),
        "6 workers: 9,200 pending and what a worker does is not learnt yet, so their number is doubled while the target is in danger"
    );
    let unlearnt = Told {
        workers: 1,
        fit: Fit { workers: 1, limit: Limit::None },
        need: Need { why: Why::NotLearnt, ..told().need },
        pending: Pending { events: 3, exact: false },
        ..told()
    };
    assert_eq!(sentence(&unlearnt), "1 worker: about 3 pending, the target is not in danger");
}

#[test]
fn what_keeps_more_workers_than_needed_is_said() {
    let bounds = bounds();
    let kept = Told { fit: Fit { workers: 3, limit: Limit::None }, ..told(&bounds) };
    assert_eq!(sentence(&kept), format!("{LOAD}; 3 would do, but none is taken away yet"));
    let rolling = Told { rolling: true, ..kept };
    assert!(sentence(&rolling).ends_with("none is taken away while workers are replaced or started"));
    let stuck = Told { stuck: true, ..told(&bounds) };
    assert!(sentence(&stuck).ends_with("; not scaling out, since the checkpoint does not move"));
    let jump = Some(Jump { arrived: 5_000_000, within: seconds(1) });
    let jumped = sentence(&Told { jump, ..told(&bounds) });
    assert!(jumped.contains("; 5,000,000 events at once are a thousand times what is usual"), "{jumped}");
}

#[test]
fn numbers_are_rounded_as_a_person_would() {
    for (value, expected) in
        [(0.0, "0"), (0.26, "0.3"), (4.0, "4"), (9.96, "10"), (1_839.6, "1,840"), (1e30, "18,446,744,073,709,551,615")]
    {
        assert_eq!(rate(value), expected);
    }
    for (time, expected) in [(1.25, "1.2 s"), (5.0, "5 s"), (21.4, "21 s"), (300.0, "5 min"), (86_400.0, "24 h")] {
        assert_eq!(span(Duration::from_secs_f64(time)), expected);
    }
}
