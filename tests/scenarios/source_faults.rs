//! Whatever happens to the database, the workers stay, the metric turns to an error and never to zero, and all goes on afterwards.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use test_cluster::{always_is, eventually};

use crate::shop::{Shop, busy};
use crate::stage::{PATIENCE, play, together};

/// The source cannot be read: the metric is an error that says why, and the HPA holds.
async fn unknown_and_held(shop: &Shop<'_>, reason: &str) -> Result<()> {
    shop.condition_is("orders", "LagKnown", "Unknown", reason).await?;
    shop.condition_is("orders", "SourceReachable", "False", reason).await?;
    refused_and_held(shop, reason).await
}

async fn refused_and_held(shop: &Shop<'_>, reason: &str) -> Result<()> {
    eventually(PATIENCE, "the metric is an error that says why", || async {
        Ok::<_, anyhow::Error>(match shop.refusal("projection_required_workers", "orders").await? {
            Some((503, message)) if message.contains(reason) => Ok(()),
            answer => Err(format!("{answer:?}")),
        })
    })
    .await?;
    shop.replicas_stay(4).await
}

#[test]
fn the_workers_hold_while_the_database_is_stopped_and_go_on_when_it_is_back() {
    let _turn = together();
    play(|stage| async move {
        let server = stage.cluster.postgres()?;
        let shop = busy(stage, &server, "stopped").await?;
        server.stop()?;
        unknown_and_held(&shop, "ConnectionRefused").await?;
        server.start()?;
        shop.condition_is("orders", "SourceReachable", "True", "").await?;
        shop.read_model_is_whole("orders").await
    });
}

#[test]
fn the_workers_hold_while_the_database_hangs_and_go_on_when_it_answers() {
    let _turn = together();
    play(|stage| async move {
        let server = stage.cluster.postgres()?;
        let shop = busy(stage, &server, "hanging").await?;
        server.pause()?;
        let held = unknown_and_held(&shop, "TimedOut").await;
        server.resume()?;
        held?;
        shop.condition_is("orders", "SourceReachable", "True", "").await?;
        shop.read_model_is_whole("orders").await
    });
}

#[test]
fn the_workers_hold_while_the_event_table_is_locked_and_go_on_when_it_is_free() {
    let _turn = together();
    play(|stage| async move {
        let server = stage.cluster.postgres()?;
        let shop = busy(stage, &server, "locked").await?;
        let locker = server.connect(&shop.database).await?;
        locker.batch_execute("begin; lock table events in access exclusive mode").await?;
        unknown_and_held(&shop, "TimedOut").await?;
        locker.batch_execute("rollback").await?;
        shop.condition_is("orders", "SourceReachable", "True", "").await?;
        shop.read_model_is_whole("orders").await
    });
}

#[test]
fn nonsense_from_the_database_is_unknown_and_not_zero() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "nonsense").await?;
        shop.events.append_events(10).await?;
        shop.commit("orders", 4).await?;
        shop.apply(&shop.measured("orders", &json!({})))?;
        eventually(PATIENCE, "6 are pending", || async {
            shop.metric("projection_pending_events", "orders").await.map(|value| value == "6")
        })
        .await?;

        // As after a restore from an older backup.
        shop.commit("orders", 4_000).await?;
        let message = shop.condition_is("orders", "LagKnown", "False", "CheckpointBeyondHead").await?;
        ensure!(message.contains("4000") && message.contains("10"), "{message}");
        let refused = || shop.refusal("projection_pending_events", "orders");
        let (code, message) = eventually(PATIENCE, "the metric is an error", refused).await?;
        ensure!(code == 503 && message.contains("beyond"), "{code} {message}");

        shop.events.client().execute("update checkpoints set position = null", &[]).await?;
        shop.condition_is("orders", "LagKnown", "False", "NeverCommitted").await.context("a NULL checkpoint")?;
        shop.commit("orders", 9).await?;
        eventually(PATIENCE, "1 is pending", || async {
            shop.metric("projection_pending_events", "orders").await.map(|value| value == "1")
        })
        .await
    });
}

#[test]
fn the_workers_hold_while_the_log_ends_before_the_checkpoint_and_go_on_when_it_is_whole() {
    let _turn = together();
    play(|stage| async move {
        let shop = busy(stage, &stage.postgres, "restored").await?;
        // As after a restore from an older backup, and then from a newer one.
        let database = shop.reader().await?;
        database
            .batch_execute("create table newer as select * from events; delete from events where position > 1")
            .await?;
        shop.condition_is("orders", "LagKnown", "False", "CheckpointBeyondHead").await?;
        refused_and_held(&shop, "CheckpointBeyondHead").await?;
        database
            .batch_execute("insert into events overriding system value select * from newer where position > 1")
            .await?;
        shop.condition_is("orders", "LagKnown", "True", "").await?;
        shop.read_model_is_whole("orders").await
    });
}

#[test]
fn events_behind_an_open_transaction_wait_and_the_transaction_is_named() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "held").await?;
        shop.events.append_events(3).await?;
        shop.commit("orders", 3).await?;
        shop.scaling_idle_workers("orders", &json!({}))?;
        shop.metric_is("projection_pending_events", "orders", |value| value == "0").await?;
        let importer = shop.server.connect(&shop.database).await?;
        let insert = "insert into events (stream, type, data) values ('secret customer', 'Counted', '{\"n\": 1}')";
        importer.batch_execute(&format!("set application_name = 'nightly import'; begin; {insert}")).await?;
        let pid: i32 = importer.query_one("select pg_backend_pid()", &[]).await?.get(0);
        shop.events.append_events(500).await?;

        for metric in ["projection_pending_events", "projection_held_back_events"] {
            shop.metric_is(metric, "orders", |value| value == "500").await?;
        }
        let message = shop.condition_is("orders", "HeldBack", "True", "HeldBackByTransaction").await?;
        ensure!(message.contains(&format!("process {pid}")) && message.contains("nightly import"), "{message}");
        ensure!(!message.contains("secret customer"), "{message}");
        shop.condition_is("orders", "WithinTarget", "False", "HeldBackByTransaction").await?;
        let told =
            || async { Ok::<_, anyhow::Error>(shop.events_about("orders")?.contains_key("HeldBackByTransaction")) };
        eventually(PATIENCE, "an Event names it", told).await?;
        let aged = |value: &str| value.trim_end_matches('m').parse::<f64>().is_ok_and(|number| number > 0.0);
        shop.metric_is("projection_staleness_seconds", "orders", aged).await?;
        // No worker could read them.
        shop.replicas_stay(1).await?;

        importer.batch_execute("commit").await?;
        shop.metric_is("projection_held_back_events", "orders", |value| value == "0").await?;
        shop.metric_is("projection_pending_events", "orders", |value| value == "501").await?;
        shop.condition_is("orders", "HeldBack", "False", "AsExpected").await?;
        shop.replicas_become(4).await?;
        shop.commit("orders", shop.events.head().await?).await?;
        shop.condition_is("orders", "WithinTarget", "True", "").await?;

        // A job that only deletes cannot append, and holds nothing back.
        importer.batch_execute("begin; delete from events where position < 3").await?;
        shop.events.append_events(20).await?;
        shop.metric_is("projection_pending_events", "orders", |value| value == "20").await?;
        shop.metric_is("projection_held_back_events", "orders", |value| value == "0").await?;
        importer.batch_execute("rollback").await?;
        Ok(())
    });
}

#[test]
fn an_uncommitted_earlier_position_is_not_skipped() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "interleaved").await?;
        shop.apply(&shop.projection("orders", &json!({})))?;
        shop.workers_are("orders", "the worker is ready", |ready| ready == 1).await?;
        let slow = shop.server.connect(&shop.database).await?;
        slow.batch_execute("begin; insert into events (stream, type, data) values ('slow', 'Counted', '{\"n\": 1}')")
            .await?;
        shop.events.append("fast", "Counted", &json!({"n": 2})).await?;
        let blocked = shop.projection_is("orders", "the safe head is held below the raw head", |projection| {
            let head = projection.status.as_ref().and_then(|status| status.head.clone()).unwrap_or_default();
            head.raw == "2" && head.safe == "0"
        });
        blocked.await?;
        let reader = shop.server.connect(&shop.database).await?;
        let rows = || async {
            Ok::<i64, tokio_postgres::Error>(reader.query_one("select count(*) from orders.seen", &[]).await?.get(0))
        };
        always_is(Duration::from_secs(3), "nothing is read past the open transaction", |count| *count == 0, rows)
            .await?;
        slow.batch_execute("commit").await?;
        shop.read_model_is_whole("orders").await
    });
}
