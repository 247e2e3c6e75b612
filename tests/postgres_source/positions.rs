//! Which tables are refused because an event could be passed over, and which are not.

use projectionist::api::Reason;
use serde_json::json;

use test_cluster::Postgres;

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
            "create table messages (global_position bigserial not null, id uuid, recorded_at timestamptz);
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
             insert into events_of_all (tenant) select 'a' from generate_series(1, 5000) n;
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

/// Each sets a table up, says what the message must hold, and mends the table.
const OUT_OF_ORDER: [(&str, &str, &[&str], &str); 15] = [
    (
        "blocks",
        "create sequence blocks_of_50 increment by 50; create table blocks (position bigint primary key default nextval('blocks_of_50'), recorded_at timestamptz)",
        &["blocks_of_50", "steps of 50", "alter sequence blocks_of_50 increment by 1"],
        "alter sequence blocks_of_50 increment by 1",
    ),
    (
        "owned_blocks",
        "create sequence hibernate_sequence increment by 50; create table owned_blocks (position bigint primary key, recorded_at timestamptz);
         alter sequence hibernate_sequence owned by owned_blocks.position",
        &["hibernate_sequence", "steps of 50"],
        "alter sequence hibernate_sequence increment by 1",
    ),
    (
        "identity_blocks",
        "create table identity_blocks (position bigint generated always as identity (increment by 2) primary key, recorded_at timestamptz)",
        &["identity_blocks_position_seq", "steps of 2"],
        "alter sequence identity_blocks_position_seq increment by 1",
    ),
    (
        "falling",
        "create table falling (position bigint generated by default as identity (increment by -1 minvalue 1 maxvalue 100000 start with 100000) primary key, recorded_at timestamptz)",
        &["falling_position_seq", "counts down"],
        "alter sequence falling_position_seq increment by 1 restart with 1",
    ),
    (
        "cached",
        "create table cached (position bigint generated by default as identity (cache 20) primary key, recorded_at timestamptz)",
        &["cached_position_seq", "20 positions at once", "alter sequence cached_position_seq cache 1"],
        "alter sequence cached_position_seq cache 1",
    ),
    (
        "cycling",
        "create table cycling (position bigserial primary key, recorded_at timestamptz); alter sequence cycling_position_seq maxvalue 1000 cycle",
        &["cycling_position_seq", "CYCLE", "alter sequence cycling_position_seq no cycle"],
        "alter sequence cycling_position_seq no cycle",
    ),
    (
        "from_nought",
        "create table from_nought (position bigint generated always as identity (minvalue 0 start with 0) primary key, recorded_at timestamptz)",
        &["hands out 0 next", "minvalue 1 start 1 restart 1"],
        "alter sequence from_nought_position_seq minvalue 1 start 1 restart 1",
    ),
    (
        "two_sequences",
        "create table two_sequences (position bigserial primary key, recorded_at timestamptz); create sequence another owned by two_sequences.position",
        &["several sequences feed column \"position\" (another, two_sequences_position_seq)"],
        "alter sequence another owned by none",
    ),
    (
        "part_of_its_own",
        "create table part_of_its_own (position bigserial primary key, recorded_at timestamptz) partition by range (position); create sequence of_a_part;
         create table part_of_its_own_1 partition of part_of_its_own for values from (1) to (1000);
         alter table part_of_its_own_1 alter column position set default nextval('of_a_part')",
        &["several sequences", "of_a_part"],
        "alter table part_of_its_own_1 alter column position set default nextval('part_of_its_own_position_seq')",
    ),
    (
        "by_chance",
        "create table by_chance (position bigint primary key default (random() * 1e15)::bigint, recorded_at timestamptz); create sequence by_chance_seq",
        &["random()", "let one sequence feed the column"],
        "alter table by_chance alter column position set default nextval('by_chance_seq')",
    ),
    (
        "by_clock",
        "create table by_clock (position bigint primary key default (extract(epoch from now()) * 1000000)::bigint, recorded_at timestamptz)",
        &["now()", "append at an earlier position"],
        "alter table by_clock alter column position drop default",
    ),
    (
        "spread",
        "create sequence spread_seq; create table spread (position bigint primary key default nextval('spread_seq') % 1000, recorded_at timestamptz)",
        &["% (1000)", "let one sequence feed the column"],
        "alter table spread alter column position set default nextval('spread_seq')",
    ),
    (
        "by_text",
        "create sequence by_text_seq; create table by_text (position bigint primary key default nextval(('by_text_seq'::text)::regclass), recorded_at timestamptz)",
        &["nextval(('by_text_seq'::text)::regclass)"],
        "alter table by_text alter column position set default nextval('by_text_seq'::regclass)",
    ),
    (
        "computed_from_another",
        "create table computed_from_another (id bigint, position bigint generated always as (id * 2) stored primary key, recorded_at timestamptz)",
        &["(id * 2)"],
        "alter table computed_from_another alter column position drop expression",
    ),
    (
        "imported",
        "create table imported (position bigserial primary key, recorded_at timestamptz); insert into imported (position) values (70), (90)",
        &["imported_position_seq hands out 1 next", "an event at position 90", "select setval('imported_position_seq', (select max(\"position\") from \"imported\"))"],
        "select setval('imported_position_seq', (select max(\"position\") from \"imported\"))",
    ),
];

#[tokio::test]
async fn positions_that_are_handed_out_in_another_order_than_written_are_refused_and_taken_once_mended() {
    let (url, client) = database(server(), "out_of_order").await;
    let mut sampler = Running::start(&[("db", &url)]);
    for (table, setup, ..) in OUT_OF_ORDER {
        client.batch_execute(setup).await.unwrap();
        declare(&mut sampler, &client, table, "position").await;
    }
    for (table, _, words, _) in OUT_OF_ORDER {
        let unknown = sampler.wait_unknown(table, Reason::PositionUnsuitable).await;
        assert!(words.iter().all(|word| unknown.message.contains(word)), "{table}: {}", unknown.message);
    }
    for (table, _, _, mended) in OUT_OF_ORDER {
        client.batch_execute(mended).await.unwrap_or_else(|error| panic!("{mended}: {error:?}"));
        sampler.wait_measured("measured", table, |_| true).await;
    }
}

#[tokio::test]
async fn a_sequence_that_is_changed_while_it_is_followed_is_noticed() {
    let (url, client) = database(server(), "changed_later").await;
    commit(&client, "a", 0).await;
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("a", |_| {});
    sampler.wait_pending("a", 0).await;
    client.batch_execute("alter sequence events_position_seq cache 50").await.unwrap();
    let unknown = sampler.wait_unknown("a", Reason::PositionUnsuitable).await;
    assert!(unknown.message.contains("50 positions at once"), "{}", unknown.message);
}

#[tokio::test]
async fn sequences_that_do_not_feed_the_position_and_plain_arithmetic_do_not_matter() {
    let (url, client) = database(server(), "in_order").await;
    let mut sampler = Running::start(&[("db", &url)]);
    for (table, setup) in [
        (
            "other_column",
            "create table other_column (position bigserial primary key, id bigserial, recorded_at timestamptz); alter sequence other_column_id_seq cache 50 increment by 50",
        ),
        (
            "tens",
            "create sequence tens_seq; create table tens (position bigint primary key default nextval('tens_seq') * 10 + 1, recorded_at timestamptz)",
        ),
        ("narrow", "create table narrow (position serial primary key, recorded_at timestamptz)"),
        (
            "own_function",
            "create function next_position() returns bigint language sql as 'select 1::bigint'; create table own_function (position bigint primary key default next_position(), recorded_at timestamptz)",
        ),
        ("no_default", "create table no_default (position bigint primary key default null, recorded_at timestamptz)"),
    ] {
        client.batch_execute(setup).await.unwrap();
        declare(&mut sampler, &client, table, "position").await;
        sampler.wait_pending(table, 0).await;
    }
}

#[tokio::test]
async fn a_table_that_a_subscription_fills_is_refused_since_rows_come_in_the_order_of_commits() {
    let publisher = Postgres::on_loopback().unwrap();
    let owner = publisher.connect("postgres").await.unwrap();
    owner.batch_execute("alter system set wal_level = 'logical'").await.unwrap();
    publisher.stop().unwrap();
    publisher.start().unwrap();
    let (_, there) = database(&publisher, "publisher").await;
    let (url, here) = database(&publisher, "subscriber").await;
    there.batch_execute("create publication p for table events").await.unwrap();
    there.execute("select pg_create_logical_replication_slot('s', 'pgoutput')", &[]).await.unwrap();
    let subscribe = format!(
        "create subscription s connection '{}' publication p with (create_slot = false)",
        publisher.url("publisher")
    );
    here.batch_execute(&subscribe).await.unwrap();
    commit(&here, "a", 0).await;
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("a", |_| {});
    let unknown = sampler.wait_unknown("a", Reason::PositionUnsuitable).await;
    assert!(unknown.message.contains("connect to the publisher"), "{}", unknown.message);
    here.batch_execute(
        "alter subscription s disable; alter subscription s set (slot_name = none); drop subscription s",
    )
    .await
    .unwrap();
    sampler.wait_pending("a", 0).await;
}
