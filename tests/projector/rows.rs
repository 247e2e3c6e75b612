//! One event that cannot be read concerns its own shard, is named by its position, and never decides how much memory a worker takes.

use std::time::Duration;

use serde_json::json;
use test_cluster::{EventStore, always_is, eventually_is};

use crate::workshop::{APPLY, PATIENCE, SETUP, Workshop, server};

impl Workshop {
    /// The shard of a stream, of twelve.
    pub(crate) async fn shard(&self, stream: &str) -> i32 {
        self.ask(&format!("select (((hashtextextended('{stream}', 0) % 12) + 12) % 12)::int")).await
    }

    /// Waits until every shard but one has come to `position`, and sees that the one stays before `bad`.
    async fn others_go_on(&self, shard: i32, position: i64, bad: i64) {
        let others =
            format!("select count(*) from projectionist_checkpoints where shard <> {shard} and position >= {position}");
        eventually_is(PATIENCE, "the other shards go on", |n| *n == 11, || self.try_ask::<i64>(&others)).await.unwrap();
        let own = format!("select position from projectionist_checkpoints where shard = {shard}");
        always_is(Duration::from_secs(2), "its shard waits", |at| *at < bad, || self.try_ask::<i64>(&own))
            .await
            .unwrap();
        let failed = format!(
            "select failed_position from projectionist_checkpoints where shard = {shard} and failure like '%position {bad} %'"
        );
        assert_eq!(self.try_ask::<i64>(&failed).await.unwrap(), bad, "the checkpoint table tells");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_too_large_is_not_read_and_a_worker_stays_small() {
    let mut shop = Workshop::open("too_large", APPLY).await;
    shop.config.max_event_bytes = 1 << 20;
    let events = shop.events.client();
    shop.events.append_events(50).await.unwrap();
    let row = "insert into events (stream, type, data) select 'huge', 'Counted', jsonb_build_object('n', 1, 'text', repeat('x', $1::int)) returning position";
    let bad: i64 = events.query_one(row, &[&(36 << 20)]).await.unwrap().get(0);
    shop.events.append_events(200).await.unwrap();
    let worker = shop.start_process("a");
    let shard = shop.shard("huge").await;
    shop.others_go_on(shard, bad + 200, bad).await;
    let answer = worker.readiness().await.unwrap();
    for part in ["503", &format!("the event at position {bad} cannot be read"), "maxEventBytes allows 1048576"] {
        assert!(answer.contains(part), "{answer}");
    }
    let peak = worker.peak_memory();
    println!("peak memory of the worker: {} MiB", peak >> 20);
    assert!(peak < 64 << 20, "{} MiB", peak >> 20);
    drop(worker);
    // With a larger bound the same event is handled.
    shop.config.max_event_bytes = 64 << 20;
    let worker = shop.start("b");
    shop.assert_exact(251).await;
    worker.says("200 OK").await;
    assert_eq!(
        shop.ask::<i64>("select count(*) from projectionist_checkpoints where failed_position is not null").await,
        0
    );
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_byte_that_is_no_text_holds_its_shard_and_is_named_by_its_position() {
    let mut shop = Workshop::open("no_text", APPLY).await;
    let postgres = server().connect("postgres").await.unwrap();
    postgres
        .batch_execute("create database no_text_ascii encoding 'SQL_ASCII' locale 'C' template template0")
        .await
        .unwrap();
    shop.events = EventStore::create_events_table(server(), "no_text_ascii", "events").await.unwrap();
    shop.source_url = server().url("no_text_ascii");
    let events = shop.events.client();
    events.batch_execute("alter table events alter column data type text").await.unwrap();
    let append = "insert into events (stream, type, data) select 'cart-' || n % 40, 'Counted', '{\"n\": ' || n || '}' from generate_series(1, 300) n";
    events.batch_execute(append).await.unwrap();
    let odd = r#"insert into events (stream, type, data) values ('odd', 'Counted', '{"n": 1, "text": "' || convert_from('\xff', 'SQL_ASCII') || '"}') returning position"#;
    let bad: i64 = events.query_one(odd, &[]).await.unwrap().get(0);
    events.batch_execute(append).await.unwrap();
    let worker = shop.start("a");
    let shard = shop.shard("odd").await;
    shop.others_go_on(shard, bad + 300, bad).await;
    let answer = worker.says("cannot be read").await;
    for part in ["503", &format!("position {bad} "), "SQLSTATE 22021"] {
        assert!(answer.contains(part), "{answer}");
    }
    events.execute("update events set data = '{\"n\": 1}' where position = $1", &[&bad]).await.unwrap();
    shop.applied(601).await;
    worker.says("200 OK").await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn text_that_is_no_json_and_a_time_beyond_its_zone_hold_their_shards_alone() {
    let mut shop = Workshop::open("odd_rows", "insert into applied (position, stream, n, at) values (:position, :stream, (:data->>'n')::bigint, :recorded_at)").await;
    shop.sql.setup = Some(format!("{SETUP}; alter table applied add column if not exists at timestamptz"));
    shop.table().event_table.time_zone = Some("America/New_York".to_owned());
    let events = shop.events.client();
    events
        .batch_execute("alter table events alter column data type text, alter column recorded_at type timestamp")
        .await
        .unwrap();
    let append = |stream: &str, data: &str, at: &str| {
        format!("insert into events (stream, type, data, recorded_at) values ('{stream}', 'Counted', '{data}', '{at}')")
    };
    let plain = "2026-07-01 12:00:00";
    let rows = [
        append("a", r#"{"n": 1}"#, plain),
        append("not json", "hello", plain),
        append("too late", r#"{"n": 3}"#, "294276-12-31 23:59:59"),
        append("a", r#"{"n": 4}"#, plain),
    ];
    events.batch_execute(&rows.join("; ")).await.unwrap();
    let shards = [shop.shard("not json").await, shop.shard("too late").await, shop.shard("a").await];
    assert!(
        shards[0] != shards[1] && !shards[2..].contains(&shards[0]) && !shards[2..].contains(&shards[1]),
        "{shards:?}"
    );
    let worker = shop.start("a");
    shop.applied(2).await;
    for (shard, position) in [(shards[0], 2), (shards[1], 3)] {
        let failed =
            format!("select coalesce(max(failed_position), 0) from projectionist_checkpoints where shard = {shard}");
        eventually_is(PATIENCE, "it is written down", |at| *at == position, || shop.try_ask::<i64>(&failed))
            .await
            .unwrap();
    }
    let at: String = shop.ask("select min(at at time zone 'UTC')::text from applied").await;
    assert_eq!(at, "2026-07-01 16:00:00", "New York is four hours behind in summer");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_cannot_serve_are_refused_before_any_event_is_read() {
    let shop = Workshop::open("unsuitable", APPLY).await;
    let events = shop.events.client();
    shop.events.append("cart", "Counted", &json!({"n": 1})).await.unwrap();
    events
        .batch_execute("alter table events alter column data type bytea using convert_to(data::text, 'UTF8')")
        .await
        .unwrap();
    let worker = shop.start("a");
    worker.says("column data must be jsonb, json or text that holds JSON, not bytea").await;
    let text = "alter table events alter column data type text using convert_from(data, 'UTF8'), alter column recorded_at type timestamp";
    events.batch_execute(text).await.unwrap();
    worker.says("set spec.source.postgres.eventTable.timeZone").await;
    events.batch_execute("alter table events alter column recorded_at type timestamptz").await.unwrap();
    shop.applied(1).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_hidden_from_a_worker_are_not_passed_over() {
    let mut shop = Workshop::open("hidden_rows", APPLY).await;
    server().create_role("hidden_reader", "hidden_reader").await.unwrap();
    shop.source_url = server().url_as("hidden_reader", "hidden_reader", "hidden_rows_events");
    let events = shop.events.client();
    events
        .batch_execute("grant select on events to hidden_reader; alter table events enable row level security")
        .await
        .unwrap();
    shop.events.append_events(50).await.unwrap();
    let worker = shop.start("a");
    worker.says("row security hides all events from role hidden_reader").await;
    events.batch_execute("create policy p on events for select using (stream is null)").await.unwrap();
    worker.says("row security may hide all events").await;
    events.batch_execute("create policy q on events for select to hidden_reader using (true)").await.unwrap();
    shop.assert_exact(50).await;
    worker.stop().await;
}
