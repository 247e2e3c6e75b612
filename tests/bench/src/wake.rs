//! How soon workers are there: the first one after a sleep, and more of them after a burst.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStatus};
use kube::Api;
use serde_json::{Value, json};
use test_cluster::{Cluster, EventStore};

use crate::load::Latencies;

const NAMESPACE: &str = "bench-wake";
const WAKES: usize = 10;
const BURSTS: usize = 3;
const MOST_WORKERS: i32 = 8;
const PATIENCE: Duration = Duration::from_secs(180);
/// Makes a worker's capacity known: about 40 events a second.
const SLOWLY: &str = "insert into seen select :position from pg_sleep(0.02)";

/// Prints the figures.
pub(crate) async fn from_append_to_workers(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["create", "namespace", NAMESPACE])?;
    let postgres = cluster.postgres()?;
    let url = postgres.create_database("wake").await?;
    let events = EventStore::create_events_table(&postgres, "wake", "events").await?;
    let literal = format!("--from-literal=url={url}");
    cluster.kubectl(&["create", "secret", "generic", "database", "-n", NAMESPACE, &literal])?;
    let deployments: Api<Deployment> = Api::namespaced(cluster.client().await?, NAMESPACE);

    println!("\nfrom an append to workers, the HPA looking every 15 s");
    cluster.apply(&projection("sleepy", Some("events"), &json!({"minWorkers": 0, "idleFor": "5s"})).to_string())?;
    let (mut asked, mut ready) = (Vec::new(), Vec::new());
    for _ in 0..WAKES {
        until(&deployments, "sleepy", |_, status| status.replicas.unwrap_or(0) == 0).await.context("it sleeps")?;
        until(&deployments, "sleepy", |spec, _| spec.replicas == Some(0)).await.context("it sleeps")?;
        tokio::time::sleep(Duration::from_millis(700)).await;
        let appended = Instant::now();
        events.append_events(1).await?;
        until(&deployments, "sleepy", |spec, _| spec.replicas > Some(0)).await?;
        asked.push(appended.elapsed());
        until(&deployments, "sleepy", |_, status| status.ready_replicas > Some(0)).await?;
        ready.push(appended.elapsed());
    }
    row("asleep: append → worker asked for", asked, "300 ms");
    row("asleep: append → first worker ready", ready, "1500 ms");
    cluster.kubectl(&["delete", "projection", "sleepy", "-n", NAMESPACE])?;

    for (name, channel, goal) in
        [("pushed", Some("events"), "1000 ms"), ("polled", None, "one interval, 500 ms, and what follows")]
    {
        cluster.apply(
            &projection(name, channel, &json!({"behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}}}))
                .to_string(),
        )?;
        let (mut asked, mut created) = (Vec::new(), Vec::new());
        for _ in 0..BURSTS {
            until(&deployments, name, |spec, status| spec.replicas == Some(1) && status.ready_replicas == Some(1))
                .await?;
            let burst = Instant::now();
            events.append_events(2_400).await?;
            until(&deployments, name, |spec, _| spec.replicas > Some(1)).await?;
            asked.push(burst.elapsed());
            until(&deployments, name, |_, status| status.replicas == Some(MOST_WORKERS)).await?;
            created.push(burst.elapsed());
        }
        row(&format!("{name}: burst → more workers asked for"), asked, goal);
        row(&format!("{name}: burst → all {MOST_WORKERS} workers created"), created, goal);
        cluster.kubectl(&["delete", "projection", name, "-n", NAMESPACE])?;
    }
    Ok(())
}

fn projection(name: &str, channel: Option<&str>, scaling: &Value) -> Value {
    let connection = json!({"secretRef": {"name": "database", "key": "url"}});
    let mut all = json!({"maxWorkers": MOST_WORKERS, "shards": 24, "eventsPerWorkerSecond": 40});
    for (field, value) in scaling.as_object().into_iter().flatten() {
        all[field] = value.clone();
    }
    json!({
        "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "source": {"postgres": {"connection": connection, "eventTable": {"notifyChannel": channel}}},
            "readStore": {"postgres": {"connection": connection, "schema": name}},
            "lag": {"target": "5s"},
            "scaling": all,
            "projector": {"builtin": {
                "setup": "create table if not exists seen (position bigint primary key)",
                "handlers": {"Counted": SLOWLY},
                "batchSize": 10,
                "resources": {"requests": {"cpu": "5m", "memory": "16Mi"}},
            }},
        },
    })
}

async fn until(
    deployments: &Api<Deployment>,
    name: &str,
    wanted: impl Fn(&DeploymentSpec, &DeploymentStatus) -> bool,
) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = deployments.get_opt(name).await?;
        if let Some(Deployment { spec: Some(spec), status, .. }) = &found
            && wanted(spec, &status.clone().unwrap_or_default())
        {
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < deadline, "{name} never came to be as wanted: {found:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn row(what: &str, times: Vec<Duration>, goal: &str) {
    let times = Latencies::of(times);
    let of = |percent| times.percentile(percent).as_secs_f64() * 1e3;
    println!("  {what:<44} p50 {:>5.0} ms, slowest {:>5.0} ms (goal: {goal})", of(50), of(100));
}
