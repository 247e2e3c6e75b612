//! How to reach Elasticsearch or OpenSearch: what a Secret may say, and what of it may be shown.
//!
//! One key holds a URL (`https://user:password@host:9200`), or each part has a key of its own. No part of a URL is repeated in an error, since a
//! password may have ended up anywhere in it.

use std::{fmt, sync::Arc};

use http::HeaderValue;

use crate::{
    api::Reason,
    clients::{
        address::{self, is_host},
        http::{Server, basic, sensitive},
        identity::Identity,
        tls::ClientCertificate,
        written::{self, Authority, unreadable},
    },
    measure::MeasureError,
    names::secret_key::ELASTICSEARCH,
};

const NOTATION: &str = "write it as https://user:password@host:9200, or http://… without TLS";
const DEFAULT_PORT: u16 = 9_200;

/// Who asks.
#[derive(Clone, Eq, Hash, PartialEq)]
enum Credential {
    None,
    User {
        user: String,
        password: String,
    },
    /// As the server gave it out: Base64 of `id:key`.
    ApiKey(String),
}

/// How to reach one server as one user. Shows host, port and user, and never the password or key.
#[derive(Clone, Eq, Hash, PartialEq)]
pub struct ConnectionSettings {
    pub(super) server: Server,
    credential: Credential,
}

/// What makes two connections the same.
pub type ConnectionIdentity = Identity<ConnectionSettings>;

impl fmt::Display for ConnectionSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.address())?;
        match &self.credential {
            Credential::User { user, .. } => write!(f, " as {user}"),
            Credential::ApiKey(_) => f.write_str(" with an API key"),
            Credential::None => Ok(()),
        }
    }
}

impl fmt::Debug for ConnectionSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnectionSettings({self})")
    }
}

impl ConnectionSettings {
    /// Reads what `value` gives for keys. A URL is completed by the parts; without one, a host is required. An API key counts before a user.
    ///
    /// # Errors
    /// `SecretKeyMissing` or `ConnectionStringInvalid`; the message names the key.
    pub fn from_keys<'a>(value: impl Fn(&str) -> Option<&'a str>) -> Result<Self, MeasureError> {
        let first = |keys: &[&'static str]| {
            keys.iter().find_map(|key| {
                let text = value(key)?;
                let text = if *key == "password" { text.trim_end_matches(['\r', '\n']) } else { text.trim() };
                Some(text.to_owned()).filter(|text| !text.is_empty())
            })
        };
        let url = first(&["url", "uri"]);
        let written = url.as_deref().map(parse).transpose().map_err(|why| unreadable(&format!("url: {why}")))?;
        let written = written.unwrap_or_default();
        let host = written.host.or_else(|| first(&["host", "hostname", "endpoint"]));
        let host = host.ok_or_else(|| MeasureError {
            reason: Reason::SecretKeyMissing,
            message: format!("url or host is missing; these keys are looked for: {}", ELASTICSEARCH.join(", ")),
        })?;
        if !is_host(&host) {
            return Err(unreadable("host: is no host name; percent-encode special characters in user and password"));
        }
        let port = match written.port.or_else(|| first(&["port"])) {
            None => DEFAULT_PORT,
            Some(port) => address::port(&port).ok_or_else(|| unreadable("port: must be a number from 1 to 65535"))?,
        };
        let tls = match (written.tls, first(&["tls", "ssl"]).map(|text| text.to_ascii_lowercase()).as_deref()) {
            (Some(tls), _) => tls,
            (None, None | Some("false" | "no" | "0")) => false,
            (None, Some("true" | "yes" | "1")) => true,
            (None, Some(_)) => return Err(unreadable("tls: must be true or false")),
        };
        let user = written.user.or_else(|| first(&["username", "user"]));
        let password = written.password.or_else(|| first(&["password"]));
        let credential = match (first(&["apiKey", "api-key", "api_key"]), user, password) {
            (Some(key), _, _) => Credential::ApiKey(key),
            (None, Some(user), Some(password)) => Credential::User { user, password },
            (None, None, None) => Credential::None,
            _ => return Err(unreadable("a user and a password come together")),
        };
        let settings = Self { server: Server { host, port, tls, ca: None, client: None }, credential };
        if settings.credential != Credential::None && settings.authorization().is_none() {
            return Err(unreadable("the user, password or API key holds characters that no HTTP header can"));
        }
        Ok(settings)
    }

    /// The header that says who asks; absent without a credential.
    pub(super) fn authorization(&self) -> Option<HeaderValue> {
        match &self.credential {
            Credential::None => None,
            Credential::User { user, .. } if user.contains(':') => None,
            Credential::User { user, password } => basic(user, password),
            Credential::ApiKey(key) => sensitive(&format!("ApiKey {key}")),
        }
    }

    /// The server, without the user.
    pub fn address(&self) -> String {
        format!("Elasticsearch at {}", self.authority())
    }

    /// Host and port.
    pub fn authority(&self) -> String {
        self.server.authority()
    }

    /// The user, where the Secret names one.
    pub fn user(&self) -> Option<&str> {
        match &self.credential {
            Credential::User { user, .. } => Some(user),
            Credential::ApiKey(_) | Credential::None => None,
        }
    }

    /// Trusts these certificate authorities (PEM) instead of the public ones.
    #[must_use]
    pub fn with_ca(mut self, pem: &[u8]) -> Self {
        self.server.ca = Some(Arc::from(pem));
        self
    }

    /// Shows the server this certificate (PEM, with those that lead to its authority) where it asks for one.
    #[must_use]
    pub fn with_client_certificate(mut self, certificate: &[u8], key: &[u8]) -> Self {
        self.server.client = Some(Arc::new(ClientCertificate { certificate: certificate.to_vec(), key: key.to_vec() }));
        self
    }

    /// True with TLS: then the server's certificate is verified, and a client certificate may be shown.
    pub fn uses_tls(&self) -> bool {
        self.server.tls
    }

    /// For telling connections apart.
    pub fn identity(&self) -> ConnectionIdentity {
        Identity::of(self.clone())
    }
}

/// What a URL says; the port still unread.
#[derive(Default)]
struct Written {
    tls: Option<bool>,
    host: Option<String>,
    port: Option<String>,
    user: Option<String>,
    password: Option<String>,
}

/// Reads a URL. Returns what is wrong with it in words that repeat none of it.
fn parse(text: &str) -> Result<Written, String> {
    let (scheme, rest) = text.split_once("://").ok_or(NOTATION)?;
    let tls = match scheme.to_ascii_lowercase().as_str() {
        "http" => false,
        "https" => true,
        _ => return Err(NOTATION.to_owned()),
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    if path.contains('@') {
        return Err("percent-encode a /, ? or # in user or password: %2F, %3F, %23".to_owned());
    }
    if !path.trim_end_matches('/').is_empty() {
        return Err("what follows the port must be left out: a path before the API is not supported".to_owned());
    }
    let Authority { user, password, host, port } = written::authority(authority)?;
    Ok(Written { tls: Some(tls), host, port, user, password })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<ConnectionSettings, MeasureError> {
        ConnectionSettings::from_keys(|key| pairs.iter().find(|(name, _)| *name == key).map(|(_, value)| *value))
    }

    #[test]
    fn a_url_and_its_parts_say_the_same_and_no_secret_is_shown() {
        let url = read(&[("url", "https://shop:p%40ss@search:9243/\n")]).unwrap();
        let parts =
            [("host", "search"), ("port", "9243"), ("username", "shop"), ("password", "p@ss\n"), ("tls", "true")];
        assert_eq!(url, read(&parts).unwrap());
        assert_eq!(url.to_string(), "Elasticsearch at search:9243 as shop");
        let key = read(&[("url", "http://[::1]"), ("apiKey", "aHVudGVyMg==")]).unwrap();
        assert_eq!(key.to_string(), "Elasticsearch at [::1]:9200 with an API key");
        assert!(!format!("{url:?} {:?} {key:?}", url.identity()).contains("p@ss"));
        assert!(!format!("{key:?} {:?}", key.authorization()).contains("aHVu"));
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_in_words_that_repeat_no_secret() {
        for (url, words) in [
            ("search:9200,hunter2", "write it as https://"),
            ("ftp://u:hunter2@search", "write it as https://"),
            ("http://u:hunter2@search/prefix", "must be left out"),
            ("http://u:hunter2/x@search", "percent-encode"),
            ("http://u:hun%ter2@search", "%25"),
            ("http://u:hunter2@search:99999", "port"),
            ("http://u:hunter2@sea rch", "host"),
            ("http://hunter2@search", "come together"),
            ("http://a%3Ab:hunter2@search", "no HTTP header"),
        ] {
            let refused = read(&[("url", url)]).unwrap_err();
            assert_eq!(refused.reason, Reason::ConnectionStringInvalid, "{url}");
            assert!(refused.message.contains(words) && !refused.message.contains("hunter2"), "{}", refused.message);
        }
        assert_eq!(read(&[("port", "9200")]).unwrap_err().reason, Reason::SecretKeyMissing);
    }
}
