use proptest::prelude::*;

use super::*;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn pods(value: i32, period: u64) -> Policy {
    Policy { unit: Unit::Pods, value, period: seconds(period) }
}

fn percent(value: i32, period: u64) -> Policy {
    Policy { unit: Unit::Percent, value, period: seconds(period) }
}

/// The same rules in both directions.
fn behavior(select: Select, policies: &[Policy]) -> Behavior {
    let rules = Rules { window: None, select, policies: policies.to_vec(), tolerance: None };
    Behavior { scale_up: rules.clone(), scale_down: rules }
}

#[test]
fn policies_allow_so_much_in_a_period() {
    use Select::{Disabled, Max, Min};
    // The rules; replicas; what changed them, and when; up to; down to, all at 100 s.
    type Case<'a> = (Select, &'a [Policy], i32, &'a [(i32, i32, u64)], i32, i32, &'a str);
    let cases: [Case; 12] = [
        (Max, &[pods(4, 15), percent(100, 15)], 1, &[], 5, -3, "the default: by 4"),
        (Max, &[pods(4, 15), percent(100, 15)], 10, &[], 20, 0, "the default: twice"),
        (Min, &[pods(4, 15), percent(100, 15)], 10, &[], 14, 6, "the smaller change"),
        (Disabled, &[pods(4, 15)], 10, &[], 10, 10, "none at all"),
        (Max, &[percent(10, 15)], 1, &[], 2, 0, "up is rounded up and down towards zero"),
        (Max, &[percent(10, 15)], 15, &[], 17, 13, "16.5 and 13.5"),
        (Max, &[pods(4, 15)], 8, &[(5, 8, 90)], 9, 1, "3 were added: 1 is left, and 7 may go"),
        (Max, &[pods(4, 15)], 8, &[(5, 8, 85)], 12, 4, "at the period's very beginning: no longer in it"),
        (Max, &[pods(4, 15)], 8, &[(2, 8, 90)], 8, -2, "more was added than is allowed: no further, and not back"),
        (Max, &[pods(4, 15)], 5, &[(8, 5, 90)], 12, 4, "3 went: 7 may come, and 1 more may go"),
        (
            Max,
            &[percent(50, 60)],
            12,
            &[(8, 10, 50), (10, 12, 95)],
            12,
            4,
            "half of the 8 at the beginning came already",
        ),
        (Max, &[pods(1, 10), percent(50, 60)], 12, &[(8, 12, 50)], 13, 4, "each policy with its own period"),
    ];
    for (select, policies, current, changes, up, down, why) in cases {
        let behavior = behavior(select, policies);
        let mut scalings = Scalings::default();
        for (from, to, at) in changes {
            scalings.record(&behavior, *from, *to, seconds(*at));
        }
        let limits = (
            behavior.scale_up_limit(current, &scalings, seconds(100)),
            behavior.scale_down_limit(current, &scalings, seconds(100)),
        );
        assert_eq!(limits, (up, down), "{why}");
    }
}

#[test]
fn a_value_that_overflows_allows_nothing_as_in_the_controller() {
    let behavior = behavior(Select::Max, &[pods(i32::MAX, 15)]);
    assert_eq!(behavior.scale_up_limit(1, &Scalings::default(), seconds(0)), 1);
}

#[test]
fn one_direction_looks_back_at_the_other_until_the_note_is_overwritten() {
    let rules = |period| Rules { window: None, select: Select::Max, policies: vec![pods(2, period)], tolerance: None };
    let behavior = Behavior { scale_up: rules(10), scale_down: rules(100) };
    let mut scalings = Scalings::default();
    scalings.record(&behavior, 1, 5, seconds(0));
    assert_eq!(behavior.scale_down_limit(5, &scalings, seconds(50)), -1, "4 came within the 100 s");
    scalings.record(&behavior, 5, 6, seconds(50));
    assert_eq!(behavior.scale_down_limit(6, &scalings, seconds(51)), 3, "the note of the 4 was overwritten");
}

#[test]
fn without_behavior_it_is_twice_or_four() {
    for (current, limit) in [(0, 4), (1, 4), (2, 4), (3, 6), (10, 20), (i32::MAX, i32::MIN)] {
        assert_eq!(scale_up_limit_without_behavior(current), limit);
    }
}

fn any_policy() -> impl Strategy<Value = Policy> {
    (any::<bool>(), 1..200_i32, 1..1_800_u64)
        .prop_map(|(by_pods, value, period)| if by_pods { pods(value, period) } else { percent(value, period) })
}

proptest! {
    #[test]
    fn limits_are_on_their_own_side_of_what_is_there(
        policies in proptest::collection::vec(any_policy(), 1..4),
        select in prop_oneof![Just(Select::Max), Just(Select::Min), Just(Select::Disabled)],
        changes in proptest::collection::vec((0..100_i32, 0..100_i32, 0..600_u64), 0..6),
        current in 0..1_000_i32,
    ) {
        let behavior = behavior(select, &policies);
        let (mut scalings, mut now) = (Scalings::default(), 0);
        for (from, to, after) in changes {
            now += after;
            scalings.record(&behavior, from, to, seconds(now));
        }
        prop_assert!(behavior.scale_up_limit(current, &scalings, seconds(now)) >= current);
        prop_assert!(behavior.scale_down_limit(current, &scalings, seconds(now)) <= current);
        // Long after, all is forgotten.
        let fresh = behavior.scale_up_limit(current, &Scalings::default(), seconds(now));
        prop_assert_eq!(behavior.scale_up_limit(current, &scalings, seconds(now + 1_801)), fresh);
    }

    #[test]
    fn what_one_policy_allows_is_never_exceeded_in_its_period(
        value in 1..10_i32, period in 1..60_u64, steps in proptest::collection::vec(1..20_u64, 1..60),
    ) {
        let behavior = behavior(Select::Max, &[pods(value, period)]);
        let (mut scalings, mut now, mut current) = (Scalings::default(), 0, 1);
        let mut rises: Vec<(u64, i32)> = Vec::new();
        for step in steps {
            now += step;
            let next = behavior.scale_up_limit(current, &scalings, seconds(now));
            if next > current {
                scalings.record(&behavior, current, next, seconds(now));
                rises.push((now, next - current));
            }
            current = next;
            let lately: i32 = rises.iter().filter(|(at, _)| at + period > now).map(|(_, by)| by).sum();
            prop_assert!(lately <= value);
        }
    }
}
