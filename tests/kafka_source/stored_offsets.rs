//! Offsets that a projector stores in its read store together with its effects, in place of a group that commits: what is read, and what is said when it makes
//! no sense.

use std::{sync::OnceLock, time::Duration};

use projectionist::{
    api::Reason,
    lag::{CheckpointState, Pending, Position},
};
use serde_json::{Value, json};
use test_cluster::{Postgres, Redis, kafka::Listener};
use tokio_postgres::{Client, NoTls};

use crate::{
    harness::{ask, broker, produce, topic},
    sampler::Running,
    states::produce_when_there,
};

const NOW: Duration = Duration::ZERO;

fn exactly(events: u64) -> Pending {
    Pending { events, exact: true }
}

fn server() -> &'static Postgres {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    SERVER.get_or_init(|| Postgres::on_loopback().unwrap())
}

/// A connection to the database with all tables.
async fn database() -> Client {
    let (client, connection) = tokio_postgres::connect(&server().url("postgres"), NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// A table as projectors make it, with rows for one projection, and the connection to it.
async fn table(name: &str, rows: &[(&str, i32, i64)]) -> Client {
    let client = database().await;
    let sql = format!(
        "create table {name} (topic text, partition integer, \"offset\" bigint, primary key (topic, partition))"
    );
    client.batch_execute(&sql).await.unwrap();
    for (topic, partition, offset) in rows {
        store(&client, name, topic, *partition, *offset).await;
    }
    client
}

async fn store(client: &Client, table: &str, topic: &str, partition: i32, offset: i64) {
    let sql =
        format!("insert into {table} values ($1, $2, $3) on conflict (topic, partition) do update set \"offset\" = $3");
    client.execute(&sql, &[&topic, &partition, &offset]).await.unwrap();
}

fn sampler() -> Running {
    let running = Running::start();
    running.secret("store", &json!({ "url": server().url("postgres") }));
    running
}

/// The spec of a Projection whose offsets are at `checkpoint`.
fn spec(topics: &[&str], store: &str, secret: &str, checkpoint: &Value) -> Value {
    json!({
        "source": { "kafka": { "connection": { "secretRef": { "name": "open" } }, "topics": topics } },
        "checkpoint": checkpoint,
        "readStore": { store: { "connection": { "secretRef": { "name": secret } } } },
    })
}

fn in_table(topics: &[&str], table: &str) -> Value {
    spec(topics, "postgres", "store", &json!({ "kafkaOffsets": { "table": table } }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_is_counted_from_the_rows_of_each_partition_of_each_topic() {
    topic("kept", 2, "");
    topic("kept-too", 1, "");
    produce("kept", 0, 5, Duration::from_secs(300));
    produce("kept-too", 0, 2, Duration::from_secs(100));
    let client = table("kept", &[]).await;
    let mut sampler = sampler();
    sampler.declare_spec("kept", &in_table(&["kept", "kept-too"], "kept"));
    sampler.wait_unknown("kept", Reason::NeverCommitted).await;
    for (topic, partition, next) in [("kept", 0, 3), ("kept", 1, 0), ("kept-too", 0, 0), ("elsewhere", 0, 99)] {
        store(&client, "kept", topic, partition, next).await;
    }
    let behind = sampler.wait_pending("kept", exactly(4)).await;
    assert_eq!(behind.sample.pending_by_shard, [2, 0, 2]);
    assert_eq!(behind.sample.checkpoint, CheckpointState::Committed(vec![Position(3), Position(0), Position(0)]));
    let age = behind.sample.staleness.unwrap();
    assert!((Duration::from_secs(300)..Duration::from_secs(420)).contains(&age), "{age:?}");
    store(&client, "kept", "kept", 0, 5).await;
    store(&client, "kept", "kept-too", 0, 2).await;
    let done = sampler.wait_pending("kept", exactly(0)).await;
    assert_eq!(done.sample.staleness, Some(Duration::ZERO));
    // The same rows, where they hold the last record that was handled: one more is done in each partition.
    let mut last = in_table(&["kept"], "kept");
    last["source"]["kafka"]["storedOffset"] = json!("LastHandled");
    store(&client, "kept", "kept", 0, 3).await;
    client.execute("delete from kept where topic = 'kept' and partition = 1", &[]).await.unwrap();
    sampler.declare_spec("last", &last);
    sampler.wait_pending("last", exactly(1)).await;
    store(&client, "kept", "kept", 0, 5).await;
    let beyond = sampler.wait_unknown("last", Reason::CheckpointBeyondHead).await;
    assert!(beyond.message.contains("offset 6 of partition 0 of topic kept is read next"), "{}", beyond.message);
    assert!(beyond.message.contains("spec.source.kafka.storedOffset"), "{}", beyond.message);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn projections_share_a_table_by_the_name_in_a_column() {
    topic("named", 1, "");
    produce("named", 0, 9, NOW);
    let client = database().await;
    client
        .batch_execute(
            "create schema views;
             create table views.\"Offsets\" (projection uuid, t varchar(249), p smallint, next bigint, primary key (projection, t, p));
             insert into views.\"Offsets\" values ('6f9619ff-8b86-d011-b42d-00c04fc964ff', 'named', 0, 4), ('00000000-0000-0000-0000-000000000001', 'named', 0, 9)",
        )
        .await
        .unwrap();
    let mut sampler = sampler();
    let named = |name: &str| {
        let columns = json!({
            "table": "Offsets", "topicColumn": "t", "partitionColumn": "p", "offsetColumn": "next",
            "nameColumn": "projection", "name": name,
        });
        let mut spec = spec(&["named"], "postgres", "store", &json!({ "kafkaOffsets": columns }));
        spec["readStore"]["postgres"]["schema"] = json!("views");
        spec
    };
    sampler.declare_spec("one", &named("6F9619FF8B86D011B42D00C04FC964FF"));
    sampler.declare_spec("two", &named("00000000-0000-0000-0000-000000000001"));
    sampler.declare_spec("none", &named("00000000-0000-0000-0000-000000000002"));
    sampler.declare_spec("no-uuid", &named("orders"));
    sampler.wait_pending("one", exactly(5)).await;
    sampler.wait_pending("two", exactly(0)).await;
    sampler.wait_unknown("none", Reason::NeverCommitted).await;
    sampler.wait_unknown("no-uuid", Reason::NeverCommitted).await;
    // One bad row concerns its own projection only.
    let sql = "update views.\"Offsets\" set next = null where projection = '00000000-0000-0000-0000-000000000001'";
    client.execute(sql, &[]).await.unwrap();
    let unknown = sampler.wait_unknown("two", Reason::InvalidAnswer).await;
    let expected = "column next is NULL where projection is \"00000000-0000-0000-0000-000000000001\" and the topic is named and the partition is 0";
    assert!(unknown.message.contains(expected), "{}", unknown.message);
    client.execute("update views.\"Offsets\" set next = 6 where next = 4", &[]).await.unwrap();
    sampler.wait_pending("one", exactly(3)).await;
    // Without the column that tells them apart, the two rows are one too many.
    let mut shared = named("any");
    let columns = shared["checkpoint"]["kafkaOffsets"].as_object_mut().unwrap();
    columns.remove("nameColumn");
    columns.remove("name");
    sampler.declare_spec("shared", &shared);
    let unknown = sampler.wait_unknown("shared", Reason::InvalidAnswer).await;
    assert!(
        unknown.message.contains("several rows where the topic is named and the partition is 0"),
        "{}",
        unknown.message
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_without_a_row_is_counted_from_its_first_record_and_named() {
    topic("added", 1, "");
    produce("added", 0, 2, NOW);
    let client = table("added", &[("added", 0, 2)]).await;
    let mut sampler = sampler();
    sampler.declare_spec("added", &in_table(&["added"], "added"));
    let mut earliest = in_table(&["added"], "added");
    earliest["source"]["kafka"]["offsetReset"] = json!("Earliest");
    sampler.declare_spec("from-the-first", &earliest);
    sampler.wait_pending("added", exactly(0)).await;
    ask(&["partitions", "added", "2"]);
    produce_when_there("added", 1, 3);
    let bound = sampler.wait_pending("added", Pending { events: 3, exact: false }).await;
    let told = bound.sample.upper_bound.as_ref().unwrap();
    assert!(told.contains("nothing is committed for partition 1 of topic added"), "{told}");
    sampler.wait_pending("from-the-first", exactly(3)).await;
    store(&client, "added", "added", 1, 1).await;
    sampler.wait_pending("added", exactly(2)).await;
    // Rows that are gone are no beginning: without `offsetReset` nothing is known then.
    client.execute("delete from added", &[]).await.unwrap();
    let gone = sampler.wait_unknown("added", Reason::SourceFailed).await;
    assert!(gone.message.contains("holds none any more"), "{}", gone.message);
    store(&client, "added", "added", 0, 2).await;
    store(&client, "added", "added", 1, 3).await;
    sampler.wait_pending("added", exactly(0)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_retention_deleted_before_it_was_handled_and_a_topic_that_was_created_again_are_told() {
    topic("overtaken", 2, "");
    produce("overtaken", 0, 10, NOW);
    ask(&["deleterecords", "overtaken", "0", "6"]);
    let client = table("overtaken", &[("overtaken", 0, 2), ("overtaken", 1, 0)]).await;
    let mut sampler = sampler();
    sampler.declare_spec("overtaken", &in_table(&["overtaken"], "overtaken"));
    let lost = sampler.wait_pending("overtaken", exactly(4)).await;
    assert_eq!(lost.sample.faults.deleted, 4);
    store(&client, "overtaken", "overtaken", 0, 10).await;
    sampler.wait_pending("overtaken", exactly(0)).await;
    // Rows stay when a topic is deleted: they say nothing of the next topic of that name.
    ask(&["delete", "overtaken"]);
    let gone = sampler.wait_unknown("overtaken", Reason::TableNotFound).await;
    assert!(gone.message.contains("topic overtaken"), "{}", gone.message);
    topic("overtaken", 1, "");
    produce_when_there("overtaken", 0, 3);
    let fewer = sampler.wait_unknown("overtaken", Reason::InvalidAnswer).await;
    assert!(fewer.message.contains("partition 1 of topic overtaken, which has no such partition"), "{}", fewer.message);
    client.execute("delete from overtaken where partition = 1", &[]).await.unwrap();
    let beyond = sampler.wait_unknown("overtaken", Reason::CheckpointBeyondHead).await;
    assert!(beyond.message.contains("was deleted and created again"), "{}", beyond.message);
    store(&client, "overtaken", "overtaken", 0, 1).await;
    sampler.wait_pending("overtaken", exactly(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_holds_no_offsets_is_unknown_and_names_what_is_wrong() {
    topic("wrong", 1, "");
    produce("wrong", 0, 3, NOW);
    let client = database().await;
    client
        .batch_execute(
            "create table negative (topic text, partition int, \"offset\" bigint); insert into negative values ('wrong', 0, -1);
             create table nowhere (topic text, partition int, \"offset\" bigint); insert into nowhere values ('wrong', null, 1);
             create table texts (topic text, partition int, \"offset\" text); insert into texts values ('wrong', 0, 'canary');
             create table numbered (topic bigint, partition int, \"offset\" bigint);
             create table hidden (topic text, partition int, \"offset\" bigint); insert into hidden values ('wrong', 0, 1);
             create table without (topic text, partition int)",
        )
        .await
        .unwrap();
    let mut sampler = sampler();
    for (table, reason, expected) in [
        (
            "negative",
            Reason::InvalidAnswer,
            "column offset is negative where the topic is wrong and the partition is 0",
        ),
        ("nowhere", Reason::InvalidAnswer, "column partition is NULL where the topic is wrong"),
        ("texts", Reason::ColumnTypeUnsuitable, "column offset must be smallint, integer or bigint, not text"),
        ("numbered", Reason::ColumnTypeUnsuitable, "column topic must be text, not bigint"),
        ("without", Reason::ColumnNotFound, "column \"offset\""),
        ("absent", Reason::TableNotFound, "absent"),
    ] {
        sampler.declare_spec(table, &in_table(&["wrong"], table));
        let unknown = sampler.wait_unknown(table, reason).await;
        assert!(unknown.message.contains(expected) && unknown.message.contains(table), "{}", unknown.message);
        println!("{}", unknown.message);
    }
    // It stays measured beside all of them.
    sampler.declare_spec("fine", &in_table(&["wrong"], "hidden"));
    sampler.wait_pending("fine", exactly(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn select_on_the_columns_and_read_on_the_topic_are_enough() {
    topic("least-stored", 1, "");
    produce("least-stored", 0, 4, Duration::from_secs(60));
    let client = table("least_stored", &[("least-stored", 0, 1)]).await;
    client.batch_execute("create role offsets_reader login password 'canary-reader'").await.unwrap();
    ask(&["scram", "stored", "SCRAM-SHA-512", "canary-kafka"]);
    let mut sampler = sampler();
    sampler.secret("reader", &json!({ "url": server().url_as("offsets_reader", "canary-reader", "postgres") }));
    let sasl = broker().address(Listener::Sasl).to_string();
    sampler.secret("user", &json!({ "bootstrapServers": sasl, "username": "stored", "password": "canary-kafka" }));
    let mut least = in_table(&["least-stored"], "least_stored");
    least["readStore"]["postgres"]["connection"]["secretRef"]["name"] = json!("reader");
    least["source"]["kafka"]["connection"]["secretRef"]["name"] = json!("user");
    sampler.declare_spec("least", &least);
    let refused = sampler.wait_unknown("least", Reason::PermissionDenied).await;
    assert!(refused.message.contains("table of offsets least_stored"), "{}", refused.message);
    client
        .batch_execute("grant select (topic, partition, \"offset\") on least_stored to offsets_reader")
        .await
        .unwrap();
    let topic_refused = |seen: &projectionist::snapshot::Observation| {
        seen.failure.as_ref().is_some_and(|failure| failure.message.contains("topic least-stored"))
    };
    sampler.wait("the topic is refused", "least", topic_refused).await;
    ask(&["allow", "stored", "topic", "least-stored", "DESCRIBE_CONFIGS"]);
    ask(&["allow", "stored", "topic", "least-stored", "READ"]);
    // No right on a group, since there is none.
    let told = sampler.wait_pending("least", exactly(3)).await;
    assert!(told.sample.staleness.unwrap() >= Duration::from_secs(60));
    // Row security may hide the row of a partition, which would then count from its first record.
    let some = "create policy first_only on least_stored for select using (partition = 0); alter table least_stored enable row level security";
    client.batch_execute(some).await.unwrap();
    let hidden = sampler.wait_unknown("least", Reason::PermissionDenied).await;
    assert!(hidden.message.contains("row security may hide offsets"), "{}", hidden.message);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_may_be_fields_of_a_hash_in_redis() {
    topic("hashed-1", 2, "");
    produce("hashed-1", 0, 5, NOW);
    produce("hashed-1", 1, 5, NOW);
    let redis = Redis::on_loopback().unwrap();
    let set = |partition: &str, offset: &str| drop(redis.run(&format!("HSET offsets {partition} {offset}")).unwrap());
    let mut sampler = sampler();
    sampler.secret("redis", &json!({ "url": redis.url() }));
    let place = json!({ "redis": { "key": "offsets", "layout": "FieldPerShard" } });
    sampler.declare_spec("hashed", &spec(&["hashed-1"], "redis", "redis", &place));
    sampler.wait_unknown("hashed", Reason::NeverCommitted).await;
    set("hashed-1-0", "2");
    set("hashed-1-1", "5");
    let told = sampler.wait_pending("hashed", exactly(3)).await;
    assert_eq!(told.sample.pending_by_shard, [3, 0]);
    set("hashed", "1");
    let unknown = sampler.wait_unknown("hashed", Reason::InvalidAnswer).await;
    assert!(unknown.message.contains("\"hashed\" that names no partition"), "{}", unknown.message);
}
