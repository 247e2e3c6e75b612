//! Replication slots: bytes that their consumers have not confirmed, and slots that tell nothing.

use projectionist::{
    api::Reason,
    lag::{CheckpointState, Note},
    snapshot::Measured,
};
use serde_json::json;
use test_cluster::Postgres;
use tokio_postgres::Client;

use crate::harness::Running;

fn declare(sampler: &mut Running, name: &str, slot: &str) {
    sampler.declare(name, |spec| {
        spec["source"]["postgres"] =
            json!({ "connection": { "secretRef": { "name": "db" } }, "replicationSlot": { "name": slot } });
        let fields = spec.as_object_mut().unwrap();
        fields.remove("checkpoint");
        fields.remove("readStore");
    });
}

/// A server that keeps changes for logical consumers; it can only be told before it starts.
async fn logical() -> (Postgres, Client) {
    let own = Postgres::on_loopback().unwrap();
    let client = own.connect("postgres").await.unwrap();
    client.batch_execute("alter system set wal_level = 'logical'").await.unwrap();
    drop(client);
    own.stop().unwrap();
    own.start().unwrap();
    let client = own.connect("postgres").await.unwrap();
    client.batch_execute("create table t (x text)").await.unwrap();
    (own, client)
}

async fn write(client: &Client) {
    client.batch_execute("insert into t select repeat('x', 500) from generate_series(1, 2000)").await.unwrap();
}

fn confirmed(measured: &Measured) -> &CheckpointState {
    &measured.sample.checkpoint
}

#[tokio::test]
async fn a_slot_is_behind_by_the_bytes_that_its_consumer_has_not_confirmed() {
    let (own, client) = logical().await;
    client
        .batch_execute(
            "select pg_create_logical_replication_slot(n, 'test_decoding') from (values ('a'), ('other')) v(n)",
        )
        .await
        .unwrap();
    own.create_role("slot_reader", "hunter2").await.unwrap();
    // No right is needed beyond the login.
    let mut sampler = Running::start(&[("db", &own.url_as("slot_reader", "hunter2", "postgres"))]);
    declare(&mut sampler, "a", "a");
    declare(&mut sampler, "other", "other");
    declare(&mut sampler, "missing", "missing");
    let first = sampler.wait_measured("measured", "a", |_| true).await;
    let missing = sampler.wait_unknown("missing", Reason::SlotNotFound).await;
    assert!(missing.message.contains("replication slot missing"), "{}", missing.message);
    write(&client).await;
    let behind = sampler.wait_measured("behind", "a", |m| m.assessment.pending.events > 1_000_000).await;
    assert!(!behind.assessment.pending.exact, "other tables' bytes are among them");
    assert_eq!(confirmed(&behind), confirmed(&first));
    assert!(behind.sample.arrived > 1_000_000, "{}", behind.sample.arrived);
    assert!(behind.sample.notes.iter().any(|note| matches!(note, Note::NoConsumer(_))), "{:?}", behind.sample.notes);
}

#[tokio::test]
async fn a_slot_that_is_temporary_or_unused_is_unknown_in_words() {
    let own = Postgres::on_loopback().unwrap();
    let client = own.connect("postgres").await.unwrap();
    client
        .batch_execute(
            "create table t (x text); select pg_create_physical_replication_slot('passing', true, true);
             select pg_create_physical_replication_slot('unused'); select pg_create_physical_replication_slot('kept', true)",
        )
        .await
        .unwrap();
    let mut sampler = Running::start(&[("db", &own.url("postgres"))]);
    for name in ["passing", "unused", "kept"] {
        declare(&mut sampler, name, name);
    }
    let temporary = sampler.wait_unknown("passing", Reason::InvalidSpec).await;
    assert!(temporary.message.contains("temporary"), "{}", temporary.message);
    sampler.wait_unknown("unused", Reason::NeverCommitted).await;
    sampler.wait_measured("measured", "kept", |_| true).await;
}
