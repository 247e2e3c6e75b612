//! Servers on a cluster's node, which pods reach.

use std::net::{SocketAddr, TcpListener};

use anyhow::{Context, Result};

use crate::cluster::Cluster;
use crate::elasticsearch::Elasticsearch;
use crate::kafka::Kafka;
use crate::nats::Nats;
use crate::network;
use crate::postgres::Postgres;
use crate::prometheus::Prometheus;
use crate::rabbitmq::RabbitMq;
use crate::redis::Redis;
use crate::redis_cluster::RedisCluster;
use crate::server_certificate::ServerCertificate;

impl Cluster {
    /// A PostgreSQL server on the node's address, which pods reach, too.
    ///
    /// # Errors
    /// When it does not start.
    pub fn postgres(&self) -> Result<Postgres> {
        Postgres::in_network(&self.instance().network_namespace(), network::NODE_ADDRESS)
    }

    /// A listener at the node's address, which pods reach, too: for a server that a test plays itself.
    ///
    /// # Errors
    /// When it cannot listen there.
    pub fn listener(&self) -> Result<TcpListener> {
        let bind = || TcpListener::bind((network::NODE_ADDRESS, 0));
        network::inside(&self.instance().network_namespace(), bind)?.context("listening at the node's address")
    }

    /// A certificate for servers on the node's address.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn server_certificate(&self) -> Result<ServerCertificate> {
        ServerCertificate::for_hosts(&[network::NODE_ADDRESS])
    }

    /// A Redis server on the node's address, which pods reach, too. Its default user needs no password.
    ///
    /// # Errors
    /// When it does not start.
    pub fn redis(&self) -> Result<Redis> {
        Redis::in_network(&self.instance().network_namespace(), network::NODE_ADDRESS, None)
    }

    /// The same, which speaks TLS alone.
    ///
    /// # Errors
    /// When it does not start.
    pub fn redis_with_tls(&self, certificate: &ServerCertificate) -> Result<Redis> {
        Redis::in_network(&self.instance().network_namespace(), network::NODE_ADDRESS, Some(certificate))
    }

    /// A Redis Cluster of so many masters on the node's address, which pods reach, too. Its default user needs no password.
    ///
    /// # Errors
    /// When it does not start.
    pub fn redis_cluster(&self, masters: usize) -> Result<RedisCluster> {
        RedisCluster::in_network(&self.instance().network_namespace(), network::NODE_ADDRESS, masters)
    }

    /// A Kafka broker on the node's address, which pods reach, too, without TLS.
    ///
    /// # Errors
    /// When it does not start.
    pub fn kafka(&self) -> Result<Kafka> {
        Kafka::in_network(&self.instance().network_namespace(), network::NODE_ADDRESS, None)
    }

    /// The same, with listeners with TLS as well.
    ///
    /// # Errors
    /// When it does not start.
    pub fn kafka_with_tls(&self, certificate: &ServerCertificate) -> Result<Kafka> {
        Kafka::in_network(&self.instance().network_namespace(), network::NODE_ADDRESS, Some(certificate))
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
        RabbitMq::in_network(&self.instance().network_namespace(), network::NODE_ADDRESS, None)
    }

    /// The same, whose URLs are those with TLS.
    ///
    /// # Errors
    /// When it does not start.
    pub fn rabbitmq_with_tls(&self, certificate: &ServerCertificate) -> Result<RabbitMq> {
        RabbitMq::in_network(&self.instance().network_namespace(), network::NODE_ADDRESS, Some(certificate))
    }

    /// An Elasticsearch on the node's address, which pods reach, too, with these users as in [`Elasticsearch::on_loopback`].
    ///
    /// # Errors
    /// When it does not start.
    pub fn elasticsearch(&self, users: &[(&str, &str)]) -> Result<Elasticsearch> {
        Elasticsearch::in_network(&self.instance().network_namespace(), network::NODE_ADDRESS, users)
    }

    /// A Prometheus on the node's address, which pods reach, too, and which scrapes a target in the cluster's network five times a second.
    ///
    /// # Errors
    /// When it does not start.
    pub fn prometheus(&self, target: SocketAddr) -> Result<Prometheus> {
        Prometheus::in_network(&self.instance().network_namespace(), network::NODE_ADDRESS, target)
    }
}
