//! What a refusal of the server means: a reason for machines and a sentence for people.

use crate::{api::Reason, clients::words::shortened, measure::MeasureError};

const SECRET: &str = "correct the credentials in the Secret (username and password, token, nkey or creds)";

/// What a `-ERR` of the server means. The caller says where.
pub(super) fn refusal(error: &str) -> MeasureError {
    let lower = error.to_ascii_lowercase();
    let has = |part: &str| lower.contains(part);
    let (reason, advice) = if has("permissions violation") {
        (Reason::PermissionDenied, "grant the user in the Secret what docs/sources/nats.md lists")
    } else if has("authentication expired") || has("authentication revoked") {
        (Reason::AuthenticationFailed, "renew the credentials in the Secret")
    } else if has("authorization violation") || has("authentication timeout") {
        (Reason::AuthenticationFailed, SECRET)
    } else if has("tls required") {
        (Reason::TlsFailed, "write tls:// in the Secret")
    } else if has("maximum") && has("connections exceeded") {
        (Reason::TooManyConnections, "close connections, or raise max_connections of server or account")
    } else if has("attempted to connect to") || has("client port") {
        (Reason::SourceFailed, "name the port of clients in the Secret (4222 by default)")
    } else {
        (Reason::SourceFailed, "")
    };
    let said = shortened(error);
    let message = if advice.is_empty() { said } else { format!("{said}: {advice}") };
    MeasureError { reason, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_has_its_reason_and_says_what_to_do() {
        for (error, reason, advice) in [
            ("Authorization Violation", Reason::AuthenticationFailed, "in the Secret"),
            ("Authentication Timeout", Reason::AuthenticationFailed, "in the Secret"),
            ("User Authentication Expired", Reason::AuthenticationFailed, "renew"),
            ("Permissions Violation for Publish to \"a\"", Reason::PermissionDenied, "docs/sources/nats.md"),
            ("Secure Connection - TLS Required", Reason::TlsFailed, "tls://"),
            ("maximum connections exceeded", Reason::TooManyConnections, "max_connections"),
            ("maximum account active connections exceeded", Reason::TooManyConnections, "account"),
            ("Attempted To Connect To Route Port", Reason::SourceFailed, "4222"),
            ("Stale Connection", Reason::SourceFailed, "Stale"),
            ("", Reason::SourceFailed, ""),
        ] {
            let found = refusal(error);
            assert_eq!(found.reason, reason, "{error}");
            assert!(found.message.contains(advice), "{}", found.message);
        }
        assert!(refusal(&"x".repeat(10_000)).message.chars().count() < 300);
    }
}
