//! Writers in flight, and databases that go away.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use serde_json::json;
use test_cluster::{Pooler, Pooling, Postgres, always_is, eventually_is};

use crate::workshop::{APPLY, PATIENCE, Workshop, server};

const APPEND: &str = "insert into events (stream, type, data) values ('cart', 'Counted', '{\"n\": 1}')";

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_commits_late_is_waited_for_and_handled_in_order() {
    let shop = Workshop::open("interleaved", APPLY).await;
    let worker = shop.start("a");
    shop.shared(&[12]).await;
    let slow = server().connect("interleaved_events").await.unwrap();
    shop.events.append("cart", "Counted", &json!({"n": 1})).await.unwrap();
    shop.applied(1).await;
    slow.batch_execute(&format!("begin; {APPEND}")).await.unwrap();
    shop.events.append("cart", "Counted", &json!({"n": 3})).await.unwrap();
    let count = || shop.try_ask::<i64>("select count(*) from applied");
    always_is(Duration::from_secs(2), "the later event waits", |count| *count == 1, count).await.unwrap();
    slow.batch_execute("commit").await.unwrap();
    shop.assert_exact(3).await;
    // A position that is never used must not stop it for good.
    slow.batch_execute(&format!("begin; {APPEND}")).await.unwrap();
    shop.events.append("cart", "Counted", &json!({"n": 4})).await.unwrap();
    slow.batch_execute("rollback").await.unwrap();
    shop.assert_exact(4).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_without_a_pause_do_not_keep_events_waiting() {
    let shop = Workshop::open("busy_writers", APPLY).await;
    let worker = shop.start("a");
    shop.shared(&[12]).await;
    let enough = AtomicBool::new(false);
    let writers = futures::future::join_all((0..4).map(|_| async {
        let client = server().connect("busy_writers_events").await.unwrap();
        let mut appended = 0;
        while !enough.load(Ordering::Relaxed) {
            // At every moment several transactions are open that have written.
            client.batch_execute(&format!("begin; {APPEND}; select pg_sleep(0.03); commit")).await.unwrap();
            appended += 1;
        }
        appended
    }));
    let handled = async {
        let count = || shop.try_ask::<i64>("select count(*) from applied");
        let seen = eventually_is(PATIENCE, "events are handled between the writers", |count| *count >= 50, count).await;
        enough.store(true, Ordering::Relaxed);
        seen.unwrap()
    };
    let (appended, _): (Vec<i64>, _) = tokio::join!(writers, handled);
    shop.assert_exact(appended.into_iter().sum()).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_never_ends_does_not_keep_what_has_no_gap_before_it_waiting() {
    let shop = Workshop::open("endless_writer", APPLY).await;
    shop.events.append_events(10).await.unwrap();
    let endless = server().connect("endless_writer_events").await.unwrap();
    // A writer like any other, for all that the locks tell; it was there before the worker.
    endless.batch_execute("begin; lock table events in row exclusive mode").await.unwrap();
    let worker = shop.start("a");
    shop.applied(10).await;
    for n in 0..5 {
        shop.events.append("cart", "Counted", &json!({"n": n})).await.unwrap();
        shop.applied(11 + n).await;
    }
    endless.batch_execute("commit").await.unwrap();
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_of_the_database_it_goes_on_by_itself() {
    let server = Postgres::on_loopback().unwrap();
    let shop = Workshop::open_on(&server, "restarted", APPLY).await;
    let worker = shop.start("a");
    shop.shared(&[12]).await;
    shop.events.append_events(500).await.unwrap();
    server.stop().unwrap();
    worker.says("503").await;
    server.start().unwrap();
    worker.says("200 OK").await;
    let events = test_cluster::EventStore::open(&server, "restarted_events", "events").await.unwrap();
    events.append_events(500).await.unwrap();
    let store = server.connect("restarted_reads").await.unwrap();
    let shop = Workshop { events, store, ..shop };
    shop.assert_exact(1_000).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_are_gone_and_come_back_are_not_passed_over() {
    let handler = "insert into applied (position, stream, n) select :position, :stream, (:data->>'n')::bigint from pg_sleep(0.02)";
    let mut shop = Workshop::open("restored", handler).await;
    shop.config.batch_size = 10;
    let worker = shop.start("a");
    shop.shared(&[12]).await;
    shop.events.append_events(400).await.unwrap();
    let count = || shop.try_ask::<i64>("select count(*) from applied");
    eventually_is(PATIENCE, "some are handled", |count| *count > 0, count).await.unwrap();
    // As when an older backup is put into the running database, and then a newer one.
    let events = shop.events.client();
    events.batch_execute("create table newer as select * from events; delete from events").await.unwrap();
    let handled: i64 = shop.ask("select count(*) from applied").await;
    assert!(handled < 400, "nothing was left to pass over");
    let still = Duration::from_secs(2);
    let furthest = || shop.try_ask::<i64>("select max(position) from projectionist_checkpoints");
    always_is(still, "no worker goes on beyond the end", |position| *position < 400, furthest).await.unwrap();
    events.batch_execute("insert into events overriding system value select * from newer").await.unwrap();
    shop.assert_exact(400).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_read_model_holds_the_shards_and_the_lease() {
    let shop = Workshop::open("locked", APPLY).await;
    let worker = shop.start("a");
    shop.shared(&[12]).await;
    let locker = server().connect("locked_reads").await.unwrap();
    locker.batch_execute("begin; lock table applied").await.unwrap();
    shop.events.append_events(10).await.unwrap();
    always_is(
        Duration::from_secs(12),
        "the shards are held",
        |held| *held == [12],
        || async { Ok::<_, anyhow::Error>(shop.holdings().await) },
    )
    .await
    .unwrap();
    locker.batch_execute("commit").await.unwrap();
    shop.assert_exact(10).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_notifications_events_are_found_by_looking() {
    let mut shop = Workshop::open("silent", APPLY).await;
    shop.table().event_table.notify_channel = None;
    let worker = shop.start("a");
    shop.shared(&[12]).await;
    shop.events.append_events(1).await.unwrap();
    shop.applied(1).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_is_recognised_and_the_worker_refuses_before_it_leaves_anything_there() {
    let mut shop = Workshop::open("behind_a_pooler", APPLY).await;
    let pooler = Pooler::before(server(), Pooling::Transaction, 2).unwrap();
    let direct = std::mem::replace(&mut shop.source_url, pooler.url("behind_a_pooler_events"));
    let worker = shop.start("a");
    let said = worker.says("connection pooler").await;
    assert!(said.contains("event source: ") && said.contains("name the server itself"), "{said}");
    drop(worker);
    (shop.source_url, shop.store_url) = (direct, pooler.url("behind_a_pooler_reads"));
    let worker = shop.start("b");
    let said = worker.says("connection pooler").await;
    assert!(said.contains("read store: "), "{said}");
    let (client, connection) = tokio_postgres::connect(&shop.store_url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..20 {
        let kept = "do $$ begin
            if exists (select from pg_settings where source = 'session' and name in ('search_path', 'statement_timeout', 'lock_timeout',
                'idle_in_transaction_session_timeout', 'default_transaction_read_only', 'enable_seqscan', 'tcp_keepalives_idle'))
            or exists (select from pg_prepared_statements) or exists (select from pg_listening_channels()) then raise 'left behind'; end if;
            end $$";
        client.batch_execute(kept).await.unwrap();
    }
}
