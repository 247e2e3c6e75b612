//! Makes the cluster follow the Projections, on the leader only: gather → plan (pure) → apply → status.
//!
//! Each step is a file and hands its result on as a type. Only `apply`, `scale` and `report` write to the cluster.

mod apply;
mod autoscaler;
mod carry_out;
mod driver;
mod existing;
mod gather;
mod index;
mod known;
mod live;
mod memory;
#[cfg(test)]
mod mock_api;
mod obstacles;
mod parity;
mod parts;
mod plan;
mod pod_look;
mod pod_watches;
mod preview;
mod queue;
mod rebuild;
mod reconcile;
mod scale;
mod status;
mod stored_specs;
mod unapplied;
mod watches;
mod worker_counts;

pub use crate::resolve::Invalid;
pub use driver::{ControllerInputs, run};
pub use existing::ExistingWorkloads;
pub use index::LiveIndex;
pub use parts::Part;
pub use plan::{
    autoscaler::ServerAbilities,
    builtin_pods::{PodDefaults, WorkerDefaults},
};
pub use pod_watches::PodWatches;
pub use preview::Preview;
pub use stored_specs::SpecsOfWatches;
pub use watches::{follow_part, follow_projections};
pub use worker_counts::WorkerCountsOfWatches;
