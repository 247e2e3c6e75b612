//! Checkpoints in tables of PostgreSQL: tables that hold too much, and credentials that change.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use projectionist::{
    api::{CheckpointLocation, CheckpointRows, OffsetsLocation, Reason, TableLocation},
    clients::postgres::{ConnectionSettings, Database},
    lag::CheckpointState,
    measure::MeasureError,
    read_stores::{Checkpoint, CheckpointStore},
    store_health::StoreObservation,
};
use serde_json::json;
use tokio::time::Instant;

use crate::{
    harness::{append, declare, events, postgres_server, sampler_with},
    sampler::loopback,
};

type Answers = HashMap<CheckpointLocation, Result<Checkpoint, MeasureError>>;

async fn read(database: &str, locations: &[CheckpointLocation]) -> Answers {
    let settings = ConnectionSettings::parse(&postgres_server().url(database)).unwrap();
    let store = CheckpointStore::Postgres(Arc::new(Database::new(settings.identity(), loopback())));
    let all: BTreeSet<CheckpointLocation> = locations.iter().cloned().collect();
    let until = Instant::now() + Duration::from_secs(120);
    loop {
        let answers = store.read(&all, until).await;
        // A server that is busy with other tests may not be done within the 4 s that a statement has.
        let is_late = answers.values().any(|answer| answer.as_ref().is_err_and(|why| why.reason == Reason::TimedOut));
        if !is_late || Instant::now() > until {
            return answers;
        }
    }
}

/// How many positions are known at this place.
fn positions(answers: &Answers, location: &CheckpointLocation) -> usize {
    match &answers[location].as_ref().unwrap_or_else(|why| panic!("{location:?}: {}", why.message)).state {
        CheckpointState::Committed(positions) => positions.len(),
        other => panic!("{location:?}: {other:?}"),
    }
}

fn refusal<'a>(answers: &'a Answers, location: &CheckpointLocation) -> &'a str {
    let why = answers[location].as_ref().expect_err("too many rows");
    assert_eq!(why.reason, Reason::InvalidAnswer, "{}", why.message);
    &why.message
}

#[tokio::test]
async fn only_projections_with_too_many_rows_are_unknown_and_the_others_on_their_table_are_read() {
    postgres_server().create_database("crowded").await.unwrap();
    let client = postgres_server().connect("crowded").await.unwrap();
    let fill = "create table shards (projection text, shard int, position bigint, primary key (projection, shard));
        insert into shards select 'small', n, n from generate_series(1, 3) n;
        insert into shards select 'middle', n, n from generate_series(1, 90000) n;
        insert into shards select 'large', n, n from generate_series(1, 150000) n;
        insert into shards select 'huge', n, n from generate_series(1, 200001) n";
    client.batch_execute(fill).await.unwrap();
    let at = |name: &str| {
        CheckpointLocation::Table(TableLocation {
            table: "shards".to_owned(),
            name_column: "projection".to_owned(),
            position_column: "position".to_owned(),
            name: name.to_owned(),
            rows: CheckpointRows::Keyed { column: None, shards: None },
        })
    };
    let names = ["small", "middle", "large", "huge", "none"].map(at);
    let [small, middle, large, huge, none] = &names;
    let all = read("crowded", &names).await;
    assert_eq!((positions(&all, small), positions(&all, middle)), (3, 90_000));
    assert_eq!(all[none].as_ref().unwrap().state, CheckpointState::NeverCommitted);
    let left_out = refusal(&all, large);
    assert!(left_out.contains("\"large\"") && left_out.contains("in another table"), "{left_out}");
    let alone = refusal(&all, huge);
    assert!(alone.contains("more than 200000 rows for \"huge\"") && alone.contains("nameColumn"), "{alone}");
    // What is left out for the others' sake is read without them.
    let two = read("crowded", &[large.clone(), small.clone()]).await;
    assert_eq!((positions(&two, small), positions(&two, large)), (3, 150_000));
}

#[tokio::test]
async fn only_topics_with_too_many_rows_are_unknown_and_the_other_offsets_in_their_table_are_read() {
    postgres_server().create_database("crowded_offsets").await.unwrap();
    let client = postgres_server().connect("crowded_offsets").await.unwrap();
    let fill = "create table offsets (name text, topic text, part int, next bigint, primary key (name, topic, part));
        insert into offsets select 'a', 'orders', n, 7 from generate_series(0, 4) n;
        insert into offsets select 'b', 'orders', n, 7 from generate_series(0, 5) n;
        insert into offsets select 'b', 'clicks', n, 7 from generate_series(0, 200000) n";
    client.batch_execute(fill).await.unwrap();
    let at = |name: Option<&str>, topics: &[&str]| {
        CheckpointLocation::Offsets(OffsetsLocation {
            table: "offsets".to_owned(),
            topic_column: "topic".to_owned(),
            partition_column: "part".to_owned(),
            offset_column: "next".to_owned(),
            name: name.map(|name| ("name".to_owned(), name.to_owned())),
            topics: topics.iter().map(|topic| (*topic).to_owned()).collect(),
        })
    };
    let (a, b, both) = (at(Some("a"), &["orders"]), at(Some("b"), &["orders"]), at(Some("b"), &["clicks", "orders"]));
    let all = read("crowded_offsets", &[a.clone(), b.clone(), both.clone()]).await;
    assert_eq!((positions(&all, &a), positions(&all, &b)), (5, 6));
    let refused = refusal(&all, &both);
    assert!(refused.contains("topic clicks") && refused.contains("more than 200000 rows"), "{refused}");
    client.batch_execute("delete from offsets where name = 'a'").await.unwrap();
    let (orders, clicks) = (at(None, &["orders"]), at(None, &["clicks"]));
    let all = read("crowded_offsets", &[orders.clone(), clicks.clone()]).await;
    assert_eq!(positions(&all, &orders), 6, "where no column tells Projections apart");
    assert!(refusal(&all, &clicks).contains("topic clicks"));
}

#[tokio::test]
async fn a_rotated_password_of_a_read_store_takes_effect_without_a_restart() {
    let server = postgres_server();
    let (url, client) = events("rotating_events").await;
    append(&client, &["a", "a", "a"]).await;
    server.create_database("rotating").await.unwrap();
    let store = server.connect("rotating").await.unwrap();
    server.create_role("projector_of_views", "hunter2").await.unwrap();
    let table = "create table checkpoints (projection text primary key, position bigint); insert into checkpoints values ('orders', 1);
        grant select on checkpoints to projector_of_views";
    store.batch_execute(table).await.unwrap();
    let as_role = |password: &str| server.url_as("projector_of_views", password, "rotating");
    let mut sampler = sampler_with(&[("events", &url), ("views", &as_role("hunter2"))]);
    let spec = json!({
        "readStore": {"postgres": {"connection": {"secretRef": {"name": "views"}}}},
        "checkpoint": {"readStore": {"table": "checkpoints", "nameColumn": "projection", "positionColumn": "position", "name": "orders"}},
    });
    declare(&mut sampler, "orders", &spec);
    let reached = |store: &StoreObservation| store.current(std::time::Instant::now()).is_ok();
    sampler.wait_pending("orders", 2).await;
    sampler.wait_store("reached", "orders", reached).await;
    store.batch_execute("alter role projector_of_views password 'hunter2-new'").await.unwrap();
    let end = "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'projector_of_views'";
    store.execute(end, &[]).await.unwrap();
    sampler.wait_unknown("orders", Reason::AuthenticationFailed).await;
    sampler.wait_store("refused", "orders", |store| !reached(store)).await;
    sampler.secret("views", &json!({"url": as_role("hunter2-new")}));
    sampler.wait_pending("orders", 2).await;
    sampler.wait_store("reached again", "orders", reached).await;
    let old = "select count(*) from pg_stat_activity where usename = 'projector_of_views'";
    assert!(
        store.query_one(old, &[]).await.unwrap().get::<_, i64>(0) <= 2,
        "one for checkpoints and the store's health, and one that ends"
    );
}
