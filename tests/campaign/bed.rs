//! What all runs share: a control plane without a node, and a database server.

use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Result, anyhow};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};
use projectionist::api::Projection;
use serde_json::json;
use test_cluster::{Cluster, ClusterOptions, Instance, Postgres, eventually};

/// How long something may take that takes seconds on a quiet machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) struct Bed {
    pub(crate) cluster: Cluster,
    pub(crate) postgres: Postgres,
}

/// The bed, made by the first test that asks.
pub(crate) fn bed() -> &'static Bed {
    static BED: OnceLock<Result<Bed, String>> = OnceLock::new();
    let bed = BED.get_or_init(|| Bed::make().map_err(|error| format!("{error:#}")));
    bed.as_ref().map_err(|error| anyhow!("{error}")).unwrap()
}

impl Bed {
    fn make() -> Result<Self> {
        // Only what collects and cleans up. Deployments are brought to readiness by the tests, and autoscalers see their workers but scale nothing: what
        // happens is what the operator does.
        let controllers = "--controllers=garbage-collector-controller,namespace-controller,serviceaccount-controller";
        let options = ClusterOptions::default().control_plane_only().controller_manager_flag(controllers);
        let instance = Instance::new(&format!("test-{}-campaign", std::process::id()), None)?;
        let cluster = Cluster::start_named(&instance, &options)?;
        let postgres = cluster.postgres()?;
        let bed = Self { cluster, postgres };
        bed.cluster.apply(&projectionist::app::crd_yaml()?)?;
        bed.cluster.serves_kind("projections.projectionist.dev")?;
        bed.cluster.block_on(bed.collector_knows_projections())??;
        Ok(bed)
    }

    /// Plays on this thread and on others, all in the cluster's network.
    pub(crate) fn play(&self, story: impl Future<Output = Result<()>>) {
        self.cluster.enter().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
        runtime.block_on(story).unwrap_or_else(|error| panic!("{error:#}"));
    }

    /// The garbage collector looks for new kinds of objects every half a minute only.
    async fn collector_knows_projections(&self) -> Result<()> {
        let client = self.cluster.client().await?;
        namespace(&client, "warm").await?;
        let projections: Api<Projection> = Api::namespaced(client.clone(), "warm");
        let spec = json!({"source": {"postgres": {"connection": {"secretRef": {"name": "database"}}, "eventTable": {}}}, "readStore": {"postgres": {"connection": {"secretRef": {"name": "database"}}}}, "checkpoint": {"readStore": {"table": "checkpoints"}}, "lag": {"target": "5s"}});
        let projection = serde_json::from_value(json!({
            "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection", "metadata": {"name": "warm"}, "spec": spec,
        }))?;
        let owner = projections.create(&PostParams::default(), &projection).await?;
        let configs: Api<ConfigMap> = Api::namespaced(client, "warm");
        let owned = serde_json::from_value(json!({"metadata": {"name": "warm", "ownerReferences": [{
            "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection", "name": "warm", "uid": owner.metadata.uid,
        }]}}))?;
        configs.create(&PostParams::default(), &owned).await?;
        projections.delete("warm", &DeleteParams::default()).await?;
        let collected = || async { configs.get_opt("warm").await.map(|config| config.is_none()) };
        eventually(PATIENCE, "the garbage collector knows Projections", collected).await
    }
}

/// A new namespace.
pub(crate) async fn namespace(client: &Client, name: &str) -> Result<()> {
    let namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
    Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &namespace).await?;
    Ok(())
}
