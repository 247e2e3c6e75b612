//! The connection to one server, kept from call to call, and opened again when it broke.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    Command, Reply,
    address::Address,
    connection::{Access, Answers, Connection, LoggedIn, timed_out},
    sentinel,
};
use crate::{api::Reason, measure::MeasureError};

/// A connection to one server, or to the one that is found by asking Sentinels or by trying several.
pub(super) struct Link {
    /// Absent: where the settings say, found each time a connection is opened.
    node: Option<Address>,
    connection: Option<Connection>,
    /// Where the connection was opened last, and whether that server is a node of a cluster.
    opened: Option<(Address, bool)>,
    /// Polls in a row in which the server did not answer in time.
    pub(super) late: u32,
}

impl Link {
    /// To where the settings say. Not connected yet.
    pub(super) fn by_settings() -> Self {
        Self { node: None, connection: None, opened: None, late: 0 }
    }

    /// To this node. Not connected yet.
    pub(super) fn to(node: Address) -> Self {
        Self { node: Some(node), ..Self::by_settings() }
    }

    /// Where a node of a cluster was found, once there is such a connection.
    pub(super) fn cluster_node(&self) -> Option<&Address> {
        self.opened.as_ref().filter(|(_, in_cluster)| *in_cluster).map(|(address, _)| address)
    }

    /// Whether there is a connection, as far as is known.
    pub(super) fn is_open(&self) -> bool {
        self.connection.is_some()
    }

    /// Opens the connection, unless there is one.
    pub(super) async fn open(&mut self, access: &Access, by: Instant) -> Result<(), MeasureError> {
        if self.connection.is_none() {
            let (address, LoggedIn { connection, in_cluster }) = self.log_in(access, by).await?;
            self.opened = Some((address, in_cluster));
            self.connection = Some(connection);
        }
        Ok(())
    }

    /// Sends all the commands at once and returns the reply to each, in their order. A reply may itself be the server's refusal ([`Reply::Error`]).
    /// Where the connection ends early, the replies that came before are returned all the same.
    ///
    /// # Errors
    /// Why there are no replies from that command on.
    pub(super) async fn ask(
        &mut self,
        access: &Access,
        commands: &[Command],
        by: Instant,
    ) -> Vec<Result<Reply, MeasureError>> {
        let mut answers = Answers { replies: Vec::new(), broken: None };
        // A server may have closed a connection that was idle: then nothing was answered, and a new one is tried once.
        for fresh in [self.connection.is_none(), true] {
            answers = self.try_once(access, commands, by).await;
            let stale = !fresh && answers.replies.is_empty();
            let closed = answers.broken.as_ref().is_some_and(|broken| broken.reason == Reason::SourceFailed);
            if !(stale && closed) {
                break;
            }
        }
        let Answers { replies, broken } = answers;
        let broken = broken.unwrap_or_else(timed_out);
        let mut all: Vec<_> = replies.into_iter().map(Ok).collect();
        if all.len() < commands.len() {
            all.push(Err(broken.clone()));
        }
        // Only one command is to blame for an answer that cannot be read.
        let rest = match broken.reason {
            Reason::InvalidAnswer => MeasureError {
                reason: Reason::SourceFailed,
                message: format!(
                    "the connection was closed after the answer to an earlier question: {}",
                    broken.message
                ),
            },
            _ => broken,
        };
        all.resize_with(commands.len(), || Err(rest.clone()));
        all
    }

    /// The same, and how long the replies took over an open connection.
    pub(super) async fn ask_timed(
        &mut self,
        access: &Access,
        commands: &[Command],
        by: Instant,
    ) -> (Duration, Vec<Result<Reply, MeasureError>>) {
        if let Err(why) = self.open(access, by).await {
            return (Duration::ZERO, vec![Err(why); commands.len()]);
        }
        let started = Instant::now();
        let replies = self.ask(access, commands, by).await;
        (started.elapsed(), replies)
    }

    async fn try_once(&mut self, access: &Access, commands: &[Command], by: Instant) -> Answers {
        if let Err(broken) = self.open(access, by).await {
            return Answers { replies: Vec::new(), broken: Some(broken) };
        }
        // Taken out, so that a call that is given up half-way leaves no connection with answers to come.
        let Some(mut connection) = self.connection.take() else {
            return Answers { replies: Vec::new(), broken: None };
        };
        let answers = access.exchange(&mut connection, commands, by).await;
        if answers.broken.is_none() {
            self.connection = Some(connection);
        }
        answers
    }

    async fn log_in(&self, access: &Access, by: Instant) -> Result<(Address, LoggedIn), MeasureError> {
        let settings = &access.settings;
        if let Some(node) = &self.node {
            return access.log_in(node, by).await.map(|found| (node.clone(), found));
        }
        if let Some(sentinels) = &settings.sentinels {
            let at = sentinel::primary(access, sentinels, by).await?;
            let found = access.log_in(&at, by).await;
            let found =
                found.map_err(|unknown| unknown.about(format_args!("{at}, which is the primary as a Sentinel says")));
            return found.map(|found| (at, found));
        }
        let [at] = settings.servers.as_slice() else { return first_of(access, by).await };
        let found = access.log_in(at, by).await?;
        if settings.is_cluster && !found.in_cluster {
            return Err(no_cluster());
        }
        Ok((at.clone(), found))
    }
}

/// The first node of several that can be logged in to.
async fn first_of(access: &Access, by: Instant) -> Result<(Address, LoggedIn), MeasureError> {
    let servers = &access.settings.servers;
    let mut unknown = timed_out();
    for (turn, at) in servers.iter().enumerate() {
        let left = by.saturating_duration_since(Instant::now());
        let share = u32::try_from(servers.len() - turn + 1).unwrap_or(2);
        let found = access.log_in(at, Instant::now() + left / share).await;
        match found {
            Ok(found) if found.in_cluster => return Ok((at.clone(), found)),
            Ok(_) => unknown = no_cluster().about(at),
            Err(why) => unknown = why.about(at),
        }
    }
    Err(unknown)
}

fn no_cluster() -> MeasureError {
    MeasureError {
        reason: Reason::ConnectionStringInvalid,
        message: "the server is no node of a Redis Cluster: name the primary alone, as redis://host:6379, or its Sentinels, as redis-sentinel://…".to_owned(),
    }
}
