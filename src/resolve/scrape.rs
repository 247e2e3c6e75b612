//! What a spec asks of pages of metrics.

use std::collections::BTreeMap;

use super::{ConnectionName, Numbers, ResolvedSource, has_target, invalid};
use crate::{
    api::{Aggregate, CheckpointLocation, ExistingKind, ProjectionSpec, ScrapeSource, ScrapedMetric, ScrapedPods},
    clients::ServerKind,
    measure::{MeasureError, ProjectionKey},
};

/// The series of one metric, and what becomes of them.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct AskedMetric {
    /// The name, as on the page.
    pub name: String,
    /// Only series with all these labels and values.
    pub labels: BTreeMap<String, String>,
    /// A page must have exactly one.
    pub single: bool,
    /// What becomes of several series, on a page or over pods.
    pub aggregate: Aggregate,
}

impl AskedMetric {
    /// `usually`: what becomes of several where the spec does not say.
    fn of(metric: &ScrapedMetric, usually: Aggregate) -> Self {
        let ScrapedMetric { metric: name, labels, aggregate } = metric.clone();
        Self { name, labels, single: aggregate.is_none(), aggregate: aggregate.unwrap_or(usually) }
    }
}

/// The page and the metrics.
pub(super) fn scrape(
    spec: &ProjectionSpec,
    source: &ScrapeSource,
    key: &ProjectionKey,
) -> Result<(ResolvedSource, Option<CheckpointLocation>), MeasureError> {
    let ScrapeSource { connection, pods, pending, staleness, arrived, value } = source;
    let of = |metric: &Option<ScrapedMetric>, usually| metric.as_ref().map(|metric| AskedMetric::of(metric, usually));
    let summed = |metric| of(metric, Aggregate::Sum);
    let metrics =
        Numbers::of(summed(pending), of(staleness, Aggregate::Max), summed(arrived), summed(value)).ok_or_else(|| {
            invalid("spec.source.scrape must have exactly one of pending and value, and staleness and arrived only beside pending")
        })?;
    has_target(spec, &metrics)?;
    let connection = match (connection, pods) {
        (Some(connection), None) => ConnectionName::over_http(ServerKind::Scrape, &key.namespace, connection),
        (None, Some(pods)) => self::pods(spec, pods, key)?,
        _ => return Err(invalid("spec.source.scrape must have exactly one of connection and pods")),
    };
    Ok((ResolvedSource::Scrape { connection, metrics }, None))
}

/// The pages of the workers' pods.
fn pods(spec: &ProjectionSpec, pods: &ScrapedPods, key: &ProjectionKey) -> Result<ConnectionName, MeasureError> {
    let Some(projector) = &spec.projector else {
        return Err(invalid("spec.projector is required with spec.source.scrape.pods, which are its pods"));
    };
    if spec.scaling.min_workers < 1 {
        return Err(invalid(
            "spec.scaling.minWorkers must be at least 1 with spec.source.scrape.pods: without a worker no page tells what waits",
        ));
    }
    let mut given = vec![
        ("namespace", key.namespace.to_string()),
        ("projection", key.name.to_string()),
        ("port", pods.port.to_string()),
        ("path", pods.path.clone()),
    ];
    given.extend(projector.existing.as_ref().map(|existing| {
        let key = match existing.kind {
            ExistingKind::Deployment => "deployment",
            ExistingKind::StatefulSet => "statefulset",
        };
        (key, existing.name.clone())
    }));
    Ok(ConnectionName { server: ServerKind::WorkerPods, secret: None, ca: None, client: None, given })
}

#[cfg(test)]
#[path = "scrape_tests.rs"]
mod tests;
