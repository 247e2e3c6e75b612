//! How soon one command that suspends many Projections has taken their workers away, and given them back.

use std::time::{Duration, Instant};

use anyhow::Result;
use k8s_openapi::api::apps::v1::Deployment;
use kube::{
    Api,
    api::{DeleteParams, ListParams},
};
use serde_json::Value;
use test_cluster::{Cluster, Postgres, eventually};

use crate::fixtures::{self, scaled_in};

const NAMESPACE: &str = "bench-kill-switch";
const PROJECTIONS: usize = 100;
const PATIENCE: Duration = Duration::from_secs(300);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Prints the figures. The pods are for a node that there is not: what is measured is when workers are asked for, since what a pod takes to end is its own.
pub(crate) async fn from_the_word_to_no_worker(cluster: &Cluster, postgres: &Postgres) -> Result<()> {
    cluster.kubectl(&["create", "namespace", NAMESPACE])?;
    let url = postgres.url(fixtures::DATABASE);
    let literal = format!("--from-literal=url={url}");
    cluster.kubectl(&["create", "secret", "generic", "database", "-n", NAMESPACE, &literal])?;
    let items: Vec<Value> =
        (0..PROJECTIONS).map(|number| scaled_in(NAMESPACE, &format!("measured-{number}"))).collect();
    cluster.apply(&serde_json::json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string())?;
    let deployments: Api<Deployment> = Api::namespaced(cluster.client().await?, NAMESPACE);
    eventually(PATIENCE, "every Projection has a worker asked for", || async {
        let found = asked(&deployments).await?;
        let all = found.len() == PROJECTIONS && found.iter().all(|replicas| *replicas > 0);
        Ok::<_, kube::Error>(if all { Ok(()) } else { Err(format!("{} of {found:?}", found.len())) })
    })
    .await?;

    println!("\none command that suspends {PROJECTIONS} Projections (kubectl annotate projections --all)");
    for (value, what, is_done) in [
        ("true", "no worker is asked for", (|replicas| replicas == 0) as fn(i32) -> bool),
        ("false", "workers are asked for again", |replicas| replicas > 0),
    ] {
        let annotation = format!("projectionist.dev/suspend={value}");
        let command = ["annotate", "projections", "--all", "-n", NAMESPACE, "--overwrite", &annotation];
        let began = Instant::now();
        let looking = tokio::spawn(all_are(deployments.clone(), is_done, began));
        tokio::task::block_in_place(|| cluster.kubectl(&command))?;
        let told = began.elapsed();
        let all_are = looking.await??;
        println!(
            "  {what} by all {:.1} s after the command began, which took {:.1} s itself (goal: 5 s)",
            all_are.as_secs_f64(),
            told.as_secs_f64()
        );
    }
    let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(cluster.client().await?);
    namespaces.delete(NAMESPACE, &DeleteParams::default()).await?;
    Ok(())
}

/// Returns how long after `began` all were.
async fn all_are(deployments: Api<Deployment>, is_done: fn(i32) -> bool, began: Instant) -> Result<Duration> {
    while began.elapsed() < PATIENCE {
        if asked(&deployments).await?.into_iter().all(is_done) {
            return Ok(began.elapsed());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    anyhow::bail!("not all Deployments of {NAMESPACE} were as they should be after {PATIENCE:?}")
}

/// So many workers each Deployment asks for.
async fn asked(deployments: &Api<Deployment>) -> Result<Vec<i32>, kube::Error> {
    let all = deployments.list(&ListParams::default()).await?;
    Ok(all.iter().map(|one| one.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)).collect())
}
