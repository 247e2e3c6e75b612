//! What the cluster should hold for one Projection: the sum of the decisions in this folder, one a file. Pure.

pub mod autoscaler;
mod budget;
pub mod builtin_pods;
mod configuration;
mod deployment;
mod pods;
pub mod scale;
pub mod scale_out;
#[cfg(test)]
mod tests;

use self::{
    autoscaler::{ScaleTargetRef, ServerAbilities, plan_autoscaler},
    budget::plan_budget,
    builtin_pods::WorkerDefaults,
    configuration::plan_configuration,
    deployment::plan_deployment,
    scale::{ScalePlan, ScaleView, plan_scale},
};
use crate::{
    controller::parts::{Desired, Part},
    resolve::{Pods, Validated, Workload},
};

/// What the cluster should hold, and how many workers to set, if any.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Objects to be there, in the order in which to make them. A kind that is not among them is not wanted.
    pub desired: Vec<Desired>,
    /// What to do about the number of workers; `Leave` where there is no workload to scale.
    pub scale: ScalePlan,
}

impl Plan {
    /// True when this kind of object is wanted.
    pub fn wants(&self, part: Part) -> bool {
        self.desired.iter().any(|desired| desired.part == part)
    }
}

/// Plans.
pub fn plan(validated: &Validated, view: ScaleView, defaults: &WorkerDefaults, server: ServerAbilities) -> Plan {
    let Validated { owner, workload, workers, stored } = validated;
    let autoscaler =
        |target: ScaleTargetRef<'_>| workers.autoscaled.then(|| plan_autoscaler(workers, target, owner, server));
    match workload {
        Workload::MeasureOnly => Plan { desired: Vec::new(), scale: ScalePlan::Leave },
        Workload::Existing { kind, name } => Plan {
            desired: autoscaler(ScaleTargetRef { kind: kind.as_str(), name }).into_iter().collect(),
            // The operator does not make this workload: without it there is nothing to scale.
            scale: if view.replicas.is_some() { plan_scale(workers, view) } else { ScalePlan::Leave },
        },
        Workload::Own { pods, environment, strict } => {
            let configuration = match pods {
                Pods::Builtin(pods) => Some(&pods.configuration),
                Pods::Template { .. } => None,
            };
            let configuration = plan_configuration(configuration, stored.as_deref(), owner);
            let deployment = plan_deployment(pods, environment, *strict, owner, defaults);
            let target = autoscaler(ScaleTargetRef { kind: "Deployment", name: &deployment.name });
            let desired = configuration.into_iter().chain([deployment, plan_budget(owner)]).chain(target).collect();
            Plan { desired, scale: plan_scale(workers, view) }
        }
    }
}
