//! Redis Streams on real servers: what is reported in which state.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod access;
#[path = "../support/certificates.rs"]
mod certificates;
mod cluster;
mod cost;
#[path = "../support/fake.rs"]
mod fake;
mod faults;
mod harness;
mod lists;
mod sampled;
#[path = "../support/sampler.rs"]
mod sampler;
mod sentinel;
mod states;
