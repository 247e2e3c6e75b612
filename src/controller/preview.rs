//! The autoscaler that a Projection gets, told without a cluster: for the simulator.

use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscalerSpec;
use serde_json::Value;

use super::{
    plan_autoscaler::{ServerAbilities, Target, plan_autoscaler},
    validate::{Invalid, validate},
};
use crate::api::Projection;

/// The spec of the HorizontalPodAutoscaler that the operator makes for `projection`, also where the Projection asks for none. What only the
/// cluster gives an object may be absent.
///
/// # Errors
/// With the field's name, when the Projection cannot be carried out.
pub fn preview_autoscaler(projection: &Projection) -> Result<HorizontalPodAutoscalerSpec, Invalid> {
    let mut projection = projection.clone();
    let metadata = &mut projection.metadata;
    for (field, usual) in
        [(&mut metadata.namespace, "default"), (&mut metadata.name, "projection"), (&mut metadata.uid, "none")]
    {
        field.get_or_insert_with(|| usual.to_owned());
    }
    let validated = validate(&projection)?;
    let target = Target { kind: "Deployment", name: &validated.owner.name };
    let server = ServerAbilities { autoscaler_tolerance: true };
    let planned = plan_autoscaler(&validated.workers, target, &validated.owner, server);
    let spec = planned.body.get("spec").cloned().unwrap_or(Value::Null);
    serde_json::from_value(spec).map_err(|error| Invalid::Field {
        field: "spec.scaling.behavior".to_owned(),
        problem: format!("makes no autoscaler: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::hpa::{Autoscaler, Metric, Policy, Range, Target, Unit};

    #[test]
    fn tells_the_autoscaler_that_the_operator_would_make() {
        let projection = serde_json::from_value(json!({
            "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection", "metadata": {"name": "orders"},
            "spec": {
                "source": {"postgres": {"connection": {"secretRef": {"name": "db"}}, "eventTable": {}}},
                "checkpoint": {"readStore": {}},
                "readStore": {"postgres": {"connection": {"secretRef": {"name": "db"}}}},
                "lag": {"target": "5s", "pendingPerWorker": 1500},
                "scaling": {"maxWorkers": 12, "shards": 8},
                "projector": {"existing": {"kind": "Deployment", "name": "x"}},
            },
        }))
        .unwrap();
        let Autoscaler { range, metrics, behavior } =
            Autoscaler::from_spec(&preview_autoscaler(&projection).unwrap()).unwrap();
        assert_eq!(range, Range { min: 1, max: 8 });
        assert_eq!(metrics, [1_000, 1_500_000].map(|milli| Metric::External(Target::Average(milli))));
        let up = behavior.unwrap().scale_up;
        assert_eq!(up.tolerance, Some(0.0));
        assert!(matches!(up.policies[..], [Policy { unit: Unit::Pods, value: 8, .. }]));
    }
}
