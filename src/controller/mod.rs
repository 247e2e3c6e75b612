//! Makes the cluster follow the Projections, on the leader only: gather → validate → plan (pure) → apply → status.
//!
//! Each step is a file and hands its result on as a type. Only `apply`, `scale` and `report` write to the cluster.

mod announce;
mod apply;
mod autoscaler;
mod conditions;
mod driver;
mod existing;
mod index;
mod known;
mod live;
mod memory;
#[cfg(test)]
mod mock_api;
mod obstacles;
mod others_message;
mod parts;
mod plan;
mod plan_autoscaler;
mod plan_budget;
mod plan_builtin_pods;
mod plan_configuration;
mod plan_deployment;
mod plan_pods;
mod plan_scale;
#[cfg(test)]
mod plan_tests;
mod pod_look;
mod preview;
mod queue;
mod reconcile;
mod report;
mod scale;
mod scale_out;
mod status;
#[cfg(test)]
mod status_tests;
mod trouble;
#[cfg(test)]
mod trouble_tests;
mod unapplied;
mod urgency;
mod validate;
mod watches;
mod workload_state;

pub use driver::{ControllerInputs, run};
pub use index::LiveIndex;
pub use parts::Part;
pub use plan_autoscaler::ServerAbilities;
pub use plan_builtin_pods::{PodDefaults, WorkerDefaults};
pub use preview::Preview;
pub use urgency::{COUNTS_EVERY, COUNTS_SETTLE, NUMBERS_EVERY};
pub use validate::Invalid;
pub use watches::{follow_part, follow_projections};
