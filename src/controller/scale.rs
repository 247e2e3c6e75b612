//! Sets the number of workers of a workload, whether the operator made it or not, through its scale subresource.
//!
//! Each write is decided from a fresh read and applies to that version only. So a number that another client set meanwhile is not overwritten, and a
//! write that arrives late does nothing.

use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    core::DynamicObject,
};
use serde_json::json;

use super::{
    known::Problem,
    parts::{Owner, Part},
    plan::scale::ScalePlan,
    unapplied::{Unapplied, problem},
};
use crate::{
    api::{ExistingKind, Reason},
    names,
};

/// How often a number is set again where the workload changes at the same moment.
const TRIES: usize = 5;

/// Which workload's number of workers is set.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ScaleTarget {
    /// The Deployment that the operator makes.
    Own,
    /// One that is there already: through its scale subresource, and nothing else.
    Existing(ExistingKind, String),
}

/// The scale of one workload.
pub struct Scaling {
    api: Api<DynamicObject>,
    name: String,
    what: String,
}

impl Scaling {
    /// Of `target`, for the Projection `owner`.
    pub fn new(client: Client, owner: &Owner, target: &ScaleTarget) -> Self {
        let (kind, name, resource) = match target {
            ScaleTarget::Own => {
                (Part::Deployment.kind(), Part::Deployment.object_name(&owner.run), Part::Deployment.api_resource())
            }
            ScaleTarget::Existing(kind, name) => (kind.as_str(), name.clone(), super::existing::api_resource(*kind)),
        };
        let what = format!("could not scale the {kind} {}/{name}", owner.namespace());
        Self { api: Api::namespaced_with(client, owner.namespace(), &resource), name, what }
    }

    /// The number of workers asked for now; `None` where there is no such workload.
    pub async fn replicas(&self) -> Result<Option<i32>, Unapplied> {
        match self.api.get_scale(&self.name).await {
            Ok(scale) => Ok(Some(scale.spec.and_then(|spec| spec.replicas).unwrap_or(0))),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(None),
            Err(error) => Err(self.problem(&error)),
        }
    }

    /// Carries out the plan, as far as it still applies to the number of workers that is there now.
    pub async fn carry_out(&self, plan: ScalePlan) -> Result<(), Unapplied> {
        let parameters =
            PatchParams { field_manager: Some(names::SCALE_FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        for _ in 0..TRIES {
            let scale = self.api.get_scale(&self.name).await.map_err(|error| self.problem(&error))?;
            let replicas = scale.spec.and_then(|spec| spec.replicas).unwrap_or(0);
            let Some(wanted) = wanted(plan, replicas) else { return Ok(()) };
            let body = json!({
                "metadata": { "resourceVersion": scale.metadata.resource_version },
                "spec": { "replicas": wanted },
            });
            match self.api.patch_scale(&self.name, &parameters, &Patch::Merge(body)).await {
                Ok(_) => {
                    tracing::debug!("set {} from {replicas} to {wanted} workers", self.name);
                    return Ok(());
                }
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(self.problem(&error)),
            }
        }
        match plan {
            // The autoscaler will see to it.
            ScalePlan::Raise(_) => Ok(()),
            _ => Err(Unapplied::Problem(Problem {
                reason: Reason::ApplyFailed,
                message: format!("{}: it changes all the time", self.what),
                lasting: false,
            })),
        }
    }

    fn problem(&self, error: &kube::Error) -> Unapplied {
        problem(&self.what, error)
    }
}

/// The number to set where there are `now`; `None` where the plan has been overtaken or is carried out.
fn wanted(plan: ScalePlan, now: i32) -> Option<i32> {
    match plan {
        ScalePlan::Set(0) => (now != 0).then_some(0),
        // Only what sleeps, or was switched off, is set to a number.
        ScalePlan::Set(wanted) => (now == 0).then_some(wanted),
        // A user may want no workers at all, and no worker is removed.
        ScalePlan::Raise(least) => (1..least).contains(&now).then_some(least),
        ScalePlan::Leave | ScalePlan::CreateWith(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_that_was_made_from_an_old_number_does_not_overwrite_the_new_one() {
        for (plan, now, expected) in [
            (ScalePlan::Set(0), 3, Some(0)),
            (ScalePlan::Set(0), 0, None),
            (ScalePlan::Set(2), 0, Some(2)),
            (ScalePlan::Set(2), 5, None),
            (ScalePlan::Raise(4), 2, Some(4)),
            (ScalePlan::Raise(4), 6, None),
            (ScalePlan::Raise(4), 0, None),
            (ScalePlan::Leave, 3, None),
        ] {
            assert_eq!(wanted(plan, now), expected, "{plan:?} where there are {now}");
        }
    }
}
