//! What is read from KurrentDB: persistent subscriptions, or a catch-up subscription with its checkpoint.

use std::collections::BTreeSet;

use super::{invalid, postgres::checkpoint_in_read_store};
use crate::{
    api::{CatchUpSubscription, CheckpointLocation, KurrentDbSource, PersistentSubscription, ProjectionSpec},
    measure::{MeasureError, ProjectionKey},
};

/// What is read from KurrentDB.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum KurrentDbSubscriptions {
    /// Persistent subscriptions, at least one, none twice: the server keeps the checkpoint.
    Persistent(Vec<PersistentSubscription>),
    /// A catch-up subscription: the read store keeps the checkpoint.
    CatchUp(CatchUpSubscription),
}

/// What is read, and the place of the checkpoint where the server does not keep it.
pub(super) fn subscriptions(
    spec: &ProjectionSpec,
    source: &KurrentDbSource,
    key: &ProjectionKey,
) -> Result<(KurrentDbSubscriptions, Option<CheckpointLocation>), MeasureError> {
    if source.connection.database.is_some() {
        return Err(invalid("spec.source.kurrentdb.connection.database must be absent: KurrentDB has no databases"));
    }
    let persistent: BTreeSet<&PersistentSubscription> = source.persistent_subscriptions.iter().collect();
    match &source.catch_up {
        Some(catch_up) if persistent.is_empty() => {
            let checkpoint = checkpoint_in_read_store(spec, key)?;
            Ok((KurrentDbSubscriptions::CatchUp(catch_up.clone()), Some(checkpoint)))
        }
        None if !persistent.is_empty() && spec.is_builtin() => Err(invalid(
            "spec.source.kurrentdb.catchUp is required with spec.projector.builtin, which keeps the checkpoint itself",
        )),
        None if !persistent.is_empty() => {
            Ok((KurrentDbSubscriptions::Persistent(persistent.into_iter().cloned().collect()), None))
        }
        _ => Err(invalid("spec.source.kurrentdb must name either persistentSubscriptions or catchUp")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::{
        api::{CheckpointRows, Projection},
        projector::{Input, ProjectorConfig},
        resolve::{Pods, Workload, resolve, validate},
    };

    fn built_in(reads: &Value) -> Projection {
        let mut kurrentdb = json!({ "connection": { "secretRef": { "name": "k" } } });
        kurrentdb.as_object_mut().unwrap().extend(reads.as_object().unwrap().clone());
        serde_json::from_value(json!({
            "apiVersion": "projectionist.dev/v1alpha1",
            "kind": "Projection",
            "metadata": { "namespace": "shop", "name": "orders", "uid": "1" },
            "spec": {
                "source": { "kurrentdb": kurrentdb },
                "readStore": { "postgres": { "connection": { "secretRef": { "name": "reads" } } } },
                "lag": { "target": "5s" },
                "scaling": { "shards": 6 },
                "projector": { "builtin": { "handlers": { "Ordered": "select 1" } } },
            },
        }))
        .unwrap()
    }

    #[test]
    fn the_built_in_projector_reads_a_catch_up_subscription_and_has_a_checkpoint_for_each_shard() {
        let reads = json!({ "catchUp": { "stream": "$all", "filter": { "streamPrefixes": ["order-"] } } });
        let projection = built_in(&reads);
        let Workload::Own { pods: Pods::Builtin(pods), .. } = validate(&projection).unwrap().workload else {
            panic!("no built-in projector")
        };
        let config = ProjectorConfig::from_json(&pods.configuration.to_string()).unwrap();
        let Input::KurrentDb(input) = config.input else { panic!("another input") };
        assert_eq!((json!(input.subscription), input.shards), (reads["catchUp"].clone(), 6));
        let checkpoint = resolve(&projection).unwrap().checkpoint.unwrap();
        assert_eq!(*checkpoint.rows(), CheckpointRows::Numbered(6));
    }

    #[test]
    fn the_built_in_projector_reads_no_persistent_subscription() {
        let persistent = built_in(&json!({ "persistentSubscriptions": [{ "stream": "a", "group": "b" }] }));
        assert!(validate(&persistent).unwrap_err().to_string().contains("spec.source.kurrentdb.catchUp is required"));
        assert!(resolve(&persistent).unwrap_err().message.contains("spec.source.kurrentdb.catchUp is required"));
    }
}
