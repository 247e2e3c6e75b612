//! The operator may die, fail over and be upgraded: metrics are read all the while, and the workers do not notice.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::DeleteParams};
use projectionist::api::Phase;
use serde_json::json;
use test_cluster::{always_is, eventually, eventually_is};

use crate::shop::{Shop, busy, phase};
use crate::stage::{PATIENCE, SYSTEM, Stage, alone, play};

/// Reads a metric through the aggregator about 50 times a second until told to stop.
#[derive(Default)]
struct Reader {
    done: AtomicBool,
    reads: AtomicU32,
    failures: Mutex<Vec<String>>,
}

impl Reader {
    async fn read_on(&self, shop: &Shop<'_>) {
        while !self.done.load(Ordering::Relaxed) {
            if let Err(error) = shop.metric("projection_pending_events", "orders").await {
                self.failures.lock().unwrap().push(format!("{error:#}"));
            }
            self.reads.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Does something to the operator while the metric is read all the time; no read may fail.
pub(crate) async fn without_a_failed_read(
    stage: &'static Stage,
    name: &str,
    disturb: impl AsyncFnOnce(&Shop<'_>) -> Result<()>,
) -> Result<()> {
    let shop = Arc::new(Shop::open(stage, name).await?);
    shop.commit("orders", 0).await?;
    shop.apply(&shop.measured("orders", &json!({})))?;
    stage.operator_is_whole(&shop.client).await?;
    shop.metric_is("projection_pending_events", "orders", |_| true).await?;
    let reader = Arc::new(Reader::default());
    // A task of its own: Helm is waited for without giving way.
    let reading = tokio::spawn({
        let (reader, shop) = (reader.clone(), shop.clone());
        async move { reader.read_on(&shop).await }
    });
    let disturbed = disturb(&shop).await;
    // A last second of reads after it is over.
    tokio::time::sleep(Duration::from_secs(1)).await;
    reader.done.store(true, Ordering::Relaxed);
    reading.await?;
    disturbed?;
    let failures = reader.failures.lock().unwrap().clone();
    let reads = reader.reads.load(Ordering::Relaxed);
    ensure!(failures.is_empty(), "{} of {reads} reads failed, the first: {}", failures.len(), failures[0]);
    ensure!(reads > 50, "only {reads} reads");
    Ok(())
}

#[test]
fn an_upgrade_of_the_operator_fails_no_metric_read() {
    let _turn = alone();
    play(|stage| async move {
        without_a_failed_read(stage, "upgrade", async |shop: &Shop<'_>| {
            stage.cluster.install_operator(&["--set=podAnnotations.upgraded=yes"])?;
            stage.operator_is_whole(&shop.client).await
        })
        .await
    });
}

#[test]
fn a_killed_leader_is_followed_by_the_other_replica() {
    let _turn = alone();
    play(|stage| async move {
        let shop = busy(stage, &stage.postgres, "leader").await?;
        shop.events.append_events(4_000).await?;
        let before = stage.leader(&shop.client).await?;
        let pods: Api<Pod> = Api::namespaced(shop.client.clone(), SYSTEM);
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        pods.delete(&before, &now).await?;
        let fewest = AtomicI32::new(4);
        let seen =
            || async { Ok::<_, anyhow::Error>((stage.holder(&shop.client).await?, shop.replicas("orders").await?)) };
        let another = |(leader, replicas): &(Option<String>, i32)| {
            fewest.fetch_min(*replicas, Ordering::Relaxed);
            leader.as_ref().is_some_and(|leader| *leader != before)
        };
        eventually_is(PATIENCE, "another replica leads", another, seen).await?;
        shop.replicas_stay(4).await?;
        let fewest = fewest.into_inner();
        ensure!(fewest == 4, "there were only {fewest} workers in between");
        // What the old leader would have done is done: work goes on, and a Projection made now is run.
        shop.events.append_events(100).await?;
        shop.apply(&shop.projection("invoices", &json!({})))?;
        shop.read_model_is_whole("orders").await?;
        shop.read_model_is_whole("invoices").await?;
        stage.operator_is_whole(&shop.client).await
    });
}

#[test]
fn with_the_whole_operator_gone_the_workers_are_held_and_go_on() {
    let _turn = alone();
    play(|stage| async move {
        let shop = busy(stage, &stage.postgres, "gone").await?;
        stage.cluster.kubectl(&["scale", "deployment/projectionist", "--replicas=0", "-n", SYSTEM])?;
        let pods = || async { Ok::<_, anyhow::Error>(stage.operator_pods(&shop.client).await?.is_empty()) };
        eventually(PATIENCE, "the operator is gone", pods).await?;
        let unavailable = || shop.refusal("projection_required_workers", "orders");
        let (code, message) = eventually(PATIENCE, "the metric is an error", unavailable).await?;
        ensure!(code == 503, "{code} {message}");
        shop.replicas_stay(4).await?;
        shop.events.append_events(100).await?;
        shop.read_model_is_whole("orders").await?;
        ensure!(shop.replicas("orders").await? == 4, "workers were taken away because no replica measured");
        stage.cluster.kubectl(&["scale", "deployment/projectionist", "--replicas=2", "-n", SYSTEM])?;
        stage.operator_is_whole(&shop.client).await?;
        shop.metric_is("projection_pending_events", "orders", |value| value == "0").await
    });
}

#[test]
fn a_frozen_leader_leaves_a_working_autoscaler() {
    let _turn = alone();
    play(|stage| async move {
        let shop = Shop::open(stage, "frozen").await?;
        shop.commit("orders", 0).await?;
        shop.scaling_idle_workers("alone", &json!({"spec": {"scaling": {"scaleOut": "Autoscaler"}}}))?;
        shop.metric_is("projection_required_workers", "alone", |value| value == "1").await?;
        let leader = stage.leader(&shop.client).await?;
        let frozen = stage.cluster.freeze(&leader)?;
        shop.events.append_events(2_000).await?;
        eventually_is(PATIENCE, "the autoscaler scales on", |replicas| *replicas == 4, || shop.replicas("alone"))
            .await?;
        drop(frozen);
        stage.operator_is_whole(&shop.client).await?;
        let wanted = |replicas: &i32| *replicas == 4;
        always_is(Duration::from_secs(5), "and stays", wanted, || shop.replicas("alone")).await?;
        Ok(())
    });
}

#[test]
fn a_new_operator_starts_no_worker_and_an_event_still_does() {
    let _turn = alone();
    play(|stage| async move {
        let shop = Shop::open(stage, "slumber").await?;
        shop.apply(&shop.projection("orders", &json!({"spec": {"scaling": {"minWorkers": 0, "idleFor": "2s"}}})))?;
        // A first commit needs a worker, which may be gone again before anybody sees it.
        shop.condition_is("orders", "LagKnown", "True", "").await?;
        shop.projection_is("orders", "it sleeps", |one| phase(one) == Some(Phase::Idle)).await?;
        stage.cluster.kubectl(&["rollout", "restart", "deployment/projectionist", "-n", SYSTEM])?;
        stage.cluster.kubectl(&["rollout", "status", "deployment/projectionist", "-n", SYSTEM, "--timeout=180s"])?;
        stage.operator_is_whole(&shop.client).await?;
        shop.metric_is("projection_required_workers", "orders", |value| value == "0").await?;
        let wanted = |replicas: &i32| *replicas == 0;
        always_is(Duration::from_secs(8), "no worker is started", wanted, || shop.replicas("orders")).await?;
        shop.events.append_events(3).await?;
        shop.read_model_is_whole("orders").await
    });
}
