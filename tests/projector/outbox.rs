//! Outboxes in a real PostgreSQL: each row's effects once, however workers and the server end, and each row marked or deleted after that.

use std::{collections::BTreeMap, time::Duration};

use projectionist::{
    api::{HumanDuration, Outbox},
    projector::{Input, QueueInput, QueueKind},
};
use serde_json::{Value, json};
use test_cluster::{Postgres, eventually_is};
use tokio_postgres::Client;

use crate::{
    killing::{assert_in_order, some_are_handled},
    queues::{APPLY, assert_each_once, failures},
    workshop::{PATIENCE, Workshop, server},
};

const TABLE: &str = "create table outbox (
     id bigserial primary key, type text, stream text, data jsonb, created_at timestamptz not null default now(), sent_at timestamptz);
     create index on outbox (id) where sent_at is null";

/// Workers on an outbox, and a connection to its database.
pub(crate) struct Shop {
    pub(crate) shop: Workshop,
    pub(crate) source: Client,
}

impl Shop {
    /// `table` makes the outbox, which `spec` describes.
    async fn open(server: &Postgres, name: &str, table: &str, spec: Value, alone: bool) -> Self {
        let mut shop = Workshop::open_on(server, name, APPLY).await;
        let outbox: Outbox = serde_json::from_value(spec).unwrap();
        shop.config.input = Input::Queue(QueueInput {
            queue: QueueKind::Outbox(Box::new(outbox)),
            keep_for: HumanDuration(Duration::from_secs(3_600)),
            alone,
        });
        let source = server.connect(&format!("{name}_events")).await.unwrap();
        source.batch_execute(table).await.unwrap();
        Self { shop, source }
    }

    pub(crate) async fn marked(server: &Postgres, name: &str, alone: bool) -> Self {
        Self::open(server, name, TABLE, json!({"sentAt": "sent_at"}), alone).await
    }

    /// Appends events with these numbers, of forty streams.
    pub(crate) async fn append(&self, numbers: std::ops::Range<i64>) {
        let append = "insert into outbox (type, stream, data)
             select 'Counted', 'o-' || n % 40, jsonb_build_object('n', n) from generate_series($1::bigint, $2::bigint) n";
        self.source.execute(append, &[&numbers.start, &(numbers.end - 1)]).await.unwrap();
    }

    async fn count(&self, query: &str) -> anyhow::Result<i64> {
        Ok(self.source.query_one(query, &[]).await?.try_get(0)?)
    }

    /// Waits until so many rows are not marked.
    pub(crate) async fn left(&self, rows: i64) {
        let left = || self.count("select count(*) from outbox where sent_at is null");
        eventually_is(PATIENCE, "the other rows are marked", |seen| *seen == rows, left).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_whose_marks_are_lost_change_nothing_and_those_of_a_table_that_is_made_again_are_new() {
    let at = Shop::marked(server(), "outbox_again", false).await;
    let worker = at.shop.start("a");
    at.append(0..300).await;
    assert_each_once(&at.shop, 300).await;
    at.left(0).await;
    // As if workers had ended between their two commits.
    at.source.execute("update outbox set sent_at = null", &[]).await.unwrap();
    at.left(0).await;
    assert_each_once(&at.shop, 300).await;
    at.source.batch_execute("truncate outbox restart identity").await.unwrap();
    at.append(300..310).await;
    assert_each_once(&at.shop, 310).await;
    assert_eq!(at.count("select max(id) from outbox").await.unwrap(), 10, "numbers that are in the inbox already");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_cannot_be_handled_stays_and_is_told_while_the_others_go_on() {
    let table = TABLE.replace("data jsonb", "data text");
    let mut at = Shop::open(server(), "outbox_poison", &table, json!({"sentAt": "sent_at"}), false).await;
    at.shop.sql.setup = Some(
        "create table if not exists applied (seq bigserial, position bigint, stream text, n bigint constraint unlucky check (n <> 13))"
            .to_owned(),
    );
    at.shop.config.max_event_bytes = 1_024;
    let odd =
        "insert into outbox (type, data) values ('Counted', 'no-json-canary'), (null, '{}'), ('Other', 'no-json'),
         ('Counted', to_jsonb(repeat('canary', 1000))::text)";
    at.source.execute(odd, &[]).await.unwrap();
    at.append(0..50).await;
    let workers = [at.shop.start("a"), at.shop.start("b")];
    at.shop.applied(49).await;
    at.append(50..60).await;
    at.shop.applied(59).await;
    at.left(4).await;
    let told: Vec<String> =
        eventually_is(PATIENCE, "all are told", |told: &Vec<String>| told.len() == 4, || failures(&at.shop))
            .await
            .unwrap();
    for words in ["no JSON", "no type", "6002 bytes", "unlucky"] {
        assert!(
            told.iter().any(|why| why.contains(words) && why.contains("of outbox public.outbox")),
            "{words}: {told:?}"
        );
    }
    assert!(told.iter().all(|why| !why.contains("canary")), "{told:?}");
    // Once it can be handled, it is; nothing is told of it any more.
    at.shop.store.batch_execute("alter table applied drop constraint unlucky").await.unwrap();
    at.shop.applied(60).await;
    at.left(3).await;
    eventually_is(PATIENCE, "three are told", |told: &Vec<String>| told.len() == 3, || failures(&at.shop))
        .await
        .unwrap();
    for worker in workers {
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_alone_keeps_the_order_while_the_worker_before_it_is_frozen() {
    const SLOWLY: &str = "insert into applied (position, stream, n) select (:data->>'n')::bigint, :stream, (:data->>'n')::bigint from pg_sleep(0.002)";
    let mut at = Shop::marked(server(), "outbox_order", true).await;
    at.shop.sql.handlers = BTreeMap::from([("Counted".to_owned(), SLOWLY.to_owned())]);
    at.append(0..1_500).await;
    let first = at.shop.start_process("a");
    some_are_handled(&at.shop).await;
    // Its rows are locked until the server ends its transaction.
    first.signal("STOP");
    let second = at.shop.start_process("b");
    at.shop.applied(1_500).await;
    first.signal("CONT");
    at.left(0).await;
    assert_each_once(&at.shop, 1_500).await;
    assert_in_order(&at.shop).await;
    drop((first, second));
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_deleted_where_nothing_marks_them_and_those_of_others_stay() {
    const RELAYED: &str = "create schema shop; create table shop.\"Outbox\" (
         \"Key\" uuid primary key default gen_random_uuid(), kind text not null, aggregate int, payload json, at timestamp not null default now(), topic text);
         create role relay login password 'relay'; grant usage on schema shop to relay;
         grant select, delete, update (topic) on shop.\"Outbox\" to relay";
    let spec = json!({
        "table": "shop.Outbox", "createdAt": "at", "timeZone": "UTC", "where": "topic = 'orders'",
        "event": {"id": "Key", "type": "kind", "stream": "aggregate", "data": "payload"},
    });
    let mut at = Shop::open(server(), "outbox_deleted", RELAYED, spec, false).await;
    at.shop.source_url = server().url_as("relay", "relay", "outbox_deleted_events");
    // Bodies of 200 KiB: a worker takes 4 MiB of them at once.
    let append = "insert into shop.\"Outbox\" (kind, aggregate, payload, topic)
         select 'Counted', n % 40, json_build_object('n', n, 'more', repeat('x', 200 * 1024)), case when n < 100 then 'orders' else 'bills' end
         from generate_series(0, 109) n";
    at.source.execute(append, &[]).await.unwrap();
    let workers = [at.shop.start("a"), at.shop.start("b")];
    assert_each_once(&at.shop, 100).await;
    let left = || at.count("select count(*) from shop.\"Outbox\"");
    eventually_is(PATIENCE, "handled rows are deleted", |seen| *seen == 10, left).await.unwrap();
    assert_eq!(at.count("select count(*) from shop.\"Outbox\" where topic = 'bills'").await.unwrap(), 10);
    for worker in workers {
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_workers_from_marking_rows_is_told() {
    let at = Shop::marked(server(), "outbox_refused", false).await;
    at.source.batch_execute("alter table outbox drop constraint outbox_pkey").await.unwrap();
    let worker = at.shop.start("a");
    worker.says("column id must be NOT NULL and unique by an index on it alone").await;
    at.source.batch_execute("alter table outbox add primary key (id)").await.unwrap();
    worker.says("200 OK").await;
    at.source
        .batch_execute(
            "create function keep() returns trigger language plpgsql as 'begin return null; end';
             create trigger keep before update on outbox for each row execute function keep()",
        )
        .await
        .unwrap();
    at.append(0..3).await;
    worker.says("of 3 rows that are handled 0 could be marked or deleted").await;
    at.source.batch_execute("drop trigger keep on outbox").await.unwrap();
    at.left(0).await;
    assert_each_once(&at.shop, 3).await;
    worker.stop().await;
}
