//! Makes the cluster hold what the plan says, by server-side apply; touches nothing that the Projection does not control.
//!
//! The number of workers has a field manager of its own. A manager that stops declaring a field which it alone owns removes it
//! (`replicas` would fall to 1), so the number is handed over before the main manager lets go of it, also after a crash between the two.

use std::{collections::HashMap, sync::Arc, time::Instant};

use futures::future::try_join_all;
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
    core::DynamicObject,
};
use serde_json::{Value, json};

use super::{
    index::{CONFIRM_WITHIN, LiveIndex},
    known::Problem,
    live::LiveObject,
    parts::{Desired, Owner, Part, contains, fingerprint, restrict},
    plan::Plan,
    plan::scale::ScalePlan,
    scale::{ScaleTarget, Scaling},
    unapplied::{Unapplied, failed, is_of_a_predecessor},
};
use crate::{
    api::{Projection, Reason},
    names,
};

/// How often a number of workers is applied again where the Deployment changes at the same moment.
const CONFLICTS: usize = 4;

/// What is remembered of an apply, so that the same need not be applied again.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Memo {
    hash: String,
    resource_version: String,
    seen: u64,
}

/// Memos of one Projection's objects.
pub type Memos = HashMap<Part, Memo>;

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

    /// Carries out a plan. Stops at the first failure.
    pub async fn apply(
        &self,
        owner: &Owner,
        plan: &Plan,
        target: &ScaleTarget,
        memos: &mut Memos,
    ) -> Result<(), Unapplied> {
        // Nothing is written before it is clear that every object is the operator's or does not exist.
        let found = try_join_all(plan.desired.iter().map(|desired| self.find_ours(owner, desired))).await?;
        let scales = matches!(plan.scale, ScalePlan::Set(_) | ScalePlan::Raise(_));
        // The watches of Projections and of their objects do not advance together: objects vanish with a Projection that still seems to be there.
        if found.iter().any(Option::is_none) || (scales && *target != ScaleTarget::Own) {
            self.owner_is_there(owner).await?;
        }
        for (desired, live) in plan.desired.iter().zip(found) {
            match live {
                None => self.create(owner, desired, plan.scale, memos).await?,
                Some(live) if live.deleting => {}
                Some(live) => self.update(owner, desired, &live, memos).await?,
            }
        }
        if scales {
            self.scaling(owner, target).carry_out(plan.scale).await?;
        }
        for part in Part::ALL {
            if !plan.wants(part) {
                self.remove(owner, part).await?;
                memos.remove(&part);
            }
        }
        Ok(())
    }

    /// Removes everything of a run. What tells that there is a run goes last, so that a removal that was cut off is gone on with.
    pub async fn remove_run(&self, owner: &Owner) -> Result<(), Unapplied> {
        for part in Part::ALL.into_iter().rev() {
            self.remove(owner, part).await?;
        }
        Ok(())
    }

    /// The workload's scale.
    pub fn scaling(&self, owner: &Owner, target: &ScaleTarget) -> Scaling {
        Scaling::new(self.client.clone(), owner, target)
    }

    fn api(&self, part: Part, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, &part.api_resource())
    }

    /// Reads whether the owner still exists, is the same object, and is not being deleted.
    async fn owner_is_there(&self, owner: &Owner) -> Result<(), Unapplied> {
        let projections: Api<Projection> = Api::namespaced(self.client.clone(), owner.namespace());
        match projections.get_metadata(owner.name()).await {
            Ok(there) => {
                let same = there.metadata.uid.as_deref() == Some(owner.uid.as_str());
                let stays = same && there.metadata.deletion_timestamp.is_none();
                if stays { Ok(()) } else { Err(Unapplied::OwnerGone) }
            }
            Err(kube::Error::Api(status)) if status.is_not_found() => Err(Unapplied::OwnerGone),
            Err(error) => {
                let what = format!("could not read the Projection {}/{}", owner.namespace(), owner.name());
                Err(super::unapplied::problem(&what, &error))
            }
        }
    }

    /// The object of this name if it is the operator's, read from the API server where the index does not know it for certain.
    async fn find_ours(&self, owner: &Owner, desired: &Desired) -> Result<Option<Arc<LiveObject>>, Unapplied> {
        let Desired { part, name, body: _, hash: _ } = desired;
        let (now, namespace) = (Instant::now(), owner.namespace());
        let ours = |live: &LiveObject| live.controlled_by.as_deref() == Some(owner.uid.as_str());
        let doubtful =
            self.index.unconfirmed_for(*part, namespace, name, now).is_some_and(|since| since >= CONFIRM_WITHIN);
        let known = self.index.get(*part, namespace, name);
        if let Some(live) = known.as_ref().filter(|live| ours(live) && !doubtful) {
            return Ok(Some(Arc::clone(live)));
        }
        // The object may exist all the same, without the operator's label or made by another client.
        let read = self.api(*part, namespace).get_opt(name).await;
        let object = read.map_err(|error| failed("could not read", *part, owner, name, &error))?;
        let Some(object) = object else {
            if let Some(gone) = known {
                self.index.deleted(*part, namespace, name, &gone.uid, Instant::now());
            }
            return Ok(None);
        };
        let live = LiveObject::from_object(&object);
        if known.is_some() {
            self.index.answered(*part, namespace, name, live.clone(), Instant::now());
        }
        if ours(&live) {
            return Ok(Some(Arc::new(live)));
        }
        if is_of_a_predecessor(&live, owner) {
            return Err(Unapplied::Predecessor(*part));
        }
        Err(Unapplied::Problem(Problem {
            reason: Reason::NotOwned,
            message: format!(
                "the {} {namespace}/{name} exists and does not belong to this Projection: it was left as it is. Rename or delete one of the two",
                part.kind(),
            ),
            // The name becomes free when the object is deleted.
            lasting: !live.deleting,
        }))
    }

    async fn create(
        &self,
        owner: &Owner,
        desired: &Desired,
        scale: ScalePlan,
        memos: &mut Memos,
    ) -> Result<(), Unapplied> {
        let (mut body, replicas) = (desired.body.clone(), created_with(scale));
        // One worker is the API server's default, which no field manager owns, so that nothing has to be handed over.
        let with_replicas = desired.part == Part::Deployment && replicas != 1;
        if with_replicas {
            body["spec"]["replicas"] = json!(replicas);
        }
        // Not forced: if another client has made one meanwhile, the conflict is reported and the object is not taken over.
        let live = self.patch(owner, desired, &body, &PatchParams::apply(names::FIELD_MANAGER), memos).await?;
        if live.controlled_by.as_deref() == Some(owner.uid.as_str()) && with_replicas {
            self.hand_over(owner, desired, &live, memos).await?;
        }
        Ok(())
    }

    async fn update(
        &self,
        owner: &Owner,
        desired: &Desired,
        live: &LiveObject,
        memos: &mut Memos,
    ) -> Result<(), Unapplied> {
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

    /// Makes another field manager own the number of workers, then applies the Deployment without it.
    async fn hand_over(
        &self,
        owner: &Owner,
        desired: &Desired,
        live: &LiveObject,
        memos: &mut Memos,
    ) -> Result<(), Unapplied> {
        if live.replica_managers.iter().all(|manager| manager == names::FIELD_MANAGER) {
            self.declare_replicas(owner, live).await?;
        }
        self.declare(owner, desired, &live.uid, memos).await
    }

    async fn declare(&self, owner: &Owner, desired: &Desired, uid: &str, memos: &mut Memos) -> Result<(), Unapplied> {
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
    ) -> Result<LiveObject, Unapplied> {
        let Desired { part, name, body: _, hash } = desired;
        let patched = self.api(*part, owner.namespace()).patch(name, parameters, &Patch::Apply(body)).await;
        let object = patched.map_err(|error| failed("could not apply", *part, owner, name, &error))?;
        tracing::debug!("applied the {} {}/{name}", part.kind(), owner.namespace());
        let live = LiveObject::from_object(&object);
        let seen = fingerprint(&restrict(&live.parsed(), &comparable(desired)));
        memos.insert(*part, Memo { hash: hash.clone(), resource_version: live.resource_version.clone(), seen });
        self.index.answered(*part, owner.namespace(), name, live.clone(), Instant::now());
        Ok(live)
    }

    /// Makes the manager of the number of workers own it as it is.
    async fn declare_replicas(&self, owner: &Owner, live: &LiveObject) -> Result<(), Unapplied> {
        let (part, name) = (Part::Deployment, Part::Deployment.object_name(&owner.run));
        let told = |error: &kube::Error| failed("could not scale", part, owner, &name, error);
        let api = self.api(part, owner.namespace());
        let (mut version, mut replicas, mut tries) = (live.resource_version.clone(), live.workers.desired, 0);
        loop {
            let body = json!({
                "apiVersion": part.api_version(), "kind": part.kind(),
                // With UID and version, a number that was set meanwhile is not overwritten.
                "metadata": { "name": name, "namespace": owner.namespace(), "uid": live.uid, "resourceVersion": version },
                "spec": { "replicas": replicas.unwrap_or(1) },
            });
            let parameters = PatchParams::apply(names::SCALE_FIELD_MANAGER).force();
            match api.patch(&name, &parameters, &Patch::Apply(&body)).await {
                Ok(object) => {
                    let live = LiveObject::from_object(&object);
                    self.index.answered(part, owner.namespace(), &name, live, Instant::now());
                    return Ok(());
                }
                Err(kube::Error::Api(status)) if status.code == 409 && tries < CONFLICTS => {
                    let newer = api.get(&name).await.map_err(|error| told(&error))?;
                    let newer = LiveObject::from_object(&newer);
                    (version, replicas, tries) = (newer.resource_version, newer.workers.desired, tries + 1);
                }
                Err(error) => return Err(told(&error)),
            }
        }
    }

    async fn remove(&self, owner: &Owner, part: Part) -> Result<(), Unapplied> {
        let name = part.object_name(&owner.run);
        let Some(live) = self.index.get(part, owner.namespace(), &name) else { return Ok(()) };
        if live.deleting || live.controlled_by.as_deref() != Some(owner.uid.as_str()) {
            return Ok(());
        }
        // Deletes only the object that was seen, which is the operator's.
        let seen = Preconditions { uid: Some(live.uid.clone()), resource_version: Some(live.resource_version.clone()) };
        let parameters = DeleteParams { preconditions: Some(seen), ..DeleteParams::background() };
        match self.api(part, owner.namespace()).delete(&name, &parameters).await {
            Ok(answer) => match answer.left() {
                // The object exists until its finalizers are removed.
                Some(object) => {
                    self.index.answered(
                        part,
                        owner.namespace(),
                        &name,
                        LiveObject::from_object(&object),
                        Instant::now(),
                    );
                }
                None => self.index.deleted(part, owner.namespace(), &name, &live.uid, Instant::now()),
            },
            Err(kube::Error::Api(status)) if status.code == 404 => {
                self.index.deleted(part, owner.namespace(), &name, &live.uid, Instant::now());
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

/// Whether an object must be applied (again): it was applied differently, or another client changed what the operator owns in it.
pub fn needs_apply(desired: &Desired, live: &LiveObject, memo: Option<&Memo>) -> bool {
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

/// The objects of a list contain neither `apiVersion` nor `kind`.
fn comparable(desired: &Desired) -> Value {
    let mut body = desired.body.clone();
    if let Value::Object(fields) = &mut body {
        fields.retain(|key, _| key != "apiVersion" && key != "kind");
    }
    body
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
