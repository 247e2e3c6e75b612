//! Host and port of a server, as settings write them and messages show them, and the one way to connect to them.

use std::{fmt, net::SocketAddr};

use tokio::net::{TcpStream, lookup_host};

use super::words::{by_io, no_address};
use crate::{addresses::AddressRules, api::Reason, measure::MeasureError};

/// One server of a cluster, shown as `host:port`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct Address {
    /// A name or an address, IPv6 without brackets.
    pub(super) host: String,
    pub(super) port: u16,
}

impl Address {
    /// Reads `host`, `host:port` or `[address]:port`. Returns what is wrong with it in words that repeat none of it.
    pub(super) fn parse(text: &str, default_port: u16) -> Result<Self, &'static str> {
        let (host, written) = match text.strip_prefix('[') {
            Some(bracketed) => {
                let (host, port) = bracketed.split_once(']').ok_or("an IPv6 address has no closing ]")?;
                (host, port.strip_prefix(':').unwrap_or_default())
            }
            // An IPv6 address without brackets has no port.
            None => text.split_once(':').filter(|(_, port)| !port.contains(':')).unwrap_or((text, "")),
        };
        if !is_host(host) {
            return Err("host: is no host name; percent-encode special characters before the @");
        }
        let port = match written {
            "" => default_port,
            written => port(written)
                .ok_or("port: must be a number from 1 to 65535; percent-encode a : or / before the @ (%3A, %2F)")?,
        };
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&host_and_port(&self.host, self.port))
    }
}

/// `host:port`, with brackets around an IPv6 address.
pub(super) fn host_and_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Resolves a name, and keeps those of its addresses that `rules` allow, at least one. What is judged here is what is to be connected to: a name that leads
/// elsewhere a moment later changes nothing. A host is judged alike, whether a Secret, a spec or another server named it.
///
/// # Errors
/// `HostNotFound`, or `AddressRefused` by the rules. Does not say which host.
pub(super) async fn look_up(host: &str, port: u16, rules: &AddressRules) -> Result<Vec<SocketAddr>, MeasureError> {
    permitted(resolve(host, port).await?.into_iter(), rules)
}

/// The addresses of a name, at least one, not judged yet.
///
/// # Errors
/// `HostNotFound`. Does not say which host.
pub(super) async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, MeasureError> {
    let found: Vec<SocketAddr> = lookup_host((host, port)).await.map_err(|error| by_io(&error))?.collect();
    if found.is_empty() { Err(no_address()) } else { Ok(found) }
}

/// Connects to the first of a host's permitted addresses that accepts the connection.
///
/// # Errors
/// As [`look_up`], and why none of them accepts it. Does not say which host.
pub(super) async fn connect(host: &str, port: u16, rules: &AddressRules) -> Result<TcpStream, MeasureError> {
    let permitted = look_up(host, port, rules).await?;
    let stream = TcpStream::connect(permitted.as_slice()).await.map_err(|error| by_io(&error))?;
    stream.set_nodelay(true).map_err(|error| by_io(&error))?;
    Ok(stream)
}

/// Those of the addresses that may be asked, at least one.
pub(super) fn permitted(
    resolved: impl Iterator<Item = SocketAddr>,
    rules: &AddressRules,
) -> Result<Vec<SocketAddr>, MeasureError> {
    let mut refused = None;
    let mut permitted = Vec::new();
    for at in resolved {
        match rules.refused(at) {
            None => permitted.push(at),
            Some(kind) => refused = Some(kind),
        }
    }
    match refused {
        Some(kind) if permitted.is_empty() => Err(MeasureError {
            reason: Reason::AddressRefused,
            message: format!(
                "the host leads to {kind}, which the operator does not ask: correct it, or have the administrator allow the address (chart value allowSourceAddresses)"
            ),
        }),
        _ => Ok(permitted),
    }
}

/// Whether this can be a host's name or address.
pub(super) fn is_host(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':'))
}

/// A port from 1 to 65535.
pub(super) fn port(text: &str) -> Option<u16> {
    // `parse` would take a sign.
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port: &u16| digits && *port > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_addresses_the_refused_ones_are_left_out() {
        let at = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let rules = AddressRules::default();
        let mixed = at(&["127.0.0.1:80", "10.0.0.1:80"]);
        assert_eq!(permitted(mixed.into_iter(), &rules).unwrap(), at(&["10.0.0.1:80"]));
        let refused = permitted(at(&["169.254.169.254:80"]).into_iter(), &rules).unwrap_err();
        assert_eq!(refused.reason, Reason::AddressRefused);
        assert!(refused.message.contains("allowSourceAddresses") && !refused.message.contains("169.254"));
    }

    #[test]
    fn an_address_is_read_as_it_is_shown() {
        for (text, shown) in [
            ("host", "host:7"),
            ("host:", "host:7"),
            ("host:80", "host:80"),
            ("10.0.0.1:80", "10.0.0.1:80"),
            ("[::1]", "[::1]:7"),
            ("[::1]:80", "[::1]:80"),
            ("::1", "[::1]:7"),
        ] {
            let read = Address::parse(text, 7).unwrap();
            assert_eq!(read.to_string(), shown);
            assert_eq!(Address::parse(shown, 9).unwrap(), read);
        }
        for text in ["", ":80", "[::1", "ho st", "host:0", "host:+80", "host:65536", "u:hunter2@host"] {
            assert!(!Address::parse(text, 7).unwrap_err().contains("hunter2"), "{text}");
        }
    }
}
