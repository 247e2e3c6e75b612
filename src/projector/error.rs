//! The errors of a worker, worded for an engineer who reads its log at night.

use std::{future::Future, io, net::SocketAddr, time::Duration};

use tokio::time::timeout;
use tokio_postgres::Error;

use super::{
    config::ConfigError,
    event::SourceIdentity,
    output::{elasticsearch::DocumentError, postgres::SqlError, redis::CommandError},
    postgres_errors::database_message,
};
use crate::{
    clients::postgres::{ConnectError, ConnectionSettings, Session},
    sources::postgres::event_log::LogError,
};

/// Why a worker does not work. Contains no secret, and nothing of an event or a row but its position and type.
#[derive(Debug, thiserror::Error)]
pub enum ProjectorError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The connection string is for another kind of store.
    #[error("the connection string of the read store is for another kind of store than the configuration is")]
    OtherStore,
    /// The connection string is for another kind of source.
    #[error("the connection string of the event source is for another kind of source than the configuration is")]
    OtherKindOfSource,
    /// A handler is no statement that can be run.
    #[error("handler of event type {event_type}: {source}")]
    Handler {
        /// The type it is for.
        event_type: String,
        /// Why.
        source: SqlError,
    },
    /// A handler asks for a position, and messages of the queue have none.
    #[error(
        "handler of event type {event_type}: it asks for {place}, and messages of a queue have none: take what names the event from its body"
    )]
    NoPosition {
        /// The type it is for.
        event_type: String,
        /// The position, as handlers write it.
        place: &'static str,
    },
    /// A handler holds a command that cannot be run.
    #[error("handler of event type {event_type}: {source}")]
    Commands {
        /// The type it is for.
        event_type: String,
        /// Why.
        source: CommandError,
    },
    /// Events that are to be left out may count.
    #[error("spec.projector.builtin.coalesce: {0}")]
    Coalesce(String),
    /// A handler holds an operation that cannot be done.
    #[error("handler of event type {event_type}: {source}")]
    Documents {
        /// The type it is for.
        event_type: String,
        /// Why.
        source: DocumentError,
    },
    /// The read store does not accept a handler.
    #[error("handler of event type {event_type}: the read store refuses it: {message}")]
    HandlerRefused {
        /// The type it is for.
        event_type: String,
        /// What the database says, as far as it may be repeated.
        message: String,
    },
    /// A handler failed on an event.
    #[error(
        "handler of event type {event_type} failed on the event at {place}: {message}. Its shard waits there until handler, read model or event is mended"
    )]
    EventFailed {
        /// The event's type.
        event_type: String,
        /// Where the event is: its position.
        place: String,
        /// What the database says, as far as it may be repeated.
        message: String,
    },
    /// An event is to be parked, and so many are that no more may be.
    #[error(
        "{what} at {place} waits, and its shard with it, since spec.failure.maxParked ({most}) events are parked. See why they fail in the table projectionist_parked of the read store; then replay them (projectionist_replay), drop them (projectionist_drop), or raise maxParked"
    )]
    TooManyParked {
        /// Which event, and why it would be parked.
        what: String,
        /// Where the event is: its position.
        place: String,
        /// How many may be parked.
        most: u32,
    },
    /// An event cannot be read.
    #[error(
        "the event at {place} cannot be read: {message}. Its shard waits there until the event is mended; the other shards go on"
    )]
    Unreadable {
        /// Where the event is: its position.
        place: String,
        /// What the database says, as far as it may be repeated, or what is wrong with the event.
        message: String,
    },
    /// A handler failed on an event of a queue.
    #[error(
        "handler of event type {event_type} failed on {place}: {message}. It stays unacknowledged and is tried again until handler, read model or event is mended; the others go on"
    )]
    MessageFailed {
        /// The event's type.
        event_type: String,
        /// Which message.
        place: String,
        /// What the database says, as far as it may be repeated.
        message: String,
    },
    /// A message of a queue cannot be read.
    #[error(
        "{place} cannot be read: {message}. It stays unacknowledged and is tried again; the others go on. Acknowledge it by hand to do without it"
    )]
    MessageUnreadable {
        /// Which message.
        place: String,
        /// What is wrong with it.
        message: String,
    },
    /// The setup SQL failed.
    #[error("the setup SQL failed on the read store: {0}")]
    Setup(String),
    /// Checkpoints were made for another number of shards.
    #[error(
        "{projection} has checkpoints for {found} shards in {table} and is told to use {configured}: streams would move between checkpoints. Set spec.scaling.shards back to {found}, or create the Projection under another name to rebuild"
    )]
    ShardsChanged {
        /// The projection.
        projection: String,
        /// The checkpoint table.
        table: String,
        /// What the table holds.
        found: i32,
        /// What the configuration says.
        configured: u32,
    },
    /// The checkpoints were made for shards of another kind.
    #[error(
        "{projection} has checkpoints in {table} for {kept}, and this worker divides the events otherwise: was another kind of source named in the Projection? Create it under another name to rebuild"
    )]
    OtherSharding {
        /// The projection.
        projection: String,
        /// The checkpoint table or key.
        table: String,
        /// What the shards are that have checkpoints.
        kept: &'static str,
    },
    /// A part of the source, such as a partition, was made again under the same name.
    #[error(
        "{projection}: {part} was deleted and created again since its checkpoint was made, which is no place in the new one: what comes in front of it would be passed over. Create the Projection under another name to rebuild, or delete its checkpoints together with the read model while spec.suspend is true"
    )]
    PartReplaced {
        /// The projection.
        projection: String,
        /// The part's name.
        part: String,
    },
    /// There is a checkpoint for a part that the source does not have.
    #[error(
        "{projection} has a checkpoint for {part}, which the source does not have: was its topic taken from the Projection, or created again with fewer partitions? Name the topic again, or create the Projection under another name to rebuild"
    )]
    PartGone {
        /// The projection.
        projection: String,
        /// The part's name.
        part: String,
    },
    /// A part was added to the source, and the read model tells by positions what is done.
    #[error(
        "{projection}: {part} was added to the source since the checkpoints were made. Keys may have moved there, where offsets begin at 0 again, and this read model takes an event with a lower position than a document's for one that is done: it would be lost. Create the Projection under another name, with other indices, to rebuild"
    )]
    PartAdded {
        /// The projection.
        projection: String,
        /// The part's name.
        part: String,
    },
    /// A source that is no database with SQL refused something, or could not be asked.
    #[error("event source: {0}")]
    Source(String),
    /// The checkpoints are gone while the worker worked.
    #[error(
        "{projection}: the state of its workers is gone from {at} ({key}): it was deleted, evicted, or went with the whole database. {then}"
    )]
    StateGone {
        /// The projection.
        projection: String,
        /// Where.
        at: String,
        /// What is missing.
        key: String,
        /// What comes of it, and what to do.
        then: &'static str,
    },
    /// The checkpoints are of another source.
    #[error(
        "{projection}: the state of its workers at {at} ({key}) is of {found}, and this worker reads {configured}: positions of one mean nothing in the other. Do two clusters or sources use it for a Projection of the same name? {remedy}"
    )]
    OtherSource {
        /// The projection.
        projection: String,
        /// Where.
        at: String,
        /// What holds them.
        key: String,
        /// Whose positions they are.
        found: Box<SourceIdentity>,
        /// What the worker is told to read.
        configured: Box<SourceIdentity>,
        /// What to do.
        remedy: String,
    },
    /// Another Projection writes there.
    #[error(transparent)]
    PlaceOfAnother(Box<PlaceOfAnother>),
    /// What is kept of who writes where was not written by workers.
    #[error(
        "{at}: the claims{of} in {key} are not what a worker writes, so that it is not known which places are taken: did something else write there, or a newer version? Where nothing needs them, remove them: {remove}"
    )]
    ClaimsUnreadable {
        /// Where the read store is.
        at: String,
        /// What holds the claims.
        key: String,
        /// Whose they are, where that is known.
        of: String,
        /// What removes them.
        remove: String,
    },
    /// There is no connection.
    #[error("{what}: {source}")]
    Connection {
        /// Which database.
        what: &'static str,
        /// Why.
        source: ConnectError,
    },
    /// A pooler stands between the worker and the server.
    #[error(
        "{what}: {database} is reached through a connection pooler, which may hand each transaction to another server process and that to other clients afterwards. The built-in projector needs connections of its own (prepared statements, settings, notifications, leases): name the server itself in the Secret, not the pooler"
    )]
    Pooled {
        /// Which database.
        what: &'static str,
        /// Where it is.
        database: String,
    },
    /// The event source cannot be followed.
    #[error("event source: {0}")]
    Log(#[from] LogError),
    /// A statement of the projector's own failed.
    #[error("{doing}: {message}", message = database_message(.source))]
    Statement {
        /// What it was for and where.
        doing: &'static str,
        /// Why.
        source: Error,
    },
    /// A store that is no database with SQL refused something, or could not be asked.
    #[error("{doing}: {at}: {message}")]
    Store {
        /// What it was for.
        doing: &'static str,
        /// Where.
        at: String,
        /// Why.
        message: String,
    },
    /// A database does not answer.
    #[error("{doing}: no answer within {seconds} s: is the database overloaded or stopped, or the network cut?")]
    TimedOut {
        /// What it was for and where.
        doing: &'static str,
        /// The deadline in seconds.
        seconds: u64,
    },
    /// The health endpoint cannot listen.
    #[error("health endpoint: cannot listen at {address}: {source}")]
    Health {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A batch did not end in time after the signal to stop.
    #[error(
        "the batch in hand did not end within {seconds} s of the signal to stop: it is rolled back and will be done again by another worker"
    )]
    DrainTimedOut {
        /// The deadline in seconds.
        seconds: u64,
    },
}

/// A place that the handlers of a Projection name, and another Projection has claimed.
#[derive(Debug, thiserror::Error)]
#[error(
    "{place} at {at}: {owner} has claimed it since {since}{claimed}, so that {projection} may not write there. Let its handlers name another {another}; or, where both are meant to write there, set {shared} to true in both; or, where {owner} is gone for good, remove its claims: {remove}"
)]
pub struct PlaceOfAnother {
    /// The projection.
    pub projection: String,
    /// Where the read store is.
    pub at: String,
    /// The index or key.
    pub place: String,
    /// The Projection that has it.
    pub owner: String,
    /// Since when.
    pub since: String,
    /// What that one has claimed, in parentheses, where it is called otherwise.
    pub claimed: String,
    /// What is to be named.
    pub another: &'static str,
    /// The field that lets both write there.
    pub shared: &'static str,
    /// What lets this one have it.
    pub remove: String,
}

impl ProjectorError {
    /// True when trying again cannot help: only another configuration can.
    pub fn is_final(&self) -> bool {
        matches!(
            self,
            Self::Config(_)
                | Self::OtherStore
                | Self::OtherKindOfSource
                | Self::Handler { .. }
                | Self::NoPosition { .. }
                | Self::Commands { .. }
                | Self::Documents { .. }
                | Self::Coalesce(_)
                | Self::ShardsChanged { .. }
                | Self::OtherSharding { .. }
                | Self::PartReplaced { .. }
                | Self::PartGone { .. }
                | Self::PartAdded { .. }
                | Self::OtherSource { .. }
                | Self::PlaceOfAnother(_)
                | Self::ClaimsUnreadable { .. }
                | Self::Health { .. }
                | Self::DrainTimedOut { .. }
        )
    }
}

/// Refuses a connection that others share, before anything is left behind on it.
pub(super) fn unless_pooled(
    what: &'static str,
    settings: &ConnectionSettings,
    session: Session,
) -> Result<Session, ProjectorError> {
    if session.ours_alone { Ok(session) } else { Err(ProjectorError::Pooled { what, database: settings.to_string() }) }
}

/// For `map_err` behind a statement.
pub(super) fn doing(doing: &'static str) -> impl Fn(Error) -> ProjectorError {
    move |source| ProjectorError::Statement { doing, source }
}

/// Holds a deadline.
pub(super) async fn within<T>(
    doing: &'static str,
    deadline: Duration,
    work: impl Future<Output = Result<T, ProjectorError>>,
) -> Result<T, ProjectorError> {
    match timeout(deadline, work).await {
        Ok(answer) => answer,
        Err(_) => Err(ProjectorError::TimedOut { doing, seconds: deadline.as_secs() }),
    }
}
