//! An autoscaler that is given: rules alone, or a whole HorizontalPodAutoscaler, of which nothing is passed over.

use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscaler, HorizontalPodAutoscalerBehavior, MetricSpec};
use serde_json::{Value, json};

use super::documents::one_document;
use crate::{
    api::{refused_behavior, unknown_field},
    hpa::{Autoscaler, Behavior},
    metrics::Metric,
    names::METRIC_PROJECTION_LABEL,
};

/// What the file of an autoscaler holds.
#[derive(Clone, Debug)]
pub enum AutoscalerFile {
    /// `scaleUp` and `scaleDown`, for the operator's own autoscaler.
    Behavior(HorizontalPodAutoscalerBehavior),
    /// One of the team's own, instead of the operator's.
    Whole(Box<HorizontalPodAutoscaler>),
}

/// A whole autoscaler, and what its metrics read.
#[derive(Clone, Debug)]
pub(super) struct GivenAutoscaler {
    pub(super) autoscaler: Autoscaler,
    pub(super) reads: Vec<Reads>,
}

/// What a metric reads of the simulated Projection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Reads {
    Required,
    Pending,
    Staleness,
    ArrivalRate,
    Drain,
}

impl Reads {
    /// What the metric reads; absent where the simulation has nothing of it.
    fn of(metric: Metric) -> Option<Self> {
        match metric {
            Metric::RequiredWorkers => Some(Self::Required),
            Metric::PendingEvents | Metric::QueueLength => Some(Self::Pending),
            Metric::StalenessSeconds => Some(Self::Staleness),
            Metric::ArrivalRate => Some(Self::ArrivalRate),
            Metric::DrainSeconds => Some(Self::Drain),
            Metric::HeldBackEvents
            | Metric::ParkedEvents
            | Metric::Value
            | Metric::ReadStoreConnections
            | Metric::ReadStoreConnectionsRatio
            | Metric::ReadStoreLatencySeconds => None,
        }
    }
}

impl AutoscalerFile {
    /// Reads either form.
    ///
    /// # Errors
    /// With the field or the line, when the text holds neither, or what the API server would refuse.
    pub fn read(text: &str) -> Result<Self, String> {
        let document = one_document(text)?;
        let Some(kind) = document.get("kind") else { return rules(&document, "").map(Self::Behavior) };
        if kind != "HorizontalPodAutoscaler" {
            return Err(format!("kind must be HorizontalPodAutoscaler, and is {kind}"));
        }
        match document.get("apiVersion").and_then(Value::as_str) {
            Some("autoscaling/v2") => {}
            Some(other) => {
                return Err(format!(
                    "apiVersion must be autoscaling/v2, and is {other}: kubectl get hpa.v2.autoscaling -o yaml shows it so"
                ));
            }
            None => return Err("apiVersion is required: autoscaling/v2".to_owned()),
        }
        if let Some(behavior) = document.pointer("/spec/behavior").filter(|behavior| !behavior.is_null()) {
            rules(behavior, "spec.behavior")?;
        }
        let whole: HorizontalPodAutoscaler =
            serde_json::from_value(document.clone()).map_err(|error| error.to_string())?;
        match unknown_field(&document, &json!(whole), "") {
            Some(field) => Err(format!("{field} is no field there")),
            None => Ok(Self::Whole(Box::new(whole))),
        }
    }

    /// Whether a tolerance is given, which servers before 1.35 drop.
    pub(super) fn has_tolerance(&self) -> bool {
        let behavior = match self {
            Self::Behavior(behavior) => Some(behavior),
            Self::Whole(whole) => whole.spec.behavior.as_ref(),
        };
        let rules = behavior.into_iter().flat_map(|behavior| [&behavior.scale_up, &behavior.scale_down]);
        rules.flatten().any(|rules| rules.tolerance.is_some())
    }
}

/// Rules, as the API server takes them.
fn rules(document: &Value, path: &str) -> Result<HorizontalPodAutoscalerBehavior, String> {
    if !document.is_object() {
        return Err(format!(
            "must be an object with scaleUp and scaleDown, or a HorizontalPodAutoscaler, and is {document}"
        ));
    }
    let refused: Vec<String> = refused_behavior(document, path).iter().map(ToString::to_string).collect();
    if !refused.is_empty() {
        return Err(refused.join("; "));
    }
    let behavior: HorizontalPodAutoscalerBehavior =
        serde_json::from_value(document.clone()).map_err(|error| error.to_string())?;
    Behavior::from_spec(&behavior).map_err(|error| error.to_string())?;
    Ok(behavior)
}

impl GivenAutoscaler {
    /// From a whole one, which must read the Projection `projection`.
    ///
    /// # Errors
    /// With the field, when it is out of bounds or reads what is not simulated.
    pub(super) fn of(whole: &HorizontalPodAutoscaler, projection: &str) -> Result<Self, String> {
        let spec = &whole.spec;
        let metrics = spec.metrics.as_deref().unwrap_or_default();
        if metrics.is_empty() {
            return Err("spec.metrics is required: without any it reads CPU, which is not simulated".to_owned());
        }
        let autoscaler = Autoscaler::from_spec(spec).map_err(|error| error.to_string())?;
        let reads = metrics.iter().enumerate().map(|(index, metric)| {
            reads(metric, projection).map_err(|problem| format!("spec.metrics[{index}]{problem}"))
        });
        Ok(Self { autoscaler, reads: reads.collect::<Result<_, _>>()? })
    }
}

fn reads(spec: &MetricSpec, projection: &str) -> Result<Reads, String> {
    let name = match (&spec.external, &spec.object) {
        (Some(external), None) => {
            let labels = external.metric.selector.as_ref();
            let labels = labels.and_then(|selector| selector.match_labels.as_ref());
            let named = labels.and_then(|labels| labels.get(METRIC_PROJECTION_LABEL));
            if named.is_some_and(|named| named != projection) {
                return Err(format!(
                    ".external.metric.selector.matchLabels.{METRIC_PROJECTION_LABEL} must be {projection}, which is simulated, and is {}",
                    named.map_or("", String::as_str)
                ));
            }
            external.metric.name.as_str()
        }
        (None, Some(object)) if object.described_object.kind == "Projection" => {
            if object.described_object.name != projection {
                return Err(format!(
                    ".object.describedObject.name must be {projection}, which is simulated, and is {}",
                    object.described_object.name
                ));
            }
            object.metric.name.as_str()
        }
        _ => {
            return Err(format!(
                ".type {} is not simulated: only metrics of the Projection are, External or Object",
                spec.type_
            ));
        }
    };
    let called = |metric: Metric| if spec.object.is_some() { metric.object_name() } else { metric.external_name() };
    Metric::ALL.into_iter().find(|metric| called(*metric) == name).and_then(Reads::of).ok_or_else(|| {
        let names: Vec<&str> =
            Metric::ALL.into_iter().filter(|metric| Reads::of(*metric).is_some()).map(called).collect();
        format!(" reads {name}, which is not simulated: it may read {}", names.join(", "))
    })
}
