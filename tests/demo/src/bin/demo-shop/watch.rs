//! Looks at each Projection once a second, as the autoscaler does. Changes nothing; what cannot be read at a moment is unknown in that sample.

use std::{
    fmt,
    time::{Duration, Instant},
};

use anyhow::Result;
use demo::{
    metric,
    table::{Missed, Sample},
};
use k8s_openapi::api::{apps::v1::Deployment, batch::v1::Job};
use kube::{Api, Client};
use projectionist::metrics::Metric;

use crate::{programs, stage::NAMESPACE};

/// How often a sample is taken.
const EVERY: Duration = Duration::from_secs(1);
/// A look may not hold up the next ones.
const LOOK_TIMEOUT: Duration = Duration::from_secs(3);

/// A Projection of the shop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watched {
    pub(crate) name: &'static str,
    /// Its lag target, in seconds, as its manifest says.
    pub(crate) target: f64,
}

/// All of them, as the manifests say.
pub(crate) const PROJECTIONS: [Watched; 6] = [
    Watched { name: "order-summary", target: 10.0 },
    Watched { name: "product-cards", target: 10.0 },
    Watched { name: "order-search", target: 10.0 },
    Watched { name: "relay", target: 10.0 },
    Watched { name: "sagas", target: 10.0 },
    Watched { name: "notifications", target: 20.0 },
];

impl fmt::Display for Watched {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name)
    }
}

/// Watches until the load has ended.
pub(crate) async fn until_done(client: Client, part: Duration) -> Result<Vec<(Watched, Vec<Sample>)>> {
    let jobs: Api<Job> = Api::namespaced(client.clone(), NAMESPACE);
    let mut watched: Vec<(Watched, Vec<Sample>)> = PROJECTIONS.map(|projection| (projection, Vec::new())).into();
    let (started, mut ticks) = (Instant::now(), tokio::time::interval(EVERY));
    while programs::outcome(&jobs, "load").await?.is_none() {
        ticks.tick().await;
        let at = started.elapsed();
        let phase = match at.as_secs_f64() / part.as_secs_f64() {
            part if part < 1.0 => "steady",
            part if part < 2.0 => "sale",
            _ => "after",
        };
        let looks = watched.iter().map(|(projection, _)| look(&client, *projection, at, phase));
        let samples = futures::future::join_all(looks).await;
        watched.iter_mut().zip(samples).for_each(|((_, all), sample)| all.push(sample));
    }
    Ok(watched)
}

async fn look(client: &Client, projection: Watched, at: Duration, phase: &'static str) -> Sample {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), NAMESPACE);
    let value = |metric: Metric| {
        let path = format!(
            "/apis/external.metrics.k8s.io/v1beta1/namespaces/{NAMESPACE}/{}?labelSelector=projection%3D{projection}",
            metric.external_name()
        );
        async move { in_time(metric::value(client, &path)).await }
    };
    let (deployment, pending, staleness, required) = tokio::join!(
        in_time(deployments.get(projection.name)),
        value(Metric::PendingEvents),
        value(Metric::StalenessSeconds),
        value(Metric::RequiredWorkers),
    );
    let ready = deployment.as_ref().map(|found| found.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0));
    let desired = deployment.and_then(|found| found.spec?.replicas);
    let at = at.as_secs_f64();
    Sample { at, phase, pending, staleness, required, desired, ready, ..Sample::default() }
}

async fn in_time<T, E>(look: impl Future<Output = Result<T, E>>) -> Option<T> {
    tokio::time::timeout(LOOK_TIMEOUT, look).await.ok()?.ok()
}

/// A line for a Projection: how old its read model became, and for how long it was older than its target.
pub(crate) fn summary(projection: &Watched, missed: &Missed, samples: &[Sample]) -> String {
    let worst = samples.iter().filter_map(|sample| sample.staleness).reduce(f64::max);
    let worst = worst.map_or_else(|| "?".to_owned(), |worst| format!("{worst:.1} s"));
    let workers = samples.iter().filter_map(|sample| sample.ready).max().unwrap_or(0);
    format!(
        "{:<14} staleness at most {worst:>7}; above the target of {} s for {:>3.0} s of {:.0} s, unknown for {:.0} s; most workers: {workers}",
        projection.name,
        projection.target,
        missed.above.as_secs_f64(),
        missed.of.as_secs_f64(),
        missed.unknown.as_secs_f64(),
    )
}
