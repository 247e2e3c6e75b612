//! The promises of the product, each as a sentence, on a real cluster with real databases, workers and autoscalers.
//!
//! One cluster and one installed operator serve all tests. Tests that disturb the operator itself hold the stage alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod autoscaling;
mod causes;
mod certificates;
mod consumers;
mod contract;
mod delegate;
mod fault_matrix;
mod installation;
mod kafka;
mod lifecycle;
mod metrics_reads;
mod nats;
mod operator_faults;
mod own_autoscalers;
mod rabbitmq;
mod redis;
mod refusals;
mod registration;
mod repair;
mod same_as_the_autoscaler;
mod scale_out;
mod sharing;
mod shop;
mod source_faults;
mod stage;
mod workloads;
