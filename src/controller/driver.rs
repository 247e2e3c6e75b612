//! Runs the reconcile loop: a bounded number of Projections at once, never the same one twice at once, and only while this replica leads.

use std::{
    future::Future,
    sync::{Arc, Mutex},
    time::Instant,
};

use kube::{Client, runtime::reflector::Store};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{sleep_until, timeout},
};

use super::{
    apply::Applier,
    carry_out::Executor,
    existing::ExistingWorkloads,
    gather::Gatherer,
    index::LiveIndex,
    plan::{autoscaler::ServerAbilities, builtin_pods::WorkerDefaults},
    pod_look::PodLook,
    queue::{Ended, Queue},
    rebuild::Rebuilder,
    reconcile::Reconciler,
    status::{report::Reports, writer::StatusWriter},
};
use crate::{
    api::Projection, measure::ProjectionKey, metrics::ControllerMetrics, platform::registration::Unserved,
    rebuild::SwitchReaders, runs::Runs, snapshot::SharedSnapshot,
};

/// Projections reconciled at once.
const AT_ONCE: usize = 64;
/// A reconcile that takes longer has failed: an API server that hangs must not occupy a slot for ever.
const ROUND_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(60);

/// What the controller needs.
pub struct ControllerInputs {
    /// The API server.
    pub client: Client,
    /// This replica's name.
    pub identity: String,
    /// All Projections.
    pub projections: Store<Projection>,
    /// Their runs.
    pub runs: Runs,
    /// Leads readers from one version to another.
    pub readers: Arc<dyn SwitchReaders>,
    /// The objects made for the Projections, as the watches show them.
    pub index: LiveIndex,
    /// The workloads that Projections name, which are watched while this replica leads.
    pub existing: Arc<ExistingWorkloads>,
    /// What the sampler measured.
    pub snapshot: SharedSnapshot,
    /// Projections to reconcile, from the watches.
    pub triggers: mpsc::UnboundedReceiver<ProjectionKey>,
    /// Projections to reconcile, from the sampler.
    pub changes: mpsc::Receiver<ProjectionKey>,
    /// Whether this replica leads.
    pub leading: watch::Receiver<bool>,
    /// Whether everything has been listed once.
    pub synced: watch::Receiver<bool>,
    /// The operator's settings for the built-in projector's pods.
    pub workers: WorkerDefaults,
    /// What the API server can do.
    pub server: ServerAbilities,
    /// Which APIServices do not lead to this operator, once that is known.
    pub unserved: watch::Receiver<Option<Unserved>>,
    /// Counters.
    pub metrics: Arc<ControllerMetrics>,
}

/// Reconciles while leading, until `shutdown`.
pub async fn run(inputs: ControllerInputs, shutdown: impl Future<Output = ()>) {
    let ControllerInputs {
        client,
        identity,
        projections,
        runs,
        readers,
        index,
        snapshot,
        existing,
        mut triggers,
        mut changes,
        mut leading,
        mut synced,
        workers,
        server,
        mut unserved,
        metrics,
    } = inputs;
    let gatherer = Gatherer {
        client: client.clone(),
        projections: projections.clone(),
        runs,
        index: index.clone(),
        existing,
        snapshot,
        unserved: unserved.clone(),
    };
    let applier = Applier::new(client.clone(), index);
    let rebuilder = Rebuilder { readers, applier: applier.clone() };
    let executor = Executor { applier, workers, server, metrics: Arc::clone(&metrics) };
    let reconciler = Arc::new(Reconciler {
        gatherer,
        rebuilder,
        executor,
        pods: PodLook::new(client.clone()),
        writer: StatusWriter {
            reports: Reports::new(client, &identity),
            metrics: Arc::clone(&metrics),
            slots: Mutex::default(),
        },
        began: Instant::now(),
        memory: Mutex::default(),
    });
    let mut shutdown = std::pin::pin!(shutdown);
    let mut work = Work { reconciler, metrics, queue: Queue::default(), running: JoinSet::new() };
    let mut active = false;
    let mut all_concerned = false;
    loop {
        let should = *leading.borrow_and_update() && *synced.borrow_and_update();
        if should && (std::mem::take(&mut all_concerned) || !active) {
            for projection in projections.state() {
                let metadata = &projection.metadata;
                if let (Some(namespace), Some(name)) = (&metadata.namespace, &metadata.name) {
                    work.queue.push(ProjectionKey { namespace: namespace.as_str().into(), name: name.as_str().into() });
                }
            }
        } else if !should && active {
            work.stop();
        }
        active = should;
        if active {
            work.start();
        }
        let due = work.queue.next_due().filter(|_| active && work.running.len() < AT_ONCE);
        tokio::select! {
            () = &mut shutdown => break,
            changed = leading.changed() => if changed.is_err() { break },
            changed = synced.changed() => if changed.is_err() { break },
            changed = unserved.changed() => if changed.is_err() { break } else { all_concerned = true },
            Some(key) = triggers.recv() => if active { work.queue.push(key) },
            Some(key) = changes.recv() => if active { work.queue.push(key) },
            // After an abnormal end it is not known which Projection was being reconciled, so all of them start again.
            Some(done) = work.running.join_next() => if !work.ended(done) {
                work.stop();
                active = false;
            },
            () = sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {}
        }
    }
    work.stop();
}

struct Work {
    reconciler: Arc<Reconciler>,
    metrics: Arc<ControllerMetrics>,
    queue: Queue,
    running: JoinSet<(ProjectionKey, Ended)>,
}

impl Work {
    fn start(&mut self) {
        while self.running.len() < AT_ONCE {
            let Some(key) = self.queue.pop(Instant::now()) else { return };
            let (reconciler, metrics) = (Arc::clone(&self.reconciler), Arc::clone(&self.metrics));
            self.running.spawn(async move {
                let began = Instant::now();
                let ended = timeout(ROUND_TIMEOUT, reconciler.reconcile(&key, rand::random())).await;
                metrics.reconciles.inc();
                metrics.duration.observe(began.elapsed().as_secs_f64());
                let ended = ended.unwrap_or_else(|_| {
                    tracing::warn!("reconciling {key} took more than {} s and was given up", ROUND_TIMEOUT.as_secs());
                    metrics.failures.inc();
                    Ended::Failed
                });
                (key, ended)
            });
        }
    }

    fn ended(&mut self, done: Result<(ProjectionKey, Ended), tokio::task::JoinError>) -> bool {
        match done {
            Ok((key, ended)) => {
                self.queue.ended(key, ended, Instant::now(), rand::random());
                true
            }
            Err(error) => {
                tracing::error!("a reconcile ended abnormally: {error}");
                false
            }
        }
    }

    /// Stops all reconciles at once: another replica may lead, and write, by now.
    fn stop(&mut self) {
        self.running = JoinSet::new();
        self.queue = Queue::default();
        self.reconciler.forget();
    }
}

#[cfg(test)]
#[path = "driver_tests.rs"]
mod tests;
