//! Makes the cluster hold what the plan says, by server-side apply; touches nothing that the Projection does not control.
//!
//! The number of workers has a field manager of its own. A manager that stops declaring a field which it alone owns removes it
//! (`replicas` would fall to 1), so the number is handed over before the main manager lets go of it, also after a crash between the two.

use std::{collections::HashMap, sync::Arc};

use futures::future::try_join_all;
use kube::{
    Api, Client,
    api::{DeleteParams, GetParams, Patch, PatchParams, Preconditions},
    core::DynamicObject,
};
use serde_json::{Value, json};

use super::{
    known::Problem,
    live::{Live, LiveIndex},
    parts::{Desired, Owner, Part, contains, fingerprint, restrict},
    plan::Plan,
    plan_scale::ScalePlan,
};
use crate::{
    api::{ExistingKind, Reason},
    names,
};

/// Raising the number of workers is tried so often where somebody else changes the workload at the same moment.
const RAISE_TRIES: usize = 5;

/// What an apply left behind, so that the same need not be declared again.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Memo {
    hash: String,
    resource_version: String,
    seen: u64,
}

/// Memos of one Projection's objects.
pub type Memos = HashMap<Part, Memo>;

/// Which workload's number of workers is set.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ScaleTarget {
    /// The Deployment that we make.
    Own,
    /// One that is there already: through its scale subresource, and nothing else.
    Existing(ExistingKind, String),
}

/// Writes to the cluster.
#[derive(Clone)]
pub struct Applier {
    client: Client,
    index: LiveIndex,
}

impl Applier {
    /// Writes with `client`, and puts what the API server answers into `index`.
    pub fn new(client: Client, index: LiveIndex) -> Self {
        Self { client, index }
    }

    /// Carries out a plan. Stops at the first failure, which is told as a condition.
    pub async fn apply(
        &self,
        owner: &Owner,
        plan: &Plan,
        target: &ScaleTarget,
        memos: &mut Memos,
    ) -> Result<(), Problem> {
        let found = try_join_all(plan.desired.iter().map(|desired| self.find_ours(owner, desired))).await?;
        // Nothing is written before it is clear that every name is ours or free.
        for (desired, live) in plan.desired.iter().zip(found) {
            match live {
                None => self.create(owner, desired, plan.scale, memos).await?,
                Some(live) if live.deleting => {}
                Some(live) => self.update(owner, desired, &live, memos).await?,
            }
        }
        match plan.scale {
            ScalePlan::Set(replicas) => self.scale(owner, target, replicas).await?,
            ScalePlan::Raise(least) => self.raise(owner, target, least).await?,
            ScalePlan::Leave | ScalePlan::CreateWith(_) => {}
        }
        for part in Part::ALL {
            if !plan.wants(part) {
                self.remove(owner, part).await?;
                memos.remove(&part);
            }
        }
        Ok(())
    }

    fn api(&self, part: Part, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, &part.api_resource())
    }

    async fn find_ours(&self, owner: &Owner, desired: &Desired) -> Result<Option<Arc<Live>>, Problem> {
        let Desired { part, name, body: _, hash: _ } = desired;
        let known = self.index.get(*part, &owner.namespace, name);
        let live = match known {
            Some(live) => live,
            // Not among those with our label: it may still be there, without the label or somebody else's. The API server's cache will do, since
            // what is made at the same moment conflicts below.
            None => match self.api(*part, &owner.namespace).get_with(name, &GetParams::any()).await {
                Ok(object) => Arc::new(Live::from_object(&object)),
                Err(kube::Error::Api(status)) if status.is_not_found() => return Ok(None),
                Err(error) => return Err(failed("could not read", *part, owner, name, &error)),
            },
        };
        if live.controlled_by.as_deref() == Some(owner.uid.as_str()) {
            return Ok(Some(live));
        }
        Err(Problem {
            reason: Reason::NotOwned,
            message: format!(
                "the {} {}/{name} exists and does not belong to this Projection: it was left as it is. Rename or delete one of the two",
                part.kind(),
                owner.namespace
            ),
            // One of a Projection that is gone will be collected.
            lasting: !live.deleting,
        })
    }

    async fn create(
        &self,
        owner: &Owner,
        desired: &Desired,
        scale: ScalePlan,
        memos: &mut Memos,
    ) -> Result<(), Problem> {
        let (mut body, replicas) = (desired.body.clone(), created_with(scale));
        // One worker is the API server's default, which nobody owns, so that nothing has to be handed over.
        let with_replicas = desired.part == Part::Deployment && replicas != 1;
        if with_replicas {
            body["spec"]["replicas"] = json!(replicas);
        }
        // Not forced: should somebody have made one meanwhile, the conflict is told instead of taken.
        let live = self.patch(owner, desired, &body, &PatchParams::apply(names::FIELD_MANAGER), memos).await?;
        if live.controlled_by.as_deref() == Some(owner.uid.as_str()) && with_replicas {
            self.hand_over(owner, desired, &live, memos).await?;
        }
        Ok(())
    }

    async fn update(&self, owner: &Owner, desired: &Desired, live: &Live, memos: &mut Memos) -> Result<(), Problem> {
        if desired.part == Part::Deployment
            && live.replica_managers.iter().any(|manager| manager == names::FIELD_MANAGER)
        {
            return self.hand_over(owner, desired, live, memos).await;
        }
        if needs_apply(desired, live, memos.get(&desired.part)) {
            self.declare(owner, desired, &live.uid, memos).await?;
        }
        Ok(())
    }

    /// Sees to it that another manager owns the number of workers, then declares the Deployment without it.
    async fn hand_over(&self, owner: &Owner, desired: &Desired, live: &Live, memos: &mut Memos) -> Result<(), Problem> {
        if live.replica_managers.iter().all(|manager| manager == names::FIELD_MANAGER) {
            self.scale(owner, &ScaleTarget::Own, live.workers.desired.unwrap_or(1)).await?;
        }
        self.declare(owner, desired, &live.uid, memos).await
    }

    async fn declare(&self, owner: &Owner, desired: &Desired, uid: &str, memos: &mut Memos) -> Result<(), Problem> {
        let mut body = desired.body.clone();
        // With the UID it can only change this object, not make another one.
        body["metadata"]["uid"] = json!(uid);
        self.patch(owner, desired, &body, &PatchParams::apply(names::FIELD_MANAGER).force(), memos).await.map(drop)
    }

    async fn patch(
        &self,
        owner: &Owner,
        desired: &Desired,
        body: &Value,
        parameters: &PatchParams,
        memos: &mut Memos,
    ) -> Result<Live, Problem> {
        let Desired { part, name, body: _, hash } = desired;
        let patched = self.api(*part, &owner.namespace).patch(name, parameters, &Patch::Apply(body)).await;
        let object = patched.map_err(|error| failed("could not apply", *part, owner, name, &error))?;
        tracing::debug!("applied the {} {}/{name}", part.kind(), owner.namespace);
        let live = Live::from_object(&object);
        let seen = fingerprint(&restrict(&live.parsed(), &comparable(desired)));
        memos.insert(*part, Memo { hash: hash.clone(), resource_version: live.resource_version.clone(), seen });
        self.index.put(*part, &owner.namespace, name, live.clone());
        Ok(live)
    }

    async fn scale(&self, owner: &Owner, target: &ScaleTarget, replicas: i32) -> Result<(), Problem> {
        match target {
            ScaleTarget::Own => {
                let (part, name) = (Part::Deployment, Part::Deployment.object_name(&owner.name));
                let body = json!({
                    "apiVersion": part.api_version(), "kind": part.kind(),
                    "metadata": { "name": name, "namespace": owner.namespace },
                    "spec": { "replicas": replicas },
                });
                let parameters = PatchParams::apply(names::SCALE_FIELD_MANAGER).force();
                let patched = self.api(part, &owner.namespace).patch(&name, &parameters, &Patch::Apply(&body)).await;
                let object = patched.map_err(|error| failed("could not scale", part, owner, &name, &error))?;
                self.index.put(part, &owner.namespace, &name, Live::from_object(&object));
            }
            ScaleTarget::Existing(kind, name) => {
                let resource = super::existing::api_resource(*kind);
                let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &owner.namespace, &resource);
                let parameters = PatchParams {
                    field_manager: Some(names::SCALE_FIELD_MANAGER.to_owned()),
                    ..PatchParams::default()
                };
                let body = Patch::Merge(json!({ "spec": { "replicas": replicas } }));
                api.patch_scale(name, &parameters, &body).await.map_err(|error| {
                    problem(&format!("could not scale the {} {}/{name}", kind.as_str(), owner.namespace), &error)
                })?;
            }
        }
        Ok(())
    }

    /// Sees to it that there are at least so many workers, and takes none away: whoever changed their number meanwhile is asked again.
    async fn raise(&self, owner: &Owner, target: &ScaleTarget, least: i32) -> Result<(), Problem> {
        let (kind, name, resource) = match target {
            ScaleTarget::Own => {
                (Part::Deployment.kind(), Part::Deployment.object_name(&owner.name), Part::Deployment.api_resource())
            }
            ScaleTarget::Existing(kind, name) => (kind.as_str(), name.clone(), super::existing::api_resource(*kind)),
        };
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &owner.namespace, &resource);
        let parameters =
            PatchParams { field_manager: Some(names::SCALE_FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let told = |error| problem(&format!("could not scale the {kind} {}/{name}", owner.namespace), &error);
        for _ in 0..RAISE_TRIES {
            let scale = api.get_scale(&name).await.map_err(told)?;
            let replicas = scale.spec.and_then(|spec| spec.replicas).unwrap_or(0);
            // Nobody at all is somebody's will.
            if replicas == 0 || replicas >= least {
                return Ok(());
            }
            let body = json!({
                "metadata": { "resourceVersion": scale.metadata.resource_version },
                "spec": { "replicas": least },
            });
            match api.patch_scale(&name, &parameters, &Patch::Merge(body)).await {
                Ok(_) => {
                    tracing::info!("raised the {kind} {}/{name} from {replicas} to {least} workers", owner.namespace);
                    return Ok(());
                }
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(told(error)),
            }
        }
        // It changes all the time: the autoscaler will see to it.
        Ok(())
    }

    async fn remove(&self, owner: &Owner, part: Part) -> Result<(), Problem> {
        let name = part.object_name(&owner.name);
        let Some(live) = self.index.get(part, &owner.namespace, &name) else { return Ok(()) };
        if live.deleting || live.controlled_by.as_deref() != Some(owner.uid.as_str()) {
            return Ok(());
        }
        // This very object, as we saw it: ours.
        let seen = Preconditions { uid: Some(live.uid.clone()), resource_version: Some(live.resource_version.clone()) };
        let parameters = DeleteParams { preconditions: Some(seen), ..DeleteParams::background() };
        match self.api(part, &owner.namespace).delete(&name, &parameters).await {
            Ok(_) => self.index.remove(part, &owner.namespace, &name, &live.uid),
            Err(kube::Error::Api(status)) if status.code == 404 => {
                self.index.remove(part, &owner.namespace, &name, &live.uid);
            }
            Err(error) => return Err(failed("could not delete", part, owner, &name, &error)),
        }
        Ok(())
    }
}

fn created_with(scale: ScalePlan) -> i32 {
    match scale {
        ScalePlan::CreateWith(replicas) | ScalePlan::Set(replicas) => replicas,
        ScalePlan::Leave | ScalePlan::Raise(_) => 1,
    }
}

/// Whether an object must be declared (again): it was declared differently, or somebody changed what is ours in it.
pub fn needs_apply(desired: &Desired, live: &Live, memo: Option<&Memo>) -> bool {
    if live.applied_hash.as_deref() != Some(desired.hash.as_str()) {
        return true;
    }
    let memo = memo.filter(|memo| memo.hash == desired.hash);
    if memo.is_some_and(|memo| memo.resource_version == live.resource_version) {
        return false;
    }
    let (body, declared) = (live.parsed(), comparable(desired));
    !contains(&body, &declared) && memo.is_none_or(|memo| memo.seen != fingerprint(&restrict(&body, &declared)))
}

/// The objects of a list say neither their version nor their kind.
fn comparable(desired: &Desired) -> Value {
    let mut body = desired.body.clone();
    if let Value::Object(fields) = &mut body {
        fields.retain(|key, _| key != "apiVersion" && key != "kind");
    }
    body
}

fn failed(what: &str, part: Part, owner: &Owner, name: &str, error: &kube::Error) -> Problem {
    problem(&format!("{what} the {} {}/{name}", part.kind(), owner.namespace), error)
}

fn problem(what: &str, error: &kube::Error) -> Problem {
    match error {
        kube::Error::Api(status) => Problem {
            reason: Reason::ApplyFailed,
            message: format!("{what}: {}", status.message),
            lasting: matches!(status.code, 400 | 403 | 404 | 405 | 413 | 422),
        },
        // Without details of the transport: they change from time to time, and each change would be a write.
        other => {
            tracing::warn!("{what}: {other}");
            Problem {
                reason: Reason::ApplyFailed,
                message: format!("{what}: the API server did not answer"),
                lasting: false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::*;

    fn desired(cpu: &str) -> Desired {
        let owner = Owner { namespace: "shop".to_owned(), name: "orders".to_owned(), uid: "u-1".to_owned() };
        Desired::new(Part::Deployment, &owner, Map::from_iter([("spec".to_owned(), json!({ "cpu": cpu }))]))
    }

    fn live(desired: &Desired, version: &str, change: impl FnOnce(&mut Value)) -> Live {
        let mut body = desired.body.clone();
        body["metadata"]["resourceVersion"] = json!(version);
        change(&mut body);
        Live::from_object(&serde_json::from_value(body).unwrap())
    }

    fn memo(desired: &Desired, live: &Live) -> Memo {
        let seen = fingerprint(&restrict(&live.parsed(), &comparable(desired)));
        Memo { hash: desired.hash.clone(), resource_version: live.resource_version.clone(), seen }
    }

    #[test]
    fn what_is_there_as_declared_is_not_declared_again_even_after_a_restart() {
        let wanted = desired("50m");
        assert!(!needs_apply(&wanted, &live(&wanted, "1", |_| {}), None));
        let status_only = live(&wanted, "2", |body| body["status"] = json!({ "x": 1 }));
        assert!(!needs_apply(&wanted, &status_only, None));
        let with_theirs = live(&wanted, "3", |body| body["spec"]["theirs"] = json!(1));
        assert!(!needs_apply(&wanted, &with_theirs, None));
    }

    #[test]
    fn a_changed_declaration_and_a_changed_object_are_declared_again() {
        let wanted = desired("50m");
        assert!(needs_apply(&desired("60m"), &live(&wanted, "1", |_| {}), None));
        assert!(needs_apply(&wanted, &live(&wanted, "1", |body| body["spec"]["cpu"] = json!("1")), None));
        let first = memo(&wanted, &live(&wanted, "1", |_| {}));
        assert!(needs_apply(&wanted, &live(&wanted, "2", |body| body["spec"]["cpu"] = json!("1")), Some(&first)));
        let unlabelled = live(&wanted, "2", |body| body["metadata"]["labels"] = json!({}));
        assert!(needs_apply(&wanted, &unlabelled, Some(&first)));
    }

    #[test]
    fn a_field_that_is_not_declared_any_more_is_taken_back() {
        let owner = Owner { namespace: "shop".to_owned(), name: "orders".to_owned(), uid: "u-1".to_owned() };
        let spec = |spec| Desired::new(Part::Deployment, &owner, Map::from_iter([("spec".to_owned(), spec)]));
        let before = spec(json!({ "cpu": "50m", "nodeName": "n" }));
        // Everything that is wanted is there, and something else that we once wanted, too.
        assert!(needs_apply(&spec(json!({ "cpu": "50m" })), &live(&before, "1", |_| {}), None));
    }

    #[test]
    fn a_value_that_the_server_writes_differently_is_declared_once() {
        let wanted = desired("0.05");
        let rewritten = |version: &str| live(&wanted, version, |body| body["spec"]["cpu"] = json!("50m"));
        assert!(needs_apply(&wanted, &rewritten("1"), None));
        let first = memo(&wanted, &rewritten("1"));
        assert!(!needs_apply(&wanted, &rewritten("1"), Some(&first)));
        assert!(!needs_apply(&wanted, &rewritten("2"), Some(&first)));
    }
}
