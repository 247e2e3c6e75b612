//! What each parameter of a connection string means here: the names are those of libpq, and of some drivers and pools.
//!
//! Hosts, user, password, database, `sslmode` and `target_session_attrs` are read in `settings`, since they depend on each other.

use std::time::Duration;

use tokio_postgres::{
    Config,
    config::{ChannelBinding, LoadBalanceHosts, SslNegotiation},
};

use super::{ConnectError, parameters::invalid};

/// Parameters that `settings` reads.
const READ_IN_SETTINGS: [&str; 9] =
    ["host", "hostaddr", "port", "user", "password", "dbname", "sslmode", "target_session_attrs", "targetServerType"];

/// Parameters that the caller of `connect` decides on.
const GIVEN_BY_THE_CALLER: [&str; 2] = ["application_name", "connect_timeout"];

/// Settings of drivers and pools that mean nothing to this client.
const OF_DRIVERS: [&str; 15] = [
    "connection_limit",
    "fallback_application_name",
    "loggerLevel",
    "loginTimeout",
    "pgbouncer",
    "pool_max_conns",
    "pool_min_conns",
    "pool_timeout",
    "preferQueryMode",
    "prepareThreshold",
    "reWriteBatchedInserts",
    "socketTimeout",
    "socket_timeout",
    "statement_cache_size",
    "tcpKeepAlive",
];

/// Parameters with one value that changes nothing, with what to do where they have another.
const WITH_ONE_MEANING: [(&[&str], &[&str], &str); 8] = [
    (
        &["gssencmode"],
        &["disable", "prefer", ""],
        "encryption by Kerberos is not supported: write gssencmode=disable, and sslmode for TLS",
    ),
    (&["client_encoding"], &["utf8", "utf-8", "unicode", "auto", ""], "must be UTF8"),
    (&["sslcompression", "sslsni", "requiressl"], &["", "0", "1"], "must be 0 or 1"),
    (&["ssl_min_protocol_version"], &["", "tlsv1", "tlsv1.1", "tlsv1.2"], TLS_VERSIONS),
    (&["ssl_max_protocol_version"], &["", "tlsv1.3"], TLS_VERSIONS),
    // libpq takes `system` for the public authorities, which are also used here without an authority. What it means for sslmode is read with that.
    (
        &["sslrootcert"],
        &["system", ""],
        "names a file, which is not here: put the authority into a Secret and name it in connection.caSecretRef",
    ),
    // What every user's search path holds.
    (
        &["schema", "currentSchema", "search_path"],
        &["public", ""],
        "name the schema with the tables in the Projection (eventTable.table: schema.table, readStore.postgres.schema), and leave it out here",
    ),
    (&["load_balance_hosts"], &["disable", "random", ""], "must be disable or random"),
];

const TLS_VERSIONS: &str = "TLS 1.2 and 1.3 are used, as the server chooses: leave it out";

/// Parameters that are refused whatever their value, with what to do instead.
const REFUSED: [(&[&str], &str); 6] = [
    (
        &["sslcert", "sslkey"],
        "names a file, which is not here: put certificate and key into a Secret and name it in connection.clientCertificateSecretRef",
    ),
    (&["passfile"], "names a file, which is not here: put the password into the Secret"),
    (
        &["service", "servicefile"],
        "names an entry of a file, which is not here: write host, database, user and password out",
    ),
    (
        &["sslaccept", "sslfactory"],
        "says something about TLS that only one driver knows: write sslmode=require or verify-full",
    ),
    (&["sslpassword", "sslcrl", "sslcrldir", "sslcertmode"], NOT_SUPPORTED),
    (
        &["krbsrvname", "gsslib", "gssdelegation", "require_auth", "require_peer", "requirepeer", "replication"],
        NOT_SUPPORTED,
    ),
];

const NOT_SUPPORTED: &str = "is not supported: leave it out";

/// Takes one parameter over. `url`: it comes from a URL, so that a stray `&` may be the cause of an unknown one.
///
/// # Errors
/// `ConnectError::Invalid` with the parameter's name and what to do. An unknown one is named only if it has a value and consists of a to z and
/// underscores: other text may be the rest of a password.
pub(super) fn apply(config: &mut Config, name: &str, value: &str, url: bool) -> Result<(), ConnectError> {
    let refused = |why: &str| Err(invalid(format!("{name}: {why}")));
    if let Some((_, why)) = REFUSED.iter().find(|(names, _)| names.contains(&name)) {
        return refused(why);
    }
    let restricted = WITH_ONE_MEANING.iter().find(|(names, ..)| names.contains(&name));
    if let Some((_, allowed, why)) = restricted
        && !allowed.contains(&value.to_ascii_lowercase().as_str())
    {
        return refused(why);
    }
    let without_effect =
        READ_IN_SETTINGS.contains(&name) || GIVEN_BY_THE_CALLER.contains(&name) || OF_DRIVERS.contains(&name);
    match name {
        "options" => {
            config.options(value);
        }
        "keepalives" => {
            config.keepalives(value != "0");
        }
        "keepalives_idle" => {
            config.keepalives_idle(Duration::from_secs(number(name, value)?));
        }
        "keepalives_interval" => {
            config.keepalives_interval(Duration::from_secs(number(name, value)?));
        }
        "keepalives_count" => {
            config.keepalives_retries(u32::try_from(number(name, value)?).unwrap_or(u32::MAX));
        }
        "tcp_user_timeout" => {
            config.tcp_user_timeout(Duration::from_millis(number(name, value)?));
        }
        "load_balance_hosts" if value.eq_ignore_ascii_case("random") => {
            config.load_balance_hosts(LoadBalanceHosts::Random);
        }
        "channel_binding" => {
            config.channel_binding(match value {
                "disable" => ChannelBinding::Disable,
                "prefer" | "" => ChannelBinding::Prefer,
                "require" => ChannelBinding::Require,
                _ => return refused("must be disable, prefer or require"),
            });
        }
        "sslnegotiation" => {
            config.ssl_negotiation(match value {
                "postgres" | "" => SslNegotiation::Postgres,
                "direct" => SslNegotiation::Direct,
                _ => return refused("must be postgres or direct"),
            });
        }
        _ if without_effect || restricted.is_some() => {}
        _ => return Err(unknown(name, value, url)),
    }
    Ok(())
}

fn unknown(name: &str, value: &str, url: bool) -> ConnectError {
    let speakable = !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    let which = if speakable && !value.is_empty() { format!("{name}: is") } else { "it has".to_owned() };
    let encode = if url { ", or percent-encode an & in a value: %26" } else { "" };
    invalid(format!("{which} a parameter that is not known (known are those of libpq): correct its name{encode}"))
}

/// A number of seconds, milliseconds or probes. Negative and empty: the system's own, 0.
fn number(name: &str, value: &str) -> Result<u64, ConnectError> {
    let number = if value.is_empty() { Ok(0) } else { value.trim().parse::<i64>() };
    let number = number.map_err(|_| invalid(format!("{name}: must be a whole number")))?;
    Ok(u64::try_from(number).unwrap_or(0))
}
