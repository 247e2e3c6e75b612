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

use test_cluster::{Prometheus, PrometheusOptions};

use crate::harness::{exactly, server, target};

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

    fn declare(&mut self, name: &str, spec: &Value) {
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
async fn projections_are_measured_by_url_or_secret_and_a_rotated_password_takes_effect_without_a_restart() {
    let options = PrometheusOptions { web: crate::access::USERS.to_owned(), ..PrometheusOptions::default() };
    let own = Prometheus::with(target(), &options).unwrap();
    let (url, guarded) = (server().url(), own.url());
    let mut sampler = Running::start();
    let key = |password: &'static str| {
        [("url", guarded.clone()), ("username", "shop".to_owned()), ("password", password.to_owned())]
    };
    let set = |sampler: &Running, password| {
        let pairs = key(password);
        let pairs: Vec<(&str, &str)> = pairs.iter().map(|(key, value)| (*key, value.as_str())).collect();
        sampler.secrets.set("prometheus", &pairs);
    };
    set(&sampler, "hunter2-old");
    let source =
        |connection: Value, query: &str, text: &str| json!({ "prometheus": { "connection": connection, query: text } });
    let (by_url, by_secret) = (json!({ "url": url }), json!({ "secretRef": { "name": "prometheus" } }));
    let lag = json!({ "target": "5s" });
    sampler.declare("pending", &json!({ "source": source(by_url.clone(), "pending", "4 + 1"), "lag": lag }));
    let value = json!({ "target": "5s", "value": { "averageTarget": 100 } });
    sampler.declare("value", &json!({ "source": source(by_url.clone(), "value", "250"), "lag": value }));
    sampler.declare("guarded", &json!({ "source": source(by_secret, "pending", "6"), "lag": lag }));
    sampler.declare(
        "nowhere",
        &json!({ "source": source(json!({ "url": "http://nowhere.invalid" }), "pending", "6"), "lag": lag }),
    );
    sampler.declare("twice", &json!({ "source": source(by_url, "pending", "sum("), "lag": lag }));
    sampler.wait_pending("pending", 5).await;
    let three = |seen: &Observation| {
        let measured = seen.measured.as_ref().filter(|_| seen.failure.is_none());
        measured.is_some_and(|it| it.assessment.required.workers == 3 && it.assessment.counted().is_none())
    };
    sampler.wait("3 workers of 100 each", "value", three).await;
    let refused = sampler.wait_unknown("guarded", Reason::AuthenticationFailed).await;
    assert!(refused.message.starts_with(&own.url()), "{}", refused.message);
    sampler.wait_unknown("nowhere", Reason::HostNotFound).await;
    sampler.wait_unknown("twice", Reason::InvalidSpec).await;
    set(&sampler, "hunter2");
    sampler.wait_pending("guarded", 6).await;
}
