//! Connection settings of Redis as people write them: a URL, or one text a part; and the addresses in them. Pure.

use super::address::Address;
use crate::clients::{address, written::percent_decoded_text};

const NOTATION: &str = "write it as redis://user:password@host:6379/0, or rediss://… for TLS";
const DEFAULT_PORT: u16 = 6379;
/// Sentinels or nodes that one Secret may name.
const MOST_NAMED: usize = 8;

/// A part of the settings that has keys of its own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Part {
    Host,
    Port,
    User,
    Password,
    Database,
    Tls,
}

/// Parts as they were written; the port, database and `tls` still unread.
#[derive(Default)]
pub(super) struct Written {
    pub(super) host: Option<String>,
    pub(super) port: Option<String>,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) database: Option<String>,
    pub(super) tls: Option<String>,
    /// The name of the primary, where `host` names Sentinels.
    pub(super) sentinels_of: Option<String>,
    /// Whether `host` names nodes of a cluster.
    pub(super) is_cluster: bool,
}

impl Written {
    /// The place of this part.
    pub(super) fn part(&mut self, part: Part) -> &mut Option<String> {
        match part {
            Part::Host => &mut self.host,
            Part::Port => &mut self.port,
            Part::User => &mut self.user,
            Part::Password => &mut self.password,
            Part::Database => &mut self.database,
            Part::Tls => &mut self.tls,
        }
    }

    /// Reads a URL. Returns what is wrong with it in words that repeat none of it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim_matches(['"', '\'']).trim();
        if text.contains('\0') {
            return Err("it holds a NUL byte".to_owned());
        }
        let Some((scheme, rest)) = text.split_once("://") else { return Err(NOTATION.to_owned()) };
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "redis" | "valkey" => false,
            "rediss" | "valkeys" => true,
            "redis-sentinel" | "redis+sentinel" => false,
            "rediss-sentinel" | "rediss+sentinel" => true,
            "redis-cluster" | "redis+cluster" => false,
            "rediss-cluster" | "rediss+cluster" => true,
            "unix" | "redis+unix" | "redis-socket" => {
                return Err(format!("a socket in the file system is not here: {NOTATION}"));
            }
            _ => return Err(NOTATION.to_owned()),
        };
        let (authority, rest) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        if rest.contains('@') {
            return Err("percent-encode a /, ? or # in user or password: %2F, %3F, %23".to_owned());
        }
        let mut written = Self { tls: Some(tls.to_string()), ..Self::default() };
        let hosts = match authority.rsplit_once('@') {
            None => authority,
            Some((credentials, hosts)) => {
                let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
                written.user = Some(percent_decoded_text(user)?).filter(|user| !user.is_empty());
                written.password = Some(percent_decoded_text(password)?).filter(|password| !password.is_empty());
                hosts
            }
        };
        if !hosts.is_empty() {
            written.host = Some(hosts.to_owned());
        }
        written.is_cluster = scheme.to_ascii_lowercase().ends_with("cluster");
        if rest.contains('#') {
            return Err("what follows # asks for TLS without verification, which is not supported: put the server's authority into a Secret and name it in connection.caSecretRef".to_owned());
        }
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut path = path.trim_matches('/');
        if scheme.to_ascii_lowercase().ends_with("sentinel") {
            let (primary, database) = path.split_once('/').unwrap_or((path, ""));
            written.sentinels_of = Some(percent_decoded_text(primary)?);
            path = database;
        }
        written.database = Some(percent_decoded_text(path)?).filter(|path| !path.is_empty());
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match (name, value) {
                ("db" | "database", value) => written.database = Some(percent_decoded_text(value)?),
                // What drivers are told, and means nothing to this one.
                (
                    "protocol" | "client_name" | "timeout" | "socket_timeout" | "max_connections" | "decode_responses",
                    _,
                ) => {}
                ("ssl_cert_reqs", "required") => {}
                ("ssl_cert_reqs", _) => {
                    return Err("ssl_cert_reqs: TLS without verification is not supported: put the server's authority into a Secret and name it in connection.caSecretRef".to_owned());
                }
                _ => {
                    return Err("it has a parameter that is not known (known is db): leave it out, or percent-encode a ? or & in user or password (%3F, %26)".to_owned());
                }
            }
        }
        Ok(written)
    }
}

/// The server in `host` or `host:port`, or the nodes of a cluster in `host:port,host:port`. Returns what is wrong in words that repeat none of it.
pub(super) fn servers(hosts: &str, port: Option<&str>) -> Result<Vec<Address>, String> {
    const PORT: &str = "port: must be a number from 1 to 65535; percent-encode a : or / in user or password (%3A, %2F)";
    let default = match port {
        None | Some("") => DEFAULT_PORT,
        Some(port) => address::port(port).ok_or(PORT)?,
    };
    if hosts.starts_with('/') {
        return Err("host: must be a name or an address, not the path of a socket".to_owned());
    }
    if hosts.split(',').count() > MOST_NAMED {
        return Err(format!("host: names more than {MOST_NAMED} nodes: a few suffice, they tell of the others"));
    }
    hosts.split(',').map(|text| Ok(address::Address::parse(text.trim(), default)?.into())).collect()
}

/// Where Sentinels are, in `host:port,host:port`; absent where there are too many, or one is no address.
pub(super) fn sentinels(hosts: &str) -> Option<Vec<Address>> {
    let all: Result<Vec<Address>, _> =
        hosts.split(',').map(|text| address::Address::parse(text.trim(), 26_379).map(Address::from)).collect();
    all.ok().filter(|all| all.len() <= MOST_NAMED)
}
