//! The installed operator, a database with events, and Projections by the thousand.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::{autoscaling::v2::HorizontalPodAutoscaler, core::v1::Namespace};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, PostParams},
};
use projectionist::api::Projection;
use serde_json::{Value, json};
use test_cluster::{Cluster, EventStore, Postgres, eventually, eventually_is};

/// Where the measured Projections live.
pub(crate) const NAMESPACE: &str = "bench";
pub(crate) const DATABASE: &str = "bench";
const PATIENCE: Duration = Duration::from_secs(600);
/// Requests to the API server under way at once while objects are made.
const AT_ONCE: usize = 16;

pub(crate) struct Fixtures<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) client: Client,
    pub(crate) postgres: Postgres,
    pub(crate) events: EventStore,
}

impl<'a> Fixtures<'a> {
    pub(crate) async fn set(cluster: &'a Cluster) -> Result<Self> {
        cluster.import_image(&test_cluster::images::image()?)?;
        cluster.install_operator(&[])?;
        let client = cluster.client().await?;
        cluster.kubectl(&["create", "namespace", NAMESPACE])?;
        let postgres = cluster.postgres()?;
        let url = postgres.create_database(DATABASE).await?;
        let events = EventStore::create_events_table(&postgres, DATABASE, "events").await?;
        events
            .client()
            .batch_execute("create table checkpoints (projection text primary key, position bigint not null)")
            .await?;
        events.append_events(100).await?;
        cluster.kubectl(&[
            "create",
            "secret",
            "generic",
            "database",
            "-n",
            NAMESPACE,
            &format!("--from-literal=url={url}"),
        ])?;
        Ok(Self { cluster, client, postgres, events })
    }

    pub(crate) fn projections(&self) -> Api<Projection> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    /// Creates Projections that are only measured, and waits until each has a value.
    pub(crate) async fn create_measured(&self, count: usize) -> Result<()> {
        let rows = "insert into checkpoints select 'measured-' || i, 40 from generate_series(0, $1::bigint - 1) i";
        self.events.client().execute(rows, &[&i64::try_from(count)?]).await?;
        let started = Instant::now();
        self.create((0..count).map(|index| measured(&format!("measured-{index}"), "database"))).await?;
        let created = started.elapsed();
        let all = |answered: &usize| *answered == count;
        eventually_is(PATIENCE, "each Projection has a value", all, || self.answered("projection_pending_events"))
            .await?;
        println!(
            "  ({count} Projections created in {:.1} s, all measured after {:.1} s)",
            created.as_secs_f64(),
            started.elapsed().as_secs_f64()
        );
        Ok(())
    }

    async fn create(&self, objects: impl Iterator<Item = Value>) -> Result<()> {
        let projections = self.projections();
        stream::iter(objects)
            .map(|object| {
                let projections = &projections;
                async move {
                    let projection: Projection = serde_json::from_value(object)?;
                    projections.create(&PostParams::default(), &projection).await.context("creating a Projection")?;
                    Ok::<_, anyhow::Error>(())
                }
            })
            .buffer_unordered(AT_ONCE)
            .try_collect::<Vec<()>>()
            .await?;
        Ok(())
    }

    /// How many Projections a read of all gets values for.
    async fn answered(&self, metric: &str) -> Result<usize> {
        let list = self.get(&format!("/apis/external.metrics.k8s.io/v1beta1/namespaces/{NAMESPACE}/{metric}")).await?;
        let list: Value = serde_json::from_str(&list)?;
        Ok(list["items"].as_array().map_or(0, Vec::len))
    }

    /// Commits every Projection's checkpoint at the head.
    pub(crate) async fn catch_up(&self) -> Result<()> {
        self.events
            .client()
            .execute("update checkpoints set position = (select max(position) from events)", &[])
            .await?;
        Ok(())
    }

    /// One GET through the API server.
    pub(crate) async fn get(&self, path: &str) -> Result<String> {
        Ok(self.client.request_text(http::Request::get(path).body(Vec::new())?).await?)
    }

    pub(crate) async fn delete_measured(&self) -> Result<()> {
        self.projections().delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
        eventually(PATIENCE, "they are gone", || async {
            Ok::<_, kube::Error>(self.projections().list(&ListParams::default().limit(1)).await?.items.is_empty())
        })
        .await
    }

    /// From the first create to the last HPA, for Projections with pods that no node takes, since one node has no room for them.
    pub(crate) async fn time_to_autoscalers(&self, count: usize) -> Result<()> {
        let autoscalers: Api<HorizontalPodAutoscaler> = Api::namespaced(self.client.clone(), NAMESPACE);
        let started = Instant::now();
        self.create((0..count).map(|index| scaled(&format!("measured-{index}")))).await?;
        let created = started.elapsed();
        let names = ListParams::default();
        eventually_is(
            PATIENCE,
            "there is an HPA for each",
            |found: &usize| *found == count,
            || async { Ok::<_, kube::Error>(autoscalers.list_metadata(&names).await?.items.len()) },
        )
        .await?;
        println!("\n{count} Projections to {count} HPAs (with their Deployments and PodDisruptionBudgets)");
        println!(
            "  creating the Projections took {:.1} s; the last HPA came after {:.1} s (goal: 20 s per 1,000)",
            created.as_secs_f64(),
            started.elapsed().as_secs_f64()
        );
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        namespaces.delete(NAMESPACE, &DeleteParams::default()).await?;
        Ok(())
    }
}

/// A Projection without workers, on the database that a Secret names.
pub(crate) fn measured(name: &str, secret: &str) -> Value {
    let connection = json!({"secretRef": {"name": secret, "key": "url"}});
    json!({
        "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "source": {"postgres": {"connection": connection, "eventTable": {"notifyChannel": "events"}}},
            "checkpoint": {"readStore": {}},
            "readStore": {"postgres": {"connection": connection}},
            "lag": {"target": "30s"},
        },
    })
}

/// A Projection with pods that no node takes.
fn scaled(name: &str) -> Value {
    scaled_in(NAMESPACE, name)
}

/// The same in another namespace.
pub(crate) fn scaled_in(namespace: &str, name: &str) -> Value {
    let mut projection = measured(name, "database");
    projection["metadata"]["namespace"] = json!(namespace);
    projection["spec"]["projector"] = json!({"template": {"spec": {
        "nodeSelector": {"bench": "nowhere"},
        "containers": [{"name": "worker", "image": "example.invalid/worker:1"}],
    }}});
    projection
}
