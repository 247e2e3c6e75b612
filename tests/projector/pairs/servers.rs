//! The servers that all pairs share: those of the sources, and those of the read models, which end at once and start again.

use std::{sync::OnceLock, thread, time::Duration};

use async_nats::jetstream::Context;
use test_cluster::{Elasticsearch, Nats, Postgres, RabbitMq, Redis, elasticsearch::Distribution, kafka::Brokers};

use super::stores::Store;
use crate::{kurrentdb_server::server::Fake, nats_queues};

/// What Redis has confirmed is on its disk.
const DURABLE: &str = "appendonly yes\nappendfsync always\n";
/// How long queues do not answer before they end: what is handled then cannot be acknowledged, and comes again.
const SILENT: Duration = Duration::from_millis(300);

/// Of everything one.
pub(super) struct Servers {
    pub(super) sources: Sources,
    pub(super) stores: Stores,
}

/// Where events are.
pub(super) struct Sources {
    pub(super) postgres: Postgres,
    pub(super) kafka: &'static Brokers,
    pub(super) kurrentdb: Fake,
    pub(super) redis: Redis,
    pub(super) nats: Nats,
    pub(super) jetstream: Context,
    pub(super) rabbit: RabbitMq,
}

/// Where read models are.
pub(super) struct Stores {
    pub(super) postgres: Postgres,
    pub(super) redis: Redis,
    pub(super) search: Elasticsearch,
}

impl Servers {
    /// Starts all of them side by side.
    pub(super) async fn start() -> Self {
        static KAFKA: OnceLock<Brokers> = OnceLock::new();
        let nats = Nats::on_loopback().unwrap();
        let jetstream = nats_queues::jetstream(&nats).await;
        let kurrentdb = Fake::start().await;
        kurrentdb.database(|database| database.links_categories = true);
        tokio::task::block_in_place(|| {
            thread::scope(|scope| {
                let search = scope.spawn(|| Elasticsearch::on_loopback(Distribution::OpenSearch, &[]).unwrap());
                let rabbit = scope.spawn(|| RabbitMq::on_loopback().unwrap());
                let kafka = scope.spawn(|| KAFKA.get_or_init(|| Brokers::on_loopback(1).unwrap()));
                Self {
                    sources: Sources {
                        postgres: Postgres::on_loopback().unwrap(),
                        redis: Redis::with(DURABLE).unwrap(),
                        nats,
                        jetstream,
                        kurrentdb,
                        rabbit: rabbit.join().unwrap(),
                        kafka: kafka.join().unwrap(),
                    },
                    stores: Stores {
                        postgres: Postgres::on_loopback().unwrap(),
                        redis: Redis::with(DURABLE).unwrap(),
                        search: search.join().unwrap(),
                    },
                }
            })
        })
    }
}

impl Sources {
    /// Ends all of them at once, whatever they are doing, and starts them again with what they have stored.
    pub(super) fn restart(&mut self) {
        let Self { postgres, kafka, kurrentdb, redis, nats, rabbit, jetstream: _ } = self;
        redis.pause();
        nats.pause();
        rabbit.pause();
        thread::sleep(SILENT);
        kurrentdb.close_connections();
        thread::scope(|scope| {
            scope.spawn(|| rabbit.restart().unwrap());
            scope.spawn(|| {
                kafka.kill(1).unwrap();
                kafka.start(1).unwrap();
            });
            redis.restart().unwrap();
            nats.restart().unwrap();
            postgres.stop().unwrap();
            postgres.start().unwrap();
        });
    }
}

impl Stores {
    /// The same with that of the read models.
    pub(super) fn restart(&mut self, store: Store) {
        match store {
            Store::Postgres => {
                self.postgres.stop().unwrap();
                self.postgres.start().unwrap();
            }
            Store::Redis => self.redis.restart().unwrap(),
            Store::Elasticsearch => self.search.restart().unwrap(),
        }
    }
}
