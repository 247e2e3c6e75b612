//! Asks one management API over one connection.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use tokio::time::Instant;

use super::{
    ConnectionSettings,
    words::{not_the_api, refusal},
};
use crate::{
    addresses::AddressRules,
    api::Reason,
    clients::http::{HttpAnswer, HttpClient, HttpRequest, basic},
    measure::MeasureError,
};

/// An answer with a larger body is given up, in bytes. A queue takes about 250.
pub const LARGEST_ANSWER: usize = 16 << 20;

/// What the server answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// JSON, as far as the server says.
    pub body: Bytes,
    /// The server's time, in whole seconds; absent where it does not tell.
    pub at: Option<jiff::Timestamp>,
}

/// Asks one management API. Keeps its connection from call to call; one that broke is opened again by the next call.
pub struct Client {
    settings: ConnectionSettings,
    http: HttpClient,
}

impl Client {
    /// Not connected yet. `addresses`: which may be asked.
    pub fn new(settings: ConnectionSettings, addresses: Arc<AddressRules>) -> Self {
        let http = HttpClient::new(settings.server.clone(), addresses, not_the_api);
        Self { settings, http }
    }

    /// Where it asks.
    pub fn settings(&self) -> &ConnectionSettings {
        &self.settings
    }

    /// Asks for what lies below `/api/`: `path` is percent-encoded and begins behind that.
    ///
    /// # Errors
    /// Why there is no answer with status 200 in JSON until `by`. Holds no secret, nothing of the answer's body, and does not say where.
    pub async fn get(&mut self, path: &str, by: Instant) -> Result<Answer, MeasureError> {
        let ConnectionSettings { user, password, .. } = &self.settings;
        let credential = basic(user, password).ok_or_else(|| MeasureError {
            reason: Reason::SourceFailed,
            message: "the request cannot be written: user and password".to_owned(),
        })?;
        let request = HttpRequest {
            method: Method::GET,
            path: format!("/api/{path}"),
            headers: vec![
                (header::ACCEPT, HeaderValue::from_static("application/json")),
                (header::AUTHORIZATION, credential),
            ],
            body: Bytes::new(),
            largest: LARGEST_ANSWER,
        };
        let answer = self.http.send(&request, by).await?;
        let is_json = answer.is_json();
        let HttpAnswer { status, body, at, content_type: _, has_end: _ } = answer;
        match status {
            StatusCode::OK if is_json => Ok(Answer { body, at }),
            StatusCode::OK => Err(not_the_api("not JSON")),
            _ => Err(refusal(status, is_json, &body)),
        }
    }
}
