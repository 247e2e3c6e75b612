//! Fifty sources that work beside fifty that do not: what these change for the others.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use async_nats::jetstream;
use serde_json::{Value, json};
use test_cluster::{Cluster, Nats, Postgres, Redis, eventually_is, network::NODE_ADDRESS};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_postgres::Client;

use crate::{
    load::{self, Latencies},
    operator_pages,
};

const NAMESPACE: &str = "bench-faulty";
const PATIENCE: Duration = Duration::from_secs(180);
/// Sources that work, of each kind of [`Healthy`] in turn.
const HEALTHY: usize = 51;
/// How many events wait in each.
const WAITING: u32 = 60;
/// Sources that do not, of all kinds and faults in turn.
const FAULTY: usize = 50;
/// The faulty sources have met all their deadlines and backoffs by then.
const SETTLE: Duration = Duration::from_secs(20);
/// Metric reads a second.
const RATE: u32 = 100;
/// Appends under way at once, and how often each looks whether its own is shown.
const WRITERS: usize = 5;
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// What is wrong with a source.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// Its port is closed.
    Refuses,
    /// It accepts connections and says nothing.
    Hangs,
    /// It sends bytes that mean nothing, as many as are taken.
    Garbage,
    /// It sends a byte a second.
    Drips,
    /// A proxy to a PostgreSQL lets the first bytes of each answer pass, then none. What is not PostgreSQL cannot make sense of them.
    Stalls,
}

const FAULTS: [Fault; 5] = [Fault::Refuses, Fault::Hangs, Fault::Garbage, Fault::Drips, Fault::Stalls];

/// How far a proxy's answers come: through the handshake of PostgreSQL, up to the first query.
const PASSED_ON: usize = 400;

/// The kinds of servers, with the URL's scheme and what follows the port.
/// Their number and that of the faults have no common divisor, so that each meets each.
const KINDS: [&str; 8] = ["postgres", "redis", "nats", "rabbitmq", "kafka", "kurrentdb", "prometheus", "scrape"];

/// The servers of sources that work, which end with their owner.
struct Servers {
    postgres: Postgres,
    redis: Redis,
    nats: Nats,
}

/// A source that works.
enum Healthy {
    /// A database of its own, with a connection of its own.
    Table(Client),
    /// A stream of Redis, by its key.
    Stream(String),
    /// A stream of JetStream with one consumer, by its subject.
    Subject(jetstream::Context, String),
}

/// Prints what sampling and reads are like without the faulty sources, with them, and without again: how far the two without are apart tells the noise.
/// So many other Projections are sampled all the time.
pub(crate) async fn beside_others(cluster: &Cluster, others: usize, length: Duration) -> Result<()> {
    cluster.kubectl(&["create", "namespace", NAMESPACE])?;
    let servers = Servers {
        postgres: cluster.postgres()?,
        redis: cluster.redis()?,
        nats: cluster.nats("jetstream: {store_dir: {root}/jetstream}")?,
    };
    let context = jetstream::new(async_nats::connect(servers.nats.url()).await?);
    let mut sources = Vec::new();
    for index in 0..HEALTHY {
        sources.push(match index % 3 {
            0 => healthy_table(cluster, &servers.postgres, index).await?,
            1 => healthy_stream(cluster, &servers.redis, index)?,
            _ => healthy_subject(cluster, &servers.nats, &context, index).await?,
        });
    }
    let client = cluster.client().await?;
    eventually_is(
        PATIENCE,
        "the healthy sources are measured",
        |all: &usize| *all == HEALTHY,
        || async { Ok::<_, anyhow::Error>(values(&client, "").await?.len()) },
    )
    .await?;
    tokio::time::sleep(SETTLE).await;
    println!(
        "\n{HEALTHY} sources that work (tables of PostgreSQL, streams of Redis and of JetStream); metric reads at {RATE}/s; an append until it is shown"
    );
    println!(
        "  {:<26} {:>12} {:>12} {:>12} {:>12} {:>12}",
        "", "read p50", "read p99", "shown p50", "shown p99", "interval"
    );
    let working = Working { client, servers, sources, others };
    let alone = measure(&working, length).await?;
    alone.print("alone", None);

    for (index, (kind, fault)) in KINDS.iter().cycle().zip(FAULTS.iter().cycle()).take(FAULTY).enumerate() {
        add_faulty(cluster, &working.servers.postgres, kind, *fault, index).await?;
    }
    tokio::time::sleep(SETTLE).await;
    let beside = measure(&working, length).await?;
    beside.print(&format!("beside {FAULTY} that do not"), Some(&alone));
    let faulty: Vec<String> = (0..FAULTY).map(|index| format!("faulty-{index}")).collect();
    for name in &faulty {
        let value = known(&working.client, &format!("projection%3D{name}")).await?;
        ensure!(value.is_none(), "{name}, which cannot be measured, has the value {value:?}");
    }

    let mut delete = vec!["delete", "projections", "-n", NAMESPACE];
    delete.extend(faulty.iter().map(String::as_str));
    cluster.kubectl(&delete)?;
    tokio::time::sleep(SETTLE).await;
    measure(&working, length).await?.print("alone again", Some(&alone));
    println!(
        "  (goal: unchanged. Interval: the mean time between two samples of a Projection that works, in a replica)"
    );
    cluster.kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"])?;
    Ok(())
}

/// A database with a Projection that is behind.
async fn healthy_table(cluster: &Cluster, postgres: &Postgres, index: usize) -> Result<Healthy> {
    let name = format!("healthy-{index}");
    let url = postgres.create_database(&name).await?;
    let client = postgres.connect(&name).await?;
    client
        .batch_execute(
            "create table events (position bigint generated always as identity primary key, recorded_at timestamptz not null default now());
             create table checkpoints (projection text primary key, position bigint not null);
             insert into events select from generate_series(1, 100)",
        )
        .await?;
    client.execute("insert into checkpoints values ($1, 100 - $2::int)", &[&name, &i32::try_from(WAITING)?]).await?;
    apply(cluster, &name, &json!({"url": url}), &source("postgres", "", ""))?;
    Ok(Healthy::Table(client))
}

/// A stream of Redis with a Projection that is behind.
fn healthy_stream(cluster: &Cluster, redis: &Redis, index: usize) -> Result<Healthy> {
    let name = format!("healthy-{index}");
    redis.run(&format!("XGROUP CREATE {name} list 0 MKSTREAM"))?;
    for _ in 0..WAITING {
        redis.run(&format!("XADD {name} * order placed"))?;
    }
    apply(cluster, &name, &json!({"url": redis.url()}), &source("redis", &name, "list"))?;
    Ok(Healthy::Stream(name))
}

/// A stream of JetStream with a Projection that is behind.
async fn healthy_subject(
    cluster: &Cluster,
    nats: &Nats,
    context: &jetstream::Context,
    index: usize,
) -> Result<Healthy> {
    let name = format!("healthy-{index}");
    let config = jetstream::stream::Config { name: name.clone(), subjects: vec![name.clone()], ..Default::default() };
    let stream = context.create_stream(config).await?;
    let durable = jetstream::consumer::pull::Config { durable_name: Some("list".to_owned()), ..Default::default() };
    stream.create_consumer(durable).await?;
    for _ in 0..WAITING {
        context.publish(name.clone(), "{}".into()).await?.await?;
    }
    apply(cluster, &name, &json!({"url": nats.url()}), &source("nats", &name, "list"))?;
    Ok(Healthy::Subject(context.clone(), name))
}

/// The part of the spec that names a source of this kind, with the names of the stream and of its consumer where it has them.
fn source(kind: &str, stream: &str, consumer: &str) -> Value {
    let read_store = |connection: &Value| json!({"postgres": {"connection": connection}});
    let connection = json!({"secretRef": {"name": "SECRET"}});
    match kind {
        "postgres" => json!({
            "source": {"postgres": {"connection": connection, "eventTable": {}}},
            "checkpoint": {"readStore": {}},
            "readStore": read_store(&connection),
        }),
        "redis" => {
            let streams = [json!({"key": stream, "group": consumer})];
            json!({"source": {"redis": {"connection": connection, "streams": streams}}})
        }
        "nats" => {
            let consumers = [json!({"stream": stream, "consumer": consumer})];
            json!({"source": {"nats": {"connection": connection, "consumers": consumers}}})
        }
        "rabbitmq" => json!({"source": {"rabbitmq": {"connection": connection, "queues": ["q"]}}}),
        "kurrentdb" => {
            let subscription = json!({"stream": "$ce-s", "group": "g"});
            json!({"source": {"kurrentdb": {"connection": connection, "persistentSubscriptions": [subscription]}}})
        }
        "prometheus" => json!({"source": {"prometheus": {"connection": connection, "pending": "waiting"}}}),
        "scrape" => json!({"source": {"scrape": {"connection": connection, "pending": {"metric": "waiting"}}}}),
        _ => json!({"source": {"kafka": {"connection": connection, "topics": ["t"], "group": "g"}}}),
    }
}

/// What the Secret of such a source holds.
fn secret(kind: &str, port: u16) -> Value {
    let at = format!("{NODE_ADDRESS}:{port}");
    match kind {
        "postgres" => json!({"url": format!("postgres://user:password@{at}/events?sslmode=disable")}),
        "redis" => json!({"url": format!("redis://{at}")}),
        "nats" => json!({"url": format!("nats://{at}")}),
        "kurrentdb" => json!({"url": format!("kurrentdb://user:password@{at}?tls=false")}),
        "rabbitmq" | "prometheus" | "scrape" => json!({"url": format!("http://user:password@{at}")}),
        _ => json!({"bootstrapServers": at}),
    }
}

fn apply(cluster: &Cluster, name: &str, secret: &Value, spec: &Value) -> Result<()> {
    let spec: Value = serde_json::from_str(&spec.to_string().replace("SECRET", name))?;
    let metadata = json!({"name": name, "namespace": NAMESPACE});
    let mut projection =
        json!({"apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection", "metadata": metadata, "spec": spec});
    projection["spec"]["lag"] = json!({"target": "30s"});
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": secret});
    cluster.apply(&format!("{secret}\n---\n{projection}"))?;
    Ok(())
}

async fn add_faulty(cluster: &Cluster, postgres: &Postgres, kind: &str, fault: Fault, index: usize) -> Result<()> {
    let listener = TcpListener::bind((NODE_ADDRESS, 0)).await.context("binding a faulty source")?;
    let port = listener.local_addr()?.port();
    let behind = postgres.address();
    match fault {
        Fault::Refuses => drop(listener),
        _ => drop(tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(misbehave(stream, fault, behind));
            }
        })),
    }
    apply(cluster, &format!("faulty-{index}"), &secret(kind, port), &source(kind, "s", "c"))
}

/// One connection, until the other side ends it. How it ends is nothing to be told.
async fn misbehave(mut stream: TcpStream, fault: Fault, behind: std::net::SocketAddr) {
    let garbage: Vec<u8> = (0..65_536_u32).map(|index| index.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    match fault {
        Fault::Refuses => {}
        Fault::Hangs => drop(tokio::io::copy(&mut stream, &mut tokio::io::sink()).await),
        Fault::Garbage => while stream.write_all(&garbage).await.is_ok() {},
        Fault::Drips => {
            for byte in garbage {
                if stream.write_all(&[byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        Fault::Stalls => {
            let Ok(mut server) = TcpStream::connect(behind).await else { return };
            let (mut from_client, mut to_client) = stream.split();
            let (mut from_server, mut to_server) = server.split();
            let answers = async {
                let mut limited = (&mut from_server).take(PASSED_ON as u64);
                let _ = tokio::io::copy(&mut limited, &mut to_client).await;
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = answers => {}
                _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
            }
        }
    }
}

/// The value of each Projection that has one.
async fn values(client: &kube::Client, selector: &str) -> Result<Vec<u64>> {
    let path = format!(
        "/apis/external.metrics.k8s.io/v1beta1/namespaces/{NAMESPACE}/projection_pending_events?labelSelector={selector}"
    );
    let list: Value = serde_json::from_str(&client.request_text(http::Request::get(path).body(Vec::new())?).await?)?;
    let items = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    items.iter().map(|item| Ok(item["value"].as_str().context("an item without a value")?.parse()?)).collect()
}

/// The value of one Projection; `None` while it is unknown, as on a machine that has too much to do.
async fn known(client: &kube::Client, selector: &str) -> Result<Option<u64>> {
    match values(client, selector).await {
        Ok(values) => Ok(values.first().copied()),
        Err(error) if is_unknown(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_unknown(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref::<kube::Error>(), Some(kube::Error::Api(status)) if status.code == 503)
}

/// What was seen in a while.
struct Measured {
    /// Reads that were answered with 503, since the value was unknown.
    unknown: usize,
    /// How long metric reads took.
    reads: Latencies,
    /// From an append to a source that works until the metric shows it.
    shown: Latencies,
    /// The mean time between two samples of one Projection in one replica.
    interval: Duration,
}

impl Measured {
    fn print(&self, what: &str, alone: Option<&Self>) {
        let of = |measured: &Self| {
            let Self { unknown: _, reads, shown, interval } = measured;
            [reads.percentile(50), reads.percentile(99), shown.percentile(50), shown.percentile(99), *interval]
                .map(|time| time.as_secs_f64() * 1e3)
        };
        let row = |what: &str, unit: &str, cells: [f64; 5]| {
            let cells: Vec<String> = cells.iter().map(|cell| format!("{cell:>9.2} {unit:<2}")).collect();
            println!("  {what:<26} {}", cells.join(" "));
        };
        let mine = of(self);
        row(what, "ms", mine);
        if self.unknown > 0 {
            println!("  {} reads found the value unknown: is the machine busy with something else?", self.unknown);
        }
        if let Some(alone) = alone {
            let mut ratios = mine;
            for (ratio, its) in ratios.iter_mut().zip(of(alone)) {
                *ratio /= its;
            }
            row("ratio", "×", ratios);
        }
    }
}

/// What works.
struct Working {
    client: kube::Client,
    servers: Servers,
    sources: Vec<Healthy>,
    /// Other Projections that are sampled.
    others: usize,
}

async fn measure(working: &Working, length: Duration) -> Result<Measured> {
    let Working { client, servers, sources, others } = working;
    let path = |index: usize| {
        format!(
            "/apis/external.metrics.k8s.io/v1beta1/namespaces/{NAMESPACE}/projection_pending_events?labelSelector=projection%3Dhealthy-{}",
            index.wrapping_mul(7919) % HEALTHY
        )
    };
    let unknown = Arc::new(AtomicUsize::new(0));
    let reads = load::run(RATE, length, |index| {
        let (client, path, unknown) = (client.clone(), path(index), unknown.clone());
        async move {
            match client.request_text(http::Request::get(path).body(Vec::new())?).await.map_err(anyhow::Error::from) {
                Err(error) if is_unknown(&error) => drop(unknown.fetch_add(1, Ordering::Relaxed)),
                other => drop(other?),
            }
            Ok(())
        }
    });
    let before = operator_pages::counter(client, "projectionist_samples_total").await?;
    let started = Instant::now();
    // One after the other: those who wait for an append look as often as a small machine can answer.
    let reads = reads.await;
    let shown =
        futures::future::try_join_all((0..WRITERS).map(|writer| appends(client, servers, sources, writer, length)))
            .await;
    let elapsed = started.elapsed();
    let after = operator_pages::counter(client, "projectionist_samples_total").await?;
    ensure!(after.replicas == before.replicas, "a replica came or went");
    let samples = u32::try_from(after.sum - before.sum)?.max(1);
    let projections = u32::try_from((HEALTHY + others) * after.replicas)?;
    Ok(Measured {
        unknown: unknown.load(Ordering::Relaxed),
        reads: reads?,
        shown: Latencies::of(shown?.into_iter().flatten().collect()),
        interval: elapsed * projections / samples,
    })
}

/// Appends an event to one source after the other, each when the last one is shown.
async fn appends(
    client: &kube::Client,
    servers: &Servers,
    sources: &[Healthy],
    writer: usize,
    length: Duration,
) -> Result<Vec<Duration>> {
    let started = Instant::now();
    let mut all = Vec::new();
    for index in (0..sources.len()).cycle().skip(writer * sources.len() / WRITERS) {
        if started.elapsed() >= length {
            break;
        }
        // At odd moments, so that no poll's rhythm is met by accident.
        tokio::time::sleep(Duration::from_millis((all.len() as u64 * 37) % 400)).await;
        let selector = format!("projection%3Dhealthy-{index}");
        let source = sources.get(index).context("no such source")?;
        let Some(before) = known(client, &selector).await? else { continue };
        match source {
            Healthy::Table(events) => drop(events.execute("insert into events default values", &[]).await?),
            Healthy::Stream(key) => drop(servers.redis.run(&format!("XADD {key} * order placed"))?),
            Healthy::Subject(context, subject) => drop(context.publish(subject.clone(), "{}".into()).await?.await?),
        }
        let appended = Instant::now();
        while known(client, &selector).await?.is_none_or(|shown| shown <= before) {
            ensure!(
                appended.elapsed() < Duration::from_secs(60),
                "the metric never showed an append to healthy-{index}"
            );
            tokio::time::sleep(LOOK_EVERY).await;
        }
        all.push(appended.elapsed());
    }
    Ok(all)
}
