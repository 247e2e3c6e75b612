//! How soon after an append the metric shows it, where the database notifies.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{
    fixtures::{Fixtures, NAMESPACE},
    load::Latencies,
};

const APPENDS: usize = 60;

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
