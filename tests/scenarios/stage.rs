//! The cluster with the operator installed by Helm, shared by all tests of the run.

use std::sync::{OnceLock, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use anyhow::{Result, anyhow};
use k8s_openapi::api::{apps::v1::Deployment, coordination::v1::Lease, core::v1::Pod};
use kube::{Api, Client, api::ListParams};
use test_cluster::{Cluster, ClusterOptions, Postgres, eventually};

/// Where the operator is installed.
pub(crate) const SYSTEM: &str = test_cluster::OPERATOR_NAMESPACE;
/// How long a test waits for something that takes seconds on a quiet machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// What all tests share.
pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
    /// The database server of every test that does not break it.
    pub(crate) postgres: Postgres,
}

static QUIET: RwLock<()> = RwLock::new(());

/// Keeps the operator undisturbed (`Together`) or to oneself (`Alone`) until the end of a test.
pub(crate) enum Turn {
    Together(#[allow(dead_code)] RwLockReadGuard<'static, ()>),
    Alone(#[allow(dead_code)] RwLockWriteGuard<'static, ()>),
}

impl Stage {
    fn set() -> Result<Self> {
        // A short period, so that a test sees many looks of the autoscaler; the demo runs with the usual 15 s.
        let cluster = Cluster::start(&ClusterOptions::default().hpa_sync_period("2s"))?;
        cluster.import_image(&test_cluster::images::image()?)?;
        cluster.import_image(&test_cluster::images::worker()?)?;
        // Built here, where the network can still be reached: tests run inside the cluster's.
        test_cluster::images::adapter()?;
        let postgres = cluster.postgres()?;
        cluster.install_operator(&[])?;
        Ok(Self { cluster, postgres })
    }

    /// The name of the replica that leads. A replica that ends gives the Lease back, and for a moment none holds it.
    pub(crate) async fn leader(&self, client: &Client) -> Result<String> {
        eventually(PATIENCE, "a replica that stays holds the Lease", || self.holder(client)).await
    }

    /// The pod that holds the Lease, where there is one that is not about to end.
    pub(crate) async fn holder(&self, client: &Client) -> Result<Option<String>> {
        let leases: Api<Lease> = Api::namespaced(client.clone(), SYSTEM);
        let holder = leases.get("projectionist").await?.spec.and_then(|spec| spec.holder_identity);
        let pods = self.operator_pods(client).await?;
        let mut staying = pods.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
        Ok(holder.filter(|holder| staying.any(|pod| pod.metadata.name.as_ref() == Some(holder))))
    }

    /// The operator's pods.
    pub(crate) async fn operator_pods(&self, client: &Client) -> Result<Vec<Pod>> {
        let pods: Api<Pod> = Api::namespaced(client.clone(), SYSTEM);
        Ok(pods.list(&ListParams::default().labels("app.kubernetes.io/name=projectionist")).await?.items)
    }

    /// Waits until every replica of the operator is ready.
    pub(crate) async fn operator_is_whole(&self, client: &Client) -> Result<()> {
        let deployments: Api<Deployment> = Api::namespaced(client.clone(), SYSTEM);
        eventually(PATIENCE, "both replicas of the operator are ready", || async {
            let status = deployments.get("projectionist").await?.status.unwrap_or_default();
            Ok::<_, kube::Error>(
                status.ready_replicas == Some(2) && status.updated_replicas == Some(2) && status.replicas == Some(2),
            )
        })
        .await
    }
}

/// The stage, set by the first test that asks.
pub(crate) fn stage() -> Result<&'static Stage> {
    static STAGE: OnceLock<Result<Stage, String>> = OnceLock::new();
    let stage = STAGE.get_or_init(|| Stage::set().map_err(|error| format!("{error:#}")));
    stage.as_ref().map_err(|error| anyhow!("{error}"))
}

/// For tests that leave the operator alone.
pub(crate) fn together() -> Turn {
    Turn::Together(QUIET.read().unwrap_or_else(std::sync::PoisonError::into_inner))
}

/// For tests that kill, upgrade or remove the operator.
pub(crate) fn alone() -> Turn {
    Turn::Alone(QUIET.write().unwrap_or_else(std::sync::PoisonError::into_inner))
}

/// What no test can stand on: the operator did not become whole again after a test that failed.
static FALLEN: OnceLock<String> = OnceLock::new();

/// Runs a test inside the cluster's network; on failure the namespaces' state is part of the message.
///
/// Where the operator is not whole after a failure, the tests that follow fail at once and say so, in place of waiting in vain, each for minutes.
pub(crate) fn play<F>(body: impl FnOnce(&'static Stage) -> F)
where
    F: Future<Output = Result<()>> + Send,
{
    let stage = stage().unwrap_or_else(|error| panic!("{error:#}"));
    if let Some(why) = FALLEN.get() {
        panic!("not played, since after a test that failed before the operator did not become whole again: {why}");
    }
    match stage.cluster.block_on(body(stage)) {
        Ok(Ok(())) => {}
        // A backtrace through the runtime would only hide the cause.
        Ok(Err(error)) | Err(error) => {
            let told = stage.cluster.explain(&error, SYSTEM);
            let whole = stage.cluster.block_on(async {
                let client = stage.cluster.client().await?;
                stage.operator_is_whole(&client).await
            });
            if let Ok(Err(why)) | Err(why) = whole {
                let _ = FALLEN.set(format!("{why:#}"));
            }
            panic!("{told}")
        }
    }
}
