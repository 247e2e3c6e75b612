//! NATS JetStream on real servers: what is reported in which state.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod access;
#[path = "../support/certificates.rs"]
mod certificates;
mod clock;
mod clustered;
mod cost;
mod faults;
mod harness;
mod keys;
#[path = "../support/relay.rs"]
mod relay;
mod sampled;
#[path = "../support/sampler.rs"]
mod sampler;
mod states;
