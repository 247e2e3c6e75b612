//! A running sampler with its Projections and Secrets in hand, and databases for it to look at.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex, OnceLock, atomic::Ordering::Relaxed},
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
    lag::{Head, LogHead, Pending, Sample},
    leader_required::Following,
    measure::{MeasureError, ProjectionKey, RunKey},
    read_stores::OpenStores,
    read_your_writes::{ReadModelPositions, Waiters},
    sampler::{self, SamplerInputs, SamplerMetrics, SecretData, Secrets},
    snapshot::{Measured, Observation, SharedSnapshot},
};
use serde_json::{Value, json};
use test_cluster::{Postgres, eventually_is};
use tokio::sync::{mpsc, watch};
use tokio_postgres::Client;

pub const SOON: Duration = Duration::from_secs(120);

/// One server for all tests that neither stop nor reconfigure it.
pub fn server() -> &'static Postgres {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    SERVER.get_or_init(|| Postgres::on_loopback().unwrap())
}

/// The servers of these tests are on this machine.
fn loopback() -> Arc<AddressRules> {
    Arc::new(AddressRules::default().allowing(["127.0.0.0/8".parse().unwrap()]))
}

#[derive(Default)]
pub struct Given(pub Mutex<HashMap<String, String>>);

impl Secrets for Given {
    fn get<'a>(&'a self, _: &'a str, name: &'a str) -> BoxFuture<'a, Result<SecretData, MeasureError>> {
        // One text is the value of whichever key is asked for.
        let found = self.0.lock().unwrap().get(name).cloned();
        let data = found.map(|text| SecretData {
            values: ["url", "ca.crt", "tls.crt", "tls.key"]
                .map(|key| (key.to_owned(), text.clone().into_bytes()))
                .into(),
            allowed_endpoints: None,
        });
        Box::pin(async {
            data.ok_or(MeasureError { reason: Reason::SecretNotFound, message: "there is no such Secret".to_owned() })
        })
    }
}

/// A running sampler with its Projections in hand.
pub struct Running {
    writer: Writer<Projection>,
    changed: watch::Sender<u64>,
    pub secrets: Arc<Given>,
    snapshot: SharedSnapshot,
    pub first_round: watch::Receiver<bool>,
    pub metrics: Arc<SamplerMetrics>,
    pub waiters: Waiters,
    pub read_models: ReadModelPositions,
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
        let given = secrets.iter().map(|(name, url)| ((*name).to_owned(), (*url).to_owned())).collect();
        let secrets = Arc::new(Given(Mutex::new(given)));
        let (changed, changed_there) = watch::channel(0);
        let (follow, following) = watch::channel(Following::default());
        let (changes, changes_here) = mpsc::channel(64);
        let (first_round, first_round_here) = watch::channel(false);
        let (snapshot, metrics) = (SharedSnapshot::default(), Arc::new(SamplerMetrics::default()));
        let waiters = Waiters::default();
        let read_models = ReadModelPositions::new(projections.clone(), waiters.clone());
        let task = tokio::spawn(sampler::run(
            SamplerInputs {
                runs: projections.into(),
                read_stores: OpenStores::default(),
                changed: changed_there,
                following,
                secrets: Arc::clone(&secrets) as Arc<dyn Secrets>,
                addresses: loopback(),
                snapshot: snapshot.clone(),
                changes,
                first_round,
                metrics: Arc::clone(&metrics),
                waiters: waiters.clone(),
            },
            std::future::pending(),
        ));
        let held = (follow, changes_here);
        let first_round = first_round_here;
        Self { writer, changed, secrets, snapshot, first_round, metrics, waiters, read_models, _held: held, task }
    }

    /// Declares a Projection; `change` edits its spec.
    pub fn declare(&mut self, name: &str, change: impl FnOnce(&mut Value)) {
        self.declare_with_status(name, &Value::Null, change);
    }

    /// Declares a Projection that has this status already.
    pub fn declare_with_status(&mut self, name: &str, status: &Value, change: impl FnOnce(&mut Value)) {
        let mut spec = json!({
            "source": { "postgres": { "connection": { "secretRef": { "name": "db" } }, "eventTable": {} } },
            "checkpoint": { "readStore": {} },
            "readStore": { "postgres": { "connection": { "secretRef": { "name": "db" } } } },
            "lag": { "target": "5s" },
        });
        change(&mut spec);
        let projection: Projection = serde_json::from_value(json!({
            "apiVersion": "projectionist.dev/v1alpha1",
            "kind": "Projection",
            "metadata": { "namespace": "shop", "name": name, "uid": name, "generation": 1 },
            "spec": spec,
            "status": status,
        }))
        .unwrap();
        self.writer.apply_watcher_event(&Event::Apply(projection));
        self.changed.send_modify(|count| *count += 1);
    }

    pub fn observation(&self, name: &str) -> Option<Arc<Observation>> {
        self.snapshot.load().get(&RunKey::unversioned("shop", name)).cloned()
    }

    pub async fn wait(&self, what: &str, name: &str, holds: impl Fn(&Observation) -> bool) -> Arc<Observation> {
        let until = Instant::now() + SOON;
        loop {
            match self.observation(name) {
                Some(observation) if holds(&observation) => return observation,
                last if Instant::now() > until => panic!("{name}: {what}: not within {SOON:?}; last seen: {last:#?}"),
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    pub async fn wait_measured(&self, what: &str, name: &str, holds: impl Fn(&Measured) -> bool) -> Arc<Measured> {
        let good = |seen: &Observation| seen.failure.is_none() && seen.measured.as_ref().is_some_and(|m| holds(m));
        self.wait(what, name, good).await.measured.clone().unwrap()
    }

    pub async fn wait_pending(&self, name: &str, events: u64) -> Arc<Measured> {
        let what = format!("{events} pending");
        self.wait_measured(&what, name, |m| m.assessment.pending == Pending { events, exact: true }).await
    }

    /// How often a source has woken the sampler, which it does when its connection ends as well.
    pub fn pushes(&self) -> u64 {
        self.metrics.pushes.load(Relaxed)
    }

    /// Waits until a source has woken the sampler once more than these times: a poll that found what is new by its own interval does not count.
    pub async fn wait_woken(&self, before: u64) {
        let pushes = || async { Ok::<_, Infallible>(self.pushes()) };
        eventually_is(SOON, "the source wakes the sampler", |now| *now > before, pushes).await.unwrap();
    }

    /// Runs a statement that adds what waits of this Projection, up to `pending`, and tells the channel so: that wakes the sampler.
    pub async fn is_woken_by(&self, client: &Client, statement: &str, (name, pending): (&str, u64)) {
        let before = self.pushes();
        client.batch_execute(statement).await.unwrap();
        self.wait_woken(before).await;
        self.wait_pending(name, pending).await;
    }

    /// Waits until so many polls were refused.
    pub async fn wait_refused(&self, times: u64) {
        let refused = || async { Ok::<_, Infallible>(self.metrics.failures.load(Relaxed)) };
        eventually_is(SOON, "it is refused again and again", |failures| *failures >= times, refused).await.unwrap();
    }

    /// Waits for a sample after what the server refused has been put right, just now. No more than two polls tell the refusal still, of which one
    /// may have been under way. It counts the answers of all polls, so that the sampler may have no other Projection.
    pub async fn seen_within_two_polls(&self) {
        let told = || (self.metrics.samples.load(Relaxed), self.metrics.failures.load(Relaxed));
        let (samples, failures) = told();
        let now = || async { Ok::<_, Infallible>(told()) };
        let seen = eventually_is(SOON, "what was put right is seen", |(all, _)| *all > samples, now).await.unwrap();
        let refused = seen.1 - failures;
        assert!(refused <= 2, "{refused} polls were refused after it was put right");
    }

    pub async fn wait_unknown(&self, name: &str, reason: Reason) -> MeasureError {
        let failed = |seen: &Observation| seen.failure.as_ref().is_some_and(|failure| failure.reason == reason);
        let unknown = self.wait(&format!("{reason}"), name, failed).await.failure.clone().unwrap();
        assert!(!unknown.message.contains("hunter2"));
        unknown
    }
}

/// Gives rights one by one, of which the last makes the Projection measurable with so many events waiting, and then takes each away and gives it again:
/// exactly these suffice. The Projection's connection has this role, which has none of them yet.
pub async fn exactly_these_rights_suffice(
    client: &Client,
    sampler: &Running,
    name: &str,
    grants: &[&str],
    pending: u64,
) {
    for grant in grants {
        sampler.wait_unknown(name, Reason::PermissionDenied).await;
        client.batch_execute(grant).await.unwrap();
    }
    sampler.wait_pending(name, pending).await;
    for grant in grants {
        let (right, role) = grant.rsplit_once(" to ").unwrap();
        let revoke = format!("{} from {role}", right.replacen("grant", "revoke", 1));
        client.batch_execute(&revoke).await.unwrap();
        sampler.wait_unknown(name, Reason::PermissionDenied).await;
        client.batch_execute(grant).await.unwrap();
        sampler.wait_pending(name, pending).await;
    }
}

pub const TABLES: &str = "
    create table events (position bigint generated always as identity primary key, stream text not null default 's',
        type text not null default 't', data jsonb not null default '{}', recorded_at timestamptz default clock_timestamp());
    create table checkpoints (projection text primary key, position bigint);";

/// The built-in projector's checkpoints, as far as they are read.
pub const BUILTIN_CHECKPOINTS: &str = "create table projectionist_checkpoints (projection text, shard int, shards int, position bigint not null default 0,
    failed_position bigint, failure text, passed_over bigint[], primary key (projection, shard));";

/// A Projection with the built-in projector and four shards, whose source in PostgreSQL is this.
pub fn built_in(source: Value) -> impl FnOnce(&mut Value) {
    move |spec| {
        *spec = json!({
            "source": { "postgres": source },
            "readStore": { "postgres": { "connection": { "secretRef": { "name": "db" } } } },
            "projector": { "builtin": { "handlers": { "Happened": "select 1" } } },
            "scaling": { "shards": 4 },
            "lag": { "target": "5s" },
        });
        spec["source"]["postgres"]["connection"] = json!({ "secretRef": { "name": "db" } });
    }
}

/// What `count`, which joins the built-in projector's checkpoints as `c`, counts in each of four shards.
pub async fn counted_in_shards(client: &Client, count: &str) -> Vec<u64> {
    let mut counted = Vec::new();
    for shard in 0..4_i32 {
        let row = client.query_one(&format!("{count} and c.shard = $1"), &[&shard]).await.unwrap();
        counted.push(u64::try_from(row.get::<_, i64>(0)).unwrap());
    }
    counted
}

pub async fn database(server: &Postgres, name: &str) -> (String, Client) {
    let url = server.create_database(name).await.unwrap();
    let client = server.connect(name).await.unwrap();
    client.batch_execute(TABLES).await.unwrap();
    (url, client)
}

pub async fn append(client: &Client, count: i64) {
    client
        .execute("insert into events (stream) select 's' || n from generate_series(1, $1::bigint) n", &[&count])
        .await
        .unwrap();
}

pub async fn commit(client: &Client, name: &str, position: i64) {
    let upsert =
        "insert into checkpoints values ($1, $2) on conflict (projection) do update set position = excluded.position";
    client.execute(upsert, &[&name, &position]).await.unwrap();
}

pub async fn sampler_connections(client: &Client, database: &str) -> i64 {
    let count =
        "select count(*) from pg_stat_activity where application_name = 'projectionist-sampler' and datname = $1";
    client.query_one(count, &[&database]).await.unwrap().get(0)
}

/// The newest positions of the event table.
pub(crate) fn log_head(sample: &Sample) -> LogHead {
    match sample.head {
        Head::Log(log) => log,
        Head::Shards(_) | Head::Unnumbered => panic!("an event table is one log: {:?}", sample.head),
    }
}
