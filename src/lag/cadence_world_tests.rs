//! Workers that commit every now and then: what lies between two commits is no queue, and what is not known is not doubled into.

use proptest::prelude::*;

use super::{
    foreign::{Commits, Foreign, Rows},
    *,
};
use crate::lag::useful_workers;

const COMMITS: [Commits; 2] = [Commits::Every(0.5), Commits::Every(5.0)];

/// The next number that is worth more.
fn next(workers: u32) -> u32 {
    useful_workers(f64::from(workers) + 0.001, Some(24), 24)
}

/// Fewest workers that can hold the load, and the most that are not too many: the margin may take the next number that differs.
fn needed(load: f64, each: f64) -> (u32, u32) {
    (useful_workers(load / each, Some(24), 24), next(useful_workers(load * 1.2 / each, Some(24), 24)))
}

#[test]
fn what_lies_between_two_commits_is_no_queue_and_the_cadence_is_told() {
    for (commits, every) in [(Commits::Every(0.5), None), (Commits::Every(5.0), Some(4.5..=5.5))] {
        let mut world = Foreign::new(commits, Rows::Exact, 15, 1);
        let mut stalest = 0.0_f64;
        let mut last = world.run(60.0, 10.0);
        for _ in 0..1_000 {
            last = world.run(0.5, 10.0);
            stalest = stalest.max(last.staleness.unwrap().as_secs_f64());
        }
        assert_eq!(world.answers.iter().map(|answer| answer.1).collect::<Vec<_>>(), [1], "{commits:?}: 10/s are one's");
        assert!(!last.cadence_breaks_target);
        let seconds = last.cadence.map(|cadence| cadence.every.as_secs_f64());
        assert_eq!(seconds.is_some(), every.is_some(), "{commits:?}: {seconds:?}");
        if let (Some(every), Some(seconds)) = (every, seconds) {
            assert!(every.contains(&seconds), "{seconds}");
            assert!(stalest > 4.0, "what is reported stays what it is: {stalest}");
            assert!(last.required.reason.contains("the checkpoint moves every"), "{}", last.required.reason);
        }
    }
}

#[test]
fn what_waited_for_a_worker_to_start_teaches_no_cadence() {
    let mut world = Foreign::new(Commits::Events(1), Rows::Exact, 15, 0);
    world.start_up = 10.0;
    world.run(9.0, 0.2);
    assert!(world.model.queue.events() >= 1.0, "it waits: {}", world.model.queue.events());
    assert_eq!(world.run(6.0, 0.2).cadence, None);
}

#[test]
fn a_cadence_that_breaks_the_target_is_told_and_adds_no_workers() {
    for (commits, target) in [(Commits::Every(5.0), 3), (Commits::Events(1_000), 15)] {
        let mut world = Foreign::new(commits, Rows::Exact, target, 1);
        let last = world.run(900.0, 10.0);
        assert!(last.cadence_breaks_target, "{commits:?}: {:?}", last.cadence);
        assert_eq!(world.late, 0, "no event was handled late: {commits:?}");
        assert!(last.required.workers <= 4, "{commits:?}: {:?}", world.answers);
    }
}

#[test]
fn a_burst_on_workers_that_commit_now_and_then_is_met_in_time() {
    for commits in COMMITS {
        let mut world = Foreign::new(commits, Rows::Exact, 15, 1);
        world.run(300.0, 10.0);
        let last = world.run(120.0, 400.0);
        assert_eq!(world.late, 0, "{commits:?}: {:?}", world.answers);
        let rate = last.rates.per_worker.unwrap();
        assert!((45.0..=55.0).contains(&rate), "{commits:?}: {rate}");
        let (least, most) = needed(400.0, 50.0);
        assert!((least..=most).contains(&last.required.workers), "{commits:?}: {:?}", world.answers);
        world.run(180.0, 400.0);
        let last = world.run(120.0, 10.0);
        assert_eq!(last.required.workers, 1, "{commits:?}: {:?}", world.answers);
        assert_eq!(world.late, 0);
    }
}

#[test]
fn steady_load_is_answered_once_whenever_workers_commit() {
    for commits in COMMITS {
        for load in [30.0, 110.0, 230.0, 480.0] {
            let mut world = Foreign::new(commits, Rows::Exact, 15, 1);
            world.run(240.0, load);
            let workers = world.run(0.5, load).required.workers;
            let before = world.answers.len();
            let last = world.run(1_800.0, load);
            assert_eq!((last.required.workers, world.late), (workers, 0), "{commits:?} {load}: {:?}", world.answers);
            assert_eq!(world.answers.len(), before, "{commits:?} {load}: {:?}", world.answers);
        }
    }
}

#[test]
fn from_any_state_and_any_memory_the_number_is_what_the_load_needs_within_two_minutes() {
    for rate in [None, Some(0.3), Some(17.0), Some(50.0), Some(100_000.0)] {
        for required in [1, 24] {
            for load in [10.0, 120.0, 400.0, 700.0] {
                for commits in COMMITS {
                    let mut world = Foreign::new(commits, Rows::Exact, 15, required);
                    world.model = Model::remembering(rate, Some(required), None);
                    let last = world.run(120.0, load);
                    let (least, most) = needed(load, 50.0);
                    let what = format!("{rate:?}, {required} before, {load}/s, {commits:?}: {:?}", world.answers);
                    assert!((least..=most).contains(&last.required.workers), "{what}");
                    assert_eq!(world.late, 0, "{what}");
                }
            }
        }
    }
}

#[test]
fn what_steps_show_of_a_worker_is_never_more_than_it_can_do() {
    for commits in COMMITS.into_iter().chain([Commits::Events(200), Commits::Events(1_000)]) {
        let mut world = Foreign::new(commits, Rows::Exact, 15, 1);
        for load in [20.0, 230.0, 480.0, 90.0, 600.0, 0.0, 400.0] {
            for _ in 0..120 {
                world.run(1.0, load);
                let least = world.model.queue.least_each();
                assert!(least <= world.each * 1.1, "{commits:?}, {load}/s: {least}");
            }
        }
        let least = world.model.queue.least_each();
        assert!(least > world.each * 0.3, "{commits:?}: {least} is hardly anything");
    }
}

#[test]
fn commits_after_many_events_keep_no_more_workers_than_steps_have_shown_to_be_enough() {
    let mut world = Foreign::new(Commits::Events(1_000), Rows::Exact, 15, 1);
    // The first steps come too late for a target of 15 s.
    world.run(120.0, 230.0);
    let late = world.late;
    world.run(60.0, 450.0);
    let last = world.run(240.0, 90.0);
    assert!(last.required.workers <= 3, "{:?}", world.answers);
    assert_eq!(world.late, late, "{:?}", world.answers);
}

#[test]
fn what_steps_have_shown_is_forgotten_when_an_event_costs_twice_as_much() {
    for events in [200, 1_000] {
        let mut world = Foreign::new(Commits::Events(events), Rows::Exact, 15, 1);
        world.run(400.0, 230.0);
        world.each = 25.0;
        let last = world.run(400.0, 230.0);
        let (least, _) = needed(230.0, 25.0);
        assert!(last.required.workers >= least, "{events}: {:?}", world.answers);
        let late = world.late;
        world.run(400.0, 230.0);
        assert_eq!(world.late, late, "{events}: late for good: {:?}", world.answers);
    }
}

#[test]
fn an_event_that_costs_twice_as_much_is_noticed_whenever_workers_commit() {
    for commits in COMMITS.into_iter().chain([Commits::Events(50)]) {
        let mut world = Foreign::new(commits, Rows::Exact, 15, 1);
        world.run(240.0, 230.0);
        world.each = 25.0;
        let last = world.run(180.0, 230.0);
        assert_eq!(world.late, 0, "{commits:?}: {:?}", world.answers);
        let (least, most) = needed(230.0, 25.0);
        assert!((least..=most).contains(&last.required.workers), "{commits:?}: {:?}", world.answers);
    }
}

#[test]
fn a_remembered_rate_by_which_a_hot_shard_would_not_be_behind_is_not_believed() {
    for remembered in [40.0, 160.3, 100_000.0] {
        let mut world = Foreign::new(Commits::Every(0.1), Rows::Exact, 15, 13);
        (world.each, world.hot) = (20.0, 59);
        world.model = Model::remembering(Some(remembered), Some(13), None);
        let last = world.run(300.0, 244.4);
        assert_eq!((last.required.workers, world.late), (24, 0), "{remembered}: {:?}", world.answers);
    }
}

#[test]
fn one_odd_look_at_few_workers_does_not_show_that_more_would_not_help() {
    let mut world = Foreign::new(Commits::Every(5.0), Rows::Exact, 28, 7);
    (world.each, world.start_up, world.hot) = (20.0, 1.098215753962121, 30);
    let last = world.run(200.0, 350.32415658677957);
    assert_eq!((last.required.workers, world.late), (24, 0), "{:?}: {}", world.answers, last.required.reason);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn in_any_world_of_workers_that_commit_now_and_then(
        each in 20.0..200.0_f64,
        share in 0.02..0.8_f64,
        commits in prop_oneof![Just(0.1), Just(0.5), Just(1.0), Just(2.0), Just(5.0)],
        start_up in 1.0..3.0_f64,
        hot in 30..60_u32,
        target in 15..40_u64,
        initial in 1..24_u32,
        remembered in prop::option::of(prop_oneof![0.1..5.0_f64, 5.0..500.0_f64, Just(100_000.0)]),
    ) {
        // Not more than one worker can do of one shard.
        let load = (each * 24.0 * share).max(2.0).min(each * 0.85 * 1_000.0 / f64::from(hot));
        let mut world = Foreign::new(Commits::Every(commits), Rows::Exact, target, initial);
        (world.each, world.start_up, world.hot) = (each, start_up, hot);
        world.model = Model::remembering(remembered, Some(initial), None);
        let last = world.run(135.0, load);
        // Shards differ, so that one worker has more to do than another; and what grows slowly may take its time.
        let (least, most) = (needed(load * 0.9, each).0, needed(load * 1.35, each).1);
        let what = format!("{load}/s at {each}/s, every {commits} s, {initial} and {remembered:?} before: {:?}", world.answers);
        prop_assert!(last.required.workers <= most, "more than {most}: {what}");
        prop_assert!(last.required.workers >= least, "fewer than {least}: {what}");
        world.run(60.0, load);
        prop_assert_eq!(world.late, 0, "{}", what);
    }
}

#[test]
fn a_rate_is_learnt_where_more_comes_between_two_looks_than_a_step_takes_in() {
    let mut world = Foreign::new(Commits::Every(2.0), Rows::Exact, 15, 1);
    world.model = Model::remembering(Some(100_000.0), Some(1), None);
    let last = world.run(10.0, 1_000.0);
    let rate = last.rates.per_worker.unwrap();
    assert!((40.0..=60.0).contains(&rate), "{rate}");
}
