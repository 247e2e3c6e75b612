//! How far behind a projection is and how many workers that takes: pure functions from samples to an assessment.
//!
//! Knows no cluster, no database, no clock and no randomness. Times come in as values, so that a table test, the operator and a
//! simulator run the very same code.

mod budget;
mod model;
mod rates;
mod required;
mod safe_head;
mod sample;
mod shards;

pub use budget::{Claim, fair_shares};
pub use model::{Assessment, Bounds, CatchUp, Fault, Model, Workers};
pub use rates::{ARRIVAL_TIME_CONSTANT, Rates};
pub use required::{Limit, Required};
pub use safe_head::{SafeHead, Writer, WriterId};
pub use sample::{BlockingWriter, CheckpointState, Head, Pending, Position, Sample};
pub use shards::useful_workers;
