//! One task a read store that Projections name: asks it how it is, every few seconds, whether or not a checkpoint is read from it. A store that hangs delays
//! nothing but its own task.

use std::{collections::HashMap, time::Duration};

use jiff::Timestamp;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout_at},
};

use super::{AbortOnDrop, known_stores::StoreReport, poll::next_poll};
use crate::{
    api::Reason,
    clients::Endpoint,
    measure::{MeasureError, RunKey},
    read_stores::CheckpointStore,
    snapshot::valid_for,
    sources::Pace,
    store_health::{Polled, StoreId, StoreName},
};

/// Time between two questions.
const INTERVAL: Duration = Duration::from_secs(5);
/// A store that has not answered by then is reported as unreachable.
const DEADLINE: Duration = Duration::from_secs(5);
/// The question is dropped so long after its deadline.
const GRACE: Duration = Duration::from_secs(2);

/// The tasks.
pub(super) struct StoreTasks {
    running: HashMap<Endpoint, Running>,
    /// Those that cannot be asked.
    untold: HashMap<StoreName, StoreId>,
    last: u64,
    reports: mpsc::UnboundedSender<StoreReport>,
}

struct Running {
    id: StoreId,
    _task: AbortOnDrop,
}

impl StoreTasks {
    pub(super) fn new(reports: mpsc::UnboundedSender<StoreReport>) -> Self {
        Self { running: HashMap::new(), untold: HashMap::new(), last: 0, reports }
    }

    /// From now on the stores of these Projections are asked; `store` gives what each is asked with. `untold` are those that cannot be asked, and why.
    pub(super) fn assign(
        &mut self,
        placed: &[(RunKey, Endpoint)],
        untold: Vec<(RunKey, StoreName, MeasureError)>,
        store: impl Fn(&Endpoint) -> Option<CheckpointStore>,
    ) {
        let wanted: HashMap<&Endpoint, StoreName> =
            placed.iter().filter_map(|(_, endpoint)| Some((endpoint, endpoint.store_name()?))).collect();
        self.running.retain(|endpoint, _| wanted.contains_key(endpoint));
        let mut begin = Vec::new();
        for endpoint in wanted.keys().filter(|endpoint| !self.running.contains_key(**endpoint)) {
            if let Some(store) = store(endpoint) {
                self.last += 1;
                begin.push(((*endpoint).clone(), StoreId(self.last), store));
            }
        }
        let id = |endpoint: &Endpoint| {
            let new = begin.iter().find(|(new, ..)| new == endpoint).map(|(_, id, _)| *id);
            self.running.get(endpoint).map(|running| running.id).or(new)
        };
        let mut stores: HashMap<StoreId, StoreName> =
            wanted.iter().filter_map(|(endpoint, name)| Some((id(endpoint)?, name.clone()))).collect();
        let ids: HashMap<&Endpoint, StoreId> =
            wanted.keys().filter_map(|endpoint| Some((*endpoint, id(endpoint)?))).collect();
        let of = placed.iter().filter_map(|(key, endpoint)| Some((key.clone(), *ids.get(endpoint)?)));
        let mut of: HashMap<RunKey, StoreId> = of.collect();
        self.untold.retain(|name, _| untold.iter().any(|(_, untold, _)| untold == name));
        let mut failures = HashMap::new();
        for (key, name, why) in untold {
            let id = *self.untold.entry(name.clone()).or_insert_with(|| {
                self.last += 1;
                StoreId(self.last)
            });
            stores.insert(id, name);
            of.insert(key, id);
            failures.insert(id, why);
        }
        // The receiver is gone when the operator ends.
        let _ = self.reports.send(StoreReport::Placed { stores, of });
        for (id, why) in failures {
            let polled = Polled { result: Err(why), taken: Timestamp::now(), valid_until: std::time::Instant::now() };
            let _ = self.reports.send(StoreReport::Polled { id, polled });
        }
        for (endpoint, id, store) in begin {
            let task = AbortOnDrop(tokio::spawn(poll(id, store, self.reports.clone())));
            self.running.insert(endpoint, Running { id, _task: task });
        }
    }
}

async fn poll(id: StoreId, store: CheckpointStore, reports: mpsc::UnboundedSender<StoreReport>) {
    let mut refusals = 0;
    loop {
        let started = Instant::now();
        let answer = timeout_at(started + DEADLINE + GRACE, store.health(started + DEADLINE)).await;
        let result = answer.unwrap_or_else(|_| Err(hangs(&store)));
        let refused = result.as_ref().is_err_and(|why| why.reason == Reason::AuthenticationFailed);
        refusals = if refused { refusals + 1 } else { 0 };
        let next = started + next_poll(INTERVAL, Pace::Usual, refusals, rand::random_range(0.0..1.0));
        // One lost answer later it is too old.
        let valid = valid_for(INTERVAL).max(next.saturating_duration_since(started) + DEADLINE + GRACE);
        let polled = Polled { result, taken: Timestamp::now(), valid_until: std::time::Instant::now() + valid };
        if reports.send(StoreReport::Polled { id, polled }).is_err() {
            return;
        }
        sleep_until(next).await;
    }
}

fn hangs(store: &CheckpointStore) -> MeasureError {
    MeasureError {
        reason: Reason::TimedOut,
        message: format!(
            "{}: no answer in time: is the server overloaded or stopped, or does a network policy drop packets?",
            store.endpoint().server()
        ),
    }
}
