//! The sampler through a pooler that an application uses beside it.

use std::{collections::BTreeMap, time::Duration};

use projectionist::lag::Position;
use serde_json::json;
use test_cluster::{Pooler, Pooling};
use tokio_postgres::{Client, NoTls};

use crate::harness::{Running, append, commit, database, server};

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
    assert!(first.sample.unheard, "a pooler does not pass notifications on");
    application(url.clone()).await;
    sampler.wait_measured("all of them are seen", "a", |m| m.sample.head.safe == Position(2_005)).await;
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
    assert!(!sampler.wait_pending("a", 0).await.sample.unheard);
    client.batch_execute("insert into events default values; notify \"événements à lire\"").await.unwrap();
    sampler.wait_pending("a", 1).await;
}
