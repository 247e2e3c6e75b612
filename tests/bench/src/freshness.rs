//! How soon after an append the metric shows it, where the database notifies, and how soon after a commit of the checkpoint a caller that awaits the position is answered.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use k8s_openapi::ByteString;
use serde_json::{Value, json};

use crate::{
    fixtures::{Fixtures, NAMESPACE},
    load::Latencies,
};

const APPENDS: usize = 60;
const AWAITED: usize = 100;
/// A request has come by then, and waits.
const ASKED_BEFORE: Duration = Duration::from_millis(300);

pub(crate) async fn append_to_metric(fixtures: &Fixtures<'_>) -> Result<()> {
    let mut all = Vec::new();
    for index in 0..APPENDS {
        // At odd moments, so that no poll's rhythm is met by accident.
        tokio::time::sleep(Duration::from_millis(150 + (index as u64 * 37) % 400)).await;
        let before = pending(fixtures).await?;
        fixtures.events.append("bench", "Counted", &json!({"n": 0})).await?;
        let appended = Instant::now();
        while pending(fixtures).await? <= before {
            anyhow::ensure!(appended.elapsed() < Duration::from_secs(60), "the metric never showed the append");
        }
        all.push(appended.elapsed());
    }
    let all = Latencies::of(all);
    println!(
        "\nappend → metric, {APPENDS} appends, read through the aggregator in a loop\n  p50 {:.0} ms, p99 {:.0} ms (goal: 250 ms)",
        all.percentile(50).as_secs_f64() * 1e3,
        all.percentile(99).as_secs_f64() * 1e3
    );
    Ok(())
}

async fn pending(fixtures: &Fixtures<'_>) -> Result<u64> {
    let path = format!(
        "/apis/external.metrics.k8s.io/v1beta1/namespaces/{NAMESPACE}/projection_pending_events?labelSelector=projection%3Dmeasured-0"
    );
    let list: Value = serde_json::from_str(&fixtures.get(&path).await?)?;
    let value = list.pointer("/items/0/value").and_then(Value::as_str).context("no value")?;
    Ok(value.parse()?)
}

/// From the commit of the checkpoint to the answer of a request that waits for that position at the operator, as an application asks: with the token of its
/// ServiceAccount.
pub(crate) async fn checkpoint_to_awaited(fixtures: &Fixtures<'_>) -> Result<()> {
    let kubectl = |arguments: &[&str]| fixtures.cluster.kubectl(arguments);
    kubectl(&["create", "serviceaccount", "checkout", "-n", NAMESPACE])?;
    let account = format!("--serviceaccount={NAMESPACE}:checkout");
    let role = "--clusterrole=projectionist-await";
    kubectl(&["create", "rolebinding", "checkout-awaits", "-n", NAMESPACE, role, &account])?;
    let token = kubectl(&["create", "token", "checkout", "-n", NAMESPACE])?;
    let operator = Operator::find(fixtures, token.trim())?;
    // Only this one's checkpoint moves.
    let commit = "update checkpoints set position = (select max(position) from events) where projection = 'measured-0'";
    fixtures.events.client().execute(commit, &[]).await?;
    let mut all = Vec::new();
    for index in 0..AWAITED {
        let position = fixtures.events.append("bench", "Counted", &json!({"n": 0})).await?;
        let mut asks = operator.asks(position);
        let answer = tokio::task::spawn_blocking(move || (asks.output(), Instant::now()));
        tokio::time::sleep(ASKED_BEFORE + Duration::from_millis((index as u64 * 37) % 400)).await;
        ensure!(!answer.is_finished(), "it is answered before the commit");
        fixtures.events.client().execute(commit, &[]).await?;
        let committed = Instant::now();
        let (output, answered) = answer.await?;
        let output = output.context("running curl")?;
        ensure!(output.stdout == b"200", "the operator refuses: {output:?}");
        all.push(answered.saturating_duration_since(committed));
    }
    let all = Latencies::of(all);
    println!(
        "checkpoint committed → answer of `await`, {AWAITED} requests, with the end of curl\n  p50 {:.0} ms, p99 {:.0} ms (goal: 100 ms)",
        all.percentile(50).as_secs_f64() * 1e3,
        all.percentile(99).as_secs_f64() * 1e3
    );
    Ok(())
}

/// The operator's own API: one of its replicas, by the name that its certificate is for.
struct Operator<'a> {
    cluster: &'a test_cluster::Cluster,
    host: String,
    address: String,
    port: u64,
    authority: PathBuf,
    token: String,
}

impl<'a> Operator<'a> {
    fn find(fixtures: &Fixtures<'a>, token: &str) -> Result<Self> {
        let read = |arguments: &[&str]| -> Result<Value> {
            let text = fixtures.cluster.kubectl(&[&["get", "-o", "json"], arguments].concat())?;
            Ok(serde_json::from_str(&text)?)
        };
        let service = read(&["apiservice", "v1beta1.external.metrics.k8s.io"])?;
        let text = |pointer: &str| service.pointer(pointer).and_then(Value::as_str).context(pointer.to_owned());
        let (name, namespace) = (text("/spec/service/name")?, text("/spec/service/namespace")?);
        let ByteString(authority) = serde_json::from_value(service["spec"]["caBundle"].clone())?;
        let selector = format!("kubernetes.io/service-name={name}");
        let slices = read(&["endpointslices", "-n", namespace, "-l", &selector])?;
        let slice = &slices["items"][0];
        let address = slice["endpoints"][0]["addresses"][0].as_str().context("no replica is ready")?;
        let port = slice["ports"].as_array().into_iter().flatten().find(|port| port["name"] == "metrics-api");
        let port = port.and_then(|port| port["port"].as_u64()).context("the service has no port metrics-api")?;
        let file = fixtures.cluster.instance().dir().join("awaited-ca.crt");
        fs::write(&file, authority)?;
        Ok(Self {
            cluster: fixtures.cluster,
            host: format!("{name}.{namespace}.svc"),
            address: address.to_owned(),
            port,
            authority: file,
            token: token.to_owned(),
        })
    }

    /// Prints the status of the answer.
    fn asks(&self, position: i64) -> Command {
        let Self { cluster, host, address, port, authority, token } = self;
        let path = format!("/v1/namespaces/{NAMESPACE}/projections/measured-0/await?position={position}&timeout=10s");
        let mut curl = cluster.command("curl");
        curl.args(["--silent", "--show-error", "--output", "/dev/null", "--write-out", "%{http_code}", "--cacert"])
            .arg(authority)
            .args(["--resolve", &format!("{host}:{port}:{address}")])
            .arg(format!("-HAuthorization: Bearer {token}"))
            .arg(format!("https://{host}:{port}{path}"));
        curl
    }
}
