//! The inboxes of all kinds of read store as one, so that the worker on a queue exists once for all of them.

use super::{
    super::{error::ProjectorError, event::Event},
    ApplyError, Inbox,
    elasticsearch::SearchInbox,
    postgres::PostgresInbox,
    redis::RedisInbox,
};

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
