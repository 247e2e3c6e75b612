//! The simulator: a trace of arrivals, workers that take their time to start, shards that come whole, and the autoscaler's exact algorithm
//! over a [`Policy`] — what the autoscaler reads, and who else sets the scale.
//!
//! Pure: a trace in, a [`Run`] out. What looks random is the same each time: the same input gives the same output. Points in time are a
//! [`std::time::Duration`] since the trace began.
//!
//! # The seam
//! Anything that scales is a [`Policy`]; [`run`] knows no other. Ours is [`ModelPolicy`], which drives the very [`crate::lag::Model`] that the
//! operator runs; [`CpuPolicy`], [`QueueLengthPolicy`] and [`QueryPolicy`] are what else there is to scale by. One that needs no autoscaler, such as
//! perfect foresight, answers `None` from [`Policy::autoscaler`] and sets the scale by [`Policy::scale_to`].
//! ```
//! use std::time::Duration;
//! use projectionist::simulate::{QueueLengthPolicy, Scenario, Trace, run};
//!
//! let trace = Trace::read("seconds,events_per_second\n0,100\n60,400\n").unwrap();
//! let scenario = Scenario { per_worker: 100.0, ..Scenario::new(trace, Duration::from_secs(5)) };
//! let mut policy = QueueLengthPolicy::new(1..=10, 500);
//! let run = run(&scenario, &mut policy);
//! assert!(run.score().lateness > 0.0);
//! ```

pub mod chart;
mod command;
mod crew;
mod deal;
mod documents;
mod given_autoscaler;
mod kind;
mod log;
mod model;
mod others;
mod outcome;
mod policy;
mod read_trace;
mod record;
mod report;
mod run;
mod shard;
mod svg;
mod trace;
mod watched;

pub use command::{InvalidInput, Options, read_admitted, read_autoscaler, read_projection, simulate};
pub use crew::Worker;
pub use given_autoscaler::AutoscalerFile;
pub use kind::{Checkpoints, Commits, Measured, WorkerKind};
pub use log::Backlog;
pub use model::{InvalidProjection, ModelPolicy};
pub use others::{CpuPolicy, QueryPolicy, QueueLengthPolicy};
pub use outcome::{Moment, Run, Score};
pub use policy::{Cpu, Policy, State};
pub use report::{report, to_json};
pub use run::{Scenario, run};
pub use svg::svg;
pub use trace::{InvalidTrace, Point, Trace};
