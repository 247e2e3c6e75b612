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
use tokio::sync::{mpsc, watch};

use crate::harness::{declare, exactly, publish, server};

const SOON: Duration = Duration::from_secs(120);

/// Secrets by name, each with its keys.
#[derive(Default)]
struct Given(Mutex<HashMap<String, Vec<(String, String)>>>);

impl Given {
    fn set(&self, name: &str, pairs: &[(&str, &str)]) {
        let pairs = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        self.0.lock().unwrap().insert(name.to_owned(), pairs);
    }
}

impl Secrets for Given {
    fn get<'a>(&'a self, _: &'a str, name: &'a str) -> BoxFuture<'a, Result<SecretData, MeasureError>> {
        let found = self.0.lock().unwrap().get(name).cloned();
        let data = found.map(|pairs| SecretData(pairs.into_iter().map(|(k, v)| (k, v.into_bytes())).collect()));
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
                addresses: crate::harness::loopback(),
                snapshot: snapshot.clone(),
                changes,
                first_round: watch::channel(false).0,
                metrics: Arc::new(SamplerMetrics::default()),
            },
            std::future::pending(),
        ));
        Self { writer, changed, secrets, snapshot, _held: (follow, changes_here), task }
    }

    fn declare(&mut self, name: &str, secret: &str, queues: &Value) {
        let projection: Projection = serde_json::from_value(json!({
            "apiVersion": "projectionist.dev/v1alpha1",
            "kind": "Projection",
            "metadata": { "namespace": "shop", "name": name, "uid": name, "generation": 1 },
            "spec": {
                "source": { "rabbitmq": { "connection": { "secretRef": { "name": secret } }, "queues": queues } },
                "lag": { "target": "5s" },
            },
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
    declare(server(), "sampled", "classic");
    declare(server(), "sampled-2", "quorum");
    publish(server(), "sampled", 2, &json!({"delivery_mode": 2}));
    let account = json!({"password": "hunter2", "tags": "management"});
    server().run("PUT", "users/sampled", &account).unwrap();
    let none = json!({"configure": "^$", "write": "^$", "read": "^$"});
    server().run("PUT", "permissions/%2F/sampled", &none).unwrap();
    let (host, port) = (server().address().ip().to_string(), server().address().port().to_string());
    let mut sampler = Running::start();
    let set = |sampler: &Running, password: &str| {
        let keys = [("host", host.as_str()), ("port", &port), ("username", "sampled"), ("password", password)];
        sampler.secrets.set("rabbitmq", &keys);
    };
    set(&sampler, "hunter2-old");
    sampler.declare("a", "rabbitmq", &json!(["sampled", "sampled-2"]));
    sampler.declare("b", "missing", &json!(["sampled"]));
    sampler.declare("twice", "rabbitmq", &json!(["sampled", "sampled"]));
    sampler.declare("none", "rabbitmq", &json!(["sampled-none"]));
    let refused = sampler.wait_unknown("a", Reason::AuthenticationFailed).await;
    assert!(refused.message.contains("RabbitMQ's management API at 127.0.0.1:"), "{}", refused.message);
    sampler.wait_unknown("b", Reason::SecretNotFound).await;
    set(&sampler, "hunter2");
    sampler.wait_pending("a", 2).await;
    sampler.wait_pending("twice", 2).await;
    sampler.wait_unknown("none", Reason::QueueNotFound).await;
    publish(server(), "sampled-2", 1, &json!({"delivery_mode": 2}));
    sampler.wait_pending("a", 3).await;
}
