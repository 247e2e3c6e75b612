//! Keeps one polling task a source in step with the Projections and their Secrets.

use std::{
    collections::HashSet,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, watch},
    time::{sleep, sleep_until},
};

use super::{
    SamplerMetrics, Secrets,
    board::Reported,
    grouping::{Group, Groups, group},
    opened::Opened,
    passed_over::Memories,
    poll::Work,
    secrets::SecretCache,
    store_board::StoreReport,
    stores::StoreTasks,
    tasks::Tasks,
};
use crate::{
    addresses::AddressRules,
    api::{CheckpointRows, Projection},
    clients::{
        Endpoint, http_settings::HttpIdentity, kafka, kurrentdb, nats, postgres::ConnectionIdentity, rabbitmq, redis,
        scrape,
    },
    measure::{MeasureError, RunKey},
    resolve::{ConnectionName, Resolved, ResolvedSource, resolve, run_of},
    snapshot::valid_for,
    sources::{
        Ask, CheckpointQuery,
        kafka::{KafkaProbe, Question as KafkaQuestion},
        kurrentdb::{KurrentDbProbe, Question as KurrentDbQuestion},
        nats::{self as nats_source, NatsProbe},
        postgres::{PostgresProbe, Question},
        prometheus::{self as prometheus_source, PrometheusProbe},
        rabbitmq::{self as rabbitmq_source, RabbitMqProbe},
        redis::{self as redis_source, RedisProbe},
        scrape::{PodsProbe, ScrapeProbe},
    },
    worker_pods::WorkerPods,
};

/// Old Secrets are looked for this often.
const REFRESH_EVERY: Duration = Duration::from_secs(5);
/// Changes within this time are planned together.
const PLAN_GAP: Duration = Duration::from_millis(100);

type Known = Vec<Arc<Projection>>;

pub(super) struct Planner {
    secrets: Arc<dyn Secrets>,
    cache: SecretCache,
    reports: mpsc::UnboundedSender<Reported>,
    metrics: Arc<SamplerMetrics>,
    addresses: Arc<AddressRules>,
    started: Instant,
    resolved: Vec<Resolved>,
    opened: Opened,
    stores: StoreTasks,
    postgres: Tasks<ConnectionIdentity, PostgresProbe>,
    passed_over: Memories,
    rabbitmq: Tasks<rabbitmq::ConnectionIdentity, RabbitMqProbe>,
    redis: Tasks<redis::ConnectionIdentity, RedisProbe>,
    kafka: Tasks<kafka::Settings, KafkaProbe>,
    kurrentdb: Tasks<kurrentdb::ConnectionIdentity, KurrentDbProbe>,
    nats: Tasks<nats::ConnectionIdentity, NatsProbe>,
    prometheus: Tasks<HttpIdentity, PrometheusProbe>,
    scrape: Tasks<HttpIdentity, ScrapeProbe>,
    worker_pods: Tasks<scrape::PodPages, PodsProbe>,
    pods: Arc<dyn WorkerPods>,
}

impl Planner {
    pub(super) fn new(
        secrets: Arc<dyn Secrets>,
        reports: mpsc::UnboundedSender<Reported>,
        store_reports: mpsc::UnboundedSender<StoreReport>,
        metrics: Arc<SamplerMetrics>,
        addresses: Arc<AddressRules>,
        pods: Arc<dyn WorkerPods>,
    ) -> Self {
        Self {
            secrets,
            cache: SecretCache::default(),
            reports,
            metrics,
            addresses,
            started: Instant::now(),
            resolved: Vec::new(),
            opened: Opened::default(),
            stores: StoreTasks::new(store_reports),
            postgres: Tasks::default(),
            passed_over: Memories::default(),
            rabbitmq: Tasks::default(),
            redis: Tasks::default(),
            kafka: Tasks::default(),
            kurrentdb: Tasks::default(),
            nats: Tasks::default(),
            prometheus: Tasks::default(),
            scrape: Tasks::default(),
            worker_pods: Tasks::default(),
            pods,
        }
    }

    /// Runs until `known` is dropped. `refusals` names projections whose database did not accept the user.
    pub(super) async fn run(
        mut self,
        mut known: watch::Receiver<Known>,
        mut refusals: mpsc::UnboundedReceiver<RunKey>,
    ) {
        let mut refused = Vec::new();
        let mut news = true;
        loop {
            if news {
                let projections = known.borrow_and_update().clone();
                self.gather(&projections);
            }
            let needed = self.resolved.iter().flat_map(Resolved::connections).cloned().collect();
            if self.cache.refresh(needed, &self.secrets).await || news {
                self.plan();
            }
            news = false;
            let refresh_at = tokio::time::Instant::now() + REFRESH_EVERY;
            sleep(PLAN_GAP).await;
            tokio::select! {
                changed = known.changed() => match changed {
                    Ok(()) => news = true,
                    Err(_) => return,
                },
                _ = refusals.recv_many(&mut refused, 1_024) => {
                    let keys: HashSet<RunKey> = refused.drain(..).collect();
                    let theirs = self.resolved.iter().filter(|resolved| keys.contains(&resolved.key));
                    let theirs: HashSet<ConnectionName> = theirs.flat_map(Resolved::connections).cloned().collect();
                    self.cache.distrust(theirs);
                }
                () = sleep_until(refresh_at) => {}
            }
        }
    }

    fn gather(&mut self, projections: &[Arc<Projection>]) {
        self.resolved.clear();
        self.passed_over.retain(projections.iter().map(AsRef::as_ref));
        for projection in projections {
            match resolve(projection) {
                Ok(resolved) => {
                    self.passed_over.begin(&resolved, projection);
                    self.resolved.push(resolved);
                }
                Err(unknown) => self.report(
                    run_of(projection),
                    projection.metadata.uid.as_deref().unwrap_or_default().into(),
                    projection.metadata.generation.unwrap_or_default(),
                    unknown,
                ),
            }
        }
    }

    fn plan(&mut self) {
        let Groups { sources, failures, endpoints } = group(self.resolved.clone(), &self.cache.endpoints());
        for (Resolved { key, uid, generation, .. }, error) in failures {
            self.report(key, uid, generation, error);
        }
        // A rotated password makes another endpoint: its tasks and connections end here, and only its.
        self.postgres.retain(|identity| sources.contains_key(&Endpoint::Postgres(identity.clone())));
        self.rabbitmq.retain(|identity| sources.contains_key(&Endpoint::RabbitMq(identity.clone())));
        self.redis.retain(|identity| sources.contains_key(&Endpoint::Redis(identity.clone())));
        self.kafka.retain(|settings| sources.contains_key(&Endpoint::Kafka(settings.clone())));
        self.kurrentdb.retain(|identity| sources.contains_key(&Endpoint::KurrentDb(identity.clone())));
        self.nats.retain(|identity| sources.contains_key(&Endpoint::Nats(identity.clone())));
        self.worker_pods.retain(|pages| sources.contains_key(&Endpoint::WorkerPods(pages.clone())));
        self.scrape.retain(|identity| sources.contains_key(&Endpoint::Scrape(identity.clone())));
        self.prometheus.retain(|identity| sources.contains_key(&Endpoint::Prometheus(identity.clone())));
        self.metrics.servers.store(u64::try_from(endpoints.len()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.opened.follow(endpoints, &self.addresses);
        let members = sources.values().flat_map(|group| &group.members);
        let placed: Vec<(RunKey, Endpoint)> =
            members.filter_map(|(resolved, store)| Some((resolved.key.clone(), store.clone()?))).collect();
        self.stores.assign(&placed, |endpoint| self.opened.store(endpoint));
        for (endpoint, group) in sources {
            self.start(endpoint, group);
        }
    }

    /// Sees to it that the projections of this server are measured: one arm a kind.
    fn start(&mut self, endpoint: Endpoint, group: Group) {
        let whole = endpoint.clone();
        match endpoint {
            // It holds no events.
            Endpoint::Elasticsearch(_) => {}
            Endpoint::Postgres(identity) => {
                let work = self.work(&whole, group, |Resolved { key, source, checkpoint, .. }| match source {
                    ResolvedSource::Postgres { question, .. } => {
                        let rows = checkpoint.as_ref().map_or(CheckpointRows::One, |location| location.rows().clone());
                        Some(Question::new(question, rows, self.passed_over.of(key)))
                    }
                    _ => None,
                });
                let Some(database) = self.opened.database(&identity) else { return };
                let started = self.started;
                let probe = || PostgresProbe::new(database, started);
                self.postgres.assign(identity, work, probe, &self.reports, &self.metrics);
            }
            Endpoint::RabbitMq(identity) => {
                let work = self.work(&whole, group, |resolved| match &resolved.source {
                    ResolvedSource::RabbitMq { vhost, queues, streams, dead_letter_queues, .. } => {
                        Some(rabbitmq_source::Question {
                            vhost: vhost.clone(),
                            queues: queues.clone(),
                            streams: streams.clone(),
                            dead_letter_queues: dead_letter_queues.clone(),
                        })
                    }
                    _ => None,
                });
                let (settings, addresses) = (identity.settings().clone(), Arc::clone(&self.addresses));
                let started = self.started;
                let probe = || RabbitMqProbe::new(settings, addresses, started);
                self.rabbitmq.assign(identity, work, probe, &self.reports, &self.metrics);
            }
            Endpoint::Redis(identity) => {
                let work = self.work(&whole, group, |resolved| match &resolved.source {
                    ResolvedSource::Redis { streams, lists, .. } => {
                        Some(redis_source::Question { streams: streams.clone(), lists: lists.clone() })
                    }
                    _ => None,
                });
                let (settings, addresses) = (identity.settings().clone(), Arc::clone(&self.addresses));
                let started = self.started;
                let probe = || RedisProbe::new(settings, addresses, started);
                self.redis.assign(identity, work, probe, &self.reports, &self.metrics);
            }
            Endpoint::Kafka(settings) => {
                let work = self.work(&whole, group, |resolved| match &resolved.source {
                    ResolvedSource::Kafka { question, .. } => Some(KafkaQuestion::new(&resolved.key, question)),
                    _ => None,
                });
                let (started, to) = (self.started, settings.clone());
                let addresses = Arc::clone(&self.addresses);
                let probe = || KafkaProbe::new(to, addresses, started);
                self.kafka.assign(settings, work, probe, &self.reports, &self.metrics);
            }
            Endpoint::KurrentDb(identity) => {
                let work = self.work(&whole, group, |resolved| match &resolved.source {
                    ResolvedSource::KurrentDb { subscriptions, .. } => Some(KurrentDbQuestion::from(subscriptions)),
                    _ => None,
                });
                let (settings, started) = (identity.settings().clone(), self.started);
                let addresses = Arc::clone(&self.addresses);
                let probe = || KurrentDbProbe::new(settings, addresses, started);
                self.kurrentdb.assign(identity, work, probe, &self.reports, &self.metrics);
            }
            Endpoint::Nats(identity) => {
                let work = self.work(&whole, group, |resolved| match &resolved.source {
                    ResolvedSource::Nats { consumers, domain, .. } => {
                        Some(nats_source::Question { consumers: consumers.clone(), domain: domain.clone() })
                    }
                    _ => None,
                });
                let (settings, started) = (identity.settings().clone(), self.started);
                let probe = || NatsProbe::new(settings, started);
                self.nats.assign(identity, work, probe, &self.reports, &self.metrics);
            }
            Endpoint::WorkerPods(pages) => {
                let work = self.work(&whole, group, |resolved| match &resolved.source {
                    ResolvedSource::Scrape { metrics, .. } => Some(metrics.clone()),
                    _ => None,
                });
                let (pods, addresses, started) = (&self.pods, Arc::clone(&self.addresses), self.started);
                let to = pages.clone();
                let probe = || PodsProbe::new(to.clone(), pods.follow(&to.workload), addresses, started);
                self.worker_pods.assign(pages, work, probe, &self.reports, &self.metrics);
            }
            Endpoint::Scrape(identity) => {
                let work = self.work(&whole, group, |resolved| match &resolved.source {
                    ResolvedSource::Scrape { metrics, .. } => Some(metrics.clone()),
                    _ => None,
                });
                let (settings, addresses) = (identity.settings().clone(), Arc::clone(&self.addresses));
                let started = self.started;
                let probe = || ScrapeProbe::new(settings, addresses, started);
                self.scrape.assign(identity, work, probe, &self.reports, &self.metrics);
            }
            Endpoint::Prometheus(identity) => {
                let work = self.work(&whole, group, |resolved| match &resolved.source {
                    ResolvedSource::Prometheus { tenant, queries, .. } => {
                        Some(prometheus_source::Question { tenant: tenant.clone(), queries: queries.clone() })
                    }
                    _ => None,
                });
                let (settings, addresses) = (identity.settings().clone(), Arc::clone(&self.addresses));
                let started = self.started;
                let probe = || PrometheusProbe::new(&settings, &addresses, started);
                self.prometheus.assign(identity, work, probe, &self.reports, &self.metrics);
            }
        }
    }

    /// What one server is asked: `question` makes it of a source of the server's kind.
    fn work<Q>(
        &self,
        endpoint: &Endpoint,
        Group { members, interval }: Group,
        question: impl Fn(&Resolved) -> Option<Q>,
    ) -> Work<Q> {
        let asks = members.into_iter().filter_map(|(resolved, store)| {
            let question = question(&resolved)?;
            let Resolved { key, uid, generation, checkpoint, checkpoint_in_source: in_source, .. } = resolved;
            let read_store = store.as_ref().map(|endpoint| endpoint.server().into());
            let store = if in_source.is_some() { Some(endpoint.clone()) } else { store };
            let store = store.and_then(|endpoint| self.opened.store(&endpoint));
            let checkpoint =
                checkpoint.zip(store).map(|(location, store)| CheckpointQuery { store, location, in_source });
            Some(Arc::new(Ask { key, uid, generation, read_store, checkpoint, question }))
        });
        Work { asks: asks.collect(), interval }
    }

    fn report(&self, key: RunKey, uid: Arc<str>, generation: i64, unknown: MeasureError) {
        self.metrics.count(false);
        let valid_until = Instant::now() + valid_for(REFRESH_EVERY);
        // The receiver is gone when the operator ends.
        let _ =
            self.reports.send(Reported { key, uid, generation, read_store: None, result: Err(unknown), valid_until });
    }
}
