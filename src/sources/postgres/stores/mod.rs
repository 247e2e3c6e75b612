//! Event stores of libraries that number, read and check-point events by rules of their own: one statement for many consumers in a schema, which reads
//! checkpoint and events in one snapshot. One file a library holds the statement and what the answer means.

mod akka;
mod commanded;
mod emmett;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio_postgres::{Client, Error, Row};

use super::{Answer, AskRef, counting::Oldest};
use crate::{
    api::{AkkaProjection, Reason},
    clients::postgres::{
        Live, classify, quote_identifier,
        row_security::{self, Visibility},
    },
    lag::{BlockingWriter, Certain, CheckpointState, Head, Note, Pending, Position, Sample},
    measure::MeasureError,
    resolve::{CommandedSubscription, EmmettProcessor, StoreConsumer},
};

/// Which event store: many consumers in it are looked at in one go.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) enum StoreKey {
    /// An EventStore of Elixir, by its schema.
    Commanded(String),
    /// An event store of Emmett, by its schema.
    Emmett(String),
    /// A journal and a table of offsets of Akka or Pekko: schema, journal and offsets.
    Akka(String, String, String),
}

impl StoreKey {
    /// The store that a consumer reads.
    pub(super) fn of(consumer: &StoreConsumer) -> Self {
        match consumer {
            StoreConsumer::Commanded(subscription) => Self::Commanded(subscription.schema.clone()),
            StoreConsumer::Emmett(processor) => Self::Emmett(processor.schema.clone()),
            StoreConsumer::Akka(one) => {
                Self::Akka(one.schema.clone(), one.journal_table.clone(), one.timestamp_offset_table.clone())
            }
        }
    }

    /// For so many consumers there is one statement. It takes a second or less where the server is not busy (measured in docs/sources/), and is given up after four.
    pub(super) fn most_at_once(&self) -> usize {
        match self {
            Self::Commanded(_) => 1_000,
            Self::Emmett(_) => 500,
            Self::Akka(..) => 50,
        }
    }

    /// The store in a message.
    fn shown(&self) -> String {
        match self {
            Self::Commanded(schema) | Self::Emmett(schema) | Self::Akka(schema, ..) => {
                format!("event store in schema {schema}")
            }
        }
    }

    /// What to say where one of the store's tables or columns is not there.
    fn expected(&self) -> &'static str {
        match self {
            Self::Commanded(_) => commanded::EXPECTED,
            Self::Emmett(_) => emmett::EXPECTED,
            Self::Akka(..) => akka::EXPECTED,
        }
    }

    /// What to add where the server was too slow.
    fn when_slow(&self) -> &'static str {
        match self {
            Self::Commanded(_) => "",
            Self::Emmett(_) => emmett::WHEN_SLOW,
            Self::Akka(..) => akka::WHEN_SLOW,
        }
    }

    /// The tables that are read, quoted. A table that hides rows would look like one without any.
    fn tables(&self) -> Vec<String> {
        match self {
            Self::Commanded(schema) => commanded::tables(schema),
            Self::Emmett(schema) => emmett::tables(schema),
            Self::Akka(schema, journal, offsets) => [journal, offsets].map(|table| in_schema(schema, table)).into(),
        }
    }
}

/// What is remembered of an event store from poll to poll.
pub(super) struct Store {
    key: StoreKey,
    consumers: HashMap<Arc<StoreConsumer>, Seen>,
    /// Of Emmett.
    partitions: emmett::Partitions,
    /// Of Akka.
    entities: akka::Entities,
}

/// What was seen of one consumer's events at the last look.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    log: u32,
    written: u64,
    arrived: u64,
}

/// What the store says of one consumer.
#[derive(Debug)]
struct Look {
    /// The identity of the table that numbers events: another one after it was made again.
    log: u32,
    head: Head,
    /// Of each shard. Absent where the store knows no such consumer.
    checkpoint: Option<Vec<Position>>,
    pending: Pending,
    /// So many of them were counted one by one, from the oldest on; means nothing with [`AT_LEAST`].
    counted: u64,
    /// What waits in each shard; empty where the store has none.
    by_shard: Vec<u64>,
    /// What a count means that is not exact.
    cut: &'static str,
    /// Among the positions that were counted are many gaps.
    gaps: bool,
    /// The part of it that no consumer may read yet.
    held_back: u64,
    /// The transaction that must end before they may.
    blocked_by: Option<BlockingWriter>,
    oldest: Oldest,
    /// Grows by one with each event, while the table is the same.
    written: u64,
    notes: Vec<Note>,
}

/// What a statement says of all consumers.
struct Looks {
    replica: bool,
    /// Row-level security applies to one of the tables.
    row_security: bool,
    /// One for each consumer, in their order.
    looks: Vec<Result<Look, MeasureError>>,
}

impl Store {
    /// A store that was not looked at yet.
    pub(super) fn new(key: StoreKey) -> Self {
        Self { key, consumers: HashMap::new(), partitions: HashMap::new(), entities: HashMap::new() }
    }

    /// One answer for each projection.
    ///
    /// # Errors
    /// What concerns all consumers.
    pub(super) async fn measure(
        &mut self,
        live: &Live,
        asked: &[(AskRef, Arc<StoreConsumer>)],
        started: std::time::Instant,
    ) -> Result<Vec<Answer>, MeasureError> {
        let distinct: HashSet<&Arc<StoreConsumer>> = asked.iter().map(|(_, consumer)| consumer).collect();
        let consumers: Vec<Arc<StoreConsumer>> = distinct.into_iter().cloned().collect();
        let looked = live.reading(self.look(&live.session.client, &consumers)).await;
        let looks = looked.unwrap_or_else(|error| Err(self.failed(&error)))?;
        let at = started.elapsed();
        self.consumers.retain(|consumer, _| consumers.contains(consumer));
        let samples: HashMap<&Arc<StoreConsumer>, Result<Sample, MeasureError>> = consumers
            .iter()
            .zip(looks)
            .map(|(consumer, look)| (consumer, look.map(|look| self.sample(consumer, look, at))))
            .collect();
        let answers =
            asked.iter().filter_map(|(ask, consumer)| Some((Arc::clone(ask), samples.get(consumer)?.clone())));
        Ok(answers.collect())
    }

    async fn look(
        &mut self,
        client: &Client,
        consumers: &[Arc<StoreConsumer>],
    ) -> Result<Vec<Result<Look, MeasureError>>, MeasureError> {
        let asked = match &self.key {
            StoreKey::Commanded(schema) => {
                let subscriptions: Vec<&CommandedSubscription> =
                    consumers.iter().filter_map(|consumer| consumer.commanded()).collect();
                commanded::look(client, schema, &subscriptions).await
            }
            StoreKey::Emmett(schema) => {
                let processors: Vec<&EmmettProcessor> =
                    consumers.iter().filter_map(|consumer| consumer.emmett()).collect();
                emmett::look(client, schema, &processors, &mut self.partitions).await
            }
            StoreKey::Akka(schema, journal, offsets) => {
                let projections: Vec<&AkkaProjection> =
                    consumers.iter().filter_map(|consumer| consumer.akka()).collect();
                let [journal, offsets] = [journal, offsets].map(|table| in_schema(schema, table));
                akka::look(client, &journal, &offsets, &projections, &mut self.entities).await
            }
        };
        let Looks { replica, row_security, looks } = asked.map_err(|error| self.failed(&error))?;
        if replica {
            return Err(self.refused(Reason::SourceIsReplica, STANDBY));
        }
        if row_security {
            self.check_visible(client).await?;
        }
        Ok(looks.into_iter().map(|look| look.map_err(|why| self.refused(why.reason, &why.message))).collect())
    }

    async fn check_visible(&self, client: &Client) -> Result<(), MeasureError> {
        for table in self.key.tables() {
            match row_security::visibility(client, &table).await.map_err(|error| self.failed(&error))? {
                Visibility::All => {}
                Visibility::Filtered(advice) | Visibility::Nothing(advice) => {
                    let message = advice.hidden("row security may hide rows");
                    return Err(self.refused(Reason::PermissionDenied, &message));
                }
            }
        }
        Ok(())
    }

    fn sample(&mut self, consumer: &Arc<StoreConsumer>, look: Look, at: Duration) -> Sample {
        let seen = self.consumers.entry(Arc::clone(consumer)).or_insert(Seen {
            log: look.log,
            written: look.written,
            arrived: 0,
        });
        seen.take(look.log, look.written);
        let arrived = seen.arrived;
        let head = look.head;
        let Some(checkpoint) = look.checkpoint else {
            let never = Sample::new(at, head, CheckpointState::NeverCommitted, None, arrived);
            return Sample { taken: jiff::Timestamp::now(), ..never };
        };
        let (staleness, ahead_of_clock) = look.oldest.after(Duration::ZERO);
        let mut notes = look.notes;
        let inexact = !look.pending.exact;
        notes.extend(inexact.then(|| Note::Estimated(look.cut.into())));
        Sample {
            taken: jiff::Timestamp::now(),
            staleness,
            ahead_of_clock,
            held_back: look.held_back,
            blocked_by: look.blocked_by,
            notes,
            certain: inexact.then(|| match look.cut {
                AT_LEAST => Certain::AtLeast(look.pending.events),
                _ => Certain::oldest(look.counted),
            }),
            tells_rates: look.cut != AT_LEAST && !look.gaps,
            pending_by_shard: look.by_shard,
            ..Sample::new(at, head, CheckpointState::Committed(checkpoint), Some(look.pending), arrived)
        }
    }

    fn failed(&self, error: &Error) -> MeasureError {
        let (reason, message) = classify(error);
        match reason {
            Reason::TableNotFound | Reason::ColumnNotFound => {
                self.refused(reason, &format!("{message}. {}", self.key.expected()))
            }
            Reason::TimedOut => self.refused(reason, &format!("{message}{}", self.key.when_slow())),
            _ => self.refused(reason, &message),
        }
    }

    fn refused(&self, reason: Reason, message: &str) -> MeasureError {
        MeasureError { reason, message: format!("{}: {message}", self.key.shown()) }
    }
}

const STANDBY: &str =
    "the server is a standby, which shows how the store was a while ago: name the primary in the Secret";

impl Seen {
    /// Takes in how many events were written. Where the table was made again, or holds fewer than before, what comes from now on is added.
    fn take(&mut self, log: u32, written: u64) {
        if self.log == log {
            self.arrived = self.arrived.saturating_add(written.saturating_sub(self.written));
        }
        (self.log, self.written) = (log, written);
    }
}

/// What a count means that ended at its limit, where positions give no bound of the rest.
const AT_LEAST: &str =
    "more events wait than are counted at a time, and how many more cannot be told: at least as many wait";

/// What waits, where the server counted up to `limit` events, of which there cannot be more than `bound`.
fn counted(events: u64, limit: i64, bound: u64) -> Pending {
    let exact = events < limit.unsigned_abs();
    Pending { events: if exact { events } else { bound.max(events) }, exact }
}

/// The oldest event, with its age in seconds where its time tells one.
fn oldest(found: bool, age: Option<f64>) -> Oldest {
    match (found, age) {
        (false, _) => Oldest::None,
        (true, None) => Oldest::Unknown,
        (true, Some(age)) => Oldest::Age(age),
    }
}

/// A table, quoted.
fn in_schema(schema: &str, table: &str) -> String {
    format!("{}.{}", quote_identifier(schema), quote_identifier(table))
}

/// A quoted table's identity, as SQL.
fn regclass(quoted: &str) -> String {
    format!("'{}'::regclass", quoted.replace('\'', "''"))
}

/// A count that is never negative.
fn count(row: &Row, column: usize) -> Result<u64, Error> {
    Ok(u64::try_from(row.try_get::<_, Option<i64>>(column)?.unwrap_or(0)).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_arrives_once_and_a_store_that_went_back_or_was_made_again_adds_nothing() {
        let mut seen = Seen { log: 7, written: 100, arrived: 0 };
        let mut look = |log, written| {
            seen.take(log, written);
            seen.arrived
        };
        assert_eq!([look(7, 100), look(7, 104)], [0, 4]);
        assert_eq!([look(7, 50), look(7, 53)], [4, 7], "restored");
        assert_eq!([look(8, 900), look(8, 901)], [7, 8], "made again");
    }

    #[test]
    fn a_count_that_ends_at_the_limit_is_a_bound() {
        assert_eq!(counted(9, 10, 400), Pending { events: 9, exact: true });
        assert_eq!(counted(10, 10, 400), Pending { events: 400, exact: false });
        assert_eq!(counted(10, 10, 3), Pending { events: 10, exact: false });
    }
}
