//! What follows from a spec: the number of shards and the place of the checkpoint. One answer for sampler, projector and controller.

use super::{
    Connection, Ordering, ProjectionSpec, Shards,
    spec::{default_name_column, default_position_column},
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
            Shards::Auto if self.is_builtin() && self.scaling.ordering == Ordering::Strict => Some(1),
            Shards::Auto if self.is_builtin() => Some(Self::BUILTIN_SHARDS),
            Shards::Auto => None,
        }
    }

    /// Where in the read store the checkpoint of the Projection `namespace/name` is, or `None` when the spec does not say.
    pub fn checkpoint_location(&self, namespace: &str, name: &str) -> Option<CheckpointLocation> {
        let store = self.read_store.as_ref()?.postgres.as_ref()?;
        let in_schema = |table: &str| match &store.schema {
            Some(schema) if !table.contains('.') => format!("{schema}.{table}"),
            _ => table.to_owned(),
        };
        if self.is_builtin() {
            return Some(CheckpointLocation {
                table: in_schema(crate::names::CHECKPOINT_TABLE),
                name_column: default_name_column(),
                position_column: default_position_column(),
                name: format!("{namespace}/{name}"),
                shards: self.shard_count(),
            });
        }
        let table = &self.checkpoint.as_ref()?.read_store;
        Some(CheckpointLocation {
            table: in_schema(&table.table),
            name_column: table.name_column.clone(),
            position_column: table.position_column.clone(),
            name: table.name.clone().unwrap_or_else(|| name.to_owned()),
            shards: None,
        })
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

/// One projection's rows in a checkpoint table.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct CheckpointLocation {
    /// The table, optionally with its schema.
    pub table: String,
    /// The column that tells projections apart.
    pub name_column: String,
    /// The column with the last processed position.
    pub position_column: String,
    /// This projection's value in the name column.
    pub name: String,
    /// With the built-in projector: how many rows there are, numbered from 0 in the column `shard`, one a hash segment.
    pub shards: Option<u32>,
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
    fn the_checkpoint_is_where_the_spec_or_the_builtin_projector_puts_it() {
        let existing = serde_json::json!({ "existing": { "kind": "Deployment", "name": "x" } });
        let own = spec(&existing, &serde_json::json!({}), Some("orders")).checkpoint_location("shop", "a").unwrap();
        assert_eq!((own.table.as_str(), own.name.as_str(), own.shards), ("orders.checkpoints", "a", None));
        let builtin = serde_json::json!({ "builtin": { "handlers": { "a": "select 1" } } });
        let ours = spec(&builtin, &serde_json::json!({}), None).checkpoint_location("shop", "a").unwrap();
        assert_eq!(
            (ours.table.as_str(), ours.name.as_str(), ours.shards),
            ("projectionist_checkpoints", "shop/a", Some(24))
        );
    }
}
