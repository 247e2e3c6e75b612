//! Read stores on real servers: checkpoints in each of them, and the switch of versions.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/certificates.rs"]
mod certificates;
mod elasticsearch;
#[path = "../support/fake.rs"]
mod fake;
mod harness;
mod health;
mod led;
mod parity;
mod postgres;
mod redis;
#[path = "../support/sampler.rs"]
mod sampler;
mod switches;
