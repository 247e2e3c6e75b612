//! A running sampler with its Projections and Secrets in hand, for the tests of every kind of source.

#![allow(dead_code)] // Each test binary uses a part of it.

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
    addresses::AddressRules,
    api::{Projection, Reason},
    lag::Pending,
    leader_required::Following,
    measure::{MeasureError, ProjectionKey, RunKey},
    metrics_api::{AwaitError, AwaitQuery, ReadModels as _},
    read_stores::OpenStores,
    read_your_writes::{ReadModelPositions, Waiters},
    sampler::{self, SamplerInputs, SamplerMetrics, SecretData, Secrets},
    snapshot::{Measured, Observation, SharedSnapshot},
    store_health::StoreObservation,
};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

pub const SOON: Duration = Duration::from_secs(120);

/// Secrets by name, each an object of texts.
#[derive(Default)]
struct Given(Mutex<HashMap<String, Value>>);

impl Secrets for Given {
    fn get<'a>(&'a self, _: &'a str, name: &'a str) -> BoxFuture<'a, Result<SecretData, MeasureError>> {
        let found = self.0.lock().unwrap().get(name).cloned();
        let data = found.map(|keys| {
            let keys = keys.as_object().unwrap().iter();
            let values = keys.map(|(key, text)| (key.clone(), text.as_str().unwrap().as_bytes().to_vec())).collect();
            SecretData { values, allowed_endpoints: None }
        });
        Box::pin(async {
            data.ok_or(MeasureError { reason: Reason::SecretNotFound, message: "there is no such Secret".to_owned() })
        })
    }
}

/// The servers of these tests are on this machine.
pub fn loopback() -> Arc<AddressRules> {
    Arc::new(AddressRules::default().allowing(["127.0.0.0/8".parse().unwrap()]))
}

pub struct Running {
    writer: Writer<Projection>,
    changed: watch::Sender<u64>,
    secrets: Arc<Given>,
    snapshot: SharedSnapshot,
    read_models: ReadModelPositions,
    read_stores: OpenStores,
    /// What the sampler would end without.
    _held: (watch::Sender<Following>, mpsc::Receiver<ProjectionKey>, watch::Receiver<bool>),
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Running {
    pub fn start() -> Self {
        let (projections, mut writer) = reflector::store();
        writer.apply_watcher_event(&Event::Init);
        writer.apply_watcher_event(&Event::InitDone);
        let secrets = Arc::new(Given::default());
        let (changed, changed_there) = watch::channel(0);
        let (follow, following) = watch::channel(Following::default());
        let (changes, changes_here) = mpsc::channel(64);
        let (first_round, first_round_here) = watch::channel(false);
        let snapshot = SharedSnapshot::default();
        let waiters = Waiters::default();
        let read_stores = OpenStores::default();
        let read_models = ReadModelPositions::new(projections.clone(), waiters.clone());
        let task = tokio::spawn(sampler::run(
            SamplerInputs {
                runs: projections.into(),
                read_stores: read_stores.clone(),
                addresses: loopback(),
                changed: changed_there,
                following,
                secrets: Arc::clone(&secrets) as Arc<dyn Secrets>,
                snapshot: snapshot.clone(),
                changes,
                first_round,
                metrics: Arc::new(SamplerMetrics::default()),
                waiters,
            },
            std::future::pending(),
        ));
        let held = (follow, changes_here, first_round_here);
        Self { writer, changed, secrets, snapshot, read_models, read_stores, _held: held, task }
    }

    /// A Secret with these keys, instead of the one of that name.
    pub fn secret(&self, name: &str, keys: &Value) {
        self.secrets.0.lock().unwrap().insert(name.to_owned(), keys.clone());
    }

    /// A Projection in the namespace `shop` with this `spec.source`.
    pub fn declare(&mut self, name: &str, source: &Value) {
        self.declare_spec(name, &json!({ "source": source }));
    }

    /// A Projection in the namespace `shop` with this `spec`, whose lag target is 5 s unless it has one.
    pub fn declare_spec(&mut self, name: &str, given: &Value) {
        let mut spec = json!({ "lag": { "target": "5s" } });
        for (field, value) in given.as_object().unwrap() {
            spec[field] = value.clone();
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

    /// Waits for a position as a request does.
    pub async fn reached(&self, name: &str, position: &str, timeout: &str) -> Result<String, AwaitError> {
        let query = AwaitQuery { namespace: "shop", name, position, timeout: Some(timeout) };
        self.read_models.reached(query).await
    }

    /// The read stores of runs with a version.
    pub fn read_stores(&self) -> &OpenStores {
        &self.read_stores
    }

    /// Where the observations are.
    pub fn snapshot(&self) -> &SharedSnapshot {
        &self.snapshot
    }

    /// Waits until this holds of the read store of a Projection.
    pub async fn wait_store(
        &self,
        what: &str,
        name: &str,
        holds: impl Fn(&StoreObservation) -> bool,
    ) -> Arc<StoreObservation> {
        let until = Instant::now() + SOON;
        loop {
            let snapshot = self.snapshot.load();
            let observation = snapshot.get(&RunKey::unversioned("shop", name));
            match observation.and_then(|observation| snapshot.read_store_of(observation)) {
                Some(store) if holds(store) => return Arc::clone(store),
                last if Instant::now() > until => panic!("{name}: {what}: not within {SOON:?}; last seen: {last:#?}"),
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    pub async fn wait(&self, what: &str, name: &str, holds: impl Fn(&Observation) -> bool) -> Arc<Observation> {
        let until = Instant::now() + SOON;
        loop {
            match self.snapshot.load().get(&RunKey::unversioned("shop", name)).cloned() {
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

    /// Waits until exactly so many events are pending, as measured and as assessed.
    pub async fn wait_pending(&self, name: &str, events: u64) -> Arc<Measured> {
        let exactly = Pending { events, exact: true };
        let holds = |m: &Measured| m.sample.pending == Some(exactly) && m.assessment.pending == exactly;
        self.wait_measured(&format!("{events} pending"), name, holds).await
    }

    /// Waits for a failure with this reason, and sees that it tells no secret of the tests.
    pub async fn wait_unknown(&self, name: &str, reason: Reason) -> MeasureError {
        let failed = |seen: &Observation| seen.failure.as_ref().is_some_and(|failure| failure.reason == reason);
        let unknown = self.wait(&format!("{reason}"), name, failed).await.failure.clone().unwrap();
        assert!(!["hunter2", "canary"].iter().any(|secret| unknown.message.contains(secret)), "{}", unknown.message);
        unknown
    }
}
