//! How to reach a KurrentDB cluster: what a Secret may say, and what of it may be shown.
//!
//! One key holds a connection string (`kurrentdb://user:password@host:2113?tls=true`, `esdb://…`, several hosts separated by commas), or each part has a key of
//! its own. No part of a connection string is repeated in an error, since a password may have ended up anywhere in it.

use std::{fmt, sync::Arc};

use crate::{
    api::Reason,
    clients::{
        address::Address,
        identity::Identity,
        tls::ClientCertificate,
        written::{percent_decoded_text, unreadable},
    },
    measure::MeasureError,
    names::secret_key::KURRENTDB,
};

/// Keys of a connection string; the first that is there counts.
const URLS: [&str; 4] = ["url", "uri", "connectionString", "connection-string"];
const HOSTS: [&str; 3] = ["host", "hostname", "endpoint"];
const NOTATION: &str = "write it as kurrentdb://user:password@host:2113 or esdb://user:password@host:2113, with ?tls=false for a server without TLS; several servers of one cluster are separated by commas";
const DEFAULT_PORT: u16 = 2113;
/// Of a cluster, so many servers may be named.
const MOST_SERVERS: usize = 8;
/// Parameters of connection strings that concern other clients' ways of working.
const WITHOUT_EFFECT: [&str; 10] = [
    "connectionname",
    "maxdiscoverattempts",
    "discoveryinterval",
    "gossiptimeout",
    "nodepreference",
    "throwonappendfailure",
    "defaultdeadline",
    "keepaliveinterval",
    "keepalivetimeout",
    "dnsdiscover",
];

/// How to reach the servers of one cluster as one user. Shows hosts, ports and user, and never the password.
#[derive(Clone, Eq, Hash, PartialEq)]
pub struct ConnectionSettings {
    /// At least one, tried in turn.
    pub(super) servers: Vec<Address>,
    /// User and password; absent for an anonymous user, or the one that the client certificate names.
    pub(super) login: Option<(String, String)>,
    pub(super) tls: bool,
    pub(super) ca: Option<Arc<[u8]>>,
    pub(super) client: Option<Arc<ClientCertificate>>,
}

/// What makes two connections the same.
pub type ConnectionIdentity = Identity<ConnectionSettings>;

impl fmt::Display for ConnectionSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let servers: Vec<String> = self.servers.iter().map(ToString::to_string).collect();
        write!(f, "KurrentDB at {}", servers.join(", "))?;
        self.login.as_ref().map_or(Ok(()), |(user, _)| write!(f, " as {user}"))
    }
}

impl fmt::Debug for ConnectionSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnectionSettings({self})")
    }
}

/// Parts as they were written.
#[derive(Default)]
struct Written {
    servers: Vec<Address>,
    user: Option<String>,
    password: Option<String>,
    tls: Option<bool>,
}

impl ConnectionSettings {
    /// Reads what `value` gives for keys. A connection string is completed by the parts; without one, a host is required.
    ///
    /// # Errors
    /// `SecretKeyMissing` or `ConnectionStringInvalid`; the message names the key.
    pub fn from_keys<'a>(value: impl Fn(&str) -> Option<&'a str>) -> Result<Self, MeasureError> {
        // A file's last line end is no part of a value; blanks may be part of a password.
        let trimmed = |key: &str, text: &'a str| {
            if key == "password" { text.trim_end_matches(['\r', '\n']) } else { text.trim() }
        };
        let given = |key: &str| value(key).map(|text| trimmed(key, text)).filter(|text| !text.is_empty());
        let first = |keys: &[&'static str]| keys.iter().find_map(|key| given(key).map(|text| (*key, text)));
        let about = |key: &str, why: &str| unreadable(&format!("key {key}: {why}"));
        let mut written = Written::default();
        if let Some((key, text)) = first(&URLS) {
            connection_string(text, &mut written).map_err(|why| about(key, &why))?;
        } else if let Some((key, text)) = first(&HOSTS) {
            // The port may have a key of its own.
            let text = match (given("port"), text.matches(':').count()) {
                (Some(port), 0) if !text.contains(',') => format!("{text}:{port}"),
                (Some(port), 2..) if !text.contains([',', '[']) => format!("[{text}]:{port}"),
                _ => text.to_owned(),
            };
            for one in text.split(',') {
                written.servers.push(Address::parse(one.trim(), DEFAULT_PORT).map_err(|why| about(key, why))?);
            }
        } else {
            return Err(MeasureError {
                reason: Reason::SecretKeyMissing,
                message: format!("url or host is missing; these keys are looked for: {}", KURRENTDB.join(", ")),
            });
        }
        if written.servers.len() > MOST_SERVERS {
            return Err(unreadable("more than 8 servers are named: name those that may lead the cluster"));
        }
        if let (None, Some((key, text))) = (written.tls, first(&["tls", "ssl"])) {
            written.tls = Some(boolean(text).ok_or_else(|| about(key, "must be true or false"))?);
        }
        let own = |text: Option<(&str, &str)>| text.map(|(_, text)| text.to_owned());
        let user = written.user.or_else(|| own(first(&["username", "user"])));
        let password = written.password.or_else(|| own(first(&["password"])));
        let login = match (user, password) {
            (Some(user), Some(password)) => Some((user, password)),
            (None, None) => None,
            (Some(_), None) => return Err(unreadable("it names a user and no password")),
            (None, Some(_)) => return Err(unreadable("it holds a password and no username")),
        };
        if login.as_ref().is_some_and(|(user, _)| user.contains(':')) {
            return Err(unreadable(
                "username: must not hold a colon, which ends the name in HTTP's Basic authentication",
            ));
        }
        Ok(Self { servers: written.servers, login, tls: written.tls.unwrap_or(true), ca: None, client: None })
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

    /// True with TLS, the default: then the server's certificate is verified, and a client certificate may be shown.
    pub fn uses_tls(&self) -> bool {
        self.tls
    }

    /// For telling connections apart.
    pub fn identity(&self) -> ConnectionIdentity {
        Identity::of(self.clone())
    }
}

/// Reads a connection string. Returns what is wrong with it in words that repeat none of it.
fn connection_string(text: &str, written: &mut Written) -> Result<(), String> {
    let text = text.trim_matches(['"', '\'']).trim();
    let Some((scheme, rest)) = text.split_once("://") else { return Err(NOTATION.to_owned()) };
    match scheme.to_ascii_lowercase().as_str() {
        "esdb" | "esdb+discover" | "kurrentdb" | "kurrentdb+discover" | "kdb" | "kdb+discover" | "kurrent"
        | "kurrent+discover" => {}
        "tcp" => return Err(format!("the TCP protocol is not supported: {NOTATION}")),
        "http" | "https" => return Err(format!("the HTTP API is not used: {NOTATION}")),
        _ => return Err(NOTATION.to_owned()),
    }
    let (rest, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains(['/', '#']) || parameters.contains('@') {
        return Err(
            "nothing but ?parameters may follow the port; percent-encode a /, ? or # in user or password: %2F, %3F, %23"
                .to_owned(),
        );
    }
    let hosts = match rest.rsplit_once('@') {
        None => rest,
        Some((credentials, hosts)) => {
            let (user, password) =
                credentials.split_once(':').ok_or("there is no password: write user:password before the @")?;
            written.user = Some(percent_decoded_text(user)?).filter(|user| !user.is_empty());
            written.password = Some(percent_decoded_text(password)?).filter(|password| !password.is_empty());
            hosts
        }
    };
    for host in hosts.split(',') {
        written.servers.push(Address::parse(host.trim(), DEFAULT_PORT)?);
    }
    parameters.split('&').filter(|parameter| !parameter.is_empty()).try_for_each(|one| parameter(one, written))
}

fn parameter(text: &str, written: &mut Written) -> Result<(), String> {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    let name = name.to_ascii_lowercase();
    match name.as_str() {
        "tls" => written.tls = Some(boolean(value).ok_or("tls: must be true or false")?),
        "tlsverifycert" => match boolean(value) {
            Some(true) => {}
            Some(false) => {
                return Err(
                    "tlsVerifyCert=false is refused, since the password would go to any server that answers: leave it out, and name the certificate authority in connection.caSecretRef"
                        .to_owned(),
                );
            }
            None => return Err("tlsVerifyCert: must be true or false".to_owned()),
        },
        "tlscafile" => {
            return Err("tlsCaFile names a file of another machine: put the certificate authority into a Secret and name it in connection.caSecretRef".to_owned());
        }
        "usercertfile" | "userkeyfile" => {
            return Err("userCertFile and userKeyFile name files of another machine: put certificate and key into a Secret and name it in connection.clientCertificateSecretRef".to_owned());
        }
        name if WITHOUT_EFFECT.contains(&name) => {}
        name if name.chars().all(|letter| letter.is_ascii_alphabetic()) && name.len() <= 32 => {
            return Err(format!("the parameter {name} is not known: leave it out"));
        }
        _ => return Err(format!("a parameter is not known: {NOTATION}")),
    }
    Ok(())
}

fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "1" | "enabled" => Some(true),
        "false" | "no" | "0" | "disabled" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<ConnectionSettings, MeasureError> {
        ConnectionSettings::from_keys(|key| pairs.iter().find(|(name, _)| *name == key).map(|(_, value)| *value))
    }

    #[test]
    fn a_connection_string_and_its_parts_say_the_same() {
        let url = read(&[("url", "esdb://shop:p%40ss@kurrent:3113?tls=false&nodePreference=leader\n")]).unwrap();
        let parts =
            [("host", "kurrent"), ("port", "3113"), ("username", "shop"), ("password", "p@ss\n"), ("tls", "false")];
        assert_eq!(url, read(&parts).unwrap());
        assert_eq!(url.to_string(), "KurrentDB at kurrent:3113 as shop");
        assert!(!format!("{url:?} {:?}", url.identity()).contains("p@ss"));
        let rotated = read(&[("url", "esdb://shop:other@kurrent:3113?tls=false")]).unwrap();
        assert_ne!(url.identity(), rotated.identity(), "a rotated password is another connection");
    }

    #[test]
    fn tls_is_the_default_and_a_cluster_has_several_servers() {
        let cluster =
            read(&[("url", "kurrentdb+discover://a:b@one,two:4113,[::1]:5113/?keepAliveInterval=10")]).unwrap();
        assert_eq!(cluster.to_string(), "KurrentDB at one:2113, two:4113, [::1]:5113 as a");
        assert!(cluster.uses_tls());
        assert_ne!(cluster.identity(), cluster.with_ca(b"x").identity());
        let anonymous = read(&[("uri", "esdb://one?tls=true&tlsVerifyCert=true")]).unwrap();
        assert!(anonymous.login.is_none() && anonymous.uses_tls());
        assert_eq!(read(&[("host", "::1"), ("port", "3113")]).unwrap().to_string(), "KurrentDB at [::1]:3113");
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_in_words_that_repeat_no_secret() {
        for (url, words) in [
            ("redis://u:hunter2@one", "write it as kurrentdb://"),
            ("u:hunter2@one:2113", "write it as kurrentdb://"),
            ("tcp://u:hunter2@one:1113", "TCP protocol"),
            ("https://u:hunter2@one:2113", "HTTP API"),
            ("esdb://u:hunter2@one?tlsVerifyCert=false", "tlsVerifyCert=false is refused"),
            ("esdb://u:hunter2@one?tls=hunter2", "tls: must be"),
            ("esdb://u:hunter2@one?tlsCaFile=/hunter2", "caSecretRef"),
            ("esdb://u:hunter2@one?userCertFile=/hunter2", "clientCertificateSecretRef"),
            ("esdb://u:hunter2@one?color=hunter2", "parameter color"),
            ("esdb://u:x?hunter2@one", "percent-encode"),
            ("esdb://u:x/hunter2@one", "percent-encode"),
            ("esdb://u:hun%ter2@one", "%25"),
            ("esdb://hunter2@one", "no password"),
            ("esdb://u:hunter2@one:99999", "port"),
            ("esdb://u:hunter2@o ne", "host"),
            ("esdb://u%3Av:hunter2@one", "colon"),
            ("esdb://u:hunter2@a,b,c,d,e,f,g,h,i", "more than 8"),
        ] {
            let refused = read(&[("url", url)]).unwrap_err();
            assert_eq!(refused.reason, Reason::ConnectionStringInvalid, "{url}");
            assert!(refused.message.contains(words), "{url}: {}", refused.message);
            assert!(!refused.message.contains("hunter2"), "{}", refused.message);
        }
        for (pairs, words) in [
            ([("host", "one"), ("username", "u")], "no password"),
            ([("host", "one"), ("password", "hunter2")], "no username"),
            ([("host", "one"), ("tls", "hunter2")], "true or false"),
        ] {
            let refused = read(&pairs).unwrap_err();
            assert!(refused.message.contains(words) && !refused.message.contains("hunter2"), "{}", refused.message);
        }
        let none = read(&[("password", "hunter2")]).unwrap_err();
        assert_eq!(none.reason, Reason::SecretKeyMissing);
        for key in [URLS.as_slice(), &HOSTS].concat() {
            assert!(KURRENTDB.contains(&key), "{key} is looked for");
        }
    }
}
