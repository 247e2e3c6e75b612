//! Read stores on real servers: checkpoints in each of them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod harness;
mod redis;
