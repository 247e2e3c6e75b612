//! What the operator would do about the number of a Projection's workers, computed without a cluster: for the simulator.

use std::time::Duration;

use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscalerSpec;
use serde_json::Value;

use super::{
    parts::Part,
    plan::{
        autoscaler::{ScaleTargetRef, ServerAbilities, plan_autoscaler},
        scale::{ScalePlan, ScaleView, plan_scale},
        scale_out::ScaleOut,
    },
};
use crate::{
    api::Projection,
    resolve::{Invalid, Validated, WorkerBounds, validate},
};

/// The operator beside an autoscaler of its own, also where the Projection asks for none.
#[derive(Clone, Debug)]
pub struct Preview {
    /// The spec of the HorizontalPodAutoscaler that the operator makes.
    pub autoscaler: HorizontalPodAutoscalerSpec,
    workers: WorkerBounds,
    scale_out: ScaleOut,
}

impl Preview {
    /// For a Projection, on an API server with the abilities `server`. What only the cluster gives an object may be absent.
    ///
    /// # Errors
    /// With the field's name, when the Projection cannot be carried out.
    pub fn of(projection: &Projection, server: ServerAbilities) -> Result<Self, Invalid> {
        let mut projection = projection.clone();
        let metadata = &mut projection.metadata;
        for (field, usual) in
            [(&mut metadata.namespace, "default"), (&mut metadata.name, "projection"), (&mut metadata.uid, "none")]
        {
            field.get_or_insert_with(|| usual.to_owned());
        }
        let Validated { owner, workload: _, workers, stored: _ } = validate(&projection)?;
        let name = Part::Deployment.object_name(&owner.run);
        let target = ScaleTargetRef { kind: "Deployment", name: &name };
        let planned = plan_autoscaler(&workers, target, &owner, server);
        let spec = planned.body.get("spec").cloned().unwrap_or(Value::Null);
        let autoscaler = serde_json::from_value(spec).map_err(|error| Invalid::Field {
            field: "spec.scaling.behavior".to_owned(),
            problem: format!("makes no autoscaler: {error}"),
        })?;
        let workers = WorkerBounds { autoscaled: true, ..workers };
        Ok(Self { autoscaler, workers, scale_out: ScaleOut::default() })
    }

    /// Beside an autoscaler of the team's own, which alone scales what runs.
    pub fn beside_another_autoscaler(mut self) -> Self {
        self.workers = WorkerBounds { autoscaled: false, ..self.workers };
        self
    }

    /// The number of workers that the operator itself sets now, if any: `replicas` are asked for, the model asks for `required`.
    pub fn scale_to(&mut self, replicas: i32, required: Option<i32>, now: Duration) -> Option<i32> {
        let ceiling = self.scale_out.ceiling(&self.workers, replicas, now);
        let view = ScaleView { replicas: Some(replicas), required, was_suspended: false, ceiling };
        match plan_scale(&self.workers, view) {
            ScalePlan::Set(to) | ScalePlan::Raise(to) => Some(to),
            ScalePlan::Leave | ScalePlan::CreateWith(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::hpa::{Autoscaler, Metric, Policy, Range, TargetValue, Unit};

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
        let Autoscaler { range, metrics, behavior } = Autoscaler::from_spec(
            &Preview::of(&projection, ServerAbilities { autoscaler_tolerance: true }).unwrap().autoscaler,
        )
        .unwrap();
        assert_eq!(range, Range { min: 1, max: 8 });
        assert_eq!(metrics, [1_000, 1_500_000].map(|milli| Metric::External(TargetValue::Average(milli))));
        let up = behavior.unwrap().scale_up;
        assert_eq!(up.tolerance, Some(0.0));
        assert!(matches!(up.policies[..], [Policy { unit: Unit::Pods, value: 8, .. }]));
    }
}
