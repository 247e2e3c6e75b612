//! Several workers on one projection.

use std::time::Duration;

use serde_json::json;
use test_cluster::{Postgres, eventually, eventually_is};

use crate::workshop::{APPLY, PATIENCE, Workshop, server};

/// Slow enough that batches are in hand whenever something happens.
const SLOWLY: &str = "insert into applied (position, stream, n)
     select :position, :stream, (:data->>'n')::bigint from pg_sleep(0.002)";

#[tokio::test(flavor = "multi_thread")]
async fn every_event_is_handled_once_and_in_order_while_workers_come_and_go() {
    let shop = Workshop::open("coming_and_going", SLOWLY).await;
    let first = shop.start("a");
    shop.applied(0).await;
    shop.events.append_events(400).await.unwrap();
    let second = shop.start("b");
    shop.events.append_events(800).await.unwrap();
    let (third, fourth) = (shop.start("c"), shop.start("d"));
    // A worker that starts late would be stopped before it had its share.
    shop.shared(&[3, 3, 3, 3]).await;
    shop.events.append_at(400.0, Duration::from_secs(2)).await.unwrap();
    let four = |count: &i64| *count >= 4;
    let taking_part =
        || async { Ok::<_, anyhow::Error>(shop.ask("select count(distinct backend) from applied").await) };
    eventually_is(PATIENCE, "four workers take part", four, taking_part).await.unwrap();
    first.stop().await;
    shop.events.append_events(300).await.unwrap();
    // Dropped without a word, as if killed.
    drop(third);
    shop.events.append_at(400.0, Duration::from_secs(2)).await.unwrap();
    second.stop().await;
    let fifth = shop.start("e");
    let all = shop.events.head().await.unwrap();
    shop.assert_exact(all).await;
    fourth.stop().await;
    fifth.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_has_its_share_and_a_leaver_gives_it_back() {
    let shop = Workshop::open("shares", SLOWLY).await;
    let first = shop.start("a");
    shop.shared(&[12]).await;
    // Under load, where the shards must first be let go.
    shop.events.append_events(5_000).await.unwrap();
    let second = shop.start("b");
    let joined = shop.shared(&[6, 6]).await;
    println!("a second worker had its share after {joined:?}");
    let rest: Vec<_> = ["c", "d", "e"].map(|name| shop.start(name)).into();
    let joined = shop.shared(&[3, 3, 2, 2, 2]).await;
    println!("three more after {joined:?}");
    second.stop().await;
    let left = shop.shared(&[3, 3, 3, 3]).await;
    println!("the leaver's shards were taken after {left:?}");
    for worker in rest {
        worker.stop().await;
    }
    first.stop().await;
    assert_eq!(shop.holdings().await, Vec::<i64>::new(), "who stops gives everything back");
    assert_eq!(shop.ask::<i64>("select count(*) from projectionist_workers").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_loses_nothing_repeats_nothing_and_is_replaced() {
    let shop = Workshop::open("killed", SLOWLY).await;
    shop.events.append_events(3_000).await.unwrap();
    let survivor = shop.start("survivor");
    for round in 0..3 {
        let mut victim = shop.start_process("victim");
        shop.shared(&[6, 6]).await;
        victim.signal("KILL");
        victim.wait();
        let taken = shop.shared(&[12]).await;
        println!("round {round}: a killed worker's shards were taken after {taken:?}");
        shop.events.append_events(500).await.unwrap();
    }
    shop.assert_exact(4_500).await;
    survivor.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_stood_still_beyond_its_lease_cannot_commit() {
    let shop = Workshop::open("frozen", SLOWLY).await;
    let frozen = shop.start_process("frozen");
    shop.shared(&[12]).await;
    shop.events.append_events(2_000).await.unwrap();
    eventually_is(PATIENCE, "it works", |count| *count > 0, || shop.try_ask::<i64>("select count(*) from applied"))
        .await
        .unwrap();
    frozen.signal("STOP");
    let other = shop.start("other");
    // Its connection lives, so that only the lease tells.
    eventually(PATIENCE, "the other has all shards", || async {
        let query = "select count(*) from projectionist_checkpoints where owner like 'other:%'";
        Ok::<_, anyhow::Error>(shop.try_ask::<i64>(query).await? == 12)
    })
    .await
    .unwrap();
    shop.assert_exact(2_000).await;
    frozen.signal("CONT");
    shop.events.append_events(1_000).await.unwrap();
    shop.assert_exact(3_000).await;
    shop.shared(&[6, 6]).await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_is_refused_once_the_fence_has_moved() {
    let shop = Workshop::open(
        "fenced",
        "insert into applied (position, stream, n) select :position, :stream, (:data->>'n')::bigint from pg_sleep(1)",
    )
    .await;
    let worker = shop.start("a");
    shop.shared(&[12]).await;
    shop.events.append("cart-1", "Counted", &json!({"n": 1})).await.unwrap();
    // In the middle of the handler's second.
    tokio::time::sleep(Duration::from_millis(500)).await;
    shop.store
        .batch_execute("update projectionist_checkpoints set owner = 'another', fence = fence + 1")
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(800)).await;
    assert_eq!(shop.ask::<i64>("select count(*) from applied").await, 0, "the effect was rolled back");
    // That owner is no live worker, so the shards are taken again and the event is handled after all.
    shop.assert_exact(1).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_was_moved_back_is_believed() {
    let shop = Workshop::open("moved_back", APPLY).await;
    let worker = shop.start("a");
    shop.applied(0).await;
    shop.events.append_events(100).await.unwrap();
    shop.applied(100).await;
    shop.store.batch_execute("truncate applied; update projectionist_checkpoints set position = 0").await.unwrap();
    shop.events.append_events(100).await.unwrap();
    shop.applied(200).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_that_have_nothing_to_do_follow_the_safe_head_and_nothing_else_is_written_at_rest() {
    // A server of its own, since its transactions are counted.
    let server = Postgres::on_loopback().unwrap();
    let shop = Workshop::open_on(&server, "at_rest", APPLY).await;
    let (a, b) = (shop.start("a"), shop.start("b"));
    shop.shared(&[6, 6]).await;
    for n in 0..3 {
        shop.events.append("cart-1", "Counted", &json!({"n": n})).await.unwrap();
    }
    shop.events.append("cart-1", "Unheard", &json!({})).await.unwrap();
    eventually_is(
        PATIENCE,
        "all shards are at the head",
        |low| *low == 4,
        || shop.try_ask::<i64>("select min(position) from projectionist_checkpoints"),
    )
    .await
    .unwrap();
    let rows = "select string_agg(format('%s %s %s', ctid, xmin, position), ',' order by shard) from projectionist_checkpoints";
    let before: String = shop.ask(rows).await;
    let transactions = "select (pg_snapshot_xmax(pg_current_snapshot()))::text::bigint";
    let first: i64 = shop.ask(transactions).await;
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert_eq!(shop.ask::<String>(rows).await, before, "no checkpoint is written while nothing moves");
    let after: i64 = shop.ask(transactions).await;
    // Each renews its lease every three seconds; one more for the server's own housekeeping.
    assert!(after - first <= 7, "leases alone are written: {} transactions in 7 s", after - first);
    a.stop().await;
    b.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_number_of_shards_is_refused() {
    let mut shop = Workshop::open("reshard", APPLY).await;
    let worker = shop.start("a");
    shop.shared(&[12]).await;
    worker.stop().await;
    for shards in [24, 6] {
        shop.table().shards = shards;
        let message = shop.start("b").ended().await.to_string();
        for part in ["shop/reshard", "12 shards", &format!("told to use {shards}"), "projectionist_checkpoints"] {
            assert!(message.contains(part), "{message}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn projections_share_a_table_and_a_schema_of_their_own_is_made() {
    let mut shop = Workshop::open("schemas", APPLY).await;
    let elsewhere = server().connect("schemas_reads").await.unwrap();
    let one = shop.start("a");
    shop.applied(0).await;
    shop.config.projection = "shop/other".to_owned();
    shop.sql.schema = Some("Orders_v1".to_owned());
    let two = shop.start("a");
    shop.events.append_events(50).await.unwrap();
    shop.applied(50).await;
    eventually_is(
        PATIENCE,
        "the other projection is done",
        |count| *count == 50,
        || async {
            let row = elsewhere.query_one("select count(*) from \"Orders_v1\".applied", &[]).await?;
            Ok::<_, tokio_postgres::Error>(row.get::<_, i64>(0))
        },
    )
    .await
    .unwrap();
    let own = "select count(*) from \"Orders_v1\".projectionist_checkpoints where projection = 'shop/other'";
    assert_eq!(shop.ask::<i64>(own).await, 12);
    one.stop().await;
    two.stop().await;
}
