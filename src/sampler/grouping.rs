//! Decides who is asked together, and how often: everything that one server is asked, over one connection. No IO.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use crate::{
    api::Reason,
    clients::Endpoint,
    measure::{MeasureError, RunKey},
    resolve::{ConnectionName, Resolved},
    store_health::StoreName,
};

/// What one server is asked, and how often.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Group {
    /// For whom, each with its read store.
    pub(super) members: Vec<(Resolved, Option<Endpoint>)>,
    /// Time between two polls.
    pub(super) interval: Duration,
}

/// Everything that is to be measured.
#[derive(Clone, Debug, Default)]
pub(super) struct Groups {
    /// By the server with the events.
    pub(super) sources: HashMap<Endpoint, Group>,
    /// What cannot be measured, and why.
    pub(super) failures: Vec<(Resolved, MeasureError)>,
    /// Every server that is spoken to.
    pub(super) endpoints: HashSet<Endpoint>,
    /// Read stores that cannot be asked how they are, and why.
    pub(super) untold_stores: Vec<(RunKey, StoreName, MeasureError)>,
}

/// What the Secrets say of each connection.
pub(super) type Endpoints = HashMap<ConnectionName, Result<Endpoint, MeasureError>>;

/// Groups what is to be measured by server.
pub(super) fn group(all: Vec<Resolved>, endpoints: &Endpoints) -> Groups {
    let mut groups = Groups::default();
    for resolved in all {
        let source = match located(resolved.source.connection(), endpoints) {
            Ok(source) => source.clone(),
            Err(error) => {
                groups.failures.push((resolved, error));
                continue;
            }
        };
        let mut store = None;
        if let Some(read_store) = &resolved.read_store {
            let checkpoint_is_there = resolved.checkpoint.is_some() && resolved.checkpoint_in_source.is_none();
            match located((&read_store.connection, read_store.field), endpoints) {
                Ok(endpoint) => store = Some(endpoint.clone()),
                Err(error) if checkpoint_is_there => {
                    groups.failures.push((resolved, error));
                    continue;
                }
                Err(error) => {
                    let untold = read_store.untold_name().map(|name| (resolved.key.clone(), name, error));
                    groups.untold_stores.extend(untold);
                }
            }
        }
        groups.endpoints.insert(source.clone());
        groups.endpoints.extend(store.clone());
        groups.sources.entry(source).or_default().members.push((resolved, store));
    }
    for group in groups.sources.values_mut() {
        group.members.sort_by(|a, b| a.0.key.cmp(&b.0.key));
        group.interval = interval(group.members.iter().map(|(resolved, _)| resolved.target));
    }
    groups
}

/// The server of a connection, which `field` of the spec describes.
fn located<'a>((name, field): (&ConnectionName, &str), endpoints: &'a Endpoints) -> Result<&'a Endpoint, MeasureError> {
    match endpoints.get(name) {
        Some(Ok(endpoint)) => Ok(endpoint),
        Some(Err(error)) => Err(error.about(field)),
        None => Err(MeasureError {
            reason: Reason::NotMeasuredYet,
            message: match &name.secret {
                Some(secret) => format!("{field}: {secret} has not been read yet"),
                None => format!("{field}: not read yet"),
            },
        }),
    }
}

/// Time between two polls of a source whose projections have these lag targets: a tenth of the shortest, so that a missed target is seen
/// while it is missed, within 500 ms and 5 s.
pub(super) fn interval(targets: impl Iterator<Item = Duration>) -> Duration {
    let shortest = targets.min().unwrap_or(Duration::MAX);
    (shortest / 10).clamp(Duration::from_millis(500), Duration::from_secs(5))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::Projection,
        clients::{ServerKind, postgres::ConnectionSettings},
        resolve::{SecretName, resolve},
    };

    fn projection(name: &str, events: &str, store: &str, target: &str) -> Projection {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "projectionist.dev/v1alpha1",
            "kind": "Projection",
            "metadata": { "namespace": "shop", "name": name, "uid": name, "generation": 1 },
            "spec": {
                "source": { "postgres": { "connection": { "secretRef": { "name": events } }, "eventTable": {} } },
                "checkpoint": { "readStore": {} },
                "readStore": { "postgres": { "connection": { "secretRef": { "name": store } } } },
                "lag": { "target": target },
            },
        }))
        .unwrap()
    }

    fn settings(pairs: &[(&str, &str)]) -> Endpoints {
        let secret = |name: &str| SecretName { namespace: "shop".into(), name: name.to_owned(), key: None };
        let name = |name: &str| ConnectionName {
            server: ServerKind::Postgres,
            secret: Some(secret(name)),
            ca: None,
            client: None,
            given: Vec::new(),
        };
        pairs
            .iter()
            .map(|(secret, url)| {
                (name(secret), Ok(Endpoint::Postgres(ConnectionSettings::parse(url).unwrap().identity())))
            })
            .collect()
    }

    #[test]
    fn projections_on_one_database_share_it_whatever_their_secrets_are_called() {
        let needs = ["a", "b"].map(|name| resolve(&projection(name, name, name, "30s")).unwrap()).to_vec();
        let one = "postgres://u:p@db/events";
        let groups = group(needs, &settings(&[("a", one), ("b", one)]));
        assert_eq!((groups.sources.len(), groups.endpoints.len(), groups.failures.len()), (1, 1, 0));
        assert_eq!(groups.sources.values().next().unwrap().members.len(), 2);
    }

    #[test]
    fn event_and_read_database_may_differ() {
        let needs = vec![resolve(&projection("a", "events", "read", "30s")).unwrap()];
        let groups =
            group(needs, &settings(&[("events", "postgres://u:p@db/events"), ("read", "postgres://u:p@db/read")]));
        assert_eq!((groups.sources.len(), groups.endpoints.len()), (1, 2));
    }

    #[test]
    fn a_bad_secret_concerns_only_those_that_name_it() {
        let needs = [("a", "good"), ("b", "bad"), ("c", "unread")]
            .map(|(n, s)| resolve(&projection(n, s, "good", "30s")).unwrap());
        let mut known = settings(&[("good", "postgres://u:p@db/events"), ("bad", "postgres://u:p@db/events")]);
        let missing = MeasureError { reason: Reason::SecretNotFound, message: "there is none".to_owned() };
        *known
            .iter_mut()
            .find(|(name, _)| name.secret.as_ref().is_some_and(|secret| secret.name == "bad"))
            .unwrap()
            .1 = Err(missing);
        let groups = group(needs.to_vec(), &known);
        assert_eq!(groups.sources.values().map(|source| source.members.len()).sum::<usize>(), 1);
        let reasons: Vec<Reason> = groups.failures.iter().map(|(_, unknown)| unknown.reason).collect();
        assert_eq!(reasons, [Reason::SecretNotFound, Reason::NotMeasuredYet]);
        assert_eq!(groups.failures[0].1.message, "spec.source.postgres.connection: there is none");
    }

    #[test]
    fn a_read_store_that_cannot_be_named_hides_the_lag_only_where_the_checkpoint_is_in_it() {
        let with_checkpoint = resolve(&projection("a", "events", "gone", "30s")).unwrap();
        let mut outbox = projection("b", "events", "gone", "30s");
        outbox.spec.checkpoint = None;
        let postgres = outbox.spec.source.postgres.as_mut().unwrap();
        postgres.event_table = None;
        postgres.outbox = Some(serde_json::from_value(serde_json::json!({"table": "outbox"})).unwrap());
        let outbox = resolve(&outbox).unwrap();
        let gone = outbox.read_store.as_ref().unwrap().connection.clone();
        let mut known = settings(&[("events", "postgres://u:p@db/events")]);
        known.insert(gone, Err(MeasureError { reason: Reason::SecretNotFound, message: "there is none".to_owned() }));
        let groups = group(vec![with_checkpoint, outbox], &known);
        let failed: Vec<&str> = groups.failures.iter().map(|(one, _)| &*one.key.projection.name).collect();
        let measured = groups.sources.values().flat_map(|group| &group.members);
        let measured: Vec<&str> = measured.map(|(one, _)| &*one.key.projection.name).collect();
        assert_eq!((failed.as_slice(), measured.as_slice()), (["a"].as_slice(), ["b"].as_slice()));
        let (key, name, why) = &groups.untold_stores[0];
        let untold = (&*key.projection.name, &*name.server, why.reason);
        assert_eq!(untold, ("b", "Secret shop/gone", Reason::SecretNotFound));
    }

    #[test]
    fn polls_at_a_tenth_of_the_shortest_target_within_bounds() {
        for (targets, milliseconds) in
            [(vec![1], 500), (vec![30], 3_000), (vec![30, 10], 1_000), (vec![3_600], 5_000), (vec![], 5_000)]
        {
            let found = interval(targets.iter().map(|seconds| Duration::from_secs(*seconds)));
            assert_eq!(found, Duration::from_millis(milliseconds), "{targets:?}");
        }
    }
}
