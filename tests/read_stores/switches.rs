//! A version of a read model replaces another under readers who look all the time: each sees the one or the other, and never none or both.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use projectionist::{
    clients::{
        postgres::{ConnectionSettings, Database},
        redis,
    },
    read_stores::{
        RedisStore,
        switch::{AliasSwitch, PointerSwitch, SwitchError, Switched, VersionSwitch, ViewSwitch},
    },
};
use serde_json::json;
use test_cluster::elasticsearch::Distribution;
use tokio::time::Instant;

use crate::{
    elasticsearch::search_store,
    harness::{postgres_server, redis_server, search_server},
};

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// So often the readers' version is moved.
const TURNS: usize = 30;

/// Moves the readers to and fro while `look` tells what a reader sees, in a thread of its own.
async fn under_readers(
    switch: &impl VersionSwitch,
    versions: [&str; 2],
    look: impl Fn() -> Vec<String> + Send + 'static,
) {
    assert_eq!(switch.switch(None, versions[0], soon()).await, Ok(Switched::Now), "the first version");
    let (ended, looks) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (end, count) = (Arc::clone(&ended), Arc::clone(&looks));
    let known = versions.map(str::to_owned);
    let reader = std::thread::spawn(move || {
        while !end.load(Ordering::Relaxed) {
            let seen = look();
            assert!(seen.len() == 1 && known.contains(&seen[0]), "a reader saw {seen:?}");
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    for turn in 0..TURNS {
        let before = looks.load(Ordering::Relaxed);
        let (from, to) = (versions[turn % 2], versions[(turn + 1) % 2]);
        assert_eq!(switch.switch(Some(from), to, soon()).await, Ok(Switched::Now), "turn {turn}");
        assert_eq!(switch.switch(Some(from), to, soon()).await, Ok(Switched::Before), "repeated, it changes nothing");
        while looks.load(Ordering::Relaxed) == before && !reader.is_finished() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    ended.store(true, Ordering::Relaxed);
    reader.join().expect("no reader saw none or both");
    let late = switch.switch(Some("long-gone"), versions[1], soon()).await.unwrap_err();
    let found = Some(versions[0].to_owned());
    assert_eq!(late, SwitchError::Unexpected { found, expected: Some("long-gone".to_owned()) }, "the fence holds");
    assert!(late.to_string().contains(versions[0]), "{late}");
    assert!(matches!(switch.switch(None, versions[1], soon()).await, Err(SwitchError::Unexpected { .. })));
}

/// Of two who move the same version at once, or show the first one at once, one does, and the other is told.
async fn one_of_two(switch: &impl VersionSwitch, from: Option<&str>, to: [&str; 2]) {
    let (one, other) = tokio::join!(switch.switch(from, to[0], soon()), switch.switch(from, to[1], soon()));
    let (done, late) = if one == Ok(Switched::Now) { (to[0], &other) } else { (to[1], &one) };
    assert!([&one, &other].contains(&&Ok(Switched::Now)), "{one:?} {other:?}");
    let unexpected = SwitchError::Unexpected { found: Some(done.to_owned()), expected: from.map(str::to_owned) };
    assert_eq!(*late, Err(unexpected));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_in_postgres_are_switched_together() {
    let url = postgres_server().create_database("switches").await.unwrap();
    let client = postgres_server().connect("switches").await.unwrap();
    for version in ["v1", "v2", "v3"] {
        let make = format!(
            "create schema {version}; create table {version}.orders as select '{version}'::text as version; create table {version}.lines as select '{version}'::text as version"
        );
        client.batch_execute(&make).await.unwrap();
    }
    client.batch_execute("create schema first; create table public.taken (n int); create schema narrow; create table narrow.orders (n int); create table narrow.lines (n int)").await.unwrap();
    let database = Arc::new(Database::new(ConnectionSettings::parse(&url).unwrap().identity()));
    let switch = ViewSwitch::new(Arc::clone(&database), "public", &["orders", "lines"]);
    let reader = postgres_server().connect("switches").await.unwrap();
    let runtime = tokio::runtime::Handle::current();
    let look = move || {
        // Both views in one statement: what is seen is of one version.
        let both = "select version from orders union select version from lines";
        let rows = runtime.block_on(reader.query(both, &[])).unwrap();
        rows.iter().map(|row| row.get::<_, String>(0)).collect()
    };
    under_readers(&switch, ["v1", "v2"], look).await;
    one_of_two(&switch, Some("v1"), ["v2", "v3"]).await;
    one_of_two(&ViewSwitch::new(Arc::clone(&database), "first", &["orders"]), None, ["v1", "v2"]).await;
    let now: String = client.query_one("select version from orders", &[]).await.unwrap().get(0);
    let missing = switch.switch(Some(&now), "v9", soon()).await.unwrap_err();
    assert!(matches!(&missing, SwitchError::Unsuitable(why) if why.contains("there is no table")), "{missing}");
    let narrow = switch.switch(Some(&now), "narrow", soon()).await.unwrap_err();
    assert!(matches!(&narrow, SwitchError::Unsuitable(why) if why.contains("columns")), "{narrow}");
    let same: String = client.query_one("select version from orders", &[]).await.unwrap().get(0);
    assert_eq!(same, now, "a switch that fails leaves all views");
    let taken = ViewSwitch::new(database, "public", &["taken"]).switch(None, "v1", soon()).await.unwrap_err();
    assert!(matches!(&taken, SwitchError::NotOurs(why) if why.contains("taken")), "{taken}");
}

#[tokio::test]
async fn a_pointer_key_in_redis_is_switched_by_compare_and_set() {
    let settings =
        redis::ConnectionSettings::from_keys(|key| (key == "url").then_some(redis_server().url().leak() as &str))
            .unwrap();
    let store = Arc::new(RedisStore::new(settings.identity(), Arc::default()));
    let switch = PointerSwitch::new(Arc::clone(&store), "orders:current");
    let look = || vec![redis_server().run("GET orders:current").unwrap().text().to_owned()];
    under_readers(&switch, ["orders:v1:", "orders:v2:"], look).await;
    one_of_two(&switch, Some("orders:v1:"), ["orders:v2:", "orders:v3:"]).await;
    one_of_two(&PointerSwitch::new(Arc::clone(&store), "first"), None, ["orders:v1:", "orders:v2:"]).await;
    redis_server().run("HSET orders:hash a b").unwrap();
    let other = PointerSwitch::new(store, "orders:hash").switch(None, "orders:v1:", soon()).await.unwrap_err();
    assert!(matches!(&other, SwitchError::NotOurs(why) if why.contains("holds a hash")), "{other}");
}

async fn alias(distribution: Distribution) {
    let server = search_server(distribution);
    for version in ["orders-v1", "orders-v2", "orders-v3"] {
        server.run("PUT", &format!("/{version}/_doc/1"), &json!({ "version": version })).unwrap();
    }
    let store = search_store(&server.url());
    let switch = AliasSwitch::new(Arc::clone(&store), "orders");
    let look = move || {
        // By its id a document is found in one index only; an alias to two is refused.
        let found = server.run("GET", "/orders/_doc/1", &json!(null)).unwrap();
        vec![found["_source"]["version"].as_str().unwrap().to_owned()]
    };
    under_readers(&switch, ["orders-v1", "orders-v2"], look).await;
    one_of_two(&switch, Some("orders-v1"), ["orders-v2", "orders-v3"]).await;
    one_of_two(&AliasSwitch::new(Arc::clone(&store), "first"), None, ["orders-v1", "orders-v2"]).await;
    let now = server.run("GET", "/_alias/orders", &json!(null)).unwrap();
    let now = now.as_object().unwrap().keys().next().unwrap().clone();
    let missing = switch.switch(Some(&now), "orders-v9", soon()).await.unwrap_err();
    assert!(
        matches!(&missing, SwitchError::Unsuitable(why) if why.contains("there is no index orders-v9")),
        "{missing}"
    );
    assert_eq!(switch.switch(Some(&now), &now, soon()).await, Ok(Switched::Before), "it is where it was");
    let index = AliasSwitch::new(Arc::clone(&store), "orders-v1").switch(None, "orders-v2", soon()).await.unwrap_err();
    assert!(matches!(&index, SwitchError::NotOurs(why) if why.contains("the name of an index")), "{index}");
    for version in ["orders-v1", "orders-v2"] {
        let add = json!({"actions": [{"add": {"index": version, "alias": "both"}}]});
        server.run("POST", "/_aliases", &add).unwrap();
    }
    let both = AliasSwitch::new(store, "both").switch(Some("orders-v1"), "orders-v3", soon()).await.unwrap_err();
    assert!(matches!(&both, SwitchError::NotOurs(why) if why.contains("2 indices")), "{both}");
}

#[tokio::test]
async fn an_alias_in_elasticsearch_is_switched_in_one_call() {
    alias(Distribution::Elasticsearch).await;
}

#[tokio::test]
async fn an_alias_in_opensearch_is_switched_in_one_call() {
    alias(Distribution::OpenSearch).await;
}
