//! Outboxes: which rows wait, since when, and what is told of a table that cannot be one.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use projectionist::{
    api::Reason,
    lag::{Certain, CheckpointState, Note, Pending},
    snapshot::Measured,
};
use serde_json::{Value, json};
use test_cluster::Postgres;
use tokio_postgres::Client;

use crate::harness::{Running, sampler_connections, server};

const TABLE: &str = "create table outbox (id uuid primary key default gen_random_uuid(), topic text not null default 'orders', key text not null default 'k',
    status text not null default 'pending', created_at timestamptz default clock_timestamp(), sent_at timestamptz)";

async fn database(server: &Postgres, name: &str) -> (String, Client) {
    let url = server.create_database(name).await.unwrap();
    let client = server.connect(name).await.unwrap();
    client.batch_execute(TABLE).await.unwrap();
    (url, client)
}

fn declare(sampler: &mut Running, name: &str, outbox: &Value) {
    declare_with_target(sampler, name, outbox, "5s");
}

fn declare_with_target(sampler: &mut Running, name: &str, outbox: &Value, target: &str) {
    sampler.declare(name, |spec| {
        spec["lag"]["target"] = json!(target);
        spec["source"]["postgres"] = json!({ "connection": { "secretRef": { "name": "db" } }, "outbox": outbox });
        let fields = spec.as_object_mut().unwrap();
        fields.remove("checkpoint");
        fields.remove("readStore");
    });
}

fn handled(measured: &Measured) -> u64 {
    match measured.sample.checkpoint {
        CheckpointState::Handled(handled) => handled,
        ref other => panic!("an outbox keeps no position: {other:?}"),
    }
}

async fn insert(client: &Client, count: i64) {
    client
        .execute("insert into outbox (key) select 'k' || n from generate_series(1, $1::bigint) n", &[&count])
        .await
        .unwrap();
}

#[tokio::test]
async fn rows_wait_until_they_are_sent_in_each_of_the_ways_to_say_so() {
    let (url, client) = database(server(), "outbox_ways").await;
    let mut sampler = Running::start(&[("db", &url)]);
    declare(&mut sampler, "column", &json!({ "sentAt": "sent_at" }));
    declare(&mut sampler, "status", &json!({ "unsent": "status = 'pending'" }));
    declare(&mut sampler, "deleted", &json!({}));
    for name in ["column", "status", "deleted"] {
        let empty = sampler.wait_pending(name, 0).await;
        assert_eq!((empty.assessment.staleness, handled(&empty)), (Some(Duration::ZERO), 0));
    }
    client
        .batch_execute("insert into outbox (created_at) select now() - interval '1 minute' from generate_series(1, 7)")
        .await
        .unwrap();
    for name in ["column", "status", "deleted"] {
        let behind = sampler.wait_pending(name, 7).await;
        let staleness = behind.assessment.staleness.unwrap().as_secs_f64();
        assert!((60.0..90.0).contains(&staleness), "{name}: {staleness}");
        assert_eq!(behind.sample.arrived, 7, "{name}");
    }
    client
        .batch_execute("update outbox set sent_at = now(), status = 'sent' where id in (select id from outbox limit 4)")
        .await
        .unwrap();
    for name in ["column", "status"] {
        assert_eq!(handled(&*sampler.wait_pending(name, 3).await), 4, "{name}");
    }
    sampler.wait_pending("deleted", 7).await;
    client.batch_execute("delete from outbox").await.unwrap();
    for name in ["column", "status", "deleted"] {
        let sent = sampler.wait_pending(name, 0).await;
        assert_eq!((sent.assessment.staleness, handled(&sent)), (Some(Duration::ZERO), 7), "{name}");
    }
    assert_eq!(sampler_connections(&client, "outbox_ways").await, 1);
}

#[tokio::test]
async fn rows_that_come_and_go_between_two_polls_are_counted_by_the_server() {
    let (url, client) = database(server(), "outbox_rates").await;
    let mut sampler = Running::start(&[("db", &url)]);
    declare(&mut sampler, "deleted", &json!({}));
    declare(&mut sampler, "column", &json!({ "sentAt": "sent_at" }));
    declare(&mut sampler, "invoices", &json!({ "sentAt": "sent_at", "where": "topic = 'invoices'" }));
    for name in ["deleted", "column", "invoices"] {
        sampler.wait_pending(name, 0).await;
    }
    client.batch_execute("begin").await.unwrap();
    insert(&client, 500).await;
    client.batch_execute("delete from outbox; commit").await.unwrap();
    for name in ["deleted", "column"] {
        let all = sampler.wait_measured("all are counted", name, |m| m.sample.arrived == 500).await;
        assert_eq!((all.assessment.pending.events, handled(&all)), (0, 500), "{name}");
    }
    client.batch_execute("insert into outbox (topic) values ('invoices')").await.unwrap();
    let other = sampler.wait_pending("invoices", 1).await;
    assert_eq!(other.sample.arrived, 1, "the server's counter is that of the whole table");
}

#[tokio::test]
async fn with_a_position_the_new_rows_of_a_topic_are_counted() {
    let (url, client) = database(server(), "outbox_topics").await;
    client.batch_execute("alter table outbox add column n bigserial unique").await.unwrap();
    insert(&client, 3).await;
    let mut sampler = Running::start(&[("db", &url)]);
    declare(&mut sampler, "orders", &json!({ "sentAt": "sent_at", "where": "topic = 'orders'", "position": "n" }));
    let first = sampler.wait_pending("orders", 3).await;
    assert_eq!(first.sample.arrived, 0);
    client
        .batch_execute("insert into outbox (topic, sent_at) select case when n % 2 = 0 then 'orders' else 'other' end, now() from generate_series(1, 200) n")
        .await
        .unwrap();
    let seen = sampler.wait_measured("all are counted", "orders", |m| m.sample.arrived == 100).await;
    assert_eq!((seen.assessment.pending.events, handled(&seen)), (3, 100));
}

#[tokio::test]
async fn what_is_not_committed_does_not_wait_yet_and_what_a_worker_holds_still_does() {
    let (url, client) = database(server(), "outbox_locks").await;
    let mut sampler = Running::start(&[("db", &url)]);
    declare(&mut sampler, "a", &json!({ "sentAt": "sent_at" }));
    sampler.wait_pending("a", 0).await;
    let writer = server().connect("outbox_locks").await.unwrap();
    writer.batch_execute("begin; insert into outbox default values").await.unwrap();
    insert(&client, 5).await;
    sampler.wait_pending("a", 5).await;
    writer.batch_execute("rollback").await.unwrap();
    let worker = server().connect("outbox_locks").await.unwrap();
    worker
        .batch_execute("begin; update outbox set sent_at = now() where id in (select id from outbox where sent_at is null order by created_at limit 2 for update skip locked)")
        .await
        .unwrap();
    insert(&client, 1).await;
    sampler.wait_pending("a", 6).await;
    worker.batch_execute("commit").await.unwrap();
    assert_eq!(handled(&*sampler.wait_pending("a", 4).await), 2);
}

#[tokio::test]
async fn times_that_tell_no_age_are_unknown_and_those_of_the_future_are_told() {
    let (url, client) = database(server(), "outbox_times").await;
    client
        .batch_execute(
            "create table local (created_at timestamp); alter database outbox_times set timezone = 'Asia/Tokyo'",
        )
        .await
        .unwrap();
    let mut sampler = Running::start(&[("db", &url)]);
    declare(&mut sampler, "a", &json!({}));
    sampler.wait_pending("a", 0).await;
    client.batch_execute("insert into outbox (created_at) values (now() + interval '1 hour')").await.unwrap();
    let ahead = sampler.wait_pending("a", 1).await;
    assert!(ahead.sample.ahead_of_clock > Duration::from_secs(3_500), "{ahead:?}");
    for time in ["null", "'infinity'", "'-infinity'", "'4713-01-01 00:00:00 BC'"] {
        client
            .batch_execute(&format!("delete from outbox; insert into outbox (created_at) values ({time}), (now())"))
            .await
            .unwrap();
        let unknown =
            sampler.wait_measured("unknown", "a", |m| m.assessment.pending.events == 2 && m.sample.staleness.is_none());
        unknown.await;
    }
    declare(&mut sampler, "no-zone", &json!({ "table": "local" }));
    let refused = sampler.wait_unknown("no-zone", Reason::ColumnTypeUnsuitable).await;
    assert!(
        refused.message.contains("column created_at") && refused.message.contains("outbox.timeZone"),
        "{}",
        refused.message
    );
    declare(&mut sampler, "no-such-zone", &json!({ "table": "local", "timeZone": "Etc/Nowhere" }));
    let refused = sampler.wait_unknown("no-such-zone", Reason::InvalidSpec).await;
    assert!(refused.message.contains("knows no time zone Etc/Nowhere"), "{}", refused.message);
    declare(&mut sampler, "zone", &json!({ "table": "local", "timeZone": "UTC" }));
    client.batch_execute("insert into local values (now() at time zone 'utc' - interval '1 minute')").await.unwrap();
    let aged = sampler.wait_pending("zone", 1).await.assessment.staleness.unwrap().as_secs_f64();
    assert!((60.0..90.0).contains(&aged), "{aged}");
}

#[tokio::test]
async fn a_table_that_is_made_again_or_truncated_has_sent_nothing() {
    let (url, client) = database(server(), "outbox_again").await;
    let mut sampler = Running::start(&[("db", &url)]);
    declare(&mut sampler, "a", &json!({}));
    sampler.wait_pending("a", 0).await;
    let again = format!("drop table outbox; {TABLE}");
    for (again, name, before) in [("truncate outbox", "truncated", 40), (&*again, "made again", 41)] {
        insert(&client, 40).await;
        sampler.wait_pending("a", before).await;
        client.batch_execute(&format!("{again}; insert into outbox default values")).await.unwrap();
        let after = sampler.wait_pending("a", 1).await;
        assert_eq!((after.sample.arrived, handled(&after)), (0, 0), "{name}");
    }
    client.batch_execute("drop table outbox").await.unwrap();
    let gone = sampler.wait_unknown("a", Reason::TableNotFound).await;
    assert!(gone.message.contains("outbox outbox: "), "{}", gone.message);
    client.batch_execute(TABLE).await.unwrap();
    sampler.wait_pending("a", 0).await;
}

#[tokio::test]
async fn the_right_to_read_the_named_columns_suffices_and_each_is_needed() {
    let (url, client) = database(server(), "outbox_rights").await;
    drop(url);
    server().create_role("outbox_reader", "hunter2").await.unwrap();
    insert(&client, 2).await;
    let mut sampler = Running::start(&[("db", &server().url_as("outbox_reader", "hunter2", "outbox_rights"))]);
    declare(&mut sampler, "a", &json!({ "sentAt": "sent_at", "where": "topic = 'orders'" }));
    sampler.wait_unknown("a", Reason::PermissionDenied).await;
    client.batch_execute("grant select (created_at, sent_at) on outbox to outbox_reader").await.unwrap();
    let missing = sampler.wait_unknown("a", Reason::PermissionDenied).await;
    assert!(missing.message.contains("outbox"), "{}", missing.message);
    client.batch_execute("grant select (topic) on outbox to outbox_reader").await.unwrap();
    sampler.wait_pending("a", 2).await;
    client.batch_execute("alter table outbox enable row level security").await.unwrap();
    let hidden = sampler.wait_unknown("a", Reason::PermissionDenied).await;
    assert!(hidden.message.contains("create policy"), "{}", hidden.message);
    client
        .batch_execute("create policy projectionist on outbox for select to outbox_reader using (true)")
        .await
        .unwrap();
    sampler.wait_pending("a", 2).await;
}

#[tokio::test]
async fn what_cannot_be_an_outbox_is_refused_in_words_and_the_others_go_on() {
    let (url, client) = database(server(), "outbox_refused").await;
    client
        .batch_execute(
            "create view seen as select * from outbox; create table held (like outbox);
             create function effect() returns boolean language sql as 'select true'",
        )
        .await
        .unwrap();
    let mut sampler = Running::start(&[("db", &url)]);
    declare(&mut sampler, "good", &json!({ "sentAt": "sent_at" }));
    declare(&mut sampler, "held", &json!({ "table": "held" }));
    for name in ["good", "held"] {
        sampler.wait_pending(name, 0).await;
    }
    let cases = [
        ("no-table", json!({ "table": "nowhere" }), Reason::TableNotFound, "outbox nowhere"),
        ("no-column", json!({ "sentAt": "sent" }), Reason::ColumnNotFound, "sent"),
        ("odd-time", json!({ "createdAt": "topic" }), Reason::ColumnTypeUnsuitable, "column topic must be timestamptz"),
        ("view", json!({ "table": "seen" }), Reason::InvalidSpec, "must be a table"),
        (
            "no-condition",
            json!({ "unsent": "status" }),
            Reason::ColumnTypeUnsuitable,
            "outbox.unsent: it must be a condition",
        ),
        ("subquery", json!({ "unsent": "exists (select from outbox)" }), Reason::InvalidSpec, "outbox.unsent"),
        ("breaks-out", json!({ "where": "true) or (true" }), Reason::InvalidSpec, "outbox.where"),
        ("effect", json!({ "where": "effect()" }), Reason::InvalidSpec, "effect is volatile"),
        (
            "text-position",
            json!({ "where": "true", "position": "topic" }),
            Reason::ColumnTypeUnsuitable,
            "column topic must be smallint",
        ),
    ];
    for (name, outbox, _, _) in &cases {
        declare(&mut sampler, name, outbox);
    }
    for (name, _, reason, words) in cases {
        let refused = sampler.wait_unknown(name, reason).await;
        assert!(refused.message.contains(words), "{name}: {}", refused.message);
    }
    let holder = server().connect("outbox_refused").await.unwrap();
    holder.batch_execute("begin; lock table held").await.unwrap();
    let locked = sampler.wait_unknown("held", Reason::TimedOut).await;
    assert!(locked.message.contains("outbox held"), "{}", locked.message);
    for round in 1..=3 {
        insert(&client, 1).await;
        sampler.wait_pending("good", round).await;
    }
    holder.batch_execute("rollback").await.unwrap();
    sampler.wait_pending("held", 0).await;
}

#[tokio::test]
async fn a_partitioned_outbox_is_one_and_a_notification_wakes_the_sampler() {
    let (url, client) = database(server(), "outbox_parts").await;
    client
        .batch_execute(
            "create table parts (created_at timestamptz not null default clock_timestamp(), sent boolean not null default false) partition by list (sent);
             create table waiting partition of parts for values in (false); create table done partition of parts for values in (true)",
        )
        .await
        .unwrap();
    let mut sampler = Running::start(&[("db", &url)]);
    let parts = json!({ "table": "parts", "unsent": "not sent", "notifyChannel": "Outbox" });
    declare_with_target(&mut sampler, "a", &parts, "1h");
    sampler.wait_pending("a", 0).await;
    for round in 1..=3 {
        sampler.is_woken_by(&client, "insert into parts default values; notify \"Outbox\"", ("a", round)).await;
    }
}

#[tokio::test]
async fn a_standby_is_refused_since_it_may_show_rows_that_were_sent_long_ago() {
    let own = Postgres::on_loopback().unwrap();
    let (_, client) = database(&own, "primary").await;
    insert(&client, 1).await;
    let standby = own.standby().unwrap();
    let mut sampler = Running::start(&[("db", &standby.url("primary"))]);
    declare(&mut sampler, "a", &json!({ "sentAt": "sent_at" }));
    let refused = sampler.wait_unknown("a", Reason::SourceIsReplica).await;
    assert!(refused.message.contains("name the primary"), "{}", refused.message);
}

#[tokio::test]
async fn of_more_rows_than_are_counted_a_lower_bound_is_told_and_the_flow_goes_on_when_fewer_wait() {
    let (url, client) = database(server(), "outbox_many").await;
    // Without indexes and log, since a million rows come and go.
    let table = "create unlogged table many (number int not null, created_at timestamptz not null default now())";
    client.batch_execute(table).await.unwrap();
    client.batch_execute("insert into many values (0)").await.unwrap();
    let mut sampler = Running::start(&[("db", &url)]);
    declare(&mut sampler, "many", &json!({ "table": "many" }));
    sampler.wait_pending("many", 1).await;
    client.batch_execute("insert into many select generate_series(1, 1000050)").await.unwrap();
    let cut = sampler.wait_measured("cut", "many", |m| !m.assessment.pending.exact).await;
    assert_eq!(cut.assessment.pending, Pending { events: 1_000_000, exact: false });
    assert_eq!((cut.sample.certain, cut.assessment.staleness), (Some(Certain::AtLeast(1_000_000)), None));
    assert_eq!(cut.assessment.at_least.unwrap().events, 1_000_000);
    assert!(cut.sample.notes.iter().any(|note| matches!(note, Note::Estimated(_))), "{:?}", cut.sample.notes);
    client.batch_execute("delete from many where number <> 7").await.unwrap();
    // A session of the server may tell its counter a second after its commit and later, so that the first row may be told after it was seen.
    let one = Pending { events: 1, exact: true };
    let is_whole = |m: &Measured| m.assessment.pending == one && m.sample.arrived >= 1_000_050;
    let few = sampler.wait_measured("all that came", "many", is_whole).await;
    assert!(few.sample.arrived <= 1_000_051, "{}", few.sample.arrived);
    assert_eq!(handled(&few), few.sample.arrived, "one waited before, and one does now");
}

#[tokio::test]
async fn more_outboxes_than_a_poll_has_time_for_are_all_measured_and_none_is_unknown_for_that() {
    const MANY: usize = 200;
    let (url, client) = database(server(), "outbox_turns").await;
    // A server that takes its time over each: over all of them longer than a poll lasts.
    let nap = "create function nap(topic text) returns boolean language plpgsql stable as 'begin perform pg_sleep(0.03); return true; end'";
    client.batch_execute(nap).await.unwrap();
    let insert = format!("insert into outbox (topic) select 't' || n from generate_series(1, {MANY}) n");
    client.batch_execute(&insert).await.unwrap();
    let mut sampler = Running::start(&[("db", &url)]);
    let names: Vec<String> = (1..=MANY).map(|n| format!("t{n}")).collect();
    for name in &names {
        let its_own = format!("topic = '{name}' and nap(topic)");
        declare(&mut sampler, name, &json!({ "sentAt": "sent_at", "where": its_own }));
    }
    for waiting in 1..=2 {
        for name in &names {
            sampler.wait_pending(name, waiting).await;
            assert_eq!(sampler.metrics.failures.load(Relaxed), 0, "none is unknown");
        }
        client.batch_execute(&insert).await.unwrap();
    }
    assert_eq!(sampler_connections(&client, "outbox_turns").await, 1);
}
