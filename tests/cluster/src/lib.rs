//! A real one-node Kubernetes for tests, the demo and measurements: nothing in it is a mock.
//!
//! ```text
//! let cluster = Cluster::shared()?;
//! let namespace = cluster.namespace("orders")?;
//! cluster.apply(&manifest)?;
//! cluster.block_on(async {
//!     let client = cluster.client().await?;
//!     eventually(Duration::from_secs(30), "a worker is ready", || async { ... }).await
//! })??;
//! ```
//!
//! The cluster comes down when the test's process ends, however it ends. Logs stay in `target/test-cluster/<name>/logs`.

pub mod binaries;
pub mod cluster;
mod components;
pub mod elasticsearch;
pub mod events;
mod eventually;
pub mod images;
pub mod instance;
pub mod kafka;
mod kept;
mod kernel;
mod launch;
mod lock;
pub mod nats;
pub mod network;
mod operator;
mod options;
pub mod packages;
mod pki;
pub mod pooler;
mod ports;
pub mod postgres;
mod processes;
pub mod prometheus;
pub mod rabbitmq;
pub mod redis;
mod redis_cluster;
mod server_certificate;
mod servers;
pub mod supervise;
pub mod teardown;

use std::io::Write;
use std::sync::OnceLock;

pub use cluster::Cluster;
pub use elasticsearch::Elasticsearch;
pub use events::EventStore;
pub use eventually::{Look, always_is, eventually, eventually_is};
pub use instance::Instance;
pub use kafka::Kafka;
pub use launch::program;
pub use nats::Nats;
pub use operator::OPERATOR_NAMESPACE;
pub use options::ClusterOptions;
pub use pooler::{Pooler, Pooling};
pub use ports::{free_address, free_port};
pub use postgres::Postgres;
pub use prometheus::{Prometheus, PrometheusOptions};
pub use rabbitmq::RabbitMq;
pub use redis::Redis;
pub use redis_cluster::RedisCluster;
pub use server_certificate::ServerCertificate;

static LISTENER: OnceLock<fn(&str)> = OnceLock::new();

/// Sends what [`say`] says to `listener` instead of standard error.
pub(crate) fn report_progress_to(listener: fn(&str)) {
    let _ = LISTENER.set(listener);
}

/// Tells a person who waits what goes on, also from tests, whose ordinary output the test runner keeps back.
pub(crate) fn say(text: &str) {
    match LISTENER.get() {
        Some(listener) => listener(text),
        None => drop(writeln!(std::io::stderr(), "test cluster: {text}")),
    }
}
