//! The readers of all kinds of event source as one, so that what is above the seam exists once for all of them.

use std::sync::Arc;

use super::{
    super::{error::ProjectorError, event::SourceIdentity, sharding::Sharding},
    EventReader, Fetch, Horizon, Range,
    kafka::KafkaReader,
    kurrentdb::KurrentDbReader,
    postgres::PostgresReader,
};

/// A reader of any kind.
pub(in crate::projector) enum Reader {
    Postgres(Box<PostgresReader>),
    Kafka(Box<KafkaReader>),
    KurrentDb(Box<KurrentDbReader>),
}

/// Does the same with whichever it is.
macro_rules! each {
    ($reader:expr, $it:ident => $what:expr) => {
        match $reader {
            Reader::Postgres($it) => $what,
            Reader::Kafka($it) => $what,
            Reader::KurrentDb($it) => $what,
        }
    };
}

impl EventReader for Reader {
    fn sharding(&self) -> Sharding {
        each!(self, reader => reader.sharding())
    }

    fn number(&mut self, parts: &[Arc<str>]) {
        each!(self, reader => reader.number(parts));
    }

    fn place(&self, shard: u32, position: i64) -> String {
        each!(self, reader => reader.place(shard, position))
    }

    fn before(&self, position: i64) -> i64 {
        each!(self, reader => reader.before(position))
    }

    fn has_parts(&self) -> bool {
        each!(self, reader => reader.has_parts())
    }

    fn released(&mut self, shard: u32) {
        each!(self, reader => reader.released(shard));
    }

    fn committed(&mut self, shard: u32, position: i64) {
        each!(self, reader => reader.committed(shard, position));
    }

    async fn finish(&mut self) {
        each!(self, reader => reader.finish().await);
    }

    fn notifies(&self) -> bool {
        each!(self, reader => reader.notifies())
    }

    async fn identity(&mut self) -> Result<SourceIdentity, ProjectorError> {
        each!(self, reader => reader.identity().await)
    }

    async fn look(&mut self, reached: &[(u32, i64)]) -> Result<Horizon, ProjectorError> {
        each!(self, reader => reader.look(reached).await)
    }

    async fn fetch(&mut self, range: &Range, limit: usize) -> Result<Fetch, ProjectorError> {
        each!(self, reader => reader.fetch(range, limit).await)
    }

    async fn woken(&mut self) {
        each!(self, reader => reader.woken().await);
    }
}
