//! The errors of a worker, worded for an engineer who reads its log at night.

use std::{future::Future, io, net::SocketAddr, time::Duration};

use tokio::time::timeout;
use tokio_postgres::{Error, error::SqlState};

use super::{config::ConfigError, sql::SqlError};
use crate::{
    clients::postgres::{ConnectError, ConnectionSettings, Session, classify, is_stale_plan, named, repeatable},
    sources::postgres::event_log::LogError,
};

/// Why a worker does not work. Contains no secret, and nothing of an event or a row but its position and type.
#[derive(Debug, thiserror::Error)]
pub enum ProjectorError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A handler is no statement that can be run.
    #[error("handler of event type {event_type}: {source}")]
    Handler {
        /// The type it is for.
        event_type: String,
        /// Why.
        source: SqlError,
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
        "handler of event type {event_type} failed on the event at position {position}: {message}. Its shard waits there until handler, read model or event is mended"
    )]
    EventFailed {
        /// The event's type.
        event_type: String,
        /// The event's position.
        position: i64,
        /// What the database says, as far as it may be repeated.
        message: String,
    },
    /// An event cannot be read.
    #[error(
        "the event at position {position} cannot be read: {message}. Its shard waits there until the event is mended; the other shards go on"
    )]
    Unreadable {
        /// The event's position.
        position: i64,
        /// What the database says, as far as it may be repeated, or what is wrong with the event.
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

impl ProjectorError {
    /// True when trying again cannot help: only another configuration can.
    pub fn is_final(&self) -> bool {
        matches!(
            self,
            Self::Config(_)
                | Self::Handler { .. }
                | Self::ShardsChanged { .. }
                | Self::Health { .. }
                | Self::DrainTimedOut { .. }
        )
    }

    /// Refuses a connection that others share, before anything is left behind on it.
    pub(super) fn unless_pooled(
        what: &'static str,
        settings: &ConnectionSettings,
        session: Session,
    ) -> Result<Session, Self> {
        if session.ours_alone { Ok(session) } else { Err(Self::Pooled { what, database: settings.to_string() }) }
    }

    /// For `map_err` behind a statement.
    pub(super) fn doing(doing: &'static str) -> impl Fn(Error) -> Self {
        move |source| Self::Statement { doing, source }
    }
}

/// The database's own words with its code, or where they might quote an event or a row, what kind of error it is and how to read them.
pub(super) fn database_message(error: &Error) -> String {
    let Some(answer) = error.as_db_error() else { return classify(error).1 };
    let code = answer.code().code();
    match repeatable(answer) {
        Some(mut words) => {
            if let Some(constraint) = answer.constraint().filter(|name| !words.contains(name)) {
                words.push_str(&format!(", constraint {constraint}"));
            }
            format!("{words} (SQLSTATE {code})")
        }
        None => format!(
            "{} (SQLSTATE {code}; the database's words may quote values and are left out: to read them, run the SQL by hand in psql with the same values)",
            named(answer)
        ),
    }
}

/// What to do after a failed statement of a handler.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Failure {
    /// Another transaction got in the way: the same again may succeed at once.
    Contention,
    /// The statement does not suit the event.
    Handler,
    /// The connection, the server or a prepared statement can no longer be used.
    Connection,
}

/// What caused a failure.
pub(super) fn failure(error: &Error) -> Failure {
    let Some(answer) = error.as_db_error() else { return Failure::Connection };
    let code = answer.code();
    match code.code() {
        c if c.starts_with("40") => Failure::Contention,
        c if c.starts_with("08") || c.starts_with("53") || c.starts_with("57P") || c.starts_with("58") => {
            Failure::Connection
        }
        _ if *code == SqlState::READ_ONLY_SQL_TRANSACTION
            || *code == SqlState::INVALID_SQL_STATEMENT_NAME
            || *code == SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT
            // A user altered a table while the worker ran. Other errors with that code, such as a unit that `date_trunc` does not know, are an
            // event's.
            || is_stale_plan(answer) =>
        {
            Failure::Connection
        }
        _ => Failure::Handler,
    }
}

/// True when a statement that reads events may have failed because of what stands in one of the rows, so that it is worth finding out which.
pub(super) fn may_be_a_row(error: &Error) -> bool {
    // Data exceptions, functions that raise, limits of the program, and corrupted or otherwise unexpected data.
    let code = error.code().map(SqlState::code).unwrap_or_default();
    ["22", "38", "39", "54", "P0", "XX"].iter().any(|class| code.starts_with(class))
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
