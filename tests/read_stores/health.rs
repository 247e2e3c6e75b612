//! How read stores are: reached or not, how fast, and how much of each is in use, as each server tells it to a user with few rights.

use std::{sync::Arc, time::Duration};

use projectionist::{
    api::{ConnectionLimit, ReadStoreState, Reason},
    clients::{postgres, redis},
    measure::MeasureError,
    metrics::ServedMetrics,
    metrics_api::{MetricValues as _, Selector, ValueError},
    read_stores::{CheckpointStore, RedisStore},
    store_health::{LockSession, Memory, StoreObservation, StoreSample},
};
use serde_json::json;
use test_cluster::{
    Redis, RedisCluster,
    elasticsearch::Distribution::{self, Elasticsearch, OpenSearch},
    eventually_is,
};
use tokio::time::Instant;

use crate::{
    elasticsearch::search_store,
    harness::{append, declare, events, postgres_server, redis_server, sampler_with, search_server},
    sampler::loopback,
};

const DEADLINE: Duration = Duration::from_secs(60);

async fn health(store: &CheckpointStore) -> Result<StoreSample, MeasureError> {
    store.health(Instant::now() + DEADLINE).await
}

fn redis_store(url: &str) -> CheckpointStore {
    let settings = redis::ConnectionSettings::from_keys(|key| (key == "url").then_some(url)).unwrap();
    CheckpointStore::Redis(Arc::new(RedisStore::new(settings.identity(), loopback())))
}

fn postgres_store(url: &str) -> CheckpointStore {
    let settings = postgres::ConnectionSettings::parse(url).unwrap();
    CheckpointStore::Postgres(Arc::new(postgres::Database::new(settings.identity(), loopback())))
}

fn state(store: &StoreObservation) -> ReadStoreState {
    store.status(std::time::Instant::now()).state
}

#[tokio::test]
async fn the_connections_of_a_server_are_counted_against_the_limit_that_binds_the_user() {
    let server = postgres_server();
    server.create_database("health").await.unwrap();
    let admin = server.connect("health").await.unwrap();
    server.create_role("views", "hunter2").await.unwrap();
    let store = postgres_store(&server.url_as("views", "hunter2", "health"));
    let most = admin
        .query_one(
            "select current_setting('max_connections')::bigint - current_setting('superuser_reserved_connections')::bigint
                - coalesce(current_setting('reserved_connections', true)::bigint, 0)",
            &[],
        )
        .await
        .unwrap()
        .get::<_, i64>(0);
    let sample = health(&store).await.unwrap();
    let connections = sample.connections.unwrap();
    assert_eq!((connections.limited_by, connections.limit), (ConnectionLimit::Server, u64::try_from(most).ok()));
    assert!(connections.used >= 2, "its own and the administrator's: {connections:?}");
    assert!(!connections.exact, "what other roles' processes are is hidden");
    assert!(sample.latency > Duration::ZERO && sample.missing.is_none());
    admin.batch_execute("grant pg_read_all_stats to views").await.unwrap();
    assert!(health(&store).await.unwrap().connections.unwrap().exact);
    admin.batch_execute("revoke pg_read_all_stats from views").await.unwrap();
    // Limits of the database and of the role, each where it leaves fewer.
    admin.batch_execute("alter database health connection limit 7").await.unwrap();
    let connections = health(&store).await.unwrap().connections.unwrap();
    assert_eq!(
        (connections.limited_by, connections.used, connections.limit),
        (ConnectionLimit::Database, 2, Some(7)),
        "{connections:?}"
    );
    let workers = [
        server.connect_as("views", "hunter2", "health").await.unwrap(),
        server.connect_as("views", "hunter2", "health").await.unwrap(),
    ];
    admin.batch_execute("alter role views connection limit 4").await.unwrap();
    let connections = health(&store).await.unwrap().connections.unwrap();
    assert_eq!(
        (connections.limited_by, connections.used, connections.limit, connections.exact),
        (ConnectionLimit::Role, 3, Some(4), true),
        "{connections:?}"
    );
    assert!(connections.ratio().is_some_and(|ratio| (ratio - 0.75).abs() < 1e-9));
    drop(workers);
    // A superuser is bound by neither.
    let connections = health(&postgres_store(&server.url("health"))).await.unwrap().connections.unwrap();
    assert!(connections.limited_by == ConnectionLimit::Server && connections.exact, "{connections:?}");
}

#[tokio::test]
async fn who_waits_for_a_lock_and_for_whose_is_told_to_a_user_without_any_right() {
    let server = postgres_server();
    server.create_database("health_locks").await.unwrap();
    server.create_role("looks", "hunter2").await.unwrap();
    let store = postgres_store(&server.url_as("looks", "hunter2", "health_locks"));
    let [holds, waits] = ["psql", "orders-worker"].map(|name| async move {
        let client = server.connect("health_locks").await.unwrap();
        client.batch_execute(&format!("set application_name = '{name}'")).await.unwrap();
        let pid: i32 = client.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
        (client, LockSession { pid, application: name.to_owned() })
    });
    let ((holds, holding), (waits, waiting)) = (holds.await, waits.await);
    holds.batch_execute("create table rows (n int); insert into rows values (1)").await.unwrap();
    assert_eq!(health(&store).await.unwrap().lock_wait, None);
    holds.batch_execute("begin; update rows set n = 2").await.unwrap();
    let update = tokio::spawn(async move { waits.batch_execute("update rows set n = 3").await });
    let look = || async { health(&store).await.map_err(|why| anyhow::anyhow!(why.message)) };
    let told = eventually_is(DEADLINE, "the wait is told", |sample| sample.lock_wait.is_some(), look).await.unwrap();
    let wait = told.lock_wait.unwrap();
    assert_eq!((&wait.waiting, &wait.holding), (&waiting, &holding));
    assert!(wait.since.is_some());
    holds.batch_execute("commit").await.unwrap();
    update.await.unwrap().unwrap();
    assert_eq!(health(&store).await.unwrap().lock_wait, None);
}

#[tokio::test]
async fn a_database_that_refuses_the_login_is_said_to_and_no_secret_is_told() {
    let server = postgres_server();
    server.create_database("health_refused").await.unwrap();
    server.create_role("refused", "hunter2").await.unwrap();
    let why = health(&postgres_store(&server.url_as("refused", "hunter3", "health_refused"))).await.unwrap_err();
    assert_eq!(why.reason, Reason::AuthenticationFailed, "{}", why.message);
    assert!(why.message.contains("health_refused") && !why.message.contains("hunter3"), "{}", why.message);
    let admin = server.connect("health_refused").await.unwrap();
    admin.batch_execute("alter role refused connection limit 0").await.unwrap();
    let why = health(&postgres_store(&server.url_as("refused", "hunter2", "health_refused"))).await.unwrap_err();
    assert_eq!(why.reason, Reason::TooManyConnections, "{}", why.message);
}

#[tokio::test]
async fn redis_tells_clients_memory_refusals_and_evictions_to_a_user_with_one_right() {
    let page = include_str!("../../docs/read-stores.md");
    assert!(page.contains("+info"), "the page lists it");
    let own = Redis::with("maxclients 20\nmaxmemory 8mb\nmaxmemory-policy allkeys-lru").unwrap();
    own.run("ACL SETUSER enough on >hunter2 resetkeys nocommands +info").unwrap();
    own.run("ACL SETUSER lacking on >hunter2 resetkeys nocommands +get").unwrap();
    let store = redis_store(&own.url_as("enough", "hunter2"));
    let sample = health(&store).await.unwrap();
    let connections = sample.connections.unwrap();
    assert_eq!((connections.limit, connections.exact), (Some(20), true));
    assert!((1..20).contains(&connections.used), "{connections:?}");
    assert!(matches!(sample.memory, Some(Memory { used: 1.., limit: Some(8_388_608) })), "{sample:?}");
    assert_eq!((sample.rejected_connections, sample.evicted_keys, sample.refused_writes), (Some(0), Some(0), Some(0)));
    assert!(sample.latency > Duration::ZERO && sample.missing.is_none());
    // More than it can hold is evicted, and more clients than it takes are refused.
    let body = "x".repeat(100_000);
    for n in 0..150 {
        own.run_all(&[&["SET", &format!("key-{n}"), &body]]).unwrap();
    }
    let crowd: Vec<_> = (0..40).map(|_| std::net::TcpStream::connect(own.address()).unwrap()).collect();
    let full = loop {
        let sample = health(&store).await.unwrap();
        if sample.rejected_connections > Some(0) {
            break sample;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(full.evicted_keys > Some(0), "{full:?}");
    assert_eq!(full.connections.unwrap().used, 20, "{full:?}");
    let refused = health(&redis_store(&own.url_as("enough", "hunter2"))).await.unwrap_err();
    assert_eq!(refused.reason, Reason::TooManyConnections, "{}", refused.message);
    drop(crowd);
    // A user without the right reaches the server all the same, and is told what to grant.
    let lacking = redis_store(&own.url_as("lacking", "hunter2"));
    let sample = loop {
        match health(&lacking).await {
            Ok(sample) => break sample,
            Err(why) if why.reason == Reason::TooManyConnections => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(why) => panic!("{}", why.message),
        }
    };
    assert!(sample.connections.is_none() && sample.memory.is_none() && sample.evicted_keys.is_none(), "{sample:?}");
    assert!(sample.missing.unwrap().contains("+info"));
    // What must not be evicted is refused.
    own.run("CONFIG SET maxmemory-policy noeviction").unwrap();
    own.run("CONFIG SET maxmemory 1").unwrap();
    assert!(format!("{:?}", own.run("SET a b")).contains("OOM"));
    assert_eq!(health(&store).await.unwrap().refused_writes, Some(1));
}

#[tokio::test]
async fn of_a_redis_cluster_all_masters_are_asked_and_one_that_hangs_hides_none_of_the_others() {
    let cluster = RedisCluster::start(3, 0, "maxclients 40\nmaxmemory 8mb").unwrap();
    for node in &cluster.nodes {
        node.run("ACL SETUSER enough on >hunter2 resetkeys nocommands +info +cluster|slots").unwrap();
        node.run("ACL SETUSER lacking on >hunter2 resetkeys nocommands +cluster|slots").unwrap();
    }
    let store = redis_store(&cluster.nodes[0].url_as("enough", "hunter2"));
    let sample = health(&store).await.unwrap();
    let connections = sample.connections.unwrap();
    assert_eq!((connections.limit, connections.exact, sample.missing.clone()), (Some(120), true, None), "{sample:?}");
    assert!(connections.used >= 3 && sample.latency > Duration::ZERO, "{sample:?}");
    assert!(matches!(sample.memory, Some(Memory { used: 1.., limit: Some(8_388_608) })), "{sample:?}");
    assert_eq!((sample.refused_writes, sample.rejected_connections, sample.evicted_keys), (Some(0), Some(0), Some(0)));
    // One that is full refuses what has its slot there, and is not the one in the Secret.
    let (full, hangs) = (&cluster.nodes[2], &cluster.nodes[1]);
    let key = cluster.key_on(2, "k").unwrap();
    full.run("CONFIG SET maxmemory 1").unwrap();
    let refuse = || assert!(format!("{:?}", full.run(&format!("SET {key} b"))).contains("OOM"));
    refuse();
    let sample = health(&store).await.unwrap();
    assert_eq!((sample.refused_writes, sample.memory.unwrap().limit), (Some(1), Some(1)), "{sample:?}");
    hangs.pause();
    refuse();
    let look = || store.health(Instant::now() + Duration::from_secs(4));
    let sample = look().await.unwrap();
    assert_eq!((sample.refused_writes, sample.memory.unwrap().limit), (Some(2), Some(1)), "{sample:?}");
    assert!(sample.missing.unwrap().contains(&hangs.address().to_string()));
    assert_eq!(sample.connections.unwrap().limit, Some(80));
    hangs.resume();
    let back = || async { look().await.map_err(|why| anyhow::anyhow!(why.message)) };
    let is_whole = |sample: &StoreSample| sample.missing.is_none();
    let sample = eventually_is(DEADLINE, "all are asked again", is_whole, back).await.unwrap();
    assert_eq!((sample.refused_writes, sample.connections.unwrap().limit), (Some(2), Some(120)), "{sample:?}");
    let lacking = health(&redis_store(&cluster.nodes[0].url_as("lacking", "hunter2"))).await.unwrap();
    assert!(lacking.connections.is_none() && lacking.refused_writes.is_none(), "{lacking:?}");
    assert!(lacking.missing.unwrap().contains("+info"));
}

async fn write_queues(server: Distribution) {
    let sample = health(&CheckpointStore::Elasticsearch(search_store(&search_server(server).url()))).await.unwrap();
    assert!(sample.missing.is_none() && sample.latency > Duration::ZERO, "{sample:?}");
    let rejected = sample.writes.unwrap().rejected;
    // More than the server lets writes under way take of its memory (16 MiB here).
    let index = json!({"index": {"_index": "rejections", "_id": "1"}});
    let bulk = format!("{index}\n{}\n", json!({"text": "x".repeat(20 << 20)}));
    let (status, answer) = search_server(server).send("POST", "/_bulk", &bulk).unwrap();
    assert_eq!(status, 429, "{answer}");
    let sample = health(&CheckpointStore::Elasticsearch(search_store(&search_server(server).url()))).await.unwrap();
    assert!(sample.writes.unwrap().rejected > rejected, "{sample:?}");
    let connections = sample.connections.unwrap();
    assert!(connections.used >= 1 && connections.limit.is_none(), "{connections:?}");
}

#[tokio::test]
async fn elasticsearch_tells_its_write_queue_to_a_user_with_monitor_and_says_what_others_lack() {
    write_queues(Elasticsearch).await;
    let server = search_server(Elasticsearch);
    let store = |user: &str| CheckpointStore::Elasticsearch(search_store(&server.url_as(user)));
    assert!(health(&store("monitor")).await.unwrap().writes.is_some());
    let lacking = health(&store("reader")).await.unwrap();
    assert!(lacking.writes.is_none() && lacking.missing.unwrap().contains("monitor"));
    let wrong = search_store(&server.url_with("reader:hunter3@"));
    let wrong = health(&CheckpointStore::Elasticsearch(wrong)).await.unwrap_err();
    assert_eq!(wrong.reason, Reason::AuthenticationFailed, "{}", wrong.message);
    assert!(wrong.message.contains(&server.place()), "{}", wrong.message);
}

#[tokio::test]
async fn opensearch_tells_its_write_queue() {
    write_queues(OpenSearch).await;
}

/// What an autoscaler is told.
fn served(sampler: &crate::sampler::Running, metric: &str) -> Result<String, String> {
    let served = ServedMetrics::new(sampler.snapshot().clone());
    let selector = Selector::parse("projection=first").unwrap();
    match served.external("shop", metric, &selector) {
        Ok(values) => Ok(values[0].value.to_string()),
        Err(ValueError::Unavailable(why) | ValueError::NotFound(why)) => Err(why),
    }
}

#[tokio::test]
async fn a_read_store_that_hangs_is_unreachable_and_the_lag_is_measured_all_the_same() {
    let mut own = Redis::on_loopback().unwrap();
    let (url, client) = events("health_hangs").await;
    append(&client, &["a", "a"]).await;
    client.batch_execute("create table outbox (id bigint generated always as identity, created_at timestamptz default now()); insert into outbox default values").await.unwrap();
    let mut sampler = sampler_with(&[("events", &url), ("redis", &own.url())]);
    let spec = json!({
        "readStore": { "redis": { "connection": { "secretRef": { "name": "redis" } } } },
        "source": { "postgres": { "connection": { "secretRef": { "name": "events" } }, "outbox": {} } },
    });
    for name in ["first", "second", "third"] {
        declare(&mut sampler, name, &spec);
    }
    for name in ["first", "second", "third"] {
        sampler.wait_pending(name, 1).await;
        sampler.wait_store("healthy", name, |store| state(store) == ReadStoreState::Healthy).await;
    }
    let clients = own.run("CLIENT LIST").unwrap();
    assert_eq!(clients.text().matches("name=projectionist-sampler").count(), 1, "one for all: {}", clients.text());
    let connections = served(&sampler, "projection_read_store_connections").unwrap();
    assert!(connections.parse::<u64>().unwrap() >= 1, "{connections}");
    assert!(served(&sampler, "projection_read_store_connections_ratio").is_ok());
    assert!(served(&sampler, "projection_read_store_latency_seconds").is_ok());
    own.pause();
    let away = sampler.wait_store("away", "second", |store| state(store) == ReadStoreState::Unreachable).await;
    let why = away.current(std::time::Instant::now()).unwrap_err();
    assert_eq!(why.reason, Reason::TimedOut, "{}", why.message);
    assert!(why.message.contains(&own.address().to_string()), "{}", why.message);
    let unknown = served(&sampler, "projection_read_store_connections").unwrap_err();
    assert!(unknown.contains("TimedOut"), "never zero: {unknown}");
    // The lag goes on being measured while the store hangs.
    client.execute("insert into outbox default values", &[]).await.unwrap();
    sampler.wait_pending("first", 2).await;
    let still = sampler.wait_store("still away", "first", |_| true).await;
    assert_eq!(state(still.as_ref()), ReadStoreState::Unreachable);
    own.resume();
    sampler.wait_store("back", "third", |store| state(store) == ReadStoreState::Healthy).await;
    own.kill();
    let gone = sampler.wait_store("gone", "first", |store| state(store) == ReadStoreState::Unreachable).await;
    let why = gone.current(std::time::Instant::now()).unwrap_err();
    assert_eq!(why.reason, Reason::ConnectionRefused, "{}", why.message);
    // Another address is another store, and of the old one nothing stays.
    sampler.secret("redis", &json!({ "url": redis_server().url() }));
    sampler.wait_store("moved", "first", |store| state(store) == ReadStoreState::Healthy).await;
    assert_eq!(sampler.snapshot().load().read_stores.len(), 1);
}
