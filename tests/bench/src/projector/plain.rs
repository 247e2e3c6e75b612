//! Clients that make the writes of the handlers and nothing else: no events are read, no checkpoint is kept. The events are made up as they would be read.

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use serde_json::json;
use test_cluster::{Elasticsearch, Postgres, Redis};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

use super::stores::{Store, TOTALS};

/// As many as a worker takes at once.
const BATCH: u32 = 500;
const NAME: &str = "plain";

/// Writes what so many events say.
pub(super) async fn write(store: &Store<'_>, events: u32) -> Result<()> {
    store.prepare(NAME).await?;
    match store {
        Store::Postgres(server) => to_postgres(server, events).await,
        Store::Redis(server) => to_redis(server, events).await,
        Store::Search(server) => to_search(server, events),
    }
}

fn batches(events: u32) -> impl Iterator<Item = std::ops::Range<u32>> {
    (0..events).step_by(BATCH as usize).map(move |first| first..events.min(first + BATCH))
}

fn stream(event: u32) -> String {
    format!("stream-{}", event % 100)
}

/// A transaction for each batch, whose statements are sent without waiting for one another.
async fn to_postgres(server: &Postgres, events: u32) -> Result<()> {
    let client = server.connect(NAME).await?;
    client.batch_execute(TOTALS).await?;
    let upsert = "insert into totals values ($1, $2::bigint, 1)
         on conflict (stream) do update set sum = totals.sum + excluded.sum, events = totals.events + 1";
    let upsert = &client.prepare(upsert).await?;
    for batch in batches(events) {
        let client = &client;
        client.batch_execute("begin").await?;
        try_join_all(batch.map(|n| async move { client.execute(upsert, &[&stream(n), &i64::from(n)]).await })).await?;
        client.batch_execute("commit").await?;
    }
    Ok(())
}

/// The commands of a batch are sent at once.
async fn to_redis(server: &Redis, events: u32) -> Result<()> {
    let mut connection = BufReader::new(TcpStream::connect(server.address()).await?);
    let command = |words: [&str; 4]| {
        let words: String = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len())).collect();
        format!("*4\r\n{words}")
    };
    let totals = format!("totals:{NAME}");
    for batch in batches(events) {
        let answers = 2 * batch.len();
        let commands: String = batch
            .map(|n| {
                let sum = command(["HINCRBY", &totals, &stream(n), &n.to_string()]);
                sum + &command(["HINCRBY", &totals, "events", "1"])
            })
            .collect();
        connection.write_all(commands.as_bytes()).await?;
        let mut line = String::new();
        for _ in 0..answers {
            line.clear();
            connection.read_line(&mut line).await?;
            ensure!(line.starts_with(':'), "Redis says {line:?}");
        }
    }
    Ok(())
}

/// A bulk request for each batch, with versions.
fn to_search(server: &Elasticsearch, events: u32) -> Result<()> {
    for batch in batches(events) {
        let lines: String = batch
            .map(|n| {
                let action =
                    json!({"index": {"_id": format!("{n}-{}", stream(n)), "version": n, "version_type": "external"}});
                format!("{action}\n{}\n", json!({"stream": stream(n), "n": n}))
            })
            .collect();
        let (status, answer) = server.send("POST", &format!("/{NAME}/_bulk"), &lines)?;
        ensure!(status == 200 && answer["errors"] == false, "Elasticsearch refused a batch: {status}");
    }
    let counted = server.send("POST", &format!("/{NAME}/_refresh"), "").context("refreshing")?;
    ensure!(counted.0 == 200, "Elasticsearch does not refresh: {}", counted.0);
    Ok(())
}
