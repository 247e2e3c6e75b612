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
    Secrets,
    grouping::{Groups, group},
    known_stores::StoreReport,
    observation_store::Reported,
    opened::Opened,
    passed_over::Memories,
    poll::Polling,
    secrets::SecretCache,
    source_tasks::SourceTasks,
    stores::StoreTasks,
};
use crate::{
    addresses::AddressRules,
    api::Projection,
    clients::Endpoint,
    measure::{MeasureError, RunKey},
    read_stores::OpenStores,
    resolve::{ConnectionName, Resolved, resolve, run_of},
    snapshot::valid_for,
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
    polling: Polling,
    addresses: Arc<AddressRules>,
    resolved: Vec<Resolved>,
    opened: Opened,
    stores: StoreTasks,
    sources: SourceTasks,
    passed_over: Memories,
    read_stores: OpenStores,
}

impl Planner {
    pub(super) fn new(
        secrets: Arc<dyn Secrets>,
        polling: Polling,
        store_reports: mpsc::UnboundedSender<StoreReport>,
        addresses: Arc<AddressRules>,
        pods: Arc<dyn WorkerPods>,
        read_stores: OpenStores,
    ) -> Self {
        Self {
            secrets,
            cache: SecretCache::default(),
            polling: polling.clone(),
            addresses: Arc::clone(&addresses),
            resolved: Vec::new(),
            opened: Opened::default(),
            stores: StoreTasks::new(store_reports),
            sources: SourceTasks::new(polling, addresses, pods),
            passed_over: Memories::default(),
            read_stores,
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
        let Groups { sources, failures, endpoints, untold_stores } =
            group(self.resolved.clone(), &self.cache.endpoints());
        for (Resolved { key, uid, generation, .. }, error) in failures {
            self.report(key, uid, generation, error);
        }
        self.sources.retain(&sources);
        self.polling.metrics.servers.store(u64::try_from(endpoints.len()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.opened.follow(endpoints, &self.addresses);
        let members = sources.values().flat_map(|group| &group.members);
        let placed: Vec<(RunKey, Endpoint)> =
            members.filter_map(|(resolved, store)| Some((resolved.key.clone(), store.clone()?))).collect();
        let of_versions = placed.iter().filter(|(key, _)| key.version.is_some());
        let open = of_versions.filter_map(|(key, endpoint)| Some((key.clone(), self.opened.store(endpoint)?)));
        self.read_stores.follow(open.collect());
        self.stores.assign(&placed, untold_stores, |endpoint| self.opened.store(endpoint));
        for (endpoint, group) in sources {
            self.sources.assign(endpoint, group, &self.opened, &self.passed_over);
        }
    }

    fn report(&self, key: RunKey, uid: Arc<str>, generation: i64, unknown: MeasureError) {
        self.polling.metrics.count(false);
        let valid_until = Instant::now() + valid_for(REFRESH_EVERY);
        // The receiver is gone when the operator ends.
        let _ = self.polling.reports.send(Reported {
            key,
            uid,
            generation,
            read_store: None,
            result: Err(unknown),
            valid_until,
        });
    }
}
