//! Kafka as a source, against a real broker: what the client reads, what it says when it cannot, and what it must not do.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod access;
mod awaiting;
mod builtin;
mod client;
mod cluster;
mod cost;
mod false_brokers;
mod false_cluster;
mod false_states;
mod harness;
#[path = "../support/sampler.rs"]
mod running;
mod sampler;
mod states;
mod stored_offsets;
