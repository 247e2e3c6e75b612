//! What a refusal means: a reason for machines and a sentence for people. Repeats of the answer its status and the type of the error only.

use http::StatusCode;
use serde_json::Value;

use crate::{
    api::Reason,
    clients::http::{TOO_LARGE, is_too_large as is_too_large_for_http},
    measure::MeasureError,
};

/// The type of the error in an answer or in a part of one, such as `index_not_found_exception`; absent where it tells none.
pub fn error_type(answer: &Value) -> Option<&str> {
    let plain = |text: &&str| text.len() <= 80 && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    answer.pointer("/error/type").and_then(Value::as_str).filter(plain)
}

/// What an answer with this status means. The caller says where, and about what.
pub fn refusal(status: StatusCode, answer: &Value) -> MeasureError {
    let kind = error_type(answer).map(|kind| format!(" ({kind})")).unwrap_or_default();
    let (reason, advice) = match (status.as_u16(), error_type(answer)) {
        (300..=399, _) => {
            (Reason::InvalidAnswer, "it is a redirection, which is not followed: write the URL that it leads to")
        }
        (401, _) => (Reason::AuthenticationFailed, "correct the user and password or the API key in the Secret"),
        (403, Some("cluster_block_exception")) => {
            (Reason::SourceFailed, "the index is blocked: see its settings and the disk watermarks")
        }
        (403, _) => (Reason::PermissionDenied, "grant the user in the Secret what docs/read-stores.md lists"),
        (404, Some("index_not_found_exception")) => {
            (Reason::IndexNotFound, "there is no such index: correct the name, or create it")
        }
        (429, _) => (Reason::SourceFailed, "the server rejects requests, since it has too many: see _cat/thread_pool"),
        (500..=599, _) => (Reason::SourceFailed, "the server cannot answer now; its log says why"),
        _ => (Reason::InvalidAnswer, "is this the URL of Elasticsearch or OpenSearch?"),
    };
    MeasureError { reason, message: format!("status {}{kind}: {advice}", status.as_u16()) }
}

/// What it means that something else serves there, from a few words on how that shows.
pub(super) fn not_elasticsearch(how: &str) -> MeasureError {
    MeasureError {
        reason: Reason::InvalidAnswer,
        message: format!("the answer is {how}: is this the URL of Elasticsearch or OpenSearch?"),
    }
}

/// What it means that an answer holds more than so many values.
pub(super) fn too_many_values(most: usize) -> MeasureError {
    MeasureError { reason: Reason::InvalidAnswer, message: format!("{TOO_LARGE} {most} values") }
}

/// Whether [`super::Client::ask`] gave an answer up for its size, so that less may be asked for.
pub fn is_too_large(error: &MeasureError) -> bool {
    is_too_large_for_http(error)
}
