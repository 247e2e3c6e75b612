//! How far the operator itself may raise the number of workers now: as far as the autoscaler's own rules let it. Pure: the time comes in.
//!
//! The autoscaler looks every 15 s only, and a burst does not wait. It would come to the same number at its next look, since it reads
//! the same metric, so that raising it earlier takes nothing out of its hands. It alone takes workers away.

use std::time::Duration;

use super::autoscaler::rules;
use crate::{
    hpa::{Behavior, Scalings},
    resolve::WorkerBounds,
};

/// What is remembered of one workload's number of workers. Lost with the leadership, as the autoscaler's own memory is with its restart.
#[derive(Clone, Debug, Default)]
pub struct ScaleOut {
    seen: Option<i32>,
    scalings: Scalings,
}

impl ScaleOut {
    /// The most workers that the operator may raise `replicas` to at `now`; `None` where raising is the autoscaler's alone.
    pub fn ceiling(&mut self, workers: &WorkerBounds, replicas: i32, now: Duration) -> Option<i32> {
        if !(workers.autoscaled && workers.immediate) {
            return None;
        }
        self.see(&rules(workers)?, replicas, now)
    }

    /// Records the number that is asked for at `now`, whichever client changed it, and returns the most that the rules allow now. `None` where they
    /// look back at what was asked for over a time (a stabilization window): only the autoscaler can judge that.
    fn see(&mut self, rules: &Behavior, replicas: i32, now: Duration) -> Option<i32> {
        if let Some(before) = self.seen.replace(replicas).filter(|before| *before != replicas) {
            self.scalings.record(rules, before, replicas, now);
        }
        let windowed = rules.scale_up.window.is_some_and(|window| !window.is_zero());
        (!windowed).then(|| rules.scale_up_limit(replicas, &self.scalings, now))
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscalerBehavior;

    use super::*;

    fn rules_of(behavior: serde_json::Value) -> Behavior {
        let spec: HorizontalPodAutoscalerBehavior = serde_json::from_value(behavior).unwrap();
        Behavior::from_spec(&spec).unwrap()
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn what_was_added_within_a_period_counts_against_it_whichever_client_added_it() {
        let two_in_ten =
            rules_of(serde_json::json!({"scaleUp": {"policies": [{"type": "Pods", "value": 2, "periodSeconds": 10}]}}));
        let mut workload = ScaleOut::default();
        assert_eq!(workload.see(&two_in_ten, 1, seconds(0)), Some(3));
        assert_eq!(workload.see(&two_in_ten, 3, seconds(1)), Some(3), "two were added already");
        assert_eq!(workload.see(&two_in_ten, 3, seconds(10)), Some(3));
        assert_eq!(workload.see(&two_in_ten, 3, seconds(11)), Some(5));
    }

    #[test]
    fn a_window_or_a_ban_leaves_it_to_the_autoscaler() {
        let windowed = rules_of(serde_json::json!({"scaleUp": {"stabilizationWindowSeconds": 30}}));
        assert_eq!(ScaleOut::default().see(&windowed, 1, seconds(0)), None);
        let banned = rules_of(serde_json::json!({"scaleUp": {"selectPolicy": "Disabled"}}));
        assert_eq!(ScaleOut::default().see(&banned, 1, seconds(0)), Some(1));
    }
}
