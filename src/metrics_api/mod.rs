//! The Kubernetes metrics API: discovery, values and errors as the aggregator, `kubectl` and the HorizontalPodAutoscaler expect them.
//!
//! Independent of the rest of the operator: it knows a trait for values ([`MetricValues`]) and one for questions to the cluster ([`Reviews`]), and
//! nothing of Projections, sources or controllers. It answers from memory; no request for a metric waits for a source. Requests for other metrics may be
//! forwarded to another adapter ([`Delegate`]). Beside the metrics it tells callers when a read model has reached a position ([`ReadModels`]).

mod api_metrics;
mod audit;
pub mod authn;
mod authz;
mod awaiting;
pub mod certificate;
mod connection_limiter;
mod custom_v1beta1;
mod custom_v1beta2;
pub mod delegate;
mod discovery;
mod external_v1beta1;
#[cfg(fuzzing)]
pub mod fuzzing;
mod object_values;
pub mod offer;
mod openapi;
mod path;
mod peer;
pub mod quantity;
mod query;
mod rate;
mod recent;
mod reply;
mod requested;
mod routes;
pub mod selector;
pub mod server;
pub mod serving;
pub mod tls;
mod types;

use std::collections::BTreeMap;

use futures::future::BoxFuture;

pub use api_metrics::ApiMetrics;
pub use authn::{ClientAuthorities, User};
pub use authz::{Attributes, ResourceAttributes};
pub use awaiting::{AwaitError, AwaitQuery, ReadModels};
pub use delegate::{Delegate, DelegateAnswer, DelegateError, Delegates};
pub use offer::{ApiVersion, MeasuredKind, Offer};
pub use quantity::Quantity;
pub use rate::Rate;
pub use selector::Selector;
pub use server::{CONNECTION_AGE, ServeOptions, serve};

/// One value of an external metric.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ExternalValue {
    /// Labels that distinguish the values of one metric.
    pub labels: BTreeMap<String, String>,
    /// When it was measured.
    pub timestamp: jiff::Timestamp,
    /// The seconds over which it was computed, where it is no momentary value.
    pub window_seconds: Option<u64>,
    /// The value.
    pub value: Quantity,
}

/// The value of a metric of one object.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ObjectValue {
    /// The object's name.
    pub name: String,
    /// When it was measured.
    pub timestamp: jiff::Timestamp,
    /// The seconds over which it was computed, where it is no momentary value.
    pub window_seconds: Option<u64>,
    /// The value.
    pub value: Quantity,
}

/// Which values of objects are asked for.
#[derive(Clone, Copy, Debug)]
pub struct ObjectQuery<'a> {
    /// The namespace.
    pub namespace: &'a str,
    /// The object; `None` for all of them.
    pub name: Option<&'a str>,
    /// Matches the object's labels.
    pub labels: &'a Selector,
    /// One of the offered metrics.
    pub metric: &'a str,
    /// Matches the metric's own labels.
    pub metric_labels: &'a Selector,
}

/// Why there is no value. The message reaches a person through `kubectl describe hpa`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ValueError {
    /// There is no such metric, or no object that the selector matches: 404.
    NotFound(String),
    /// The metric exists and its value is not known now: 503, so that an autoscaler keeps the number of replicas.
    Unavailable(String),
}

/// Where values come from. Answers from memory.
pub trait MetricValues: Send + Sync + 'static {
    /// All values of a metric in a namespace that a selector matches; complete, or an error. Never empty.
    ///
    /// # Errors
    /// [`ValueError`]
    fn external(&self, namespace: &str, metric: &str, selector: &Selector) -> Result<Vec<ExternalValue>, ValueError>;

    /// The values of a metric of the objects that a query names; complete, or an error. Never empty, and exactly one where the query
    /// names the object.
    ///
    /// # Errors
    /// [`ValueError`]
    fn objects(&self, query: &ObjectQuery<'_>) -> Result<Vec<ObjectValue>, ValueError>;
}

/// A question to the cluster could not be answered.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct ReviewError(pub String);

/// What only the cluster can answer about a caller.
pub trait Reviews: Send + Sync + 'static {
    /// The user of this token; `None` if the token is not valid.
    fn user_of_token<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Option<User>, ReviewError>>;

    /// Whether the user may do this; if not, why, in the cluster's words.
    fn may<'a>(
        &'a self,
        user: &'a User,
        attributes: &'a Attributes,
    ) -> BoxFuture<'a, Result<Result<(), String>, ReviewError>>;
}
