//! What a spec asks of pages of metrics.

use std::collections::BTreeMap;

use super::{ConnectionName, Numbers, ResolvedSource, has_target, invalid};
use crate::{
    api::{Aggregate, CheckpointLocation, ProjectionSpec, ScrapeSource, ScrapedMetric},
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
    /// What becomes of several series. Absent: a page must have exactly one.
    pub aggregate: Option<Aggregate>,
}

impl AskedMetric {
    fn of(metric: &ScrapedMetric) -> Self {
        let ScrapedMetric { metric: name, labels, aggregate } = metric.clone();
        Self { name, labels, aggregate }
    }
}

/// The page and the metrics.
pub(super) fn scrape(
    spec: &ProjectionSpec,
    source: &ScrapeSource,
    key: &ProjectionKey,
) -> Result<(ResolvedSource, Option<CheckpointLocation>), MeasureError> {
    let ScrapeSource { connection, pending, staleness, arrived, value } = source;
    let asked = |metric: &Option<ScrapedMetric>| metric.as_ref().map(AskedMetric::of);
    let metrics =
        Numbers::of(asked(pending), asked(staleness), asked(arrived), asked(value)).ok_or_else(|| {
            invalid("spec.source.scrape must have exactly one of pending and value, and staleness and arrived only beside pending")
        })?;
    has_target(spec, &metrics)?;
    let connection = ConnectionName::over_http(ServerKind::Scrape, &key.namespace, connection);
    Ok((ResolvedSource::Scrape { connection, metrics }, None))
}
