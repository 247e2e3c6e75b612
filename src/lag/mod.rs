//! How far behind a projection is and how many workers that takes: pure functions from samples to an assessment.
//!
//! Uses no cluster, no database, no clock and no randomness. Times come in as values, so that a table test, the operator and a simulator run the very
//! same code.

mod arrivals;
mod assessment;
mod bounds;
mod budget;
mod cadence;
mod capacity;
mod faults;
mod idle;
mod model;
mod need;
mod pattern;
mod phases;
mod planning;
mod planning_input;
mod prediction;
mod progress;
mod queue;
mod read_store;
mod released;
mod required;
mod safe_head;
mod sample;
mod sentence;
mod shards;
mod start_up;
mod steadiness;
mod strain;
mod throttle;
mod trial;
mod value;
mod value_model;
mod waiting;

pub use arrivals::ARRIVAL_TIME_CONSTANT;
pub use assessment::{Assessment, AtLeast, Rates};
pub use bounds::{Bounds, CatchUp, Workers};
pub use budget::{Claim, fair_shares};
pub use cadence::Cadence;
pub use faults::{Fault, Jump, RetentionRisk, Rewound};
pub use model::Model;
pub use pattern::LookAhead;
pub use phases::Stage;
pub use prediction::Prediction;
pub use required::{Limit, Required};
pub use safe_head::{SafeHead, Writer, WriterId};
use sample::as_float;
pub use sample::{
    BlockingWriter, Certain, CheckpointState, EventFaults, FailedEvent, Head, LogHead, LogProgress, Note, PassedOver,
    Pending, Position, Sample, SessionInfo,
};
pub use shards::useful_workers;
pub use strain::Strain;
pub use throttle::{Harm, LiveHealth, Throttle, Throttled};
pub use value::{ValueAssessment, ValueTarget};
