//! How to reach one management API: what a Secret may say, and what of it may be shown.
//!
//! One key holds a URL (`http://user:password@host:15672`, `https://…` for TLS), or each part has a key of its own. No part of a URL is repeated
//! in an error, since a password may have ended up anywhere in it.

use std::{fmt, sync::Arc};

use crate::{
    api::Reason,
    clients::{
        address::{self, is_host},
        http::Server,
        identity::Identity,
        tls::ClientCertificate,
        written::{self, Authority, unreadable},
    },
    measure::MeasureError,
    names::secret_key::RABBITMQ,
};

/// Keys of a URL; the first that is there counts.
const URLS: [&str; 2] = ["url", "uri"];
const HOST: [&str; 3] = ["host", "hostname", "endpoint"];
const PORT: [&str; 1] = ["port"];
const USER: [&str; 2] = ["username", "user"];
const PASSWORD: [&str; 1] = ["password"];
const TLS: [&str; 2] = ["tls", "ssl"];
const STREAM_PORT: [&str; 1] = ["stream-port"];
const AMQP_PORT: [&str; 1] = ["amqp-port"];

const NOTATION: &str = "write it as http://user:password@host:15672, or https://… for TLS";
const AMQP: &str = "it is a URL for AMQP, and queues are measured by the management API: write its URL, as in http://user:password@host:15672 (https://… for TLS), or the keys host, username and password";
const PLAIN_PORT: u16 = 15_672;
const TLS_PORT: u16 = 15_671;
/// Where streams are asked about, without TLS and with it.
const STREAM_PORTS: (u16, u16) = (5_552, 5_551);
/// Where AMQP is spoken, without TLS and with it.
const AMQP_PORTS: (u16, u16) = (5_672, 5_671);

/// How to reach one server as one user. Shows host, port and user, and never the password.
#[derive(Clone, Eq, Hash, PartialEq)]
pub struct ConnectionSettings {
    pub(super) server: Server,
    pub(super) user: String,
    pub(super) password: String,
    /// Where streams are asked about, on the same host.
    pub(super) stream_port: u16,
    /// Where workers take messages, on the same host.
    pub(super) amqp_port: u16,
}

/// What makes two connections the same.
pub type ConnectionIdentity = Identity<ConnectionSettings>;

impl fmt::Display for ConnectionSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RabbitMQ's management API at {} as {}", self.server.authority(), self.user)
    }
}

impl fmt::Debug for ConnectionSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnectionSettings({self})")
    }
}

/// Parts as they were written; port and `tls` still unread.
#[derive(Default)]
struct Written {
    host: Option<String>,
    port: Option<String>,
    user: Option<String>,
    password: Option<String>,
    tls: Option<String>,
    stream_port: Option<String>,
    amqp_port: Option<String>,
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
        // A URL for AMQP may stand beside the parts, which suffice.
        let url = first(&URLS).filter(|(_, text)| !is_amqp(text) || first(&HOST).is_none());
        let mut written = match url {
            Some((key, text)) => parse(text).map_err(|why| unreadable(&format!("key {key}: {why}")))?,
            None => Written::default(),
        };
        let parts: [(&mut Option<String>, &[&'static str]); 7] = [
            (&mut written.host, &HOST),
            (&mut written.port, &PORT),
            (&mut written.user, &USER),
            (&mut written.password, &PASSWORD),
            (&mut written.tls, &TLS),
            (&mut written.stream_port, &STREAM_PORT),
            (&mut written.amqp_port, &AMQP_PORT),
        ];
        for (part, keys) in parts {
            if part.is_none()
                && let Some((key, text)) = first(keys)
            {
                if text.contains('\0') {
                    return Err(unreadable(&format!("key {key} holds a NUL byte")));
                }
                *part = Some(text.to_owned());
            }
        }
        for (part, keys) in [(&written.host, HOST.as_slice()), (&written.user, &USER), (&written.password, &PASSWORD)] {
            if part.is_none() {
                return Err(MeasureError {
                    reason: Reason::SecretKeyMissing,
                    message: format!(
                        "{} is missing; these keys are looked for: {}",
                        keys.join(" or "),
                        RABBITMQ.join(", ")
                    ),
                });
            }
        }
        let about = |why: String| url.map_or_else(|| why.clone(), |(key, _)| format!("key {key}: {why}"));
        Self::from_written(written).map_err(|why| unreadable(&about(why)))
    }

    fn from_written(written: Written) -> Result<Self, String> {
        let Written { host, mut port, user, password, tls, stream_port, amqp_port } = written;
        let mut host = host.unwrap_or_default();
        // An endpoint may come with its port.
        if let Some((name, after)) = host.split_once(':')
            && !after.contains(':')
        {
            port = port.or_else(|| Some(after.to_owned()));
            host = name.to_owned();
        }
        if !is_host(&host) {
            return Err("host: is no host name; percent-encode special characters in user and password".to_owned());
        }
        let port: Option<u16> = match port.as_deref() {
            None | Some("") => None,
            Some(port) => Some(address::port(port).ok_or(
                "port: must be a number from 1 to 65535; percent-encode a : or / in user or password (%3A, %2F)",
            )?),
        };
        let tls = match tls.as_deref().map(str::to_ascii_lowercase).as_deref() {
            // AMQP's port with TLS.
            None | Some("") => port == Some(5_671),
            Some("false" | "no" | "0" | "disabled") => false,
            Some("true" | "yes" | "1" | "enabled") => true,
            Some(_) => return Err("tls: must be true or false".to_owned()),
        };
        let port = match port {
            // A Secret for workers tells AMQP's port; the management API is beside it.
            None | Some(5_671 | 5_672) => {
                if tls {
                    TLS_PORT
                } else {
                    PLAIN_PORT
                }
            }
            Some(port) => port,
        };
        let user = user.unwrap_or_default();
        if user.contains(':') {
            return Err(
                "username: must not hold a colon, which ends the name in HTTP's Basic authentication".to_owned()
            );
        }
        let server = Server { host, port, tls, ca: None, client: None };
        let beside = |port: Option<&str>, (plain, with_tls): (u16, u16), refusal| match port {
            None | Some("") => Ok(if tls { with_tls } else { plain }),
            Some(port) => address::port(port).ok_or(refusal),
        };
        let refusal = "stream-port: must be a number from 1 to 65535, such as 5552";
        let stream_port = beside(stream_port.as_deref(), STREAM_PORTS, refusal)?;
        let refusal = "amqp-port: must be a number from 1 to 65535, such as 5672";
        let amqp_port = beside(amqp_port.as_deref(), AMQP_PORTS, refusal)?;
        Ok(Self { server, user, password: password.unwrap_or_default(), stream_port, amqp_port })
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

fn is_amqp(text: &str) -> bool {
    text.split_once("://").is_some_and(|(scheme, _)| scheme.to_ascii_lowercase().starts_with("amqp"))
}

/// Reads a URL. Returns what is wrong with it in words that repeat none of it.
fn parse(text: &str) -> Result<Written, String> {
    let text = text.trim_matches(['"', '\'']).trim();
    if text.contains('\0') {
        return Err("it holds a NUL byte".to_owned());
    }
    if is_amqp(text) {
        return Err(AMQP.to_owned());
    }
    let Some((scheme, rest)) = text.split_once("://") else { return Err(NOTATION.to_owned()) };
    let tls = match scheme.to_ascii_lowercase().as_str() {
        "http" => false,
        "https" => true,
        _ => return Err(NOTATION.to_owned()),
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    if path.contains('@') {
        return Err("percent-encode a /, ? or # in user or password: %2F, %3F, %23".to_owned());
    }
    if !matches!(path.trim_end_matches('/'), "" | "/api") {
        return Err("what follows the port must be left out: the management API is asked below /api/, and a path of its own (management.path_prefix) is not supported".to_owned());
    }
    let Authority { user, password, host, port } = written::authority(authority)?;
    Ok(Written { host, port, user, password, tls: Some(tls.to_string()), stream_port: None, amqp_port: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<ConnectionSettings, MeasureError> {
        ConnectionSettings::from_keys(|key| pairs.iter().find(|(name, _)| *name == key).map(|(_, value)| *value))
    }

    #[test]
    fn a_url_and_its_parts_say_the_same() {
        let url = read(&[("url", "https://shop:p%40ss@rabbit:8443/api/\n")]).unwrap();
        let parts =
            [("host", "rabbit"), ("port", "8443"), ("username", "shop"), ("password", "p@ss\n"), ("tls", "true")];
        assert_eq!(url, read(&parts).unwrap());
        assert_eq!(url.to_string(), "RabbitMQ's management API at rabbit:8443 as shop");
        assert!(!format!("{url:?} {:?}", url.identity()).contains("p@ss"));
        let completed = read(&[("uri", "http://[::1]"), ("user", "u"), ("password", "p")]).unwrap();
        assert_eq!(completed.to_string(), "RabbitMQ's management API at [::1]:15672 as u");
        let rotated = read(&[("uri", "http://[::1]"), ("user", "u"), ("password", "q")]).unwrap();
        assert_ne!(completed.identity(), rotated.identity(), "a rotated password is another connection");
    }

    #[test]
    fn a_secret_for_workers_that_tells_the_port_of_amqp_leads_to_the_management_api() {
        let of = |port: &str, more: &[(&str, &str)]| {
            let given = [("host", "rabbit.shop.svc"), ("port", port), ("username", "u"), ("password", "p")];
            let settings = read(&[given.as_slice(), more].concat()).unwrap();
            (settings.server.port, settings.server.tls)
        };
        assert_eq!(of("5672", &[("connection_string", "amqp://u:p@rabbit.shop.svc:5672/")]), (15_672, false));
        assert_eq!(of("5672", &[("uri", "amqp://u:p@rabbit.shop.svc:5672/")]), (15_672, false));
        assert_eq!(of("5671", &[]), (15_671, true));
        assert_eq!(of("5672", &[("tls", "true")]), (15_671, true));
        assert_eq!(of("8080", &[]), (8_080, false));
        let amqp = |more: &[(&str, &str)]| {
            let given = [("host", "rabbit.shop.svc"), ("username", "u"), ("password", "p")];
            read(&[given.as_slice(), more].concat()).map(|settings| settings.amqp_port)
        };
        assert_eq!((amqp(&[]).unwrap(), amqp(&[("tls", "true")]).unwrap()), (5_672, 5_671));
        assert_eq!(amqp(&[("amqp-port", "5673")]).unwrap(), 5_673);
        assert!(amqp(&[("amqp-port", "0")]).unwrap_err().message.contains("amqp-port"));
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_in_words_that_repeat_no_secret() {
        for (url, words) in [
            ("amqp://u:hunter2@rabbit:5672/%2F", "management API"),
            ("amqps://u:hunter2@rabbit", "http://user:password@host:15672"),
            ("rabbit:15672,password=hunter2", "write it as http://"),
            ("ftp://u:hunter2@rabbit", "write it as http://"),
            ("http://u:hunter2@rabbit:15672/rabbit/prefix", "path_prefix"),
            ("http://u:hunter2@rabbit:15672/?x=y", "must be left out"),
            ("http://u:hunter2/x@rabbit", "percent-encode"),
            ("http://u:hun%ter2@rabbit", "%25"),
            ("http://u:hunter2@rabbit:99999", "port"),
            ("http://u:hunter2@rab bit", "host"),
            ("http://a%3Ab:hunter2@rabbit", "colon"),
        ] {
            let refused = read(&[("url", url)]).unwrap_err();
            assert_eq!(refused.reason, Reason::ConnectionStringInvalid, "{url}");
            assert!(refused.message.contains(words) && refused.message.contains("key url"), "{}", refused.message);
            assert!(!refused.message.contains("hunter2"), "{}", refused.message);
        }
        for (given, missing) in [
            (("password", "hunter2"), "host or hostname or endpoint is missing"),
            (("url", "http://rabbit"), "username or user is missing"),
            (("url", "http://hunter2@rabbit"), "password is missing"),
        ] {
            let none = read(&[given]).unwrap_err();
            assert_eq!(none.reason, Reason::SecretKeyMissing);
            assert!(none.message.contains(missing) && !none.message.contains("hunter2"), "{}", none.message);
        }
        for key in [URLS.as_slice(), &HOST, &PORT, &USER, &PASSWORD, &TLS, &STREAM_PORT, &AMQP_PORT].concat() {
            assert!(RABBITMQ.contains(&key), "{key} is looked for");
        }
    }
}
