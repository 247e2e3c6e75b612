//! An event store as EventStore for Elixir 1.4 makes it (schema version 1.3.2), with the statements by which it appends, links, deletes and acknowledges.

use std::time::Duration;

use projectionist::{
    api::Reason,
    clients::postgres::shard_expression,
    lag::{Note, Pending, Position},
    snapshot::Measured,
};
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::event_stores::{COMMANDED, commanded_appended};
use crate::harness::{
    BUILTIN_CHECKPOINTS, Running, built_in, counted_in_shards, exactly_these_rights_suffice, log_head,
    sampler_connections, server,
};

async fn store(name: &str) -> (String, Client) {
    let url = server().create_database(name).await.unwrap();
    let client = server().connect(name).await.unwrap();
    client.batch_execute(COMMANDED).await.unwrap();
    (url, client)
}

fn appended(stream: &str, events: i64, age: &str) -> String {
    appended_in("public", stream, events, age)
}

fn appended_in(schema: &str, stream: &str, events: i64, age: &str) -> String {
    commanded_appended(
        schema,
        stream,
        events,
        "Happened",
        "''::bytea",
        &format!("clock_timestamp() - interval '{age}'"),
    )
}

async fn append(client: &Client, stream: &str, events: i64) {
    client.batch_execute(&appended(stream, events, "0 s")).await.unwrap();
}

async fn subscribe(client: &Client, stream: &str, name: &str) {
    let insert = "insert into subscriptions (stream_uuid, subscription_name, last_seen) values ($1, $2, 0)";
    client.execute(insert, &[&stream, &name]).await.unwrap();
}

async fn acknowledge(client: &Client, stream: &str, name: &str, last_seen: i64) {
    let update = "update subscriptions set last_seen = $3 where stream_uuid = $1 and subscription_name = $2";
    client.execute(update, &[&stream, &name, &last_seen]).await.unwrap();
}

/// Hard deletes, as `delete_stream` with `:hard` does them.
async fn delete(client: &Client, stream: &str) {
    client
        .batch_execute(&format!(
            "create temporary table gone as select event_id, stream_id from stream_events where stream_id = (
                 select stream_id from streams where stream_uuid = '{stream}');
             delete from stream_events where event_id in (select event_id from gone);
             delete from events where event_id in (select event_id from gone);
             delete from streams where stream_uuid = '{stream}'; drop table gone"
        ))
        .await
        .unwrap();
}

pub fn subscription(fields: Value) -> impl FnOnce(&mut Value) {
    move |spec| {
        *spec = json!({
            "source": { "postgres": { "connection": { "secretRef": { "name": "db" } }, "commanded": fields } },
            "lag": { "target": "5s" },
        });
    }
}

fn staleness(measured: &Measured) -> f64 {
    measured.sample.staleness.unwrap().as_secs_f64()
}

fn lacks_consumer(measured: &Measured) -> bool {
    measured.sample.notes.iter().any(|note| matches!(note, Note::NoConsumer(_)))
}

#[tokio::test]
async fn events_wait_beyond_what_a_subscription_has_acknowledged() {
    let (url, client) = store("commanded_states").await;
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("all", subscription(json!({ "subscription": "orders" })));
    sampler.declare("one", subscription(json!({ "subscription": "orders", "stream": "order-1" })));
    for name in ["all", "one"] {
        sampler.wait_unknown(name, Reason::NeverCommitted).await;
    }
    subscribe(&client, "$all", "orders").await;
    // Before the stream has an event.
    subscribe(&client, "order-1", "orders").await;
    for name in ["all", "one"] {
        assert_eq!(sampler.wait_pending(name, 0).await.sample.staleness, Some(Duration::ZERO), "{name}");
    }
    client.batch_execute(&appended("order-1", 2, "1 hour")).await.unwrap();
    client.batch_execute(&appended("order-2", 3, "1 minute")).await.unwrap();
    let all = sampler.wait_pending("all", 5).await;
    assert_eq!(
        (log_head(&all.sample).raw, log_head(&all.sample).safe, all.sample.arrived),
        (Position(5), Position(5), 5)
    );
    assert!((3_600.0..3_720.0).contains(&staleness(&all)), "{}", staleness(&all));
    let one = sampler.wait_pending("one", 2).await;
    assert_eq!((log_head(&one.sample).raw, one.sample.arrived), (Position(2), 2));
    acknowledge(&client, "$all", "orders", 2).await;
    let next = sampler.wait_pending("all", 3).await;
    assert!((60.0..180.0).contains(&staleness(&next)), "{}", staleness(&next));
    acknowledge(&client, "$all", "orders", 5).await;
    let done = sampler.wait_pending("all", 0).await;
    assert_eq!((done.sample.staleness, done.sample.arrived), (Some(Duration::ZERO), 5));
    sampler.wait_pending("one", 2).await;
    acknowledge(&client, "$all", "orders", 1).await;
    sampler.wait_pending("all", 4).await;
    client.batch_execute(&appended("order-3", 1, "-1 hour")).await.unwrap();
    acknowledge(&client, "$all", "orders", 5).await;
    let ahead = sampler.wait_pending("all", 1).await;
    assert!(ahead.sample.ahead_of_clock > Duration::from_secs(3_500), "by the application's clock: {ahead:?}");
    append(&client, "order-4", 20_000).await;
    let bound = |m: &Measured| m.assessment.pending == Pending { events: 20_001, exact: false };
    sampler.wait_measured("an upper bound", "all", bound).await;
    assert_eq!(sampler_connections(&client, "commanded_states").await, 1);
}

#[tokio::test]
async fn links_count_in_their_stream_and_deleted_events_wait_nowhere() {
    let (url, client) = store("commanded_deletes").await;
    for (stream, name) in [("$all", "all"), ("order-1", "one"), ("links", "links")] {
        subscribe(&client, stream, name).await;
    }
    append(&client, "order-1", 4).await;
    append(&client, "order-2", 2).await;
    let link = "insert into streams (stream_uuid, stream_version) values ('links', 2);
        insert into stream_events select event_id, (select stream_id from streams where stream_uuid = 'links'), original_stream_version,
            original_stream_id, original_stream_version
        from stream_events e where stream_id = 0 and stream_version > 4";
    client.batch_execute(link).await.unwrap();
    let mut sampler = Running::start(&[("db", &url)]);
    for (stream, name) in [("$all", "all"), ("order-1", "one"), ("links", "links")] {
        sampler.declare(name, subscription(json!({ "subscription": name, "stream": stream })));
    }
    for (name, pending) in [("all", 6), ("one", 4), ("links", 2)] {
        sampler.wait_pending(name, pending).await;
    }
    acknowledge(&client, "$all", "all", 1).await;
    acknowledge(&client, "order-1", "one", 1).await;
    delete(&client, "order-1").await;
    // The numbers of `$all` have a gap now, and those that are left are counted.
    let left = sampler.wait_pending("all", 2).await;
    assert_eq!(log_head(&left.sample).raw, Position(6));
    let gone = sampler.wait_unknown("one", Reason::CheckpointBeyondHead).await;
    assert!(gone.message.contains("beyond"), "{}", gone.message);
    client.batch_execute("update streams set deleted_at = now() where stream_uuid = 'links'").await.unwrap();
    let soft = sampler.wait_unknown("links", Reason::StreamNotFound).await;
    assert!(soft.message.contains("schema public: stream links is deleted"), "{}", soft.message);
    sampler.wait_pending("all", 2).await;
}

#[tokio::test]
async fn an_open_append_makes_others_wait_so_that_no_number_is_passed_over() {
    let (url, client) = store("commanded_open").await;
    subscribe(&client, "$all", "orders").await;
    append(&client, "order-1", 1).await;
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("a", subscription(json!({ "subscription": "orders" })));
    sampler.wait_pending("a", 1).await;
    let slow = server().connect("commanded_open").await.unwrap();
    slow.batch_execute(&format!("begin; {}", appended("order-2", 1, "0 s"))).await.unwrap();
    let other = server().connect("commanded_open").await.unwrap();
    let blocked = tokio::spawn(async move { append(&other, "order-3", 2).await });
    let waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = 'commanded_open'";
    let ask = || async { client.query_one(waiting, &[]).await?.try_get::<_, i64>(0) };
    test_cluster::eventually_is(crate::harness::SOON, "the other append waits", |n| *n == 1, ask).await.unwrap();
    let samples = || sampler.metrics.samples.load(std::sync::atomic::Ordering::Relaxed);
    let (before, enough) = (samples(), || async { Ok::<_, std::convert::Infallible>(samples()) });
    test_cluster::eventually_is(crate::harness::SOON, "sampled", |now| *now > before + 2, enough).await.unwrap();
    let held = sampler.wait_pending("a", 1).await;
    assert_eq!((log_head(&held.sample).raw, held.sample.held_back), (Position(1), 0));
    slow.batch_execute("commit").await.unwrap();
    blocked.await.unwrap();
    let all = sampler.wait_pending("a", 4).await;
    assert_eq!((log_head(&all.sample).raw, all.sample.arrived), (Position(4), 3));
}

#[tokio::test]
async fn the_store_s_own_notifications_wake_the_sampler_and_a_subscription_that_no_process_holds_is_told() {
    let (url, client) = store("commanded_lock").await;
    subscribe(&client, "$all", "orders").await;
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("a", |spec| {
        subscription(json!({ "subscription": "orders" }))(spec);
        spec["lag"]["target"] = json!("1h");
    });
    assert!(!lacks_consumer(&*sampler.wait_pending("a", 0).await), "nothing waits");
    for round in 1..=3 {
        let before = sampler.pushes();
        append(&client, "order-1", 1).await;
        sampler.wait_woken(before).await;
        assert!(lacks_consumer(&*sampler.wait_pending("a", round).await));
    }
    let lock = "select pg_try_advisory_lock('public.subscriptions'::regclass::oid::int, subscription_id::int) from subscriptions";
    client.batch_execute(lock).await.unwrap();
    append(&client, "order-1", 1).await;
    assert!(!lacks_consumer(&*sampler.wait_pending("a", 4).await));
    client.batch_execute("select pg_advisory_unlock_all()").await.unwrap();
    // Versions before 1.1 lock the id alone.
    client.batch_execute("select pg_try_advisory_lock(subscription_id) from subscriptions").await.unwrap();
    append(&client, "order-1", 1).await;
    assert!(!lacks_consumer(&*sampler.wait_pending("a", 5).await));
}

#[tokio::test]
async fn a_store_that_is_emptied_or_made_again_counts_nothing_as_arrived() {
    let (url, client) = store("commanded_again").await;
    subscribe(&client, "$all", "orders").await;
    append(&client, "order-1", 5).await;
    acknowledge(&client, "$all", "orders", 5).await;
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("a", subscription(json!({ "subscription": "orders" })));
    sampler.wait_pending("a", 0).await;
    // As after a restore of an older state: the subscription's row is newer than the events.
    client
        .batch_execute("update streams set stream_version = 3 where stream_id = 0; delete from stream_events where stream_id = 0 and stream_version > 3")
        .await
        .unwrap();
    sampler.wait_unknown("a", Reason::CheckpointBeyondHead).await;
    let drop = "drop table streams, events, stream_events, subscriptions; drop function notify_events";
    client.batch_execute(drop).await.unwrap();
    let gone = sampler.wait_unknown("a", Reason::TableNotFound).await;
    for part in ["event store in schema public: ", "EventStore for Elixir 1.2", "spec.source.postgres.commanded.schema"]
    {
        assert!(gone.message.contains(part), "{part}: {}", gone.message);
    }
    client.batch_execute(&format!("begin; {COMMANDED}")).await.unwrap();
    client.batch_execute(&appended("order-9", 7, "0 s")).await.unwrap();
    client.batch_execute("commit").await.unwrap();
    sampler.wait_unknown("a", Reason::NeverCommitted).await;
    subscribe(&client, "$all", "orders").await;
    assert_eq!(sampler.wait_pending("a", 7).await.sample.arrived, 0);
    client.batch_execute("alter table streams drop column deleted_at").await.unwrap();
    let old = sampler.wait_unknown("a", Reason::ColumnNotFound).await;
    assert!(old.message.contains("event_store.migrate"), "{}", old.message);
}

#[tokio::test]
async fn the_rights_that_the_page_names_suffice_and_each_is_needed() {
    let (_, client) = store("commanded_rights").await;
    server().create_role("commanded_reader", "hunter2").await.unwrap();
    client.batch_execute("create schema own; alter table streams set schema own; alter table events set schema own; alter table stream_events set schema own; alter table subscriptions set schema own").await.unwrap();
    client.batch_execute("set search_path to own").await.unwrap();
    subscribe(&client, "$all", "orders").await;
    client.batch_execute(&appended_in("own", "order-1", 2, "0 s")).await.unwrap();
    let mut sampler = Running::start(&[("db", &server().url_as("commanded_reader", "hunter2", "commanded_rights"))]);
    sampler.declare("a", subscription(json!({ "subscription": "orders", "schema": "own" })));
    let grants = [
        "grant usage on schema own to commanded_reader",
        "grant select (stream_id, stream_uuid, stream_version, deleted_at) on own.streams to commanded_reader",
        "grant select (stream_id, stream_version, event_id) on own.stream_events to commanded_reader",
        "grant select (event_id, created_at) on own.events to commanded_reader",
        "grant select (subscription_id, stream_uuid, subscription_name, last_seen) on own.subscriptions to commanded_reader",
    ];
    exactly_these_rights_suffice(&client, &sampler, "a", &grants, 2).await;
    client.batch_execute("alter table own.stream_events enable row level security").await.unwrap();
    let hidden = sampler.wait_unknown("a", Reason::PermissionDenied).await;
    assert!(hidden.message.contains("create policy") && hidden.message.contains("stream_events"), "{}", hidden.message);
    client
        .batch_execute("create policy p on own.stream_events for select to commanded_reader using (true)")
        .await
        .unwrap();
    sampler.wait_pending("a", 2).await;
}

#[tokio::test]
async fn one_statement_a_poll_serves_all_subscriptions_and_a_locked_table_only_delays_its_own_store() {
    let (url, client) = store("commanded_many").await;
    client.batch_execute("create schema other; set search_path to other").await.unwrap();
    client.batch_execute(COMMANDED).await.unwrap();
    subscribe(&client, "$all", "orders").await;
    client.batch_execute("set search_path to public").await.unwrap();
    append(&client, "order-1", 100).await;
    client
        .batch_execute("insert into subscriptions (stream_uuid, subscription_name, last_seen) select '$all', 's' || n, n from generate_series(1, 100) n")
        .await
        .unwrap();
    let mut sampler = Running::start(&[("db", &url)]);
    for n in 1..=100 {
        sampler.declare(&format!("p{n}"), subscription(json!({ "subscription": format!("s{n}") })));
    }
    sampler.declare("other", subscription(json!({ "subscription": "orders", "schema": "other" })));
    for n in 1..=100 {
        sampler.wait_pending(&format!("p{n}"), 100 - n).await;
    }
    sampler.wait_pending("other", 0).await;
    assert_eq!(sampler_connections(&client, "commanded_many").await, 1);
    // The subscriptions' table is read once a poll for all of them; each reads its own rows by index.
    let holder = server().connect("commanded_many").await.unwrap();
    holder.batch_execute("begin; lock table other.stream_events").await.unwrap();
    let locked = sampler.wait_unknown("other", Reason::TimedOut).await;
    assert!(locked.message.contains("event store in schema other"), "{}", locked.message);
    append(&client, "order-2", 1).await;
    for n in [1, 50, 100] {
        sampler.wait_pending(&format!("p{n}"), 101 - n).await;
    }
    holder.batch_execute("rollback").await.unwrap();
    sampler.wait_pending("other", 0).await;
}

#[tokio::test]
async fn the_built_in_projectors_own_checkpoint_is_counted_by_shard_over_the_events_of_all_streams() {
    let (_, client) = store("commanded_builtin").await;
    server().create_role("commanded_projector", "hunter2").await.unwrap();
    for n in 0..20 {
        append(&client, &format!("order-{n}"), 3).await;
    }
    // Events that are gone leave gaps, and a deleted last one moves no end.
    delete(&client, "order-7").await;
    delete(&client, "order-19").await;
    let checkpoints = format!(
        "{BUILTIN_CHECKPOINTS} insert into projectionist_checkpoints select 'shop/a', shard, 4, 15 * shard from generate_series(0, 3) shard;
         grant select on projectionist_checkpoints to commanded_projector"
    );
    client.batch_execute(&checkpoints).await.unwrap();
    let url = server().url_as("commanded_projector", "hunter2", "commanded_builtin");
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("a", built_in(json!({ "commanded": {} })));
    let count = format!(
        "select count(*) from stream_events n join streams s on s.stream_id = n.original_stream_id join projectionist_checkpoints c on c.shard = {}
         where n.stream_id = 0 and n.stream_version > c.position",
        shard_expression("stream_uuid", 4)
    );
    let expected = counted_in_shards(&client, &count).await;
    let grants = [
        "grant select (stream_id, stream_uuid, stream_version) on streams to commanded_projector",
        "grant select (stream_id, stream_version, event_id, original_stream_id) on stream_events to commanded_projector",
        "grant select (event_id, event_type, data, created_at) on events to commanded_projector",
    ];
    exactly_these_rights_suffice(&client, &sampler, "a", &grants, expected.iter().sum()).await;
    let seen = sampler.wait_measured("by shard", "a", |m| m.sample.pending_by_shard == expected).await;
    assert_eq!((log_head(&seen.sample).raw, log_head(&seen.sample).safe), (Position(60), Position(60)));
    // An open append holds nothing back: its numbers are not there for others.
    let slow = server().connect("commanded_builtin").await.unwrap();
    slow.batch_execute(&format!("begin; {}", appended("order-1", 1, "0 s"))).await.unwrap();
    let held = sampler.wait_pending("a", expected.iter().sum()).await;
    assert_eq!((held.sample.held_back, log_head(&held.sample).safe), (0, Position(60)));
    slow.batch_execute("commit").await.unwrap();
    sampler.wait_pending("a", expected.iter().sum::<u64>() + 1).await;
    let policy = "create policy few on events for select to commanded_projector using (event_type = 'Happened'); alter table events enable row level security";
    client.batch_execute(policy).await.unwrap();
    let hidden = sampler.wait_unknown("a", Reason::PermissionDenied).await;
    assert!(hidden.message.contains("row security may hide parts of events"), "{}", hidden.message);
    client.batch_execute("drop table stream_events cascade").await.unwrap();
    let gone = sampler.wait_unknown("a", Reason::TableNotFound).await;
    assert!(gone.message.contains("spec.source.postgres.commanded.schema"), "{}", gone.message);
}
