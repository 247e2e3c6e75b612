//! What handlers get, what they may do, and what is said when they fail.

use std::{collections::BTreeMap, time::Duration};

use serde_json::json;
use test_cluster::{always_is, eventually_is};

use crate::workshop::{APPLY, PATIENCE, Workshop, server};

#[tokio::test(flavor = "multi_thread")]
async fn whatever_an_event_holds_stays_data() {
    let mut shop = Workshop::open("injection", "").await;
    shop.sql.setup = Some("create table if not exists seen (position bigint, type text, stream text, at timestamptz, id text, data jsonb, plain json)".to_owned());
    shop.sql.handlers = BTreeMap::from([(
        "It's \"quoted\"".to_owned(),
        "insert into seen values (:position, :type, :stream, :recorded_at, :data->>'id', :data, :data::json) -- :nothing".to_owned(),
    )]);
    let worker = shop.start("a");
    worker.says("200 OK").await;
    let nasty = "'); drop table seen; -- $1 :data \\' $$ \u{1F6D2}";
    let data = json!({"id": nasty, "amount": 12_345_678_901_234_567_890_u64, "'": null});
    let position = shop.events.append(nasty, "It's \"quoted\"", &data).await.unwrap();
    eventually_is(PATIENCE, "it is seen", |n| *n == 1, || shop.try_ask::<i64>("select count(*) from seen"))
        .await
        .unwrap();
    let row = shop
        .store
        .query_one("select position, type, stream, id, data::text, plain->>'id', at from seen", &[])
        .await
        .unwrap();
    assert_eq!(row.get::<_, i64>(0), position);
    assert_eq!(row.get::<_, String>(1), "It's \"quoted\"");
    assert_eq!(
        (row.get::<_, String>(2), row.get::<_, String>(3), row.get::<_, String>(5)),
        (nasty.into(), nasty.into(), nasty.into())
    );
    let source = shop.events.client().query_one("select data::text, recorded_at from events", &[]).await.unwrap();
    assert_eq!(row.get::<_, String>(4), source.get::<_, String>(0), "no digit is lost");
    assert_eq!(row.get::<_, std::time::SystemTime>(6), source.get::<_, std::time::SystemTime>(1));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_are_handled_a_few_at_a_time() {
    let shop = Workshop::open("large", APPLY).await;
    let append = "insert into events (stream, type, data) select 'cart-' || n, 'Counted', jsonb_build_object('n', n, 'text', repeat('x', 1000000))
         from generate_series(1, 40) n";
    shop.events.client().execute(append, &[]).await.unwrap();
    let worker = shop.start("a");
    shop.assert_exact(40).await;
    let transactions: i64 = shop.ask("select count(distinct xmin::text) from applied").await;
    assert!(transactions >= 7, "{transactions} batches of 5 MB at most");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_only_read_events_and_own_its_schema_suffices_and_one_database_too() {
    let mut shop = Workshop::open("modest", APPLY).await;
    server().create_role("modest", "modest").await.unwrap();
    let owner = shop.events.client();
    owner
        .batch_execute("revoke create on schema public from public; grant select on events to modest; create schema reads authorization modest")
        .await
        .unwrap();
    shop.sql.schema = Some("reads".to_owned());
    let url = server().url_as("modest", "modest", "modest_events");
    (shop.source_url, shop.store_url) = (url.clone(), url);
    shop.store = server().connect("modest_events").await.unwrap();
    shop.store.batch_execute("set search_path = reads, public").await.unwrap();
    shop.events.append_events(100).await.unwrap();
    let (a, b) = (shop.start("a"), shop.start("b"));
    shop.shared(&[6, 6]).await;
    shop.assert_exact(100).await;
    drop(a);
    // A dead sibling is seen without special rights.
    shop.shared(&[12]).await;
    b.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_fails_holds_its_shard_and_no_other_and_is_named() {
    let shop = Workshop::open(
        "failing",
        "insert into applied (position, stream, n) values (:position, :stream, 100 / (:data->>'n')::bigint)",
    )
    .await;
    let worker = shop.start("a");
    worker.says("200 OK").await;
    let good = shop.events.append("bad", "Counted", &json!({"n": 1})).await.unwrap();
    let bad = shop.events.append("bad", "Counted", &json!({"n": 0})).await.unwrap();
    shop.events.append_events(300).await.unwrap();
    let answer = worker.says("division_by_zero").await;
    for part in ["503", "event type Counted", &format!("position {bad}"), "SQLSTATE 22012"] {
        assert!(answer.contains(part), "{answer}");
    }
    let shard: i32 = shop.ask("select (((hashtextextended('bad', 0) % 12) + 12) % 12)::int").await;
    let others =
        format!("select count(*) from projectionist_checkpoints where shard <> {shard} and position = {}", bad + 300);
    eventually_is(PATIENCE, "the other shards go on", |n| *n == 11, || shop.try_ask::<i64>(&others)).await.unwrap();
    let stuck = format!("select position from projectionist_checkpoints where shard = {shard}");
    let passes = |position: &i64| *position == good || *position == bad - 1;
    always_is(Duration::from_secs(3), "the checkpoint does not pass it", passes, || shop.try_ask::<i64>(&stuck))
        .await
        .unwrap();
    // Mended where it was wrong: in the event.
    shop.events.client().execute("update events set data = '{\"n\": 50}' where position = $1", &[&bad]).await.unwrap();
    worker.says("200 OK").await;
    shop.applied(302).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_constraint_that_speaks_at_the_commit_is_brought_home_to_its_event() {
    let mut shop = Workshop::open("deferred", APPLY).await;
    shop.sql.setup = Some("create table if not exists applied (seq bigserial, position bigint, stream text, n bigint unique deferrable initially deferred)".to_owned());
    shop.events.append_events(20).await.unwrap();
    let twice = shop.events.append("cart", "Counted", &json!({"n": 7})).await.unwrap();
    let worker = shop.start("a");
    let answer = worker.says("unique constraint").await;
    assert!(answer.contains(&format!("position {twice}")), "{answer}");
    shop.applied(20).await;
    shop.events
        .client()
        .execute("update events set data = '{\"n\": 70}' where position = $1", &[&twice])
        .await
        .unwrap();
    shop.applied(21).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_the_read_store_refuses_is_named_and_tried_again() {
    let mut shop = Workshop::open("refused", APPLY).await;
    shop.sql.handlers.insert("OrderPlaced".to_owned(), "insert into orders values (:data->>'id')".to_owned());
    let worker = shop.start("a");
    let answer = worker.says("OrderPlaced").await;
    assert!(answer.contains("503") && answer.contains("relation \"orders\" does not exist"), "{answer}");
    shop.store.batch_execute("create table orders (id text)").await.unwrap();
    worker.says("200 OK").await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_is_no_statement_ends_the_worker_with_its_name() {
    let mut shop = Workshop::open("unknown_parameter", APPLY).await;
    for (sql, parts) in [
        ("insert into t values (:id)", [":id", ":position, :type, :stream, :recorded_at, :data"]),
        ("delete from a; delete from b", ["more than one statement", "with"]),
        ("rollback", ["rollback", "one transaction"]),
    ] {
        shop.sql.handlers = BTreeMap::from([("OrderPlaced".to_owned(), sql.to_owned())]);
        let message = shop.start("a").ended().await.to_string();
        assert!(message.contains("OrderPlaced") && parts.iter().all(|part| message.contains(part)), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_whose_handlers_get_in_each_others_way_still_count_right() {
    // Every event updates two of three rows, in an order that differs from event to event: deadlocks are certain.
    let mut shop = Workshop::open(
        "contention",
        "with event as (select (:data->>'n')::bigint as n), slow as (select pg_sleep(0.001)),
         one as (update counters set events = events + 1 from event, slow where id = event.n % 3)
         insert into applied (position, stream, n) select :position, :stream, n from event, touch((event.n + 1 + event.n / 3 % 2) % 3)",
    )
    .await;
    shop.sql.setup = Some(format!(
        "{};
         create table if not exists counters (id bigint primary key, events bigint not null);
         insert into counters select n, 0 from generate_series(0, 2) n on conflict do nothing;
         create or replace function touch(which bigint) returns boolean language sql as
             'update counters set events = events + 1 where id = which returning true'",
        crate::workshop::SETUP
    ));
    shop.events.append_events(300).await.unwrap();
    let (a, b, c) = (shop.start("a"), shop.start("b"), shop.start("c"));
    shop.assert_exact(300).await;
    assert_eq!(shop.ask::<i64>("select sum(events)::bigint from counters").await, 600);
    for worker in [a, b, c] {
        worker.says("200 OK").await;
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_always_in_the_way_of_others_is_the_one_that_waits() {
    let mut shop = Workshop::open("in_the_way", APPLY).await;
    // So many that they are not tried one by one before it is held.
    shop.config.batch_size = 10_000;
    let setup = "create or replace function checked(n bigint) returns bigint language plpgsql as $$ begin
         if n = 3 then raise exception 'in the way' using errcode = '40001'; end if; return n; end $$;";
    shop.sql.setup = shop.sql.setup.map(|tables| format!("{tables}; {setup}"));
    let handler =
        "insert into applied (position, stream, n) values (:position, :stream, checked((:data->>'n')::bigint))";
    shop.sql.handlers = BTreeMap::from([("Counted".to_owned(), handler.to_owned())]);
    for n in 1..=4 {
        shop.events.append(&format!("stream-{n}"), "Counted", &json!({"n": n})).await.unwrap();
    }
    let worker = shop.start_process("a");
    let said = || async { Ok::<_, anyhow::Error>(worker.output()) };
    let failed = |said: &String| said.contains("failed on the event at position 3");
    let said = eventually_is(PATIENCE, "the worker says it", failed, said).await.unwrap();
    assert!(said.contains("40001"), "{said}");
    shop.applied(3).await;
    for position in [1, 2, 4] {
        assert!(!worker.output().contains(&format!("failed on the event at position {position}")), "{position}");
    }
}
