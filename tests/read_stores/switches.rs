//! A version of a read model replaces another under readers who look all the time: each sees the one or the other, and never none or both.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::Poll,
    time::Duration,
};

use projectionist::{
    api::Reason,
    clients::{
        postgres::{ConnectionSettings, Database},
        redis,
    },
    read_stores::{
        RedisStore,
        switch::{AliasSwitch, PointerSwitch, SwitchError, Switched, VersionSwitch, ViewSwitch},
    },
    resolve::LedAlias,
};
use serde_json::{Value, json};
use test_cluster::{Postgres, Redis, elasticsearch::Distribution};
use tokio::time::Instant;

use crate::{
    elasticsearch::search_store,
    harness::{postgres_server, redis_server, search_server},
    sampler::loopback,
};

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// So often the readers' version is moved.
const TURNS: usize = 20;

/// What one reader sees: the version, once.
type Look = Box<dyn Fn() -> Vec<String> + Send>;

/// Readers who look all the time, each in a thread of its own.
struct Readers {
    ended: Arc<AtomicBool>,
    threads: Vec<(Arc<AtomicU64>, std::thread::JoinHandle<()>)>,
}

impl Readers {
    fn start(looks: Vec<Look>, versions: [&str; 2]) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let threads = looks.into_iter().map(|look| {
            let (count, known) = (Arc::new(AtomicU64::new(0)), versions.map(str::to_owned));
            let (counter, end) = (Arc::clone(&count), Arc::clone(&ended));
            let thread = std::thread::spawn(move || {
                while !end.load(Ordering::Relaxed) {
                    let seen = look();
                    assert!(seen.len() == 1 && known.contains(&seen[0]), "a reader saw {seen:?}");
                    counter.fetch_add(1, Ordering::Relaxed);
                    // Readers are many, and each looks now and then.
                    std::thread::sleep(Duration::from_millis(5));
                }
            });
            (count, thread)
        });
        let threads = threads.collect();
        Self { ended, threads }
    }

    /// Waits until each of them has looked once more.
    async fn look(&self) {
        let before: Vec<u64> = self.threads.iter().map(|(count, _)| count.load(Ordering::Relaxed)).collect();
        for ((count, thread), before) in self.threads.iter().zip(before) {
            while count.load(Ordering::Relaxed) == before && !thread.is_finished() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }

    fn end(self) {
        self.ended.store(true, Ordering::Relaxed);
        for (_, thread) in self.threads {
            thread.join().expect("no reader saw none, both, or an error");
        }
    }
}

/// What comes of this, unless it waits more than so many times: then it is dropped, as if the process had been killed.
async fn until_step<T>(work: impl Future<Output = T>, steps: usize) -> Option<T> {
    let (mut work, mut left) = (std::pin::pin!(work), steps);
    std::future::poll_fn(|context| match work.as_mut().poll(context) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending if left == 0 => Poll::Ready(None),
        Poll::Pending => {
            left -= 1;
            Poll::Pending
        }
    })
    .await
}

/// Moves the readers to and fro while they look, also by one who is gone before it is done.
async fn under_readers(switch: &impl VersionSwitch, versions: [&str; 2], looks: Vec<Look>) {
    assert_eq!(switch.switch(None, versions[0], soon()).await, Ok(Switched::Now), "the first version");
    let readers = Readers::start(looks, versions);
    for turn in 0..TURNS {
        let (from, to) = (versions[turn % 2], versions[(turn + 1) % 2]);
        assert_eq!(switch.switch(Some(from), to, soon()).await, Ok(Switched::Now), "turn {turn}");
        assert_eq!(switch.switch(Some(from), to, soon()).await, Ok(Switched::Before), "repeated, it changes nothing");
        readers.look().await;
    }
    let mut gone = 0;
    for turn in 0..TURNS {
        let (from, to) = (versions[turn % 2], versions[(turn + 1) % 2]);
        // One step later each time, so that each of the steps is the last once.
        match until_step(switch.switch(Some(from), to, soon()), turn).await {
            Some(done) => assert_eq!(done, Ok(Switched::Now), "turn {turn}"),
            None => {
                gone += 1;
                readers.look().await;
                // The next one wants the same, and does not know whether it was done.
                let done = switch.switch(Some(from), to, soon()).await;
                assert!(matches!(done, Ok(Switched::Now | Switched::Before)), "turn {turn}: {done:?}");
            }
        }
        readers.look().await;
    }
    assert!(gone > 0, "the first one does not even get an answer");
    readers.end();
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
    let database = Arc::new(Database::new(ConnectionSettings::parse(&url).unwrap().identity(), loopback()));
    let switch = ViewSwitch::new(Arc::clone(&database), "public", &["orders", "lines"]);
    let mut looks: Vec<Look> = Vec::new();
    for statements in [
        // Both views in one statement, in either order: what is seen is of one version.
        &["select version from orders union select version from lines"][..],
        &["select o.version from orders o join lines l on o.version = l.version"],
        &["select o.version from lines l join orders o on o.version = l.version"],
        // And what a transaction has begun to read.
        &["begin", "select version from lines", "select version from orders", "commit"],
    ] {
        let reader = postgres_server().connect("switches").await.unwrap();
        let runtime = tokio::runtime::Handle::current();
        looks.push(Box::new(move || {
            let mut seen = Vec::new();
            for statement in statements {
                let rows = runtime.block_on(reader.query(*statement, &[])).unwrap();
                seen.extend(rows.iter().map(|row| row.get::<_, String>(0)));
            }
            seen.dedup();
            seen
        }));
    }
    // A statement that was prepared before.
    let reader = postgres_server().connect("switches").await.unwrap();
    let runtime = tokio::runtime::Handle::current();
    let prepared = std::sync::OnceLock::new();
    looks.push(Box::new(move || {
        let statement =
            prepared.get_or_init(|| runtime.block_on(reader.prepare("select version from orders")).unwrap());
        let rows = runtime.block_on(reader.query(statement, &[])).unwrap();
        rows.iter().map(|row| row.get::<_, String>(0)).collect()
    }));
    under_readers(&switch, ["v1", "v2"], looks).await;
    one_of_two(&switch, Some("v1"), ["v2", "v3"]).await;
    one_of_two(&ViewSwitch::new(Arc::clone(&database), "first", &["orders"]), None, ["v1", "v2"]).await;
    let now: String = client.query_one("select version from orders", &[]).await.unwrap().get(0);
    let missing = switch.switch(Some(&now), "v9", soon()).await.unwrap_err();
    assert!(matches!(&missing, SwitchError::Unsuitable(why) if why.contains("there is no table")), "{missing}");
    let narrow = switch.switch(Some(&now), "narrow", soon()).await.unwrap_err();
    assert!(matches!(&narrow, SwitchError::Unsuitable(why) if why.contains("columns")), "{narrow}");
    // A view shows what its owner may read, whoever replaces it.
    let owned = "create role owner_of_views; alter view public.lines owner to owner_of_views; grant usage on schema v1, v2, v3 to owner_of_views";
    client.batch_execute(owned).await.unwrap();
    let next = if now == "v1" { "v2" } else { "v1" };
    let unread = switch.switch(Some(&now), next, soon()).await.unwrap_err();
    assert!(matches!(&unread, SwitchError::Unsuitable(why) if why.contains("select on the table")), "{unread}");
    let same: String = client.query_one("select version from orders", &[]).await.unwrap().get(0);
    assert_eq!(same, now, "a switch that fails leaves all views");
    client.batch_execute(&format!("grant select on {next}.lines to owner_of_views")).await.unwrap();
    assert_eq!(switch.switch(Some(&now), next, soon()).await, Ok(Switched::Now));
    let taken = ViewSwitch::new(database, "public", &["taken"]).switch(None, "v1", soon()).await.unwrap_err();
    assert!(matches!(&taken, SwitchError::NotOurs(why) if why.contains("taken")), "{taken}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_who_hold_a_view_for_long_are_not_disturbed_and_delay_no_others() {
    let url = postgres_server().create_database("slow_readers").await.unwrap();
    let client = postgres_server().connect("slow_readers").await.unwrap();
    for version in ["v1", "v2"] {
        let make = format!(
            "create schema {version}; create table {version}.a as select '{version}'::text as version; create table {version}.b as select '{version}'::text as version"
        );
        client.batch_execute(&make).await.unwrap();
    }
    let database = Arc::new(Database::new(ConnectionSettings::parse(&url).unwrap().identity(), loopback()));
    let switch = ViewSwitch::new(database, "public", &["a", "b"]);
    switch.switch(None, "v1", soon()).await.unwrap();
    let slow = postgres_server().connect("slow_readers").await.unwrap();
    slow.batch_execute("begin; select version from b").await.unwrap();
    let held = switch.switch(Some("v1"), "v2", Instant::now() + Duration::from_secs(2)).await.unwrap_err();
    assert!(
        matches!(&held, SwitchError::Failed(why) if why.reason == Reason::TimedOut && why.message.contains("readers hold the views")),
        "{held}"
    );
    // It holds what the slow reader asks for next, and waits for what that one has: the server ends no reader over it.
    let waiting = switch.switch(Some("v1"), "v2", soon());
    let reads_on = async {
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let version: String = client.query_one("select version from a", &[]).await.unwrap().get(0);
            assert_eq!(version, "v1", "others go on");
        }
        let row = slow.query_one("select a.version from a join b on a.version = b.version", &[]).await.unwrap();
        assert_eq!(row.get::<_, String>(0), "v1");
        slow.batch_execute("commit").await.unwrap();
    };
    let (done, ()) = tokio::join!(waiting, reads_on);
    assert_eq!(done, Ok(Switched::Now), "once it is done");
    let version: String = client.query_one("select version from a join b using (version)", &[]).await.unwrap().get(0);
    assert_eq!(version, "v2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_restarted_during_a_switch_shows_one_version_and_the_switch_is_repeated() {
    let own = Postgres::on_loopback().unwrap();
    let url = own.create_database("restarted").await.unwrap();
    let client = own.connect("restarted").await.unwrap();
    for version in ["v1", "v2"] {
        let make = format!(
            "create schema {version}; create table {version}.a as select '{version}'::text as version; create table {version}.b as select '{version}'::text as version"
        );
        client.batch_execute(&make).await.unwrap();
    }
    let database = Arc::new(Database::new(ConnectionSettings::parse(&url).unwrap().identity(), loopback()));
    let switch = Arc::new(ViewSwitch::new(database, "public", &["a", "b"]));
    switch.switch(None, "v1", soon()).await.unwrap();
    let stopped = Arc::new(AtomicBool::new(false));
    let (there, end) = (Arc::clone(&switch), Arc::clone(&stopped));
    // To and fro until the server is gone.
    let moving = tokio::spawn(async move {
        for turn in 0_usize.. {
            let (from, to) = (["v1", "v2"][turn % 2], ["v1", "v2"][(turn + 1) % 2]);
            match there.switch(Some(from), to, soon()).await {
                Ok(_) if !end.load(Ordering::Relaxed) => {}
                outcome => return (from, to, outcome),
            }
        }
        unreachable!("it goes on for ever")
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    own.stop().unwrap();
    stopped.store(true, Ordering::Relaxed);
    let (from, to, outcome) = moving.await.unwrap();
    assert!(matches!(outcome, Ok(_) | Err(SwitchError::Failed(_))), "{outcome:?}");
    own.start().unwrap();
    let client = own.connect("restarted").await.unwrap();
    let seen: String = client.query_one("select a.version from a join b using (version)", &[]).await.unwrap().get(0);
    assert!([from, to].contains(&seen.as_str()), "one of both, in all views: {seen}");
    let until = soon();
    loop {
        match switch.switch(Some(from), to, soon()).await {
            Ok(_) => break,
            // The connection was lost, and is opened again after a moment.
            Err(SwitchError::Failed(why)) => assert!(Instant::now() < until, "{}", why.message),
            Err(other) => panic!("{other}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let seen: String = client.query_one("select a.version from a join b using (version)", &[]).await.unwrap().get(0);
    assert_eq!(seen, to);
}

#[tokio::test]
async fn a_redis_that_hangs_during_a_switch_may_have_done_it_and_the_switch_is_repeated() {
    let own = Redis::on_loopback().unwrap();
    let url = own.url();
    let settings = redis::ConnectionSettings::from_keys(|key| (key == "url").then_some(url.as_str())).unwrap();
    let store = Arc::new(RedisStore::new(settings.identity(), loopback()));
    let switch = PointerSwitch::new(store, "orders:current");
    switch.switch(None, "orders:v1:", soon()).await.unwrap();
    own.pause();
    let hung = switch.switch(Some("orders:v1:"), "orders:v2:", Instant::now() + Duration::from_millis(300)).await;
    assert!(matches!(&hung, Err(SwitchError::Failed(why)) if why.reason == Reason::TimedOut), "{hung:?}");
    own.resume();
    let again = switch.switch(Some("orders:v1:"), "orders:v2:", soon()).await;
    assert!(matches!(again, Ok(Switched::Now | Switched::Before)), "{again:?}");
    assert_eq!(own.run("GET orders:current").unwrap().text(), "orders:v2:");
}

#[tokio::test]
async fn a_pointer_key_in_redis_is_switched_by_compare_and_set() {
    let settings =
        redis::ConnectionSettings::from_keys(|key| (key == "url").then_some(redis_server().url().leak() as &str))
            .unwrap();
    let store = Arc::new(RedisStore::new(settings.identity(), loopback()));
    let switch = PointerSwitch::new(Arc::clone(&store), "orders:current");
    let look = || vec![redis_server().run("GET orders:current").unwrap().text().to_owned()];
    under_readers(&switch, ["orders:v1:", "orders:v2:"], vec![Box::new(look)]).await;
    one_of_two(&switch, Some("orders:v1:"), ["orders:v2:", "orders:v3:"]).await;
    assert!(["orders:v2:", "orders:v3:"].map(|seen| Ok(Some(seen.to_owned()))).contains(&switch.shown(soon()).await));
    assert_eq!(PointerSwitch::new(Arc::clone(&store), "first").shown(soon()).await, Ok(None));
    one_of_two(&PointerSwitch::new(Arc::clone(&store), "first"), None, ["orders:v1:", "orders:v2:"]).await;
    redis_server().run("HSET orders:hash a b").unwrap();
    let hash = PointerSwitch::new(store, "orders:hash");
    let other = hash.switch(None, "orders:v1:", soon()).await.unwrap_err();
    assert!(matches!(&other, SwitchError::NotOurs(why) if why.contains("holds a hash")), "{other}");
    let other = hash.shown(soon()).await.unwrap_err();
    assert!(matches!(&other, SwitchError::NotOurs(why) if why.contains("no version")), "{other}");
}

/// Aliases, each to an index of its own for each version.
fn aliases(names: &[&str]) -> Vec<LedAlias> {
    let of = |name: &&str| LedAlias { alias: (*name).to_owned(), index: format!("{name}-{{version}}") };
    names.iter().map(of).collect()
}

async fn alias(distribution: Distribution) {
    let server = search_server(distribution);
    for version in ["v1", "v2", "v3"] {
        for name in ["orders", "lines", "first", "both"] {
            server.run("PUT", &format!("/{name}-{version}/_doc/1"), &json!({ "version": version })).unwrap();
        }
    }
    let store = search_store(&server.url());
    let switch = AliasSwitch::new(Arc::clone(&store), &aliases(&["orders", "lines"]));
    let look = move || {
        // Both aliases in one request: what is seen is of one version. By its id a document is found in one index only; an alias to two is refused.
        let asked = json!({"docs": [{"_index": "orders", "_id": "1"}, {"_index": "lines", "_id": "1"}]});
        let found = server.run("POST", "/_mget", &asked).unwrap();
        let version = |document: &Value| document["_source"]["version"].as_str().unwrap().to_owned();
        let mut seen: Vec<String> = found["docs"].as_array().unwrap().iter().map(version).collect();
        seen.dedup();
        seen
    };
    assert_eq!(switch.shown(soon()).await, Ok(None));
    under_readers(&switch, ["v1", "v2"], vec![Box::new(look)]).await;
    one_of_two(&switch, Some("v1"), ["v2", "v3"]).await;
    one_of_two(&AliasSwitch::new(Arc::clone(&store), &aliases(&["first"])), None, ["v1", "v2"]).await;
    let now = switch.shown(soon()).await.unwrap().unwrap();
    let missing = switch.switch(Some(&now), "v9", soon()).await.unwrap_err();
    assert!(matches!(&missing, SwitchError::Unsuitable(why) if why.contains("there is no index ")), "{missing}");
    assert!(["orders-v9", "lines-v9"].iter().any(|index| missing.to_string().contains(index)), "{missing}");
    assert_eq!(switch.switch(Some(&now), &now, soon()).await, Ok(Switched::Before), "it is where it was");
    let taken = [LedAlias { alias: "orders-v1".to_owned(), index: "first-{version}".to_owned() }];
    let index = AliasSwitch::new(Arc::clone(&store), &taken).switch(None, "v2", soon()).await.unwrap_err();
    assert!(
        matches!(&index, SwitchError::NotOurs(why) if why.contains("orders-v1 is the name of an index")),
        "{index}"
    );
    let by_hand = |action: &str, index: &str, alias: &str| {
        let actions = json!({"actions": [{action: {"index": index, "alias": alias}}]});
        server.run("POST", "/_aliases", &actions).unwrap();
    };
    by_hand("add", "both-v1", "both");
    by_hand("add", "both-v2", "both");
    let both = AliasSwitch::new(Arc::clone(&store), &aliases(&["both"]));
    let both = both.switch(Some("v1"), "v3", soon()).await.unwrap_err();
    assert!(matches!(&both, SwitchError::NotOurs(why) if why.contains("2 indices")), "{both}");
    // A mix is told, and left as it is.
    by_hand("remove", &format!("lines-{now}"), "lines");
    for other in ["none", "v1", "v2"].into_iter().filter(|other| *other != now) {
        if other != "none" {
            by_hand("add", &format!("lines-{other}"), "lines");
        }
        let mixed = switch.switch(Some(&now), "v3", soon()).await.unwrap_err();
        assert!(
            matches!(&mixed, SwitchError::NotOurs(why) if why.contains("several versions") && why.contains(other) && why.contains(&now)),
            "{mixed}"
        );
        if other != "none" {
            by_hand("remove", &format!("lines-{other}"), "lines");
        }
    }
    by_hand("add", "first-v1", "lines");
    let stray = switch.shown(soon()).await.unwrap_err();
    assert!(matches!(&stray, SwitchError::NotOurs(why) if why.contains("first-v1, which is of no version")), "{stray}");
}

#[tokio::test]
async fn an_alias_in_elasticsearch_is_switched_in_one_call() {
    alias(Distribution::Elasticsearch).await;
}

#[tokio::test]
async fn an_alias_in_opensearch_is_switched_in_one_call() {
    alias(Distribution::OpenSearch).await;
}
