//! A message store as Message DB 1.3 makes it, with a consumer that keeps its position in a stream.

use std::time::Duration;

use projectionist::{api::Reason, lag::Position, snapshot::Measured};
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::event_stores::{MESSAGE_DB, message_db_written};
use crate::harness::{Running, commit, exactly_these_rights_suffice, log_head, server};

async fn store(name: &str) -> (String, Client) {
    let url = server().create_database(name).await.unwrap();
    let client = server().connect(name).await.unwrap();
    client.batch_execute(MESSAGE_DB).await.unwrap();
    client.batch_execute("create table checkpoints (projection text primary key, position bigint)").await.unwrap();
    (url, client)
}

fn written(stream: &str, data: &Value) -> String {
    message_db_written(stream, 1, &format!("'{data}'"))
}

async fn write(client: &Client, stream: &str) {
    client.batch_execute(&written(stream, &json!({}))).await.unwrap();
}

async fn record(client: &Client, stream: &str, position: &Value) {
    client.batch_execute(&written(stream, &json!({ "position": position }))).await.unwrap();
}

fn category(fields: Value) -> impl FnOnce(&mut Value) {
    move |spec| {
        *spec = json!({
            "source": { "postgres": { "connection": { "secretRef": { "name": "db" } }, "messageDb": fields } },
            "lag": { "target": "5s" },
        });
    }
}

fn orders() -> impl FnOnce(&mut Value) {
    category(json!({ "category": "orders", "positionStream": "orders:position-list" }))
}

#[tokio::test]
async fn messages_of_a_category_wait_beyond_the_recorded_position() {
    let (url, client) = store("message_db_states").await;
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("a", orders());
    sampler.wait_unknown("a", Reason::NeverCommitted).await;
    for stream in ["orders-1", "bills-1", "orders-2", "orders"] {
        write(&client, stream).await;
    }
    record(&client, "orders:position-list", &json!(1)).await;
    let behind = sampler.wait_pending("a", 2).await;
    assert_eq!(log_head(&behind.sample).raw, Position(5), "of all categories");
    assert!(behind.sample.staleness.unwrap() < Duration::from_secs(600), "times are UTC");
    client
        .batch_execute("update message_store.messages set time = time - interval '1 hour' where global_position = 3")
        .await
        .unwrap();
    record(&client, "orders:position-list", &json!(2)).await;
    let stale = |m: &Measured| m.sample.staleness.is_some_and(|age| age >= Duration::from_secs(3_600));
    sampler.wait_measured("the oldest by its own time", "a", stale).await;
    record(&client, "orders:position-list", &json!(4)).await;
    let done = sampler.wait_pending("a", 0).await;
    assert_eq!(done.sample.staleness, Some(Duration::ZERO), "although other categories have newer messages");
    record(&client, "orders:position-list", &json!(0)).await;
    sampler.wait_pending("a", 3).await;
    record(&client, "orders:position-list", &json!("soon")).await;
    // A position that is no number is none.
    sampler.wait_unknown("a", Reason::NeverCommitted).await;
    record(&client, "orders:position-list", &json!(4)).await;
    sampler.wait_pending("a", 0).await;
    client.batch_execute("truncate message_store.messages restart identity").await.unwrap();
    sampler.wait_unknown("a", Reason::NeverCommitted).await;
}

#[tokio::test]
async fn a_store_that_is_dropped_is_told_and_one_that_is_made_again_begins_without_a_position() {
    let (url, client) = store("message_db_dropped").await;
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("a", orders());
    for stream in ["orders-1", "orders-2"] {
        write(&client, stream).await;
    }
    record(&client, "orders:position-list", &json!(1)).await;
    sampler.wait_pending("a", 1).await;
    client.batch_execute("drop schema message_store cascade").await.unwrap();
    sampler.wait_unknown("a", Reason::TableNotFound).await;
    client.batch_execute(MESSAGE_DB).await.unwrap();
    write(&client, "orders-1").await;
    sampler.wait_unknown("a", Reason::NeverCommitted).await;
    record(&client, "orders:position-list", &json!(0)).await;
    let again = sampler.wait_pending("a", 1).await;
    assert_eq!(log_head(&again.sample).raw, Position(2));
}

#[tokio::test]
async fn a_member_of_a_consumer_group_counts_the_streams_that_fall_to_it() {
    let (url, client) = store("message_db_group").await;
    let mut sampler = Running::start(&[("db", &url)]);
    for stream in ["orders-1", "orders-2", "orders-3+a", "orders-3+b-c", "orders-é-ü", "orders-", "bills-1", "orders"]
    {
        write(&client, stream).await;
    }
    for n in 10..30 {
        write(&client, &format!("orders-{n}")).await;
    }
    let mut told = 0;
    for member in 0..3 {
        let position = format!("orders:position-member{member}");
        record(&client, &position, &json!(1)).await;
        let name = format!("m{member}");
        sampler.declare(
            &name,
            category(json!({
                "category": "orders", "positionStream": position, "consumerGroup": { "member": member, "size": 3 },
            })),
        );
        // As get_category_messages reads them.
        client.batch_execute("set search_path to message_store").await.unwrap();
        let read = "select count(*) from messages where category(stream_name) = 'orders' and global_position >= 2
            and mod(@hash_64(cardinal_id(stream_name)), 3) = $1";
        let expected: i64 = client.query_one(read, &[&i64::from(member)]).await.unwrap().get(0);
        assert!(expected > 1, "each has some");
        sampler.wait_pending(&name, expected.unsigned_abs()).await;
        told += expected;
    }
    assert_eq!(told, 25, "each stream with an id falls to one of them");
}

#[tokio::test]
async fn an_open_write_holds_the_safe_head_and_a_checkpoint_may_be_in_a_table() {
    let (url, client) = store("message_db_held").await;
    write(&client, "orders-1").await;
    record(&client, "orders:position-list", &json!(1)).await;
    commit(&client, "b", 0).await;
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("a", orders());
    sampler.declare("b", |spec| {
        category(json!({ "category": "orders" }))(spec);
        spec["checkpoint"] = json!({ "readStore": {} });
        spec["readStore"] = json!({ "postgres": { "connection": { "secretRef": { "name": "db" } } } });
    });
    sampler.wait_pending("a", 0).await;
    sampler.wait_pending("b", 1).await;
    let slow = server().connect("message_db_held").await.unwrap();
    slow.batch_execute(&format!("begin; {}", written("bills-1", &json!({})))).await.unwrap();
    write(&client, "orders-2").await;
    let held = sampler.wait_measured("held", "a", |m| m.sample.held_back == 1).await;
    assert!(log_head(&held.sample).safe < log_head(&held.sample).raw);
    slow.batch_execute("commit").await.unwrap();
    let free = |m: &Measured| m.sample.held_back == 0 && m.assessment.pending.events == 1;
    sampler.wait_measured("released", "a", free).await;
    sampler.wait_pending("b", 2).await;
}

#[tokio::test]
async fn the_rights_that_the_page_names_suffice_and_each_is_needed() {
    let (_, client) = store("message_db_rights").await;
    write(&client, "orders-1").await;
    record(&client, "orders:position-list", &json!(0)).await;
    server().create_role("message_reader", "hunter2").await.unwrap();
    let mut sampler = Running::start(&[("db", &server().url_as("message_reader", "hunter2", "message_db_rights"))]);
    sampler.declare("a", orders());
    let grants = [
        "grant usage on schema message_store to message_reader",
        "grant select on message_store.messages to message_reader",
    ];
    exactly_these_rights_suffice(&client, &sampler, "a", &grants, 1).await;
}

#[tokio::test]
async fn a_store_that_is_elsewhere_is_missed_with_what_is_expected_there() {
    let (url, _) = store("message_db_elsewhere").await;
    let mut sampler = Running::start(&[("db", &url)]);
    let elsewhere = json!({ "schema": "messages", "category": "orders", "positionStream": "orders:position-list" });
    sampler.declare("a", category(elsewhere));
    let missing = sampler.wait_unknown("a", Reason::TableNotFound).await;
    for part in ["messages.messages", "spec.source.postgres.messageDb.schema", "Message DB 1.2"] {
        assert!(missing.message.contains(part), "{part}: {}", missing.message);
    }
}
