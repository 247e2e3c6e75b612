//! Another adapter of the same metrics group, to which requests for other metrics are forwarded: a cluster has one provider of each group.
//!
//! The caller has been authorized before: an adapter does not learn who the caller is, since it would not trust the operator's statement. An
//! adapter's faults stay its own: its answers are bounded in time and size, and no request for the operator's own metrics waits for them.

mod circuit;
mod forwarder;
mod listing;

use std::sync::Arc;

use futures::future::BoxFuture;
use http::StatusCode;
use hyper::body::Bytes;
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};

use super::offer::{ApiVersion, Offer};

pub(super) use forwarder::{Forwarder, LIST_EVERY, LIST_RETRY};
pub(super) use listing::{DelegatedResource, Listed};

/// Another adapter's service.
pub trait Delegate: Send + Sync + 'static {
    /// The name for people, such as `the service keda/keda-operator-metrics-apiserver`.
    fn name(&self) -> &str;

    /// Sends a GET of this path and query with the operator's own identity, and returns the answer. Follows no redirect, and reads no more than
    /// `most_bytes`. Need not limit its time: the caller drops the future.
    fn get<'a>(
        &'a self,
        path_and_query: &'a str,
        most_bytes: usize,
    ) -> BoxFuture<'a, Result<DelegateAnswer, DelegateError>>;
}

/// An answer, valid or not.
#[derive(Clone, Debug)]
pub struct DelegateAnswer {
    /// The status code.
    pub status: StatusCode,
    /// The body.
    pub body: Bytes,
}

/// Why there is no answer. The message is for users, who see it in `kubectl describe hpa`.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DelegateError {
    /// It was not reached, or not trusted.
    #[error("{0}")]
    Unreachable(String),
    /// The answer is larger than allowed.
    #[error("its answer is larger than {0} bytes")]
    TooLarge(usize),
}

/// The adapters to which requests for other metrics are forwarded.
#[derive(Clone, Default)]
pub struct Delegates {
    /// For `external.metrics.k8s.io`.
    pub external: Option<Arc<dyn Delegate>>,
    /// For `custom.metrics.k8s.io`.
    pub custom: Option<Arc<dyn Delegate>>,
    /// External metrics whose names begin with this are the operator's, even those that do not exist.
    pub reserved: String,
}

impl std::fmt::Debug for Delegates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = |delegate: &Option<Arc<dyn Delegate>>| delegate.as_ref().map(|delegate| delegate.name().to_owned());
        f.debug_struct("Delegates")
            .field("external", &name(&self.external))
            .field("custom", &name(&self.custom))
            .field("reserved", &self.reserved)
            .finish()
    }
}

/// How a request to an adapter ended.
#[derive(Clone, Copy, Debug, EncodeLabelValue, Eq, Hash, PartialEq)]
pub enum Outcome {
    /// With values.
    Answered,
    /// The adapter said why not.
    Refused,
    /// It was not reached, failed, or gave an invalid answer.
    Failed,
    /// It took too long.
    TimedOut,
    /// It was not asked: it has failed a moment ago.
    Spared,
    /// It was not asked: too many requests wait for it.
    Busy,
}

/// Labels of a count.
#[derive(Clone, Copy, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct DelegatedLabels {
    /// The metrics group.
    pub group: &'static str,
    /// How it ended.
    pub outcome: Outcome,
}

/// Labels of what there is one of for each group.
#[derive(Clone, Copy, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct GroupLabels {
    /// The metrics group.
    pub group: &'static str,
}

/// What is counted about adapters.
#[derive(Clone, Debug, Default)]
pub struct DelegateMetrics {
    /// Requests for metrics of other adapters.
    pub requests: Family<DelegatedLabels, Counter>,
    /// When an adapter last said which metrics it has: seconds since 1970.
    pub listed: Family<GroupLabels, Gauge>,
}

/// The forwarders of the groups that have an adapter behind them.
pub(super) struct Forwarders {
    external: Option<Forwarder>,
    custom: Option<Forwarder>,
    reserved: String,
}

impl Forwarders {
    pub(super) fn new(delegates: Delegates, offer: &Offer, metrics: &DelegateMetrics) -> Self {
        let Delegates { external, custom, reserved } = delegates;
        let versions = offer.versions();
        let of = |delegate: Option<Arc<dyn Delegate>>, group: ApiVersion| {
            let of_it: Vec<ApiVersion> = versions.iter().copied().filter(|it| it.group() == group.group()).collect();
            delegate.filter(|_| !of_it.is_empty()).map(|delegate| Forwarder::new(delegate, of_it, metrics.clone()))
        };
        Self {
            external: of(external, ApiVersion::ExternalV1Beta1),
            custom: of(custom, ApiVersion::CustomV1Beta2),
            reserved,
        }
    }

    /// The adapter of an external metric with this name, unless the name is reserved for the operator.
    pub(super) fn of_external(&self, metric: &str) -> Option<&Forwarder> {
        self.external.as_ref().filter(|_| !metric.starts_with(&self.reserved))
    }

    /// The adapter of the metrics of other objects.
    pub(super) fn of_objects(&self) -> Option<&Forwarder> {
        self.custom.as_ref()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Forwarder> {
        self.external.iter().chain(&self.custom)
    }

    /// Keeps only metrics that are not the operator's, whatever the adapter lists.
    pub(super) fn not_ours(&self, listed: &mut Vec<DelegatedResource>, version: ApiVersion, offer: &Offer) {
        listed.retain(|resource| match version {
            ApiVersion::ExternalV1Beta1 => !resource.name.starts_with(&self.reserved),
            ApiVersion::CustomV1Beta1 | ApiVersion::CustomV1Beta2 => {
                let of = resource.name.split('/').next().unwrap_or_default();
                offer.objects.as_ref().is_none_or(|kind| kind.resource != of)
            }
        });
    }
}
