use proptest::prelude::*;

use super::*;
use crate::hpa::{Policy, Rules, Select, Unit};

const USUAL: Duration = Duration::from_secs(300);
const WIDE: Range = Range { min: 1, max: 100 };

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn windows(up: u64, down: u64) -> Behavior {
    let usual = Behavior::default();
    let free = Policy { unit: Unit::Pods, value: 1_000, period: seconds(1) };
    Behavior {
        scale_up: Rules { window: Some(seconds(up)), policies: vec![free], ..usual.scale_up },
        scale_down: Rules { window: Some(seconds(down)), policies: vec![free], ..usual.scale_down },
    }
}

/// Replicas after each look, when what is let through is done at once.
fn follow(behavior: Option<&Behavior>, range: Range, start: i32, looks: &[(u64, i32)]) -> Vec<i32> {
    let (mut memory, mut current) = (Memory::default(), start);
    let look = |&(at, desired): &(u64, i32)| {
        memory.begin(seconds(at), current);
        let next = memory.normalize(behavior, USUAL, range, seconds(at), current, desired).replicas;
        if next != current {
            memory.scaled(behavior, current, next, seconds(at));
        }
        current = next;
        next
    };
    looks.iter().map(look).collect()
}

#[test]
fn without_behavior_it_rises_by_twice_or_four_and_falls_after_the_window() {
    let looks = [(0, 50), (15, 50), (30, 50), (45, 2), (330, 2), (331, 2), (346, 2)];
    assert_eq!(
        follow(None, WIDE, 1, &looks),
        [4, 8, 16, 32, 50, 2, 2],
        "up even while stabilized; 330 s: 30 is still in"
    );
    assert_eq!(
        follow(None, WIDE, 10, &[(0, 3), (300, 3), (301, 3)]),
        [10, 10, 3],
        "the first look is a recommendation"
    );
    assert_eq!(follow(None, Range { min: 2, max: 5 }, 3, &[(0, 9), (400, 1)]), [5, 2], "min and max");
}

#[test]
fn windows_of_a_behavior_take_the_most_careful_recommendation() {
    let up = windows(30, 0);
    assert_eq!(
        follow(Some(&up), WIDE, 1, &[(0, 9), (15, 9), (29, 7), (30, 9), (45, 9), (59, 9), (60, 8)]),
        [1, 1, 1, 7, 7, 9, 8],
        "the beginning of the window is not in it; 29 s counts until 59 s; down at once"
    );
    let down = windows(0, 30);
    assert_eq!(
        follow(Some(&down), WIDE, 9, &[(0, 1), (15, 4), (29, 3), (30, 1), (45, 1), (59, 1)]),
        [9, 9, 9, 4, 3, 1],
        "the highest of the window"
    );
    let both = windows(20, 20);
    assert_eq!(
        follow(Some(&both), WIDE, 5, &[(0, 9), (10, 1), (20, 9), (30, 1), (40, 9)]),
        [5, 5, 5, 5, 5],
        "what goes up and down within the windows moves nothing"
    );
}

#[test]
fn rates_hold_after_the_windows_and_min_and_max_after_the_rates() {
    let policy = |value| vec![Policy { unit: Unit::Pods, value, period: seconds(20) }];
    let mut slow = windows(0, 0);
    slow.scale_up.policies = policy(3);
    slow.scale_down.policies = policy(2);
    let looks = [(0, 50), (10, 50), (20, 50), (30, 1), (40, 1), (50, 1)];
    // At 30 s the last 20 s brought 3 (the note of 20 s; that of 0 s is out): from 4 on, 2 may go, so all 3 and 2 more.
    assert_eq!(follow(Some(&slow), WIDE, 1, &looks), [4, 4, 7, 2, 2, 1]);
    assert_eq!(follow(Some(&slow), Range { min: 2, max: 5 }, 1, &looks), [4, 4, 5, 2, 2, 2]);
    let mut frozen = windows(0, 0);
    frozen.scale_up.select = Select::Disabled;
    frozen.scale_down.select = Select::Disabled;
    assert_eq!(follow(Some(&frozen), WIDE, 4, &[(0, 50), (10, 1)]), [4, 4]);
}

#[test]
fn tells_what_held_the_number_back() {
    let mut memory = Memory::default();
    memory.begin(seconds(0), 5);
    let usual = Behavior::default();
    let mut look = |at, current, desired| {
        let Normalized { replicas, stabilized, limited } =
            memory.normalize(Some(&usual), USUAL, WIDE, seconds(at), current, desired);
        (replicas, stabilized, limited)
    };
    assert_eq!(look(0, 5, 6), (6, false, false));
    assert_eq!(look(15, 6, 40), (12, false, true));
    assert_eq!(look(30, 12, 3), (12, true, false));
    assert_eq!(look(316, 12, 3), (3, false, false), "40 was let go at 315 s");
}

proptest! {
    #[test]
    fn never_outside_min_and_max_from_within(
        with_behavior in any::<bool>(), min in 1..20_i32, span in 0..50_i32, start in 0..50_i32,
        windows_of in (0..100_u64, 0..100_u64), looks in proptest::collection::vec((0..40_u64, 0..100_i32), 1..40),
    ) {
        let range = Range { min, max: min + span };
        let start = start.clamp(range.min, range.max);
        let behavior = windows(windows_of.0, windows_of.1);
        let mut now = 0;
        let looks: Vec<(u64, i32)> = looks.into_iter().map(|(step, desired)| { now += step; (now, desired) }).collect();
        for replicas in follow(with_behavior.then_some(&behavior), range, start, &looks) {
            prop_assert!((range.min..=range.max).contains(&replicas));
        }
    }

    #[test]
    fn never_against_what_is_desired(
        windows_of in (0..100_u64, 0..100_u64), looks in proptest::collection::vec((0..40_u64, 1..100_i32), 1..40),
    ) {
        let behavior = windows(windows_of.0, windows_of.1);
        let (mut memory, mut current, mut now) = (Memory::default(), 10, 0);
        for (step, desired) in looks {
            now += step;
            memory.begin(seconds(now), current);
            let next = memory.normalize(Some(&behavior), USUAL, WIDE, seconds(now), current, desired).replicas;
            prop_assert!(next == current || (next > current) == (desired > current), "{current} to {next} for {desired}");
            current = next;
        }
    }
}
