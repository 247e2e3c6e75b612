//! The HorizontalPodAutoscaler's algorithm, as the controller of Kubernetes 1.36 computes it, exact to the thousandth.
//!
//! Pure: uses no cluster, no clock and no IO. Points in time come in as a [`std::time::Duration`] since any one moment, on a clock that never goes
//! back; metrics and targets in thousandths (`i64`), replicas as `i32`, as in the API. It computes what the controller would do, for two users: the
//! simulator, and the operator where it scales out at once and must keep to the autoscaler's own rules.
//!
//! # How far replicas may rise right now
//! ```
//! use std::time::Duration;
//! use projectionist::hpa::{Behavior, Scalings};
//!
//! // Behavior::from_spec(&HorizontalPodAutoscalerBehavior) -> Result<Behavior, InvalidBehavior>
//! let behavior = Behavior::default();
//! // Scalings::record(&mut self, &Behavior, from: i32, to: i32, at: Duration)
//! let mut lately = Scalings::default();
//! lately.record(&behavior, 1, 3, Duration::from_secs(10));
//! // Behavior::scale_up_limit(&self, current: i32, &Scalings, now: Duration) -> i32
//! assert_eq!(behavior.scale_up_limit(3, &lately, Duration::from_secs(20)), 5);
//! assert_eq!(behavior.scale_up_limit(3, &lately, Duration::from_secs(25)), 7);
//! ```
//! A caller that must keep to the stabilization windows, too, keeps a [`Memory`] and asks [`Memory::normalize`].

mod arithmetic;
mod behavior;
mod controller;
mod limits;
mod normalize;
mod pods;
mod proposal;
mod spec;

pub use crate::quantity::{NotAQuantity, Quantity};
pub use behavior::{Behavior, InvalidBehavior, Policy, Rules, Select, Unit};
pub use controller::{Autoscaler, Controller, DecidedBy, Evaluation, Settings};
pub use limits::{Scalings, scale_up_limit_without_behavior};
pub use normalize::{Memory, Normalized, Range};
pub use pods::{CpuUse, Phase, Pod};
pub use proposal::{Invalid, Metric, Proposal, Reading, Scale, TargetValue};
pub use spec::InvalidAutoscaler;
