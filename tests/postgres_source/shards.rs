//! Checkpoints with a row for each shard, of workers that are not ours: each shard is counted beyond its own row, and what keeps it from that is
//! told.

use projectionist::{
    api::Reason,
    lag::{Pending, Position},
};
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::harness::{Running, append, commit, database, log_head, server};

const ROWS: &str = "create table rows (projection text, shard text, position bigint, primary key (projection, shard))";

/// A spec whose events have their shard in `shard`, and whose checkpoint is in the table `rows`.
fn by(shard: &str) -> impl FnOnce(&mut Value) + use<> {
    let shard = shard.to_owned();
    move |spec: &mut Value| {
        spec["source"]["postgres"]["eventTable"]["shard"] = json!(shard);
        spec["checkpoint"]["readStore"]["table"] = json!("rows");
    }
}

async fn row(client: &Client, name: &str, shard: &str, position: i64) {
    let upsert = "insert into rows values ($1, $2, $3) on conflict (projection, shard) do update set position = excluded.position";
    client.execute(upsert, &[&name, &shard, &position]).await.unwrap();
}

async fn event(client: &Client, shard: &str) -> i64 {
    client.query_one("insert into events (stream) values ($1) returning position", &[&shard]).await.unwrap().get(0)
}

fn exactly(events: u64) -> Pending {
    Pending { events, exact: true }
}

/// Rows of the event table that statements have read by an index so far.
async fn read_so_far(client: &Client) -> i64 {
    client.batch_execute("select pg_stat_clear_snapshot()").await.unwrap();
    let read = "select idx_tup_fetch + seq_tup_read from pg_stat_user_tables where relname = 'events'";
    client.query_one(read, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn quiet_shards_of_a_long_log_are_no_lag_and_cost_one_walk() {
    let (url, client) = database(server(), "quiet_shards").await;
    client.batch_execute(ROWS).await.unwrap();
    client.batch_execute("insert into events (stream) select 'tenant-0' from generate_series(1, 10)").await.unwrap();
    let many =
        "insert into events (stream) select 'tenant-' || 1 + n % 23 from generate_series(1, 299990) n; analyze events";
    client.batch_execute(many).await.unwrap();
    row(&client, "a", "tenant-0", 10).await;
    for shard in 1..24 {
        row(&client, "a", &format!("tenant-{shard}"), 300_000).await;
    }
    let mut unaware = Running::start(&[("db", &url)]);
    unaware.declare("a", |spec| spec["checkpoint"]["readStore"]["table"] = json!("rows"));
    let lowest = unaware.wait_measured("a bound", "a", |_| true).await;
    assert!(!lowest.assessment.pending.exact && lowest.assessment.pending.events >= 299_990);
    let why = lowest.sample.upper_bound.clone().unwrap();
    assert!(why.contains("spec.source.postgres.eventTable.shard") && why.contains("rows"), "{why}");
    drop(unaware);

    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("a", by("stream"));
    let seen = sampler.wait_pending("a", 0).await;
    assert_eq!(
        (seen.sample.pending_by_shard.clone(), seen.assessment.staleness),
        (vec![0; 24], Some(std::time::Duration::ZERO))
    );
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    let before = read_so_far(&client).await;
    // Each event is handled at once, as the workers do.
    for round in 0..20_u64 {
        let shard = format!("tenant-{}", round % 24);
        let position = event(&client, &shard).await;
        if round % 5 == 0 {
            sampler.wait_pending("a", 1).await;
        }
        row(&client, "a", &shard, position).await;
    }
    sampler.wait_pending("a", 0).await;
    let waits = event(&client, "tenant-0").await;
    let seen = sampler.wait_pending("a", 1).await;
    assert_eq!(seen.sample.pending_by_shard.iter().sum::<u64>(), 1);
    assert!(seen.sample.pending_by_shard[0] == 1 && waits > 300_000, "{:?}", seen.sample.pending_by_shard);
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    let read = read_so_far(&client).await - before;
    assert!(read < 10_000, "{read} rows were read: the log of 300,000 events is not walked again");
    // A row that goes back is counted again, and exactly.
    row(&client, "a", "tenant-1", 299_000).await;
    let expected: i64 = client
        .query_one("select count(*) from events where stream = 'tenant-1' and position > 299000", &[])
        .await
        .unwrap()
        .get(0);
    sampler.wait_pending("a", 1 + u64::try_from(expected).unwrap()).await;
}

#[tokio::test]
async fn events_of_a_shard_that_has_no_row_have_never_been_handled() {
    let (url, client) = database(server(), "new_shards").await;
    client.batch_execute(ROWS).await.unwrap();
    for shard in ["x", "y", "y", "z", "x"] {
        event(&client, shard).await;
    }
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("a", by("stream"));
    sampler.wait_unknown("a", Reason::NeverCommitted).await;
    row(&client, "a", "x", 5).await;
    let seen = sampler.wait_pending("a", 3).await;
    assert_eq!(seen.sample.pending_by_shard, [0, 2, 1], "those with a row, then the others");
    row(&client, "a", "y", 2).await;
    sampler.wait_pending("a", 2).await;
    client.batch_execute("insert into rows values ('a', 'z', null)").await.unwrap();
    row(&client, "a", "y", 3).await;
    sampler.wait_pending("a", 1).await;
    // Events without a shard belong to the row without one.
    client
        .batch_execute("alter table events alter stream drop not null; insert into events (stream) values (null)")
        .await
        .unwrap();
    sampler.wait_pending("a", 2).await;
    row(&client, "a", "", 6).await;
    row(&client, "a", "z", 4).await;
    sampler.wait_pending("a", 0).await;
}

#[tokio::test]
async fn the_shard_column_is_found_or_told_and_shards_are_compared_as_text() {
    let (url, client) = database(server(), "shard_column").await;
    let tables = "create table found (n int, position bigint, projection text, unique (n, projection));
         create table told (projection text, part int, position bigint);
         insert into found select n, 60, p from generate_series(0, 3) n, unnest(array['found', 'one']) p;
         insert into told select 'told', n, 40 + n from generate_series(0, 3) n";
    client.batch_execute(tables).await.unwrap();
    append(&client, 60).await;
    let mut sampler = Running::start(&[("db", &url)]);
    for name in ["found", "told"] {
        sampler.declare(name, |spec| {
            spec["source"]["postgres"]["eventTable"]["shard"] = json!("mod(position, 4)");
            spec["checkpoint"]["readStore"]["table"] = json!(name);
        });
    }
    sampler.wait_pending("found", 0).await;
    let bound = sampler.wait_measured("a bound", "told", |_| true).await;
    assert!(!bound.assessment.pending.exact);
    let why = bound.sample.upper_bound.clone().unwrap();
    assert!(why.contains("spec.checkpoint.readStore.shardColumn"), "{why}");
    sampler.declare("told", |spec| {
        spec["source"]["postgres"]["eventTable"]["shard"] = json!("mod(position, 4)");
        spec["checkpoint"]["readStore"] = json!({ "table": "told", "shardColumn": "part" });
    });
    // Beyond 40, 41, 42 and 43 there are 5, 4, 4 and 4 of them.
    let seen = sampler.wait_pending("told", 17).await;
    assert_eq!(seen.sample.pending_by_shard, [5, 4, 4, 4]);
    // One row, although there could be several, and no column to tell them apart.
    commit(&client, "single", 50).await;
    sampler.declare("single", |spec| spec["source"]["postgres"]["eventTable"]["shard"] = json!("stream"));
    sampler.wait_pending("single", 10).await;
}

#[tokio::test]
async fn an_expression_that_is_none_concerns_only_its_own_projection_and_the_message_names_the_field() {
    let (url, client) = database(server(), "expressions").await;
    client.batch_execute(ROWS).await.unwrap();
    client
        .batch_execute("create function own() returns int language sql as 'select 1'; create sequence drawn")
        .await
        .unwrap();
    append(&client, 3).await;
    let mut sampler = Running::start(&[("db", &url)]);
    commit(&client, "good", 1).await;
    row(&client, "shards", "s1", 1).await;
    sampler.declare("good", |_| {});
    sampler.declare("shards", by("stream"));
    let cases = [
        ("nowhere", "tenant", Reason::ColumnNotFound, "tenant"),
        ("subquery", "(select 1)", Reason::InvalidSpec, "subqueries"),
        ("volatile", "nextval('drawn')", Reason::InvalidSpec, "nextval"),
        ("sleeper", "pg_sleep(60)", Reason::InvalidSpec, "pg_sleep"),
        ("their-own", "own()", Reason::InvalidSpec, "own"),
        ("list", "stream, type", Reason::InvalidSpec, "list"),
        ("breaking-out", "1)::text from events; drop table events; select (1", Reason::InvalidSpec, "bracket"),
        ("aggregate", "max(stream)", Reason::SourceFailed, ""),
        ("window", "row_number() over ()", Reason::SourceFailed, ""),
        ("set", "generate_series(1, 2)", Reason::SourceFailed, ""),
        (
            "failing",
            "1 / (position - 2)",
            Reason::SourceFailed,
            "it fails on the event at position 2: correct the event",
        ),
    ];
    for (name, shard, _, _) in cases {
        row(&client, name, "s1", 1).await;
        sampler.declare(name, by(shard));
    }
    for (name, _, reason, words) in cases {
        let unknown = sampler
            .wait(name, name, |seen| seen.failure.as_ref().is_some_and(|why| why.message.contains("eventTable.shard")))
            .await;
        let unknown = unknown.failure.clone().unwrap();
        println!("{name}: {}: {}", unknown.reason, unknown.message);
        assert!(unknown.message.contains(words), "{name}: {}", unknown.message);
        if !words.is_empty() {
            assert_eq!(unknown.reason, reason, "{name}: {}", unknown.message);
        }
    }
    sampler.wait_pending("good", 2).await;
    sampler.wait_pending("shards", 2).await;
    assert_eq!(client.query_one("select count(*) from events", &[]).await.unwrap().get::<_, i64>(0), 3);
    // What has been put right is seen.
    client.batch_execute("alter table events add tenant text not null default 's1'").await.unwrap();
    sampler.wait_pending("nowhere", 2).await;
}

#[tokio::test]
async fn shards_beyond_an_open_transaction_have_handled_what_they_have_handled() {
    let (url, client) = database(server(), "shards_held").await;
    client.batch_execute(ROWS).await.unwrap();
    for shard in ["x", "y"] {
        let position = event(&client, shard).await;
        row(&client, "a", shard, position).await;
    }
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("a", by("stream"));
    sampler.wait_pending("a", 0).await;
    let slow = server().connect("shards_held").await.unwrap();
    slow.batch_execute("begin; insert into events (stream) values ('x')").await.unwrap();
    for shard in ["y", "x", "y", "x", "y"] {
        event(&client, shard).await;
    }
    let held = sampler.wait_pending("a", 5).await;
    assert_eq!((held.sample.held_back, log_head(&held.sample).safe), (5, Position(2)));
    // A reader that waits for no writer has handled two of them.
    row(&client, "a", "y", 6).await;
    let passed = sampler.wait_pending("a", 3).await;
    assert_eq!(passed.sample.held_back, 3);
    slow.batch_execute("commit").await.unwrap();
    let released = sampler.wait_measured("released", "a", |m| m.sample.held_back == 0).await;
    assert_eq!(released.assessment.pending, exactly(4));
    // What is deleted waits no more.
    client.batch_execute("delete from events where position = 3").await.unwrap();
    sampler.wait_pending("a", 3).await;
}

#[tokio::test]
async fn an_expression_whose_function_is_mended_is_taken_within_two_polls() {
    let (url, client) = database(server(), "mended_function").await;
    client
        .batch_execute(&format!(
            "{ROWS}; create function shard_of(text) returns text language sql volatile as 'select $1'"
        ))
        .await
        .unwrap();
    let last = event(&client, "x").await;
    row(&client, "a", "x", last).await;
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("a", by("shard_of(stream)"));
    let refused = sampler.wait_unknown("a", Reason::InvalidSpec).await;
    assert!(refused.message.contains("shard_of is volatile"), "{}", refused.message);
    client.batch_execute("alter function shard_of(text) immutable").await.unwrap();
    sampler.seen_within_two_polls().await;
    sampler.wait_pending("a", 0).await;
}
