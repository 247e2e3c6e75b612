//! `shop load` and `shop check` as Jobs.

use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::batch::v1::Job;
use kube::{Api, Client};
use serde_json::{Value, json};
use test_cluster::{Cluster, eventually, images::SHOP_IMAGE};

use crate::{Options, stage::NAMESPACE};

/// How long a program may take beyond the load's own time.
const PATIENCE: Duration = Duration::from_secs(300);

/// What became of a program.
pub(crate) struct Ended {
    pub(crate) succeeded: bool,
    pub(crate) printed: String,
}

/// The customers.
pub(crate) fn load(options: &Options) -> Value {
    let Options { rate, sale, seconds, .. } = options;
    let arguments =
        ["load".to_owned(), format!("--rate={rate}"), format!("--sale={sale}"), format!("--seconds={seconds}")];
    job(
        "load",
        &arguments,
        &json!([{"name": "API_URL", "value": format!("http://shop-api.{NAMESPACE}.svc.cluster.local")}]),
    )
}

/// The verdict.
pub(crate) fn check() -> Value {
    let from =
        |name: &str, secret: &str| json!({"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": "url"}}});
    let environment = json!([
        {"name": "SERVERS_CA", "valueFrom": {"secretKeyRef": {"name": "servers", "key": "ca.crt"}}},
        from("DATABASE_URL", "writes"), from("READS_URL", "reads"), from("REDIS_URL", "views"), from("SEARCH", "search"),
        {"name": "SEARCH_URL", "value": "$(SEARCH)/orders"},
    ]);
    job("check", &["check".to_owned()], &environment)
}

fn job(name: &str, arguments: &[String], environment: &Value) -> Value {
    json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"backoffLimit": 0, "template": {"spec": {
            "restartPolicy": "Never",
            "containers": [{"name": name, "image": SHOP_IMAGE, "args": arguments, "env": environment}],
        }}},
    })
}

/// Whether a Job has succeeded; none while it runs.
pub(crate) async fn outcome(jobs: &Api<Job>, name: &str) -> Result<Option<bool>> {
    let status = jobs.get(name).await?.status.unwrap_or_default();
    let ended = |count: Option<i32>| count.unwrap_or(0) > 0;
    Ok(ended(status.succeeded).then_some(true).or(ended(status.failed).then_some(false)))
}

/// Waits for a Job's end.
pub(crate) async fn ended(cluster: &Cluster, client: &Client, name: &str) -> Result<Ended> {
    let jobs: Api<Job> = Api::namespaced(client.clone(), NAMESPACE);
    let waited = eventually(PATIENCE, &format!("the Job {name} ends"), || outcome(&jobs, name)).await;
    let succeeded = waited.map_err(|error| cluster.explain(&error, NAMESPACE))?;
    let printed =
        cluster.kubectl(&["logs", &format!("job/{name}"), "-n", NAMESPACE]).context("what a Job has printed")?;
    Ok(Ended { succeeded, printed })
}
