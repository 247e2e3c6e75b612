//! What there is to know of a projection in order to measure it on PostgreSQL.

use std::sync::Arc;

use super::{AskRef, PassedOverMemory};
use crate::{
    api::{CheckpointRows, EventRows, EventTable, Outbox, SqlQuery},
    clients::postgres::{quote_identifier, shard_expression},
    read_stores::Checkpoint,
    resolve::{ParkedEvents, PostgresQuestion, StoreConsumer},
};

/// A projection on an event table, with the checkpoint that was read for it before the table is looked at.
#[derive(Clone)]
pub(super) struct Wanted {
    pub(super) ask: AskRef,
    pub(super) question: Arc<TableQuestion>,
    pub(super) checkpoint: Checkpoint,
}

impl Wanted {
    /// Notifications should reach the operator, or workers of the built-in projector.
    pub(super) fn wants_notifications(&self) -> bool {
        let question = &self.question;
        question.notify_channel.is_some() || matches!(question.rows, CheckpointRows::Numbered(_))
    }
}

/// What is asked for one projection: one variant a kind.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Question {
    /// An event table, and a checkpoint that is a position in it.
    Table(Arc<TableQuestion>),
    /// An outbox, which says itself what waits.
    Outbox {
        /// The outbox; without the channel and the columns that measuring does not need, so that projections which differ in those share the look.
        outbox: Arc<Outbox>,
        /// The channel to listen on.
        notify_channel: Option<String>,
    },
    /// A consumer of an event store that keeps its checkpoint beside the events.
    Consumer(Arc<StoreConsumer>),
    /// The user's own SQL.
    Query(Arc<SqlQuery>),
    /// A replication slot, by its name.
    Slot(Arc<str>),
}

impl Question {
    /// The question that a spec asks, with a checkpoint that has these rows.
    pub fn new(asked: &PostgresQuestion, rows: CheckpointRows, passed_over: PassedOverMemory) -> Self {
        match asked {
            PostgresQuestion::EventTable(table) => Self::Table(Arc::new(TableQuestion::new(table, rows, passed_over))),
            PostgresQuestion::Outbox(outbox) => Self::Outbox {
                outbox: Arc::new(Outbox { notify_channel: None, event: None, ..Outbox::clone(outbox) }),
                notify_channel: outbox.notify_channel.clone(),
            },
            PostgresQuestion::Library(library) => Self::Table(Arc::new(TableQuestion {
                events: library.events.clone(),
                expected: Some(library.expected.clone()),
                parked: library.parked.clone(),
                ..TableQuestion::new(&library.table, rows, passed_over)
            })),
            PostgresQuestion::Consumer(consumer) => Self::Consumer(Arc::clone(consumer)),
            PostgresQuestion::Query(query) => Self::Query(Arc::clone(query)),
            PostgresQuestion::ReplicationSlot(name) => Self::Slot(Arc::clone(name)),
        }
    }

    /// The channel to listen on.
    pub(super) fn notify_channel(&self) -> Option<String> {
        match self {
            Self::Table(question) => question.notify_channel.clone(),
            Self::Outbox { notify_channel, .. } => notify_channel.clone(),
            Self::Consumer(consumer) => consumer.notify_channel(),
            Self::Query(query) => query.notify_channel.clone(),
            Self::Slot(_) => None,
        }
    }

    /// The consumer of an event store that is asked for.
    pub(super) fn consumer(&self) -> Option<&Arc<StoreConsumer>> {
        match self {
            Self::Consumer(consumer) => Some(consumer),
            Self::Table(_) | Self::Outbox { .. } | Self::Query(_) | Self::Slot(_) => None,
        }
    }

    /// The checkpoint is kept somewhere and read before the source is asked.
    pub(super) fn needs_checkpoint(&self) -> bool {
        match self {
            Self::Table(_) => true,
            Self::Outbox { .. } | Self::Consumer(_) | Self::Query(_) | Self::Slot(_) => false,
        }
    }
}

/// Event table and checkpoint of one projection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TableQuestion {
    /// The event table; without the channel and the columns that measuring does not need, so that projections which differ in those share it.
    pub table: EventTable,
    /// Which rows are events of this projection.
    pub events: EventRows,
    /// What to say where the table is not there.
    pub expected: Option<String>,
    /// Where events are set aside that failed.
    pub parked: Option<ParkedEvents>,
    /// The table with the columns that only the built-in projector reads, so that they are checked; `None` where it does not run.
    pub projector_columns: Option<EventTable>,
    /// The shard of an event, where each shard is counted by itself.
    pub shard: Option<EventShard>,
    /// The channel to listen on.
    pub notify_channel: Option<String>,
    /// Which rows the checkpoint has.
    pub rows: CheckpointRows,
    /// Where its late events are remembered: holds what was told of them before, and is kept up to date here.
    pub passed_over: PassedOverMemory,
}

impl TableQuestion {
    /// The question for an event table of the spec, whose checkpoint has these rows.
    pub fn new(table: &EventTable, rows: CheckpointRows, passed_over: PassedOverMemory) -> Self {
        let without = EventTable::default();
        let shard = match &rows {
            CheckpointRows::One | CheckpointRows::LastMessage | CheckpointRows::Parts => None,
            CheckpointRows::Numbered(shards) => {
                Some(EventShard::Hashed(shard_expression(&quote_identifier(&table.stream), *shards)))
            }
            CheckpointRows::Keyed { .. } => table.shard.as_deref().map(EventShard::told),
        };
        Self {
            table: EventTable {
                table: table.table.clone(),
                position: table.position.clone(),
                recorded_at: table.recorded_at.clone(),
                time_zone: table.time_zone.clone(),
                stream: without.stream,
                shard: None,
                type_: without.type_,
                data: without.data,
                retention: None,
                notify_channel: None,
            },
            events: EventRows::All,
            expected: None,
            parked: None,
            projector_columns: matches!(rows, CheckpointRows::Numbered(_)).then(|| EventTable {
                table: table.table.clone(),
                stream: table.stream.clone(),
                type_: table.type_.clone(),
                data: table.data.clone(),
                ..EventTable::default()
            }),
            shard,
            notify_channel: table.notify_channel.clone(),
            rows,
            passed_over,
        }
    }
}

/// How the shard of an event is found, as SQL over a row of the event table.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum EventShard {
    /// Our own hash of the stream.
    Hashed(String),
    /// What the spec says, which may be wrong.
    Told(String),
}

impl EventShard {
    /// From `eventTable.shard`. A name alone is a column, taken literally as the names of all columns are.
    pub fn told(text: &str) -> Self {
        let name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '$';
        let column = text.chars().all(name) && !text.starts_with(|c: char| c.is_ascii_digit());
        Self::Told(if column { quote_identifier(text) } else { text.to_owned() })
    }

    /// The expression.
    pub fn sql(&self) -> &str {
        match self {
            Self::Hashed(sql) | Self::Told(sql) => sql,
        }
    }
}
