//! How to reach one server over HTTP: what a Secret or a spec may say, and what of it may be shown.
//!
//! No part of a URL that comes from a Secret is repeated in an error, since a password may have ended up anywhere in it.

use std::{fmt, sync::Arc};

use http::{HeaderName, HeaderValue, header};

use super::{
    Endpoint, ServerSettings,
    address::{self, is_host},
    http::{Server, basic, sensitive},
    identity::Identity,
    tls::ClientCertificate,
    written::{self, Authority, unreadable},
};
use crate::{api::Reason, measure::MeasureError, names::secret_key::HTTP};

const URLS: [&str; 2] = ["url", "uri"];
const NOTATION: &str = "write it as http://host:port/path or https://host:port/path, with user and password or a token in keys of their own";

/// Who asks.
#[derive(Clone, Eq, Hash, PartialEq)]
enum Credential {
    None,
    Basic { user: String, password: String },
    Bearer(String),
}

/// A server and a place on it. Shows scheme, host, port and path, and never a credential or a query.
#[derive(Clone, Eq, Hash, PartialEq)]
pub struct HttpSettings {
    server: Server,
    /// Beginning with a slash unless empty, without one at the end.
    path: String,
    /// With its question mark; empty where there is none.
    query: String,
    credential: Credential,
}

/// What makes two connections the same.
pub type HttpIdentity = Identity<HttpSettings>;

impl fmt::Display for HttpSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.server.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.server.authority(), self.path)
    }
}

impl fmt::Debug for HttpSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HttpSettings({self})")
    }
}

impl HttpSettings {
    /// Where to connect.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The path of the URL: empty, or with a slash at its beginning and none at its end.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Path and query of the URL, as a request line has them.
    pub fn path_and_query(&self) -> String {
        let path = if self.path.is_empty() { "/" } else { &self.path };
        format!("{path}{}", self.query)
    }

    /// The headers that carry the credential.
    ///
    /// # Errors
    /// `ConnectionStringInvalid` for what no header can carry.
    pub fn headers(&self) -> Result<Vec<(HeaderName, HeaderValue)>, MeasureError> {
        let value = match &self.credential {
            Credential::None => return Ok(Vec::new()),
            Credential::Basic { user, password } => basic(user, password),
            Credential::Bearer(token) => sensitive(&format!("Bearer {token}")),
        };
        let value = value.ok_or_else(|| unreadable("key token: it holds letters that no HTTP header can carry"))?;
        Ok(vec![(header::AUTHORIZATION, value)])
    }

    /// For telling connections apart.
    pub fn identity(&self) -> HttpIdentity {
        Identity::of(self.clone())
    }

    fn without_tls(&self) -> Option<&'static str> {
        (!self.server.tls).then_some("these settings use no TLS: write https://")
    }
}

/// Reads a URL. Returns what is wrong with it in words that repeat none of it.
fn parse(text: &str) -> Result<HttpSettings, String> {
    if text.contains(|c: char| c.is_control() || c.is_whitespace()) || !text.is_ascii() {
        return Err("it holds blanks, control characters or letters outside ASCII: percent-encode them".to_owned());
    }
    let (scheme, rest) = text.split_once("://").ok_or(NOTATION)?;
    let tls = match scheme.to_ascii_lowercase().as_str() {
        "http" => false,
        "https" => true,
        _ => return Err(NOTATION.to_owned()),
    };
    let rest = rest.split('#').next().unwrap_or_default();
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let (path, query) = path.split_at(path.find('?').unwrap_or(path.len()));
    let Authority { user, password, host, port } = written::authority(authority)?;
    let credential = match (user, password) {
        (None, None) => Credential::None,
        (user, password) => {
            Credential::Basic { user: user.unwrap_or_default(), password: password.unwrap_or_default() }
        }
    };
    let host = host.filter(|host| is_host(host)).ok_or("its host is no host name")?;
    let port = match port {
        None if tls => 443,
        None => 80,
        Some(port) => address::port(&port).ok_or("its port must be a number from 1 to 65535")?,
    };
    let server = Server { host, port, tls, ca: None, client: None };
    let (path, query) = (path.trim_end_matches('/').to_owned(), query.to_owned());
    Ok(HttpSettings { server, path, query, credential })
}

impl ServerSettings for HttpSettings {
    fn keys() -> Vec<&'static str> {
        HTTP.to_vec()
    }

    fn from_keys<'a>(value: impl Fn(&str) -> Option<&'a str>) -> Result<Self, MeasureError> {
        // A file's last line end is no part of a value; blanks may be part of a password.
        let trimmed = |key: &str, text: &'a str| {
            if key == "password" { text.trim_end_matches(['\r', '\n']) } else { text.trim() }
        };
        let given = |key: &str| value(key).map(|text| trimmed(key, text)).filter(|text| !text.is_empty());
        let Some((key, url)) = URLS.iter().find_map(|key| given(key).map(|text| (*key, text))) else {
            return Err(MeasureError {
                reason: Reason::SecretKeyMissing,
                message: format!(
                    "{} is missing: a credential goes only to the server that is named beside it",
                    URLS.join(" or ")
                ),
            });
        };
        let mut settings = parse(url).map_err(|why| unreadable(&format!("key {key}: {why}")))?;
        let user = given("username").or_else(|| given("user"));
        match (given("token"), user, given("password")) {
            (Some(_), Some(_), _) => return Err(unreadable("it holds both token and username: keep one of them")),
            (Some(token), None, _) => settings.credential = Credential::Bearer(token.to_owned()),
            (None, Some(user), password) => {
                let password = password.unwrap_or_default().to_owned();
                settings.credential = Credential::Basic { user: user.to_owned(), password };
            }
            (None, None, Some(_)) => return Err(unreadable("it holds a password and no username")),
            (None, None, None) => {}
        }
        if let Credential::Basic { user, .. } = &settings.credential
            && user.contains(':')
        {
            return Err(unreadable("key username: a colon would end the name in HTTP's Basic authentication"));
        }
        settings.headers()?;
        Ok(settings)
    }

    fn trusting(mut self, authority: &[u8]) -> Result<Self, &'static str> {
        if let Some(why) = self.without_tls() {
            return Err(why);
        }
        self.server.ca = Some(Arc::from(authority));
        Ok(self)
    }

    fn showing(mut self, certificate: &[u8], key: &[u8]) -> Result<Self, &'static str> {
        if let Some(why) = self.without_tls() {
            return Err(why);
        }
        self.server.client = Some(Arc::new(ClientCertificate { certificate: certificate.to_vec(), key: key.to_vec() }));
        Ok(self)
    }

    fn servers(&self) -> Vec<String> {
        vec![self.server.authority()]
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::Prometheus(self.identity())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<HttpSettings, MeasureError> {
        HttpSettings::from_keys(|key| pairs.iter().find(|(name, _)| *name == key).map(|(_, value)| *value))
    }

    #[test]
    fn a_url_says_where_and_keys_say_who() {
        for (url, shown, path) in [
            ("http://prometheus:9090", "http://prometheus:9090", "/"),
            ("http://prometheus", "http://prometheus:80", "/"),
            ("HTTPS://mimir/prometheus/\n", "https://mimir:443/prometheus", "/prometheus"),
            ("http://[fd00::1]:9090/a?b=c#d", "http://[fd00::1]:9090/a", "/a?b=c"),
            ("https://u:hunter2@host", "https://host:443", "/"),
        ] {
            let settings = read(&[("url", url)]).unwrap();
            assert_eq!((settings.to_string().as_str(), settings.path_and_query().as_str()), (shown, path), "{url}");
        }
        let headers = |pairs: &[(&str, &str)]| {
            let pairs = [&[("url", "http://host")], pairs].concat();
            let headers = read(&pairs).unwrap().headers().unwrap();
            headers.into_iter().map(|(_, value)| value.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(headers(&[]), Vec::<String>::new());
        assert_eq!(headers(&[("token", "abc\n")]), ["Bearer abc"]);
        assert_eq!(headers(&[("username", "u"), ("password", "p@ss\n")]), ["Basic dTpwQHNz"]);
        let basic = read(&[("url", "http://u:p%40ss@host")]).unwrap().headers().unwrap();
        assert_eq!(basic[0].1.to_str().unwrap(), "Basic dTpwQHNz");
        assert!(!format!("{basic:?}").contains("dTpw"));
        assert_ne!(
            read(&[("url", "http://host"), ("token", "a")]).unwrap().identity(),
            read(&[("url", "http://host"), ("token", "b")]).unwrap().identity(),
            "a rotated token is another connection"
        );
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_in_words_that_repeat_no_secret() {
        for pairs in [
            &[("url", "hunter2:9090")][..],
            &[("url", "ftp://u:hunter2@host")],
            &[("url", "file:///hunter2")],
            &[("url", "http://u:hunter2@")],
            &[("url", "http://host:99999/hunter2")],
            &[("url", "http://host:+80/hunter2")],
            &[("url", "http://ho st/hunter2")],
            &[("url", "http://host/hunter2\r\nx: y")],
            &[("url", "http://u:hun%ter2@host")],
            &[("url", "http://[::1/hunter2")],
            &[("url", "http://host"), ("password", "hunter2")],
            &[("url", "http://host"), ("token", "hunter2"), ("username", "u")],
            &[("url", "http://host"), ("token", "hunter2\nx")],
            &[("url", "http://host"), ("username", "a:b"), ("password", "hunter2")],
        ] {
            let refused = read(pairs).unwrap_err();
            assert_eq!(refused.reason, Reason::ConnectionStringInvalid, "{pairs:?}");
            assert!(!refused.message.contains("hunter2"), "{}", refused.message);
        }
        assert_eq!(read(&[("token", "hunter2")]).unwrap_err().reason, Reason::SecretKeyMissing);
    }
}
