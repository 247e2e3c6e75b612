//! Reads an autoscaler as the API has it.

use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscalerSpec, MetricSpec, MetricTarget};

use super::{
    behavior::{Behavior, InvalidBehavior},
    controller::Autoscaler,
    normalize::Range,
    proposal::{Metric, TargetValue},
};
use crate::quantity::Quantity;

/// An autoscaler that the API server would refuse, or that reads what is not modelled here.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidAutoscaler {
    /// The behavior is out of bounds.
    #[error("spec.{0}")]
    Behavior(#[from] InvalidBehavior),
    /// Another field is.
    #[error("spec.{field} {problem}")]
    Field {
        /// The field, such as `metrics[0].external.target`.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
}

fn invalid(field: impl Into<String>, problem: impl Into<String>) -> InvalidAutoscaler {
    InvalidAutoscaler::Field { field: field.into(), problem: problem.into() }
}

/// What the API server takes for granted where no metric is named, in per cent of the request.
const USUAL_UTILIZATION: i32 = 80;

impl Autoscaler {
    /// With the defaults of the API server. Knows metrics of the types External, Object and Resource (CPU utilization).
    ///
    /// # Errors
    /// With the field's name, when a field is out of bounds or of a type that is not known here.
    pub fn from_spec(spec: &HorizontalPodAutoscalerSpec) -> Result<Self, InvalidAutoscaler> {
        let HorizontalPodAutoscalerSpec { behavior, max_replicas, metrics, min_replicas, scale_target_ref: _ } = spec;
        let range = Range { min: min_replicas.unwrap_or(1), max: *max_replicas };
        if range.min < 1 {
            return Err(invalid("minReplicas", format!("must be at least 1, and is {}", range.min)));
        }
        if range.max < range.min {
            return Err(invalid("maxReplicas", format!("must not be less than minReplicas, and is {}", range.max)));
        }
        let all = metrics.as_deref().unwrap_or_default();
        let mut metrics = all
            .iter()
            .enumerate()
            .map(|(index, spec)| metric(spec, &format!("metrics[{index}]")))
            .collect::<Result<Vec<_>, _>>()?;
        if metrics.is_empty() {
            metrics.push(Metric::Cpu { utilization: USUAL_UTILIZATION });
        }
        let behavior = behavior.as_ref().map(Behavior::from_spec).transpose()?;
        Ok(Self { range, metrics, behavior })
    }
}

fn metric(spec: &MetricSpec, path: &str) -> Result<Metric, InvalidAutoscaler> {
    match (spec.type_.as_str(), &spec.external, &spec.object, &spec.resource) {
        // An average counts where both are given.
        ("External", Some(external), ..) => {
            target(&external.target, &format!("{path}.external.target")).map(Metric::External)
        }
        ("Object", _, Some(object), _) => target(&object.target, &format!("{path}.object.target")).map(Metric::Object),
        ("Resource", .., Some(resource)) if resource.name == "cpu" => match resource.target.average_utilization {
            Some(utilization @ 1..) => Ok(Metric::Cpu { utilization }),
            _ => {
                Err(invalid(format!("{path}.resource.target.averageUtilization"), "must be given, and greater than 0"))
            }
        },
        (other, ..) => {
            let problem =
                format!("must be External, Object or Resource (cpu) and come with its own field, and is {other}");
            Err(invalid(format!("{path}.type"), problem))
        }
    }
}

fn target(target: &MetricTarget, path: &str) -> Result<TargetValue, InvalidAutoscaler> {
    let read = |text: &str, name: &str| {
        let field = format!("{path}.{name}");
        let milli = Quantity::parse(text).map_err(|error| invalid(field.clone(), error.to_string()))?.milli();
        if milli > 0 { Ok(milli) } else { Err(invalid(field, "must be greater than 0")) }
    };
    match (&target.average_value, &target.value) {
        (Some(average), _) => read(&average.0, "averageValue").map(TargetValue::Average),
        (None, Some(value)) => read(&value.0, "value").map(TargetValue::Value),
        (None, None) => Err(invalid(path, "must have a value or an averageValue")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(change: &Value) -> Result<Autoscaler, InvalidAutoscaler> {
        let mut spec = json!({"scaleTargetRef": {"kind": "Deployment", "name": "x"}, "maxReplicas": 9});
        spec.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        Autoscaler::from_spec(&serde_json::from_value(spec).unwrap())
    }

    fn external(target: &Value) -> Value {
        json!({"metrics": [{"type": "External", "external": {"metric": {"name": "m"}, "target": target}}]})
    }

    #[test]
    fn reads_each_kind_of_metric_with_the_defaults() {
        let plain = read(&json!({})).unwrap();
        let cpu = vec![Metric::Cpu { utilization: 80 }];
        assert_eq!(plain, Autoscaler { range: Range { min: 1, max: 9 }, metrics: cpu, behavior: None });
        let object = json!({"type": "Object", "object": {
            "describedObject": {"kind": "Projection", "name": "x"}, "metric": {"name": "m"}, "target": {"type": "Value", "value": "2500m"},
        }});
        let cpu = json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 60}}});
        let full = read(&json!({"minReplicas": 2, "behavior": {}, "metrics": [object, cpu]})).unwrap();
        assert_eq!(full.metrics, [Metric::Object(TargetValue::Value(2_500)), Metric::Cpu { utilization: 60 }]);
        assert_eq!((full.range.min, full.behavior), (2, Some(Behavior::default())));
        let average = read(&external(&json!({"type": "AverageValue", "averageValue": "1k"}))).unwrap();
        assert_eq!(average.metrics, [Metric::External(TargetValue::Average(1_000_000))]);
    }

    #[test]
    fn what_is_out_of_bounds_is_refused_with_the_field() {
        for (change, sentence) in [
            (json!({"minReplicas": 0}), "spec.minReplicas must be at least 1"),
            (json!({"minReplicas": 10}), "spec.maxReplicas must not be less than minReplicas"),
            (json!({"behavior": {"scaleUp": {"policies": []}}}), "spec.behavior.scaleUp.policies must have"),
            (external(&json!({"type": "Value"})), "spec.metrics[0].external.target must have a value"),
            (
                external(&json!({"type": "Value", "value": "0"})),
                "spec.metrics[0].external.target.value must be greater",
            ),
            (external(&json!({"type": "Value", "value": "x"})), "external.target.value \"x\" is not a quantity"),
            (json!({"metrics": [{"type": "Pods"}]}), "spec.metrics[0].type must be External"),
        ] {
            let error = read(&change).expect_err("it was accepted").to_string();
            assert!(error.contains(sentence), "{error}");
        }
    }
}
