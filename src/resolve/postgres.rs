//! What is asked of a PostgreSQL database: one variant a kind of source in it.

use std::sync::Arc;

use super::{
    Invalid, StoreConsumer, invalid,
    library::{self, LibraryTable},
};
use crate::{
    api::{
        CheckpointLocation, CommandedStore, Connection, EmmettStore, EventRows, EventTable, Outbox, PostgresSource,
        ProjectionSpec, SqlQuery,
    },
    measure::{MeasureError, ProjectionKey},
};

/// Where in a database the events are, and how they are counted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PostgresQuestion {
    /// A table that events are appended to, read up to a position that a checkpoint holds.
    EventTable(Box<EventTable>),
    /// A table whose rows wait until they are sent.
    Outbox(Arc<Outbox>),
    /// The event table of a library, whose schema is known.
    Library(Box<LibraryTable>),
    /// A consumer of an event store that keeps its checkpoint beside the events.
    Consumer(Arc<StoreConsumer>),
    /// The user's own SQL.
    Query(Arc<SqlQuery>),
    /// A replication slot, by its name.
    ReplicationSlot(Arc<str>),
}

impl PostgresQuestion {
    /// The event table, where that is what is asked for.
    pub fn event_table(&self) -> Option<&EventTable> {
        match self {
            Self::EventTable(table) => Some(table),
            Self::Outbox(_) | Self::Consumer(_) | Self::Query(_) | Self::ReplicationSlot(_) => None,
            Self::Library(library) => Some(&library.table),
        }
    }

    /// What to say where the checkpoint, which is in the database with the events, is not there; absent where it is in a read store.
    pub fn keeps_checkpoint(&self) -> Option<&str> {
        match self {
            Self::EventTable(_) | Self::Outbox(_) | Self::Consumer(_) | Self::Query(_) | Self::ReplicationSlot(_) => {
                None
            }
            Self::Library(library) => library.keeps_checkpoint.then_some(library.expected.as_str()),
        }
    }
}

/// What to ask, and the place of the checkpoint where the source does not keep it.
pub(super) fn question(
    spec: &ProjectionSpec,
    source: &PostgresSource,
    key: &ProjectionKey,
) -> Result<(PostgresQuestion, Option<CheckpointLocation>), MeasureError> {
    let PostgresSource {
        connection: _,
        event_table,
        outbox,
        marten,
        message_db,
        commanded,
        emmett,
        akka,
        query,
        replication_slot,
    } = source;
    let kinds = [
        ("eventTable", event_table.is_some()),
        ("outbox", outbox.is_some()),
        ("marten", marten.is_some()),
        ("messageDb", message_db.is_some()),
        ("commanded", commanded.is_some()),
        ("emmett", emmett.is_some()),
        ("akka", akka.is_some()),
        ("query", query.is_some()),
        ("replicationSlot", replication_slot.is_some()),
    ];
    let named: Vec<&str> = kinds.iter().filter(|(_, there)| *there).map(|(name, _)| *name).collect();
    if named.len() != 1 {
        let found = if named.is_empty() { "none".to_owned() } else { named.join(" and ") };
        return Err(invalid(&format!(
            "spec.source.postgres must name exactly one kind of source beside the connection, such as eventTable, and names {found}"
        )));
    }
    if let Some(table) = event_table {
        let checkpoint = checkpoint_in_read_store(spec, key)?;
        return Ok((PostgresQuestion::EventTable(Box::new(table.clone())), Some(checkpoint)));
    }
    if let Some(category) = message_db {
        let (library, kept) = library::message_db(category);
        let checkpoint = kept.map_or_else(|| checkpoint_in_read_store(spec, key), Ok)?;
        return Ok((PostgresQuestion::Library(Box::new(library)), Some(checkpoint)));
    }
    if let Some(store) = marten {
        let (library, kept) = library::marten(store);
        let checkpoint = match kept {
            Some(kept) => kept,
            None if spec.is_builtin() => checkpoint_in_read_store(spec, key)?,
            None => {
                return Err(invalid(
                    "spec.source.postgres.marten.projection is missing: which projection of Marten's is it?",
                ));
            }
        };
        return Ok((PostgresQuestion::Library(Box::new(library)), Some(checkpoint)));
    }
    if spec.is_builtin() {
        let store = commanded.as_ref().map(library::commanded).or_else(|| emmett.as_ref().map(library::emmett));
        if let Some(library) = store {
            let checkpoint = checkpoint_in_read_store(spec, key)?;
            return Ok((PostgresQuestion::Library(Box::new(library)), Some(checkpoint)));
        }
    }
    if spec.checkpoint.is_some() {
        let kind = named.first().copied().unwrap_or_default();
        return Err(invalid(&format!(
            "spec.checkpoint must be absent with spec.source.postgres.{kind}, which says itself what has been handled"
        )));
    }
    if let Some(outbox) = outbox {
        return Ok((PostgresQuestion::Outbox(Arc::new(outbox.clone())), super::inbox(spec, key)));
    }
    if let Some(store) = commanded {
        let consumer = StoreConsumer::of_commanded(store)?;
        return Ok((PostgresQuestion::Consumer(Arc::new(consumer)), None));
    }
    if let Some(store) = emmett {
        let consumer = StoreConsumer::of_emmett(store)?;
        return Ok((PostgresQuestion::Consumer(Arc::new(consumer)), None));
    }
    if let Some(projection) = akka {
        let consumer = StoreConsumer::Akka(projection.clone());
        return Ok((PostgresQuestion::Consumer(Arc::new(consumer)), None));
    }
    if let Some(query) = query {
        return Ok((PostgresQuestion::Query(Arc::new(query.clone())), None));
    }
    if let Some(slot) = replication_slot {
        return Ok((PostgresQuestion::ReplicationSlot(slot.name.as_str().into()), None));
    }
    Err(invalid("spec.source.postgres names no kind of source, such as eventTable"))
}

/// The place in the read store where the projector commits how far it has come.
pub(super) fn checkpoint_in_read_store(
    spec: &ProjectionSpec,
    key: &ProjectionKey,
) -> Result<CheckpointLocation, MeasureError> {
    if spec.read_store.as_ref().and_then(|store| store.connection()).is_none() {
        return Err(invalid("spec.readStore names no store: the checkpoint is read there"));
    }
    spec.checkpoint_location(&key.namespace, &key.name).ok_or_else(|| {
        invalid("spec.checkpoint is missing or is not in the store that spec.readStore names: where does the projector commit how far it has come?")
    })
}

/// The table that the built-in projector reads, which of its rows are events, and the connection to it.
///
/// # Errors
/// Names the field that it cannot read by.
pub(super) fn read_by_builtin(spec: &ProjectionSpec) -> Result<(EventTable, EventRows, &Connection), Invalid> {
    const KINDS: &str = "with eventTable, outbox, marten, messageDb, commanded or emmett, spec.source.kafka, spec.source.kurrentdb with catchUp, spec.source.redis with streams, spec.source.nats, or spec.source.rabbitmq with queues is required with spec.projector.builtin, which reads these tables, topics, streams, consumers and queues";
    const KEPT: &str = "must be absent with spec.projector.builtin, which keeps its own checkpoint in the read store";
    let field = |field: &str, problem: &str| Invalid::Field { field: field.into(), problem: problem.into() };
    let none = || field("spec.source.postgres", KINDS);
    let source = spec.source.postgres.as_ref().ok_or_else(none)?;
    let (table, events) = if let Some(table) = &source.event_table {
        (table.clone(), EventRows::All)
    } else if let Some(store) = &source.marten {
        if store.projection.is_some() {
            return Err(field("spec.source.postgres.marten.projection", KEPT));
        }
        let (library, _) = library::marten(store);
        (library.table, library.events)
    } else if let Some(store) = &source.message_db {
        if store.position_stream.is_some() {
            return Err(field("spec.source.postgres.messageDb.positionStream", KEPT));
        }
        if store.consumer_group.is_some() {
            let rule = "must be absent with spec.projector.builtin, whose workers share the streams among themselves";
            return Err(field("spec.source.postgres.messageDb.consumerGroup", rule));
        }
        let (library, _) = library::message_db(store);
        (library.table, library.events)
    } else if let Some(store) = &source.commanded {
        let CommandedStore { schema: _, subscription, stream } = store;
        if subscription.is_some() {
            return Err(field("spec.source.postgres.commanded.subscription", KEPT));
        }
        if stream != CommandedStore::ALL_STREAMS {
            let rule = "must be absent with spec.projector.builtin, which reads the events of all streams";
            return Err(field("spec.source.postgres.commanded.stream", rule));
        }
        let library = library::commanded(store);
        (library.table, library.events)
    } else if let Some(store) = &source.emmett {
        let EmmettStore { schema: _, processor, version, partition: _ } = store;
        if processor.is_some() {
            return Err(field("spec.source.postgres.emmett.processor", KEPT));
        }
        if *version != EmmettStore::FIRST_VERSION {
            let rule = "must be absent with spec.projector.builtin, which is no processor of Emmett: to rebuild, create the Projection under another name";
            return Err(field("spec.source.postgres.emmett.version", rule));
        }
        let library = library::emmett(store);
        (library.table, library.events)
    } else {
        return Err(none());
    };
    Ok((table, events, &source.connection))
}

#[cfg(test)]
mod tests {
    use crate::{api::Projection, resolve::resolve};

    fn message(postgres: &serde_json::Value) -> String {
        let mut source = serde_json::json!({ "connection": { "secretRef": { "name": "db" } } });
        for (field, value) in postgres.as_object().unwrap() {
            source[field] = value.clone();
        }
        let projection: Projection = serde_json::from_value(serde_json::json!({
            "apiVersion": "projectionist.dev/v1alpha1",
            "kind": "Projection",
            "metadata": { "namespace": "shop", "name": "orders" },
            "spec": { "source": { "postgres": source }, "lag": { "target": "5s" } },
        }))
        .unwrap();
        resolve(&projection).unwrap_err().message
    }

    #[test]
    fn a_database_without_a_kind_of_source_is_refused_with_the_kinds_that_there_are() {
        let none = message(&serde_json::json!({}));
        assert!(none.contains("exactly one kind of source") && none.ends_with("names none"), "{none}");
    }
}
