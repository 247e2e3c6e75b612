//! What runs the workers of a Projection, as it is: how many, of which pod template, and what keeps the others from running. Reads only.

use std::{sync::Arc, time::Duration};

use super::{
    autoscaler::Standing,
    existing::Look,
    known::{Known, WorkloadView},
    live::Live,
    memory::Memory,
    parts::Part,
    reconcile::Reconciler,
    status::trouble::{Looked, rollout},
    validate::Workload,
};
use crate::{
    api::{ConditionType, ExistingKind, ProjectionStatus},
    measure::ProjectionKey,
};

impl Reconciler {
    /// Whether the autoscaler that the operator made for this workload works.
    pub(super) fn autoscaler_of(&self, key: &ProjectionKey, workload: WorkloadView, memory: &mut Memory) -> Standing {
        let name = Part::HorizontalPodAutoscaler.object_name(&key.name);
        let live = self.index.get(Part::HorizontalPodAutoscaler, &key.namespace, &name);
        let ours = live.filter(|live| live.controlled_by.as_deref() == Some(memory.uid.as_str()));
        let pods = match workload {
            WorkloadView::Present(counts) => counts.existing,
            WorkloadView::NotWanted | WorkloadView::Absent => 0,
        };
        memory.autoscaler.judge(ours.as_deref(), pods, self.began.elapsed())
    }

    /// What to say of it, and when to look again.
    pub(super) fn told_of_autoscaler(&self, standing: Standing, memory: &Memory) -> (Option<String>, Option<Duration>) {
        match standing {
            Standing::Works => (None, memory.autoscaler.proves_at().map(|at| at.saturating_sub(self.began.elapsed()))),
            Standing::Unproven(left) => (None, Some(left)),
            Standing::Broken(why) => (Some(why), None),
        }
    }

    /// Adds how far the workload has come and what keeps its workers from running. Returns when to look again.
    pub(super) async fn look_into(
        &self,
        key: &ProjectionKey,
        workload: &Workload,
        previous: &ProjectionStatus,
        memory: &mut Memory,
        known: &mut Known<'_>,
    ) -> Option<Duration> {
        let (kind, name, live, declared) = match workload {
            Workload::MeasureOnly => return None,
            Workload::Existing { kind, name } => {
                (kind.as_str(), name.clone(), self.existing_workload(key, *kind, name)?, true)
            }
            Workload::Own { .. } => {
                let name = Part::Deployment.object_name(&key.name);
                let live = self.index.get(Part::Deployment, &key.namespace, &name)?;
                if live.controlled_by.as_deref() != Some(memory.uid.as_str()) {
                    return None;
                }
                let declared = memory.declared.is_none() || memory.declared == live.applied_hash;
                (Part::Deployment.kind(), name, live, declared)
            }
        };
        known.rollout = rollout(&format!("{kind} {}/{name}", key.namespace), live.workers, declared);
        let said = previous.conditions.iter().find(|condition| condition.type_ == ConditionType::Ready.as_str());
        let told = said.filter(|said| said.status == "False").map(|said| said.reason.as_str());
        let Looked { trouble, starting, again } = self.pods.look(&key.namespace, &live, told, &mut memory.pods).await;
        (known.trouble, known.starting) = (trouble, starting);
        again
    }

    /// The workload of the Projection with this UID.
    pub(super) fn seen_of(&self, key: &ProjectionKey, workload: &Workload, uid: &str) -> WorkloadView {
        match workload {
            Workload::MeasureOnly => WorkloadView::NotWanted,
            Workload::Existing { kind, name } => view(self.existing_workload(key, *kind, name).as_deref()),
            Workload::Own { .. } => self.workload_of(key, uid),
        }
    }

    /// The Deployment made for the Projection with this UID: one of a deleted namesake does not count.
    pub(super) fn workload_of(&self, key: &ProjectionKey, uid: &str) -> WorkloadView {
        let name = Part::Deployment.object_name(&key.name);
        let live = self.index.get(Part::Deployment, &key.namespace, &name);
        view(live.filter(|live| live.controlled_by.as_deref() == Some(uid)).as_deref())
    }

    fn existing_workload(&self, key: &ProjectionKey, kind: ExistingKind, name: &str) -> Option<Arc<Live>> {
        match self.existing.look(key, kind, name) {
            Look::Found(live) => Some(live),
            Look::NotYet | Look::Missing => None,
        }
    }
}

fn view(live: Option<&Live>) -> WorkloadView {
    live.filter(|live| !live.deleting).map_or(WorkloadView::Absent, |live| WorkloadView::Present(live.workers))
}
