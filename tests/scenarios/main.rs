//! The promises of the product, each as a sentence, on a real cluster with real databases, workers and autoscalers.
//!
//! One cluster and one installed operator serve all tests. Tests that disturb the operator itself hold the stage alone; they are in a module whose name is the
//! first in the alphabet, so that they come one after the other before several run side by side.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod alone;
mod autoscaling;
mod built_in_sources;
mod built_in_stores;
mod causes;
mod consumers;
#[path = "../support/event_stores.rs"]
mod event_stores;
mod fault_matrix;
mod kafka;
mod kill_switch;
mod kurrentdb;
#[path = "../support/kurrentdb/mod.rs"]
mod kurrentdb_server;
mod libraries;
mod lifecycle;
mod lists;
mod metrics_reads;
mod nats;
mod own_autoscalers;
mod pages;
mod rabbitmq;
mod rebuild;
mod redis;
mod refusals;
mod repair;
mod same_as_the_autoscaler;
mod scale_out;
mod secrets;
mod servers;
mod sharing;
mod shop;
mod side_by_side;
mod source_faults;
mod stage;
mod workloads;
