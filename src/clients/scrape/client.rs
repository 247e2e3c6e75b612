//! Asks for one page over one connection.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use tokio::time::Instant;

use crate::{
    addresses::AddressRules,
    api::Reason,
    clients::{
        http::{HttpAnswer, HttpClient, HttpRequest},
        http_settings::HttpSettings,
    },
    measure::MeasureError,
};

/// An answer with a larger body is given up, in bytes.
pub const LARGEST_PAGE: usize = 4 << 20;

/// Asks for one page. Keeps its connection from call to call; one that broke is opened again by the next call.
pub struct Client {
    settings: HttpSettings,
    http: HttpClient,
    largest: usize,
}

impl Client {
    /// Not connected yet. `addresses`: which may be asked.
    pub fn new(settings: HttpSettings, addresses: Arc<AddressRules>) -> Self {
        let http = HttpClient::new(settings.server().clone(), addresses, no_page);
        Self { settings, http, largest: LARGEST_PAGE }
    }

    /// Gives up a page that is larger than this, in bytes.
    #[must_use]
    pub fn up_to(self, largest: usize) -> Self {
        Self { largest, ..self }
    }

    /// Where it asks.
    pub fn settings(&self) -> &HttpSettings {
        &self.settings
    }

    /// The page.
    ///
    /// # Errors
    /// Why there is none until `by`. Holds no secret and nothing of the answer, and does not say where.
    pub async fn page(&mut self, by: Instant) -> Result<Bytes, MeasureError> {
        let mut headers = self.settings.headers()?;
        headers.push((header::ACCEPT, HeaderValue::from_static("text/plain;version=0.0.4")));
        let path = self.settings.path_and_query();
        let request = HttpRequest { method: Method::GET, path, headers, body: Bytes::new(), largest: self.largest };
        let answer = self.http.send(&request, by).await?;
        match answer.status {
            StatusCode::OK => match (other_format(&answer.content_type), cut_off(&answer)) {
                (None, None) => Ok(answer.body),
                (Some(what), _) => Err(no_page(what)),
                (None, Some(unknown)) => Err(unknown),
            },
            status => Err(refusal(status)),
        }
    }
}

/// What the server says that the answer is, where that is not the text format. Simple exporters say nothing, or plain text.
fn other_format(content_type: &str) -> Option<&'static str> {
    match content_type {
        "text/html" | "application/xhtml+xml" => Some("HTML"),
        "application/json" => Some("JSON"),
        "application/vnd.google.protobuf" => Some("the binary format"),
        _ => None,
    }
}

/// Why the page may not be whole. A page that is cut off would read as a smaller number, or as fewer of them.
fn cut_off(answer: &HttpAnswer) -> Option<MeasureError> {
    let HttpAnswer { content_type, body, has_end, .. } = answer;
    let last_line = body.strip_suffix(b"\n").unwrap_or(body);
    let has_end_line = last_line == b"# EOF" || last_line.ends_with(b"\n# EOF");
    let why = if has_end_line {
        return None;
    } else if content_type == "application/openmetrics-text" {
        "the page does not end with the line # EOF, as OpenMetrics demands: was it cut off?"
    } else if !has_end {
        "whether the page is whole cannot be told, since the server does not say how long it is: let it send a Content-Length, or end the page with the line # EOF"
    } else if !body.is_empty() && !body.ends_with(b"\n") {
        "the page ends in the middle of a line: was it cut off? Every line, the last one too, ends with a line feed"
    } else {
        return None;
    };
    Some(MeasureError { reason: Reason::InvalidAnswer, message: why.to_owned() })
}

/// Something else serves there: `what` says how that shows.
pub fn no_page(what: &str) -> MeasureError {
    MeasureError {
        reason: Reason::InvalidAnswer,
        message: format!(
            "the answer is no page of metrics in Prometheus's text format ({what}): is the URL with its path (often /metrics) right?"
        ),
    }
}

fn refusal(status: StatusCode) -> MeasureError {
    let number = status.as_u16();
    let (reason, message) = match number {
        300..=399 => (
            Reason::InvalidAnswer,
            "the answer is a redirection, which is not followed: write the URL that it leads to".to_owned(),
        ),
        401 => (
            Reason::AuthenticationFailed,
            "status 401: the server wants other credentials: username and password, or a token, in a Secret beside the URL".to_owned(),
        ),
        403 => (Reason::PermissionDenied, "status 403: these credentials may not read the page".to_owned()),
        429 | 500..=599 => {
            (Reason::SourceFailed, format!("status {number}: the server cannot answer now; its log says why"))
        }
        _ => return no_page(&format!("status {number}")),
    };
    MeasureError { reason, message }
}
