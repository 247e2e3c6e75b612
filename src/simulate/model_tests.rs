use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::simulate::{Point, Run, Scenario, Trace, run};

fn projection(scaling: &Value) -> Projection {
    serde_json::from_value(json!({
        "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection", "metadata": {"name": "orders"},
        "spec": {
            "source": {"postgres": {"connection": {"secretRef": {"name": "db"}}, "eventTable": {}}},
            "checkpoint": {"readStore": {}},
            "readStore": {"postgres": {"connection": {"secretRef": {"name": "db"}}}},
            "lag": {"target": "5s"},
            "scaling": scaling,
            "projector": {"existing": {"kind": "Deployment", "name": "x"}},
        },
    }))
    .unwrap()
}

/// Ten seconds a rate, a worker does 50/s.
fn play(scaling: &Value, rates: &[f64], scale_out: &str) -> Run {
    let mut scaling = scaling.clone();
    scaling["scaleOut"] = scale_out.into();
    let points = rates.iter().map(|arriving| Point { arriving: *arriving, per_worker: None }).collect();
    let trace = Trace::new(Duration::from_secs(10), points).unwrap();
    let mut policy = ModelPolicy::new(&projection(&scaling), Some(50.0)).unwrap();
    run(&Scenario { per_worker: 50.0, ..Scenario::new(trace, Duration::from_secs(5)) }, &mut policy)
}

#[test]
fn the_model_scales_out_at_once_and_the_autoscaler_later_and_both_come_back() {
    let scaling = json!({"maxWorkers": 24, "shards": 24});
    let burst: Vec<f64> = [40.0; 6].into_iter().chain([360.0; 12]).chain([40.0; 18]).collect();
    let lateness = ["Immediate", "Autoscaler"].map(|scale_out| {
        let run = play(&scaling, &burst, scale_out);
        let (score, last) = (run.score(), run.moments().last().copied().unwrap());
        assert!(score.most_workers >= 8 && last.pending < 20, "{scale_out}: {score:?}, {last:?}");
        assert!(last.replicas <= 2, "{scale_out}: the quiet has sent them away: {:?}", run.changes());
        score.lateness
    });
    assert!(lateness[0] < lateness[1], "{lateness:?}");
}

#[test]
fn at_once_is_within_the_autoscalers_own_rules() {
    let rules = |rules: Value| json!({"maxWorkers": 24, "shards": 24, "behavior": {"scaleUp": rules}});
    let burst: Vec<f64> = [20.0; 3].into_iter().chain([900.0; 12]).collect();
    let by_two = rules(json!({"policies": [{"type": "Pods", "value": 2, "periodSeconds": 20}]}));
    let rises: Vec<(Duration, i32)> =
        play(&by_two, &burst, "Immediate").changes().iter().map(|(at, from, to)| (*at, to - from)).collect();
    for (at, _) in &rises {
        let lately: i32 = rises
            .iter()
            .filter(|(then, _)| then <= at && *then + Duration::from_secs(20) > *at)
            .map(|(_, by)| by)
            .sum();
        assert!(lately <= 2, "the operator and the autoscaler together keep to two in 20 s: {rises:?}");
    }
    assert!(rises.len() >= 4, "the autoscaler goes on by itself: {rises:?}");
    let never = rules(json!({"selectPolicy": "Disabled"}));
    assert_eq!(play(&never, &burst, "Immediate").changes(), []);
    let slow = rules(
        json!({"stabilizationWindowSeconds": 60, "policies": [{"type": "Pods", "value": 24, "periodSeconds": 15}]}),
    );
    let first = play(&slow, &burst, "Immediate").changes()[0];
    assert!(first.0 > Duration::from_secs(60), "the window holds: {first:?}");
}

#[test]
fn shards_bound_the_workers() {
    let run = play(&json!({"maxWorkers": 24, "shards": 6}), &[20.0, 900.0, 900.0, 900.0, 900.0], "Immediate");
    assert_eq!(run.score().most_workers, 6);
}

#[test]
fn steady_load_moves_nothing_once_it_is_known() {
    let run = play(&json!({"maxWorkers": 24, "shards": 24}), &[170.0; 60], "Immediate");
    let late = run.changes().into_iter().filter(|(at, ..)| *at > Duration::from_secs(180)).count();
    assert_eq!(late, 0, "{:?}", run.changes());
}

#[test]
fn what_cannot_be_carried_out_is_refused_with_the_field() {
    for (scaling, sentence) in [
        (json!({"minWorkers": 9, "maxWorkers": 3}), "spec.scaling.minWorkers"),
        (json!({"behavior": {"scaleUp": {"policies": []}}}), "behavior.scaleUp.policies must have at least one"),
    ] {
        let error = ModelPolicy::new(&projection(&scaling), None).expect_err("it was accepted");
        assert!(error.to_string().contains(sentence), "{error}");
    }
}
