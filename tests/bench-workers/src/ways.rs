//! The ways to scale that race, each as the objects that make it real.

use std::time::Duration;

use bench_scaling::{
    rivals::{MOST, Rival},
    traces::PER_WORKER,
};
use clap::ValueEnum;
use serde_json::{Value, json};

/// The external metric of the query's author, served beside ours (see [`crate::query`]).
pub const QUERY_METRIC: &str = "query";

/// A way to scale.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, ValueEnum)]
pub enum Way {
    /// A Projection that is told the lag target and nothing else
    Ours,
    /// An HPA on our pending events, one worker for as many as it handles within the target
    CountTarget,
    /// An HPA on our pending events, one worker for a third of that
    CountTuned,
    /// An HPA on a query of rate and backlog that is told what a worker handles
    Query,
}

impl Way {
    /// All, in the order of the table.
    pub const ALL: [Self; 4] = [Self::Ours, Self::Query, Self::CountTuned, Self::CountTarget];

    /// As on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// The same in the simulator.
    pub fn simulated(self) -> Rival {
        match self {
            Self::Ours => Rival::Ours,
            Self::CountTarget => Rival::CountByTarget,
            Self::CountTuned => Rival::CountTuned,
            Self::Query => Rival::Query,
        }
    }

    /// The metric that its HPA reads and how much of it is one worker's; nothing for ours, whose HPA is the operator's.
    fn metric(self, target: Duration) -> Option<(&'static str, u64)> {
        let share = |part: f64| whole(PER_WORKER * target.as_secs_f64() * part);
        match self {
            Self::Ours => None,
            Self::CountTarget => Some(("projection_pending_events", share(1.0))),
            Self::CountTuned => Some(("projection_pending_events", share(1.0 / 3.0))),
            Self::Query => Some((QUERY_METRIC, 1)),
        }
    }

    /// The HPA of a rival, with the behavior that the simulated ones have: all at once up, a window of 60 s down.
    pub fn autoscaler(self, namespace: &str, name: &str, target: Duration) -> Option<Value> {
        let (metric, average) = self.metric(target)?;
        let rules = |window: u32| json!({"stabilizationWindowSeconds": window, "policies": [{"type": "Pods", "value": MOST, "periodSeconds": 15}]});
        Some(json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": format!("rival-{name}"), "namespace": namespace},
            "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
                "minReplicas": 1,
                "maxReplicas": MOST,
                "metrics": [{"type": "External", "external": {
                    "metric": {"name": metric, "selector": {"matchLabels": {"projection": name}}},
                    "target": {"type": "AverageValue", "averageValue": average.to_string()},
                }}],
                "behavior": {"scaleUp": rules(0), "scaleDown": rules(60)},
            },
        }))
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // A few hundred.
fn whole(number: f64) -> u64 {
    number.round() as u64
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use projectionist::hpa::Autoscaler;

    use super::*;

    #[test]
    fn a_rival_on_the_cluster_is_the_one_of_the_simulator() {
        for way in Way::ALL.into_iter().filter(|way| *way != Way::Ours) {
            for target in [5, 15].map(Duration::from_secs) {
                let object = way.autoscaler("bench", "orders", target).unwrap();
                let real = Autoscaler::from_spec(&serde_json::from_value(object["spec"].clone()).unwrap()).unwrap();
                assert_eq!(Some(real), way.simulated().policy(target).autoscaler(), "{way:?} at {target:?}");
            }
        }
        assert_eq!(Way::Ours.autoscaler("bench", "orders", Duration::from_secs(5)), None);
    }
}
