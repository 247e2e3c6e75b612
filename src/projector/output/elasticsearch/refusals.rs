//! What it means that the server refuses a write or a question of a worker.
//!
//! Elasticsearch quotes documents in its errors, so that of an error its type alone is passed on, which is the server's own word.

use http::StatusCode;
use serde::Deserialize;

/// What came of one part of a request, or of all of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Outcome {
    Done,
    /// A later event has written the document, or this one has: nothing is to be done.
    Superseded,
    /// The server has too much to do.
    Busy(String),
    /// There is no such index.
    NoIndex(String),
    /// The user may not.
    Forbidden(String),
    /// The event's failure: its shard waits.
    Event(String),
    /// The server's, or the user's rights: all shards wait.
    Server(String),
}

/// The error in a part of an answer.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct ServerError {
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    caused_by: Option<Box<ServerError>>,
}

impl ServerError {
    #[cfg(test)]
    pub(super) fn of(kind: &str) -> Self {
        Self { kind: kind.to_owned(), caused_by: None }
    }

    /// The type, where it is one.
    fn kind(&self) -> &str {
        let is_word = self.kind.len() <= 80 && self.kind.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        if is_word { &self.kind } else { "" }
    }

    /// The type, and that of what caused it.
    fn shown(&self) -> String {
        let cause = self.caused_by.as_ref().map(|cause| cause.kind()).filter(|cause| !cause.is_empty());
        match (self.kind(), cause) {
            ("", _) => "an error without a type".to_owned(),
            (kind, Some(cause)) => format!("{kind}, caused by {cause}"),
            (kind, None) => kind.to_owned(),
        }
    }

    /// The status that goes with an error which is told without one, as in the answer to `_mget`.
    pub(super) fn status(&self) -> u16 {
        match self.kind() {
            "index_not_found_exception" => 404,
            "security_exception" => 403,
            "es_rejected_execution_exception" | "rejected_execution_exception" | "circuit_breaking_exception" => 429,
            "illegal_argument_exception" => 400,
            _ => 503,
        }
    }
}

/// What a status with an error means.
pub(super) fn meaning(status: u16, error: Option<&ServerError>) -> Outcome {
    let told = |advice: &str| match error {
        None => format!("status {status}: {advice}"),
        Some(error) => format!("status {status} ({}): {advice}", error.shown()),
    };
    // No error has this type.
    let kind = error.map_or("none", ServerError::kind);
    match (status, kind) {
        (200..=299, _) | (404, "none") => Outcome::Done,
        (409, "version_conflict_engine_exception") => Outcome::Superseded,
        (404, "index_not_found_exception") => Outcome::NoIndex(told(
            "there is no such index, and the server makes none (action.auto_create_index) or the user may not: create it",
        )),
        (_, "cluster_block_exception") => {
            Outcome::Server(told("the index is blocked: see its settings (index.blocks) and the disk watermarks"))
        }
        (429, _) => Outcome::Busy(told(
            "the server rejects requests, since it has too many: see _cat/thread_pool and its memory",
        )),
        (401, _) => Outcome::Server(told("correct the user and password or the API key in the Secret")),
        (403, _) => Outcome::Forbidden(told("grant the user in the Secret what docs/projector.md lists")),
        (413, _) => Outcome::Event(told("the document is larger than the server takes (http.max_content_length)")),
        (300..=399, _) => {
            Outcome::Server(told("it is a redirection, which is not followed: write the URL that it leads to"))
        }
        (500..=599, _) => Outcome::Server(told("the server cannot answer now; its log says why")),
        (_, "none") => Outcome::Server(told("is this the URL of Elasticsearch or OpenSearch?")),
        _ => Outcome::Event(format!(
            "the server refuses it with status {status} ({}). Its words are not repeated, since they may hold what the event holds: write the document by hand to see them",
            error.map_or_else(String::new, ServerError::shown)
        )),
    }
}

/// What the answer to a whole request means.
pub(super) fn of_request(status: StatusCode, body: &[u8]) -> Outcome {
    #[derive(Deserialize)]
    struct Answer {
        error: ServerError,
    }
    if status == StatusCode::OK {
        return Outcome::Done;
    }
    let error = serde_json::from_slice::<Answer>(body).ok().map(|answer| answer.error);
    match meaning(status.as_u16(), error.as_ref()) {
        // The request is ours, whatever events are in it.
        Outcome::Event(why) if status != StatusCode::PAYLOAD_TOO_LARGE => Outcome::Server(why),
        Outcome::Done | Outcome::Superseded => {
            Outcome::Server(format!("status {}: is this the URL of Elasticsearch or OpenSearch?", status.as_u16()))
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_failure_a_refusal_is() {
        let of = |status, kind| meaning(status, Some(&ServerError::of(kind)));
        assert_eq!(meaning(201, None), Outcome::Done);
        assert_eq!(meaning(404, None), Outcome::Done, "what is deleted is not there");
        assert_eq!(of(409, "version_conflict_engine_exception"), Outcome::Superseded);
        assert!(matches!(meaning(429, None), Outcome::Busy(_)) && matches!(meaning(400, None), Outcome::Server(_)));
        for (status, kind) in [(429, "es_rejected_execution_exception"), (429, "circuit_breaking_exception"), (429, "")]
        {
            assert!(matches!(of(status, kind), Outcome::Busy(_)), "{kind}");
        }
        for (status, kind) in [
            (400, "document_parsing_exception"),
            (400, "mapper_parsing_exception"),
            (400, "strict_dynamic_mapping_exception"),
            (400, "invalid_index_name_exception"),
        ] {
            let Outcome::Event(why) = of(status, kind) else { panic!("{kind}") };
            assert!(why.contains(kind), "{why}");
        }
        for (status, kind) in [
            (403, "cluster_block_exception"),
            (429, "cluster_block_exception"),
            (503, "unavailable_shards_exception"),
            (401, ""),
            (500, ""),
        ] {
            assert!(matches!(of(status, kind), Outcome::Server(_)), "{kind}");
        }
        assert!(matches!(of(403, "security_exception"), Outcome::Forbidden(_)));
        assert!(matches!(of(404, "index_not_found_exception"), Outcome::NoIndex(_)));
    }

    #[test]
    fn what_the_server_quotes_is_not_passed_on() {
        let json = r#"{"type": "document_parsing_exception", "reason": "secret", "caused_by": {"type": "number_format_exception", "reason": "secret"}}"#;
        let error: ServerError = serde_json::from_str(json).unwrap();
        let Outcome::Event(why) = meaning(400, Some(&error)) else { panic!() };
        assert!(
            why.contains("document_parsing_exception, caused by number_format_exception") && !why.contains("secret")
        );
        let Outcome::Event(why) = meaning(400, Some(&ServerError::of("Secret words"))) else { panic!() };
        assert!(!why.contains("Secret"), "{why}");
    }
}
