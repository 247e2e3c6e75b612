//! The HorizontalPodAutoscaler: it reads the number of workers that the model asks for, and follows it at once.

use std::collections::BTreeMap;

use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscalerBehavior;
use serde_json::{Map, Value, json};

use crate::{
    controller::parts::{Desired, Owner, Part},
    hpa::Behavior,
    metrics::Metric,
    names,
    resolve::WorkerBounds,
};

/// The workload that is scaled.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ScaleTargetRef<'a> {
    /// `Deployment` or `StatefulSet`, of apps/v1.
    pub kind: &'a str,
    /// Its name.
    pub name: &'a str,
}

/// What the API server can do.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ServerAbilities {
    /// `behavior.scaleUp.tolerance` is there and on (beta from 1.35). Before 1.33 the field is unknown, before 1.35 it is dropped.
    pub autoscaler_tolerance: bool,
}

impl ServerAbilities {
    /// From the answer to `/version`. A minor version may end in `+`.
    pub fn of_version(major: &str, minor: &str) -> Self {
        let number =
            |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap_or(0);
        let version: (u32, u32) = (number(major), number(minor));
        Self { autoscaler_tolerance: version >= (1, 35) }
    }
}

/// Seconds between two looks of the autoscaler, by default.
const LOOK_SECONDS: i32 = 15;
/// One look. The model itself keeps for a minute what rose, so that a longer window only costs worker-seconds.
const SCALE_IN_WINDOW_SECONDS: i32 = 15;

/// The HorizontalPodAutoscaler.
pub fn plan_autoscaler(
    workers: &WorkerBounds,
    target: ScaleTargetRef<'_>,
    owner: &Owner,
    server: ServerAbilities,
) -> Desired {
    // Without a version the metric is about the run that readers see.
    let version = owner.run.version.as_deref().map(|version| (names::METRIC_VERSION_LABEL, version));
    let labels: BTreeMap<&str, &str> =
        [(names::METRIC_PROJECTION_LABEL, owner.name())].into_iter().chain(version).collect();
    let external = |metric: Metric, average: &str| {
        json!({
            "type": "External",
            "external": {
                "metric": {
                    "name": metric.external_name(),
                    "selector": { "matchLabels": labels },
                },
                "target": { "type": "AverageValue", "averageValue": average },
            },
        })
    };
    let mut metrics = vec![external(Metric::RequiredWorkers, "1")];
    if let Some(pending) = workers.pending_per_worker {
        metrics.push(external(Metric::QueueLength, &canonical_quantity(pending)));
    }
    let spec = json!({
        "scaleTargetRef": { "apiVersion": "apps/v1", "kind": target.kind, "name": target.name },
        // None at all is the operator's to decide: an autoscaler does not wake what sleeps.
        "minReplicas": workers.min.max(1),
        "maxReplicas": workers.max,
        "metrics": metrics,
        "behavior": behavior(workers, server),
    });
    Desired::new(Part::HorizontalPodAutoscaler, owner, Map::from_iter([("spec".to_owned(), spec)]))
}

/// The rules that the autoscaler follows, where the API server would take them.
pub fn rules(workers: &WorkerBounds) -> Option<Behavior> {
    let spec: HorizontalPodAutoscalerBehavior =
        serde_json::from_value(behavior(workers, ServerAbilities::default())).ok()?;
    Behavior::from_spec(&spec).ok()
}

/// What the spec says; of a direction that it does not speak of, what holds the target.
fn behavior(workers: &WorkerBounds, server: ServerAbilities) -> Value {
    let mut behavior = json!({
        "scaleUp": {
            "stabilizationWindowSeconds": 0,
            "policies": [{ "type": "Pods", "value": workers.max, "periodSeconds": LOOK_SECONDS }],
        },
        "scaleDown": { "stabilizationWindowSeconds": SCALE_IN_WINDOW_SECONDS },
    });
    for direction in ["scaleUp", "scaleDown"] {
        let given = workers.behavior.as_ref().and_then(|given| given.get(direction)).filter(|given| !given.is_null());
        if let Some(given) = given {
            behavior[direction] = given.clone();
        }
        // The usual tolerance of 10 % would swallow the step from 10 to 11.
        if server.autoscaler_tolerance && behavior[direction].get("tolerance").is_none() {
            behavior[direction]["tolerance"] = json!("0");
        }
    }
    behavior
}

/// As the API server would write it back (`1000` as `1k`), so that what is there compares equal with what is declared.
fn canonical_quantity(number: i64) -> String {
    let suffixes = [(1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")];
    let fitting = suffixes.into_iter().find(|(unit, _)| number != 0 && number % unit == 0);
    fitting.map_or_else(|| number.to_string(), |(unit, suffix)| format!("{}{suffix}", number / unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerance_is_there_from_1_35() {
        for (major, minor, expected) in
            [("1", "34", false), ("1", "35", true), ("1", "36+", true), ("2", "0", true), ("", "", false)]
        {
            assert_eq!(ServerAbilities::of_version(major, minor).autoscaler_tolerance, expected, "{major}.{minor}");
        }
    }

    #[test]
    fn quantities_are_written_as_the_server_writes_them() {
        for (number, text) in
            [(1, "1"), (999, "999"), (1_000, "1k"), (1_500, "1500"), (2_000_000, "2M"), (1_000_000_000, "1G")]
        {
            assert_eq!(canonical_quantity(number), text);
        }
    }
}
