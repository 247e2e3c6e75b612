//! Which statement runs for which type of event, and how an event is bound to it.

use std::collections::{BTreeMap, HashMap};

use futures::{StreamExt, TryStreamExt, stream};
use tokio_postgres::{Client, types::ToSql};

use super::{
    super::super::{
        error::ProjectorError,
        event::Event,
        postgres_errors::{Failure, database_message, failure},
    },
    sql::{self, Parameter},
};

/// Statements that are being prepared at the same time.
const PREPARED_AT_ONCE: usize = 16;

impl Event {
    fn value(&self, parameter: Parameter) -> &(dyn ToSql + Sync) {
        match parameter {
            Parameter::Position => &self.shown_position,
            Parameter::Type => &self.event_type,
            Parameter::Stream => &self.stream,
            Parameter::RecordedAt => &self.recorded_at,
            Parameter::Data => &self.data,
        }
    }
}

/// The handlers, understood.
#[derive(Clone, Debug)]
pub(in crate::projector) struct Mapping(BTreeMap<String, sql::Statement>);

impl Mapping {
    /// Reads the handlers.
    ///
    /// # Errors
    /// Names the type of event whose handler is wrong, and why.
    pub(in crate::projector) fn parse(handlers: &BTreeMap<String, String>) -> Result<Self, ProjectorError> {
        let parsed = handlers.iter().map(|(event_type, text)| match sql::parse(text) {
            Ok(statement) => Ok((event_type.clone(), statement)),
            Err(source) => Err(ProjectorError::Handler { event_type: event_type.clone(), source }),
        });
        Ok(Self(parsed.collect::<Result<_, _>>()?))
    }

    /// The first type of event whose handler asks for the position.
    pub(in crate::projector) fn asks_for_position(&self) -> Option<&str> {
        let asks = |statement: &sql::Statement| statement.parameters.contains(&Parameter::Position);
        self.0.iter().find(|(_, statement)| asks(statement)).map(|(event_type, _)| event_type.as_str())
    }

    /// The types of event that have a handler.
    pub(in crate::projector) fn event_types(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    /// Has every handler prepared on this connection.
    ///
    /// # Errors
    /// Names the type of event whose handler the server does not accept, and why.
    pub(super) async fn prepare(&self, client: &Client) -> Result<Handlers, ProjectorError> {
        let prepared = stream::iter(self.0.clone()).map(|(event_type, statement)| async move {
            match client.prepare(&statement.text).await {
                Ok(prepared) => Ok((event_type, Handler { prepared, parameters: statement.parameters })),
                Err(error) if failure(&error) == Failure::Connection && error.as_db_error().is_none() => {
                    Err(ProjectorError::Statement { doing: "read store: preparing the handlers", source: error })
                }
                Err(error) => Err(ProjectorError::HandlerRefused { event_type, message: database_message(&error) }),
            }
        });
        Ok(Handlers { by_type: prepared.buffered(PREPARED_AT_ONCE).try_collect().await?, behind: None })
    }
}

struct Handler {
    prepared: tokio_postgres::Statement,
    parameters: Vec<Parameter>,
}

/// The handlers, prepared on one connection.
pub(super) struct Handlers {
    by_type: HashMap<String, Handler>,
    behind: Option<Behind>,
}

/// What runs in the place of a handler for an event that is to be parked behind others of its stream.
pub(super) struct Behind {
    pub(super) prepared: tokio_postgres::Statement,
    pub(super) projection: String,
}

impl Handlers {
    /// What runs for events that are to be parked behind others.
    pub(super) fn park_behind_with(&mut self, behind: Behind) {
        self.behind = Some(behind);
    }

    /// The statement for an event and what to bind to it; `None` for a type without a handler.
    pub(super) fn bind<'a>(
        &'a self,
        event: &'a Event,
    ) -> Option<(&'a tokio_postgres::Statement, Vec<&'a (dyn ToSql + Sync)>)> {
        if let Some(Behind { prepared, projection }) = self.behind.as_ref().filter(|_| event.behind_parked.is_some()) {
            // The order of the parameters of `parked::behind`.
            let values: Vec<&(dyn ToSql + Sync)> = vec![
                projection,
                &event.shard,
                &event.position,
                &event.shown_position,
                &event.behind_parked,
                &event.stream,
                &event.event_type,
                &event.recorded_at,
                &event.data,
            ];
            return Some((prepared, values));
        }
        let handler = self.by_type.get(&event.event_type)?;
        let values = handler.parameters.iter().map(|parameter| event.value(*parameter)).collect();
        Some((&handler.prepared, values))
    }
}
