//! Event tables in PostgreSQL, with checkpoints in any PostgreSQL.
//!
//! One connection for all tables of a database. A table that is too slow costs the others no more than one poll.

mod arrivals;
mod audit;
mod columns;
mod counting;
pub mod event_log;
mod expression;
mod gaps;
mod passed_over;
mod questions;
mod sharded;
mod table;
mod tally;
mod untold_shard;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use tokio::time::{Instant, timeout_at};

pub use passed_over::PassedOverMemory;
pub use questions::Question;

use super::{Ask, Pace, Probe, Report, Target};
use crate::{
    api::{EventTable, Reason},
    clients::postgres::Database,
    measure::MeasureError,
};
use questions::Wanted;
use table::Table;

type AskRef = Arc<Ask<Question>>;

/// All projections on one event database.
pub struct PostgresProbe {
    database: Arc<Database>,
    tables: HashMap<EventTable, Table>,
    started: std::time::Instant,
}

impl PostgresProbe {
    /// A probe of `database`. `started` is the zero of all sample times.
    pub fn new(database: Arc<Database>, started: std::time::Instant) -> Self {
        Self { database, tables: HashMap::new(), started }
    }
}

impl Probe for PostgresProbe {
    type Question = Question;

    fn follow(&mut self, asks: &[AskRef]) {
        let channels = asks.iter().filter_map(|ask| ask.question.notify_channel.clone()).collect();
        self.database.listen(channels);
        let tables: HashSet<&EventTable> = asks.iter().map(|ask| &ask.question.table).collect();
        self.tables.retain(|table, _| tables.contains(table));
    }

    async fn measure(
        &mut self,
        targets: Vec<Target<Question>>,
        deadline: Instant,
        report: Report<'_, Question>,
    ) -> Pace {
        let mut wanted: HashMap<EventTable, Vec<Wanted>> = HashMap::new();
        for Target { ask, checkpoint } in targets {
            match checkpoint {
                Some(checkpoint) => {
                    wanted.entry(ask.question.table.clone()).or_default().push(Wanted { ask, checkpoint });
                }
                None => report(&ask, Err(without_checkpoint())),
            }
        }
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
        self.database.woken().await;
    }
}

fn at(database: &Database, unknown: &MeasureError) -> MeasureError {
    MeasureError { reason: unknown.reason, message: format!("{}: {}", database.identity().settings(), unknown.message) }
}

/// An event table does not know how far a projection has come; the rules of the resource ask for the place of its checkpoint.
fn without_checkpoint() -> MeasureError {
    MeasureError {
        reason: Reason::InvalidSpec,
        message: "spec.checkpoint is missing: where does the projector commit how far it has come?".to_owned(),
    }
}
