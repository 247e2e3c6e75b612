//! The brokers, which take long to start: one of each for all tests, one test after the other.

use std::sync::LazyLock;

use shop::orders;
use test_cluster::{Kafka, RabbitMq};
use tokio::sync::{Mutex, MutexGuard};

static BROKERS: LazyLock<Mutex<Brokers>> = LazyLock::new(|| {
    let (kafka, rabbitmq) = (Kafka::on_loopback_without_tls().unwrap(), RabbitMq::on_loopback().unwrap());
    kafka.ask(&["create", orders::TOPIC, "3", ""]).unwrap();
    Mutex::new(Brokers { kafka, rabbitmq })
});

pub struct Brokers {
    pub kafka: Kafka,
    pub rabbitmq: RabbitMq,
}

/// The brokers, for one test at a time: a second relay would end the transactions of the first. The topic holds what other tests have sent.
pub async fn brokers() -> MutexGuard<'static, Brokers> {
    BROKERS.lock().await
}
