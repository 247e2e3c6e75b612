//! Queries to a real Prometheus (2.42), and pages of metrics: what is told in every state, who may ask, what a poll costs, and servers that misbehave.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod access;
#[path = "../support/certificates.rs"]
mod certificates;
mod cost;
mod faults;
mod harness;
mod pods;
#[path = "../support/relay.rs"]
mod relay;
mod sampled;
#[path = "../support/sampler.rs"]
mod sampler;
mod scraped;
mod states;
