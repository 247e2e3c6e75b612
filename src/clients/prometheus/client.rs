//! Asks one server over one connection.

use std::{fmt::Write as _, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::time::Instant;

use super::answer::{not_the_api, refusal, single};
use crate::{
    addresses::AddressRules,
    api::Reason,
    clients::{
        http::{HttpClient, HttpRequest},
        http_settings::HttpSettings,
    },
    measure::MeasureError,
};

/// An answer with a larger body is given up, in bytes. One number takes about 200.
pub const LARGEST_ANSWER: usize = 1 << 20;
/// A longer query, as it is encoded, goes into the request's body.
const LONGEST_IN_URL: usize = 4_000;
/// The least time that a server is given for a query.
pub const LEAST_TIME: Duration = Duration::from_millis(100);

/// What is asked.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Query {
    /// In PromQL.
    pub text: Arc<str>,
    /// Sent as the header `X-Scope-OrgID`.
    pub tenant: Option<Arc<str>>,
}

/// Asks one server. Keeps its connection from call to call; one that broke is opened again by the next call.
pub struct Client {
    settings: HttpSettings,
    http: HttpClient,
}

impl Client {
    /// Not connected yet. `addresses`: which may be asked.
    pub fn new(settings: HttpSettings, addresses: Arc<AddressRules>) -> Self {
        let http = HttpClient::new(settings.server().clone(), addresses, not_the_api);
        Self { settings, http }
    }

    /// Where it asks.
    pub fn settings(&self) -> &HttpSettings {
        &self.settings
    }

    /// The one number that the query results in now. The server is told to give up by then, too.
    ///
    /// # Errors
    /// Why there is none until `by`, or none that is finite. Holds no secret and nothing of the answer, and does not say where.
    pub async fn number(&mut self, query: &Query, by: Instant) -> Result<f64, MeasureError> {
        let timeout = by.saturating_duration_since(Instant::now()).max(LEAST_TIME);
        let answer = self.http.send(&self.request(query, timeout)?, by).await?;
        match answer.status {
            StatusCode::OK if answer.is_json() => single(&answer.body, answer.at),
            StatusCode::OK => Err(not_the_api("not JSON")),
            status => Err(refusal(status, answer.is_json(), &answer.body)),
        }
    }

    fn request(&self, query: &Query, timeout: Duration) -> Result<HttpRequest, MeasureError> {
        let mut form = format!("query={}", utf8_percent_encode(&query.text, NON_ALPHANUMERIC));
        // Thanos: an error instead of a number that lacks a part. Others do not know it.
        let _ = write!(form, "&timeout={}ms&partial_response=false", timeout.as_millis());
        let mut headers = self.settings.headers()?;
        headers.push((header::ACCEPT, HeaderValue::from_static("application/json")));
        if let Some(tenant) = &query.tenant {
            let value = HeaderValue::from_str(tenant).map_err(|_| MeasureError {
                reason: Reason::InvalidSpec,
                message: "the tenant holds letters that no HTTP header can carry".to_owned(),
            })?;
            headers.push((HeaderName::from_static("x-scope-orgid"), value));
        }
        let path = format!("{}/api/v1/query", self.settings.path());
        Ok(if form.len() <= LONGEST_IN_URL {
            let path = format!("{path}?{form}");
            HttpRequest { method: Method::GET, path, headers, body: Bytes::new(), largest: LARGEST_ANSWER }
        } else {
            let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
            headers.push((header::CONTENT_TYPE, kind));
            HttpRequest { method: Method::POST, path, headers, body: form.into(), largest: LARGEST_ANSWER }
        })
    }
}
