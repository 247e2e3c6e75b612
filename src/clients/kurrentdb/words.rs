//! What a refusal means: a reason for machines and a sentence for people. The server's own words are compared, and repeated only where they alone tell what is
//! wrong.

use http::{HeaderMap, StatusCode};
use percent_encoding::percent_decode_str;

use crate::{api::Reason, clients::words::shortened, measure::MeasureError};

/// Why there is no answer.
#[derive(Clone, Debug)]
pub(super) enum Trouble {
    /// This server of the cluster does not lead it: the leader as `host:port`, where the server tells it.
    NotLeader(Option<String>),
    /// There is no persistent subscription at all.
    NoSubscriptions,
    /// The connection broke, or the server ended the request.
    Broken(MeasureError),
    /// Anything else.
    Refused(MeasureError),
}

pub(super) fn refused(reason: Reason, message: &str) -> Trouble {
    Trouble::Refused(MeasureError { reason, message: message.to_owned() })
}

/// What headers or trailers with this `grpc-status` mean. Absent where the request succeeded, or where there is no status.
pub(super) fn by_status(headers: &HeaderMap) -> Option<Trouble> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let code = text("grpc-status")?;
    let said = percent_decode_str(text("grpc-message").unwrap_or_default()).decode_utf8_lossy().into_owned();
    Some(match (code, text("exception").unwrap_or_default()) {
        ("0", _) => return None,
        (_, "not-leader") => {
            let leader = text("leader-endpoint-host").zip(text("leader-endpoint-port"));
            Trouble::NotLeader(leader.map(|(host, port)| format!("{host}:{port}")))
        }
        (_, "persistent-subscription-does-not-exist") => Trouble::NoSubscriptions,
        (_, "stream-deleted") => refused(
            Reason::StreamNotFound,
            "it was deleted for ever (a tombstone): the name can never be used again, so that the Projection needs another stream",
        ),
        (_, "stream-not-found") => no_stream(),
        (_, "access-denied") | ("7", _) => refused(
            Reason::PermissionDenied,
            "access denied: grant the user in the Secret what docs/sources/kurrentdb.md lists",
        ),
        ("16", _) => {
            refused(Reason::AuthenticationFailed, "the login is refused: correct user and password in the Secret")
        }
        ("14", _) => refused(
            Reason::SourceFailed,
            "the server is not ready or too busy (UNAVAILABLE): it is starting, or the cluster elects a leader",
        ),
        ("1" | "4" | "10", _) => refused(
            Reason::TimedOut,
            "the server gave up before it had an answer: it is overloaded, or its disk is slow",
        ),
        ("12", _) => refused(
            Reason::SourceFailed,
            "the server does not know the request (UNIMPLEMENTED): EventStoreDB 22.6 or newer, or KurrentDB, is needed",
        ),
        ("3", _) if said.contains("invalid position") => refused(
            Reason::InvalidAnswer,
            "the checkpoint is no position of the log: it must be the commit position of an event in $all",
        ),
        ("2", _) if said.contains("leader") => refused(Reason::SourceFailed, "the cluster has no leader at the moment"),
        _ => {
            let code: String = code.chars().filter(char::is_ascii_digit).take(3).collect();
            refused(Reason::SourceFailed, &format!("the server failed with gRPC status {code}: {}", shortened(&said)))
        }
    })
}

pub(super) fn no_stream() -> Trouble {
    refused(Reason::StreamNotFound, "there is no such stream")
}

/// What an HTTP status other than 200 means.
pub(super) fn by_http(status: StatusCode) -> Trouble {
    let code = status.as_u16();
    match code {
        300..=399 => refused(
            Reason::InvalidAnswer,
            "the answer is a redirection, which is not followed: write host and port that it leads to",
        ),
        401 => refused(Reason::AuthenticationFailed, "status 401: correct user and password in the Secret"),
        403 => refused(Reason::PermissionDenied, "status 403: does a proxy in front of the server refuse the request?"),
        429 | 500..=599 => {
            refused(Reason::SourceFailed, &format!("status {code}: the server cannot answer now; its log says why"))
        }
        _ => not_the_api(&format!("status {code}")),
    }
}

/// Something else serves there.
pub(super) fn not_the_api(what: &str) -> Trouble {
    refused(
        Reason::InvalidAnswer,
        &format!(
            "the answer is none of KurrentDB's gRPC API ({what}): is the port that of the server's HTTP endpoint (2113), and does a proxy in between pass HTTP/2 on?"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&'static str, &'static str)]) -> Option<Trouble> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.insert(*name, value.parse().unwrap());
        }
        by_status(&headers)
    }

    #[test]
    fn each_status_has_its_reason_and_says_what_to_do() {
        assert!(read(&[("grpc-status", "0")]).is_none() && read(&[]).is_none());
        for (pairs, reason, words) in [
            (vec![("grpc-status", "9"), ("exception", "stream-deleted")], Reason::StreamNotFound, "tombstone"),
            (vec![("grpc-status", "5"), ("exception", "stream-not-found")], Reason::StreamNotFound, "no such stream"),
            (vec![("grpc-status", "7"), ("exception", "access-denied")], Reason::PermissionDenied, "grant"),
            (vec![("grpc-status", "16")], Reason::AuthenticationFailed, "password in the Secret"),
            (vec![("grpc-status", "14")], Reason::SourceFailed, "not ready"),
            (vec![("grpc-status", "4")], Reason::TimedOut, "gave up"),
            (vec![("grpc-status", "10")], Reason::TimedOut, "gave up"),
            (vec![("grpc-status", "12")], Reason::SourceFailed, "22.6"),
            (
                vec![("grpc-status", "3"), ("grpc-message", "Trying to read from an invalid position.")],
                Reason::InvalidAnswer,
                "commit position",
            ),
            (
                vec![("grpc-status", "2"), ("grpc-message", "No leader info available in response")],
                Reason::SourceFailed,
                "no leader",
            ),
            (vec![("grpc-status", "13"), ("grpc-message", "disk%20full")], Reason::SourceFailed, "13: disk full"),
            (vec![("grpc-status", "abc")], Reason::SourceFailed, "failed"),
        ] {
            let Some(Trouble::Refused(found)) = read(&pairs) else { panic!("{pairs:?}") };
            assert_eq!(found.reason, reason, "{pairs:?}");
            assert!(found.message.contains(words), "{}", found.message);
        }
        let leader = [
            ("grpc-status", "5"),
            ("exception", "not-leader"),
            ("leader-endpoint-host", "two"),
            ("leader-endpoint-port", "2113"),
        ];
        assert!(matches!(read(&leader), Some(Trouble::NotLeader(Some(leader))) if leader == "two:2113"));
    }
}
