//! Two versions of a read model are asked the same at one common position, while both go on.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use projectionist::{
    api::{CheckpointRows, Reason, TableLocation},
    measure::{MeasureError, RunKey},
    read_stores::OpenStores,
    rebuild::{Compared, Comparison, ReadersOf, Side, SwitchReaders as _},
    resolve::LedBy,
};
use serde_json::json;
use tokio_postgres::Client;

use crate::{
    harness::{declare, events, postgres_server, sampler_with},
    sampler::Running,
};

const VERSIONS: [&str; 2] = ["v1", "v2"];

/// Handles the next event of a version: its effect and its checkpoint in one transaction.
fn handle(version: &str) -> String {
    format!(
        "begin; update orders_{version}.summary set n = n + 1 where customer = (select position % 5 from orders_{version}.checkpoints);
         update orders_{version}.checkpoints set position = position + 1; commit"
    )
}

fn run() -> RunKey {
    RunKey { version: Some("v1".into()), ..RunKey::unversioned("shop", "orders") }
}

fn comparison(query: &str, tolerance: f64) -> Comparison {
    let [live, candidate] = VERSIONS.map(|version| Side {
        version: version.into(),
        schema: format!("orders_{version}"),
        checkpoint: TableLocation {
            table: format!("orders_{version}.checkpoints"),
            name_column: "projection".to_owned(),
            position_column: "position".to_owned(),
            name: "orders".to_owned(),
            rows: CheckpointRows::One,
        },
    });
    Comparison { store: run(), live, candidate, query: query.into(), tolerance }
}

const BY_CUSTOMER: &str = "select customer as key, n from summary -- of all";

/// Two versions that have handled nothing, and the stores that a sampler has opened.
async fn two_versions(name: &str) -> (Running, OpenStores, Client) {
    let (url, client) = events(name).await;
    for version in VERSIONS {
        let make = format!(
            "create schema orders_{version};
             create table orders_{version}.checkpoints (projection text primary key, position bigint not null);
             insert into orders_{version}.checkpoints values ('orders', 0);
             create table orders_{version}.summary as select customer, 0::numeric as n from generate_series(0, 4) customer"
        );
        client.batch_execute(&make).await.unwrap();
    }
    let mut sampler = sampler_with(&[("events", &url)]);
    let spec = json!({
        "readStore": {"postgres": {"connection": {"secretRef": {"name": "events"}}, "schema": "orders_{version}"}},
        "checkpoint": {"readStore": {"table": "checkpoints"}},
        "projector": {"template": {"spec": {"containers": [{"name": "worker", "image": "team:1"}]}}},
        "version": "v1",
        "rollout": {"strategy": "BlueGreen", "switch": {"postgresView": {"schema": "shown", "views": ["summary"]}}},
    });
    declare(&mut sampler, "orders", &spec);
    let stores = sampler.read_stores().clone();
    let views =
        ReadersOf { run: run(), by: LedBy::Views { schema: "shown".to_owned(), views: vec!["summary".to_owned()] } };
    while stores.shown(&views, Duration::from_secs(60)).await.is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    (sampler, stores, client)
}

async fn compare(stores: &OpenStores, query: &str, within: Duration) -> Result<Compared, MeasureError> {
    stores.compare(Arc::new(comparison(query, 0.0)), within).await
}

const SOON: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_versions_are_compared_only_where_both_have_handled_the_same() {
    let (_sampler, stores, client) = two_versions("parity").await;
    assert_eq!(compare(&stores, BY_CUSTOMER, SOON).await, Ok(Compared::Same));
    // One that is behind, and differs for that alone, is waited for.
    client.batch_execute(&handle("v1")).await.unwrap();
    let never = compare(&stores, BY_CUSTOMER, Duration::from_secs(2)).await.unwrap();
    assert_eq!(never, Compared::NeverAtOnePosition("one was at 1, the other at 0".to_owned()));
    let comes = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        client.batch_execute(&handle("v2")).await.unwrap();
    };
    let (same, ()) = tokio::join!(compare(&stores, BY_CUSTOMER, SOON), comes);
    assert_eq!(same, Ok(Compared::Same));
    client.batch_execute("update orders_v2.summary set n = 100.5 where customer = 3; update orders_v1.summary set n = 100 where customer = 3").await.unwrap();
    assert_eq!(compare(&stores, BY_CUSTOMER, SOON).await, Ok(Compared::Differs("\"3\" (n)".to_owned())));
    let nearly = stores.compare(Arc::new(comparison(BY_CUSTOMER, 0.01)), SOON).await;
    assert_eq!(nearly, Ok(Compared::Same));
    let sums = "select count(*) as customers, sum(n) as events from summary;";
    assert_eq!(compare(&stores, sums, SOON).await, Ok(Compared::Differs("events".to_owned())));
    client.batch_execute("insert into orders_v2.summary values (9, 0)").await.unwrap();
    let more = compare(&stores, BY_CUSTOMER, SOON).await;
    assert_eq!(more, Ok(Compared::Differs("\"3\" (n), \"9\" (only in v2)".to_owned())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_that_go_on_all_the_time_are_never_found_to_differ_for_it() {
    let (_sampler, stores, _client) = two_versions("parity_busy").await;
    let ended = Arc::new(AtomicBool::new(false));
    let workers = VERSIONS.map(|version| {
        let ended = Arc::clone(&ended);
        tokio::spawn(async move {
            let client = postgres_server().connect("parity_busy").await.unwrap();
            while !ended.load(Ordering::Relaxed) {
                client.batch_execute(&handle(version)).await.unwrap();
                // Now and then both have come as far, for a moment.
                let ahead = format!("select (select position from orders_{version}.checkpoints) > min(position) from (select position from orders_v1.checkpoints union all select position from orders_v2.checkpoints) p");
                while client.query_one(&ahead, &[]).await.unwrap().get::<_, bool>(0) && !ended.load(Ordering::Relaxed) {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        })
    });
    let mut same = 0;
    while same < 20 {
        match compare(&stores, BY_CUSTOMER, SOON).await.unwrap() {
            Compared::Same => same += 1,
            Compared::NeverAtOnePosition(_) => {}
            Compared::Differs(what) => panic!("after {same}: {what}"),
        }
    }
    ended.store(true, Ordering::Relaxed);
    for worker in workers {
        worker.await.unwrap();
    }
}

/// A worker of both shards of a version, which handles as many events at once as it likes, and waits where it is held.
async fn works_on_shards(version: &str, at_once: i64, ended: Arc<AtomicBool>) {
    let client = postgres_server().connect("parity_held").await.unwrap();
    let position = "select position, case when hold_until > clock_timestamp() then hold_at end from";
    let mut turn = 0_i64;
    while !ended.load(Ordering::Relaxed) {
        turn += 1;
        let shard = i32::try_from(turn % 2).unwrap();
        let row = format!("{position} orders_{version}.projectionist_checkpoints where shard = {shard}");
        let row = client.query_one(&row, &[]).await.unwrap();
        let (from, held): (i64, Option<i64>) = (row.get(0), row.get(1));
        let to = (from + 1 + turn * at_once % 7).min(held.unwrap_or(i64::MAX));
        if to > from {
            let handle = format!(
                "begin; update orders_{version}.summary set n = n + (select sum(e) from generate_series({from} + 1, {to}) e) where customer = {shard};
                 update orders_{version}.projectionist_checkpoints set position = {to} where shard = {shard}; commit"
            );
            client.batch_execute(&handle).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_a_load_that_never_pauses_the_new_version_is_held_where_the_other_one_was() {
    let (_sampler, stores, client) = two_versions("parity_held").await;
    let mut of = comparison(BY_CUSTOMER, 0.0);
    for version in VERSIONS {
        let make = format!(
            "create table orders_{version}.projectionist_checkpoints (projection text, shard int, position bigint, hold_at bigint, hold_until timestamptz, primary key (projection, shard));
             insert into orders_{version}.projectionist_checkpoints select 'orders', shard, 0 from generate_series(0, 1) shard"
        );
        client.batch_execute(&make).await.unwrap();
    }
    for side in [&mut of.live, &mut of.candidate] {
        side.checkpoint.table = format!("{}.projectionist_checkpoints", side.schema);
        side.checkpoint.rows = CheckpointRows::Numbered(2);
    }
    let of = Arc::new(of);
    let ended = Arc::new(AtomicBool::new(false));
    let workers = [("v1", 3), ("v2", 5)]
        .map(|(version, at_once)| tokio::spawn(works_on_shards(version, at_once, Arc::clone(&ended))));
    let holds = "select count(hold_at) + count(hold_until) from orders_v2.projectionist_checkpoints";
    for turn in 0..2 {
        assert_eq!(stores.compare(Arc::clone(&of), SOON).await, Ok(Compared::Same), "turn {turn}");
        assert_eq!(client.query_one(holds, &[]).await.unwrap().get::<_, i64>(0), 0, "the hold has ended");
    }
    client.batch_execute("update orders_v2.summary set n = n + 1 where customer = 1").await.unwrap();
    assert_eq!(stores.compare(of, SOON).await, Ok(Compared::Differs("\"1\" (n)".to_owned())));
    let untouched: i64 =
        client.query_one("select count(hold_at) from orders_v1.projectionist_checkpoints", &[]).await.unwrap().get(0);
    assert_eq!(untouched, 0, "what readers see is never held");
    ended.store(true, Ordering::Relaxed);
    for worker in workers {
        worker.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_may_only_read_and_answer_within_bounds() {
    let (_sampler, stores, client) = two_versions("parity_bounds").await;
    let function =
        "create function orders_v1.takes() returns int language sql as 'delete from orders_v1.summary; select 1';
         create function orders_v2.takes() returns int language sql as 'delete from orders_v2.summary; select 1'";
    client.batch_execute(function).await.unwrap();
    for (query, reason, said) in [
        ("delete from summary", Reason::InvalidSpec, "begins with select"),
        ("select 1 as n; drop table summary", Reason::InvalidSpec, "another statement"),
        ("select 1 as n) q; drop table summary; select (1", Reason::InvalidSpec, "another statement"),
        ("with gone as (delete from summary returning 1) select 1 as n", Reason::SourceFailed, "data-modifying"),
        ("select takes() as n", Reason::InvalidSpec, "read-only"),
        ("select pg_sleep(60)", Reason::InvalidSpec, "pg_sleep"),
        ("select n from nowhere", Reason::InvalidSpec, "asked of version v1"),
        ("select n from summary", Reason::InvalidAnswer, "no column key"),
        ("select 'a' as key, n from summary", Reason::InvalidAnswer, "several rows of one key"),
        ("select n as key from generate_series(1, 5001) n", Reason::InvalidAnswer, "5,000 rows"),
        ("select sum(n), sum(n) from summary", Reason::InvalidAnswer, "two columns of one name"),
        ("select null::text as key, 1 as n", Reason::InvalidAnswer, "whose key is NULL"),
        ("select repeat('x', 201) as long", Reason::InvalidAnswer, "longer than 200"),
    ] {
        let why = compare(&stores, query, SOON).await.expect_err(query);
        assert_eq!(why.reason, reason, "{query}: {}", why.message);
        assert!(
            why.message.starts_with("spec.rollout.promote.parity.query: ") && why.message.contains(said),
            "{query}: {}",
            why.message
        );
    }
    let left: i64 = client.query_one("select count(*) from orders_v1.summary", &[]).await.unwrap().get(0);
    assert_eq!(left, 5);
    assert_eq!(compare(&stores, "select 'k' as key", SOON).await, Ok(Compared::Same), "a key is enough");
}
