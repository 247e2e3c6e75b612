//! Event logs in PostgreSQL.
//!
//! One connection for all subjects (such as event tables) of a database. One that takes long comes last in its poll, and the polls in between are the others'
//! alone, so that it takes at most a fifth of the connection's time. What a poll has no time for is not told of, and comes first in the next.

mod arrivals;
mod audit;
mod columns;
mod counting;
pub mod event_log;
mod expression;
mod flow;
mod gaps;
mod groups;
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
mod turns;
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
use groups::Groups;
use subject::{Followed, Others, Subject};
use turns::Budget;

type AskRef = Arc<Ask<Question>>;
type Answer = (AskRef, Result<Sample, MeasureError>);

/// All projections on one event database.
pub struct PostgresProbe {
    database: Arc<Database>,
    followed: HashMap<Subject, Followed>,
    groups: Groups,
    /// The last poll ended at its deadline without any answer.
    silent: bool,
    started: std::time::Instant,
}

impl PostgresProbe {
    /// A probe of `database`. `started` is the zero of all sample times.
    pub fn new(database: Arc<Database>, started: std::time::Instant) -> Self {
        Self { database, followed: HashMap::new(), groups: Groups::default(), silent: false, started }
    }
}

impl Probe for PostgresProbe {
    type Question = Question;

    /// PostgreSQL locks no account, and a connection is shared with read stores: what is put right on the server is seen within two polls.
    const PAUSES_AFTER_REFUSED_LOGIN: bool = false;

    fn follow(&mut self, asks: &[AskRef]) {
        let channels = asks.iter().filter_map(|ask| ask.question.notify_channel()).collect();
        self.database.listen(channels);
        self.groups.follow(&asks.iter().filter_map(|ask| ask.question.consumer()).collect::<Vec<_>>());
        let subjects: HashSet<Subject> = asks.iter().map(|ask| Subject::of(&ask.question, &self.groups)).collect();
        self.followed.retain(|subject, _| subjects.contains(subject));
    }

    async fn measure(
        &mut self,
        targets: Vec<Target<Question>>,
        deadline: Instant,
        report: Report<'_, Question>,
    ) -> Pace {
        let mut subjects = self.due(targets, report);
        if subjects.is_empty() {
            return Pace::Usual;
        }
        let mut lease = match self.database.lease(deadline).await {
            Ok(lease) => lease,
            Err(unknown) => {
                report_all(subjects, &unknown, report);
                return Pace::Usual;
            }
        };
        let others = Others::of(&self.followed);
        let mut budget = Budget::until(deadline);
        let mut pace = Pace::Usual;
        let (mut reconnected, mut answered) = (false, false);
        while let Some((name, targets)) = subjects.pop_front() {
            let Some(followed) = self.followed.get_mut(&name) else { continue };
            let (turn, begun) = (followed.turn(), Instant::now());
            if !budget.allows(&turn, begun) {
                followed.put_off();
                continue;
            }
            let look = timeout_at(deadline, followed.measure(&lease.live, &targets, self.started, &others)).await;
            budget.take(&turn, begun.elapsed());
            match look {
                Ok(Ok(samples)) => {
                    answered = true;
                    samples.into_iter().for_each(|(ask, result)| report(&ask, result));
                    if followed.is_settling() {
                        pace = Pace::Soon;
                    }
                }
                Ok(Err(_)) if lease.live.session.client.is_closed() && !reconnected => {
                    // The connection broke since the last poll. What matters is whether there can be a new one.
                    reconnected = true;
                    budget = Budget::until(deadline);
                    subjects.push_front((name, targets));
                    drop(lease);
                    lease = match self.database.lease(deadline).await {
                        Ok(lease) => lease,
                        Err(unknown) => {
                            report_all(subjects, &unknown, report);
                            return Pace::Usual;
                        }
                    };
                }
                Ok(Err(unknown)) => {
                    answered = true;
                    followed.failed(begun, Instant::now(), unknown.reason);
                    report_all([(name, targets)], &at(&self.database, &unknown), report);
                }
                Err(_) if answered => {
                    // It had less than a poll's time: the next one begins with it.
                    followed.cut_off(begun.elapsed());
                    put_off(&mut self.followed, &subjects);
                    lease.abandon().await;
                    self.silent = false;
                    return Pace::Usual;
                }
                Err(_) => {
                    followed.failed(begun, Instant::now(), Reason::TimedOut);
                    put_off(&mut self.followed, &subjects);
                    lease.abandon().await;
                    let unknown = self.database.timed_out();
                    report_all([(name, targets)], &unknown, report);
                    // The others may be answered. Where the next poll is without any answer as well, it is the server.
                    if std::mem::replace(&mut self.silent, true) {
                        report_all(subjects, &unknown, report);
                    }
                    return Pace::Usual;
                }
            }
        }
        self.silent = false;
        lease.give_back();
        pace
    }

    async fn woken(&self) {
        self.database.woken().await;
    }
}

impl PostgresProbe {
    /// What is to be looked at now, in this order.
    fn due(
        &mut self,
        targets: Vec<Target<Question>>,
        report: Report<'_, Question>,
    ) -> VecDeque<(Subject, Vec<Target<Question>>)> {
        let mut wanted: HashMap<Subject, Vec<Target<Question>>> = HashMap::new();
        for target in targets {
            if target.checkpoint.is_none() && target.ask.question.needs_checkpoint() {
                report(&target.ask, Err(without_checkpoint()));
            } else {
                wanted.entry(Subject::of(&target.ask.question, &self.groups)).or_default().push(target);
            }
        }
        let now = Instant::now();
        let mut due = Vec::new();
        for (name, targets) in wanted {
            let followed = self.followed.entry(name.clone()).or_insert_with(|| Followed::new(&name));
            if followed.is_due(now) {
                due.push((followed.turn(), (name, targets)));
            }
        }
        due.sort_by_key(|(turn, _)| turn.order());
        due.into_iter().map(|(_, subject)| subject).collect()
    }
}

/// The poll has no time left for these.
fn put_off<T>(followed: &mut HashMap<Subject, Followed>, subjects: &VecDeque<(Subject, T)>) {
    for (name, _) in subjects {
        if let Some(followed) = followed.get_mut(name) {
            followed.put_off();
        }
    }
}

/// The same for all Projections of these subjects.
fn report_all(
    subjects: impl IntoIterator<Item = (Subject, Vec<Target<Question>>)>,
    unknown: &MeasureError,
    report: Report<'_, Question>,
) {
    let all = subjects.into_iter().flat_map(|(_, targets)| targets);
    all.for_each(|target| report(&target.ask, Err(unknown.clone())));
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
