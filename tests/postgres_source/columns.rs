//! What columns may be: their types, the zone of their times, and rows that a role does not see.

use std::time::Duration;

use projectionist::api::Reason;
use serde_json::json;
use tokio_postgres::Client;

use crate::harness::{Running, append, commit, database, exactly_these_rights_suffice, server};

async fn declare(sampler: &mut Running, client: &Client, table: &str, zone: Option<&str>) {
    commit(client, table, 0).await;
    sampler.declare(table, |spec| {
        spec["source"]["postgres"]["eventTable"] = json!({ "table": table, "timeZone": zone });
    });
}

#[tokio::test]
async fn a_time_without_zone_is_read_in_the_zone_of_the_spec_whatever_the_databases_own_is() {
    for (name, zone) in [("berlin", "Europe/Berlin"), ("new_york", "America/New_York")] {
        let (url, client) = database(server(), name).await;
        client
            .batch_execute(&format!(
                "alter database {name} set timezone = '{zone}'; set timezone = '{zone}';
                 create table utc (position bigserial primary key, recorded_at timestamp default (now() at time zone 'utc'));
                 create table local (position bigserial primary key, recorded_at timestamp default now());
                 insert into utc default values; insert into local default values"
            ))
            .await
            .unwrap();
        let mut sampler = Running::start(&[("db", &url)]);
        declare(&mut sampler, &client, "utc", None).await;
        let unknown = sampler.wait_unknown("utc", Reason::ColumnTypeUnsuitable).await;
        assert!(
            unknown.message.contains("column recorded_at") && unknown.message.contains("eventTable.timeZone"),
            "{}",
            unknown.message
        );
        declare(&mut sampler, &client, "utc", Some("Etc/Nowhere")).await;
        let unknown = sampler.wait_unknown("utc", Reason::InvalidSpec).await;
        assert!(
            unknown.message.contains("eventTable.timeZone: the server knows no time zone Etc/Nowhere"),
            "{}",
            unknown.message
        );
        for (table, zone) in [("utc", "UTC"), ("local", zone)] {
            declare(&mut sampler, &client, table, Some(zone)).await;
            let measured = sampler.wait_pending(table, 1).await;
            assert!(measured.assessment.staleness.unwrap() < Duration::from_secs(300), "{name} {table}: {measured:?}");
            assert_eq!(measured.sample.ahead_of_clock, Duration::ZERO, "{name} {table}");
        }
    }
}

#[tokio::test]
async fn times_that_no_age_can_be_computed_of_stop_nothing() {
    let (url, client) = database(server(), "odd_times").await;
    client.batch_execute("create table plain (position bigserial primary key, recorded_at timestamp)").await.unwrap();
    let mut sampler = Running::start(&[("db", &url)]);
    declare(&mut sampler, &client, "events", None).await;
    declare(&mut sampler, &client, "plain", Some("America/New_York")).await;
    let mut events = 0;
    for time in ["infinity", "-infinity", "4713-01-01 00:00:00 BC", "294276-12-31 23:59:59"] {
        events += 1;
        for table in ["events", "plain"] {
            client.batch_execute(&format!("insert into {table} (recorded_at) values ('{time}')")).await.unwrap();
            let measured = sampler.wait_pending(table, events).await;
            assert_eq!(measured.assessment.staleness, None, "{time} in {table}");
        }
    }
    for table in ["events", "plain"] {
        commit(&client, table, 4).await;
        client
            .batch_execute(&format!("insert into {table} (recorded_at) values (now() at time zone 'America/New_York')"))
            .await
            .unwrap();
        sampler
            .wait_measured("it goes on", table, |m| {
                m.assessment.staleness.is_some() && m.assessment.pending.events == 1
            })
            .await;
    }
}

#[tokio::test]
async fn columns_of_other_types_are_refused_by_their_names_and_every_type_with_a_stable_text_is_taken() {
    let (url, client) = database(server(), "types").await;
    client
        .batch_execute(
            "create extension if not exists citext; create domain label as text; create type kind as enum ('a', 'b')",
        )
        .await
        .unwrap();
    let mut sampler = Running::start(&[("db", &url)]);
    let columns = |stream: &str, type_: &str, data: &str, time: &str| {
        format!("position bigserial primary key, stream {stream}, type {type_}, data {data}, recorded_at {time}")
    };
    let taken = [
        ("t1", columns("text", "text", "jsonb", "timestamptz")),
        ("t2", columns("uuid", "kind", "json", "timestamptz")),
        ("t3", columns("int", "smallint", "text", "timestamptz")),
        ("t4", columns("label", "char(10)", "varchar", "timestamptz")),
        ("t5", columns("citext", "citext", "jsonb", "timestamptz")),
        ("t6", columns("numeric", "varchar(20)", "label", "timestamptz")),
    ];
    let refused = [
        (
            "r1",
            columns("bytea", "text", "jsonb", "timestamptz"),
            "column stream must be text, uuid, an integer or an enum, not bytea",
        ),
        ("r2", columns("text", "timestamptz", "jsonb", "timestamptz"), "column type must be"),
        (
            "r3",
            columns("text", "text", "bytea", "timestamptz"),
            "column data must be jsonb, json or text that holds JSON, not bytea",
        ),
        (
            "r4",
            columns("text", "text", "jsonb", "date"),
            "column recorded_at must be timestamptz or timestamp, not date",
        ),
        (
            "r5",
            columns("text", "text", "jsonb", "text"),
            "column recorded_at must be timestamptz or timestamp, not text",
        ),
        ("r6", columns("text[]", "text", "jsonb", "timestamptz"), "column stream must be"),
        ("r7", columns("text", "text", "xml", "timestamptz"), "column data must be"),
    ];
    let mut start = |table: &str| {
        sampler.declare(table, |spec| {
            spec["source"]["postgres"]["eventTable"] = json!({ "table": table });
            spec["projector"] = json!({ "builtin": { "handlers": { "A": "select 1" } } });
            spec["scaling"] = json!({ "shards": 4 });
            spec.as_object_mut().unwrap().remove("checkpoint");
        });
    };
    for (table, columns) in taken.iter().map(|(t, c)| (t, c)).chain(refused.iter().map(|(t, c, _)| (t, c))) {
        client.batch_execute(&format!("create table {table} ({columns})")).await.unwrap();
        start(table);
    }
    for (table, _) in &taken {
        sampler.wait_unknown(table, Reason::NeverCommitted).await;
    }
    for (table, _, words) in &refused {
        let unknown = sampler.wait_unknown(table, Reason::ColumnTypeUnsuitable).await;
        assert!(unknown.message.contains(words), "{table}: {}", unknown.message);
    }
    // Who does not read these columns does not care.
    declare(&mut sampler, &client, "r3", None).await;
    sampler.wait_pending("r3", 0).await;
}

#[tokio::test]
async fn the_rights_that_the_page_names_suffice_and_each_is_needed() {
    let (_, client) = database(server(), "table_rights").await;
    client
        .batch_execute(
            "create schema own; alter table events set schema own; alter table checkpoints set schema own; set search_path to own",
        )
        .await
        .unwrap();
    append(&client, 3).await;
    commit(&client, "a", 1).await;
    server().create_role("table_reader", "hunter2").await.unwrap();
    let mut sampler = Running::start(&[("db", &server().url_as("table_reader", "hunter2", "table_rights"))]);
    sampler.declare("a", |spec| {
        spec["source"]["postgres"]["eventTable"] = json!({ "table": "own.events" });
        spec["checkpoint"] = json!({ "readStore": { "table": "own.checkpoints" } });
    });
    let grants = [
        "grant usage on schema own to table_reader",
        "grant select (position, recorded_at) on own.events to table_reader",
        "grant select (projection, position) on own.checkpoints to table_reader",
    ];
    exactly_these_rights_suffice(&client, &sampler, "a", &grants, 2).await;
}

#[tokio::test]
async fn what_row_security_may_hide_is_unknown_and_not_nothing() {
    let (url, client) = database(server(), "row_security").await;
    server().create_role("filtered", "filtered").await.unwrap();
    client
        .batch_execute("grant select on events, checkpoints to filtered; alter table events enable row level security")
        .await
        .unwrap();
    append(&client, 50).await;
    commit(&client, "a", 0).await;
    let filtered = server().url_as("filtered", "filtered", "row_security");
    let mut sampler = Running::start(&[("db", &filtered), ("owner", &url)]);
    sampler.declare("a", |_| {});
    let unknown = sampler.wait_unknown("a", Reason::PermissionDenied).await;
    assert!(unknown.message.contains("row security hides all events from role filtered"), "{}", unknown.message);
    // A policy that shows some, or none at the moment.
    client
        .batch_execute(
            "create policy some_of_them on events for select using (stream = current_setting('app.stream', true))",
        )
        .await
        .unwrap();
    let waits = |seen: &projectionist::snapshot::Observation| {
        seen.failure
            .as_ref()
            .is_some_and(|failure| failure.message.contains("row security may hide all events from role filtered"))
    };
    sampler.wait("an empty answer is no empty log", "a", waits).await;
    // As the advice says.
    client
        .batch_execute("create policy projectionist on \"events\" for select to filtered using (true)")
        .await
        .unwrap();
    sampler.seen_within_two_polls().await;
    sampler.wait_pending("a", 50).await;
    client
        .batch_execute("create policy less on events as restrictive for select using (stream = 'nowhere')")
        .await
        .unwrap();
    sampler.wait("a restrictive policy takes it back", "a", waits).await;
    client.batch_execute("alter role filtered bypassrls").await.unwrap();
    sampler.seen_within_two_polls().await;
    sampler.wait_pending("a", 50).await;
    // The owner is bound only where the table forces it, a superuser never.
    sampler.declare("b", |spec| {
        for store in ["source", "readStore"] {
            spec[store]["postgres"]["connection"]["secretRef"]["name"] = json!("owner");
        }
    });
    commit(&client, "b", 0).await;
    sampler.wait_pending("b", 50).await;
    client.batch_execute("alter role filtered nobypassrls").await.unwrap();
    sampler.wait("a right that is taken away later is noticed", "a", waits).await;
}

#[tokio::test]
async fn a_checkpoint_that_row_security_may_hide_is_unknown_and_not_missing() {
    let (_, client) = database(server(), "hidden_checkpoints").await;
    server().create_role("unseeing", "unseeing").await.unwrap();
    client
        .batch_execute(
            "grant select on events, checkpoints to unseeing; alter table checkpoints enable row level security",
        )
        .await
        .unwrap();
    commit(&client, "a", 0).await;
    let url = server().url_as("unseeing", "unseeing", "hidden_checkpoints");
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("a", |_| {});
    let unknown = sampler.wait_unknown("a", Reason::PermissionDenied).await;
    assert!(unknown.message.contains("checkpoint table checkpoints: row security"), "{}", unknown.message);
    client.batch_execute("create policy p on checkpoints for select to unseeing using (true)").await.unwrap();
    sampler.seen_within_two_polls().await;
    sampler.wait_pending("a", 0).await;
}

#[tokio::test]
async fn names_in_a_checkpoint_table_may_be_of_any_type_that_can_be_told_apart() {
    let (url, client) = database(server(), "names").await;
    client.batch_execute("create extension if not exists citext; create domain label as text; create type kind as enum ('orders', 'bills')").await.unwrap();
    let uuid = "6F9619FF-8B86-D011-B42D-00C04FC964FF";
    let mut sampler = Running::start(&[("db", &url)]);
    for (table, type_, name) in [
        ("by_uuid", "uuid", uuid),
        ("by_int", "int", "7"),
        ("by_bigint", "bigint", "-7000000000"),
        ("by_enum", "kind", "orders"),
        ("by_varchar", "varchar(20)", "orders"),
        ("by_char", "char(20)", "orders"),
        ("by_domain", "label", "orders"),
        ("by_citext", "citext", "orders"),
        ("by_name", "name", "orders"),
    ] {
        client
            .batch_execute(&format!("create table {table} (projection {type_} primary key, position bigint); insert into {table} values ('{name}', 0)"))
            .await
            .unwrap();
        sampler.declare(table, |spec| spec["checkpoint"]["readStore"] = json!({ "table": table, "name": name }));
        sampler.wait_pending(table, 0).await;
        // A name that the type cannot hold is no row, and disturbs no other.
        let other = format!("{table}-other");
        sampler.declare(&other, |spec| {
            spec["checkpoint"]["readStore"] = json!({ "table": table, "name": "no such name" });
        });
        sampler.wait_unknown(&other, Reason::NeverCommitted).await;
        sampler.wait_pending(table, 0).await;
    }
    client.batch_execute("create table by_bytes (projection bytea, position bigint); create table by_text (projection text, position text)").await.unwrap();
    for (table, words) in [("by_bytes", "column projection must be"), ("by_text", "column position must be")] {
        sampler.declare(table, |spec| spec["checkpoint"]["readStore"] = json!({ "table": table }));
        let unknown = sampler.wait_unknown(table, Reason::ColumnTypeUnsuitable).await;
        assert!(unknown.message.contains(words), "{}", unknown.message);
    }
}

#[tokio::test]
async fn a_column_of_the_built_in_projector_that_is_mended_is_seen_within_two_polls() {
    let (url, client) = database(server(), "mended_column").await;
    client
        .batch_execute("alter table events alter column data drop default, alter column data type bytea using ''")
        .await
        .unwrap();
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("a", |spec| {
        spec["projector"] = json!({ "builtin": { "handlers": { "A": "select 1" } } });
        spec["scaling"] = json!({ "shards": 4 });
        spec.as_object_mut().unwrap().remove("checkpoint");
    });
    sampler.wait_unknown("a", Reason::ColumnTypeUnsuitable).await;
    client.batch_execute("alter table events alter column data type jsonb using '{}'").await.unwrap();
    sampler.seen_within_two_polls().await;
    sampler.wait_unknown("a", Reason::NeverCommitted).await;
}
