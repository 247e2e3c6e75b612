//! Workers on a real PostgreSQL server: they share the shards, commit as they are told, and hand over what they leave.

#![allow(clippy::unwrap_used)]

use std::{
    process::{Child, Command},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use test_cluster::{Postgres, eventually, eventually_is};
use tokio_postgres::Client;

const PATIENCE: Duration = Duration::from_secs(120);
const SHARDS: i64 = 24;

/// A worker that is ended with the test.
struct Worker(Child);

impl Worker {
    fn start(server: &Postgres, schema: &str, port: u16, settings: &[(&str, &str)]) -> Result<Self> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_test-worker"));
        command.env("DATABASE_URL", server.url("group")).env("SCHEMA", schema).env("GROUP_NUMBER", "7");
        command.env("PORT", port.to_string()).envs(settings.iter().copied());
        Ok(Self(command.spawn().context("starting a worker")?))
    }

    /// As the kubelet ends a pod.
    fn end(mut self) -> Result<()> {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        ensure!(self.0.wait()?.success(), "a worker that is told to end failed");
        Ok(())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn tables(client: &Client, schema: &str, one_row: bool) -> Result<()> {
    let rows = |table: &str| {
        format!(
            "create table {schema}.{table} (shard int primary key, position bigint not null);
             insert into {schema}.{table} select shard, 0 from generate_series(0, {SHARDS} - 1) shard;"
        )
    };
    let checkpoints = if one_row {
        let row = format!(
            "create table {schema}.checkpoints (position bigint not null); insert into {schema}.checkpoints values (0);"
        );
        row + &rows("progress")
    } else {
        rows("checkpoints")
    };
    let statements = format!(
        "create schema {schema};
         create table {schema}.events (
             position bigint generated always as identity primary key, shard int not null, cost_ms real not null);
         create table {schema}.handled (position bigint not null, at timestamptz not null);
         {checkpoints}"
    );
    Ok(client.batch_execute(&statements).await?)
}

async fn append(client: &Client, schema: &str, count: i64) -> Result<()> {
    let insert = format!(
        "insert into {schema}.events (shard, cost_ms) select n % {SHARDS}, 5 from generate_series(1, $1::bigint) n"
    );
    client.execute(&insert, &[&count]).await?;
    Ok(())
}

async fn number(client: &Client, query: String) -> Result<i64> {
    Ok(client.query_one(&query, &[]).await?.get(0))
}

/// Waits until so many events are handled, each once.
async fn are_handled(client: &Client, schema: &str, count: i64) -> Result<()> {
    let all = || number(client, format!("select count(*) from {schema}.handled"));
    eventually_is(PATIENCE, "all events are handled", |handled| *handled >= count, all).await?;
    let each = number(client, format!("select count(distinct position) from {schema}.handled")).await?;
    ensure!((all().await?, each) == (count, count), "{} handlings of {each} events", all().await?);
    Ok(())
}

#[tokio::test]
async fn shards_are_shared_and_handed_over_and_each_event_is_handled_once() -> Result<()> {
    let server = Postgres::on_loopback()?;
    server.create_database("group").await?;
    let client = server.connect("group").await?;
    tables(&client, "s", false).await?;
    let settings = [("COMMIT", "200ms")];
    let first = Worker::start(&server, "s", 18_081, &settings)?;
    append(&client, "s", 200).await?;
    are_handled(&client, "s", 200).await?;
    let second = Worker::start(&server, "s", 18_082, &settings)?;
    let owners = || {
        number(
            &client,
            "select count(distinct pid) from pg_locks where locktype = 'advisory' and objid < 24".to_owned(),
        )
    };
    eventually_is(PATIENCE, "both have shards", |owners| *owners == 2, owners).await?;
    append(&client, "s", 1_000).await?;
    first.end()?;
    are_handled(&client, "s", 1_200).await?;
    second.end()?;
    let behind = "select count(*) from s.checkpoints c where position <> (select max(position) from s.events e where e.shard = c.shard)";
    ensure!(number(&client, behind.to_owned()).await? == 0, "what was handled is not committed");
    Ok(())
}

#[tokio::test]
async fn one_row_tells_the_lowest_of_all_shards() -> Result<()> {
    let server = Postgres::on_loopback()?;
    server.create_database("group").await?;
    let client = server.connect("group").await?;
    tables(&client, "s", true).await?;
    let _worker = Worker::start(&server, "s", 18_083, &[("ROWS", "one"), ("COMMIT", "100ms")])?;
    // Shards without any events do not hold it back.
    client.execute("insert into s.events (shard, cost_ms) select 3, 1 from generate_series(1, 200)", &[]).await?;
    are_handled(&client, "s", 200).await?;
    eventually(PATIENCE, "the row is at the head", || async {
        Ok::<_, anyhow::Error>(number(&client, "select position from s.checkpoints".to_owned()).await? == 200)
    })
    .await
}
