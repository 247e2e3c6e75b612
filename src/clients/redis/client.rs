//! Asks one server, or the nodes of a Redis Cluster, many commands at once. Which of the two it is, the server tells when a connection is opened.

use std::sync::Arc;

use tokio::time::Instant;

use super::{
    Answered, Bounds, Command, ConnectionSettings, Reply, ServerAnswer, cluster::Cluster, connection::Access,
    link::Link,
};
use crate::{addresses::AddressRules, measure::MeasureError};

/// Asks one server or cluster. Keeps its connections from call to call; one that broke is opened again by the next call.
pub struct Client {
    access: Access,
    link: Link,
    /// Where the server turned out to be a node of one.
    cluster: Option<Cluster>,
}

impl Client {
    /// Not connected yet. `rules`: which of the addresses that servers tell (Sentinels, nodes of a cluster) may be asked.
    pub fn new(settings: ConnectionSettings, rules: Arc<AddressRules>) -> Self {
        let access = Access { settings, rules, bounds: Bounds::default() };
        Self { access, link: Link::by_settings(), cluster: None }
    }

    /// Keeps replies within these bounds, in place of the usual ones.
    #[must_use]
    pub fn with_bounds(mut self, bounds: Bounds) -> Self {
        self.access.bounds = bounds;
        self
    }

    /// There is a connection, as far as is known.
    pub fn is_connected(&self) -> bool {
        self.is_cluster() || self.link.is_open()
    }

    /// The server has turned out to be a node of a cluster.
    pub fn is_cluster(&self) -> bool {
        self.cluster.is_some()
    }

    /// Where it asks.
    pub fn settings(&self) -> &ConnectionSettings {
        &self.access.settings
    }

    /// Sends all the commands at once and returns the reply to each, in their order. A reply may itself be the server's refusal ([`Reply::Error`]).
    /// Where the connection ends early, the replies that came before are returned all the same.
    ///
    /// # Errors
    /// Why there are no replies from that command on. Holds no secret and does not say where.
    pub async fn ask(&mut self, commands: &[Command], by: Instant) -> Vec<Result<Reply, MeasureError>> {
        self.ask_each(&[], commands, by).await.replies.into_iter().map(|(reply, _)| reply).collect()
    }

    /// The same, and asks each server that is asked anything `of_each` first, in the same round trip.
    pub async fn ask_each(&mut self, of_each: &[Command], commands: &[Command], by: Instant) -> Answered {
        if let Err(why) = self.recognize(by).await {
            return Answered::unknown(commands.len(), &why);
        }
        let Some(cluster) = &mut self.cluster else { return self.ask_one(of_each, commands, by).await };
        let answered = cluster.ask_each(&self.access, of_each, commands, by).await;
        self.leave_if_lost();
        answered
    }

    /// Asks the one server, or each master of the cluster that holds slots: one that does not answer keeps back no other. There is at least one answer.
    ///
    /// # Errors
    /// Why no server can be asked.
    pub async fn ask_servers(&mut self, commands: &[Command], by: Instant) -> Result<Vec<ServerAnswer>, MeasureError> {
        self.recognize(by).await?;
        let Some(cluster) = &mut self.cluster else {
            let (latency, replies) = self.link.ask_timed(&self.access, commands, by).await;
            return Ok(vec![ServerAnswer { node: None, latency, replies }]);
        };
        let answers = cluster.ask_masters(&self.access, commands, by).await;
        self.leave_if_lost();
        answers
    }

    /// Opens the connection, where none is open, and takes note of a server that turns out to be a node of a cluster, before it is asked anything: it may hold
    /// nothing of that.
    async fn recognize(&mut self, by: Instant) -> Result<(), MeasureError> {
        if self.cluster.is_none() {
            self.link.open(&self.access, by).await?;
            if let Some(node) = self.link.cluster_node().cloned() {
                let link = std::mem::replace(&mut self.link, Link::by_settings());
                self.cluster = Some(Cluster::of(node, link));
            }
        }
        Ok(())
    }

    /// Where a node has said that it is in no cluster, the nodes in the settings are asked again what they are.
    fn leave_if_lost(&mut self) {
        if self.cluster.as_ref().is_some_and(Cluster::is_lost) {
            self.cluster = None;
        }
    }

    async fn ask_one(&mut self, of_each: &[Command], commands: &[Command], by: Instant) -> Answered {
        let all = [of_each, commands].concat();
        let mut replies = self.link.ask(&self.access, &all, by).await;
        let about_keys = replies.split_off(of_each.len().min(replies.len()));
        Answered { servers: vec![replies], replies: about_keys.into_iter().map(|reply| (reply, Some(0))).collect() }
    }

    /// Closes the connection to the one server: the next call opens another, and asks the Sentinels again where the server is. A cluster's nodes tell by
    /// themselves where they are.
    pub fn disconnect(&mut self) {
        self.link = Link::by_settings();
    }
}
