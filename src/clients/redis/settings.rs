//! How to reach one Redis server or cluster: what a Secret may say, and what of it may be shown.
//!
//! One key holds a URL (`redis://user:password@host:6379/0`, `rediss://…` for TLS), or each part has a key of its own. No part of a URL is repeated
//! in an error, since a password may have ended up anywhere in it.

use std::{fmt, sync::Arc};

use super::{
    address::Address,
    written::{self, Part, Written},
};
use crate::{
    api::Reason,
    clients::{identity::Identity, tls::ClientCertificate, written::unreadable},
    measure::MeasureError,
    names::secret_key::REDIS,
};

/// Keys of a URL; the first that is there counts.
const URLS: [&str; 2] = ["url", "uri"];
/// Keys of the parts, by part.
const PARTS: [(Part, &[&str]); 6] = [
    (Part::Host, &["host", "hostname", "endpoint"]),
    (Part::Port, &["port"]),
    (Part::User, &["username", "user"]),
    (Part::Password, &["password", "redis-password"]),
    (Part::Database, &["database", "db"]),
    (Part::Tls, &["tls", "ssl"]),
];

/// How to reach one server or cluster as one user. Shows host, port, database and user, and never the password.
#[derive(Clone, Eq, Hash, PartialEq)]
pub struct ConnectionSettings {
    /// The server; several, where they are nodes of one cluster. Empty where Sentinels tell the address.
    pub(super) servers: Vec<Address>,
    /// Whether the servers must be nodes of a cluster. Where it is false, a node of one is seen to be one when it is asked.
    pub(super) is_cluster: bool,
    /// Absent: the server's default user.
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) database: u32,
    pub(super) tls: bool,
    pub(super) ca: Option<Arc<[u8]>>,
    pub(super) client: Option<Arc<ClientCertificate>>,
    /// Where the server's address is asked for.
    pub(super) sentinels: Option<Arc<Sentinels>>,
}

/// Sentinels, and the primary that they watch.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct Sentinels {
    /// The name that they know it by.
    pub(super) primary: String,
    /// Where each is, at least one.
    pub(super) addresses: Vec<Address>,
}

impl fmt::Display for Sentinels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the primary {} of the Sentinels at {}", self.primary, listed(&self.addresses))
    }
}

/// What makes two connections the same.
pub type ConnectionIdentity = Identity<ConnectionSettings>;

impl fmt::Display for ConnectionSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.database())?;
        self.user.as_ref().map_or(Ok(()), |user| write!(f, " as {user}"))
    }
}

impl fmt::Debug for ConnectionSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnectionSettings({self})")
    }
}

impl ConnectionSettings {
    /// Reads what `value` gives for keys. A URL is completed by the parts; without one, a host is required.
    ///
    /// # Errors
    /// `SecretKeyMissing` or `ConnectionStringInvalid`; the message names the key.
    pub fn from_keys<'a>(value: impl Fn(&str) -> Option<&'a str>) -> Result<Self, MeasureError> {
        // A file's last line end is no part of a value; blanks may be part of a password.
        let trimmed = |key: &str, text: &'a str| {
            if key.ends_with("password") { text.trim_end_matches(['\r', '\n']) } else { text.trim() }
        };
        let given = |key: &str| value(key).map(|text| trimmed(key, text)).filter(|text| !text.is_empty());
        let url = URLS.into_iter().find_map(|key| given(key).map(|text| (key, text)));
        let mut written = match url {
            Some((key, text)) => Written::parse(text).map_err(|why| unreadable(&format!("key {key}: {why}")))?,
            None => Written::default(),
        };
        for (part, keys) in PARTS {
            if written.part(part).is_none()
                && let Some((key, text)) = keys.iter().find_map(|key| given(key).map(|text| (*key, text)))
            {
                if text.contains('\0') {
                    return Err(unreadable(&format!("key {key} holds a NUL byte")));
                }
                *written.part(part) = Some(text.to_owned());
            }
        }
        if written.host.is_none() {
            return Err(MeasureError {
                reason: Reason::SecretKeyMissing,
                message: format!(
                    "host or hostname or endpoint is missing; these keys are looked for: {}",
                    REDIS.join(", ")
                ),
            });
        }
        let about = |why: String| url.map_or_else(|| why.clone(), |(key, _)| format!("key {key}: {why}"));
        Self::from_written(written).map_err(|why| unreadable(&about(why)))
    }

    fn from_written(written: Written) -> Result<Self, String> {
        let Written { host, port, user, password, database, tls, sentinels_of, is_cluster } = written;
        let host = host.unwrap_or_default();
        let sentinels = sentinels_of.map(|primary| sentinels(primary, &host)).transpose()?;
        let servers = if sentinels.is_some() { Vec::new() } else { written::servers(&host, port.as_deref())? };
        let is_cluster = is_cluster || servers.len() > 1;
        let database = match database.as_deref() {
            None | Some("") => 0,
            Some(database) => database.parse().map_err(|_| "database: must be a number, such as 0")?,
        };
        let tls = match tls.as_deref().map(str::to_ascii_lowercase).as_deref() {
            None | Some("" | "false" | "no" | "0" | "disabled") => false,
            Some("true" | "yes" | "1" | "enabled") => true,
            Some(_) => return Err("tls: must be true or false".to_owned()),
        };
        let user = user.filter(|user| !user.is_empty());
        let password = password.filter(|password| !password.is_empty());
        if user.is_some() && password.is_none() {
            return Err(
                "it names a user and no password; a password alone is written after a colon: redis://:password@host"
                    .to_owned(),
            );
        }
        if is_cluster && database > 0 {
            return Err(format!("database: a Redis Cluster has database 0 alone, and not {database}: leave it out"));
        }
        Ok(Self { servers, is_cluster, user, password, database, tls, ca: None, client: None, sentinels })
    }

    /// Trusts these certificate authorities (PEM) instead of the public ones.
    #[must_use]
    pub fn with_ca(mut self, pem: &[u8]) -> Self {
        self.ca = Some(Arc::from(pem));
        self
    }

    /// Shows the server this certificate (PEM, with those that lead to its authority) where it asks for one.
    #[must_use]
    pub fn with_client_certificate(mut self, certificate: &[u8], key: &[u8]) -> Self {
        self.client = Some(Arc::new(ClientCertificate { certificate: certificate.to_vec(), key: key.to_vec() }));
        self
    }

    /// Host and port of the server, of each node that is named, or of each Sentinel.
    pub(super) fn addresses(&self) -> Vec<String> {
        let addresses = self.sentinels.as_ref().map_or(&self.servers, |sentinels| &sentinels.addresses);
        addresses.iter().map(ToString::to_string).collect()
    }

    /// The server and the database in it, without the user.
    pub fn database(&self) -> String {
        let what = match &self.sentinels {
            Some(sentinels) => format!("Redis at {sentinels}"),
            None if self.is_cluster => format!("the Redis Cluster at {}", listed(&self.servers)),
            None => format!("Redis at {}", listed(&self.servers)),
        };
        if self.database > 0 { format!("{what}, database {}", self.database) } else { what }
    }

    /// What the operator is led to, for the labels of metrics: host and port, those of several nodes, or the primary of which Sentinels.
    pub fn address(&self) -> String {
        self.sentinels.as_ref().map_or_else(|| listed(&self.servers), ToString::to_string)
    }

    /// The user, where the Secret names one.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// True with TLS: then the server's certificate is verified, and a client certificate may be shown.
    pub fn uses_tls(&self) -> bool {
        self.tls
    }

    /// For telling connections apart.
    pub fn identity(&self) -> ConnectionIdentity {
        Identity::of(self.clone())
    }
}

/// The Sentinels in `host:port,host:port`. Returns what is wrong with them in words that repeat none of it.
fn sentinels(primary: String, hosts: &str) -> Result<Arc<Sentinels>, String> {
    const NOTATION: &str = "Sentinels are written as redis-sentinel://user:password@host:26379,host:26379/NAME, with the name by which they know the primary, and as rediss-sentinel://… for TLS";
    if primary.is_empty() || primary.len() > 255 || primary.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(NOTATION.to_owned());
    }
    let addresses = written::sentinels(hosts).ok_or(NOTATION)?;
    Ok(Arc::new(Sentinels { primary, addresses }))
}

fn listed(addresses: &[Address]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<ConnectionSettings, MeasureError> {
        ConnectionSettings::from_keys(|key| pairs.iter().find(|(name, _)| *name == key).map(|(_, value)| *value))
    }

    #[test]
    fn a_url_and_its_parts_say_the_same() {
        let url = read(&[("url", "rediss://shop:p%40ss@cache:6380/2\n")]).unwrap();
        let parts = read(&[
            ("host", "cache"),
            ("port", "6380"),
            ("username", "shop"),
            ("password", "p@ss\n"),
            ("database", "2"),
            ("tls", "true"),
        ]);
        assert_eq!(url, parts.unwrap());
        assert_eq!(url.to_string(), "Redis at cache:6380, database 2 as shop");
        assert!(!format!("{url:?} {:?}", url.identity()).contains("p@ss"));
    }

    #[test]
    fn what_is_left_out_has_its_default_and_a_url_is_completed() {
        let plain = read(&[("url", "redis://cache")]).unwrap();
        assert_eq!(plain.servers, [Address::new("cache", 6_379)]);
        assert_eq!((plain.database, plain.uses_tls(), plain.user.as_deref()), (0, false, None));
        let completed = read(&[("url", "redis://cache"), ("redis-password", "hunter2")]).unwrap();
        assert_eq!(completed.password.as_deref(), Some("hunter2"));
        assert_ne!(plain.identity(), completed.identity(), "a rotated password is another connection");
        assert_ne!(plain.identity(), plain.with_ca(b"x").identity());
        let endpoint = read(&[("endpoint", "cache.example:6390")]).unwrap();
        assert_eq!(endpoint.servers, [Address::new("cache.example", 6_390)]);
        assert_eq!(read(&[("host", "fd00::1"), ("port", "7000")]).unwrap().servers, [Address::new("fd00::1", 7_000)]);
        assert_eq!(read(&[("url", "redis://[::1]:7000?db=3")]).unwrap().to_string(), "Redis at [::1]:7000, database 3");
        assert_eq!(read(&[("url", "redis://:a:b@cache")]).unwrap().password.as_deref(), Some("a:b"));
    }

    #[test]
    fn sentinels_are_asked_where_the_primary_is() {
        let found = read(&[("url", "redis-sentinel://shop:p%40ss@one:26379,two,[::1]:7000/my-primary/2")]).unwrap();
        let sentinels = found.sentinels.as_deref().unwrap();
        let addresses = [Address::new("one", 26_379), Address::new("two", 26_379), Address::new("::1", 7_000)];
        assert_eq!(sentinels.addresses, addresses);
        assert_eq!((sentinels.primary.as_str(), found.database, found.uses_tls()), ("my-primary", 2, false));
        assert!(read(&[("url", "rediss-sentinel://one/p")]).unwrap().uses_tls());
        assert!(
            found.to_string().contains("the primary my-primary of the Sentinels at one:26379, two:26379"),
            "{found}"
        );
        let another = read(&[("url", "redis-sentinel://shop:p%40ss@one:26379,two,[::1]:7000/another/2")]).unwrap();
        assert_ne!(found.identity(), another.identity());
    }

    #[test]
    fn several_servers_are_nodes_of_a_cluster() {
        let found = read(&[("url", "rediss://shop:p%40ss@one:7001,two,[::1]:7002")]).unwrap();
        assert_eq!(found.servers, [Address::new("one", 7_001), Address::new("two", 6_379), Address::new("::1", 7_002)]);
        assert!(found.is_cluster && found.uses_tls());
        assert_eq!(found.to_string(), "the Redis Cluster at one:7001, two:6379, [::1]:7002 as shop");
        let parts = read(&[("host", "one:7001, two"), ("port", "7003")]).unwrap();
        assert_eq!(parts.servers, [Address::new("one", 7_001), Address::new("two", 7_003)]);
        let one = read(&[("url", "redis-cluster://one")]).unwrap();
        assert!(one.is_cluster && !one.uses_tls() && read(&[("url", "rediss-cluster://one")]).unwrap().uses_tls());
        assert!(!read(&[("url", "redis://one")]).unwrap().is_cluster);
        assert_ne!(one.identity(), read(&[("url", "redis://one")]).unwrap().identity());
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_in_words_that_repeat_no_secret() {
        for (url, words) in [
            ("cache:6379,password=hunter2,ssl=true", "write it as redis://"),
            ("postgres://u:hunter2@db/events", "write it as redis://"),
            ("redis-sentinel://:hunter2@a:26379", "NAME"),
            ("redis-sentinel://:hunter2@a:26379,b c/mymaster", "NAME"),
            ("redis-sentinel://:hunter2@a,b,c,d,e,f,g,h,i/mymaster", "NAME"),
            ("redis-cluster://:hunter2@a:6379/3", "database 0 alone"),
            ("redis://:hunter2@a:1,b:2/3", "database 0 alone"),
            ("redis://:hunter2@a:1,b:x", "port"),
            ("redis://:hunter2@a,b,c,d,e,f,g,h,i", "a few suffice"),
            ("rediss://:hunter2@cache/#insecure", "caSecretRef"),
            ("rediss://:hunter2@cache?ssl_cert_reqs=none", "caSecretRef"),
            ("redis://hunter2@cache", "after a colon"),
            ("redis://u:hunter2/x@cache", "percent-encode"),
            ("redis://u:hun%ter2@cache", "%25"),
            ("redis://:hunter2@cache:99999", "port"),
            ("redis://:hunter2@cache/orders", "database"),
            ("redis://:hunter2@ca che", "host"),
            ("redis://:x@cache?hunter2", "not known"),
            ("unix:///run/redis.sock", "socket"),
        ] {
            let refused = read(&[("url", url)]).unwrap_err();
            assert_eq!(refused.reason, Reason::ConnectionStringInvalid, "{url}");
            assert!(refused.message.contains(words) && refused.message.contains("key url"), "{}", refused.message);
            assert!(!refused.message.contains("hunter2"), "{}", refused.message);
        }
        let none = read(&[("password", "hunter2")]).unwrap_err();
        assert_eq!(none.reason, Reason::SecretKeyMissing);
        assert!(none.message.contains("host or hostname or endpoint is missing"), "{}", none.message);
        for keys in PARTS.into_iter().flat_map(|(_, keys)| keys).chain(&URLS) {
            assert!(REDIS.contains(keys), "{keys} is looked for");
        }
    }
}
