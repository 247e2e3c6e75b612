//! Journal and offsets as the scripts of akka-persistence-r2dbc 1.2 and akka-projection-r2dbc 1.5 make them (Pekko's 1.0 differ in the names of the
//! offsets' tables), with the statements by which they append, clean up and store offsets.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use projectionist::{
    api::Reason,
    lag::{Head, Note, Pending},
    snapshot::Measured,
};
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::event_stores::{AKKA, akka_appended, akka_cart_in, akka_slice};
use crate::harness::{Running, SOON, exactly_these_rights_suffice, sampler_connections, server};

const OFFSETS: &str = "akka_projection_timestamp_offset_store";

async fn store(name: &str) -> (String, Client) {
    let url = server().create_database(name).await.unwrap();
    let client = server().connect(name).await.unwrap();
    client.batch_execute(AKKA).await.unwrap();
    (url, client)
}

/// Events of one persistence id in a transaction that began at this time.
fn appended(id: &str, events: i64, began: &str) -> String {
    akka_appended(id, events, began, "''")
}

async fn append(client: &Client, id: &str, events: i64) {
    client.batch_execute(&appended(id, events, "current_timestamp")).await.unwrap();
}

async fn append_at(client: &Client, id: &str, ago: &str) {
    client.batch_execute(&appended(id, 1, &format!("current_timestamp - interval '{ago}'"))).await.unwrap();
}

/// As a projection stores that it has handled an event.
async fn handled(client: &Client, projection: &str, key: &str, id: &str, seq_nr: i64) {
    let insert = format!(
        "insert into {OFFSETS} select $1::text, $2::text, slice, persistence_id, seq_nr, db_timestamp, current_timestamp
         from event_journal where persistence_id = $3::text and seq_nr = $4"
    );
    assert_eq!(client.execute(&insert, &[&projection, &key, &id, &seq_nr]).await.unwrap(), 1, "{id} {seq_nr}");
}

fn akka(fields: Value) -> impl FnOnce(&mut Value) {
    move |spec| {
        let mut akka = json!({ "projection": "carts", "entityType": "Cart" });
        akka.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        *spec = json!({
            "source": { "postgres": { "connection": { "secretRef": { "name": "db" } }, "akka": akka } },
            "lag": { "target": "5s" },
        });
    }
}

fn staleness(measured: &Measured) -> f64 {
    measured.sample.staleness.unwrap().as_secs_f64()
}

#[tokio::test]
async fn events_wait_that_came_after_the_offset_of_their_range() {
    let (url, client) = store("akka_states").await;
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("a", akka(json!({ "ranges": 1 })));
    sampler.wait_unknown("a", Reason::NeverCommitted).await;
    append_at(&client, "Cart|1", "2 hours").await;
    append_at(&client, "Cart|2", "1 hour").await;
    append_at(&client, "Order|1", "3 hours").await;
    sampler.wait_unknown("a", Reason::NeverCommitted).await;
    handled(&client, "carts", "all", "Cart|1", 1).await;
    handled(&client, "other", "all", "Cart|2", 1).await;
    let one = sampler.wait_pending("a", 1).await;
    assert!((3_600.0..3_720.0).contains(&staleness(&one)), "{}", staleness(&one));
    assert_eq!(one.sample.arrived, 0, "what was there is no arrival");
    handled(&client, "carts", "all", "Cart|2", 1).await;
    let done = sampler.wait_pending("a", 0).await;
    assert_eq!(done.sample.staleness, Some(Duration::ZERO));
    assert_eq!(done.sample.head_text().unwrap().0, done.sample.checkpoint_text().unwrap(), "microseconds since 1970");
    append(&client, "Cart|1", 3).await;
    append(&client, "Order|1", 1).await;
    let three = sampler.wait_pending("a", 3).await;
    assert_eq!((three.sample.arrived, three.sample.pending_by_shard.clone()), (3, vec![3]));
    // They were persisted together, so that they have one time, and are handled one by one.
    handled(&client, "carts", "all", "Cart|1", 2).await;
    sampler.wait_pending("a", 2).await;
    handled(&client, "carts", "all", "Cart|1", 4).await;
    sampler.wait_pending("a", 0).await;
    // Deleted for good, with the marker that keeps the sequence number.
    append(&client, "Cart|3", 2).await;
    sampler.wait_pending("a", 2).await;
    let marker = format!(
        "delete from event_journal where persistence_id = 'Cart|3'; insert into event_journal (slice, entity_type, persistence_id, seq_nr, db_timestamp, writer, event_ser_id, event_ser_manifest, event_payload, deleted) values ({}, 'Cart', 'Cart|3', 2, current_timestamp, '', 0, '', '', true)",
        akka_slice("Cart|3")
    );
    client.batch_execute(&marker).await.unwrap();
    assert_eq!(sampler.wait_pending("a", 0).await.sample.staleness, Some(Duration::ZERO));
    // By the application's clock, which is ahead (`use-app-timestamp`).
    append_at(&client, "Cart|4", "-1 hour").await;
    let ahead = sampler.wait_pending("a", 1).await;
    assert!(ahead.sample.ahead_of_clock > Duration::from_secs(3_500), "{ahead:?}");
    append(&client, "Cart|5", 20_000).await;
    let cut = |m: &Measured| {
        let Pending { events, exact } = m.assessment.pending;
        !exact && (10_001..20_001).contains(&events)
    };
    let many = sampler.wait_measured("a lower bound", "a", cut).await;
    let says = |note: &Note| matches!(note, Note::Estimated(why) if why.contains("at least as many"));
    assert!(many.sample.notes.iter().any(says), "{:?}", many.sample.notes);
    assert_eq!(sampler_connections(&client, "akka_states").await, 1);
}

#[tokio::test]
async fn each_range_counts_beyond_its_own_offset_by_its_number_or_by_the_keys() {
    let (url, client) = store("akka_ranges").await;
    let (low, high) = (akka_cart_in(0..=511, 0), akka_cart_in(512..=1023, 0));
    for ago in ["3 hours", "2 hours", "1 hour"] {
        append_at(&client, &low, ago).await;
        append_at(&client, &high, ago).await;
    }
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("number", akka(json!({ "ranges": 2 })));
    sampler.declare("keys", akka(json!({})));
    for name in ["number", "keys"] {
        sampler.wait_unknown(name, Reason::NeverCommitted).await;
    }
    // The other range has never stored an offset, and its events wait since their beginning.
    handled(&client, "carts", "carts-0-511", &low, 3).await;
    for name in ["number", "keys"] {
        let told = sampler.wait_pending(name, 3).await;
        assert!((10_800.0..10_920.0).contains(&staleness(&told)), "{name}: {}", staleness(&told));
        assert!(matches!(&told.sample.head, Head::Shards(heads) if heads.len() == 2), "{name}: {told:?}");
    }
    assert_eq!(sampler.wait_pending("number", 3).await.sample.pending_by_shard, [0, 3]);
    handled(&client, "carts", "carts-512-1023", &high, 1).await;
    for name in ["number", "keys"] {
        let told = sampler.wait_pending(name, 2).await;
        assert_eq!(told.sample.pending_by_shard, [0, 2], "{name}");
    }
    // A slice of the lower range without an offset of its own begins where its range has come.
    let quiet = akka_cart_in(0..=511, 1);
    append_at(&client, &quiet, "90 minutes").await;
    append(&client, &quiet, 1).await;
    for name in ["number", "keys"] {
        sampler.wait_pending(name, 3).await;
    }
    // Scaled in: one instance takes over, begins where the other was furthest behind, and has not caught up.
    handled(&client, "carts", "carts-0-1023", &high, 2).await;
    sampler.wait_measured("one range", "keys", |m| m.sample.pending_by_shard == [3]).await;
    handled(&client, "carts", "carts-0-1023", &high, 3).await;
    handled(&client, "carts", "carts-0-1023", &quiet, 2).await;
    sampler.wait_pending("keys", 0).await;
    // Scaled out: offsets with the old key stay in slices where nothing comes.
    append(&client, &high, 1).await;
    handled(&client, "carts", "carts-512-1023", &high, 4).await;
    sampler.wait_measured("two ranges", "keys", |m| m.sample.pending_by_shard == [0, 0]).await;
    // A key without slices.
    handled(&client, "carts", "all", &low, 1).await;
    sampler.wait_pending("keys", 0).await;
    append(&client, &low, 1).await;
    handled(&client, "carts", "all", &low, 4).await;
    let odd = sampler.wait_unknown("keys", Reason::InvalidSpec).await;
    for part in ["schema public", "the key all of projection carts", "spec.source.postgres.akka.ranges"] {
        assert!(odd.message.contains(part), "{part}: {}", odd.message);
    }
    sampler.wait_pending("number", 0).await;
}

#[tokio::test]
async fn an_event_that_is_committed_late_waits_although_the_offset_has_passed_its_time() {
    let (url, client) = store("akka_late").await;
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("a", akka(json!({})));
    sampler.wait_unknown("a", Reason::NeverCommitted).await;
    append(&client, "Cart|1", 1).await;
    handled(&client, "carts", "carts-0-1023", "Cart|1", 1).await;
    sampler.wait_pending("a", 0).await;
    let slow = server().connect("akka_late").await.unwrap();
    slow.batch_execute(&format!("begin; {}", appended("Cart|2", 1, "current_timestamp"))).await.unwrap();
    // Ids of the slow one's slice, and of another.
    let same = (3..).map(|n| format!("Cart|{n}")).find(|id| akka_slice(id) == akka_slice("Cart|2")).unwrap();
    for id in [same.as_str(), "Cart|1"] {
        append(&client, id, 1).await;
    }
    sampler.wait_pending("a", 2).await;
    handled(&client, "carts", "carts-0-1023", &same, 1).await;
    handled(&client, "carts", "carts-0-1023", "Cart|1", 2).await;
    sampler.wait_pending("a", 0).await;
    slow.batch_execute("commit").await.unwrap();
    let late = sampler.wait_pending("a", 1).await;
    assert_eq!(late.sample.arrived, 4);
    handled(&client, "carts", "carts-0-1023", "Cart|2", 1).await;
    sampler.wait_pending("a", 0).await;
    // A batch stores the last of each persistence id: those before it are done.
    append(&client, "Cart|2", 1).await;
    append(&client, "Cart|2", 1).await;
    append(&client, &same, 1).await;
    sampler.wait_pending("a", 3).await;
    handled(&client, "carts", "carts-0-1023", &same, 2).await;
    sampler.wait_pending("a", 2).await;
    handled(&client, "carts", "carts-0-1023", "Cart|2", 3).await;
    sampler.wait_pending("a", 0).await;
    // Old offsets are deleted but for the last of each slice.
    let delete = format!(
        "delete from {OFFSETS} where persistence_id = 'Cart|2' and timestamp_offset < (select max(timestamp_offset) from {OFFSETS})"
    );
    client.batch_execute("update event_journal set db_timestamp = db_timestamp - interval '6 minutes'; update akka_projection_timestamp_offset_store set timestamp_offset = timestamp_offset - interval '6 minutes'").await.unwrap();
    append(&client, "Cart|1", 1).await;
    handled(&client, "carts", "carts-0-1023", "Cart|1", 3).await;
    client.batch_execute(&delete).await.unwrap();
    sampler.wait_pending("a", 0).await;
    append(&client, "Cart|9", 1).await;
    sampler.wait_pending("a", 1).await;
}

#[tokio::test]
async fn an_offset_beyond_the_head_and_missing_tables_are_told_and_a_journal_made_again_counts_nothing_as_arrived() {
    let (url, client) = store("akka_again").await;
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("a", akka(json!({ "ranges": 1 })));
    append_at(&client, "Cart|1", "1 hour").await;
    append(&client, "Cart|1", 1).await;
    handled(&client, "carts", "all", "Cart|1", 2).await;
    sampler.wait_pending("a", 0).await;
    // As after a restore of an older state of the journal alone.
    client.batch_execute("delete from event_journal where seq_nr = 2").await.unwrap();
    sampler.wait_unknown("a", Reason::CheckpointBeyondHead).await;
    append(&client, "Cart|1", 1).await;
    let before = sampler.wait_pending("a", 1).await.sample.arrived;
    client.batch_execute("alter table event_journal drop column deleted").await.unwrap();
    sampler.wait_unknown("a", Reason::ColumnNotFound).await;
    client.batch_execute(&format!("drop table event_journal, {OFFSETS}")).await.unwrap();
    let gone = sampler.wait_unknown("a", Reason::TableNotFound).await;
    for part in ["event store in schema public: ", "akka-persistence-r2dbc", "spec.source.postgres.akka"] {
        assert!(gone.message.contains(part), "{part}: {}", gone.message);
    }
    client
        .batch_execute(&format!("begin; {AKKA}; {}; commit", appended("Cart|1", 7, "current_timestamp")))
        .await
        .unwrap();
    sampler.wait_unknown("a", Reason::NeverCommitted).await;
    let begin = "insert into akka_projection_timestamp_offset_store values ('carts', 'all', 7, 'mgmt|1', 1, current_timestamp - interval '1 hour', current_timestamp)";
    client.batch_execute(begin).await.unwrap();
    assert_eq!(sampler.wait_pending("a", 7).await.sample.arrived, before);
    append(&client, "Cart|1", 2).await;
    assert_eq!(sampler.wait_pending("a", 9).await.sample.arrived, before + 2);
    client.batch_execute(&format!("update {OFFSETS} set timestamp_offset = 'infinity'")).await.unwrap();
    sampler.wait_unknown("a", Reason::InvalidAnswer).await;
}

#[tokio::test]
async fn the_rights_that_the_page_names_suffice_and_each_is_needed() {
    let (_, client) = store("akka_rights").await;
    server().create_role("akka_reader", "hunter2").await.unwrap();
    // With the names that Pekko gives.
    let names = "create schema own; alter table event_journal set schema own; alter table akka_projection_timestamp_offset_store set schema own;
        set search_path to own";
    client.batch_execute(names).await.unwrap();
    append(&client, "Cart|1", 2).await;
    handled(&client, "carts", "all", "Cart|1", 1).await;
    client.batch_execute(&format!("alter table {OFFSETS} rename to projection_timestamp_offset_store")).await.unwrap();
    let mut sampler = Running::start(&[("db", &server().url_as("akka_reader", "hunter2", "akka_rights"))]);
    let pekko = json!({ "ranges": 1, "schema": "own", "timestampOffsetTable": "projection_timestamp_offset_store" });
    sampler.declare("a", akka(pekko));
    let grants = [
        "grant usage on schema own to akka_reader",
        "grant select (slice, entity_type, persistence_id, seq_nr, db_timestamp, deleted) on own.event_journal to akka_reader",
        "grant select (projection_name, projection_key, slice, persistence_id, seq_nr, timestamp_offset, timestamp_consumed) on own.projection_timestamp_offset_store to akka_reader",
    ];
    exactly_these_rights_suffice(&client, &sampler, "a", &grants, 1).await;
    client.batch_execute("alter table own.event_journal enable row level security").await.unwrap();
    let hidden = sampler.wait_unknown("a", Reason::PermissionDenied).await;
    assert!(hidden.message.contains("create policy") && hidden.message.contains("event_journal"), "{}", hidden.message);
    client.batch_execute("create policy p on own.event_journal for select to akka_reader using (true)").await.unwrap();
    sampler.wait_pending("a", 1).await;
}

#[tokio::test]
async fn one_statement_a_poll_serves_all_projections_and_a_locked_table_only_delays_its_own_store() {
    let (url, client) = store("akka_many").await;
    client.batch_execute("create schema other; set search_path to other").await.unwrap();
    client.batch_execute(AKKA).await.unwrap();
    append(&client, "Cart|1", 1).await;
    handled(&client, "carts", "all", "Cart|1", 1).await;
    client.batch_execute("set search_path to public").await.unwrap();
    for n in 1..=50 {
        append(&client, &format!("Cart|{n}"), 1).await;
        let insert = "insert into akka_projection_timestamp_offset_store select $1::text, 'carts-0-1023', slice, persistence_id, seq_nr, db_timestamp, current_timestamp from event_journal order by db_timestamp desc limit 1";
        client.execute(insert, &[&format!("p{n}")]).await.unwrap();
    }
    let mut sampler = Running::start(&[("db", &url)]);
    for n in 1..=50 {
        let fields = if n % 2 == 0 { json!({ "ranges": 4 }) } else { json!({}) };
        sampler.declare(&format!("p{n}"), |spec| {
            akka(fields)(spec);
            spec["source"]["postgres"]["akka"]["projection"] = json!(format!("p{n}"));
        });
    }
    sampler.declare("other", akka(json!({ "schema": "other", "ranges": 1 })));
    // Events within the last seconds before the offset are compared with what is stored: with one range, no other was.
    let waits = |n: u64, more: u64| {
        move |m: &Measured| m.assessment.pending.exact && m.assessment.pending.events >= 50 - n + more
    };
    for n in [1, 10, 25, 49] {
        sampler.wait_measured("those after it", &format!("p{n}"), waits(n, 0)).await;
    }
    sampler.wait_pending("other", 0).await;
    assert_eq!(sampler_connections(&client, "akka_many").await, 1);
    // Each slice is found by index: the pages that a poll touches grow with the projections, and not with the tables.
    let polls = || sampler.metrics.samples.load(Relaxed) / 51;
    let pages = "select blks_hit + blks_read from pg_stat_database where datname = 'akka_many'";
    let (began, before): (u64, i64) = (polls(), client.query_one(pages, &[]).await.unwrap().get(0));
    let enough = || async { Ok::<_, std::convert::Infallible>(polls()) };
    test_cluster::eventually_is(SOON, "polled", |now| *now >= began + 5, enough).await.unwrap();
    let after: i64 = client.query_one(pages, &[]).await.unwrap().get(0);
    let each = (after - before) / i64::try_from(polls() - began).unwrap();
    println!("51 projections: about {each} pages a poll");
    assert!(each < 51 * 25_000, "{each}");
    let holder = server().connect("akka_many").await.unwrap();
    holder.batch_execute("begin; lock table other.event_journal").await.unwrap();
    let locked = sampler.wait_unknown("other", Reason::TimedOut).await;
    assert!(locked.message.contains("event store in schema other"), "{}", locked.message);
    append(&client, "Cart|1", 1).await;
    for n in [1, 10, 25, 49] {
        sampler.wait_measured("one more", &format!("p{n}"), waits(n, 1)).await;
    }
    holder.batch_execute("rollback").await.unwrap();
    sampler.wait_pending("other", 0).await;
}

#[tokio::test]
async fn more_projections_than_a_statement_serves_are_all_measured_and_one_that_is_slow_keeps_back_only_its_group() {
    const MANY: usize = 200;
    let (url, client) = store("akka_groups").await;
    append(&client, "Cart|1", 1).await;
    // A server that takes its time over each Projection: over all of them longer than a statement may take.
    client
        .batch_execute(&format!(
            "create table naps (name text, seconds float8);
             create function nap(of text) returns boolean language plpgsql as
                 'begin perform pg_sleep(coalesce((select max(seconds) from naps where name = of), 0.025)); return true; end';
             create view slow_offsets as select * from {OFFSETS} where nap(projection_name);
             insert into {OFFSETS} select 'p' || n, 'carts-0-1023', slice, persistence_id, seq_nr, db_timestamp, current_timestamp
                 from event_journal, generate_series(1, {MANY}) n"
        ))
        .await
        .unwrap();
    let mut sampler = Running::start(&[("db", &url)]);
    let names: Vec<String> = (1..=MANY).map(|n| format!("p{n}")).collect();
    for name in &names {
        sampler.declare(name, |spec| {
            akka(json!({ "ranges": 1, "timestampOffsetTable": "slow_offsets" }))(spec);
            spec["source"]["postgres"]["akka"]["projection"] = json!(name);
        });
    }
    for name in &names {
        sampler.wait_pending(name, 0).await;
    }
    assert_eq!(sampler.metrics.failures.load(Relaxed), 0);
    assert_eq!(sampler_connections(&client, "akka_groups").await, 1);
    client.batch_execute("insert into naps values ('p7', 10)").await.unwrap();
    sampler.wait_unknown("p7", Reason::TimedOut).await;
    append(&client, "Cart|2", 1).await;
    let unknown = || names.iter().filter(|name| sampler.observation(name).unwrap().failure.is_some()).count();
    let sees = |name: &String| {
        let seen = sampler.observation(name).unwrap();
        seen.failure.is_none() && seen.measured.as_ref().is_some_and(|m| m.assessment.pending.events == 1)
    };
    let others = || async { Ok::<_, std::convert::Infallible>(names.iter().filter(|name| sees(name)).count()) };
    test_cluster::eventually_is(SOON, "the others go on", |count| *count >= MANY - 50, others).await.unwrap();
    assert!((1..=50).contains(&unknown()), "{}", unknown());
    client.batch_execute("delete from naps").await.unwrap();
    for name in &names {
        sampler.wait_pending(name, 1).await;
    }
}
