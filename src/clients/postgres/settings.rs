//! How to reach one database: what a connection string may say, and what of it may be shown.

use std::{
    fmt,
    hash::{Hash, Hasher},
    net::IpAddr,
    sync::Arc,
};

use tokio_postgres::{
    Config,
    config::{ChannelBinding, SslNegotiation},
};

use super::{
    ConnectError, libpq,
    parameters::{self, Parameters, invalid},
};
use crate::clients::{address::host_and_port, tls::ClientCertificate};

/// What libpq's `sslmode` says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum SslMode {
    /// Never TLS.
    Disable,
    /// TLS where the server refuses a connection without.
    Allow,
    /// TLS where the server offers it and it succeeds.
    Prefer,
    /// TLS without verifying the server; as `VerifyCa` where an authority is given.
    Require,
    /// TLS with a certificate of an authority.
    VerifyCa,
    /// TLS with a certificate of an authority for this host.
    VerifyFull,
}

/// Which of several servers is acceptable.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Wanted {
    /// Each.
    Any,
    /// One that is no standby.
    Primary,
    /// One that takes writes.
    ReadWrite,
}

/// Name, address where it is given apart, and port of a server.
pub(super) type Host = (String, Option<IpAddr>, u16);

/// How to reach one database as one user. Shows host, port, database and user, and never the password.
#[derive(Clone)]
pub struct ConnectionSettings {
    /// Everything but hosts and TLS.
    pub(super) config: Config,
    /// Name and port of each server that may be tried, in order.
    pub(super) hosts: Vec<Host>,
    pub(super) ssl_mode: SslMode,
    pub(super) wanted: Wanted,
    pub(super) ca: Option<Arc<[u8]>>,
    pub(super) client: Option<Arc<ClientCertificate>>,
}

/// What makes two connections the same: all settings, the password included. Can be compared, not shown.
#[derive(Clone)]
pub struct ConnectionIdentity(Arc<ConnectionSettings>);

impl ConnectionSettings {
    /// Reads `postgres://user:password@host:port/database?sslmode=…`, `jdbc:postgresql://…` or `host=… user=…`.
    ///
    /// `sslmode` is one of disable, allow, prefer (the default), require, verify-ca and verify-full, and means what it means to libpq: only the last
    /// two verify the server's certificate. `sslrootcert=system` makes verify-full the default and goes with no other mode. Parameters that name
    /// files, ask for what cannot be had here or are unknown are refused, each by its name; an unknown one is named only if it has a value and
    /// consists of a to z and underscores. No other part of the text is repeated in an error, since a password may have ended up anywhere in it.
    ///
    /// # Errors
    /// `ConnectError::Invalid`.
    pub fn parse(text: &str) -> Result<Self, ConnectError> {
        Self::from_parameters(&parameters::parse(text)?)
    }

    /// Reads parameters that were given one by one, or in a connection string.
    pub(super) fn from_parameters(given: &Parameters) -> Result<Self, ConnectError> {
        let url = given.from_url;
        let mut config = Config::new();
        for (name, value) in given.iter() {
            libpq::apply(&mut config, name, value, url)?;
        }
        let hosts = hosts(given, url)?;
        let user = given.get("user").ok_or_else(|| invalid("it names no user"))?;
        config.user(user).dbname(given.get("dbname").unwrap_or(user));
        if let Some(password) = given.get("password") {
            config.password(password);
        }
        let settings =
            Self { config, hosts, ssl_mode: ssl_mode(given)?, wanted: wanted(given)?, ca: None, client: None };
        settings.check_tls()?;
        Ok(settings)
    }

    fn check_tls(&self) -> Result<(), ConnectError> {
        let weak = matches!(self.ssl_mode, SslMode::Disable | SslMode::Allow | SslMode::Prefer);
        if self.config.get_ssl_negotiation() == SslNegotiation::Direct && weak {
            return Err(invalid("sslnegotiation=direct needs sslmode=require, verify-ca or verify-full"));
        }
        if self.config.get_channel_binding() == ChannelBinding::Require && self.ssl_mode == SslMode::Disable {
            return Err(invalid(
                "channel_binding=require needs TLS, and sslmode=disable forbids it: use sslmode=require or better, or leave channel_binding out",
            ));
        }
        Ok(())
    }

    /// Trusts these certificate authorities (PEM) instead of the public ones, where sslmode verifies.
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

    /// True when the server's certificate is verified once an authority is given, so that one matters.
    pub fn verifies_certificate(&self) -> bool {
        matches!(self.ssl_mode, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull)
    }

    /// True when there may be TLS, so that a client certificate matters.
    pub fn may_use_tls(&self) -> bool {
        self.ssl_mode != SslMode::Disable
    }

    /// Identifies the connection, to compare it with others.
    pub fn identity(&self) -> ConnectionIdentity {
        ConnectionIdentity(Arc::new(self.clone()))
    }

    /// Host and port of the first host, for messages.
    fn address(&self) -> String {
        self.hosts.first().map(|(host, _, port)| host_and_port(host, *port)).unwrap_or_default()
    }

    /// Identifies the database, whatever the user: the same text for the same address and name.
    pub fn database(&self) -> String {
        format!("{}/{}", self.address(), self.config.get_dbname().unwrap_or_default())
    }

    /// The user.
    pub fn user(&self) -> Option<&str> {
        self.config.get_user()
    }
}

fn ssl_mode(given: &Parameters) -> Result<SslMode, ConnectError> {
    let (written, mode) = match given.get("sslmode") {
        None if given.get("requiressl") == Some("1") => ("requiressl=1", Some(SslMode::Require)),
        None => ("", None),
        Some("disable") => ("sslmode=disable", Some(SslMode::Disable)),
        Some("allow") => ("sslmode=allow", Some(SslMode::Allow)),
        Some("prefer") => ("sslmode=prefer", Some(SslMode::Prefer)),
        Some("require") => ("sslmode=require", Some(SslMode::Require)),
        Some("verify-ca") => ("sslmode=verify-ca", Some(SslMode::VerifyCa)),
        Some("verify-full") => ("sslmode=verify-full", Some(SslMode::VerifyFull)),
        Some(_) => return Err(invalid("sslmode: must be disable, allow, prefer, require, verify-ca or verify-full")),
    };
    if given.get("sslrootcert") != Some("system") {
        return Ok(mode.unwrap_or(SslMode::Prefer));
    }
    // As libpq: a certificate of a public authority proves nothing unless it is for this host.
    match mode {
        None | Some(SslMode::VerifyFull) => Ok(SslMode::VerifyFull),
        Some(_) => Err(invalid(format!(
            "{written} is too weak for sslrootcert=system: use sslmode=verify-full, or leave sslrootcert out"
        ))),
    }
}

fn wanted(given: &Parameters) -> Result<Wanted, ConnectError> {
    let name = "target_session_attrs";
    Ok(match given.get(name).or_else(|| given.get("targetServerType")) {
        None | Some("any") => Wanted::Any,
        Some("primary" | "master") => Wanted::Primary,
        Some("read-write") => Wanted::ReadWrite,
        Some("standby" | "prefer-standby" | "read-only" | "secondary" | "preferSecondary") => {
            return Err(invalid(format!(
                "{name}: a standby does not show who is writing, and takes no checkpoints: write primary"
            )));
        }
        Some(_) => return Err(invalid(format!("{name}: must be any, primary or read-write"))),
    })
}

fn hosts(given: &Parameters, url: bool) -> Result<Vec<Host>, ConnectError> {
    let list = |name: &str| -> Vec<String> {
        given.get(name).map(|all| all.split(',').map(|one| one.trim().to_owned()).collect()).unwrap_or_default()
    };
    let (names, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
    let count = names.len().max(addresses.len());
    if count == 0 {
        return Err(invalid("it names no host"));
    }
    if (!names.is_empty() && !addresses.is_empty() && names.len() != addresses.len())
        || (ports.len() > 1 && ports.len() != count)
    {
        return Err(invalid("host, hostaddr and port name different numbers of servers"));
    }
    let mut hosts = Vec::new();
    for index in 0..count {
        let address = match addresses.get(index).filter(|address| !address.is_empty()) {
            Some(address) => Some(address.parse().map_err(|_| invalid("hostaddr: must be an IP address"))?),
            None => None,
        };
        let name = names.get(index).cloned().filter(|name| !name.is_empty());
        let name = name.or_else(|| address.map(|address: IpAddr| address.to_string()));
        let name = name.ok_or_else(|| invalid("it names no host"))?;
        if name.starts_with(['/', '@']) {
            return Err(invalid("host: must be a name or an address, not the path of a socket, which is not here"));
        }
        if !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':')) {
            let encode = if url { ": percent-encode special characters in user and password" } else { "" };
            return Err(invalid(format!("host: is no host name{encode}")));
        }
        let port = ports.get(index).or(ports.first()).map_or("", String::as_str);
        let port = if port.is_empty() { Ok(5432) } else { port.parse::<u16>() };
        let port = port.ok().filter(|port| *port > 0).ok_or_else(|| {
            let encode = if url { "; percent-encode a : or / in user or password (%3A, %2F)" } else { "" };
            invalid(format!("port: must be a number from 1 to 65535{encode}"))
        })?;
        hosts.push((name, address, port));
    }
    Ok(hosts)
}

impl ConnectionSettings {
    /// The configuration for one of its servers.
    pub(super) fn config_for(&self, (name, address, port): &Host) -> Config {
        let mut config = self.config.clone();
        config.host(name).port(*port);
        if let Some(address) = address {
            config.hostaddr(*address);
        }
        config
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
        let same = || {
            (a.ssl_mode, a.wanted) == (b.ssl_mode, b.wanted)
                && a.config == b.config
                && a.hosts == b.hosts
                && a.ca == b.ca
                && a.client == b.client
        };
        Arc::ptr_eq(a, b) || same()
    }
}

impl Eq for ConnectionIdentity {}

impl Hash for ConnectionIdentity {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let config = &self.0.config;
        self.0.hosts.hash(state);
        config.get_dbname().hash(state);
        config.get_user().hash(state);
        config.get_password().hash(state);
    }
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
