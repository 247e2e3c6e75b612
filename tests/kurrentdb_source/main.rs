//! Subscriptions of KurrentDB against a fake of its gRPC API: no real server can be had here. What is told in every state, who may read, what a poll costs, and
//! servers that misbehave.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod access;
mod all;
mod builtin;
mod cost;
mod faults;
mod harness;
#[path = "../support/kurrentdb/mod.rs"]
mod kurrentdb;
mod sampled;
#[path = "../support/sampler.rs"]
mod sampler;
mod states;

use kurrentdb::server;
