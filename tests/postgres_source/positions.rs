//! Which tables are refused because an event could be passed over, and which are not.

use projectionist::api::Reason;
use serde_json::json;

use crate::harness::{Running, commit, database, server};

/// Declares a Projection of the same name over each table.
async fn declare(sampler: &mut Running, client: &tokio_postgres::Client, table: &str, position: &str) {
    commit(client, table, 0).await;
    sampler.declare(table, |spec| {
        spec["source"]["postgres"]["eventTable"] = json!({ "table": table, "position": position });
    });
}

const REFUSED: [(&str, &str, &str); 11] = [
    (
        "bare",
        "create table bare (position bigint generated always as identity, recorded_at timestamptz)",
        "create unique index concurrently on \"bare\" (\"position\")",
    ),
    (
        "plainly_indexed",
        "create table plainly_indexed (position bigserial, recorded_at timestamptz); create index on plainly_indexed (position)",
        "concurrently",
    ),
    (
        "per_tenant",
        "create table per_tenant (tenant text, position bigint, recorded_at timestamptz, primary key (tenant, position))",
        "concurrently",
    ),
    (
        "tenant_last",
        "create table tenant_last (tenant text, position bigint, recorded_at timestamptz, primary key (position, tenant))",
        "concurrently",
    ),
    (
        "partial",
        "create table partial (position bigserial, recorded_at timestamptz); create unique index on partial (position) where position > 10",
        "concurrently",
    ),
    (
        "computed",
        "create table computed (position bigserial, recorded_at timestamptz); create unique index on computed ((position + 0))",
        "concurrently",
    ),
    (
        "by_position",
        "create table by_position (position bigserial, recorded_at timestamptz) partition by range (position);
         create table by_position_1 partition of by_position for values from (0) to (1000);
         create unique index on by_position_1 (position)",
        "create unique index on \"by_position\" (\"position\")",
    ),
    (
        "by_time_unindexed",
        "create table by_time_unindexed (position bigserial, recorded_at timestamptz) partition by range (recorded_at);
         create table by_time_unindexed_1 partition of by_time_unindexed default",
        "create unique index on \"by_time_unindexed\" (\"position\", \"recorded_at\")",
    ),
    (
        "by_time_without_sequence",
        "create table by_time_without_sequence (position bigint, recorded_at timestamptz, primary key (position, recorded_at)) partition by range (recorded_at)",
        "one sequence",
    ),
    (
        "sequence_each",
        "create table sequence_each (tenant text, position bigint, recorded_at timestamptz, primary key (position, tenant)) partition by list (tenant);
         create table sequence_each_a partition of sequence_each for values in ('a'); create table sequence_each_b partition of sequence_each for values in ('b');
         create sequence positions_of_a owned by sequence_each_a.position; create sequence positions_of_b owned by sequence_each_b.position",
        "one sequence",
    ),
    (
        "inherited",
        "create table inherited (position bigserial primary key, recorded_at timestamptz);
         create table inheriting () inherits (inherited)",
        "inheriting",
    ),
];

#[tokio::test]
async fn a_table_where_two_events_may_share_a_position_is_refused_and_the_advice_tells_what_to_do() {
    let (url, client) = database(server(), "shared_positions").await;
    let mut sampler = Running::start(&[("db", &url)]);
    for (table, setup, _) in REFUSED {
        client.batch_execute(setup).await.unwrap();
        declare(&mut sampler, &client, table, "position").await;
    }
    for (table, _, advice) in REFUSED {
        let unknown = sampler.wait_unknown(table, Reason::PositionUnsuitable).await;
        assert!(unknown.message.contains(advice) && unknown.message.contains(table), "{}", unknown.message);
    }
    for (table, mended) in [
        ("bare", "create unique index concurrently on \"bare\" (\"position\")"),
        ("by_position", "create unique index on \"by_position\" (\"position\")"),
        ("by_time_unindexed", "create unique index on \"by_time_unindexed\" (\"position\", \"recorded_at\")"),
        ("inherited", "create unique index on inheriting (position)"),
    ] {
        client.batch_execute(mended).await.unwrap();
        sampler.wait_pending(table, 0).await;
    }
}

#[tokio::test]
async fn an_index_that_could_not_be_built_proves_nothing() {
    let (url, client) = database(server(), "invalid_index").await;
    client
        .batch_execute(
            "create table twice (position bigint, recorded_at timestamptz); insert into twice values (1), (1)",
        )
        .await
        .unwrap();
    client.batch_execute("create unique index concurrently on twice (position)").await.unwrap_err();
    let mut sampler = Running::start(&[("db", &url)]);
    declare(&mut sampler, &client, "twice", "position").await;
    sampler.wait_unknown("twice", Reason::PositionUnsuitable).await;
}

#[tokio::test]
async fn the_tables_of_known_event_stores_are_taken() {
    let (url, client) = database(server(), "known_stores").await;
    let mut sampler = Running::start(&[("db", &url)]);
    for (table, position, setup) in [
        (
            "mt_events",
            "seq_id",
            "create table mt_events (seq_id bigint not null constraint pkey_mt_events_seq_id primary key, recorded_at timestamptz);
             create sequence mt_events_sequence; alter sequence mt_events_sequence owned by mt_events.seq_id",
        ),
        (
            "mt_archiving",
            "seq_id",
            "create table mt_archiving (seq_id bigint not null, recorded_at timestamptz, is_archived bool not null default false,
                 primary key (seq_id, is_archived)) partition by list (is_archived);
             create table mt_archiving_archived partition of mt_archiving for values in (true);
             create table mt_archiving_default partition of mt_archiving default;
             create sequence mt_archiving_sequence; alter sequence mt_archiving_sequence owned by mt_archiving.seq_id",
        ),
        (
            "messages",
            "global_position",
            "create table messages (global_position bigserial not null, id uuid, recorded_at timestamp without time zone);
             alter table messages add primary key (global_position) not deferrable initially immediate",
        ),
        (
            "covering",
            "position",
            "create table covering (position bigserial, recorded_at timestamptz);
             create unique index on covering (position) include (recorded_at)",
        ),
        (
            "by_month",
            "position",
            "create table by_month (position bigint generated always as identity, recorded_at timestamptz not null, primary key (position, recorded_at)) partition by range (recorded_at);
             create table by_month_past (recorded_at timestamptz not null, gone int, position bigint not null);
             alter table by_month_past drop column gone;
             alter table by_month attach partition by_month_past for values from (minvalue) to (now())",
        ),
        (
            "by_thousand",
            "position",
            "create table by_thousand (position bigint primary key, recorded_at timestamptz) partition by range (position);
             create table by_thousand_1 partition of by_thousand for values from (minvalue) to (1000)",
        ),
    ] {
        client.batch_execute(setup).await.unwrap();
        declare(&mut sampler, &client, table, position).await;
        sampler.wait_pending(table, 0).await;
    }
}

#[tokio::test]
async fn positions_that_stand_twice_in_spite_of_a_sequence_are_found() {
    let (url, client) = database(server(), "in_spite").await;
    client
        .batch_execute(
            "create table events_of_all (tenant text, position bigserial, recorded_at timestamptz, primary key (position, tenant)) partition by list (tenant);
             create table events_of_a partition of events_of_all for values in ('a'); create table events_of_b partition of events_of_all for values in ('b');
             insert into events_of_all (tenant, position) select 'a', n from generate_series(1, 5000) n;
             insert into events_of_all (tenant, position) values ('b', 7)",
        )
        .await
        .unwrap();
    let mut sampler = Running::start(&[("db", &url)]);
    declare(&mut sampler, &client, "events_of_all", "position").await;
    let unknown = sampler.wait_unknown("events_of_all", Reason::PositionUnsuitable).await;
    assert!(unknown.message.contains("several events are at position 7"), "{}", unknown.message);
    client.batch_execute("delete from events_of_b").await.unwrap();
    sampler.wait_measured("measured", "events_of_all", |_| true).await;
}

#[tokio::test]
async fn an_event_where_no_checkpoint_ever_reaches_is_told() {
    let (url, client) = database(server(), "below_one").await;
    client
        .batch_execute(
            "create table from_zero (position bigint primary key, recorded_at timestamptz); insert into from_zero values (0), (1);
             create table nowhere (position bigint unique, recorded_at timestamptz); insert into nowhere values (1), (null)",
        )
        .await
        .unwrap();
    let mut sampler = Running::start(&[("db", &url)]);
    for (table, what) in [("from_zero", "an event is at position 0 "), ("nowhere", "an event has no position ")] {
        declare(&mut sampler, &client, table, "position").await;
        let unknown = sampler.wait_unknown(table, Reason::PositionUnsuitable).await;
        assert!(unknown.message.contains(what) && unknown.message.contains("from 1 on"), "{}", unknown.message);
        client.batch_execute(&format!("delete from {table} where position is distinct from 1")).await.unwrap();
        sampler.wait_pending(table, 1).await;
    }
}
