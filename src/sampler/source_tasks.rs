//! The polling tasks of every kind of source, one a server, and what each kind is asked: one arm and one function a kind.

use std::{collections::HashMap, sync::Arc, time::Instant};

use super::{
    grouping::Group,
    opened::Opened,
    passed_over::Memories,
    poll::{Polling, Work},
    tasks::Tasks,
};
use crate::{
    addresses::AddressRules,
    api::CheckpointRows,
    clients::{
        Endpoint, http_settings::HttpIdentity, kafka, kurrentdb, nats, postgres::ConnectionIdentity, rabbitmq, redis,
        scrape,
    },
    resolve::{Resolved, ResolvedSource},
    sources::{
        Ask, CheckpointQuery,
        kafka::{KafkaProbe, Question as KafkaQuestion},
        kurrentdb::{KurrentDbProbe, Question as KurrentDbQuestion},
        nats::{NatsProbe, Question as NatsQuestion},
        postgres::{PostgresProbe, Question as PostgresQuestion},
        prometheus::{PrometheusProbe, Question as PrometheusQuestion},
        rabbitmq::{Question as RabbitMqQuestion, RabbitMqProbe},
        redis::{Question as RedisQuestion, RedisProbe},
        scrape::{PodsProbe, Question as ScrapeQuestion, ScrapeProbe},
    },
    worker_pods::WorkerPods,
};

/// The tasks.
pub(super) struct SourceTasks {
    polling: Polling,
    addresses: Arc<AddressRules>,
    pods: Arc<dyn WorkerPods>,
    /// The beginning of the clock of samples.
    started: Instant,
    postgres: Tasks<ConnectionIdentity, PostgresProbe>,
    rabbitmq: Tasks<rabbitmq::ConnectionIdentity, RabbitMqProbe>,
    redis: Tasks<redis::ConnectionIdentity, RedisProbe>,
    kafka: Tasks<kafka::Settings, KafkaProbe>,
    kurrentdb: Tasks<kurrentdb::ConnectionIdentity, KurrentDbProbe>,
    nats: Tasks<nats::ConnectionIdentity, NatsProbe>,
    prometheus: Tasks<HttpIdentity, PrometheusProbe>,
    scrape: Tasks<HttpIdentity, ScrapeProbe>,
    worker_pods: Tasks<scrape::PodPages, PodsProbe>,
}

impl SourceTasks {
    /// None yet. `addresses`: which may be asked over HTTP.
    pub(super) fn new(polling: Polling, addresses: Arc<AddressRules>, pods: Arc<dyn WorkerPods>) -> Self {
        Self {
            polling,
            addresses,
            pods,
            started: Instant::now(),
            postgres: Tasks::default(),
            rabbitmq: Tasks::default(),
            redis: Tasks::default(),
            kafka: Tasks::default(),
            kurrentdb: Tasks::default(),
            nats: Tasks::default(),
            prometheus: Tasks::default(),
            scrape: Tasks::default(),
            worker_pods: Tasks::default(),
        }
    }

    /// Ends the tasks, and with them the connections, of servers that are not among `sources`: a rotated password makes another endpoint.
    pub(super) fn retain(&mut self, sources: &HashMap<Endpoint, Group>) {
        self.postgres.retain(|identity| sources.contains_key(&Endpoint::Postgres(identity.clone())));
        self.rabbitmq.retain(|identity| sources.contains_key(&Endpoint::RabbitMq(identity.clone())));
        self.redis.retain(|identity| sources.contains_key(&Endpoint::Redis(identity.clone())));
        self.kafka.retain(|settings| sources.contains_key(&Endpoint::Kafka(settings.clone())));
        self.kurrentdb.retain(|identity| sources.contains_key(&Endpoint::KurrentDb(identity.clone())));
        self.nats.retain(|identity| sources.contains_key(&Endpoint::Nats(identity.clone())));
        self.worker_pods.retain(|pages| sources.contains_key(&Endpoint::WorkerPods(pages.clone())));
        self.scrape.retain(|identity| sources.contains_key(&Endpoint::Scrape(identity.clone())));
        self.prometheus.retain(|identity| sources.contains_key(&Endpoint::Prometheus(identity.clone())));
    }

    /// Gives the task of this server its work, and starts it where there is none.
    pub(super) fn assign(&mut self, endpoint: Endpoint, group: Group, opened: &Opened, passed_over: &Memories) {
        let (whole, started) = (endpoint.clone(), self.started);
        let addresses = || Arc::clone(&self.addresses);
        let polling = &self.polling;
        match endpoint {
            // It holds no events.
            Endpoint::Elasticsearch(_) => {}
            Endpoint::Postgres(identity) => {
                let work = work(opened, &whole, group, |resolved| postgres_question(resolved, passed_over));
                let Some(database) = opened.database(&identity) else { return };
                self.postgres.assign(identity, work, || PostgresProbe::new(database, started), polling);
            }
            Endpoint::RabbitMq(identity) => {
                let (work, settings) = (work(opened, &whole, group, rabbitmq_question), identity.settings().clone());
                let probe = || RabbitMqProbe::new(settings, addresses(), started);
                self.rabbitmq.assign(identity, work, probe, polling);
            }
            Endpoint::Redis(identity) => {
                let (work, settings) = (work(opened, &whole, group, redis_question), identity.settings().clone());
                let probe = || RedisProbe::new(settings, addresses(), started);
                self.redis.assign(identity, work, probe, polling);
            }
            Endpoint::Kafka(settings) => {
                let (work, to) = (work(opened, &whole, group, kafka_question), settings.clone());
                let probe = || KafkaProbe::new(to, addresses(), started);
                self.kafka.assign(settings, work, probe, polling);
            }
            Endpoint::KurrentDb(identity) => {
                let (work, settings) = (work(opened, &whole, group, kurrentdb_question), identity.settings().clone());
                let probe = || KurrentDbProbe::new(settings, addresses(), started);
                self.kurrentdb.assign(identity, work, probe, polling);
            }
            Endpoint::Nats(identity) => {
                let (work, settings) = (work(opened, &whole, group, nats_question), identity.settings().clone());
                let probe = || NatsProbe::new(settings, addresses(), started);
                self.nats.assign(identity, work, probe, polling);
            }
            Endpoint::WorkerPods(pages) => {
                let (work, to) = (work(opened, &whole, group, scrape_question), pages.clone());
                let probe = || PodsProbe::new(to.clone(), self.pods.follow(&to.workload), addresses(), started);
                self.worker_pods.assign(pages, work, probe, polling);
            }
            Endpoint::Scrape(identity) => {
                let (work, settings) = (work(opened, &whole, group, scrape_question), identity.settings().clone());
                let probe = || ScrapeProbe::new(settings, addresses(), started);
                self.scrape.assign(identity, work, probe, polling);
            }
            Endpoint::Prometheus(identity) => {
                let (work, settings) = (work(opened, &whole, group, prometheus_question), identity.settings().clone());
                let probe = || PrometheusProbe::new(&settings, &addresses(), started);
                self.prometheus.assign(identity, work, probe, polling);
            }
        }
    }
}

/// What one server is asked: `question` makes it of a source of the server's kind.
fn work<Q>(
    opened: &Opened,
    endpoint: &Endpoint,
    Group { members, interval }: Group,
    question: impl Fn(&Resolved) -> Option<Q>,
) -> Work<Q> {
    let asks = members.into_iter().filter_map(|(resolved, store)| {
        let question = question(&resolved)?;
        let Resolved { key, uid, generation, checkpoint, checkpoint_in_source: in_source, .. } = resolved;
        let read_store = store.as_ref().map(|endpoint| endpoint.server().into());
        let store = if in_source.is_some() { Some(endpoint.clone()) } else { store };
        let store = store.and_then(|endpoint| opened.store(&endpoint));
        let checkpoint = checkpoint.zip(store).map(|(location, store)| CheckpointQuery { store, location, in_source });
        Some(Arc::new(Ask { key, uid, generation, read_store, checkpoint, question }))
    });
    Work { asks: asks.collect(), interval }
}

fn postgres_question(resolved: &Resolved, passed_over: &Memories) -> Option<PostgresQuestion> {
    let ResolvedSource::Postgres { question, .. } = &resolved.source else { return None };
    let location = resolved.checkpoint.as_ref();
    let rows = location.map_or(CheckpointRows::One, |location| location.rows().clone());
    Some(PostgresQuestion::new(question, rows, passed_over.of(&resolved.key)))
}

fn rabbitmq_question(resolved: &Resolved) -> Option<RabbitMqQuestion> {
    let ResolvedSource::RabbitMq { connection: _, vhost, queues, streams, dead_letter_queues } = &resolved.source
    else {
        return None;
    };
    let (vhost, queues, streams) = (vhost.clone(), queues.clone(), streams.clone());
    Some(RabbitMqQuestion { vhost, queues, streams, dead_letter_queues: dead_letter_queues.clone() })
}

fn redis_question(resolved: &Resolved) -> Option<RedisQuestion> {
    let ResolvedSource::Redis { connection: _, streams, lists } = &resolved.source else { return None };
    Some(RedisQuestion { streams: streams.clone(), lists: lists.clone() })
}

fn kafka_question(resolved: &Resolved) -> Option<KafkaQuestion> {
    let ResolvedSource::Kafka { connection: _, question } = &resolved.source else { return None };
    Some(KafkaQuestion::new(&resolved.key, question))
}

fn kurrentdb_question(resolved: &Resolved) -> Option<KurrentDbQuestion> {
    let ResolvedSource::KurrentDb { connection: _, subscriptions } = &resolved.source else { return None };
    Some(KurrentDbQuestion::from(subscriptions))
}

fn nats_question(resolved: &Resolved) -> Option<NatsQuestion> {
    let ResolvedSource::Nats { connection: _, consumers, domain } = &resolved.source else { return None };
    Some(NatsQuestion { consumers: consumers.clone(), domain: domain.clone() })
}

fn scrape_question(resolved: &Resolved) -> Option<ScrapeQuestion> {
    let ResolvedSource::Scrape { connection: _, metrics } = &resolved.source else { return None };
    Some(metrics.clone())
}

fn prometheus_question(resolved: &Resolved) -> Option<PrometheusQuestion> {
    let ResolvedSource::Prometheus { connection: _, tenant, queries } = &resolved.source else { return None };
    Some(PrometheusQuestion { tenant: tenant.clone(), queries: queries.clone() })
}
