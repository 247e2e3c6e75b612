//! Queues of RabbitMQ against a real server (3.10): what is told in every state, who may read, what a poll costs, and servers that misbehave.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod access;
#[path = "../support/certificates.rs"]
mod certificates;
mod cost;
#[path = "../support/fake.rs"]
mod fake;
mod faults;
mod harness;
#[path = "../support/relay.rs"]
mod relay;
mod sampled;
#[path = "../support/sampler.rs"]
mod sampler;
mod states;
mod streams;
