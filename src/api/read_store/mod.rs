//! Where read models are, and where in them a projector commits how far it has come: one file a kind of store, with the rules that the API server
//! checks beside the fields.

mod elasticsearch;
mod kafka_offsets;
mod postgres;
mod redis;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use elasticsearch::{DocumentLocation, DocumentPart, ElasticsearchCheckpoint, ElasticsearchReadStore};
pub use kafka_offsets::{KafkaOffsetsTable, OffsetsLocation};
pub use postgres::{CheckpointRows, CheckpointTable, PostgresReadStore, TableLocation};
pub(crate) use postgres::{default_name_column, default_position_column};
pub use redis::{RedisCheckpoint, RedisLayout, RedisLocation, RedisPart, RedisReadStore};

/// Where the projector commits how far it has come. Exactly one field.
#[derive(Clone, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.readStore), has(self.kafkaOffsets), has(self.redis), has(self.elasticsearch)].exists_one(x, x)").message("spec.checkpoint must name exactly one place: readStore or kafkaOffsets (a table in PostgreSQL), redis or elasticsearch"))]
pub struct Checkpoint {
    /// A table in a read store in PostgreSQL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_store: Option<CheckpointTable>,
    /// A table in a read store in PostgreSQL with the offsets of Kafka's partitions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kafka_offsets: Option<KafkaOffsetsTable>,
    /// Keys in a read store in Redis.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redis: Option<RedisCheckpoint>,
    /// A document in a read store in Elasticsearch or OpenSearch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub elasticsearch: Option<ElasticsearchCheckpoint>,
}

/// The database that holds the read model. Exactly one store.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.postgres), has(self.redis), has(self.elasticsearch)].exists_one(x, x)").message("spec.readStore must name exactly one store: postgres, redis or elasticsearch"))]
pub struct ReadStore {
    /// A PostgreSQL database.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub postgres: Option<PostgresReadStore>,
    /// A Redis server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redis: Option<RedisReadStore>,
    /// Elasticsearch or OpenSearch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub elasticsearch: Option<ElasticsearchReadStore>,
    /// How much of the database the workers may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<ReadStoreLimits>,
}

/// How many connections the workers of all Projections on one read store may take together.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReadStoreLimits {
    /// Connections that one worker of this Projection takes. Default: 1.
    #[serde(default = "default_connections_per_worker")]
    #[schemars(range(min = 1, max = 10_000))]
    pub connections_per_worker: i32,
    /// The most connections that the workers of all Projections on this read store may take together. Where Projections name different
    /// numbers for one store, the smallest counts.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_connections: i32,
}

fn default_connections_per_worker() -> i32 {
    1
}

/// The place of one projection's checkpoint in its read store.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum CheckpointLocation {
    /// Rows of a table in PostgreSQL.
    Table(TableLocation),
    /// Rows of a table in PostgreSQL, one a partition of Kafka.
    Offsets(OffsetsLocation),
    /// Keys in Redis.
    Redis(RedisLocation),
    /// A document in Elasticsearch or OpenSearch.
    Document(DocumentLocation),
    /// Rows of the built-in projector's inbox in PostgreSQL: no checkpoint, which the queue keeps, but what could not be handled.
    Inbox(InboxLocation),
}

/// Where the built-in projector notes the messages of a queue.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct InboxLocation {
    /// The table, with its schema where that is known.
    pub table: String,
    /// The projection, as `namespace/name`.
    pub projection: String,
}

impl CheckpointLocation {
    /// Which parts the checkpoint has: one, or one a shard.
    pub fn rows(&self) -> &CheckpointRows {
        match self {
            Self::Table(table) => &table.rows,
            // Which partition an event is in is known without a column; a queue has no positions.
            Self::Offsets(_) | Self::Inbox(_) => &CheckpointRows::One,
            Self::Redis(keys) => &keys.rows,
            Self::Document(document) => &document.rows,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::api::admit;

    fn projection(store: &str, checkpoint: &Value) -> Value {
        let connection = json!({"connection": {"secretRef": {"name": "db"}}});
        json!({
            "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection", "metadata": {"name": "orders"},
            "spec": {
                "source": {"postgres": {"connection": {"secretRef": {"name": "db"}}, "eventTable": {}}},
                "readStore": {store: connection},
                "checkpoint": checkpoint,
                "lag": {"target": "5s"},
            },
        })
    }

    #[test]
    fn a_checkpoint_is_in_the_store_that_the_projection_names() {
        for (store, checkpoint) in [
            ("postgres", json!({"readStore": {}})),
            ("redis", json!({"redis": {}})),
            ("elasticsearch", json!({"elasticsearch": {}})),
            ("elasticsearch", json!({"elasticsearch": {"index": "views.checkpoints-1", "id": "a", "field": "b.c"}})),
            ("redis", json!({"redis": {"key": "checkpoint:orders", "layout": "Value"}})),
        ] {
            admit(projection(store, &checkpoint)).unwrap();
        }
        for (store, checkpoint, expected) in [
            ("redis", json!({"readStore": {}}), "spec.readStore.postgres is required with spec.checkpoint.readStore"),
            ("postgres", json!({"redis": {}}), "spec.readStore.redis is required with spec.checkpoint.redis"),
            ("redis", json!({}), "spec.checkpoint must name exactly one place"),
            ("redis", json!({"redis": {}, "readStore": {}}), "spec.checkpoint must name exactly one place"),
            ("redis", json!({"redis": {"layout": "List"}}), "spec.checkpoint.redis.layout must be"),
            ("redis", json!({"redis": {"layout": "KeyPerShard"}}), "spec.scaling.shards must be a number"),
            ("redis", json!({"elasticsearch": {}}), "spec.readStore.elasticsearch is required"),
            ("elasticsearch", json!({"elasticsearch": {"index": "Upper"}}), "spec.checkpoint.elasticsearch.index"),
            ("elasticsearch", json!({"elasticsearch": {"index": "a*"}}), "spec.checkpoint.elasticsearch.index"),
            ("mongodb", json!({"redis": {}}), "spec.readStore"),
        ] {
            let found = admit(projection(store, &checkpoint)).expect_err(expected);
            assert!(found.iter().any(|refusal| refusal.to_string().starts_with(expected)), "{expected}: {found:?}");
        }
    }

    #[test]
    fn the_built_in_projector_writes_where_its_handlers_are_for() {
        let with = |store: &str, builtin: Value| {
            let mut object = projection(store, &json!({"redis": {}}));
            object["spec"].as_object_mut().unwrap().remove("checkpoint");
            object["spec"]["projector"] = json!({"builtin": builtin});
            admit(object)
        };
        let commands = |word: &str| json!({"redis": {"handlers": {"Ordered": [["SET", "order:{stream}", word]]}}});
        let documents = |operation: Value| json!({"elasticsearch": {"handlers": {"Ordered": [operation]}}});
        let at = |own: Value| {
            let mut all = json!({"index": "orders", "id": "{stream}"});
            all.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
            all
        };
        with(
            "elasticsearch",
            documents(json!({"index": at(json!({"document": {"any": [1.5, null, {"x": "{data.x}"}]}}))})),
        )
        .unwrap();
        with("elasticsearch", documents(json!({"update": at(json!({"doc": {}, "add": {"n": 1}, "upsert": {}}))})))
            .unwrap();
        with("elasticsearch", documents(json!({"delete": at(json!({}))}))).unwrap();
        with("postgres", json!({"handlers": {"Ordered": "select 1"}})).unwrap();
        with("redis", commands("{data.total} {{braces}}")).unwrap();
        for (store, builtin, expected) in [
            ("redis", json!({"handlers": {"Ordered": "select 1"}}), "spec.readStore.postgres is required"),
            ("postgres", commands("x"), "spec.readStore.redis is required with spec.projector.builtin.redis"),
            ("elasticsearch", commands("x"), "spec.readStore.redis is required"),
            ("redis", json!({}), "spec.projector.builtin must have exactly one of handlers"),
            ("redis", documents(json!({"delete": at(json!({}))})), "spec.readStore.elasticsearch is required with"),
            ("elasticsearch", documents(json!({})), "Ordered[0] must have at least 1 entries"),
            (
                "elasticsearch",
                documents(json!({"delete": at(json!({})), "index": at(json!({"document": {}}))})),
                "Ordered[0] must have at most 1 entries",
            ),
            ("elasticsearch", documents(json!({"index": at(json!({}))})), "Ordered[0].index.document is required"),
            ("elasticsearch", documents(json!({"index": at(json!({"document": "x"}))})), "document must be an object"),
            (
                "elasticsearch",
                documents(json!({"update": at(json!({"script": {}}))})),
                "update.script is no field there",
            ),
            ("elasticsearch", documents(json!({"delete": {"index": "a", "id": "{total}"}})), "delete.id must match"),
            (
                "elasticsearch",
                json!({"elasticsearch": {"stateIndex": "A", "handlers": {}}}),
                "builtin.elasticsearch.stateIndex",
            ),
            ("redis", json!({"setup": "x", "redis": commands("x")["redis"]}), "spec.projector.builtin.setup is SQL"),
            ("redis", commands("{total}"), "spec.projector.builtin.redis.handlers"),
            ("redis", commands("{data.}"), "spec.projector.builtin.redis.handlers"),
            ("redis", json!({"redis": {"handlers": {"Ordered": [["SET"]]}}}), "spec.projector.builtin.redis.handlers"),
        ] {
            let found = with(store, builtin.clone()).expect_err(expected);
            assert!(found.iter().any(|refusal| refusal.to_string().contains(expected)), "{builtin}: {found:?}");
        }
    }

    #[test]
    fn the_built_in_projector_takes_servers_from_secrets_only() {
        let with = |pointer: &str, name: &str, value: Value| {
            let mut object = projection("postgres", &json!({"readStore": {}}));
            object["spec"].as_object_mut().unwrap().remove("checkpoint");
            object["spec"]["projector"] = json!({"builtin": {"handlers": {"Ordered": "select 1"}}});
            object.pointer_mut(pointer).unwrap()[name] = value;
            admit(object)
        };
        for connection in ["/spec/source/postgres/connection", "/spec/readStore/postgres/connection"] {
            with(connection, "database", json!("orders")).unwrap();
            for (name, value) in [("host", json!("other")), ("port", json!(5433))] {
                let found = with(connection, name, value).unwrap_err();
                let expected = "connection.host and connection.port must be absent with spec.projector.builtin";
                assert!(found.iter().any(|refusal| refusal.to_string().contains(expected)), "{found:?}");
            }
        }
    }
}
