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
use test_cluster::Redis;
use tokio::sync::{mpsc, watch};

use crate::harness::exactly;

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
                addresses: Arc::default(),
                snapshot: snapshot.clone(),
                changes,
                first_round: watch::channel(false).0,
                metrics: Arc::new(SamplerMetrics::default()),
            },
            std::future::pending(),
        ));
        Self { writer, changed, secrets, snapshot, _held: (follow, changes_here), task }
    }

    fn declare(&mut self, name: &str, secret: &str, streams: &Value) {
        let projection: Projection = serde_json::from_value(json!({
            "apiVersion": "projectionist.dev/v1alpha1",
            "kind": "Projection",
            "metadata": { "namespace": "shop", "name": name, "uid": name, "generation": 1 },
            "spec": {
                "source": { "redis": { "connection": { "secretRef": { "name": secret } }, "streams": streams } },
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
    let own = Redis::with("user shop on >hunter2 allkeys allcommands").unwrap();
    own.run("XGROUP CREATE orders list 0 MKSTREAM").unwrap();
    own.run("XADD orders * a b").unwrap();
    let (host, port) = (own.address().ip().to_string(), own.address().port().to_string());
    let secret = |password: &str| {
        [
            ("host", host.clone()),
            ("port", port.clone()),
            ("username", "shop".to_owned()),
            ("password", password.to_owned()),
        ]
    };
    let mut sampler = Running::start();
    let set = |sampler: &Running, password: &str| {
        let pairs = secret(password);
        let pairs: Vec<(&str, &str)> = pairs.iter().map(|(key, value)| (*key, value.as_str())).collect();
        sampler.secrets.set("redis", &pairs);
    };
    set(&sampler, "hunter2-old");
    sampler.declare("a", "redis", &json!([{"key": "orders", "group": "list"}]));
    sampler.declare("b", "missing", &json!([{"key": "orders", "group": "list"}]));
    sampler.declare("twice", "redis", &json!([{"key": "orders", "group": "list"}, {"key": "orders", "group": "list"}]));
    let refused = sampler.wait_unknown("a", Reason::AuthenticationFailed).await;
    assert!(refused.message.contains("Redis at 127.0.0.1:"), "{}", refused.message);
    sampler.wait_unknown("b", Reason::SecretNotFound).await;
    set(&sampler, "hunter2");
    sampler.wait_pending("a", 1).await;
    sampler.wait_pending("twice", 1).await;
    own.run("XREADGROUP GROUP list c STREAMS orders >").unwrap();
    sampler.wait_pending("a", 1).await;
    own.run("XGROUP DESTROY orders list").unwrap();
    let never = sampler.wait_unknown("a", Reason::NeverCommitted).await;
    assert!(never.message.contains("XGROUP CREATE"), "{}", never.message);
}

#[tokio::test]
async fn a_server_that_hangs_stops_no_other() {
    let (one, other) = (Redis::on_loopback().unwrap(), Redis::on_loopback().unwrap());
    let mut sampler = Running::start();
    for (name, server) in [("one", &one), ("other", &other)] {
        server.run("XGROUP CREATE orders list 0 MKSTREAM").unwrap();
        sampler.secrets.set(name, &[("url", &server.url())]);
        sampler.declare(name, name, &json!([{"key": "orders", "group": "list"}]));
        sampler.wait_pending(name, 0).await;
    }
    one.pause();
    sampler.wait_unknown("one", Reason::TimedOut).await;
    for events in 1..=3 {
        other.run("XADD orders * a b").unwrap();
        sampler.wait_pending("other", events).await;
    }
    one.resume();
    sampler.wait_pending("one", 0).await;
}
