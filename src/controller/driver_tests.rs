//! The loop against a mocked API server: when it reconciles, and when it does not.

use std::time::Duration;

use kube::runtime::{reflector, watcher::Event};
use serde_json::json;

use super::*;
use crate::{
    controller::mock_api::{Answer, Server, failure},
    read_stores::OpenStores,
};

/// Long enough for a round that must not come.
const QUIET: Duration = Duration::from_millis(300);
const DEADLINE: Duration = Duration::from_secs(30);

fn projection() -> Projection {
    serde_json::from_value(json!({
        "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection",
        "metadata": {"namespace": "shop", "name": "orders", "uid": "u-1", "resourceVersion": "7", "generation": 1},
        "spec": {
            "source": {"postgres": {"connection": {"secretRef": {"name": "db"}}, "eventTable": {}}},
            "readStore": {"postgres": {"connection": {"secretRef": {"name": "db"}}}},
            "checkpoint": {"readStore": {"table": "checkpoints"}},
            "lag": {"target": "60s"},
            "projector": {"template": {"spec": {"containers": [{"name": "worker", "image": "team:1"}]}}},
        },
    }))
    .unwrap()
}

#[tokio::test]
async fn it_reconciles_only_while_this_replica_leads_and_everything_has_been_listed() {
    let (mut server, client) = Server::mocked();
    let (projections, mut writer) = reflector::store::<Projection>();
    writer.apply_watcher_event(&Event::Apply(projection()));
    let (trigger, triggers) = mpsc::unbounded_channel();
    let (_change, changes) = mpsc::channel(1);
    let (lead, leading) = watch::channel(false);
    let (sync, synced) = watch::channel(false);
    let (_unserved, unserved) = watch::channel(None);
    let metrics = Arc::new(ControllerMetrics::default());
    let inputs = ControllerInputs {
        existing: Arc::new(ExistingWorkloads::new(client.clone(), trigger.clone())),
        client,
        identity: "replica-1".to_owned(),
        runs: projections.clone().into(),
        readers: Arc::new(OpenStores::default()),
        projections,
        index: LiveIndex::default(),
        snapshot: SharedSnapshot::default(),
        triggers,
        changes,
        leading,
        synced,
        workers: WorkerDefaults::default(),
        server: ServerAbilities::default(),
        unserved,
        metrics: Arc::clone(&metrics),
    };
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(run(inputs, async move { drop(stopped.await) }));
    let refuse = |_: &crate::controller::mock_api::Asked| Answer::Object(500, failure(500, "InternalError"));
    let rounds = || metrics.reconciles.get();
    let reconciled = async |least: u64| {
        let rounds = async {
            while rounds() < least {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(DEADLINE, rounds).await.expect("it reconciles");
    };

    let key = ProjectionKey { namespace: "shop".into(), name: "orders".into() };
    trigger.send(key.clone()).unwrap();
    let ((), asked) = server.during(tokio::time::sleep(QUIET), refuse).await;
    assert_eq!(asked.len(), 0, "it does not lead");
    lead.send_replace(true);
    let ((), asked) = server.during(tokio::time::sleep(QUIET), refuse).await;
    assert_eq!(asked.len(), 0, "what has not been listed may be missing or not");
    sync.send_replace(true);
    let ((), asked) = server.during(reconciled(1), refuse).await;
    assert!(!asked.is_empty(), "it leads and knows all");
    lead.send_replace(false);
    // A round that was running may still have a request on its way.
    server.during(tokio::time::sleep(QUIET), refuse).await;
    trigger.send(key).unwrap();
    let ((), asked) = server.during(tokio::time::sleep(QUIET), refuse).await;
    assert_eq!(asked.len(), 0, "another replica may lead by now");
    let before = rounds();
    lead.send_replace(true);
    server.during(reconciled(before + 1), refuse).await;
    drop(stop);
    tokio::time::timeout(DEADLINE, running).await.expect("it ends").unwrap();
}
