//! The checkpoints of the projections of one source, read before the source is asked.
//!
//! A read store that does not answer soon is left behind and joins a later poll: its projections keep their last answer meanwhile.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, timeout_at},
};

use crate::{
    api::{CheckpointLocation, Reason},
    clients::Endpoint,
    measure::MeasureError,
    read_stores::{CheckpointStore, Checkpoints},
    sources::{Ask, Report, Target},
};

/// A poll waits no longer than this for checkpoints; those that come later are used in a later poll.
const PATIENCE: Duration = Duration::from_millis(300);

/// Reads the checkpoints of one source's projections.
#[derive(Default)]
pub(super) struct CheckpointReader {
    requests: HashMap<Endpoint, Request>,
    /// Told when a late read store has answered.
    late: Arc<Notify>,
}

/// A read store, with a request to it that may be under way.
struct Request {
    store: CheckpointStore,
    under_way: bool,
    answers: (mpsc::Sender<Checkpoints>, mpsc::Receiver<Checkpoints>),
}

impl CheckpointReader {
    /// From now on the checkpoints of these are read.
    pub(super) fn follow<Q>(&mut self, asks: &[Arc<Ask<Q>>]) {
        let stores = asks.iter().filter_map(|ask| ask.checkpoint.as_ref()).map(|checkpoint| &checkpoint.store);
        let wanted: HashMap<Endpoint, &CheckpointStore> = stores.map(|store| (store.endpoint(), store)).collect();
        self.requests.retain(|endpoint, _| wanted.contains_key(endpoint));
        for (endpoint, store) in wanted {
            self.requests.entry(endpoint).or_insert_with(|| Request {
                store: store.clone(),
                under_way: false,
                answers: mpsc::channel(1),
            });
        }
    }

    /// Reads the checkpoints, reports those that cannot be read, and returns what can be measured now. No read store is asked for longer than `deadline`.
    pub(super) async fn targets<Q>(
        &mut self,
        asks: &[Arc<Ask<Q>>],
        deadline: Instant,
        report: Report<'_, Q>,
    ) -> Vec<Target<Q>> {
        let answers = self.read(asks, deadline).await;
        let mut targets = Vec::with_capacity(asks.len());
        for ask in asks {
            let Some(place) = &ask.checkpoint else {
                targets.push(Target { ask: Arc::clone(ask), checkpoint: None });
                continue;
            };
            match answers.get(&place.store.endpoint()).and_then(|answer| answer.get(&place.location)) {
                // Late, or not asked for in that request: a later poll has it.
                None => {}
                Some(Ok(checkpoint)) => {
                    targets.push(Target { ask: Arc::clone(ask), checkpoint: Some(checkpoint.clone()) });
                }
                Some(Err(error)) => report(ask, Err(placed(error, place.in_source.as_deref()))),
            }
        }
        targets
    }

    /// Asks every read store that is not busy with an earlier request, and returns what comes in before patience ends.
    async fn read<Q>(&mut self, asks: &[Arc<Ask<Q>>], deadline: Instant) -> HashMap<Endpoint, Checkpoints> {
        let asked_at = Instant::now();
        let mut asked = HashSet::new();
        for (endpoint, request) in self.requests.iter_mut().filter(|(_, request)| !request.under_way) {
            let places = asks.iter().filter_map(|ask| ask.checkpoint.as_ref());
            let locations: BTreeSet<CheckpointLocation> =
                places.filter(|place| place.store == request.store).map(|place| place.location.clone()).collect();
            request.under_way = true;
            asked.insert(endpoint.clone());
            let (store, answer, late) = (request.store.clone(), request.answers.0.clone(), Arc::clone(&self.late));
            tokio::spawn(async move {
                let checkpoints = store.read(&locations, deadline).await;
                // The reader is gone when its source is not followed any more.
                let _ = answer.send(checkpoints).await;
                if asked_at.elapsed() >= PATIENCE {
                    late.notify_one();
                }
            });
        }
        let mut answers = HashMap::new();
        for (endpoint, request) in &mut self.requests {
            let answer = if asked.contains(endpoint) {
                timeout_at(asked_at + PATIENCE, request.answers.1.recv()).await.ok().flatten()
            } else {
                request.answers.1.try_recv().ok()
            };
            if let Some(answer) = answer {
                request.under_way = false;
                answers.insert(endpoint.clone(), answer);
            }
        }
        answers
    }

    /// Returns when a read store has answered that was late.
    pub(super) async fn late(&self) {
        self.late.notified().await;
    }
}

/// `in_source` is what to say where the place is in the event source and is not there.
fn placed(error: &MeasureError, in_source: Option<&str>) -> MeasureError {
    let MeasureError { reason, message } = error;
    let missing = [Reason::TableNotFound, Reason::ColumnNotFound].contains(reason);
    let message = match in_source {
        None => format!("read store: {message}"),
        Some(expected) if missing => format!("event source: {message}. {expected}"),
        Some(_) => format!("event source: {message}"),
    };
    MeasureError { reason: *reason, message }
}
