//! An event store as Marten 8 makes it: `mt_events` (also partitioned by `is_archived`), the progression of its async daemon, and dead letters.

use projectionist::{
    api::Reason,
    clients::postgres::shard_expression,
    lag::{Pending, Position},
};
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::event_stores::{MARTEN_DEAD_LETTERS, marten_appended, marten_ddl};
use crate::harness::{
    BUILTIN_CHECKPOINTS, Running, built_in, counted_in_shards, exactly_these_rights_suffice, log_head,
    sampler_connections, server,
};

async fn store(name: &str, schema: &str, partitioned: bool) -> (String, Client) {
    let url = server().create_database(name).await.unwrap();
    let client = server().connect(name).await.unwrap();
    client.batch_execute(&format!("create schema if not exists {schema}")).await.unwrap();
    client.batch_execute(&marten_ddl(schema, partitioned)).await.unwrap();
    (url, client)
}

fn appended(schema: &str, count: i64, tenant: &str) -> String {
    marten_appended(schema, count, tenant, "'{}'")
}

async fn append(client: &Client, count: i64) {
    client.batch_execute(&appended("public", count, "*DEFAULT*")).await.unwrap();
}

async fn mark(client: &Client, name: &str, position: i64) {
    client.execute("select mt_mark_event_progression($1, $2)", &[&name, &position]).await.unwrap();
}

fn marten(fields: Value) -> impl FnOnce(&mut Value) {
    move |spec| {
        *spec = json!({
            "source": { "postgres": { "connection": { "secretRef": { "name": "db" } }, "marten": fields } },
            "lag": { "target": "5s" },
        });
    }
}

#[tokio::test]
async fn what_waits_beyond_a_projections_progression_is_counted_with_its_age() {
    let (url, client) = store("marten_states", "public", false).await;
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("a", marten(json!({ "projection": "Orders" })));
    sampler.wait_unknown("a", Reason::NeverCommitted).await;

    mark(&client, "Orders:All", 0).await;
    let none = sampler.wait_pending("a", 0).await;
    assert_eq!((log_head(&none.sample).raw, none.sample.parked), (Position(0), None), "empty");
    assert_eq!(none.sample.staleness, Some(std::time::Duration::ZERO));
    append(&client, 5).await;
    client.batch_execute("update mt_events set timestamp = now() - interval '1 hour' where seq_id = 3").await.unwrap();
    let behind = sampler.wait_pending("a", 5).await;
    assert_eq!((log_head(&behind.sample).safe, behind.sample.arrived), (Position(5), 5));
    mark(&client, "Orders:All", 2).await;
    let stale = sampler.wait_pending("a", 3).await;
    assert!(stale.sample.staleness.unwrap().as_secs() >= 3_600, "by the third event's own time");
    mark(&client, "Orders:All", 5).await;
    sampler.wait_pending("a", 0).await;

    // A reserved position is no event: what the sequence has handed out says nothing.
    client.batch_execute("select nextval('mt_events_sequence')").await.unwrap();
    append(&client, 1).await;
    let one = sampler.wait_pending("a", 1).await;
    assert_eq!(log_head(&one.sample).raw, Position(7));

    // Rewound, as for a rebuild.
    mark(&client, "Orders:All", 0).await;
    sampler.wait_pending("a", 6).await;
    client
        .batch_execute("delete from mt_events where seq_id > 5; select setval('mt_events_sequence', 5)")
        .await
        .unwrap();
    let back = sampler.wait_measured("the head moved back", "a", |m| log_head(&m.sample).raw == Position(5)).await;
    assert_eq!(back.assessment.pending.events, 5);
}

#[tokio::test]
async fn a_store_that_is_dropped_is_told_and_one_that_is_made_again_begins_without_a_progression() {
    let (url, client) = store("marten_dropped", "shop", false).await;
    client.batch_execute(&appended("shop", 5, "*DEFAULT*")).await.unwrap();
    let mark = "select shop.mt_mark_event_progression('Orders:All', $1)";
    client.execute(mark, &[&3_i64]).await.unwrap();
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("a", marten(json!({ "schema": "shop", "projection": "Orders" })));
    sampler.wait_pending("a", 2).await;
    client.batch_execute("drop schema shop cascade").await.unwrap();
    sampler.wait_unknown("a", Reason::TableNotFound).await;
    client.batch_execute(&format!("create schema shop; {}", marten_ddl("shop", false))).await.unwrap();
    client.batch_execute(&appended("shop", 4, "*DEFAULT*")).await.unwrap();
    sampler.wait_unknown("a", Reason::NeverCommitted).await;
    client.execute(mark, &[&0_i64]).await.unwrap();
    let again = sampler.wait_pending("a", 4).await;
    assert_eq!(log_head(&again.sample).raw, Position(4));
}

#[tokio::test]
async fn an_open_append_holds_the_safe_head_and_archived_events_and_other_tenants_do_not_wait() {
    let (url, client) = store("marten_archived", "public", true).await;
    mark(&client, "Orders:V2:All", 0).await;
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("all", marten(json!({ "projection": "Orders:V2:All" })));
    sampler.declare("one", marten(json!({ "projection": "Orders:V2:All", "tenant": "it's \\one" })));
    sampler.wait_pending("all", 0).await;

    let slow = server().connect("marten_archived").await.unwrap();
    slow.batch_execute(&format!("begin; {}", appended("public", 1, "*DEFAULT*"))).await.unwrap();
    append(&client, 3).await;
    let held = sampler.wait_measured("held", "all", |m| m.sample.held_back == 3).await;
    assert_eq!((log_head(&held.sample).raw, log_head(&held.sample).safe), (Position(4), Position(0)));
    slow.batch_execute("commit").await.unwrap();
    sampler.wait_pending("all", 4).await;

    client.batch_execute(&appended("public", 2, "it''s \\one")).await.unwrap();
    sampler.wait_pending("all", 6).await;
    sampler.wait_pending("one", 2).await;
    client.batch_execute("update mt_events set is_archived = true where seq_id in (2, 5)").await.unwrap();
    sampler.wait_pending("all", 4).await;
    sampler.wait_pending("one", 1).await;
}

#[tokio::test]
async fn positions_that_rich_appends_draw_before_their_transaction_count_late_and_are_told_where_they_are_passed() {
    let (url, client) = store("marten_rich", "public", false).await;
    for name in ["Behind:All", "Ahead:All"] {
        mark(&client, name, 0).await;
    }
    let mut sampler = Running::start(&[("db", &url)]);
    for name in ["Behind", "Ahead"] {
        sampler.declare(name, marten(json!({ "projection": name })));
        sampler.wait_pending(name, 0).await;
    }
    // With `EventAppendMode.Rich` each position is drawn by a statement of its own, and no lock shows it.
    let drawn: i64 = client.query_one("select nextval('mt_events_sequence')", &[]).await.unwrap().get(0);
    append(&client, 3).await;
    for name in ["Behind", "Ahead"] {
        sampler.wait_pending(name, 3).await;
    }
    mark(&client, "Ahead:All", 4).await;
    sampler.wait_pending("Ahead", 0).await;
    let insert = "insert into mt_events (seq_id, id, stream_id, version, data, type, is_archived)
        values ($1, gen_random_uuid(), gen_random_uuid(), 1, '{}', 'ordered', false)";
    client.execute(insert, &[&drawn]).await.unwrap();
    sampler.wait_pending("Behind", 4).await;
    let passed = |m: &projectionist::snapshot::Measured| m.sample.faults.passed_over.positions == [Position(drawn)];
    sampler.wait_measured("passed over", "Ahead", passed).await;
    sampler.wait_pending("Ahead", 0).await;
}

#[tokio::test]
async fn dead_letters_are_told_for_their_projection_alone_and_many_projections_share_one_connection() {
    let (url, client) = store("marten_parked", "public", false).await;
    client.batch_execute(MARTEN_DEAD_LETTERS).await.unwrap();
    append(&client, 12).await;
    let mut sampler = Running::start(&[("db", &url)]);
    for n in 0..12_i64 {
        mark(&client, &format!("P{n}:All"), n).await;
        sampler.declare(&format!("p{n}"), marten(json!({ "projection": format!("P{n}") })));
    }
    let dead = |name: &str| {
        json!({ "ProjectionName": name, "ShardName": "All", "EventSequence": 3, "ExceptionType": "Failed" }).to_string()
    };
    for name in ["P1", "P1", "P2"] {
        let letter = "insert into mt_doc_deadletterevent (id, data) values (gen_random_uuid(), $1::text::jsonb)";
        client.execute(letter, &[&dead(name)]).await.unwrap();
    }
    for (n, parked) in [(0, 0), (1, 2), (2, 1), (11, 0)] {
        let pending = Pending { events: u64::try_from(12 - n).unwrap(), exact: true };
        let told =
            |m: &projectionist::snapshot::Measured| m.sample.parked == Some(parked) && m.assessment.pending == pending;
        sampler.wait_measured("pending and parked", &format!("p{n}"), told).await;
    }
    assert_eq!(sampler_connections(&client, "marten_parked").await, 1);
}

#[tokio::test]
async fn the_rights_that_the_page_names_suffice_and_each_is_needed() {
    let (_, client) = store("marten_rights", "orders", false).await;
    client.batch_execute(&appended("orders", 2, "*DEFAULT*")).await.unwrap();
    client.batch_execute("insert into orders.mt_event_progression values ('Orders:All', 1)").await.unwrap();
    server().create_role("marten_reader", "hunter2").await.unwrap();
    let mut sampler = Running::start(&[("db", &server().url_as("marten_reader", "hunter2", "marten_rights"))]);
    sampler.declare("a", marten(json!({ "schema": "orders", "projection": "Orders" })));
    let grants = [
        "grant usage on schema orders to marten_reader",
        "grant select on orders.mt_events to marten_reader",
        "grant select on orders.mt_event_progression to marten_reader",
    ];
    exactly_these_rights_suffice(&client, &sampler, "a", &grants, 1).await;
}

#[tokio::test]
async fn a_store_that_is_elsewhere_is_missed_with_what_is_expected_there() {
    let (url, _) = store("marten_elsewhere", "orders", false).await;
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("a", marten(json!({ "projection": "Orders" })));
    let missing = sampler.wait_unknown("a", Reason::TableNotFound).await;
    for part in ["event source: ", "public.mt_event_progression", "spec.source.postgres.marten.schema", "Marten 5"] {
        assert!(missing.message.contains(part), "{part}: {}", missing.message);
    }
}

#[tokio::test]
async fn the_built_in_projectors_own_checkpoint_is_counted_by_shard_without_archived_events() {
    let (url, client) = store("marten_builtin", "public", false).await;
    append(&client, 60).await;
    client.batch_execute("update mt_events set is_archived = true where seq_id % 3 = 0").await.unwrap();
    let checkpoints = format!(
        "{BUILTIN_CHECKPOINTS} insert into projectionist_checkpoints select 'shop/a', shard, 4, 15 * shard from generate_series(0, 3) shard"
    );
    client.batch_execute(&checkpoints).await.unwrap();
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("a", built_in(json!({ "marten": {} })));
    let seen = sampler.wait_measured("measured", "a", |m| m.sample.pending.is_some()).await;
    let count = format!(
        "select count(*) from mt_events e join projectionist_checkpoints c on c.shard = {}
         where e.seq_id > c.position and not e.is_archived",
        shard_expression("stream_id", 4)
    );
    let expected = counted_in_shards(&client, &count).await;
    assert_eq!(seen.sample.pending_by_shard, expected);
    assert_eq!(seen.assessment.pending, Pending { events: expected.iter().sum(), exact: true });
}
