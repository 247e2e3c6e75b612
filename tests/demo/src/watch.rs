//! Looks once a second: at the events table, the checkpoints, the Deployment, and the metrics API as the autoscaler reads it.
//!
//! Changes nothing. What cannot be read at a moment is unknown in that sample, and the demo goes on.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use demo::{
    metric,
    table::{self, Sample},
};
use projectionist::{metrics::Metric, names::CHECKPOINT_TABLE};
use test_cluster::Cluster;
use tokio::sync::watch;

use crate::{
    Options,
    load::Phase,
    shop::{NAMESPACE, PROJECTION, SCHEMA, Shop},
};

/// How often a sample is taken.
const EVERY: Duration = Duration::from_secs(1);
/// Every so many samples, one is printed.
const PRINTED: usize = 2;
/// A look may not hold up the next ones.
const LOOK_TIMEOUT: Duration = Duration::from_secs(3);
/// How long to wait for the rest after the load is over.
const PATIENCE: Duration = Duration::from_secs(180);

/// All that was seen.
pub(crate) struct Watched {
    pub(crate) samples: Vec<Sample>,
    /// What `kubectl` printed in the middle of the burst.
    pub(crate) shown: String,
}

/// Watches until the load is over and nothing waits. Says `enough` when the workers are back at their minimum.
pub(crate) async fn run(
    shop: &Shop<'_>,
    options: &Options,
    phase: watch::Receiver<Phase>,
    enough: &watch::Sender<bool>,
) -> Result<Watched> {
    let started = Instant::now();
    let mut watched = Watched { samples: Vec::new(), shown: String::new() };
    let mut ticks = tokio::time::interval(EVERY);
    let mut over_since = None;
    let show_at = Duration::from_secs(options.steady_seconds + options.burst_seconds * 4 / 5);
    println!("{}", table::header());
    loop {
        ticks.tick().await;
        let now = *phase.borrow();
        let sample = look(shop, now, started).await;
        if watched.samples.len().is_multiple_of(PRINTED) {
            println!("{}", table::row(&sample));
        }
        if watched.shown.is_empty() && started.elapsed() > show_at {
            watched.shown = tokio::task::block_in_place(|| show(shop.cluster));
        }
        let (caught_up, at_rest) = (sample.pending == Some(0.0), sample.desired == Some(1) && sample.ready == Some(1));
        watched.samples.push(sample);
        if now == Phase::Quiet && at_rest && scaled_out(&watched.samples) {
            enough.send_replace(true);
        }
        if now == Phase::Over {
            let since = *over_since.get_or_insert_with(Instant::now);
            if caught_up {
                return Ok(watched);
            }
            if since.elapsed() > PATIENCE {
                let waiting = watched.samples.last().map(table::row).unwrap_or_default();
                let error = anyhow!("events still wait {} s after the load ended: {waiting}", PATIENCE.as_secs());
                return Err(shop.cluster.explain(&error, NAMESPACE));
            }
        }
    }
}

fn scaled_out(samples: &[Sample]) -> bool {
    samples.iter().any(|sample| sample.ready > Some(1))
}

async fn look(shop: &Shop<'_>, phase: Phase, started: Instant) -> Sample {
    let at = started.elapsed().as_secs_f64();
    let deployments = shop.deployments();
    let (head, checkpoint, deployment, pending, staleness, required) = tokio::join!(
        in_time(head(shop)),
        in_time(checkpoint(shop)),
        in_time(deployments.get(PROJECTION)),
        in_time(value(shop, Metric::PendingEvents.external_name())),
        in_time(value(shop, Metric::StalenessSeconds.external_name())),
        in_time(value(shop, Metric::RequiredWorkers.external_name())),
    );
    let ready = deployment.as_ref().map(|found| found.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0));
    Sample {
        at,
        phase: phase.as_str(),
        head,
        checkpoint: checkpoint.flatten(),
        pending,
        staleness,
        required,
        desired: deployment.and_then(|found| found.spec?.replicas),
        ready,
    }
}

async fn in_time<T, E>(look: impl Future<Output = Result<T, E>>) -> Option<T> {
    tokio::time::timeout(LOOK_TIMEOUT, look).await.ok()?.ok()
}

async fn head(shop: &Shop<'_>) -> Result<i64> {
    Ok(shop.onlooker.query_one("select coalesce(max(position), 0) from events", &[]).await?.get(0))
}

/// The status has it, too, and is written every few seconds only.
async fn checkpoint(shop: &Shop<'_>) -> Result<Option<i64>> {
    let lowest = format!("select min(position) from {SCHEMA}.{CHECKPOINT_TABLE} where projection = $1");
    Ok(shop.reads.query_one(&lowest, &[&format!("{NAMESPACE}/{PROJECTION}")]).await?.get(0))
}

async fn value(shop: &Shop<'_>, metric: &str) -> Result<f64> {
    metric::value(&shop.client, &Shop::metric_path(metric)).await
}

/// What a person would look at, with the commands.
fn show(cluster: &Cluster) -> String {
    let raw = Shop::metric_path(Metric::RequiredWorkers.external_name());
    let commands: [&[&str]; 4] = [
        &["get", "prj", "-n", NAMESPACE],
        &["get", "hpa,deployment,pdb,pods", "-n", NAMESPACE],
        &["describe", "hpa", "-n", NAMESPACE],
        &["get", "--raw", &raw],
    ];
    let mut shown = String::new();
    for command in commands {
        let printed = cluster.kubectl(command).unwrap_or_else(|error| format!("{error:#}"));
        let words =
            command.iter().map(|word| if word.contains('?') { format!("'{word}'") } else { (*word).to_owned() });
        shown.push_str(&format!("$ kubectl {}\n{}\n\n", words.collect::<Vec<_>>().join(" "), printed.trim_end()));
    }
    shown
}
