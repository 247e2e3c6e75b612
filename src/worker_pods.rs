//! The pods of a Projection's workers, as a watch shows them: what those that follow pods tell those that ask pods for their numbers. Pure.

use std::{net::IpAddr, sync::Arc};

use tokio::sync::watch;

use crate::{
    api::{ExistingWorkload, Reason},
    measure::{MeasureError, RunKey},
};

/// Whose pods.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Workload {
    /// The run that they work for, in the namespace of its pods.
    pub run: RunKey,
    /// The workload that it names; absent where the operator makes the Deployment.
    pub existing: Option<ExistingWorkload>,
}

impl Workload {
    /// The namespace of its pods.
    pub fn namespace(&self) -> &str {
        &self.run.projection.namespace
    }
}

/// One pod that is there and has not ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WorkerPod {
    /// Its name.
    pub name: Arc<str>,
    /// Its UID.
    pub uid: Arc<str>,
    /// Its address; absent until it has one.
    pub address: Option<IpAddr>,
    /// How far it has come.
    pub stage: PodStage,
}

/// How far a pod has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PodStage {
    /// It has not been ready yet.
    Starting,
    /// It is ready, or has been.
    Working,
    /// It is being deleted.
    Ending,
}

/// The pods of one workload, or why they are not known.
pub type SeenPods = Result<Arc<[WorkerPod]>, MeasureError>;

/// Follows pods.
pub trait WorkerPods: Send + Sync + 'static {
    /// The pods of this workload, from now on and for as long as the receiver lives.
    fn follow(&self, workload: &Workload) -> watch::Receiver<SeenPods>;
}

/// Follows none: what all pods are until a watch has shown them.
pub struct UnwatchedPods;

impl UnwatchedPods {
    /// That no watch has shown the pods yet.
    pub fn not_yet() -> MeasureError {
        let message = "the workload's pods have not been listed yet".to_owned();
        MeasureError { reason: Reason::NotMeasuredYet, message }
    }
}

impl WorkerPods for UnwatchedPods {
    fn follow(&self, _: &Workload) -> watch::Receiver<SeenPods> {
        watch::channel(Err(Self::not_yet())).1
    }
}
