//! Asks one server over one connection, in JSON.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use serde_json::Value;
use tokio::time::Instant;

use super::{
    ConnectionSettings,
    bounded::{self, Unread},
    words::{not_elasticsearch, too_many_values},
};
use crate::{
    addresses::AddressRules,
    clients::http::{HttpAnswer, HttpClient, HttpRequest},
    measure::MeasureError,
};

/// The type of a body that is one JSON value.
pub const JSON: &str = "application/json";
/// The type of a body that is a JSON value a line, each line ended, as bulk requests are.
pub const LINES: &str = "application/x-ndjson";
/// An answer with a larger body is given up, in bytes.
const LARGEST_ANSWER: usize = 4 << 20;
/// An answer with more values is given up: 50,000 take up to 16 MiB in memory, if each second one is an object of its own.
const MOST_VALUES: usize = 50_000;

/// Asks one server. Keeps its connection from call to call; one that broke is opened again by the next call, and the request is then sent twice.
pub struct Client {
    settings: ConnectionSettings,
    http: HttpClient,
}

impl Client {
    /// Not connected yet. `addresses`: which may be asked.
    pub fn new(settings: ConnectionSettings, addresses: Arc<AddressRules>) -> Self {
        let http = HttpClient::new(settings.server.clone(), addresses, not_elasticsearch);
        Self { settings, http }
    }

    /// A connection is open, as far as is known.
    pub fn is_connected(&self) -> bool {
        self.http.is_connected()
    }

    /// Sends a request; `path` is percent-encoded and begins with a slash. Returns the status and the JSON of the body, whatever the status.
    ///
    /// # Errors
    /// Why there is no answer in JSON until `by`, or that it is larger than 4 MiB or 50,000 values ([`super::is_too_large`]). Holds no secret, nothing of the
    /// answer's body, and does not say where.
    pub async fn ask(
        &mut self,
        method: Method,
        path: String,
        body: Option<&Value>,
        by: Instant,
    ) -> Result<(StatusCode, Value), MeasureError> {
        let body = body.map(|body| (JSON, Bytes::from(body.to_string())));
        let (status, body) = self.send(method, path, body, LARGEST_ANSWER, by).await?;
        if body.is_empty() && says_enough(status) {
            return Ok((status, Value::Null));
        }
        match bounded::read(&body, MOST_VALUES) {
            Ok(json) => Ok((status, json)),
            Err(Unread::TooManyValues) => Err(too_many_values(MOST_VALUES)),
            Err(Unread::NoJson) => Err(no_json(status)),
        }
    }

    /// Sends a request with a body of one of the types [`JSON`] and [`LINES`]; returns the status and the bytes of the answer in JSON, of which there are none
    /// where the status alone says enough. The request may be sent twice, where an idle connection turns out to be closed.
    ///
    /// # Errors
    /// Why there is no answer in JSON until `by`, or that it has more than `largest` bytes ([`super::is_too_large`]). Holds no secret, nothing of the answer's
    /// body, and does not say where.
    pub async fn send(
        &mut self,
        method: Method,
        path: String,
        body: Option<(&'static str, Bytes)>,
        largest: usize,
        by: Instant,
    ) -> Result<(StatusCode, Bytes), MeasureError> {
        let mut headers = vec![(header::ACCEPT, HeaderValue::from_static(JSON))];
        headers.extend(body.iter().map(|(kind, _)| (header::CONTENT_TYPE, HeaderValue::from_static(kind))));
        headers.extend(self.settings.authorization().map(|credential| (header::AUTHORIZATION, credential)));
        let body = body.map(|(_, body)| body).unwrap_or_default();
        let request = HttpRequest { method, path, headers, body, largest };
        let HttpAnswer { status, body, content_type, at: _, has_end: _ } = self.http.send(&request, by).await?;
        if content_type != JSON {
            // OpenSearch refuses a login in plain text, and a proxy in front of either server says in a page of its own that it is overloaded or away.
            return if says_enough(status) { Ok((status, Bytes::new())) } else { Err(no_json(status)) };
        }
        Ok((status, body))
    }
}

fn says_enough(status: StatusCode) -> bool {
    matches!(status.as_u16(), 401 | 413 | 429 | 500..=599)
}

fn no_json(status: StatusCode) -> MeasureError {
    not_elasticsearch(&format!("status {} and not JSON", status.as_u16()))
}
