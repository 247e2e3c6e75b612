//! Two versions of one read model are built side by side, by workers as the operator tells them, and readers who ask all the time are led from one to the other.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use projectionist::{
    addresses::AddressRules,
    clients::redis,
    projector::{Output, ProjectorConfig},
    read_stores::{
        ElasticsearchStore, RedisStore,
        switch::{AliasSwitch, PointerSwitch, Switched, VersionSwitch},
    },
    resolve::{LedAlias, Pods, Workload, validate},
};
use serde_json::{Value, json};
use test_cluster::{Redis, eventually_is};
use tokio::time::Instant;

use crate::{
    elasticsearch::open_search,
    redis::items,
    workshop::{APPLY, PATIENCE, RedisTarget, SearchTarget, Worker, Workshop},
};

/// A store in which versions have no schemas, and a Projection of events there.
struct Rebuild {
    shop: Workshop,
    spec: Value,
}

impl Rebuild {
    async fn of(name: &str, store: &str, builtin: Value, switch: Value) -> Self {
        let connection = json!({"secretRef": {"name": "db"}});
        let spec = json!({
            "source": {"postgres": {"connection": connection, "eventTable": {"notifyChannel": "events"}}},
            "readStore": {store: {"connection": connection}}, "projector": {"builtin": builtin},
            "lag": {"target": "5s"}, "rollout": {"strategy": "BlueGreen", "switch": switch},
        });
        Self { shop: Workshop::open(name, APPLY).await, spec }
    }

    /// What the operator tells the workers of this version.
    fn configuration(&self, version: &str) -> ProjectorConfig {
        let name = self.shop.config.projection.split_once('/').unwrap().1.split('@').next().unwrap();
        let mut object = json!({
            "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection",
            "metadata": {"namespace": "shop", "name": name, "uid": "u-1"}, "spec": self.spec,
        });
        object["spec"]["version"] = json!(version);
        let projection = serde_json::from_value(object).unwrap();
        match validate(&projection).unwrap().workload {
            Workload::Own { pods: Pods::Builtin(pods), .. } => serde_json::from_value(pods.configuration).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    /// A worker of this version in the store at this address.
    fn start(&mut self, version: &str, url: &str) -> Worker {
        let config = self.configuration(version);
        match config.output.clone() {
            Output::Redis(output) => {
                let (handlers, shared) = (output.handlers, output.shared);
                self.shop.redis = Some(RedisTarget { url: url.to_owned(), handlers, shared });
            }
            Output::Elasticsearch(output) => {
                self.shop.search = Some(SearchTarget { url: url.to_owned(), authority: None, output });
            }
            Output::Postgres(_) => panic!("it has schemas"),
        }
        self.shop.config = config;
        self.shop.start("worker")
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// Waits until a version holds these events and no others.
async fn holds(version: &str, events: i64, held: impl Fn(&str) -> anyhow::Result<BTreeSet<i64>>) {
    let all: BTreeSet<i64> = (1..=events).collect();
    let held = || async { held(version) };
    eventually_is(PATIENCE, "the version is complete", |found| *found == all, held).await.unwrap();
}

/// Readers who ask all the time, each in a thread of its own, for what one version holds.
struct Readers {
    ended: Arc<AtomicBool>,
    asked: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<BTreeSet<String>>>,
}

impl Readers {
    /// `ask` answers with the versions of all that was found, which must be one, or with what was missing or wrong.
    fn start(ask: impl Fn() -> anyhow::Result<BTreeSet<String>> + Clone + Send + 'static) -> Self {
        let (ended, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let threads = (0..2).map(|_| {
            let (ask, ended, asked) = (ask.clone(), Arc::clone(&ended), Arc::clone(&asked));
            std::thread::spawn(move || {
                let mut versions = BTreeSet::new();
                while !ended.load(Ordering::Relaxed) {
                    let seen = ask().expect("no reader sees an error");
                    assert_eq!(seen.len(), 1, "a reader saw {seen:?}");
                    versions.extend(seen);
                    asked.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(2));
                }
                versions
            })
        });
        let threads = threads.collect();
        Self { ended, asked, threads }
    }

    /// Waits until they have asked some more.
    async fn go_on(&self) {
        let before = self.asked.load(Ordering::Relaxed);
        while self.asked.load(Ordering::Relaxed) < before + 20 && !self.threads.iter().any(|one| one.is_finished()) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// The versions that they saw.
    fn end(self) -> BTreeSet<String> {
        self.ended.store(true, Ordering::Relaxed);
        self.threads.into_iter().flat_map(|thread| thread.join().expect("no reader saw an error or a mix")).collect()
    }
}

/// Both versions are built, the second while readers ask for the first, and readers are led there and back while both go on.
async fn side_by_side(
    mut rebuild: Rebuild,
    url: &str,
    switch: impl VersionSwitch,
    held: impl Fn(&str) -> anyhow::Result<BTreeSet<i64>> + Copy,
    ask: impl Fn() -> anyhow::Result<BTreeSet<String>> + Clone + Send + 'static,
) {
    rebuild.shop.events.append_events(400).await.unwrap();
    let mut first = rebuild.start("v1", url);
    holds("v1", 400, held).await;
    assert_eq!(switch.switch(None, "v1", soon()).await, Ok(Switched::Now));
    let readers = Readers::start(ask);
    let mut second = rebuild.start("v2", url);
    rebuild.shop.events.append_events(200).await.unwrap();
    for version in ["v1", "v2"] {
        holds(version, 600, held).await;
    }
    for (from, to) in [("v1", "v2"), ("v2", "v1"), ("v1", "v2")] {
        assert_eq!(switch.switch(Some(from), to, soon()).await, Ok(Switched::Now), "{from} {to}");
        readers.go_on().await;
        assert_eq!(switch.shown(soon()).await, Ok(Some(to.to_owned())));
    }
    // Both go on, so that the way back loses nothing; neither has given up for the other's claims.
    rebuild.shop.events.append_events(100).await.unwrap();
    for version in ["v1", "v2"] {
        holds(version, 700, held).await;
    }
    for worker in [&mut first, &mut second] {
        worker.begun().await.unwrap();
    }
    assert_eq!(readers.end(), BTreeSet::from(["v1".to_owned(), "v2".to_owned()]));
    // A worker of another Projection is told whose place it is.
    let owner = rebuild.configuration("v2").projection;
    rebuild.shop.config.projection = "shop/newcomer".to_owned();
    let refused = rebuild.shop.start("worker").ended().await.to_string();
    let told = format!("{} (version v2) has claimed it since", owner.strip_suffix("@v2").unwrap());
    assert!(refused.contains(&told) && refused.contains(&owner), "{refused}");
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_versions_in_redis_are_built_side_by_side_and_a_key_leads_readers() {
    let server = Arc::new(Redis::on_loopback().unwrap());
    let builtin = json!({"redis": {"handlers": {"Counted": [
        ["RPUSH", "orders:{version}:events", "{position}"],
        ["HSET", "orders:{version}:{stream}", "n", "{data.n}", "by", "{version}"],
        ["HSET", "orders:{version}:last", "stream", "{stream}", "by", "{version}"],
    ]}}});
    let rebuild =
        Rebuild::of("rebuilt_redis", "redis", builtin, json!({"redisPointer": {"key": "orders:current"}})).await;
    // What the documentation says that workers need, and the operator to lead readers.
    let state = "~projectionist:{shop/orders@*}";
    assert!(include_str!("../../docs/rebuilds.md").contains(state), "the page lists it");
    let state = state.replace("orders", "rebuilt_redis");
    let rights = "+eval +hget +hset +hdel +hgetall +hincrby +time +info +rpush +type +get +set";
    let keys = format!("{state} ~projectionist:{{shop/newcomer}} ~projectionist:claims ~orders:*");
    server.run(&format!("ACL SETUSER views on >hunter2 {keys} {rights}")).unwrap();
    let url = server.url_as("views", "hunter2");
    let settings = redis::ConnectionSettings::from_keys(|key| (key == "url").then_some(url.as_str())).unwrap();
    let loopback = AddressRules::default().allowing(["127.0.0.0/8".parse().unwrap()]);
    let store = Arc::new(RedisStore::new(settings.identity(), Arc::new(loopback)));
    let switch = PointerSwitch::new(store, "orders:current");
    let held = |version: &str| {
        let list = items(&server.run(&format!("LRANGE orders:{version}:events 0 -1"))?);
        let positions: BTreeSet<i64> = list.iter().map(|position| position.parse()).collect::<Result<_, _>>()?;
        anyhow::ensure!(positions.len() == list.len(), "an event came twice to {version}");
        Ok(positions)
    };
    let reader = Arc::clone(&server);
    let ask = move || {
        let version = reader.run("GET orders:current")?.text().to_owned();
        let mut seen = BTreeSet::from([version.clone()]);
        for key in ["stream-1", "stream-2", "last"] {
            let found = items(&reader.run(&format!("HMGET orders:{version}:{key} by by"))?);
            seen.extend(found);
        }
        Ok(seen)
    };
    side_by_side(rebuild, &url, switch, held, ask).await;
    let claims = items(&server.run("HKEYS projectionist:claims").unwrap());
    assert_eq!(
        claims.into_iter().collect::<BTreeSet<_>>(),
        ["v1", "v2"].map(|v| format!("shop/rebuilt_redis@{v}")).into()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn two_versions_in_elasticsearch_are_built_side_by_side_and_aliases_lead_readers() {
    let server = open_search();
    let document = json!({"n": "{data.n}"});
    let builtin = json!({"elasticsearch": {"stateIndex": "rebuilt-state", "handlers": {"Counted": [
        {"index": {"index": "rebuilt-events-{version}", "id": "{position}", "document": document}},
        {"update": {"index": "rebuilt-sums-{version}", "id": "{stream}", "add": {"n": "{data.n}"}, "upsert": {"n": "{data.n}"}}},
    ]}}});
    let names = ["rebuilt-events", "rebuilt-sums"];
    let aliases = names.map(|name| LedAlias { alias: name.to_owned(), index: format!("{name}-{{version}}") });
    let of_spec = aliases.iter().map(|one| json!({"alias": one.alias, "index": one.index})).collect::<Vec<_>>();
    let rebuild = Rebuild::of("rebuilt", "elasticsearch", builtin, json!({"elasticsearchAliases": of_spec})).await;
    let url = server.url();
    let target = SearchTarget { url: url.clone(), authority: None, output: crate::elasticsearch::output(json!({})) };
    let loopback = AddressRules::default().allowing(["127.0.0.0/8".parse().unwrap()]);
    let store = Arc::new(ElasticsearchStore::new(target.settings().identity(), Arc::new(loopback)));
    let switch = AliasSwitch::new(store, &aliases);
    let held = |version: &str| {
        let index = format!("rebuilt-events-{version}");
        if server.call("POST", &format!("/{index}/_refresh"), &Value::Null)?.0 == 404 {
            return Ok(BTreeSet::new());
        }
        let found = server.run("GET", &format!("/{index}/_search?size=10000&_source=false"), &Value::Null)?;
        let ids = found["hits"]["hits"].as_array().into_iter().flatten().filter_map(|hit| hit["_id"].as_str());
        Ok(ids.map(str::parse).collect::<Result<_, _>>()?)
    };
    let ask = move || {
        // One request through both aliases: each document says which index it was found in.
        let asked = json!({"docs": [{"_index": names[0], "_id": "1"}, {"_index": names[1], "_id": "stream-1"}]});
        let found = server.run("POST", "/_mget", &asked)?;
        let mut seen = BTreeSet::new();
        for (document, name) in found["docs"].as_array().into_iter().flatten().zip(names) {
            anyhow::ensure!(document["found"] == json!(true), "missing: {document}");
            let index = document["_index"].as_str().unwrap_or_default();
            seen.insert(index.trim_start_matches(name).trim_start_matches('-').to_owned());
        }
        Ok(seen)
    };
    side_by_side(rebuild, &url, switch, held, ask).await;
    let claims = server.run("GET", "/rebuilt-state/_doc/claims", &Value::Null).unwrap();
    let claims: Vec<&String> = claims["_source"]["claims"].as_object().unwrap().keys().collect();
    assert_eq!(claims, ["shop/rebuilt@v1", "shop/rebuilt@v2"]);
}
