//! The brokers, which take long to start: one of each for all tests, one test after the other.

use std::sync::LazyLock;

use shop::orders;
use test_cluster::{Kafka, RabbitMq, ServerCertificate};
use tokio::sync::{Mutex, MutexGuard};

static BROKERS: LazyLock<Mutex<Brokers>> = LazyLock::new(|| {
    let certificate = ServerCertificate::for_hosts(&["127.0.0.1"]).unwrap();
    let kafka = Kafka::on_loopback_without_tls().unwrap();
    let rabbitmq = RabbitMq::on_loopback_with_tls(&certificate).unwrap();
    kafka.ask(&["create", orders::TOPIC, "3", ""]).unwrap();
    Mutex::new(Brokers { kafka, rabbitmq, certificate })
});

pub struct Brokers {
    pub kafka: Kafka,
    pub rabbitmq: RabbitMq,
    /// What RabbitMQ shows.
    pub certificate: ServerCertificate,
}

impl Brokers {
    /// Who signed that.
    pub fn authority(&self) -> Option<&str> {
        Some(&self.certificate.authority)
    }
}

/// The brokers, for one test at a time: a second relay would end the transactions of the first. The topic holds what other tests have sent.
pub async fn brokers() -> MutexGuard<'static, Brokers> {
    BROKERS.lock().await
}
