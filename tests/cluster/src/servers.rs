//! Servers on a cluster's node, which pods reach.

use std::net::SocketAddr;

use anyhow::Result;

use crate::cluster::Cluster;
use crate::elasticsearch::Elasticsearch;
use crate::kafka::Kafka;
use crate::nats::Nats;
use crate::network;
use crate::postgres::Postgres;
use crate::prometheus::Prometheus;
use crate::rabbitmq::RabbitMq;
use crate::redis::Redis;

impl Cluster {
    /// A PostgreSQL server on the node's address, which pods reach, too.
    ///
    /// # Errors
    /// When it does not start.
    pub fn postgres(&self) -> Result<Postgres> {
        Postgres::in_network(&self.instance().network_namespace(), network::NODE_ADDRESS)
    }

    /// A Redis server on the node's address, which pods reach, too. Its default user needs no password.
    ///
    /// # Errors
    /// When it does not start.
    pub fn redis(&self) -> Result<Redis> {
        Redis::in_network(&self.instance().network_namespace(), network::NODE_ADDRESS)
    }

    /// A Kafka broker on the node's address, which pods reach, too, without TLS.
    ///
    /// # Errors
    /// When it does not start.
    pub fn kafka(&self) -> Result<Kafka> {
        Kafka::in_network(&self.instance().network_namespace(), network::NODE_ADDRESS)
    }

    /// A NATS server on the node's address, which pods reach, too, with lines of configuration as in [`Nats::with`].
    ///
    /// # Errors
    /// When it does not start.
    pub fn nats(&self, configuration: &str) -> Result<Nats> {
        Nats::in_network(&self.instance().network_namespace(), network::NODE_ADDRESS, configuration)
    }

    /// A RabbitMQ server on the node's address, which pods reach, too.
    ///
    /// # Errors
    /// When it does not start.
    pub fn rabbitmq(&self) -> Result<RabbitMq> {
        RabbitMq::in_network(&self.instance().network_namespace(), network::NODE_ADDRESS)
    }

    /// An OpenSearch on the node's address, which pods reach, too, without users and TLS.
    ///
    /// # Errors
    /// When it does not start.
    pub fn open_search(&self) -> Result<Elasticsearch> {
        Elasticsearch::in_network(&self.instance().network_namespace(), network::NODE_ADDRESS)
    }

    /// A Prometheus on the node's address, which pods reach, too, and which scrapes a target in the cluster's network five times a second.
    ///
    /// # Errors
    /// When it does not start.
    pub fn prometheus(&self, target: SocketAddr) -> Result<Prometheus> {
        Prometheus::in_network(&self.instance().network_namespace(), network::NODE_ADDRESS, target)
    }
}
