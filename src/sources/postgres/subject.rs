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
    api::{self, EventRows, EventTable, Reason},
    backoff::Backoff,
    clients::postgres::Live,
    lag::Note,
    measure::MeasureError,
    sources::Target,
};

const BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(5));
/// Looks that take longer are rarer where others wait for the same connection.
const SLOW: Duration = Duration::from_millis(250);
/// After a slow look the connection is the others' for so many times as long.
const REST: u32 = 4;
/// What is told of those.
const IS_SLOW: &str = "a look takes long, and other Projections share its connection, so that it is asked for less often: see that the statement has the indexes it needs, or give it a database user of its own in its Secret";

/// What is looked at in one go, for all projections that it concerns: one variant a kind.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) enum Subject {
    /// An event table, which of its rows are events, and what to say where it is not there.
    Table(Box<EventTable>, EventRows, Option<String>),
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
                Self::Table(Box::new(question.table.clone()), question.events.clone(), question.expected.clone())
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
    /// How long the last look took that succeeded.
    took: Duration,
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
            Subject::Table(table, events, expected) => {
                Memory::Table(Box::new(Table::new((**table).clone(), events.clone(), expected.clone())))
            }
            Subject::Outbox(outbox) => Memory::Outbox(Box::new(Outbox::new(outbox))),
            Subject::Store(key) => Memory::Store(Box::new(Store::new(key.clone()))),
            Subject::Query(sql) => Memory::Query(Box::new(SqlProbe::new(sql.clone()))),
            Subject::Slots => Memory::Slots(Box::default()),
        };
        Self { memory, failures: 0, took: Duration::ZERO, retry_at: None }
    }

    /// One answer for each projection. `shared`: other subjects wait for the same connection, so that a slow one comes less often from now on.
    ///
    /// # Errors
    /// What concerns all of them.
    pub(super) async fn measure(
        &mut self,
        live: &Live,
        targets: &[Target<Question>],
        started: std::time::Instant,
        shared: bool,
    ) -> Result<Vec<Answer>, MeasureError> {
        let begun = Instant::now();
        let mut answers = self.look(live, targets, started).await?;
        self.failures = 0;
        let rests = self.succeeded(begun, Instant::now(), shared);
        for sample in answers.iter_mut().filter_map(|(_, answer)| answer.as_mut().ok()).filter(|_| rests) {
            sample.next_within = self.took * (REST + 1);
            sample.notes.push(Note::Estimated(IS_SLOW.into()));
        }
        Ok(answers)
    }

    /// Takes note of how long a look took, and tells whether the next one is put off.
    fn succeeded(&mut self, begun: Instant, now: Instant, shared: bool) -> bool {
        self.took = now - begun;
        let rests = shared && self.took > SLOW;
        self.retry_at = rests.then(|| now + self.took * REST);
        rests
    }

    async fn look(
        &mut self,
        live: &Live,
        targets: &[Target<Question>],
        started: std::time::Instant,
    ) -> Result<Vec<Answer>, MeasureError> {
        match &mut self.memory {
            Memory::Table(table) => {
                let wanted = targets.iter().filter_map(|target| {
                    let Question::Table(question) = &target.ask.question else { return None };
                    let checkpoint = target.checkpoint.clone()?;
                    Some(Wanted { ask: target.ask.clone(), question: question.clone(), checkpoint })
                });
                table.measure(live, &wanted.collect::<Vec<_>>(), started).await
            }
            Memory::Outbox(outbox) => outbox.measure(live, targets, started).await,
            Memory::Store(store) => {
                let asked = targets.iter().filter_map(|target| {
                    let Question::Consumer(consumer) = &target.ask.question else { return None };
                    Some((Arc::clone(&target.ask), Arc::clone(consumer)))
                });
                store.measure(live, &asked.collect::<Vec<_>>(), started).await
            }
            Memory::Query(query) => {
                let asks: Vec<AskRef> = targets.iter().map(|target| Arc::clone(&target.ask)).collect();
                query.measure(live, &asks, started).await
            }
            Memory::Slots(slots) => {
                let asked = targets.iter().filter_map(|target| {
                    let Question::Slot(name) = &target.ask.question else { return None };
                    Some((Arc::clone(&target.ask), Arc::clone(name)))
                });
                slots.measure(live, &asked.collect::<Vec<_>>(), started).await
            }
        }
    }

    /// Those that failed come last, and before them the slow ones, so that neither a locked table nor a long count uses up the time of the others.
    pub(super) fn turn(&self) -> (u32, Duration) {
        (self.failures, self.took)
    }

    /// False where what is left of a poll would not be enough, going by the last look: it would only be given up half-way.
    pub(super) fn fits(&self, left: Duration) -> bool {
        self.took <= left
    }

    /// False while it pauses after a failure or a slow look.
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
        let mut table = Followed::new(&Subject::Table(Box::default(), EventRows::All, None));
        let now = Instant::now();
        assert!(table.is_due(now));
        table.failed(now, Reason::TimedOut);
        assert!(!table.is_due(now));
        assert!(table.is_due(now + BACKOFF.pause(0)));
        table.failed(now, Reason::PermissionDenied);
        assert!(table.is_due(now), "granted meanwhile?");
    }

    #[test]
    fn a_slow_one_leaves_the_connection_to_the_others_for_four_times_as_long() {
        let mut query = Followed::new(&Subject::Query("select 1".to_owned()));
        let (begun, milliseconds) = (Instant::now(), Duration::from_millis);
        let ended = begun + milliseconds(3_000);
        assert!(!query.succeeded(begun, ended, false), "it has the connection for itself");
        assert!(query.is_due(ended));
        assert!(query.succeeded(begun, ended, true));
        assert!(!query.is_due(ended + milliseconds(11_900)) && query.is_due(ended + milliseconds(12_000)));
        assert!(query.fits(milliseconds(3_000)) && !query.fits(milliseconds(2_999)));
        assert!(!query.succeeded(begun, begun + milliseconds(20), true), "it is fast again");
        assert!(query.is_due(ended));
    }
}
