//! Connections as a worker's environment names them: the keys of a Secret, each in a variable of its own. See [`worker_env`].

use std::collections::BTreeMap;

use anyhow::Context as _;

use crate::{
    clients::{ServerSettings, elasticsearch, kafka, kurrentdb, nats, postgres, rabbitmq, redis},
    names::worker_env,
    projector::{Output, StoreConnection},
};

/// What the environment says about a connection to the read store of this kind.
pub(super) fn store_connection(output: &Output) -> anyhow::Result<StoreConnection> {
    match output {
        Output::Postgres(_) => connection(worker_env::READ_STORE).map(Box::new).map(StoreConnection::Postgres),
        Output::Redis(_) => redis_connection(worker_env::READ_STORE).map(StoreConnection::Redis),
        Output::Elasticsearch(_) => {
            elasticsearch_connection(worker_env::READ_STORE).map(StoreConnection::Elasticsearch)
        }
    }
}

/// What the environment says about a connection to PostgreSQL.
pub(super) fn connection(prefix: &str) -> anyhow::Result<postgres::ConnectionSettings> {
    use postgres::ConnectionSettings as Settings;
    read(prefix, Settings::with_ca, Settings::with_client_certificate)
}

/// The same of a connection to Redis.
pub(super) fn redis_connection(prefix: &str) -> anyhow::Result<redis::ConnectionSettings> {
    use redis::ConnectionSettings as Settings;
    read(prefix, Settings::with_ca, Settings::with_client_certificate)
}

/// The same of a connection to NATS.
pub(super) fn nats_connection(prefix: &str) -> anyhow::Result<nats::ConnectionSettings> {
    use nats::ConnectionSettings as Settings;
    read(prefix, Settings::with_ca, Settings::with_client_certificate)
}

/// The same of a connection to RabbitMQ.
pub(super) fn rabbitmq_connection(prefix: &str) -> anyhow::Result<rabbitmq::ConnectionSettings> {
    use rabbitmq::ConnectionSettings as Settings;
    read(prefix, Settings::with_ca, Settings::with_client_certificate)
}

/// The same of a connection to KurrentDB.
pub(super) fn kurrentdb_connection(prefix: &str) -> anyhow::Result<kurrentdb::ConnectionSettings> {
    use kurrentdb::ConnectionSettings as Settings;
    read(prefix, Settings::with_ca, Settings::with_client_certificate)
}

/// The same of a connection to Elasticsearch.
fn elasticsearch_connection(prefix: &str) -> anyhow::Result<elasticsearch::ConnectionSettings> {
    use elasticsearch::ConnectionSettings as Settings;
    read(prefix, Settings::with_ca, Settings::with_client_certificate)
}

/// The same of a connection to Kafka.
pub(super) fn kafka_connection(prefix: &str) -> anyhow::Result<kafka::Settings> {
    let with_ca = |settings: kafka::Settings, ca: &[u8]| settings.with_ca(ca.to_vec());
    let with_client = |settings: kafka::Settings, certificate: &[u8], key: &[u8]| {
        settings.with_client_certificate(certificate.to_vec(), key.to_vec())
    };
    read(prefix, with_ca, with_client)
}

/// Reads the settings of one kind of server from the variables that begin with `prefix`, and adds the certificates.
fn read<S: ServerSettings>(
    prefix: &str,
    with_ca: fn(S, &[u8]) -> S,
    with_client_certificate: fn(S, &[u8], &[u8]) -> S,
) -> anyhow::Result<S> {
    let environment = Environment::read(prefix, S::keys());
    let settings = S::from_keys(|key| environment.keys.get(key).map(String::as_str));
    let mut settings = settings.map_err(|error| anyhow::anyhow!(error.message)).with_context(|| {
        format!("read from the environment variables {prefix}…, which the operator sets for workers")
    })?;
    if let Some(ca) = &environment.ca {
        settings = with_ca(settings, ca.as_bytes());
    }
    if let Some((certificate, key)) = &environment.client {
        settings = with_client_certificate(settings, certificate.as_bytes(), key.as_bytes());
    }
    Ok(settings)
}

/// What a Secret says, as it arrives in a worker's environment.
struct Environment {
    keys: BTreeMap<&'static str, String>,
    ca: Option<String>,
    client: Option<(String, String)>,
}

impl Environment {
    fn read(prefix: &str, keys: impl IntoIterator<Item = &'static str>) -> Self {
        let named = |name: &str| std::env::var(format!("{prefix}{name}")).ok().filter(|value| !value.is_empty());
        let of_key = |key| Some((key, std::env::var(worker_env::of_key(prefix, key)).ok()?));
        Self {
            keys: keys.into_iter().filter_map(of_key).collect(),
            ca: named(worker_env::CA),
            client: named(worker_env::CLIENT_CERTIFICATE).zip(named(worker_env::CLIENT_KEY)),
        }
    }
}
