//! What an answer other than the numbers means: a reason for machines and a sentence for people. Repeats nothing of the answer but its status.

use serde::Deserialize;

use crate::{api::Reason, measure::MeasureError};

/// What the management API says of a refusal; compared, and never shown.
#[derive(Default, Deserialize)]
struct ErrorBody {
    #[serde(default)]
    error: String,
    #[serde(default)]
    reason: String,
}

/// What this status means. The caller says where, and about which virtual host.
pub(super) fn refusal(status: http::StatusCode, is_json: bool, body: &[u8]) -> MeasureError {
    let said: Option<ErrorBody> = serde_json::from_slice(body).ok().filter(|_| is_json);
    let error = |reason, message: &str| MeasureError { reason, message: message.to_owned() };
    let Some(ErrorBody { error: word, reason: why }) = said else {
        return match status.as_u16() {
            300..=399 => error(
                Reason::InvalidAnswer,
                "the answer is a redirection, which is not followed: write the URL that it leads to",
            ),
            401 => error(Reason::AuthenticationFailed, "status 401: correct username and password in the Secret"),
            403 => {
                error(Reason::PermissionDenied, "status 403: does a proxy in front of the server refuse the request?")
            }
            429 | 500..=599 => unavailable(status),
            _ => not_the_api(&format!("status {}", status.as_u16())),
        };
    };
    match status.as_u16() {
        401 | 403 if why.contains("virtual host") => error(
            Reason::PermissionDenied,
            "the user may not see the virtual host: give it permissions there (rabbitmqctl set_permissions -p VHOST USER '^$' '^$' '^$' suffices)",
        ),
        401 | 403 if why.contains("management user") || why.contains("monitor") => error(
            Reason::PermissionDenied,
            "the user may not use the management API: give it the tag management (rabbitmqctl set_user_tags USER management)",
        ),
        401 => error(Reason::AuthenticationFailed, "the login is refused: correct username and password in the Secret"),
        403 => error(
            Reason::PermissionDenied,
            "the request is refused: does the user have the rights that docs/sources/rabbitmq.md lists?",
        ),
        404 if word.contains("Not Found") => error(
            Reason::QueueNotFound,
            "there is no such virtual host: correct spec.source.rabbitmq.vhost, or create it",
        ),
        429 | 500..=599 => unavailable(status),
        _ => not_the_api(&format!("status {}", status.as_u16())),
    }
}

/// What a code means by which the protocol of streams refuses something.
pub(super) fn stream_refusal(code: u16) -> MeasureError {
    let (reason, message) = match code {
        2 => (
            Reason::StreamNotFound,
            "there is no such stream: correct its name in the Projection, or declare it (x-queue-type: stream); a queue belongs in spec.source.rabbitmq.queues",
        ),
        6 => (
            Reason::SourceFailed,
            "the stream has no member on this node that can be read: name a node that has one, and see that its leader is up",
        ),
        7 | 9 | 10 => (Reason::AuthenticationFailed, "the server refuses the login with a user and a password (PLAIN)"),
        8 => {
            (Reason::AuthenticationFailed, "the server refuses the login: correct username and password in the Secret")
        }
        11 => (
            Reason::AuthenticationFailed,
            "the user may log in from the server's own machine alone, as guest may: name another user in the Secret",
        ),
        12 => (
            Reason::PermissionDenied,
            "the user may not use the virtual host, or there is none: correct spec.source.rabbitmq.vhost, or grant what docs/sources/rabbitmq.md lists (rabbitmqctl set_permissions)",
        ),
        16 => (
            Reason::PermissionDenied,
            "the user may not read the stream: grant what docs/sources/rabbitmq.md lists (rabbitmqctl set_permissions)",
        ),
        _ => {
            let message = format!("the server refuses with code {code}; its log says why");
            return MeasureError { reason: Reason::SourceFailed, message };
        }
    };
    MeasureError { reason, message: message.to_owned() }
}

/// What it means that the server ends a connection of AMQP, or its channel, with this code. The text is compared and not repeated.
pub(super) fn amqp_refusal(code: u16, text: &str) -> MeasureError {
    let (reason, message) = match code {
        403 if text.contains("exclusive use") => (
            Reason::SourceFailed,
            "a queue is in exclusive use: another worker or program consumes it. With scaling.ordering Strict a worker takes a queue for itself and waits until that has ended; a queue with x-single-active-consumer is shared only if the management API tells the worker of it",
        ),
        403 if text.contains("ogin") => (
            Reason::AuthenticationFailed,
            "the server refuses the login: correct username and password in the Secret; guest may log in from the server's own machine alone",
        ),
        403 => (
            Reason::PermissionDenied,
            "the user may not read a queue: grant what docs/sources/rabbitmq.md lists (rabbitmqctl set_permissions -p VHOST USER '^$' '^$' '^(QUEUE)$')",
        ),
        404 => (
            Reason::QueueNotFound,
            "there is no such queue: correct its name in the Projection, or declare it; the workers do not make it",
        ),
        405 => (
            Reason::SourceFailed,
            "a queue is exclusive to the connection that has declared it: declare it without that",
        ),
        406 if text.contains("timed out") => (
            Reason::TimedOut,
            "messages were unacknowledged for longer than the server allows (consumer_timeout): are handlers slow, or is batchSize too large?",
        ),
        320 => (Reason::SourceFailed, "the server ends its connections: it is stopped, or this one was closed by hand"),
        530 => (
            Reason::PermissionDenied,
            "the user may not use the virtual host, or there is none: correct spec.source.rabbitmq.vhost, or grant what docs/sources/rabbitmq.md lists (rabbitmqctl set_permissions)",
        ),
        _ => {
            let message = format!("the server ends the connection with code {code}; its log says why");
            return MeasureError { reason: Reason::SourceFailed, message };
        }
    };
    MeasureError { reason, message: message.to_owned() }
}

fn unavailable(status: http::StatusCode) -> MeasureError {
    MeasureError {
        reason: Reason::SourceFailed,
        message: format!("status {}: the server cannot answer now; its log says why", status.as_u16()),
    }
}

/// Something else serves there.
pub(super) fn not_the_api(what: &str) -> MeasureError {
    MeasureError {
        reason: Reason::InvalidAnswer,
        message: format!(
            "the answer is none of RabbitMQ's management API ({what}): is the plugin rabbitmq_management enabled, and is the port that of its listener (15672)?"
        ),
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    #[test]
    fn a_connection_that_the_server_ends_has_a_reason_and_says_what_to_do() {
        for (code, text, reason, words) in [
            (
                403,
                "ACCESS_REFUSED - queue 'hunter2' in vhost '/' in exclusive use",
                Reason::SourceFailed,
                "exclusive use",
            ),
            (403, "ACCESS_REFUSED - Login was refused using hunter2", Reason::AuthenticationFailed, "in the Secret"),
            (403, "ACCESS_REFUSED - access to queue 'hunter2' refused", Reason::PermissionDenied, "set_permissions"),
            (404, "NOT_FOUND - no queue 'hunter2'", Reason::QueueNotFound, "declare it"),
            (405, "RESOURCE_LOCKED - hunter2", Reason::SourceFailed, "declare it without"),
            (406, "PRECONDITION_FAILED - delivery acknowledgement timed out", Reason::TimedOut, "consumer_timeout"),
            (530, "NOT_ALLOWED - vhost hunter2 not found", Reason::PermissionDenied, "spec.source.rabbitmq.vhost"),
            (541, "INTERNAL_ERROR - hunter2", Reason::SourceFailed, "code 541"),
        ] {
            let found = amqp_refusal(code, text);
            assert_eq!(found.reason, reason, "{text}");
            assert!(found.message.contains(words) && !found.message.contains("hunter2"), "{}", found.message);
        }
    }

    #[test]
    fn each_refusal_has_its_reason_and_says_what_to_do() {
        let login = r#"{"error":"not_authorized","reason":"Login failed"}"#;
        let vhost = r#"{"error":"not_authorised","reason":"User not authorised to access virtual host"}"#;
        let tag = r#"{"error":"not_authorised","reason":"Not management user"}"#;
        let missing = r#"{"error":"Object Not Found","reason":"Not Found"}"#;
        for (status, json, body, reason, words) in [
            (401, true, login, Reason::AuthenticationFailed, "username and password in the Secret"),
            (401, true, vhost, Reason::PermissionDenied, "set_permissions"),
            (401, true, tag, Reason::PermissionDenied, "set_user_tags"),
            (401, false, "hunter2", Reason::AuthenticationFailed, "username and password"),
            (403, true, "{}", Reason::PermissionDenied, "docs/sources/rabbitmq.md"),
            (403, false, "<html>hunter2", Reason::PermissionDenied, "proxy"),
            (404, true, missing, Reason::QueueNotFound, "no such virtual host"),
            (404, true, r#"{"error":"hunter2"}"#, Reason::InvalidAnswer, "rabbitmq_management"),
            (404, false, "<html>hunter2", Reason::InvalidAnswer, "15672"),
            (302, false, "", Reason::InvalidAnswer, "not followed"),
            (503, false, "hunter2", Reason::SourceFailed, "503"),
            (500, false, "", Reason::SourceFailed, "500"),
            (500, true, r#"{"error":"hunter2","reason":"hunter2"}"#, Reason::SourceFailed, "500"),
        ] {
            let found = refusal(StatusCode::from_u16(status).unwrap(), json, body.as_bytes());
            assert_eq!(found.reason, reason, "{status} {body}");
            assert!(found.message.contains(words), "{}", found.message);
            assert!(!found.message.contains("hunter2"), "{}", found.message);
        }
    }
}
