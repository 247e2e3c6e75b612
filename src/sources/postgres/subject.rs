//! What is looked at on its own in a database: one event table with all projections that read it, and so on. When one fails it pauses by itself.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Answer, AskRef, Question,
    outbox::Outbox,
    query::SqlProbe,
    questions::Wanted,
    slots::Slots,
    stores::{Store, StoreKey},
    table::Table,
};
use crate::{
    api::{self, EventTable, Reason},
    backoff::Backoff,
    clients::postgres::Live,
    measure::MeasureError,
    sources::Target,
};

const BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(5));

/// What is looked at in one go, for all projections that it concerns: one variant a kind.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) enum Subject {
    /// An event table, which of its rows are events (SQL; absent: all), and what to say where it is not there.
    Table(Box<EventTable>, Option<String>, Option<String>),
    /// An outbox.
    Outbox(Arc<api::Outbox>),
    /// An event store with all of its consumers.
    Store(StoreKey),
    /// The user's own SQL.
    Query(String),
    /// All replication slots of the server.
    Slots,
}

impl Subject {
    /// What is looked at to answer a question.
    pub(super) fn of(question: &Question) -> Self {
        match question {
            Question::Table(question) => {
                Self::Table(Box::new(question.table.clone()), question.only.clone(), question.expected.clone())
            }
            Question::Outbox { outbox, .. } => Self::Outbox(Arc::clone(outbox)),
            Question::Consumer(consumer) => Self::Store(StoreKey::of(consumer)),
            Question::Query(query) => Self::Query(query.sql.clone()),
            Question::Slot(_) => Self::Slots,
        }
    }
}

/// What is remembered of a subject from poll to poll.
pub(super) struct Followed {
    memory: Memory,
    failures: u32,
    retry_at: Option<Instant>,
}

/// One variant a kind of subject.
enum Memory {
    Table(Box<Table>),
    Outbox(Box<Outbox>),
    Store(Box<Store>),
    Query(Box<SqlProbe>),
    Slots(Box<Slots>),
}

impl Followed {
    /// A subject that was not looked at yet.
    pub(super) fn new(subject: &Subject) -> Self {
        let memory = match subject {
            Subject::Table(table, only, expected) => {
                Memory::Table(Box::new(Table::new((**table).clone(), only.clone(), expected.clone())))
            }
            Subject::Outbox(outbox) => Memory::Outbox(Box::new(Outbox::new(outbox))),
            Subject::Store(key) => Memory::Store(Box::new(Store::new(key.clone()))),
            Subject::Query(sql) => Memory::Query(Box::new(SqlProbe::new(sql.clone()))),
            Subject::Slots => Memory::Slots(Box::default()),
        };
        Self { memory, failures: 0, retry_at: None }
    }

    /// One answer for each projection.
    ///
    /// # Errors
    /// What concerns all of them.
    pub(super) async fn measure(
        &mut self,
        live: &Live,
        targets: &[Target<Question>],
        started: std::time::Instant,
    ) -> Result<Vec<Answer>, MeasureError> {
        let answers = match &mut self.memory {
            Memory::Table(table) => {
                let wanted = targets.iter().filter_map(|target| {
                    let Question::Table(question) = &target.ask.question else { return None };
                    let checkpoint = target.checkpoint.clone()?;
                    Some(Wanted { ask: target.ask.clone(), question: question.clone(), checkpoint })
                });
                table.measure(live, &wanted.collect::<Vec<_>>(), started).await?
            }
            Memory::Outbox(outbox) => {
                let asks: Vec<AskRef> = targets.iter().map(|target| Arc::clone(&target.ask)).collect();
                outbox.measure(live, &asks, started).await?
            }
            Memory::Store(store) => {
                let asked = targets.iter().filter_map(|target| {
                    let Question::Consumer(consumer) = &target.ask.question else { return None };
                    Some((Arc::clone(&target.ask), Arc::clone(consumer)))
                });
                store.measure(live, &asked.collect::<Vec<_>>(), started).await?
            }
            Memory::Query(query) => {
                let asks: Vec<AskRef> = targets.iter().map(|target| Arc::clone(&target.ask)).collect();
                query.measure(live, &asks, started).await?
            }
            Memory::Slots(slots) => {
                let asked = targets.iter().filter_map(|target| {
                    let Question::Slot(name) = &target.ask.question else { return None };
                    Some((Arc::clone(&target.ask), Arc::clone(name)))
                });
                slots.measure(live, &asked.collect::<Vec<_>>(), started).await?
            }
        };
        (self.failures, self.retry_at) = (0, None);
        Ok(answers)
    }

    /// Failures in a row.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// False while it pauses after a failure.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.retry_at.is_none_or(|retry_at| now >= retry_at)
    }

    /// Takes note of a failure. What the server refuses is asked again at the next poll, so that what has been put right is seen; where it was
    /// too slow, as with a locked table, the next attempts come at growing distances.
    pub(super) fn failed(&mut self, now: Instant, reason: Reason) {
        match &mut self.memory {
            Memory::Table(table) => table.distrust(),
            Memory::Outbox(outbox) => outbox.distrust(),
            Memory::Query(query) => query.distrust(),
            Memory::Store(_) | Memory::Slots(_) => {}
        }
        self.retry_at = (reason == Reason::TimedOut).then(|| now + BACKOFF.pause(self.failures));
        self.failures = self.failures.saturating_add(1);
    }

    /// True when another look soon is likely to tell more.
    pub(super) fn is_settling(&self) -> bool {
        match &self.memory {
            Memory::Table(table) => table.is_settling(),
            Memory::Outbox(_) | Memory::Store(_) | Memory::Query(_) | Memory::Slots(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_is_too_slow_is_asked_less_often_and_at_most_five_seconds_apart() {
        assert_eq!([0, 1, 2, 3, 99].map(|failures| BACKOFF.pause(failures).as_secs()), [1, 2, 4, 5, 5]);
        let mut table = Followed::new(&Subject::Table(Box::default(), None, None));
        let now = Instant::now();
        assert!(table.is_due(now));
        table.failed(now, Reason::TimedOut);
        assert!(!table.is_due(now));
        assert!(table.is_due(now + BACKOFF.pause(0)));
        table.failed(now, Reason::PermissionDenied);
        assert!(table.is_due(now), "granted meanwhile?");
    }
}
