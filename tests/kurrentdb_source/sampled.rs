//! The whole way from a Projection and its Secret to an observation.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use kube::runtime::{
    reflector::{self, store::Writer},
    watcher::Event,
};
use projectionist::{
    api::{Projection, Reason},
    leader_required::Following,
    measure::{MeasureError, ProjectionKey},
    sampler::{self, SamplerInputs, SamplerMetrics, SecretData, Secrets},
    snapshot::{Observation, SharedSnapshot},
};
use serde_json::{Value, json};
use test_cluster::Postgres;
use tokio::sync::{mpsc, watch};

use crate::{
    harness::{ago, exactly, loopback},
    server::{Fake, Instead},
};

const SOON: Duration = Duration::from_secs(120);

/// Secrets by name, each with its keys.
#[derive(Default)]
struct Given(Mutex<HashMap<String, Value>>);

impl Given {
    fn set(&self, name: &str, keys: Value) {
        self.0.lock().unwrap().insert(name.to_owned(), keys);
    }
}

impl Secrets for Given {
    fn get<'a>(&'a self, _: &'a str, name: &'a str) -> BoxFuture<'a, Result<SecretData, MeasureError>> {
        let found = self.0.lock().unwrap().get(name).cloned();
        let data = found.map(|keys| {
            let keys = keys.as_object().unwrap().iter();
            SecretData(keys.map(|(key, text)| (key.clone(), text.as_str().unwrap().as_bytes().to_vec())).collect())
        });
        Box::pin(async {
            data.ok_or(MeasureError { reason: Reason::SecretNotFound, message: "there is no such Secret".to_owned() })
        })
    }
}

struct Running {
    writer: Writer<Projection>,
    changed: watch::Sender<u64>,
    secrets: Arc<Given>,
    snapshot: SharedSnapshot,
    /// What the sampler would end without.
    _held: (watch::Sender<Following>, mpsc::Receiver<ProjectionKey>),
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Running {
    fn start() -> Self {
        let (projections, mut writer) = reflector::store();
        writer.apply_watcher_event(&Event::Init);
        writer.apply_watcher_event(&Event::InitDone);
        let secrets = Arc::new(Given::default());
        let (changed, changed_there) = watch::channel(0);
        let (follow, following) = watch::channel(Following::default());
        let (changes, changes_here) = mpsc::channel(64);
        let snapshot = SharedSnapshot::default();
        let task = tokio::spawn(sampler::run(
            SamplerInputs {
                projections,
                changed: changed_there,
                following,
                secrets: Arc::clone(&secrets) as Arc<dyn Secrets>,
                addresses: loopback(),
                snapshot: snapshot.clone(),
                changes,
                first_round: watch::channel(false).0,
                metrics: Arc::new(SamplerMetrics::default()),
            },
            std::future::pending(),
        ));
        Self { writer, changed, secrets, snapshot, _held: (follow, changes_here), task }
    }

    fn declare(&mut self, name: &str, secret: &str, reads: &Value, store: Option<&str>) {
        let connection = |secret: &str| json!({ "secretRef": { "name": secret } });
        let mut source = reads.clone();
        source["connection"] = connection(secret);
        let mut spec = json!({ "source": { "kurrentdb": source }, "lag": { "target": "5s" } });
        if let Some(store) = store {
            spec["checkpoint"] = json!({ "readStore": { "name": "list" } });
            spec["readStore"] = json!({ "postgres": { "connection": connection(store) } });
        }
        let projection: Projection = serde_json::from_value(json!({
            "apiVersion": "projectionist.dev/v1alpha1",
            "kind": "Projection",
            "metadata": { "namespace": "shop", "name": name, "uid": name, "generation": 1 },
            "spec": spec,
        }))
        .unwrap();
        self.writer.apply_watcher_event(&Event::Apply(projection));
        self.changed.send_modify(|count| *count += 1);
    }

    async fn wait(&self, what: &str, name: &str, holds: impl Fn(&Observation) -> bool) -> Arc<Observation> {
        let until = Instant::now() + SOON;
        loop {
            match self.snapshot.load().get("shop", name).cloned() {
                Some(observation) if holds(&observation) => return observation,
                last if Instant::now() > until => panic!("{name}: {what}: not within {SOON:?}; last seen: {last:#?}"),
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    async fn wait_pending(&self, name: &str, events: u64) {
        let pending = |seen: &Observation| {
            let measured = seen.measured.as_ref().filter(|_| seen.failure.is_none());
            measured.is_some_and(|measured| Some(measured.assessment.pending) == exactly(events))
        };
        self.wait(&format!("{events} pending"), name, pending).await;
    }

    async fn wait_unknown(&self, name: &str, reason: Reason) -> MeasureError {
        let failed = |seen: &Observation| seen.failure.as_ref().is_some_and(|failure| failure.reason == reason);
        let unknown = self.wait(&format!("{reason}"), name, failed).await.failure.clone().unwrap();
        assert!(!unknown.message.contains("hunter2"), "{}", unknown.message);
        unknown
    }
}

#[tokio::test]
async fn a_projection_is_measured_by_its_secret_and_a_rotated_password_takes_effect_without_a_restart() {
    let fake = Fake::start().await;
    fake.require_login("shop", "hunter2");
    fake.database(|database| {
        database.pull("orders", "list");
        database.append("orders", 2, ago(5));
    });
    let secret = |password: &str| {
        let (host, port) = (fake.at.ip().to_string(), fake.at.port().to_string());
        json!({ "host": host, "port": port, "username": "shop", "password": password, "tls": "false" })
    };
    let mut sampler = Running::start();
    sampler.secrets.set("kurrent", secret("hunter2-old"));
    let reads = json!({ "persistentSubscriptions": [{ "stream": "orders", "group": "list" }] });
    sampler.declare("a", "kurrent", &reads, None);
    sampler.declare("b", "missing", &reads, None);
    sampler.declare("c", "kurrent", &json!({}), None);
    let refused = sampler.wait_unknown("a", Reason::AuthenticationFailed).await;
    assert!(refused.message.contains("KurrentDB at 127.0.0.1:"), "{}", refused.message);
    sampler.wait_unknown("b", Reason::SecretNotFound).await;
    sampler.wait_unknown("c", Reason::InvalidSpec).await;
    sampler.secrets.set("kurrent", secret("hunter2"));
    sampler.wait_pending("a", 2).await;
    fake.database(|database| {
        let group = database.group("orders", "list");
        let taken = group.push(2);
        group.acknowledge(&taken);
    });
    sampler.wait_pending("a", 0).await;
    fake.instead(Instead::Hangs);
    sampler.wait_unknown("a", Reason::TimedOut).await;
}

#[tokio::test]
async fn a_catch_up_subscription_is_measured_by_the_checkpoint_in_the_read_store() {
    let (fake, store) = (Fake::start().await, Postgres::on_loopback().unwrap());
    fake.database(|database| database.append("order-1", 5, ago(5)));
    let fifth = fake.database(|database| database.commit_of("order-1", 4));
    let (client, connection) = tokio_postgres::connect(&store.url("postgres"), tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let sql = "create table checkpoints (projection text primary key, position bigint)";
    client.batch_execute(sql).await.unwrap();
    let mut sampler = Running::start();
    sampler.secrets.set("kurrent", json!({ "url": format!("kurrentdb://{}?tls=false", fake.at) }));
    sampler.secrets.set("store", json!({ "url": store.url("postgres") }));
    sampler.declare("stream", "kurrent", &json!({ "catchUp": { "stream": "order-1" } }), Some("store"));
    sampler.wait_unknown("stream", Reason::NeverCommitted).await;
    client.execute("insert into checkpoints values ('list', 1)", &[]).await.unwrap();
    sampler.wait_pending("stream", 3).await;
    client.execute("update checkpoints set position = 4", &[]).await.unwrap();
    sampler.wait_pending("stream", 0).await;
    client.execute("update checkpoints set position = $1", &[&fifth]).await.unwrap();
    sampler.declare("all", "kurrent", &json!({ "catchUp": { "stream": "$all" } }), Some("store"));
    sampler.wait_pending("all", 0).await;
    fake.database(|database| database.append("order-2", 2, ago(5)));
    sampler.wait_pending("all", 2).await;
}
