//! The readers of all kinds of event source as one, so that what is above the seam exists once for all of them.

use super::{
    super::{error::ProjectorError, event::SourceIdentity},
    EventReader, Fetch, Horizon, Range,
    postgres::PostgresReader,
};

/// A reader of any kind.
pub(in crate::projector) enum Reader {
    Postgres(Box<PostgresReader>),
}

/// Does the same with whichever it is.
macro_rules! each {
    ($reader:expr, $it:ident => $what:expr) => {
        match $reader {
            Reader::Postgres($it) => $what,
        }
    };
}

impl EventReader for Reader {
    fn shards(&self) -> u32 {
        each!(self, reader => reader.shards())
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
