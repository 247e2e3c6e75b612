//! What measuring costs a server: statements a poll, and how long it works on them, for one Projection, a hundred and a thousand.
//!
//! The server itself tells both: it logs each statement of these databases with its duration.

#![allow(clippy::print_stdout)]

use std::{collections::BTreeSet, sync::atomic::Ordering::Relaxed};

use serde_json::{Value, json};
use test_cluster::{Postgres, eventually, eventually_is};
use tokio_postgres::Client;

use crate::{
    event_stores::{MESSAGE_DB, marten_ddl},
    harness::{Running, SOON, TABLES, server},
    slots,
};

/// So many polls are looked at, with something new before each.
const POLLS: u64 = 10;

/// A kind of source, for as many Projections as are asked for.
struct Kind {
    name: &'static str,
    /// The schema, with some events.
    made: String,
    /// `$1`: how many Projections there are; makes what the workers of each keep.
    kept: Option<&'static str>,
    /// Something new.
    appended: &'static str,
    spec: fn(usize) -> Value,
    /// Each Projection has a statement of its own.
    grows: bool,
}

fn kinds() -> Vec<Kind> {
    vec![
        Kind {
            name: "event table",
            made: format!("{TABLES}; insert into events (stream) select 's' || n from generate_series(1, 20000) n"),
            kept: Some("insert into checkpoints select 'p' || n, 19000 + n % 1000 from generate_series(0, $1::int - 1) n"),
            appended: "insert into events (stream) values ('s')",
            spec: |n| {
                json!({
                    "source": {"postgres": {"connection": {"secretRef": {"name": "db"}}, "eventTable": {}}},
                    "readStore": {"postgres": {"connection": {"secretRef": {"name": "db"}}}},
                    "checkpoint": {"readStore": {"name": format!("p{n}")}},
                })
            },
            grows: false,
        },
        Kind {
            name: "marten",
            made: format!(
                "{}; insert into mt_events (seq_id, id, stream_id, version, data, type, tenant_id, is_archived)
                     select nextval('mt_events_sequence'), gen_random_uuid(), gen_random_uuid(), 1, '{{}}', 'ordered', '*DEFAULT*', false
                     from generate_series(1, 20000)",
                marten_ddl("public", false)
            ),
            kept: Some("select mt_mark_event_progression('P' || n || ':All', 19000 + n % 1000) from generate_series(0, $1::int - 1) n"),
            appended: "insert into mt_events (seq_id, id, stream_id, version, data, type, tenant_id, is_archived)
                 select nextval('mt_events_sequence'), gen_random_uuid(), gen_random_uuid(), 1, '{}', 'ordered', '*DEFAULT*', false",
            spec: |n| source(&json!({"marten": {"projection": format!("P{n}")}})),
            grows: false,
        },
        Kind {
            name: "message-db",
            made: format!(
                "{MESSAGE_DB}; insert into message_store.messages (stream_name, position, type, data)
                     select 'orders-' || n, 0, 'Written', '{{}}' from generate_series(1, 20000) n"
            ),
            kept: Some(
                "insert into message_store.messages (stream_name, position, type, data)
                     select 'orders:position-' || n, 0, 'Read', jsonb_build_object('position', 19000 + n % 1000) from generate_series(0, $1::int - 1) n",
            ),
            appended: "insert into message_store.messages (stream_name, position, type, data)
                 values ('orders-' || gen_random_uuid(), 0, 'Written', '{}')",
            spec: |n| {
                source(&json!({"messageDb": {"category": "orders", "positionStream": format!("orders:position-{n}")}}))
            },
            grows: false,
        },
        Kind {
            name: "outbox",
            made: OUTBOX.to_owned(),
            kept: None,
            appended: "insert into outbox default values",
            spec: |_| source(&json!({"outbox": {"sentAt": "sent_at"}})),
            grows: false,
        },
        Kind {
            name: "outbox, conditions of their own",
            made: OUTBOX.to_owned(),
            kept: None,
            appended: "insert into outbox default values",
            spec: |n| source(&json!({"outbox": {"sentAt": "sent_at", "where": format!("topic = 't{n}'")}})),
            grows: true,
        },
        Kind {
            name: "query",
            made: OUTBOX.to_owned(),
            kept: None,
            appended: "insert into outbox default values",
            spec: |_| source(&json!({"query": {"sql": "select count(*) as pending from outbox where sent_at is null"}})),
            grows: false,
        },
    ]
}

const OUTBOX: &str = "create table outbox (topic text not null default 't0', created_at timestamptz not null default now(), sent_at timestamptz);
    insert into outbox (topic, sent_at) select 't' || n % 1000, case when n > 1000 then now() end from generate_series(1, 20000) n;
    create index on outbox (created_at) where sent_at is null";

fn source(of: &Value) -> Value {
    let mut postgres = json!({"connection": {"secretRef": {"name": "db"}}});
    let (all, of) = (postgres.as_object_mut().unwrap(), of.as_object().unwrap().clone());
    all.extend(of);
    json!({"source": {"postgres": postgres}})
}

/// Statements of the sampler that the server has logged, and the milliseconds that it took over them.
fn logged(server: &Postgres, sampler: &BTreeSet<String>) -> (u64, f64) {
    let (mut statements, mut milliseconds) = (0, 0.0);
    for line in server.log().lines() {
        let Some((head, told)) = line.split_once("duration: ") else { continue };
        let pid = head.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map(|(pid, _)| pid);
        if !pid.is_some_and(|pid| sampler.contains(pid)) {
            continue;
        }
        let (duration, what) = told.split_once(" ms").unwrap();
        milliseconds += duration.parse::<f64>().unwrap();
        // Parsing and binding are told on lines of their own. What begins and ends transactions counts in time alone.
        let run =
            what.trim_start().split_once(": ").filter(|(how, _)| how.starts_with("execute") || *how == "statement");
        statements +=
            u64::from(run.is_some_and(|(_, sql)| !["begin", "commit", "rollback"].contains(&verb(sql).as_str())));
    }
    (statements, milliseconds)
}

/// The first word of a statement.
fn verb(sql: &str) -> String {
    sql.split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default().to_ascii_lowercase()
}

/// Statements a poll. Prints them, and how long the server took over them.
async fn a_poll(server: &Postgres, url: &str, client: &Client, kind: &Kind, count: usize) -> f64 {
    let mut sampler = Running::start(&[("db", url)]);
    for n in 0..count {
        sampler.declare(&format!("p{n}"), |spec| {
            *spec = (kind.spec)(n);
            spec["lag"] = json!({"target": "5s"});
        });
    }
    for n in 0..count {
        sampler.wait_measured("it is measured", &format!("p{n}"), |_| true).await;
    }
    let pids = "select pid::text from pg_stat_activity where application_name = 'projectionist-sampler' and datname = current_database()";
    // That of a sampler that has ended may stay for a moment.
    let connected = || async {
        let rows = client.query(pids, &[]).await?;
        Ok::<_, tokio_postgres::Error>(rows.iter().map(|row| row.get(0)).collect())
    };
    let is_one = |pids: &BTreeSet<String>| pids.len() == 1;
    let pids = eventually_is(SOON, "there is one connection for all", is_one, connected).await.unwrap();
    let polls = || sampler.metrics.polls.load(Relaxed);
    let (mut last, first) = (polls(), polls());
    let before = logged(server, &pids);
    while last < first + POLLS {
        client.batch_execute(kind.appended).await.unwrap();
        eventually(SOON, "the next poll", || async { Ok::<_, tokio_postgres::Error>(polls() > last) }).await.unwrap();
        last = polls();
    }
    let (after, of) = (logged(server, &pids), f64::from(u32::try_from(last - first).unwrap()));
    let statements = f64::from(u32::try_from(after.0 - before.0).unwrap()) / of;
    let milliseconds = (after.1 - before.1) / of;
    println!(
        "{}, {count} Projections: {statements:.1} statements a poll, {milliseconds:.1} ms of the server",
        kind.name
    );
    statements
}

/// A database that logs its statements, with what so many Projections ask for.
async fn made(server: &Postgres, name: &str, kind: &Kind, count: usize) -> (String, Client) {
    let url = server.create_database(name).await.unwrap();
    let client = server.connect(name).await.unwrap();
    client.batch_execute(&kind.made).await.unwrap();
    if let Some(kept) = kind.kept {
        client.execute(kept, &[&i32::try_from(count).unwrap()]).await.unwrap();
    }
    client.batch_execute("analyze").await.unwrap();
    client.batch_execute(&format!("alter database {name} set log_min_duration_statement = 0")).await.unwrap();
    (url, client)
}

#[tokio::test]
async fn statements_a_poll_do_not_grow_with_the_projections_but_for_outboxes_with_conditions_of_their_own() {
    for (place, kind) in kinds().iter().enumerate() {
        let mut one = None;
        // A thousand statements of their own take a test too long.
        for count in [1, 100, 1_000].into_iter().filter(|count| !kind.grows || *count < 1_000) {
            let (url, client) = made(server(), &format!("cost_{place}_{count}"), kind, count).await;
            let many = a_poll(server(), &url, &client, kind, count).await;
            let one = *one.get_or_insert(many);
            // What is asked every few seconds counts for more where polls are rare.
            assert!(kind.grows || many <= 2.0 * one + 5.0, "{}: {one} for one, {many} for {count}", kind.name);
        }
    }
}

#[tokio::test]
async fn slots_take_one_statement_a_poll_however_many_projections_name_them() {
    let own = slots::shared().await.0;
    let kind = Kind {
        name: "replication slot",
        made: "create table t (x text)".to_owned(),
        kept: Some("select pg_create_logical_replication_slot('cost_' || $1::int, 'test_decoding')"),
        appended: "insert into t values (repeat('x', 500))",
        spec: |_| source(&json!({"replicationSlot": {"name": "cost_1"}})),
        grows: false,
    };
    let (url, client) = made(own, "cost_slots", &kind, 1).await;
    for count in [1, 100, 1_000] {
        let statements = a_poll(own, &url, &client, &kind, count).await;
        assert!(statements <= 2.0, "{statements} for {count}");
    }
}
