//! Memory of a replica with 1,000 Projections over all kinds of sources that a server is here for.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use async_nats::jetstream;
use futures::{StreamExt, TryStreamExt, stream};
use kube::{Api, Client, api::PostParams};
use projectionist::api::Projection;
use serde_json::{Value, json};
use test_cluster::{
    Cluster, EventStore, Kafka, Nats, OPERATOR_NAMESPACE, Postgres, Prometheus, RabbitMq, Redis, eventually_is,
    kafka::Listener, network::NODE_ADDRESS,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::memory;

const NAMESPACE: &str = "bench-kinds";
const PATIENCE: Duration = Duration::from_secs(600);
/// Projections of each kind.
const OF_EACH: usize = 143;
/// Requests under way at once while objects are made.
const AT_ONCE: usize = 16;

/// The servers, which end with their owner.
struct Servers {
    postgres: Postgres,
    redis: Redis,
    nats: Nats,
    rabbitmq: RabbitMq,
    kafka: Kafka,
    prometheus: Prometheus,
}

/// Prints what a new replica takes with so many Projections of each kind.
pub(crate) async fn memory_with_all(cluster: &Cluster) -> Result<()> {
    let deployment = "deployment/projectionist";
    cluster.kubectl(&["rollout", "restart", deployment, "-n", OPERATOR_NAMESPACE])?;
    cluster.kubectl(&["rollout", "status", deployment, "-n", OPERATOR_NAMESPACE, "--timeout=180s"])?;
    cluster.kubectl(&["create", "namespace", NAMESPACE])?;
    let page = serve_page().await?;
    let servers = Servers {
        postgres: cluster.postgres()?,
        redis: cluster.redis()?,
        nats: cluster.nats("jetstream: {store_dir: {root}/jetstream}")?,
        rabbitmq: cluster.rabbitmq()?,
        kafka: cluster.kafka()?,
        prometheus: cluster.prometheus(page)?,
    };
    let sources = [
        ("postgres", postgres(&servers.postgres).await?),
        ("redis", redis(&servers.redis)?),
        ("nats", nats(&servers.nats).await?),
        ("rabbitmq", rabbitmq(&servers.rabbitmq)?),
        ("kafka", kafka(&servers.kafka)?),
        ("prometheus", prometheus(&servers.prometheus)),
        ("scrape", scrape(page)),
    ];
    let mut objects = Vec::new();
    for (kind, Source { secret, spec }) in &sources {
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": kind, "namespace": NAMESPACE}, "stringData": secret});
        cluster.apply(&secret.to_string())?;
        objects.extend((0..OF_EACH).map(|index| projection(kind, index, &spec(index))));
    }
    let client = cluster.client().await?;
    let (all, kinds) = (objects.len(), sources.len());
    create(&client, objects).await?;
    eventually_is(PATIENCE, "each Projection has a value", |values: &usize| *values == all, || values(&client)).await?;
    let resident = memory::settled().await?;
    println!("\nmemory of a replica, {all} Projections over {kinds} kinds of sources: {resident} (goal: 80 MiB)");
    cluster.kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"])?;
    Ok(())
}

/// How Projections of one kind reach their server, and the spec of each.
struct Source {
    secret: Value,
    spec: fn(usize) -> Value,
}

async fn postgres(server: &Postgres) -> Result<Source> {
    let url = server.create_database("kinds").await?;
    let events = EventStore::create_events_table(server, "kinds", "events").await?;
    let client = events.client();
    client.batch_execute("create table checkpoints (projection text primary key, position bigint not null)").await?;
    events.append_events(100).await?;
    let rows = "insert into checkpoints select 'postgres-' || i, 40 from generate_series(0, $1::bigint - 1) i";
    client.execute(rows, &[&i64::try_from(OF_EACH)?]).await?;
    let spec = |_| {
        let connection = json!({"secretRef": {"name": "postgres"}});
        json!({
            "source": {"postgres": {"connection": connection, "eventTable": {}}},
            "checkpoint": {"readStore": {}},
            "readStore": {"postgres": {"connection": connection}},
        })
    };
    Ok(Source { secret: json!({"url": url}), spec })
}

fn redis(server: &Redis) -> Result<Source> {
    for index in 0..OF_EACH {
        server.run(&format!("XGROUP CREATE orders-{index} list 0 MKSTREAM"))?;
        server.run(&format!("XADD orders-{index} * order placed"))?;
    }
    let spec = |index| json!({"source": {"redis": {"connection": {"secretRef": {"name": "redis"}}, "streams": [{"key": format!("orders-{index}"), "group": "list"}]}}});
    Ok(Source { secret: json!({"url": server.url()}), spec })
}

async fn nats(server: &Nats) -> Result<Source> {
    let context = jetstream::new(async_nats::connect(server.url()).await?);
    let config = jetstream::stream::Config {
        name: "orders".to_owned(),
        subjects: vec!["orders.>".to_owned()],
        ..Default::default()
    };
    let orders = context.create_stream(config).await?;
    for index in 0..OF_EACH {
        let durable =
            jetstream::consumer::pull::Config { durable_name: Some(format!("list-{index}")), ..Default::default() };
        orders.create_consumer(durable).await?;
    }
    context.publish("orders.placed", "{}".into()).await?.await?;
    let spec = |index| json!({"source": {"nats": {"connection": {"secretRef": {"name": "nats"}}, "consumers": [{"stream": "orders", "consumer": format!("list-{index}")}]}}});
    Ok(Source { secret: json!({"url": server.url()}), spec })
}

fn rabbitmq(server: &RabbitMq) -> Result<Source> {
    for index in 0..OF_EACH {
        server.run("PUT", &format!("queues/%2F/orders-{index}"), &json!({"durable": true}))?;
    }
    let spec = |index| json!({"source": {"rabbitmq": {"connection": {"secretRef": {"name": "rabbitmq"}}, "queues": [format!("orders-{index}")]}}});
    Ok(Source { secret: json!({"url": server.url()}), spec })
}

fn kafka(server: &Kafka) -> Result<Source> {
    server.ask(&["create", "orders", "12", ""])?;
    for index in 0..OF_EACH {
        for partition in 0..12 {
            server.ask(&["commit", &format!("list-{index}"), "orders", &partition.to_string(), "0"])?;
        }
    }
    let spec = |index| json!({"source": {"kafka": {"connection": {"secretRef": {"name": "kafka"}}, "topics": ["orders"], "group": format!("list-{index}")}}});
    let servers = server.address(Listener::Plaintext).to_string();
    Ok(Source { secret: json!({"bootstrapServers": servers}), spec })
}

fn prometheus(server: &Prometheus) -> Source {
    let spec = |index| json!({"source": {"prometheus": {"connection": {"secretRef": {"name": "prometheus"}}, "pending": format!("waiting{{list=\"{index}\"}}")}}});
    Source { secret: json!({"url": server.url()}), spec }
}

fn scrape(page: SocketAddr) -> Source {
    let spec = |index: usize| json!({"source": {"scrape": {"connection": {"secretRef": {"name": "scrape"}}, "pending": {"metric": "waiting", "labels": {"list": index.to_string()}}}}});
    Source { secret: json!({"url": format!("http://{page}/metrics")}), spec }
}

/// Serves a page of metrics on the node's address, until this process ends.
async fn serve_page() -> Result<SocketAddr> {
    let listener = TcpListener::bind((NODE_ADDRESS, 0)).await.context("serving a page of metrics")?;
    let address = listener.local_addr()?;
    let metrics: String = (0..OF_EACH).map(|index| format!("waiting{{list=\"{index}\"}} 60\n")).collect();
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{metrics}",
        metrics.len()
    );
    let answer: Arc<str> = answer.into();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut request = [0; 4_096];
                if stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                    let _ = stream.write_all(answer.as_bytes()).await;
                }
            });
        }
    });
    Ok(address)
}

fn projection(kind: &str, index: usize, spec: &Value) -> Value {
    let mut projection = json!({
        "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection",
        "metadata": {"name": format!("{kind}-{index}"), "namespace": NAMESPACE}, "spec": spec,
    });
    projection["spec"]["lag"] = json!({"target": "30s"});
    projection
}

async fn create(client: &Client, objects: Vec<Value>) -> Result<()> {
    let projections: Api<Projection> = Api::namespaced(client.clone(), NAMESPACE);
    stream::iter(objects)
        .map(|object| {
            let projections = &projections;
            async move {
                let projection: Projection = serde_json::from_value(object)?;
                projections.create(&PostParams::default(), &projection).await.context("creating a Projection")?;
                Ok::<_, anyhow::Error>(())
            }
        })
        .buffer_unordered(AT_ONCE)
        .try_collect::<Vec<()>>()
        .await?;
    Ok(())
}

/// How many Projections have a value.
async fn values(client: &Client) -> Result<usize> {
    let path = format!("/apis/external.metrics.k8s.io/v1beta1/namespaces/{NAMESPACE}/projection_pending_events");
    let list: Value = serde_json::from_str(&client.request_text(http::Request::get(path).body(Vec::new())?).await?)?;
    Ok(list["items"].as_array().map_or(0, Vec::len))
}
