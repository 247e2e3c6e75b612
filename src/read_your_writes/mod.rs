//! Read your own writes: tells those who have appended an event when the read model has it.
//!
//! [`waiters`] holds who waits for which projection. The sampler measures those more often and tells each measurement; [`served`] answers the requests of the
//! operator's API. Nothing here asks a server.

mod served;
mod waiters;

pub use served::ReadModelPositions;
pub use waiters::{Done, Progress, Waiter, Waiters};
