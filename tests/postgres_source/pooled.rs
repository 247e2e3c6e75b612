//! The sampler through a pooler that an application uses beside it.

use std::{collections::BTreeMap, time::Duration};

use projectionist::{
    api::Reason,
    lag::{Note, Position},
};
use serde_json::json;
use test_cluster::{Pooler, Pooling};
use tokio_postgres::{Client, NoTls};

use crate::harness::{Running, append, commit, database, log_head, server};

/// How many server processes serve the pool.
const PROCESSES: u32 = 4;

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// What a client of the pool finds on each server process: settings that are not as the server made them, prepared statements, channels.
async fn left_behind(url: &str) -> BTreeMap<String, Vec<String>> {
    let client = connect(url).await;
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    // In turn, so that every process is met.
    for _ in 0..PROCESSES * 8 {
        let query = "select pg_backend_pid()::text, concat_ws('; ',
            (select string_agg(name || ' = ' || setting, ', ' order by name) from pg_settings
             where source = 'session' and name not in ('application_name', 'client_encoding', 'DateStyle', 'TimeZone', 'standard_conforming_strings')),
            (select string_agg(name, ', ') from pg_prepared_statements),
            (select string_agg(c, ', ') from pg_listening_channels() c))";
        let answer = client.simple_query(query).await.unwrap();
        for message in answer {
            if let tokio_postgres::SimpleQueryMessage::Row(row) = message {
                let left = row.get(1).unwrap_or_default().to_owned();
                let all = found.entry(row.get(0).unwrap().to_owned()).or_default();
                if !left.is_empty() && !all.contains(&left) {
                    all.push(left);
                }
            }
        }
    }
    found
}

/// Writes over the pool as an application does, until 2,000 statements have been run; each must succeed.
async fn application(url: String) {
    let client = connect(&url).await;
    for _ in 0..2_000 {
        client.simple_query("insert into events (stream) values ('s')").await.unwrap();
        client.simple_query("create temporary table t (x int) on commit drop").await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn leaves_nothing_behind(name: &str, pooling: Pooling) {
    let (_, client) = database(server(), name).await;
    append(&client, 5).await;
    commit(&client, "a", 2).await;
    let pooler = Pooler::before(server(), pooling, PROCESSES).unwrap();
    let url = pooler.url(name);
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("a", |spec| {
        spec["source"]["postgres"]["eventTable"] = json!({"notifyChannel": "events"});
        spec["lag"]["target"] = json!("1s");
    });
    sampler.declare("b", |spec| spec["source"]["postgres"]["eventTable"] = json!({"table": "missing"}));
    let first = sampler.wait_pending("a", 3).await;
    assert_eq!(first.sample.notes, [Note::PooledConnection], "a pooler does not pass notifications on");
    application(url.clone()).await;
    sampler.wait_measured("all of them are seen", "a", |m| log_head(&m.sample).safe == Position(2_005)).await;
    let left = left_behind(&url).await;
    assert!(pooling == Pooling::Transaction || left.len() > 1, "{left:?}");
    assert!(left.values().all(Vec::is_empty), "{left:?}");
}

#[tokio::test]
async fn nothing_of_the_sampler_stays_in_a_pool_and_an_application_beside_it_writes_undisturbed() {
    leaves_nothing_behind("pooled", Pooling::Transaction).await;
}

#[tokio::test]
async fn every_statement_may_meet_another_server_process() {
    leaves_nothing_behind("pooled_in_turn", Pooling::TransactionInTurn).await;
}

#[tokio::test]
async fn a_direct_connection_hears_of_new_events() {
    let (url, client) = database(server(), "direct").await;
    commit(&client, "a", 0).await;
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("a", |spec| {
        spec["source"]["postgres"]["eventTable"] = json!({"notifyChannel": "événements à lire"});
        spec["lag"]["target"] = json!("1h");
    });
    assert_eq!(sampler.wait_pending("a", 0).await.sample.notes, []);
    sampler.is_woken_by(&client, "insert into events default values; notify \"événements à lire\"", ("a", 1)).await;
}

/// What was refused on a kept connection and has been put right since is seen without a restart.
#[tokio::test]
async fn what_is_mended_on_the_server_is_seen_over_the_same_connection() {
    let (_, client) = database(server(), "mended").await;
    server().create_role("learner", "hunter2").await.unwrap();
    client
        .batch_execute(
            "create table cached (like events including all);
             create sequence cached_seq cache 20 owned by cached.position;
             alter table cached alter position drop identity, alter position set default nextval('cached_seq');
             create table bare (position bigint primary key);
             grant select on events, checkpoints, cached, bare to learner; revoke select on events from learner",
        )
        .await
        .unwrap();
    for name in ["granted", "cached", "column"] {
        commit(&client, name, 0).await;
    }
    let mut sampler = Running::start(&[("db", &server().url_as("learner", "hunter2", "mended"))]);
    let table = |name: &'static str| {
        move |spec: &mut serde_json::Value| {
            spec["source"]["postgres"]["eventTable"] = json!({"table": name});
        }
    };
    sampler.declare("granted", table("events"));
    sampler.declare("cached", table("cached"));
    sampler.declare("column", table("bare"));
    sampler.wait_unknown("granted", Reason::PermissionDenied).await;
    sampler.wait_unknown("cached", Reason::PositionUnsuitable).await;
    sampler.wait_unknown("column", Reason::ColumnNotFound).await;
    let connection = "select min(pid), count(*) from pg_stat_activity
        where application_name = 'projectionist-sampler' and datname = 'mended' and usename = 'learner'";
    let before = client.query_one(connection, &[]).await.unwrap();
    client
        .batch_execute(
            "grant select on events to learner; alter sequence cached_seq cache 1;
             alter table bare add column recorded_at timestamptz default now()",
        )
        .await
        .unwrap();
    for name in ["granted", "cached", "column"] {
        sampler.wait_pending(name, 0).await;
    }
    let after = client.query_one(connection, &[]).await.unwrap();
    assert_eq!(before.get::<_, i32>(0), after.get::<_, i32>(0), "the connection was kept");
}

#[tokio::test]
async fn every_name_that_the_database_takes_is_taken() {
    let (url, client) = database(server(), "named").await;
    client
        .batch_execute(
            r#"create schema "event-store";
             create table "event-store"."my.événements" ("Position nº" bigint generated always as identity primary key,
                 "recorded-at" timestamptz default clock_timestamp(), "say ""hi""" text);
             create table "check points" ("my-app" text primary key, "so-far" bigint);
             insert into "check points" values ('a', 1);
             insert into "event-store"."my.événements" ("say ""hi""") values ('x'), ('y'), ('z')"#,
        )
        .await
        .unwrap();
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("a", |spec| {
        spec["source"]["postgres"]["eventTable"] =
            json!({"table": "event-store.\"my.événements\"", "position": "Position nº", "recordedAt": "recorded-at"});
        spec["checkpoint"]["readStore"] =
            json!({"table": "check points", "nameColumn": "my-app", "positionColumn": "so-far"});
    });
    sampler.wait_pending("a", 2).await;
    sampler.declare("long", |spec| {
        spec["source"]["postgres"]["eventTable"] = json!({"table": "é".repeat(40)});
    });
    let long = sampler.wait_unknown("long", Reason::InvalidSpec).await;
    assert!(long.message.contains("eventTable.table: a name has at most 63 bytes"), "{}", long.message);
}
