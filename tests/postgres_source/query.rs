//! The user's own SQL: what its one row means, and what is refused.

use std::{collections::BTreeSet, time::Duration};

use projectionist::{
    api::Reason,
    lag::{Certain, CheckpointState, Note, Pending, Position},
};
use serde_json::{Value, json};
use test_cluster::{Pooler, Pooling};
use tokio_postgres::Client;

use crate::harness::{Running, exactly_these_rights_suffice, log_head, sampler_connections, server};

const TABLE: &str = "create table jobs (id bigserial primary key, created_at timestamptz not null default clock_timestamp(), done boolean not null default false)";

async fn database(name: &str) -> (String, Client) {
    let url = server().create_database(name).await.unwrap();
    let client = server().connect(name).await.unwrap();
    client.batch_execute(TABLE).await.unwrap();
    (url, client)
}

fn declare(sampler: &mut Running, name: &str, sql: &str) {
    declare_with_target(sampler, name, &json!({ "sql": sql }), "5s");
}

fn declare_with_target(sampler: &mut Running, name: &str, query: &Value, target: &str) {
    sampler.declare(name, |spec| {
        *spec = json!({
            "source": { "postgres": { "connection": { "secretRef": { "name": "db" } }, "query": query } },
            "lag": { "target": target },
        });
    });
}

#[tokio::test]
async fn one_row_says_what_waits_and_since_when() {
    let (url, client) = database("query_rows").await;
    let mut sampler = Running::start(&[("db", &url)]);
    let count = "SELECT count(*) FROM jobs WHERE NOT done;";
    declare(&mut sampler, "count", count);
    declare(&mut sampler, "same", count);
    declare(
        &mut sampler,
        "oldest",
        "select count(*) as pending, min(created_at) as oldest from jobs where not done -- all",
    );
    declare(
        &mut sampler,
        "positions",
        "select coalesce(max(id), 0) as head, coalesce(max(id) filter (where done), 0) as checkpoint from jobs",
    );
    declare(
        &mut sampler,
        "positions-aged",
        "select coalesce(max(id), 0) as head, coalesce(max(id) filter (where done), 0) as checkpoint,
             min(created_at) filter (where not done) as oldest from jobs",
    );
    for name in ["count", "same", "oldest", "positions", "positions-aged"] {
        sampler.wait_pending(name, 0).await;
    }
    client
        .batch_execute("insert into jobs (created_at) select now() - interval '1 minute' from generate_series(1, 5)")
        .await
        .unwrap();
    for name in ["count", "same"] {
        let behind = sampler.wait_pending(name, 5).await;
        assert_eq!((behind.assessment.staleness, behind.sample.arrived), (None, 5), "{name}: no time is told");
    }
    let aged = sampler.wait_pending("oldest", 5).await.assessment.staleness.unwrap().as_secs_f64();
    assert!((60.0..90.0).contains(&aged), "{aged}");
    let bound = sampler.wait_measured("behind", "positions", |m| m.assessment.pending.events == 5).await;
    assert_eq!(bound.assessment.pending, Pending { events: 5, exact: false }, "positions may have gaps");
    assert_eq!(log_head(&bound.sample).raw, Position(5));
    assert_eq!((bound.sample.certain, bound.assessment.at_least.unwrap().events), (None, 0), "perhaps none waits");
    let dated = sampler.wait_measured("behind", "positions-aged", |m| m.assessment.pending.events == 5).await;
    assert_eq!(dated.sample.certain, Some(Certain::Oldest(1)), "the oldest waits, which has an age");
    assert_eq!(dated.assessment.at_least.unwrap().age, dated.sample.staleness);
    client.batch_execute("update jobs set done = true where id <= 3").await.unwrap();
    let done = sampler.wait_pending("count", 2).await;
    assert_eq!(done.sample.checkpoint, CheckpointState::Handled(3));
    let moved = sampler.wait_measured("moved", "positions", |m| m.assessment.pending.events == 2).await;
    assert_eq!(moved.sample.checkpoint, CheckpointState::Committed(vec![Position(3)]));
    assert_eq!(sampler_connections(&client, "query_rows").await, 1);
}

#[tokio::test]
async fn a_place_that_is_none_a_clock_that_is_wrong_and_a_table_that_goes_and_comes_are_told() {
    let (url, client) = database("query_states").await;
    client.batch_execute("insert into jobs (done) select false from generate_series(1, 5)").await.unwrap();
    let mut sampler = Running::start(&[("db", &url)]);
    declare(&mut sampler, "jobs", "select count(*) from jobs where not done");
    declare(&mut sampler, "never", "select 5 as head, null::bigint as checkpoint");
    declare(&mut sampler, "beyond", "select 3 as head, 5 as checkpoint");
    declare(&mut sampler, "ahead", "select 1 as pending, now() + interval '1 hour' as oldest");
    sampler.wait_pending("jobs", 5).await;
    sampler.wait_unknown("never", Reason::NeverCommitted).await;
    sampler.wait_unknown("beyond", Reason::CheckpointBeyondHead).await;
    let ahead = sampler.wait_pending("ahead", 1).await;
    assert!(ahead.sample.ahead_of_clock > Duration::from_secs(3_500), "{ahead:?}");
    assert!(ahead.assessment.staleness.is_some_and(|age| age < Duration::from_secs(600)), "{ahead:?}");
    client.batch_execute("alter table jobs rename to gone").await.unwrap();
    sampler.wait_unknown("jobs", Reason::TableNotFound).await;
    client
        .batch_execute("create table jobs (like gone including all); insert into jobs (id) values (1), (2)")
        .await
        .unwrap();
    let made_again = sampler.wait_pending("jobs", 2).await;
    assert_eq!(made_again.assessment.pending, Pending { events: 2, exact: true });
}

#[tokio::test]
async fn what_is_no_query_or_tells_no_number_is_refused_in_words_and_the_others_go_on() {
    let (url, client) = database("query_refused").await;
    let mut sampler = Running::start(&[("db", &url)]);
    declare(&mut sampler, "good", "select count(*) from jobs");
    sampler.wait_pending("good", 0).await;
    let cases = [
        ("two", "select 1; drop table jobs", Reason::InvalidSpec, "another statement follows"),
        ("breaks-out", "select 1) q; drop table jobs; select (1", Reason::InvalidSpec, "another statement follows"),
        ("write", "with gone as (delete from jobs returning 1) select count(*) from gone", Reason::SourceFailed, ""),
        ("nextval", "select nextval('jobs_id_seq')", Reason::InvalidSpec, "nextval"),
        ("set", "set statement_timeout = 0", Reason::InvalidSpec, "must be a query"),
        ("listen", "listen x", Reason::InvalidSpec, "must be a query"),
        ("copy", "copy jobs to program 'true'", Reason::InvalidSpec, "must be a query"),
        ("set-config", "select set_config('statement_timeout', '0', false)::int", Reason::InvalidSpec, "set_config"),
        ("sleep", "select 1 from \"pg_sleep\" (9)", Reason::InvalidSpec, "pg_sleep"),
        ("lock", "select count(pg_advisory_lock(1)) from jobs", Reason::InvalidSpec, "pg_advisory_lock"),
        (
            "consume",
            "select count(*) from pg_logical_slot_get_changes('x', null, null)",
            Reason::InvalidSpec,
            "get_changes",
        ),
        ("syntax", "select count(* from jobs", Reason::InvalidSpec, "query.sql"),
        ("no-table", "select count(*) from nowhere", Reason::TableNotFound, "nowhere"),
        ("no-row", "select id from jobs where false", Reason::InvalidAnswer, "no row"),
        ("rows", "select * from (values (1), (2)) v", Reason::InvalidAnswer, "more than one row"),
        ("endless", "select generate_series(1, 1000000000)", Reason::InvalidAnswer, "more than one row"),
        ("null", "select max(id) from jobs", Reason::InvalidAnswer, "NULL"),
        ("nan", "select 'NaN'::float8 as pending", Reason::ColumnTypeUnsuitable, "NaN"),
        ("negative", "select -1", Reason::ColumnTypeUnsuitable, "negative"),
        ("text", "select 'hunter2'", Reason::ColumnTypeUnsuitable, "text"),
        ("huge", "select repeat('x', 20000000) as pending", Reason::InvalidAnswer, "too long"),
        ("no-zone", "select 1 as pending, now()::timestamp as oldest", Reason::ColumnTypeUnsuitable, "time zone"),
        ("misspelt", "select 1 as pending, now() as oldets", Reason::ColumnNotFound, "oldets"),
        ("zero", "select 1 / (count(*) - count(*)) from jobs", Reason::SourceFailed, "query: "),
    ];
    for (name, sql, _, _) in &cases {
        declare(&mut sampler, name, sql);
    }
    for (name, _, reason, words) in cases {
        let refused = sampler.wait_unknown(name, reason).await;
        assert!(refused.message.contains(words), "{name}: {}", refused.message);
    }
    client.batch_execute("insert into jobs default values").await.unwrap();
    sampler.wait_pending("good", 1).await;
}

#[tokio::test]
async fn a_query_that_is_too_slow_or_beyond_the_rights_is_unknown_and_the_others_go_on() {
    let (_, client) = database("query_rights").await;
    server().create_role("query_reader", "hunter2").await.unwrap();
    client
        .batch_execute(
            "create function slow() returns bigint language plpgsql as 'begin perform pg_sleep(60); return 1; end'",
        )
        .await
        .unwrap();
    let mut sampler = Running::start(&[("db", &server().url_as("query_reader", "hunter2", "query_rights"))]);
    declare(&mut sampler, "jobs", "select count(*) from jobs where not done");
    declare(&mut sampler, "slow", "select slow()");
    sampler.wait_unknown("jobs", Reason::PermissionDenied).await;
    client.batch_execute("grant select (done) on jobs to query_reader").await.unwrap();
    sampler.wait_pending("jobs", 0).await;
    sampler.wait_unknown("slow", Reason::TimedOut).await;
    for round in 1..=2 {
        client.batch_execute("insert into jobs default values").await.unwrap();
        sampler.wait_pending("jobs", round).await;
    }
}

#[tokio::test]
async fn rights_on_what_the_query_names_suffice_and_each_is_needed() {
    let (_, client) = database("query_least").await;
    server().create_role("query_least", "hunter2").await.unwrap();
    client
        .batch_execute(
            "create schema own; alter table jobs set schema own; alter table own.jobs add column secret text;
             create function own.waits(done boolean) returns boolean language sql immutable as 'select not done';
             revoke execute on function own.waits(boolean) from public; insert into own.jobs default values",
        )
        .await
        .unwrap();
    let mut sampler = Running::start(&[("db", &server().url_as("query_least", "hunter2", "query_least"))]);
    let sql = "select count(*) as pending, min(created_at) as oldest from own.jobs where own.waits(done)";
    declare_with_target(&mut sampler, "jobs", &json!({ "sql": sql, "notifyChannel": "jobs" }), "5s");
    let grants = [
        "grant usage on schema own to query_least",
        "grant select (created_at, done) on own.jobs to query_least",
        "grant execute on function own.waits(boolean) to query_least",
    ];
    exactly_these_rights_suffice(&client, &sampler, "jobs", &grants, 1).await;
    // What policies hide the query does not count.
    client.batch_execute("alter table own.jobs enable row level security").await.unwrap();
    sampler.wait_pending("jobs", 0).await;
    client.batch_execute("create policy p on own.jobs for select to query_least using (true)").await.unwrap();
    sampler.wait_pending("jobs", 1).await;
}

#[tokio::test]
async fn a_slow_query_leaves_most_of_the_connection_to_the_others() {
    let (url, client) = database("query_slow").await;
    let slow = "create function slow() returns bigint language plpgsql as 'begin perform pg_sleep(1); return 7; end'";
    client.batch_execute(slow).await.unwrap();
    let mut sampler = Running::start(&[("db", &url)]);
    for (name, sql) in [("slow", "select slow()"), ("quick", "select count(*) from jobs")] {
        declare_with_target(&mut sampler, name, &json!({ "sql": sql }), "1s");
    }
    let told = sampler.wait_measured("told", "slow", |m| m.sample.next_within > Duration::ZERO).await;
    let says_why = |note: &Note| matches!(note, Note::Estimated(why) if why.contains("share its connection"));
    assert!(told.sample.notes.iter().any(says_why), "{:?}", told.sample.notes);
    let lasts = told.valid_until.saturating_duration_since(std::time::Instant::now());
    assert!(lasts > Duration::from_secs(5), "it is valid until the next look, and not for {lasts:?}");
    let (mut slow, mut quick) = (BTreeSet::new(), BTreeSet::new());
    while slow.len() < 4 {
        for (name, seen) in [("slow", &mut slow), ("quick", &mut quick)] {
            let measured = sampler.wait_measured("measured", name, |_| true).await;
            seen.insert(measured.sample.at);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // As often as each other where the quick one waits for the slow one each time.
    assert!(quick.len() >= 2 * slow.len(), "{} looks of the quick one, {} of the slow", quick.len(), slow.len());
}

#[tokio::test]
async fn a_notification_wakes_the_sampler_where_the_channel_is_named() {
    let (url, client) = database("query_notified").await;
    let mut sampler = Running::start(&[("db", &url)]);
    let query = json!({ "sql": "select count(*) from jobs where not done", "notifyChannel": "Jobs" });
    // Asked every 5 s by itself.
    declare_with_target(&mut sampler, "jobs", &query, "1h");
    sampler.wait_pending("jobs", 0).await;
    for round in 1..=3 {
        sampler.is_woken_by(&client, "insert into jobs default values; notify \"Jobs\"", ("jobs", round)).await;
    }
}

#[tokio::test]
async fn through_a_pooler_a_query_leaves_no_setting_behind_and_it_is_said_that_no_notification_comes() {
    let (_, client) = database("query_pooled").await;
    client
        .batch_execute(
            "create function sets() returns bigint language sql as 'select length(set_config(''application_name'', ''left behind'', false))'",
        )
        .await
        .unwrap();
    let pooler = Pooler::before(server(), Pooling::Transaction, 1).unwrap();
    let mut sampler = Running::start(&[("db", &pooler.url("query_pooled"))]);
    declare(&mut sampler, "sets", "select sets()");
    declare_with_target(&mut sampler, "unheard", &json!({ "sql": "select 1", "notifyChannel": "jobs" }), "5s");
    assert!(!sampler.wait_pending("sets", 11).await.sample.notes.contains(&Note::PooledConnection));
    assert!(sampler.wait_pending("unheard", 1).await.sample.notes.contains(&Note::PooledConnection));
    drop(sampler);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let left: i64 = client
        .query_one("select count(*) from pg_stat_activity where application_name = 'left behind'", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(left, 0);
}
