//! Connection strings from Secrets: read when first needed, again every half minute, and at once when a database refuses them.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, future::BoxFuture};
use tokio::time::{Instant, timeout};

use super::plan::{ConnectionName, SecretName};
use crate::{api::Reason, postgres::ConnectionSettings, snapshot::Unknown};

/// The largest value that is read from a Secret, in bytes.
pub const LARGEST_VALUE: usize = 1 << 20;
const TRUST_FOR: Duration = Duration::from_secs(30);
const RETRY_FAILED_AFTER: Duration = Duration::from_secs(5);
const DEADLINE: Duration = Duration::from_secs(5);
const AT_ONCE: usize = 16;

/// A value that is never shown.
#[derive(Clone)]
pub struct SecretText(pub String);

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(…)")
    }
}

/// Where Secrets come from.
pub trait Secrets: Send + Sync + 'static {
    /// One key of one Secret. The reason of a failure is `SecretNotFound`, `SecretKeyMissing` or `SecretForbidden` where the cluster says so; any
    /// other one means that the cluster could not be asked. Messages need not name the Secret.
    fn get<'a>(&'a self, namespace: &'a str, name: &'a str, key: &'a str)
    -> BoxFuture<'a, Result<SecretText, Unknown>>;
}

/// What was read, with its age.
#[derive(Default)]
pub(super) struct SecretCache {
    entries: HashMap<ConnectionName, Entry>,
}

struct Entry {
    settings: Result<ConnectionSettings, Unknown>,
    read: Instant,
}

impl SecretCache {
    /// Forgets names that nobody needs and reads those that are missing or old. True when any says something else than before.
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
                    let settings = settings(&name, &secrets).await;
                    (name, settings)
                }
            })
            .buffer_unordered(AT_ONCE);
        while let Some((name, settings)) = reading.next().await {
            // That the cluster does not answer says nothing about the Secret.
            let unanswered = settings.as_ref().is_err_and(|unknown| !is_answer(unknown.reason));
            match self.entries.get_mut(&name).filter(|entry| unanswered && entry.settings.is_ok()) {
                Some(known) => known.read = Instant::now(),
                None => {
                    let entry = Entry { settings, read: Instant::now() };
                    changed |= self.entries.get(&name).is_none_or(|before| !before.says_the_same(&entry));
                    self.entries.insert(name, entry);
                }
            }
        }
        changed
    }

    /// Makes these be read anew, unless that has only just been done.
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

    pub(super) fn settings(&self) -> HashMap<ConnectionName, Result<ConnectionSettings, Unknown>> {
        self.entries.iter().map(|(name, entry)| (name.clone(), entry.settings.clone())).collect()
    }
}

impl Entry {
    fn says_the_same(&self, other: &Self) -> bool {
        match (&self.settings, &other.settings) {
            (Ok(one), Ok(other)) => one.identity() == other.identity(),
            (Err(one), Err(other)) => one == other,
            (Ok(_), Err(_)) | (Err(_), Ok(_)) => false,
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        let trusted_for = if self.settings.is_ok() { TRUST_FOR } else { RETRY_FAILED_AFTER };
        now.duration_since(self.read) >= trusted_for
    }
}

/// Reads what a connection is made of. A failure names the Secret that it is about.
async fn settings(name: &ConnectionName, secrets: &Arc<dyn Secrets>) -> Result<ConnectionSettings, Unknown> {
    let ConnectionName { url, ca } = name;
    let settings = parse(&read(url, secrets).await?).map_err(|unknown| about(url, &unknown))?;
    let Some(ca) = ca else { return Ok(settings) };
    let pem = read(ca, secrets).await?;
    if !settings.verifies_certificate() {
        return Err(Unknown {
            reason: Reason::ConnectionStringInvalid,
            message: format!(
                "{url}: {ca} holds a certificate authority, and this sslmode verifies nothing: add sslmode=verify-full"
            ),
        });
    }
    Ok(settings.with_ca(pem.0.as_bytes()))
}

async fn read(name: &SecretName, secrets: &Arc<dyn Secrets>) -> Result<SecretText, Unknown> {
    let value = timeout(DEADLINE, secrets.get(&name.namespace, &name.name, &name.key)).await;
    value.unwrap_or_else(|_| Err(no_answer())).map_err(|unknown| about(name, &unknown))
}

fn about(name: &SecretName, unknown: &Unknown) -> Unknown {
    Unknown { reason: unknown.reason, message: format!("{name}: {}", unknown.message) }
}

fn parse(text: &SecretText) -> Result<ConnectionSettings, Unknown> {
    if text.0.len() > LARGEST_VALUE {
        return Err(Unknown {
            reason: Reason::ConnectionStringInvalid,
            message: "the value is larger than 1 MiB, which no connection string is".to_owned(),
        });
    }
    ConnectionSettings::parse(&text.0).map_err(|error| Unknown { reason: error.reason(), message: error.to_string() })
}

fn is_answer(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::SecretNotFound | Reason::SecretKeyMissing | Reason::SecretForbidden | Reason::ConnectionStringInvalid
    )
}

fn no_answer() -> Unknown {
    Unknown { reason: Reason::TimedOut, message: "the API server did not answer in time".to_owned() }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    struct Answers(Mutex<Vec<Result<SecretText, Unknown>>>);

    impl Secrets for Answers {
        fn get<'a>(&'a self, _: &'a str, _: &'a str, _: &'a str) -> BoxFuture<'a, Result<SecretText, Unknown>> {
            let next = self.0.lock().unwrap().pop().unwrap_or_else(|| Err(no_answer()));
            Box::pin(async { next })
        }
    }

    #[tokio::test]
    async fn an_api_server_that_is_away_says_nothing_about_a_secret_but_a_deleted_one_does() {
        let name = ConnectionName { url: secret("db", "url"), ca: None };
        let gone = Unknown { reason: Reason::SecretNotFound, message: "there is none".to_owned() };
        let good = SecretText("postgres://u:p@db/events".to_owned());
        let secrets: Arc<dyn Secrets> = Arc::new(Answers(Mutex::new(vec![Err(gone), Err(no_answer()), Ok(good)])));
        let mut cache = SecretCache::default();
        let mut after_reading = async || {
            for entry in cache.entries.values_mut() {
                entry.read = entry.read.checked_sub(TRUST_FOR).unwrap();
            }
            cache.refresh(HashSet::from([name.clone()]), &secrets).await;
            cache.settings()[&name].as_ref().map_err(|unknown| unknown.reason).err()
        };
        assert_eq!(after_reading().await, None);
        assert_eq!(after_reading().await, None, "not answered: the last value holds");
        assert_eq!(after_reading().await, Some(Reason::SecretNotFound));
    }

    fn secret(name: &str, key: &str) -> SecretName {
        SecretName { namespace: "shop".into(), name: name.to_owned(), key: key.to_owned() }
    }

    #[tokio::test]
    async fn an_authority_makes_another_connection_and_is_no_use_where_nothing_is_verified() {
        let name = ConnectionName { url: secret("db", "url"), ca: Some(secret("ca", "ca.crt")) };
        let read = async |url: &str, ca: Result<SecretText, Unknown>| {
            let secrets: Arc<dyn Secrets> = Arc::new(Answers(Mutex::new(vec![ca, Ok(SecretText(url.to_owned()))])));
            settings(&name, &secrets).await
        };
        let pem = || Ok(SecretText("-----BEGIN CERTIFICATE-----".to_owned()));
        let verifying = "postgres://u:hunter2@db/events?sslmode=verify-full";
        let with = read(verifying, pem()).await.unwrap();
        assert_ne!(with.identity(), ConnectionSettings::parse(verifying).unwrap().identity());
        let idle = read("postgres://u:hunter2@db/events", pem()).await.unwrap_err();
        assert_eq!(idle.reason, Reason::ConnectionStringInvalid);
        assert_eq!(
            idle.message,
            "Secret shop/db, key url: Secret shop/ca, key ca.crt holds a certificate authority, and this sslmode verifies nothing: add sslmode=verify-full"
        );
        let gone = Unknown { reason: Reason::SecretNotFound, message: "there is no such Secret".to_owned() };
        let missing = read(verifying, Err(gone)).await.unwrap_err();
        assert_eq!(missing.message, "Secret shop/ca, key ca.crt: there is no such Secret");
    }

    #[test]
    fn a_huge_value_is_refused_and_none_is_shown() {
        let huge = SecretText("q".repeat(LARGEST_VALUE + 1));
        assert_eq!(parse(&huge).unwrap_err().reason, Reason::ConnectionStringInvalid);
        assert!(!format!("{huge:?}").contains('q'));
    }
}
