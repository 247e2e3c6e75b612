//! The inboxes of all kinds of read store as one, so that the worker on a queue exists once for all of them.

use std::time::Duration;

use super::{
    super::{error::ProjectorError, event::Event},
    ApplyError, Inbox,
    elasticsearch::SearchInbox,
    postgres::PostgresInbox,
    redis::RedisInbox,
};

/// Where only what failed is kept beside notes: a message that no worker has tried again for this long is no longer told as failed, since it was removed from
/// the queue. Workers try again after 15 s at most.
pub(super) const TOLD_FOR: Duration = Duration::from_secs(120);
/// There it is told of so many messages at most why they failed, so that a queue full of such fills neither the server nor the operator.
pub(super) const MOST_TOLD: usize = 16;

/// An inbox of any kind.
pub(in crate::projector) enum AnyInbox {
    Postgres(Box<PostgresInbox>),
    Redis(Box<RedisInbox>),
    Elasticsearch(Box<SearchInbox>),
}

/// Does the same with whichever it is.
macro_rules! each {
    ($inbox:expr, $it:ident => $what:expr) => {
        match $inbox {
            AnyInbox::Postgres($it) => $what,
            AnyInbox::Redis($it) => $what,
            AnyInbox::Elasticsearch($it) => $what,
        }
    };
}

impl Inbox for AnyInbox {
    async fn handle(&mut self, ids: &[String], events: &[Event]) -> Result<usize, ApplyError> {
        each!(self, inbox => inbox.handle(ids, events).await)
    }

    async fn record_failure(&mut self, id: &str, why: &str) -> Result<u32, ProjectorError> {
        each!(self, inbox => inbox.record_failure(id, why).await)
    }

    async fn prune(&mut self) -> Result<bool, ProjectorError> {
        each!(self, inbox => inbox.prune().await)
    }
}
