//! Workers on a real Redis server: they share a stream, and claim what others leave behind.

#![allow(clippy::unwrap_used)]

use std::{
    process::{Child, Command},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use test_cluster::{Redis, eventually_is, redis::Answer};

const PATIENCE: Duration = Duration::from_secs(120);

/// A worker that is ended with the test.
struct Worker(Child);

impl Worker {
    fn start(server: &Redis, consumer: &str) -> Result<Self> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_test-worker"));
        command.env("REDIS_URL", server.url()).env("STREAM", "orders").env("GROUP", "list").env("CONSUMER", consumer);
        command.env("COST_MS", "5").env("CLAIM_AFTER_MS", "5000");
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

fn append(server: &Redis, count: usize) -> Result<()> {
    let entry: &[&str] = &["XADD", "orders", "*", "n", "1"];
    server.run_all(&vec![entry; count]).map(drop)
}

async fn are_handled(server: &Redis, count: i64) -> Result<()> {
    let all = || async { server.run("HLEN orders:handled") };
    let is_all = |handled: &Answer| *handled == Answer::Integer(count);
    eventually_is(PATIENCE, "all entries are handled", is_all, all).await?;
    let Answer::Array(times) = server.run("HVALS orders:handled")? else { anyhow::bail!("no hash") };
    ensure!(times.iter().all(|times| times.text() == "1"), "an entry was handled more than once");
    Ok(())
}

async fn has_worked(server: &Redis, consumer: &str) -> Result<()> {
    let command = format!("HGET orders:handled-by {consumer}");
    let some = |handled: &Answer| *handled != Answer::Nil;
    eventually_is(PATIENCE, "it has handled some", some, || async { server.run(&command) }).await.map(drop)
}

#[tokio::test]
async fn entries_are_shared_and_what_a_worker_leaves_is_claimed_and_each_is_handled_once() -> Result<()> {
    let server = Redis::on_loopback()?;
    let first = Worker::start(&server, "first")?;
    append(&server, 200)?;
    are_handled(&server, 200).await?;
    let second = Worker::start(&server, "second")?;
    append(&server, 1_000)?;
    has_worked(&server, "second").await?;
    first.end()?;
    append(&server, 20)?;
    // This one is killed.
    drop(second);
    // And this one was given entries and never came back.
    append(&server, 30)?;
    server.run("XREADGROUP GROUP list gone COUNT 15 STREAMS orders >")?;
    let third = Worker::start(&server, "third")?;
    are_handled(&server, 1_250).await?;
    third.end()?;
    let pending = server.run("XPENDING orders list")?;
    let Answer::Array(pending) = pending else { anyhow::bail!("{pending:?}") };
    ensure!(pending.first() == Some(&Answer::Integer(0)), "what was handled is not acknowledged: {pending:?}");
    Ok(())
}
