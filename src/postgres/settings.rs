//! Connection strings: what they may say, and what of them may be shown.

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

use tokio_postgres::{
    Config,
    config::{Host, SslMode},
};

use super::{ConnectError, tls::Verify};

/// Parameters that may stand in a connection string beside host, port, user, password and database. Whatever names a file, a program or
/// a service of the machine is missing on purpose: the string comes from a tenant.
const ALLOWED: [&str; 17] = [
    "application_name",
    "channel_binding",
    "connect_timeout",
    "dbname",
    "host",
    "hostaddr",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "load_balance_hosts",
    "options",
    "password",
    "port",
    "sslmode",
    "sslnegotiation",
    "target_session_attrs",
    "user",
];

/// How to reach one database as one user. Shows host, port, database and user, and never the password.
#[derive(Clone)]
pub struct ConnectionSettings {
    pub(super) config: Config,
    pub(super) verify: Verify,
    pub(super) ca: Option<Arc<[u8]>>,
}

/// What makes two connections the same: all settings, the password included. Can be compared, not shown.
#[derive(Clone)]
pub struct ConnectionIdentity(Arc<ConnectionSettings>);

impl ConnectionSettings {
    /// Reads `postgres://user:password@host:port/database?sslmode=…` or `host=… user=…`.
    ///
    /// `sslmode` is one of disable, prefer (the default), require, verify-ca and verify-full, and means what it means to libpq: only the last two
    /// verify the server's certificate. Refused are parameters that name files (`sslrootcert`), Unix sockets, and unknown ones.
    /// No part of the text is repeated in an error, since a password may have ended up anywhere in it.
    pub fn parse(text: &str) -> Result<Self, ConnectError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(invalid("it is empty"));
        }
        let is_url = text.starts_with("postgres://") || text.starts_with("postgresql://");
        let (rest, sslmode) = if is_url { without_sslmode_url(text)? } else { without_sslmode_pairs(text)? };
        let mut config: Config = rest.parse().map_err(|_| {
            invalid("write it as postgres://user:password@host:5432/database, with special characters percent-encoded")
        })?;
        let (mode, verify) = match sslmode.as_deref() {
            None | Some("prefer") => (SslMode::Prefer, Verify::Nothing),
            Some("disable") => (SslMode::Disable, Verify::Nothing),
            Some("require") => (SslMode::Require, Verify::Nothing),
            Some("verify-ca") => (SslMode::Require, Verify::Chain),
            Some("verify-full") => (SslMode::Require, Verify::ChainAndName),
            Some(_) => return Err(invalid("sslmode must be disable, prefer, require, verify-ca or verify-full")),
        };
        config.ssl_mode(mode);
        check_hosts(&config)?;
        if config.get_user().is_none_or(str::is_empty) {
            return Err(invalid("it names no user"));
        }
        if config.get_dbname().is_none() {
            let user = config.get_user().unwrap_or_default().to_owned();
            config.dbname(user);
        }
        Ok(Self { config, verify, ca: None })
    }

    /// Trusts these certificate authorities (PEM) instead of the public ones, where sslmode verifies.
    #[must_use]
    pub fn with_ca(mut self, pem: &[u8]) -> Self {
        self.ca = Some(Arc::from(pem));
        self
    }

    /// True when the server's certificate is verified, so that a certificate authority matters.
    pub fn verifies_certificate(&self) -> bool {
        self.verify != Verify::Nothing
    }

    /// For telling connections apart.
    pub fn identity(&self) -> ConnectionIdentity {
        ConnectionIdentity(Arc::new(self.clone()))
    }

    /// Host and port of the first host, for messages.
    fn address(&self) -> String {
        let host = match self.config.get_hosts().first() {
            Some(Host::Tcp(host)) => host.clone(),
            _ => self.config.get_hostaddrs().first().map(ToString::to_string).unwrap_or_default(),
        };
        let port = self.config.get_ports().first().copied().unwrap_or(5432);
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }
}

impl fmt::Display for ConnectionSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "database {} at {} as {}",
            self.config.get_dbname().unwrap_or_default(),
            self.address(),
            self.config.get_user().unwrap_or_default()
        )
    }
}

impl ConnectionSettings {
    /// Which database it is, whoever connects: the same text for the same address and name.
    pub fn database(&self) -> String {
        format!("{}/{}", self.address(), self.config.get_dbname().unwrap_or_default())
    }
}

impl fmt::Debug for ConnectionSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnectionSettings({self})")
    }
}

impl ConnectionIdentity {
    /// The settings that it stands for.
    pub fn settings(&self) -> &ConnectionSettings {
        &self.0
    }
}

impl fmt::Debug for ConnectionIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnectionIdentity({})", self.0)
    }
}

impl PartialEq for ConnectionIdentity {
    fn eq(&self, other: &Self) -> bool {
        let (a, b) = (&self.0, &other.0);
        Arc::ptr_eq(a, b) || (a.config == b.config && a.verify == b.verify && a.ca == b.ca)
    }
}

impl Eq for ConnectionIdentity {}

impl Hash for ConnectionIdentity {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let config = &self.0.config;
        self.0.address().hash(state);
        config.get_dbname().hash(state);
        config.get_user().hash(state);
        config.get_password().hash(state);
    }
}

fn invalid(why: &str) -> ConnectError {
    ConnectError::Invalid(why.to_owned())
}

fn check_name(name: &str) -> Result<(), ConnectError> {
    match name {
        "sslrootcert" | "sslcert" | "sslkey" | "sslcrl" | "passfile" | "service" | "servicefile" => {
            Err(invalid("parameters that name files, such as sslrootcert, are not allowed"))
        }
        name if ALLOWED.contains(&name) => Ok(()),
        _ => Err(invalid("it has an unknown parameter, or a special character that is not percent-encoded")),
    }
}

fn without_sslmode_url(text: &str) -> Result<(String, Option<String>), ConnectError> {
    let (base, query) = text.split_once('?').unwrap_or((text, ""));
    if base.matches('@').count() > 1 {
        return Err(invalid("write an @ in user or password as %40"));
    }
    let mut sslmode = None;
    let mut kept = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        check_name(name)?;
        if name == "sslmode" {
            sslmode = Some(value.to_owned());
        } else {
            kept.push(pair);
        }
    }
    let rest = if kept.is_empty() { base.to_owned() } else { format!("{base}?{}", kept.join("&")) };
    Ok((rest, sslmode))
}

/// Splits `key=value key='quoted \' value'` and takes sslmode out.
fn without_sslmode_pairs(text: &str) -> Result<(String, Option<String>), ConnectError> {
    let mut sslmode = None;
    let mut kept = String::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (name, after) =
            rest.split_once('=').ok_or_else(|| invalid("write it as host=… user=… password=… dbname=…"))?;
        let name = name.trim();
        check_name(name)?;
        let after = after.trim_start();
        let end = value_end(after)?;
        let (value, tail) = after.split_at(end);
        if name == "sslmode" {
            sslmode = Some(value.trim_matches('\'').to_owned());
        } else {
            kept.push_str(&format!("{name}={value} "));
        }
        rest = tail.trim_start();
    }
    Ok((kept, sslmode))
}

fn value_end(text: &str) -> Result<usize, ConnectError> {
    let quoted = text.starts_with('\'');
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(usize::from(quoted)) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '\'' if quoted => return Ok(at + 1),
            c if !quoted && c.is_whitespace() => return Ok(at),
            _ => {}
        }
    }
    if quoted { Err(invalid("a quoted value has no end")) } else { Ok(text.len()) }
}

fn check_hosts(config: &Config) -> Result<(), ConnectError> {
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        return Err(invalid("it names no host"));
    }
    for host in config.get_hosts() {
        match host {
            Host::Tcp(name)
                if !name.is_empty()
                    && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':')) => {}
            Host::Tcp(_) => {
                return Err(invalid(
                    "its host is no host name: percent-encode special characters in user and password",
                ));
            }
            #[cfg(unix)]
            Host::Unix(_) => return Err(invalid("its host must be a name or an address, not a path")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "hunter2";

    #[test]
    fn reads_both_notations_and_shows_no_password() {
        for text in [
            "postgres://shop:hunter2@db.example:6000/events?sslmode=verify-full&application_name=x",
            "postgresql://shop:hunter2@db.example:6000/events?sslmode=verify-full",
            "host=db.example port=6000 user=shop password='hunter2' dbname=events sslmode=verify-full",
        ] {
            let settings = ConnectionSettings::parse(text).unwrap();
            assert_eq!(settings.to_string(), "database events at db.example:6000 as shop");
            assert!(settings.verifies_certificate());
            for shown in [format!("{settings:?}"), format!("{:?}", settings.identity())] {
                assert!(!shown.contains(SECRET), "{shown}");
            }
        }
    }

    #[test]
    fn refuses_what_it_cannot_honour_without_repeating_it() {
        for text in [
            "",
            "mysql://shop:hunter2@db/events",
            "postgres://shop:hunter2@db/events?sslrootcert=/etc/passwd",
            "postgres://shop:hunter2@db/events?sslmode=maybe-hunter2",
            "postgres://shop:hunter2@/events?host=/var/run/hunter2",
            "postgres://shop:hunter2@db:x/events",
            "postgres://shop:p@hunter2@db/events",
            "postgres://shop:p?hunter2@db/events",
            "postgres://shop:p#hunter2/x@db/events?hunter2=1",
            "postgres://db/events",
            "host=db user=shop password=two hunter2",
            "host=db user=shop password='hunter2",
            "host=db user=shop service=hunter2",
        ] {
            let error = ConnectionSettings::parse(text).unwrap_err();
            assert_eq!(error.reason(), crate::api::Reason::ConnectionStringInvalid, "{text}");
            assert!(!format!("{error} {error:?}").contains(SECRET), "{error}");
        }
    }

    #[test]
    fn the_same_database_is_one_and_another_password_another() {
        let identity = |text: &str| ConnectionSettings::parse(text).unwrap().identity();
        let one = identity("postgres://shop:a@db/events");
        assert_eq!(one, identity("host=db user=shop password=a dbname=events port=5432"));
        for other in [
            "postgres://shop:b@db/events",
            "postgres://shop:a@db/other",
            "postgres://shop:a@db:5433/events",
            "postgres://else:a@db/events",
            "postgres://shop:a@db/events?sslmode=require",
            "postgres://shop:a@db/events?sslmode=verify-ca",
        ] {
            assert_ne!(one, identity(other), "{other}");
        }
    }

    #[test]
    fn a_database_defaults_to_the_user() {
        assert_eq!(
            ConnectionSettings::parse("postgres://shop@db").unwrap().to_string(),
            "database shop at db:5432 as shop"
        );
    }
}
