//! Decides from specs and connection strings who is asked what, on which connection and how often. No IO.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use kube::ResourceExt;

use crate::{
    api::{CheckpointLocation, Connection, EventTable, Projection, Reason},
    clients::postgres::{ConnectionIdentity, ConnectionSettings},
    measure::{MeasureError, ProjectionKey},
};

/// A Secret, or one value in it.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SecretName {
    /// The Secret's (and the Projection's) namespace.
    pub namespace: Arc<str>,
    /// The Secret's name.
    pub name: String,
    /// The key in it; absent where all that are known are looked for.
    pub key: Option<String>,
}

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret {}/{}", self.namespace, self.name)?;
        self.key.as_ref().map_or(Ok(()), |key| write!(f, ", key {key}"))
    }
}

/// What a connection is made of.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ConnectionName {
    /// The Secret with the connection string or its parts.
    pub secret: SecretName,
    /// The certificate authority, where it is not a public one.
    pub ca: Option<SecretName>,
    /// The certificate that we show, where there is one.
    pub client: Option<SecretName>,
    /// Parts that the spec gives itself, by the keys that a Secret would have for them.
    pub given: Vec<(&'static str, String)>,
}

/// What measuring one projection takes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Need {
    /// Which projection.
    pub key: ProjectionKey,
    /// Its UID.
    pub uid: Arc<str>,
    /// The generation of its spec.
    pub generation: i64,
    /// Where the events are.
    pub events: ConnectionName,
    /// The event table.
    pub table: EventTable,
    /// Where the checkpoint is.
    pub store: ConnectionName,
    /// The checkpoint.
    pub checkpoint: CheckpointLocation,
    /// The lag target.
    pub target: Duration,
}

/// What one source is asked, and how often.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct SourcePlan {
    /// For whom, each with its read store.
    pub asks: Vec<(Need, ConnectionIdentity)>,
    /// Time between two polls.
    pub interval: Duration,
}

/// Everything that is to be measured.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// By event database.
    pub sources: HashMap<ConnectionIdentity, SourcePlan>,
    /// Whom nobody can be asked about, and why.
    pub failures: Vec<(Need, MeasureError)>,
    /// Every database that is spoken to.
    pub databases: HashSet<ConnectionIdentity>,
}

/// Key of a Projection.
pub fn key_of(projection: &Projection) -> ProjectionKey {
    ProjectionKey { namespace: projection.namespace().unwrap_or_default().into(), name: projection.name_any().into() }
}

/// What measuring this Projection takes.
///
/// # Errors
/// `InvalidSpec` where the API server's rules were not in force when it was written.
pub fn need(projection: &Projection) -> Result<Need, MeasureError> {
    let key = key_of(projection);
    let invalid = |message: &str| MeasureError { reason: Reason::InvalidSpec, message: message.to_owned() };
    let spec = &projection.spec;
    let source = spec.source.postgres.as_ref().ok_or_else(|| invalid("spec.source.postgres is missing"))?;
    let store = spec
        .read_store
        .as_ref()
        .and_then(|store| store.postgres.as_ref())
        .ok_or_else(|| invalid("spec.readStore.postgres is missing: the checkpoint is read there"))?;
    let checkpoint = spec
        .checkpoint_location(&key.namespace, &key.name)
        .ok_or_else(|| invalid("spec.checkpoint is missing: where does the projector commit how far it has come?"))?;
    if let Some(message) = spec.overlong_name() {
        return Err(invalid(&message));
    }
    let secret = |name: &str, secret_key: Option<&str>| SecretName {
        namespace: Arc::clone(&key.namespace),
        name: name.to_owned(),
        key: secret_key.map(str::to_owned),
    };
    let connection = |connection: &Connection| ConnectionName {
        secret: secret(&connection.secret_ref.name, connection.secret_ref.key.as_deref()),
        ca: connection.ca_secret_ref.as_ref().map(|ca| secret(&ca.name, Some(&ca.key))),
        client: connection.client_certificate_secret_ref.as_ref().map(|client| secret(&client.name, None)),
        given: connection.given(),
    };
    Ok(Need {
        uid: projection.uid().unwrap_or_default().into(),
        generation: projection.metadata.generation.unwrap_or_default(),
        events: connection(&source.connection),
        table: source.event_table.clone(),
        store: connection(&store.connection),
        checkpoint,
        target: spec.lag.target.0,
        key,
    })
}

/// Groups the needs by database.
pub fn plan(needs: Vec<Need>, settings: &HashMap<ConnectionName, Result<ConnectionSettings, MeasureError>>) -> Plan {
    let mut plan = Plan::default();
    for need in needs {
        let identity = |name: &ConnectionName, field: &str| match settings.get(name) {
            Some(Ok(settings)) => Ok(settings.identity()),
            Some(Err(unknown)) => {
                Err(MeasureError { reason: unknown.reason, message: format!("{field}: {}", unknown.message) })
            }
            None => Err(MeasureError {
                reason: Reason::NotMeasuredYet,
                message: format!("{field}: {} has not been read yet", name.secret),
            }),
        };
        let both = identity(&need.events, "spec.source.postgres.connection")
            .and_then(|events| Ok((events, identity(&need.store, "spec.readStore.postgres.connection")?)));
        match both {
            Ok((events, store)) => {
                plan.databases.extend([events.clone(), store.clone()]);
                plan.sources.entry(events).or_default().asks.push((need, store));
            }
            Err(unknown) => plan.failures.push((need, unknown)),
        }
    }
    for source in plan.sources.values_mut() {
        source.asks.sort_by(|a, b| a.0.key.cmp(&b.0.key));
        source.interval = interval(source.asks.iter().map(|(need, _)| need.target));
    }
    plan
}

/// Time between two polls of a source whose projections have these lag targets: a tenth of the shortest, so that a missed target is seen
/// while it is missed, within 500 ms and 5 s.
pub fn interval(targets: impl Iterator<Item = Duration>) -> Duration {
    let shortest = targets.min().unwrap_or(Duration::MAX);
    (shortest / 10).clamp(Duration::from_millis(500), Duration::from_secs(5))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn projection(name: &str, events: &str, store: &str, target: &str) -> Projection {
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

    fn settings(pairs: &[(&str, &str)]) -> HashMap<ConnectionName, Result<ConnectionSettings, MeasureError>> {
        let secret = |name: &str| SecretName { namespace: "shop".into(), name: name.to_owned(), key: None };
        let name = |name: &str| ConnectionName { secret: secret(name), ca: None, client: None, given: Vec::new() };
        pairs.iter().map(|(secret, url)| (name(secret), Ok(ConnectionSettings::parse(url).unwrap()))).collect()
    }

    #[test]
    fn projections_on_one_database_share_it_whatever_their_secrets_are_called() {
        let needs = ["a", "b"].map(|name| need(&projection(name, name, name, "30s")).unwrap()).to_vec();
        let one = "postgres://u:p@db/events";
        let plan = plan(needs, &settings(&[("a", one), ("b", one)]));
        assert_eq!((plan.sources.len(), plan.databases.len(), plan.failures.len()), (1, 1, 0));
        assert_eq!(plan.sources.values().next().unwrap().asks.len(), 2);
    }

    #[test]
    fn event_and_read_database_may_differ() {
        let needs = vec![need(&projection("a", "events", "read", "30s")).unwrap()];
        let plan =
            plan(needs, &settings(&[("events", "postgres://u:p@db/events"), ("read", "postgres://u:p@db/read")]));
        assert_eq!((plan.sources.len(), plan.databases.len()), (1, 2));
    }

    #[test]
    fn a_bad_secret_concerns_only_those_that_name_it() {
        let needs = [("a", "good"), ("b", "bad"), ("c", "unread")]
            .map(|(n, s)| need(&projection(n, s, "good", "30s")).unwrap());
        let mut known = settings(&[("good", "postgres://u:p@db/events"), ("bad", "postgres://u:p@db/events")]);
        let missing = MeasureError { reason: Reason::SecretNotFound, message: "there is none".to_owned() };
        *known.iter_mut().find(|(name, _)| name.secret.name == "bad").unwrap().1 = Err(missing);
        let plan = plan(needs.to_vec(), &known);
        assert_eq!(plan.sources.values().map(|source| source.asks.len()).sum::<usize>(), 1);
        let reasons: Vec<Reason> = plan.failures.iter().map(|(_, unknown)| unknown.reason).collect();
        assert_eq!(reasons, [Reason::SecretNotFound, Reason::NotMeasuredYet]);
        assert_eq!(plan.failures[0].1.message, "spec.source.postgres.connection: there is none");
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
