//! Whole stories: a source, its shards and its workers, second by second, and what the model makes of them.

use super::*;
use crate::lag::{CatchUp, CheckpointState, Head, Limit, Position, Required, Stage, Strain};

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn bounds() -> Bounds {
    Bounds {
        target: seconds(10),
        min: 0,
        max: 24,
        shards: Some(24),
        strict: false,
        stuck_after: seconds(300),
        idle_for: seconds(60),
        catch_up: None,
        given_rate: Some(50.0),
        connections: None,
        strain: None,
        throttled: None,
        retention: None,
        look_ahead: None,
        value: None,
    }
}

/// Shards that come whole, each with a queue of its own; workers appear when they are asked for, two seconds later.
struct World {
    now: u64,
    model: Model,
    bounds: Bounds,
    /// Events of each shard: those that came and those that are done.
    shards: Vec<(f64, f64)>,
    /// When the oldest waiting event of each shard came: a line of arrivals would be exact, a queue of seconds is enough.
    queues: Vec<std::collections::VecDeque<(u64, f64)>>,
    workers: u32,
    starting: Vec<(u64, u32)>,
    /// All workers together do no more than this.
    store: f64,
    each: f64,
    follow: bool,
}

impl World {
    fn new(bounds: Bounds, workers: u32) -> Self {
        Self {
            now: 1_000,
            model: Model::remembering(None, Some(workers), None),
            bounds,
            shards: vec![(0.0, 0.0); 24],
            queues: vec![std::collections::VecDeque::new(); 24],
            workers,
            starting: Vec::new(),
            store: f64::INFINITY,
            each: 50.0,
            follow: true,
        }
    }

    /// So many arrive in all, `hot` of them in the first shard.
    fn second(&mut self, arrived: f64, hot: f64) -> Assessment {
        self.now += 1;
        let now = self.now;
        self.starting.retain(|(at, workers)| {
            if *at <= now {
                self.workers = *workers;
            }
            *at > now
        });
        for (index, queue) in self.queues.iter_mut().enumerate() {
            let share = if index == 0 { hot } else { (arrived - hot) / 23.0 };
            self.shards[index].0 += share;
            queue.push_back((now, share));
        }
        let able = self.each.min(self.store / f64::from(self.workers.max(1)));
        for worker in 0..self.workers as usize {
            let mut left = able;
            let own: Vec<usize> = (worker..24).step_by(self.workers as usize).collect();
            for _ in 0..4 {
                let busy: Vec<usize> =
                    own.iter().copied().filter(|shard| waiting(&self.shards[*shard]) > 0.0).collect();
                let part = left / count(busy.len().max(1));
                for shard in busy {
                    let done = part.min(waiting(&self.shards[shard]));
                    self.shards[shard].1 += done;
                    left -= done;
                    take(&mut self.queues[shard], done);
                }
            }
        }
        let assessment = self.observe();
        if self.follow && assessment.required.workers != self.workers && self.starting.is_empty() {
            self.starting.push((self.now + 2, assessment.required.workers));
        }
        assessment
    }

    fn sample(&self) -> Sample {
        let all: f64 = self.shards.iter().map(|shard| shard.0).sum();
        let by_shard: Vec<u64> = self.shards.iter().map(|shard| whole(waiting(shard))).collect();
        let oldest = self.queues.iter().filter_map(|queue| queue.front()).map(|front| front.0).min();
        let pending = by_shard.iter().sum();
        Sample {
            taken: jiff::Timestamp::from_second(i64::try_from(self.now).unwrap()).unwrap(),
            pending_by_shard: by_shard,
            staleness: Some(if pending == 0 { Duration::ZERO } else { seconds(self.now - oldest.unwrap_or(self.now)) }),
            ..Sample::new(
                seconds(self.now),
                Head::log(Position(i64::MAX), Position(i64::MAX)),
                CheckpointState::Committed(
                    self.shards.iter().map(|shard| Position(i64::try_from(whole(shard.1)).unwrap())).collect(),
                ),
                Some(Pending { events: pending, exact: true }),
                whole(all),
            )
        }
    }

    fn observe(&mut self) -> Assessment {
        let workers = Workers { ready: self.workers, rolling: !self.starting.is_empty() };
        self.model.observe(&self.sample(), workers, self.bounds).unwrap()
    }

    fn seconds(&mut self, times: u64, arrived: f64) -> Assessment {
        (0..times).map(|_| self.second(arrived, arrived / 24.0)).last().unwrap()
    }
}

fn waiting(shard: &(f64, f64)) -> f64 {
    if shard.0 - shard.1 < 1e-6 { 0.0 } else { shard.0 - shard.1 }
}

fn take(queue: &mut std::collections::VecDeque<(u64, f64)>, mut done: f64) {
    while let Some(front) = queue.front_mut() {
        if front.1 > done + 1e-6 {
            front.1 -= done;
            return;
        }
        done -= front.1;
        queue.pop_front();
    }
}

#[allow(clippy::cast_precision_loss)]
fn count(number: usize) -> f64 {
    number as f64
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn whole(number: f64) -> u64 {
    (number + 1e-6) as u64
}

#[test]
fn zero_exactly_when_nothing_has_waited_or_arrived_for_long_enough_and_back_with_the_first_event() {
    let mut world = World::new(bounds(), 2);
    world.seconds(10, 48.0);
    let busy = world.now;
    let mut slept_at = None;
    for _ in 0..120 {
        let assessment = world.seconds(1, 0.0);
        if assessment.pending.events == 0 && assessment.required.workers == 0 {
            slept_at = slept_at.or(Some(world.now - busy));
            assert!(assessment.idle_for >= seconds(60), "{:?}", assessment.idle_for);
            assert_eq!(assessment.required.limit, Limit::None);
        }
    }
    assert!((60..=63).contains(&slept_at.unwrap()), "{slept_at:?}");
    assert_eq!(world.workers, 0);
    let woken = world.seconds(1, 24.0);
    assert_eq!((woken.required.workers, woken.idle_for), (1, Duration::ZERO));
}

#[test]
fn a_burst_on_a_sleeping_projection_asks_for_all_at_once() {
    let mut world = World::new(bounds(), 0);
    world.seconds(1, 0.0);
    world.follow = false;
    let woken = world.seconds(2, 4_800.0);
    assert!(woken.required.workers >= 12, "{}", woken.required.reason);
}

#[test]
fn nothing_sleeps_across_a_gap_of_samples_or_without_a_checkpoint() {
    let mut world = World::new(bounds(), 1);
    world.seconds(40, 0.0);
    world.now += 61;
    assert_eq!(world.seconds(1, 0.0).required.workers, 1);
    let asleep = world.seconds(61, 0.0);
    assert_eq!(asleep.required.workers, 0);
    let gone = Sample { checkpoint: CheckpointState::NeverCommitted, pending: None, ..world.sample() };
    assert_eq!(world.model.observe(&gone, Workers::default(), world.bounds), Err(Fault::NeverCommitted));
    assert_eq!(world.seconds(1, 0.0).required.workers, 1);
}

#[test]
fn the_read_stores_connections_bound_what_is_wanted() {
    let mut world = World::new(Bounds { connections: Some(7), ..bounds() }, 1);
    let assessment = world.seconds(8, 480.0);
    let Required { workers, wanted, limit, reason, throttled: _ } = assessment.required;
    assert_eq!((workers, limit), (6, Limit::Connections), "of 24 shards 7 workers are worth no more than 6: {reason}");
    assert!(wanted >= 12, "{wanted}");
    world.bounds.connections = Some(100);
    let freed = world.seconds(1, 480.0).required;
    assert_eq!((freed.workers, freed.limit), (freed.wanted, Limit::None));
    // A bound that shrinks holds at once.
    world.bounds.connections = Some(3);
    assert_eq!(world.seconds(1, 480.0).required.workers, 3);
}

#[test]
fn steady_load_is_answered_once() {
    for load in [30.0, 110.0, 230.0, 480.0, 690.0] {
        let mut world = World::new(bounds(), 1);
        world.seconds(200, load);
        let workers = world.seconds(1, load).required.workers;
        for _ in 0..1_000 {
            assert_eq!(world.seconds(1, load).required.workers, workers, "{load}");
        }
    }
}

#[test]
fn those_that_start_are_counted_on() {
    let mut world = World::new(Bounds { target: seconds(4), ..bounds() }, 1);
    world.seconds(100, 10.0);
    let asked: Vec<u32> = (0..12).map(|_| world.seconds(1, 500.0).required.workers).collect();
    assert!(asked.iter().all(|workers| *workers <= 12), "{asked:?}");
    assert!(asked.iter().any(|workers| *workers >= 10), "{asked:?}");
}

#[test]
fn nothing_is_taken_away_while_workers_are_replaced_or_shards_change_hands() {
    let mut world = World::new(Bounds { min: 1, ..bounds() }, 12);
    world.follow = false;
    world.seconds(100, 480.0);
    for _ in 0..150 {
        world.now += 1;
        let workers = Workers { ready: 12, rolling: true };
        let assessment = world.model.observe(&world.sample(), workers, world.bounds).unwrap();
        assert_eq!(assessment.required.workers, 12, "{}", assessment.required.reason);
    }
    // A worker that never becomes ready is no rollout: it does not keep the others for ever.
    let last = (0..250).map(|_| {
        world.now += 1;
        let workers = Workers { ready: 12, rolling: true };
        world.model.observe(&world.sample(), workers, world.bounds).unwrap().required.workers
    });
    assert_eq!(last.last(), Some(1));
    let mut world = World::new(bounds(), 12);
    world.follow = false;
    world.seconds(100, 480.0);
    for second in 0..100 {
        // One comes and goes again and again: its shards change hands all the time.
        world.workers = if second % 6 < 3 { 12 } else { 11 };
        assert_eq!(world.seconds(1, 24.0).required.workers, 12);
    }
    assert!(world.seconds(10, 24.0).required.workers < 12);
}

#[test]
fn a_stuck_checkpoint_asks_for_no_more_workers() {
    let mut world = World::new(bounds(), 2);
    world.follow = false;
    world.seconds(100, 48.0);
    world.each = 0.0;
    let mut last = 0;
    for _ in 0..400 {
        let assessment = world.seconds(1, 48.0);
        if assessment.stuck {
            assert!(last == 0 || assessment.required.workers <= last, "{}", assessment.required.reason);
            last = assessment.required.workers;
        }
    }
    assert!(last > 0);
    world.bounds.max = 1;
    world.seconds(1, 48.0);
    world.bounds.max = 24;
    let held = world.seconds(1, 4_800.0).required;
    assert_eq!(held.workers, 1, "{}", held.reason);
    assert!(held.reason.contains("the checkpoint does not move"), "{}", held.reason);
}

#[test]
fn an_event_that_costs_twice_as_much_is_noticed_within_seconds() {
    let mut world = World::new(bounds(), 6);
    world.seconds(100, 230.0);
    world.each = 25.0;
    let worst = (0..60).map(|_| world.seconds(1, 230.0)).map(|assessment| assessment.staleness.unwrap()).max().unwrap();
    assert!(worst <= world.bounds.target, "{worst:?}");
    let assessment = world.seconds(1, 230.0);
    assert!(assessment.required.workers >= 10, "{}", assessment.required.reason);
}

#[test]
fn a_shard_that_is_too_hot_is_recognised_and_said() {
    let mut world = World::new(bounds(), 6);
    for _ in 0..60 {
        world.second(80.0, 60.0);
    }
    let required = world.second(80.0, 60.0).required;
    assert_eq!(required.limit, Limit::HottestShard, "{}", required.reason);
    assert!(required.workers < 24, "the others have next to nothing to do: {}", required.reason);
    assert!(required.reason.contains("adding workers will not help"), "{}", required.reason);
}

#[test]
fn workers_are_not_added_to_a_read_store_that_does_no_more() {
    let mut world = World::new(bounds(), 3);
    // A little less than what comes, and no number of workers does more.
    world.store = 120.0;
    let mut saturated = None;
    for _ in 0..400 {
        let required = world.seconds(1, 130.0).required;
        if required.limit == Limit::ReadStore {
            let workers = *saturated.get_or_insert(required.workers);
            assert!(required.workers <= workers, "never further into it: {}", required.reason);
        }
    }
    assert!(saturated.is_some_and(|workers| workers < 24), "{saturated:?}");
    world.store = f64::INFINITY;
    let recovered = world.seconds(240, 130.0);
    assert_eq!((recovered.pending.events, recovered.required.limit), (0, Limit::None), "{}", recovered.required.reason);
}

#[test]
fn no_worker_is_added_while_the_read_store_refuses_what_it_is_asked_and_none_is_removed_for_it() {
    let mut world = World::new(bounds(), 3);
    world.seconds(100, 130.0);
    world.bounds.strain = Some(Strain::Writes);
    for _ in 0..200 {
        let required = world.seconds(1, 400.0).required;
        assert_eq!(required.workers, 3, "{}", required.reason);
        if required.limit == Limit::ReadStore {
            assert!(
                required.reason.ends_with("while the read store refuses writes for want of room"),
                "{}",
                required.reason
            );
        }
    }
    assert_eq!(world.seconds(1, 400.0).required.limit, Limit::ReadStore);
    world.bounds.strain = None;
    assert!(world.seconds(60, 400.0).required.workers > 3, "it recovers by itself");
}

#[test]
fn a_backlog_that_is_too_much_gets_the_time_that_the_spec_allows() {
    let catch_up = Some(CatchUp { within: seconds(1_000), max: 20 });
    let mut world = World::new(Bounds { catch_up, ..bounds() }, 1);
    // 500,000 events, of which 24 workers could do no more than 12,000 within the target.
    world.shards.iter_mut().for_each(|shard| shard.0 += 500_000.0 / 24.0);
    world.queues.iter_mut().for_each(|queue| queue.push_back((1, 500_000.0 / 24.0)));
    let begun = world.seconds(1, 24.0);
    assert!(matches!(begun.stage, Stage::CatchingUp { .. }), "{:?}", begun.stage);
    let steady = world.seconds(200, 24.0).required;
    // 24/s + 500,000 in nine tenths of 1,000 s, at 50/s each.
    assert_eq!(steady.workers, 12, "{}", steady.reason);
    assert!(steady.reason.contains("catching up"), "{}", steady.reason);
    let done = world.seconds(800, 24.0);
    assert_eq!((done.stage, done.pending.events), (Stage::Live, 0), "{}", done.required.reason);
}

#[test]
fn events_dated_in_the_future_are_told_and_their_age_counts_from_when_they_were_first_seen() {
    let mut world = World::new(bounds(), 0);
    world.follow = false;
    world.seconds(5, 0.0);
    for second in 0..30_u64 {
        world.seconds(1, if second == 0 { 24.0 } else { 0.0 });
        let sample = Sample {
            ahead_of_clock: seconds(3_600),
            staleness: Some(Duration::ZERO),
            at: seconds(world.now) + Duration::from_millis(1),
            ..world.sample()
        };
        let assessment = world.model.observe(&sample, Workers::default(), world.bounds).unwrap();
        assert_eq!(assessment.ahead_of_clock, Some(seconds(3_600)));
        assert_eq!(assessment.staleness.map(|age| age.as_secs()), Some(second));
        assert!(assessment.required.workers >= 1);
    }
}

#[test]
fn a_head_that_jumps_is_told_and_asks_for_no_more_than_the_most() {
    let mut world = World::new(bounds(), 1);
    world.seconds(60, 24.0);
    let jumped = world.seconds(1, 50_000_000.0);
    assert!(jumped.jump.is_some());
    assert!(jumped.required.workers <= 24);
    assert!(jumped.required.reason.contains("a source that tells too much"), "{}", jumped.required.reason);
}

#[test]
fn what_was_predicted_is_compared_with_what_came() {
    let mut world = World::new(bounds(), 4);
    let assessment = world.seconds(60, 120.0);
    let ratio = assessment.prediction.unwrap().ratio();
    assert!((0.95..1.05).contains(&ratio), "{ratio}");
}

#[test]
fn workers_are_there_before_a_burst_that_came_at_this_minute_of_the_last_hour() {
    let all = |look_ahead| {
        let mut world = World::new(Bounds { min: 1, look_ahead, ..bounds() }, 1);
        world.now = 3_599;
        let (mut before, mut worst) = (0, Duration::ZERO);
        for second in 0..2 * 3_600_u64 {
            let burst = (1_800..1_920).contains(&(second % 3_600));
            let assessment = world.second(if burst { 600.0 } else { 30.0 }, if burst { 25.0 } else { 1.25 });
            if second == 3_600 + 1_798 {
                before = world.workers;
                assert_eq!(assessment.required.reason.contains("expected"), look_ahead.is_some(), "{assessment:?}");
            }
            if second > 3_600 {
                worst = worst.max(assessment.staleness.unwrap_or_default());
            }
        }
        (before, worst)
    };
    let (before, worst) = all(Some(crate::lag::LookAhead::Hourly));
    let (without, worst_without) = all(None);
    assert!(before >= 12 && without < 4, "{before} workers before the burst, {without} without looking ahead");
    assert!(worst < worst_without, "{worst:?} against {worst_without:?}");
}
