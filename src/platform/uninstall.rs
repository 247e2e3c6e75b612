//! What happens before the operator is uninstalled: it stops, then the objects that it made for Projections are deleted. Projections stay, and so
//! does everything that workers wrote, so that a later installation continues where this one ended.

use std::time::Duration;

use futures::future::try_join_all;
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        autoscaling::v2::HorizontalPodAutoscaler,
        core::v1::{ConfigMap, Pod},
        policy::v1::PodDisruptionBudget,
    },
    kube_aggregator::pkg::apis::apiregistration::v1::APIService,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions, PropagationPolicy},
    core::NamespaceResourceScope,
};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::{api::Projection, names, platform::errors::in_words, platform::registration::Registration};

/// What to remove, and from where.
#[derive(Clone, Debug)]
pub struct UninstallSettings {
    /// The operator's namespace.
    pub namespace: String,
    /// The operator's Deployment.
    pub deployment: String,
    /// The Service in front of the metrics API.
    pub service: String,
    /// APIServices to delete if they lead to that Service. Nothing else removes one that was taken over, and one without a server blocks the deletion
    /// of namespaces.
    pub api_services: Vec<String>,
    /// Only these namespaces; empty: all.
    pub watch_namespaces: Vec<String>,
    /// When to give up.
    pub timeout: Duration,
}

/// Why it did not finish.
#[derive(Debug, thiserror::Error)]
pub enum UninstallError {
    /// The API server refused.
    #[error("{what}: {}", in_words(source))]
    Api {
        /// What was tried.
        what: String,
        /// The refusal.
        source: kube::Error,
    },
    /// It took too long.
    #[error("gave up after {} s: the operator's pods or the workers are still there", .0.as_secs())]
    TimedOut(Duration),
}

/// Stops the operator, so that it puts nothing back, and deletes the objects that carry the operator's label and belong to a Projection.
pub async fn run(client: Client, settings: UninstallSettings) -> Result<(), UninstallError> {
    let timeout = settings.timeout;
    let all = async {
        stop_operator(&client, &settings).await?;
        remove_api_services(&client, &settings).await?;
        remove::<HorizontalPodAutoscaler>(&client, &settings).await?;
        remove::<Deployment>(&client, &settings).await?;
        remove::<PodDisruptionBudget>(&client, &settings).await?;
        remove::<ConfigMap>(&client, &settings).await
    };
    tokio::time::timeout(timeout, all).await.map_err(|_| UninstallError::TimedOut(timeout))?
}

async fn stop_operator(client: &Client, settings: &UninstallSettings) -> Result<(), UninstallError> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), &settings.namespace);
    let what = || format!("scaling the Deployment {}/{} to 0", settings.namespace, settings.deployment);
    let none = Patch::Merge(json!({"spec": {"replicas": 0}}));
    match deployments.patch_scale(&settings.deployment, &PatchParams::default(), &none).await {
        // The operator is already deleted and cannot put anything back.
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
        result => result.map_err(|source| UninstallError::Api { what: what(), source })?,
    };
    loop {
        let deployment = deployments.get(&settings.deployment).await;
        let deployment = deployment.map_err(|source| UninstallError::Api { what: what(), source })?;
        let status = deployment.status.clone().unwrap_or_default();
        // Pods on their way out no longer count there, and the leader among them still puts back what is deleted.
        if status.observed_generation >= deployment.metadata.generation
            && status.replicas.unwrap_or(0) == 0
            && no_pod_is_left(client, settings, &deployment).await?
        {
            tracing::info!("the operator has stopped");
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn remove_api_services(client: &Client, settings: &UninstallSettings) -> Result<(), UninstallError> {
    let services: Api<APIService> = Api::all(client.clone());
    for name in settings.api_services.iter().filter(|name| !name.is_empty()) {
        let what = format!("deleting the APIService {name}");
        let failed = |source| UninstallError::Api { what: what.clone(), source };
        let Some(found) = services.get_opt(name).await.map_err(failed)? else { continue };
        if Registration::of(Some(&found), &settings.namespace, &settings.service) != Registration::Ours {
            continue;
        }
        // Deletes only the version that was read: an APIService that was given back meanwhile stays.
        let (uid, resource_version) = (found.uid(), found.resource_version());
        let this_one =
            DeleteParams { preconditions: Some(Preconditions { uid, resource_version }), ..DeleteParams::default() };
        match services.delete(name, &this_one).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            result => {
                result.map_err(failed)?;
                tracing::info!("{what}, which led to the operator");
            }
        }
    }
    Ok(())
}

async fn no_pod_is_left(
    client: &Client,
    settings: &UninstallSettings,
    deployment: &Deployment,
) -> Result<bool, UninstallError> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &settings.namespace);
    let labels = deployment.spec.as_ref().and_then(|spec| spec.selector.match_labels.clone()).unwrap_or_default();
    let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let listed = pods.list_metadata(&ListParams::default().labels(&labels.join(",")).limit(1)).await;
    let what = || format!("listing the pods of the Deployment {}/{}", settings.namespace, settings.deployment);
    Ok(listed.map_err(|source| UninstallError::Api { what: what(), source })?.items.is_empty())
}

async fn remove<K>(client: &Client, settings: &UninstallSettings) -> Result<(), UninstallError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let kind = K::kind(&());
    let ours = ListParams::default().labels(&format!(
        "{}={},{}",
        names::MANAGED_BY_LABEL,
        names::FIELD_MANAGER,
        names::PROJECTION_LABEL
    ));
    let apis: Vec<Api<K>> = if settings.watch_namespaces.is_empty() {
        vec![Api::all(client.clone())]
    } else {
        settings.watch_namespaces.iter().map(|namespace| Api::namespaced(client.clone(), namespace)).collect()
    };
    for api in apis {
        let listed = api.list(&ours).await;
        let listed = listed.map_err(|source| UninstallError::Api { what: format!("listing {kind}s"), source })?;
        let owned = listed.items.into_iter().filter(belongs_to_a_projection);
        try_join_all(owned.map(|object| delete(client, object))).await?;
    }
    Ok(())
}

/// A label alone can be copied; the owner reference proves that the object belongs to a Projection.
fn belongs_to_a_projection<K: Resource<DynamicType = ()>>(object: &K) -> bool {
    let (kind, group) = (Projection::kind(&()), names::GROUP);
    object
        .owner_references()
        .iter()
        .any(|owner| owner.kind == kind && owner.api_version.starts_with(&format!("{group}/")))
}

async fn delete<K>(client: &Client, object: K) -> Result<(), UninstallError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let (name, namespace) = (object.name_any(), object.namespace().unwrap_or_default());
    let what = format!("deleting the {} {namespace}/{name}", K::kind(&()));
    let api: Api<K> = Api::namespaced(client.clone(), &namespace);
    let this_one = DeleteParams {
        // Foreground: the object is deleted only after its pods.
        propagation_policy: Some(PropagationPolicy::Foreground),
        preconditions: Some(Preconditions { uid: object.uid(), resource_version: None }),
        ..DeleteParams::default()
    };
    match api.delete(&name, &this_one).await {
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => return Ok(()),
        result => result.map_err(|source| UninstallError::Api { what: what.clone(), source })?,
    };
    tracing::info!("{what}");
    while api
        .get_metadata_opt(&name)
        .await
        .map_err(|source| UninstallError::Api { what: what.clone(), source })?
        .and_then(|found| found.uid())
        == object.uid()
    {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Ok(())
}
