//! Event logs in PostgreSQL.
//!
//! One connection for all subjects (such as event tables) of a database. One that takes long comes last in its poll, and the polls in between are the others'
//! alone, so that it takes at most a fifth of the connection's time.

mod arrivals;
mod audit;
mod columns;
mod counting;
pub mod event_log;
mod expression;
mod flow;
mod gaps;
pub(crate) mod outbox;
mod parked;
mod passed_over;
mod query;
mod questions;
mod sharded;
mod slots;
mod stores;
mod subject;
mod table;
mod tally;
mod untold_shard;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use tokio::time::{Instant, timeout_at};

pub use passed_over::PassedOverMemory;
pub use questions::{Question, TableQuestion};

use super::{Ask, Pace, Probe, Report, Target};
use crate::{api::Reason, clients::postgres::Database, lag::Sample, measure::MeasureError};
use subject::{Followed, Subject};

type AskRef = Arc<Ask<Question>>;
type Answer = (AskRef, Result<Sample, MeasureError>);

/// All projections on one event database.
pub struct PostgresProbe {
    database: Arc<Database>,
    followed: HashMap<Subject, Followed>,
    started: std::time::Instant,
}

impl PostgresProbe {
    /// A probe of `database`. `started` is the zero of all sample times.
    pub fn new(database: Arc<Database>, started: std::time::Instant) -> Self {
        Self { database, followed: HashMap::new(), started }
    }
}

impl Probe for PostgresProbe {
    type Question = Question;

    /// PostgreSQL locks no account, and a connection is shared with read stores: what is put right on the server is seen within two polls.
    const PAUSES_AFTER_REFUSED_LOGIN: bool = false;

    fn follow(&mut self, asks: &[AskRef]) {
        let channels = asks.iter().filter_map(|ask| ask.question.notify_channel()).collect();
        self.database.listen(channels);
        let subjects: HashSet<Subject> = asks.iter().map(|ask| Subject::of(&ask.question)).collect();
        self.followed.retain(|subject, _| subjects.contains(subject));
    }

    async fn measure(
        &mut self,
        targets: Vec<Target<Question>>,
        deadline: Instant,
        report: Report<'_, Question>,
    ) -> Pace {
        let mut wanted: HashMap<Subject, Vec<Target<Question>>> = HashMap::new();
        for target in targets {
            if target.checkpoint.is_none() && target.ask.question.needs_checkpoint() {
                report(&target.ask, Err(without_checkpoint()));
            } else {
                wanted.entry(Subject::of(&target.ask.question)).or_default().push(target);
            }
        }
        let mut subjects: Vec<(Subject, Vec<Target<Question>>)> = wanted.into_iter().collect();
        subjects.sort_by_key(|(name, _)| self.followed.get(name).map(Followed::turn).unwrap_or_default());
        subjects.retain(|(name, _)| self.followed.get(name).is_none_or(|followed| followed.is_due(Instant::now())));
        if subjects.is_empty() {
            return Pace::Usual;
        }
        let mut lease = match self.database.lease(deadline).await {
            Ok(lease) => lease,
            Err(unknown) => {
                let all = subjects.iter().flat_map(|(_, targets)| targets);
                all.for_each(|target| report(&target.ask, Err(unknown.clone())));
                return Pace::Usual;
            }
        };
        let mut pace = Pace::Usual;
        let mut subjects: VecDeque<_> = subjects.into();
        let (mut reconnected, mut first) = (false, true);
        while let Some((name, targets)) = subjects.pop_front() {
            let shared = self.followed.len() > 1;
            let followed = self.followed.entry(name.clone()).or_insert_with(|| Followed::new(&name));
            // It begins the next poll, unless faster ones come before it.
            if !std::mem::take(&mut first) && !followed.fits(deadline - Instant::now()) {
                continue;
            }
            match timeout_at(deadline, followed.measure(&lease.live, &targets, self.started, shared)).await {
                Ok(Ok(samples)) => {
                    samples.into_iter().for_each(|(ask, result)| report(&ask, result));
                    if followed.is_settling() {
                        pace = Pace::Soon;
                    }
                }
                Ok(Err(_)) if lease.live.session.client.is_closed() && !reconnected => {
                    // The connection broke since the last poll. What matters is whether there can be a new one.
                    reconnected = true;
                    subjects.push_front((name, targets));
                    drop(lease);
                    lease = match self.database.lease(deadline).await {
                        Ok(lease) => lease,
                        Err(unknown) => {
                            let all = subjects.iter().flat_map(|(_, targets)| targets);
                            all.for_each(|target| report(&target.ask, Err(unknown.clone())));
                            return Pace::Usual;
                        }
                    };
                }
                Ok(Err(unknown)) => {
                    followed.failed(Instant::now(), unknown.reason);
                    let unknown = at(&self.database, &unknown);
                    targets.iter().for_each(|target| report(&target.ask, Err(unknown.clone())));
                }
                Err(_) => {
                    followed.failed(Instant::now(), Reason::TimedOut);
                    lease.abandon().await;
                    let unknown = self.database.timed_out();
                    let rest = subjects.into_iter().flat_map(|(_, targets)| targets);
                    targets.into_iter().chain(rest).for_each(|target| report(&target.ask, Err(unknown.clone())));
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
    unknown.about(database.identity().settings())
}

/// An event table does not know how far a projection has come; the rules of the resource ask for the place of its checkpoint.
fn without_checkpoint() -> MeasureError {
    MeasureError {
        reason: Reason::InvalidSpec,
        message: "spec.checkpoint is missing: where does the projector commit how far it has come?".to_owned(),
    }
}
