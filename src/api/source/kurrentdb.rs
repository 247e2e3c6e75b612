//! KurrentDB, formerly EventStoreDB.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::Connection;

/// Subscriptions to streams of KurrentDB, or of EventStoreDB 22.6 or newer. Exactly one of `persistentSubscriptions` and `catchUp`.
#[derive(Clone, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.persistentSubscriptions) != has(self.catchUp)").message("spec.source.kurrentdb must name either persistentSubscriptions or catchUp"))]
pub struct KurrentDbSource {
    /// How to reach the cluster. The Secret holds a connection string (`kurrentdb://user:password@host:2113`, `esdb://…`, with `?tls=false` for a server without
    /// TLS; several servers of one cluster separated by commas) in the key `url`, `uri` or `connectionString`, or the keys `host`, `port`, `username`, `password`
    /// and `tls`.
    pub connection: Connection,
    /// Persistent subscriptions, which keep how far they have come. What they have before them is summed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(min = 1, max = 64),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["stream", "group"])
    )]
    pub persistent_subscriptions: Vec<PersistentSubscription>,
    /// A catch-up subscription, whose workers commit how far they have come to `spec.checkpoint`. With `projector.builtin` its workers read what it names, and keep
    /// the checkpoint themselves; it cannot be changed then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub catch_up: Option<CatchUpSubscription>,
}

/// A persistent subscription.
#[derive(Clone, Debug, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PersistentSubscription {
    /// The stream, or `$all`.
    #[schemars(length(min = 1, max = 1_024))]
    pub stream: String,
    /// The group.
    #[schemars(length(min = 1, max = 1_024))]
    pub group: String,
}

/// What a catch-up subscription reads.
#[derive(Clone, Debug, Deserialize, Eq, Hash, KubeSchema, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.filter) || self.stream == '$all'").message("spec.source.kurrentdb.catchUp.filter needs stream: $all"))]
pub struct CatchUpSubscription {
    /// The stream: one such as `order-1`, a category such as `$ce-order`, or `$all`. The checkpoint is the revision of the last event that was handled (of a
    /// category: of its link), or for `$all` its commit position.
    #[schemars(length(min = 1, max = 1_024))]
    pub stream: String,
    /// Which events of `$all` the subscription gets. Default: all but the server's own, whose types begin with `$`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<AllFilter>,
}

/// Which events of `$all` a subscription gets. Exactly one field.
#[derive(Clone, Debug, Deserialize, Eq, Hash, KubeSchema, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.eventTypePrefixes), has(self.streamPrefixes), has(self.systemEvents)].exists_one(x, x)").message("spec.source.kurrentdb.catchUp.filter must have exactly one of eventTypePrefixes, streamPrefixes and systemEvents"))]
pub struct AllFilter {
    /// Those whose type begins with one of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 256)))]
    pub event_type_prefixes: Vec<String>,
    /// Those whose stream begins with one of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 256)))]
    pub stream_prefixes: Vec<String>,
    /// The server's own events, too: `true` for a subscription without a filter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_events: Option<bool>,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::api::admit;

    fn refused(source: Value, checkpoint: bool) -> Option<String> {
        let connection = json!({ "secretRef": { "name": "a" } });
        let mut source = source;
        source["connection"] = connection.clone();
        let mut spec = json!({ "source": { "kurrentdb": source }, "lag": { "target": "5s" } });
        if checkpoint {
            spec["checkpoint"] = json!({ "readStore": {} });
            spec["readStore"] = json!({ "postgres": { "connection": connection } });
        }
        let refused = admit(json!({
            "apiVersion": "projectionist.dev/v1alpha1",
            "kind": "Projection",
            "metadata": { "namespace": "shop", "name": "orders" },
            "spec": spec,
        }));
        refused.err().map(|refusals| format!("{refusals:?}"))
    }

    #[test]
    fn a_subscription_is_either_persistent_or_catches_up_from_a_checkpoint() {
        let persistent = json!({ "persistentSubscriptions": [{ "stream": "a", "group": "b" }] });
        let catch_up = |stream: &str| json!({ "catchUp": { "stream": stream } });
        let filtered = |stream: &str, filter: Value| json!({ "catchUp": { "stream": stream, "filter": filter } });
        assert_eq!(refused(persistent.clone(), false), None);
        assert_eq!(refused(catch_up("$ce-order"), true), None);
        assert_eq!(refused(filtered("$all", json!({ "systemEvents": true })), true), None);
        assert_eq!(refused(filtered("$all", json!({ "streamPrefixes": ["order-"] })), true), None);
        let mut both = persistent.clone();
        both["catchUp"] = json!({ "stream": "a" });
        for (source, checkpoint, words) in [
            (persistent, true, "must be absent with spec.source.kurrentdb.persistentSubscriptions"),
            (catch_up("a"), false, "is required with spec.source.kurrentdb.catchUp"),
            (json!({}), false, "either persistentSubscriptions or catchUp"),
            (both, true, "either persistentSubscriptions or catchUp"),
            (filtered("a", json!({ "systemEvents": true })), true, "needs stream: $all"),
            (filtered("$all", json!({})), true, "exactly one of"),
            (filtered("$all", json!({ "streamPrefixes": ["a"], "eventTypePrefixes": ["b"] })), true, "exactly one of"),
        ] {
            let message = refused(source.clone(), checkpoint).unwrap_or_default();
            assert!(message.contains(words), "{source}: {message}");
        }
    }
}
