//! An upper bound is not a measurement: what the model makes of the lowest of several rows, of a scan that was cut, and of events that are held back.

use super::{
    foreign::{Commits, Foreign, Rows, bounds},
    *,
};
use crate::lag::{Certain, CheckpointState, Head, Limit, Pending, Position, RetentionRisk, Sample, Stage};

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// The lowest row is far behind, since its shard has nothing to do; nothing waits for longer than a moment.
fn quiet_shard(second: u64, arrived: u64, beyond: u64) -> Sample {
    let position = |at: u64| Position(i64::try_from(at).unwrap());
    let head = 100_000 + arrived;
    Sample {
        certain: Some(Certain::Newest(beyond)),
        staleness: Some(seconds(86_400)),
        ..Sample::new(
            seconds(second),
            Head::log(position(head), position(head)),
            CheckpointState::Committed(vec![position(10), position(head - beyond)]),
            Some(Pending { events: head - 10, exact: false }),
            arrived,
        )
    }
}

const TWO: Workers = Workers { ready: 2, rolling: false };

#[test]
fn the_issues_projection_is_not_doubled_by_what_quiet_shards_did_long_ago() {
    let mut world = Foreign::new(Commits::Every(0.5), Rows::Lowest, 15, 1);
    let last = world.run(600.0, 10.0);
    assert!(!last.pending.exact && last.pending.events > 20, "the bound is as bad as it was: {:?}", last.pending);
    assert_eq!(world.answers.iter().map(|answer| answer.1).max(), Some(1), "{}", last.required.reason);
    assert_eq!(last.rates.per_worker, None, "nothing is learnt from it");
    assert!(last.required.reason.contains("planned by an upper bound"), "{}", last.required.reason);
}

#[test]
fn a_bound_breaks_no_target_risks_no_event_and_is_never_stuck() {
    let mut model = Model::remembering(None, Some(2), None);
    let catch_up = Some(crate::lag::CatchUp { within: seconds(600), max: 20 });
    let bounds = Bounds { retention: Some(seconds(3_600)), catch_up, ..bounds(15) };
    for second in 0..2_000 {
        // Nothing comes any more after a while, so that no row moves.
        let sample = quiet_shard(1_000 + second, 10 * second.min(600), 0);
        let assessment = model.observe(&sample, TWO, bounds).unwrap();
        assert_eq!(assessment.stage, Stage::Live);
        assert_eq!((assessment.stuck, assessment.retention_risk), (false, None), "{second} s");
        assert!(assessment.required.workers <= 2 && assessment.required.limit != Limit::Max);
        assert_eq!(assessment.staleness, Some(seconds(86_400)), "what is reported stays what it is");
    }
}

#[test]
fn with_a_bound_arrivals_and_what_waits_for_certain_are_planned_for() {
    let mut model = Model::remembering(None, Some(2), None);
    let bounds = Bounds { given_rate: Some(50.0), ..bounds(15) };
    let mut last = None;
    for second in 0..120 {
        last = Some(model.observe(&quiet_shard(1_000 + second, 400 * second, 40), TWO, bounds).unwrap().required);
    }
    let required = last.unwrap();
    assert_eq!((required.workers, required.limit), (8, Limit::None), "400/s at 50/s each: {}", required.reason);
    assert!(required.reason.contains("only 40 of the pending events are known to wait"), "{}", required.reason);
    // What lies beyond the highest row is a real queue.
    let grown = (120..140).map(|second| {
        let sample = quiet_shard(1_000 + second, 400 * second, 40 + 400 * (second - 119));
        model.observe(&sample, TWO, bounds).unwrap().required.workers
    });
    assert_eq!(grown.last(), Some(24));
}

#[test]
fn a_shard_that_is_stuck_beyond_its_row_is_told_where_events_surely_wait() {
    let mut model = Model::remembering(None, Some(2), None);
    let stands = |second: u64| Sample {
        checkpoint: CheckpointState::Committed(vec![Position(10), Position(50)]),
        ..quiet_shard(1_000 + second, 100, 100_050)
    };
    let last = (0..=301).map(|second| model.observe(&stands(second), TWO, bounds(15)).unwrap().stuck).last();
    assert_eq!(last, Some(true));
}

#[test]
fn a_scan_that_was_cut_shows_a_large_backlog_and_gets_its_workers() {
    let mut model = Model::remembering(None, Some(1), None);
    let mut answers = Vec::new();
    for second in 0..40_u64 {
        let done = i64::try_from(50 * second).unwrap();
        let sample = Sample {
            head: Head::log(Position(1_000_000), Position(1_000_000)),
            checkpoint: CheckpointState::Committed(vec![Position(done)]),
            pending: Some(Pending { events: 1_000_000 - done.unsigned_abs(), exact: false }),
            certain: Some(Certain::Oldest(10_000)),
            tells_rates: true,
            arrived: 0,
            ..quiet_shard(1_000 + second, 0, 0)
        };
        let workers = Workers { ready: 1, rolling: false };
        answers.push(model.observe(&sample, workers, bounds(15)).unwrap().required.workers);
    }
    assert_eq!(answers.iter().max(), Some(&24), "{answers:?}");
}

#[test]
fn no_rate_is_learnt_from_offsets_or_bytes_that_are_only_a_bound() {
    let rate = |tells_rates: bool| {
        let mut model = Model::remembering(None, Some(1), None);
        let mut rate = None;
        for second in 0..40_u64 {
            let done = i64::try_from(5_000 * second).unwrap();
            let sample = Sample {
                head: Head::log(Position(1_000_000), Position(1_000_000)),
                checkpoint: CheckpointState::Committed(vec![Position(done)]),
                pending: Some(Pending { events: 1_000_000 - done.unsigned_abs(), exact: false }),
                certain: Some(Certain::Oldest(10)),
                tells_rates,
                arrived: 0,
                ..quiet_shard(1_000 + second, 0, 0)
            };
            let workers = Workers { ready: 1, rolling: false };
            rate = model.observe(&sample, workers, bounds(15)).unwrap().rates.per_worker;
        }
        rate
    };
    assert_eq!(rate(false), None);
    assert!(rate(true).is_some(), "positions of a scan that was cut count events");
}

#[test]
fn what_is_held_back_waits_for_its_writer_and_not_for_a_worker() {
    let mut model = Model::remembering(Some(50.0), Some(1), None);
    let held = |second: u64, pending: u64, held_back: u64| Sample {
        checkpoint: CheckpointState::Committed(vec![Position(100_000)]),
        pending: Some(Pending { events: pending, exact: true }),
        held_back,
        certain: None,
        staleness: Some(seconds(second)),
        ..quiet_shard(1_000 + second, 500, 0)
    };
    for second in 0..400 {
        let workers = Workers { ready: 1, rolling: false };
        let assessment = model.observe(&held(second, 500, 500), workers, bounds(15)).unwrap();
        assert_eq!((assessment.required.workers, assessment.stuck), (1, false), "{second} s: nothing can be read");
        assert_eq!((assessment.pending.events, assessment.staleness), (500, Some(seconds(second))), "but it waits");
        assert_eq!(assessment.stage, Stage::Live);
    }
    let risk = RetentionRisk { lost_in: Duration::ZERO, drained_in: None };
    let kept = Bounds { retention: Some(seconds(100)), ..bounds(15) };
    let lost = model.observe(&held(400, 500, 500), TWO, kept).unwrap().retention_risk;
    assert_eq!(lost.map(|lost| lost.lost_in), Some(risk.lost_in), "and is deleted all the same");
    let workers = Workers { ready: 1, rolling: false };
    let freed = model.observe(&held(401, 500, 0), workers, bounds(15)).unwrap();
    assert!(freed.required.workers > 1, "now they can be read, and are late: {}", freed.required.reason);
}

#[test]
fn a_burst_behind_an_open_transaction_comes_when_it_is_released() {
    let mut model = Model::remembering(None, Some(1), None);
    let bounds = Bounds { given_rate: Some(50.0), ..bounds(15) };
    let workers = Workers { ready: 1, rolling: false };
    let mut look = |second: u64, arrived: u64, pending: u64, held_back: u64| {
        let head = Position(i64::try_from(arrived).unwrap());
        let sample = Sample {
            head: Head::log(head, head),
            checkpoint: CheckpointState::Committed(vec![Position(i64::try_from(arrived - pending).unwrap())]),
            pending: Some(Pending { events: pending, exact: true }),
            held_back,
            certain: None,
            staleness: Some(seconds(if pending > 0 { second - 100 } else { 0 })),
            arrived,
            ..quiet_shard(second, 500, 0)
        };
        model.observe(&sample, workers, bounds).unwrap()
    };
    for second in 0..100 {
        assert_eq!(look(second, 10 * second, 0, 0).required.workers, 1);
    }
    for second in 100..160 {
        let arrived = 1_000 + 3_000 * (second - 99);
        let held = look(second, arrived, arrived - 1_000, arrived - 1_000);
        assert_eq!(held.required.workers, 1, "{second} s: {}", held.required.reason);
        assert!(second < 105 || held.rates.arrival.unwrap() > 2_000.0, "they arrive all the same");
    }
    let freed = look(160, 181_000, 180_000, 0);
    assert_eq!(freed.required.workers, 24, "{}", freed.required.reason);
    for second in 161..400 {
        let quiet = look(second, 181_000, 0, 0);
        assert!(second < 390 || quiet.required.workers == 1, "{second} s: {}", quiet.required.reason);
    }
}

#[test]
fn a_short_hold_is_a_backlog_when_it_ends_and_no_burst() {
    let mut model = Model::remembering(None, Some(2), None);
    let bounds = Bounds { given_rate: Some(50.0), ..bounds(15) };
    let mut answers = Vec::new();
    for second in 0..160 {
        // From 100 to 110 s a transaction is open; its release is seen in one look.
        let arrived = 100 * second;
        let waits = if (100..=110).contains(&second) { second - 99 } else { 0 };
        let head = Position(i64::try_from(arrived).unwrap());
        let sample = Sample {
            head: Head::log(head, head),
            checkpoint: CheckpointState::Committed(vec![Position(head.0 - i64::try_from(100 * waits).unwrap())]),
            pending: Some(Pending { events: 100 * waits, exact: true }),
            held_back: if second < 110 { 100 * waits } else { 0 },
            certain: None,
            staleness: Some(seconds(waits)),
            arrived,
            ..quiet_shard(second, 500, 0)
        };
        let ready = answers.last().copied().unwrap_or(2);
        answers.push(model.observe(&sample, Workers { ready, rolling: false }, bounds).unwrap().required.workers);
    }
    assert!(answers[60..110].iter().all(|workers| *workers <= 3), "{answers:?}");
    assert!(answers[110] > answers[109], "what waited for 11 s is in danger: {answers:?}");
    assert!(answers.iter().all(|workers| *workers <= 8), "{answers:?}");
}

#[test]
fn a_burst_is_met_by_what_is_known_of_it() {
    for (commits, given) in [
        (Commits::Every(0.5), None),
        (Commits::Every(5.0), None),
        (Commits::Every(0.5), Some(50.0)),
        (Commits::Every(5.0), Some(50.0)),
    ] {
        let mut world = Foreign::new(commits, Rows::Lowest, 15, 1);
        world.bounds.given_rate = given;
        let last = world.run(170.0, 10.0);
        assert_eq!(last.required.workers, 1, "{commits:?} {given:?}: {:?}", world.answers);
        assert!(world.worker_seconds <= 171.0, "{commits:?} {given:?}: {:?}", world.answers);
        world.run(360.0, 400.0);
        assert_eq!(world.late, 0, "{commits:?} {given:?}: {:?}", world.answers);
        let last = world.run(300.0, 10.0);
        assert_eq!(last.required.workers, 1, "{commits:?} {given:?}: {:?}", world.answers);
    }
}
