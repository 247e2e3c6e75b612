use proptest::prelude::*;

use super::*;
use crate::hpa::{Pod, TargetValue};

const AVERAGE: Metric = Metric::External(TargetValue::Average(1_000));

fn autoscaler(metrics: &[Metric], behavior: Option<Behavior>) -> Autoscaler {
    Autoscaler { range: Range { min: 2, max: 20 }, metrics: metrics.to_vec(), behavior }
}

fn look(
    controller: &mut Controller,
    autoscaler: &Autoscaler,
    current: i32,
    readings: &[Reading],
    at: u64,
) -> Evaluation {
    let pods = vec![Pod::ready(Duration::ZERO); usize::try_from(current).unwrap()];
    let scale = Scale { spec: current, status: current, pods: &pods };
    controller.look(autoscaler, scale, readings, Duration::from_secs(at))
}

fn items(milli: i64) -> Reading {
    Reading::Items(vec![milli])
}

#[test]
fn zero_over_max_and_under_min_are_decided_without_the_metrics() {
    for (current, scale_to, decided_by) in [
        (0, None, DecidedBy::Disabled),
        (21, Some(20), DecidedBy::OutOfRange),
        (90, Some(20), DecidedBy::OutOfRange),
        (1, Some(2), DecidedBy::OutOfRange),
    ] {
        let seen = look(&mut Controller::new(Settings::default()), &autoscaler(&[AVERAGE], None), current, &[], 0);
        assert_eq!(seen, Evaluation { scale_to, decided_by, proposals: Vec::new() }, "{current}");
    }
}

#[test]
fn of_several_metrics_the_most_counts_and_an_invalid_one_blocks_scaling_in() {
    let instant = || {
        let mut behavior = Behavior::default();
        behavior.scale_down.window = Some(Duration::ZERO);
        behavior
    };
    let three = [AVERAGE, Metric::External(TargetValue::Value(1_000)), Metric::Object(TargetValue::Average(1_000))];
    for (readings, scale_to, why) in [
        (vec![items(5_000), items(1_500), Reading::Value(7_000)], Some(7), "7 of 5, 6 and 7"),
        (vec![items(3_000), items(500), Reading::Value(2_000)], Some(3), "all are below: the most of them"),
        (vec![items(7_000), Reading::Failed, Reading::Failed], Some(7), "one is enough upwards"),
        (vec![items(4_000), Reading::Failed, Reading::Value(4_000)], None, "what is there is enough"),
        (vec![items(3_000), Reading::Failed, Reading::Value(2_000)], None, "it might have asked for more"),
        (vec![Reading::Failed; 3], None, "nothing is known"),
        (vec![items(3_000)], None, "what was not answered is not known"),
    ] {
        let mut controller = Controller::new(Settings::default());
        let seen = look(&mut controller, &autoscaler(&three, Some(instant())), 4, &readings, 0);
        assert_eq!(seen.scale_to, scale_to, "{why}");
    }
}

#[test]
fn an_unknown_look_is_not_remembered_as_a_recommendation() {
    let mut controller = Controller::new(Settings::default());
    let autoscaler = autoscaler(&[AVERAGE], None);
    assert_eq!(look(&mut controller, &autoscaler, 8, &[items(8_000)], 0).scale_to, None);
    assert_eq!(look(&mut controller, &autoscaler, 8, &[Reading::Failed], 290).decided_by, DecidedBy::Unknown);
    // After an outage longer than the window the first low value is obeyed at once.
    assert_eq!(look(&mut controller, &autoscaler, 8, &[items(2_000)], 301).scale_to, Some(2));
}

#[test]
fn each_direction_has_its_own_tolerance() {
    let mut behavior = Behavior::default();
    behavior.scale_up.tolerance = Some(0.0);
    behavior.scale_down.tolerance = Some(0.5);
    behavior.scale_down.window = Some(Duration::ZERO);
    let autoscaler = autoscaler(&[AVERAGE], Some(behavior));
    for (usage, scale_to) in [(10_001, Some(11)), (10_000, None), (5_000, None), (4_999, Some(5))] {
        let seen = look(&mut Controller::new(Settings::default()), &autoscaler, 10, &[items(usage)], 0);
        assert_eq!(seen.scale_to, scale_to, "{usage}");
    }
}

#[test]
fn an_empty_behavior_is_not_the_same_as_none() {
    for (behavior, scale_to) in [(None, 6), (Some(Behavior::default()), 7)] {
        let seen =
            look(&mut Controller::new(Settings::default()), &autoscaler(&[AVERAGE], behavior), 3, &[items(50_000)], 0);
        assert_eq!(seen.scale_to, Some(scale_to), "max(2n, 4) against max(n + 4, 2n)");
    }
}

#[test]
fn what_was_set_right_counts_for_the_rates_of_later_looks() {
    let mut controller = Controller::new(Settings::default());
    let autoscaler = autoscaler(&[AVERAGE], Some(Behavior::default()));
    assert_eq!(look(&mut controller, &autoscaler, 1, &[], 0).scale_to, Some(2));
    assert_eq!(
        look(&mut controller, &autoscaler, 2, &[items(50_000)], 5).scale_to,
        Some(5),
        "one of four came already"
    );
}

#[test]
fn negative_metrics_end_at_min_or_max() {
    let mut behavior = Behavior::default();
    behavior.scale_down.window = Some(Duration::ZERO);
    behavior.scale_up.policies[0].value = 100;
    for (metric, scale_to) in [(AVERAGE, 20), (Metric::External(TargetValue::Value(1_000)), 2)] {
        let autoscaler = autoscaler(&[metric], Some(behavior.clone()));
        let seen = look(&mut Controller::new(Settings::default()), &autoscaler, 5, &[items(-1)], 0);
        assert_eq!(seen.scale_to, Some(scale_to), "{metric:?}");
    }
}

proptest! {
    #[test]
    fn never_outside_min_and_max_and_never_awake_from_zero(
        with_behavior in any::<bool>(),
        looks in proptest::collection::vec((1..60_u64, -10_000..100_000_i64, any::<bool>()), 1..40),
        start in 0..40_i32,
    ) {
        let autoscaler = autoscaler(&[AVERAGE], with_behavior.then(Behavior::default));
        let mut controller = Controller::new(Settings::default());
        let (mut current, mut now) = (start, 0);
        for (step, usage, answered) in looks {
            now += step;
            let reading = if answered { items(usage) } else { Reading::Failed };
            let seen = look(&mut controller, &autoscaler, current, &[reading], now);
            prop_assert!(start != 0 || seen.scale_to.is_none());
            if let Some(next) = seen.scale_to {
                prop_assert!((2..=20).contains(&next));
                current = next;
            }
        }
    }
}
