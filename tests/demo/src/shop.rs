//! The orders example on the cluster: its events table, its Secrets and its Projection, as the files under examples/ say.
//!
//! Changes only what makes a demo: the lag target, the bounds, and a price for each event.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::apps::v1::Deployment;
use kube::{Api, Client};
use projectionist::api::Projection;
use serde_json::{Value, json};
use test_cluster::{Cluster, Postgres, eventually};

use crate::Options;

/// The team's namespace, as the example says.
pub(crate) const NAMESPACE: &str = "shop";
/// The Projection, as the example says.
pub(crate) const PROJECTION: &str = "order-summary";
/// The read model's schema, as the example says.
pub(crate) const SCHEMA: &str = "orders";

const EVENTS_SQL: &str = include_str!("../../../examples/orders/events.sql");
const PROJECTION_YAML: &str = include_str!("../../../examples/orders/projection.yaml");
const EVENTS_DATABASE: &str = "events";
const READ_DATABASE: &str = "reads";
/// How long things that take seconds may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// A worker of the demo spends so long in one transaction at most, so that the table shows it moving.
const BATCH_SECONDS: f64 = 0.4;

/// A team's namespace and databases.
pub(crate) struct Shop<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) client: Client,
    /// The write side.
    pub(crate) events: tokio_postgres::Client,
    /// The write side again, for a reader that looks while it is written.
    pub(crate) onlooker: tokio_postgres::Client,
    /// The read side.
    pub(crate) reads: tokio_postgres::Client,
}

impl<'a> Shop<'a> {
    /// Makes everything and waits until a worker is ready.
    pub(crate) async fn open(cluster: &'a Cluster, postgres: &Postgres, options: &Options) -> Result<Self> {
        let (events_url, reads_url) =
            (postgres.create_database(EVENTS_DATABASE).await?, postgres.create_database(READ_DATABASE).await?);
        let events = postgres.connect(EVENTS_DATABASE).await?;
        events.batch_execute(EVENTS_SQL).await.context("examples/orders/events.sql")?;
        let shop = Self {
            cluster,
            client: cluster.client().await?,
            events,
            onlooker: postgres.connect(EVENTS_DATABASE).await?,
            reads: postgres.connect(READ_DATABASE).await?,
        };
        cluster.kubectl(&["create", "namespace", NAMESPACE])?;
        for (secret, url) in [("events-db", events_url), ("read-db", reads_url)] {
            let literal = format!("--from-literal=url={url}");
            cluster.kubectl(&["create", "secret", "generic", secret, "-n", NAMESPACE, &literal])?;
        }
        cluster.apply(&projection(options)?.to_string()).context("examples/orders/projection.yaml")?;
        shop.a_worker_is_ready().await?;
        Ok(shop)
    }

    async fn a_worker_is_ready(&self) -> Result<()> {
        let (deployments, projections) = (self.deployments(), self.projections());
        let waited = eventually(PATIENCE, "a worker is ready and the lag known", || async {
            let ready = deployments.get(PROJECTION).await?.status.and_then(|status| status.ready_replicas).unwrap_or(0);
            let status = projections.get(PROJECTION).await?.status.unwrap_or_default();
            Ok::<_, kube::Error>(if ready > 0 && status.pending.is_some() {
                Ok(())
            } else {
                Err(format!("{ready} workers ready; conditions: {}", json!(status.conditions)))
            })
        });
        waited.await.map_err(|error| self.cluster.explain(&error, NAMESPACE))
    }

    pub(crate) fn deployments(&self) -> Api<Deployment> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    pub(crate) fn projections(&self) -> Api<Projection> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    /// The path under which the autoscaler reads a metric of the Projection.
    pub(crate) fn metric_path(metric: &str) -> String {
        format!(
            "/apis/external.metrics.k8s.io/v1beta1/namespaces/{NAMESPACE}/{metric}?labelSelector=projection%3D{PROJECTION}"
        )
    }
}

/// The example's Projection, with the demo's changes.
fn projection(options: &Options) -> Result<Value> {
    let mut projection: Value =
        serde_saphyr::from_str(PROJECTION_YAML).context("reading examples/orders/projection.yaml")?;
    let metadata = &projection["metadata"];
    if (&metadata["name"], &metadata["namespace"]) != (&json!(PROJECTION), &json!(NAMESPACE)) {
        bail!("examples/orders/projection.yaml is about another Projection than {NAMESPACE}/{PROJECTION}");
    }
    let spec = &mut projection["spec"];
    spec["lag"]["target"] = json!(options.target);
    spec["scaling"]["maxWorkers"] = json!(options.max_workers);
    let builtin = &mut spec["projector"]["builtin"];
    let setup = builtin["setup"].as_str().context("the example has no setup")?;
    builtin["setup"] = json!(format!("{};\n{}", setup.trim_end(), priced(options.event_milliseconds)));
    builtin["batchSize"] = json!(batch_size(options.event_milliseconds));
    builtin["resources"] = json!({"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "128Mi"}});
    Ok(projection)
}

/// Makes every event cost so much, as real work would, and notes which event was handled when: twice would break the primary key.
fn priced(milliseconds: u32) -> String {
    let seconds = f64::from(milliseconds) / 1000.0;
    format!(
        "create table if not exists handled (position bigint primary key, at timestamptz not null);\n\
         create or replace function price() returns trigger language plpgsql as $$ begin\n\
           perform pg_sleep({seconds});\n\
           insert into handled values (new.last_position, clock_timestamp());\n\
           return new;\n\
         end $$;\n\
         create or replace trigger price before insert or update on order_summary for each row execute function price()"
    )
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn batch_size(milliseconds: u32) -> u32 {
    (BATCH_SECONDS * 1000.0 / f64::from(milliseconds.max(1))).clamp(1.0, 500.0) as u32
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn the_example_is_a_projection_also_with_the_demos_changes() {
        let options = Options::parse_from(["demo", "--target", "7s", "--max-workers", "3"]);
        let changed: Projection = serde_json::from_value(projection(&options).unwrap()).unwrap();
        assert_eq!(changed.spec.lag.target, options.target);
        assert_eq!(changed.spec.scaling.most_workers(), 3);
        let builtin = changed.spec.projector.unwrap().builtin.unwrap();
        assert_eq!(builtin.handlers.len(), 3);
        assert!(builtin.setup.unwrap().contains("order_summary (\n"));
        assert_eq!(builtin.batch_size, Some(20));
    }

    #[test]
    fn the_other_examples_are_projections_too() {
        let files = [
            include_str!("../../../examples/own-workers.yaml"),
            include_str!("../../../examples/existing-workload.yaml"),
            include_str!("../../../examples/rebuild.yaml"),
            include_str!("../../../examples/shop/manifests/read-models.yaml"),
            include_str!("../../../examples/shop/manifests/workers.yaml"),
        ];
        for text in files.iter().flat_map(|file| file.split("\n---\n")) {
            let example: Value = serde_saphyr::from_str(text).unwrap();
            serde_json::from_value::<Projection>(example).unwrap();
        }
    }
}
