//! Event tables in PostgreSQL, with checkpoints in any PostgreSQL.
//!
//! A poll asks the read stores for checkpoints first, each before its own deadline, and then looks at the event tables: so a healthy
//! checkpoint is never beyond the head. A read store that does not answer soon is left behind and joins a later poll.

mod arrivals;
mod audit;
mod columns;
mod counting;
pub mod event_log;
mod expression;
mod gaps;
mod questions;
mod sharded;
mod table;
mod tally;
mod untold_shard;

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, timeout_at},
};

pub use questions::Question;

use super::{Ask, Pace, Probe, Report};
use crate::{
    api::{CheckpointLocation, EventTable, Reason},
    clients::postgres::{ConnectionIdentity, Database},
    measure::MeasureError,
    read_stores::postgres::{self as read_store, Checkpoints},
};
use questions::Wanted;
use table::Table;

/// A source or read store that has not answered by then is not waited for.
const POLL_DEADLINE: Duration = Duration::from_secs(5);
/// A poll waits no longer than this for checkpoints; those that come later are used in a later poll.
const CHECKPOINT_PATIENCE: Duration = Duration::from_millis(300);

type AskRef = Arc<Ask<Question>>;

/// All projections on one event database.
pub struct PostgresProbe {
    database: Arc<Database>,
    stores: HashMap<ConnectionIdentity, Store>,
    tables: HashMap<EventTable, Table>,
    /// Wakes the sampler when a late read store has answered.
    late: Arc<Notify>,
    started: std::time::Instant,
}

/// A read store, with a request to it that may be under way.
struct Store {
    database: Arc<Database>,
    asked: bool,
    answers: (mpsc::Sender<Checkpoints>, mpsc::Receiver<Checkpoints>),
}

impl PostgresProbe {
    /// A probe of `database`. `started` is the zero of all sample times.
    pub fn new(database: Arc<Database>, started: std::time::Instant) -> Self {
        Self { database, stores: HashMap::new(), tables: HashMap::new(), late: Arc::default(), started }
    }

    fn follow(&mut self, asks: &[AskRef]) {
        let channels = asks.iter().filter_map(|ask| ask.question.notify_channel.clone()).collect();
        self.database.listen(channels);
        let wanted: HashMap<ConnectionIdentity, Arc<Database>> =
            asks.iter().map(|ask| (ask.question.store.identity().clone(), Arc::clone(&ask.question.store.0))).collect();
        self.stores.retain(|identity, _| wanted.contains_key(identity));
        for (identity, database) in wanted {
            self.stores.entry(identity).or_insert_with(|| Store { database, asked: false, answers: mpsc::channel(1) });
        }
        let tables: HashSet<&EventTable> = asks.iter().map(|ask| &ask.question.table).collect();
        self.tables.retain(|table, _| tables.contains(table));
    }

    /// Asks every read store that is not busy with an earlier request, and returns what comes in before patience ends.
    async fn checkpoints(&mut self, asks: &[AskRef]) -> HashMap<ConnectionIdentity, Checkpoints> {
        let mut waiting = Vec::new();
        for (identity, store) in &mut self.stores {
            if store.asked {
                continue;
            }
            let locations: BTreeSet<CheckpointLocation> = asks
                .iter()
                .filter(|ask| ask.question.store.identity() == identity)
                .map(|ask| ask.question.checkpoint.clone())
                .collect();
            store.asked = true;
            waiting.push(identity.clone());
            let (database, answer, late) =
                (Arc::clone(&store.database), store.answers.0.clone(), Arc::clone(&self.late));
            let asked_at = Instant::now();
            tokio::spawn(async move {
                let checkpoints = read_store::read(&database, &locations, asked_at + POLL_DEADLINE).await;
                // Nobody waits for it any more when the probe is gone.
                let _ = answer.send(checkpoints).await;
                if asked_at.elapsed() >= CHECKPOINT_PATIENCE {
                    late.notify_one();
                }
            });
        }
        let patience = Instant::now() + CHECKPOINT_PATIENCE;
        let mut answers = HashMap::new();
        for (identity, store) in &mut self.stores {
            let answer = if waiting.contains(identity) {
                timeout_at(patience, store.answers.1.recv()).await.ok().flatten()
            } else {
                store.answers.1.try_recv().ok()
            };
            if let Some(answer) = answer {
                store.asked = false;
                answers.insert(identity.clone(), answer);
            }
        }
        answers
    }
}

impl Probe for PostgresProbe {
    type Question = Question;

    async fn measure(&mut self, asks: &[AskRef], report: Report<'_, Question>) -> Pace {
        self.follow(asks);
        let mut checkpoints = self.checkpoints(asks).await;
        let mut wanted: HashMap<EventTable, Vec<Wanted>> = HashMap::new();
        for ask in asks {
            let answer = checkpoints.get_mut(ask.question.store.identity());
            match answer.and_then(|answer| answer.get(&ask.question.checkpoint)) {
                // Late, or not asked for in that request: a later poll has it.
                None => {}
                Some(Err(unknown)) => report(ask, Err(in_read_store(unknown))),
                Some(Ok(checkpoint)) => wanted
                    .entry(ask.question.table.clone())
                    .or_default()
                    .push(Wanted { ask: Arc::clone(ask), checkpoint: checkpoint.clone() }),
            }
        }
        let deadline = Instant::now() + POLL_DEADLINE;
        let mut tables: Vec<(EventTable, Vec<Wanted>)> = wanted.into_iter().collect();
        // Tables that failed come last, so that a locked one cannot use up the time of the others.
        tables.sort_by_key(|(name, _)| self.tables.get(name).map_or(0, Table::failures));
        tables.retain(|(name, _)| self.tables.get(name).is_none_or(|table| table.is_due(Instant::now())));
        if tables.is_empty() {
            return Pace::Usual;
        }
        let mut lease = match self.database.lease(deadline).await {
            Ok(lease) => lease,
            Err(unknown) => {
                let all = tables.iter().flat_map(|(_, wanted)| wanted);
                all.for_each(|wanted| report(&wanted.ask, Err(unknown.clone())));
                return Pace::Usual;
            }
        };
        let mut pace = Pace::Usual;
        let mut tables: VecDeque<_> = tables.into();
        let mut reconnected = false;
        while let Some((name, wanted)) = tables.pop_front() {
            let table = self.tables.entry(name.clone()).or_insert_with(|| Table::new(name.clone()));
            match timeout_at(deadline, table.measure(&lease.live, &wanted, self.started)).await {
                Ok(Ok(samples)) => {
                    samples.into_iter().for_each(|(ask, result)| report(&ask, result));
                    if table.is_settling() {
                        pace = Pace::Soon;
                    }
                }
                Ok(Err(_)) if lease.live.session.client.is_closed() && !reconnected => {
                    // The connection broke since the last poll. What matters is whether there can be a new one.
                    reconnected = true;
                    tables.push_front((name, wanted));
                    drop(lease);
                    lease = match self.database.lease(deadline).await {
                        Ok(lease) => lease,
                        Err(unknown) => {
                            let all = tables.iter().flat_map(|(_, wanted)| wanted);
                            all.for_each(|wanted| report(&wanted.ask, Err(unknown.clone())));
                            return Pace::Usual;
                        }
                    };
                }
                Ok(Err(unknown)) => {
                    table.failed(Instant::now(), unknown.reason);
                    let unknown = at(&self.database, &unknown);
                    wanted.iter().for_each(|wanted| report(&wanted.ask, Err(unknown.clone())));
                }
                Err(_) => {
                    table.failed(Instant::now(), Reason::TimedOut);
                    lease.abandon().await;
                    let unknown = self.database.timed_out();
                    let rest = tables.into_iter().flat_map(|(_, wanted)| wanted);
                    wanted.into_iter().chain(rest).for_each(|wanted| report(&wanted.ask, Err(unknown.clone())));
                    return Pace::Usual;
                }
            }
        }
        lease.give_back();
        pace
    }

    async fn woken(&self) {
        tokio::select! {
            () = self.database.woken() => {}
            () = self.late.notified() => {}
        }
    }
}

fn at(database: &Database, unknown: &MeasureError) -> MeasureError {
    MeasureError { reason: unknown.reason, message: format!("{}: {}", database.identity().settings(), unknown.message) }
}

fn in_read_store(unknown: &MeasureError) -> MeasureError {
    MeasureError { reason: unknown.reason, message: format!("read store: {}", unknown.message) }
}
