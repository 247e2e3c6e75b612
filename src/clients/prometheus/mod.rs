//! The query API of Prometheus and of servers that speak it (Thanos, Mimir, VictoriaMetrics): one instant query, one number.
//!
//! Nothing of an answer is repeated in a message but where a query has a syntax error: a URL may lead to a server that is none of these.

mod answer;
mod client;

pub use client::{Client, LARGEST_ANSWER, LEAST_TIME, Query};
