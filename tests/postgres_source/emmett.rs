//! An event store as emmett-postgresql 0.42 makes it, with processors whose checkpoint is a position (0.42), or transaction and position (0.43).

use std::{sync::OnceLock, time::Duration};

use projectionist::{
    api::Reason,
    clients::postgres::shard_expression,
    lag::{Note, Pending, Position},
    snapshot::Measured,
};
use serde_json::{Value, json};
use test_cluster::Postgres;
use tokio_postgres::Client;

use crate::event_stores::{EMMETT, emmett_appended};
use crate::harness::{
    BUILTIN_CHECKPOINTS, Running, built_in, counted_in_shards, exactly_these_rights_suffice, log_head,
    sampler_connections,
};

/// A server for these tests alone: any transaction that runs on it holds messages back, whatever its database.
fn server() -> &'static Postgres {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    SERVER.get_or_init(|| Postgres::on_loopback().unwrap())
}

async fn store(name: &str) -> (String, Client) {
    let url = server().create_database(name).await.unwrap();
    let client = server().connect(name).await.unwrap();
    client.batch_execute(EMMETT).await.unwrap();
    (url, client)
}

fn appended(stream: &str, messages: i64) -> String {
    appended_in("public", stream, messages)
}

fn appended_in(schema: &str, stream: &str, messages: i64) -> String {
    emmett_appended(schema, stream, messages, "'emt:default', false", "'{}'")
}

async fn append(client: &Client, stream: &str, messages: i64) {
    client.batch_execute(&appended(stream, messages)).await.unwrap();
}

/// As a processor stores how far it has come.
async fn processed(client: &Client, processor: &str, checkpoint: &str) {
    let upsert = "insert into emt_processors (processor_id, last_processed_checkpoint, last_processed_transaction_id)
        values ($1, $2, pg_current_xact_id())
        on conflict (processor_id, partition, version) do update set last_processed_checkpoint = excluded.last_processed_checkpoint";
    client.execute(upsert, &[&processor, &checkpoint]).await.unwrap();
}

/// The position as Emmett 0.42 writes it.
fn position(position: i64) -> String {
    format!("{position:019}")
}

/// The checkpoint after this message as Emmett 0.43 writes it.
async fn pair(client: &Client, position: i64) -> String {
    let of = "select transaction_id::text from emt_messages where global_position = $1";
    let transaction: String = client.query_one(of, &[&position]).await.unwrap().get(0);
    format!("{transaction:0>20}:{position:019}")
}

fn processor(fields: Value) -> impl FnOnce(&mut Value) {
    move |spec| {
        *spec = json!({
            "source": { "postgres": { "connection": { "secretRef": { "name": "db" } }, "emmett": fields } },
            "lag": { "target": "5s" },
        });
    }
}

fn held(measured: &Measured) -> (u64, u64) {
    (measured.assessment.pending.events, measured.sample.held_back)
}

#[tokio::test]
async fn messages_wait_beyond_the_checkpoint_in_either_of_its_forms() {
    let (url, client) = store("emmett_states").await;
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("position", processor(json!({ "processor": "position" })));
    sampler.declare("pair", processor(json!({ "processor": "pair" })));
    sampler.declare("second", processor(json!({ "processor": "position", "version": 2 })));
    sampler.declare("other", processor(json!({ "processor": "position", "partition": "other" })));
    for name in ["position", "pair", "second", "other"] {
        sampler.wait_unknown(name, Reason::NeverCommitted).await;
    }
    for name in ["position", "pair"] {
        processed(&client, name, &position(0)).await;
        let empty = sampler.wait_pending(name, 0).await;
        assert_eq!((empty.sample.staleness, empty.sample.arrived), (Some(Duration::ZERO), 0), "{name}");
    }
    append(&client, "order-1", 2).await;
    append(&client, "order-2", 3).await;
    client
        .batch_execute("update emt_messages set created = now() - interval '1 hour' where global_position = 1; update emt_messages set created = now() - interval '1 minute' where global_position = 3")
        .await
        .unwrap();
    for name in ["position", "pair"] {
        let stale = |m: &Measured| m.sample.staleness.is_some_and(|age| age >= Duration::from_secs(3_600));
        sampler.wait_measured("the oldest by its own time", name, stale).await;
        let behind = sampler.wait_pending(name, 5).await;
        assert_eq!((log_head(&behind.sample).raw, behind.sample.arrived), (Position(5), 5), "{name}");
    }
    processed(&client, "position", &position(2)).await;
    processed(&client, "pair", &pair(&client, 2).await).await;
    for name in ["position", "pair"] {
        let next = sampler.wait_pending(name, 3).await.sample.staleness.unwrap().as_secs();
        assert!((60..180).contains(&next), "{name}: {next}");
    }
    client.batch_execute("update emt_messages set is_archived = true where global_position = 4").await.unwrap();
    for name in ["position", "pair"] {
        assert_eq!(sampler.wait_pending(name, 2).await.sample.arrived, 5, "{name}: archived ones are not handled");
    }
    processed(&client, "position", &position(5)).await;
    processed(&client, "pair", &pair(&client, 5).await).await;
    // A checkpoint at a message that is archived is not beyond the head.
    client.batch_execute("update emt_messages set is_archived = true where global_position = 5").await.unwrap();
    for name in ["position", "pair"] {
        assert_eq!(sampler.wait_pending(name, 0).await.sample.staleness, Some(Duration::ZERO), "{name}");
    }
    processed(&client, "position", &position(1)).await;
    sampler.wait_pending("position", 2).await;
    processed(&client, "position", "soon").await;
    let odd = sampler.wait_unknown("position", Reason::InvalidAnswer).await;
    assert!(odd.message.contains("processor position is neither a position nor"), "{}", odd.message);
    processed(&client, "position", &"9".repeat(19)).await;
    sampler.wait_unknown("position", Reason::CheckpointBeyondHead).await;
    sampler.wait_pending("pair", 0).await;
    append(&client, "order-3", 20_000).await;
    processed(&client, "position", &position(5)).await;
    let bound = |m: &Measured| m.assessment.pending == Pending { events: 20_000, exact: false };
    let dense = sampler.wait_measured("an upper bound", "position", bound).await;
    assert!(dense.sample.tells_rates, "its positions have no gaps");
    // The order of pairs is not that of positions, which therefore bound nothing.
    let counted = |m: &Measured| m.assessment.pending == Pending { events: 10_001, exact: false };
    let least = sampler.wait_measured("a lower bound", "pair", counted).await;
    let says = |note: &Note| matches!(note, Note::Estimated(why) if why.contains("at least as many"));
    assert!(!least.sample.tells_rates && least.sample.notes.iter().any(says), "{:?}", least.sample.notes);
    // Another partition has drawn every second position.
    let spread = "update emt_messages set global_position = 2 * global_position where global_position > 5";
    client.batch_execute(spread).await.unwrap();
    let gaps = |m: &Measured| !m.assessment.pending.exact && !m.sample.tells_rates;
    sampler.wait_measured("with gaps", "position", gaps).await;
    assert_eq!(sampler_connections(&client, "emmett_states").await, 1);
}

#[tokio::test]
async fn what_is_above_the_oldest_running_transaction_is_held_back_and_the_transaction_is_named() {
    let (url, client) = store("emmett_held").await;
    append(&client, "order-1", 1).await;
    processed(&client, "position", &position(1)).await;
    let checkpoint = pair(&client, 1).await;
    processed(&client, "pair", &checkpoint).await;
    let mut sampler = Running::start(&[("db", &url)]);
    for name in ["position", "pair"] {
        sampler.declare(name, processor(json!({ "processor": name })));
        sampler.wait_pending(name, 0).await;
    }
    // It draws the position 3 later than another, which draws 2, and has the older transaction.
    let slow = server().connect("emmett_held").await.unwrap();
    slow.batch_execute("set application_name = 'slow'; begin; select pg_current_xact_id()").await.unwrap();
    append(&client, "order-2", 1).await;
    for name in ["position", "pair"] {
        // Other tests on the server have transactions of their own, which end.
        let slow =
            |m: &Measured| m.sample.blocked_by.as_ref().and_then(|w| w.session.application.as_deref()) == Some("slow");
        let waits = sampler.wait_measured("held", name, |m| held(m) == (1, 1) && slow(m)).await;
        assert_eq!((log_head(&waits.sample).safe, log_head(&waits.sample).raw), (Position(1), Position(2)), "{name}");
        let long = |m: &Measured| m.sample.held_by().is_some();
        sampler.wait_measured("told after a while", name, long).await;
    }
    slow.batch_execute(&format!("{}; commit", appended("order-3", 1))).await.unwrap();
    for name in ["position", "pair"] {
        let free = sampler.wait_measured("released", name, |m| held(m) == (2, 0)).await;
        assert_eq!((free.sample.arrived, free.sample.blocked_by.clone()), (2, None), "{name}");
    }
    // Transaction comes before position: the consumer has handled 3, and 2 waits still.
    let checkpoint = pair(&client, 3).await;
    processed(&client, "pair", &checkpoint).await;
    sampler.wait_pending("pair", 1).await;
    processed(&client, "position", &position(3)).await;
    sampler.wait_pending("position", 0).await;
    // As Emmett reads, whatever runs anywhere on the server.
    let elsewhere = server().connect("postgres").await.unwrap();
    elsewhere.batch_execute("begin; select pg_current_xact_id()").await.unwrap();
    append(&client, "order-4", 2).await;
    sampler.wait_measured("held from elsewhere", "pair", |m| held(m) == (3, 2)).await;
    elsewhere.batch_execute("rollback").await.unwrap();
    let free = sampler.wait_measured("released", "pair", |m| held(m) == (3, 0)).await;
    assert_eq!(free.sample.arrived, 4);
}

#[tokio::test]
async fn a_store_that_is_copied_from_another_server_is_told_and_one_that_is_made_again_counts_nothing_as_arrived() {
    let (url, client) = store("emmett_again").await;
    append(&client, "order-1", 3).await;
    processed(&client, "a", &position(0)).await;
    client
        .batch_execute("update emt_messages set transaction_id = '900000000000' where global_position = 3")
        .await
        .unwrap();
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("a", processor(json!({ "processor": "a" })));
    let stopped = |m: &Measured| m.sample.notes.iter().any(|note| matches!(note, Note::DeliveryStopped(_)));
    let copied = sampler.wait_measured("told", "a", stopped).await;
    assert_eq!(held(&copied), (3, 1));
    client.batch_execute("truncate emt_messages").await.unwrap();
    let emptied = sampler.wait_pending("a", 0).await;
    assert_eq!(emptied.sample.staleness, Some(Duration::ZERO));
    processed(&client, "a", &position(3)).await;
    sampler.wait_unknown("a", Reason::CheckpointBeyondHead).await;
    client
        .batch_execute("drop table emt_messages, emt_processors; drop sequence emt_global_message_position")
        .await
        .unwrap();
    let gone = sampler.wait_unknown("a", Reason::TableNotFound).await;
    for part in ["event store in schema public: ", "emmett-postgresql 0.42", "spec.source.postgres.emmett.schema"] {
        assert!(gone.message.contains(part), "{part}: {}", gone.message);
    }
    client.batch_execute(&format!("begin; {EMMETT}; {}; commit", appended("order-1", 7))).await.unwrap();
    sampler.wait_unknown("a", Reason::NeverCommitted).await;
    processed(&client, "a", &position(0)).await;
    assert_eq!(sampler.wait_pending("a", 7).await.sample.arrived, 0);
    append(&client, "order-1", 2).await;
    assert_eq!(sampler.wait_pending("a", 9).await.sample.arrived, 2);
}

#[tokio::test]
async fn the_rights_that_the_page_names_suffice_and_each_is_needed() {
    let (_, client) = store("emmett_rights").await;
    server().create_role("emmett_reader", "hunter2").await.unwrap();
    client
        .batch_execute("create schema own; alter table emt_messages set schema own; alter table emt_processors set schema own; set search_path to own, public")
        .await
        .unwrap();
    client.batch_execute(&appended_in("own", "order-1", 2)).await.unwrap();
    processed(&client, "a", &position(0)).await;
    let mut sampler = Running::start(&[("db", &server().url_as("emmett_reader", "hunter2", "emmett_rights"))]);
    sampler.declare("a", processor(json!({ "processor": "a", "schema": "own" })));
    let grants = [
        "grant usage on schema own to emmett_reader",
        "grant select (partition, is_archived, transaction_id, global_position, created) on own.emt_messages to emmett_reader",
        "grant select (processor_id, partition, version, last_processed_checkpoint) on own.emt_processors to emmett_reader",
    ];
    exactly_these_rights_suffice(&client, &sampler, "a", &grants, 2).await;
    // Whose transaction it is that holds messages back the role may not see; that one does, it may.
    let slow = server().connect("emmett_rights").await.unwrap();
    slow.batch_execute("begin; select pg_current_xact_id()").await.unwrap();
    client.batch_execute(&appended_in("own", "order-1", 1)).await.unwrap();
    let waits = sampler.wait_measured("held", "a", |m| held(m) == (3, 1)).await;
    assert!(waits.sample.blocked_by.as_ref().is_some_and(|writer| writer.pid.is_some()), "{waits:?}");
    slow.batch_execute("rollback").await.unwrap();
    client.batch_execute("alter table own.emt_messages enable row level security").await.unwrap();
    let hidden = sampler.wait_unknown("a", Reason::PermissionDenied).await;
    assert!(hidden.message.contains("create policy") && hidden.message.contains("emt_messages"), "{}", hidden.message);
    client.batch_execute("create policy p on own.emt_messages for select to emmett_reader using (true)").await.unwrap();
    sampler.wait_pending("a", 3).await;
}

#[tokio::test]
async fn the_built_in_projectors_own_checkpoint_is_counted_by_shard_in_the_order_of_positions() {
    let (_, client) = store("emmett_builtin").await;
    server().create_role("emmett_projector", "hunter2").await.unwrap();
    for n in 0..20 {
        append(&client, &format!("order-{n}"), 3).await;
    }
    client.batch_execute("update emt_messages set is_archived = true where global_position % 4 = 0").await.unwrap();
    let checkpoints = format!(
        "{BUILTIN_CHECKPOINTS} insert into projectionist_checkpoints select 'shop/a', shard, 4, 15 * shard from generate_series(0, 3) shard;
         grant select on projectionist_checkpoints to emmett_projector"
    );
    client.batch_execute(&checkpoints).await.unwrap();
    let mut sampler = Running::start(&[("db", &server().url_as("emmett_projector", "hunter2", "emmett_builtin"))]);
    sampler.declare("a", built_in(json!({ "emmett": {} })));
    sampler.wait_unknown("a", Reason::PermissionDenied).await;
    client.batch_execute("grant select on emt_messages to emmett_projector").await.unwrap();
    let unsuitable = sampler.wait_unknown("a", Reason::PositionUnsuitable).await;
    let index =
        "create unique index on \"public\".\"emt_messages\" (\"global_position\", \"is_archived\", \"partition\")";
    assert!(unsuitable.message.contains(index), "{}", unsuitable.message);
    client.batch_execute(index).await.unwrap();
    let count = format!(
        "select count(*) from emt_messages m join projectionist_checkpoints c on c.shard = {}
         where not m.is_archived and m.global_position > c.position",
        shard_expression("stream_id", 4)
    );
    let expected = counted_in_shards(&client, &count).await;
    let total: u64 = expected.iter().sum();
    sampler.wait_measured("by shard", "a", |m| m.sample.pending_by_shard == expected).await;
    // Only one that writes messages holds others back.
    let slow = server().connect("emmett_builtin").await.unwrap();
    slow.batch_execute("begin; select pg_current_xact_id()").await.unwrap();
    append(&client, "order-1", 1).await;
    sampler.wait_measured("counted", "a", |m| held(m) == (total + 1, 0)).await;
    slow.batch_execute(&appended("order-2", 1)).await.unwrap();
    append(&client, "order-3", 1).await;
    sampler.wait_measured("held", "a", |m| held(m) == (total + 2, 1)).await;
    slow.batch_execute("commit").await.unwrap();
    sampler.wait_measured("released", "a", |m| held(m) == (total + 3, 0)).await;
}
