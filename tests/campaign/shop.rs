//! One run's namespace: a database, a proxy, an operator behind it, and what stands for the controllers of Deployments and autoscalers.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};
use futures::TryStreamExt as _;
use json_patch::merge;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use projectionist::api::Projection;
use serde_json::{Value, json};
use test_cluster::EventStore;
use tokio::sync::mpsc;

use crate::api_proxy::{ApiProxy, Rules};
use crate::bed::{Bed, namespace};
use crate::operator::Operator;

/// The Projection of every scene.
pub(crate) const NAME: &str = "orders";
/// The workload that is there already.
pub(crate) const EXISTING: &str = "legacy";

pub(crate) struct Shop {
    /// Straight to the API server.
    pub(crate) client: Client,
    pub(crate) namespace: String,
    pub(crate) events: EventStore,
    pub(crate) proxy: ApiProxy,
    pub(crate) operator: Operator,
    /// Removed with the run.
    _directory: tempfile::TempDir,
    crashes: mpsc::UnboundedReceiver<()>,
    /// After a crash the operator stays away until told to come back.
    pub(crate) stays_away: bool,
    /// Those that the bed's controller manager does not run.
    controllers: tokio::task::JoinHandle<()>,
}

impl Drop for Shop {
    fn drop(&mut self) {
        self.controllers.abort();
    }
}

impl Shop {
    pub(crate) async fn open(bed: &Bed, rules: Rules) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let namespace = format!("run-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let client = bed.cluster.client().await?;
        self::namespace(&client, &namespace).await?;
        let database = namespace.replace('-', "_");
        let url = bed.postgres.create_database(&database).await?;
        let events = EventStore::create_events_table(&bed.postgres, &database, "events").await?;
        events
            .client()
            .batch_execute(&format!(
                "create table checkpoints (projection text primary key, position bigint);
                 insert into checkpoints values ('{NAME}', 0)"
            ))
            .await?;
        let secret = serde_json::from_value(json!({"metadata": {"name": "database"}, "stringData": {"url": url}}))?;
        Api::<Secret>::namespaced(client.clone(), &namespace).create(&PostParams::default(), &secret).await?;
        let (crash, crashes) = mpsc::unbounded_channel();
        let proxy = ApiProxy::start(client.clone(), &namespace, crash).await?;
        proxy.rule(rules);
        let directory = tempfile::tempdir()?;
        let operator = Operator::start(&namespace, "first", proxy.address, directory.path())?;
        let (ready, autoscalers) = (
            make_ready(Api::namespaced(client.clone(), &namespace)),
            look_after_autoscalers(client.clone(), namespace.clone()),
        );
        let controllers = tokio::spawn(async {
            tokio::join!(ready, autoscalers);
        });
        Ok(Self {
            client,
            namespace,
            events,
            proxy,
            operator,
            _directory: directory,
            crashes,
            stays_away: false,
            controllers,
        })
    }

    pub(crate) fn projections(&self) -> Api<Projection> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub(crate) fn deployments(&self) -> Api<Deployment> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Applies the Projection, changed by a JSON merge patch.
    pub(crate) async fn apply(&self, change: &Value) -> Result<Projection> {
        let connection = json!({"secretRef": {"name": "database"}});
        let mut projection = json!({
            "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection",
            "metadata": {"name": NAME, "namespace": self.namespace},
            "spec": {
                "source": {"postgres": {"connection": connection, "eventTable": {"notifyChannel": "events"}}},
                "readStore": {"postgres": {"connection": connection}},
                "checkpoint": {"readStore": {"table": "checkpoints"}},
                "lag": {"target": "5s"},
                "scaling": {"maxWorkers": 4, "shards": 12},
            },
        });
        merge(&mut projection, change);
        let parameters = PatchParams::apply("user").force();
        Ok(self.projections().patch(NAME, &parameters, &Patch::Apply(&projection)).await?)
    }

    /// Changes the Projection by a JSON merge patch.
    pub(crate) async fn change(&self, change: &Value) -> Result<()> {
        self.projections().patch(NAME, &PatchParams::default(), &Patch::Merge(change)).await?;
        Ok(())
    }

    pub(crate) async fn delete(&self) -> Result<()> {
        self.projections().delete(NAME, &DeleteParams::default()).await?;
        Ok(())
    }

    /// Everything that was appended is handled.
    pub(crate) async fn commit_all(&self) -> Result<()> {
        let statement = "update checkpoints set position = (select coalesce(max(position), 0) from events)";
        self.events.client().execute(statement, &[]).await?;
        Ok(())
    }

    /// A Deployment of the team's own, with three workers.
    pub(crate) async fn existing_workload(&self) -> Result<()> {
        let deployment = serde_json::from_value(json!({
            "metadata": {"name": EXISTING},
            "spec": {
                "replicas": 3, "selector": {"matchLabels": {"app": EXISTING}},
                "template": {"metadata": {"labels": {"app": EXISTING}}, "spec": {"containers": [{"name": "worker", "image": "theirs:1"}]}},
            },
        }))?;
        self.deployments().create(&PostParams::default(), &deployment).await?;
        Ok(())
    }

    /// Lets time pass; the operator crashes and comes back meanwhile, if it has to.
    pub(crate) async fn wait(&mut self) -> Result<()> {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(150)) => {}
            Some(()) = self.crashes.recv() => {
                self.operator.kill().await?;
                if !self.stays_away {
                    self.operator.resume()?;
                }
            }
        }
        match self.operator.fault() {
            Some(fault) => bail!("{fault}"),
            None => Ok(()),
        }
    }

    /// Waits until `look` finds nothing amiss; the error says what was amiss last.
    pub(crate) async fn until(
        &mut self,
        patience: Duration,
        mut look: impl AsyncFnMut(&Self) -> Result<Result<(), String>>,
    ) -> Result<()> {
        let began = std::time::Instant::now();
        loop {
            let amiss = match look(self).await? {
                Ok(()) => return Ok(()),
                Err(amiss) => amiss,
            };
            if began.elapsed() > patience {
                bail!("after {} s: {amiss}", patience.as_secs());
            }
            self.wait().await?;
        }
    }
}

/// Does what the controller of HorizontalPodAutoscalers does besides scaling: it writes down how many workers it sees.
async fn look_after_autoscalers(client: Client, namespace: String) {
    let autoscalers: Api<HorizontalPodAutoscaler> = Api::namespaced(client.clone(), &namespace);
    let deployments: Api<Deployment> = Api::namespaced(client, &namespace);
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let Ok(all) = autoscalers.list(&ListParams::default()).await else { continue };
        for autoscaler in all {
            let target = autoscaler.spec.scale_target_ref.name;
            let Ok(Some(deployment)) = deployments.get_opt(&target).await else { continue };
            let replicas = deployment.spec.and_then(|spec| spec.replicas).unwrap_or(1);
            if autoscaler.status.is_some_and(|status| status.current_replicas.unwrap_or(0) == replicas) {
                continue;
            }
            let condition = |type_: &str, status: &str, reason: &str| json!({"type": type_, "status": status, "reason": reason, "message": reason, "lastTransitionTime": "2026-01-01T00:00:00Z"});
            let active = if replicas == 0 {
                condition("ScalingActive", "False", "ScalingDisabled")
            } else {
                condition("ScalingActive", "True", "ValidMetricFound")
            };
            let status = json!({
                "currentReplicas": replicas, "desiredReplicas": replicas,
                "conditions": [condition("AbleToScale", "True", "ReadyForNewScale"), active],
            });
            let name = autoscaler.metadata.name.unwrap_or_default();
            // It may be gone.
            let _ = autoscalers
                .patch_status(&name, &PatchParams::default(), &Patch::Merge(json!({"status": status})))
                .await;
        }
    }
}

/// Does what the Deployment controller and a node do: as many ready pods as are asked for.
async fn make_ready(deployments: Api<Deployment>) {
    let changes = watcher(deployments.clone(), watcher::Config::default()).default_backoff().applied_objects();
    let ready = |deployment: Deployment| {
        let deployments = deployments.clone();
        async move {
            let replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
            let status = json!({
                "observedGeneration": deployment.metadata.generation, "replicas": replicas, "updatedReplicas": replicas,
                "readyReplicas": replicas, "availableReplicas": replicas,
            });
            let name = deployment.metadata.name.unwrap_or_default();
            // It may be gone.
            let _ = deployments
                .patch_status(&name, &PatchParams::default(), &Patch::Merge(json!({"status": status})))
                .await;
            Ok(())
        }
    };
    let _ = changes.try_for_each(ready).await;
}
