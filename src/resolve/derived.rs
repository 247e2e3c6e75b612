//! What follows from parts of a spec: the number of shards, the place of the checkpoint, how a server is reached. One answer for all that is resolved.

use crate::{
    api::{
        BuiltinProjector, CheckpointLocation, CheckpointRows, Connection, DocumentLocation, DocumentPart, EventTable,
        InboxLocation, KafkaConnection, OffsetsLocation, Ordering, Outbox, PostgresReadStore, ProjectionSpec,
        ReadStore, RedisLayout, RedisLocation, RedisPart, SecretKeyRef, Shards, Source, TableLocation,
        default_name_column, default_position_column, table_part, table_parts,
    },
    names::{CHECKPOINT_TABLE, INBOX_TABLE, redis_state, search_state, secret_key},
};

impl ProjectionSpec {
    /// How many shards the built-in projector has where the spec does not say.
    pub const BUILTIN_SHARDS: u32 = 24;

    /// True with `projector.builtin`.
    pub fn is_builtin(&self) -> bool {
        self.projector.as_ref().is_some_and(|projector| projector.builtin.is_some())
    }

    /// The number of shards, where it is known.
    pub fn shard_count(&self) -> Option<u32> {
        match self.scaling.shards {
            Shards::Count(count) => Some(count),
            // Its partitions are the shards, or it has none.
            Shards::Auto if self.source.kafka.is_some() || self.source.is_queue() => None,
            Shards::Auto if self.is_builtin() && self.scaling.ordering == Ordering::Strict => Some(1),
            Shards::Auto if self.is_builtin() => Some(Self::BUILTIN_SHARDS),
            Shards::Auto => None,
        }
    }

    /// The event table in PostgreSQL, where the source is one.
    pub fn event_table(&self) -> Option<&EventTable> {
        self.source.postgres.as_ref()?.event_table.as_ref()
    }

    /// The table in PostgreSQL that the events are in and in which late ones are looked for, with its schema where that is known.
    pub fn audited_table(&self) -> Option<String> {
        let source = self.source.postgres.as_ref()?;
        let table = source.event_table.as_ref().map(|table| table.table.clone());
        let marten = source.marten.as_ref().map(|store| format!("{}.mt_events", table_part(&store.schema)));
        let message_db = source.message_db.as_ref().map(|store| format!("{}.messages", table_part(&store.schema)));
        // Consumers of their own libraries read these by other rules.
        let commanded = source.commanded.as_ref().filter(|_| self.is_builtin());
        let commanded = commanded.map(|store| format!("{}.stream_events", table_part(&store.schema)));
        let emmett = source.emmett.as_ref().filter(|_| self.is_builtin());
        let emmett = emmett.map(|store| format!("{}.emt_messages", table_part(&store.schema)));
        table.or(marten).or(message_db).or(commanded).or(emmett)
    }

    /// The column or SQL expression with an event's shard, where the spec tells it.
    pub fn event_shard(&self) -> Option<&str> {
        self.event_table()?.shard.as_deref()
    }

    /// Where the built-in projector keeps how far it has come, or on a queue, which itself keeps what waits, why messages cannot be handled.
    fn builtin_location(
        &self,
        builtin: &BuiltinProjector,
        store: &ReadStore,
        projection: String,
    ) -> Option<CheckpointLocation> {
        let is_queue = self.source.is_queue();
        let rows = match self.source.kafka {
            _ if is_queue => CheckpointRows::One,
            Some(_) => CheckpointRows::Parts,
            None => CheckpointRows::Numbered(self.shard_count().unwrap_or(1)),
        };
        if store.redis.is_some() {
            let (key, part) = if is_queue {
                (redis_state::failed(&projection), RedisPart::Inbox)
            } else {
                (redis_state::key(&projection), RedisPart::Builtin)
            };
            return Some(CheckpointLocation::Redis(RedisLocation { key, part, rows }));
        }
        if let Some(handlers) = builtin.elasticsearch.as_ref().filter(|_| store.elasticsearch.is_some()) {
            let (id, part) = if is_queue {
                (search_state::failed(&projection), DocumentPart::Inbox)
            } else {
                (projection, DocumentPart::Builtin)
            };
            let index = handlers.state_index.clone();
            return Some(CheckpointLocation::Document(DocumentLocation { index, id, part, rows }));
        }
        let postgres = store.postgres.as_ref()?;
        if is_queue {
            let table = in_schema(postgres, INBOX_TABLE);
            return Some(CheckpointLocation::Inbox(InboxLocation { table, projection }));
        }
        Some(CheckpointLocation::Table(TableLocation {
            table: in_schema(postgres, CHECKPOINT_TABLE),
            name_column: default_name_column(),
            position_column: default_position_column(),
            name: projection,
            rows,
        }))
    }

    /// Where in the read store the checkpoint of the Projection `namespace/name` is, or `None` when the spec does not say.
    pub fn checkpoint_location(&self, namespace: &str, name: &str) -> Option<CheckpointLocation> {
        let store = self.read_store.as_ref()?;
        if let Some(builtin) = self.projector.as_ref().and_then(|projector| projector.builtin.as_ref()) {
            let name = self.name_in_read_store(format!("{namespace}/{name}"));
            return self.builtin_location(builtin, store, name);
        }
        let checkpoint = self.checkpoint.as_ref()?;
        if let Some(redis) = checkpoint.redis.as_ref().filter(|_| store.redis.is_some()) {
            let part = match redis.layout {
                RedisLayout::Value => RedisPart::Value,
                RedisLayout::Field => RedisPart::Field(redis.field.clone().unwrap_or_else(|| name.to_owned())),
                RedisLayout::FieldPerShard => RedisPart::Fields,
                RedisLayout::KeyPerShard => RedisPart::Keys(self.shard_count()?),
            };
            let by_shard = matches!(part, RedisPart::Fields | RedisPart::Keys(_));
            let rows = if by_shard { self.rows(None) } else { CheckpointRows::One };
            return Some(CheckpointLocation::Redis(RedisLocation { key: redis.key.clone(), part, rows }));
        }
        if let Some(document) = checkpoint.elasticsearch.as_ref().filter(|_| store.elasticsearch.is_some()) {
            return Some(CheckpointLocation::Document(DocumentLocation {
                index: document.index.clone(),
                id: document.id.clone().unwrap_or_else(|| name.to_owned()),
                part: DocumentPart::Field(document.field.clone()),
                rows: self.rows(None),
            }));
        }
        let store = store.postgres.as_ref()?;
        if let Some((offsets, kafka)) = checkpoint.kafka_offsets.as_ref().zip(self.source.kafka.as_ref()) {
            let value = offsets.name.clone().unwrap_or_else(|| name.to_owned());
            return Some(CheckpointLocation::Offsets(OffsetsLocation {
                table: in_schema(store, &offsets.table),
                topic_column: offsets.topic_column.clone(),
                partition_column: offsets.partition_column.clone(),
                offset_column: offsets.offset_column.clone(),
                name: offsets.name_column.clone().map(|column| (column, value)),
                topics: kafka.topics.clone().into(),
            }));
        }
        let table = checkpoint.read_store.as_ref()?;
        Some(CheckpointLocation::Table(TableLocation {
            table: in_schema(store, &table.table),
            name_column: table.name_column.clone(),
            position_column: table.position_column.clone(),
            name: table.name.clone().unwrap_or_else(|| name.to_owned()),
            rows: self.rows(table.shard_column.clone()),
        }))
    }

    /// One part a shard where the shard of an event is known, with the shard in this column. Each record of Kafka tells its partition.
    fn rows(&self, column: Option<String>) -> CheckpointRows {
        if self.source.kafka.is_some() {
            return CheckpointRows::Keyed { column: None, shards: None };
        }
        match self.event_shard() {
            Some(_) => CheckpointRows::Keyed { column, shards: self.shard_count() },
            None => CheckpointRows::One,
        }
    }
}

fn in_schema(store: &PostgresReadStore, table: &str) -> String {
    match &store.schema {
        Some(schema) if table_parts(table).len() == 1 => format!("{}.{table}", table_part(schema)),
        _ => table.to_owned(),
    }
}

impl ReadStore {
    /// How to reach the server, the keys of the Secret that say so, and the field of the spec with it.
    pub fn connection(&self) -> Option<(&Connection, Vec<&'static str>, &'static str)> {
        let postgres = self.postgres.as_ref();
        let postgres = postgres
            .map(|store| (&store.connection, secret_key::all().collect(), "spec.readStore.postgres.connection"));
        let redis = self.redis.as_ref();
        let redis =
            redis.map(|store| (&store.connection, secret_key::REDIS.to_vec(), "spec.readStore.redis.connection"));
        let elasticsearch = self.elasticsearch.as_ref().map(|store| {
            (&store.connection, secret_key::ELASTICSEARCH.to_vec(), "spec.readStore.elasticsearch.connection")
        });
        postgres.or(redis).or(elasticsearch)
    }
}

impl Source {
    /// The outbox in PostgreSQL, where the source is one.
    pub fn outbox(&self) -> Option<&Outbox> {
        self.postgres.as_ref()?.outbox.as_ref()
    }

    /// True where the built-in projector takes messages that have no positions: it notes in an inbox which are handled.
    pub fn is_queue(&self) -> bool {
        self.redis.is_some() || self.nats.is_some() || self.rabbitmq.is_some() || self.outbox().is_some()
    }

    /// How to reach the server, and the keys of the Secret that say so.
    pub fn connection(&self) -> Option<(Connection, Vec<&'static str>)> {
        if let Some(kafka) = &self.kafka {
            return Some((kafka.connection.plain(), secret_key::KAFKA.to_vec()));
        }
        let postgres = self.postgres.as_ref().map(|source| (&source.connection, secret_key::all().collect()));
        let redis = self.redis.as_ref().map(|source| (&source.connection, secret_key::REDIS.to_vec()));
        let rabbitmq = self.rabbitmq.as_ref().map(|source| (&source.connection, secret_key::RABBITMQ.to_vec()));
        let nats = self.nats.as_ref().map(|source| (&source.connection, secret_key::NATS.to_vec()));
        let kurrentdb = self.kurrentdb.as_ref().map(|source| (&source.connection, secret_key::KURRENTDB.to_vec()));
        let found = postgres.or(redis).or(nats).or(rabbitmq).or(kurrentdb);
        found.map(|(connection, keys)| (connection.clone(), keys))
    }
}

impl KafkaConnection {
    /// As other kinds of server are reached; without what takes the place of the Secret's servers.
    pub fn plain(&self) -> Connection {
        let Self { secret_ref, ca_secret_ref, client_certificate_secret_ref, bootstrap_servers: _ } = self;
        Connection {
            secret_ref: SecretKeyRef { name: secret_ref.name.clone(), key: None },
            ca_secret_ref: ca_secret_ref.clone(),
            client_certificate_secret_ref: client_certificate_secret_ref.clone(),
            ..Connection::default()
        }
    }
}

impl Connection {
    /// The parts that are given beside the Secret, by the keys in whose place they count.
    pub fn given(&self) -> Vec<(&'static str, String)> {
        let port = self.port.map(|port| port.to_string());
        let all = [("host", self.host.clone()), ("port", port), ("database", self.database.clone())];
        all.into_iter().filter_map(|(key, value)| value.map(|value| (key, value))).collect()
    }
}

/// The longest name that PostgreSQL keeps, in bytes. What is longer it cuts, so that two names may become one.
const LONGEST_NAME: usize = 63;

impl ProjectionSpec {
    /// The first name of the spec that PostgreSQL would cut, with its field. The schema of the resource counts characters, PostgreSQL bytes.
    pub fn overlong_name(&self) -> Option<String> {
        let checkpoint = self.checkpoint.as_ref().and_then(|checkpoint| checkpoint.read_store.as_ref());
        let schema = self.read_store.as_ref().and_then(|store| store.postgres.as_ref()?.schema.clone());
        let mut names: Vec<(&str, String)> =
            schema.map(|schema| ("spec.readStore.postgres.schema", schema)).into_iter().collect();
        if let Some(table) = self.event_table() {
            names.extend(
                table_parts(&table.table).into_iter().map(|part| ("spec.source.postgres.eventTable.table", part)),
            );
            names.extend([
                ("spec.source.postgres.eventTable.position", table.position.clone()),
                ("spec.source.postgres.eventTable.recordedAt", table.recorded_at.clone()),
                ("spec.source.postgres.eventTable.stream", table.stream.clone()),
                ("spec.source.postgres.eventTable.type", table.type_.clone()),
                ("spec.source.postgres.eventTable.data", table.data.clone()),
            ]);
            names.extend(
                table.notify_channel.clone().map(|name| ("spec.source.postgres.eventTable.notifyChannel", name)),
            );
        }
        if let Some(outbox) = self.source.outbox() {
            names.extend(outbox.names());
        }
        if let Some(store) = self.source.postgres.as_ref().and_then(|source| source.commanded.as_ref()) {
            names.push(("spec.source.postgres.commanded.schema", store.schema.clone()));
        }
        if let Some(store) = self.source.postgres.as_ref().and_then(|source| source.emmett.as_ref()) {
            names.push(("spec.source.postgres.emmett.schema", store.schema.clone()));
        }
        if let Some(akka) = self.source.postgres.as_ref().and_then(|source| source.akka.as_ref()) {
            names.extend([
                ("spec.source.postgres.akka.schema", akka.schema.clone()),
                ("spec.source.postgres.akka.journalTable", akka.journal_table.clone()),
                ("spec.source.postgres.akka.timestampOffsetTable", akka.timestamp_offset_table.clone()),
            ]);
        }
        if let Some(table) = checkpoint {
            names.extend(table_parts(&table.table).into_iter().map(|part| ("spec.checkpoint.readStore.table", part)));
            names.push(("spec.checkpoint.readStore.nameColumn", table.name_column.clone()));
            names.push(("spec.checkpoint.readStore.positionColumn", table.position_column.clone()));
        }
        if let Some(offsets) = self.checkpoint.as_ref().and_then(|checkpoint| checkpoint.kafka_offsets.as_ref()) {
            let parts = table_parts(&offsets.table).into_iter();
            names.extend(parts.map(|part| ("spec.checkpoint.kafkaOffsets.table", part)));
            names.extend([
                ("spec.checkpoint.kafkaOffsets.topicColumn", offsets.topic_column.clone()),
                ("spec.checkpoint.kafkaOffsets.partitionColumn", offsets.partition_column.clone()),
                ("spec.checkpoint.kafkaOffsets.offsetColumn", offsets.offset_column.clone()),
            ]);
            names.extend(offsets.name_column.clone().map(|name| ("spec.checkpoint.kafkaOffsets.nameColumn", name)));
        }
        let (field, name) = names.into_iter().find(|(_, name)| name.len() > LONGEST_NAME)?;
        Some(format!(
            "{field}: a name has at most {LONGEST_NAME} bytes in PostgreSQL, and this has {}: write it as the database has it, cut to its first {LONGEST_NAME} bytes",
            name.len()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(projector: &serde_json::Value, scaling: &serde_json::Value, schema: Option<&str>) -> ProjectionSpec {
        let mut store = serde_json::json!({ "connection": { "secretRef": { "name": "db" } } });
        if let Some(schema) = schema {
            store["schema"] = schema.into();
        }
        serde_json::from_value(serde_json::json!({
            "source": { "postgres": { "connection": { "secretRef": { "name": "db" } }, "eventTable": {} } },
            "checkpoint": { "readStore": {} },
            "readStore": { "postgres": store },
            "lag": { "target": "5s" },
            "scaling": scaling,
            "projector": projector,
        }))
        .unwrap()
    }

    #[test]
    fn shards_are_known_where_they_are_given_or_ours() {
        let builtin = serde_json::json!({ "builtin": { "handlers": { "a": "select 1" } } });
        let existing = serde_json::json!({ "existing": { "kind": "Deployment", "name": "x" } });
        for (projector, scaling, expected) in [
            (&builtin, serde_json::json!({}), Some(24)),
            (&builtin, serde_json::json!({ "ordering": "Strict" }), Some(1)),
            (&builtin, serde_json::json!({ "shards": 6 }), Some(6)),
            (&existing, serde_json::json!({}), None),
            (&existing, serde_json::json!({ "shards": 6 }), Some(6)),
        ] {
            assert_eq!(spec(projector, &scaling, None).shard_count(), expected, "{projector} {scaling}");
        }
    }

    #[test]
    fn a_name_that_the_database_would_cut_is_refused_with_its_field() {
        let existing = serde_json::json!({ "existing": { "kind": "Deployment", "name": "x" } });
        let mut long = spec(&existing, &serde_json::json!({}), None);
        assert_eq!(long.overlong_name(), None);
        long.source.postgres.as_mut().unwrap().event_table.as_mut().unwrap().table =
            format!("store.{}", "é".repeat(40));
        let message = long.overlong_name().unwrap();
        assert!(message.contains("eventTable.table: ") && message.contains("this has 80"), "{message}");
    }

    #[test]
    fn the_checkpoint_is_where_the_spec_or_the_builtin_projector_puts_it() {
        let existing = serde_json::json!({ "existing": { "kind": "Deployment", "name": "x" } });
        let table = |location| match location {
            Some(CheckpointLocation::Table(table)) => table,
            other => panic!("{other:?}"),
        };
        let own = table(spec(&existing, &serde_json::json!({}), Some("orders")).checkpoint_location("shop", "a"));
        assert_eq!((own.table.as_str(), own.name.as_str(), own.rows), ("orders.checkpoints", "a", CheckpointRows::One));
        let builtin = serde_json::json!({ "builtin": { "handlers": { "a": "select 1" } } });
        let ours = table(spec(&builtin, &serde_json::json!({}), None).checkpoint_location("shop", "a"));
        assert_eq!(
            (ours.table.as_str(), ours.name.as_str(), ours.rows),
            ("projectionist_checkpoints", "shop/a", CheckpointRows::Numbered(24))
        );
    }
}
