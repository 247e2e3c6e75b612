//! An hour of reads: whether memory stays flat, and what the API server logs about us.

use std::time::Duration;

use anyhow::Result;

use crate::{fixtures::Fixtures, load, memory, reads::metric_of};

/// Memory is looked at so often.
const PARTS: u32 = 12;
/// What names us in the API server's log: the groups, and the Service behind them.
const US: [&str; 3] = ["external.metrics.k8s.io", "custom.metrics.k8s.io", "projectionist"];

pub(crate) async fn under_load(fixtures: &Fixtures<'_>, projections: usize, rate: u32, length: Duration) -> Result<()> {
    println!("\n{rate} reads/s for {:.0} min: memory of a replica (resident)", length.as_secs_f64() / 60.0);
    let logged = fixtures.cluster.log("kube-apiserver")?.lines().count();
    println!("  at the beginning: {}", memory::now()?);
    for part in 1..=PARTS {
        let latencies = load::run(rate, length / PARTS, |index| {
            let (client, path) = (fixtures.client.clone(), metric_of(index, projections));
            async move {
                client.request_text(http::Request::get(path).body(Vec::new())?).await?;
                Ok(())
            }
        })
        .await?;
        let minutes = (length * part / PARTS).as_secs_f64() / 60.0;
        let p99 = latencies.percentile(99).as_secs_f64() * 1e3;
        println!("  after {minutes:.0} min: {} (p99 {p99:.2} ms)", memory::now()?);
    }
    let log = fixtures.cluster.log("kube-apiserver")?;
    // A trace tells that a request took long on a busy machine, whichever program sent it.
    let lines = log.lines().skip(logged).filter(|line| !line.contains("Trace["));
    let about_us: Vec<&str> = lines.filter(|line| US.iter().any(|word| line.contains(word))).collect();
    println!("  lines of the API server's log about us meanwhile: {} (goal: 0)", about_us.len());
    for line in about_us.iter().take(10) {
        println!("    {line:.200}");
    }
    Ok(())
}
