//! Metric reads through the aggregator, beside a server that answers a constant through the same aggregator.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::{
    fixtures::{Fixtures, NAMESPACE, measured},
    load::{self, Latencies},
    own_share::OwnShare,
    static_server::StaticServer,
};

/// Loads alternate after so long, so that a noisy moment of the machine meets both.
const TURN: Duration = Duration::from_secs(1);

/// Reads a second: of 500 and 2,000 autoscalers that look every 15 s with two metrics each, and of 5,000.
const RATES: [u32; 3] = [67, 300, 700];

/// The path of one metric of one Projection, of which there are so many; another one each time.
pub(crate) fn metric_of(index: usize, projections: usize) -> String {
    format!(
        "/apis/external.metrics.k8s.io/v1beta1/namespaces/{NAMESPACE}/projection_required_workers?labelSelector=projection%3Dmeasured-{}",
        index.wrapping_mul(7919) % projections
    )
}

pub(crate) async fn compare(
    fixtures: &Fixtures<'_>,
    other: &StaticServer,
    projections: usize,
    length: Duration,
) -> Result<()> {
    println!("metric GET through the aggregator, {projections} Projections, open loop\n");
    println!("  {:<34} {:>9} {:>9} {:>9}", "", "p50", "p99", "");
    let ours = move |index: usize| metric_of(index, projections);
    let constant = |_| other.path().to_owned();
    for rate in RATES {
        side_by_side(fixtures, rate, length, "", constant, ours).await?;
    }

    bombs(fixtures).await?;

    let hanging = fixtures.cluster.postgres()?;
    let url = hanging.create_database("hanging").await?;
    hang(fixtures, &hanging, &url).await?;
    side_by_side(fixtures, 300, length, ", a source hangs", constant, ours).await?;
    hanging.resume()?;
    println!(
        "  (goal: at most 1.15 × the static server, no change while a source hangs, and an own share below 0.2 ms for 99 %)"
    );
    Ok(())
}

/// Malformed requests cost as little as others.
async fn bombs(fixtures: &Fixtures<'_>) -> Result<()> {
    let selectors = [
        format!("projection%20in%20({})", "x,".repeat(14_000)),
        "a%3Db%2C".repeat(3_500),
        "%2e%2e%2f".repeat(3_000),
        "(".repeat(16_000),
    ];
    let before = OwnShare::of_all(fixtures).await?;
    for _ in 0..250 {
        for selector in &selectors {
            let path = format!("{}%2C{selector}", metric_of(0, 1));
            let refused = fixtures.get(&path).await.err().context("a bomb was answered")?;
            ensure!(format!("{refused:#}").contains("the query cannot be read"), "{refused:#}");
        }
    }
    println!("  1,000 selector bombs, each refused: {}", OwnShare::of_all(fixtures).await?.since(&before));
    Ok(())
}

/// A Projection on another server, which stops answering with its connections open.
async fn hang(fixtures: &Fixtures<'_>, server: &test_cluster::Postgres, url: &str) -> Result<()> {
    let client = server.connect("hanging").await?;
    client
        .batch_execute(
            "create table events (position bigint generated always as identity primary key, recorded_at timestamptz default now());
             create table checkpoints (projection text primary key, position bigint);
             insert into checkpoints values ('hanging', 0)",
        )
        .await?;
    let literal = format!("--from-literal=url={url}");
    fixtures.cluster.kubectl(&["create", "secret", "generic", "hanging", "-n", NAMESPACE, &literal])?;
    let mut projection = measured("hanging", "hanging");
    projection["spec"]["source"]["postgres"]["eventTable"] = json!({});
    fixtures.cluster.apply(&projection.to_string())?;
    let path = format!(
        "/apis/external.metrics.k8s.io/v1beta1/namespaces/{NAMESPACE}/projection_pending_events?labelSelector=projection%3Dhanging"
    );
    test_cluster::eventually(Duration::from_secs(60), "it is measured", || async {
        fixtures.get(&path).await.map(|_| true)
    })
    .await?;
    server.pause()?;
    test_cluster::eventually(Duration::from_secs(120), "it is unknown", || async {
        Ok::<_, anyhow::Error>(fixtures.get(&path).await.is_err())
    })
    .await
}

/// The two take turns, and a row is printed for each. `meanwhile`: what else goes on.
async fn side_by_side(
    fixtures: &Fixtures<'_>,
    rate: u32,
    length: Duration,
    meanwhile: &str,
    constant: impl Fn(usize) -> String,
    ours: impl Fn(usize) -> String,
) -> Result<()> {
    let before = OwnShare::of_all(fixtures).await?;
    let (mut of_static, mut of_ours) = (Vec::new(), Vec::new());
    for _ in 0..length.as_secs() {
        of_static.push(one(fixtures, rate, TURN, &constant).await?);
        of_ours.push(one(fixtures, rate, TURN, &ours).await?);
    }
    let (of_static, of_ours) = (Latencies::merged(of_static), Latencies::merged(of_ours));
    row(&format!("static server, {rate}/s"), &of_static, None);
    row(&format!("Projectionist, {rate}/s{meanwhile}"), &of_ours, Some(&of_static));
    println!("    our own share of it: {}", OwnShare::of_all(fixtures).await?.since(&before));
    Ok(())
}

async fn one(
    fixtures: &Fixtures<'_>,
    rate: u32,
    length: Duration,
    path: impl Fn(usize) -> String,
) -> Result<Latencies> {
    load::run(rate, length, |index| {
        let (client, path) = (fixtures.client.clone(), path(index));
        async move {
            client.request_text(http::Request::get(path).body(Vec::new())?).await?;
            Ok(())
        }
    })
    .await
}

fn row(what: &str, latencies: &Latencies, beside: Option<&Latencies>) {
    let (p50, p99) = (latencies.percentile(50), latencies.percentile(99));
    let ratio = beside.map_or(String::new(), |other| {
        let of = |percent| latencies.percentile(percent).as_secs_f64() / other.percentile(percent).as_secs_f64();
        format!("{:.2} × / {:.2} ×", of(50), of(99))
    });
    println!("  {what:<36} {:>6.2} ms {:>6.2} ms   {ratio}", p50.as_secs_f64() * 1e3, p99.as_secs_f64() * 1e3);
}
