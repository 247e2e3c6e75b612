//! What PostgreSQL databases and read stores are asked with: one each, shared by all that ask. Each connects when it is first asked.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use crate::{
    addresses::AddressRules,
    clients::{
        Endpoint, elasticsearch,
        postgres::{ConnectionIdentity, Database},
        redis,
    },
    read_stores::{CheckpointStore, ElasticsearchStore, RedisStore},
};

#[derive(Default)]
pub(super) struct Opened {
    /// With events or with checkpoints.
    databases: HashMap<ConnectionIdentity, Arc<Database>>,
    elasticsearch: HashMap<elasticsearch::ConnectionIdentity, Arc<ElasticsearchStore>>,
    redis: HashMap<redis::ConnectionIdentity, Arc<RedisStore>>,
}

impl Opened {
    /// From now on these are asked: connections to others are closed when their last user is gone.
    pub(super) fn follow(&mut self, endpoints: HashSet<Endpoint>, addresses: &Arc<AddressRules>) {
        self.databases.retain(|identity, _| endpoints.contains(&Endpoint::Postgres(identity.clone())));
        self.elasticsearch.retain(|identity, _| endpoints.contains(&Endpoint::Elasticsearch(identity.clone())));
        self.redis.retain(|identity, _| endpoints.contains(&Endpoint::Redis(identity.clone())));
        for endpoint in endpoints {
            match endpoint {
                Endpoint::Postgres(identity) => {
                    self.databases
                        .entry(identity.clone())
                        .or_insert_with(|| Arc::new(Database::new(identity, Arc::clone(addresses))));
                }
                Endpoint::Redis(identity) => {
                    self.redis
                        .entry(identity.clone())
                        .or_insert_with(|| Arc::new(RedisStore::new(identity, Arc::clone(addresses))));
                }
                Endpoint::Elasticsearch(identity) => {
                    self.elasticsearch
                        .entry(identity.clone())
                        .or_insert_with(|| Arc::new(ElasticsearchStore::new(identity, Arc::clone(addresses))));
                }
                Endpoint::Kafka(_)
                | Endpoint::KurrentDb(_)
                | Endpoint::Nats(_)
                | Endpoint::Prometheus(_)
                | Endpoint::Scrape(_)
                | Endpoint::WorkerPods(_)
                | Endpoint::RabbitMq(_) => {}
            }
        }
    }

    /// A PostgreSQL database.
    pub(super) fn database(&self, identity: &ConnectionIdentity) -> Option<Arc<Database>> {
        self.databases.get(identity).map(Arc::clone)
    }

    /// The read store on this server; `None` where it holds events only.
    pub(super) fn store(&self, endpoint: &Endpoint) -> Option<CheckpointStore> {
        match endpoint {
            Endpoint::Postgres(identity) => self.database(identity).map(CheckpointStore::Postgres),
            Endpoint::Redis(identity) => self.redis.get(identity).cloned().map(CheckpointStore::Redis),
            Endpoint::Elasticsearch(identity) => {
                self.elasticsearch.get(identity).cloned().map(CheckpointStore::Elasticsearch)
            }
            Endpoint::Kafka(_)
            | Endpoint::KurrentDb(_)
            | Endpoint::Nats(_)
            | Endpoint::Prometheus(_)
            | Endpoint::Scrape(_)
            | Endpoint::WorkerPods(_)
            | Endpoint::RabbitMq(_) => None,
        }
    }
}
