//! A running sampler with its Projections and Secrets in hand.

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
    lag::Pending,
    leader_required::Following,
    measure::{MeasureError, ProjectionKey},
    sampler::{self, SamplerInputs, SamplerMetrics, SecretData, Secrets},
    snapshot::{Measured, Observation, SharedSnapshot},
};
use serde_json::{Value, json};
use test_cluster::kafka::Listener;
use tokio::sync::{mpsc, watch};

use crate::harness::broker;

const SOON: Duration = Duration::from_secs(120);

#[derive(Default)]
struct Given(Mutex<HashMap<String, Value>>);

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

pub struct Running {
    writer: Writer<Projection>,
    changed: watch::Sender<u64>,
    secrets: Arc<Given>,
    snapshot: SharedSnapshot,
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
    /// The Secret `open` leads to the shared broker, without a user.
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
        let task = tokio::spawn(sampler::run(
            SamplerInputs {
                projections,
                changed: changed_there,
                following,
                secrets: Arc::clone(&secrets) as Arc<dyn Secrets>,
                addresses: Arc::default(),
                snapshot: snapshot.clone(),
                changes,
                first_round,
                metrics: Arc::new(SamplerMetrics::default()),
            },
            std::future::pending(),
        ));
        let held = (follow, changes_here, first_round_here);
        let running = Self { writer, changed, secrets, snapshot, _held: held, task };
        running.secret("open", &json!({ "bootstrapServers": broker().address(Listener::Plaintext).to_string() }));
        running
    }

    /// A Secret with these keys, instead of the one of that name.
    pub fn secret(&self, name: &str, keys: &Value) {
        self.secrets.0.lock().unwrap().insert(name.to_owned(), keys.clone());
    }

    /// Declares a Projection; `change` edits `spec.source.kafka`.
    pub fn declare(&mut self, name: &str, topics: &[&str], group: &str, change: impl FnOnce(&mut Value)) {
        let mut kafka = json!({ "connection": { "secretRef": { "name": "open" } }, "topics": topics, "group": group });
        change(&mut kafka);
        let projection: Projection = serde_json::from_value(json!({
            "apiVersion": "projectionist.dev/v1alpha1",
            "kind": "Projection",
            "metadata": { "namespace": "shop", "name": name, "uid": name, "generation": 1 },
            "spec": { "source": { "kafka": kafka }, "lag": { "target": "5s" } },
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

    pub async fn wait_measured(&self, what: &str, name: &str, holds: impl Fn(&Measured) -> bool) -> Arc<Measured> {
        let good = |seen: &Observation| seen.failure.is_none() && seen.measured.as_ref().is_some_and(|m| holds(m));
        self.wait(what, name, good).await.measured.clone().unwrap()
    }

    pub async fn wait_pending(&self, name: &str, pending: Pending) -> Arc<Measured> {
        self.wait_measured(&format!("{pending:?}"), name, |m| m.sample.pending == Some(pending)).await
    }

    pub async fn wait_unknown(&self, name: &str, reason: Reason) -> MeasureError {
        let failed = |seen: &Observation| seen.failure.as_ref().is_some_and(|failure| failure.reason == reason);
        let unknown = self.wait(&format!("{reason}"), name, failed).await.failure.clone().unwrap();
        assert!(!unknown.message.contains("canary"), "{}", unknown.message);
        unknown
    }
}
