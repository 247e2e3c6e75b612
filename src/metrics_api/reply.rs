//! Answers: JSON with the content type that is mandatory, documents with an ETag, and errors as Status objects.

use std::hash::{DefaultHasher, Hash, Hasher};

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use hyper::body::Bytes;
use serde::Serialize;

use super::types::{Status, StatusDetails};

/// The body that warp answers with.
pub(super) type Answer = Response<Bytes>;

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// A document that is made once and served many times.
#[derive(Clone, Debug)]
pub(super) struct Document {
    content_type: HeaderValue,
    etag: HeaderValue,
    body: Bytes,
}

impl Document {
    pub(super) fn json(value: &serde_json::Value) -> Self {
        Self::with_type(value, JSON)
    }

    pub(super) fn with_type(value: &serde_json::Value, content_type: HeaderValue) -> Self {
        let body = value.to_string();
        let etag = HeaderValue::from_str(&format!("\"{}\"", fingerprint(&body)));
        Self { content_type, etag: etag.unwrap_or(HeaderValue::from_static("\"0\"")), body: Bytes::from(body) }
    }

    /// The document, or 304 where the caller has it already.
    pub(super) fn answer(&self, request: &HeaderMap) -> Answer {
        let has_it = request.get_all(header::IF_NONE_MATCH).iter().any(|held| names(held, &self.etag));
        let (status, body) =
            if has_it { (StatusCode::NOT_MODIFIED, Bytes::new()) } else { (StatusCode::OK, self.body.clone()) };
        let mut answer = Response::new(body);
        *answer.status_mut() = status;
        answer.headers_mut().insert(header::CONTENT_TYPE, self.content_type.clone());
        answer.headers_mut().insert(header::ETAG, self.etag.clone());
        answer.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
        answer
    }
}

/// True when `If-None-Match` names the tag, alone or in a list; a weak one counts, since only whole documents are served.
fn names(held: &HeaderValue, etag: &HeaderValue) -> bool {
    let (Ok(held), Ok(etag)) = (held.to_str(), etag.to_str()) else { return false };
    let mut tags = held.split(',').map(str::trim);
    tags.any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

/// The same in every replica that runs the same code.
pub(super) fn fingerprint(text: &str) -> String {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    format!("{:016X}", hasher.finish())
}

/// An object as JSON.
pub(super) fn json(object: &impl Serialize) -> Answer {
    match serde_json::to_vec(object) {
        Ok(body) => with_status(StatusCode::OK, Bytes::from(body)),
        Err(error) => failure(StatusCode::INTERNAL_SERVER_ERROR, format!("the answer could not be written: {error}")),
    }
}

/// An object that is written already.
pub(super) fn json_bytes(body: Bytes) -> Answer {
    with_status(StatusCode::OK, body)
}

/// A short text, as probes expect.
pub(super) fn text(text: &'static str) -> Answer {
    let mut answer = Response::new(Bytes::from_static(text.as_bytes()));
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

/// A Status object. No `Retry-After`, whatever the code: the autoscaler's client would sit and wait for it.
pub(super) fn failure(code: StatusCode, message: String) -> Answer {
    status(code, message, None)
}

/// The same, which says of which object it speaks.
pub(super) fn failure_about(code: StatusCode, message: String, details: StatusDetails) -> Answer {
    status(code, message, Some(details))
}

fn status(code: StatusCode, message: String, details: Option<StatusDetails>) -> Answer {
    let reason = match code {
        StatusCode::BAD_REQUEST => "BadRequest",
        StatusCode::UNAUTHORIZED => "Unauthorized",
        StatusCode::FORBIDDEN => "Forbidden",
        StatusCode::NOT_FOUND => "NotFound",
        StatusCode::METHOD_NOT_ALLOWED => "MethodNotAllowed",
        StatusCode::NOT_ACCEPTABLE => "NotAcceptable",
        StatusCode::TOO_MANY_REQUESTS => "TooManyRequests",
        StatusCode::SERVICE_UNAVAILABLE => "ServiceUnavailable",
        StatusCode::GATEWAY_TIMEOUT => "Timeout",
        _ => "InternalError",
    };
    let body = serde_json::to_vec(&Status::failure(code.as_u16(), reason, message, details)).unwrap_or_default();
    let mut answer = with_status(code, Bytes::from(body));
    if code == StatusCode::METHOD_NOT_ALLOWED {
        answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
    }
    answer
}

fn with_status(status: StatusCode, body: Bytes) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, JSON);
    answer
}

/// An answer to HEAD has no body. HTTP/1 leaves it out by itself; over HTTP/2 it would break the stream.
pub(super) fn without_body(mut answer: Answer) -> Answer {
    *answer.body_mut() = Bytes::new();
    answer
}

/// True when a type is named only to exclude it: `q=0`.
fn unwanted(media: &str) -> bool {
    let weight = media.split(';').skip(1).find_map(|parameter| parameter.trim().strip_prefix("q="));
    weight.and_then(|weight| weight.trim().parse::<f32>().ok()).is_some_and(|weight| weight <= 0.0)
}

/// True when the caller accepts JSON; without `Accept` it accepts anything.
pub(super) fn takes_json(request: &HeaderMap) -> bool {
    if !request.contains_key(header::ACCEPT) {
        return true;
    }
    let accepts = request.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepts.flat_map(|value| value.split(',')).any(|media| {
        let type_ = media.split(';').next().unwrap_or_default().trim();
        // The operator offers no Table or PartialObjectMetadata. Aggregated discovery, which it offers, is asked for by such a parameter, too.
        let transformed = media.contains("as=") && !media.contains("g=apidiscovery.k8s.io");
        !transformed && !unwanted(media) && matches!(type_, "application/json" | "application/*" | "*/*" | "")
    })
}
