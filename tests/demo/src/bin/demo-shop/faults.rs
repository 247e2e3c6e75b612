//! What goes wrong during the load: pods of workers of each kind are deleted, a read store is locked, a broker is restarted, and the kill switch is thrown and released.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use demo::step;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams},
};
use shop::kill_switch::KillSwitch;
use test_cluster::RabbitMq;
use tokio::time::sleep;

use crate::{stage::NAMESPACE, watch::PROJECTIONS};

/// How long the read store stays locked, and the switch thrown.
const HELD: Duration = Duration::from_secs(8);

/// Plays all faults over the three parts of a load that begins now.
pub(crate) async fn play(
    client: &Client,
    reads: &tokio_postgres::Client,
    rabbitmq: &mut RabbitMq,
    part: Duration,
) -> Result<()> {
    let started = Instant::now();
    let at = async |parts: f64| sleep(part.mul_f64(parts).saturating_sub(started.elapsed())).await;

    at(0.5).await;
    for selector in PROJECTIONS.map(|projection| format!("projectionist.dev/projection={projection}")) {
        kill_one(client, &selector).await?;
    }
    kill_one(client, "app=shop-api").await?;
    step(started, "fault: the pods of a worker of each kind and of a replica of the API were deleted without grace");

    at(1.2).await;
    reads.batch_execute("begin; lock table orders.order_summary in access exclusive mode").await?;
    step(started, "fault: the read store of the order summary is locked");
    sleep(HELD).await;
    reads.batch_execute("rollback").await?;
    step(started, "the read store is free again");

    at(1.6).await;
    tokio::task::block_in_place(|| rabbitmq.restart())?;
    step(started, "fault: RabbitMQ was killed and has started again");

    at(2.2).await;
    let switch = KillSwitch::new(client.clone(), NAMESPACE);
    let thrown = switch.throw("team=shop").await?;
    ensure!(thrown.done.len() == PROJECTIONS.len() && thrown.failed.is_empty(), "the kill switch: {thrown:?}");
    step(started, "the kill switch is thrown");
    sleep(HELD).await;
    let released = switch.release("team=shop").await?;
    ensure!(released.done.len() == PROJECTIONS.len() && released.failed.is_empty(), "the kill switch: {released:?}");
    step(started, "the kill switch is released");
    Ok(())
}

/// As a node that dies does it.
async fn kill_one(client: &Client, selector: &str) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let found = pods.list(&ListParams::default().labels(selector)).await?;
    if let Some(name) = found.items.into_iter().find_map(|pod| pod.metadata.name) {
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        pods.delete(&name, &now).await?;
    }
    Ok(())
}
