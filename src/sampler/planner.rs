//! Keeps one polling task a source in step with the Projections and their Secrets.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, watch},
    time::{sleep, sleep_until},
};

use super::{
    AbortOnDrop, SamplerMetrics, Secrets,
    board::Reported,
    plan::{ConnectionName, Need, Plan, SourcePlan, key_of, need, plan},
    poll::{Work, poll},
    secrets::SecretCache,
};
use crate::{
    api::Projection,
    clients::postgres::{ConnectionIdentity, Database},
    measure::{MeasureError, ProjectionKey},
    snapshot::valid_for,
    sources::{
        Ask,
        postgres::{PostgresProbe, Question},
    },
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
    started: Instant,
    databases: HashMap<ConnectionIdentity, Arc<Database>>,
    running: HashMap<ConnectionIdentity, Running>,
    needs: Vec<Need>,
}

struct Running {
    work: watch::Sender<Work<Question>>,
    _task: AbortOnDrop,
}

impl Planner {
    pub(super) fn new(
        secrets: Arc<dyn Secrets>,
        reports: mpsc::UnboundedSender<Reported>,
        metrics: Arc<SamplerMetrics>,
    ) -> Self {
        Self {
            secrets,
            cache: SecretCache::default(),
            reports,
            metrics,
            started: Instant::now(),
            databases: HashMap::new(),
            running: HashMap::new(),
            needs: Vec::new(),
        }
    }

    /// Runs until `known` is dropped. `refusals` names projections whose database did not accept the user.
    pub(super) async fn run(
        mut self,
        mut known: watch::Receiver<Known>,
        mut refusals: mpsc::UnboundedReceiver<ProjectionKey>,
    ) {
        let mut refused = Vec::new();
        let mut news = true;
        loop {
            if news {
                let projections = known.borrow_and_update().clone();
                self.gather(&projections);
            }
            let needed = self.needs.iter().flat_map(names).cloned().collect();
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
                    let keys: HashSet<ProjectionKey> = refused.drain(..).collect();
                    let theirs = self.needs.iter().filter(|need| keys.contains(&need.key));
                    self.cache.distrust(theirs.flat_map(names).cloned().collect::<HashSet<_>>());
                }
                () = sleep_until(refresh_at) => {}
            }
        }
    }

    fn gather(&mut self, projections: &[Arc<Projection>]) {
        self.needs.clear();
        for projection in projections {
            match need(projection) {
                Ok(need) => self.needs.push(need),
                Err(unknown) => self.report(
                    key_of(projection),
                    projection.metadata.uid.as_deref().unwrap_or_default().into(),
                    projection.metadata.generation.unwrap_or_default(),
                    unknown,
                ),
            }
        }
    }

    fn plan(&mut self) {
        let Plan { sources, failures, databases } = plan(self.needs.clone(), &self.cache.settings());
        for (need, unknown) in failures {
            self.report(need.key, need.uid, need.generation, unknown);
        }
        // A rotated password makes another identity: its tasks and connections end here, and only its.
        self.running.retain(|identity, _| sources.contains_key(identity));
        self.databases.retain(|identity, _| databases.contains(identity));
        for identity in databases {
            self.databases.entry(identity.clone()).or_insert_with(|| Arc::new(Database::new(identity)));
        }
        self.metrics.databases.store(u64::try_from(self.databases.len()).unwrap_or(u64::MAX), Ordering::Relaxed);
        for (identity, source) in sources {
            self.follow(identity, source);
        }
    }

    fn follow(&mut self, identity: ConnectionIdentity, source: SourcePlan) {
        let asks = source.asks.into_iter().filter_map(|(need, store)| {
            let read_store = store.settings().database().into();
            let store = Arc::clone(self.databases.get(&store)?);
            let Need { key, uid, generation, table, checkpoint, .. } = need;
            let question = Question::new(&table, store, checkpoint);
            Some(Arc::new(Ask { key, uid, generation, read_store, question }))
        });
        let work = Work { asks: asks.collect(), interval: source.interval };
        if let Some(running) = self.running.get(&identity) {
            running.work.send_if_modified(|before| {
                let modified = before.asks != work.asks || before.interval != work.interval;
                *before = work;
                modified
            });
            return;
        }
        let Some(database) = self.databases.get(&identity) else { return };
        let probe = PostgresProbe::new(Arc::clone(database), self.started);
        let (work, work_there) = watch::channel(work);
        let task = poll(probe, work_there, self.reports.clone(), Arc::clone(&self.metrics));
        self.running.insert(identity, Running { work, _task: AbortOnDrop(tokio::spawn(task)) });
    }

    fn report(&self, key: ProjectionKey, uid: Arc<str>, generation: i64, unknown: MeasureError) {
        self.metrics.count(false);
        let valid_until = Instant::now() + valid_for(REFRESH_EVERY);
        // Nobody listens any more when the operator ends.
        let _ =
            self.reports.send(Reported { key, uid, generation, read_store: None, result: Err(unknown), valid_until });
    }
}

/// What its connections are called.
fn names(need: &Need) -> [&ConnectionName; 2] {
    [&need.events, &need.store]
}
