//! Who is sampled when: groups Projections by server, polls each server in a task of its own, and publishes what it finds.
//!
//! Reads Projections and Secrets, never writes to the cluster. Everything that decides is in [`grouping`] and [`observation_store`], which do no IO.

mod allowed_endpoints;
mod budgets;
mod checkpoints;
mod grouping;
mod known_stores;
mod observation_store;
mod opened;
mod passed_over;
mod planner;
mod poll;
mod secrets;
mod source_tasks;
mod stores;
mod strain;
mod tasks;
mod workers;

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

pub use secrets::{SecretData, Secrets};
pub use workers::{WatchedWorkers, WorkerNumbers};

use crate::{
    addresses::AddressRules,
    api::{Projection, Reason},
    leader_required::Following,
    measure::{ProjectionKey, RunKey},
    read_stores::OpenStores,
    read_your_writes::{Done, Waiters},
    runs::Runs,
    snapshot::SharedSnapshot,
    worker_pods::{UnwatchedPods, WorkerPods},
};
use observation_store::{ObservationStore, Reported, Taken};

/// Snapshots are published no more often than this.
const PUBLISH_EVERY: Duration = Duration::from_millis(50);
/// Observations that became too old are looked for this often.
const EXPIRE_EVERY: Duration = Duration::from_secs(1);
/// Reports that are taken in before a snapshot is published.
const REPORTS_AT_ONCE: usize = 4_096;

/// What the sampler works with.
pub struct SamplerInputs {
    /// The runs of the Projections. The sampler waits until these have been listed once.
    pub runs: Runs,
    /// Learns which read stores are open.
    pub read_stores: OpenStores,
    /// Changes its value when any Projection changes.
    pub changed: watch::Receiver<u64>,
    /// Whether another replica leads: it says in the status how many workers it asks for.
    pub following: watch::Receiver<Following>,
    /// Where connection strings come from.
    pub secrets: Arc<dyn Secrets>,
    /// Which addresses may be asked over HTTP.
    pub addresses: Arc<AddressRules>,
    /// Where the observations go.
    pub snapshot: SharedSnapshot,
    /// Told which Projection's observation has changed: at once when it asks for action, every 5 s at most for mere numbers. When it is full
    /// the sampler tries again later; it never waits for it.
    pub changes: mpsc::Sender<ProjectionKey>,
    /// Becomes true, and stays so, when each known Projection has a first sample or a known failure.
    pub first_round: watch::Sender<bool>,
    /// Counters.
    pub metrics: Arc<SamplerMetrics>,
    /// Those who wait for a read model: what they wait for is measured more often, and they are told.
    pub waiters: Waiters,
}

/// What the sampler did so far, for a metrics page.
#[derive(Debug, Default)]
pub struct SamplerMetrics {
    /// Samples taken, one a projection and poll.
    pub samples: AtomicU64,
    /// Failures instead of samples.
    pub failures: AtomicU64,
    /// Polls of a source.
    pub polls: AtomicU64,
    /// Time spent in polls, in microseconds.
    pub poll_microseconds: AtomicU64,
    /// Polls that a source asked for (`NOTIFY`).
    pub pushes: AtomicU64,
    /// Distinct event sources and read stores that Projections name, by server and credentials.
    pub servers: AtomicU64,
    /// Snapshots published.
    pub snapshots: AtomicU64,
}

impl SamplerMetrics {
    fn count(&self, good: bool) {
        let counter = if good { &self.samples } else { &self.failures };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Samples until `shutdown` is ready; then all connections are closed. The numbers of workers are those of the statuses, and no pods are known.
pub async fn run(inputs: SamplerInputs, shutdown: impl Future<Output = ()>) {
    run_with_watches(inputs, None, Arc::new(UnwatchedPods), shutdown).await;
}

/// The same, with the numbers of workers from `workers`, where they come seconds earlier, and the pods that `pods` follows.
pub async fn run_with_watches(
    inputs: SamplerInputs,
    workers: Option<Arc<dyn WatchedWorkers>>,
    pods: Arc<dyn WorkerPods>,
    shutdown: impl Future<Output = ()>,
) {
    let SamplerInputs {
        runs,
        read_stores,
        mut changed,
        mut following,
        secrets,
        addresses,
        snapshot,
        changes,
        first_round,
        metrics,
        waiters,
    } = inputs;
    let mut shutdown = std::pin::pin!(shutdown);
    tokio::select! {
        () = &mut shutdown => return,
        ready = runs.wait_until_ready() => if ready.is_err() {
            tracing::error!("the watch of Projections ended before it began: nothing is sampled");
            return;
        },
    }
    let (report_tx, mut reports_rx) = mpsc::unbounded_channel::<Reported>();
    let (store_report_tx, mut store_reports_rx) = mpsc::unbounded_channel();
    let (refused_tx, refused_rx) = mpsc::unbounded_channel::<RunKey>();
    let (known_tx, known_rx) = watch::channel(Vec::new());
    let polling = poll::Polling { reports: report_tx, metrics: Arc::clone(&metrics), waiters: waiters.clone() };
    let planner = planner::Planner::new(secrets, polling, store_report_tx, addresses, pods, read_stores);
    let _planner = AbortOnDrop(tokio::spawn(planner.run(known_rx, refused_rx)));
    let store = ObservationStore::with_workers(workers);
    let mut observed = Observed { store, runs, snapshot, changes, first_round, metrics, waiters, known_tx, refused_tx };
    let mut publish_at = Some(Instant::now());
    let mut expired_until = std::time::Instant::now();
    let mut expire = interval(EXPIRE_EVERY);
    expire.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut resync = true;
    let mut buffer = Vec::new();
    loop {
        if std::mem::take(&mut resync) {
            changed.mark_unchanged();
            observed.follow(following.borrow_and_update().clone());
        }
        tokio::select! {
            () = &mut shutdown => return,
            result = changed.changed() => match result {
                Ok(()) => resync = true,
                // The sender of changes is gone: the operator is ending.
                Err(_) => return,
            },
            changed = following.changed() => match changed {
                Ok(()) => resync = true,
                Err(_) => return,
            },
            count = reports_rx.recv_many(&mut buffer, REPORTS_AT_ONCE) => {
                if count == 0 {
                    tracing::error!("the sampler's planner ended: nothing is sampled any more");
                    return;
                }
                buffer.drain(..).for_each(|reported| observed.take(reported));
            }
            Some(report) = store_reports_rx.recv() => {
                observed.store.take_store(report, std::time::Instant::now());
            }
            () = sleep_until(publish_at.unwrap_or_else(Instant::now)), if publish_at.is_some() => {
                publish_at = observed.publish().then(|| Instant::now() + PUBLISH_EVERY);
                continue;
            }
            _ = expire.tick() => {
                let now = std::time::Instant::now();
                observed.store.expire(expired_until, now);
                expired_until = now;
            }
        }
        publish_at = publish_at.or_else(|| Some(Instant::now()));
    }
}

/// What is known of all Projections, and who is told of it.
struct Observed {
    store: ObservationStore,
    runs: Runs,
    snapshot: SharedSnapshot,
    changes: mpsc::Sender<ProjectionKey>,
    first_round: watch::Sender<bool>,
    metrics: Arc<SamplerMetrics>,
    waiters: Waiters,
    /// Tells the planner which Projections there are.
    known_tx: watch::Sender<Vec<Arc<Projection>>>,
    /// Tells the planner whose login was refused.
    refused_tx: mpsc::UnboundedSender<RunKey>,
}

impl Observed {
    /// Follows the Projections that there are now.
    fn follow(&mut self, following: Following) {
        let all = self.runs.all();
        if self.store.sync(&all, following) {
            self.known_tx.send_replace(all);
        }
    }

    /// Takes in an answer.
    fn take(&mut self, reported: Reported) {
        if reported.result.as_ref().is_err_and(|unknown| unknown.reason == Reason::AuthenticationFailed) {
            // The planner ends only with this task.
            let _ = self.refused_tx.send(reported.key.clone());
        }
        let Some(projection) = self.runs.get(&reported.key) else { return };
        let key = reported.key.clone();
        let taken = self.store.take(reported, &projection, std::time::Instant::now());
        if taken != Taken::Ignored
            && let Some(observation) = self.store.observation(&key)
        {
            self.waiters.tell(&key, || match (&observation.failure, &observation.measured) {
                (Some(failure), _) => Err(failure.clone()),
                (None, measured) => {
                    Ok(measured.as_ref().map(|measured| Done::of(&measured.sample)).unwrap_or_default())
                }
            });
        }
    }

    /// Publishes a snapshot where there is anything new, and tells who waits for that. Returns whether there was.
    fn publish(&mut self) -> bool {
        let newer = self.store.snapshot();
        let is_newer = newer.is_some();
        if let Some(newer) = newer {
            self.snapshot.publish(newer);
            self.metrics.snapshots.fetch_add(1, Ordering::Relaxed);
        }
        // Only after publishing: the receivers look there.
        let changes = &self.changes;
        self.store.tell(|key| !matches!(changes.try_send(key), Err(mpsc::error::TrySendError::Full(_))));
        if self.store.all_answered() {
            self.first_round.send_if_modified(|done| !std::mem::replace(done, true));
        }
        is_newer
    }
}

/// Ends a task together with its owner.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
