use proptest::prelude::*;

use super::*;
use crate::hpa::{CpuUse, Phase};

const TENTH: Tolerances = Tolerances { up: 0.1, down: 0.1 };
const YOUTH: Youth = Youth { initialization: Duration::from_secs(300), readiness_delay: Duration::from_secs(30) };
const NOW: Duration = Duration::from_secs(10_000);

fn pods(all: usize, ready: usize) -> Vec<Pod> {
    let unready = Pod::starting(Duration::ZERO);
    (0..all).map(|index| if index < ready { Pod::ready(Duration::ZERO) } else { unready }).collect()
}

fn asked(metric: Metric, reading: &Reading, replicas: i32, pods: &[Pod]) -> Result<(i32, i64), Invalid> {
    let scale = Scale { spec: replicas, status: replicas, pods };
    let proposal = propose(metric, reading, scale, TENTH, YOUTH, NOW)?;
    Ok((proposal.replicas, proposal.shown))
}

#[test]
fn external_and_object_metrics_ask_for_what_the_controller_computes() {
    use Metric::{External, Object};
    use TargetValue::{Average, Value};
    let items = |milli: i64| Reading::Items(vec![milli]);
    // Replicas, of which ready; the metric; the answer; replicas asked for, value shown.
    let cases = [
        (3, 3, External(Value(6_666)), items(8_600), 4, 8_600),
        (5, 5, External(Value(14_400)), items(8_600), 3, 8_600),
        (4, 4, External(Value(8_666)), items(8_600), 4, 8_600),
        (3, 1, External(Value(4_400)), items(8_600), 2, 8_600),
        (3, 3, External(Average(2_150)), items(8_600), 4, 2_867),
        (5, 5, External(Average(2_867)), items(8_600), 3, 1_720),
        (4, 4, External(Average(2_200)), items(8_600), 4, 2_150),
        (3, 3, Object(Value(15_000)), Reading::Value(20_000), 4, 20_000),
        (3, 1, Object(Value(10_000)), Reading::Value(50_000), 5, 50_000),
        (3, 3, Object(Average(5_000)), Reading::Value(20_000), 4, 6_667),
        // At a tolerance of 0.1 ten never become eleven: they jump to twelve.
        (10, 10, External(Average(1_000)), items(11_000), 10, 1_100),
        (10, 10, External(Average(1_000)), items(11_001), 12, 1_101),
        (11, 11, External(Average(1_000)), items(10_000), 11, 910),
        (10, 10, External(Average(1_000)), items(9_000), 10, 900),
        (10, 10, External(Average(1_000)), items(8_999), 9, 900),
        // The items are summed.
        (2, 2, External(Average(1_000)), Reading::Items(vec![1_500, 2_500, 1]), 5, 2_001),
        // Slow starts scale down under overload, and no ready pod means none.
        (8, 2, External(Value(1_000)), items(2_000), 4, 2_000),
        (3, 0, External(Value(1_000)), items(9_000), 0, 9_000),
        (3, 0, External(Average(1_000)), items(9_000), 9, 3_000),
        (3, 3, External(Value(1_000)), items(0), 0, 0),
        (3, 3, External(Average(1_000)), items(0), 0, 0),
        // A negative average is taken for the largest, a negative value is what it is.
        (3, 3, External(Average(1_000)), items(-1), i32::MAX, i64::MAX),
        (3, 3, External(Value(1_000)), items(-1_000), -3, -1_000),
        (3, 3, External(Value(1)), items(i64::MAX), i32::MAX, i64::MAX),
        (3, 3, External(Value(1_000)), Reading::Items(vec![i64::MAX, 1]), i32::MAX, i64::MAX),
        (3, 3, External(Average(1_000)), Reading::Items(vec![i64::MAX, 1]), i32::MAX, i64::MAX),
        // The controller has no guard for the average of an object.
        (3, 3, Object(Average(1)), Reading::Value(9_000_000_000_000), i32::MIN, 3_000_000_000_000),
        (3, 3, Object(Average(1_000)), Reading::Value(-1), 0, 0),
    ];
    for (replicas, ready, metric, reading, expected, shown) in cases {
        let pods = pods(usize::try_from(replicas).unwrap(), ready);
        let seen = asked(metric, &reading, replicas, &pods);
        assert_eq!(seen, Ok((expected, shown)), "{replicas} ({ready} ready), {metric:?}, {reading:?}");
    }
}

#[test]
fn averages_go_by_the_status_and_values_by_the_spec_and_the_ready_pods() {
    let pods = pods(4, 4);
    let scale = Scale { spec: 6, status: 4, pods: &pods };
    let look = |target, usage| {
        propose(Metric::External(target), &Reading::Items(vec![usage]), scale, TENTH, YOUTH, NOW).unwrap().replicas
    };
    assert_eq!(look(TargetValue::Average(1_000), 4_000), 4, "in tolerance: the status, not the spec");
    assert_eq!(look(TargetValue::Value(1_000), 1_000), 6, "in tolerance: the spec");
    assert_eq!(look(TargetValue::Value(1_000), 2_000), 8, "twice the ready pods");
}

#[test]
fn what_is_not_answered_asks_for_nothing() {
    let metric = Metric::External(TargetValue::Value(1_000));
    for (metric, reading, pods, why) in [
        (metric, Reading::Failed, pods(1, 1), Invalid::NotAnswered),
        (metric, Reading::Items(vec![]), pods(1, 1), Invalid::NoItems),
        (metric, Reading::Value(1), pods(1, 1), Invalid::WrongKind),
        (metric, Reading::Items(vec![9_000]), vec![], Invalid::NoPods),
        (Metric::Cpu { utilization: 50 }, Reading::OfPods, vec![], Invalid::NoPods),
        (Metric::Cpu { utilization: 50 }, Reading::OfPods, pods(2, 2), Invalid::NoPodCounts),
    ] {
        assert_eq!(asked(metric, &reading, 1, &pods), Err(why));
    }
}

/// A pod of a request of 1 core that uses so much; an old one that has long been ready.
fn using(milli: i64) -> Pod {
    let cpu = CpuUse { milli, at: NOW, window: Duration::from_secs(30) };
    Pod { cpu_request: 1_000, cpu: Some(cpu), ..Pod::ready(Duration::ZERO) }
}

fn missing() -> Pod {
    Pod { cpu: None, ..using(0) }
}

fn unready() -> Pod {
    Pod { phase: Phase::Pending, ready: false, ..missing() }
}

fn ending() -> Pod {
    Pod { terminating: true, ..using(1_000) }
}

#[test]
fn cpu_counts_who_is_ready_and_doubts_who_is_not() {
    let cases = [
        (30, vec![using(300), using(500), using(700)], 5, "50 % of 30 %: 1.67 × 3"),
        (50, vec![using(500), using(540), using(520)], 3, "within a tenth"),
        (100, vec![using(300), using(500), using(700)], 2, "0.5 × 3"),
        (30, vec![using(500), using(700), unready()], 4, "60 % of two, 40 % of three: 1.33 × 3"),
        (50, vec![using(500), using(600), unready()], 3, "with the unready at 0 it would go down: held"),
        (100, vec![using(400), using(400), unready()], 1, "unready ones do not count downwards: 0.4 × 2"),
        (
            50,
            vec![using(100), using(100), missing()],
            3,
            "a missing one at 100 % speaks against going down: 40 % of 50 %, 0.8 × 3",
        ),
        (20, vec![using(800), using(400), missing()], 6, "a missing one at 0 speaks against going up: 2 × 3"),
        (30, vec![using(700), ending()], 3, "who ends does not count: 2.33 × 1"),
        (
            500,
            vec![using(100), missing()],
            2,
            "over 100 % the target is what a missing one is taken to use: 255 % of 500 %",
        ),
    ];
    for (target, pods, expected, why) in cases {
        let replicas = i32::try_from(pods.iter().filter(|pod| !pod.terminating).count()).unwrap();
        let seen = asked(Metric::Cpu { utilization: target }, &Reading::OfPods, replicas, &pods);
        assert_eq!(seen.map(|(replicas, _)| replicas), Ok(expected), "{why}");
    }
}

#[test]
fn what_a_young_pod_uses_counts_once_it_was_ready_for_a_whole_measurement() {
    let seconds = Duration::from_secs;
    let young = |ready, ready_for: u64| Pod {
        ready,
        ready_since: NOW - seconds(ready_for),
        started: Some(NOW - seconds(100)),
        ..using(500)
    };
    let old = |ready_since: u64| Pod {
        ready: false,
        ready_since: seconds(ready_since),
        started: Some(seconds(5_000)),
        ..using(500)
    };
    for (pod, expected, why) in [
        (young(true, 30), Group::Ready(500), "ready for the 30 s of the measurement"),
        (young(true, 29), Group::Unready, "ready for a part of it"),
        (young(false, 90), Group::Unready, "not ready"),
        (old(5_029), Group::Unready, "never ready: unready since shortly after its start"),
        (old(5_030), Group::Ready(500), "was ready once"),
        (Pod { started: None, ..using(500) }, Group::Unready, "not started"),
        (Pod { phase: Phase::Failed, ..using(500) }, Group::Ignored, "failed"),
    ] {
        assert_eq!(pod.group(YOUTH, NOW), expected, "{why}");
    }
}

proptest! {
    #[test]
    fn an_average_never_asks_for_fewer_than_the_tolerance_lets_hold_it(
        usage in 0..1_000_000_i64, target in 1..10_000_i64, replicas in 1..200_i32,
    ) {
        let pods = pods(1, 1);
        let (asked, _) = asked(Metric::External(TargetValue::Average(target)), &Reading::Items(vec![usage]), replicas, &pods).unwrap();
        prop_assert!(as_float(usage) <= as_float(target) * f64::from(asked) * 1.100_001, "{asked}");
    }
}
