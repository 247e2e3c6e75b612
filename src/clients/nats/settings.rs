//! How to reach a NATS server: what a Secret may say, and what of it may be shown.
//!
//! One key holds a URL (`nats://user:password@host:4222`, `tls://…`), or several of the same cluster separated by commas, or each part has a key of
//! its own. No part of a URL is repeated in an error, since a password may have ended up anywhere in it.

use std::{fmt, sync::Arc};

use super::nkeys::UserKey;
use crate::{
    api::Reason,
    clients::{
        address::Address,
        identity::Identity,
        tls::ClientCertificate,
        written::{percent_decoded, unreadable},
    },
    measure::MeasureError,
    names::secret_key::NATS,
};

/// Keys of a URL; the first that is there counts.
const URLS: [&str; 3] = ["url", "uri", "servers"];
const HOSTS: [&str; 3] = ["host", "hostname", "endpoint"];
const NOTATION: &str = "write it as nats://user:password@host:4222, nats://token@host:4222, or tls://… for TLS; several servers of one cluster are separated by commas";
const DEFAULT_PORT: u16 = 4222;
/// Of a cluster, so many servers may be named.
const MOST_SERVERS: usize = 8;

/// How the operator logs in.
#[derive(Clone, Eq, Hash, PartialEq)]
pub(super) enum Login {
    /// As the server's default user, or as the user that the client certificate names.
    None,
    Password {
        user: String,
        password: String,
    },
    Token(String),
    /// By signing the server's challenge.
    Key(UserKey),
}

/// How to reach the servers of one cluster as one user. Shows hosts, ports and user, and never the password or token.
#[derive(Clone, Eq, Hash, PartialEq)]
pub struct ConnectionSettings {
    /// At least one, tried in turn.
    pub(super) servers: Vec<Address>,
    pub(super) login: Login,
    /// TLS also where the server does not insist on it.
    pub(super) tls: bool,
    pub(super) ca: Option<Arc<[u8]>>,
    pub(super) client: Option<Arc<ClientCertificate>>,
}

/// What makes two connections the same.
pub type ConnectionIdentity = Identity<ConnectionSettings>;

impl fmt::Display for ConnectionSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let servers: Vec<String> = self.servers.iter().map(ToString::to_string).collect();
        write!(f, "NATS at {}", servers.join(", "))?;
        match &self.login {
            Login::Password { user, .. } => write!(f, " as {user}"),
            Login::Key(key) => write!(f, " as {}", key.public()),
            Login::None | Login::Token(_) => Ok(()),
        }
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
    token: Option<String>,
    tls: bool,
}

impl ConnectionSettings {
    /// Reads what `value` gives for keys. A URL is completed by the parts; without one, a host is required.
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
        let mut written = Written::default();
        let about = |key: &str, why: &str| unreadable(&format!("key {key}: {why}"));
        let key = match (first(&["creds"]), first(&["nkey"])) {
            (Some((name, file)), _) => Some(UserKey::from_credentials(file).map_err(|why| about(name, why))?),
            (None, Some((name, seed))) => Some(UserKey::from_seed(seed).map_err(|why| about(name, why))?),
            (None, None) => None,
        };
        if let Some((key, text)) = first(&URLS) {
            urls(text, &mut written).map_err(|why| about(key, &why))?;
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
                message: format!("url or servers or host is missing; these keys are looked for: {}", NATS.join(", ")),
            });
        }
        if written.servers.len() > MOST_SERVERS {
            return Err(unreadable("more than 8 servers are named: some of a cluster suffice"));
        }
        match first(&["tls", "ssl"]).map(|(key, text)| (key, text.to_ascii_lowercase())) {
            None => {}
            Some((_, text)) if ["false", "no", "0", "disabled"].contains(&text.as_str()) => {}
            Some((_, text)) if ["true", "yes", "1", "enabled"].contains(&text.as_str()) => written.tls = true,
            Some((key, _)) => return Err(about(key, "must be true or false")),
        }
        let own = |text: Option<(&str, &str)>| text.map(|(_, text)| text.to_owned());
        let user = written.user.or_else(|| own(first(&["username", "user"])));
        let password = written.password.or_else(|| own(first(&["password"])));
        let token = written.token.or_else(|| own(first(&["token"])));
        let login = match (user, password, token) {
            (None, None, None) => key.map_or(Login::None, Login::Key),
            _ if key.is_some() => {
                return Err(unreadable(
                    "it holds creds or nkey beside username, password or token: leave one of them out",
                ));
            }
            (Some(user), Some(password), None) => Login::Password { user, password },
            (None, None, Some(token)) => Login::Token(token),
            (_, _, Some(_)) => {
                return Err(unreadable("it holds a token beside username or password: leave one of them out"));
            }
            (Some(_), None, None) => return Err(unreadable("it names a user and no password")),
            (None, Some(_), None) => return Err(unreadable("it holds a password and no username")),
        };
        Ok(Self { servers: written.servers, login, tls: written.tls, ca: None, client: None })
    }

    /// Trusts these certificate authorities (PEM) instead of the public ones, and insists on TLS.
    #[must_use]
    pub fn with_ca(mut self, pem: &[u8]) -> Self {
        self.ca = Some(Arc::from(pem));
        self.tls = true;
        self
    }

    /// Shows the server this certificate (PEM, with those that lead to its authority) where it asks for one, and insists on TLS.
    #[must_use]
    pub fn with_client_certificate(mut self, certificate: &[u8], key: &[u8]) -> Self {
        self.client = Some(Arc::new(ClientCertificate { certificate: certificate.to_vec(), key: key.to_vec() }));
        self.tls = true;
        self
    }

    /// For telling connections apart.
    pub fn identity(&self) -> ConnectionIdentity {
        Identity::of(self.clone())
    }

    /// The secrets, which no message may repeat.
    pub(super) fn secrets(&self) -> Vec<&str> {
        match &self.login {
            Login::None => Vec::new(),
            Login::Password { password, .. } => vec![password],
            Login::Token(token) => vec![token],
            Login::Key(key) => key.secrets().collect(),
        }
    }
}

/// Reads URLs, separated by commas. Returns what is wrong with them in words that repeat none of it.
fn urls(text: &str, written: &mut Written) -> Result<(), String> {
    for (index, url) in text.trim_matches(['"', '\'']).split(',').map(str::trim).enumerate() {
        let (scheme, rest) = match url.split_once("://") {
            Some((scheme, rest)) => (scheme.to_ascii_lowercase(), rest),
            // Further servers are often written without a scheme.
            None if index > 0 || !url.contains(['@', '/']) => ("nats".to_owned(), url),
            None => return Err(NOTATION.to_owned()),
        };
        match scheme.as_str() {
            "nats" => {}
            "tls" | "nats+tls" => written.tls = true,
            "ws" | "wss" => return Err(format!("WebSocket is not supported: {NOTATION}")),
            _ => return Err(NOTATION.to_owned()),
        }
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#']) {
            return Err(
                "nothing may follow the port; percent-encode a /, ? or # in user, password or token: %2F, %3F, %23"
                    .to_owned(),
            );
        }
        let host = match rest.rsplit_once('@') {
            None => rest,
            Some((credentials, host)) => {
                login(credentials, written)?;
                host
            }
        };
        written.servers.push(Address::parse(host, DEFAULT_PORT)?);
    }
    Ok(())
}

/// `user:password`, or a token. Of several URLs all must name the same.
fn login(credentials: &str, written: &mut Written) -> Result<(), String> {
    let (user, password, token) = match credentials.split_once(':') {
        Some((user, password)) => (Some(decoded(user)?), Some(decoded(password)?), None),
        None => (None, None, Some(decoded(credentials)?)),
    };
    for (before, now) in [(&mut written.user, user), (&mut written.password, password), (&mut written.token, token)] {
        match (before.is_some(), now) {
            (_, None) => {}
            (false, now) => *before = now,
            (true, now) if *before == now => {}
            (true, Some(_)) => {
                return Err("the servers have different credentials: name servers of one cluster, with the same user"
                    .to_owned());
            }
        }
    }
    Ok(())
}

fn decoded(text: &str) -> Result<String, String> {
    let text = percent_decoded(text)?;
    if text.is_empty() { Err("user, password or token is empty".to_owned()) } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<ConnectionSettings, MeasureError> {
        ConnectionSettings::from_keys(|key| pairs.iter().find(|(name, _)| *name == key).map(|(_, value)| *value))
    }

    #[test]
    fn a_url_and_its_parts_say_the_same() {
        let url = read(&[("url", "tls://shop:p%40ss@nats:4333\n")]).unwrap();
        let parts = [("host", "nats"), ("port", "4333"), ("username", "shop"), ("password", "p@ss\n"), ("tls", "true")];
        assert_eq!(url, read(&parts).unwrap());
        assert_eq!(url.to_string(), "NATS at nats:4333 as shop");
        assert!(!format!("{url:?} {:?}", url.identity()).contains("p@ss"));
    }

    #[test]
    fn servers_of_a_cluster_tokens_and_defaults() {
        let several = read(&[("servers", "nats://a:b@one, nats://two:5222,[::1]:7000")]).unwrap();
        assert_eq!(several.to_string(), "NATS at one:4222, two:5222, [::1]:7000 as a");
        let token = read(&[("url", "nats://hunter2@nats")]).unwrap();
        assert!(token.login == Login::Token("hunter2".to_owned()) && !format!("{token:?}").contains("hunter2"));
        let completed = read(&[("url", "nats"), ("token", "hunter2")]).unwrap();
        assert_eq!(completed, token);
        assert_eq!(read(&[("host", "::1"), ("port", "4333")]).unwrap().to_string(), "NATS at [::1]:4333");
        let plain = read(&[("endpoint", "nats.example:4333")]).unwrap();
        assert!(plain.login == Login::None && !plain.tls && plain.servers[0].port == 4333);
        assert_ne!(completed.identity(), read(&[("url", "nats")]).unwrap().identity());
        assert_ne!(plain.identity(), plain.clone().with_ca(b"x").identity());
        assert!(plain.with_ca(b"x").tls, "who names an authority wants TLS");
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_in_words_that_repeat_no_secret() {
        for (url, words) in [
            ("redis://u:hunter2@nats", "write it as nats://"),
            ("u:hunter2@nats", "write it as nats://"),
            ("wss://u:hunter2@nats", "WebSocket"),
            ("nats://u:hunter2/x@nats", "percent-encode"),
            ("nats://u:hun%ter2@nats", "%25"),
            ("nats://u:hunter2@nats:99999", "port"),
            ("nats://u:hunter2@na ts", "host"),
            ("nats://u:hunter2@", "host"),
            ("nats://u:@nats", "empty"),
            ("nats://u:hunter2@a,nats://v:hunter2@b", "different credentials"),
            ("nats://u:hunter2@a,b,c,d,e,f,g,h,i", "more than 8"),
        ] {
            let refused = read(&[("url", url)]).unwrap_err();
            assert_eq!(refused.reason, Reason::ConnectionStringInvalid, "{url}");
            assert!(refused.message.contains(words), "{url}: {}", refused.message);
            assert!(!refused.message.contains("hunter2"), "{}", refused.message);
        }
        for (pairs, words) in [
            ([("host", "nats"), ("username", "u")], "no password"),
            ([("host", "nats"), ("password", "hunter2")], "no username"),
            ([("url", "nats://u:hunter2@nats"), ("token", "hunter2")], "beside"),
            ([("host", "nats"), ("creds", "hunter2")], "key creds: it is no credentials file"),
            ([("host", "nats"), ("nkey", "hunter2")], "key nkey: it is no seed"),
            ([("host", "nats"), ("tls", "hunter2")], "true or false"),
        ] {
            let refused = read(&pairs).unwrap_err();
            assert!(refused.message.contains(words) && !refused.message.contains("hunter2"), "{}", refused.message);
        }
        let none = read(&[("password", "hunter2")]).unwrap_err();
        assert_eq!(none.reason, Reason::SecretKeyMissing);
    }
}
