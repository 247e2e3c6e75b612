//! One server of each kind for all tests that neither stop nor reconfigure it, and a running sampler with its Projections and Secrets in hand.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock},
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use kube::runtime::{
    reflector::{self, store::Writer},
    watcher::Event,
};
use projectionist::{
    addresses::AddressRules,
    api::{Projection, Reason},
    lag::Pending,
    leader_required::Following,
    measure::{MeasureError, ProjectionKey},
    sampler::{self, SamplerInputs, SamplerMetrics, SecretData, Secrets},
    snapshot::{Measured, Observation, SharedSnapshot},
};
use serde_json::{Value, json};
use test_cluster::{Elasticsearch, Postgres, Redis, elasticsearch::Distribution};
use tokio::sync::{mpsc, watch};
use tokio_postgres::Client;

pub const SOON: Duration = Duration::from_secs(120);

pub fn redis_server() -> &'static Redis {
    static SERVER: OnceLock<Redis> = OnceLock::new();
    SERVER.get_or_init(|| Redis::on_loopback().unwrap())
}

/// Elasticsearch has a user who may only read checkpoints; OpenSearch comes without users.
pub fn search_server(distribution: Distribution) -> &'static Elasticsearch {
    static ELASTICSEARCH: OnceLock<Elasticsearch> = OnceLock::new();
    static OPENSEARCH: OnceLock<Elasticsearch> = OnceLock::new();
    let server = match distribution {
        Distribution::Elasticsearch => &ELASTICSEARCH,
        Distribution::OpenSearch => &OPENSEARCH,
    };
    let role = |index: &str| format!("  indices: [{{names: ['{index}'], privileges: [{PRIVILEGE}]}}]");
    let (reader, elsewhere) = (role("checkpoints"), role("invoices"));
    let users = [("reader", reader.as_str()), ("elsewhere", elsewhere.as_str()), ("none", "  indices: []")];
    server.get_or_init(|| Elasticsearch::on_loopback(distribution, &users).unwrap_or_else(|error| panic!("{error:#}")))
}

/// The privilege on an index that docs/read-stores.md lists.
pub const PRIVILEGE: &str = "read";

pub fn postgres_server() -> &'static Postgres {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    SERVER.get_or_init(|| Postgres::on_loopback().unwrap())
}

/// The servers of these tests are on this machine.
pub fn loopback() -> Arc<AddressRules> {
    Arc::new(AddressRules::default().allowing(["127.0.0.0/8".parse().unwrap()]))
}

/// A database of its own with an event table.
pub async fn events(name: &str) -> (String, Client) {
    let url = postgres_server().create_database(name).await.unwrap();
    let client = postgres_server().connect(name).await.unwrap();
    let tables = "create table events (position bigint generated always as identity primary key, stream text not null default 's',
        tenant text not null default 'a', type text not null default 't', data jsonb not null default '{}',
        recorded_at timestamptz not null default clock_timestamp())";
    client.batch_execute(tables).await.unwrap();
    (url, client)
}

/// Appends events of these tenants.
pub async fn append(client: &Client, tenants: &[&str]) {
    let tenants: Vec<String> = tenants.iter().map(|tenant| (*tenant).to_owned()).collect();
    client.execute("insert into events (tenant) select unnest($1::text[])", &[&tenants]).await.unwrap();
}

/// URLs of Secrets by name.
#[derive(Default)]
pub struct Given(Mutex<HashMap<String, String>>);

impl Secrets for Given {
    fn get<'a>(&'a self, _: &'a str, name: &'a str) -> BoxFuture<'a, Result<SecretData, MeasureError>> {
        let found = self.0.lock().unwrap().get(name).cloned();
        let data = found.map(|url| SecretData([("url".to_owned(), url.into_bytes())].into()));
        Box::pin(async {
            data.ok_or(MeasureError { reason: Reason::SecretNotFound, message: "there is no such Secret".to_owned() })
        })
    }
}

/// A running sampler.
pub struct Running {
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
    pub fn start(secrets: &[(&str, &str)]) -> Self {
        let (projections, mut writer) = reflector::store();
        writer.apply_watcher_event(&Event::Init);
        writer.apply_watcher_event(&Event::InitDone);
        let given = Arc::new(Given::default());
        let (changed, changed_there) = watch::channel(0);
        let (follow, following) = watch::channel(Following::default());
        let (changes, changes_here) = mpsc::channel(64);
        let snapshot = SharedSnapshot::default();
        let task = tokio::spawn(sampler::run(
            SamplerInputs {
                projections,
                changed: changed_there,
                following,
                secrets: Arc::clone(&given) as Arc<dyn Secrets>,
                snapshot: snapshot.clone(),
                changes,
                addresses: loopback(),
                first_round: watch::channel(false).0,
                metrics: Arc::new(SamplerMetrics::default()),
            },
            std::future::pending(),
        ));
        let running = Self { writer, changed, secrets: given, snapshot, _held: (follow, changes_here), task };
        for (name, url) in secrets {
            running.set(name, url);
        }
        running
    }

    /// Sets a Secret.
    pub fn set(&self, name: &str, url: &str) {
        self.secrets.0.lock().unwrap().insert(name.to_owned(), url.to_owned());
    }

    /// Declares a Projection of the event table in the database of the Secret `events`.
    pub fn declare(&mut self, name: &str, spec: &Value) {
        let mut all = json!({
            "source": { "postgres": { "connection": { "secretRef": { "name": "events" } }, "eventTable": {} } },
            "lag": { "target": "5s" },
        });
        for (field, value) in spec.as_object().unwrap() {
            all[field] = value.clone();
        }
        let projection: Projection = serde_json::from_value(json!({
            "apiVersion": "projectionist.dev/v1alpha1",
            "kind": "Projection",
            "metadata": { "namespace": "shop", "name": name, "uid": name, "generation": 1 },
            "spec": all,
        }))
        .unwrap();
        self.writer.apply_watcher_event(&Event::Apply(projection));
        self.changed.send_modify(|count| *count += 1);
    }

    pub async fn wait(&self, what: &str, name: &str, holds: impl Fn(&Observation) -> bool) -> Arc<Observation> {
        let until = Instant::now() + SOON;
        loop {
            match self.snapshot.load().get("shop", name).cloned() {
                Some(observation) if holds(&observation) => return observation,
                last if Instant::now() > until => panic!("{name}: {what}: not within {SOON:?}; last seen: {last:#?}"),
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    pub async fn wait_pending(&self, name: &str, events: u64) -> Arc<Measured> {
        let pending = |seen: &Observation| {
            let measured = seen.measured.as_ref().filter(|_| seen.failure.is_none());
            measured.is_some_and(|measured| measured.assessment.pending == Pending { events, exact: true })
        };
        self.wait(&format!("{events} pending"), name, pending).await.measured.clone().unwrap()
    }

    pub async fn wait_unknown(&self, name: &str, reason: Reason) -> MeasureError {
        let failed = |seen: &Observation| seen.failure.as_ref().is_some_and(|failure| failure.reason == reason);
        let unknown = self.wait(&format!("{reason}"), name, failed).await.failure.clone().unwrap();
        assert!(!unknown.message.contains("hunter2"), "{}", unknown.message);
        unknown
    }
}
