//! Projections second by second: what the model learns, and when it calls one stuck.

use super::*;
use crate::lag::{CheckpointState, Head, Limit, Position, Rewound};

const BOUNDS: Bounds = Bounds {
    target: Duration::from_secs(10),
    min: 1,
    max: 10,
    shards: None,
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
};

/// A source and its workers, second by second: positions are counts here.
struct World {
    now: u64,
    head: u64,
    done: u64,
    workers: u32,
    model: Model,
}

impl World {
    fn new(workers: u32) -> Self {
        Self { now: 0, head: 0, done: 0, workers, model: Model::remembering(None, None, None) }
    }

    fn sample(&self) -> Sample {
        let pending = self.head - self.done;
        Sample {
            staleness: Some(Duration::from_secs(pending / 100)),
            ..Sample::new(
                Duration::from_secs(self.now),
                Head::log(position(self.head), position(self.head)),
                CheckpointState::Committed(vec![position(self.done)]),
                Some(Pending { events: pending, exact: true }),
                self.head,
            )
        }
    }

    fn second(&mut self, arrived: u64, each_does: u64) -> Assessment {
        self.now += 1;
        self.head += arrived;
        self.done = self.head.min(self.done + each_does * u64::from(self.workers));
        let workers = Workers { ready: self.workers, rolling: false };
        self.model.observe(&self.sample(), workers, BOUNDS).unwrap()
    }
}

fn position(at: u64) -> Position {
    Position(i64::try_from(at).unwrap())
}

#[test]
fn learns_from_a_backlog_and_then_asks_for_what_the_load_needs() {
    let mut world = World::new(1);
    for _ in 0..10 {
        world.second(300, 50);
    }
    let assessment = world.second(300, 50);
    assert_eq!(assessment.rates.per_worker, Some(50.0));
    // 300/s arrive, and the backlog goes in what is left: more than the 6 workers that would merely keep up.
    assert_eq!((assessment.required.workers, assessment.required.limit), (10, Limit::Max));
    world.workers = 10;
    for _ in 0..60 {
        world.second(300, 50);
    }
    let assessment = world.second(300, 50);
    assert_eq!(assessment.pending.events, 0);
    assert_eq!(assessment.required.workers, 7, "300/s with a margin at 50/s each");
}

#[test]
fn partitions_bound_the_workers_and_a_larger_number_in_the_spec_does_not_raise_it() {
    for (told, partitions, expected) in
        [(None, 4, 4), (Some(2), 4, 2), (Some(12), 4, 4), (None, 3, 3), (None, 24, 8), (None, 1, 1)]
    {
        let mut world = World::new(1);
        let mut last = None;
        for _ in 0..30 {
            (world.now, world.head, world.done) = (world.now + 1, world.head + 300, world.done + 48);
            let mut sample = world.sample();
            let equal = |all: u64| vec![all / partitions; usize::try_from(partitions).unwrap()];
            sample.pending_by_shard = equal(world.head - world.done);
            let positions = |all| equal(all).into_iter().map(position).collect();
            sample.head = Head::Shards(positions(world.head));
            sample.checkpoint = CheckpointState::Committed(positions(world.done));
            let bounds = Bounds { shards: told, ..BOUNDS };
            last = Some(world.model.observe(&sample, Workers { ready: 1, rolling: false }, bounds).unwrap());
        }
        let required = last.unwrap().required;
        let limit = if partitions > 10 { Limit::Max } else { Limit::Shards };
        assert_eq!(
            (required.workers, required.limit),
            (expected, limit),
            "{told:?} of {partitions}: {}",
            required.reason
        );
    }
}

#[test]
fn workers_that_wait_for_events_do_not_look_slow() {
    let mut world = World::new(1);
    for _ in 0..10 {
        world.second(300, 50);
    }
    world.workers = 10;
    for _ in 0..300 {
        world.second(20, 50);
    }
    let assessment = world.second(20, 50);
    assert_eq!(assessment.rates.per_worker, Some(50.0));
    assert_eq!(assessment.required.workers, 1);
}

#[test]
fn a_checkpoint_that_does_not_move_is_stuck_after_the_bound_and_not_before() {
    let mut world = World::new(1);
    world.second(100, 50);
    for _ in 0..299 {
        assert!(!world.second(1, 0).stuck);
    }
    let assessment = world.second(1, 0);
    assert!(assessment.stuck);
    assert_eq!(assessment.frozen_for, Duration::from_secs(300));
    assert!(!world.second(1, 50).stuck);
}

#[test]
fn samples_that_tell_nothing_do_not_make_a_frozen_checkpoint_young_again() {
    let beyond = |sample: &mut Sample| sample.head = Head::log(position(40), position(40));
    let uncounted = |sample: &mut Sample| sample.pending = None;
    let gone = |sample: &mut Sample| sample.checkpoint = CheckpointState::NeverCommitted;
    let spoilings: [&dyn Fn(&mut Sample); 3] = [&beyond, &uncounted, &gone];
    for spoil in spoilings {
        let mut world = World::new(1);
        world.second(100, 50);
        for second in 1..=600_u64 {
            if second % 7 == 0 {
                world.now += 1;
                let mut sample = world.sample();
                spoil(&mut sample);
                world.model.observe(&sample, Workers::default(), BOUNDS).unwrap_err();
                continue;
            }
            let assessment = world.second(0, 0);
            assert_eq!(assessment.frozen_for, Duration::from_secs(second));
            assert_eq!(assessment.stuck, second >= 300, "after {second} s");
        }
    }
}

#[test]
fn a_time_without_any_sample_counts_as_not_moved() {
    let mut world = World::new(1);
    world.second(100, 50);
    world.now += 400;
    assert!(world.second(0, 0).stuck);
}

#[test]
fn a_checkpoint_that_moved_in_a_sample_without_a_count_has_moved() {
    let mut world = World::new(1);
    world.second(100, 50);
    world.now += 299;
    world.done = 60;
    let sample = Sample { pending: None, ..world.sample() };
    world.model.observe(&sample, Workers::default(), BOUNDS).unwrap_err();
    // Whether anything waited just after the move is not known.
    assert_eq!(world.second(0, 0).frozen_for, Duration::ZERO);
    assert_eq!(world.second(0, 0).frozen_for, Duration::from_secs(1));
}

#[test]
fn what_waits_for_nothing_is_not_frozen_however_long_it_stands() {
    let mut world = World::new(1);
    world.second(100, 100);
    for _ in 0..400 {
        assert_eq!(world.second(0, 0).frozen_for, Duration::ZERO);
    }
    // It is unknown when in this time without a sample the first event came.
    world.now += 400;
    assert_eq!(world.second(1, 0).frozen_for, Duration::ZERO);
    assert_eq!(world.second(0, 0).frozen_for, Duration::from_secs(1));
}

#[test]
fn a_clock_that_was_reset_takes_nothing_away() {
    let mut world = World::new(1);
    world.second(100, 50);
    world.now += 400;
    assert!(world.second(0, 0).stuck);
    world.now = 0;
    assert!(world.second(0, 0).stuck);
}

#[test]
fn stuck_before_a_restart_is_stuck_after_it_unless_the_checkpoint_moved() {
    let mut world = World::new(1);
    world.second(100, 50);
    world.model = Model::remembering(None, None, Some("50".to_owned()));
    let gone = Sample { checkpoint: CheckpointState::NeverCommitted, pending: None, ..world.sample() };
    world.model.observe(&gone, Workers::default(), BOUNDS).unwrap_err();
    assert!(world.second(0, 0).stuck, "at once");
    assert!(world.second(0, 0).stuck, "and still");
    assert!(!world.second(0, 1).stuck, "it moves");
    world.model = Model::remembering(None, None, Some("50".to_owned()));
    assert!(!world.second(0, 0).stuck, "it moved meanwhile");
}

#[test]
fn a_checkpoint_beyond_the_head_is_a_fault_and_not_zero() {
    let mut world = World::new(1);
    world.second(100, 100);
    let mut sample = world.sample();
    sample.head = Head::log(position(40), position(40));
    let fault = world.model.observe(&sample, Workers::default(), BOUNDS).unwrap_err();
    assert_eq!(fault, Fault::CheckpointBeyondHead { checkpoint: position(100), head: position(40) });
}

#[test]
fn never_committed_is_a_fault_and_not_zero() {
    let mut world = World::new(1);
    let sample = Sample { checkpoint: CheckpointState::NeverCommitted, pending: None, ..world.sample() };
    assert_eq!(world.model.observe(&sample, Workers::default(), BOUNDS), Err(Fault::NeverCommitted));
}

#[test]
fn a_rewound_checkpoint_is_told_and_teaches_no_rate() {
    let mut world = World::new(1);
    for _ in 0..10 {
        world.second(300, 50);
    }
    let known = world.second(300, 50).rates.per_worker;
    world.done = 0;
    let assessment = world.second(300, 0);
    let rewound = Rewound { from: position(550), to: position(0), contested: false };
    assert_eq!(assessment.rewound, Some(rewound));
    assert_eq!(assessment.rates.per_worker, known);
}

#[test]
fn drain_time_is_unknown_while_the_backlog_does_not_shrink() {
    let mut world = World::new(1);
    for _ in 0..10 {
        world.second(300, 50);
    }
    assert_eq!(world.second(300, 50).drain, None);
    world.workers = 20;
    let assessment = world.second(300, 50);
    let seconds = assessment.drain.unwrap().as_secs_f64();
    let expected = as_float(assessment.pending.events) / (1000.0 - assessment.rates.arrival.unwrap());
    assert!((seconds - expected).abs() < 1e-6, "{seconds} {expected}");
    while world.head > world.done {
        world.second(0, 50);
    }
    assert_eq!(world.second(0, 50).drain, Some(Duration::ZERO));
}

#[test]
fn workers_that_have_nothing_at_all_to_do_are_not_kept_because_no_rate_was_learnt() {
    // An autoscaler takes away what is no longer asked for; where there is none, they stay.
    for follows in [true, false] {
        for remembered in [None, Some(10)] {
            let mut world = World::new(10);
            world.model = Model::remembering(None, remembered, None);
            for _ in 0..119 {
                let assessment = world.second(0, 50);
                if follows {
                    world.workers = assessment.required.workers;
                }
            }
            let required = world.second(0, 50).required;
            assert_eq!(required.workers, 1, "follows: {follows}, remembered: {remembered:?}: {}", required.reason);
        }
    }
}
