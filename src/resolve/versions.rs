//! What stands for the version of a read model in the names of its places. Pure.

use std::borrow::Cow;

use crate::api::{ProjectionSpec, ReadStore};

/// Stands for the version.
pub(super) const PLACEHOLDER: &str = "{version}";

/// The spec with its version in place of each `{version}`; as it is where there is nothing to replace.
pub(super) fn filled(spec: &ProjectionSpec) -> Cow<'_, ProjectionSpec> {
    let mut filled = Cow::Borrowed(spec);
    if let (Some(version), Some(ReadStore { postgres: Some(store), .. })) = (&spec.version, &spec.read_store)
        && let Some(schema) = store.schema.as_ref().filter(|schema| schema.contains(PLACEHOLDER))
        && let Some(ReadStore { postgres: Some(store), .. }) = &mut filled.to_mut().read_store
    {
        store.schema = Some(schema.replace(PLACEHOLDER, version));
    }
    filled
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::{
        api::{CheckpointLocation, Projection},
        resolve::{Measures, resolve},
    };

    fn projection(schema: &str, version: Option<&str>) -> Projection {
        let connection = json!({"secretRef": {"name": "db"}});
        serde_json::from_value(json!({
            "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection",
            "metadata": {"namespace": "shop", "name": "orders", "uid": "u-1"},
            "spec": {
                "source": {"postgres": {"connection": connection, "eventTable": {}}},
                "readStore": {"postgres": {"connection": connection, "schema": schema}},
                "projector": {"builtin": {"handlers": {"Placed": "select 1"}}},
                "lag": {"target": "5s"}, "version": version,
            },
        }))
        .unwrap()
    }

    /// The table with the checkpoints.
    fn table(projection: &Projection) -> String {
        match resolve(projection).unwrap().checkpoint {
            Some(CheckpointLocation::Table(table)) => table.table,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_checkpoint_is_read_in_the_schema_of_the_version() {
        for (schema, version, expected) in [
            ("orders", None, "orders.projectionist_checkpoints"),
            ("orders", Some("v1"), "orders.projectionist_checkpoints"),
            ("orders_{version}", Some("v1"), "orders_v1.projectionist_checkpoints"),
            ("{version}.orders", Some("2"), "\"2.orders\".projectionist_checkpoints"),
        ] {
            assert_eq!(table(&projection(schema, version)), expected, "{schema} {version:?}");
        }
    }

    #[test]
    fn what_was_measured_of_another_version_counts_only_where_the_place_is_the_same() {
        let measures = |schema, version| Measures::of(&projection(schema, Some(version)));
        assert_eq!(measures("orders", "v1"), measures("orders", "v2"), "a name alone changes nothing");
        assert_ne!(measures("orders_{version}", "v1"), measures("orders_{version}", "v2"));
    }

    #[test]
    fn a_schema_that_becomes_too_long_by_its_version_is_refused() {
        let long = format!("{}_{{version}}", "o".repeat(50));
        assert!(resolve(&projection(&long, Some("v1"))).is_ok());
        let version = "v".repeat(40);
        let refused = resolve(&projection(&long, Some(&version))).unwrap_err().message;
        assert!(refused.contains("spec.readStore.postgres.schema") && refused.contains("this has 91"), "{refused}");
    }
}
