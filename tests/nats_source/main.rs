//! NATS JetStream on real servers: what is reported in which state.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod access;
mod cost;
mod faults;
mod harness;
mod sampled;
mod states;
