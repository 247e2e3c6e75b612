//! What an error of the server or of the way to it means, as a reason for machines and a sentence for people.

use std::{error::Error as _, io};

use tokio_postgres::{Error, error::SqlState};

use super::socket::TOO_MUCH;
use super::words::{named, repeatable, shortened};
use crate::api::Reason;

/// The reason, and what happened and what to do about it. The caller says where it happened. Holds no secret: neither the connection
/// string nor a parameter value nor what stands in a row is ever part of such an error.
pub fn classify(error: &Error) -> (Reason, String) {
    if let Some(answer) = error.as_db_error() {
        let (reason, advice) = by_code(answer.code());
        let what =
            repeatable(answer).unwrap_or_else(|| format!("{} (SQLSTATE {})", named(answer), answer.code().code()));
        return (reason, with_advice(&what, advice));
    }
    if let Some(io_error) = error.source().and_then(|cause| cause.downcast_ref::<io::Error>())
        && let Some((reason, message)) = by_io(io_error, &error.to_string())
    {
        return (reason, message);
    }
    by_kind(error)
}

/// The same for a connection that did not come about.
pub(super) fn classify_io(error: &io::Error) -> (Reason, String) {
    by_io(error, "")
        .unwrap_or_else(|| (Reason::SourceFailed, joined("error connecting to server", &shortened(&error.to_string()))))
}

fn by_code(code: &SqlState) -> (Reason, &'static str) {
    match code {
        c if *c == SqlState::INVALID_PASSWORD || *c == SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
            (Reason::AuthenticationFailed, "correct user and password in the Secret, or pg_hba.conf on the server")
        }
        c if *c == SqlState::INVALID_CATALOG_NAME => {
            (Reason::DatabaseNotFound, "create the database or correct its name in the Secret")
        }
        c if *c == SqlState::TOO_MANY_CONNECTIONS => (
            Reason::TooManyConnections,
            "close connections or raise max_connections, or the role's or database's limit",
        ),
        c if *c == SqlState::INSUFFICIENT_PRIVILEGE => (Reason::PermissionDenied, "grant it to the user in the Secret"),
        c if *c == SqlState::UNDEFINED_TABLE || *c == SqlState::INVALID_SCHEMA_NAME => {
            (Reason::TableNotFound, "create the table, or correct its name (and schema) in the Projection")
        }
        c if *c == SqlState::UNDEFINED_COLUMN => {
            (Reason::ColumnNotFound, "correct the column's name in the Projection")
        }
        c if *c == SqlState::DATATYPE_MISMATCH
            || *c == SqlState::UNDEFINED_FUNCTION
            || *c == SqlState::CANNOT_COERCE
            || *c == SqlState::INVALID_TEXT_REPRESENTATION
            || *c == SqlState::NUMERIC_VALUE_OUT_OF_RANGE =>
        {
            (Reason::ColumnTypeUnsuitable, "name a column of a suitable type in the Projection")
        }
        c if *c == SqlState::QUERY_CANCELED => (
            Reason::TimedOut,
            "look in pg_stat_activity for what keeps the server busy; an index on the position helps",
        ),
        c if *c == SqlState::LOCK_NOT_AVAILABLE => {
            (Reason::TimedOut, "the table is locked: look in pg_locks for who holds it")
        }
        c if *c == SqlState::CANNOT_CONNECT_NOW || *c == SqlState::ADMIN_SHUTDOWN || *c == SqlState::CRASH_SHUTDOWN => {
            (Reason::ConnectionRefused, "the server is starting or stopping")
        }
        _ => (Reason::SourceFailed, ""),
    }
}

fn by_io(error: &io::Error, context: &str) -> Option<(Reason, String)> {
    // A certificate that does not verify arrives as an io::Error too; its kind of failure is TLS.
    if context.contains("TLS") {
        return None;
    }
    let text = error.to_string();
    // In TLS 1.3 a server looks at the client's certificate when the client already takes the handshake for done.
    let inner = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    if matches!(inner, Some(rustls::Error::AlertReceived(_))) {
        let advice = "check the certificate in connection.clientCertificateSecretRef, and the authority that the server believes";
        return Some((Reason::TlsFailed, with_advice(&joined("TLS failed", &shortened(&text)), advice)));
    }
    if text == TOO_MUCH {
        return Some((Reason::InvalidAnswer, text));
    }
    if text.contains("lookup address") || text.contains("resolve any addresses") {
        return Some((
            Reason::HostNotFound,
            "the host name has no address: correct it in the Secret, or the DNS".to_owned(),
        ));
    }
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Some((
            Reason::ConnectionRefused,
            "no server listens at the address: is it up, and do host and port in the Secret and the network policies fit?"
                .to_owned(),
        )),
        io::ErrorKind::TimedOut => Some((Reason::TimedOut, "the server did not answer in time".to_owned())),
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::UnexpectedEof => Some((Reason::SourceFailed, "the connection broke".to_owned())),
        _ => None,
    }
}

fn by_kind(error: &Error) -> (Reason, String) {
    let what = error.to_string();
    let cause = error.source().map(|cause| shortened(&cause.to_string())).unwrap_or_default();
    if error.is_closed() {
        return (Reason::SourceFailed, "the connection broke".to_owned());
    }
    if what.contains("TLS") {
        let advice = "check sslmode and the server's certificate";
        return (Reason::TlsFailed, with_advice(&joined("TLS failed", &cause), advice));
    }
    if what.contains("authentication") || cause.contains("password missing") {
        return (Reason::AuthenticationFailed, with_advice(&cause, "correct user and password in the Secret"));
    }
    if what.contains("timeout") {
        return (Reason::TimedOut, "the server did not answer in time".to_owned());
    }
    if what.contains("deserializing") || what.contains("parsing") || what.contains("unexpected") {
        return (Reason::InvalidAnswer, joined("the server's answer made no sense", &cause));
    }
    (Reason::SourceFailed, joined(&what, &cause))
}

fn joined(what: &str, cause: &str) -> String {
    if cause.is_empty() { what.to_owned() } else { format!("{what}: {cause}") }
}

fn with_advice(what: &str, advice: &str) -> String {
    match (what.is_empty(), advice.is_empty()) {
        (true, _) => advice.to_owned(),
        (_, true) => what.to_owned(),
        _ => format!("{what}: {advice}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_of_the_server_has_its_reason() {
        for (code, reason) in [
            ("28P01", Reason::AuthenticationFailed),
            ("28000", Reason::AuthenticationFailed),
            ("3D000", Reason::DatabaseNotFound),
            ("53300", Reason::TooManyConnections),
            ("42501", Reason::PermissionDenied),
            ("42P01", Reason::TableNotFound),
            ("3F000", Reason::TableNotFound),
            ("42703", Reason::ColumnNotFound),
            ("42883", Reason::ColumnTypeUnsuitable),
            ("57014", Reason::TimedOut),
            ("55P03", Reason::TimedOut),
            ("57P03", Reason::ConnectionRefused),
            ("XX000", Reason::SourceFailed),
        ] {
            assert_eq!(by_code(&SqlState::from_code(code)).0, reason, "{code}");
        }
    }

    #[test]
    fn each_failure_on_the_way_has_its_reason() {
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        assert_eq!(by_io(&refused, "error connecting to server").map(|found| found.0), Some(Reason::ConnectionRefused));
        let lookup = io::Error::other("failed to lookup address information: Name or service not known");
        assert_eq!(by_io(&lookup, "error connecting to server").map(|found| found.0), Some(Reason::HostNotFound));
        let certificate = io::Error::new(io::ErrorKind::InvalidData, "invalid peer certificate");
        assert_eq!(by_io(&certificate, "error performing TLS handshake").map(|found| found.0), None);
        let alert = rustls::Error::AlertReceived(rustls::AlertDescription::CertificateRequired);
        let late = io::Error::new(io::ErrorKind::InvalidData, alert);
        assert_eq!(by_io(&late, "error communicating").map(|found| found.0), Some(Reason::TlsFailed));
    }
}
