//! Reads that fail while the operator is upgraded, drained from its node, killed and led by another.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        coordination::v1::Lease,
        core::v1::{Node, Pod},
    },
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::json;
use test_cluster::{OPERATOR_NAMESPACE as SYSTEM, eventually};
use tokio::time::{Instant, sleep, sleep_until};

use crate::{fixtures::Fixtures, load, reads::metric_of};

const RATE: u32 = 300;
const PATIENCE: Duration = Duration::from_secs(120);

/// What happens, one after the other, and at which part of the time each begins.
const PHASES: [(&str, f64); 5] = [
    ("nothing", 0.0),
    ("a rolling upgrade", 0.05),
    ("a drained node", 0.4),
    ("a killed leader", 0.65),
    ("a change of leader", 0.85),
];

/// Reads of each phase by what came of them; `None`: an answer.
#[derive(Default)]
struct Tally {
    phase: AtomicUsize,
    reads: Mutex<[BTreeMap<Option<String>, u32>; PHASES.len()]>,
}

impl Tally {
    fn count(&self, phase: usize, outcome: Option<String>) {
        let mut reads = self.reads.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_phase) = reads.get_mut(phase) {
            *of_phase.entry(outcome).or_default() += 1;
        }
    }

    fn print(&self) {
        let reads = self.reads.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut failed_in_all, mut in_all) = (0, 0);
        for ((what, _), outcomes) in PHASES.iter().zip(reads.iter()) {
            let total: u32 = outcomes.values().sum();
            let failed = total - outcomes.get(&None).copied().unwrap_or_default();
            println!("  {what:<20} {failed:>5} of {total} failed");
            for (kind, count) in outcomes {
                if let Some(kind) = kind {
                    println!("    {count:>5} × {kind}");
                }
            }
            (failed_in_all, in_all) = (failed_in_all + failed, in_all + total);
        }
        println!("  in all               {failed_in_all:>5} of {in_all} failed (goal: 0 of 60000)");
    }
}

pub(crate) async fn through_disturbances(fixtures: &Fixtures<'_>, projections: usize, length: Duration) -> Result<()> {
    println!("\nreads at {RATE}/s for {} s through the aggregator, while there is", length.as_secs());
    let tally = Arc::new(Tally::default());
    let started = Instant::now();
    // A task of its own: kubectl is waited for without giving way.
    let load = tokio::spawn({
        let (tally, client) = (tally.clone(), fixtures.client.clone());
        async move {
            load::run(RATE, length, |index| {
                let (tally, client) = (tally.clone(), client.clone());
                // Counted where it began, whenever it ends.
                let phase = tally.phase.load(Ordering::Relaxed);
                let path = metric_of(index, projections);
                async move {
                    let read = client.request_text(http::Request::get(path).body(Vec::new())?).await;
                    tally.count(phase, read.err().map(|error| kind(&error)));
                    Ok(())
                }
            })
            .await
        }
    });
    for (phase, (_, part)) in PHASES.iter().enumerate() {
        sleep_until(started + length.mul_f64(*part)).await;
        tally.phase.store(phase, Ordering::Relaxed);
        match phase {
            1 => upgrade(fixtures).await?,
            2 => drain_node(fixtures).await?,
            3 => kill_leader(fixtures).await?,
            4 => change_leader(fixtures).await?,
            _ => {}
        }
    }
    let late = started.elapsed().saturating_sub(length);
    let latencies = load.await??;
    tally.print();
    if !late.is_zero() {
        println!("  (the last was over {:.0} s after the last read: take longer)", late.as_secs_f64());
    }
    let (p99, slowest) = (latencies.percentile(99), latencies.percentile(100));
    println!("  p99 {:.2} ms, the slowest {:.0} ms", p99.as_secs_f64() * 1e3, slowest.as_secs_f64() * 1e3);
    Ok(())
}

/// Without what differs from read to read.
fn kind(error: &kube::Error) -> String {
    let text = match error {
        kube::Error::Api(status) => format!("{} {}: {}", status.code, status.reason, status.message),
        other => other.to_string(),
    };
    let words = text.split_whitespace().filter(|word| !word.contains("measured-"));
    words.collect::<Vec<_>>().join(" ").chars().take(160).collect()
}

async fn upgrade(fixtures: &Fixtures<'_>) -> Result<()> {
    fixtures.cluster.kubectl(&["rollout", "restart", "deployment/projectionist", "-n", SYSTEM])?;
    fixtures.cluster.kubectl(&["rollout", "status", "deployment/projectionist", "-n", SYSTEM, "--timeout=120s"])?;
    // The last of the old pods is on its way out.
    sleep(Duration::from_secs(10)).await;
    whole(fixtures).await
}

/// Both replicas are evicted as `kubectl drain` does it: one goes, and the other only when the budget for disruptions allows it. There
/// is one node, so that the first comes back where it was, which is opened again once it waits for a place.
async fn drain_node(fixtures: &Fixtures<'_>) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(fixtures.client.clone(), SYSTEM);
    let nodes: Api<Node> = Api::all(fixtures.client.clone());
    let node = nodes.list(&ListParams::default()).await?.items.into_iter().next();
    let node = node.and_then(|node| node.metadata.name).context("there is no node")?;
    let mut drain = fixtures.cluster.command("kubectl");
    drain.args(["drain", &node, "--pod-selector=app.kubernetes.io/component=operator", "--timeout=180s"]);
    let drained = tokio::task::spawn_blocking(move || drain.output());
    let waits = |pod: &Pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Pending");
    eventually(PATIENCE, "a replica waits for a node", || async {
        Ok::<_, kube::Error>(pods.list(&ListParams::default()).await?.items.iter().any(waits))
    })
    .await?;
    sleep(Duration::from_secs(3)).await;
    fixtures.cluster.kubectl(&["uncordon", &node])?;
    let drained = drained.await??;
    ensure!(drained.status.success(), "{}", String::from_utf8_lossy(&drained.stderr));
    whole(fixtures).await
}

/// Without a moment to say good-bye.
async fn kill_leader(fixtures: &Fixtures<'_>) -> Result<()> {
    let leader = leader(fixtures).await?;
    let pods: Api<Pod> = Api::namespaced(fixtures.client.clone(), SYSTEM);
    let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    pods.delete(&leader, &now).await?;
    another_leads(fixtures, &leader).await?;
    whole(fixtures).await
}

/// Another client takes the Lease and lets it run out.
async fn change_leader(fixtures: &Fixtures<'_>) -> Result<()> {
    let leases: Api<Lease> = Api::namespaced(fixtures.client.clone(), SYSTEM);
    let taken = json!({"spec": {"holderIdentity": "bench", "renewTime": MicroTime(Timestamp::now()), "leaseDurationSeconds": 5}});
    leases.patch("projectionist", &PatchParams::default(), &Patch::Merge(taken)).await?;
    another_leads(fixtures, "bench").await
}

async fn leader(fixtures: &Fixtures<'_>) -> Result<String> {
    let leases: Api<Lease> = Api::namespaced(fixtures.client.clone(), SYSTEM);
    let holder = leases.get("projectionist").await?.spec.and_then(|spec| spec.holder_identity);
    holder.filter(|holder| !holder.is_empty()).context("no replica holds the Lease")
}

async fn another_leads(fixtures: &Fixtures<'_>, before: &str) -> Result<()> {
    eventually(PATIENCE, "another replica leads", || async {
        Ok::<_, anyhow::Error>(leader(fixtures).await.is_ok_and(|leader| leader != before))
    })
    .await
}

async fn whole(fixtures: &Fixtures<'_>) -> Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(fixtures.client.clone(), SYSTEM);
    eventually(PATIENCE, "both replicas are ready", || async {
        let status = deployments.get("projectionist").await?.status.unwrap_or_default();
        Ok::<_, kube::Error>(status.ready_replicas == Some(2) && status.replicas == Some(2))
    })
    .await
}
