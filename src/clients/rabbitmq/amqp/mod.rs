//! Takes messages of queues over AMQP 0-9-1: so much of the protocol as a consumer needs, and no more.
//!
//! A library would do, if any left to its user what is kept of a message: those that there are keep each whole, however large, and put no bound to
//! what they have received. A worker's memory is bounded, and one message that is too large must not end it.

mod decoder;
mod fields;
mod methods;
mod subscriber;

pub use decoder::{Body, Message};
pub use fields::Properties;
pub use subscriber::{Bounds, Subscriber};
