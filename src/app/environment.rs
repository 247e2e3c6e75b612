//! Connections as a worker's environment names them: the keys of a Secret, each in a variable of its own. See [`worker_env`].

use std::collections::BTreeMap;

use anyhow::Context as _;

use crate::{
    clients::{elasticsearch, kafka, postgres::ConnectionSettings, redis},
    names::{secret_key, worker_env},
};

/// What the environment says about a connection to PostgreSQL.
pub(super) fn connection(prefix: &str) -> anyhow::Result<ConnectionSettings> {
    let environment = Environment::read(prefix, secret_key::all());
    let settings = ConnectionSettings::from_keys(|key| environment.key(key)).with_context(|| said_by(prefix))?;
    Ok(environment.complete(settings, ConnectionSettings::with_ca, ConnectionSettings::with_client_certificate))
}

/// The same of a connection to Redis.
pub(super) fn redis_connection(prefix: &str) -> anyhow::Result<redis::ConnectionSettings> {
    use redis::ConnectionSettings as Settings;
    let environment = Environment::read(prefix, secret_key::REDIS);
    let settings = Settings::from_keys(|key| environment.key(key)).map_err(|error| anyhow::anyhow!(error.message));
    let settings = settings.with_context(|| said_by(prefix))?;
    Ok(environment.complete(settings, Settings::with_ca, Settings::with_client_certificate))
}

/// The same of a connection to Elasticsearch.
pub(super) fn elasticsearch_connection(prefix: &str) -> anyhow::Result<elasticsearch::ConnectionSettings> {
    use elasticsearch::ConnectionSettings as Settings;
    let environment = Environment::read(prefix, secret_key::ELASTICSEARCH);
    let settings = Settings::from_keys(|key| environment.key(key)).map_err(|error| anyhow::anyhow!(error.message));
    let settings = settings.with_context(|| said_by(prefix))?;
    Ok(environment.complete(settings, Settings::with_ca, Settings::with_client_certificate))
}

/// The same of a connection to Kafka.
pub(super) fn kafka_connection(prefix: &str) -> anyhow::Result<kafka::Settings> {
    use kafka::Settings;
    let environment = Environment::read(prefix, secret_key::KAFKA);
    let settings = Settings::from_keys(|key| environment.key(key)).with_context(|| said_by(prefix))?;
    let with_ca = |settings: Settings, ca: &[u8]| settings.with_ca(ca.to_vec());
    let with_client = |settings: Settings, certificate: &[u8], key: &[u8]| {
        settings.with_client_certificate(certificate.to_vec(), key.to_vec())
    };
    Ok(environment.complete(settings, with_ca, with_client))
}

fn said_by(prefix: &str) -> String {
    format!("read from the environment variables {prefix}…, which the operator sets for workers")
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

    fn key(&self, key: &str) -> Option<&str> {
        self.keys.get(key).map(String::as_str)
    }

    /// Adds the certificates to settings that were read from the keys.
    fn complete<S>(
        &self,
        mut settings: S,
        with_ca: fn(S, &[u8]) -> S,
        with_client_certificate: fn(S, &[u8], &[u8]) -> S,
    ) -> S {
        if let Some(ca) = &self.ca {
            settings = with_ca(settings, ca.as_bytes());
        }
        if let Some((certificate, key)) = &self.client {
            settings = with_client_certificate(settings, certificate.as_bytes(), key.as_bytes());
        }
        settings
    }
}
