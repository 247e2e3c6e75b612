//! How to reach servers, from Secrets: read when first needed, again every half minute, and at once when a database refuses them.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, future::BoxFuture};
use tokio::time::{Instant, timeout};

use super::{allowed_endpoints::check_endpoints, grouping::Endpoints};
use crate::{
    api::Reason,
    clients::{
        Endpoint, ServerKind, ServerSettings, elasticsearch, http_settings, kafka, kurrentdb, nats, postgres, rabbitmq,
        redis, scrape,
    },
    measure::MeasureError,
    resolve::{ConnectionName, SecretName},
};

/// The largest value that is used of a Secret, in bytes. Workers get it as an environment variable, and Linux starts no program with one above
/// 128 KiB.
pub const LARGEST_VALUE: usize = 96 << 10;
const TRUST_FOR: Duration = Duration::from_secs(30);
const RETRY_FAILED_AFTER: Duration = Duration::from_secs(5);
const DEADLINE: Duration = Duration::from_secs(5);
const AT_ONCE: usize = 16;

/// What a Secret holds. Values are never shown.
#[derive(Clone, Default)]
pub struct SecretData {
    /// By key.
    pub values: BTreeMap<String, Vec<u8>>,
    /// Its annotation [`crate::names::ENDPOINTS_ANNOTATION`].
    pub allowed_endpoints: Option<String>,
}

impl fmt::Debug for SecretData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SecretData").field(&self.values.keys()).finish()
    }
}

/// Where Secrets come from.
pub trait Secrets: Send + Sync + 'static {
    /// One Secret. The reason of a failure is `SecretNotFound` or `SecretForbidden` where the cluster says so; any other one means that the
    /// cluster could not be asked. Messages need not name the Secret.
    fn get<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<SecretData, MeasureError>>;
}

/// What was read, with its age.
#[derive(Default)]
pub(super) struct SecretCache {
    entries: HashMap<ConnectionName, Entry>,
}

struct Entry {
    endpoint: Result<Endpoint, MeasureError>,
    read: Instant,
}

impl SecretCache {
    /// Forgets names that are no longer needed and reads those that are missing or old. True when any says something else than before.
    pub(super) async fn refresh(&mut self, needed: HashSet<ConnectionName>, secrets: &Arc<dyn Secrets>) -> bool {
        let mut changed = false;
        self.entries.retain(|name, _| needed.contains(name));
        let now = Instant::now();
        let due = needed.into_iter().filter(|name| self.entries.get(name).is_none_or(|entry| entry.is_due(now)));
        let due: Vec<ConnectionName> = due.collect();
        let mut reading = futures::stream::iter(due)
            .map(|name| {
                let secrets = Arc::clone(secrets);
                async move {
                    let endpoint = endpoint(&name, &secrets).await;
                    (name, endpoint)
                }
            })
            .buffer_unordered(AT_ONCE);
        while let Some((name, endpoint)) = reading.next().await {
            // That the cluster does not answer says nothing about the Secret.
            let unanswered = endpoint.as_ref().is_err_and(|unknown| !is_answer(unknown.reason));
            match self.entries.get_mut(&name).filter(|entry| unanswered && entry.endpoint.is_ok()) {
                Some(known) => known.read = Instant::now(),
                None => {
                    let entry = Entry { endpoint, read: Instant::now() };
                    changed |= self.entries.get(&name).is_none_or(|before| before.endpoint != entry.endpoint);
                    self.entries.insert(name, entry);
                }
            }
        }
        changed
    }

    /// Makes these be read again, unless that was only just done.
    pub(super) fn distrust(&mut self, names: impl IntoIterator<Item = ConnectionName>) {
        let now = Instant::now();
        for name in names {
            if let Some(entry) = self.entries.get_mut(&name)
                && let Some(aged) = now.checked_sub(TRUST_FOR)
                && now.duration_since(entry.read) > RETRY_FAILED_AFTER
            {
                entry.read = aged;
            }
        }
    }

    pub(super) fn endpoints(&self) -> Endpoints {
        self.entries.iter().map(|(name, entry)| (name.clone(), entry.endpoint.clone())).collect()
    }
}

impl Entry {
    fn is_due(&self, now: Instant) -> bool {
        let trusted_for = if self.endpoint.is_ok() { TRUST_FOR } else { RETRY_FAILED_AFTER };
        now.duration_since(self.read) >= trusted_for
    }
}

/// Reads what a connection is made of. A failure names the Secret that it is about.
pub(super) async fn endpoint(name: &ConnectionName, secrets: &Arc<dyn Secrets>) -> Result<Endpoint, MeasureError> {
    match name.server {
        ServerKind::Postgres => settings::<postgres::ConnectionSettings>(name, secrets).await.map(|s| s.endpoint()),
        ServerKind::Elasticsearch => {
            settings::<elasticsearch::ConnectionSettings>(name, secrets).await.map(|s| s.endpoint())
        }
        ServerKind::Nats => settings::<nats::ConnectionSettings>(name, secrets).await.map(|s| s.endpoint()),
        ServerKind::RabbitMq => settings::<rabbitmq::ConnectionSettings>(name, secrets).await.map(|s| s.endpoint()),
        ServerKind::Redis => settings::<redis::ConnectionSettings>(name, secrets).await.map(|s| s.endpoint()),
        ServerKind::Kafka => settings::<kafka::Settings>(name, secrets).await.map(|s| s.endpoint()),
        ServerKind::KurrentDb => settings::<kurrentdb::ConnectionSettings>(name, secrets).await.map(|s| s.endpoint()),
        ServerKind::WorkerPods => settings::<scrape::PodPages>(name, secrets).await.map(|s| s.endpoint()),
        ServerKind::Scrape => {
            let settings = settings::<http_settings::HttpSettings>(name, secrets).await;
            settings.map(|settings| Endpoint::Scrape(settings.identity()))
        }
        ServerKind::Prometheus => settings::<http_settings::HttpSettings>(name, secrets).await.map(|s| s.endpoint()),
    }
}

async fn settings<S: ServerSettings>(name: &ConnectionName, secrets: &Arc<dyn Secrets>) -> Result<S, MeasureError> {
    let ConnectionName { server: _, secret, ca, client, given } = name;
    let mut settings: S = match secret {
        Some(secret) => {
            let data = read(secret, secrets).await?;
            let settings: S = parse(secret, &data, given).map_err(|unknown| about(secret, &unknown))?;
            // What the Secret alone leads to; nothing where it names no server.
            let own = parse::<S>(secret, &data, &[]).map(|own| own.servers()).unwrap_or_default();
            check_endpoints(&settings.servers(), &own, data.allowed_endpoints.as_deref())
                .map_err(|refused| about(secret, &refused))?;
            settings
        }
        None => from_values(&given.iter().map(|(key, value)| (*key, value.as_str())).collect())?,
    };
    // What holds the settings, for messages.
    let holder = || secret.as_ref().map_or_else(|| "the spec".to_owned(), ToString::to_string);
    if let Some(ca) = ca {
        let data = read(ca, secrets).await?;
        let pem = ca.key.as_deref().map_or(Ok(""), |key| text(&data, key)).map_err(|unknown| about(ca, &unknown))?;
        settings = settings
            .trusting(pem.as_bytes())
            .map_err(|why| invalid(format!("{}: {ca} holds a certificate authority, and {why}", holder())))?;
    }
    if let Some(client) = client {
        let data = read(client, secrets).await?;
        let value = |key| text(&data, key).map_err(|unknown| about(client, &unknown));
        let (certificate, key) = (value("tls.crt")?, value("tls.key")?);
        settings = settings
            .showing(certificate.as_bytes(), key.as_bytes())
            .map_err(|why| invalid(format!("{}: {client} holds a client certificate, and {why}", holder())))?;
    }
    Ok(settings)
}

async fn read(name: &SecretName, secrets: &Arc<dyn Secrets>) -> Result<SecretData, MeasureError> {
    let value = timeout(DEADLINE, secrets.get(&name.namespace, &name.name)).await;
    value.unwrap_or_else(|_| Err(no_answer())).map_err(|unknown| about(name, &unknown))
}

fn about(name: &SecretName, unknown: &MeasureError) -> MeasureError {
    unknown.about(name)
}

fn invalid(message: String) -> MeasureError {
    MeasureError { reason: Reason::ConnectionStringInvalid, message }
}

fn parse<S: ServerSettings>(
    name: &SecretName,
    data: &SecretData,
    given: &[(&'static str, String)],
) -> Result<S, MeasureError> {
    let mut values: BTreeMap<&str, &str> = BTreeMap::new();
    match &name.key {
        // Where the key is told, it is the connection string, whatever it is called.
        Some(key) => drop(values.insert("url", text(data, key)?)),
        None => {
            for key in S::keys().into_iter().filter(|key| data.values.contains_key(*key)) {
                values.insert(key, text(data, key)?);
            }
        }
    }
    if values.is_empty() {
        let message = format!(
            "none of the keys that are looked for ({}) is in it; {}: name the key in secretRef.key",
            S::keys().join(", "),
            held(data)
        );
        return Err(MeasureError { reason: Reason::SecretKeyMissing, message });
    }
    values.extend(given.iter().map(|(key, value)| (*key, value.as_str())));
    from_values(&values).map_err(|error| match error.reason {
        Reason::SecretKeyMissing => MeasureError { message: format!("{}; {}", error.message, held(data)), ..error },
        _ => error,
    })
}

fn from_values<S: ServerSettings>(values: &BTreeMap<&str, &str>) -> Result<S, MeasureError> {
    S::from_keys(|key| values.get(key).copied())
}

/// The names of a Secret's keys, for messages.
fn held(data: &SecretData) -> String {
    let keys: Vec<&str> = data.values.keys().map(String::as_str).take(20).collect();
    if keys.is_empty() {
        "the Secret has no keys".to_owned()
    } else {
        format!("the Secret has the keys {}", keys.join(", "))
    }
}

/// One value, if it can be passed on to the workers.
fn text<'a>(data: &'a SecretData, key: &str) -> Result<&'a str, MeasureError> {
    let Some(value) = data.values.get(key) else {
        return Err(MeasureError {
            reason: Reason::SecretKeyMissing,
            message: format!("there is no key {key}; {}", held(data)),
        });
    };
    if value.len() > LARGEST_VALUE {
        return Err(invalid(format!(
            "key {key}: the value is larger than {} KiB, and no environment variable carries that to the workers",
            LARGEST_VALUE >> 10
        )));
    }
    match std::str::from_utf8(value) {
        Ok(text) if text.contains('\0') => Err(invalid(format!("key {key}: the value holds a NUL byte"))),
        Ok(text) => Ok(text),
        Err(_) => Err(invalid(format!("key {key}: the value is not UTF-8 text"))),
    }
}

fn is_answer(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::SecretNotFound
            | Reason::SecretKeyMissing
            | Reason::SecretForbidden
            | Reason::ConnectionStringInvalid
            | Reason::EndpointNotAllowed
    )
}

fn no_answer() -> MeasureError {
    MeasureError { reason: Reason::TimedOut, message: "the API server did not answer in time".to_owned() }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::clients::postgres::ConnectionSettings;

    struct Answers(Mutex<Vec<Result<SecretData, MeasureError>>>);

    impl Secrets for Answers {
        fn get<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, Result<SecretData, MeasureError>> {
            let next = self.0.lock().unwrap().pop().unwrap_or_else(|| Err(no_answer()));
            Box::pin(async { next })
        }
    }

    fn data(pairs: &[(&str, &str)]) -> SecretData {
        let values = pairs.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec())).collect();
        SecretData { values, allowed_endpoints: None }
    }

    fn secret(name: &str, key: Option<&str>) -> SecretName {
        SecretName { namespace: "shop".into(), name: name.to_owned(), key: key.map(str::to_owned) }
    }

    fn connection(key: Option<&str>) -> ConnectionName {
        ConnectionName {
            server: ServerKind::Postgres,
            secret: Some(secret("db", key)),
            ca: None,
            client: None,
            given: Vec::new(),
        }
    }

    /// Reads a connection whose Secrets are asked for in this order.
    async fn read(
        name: &ConnectionName,
        answers: Vec<Result<SecretData, MeasureError>>,
    ) -> Result<ConnectionSettings, MeasureError> {
        let answers: Vec<_> = answers.into_iter().rev().collect();
        let secrets: Arc<dyn Secrets> = Arc::new(Answers(Mutex::new(answers)));
        settings(name, &secrets).await
    }

    #[tokio::test]
    async fn an_api_server_that_is_away_says_nothing_about_a_secret_but_a_deleted_one_does() {
        let name = connection(None);
        let gone = MeasureError { reason: Reason::SecretNotFound, message: "there is none".to_owned() };
        let good = data(&[("url", "postgres://u:p@db/events")]);
        let secrets: Arc<dyn Secrets> = Arc::new(Answers(Mutex::new(vec![Err(gone), Err(no_answer()), Ok(good)])));
        let mut cache = SecretCache::default();
        let mut after_reading = async || {
            for entry in cache.entries.values_mut() {
                entry.read = entry.read.checked_sub(TRUST_FOR).unwrap();
            }
            cache.refresh(HashSet::from([name.clone()]), &secrets).await;
            cache.endpoints()[&name].as_ref().map_err(|unknown| unknown.reason).err()
        };
        assert_eq!(after_reading().await, None);
        assert_eq!(after_reading().await, None, "not answered: the last value holds");
        assert_eq!(after_reading().await, Some(Reason::SecretNotFound));
    }

    #[tokio::test]
    async fn an_authority_makes_another_connection_and_is_no_use_where_nothing_is_verified() {
        let name = ConnectionName { ca: Some(secret("ca", Some("ca.crt"))), ..connection(Some("dsn")) };
        let pem = || Ok(data(&[("ca.crt", "-----BEGIN CERTIFICATE-----")]));
        let dsn = |url: &str| Ok(data(&[("dsn", url)]));
        let verifying = "postgres://u:hunter2@db/events?sslmode=verify-full";
        let with = read(&name, vec![dsn(verifying), pem()]).await.unwrap();
        assert_ne!(with.identity(), ConnectionSettings::parse(verifying).unwrap().identity());
        let idle = read(&name, vec![dsn("postgres://u:hunter2@db/events"), pem()]).await.unwrap_err();
        assert_eq!(idle.reason, Reason::ConnectionStringInvalid);
        assert_eq!(
            idle.message,
            "Secret shop/db, key dsn: Secret shop/ca, key ca.crt holds a certificate authority, and this sslmode verifies nothing: add sslmode=verify-full"
        );
        let gone = MeasureError { reason: Reason::SecretNotFound, message: "there is no such Secret".to_owned() };
        let missing = read(&name, vec![dsn(verifying), Err(gone)]).await.unwrap_err();
        assert_eq!(missing.message, "Secret shop/ca, key ca.crt: there is no such Secret");
    }

    #[tokio::test]
    async fn a_client_certificate_is_read_as_tls_secrets_hold_it() {
        let name = ConnectionName { client: Some(secret("me", None)), ..connection(None) };
        let url = |mode: &str| Ok(data(&[("url", &format!("postgres://u:hunter2@db/events?sslmode={mode}"))]));
        let pair = || Ok(data(&[("tls.crt", "certificate"), ("tls.key", "hunter2")]));
        let with = read(&name, vec![url("require"), pair()]).await.unwrap();
        assert_ne!(with.identity(), read(&connection(None), vec![url("require")]).await.unwrap().identity());
        assert!(!format!("{with:?}").contains("hunter2"));
        let disabled = read(&name, vec![url("disable"), pair()]).await.unwrap_err();
        assert!(disabled.message.contains("sslmode=disable never shows it"), "{}", disabled.message);
        let half = read(&name, vec![url("require"), Ok(data(&[("tls.crt", "certificate")]))]).await.unwrap_err();
        assert_eq!(half.message, "Secret shop/me: there is no key tls.key; the Secret has the keys tls.crt");
    }

    #[tokio::test]
    async fn what_is_missing_is_said_with_the_keys_that_are_looked_for_and_those_that_are_there() {
        let none =
            read(&connection(None), vec![Ok(data(&[("dsn", "postgres://u:hunter2@db/x"), ("tls.crt", "")]))]).await;
        let none = none.unwrap_err();
        assert_eq!(none.reason, Reason::SecretKeyMissing);
        for part in ["url, uri, jdbc-url, jdbc-uri, host", "the keys dsn, tls.crt", "secretRef.key"] {
            assert!(none.message.contains(part), "{}", none.message);
        }
        let zalando = || vec![Ok(data(&[("username", "shop"), ("password", "hunter2")]))];
        let hostless = read(&connection(None), zalando()).await.unwrap_err();
        assert_eq!(hostless.reason, Reason::SecretKeyMissing);
        assert!(hostless.message.contains("host or hostname or endpoint is missing"), "{}", hostless.message);
        let given = vec![("host", "acid-db".to_owned()), ("database", "events".to_owned())];
        let name = ConnectionName { given, ..connection(None) };
        let allowed = zalando()
            .into_iter()
            .map(|data| data.map(|data| SecretData { allowed_endpoints: Some("acid-db:5432".to_owned()), ..data }));
        let given = read(&name, allowed.collect()).await.unwrap();
        assert_eq!(given.to_string(), "database events at acid-db:5432 as shop");
        let refused = read(&name, zalando()).await.unwrap_err();
        assert_eq!(refused.reason, Reason::EndpointNotAllowed);
        let wrong = read(&connection(Some("dsn")), zalando()).await.unwrap_err();
        assert_eq!(
            wrong.message,
            "Secret shop/db, key dsn: there is no key dsn; the Secret has the keys password, username"
        );
    }

    #[tokio::test]
    async fn a_value_that_no_worker_could_get_is_refused_and_none_is_shown() {
        for (value, why) in [
            (vec![b'q'; LARGEST_VALUE + 1], "larger than 96 KiB"),
            (vec![b'q', 0xff], "not UTF-8"),
            (vec![b'q', 0], "NUL"),
        ] {
            let values = BTreeMap::from([("url".to_owned(), value)]);
            let held = SecretData { values, allowed_endpoints: None };
            assert!(!format!("{held:?}").contains('q'));
            let refused = read(&connection(None), vec![Ok(held)]).await.unwrap_err();
            assert_eq!(refused.reason, Reason::ConnectionStringInvalid);
            assert!(refused.message.contains(why), "{}", refused.message);
        }
    }
}
