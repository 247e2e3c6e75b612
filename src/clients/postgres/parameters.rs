//! Reads a connection string into its parameters, in each notation that is found in Secrets: libpq's URL and `key=value`, and JDBC's URL.
//!
//! No part of the text is repeated in an error, since a password may have ended up anywhere in it. Parameters are named only by the names that
//! libpq and drivers know.

use percent_encoding::percent_decode_str;

use super::ConnectError;

/// Parameters in the order in which they were given; later ones of a name count.
#[derive(Clone, Default)]
pub(super) struct Parameters {
    given: Vec<(String, String)>,
    /// Host and port were written in a URL, so that percent-encoding may be what is missing.
    pub(super) from_url: bool,
}

impl Parameters {
    /// The value, absent where it is not given or empty.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let found = self.given.iter().rev().find(|(given, _)| given == name);
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    pub(super) fn set(&mut self, name: &str, value: &str) {
        self.given.push((name.to_owned(), value.to_owned()));
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.given.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

pub(super) fn invalid(why: impl Into<String>) -> ConnectError {
    ConnectError::Invalid(why.into())
}

const NOTATIONS: &str = "write it as postgres://user:password@host:5432/database, jdbc:postgresql://host:5432/database?user=…&password=…, or host=… user=… password=… dbname=…";

/// Reads a connection string. White space and quotes around the whole are taken off.
pub(super) fn parse(text: &str) -> Result<Parameters, ConnectError> {
    let mut text = text.trim();
    for quote in ['"', '\'', '`'] {
        if text.len() > 1
            && let Some(inner) = text.strip_prefix(quote).and_then(|text| text.strip_suffix(quote))
        {
            text = inner.trim();
        }
    }
    if text.is_empty() {
        return Err(invalid("it is empty"));
    }
    if text.contains('\0') {
        return Err(invalid("it holds a NUL byte"));
    }
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) if !scheme.contains([' ', '=', '\'']) => (scheme.to_ascii_lowercase(), rest),
        // `jdbc:postgresql:database` and the like, which name no host.
        _ if text.starts_with("jdbc:") => {
            return Err(invalid("it names no host: write jdbc:postgresql://host:5432/database"));
        }
        _ => return pairs(text),
    };
    match scheme.as_str() {
        "postgres" | "postgresql" => Ok(Parameters { from_url: true, ..url(rest, false)? }),
        "jdbc:postgresql" => Ok(Parameters { from_url: true, ..url(rest, true)? }),
        "postgresql+psycopg" | "postgresql+psycopg2" | "postgresql+asyncpg" => {
            Err(invalid(format!("{scheme} is SQLAlchemy's name for a driver: write postgresql:// in its place")))
        }
        "mysql" | "mariadb" | "mongodb" | "redis" | "amqp" | "http" | "https" | "jdbc:mysql" | "jdbc:mariadb"
        | "jdbc:sqlserver" | "jdbc:oracle" | "sqlserver" | "oracle" => {
            Err(invalid(format!("it is the address of something else than PostgreSQL ({scheme}): {NOTATIONS}")))
        }
        _ => Err(invalid(NOTATIONS)),
    }
}

/// What follows `postgres://`.
fn url(rest: &str, jdbc: bool) -> Result<Parameters, ConnectError> {
    let mut parameters = Parameters::default();
    // As libpq: credentials end at the first @ before any slash.
    let credentials = rest.find(['@', '/']).filter(|at| rest[*at..].starts_with('@'));
    let rest = match credentials {
        Some(at) => {
            let (user, password) = rest[..at].split_once(':').unwrap_or((&rest[..at], ""));
            parameters.set("user", &decoded(user)?);
            parameters.set("password", &decoded(password)?);
            &rest[at + 1..]
        }
        None => rest,
    };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (hosts, rest) = rest.split_at(end);
    if hosts.contains('@') {
        return Err(invalid("percent-encode an @ in user or password: %40"));
    }
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let database = path.strip_prefix('/').unwrap_or(path);
    if database.contains('@') && credentials.is_none() {
        return Err(invalid("percent-encode a / in user or password: %2F"));
    }
    if database.contains('/') {
        return Err(invalid("percent-encode a / in the database's name: %2F"));
    }
    set_hosts(&mut parameters, hosts)?;
    parameters.set("dbname", &decoded(database)?);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = if jdbc { value.replace('+', " ") } else { value.to_owned() };
        let value = decoded(&value)?;
        match (name, value.as_str()) {
            // JDBC's ssl=true verifies, libpq takes it for sslmode=require.
            ("ssl", "true" | "") if jdbc => parameters.set("sslmode", "verify-full"),
            ("ssl", "true") => parameters.set("sslmode", "require"),
            ("ssl", "false") if jdbc => {}
            ("ApplicationName", _) => parameters.set("application_name", &value),
            _ => parameters.set(name, &value),
        }
    }
    Ok(parameters)
}

/// `host:port,host:port`, each part possibly missing.
fn set_hosts(parameters: &mut Parameters, hosts: &str) -> Result<(), ConnectError> {
    if hosts.is_empty() {
        return Ok(());
    }
    let (mut names, mut ports) = (Vec::new(), Vec::new());
    for host in hosts.split(',') {
        let (name, port) = match host.strip_prefix('[') {
            Some(rest) => {
                let (address, rest) =
                    rest.split_once(']').ok_or_else(|| invalid("an IPv6 address has no closing ]"))?;
                (address, rest.strip_prefix(':').unwrap_or(rest))
            }
            None => host.split_once(':').unwrap_or((host, "")),
        };
        names.push(decoded(name)?);
        ports.push(port.to_owned());
    }
    parameters.set("host", &names.join(","));
    if ports.iter().any(|port| !port.is_empty()) {
        parameters.set("port", &ports.join(","));
    }
    Ok(())
}

fn decoded(text: &str) -> Result<String, ConnectError> {
    let bytes = text.as_bytes();
    for (at, _) in text.match_indices('%') {
        let digits = bytes.get(at + 1..at + 3);
        if !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) {
            return Err(invalid("a % is not followed by two hexadecimal digits: percent-encode a % itself: %25"));
        }
        if digits == Some(b"00") {
            return Err(invalid("it holds a NUL byte (%00)"));
        }
    }
    let text = percent_decode_str(text).decode_utf8();
    text.map(Into::into).map_err(|_| invalid("what is percent-encoded is not UTF-8"))
}

/// `key=value key = 'quoted \' value'`, as libpq reads it.
fn pairs(text: &str) -> Result<Parameters, ConnectError> {
    let mut parameters = Parameters::default();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=').ok_or_else(|| invalid(NOTATIONS))?;
        let name = name.trim_end();
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(invalid(
                "a word stands where name=value is expected: put a value that holds blanks into single quotes (password='…')",
            ));
        }
        let after = after.trim_start();
        let quoted = after.starts_with('\'');
        let (mut value, mut escaped, mut end) = (String::new(), false, None);
        for (at, character) in after.char_indices().skip(usize::from(quoted)) {
            match character {
                c if escaped => {
                    value.push(c);
                    escaped = false;
                }
                '\\' => escaped = true,
                '\'' if quoted => {
                    end = Some(at + 1);
                    break;
                }
                c if !quoted && c.is_whitespace() => {
                    end = Some(at);
                    break;
                }
                c => value.push(c),
            }
        }
        if quoted && end.is_none() {
            return Err(invalid("a quoted value has no end: write \\' for a quote in it"));
        }
        parameters.set(name, &value);
        rest = after[end.unwrap_or(after.len())..].trim_start();
    }
    Ok(parameters)
}
