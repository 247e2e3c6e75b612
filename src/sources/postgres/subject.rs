//! What is looked at on its own in a database: one event table with all projections that read it, and so on. When one fails it pauses by itself.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Answer, AskRef, Question,
    groups::Groups,
    outbox::Outbox,
    query::SqlProbe,
    questions::Wanted,
    slots::Slots,
    stores::{Store, StoreKey},
    table::Table,
    turns::{Load, SLOW, Turn},
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
/// After a slow look the connection is the others' for so many times as long.
const REST: u32 = 4;
/// But for no longer, however many groups of a store are slow together: an answer holds for a minute at most.
const LONGEST_REST: Duration = Duration::from_secs(30);
/// What is told of those.
const IS_SLOW: &str = "a look takes long, and other Projections share its connection, so that it is asked for less often: see that the statement has the indexes it needs, or give it a database user of its own in its Secret";

/// What is looked at in one go, for all projections that it concerns: one variant a kind.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) enum Subject {
    /// An event table, which of its rows are events, and what to say where it is not there.
    Table(Box<EventTable>, EventRows, Option<String>),
    /// An outbox.
    Outbox(Arc<api::Outbox>),
    /// An event store, with the consumers of one group.
    Store(StoreKey, usize),
    /// The user's own SQL.
    Query(String),
    /// All replication slots of the server.
    Slots,
}

impl Subject {
    /// What is looked at to answer a question, with consumers in these groups.
    pub(super) fn of(question: &Question, groups: &Groups) -> Self {
        match question {
            Question::Table(question) => {
                Self::Table(Box::new(question.table.clone()), question.events.clone(), question.expected.clone())
            }
            Question::Outbox { outbox, .. } => Self::Outbox(Arc::clone(outbox)),
            Question::Consumer(consumer) => Self::Store(StoreKey::of(consumer), groups.of(consumer)),
            Question::Query(query) => Self::Query(query.sql.clone()),
            Question::Slot(_) => Self::Slots,
        }
    }
}

/// What else is looked at over the same connection.
pub(super) struct Others {
    load: Load,
    subjects: usize,
    /// How many groups of an event store there are, and how long the looks at them take together.
    stores: HashMap<StoreKey, (usize, Duration)>,
}

impl Others {
    /// All that are followed.
    pub(super) fn of(followed: &HashMap<Subject, Followed>) -> Self {
        let mut stores: HashMap<StoreKey, (usize, Duration)> = HashMap::new();
        for (subject, followed) in followed {
            if let Subject::Store(key, _) = subject {
                let (groups, sum) = stores.entry(key.clone()).or_default();
                (*groups, *sum) = (*groups + 1, *sum + followed.turn.took.unwrap_or_default());
            }
        }
        let load = Load::of(followed.values().map(|followed| followed.turn));
        Self { load, subjects: followed.len(), stores }
    }

    /// How long a look takes with those at the other groups of the store, where there is more on the connection than these.
    fn together(&self, subject: &Subject, before: Duration, took: Duration) -> Option<Duration> {
        let store = match subject {
            Subject::Store(key, _) => self.stores.get(key).copied(),
            _ => None,
        };
        let (groups, sum) = store.unwrap_or((1, before));
        (self.subjects > groups).then(|| sum.saturating_sub(before) + took)
    }
}

/// What is remembered of a subject from poll to poll.
pub(super) struct Followed {
    subject: Subject,
    memory: Memory,
    turn: Turn,
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
            Subject::Store(key, _) => Memory::Store(Box::new(Store::new(key.clone()))),
            Subject::Query(sql) => Memory::Query(Box::new(SqlProbe::new(sql.clone()))),
            Subject::Slots => Memory::Slots(Box::default()),
        };
        Self { subject: subject.clone(), memory, turn: Turn::default(), retry_at: None }
    }

    /// One answer for each projection. What is slow comes less often from now on where `others` wait for the same connection.
    ///
    /// # Errors
    /// What concerns all of them.
    pub(super) async fn measure(
        &mut self,
        live: &Live,
        targets: &[Target<Question>],
        started: std::time::Instant,
        others: &Others,
    ) -> Result<Vec<Answer>, MeasureError> {
        let begun = Instant::now();
        let mut answers = self.look(live, targets, started).await?;
        let (next_within, rests) = self.succeeded(begun, Instant::now(), others);
        for sample in answers.iter_mut().filter_map(|(_, answer)| answer.as_mut().ok()) {
            sample.next_within = sample.next_within.max(next_within);
            sample.notes.extend(rests.then(|| Note::Estimated(IS_SLOW.into())));
        }
        Ok(answers)
    }

    /// Takes note of how long a look took. Tells within which time the next one comes, where that is longer than the time to the next poll, and whether it
    /// is put off because it is slow.
    fn succeeded(&mut self, begun: Instant, now: Instant, others: &Others) -> (Duration, bool) {
        let took = now - begun;
        let before = self.turn.took.unwrap_or_default();
        let together = others.together(&self.subject, before, took).filter(|together| *together > SLOW);
        let rest = together.map(|together| (together * REST).min(LONGEST_REST));
        self.retry_at = rest.map(|rest| now + rest);
        self.turn = Turn { asked: Some(now), took: Some(took), failures: 0, put_off: false };
        let next = together.zip(rest).map_or(Duration::ZERO, |(together, rest)| together + rest);
        (next.max(others.load.round(took)), rest.is_some())
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

    /// What is known of the looks at it.
    pub(super) fn turn(&self) -> Turn {
        self.turn
    }

    /// The poll has no time left for it.
    pub(super) fn put_off(&mut self) {
        self.turn.put_off = true;
    }

    /// A look that began late was cut off at the end of the poll, after so long: the next one begins with more time.
    pub(super) fn cut_off(&mut self, after: Duration) {
        self.turn.took = self.turn.took.max(Some(after));
        self.put_off();
    }

    /// False while it pauses after a failure or a slow look.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.retry_at.is_none_or(|retry_at| now >= retry_at)
    }

    /// Takes note of a failure of a look that began at that time. What the server refuses is asked again at the next poll, so that what has been put right is seen; where it was
    /// too slow, as with a locked table, the next attempts come at growing distances.
    pub(super) fn failed(&mut self, begun: Instant, now: Instant, reason: Reason) {
        match &mut self.memory {
            Memory::Table(table) => table.distrust(),
            Memory::Outbox(outbox) => outbox.distrust(),
            Memory::Query(query) => query.distrust(),
            Memory::Store(_) | Memory::Slots(_) => {}
        }
        let failures = self.turn.failures;
        self.retry_at = (reason == Reason::TimedOut).then(|| now + BACKOFF.pause(failures));
        self.turn =
            Turn { asked: Some(now), took: Some(now - begun), failures: failures.saturating_add(1), put_off: false };
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

    fn others(subjects: &[(Subject, u64)]) -> Others {
        let followed = subjects.iter().map(|(subject, took)| {
            let turn = Turn { took: Some(Duration::from_millis(*took)), ..Turn::default() };
            (subject.clone(), Followed { turn, ..Followed::new(subject) })
        });
        Others::of(&followed.collect())
    }

    fn query(sql: &str) -> Subject {
        Subject::Query(sql.to_owned())
    }

    #[test]
    fn a_table_that_is_too_slow_is_asked_less_often_and_at_most_five_seconds_apart() {
        assert_eq!([0, 1, 2, 3, 99].map(|failures| BACKOFF.pause(failures).as_secs()), [1, 2, 4, 5, 5]);
        let mut table = Followed::new(&Subject::Table(Box::default(), EventRows::All, None));
        let now = Instant::now();
        assert!(table.is_due(now));
        table.failed(now, now, Reason::TimedOut);
        assert!(!table.is_due(now));
        assert!(table.is_due(now + BACKOFF.pause(0)));
        table.failed(now, now, Reason::PermissionDenied);
        assert!(table.is_due(now), "granted meanwhile?");
    }

    #[test]
    fn a_slow_one_leaves_the_connection_to_the_others_for_four_times_as_long() {
        let mut slow = Followed::new(&query("select 1"));
        let (begun, milliseconds) = (Instant::now(), Duration::from_millis);
        let ended = begun + milliseconds(3_000);
        let (alone, shared) = (others(&[(query("select 1"), 0)]), others(&[(query("select 1"), 0), (query("2"), 1)]));
        assert_eq!(slow.succeeded(begun, ended, &alone), (Duration::ZERO, false), "it has the connection for itself");
        assert!(slow.is_due(ended));
        assert_eq!(slow.succeeded(begun, ended, &shared), (milliseconds(15_000), true));
        assert!(!slow.is_due(ended + milliseconds(11_900)) && slow.is_due(ended + milliseconds(12_000)));
        let fast = slow.succeeded(begun, begun + milliseconds(20), &shared);
        assert_eq!(fast, (Duration::ZERO, false), "it is fast again");
        assert!(slow.is_due(ended));
    }

    #[test]
    fn the_groups_of_a_store_take_a_fifth_of_the_connection_together_and_all_of_it_where_there_is_nothing_else() {
        let group = |number| Subject::Store(StoreKey::Commanded("public".to_owned()), number);
        let mut groups: Vec<(Subject, u64)> = (0..4).map(|number| (group(number), 200)).collect();
        let mut first = Followed::new(&group(0));
        first.turn.took = Some(Duration::from_millis(200));
        let (begun, milliseconds) = (Instant::now(), Duration::from_millis);
        let ended = begun + milliseconds(200);
        assert_eq!(first.succeeded(begun, ended, &others(&groups)), (Duration::ZERO, false));
        groups.push((query("select 1"), 1));
        assert_eq!(first.succeeded(begun, ended, &others(&groups)), (milliseconds(4_000), true));
        groups.extend((4..100).map(|number| (group(number), 200)));
        let (next, rests) = first.succeeded(begun, ended, &others(&groups));
        assert!(rests && next == milliseconds(50_000) && first.is_due(ended + LONGEST_REST), "{next:?}");
    }
}
